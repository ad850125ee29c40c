"""The way to a provider: kept-alive connections, a deadline that holds, and one honest boundary.

`Transport.exchange` sends one request and returns what the provider answered. If there is no
answer, it raises one of two errors, and which one depends on a single fact: had the whole request
been handed to the operating system? If not, the provider cannot have accepted the message
(`ServiceUnavailable`); if so, it may have (`OutcomeUnknown`).

A connection that was kept may be closed by the provider at any time. Right before it is written to,
it is looked at: what is closed, or holds anything to read, is not used. Where the provider's end of
it was under way at that moment, the request meets a closed connection. If it was not written whole
then, or the provider ended the connection before its system had confirmed one byte of it, nobody
can have read it, and it goes out again on another connection. What remains `unknown`: the
provider's system had taken the request and its server ended the connection without reading it. On
the wire that looks as if the server had read it, accepted it and died; HTTP/1.1 has no word for it.

`requests` bounds each wait on a socket, not their sum, so that a server which sends one byte a
second holds it for ever. Here each wait gets only what is left of the whole: the sockets ask the
exchange in progress, which a context variable names, before each call to the operating system.

The seconds in which a request's bytes move are our line's; all others are the provider's: those in
which it does not take the connection, takes nothing more of the request, or does not answer. It has
its own timeout for these. An error that ends a wait says how long the provider was waited for, so
that nobody is blamed for a slow line.
"""

from __future__ import annotations

import http.client
import math
import os
import re
import smtplib
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from json import JSONDecodeError, loads
from typing import Any, ClassVar, Final

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection
from urllib3.util.ssl_ import create_urllib3_context

from email_services.cut_json import whole_part
from email_services.exceptions import OutcomeUnknown, ProviderError, ServiceUnavailable
from email_services.traces import carried

MAX_ANSWER_BYTES: Final = 1024 * 1024
"""More of an answer than this is not read: the longest, Postmark's for a batch of 500, has 2 KB for
each message."""

LATE_SECONDS: Final = 0.02
"""By which a wait may end too late."""

MAX_IDLE_SECONDS: Final = 4.0
"""A connection unused for longer is not used again, and for half as long as the provider keeps it,
where it says so (`Keep-Alive: timeout=5`). The shortest defaults of servers are 5 s (Node.js'
keepAliveTimeout, Apache's KeepAliveTimeout); load balancers wait for 60 s and more."""

MIN_UPLOAD_RATE: Final = 250_000
"""Bytes a second: what an upload has time for, 2 Mbit/s, where the deadline leaves as much."""

SMALL_BYTES: Final = 64 * 1024
"""What is smaller needs no time of its own to upload."""

PIECE_BYTES: Final = 64 * 1024
"""As much of a request is handed to the operating system at once, to see whether it moves."""

KEPT_CONNECTIONS: Final = 100
"""Idle connections kept for each service in each worker; more than a worker has threads."""

FAULTS: Final = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    requests.exceptions.InvalidHeader,  # of the answer: our own are checked before
    urllib3.exceptions.HTTPError,  # requests lets some of urllib3's through
)
"""What `requests` raises while it sends and reads. The rest of its exceptions are bugs of ours."""


_NO_JSON: Final = (JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError)


@dataclass(frozen=True)
class Answer:
    """What a provider answered.

    status: the HTTP status. headers: compared without case.
    body: the first MiB. complete: False if it was cut, too long or too slow.
    """

    status: int
    headers: CaseInsensitiveDict[str]
    body: bytes
    complete: bool = True

    @cached_property
    def json(self) -> Any:
        """The body read as JSON, or None; of one that was cut, what stands whole in it."""
        try:
            return loads(self.body)
        except _NO_JSON:
            return None if self.complete else whole_part(self.body)

    @property
    def is_cut(self) -> bool:
        """Whether its JSON may have gone on: what is in it is whole, and a list may lack items."""
        if self.complete:
            return False
        try:
            loads(self.body)
        except _NO_JSON:
            return True
        return False

    @property
    def json_object(self) -> dict[str, Any]:
        """The body read as a JSON object, or {}."""
        return self.json if isinstance(self.json, dict) else {}

    @property
    def is_empty(self) -> bool:
        """Whether it has no body at all, and none was to come."""
        return self.complete and not self.body

    @property
    def claims_json(self) -> bool:
        """Whether the Content-Type is JSON."""
        return "json" in self.headers.get("Content-Type", "").partition(";")[0].lower()


