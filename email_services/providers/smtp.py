"""SMTP, to any server that takes mail for others: a provider's relay, or one's own.

Sources: RFC 5321 (SMTP), 3207 (STARTTLS), 4954 (AUTH), 6531 (SMTPUTF8), 1870 (SIZE), 2920
(PIPELINING); what was seen of Python's smtplib.
"""

from __future__ import annotations

import base64
import re
import smtplib
import socket
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from email_services import transport
from email_services.abstract import (
    MAX_TEXT,
    AbstractEmailService,
    Acceptance,
    ServiceSettings,
    Standing,
    storable,
)
from email_services.addresses import Address
from email_services.capabilities import Capabilities
from email_services.exceptions import (
    AccountRefused,
    CannotCarry,
    MessageRejected,
    ProviderError,
    ServiceUnavailable,
)
from email_services.message import EmailMessage
from email_services.mime import build_mime
from email_services.smtp_replies import Stage, meaning_of, names_in
from email_services.texts import refuse_control_characters
from email_services.transport import Exchange, is_loopback, within

PORTS: Final = {"starttls": 587, "tls": 465, "none": 25}

Reply = tuple[int, bytes]
"""A code and its text, as smtplib gives them."""

MAX_IDLE_SECONDS: Final = 30.0
"""A connection unused for longer is not used again. Servers wait for 5 minutes (RFC 5321,
4.5.3.2.7), and RSET finds out whether one has ended before anything of a message is said."""

MAX_REPLY_LINES: Final = 200
MAX_REPLY_LINE: Final = 8192
"""Bytes. A reply that is longer, either way, is not read to its end."""

OK: Final = 2
GO_ON: Final = 3
"""The first digit of the codes that are no refusal."""

_CLOSING: Final = 421
_QUEUED_AS = re.compile(
    r"queued (?:mail for delivery )?as <?([^\s<>]+?)>?[.;,]?(?:\s|$)", re.IGNORECASE
)


def _credential(value: SecretStr) -> SecretStr:
    refuse_control_characters(value.get_secret_value())
    if not value.get_secret_value():
        raise ValueError("It is empty.")
    return value


_Credential = Annotated[SecretStr, AfterValidator(_credential)]


class SMTPSettings(ServiceSettings):
    """What config.json may say of an SMTP service."""

    host: str = Field(
        pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:_-]*$", description="The server's name or address."
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="Its port; 587, 465 or 25 as security says."
    )
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the connection is encrypted; tls is from its first byte."
    )
    username: _Credential | None = Field(None, description="Who logs in, if anybody has to.")
    password: _Credential | None = Field(None, description="Their password.")

    @model_validator(mode="after")
    def _can_log_in(self) -> SMTPSettings:
        if (self.username is None) != (self.password is None):
            raise ValueError("It should have both username and password, or neither.")
        if self.username and self.security == "none" and not is_loopback(self.host):
            raise ValueError('With security "none" the password would go unencrypted.')
        return self


class _Client(smtplib.SMTP):
    """smtplib's, which takes no reply without end."""

    def getreply(self) -> Reply:
        if self.file is None and self.sock is not None:
            self.file = self.sock.makefile("rb")
        if self.file is None:
            raise smtplib.SMTPServerDisconnected("There is no connection.")
        lines = []
        for _ in range(MAX_REPLY_LINES):
            line = self.file.readline(MAX_REPLY_LINE)
            if not line.endswith(b"\n"):
                break
            lines.append(line[4:].strip())
            if line[3:4] != b"-":
                code = int(line[:3]) if line[:3].isdigit() else -1
                return code, b"\n".join(lines)
        self.close()
        raise smtplib.SMTPServerDisconnected("The reply has no end.")


