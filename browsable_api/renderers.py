"""One answer in two renderings: JSON, and a page around the same JSON."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any
from urllib.parse import quote

import markdown
from flask import current_app, render_template
from flask.globals import request_ctx
from flask_api.renderers import BaseRenderer, dedent
from markdown.extensions.toc import TocExtension
from markupsafe import Markup, escape

from browsable_api.forms import form_fields
from browsable_api.request import request


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
        """A page; `options` holds the status line of the answer."""
        view = current_app.view_functions[request.endpoint] if request.endpoint else None
        title, description = _documentation(view.__doc__ or "") if view else ("Error", Markup())
        problems = data.get("problems", {}) if isinstance(data, dict) else {}
        page = render_template(
            "page.html" if _is_error(data) else getattr(view, "template", "page.html"),
            data=data,
            title=title,
            description=description,
            breadcrumbs=_breadcrumbs(),
            status=options["status"],
            answer=_linked(pretty(data)),
            methods=_form_methods(),
            fields=form_fields(view, request.form, problems) if view else [],
        )
        return _encode(page)


def pretty(data: Any) -> str:
    """JSON for people."""
    return json.dumps(data, ensure_ascii=False, indent=2)


def _is_error(data: Any) -> bool:
    return isinstance(data, dict) and "error" in data


def _encode(text: str) -> bytes:
    """UTF-8; half a surrogate pair, from a provider's answer, becomes its JSON escape."""
    return text.encode("utf-8", "backslashreplace")


@cache
def _documentation(docstring: str) -> tuple[str, Markup]:
    """The title, which is the first line, and the rest as HTML."""
    title, _, text = dedent(docstring).partition("\n")
    return title.rstrip("."), as_html(text.strip())


@cache
def as_html(text: str) -> Markup:
    """Markdown of our own as HTML."""
    html = markdown.markdown(text, extensions=["tables", TocExtension(baselevel=2)])
    return Markup(html)  # noqa: S704 - our own text


def _breadcrumbs() -> list[tuple[str, str]]:
    """Name and address of each part of the path; the address is "" where nothing is there."""
    crumbs = [("Mailpool", "/")]
    path = ""
    adapter = request_ctx.url_adapter  # None where the Host is none
    for part in request.path.strip("/").split("/"):
        path += "/" + quote(part)
        if part:
            exists = adapter is not None and adapter.test(path, "GET")
            crumbs.append((part, path if exists else ""))
    return crumbs


def _form_methods() -> list[str]:
    adapter = request_ctx.url_adapter
    allowed = adapter.allowed_methods() if adapter else ()
    return [method for method in ("GET", "POST") if method in allowed]


def _linked(text: str) -> Markup:
    """JSON, escaped, in which the addresses of this server are links."""
    if request_ctx.url_adapter is None:
        return escape(text)
    own = re.compile('"(' + re.escape(f"{request.scheme}://{request.host}/") + r'[^"\\\s]*)"')
    result = Markup()
    end = 0
    for match in own.finditer(text):
        result += escape(text[end : match.start()])
        result += Markup('"<a href="{0}">{0}</a>"').format(match.group(1))
        end = match.end()
    return result + escape(text[end:])
