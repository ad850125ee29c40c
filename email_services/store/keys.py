"""Idempotency-Keys: what each stands for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql

from email_services.health import SKEW_SECONDS
from email_services.store.database import Database, in_parts
from email_services.store.messages import is_cut_off
from email_services.store.schema import KEYS

KEEP_KEY_SECONDS: Final = 24 * 3600
"""How long an Idempotency-Key is known."""

_IS_KEY: Final = and_(
    KEYS.c.email_domain == bindparam("of_domain"), KEYS.c.key == bindparam("of_key")
)
_IS_RESERVATION: Final = and_(_IS_KEY, KEYS.c.at == bindparam("since"))
_KEYS: Final = (
    select(KEYS)
    .where(KEYS.c.email_domain == bindparam("of_domain"))
    .where(KEYS.c.key.in_(bindparam("of_keys", expanding=True)))
    .order_by(KEYS.c.key)  # in one order: no two requests wait for each other
    .with_for_update()
)
# SQLite has the same words for it. Only with the option is the count of rows to be had.
_RESERVE_KEY: Final = (
    postgresql.insert(KEYS).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
)
_TAKE_KEY: Final = update(KEYS).where(_IS_KEY)
_BOUND_KEY: Final = _TAKE_KEY.where(KEYS.c.answer.is_(None))
STORE_ANSWER: Final = update(KEYS).where(_IS_RESERVATION)
_FREE_KEY: Final = delete(KEYS).where(_IS_RESERVATION)


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


class Keys(Database):
    """Which requests have been made with which key, and what was answered."""

    def reserve_keys(
        self,
        email_domain: str,
        keys: Sequence[tuple[str, str]],
        now: float,
        until: float,
        message_ids: Mapping[str, str] | None = None,
        *,
        only_queues: bool = False,
    ) -> list[Reservation]:
        """Reserve each key for a request, or tell what it already stands for.

        If one of them is in progress or stands for another request, none is reserved.
        keys: each with the fingerprint of its request. until: when the reservations lapse, if no
        answer is stored. message_ids: of the messages that the keys stand for, by key. only_queues:
        whether the request hands no message to a service, and stores the answer with what it
        queues: one that is cut off before that has done nothing.
        """
        begun = None if only_queues else now
        times = {"at": now, "reserved_until": until, "message_at": begun}
        ids = message_ids or {}
        rows = {
            key: {**_key_columns(email_domain, key, mark), **times, "message_id": ids.get(key)}
            for key, mark in sorted(keys)
        }
        # The usual case needs no look at what is there.
        if len(rows) == 1 and self._write(_RESERVE_KEY, list(rows.values())).numbers[0]:
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
        for some in in_parts(sorted(answers.items())):
            ended, freed = [], []
            for key, answer in some:
                if answer is None:  # its message was surely not sent
                    freed.append({"of_domain": email_domain, "of_key": key, "since": at})
                else:
                    ended.append(answer_columns(email_domain, key, at, answer))
            if ended:
                self._write(STORE_ANSWER, ended)
            if freed:
                self._write(_FREE_KEY, freed)

    def remove_old(self, now: float) -> bool:
        """See Database."""
        more = self._remove_some(KEYS, now - KEEP_KEY_SECONDS)
        return super().remove_old(now) or more


def _key_columns(email_domain: str, key: str, fingerprint: str) -> dict[str, Any]:
    return {
        "email_domain": email_domain,
        "key": key,
        "fingerprint": fingerprint,
        "answer": None,
    }


def answer_columns(
    email_domain: str, key: str, at: float, answer: Mapping[str, Any]
) -> dict[str, Any]:
    """For STORE_ANSWER: the answer to who repeats a key that was reserved at that time."""
    return {
        "of_domain": email_domain,
        "of_key": key,
        "since": at,
        "answer": json.dumps(answer),
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
    if not is_cut_off(row.reserved_until, now):
        return Reservation("in progress")
    if row.message_id and row.message_at is None:  # nothing was queued, nor handed to anybody
        return Reservation("new")
    # A row of a version before has no message.
    message = (row.message_id, row.message_at) if row.message_id else None
    return Reservation("abandoned", message=message)