class SMTP(AbstractEmailService):
    """One server, one transaction a message: MAIL, RCPT for each recipient, DATA.

    - Everything before the dot that ends the message is known to be not sent; a cut or a timeout
      after it is unknown.
    - A server may refuse some of the recipients and take the message for the others (RFC 5321,
      3.3). Those of a bcc are in the envelope alone.
    - The id is what follows "queued as" where the message is accepted, as Postfix and others say
      it; there is no rule for that text, so it is None for the rest.
    - A code says little: 454 is a rate or a quota at SES, 451 no credits at SendGrid, 550 the end
      of a mailbox or of our rights. `smtp_replies` tells whose fault it is.
    - AUTH is PLAIN, else LOGIN, which need encryption or this machine; nothing else is spoken.
    - An address beyond ASCII needs the server's SMTPUTF8, a large message has its SIZE to fit.
    """

    provider = "smtp"
    Settings = SMTPSettings
    capabilities = Capabilities(tracking=False, schedule_days=0)
    settings: SMTPSettings

    def unencrypted(self) -> str:
        """See AbstractEmailService."""
        is_open = self.settings.security == "none" and not is_loopback(self.settings.host)
        return "its mail" if is_open else ""

    def __init__(self, name: str, email_domain: str, settings: SMTPSettings) -> None:
        super().__init__(name, email_domain, settings)
        self._port = settings.port or PORTS[settings.security]
        self._tls = transport.tls_context("smtp")
        self._idle: deque[tuple[smtplib.SMTP, float]] = deque()
        weakref.finalize(self, _close_all, self._idle)

    def secret_texts(self) -> tuple[str, ...]:
        """The credentials, and as AUTH encodes them."""
        plain = super().secret_texts()
        return (_plain(*plain), *plain, *map(_base64, plain)) if plain else ()

    @property
    def depends_on(self) -> str:
        """See AbstractEmailService; two servers are not one."""
        return self.settings.host

    def look_at_account(self, timeout: float) -> Standing:
        """Connect and log in, as for a message; whose domain may send is told at MAIL or later."""
        with within(timeout, self.settings.timeout_seconds) as exchange:
            try:
                client = self._connected(exchange)
            except OSError as error:
                raise exchange.fault(error) from None
            with suppress(OSError):
                client.docmd("QUIT")
            client.close()
        if not self.settings.username:
            return Standing(note="The server answers; nobody logs in there.")
        return Standing(account=True)

    def send(self, message: EmailMessage, timeout: float) -> Acceptance:
        """See AbstractEmailService."""
        with within(timeout, self.settings.timeout_seconds) as exchange:
            try:
                client = self._reused(exchange) or self._connected(exchange)
            except OSError as error:
                raise exchange.fault(error) from None
            exchange.connected = True
            try:
                acceptance = self._transact(client, message, exchange)
            except ProviderError:  # its word: the connection is in order
                self._keep(client)
                raise
            except OSError as error:  # all of smtplib's are
                client.close()
                raise exchange.fault(error) from None
            self._keep(client)
            return acceptance

    def _transact(
        self, client: smtplib.SMTP, message: EmailMessage, exchange: Exchange
    ) -> Acceptance:
        mime = build_mime(message)
        data = mime.as_bytes(policy=mime.policy.clone(linesep="\r\n"))
        options = _options(client, message, data)
        self._expect(OK, client.mail(message.from_email.email, options), Stage.MAIL, message)
        refused = self._name_recipients(client, message)
        self._expect(GO_ON, client.docmd("DATA"), Stage.DATA, message)
        # A line that is a dot alone ends the message (RFC 5321, 4.5.2).
        exchange.start_upload()
        client.send(re.sub(rb"(?m)^\.", b"..", data) + b".\r\n")
        exchange.written = True
        reply = client.getreply()
        self._expect(OK, reply, Stage.END, message)
        queued = _QUEUED_AS.search(reply[1].decode("utf-8", "replace"))
        return Acceptance(storable(queued and queued[1]), refused)

    def _name_recipients(self, client: smtplib.SMTP, message: EmailMessage) -> dict[str, str]:
        """Why some were refused, by key. Raises where all were, for a reason beyond them if any."""
        faults: dict[str, ProviderError] = {}
        replies = _ask_for(client, message.recipients)
        for address, reply in zip(message.recipients, replies, strict=True):
            fault = self._fault(OK, reply, Stage.RCPT, message, [message.from_email, address])
            if fault and reply[0] == _CLOSING:
                raise fault
            if fault:
                faults[address.key] = fault
        if len(faults) == len(message.recipients):
            everyones = list(faults.values())
            raise next((f for f in everyones if not isinstance(f, MessageRejected)), everyones[0])
        return {key: fault.reason for key, fault in faults.items()}

    def _expect(
        self, digit: int, reply: Reply, stage: Stage, message: EmailMessage | None = None
    ) -> None:
        """Raise what `reply` means, unless it begins with `digit`."""
        addresses = [message.from_email, *message.recipients] if message else []
        fault = self._fault(digit, reply, stage, message, addresses)
        if fault:
            raise fault

    def _fault(
        self,
        digit: int,
        reply: Reply,
        stage: Stage,
        message: EmailMessage | None,
        addresses: list[Address],
    ) -> ProviderError | None:
        """What `reply` means, if it does not begin with `digit`. addresses: whom it is about."""
        code, text = reply[0], reply[1].decode("utf-8", "replace")[:MAX_TEXT]
        if code // 100 == digit:
            return None
        if code // 100 not in (4, 5):
            raise smtplib.SMTPResponseException(*reply)
        words = self.redacted(text, [message] if message else [])
        reason = f"SMTP {code}: {words}" if words else f"SMTP {code}."
        # What a server says may quote the message, so that it is in no log and no listing.
        return meaning_of(code, text, stage, names_in(addresses))(reason, summary=f"SMTP {code}.")

    def _reused(self, exchange: Exchange) -> smtplib.SMTP | None:
        """The connection used last, if it still works; RSET ends whatever was left unfinished."""
        try:
            client, since = self._idle.pop()
        except IndexError:
            return None
        try:
            # A server that hangs here must leave time for a new connection.
            with within(exchange.remaining() / 4):
                fresh = time.monotonic() - since < MAX_IDLE_SECONDS
                if fresh and client.rset()[0] // 100 == OK:
                    return client
        except OSError:
            pass  # it is replaced: nothing of the message was said
        client.close()
        _close_all(self._idle)  # they are older still
        return None

    def _keep(self, client: smtplib.SMTP) -> None:
        if len(self._idle) < transport.KEPT_CONNECTIONS:
            self._idle.append((client, time.monotonic()))
        else:
            client.close()

    def _connected(self, exchange: Exchange) -> smtplib.SMTP:
        """A new connection, encrypted and logged in as the settings say."""
        # Without the name it would ask DNS for this machine's, for as long as that takes.
        client = _Client(local_hostname=self.email_domain)
        try:
            self._set_up(client, exchange)
        except (OSError, ProviderError):
            client.close()
            raise
        return client

    def _set_up(self, client: smtplib.SMTP, exchange: Exchange) -> None:
        addresses = transport.resolve(self.settings.host, self._port, exchange.remaining())
        no_delay = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
        client.sock = plain = transport.connect(addresses, exchange, no_delay)
        if self.settings.security == "tls":
            client.sock = self._encrypted(plain, exchange)
        self._expect(OK, client.getreply(), Stage.CONNECT)
        self._expect(OK, client.ehlo(), Stage.CONNECT)
        if self.settings.security == "starttls":
            if not client.has_extn("starttls"):
                raise ServiceUnavailable("The server offers no STARTTLS.")
            self._expect(OK, client.docmd("STARTTLS"), Stage.CONNECT)
            client.sock = self._encrypted(plain, exchange)
            client.file = None  # with whatever was sent ahead of the encryption
            # What was offered unencrypted counts no more either (RFC 3207, 4.2).
            self._expect(OK, client.ehlo(), Stage.CONNECT)
        if self.settings.username:
            self._expect(OK, self._log_in(client), Stage.AUTH)

    def _encrypted(self, plain: socket.socket, exchange: Exchange) -> socket.socket:
        plain.settimeout(exchange.remaining())
        return self._tls.wrap_socket(plain, server_hostname=self.settings.host)

    def _log_in(self, client: smtplib.SMTP) -> Reply:
        username, password = self.secrets["username"], self.secrets["password"]
        offered = client.esmtp_features.get("auth", "").upper().split()
        if "PLAIN" in offered:
            return client.docmd("AUTH", "PLAIN " + _plain(username, password))
        if "LOGIN" not in offered:
            raise AccountRefused("The server offers neither AUTH PLAIN nor AUTH LOGIN.")
        reply = client.docmd("AUTH", "LOGIN")
        for answer in (username, password):
            if reply[0] // 100 == GO_ON:
                reply = client.docmd(_base64(answer))
        return reply


