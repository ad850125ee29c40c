"""The log of messages; never a body."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    case,
    delete,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from email_services.exceptions import UNKNOWN
from email_services.store.database import CHANGED_AT_ONCE, Database, Place, in_parts
from email_services.store.schema import DEFAULT_STREAM, MESSAGES

IN_PROGRESS: Final = "in progress"
QUEUED: Final = "queued"
EXPIRED: Final = "expired"
CANCELLED: Final = "cancelled"

REMOVED_PARTS: Final = 25
"""Transactions for messages with their recipients, of which one may have a thousand."""

# What every message asks is made once: making a statement costs more than carrying it out.
OUTCOME_COLUMNS: Final = (
    "outcome",
    "service_used",
    "service_message_id",
    "possible_duplicate",
    "attempts",
)
_NEW_MESSAGE: Final = postgresql.insert(MESSAGES)
# There is one already where a request takes over what was cut off.
LOG_MESSAGE: Final = _NEW_MESSAGE.on_conflict_do_update(
    index_elements=[MESSAGES.c.message_id],
    set_={name: _NEW_MESSAGE.excluded[name] for name in (*OUTCOME_COLUMNS, "deadline")},
)
_LOG_OUTCOME: Final = update(MESSAGES).where(
    MESSAGES.c.message_id == bindparam("of_message"),
    # One that comes late changes nothing of what became of it since another has taken it over.
    or_(MESSAGES.c.deadline == bindparam("of_deadline"), MESSAGES.c.outcome == IN_PROGRESS),
)
_REMOVE_MESSAGES: Final = delete(MESSAGES).where(
    MESSAGES.c.message_id.in_(bindparam("ids", expanding=True))
)

SIZES: Final = select(MESSAGES.c.at, MESSAGES.c.message_id, MESSAGES.c.recipients)
"""What it takes to know how many rows messages have in the log, and where they are."""


@dataclass(frozen=True)
class LoggedMessage:
    """A row of the message log; never a body.

    outcome: "sent", "not sent", "unknown" or "in progress"; of one that was put into the queue also
    "queued", "expired" or "cancelled". recipients: addresses in lower case, to, then cc, then bcc.
    names: of those who have one. cc_from, bcc_from: where among the recipients these begin; None in
    what a version before has logged, which did not know.
    kept_back: those of the recipients whom it was kept from. redirected_to: who got it instead.
    again_of: the message that it sends again.
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
    from_name: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    cc_from: int | None = None
    bcc_from: int | None = None
    tags: Sequence[str] = ()
    stream: str = DEFAULT_STREAM
    kept_back: Sequence[str] = ()
    redirected_to: str | None = None
    again_of: str | None = None


class Messages(Database):
    """The log of messages."""

    def log_messages(self, messages: Sequence[LoggedMessage]) -> None:
        """Write that the messages are about to be tried."""
        for some in in_parts(messages, rows_of):
            rows = [message_columns(message) for message in some]
            self._write(LOG_MESSAGE, rows, sum(map(rows_of, some)))
        self.remove_when_due(messages[0].at)

    def log_outcomes(self, messages: Sequence[LoggedMessage]) -> None:
        """Write what became of them, also where their beginning could not be written."""
        for some in in_parts(messages, rows_of):
            outcomes = [_outcome_columns(message) for message in some]
            if self._write(_LOG_OUTCOME, outcomes).numbers[0] < len(some):
                self._log_lost(some)

    def _log_lost(self, messages: Sequence[LoggedMessage]) -> None:
        """Log those of the messages that are not in the log."""
        id_ = MESSAGES.c.message_id
        with self._statement() as connection:
            found = select(id_).where(id_.in_([message.message_id for message in messages]))
            known = set(connection.execute(found).scalars())
        if lost := [message for message in messages if message.message_id not in known]:
            self._write(LOG_MESSAGE, [message_columns(message) for message in lost])

    def remove_old(self, now: float) -> bool:
        """See Database."""
        more = self._remove_messages(now - self._keep_seconds)
        return super().remove_old(now) or more

    def _remove_messages(self, before: float) -> bool:
        """Their recipients go with them, of which one may have a thousand."""
        is_over = MESSAGES.c.outcome != QUEUED  # what waits is ours, however long that is
        query = SIZES.where(MESSAGES.c.at < before, is_over).order_by(MESSAGES.c.at)
        with self._statement() as connection:
            old = connection.execute(query.limit(CHANGED_AT_ONCE)).all()
        parts = list(in_parts(old, rows_of))
        for some in parts[:REMOVED_PARTS]:
            with self._transaction() as connection:
                connection.execute(_REMOVE_MESSAGES, {"ids": [row.message_id for row in some]})
        return len(old) == CHANGED_AT_ONCE or len(parts) > REMOVED_PARTS


