"""What each part of one send costs the processor: `python -m benchmarks.budget`.

In this process and one thread, without gunicorn, by its CPU time (user and system), which says
nothing of waiting. Every part is called many times in a row; the parts take turns, since a shared
machine may be slower a minute later, and the median over the turns is the result. Each message has
a recipient, an id and a key of its own, so that nothing is found that a real send would not find.

The provider (`standin.py`) is another process, and so is PostgreSQL: what they take is not counted,
what it takes to speak with them is. The log is written as in production, to nowhere.

With `--write` the table goes into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import json
import logging.config
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, Final

from flask import Flask, Response, jsonify
from flask import request as flask_request

from app import create_app
from benchmarks.send import (
    GUNICORN_CONF,
    POOL_KEYS,
    PROVIDER_KEY,
    PROVIDERS,
    BenchmarkError,
    configuration,
    stand_in,
)
from benchmarks.store import postgresql
from benchmarks.variants import NullStore
from docs.measured import machine, tell
from email_services.abstract import AbstractEmailService, Acceptance, ServiceSettings
from email_services.config import load_config
from email_services.message import MAX_MESSAGE_BYTES, EmailMessage
from email_services.pool import PooledEmailService
from email_services.store import LoggedMessage, Store

DOMAIN: Final = "mailgun.example.com"
KEPT_SECONDS: Final = 30.0
WAIT_SECONDS: Final = 10.0
BLOCK_SECONDS: Final = 0.05
"""Of CPU time: how long one part is called in a row."""

NUMBERS: Final = itertools.count(time.time_ns())
"""No two messages are the same."""


@dataclass(frozen=True)
class Part:
    """Something that a send consists of. arguments: makes those of so many calls, not counted."""

    name: str
    call: Callable[[Any], object]
    arguments: Callable[[int], Sequence[Any]] = range

    def microseconds(self, times: int) -> float:
        """CPU time of one of so many calls in a row, after one that opens what was closed."""
        first, *others = self.arguments(times + 1)
        self.call(first)
        began = time.process_time()
        for argument in others:
            self.call(argument)
        return (time.process_time() - began) / times * 1e6

    def times(self) -> int:
        """How many calls fill a block."""
        self.microseconds(10)  # the first ones import and compile
        return max(1, int(BLOCK_SECONDS * 1e6 / self.microseconds(10)))


def main() -> None:
    """Measure every part, and print the table or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25, help="turns of each part (default: 25)")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        parts = list(all_parts(stack))
        times = [part.times() for part in parts]
        found: list[list[float]] = [[] for _ in parts]
        for _ in range(options.rounds):
            for part, count, taken in zip(parts, times, found, strict=True):
                taken.append(part.microseconds(count))
    rows = [["", "µs", "least"]]
    rows += [
        [part.name, f"**{median(taken):.0f}**", f"{min(taken):.0f}"]
        for part, taken in zip(parts, found, strict=True)
    ]
    versions = machine("Flask", "SQLAlchemy", "psycopg", "pydantic", "requests", "sendgrid")
    tell("budget", f"{versions}; {options.rounds} turns of each", rows, is_kept=options.write)


