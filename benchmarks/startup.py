"""What a start costs, and a worker that does nothing yet: `python -m benchmarks.startup`.

The service under its own `gunicorn.conf.py`, on SQLite, with the services of each case. Time is
from the start of the process to the first answer, which is asked for all the while; the CPU time
until then, of the master and its workers, is steadier. Memory is what a worker has after it: RSS
counts what it shares with the others as its own, PSS its part of it, so that the PSS of all
processes together is what the service takes of the machine. It needs Linux.

With `--write` the table goes into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final
from uuid import uuid4

from benchmarks.send import GUNICORN_CONF, START_SECONDS, BenchmarkError, free_port, running
from docs.measured import machine, tell

KEY: Final = secrets.token_urlsafe(24)
MAILDIR: Final = {"maildir": {"path": "mail"}}
MAILGUN: Final = {"mailgun": {"api_key": KEY}}
OTHERS: Final[Mapping[str, dict[str, Any]]] = {
    "amazon_ses": {"access_key_id": "AKIA", "secret_access_key": KEY, "region": "eu-west-1"},
    "mailjet": {"api_key": KEY, "secret_key": KEY},
    "scaleway": {"api_key": KEY, "project_id": str(uuid4())},
    "smtp": {"host": "smtp.example.com"},
    **{name: {"api_key": KEY} for name in ("brevo", "postmark", "resend", "sendgrid", "sparkpost")},
}


@dataclass(frozen=True)
class Case:
    """What is configured: so many domains, each with these services."""

    services: Mapping[str, dict[str, Any]]
    domains: int = 1


CASES: Final = {
    "maildir": Case(MAILDIR),
    "Mailgun": Case(MAILGUN),
    "every provider": Case({**MAILDIR, **MAILGUN, **OTHERS}),
    "20 domains, Mailgun and SendGrid": Case({**MAILGUN, "sendgrid": {"api_key": KEY}}, 20),
}


@dataclass(frozen=True)
class Start:
    """One start. seconds: by the clock; cpu: of processors. The rest is in bytes.

    rss, pss: of a worker. together: the PSS of the master and all workers.
    """

    seconds: float
    cpu: float
    rss: float
    pss: float
    together: float


def main() -> None:
    """Measure every case, and print or write the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # what we started ends with us
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="starts of each (default: 7)")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    starts: dict[str, list[Start]] = {case: [] for case in CASES}
    try:
        for _ in range(options.rounds):
            for case in CASES:  # in turns, since the machine may be busier a minute later
                starts[case].append(start(CASES[case]))
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    said = f"{machine()}; {options.rounds} starts of each"
    tell("start", said, table(starts), is_kept=options.write)


def table(starts: Mapping[str, list[Start]]) -> list[list[str]]:
    """The rows, with the head."""
    head = ["services", "first answer after", "CPU until then", "a worker's RSS", "its PSS"]
    rows = [[*head, "PSS of the master and 2 workers"]]
    for case, runs in starts.items():
        seconds = [run.seconds for run in runs]
        rows.append(
            [
                case,
                f"**{median(seconds):.2f} s** ({min(seconds):.2f} to {max(seconds):.2f})",
                f"{median(run.cpu for run in runs):.2f} s",
                *(
                    f"{median(getattr(run, name) for run in runs) / 1e6:.0f} MB"
                    for name in ("rss", "pss", "together")
                ),
            ]
        )
    return rows


def start(case: Case) -> Start:
    """Start the service, wait for its first answer, and end it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text(json.dumps(configuration(case)), encoding="utf-8")
        environment = {
            "EMAIL_CONFIG": str(config),
            "DATABASE_URL": f"sqlite:///{folder}/state.sqlite3",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "WEB_CONCURRENCY": "2",
        }
        command = [sys.executable, "-m", "gunicorn", "--config", str(GUNICORN_CONF)]
        log = Path(folder, "log")
        began = time.monotonic()
        with (
            log.open("wb") as output,
            running(command, signal.SIGINT, environment, stdout=output, stderr=output) as process,
        ):
            if not is_answered(port, began + START_SECONDS):
                raise BenchmarkError(f"It did not start.\n{log.read_text(errors='replace')}")
            seconds = time.monotonic() - began
            workers = children(process.pid)
            cpu = sum(map(cpu_seconds, (process.pid, *workers)))
            time.sleep(1)  # until both of them are idle
            memory = {pid: memory_of(pid) for pid in (process.pid, *workers)}
    rss, pss = (median(memory[worker][i] for worker in workers) for i in (0, 1))
    return Start(seconds, cpu, rss, pss, sum(part for _, part in memory.values()))


def configuration(case: Case) -> dict[str, Any]:
    """A config.json."""
    services = {name: {**told, "priority_value": 1} for name, told in case.services.items()}
    domains = [
        {
            "email_domain": f"{number}.example.com",
            "pool_api_key": secrets.token_urlsafe(24),
            "enabled_services": services,
        }
        for number in range(case.domains)
    ]
    return {"root_api_key": secrets.token_urlsafe(24), "email_services": domains}


def is_answered(port: int, until: float) -> bool:
    """Ask for an answer until there is one."""
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.HTTPStatus.OK
        time.sleep(0.005)
    return False


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has used, in user mode and in the system."""
    # proc(5): "pid (name) state ppid ... utime stime"; the name may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> tuple[int, int]:
    """The RSS and the PSS of a process, in bytes."""
    told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (re.search(rf"^{name}: +(\d+) kB", told, re.MULTILINE) for name in ("Rss", "Pss"))
    return int(rss[1]) * 1024, int(pss[1]) * 1024


if __name__ == "__main__":
    main()
