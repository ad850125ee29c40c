"""Mail that a service keeps on this machine, read for people to look at.

What is read may be anything: other programs may write into the same folder. Nothing here raises.
"""

from __future__ import annotations

import base64
import email
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from typing import Final
from urllib.parse import unquote

_CID: Final = re.compile(r"""\bcid:([^\s"'<>)]+)""", re.IGNORECASE)
_IMAGE: Final = re.compile(r"image/[a-z0-9.+-]{1,60}")

MAX_INLINED: Final = 64 * 1024 * 1024
"""Characters of images in an HTML, about: one image may be shown any number of times."""

MAX_HEADER: Final = 10_000
"""A longer header is shown as it is: what decodes it takes time by the square of its length."""


@dataclass(frozen=True)
class CapturedFile:
    """A file in a captured mail. content: its bytes, decoded."""

    filename: str
    content_type: str
    content: bytes


@dataclass(frozen=True)
class CapturedMail:
    """A mail as a mail program would show it.

    headers: in their order, decoded. html: without a reference to another part, as far as it shows
    images of the mail. source: the mail as it was kept.
    """

    headers: tuple[tuple[str, str], ...]
    text: str
    html: str
    files: tuple[CapturedFile, ...]
    source: bytes

    @classmethod
    def parse(cls, source: bytes) -> CapturedMail:
        """Read a mail (RFC 5322); of one that cannot be read there is only the source."""
        try:
            mail = email.message_from_bytes(source)
            parts = list(_leaves(mail))
        except RecursionError:
            return cls((), "", "", (), source)
        text = next((part for part in parts if _is_body(part, "text/plain")), None)
        html = next((part for part in parts if _is_body(part, "text/html")), None)
        others = [part for part in parts if part is not text and part is not html]
        return cls(
            headers=tuple((name, _decoded(value)) for name, value in mail.items()),
            text="" if text is None else _text(text),
            html="" if html is None else _with_images(_text(html), others),
            files=tuple(_file(part, number) for number, part in enumerate(others, 1)),
            source=source,
        )


def _leaves(mail: Message) -> Iterator[Message]:
    """The parts that hold something themselves; a forwarded mail is one."""
    if mail.is_multipart() and mail.get_content_maintype() == "multipart":
        for part in mail.get_payload():
            if isinstance(part, Message):
                yield from _leaves(part)
    else:
        yield mail


def _is_body(part: Message, content_type: str) -> bool:
    is_attached = part.get_content_disposition() == "attachment" or part.get_filename()
    return part.get_content_type() == content_type and not is_attached


def _content(part: Message) -> bytes:
    if part.is_multipart():  # a forwarded mail
        try:
            inner = [one for one in part.get_payload() if isinstance(one, Message)]
            return b"".join(mail.as_bytes() for mail in inner)
        except (ValueError, LookupError, RecursionError):
            return b""
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _text(part: Message) -> str:
    try:
        return _content(part).decode(part.get_content_charset("utf-8"), "replace")
    except (LookupError, ValueError):  # a charset that nobody knows
        return _content(part).decode("utf-8", "replace")


def _decoded(value: object) -> str:
    """A header with its encoded words read, on one line."""
    text = str(value)
    if len(text) <= MAX_HEADER:
        with suppress(HeaderParseError, LookupError, ValueError):  # then it stays as it is
            text = str(make_header(decode_header(text)))
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _file(part: Message, number: int) -> CapturedFile:
    name = " ".join(_decoded(part.get_filename() or "").split())
    return CapturedFile(name or f"part-{number}", part.get_content_type(), _content(part))


def _with_images(html: str, parts: list[Message]) -> str:
    """The HTML with the images of the mail in it, so that nothing has to be fetched to see them."""
    images = {
        str(part.get("Content-ID", "")).strip().strip("<>"): part
        for part in parts
        if _IMAGE.fullmatch(part.get_content_type())
    }
    left = MAX_INLINED

    def inlined(match: re.Match[str]) -> str:
        nonlocal left
        part = images.get(unquote(match.group(1)))
        if part is None or left <= 0:
            return match.group()
        url = _as_data(part)
        left -= len(url)
        return url

    return _CID.sub(inlined, html)


def _as_data(part: Message) -> str:
    content = base64.b64encode(_content(part)).decode("ascii")
    return f"data:{part.get_content_type()};base64,{content}"
