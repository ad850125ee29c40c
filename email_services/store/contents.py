"""What was sent, kept for a while: opaque here, and in parts that no other writer waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql

from email_services.store.database import (
    CHANGED_AT_ONCE,
    PART_BYTES,
    WRITTEN_AT_ONCE,
    Database,
    in_parts,
    parts_of,
)
from email_services.store.schema import CONTENTS

REMOVED_TOGETHER: Final = 40
"""Parts in one transaction, of which each may be as large."""

_KEEP: Final = postgresql.insert(CONTENTS).on_conflict_do_nothing()  # SQLite has the same words
_FIND: Final = (
    select(CONTENTS)
    .where(
        CONTENTS.c.message_id == bindparam("of_message"), CONTENTS.c.until > bindparam("of_time")
    )
    .order_by(CONTENTS.c.part)
)


_HAS: Final = _FIND.with_only_columns(CONTENTS.c.parts).limit(1)


@dataclass(frozen=True)
class Content:
    """What was sent, as bytes that somebody else understands.

    until: when it is to be removed, in seconds since the epoch.
    """

    message_id: str
    email_domain: str
    until: float
    content: bytes
    is_encrypted: bool


class Contents(Database):
    """The contents of messages."""

    content_seconds: Mapping[str, float] = MappingProxyType({})
    """How long contents of each domain are kept from now on. None that is here stays longer."""

    def keep_contents(self, contents: Sequence[Content]) -> None:
        """Write them; may be called again with the same, where the database did not answer."""
        rows = [row for content in contents for row in _rows(content)]
        for some in in_parts(rows, _weight, PART_BYTES):
            started = time.monotonic()
            self._write(_KEEP, some)
            if self._turns and some[-1] is not rows[-1]:
                time.sleep(time.monotonic() - started)  # others have as much of the time

    def content(self, message_id: str, now: float) -> Content | None:
        """That of a message, or None where it is not here, or not as a whole."""
        rows = self._read(_FIND, {"of_message": message_id, "of_time": now})
        if not rows or len(rows) < rows[0]["parts"]:
            return None
        return Content(
            message_id,
            rows[0]["email_domain"],
            rows[0]["until"],
            b"".join(bytes(row["content"]) for row in rows),
            bool(rows[0]["is_encrypted"]),
        )

    def has_content(self, message_id: str, now: float) -> bool:
        """Whether there is any of it."""
        return bool(self._read(_HAS, {"of_message": message_id, "of_time": now}))

    def remove_old(self, now: float) -> bool:
        """See Database."""
        for email_domain, seconds in self.content_seconds.items():
            self._shorten(email_domain, now + seconds)
        more = self._remove_contents(now)
        return super().remove_old(now) or more

    def _shorten(self, email_domain: str, most: float) -> None:
        """Have none stay longer than it would if it came now."""
        longer = and_(CONTENTS.c.email_domain == email_domain, CONTENTS.c.until > most)
        with self._statement() as connection:
            if connection.execute(select(CONTENTS.c.part).where(longer).limit(1)).first() is None:
                return
        with self._transaction() as connection:
            connection.execute(update(CONTENTS).where(longer).values(until=most))

    def _remove_contents(self, now: float) -> bool:
        key = (CONTENTS.c.message_id, CONTENTS.c.part)
        with self._statement() as connection:
            query = select(*key).where(CONTENTS.c.until <= now).limit(CHANGED_AT_ONCE)
            old = [tuple(row) for row in connection.execute(query)]
        for some in in_parts(old, most=REMOVED_TOGETHER):
            with self._transaction() as connection:
                connection.execute(delete(CONTENTS).where(tuple_(*key).in_(some)))
        return len(old) == CHANGED_AT_ONCE


def _rows(content: Content) -> Iterator[dict[str, Any]]:
    parts = parts_of(content.content)
    for number, part in enumerate(parts):
        yield {
            "message_id": content.message_id,
            "part": number,
            "parts": len(parts),
            "email_domain": content.email_domain,
            "until": content.until,
            "is_encrypted": content.is_encrypted,
            "content": part,
        }


def _weight(row: Mapping[str, Any]) -> int:
    """In bytes, and such that no transaction has too many rows."""
    return max(len(row["content"]), PART_BYTES // WRITTEN_AT_ONCE)
