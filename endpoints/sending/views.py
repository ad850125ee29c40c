"""Sending: through the pool, with failover, or through one service."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from browsable_api import Form, request
from email_services.abstract import AbstractEmailService
from email_services.delivery import Delivery
from email_services.exceptions import (
    NOT_SENT,
    InvalidInput,
    KeyInProgress,
    KeyReused,
    MessageTooLarge,
    NoCopy,
    StoreUnavailable,
    UnderWay,
    UnknownDomain,
)
from email_services.ledger import Once
from email_services.logs import about
from email_services.message import EmailMessage
from email_services.pool import PooledEmailService
from email_services.store import IN_PROGRESS, QUEUED, LoggedMessage
from endpoints.access import LISTED, SENDING, is_signed_in
from endpoints.addresses import MESSAGE, SEND, SEND_AGAIN, SEND_THROUGH, path_of
from endpoints.context import mailpool
from endpoints.messages import in_full
from endpoints.rooms import Endpoints
from endpoints.sending.answers import (
    ANSWERS,
    ANSWERS_TO_ONE,
    EXAMPLES,
    MEANS,
    STATUS_OF_BATCH,
    Answered,
    AnsweredToOne,
    HowToSend,
    HowToSendAgain,
    Invalid,
    Plan,
    Result,
    batch_as_dict,
    delivery_as_dict,
    headers_of,
    how_to_send,
    plan_as_dict,
    status_of,
)
from endpoints.sending.bodies import (
    MESSAGE_FORM,
    Batch,
    SendAgain,
    forget_files,
    once,
    once_each,
    parse,
    prefers_to_go_on,
    read_again,
    read_body,
    refuse_large_batch,
    waits,
)

_MESSAGE: Final = {
    "from_email": "me@example.com",
    "to_recipients": ["Ada <ada@example.org>"],
    "subject": "Hello",
    "raw_text_body": "It works.",
}
_WITH_EVERYTHING: Final = {
    "from_email": "me@example.com",
    "from_name": "Me",
    "to_recipients": ["ada@example.org", "Bob <bob@example.org>"],
    "to_cc": [],
    "reply_to": ["office@example.com"],
    "subject": "Hello {{name}}",
    "raw_text_body": "It works, {{name}}.",
    "html_body": '<p>It works, {{name}}.</p><img src="cid:dot">',
    "attachments": [{"filename": "note.txt", "content": "SXQgd29ya3Mu"}],
    "inline": [
        {
            "filename": "dot.gif",
            "content": "R0lGODlhAQABAAAAACwAAAAAAQABAAA=",
            "content_id": "dot",
        }
    ],
    "headers": {"X-Order": "42"},
    "tags": ["welcome"],
    "metadata": {"order": "42"},
    "substitutions": {"name": "Ada"},
    "on_unknown": "stop",
}
_SENDS: Final[dict[str, Any]] = {
    "page": "send.html",
    "form": MESSAGE_FORM,
    "reads": read_body,
    "answers": ANSWERS,
    "means": MEANS,
    "raises": (MessageTooLarge, KeyInProgress, KeyReused),
    "headers": ("Idempotent-Replayed", "Location", "Preference-Applied"),
    "request_headers": ("Idempotency-Key", "Prefer"),
    "leads_to": (MESSAGE, "/message_id"),
}
"""What both ways of sending declare."""

_NOT_AGAIN: Final = {
    HTTPStatus.CONFLICT: "Nothing was sent: no copy of the message is here (`no_copy`), it is "
    "still on its way (`under_way`), or a request with this `Idempotency-Key` is in progress.",
}

room = Endpoints("sending", __name__, "Messages, and batches of them.", EXAMPLES)


@room.operation("GET", SEND, LISTED, page="send.html")
def get_how_to_send(pool: PooledEmailService) -> HowToSend:
    """How to send a message.

    The services of this domain are tried in order, until one accepts the message.

    **POST** it here, with the pool key of the domain as `Authorization: Bearer KEY` or as
    `pool_api_key` in the body. **GET** says how.
    """
    return how_to_send(pool, list(pool.services))


@room.operation(
    "POST",
    SEND,
    SENDING,
    **_SENDS,
    examples={
        "message": _MESSAGE,
        "with everything": _WITH_EVERYTHING,
        "dry run": {**_MESSAGE, "dry_run": True},
        "batch": {"messages": [_MESSAGE, {**_MESSAGE, "to_recipients": ["bob@example.org"]}]},
    },
)
def send_message(pool: PooledEmailService, body: EmailMessage | Batch) -> Answered:
    """Send a message.

    A service that cannot carry something in a message is passed by, and `attempts` says why.
    Nothing is ever left out. `possible_duplicate` is true where a message was sent after an attempt
    whose outcome is unknown.

    An `Idempotency-Key` header makes a request safe to repeat: the same key gets the same answer.

    With `Prefer: respond-async` the message is **queued**: the answer comes as soon as it is on the
    disk, and `url` says what becomes of it. It is tried again until it is sent, or has expired.

    **Many at once:** `{"messages": [...]}` takes up to 1,000, each with all its fields, and answers
    with `results` in the same order.
    """
    return _send(pool, body)


@room.operation("GET", SEND_THROUGH, LISTED, page="send.html")
def get_how_to_send_through(pool: PooledEmailService, service: AbstractEmailService) -> HowToSend:
    """How to send through one service.

    The same as sending through the pool, but no other service is tried.
    It is how to find out whether one provider works. Fields and answers are the same.
    """
    return how_to_send(pool, [service.name])


@room.operation("POST", SEND_THROUGH, SENDING, **_SENDS, examples={"message": _MESSAGE})
def send_message_through(
    pool: PooledEmailService, service: AbstractEmailService, body: EmailMessage | Batch
) -> Answered:
    """Send through one service.

    A message or a batch, as to the pool.
    """
    return _send(pool, body, service)


@room.operation(
    "GET", SEND_AGAIN, SENDING, page="again.html", raises=(NoCopy, UnderWay), means=_NOT_AGAIN
)
def get_how_to_send_again(pool: PooledEmailService, message: LoggedMessage) -> HowToSendAgain:
    """How to send a message again.

    To the same recipients, as a new message that names this one.

    **GET** says what would be sent, and through which services. **POST** sends it.
    """
    _refuse_unless_over(message)
    if not mailpool.copies.has(message.message_id):
        mailpool.copies.find(pool.email_domain, message.message_id)  # which says why there is none
    return {"message": in_full(message), "services": list(pool.services)}


@room.operation(
    "POST",
    SEND_AGAIN,
    SENDING,
    **{
        **_SENDS,
        "page": "again.html",
        "form": Form("Send it again", is_once=True),
        "reads": read_again,
        "answers": ANSWERS_TO_ONE,
        "means": {**MEANS, **_NOT_AGAIN},
        "raises": (NoCopy, UnderWay, KeyInProgress, KeyReused),
    },
    examples={"the pool": {}, "one service": {"service": "backup"}},
)
def send_message_again(
    pool: PooledEmailService, message: LoggedMessage, body: SendAgain
) -> AnsweredToOne:
    """Send a message again.

    A new message, with an id of its own, whose `again_of` names this one, through the pool or
    through one `service`. It has all that this one had but a time to be sent at, and the answers
    are those of a send. Whoever has got this one gets another.

    It takes a copy of the message (`keep_content_days` of the domain), and that this one is over:
    else nothing is sent, and that is 409.
    """
    _refuse_unless_over(message)
    only = pool.service(body.service) if body.service else None
    copy = mailpool.copies.find(pool.email_domain, message.message_id)
    key = once(only.name if only else None, message.message_id)
    return _send_one(pool, copy.again(), only, key)


def page_services() -> dict[str, Any]:
    """For templates: services_here gives the names of the services of the domain of the address."""
    return {"services_here": _services_here}


def _services_here() -> list[str]:
    with suppress(UnknownDomain):
        domain = mailpool.config.domain((request.view_args or {}).get("email_domain", ""))
        return list(mailpool.pools[domain.email_domain].services)
    return []


def _refuse_unless_over(message: LoggedMessage) -> None:
    if message.outcome in {QUEUED, IN_PROGRESS}:
        raise UnderWay(message.message_id)


def _send(
    pool: PooledEmailService, body: EmailMessage | Batch, only: AbstractEmailService | None = None
) -> Answered:
    if isinstance(body, Batch):
        return _send_batch(pool, body, only)
    if body.dry_run:
        return _plan(pool, body, only), HTTPStatus.OK, {}
    key = once(only.name if only else None)
    forget_files()
    return _send_one(pool, body, only, key)


def _send_one(
    pool: PooledEmailService,
    message: EmailMessage,
    only: AbstractEmailService | None,
    key: Once | None,
) -> AnsweredToOne:
    about(message_id=message.message_id)
    is_for_later = waits(pool) or pool.has_to_wait(message, only)
    send = pool.accept if is_for_later else pool.send_all
    (delivery,) = send([message], only, [key] if key else None)
    about(message_id=delivery.message_id)  # of the first request with its key
    status, headers = status_of(delivery), _headers([delivery])
    if page := _page_of(pool, delivery):
        status, headers["Location"] = HTTPStatus.SEE_OTHER, page
    return delivery_as_dict(delivery), status, headers


def _page_of(pool: PooledEmailService, delivery: Delivery) -> str:
    """Where a person goes from the form: to the message's page, which can be loaded again.

    "" where that could not show it: it is not in the log, or needs a key, or does not say who was
    refused. What was not sent is mended in the form.
    """
    is_shown = delivery.outcome != NOT_SENT and not delivery.is_partial
    if not (is_shown and request.is_from_a_form and is_signed_in()):
        return ""
    names = {"email_domain": pool.email_domain, "message_id": delivery.message_id}
    after = {"after": "repeat" if delivery.replayed else "send"}
    with suppress(StoreUnavailable):
        if mailpool.store.messages(pool.email_domain, time.time(), message_id=delivery.message_id):
            return path_of(MESSAGE, after, **names)
    return ""


def _send_batch(
    pool: PooledEmailService, batch: Batch, only: AbstractEmailService | None
) -> Answered:
    """Send the messages, each on its own: one that is wrong stops no other."""
    results: dict[int, Result] = {}
    messages: dict[int, EmailMessage] = {}
    size = 0
    for number, fields in enumerate(batch.messages):
        try:
            message = parse(fields, pool)
        except InvalidInput as error:
            results[number] = _invalid(error)
            continue
        if message.dry_run:
            results[number] = _plan(pool, message, only)
        else:
            messages[number] = message
            size += message.rendered_size
            refuse_large_batch(size)
    keys, whole = once_each(only.name if only else None, {n: batch.messages[n] for n in messages})
    forget_files(*batch.messages)
    send = pool.accept if _is_for_later(pool, messages.values(), only) else pool.send_all
    deliveries = send(list(messages.values()), only, keys, whole) if messages else []
    for number, delivery in zip(messages, deliveries, strict=True):
        results[number] = delivery_as_dict(delivery)
    answer = batch_as_dict([results[number] for number in range(len(batch.messages))])
    return answer, STATUS_OF_BATCH[answer["result"]], _headers(deliveries)


def _is_for_later(
    pool: PooledEmailService,
    messages: Collection[EmailMessage],
    only: AbstractEmailService | None,
) -> bool:
    """Whether a batch is queued: as a whole, if one of its messages has to wait."""
    return waits(pool) or any(pool.has_to_wait(message, only) for message in messages)


def _headers(deliveries: Sequence[Delivery]) -> dict[str, str]:
    headers = headers_of(deliveries)
    if prefers_to_go_on() and any(delivery.outcome == QUEUED for delivery in deliveries):
        headers["Preference-Applied"] = "respond-async"
    return headers


def _plan(
    pool: PooledEmailService, message: EmailMessage, only: AbstractEmailService | None
) -> Plan:
    return plan_as_dict(pool.plan(message, only), pool.guard.apply(message)[1])


def _invalid(error: InvalidInput) -> Invalid:
    return {
        "result": "error",
        "error": str(error),
        "code": error.code,
        "problems": error.problems,
    }
