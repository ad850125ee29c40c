"""What the workers of all machines share, in one database: SQLite, or PostgreSQL.

Nothing here decides anything about email: rules are passed in, and so is the time, in seconds since
the epoch.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Executable,
    Float,
    Index,
    Integer,
    MetaData,
    Row,
    Select,
    String,
    Table,
    Text,
    and_,
    bindparam,
    case,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InvalidatePoolError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from email_services.drill import Drill
from email_services.exceptions import UNKNOWN, ConfigError, SearchTooSlow, StoreUnavailable
from email_services.health import SKEW_SECONDS, Health
from email_services.store_sqlite import (
    INTERRUPTED,
    LONG_SECONDS,
    DatabaseFile,
    Turns,
    begun,
    passing_over_a_lock,
    prepare,
    prepare_for_the_log,
)

logger = logging.getLogger(__name__)

DEFAULT_URL: Final = "sqlite:///state.sqlite3"
WAIT_SECONDS: Final = 2
"""How long a message waits for the database: to connect, for a lock, for a statement."""

SILENCE_SECONDS: Final = WAIT_SECONDS + 0.5
"""How long it waits for any word of PostgreSQL's, which should give up on a statement itself."""

TRUSTED_SECONDS: Final = 1.0
"""How long after its use a connection to PostgreSQL is not asked whether it still works."""

AWAY_SECONDS: Final = 2.0
"""For how long nobody waits again after that: a message asks several times, and has a deadline."""

CONNECTIONS: Final = {"pool_size": 5, "max_overflow": 2, "pool_timeout": WAIT_SECONDS}
"""In each worker; a statement takes milliseconds, and small databases allow 20 connections."""

LOG_SECONDS: Final = 5
"""How long who looks at the log waits: for a connection, and for each statement."""

LOG_CONNECTIONS: Final = {"pool_size": 2, "max_overflow": 0, "pool_timeout": LOG_SECONDS}
"""Those of the log's readers, in each worker. However many they are, no message waits for them, and
they keep no more processors busy."""

KEPT_ERRORS: Final = 5
"""The last faults of a service that are shown."""

KEEP_KEY_SECONDS: Final = 24 * 3600
"""How long an Idempotency-Key is known."""

KEEP_WRONG_KEYS_SECONDS: Final = 3600
"""How long the addresses are kept that wrong keys came from."""

REMOVE_EVERY_SECONDS: Final = 3600
REMOVED_AT_ONCE: Final = 1000
"""Rows of a table; the rest a second later. A long removal would lock out every other writer."""

REMOVED_PARTS: Final = 25
"""Transactions for messages with their recipients, of which one may have a thousand."""

MOST_CANDIDATES: Final = 5000
"""Recipients looked at in one step of a search; a statement may not have many more parameters."""

FILLED_AT_ONCE: Final = 500
"""Rows in one part of a step that goes over all there is."""

WRITTEN_AT_ONCE: Final = 100
"""Rows in one transaction, so that others get their turn between those of a large batch.

The keys of a batch are the exception: all are reserved, or none.
"""

IN_PROGRESS: Final = "in progress"

Item = TypeVar("Item")

Place = tuple[float, str]
"""Between two messages of the log: after the one of that time and id, going back."""

_metadata = MetaData()

_schema = Table("schema_version", _metadata, Column("version", Integer, primary_key=True))

_services = Table(
    "services",
    _metadata,
    Column("email_domain", String(255), primary_key=True),
    Column("service", String(64), primary_key=True),
    # A Health
    Column("failures", Integer, nullable=False, default=0),
    Column("rests", Integer, nullable=False, default=0),
    Column("rest_until", Float),
    Column("probe_until", Float),
    Column("since", Float),
    Column("reason", Text, nullable=False, default=""),
    Column("simulated", Boolean, nullable=False, default=False),
    Column("rest_seconds", Float),
    # A Drill, if there is one
    Column("drill", Text),
    Column("last_errors", Text, nullable=False, default="[]"),
)

_changes = Table(
    "service_changes",
    _metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("email_domain", String(255), nullable=False),
    Column("service", String(64), nullable=False),
    Column("change", Text, nullable=False),
    Index("service_changes_by_domain", "email_domain", "id"),
)

