"""A message as RFC 5322 and MIME describe it, for those who carry it whole."""

from __future__ import annotations

import email.policy
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from email.header import Header
from email.message import EmailMessage as MIMEMessage
from email.message import MIMEPart
from email.utils import format_datetime
from typing import Any, Final

from email_services.addresses import Address
from email_services.attachments import Attachment
from email_services.message import EmailMessage

# Bodies in 7 bits, since not every server takes 8. Lines end as files on this system do; who sends
# them over the wire changes that.
_ASCII: Final = email.policy.default.clone(cte_type="7bit")
_UTF8: Final = _ASCII.clone(utf8=True)

MAX_LINE: Final = 998
"""Octets in a line (RFC 5322, 2.1.1)."""

FOLDED_LINE: Final = 78
"""Octets in a line of a header that can be folded; the RFC says characters, which are fewer."""


@dataclass(frozen=True)
class _Header:
    """A header that is folded between its words, and only there.

    Python folds too, but garbles long headers while it does so: it drops the quotes around a name,
    which makes two addresses of one (seen in 3.11), and encodes a long URL or Message-ID, where
    nobody decodes it.

    words: each with the space before it.
    """

    name: str
    words: list[str]

    def __str__(self) -> str:
        return "".join(self.words).strip()

    def fold(self, *, policy: email.policy.EmailPolicy) -> str:
        """The header as it is written; `email` calls this."""
        lines = [f"{self.name}:"]
        for word in self.words:
            # An empty first line would be legal, and make a space of the value for some readers.
            alone = lines[-1] == f"{self.name}:" and not word.startswith(" =?")
            most = MAX_LINE if alone else FOLDED_LINE
            if len((lines[-1] + word).encode()) > most:
                lines.append(word)
            else:
                lines[-1] += word
        return policy.linesep.join(lines) + policy.linesep


def build_mime(
    message: EmailMessage, *, with_bcc: bool = False, date: datetime | None = None
) -> MIMEMessage:
    """`message` as one piece, with tags and metadata as headers.

    Its headers are raw UTF-8 (RFC 6532) only where an address beyond ASCII leaves no other way.
    with_bcc: name those who get a copy that nobody else knows of. date: if not now.
    """
    raw = not _is_ascii(message, with_bcc)
    mime = MIMEMessage(policy=_UTF8 if raw else _ASCII)
    for header, addresses in (
        ("From", [message.from_email]),
        ("To", message.to_recipients),
        ("Cc", message.to_cc),
        ("Bcc", message.to_bcc if with_bcc else []),
        ("Reply-To", message.reply_to),
    ):
        if addresses:
            mime[header] = _Header(header, _address_words(header, addresses, raw=raw))
    for header, text in (
        ("Subject", message.subject),
        ("Date", format_datetime(date or datetime.now(timezone.utc))),
        ("Message-ID", message.message_id_header),
        *message.headers.items(),
        *(("X-Tag", tag) for tag in message.tags),
        *((f"X-Metadata-{key}", value) for key, value in message.metadata.items()),
    ):
        mime[header] = _Header(header, _words(header, text, text, raw=raw))
    _add_bodies(mime, message)
    for file in message.attachments:
        _add_file(mime, file)
    return mime


def _is_ascii(message: EmailMessage, with_bcc: bool) -> bool:
    named = [*message.to_recipients, *message.to_cc, *(message.to_bcc if with_bcc else [])]
    return all(a.email.isascii() for a in (message.from_email, *named, *message.reply_to))


def _add_bodies(mime: MIMEMessage, message: EmailMessage) -> None:
    """The text, the HTML as its richer form, and the images that the HTML shows beside it."""
    if message.raw_text_body or not message.html_body:
        mime.set_content(message.raw_text_body)
    if not message.html_body:
        for image in message.inline:
            _add_file(mime, image)
        return
    if message.raw_text_body:
        mime.add_alternative(message.html_body, subtype="html")
        html: MIMEPart = mime.get_payload()[-1]  # type: ignore[assignment, index]
    else:
        mime.set_content(message.html_body, subtype="html")
        html = mime
    for image in message.inline:
        html.add_related(image.content, **_described(image), disposition="inline")
        part: MIMEPart = html.get_payload()[-1]  # type: ignore[assignment, index]
        part["Content-ID"] = _Header("Content-ID", [f" <{image.content_id}>"])


def _add_file(mime: MIMEMessage, file: Attachment) -> None:
    mime.add_attachment(file.content, **_described(file))


def _described(file: Attachment) -> dict[str, Any]:
    """What `email` wants to know of a file's content."""
    maintype, _, subtype = file.content_type.partition("/")
    params = {"charset": file.charset} if file.charset else {}
    return {"maintype": maintype, "subtype": subtype, "params": params, "filename": file.filename}


def _address_words(header: str, addresses: list[Address], *, raw: bool) -> list[str]:
    words = []
    for address in addresses:
        if address.name:
            phrase = str(address._replace(email="")).removesuffix(" <>")
            words += [*_words(header, phrase, address.name, raw=raw), f" <{address.email}>,"]
        else:
            words.append(f" {address.email},")
    words[-1] = words[-1].removesuffix(",")
    return words


def _words(header: str, written: str, text: str, *, raw: bool) -> list[str]:
    """The words of `written`, or encoded words (RFC 2047) for `text` where it cannot go as it is.

    raw: it may be UTF-8.
    """
    words = [f" {word}" for word in re.findall(r" *[^ ]+", written)]
    words = [words[0], *(word[1:] for word in words[1:])]
    if (raw or written.isascii()) and all(len(word.encode()) < MAX_LINE for word in words):
        return words
    return [f" {word}" for word in Header(text, "utf-8", header_name=header).encode().split()]
