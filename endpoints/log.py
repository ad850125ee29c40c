"""The log of messages: what was sent, what became of it, and the mail itself where it is kept."""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, get_args

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
from email_services.exceptions import A_TIME, NoCopy, NotWaiting, SearchTooSlow
from email_services.message import MAX_TAG
from email_services.pool import PooledEmailService
from email_services.store import IN_PROGRESS, MOST_COUNTED, QUEUED, LoggedMessage, Wanted
from email_services.texts import body_text
from endpoints.access import READING, ROOT, SENDING
from endpoints.addresses import (
    ALL_AS_CSV,
    ALL_AS_LINES,
    ALL_MESSAGES,
    AS_CSV,
    AS_LINES,
    CANCEL,
    CONTENT,
    FILE,
    MESSAGE,
    MESSAGES,
    SEND_AGAIN,
    SEND_NOW,
    SOURCE,
    url_of,
)
from endpoints.captured import (
    Captured,
    captured_as_dict,
    content_answer,
    file_answer,
    source_answer,
)
from endpoints.context import mailpool
from endpoints.export import as_csv, as_lines, exported
from endpoints.messages import Message, MessageInShort, Outcome, in_full, in_short
from endpoints.rooms import Endpoints, Fields

HOUR_SECONDS: Final = 3600
DAY_SECONDS: Final = 24 * HOUR_SECONDS
MOST_AGAIN: Final = 20
"""Messages that sent one again, of which its page tells."""

CURSOR: Final = "^([0-9]{1,15}(?:[.][0-9]{1,15})?)_([0-9a-f]{32})$"


def _refuse_bare_number(value: object) -> object:
    if re.fullmatch(r"[-+0-9.eE_\s]*", str(value)):
        raise ValueError(A_TIME)
    return value


def _of_a_picker(value: object) -> object:
    """What a form's picker gives has no zone, and no seconds; the form says that it is UTC."""
    return f"{value}Z" if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d", str(value)) else value


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

Time = Annotated[AwareDatetime, BeforeValidator(_of_a_picker), BeforeValidator(_refuse_bare_number)]
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
        **dict.fromkeys(("query", "search", "subject", "text", "words"), "q"),
        **dict.fromkeys(("tags", "category", "label"), "tag"),
    }

    q: Text | None = Field(
        None,
        description="Words, or how they begin, of the subject, an address, a name or a tag.",
        max_length=500,
    )
    outcome: Outcome | None = Field(None, description="What became of it.")
    period: Literal["hour", "today", "week"] | None = Field(
        None, description="The last hour, today since midnight UTC, or the last 7 days."
    )
    service: Text | None = Field(None, description="One that was tried or passed by.")
    tag: Text | None = Field(None, description="One of its tags, whole.", max_length=MAX_TAG)
    recipient: Text | None = Field(
        None, description="An address it was sent to, or a part of one: `ada`, `@example.org`."
    )
    since: Time | None = Field(None, description="ISO 8601 with a zone: `2026-11-24T12:00:00Z`.")
    until: Time | None = Field(None, description="ISO 8601 with a zone: `2026-11-24T12:00:00Z`.")
    cursor: Cursor | None = Field(None, description="Where a page ends, as its `next` says.")
    limit: int = Field(50, ge=1, le=500, description="How many at once, 50 by default.")

    def wanted(self, now: float) -> Wanted:
        """The same for the store."""
        since = [self.since.timestamp()] if self.since else []
        since += [_begin_of(self.period, now)] if self.period else []
        return {
            "words": self.q,
            "outcome": self.outcome,
            "service": self.service and self.service.lower(),
            "tag": self.tag,
            "recipient": self.recipient,
            "since": max(since, default=None),
            "until": self.until.timestamp() if self.until else None,
        }


def _begin_of(period: str, now: float) -> float:
    if period == "today":
        return now - now % DAY_SECONDS
    return now - (HOUR_SECONDS if period == "hour" else 7 * DAY_SECONDS)


