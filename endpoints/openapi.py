"""The description of the API (OpenAPI 3.1), made from what runs it.

Requests are the models that check them, answers the models of `shapes`, texts the docstrings of the
views, statuses the tables of `answers`. What a view alone knows, which keys open it and what it
answers, is a row of `OPERATIONS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from inspect import cleandoc
from typing import Any, Final

from flask import Flask
from markupsafe import Markup
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from werkzeug.routing import Rule

from browsable_api.forms import FOR_FORMS
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
    StoreUnavailable,
    TooManyWrongKeys,
    UnknownDomain,
    UnknownMessage,
    UnknownService,
)
from email_services.message import LIST_FIELDS, EmailMessage
from endpoints import shapes
from endpoints.answers import (
    STATUS_OF_BATCH,
    STATUS_OF_ERROR,
    STATUS_OF_OUTCOME,
    STATUS_OF_REJECTED,
)
from endpoints.bodies import (
    AnyKey,
    Batch,
    MessageFilter,
    Nothing,
    PoolKey,
    Preview,
    RootKey,
    SignIn,
)
from endpoints.examples import ANSWERS, REQUESTS

Schema = dict[str, Any]
Answer = type[BaseModel] | str
"""A shape, which is answered as JSON or as a page; or the media type of anything else."""

ANYBODY: Final[Sequence[str]] = ("", "pool_key", "root_key")
"""A key is needed in production only."""

POOL_OR_ROOT: Final[Sequence[str]] = ("pool_key", "root_key")
POOL: Final[Sequence[str]] = ("pool_key",)
ROOT: Final[Sequence[str]] = ("root_key",)

SENDING: Final[Mapping[int, Sequence[Answer]]] = {
    STATUS_OF_OUTCOME[SENT]: (shapes.Sent, shapes.Plan, shapes.BatchAnswer),
    STATUS_OF_OUTCOME[NOT_SENT]: (shapes.NotSent, shapes.BatchAnswer),
    STATUS_OF_OUTCOME[UNKNOWN]: (shapes.Unknown,),
    STATUS_OF_REJECTED: (shapes.NotSent,),
    STATUS_OF_BATCH["mixed"]: (shapes.BatchAnswer,),
}
"""What becomes of a message, or of several, by status."""

DEMANDS: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.INTERNAL_SERVER_ERROR,
)
"""Errors that any request can meet: what it is itself, the format it wants, and a bug of ours."""

DEMANDS_ON_BODIES: Final = (
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
)


@dataclass(frozen=True)
class Operation:
    """What a view does not say of itself.

    answers: what a success holds, by status; alone it is that of a 200. keys: which open it, ""
    for none. raises: errors beyond those that keys and the parts of the path bring. statuses: of
    errors that no exception of `email_services` stands for. query: the model of the URL's query.
    takes: what a POST takes, where its view declares what its form asks for. also_takes: what a
    body in JSON may be instead. stateless: whether it needs no state database, and no body but
    `takes`. headers: what an answer beside an error carries. leads_to: where in an answer the id
    of a message is that can be asked for, as a JSON pointer.
    """

    answers: Answer | Mapping[int, Sequence[Answer]]
    keys: Sequence[str] = ("",)
    raises: Collection[type[EmailServicesError]] = ()
    query: type[BaseModel] | None = None
    takes: Sequence[type[BaseModel]] = ()
    also_takes: Sequence[type[BaseModel]] = ()
    stateless: bool = False
    statuses: Sequence[int] = ()
    headers: Sequence[str] = ()
    leads_to: str = ""

    @property
    def successes(self) -> Mapping[int, Sequence[Answer]]:
        """What it answers beside errors, by status."""
        if isinstance(self.answers, Mapping):
            return self.answers
        return {HTTPStatus.OK: (self.answers,)}


_WRONG_KEYS: Final = {KeyRefused, TooManyWrongKeys}

_SEND: Final = Operation(
    SENDING,
    POOL,
    raises=(MessageTooLarge, KeyInProgress, KeyReused),
    also_takes=(Batch,),
    headers=("Idempotent-Replayed",),
    leads_to="/message_id",
)
_STAYS_OR_GOES: Final[Mapping[int, Sequence[Answer]]] = {
    HTTPStatus.OK: (shapes.SessionState,),
    HTTPStatus.SEE_OTHER: (),
}

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("home", "GET"): Operation(shapes.Home, ANYBODY),
    ("home", "POST"): Operation(shapes.Home, POOL_OR_ROOT),
    ("show_domain", "GET"): Operation(shapes.DomainWithChanges, ANYBODY),
    ("show_domain", "POST"): Operation(shapes.DomainWithChanges, POOL_OR_ROOT),
    ("send", "GET"): Operation(shapes.HowToSend, ANYBODY),
    ("send", "POST"): _SEND,
    ("send_through", "GET"): Operation(shapes.HowToSend, ANYBODY),
    ("send_through", "POST"): _SEND,
    ("fail", "GET"): Operation(shapes.ServiceFailure, ANYBODY),
    ("fail", "POST"): Operation(shapes.ServiceFailure, ROOT),
    ("health", "GET"): Operation(shapes.ServiceHealth, ANYBODY),
    ("health", "POST"): Operation(shapes.ServiceHealth, ROOT),
    ("messages", "GET"): Operation(
        shapes.Messages, POOL_OR_ROOT, query=MessageFilter, leads_to="/messages/0/message_id"
    ),
    ("message", "GET"): Operation(shapes.MessageInFull, POOL_OR_ROOT),
    ("message_content", "GET"): Operation({HTTPStatus.OK: ("text/html",)}, POOL_OR_ROOT),
    ("message_source", "GET"): Operation({HTTPStatus.OK: ("text/plain",)}, POOL_OR_ROOT),
    ("message_file", "GET"): Operation(
        {HTTPStatus.OK: ("application/octet-stream",)},
        POOL_OR_ROOT,
        headers=("Content-Disposition",),
    ),
    ("sign_in", "GET"): Operation(shapes.SessionState),
    ("sign_in", "POST"): Operation(
        _STAYS_OR_GOES,
        raises=_WRONG_KEYS,
        takes=(SignIn,),
        statuses=(HTTPStatus.FORBIDDEN,),
    ),
    ("sign_out", "GET"): Operation(shapes.SessionState),
    ("sign_out", "POST"): Operation(
        _STAYS_OR_GOES, stateless=True, statuses=(HTTPStatus.FORBIDDEN, *DEMANDS_ON_BODIES)
    ),
    ("preview", "POST"): Operation(
        {HTTPStatus.OK: ("text/html",)},
        takes=(Preview,),
        stateless=True,
        statuses=(HTTPStatus.FORBIDDEN, *DEMANDS_ON_BODIES),
    ),
    ("healthz", "GET"): Operation(shapes.Status, stateless=True),
    ("readyz", "GET"): Operation(shapes.Status, raises=(StoreUnavailable,), stateless=True),
    ("openapi", "GET"): Operation(
        {HTTPStatus.OK: ("application/json",), HTTPStatus.NOT_MODIFIED: ()},
        stateless=True,
        headers=("ETag",),
    ),
    ("reference", "GET"): Operation(shapes.Description, stateless=True),
}
"""Every operation, by endpoint and method."""

_ERROR_OF_PART: Final = {
    "email_domain": UnknownDomain,
    "service": UnknownService,
    "message_id": UnknownMessage,
    "number": UnknownMessage,
}

_STRING: Final[Schema] = {"type": "string"}
_NULL: Final[Schema] = {"type": "null"}
_EMPTY: Final[Schema] = {"const": ""}
_BLANK: Final[Schema] = {"type": "string", "pattern": r"^\s*$"}
_WORDS: Final[Schema] = {
    "enum": [0, 1, "0", "1", "true", "false", "True", "False", "yes", "no", "on", "off"],
    "description": "What forms and other languages send for true and false.",
}
_SHARE: Final[Schema] = {"type": "string", "pattern": r"^(0\.[0-9]{0,8}[1-9]|1|1\.0)$"}
_MINUTES: Final[Schema] = {
    "type": "string",
    "pattern": r"^([1-9][0-9]{0,3}(\.[0-9]{1,9})?|0\.[0-9]{0,8}[1-9]|10080)$",
}

ALSO_TAKEN: Final[Mapping[str, Sequence[Schema]]] = {
    **dict.fromkeys(LIST_FIELDS, (_STRING, _NULL)),
    **dict.fromkeys(("from_name", "raw_text_body", "html_body"), (_NULL,)),
    **dict.fromkeys(("content_type", "content_id"), (_NULL,)),
    **dict.fromkeys(("attachments", "inline"), (_NULL, _EMPTY)),
    **dict.fromkeys(("headers", "metadata"), (_STRING, _NULL)),
    **dict.fromkeys(("track_opens", "track_clicks"), (_WORDS, _EMPTY)),
    **dict.fromkeys(("dry_run", "simulated_failure"), (_WORDS,)),
    "share": (_SHARE,),
    "minutes": (_MINUTES,),
    "substitutions": (_STRING,),
    "send_at": (_NULL, _EMPTY),
    "on_unknown": (_EMPTY,),
}
"""What a field of a request takes beside its type, since forms have only text."""

_HEADERS: Final[Mapping[str, Schema]] = {
    "Link": {
        "description": "Where this description is; of a page, where the same is in JSON.",
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
    "Content-Disposition": {"description": "To be saved, and as what.", "schema": _STRING},
    "Location": {"description": "The page to go to.", "schema": _STRING},
    "ETag": {"description": "Another one once the content is.", "schema": _STRING},
}

_PARAMETERS: Final[Mapping[str, Schema]] = {
    "email_domain": {
        "name": "email_domain",
        "in": "path",
        "required": True,
        "description": "An email domain of this server, in any spelling.",
        "schema": {"type": "string", "pattern": r"^[^/]+\.[^/]*$"},
        "example": "example.com",
    },
    "service": {
        "name": "service",
        "in": "path",
        "required": True,
        "description": "A service of the domain; case makes no difference.",
        "schema": {"type": "string", "pattern": r"^[^/]+$"},
        "example": "primary",
    },
    "message_id": {
        "name": "message_id",
        "in": "path",
        "required": True,
        "description": "The `message_id` of an answer.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "example": "dfd3beeb3f5d4ce7b882ad3ecd669788",
    },
    "number": {
        "name": "number",
        "in": "path",
        "required": True,
        "description": "Which of the `attachments`, counted from 1.",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
        "example": "1",
    },
    "format": {
        "name": "format",
        "in": "query",
        "description": "The format of the answer, whatever `Accept` says.",
        "schema": {"enum": ["json", "html"]},
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Makes the request safe to repeat: the same key gets the same answer.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
}

_SECURITY: Final[Mapping[str, Schema]] = {
    "pool_key": {
        "type": "http",
        "scheme": "bearer",
        "description": "The pool key of the domain; also taken as `pool_api_key` in the body.",
    },
    "root_key": {
        "type": "http",
        "scheme": "bearer",
        "description": "The root key of the server; also taken as `root_api_key` in the body.",
    },
}

_KEYS: Final[Sequence[type[BaseModel]]] = (PoolKey, RootKey)
_NO_BODY: Final = (*_KEYS, AnyKey)
"""What a form asks for and a program may have in a header, or in another model."""

_PAGE: Final[Schema] = {"schema": {"type": "string"}}
_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def described(app: Flask) -> dict[str, Any]:
    """What `describe` makes of `app`, made once; not to be changed."""
    if "openapi" not in app.extensions:
        app.extensions["openapi"] = describe(app)
    document: dict[str, Any] = app.extensions["openapi"]
    return document


def operations_as_html(app: Flask) -> Markup:
    """The description for people, made once; it is the same for everybody."""
    if "reference" not in app.extensions:
        template = app.jinja_env.get_template("operations.html")
        # The template escapes all of it.
        app.extensions["reference"] = Markup(template.render(data=described(app)))  # noqa: S704
    html: Markup = app.extensions["reference"]
    return html


def describe(app: Flask) -> dict[str, Any]:
    """The description of `app` as an OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    bodies: dict[type[BaseModel], None] = {}
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint != "static":
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
            view = app.view_functions[rule.endpoint]
            paths[path] = _path_item(rule, view)
            if "post" in paths[path]:
                bodies |= dict.fromkeys(_bodies(view, OPERATIONS[_name(rule), "POST"]))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mailpool",
            "version": "1",
            "description": (
                "Sends email through whichever provider works. The same addresses are pages for "
                "people; trailing slashes never matter, and every GET has its HEAD."
            ),
        },
        "servers": [{"url": app.config["APPLICATION_ROOT"]}],
        "paths": paths,
        "components": {
            "schemas": _schemas(list(bodies), paths),
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "securitySchemes": _SECURITY,
        },
    }


