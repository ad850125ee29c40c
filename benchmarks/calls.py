"""Calls to the service, each timed, from a fixed number of callers at once.

A caller sends its next message when it has the answer to its last. Each message has an id of its
own, which its subject ends with, so that a stand-in can tell which one it took.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from typing_extensions import Self

WAIT_SECONDS: Final = 30
"""No single answer takes longer."""


@dataclass(frozen=True)
class Target:
    """Where to send, and how. keyed: with an Idempotency-Key, a new one for each message."""

    port: int
    email_domain: str
    pool_key: str
    keyed: bool = False


@dataclass(frozen=True)
class Call:
    """One message and what was answered.

    started: by the monotonic clock. milliseconds: from before the connection to the whole answer.
    status: of HTTP, or 0 where none came.
    """

    number: int
    started: float
    milliseconds: float
    status: int
    answer: dict[str, Any]

    @property
    def service_used(self) -> str | None:
        """The service that sent it."""
        return self.answer.get("service_used")

    @property
    def waited(self) -> bool:
        """Whether it waited in vain for a provider to answer."""
        return any(attempt["outcome"] == "unknown" for attempt in self.answer.get("attempts", ()))


class Load:
    """Callers at work until the `with` block ends; `calls` are the answers so far."""

    def __init__(self, target: Target, callers: int) -> None:
        self.calls: list[Call] = []
        self._target = target
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(callers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let each caller end its last call."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)

    def _call(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._target.port, WAIT_SECONDS)
        with contextlib.closing(connection):
            while not self._stopping.is_set():
                self.calls.append(call(connection, self._target, next(self._numbers)))


def call(connection: http.client.HTTPConnection, target: Target, number: int) -> Call:
    """Send message `number` on `connection`, which is opened again where the server closed it."""
    headers = {
        "Authorization": f"Bearer {target.pool_key}",
        "Content-Type": "application/json",
    }
    if target.keyed:
        headers["Idempotency-Key"] = f"{time.time_ns()}-{number}"
    body = message(target.email_domain, number)
    started = time.monotonic()
    status, answer = 0, b"{}"
    try:
        connection.request("POST", f"/{target.email_domain}/send", body, headers)
        response = connection.getresponse()
        status, answer = response.status, response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
    milliseconds = (time.monotonic() - started) * 1000
    return Call(number, started, milliseconds, status, json.loads(answer))


def message(email_domain: str, number: int) -> bytes:
    """A message as a client of the service posts it, with 1 kB of text and HTML."""
    fields = {
        "from_email": f"shop@{email_domain}",
        "to_recipients": ["ada@example.org"],
        "subject": f"Your order has been shipped: id{number}",
        "raw_text_body": "Your order is on its way. " * 10,
        "html_body": "<p>Your order is <b>on its way</b>.</p>" * 20,
    }
    return json.dumps(fields).encode()


def get(target: Target, path: str) -> dict[str, Any]:
    """What the service answers to a GET with the pool key. Raises OSError without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=WAIT_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Bearer {target.pool_key}"})
        return dict(json.load(connection.getresponse()))


def run_for(seconds: float, target: Target, callers: int) -> list[Call]:
    """Send for that many seconds; returns the calls."""
    with Load(target, callers) as load:
        time.sleep(seconds)
    return load.calls


def not_sent(calls: list[Call]) -> Iterator[Call]:
    """Those that were not answered 200."""
    return (call for call in calls if call.status != http.HTTPStatus.OK)