class ExportFilter(MessageFilter):
    """The same for a file of all of them."""

    cursor: Cursor | None = Field(None, description="Where to begin, as a page's `next` says.")
    limit: int = Field(
        1_000_000, ge=1, le=1_000_000, description="How many at most, 1,000,000 by default."
    )


_PICKED: Final = Asked("time", help="UTC.", is_folded=True)
FILTER_FORM: Final = Form(
    fields={
        "q": Asked("search", "Search", "Words of the subject, a part of an address or a name."),
        "outcome": Asked(
            "select", options={"": "any", **{outcome: outcome for outcome in get_args(Outcome)}}
        ),
        "period": Asked(
            "select",
            "Time",
            "Days are those of UTC.",
            options={"": "any", "hour": "last hour", "today": "today", "week": "last 7 days"},
        ),
        "service": Asked(is_folded=True),
        "tag": Asked(is_folded=True),
        "recipient": Asked(is_folded=True),
        "since": _PICKED,
        "until": _PICKED,
        "limit": Asked(is_folded=True),
        "cursor": Asked("none"),
    }
)


class MessageView(Fields):
    """What the page of a message shows of it."""

    show: Literal["html", "text", "headers", "source", "files"] | None = Field(
        None, description="For its page: what of the mail it shows."
    )
    width: Literal["phone", "desk"] | None = Field(
        None, description="For its page: how wide the HTML is."
    )
    after: Literal["send", "repeat"] | None = Field(
        None, description="For its page: what led there, a form that was sent or sent again."
    )


class Messages(TypedDict):
    """Messages of the log, the newest first."""

    messages: Annotated[list[Message], told("The messages.")]
    next: Annotated[str | None, told("The address of the following page.")]
    total: Annotated[
        int | None,
        told("How many there are on all pages, at most 10,000; null where to count takes long."),
    ]
    is_more_than_total: Annotated[bool, told("Whether there are more than were counted.")]


class MessageInFull(Message):
    """A message of the log, and the mail itself where this server keeps it."""

    captured: Annotated[Captured | None, told("The mail; null where it is not here.")]
    why_not_captured: Annotated[str, told('Why it is not here, or "".')]
    sent_again: Annotated[list[MessageInShort], told("Messages that send it again, newest first.")]
    send_again_url: Annotated[
        str | None, told("Where it is sent again; null without a copy, or while it is on its way.")
    ]


