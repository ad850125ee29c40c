"""aiosmtpd on a free port of this machine, which says and does at each stage what a test wants."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult

logging.getLogger("mail.log").setLevel(logging.INFO)  # what it is sent is no secret to a test

Behaviour = Callable[[SMTP], Awaitable[Any]]
STAGES = ("EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "RSET")
"""And "banner", and "." for the end of the message."""


def say(reply: str) -> Behaviour:
    return lambda server: server.push(reply)


async def hang(server: SMTP) -> None:
    """Say nothing, for ever."""


def drip(reply: str) -> Behaviour:
    async def behave(server: SMTP) -> None:
        for character in f"{reply}\r\n":
            server.transport.write(character.encode())
            await asyncio.sleep(0.1)

    return behave


async def cut(server: SMTP) -> None:
    server.transport.close()


async def reset(server: SMTP) -> None:
    server.transport.abort()


@dataclass(frozen=True)
class Mail:
    """One message as it came, with its envelope. encrypted: whether it came through TLS."""

    sender: str
    recipients: list[str]
    options: list[str]
    content: bytes
    encrypted: bool


class SMTPServer:
    """A server in a thread of its own.

    script: what it does at a stage instead of what it should. A mapping is for RCPT, by address.
    credentials: who may log in. starttls, tls: a certificate, for one or the other.
    pipelining: whether it offers that. options: aiosmtpd's own.
    `mails` is what it took, `commands` every line it was told.
    """

    def __init__(
        self,
        script: Mapping[str, Behaviour | Mapping[str, Behaviour]] | None = None,
        credentials: tuple[str, str] | None = None,
        starttls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
        pipelining: bool = False,
        **options: Any,
    ) -> None:
        self.script = dict(script or {})
        self.mails: list[Mail] = []
        self.commands: list[str] = []
        self.connections = 0
        self._credentials = credentials
        self._pipelining = pipelining
        self._options = {"tls_context": starttls, "hostname": "mail.example.net", **options}
        if credentials:
            self._options |= {"authenticator": self._authenticate, "auth_require_tls": False}
        self._open: list[SMTP] = []
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            self._loop.create_server(self._connect, "127.0.0.1", 0, ssl=tls)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def cut_all(self) -> None:
        """End every connection, as a server does that restarts or has waited long enough."""

        async def cut_them() -> None:
            for server in self._open:
                if server.transport:
                    server.transport.abort()

        asyncio.run_coroutine_threadsafe(cut_them(), self._loop).result()

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for server in self._open:
                if server.transport:
                    server.transport.abort()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _connect(self) -> SMTP:
        self.connections += 1
        server = _Scripted(self, loop=self._loop, **self._options)
        self._open.append(server)
        return server

    def _authenticate(self, *about: Any) -> AuthResult:
        data = about[-1]
        given = (data.login.decode(), data.password.decode())
        return AuthResult(success=given == self._credentials, handled=False)

    async def handle_EHLO(self, server, session, envelope, hostname, responses):  # noqa: ARG002, N802
        session.host_name = hostname
        offered = ["250-PIPELINING"] if self._pipelining else []
        return [*responses[:-1], *offered, responses[-1]]

    async def handle_DATA(self, server, session, envelope) -> str | None:  # noqa: N802 - aiosmtpd's
        self.mails.append(
            Mail(
                envelope.mail_from,
                envelope.rcpt_tos,
                envelope.mail_options,
                envelope.original_content,
                session.ssl is not None,
            )
        )
        if "." not in self.script:
            return "250 2.0.0 Ok: queued as 4ABC"
        await self.script["."](server)
        return None


class _Scripted(SMTP):
    def __init__(self, owner: SMTPServer, **options: Any) -> None:
        super().__init__(owner, **options)
        self._owner = owner
        for stage in STAGES:
            self._smtp_methods[stage] = self._scripted(stage, self._smtp_methods[stage])

    def _scripted(self, stage: str, usual: Any) -> Any:
        async def behave(argument: str) -> None:
            self._owner.commands.append(f"{stage} {argument or ''}".strip())
            behaviour = self._owner.script.get(stage)
            if isinstance(behaviour, Mapping):
                behaviour = behaviour.get((argument or "").partition("<")[2].partition(">")[0])
            await (behaviour(self) if behaviour else usual(argument))

        return behave

    async def push(self, status: Any) -> Any:
        """aiosmtpd has no hook for its greeting, and pushes None where a hook has answered."""
        if status is None:
            return
        greets = isinstance(status, str) and status.startswith("220 mail.example.net")
        if greets and "banner" in self._owner.script:
            await self._owner.script["banner"](self)
            return
        await super().push(status)
