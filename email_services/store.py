"""What the workers of all machines share, in one database: SQLite, or PostgreSQL."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
)
from sqlalchemy.exc import ArgumentError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.schema import CreateTable

from email_services.exceptions import ConfigError, StoreUnavailable

logger = logging.getLogger(__name__)

DEFAULT_URL = "sqlite:///state.sqlite3"
BUSY_SECONDS = 5
"""How long a writer waits for another one on SQLite."""

_metadata = MetaData()

_simulated_failures = Table(
    "simulated_failures",
    _metadata,
    Column("email_domain", String(255), primary_key=True),
    Column("service", String(64), primary_key=True),
    Column("since", Float, nullable=False),  # seconds since the epoch
)


class Store:
    """The shared state. Every method raises StoreUnavailable if the database does not answer.

    url: an SQLAlchemy URL; Heroku's `postgres://` is understood. Raises ConfigError if it cannot
    be one, and makes the tables where there are none.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self._engine = _make_engine(url)

    def simulated_failures(self, email_domain: str) -> frozenset[str]:
        """The domain's services whose failure is simulated now."""
        query = select(_simulated_failures.c.service).where(
            _simulated_failures.c.email_domain == email_domain
        )
        with self._transaction() as connection:
            return frozenset(connection.execute(query).scalars())

    def set_simulated_failure(self, email_domain: str, service: str, enabled: bool | None) -> bool:
        """Switch a simulated failure on or off, or over to the other for None; returns what it is.

        Any number that do so at once take turns.
        """
        try:
            return self._switch(email_domain, service, enabled)
        except IntegrityError:  # another worker switched it on between our two statements
            return self._switch(email_domain, service, enabled)

    def _switch(self, email_domain: str, service: str, enabled: bool | None) -> bool:
        key = {"email_domain": email_domain, "service": service}
        with self._transaction() as connection:
            removed = connection.execute(delete(_simulated_failures).filter_by(**key)).rowcount
            result = not removed if enabled is None else enabled
            if result:
                connection.execute(insert(_simulated_failures).values(**key, since=time.time()))
        return result

    def close(self) -> None:
        """Close the connections; it may be used again."""
        self._engine.dispose()

    def check(self) -> None:
        """Ask the database for an answer."""
        with self._transaction() as connection:
            connection.execute(select(1))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except UNAVAILABLE as error:
            raise StoreUnavailable("The state database does not answer.") from error


UNAVAILABLE = (OperationalError, InterfaceError, PoolTimeoutError)
"""What SQLAlchemy raises where the database is away, full or locked. The rest are bugs of ours."""


def _make_engine(url: str) -> Engine:
    try:
        engine = create_engine(
            re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url),
            hide_parameters=True,  # no value in an exception or a log
            pool_pre_ping=not url.startswith("sqlite"),  # a server may have closed the connection
        )
    except (ArgumentError, ImportError, ValueError):
        raise ConfigError("The state's URL ($DATABASE_URL or state_url) is not usable.") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    try:
        with engine.begin() as connection:
            for table in _metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
    except UNAVAILABLE as error:
        # Sends go out without the store; only what needs it answers 503.
        logger.error("The state database is not available: %s", type(error).__name__)
    # gunicorn forks after this: no connection may be shared by two processes.
    engine.dispose()
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers never wait for a writer (WAL), and a writer waits for another instead of failing."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