_messages = Table(
    "messages",
    _metadata,
    Column("message_id", String(32), primary_key=True),
    Column("at", Float, nullable=False),
    Column("email_domain", String(255), nullable=False),
    Column("from_email", Text, nullable=False),
    Column("recipients", Text, nullable=False),  # each between two line breaks, in lower case
    Column("subject", Text, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("deadline", Float, nullable=False),  # still in progress after it: cut off
    Column("service_used", String(64)),
    Column("service_message_id", Text),
    Column("possible_duplicate", Boolean, nullable=False, default=False),
    Column("attempts", Text, nullable=False, default="[]"),
    Index("messages_by_domain", "email_domain", "at", "message_id"),
    Index("messages_by_time", "at"),
)
_recipients = Table(
    "recipients",
    _metadata,
    # What is in _messages, to be searched: in the order of the table for a whole address, and for a
    # part of one because it is narrow.
    Column("email_domain", String(255), primary_key=True),
    Column(
        "address",
        Text().with_variant(postgresql.TEXT(collation="C"), "postgresql"),
        primary_key=True,
    ),
    Column("at", Float, primary_key=True),
    Column("message_id", String(32), primary_key=True),
    sqlite_with_rowid=False,
)

_keys = Table(
    "idempotency_keys",
    _metadata,
    Column("email_domain", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("reserved_until", Float, nullable=False),
    Column("answer", Text),  # NULL while the first request with it is in progress
    # The message that the first request began, for one that takes the key over
    Column("message_id", String(32)),
    Column("message_at", Float),
    Index("idempotency_keys_by_time", "at"),
)

_secrets = Table(
    "secrets",
    _metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

_wrong_keys = Table(
    "wrong_keys",
    _metadata,
    Column("address", String(64), primary_key=True),
    Column("at", Float, nullable=False),  # since when they are counted
    Column("number", Integer, nullable=False),
    Index("wrong_keys_by_time", "at"),
)


# What every message asks is made once: making a statement costs more than carrying it out.
_STATES: Final = select(_services).where(_services.c.email_domain == bindparam("email_domain"))
_OUTCOME_COLUMNS: Final = (
    "outcome",
    "service_used",
    "service_message_id",
    "possible_duplicate",
    "attempts",
)
_NEW_MESSAGE: Final = postgresql.insert(_messages)
# There is one already where a request takes over what was cut off.
_LOG_MESSAGE: Final = _NEW_MESSAGE.on_conflict_do_update(
    index_elements=[_messages.c.message_id],
    set_={name: _NEW_MESSAGE.excluded[name] for name in (*_OUTCOME_COLUMNS, "deadline")},
)
_LOG_OUTCOME: Final = update(_messages).where(
    _messages.c.message_id == bindparam("of_message"),
    # One that comes late changes nothing of what became of it since another has taken it over.
    or_(_messages.c.deadline == bindparam("of_deadline"), _messages.c.outcome == IN_PROGRESS),
)
_REMOVE_MESSAGES: Final = delete(_messages).where(
    _messages.c.message_id.in_(bindparam("ids", expanding=True))
)

_EACH_RECIPIENT: Final = {
    # A byte that is in no address stands for the line breaks, since JSON writes those otherwise.
    "sqlite": """json_each('[' || replace(
        json_quote(replace(trim({row}.recipients, char(10)), char(10), char(127))),
        char(127), '","') || ']')""",
    "postgresql": """unnest(
        string_to_array(trim(both chr(10) from {row}.recipients), chr(10))) AS one(value)""",
}
"""The recipients of a message as the rows of a table with one column, `value`."""

_ADD_RECIPIENTS: Final = """
    INSERT INTO recipients (email_domain, address, at, message_id)
    SELECT {row}.email_domain, value, {row}.at, {row}.message_id FROM {source} WHERE {condition}
    ON CONFLICT DO NOTHING"""
_REMOVE_RECIPIENTS: Final = """
    DELETE FROM recipients
    WHERE email_domain = OLD.email_domain AND at = OLD.at AND message_id = OLD.message_id
    AND address IN (SELECT value FROM {source})"""

_IS_KEY: Final = and_(
    _keys.c.email_domain == bindparam("of_domain"), _keys.c.key == bindparam("of_key")
)
_IS_RESERVATION: Final = and_(_IS_KEY, _keys.c.at == bindparam("since"))
_KEYS: Final = (
    select(_keys)
    .where(_keys.c.email_domain == bindparam("of_domain"))
    .where(_keys.c.key.in_(bindparam("of_keys", expanding=True)))
    .order_by(_keys.c.key)  # in one order: no two requests wait for each other
    .with_for_update()
)
# SQLite has the same words for it. Only with the option is the count of rows to be had.
_RESERVE_KEY: Final = (
    postgresql.insert(_keys).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
)
_ADD_SECRET: Final = postgresql.insert(_secrets).on_conflict_do_nothing()
_SECRET: Final = select(_secrets.c.value).where(_secrets.c.name == bindparam("name"))
_TAKE_KEY: Final = update(_keys).where(_IS_KEY)
_BOUND_KEY: Final = _TAKE_KEY.where(_keys.c.answer.is_(None))
_STORE_ANSWER: Final = update(_keys).where(_IS_RESERVATION)
_FREE_KEY: Final = delete(_keys).where(_IS_RESERVATION)
_COUNTED: Final = postgresql.insert(_wrong_keys)
_GOES_ON: Final = _wrong_keys.c.at.between(bindparam("since"), bindparam("until"))
_COUNT_WRONG_KEYS: Final = _COUNTED.on_conflict_do_update(
    index_elements=[_wrong_keys.c.address],
    set_={
        "at": case((_GOES_ON, _wrong_keys.c.at), else_=_COUNTED.excluded.at),
        "number": _COUNTED.excluded.number + case((_GOES_ON, _wrong_keys.c.number), else_=0),
    },
).returning(_wrong_keys.c.at, _wrong_keys.c.number)


def _create_tables(connection: Connection) -> None:
    _metadata.create_all(connection)


def _add_secrets(connection: Connection) -> None:
    _secrets.create(connection, checkfirst=True)  # a new database has them since the first step


def _add_wrong_keys(connection: Connection) -> None:
    _wrong_keys.create(connection, checkfirst=True)


def _add_recipients(connection: Connection) -> None:
    _recipients.create(connection, checkfirst=True)


@dataclass(frozen=True)
class LongStep:
    """A step that goes over all there is, in the background, while messages are sent.

    do_some: does a part, in a transaction of its own. It takes the place that the part before it
    has come to, None at first, and returns where it has come to itself, or None at the end. It may
    be done again.
    """

    do_some: Callable[[Connection, Place | None], Place | None]


def _fill_recipients(connection: Connection, before: Place | None) -> Place | None:
    """For the messages of before there was such a table; the newest first."""
    bounds = _Bounds(before=before)
    query = bounds.applied(_SIZES, _messages).order_by(*_newest_first(_messages))
    found = connection.execute(query.limit(FILLED_AT_ONCE)).all()
    some = next(_in_parts(found, _rows_of, FILLED_AT_ONCE), None)
    if not some:
        return None
    each = _EACH_RECIPIENT[connection.dialect.name].format(row="m")
    words = _ADD_RECIPIENTS.format(
        row="m", source=f"messages AS m, {each}", condition="m.message_id IN :ids"
    )
    fill = text(words).bindparams(bindparam("ids", expanding=True))
    connection.execute(fill, {"ids": [row.message_id for row in some]})
    return some[-1].at, some[-1].message_id


def _let_the_database_keep_recipients(connection: Connection) -> None:
    """It does so in the statement that adds or removes a message, whoever does that."""
    dialect = connection.dialect.name
    changes = {
        "INSERT": _ADD_RECIPIENTS.format(
            row="NEW", source=_EACH_RECIPIENT[dialect].format(row="NEW"), condition="true"
        ),
        "DELETE": _REMOVE_RECIPIENTS.format(source=_EACH_RECIPIENT[dialect].format(row="OLD")),
    }
    for event_, words in changes.items():
        name = f"recipients_at_{event_.lower()}"
        for statement in _TRIGGER[dialect]:
            connection.exec_driver_sql(statement.format(name=name, event=event_, words=words))


_TRIGGER: Final = {
    "sqlite": (
        "DROP TRIGGER IF EXISTS {name}",
        "CREATE TRIGGER {name} AFTER {event} ON messages BEGIN {words}; END",
    ),
    "postgresql": (
        """CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN {words}; RETURN NULL; END $$""",
        "DROP TRIGGER IF EXISTS {name} ON messages",
        "CREATE TRIGGER {name} AFTER {event} ON messages FOR EACH ROW EXECUTE FUNCTION {name}()",
    ),
}


def _keep_messages_with_keys(connection: Connection) -> None:
    _add_columns(connection, "idempotency_keys", message_id="VARCHAR(32)", message_at="FLOAT")


def _keep_how_long_rests_were_to_be(connection: Connection) -> None:
    _add_columns(connection, "services", rest_seconds="FLOAT")


def _add_columns(connection: Connection, table: str, **kinds: str) -> None:
    """Those that are not there: a new database has all since the first step."""
    there = {column["name"] for column in inspect(connection).get_columns(table)}
    for name, kind in kinds.items():
        if name not in there:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


MIGRATIONS: Final[tuple[Callable[[Connection], None] | LongStep, ...]] = (
    _create_tables,
    _add_secrets,
    _add_wrong_keys,
    _add_recipients,
    LongStep(_fill_recipients),
    _keep_messages_with_keys,
    _keep_how_long_rests_were_to_be,
    _let_the_database_keep_recipients,
)
"""Step n brings a database from version n to version n + 1. Append; never change one."""


@dataclass(frozen=True)
class ServiceState:
    """What is known of one service. last_errors: the newest first, each with `at` and `reason`."""

    health: Health = field(default_factory=Health)
    drill: Drill | None = None
    last_errors: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class LoggedMessage:
    """A row of the message log; never a body.

    outcome: "sent", "not sent", "unknown" or "in progress". recipients: addresses in lower case.
    """

    message_id: str
    at: float
    email_domain: str
    from_email: str
    recipients: Sequence[str]
    subject: str
    outcome: str = IN_PROGRESS
    deadline: float = 0.0
    service_used: str | None = None
    service_message_id: str | None = None
    possible_duplicate: bool = False
    attempts: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Reservation:
    """What an Idempotency-Key stands for.

    state: "new" (reserved for this request), "abandoned" (reserved too, after a request that was
    cut off), "in progress", "other" (used for another request), or "done".
    answer: the stored one, if it is done. message: the id and the time of the message that the
    request before began, if it was abandoned: what follows is another copy of that.
    """

    state: str
    answer: Mapping[str, Any] | None = None
    message: tuple[str, float] | None = None


class _Undone(Exception):
    """What a transaction has done so far is to be rolled back, and all is well."""


class Store:
    """The shared state. Every method raises StoreUnavailable if the database does not answer.

    keep_seconds: how long the message log and the record of changes go back.
    url: an SQLAlchemy URL; Heroku's `postgres://` is understood. Raises ConfigError if it cannot
    be one. Brings the schema up to date.
    """

    def __init__(self, url: str = DEFAULT_URL, keep_seconds: float = 30 * 24 * 3600) -> None:
        self._engine, log_engine = _make_engine(url), _make_log_engine(url)
        self._autocommit, self._log = _make_autocommit(self._engine), _make_autocommit(log_engine)
        self._turns = Turns() if self._engine.dialect.name == "sqlite" else None
        self._file = DatabaseFile(path) if (path := _path_of(self._engine)) else None
        if self._file:
            self._file.watch(self._engine)
            self._file.watch(log_engine)
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
        self._engine.dispose()
        self._log.dispose()
        if self._file:
            self._file.close()

    def check(self) -> None:
        """Ask the database for an answer."""
        self._look_at_the_file()
        with self._statement() as connection:
            connection.execute(select(_schema.c.version))

    # Services

    def service_states(self, email_domain: str) -> dict[str, ServiceState]:
        """What is known of the domain's services, by name; nothing of some."""
        with self._statement() as connection:
            rows = connection.execute(_STATES, {"email_domain": email_domain})
            return {row.service: _state(row) for row in rows}

    def change_service(
        self,
        email_domain: str,
        service: str,
        change: Callable[[ServiceState], tuple[ServiceState, str]],
        now: float,
    ) -> ServiceState:
        """Apply `change` to what is known of a service, one worker at a time; returns the result.

        change: gives the new state, and words for the record, or "" for no entry there.
        """
        key = {"email_domain": email_domain, "service": service}
        try:
            return self._change_service(key, change, now)
        except IntegrityError:  # another node made the row between our two statements
            return self._change_service(key, change, now)

    def _change_service(
        self,
        key: Mapping[str, str],
        change: Callable[[ServiceState], tuple[ServiceState, str]],
        now: float,
    ) -> ServiceState:
        with self._transaction() as connection:
            row = connection.execute(
                select(_services).filter_by(**key).with_for_update()
            ).one_or_none()
            before = _state(row) if row else ServiceState()
            after, words = change(before)
            if after != before and row:
                connection.execute(update(_services).filter_by(**key).values(**_columns(after)))
            elif after != before:
                connection.execute(insert(_services).values(**key, **_columns(after)))
            if words:
                connection.execute(insert(_changes).values(**key, at=now, change=words))
        return after

    def service_changes(self, email_domain: str, limit: int = 20) -> list[dict[str, Any]]:
        """The newest changes of the domain's services: at, service, change.

        Raises SearchTooSlow.
        """
        query = (
            select(_changes.c.at, _changes.c.service, _changes.c.change)
            .where(_changes.c.email_domain == email_domain)
            .order_by(_changes.c.id.desc())
            .limit(limit)
        )
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    # Messages

    def log_messages(self, messages: Sequence[LoggedMessage]) -> None:
        """Write that the messages are about to be tried."""
        for some in _in_parts(messages, _rows_of):
            self._write(_LOG_MESSAGE, [_message_columns(message) for message in some])
        self._remove_when_due(messages[0].at)

    def log_outcomes(self, messages: Sequence[LoggedMessage]) -> None:
        """Write what became of them, also where their beginning could not be written."""
        for some in _in_parts(messages, _rows_of):
            outcomes = [_outcome_columns(message) for message in some]
            if self._write(_LOG_OUTCOME, outcomes).number < len(some):
                self._log_lost(some)

    def _log_lost(self, messages: Sequence[LoggedMessage]) -> None:
        """Log those of the messages that are not in the log."""
        id_ = _messages.c.message_id
        with self._statement() as connection:
            found = select(id_).where(id_.in_([message.message_id for message in messages]))
            known = set(connection.execute(found).scalars())
        if lost := [message for message in messages if message.message_id not in known]:
            self._write(_LOG_MESSAGE, [_message_columns(message) for message in lost])

    def messages(
        self,
        email_domain: str,
        now: float,
        *,
        message_id: str | None = None,
        recipient: str | None = None,
        outcome: str | None = None,
        service: str | None = None,
        since: float | None = None,
        until: float | None = None,
        before: Place | None = None,
        limit: int = 50,
    ) -> list[LoggedMessage]:
        """The domain's messages, newest first.

        recipient: an address, or a part of one. service: one that was tried.
        since, until: bounds of the time. before: the place where the page before ended. One that
        was cut off is unknown. Raises SearchTooSlow.
        """
        table = _messages.c
        oldest = now - self._keep_seconds
        bounds = _Bounds(oldest if since is None else max(since, oldest), until, before)
        query = select(_messages).where(table.email_domain == email_domain)
        if message_id:
            query = query.where(table.message_id == message_id)
        if service:
            query = query.where(table.attempts.contains(f'"service": "{service}"', autoescape=True))
        query = _with_outcome(query, outcome, now)
        query = query.order_by(table.at.desc(), table.message_id.desc())
        with self._reading() as connection:
            if recipient:
                to = _is_to(email_domain, recipient.lower())
                rows: Iterable[Row[Any]] = _found_by_recipient(connection, query, to, bounds, limit)
            else:
                rows = connection.execute(bounds.applied(query, _messages).limit(limit))
            return [_message(row, now) for row in rows]

    def outcomes(
        self, email_domain: str, now: float, since: float
    ) -> list[tuple[str | None, str, int]]:
        """How many of the domain's messages since then had each outcome, by the service that sent.

        The service is None for messages that none sent. One that was cut off is unknown. Raises
        SearchTooSlow.
        """
        table = _messages.c
        cut_off = and_(table.outcome == IN_PROGRESS, table.deadline < now)
        outcome = case((cut_off, UNKNOWN), else_=table.outcome)
        query = (
            select(table.service_used, outcome.label("became"), func.count().label("number"))
            .where(table.email_domain == email_domain, table.at >= since)
            .group_by(table.service_used, "became")
        )
        with self._reading() as connection:
            rows = connection.execute(query)
            return [(row.service_used, row.became, row.number) for row in rows]

    # Idempotency keys

    def reserve_keys(
        self,
        email_domain: str,
        keys: Sequence[tuple[str, str]],
        now: float,
        until: float,
        message_ids: Mapping[str, str] | None = None,
    ) -> list[Reservation]:
        """Reserve each key for a request, or tell what it already stands for.

        If one of them is in progress or stands for another request, none is reserved.
        keys: each with the fingerprint of its request. until: when the reservations lapse, if no
        answer is stored. message_ids: of the messages that the keys stand for, by key.
        """
        times = {"at": now, "reserved_until": until, "message_at": now}
        ids = message_ids or {}
        rows = {
            key: {**_key_columns(email_domain, key, mark), **times, "message_id": ids.get(key)}
            for key, mark in sorted(keys)
        }
        # The usual case needs no look at what is there.
        if len(rows) == 1 and self._write(_RESERVE_KEY, list(rows.values())).number:
            return [Reservation("new")]
        found = None
        while found is None:
            found = self._reserve_keys(email_domain, rows, now, until)
        return [found[key] for key, _ in keys]

    def _reserve_keys(
        self, email_domain: str, rows: Mapping[str, Mapping[str, Any]], now: float, until: float
    ) -> dict[str, Reservation] | None:
        """Reserve all or none; None if another node was quicker, so that it is to be done again.

        rows: by their key, in the order of the keys.
        """
        asked = {"of_domain": email_domain, "of_keys": list(rows)}
        with suppress(_Undone), self._transaction() as connection:
            there = connection.execute(_KEYS, asked).all()
            known = {r.key: _reservation(r, rows[r.key]["fingerprint"], now) for r in there}
            found = {key: known.get(key, Reservation("new")) for key in rows}
            if {"in progress", "other"} & {reservation.state for reservation in found.values()}:
                _bound(connection, there, now, until)
                return found
            fresh = [row for key, row in rows.items() if key not in known]
            if fresh and connection.execute(_RESERVE_KEY, fresh).rowcount < len(fresh):
                raise _Undone
            lapsed = [key for key in known if found[key].state in {"new", "abandoned"}]
            if lapsed:
                taken = [_taken_columns(rows[key], found[key]) for key in lapsed]
                connection.execute(_TAKE_KEY, taken)
            return found
        return None

    def settle_keys(
        self, email_domain: str, at: float, answers: Mapping[str, Mapping[str, Any] | None]
    ) -> None:
        """Keep the answer for requests that repeat a key, or forget the key if there is None.

        at: when the keys were reserved. Nothing is done with one whose reservation has lapsed and
        that another request has now.
        """
        for some in _in_parts(sorted(answers.items())):
            ended, freed = [], []
            for key, answer in some:
                reservation = {"of_domain": email_domain, "of_key": key, "since": at}
                if answer is None:  # its message was surely not sent
                    freed.append(reservation)
                else:
                    ended.append({**reservation, "answer": json.dumps(answer)})
            if ended:
                self._write(_STORE_ANSWER, ended)
            if freed:
                self._write(_FREE_KEY, freed)

    # Wrong keys

    def count_wrong_keys(
        self, address: str, now: float, more: int, seconds: float
    ) -> tuple[float, int]:
        """Count `more` wrong keys from `address`; returns since when how many came.

        seconds: after which it begins anew; before it, too, where the clock was set back.
        """
        row = {"address": address, "at": now, "number": more}
        row |= {"since": now - seconds, "until": now + seconds}
        (found,) = self._write(_COUNT_WRONG_KEYS, [row]).rows
        self._remove_when_due(now)
        return found.at, found.number

    # Secrets

    def secret(self, name: str) -> str:
        """A secret that all workers share, made at random when it is first asked for."""
        known = self._known_secret(name)
        if known is None:
            made = {"name": name, "value": secrets.token_urlsafe(32)}
            self._write(_ADD_SECRET, [made])  # unless another worker was first
            known = self._known_secret(name)
        return str(known)

    def _known_secret(self, name: str) -> str | None:
        with self._statement() as connection:
            return connection.execute(_SECRET, {"name": name}).scalar()

    # All of it

    def _remove_when_due(self, now: float) -> None:
        if now >= self._next_removal:
            self._next_removal = now + REMOVE_EVERY_SECONDS  # in each worker
            if self.remove_old(now):
                self._next_removal = now + 1

    def remove_old(self, now: float) -> bool:
        """Remove some of what is older than it is to be kept; returns whether there may be more.

        Some, since nobody else can write meanwhile, and a message waits for it.
        """
        before = now - self._keep_seconds
        removed = [
            self._remove_some(_keys, now - KEEP_KEY_SECONDS),
            self._remove_some(_wrong_keys, now - KEEP_WRONG_KEYS_SECONDS),
            self._remove_some(_changes, before),
            self._remove_messages(before),
        ]
        return True in removed

    def _remove_messages(self, before: float) -> bool:
        """Their recipients go with them, of which one may have a thousand."""
        query = _SIZES.where(_messages.c.at < before).order_by(_messages.c.at)
        with self._statement() as connection:
            old = connection.execute(query.limit(REMOVED_AT_ONCE)).all()
        parts = list(_in_parts(old, _rows_of))
        for some in parts[:REMOVED_PARTS]:
            self._write(_REMOVE_MESSAGES, [{"ids": [row.message_id for row in some]}])
        return len(old) == REMOVED_AT_ONCE or len(parts) > REMOVED_PARTS

    def _remove_some(self, table: Table, before: float) -> bool:
        key = tuple_(*table.primary_key.columns)
        old = select(*table.primary_key.columns).where(table.c.at < before).limit(REMOVED_AT_ONCE)
        return self._write(delete(table).where(key.in_(old)), [{}]).number == REMOVED_AT_ONCE

    def _migrate(self, *, patiently: bool = False) -> None:
        """Bring the schema up to date; of several that start at once, one does, the others wait.

        patiently: whether the steps may take as long as a big table needs. No message may wait so.
        """
        with self._migrating(patiently=patiently) as (connection, done):
            is_new = not done
            self._long_steps = []
            for number, step in enumerate(MIGRATIONS, 1):
                if number in done:
                    continue
                if isinstance(step, LongStep):
                    if not is_new:
                        self._long_steps.append((number, step))
                        continue
                else:
                    step(connection)
                connection.execute(insert(_schema).values(version=number))
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
                connection.execute(insert(_schema).values(version=number))
            return place, place is None

    @contextmanager
    def _migrating(self, *, patiently: bool = False) -> Iterator[tuple[Connection, set[int]]]:
        """A transaction to change the schema in, and the numbers of the steps that are done."""
        with self._answering(writes=True), self._begun() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(0x6D61696C)))
                if patiently:
                    _lift_limits(connection)
            _schema.create(connection, checkfirst=True)
            yield connection, set(connection.execute(select(_schema.c.version)).scalars())

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
        with self._answering(writes=True):
            if words := self._file.open():
                logger.error("%s", words)
                self._is_migrated = False

    @contextmanager
    def _statement(self) -> Iterator[Connection]:
        """For single statements that read."""
        self._ensure_schema(writes=False)
        with self._answering(writes=False), self._autocommit.connect() as connection:
            yield connection

    def _write(self, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> _Written:
        """Carry out a statement that writes, in a transaction of its own, for one row or several.

        For one that is without the cost of a transaction, and of SQLite's turns: it takes none.
        """
        if len(rows) > 1:
            with self._transaction() as connection:
                return _written(connection, statement, rows)
        self._ensure_schema()
        started = time.monotonic()
        with self._answering(writes=True):
            while True:
                is_last = time.monotonic() >= started + WAIT_SECONDS
                with passing_over_a_lock(is_last=is_last), self._autocommit.connect() as connection:
                    written = _written(connection, statement, rows)
                    if time.monotonic() > started + LONG_SECONDS:  # it may have waited
                        self._refuse_if_moved(connection)
                    return written

    def _refuse_if_moved(self, connection: Connection) -> None:
        """What is written into a file that is gone, nobody finds."""
        if self._file and not self._file.is_what_has_open(connection):
            raise StoreUnavailable("The state database has just been deleted or replaced.")

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A transaction that has the right to write from its beginning."""
        self._ensure_schema()
        with self._answering(writes=True), self._begun() as connection:
            yield connection

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        if self._turns is None:
            with self._engine.begin() as connection:
                yield connection
        else:
            # The turn comes first: who waits for it holds no connection that others could use.
            with (
                self._turns.turn(WAIT_SECONDS),
                self._engine.connect() as connection,
                begun(connection, WAIT_SECONDS),
            ):
                self._refuse_if_moved(connection)
                yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """For who looks at the log, however long it takes, at nobody's cost but their own.

        Raises SearchTooSlow, and StoreUnavailable.
        """
        self._ensure_schema()
        now = time.monotonic()
        if now < max(self._away_until[False], self._log_away_until):
            raise StoreUnavailable("The state database does not answer.")
        try:
            with self._log.connect() as connection:
                connection.info["until"] = time.monotonic() + LOG_SECONDS
                yield connection
        except UNAVAILABLE as error:
            if isinstance(error, PoolTimeoutError) or _was_stopped(error):
                raise SearchTooSlow from error
            self._log_away_until = time.monotonic() + AWAY_SECONDS
            self._is_migrated = False  # it may come back empty
            raise StoreUnavailable("The state database does not answer.") from error

    @contextmanager
    def _answering(self, *, writes: bool) -> Iterator[None]:
        """The one place where SQLAlchemy's errors become ours."""
        if time.monotonic() < self._away_until[writes]:
            raise StoreUnavailable("The state database does not answer.")
        try:
            yield
        except IntegrityError:  # another node was first: the caller's to settle
            raise
        except PoolTimeoutError as error:  # many at once, which is no outage
            raise StoreUnavailable("Too many ask the state database at once.") from error
        except UNAVAILABLE as error:
            away_until = time.monotonic() + AWAY_SECONDS
            self._away_until[True] = away_until
            if not writes or _is_out_of_reach(error):  # no mere lock of another writer
                self._away_until[False] = away_until
                self._is_migrated = False  # it may come back empty
            raise StoreUnavailable("The state database does not answer.") from error


class _Written(NamedTuple):
    """How many rows were written, and those that were asked back."""

    number: int
    rows: Sequence[Row[Any]]


def _written(
    connection: Connection, statement: Executable, rows: Sequence[Mapping[str, Any]]
) -> _Written:
    result = connection.execute(statement, rows)
    return _Written(result.rowcount, result.all() if result.returns_rows else ())


UNAVAILABLE: Final = (DatabaseError, InterfaceError, PoolTimeoutError, sqlite3.Error, OSError)
"""What is raised where the database is away, full, locked, damaged or read-only."""


def _was_stopped(error: Exception) -> bool:
    """Whether a statement was taking too long, which says nothing of the database."""
    if not isinstance(error, DBAPIError):
        return False
    return isinstance(error.orig, psycopg.errors.QueryCanceled) or str(error.orig) == INTERRUPTED


def _is_out_of_reach(error: Exception) -> bool:
    """Whether there is no connection to the database, for any purpose; not so if it is locked."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or error.statement is None


def _state(row: Row[Any]) -> ServiceState:
    return ServiceState(
        Health(**{column.name: getattr(row, column.name) for column in fields(Health)}),
        Drill(**json.loads(row.drill)) if row.drill else None,
        tuple(json.loads(row.last_errors)),
    )


def _columns(state: ServiceState) -> dict[str, Any]:
    return {
        **asdict(state.health),
        "drill": json.dumps(asdict(state.drill)) if state.drill else None,
        "last_errors": json.dumps(list(state.last_errors[:KEPT_ERRORS])),
    }


def _key_columns(email_domain: str, key: str, fingerprint: str) -> dict[str, Any]:
    return {
        "email_domain": email_domain,
        "key": key,
        "fingerprint": fingerprint,
        "answer": None,
    }


def _taken_columns(row: Mapping[str, Any], before: Reservation) -> dict[str, Any]:
    """The same reservation for a key that another request had."""
    values = {name: value for name, value in row.items() if name not in {"email_domain", "key"}}
    if before.message:
        values["message_id"], values["message_at"] = before.message
    return {"of_domain": row["email_domain"], "of_key": row["key"], **values}


def _bound(connection: Connection, rows: Iterable[Row[Any]], now: float, until: float) -> None:
    """Have reservations of a clock that was ahead, and has been set back, last until then at most.

    They may be of requests that are still in progress, so that they do not end at once.
    """
    for row in rows:
        if row.at > now + SKEW_SECONDS and row.answer is None and row.reserved_until > until:
            name = {"of_domain": row.email_domain, "of_key": row.key}
            connection.execute(_BOUND_KEY, {**name, "reserved_until": until})


def _reservation(row: Row[Any], fingerprint: str, now: float) -> Reservation:
    """What the row of an Idempotency-Key means for a request with it."""
    if now - row.at > KEEP_KEY_SECONDS:
        return Reservation("new")
    if row.fingerprint != fingerprint:
        return Reservation("other")
    if row.answer is not None:
        return Reservation("done", json.loads(row.answer))
    if now < row.reserved_until:
        return Reservation("in progress")
    # A row of a version before has no message.
    message = (row.message_id, row.message_at) if row.message_id else None
    return Reservation("abandoned", message=message)


def _message_columns(message: LoggedMessage) -> dict[str, Any]:
    return {
        **vars(message),
        "recipients": "\n" + "\n".join(message.recipients) + "\n",
        "attempts": json.dumps(list(message.attempts)),
    }


def _outcome_columns(message: LoggedMessage) -> dict[str, Any]:
    columns = _message_columns(message)
    return {
        "of_message": message.message_id,
        "of_deadline": message.deadline,
        **{name: columns[name] for name in _OUTCOME_COLUMNS},
    }


_SIZES: Final = select(_messages.c.at, _messages.c.message_id, _messages.c.recipients)
"""What it takes to know how many rows messages have in the log, and where they are."""


def _rows_of(message: Any) -> int:
    """How many rows a message has in the log, be it a LoggedMessage or a row of _SIZES."""
    recipients = message.recipients
    return 1 + (recipients.count("\n") - 1 if isinstance(recipients, str) else len(recipients))


def _in_parts(
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


def _message(row: Row[Any], now: float) -> LoggedMessage:
    columns = {column.name: getattr(row, column.name) for column in fields(LoggedMessage)}
    columns["recipients"] = row.recipients.strip("\n").split("\n")
    # Those of a version before have no code.
    columns["attempts"] = tuple({"code": "", **tried} for tried in json.loads(row.attempts))
    message = LoggedMessage(**columns)
    cut_off = message.outcome == IN_PROGRESS and message.deadline < now
    return replace(message, outcome=UNKNOWN) if cut_off else message


@dataclass(frozen=True)
class _Bounds:
    """Between which times messages are wanted. before: the place at which the page before ended."""

    since: float | None = None
    until: float | None = None
    before: Place | None = None

    def applied(self, query: Select[Any], table: Table) -> Select[Any]:
        at = table.c.at
        if self.since is not None:
            query = query.where(at >= self.since)
        if self.until is not None:
            query = query.where(at < self.until)
        if self.before:
            time_, id_ = self.before
            earlier = or_(at < time_, and_(at == time_, table.c.message_id < id_))
            query = query.where(at <= time_, earlier)  # the first for the index
        return query


def _newest_first(table: Table) -> list[ColumnElement[Any]]:
    return [table.c.at.desc(), table.c.message_id.desc()]


def _is_to(email_domain: str, recipient: str) -> ColumnElement[bool]:
    """Whether a row of the recipients is of that address, or has that part of one."""
    table = _recipients.c
    is_it = table.address == recipient
    if not _WHOLE_ADDRESS.fullmatch(recipient):
        is_it = table.address.contains(recipient, autoescape=True)
    return and_(table.email_domain == email_domain, is_it)


_WHOLE_ADDRESS: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")


def _found_by_recipient(
    connection: Connection,
    query: Select[Any],
    to: ColumnElement[bool],
    bounds: _Bounds,
    limit: int,
) -> list[Row[Any]]:
    """The newest messages of `query` within `bounds` that have such a recipient.

    No join, of which a database may think that it is best begun at the other end: the recipients
    are gone through from the newest on, a larger part of them each time, until enough of their
    messages are in `query`.
    """
    found: list[Row[Any]] = []
    number = 4 * limit
    while True:
        candidates = select(_recipients.c.at, _recipients.c.message_id).where(to)
        candidates = bounds.applied(candidates, _recipients).order_by(*_newest_first(_recipients))
        some = connection.execute(candidates.limit(number)).all()
        if some:
            ids = {row.message_id for row in some}
            found += connection.execute(query.where(_messages.c.message_id.in_(ids))).all()
        if len(found) >= limit or len(some) < number:
            return found[:limit]
        if time.monotonic() > connection.info["until"]:
            raise SearchTooSlow
        bounds = replace(bounds, before=(some[-1].at, some[-1].message_id))
        number = min(4 * number, MOST_CANDIDATES)


def _with_outcome(query: Select[Any], outcome: str | None, now: float) -> Select[Any]:
    """Only messages of that outcome, where one that was cut off counts as unknown."""
    table = _messages.c
    cut_off = and_(table.outcome == IN_PROGRESS, table.deadline < now)
    if outcome == UNKNOWN:
        return query.where(or_(table.outcome == UNKNOWN, cut_off))
    if outcome == IN_PROGRESS:
        return query.where(table.outcome == IN_PROGRESS, table.deadline >= now)
    return query.where(table.outcome == outcome) if outcome else query


def _make_engine(url: str) -> Engine:
    """For messages, of which none may wait for long."""
    engine = _connected(url, CONNECTIONS, _POSTGRESQL)
    if engine.driver == "psycopg":
        event.listen(engine, "do_connect", _connect_to_postgresql)
    return engine


def _make_log_engine(url: str) -> Engine:
    """For those who look at the log: they write nothing, and may wait."""
    engine = _connected(url, LOG_CONNECTIONS, {**_POSTGRESQL, "options": _LOG_OPTIONS})
    if engine.driver == "psycopg":
        event.listen(engine, "do_connect", _connect_for_the_log)
    elif engine.dialect.name == "sqlite":
        event.listen(engine, "connect", prepare_for_the_log)
    return engine


def _connected(url: str, pool: Mapping[str, Any], on_postgresql: Mapping[str, Any]) -> Engine:
    """An engine, with what holds for all. Raises ConfigError for a URL that can be none."""
    options: dict[str, Any] = {"hide_parameters": True, **pool}  # no value in any log
    if url.startswith("postgres"):
        options["connect_args"] = on_postgresql
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


class _PostgreSQL(psycopg.Connection[Any]):
    """A connection on which nobody waits for long, not even for a server that is frozen.

    The server's own timeouts are of no use then, and TCP's neither: its kernel still acknowledges.
    """

    silence_seconds: float | None = SILENCE_SECONDS

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        try:
            return super().wait(gen, interval, self.silence_seconds if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.info.transaction_status == TransactionStatus.ACTIVE:
                self.close()  # the answer still to come is nobody's; nor is a rollback waited for
            raise


def _connect_to_postgresql(
    _dialect: Any, _record: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> _PostgreSQL:
    return _PostgreSQL.connect(*arguments, **options)


def _connect_for_the_log(
    dialect: Any, record: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> _PostgreSQL:
    connection = _connect_to_postgresql(dialect, record, arguments, options)
    connection.silence_seconds = LOG_SECONDS + 0.5
    return connection


def _note_the_time(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["returned_at"] = time.monotonic()


def _replace_if_stale(connection: _PostgreSQL, record: ConnectionPoolEntry, _proxy: Any) -> None:
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


def _lift_limits(connection: Connection) -> None:
    """Let PostgreSQL take its time; the connection is closed afterwards."""
    driver_connection = connection.connection.driver_connection
    connection.detach()
    if isinstance(driver_connection, _PostgreSQL):
        driver_connection.silence_seconds = None
    connection.exec_driver_sql("SET statement_timeout = 0")


_POSTGRESQL: Final = {
    "connect_timeout": WAIT_SECONDS,
    "tcp_user_timeout": WAIT_SECONDS * 1000,  # a server that is gone without a word
    "options": f"-c statement_timeout={WAIT_SECONDS * 1000}",
}

_LOG_OPTIONS: Final = (
    f"-c statement_timeout={LOG_SECONDS * 1000}"
    " -c default_transaction_read_only=on"
    " -c max_parallel_workers_per_gather=0"  # one search takes one processor
)


def _path_of(engine: Engine) -> str | None:
    """The file of an SQLite database that has one."""
    path = engine.url.database if engine.dialect.name == "sqlite" else None
    return None if not path or path == ":memory:" or path.startswith("file:") else path


def _make_autocommit(engine: Engine) -> Engine:
    """The same connections, where each statement is a transaction of its own."""
    if engine.dialect.name == "sqlite":
        return engine  # it is so there, until we begin one
    return engine.execution_options(isolation_level="AUTOCOMMIT")
