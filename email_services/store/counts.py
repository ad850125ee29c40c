"""How many messages became what, minute by minute, without going over a day's log each time.

What has become of a minute's messages does not change once all are over. So each process remembers
such minutes, which are the same for everybody, and asks for the others only.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Integer, Select, and_, case, cast, func, literal, select

from email_services.exceptions import NOT_SENT, SENT, UNKNOWN, SearchTooSlow
from email_services.store.messages import CANCELLED, EXPIRED, Messages, became
from email_services.store.schema import MESSAGES

MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 24 * HOUR

SETTLED_SECONDS: Final = 2 * MINUTE
"""How long after a minute a message of it may be logged: clocks differ, a database is away."""

SLOW_SECONDS: Final = 1.0
REUSED_TIMES: Final = 20
"""What takes longer than that to count is used again for so many times as long: those who look,
however many and however often, keep a process busy for no more than this part of its time."""

LONGEST_RUN: Final = 6 * HOUR // MINUTE
"""So many minutes are counted at once, and remembered before the next."""

_ENDED: Final = (SENT, NOT_SENT, UNKNOWN, EXPIRED, CANCELLED)
"""Outcomes that stay. What has another one, however old it is, is looked at each time."""

_FIRST_SERVICE: Final = len('[{"service": "') + 1
"""Where in `attempts` the name of the first one begins, as SQL counts."""


@dataclass(frozen=True)
class Count:
    """How many messages of one minute were alike.

    minute: since the epoch. service: the one that sent them, None without one. outcome: see
    LoggedMessage. failed_over: whether another service was tried or passed by before that one.
    """

    minute: int
    service: str | None
    outcome: str
    failed_over: bool
    possible_duplicate: bool
    number: int


@dataclass(frozen=True)
class Counted:
    """The messages of a domain. since: how far back all are counted, in seconds since the epoch."""

    counts: Sequence[Count]
    since: float


class Counts(Messages):
    """What became of the messages of the last day."""

    def __init__(self, *args: Any) -> None:
        self._settled: defaultdict[str, dict[int, list[Count]]] = defaultdict(dict)
        self._counted: dict[str, tuple[float, Counted]] = {}
        super().__init__(*args)

    def counted(self, email_domain: str, now: float) -> Counted:
        """Those of the last day, to the minute; of less, where that would take too long.

        Raises SearchTooSlow where it would for the last hour already.
        """
        began = time.monotonic()
        good_until, counted = self._counted.get(email_domain, (0.0, None))
        if counted and began < good_until:
            return counted
        counted = self._count(email_domain, now)
        ended = time.monotonic()
        if ended - began > SLOW_SECONDS:
            good_until = ended + (ended - began) * REUSED_TIMES
            self._counted[email_domain] = (good_until, counted)
        return counted

    def _count(self, email_domain: str, now: float) -> Counted:
        first, last = int(now - DAY) // MINUTE, int(now) // MINUTE
        settled = {**self._settled[email_domain]}  # as it is now: others add to it
        for minute in settled:
            if minute < first:
                self._settled[email_domain].pop(minute, None)
        counts = [count for held in settled.values() for count in held]
        since = first
        for start, end in _runs([m for m in range(last, first - 1, -1) if m not in settled]):
            try:
                found = self._minutes(email_domain, start, end, now)
            except SearchTooSlow:
                since = end
                if since * MINUTE > now - HOUR:
                    raise
                break
            counts += [count for held in found.values() for count in held]
        return Counted([count for count in counts if count.minute >= since], since * MINUTE)

    def _minutes(
        self, email_domain: str, start: int, end: int, now: float
    ) -> Mapping[int, list[Count]]:
        """From `start` up to `end`; those in which all is over are remembered."""
        found: dict[int, list[Count]] = {minute: [] for minute in range(start, end)}
        unsettled = {m for m in found if (m + 1) * MINUTE > now - SETTLED_SECONDS}
        query = _counting(now, self._minute).where(
            MESSAGES.c.email_domain == email_domain,
            MESSAGES.c.at >= start * MINUTE,
            MESSAGES.c.at < end * MINUTE,
        )
        with self._reading() as connection:
            for *alike, are_open in connection.execute(query):
                count = Count(*alike)
                found[count.minute].append(count)
                if are_open:
                    unsettled.add(count.minute)
        settled = {minute: held for minute, held in found.items() if minute not in unsettled}
        self._settled[email_domain].update(settled)
        return found

    @property
    def _minute(self) -> ColumnElement[int]:
        """The minute of a message; a cast rounds in PostgreSQL, and not in SQLite."""
        minutes: ColumnElement[Any] = MESSAGES.c.at / MINUTE
        if self._engine.dialect.name == "postgresql":
            minutes = func.floor(minutes)
        return cast(minutes, Integer)


def _runs(minutes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Minutes that follow each other, from the newest on, as first and one past the last.

    First no more than the last hour, which is wanted most; then no more than can be found in time.
    """
    most = HOUR // MINUTE + 1
    while minutes:
        length = 1
        while length < min(most, len(minutes)) and minutes[length] == minutes[0] - length:
            length += 1
        yield minutes[0] - length + 1, minutes[0] + 1
        minutes, most = minutes[length:], LONGEST_RUN


def _counting(now: float, minute: ColumnElement[int]) -> Select[Any]:
    """How many are alike, and whether what became of them may still change."""
    table = MESSAGES.c
    first = func.substr(table.attempts, _FIRST_SERVICE, func.length(table.service_used) + 1)
    failed_over = and_(table.outcome == SENT, first != table.service_used + literal('"'))
    alike = (
        minute.label("minute"),
        table.service_used,
        became(now).label("became"),
        func.coalesce(failed_over, False).label("failed_over"),
        table.possible_duplicate,
    )
    are_open = func.max(case((table.outcome.in_(_ENDED), 0), else_=1))
    groups = ("minute", table.service_used, "became", "failed_over", table.possible_duplicate)
    return select(*alike, func.count(), are_open).group_by(*groups)
