"""The way to a provider, over real connections: whose answer it is, and which are used again."""

from __future__ import annotations

import itertools
import socket
import ssl
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import trustme
from clocks import FOREVER
from contract import make_message, make_service, outcome_of
from standins import Exchange, answer, hang, reset, response, send_and_close

from email_services.exceptions import OutcomeUnknown, ServiceUnavailable
from email_services.pool import PooledEmailService
from email_services.transport import MIN_UPLOAD_RATE, Transport, tls_context

# Mailgun goes through `requests`, SendGrid through its SDK.
every_way = pytest.mark.parametrize("provider", ["mailgun", "sendgrid"])


def accepted(number: int) -> bytes:
    """The acceptance of either provider, with an id that nobody else has."""
    headers = {"Content-Type": "application/json", "X-Message-Id": f"id {number}"}
    return response(200, headers, b'{"id": "<id %d>", "message": "Queued."}' % number)


class Numbered:
    """Answers the requests with their numbers: `before` and `after` each answer comes more.

    segments: whether that comes in segments of its own.
    """

    def __init__(self, before: bytes = b"", after: bytes = b"", *, segments: bool = False) -> None:
        self.before, self.after, self.segments = before, after, segments
        self.numbers = itertools.count(1)
        self.last: Exchange | None = None

    def __call__(self, exchange: Exchange) -> None:
        self.last = exchange
        parts = [self.before, accepted(next(self.numbers)), self.after]
        for part in parts if self.segments else [b"".join(parts)]:
            exchange.connection.sendall(part)
            exchange.stopping.wait(0.01 if self.segments else 0)

    def send_later(self, data: bytes) -> None:
        """Send it on the connection used last; on loopback it has arrived then."""
        self.last.connection.sendall(data)


