"""One answer in two renderings: JSON, and a page around the same JSON."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

import markdown
from flask import current_app, g, render_template
from flask.globals import request_ctx
from flask_api.renderers import BaseRenderer
from markdown.extensions.toc import TocExtension
from markupsafe import Markup, escape
from pydantic_core import to_json
from werkzeug.http import quote_etag

from browsable_api.conventions import same_in_json, tag_of
from browsable_api.curl import curl_command
from browsable_api.forms import FormField, described, filter_fields, form_fields
from browsable_api.operations import Operation, Operations, current_operation, operations_here
from browsable_api.request import JSON_FIELD, ONCE_FIELD, SEEN_FIELD, request

MAX_SHOWN: Final = 100_000
"""Characters of its JSON that a page shows; the same address gives programs all of it."""

_ESCAPED_LETTER: Final = re.compile(r"\\u00(?:4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9a])")
"""Nobody writes one in JSON so, but to hide a name."""


class JSONRenderer(BaseRenderer):  # type: ignore[misc]
    """The answer for programs; its keys stay in the order they were given."""

    media_type = "application/json"

    def render(self, data: Any, media_type: str, **options: Any) -> bytes:  # noqa: ARG002
        """One line, UTF-8."""
        return _encode(json.dumps(data, ensure_ascii=False) + "\n")


class PageRenderer(BaseRenderer):  # type: ignore[misc]
    """The answer for people: what this address is, what it said, and what can be done here."""

    media_type = "text/html"

    def render(self, data: Any, media_type: str, **options: Any) -> bytes:  # noqa: ARG002
        """A page, made with the view's template.

        `options` holds the status and the headers of the answer.
        """
        here = operations_here()
        get, post, operation = here.get("GET"), here.get("POST"), current_operation()
        problems = data.get("problems", {}) if isinstance(data, dict) else {}
        fields = form_fields(post, request.view_args or {}, request.form, problems)
        if request.file_names:
            fields = [_with_files(field) for field in fields]
        filters = filter_fields(get, request.query, problems)
        shown = {JSON_FIELD, *(field.name for field in (*fields, *filters))}
        text = pretty(data)
        beginning = _beginning(text)
        page = render_template(
            _template(here, operation),
            documentation=_documentation(*here.values()),
            breadcrumbs=_breadcrumbs(),
            status=options["status"],
            headers=[f"{name}: {value}" for name, value in options["headers"]],
            data=data,
            is_ok=options["status_code"] < HTTPStatus.BAD_REQUEST,
            json=_linked(beginning),
            json_left=len(text) - len(beginning),
            json_url=same_in_json() if request.method in {"GET", "HEAD"} else "",
            json_tag=partial(_tag_of, data),
            curl=curl_command(
                request,
                get.query_names if get else (),
                post.body_names if post else (),
                _secrets(fields),
                g.get("key_name", ""),
            ),
            fields=fields,
            filters=filters,
            # Where nothing is, nothing can be done.
            post=None if options["status_code"] == HTTPStatus.NOT_FOUND else post,
            fields_of=_fields_of,
            typed_json=_without(_secrets(fields), request.typed_json),
            json_field=JSON_FIELD,
            once_field=ONCE_FIELD,
            seen_field=SEEN_FIELD,
            once_key=secrets.token_hex(16) if post and post.form.is_once else "",
            problems={path: (path.partition(".")[0] in shown, p) for path, p in problems.items()},
        )
        return _encode(page)


def pretty(data: Any) -> str:
    """JSON for people."""
    try:
        return to_json(data, indent=2).decode()  # ten times as fast as Python's own with an indent
    except ValueError:  # half a surrogate pair
        return json.dumps(data, ensure_ascii=False, indent=2)


def _tag_of(data: Any) -> str:
    """The ETag of the same answer as JSON (see `conventions.add_tag`)."""
    return quote_etag(*tag_of(JSONRenderer().render(data, JSONRenderer.media_type)))


def _with_files(field: FormField) -> FormField:
    """No browser fills in a file again: say which have to be chosen anew."""
    names = ", ".join(request.file_names.get(field.name, ()))
    return (
        replace(field, problem=f"{field.problem} Choose again: {names}.".strip())
        if names
        else field
    )


def _fields_of(fields: list[FormField], **asked: Any) -> Markup:
    """The fields of a form as HTML; made once where nothing was typed yet."""
    is_blank = not any(field.value or field.problem for field in fields)
    make = _fields_as_html if is_blank else _fields_as_html.__wrapped__
    return make(tuple(fields), **asked)


@lru_cache(maxsize=128)  # what stands in them may be of the address, which anybody writes
def _fields_as_html(fields: tuple[FormField, ...], *, needs_key: bool, preview_url: str) -> Markup:
    forms: Any = current_app.jinja_env.get_template("forms.html").module
    return Markup(forms.fields_of(fields, needs_key, preview_url))  # noqa: S704 - of the template


def _template(here: Operations, operation: Operation | None) -> str:
    """The page of what was done, or of the address."""
    pages = [found.page for found in (operation, *here.values()) if found and found.page]
    return pages[0] if pages else "page.html"


def _secrets(fields: list[FormField]) -> set[str]:
    passwords = {field.name for field in fields if field.widget == "password"}
    return passwords | set(current_app.config["SECRET_FIELDS"])


def _without(names: set[str], typed: str | None) -> str | None:
    """JSON as it was typed, perhaps with mistakes, but for what no page repeats.

    Nothing of it, where that is named and does not stand there as it should: it may be anywhere.
    """
    if typed is None or not names:
        return typed
    any_name = "|".join(map(re.escape, names))
    blanked = re.sub(rf'"({any_name})"\s*:\s*"(?:[^"\\]|\\.)*"?', r'"\1": ""', typed)
    rest = re.sub(rf'"({any_name})": ""', "", blanked)
    lowered = rest.lower()
    is_hidden = any(name in lowered for name in names) or _ESCAPED_LETTER.search(lowered)
    return "" if is_hidden else blanked


def here(url: str) -> str:
    """The address without the server, so that a page works behind any proxy."""
    return urlsplit(url)._replace(scheme="", netloc="").geturl()


def _encode(text: str) -> bytes:
    """UTF-8; half a surrogate pair, from a provider's answer, becomes its JSON escape."""
    return text.encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Documentation:
    """What a page says of its address: of the first operation the beginning, and of all the rest.

    fields: of what a POST takes: name, whether it is required, and what it is. answers: statuses
    that mean more there than anywhere, and what.
    """

    title: str
    lead: Markup
    more: tuple[Markup, ...]
    fields: tuple[tuple[str, bool, Markup], ...]
    answers: tuple[tuple[int, Markup], ...]


