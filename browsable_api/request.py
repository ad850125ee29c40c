"""What a client sent: its body as data, the format it wants back, and the keys it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from http import HTTPStatus
from io import BytesIO
from itertools import islice
from threading import BoundedSemaphore
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes

import flask
from flask_api import exceptions
from flask_api.negotiation import BaseNegotiation
from flask_api.request import APIRequest
from werkzeug.datastructures import ETags, FileStorage, MIMEAccept, MultiDict
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_accept_header, parse_etags, parse_options_header
from werkzeug.wrappers import Request as WerkzeugRequest

from browsable_api.errors import APIError
from browsable_api.structure import Structure, fits

MEGABYTE: Final = 1024 * 1024
STRANGERS_BYTES: Final = MEGABYTE
"""What is read of a body before its sender is known."""

_FREE_BYTES: Final = 64 * 1024
"""What costs little, whoever sends it and whatever it holds."""

_WHO_MAY_SEND_MORE: Final = (
    f"A body of more than {STRANGERS_BYTES // MEGABYTE} MB, or {_FREE_BYTES // 1024} kB in chunks, "
    "needs a key that opens something here: show it in the Authorization header, or at the "
    "beginning of the body."
)
_STRANGERS_JSON: Final = Structure(containers=20_000, members=20_000, values=50_000)
_STRANGERS_TURNS = BoundedSemaphore(2)
"""How many bodies of strangers are parsed at once in a worker, where that takes time."""

MAX_FORM_FIELDS: Final = 2000
FORMAT: Final = "format"
"""What chooses the format of the answer in a URL, before `Accept`."""

_FORMATS: Final = {"json": "application/json", "html": "text/html"}

JSON_FIELD: Final = "_json"
"""A field of a form that holds all the others as one JSON object, for who would rather write it."""

ONCE_FIELD: Final = "_once"
"""A field of a form that stands for an Idempotency-Key: who loads the answer again does no more."""

SEEN_FIELD: Final = "_seen"
"""A field of a form that stands for If-Match: what was there when its page was made."""


class Negotiation(BaseNegotiation):  # type: ignore[misc]
    """Content negotiation by quality and specificity, which Flask-API's own leaves out."""

    def select_renderer(self, renderers: list[Any]) -> tuple[Any, str]:
        """The renderer for `?format=` or else for `Accept`, and its media type.

        The first where anything goes.
        """
        names = tuple(renderer.media_type for renderer in renderers)
        if FORMAT in request.args:
            best = _FORMATS.get(request.args[FORMAT])
        else:
            best = _accepted(request.headers.get("Accept", ""), names)
        if best is None or best not in names:
            raise exceptions.NotAcceptable
        return renderers[names.index(best)], best


@lru_cache(maxsize=256)  # most clients say the same in each request
def _accepted(header: str, names: tuple[str, ...]) -> str | None:
    """Which of the media types an Accept header asks for most, if any."""
    wanted = MIMEAccept(
        (media_type.partition(";")[0].strip(), quality)
        for media_type, quality in parse_accept_header(header, MIMEAccept)
    )
    return wanted.best_match(names) if wanted else names[0]


