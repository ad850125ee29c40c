"""What an outage of the first provider does to sends: `python -m benchmarks.outage`.

Two services at stand-ins for Mailgun (`hanging.py`) on loopback. The first hangs for a while: it
reads each request whole and never answers. Its `timeout_seconds` is 1. The service runs with its
own `gunicorn.conf.py` and 4 workers, and 16 callers send without a pause. Beside it runs the same
with the breaker off (`variants.py`), so that no service ever rests; the two take turns, since a
shared machine may be twice as fast a minute later. Only ratios within one run mean anything.

The open phase begins when `GET /<domain>` says that the first service rests. A message that the
hanging stand-in holds counts as accepted there too, which is the worst that a provider could have
done with it.

Everything is on 127.0.0.1 and ends with this program. It fails where a message was lost, or sent
twice with no warning.
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
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from benchmarks.calls import Call, Load, Target, get
from benchmarks.send import HERE, BenchmarkError, Server, run_gunicorn, running

DOMAIN: Final = "example.com"
POOL_KEY: Final = secrets.token_urlsafe(24)
WORKERS: Final = 4
CALLERS: Final = 16
TIMEOUT_SECONDS: Final = 1
NEVER: Final = 10**9
"""More faults in a row than there will be: the breaker is off."""

WARM_UP_SECONDS: Final = 2.0
LIMIT_SECONDS: Final = 60.0
"""More than any phase takes, unless something hangs that should not."""

TARGET: Final = 1.2
BREAKERS: Final = ("on", "off")
PHASES: Final = {
    "before": "before",
    "closed": "outage, until the breaker opens",
    "open": "outage, once it is open",
    "back": "recovered, until the first is back",
    "after": "after",
}


@dataclass(frozen=True)
class Timeline:
    """When what happened, by the monotonic clock.

    opened: None where the breaker is off. rest_left: seconds of rest at the recovery, likewise.
    back: from when on every message went through the first service again.
    """

    began: float
    outage: float
    opened: float | None
    recovered: float
    rest_left: float | None
    back: float

    def phase(self, call: Call) -> str | None:
        """The phase of a call: the one it began in; what was in progress as it hung is part of it.

        None for the warm-up.
        """
        if call.started < self.began:
            return None
        if call.started + call.milliseconds / 1000 < self.outage:
            return "before"
        if call.started < self.recovered:
            return "open" if self.opened and call.started >= self.opened else "closed"
        return "back" if call.started <= self.back else "after"


@dataclass(frozen=True)
class Outage:
    """One run.

    taken: what each stand-in accepted or held. stateless: how often the service went on without its
    database, by its own log; then it does not know who rests.
    """

    timeline: Timeline
    calls: list[Call]
    taken: list[dict[str, Any]]
    stateless: int

    def milliseconds(self, phase: str) -> list[float]:
        """How long each call of the phase took."""
        return [call.milliseconds for call in self.of(phase)]

    def of(self, phase: str) -> list[Call]:
        """The calls of the phase."""
        return [call for call in self.calls if self.timeline.phase(call) == phase]

    def ratio(self, phase: str) -> float | None:
        """Its median against the one before the outage."""
        times = self.milliseconds(phase)
        return median(times) / median(self.milliseconds("before")) if times else None


@dataclass(frozen=True)
class Tally:
    """What became of the messages; see the table."""

    messages: int
    sent: int
    unknown: int
    failed: int
    held: int
    flagged: int
    lost: int
    twice_flagged: int
    twice_unflagged: int
    stateless: int


def main() -> None:
    """Let both take turns, and print what came of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # what we started ends with us
    options = parse_arguments()
    outages: dict[str, list[Outage]] = {breaker: [] for breaker in BREAKERS}
    try:
        for number in range(options.rounds):
            for breaker in BREAKERS if number % 2 else reversed(BREAKERS):
                outages[breaker].append(rehearse(breaker, options))
        print_tables(outages, options)
        verify(outages)
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of both breakers (default: 3)")
    parser.add_argument("--before", type=float, default=5, help="seconds before (default: 5)")
    parser.add_argument("--outage", type=float, default=6, help="seconds once open (default: 6)")
    parser.add_argument("--after", type=float, default=4, help="seconds after (default: 4)")
    parser.add_argument("--rest", type=float, default=2, help="seconds, the first (default: 2)")
    return parser.parse_args()