def as_json(document: Mapping[str, Any]) -> str:
    """The document as it is published."""
    return json.dumps(document, ensure_ascii=False) + "\n"


def _name(rule: Rule) -> str:
    return str(rule.endpoint).rpartition(".")[2]


def _path_item(rule: Rule, view: Callable[..., Any]) -> dict[str, Any]:
    name = _name(rule)
    methods = [m for m in ("GET", "POST") if m in (rule.methods or ())]
    item: dict[str, Any] = {
        method.lower(): _operation(name, method, view, rule.arguments) for method in methods
    }
    parts = sorted(rule.arguments, key=rule.rule.index)
    return {"parameters": [_parameter(part) for part in (*parts, "format")], **item}


def _operation(
    name: str, method: str, view: Callable[..., Any], parts: Iterable[str]
) -> dict[str, Any]:
    operation = OPERATIONS[name, method]
    title, _, text = cleandoc(view.__doc__ or "").partition("\n")
    result: dict[str, Any] = {
        "operationId": f"{method.lower()}_{name}",
        "summary": title.rstrip("."),
        "description": text.strip(),
        "security": [{key: []} if key else {} for key in operation.keys],
    }
    if parameters := [*_query(operation), *_idempotency(operation)]:
        result["parameters"] = parameters
    if method == "POST" and (bodies := _bodies(view, operation)):
        result["requestBody"] = _request_body(name, bodies)
    result["responses"] = _responses(method, operation, parts)
    return result


