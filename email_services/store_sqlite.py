"""What SQLite needs and PostgreSQL does not: writers that take turns."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, cast

from sqlalchemy import Connection
from sqlalchemy.pool import ConnectionPoolEntry

from email_services.exceptions import StoreUnavailable

BUSY_SECONDS: Final = 2
"""How long a statement that is no writer's waits for a lock, as for a file that is being opened."""

POLL_SECONDS: Final = 0.001
"""How often a process looks whether another one has ended its writing.

SQLite itself looks every 100 ms after a while (its busy_timeout), and then seldom finds the moment.
"""

LONG_SECONDS: Final = 0.002
"""A transaction that took longer is followed by a pause as long, in which other processes begin."""

LOOK_EVERY: Final = 1_000_000
"""Steps of SQLite's machine, some 20 ms, after which a reader looks whether its time is over. For
each look it has to wait for Python, which other threads may be using."""

INTERRUPTED: Final = "interrupted"
"""What SQLite says then."""

_BE_PATIENT: Final = f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}"


class Turns:
    """The writers of this process, one at a time and in the order in which they came.

    One file has one writer. Without an order, who writes much comes before those who wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()  # each is released when it is its turn
        self._is_taken = False

    @contextmanager
    def turn(self, patience: float) -> Iterator[None]:
        """Wait for this caller's turn, and have it. Raises StoreUnavailable.

        patience: seconds to wait at most.
        """
        self._take(patience)
        started = time.monotonic()
        try:
            yield
        finally:
            if time.monotonic() - started > LONG_SECONDS:
                time.sleep(2 * POLL_SECONDS)
            self._pass_on()

    def _take(self, patience: float) -> None:
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        if mine.acquire(timeout=patience):
            return
        with self._lock:
            if mine in self._waiting:  # else it has become mine just now
                self._waiting.remove(mine)
                raise StoreUnavailable("Too many are waiting to write to the state database.")

    def _pass_on(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False


def prepare(connection: sqlite3.Connection, _record: object) -> None:
    """Make a new connection one whose readers never wait for a writer (WAL)."""
    # Transactions begin where we say so, not where Python guesses.
    connection.isolation_level = None
    connection.execute(_BE_PATIENT)
    # It is a property of the file: where this fails, another one is just about to set it.
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def prepare_for_the_log(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
    """Have a reader's statements end at the time in the connection's `info["until"]`."""
    connection.execute("PRAGMA query_only = ON")
    connection.set_progress_handler(
        lambda: time.monotonic() > record.info.get("until", float("inf")), LOOK_EVERY
    )


@contextmanager
def begun(connection: Connection, patience: float) -> Iterator[None]:
    """A transaction that has the right to write from its beginning.

    SQLite could not give it later to one that reads first. patience: seconds to wait for a writer
    in another process. Raises sqlite3.Error.
    """
    driver = cast("sqlite3.Connection", connection.connection.driver_connection)
    until = time.monotonic() + patience
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        while not _begins(driver, is_last=time.monotonic() >= until):
            time.sleep(POLL_SECONDS)
    finally:
        driver.execute(_BE_PATIENT)
    try:
        yield
    except BaseException:
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        raise
    driver.execute("COMMIT")


def _begins(driver: sqlite3.Connection, *, is_last: bool) -> bool:
    """Whether a transaction has begun; that another process writes is an error the last time."""
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if is_last or str(error) != "database is locked":
            raise
        return False
    return True