def rehearse(breaker: str, options: argparse.Namespace) -> Outage:
    """Start the service, have the first provider hang and recover under load, and stop all."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        first, second = (stack.enter_context(provider()) for _ in range(2))
        server = stack.enter_context(run_service(breaker, options.rest, folder, [first, second]))
        target = Target(server.port, DOMAIN, POOL_KEY)
        with Load(target, CALLERS) as load:
            timeline = go_through(first, load, target, options, rests=breaker == "on")
        taken = [ask(first, "/taken"), ask(second, "/taken")]
        stateless = server.log.read_text(errors="replace").count("going on without it")
        return Outage(timeline, load.calls, taken, stateless)


def go_through(
    first: int, load: Load, target: Target, options: argparse.Namespace, *, rests: bool
) -> Timeline:
    """Have the provider at port `first` hang and recover; rests: whether the breaker is on."""
    time.sleep(WARM_UP_SECONDS)
    began = time.monotonic()
    time.sleep(options.before)
    outage = time.monotonic()
    ask(first, "/hang")
    if rests:
        wait_until(lambda: state_of_first(target)["health"] == "resting")
    opened = time.monotonic() if rests else None
    time.sleep(options.outage)
    probe_at = state_of_first(target)["next_probe"] if rests else None
    ask(first, "/answer")
    recovered = time.monotonic()
    rest_left = seconds_until(probe_at) if probe_at else None
    wait_until(lambda: all(call.service_used == "first" for call in load.calls[-CALLERS:]))
    time.sleep(options.after)
    calls = list(load.calls)
    astray = [c.started for c in calls if c.started >= recovered and c.service_used != "first"]
    return Timeline(began, outage, opened, recovered, rest_left, max(astray, default=recovered))


def state_of_first(target: Target) -> dict[str, Any]:
    """What the service tells of its first one."""
    return dict(get(target, f"/{DOMAIN}")["enabled_services"]["first"])


def seconds_until(at: str) -> float:
    """From now on; nothing where it has passed."""
    return max(0.0, (datetime.fromisoformat(at) - datetime.now(timezone.utc)).total_seconds())


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once it holds. Raises BenchmarkError where it does not come to that."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"What was waited for did not happen in {LIMIT_SECONDS:.0f} s.")
        time.sleep(0.05)


@contextlib.contextmanager
def provider() -> Iterator[int]:
    """Run a stand-in; gives its port."""
    command = [sys.executable, str(HERE / "hanging.py")]
    with running(command, signal.SIGTERM, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())


@contextlib.contextmanager
def run_service(breaker: str, rest: float, folder: Path, providers: list[int]) -> Iterator[Server]:
    """Run the service, with a configuration and a state of its own."""
    config = folder / "config.json"
    config.write_text(json.dumps(configuration(providers)), encoding="utf-8")
    environment = {
        "EMAIL_CONFIG": str(config),
        "DATABASE_URL": f"sqlite:///{folder / 'state.sqlite3'}",
        "WEB_CONCURRENCY": str(WORKERS),
        "VARIANT_FIRST_REST_SECONDS": str(rest),
        "VARIANT_FAILURES_TO_REST": "" if breaker == "on" else str(NEVER),
    }
    application = ["--pythonpath", str(HERE), "variants:create_app()"]
    path = f"/{DOMAIN}/send"
    with run_gunicorn(application, environment, path, folder / "service.log") as server:
        yield server


def configuration(providers: list[int]) -> dict[str, Any]:
    """A config.json with one domain, whose two services are at these ports."""
    services = {
        name: {
            "service": "mailgun",
            "api_key": secrets.token_urlsafe(24),
            "base_url": f"http://127.0.0.1:{port}",
            "timeout_seconds": TIMEOUT_SECONDS,
            "priority_value": priority,
        }
        for name, port, priority in zip(("first", "second"), providers, (20, 10), strict=True)
    }
    domain = {"email_domain": DOMAIN, "pool_api_key": POOL_KEY, "enabled_services": services}
    return {
        "root_api_key": secrets.token_urlsafe(24),
        "production": True,
        "email_services": [domain],
    }


def ask(port: int, path: str) -> dict[str, Any]:
    """Tell a stand-in something, or ask it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return dict(json.load(connection.getresponse()))