def interim(status: int, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 %d Words" % status, *headers, b"", b""])


INTERIM = {
    "100": interim(100),
    "101": interim(101),
    "102": interim(102),
    "103 with headers": interim(103, b"Link: </a.css>; rel=preload", b"Server: a"),
    "103 that would close": interim(103, b"Connection: close", b"Content-Length: 7"),
    "103 in chunks": interim(103, b"Transfer-Encoding: chunked"),
    "199": interim(199),
    "several": interim(100) + interim(103, b"Link: </a>") + interim(100) + interim(102),
}


@every_way
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("name", INTERIM)
def test_the_answer_after_interim_ones_is_the_messages_own(provider, name, segments, stand_in):
    server = stand_in(Numbered(before=INTERIM[name], segments=segments))
    service = make_service(provider, server.url)
    assert [outcome_of(service).strip("<>") for _ in range(3)] == ["id 1", "id 2", "id 3"]
    assert server.connections == 1


@every_way
def test_a_refusal_after_an_interim_answer_is_the_messages_own(provider, stand_in):
    server = stand_in(lambda e: e.connection.sendall(interim(103) + response(500)))
    service = make_service(provider, server.url)
    assert [type(outcome_of(service)) for _ in range(2)] == [ServiceUnavailable] * 2


@every_way
def test_interim_answers_without_end_are_read_within_the_deadline(provider, stand_in):
    def behave(exchange: Exchange) -> None:
        while not exchange.stopping.wait(0.01):
            exchange.connection.sendall(interim(102))

    server = stand_in(behave)
    assert type(outcome_of(make_service(provider, server.url), timeout=1)) is OutcomeUnknown


LEFT_OVER = {
    "an interim answer": interim(103, b"Link: </a.css>"),
    "another answer": response(200, {"X-Message-Id": "id 9"}, b'{"id": "<id 9>", "message": "."}'),
    "half of another": response(200, {"X-Message-Id": "id 9"}, b'{"id": "<id 9>"')[:-9],
    "a refusal": response(400, {"Content-Type": "application/json"}, b'{"message": "to"}'),
    "a byte": b"\n",
}


@every_way
@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_comes_with_an_answer_closes_the_connection(provider, name, stand_in):
    server = stand_in(Numbered(after=LEFT_OVER[name]))
    service = make_service(provider, server.url)
    for number in (1, 2, 3):
        assert outcome_of(service).strip("<>") == f"id {number}"
        assert server.connections == number


@every_way
@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_comes_later_than_an_answer_closes_the_connection(provider, name, stand_in):
    behaviour = Numbered()
    server = stand_in(behaviour)
    service = make_service(provider, server.url)
    for number in (1, 2, 3):
        assert outcome_of(service).strip("<>") == f"id {number}"
        assert server.connections == number
        behaviour.send_later(LEFT_OVER[name])


@every_way
def test_the_body_of_an_answer_that_has_none_is_not_the_next_answer(provider, stand_in):
    body = response(400, {"Content-Type": "application/json"}, b'{"message": "to"}')
    server = stand_in(answer(204, {}, body))
    service = make_service(provider, server.url)
    assert [type(outcome_of(service)) for _ in range(2)] == [OutcomeUnknown] * 2
    assert server.connections == 2


@every_way
@pytest.mark.parametrize("after", [b"", LEFT_OVER["another answer"]])
def test_an_answer_in_chunks_leaves_the_connection_as_clean_as_it_is(provider, after, stand_in):
    def chunked(exchange: Exchange) -> None:
        head = b"HTTP/1.1 200 OK\r\nX-Message-Id: id 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = b'20\r\n{"id": "<id 1>", "message": "."}\r\n0\r\n\r\n'
        exchange.connection.sendall(head + body + after)

    server = stand_in(chunked)
    service = make_service(provider, server.url)
    assert [outcome_of(service).strip("<>") for _ in range(2)] == ["id 1", "id 1"]
    assert server.connections == (2 if after else 1)


@pytest.fixture
def tls(tmp_path, monkeypatch) -> ssl.SSLContext:
    """What a server on this machine needs to be trusted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_services_share_the_authorities_that_they_trust(tls, tmp_path, monkeypatch):
    """Each reads them for 30 ms and keeps 1 MB; a server may have a hundred services."""

    def contexts():
        services = [make_service(name, "https://127.0.0.1:1") for name in ("mailgun", "sendgrid")]
        adapters = [service.transport._adapter for service in services]
        return {adapter.poolmanager.connection_pool_kw["ssl_context"] for adapter in adapters}

    before = contexts()
    assert len(before) == 1
    assert tls_context("smtp") not in before  # what HTTP is called in a handshake is in them
    other = tmp_path / "other.pem"
    other.write_bytes((tmp_path / "ca.pem").read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    assert not contexts() & before


# One record of TLS holds up to 16 KiB, and a read buffer half of that.
FILLERS = [0, 7_000, 8_000, 8_150, 9_000, 15_000]


@every_way
@pytest.mark.parametrize("filler", FILLERS)
def test_what_tls_has_read_ahead_closes_the_connection(provider, filler, stand_in, tls):
    before = interim(103, b"Link: " + b"a" * filler)
    server = stand_in(Numbered(before, after=LEFT_OVER["another answer"]), tls=tls)
    service = make_service(provider, server.url)
    for number in (1, 2, 3):
        assert outcome_of(service).strip("<>") == f"id {number}"
        assert server.connections == number


@every_way
def test_a_connection_with_tls_is_used_again(provider, stand_in, tls):
    server = stand_in(Numbered(), tls=tls)
    service = make_service(provider, server.url)
    assert [outcome_of(service).strip("<>") for _ in range(3)] == ["id 1", "id 2", "id 3"]
    assert server.connections == 1


# Connections that the provider ends while nobody uses them

PLAIN_OR_TLS = pytest.mark.parametrize("secure", [False, True])


@pytest.fixture
def ends_arrive_late(monkeypatch):
    """As if each end of a connection were still under way when one looks for it."""
    monkeypatch.setattr("urllib3.connection.wait_for_read", lambda *_, **__: False)


@every_way
@PLAIN_OR_TLS
def test_a_connection_that_ended_meanwhile_is_not_used(provider, secure, stand_in, tls):
    server = stand_in(send_and_close(accepted(1)), tls=tls if secure else None)
    service = make_service(provider, server.url)
    for number in (1, 2, 3):
        assert outcome_of(service).strip("<>") == "id 1"
        server.wait_until_closed()
        assert server.connections == number


@every_way
@PLAIN_OR_TLS
def test_a_request_that_meets_the_end_of_its_connection_goes_out_again(
    provider, secure, stand_in, tls, ends_arrive_late
):
    server = stand_in(send_and_close(accepted(1)), tls=tls if secure else None)
    service = make_service(provider, server.url)
    for number in (1, 2, 3):
        assert outcome_of(service).strip("<>") == "id 1"
        server.wait_until_closed()
        assert server.connections == number


@every_way
def test_a_request_outlives_all_connections_that_ended(provider, stand_in, ends_arrive_late):
    all_are_open, may_end = threading.Barrier(5), threading.Event()

    def behave(exchange: Exchange) -> None:
        if len(server.requests) <= 5:
            all_are_open.wait(FOREVER)
        exchange.connection.sendall(accepted(1))
        may_end.wait(FOREVER)
        exchange.keep_alive = False

    server = stand_in(behave)
    service = make_service(provider, server.url)
    with ThreadPoolExecutor(5) as senders:
        ids = list(senders.map(lambda _: outcome_of(service).strip("<>"), range(5)))
    may_end.set()
    server.wait_until_closed()
    assert [*ids, outcome_of(service).strip("<>")] == ["id 1"] * 6
    assert server.connections == 6


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what was confirmed")
@PLAIN_OR_TLS
def test_a_request_that_was_written_whole_too_late_goes_out_again(
    secure, stand_in, tls, ends_arrive_late
):
    # Without a body it is written at once, before the answer to its first byte can come.
    server = stand_in(send_and_close(accepted(1)), tls=tls if secure else None)
    transport = Transport(server.url, 5)
    for number in (1, 2, 3):
        assert transport.exchange(requests.Request("GET", server.url), 5).status == 200
        server.wait_until_closed()
        assert server.connections == number


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_request_that_cannot_go_out_again_is_not_sent(method, stand_in, ends_arrive_late):
    server = stand_in(send_and_close(accepted(1)))
    transport = Transport(server.url, 5)
    body = b"body" if method == "POST" else None
    assert transport.exchange(requests.Request(method, server.url, data=body), 5).status == 200
    server.close()
    with pytest.raises(ServiceUnavailable, match="The connection was refused"):
        transport.exchange(requests.Request(method, server.url, data=body), 5)


TAKEN = {
    "ended": lambda exchange: setattr(exchange, "keep_alive", False),
    "reset": reset,
    "ended for writing": lambda exchange: exchange.connection.shutdown(socket.SHUT_WR),
}


@every_way
@pytest.mark.parametrize("name", TAKEN)
def test_a_request_that_was_taken_is_never_sent_again(provider, name, stand_in):
    server = stand_in(Numbered())
    service = make_service(provider, server.url)
    assert outcome_of(service).strip("<>") == "id 1"
    server.behaviour = TAKEN[name]
    assert type(outcome_of(service)) is OutcomeUnknown
    assert (len(server.requests), server.connections) == (2, 1)


@every_way
def test_a_request_whose_first_bytes_were_answered_is_never_sent_again(provider, stand_in):
    server = stand_in(Numbered())
    service = make_service(provider, server.url)
    assert outcome_of(service).strip("<>") == "id 1"
    server.behaviour = send_and_close(b"HTTP/1.1 2")
    assert type(outcome_of(service)) is OutcomeUnknown
    assert (len(server.requests), server.connections) == (2, 1)


@every_way
@pytest.mark.parametrize(
    ("says", "connections"),
    [("timeout=0", 2), ("max=9, timeout=0", 2), ("timeout=5, max=9", 1), ("max=9", 1), ("?", 1)],
)
def test_a_provider_may_say_how_long_it_keeps_a_connection(provider, says, connections, stand_in):
    answered = accepted(1).replace(b"\r\n", b"\r\nKeep-Alive: %s\r\n" % says.encode(), 1)
    server = stand_in(lambda exchange: exchange.connection.sendall(answered))
    service = make_service(provider, server.url)
    assert [outcome_of(service).strip("<>") for _ in range(2)] == ["id 1", "id 1"]
    assert server.connections == connections


# Whose time it is

both_ways = pytest.mark.parametrize(
    ("provider", "secure"), [("mailgun", False), ("sendgrid", True)]
)
LARGE = {"raw_text_body": "x" * 3_000_000}
SLOWLY = {"receive_buffer": 64 * 1024, "seconds_per_piece": 0.06}


@pytest.fixture
def send(store):
    """Send through one service of a domain; returns the delivery and what is held against it."""

    def send_through(service, deadline: float, **fields):
        pool = PooledEmailService("example.com", [service], store, deadline_seconds=deadline)
        delivery = pool.send(make_message(**fields))
        state = store.service_states("example.com").get(service.name)
        return delivery, [error["reason"] for error in state.last_errors] if state else []

    return send_through


@both_ways
def test_an_upload_that_moves_has_time_beyond_the_services_own(
    provider, secure, stand_in, tls, send
):
    server = stand_in(Numbered(), tls=tls if secure else None, **SLOWLY)
    # All in all it takes 2.7 s at the least.
    delivery, blame = send(make_service(provider, server.url, 2), 60, **LARGE)
    assert (delivery.outcome, blame) == ("sent", [])


@both_ways
def test_nobody_is_blamed_for_a_line_that_is_too_slow(provider, secure, stand_in, tls, send):
    server = stand_in(Numbered(), tls=tls if secure else None, **SLOWLY)
    delivery, blame = send(make_service(provider, server.url), 2, **LARGE)
    reason = delivery.services_unsuccessful[provider]
    assert reason.startswith("The upload was not finished within ")
    assert (delivery.outcome, blame) == ("not sent", [])


@every_way
@pytest.mark.parametrize(
    ("size", "reads", "outcome"),
    [
        (3_000_000, False, "not sent"),
        (3_000_000, True, "unknown"),
        (10, False, "unknown"),
        (10, True, "unknown"),
    ],
)
def test_a_provider_that_does_nothing_is_blamed_however_much_there_is_to_upload(
    size, reads, outcome, provider, stand_in, send
):
    server = stand_in(hang, read_body=reads, receive_buffer=64 * 1024)
    service = make_service(provider, server.url, 1)
    delivery, blame = send(service, 60, raw_text_body="x" * size)
    assert (delivery.outcome, len(blame)) == (outcome, 1)


@every_way
@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, 0),
        ({"raw_text_body": "x" * 60_000}, 0),
        ({"raw_text_body": "x" * (MIN_UPLOAD_RATE * 10)}, 10),
        ({"raw_text_body": "x" * (MIN_UPLOAD_RATE * 80)}, 80),
    ],
)
def test_a_timeout_grows_with_what_is_to_be_uploaded(provider, fields, more):
    service = make_service(provider, "http://127.0.0.1:1", 10)
    assert service.seconds_for([make_message(**fields)]) == pytest.approx(10 + more, abs=0.3)


def test_messages_of_one_content_are_uploaded_once():
    message = make_message(raw_text_body="x" * (MIN_UPLOAD_RATE + 64 * 1024))
    for provider, seconds in {"sendgrid": 11, "mailgun": 11, "resend": 12.3}.items():
        service = make_service(provider, "http://127.0.0.1:1", 10)
        assert service.seconds_for([message] * 2) == pytest.approx(seconds, abs=0.05)
