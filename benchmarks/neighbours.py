"""What one caller's bad day costs another's sends: `python -m benchmarks.neighbours`.

The service runs with its own `gunicorn.conf.py`. Callers of one email domain, the victim, send
without a pause through a stand-in that answers after 50 ms. Beside them, in turn, somebody has a
bad day, or is up to no good:

- `hanging`: 64 callers of another domain, whose only provider never answers
- `hanging, with a backup`: the same where a second provider answers
- `batches`: 4 callers of another domain send batches of 1,000 with an Idempotency-Key
- `queued batches`, `queued files`: 4 callers of another domain have such batches queued, or
  messages with a file of 10 MB, without a pause, and they are delivered meanwhile
- `searches`: 20 callers search the other domain's log, of 200,000 messages, for part of an address
- `half requests`: 200 clients begin a request with a large body and send no more
- `a stranger's bodies`: 4 clients without a key post 30 MB of `[],[],…`

For each the victim's messages a second before, beside it and after, the ratio of beside to the
mean of before and after, and the longest that `/healthz` took meanwhile. Callers honour
`Retry-After`, as a program would; with `--rude` they do not, and what they cost is processor time.

Everything is on 127.0.0.1 and ends with this program. It fails where a message of the victim's was
not sent.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from typing_extensions import Self

from benchmarks.send import HERE, BenchmarkError, run_gunicorn, running, stand_in
from email_services.store import LoggedMessage, Store

VICTIM: Final = "victim.example"
OTHER: Final = "other.example"
KEYS: Final = {name: secrets.token_urlsafe(24) for name in (VICTIM, OTHER)}
VICTIM_DELAY: Final = 50
LOGGED: Final = 200_000
WAIT_SECONDS: Final = 120


@dataclass(frozen=True)
class Call:
    """A request to make over and over. headers: beside Content-Type and the key."""

    method: str
    path: str
    body: bytes = b""
    key: str = ""
    keyed: bool = False
    is_queued: bool = False


class Callers:
    """Some at once, each with its next call when it has its last answer, until the block ends."""

    def __init__(self, port: int, call: Call, number: int, *, is_rude: bool = False) -> None:
        self._port, self._call, self._is_rude = port, call, is_rude
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(number)]
        self.answers: list[tuple[int, float]] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()

    def join(self) -> None:
        """Let each have its last answer."""
        for thread in self._threads:
            thread.join(WAIT_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                status, retry_after = self._ask()
            except (OSError, http.client.HTTPException):
                status, retry_after = 0, "1"
            self.answers.append((status, time.monotonic() - started))
            if retry_after and not self._is_rude:
                self._stopping.wait(float(retry_after))

    def _ask(self) -> tuple[int, str | None]:
        headers = {"Content-Type": "application/json"}
        if self._call.key:
            headers["Authorization"] = f"Bearer {self._call.key}"
        if self._call.keyed:
            headers["Idempotency-Key"] = secrets.token_hex(8)
        if self._call.is_queued:
            headers["Prefer"] = "respond-async"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_SECONDS)
        with contextlib.closing(connection):
            connection.request(self._call.method, self._call.path, self._call.body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers["Retry-After"]


def send(domain: str, *, keyed: bool = False) -> Call:
    """A message of `domain`."""
    body = json.dumps(fields(domain, 0)).encode()
    return Call("POST", f"/{domain}/send", body, KEYS[domain], keyed)


def batch(domain: str) -> Call:
    """A thousand of them."""
    body = json.dumps({"messages": [fields(domain, number) for number in range(1000)]}).encode()
    return Call("POST", f"/{domain}/send", body, KEYS[domain], keyed=True)


def queued(call: Call) -> Call:
    """The same, to be sent later."""
    return replace(call, is_queued=True)


def with_file(domain: str) -> Call:
    """A message of `domain` with a file of 10 MB."""
    file = {"filename": "plan.bin", "content": base64.b64encode(bytes(10**7)).decode()}
    body = json.dumps({**fields(domain, 0), "attachments": [file]}).encode()
    return Call("POST", f"/{domain}/send", body, KEYS[domain])


def fields(domain: str, number: int) -> dict[str, Any]:
    """A message, with 1 kB of text and HTML."""
    return {
        "from_email": f"shop@{domain}",
        "to_recipients": [f"ada{number}@example.org"],
        "subject": "Your order has been shipped",
        "raw_text_body": "Your order is on its way. " * 10,
        "html_body": "<p>Your order is <b>on its way</b>.</p>" * 20,
    }


@contextlib.contextmanager
def half_requests(port: int, number: int = 200) -> Iterator[None]:
    """Clients that begin a request and say no more."""
    head = f"POST /{OTHER}/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    half = f"{head}Content-Length: 900000\r\n\r\n{{".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            raw.sendall(half)
        yield


@dataclass(frozen=True)
class BadDay:
    """What goes on beside the victim.

    trouble: a block within which it does, made from the port and whether callers are rude.
    is_hanging, has_backup: how the other domain's providers are. logged: messages in its log.
    """

    name: str
    trouble: Callable[[int, bool], contextlib.AbstractContextManager[object]]
    is_hanging: bool = False
    has_backup: bool = False
    logged: int = 0


SEARCH: Final = Call("GET", f"/{OTHER}/messages?recipient=nobody", key=KEYS[OTHER])
BRACKETS: Final = b"[" + b"[]," * 10_000_000 + b"[]]"

BAD_DAYS: Final = (
    BadDay("hanging", lambda port, rude: Callers(port, send(OTHER), 64, is_rude=rude), True),
    BadDay(
        "hanging, with a backup",
        lambda port, rude: Callers(port, send(OTHER), 64, is_rude=rude),
        True,
        has_backup=True,
    ),
    BadDay("batches", lambda port, rude: Callers(port, batch(OTHER), 4, is_rude=rude)),
    BadDay(
        "queued batches", lambda port, rude: Callers(port, queued(batch(OTHER)), 4, is_rude=rude)
    ),
    BadDay(
        "queued files", lambda port, rude: Callers(port, queued(with_file(OTHER)), 4, is_rude=rude)
    ),
    BadDay(
        "searches",
        lambda port, rude: Callers(port, SEARCH, 20, is_rude=rude),
        logged=LOGGED,
    ),
    BadDay("half requests", lambda port, _: half_requests(port)),
    BadDay(
        "a stranger's bodies",
        lambda port, rude: Callers(port, Call("POST", f"/{OTHER}/send", BRACKETS), 4, is_rude=rude),
    ),
)


def main() -> None:
    """Measure each and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6, help="of each phase (default: 6)")
    parser.add_argument("--callers", type=int, default=8, help="of the victim (default: 8)")
    parser.add_argument("--rude", action="store_true", help="callers ignore Retry-After")
    parser.add_argument("--keyed", action="store_true", help="the victim's have Idempotency-Keys")
    parser.add_argument("--only", default="", help="those whose name begins so")
    options = parser.parse_args()
    print(
        "| beside | victim's messages/s: before | beside | after | ratio | not sent"
        " | /healthz, longest | the other's answers |\n|---|---|---|---|---|---|---|---|"
    )
    for bad_day in BAD_DAYS:
        if bad_day.name.startswith(options.only):
            print(measure(bad_day, options), flush=True)