def _responses(method: str, operation: Operation, parts: Iterable[str]) -> dict[str, Any]:
    answers: dict[int, list[Answer]] = {}
    for status, held in operation.successes.items():
        answers.setdefault(status, []).extend(held)
    for status in sorted(_error_statuses(method, operation, parts)):
        answers.setdefault(status, []).append(shapes.Error)
    return {
        str(int(status)): _response(status, held, operation)
        for status, held in sorted(answers.items())
    }


def _error_statuses(method: str, operation: Operation, parts: Iterable[str]) -> set[int]:
    raised: set[type[EmailServicesError]] = {*operation.raises}
    raised |= {_ERROR_OF_PART[part] for part in parts}
    statuses: set[int] = {*DEMANDS, *operation.statuses}
    if not operation.stateless:
        raised |= {InvalidInput, StoreUnavailable}
        statuses |= {*DEMANDS_ON_BODIES} if any(operation.keys) or method == "POST" else set()
    if any(operation.keys):
        raised |= _WRONG_KEYS
        if method == "POST":
            statuses.add(HTTPStatus.FORBIDDEN)
    return statuses | {STATUS_OF_ERROR[error] for error in raised}


def _response(status: int, held: Sequence[Answer], operation: Operation) -> dict[str, Any]:
    is_error = shapes.Error in held
    headers = {"Link"}
    headers |= {"WWW-Authenticate"} if status == HTTPStatus.UNAUTHORIZED else set()
    headers |= {"Location"} if status == HTTPStatus.SEE_OTHER else set()
    if is_error and status in {s for error, s in STATUS_OF_ERROR.items() if error.retry_after}:
        headers.add("Retry-After")
    if not is_error or set(held) > {shapes.Error}:
        headers |= {*operation.headers}
    described: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in sorted(headers)},
    }
    if status == HTTPStatus.OK and operation.leads_to:
        described["links"] = {"message": _link_to_message(operation.leads_to)}
    if content := _content(status, held):
        described["content"] = content
    return described


