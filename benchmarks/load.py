"""The load: the same request over and over, a fixed number of them at once.

`python load.py PORT CALLERS REQUESTS < request` sends the bytes on stdin to that port of 127.0.0.1.
Where the bytes hold the mark of a number, each request has its own there.
Each caller sends its next request when it has the answer to its last, on the same connection unless
the server closes that. The answer to all is one line of JSON, seconds by the clock and how many
answers had which status: `{"seconds": 2.5, "statuses": {"200": 3000}}`. Like the stand-in it reads
just enough HTTP to cost next to nothing.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
MARK: Final = b"%%NUMBER%%"
WAIT_SECONDS: Final = 30
"""No single answer takes longer."""


class Caller:
    """One of those who call at once."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._connection: socket.socket | None = None

    def call(self, tickets: Iterator[int], start: threading.Barrier) -> Counter[str]:
        """Once all are ready, send a request for each ticket one gets hold of.

        Returns the statuses answered. Raises OSError where an answer does not come, or not whole.
        """
        start.wait()
        try:
            return Counter(self._exchange(number) for number in tickets)
        finally:
            self._close()

    def _exchange(self, number: int) -> str:
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), WAIT_SECONDS)
        mark = b"%0*d" % (len(MARK), number)
        self._connection.sendall(self._request.replace(MARK, mark))
        head = _read_answer(self._connection)
        if _CLOSE.search(head):
            self._close()
        return head[9:12].decode()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _read_answer(connection: socket.socket) -> bytes:
    """Read one answer to its end; returns its head."""
    received = b""
    while True:
        data = connection.recv(65536)
        if not data:
            raise ConnectionError("The connection was closed within an answer.")
        received += data
        head, end, body = received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and length and len(body) >= int(length[1]):
            return head


def run(port: int, callers: int, request: bytes, count: int) -> dict[str, object]:
    """Send `count` requests in all."""
    start = threading.Barrier(callers + 1)
    tickets = iter(range(count))  # shared: whoever has the quicker answers sends more
    with ThreadPoolExecutor(callers) as threads:
        calls = [threads.submit(Caller(port, request).call, tickets, start) for _ in range(callers)]
        start.wait()
        started = time.perf_counter()
        statuses = sum((call.result() for call in calls), Counter[str]())
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "statuses": statuses}


if __name__ == "__main__":
    port, callers, count = (int(argument) for argument in sys.argv[1:])
    print(json.dumps(run(port, callers, sys.stdin.buffer.read(), count)))
