"""What a send takes: a message or a batch, its Idempotency-Key, and how a form asks for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema

from browsable_api import Asked, Form, Structure, request
from email_services.exceptions import InvalidInput, MessageTooLarge
from email_services.ledger import Once
from email_services.message import MAX_FILES, MAX_RECIPIENTS, EmailMessage
from email_services.pool import PooledEmailService
from endpoints.context import mailpool
from endpoints.rooms import Fields, checked, given_fields

MAX_BATCH: Final = 1000
LARGEST_IN_A_BATCH: Final = 4
"""What the messages of a batch may become in all: as much as so many of the largest."""

MAX_JSON: Final = Structure(
    containers=MAX_BATCH * (50 + 2 * MAX_FILES),
    members=MAX_BATCH * 500,
    values=MAX_BATCH * (MAX_RECIPIENTS + 500),
)
"""What a batch may become: its messages, each with as many recipients and files as one may have."""

_YES_OR_NO: Final = {"": "as the provider does", "true": "yes", "false": "no"}
_LINES: Final = Asked("textarea", help="One name: value on each line.", is_folded=True)

MESSAGE_FORM: Final = Form(
    is_once=True,
    fields={
        "from_email": Asked(
            label="From",
            help="Or a whole address at {email_domain}; Shop <me@{email_domain}> gives a name.",
            ends_with="@{email_domain}",
        ),
        "to_recipients": Asked(
            "addresses",
            "To",
            "One address or several, with commas; Ada <ada@example.org> gives a name.",
        ),
        "to_cc": Asked("addresses", "Cc"),
        "to_bcc": Asked("addresses", "Bcc"),
        "subject": Asked(is_wide=True),
        "raw_text_body": Asked("textarea", "Text"),
        "html_body": Asked("html", "HTML"),
        "attachments": Asked("files", help="Files that go with it."),
        "from_name": Asked(is_folded=True),
        "reply_to": Asked("addresses", is_folded=True),
        "inline": Asked(
            "files", help="Images that the HTML shows as cid:FILENAME.", is_folded=True
        ),
        "headers": _LINES,
        "tags": Asked(help="For the provider's statistics, with commas.", is_folded=True),
        "metadata": _LINES,
        "track_opens": Asked(
            "select",
            help="Whether the provider notes that it was opened.",
            is_folded=True,
            options=_YES_OR_NO,
        ),
        "track_clicks": Asked(
            "select",
            help="Whether the provider notes clicks on links.",
            is_folded=True,
            options=_YES_OR_NO,
        ),
        "send_at": Asked(is_folded=True),
        "stream": Asked(is_folded=True),
        "expires_in": Asked(is_folded=True),
        "substitutions": _LINES,
        "on_unknown": Asked(
            "select",
            is_folded=True,
            options={"": "as the domain says", "failover": "failover", "stop": "stop"},
        ),
        "dry_run": Asked("buttons", options={"true": "Only say what would happen"}),
    },
)
"""What few messages need is folded away."""


class Batch(Fields):
    """Several messages in one request; each is checked on its own."""

    messages: list[
        Annotated[
            dict[str, Any],
            WithJsonSchema({"$ref": f"#/components/schemas/{EmailMessage.__name__}"}),
        ]
    ] = Field(
        description="Up to 1,000 messages, each with all its fields; JSON only.",
        min_length=1,
        max_length=MAX_BATCH,
    )


class SendAgain(Fields):
    """How a message of the log is sent again."""

    service: str | None = Field(
        None, description="The only service that it may go through; without it, the pool's."
    )


def read_again(fields: Mapping[str, Any], **_: object) -> SendAgain:
    """Raises InvalidInput with every problem of the request, its Idempotency-Key's among them."""
    if problems := _problems_of_the_key():
        raise InvalidInput(problems)
    return checked(SendAgain, fields)


def read_body(
    fields: Mapping[str, Any], pool: PooledEmailService, **_: object
) -> EmailMessage | Batch:
    """The message in `fields`, for a sender at the pool's domain, or the batch, not yet checked.

    Raises InvalidInput with every problem of the request, its Idempotency-Key's among them.
    """
    problems = _problems_of_the_key()
    if request.is_from_a_form:
        fields = _with_whole_sender(fields, pool)
    try:
        body = checked(Batch, fields) if "messages" in fields else parse(fields, pool)
    except InvalidInput as error:
        if not problems:
            raise
        raise InvalidInput({**error.problems, **problems}) from None
    if problems:
        raise InvalidInput(problems)
    return body