class Request(APIRequest):  # type: ignore[misc]
    """A request whose body becomes a dict, or a clear 4xx.

    Flask-API lets a form override method and body, and cannot read a chunked body; here both
    are Werkzeug's again.
    """

    negotiator_class = Negotiation

    content_type = WerkzeugRequest.content_type
    content_length = WerkzeugRequest.content_length
    stream = WerkzeugRequest.stream

    @property
    def data(self) -> dict[str, Any]:
        """The body's fields; a file is a dict of filename, content (bytes) and content_type.

        Raises APIError with 400, 413 or 415.
        """
        if not hasattr(self, "_fields"):
            # What there is if it fails, for the page that says so.
            self._fields: dict[str, Any] = {}
            self._fields = self._with_json_field(self._parse_body())
        return self._fields

    @property
    def read_so_far(self) -> dict[str, Any]:
        """The body's fields where it was read, else {}."""
        return getattr(self, "_fields", {})

    @property
    def query(self) -> dict[str, str]:
        """The fields of the URL's query, without what chooses the format."""
        return {name: value for name, value in self.args.items() if name != FORMAT}

    @property
    def is_from_a_form(self) -> bool:
        """Whether a person sent it, from a page."""
        is_form = self.mimetype in {"application/x-www-form-urlencoded", "multipart/form-data"}
        return is_form and self.accepted_media_type == "text/html"

    @property
    def form(self) -> dict[str, Any]:
        """What a form held, to fill it in again, but for files; {} for any other body."""
        if self.mimetype == "application/json":
            return {}
        if self.typed_json is not None:
            return {JSON_FIELD: self.typed_json}
        return {k: value for k, value in self.read_so_far.items() if not _holds_files(value)}

    once_key: str | None = None
    """What the form's ONCE_FIELD held, if it had one."""

    seen: str | None = None
    """What the form's SEEN_FIELD held, if it had one."""

    typed_json: str | None = None
    """What the form's JSON_FIELD held, if it had one."""

    @property
    def if_match(self) -> ETags:
        """What has to be there still, as the header says, or a form that was read."""
        return parse_etags(self.headers.get("If-Match", self.seen))

    file_names: Mapping[str, list[str]] = {}
    """The names of the files of each field of a multipart form."""

    def _with_json_field(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.file_names = {
            name: [file["filename"] for file in value]
            for name, value in fields.items()
            if self.mimetype == "multipart/form-data" and _holds_files(value)
        }
        if self.mimetype == "application/json":
            return fields
        if isinstance(fields.get(ONCE_FIELD), str):
            self.once_key = fields.pop(ONCE_FIELD)
        if isinstance(fields.get(SEEN_FIELD), str):
            self.seen = fields.pop(SEEN_FIELD)
        if not isinstance(fields.get(JSON_FIELD), str):
            return fields
        self.typed_json = fields.pop(JSON_FIELD)
        self._fields = fields  # the keys among them, for the page that says what is wrong
        try:
            written = _parse_json(self.typed_json.encode(), self._max_json)
        except APIError as error:
            raise APIError(error.status, error.error, {JSON_FIELD: error.error}) from None
        return {**written, **fields}

    @cached_property
    def _max_json(self) -> Structure:
        most: Structure = flask.current_app.config["MAX_JSON"]
        return most

    def early_values(self, beginning: bytearray, names: Collection[str]) -> list[str]:
        """What fields with one of these names hold, as far as the beginning of the body tells.

        A search that builds nothing, for the first few of them: in JSON it does not tell which
        object a field is in.
        """
        if self.mimetype not in _EARLY:
            return []
        pattern, decode = _EARLY[self.mimetype]
        any_name = "|".join(map(re.escape, names)).encode()
        found = re.finditer(pattern.replace(b"NAME", any_name), beginning)
        return [decode(match[1]) for match in islice(found, _EARLY_VALUES)]

    def _parse_body(self) -> dict[str, Any]:
        """No reference to the body is kept while it is parsed: it may be large."""
        body = bytearray()
        is_whole = self._read_beginning(body)
        if not body:
            return {}
        turn: AbstractContextManager[object] = nullcontext()
        if len(body) >= _FREE_BYTES and not flask.current_app.config["KNOWS_SENDER"](body):
            if not is_whole:
                raise APIError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _WHO_MAY_SEND_MORE)
            turn, self._max_json = _STRANGERS_TURNS, _STRANGERS_JSON
        if not is_whole:
            self._read_until(None, body)
        waiting = [body]
        del body
        with turn:
            if self.mimetype == "application/json":
                return _parse_json(waiting.pop(), self._max_json)
            if self.mimetype == "application/x-www-form-urlencoded":
                return _parse_urlencoded(waiting.pop())
            if self.mimetype == "multipart/form-data":
                return _parse_multipart(waiting.pop(), self.headers["Content-Type"])
        raise exceptions.UnsupportedMediaType

    def _read_beginning(self, body: bytearray) -> bool:
        """Add to `body` what anybody may send; returns whether that is all of it.

        It waits for no byte beyond: what has come by now may be all that ever comes.
        """
        if self.content_length is None:  # in chunks
            self._read_until(_FREE_BYTES, body)
            return len(body) < _FREE_BYTES
        self._read_until(min(self.content_length, STRANGERS_BYTES), body)
        return self.content_length <= STRANGERS_BYTES

    def _read_until(self, length: int | None, body: bytearray) -> None:
        """Add to `body` what comes, until it has that length or, without one, to the end."""
        try:
            while length is None or len(body) < length:
                wanted = _FREE_BYTES if length is None else length - len(body)
                # Where a chunked body goes on at the limit, this is 413.
                if not (chunk := self.stream.read(min(wanted, _FREE_BYTES))):
                    return
                body += chunk
        except flask.current_app.config["UNREADABLE"]:  # whose text may quote the body
            raise _bad_request("The body is not chunked as it says.") from None


request = cast("Request", flask.request)
"""Flask's proxy, known to be one of ours."""


