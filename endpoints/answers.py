"""What is answered: the shapes of the contract, and the status that says the same."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any

from flask import current_app, redirect, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from browsable_api import APIError, request
from email_services.abstract import AbstractEmailService
from email_services.config import EmailDomain
from email_services.delivery import Delivery
from email_services.drill import Drill
from email_services.exceptions import (
    NOT_SENT,
    SENT,
    UNKNOWN,
    EmailServicesError,
    InvalidInput,
    KeyInProgress,
    KeyRefused,
    KeyReused,
    MessageTooLarge,
    SearchTooSlow,
    StoreUnavailable,
    TooManyWrongKeys,
    UnknownDomain,
    UnknownMessage,
    UnknownService,
)
from email_services.message import EmailMessage
from email_services.pool import PooledEmailService
from email_services.store import IN_PROGRESS, LoggedMessage, ServiceState
from endpoints.access import is_root, may_read
from endpoints.bodies import (
    MessageFilter,
    SignIn,
    checked_batch,
    checked_message,
    given_fields,
    once,
    once_each,
    refuse_large_batch,
)
from endpoints.context import mailpool, pool_of
from endpoints.deliveries import delivery_as_dict, step_as_dict
from endpoints.sessions import (
    Session,
    forget_cookie,
    local_address,
    may_sign_out,
    open_session,
    set_cookie,
)

STATUS_OF_OUTCOME = {
    SENT: HTTPStatus.OK,
    NOT_SENT: HTTPStatus.SERVICE_UNAVAILABLE,
    UNKNOWN: HTTPStatus.GATEWAY_TIMEOUT,
}
STATUS_OF_REJECTED = HTTPStatus.UNPROCESSABLE_ENTITY
"""Where not sent means that every service refused the message itself."""

STATUS_OF_BATCH = {
    "success": HTTPStatus.OK,
    "mixed": HTTPStatus.MULTI_STATUS,
    "error": HTTPStatus.SERVICE_UNAVAILABLE,
}
STATUS_OF_ERROR: Mapping[type[EmailServicesError], HTTPStatus] = {
    InvalidInput: HTTPStatus.BAD_REQUEST,
    MessageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    KeyRefused: HTTPStatus.UNAUTHORIZED,
    TooManyWrongKeys: HTTPStatus.TOO_MANY_REQUESTS,
    UnknownDomain: HTTPStatus.NOT_FOUND,
    UnknownService: HTTPStatus.NOT_FOUND,
    UnknownMessage: HTTPStatus.NOT_FOUND,
    KeyInProgress: HTTPStatus.CONFLICT,
    KeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    SearchTooSlow: HTTPStatus.SERVICE_UNAVAILABLE,
}
LAST_MESSAGES = 5
"""How many of a domain's messages a listing shows."""
EXAMPLE_BODY = {
    "to_recipients": ["Ada <ada@example.org>"],
    "subject": "Hello",
    "raw_text_body": "It works.",
}


def address_of(endpoint: str, **values: str) -> str:
    """The full address of a view."""
    return url_for(f"mailpool.{endpoint}", _external=True, **values)


def addresses() -> dict[str, Any]:
    """Where pages lead to, beside what the answer says; for templates.

    message_url: a function of a message's id, None for who may not read it.
    """
    name = (request.view_args or {}).get("email_domain")
    if name is None:
        return {}
    return {
        "preview_url": url_for("mailpool.preview"),
        "send_url": url_for("mailpool.send", email_domain=name),
        "message_url": lambda id_: url_for("mailpool.message", email_domain=name, message_id=id_),
    }


def domain_as_dict(domain: EmailDomain) -> dict[str, Any]:
    """What a listing says of a domain; with its keys for the root, outside production."""
    name = domain.email_domain
    pool = pool_of(domain)
    with_keys = is_root() and not mailpool.config.production
    states = mailpool.store.service_states(name)
    last = {"last_messages": _last_messages(name)} if may_read(domain) else {}
    return {
        "email_domain": name,
        "url": address_of("show_domain", email_domain=name),
        "send_url": address_of("send", email_domain=name),
        "messages_url": address_of("messages", email_domain=name),
        **({"pool_api_key": domain.pool_api_key.get_secret_value()} if with_keys else {}),
        "deadline_seconds": pool.deadline_seconds,
        "on_unknown": pool.on_unknown,
        "enabled_services": {
            service.name: service_as_dict(pool, service, states, with_keys)
            for service in pool.services.values()
        },
        "last_hour": _last_hour(pool),
        **last,
    }


def _last_hour(pool: PooledEmailService) -> dict[str, Any]:
    """How many messages of the last hour each service sent, and what became of the others."""
    now = time.time()
    found = mailpool.store.outcomes(pool.email_domain, now, now - 3600)
    became = Counter(dict.fromkeys((NOT_SENT, UNKNOWN, IN_PROGRESS), 0))
    sent_by: Counter[str] = Counter()
    for service, outcome, number in found:
        if outcome == SENT:
            sent_by[str(service)] += number
        else:
            became[outcome] += number
    others = {outcome.replace(" ", "_"): number for outcome, number in became.items()}
    order = [*pool.services, *sorted(set(sent_by) - set(pool.services))]
    return {"sent_by": {name: sent_by[name] for name in order if sent_by[name]}, **others}