def measure(bad_day: BadDay, options: argparse.Namespace) -> str:
    """One row."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        working = stack.enter_context(stand_in(VICTIM_DELAY))
        other = working
        if bad_day.is_hanging:
            other = stack.enter_context(hanging())
        url = os.environ.get("BENCHMARK_DATABASE", f"sqlite:///{folder}/state.sqlite3")
        if bad_day.logged:
            fill_log(url, bad_day.logged)
        config = folder / "config.json"
        config.write_text(json.dumps(configuration(working, other, bad_day)))
        environment = {"EMAIL_CONFIG": str(config), "DATABASE_URL": url}
        server = stack.enter_context(run_gunicorn([], environment, "/", folder / "log"))
        port = server.port
        victims = send(VICTIM, keyed=options.keyed)

        def rate() -> tuple[float, int]:
            with Callers(port, victims, options.callers) as callers:
                time.sleep(options.seconds)
                answers = list(callers.answers)
            callers.join()
            bad = sum(status != http.HTTPStatus.OK for status, _ in callers.answers)
            return len(answers) / options.seconds, bad

        rate()  # to warm up
        before, _ = rate()
        with bad_day.trouble(port, options.rude) as trouble:
            time.sleep(0.5)
            with Callers(port, Call("GET", "/healthz"), 1) as checks:
                beside, bad = rate()
            checks.join()
        if isinstance(trouble, Callers):
            trouble.join()
        after, _ = rate()
        ratio = beside / ((before + after) / 2)
        longest = max(seconds for _, seconds in checks.answers)
        return (
            f"| {bad_day.name} | {before:.0f} | {beside:.0f} | {after:.0f} | **{ratio:.2f}**"
            f" | {bad} | {longest:.2f} s | {summary(trouble)} |"
        )


def summary(trouble: object) -> str:
    """How the others were answered."""
    if not isinstance(trouble, Callers):
        return ""
    times: dict[int, list[float]] = {}
    for status, seconds in trouble.answers:
        times.setdefault(status, []).append(seconds)
    return ", ".join(f"{len(t)} x {s} ({median(t):.2f} s)" for s, t in sorted(times.items()))


@contextlib.contextmanager
def hanging() -> Iterator[int]:
    """A provider that takes every message and never answers; gives its port."""
    command = [sys.executable, str(HERE / "hanging.py")]
    with running(command, signal.SIGTERM, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/hang")
            if connection.getresponse().status != http.HTTPStatus.OK:
                raise BenchmarkError("The hanging stand-in does not hang.")
        yield port


def configuration(working: int, other: int, bad_day: BadDay) -> dict[str, Any]:
    """Two domains at stand-ins for Mailgun."""

    def account(port: int, priority: int) -> dict[str, Any]:
        url = f"http://127.0.0.1:{port}"
        return {"service": "mailgun", "api_key": "x", "base_url": url, "priority_value": priority}

    others = {"first": account(other, 2)}
    if bad_day.has_backup:
        others["backup"] = account(working, 1)
    services = {VICTIM: {"first": account(working, 1)}, OTHER: others}
    return {
        "root_api_key": secrets.token_urlsafe(24),
        "email_services": [
            {"email_domain": name, "pool_api_key": KEYS[name], "enabled_services": services[name]}
            for name in services
        ],
    }


def fill_log(url: str, number: int) -> None:
    """Write a log of that many messages of the other domain."""
    now = time.time()
    with contextlib.closing(Store(url)) as store:
        for start in range(0, number, 1000):
            store.log_messages(
                [
                    LoggedMessage(
                        f"{n:032x}",
                        now - n,
                        OTHER,
                        f"shop@{OTHER}",
                        [f"u{n}@a.example"],
                        "Hello",
                        outcome="sent",
                        service_used="first",
                    )
                    for n in range(start, start + 1000)
                ]
            )


if __name__ == "__main__":
    main()