def _exports(media_type: str) -> dict[str, Any]:
    """What every way to export declares."""
    return {
        "answers": {HTTPStatus.OK: (media_type,)},
        "headers": ("Content-Disposition",),
        "raises": (SearchTooSlow,),
    }


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

    What was sent, newest first.

    The log keeps no bodies: the mail itself is kept where the domain wants that
    (`keep_content_days`), and by a `maildir` service.

    It takes the pool key of the domain, or the root key, as `Authorization: Bearer KEY`.

    `q` finds messages that have each of its words, or words that begin so, in their subject, an
    address, a name or a tag; case and accents make no difference. `next` is the address of the
    following page, or null. A message that was cut off by a crash is `unknown`.
    """
    return _listed(pool.email_domain, query)


@room.operation(
    "GET",
    ALL_MESSAGES,
    ROOT,
    page="messages.html",
    form=FILTER_FORM,
    raises=(SearchTooSlow,),
)
def list_all_messages(query: MessageFilter) -> Messages:
    """Messages of all domains.

    What was sent by all email domains of this server, newest first.

    It takes the root key, and is asked like the messages of one domain.
    """
    return _listed(None, query)


@room.operation("GET", AS_CSV, READING, **_exports("text/csv"))
def export_messages_as_csv(pool: PooledEmailService, query: ExportFilter) -> Response:
    """Messages as a table.

    The messages that `GET /<domain>/messages` finds, as a CSV file for a spreadsheet. A text in it
    that a spreadsheet would take for a formula has a `'` before it.
    """
    return exported(pool.email_domain, query.wanted(time.time()), query, as_csv)


@room.operation("GET", AS_LINES, READING, **_exports("application/octet-stream"))
def export_messages_as_lines(pool: PooledEmailService, query: ExportFilter) -> Response:
    """Messages as lines of JSON.

    The messages that `GET /<domain>/messages` finds, each as one line of JSON.
    """
    return exported(pool.email_domain, query.wanted(time.time()), query, as_lines)


@room.operation("GET", ALL_AS_CSV, ROOT, **_exports("text/csv"))
def export_all_messages_as_csv(query: ExportFilter) -> Response:
    """Messages of all domains as a table.

    As those of one domain are.
    """
    return exported(None, query.wanted(time.time()), query, as_csv)


@room.operation("GET", ALL_AS_LINES, ROOT, **_exports("application/octet-stream"))
def export_all_messages_as_lines(query: ExportFilter) -> Response:
    """Messages of all domains as lines of JSON.

    As those of one domain are.
    """
    return exported(None, query.wanted(time.time()), query, as_lines)


@room.operation("GET", MESSAGE, READING, page="message.html")
def get_message(message: LoggedMessage, query: MessageView) -> MessageInFull:  # noqa: ARG001 - for its page
    """A message.

    What became of it: every service in order, what it did and how long it took.

    `captured` is the mail itself, where the domain keeps copies (`keep_content_days`), the service
    that sent it keeps it on this server, as a `maildir` does, or it waits to be sent: its headers,
    text and attachments, and where to see it as its reader does. Else it is null, and
    `why_not_captured` says why. `again_of` is the message that it sends again, and `sent_again`
    those that do so with it.

    It takes the pool key of the domain, or the root key, as `Authorization: Bearer KEY`.
    """
    captured, why_not = None, ""
    try:
        captured = captured_as_dict(message)
    except NoCopy as error:
        why_not = str(error)
    sent_again = mailpool.store.sent_again(message.message_id, time.time(), MOST_AGAIN)
    return {
        **in_full(message),
        "captured": captured,
        "why_not_captured": why_not,
        "sent_again": [in_short(found) for found in sent_again],
        "send_again_url": _send_again_url(message),
    }


def _send_again_url(message: LoggedMessage) -> str | None:
    is_over = message.outcome not in {QUEUED, IN_PROGRESS}
    if not (is_over and mailpool.copies.has(message.message_id)):
        return None
    names = {"email_domain": message.email_domain, "message_id": message.message_id}
    return url_of(SEND_AGAIN, **names)


@room.operation("GET", CONTENT, READING, answers={HTTPStatus.OK: ("text/html",)})
def get_message_content(message: LoggedMessage) -> Response:
    """Content of a message.

    The HTML of a message that this server keeps, as its reader sees it, or else its text. Nothing
    in it runs, and nothing is fetched.
    """
    return content_answer(message)


@room.operation("GET", SOURCE, READING, answers={HTTPStatus.OK: ("text/plain",)})
def get_message_source(message: LoggedMessage) -> Response:
    """Source of a message.

    A message that this server keeps, with all its headers: byte by byte as a `maildir` has it, or
    as it was handed to a provider, who adds headers of its own.
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

    One of the `attachments` of a message that this server keeps, counted from 1; to be saved.
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


def _listed(email_domain: str | None, query: MessageFilter) -> Messages:
    """A page of the domain's messages, or of all domains'."""
    now = time.time()
    wanted = query.wanted(now)
    found = mailpool.store.messages(
        email_domain, now, before=query.cursor, limit=query.limit, **wanted
    )
    is_all = query.cursor is None and len(found) < query.limit
    total = len(found) if is_all else mailpool.store.count_messages(email_domain, now, **wanted)
    is_more = total is not None and total > MOST_COUNTED
    return {
        "messages": [in_full(message) for message in found],
        "next": _next_page(email_domain, found) if len(found) == query.limit else None,
        "total": MOST_COUNTED if is_more else total,
        "is_more_than_total": is_more,
    }


def _next_page(email_domain: str | None, found: list[LoggedMessage]) -> str:
    """The address of the following page, with the same filter."""
    query = {**request.args.to_dict(), "cursor": f"{found[-1].at!r}_{found[-1].message_id}"}
    if email_domain is None:
        return url_of(ALL_MESSAGES, query)
    return url_of(MESSAGES, query, email_domain=email_domain)
