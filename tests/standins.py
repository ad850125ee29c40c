"""A provider's API on loopback: a real server whose every byte, pause and cut a test decides."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl


@dataclass(frozen=True)
class Received:
    """One request as it came over the wire; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> list[tuple[str, str]]:
        return parse_qsl(self.body.decode(), keep_blank_values=True, strict_parsing=True)

    @property
    def json(self) -> object:
        return json.loads(self.body)


@dataclass
class Exchange:
    """One request in the server's hands. `stopping` is set when the test is over."""

    connection: socket.socket
    stopping: threading.Event
    keep_alive: bool = True
    request: Received | None = None


Behaviour = Callable[[Exchange], None]


def response(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def answer(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Behaviour:
    return send_bytes(response(status, headers, body))


def answer_json(status: int, value: object, headers: dict[str, str] | None = None) -> Behaviour:
    headers = {"Content-Type": "application/json", **(headers or {})}
    return answer(status, headers, json.dumps(value).encode())


def send_bytes(data: bytes) -> Behaviour:
    return lambda exchange: exchange.connection.sendall(data)


def send_and_close(data: bytes) -> Behaviour:
    def behave(exchange: Exchange) -> None:
        exchange.connection.sendall(data)
        exchange.keep_alive = False

    return behave


def reset(exchange: Exchange) -> None:
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.keep_alive = False


def hang(exchange: Exchange) -> None:
    exchange.stopping.wait()
    exchange.keep_alive = False


def sip(exchange: Exchange) -> None:
    """Read a little at a time, for longer than any test waits."""
    exchange.keep_alive = False
    while not exchange.stopping.wait(0.02) and exchange.connection.recv(65536):
        pass


def drip(data: bytes, after: bytes = b"", seconds: float = 0.05) -> Behaviour:
    """Send `after` at once, then `data` a byte at a time."""

    def behave(exchange: Exchange) -> None:
        exchange.keep_alive = False
        exchange.connection.sendall(after)
        for byte in data:
            if exchange.stopping.wait(seconds):
                return
            exchange.connection.sendall(bytes([byte]))

    return behave


def delayed(behaviour: Behaviour, seconds: float) -> Behaviour:
    def behave(exchange: Exchange) -> None:
        exchange.stopping.wait(seconds)
        behaviour(exchange)

    return behave


@dataclass
class StandIn:
    """A provider's server. `behaviour` is what it does with each whole request."""

    behaviour: Behaviour
    tls: ssl.SSLContext | None = None
    read_body: bool = True  # else it acts as soon as it has seen the headers
    seconds_per_piece: float = 0.0  # it reads the body in pieces of 64 KiB, one in so many
    receive_buffer: int | None = None  # bytes that the system takes before they are read
    silent: bool = False  # accepts connections and says nothing, not even a TLS handshake
    requests: list[Received] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        if self.receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self._port = self._listener.getsockname()[1]
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._port}"

    def wait_until_closed(self) -> None:
        """Until every connection there was has been closed."""
        with self._lock:
            threads = self._threads[1:]
        for thread in threads:
            thread.join(60)

    def close(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                _shut(connection)
        for thread in list(self._threads):
            thread.join(60)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        with self._lock:  # whoever has had its answer may wait for it to end
            thread.start()
            self._threads.append(thread)

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(connection)
        try:
            if self.silent:
                self._stopping.wait()
            elif self.tls:
                with self.tls.wrap_socket(connection, server_side=True) as secure:
                    self._exchanges(secure)
            else:
                self._exchanges(connection)
        except (OSError, ValueError):
            pass  # the client has gone, it speaks something else, or the test is over
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _exchanges(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while request := self._read_request(stream):
                self.requests.append(request)
                exchange = Exchange(connection, self._stopping, request=request)
                self.behaviour(exchange)
                if not exchange.keep_alive:
                    return

    def _read_request(self, stream) -> Received | None:
        line = stream.readline()
        if not line:
            return None
        method, path, _ = line.decode("latin-1").split(" ", 2)
        headers = {}
        while (line := stream.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0)) if self.read_body else 0
        return Received(method, path, headers, self._read_body(stream, length))

    def _read_body(self, stream, length: int) -> bytes:
        if not self.seconds_per_piece:
            return stream.read(length)
        body = bytearray()
        while len(body) < length and not self._stopping.wait(self.seconds_per_piece):
            body += stream.read(min(64 * 1024, length - len(body)))
        return bytes(body)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may not be connected any more
        connection.shutdown(socket.SHUT_RDWR)
