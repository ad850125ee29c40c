"""Files that travel with a message, checked so that no provider refuses or garbles them."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Mapping
from mimetypes import MimeTypes
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

from email_services.texts import has_encoded_word, refuse_control_characters

MAX_FILENAME: Final = 200
"""Characters; SES takes 255 bytes."""

MAX_CONTENT_ID: Final = 78
"""Characters; SES takes no more."""

OCTET_STREAM: Final = "application/octet-stream"
"""The type that says nothing."""

CHUNK: Final = 65_536
"""Bytes that are decoded at a time, so that a large text is not in memory as characters too."""

OTHER_FILE_NAMES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("name", "file_name"), "filename"),
    **dict.fromkeys(("data", "base64", "base64content", "rawcontent", "body"), "content"),
    **dict.fromkeys(
        ("type", "contenttype", "content-type", "mime_type", "mimetype"), "content_type"
    ),
    **dict.fromkeys(("cid", "contentid", "content-id", "id"), "content_id"),
}
"""What other services call a file's fields, in lower case."""

# The tables of Python itself: what this machine's own files add would differ from node to node.
_TYPES = MimeTypes(filenames=())
_FILENAME = re.compile(r"[^/\\;\"]*[^/\\;\".\s]\.[A-Za-z0-9]{1,16}")
_CONTENT_TYPE = re.compile(
    r"([a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62})"
    r'(?: *; *charset=("?)([a-z0-9][a-z0-9._+-]{0,39})\2)?'
)
_SPACE = re.compile(r"\s")
_CONTENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*")
# Programs disagree on what these are called; either name is right for either file.
_SAME: Final = (
    {"text/xml", "application/xml"},
    {"text/javascript", "application/javascript"},
    {"application/zip", "application/x-zip-compressed"},
    {"application/gzip", "application/x-gzip"},
    {"audio/wav", "audio/x-wav"},
    {"image/jpeg", "image/jpg", "image/pjpeg"},
    {"image/x-icon", "image/vnd.microsoft.icon"},
    {"text/csv", "application/csv", "application/vnd.ms-excel", "text/plain"},
    {"text/markdown", "text/x-markdown", "text/plain"},
)


def _decoded(value: object) -> bytes:
    """Base64 text from JSON, or bytes from a form's file."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("It should be a string in base64.")
    try:
        lines = "".join(value.split()) if _SPACE.search(value) else value  # no copy without need
        return base64.b64decode(lines, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("It is not base64.") from None


def _filename(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("It should be a string.")
    refuse_control_characters(value)
    name = value.strip()
    if len(name) > MAX_FILENAME:
        raise ValueError(f"It is longer than {MAX_FILENAME} characters.")
    if has_encoded_word(name):
        raise ValueError("It holds an encoded word (=?...?=); write the name itself.")
    if not _FILENAME.fullmatch(name):
        raise ValueError("It should be a file's name with its extension, without any of /\\;\".")
    return name


class MediaType(str):
    """A media type without its parameters, which knows the charset that goes with it, or None."""

    __slots__ = ("charset",)
    charset: str | None


def _content_type(value: object, info: ValidationInfo) -> MediaType:
    given = _CONTENT_TYPE.fullmatch(_string(value).lower() or OCTET_STREAM)
    if not given:
        raise ValueError(
            'It should be a media type like "application/pdf" or "text/plain; charset=utf-8",'
            " without other parameters."
        )
    if given[1].startswith("multipart/"):
        raise ValueError("An attachment cannot be a multipart.")
    media_type = MediaType(_agreed_type(info.data.get("filename", ""), given[1]))
    media_type.charset = _charset(media_type, given[3], info.data.get("content", b""))
    return media_type


def _charset(media_type: str, given: str | None, content: bytes) -> str | None:
    """The one that was given, or what a text beyond ASCII turns out to be, if it is known.

    ASCII needs none (RFC 2046, 4.1.2), and what looks like it may be ISO-2022-JP.
    """
    if media_type == OCTET_STREAM:
        return None
    if given or not media_type.startswith("text/") or content.isascii():
        return given
    return "utf-8" if _is_utf8(content) else None


def _is_utf8(content: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(content), CHUNK):
            decoder.decode(content[start : start + CHUNK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _content_id(value: object, info: ValidationInfo) -> str:
    name = _string(value).removeprefix("<").removesuffix(">") or info.data.get("filename", "")
    if len(name) > MAX_CONTENT_ID or not _CONTENT_ID.fullmatch(name):
        raise ValueError(f"It should be 1 to {MAX_CONTENT_ID} letters, digits and any of ._+@-.")
    return str(name)


def _string(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("It should be a string.")
    return value.strip()


def _agreed_type(filename: str, given: str) -> str:
    """The type to send; providers drop, and mail programs hide, a file whose name says another."""
    extension = PurePosixPath(filename).suffix.lower()
    usual = _TYPES.guess_type(f"file{extension}", strict=False)[0]
    if given == OCTET_STREAM and usual:
        given = usual
    elif usual and given != usual and not any({given, usual} <= names for names in _SAME):
        raise ValueError(f"A file that ends in {extension} is {usual}, not {given}.")
    # RFC 2046 5.2 forbids base64 for these, and whoever carries them uses it.
    return OCTET_STREAM if given.startswith("message/") else given


_BASE64: Final[dict[str, Any]] = {"type": "string", "contentEncoding": "base64"}
_TEXT: Final[dict[str, Any]] = {"type": "string"}


class Attachment(BaseModel):
    """A file.

    content: the bytes themselves. content_type: media type, in lower case, without parameters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    filename: Annotated[str, PlainValidator(_filename), WithJsonSchema(_TEXT)] = Field(
        description="Its name, with the extension; no folder."
    )
    content: Annotated[bytes, PlainValidator(_decoded), WithJsonSchema(_BASE64)] = Field(
        description="The file in base64.", repr=False
    )
    content_type: Annotated[MediaType, PlainValidator(_content_type), WithJsonSchema(_TEXT)] = (
        Field(
            default=cast("MediaType", ""),  # which validation makes one
            validate_default=True,
            description=(
                "Its media type; without it, the one of the extension. Of a text, with its charset:"
                " text/plain; charset=utf-8. Without that, it is utf-8 if it can be."
            ),
        )
    )

    @property
    def charset(self) -> str | None:
        """In which a text is written, in lower case; None where nobody knows, or none is needed."""
        return self.content_type.charset

    @property
    def full_type(self) -> str:
        """The media type with its charset, as a Content-Type says it."""
        return f"{self.content_type}; charset={self.charset}" if self.charset else self.content_type

    @property
    def base64(self) -> str:
        """The content as JSON carries it."""
        return base64.b64encode(self.content).decode("ascii")


class InlineImage(Attachment):
    """An image that the HTML body shows with `<img src="cid:CONTENT_ID">`."""

    content_id: Annotated[str, PlainValidator(_content_id), WithJsonSchema(_TEXT)] = Field(
        default="",
        validate_default=True,
        description="What the HTML calls it, after cid:. Without it, the filename.",
    )
