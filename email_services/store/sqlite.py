"""What SQLite needs and PostgreSQL does not: writers that take turns, and an eye on the file."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from email_services.exceptions import StoreUnavailable
from email_services.store.driver import Write

BUSY_MILLISECONDS: Final = 100
"""How long SQLite waits for a lock. It looks after 1, 3, 8 ms and so on, then every 25 ms, later
every 100 ms, when it seldom finds the moment. So what writes is tried again instead."""

LOOK_BESIDE_SECONDS: Final = 0.25
"""How often a process looks whether the files beside the database are still there. Without them it
goes on as before, until somebody opens the database anew; each look costs, if little."""

LONG_SECONDS: Final = 0.002
"""A transaction that took longer is followed by a pause as long, in which others begin."""

WRITTEN_TOGETHER: Final = 100
"""Rows that several callers write in one transaction."""

LARGE_ROWS: Final = 16
"""More is large: a part of a batch or of a file, or what became of many messages."""

SMALL_FIRST: Final = 4
"""Transactions of those who write little that go before who writes much, and was there first."""

LOOK_EVERY: Final = 1_000_000
"""Steps of SQLite's machine, some 20 ms, after which a reader looks whether its time is over. For
each look it has to wait for Python, which other threads may be using."""

INTERRUPTED: Final = "interrupted"
"""What SQLite says then."""


class _Place:
    """One in the line of those who want to write.

    is_large: whether it writes so much that those who write little go first.
    wakes: released when it is its turn, or another has done it meanwhile.
    """

    def __init__(self, write: Write | None) -> None:
        self.write = write
        self.is_large = write is not None and write.weight > LARGE_ROWS
        self.wakes = threading.Lock()
        self.wakes.acquire()


class Turns:
    """The transactions of this process that write, one at a time and in the order they came in.

    One file has one writer. Without an order, who writes much comes before those who wait. Writes
    that wait one behind the other are made in one transaction by the first of those who made them:
    to begin and to end one costs more than what is in it.

    A large one, a part of somebody's batch, is overtaken by those that are not, in SMALL_FIRST
    transactions at most: so who writes little waits for one such part, however many wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Place] = deque()
        self._is_taken = False
        self._small = 0  # transactions since the last large one

    @contextmanager
    def turn(self, patience: float) -> Iterator[None]:
        """Wait for this caller's turn, and have it. Raises StoreUnavailable.

        patience: seconds to wait at most.
        """
        self._take(_Place(None), patience)
        began = time.monotonic()
        try:
            yield
        finally:
            self._end(began)

    def write(
        self, write: Write, patience: float, carry_out: Callable[[Sequence[Write]], None]
    ) -> None:
        """Have it carried out, here or by another caller, with what others wait to write.

        carry_out: does so with several, and notes what came of each. Raises StoreUnavailable, and
        what came of this one.
        """
        self._take(_Place(write), patience)
        if not write.is_over:
            began = time.monotonic()
            others = self._take_along(write)
            try:
                carry_out([write, *others.values()])
            finally:
                for place, other in others.items():
                    if not other.is_over:
                        other.error, other.is_over = _not_written(), True
                    place.wakes.release()
                self._end(began)
        if write.error:
            raise write.error

    def _end(self, began: float) -> None:
        """The turn that began then is over; after a long one, others begin first."""
        if time.monotonic() - began > LONG_SECONDS:
            time.sleep(LONG_SECONDS)
        self._pass_on()

    def _take(self, place: _Place, patience: float) -> None:
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                self._count(place)
                return
            self._waiting.append(place)
        if place.wakes.acquire(timeout=patience):
            return
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
                raise StoreUnavailable("Too many are waiting to write to the state database.")
        place.wakes.acquire()  # its turn has come just now, or another is writing for it

    def _take_along(self, first: Write) -> dict[_Place, Write]:
        """Those next in line that are written with it, each with what it wants.

        They are not many rows together, and with a small one no large ones.
        """
        found: dict[_Place, Write] = {}
        rows = WRITTEN_TOGETHER - first.weight
        with self._lock:
            for place in list(self._waiting):
                if not place.write:
                    break
                if place.is_large and first.weight <= LARGE_ROWS:
                    continue
                rows -= place.write.weight
                if rows < 0:
                    break
                self._waiting.remove(place)
                found[place] = place.write
        return found

    def _pass_on(self) -> None:
        with self._lock:
            if not self._waiting:
                self._is_taken = False
                return
            place = self._waiting[0]
            if self._small < SMALL_FIRST:
                place = next((each for each in self._waiting if not each.is_large), place)
            self._waiting.remove(place)
            self._count(place)
            place.wakes.release()

    def _count(self, place: _Place) -> None:
        self._small = 0 if place.is_large else self._small + 1


def _not_written() -> StoreUnavailable:
    return StoreUnavailable("What was to be written with others was not.")


class _Identity(NamedTuple):
    """Which files there are, each by its device and number; None for one that is not there."""

    database: tuple[int, int] | None
    wal: tuple[int, int] | None
    shm: tuple[int, int] | None