def all_parts(stack: contextlib.ExitStack) -> Iterator[Part]:
    """All that is measured; stack: closes what they need."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    log_to_nowhere(stack)
    provider = stack.enter_context(stand_in(0))
    urls = {"SQLite": f"sqlite:///{folder / 'state.sqlite3'}"}
    with contextlib.suppress(ModuleNotFoundError):  # it is not for every machine
        urls["PostgreSQL"] = stack.enter_context(postgresql())
    apps = {name: make_app(folder, provider, url) for name, url in urls.items()}
    for app in apps.values():
        stack.callback(app.extensions["mailpool"].store.close)
    yield from requests_alone(apps["SQLite"])
    yield Part("a message parsed", parse, lambda count: [fields() for _ in range(count)])
    for name, app in apps.items():
        yield from statements(name, app.extensions["mailpool"].store)
    yield from pools(apps)
    yield from providers(apps["SQLite"])
    log = logging.getLogger("benchmark")
    yield Part("a line of the log", lambda n: log.info("%s: %s sent %s", DOMAIN, "mailgun", n))
    yield from whole_sends(apps, passthrough(provider))


def log_to_nowhere(stack: contextlib.ExitStack) -> None:
    """Set up the log as gunicorn does; what is written after the measurements is dropped."""
    nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    stack.callback(logging.disable)
    settings = runpy.run_path(str(GUNICORN_CONF))["logconfig_dict"]
    settings["handlers"]["stdout"]["stream"] = nowhere
    logging.config.dictConfig(settings)


def make_app(folder: Path, provider: int, url: str) -> Flask:
    """The service, with its state at `url`."""
    config = folder / "config.json"
    config.write_text(json.dumps(configuration(provider)), encoding="utf-8")
    os.environ["DATABASE_URL"] = url
    return create_app(load_config(str(config)))


def passthrough(provider: int) -> ModuleType:
    """The pass-through, which reads the environment as it is imported."""
    os.environ["PROVIDER_URL"] = f"http://127.0.0.1:{provider}"
    os.environ |= {"PROVIDER_KEY": PROVIDER_KEY, "WEB_THREADS": "64"}
    return importlib.import_module("benchmarks.passthrough")


# What is sent


def fields(**more: object) -> dict[str, Any]:
    """A message as a client posts it, with 1 kB of text and HTML, to somebody new."""
    return {
        "from_email": f"shop@{DOMAIN}",
        "to_recipients": [f"reader{next(NUMBERS)}@example.org"],
        "subject": "Your order has been shipped",
        "raw_text_body": "Your order is on its way. " * 10,
        "html_body": "<p>Your order is <b>on its way</b>.</p>" * 20,
        **more,
    }


def parse(given: Mapping[str, Any]) -> EmailMessage:
    """As a view does."""
    return EmailMessage.parse(given, DOMAIN, MAX_MESSAGE_BYTES)


def messages(count: int) -> list[EmailMessage]:
    """So many that are ready to be sent."""
    return [parse(fields()) for _ in range(count)]


# The parts


def requests_alone(app: Flask) -> Iterator[Part]:
    """What a request costs that sends nothing."""
    bare = Flask("bare")
    flask_api = importlib.import_module("flask_api").FlaskAPI("flask_api")  # app.py mends it first

    @bare.post("/")
    def answer() -> Response:
        return jsonify(id=flask_request.get_json()["subject"])

    @flask_api.post("/")
    def answer_too() -> dict[str, str]:
        return {"id": flask_request.data["subject"]}

    yield Part("a request to bare Flask", posting(bare, "/"), bodies)
    yield Part("a request to Flask-API", posting(flask_api, "/"), bodies)
    dry_run = posting(app, f"/{DOMAIN}/send")
    yield Part("a dry run of the service", dry_run, lambda count: bodies(count, dry_run=True))


def bodies(count: int, **more: object) -> list[bytes]:
    """Messages in JSON."""
    return [json.dumps(fields(**more)).encode() for _ in range(count)]


def posting(
    app: Flask, path: str, key: str = POOL_KEYS["mailgun"], *, keyed: bool = False
) -> Callable[[bytes], None]:
    """What posts a body to a WSGI application. keyed: with an Idempotency-Key, each a new one."""
    base = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "HTTP_ACCEPT": "*/*",
        "HTTP_AUTHORIZATION": f"Bearer {key}",
        "CONTENT_TYPE": "application/json",
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
    }

    def post(body: bytes) -> None:
        environ = {**base, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        if keyed:
            environ["HTTP_IDEMPOTENCY_KEY"] = f"order-{next(NUMBERS)}"
        statuses: list[str] = []
        told = b"".join(app(environ, lambda status, *_: statuses.append(status)))
        if not statuses[0].startswith("200"):
            raise BenchmarkError(f"{path} answered {statuses[0]}: {told[:500]!r}")

    return post


def statements(database: str, store: Store) -> Iterator[Part]:
    """What the store does for one send, each alone."""

    def in_progress(count: int) -> list[LoggedMessage]:
        found = logged(count)
        store.log_messages(found)
        return [sent(message) for message in found]

    def reserve(message_id: str) -> None:
        now = time.time()
        until, mark = now + KEPT_SECONDS, f"{message_id:0>64}"
        store.reserve_keys(DOMAIN, [(message_id, mark)], now, until, {message_id: message_id})

    def reserved(count: int) -> list[tuple[str, float]]:
        keys, now = ids(count), time.time()
        store.reserve_keys(DOMAIN, [(key, key) for key in keys], now, now + KEPT_SECONDS)
        return [(key, now) for key in keys]

    answer = {"outcome": "sent", "service_used": "mailgun", "attempts": [ATTEMPT]}
    for name, call, arguments in (
        ("the services' states", lambda _: store.service_states(DOMAIN), range),
        ("a message in progress", lambda message: store.log_messages([message]), logged),
        ("what became of it", lambda message: store.log_outcomes([message]), in_progress),
        ("an Idempotency-Key reserved", reserve, ids),
        ("its answer kept", lambda r: store.settle_keys(DOMAIN, r[1], {r[0]: answer}), reserved),
    ):
        yield Part(f"{database}: {name}", call, arguments)


ATTEMPT: Final = {"service": "mailgun", "outcome": "sent", "code": "", "reason": ""}


def ids(count: int) -> list[str]:
    """So many ids that nobody has."""
    return [f"{next(NUMBERS):032x}" for _ in range(count)]


def logged(count: int) -> list[LoggedMessage]:
    """So many messages in progress, as the log has them."""
    now = time.time()
    sender, until = f"shop@{DOMAIN}", now + KEPT_SECONDS
    return [
        LoggedMessage(id_, now, DOMAIN, sender, [f"{id_}@example.org"], "Shipped", deadline=until)
        for id_ in ids(count)
    ]


def sent(message: LoggedMessage) -> LoggedMessage:
    """The same as it is after it was sent."""
    return replace(
        message,
        outcome="sent",
        service_used="mailgun",
        service_message_id=f"<{message.message_id}@example.com>",
        attempts=[ATTEMPT],
    )


class Idle(AbstractEmailService):
    """A provider that accepts everything and does nothing."""

    provider = "idle"

    def send(self, message: EmailMessage, timeout: float) -> Acceptance:  # noqa: ARG002
        """See AbstractEmailService."""
        return Acceptance("id")


def pools(apps: Mapping[str, Flask]) -> Iterator[Part]:
    """The pool's own work, with a provider that does nothing."""
    service = Idle("idle", DOMAIN, ServiceSettings(priority_value=1))
    stores = {name: app.extensions["mailpool"].store for name, app in apps.items()}
    for name, store in {"no database": NullStore(), **stores}.items():
        pool = PooledEmailService(DOMAIN, [service], store)
        yield Part(f"a send of the pool, {name}, a provider that does nothing", pool.send, messages)


