"""Statements that every message makes, given to the database's driver as they are.

SQLAlchemy writes them, once. It would take longer over each of them than the database itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


class Rows(NamedTuple):
    """A statement in SQL that writes, and the rows that it is carried out for."""

    sql: str
    values: Sequence[Mapping[str, Any]]


@dataclass(eq=False)
class Write:
    """Statements that write, in their order: all of them, or none.

    weight: how many rows are written in all, with those that the database adds by itself.
    is_durable: whether it has to survive a loss of power from the moment it is over. numbers: of
    the rows that each statement wrote. rows_back: what the last was to give back. error: what came
    of it instead. is_over: whether either is known. is_doubtful: whether it failed in a way that
    leaves open whether it was done.
    """

    statements: Sequence[Rows]
    weight: int
    is_durable: bool = False
    numbers: list[int] = field(default_factory=list)
    rows_back: Sequence[tuple[Any, ...]] = ()
    error: BaseException | None = None
    is_over: bool = False
    is_doubtful: bool = False

    @property
    def is_one_row(self) -> bool:
        """Whether the database itself sees to it that all is written or nothing."""
        return len(self.statements) == 1 and len(self.statements[0].values) == 1

    def carry_out(self, connection: Any) -> None:
        """On a connection of the driver's. Raises its errors."""
        self.numbers = []  # a transaction may be tried again
        for sql, values in self.statements:
            cursor = connection.cursor()
            if len(values) == 1:
                cursor.execute(sql, values[0])
                self.rows_back = cursor.fetchall() if cursor.description else ()
            else:
                cursor.executemany(sql, values)
            self.numbers.append(cursor.rowcount)
