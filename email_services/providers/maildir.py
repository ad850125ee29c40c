"""Maildir: the embedded default, which keeps each message in a folder of this machine."""

from __future__ import annotations

import email.policy
import os
import secrets
import socket
import time
from datetime import datetime, timezone
from email.headerregistry import Address as HeaderAddress
from email.message import EmailMessage as MIMEMessage
from email.utils import format_datetime
from pathlib import Path

from pydantic import Field

from email_services.abstract import AbstractEmailService, ServiceSettings
from email_services.exceptions import ServiceUnavailable
from email_services.message import Address, EmailMessage


class MaildirSettings(ServiceSettings):
    """What config.json may say of a maildir service."""

    path: Path = Field(Path("mail"), description="The Maildir; made where there is none.")


class Maildir(AbstractEmailService):
    """A Maildir that any mail program opens, written as its format asks.

    A message is a complete RFC 5322 file: written and synced in `tmp/`, then moved to `new/`, so
    that no reader ever sees half of it (cr.yp.to/proto/maildir.html). Recipients of a bcc are kept
    in the file, as mail programs keep them in a folder of sent mail.
    """

    Settings = MaildirSettings
    settings: MaildirSettings

    def send(self, message: EmailMessage, timeout: float) -> str | None:  # noqa: ARG002 - a file does not wait
        """Returns the file's name. Raises ServiceUnavailable where it cannot be written."""
        name = _unique_name()
        folder = self.settings.path
        try:
            for part in ("tmp", "new", "cur"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            temporary = folder / "tmp" / name
            with temporary.open("xb") as file:
                file.write(bytes(build_mime(message)))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(folder / "new" / name)
        except OSError as error:
            raise ServiceUnavailable(f"The Maildir cannot be written: {error.strerror}.") from None
        return name


# Lines end as files on this system do, which is what mail programs expect in a Maildir.
_ASCII = email.policy.default
_UTF8 = email.policy.default.clone(utf8=True)


def build_mime(message: EmailMessage) -> MIMEMessage:
    """The message as RFC 5322 and MIME describe it.

    Its headers are raw UTF-8 (RFC 6532) only where an address beyond ASCII leaves no other way.
    """
    ascii_only = all(
        address.email.isascii() for address in (message.from_email, *message.recipients)
    )
    mime = MIMEMessage(policy=_ASCII if ascii_only else _UTF8)
    mime["From"] = _header_address(message.from_email)
    for header, addresses in (
        ("To", message.to_recipients),
        ("Cc", message.to_cc),
        ("Bcc", message.to_bcc),
    ):
        if addresses:
            mime[header] = [_header_address(address) for address in addresses]
    mime["Subject"] = message.subject
    mime["Date"] = format_datetime(datetime.now(timezone.utc))
    mime["Message-ID"] = message.message_id_header
    if message.raw_text_body:
        mime.set_content(message.raw_text_body)
    if message.html_body and message.raw_text_body:
        mime.add_alternative(message.html_body, subtype="html")
    elif message.html_body:
        mime.set_content(message.html_body, subtype="html")
    return mime


def _header_address(address: Address) -> HeaderAddress:
    local, _, domain = address.email.rpartition("@")
    return HeaderAddress(address.name, local, domain)


def _unique_name() -> str:
    """Time, randomness and host, as the format asks; "/" and ":" have a meaning in it."""
    host = socket.gethostname().replace("/", "\\057").replace(":", "\\072")
    return f"{time.time():.6f}.{os.getpid()}_{secrets.token_hex(8)}.{host}"