def providers(app: Flask) -> Iterator[Part]:
    """What it takes to ask a provider."""
    for name, title in zip(PROVIDERS, ("Mailgun", "SendGrid"), strict=True):
        pool = app.extensions["mailpool"].pools[f"{name}.example.com"]
        yield from asking(title, pool.services[name])


def asking(title: str, service: Any) -> Iterator[Part]:
    """The request alone, and the whole exchange."""
    yield Part(
        f"a request to {title}, ready to be written",
        lambda message: service.build_request(message).prepare(),
        messages,
    )
    yield Part(
        f"the same, sent to a stand-in of {title}, and its answer read",
        lambda message: service.send(message, WAIT_SECONDS),
        messages,
    )


def whole_sends(apps: Mapping[str, Flask], bare: ModuleType) -> Iterator[Part]:
    """From the body of the request to the answer, beside the bare pass-through."""
    for name, title in zip(PROVIDERS, ("Mailgun", "SendGrid"), strict=True):
        domain, key = f"{name}.example.com", POOL_KEYS[name]

        def made(count: int, sender: str = f"shop@{domain}") -> list[bytes]:
            return bodies(count, from_email=sender)

        through = posting(bare.app, f"/{domain}/{name}", key)
        yield Part(f"the bare pass-through to {title}, whole", through, made)
        for database, app in apps.items():
            post = posting(app, f"/{domain}/send", key)
            yield Part(f"a send through {title}, {database}, whole", post, made)
        keyed = posting(apps["SQLite"], f"/{domain}/send", key, keyed=True)
        yield Part(f"a send through {title}, SQLite, with an Idempotency-Key, whole", keyed, made)


if __name__ == "__main__":
    main()
