"""The service: configuration, pools and endpoints, wired together by `create_app`.

A view's docstring is the page its address shows to a person, in Markdown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar, cast

from flask import Blueprint, current_app, url_for
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from werkzeug.local import LocalProxy
from werkzeug.routing import BaseConverter

from browsable_api import APIError, BrowsableAPI, request, takes
from email_services.abstract import AbstractEmailService, HTTPEmailService
from email_services.config import Config, EmailDomain, load_config
from email_services.exceptions import (
    NOT_SENT,
    SENT,
    UNKNOWN,
    EmailServicesError,
    InvalidInput,
    KeyRefused,
    StoreUnavailable,
    UnknownDomain,
    UnknownService,
)
from email_services.message import EmailMessage
from email_services.pool import Delivery, PooledEmailService
from email_services.store import Store

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
    store = Store(config.state_url)
    pools = {name: domain.pool(store) for name, domain in config.domains.items()}
    app = BrowsableAPI(__name__)
    if trusted := os.environ.get("TRUSTED_HOSTS"):
        app.config["TRUSTED_HOSTS"] = trusted.split(",")
    app.url_map.converters["domain"] = DomainConverter
    app.extensions["mailpool"] = Mailpool(config, store, pools)
    app.register_blueprint(views)
    app.register_error_handler(EmailServicesError, answer_error)
    return app


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
    return domain_as_dict(visible_domain(email_domain))


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
        return delivery_answer(pool.send(EmailMessage.parse(given_fields(), pool.email_domain)))
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
        only = pool.service(service)
        message = EmailMessage.parse(given_fields(), pool.email_domain)
        return delivery_answer(pool.send(message, only=only))
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
        name = pool.service(service).name
        given = checked(Failure)
        wanted = given.simulated_failure if given.model_fields_set else None
        return failure_answer(
            name, mailpool.store.set_simulated_failure(pool.email_domain, name, wanted)
        )
    pool = pool_of(visible_domain(email_domain))
    name = pool.service(service).name
    return failure_answer(name, name in mailpool.store.simulated_failures(pool.email_domain))


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


def checked(model: type[Model]) -> Model:
    """The body as a `model`. Raises InvalidInput."""
    try:
        return model.model_validate(given_fields())
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
    simulated = mailpool.store.simulated_failures(name)
    return {
        "email_domain": name,
        "url": address_of("show_domain", email_domain=name),
        "send_url": address_of("send", email_domain=name),
        **({"pool_api_key": domain.pool_api_key.get_secret_value()} if with_keys else {}),
        "deadline_seconds": pool.deadline_seconds,
        "on_unknown": pool.on_unknown,
        "enabled_services": {
            service.name: service_as_dict(service, with_keys, service.name in simulated)
            for service in pool.services.values()
        },
    }


def service_as_dict(
    service: AbstractEmailService, with_keys: bool, simulated_failure: bool
) -> dict[str, Any]:
    """What a listing says of a service."""
    names = {"email_domain": service.email_domain, "service": service.name}
    key = service.api_key if with_keys and isinstance(service, HTTPEmailService) else None
    return {
        "service": service.provider,
        "priority_value": service.priority_value,
        "timeout_seconds": service.settings.timeout_seconds,
        "simulated_failure_enabled": simulated_failure,
        **({"api_key": key} if key else {}),
        "send_url": address_of("send_through", **names),
        "fail_url": address_of("fail", **names),
    }


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


def delivery_answer(delivery: Delivery) -> ResponseReturnValue:
    """What became of a message, with the status that says the same."""
    status = STATUS_OF_OUTCOME[delivery.outcome]
    if delivery.rejected:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    return delivery.as_dict(), status


def failure_answer(service_name: str, enabled: bool) -> ResponseReturnValue:
    """The state of a simulated failure."""
    return {"service_name": service_name, "simulated_failure_enabled": enabled}


def answer_error(error: EmailServicesError) -> ResponseReturnValue:
    """An error of `email_services` in the API's shape."""
    problems = error.problems if isinstance(error, InvalidInput) else None
    status = STATUS_OF_ERROR[type(error)]
    challenge = {"WWW-Authenticate": 'Bearer realm="Mailpool"'}
    headers = challenge if status == HTTPStatus.UNAUTHORIZED else None
    answer = APIError(status, str(error), problems, headers)
    return answer.as_dict(), answer.status, answer.headers
