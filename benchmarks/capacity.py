"""Messages a second by threads and what a provider takes: `python -m benchmarks.capacity --write`.

The service, with 2 workers and SQLite, sends through a stand-in (`standin.py`) that answers after
50 or 200 ms, for one of two email domains, which may have half of the threads. There are half as
many callers, so that none of its messages finds no room however they fall on the workers. What
threads bring ends where the processors are busy: the load and the stand-in want some of them, too.

Everything is on 127.0.0.1 and ends with this program. With `--write` the table goes into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.send import BenchmarkError, Scenario, run_load, run_service, stand_in
from docs.measured import machine, tell

WORKERS: Final = 2
THREADS: Final = (8, 16, 32, 64)
DELAYS: Final = (50, 200)
SECONDS: Final = 4.0
MOST_PER_SECOND: Final = 400


def main() -> None:
    """Measure each, and print the table or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    os.environ["WEB_CONCURRENCY"] = str(WORKERS)
    rows = [["threads of each worker", *(f"after {delay} ms" for delay in DELAYS)]]
    try:
        rows.extend(
            [f"{threads}", *(f"{measure(threads, delay):.0f}" for delay in DELAYS)]
            for threads in THREADS
        )
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    tell("capacity", f"{machine('Flask')}; messages a second", rows, is_kept=options.write)


def measure(threads: int, delay: int) -> float:
    """Messages a second."""
    os.environ["WEB_THREADS"] = str(threads)
    callers = WORKERS * threads // 4
    most = min(MOST_PER_SECOND, callers * 1000 / delay)
    scenario = Scenario("mailgun", delay, callers, int(most * SECONDS), None)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(stand_in(delay))
        server = stack.enter_context(run_service(scenario, provider, folder))
        run_load(server, provider, "mailgun", callers, callers)  # to warm up
        return run_load(server, provider, "mailgun", callers, scenario.requests).per_second


if __name__ == "__main__":
    main()
