"""When a request has arrived, and whose it is."""

from __future__ import annotations

import pytest

from server.worker import FIRST_PART, MAX_HEAD_BYTES, Arrival

HEAD = b"POST /example.com/send HTTP/1.1\r\nHost: x\r\n"


def sized(length: int) -> bytes:
    return HEAD + f"Content-Length: {length}\r\n\r\n".encode()


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BIG = b"x" * FIRST_PART

WHOLE = [
    b"GET / HTTP/1.1\r\n\r\n",
    HEAD + b"\r\n",
    sized(3) + b"abc",
    sized(3) + b"abcdef",
    sized(10 * FIRST_PART) + BIG,
    CHUNKED + b"0\r\n\r\n",
    CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
    CHUNKED + b"5;a=b\r\n0\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n",
    CHUNKED + b"%x\r\n" % FIRST_PART + BIG,
    CHUNKED + b"400\r\n" + b"x" * 1024 + b"\r\n%x\r\n" % FIRST_PART + BIG[1024:],
    CHUNKED + b"no size\r\n",
    CHUNKED + b"f" * 300,
    b"hello\r\n",
    b"GET / HTTP/2.0\r\n",
    b"GET / HTTP/1.1\r\n" + b"x" * MAX_HEAD_BYTES,
    HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (FIRST_PART + 1),
]

NOT_YET = [
    b"",
    b"GET /",
    b"GET / HTTP/1.1\r\nHost: x\r\n",
    sized(4) + b"abc",
    sized(FIRST_PART) + BIG[1:],
    CHUNKED + b"3\r\nabc\r\n",
    CHUNKED + b"5\r\n0\r\n\r\n\r\n",
    CHUNKED + b"ff",
    CHUNKED + (b"1;" + b"x" * 200 + b"\r\na\r\n") * (FIRST_PART // 100),
    CHUNKED + b"%x\r\n" % FIRST_PART + BIG[1:],
    HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
]


@pytest.mark.parametrize("request_", WHOLE)
def test_a_thread_may_take_what_is_whole_or_cannot_become_so(request_):
    assert Arrival().take(request_)


@pytest.mark.parametrize("request_", NOT_YET)
def test_a_request_that_is_not_whole_waits_without_a_thread(request_):
    assert not Arrival().take(request_)


@pytest.mark.parametrize("request_", [sized(3) + b"abc", CHUNKED + b"3\r\nabc\r\n0\r\n"])
def test_it_is_the_same_byte_by_byte(request_):
    arrival = Arrival()
    *firsts, last = (request_[n : n + 1] for n in range(len(request_)))
    assert not any(arrival.take(byte) for byte in firsts)
    assert arrival.take(last)
    assert arrival.received == request_


def test_who_asks_before_sending_a_body_is_answered_by_the_loop_and_not_again():
    arrival = Arrival()
    head = HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert not arrival.take(head)
    assert arrival.asks_first
    assert arrival.take(b"abc")
    assert arrival.received == sized(3) + b"abc"


@pytest.mark.parametrize(
    ("request_", "lane", "is_send"),
    [
        (sized(0), "example.com", True),
        (b"POST /Example.COM/send?x=1 HTTP/1.1\r\n\r\n", "example.com", True),
        (b"POST /exa%6Dple.com//send/ HTTP/1.1\r\n\r\n", "example.com", True),
        (b"POST http://host/example.com/mailgun/send HTTP/1.1\r\n\r\n", "example.com", True),
        (b"GET /example.com/send HTTP/1.1\r\n\r\n", "example.com", False),
        (b"GET /example.com/messages HTTP/1.1\r\n\r\n", "example.com", False),
        (b"GET /healthz HTTP/1.1\r\n\r\n", "healthz", False),
        (b"GET / HTTP/1.1\r\n\r\n", "", False),
        (b"GET //[ HTTP/1.1\r\n\r\n", "", False),
        (b"\x80\xff\r\n", "", False),
    ],
)
def test_the_lane_is_the_first_part_of_the_path(request_, lane, is_send):
    arrival = Arrival()
    arrival.take(request_)
    ticket = arrival.ticket(5.0)
    assert (ticket.lane, ticket.is_send, ticket.since) == (lane, is_send, 5.0)


def test_the_size_is_what_is_to_come():
    arrival = Arrival()
    arrival.take(sized(20 * FIRST_PART))
    assert arrival.ticket(0.0).size == 20 * FIRST_PART
