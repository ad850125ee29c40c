"""The log of messages: what was sent, what became of it, and the mail itself where it is kept."""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import Annotated, Final, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    WithJsonSchema,
)
from typing_extensions import TypedDict
from werkzeug.wrappers import Response

from browsable_api import Asked, Form, request
from browsable_api.errors import told
from email_services.exceptions import A_TIME, NotWaiting, SearchTooSlow
from email_services.pool import PooledEmailService
from email_services.store import LoggedMessage
from email_services.texts import body_text
from endpoints.access import READING, SENDING
from endpoints.addresses import CANCEL, CONTENT, FILE, MESSAGE, MESSAGES, SEND_NOW, SOURCE, url_of
from endpoints.captured import (
    Captured,
    captured_as_dict,
    content_answer,
    file_answer,
    source_answer,
)
from endpoints.context import mailpool
from endpoints.messages import Message, Outcome, in_full
from endpoints.rooms import Endpoints, Fields

CURSOR: Final = "^([0-9]{1,15}(?:[.][0-9]{1,15})?)_([0-9a-f]{32})$"


def _refuse_bare_number(value: object) -> object:
    if re.fullmatch(r"[-+0-9.eE_\s]*", str(value)):
        raise ValueError(A_TIME)
    return value


def _parse_cursor(value: object) -> object:
    match = re.fullmatch(CURSOR, str(value))
    if not match:
        raise ValueError("It should be one that a page gave as next.")
    return (float(match.group(1)), match.group(2))


Text = Annotated[
    str,
    AfterValidator(body_text),
    WithJsonSchema({"type": "string", "pattern": r"^[^\x00]*$"}),
]
"""What a database can be asked for: PostgreSQL takes no NUL."""

Time = Annotated[AwareDatetime, BeforeValidator(_refuse_bare_number)]
"""A time as people and programs write it, not seconds since some epoch."""

Cursor = Annotated[
    tuple[float, str],
    BeforeValidator(_parse_cursor),
    WithJsonSchema({"type": "string", "pattern": CURSOR}),
]
"""The place between two messages of the log."""


class MessageFilter(Fields):
    """Which messages of the log are wanted, from the query of the URL."""

    other_names = {  # noqa: RUF012 - nobody changes it
        **dict.fromkeys(("to", "email", "to_email", "to_recipients", "recipients"), "recipient"),
        **dict.fromkeys(("status", "state", "event", "result"), "outcome"),
        **dict.fromkeys(("provider", "service_used"), "service"),
        **dict.fromkeys(("begin", "start", "start_date", "start_time", "fromdate"), "since"),
        **dict.fromkeys(("end", "before", "end_date", "end_time", "todate"), "until"),
        **dict.fromkeys(("next", "page", "offset", "page_token"), "cursor"),
        **dict.fromkeys(("count", "max", "per_page", "page_size"), "limit"),
    }

    recipient: Text | None = Field(
        None, description="An address it was sent to, or a part of one: `ada`, `@example.org`."
    )
    outcome: Outcome | None = Field(None, description="What became of it.")
    service: Text | None = Field(None, description="One that was tried or passed by.")
    since: Time | None = Field(None, description="ISO 8601 with a zone: `2026-11-24T12:00:00Z`.")
    until: Time | None = Field(None, description="ISO 8601 with a zone: `2026-11-24T12:00:00Z`.")
    cursor: Cursor | None = Field(None, description="Where a page ends, as its `next` says.")
    limit: int = Field(50, ge=1, le=500, description="How many at once, 50 by default.")


FILTER_FORM: Final = Form(
    fields={
        "outcome": Asked(
            "select", options={"": "any", **{outcome: outcome for outcome in get_args(Outcome)}}
        ),
        "cursor": Asked("none"),
    }
)


class Messages(TypedDict):
    """Messages of the log, the newest first."""

    messages: Annotated[list[Message], told("The messages.")]
    next: Annotated[str | None, told("The address of the following page.")]


class MessageInFull(Message):
    """A message of the log, and the mail itself where this server keeps it."""

    captured: Annotated[Captured | None, told("The mail; null where it is kept elsewhere.")]


room = Endpoints("messages", __name__, "The log: what was sent, and what became of it.")


