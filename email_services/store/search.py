"""Searching the log of messages."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, literal, select, text
from typing_extensions import TypedDict, Unpack

from email_services.exceptions import SENT, SearchTooSlow, StoreUnavailable
from email_services.store.database import Place
from email_services.store.messages import (
    Bounds,
    LoggedMessage,
    Messages,
    became,
    logged_message,
    newest_first,
)
from email_services.store.schema import MESSAGES, NOT_ALL_IS_WELL, RECIPIENTS
from email_services.store.words import (
    asked_words,
    domain_word,
    has_words,
    index_some,
    tag_word,
    with_words,
    words_of,
)

MOST_CANDIDATES: Final = 5000
"""Recipients looked at in one step of a search; a statement may not have many more parameters."""

MOST_COUNTED: Final = 10_000
COUNT_SECONDS: Final = 1
"""What it may take to count what was found."""

READ_FIRST: Final = 500
"""The newest messages, which are read before the index of words is asked: it takes long over words
that many have, and those are in some of these."""

INDEX_EVERY: Final = 200
"""Messages that a worker has logged, after which it adds what there is to the index of words."""

_WHOLE_ADDRESS: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")


class Wanted(TypedDict, total=False):
    """Which messages of the log are wanted, where that is not all.

    words: what each word of the subject, an address, a name or a tag begins with. recipient: an
    address, or a part of one. service: one that was tried. since, until: bounds of the time.
    """

    message_id: str | None
    words: str | None
    recipient: str | None
    outcome: str | None
    service: str | None
    tag: str | None
    since: float | None
    until: float | None


@dataclass(frozen=True)
class _Search:
    """What is wanted, as the database is asked for it. query: all but its bounds and its words."""

    domain: str | None
    query: Select[Any]
    bounds: Bounds
    words: Sequence[str]
    recipient: str | None

    def within(self, bounds: Bounds) -> Select[Any]:
        return bounds.applied(self.query, MESSAGES)


class Search(Messages):
    """The log of messages, and what finds them there."""

    def __init__(self, *args: Any) -> None:
        self._not_indexed = 0
        self._indexer: threading.Thread | None = None
        super().__init__(*args)

    def messages(
        self,
        email_domain: str | None,
        now: float,
        *,
        before: Place | None = None,
        limit: int = 50,
        **wanted: Unpack[Wanted],
    ) -> list[LoggedMessage]:
        """The messages of the domain, or of all where that is None, newest first.

        before: the place where the page before ended. One that was cut off is unknown. Raises
        SearchTooSlow.
        """
        search = self._search(email_domain, now, wanted)
        bounds = replace(search.bounds, before=before)
        with self._reading() as connection:
            if search.words:
                rows: Iterable[Row[Any]] = _found_by_words(connection, search, bounds, limit)
            elif search.recipient:
                rows = _found_by_recipient(connection, search, bounds, limit)
            else:
                query = search.within(bounds).order_by(*newest_first(MESSAGES))
                rows = connection.execute(query.limit(limit))
            return [logged_message(row) for row in rows]

    def sent_again(self, message_id: str, now: float, limit: int) -> list[LoggedMessage]:
        """The messages that send this one again, newest first. Raises SearchTooSlow."""
        # Of its domain they are anyway; to say so would have SQLite go through all of that.
        query = _all_of_each(now).where(MESSAGES.c.again_of == message_id)
        query = query.order_by(*newest_first(MESSAGES)).limit(limit)
        with self._reading() as connection:
            return [logged_message(row) for row in connection.execute(query)]

    def count_messages(
        self, email_domain: str | None, now: float, **wanted: Unpack[Wanted]
    ) -> int | None:
        """How many there are, MOST_COUNTED + 1 for more; None where to count them takes long."""
        search = self._search(email_domain, now, wanted)
        try:
            with self._reading(COUNT_SECONDS) as connection:
                return _counted(connection, search)
        except SearchTooSlow:
            return None

    def log_messages(self, messages: Sequence[LoggedMessage]) -> None:
        """See Messages."""
        super().log_messages(messages)
        self._not_indexed += len(messages)
        if self._not_indexed >= INDEX_EVERY:
            self.index(messages[0].at)

    def index(self, now: float) -> None:
        """Begin to add what there is to the index of words, in the background."""
        if self._indexer is None or not self._indexer.is_alive():
            self._not_indexed = 0
            self._indexer = threading.Thread(target=self._index, args=(now,), daemon=True)
            self._indexer.start()

    def close(self) -> None:
        """See Database."""
        if self._indexer:
            self._is_closing.set()
            self._indexer.join()
            self._is_closing.clear()
            self._indexer = None
        super().close()

    def _index(self, now: float) -> None:
        number, seconds = 1, 0.0
        while number and not self._is_closing.wait(seconds):
            started = time.monotonic()
            try:
                with self._transaction() as connection:
                    number = index_some(connection, now)
            except StoreUnavailable:
                return  # those that come next begin again
            seconds = time.monotonic() - started  # others have as much of the time

    def _search(self, email_domain: str | None, now: float, wanted: Wanted) -> _Search:
        table = MESSAGES.c
        outcome = became(now)
        query = _all_of_each(now)
        recipient = (wanted.get("recipient") or "").lower() or None
        if email_domain is not None:
            query = query.where(table.email_domain == email_domain)
        if message_id := wanted.get("message_id"):
            query = query.where(table.message_id == message_id)
        if service := wanted.get("service"):
            query = query.where(table.attempts.contains(f'"service": "{service}"', autoescape=True))
        if wanted_outcome := wanted.get("outcome"):
            query = query.where(outcome == wanted_outcome)
            if wanted_outcome != SENT:
                query = query.where(text(f"messages.{NOT_ALL_IS_WELL}"))
        words = asked_words(wanted.get("words") or "")
        if tag := wanted.get("tag"):
            same = func.lower(table.tags).contains(f"\n{tag.lower()}\n", autoescape=True)
            query = query.where(same)
            words.append(tag_word(tag))
        if words and recipient:
            query = query.where(table.recipients.contains(recipient, autoescape=True))
        elif (wanted.get("words") or "").strip() and not words:
            query = query.where(literal(value=False))  # what is no word, nothing has
        oldest = now - self._keep_seconds
        since = wanted.get("since")
        bounds = Bounds(oldest if since is None else max(since, oldest), wanted.get("until"))
        return _Search(email_domain, query, bounds, words, recipient)


def _all_of_each(now: float) -> Select[Any]:
    """All messages, where one that was cut off is unknown."""
    others = [column for column in MESSAGES.c if column is not MESSAGES.c.outcome]
    return select(*others, became(now).label("outcome"))


def _found_by_words(
    connection: Connection, search: _Search, bounds: Bounds, limit: int
) -> list[Row[Any]]:
    """The newest messages of the search that have its words."""
    place = _place_after(connection, search, bounds, READ_FIRST)
    found = _read(connection, search, replace(bounds, down_to=place))
    if place is None or len(found) >= limit:
        return found[:limit]
    bounds = replace(bounds, before=place)
    query = with_words(search.within(bounds), connection.dialect.name, _asked(search))
    rest = connection.execute(query.order_by(*newest_first(MESSAGES)).limit(limit)).all()
    rest = [*rest, *_read(connection, search, bounds, _not_indexed())]
    rest.sort(key=lambda row: (row.at, row.message_id), reverse=True)
    return [*found, *rest][:limit]


def _read(
    connection: Connection, search: _Search, bounds: Bounds, *conditions: ColumnElement[bool]
) -> list[Row[Any]]:
    """Those within the bounds that have the words, each of which is looked at."""
    query = search.within(bounds).where(*conditions).order_by(*newest_first(MESSAGES))
    found = []
    for number, row in enumerate(connection.execute(query)):
        if has_words(words_of(row), search.words):
            found.append(row)
        if number % 100 == 0 and time.monotonic() > connection.info["until"]:
            raise SearchTooSlow
    return found


def _not_indexed() -> ColumnElement[bool]:
    """Found apart, for which there is an index: SQLite would go through all of a domain."""
    waiting = MESSAGES.alias("not_indexed")
    return MESSAGES.c.message_id.in_(select(waiting.c.message_id).where(waiting.c.number.is_(None)))


def _place_after(
    connection: Connection, search: _Search, bounds: Bounds, number: int
) -> Place | None:
    """Where so many messages end, whatever is wanted of them; None where there are fewer."""
    query = select(MESSAGES.c.at, MESSAGES.c.message_id)
    if search.domain is not None:
        query = query.where(MESSAGES.c.email_domain == search.domain)
    query = bounds.applied(query, MESSAGES).order_by(*newest_first(MESSAGES))
    row = connection.execute(query.offset(number - 1).limit(1)).first()
    return (row.at, row.message_id) if row else None


def _asked(search: _Search) -> list[str]:
    """What the index is asked for: in SQLite it alone can leave other domains' messages out."""
    return [*search.words, *([domain_word(search.domain)] if search.domain else [])]