def _options(client: smtplib.SMTP, message: EmailMessage, data: bytes) -> list[str]:
    """What to say at MAIL. Raises CannotCarry where the server has no way for the message."""
    options = []
    if client.has_extn("size"):
        most = client.esmtp_features["size"]
        if most.isdecimal() and 0 < int(most) < len(data):
            raise CannotCarry(f"The server takes at most {most} bytes, files in base64.")
        options.append(f"SIZE={len(data)}")
    addresses = (message.from_email, *message.recipients, *message.reply_to)
    if not all(address.email.isascii() for address in addresses):
        if not client.has_extn("smtputf8"):
            raise CannotCarry("The server carries no address beyond ASCII left of the @.")
        options += ["SMTPUTF8", "BODY=8BITMIME"]
    return options


def _ask_for(client: smtplib.SMTP, recipients: list[Address]) -> Iterator[Reply]:
    """The reply to RCPT for each; in one round trip where the server allows it (RFC 2920)."""
    if client.has_extn("pipelining"):
        client.send("".join(f"RCPT TO:{smtplib.quoteaddr(a.email)}\r\n" for a in recipients))
        # All are read, whatever they say: one left over would answer the next command.
        yield from [client.getreply() for _ in recipients]
    else:
        for address in recipients:
            yield client.rcpt(address.email)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _plain(username: str, password: str) -> str:
    return _base64(f"\0{username}\0{password}")


def _close_all(idle: deque[tuple[smtplib.SMTP, float]]) -> None:
    while True:
        try:
            client, _ = idle.pop()
        except IndexError:
            return
        client.close()
