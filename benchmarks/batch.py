"""What a batch saves: 1,000 messages in one request, by the same one at a time.

    .venv/bin/python -m benchmarks.batch

One worker on SQLite; the provider takes 50 ms for each call and counts them. The messages share
their content, with a name filled in for each. Rounds alternate, since machines are noisy.
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
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.send import BenchmarkError, Server, counts, run_gunicorn, stand_in

DOMAIN: Final = "example.com"
POOL_KEY: Final = secrets.token_urlsafe(24)
PROVIDERS: Final = ("mailgun", "sendgrid")
DELAY_MILLISECONDS: Final = 50
MESSAGES: Final = 1000
MOST_CALLS: Final = 4
TARGET: Final = 1 / 20
WAIT_SECONDS: Final = 60


@dataclass(frozen=True)
class Round:
    """Seconds for all messages in one request, and one at a time.

    calls: to the provider, for the batch.
    """

    together: float
    singly: float
    calls: int

    @property
    def ratio(self) -> float:
        """What is left of the time."""
        return self.together / self.singly


def main() -> None:
    """Measure both providers and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="for each provider (default: 3)")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs; {MESSAGES} messages, the "
        f"provider takes {DELAY_MILLISECONDS} ms; {options.rounds} rounds.\n\n"
        "| provider | calls for the batch | seconds: batch | one at a time"
        " | **batch / one at a time**: median (min to max) | target |\n|---|---|---|---|---|---|"
    )
    try:
        for provider in PROVIDERS:
            print(row(provider, measure(provider, options.rounds)), flush=True)
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


def measure(provider: str, rounds: int) -> list[Round]:
    """Start the provider and the service, and send everything `rounds` times both ways."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(stand_in(DELAY_MILLISECONDS))
        server = stack.enter_context(run_service(provider, port, folder))
        send(server, [message(0)])  # the worker's first
        return [one_round(server, provider, port) for _ in range(rounds)]


def one_round(server: Server, provider: str, port: int) -> Round:
    """All messages in one request, then one at a time."""
    messages = [message(number) for number in range(MESSAGES)]
    before = counts(port)[provider]
    together = timed(server, {"messages": messages}, MESSAGES)
    calls = counts(port)[provider] - before
    started = time.perf_counter()
    send(server, messages)
    singly = time.perf_counter() - started
    if counts(port)[provider] - before - calls != MESSAGES:
        raise server.failed("Not every single message was one call to the provider.")
    return Round(together, singly, calls)


def timed(server: Server, body: dict[str, Any], expected: int) -> float:
    """Seconds for one request with a batch. Raises BenchmarkError unless all were sent."""
    started = time.perf_counter()
    with caller(server) as connection:
        answer = post(connection, body)
    seconds = time.perf_counter() - started
    sent = [result["result"] for result in answer.get("results", ())].count("success")
    if sent != expected:
        raise server.failed(f"Of {expected} messages {sent} were sent.")
    return seconds


def send(server: Server, messages: list[dict[str, Any]]) -> None:
    """One at a time. Raises BenchmarkError where one is not sent."""
    for body in messages:
        with caller(server) as connection:
            if post(connection, body).get("result") != "success":
                raise server.failed("A single message was not sent.")


@contextlib.contextmanager
def caller(server: Server) -> Iterator[http.client.HTTPConnection]:
    """A connection to the service, which closes each after its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


def post(connection: http.client.HTTPConnection, body: dict[str, Any]) -> dict[str, Any]:
    """Send a body, and read the answer."""
    headers = {"Authorization": f"Bearer {POOL_KEY}", "Content-Type": "application/json"}
    connection.request("POST", f"/{DOMAIN}/send", json.dumps(body), headers)
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    return answer


def message(number: int) -> dict[str, Any]:
    """The same for all but for the recipient and a name."""
    return {
        "from_email": f"news@{DOMAIN}",
        "to_recipients": f"reader{number}@example.org",
        "subject": "News for {{name}}",
        "raw_text_body": "Dear {{name}},\n\n" + "Here is the news of this month. " * 20,
        "html_body": "<p>Dear {{name}},</p>" + "<p>Here is the news of this month.</p>" * 20,
        "substitutions": {"name": f"Reader {number}"},
    }


def row(provider: str, rounds: list[Round]) -> str:
    """One line of the table."""
    ratios = [one.ratio for one in rounds]
    calls = max(one.calls for one in rounds)
    met = median(ratios) <= TARGET and calls <= MOST_CALLS
    cells = (
        provider,
        f"{calls} (at most {MOST_CALLS})",
        f"{median(one.together for one in rounds):.2f}",
        f"{median(one.singly for one in rounds):.1f}",
        f"**1/{1 / median(ratios):.0f}** (1/{1 / min(ratios):.0f} to 1/{1 / max(ratios):.0f})",
        f"1/{1 / TARGET:.0f} {'met' if met else 'missed'}",
    )
    return f"| {' | '.join(cells)} |"


@contextlib.contextmanager
def run_service(provider: str, port: int, folder: Path, seconds: int = 10) -> Iterator[Server]:
    """Run the service with one worker and one account, at the provider, which has `seconds`."""
    account = {
        "api_key": secrets.token_urlsafe(24),
        "base_url": f"http://127.0.0.1:{port}",
        "priority_value": 1,
        "timeout_seconds": seconds,
    }
    domain = {
        "email_domain": DOMAIN,
        "pool_api_key": POOL_KEY,
        "deadline_seconds": seconds,
        "enabled_services": {provider: account},
    }
    config = folder / "config.json"
    given = {"root_api_key": secrets.token_urlsafe(24), "email_services": [domain]}
    config.write_text(json.dumps(given), encoding="utf-8")
    environment = {
        "EMAIL_CONFIG": str(config),
        "DATABASE_URL": f"sqlite:///{folder / 'state.sqlite3'}",
        "WEB_CONCURRENCY": "1",
    }
    with run_gunicorn([], environment, f"/{DOMAIN}/send", folder / "service.log") as server:
        yield server


if __name__ == "__main__":
    main()
