"""What keeping copies costs a send, and others: `python -m benchmarks.copies`.

In this process, with a provider that does nothing, so that all there is to see is ours. First,
sends one after the other, with no copies kept and with encrypted ones, in turns: what each takes,
and the processor time of the whole process for each, its thread that writes copies included. Then,
sends of one domain while another sends messages with files of 20 MB, one after the other.

With `--write` the table goes into docs/performance.md.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from cryptography.fernet import Fernet

from benchmarks.budget import DOMAIN, Idle, fields, messages, parse
from benchmarks.store import postgresql
from docs.measured import machine, tell
from email_services.abstract import ServiceSettings
from email_services.copies import Copies, Seal
from email_services.message import EmailMessage
from email_services.pool import PooledEmailService
from email_services.store import Store

WEEK: Final = 7 * 24 * 3600.0
FILE_BYTES: Final = 20 * 1000 * 1000
BLOCK: Final = 200
"""Sends in a row, of a kind."""

LARGE: Final = 4
"""Messages with such a file, in a row."""

PAUSE_SECONDS: Final = 0.002
"""Between two sends of the neighbour."""

Send = Callable[[EmailMessage], object]


def main() -> None:
    """Measure both, and print the table or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (default: 10)")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    rows = [["", "a send, ms: median", "99 of 100", "most", "processor, µs"]]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        urls = {"SQLite": f"sqlite:///{Path(folder) / 'state.sqlite3'}"}
        with contextlib.suppress(ModuleNotFoundError):  # it is not for every machine
            urls["PostgreSQL"] = stack.enter_context(postgresql())
        for database, url in urls.items():
            store = stack.enter_context(contextlib.closing(Store(url)))
            rows += measured(database, store, options.rounds)
    said = f"{machine('SQLAlchemy', 'psycopg', 'cryptography')}; {options.rounds} turns of each"
    tell("copies", said, rows, is_kept=options.write)


def measured(database: str, store: Store, rounds: int) -> Iterator[list[str]]:
    """The rows of one database."""
    kept = {"no copies": 0.0, "copies": WEEK}
    all_copies = {name: copies_for(store, seconds) for name, seconds in kept.items()}
    pools = {name: pool_with(store, copies) for name, copies in all_copies.items()}
    alone: dict[str, list[float]] = {name: [] for name in pools}
    busy: dict[str, list[float]] = {name: [] for name in pools}
    processor: dict[str, list[float]] = {name: [] for name in pools}
    for _ in range(rounds):
        for name, pool in pools.items():
            began = time.process_time()
            alone[name] += one_by_one(pool.send, messages(BLOCK))
            all_copies[name].stop()  # what they took is counted
            processor[name].append((time.process_time() - began) / BLOCK * 1e6)
    for _ in range(max(1, rounds // 5)):
        for name, pool in pools.items():
            busy[name] += beside_large_ones(pools["no copies"], pool, all_copies[name])
    for name, taken in alone.items():
        yield row(f"{database}, {name}", taken, f"{median(processor[name]):.0f}")
    for name, taken in busy.items():
        yield row(f"{database}, {name}, beside messages of 20 MB", taken, "")


def copies_for(store: Store, seconds: float) -> Copies:
    """Encrypted ones, kept for so long, or none."""
    return Copies(store, {DOMAIN: seconds}, Seal([Fernet.generate_key().decode()]))


def pool_with(store: Store, copies: Copies) -> PooledEmailService:
    """What sends to nobody."""
    service = Idle("idle", DOMAIN, ServiceSettings(priority_value=1))
    return PooledEmailService(DOMAIN, [service], store, copies=copies)


def one_by_one(send: Send, given: Sequence[EmailMessage]) -> list[float]:
    """Milliseconds of each."""
    taken = []
    for message in given:
        began = time.perf_counter()
        send(message)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def beside_large_ones(
    neighbour: PooledEmailService, pool: PooledEmailService, copies: Copies
) -> list[float]:
    """The same of a neighbour, until the large ones are sent and their copies written."""
    file = {"filename": "a.bin", "content": base64.b64encode(os.urandom(FILE_BYTES)).decode()}
    large = [parse(fields(attachments=[file])) for _ in range(LARGE)]

    def send_large() -> None:
        for message in large:
            pool.send(message)
            copies.stop()

    thread = threading.Thread(target=send_large)
    taken: list[float] = []
    thread.start()
    while thread.is_alive() or len(taken) < BLOCK:
        taken += one_by_one(neighbour.send, messages(1))
        time.sleep(PAUSE_SECONDS)
    thread.join()
    return taken


def row(name: str, taken: Sequence[float], processor: str) -> list[str]:
    """One line of the table."""
    ordered = sorted(taken)
    late = ordered[int(len(ordered) * 0.99)]
    return [name, f"**{median(taken):.2f}**", f"{late:.1f}", f"{ordered[-1]:.0f}", processor]


if __name__ == "__main__":
    main()