def _link_to_message(pointer: str) -> dict[str, Any]:
    return {
        "operationId": "get_message",
        "parameters": {
            "path.email_domain": "$request.path.email_domain",
            "path.message_id": f"$response.body#{pointer}",
        },
    }


def _content(status: int, held: Sequence[Answer]) -> dict[str, Any]:
    models = [answer for answer in held if not isinstance(answer, str)]
    content: dict[str, Any] = {
        media_type: {"schema": {}} if media_type == "application/json" else _PAGE
        for media_type in held
        if isinstance(media_type, str)
    }
    if models:
        refs = [_ref(model) for model in models]
        media: dict[str, Any] = {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}
        examples = {
            model.__name__: {"value": value}
            for model in models
            for value in [ANSWERS.get((model.__name__, status), ANSWERS.get(model.__name__))]
            if value is not None
        }
        if examples:
            media["examples"] = examples
        content |= {"application/json": media, "text/html": _PAGE}
    return content


def _request_body(name: str, bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    refs = [_ref_to_body(model) for model in bodies]
    media: dict[str, Any] = {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}
    if examples := REQUESTS.get(name):
        media["examples"] = {key: {"value": value} for key, value in examples.items()}
    form = _ref_to_body(bodies[0], "Form")
    forms = {media_type: {"schema": form} for media_type in _FORMS}
    is_required = any(info.is_required() for info in bodies[0].model_fields.values())
    return {"required": is_required, "content": {"application/json": media, **forms}}


def _query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    model = operation.query.model_json_schema(schema_generator=_WithoutTitles)
    parameters = []
    for name, found in model["properties"].items():
        described = {
            k: v for k, v in found.items() if k not in {"anyOf", "description", *FOR_FORMS}
        }
        for choice in found.get("anyOf", ()):
            described |= {} if choice == _NULL else choice  # a URL has no null
        if described.get("default", 0) is None:
            del described["default"]
        schema = {"anyOf": [described, _EMPTY]}  # what a form left empty was not given
        text = found["description"]
        parameters.append({"name": name, "in": "query", "description": text, "schema": schema})
    return parameters


def _idempotency(operation: Operation) -> list[dict[str, Any]]:
    return [_parameter("Idempotency-Key")] if KeyReused in operation.raises else []


def _parameter(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/parameters/{name}"}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _bodies(view: Callable[..., Any], operation: Operation) -> list[type[BaseModel]]:
    """The models of what a POST may hold beside keys; of several, one holds it all."""
    if operation.stateless:
        return [*operation.takes]
    declared = [model for model in getattr(view, "models", ()) if model not in _NO_BODY]
    return [*(operation.takes or declared or (Nothing,)), *operation.also_takes]


def _ref_to_body(model: type[BaseModel], kind: str = "Body") -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}{kind}"}


def _schemas(bodies: Sequence[type[BaseModel]], paths: Mapping[str, Any]) -> dict[str, Schema]:
    """The schemas of `bodies` and of all answers, by name, as `paths` needs them."""
    taken = _schemas_of([*bodies, *_KEYS, EmailMessage])
    for schema in taken.values():
        _widen(schema)
    taken["Batch"]["properties"]["messages"]["items"] = _ref(EmailMessage)
    keys = {k: v for model in _KEYS for k, v in taken[model.__name__]["properties"].items()}
    for model in (*bodies, *_KEYS):
        schema = taken[model.__name__] if model is EmailMessage else taken.pop(model.__name__)
        if model not in _KEYS:  # which are fields of every other body; a header does as well
            fields = {**keys, **schema.get("properties", {})}
            taken[f"{model.__name__}Body"] = {**schema, "properties": fields}
            taken[f"{model.__name__}Form"] = _as_form({**schema, "properties": fields})
    answers = [
        answer
        for operation in OPERATIONS.values()
        for held in (*operation.successes.values(), (shapes.Error,))
        for answer in held
        if not isinstance(answer, str)
    ]
    schemas = {**taken, **_schemas_of(answers)}
    used = re.findall(r"#/components/schemas/\w+", json.dumps([paths, schemas]))
    names = {ref.rpartition("/")[2] for ref in used}
    return {name: schema for name, schema in sorted(schemas.items()) if name in names}


def _schemas_of(models: Sequence[type[BaseModel]]) -> dict[str, Schema]:
    _, found = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_WithoutTitles,
    )
    schemas: dict[str, Schema] = found["$defs"]
    for schema in schemas.values():
        schema.pop("title", None)
        schema["description"] = schema.get("description", "").partition("\n\n")[0]
    return schemas


def _widen(schema: Schema) -> None:
    """Say what else a field takes, and leave out what is for forms of pages."""
    for name, found in schema.get("properties", {}).items():
        for word in FOR_FORMS:
            found.pop(word, None)
        if name in ALSO_TAKEN:
            kept = {word: found.pop(word) for word in ("description", "default") if word in found}
            choices = found.pop("anyOf", None) or [dict(found)]
            found.clear()
            found |= {"anyOf": [*choices, *ALSO_TAKEN[name]], **kept}


def _as_form(body: Schema) -> Schema:
    """The same as a form: it has only text, and a field that may be left out may be left blank."""
    needed = body.get("required", ())
    fields = {name: _in_form(found, name in needed) for name, found in body["properties"].items()}
    return {**body, "properties": fields}


def _in_form(found: Schema, is_needed: bool) -> Schema:
    if is_needed:
        return found
    choices = [c for c in found.get("anyOf", [found]) if c.get("type") != "null"]
    return {"anyOf": [*choices, _BLANK], "description": found["description"]}
