"""The words by which messages are found: which there are in a text, and the index of them.

The index is SQLite's FTS5, or a tsvector of PostgreSQL's in a GIN index; both are given words that
were taken apart here, and so find the same. A word is asked for by its beginning.

Nobody waits for the index: messages are added to it some time after they were written, those of
before it was there like all others. `number` in their rows is theirs in it, NULL until then.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Join,
    Row,
    Select,
    bindparam,
    column,
    func,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from email_services.store.schema import MESSAGES

MOST_LETTERS: Final = 40
"""Of a word; what is longer is known by its beginning."""

INDEXED_AT_ONCE: Final = 100
"""Messages in one transaction, some milliseconds."""

_WORD: Final = re.compile(r"[^\W_]+")
_WITHOUT_SPACES: Final = re.compile(
    # Thai, Lao, Myanmar, Khmer, kana and Han: what stands between their words is nothing.
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+)"
)

_TABLE: Final = {
    "sqlite": (
        # Words come with spaces between them, and hold no other ASCII than letters, digits, : and _
        """CREATE VIRTUAL TABLE IF NOT EXISTS message_words USING fts5(
        words, detail=none, columnsize=0, tokenize="ascii tokenchars ':_'")""",
        "DROP TRIGGER IF EXISTS words_at_delete",
        """CREATE TRIGGER words_at_delete AFTER DELETE ON messages WHEN OLD.number IS NOT NULL
        BEGIN DELETE FROM message_words WHERE rowid = OLD.number; END""",
    ),
    "postgresql": (
        "CREATE TABLE IF NOT EXISTS message_words (number BIGINT PRIMARY KEY, words TSVECTOR)",
        "CREATE INDEX IF NOT EXISTS message_words_by_word ON message_words USING gin (words)",
        """CREATE OR REPLACE FUNCTION words_at_delete() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN DELETE FROM message_words WHERE number = OLD.number; RETURN NULL; END $$""",
        "DROP TRIGGER IF EXISTS words_at_delete ON messages",
        """CREATE TRIGGER words_at_delete AFTER DELETE ON messages FOR EACH ROW
        WHEN (OLD.number IS NOT NULL) EXECUTE FUNCTION words_at_delete()""",
    ),
}
ADD_WORDS: Final = {
    "sqlite": text("INSERT INTO message_words (rowid, words) VALUES (:number, :words)"),
    "postgresql": text(
        "INSERT INTO message_words (number, words)"
        " VALUES (:number, array_to_tsvector(string_to_array(:words, ' ')))"
    ),
}
_WORDS: Final = table("message_words", column("rowid"), column("number"))
_FOUND: Final = {
    "sqlite": (_WORDS.c.rowid, "message_words MATCH :asked"),
    "postgresql": (_WORDS.c.number, "message_words.words @@ CAST(:asked AS tsquery)"),
}
_NUMBERED: Final = update(MESSAGES).where(MESSAGES.c.message_id == bindparam("of_message"))


class _JoinFromLeft(Join):
    """A join for which SQLite goes through the words, and takes each message by its number.

    It would go through all messages of the domain, for each of the words.
    """

    inherit_cache = True


@compiles(_JoinFromLeft, "sqlite")
def _compiled(join: Join, compiler: SQLCompiler, **options: Any) -> str:
    left, right = (compiler.process(part, **options) for part in (join.left, join.right))
    options.pop("asfrom", None)
    condition = cast("ColumnElement[bool]", join.onclause)
    by_number = f"{right} INDEXED BY messages_by_number"
    return f"{left} CROSS JOIN {by_number} ON {compiler.process(condition, **options)}"


_OF_WORDS: Final = ("subject", "from_email", "from_name", "recipients", "names", "tags")

Told = Row[Any]
"""A row of the log with the columns that words are taken of."""


def make_index(connection: Connection) -> None:
    """Where there is none."""
    for statement in _TABLE[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def words_of(message: Told) -> set[str]:
    """The words of a message of the log, and one for each of its tags and for its domain."""
    told = " ".join(filter(None, (getattr(message, name) for name in _OF_WORDS)))
    tags = [tag_word(tag) for tag in (message.tags or "").strip("\n").splitlines()]
    return {*_words_in(told), *tags, domain_word(message.email_domain)}


def asked_words(asked: str) -> list[str]:
    """With what the words begin that a message has to have, which somebody asks for."""
    return list(dict.fromkeys(_words_in(asked, is_asked=True)))


def tag_word(tag: str) -> str:
    """The word of a tag as a whole; what is typed never is one. Tags that look alike share it."""
    return ":t" + re.sub("[^a-z0-9]", "_", tag.lower())


def domain_word(email_domain: str) -> str:
    """The same of an email domain."""
    return ":d" + re.sub("[^a-z0-9]", "_", email_domain.lower())


def has_words(words: Iterable[str], beginnings: Sequence[str]) -> bool:
    """Whether each of the beginnings is one of a word, or of a whole where it stands for that."""
    there = set(words)
    return all(
        beginning in there if beginning.startswith(":") else _begins(there, beginning)
        for beginning in beginnings
    )


def with_words(query: Select[Any], dialect: str, beginnings: Sequence[str]) -> Select[Any]:
    """`query`, of the messages, for those in the index that have such words (see `has_words`)."""
    if dialect == "sqlite":
        match = " ".join(f'"{b}"' if b.startswith(":") else f'"{b}"*' for b in beginnings)
    else:
        match = " & ".join(f"'{b}'" if b.startswith(":") else f"'{b}':*" for b in beginnings)
    number, condition = _FOUND[dialect]
    matches = text(condition).bindparams(asked=match)
    if dialect == "sqlite":
        joined = _JoinFromLeft(_WORDS, MESSAGES, number == MESSAGES.c.number)
        return query.select_from(joined).where(matches)
    # First of all: PostgreSQL would go through all messages in their order for some that match.
    found = select(number).where(matches).cte("found").prefix_with("MATERIALIZED")
    return query.join(found, found.c.number == MESSAGES.c.number)


def index_some(connection: Connection, now: float) -> int:
    """Add some of those that are not in the index, the newest first; returns how many.

    In a transaction that may write. Those in progress come later: what becomes of them is about to
    be written, which would have to wait.
    """
    dialect = connection.dialect.name
    if dialect == "postgresql" and not connection.scalar(
        select(func.pg_try_advisory_xact_lock(0x776F7264))
    ):
        return 0  # another is at it
    log = MESSAGES.c
    columns = [log[name] for name in ("message_id", "email_domain", *_OF_WORDS)]
    is_over = or_(log.outcome != "in progress", log.deadline <= now)
    waiting = (
        select(*columns)
        .where(log.number.is_(None), is_over)
        .order_by(log.at.desc())
        .limit(INDEXED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    found = connection.execute(waiting).all()
    if found:
        # In these words, since the index is of those that have a number: else all would be read.
        last = select(func.max(log.number)).where(log.number.is_not(None))
        first = (connection.scalar(last) or 0) + 1
        rows = [
            {"number": number, "words": " ".join(sorted(words_of(message)))}
            for number, message in enumerate(found, first)
        ]
        connection.execute(ADD_WORDS[dialect], rows)
        ids = [message.message_id for message in found]
        numbered = [{"of_message": i, "number": n} for n, i in enumerate(ids, first)]
        connection.execute(_NUMBERED, numbered)
    return len(found)


def _begins(words: Iterable[str], beginning: str) -> bool:
    return any(word.startswith(beginning) for word in words)


def _words_in(told: str, *, is_asked: bool = False) -> Iterator[str]:
    """In lower case and without accents.

    Where nothing stands between words, every two letters are one, and so is the last, which only
    who asks for a single letter asks for.
    """
    plain = unicodedata.normalize("NFKD", told.casefold())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
    for word in _WORD.findall(plain):
        for number, piece in enumerate(_WITHOUT_SPACES.split(word)):
            if number % 2 == 0:
                yield from [piece[:MOST_LETTERS]] if piece else []
            else:
                yield from (piece[at : at + 2] for at in range(len(piece) - 1))
                yield from [] if is_asked and len(piece) > 1 else [piece[-1]]