def tally(outage: Outage) -> Tally:
    """Compare what callers were told with what the stand-ins took."""
    first, second = outage.taken
    taken = Counter([*first["accepted"], *first["held"], *second["accepted"], *second["held"]])
    twice = {number for number, times in taken.items() if times > 1}
    flagged = {call.number for call in outage.calls if call.answer.get("possible_duplicate")}
    sent = [call for call in outage.calls if call.status == HTTPStatus.OK]
    unknown = [call for call in outage.calls if call.status == HTTPStatus.GATEWAY_TIMEOUT]
    surely = {*first["accepted"], *second["accepted"]}
    return Tally(
        messages=len(outage.calls),
        sent=len(sent),
        unknown=len(unknown),
        failed=len(outage.calls) - len(sent) - len(unknown),
        held=len(first["held"]),
        flagged=len(flagged),
        lost=sum(call.number not in surely for call in sent),
        twice_flagged=len(twice & flagged),
        twice_unflagged=len(twice - flagged),
        stateless=outage.stateless,
    )


def print_tables(outages: dict[str, list[Outage]], options: argparse.Namespace) -> None:
    """All that was measured, as Markdown."""
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs; {WORKERS} workers, {CALLERS}"
        f" callers at once, timeout_seconds {TIMEOUT_SECONDS}, SQLite, {options.rounds} rounds.\n"
        f"For this benchmark a service's first rest is {options.rest:g} s, in both variants.\n"
    )
    print_latencies(outages)
    print_messages(outages)
    print_recoveries(outages)


def print_latencies(outages: dict[str, list[Outage]]) -> None:
    """How long a send takes in each phase; ratios are taken in each round."""
    print(
        "| breaker | phase | sends | waited for the first in vain | median ms | p95 ms | max ms"
        " | median against before: median (min to max) | target |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for breaker in BREAKERS:
        for phase in PHASES:
            if any(outage.of(phase) for outage in outages[breaker]):
                print(latency_row(breaker, phase, outages[breaker]))
    print()


def latency_row(breaker: str, phase: str, outages: list[Outage]) -> str:
    """One line of the table of latencies."""
    calls = [call for outage in outages for call in outage.of(phase)]
    times = [call.milliseconds for call in calls]
    ratios = [ratio for outage in outages if (ratio := outage.ratio(phase)) is not None]
    target = ""
    if (breaker, phase) == ("on", "open"):
        target = f"{TARGET} {'met' if median(ratios) <= TARGET else 'missed'}"
    cells = (
        breaker,
        PHASES[phase] if breaker == "on" or phase != "closed" else "outage",
        f"{len(calls)}",
        f"{sum(call.waited for call in calls)}",
        *(f"{value:.1f}" for value in (median(times), p95(times), max(times))),
        f"**{median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
        target,
    )
    return f"| {' | '.join(cells)} |"


def p95(values: list[float]) -> float:
    """What 95 % of them stay below."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def print_messages(outages: dict[str, list[Outage]]) -> None:
    """What became of every message, the warm-up's included."""
    print(
        "| breaker | messages | answered: sent | unknown | else | held by the hanging provider"
        " | flagged possible_duplicate | answered sent, accepted by nobody"
        " | taken twice, flagged | taken twice, unflagged | steps done without the database |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for breaker in BREAKERS:
        columns = zip(*(vars(tally(outage)).values() for outage in outages[breaker]), strict=True)
        print(f"| {' | '.join([breaker, *(str(sum(column)) for column in columns)])} |")
    print()


def print_recoveries(outages: dict[str, list[Outage]]) -> None:
    """How long after its recovery the first provider was used again, in each round."""
    print(
        "| breaker | rest left when the provider recovered, s"
        " | last message past the first after the recovery, s |\n|---|---|---|"
    )
    for breaker in BREAKERS:
        lines = [outage.timeline for outage in outages[breaker]]
        left = [f"{t.rest_left:.2f}" if t.rest_left is not None else "no rest" for t in lines]
        back = [f"{t.back - t.recovered:.2f}" for t in lines]
        print(f"| {breaker} | {', '.join(left)} | {', '.join(back)} |")
    print()


def verify(outages: dict[str, list[Outage]]) -> None:
    """Raise BenchmarkError where the service was dishonest about a message."""
    for breaker in BREAKERS:
        for outage in outages[breaker]:
            count = tally(outage)
            if count.lost or count.twice_unflagged:
                raise BenchmarkError(f"With the breaker {breaker}: {count}")


if __name__ == "__main__":
    main()
