"""What answers say of a message that was taken, wherever they do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, cast

from pydantic import WithJsonSchema
from typing_extensions import NotRequired, TypeAliasType, TypedDict

from browsable_api.errors import told
from email_services.addresses import Address
from email_services.pool import PooledEmailService
from email_services.store import Depth, LoggedMessage
from endpoints.addresses import MESSAGE, url_of
from endpoints.context import mailpool

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
"""ISO 8601, UTC."""

Outcome = Literal["sent", "not sent", "unknown", "in progress", "queued", "expired", "cancelled"]
# A schema of its own: generators name one for each field else, which might be a shape's name.
MessageOutcome = TypeAliasType("MessageOutcome", Outcome)


class Attempt(TypedDict):
    """What one service did with the message."""

    service: Annotated[str, told("The service.")]
    outcome: Annotated[Literal["sent", "not sent", "unknown", "skipped"], told("What it did.")]
    code: Annotated[str, told('Why it was not sent, as a word for programs, or "".')]
    reason: Annotated[str, told('Why it was not sent, or not to everybody, or "".')]
    milliseconds: Annotated[int, told("How long it took.")]
    at: NotRequired[Annotated[Time, told("When, if the message waited before.")]]


class MessageInShort(TypedDict):
    """A message, as listings show it."""

    message_id: Annotated[str, told("Our id of it.")]
    at: Annotated[Time, told("When it came.")]
    recipients: Annotated[list[str], told("Everybody it was for.")]
    subject: Annotated[str, told("The subject.")]
    outcome: Annotated[MessageOutcome, told("What became of it.")]
    service_used: Annotated[str | None, told("The service that accepted it.")]
    url: Annotated[str, told("Its address here.")]


class Message(MessageInShort):
    """A message of the log."""

    from_email: Annotated[str, told("The sender.")]
    stream: Annotated[str, told("What kind of mail it is.")]
    from_name: Annotated[str, told('The sender\'s name, or "".')]
    to_recipients: Annotated[
        list[str] | None, told("Those in to, with names; null where it is not known who was.")
    ]
    to_cc: Annotated[list[str] | None, told("The same of cc.")]
    to_bcc: Annotated[list[str] | None, told("The same of bcc.")]
    tags: Annotated[list[str], told("What the provider's statistics call it.")]
    again_of: Annotated[str | None, told("Our id of the message that it sends again.")]
    kept_back: Annotated[
        list[str], told("Those of the recipients that the domain does not deliver to.")
    ]
    redirected_to: Annotated[str | None, told("Who got it in their place.")]
    service_message_id: Annotated[str | None, told("The provider's id of it.")]
    possible_duplicate: Annotated[
        bool, told("Whether an attempt before may have been accepted too.")
    ]
    attempts: Annotated[list[Attempt], told("What each service did, in order.")]


class QueueDepth(TypedDict):
    """How much waits in a stream."""

    waiting: Annotated[int, told("Messages that could be sent now.")]
    oldest_seconds: Annotated[float | None, told("For how long the first of them waits.")]
    retrying: Annotated[int, told("Those that have been tried.")]
    scheduled: Annotated[int, told("Those whose time has not come.")]
    paused: Annotated[bool, told("Whether nothing of the stream is sent.")]


def queue_as_dict(pool: PooledEmailService) -> dict[str, QueueDepth]:
    """How much waits in each stream of the domain. Raises SearchTooSlow or StoreUnavailable."""
    store = mailpool.store
    depths = store.depths(pool.email_domain, time.time())
    paused = store.paused_streams(pool.email_domain)
    return {
        name: {
            "waiting": depth.waiting,
            "oldest_seconds": depth.oldest_seconds,
            "retrying": depth.retrying,
            "scheduled": depth.scheduled,
            "paused": name in paused,
        }
        for name in pool.streams
        for depth in [depths.get(name, Depth())]
    }


def iso(at: float) -> str:
    """A time in seconds since the epoch as ISO 8601, UTC."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")


def iso_or_none(at: float | None) -> str | None:
    """The same, of what may not be."""
    return None if at is None else iso(at)


def in_short(message: LoggedMessage) -> MessageInShort:
    """A message of the log, as listings show it."""
    return {
        "message_id": message.message_id,
        "at": iso(message.at),
        "recipients": list(message.recipients),
        "subject": message.subject,
        "outcome": cast("Outcome", message.outcome),
        "service_used": message.service_used,
        "url": url_of(MESSAGE, email_domain=message.email_domain, message_id=message.message_id),
    }


def in_full(message: LoggedMessage) -> Message:
    """The same, with all that the log keeps."""
    to, cc, bcc = _recipients_apart(message)
    return {
        **in_short(message),
        "from_email": message.from_email,
        "stream": message.stream,
        "from_name": message.from_name,
        "to_recipients": to,
        "to_cc": cc,
        "to_bcc": bcc,
        "tags": list(message.tags),
        "again_of": message.again_of,
        "kept_back": list(message.kept_back),
        "redirected_to": message.redirected_to,
        "service_message_id": message.service_message_id,
        "possible_duplicate": message.possible_duplicate,
        "attempts": [attempt_as_dict(attempt) for attempt in message.attempts],
    }


def _recipients_apart(message: LoggedMessage) -> Sequence[list[str] | None]:
    """Those in to, cc and bcc, with their names; None each where the log does not know."""
    cc, bcc = message.cc_from, message.bcc_from
    if cc is None or bcc is None:
        return None, None, None
    named = [str(Address(email, message.names.get(email, ""))) for email in message.recipients]
    return named[:cc], named[cc:bcc], named[bcc:]


def attempt_as_dict(kept: Mapping[str, Any]) -> Attempt:
    """An attempt as it is answered, from what was kept of it."""
    at = kept.get("at")
    return cast("Attempt", kept if at is None else {**kept, "at": iso(at)})