def _last_messages(email_domain: str) -> list[dict[str, Any]]:
    """The newest messages, in short; `url` has the rest."""
    names = ("message_id", "at", "recipients", "subject", "outcome", "service_used", "url")
    found = mailpool.store.messages(email_domain, time.time(), limit=LAST_MESSAGES)
    return [{name: message_as_dict(message)[name] for name in names} for message in found]


def changes_of(domain: EmailDomain) -> list[dict[str, Any]]:
    """The newest changes of the domain's services, with the reason of each."""
    changes = mailpool.store.service_changes(domain.email_domain)
    return [{**change, "at": iso(change["at"])} for change in changes]


def service_as_dict(
    pool: PooledEmailService,
    service: AbstractEmailService,
    states: Mapping[str, ServiceState],
    with_keys: bool,
) -> dict[str, Any]:
    """What a listing says of a service."""
    names = {"email_domain": service.email_domain, "service": service.name}
    state = states.get(service.name, ServiceState())
    return {
        "service": service.provider,
        "priority_value": service.priority_value,
        "timeout_seconds": service.settings.timeout_seconds,
        **drill_as_dict(pool.breakers.drill_in(state)),
        **health_as_dict(pool, state),
        **(service.secrets if with_keys else {}),
        "send_url": address_of("send_through", **names),
        "fail_url": address_of("fail", **names),
        "health_url": address_of("health", **names),
    }


def health_as_dict(pool: PooledEmailService, state: ServiceState) -> dict[str, Any]:
    """Whether a service works, since when, why not, and when it is tried again."""
    now = time.time()
    health = pool.breakers.health_in(state, now)
    return {
        "health": health.state(now),
        "health_since": iso(health.since),
        "health_reason": health.reason,
        "failures_in_a_row": health.failures,
        "next_probe": iso(health.rest_until),
        "last_errors": [
            {"at": iso(error["at"]), "reason": error["reason"]} for error in state.last_errors
        ],
    }


def drill_as_dict(drill: Drill | None) -> dict[str, Any]:
    """The state of a simulated failure; more than on and off where there is more to say."""
    if drill is None or drill == Drill(since=drill.since):
        return {"simulated_failure_enabled": drill is not None}
    return {
        "simulated_failure_enabled": True,
        "simulated_failure_kind": drill.kind,
        "simulated_failure_share": drill.share,
        "simulated_failure_until": iso(drill.until),
    }


def message_as_dict(message: LoggedMessage) -> dict[str, Any]:
    """A message of the log."""
    return {
        "message_id": message.message_id,
        "at": iso(message.at),
        "from_email": message.from_email,
        "recipients": message.recipients,
        "subject": message.subject,
        "outcome": message.outcome,
        "service_used": message.service_used,
        "service_message_id": message.service_message_id,
        "possible_duplicate": message.possible_duplicate,
        "attempts": message.attempts,
        "url": address_of(
            "message", email_domain=message.email_domain, message_id=message.message_id
        ),
    }


def log_query(wanted: MessageFilter) -> dict[str, Any]:
    """The filter as the store takes it."""
    return {
        "recipient": wanted.recipient,
        "outcome": wanted.outcome,
        "service": wanted.service and wanted.service.lower(),
        "since": wanted.since and wanted.since.timestamp(),
        "until": wanted.until and wanted.until.timestamp(),
        "before": wanted.cursor,
        "limit": wanted.limit,
    }


def next_page(email_domain: str, found: list[LoggedMessage], wanted: MessageFilter) -> str | None:
    """The address of the following page, with the same filter; None where this is the last."""
    if len(found) < wanted.limit:
        return None
    query = {**request.args.to_dict(), "cursor": f"{found[-1].at!r}_{found[-1].message_id}"}
    return address_of("messages", email_domain=email_domain, **query)


