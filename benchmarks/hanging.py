"""A stand-in for Mailgun that can be told to hang: `python hanging.py`, which prints its port.

It remembers every message it has read to its end, by the id that its subject ends with, and either
accepts it at once or never says a word about it. A real provider that hangs may have accepted what
it read, so that a message it holds counts as possibly sent.

`GET /hang` and `GET /answer` switch it over; `GET /taken` tells what it took. As `standin.py` it
reads just enough HTTP to cost next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Final, cast

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SUBJECT: Final = re.compile(rb"(?:^|&)subject=[^&]*id(\d+)(?:&|$)")
_HEAD: Final = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}"


@dataclass
class Taken:
    """Ids of messages read, in the order they came: accepted, and held without an answer."""

    hangs: bool = False
    accepted: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)


class Hanging(asyncio.Protocol):
    """One kept-alive connection; requests on it come one after the other."""

    def __init__(self, taken: Taken) -> None:
        self._taken = taken
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Act once the request is complete: clients send head and body apart."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or (length and len(body) < int(length[1])):
            return
        self._received = b""
        if head.startswith(b"POST "):
            self._take(body)
        else:
            self._control(head.split(b" ", 2)[1])

    def _take(self, body: bytes) -> None:
        subject = _SUBJECT.search(body)
        number = int(subject[1]) if subject else 0
        if self._taken.hangs:
            self._taken.held.append(number)
            return
        self._taken.accepted.append(number)
        self._write({"id": f"<{number}@stand-in.example>", "message": "Queued. Thank you."})

    def _control(self, path: bytes) -> None:
        if path in {b"/hang", b"/answer"}:
            self._taken.hangs = path == b"/hang"
        self._write(asdict(self._taken) if path == b"/taken" else {})

    def _write(self, value: object) -> None:
        text = json.dumps(value)
        self._transport.write(_HEAD.format(len(text), text).encode())


async def serve() -> None:
    """Listen on a free port until the process is ended."""
    taken = Taken()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Hanging(taken), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
