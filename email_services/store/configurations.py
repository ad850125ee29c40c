"""Configurations that were uploaded, each a version that stays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.exc import IntegrityError

from email_services.store.database import Database
from email_services.store.schema import CONFIGURATIONS

MOST_LISTED: Final = 100

_NEWEST: Final = select(func.max(CONFIGURATIONS.c.version).label("version"))
_ONE: Final = select(CONFIGURATIONS).where(CONFIGURATIONS.c.version == bindparam("version"))
_LISTED: Final = select(CONFIGURATIONS).order_by(CONFIGURATIONS.c.version.desc()).limit(MOST_LISTED)


@dataclass(frozen=True)
class Uploaded:
    """A configuration that was uploaded.

    at: when, in seconds since the epoch. author: whose key it was. content: the JSON.
    """

    version: int
    at: float
    author: str
    content: str


class Configurations(Database):
    """All that were uploaded."""

    def newest_version(self) -> int | None:
        """The number of the newest; None where none was uploaded."""
        (row,) = self._read(_NEWEST, {})
        version: int | None = row["version"]
        return version

    def configuration(self, version: int) -> Uploaded | None:
        """The one of that number."""
        rows = self._read(_ONE, {"version": version})
        return Uploaded(**rows[0]) if rows else None

    def configurations(self) -> list[Uploaded]:
        """The newest, the last first."""
        return [Uploaded(**row) for row in self._read(_LISTED, {})]

    def add_configuration(self, uploaded: Uploaded) -> bool:
        """Keep another one; it is on the disk when this returns.

        Returns whether it is: False where another has its number, being a moment earlier.
        """
        try:
            with self._transaction(is_durable=True) as connection:
                connection.execute(insert(CONFIGURATIONS).values(**asdict(uploaded)))
        except IntegrityError:
            return False
        return True
