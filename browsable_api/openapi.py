"""The description of an API (OpenAPI 3.1), made from its operations.

It says what is recommended; what is tolerated beside that is told in texts. So generators make
clients of it that people want to use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from browsable_api.errors import Error
from browsable_api.operations import PART, Answer, Operation, Operations

Schema = dict[str, Any]

_JSON: Final = "application/json"
_NULL: Final[Schema] = {"type": "null"}
_FILE: Final[Schema] = {"type": "string", "format": "binary"}


@dataclass(frozen=True)
class About:
    """What the operations do not say of themselves.

    tags: what operations belong to and what that is, in the order in which a person would look.
    keys: what each key of `Access.schemes` is; all are shown as bearers. parameters, headers: their
    descriptions, by name. carried: which headers a status brings.
    """

    title: str
    version: str
    description: str
    tags: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)
    carried: Mapping[int, Collection[str]] = field(default_factory=dict)


def describe(addresses: Mapping[str, Operations], about: About) -> dict[str, Any]:
    """The OpenAPI 3.1 document, in the order in which its operations were declared.

    addresses: the operations at each, as Flask writes it.
    """
    paths = {PART.sub(r"{\1}", rule): _path_item(rule, addresses, about) for rule in addresses}
    schemas = _schemas(o for found in addresses.values() for o in found.values())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": about.title,
            "version": about.version,
            "description": about.description,
        },
        "tags": [{"name": name, "description": text} for name, text in about.tags.items()],
        "paths": paths,
        "components": {
            "schemas": _used(schemas, paths),
            "parameters": about.parameters,
            "headers": about.headers,
            "securitySchemes": {
                name: {"type": "http", "scheme": "bearer", "description": text}
                for name, text in about.keys.items()
            },
        },
    }


def as_json(document: Mapping[str, Any]) -> str:
    """The document as it is published."""
    return json.dumps(document, ensure_ascii=False) + "\n"


def _path_item(rule: str, addresses: Mapping[str, Operations], about: About) -> dict[str, Any]:
    described = {method.lower(): _operation(o, about) for method, o in addresses[rule].items()}
    for method, operation in addresses[rule].items():
        if operation.leads_to:
            link = _link(operation, addresses)
            described[method.lower()]["responses"][str(int(HTTPStatus.OK))]["links"] = {
                "next": link
            }
    return {"parameters": [_ref("parameters", part) for part in PART.findall(rule)], **described}


def _link(operation: Operation, addresses: Mapping[str, Operations]) -> dict[str, Any]:
    """Where in its answer is what the operation needs that it leads to."""
    rule, pointer = operation.leads_to or ("", "")
    found = pointer.rpartition("/")[2]
    return {
        "operationId": addresses[rule]["GET"].name,
        "parameters": {
            f"path.{part}": (
                f"$response.body#{pointer}" if part == found else f"$request.path.{part}"
            )
            for part in PART.findall(rule)
        },
    }


def _operation(operation: Operation, about: About) -> dict[str, Any]:
    result: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.title,
        "description": operation.text or operation.title,
        "security": _security(operation),
    }
    parameters = [*_query(operation)]
    parameters += [_ref("parameters", name) for name in operation.request_headers]
    if parameters:
        result["parameters"] = parameters
    if operation.bodies:
        result["requestBody"] = _request_body(operation)
    statuses = sorted({*operation.answers, *operation.errors})
    result["responses"] = {str(int(s)): _response(s, operation, about) for s in statuses}
    return result


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    """Which keys open it; no list where it needs none, or generators would ask for one."""
    schemes = operation.access.schemes
    return [{key: []} if key else {} for key in schemes] if any(schemes) else []


def _query(operation: Operation) -> Iterable[dict[str, Any]]:
    if operation.query is None:
        return
    schemas = _request_schemas([operation.query])
    for name, schema in schemas[operation.query.__name__]["properties"].items():
        text = schema.pop("description")
        yield {"name": name, "in": "query", "description": text, "schema": schema}


def _request_body(operation: Operation) -> dict[str, Any]:
    media = _one_of([_ref("schemas", model.__name__) for model in operation.bodies])
    if operation.examples:
        media["examples"] = {name: {"value": body} for name, body in operation.examples.items()}
    is_required = any(info.is_required() for info in operation.bodies[0].model_fields.values())
    return {"required": is_required, "content": {_JSON: media}}


def _response(status: int, operation: Operation, about: About) -> dict[str, Any]:
    held = operation.answers.get(status, ())
    headers = {"Link", "X-Request-ID", *about.carried.get(status, ())}
    if held or status not in operation.errors:
        headers |= {*operation.headers}
    described: dict[str, Any] = {
        "description": operation.meaning(status),
        "headers": {name: _ref("headers", name) for name in sorted(headers & {*about.headers})},
    }
    if content := _content(status, operation):
        described["content"] = content
    return described


def _content(status: int, operation: Operation) -> dict[str, Any]:
    held = operation.answers.get(status, ())
    content: dict[str, Any] = {
        media_type: {"schema": _schema_of_file(media_type)}
        for media_type in held
        if isinstance(media_type, str)
    }
    shapes = [answer for answer in held if not isinstance(answer, str)]
    if status in operation.errors:
        shapes.append(Error)
    if shapes:
        media = _one_of([_ref("schemas", shape.__name__) for shape in shapes])
        examples = {
            shape.__name__: {"value": value}
            for shape in shapes
            for value in [operation.example(shape, status)]
            if value is not None
        }
        if examples:
            media["examples"] = examples
        content[_JSON] = media
    return content


def _schema_of_file(media_type: str) -> Schema:
    if media_type == _JSON:
        return {}
    return {"type": "string"} if media_type.startswith("text/") else _FILE


def _one_of(refs: Sequence[Schema]) -> dict[str, Any]:
    return {"schema": refs[0] if len(refs) == 1 else {"anyOf": [*refs]}}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _schemas(operations: Iterable[Operation]) -> dict[str, Schema]:
    """All that requests and answers hold, by name."""
    bodies: dict[type, None] = {}
    answers: dict[Answer, None] = {Error: None}
    for operation in operations:
        bodies |= dict.fromkeys(operation.bodies)
        answers |= dict.fromkeys(a for held in operation.answers.values() for a in held)
    held = _schemas_of([answer for answer in answers if not isinstance(answer, str)])
    for schema in held.values():
        if "properties" in schema:  # and no others, where it does not say so
            schema.setdefault("additionalProperties", False)
    taken = _request_schemas([*bodies])
    if twice := [name for name in {*held} & {*taken} if held[name] != taken[name]]:
        raise TypeError(f"Two schemas are named {twice[0]}: a generator keeps only one of them.")
    return dict(sorted({**held, **taken}.items()))


def _used(schemas: Mapping[str, Schema], paths: Mapping[str, Any]) -> dict[str, Schema]:
    """Without what pydantic adds for fields that are described in another way."""
    found = re.findall(r"#/components/schemas/(\w+)", json.dumps([paths, schemas]))
    return {name: schemas[name] for name in schemas if name in {*found}}


def _request_schemas(models: Sequence[type]) -> dict[str, Schema]:
    """As it is recommended: what may be left out is left out, and is neither null nor repeated."""
    schemas = _schemas_of(models)
    for schema in schemas.values():
        for name, found in schema.get("properties", {}).items():
            schema["properties"][name] = _recommended(found)
    return schemas


def _recommended(found: Schema) -> Schema:
    kept = {word: value for word, value in found.items() if word not in {"default", "anyOf"}}
    choices = [choice for choice in found.get("anyOf", ()) if choice != _NULL]
    if len(choices) == 1:
        return {**choices[0], **kept}
    return {**kept, "anyOf": choices} if choices else kept


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def _schemas_of(shapes: Sequence[type]) -> dict[str, Schema]:
    if not shapes:
        return {}
    _, found = TypeAdapter.json_schemas(
        [(shape, "validation", TypeAdapter(shape)) for shape in shapes],
        ref_template="#/components/schemas/{model}",
        schema_generator=_WithoutTitles,
    )
    schemas: dict[str, Schema] = found["$defs"]
    for schema in schemas.values():
        schema.pop("title", None)
        schema["description"] = schema.get("description", "").partition("\n\n")[0]
    return schemas