class Transport:
    """The connections to one provider, shared by the threads of a worker.

    base_url decides which proxy of the environment (HTTPS_PROXY, NO_PROXY) is used, if any. TLS
    is verified against certifi's authorities, or the file that REQUESTS_CA_BUNDLE names.
    Neither cookies nor .netrc nor redirects are followed.
    patience: seconds that the provider may take, those apart in which a request moves.
    """

    def __init__(self, base_url: str, patience: float) -> None:
        self._patience = patience
        self._adapter = _Adapter(pool_maxsize=KEPT_CONNECTIONS)
        self._proxies = requests.utils.get_environ_proxies(base_url)

    def exchange(self, request: requests.Request, timeout: float) -> Answer:
        """Send `request` and read the answer, in `timeout` seconds all together.

        The request's content is gone afterwards: with large files, one copy of it is enough.
        Raises ServiceUnavailable if the request was not written whole, OutcomeUnknown if it was.
        """
        prepared = _prepared(request)
        prepared.headers.update(carried())
        _forget_content(request)
        with within(timeout, self._patience) as exchange:
            try:
                response = self._send(prepared, exchange, timeout)
                body, complete = _read(response)
            except FAULTS as error:
                raise exchange.fault(error) from None
        return Answer(response.status_code, response.headers, body, complete)

    def _send(
        self, prepared: requests.PreparedRequest, exchange: Exchange, timeout: float
    ) -> requests.Response:
        """Send it, again for each kept connection that turns out to have ended before."""
        exchange.begin()
        try:
            return self._adapter.send(prepared, stream=True, timeout=timeout, proxies=self._proxies)
        except FAULTS:
            if not exchange.met_an_end:
                raise
        return self._send(prepared, exchange, timeout)


def _prepared(request: requests.Request) -> requests.PreparedRequest:
    """As `request.prepare()` does it: without parameters, cookies and hooks, which none has."""
    prepared = requests.PreparedRequest()
    prepared.prepare_method(request.method)
    prepared.url = _normal_url(request.url or "")
    prepared.prepare_headers(request.headers)
    prepared.prepare_body(request.data, request.files, request.json)
    return prepared


@lru_cache(maxsize=256)
def _normal_url(url: str) -> str:
    return requests.Request("POST", url).prepare().url or ""


def _forget_content(request: requests.Request) -> None:
    """Let go of what was encoded, whoever else still holds the request or its payload."""
    for content in (request.json, request.data, request.files):
        if isinstance(content, dict | list):
            content.clear()


