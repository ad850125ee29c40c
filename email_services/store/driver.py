"""Statements that every message makes, given to the database's driver as they are.

SQLAlchemy writes them, once. It would take longer over each of them than the database itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

from sqlalchemy import ClauseElement, Dialect, Executable


class Text(NamedTuple):
    """A statement in SQL, with names for its values, and the values that it always has."""

    sql: str
    constants: Mapping[str, Any]

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All that it takes, where those are given."""
        return {**self.constants, **given}


@lru_cache(maxsize=256)
def as_text(statement: Executable, dialect: Dialect, names: frozenset[str]) -> Text:
    """The statement for the driver of that dialect, which names values.

    names: of the values that come with it each time.
    """
    element = cast("ClauseElement", statement)
    compiled = element.compile(dialect=dialect, column_keys=list(names))
    return Text(str(compiled), {n: v for n, v in compiled.params.items() if n not in names})


@dataclass(eq=False)
class Write:
    """A statement that writes, with the rows that it is carried out for.

    weight: how many rows are written in all, with those that the database adds by itself. number:
    of the rows that were written. rows_back: what it was to give back. error: what came of it
    instead. is_over: whether either is known.
    """

    sql: str
    rows: Sequence[Mapping[str, Any]]
    weight: int
    number: int = 0
    rows_back: Sequence[tuple[Any, ...]] = ()
    error: BaseException | None = None
    is_over: bool = False

    def carry_out(self, connection: Any) -> None:
        """On a connection of the driver's. Raises its errors."""
        cursor = connection.cursor()
        if len(self.rows) == 1:
            cursor.execute(self.sql, self.rows[0])
            self.rows_back = cursor.fetchall() if cursor.description else ()
        else:
            cursor.executemany(self.sql, self.rows)
        self.number = cursor.rowcount
