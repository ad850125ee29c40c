"""A message that was kept, taken apart to be looked at."""

from __future__ import annotations

import base64
import codecs
import html
import mimetypes
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.base64mime import body_decode
from email.message import Message
from email.parser import BytesParser
from email.policy import Compat32
from email.quoprimime import header_decode
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

MAX_INLINED: Final = 32 * 1024 * 1024
"""Characters of images that are put into the HTML: it may name one image many times."""

MAX_FILENAME: Final = 200

MAX_CONTENT_HEADER: Final = 5000
"""Characters of Content-Type and its like that are looked at: their parser takes time squared."""


@dataclass(frozen=True)
class CapturedFile:
    """A part of a message that is neither its text nor its HTML.

    filename: safe as one, and never empty. content_type: what the message claims, in lower case.
    is_shown: whether it is an image that the HTML shows.
    """

    filename: str
    content_type: str
    content: bytes
    is_shown: bool = False


@dataclass(frozen=True)
class CapturedMessage:
    """What a mail program would show.

    headers: name and value, decoded, in their order. text, html: "" where there is none; images
    that the HTML shows by their Content-ID are in it. files: attachments, images too.
    has_remote_images: whether the HTML would show some from elsewhere.
    """

    headers: tuple[tuple[str, str], ...]
    text: str = ""
    html: str = ""
    files: tuple[CapturedFile, ...] = ()
    has_remote_images: bool = False


class _Policy(Compat32):
    """Headers are plain strings, with UTF-8 as it is, and are written again as they were.

    `email.policy.default` takes them apart, which fails for odd ones ("Message-ID: <" is an
    IndexError, 2,000 parentheses are a RecursionError) and takes 6 s for 10,000 parts instead of
    0.2 s (3.11).
    """

    mangle_from_ = False
    verify_generated_headers = False

    def header_fetch_parse(self, name: str, value: str) -> str:
        if name.lower().startswith("content-"):
            value = value[:MAX_CONTENT_HEADER]
        text = _guessed(value.encode("utf-8", "surrogateescape"))
        return text.replace("\r", "").replace("\n", "")

    def fold_binary(self, name: str, value: str) -> bytes:
        return f"{name}: {value}{self.linesep}".encode("utf-8", "surrogateescape")


_POLICY: Final = _Policy()

_Part: TypeAlias = "Message[str, str]"

_FAULTS: Final = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What Python's parser raises for input that it did not expect, as parts that nest too deeply."""


def read_captured(raw: bytes) -> CapturedMessage:
    """Take `raw`, a message as RFC 5322 describes it or any other bytes, apart; never raises.

    Where it cannot be taken apart, all that comes after the headers is the text.
    """
    try:
        return _read(BytesParser(policy=_POLICY).parsebytes(raw))
    except _FAULTS:
        top = BytesParser(policy=_POLICY).parsebytes(raw, headersonly=True)
        rest = re.split(rb"\r?\n\r?\n", raw, maxsplit=1)[-1]
        return CapturedMessage(_headers(top), text=_decoded(rest, ""))


def _read(top: _Part) -> CapturedMessage:
    bodies: dict[str, str] = {}
    files: list[CapturedFile] = []
    images: dict[str, int] = {}
    for part in _leaves(top):
        kind = part.get_content_type()
        if part.get_content_maintype() == "multipart":  # one without parts is broken
            kind = "text/plain"
        name = _param(part, "filename", "content-disposition") or _param(
            part, "name", "content-type"
        )
        is_file = name or part.get_content_disposition() == "attachment"
        if kind in {"text/plain", "text/html"} and kind not in bodies and not is_file:
            bodies[kind] = _decoded(_content(part), _param(part, "charset", "content-type"))
            continue
        images.setdefault(part.get("content-id", "").strip(" \t<>"), len(files))
        files.append(CapturedFile(_filename(name, kind, len(files) + 1), kind, _content(part)))
    page = bodies.get("text/html", "")
    text, has_remote = bodies.get("text/plain", ""), bool(_REMOTE.search(page))
    page = _with_images(page, images, files)
    return CapturedMessage(_headers(top), text, page, tuple(files), has_remote)


def _headers(top: _Part) -> tuple[tuple[str, str], ...]:
    return tuple((_storable(name), _words(value)) for name, value in top.items())


