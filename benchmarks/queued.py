"""How fast messages are queued and delivered, beside a bare pass-through: `benchmarks.queued`.

    .venv/bin/python -m benchmarks.queued

The pass-through (`passthrough.py`), at 64 callers, and the service, which queues (`Prefer:
respond-async`), run under the same `gunicorn.conf.py` and have the same stand-in of a provider
(`standin.py`), which answers after 50 ms. They take turns, since a shared machine may be twice as
fast a minute later: only ratios within a round mean anything.

Each round also measures what a lane costs the other: how long it takes from the request of a
message in `default` until its provider has it, on an idle service and while many wait in `bulk`.

With `--kafka` the same, where messages wait in Kafka first: a broker on loopback, which keeps them
in memory (`tests/broker.py`).

Everything is on 127.0.0.1 and ends with this program. It fails where a message was not delivered.
(It is not called queue.py: started from here, a script would take that for Python's own module.)
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.load import MARK
from benchmarks.send import (
    HERE,
    PROVIDER_KEY,
    RUN_SECONDS,
    BenchmarkError,
    Server,
    counts,
    run_gunicorn,
    stand_in,
)
from email_services.streams import BUILT_IN
from tests.broker import Broker

DELAY_MILLISECONDS: Final = 50
CALLERS: Final = 64
FEW_CALLERS: Final = 16
BATCH: Final = 1000
CODES: Final = 15
"""Messages whose way is timed."""

TARGETS: Final = {
    "accepted, 16 callers": 2.0,
    "accepted, 64 callers": 2.0,
    "alike, one at a time": 2.0,
    "alike, in batches of 1,000": 4.0,
    "all different": 1.2,
}


@dataclass(frozen=True)
class Account:
    """A domain, its pool key, and the stream that its messages go in."""

    domain: str
    key: str
    stream: str = "bulk"


SHOP: Final = Account("example.com", secrets.token_urlsafe(24))


@dataclass(frozen=True)
class Service:
    """The service and its database."""

    server: Server
    database: Path

    def waiting(self, account: Account | None = None) -> int:
        """How many messages are in the outbox, of all or of one account."""
        if account is None:
            return self._number("SELECT count(*) FROM outbox")
        query = "SELECT count(*) FROM outbox WHERE email_domain = ? AND stream = ?"
        return self._number(query, account.domain, account.stream)

    def send_all(self, number: int) -> None:
        """Wait until so many were sent, of all. Raises BenchmarkError."""
        deadline = time.monotonic() + RUN_SECONDS
        while self.sent() < number:
            if time.monotonic() > deadline:
                raise self.server.failed("Not every message was sent.")
            time.sleep(0.02)

    def sent(self) -> int:
        """How many messages were sent, of all."""
        return self._number("SELECT count(*) FROM messages WHERE outcome = 'sent'")

    def _number(self, query: str, *values: str) -> int:
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return int(connection.execute(query, values).fetchone()[0])

    def batches(self, messages: int, account: Account = SHOP, *, differ: bool = False) -> None:
        """Have that many queued in batches, four at a time. Raises BenchmarkError."""
        bodies = [
            {"messages": [message(n, account, differ=differ) for n in range(start, end)]}
            for start in range(0, messages, BATCH)
            for end in [min(start + BATCH, messages)]
        ]
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(lambda body: post(self.server, body, account), bodies))

    def deliver_all(self, account: Account | None = None) -> None:
        """Wait for it, or for what one account has. Raises BenchmarkError."""
        deadline = time.monotonic() + RUN_SECONDS
        while self.waiting(account):
            if time.monotonic() > deadline:
                raise self.server.failed("Not all was delivered.")
            time.sleep(0.02)


def main() -> None:
    """Measure and print the tables."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # what we started ends with us
    options = parse_arguments()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs;"
        f" SQLite{', Kafka' if options.kafka else ''}, the provider takes"
        f" {DELAY_MILLISECONDS} ms; {options.messages} messages, {options.rounds} rounds.\n"
    )
    try:
        rates, delays = measure(options.messages, options.rounds, has_kafka=options.kafka)
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    print(
        "| | messages/s | **by the pass-through's**: median (min to max) | target |\n"
        "|---|---|---|---|"
    )
    print(f"| pass-through, {CALLERS} callers | {median(rates['bare']):.0f} | | |")
    for name, target in TARGETS.items():
        ratios = [rate / bare for rate, bare in zip(rates[name], rates["bare"], strict=True)]
        met = "met" if median(ratios) >= target else "missed"
        spread = f"**{median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {median(rates[name]):.0f} | {spread} | {target} {met} |")
    print("\n| a message in `default` | median delay, s | longest |\n|---|---|---|")
    for name, seconds in delays.items():
        print(f"| {name} | {median(seconds):.2f} | {max(seconds):.2f} |")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--kafka", action="store_true", help="messages wait in Kafka first")
    return parser.parse_args()