def _parse_json(body: bytes | bytearray, most: Structure) -> dict[str, Any]:
    if not fits(body, most):
        raise APIError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The JSON holds more than {most.containers:,} objects and lists, {most.members:,} "
            f"fields or {most.values:,} values.",
        )
    try:
        text = body.decode("utf-8-sig")
        del body
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError:
        raise _bad_request("The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _bad_request(f"The body is not JSON: {error.msg}, {where}.") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise _bad_request(f"The body cannot be read as JSON: {reason}.") from None
    if not isinstance(value, dict):
        raise _bad_request("The body should be a JSON object.")
    return value


def _text_of_json(value: bytes) -> str:
    try:
        return str(json.loads(b'"%b"' % value))
    except ValueError:
        return ""


_EARLY_VALUES: Final = 3
_EARLY: Final[Mapping[str, tuple[bytes, Callable[[bytes], str]]]] = {
    "application/json": (rb'"(?:NAME)"\s*:\s*"((?:[^"\\]|\\.){0,500})"', _text_of_json),
    "application/x-www-form-urlencoded": (
        rb"(?:^|&)(?:NAME)=([^&]{0,1500})",
        lambda value: unquote_to_bytes(value).decode("utf-8", "replace"),
    ),
    "multipart/form-data": (
        rb'; name="?(?:NAME)"?\r\n(?:[^\r\n]{1,200}\r\n){0,3}\r\n([^\r\n]{0,500})\r\n',
        lambda value: value.decode("utf-8", "replace"),
    ),
}
"""How a field begins in each kind of body, and how its text is read; all lengths are bounded."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse_urlencoded(body: bytearray) -> dict[str, Any]:
    if body.lstrip().startswith(b"{"):
        # What curl sends for -d without a header: the most common mistake of all.
        raise _bad_request("The body looks like JSON: send it with Content-Type: application/json.")
    if body.count(b"&") >= MAX_FORM_FIELDS:
        raise _bad_request("The form cannot be read: it has too many fields.")
    form: MultiDict[str, str] = MultiDict()
    try:
        for field in filter(None, body.split(b"&")):
            name, _, value = field.partition(b"=")
            form.add(_unquoted(name), _unquoted(value))
    except UnicodeDecodeError:
        raise _bad_request("The form is not UTF-8.") from None
    return _fields(form)


def _unquoted(text: bytes | bytearray) -> str:
    """Text of a urlencoded form; a part at a time, since for a while each %XX is an object."""
    parts = []
    start = 0
    while start < len(text):
        end = start + _FREE_BYTES
        cut = text.rfind(b"%", end - 2, end)  # not through the middle of one
        end = end if cut == -1 else cut
        parts.append(unquote_to_bytes(bytes(text[start:end]).replace(b"+", b" ")))
        start = end
    return b"".join(parts).decode("utf-8")


def _parse_multipart(body: bytearray, content_type: str) -> dict[str, Any]:
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not boundary or not boundary.isascii():
        raise _bad_request("The Content-Type of a multipart form needs a boundary.")
    parser = MultiPartParser(
        stream_factory=lambda *_, **__: BytesIO(),  # the body is in memory; its files stay there
        max_form_memory_size=len(body),
        max_form_parts=MAX_FORM_FIELDS,
    )
    length, stream = len(body), BytesIO(body)
    del body
    try:
        form, files = parser.parse(stream, boundary.encode("ascii"), length)
    except ValueError as error:
        raise _bad_request(f"The multipart form cannot be read: {error}.") from None
    names = [file.filename or "" for file in files.values()]
    if any("\ufffd" in text for text in (*form.values(), *names)):  # the parser's for other bytes
        raise _bad_request("The form is not UTF-8.")
    if None in form or None in files:  # a part without a name
        raise _bad_request("A part of the multipart form has no name.")
    return {**_fields(form), **_files(files)}


def _files(files: MultiDict[str, FileStorage]) -> dict[str, list[dict[str, Any]]]:
    """The files of each field, always as a list; a browser sends one without a name for none."""
    given = {name: [file for file in found if file.filename] for name, found in files.lists()}
    return {
        name: [
            {
                "filename": file.filename,
                "content": file.stream.read(),
                "content_type": _type_of(file),
            }
            for file in found
        ]
        for name, found in given.items()
        if found
    }


def _type_of(file: FileStorage) -> str:
    """Its media type with the charset, but without the names that some programs write there."""
    charset = file.mimetype_params.get("charset")
    return f"{file.mimetype}; charset={charset}" if charset else file.mimetype


def _fields(form: MultiDict[str, str]) -> dict[str, Any]:
    """One value as a string, several as a list; what was left empty was not given.

    But nobody leaves a field empty that has no name.
    """
    given = {name: [v for v in values if v.strip() or not name] for name, values in form.lists()}
    return {name: v if len(v) > 1 else v[0] for name, v in given.items() if v}


def _holds_files(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _bad_request(error: str) -> APIError:
    return APIError(HTTPStatus.BAD_REQUEST, error)