def _leaves(top: _Part) -> Iterator[_Part]:
    """The parts that hold no others, in their order; a forwarded message is one."""
    waiting = [top]
    while waiting:
        part = waiting.pop()
        if part.is_multipart() and part.get_content_maintype() == "multipart":
            waiting += reversed(_inside(part))
        else:
            yield part


def _inside(part: _Part) -> list[_Part]:
    parts: Any = part.get_payload()
    return list(parts)


def _content(part: _Part) -> bytes:
    if part.is_multipart():
        content = b"".join(message.as_bytes() for message in _inside(part))
        # RFC 2046 (5.2.1) wants a forwarded message as it is; not everybody obeys.
        is_base64 = part.get("content-transfer-encoding", "").strip().lower() == "base64"
        return _from_base64(content) if is_base64 else content
    try:
        decoded = part.get_payload(decode=True)
    except ValueError:  # broken uuencode
        decoded = str(part.get_payload()).encode("utf-8", "surrogateescape")
    return decoded if isinstance(decoded, bytes) else b""


def _from_base64(content: bytes) -> bytes:
    try:
        return body_decode(content.decode("ascii"))
    except ValueError:
        return content


def _param(part: _Part, name: str, header: str) -> str:
    """A parameter of a header, decoded, or ""."""
    try:
        value = part.get_param(name, "", header)
    except _FAULTS:
        return ""
    if isinstance(value, tuple):  # RFC 2231: charset, language, bytes as characters
        charset, _, text = value
        return _decoded(text.encode("raw-unicode-escape"), charset or "")
    return _words(str(value))


def _filename(given: str, kind: str, number: int) -> str:
    """`given` without what means something to a shell, a header or the eye; never empty."""
    name = re.sub(r'[\x00-\x1f\x7f-\x9f/\\"\u2028-\u202e\u2066-\u2069]', "_", given)[-MAX_FILENAME:]
    return name.strip(" .") or f"part-{number}{mimetypes.guess_extension(kind) or '.bin'}"


_ENCODED: Final = re.compile(r"=\?([^?\s]+)\?([bq])\?([^?\s]*)\?=", re.IGNORECASE)


def _words(value: str) -> str:
    """A header with its encoded words (RFC 2047) decoded; what is none stays as it is."""

    def decode(word: re.Match[str]) -> str:
        charset, encoding, text = word.groups()
        try:
            raw = body_decode(text) if encoding in "bB" else header_decode(text).encode("latin-1")
        except ValueError:
            return word[0]
        return _decoded(raw, charset.partition("*")[0])

    return _storable(_ENCODED.sub(decode, re.sub(r"(?<=\?=)\s+(?==\?)", "", value)))


_NO_CHARSETS: Final = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}
"""Python's own encodings, for other things than text; some take time squared."""


def _decoded(raw: bytes, charset: str) -> str:
    """`raw` as text: in `charset`, if there is such a one, or as it looks."""
    try:
        name = codecs.lookup(charset).name
        if name not in _NO_CHARSETS and name != "ascii":
            return _storable(raw.decode(name, "replace"))
    except (LookupError, ValueError):
        pass
    return _storable(_guessed(raw))


def _guessed(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _storable(text: str) -> str:
    """`text` without half surrogate pairs, which cannot be written."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


_CID: Final = re.compile(r"""(?<=["'(=])cid:([^"'\s<>()]+)""", re.IGNORECASE)


_REMOTE: Final = re.compile(
    r"""(?:\b(?:src|srcset|background|poster)\s{0,9}=|\burl\()\s{0,9}["']?\s{0,9}(?:https?:)?//""",
    re.IGNORECASE,
)
"""Where HTML shows what is elsewhere; in the text of a page it is found, too, at no harm."""


def _with_images(page: str, images: dict[str, int], files: list[CapturedFile]) -> str:
    """The HTML with images instead of their Content-IDs; notes which of the files those are."""
    left = MAX_INLINED

    def inlined(reference: re.Match[str]) -> str:
        nonlocal left
        number = images.get(unquote(html.unescape(reference[1])))
        if number is None:
            return reference[0]
        image = files[number]
        if not re.fullmatch(r"image/[a-z0-9.+-]+", image.content_type):
            return reference[0]
        files[number] = replace(image, is_shown=True)
        left -= len(image.content) * 4 // 3 + 100
        if left < 0:
            return reference[0]
        return f"data:{image.content_type};base64,{base64.b64encode(image.content).decode()}"

    return _CID.sub(inlined, page)
