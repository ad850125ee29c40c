"""What a send is answered: the shapes of the contract, and the status that says the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, cast, get_args

from pydantic import JsonValue
from typing_extensions import NotRequired, TypedDict

from browsable_api import request
from browsable_api.errors import Error, told
from email_services.breakers import Step
from email_services.delivery import Delivery
from email_services.exceptions import NOT_SENT, SENT, UNKNOWN
from email_services.guard import KeptBack
from email_services.message import EmailMessage
from email_services.pool import PooledEmailService
from email_services.store import QUEUED
from endpoints.addresses import MESSAGE, url_of
from endpoints.messages import Attempt, Message, attempt_as_dict

PassingCode = Literal["busy", "unavailable"]
"""Why a message was not sent that may be sent later as it is."""

NotSentCode = Literal["message_refused", "kept_back", PassingCode]
BatchCode = Literal["batch_refused", PassingCode]
Word = Literal["sent", "not sent", "unknown"]


class Recipient(TypedDict):
    """What became of one recipient."""

    email: Annotated[str, told("The address.")]
    outcome: Annotated[Word, told("What became of it.")]
    service: Annotated[str, told('The last one that was asked, or "".')]
    reason: Annotated[str, told('Why not, or "".')]


class Guarded(TypedDict):
    """Whom a message is kept from, where the domain does not deliver to everybody."""

    kept_back: NotRequired[
        Annotated[list[str], told("Those of its recipients that the domain does not deliver to.")]
    ]
    redirected_to: NotRequired[Annotated[str, told("Who gets it in their place.")]]


class Tried(Guarded):
    """What the services did."""

    services_unsuccessful: Annotated[
        dict[str, str], told("Why each service that did not send it did not.")
    ]
    attempts: Annotated[list[Attempt], told("What each service did, in order.")]


class Sent(Tried):
    """A service accepted the message."""

    result: Annotated[Literal["success", "partial"], told("Partial: not for all recipients.")]
    message_id: Annotated[str, told("Our id of it.")]
    service_used: Annotated[str, told("The service that accepted it.")]
    service_message_id: Annotated[str | None, told("The provider's id of it.")]
    possible_duplicate: Annotated[
        bool, told("Whether an attempt before may have been accepted too.")
    ]
    recipients: NotRequired[
        Annotated[list[Recipient], told("Each one's fate, where some were refused.")]
    ]


class Queued(Guarded):
    """The message is on the disk of this server, which sends it as soon as it can."""

    result: Annotated[Literal["queued"], told("It waits to be sent.")]
    message_id: Annotated[str, told("Our id of it.")]
    url: Annotated[str, told("Its address here, which says what becomes of it.")]
    attempts: NotRequired[
        Annotated[list[Attempt], told("What each service did, where it was tried before.")]
    ]


class NotSent(Tried):
    """The message was surely not sent."""

    message_id: Annotated[str, told("Our id of it.")]
    result: Annotated[Literal["error"], told("Not sent.")]
    error: Annotated[str, told("One sentence.")]
    code: Annotated[
        NotSentCode,
        told(
            "The same for programs; `busy`: too many are in progress, try again soon. `kept_back`: "
            "the domain delivers to none of its recipients."
        ),
    ]


class Unknown(Tried):
    """The message may have been sent: a service took it and did not answer."""

    message_id: Annotated[str, told("Our id of it, with which the log tells what became of it.")]
    result: Annotated[Literal["unknown"], told("It may have been sent.")]
    error: Annotated[str, told("One sentence.")]
    code: Annotated[Literal["unknown_outcome"], told("The same for programs.")]


class PlannedStep(TypedDict):
    """What would be done with one service."""

    service: Annotated[str, told("The service.")]
    decision: Annotated[Literal["try", "probe", "skip"], told("What would be done.")]
    reason: Annotated[str, told('Why, or "".')]


class Plan(Guarded):
    """What would happen to a message; nothing was sent."""

    result: Annotated[Literal["dry run"], told("Nothing was sent.")]
    plan: Annotated[list[PlannedStep], told("Each service, in order.")]


class Invalid(Error):
    """A message of a batch that was not tried."""

    result: Annotated[Literal["error"], told("Not sent.")]


Result = Sent | Queued | NotSent | Unknown | Plan | Invalid
BatchWord = Literal["success", "queued", "mixed", "error"]


Results = Annotated[list[Result], told("One for each message, in the same order.")]


class BatchAnswer(TypedDict):
    """What became of each message of a batch."""

    result: Annotated[Literal["success", "queued", "mixed"], told("Of all together.")]
    results: Results


class BatchNotSent(TypedDict):
    """A batch of which surely nothing was sent."""

    result: Annotated[Literal["error"], told("Of all together.")]
    error: Annotated[str, told("One sentence.")]
    code: Annotated[
        BatchCode,
        told(
            "The same for programs; `batch_refused`: each message is invalid or was refused, and "
            "would be again. Else some may be sent later, by their own `code`."
        ),
    ]
    results: Results


class FieldHelp(TypedDict):
    """What one field of a message is."""

    required: Annotated[bool, told("Whether every message needs it.")]
    description: Annotated[str, told("What it is.")]


class HowToSend(TypedDict):
    """What a program needs to send a message."""

    email_domain: Annotated[str, told("The domain of the sender.")]
    services: Annotated[list[str], told("The services that are tried, in order.")]
    fields: Annotated[dict[str, FieldHelp], told("The fields of a message.")]
    example: Annotated[dict[str, JsonValue], told("A message.")]


class HowToSendAgain(TypedDict):
    """A message that can be sent again."""

    message: Annotated[Message, told("It, as the log has it.")]
    services: Annotated[list[str], told("The services that it may go through, in order.")]


AnsweredToOne = tuple[Sent | Queued | NotSent | Unknown, HTTPStatus, dict[str, str]]
Answered = tuple[
    Sent | Queued | NotSent | Unknown | Plan | BatchAnswer | BatchNotSent,
    HTTPStatus,
    dict[str, str],
]

STATUS_OF_OUTCOME: Final = {
    SENT: HTTPStatus.OK,
    QUEUED: HTTPStatus.ACCEPTED,
    NOT_SENT: HTTPStatus.SERVICE_UNAVAILABLE,
    UNKNOWN: HTTPStatus.GATEWAY_TIMEOUT,
}
STATUS_OF_REJECTED: Final = HTTPStatus.UNPROCESSABLE_ENTITY
"""Where not sent means that every service refused the message itself."""

STATUS_OF_BATCH: Final[Mapping[BatchWord, HTTPStatus]] = {
    "success": HTTPStatus.OK,
    "queued": HTTPStatus.ACCEPTED,
    "mixed": HTTPStatus.MULTI_STATUS,
    "error": HTTPStatus.SERVICE_UNAVAILABLE,
}
ANSWERS_TO_ONE: Final[Mapping[int, tuple[type, ...]]] = {
    STATUS_OF_OUTCOME[SENT]: (Sent,),
    STATUS_OF_OUTCOME[QUEUED]: (Queued,),
    STATUS_OF_REJECTED: (NotSent,),
    STATUS_OF_OUTCOME[NOT_SENT]: (NotSent,),
    STATUS_OF_OUTCOME[UNKNOWN]: (Unknown,),
}
ANSWERS: Final[Mapping[int, tuple[type, ...]]] = {
    **ANSWERS_TO_ONE,
    STATUS_OF_OUTCOME[SENT]: (Sent, Plan, BatchAnswer),
    STATUS_OF_OUTCOME[QUEUED]: (Queued, BatchAnswer),
    STATUS_OF_BATCH["mixed"]: (BatchAnswer,),
    STATUS_OF_OUTCOME[NOT_SENT]: (NotSent, BatchNotSent),
}
MEANS: Final = {
    HTTPStatus.OK: "**Sent**: `service_used` accepted it; `partial` where not for all "
    "`recipients`. Of a batch: all were sent.",
    HTTPStatus.ACCEPTED: "**Queued**: it is on the disk, and is sent as soon as that is possible; "
    "`url` says what becomes of it.",
    HTTPStatus.MULTI_STATUS: "Of a batch, some were sent: each of the `results` says what became "
    "of its message.",
    HTTPStatus.BAD_REQUEST: "Nothing was tried: `problems` names every field at fault. Mend the "
    "request.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Nothing was tried: it is too large.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "**Not sent**: every service refused the message itself, or "
    "cannot carry it (`message_refused`); mend the message. Or the domain delivers to none of its "
    "recipients (`kept_back`). Or the `Idempotency-Key` was used for "
    "another request.",
    HTTPStatus.SERVICE_UNAVAILABLE: "**Not sent**: no service could send it. Send it again later: "
    "after `Retry-After` seconds, where that is there. Of a batch, none was sent: send those of "
    "the `results` again whose own `code` is `unavailable` or `busy`, and mend the others; none "
    "is worth sending again where the batch's own `code` is `batch_refused`.",
    HTTPStatus.GATEWAY_TIMEOUT: "**Unknown**: a service took it and did not answer; it may have "
    "been sent. Do not just send it again, since it may arrive twice: look in the log of messages, "
    "or ask the recipient, and send again only what must arrive even if twice.",
}


def how_to_send(pool: PooledEmailService, services: list[str]) -> HowToSend:
    """What a program needs to send a message through these services."""
    return {
        "email_domain": pool.email_domain,
        "services": services,
        "fields": {
            name: {"required": field.is_required(), "description": field.description or ""}
            for name, field in EmailMessage.model_fields.items()
        },
        "example": {
            "from_email": f"me@{pool.email_domain}",
            "to_recipients": ["Ada <ada@example.org>"],
            "subject": "Hello",
            "raw_text_body": "It works.",
        },
    }


def status_of(delivery: Delivery) -> HTTPStatus:
    """Of the answer for one message."""
    return STATUS_OF_REJECTED if delivery.rejected else STATUS_OF_OUTCOME[delivery.outcome]


def headers_of(deliveries: Sequence[Delivery]) -> dict[str, str]:
    """Whether the answer is a stored one, and when to ask again."""
    headers = {}
    if deliveries and all(delivery.replayed for delivery in deliveries):
        headers["Idempotent-Replayed"] = "true"
    if waits := [d.retry_after for d in deliveries if d.retry_after is not None]:
        headers["Retry-After"] = str(max(1, math.ceil(min(waits))))
    if len(deliveries) == 1 and deliveries[0].outcome == QUEUED:
        headers["Location"] = _address_of(deliveries[0])
    return headers


def _address_of(delivery: Delivery) -> str:
    parts = request.view_args or {}
    return url_of(MESSAGE, email_domain=parts["email_domain"], message_id=delivery.message_id)


def delivery_as_dict(delivery: Delivery) -> Sent | Queued | NotSent | Unknown:
    """What became of one message."""
    attempts = [attempt_as_dict(attempt.as_dict()) for attempt in delivery.attempts]
    if delivery.outcome == QUEUED:
        queued = Queued(result="queued", message_id=delivery.message_id, url=_address_of(delivery))
        queued = {**queued, **_guarded(delivery.kept_back, delivery.redirected_to)}
        return {**queued, "attempts": attempts} if attempts else queued
    tried: Tried = {
        "services_unsuccessful": delivery.services_unsuccessful,
        "attempts": attempts,
        **_guarded(delivery.kept_back, delivery.redirected_to),
    }
    if delivery.outcome != SENT:
        return _not_surely_sent(delivery, tried)
    answer: Sent = {
        "result": "partial" if delivery.is_partial else "success",
        "message_id": delivery.message_id,
        "service_used": delivery.service_used or "",
        "service_message_id": delivery.service_message_id,
        "services_unsuccessful": tried["services_unsuccessful"],
        "attempts": tried["attempts"],
        "possible_duplicate": delivery.possible_duplicate,
    }
    if delivery.recipients:
        answer["recipients"] = [cast("Recipient", vars(r)) for r in delivery.recipients]
    return {**answer, **_guarded(delivery.kept_back, delivery.redirected_to)}


def _not_surely_sent(delivery: Delivery, tried: Tried) -> NotSent | Unknown:
    if delivery.outcome == UNKNOWN:
        return Unknown(
            result="unknown",
            error=delivery.error,
            code="unknown_outcome",
            message_id=delivery.message_id,
            **tried,
        )
    return NotSent(
        result="error",
        error=delivery.error,
        code=cast("NotSentCode", delivery.code),
        message_id=delivery.message_id,
        **tried,
    )


def _guarded(kept_back: Sequence[str], redirected_to: str | None) -> Guarded:
    """Only where it is kept from somebody."""
    found: Guarded = {}
    if kept_back:
        found["kept_back"] = list(kept_back)
    if redirected_to:
        found["redirected_to"] = redirected_to
    return found


def plan_as_dict(steps: Sequence[Step], kept_back: KeptBack) -> Plan:
    """What would be done with each service."""
    return {
        "result": "dry run",
        "plan": [
            {"service": step.service.name, "decision": step.decision, "reason": step.reason}
            for step in steps
        ],
        **_guarded(kept_back.addresses, kept_back.redirected_to),
    }


def batch_as_dict(results: list[Result]) -> BatchAnswer | BatchNotSent:
    """What became of all together, and of each."""
    words = {result["result"] for result in results}
    if words <= {"success", "dry run"}:
        return {"result": "success", "results": results}
    if words <= {"queued", "dry run"}:
        return {"result": "queued", "results": results}
    if words != {"error"}:
        return {"result": "mixed", "results": results}
    code, why = _why_none([cast("NotSent", result)["code"] for result in results])
    error = f"None of the messages was sent: {why}."
    return {"result": "error", "error": error, "code": code, "results": results}


def _why_none(codes: Sequence[str]) -> tuple[BatchCode, str]:
    """Why none of the messages with these codes was sent, for programs and for people."""
    passing = [code for code in codes if code in get_args(PassingCode)]
    if not passing:
        return "batch_refused", "each is invalid or was refused, and has to be mended"
    word: PassingCode = "unavailable" if "unavailable" in passing else "busy"
    if passing == codes:
        return word, "no service could send them"
    return word, f"no service could send {len(passing)} of them, and the rest has to be mended"


_ATTEMPTS: Final[list[Attempt]] = [
    {
        "service": "primary",
        "outcome": "not sent",
        "code": "unavailable",
        "reason": "HTTP 503.",
        "milliseconds": 212,
    },
    {"service": "backup", "outcome": "sent", "code": "", "reason": "", "milliseconds": 87},
]
_SENT: Final[Sent] = {
    "result": "success",
    "message_id": "dfd3beeb3f5d4ce7b882ad3ecd669788",
    "service_used": "backup",
    "service_message_id": "<20261124120000.1.abc@example.com>",
    "services_unsuccessful": {"primary": "HTTP 503."},
    "attempts": _ATTEMPTS,
    "possible_duplicate": False,
}
_QUEUED: Final[Queued] = {
    "result": "queued",
    "message_id": "dfd3beeb3f5d4ce7b882ad3ecd669788",
    "url": "https://mail.example.com/example.com/messages/dfd3beeb3f5d4ce7b882ad3ecd669788",
}
_INVALID: Final[Invalid] = {
    "result": "error",
    "error": "1 problem with what was sent.",
    "code": "invalid",
    "problems": {"subject": "Required."},
}
_NO_RECIPIENT: Final = "It needs an address in to_recipients."
_LATE: Final = "It did not answer within 10 s."
EXAMPLES: Final[Mapping[Any, Any]] = {
    Sent: _SENT,
    NotSent: {
        "result": "error",
        "error": "The message was not sent: no service could send it.",
        "code": "unavailable",
        "message_id": "dfd3beeb3f5d4ce7b882ad3ecd669788",
        "services_unsuccessful": {"primary": "HTTP 503."},
        "attempts": _ATTEMPTS[:1],
    },
    (NotSent, STATUS_OF_REJECTED): {
        "result": "error",
        "error": "The message was not sent: no service takes it as it is.",
        "code": "message_refused",
        "message_id": "dfd3beeb3f5d4ce7b882ad3ecd669788",
        "services_unsuccessful": {"primary": _NO_RECIPIENT},
        "attempts": [
            {
                "service": "primary",
                "outcome": "skipped",
                "code": "cannot_carry",
                "reason": _NO_RECIPIENT,
                "milliseconds": 0,
            }
        ],
    },
    Unknown: {
        "result": "unknown",
        "error": "The message may have been sent: a service took it and did not answer.",
        "code": "unknown_outcome",
        "message_id": "dfd3beeb3f5d4ce7b882ad3ecd669788",
        "services_unsuccessful": {"primary": _LATE},
        "attempts": [
            {
                "service": "primary",
                "outcome": "unknown",
                "code": "unknown_outcome",
                "reason": _LATE,
                "milliseconds": 10_003,
            }
        ],
    },
    Queued: _QUEUED,
    Plan: {
        "result": "dry run",
        "plan": [{"service": "primary", "decision": "try", "reason": ""}],
    },
    BatchAnswer: {"result": "success", "results": [_SENT]},
    (BatchAnswer, STATUS_OF_BATCH["queued"]): {"result": "queued", "results": [_QUEUED]},
    (BatchAnswer, STATUS_OF_BATCH["mixed"]): {"result": "mixed", "results": [_SENT, _INVALID]},
    BatchNotSent: batch_as_dict([_INVALID]),
}
"""Of the answers, by shape, or by shape and status; tests hold real ones to the same shapes."""