def parse(fields: Mapping[str, Any], pool: PooledEmailService) -> EmailMessage:
    """One message. Raises InvalidInput."""
    try:
        message = EmailMessage.parse(fields, pool.email_domain, mailpool.config.max_message_bytes)
    except InvalidInput as error:
        problems = _problems_of_stream(fields.get("stream"), pool)
        if not problems:
            raise
        raise InvalidInput({**error.problems, **problems}) from None
    if problems := _problems_of_stream(message.stream, pool):
        raise InvalidInput(problems)
    return message


def _with_whole_sender(fields: Mapping[str, Any], pool: PooledEmailService) -> Mapping[str, Any]:
    """With the domain that the form shows behind the field, where nobody has typed one."""
    sender = fields.get("from_email")
    if not isinstance(sender, str) or "@" in sender or not sender.strip():
        return fields
    return {**fields, "from_email": f"{sender.strip()}@{pool.email_domain}"}


def _problems_of_stream(name: object, pool: PooledEmailService) -> dict[str, str]:
    if not isinstance(name, str) or not name or name in pool.streams:
        return {}
    return {"stream": f"The domain has no such stream. It has: {', '.join(pool.streams)}."}


def waits(pool: PooledEmailService) -> bool:
    """Whether the caller, or else the domain, wants messages to be taken and sent later."""
    return prefers_to_go_on() or mailpool.config.domain(pool.email_domain).queues_all


def prefers_to_go_on() -> bool:
    """Whether the caller does not want to wait for what becomes of the request (RFC 7240)."""
    wishes = request.headers.get("Prefer", "").lower().split(",")
    return any(wish.partition(";")[0].strip() == "respond-async" for wish in wishes)


def refuse_large_batch(size: int) -> None:
    """Raise MessageTooLarge where the first messages of a batch become `size` bytes, and too many.

    A request of a few megabytes may ask for gigabytes, by substitutions and by HTML whose text is
    longer: nothing of the rest is made then.
    """
    limit = LARGEST_IN_A_BATCH * mailpool.config.max_message_bytes
    if size > limit:
        raise MessageTooLarge(size, limit, "substitutions", "The batch has at least")


def once(only: str | None, again_of: str | None = None) -> Once | None:
    """The Idempotency-Key of a request that was checked, for a message through `only` or all.

    again_of: the message of the log that is sent again, if it is one.
    """
    if not _has_key():
        return None
    mark = fingerprint([only, again_of, given_fields()] if again_of else [only, given_fields()])
    return Once(_idempotency_key(mark), mark)


def once_each(
    only: str | None, asked: Mapping[int, Mapping[str, Any]]
) -> tuple[list[Once] | None, Once | None]:
    """The same for the messages of a batch, each with a key of its own, by its number.

    And the key itself, which then stands for a batch and for nothing else.
    """
    if not _has_key():
        return None, None
    marks = {number: fingerprint([only, message]) for number, message in asked.items()}
    key = _idempotency_key(str(marks))
    stem = hashlib.sha256(key.encode()).hexdigest()
    each = [Once(f"{stem}.{number}", mark) for number, mark in marks.items()]
    return each, Once(key, "a batch")


def forget_files(*held: dict[str, Any]) -> None:
    """The messages have them; another copy while they are being sent would be one too many."""
    for holder in (*held, request.data):
        for name in ("attachments", "inline", "messages"):
            holder.pop(name, None)


def max_body_bytes(message_bytes: int) -> int:
    """What a body may hold that carries a message: base64, its line breaks, JSON around it."""
    return int(message_bytes * 1.45) + 1024 * 1024


def fingerprint(asked: object) -> str:
    """The same for the same, whatever the order of its fields; a file counts by its hash."""
    text = json.dumps(
        asked, sort_keys=True, default=lambda content: hashlib.sha256(content).hexdigest()
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _has_key() -> bool:
    return request.once_key is not None or "Idempotency-Key" in request.headers


def _idempotency_key(mark: str) -> str:
    """The header's, or one for this form as it was filled in: another message is another one."""
    if request.once_key is None:
        return str(request.headers["Idempotency-Key"])
    return hashlib.sha256(f"{request.once_key} {mark}".encode()).hexdigest()


def _problems_of_the_key() -> dict[str, str]:
    key = request.headers.get("Idempotency-Key")
    if key is None or re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        return {}
    return {"Idempotency-Key": "It should be 1 to 255 printable ASCII characters without spaces."}