class Exchange:
    """One request and its answer: how far they are, and whose time has passed.

    timeout: seconds for all of it. patience: for what is the provider's part.
    connected: whether there is a connection, encrypted and all.
    written: whether the whole request is with the operating system.
    """

    def __init__(self, timeout: float, patience: float) -> None:
        self._began = time.monotonic()
        self._timeout = timeout
        self._patience = patience
        self._moving = 0.0
        self.begin()

    def begin(self) -> None:
        """Note that nothing is written, or counts as written any more."""
        self.connected = False
        self.written = False
        self._moved_at: float | None = None
        self._kept = False
        self._confirmed: int | None = None
        self._heard = False
        self._unread = False

    def remaining(self) -> float:
        """Seconds left; raises TimeoutError where none are."""
        left = self._limit - self._elapsed
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def _limit(self) -> float:
        return min(self._timeout, self._patience + self._moving)

    def start_upload(self) -> None:
        """Note that what comes next is the content."""
        self.connected = True
        self._moved_at = time.monotonic()

    def move(self) -> None:
        """Note that a piece has gone: the time since the last one was our line's."""
        if self._moved_at is not None:
            now = time.monotonic()
            self._moving += now - self._moved_at
            self._moved_at = now

    def fault(self, error: BaseException) -> ProviderError:
        """What an error on the way means."""
        words = self._why(error)
        fault = (OutcomeUnknown if self.written else ServiceUnavailable)(words)
        if words == self._out_of_time:
            fault.waited = self._elapsed - self._moving
        return fault

    @property
    def _out_of_time(self) -> str:
        if not self.connected:
            return f"No connection within {self._limit:.3g} s."
        if self._moved_at is not None and not self.written:
            return f"The upload was not finished within {self._limit:.3g} s."
        return f"No answer within {self._limit:.3g} s."

    def _why(self, error: BaseException) -> str:
        """Name the deepest cause that we know, in words that hold nothing of the request."""
        known = ((TimeoutError, self._out_of_time), *_REASONS)
        words = "The connection failed."
        cause: BaseException | None = error
        while cause:
            words = next((told for kind, told in known if isinstance(cause, kind)), words)
            cause = cause.__cause__ or cause.__context__
        return words

    def write_to(self, connection: socket.socket, *, kept: bool) -> None:
        """Note that the request is written next. kept: whether others have used the connection."""
        self.start_upload()
        self._kept = kept
        self._confirmed = _bytes_confirmed(connection) if kept else None

    def read_from(self, connection: socket.socket, count: int) -> None:
        """Note that `count` bytes came; with 0 the other side has ended the connection."""
        self._heard = self._heard or count > 0
        if count == 0 and self._confirmed is not None:
            # What ends a connection says how much had come by then; what comes later is not read.
            self._unread = _bytes_confirmed(connection) == self._confirmed

    @property
    def met_an_end(self) -> bool:
        """Whether a kept connection had ended before anybody could read the request whole."""
        in_time = self._elapsed < self._limit
        untaken = self._unread or not self.written
        return self._kept and in_time and untaken and not self._heard


_BYTES_CONFIRMED: Final = struct.Struct("120xQ")
"""tcpi_bytes_acked in Linux' struct tcp_info (linux/tcp.h)."""


def _bytes_confirmed(connection: socket.socket) -> int | None:
    """How many bytes the system at the other end has confirmed so far, where ours can tell."""
    if not sys.platform.startswith("linux"):
        return None
    size = _BYTES_CONFIRMED.size
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    return int(_BYTES_CONFIRMED.unpack(info)[0]) if len(info) == size else None


_current: ContextVar[Exchange] = ContextVar("exchange in progress")


@contextmanager
def within(timeout: float, patience: float = math.inf) -> Iterator[Exchange]:
    """Bound everything that our sockets do meanwhile to `timeout` seconds all together.

    patience: what is the provider's part of it.
    """
    exchange = Exchange(timeout, patience)
    token = _current.set(exchange)
    try:
        yield exchange
    finally:
        _current.reset(token)


class _NoTime(Exchange):
    """Nobody waits for anything."""

    def remaining(self) -> float:
        """None, which is no error here: sockets do not block then."""
        return 0.0


_NO_TIME: Final = _NoTime(0.0, 0.0)


