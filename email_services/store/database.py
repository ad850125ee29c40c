"""The database, whatever is kept in it: waiting for it, and bringing its schema up to date."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Executable, Table, delete, func, insert, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import PoolProxiedConnection

from email_services.counters import STORE_ERRORS, count_store
from email_services.exceptions import SearchTooSlow, StoreUnavailable
from email_services.store.driver import Rows, Write, as_text
from email_services.store.engines import (
    LOG_SECONDS,
    UNAVAILABLE,
    WAIT_SECONDS,
    Lender,
    NotConnected,
    is_out_of_reach,
    lift_limits,
    limited,
    make_autocommit,
    make_engine,
    make_log_engine,
    path_of,
    was_stopped,
)
from email_services.store.schema import VERSIONS
from email_services.store.sqlite import (
    LONG_SECONDS,
    DatabaseFile,
    Turns,
    begun,
    lasting,
    passing_over_locks,
)

logger = logging.getLogger("email_services.store")  # which operators look for

AWAY_SECONDS: Final = 2.0
"""For how long nobody waits again after that: a message asks several times, and has a deadline."""

REMOVE_EVERY_SECONDS: Final = 3600

CHANGED_AT_ONCE: Final = 1000
"""Rows of a table that are removed or changed; the rest later. A long transaction would lock out
every other writer."""

WRITTEN_AT_ONCE: Final = 100
"""Rows in one transaction, so that others get their turn between those of a large batch.