@room.operation(
    "GET",
    MESSAGES,
    READING,
    page="messages.html",
    form=FILTER_FORM,
    raises=(SearchTooSlow,),
    leads_to=(MESSAGE, "/messages/0/message_id"),
)
def list_messages(pool: PooledEmailService, query: MessageFilter) -> Messages:
    """Messages.

    What was sent, newest first. The log keeps no bodies; a `maildir` service keeps the mail itself.

    It takes the pool key of the domain, or the root key, as `Authorization: Bearer KEY`.

    `next` is the address of the following page, or null. A message that was cut off by a crash is
    `unknown`.
    """
    found = mailpool.store.messages(
        pool.email_domain,
        time.time(),
        recipient=query.recipient,
        outcome=query.outcome,
        service=query.service and query.service.lower(),
        since=query.since.timestamp() if query.since else None,
        until=query.until.timestamp() if query.until else None,
        before=query.cursor,
        limit=query.limit,
    )
    return {
        "messages": [in_full(message) for message in found],
        "next": _next_page(pool.email_domain, found) if len(found) == query.limit else None,
    }


@room.operation("GET", MESSAGE, READING, page="message.html")
def get_message(message: LoggedMessage) -> MessageInFull:
    """A message.

    What became of it: every service in order, what it did and how long it took.

    `captured` is the mail itself, where the service that sent it keeps it on this server, as a
    `maildir` does: its headers, text and attachments, and where to see it as its reader does. Else
    it is null.

    It takes the pool key of the domain, or the root key, as `Authorization: Bearer KEY`.
    """
    return {**in_full(message), "captured": captured_as_dict(message)}


@room.operation("GET", CONTENT, READING, answers={HTTPStatus.OK: ("text/html",)})
def get_message_content(message: LoggedMessage) -> Response:
    """Content of a message.

    The HTML of a message that this server keeps (`maildir`), as its reader sees it, or else its
    text. Nothing in it runs, and nothing is fetched.
    """
    return content_answer(message)


@room.operation("GET", SOURCE, READING, answers={HTTPStatus.OK: ("text/plain",)})
def get_message_source(message: LoggedMessage) -> Response:
    """Source of a message.

    A message that this server keeps (`maildir`), byte by byte, with all its headers.
    """
    return source_answer(message)


@room.operation(
    "GET",
    FILE,
    READING,
    answers={HTTPStatus.OK: ("application/octet-stream",)},
    headers=("Content-Disposition",),
)
def get_message_file(message: LoggedMessage, number: str) -> Response:
    """A file in a message.

    One of the `attachments` of a message that this server keeps (`maildir`), counted from 1; to be
    saved.
    """
    return file_answer(message, number)


_GONE = {HTTPStatus.CONFLICT: "Nothing was done: it does not wait any more."}
_MAY_BE_GONE = {"raises": (NotWaiting,), "means": _GONE}


@room.operation("DELETE", MESSAGE, SENDING, **_MAY_BE_GONE)
def delete_message(pool: PooledEmailService, message: LoggedMessage) -> Message:
    """Cancel a message.

    One that waits is not sent then. Once somebody is sending it, or it was sent, that is 409.
    """
    if not mailpool.store.cancel(pool.email_domain, message.message_id, time.time()):
        raise NotWaiting(message.message_id)
    return _as_it_is_now(pool, message)


@room.operation("POST", CANCEL, SENDING, form=Form("Cancel it"), **_MAY_BE_GONE)
def cancel_message(pool: PooledEmailService, message: LoggedMessage) -> Message:
    """Cancel a message, from a page.

    The same as `DELETE` on its address.
    """
    return delete_message(pool, message)


@room.operation("POST", SEND_NOW, SENDING, form=Form("Send it now"), **_MAY_BE_GONE)
def send_message_now(pool: PooledEmailService, message: LoggedMessage) -> Message:
    """Send a message now.

    One that waits, for its time or for its next try, is tried at once.
    """
    if not mailpool.store.send_now(pool.email_domain, message.message_id, time.time()):
        raise NotWaiting(message.message_id)
    mailpool.dispatcher.wake(pool.email_domain, message.stream)
    return _as_it_is_now(pool, message)


def _as_it_is_now(pool: PooledEmailService, message: LoggedMessage) -> Message:
    now = time.time()
    id_ = message.message_id
    (found,) = mailpool.store.messages(pool.email_domain, now, message_id=id_)
    return in_full(found)


def _next_page(email_domain: str, found: list[LoggedMessage]) -> str:
    """The address of the following page, with the same filter."""
    query = {**request.args.to_dict(), "cursor": f"{found[-1].at!r}_{found[-1].message_id}"}
    return url_of(MESSAGES, query, email_domain=email_domain)
