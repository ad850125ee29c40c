"""The service: configuration, pools and endpoints, wired together by `create_app`.

A view's docstring is the page its address shows to a person, in Markdown.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar, cast

from flask import Blueprint, current_app, url_for
from flask.typing import ResponseReturnValue
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from werkzeug.local import LocalProxy
from werkzeug.routing import BaseConverter

from browsable_api import APIError, BrowsableAPI, request, takes
from email_services.abstract import AbstractEmailService, HTTPEmailService
from email_services.config import Config, EmailDomain, load_config
from email_services.drill import KINDS, Drill, DrillKind
from email_services.exceptions import (
    NOT_SENT,
    SENT,
    UNKNOWN,
    EmailServicesError,
    InvalidInput,
    KeyInProgress,
    KeyRefused,
    KeyReused,
    StoreUnavailable,
    UnknownDomain,
    UnknownMessage,
    UnknownService,
)
from email_services.message import EmailMessage
from email_services.pool import Once, PooledEmailService
from email_services.store import LoggedMessage, ServiceState, Store

KEY_FIELDS = ("pool_api_key", "root_api_key")

STATUS_OF_OUTCOME = {
    SENT: HTTPStatus.OK,
    NOT_SENT: HTTPStatus.SERVICE_UNAVAILABLE,
    UNKNOWN: HTTPStatus.GATEWAY_TIMEOUT,
}
STATUS_OF_ERROR = {
    InvalidInput: HTTPStatus.BAD_REQUEST,
    KeyRefused: HTTPStatus.UNAUTHORIZED,
    UnknownDomain: HTTPStatus.NOT_FOUND,
    UnknownService: HTTPStatus.NOT_FOUND,
    UnknownMessage: HTTPStatus.NOT_FOUND,
    KeyInProgress: HTTPStatus.CONFLICT,
    KeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
EXAMPLE_BODY = {
    "to_recipients": ["Ada <ada@example.org>"],
    "subject": "Hello",
    "raw_text_body": "It works.",
}


class DomainConverter(BaseConverter):
    """A part of an address that may be an email domain: it has a dot, as no other word here."""

    regex = r"[^/]+\.[^/]*"


@dataclass(frozen=True)
class Mailpool:
    """What the views work with; one in each application."""

    config: Config
    store: Store
    pools: dict[str, PooledEmailService]


Model = TypeVar("Model", bound=BaseModel)
mailpool = cast("Mailpool", LocalProxy(lambda: current_app.extensions["mailpool"]))
views = Blueprint("mailpool", __name__)


def create_app(config: Config | None = None) -> BrowsableAPI:
    """Make the WSGI application.

    config: by default what `load_config` finds. Raises ConfigError, which ends a start with one
    line, where it is not usable.
    """
    config = config or load_config()
    store = Store(config.state_url, config.message_retention_days * 24 * 3600)
    pools = {name: domain.pool(store) for name, domain in config.domains.items()}
    app = BrowsableAPI(__name__)
    if trusted := os.environ.get("TRUSTED_HOSTS"):
        app.config["TRUSTED_HOSTS"] = trusted.split(",")
    app.url_map.converters["domain"] = DomainConverter
    app.extensions["mailpool"] = Mailpool(config, store, pools)
    app.register_blueprint(views)
    app.register_error_handler(EmailServicesError, answer_error)
    return app


def _parse_cursor(value: object) -> object:
    at, _, message_id = str(value).partition("_")
    return (float(at), message_id)


class PoolKey(BaseModel):
    """The key of one email domain."""

    pool_api_key: str = Field(
        description="The pool key of this domain.", json_schema_extra={"widget": "password"}
    )


class RootKey(BaseModel):
    """The administrator's key."""

    root_api_key: str = Field(
        description="The root key of this server.", json_schema_extra={"widget": "password"}
    )


class Failure(BaseModel):
    """What the simulated failure of a service should be."""

    model_config = ConfigDict(extra="forbid")

    simulated_failure: bool = Field(
        False,
        description="On or off; without it, it is switched over.",
        json_schema_extra={
            "widget": "select",
            "options": {"": "switch it over", "true": "on", "false": "off"},
        },
    )
    kind: DrillKind = Field(
        "unavailable",
        description="The fault that is simulated.",
        json_schema_extra={
            "widget": "select",
            "options": {kind: kind.replace("_", " ") for kind in KINDS},
        },
    )
    share: float = Field(
        1, gt=0, le=1, description="The part of messages that meets it: 0.1 is one in ten."
    )
    minutes: float | None = Field(
        None, gt=0, le=7 * 24 * 60, description="When it ends by itself; without it, it does not."
    )

    def drill(self, current: Drill | None, now: float) -> Drill | None:
        """The drill that is wanted, where `current` is on or none is."""
        fields = self.model_fields_set
        switched_over = "simulated_failure" not in fields
        wanted = self.simulated_failure
        if switched_over:
            wanted = current is None or bool(fields)
        until = now + self.minutes * 60 if self.minutes else None
        return Drill(self.kind, self.share, now, until) if wanted else None


