"""What the shared tests have to know of a provider behind HTTP, and how they see its requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from typing import Any

from messages import PLAIN
from standins import Received
from werkzeug.datastructures import FileStorage
from werkzeug.formparser import MultiPartParser

from email_services.abstract import Standing
from email_services.exceptions import ProviderError
from email_services.http_service import HTTPEmailService
from email_services.message import EmailMessage
from email_services.providers import find_provider, provider_names

PROVIDER_KEY = "SG.key-at-the-provider"
EVERYBODYS = {
    *("accept", "accept-encoding", "connection", "content-length", "host", "user-agent"),
}
"""Headers that say nothing of a message."""

JSON = {"Content-Type": "application/json"}
HTML = {"Content-Type": "text/html"}

RawAnswer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


def in_json(status: int, value: Any, headers: dict[str, str] | None = None) -> RawAnswer:
    return status, {**JSON, **(headers or {})}, json.dumps(value).encode()


@dataclass(frozen=True)
class Contract:
    """One provider's answers and secrets; `test_NAME.py` holds it as CONTRACT.

    accepted: status, headers and body when it takes a message. message_id: the id in it.
    without_id: bodies of an acceptance that holds no id.
    secrets: headers in which a secret goes over the wire, in lower case.
    error: how it says what is wrong, as JSON. settings: what config.json must say of it.
    id_is_in_a_header: the id is known though the body is cut.
    statuses: the statuses that mean something else here than the design says.
    answers: its own words for what is wrong, and what each means.
    moving: headers that differ from request to request.
    batch: an acceptance of two messages, and the ids in it.
    our_ids: where the body of a request, as `seen` shows it, has our id of each of its messages as
    data that the provider's events give back; None only where it carries no metadata.
    looks: what it answers, one request after the other, to who checks an account, and what that
    means; "good" is an account that may send for the domain, as far as it tells.
    """

    accepted: RawAnswer
    message_id: str
    without_id: list[bytes]
    secrets: dict[str, str]
    error: Callable[[str], Any]
    settings: dict[str, Any] = field(default_factory=lambda: {"api_key": PROVIDER_KEY})
    id_is_in_a_header: bool = False
    statuses: dict[int, type[Exception]] = field(default_factory=dict)
    answers: dict[str, tuple[RawAnswer, type[ProviderError]]] = field(default_factory=dict)
    moving: tuple[str, ...] = ()
    batch: tuple[RawAnswer, list[str | None]] | None = None
    our_ids: Callable[[Any], list[str]] | None = None
    looks: dict[str, tuple[list[RawAnswer], Standing | type[ProviderError]]] = field(
        default_factory=dict
    )


def http_providers() -> list[str]:
    return [name for name in provider_names() if issubclass(find_provider(name), HTTPEmailService)]


def contract_of(provider: str) -> Contract:
    """The CONTRACT of the provider's own tests; an error where there is none."""
    contract: Contract = import_module(f"test_{provider}").CONTRACT
    return contract


def make_service(provider: str, base_url: str | None = None, timeout: float = 5, **settings: Any):
    """One service at `provider`, called like it, for example.com."""
    cls = find_provider(provider)
    given = {"priority_value": 10, "timeout_seconds": timeout, **settings}
    if base_url is not None:
        given = {**contract_of(provider).settings, "base_url": base_url, **given}
    return cls(provider, "example.com", cls.Settings.model_validate(given))


def make_message(**fields: Any) -> EmailMessage:
    return EmailMessage.parse({**PLAIN, **fields}, "example.com")


def outcome_of(service, message=None, timeout=5.0):
    """The id for an accepted message, else the error."""
    try:
        return service.send(message or make_message(), timeout).message_id
    except ProviderError as error:
        return error


def data_of(pairs: list[dict[str, str]]) -> dict[str, str]:
    """`[{"name": ..., "value": ...}]` as a dict, whatever the case of its keys."""
    lowered = [{key.lower(): value for key, value in pair.items()} for pair in pairs]
    return {pair["name"]: pair["value"] for pair in lowered}


def seen(request: Received, moving: tuple[str, ...] = ()) -> dict[str, Any]:
    """A request as data: what a person compares with the provider's reference."""
    headers = {k: v for k, v in request.headers.items() if k not in {*EVERYBODYS, *moving}}
    kind = headers.pop("content-type", "").partition(";")[0]
    readers = {
        "application/json": lambda: request.json,
        "application/x-www-form-urlencoded": lambda: [list(pair) for pair in request.form],
        "multipart/form-data": lambda: _parts(request),
    }
    return {
        "request": f"{request.method} {request.path}",
        "headers": headers,
        "type": kind,
        "body": readers[kind](),
    }


def _parts(request: Received) -> list[Any]:
    boundary = request.headers["content-type"].partition("boundary=")[2]
    parser = MultiPartParser(max_form_memory_size=None)
    body = BytesIO(request.body)
    form, files = parser.parse(body, boundary.encode(), len(request.body))
    return [
        *([*pair] for pair in form.items(multi=True)),
        *(_file(name, file) for name, file in files.items(multi=True)),
    ]


def _file(name: str, file: FileStorage) -> dict[str, str]:
    with closing(file):
        content = base64.b64encode(file.read()).decode()
    return {"name": name, "filename": file.filename, "type": file.content_type, "base64": content}
