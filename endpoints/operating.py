"""For who runs this server, or programs against it: is it well, and what can it do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from flask import Flask, current_app
from markupsafe import Markup
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict
from werkzeug.wrappers import Response

from browsable_api import Room, kept_by_clients
from browsable_api.errors import told
from browsable_api.openapi import About, Schema, as_json, describe
from browsable_api.operations import all_operations
from email_services import VERSION
from email_services.counters import counted
from email_services.exceptions import StoreUnavailable
from email_services.gauges import known
from endpoints.access import MEASURED
from endpoints.addresses import DESCRIPTION, HEALTHZ, METRICS, READYZ, REFERENCE
from endpoints.context import mailpool
from endpoints.rooms import Endpoints

LATE_SECONDS: Final = 15 * 60.0
"""A message that could have been sent for so long is late: its third try is over by then."""


class Status(TypedDict):
    """That all is well."""

    status: Annotated[Literal["ok", "ready"], told("What is well.")]


class Readiness(Status):
    """That requests can be answered, and whether what waits is late."""

    oldest_waiting_seconds: Annotated[
        float | None, told("For how long the first message waits that could be sent.")
    ]
    queue_is_late: Annotated[bool, told("Whether that is over 15 minutes.")]


@with_config(ConfigDict(extra="allow"))
class Description(TypedDict):
    """This description."""

    openapi: Annotated[str, told("The version of its form.")]


room = Endpoints(
    "operating",
    __name__,
    "Is this server well, and what can it do.",
    {
        Status: {"status": "ok"},
        Readiness: {"status": "ready", "oldest_waiting_seconds": None, "queue_is_late": False},
    },
)


@room.operation(
    "GET",
    DESCRIPTION,
    answers={HTTPStatus.OK: ("application/json",), HTTPStatus.NOT_MODIFIED: ()},
    headers=("ETag",),
    raises=(HTTPStatus.PRECONDITION_FAILED,),
)
def get_description() -> Response:
    """Description for programs.

    All of this in one document, OpenAPI 3.1, from which tools make clients and tests.
    """
    return kept_by_clients(as_json(described()), "application/json")


@room.operation("GET", REFERENCE, page="reference.html")
def get_reference() -> Description:
    """Reference.

    Every operation with its fields and answers. Programs find the same at `/openapi.json`.
    """
    document: Any = described()
    return document  # type: ignore[no-any-return]


@room.operation("GET", HEALTHZ)
def check_liveness() -> Status:
    """Health.

    200 while the process answers. For load balancers; it needs no key and touches nothing.
    """
    return {"status": "ok"}


@room.operation("GET", READYZ, raises=(StoreUnavailable,))
def check_readiness() -> Readiness:
    """Readiness.

    200 while the state database answers, else 503. Messages are sent in either case.
    `queue_is_late` is true where the first message of the queue has waited too long. That is still
    200: another server would not help.
    """
    mailpool.store.check()
    oldest = mailpool.store.oldest_ready(time.time())
    return {
        "status": "ready",
        "oldest_waiting_seconds": oldest,
        "queue_is_late": oldest is not None and oldest > LATE_SECONDS,
    }


@room.operation("GET", METRICS, MEASURED, answers={HTTPStatus.OK: ("text/plain",)})
def get_metrics() -> Response:
    """Metrics.

    For Prometheus, of all workers of this machine, and of the services' health. It answers without
    the database too, with what it counts itself.
    """
    told = counted() + known(mailpool.config, mailpool.store, mailpool.pools)
    return Response(told, content_type=CONTENT_TYPE_PLAIN_0_0_4)


_STRING: Final[Schema] = {"type": "string"}


def _part(name: str, pattern: str, example: str, description: str) -> Schema:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "pattern": pattern},
        "example": example,
    }


_PARAMETERS: Final[dict[str, Schema]] = {
    "email_domain": _part(
        "email_domain",
        r"^[^/]+\.[^/]*$",
        "example.com",
        "An email domain of this server, in any spelling.",
    ),
    "service": _part(
        "service", "^[^/]+$", "primary", "A service of the domain; case makes no difference."
    ),
    "message_id": _part(
        "message_id",
        "^[0-9a-f]{32}$",
        "dfd3beeb3f5d4ce7b882ad3ecd669788",
        "The `message_id` of an answer.",
    ),
    "version": _part(
        "version", "^[1-9][0-9]{0,8}$", "1", "Which configuration that was uploaded, from 1."
    ),
    "number": _part(
        "number", "^[1-9][0-9]{0,8}$", "1", "Which of the `attachments`, counted from 1."
    ),
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Makes the request safe to repeat: the same key gets the same answer.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": "`respond-async`: take the message and send it later (RFC 7240).",
        "schema": {"type": "string"},
        "example": "respond-async",
    },
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "description": "The `ETag` of what is to be replaced: where something else is, it is 412.",
        "schema": {"type": "string"},
        "example": "*",
    },
}
_HEADERS: Final[dict[str, Schema]] = {
    "Link": {
        "description": "Where this description is.",
        "schema": _STRING,
    },
    "X-Request-ID": {
        "description": "The request's own, or a new one; the server's log knows it by that.",
        "schema": _STRING,
    },
    "Retry-After": {
        "description": "Seconds after which the same request may fare better, where that is known.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {"description": "How to show a key.", "schema": _STRING},
    "Idempotent-Replayed": {
        "description": "Present where this is the stored answer to an earlier request.",
        "schema": {"const": "true"},
    },
    "Location": {"description": "The address of what waits.", "schema": _STRING},
    "Preference-Applied": {
        "description": "Present where it was queued since the request asked for that.",
        "schema": {"const": "respond-async"},
    },
    "Content-Disposition": {"description": "To be saved, and as what.", "schema": _STRING},
    "ETag": {"description": "Another one once the content is.", "schema": _STRING},
}
_CARRIED: Final[Mapping[int, Sequence[str]]] = {
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate",),
    HTTPStatus.NOT_FOUND: ("Retry-After",),
    HTTPStatus.CONFLICT: ("Retry-After",),
    HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After",),
    HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After",),
}
_DESCRIPTION: Final = """Sends email through whichever provider works.