class MessageFilter(BaseModel):
    """Which messages of the log are wanted, from the query of the URL."""

    model_config = ConfigDict(extra="forbid")

    recipient: str | None = None
    outcome: Literal["sent", "not sent", "unknown", "in progress"] | None = None
    service: str | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    cursor: Annotated[tuple[float, str], BeforeValidator(_parse_cursor)] | None = None
    limit: int = Field(50, ge=1, le=500)


class Nothing(BaseModel):
    """No field but a key."""

    model_config = ConfigDict(extra="forbid")


@views.route("/", methods=["GET", "POST"])
@takes(RootKey)
def home() -> ResponseReturnValue:
    """Email domains.

    This server sends email through whichever provider works. Here are its email domains, and for
    each the services that are tried, the highest `priority_value` first.

    * **GET** lists them. On a production server this needs a key, and a pool key sees its own
      domain only.
    * **POST** does the same with a key in the body.

    The root key sees the API keys too, unless the server is in production.

    To send, go to a domain and follow its `send_url`.
    """
    checked(Nothing)
    return {
        "production": mailpool.config.production,
        "email_services": [domain_as_dict(domain) for domain in visible_domains()],
    }


@views.route("/<domain:email_domain>", methods=["GET", "POST"])
@takes(RootKey)
def show_domain(email_domain: str) -> ResponseReturnValue:
    """An email domain.

    Its services in the order they are tried, and the addresses of what can be done.

    * `send_url` sends a message through the pool, with failover.
    * A service's own `send_url` sends through that service alone.
    * A service's `fail_url` switches its simulated failure, to rehearse an outage.

    **GET** and **POST** are as one level up. The root key sees the API keys, outside production.
    """
    checked(Nothing)
    domain = visible_domain(email_domain)
    return {**domain_as_dict(domain), "changes": changes_of(domain)}


@views.route("/<domain:email_domain>/send", methods=["GET", "POST"])
@takes(PoolKey, EmailMessage)
def send(email_domain: str) -> ResponseReturnValue:
    """Send a message.

    **POST** a message here, with the pool key of the domain as `Authorization: Bearer KEY` or as
    `pool_api_key` in the body. The services of the domain are tried in order until one accepts it.

    | field | |
    |---|---|
    | `from_email` | the sender, an address at this domain; required |
    | `from_name` | the sender's display name |
    | `to_recipients`, `to_cc`, `to_bcc` | an address or a list; 1 to 1,000 in all |
    | `subject` | required |
    | `raw_text_body`, `html_body` | one of them or both |

    | answer | means |
    |---|---|
    | 200 | **sent**: `service_used` accepted it |
    | 400 | nothing was tried: `problems` names every field at fault |
    | 422 | **not sent**: every service refused the message itself |
    | 503 | **not sent**: no service could send it |
    | 504 | **unknown**: a service took it and did not answer; it may have been sent |

    Each lists all `attempts`. `possible_duplicate` is true where a message was sent after an
    attempt whose outcome is unknown.
    """
    if request.method == "POST":
        pool = pool_of(with_pool_key(email_domain))
        return send_answer(pool)
    return how_to_send(pool_of(visible_domain(email_domain)))


@views.route("/<domain:email_domain>/<service>/send", methods=["GET", "POST"])
@takes(PoolKey, EmailMessage)
def send_through(email_domain: str, service: str) -> ResponseReturnValue:
    """Send through one service.

    The same as sending through the pool, one level up at `send`, but no other service is tried.
    It is how to find out whether one provider works. Fields and answers are the same.
    """
    if request.method == "POST":
        pool = pool_of(with_pool_key(email_domain))
        return send_answer(pool, pool.service(service))
    pool = pool_of(visible_domain(email_domain))
    return how_to_send(pool, pool.service(service))


@views.route("/<domain:email_domain>/<service>/fail", methods=["GET", "POST"])
@takes(RootKey, Failure)
def fail(email_domain: str, service: str) -> ResponseReturnValue:
    """Simulated failure.

    While it is on, every attempt at this service fails before the provider is called, so that you
    can see a message fail over.

    **POST** with the root key switches it over. With `{"simulated_failure": true}` or `false` it
    ends as you say, however often you say it. Every worker sees the change at once, and it stays
    after a restart.
    """
    if request.method == "POST":
        pool = pool_of(with_root_key(email_domain))
        pool.set_drill(pool.service(service), checked(Failure).drill)
    else:
        pool = pool_of(visible_domain(email_domain))
    return failure_answer(pool, pool.service(service))


