"""How the database is connected to, and how long anybody waits for it."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InvalidatePoolError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from email_services.exceptions import ConfigError
from email_services.store.sqlite import INTERRUPTED, prepare, prepare_for_the_log

WAIT_SECONDS: Final = 2
"""How long a message waits for the database: to connect, for a lock, for a statement."""

SILENCE_SECONDS: Final = WAIT_SECONDS + 0.5
"""How long it waits for any word of PostgreSQL's, which should give up on a statement itself."""

TRUSTED_SECONDS: Final = 1.0
"""How long after its use a connection to PostgreSQL is not asked whether it still works."""

CONNECTIONS: Final = {"pool_size": 5, "max_overflow": 2, "pool_timeout": WAIT_SECONDS}
"""In each worker; a statement takes milliseconds, and small databases allow 20 connections."""

KEPT: Final = 4
"""Connections to SQLite that stay with a Lender, in each worker. One writes, the others read for
microseconds."""

LOG_SECONDS: Final = 5
"""How long who looks at the log waits: for a connection, and for each statement."""

LOG_CONNECTIONS: Final = {"pool_size": 2, "max_overflow": 0, "pool_timeout": LOG_SECONDS}
"""Those of the log's readers, in each worker. However many they are, no message waits for them, and
they keep no more processors busy."""


class NotConnected(Exception):
    """There is no connection to the database, or none any more."""


UNAVAILABLE: Final = (
    DatabaseError,
    InterfaceError,
    PoolTimeoutError,
    NotConnected,
    psycopg.Error,
    sqlite3.Error,
    OSError,
)
"""What is raised where the database is away, full, locked, damaged or read-only."""

POSTGRESQL: Final = {
    "connect_timeout": WAIT_SECONDS,
    "tcp_user_timeout": WAIT_SECONDS * 1000,  # a server that is gone without a word
    "options": f"-c statement_timeout={WAIT_SECONDS * 1000}",
}

LOG_OPTIONS: Final = (
    f"-c statement_timeout={LOG_SECONDS * 1000}"
    " -c default_transaction_read_only=on"
    " -c max_parallel_workers_per_gather=0"  # one search takes one processor
)


def make_engine(url: str) -> Engine:
    """For messages, of which none may wait for long."""
    engine = _connected(url, CONNECTIONS, POSTGRESQL)
    if engine.driver == "psycopg":
        event.listen(engine, "do_connect", _connect_to_postgresql)
    return engine


def make_log_engine(url: str) -> Engine:
    """For those who look at the log: they write nothing, and may wait."""
    engine = _connected(url, LOG_CONNECTIONS, {**POSTGRESQL, "options": LOG_OPTIONS})
    if engine.driver == "psycopg":
        event.listen(engine, "do_connect", _connect_for_the_log)
    elif engine.dialect.name == "sqlite":
        event.listen(engine, "connect", prepare_for_the_log)
    return engine


def make_autocommit(engine: Engine) -> Engine:
    """The same connections, where each statement is a transaction of its own."""
    if engine.dialect.name == "sqlite":
        return engine  # it is so there, until we begin one
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def path_of(engine: Engine) -> str | None:
    """The file of an SQLite database that has one."""
    path = engine.url.database if engine.dialect.name == "sqlite" else None
    return None if not path or path == ":memory:" or path.startswith("file:") else path


def was_stopped(error: Exception) -> bool:
    """Whether a statement was taking too long, which says nothing of the database."""
    if not isinstance(error, DBAPIError):
        return False
    return isinstance(error.orig, psycopg.errors.QueryCanceled) or str(error.orig) == INTERRUPTED


