"""A stand-in for Mailgun and SendGrid on loopback: `python standin.py MILLISECONDS`.

It accepts every message after that many milliseconds, prints the port it listens on, and answers
`GET /counts` with how many connections and messages there were. It understands just enough HTTP
to cost next to nothing, since it shares the machine with what is measured: asyncio's protocols,
which set TCP_NODELAY by themselves, and no parsing beyond the length of the body.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Final, cast

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD: Final = "HTTP/1.1 {}\r\nContent-Type: application/json\r\n{}Content-Length: {}\r\n\r\n{}"


class StandIn(asyncio.Protocol):
    """One kept-alive connection; requests on it come one after the other.

    counts: connections used and messages of each provider so far, shared by all connections.
    delay: seconds before a message is accepted.
    """

    def __init__(self, counts: dict[str, int], delay: float) -> None:
        self._counts = counts
        self._delay = delay
        self._head = b""
        self._missing = 0
        self._used = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer once the request is complete; a body is counted and not kept."""
        if not self._missing:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = head
            length = _LENGTH.search(head)
            self._missing = int(length[1]) if length else 0
        self._missing -= len(data)
        if not self._missing:
            head, self._head = self._head, b""
            self._answer(head[: head.index(b"\r\n")])

    def _answer(self, request_line: bytes) -> None:
        if request_line == b"GET /counts HTTP/1.1":
            self._write("200 OK", json.dumps(self._counts))
            return
        if request_line == b"POST /v3/mail/send HTTP/1.1":
            number = self._count("sendgrid")
            answer = ("202 Accepted", "", f"X-Message-Id: {number}\r\n")
        elif request_line.endswith(b"/messages HTTP/1.1"):
            number = self._count("mailgun")
            queued = {"id": f"<{number}@stand-in.example>", "message": "Queued. Thank you."}
            answer = ("200 OK", json.dumps(queued), "")
        else:
            answer = ("404 Not Found", "{}", "")
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._write, *answer)
        else:
            self._write(*answer)

    def _count(self, provider: str) -> int:
        """Count a message, and the connection with its first; returns the message's number."""
        self._counts["connections"] += not self._used
        self._used = True
        self._counts[provider] += 1
        return self._counts[provider]

    def _write(self, status: str, body: str, headers: str = "") -> None:
        if not self._transport.is_closing():
            self._transport.write(_HEAD.format(status, headers, len(body), body).encode())


async def serve(delay: float) -> None:
    """Listen on a free port until the process is ended."""
    counts = {"connections": 0, "mailgun": 0, "sendgrid": 0}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: StandIn(counts, delay), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) / 1000))