@dataclass(frozen=True)
class Bounds:
    """Between which times messages are wanted.

    before: the place at which the page before ended. down_to: the last place that is wanted.
    """

    since: float | None = None
    until: float | None = None
    before: Place | None = None
    down_to: Place | None = None

    def applied(self, query: Select[Any], table: Table) -> Select[Any]:
        """`query`, of the messages or their recipients, within these bounds."""
        at = table.c.at
        if self.since is not None:
            query = query.where(at >= self.since)
        if self.until is not None:
            query = query.where(at < self.until)
        if self.before:
            time_, id_ = self.before
            earlier = or_(at < time_, and_(at == time_, table.c.message_id < id_))
            query = query.where(at <= time_, earlier)  # the first for the index
        if self.down_to:
            time_, id_ = self.down_to
            later = or_(at > time_, and_(at == time_, table.c.message_id >= id_))
            query = query.where(at >= time_, later)
        return query


def newest_first(table: Table) -> list[ColumnElement[Any]]:
    """The order of messages, or of their recipients."""
    return [table.c.at.desc(), table.c.message_id.desc()]


def rows_of(message: Any) -> int:
    """How many rows a message has in the log, be it a LoggedMessage or a row of SIZES."""
    recipients = message.recipients
    return 1 + (recipients.count("\n") - 1 if isinstance(recipients, str) else len(recipients))


def message_columns(message: LoggedMessage) -> dict[str, Any]:
    """For LOG_MESSAGE."""
    return {
        **vars(message),
        "recipients": _lines(message.recipients),
        "attempts": json.dumps(list(message.attempts)),
        "names": json.dumps(message.names) if message.names else None,
        "tags": _lines(message.tags) if message.tags else None,
        "kept_back": _lines(message.kept_back) if message.kept_back else None,
    }


def _lines(words: Sequence[str]) -> str:
    """The words, each between two line breaks."""
    return "\n" + "\n".join(words) + "\n"


def _outcome_columns(message: LoggedMessage) -> dict[str, Any]:
    columns = message_columns(message)
    return {
        "of_message": message.message_id,
        "of_deadline": message.deadline,
        **{name: columns[name] for name in OUTCOME_COLUMNS},
    }


def logged_message(row: Row[Any]) -> LoggedMessage:
    """A row of the log."""
    columns = {column.name: getattr(row, column.name) for column in fields(LoggedMessage)}
    columns["recipients"] = row.recipients.strip("\n").split("\n")
    attempts = json.loads(row.attempts)
    # Those of a version before have no code.
    columns["attempts"] = tuple({**tried, "code": tried.get("code", "")} for tried in attempts)
    columns["from_name"] = row.from_name or ""
    columns["names"] = json.loads(row.names or "{}")
    columns["tags"] = tuple((row.tags or "").strip("\n").splitlines())
    columns["kept_back"] = tuple((row.kept_back or "").strip("\n").splitlines())
    return LoggedMessage(**columns)


def is_cut_off(deadline: Any, now: float) -> Any:
    """Whether what is still in progress never ends: its worker is gone. The one rule for that.

    deadline: until when it may take, as a number or, for SQL, a column.
    """
    return deadline <= now


def became(now: float) -> ColumnElement[str]:
    """The outcome of a message, where one that was cut off is unknown."""
    cut_off = and_(MESSAGES.c.outcome == IN_PROGRESS, is_cut_off(MESSAGES.c.deadline, now))
    return case((cut_off, UNKNOWN), else_=MESSAGES.c.outcome)