class _Timed:
    """A socket whose every wait is bounded by what is left of the exchange.

    Python bounds a TLS handshake as a whole; a read only until the next byte.

    is_spoiled: whether more came on it than the answers asked for.
    """

    is_spoiled = False

    def _bound(self: Any, seconds: float) -> None:
        """Wait no longer than that, or hardly: to set it costs a system call each time."""
        if seconds and seconds <= (self.gettimeout() or 0.0) < seconds + LATE_SECONDS:
            return
        self.settimeout(seconds)

    def recv_into(self: Any, *args: Any, **kwargs: Any) -> int:
        exchange = _current.get()
        self._bound(exchange.remaining())
        count = int(super().recv_into(*args, **kwargs))  # type: ignore[misc]
        exchange.read_from(self, count)
        return count

    def sendall(self: Any, data: Any, *args: Any, **kwargs: Any) -> None:
        """Send it a piece at a time, to know until when it moved."""
        exchange = _current.get()
        with memoryview(data) as whole, whole.cast("B") as content:
            sent = 0
            while sent < len(content):
                self._bound(exchange.remaining())
                sent += self.send(content[sent : sent + PIECE_BYTES], *args, **kwargs)
                exchange.move()


class _TimedSocket(_Timed, socket.socket):
    pass


class _TimedTLSSocket(_Timed, ssl.SSLSocket):
    pass


class _Response(http.client.HTTPResponse):
    """The final answer to a request; whatever comes after it spoils the connection.

    http.client takes each 1xx but 100 for the final answer, and its buffer, with what else came
    in the same segment, is gone with the answer. In both cases the next message would get what
    belongs to this one.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._socket = sock

    def begin(self) -> None:
        """Read up to the end of the final answer's headers; any number of 1xx may precede it."""
        super().begin()
        while self.status < HTTPStatus.OK:
            self.headers = self.msg = None  # type: ignore[assignment] # as before it has begun
            super().begin()

    def _close_conn(self) -> None:
        """http.client's, for an answer that is read: the connection goes back to the pool next."""
        self._socket.is_spoiled = self._is_followed()
        super()._close_conn()  # type: ignore[misc] # it is not in typeshed

    def _is_followed(self) -> bool:
        """Whether anything has come after it, in whichever buffer it is; waits for nothing."""
        if not isinstance(self._socket, _Timed):
            return True  # TLS within a proxy's TLS, into which nobody can look
        token = _current.set(_NO_TIME)
        try:
            return bool(self.fp.peek(1))
        except ssl.SSLWantReadError:
            return False
        except OSError:
            return True
        finally:
            _current.reset(token)


_KEPT_FOR: Final = re.compile(r"(?:^|,)\s*timeout=(\d{1,6})\b", re.IGNORECASE)


class _Connection:
    """What our plain and TLS connections have in common."""

    response_class: ClassVar[Any] = _Response
    _last_used: float | None = None
    _idle_seconds = math.inf

    def _new_conn(self: Any) -> socket.socket:
        """Resolve and connect within the exchange's time, with the errors urllib3 documents."""
        exchange = _current.get()
        self._last_used = None
        try:
            addresses = resolve(self._dns_host, self.port, exchange.remaining())
            return connect(addresses, exchange, self.socket_options)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "timed out") from error
        except OSError as error:
            raise NewConnectionError(self, "no connection") from error

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        """Write the request, and note it when the last byte is with the operating system.

        urllib3 swallows the error of a write that was cut, to read an answer that may have
        come early; the note tells that case from a request that arrived.
        """
        exchange = _current.get()
        if self.sock is None:
            self.connect()
        exchange.write_to(self.sock, kept=self._last_used is not None)
        super().request(*args, **kwargs)  # type: ignore[misc]
        exchange.written = True

    def getresponse(self: Any) -> Any:
        """Read the answer's head, and when the connection has to be used again at the latest."""
        response = super().getresponse()  # type: ignore[misc]
        self._last_used = time.monotonic()
        kept = _KEPT_FOR.search(response.headers.get("Keep-Alive", ""))
        self._idle_seconds = int(kept[1]) / 2 if kept else math.inf
        return response

    @property
    def is_connected(self: Any) -> bool:
        """Whether it can be used again: urllib3 asks right before it writes the next request."""
        if self.sock is None or self.sock.is_spoiled or self._last_used is None:
            return False
        idle = time.monotonic() - self._last_used
        fresh = idle < min(MAX_IDLE_SECONDS, self._idle_seconds)
        return fresh and bool(super().is_connected)  # type: ignore[misc]