def iso(at: float | None) -> str | None:
    """A time in seconds since the epoch as ISO 8601, UTC."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")


def how_to_send(
    pool: PooledEmailService, only: AbstractEmailService | None = None
) -> dict[str, Any]:
    """What a program needs to send a message."""
    services = [only.name] if only else list(pool.services)
    return {
        "email_domain": pool.email_domain,
        "services": services,
        "fields": {
            name: {"required": field.is_required(), "description": field.description}
            for name, field in EmailMessage.model_fields.items()
        },
        "example": {"from_email": f"me@{pool.email_domain}", **EXAMPLE_BODY},
    }


def send_answer(
    pool: PooledEmailService, only: AbstractEmailService | None = None
) -> ResponseReturnValue:
    """Send what is in the body, or say what would happen to it."""
    fields = given_fields()
    if "messages" in fields:
        return _batch_answer(pool, only, checked_batch(fields))
    message = checked_message(fields, pool.email_domain, mailpool.config.max_message_bytes)
    if message.dry_run:
        return _plan_as_dict(pool, message, only)
    key = once(_asked(only, fields))
    _forget_files(fields)
    delivery = pool.send(message, only, key)
    status = STATUS_OF_OUTCOME[delivery.outcome]
    if delivery.rejected:
        status = STATUS_OF_REJECTED
    return delivery_as_dict(delivery), status, _headers_of([delivery])


def _batch_answer(
    pool: PooledEmailService, only: AbstractEmailService | None, batch: list[dict[str, Any]]
) -> ResponseReturnValue:
    """Send the messages, each on its own: one that is wrong stops no other."""
    results: dict[int, dict[str, Any]] = {}
    messages: dict[int, EmailMessage] = {}
    size = 0
    for number, fields in enumerate(batch):
        try:
            message = EmailMessage.parse(
                fields, pool.email_domain, mailpool.config.max_message_bytes
            )
        except InvalidInput as error:
            results[number] = {"result": "error", "error": str(error), "problems": error.problems}
            continue
        if message.dry_run:
            results[number] = _plan_as_dict(pool, message, only)
        else:
            messages[number] = message
            size += message.rendered_size
            refuse_large_batch(size, mailpool.config.max_message_bytes)
    keys, whole = once_each({number: _asked(only, batch[number]) for number in messages})
    for fields in batch:
        _forget_files(fields)
    deliveries = pool.send_all(list(messages.values()), only, keys, whole) if messages else []
    for number, delivery in zip(messages, deliveries, strict=True):
        results[number] = delivery_as_dict(delivery)
    outcomes = {result["result"] for result in results.values()}
    word = "success" if outcomes <= _GOOD else "error" if outcomes == {"error"} else "mixed"
    answer = {"result": word, "results": [results[number] for number in range(len(batch))]}
    return answer, STATUS_OF_BATCH[word], _headers_of(deliveries)


_GOOD = {"success", "dry run"}


def _plan_as_dict(
    pool: PooledEmailService, message: EmailMessage, only: AbstractEmailService | None
) -> dict[str, Any]:
    return {"result": "dry run", "plan": [step_as_dict(step) for step in pool.plan(message, only)]}


def _forget_files(fields: dict[str, Any]) -> None:
    """The message has them; another copy for as long as it is being sent would be one too many."""
    for holder in (fields, request.data):
        for name in ("attachments", "inline", "messages"):
            holder.pop(name, None)


def _asked(only: AbstractEmailService | None, fields: Mapping[str, Any]) -> object:
    """What an Idempotency-Key stands for."""
    return [only.name if only else None, fields]


def _headers_of(deliveries: Sequence[Delivery]) -> dict[str, str]:
    headers = {}
    if deliveries and all(delivery.replayed for delivery in deliveries):
        headers["Idempotent-Replayed"] = "true"
    if waits := [d.retry_after for d in deliveries if d.retry_after is not None]:
        headers["Retry-After"] = str(max(1, math.ceil(min(waits))))
    return headers


def failure_answer(pool: PooledEmailService, service: AbstractEmailService) -> ResponseReturnValue:
    """The state of a simulated failure."""
    state = mailpool.store.service_states(pool.email_domain).get(service.name, ServiceState())
    return {"service_name": service.name, **drill_as_dict(pool.breakers.drill_in(state))}


def session_as_dict(session: Session | None) -> dict[str, Any]:
    """Who is signed in, and until when."""
    return {
        "signed_in": session.level if session else None,
        "until": iso(session.until) if session else None,
    }


def sign_in_answer(wanted: SignIn) -> ResponseReturnValue:
    """A session, and for a person the page that was left for it."""
    session = open_session(wanted.key)
    return set_cookie(_page_or(wanted.next, session_as_dict(session)), session)


def sign_out_answer() -> ResponseReturnValue:
    """The end of a session, and for a person the page to begin another."""
    is_to_be_forgotten = may_sign_out()
    answer = _page_or(url_for("mailpool.sign_in"), session_as_dict(None))
    return forget_cookie(answer) if is_to_be_forgotten else answer


def _page_or(address: str, answer: dict[str, Any]) -> Response:
    """For a person the way to a page of this server, for a program the answer."""
    if request.accepted_media_type == "text/html":
        return redirect(local_address(address), HTTPStatus.SEE_OTHER)
    return current_app.make_response(answer)


def answer_error(error: EmailServicesError) -> ResponseReturnValue:
    """An error of `email_services` in the API's shape."""
    problems = error.problems if isinstance(error, InvalidInput) else None
    status = STATUS_OF_ERROR[type(error)]
    challenge = {"WWW-Authenticate": 'Bearer realm="Mailpool"'}
    headers = challenge if status == HTTPStatus.UNAUTHORIZED else {}
    if error.retry_after is not None:
        headers = {"Retry-After": str(error.retry_after)}
    answer = APIError(status, str(error), problems, headers)
    return answer.as_dict(), answer.status, answer.headers
