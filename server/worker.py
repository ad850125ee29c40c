"""How requests reach the application: gunicorn's threaded worker, where a thread is for the ready.

A connection waits in the worker's one loop, at no cost, until its request has arrived: its head,
and its body or the first MB of that. Then it waits for its turn (`lanes`), and only then a thread
takes it. So clients that send half a request hold no thread, and no email domain holds them all.
Once it is answered, the loop waits for the client to have read the answer's end.

TLS ends in front of this server: what arrives here is read as it is.
"""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import socket
import struct
import time
from collections import OrderedDict
from contextvars import Context
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from gunicorn.http import wsgi
from gunicorn.workers.gthread import TConn, ThreadWorker

from browsable_api.request import STRANGERS_BYTES
from server.lanes import Lanes, Ticket
from server.refusals import refuse, refused
from server.traffic import IN_PROGRESS

access_log = logging.getLogger("access")

FIRST_PART: Final = STRANGERS_BYTES
"""Bytes of a body that are here before a thread is taken: all of what a stranger may send."""

MAX_HEAD_BYTES: Final = 128 * 1024
"""More than gunicorn takes, which is to say so."""

ARRIVING: Final = 512
ARRIVING_BYTES: Final = 64 * 1024 * 1024
"""What may be on its way to a worker at once. Beyond it, the first that came is given up on: what
an honest client sends is here in a moment."""

LINGER_SECONDS: Final = 2.0
"""How long a client may take to read an answer's end, and close."""

SILENT_SECONDS: Final = 2
"""How long one that has connected may say nothing to a worker that is to end: what it has just sent
is on its way, and would be lost."""

YIELD_SECONDS: Final = 0.002
"""How long a worker leaves new connections to others that may have more threads free."""

FULL_YIELD_SECONDS: Final = 0.1
"""The same for one that has no thread for messages, and takes one at a time to see what it is."""

CHUNK: Final = 64 * 1024
MAX_CHUNK_LINE: Final = 256
ACCEPTED_AT_ONCE: Final = 4
"""New connections that a worker takes after it has left them to the others."""

_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,20}) (\S+) HTTP/1\.[01]\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_EXPECT: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)


class _Answer(wsgi.Response):  # type: ignore[misc]
    """Gunicorn's, which does not say what software serves it."""

    def default_headers(self) -> list[str]:
        return [line for line in super().default_headers() if not line.startswith("Server:")]


wsgi.Response = _Answer


class Arrival:
    """What has come of a request, before a thread takes it.

    received: all of it so far. needed: after how many bytes a thread may take it; None until its
    head is there. asks_first: whether the client waits for a word before it sends the body.
    """

    def __init__(self) -> None:
        self.received = bytearray()
        self.needed: int | None = None
        self.asks_first = False
        self._head_end = 0
        self._next_chunk = 0  # where it begins; 0 where the body is not in chunks
        self._chunks_bytes = 0  # of the content of those before it

    def take(self, data: bytes) -> bool:
        """Add what has come; returns whether that is enough for a thread."""
        self.received += data
        if self.needed is None:
            self._read_head()
        if self.needed is None:
            return False
        if self._next_chunk:
            self._read_chunks()
        return len(self.received) >= self.needed

    def ticket(self, now: float) -> Ticket:
        """Its place among those that wait for a thread; its lane is the first part of its path."""
        line = _REQUEST_LINE.match(self.received)
        method, target = (line[1], line[2]) if line else (b"", b"")
        path = ""
        with contextlib.suppress(ValueError):  # no address at all
            path = unquote(urlsplit(target.decode("latin-1")).path).lower()
        parts = [part for part in path.split("/") if part] or [""]
        is_send = method == b"POST" and parts[-1] == "send"
        return Ticket(parts[0], is_send, max(self._body_bytes(), len(self.received)), now)

    def _read_head(self) -> None:
        end = self.received.find(b"\r\n\r\n") + 4
        if end < 4:  # noqa: PLR2004 - not found
            is_odd = b"\n" in self.received and not _REQUEST_LINE.match(self.received)
            if is_odd or len(self.received) > MAX_HEAD_BYTES:
                self.needed = 0  # gunicorn says what is wrong
            return
        self._head_end = end
        head = bytes(self.received[:end])
        is_chunked = _CHUNKED.search(head)
        body = FIRST_PART if is_chunked else self._body_bytes()
        expects = _EXPECT.search(head)
        if expects and body > FIRST_PART:
            self.needed = end  # who may not send that much is told so before it is sent
            return
        if expects:
            self.asks_first = True
            del self.received[expects.start() : expects.end()]
            self._head_end = end = end - len(expects[0])
        # In chunks, what is around the content counts for nothing: it can be most of it.
        self.needed = end + (ARRIVING_BYTES if is_chunked else min(body, FIRST_PART))
        self._next_chunk = end if is_chunked else 0

    def _read_chunks(self) -> None:
        """Look for the last chunk, for enough of their content, or for what is none."""
        while self._next_chunk < len(self.received):
            chunk = _CHUNK_SIZE.match(self.received, self._next_chunk)
            if chunk is None:
                is_odd = len(self.received) - self._next_chunk > MAX_CHUNK_LINE
                is_odd = is_odd or b"\n" in self.received[self._next_chunk :]
                self.needed = 0 if is_odd else self.needed
                return
            size = int(chunk[1], 16)
            here = min(size, len(self.received) - chunk.end())
            if not size or self._chunks_bytes + here >= FIRST_PART:
                self.needed = 0  # what may follow the last, a trailer, is short
                return
            if here < size:
                return
            self._next_chunk = chunk.end() + size + 2
            self._chunks_bytes += size

    def _body_bytes(self) -> int:
        """As it says; 0 where it does not."""
        length = _LENGTH.search(self.received, 0, self._head_end)
        return int(length[1]) if length else 0