def measure(
    messages: int, rounds: int, *, has_kafka: bool
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Messages a second by what was measured, and seconds until a message was delivered."""
    rates: dict[str, list[float]] = {name: [] for name in ("bare", *TARGETS)}
    delays: dict[str, list[float]] = {"on an idle service": [], f"{messages} wait in `bulk`": []}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(stand_in(DELAY_MILLISECONDS))
        bare = stack.enter_context(run_passthrough(provider, folder))
        kafka = stack.enter_context(broker()) if has_kafka else None

        def run(name: str, *, delivers: bool) -> Service:
            settings = configuration(provider)
            if kafka:
                settings["queue_url"] = f"{kafka.url}-{name}"
                kafka.prepare(settings["queue_url"], BUILT_IN)
            return stack.enter_context(run_service(settings, folder / name, delivers=delivers))

        delivering, accepting = run("delivering", delivers=True), run("accepting", delivers=False)
        for server in (bare, delivering.server, accepting.server):
            load(server, CALLERS, CALLERS * 4)  # to warm up
        delivering.send_all(CALLERS * 4)
        for _ in range(rounds):
            rates["bare"].append(messages / load(bare, CALLERS, messages))
            for callers in (FEW_CALLERS, CALLERS):
                seconds = load(accepting.server, callers, messages // 2)
                rates[f"accepted, {callers} callers"].append(messages // 2 / seconds)
            ways: dict[str, Callable[[], object]] = {
                "alike, one at a time": lambda: load(delivering.server, CALLERS, messages),
                "alike, in batches of 1,000": lambda: delivering.batches(messages),
                "all different": lambda: load(delivering.server, CALLERS, messages, differ=True),
            }
            for name, queue in ways.items():
                rates[name].append(messages / timed(delivering, queue, messages))
            idle, busy = delays
            sent = delivering.sent()
            delays[idle] += [delay(delivering, provider) for _ in range(CODES)]
            delivering.batches(messages, differ=True)
            delays[busy] += [delay(delivering, provider) for _ in range(CODES)]
            if not delivering.waiting():
                raise BenchmarkError("Nothing waited any more: take more messages.")
            delivering.send_all(sent + messages + 2 * CODES)
    return rates, delays


def timed(service: Service, queue: Callable[[], object], messages: int) -> float:
    """Seconds from the first request to the last delivery. Raises BenchmarkError."""
    before, started = service.sent(), time.perf_counter()
    queue()
    service.send_all(before + messages)
    return time.perf_counter() - started


def delay(service: Service, provider: int) -> float:
    """Seconds from the request of a message in `default` until its provider has it."""
    before, started = counts(provider)["sendgrid"], time.perf_counter()
    code = replace(SHOP, stream="default")
    post(service.server, message(0, code, differ=True), code)
    while counts(provider)["sendgrid"] == before:
        if time.perf_counter() > started + RUN_SECONDS:
            raise service.server.failed("A message never came.")
        time.sleep(0.01)
    return time.perf_counter() - started


def load(server: Server, callers: int, messages: int, *, differ: bool = False) -> float:
    """Send that many, each caller one at a time; returns the seconds. Raises BenchmarkError."""
    body = json.dumps(message(None, differ=differ))
    head = (
        f"POST {server.path} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Accept: */*",
        "Prefer: respond-async",
        f"Authorization: Bearer {SHOP.key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    command = [sys.executable, str(HERE / "load.py")]
    answer = subprocess.run(
        [*command, *map(str, (server.port, callers, messages))],
        input="\r\n".join((*head, "", body)).encode(),
        stdout=subprocess.PIPE,
        timeout=RUN_SECONDS,
        check=True,
        start_new_session=True,  # Ctrl-C is ours alone; it is ended with this call
    )
    result = json.loads(answer.stdout)
    if sum(result["statuses"].get(status, 0) for status in ("200", "202")) != messages:
        raise server.failed(f"{messages} requests were answered {result['statuses']}.")
    return float(result["seconds"])


def post(server: Server, body: dict[str, Any], account: Account = SHOP) -> None:
    """Have what is in the body queued. Raises BenchmarkError."""
    headers = {
        "Authorization": f"Bearer {account.key}",
        "Content-Type": "application/json",
        "Prefer": "respond-async",
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", f"/{account.domain}/send", json.dumps(body), headers)
        response = connection.getresponse()
        response.read()
    if response.status != http.HTTPStatus.ACCEPTED:
        raise server.failed(f"What was to be queued was answered {response.status}.")


def message(number: int | None, account: Account = SHOP, *, differ: bool = False) -> dict[str, Any]:
    """A message with 1 kB of text and HTML. number: None where each caller writes its own."""
    mark = MARK.decode() if number is None else f"{number:0{len(MARK)}}"
    return {
        "from_email": f"shop@{account.domain}",
        "to_recipients": [f"n{mark}@example.org"],
        "stream": account.stream,
        "subject": f"Your order {mark} has been shipped" if differ else "News",
        "raw_text_body": "Your order is on its way. " * 10,
        "html_body": "<p>Your order is <b>on its way</b>.</p>" * 20,
    }


@contextlib.contextmanager
def run_service(
    settings: dict[str, Any], folder: Path, *, delivers: bool = True
) -> Iterator[Service]:
    """Run the service, with a configuration and a state of its own."""
    folder.mkdir()
    config, database = folder / "config.json", folder / "state.sqlite3"
    config.write_text(json.dumps(settings), encoding="utf-8")
    environment = {"EMAIL_CONFIG": str(config), "DATABASE_URL": f"sqlite:///{database}"}
    if not delivers:
        environment["QUEUE_CALLS"] = "0"
    path = f"/{SHOP.domain}/send"
    with run_gunicorn([], environment, path, folder / "service.log") as server:
        yield Service(server, database)


@contextlib.contextmanager
def broker() -> Iterator[Broker]:
    """Run a broker of Kafka's kind."""
    running = Broker()
    try:
        running.start()
        yield running
    finally:
        running.kill()


@contextlib.contextmanager
def run_passthrough(provider: int, folder: Path) -> Iterator[Server]:
    """Run the pass-through."""
    application = ["--pythonpath", str(HERE), "passthrough:app"]
    environment = {
        "PROVIDER_URL": f"http://127.0.0.1:{provider}",
        "PROVIDER_KEY": PROVIDER_KEY,
        "WEB_THREADS": str(CALLERS),
    }
    path = f"/{SHOP.domain}/mailgun"
    with run_gunicorn(application, environment, path, folder / "passthrough.log") as server:
        yield server


def configuration(provider: int) -> dict[str, Any]:
    """A config.json with one domain; each lane has a provider of its own."""
    account = {"api_key": PROVIDER_KEY, "base_url": f"http://127.0.0.1:{provider}"}
    domain = {
        "email_domain": SHOP.domain,
        "pool_api_key": SHOP.key,
        "streams": {
            "bulk": {"share": 0.75, "services": ["mailgun"]},
            "default": {"share": 0.25, "services": ["sendgrid"]},
        },
        "enabled_services": {
            "mailgun": {**account, "priority_value": 20},
            "sendgrid": {**account, "priority_value": 10},
        },
    }
    return {
        "root_api_key": secrets.token_urlsafe(24),
        "production": True,
        "email_services": [domain],
    }


if __name__ == "__main__":
    main()
