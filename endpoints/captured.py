"""What is answered for a message that is kept on this server: in JSON, and as files.

A service keeps it (`maildir`), or the domain has a copy of it kept (`keep_content_days`), or it is
here as long as it waits to be sent.

The files were written by anybody, and are shown at our own address: each has a policy under which
nothing in it runs; as any answer of ours, the browser takes it for no other type.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import quote

from markupsafe import Markup
from typing_extensions import TypedDict
from werkzeug.wrappers import Response

from browsable_api import APIError
from browsable_api.errors import told
from email_services.captured import read_captured
from email_services.exceptions import NoCopy
from email_services.mime import build_mime
from email_services.store import LoggedMessage
from endpoints.addresses import CONTENT, FILE, SOURCE, url_of
from endpoints.context import mailpool

_SANDBOX: Final = "sandbox; default-src 'none'"
_OURS: Final = "sandbox allow-same-origin; default-src 'none'"
"""For our own page to tell how high the mail is. Without allow-scripts nothing in it can do a thing
with being of our origin."""

_SHOWN: Final = (
    # Inline styles are what mail is made of; under default-src 'none' they fetch nothing.
    "; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'self'; form-action 'none'; base-uri 'none'"
)
_TEXT_PAGE: Final = Markup(
    '<!doctype html><title>The text</title><pre style="white-space: pre-wrap">\n{}</pre>'
)


class Header(TypedDict):
    """A header of a mail."""

    name: Annotated[str, told("Its name.")]
    value: Annotated[str, told("What it says, decoded.")]


class CapturedFile(TypedDict):
    """A file in a mail."""

    filename: Annotated[str, told("Its name.")]
    content_type: Annotated[str, told("What the mail says it is.")]
    bytes: Annotated[int, told("Its size.")]
    url: Annotated[str, told("Where it is.")]


class Captured(TypedDict):
    """A mail that this server keeps."""

    headers: Annotated[list[Header], told("Its headers, in order.")]
    text: Annotated[str, told('Its text, or "".')]
    has_html: Annotated[bool, told("Whether there is HTML.")]
    has_remote_images: Annotated[
        bool, told("Whether the HTML would show images from elsewhere, which nobody loads here.")
    ]
    content_url: Annotated[str, told("What its reader sees.")]
    source_url: Annotated[str, told("All of it.")]
    attachments: Annotated[list[CapturedFile], told("Its files.")]
    inline: Annotated[list[CapturedFile], told("Images that the HTML shows.")]


def captured_as_dict(message: LoggedMessage) -> Captured:
    """The message itself. Raises NoCopy, which says why it is not here."""
    captured = read_captured(_kept(message))
    names = {"email_domain": message.email_domain, "message_id": message.message_id}
    files: dict[bool, list[CapturedFile]] = {True: [], False: []}
    for number, file in enumerate(captured.files, 1):
        described: CapturedFile = {
            "filename": file.filename,
            "content_type": file.content_type,
            "bytes": len(file.content),
            "url": url_of(FILE, **names, number=str(number)),
        }
        files[file.is_shown].append(described)
    return {
        "headers": [{"name": name, "value": value} for name, value in captured.headers],
        "text": captured.text,
        "has_html": bool(captured.html),
        "has_remote_images": captured.has_remote_images,
        "content_url": url_of(CONTENT, **names),
        "source_url": url_of(SOURCE, **names),
        "attachments": files[False],
        "inline": files[True],
    }


def content_answer(message: LoggedMessage) -> Response:
    """The HTML, or the text as HTML where there is none. Raises APIError (404)."""
    captured = read_captured(_found(message))
    return html_answer(captured.html or _TEXT_PAGE.format(captured.text), _OURS)


def html_answer(html: str, policy: str = _SANDBOX) -> Response:
    """HTML that anybody wrote, for a frame of our own page."""
    content = _without_remote_images(_disconnected(html)).encode("utf-8", "replace")
    return _file(content, "text/html; charset=utf-8", f"{policy}{_SHOWN}")


def source_answer(message: LoggedMessage) -> Response:
    """The message as it is. Raises APIError (404)."""
    return _file(_found(message), "text/plain; charset=utf-8", _SANDBOX)


def file_answer(message: LoggedMessage, number: str) -> Response:
    """A file of the message, to be saved under its name. Raises APIError (404)."""
    files = read_captured(_found(message)).files
    if not re.fullmatch("[1-9][0-9]{0,5}", number) or int(number) > len(files):
        raise APIError(HTTPStatus.NOT_FOUND, "The message has no such file.")
    file = files[int(number) - 1]
    answer = _file(file.content, "application/octet-stream", _SANDBOX)
    plain = file.filename.encode("ascii", "replace").decode().replace("?", "_")
    in_full = quote(file.filename, safe="")  # RFC 6266; a header is in Latin-1
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{in_full}"
    answer.headers["Content-Disposition"] = disposition
    return answer


def _kept(message: LoggedMessage) -> bytes:
    """The message whole, as the service has written it or would. Raises NoCopy."""
    service = mailpool.pools[message.email_domain].services.get(message.service_used or "")
    if service and message.service_message_id is not None:
        raw = service.kept_message(message.service_message_id)
        if raw is not None:
            return raw
    try:
        copy = mailpool.copies.find(message.email_domain, message.message_id)
    except NoCopy:
        if mailpool.copies.days(message.email_domain):
            raise
        raise NoCopy(_why_not(message)) from None
    at = datetime.fromtimestamp(message.at, timezone.utc)
    return bytes(build_mime(copy.rendered(), with_bcc=True, date=at))


def _found(message: LoggedMessage) -> bytes:
    try:
        return _kept(message)
    except NoCopy as error:
        raise APIError(HTTPStatus.NOT_FOUND, str(error)) from None


def _why_not(message: LoggedMessage) -> str:
    if message.service_used is None:
        return "No service has taken this message."
    service = mailpool.pools[message.email_domain].services.get(message.service_used)
    if service is None or not service.keeps_messages:
        return "The provider keeps this message, not this server."
    return "The message is no longer there: it was moved or deleted."


_IMAGE: Final = re.compile(r"<img(?=[\s/])[^<>]*>", re.IGNORECASE)
_IS_REMOTE: Final = re.compile(
    r"""[\s"'/](?:src|srcset)\s*=\s*["']?\s*(?:https?:|//)""", re.IGNORECASE
)
_ALT: Final = re.compile(r"""[\s"'/]alt\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_IN_ITS_PLACE: Final = '<span style="outline: 1px dashed; padding: 0 .3em">{}</span>'
_TAGS_THAT_CONNECT: Final = re.compile(
    r"<(?=(?:link|iframe|frame|fencedframe|object|embed)[\s/>])", re.IGNORECASE
)


def _disconnected(html: str) -> str:
    """The HTML without what has a browser connect to elsewhere, though it may fetch nothing there.

    Chromium does so for a frame before it asks the policy; `<link rel="preconnect">` is for that.
    A tag is renamed wherever it looks like one: a "<" and a name are one to no browser otherwise.
    """
    return _TAGS_THAT_CONNECT.sub("<no-", html)


def _without_remote_images(html: str) -> str:
    """The HTML with the words for images that are not fetched, which would be shown as broken."""
    return _IMAGE.sub(_words_for, html)


def _words_for(image: re.Match[str]) -> str:
    if not _IS_REMOTE.search(image[0]):
        return image[0]
    alt = _ALT.search(image[0])
    words = next(filter(None, alt.groups()), "").strip() if alt else ""
    return _IN_ITS_PLACE.format(words) if words else ""


def _file(content: bytes, content_type: str, policy: str) -> Response:
    return Response(
        content,
        content_type=content_type,
        headers={
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-DNS-Prefetch-Control": "off",
        },
    )