class _TimedHTTPConnection(_Connection, HTTPConnection):
    pass


class _TimedHTTPSConnection(_Connection, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _TimedHTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _TimedHTTPSConnection


class _Adapter(HTTPAdapter):
    """requests' adapter, with our connections underneath."""

    _pools: ClassVar = {"http": _HTTPPool, "https": _HTTPSPool}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=tls_context("http"), **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=tls_context("http"), **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Nothing to do: the context verifies, and has read its authorities once."""


def upload_seconds(size: int) -> float:
    """Seconds that a slow line needs for `size` bytes."""
    return max(0, size - SMALL_BYTES) / MIN_UPLOAD_RATE


def tls_context(protocol: str) -> ssl.SSLContext:
    """One that verifies, with sockets that hold the deadline.

    protocol: each has its own, into which urllib3 writes what HTTP is called in a handshake.
    """
    return _context_of(protocol, os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where())


@cache
def _context_of(_protocol: str, authorities: str) -> ssl.SSLContext:
    """The same for all services: each would take 30 ms and 1 MB for its authorities."""
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.load_verify_locations(authorities)
    context.sslsocket_class = _TimedTLSSocket
    return context


def resolve(host: str, port: int, timeout: float) -> list[tuple[str, int]]:
    """Look up `host`, in a thread, since nothing can interrupt getaddrinfo."""
    found: Future[list[Any]] = Future()

    def look_up() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.set_exception(error)
        except UnicodeError:  # a label of over 63 characters
            found.set_exception(socket.gaierror("not a host name"))

    threading.Thread(target=look_up, daemon=True).start()
    try:
        return [address[:2] for *_, address in found.result(timeout)]
    except TimeoutError:
        raise
    except FutureTimeoutError as error:  # another class than TimeoutError before Python 3.11
        raise TimeoutError("timed out") from error


def connect(
    addresses: list[tuple[str, int]], exchange: Exchange, socket_options: Any
) -> socket.socket:
    """Connect to the first address that answers; each gets a fair share of what time is left."""
    for tried, address in enumerate(addresses):
        share = exchange.remaining() / (len(addresses) - tried)
        try:
            plain = create_connection(address, share, socket_options=socket_options)
        except OSError:
            if tried + 1 == len(addresses):
                raise
        else:
            return _timed(plain, exchange)
    raise OSError("no address")


def _timed(plain: socket.socket, exchange: Exchange) -> _TimedSocket:
    """The same connection as a socket that holds the deadline, from the TLS handshake on."""
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # not everywhere
        # The system would take megabytes that the line has not: little of ours may wait there.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * PIECE_BYTES)
    timed = _TimedSocket(plain.family, plain.type, plain.proto, fileno=plain.detach())
    try:
        timed.settimeout(exchange.remaining())
    except TimeoutError:
        timed.close()
        raise
    return timed


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(response: requests.Response) -> tuple[bytes, bool]:
    """Read the body up to the bound, as far as it comes: the status is known whatever follows."""
    body = bytearray()
    try:
        # Not iter_content, which keeps what it has read of a chunk that is cut to itself.
        while chunk := response.raw.read1(16 * 1024, decode_content=True):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                response.close()
                return bytes(body[:MAX_ANSWER_BYTES]), False
    except FAULTS:
        return bytes(body), False
    return bytes(body), True


_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (socket.gaierror, "Its host name was not found."),
    (ssl.SSLError, "The TLS handshake failed."),
    (ConnectionRefusedError, "The connection was refused."),
    (ConnectionError, "The connection was cut."),
    (http.client.HTTPException, "What it answered is not HTTP."),
    (smtplib.SMTPServerDisconnected, "The connection was cut."),
    (smtplib.SMTPResponseException, "What it answered is not SMTP."),
)