def _counted(connection: Connection, search: _Search) -> int:
    query = search.within(search.bounds)
    there = 0
    if search.words:
        there = len(_read(connection, search, search.bounds, _not_indexed()))
        query = with_words(query, connection.dialect.name, _asked(search))
    elif search.recipient:
        to = select(RECIPIENTS.c.message_id).where(_is_to(search.domain, search.recipient))
        query = query.where(MESSAGES.c.message_id.in_(to))
    some = query.with_only_columns(literal(1).label("one"), maintain_column_froms=True)
    count = select(func.count()).select_from(some.limit(MOST_COUNTED + 1).subquery())
    return min(there + (connection.scalar(count) or 0), MOST_COUNTED + 1)


def _is_to(email_domain: str | None, recipient: str) -> ColumnElement[bool]:
    """Whether a row of the recipients is of that address, or has that part of one."""
    table = RECIPIENTS.c
    is_it = table.address == recipient
    if not _WHOLE_ADDRESS.fullmatch(recipient):
        is_it = table.address.contains(recipient, autoescape=True)
    return is_it if email_domain is None else and_(table.email_domain == email_domain, is_it)


def _found_by_recipient(
    connection: Connection, search: _Search, bounds: Bounds, limit: int
) -> list[Row[Any]]:
    """The newest messages of the search that have such a recipient.

    No join, of which a database may think that it is best begun at the other end: the recipients
    are gone through from the newest on, a larger part of them each time, until enough of their
    messages are in `query`.
    """
    to = _is_to(search.domain, search.recipient or "")
    query = search.query.order_by(*newest_first(MESSAGES))
    found: list[Row[Any]] = []
    number = 4 * limit
    while True:
        candidates = select(RECIPIENTS.c.at, RECIPIENTS.c.message_id).where(to)
        candidates = bounds.applied(candidates, RECIPIENTS).order_by(*newest_first(RECIPIENTS))
        some = connection.execute(candidates.limit(number)).all()
        if some:
            ids = {row.message_id for row in some}
            found += connection.execute(query.where(MESSAGES.c.message_id.in_(ids))).all()
        if len(found) >= limit or len(some) < number:
            return found[:limit]
        if time.monotonic() > connection.info["until"]:
            raise SearchTooSlow
        bounds = replace(bounds, before=(some[-1].at, some[-1].message_id))
        number = min(4 * number, MOST_CANDIDATES)