class DatabaseFile:
    """The file of a database, which somebody may delete or replace while it is in use.

    Who has it open would go on with what is no longer there, and who opens it later would begin
    another: keys that one of them reserves are new to the other. So who writes looks first.

    The log of what was written last and its index are files beside it (-wal, -shm). While they are
    in use they belong to their database: with another one's, SQLite would read nonsense.

    path: of the database.
    """

    def __init__(self, path: str) -> None:
        self._database = Path(path).resolve()
        self._wal, self._shm = (Path(f"{self._database}{end}") for end in ("-wal", "-shm"))
        self._lock = threading.Lock()
        # They stay open, so that no other file gets the numbers of those they have: one to forbid
        # all writing, and one to read meanwhile.
        self._guards: list[sqlite3.Connection] = []
        self._known: _Identity | None = None
        self._next_look_beside = 0.0

    def watch(self, engine: Engine) -> None:
        """Have the engine's connections be to the file that is known."""
        event.listen(engine, "do_connect", self._connect)
        event.listen(engine, "checkout", self._refuse_if_stale)

    def is_open(self) -> bool:
        """Whether it has been opened."""
        return self._known is not None

    def is_the_same(self) -> bool:
        """Whether all is as it was when it was opened."""
        known, now = self._known, time.monotonic()
        if known is None or now < self._next_look_beside:
            return known is not None and _number(self._database) == known.database
        self._next_look_beside = now + LOOK_BESIDE_SECONDS
        if self._found() == known:
            return True
        self._next_look_beside = 0.0  # for who looks next, until it is opened anew
        return False

    def has_open(self, connection: PoolProxiedConnection) -> bool:
        """Whether the connection is to the file that is known."""
        return connection.info["file"] is self._known

    def is_what_has_open(self, connection: PoolProxiedConnection) -> bool:
        """Whether what the connection writes is found by all others."""
        return self.has_open(connection) and self.is_the_same()

    def open(self) -> str:
        """Open what is there, or a new one; all processes come to the same.

        Returns what to say of the one before, or "" if this is the first, or it is the same. Raises
        OSError and sqlite3.Error.
        """
        with self._lock:
            if self.is_the_same():
                return ""
            with _alone_in(self._database.parent):
                words = self._made_usable()
                self._let_go()
                for _ in range(2):
                    guard = sqlite3.connect(self._database, check_same_thread=False)
                    self._guards.append(guard)
                    prepare(guard)
                    guard.execute("SELECT count(*) FROM sqlite_master")  # opens the others too
                self._known = self._found()
                return words

    def close(self) -> None:
        """Whatever is there when it is opened again will be taken for the same."""
        with self._lock:
            self._let_go()
            self._known = None

    def _let_go(self) -> None:
        while self._guards:
            self._guards.pop().close()

    def _found(self) -> _Identity:
        return _Identity(_number(self._database), _number(self._wal), _number(self._shm))

    def _connect(
        self, _dialect: Any, record: ConnectionPoolEntry, _arguments: Any, options: dict[str, Any]
    ) -> sqlite3.Connection:
        record.info["file"] = self._known
        # It makes no file: that is for one at a time.
        connection: sqlite3.Connection = sqlite3.connect(
            f"{self._database.as_uri()}?mode=rw", uri=True, **options
        )
        return connection

    def _refuse_if_stale(self, _connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if record.info["file"] is not self._known:
            raise InvalidatePoolError

    def _made_usable(self) -> str:
        """Leave no file beside the database that belongs to another one."""
        lost, found = self._known, self._found()
        if lost and found.database == lost.database and self._guards:
            self._copy()
            return "Files beside the state database were deleted; it has been copied to a new one."
        if found.database is None or (lost and found.wal == lost.wal):
            self._wal.unlink(missing_ok=True)
        if found.database is None or (lost and found.shm == lost.shm):
            self._shm.unlink(missing_ok=True)
        if lost is None:
            return ""
        how = "deleted" if found.database is None else "replaced"
        return (
            f"The state database was {how} while it was in use. Idempotency-Keys, the log of"
            " messages and the health of services are those of the file that is there now."
        )

    def _copy(self) -> None:
        """Put the database in a new file, with what is only in the log that was deleted.

        Other processes find that it is another one, and leave the old one alone.
        """
        copy = Path(f"{self._database}-copy")
        copy.unlink(missing_ok=True)
        lock, whole = self._guards
        lock.execute("BEGIN IMMEDIATE")  # nobody writes what would not be in the copy
        with closing(sqlite3.connect(copy)) as target:
            whole.backup(target)
        shutil.copymode(self._database, copy)
        self._wal.unlink(missing_ok=True)
        self._shm.unlink(missing_ok=True)
        copy.replace(self._database)


def _number(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """While no other process is here. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def prepare(connection: sqlite3.Connection, _record: object = None) -> None:
    """Make a new connection one whose readers never wait for a writer (WAL)."""
    # Transactions begin where we say so, not where Python guesses.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
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


def lasting(connection: PoolProxiedConnection, *, is_durable: bool) -> AbstractContextManager[None]:
    """Where it is to be durable, what is written is on the disk when it is over.

    Else it is there soon: a loss of power could undo the last of it, a crash of ours could not.
    """
    return _durable(connection.driver_connection) if is_durable else nullcontext()


@contextmanager
def _durable(driver: Any) -> Iterator[None]:
    driver.execute("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        driver.execute("PRAGMA synchronous = NORMAL")


@contextmanager
def begun(connection: sqlite3.Connection, patience: float) -> Iterator[None]:
    """A transaction that has the right to write from its beginning.

    SQLite could not give it later to one that reads first. patience: seconds to wait for a writer
    in another process. Raises sqlite3.Error.
    """
    passing_over_locks(lambda: connection.execute("BEGIN IMMEDIATE"), patience)
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def passing_over_locks(attempt: Callable[[], object], patience: float) -> None:
    """Make the attempt to write until no other process is writing just then.

    patience: seconds after which that is an error. Raises sqlite3.Error.
    """
    until = time.monotonic() + patience
    while True:
        is_last = time.monotonic() >= until
        try:
            attempt()
        except sqlite3.OperationalError as error:
            if is_last or str(error) != "database is locked":
                raise
        else:
            return
