"""What waits to be sent: put there with its message, taken by who delivers it, and ended.

A message that waits has a row here, and its bodies only as long. Who takes it writes a claim into
the row, and no result counts that is not of the claim which is there. `due` is when it may be taken
next; a claim moves that to its own end, so that what a dead process had is due again by itself.

What a message holds is beside that, in parts. Those of a large one are written ahead and removed
afterwards, each in a transaction of its own: nobody waits for 20 MB to be written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql

from email_services.exceptions import UNKNOWN, StoreUnavailable
from email_services.health import SKEW_SECONDS
from email_services.store.database import (
    CHANGED_AT_ONCE,
    PART_BYTES,
    WRITTEN_AT_ONCE,
    Database,
    in_parts,
    parts_of,
)
from email_services.store.keys import STORE_ANSWER, answer_columns
from email_services.store.messages import (
    CANCELLED,
    EXPIRED,
    LOG_MESSAGE,
    LoggedMessage,
    logged_message,
    message_columns,
    rows_of,
)
from email_services.store.notices import CHANNEL, Quiet, listen
from email_services.store.schema import DEFAULT_STREAM, MESSAGES, OUTBOX, PAUSED, PAYLOADS

_IS_IT: Final = OUTBOX.c.message_id == bindparam("of_message")
_IS_CLAIMED: Final = and_(_IS_IT, OUTBOX.c.claim == bindparam("of_claim"))
_IS_OF_CLAIM: Final = and_(
    MESSAGES.c.message_id == bindparam("of_message"),
    exists().where(_IS_CLAIMED),
)
_PUT: Final = postgresql.insert(OUTBOX).on_conflict_do_nothing()  # SQLite has the same words
_NEW_PART: Final = postgresql.insert(PAYLOADS)
_PUT_PART: Final = _NEW_PART.on_conflict_do_update(
    index_elements=PAYLOADS.primary_key.columns, set_={"ahead": _NEW_PART.excluded.ahead}
)
_LOG_IF_NEW: Final = (
    postgresql.insert(MESSAGES).on_conflict_do_nothing().returning(MESSAGES.c.message_id)
)
_CHANGE: Final = update(OUTBOX).where(_IS_CLAIMED)
_TAKE_OUT: Final = delete(OUTBOX).where(_IS_CLAIMED)
_LOG: Final = update(MESSAGES).where(_IS_OF_CLAIM)
_PAYLOAD: Final = (
    select(PAYLOADS.c.content)
    .join(OUTBOX, OUTBOX.c.message_id == PAYLOADS.c.message_id)
    .where(_IS_IT)
    .order_by(PAYLOADS.c.part)
)
_IS_NOBODYS: Final = ~exists().where(OUTBOX.c.message_id == PAYLOADS.c.message_id)
_NEXT_DUE: Final = select(func.min(OUTBOX.c.due).label("due")).where(
    OUTBOX.c.email_domain == bindparam("email_domain"), OUTBOX.c.stream == bindparam("stream")
)
_NOTIFY: Final = select(func.pg_notify(CHANNEL, bindparam("payload")))
_OLDEST: Final = select(func.min(OUTBOX.c.ready_at).label("ready_at"))
_PAUSED: Final = select(PAUSED).where(PAUSED.c.email_domain == bindparam("email_domain"))

LISTEN_SECONDS: Final = 1.0
TAKEN_IN: Final = 1000
"""Rows in one transaction, of messages that nobody waits for."""

ROW_BYTES: Final = 16 * 1024
"""Of a payload that count as a row: to write them takes about as long, and others wait as long."""

FEW_PARTS: Final = 4
"""What has no more is written with its row, and removed with it, by the database itself."""

ABANDONED_SECONDS: Final = 3600
"""After which parts belong to no message that is still to be put here."""

FORGOTTEN_SECONDS: Final = 3600
"""After which nobody will say of a message that it has expired, whose domain is no more."""


@dataclass(frozen=True)
class Waiting:
    """A message on its way into the outbox.

    logged: its row in the log. service: the only one that it may go through, or None. payload: the
    message itself, for whoever delivers it. ready_at: since when it may be sent. due: when it is to
    be tried. expires: when it is not to be sent any more. tries: those that it has behind it.
    key: its Idempotency-Key, if it has one. answer: to who repeats that.
    """

    logged: LoggedMessage
    payload: bytes
    ready_at: float
    due: float
    expires: float
    service: str | None = None
    tries: int = 0
    key: str | None = None
    answer: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Claimed:
    """A message that was taken, to be delivered.

    attempts: those before. handing_to: the service that whoever had it before was handing it to.
    """

    message_id: str
    stream: str
    service: str | None
    payload: bytes
    ready_at: float
    expires: float
    tries: int
    attempts: Sequence[Mapping[str, Any]]
    handing_to: str | None


@dataclass(frozen=True)
class Again:
    """A message that is to be tried again.

    due: when. tries: those that it has behind it. attempts: all so far.
    """

    message_id: str
    due: float
    tries: int
    attempts: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Ended:
    """What became of a message; nothing follows.

    outcome: "sent", "not sent", "unknown" or "expired". attempts: all, in order.
    """

    message_id: str
    outcome: str
    attempts: Sequence[Mapping[str, Any]]
    service_used: str | None = None
    service_message_id: str | None = None
    possible_duplicate: bool = False


@dataclass(frozen=True)
class Depth:
    """How much waits in a stream of a domain.

    waiting: messages that could be sent now. scheduled: those whose time has not come. retrying:
    those that have been tried. oldest_seconds: for how long the first of them waits, or None.
    """

    waiting: int = 0
    scheduled: int = 0
    retrying: int = 0
    oldest_seconds: float | None = None


class Outbox(Database):
    """The messages that wait."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._listeners: list[Callable[[str, str], None]] = []
        self._quiet = Quiet()
        self.skew_seconds = 0.0 if self._turns else SKEW_SECONDS
        """By how much the clocks of those who share this may differ; SQLite is on one machine."""

    def when_put(self, listener: Callable[[str, str], None]) -> None:
        """Have it called with the domain and the stream where this process has put messages."""
        self._listeners.append(listener)

    def no_longer_when_put(self, listener: Callable[[str, str], None]) -> None:
        """End that."""
        self._listeners.remove(listener)

    # Taking messages in

    def put(self, messages: Sequence[Waiting], reserved_at: float) -> list[bool | None]:
        """Take the messages: what is here when this returns is on the disk, each whole.

        reserved_at: when their keys were reserved. Returns of each whether it is here, None where
        the database did not say. Raises StoreUnavailable where none is.
        """
        taken: list[bool | None] = []
        for some in in_parts(messages, _weight):
            write = self._prepared(
                [
                    (LOG_MESSAGE, [message_columns(message.logged) for message in some]),
                    (_PUT, [_outbox_columns(message) for message in some]),
                    (_PUT_PART, [part for m in some if not _is_large(m) for part in _parts(m)]),
                    (STORE_ANSWER, [_answer(m, reserved_at) for m in some if m.key is not None]),
                ],
                sum(map(_weight, some)),
                is_durable=True,
            )
            try:
                self._write_ahead(some, reserved_at)
                self._carry_out(write)
            except StoreUnavailable:
                if not (taken or write.is_doubtful):
                    raise
                taken += [None if write.is_doubtful else False] * len(some)
                return taken + [False] * (len(messages) - len(taken))
            taken += [True] * len(some)
            self._say({(m.logged.email_domain, m.logged.stream) for m in some})
        return taken

    def _write_ahead(self, messages: Sequence[Waiting], now: float) -> None:
        """Have the parts of large ones on the disk."""
        for message in filter(_is_large, messages):
            for part in _parts(message):
                row = {**part, "ahead": now}
                weight = 1 + PART_BYTES // ROW_BYTES
                self._write_all([(_PUT_PART, [row])], weight, is_durable=True)

    def take_in(self, messages: Sequence[Waiting], now: float) -> None:
        """Take messages that another queue held, each once.

        now: the time, in seconds since the epoch.
        One that was here before, and may be sent by now, is left as it is. What is here when this
        returns is on the disk. Raises StoreUnavailable, and may then be called again.
        """
        for some in in_parts(messages, _weight, TAKEN_IN):
            self._write_ahead(some, now)
            once = {message.logged.message_id: message for message in some}
            rows = [message_columns(message.logged) for message in once.values()]
            with self._transaction(is_durable=True) as connection:
                new = set(connection.execute(_LOG_IF_NEW, rows).scalars())
                if new:
                    taken = [once[id_] for id_ in sorted(new)]
                    connection.execute(_PUT, [_outbox_columns(message) for message in taken])
                    parts = [part for m in taken if not _is_large(m) for part in _parts(m)]
                    connection.execute(_PUT_PART, parts) if parts else None
            self._say({(m.logged.email_domain, m.logged.stream) for m in some})

    def _say(self, lanes: Collection[tuple[str, str]]) -> None:
        """Have somebody look there: here, or where nobody listens in this process, elsewhere."""
        for lane in lanes:
            for listener in self._listeners:
                listener(*lane)
            if not self._listeners and not self._turns and self._quiet.is_due(lane):
                with suppress(StoreUnavailable):
                    self._read(_NOTIFY, {"payload": " ".join(lane)})

    def listen(self, is_over: Callable[[], bool]) -> None:
        """Pass on what other processes say, until it is over; where the database has that."""
        if not self._turns:
            listen(self._url, self._tell, is_over, LISTEN_SECONDS)

    def _tell(self, email_domain: str, stream: str) -> None:
        for listener in self._listeners:
            listener(email_domain, stream)

    # Taking messages out

    def next_due(self, email_domain: str, stream: str) -> float | None:
        """When the first message of the stream may be taken; None where nothing waits."""
        (row,) = self._read(_NEXT_DUE, {"email_domain": email_domain, "stream": stream})
        due: float | None = row["due"]
        return due

    def claim(
        self,
        email_domain: str,
        stream: str,
        claim: str,
        now: float,
        until: float,
        *,
        limit: int,
        max_bytes: int,
        expiring_by: float | None = None,
    ) -> list[Claimed]:
        """Take messages that are due, those that have been for longest first.

        claim: whose they are then, until that time. max_bytes: of their payloads together, where
        there are several. expiring_by: only those that expire by then.
        """
        due = (
            select(OUTBOX.c.message_id, OUTBOX.c.size)
            .where(_is_in(email_domain, stream), OUTBOX.c.due <= now)
            .order_by(OUTBOX.c.due)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        if expiring_by is not None:
            due = due.where(OUTBOX.c.expires <= expiring_by)
        with self._transaction() as connection:
            ids = _first(connection.execute(due).all(), max_bytes)
            if not ids:
                return []
            those = OUTBOX.c.message_id.in_(ids)
            connection.execute(update(OUTBOX).where(those).values(claim=claim, due=until))
        with self._statement() as connection:  # nobody waits to write while payloads are read
            found = connection.execute(
                select(OUTBOX, MESSAGES.c.attempts)
                .outerjoin(MESSAGES, MESSAGES.c.message_id == OUTBOX.c.message_id)
                .where(those, OUTBOX.c.claim == claim)
                .order_by(OUTBOX.c.ready_at)
            ).all()
            payloads: dict[str, bytearray] = {}
            parts = select(PAYLOADS.c.message_id, PAYLOADS.c.content)
            mine = PAYLOADS.c.message_id.in_(ids)
            for part in connection.execute(parts.where(mine).order_by(PAYLOADS.c.part)):
                payloads.setdefault(part.message_id, bytearray()).extend(part.content)
            return [_claimed(row, bytes(payloads.pop(row.message_id, b""))) for row in found]

    def hand_over(
        self, claim: str, message_ids: Sequence[str], service: str, until: float
    ) -> Collection[str]:
        """Note, on the disk, that the service may have these from now on; returns which.

        Others are not this claim's any more. until: when whoever has it counts as gone.
        """
        rows = [{**_of(claim, id_), "handing_to": service, "due": until} for id_ in message_ids]
        write = self._write_all([(_CHANGE, rows)], is_durable=True)
        if write.numbers[0] == len(rows):
            return message_ids
        with self._statement() as connection:
            query = select(OUTBOX.c.message_id).where(OUTBOX.c.claim == claim)
            ours = connection.execute(query.where(OUTBOX.c.message_id.in_(message_ids))).scalars()
            return set(ours)

    def note_cut_off(self, claim: str, attempts: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write what is known of messages that somebody who is gone was handing over, by id."""
        for some in in_parts(sorted(attempts.items())):
            logged = [{**_of(claim, id_), "attempts": json.dumps(all_)} for id_, all_ in some]
            nobody_has_it = [{**_of(claim, id_), "handing_to": None} for id_, _ in some]
            self._write_all([(_LOG, logged), (_CHANGE, nobody_has_it)], is_durable=True)

    def settle(self, claim: str, ended: Sequence[Ended], again: Sequence[Again] = ()) -> None:
        """Write what became of messages, and which are to be tried again.

        Of those that are not this claim's any more nothing is written.
        """
        for some in in_parts(ended):
            outcomes = [
                {
                    **_of(claim, message.message_id),
                    "outcome": message.outcome,
                    "service_used": message.service_used,
                    "service_message_id": message.service_message_id,
                    "possible_duplicate": message.possible_duplicate,
                    "attempts": json.dumps(list(message.attempts)),
                }
                for message in some
            ]
            those = [_of(claim, message.message_id) for message in some]
            self._write_all([(_LOG, outcomes), (_TAKE_OUT, those)])
            self._remove_rests([message.message_id for message in some])
        for later in in_parts(again):
            attempts = [
                {**_of(claim, message.message_id), "attempts": json.dumps(list(message.attempts))}
                for message in later
            ]
            rows = [
                {
                    **_of(claim, message.message_id),
                    "due": message.due,
                    "tries": message.tries,
                    "claim": None,
                    "handing_to": None,
                }
                for message in later
            ]
            self._write_all([(_LOG, attempts), (_CHANGE, rows)])

    def _remove_rests(self, message_ids: Sequence[str]) -> None:
        """Remove what is left of large messages that are not here any more, a few at a time.

        What became of them is written: where the database is away now, this is for the next sweep.
        """
        with suppress(StoreUnavailable):
            self._remove_parts(message_ids)

    def _remove_parts(self, message_ids: Sequence[str]) -> None:
        ours = and_(PAYLOADS.c.message_id.in_(message_ids), _IS_NOBODYS)
        while True:
            with self._statement() as connection:
                query = select(*PAYLOADS.primary_key.columns).where(ours).limit(FEW_PARTS)
                some = [tuple(row) for row in connection.execute(query)]
            if not some:
                return
            with self._transaction() as connection:
                those = tuple_(*PAYLOADS.primary_key.columns).in_(some)
                connection.execute(delete(PAYLOADS).where(those))

    def remove_abandoned(self, now: float) -> None:
        """Remove what was written ahead for messages that were never put here, or never removed."""
        old = PAYLOADS.c.ahead < now - ABANDONED_SECONDS
        query = select(PAYLOADS.c.message_id).where(old, _IS_NOBODYS).distinct()
        with self._statement() as connection:
            ids = connection.execute(query.limit(WRITTEN_AT_ONCE)).scalars().all()
        if ids:
            self._remove_rests(ids)

    def hasten(self, email_domain: str, stream: str, now: float) -> None:
        """Have those tried again at once that wait since they could not be sent."""
        waits = and_(
            _is_in(email_domain, stream),
            OUTBOX.c.claim.is_(None),
            OUTBOX.c.due > now,
            OUTBOX.c.ready_at <= now,
        )
        some = select(OUTBOX.c.message_id).where(waits).limit(CHANGED_AT_ONCE)
        hasty = (
            update(OUTBOX)
            .where(OUTBOX.c.message_id.in_(some.with_for_update(skip_locked=True)))
            .values(due=OUTBOX.c.ready_at)  # in the order that they came in
        )
        number = CHANGED_AT_ONCE
        while number == CHANGED_AT_ONCE:
            with self._transaction() as connection:
                number = connection.execute(hasty).rowcount

    def adopt(self, email_domain: str, streams: Collection[str]) -> None:
        """Have what waits in streams that are no more wait in the default one."""
        lost = and_(OUTBOX.c.email_domain == email_domain, OUTBOX.c.stream.not_in(streams))
        with self._transaction() as connection:
            connection.execute(update(OUTBOX).where(lost).values(stream=DEFAULT_STREAM))

    # What people do with what waits

    def cancel(self, email_domain: str, message_id: str, now: float) -> bool:
        """Take a message out that nobody has yet, for good; returns whether that was possible."""
        with self._transaction() as connection:
            taken = connection.execute(
                delete(OUTBOX).where(_is_free(email_domain, message_id, now))
            )
            if taken.rowcount:
                doubtful = MESSAGES.c.attempts.contains(f'"outcome": "{UNKNOWN}"')
                outcome = case((doubtful, UNKNOWN), else_=CANCELLED)
                connection.execute(
                    update(MESSAGES)
                    .where(MESSAGES.c.message_id == message_id)
                    .values(outcome=outcome)
                )
        if taken.rowcount:
            self._remove_rests([message_id])
        return taken.rowcount > 0

    def send_now(self, email_domain: str, message_id: str, now: float) -> bool:
        """Have a message tried at once; returns whether it was waiting."""
        free = _is_free(email_domain, message_id, now)
        with self._transaction() as connection:
            hasty = (
                update(OUTBOX)
                .where(free)
                .values(
                    due=now,
                    ready_at=case((OUTBOX.c.ready_at > now, now), else_=OUTBOX.c.ready_at),
                )
            )
            return connection.execute(hasty).rowcount > 0

    def pause(self, email_domain: str, stream: str, now: float, *, is_paused: bool) -> None:
        """Have nothing more of the stream be sent, or go on."""
        key = {"email_domain": email_domain, "stream": stream}
        with self._transaction() as connection:
            connection.execute(delete(PAUSED).filter_by(**key))
            if is_paused:
                connection.execute(PAUSED.insert().values(**key, at=now))

    def paused_streams(self, email_domain: str) -> dict[str, float]:
        """The streams of the domain that are paused, each since when."""
        rows = self._read(_PAUSED, {"email_domain": email_domain})
        return {row["stream"]: row["at"] for row in rows}

    # What can be seen of it

    def depths(self, email_domain: str, now: float) -> dict[str, Depth]:
        """How much waits in each stream of the domain, but those where nothing does.

        Raises SearchTooSlow.
        """
        table = OUTBOX.c
        query = (
            select(*_depth_columns(now))
            .where(table.email_domain == email_domain)
            .group_by(table.stream)
        )
        with self._reading() as connection:
            return {row.stream: _depth(row, now) for row in connection.execute(query)}

    def all_depths(self, now: float) -> dict[tuple[str, str], Depth]:
        """The same of all domains, by domain and stream. Raises SearchTooSlow."""
        table = OUTBOX.c
        query = select(table.email_domain, *_depth_columns(now)).group_by(
            table.email_domain, table.stream
        )
        with self._reading() as connection:
            rows = connection.execute(query)
            return {(row.email_domain, row.stream): _depth(row, now) for row in rows}

    def oldest_ready(self, now: float) -> float | None:
        """For how many seconds the message waits that has been ready for longest, of all domains.

        None where none is.
        """
        (row,) = self._read(_OLDEST, {})
        ready_at = row["ready_at"]
        return None if ready_at is None or ready_at > now else now - ready_at

    def waiting(
        self, email_domain: str, *, stream: str | None = None, limit: int = 50
    ) -> list[tuple[LoggedMessage, float, int]]:
        """Messages that wait, each with when it is tried next and how often it was.

        Raises SearchTooSlow.
        """
        query: Select[Any] = (
            select(MESSAGES, OUTBOX.c.due, OUTBOX.c.tries)
            .join(MESSAGES, MESSAGES.c.message_id == OUTBOX.c.message_id)
            .where(OUTBOX.c.email_domain == email_domain)
            .order_by(OUTBOX.c.due)
            .limit(limit)
        )
        if stream is not None:
            query = query.where(OUTBOX.c.stream == stream)
        with self._reading() as connection:
            rows = connection.execute(query)
            return [(logged_message(row), row.due, row.tries) for row in rows]

    def payload(self, message_id: str) -> bytes | None:
        """A message that waits, as it was put there."""
        found = self._read(_PAYLOAD, {"of_message": message_id})
        return b"".join(bytes(part["content"]) for part in found) or None

    def end_the_forgotten(self, now: float) -> None:
        """Say of those that nobody looks for, since their domain is no more, that they expired."""
        old = and_(OUTBOX.c.expires < now - FORGOTTEN_SECONDS, OUTBOX.c.due < now)
        query = select(OUTBOX.c.message_id).where(old).limit(WRITTEN_AT_ONCE)
        with self._transaction() as connection:
            ids = connection.execute(query).scalars().all()
            doubtful = or_(
                OUTBOX.c.handing_to.is_not(None),
                MESSAGES.c.attempts.contains(f'"outcome": "{UNKNOWN}"'),
            )
            doubtful_ids = connection.execute(
                select(OUTBOX.c.message_id)
                .join(MESSAGES, MESSAGES.c.message_id == OUTBOX.c.message_id)
                .where(OUTBOX.c.message_id.in_(ids), doubtful)
            )
            unknown = set(doubtful_ids.scalars())
            for outcome, some in ((UNKNOWN, unknown), (EXPIRED, {*ids} - unknown)):
                ended = MESSAGES.c.message_id.in_(some)
                connection.execute(update(MESSAGES).where(ended).values(outcome=outcome))
            connection.execute(delete(OUTBOX).where(OUTBOX.c.message_id.in_(ids)))
        if ids:
            self._remove_rests(ids)


def _is_in(email_domain: str, stream: str) -> ColumnElement[bool]:
    return and_(OUTBOX.c.email_domain == email_domain, OUTBOX.c.stream == stream)


def _is_free(email_domain: str, message_id: str, now: float) -> ColumnElement[bool]:
    """Whether nobody has the message, nor may a service have it from somebody who is gone."""
    nobodys = or_(
        OUTBOX.c.claim.is_(None), and_(OUTBOX.c.due <= now, OUTBOX.c.handing_to.is_(None))
    )
    return and_(OUTBOX.c.message_id == message_id, OUTBOX.c.email_domain == email_domain, nobodys)


def _of(claim: str, message_id: str) -> dict[str, Any]:
    return {"of_message": message_id, "of_claim": claim}


def _first(rows: Sequence[Any], max_bytes: int) -> list[str]:
    """The ids of the first that have no more bytes together; one at least."""
    ids: list[str] = []
    for row in rows:
        max_bytes -= row.size
        if ids and max_bytes < 0:
            break
        ids.append(row.message_id)
    return ids


def _weight(message: Waiting) -> int:
    ahead = _is_large(message)
    return 1 + rows_of(message.logged) + (0 if ahead else len(message.payload) // ROW_BYTES)


def _is_large(message: Waiting) -> bool:
    return len(message.payload) > FEW_PARTS * PART_BYTES


def _parts(message: Waiting) -> Iterator[dict[str, Any]]:
    for part, content in enumerate(parts_of(message.payload)):
        yield {
            "message_id": message.logged.message_id,
            "part": part,
            "ahead": None,
            "content": content,
        }


def _outbox_columns(message: Waiting) -> dict[str, Any]:
    logged = message.logged
    return {
        "message_id": logged.message_id,
        "email_domain": logged.email_domain,
        "stream": logged.stream,
        "service": message.service,
        "size": len(message.payload),
        "ready_at": message.ready_at,
        "due": message.due,
        "expires": message.expires,
        "tries": message.tries,
        "claim": None,
        "handing_to": None,
    }


def _answer(message: Waiting, reserved_at: float) -> dict[str, Any]:
    key, answer = message.key or "", message.answer or {}
    return answer_columns(message.logged.email_domain, key, reserved_at, answer)


def _claimed(row: Any, payload: bytes) -> Claimed:
    return Claimed(
        row.message_id,
        row.stream,
        row.service,
        payload,
        row.ready_at,
        row.expires,
        row.tries,
        tuple(json.loads(row.attempts or "[]")),
        row.handing_to,
    )


def _depth_columns(now: float) -> list[ColumnElement[Any]]:
    """What a Depth is made of, for each stream."""
    table = OUTBOX.c
    is_ready = table.ready_at <= now
    return [
        table.stream,
        func.sum(case((is_ready, 1), else_=0)).label("waiting"),
        func.sum(case((is_ready, 0), else_=1)).label("scheduled"),
        func.sum(case((table.tries > 0, 1), else_=0)).label("retrying"),
        func.min(table.ready_at).label("oldest"),
    ]


def _depth(row: Any, now: float) -> Depth:
    oldest = now - row.oldest if row.oldest <= now else None
    return Depth(int(row.waiting), int(row.scheduled), int(row.retrying), oldest)