@views.route("/<domain:email_domain>/<service>/health", methods=["GET", "POST"])
@takes(RootKey)
def health(email_domain: str, service: str) -> ResponseReturnValue:
    """Health of a service.

    A service that fails several times in a row, or whose account or rate limit is at fault, rests:
    messages pass it by at no cost. After the rest one message tries it; if that is accepted, it is
    back at its place in the order.

    **POST** with the root key resets it: the service is tried again at once.
    """
    if request.method == "POST":
        pool = pool_of(with_root_key(email_domain))
        checked(Nothing)
        pool.reset_health(pool.service(service))
    else:
        pool = pool_of(visible_domain(email_domain))
    name = pool.service(service).name
    state = mailpool.store.service_states(pool.email_domain).get(name, ServiceState())
    return {"service_name": name, **health_as_dict(pool, state)}


@views.get("/<domain:email_domain>/messages")
def messages(email_domain: str) -> ResponseReturnValue:
    """Messages.

    What was sent, newest first, with the pool key of the domain as `Authorization: Bearer KEY`.
    Bodies are not kept.

    | in the URL | |
    |---|---|
    | `recipient` | an address |
    | `outcome` | `sent`, `not sent`, `unknown` or `in progress` |
    | `service` | one that was tried or passed by |
    | `since`, `until` | times, ISO 8601 with a zone: `2026-11-24T12:00:00Z` |
    | `limit` | how many at once, 50 by default and at most 500 |

    `next` is the address of the following page, or null. A message that was cut off by a crash is
    `unknown`.
    """
    domain = with_reading_key(email_domain)
    wanted = checked(MessageFilter, request.args.to_dict())
    found = mailpool.store.messages(domain.email_domain, time.time(), **log_query(wanted))
    return {
        "messages": [message_as_dict(message) for message in found],
        "next": next_page(domain.email_domain, found, wanted),
    }


@views.get("/<domain:email_domain>/messages/<message_id>")
def message(email_domain: str, message_id: str) -> ResponseReturnValue:
    """A message.

    What became of it: every service in order, what it did and how long it took. With the pool key
    of the domain as `Authorization: Bearer KEY`.
    """
    name = with_reading_key(email_domain).email_domain
    found = mailpool.store.messages(name, time.time(), message_id=message_id)
    if not found:
        raise UnknownMessage(message_id)
    return message_as_dict(found[0])


@views.get("/healthz")
def healthz() -> ResponseReturnValue:
    """Health.

    200 while the process answers. For load balancers; it needs no key and touches nothing.
    """
    return {"status": "ok"}


@views.get("/readyz")
def readyz() -> ResponseReturnValue:
    """Readiness.

    200 while the state database answers, else 503. Messages are sent in either case.
    """
    mailpool.store.check()
    return {"status": "ready"}


def keys_shown() -> list[str]:
    """Every key the caller shows, in the Authorization header or in the body."""
    bearer = request.authorization
    shown = [bearer.token] if bearer and bearer.type == "bearer" else []
    shown += [request.data.get(name) for name in KEY_FIELDS]
    return [key for key in shown if isinstance(key, str)]


def given_fields() -> dict[str, Any]:
    """What the body holds beside keys."""
    return {name: value for name, value in request.data.items() if name not in KEY_FIELDS}


def checked(model: type[Model], fields: Mapping[str, Any] | None = None) -> Model:
    """The body, or `fields`, as a `model`. Raises InvalidInput."""
    try:
        return model.model_validate(given_fields() if fields is None else fields)
    except ValidationError as error:
        raise InvalidInput.from_validation(error, known=model.model_fields) from None


def known_domain(name: str) -> EmailDomain:
    """The domain `name`; in production, whether it exists is the root's to know."""
    try:
        return mailpool.config.domain(name)
    except UnknownDomain:
        if mailpool.config.production and not mailpool.config.is_root(keys_shown()):
            raise KeyRefused("The root key or the pool key of this domain is needed.") from None
        raise


def visible_domain(name: str) -> EmailDomain:
    """The domain `name`, for someone who may see it. Raises UnknownDomain or KeyRefused."""
    domain = known_domain(name)
    config, keys = mailpool.config, keys_shown()
    open_to_all = not (keys or config.production or request.method == "POST")
    if open_to_all or config.is_root(keys) or config.opens(domain, keys):
        return domain
    raise KeyRefused("The root key or the pool key of this domain is needed.")


