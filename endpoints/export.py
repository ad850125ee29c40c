"""The log as a file: read a page at a time, for whoever reads it as slowly as they like."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Final, Protocol

from flask.globals import request_ctx
from werkzeug.wrappers import Response

from browsable_api import APIError
from email_services.bulkhead import Bulkhead
from email_services.exceptions import SearchTooSlow
from email_services.store import LoggedMessage, Store, Wanted
from endpoints.context import mailpool
from endpoints.messages import Message, in_full

AT_ONCE: Final = 500
"""Messages that are read together; no connection to the database is held between."""

EXPORTS: Final = 2
"""At once in one process: who reads slowly holds a thread."""

MAX_SECONDS: Final = 600

_places: Final = Bulkhead(EXPORTS)
_COLUMNS: Final = (
    "message_id",
    "at",
    "outcome",
    "from_email",
    "to",
    "cc",
    "bcc",
    "subject",
    "tags",
    "service_used",
    "service_message_id",
    "possible_duplicate",
)


class Part(Protocol):
    """Where an export begins, and how many messages it has at most."""

    cursor: tuple[float, str] | None
    limit: int


Written = Callable[[Iterator[Sequence[Message]]], Iterator[str]]


def exported(email_domain: str | None, wanted: Wanted, part: Part, written: Written) -> Response:
    """The messages as a file. Raises APIError (503) where others are at it, and SearchTooSlow.

    written: as_csv or as_lines.
    """
    if not _places.enter(patience=0):
        raise APIError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Others export the log just now: try again in a minute.",
            headers={"Retry-After": "60"},
        )
    response = Response(status=HTTPStatus.OK)
    response.call_on_close(_places.leave)
    try:
        pages = _pages(mailpool.store, email_domain, wanted, part)
        first = next(pages, [])  # what fails, fails before anything is answered
    except BaseException:
        response.close()
        raise
    kind = "csv" if written is as_csv else "jsonl"
    media_type = "text/csv; charset=utf-8" if written is as_csv else "application/octet-stream"
    response.response = written(_chained(first, pages))
    response.headers["Content-Type"] = media_type
    name = f"messages-{email_domain or 'all'}.{kind}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def as_csv(pages: Iterator[Sequence[Message]]) -> Iterator[str]:
    """A table, with a head."""
    yield _csv_of([_COLUMNS])
    for page in pages:
        yield _csv_of([_cells(message) for message in page])


def as_lines(pages: Iterator[Sequence[Message]]) -> Iterator[str]:
    """Each message as the log's JSON has it."""
    for page in pages:
        yield "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in page)


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _pages(
    store: Store, email_domain: str | None, wanted: Wanted, part: Part
) -> Iterator[Sequence[Message]]:
    started, before, left = time.monotonic(), part.cursor, part.limit
    context = request_ctx.copy()  # the request is over before the last page is read
    while left:
        if time.monotonic() > started + MAX_SECONDS:
            raise SearchTooSlow  # the answer is cut, so that nobody takes a part for the whole
        limit = min(AT_ONCE, left)
        found: list[LoggedMessage] = store.messages(
            email_domain, time.time(), before=before, limit=limit, **wanted
        )
        if found:
            with context.copy():
                page = [in_full(message) for message in found]
            yield page
            before = (found[-1].at, found[-1].message_id)
        left = left - limit if len(found) == limit else 0


def _chained(
    first: Sequence[Message], rest: Iterator[Sequence[Message]]
) -> Iterator[Sequence[Message]]:
    yield first
    yield from rest


def _csv_of(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _cells(message: Message) -> list[str]:
    to = message["to_recipients"]
    cells = (
        message["message_id"],
        message["at"],
        message["outcome"],
        message["from_email"],
        ", ".join(message["recipients"] if to is None else to),
        ", ".join(message["to_cc"] or []),
        ", ".join(message["to_bcc"] or []),
        message["subject"],
        ", ".join(message["tags"]),
        message["service_used"] or "",
        message["service_message_id"] or "",
        "yes" if message["possible_duplicate"] else "no",
    )
    return [harmless(cell) for cell in cells]
