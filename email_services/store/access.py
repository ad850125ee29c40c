"""What keeps strangers out: secrets that all workers share, and who has shown which keys."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from sqlalchemy import bindparam, case, select
from sqlalchemy.dialects import postgresql

from email_services.store.database import Database
from email_services.store.schema import KEY_USES, SECRETS, WRONG_KEYS

KEEP_WRONG_KEYS_SECONDS: Final = 3600
"""How long the addresses are kept that wrong keys came from."""

_ADD_SECRET: Final = postgresql.insert(SECRETS).on_conflict_do_nothing()
_SECRET: Final = select(SECRETS.c.value).where(SECRETS.c.name == bindparam("name"))
_COUNTED: Final = postgresql.insert(WRONG_KEYS)
_GOES_ON: Final = WRONG_KEYS.c.at.between(bindparam("since"), bindparam("until"))
_COUNT_WRONG_KEYS: Final = _COUNTED.on_conflict_do_update(
    index_elements=[WRONG_KEYS.c.address],
    set_={
        "at": case((_GOES_ON, WRONG_KEYS.c.at), else_=_COUNTED.excluded.at),
        "number": _COUNTED.excluded.number + case((_GOES_ON, WRONG_KEYS.c.number), else_=0),
    },
).returning(WRONG_KEYS.c.at, WRONG_KEYS.c.number)


_USED: Final = postgresql.insert(KEY_USES)
_NOTE_KEY_USE: Final = _USED.on_conflict_do_update(
    index_elements=[KEY_USES.c.place, KEY_USES.c.name],
    set_={"at": case((KEY_USES.c.at > _USED.excluded.at, KEY_USES.c.at), else_=_USED.excluded.at)},
)
_KEY_USES: Final = select(KEY_USES)


class Access(Database):
    """Secrets, the wrong keys of each address, and when right ones were last used."""

    def count_wrong_keys(
        self, address: str, now: float, more: int, seconds: float
    ) -> tuple[float, int]:
        """Count `more` wrong keys from `address`; returns since when how many came.

        seconds: after which it begins anew; before it, too, where the clock was set back.
        """
        row = {"address": address, "at": now, "number": more}
        row |= {"since": now - seconds, "until": now + seconds}
        ((since, number),) = self._write(_COUNT_WRONG_KEYS, [row]).rows_back
        self.remove_when_due(now)
        return since, number

    def note_key_uses(self, uses: Mapping[tuple[str, str], float]) -> None:
        """Keep when keys were last used, by place and name; what is kept and later stays."""
        rows = [{"place": place, "name": name, "at": at} for (place, name), at in uses.items()]
        if rows:
            self._write(_NOTE_KEY_USE, rows)

    def key_uses(self) -> dict[tuple[str, str], float]:
        """When each key was last used, by place and name."""
        return {(row["place"], row["name"]): row["at"] for row in self._read(_KEY_USES, {})}

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

    def remove_old(self, now: float) -> bool:
        """See Database."""
        more = self._remove_some(WRONG_KEYS, now - KEEP_WRONG_KEYS_SECONDS)
        return super().remove_old(now) or more