Here is what programs do best. More is taken than is described: a key as `pool_api_key` or
`root_api_key` in the body, a body as a form (`application/x-www-form-urlencoded`, or
`multipart/form-data` with files), and in either a field that is blank or null for one that is left
out, a list as one string with commas, an object as lines of `name: value`, and the words of forms
for true and false.

The same addresses are pages for people: to who asks for `text/html`, in `Accept` or as
`?format=html`. Trailing slashes never matter, and every GET has its HEAD."""


def described() -> dict[str, Any]:
    """The description of the application, made once; not to be changed."""
    kept = current_app.extensions
    if "openapi" not in kept:
        rooms = [room for room in current_app.blueprints.values() if isinstance(room, Room)]
        about = About(
            "Mailpool",
            VERSION,
            _DESCRIPTION,
            tags={room.name: room.description for room in rooms},
            keys={
                "pool_key": "The pool key of the domain.",
                "root_key": "The root key of the server.",
                "read_key": "A key of the domain that may not send.",
                "metrics_key": "A key of the server that only reads metrics.",
            },
            parameters=_PARAMETERS,
            headers=_HEADERS,
            carried=_CARRIED,
        )
        kept["openapi"] = describe(all_operations(), about)
    document: dict[str, Any] = kept["openapi"]
    return document


def operations_as_html(app: Flask) -> Markup:
    """The description for people, made once; it is the same for everybody."""
    if "reference" not in app.extensions:
        template = app.jinja_env.get_template("operations.html")
        # The template escapes all of it.
        app.extensions["reference"] = Markup(template.render(data=described()))  # noqa: S704
    html: Markup = app.extensions["reference"]
    return html