@cache
def _documentation(*operations: Operation) -> Documentation:
    if not operations:
        return Documentation("Error", Markup(), (), (), ())
    lead, _, more = operations[0].text.partition("\n\n")
    texts = [more, *(f"**{o.method}: {o.title}.** {o.text}" for o in operations[1:])]
    model = next((o.bodies[0] for o in operations if o.bodies), None)
    return Documentation(
        operations[0].title,
        as_html(lead),
        tuple(as_html(text) for text in texts if text),
        tuple(
            (name, info.is_required(), as_html(described(info)))
            for name, info in (model.model_fields.items() if model else ())
        ),
        tuple((int(s), as_html(text)) for o in operations for s, text in sorted(o.means.items())),
    )


@cache
def as_html(text: str) -> Markup:
    """Markdown of our own as HTML."""
    html = markdown.markdown(text.strip(), extensions=["tables", TocExtension(baselevel=3)])
    return Markup(html)  # noqa: S704 - our own text


def _breadcrumbs() -> list[tuple[str, str]]:
    """Name and address of each part of the path; the address is "" where nothing is there."""
    crumbs = [(current_app.config["TITLE"], "/")]
    path = ""
    adapter = request_ctx.url_adapter  # None where the Host is none
    for part in request.path.strip("/").split("/"):
        path += "/" + quote(part)
        if part:
            # The last is this page, which no link leads to.
            is_last = path == quote(request.path.rstrip("/"))
            exists = adapter is not None and not is_last and adapter.test(path, "GET")
            crumbs.append((part, path if exists else ""))
    return crumbs


def with_links(sentence: str) -> Markup:
    """A sentence of an error for people: an address that it says to GET is a link."""
    pieces = enumerate(re.split(r"GET (/\S*)", sentence))
    link = Markup('<a href="{}">This page</a>')
    return Markup("").join(link.format(p) if number % 2 else escape(p) for number, p in pieces)


def _beginning(text: str) -> str:
    """As much of it as a page shows: whole lines, unless one is very long."""
    if len(text) <= MAX_SHOWN:
        return text
    end = text.rfind("\n", MAX_SHOWN // 2, MAX_SHOWN)
    return text[: end if end > 0 else MAX_SHOWN]


def _linked(text: str) -> Markup:
    """JSON, escaped, in which the addresses of this server are links."""
    if request_ctx.url_adapter is None:
        return escape(text)
    own = re.compile('"(' + re.escape(f"{request.scheme}://{request.host}/") + r'[^"\\\s]*)"')
    link = Markup('"<a href="{0}">{0}</a>"')
    # Every other piece is an address.
    pieces = enumerate(own.split(text))
    return Markup("").join(link.format(p) if number % 2 else escape(p) for number, p in pieces)