class Worker(ThreadWorker):  # type: ignore[misc]
    """Gunicorn's threaded worker, with a loop that gives threads to requests in turns.

    Everything but `handle` runs in the worker's main thread, which never waits for one client.
    """

    request_seconds = 60
    """A request has to arrive within that; gunicorn.conf.py sets it."""

    max_bytes = 100 * 1024 * 1024
    """Of large bodies in progress together; gunicorn.conf.py sets it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # All connections, each with the time by which its request has to be here, in that order.
        self._deadlines: OrderedDict[TConn, float] = OrderedDict()
        self._arriving: OrderedDict[TConn, Arrival] = OrderedDict()
        self._arriving_bytes = 0
        self._tickets: dict[TConn, Ticket] = {}  # of those that have a thread
        self._lingering: OrderedDict[TConn, float] = OrderedDict()  # each until then
        self._accept_at: float | None = None
        self._lanes: Lanes[tuple[TConn, Arrival]]

    def load_wsgi(self) -> None:
        """Load the application, which says whether email domains share this server."""
        super().load_wsgi()
        domains = getattr(self.wsgi, "config", {}).get("EMAIL_DOMAINS", 1)
        self._lanes = Lanes(self.cfg.threads, self.max_bytes, has_neighbours=domains > 1)

    def take_over(self, application: Any) -> None:
        """Give requests to another one from now on; those in progress end in the one they have."""
        self._lanes.has_neighbours = application.config["EMAIL_DOMAINS"] > 1
        self.wsgi = application

    # Connections

    def set_accept_enabled(self, enabled: bool) -> None:
        """Not while no thread is free: another worker may have one."""
        may_serve = self._lanes.free > 0 and self._accept_at is None
        super().set_accept_enabled(enabled and may_serve)

    def accept(self, listener: socket.socket) -> None:
        """There is a new connection. While this worker has much to do, the others are first."""
        free = self._lanes.free - len(self._arriving)
        if self._lanes.are_waiting or free < self.cfg.threads // 2:
            wait = FULL_YIELD_SECONDS if self._lanes.is_full else YIELD_SECONDS
            self._accept_at = time.monotonic() + wait
            self.set_accept_enabled(False)
        else:
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            plain, address = listener.accept()
        except OSError:  # another worker has it, or the client is gone
            return
        self.nr_conns += 1
        # A client that reads nothing of its answer holds a thread no longer than that either.
        patience = struct.pack("ll", self.request_seconds, 0)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        self.enqueue_req(TConn(self.cfg, plain, address, listener.getsockname()))

    def enqueue_req(self, conn: TConn) -> None:
        """A connection on which a request is to come."""
        conn.sock.setblocking(False)
        self._deadlines[conn] = time.monotonic() + self.request_seconds
        self._arriving[conn] = Arrival()
        self._on_readable(conn, conn.sock)  # most have sent by now what they connected for
        if conn in self._arriving:
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_readable, conn))
        if len(self._arriving) > ARRIVING:
            self._forget_first()

    def _on_readable(self, conn: TConn, _sock: object) -> None:
        arrival = self._arriving[conn]
        try:
            data = conn.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._close(conn)
            return
        self._arriving_bytes += len(data)
        if arrival.take(data) or (not data and arrival.received):
            self._stop_arriving(conn)
            self._lanes.add(arrival.ticket(time.monotonic()), (conn, arrival))
        elif not data:
            self._close(conn)
        elif arrival.asks_first:
            arrival.asks_first = False
            with contextlib.suppress(OSError):
                conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self._arriving_bytes > ARRIVING_BYTES:
            self._forget_first()

    def _stop_arriving(self, conn: TConn) -> None:
        arrival = self._arriving.pop(conn, None)
        if arrival is not None:
            self._arriving_bytes -= len(arrival.received)
            with contextlib.suppress(KeyError):  # it is not waited for where all came at once
                self.poller.unregister(conn.sock)

    def _forget_first(self) -> None:
        self._close(next(iter(self._arriving)))

    def _close(self, conn: TConn) -> None:
        self._stop_arriving(conn)
        if self._lingering.pop(conn, None) is not None:
            self.poller.unregister(conn.sock)
        self._deadlines.pop(conn, None)
        self.nr_conns -= 1
        conn.close()

    # Threads

    def handle(self, conn: TConn) -> Any:
        """In a thread: as gunicorn does, with what has arrived."""
        conn.sock.setblocking(True)
        conn.init()
        conn.parser.unreader.unread(conn.received)
        conn.received = None
        with IN_PROGRESS.track_inprogress():
            return super().handle(conn)

    def handle_error(
        self, _req: object, client: socket.socket, addr: Any, exc: BaseException
    ) -> None:
        """Gunicorn has found a request that it cannot hand to the application."""
        refuse(client, addr, exc)

    def _begin(self) -> None:
        for ticket, (conn, arrival) in self._lanes.begin(time.monotonic()):
            self._tickets[conn] = ticket
            conn.data_ready = True
            conn.received = bytes(arrival.received)
            job = self.tpool.submit(Context().run, self.handle, conn)
            job.add_done_callback(partial(self._on_done, conn))
        for conn, _ in self._lanes.give_up(time.monotonic()):
            self._refuse(conn)

    def _on_done(self, conn: TConn, job: Any) -> None:
        self.method_queue.defer(self.finish_request, conn, job)

    def finish_request(self, conn: TConn, job: Any) -> None:
        """A thread has answered."""
        self._lanes.end(self._tickets.pop(conn), time.monotonic())
        if job.exception() is None and job.result():  # the connection is kept
            self._deadlines.pop(conn, None)
            super().finish_request(conn, job)
        else:
            self._linger(conn)

    def _refuse(self, conn: TConn) -> None:
        """Answer a request that gets no thread."""
        with contextlib.suppress(OSError):
            conn.sock.send(refused(conn.client, HTTPStatus.SERVICE_UNAVAILABLE, _BUSY, "no room"))
        self._linger(conn)

    def _linger(self, conn: TConn) -> None:
        """Close once the client has: what it has not read would be lost before (RFC 9112, 9.6)."""
        self._deadlines.pop(conn, None)
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._drain, conn))
        except (OSError, ValueError):  # it is closed already
            self._close(conn)
            return
        self._lingering[conn] = time.monotonic() + LINGER_SECONDS

    def _drain(self, conn: TConn, _sock: object) -> None:
        try:
            is_over = not conn.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over:
            self._close(conn)

    # The loop

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """One round: what has happened, and what follows from it and from the time."""
        now = time.monotonic()
        if self._lanes.are_waiting:
            timeout = min(timeout, 0.1)
        if self._accept_at is not None:
            timeout = min(timeout, max(self._accept_at - now, 0.0))
        super().wait_for_and_dispatch_events(timeout)
        self._begin()
        self._keep_time(time.monotonic())
        self.set_accept_enabled(self.alive and self.nr_conns < self.worker_connections)

    def _keep_time(self, now: float) -> None:
        if self._accept_at is not None and self._accept_at <= now:
            self._accept_at = None
            free = self._lanes.free - len(self._arriving)
            room = 1 if self._lanes.is_full else max(1, min(free, ACCEPTED_AT_ONCE))
            for listener in self.sockets if self.alive and self._lanes.free else ():
                for _ in range(room):
                    self._accept(listener)
        while self._deadlines and next(iter(self._deadlines.values())) <= now:
            conn, _ = self._deadlines.popitem(last=False)
            # It hears no more of the client, as if that had gone. What has arrived whole, and its
            # answer, do not notice.
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RD)
        while self._lingering and next(iter(self._lingering.values())) <= now:
            self._close(next(iter(self._lingering)))
        if not self.alive:
            for conn in [c for c, arrival in self._arriving.items() if not arrival.received]:
                if self._deadlines.get(conn, 0) - self.request_seconds + SILENT_SECONDS <= now:
                    self._close(conn)


_BUSY: Final = {
    "result": "error",
    "error": "Nothing was tried: too many requests for the same are in progress.",
    "code": "busy",
    "services_unsuccessful": {},
    "attempts": [],
}