The keys of a batch are the exception: all are reserved, or none.
"""


PART_BYTES: Final = 256 * 1024
"""Of what is large, in one transaction: while a message of 30 MB was written, others waited 2 ms in
the middle for their turn, and 230 ms where it was one piece (SQLite)."""


_EVERYBODYS: Final = (sqlite3.OperationalError, NotConnected, PoolTimeoutError, StoreUnavailable)
"""What is wrong with the database and not with what is written."""

Item = TypeVar("Item")

Place = tuple[float, str]
"""Between two messages of the log: after the one of that time and id, going back."""


@dataclass(frozen=True)
class LongStep:
    """A step that goes over all there is, in the background, while messages are sent.

    do_some: does a part, in a transaction of its own. It takes the place that the part before it
    has come to, None at first, and returns where it has come to itself, or None at the end. It may
    be done again.
    """

    do_some: Callable[[Connection, Place | None], Place | None]


Migration = Callable[[Connection], None] | LongStep


class Database:
    """A database; what is kept in it derives from this.

    url, keep_seconds: see Store. migrations: step n brings it from version n to version n + 1.
    """

    def __init__(self, url: str, migrations: Sequence[Migration], keep_seconds: float) -> None:
        self._url = url
        self._engine, log_engine = make_engine(url), make_log_engine(url)
        self._autocommit, self._log = make_autocommit(self._engine), make_autocommit(log_engine)
        self._turns = Turns() if self._engine.dialect.name == "sqlite" else None
        self._file = DatabaseFile(path) if (path := path_of(self._engine)) else None
        if self._file:
            self._file.watch(self._engine)
            self._file.watch(log_engine)
        self._lender = Lender(self._engine, self._file.has_open if self._file else lambda _: True)
        self._migrations = migrations
        self._keep_seconds = keep_seconds
        self._away_until = {False: 0.0, True: 0.0}  # to read, to write
        self._log_away_until = 0.0
        self._next_removal = 0.0
        self._is_migrated = False
        self._long_steps: list[tuple[int, LongStep]] = []
        self._worker: threading.Thread | None = None
        self._is_closing = threading.Event()
        try:
            self._look_at_the_file()
            self._migrate(patiently=True)
        except StoreUnavailable as error:
            # Messages go out without it; only what needs it answers 503.
            logger.error("%s", error)
        # gunicorn forks after this: no connection may be shared by two processes.
        self.close()

    def close(self) -> None:
        """Close the connections; it may be used again."""
        if self._worker:
            self._is_closing.set()
            self._worker.join()
            self._is_closing.clear()
            self._worker = None
        self._lender.close()
        self._engine.dispose()
        self._log.dispose()
        if self._file:
            self._file.close()

    def check(self) -> None:
        """Ask the database for an answer."""
        self._look_at_the_file()
        with self._statement() as connection:
            connection.execute(select(VERSIONS.c.version))

    # What is old

    def remove_when_due(self, now: float) -> None:
        """Remove some of what is old, where that was not done lately."""
        if now >= self._next_removal:
            self._next_removal = now + REMOVE_EVERY_SECONDS  # in each worker
            if self.remove_old(now):
                self._next_removal = now + 1

    def remove_old(self, now: float) -> bool:  # noqa: ARG002 - for what is kept here
        """Remove some of what is older than it is to be kept; returns whether there may be more.

        Some, since nobody else can write meanwhile, and a message waits for it.
        """
        return False

    def _remove_some(self, table: Table, before: float) -> bool:
        key = tuple_(*table.primary_key.columns)
        old = select(*table.primary_key.columns).where(table.c.at < before).limit(CHANGED_AT_ONCE)
        with self._transaction() as connection:
            removed = connection.execute(delete(table).where(key.in_(old)))
        return removed.rowcount == CHANGED_AT_ONCE

    # The schema

    def _migrate(self, *, patiently: bool = False) -> None:
        """Bring the schema up to date; of several that start at once, one does, the others wait.

        patiently: whether the steps may take as long as a big table needs. No message may wait so.
        """
        with self._migrating(patiently=patiently) as (connection, done):
            is_new = not done
            self._long_steps = []
            for number, step in enumerate(self._migrations, 1):
                if number in done:
                    continue
                if isinstance(step, LongStep):
                    if not is_new:
                        self._long_steps.append((number, step))
                        continue
                else:
                    step(connection)
                connection.execute(insert(VERSIONS).values(version=number))
        self._is_migrated = True

    def _take_long_steps(self, steps: Sequence[tuple[int, LongStep]]) -> None:
        """The work of a thread, since a message that waited for it would wait for long."""
        for number, step in steps:
            logger.info("Bringing the messages of before up to date (step %d).", number)
            place, is_over, seconds = None, False, 0.0
            while not is_over and not self._is_closing.wait(seconds):
                started = time.monotonic()
                try:
                    place, is_over = self._take_some_of(number, step, place)
                    seconds = time.monotonic() - started  # others have as much of the time
                except StoreUnavailable:
                    seconds = AWAY_SECONDS

    def _take_some_of(
        self, number: int, step: LongStep, place: Place | None
    ) -> tuple[Place | None, bool]:
        """Returns where it has come to, and whether the step is over."""
        with self._migrating() as (connection, done):
            if number in done:
                return None, True
            place = step.do_some(connection, place)
            if place is None:
                connection.execute(insert(VERSIONS).values(version=number))
            return place, place is None

    @contextmanager
    def _migrating(self, *, patiently: bool = False) -> Iterator[tuple[Connection, set[int]]]:
        """A transaction to change the schema in, and the numbers of the steps that are done."""
        with self._answering(writes=True), self._begun() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(0x6D61696C)))
                if patiently:
                    lift_limits(connection)
            VERSIONS.create(connection, checkfirst=True)
            yield connection, set(connection.execute(select(VERSIONS.c.version)).scalars())

    def _ensure_schema(self, *, writes: bool = True) -> None:
        """Make up for a start at which the database was away, and begin what takes long."""
        if self._file and (writes or not self._file.is_open()):
            self._look_at_the_file()
        if not self._is_migrated:
            self._migrate()
        if self._long_steps:  # here, since a thread of before the fork would be in no worker
            steps, self._long_steps = self._long_steps, []
            self._worker = threading.Thread(
                target=self._take_long_steps, args=(steps,), daemon=True
            )
            self._worker.start()

    def _look_at_the_file(self) -> None:
        """Have all connections be to the one that is there now."""
        if self._file is None or self._file.is_the_same():
            return
        if (
            self._file.is_open()
        ):  # another one; first, since a thread may be quick to find it opened
            self._is_migrated = False
        with self._answering(writes=True):
            if words := self._file.open():
                logger.error("%s", words)

    # Reading and writing

    @contextmanager
    def _statement(self) -> Iterator[Connection]:
        """For single statements that read."""
        self._ensure_schema(writes=False)
        with self._answering(writes=False), self._autocommit.connect() as connection:
            yield connection

    def _read(self, statement: Executable, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Read by a statement that is made once; what it finds is as the driver gives it."""
        self._ensure_schema(writes=False)
        text = as_text(statement, self._engine.dialect, frozenset(values))
        with self._answering(writes=False), self._lender.lend() as connection:
            cursor = connection.cursor()
            cursor.execute(text.sql, text.values(values))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _write(
        self, statement: Executable, rows: Sequence[Mapping[str, Any]], weight: int | None = None
    ) -> Write:
        """Write by a statement that is made once, for one row or several: all of them, or none.

        See `_write_all`.
        """
        return self._write_all([(statement, rows)], weight)

    def _write_all(
        self,
        statements: Sequence[tuple[Executable, Sequence[Mapping[str, Any]]]],
        weight: int | None = None,
        *,
        is_durable: bool = False,
    ) -> Write:
        """The same by several statements, each with its rows, in one transaction.

        In SQLite that is one with what others write just then. weight, is_durable: see Write.
        """
        write = self._prepared(statements, weight, is_durable=is_durable)
        self._carry_out(write)
        return write

    def _prepared(
        self,
        statements: Sequence[tuple[Executable, Sequence[Mapping[str, Any]]]],
        weight: int | None = None,
        *,
        is_durable: bool = False,
    ) -> Write:
        """What `_write_all` does, to be carried out."""
        texts = [
            (as_text(statement, self._engine.dialect, frozenset(rows[0])), rows)
            for statement, rows in statements
            if rows
        ]
        each = [Rows(text.sql, [text.values(row) for row in rows]) for text, rows in texts]
        return Write(each, weight or sum(len(rows.values) for rows in each), is_durable)

    def _carry_out(self, write: Write) -> None:
        self._ensure_schema()
        with self._answering(writes=True):
            if self._turns:
                self._turns.write(write, WAIT_SECONDS, self._write_together)
            else:
                self._write_alone(write)

    def _write_alone(self, write: Write) -> None:
        try:
            with self._lender.lend() as connection:
                driver: Any = connection.driver_connection
                with nullcontext() if write.is_one_row else driver.transaction():
                    write.carry_out(driver)
        except NotConnected:
            write.is_doubtful = bool(write.numbers)  # cut, perhaps while it was being committed
            raise

    def _write_together(self, writes: Sequence[Write]) -> None:
        """In one transaction of SQLite's; notes what came of each."""
        fault: Exception | None = None
        try:
            self._write_in_turn(writes)
        except _EVERYBODYS as error:
            fault = error
        except (sqlite3.Error, ValueError, OverflowError) as error:
            if len(writes) > 1:  # one of them holds what no database takes
                for write in writes:
                    self._write_together([write])
                return
            fault = error
        for write in writes:
            write.error, write.is_over = fault, True

    def _write_in_turn(self, writes: Sequence[Write]) -> None:
        started = time.monotonic()
        is_durable = any(write.is_durable for write in writes)
        with self._lender.lend() as connection, lasting(connection, is_durable=is_durable):
            driver: Any = connection.driver_connection
            if len(writes) > 1 or not writes[0].is_one_row:
                with begun(driver, WAIT_SECONDS):
                    self._refuse_if_moved(connection)
                    for write in writes:
                        write.carry_out(driver)
            else:  # without the cost of a transaction
                passing_over_locks(lambda: writes[0].carry_out(driver), WAIT_SECONDS)
                if time.monotonic() > started + LONG_SECONDS:  # it may have waited
                    self._refuse_if_moved(connection)

    def _refuse_if_moved(self, connection: PoolProxiedConnection) -> None:
        """What is written into a file that is gone, nobody finds."""
        if self._file and not self._file.is_what_has_open(connection):
            raise StoreUnavailable("The state database has just been deleted or replaced.")

    @contextmanager
    def _transaction(self, *, is_durable: bool = False) -> Iterator[Connection]:
        """A transaction that has the right to write from its beginning. is_durable: see Write."""
        self._ensure_schema()
        with self._answering(writes=True), self._begun(is_durable=is_durable) as connection:
            yield connection

    @contextmanager
    def _begun(self, *, is_durable: bool = False) -> Iterator[Connection]:
        if self._turns is None:
            with self._engine.begin() as connection:
                yield connection
        else:
            # The turn comes first: who waits for it holds no connection that others could use.
            with (
                self._turns.turn(WAIT_SECONDS),
                self._engine.connect() as connection,
                lasting(connection.connection, is_durable=is_durable),
                begun(_driver_of(connection), WAIT_SECONDS),
            ):
                self._refuse_if_moved(connection.connection)
                yield connection

    @contextmanager
    def _reading(self, most_seconds: float | None = None) -> Iterator[Connection]:
        """For who looks at the log, however long it takes, at nobody's cost but their own.

        most_seconds: for each statement, LOG_SECONDS by default. Raises SearchTooSlow, and
        StoreUnavailable.
        """
        self._ensure_schema()
        now = time.monotonic()
        if now < max(self._away_until[False], self._log_away_until):
            raise StoreUnavailable("The state database does not answer.")
        try:
            with self._log.connect() as connection:
                seconds = LOG_SECONDS if most_seconds is None else most_seconds
                connection.info["until"] = time.monotonic() + seconds
                with limited(connection, seconds):
                    yield connection
        except UNAVAILABLE as error:
            if isinstance(error, PoolTimeoutError) or was_stopped(error):
                raise SearchTooSlow from error
            STORE_ERRORS.inc()
            self._log_away_until = time.monotonic() + AWAY_SECONDS
            self._is_migrated = False  # it may come back empty
            raise StoreUnavailable("The state database does not answer.") from error

    @contextmanager
    def _answering(self, *, writes: bool) -> Iterator[None]:
        """The one place where SQLAlchemy's errors become ours."""
        began = time.monotonic()
        if began < self._away_until[writes]:
            raise StoreUnavailable("The state database does not answer.")
        try:
            yield
        except IntegrityError:  # another node was first: the caller's to settle
            raise
        except PoolTimeoutError as error:  # many at once, which is no outage
            STORE_ERRORS.inc()
            raise StoreUnavailable("Too many ask the state database at once.") from error
        except UNAVAILABLE as error:
            STORE_ERRORS.inc()
            away_until = time.monotonic() + AWAY_SECONDS
            self._away_until[True] = away_until
            if not writes or is_out_of_reach(error):  # no mere lock of another writer
                self._away_until[False] = away_until
                self._is_migrated = False  # it may come back empty
            raise StoreUnavailable("The state database does not answer.") from error
        finally:
            count_store(time.monotonic() - began, writes=writes)


def _driver_of(connection: Connection) -> Any:
    return connection.connection.driver_connection


def in_parts(
    items: Sequence[Item],
    weight: Callable[[Item], int] = lambda _: 1,
    most: int = WRITTEN_AT_ONCE,
) -> Iterator[Sequence[Item]]:
    """The items in parts of `most` rows, or fewer, or of one item that has more.

    weight: how many rows an item has.
    """
    part: list[Item] = []
    rows = 0
    for item in items:
        rows += weight(item)
        if part and rows > most:
            yield part
            part, rows = [], weight(item)
        part.append(item)
    if part:
        yield part


def parts_of(content: bytes) -> list[bytes]:
    """It in parts of PART_BYTES."""
    return [content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES)]