def visible_domains() -> list[EmailDomain]:
    """The domains the caller may see. Raises KeyRefused."""
    config, keys = mailpool.config, keys_shown()
    domains = list(config.domains.values())
    own = [domain for domain in domains if config.opens(domain, keys)]
    if own and config.production and not config.is_root(keys):
        return own
    open_to_all = not (keys or config.production or request.method == "POST")
    if open_to_all or own or config.is_root(keys):
        return domains
    raise KeyRefused("The root key or a pool key is needed.")


def with_pool_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who shows its pool key. Raises UnknownDomain or KeyRefused."""
    domain = known_domain(name)
    if not mailpool.config.opens(domain, keys_shown()):
        raise KeyRefused("The pool key of this domain is needed.")
    return domain


def with_reading_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who may read its messages."""
    domain = known_domain(name)
    keys = keys_shown()
    if not (mailpool.config.opens(domain, keys) or mailpool.config.is_root(keys)):
        raise KeyRefused("The pool key of this domain or the root key is needed.")
    return domain


def with_root_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who shows the root key. Raises UnknownDomain or KeyRefused."""
    domain = known_domain(name)
    if not mailpool.config.is_root(keys_shown()):
        raise KeyRefused("The root key is needed.")
    return domain


def pool_of(domain: EmailDomain) -> PooledEmailService:
    """The domain's pool."""
    return mailpool.pools[domain.email_domain]


def address_of(endpoint: str, **values: str) -> str:
    """The full address of a view."""
    return url_for(f"mailpool.{endpoint}", _external=True, **values)


def domain_as_dict(domain: EmailDomain) -> dict[str, Any]:
    """What a listing says of a domain; with its keys for the root, outside production."""
    name = domain.email_domain
    pool = pool_of(domain)
    with_keys = mailpool.config.is_root(keys_shown()) and not mailpool.config.production
    states = mailpool.store.service_states(name)
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
    }


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
    key = service.api_key if with_keys and isinstance(service, HTTPEmailService) else None
    state = states.get(service.name, ServiceState())
    return {
        "service": service.provider,
        "priority_value": service.priority_value,
        "timeout_seconds": service.settings.timeout_seconds,
        **drill_as_dict(pool.drill_in(state)),
        **health_as_dict(pool, state),
        **({"api_key": key} if key else {}),
        "send_url": address_of("send_through", **names),
        "fail_url": address_of("fail", **names),
        "health_url": address_of("health", **names),
    }


def health_as_dict(pool: PooledEmailService, state: ServiceState) -> dict[str, Any]:
    """Whether a service works, since when, why not, and when it is tried again."""
    health = pool.health_in(state)
    return {
        "health": health.state(time.time()),
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
    """Send the message in the body, or say what would happen to it."""
    fields = given_fields()
    message = EmailMessage.parse(fields, pool.email_domain)
    if message.dry_run:
        return {"result": "dry run", "plan": [step.as_dict() for step in pool.plan(message, only)]}
    delivery = pool.send(message, only, once(fields, only))
    status = STATUS_OF_OUTCOME[delivery.outcome]
    if delivery.rejected:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    headers = {"Idempotent-Replayed": "true"} if delivery.replayed else {}
    return delivery.as_dict(), status, headers


def once(fields: Mapping[str, Any], only: AbstractEmailService | None) -> Once | None:
    """The Idempotency-Key of the request, with a fingerprint of what it asks for.

    Raises InvalidInput.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise InvalidInput({"Idempotency-Key": "It should be 1 to 255 printable ASCII characters."})
    return Once(key, fingerprint([only.name if only else None, fields]))


def fingerprint(asked: object) -> str:
    """The same for the same, whatever the order of its fields."""
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def failure_answer(pool: PooledEmailService, service: AbstractEmailService) -> ResponseReturnValue:
    """The state of a simulated failure."""
    state = mailpool.store.service_states(pool.email_domain).get(service.name, ServiceState())
    return {"service_name": service.name, **drill_as_dict(pool.drill_in(state))}


def answer_error(error: EmailServicesError) -> ResponseReturnValue:
    """An error of `email_services` in the API's shape."""
    problems = error.problems if isinstance(error, InvalidInput) else None
    status = STATUS_OF_ERROR[type(error)]
    challenge = {"WWW-Authenticate": 'Bearer realm="Mailpool"'}
    headers = challenge if status == HTTPStatus.UNAUTHORIZED else {}
    if isinstance(error, KeyInProgress):
        headers = {"Retry-After": "1"}
    answer = APIError(status, str(error), problems, headers)
    return answer.as_dict(), answer.status, answer.headers