def is_out_of_reach(error: Exception) -> bool:
    """Whether there is no connection to the database, for any purpose; not so if it is locked."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or error.statement is None
    return isinstance(error, NotConnected)


class Lender:
    """Connections of the driver's, for the statements that every message makes.

    Each statement on them is a transaction of its own. In SQLite some stay here: SQLAlchemy's pool
    takes as long to hand one out as SQLite to use it.

    is_fit: whether one that has stayed may be used.
    """

    def __init__(
        self, engine: Engine, is_fit: Callable[[PoolProxiedConnection], bool] = lambda _: True
    ) -> None:
        self._engine = engine
        self._is_fit = is_fit
        self._idle: list[PoolProxiedConnection] = []
        self._kept = KEPT if engine.dialect.name == "sqlite" else 0

    @contextmanager
    def lend(self) -> Iterator[PoolProxiedConnection]:
        """One that nobody else has. Raises NotConnected, PoolTimeoutError, the driver's errors."""
        connection = self._take()
        driver = connection.driver_connection
        try:
            if isinstance(driver, PostgreSQL):
                with _committing(driver):
                    yield connection
            else:
                yield connection
        except psycopg.Error as error:
            if isinstance(driver, PostgreSQL) and driver.closed:
                connection.invalidate(error)
                self._engine.dispose()  # those nobody uses now are as broken
                raise NotConnected from error
            raise
        finally:
            if len(self._idle) < self._kept:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Give back those that have stayed."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> PoolProxiedConnection:
        with suppress(IndexError):  # none is here, or another has just taken it
            while not self._is_fit(connection := self._idle.pop()):
                connection.invalidate()
            return connection
        try:
            return self._engine.raw_connection()
        except (psycopg.Error, sqlite3.Error, OSError) as error:
            raise NotConnected from error


@contextmanager
def _committing(driver: PostgreSQL) -> Iterator[None]:
    driver.autocommit = True
    try:
        yield
    finally:
        if not driver.closed:
            driver.autocommit = False


def lift_limits(connection: Connection) -> None:
    """Let PostgreSQL take its time; the connection is closed afterwards."""
    driver_connection = connection.connection.driver_connection
    connection.detach()
    if isinstance(driver_connection, PostgreSQL):
        driver_connection.silence_seconds = None
    connection.exec_driver_sql("SET statement_timeout = 0")


@contextmanager
def limited(connection: Connection, seconds: float) -> Iterator[None]:
    """Have PostgreSQL give each statement of a reader of the log no more than that, if it is less.

    SQLite's look at the connection's `info["until"]`.
    """
    if seconds >= LOG_SECONDS or connection.dialect.name == "sqlite":
        yield
        return
    connection.exec_driver_sql(f"SET statement_timeout = {int(seconds * 1000)}")
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.exec_driver_sql("RESET statement_timeout")


class PostgreSQL(psycopg.Connection[Any]):
    """A connection on which nobody waits for long, not even for a server that is frozen.

    The server's own timeouts are of no use then, and TCP's neither: its kernel still acknowledges.
    """

    silence_seconds: float | None = SILENCE_SECONDS

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """See psycopg: whatever it waits for is waited for here."""
        try:
            return super().wait(gen, interval, self.silence_seconds if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.info.transaction_status == TransactionStatus.ACTIVE:
                self.close()  # the answer still to come is nobody's; nor is a rollback waited for
            raise


def _connected(url: str, pool: Mapping[str, Any], on_postgresql: Mapping[str, Any]) -> Engine:
    """An engine, with what holds for all. Raises ConfigError for a URL that can be none."""
    options: dict[str, Any] = {"hide_parameters": True, **pool}  # no value in any log
    if url.startswith("postgres"):
        options["connect_args"] = on_postgresql
    else:
        options["paramstyle"] = "named"  # as PostgreSQL's has it by itself
    try:
        engine = create_engine(
            re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url), **options
        )
    except (ArgumentError, ImportError, ValueError):
        raise ConfigError("The state's URL ($DATABASE_URL or state_url) is not usable.") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", prepare)
    elif engine.driver == "psycopg":
        event.listen(engine, "checkin", _note_the_time)
        event.listen(engine, "checkout", _replace_if_stale)
    return engine


def _connect_to_postgresql(
    _dialect: Any, _record: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> PostgreSQL:
    return PostgreSQL.connect(*arguments, **options)


def _connect_for_the_log(
    dialect: Any, record: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> PostgreSQL:
    connection = _connect_to_postgresql(dialect, record, arguments, options)
    connection.silence_seconds = LOG_SECONDS + 0.5
    return connection


def _note_the_time(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["returned_at"] = time.monotonic()


def _replace_if_stale(connection: PostgreSQL, record: ConnectionPoolEntry, _proxy: Any) -> None:
    """Use no connection that broke while nobody did, as when PostgreSQL was restarted.

    SQLAlchemy's pool_pre_ping asks each time, which doubles the round trips of a statement.
    """
    now = time.monotonic()
    if now - record.info.get("returned_at", now) <= TRUSTED_SECONDS:
        return
    try:
        connection.execute("SELECT 1")
        connection.rollback()
    except psycopg.OperationalError as error:
        raise InvalidatePoolError from error
