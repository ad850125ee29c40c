"""What gunicorn refuses is an error like any other."""

from __future__ import annotations

import json
import socket
from email.parser import BytesParser

import pytest
import requests
from conftest import make_config
from servers import Server

from browsable_api.request import STRANGERS_BYTES

SECRET = b"not-for-the-log"
SEND = b"POST /example.com/send HTTP/1.1\r\nHost: x\r\n"
REFUSED = {
    "an address of 9 kB": (b"GET /?key=%b HTTP/1.1\r\n\r\n" % (SECRET * 600), 414),
    "a header of 70 kB": (SEND + b"Authorization: Bearer %b\r\n\r\n" % (SECRET * 5000), 431),
    "200 headers": (SEND + b"X-Key: %b\r\n" % SECRET * 200 + b"\r\n", 431),
    "a header without a colon": (SEND + b"Authorization Bearer %b\r\n\r\n" % SECRET, 400),
    "no request line": (SECRET + b"\r\n\r\n", 400),
    "another version": (b"GET /%b HTTP/9.1\r\n\r\n" % SECRET, 400),
    "two lengths": (SEND + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
    "another expectation": (SEND + b"Expect: %b\r\n\r\n" % SECRET, 417),
    "another transfer coding": (
        SEND + b"Transfer-Encoding: %b\r\n\r\n0\r\n\r\n" % SECRET,
        501,
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    running = Server(folder, make_config(folder), WEB_CONCURRENCY="1", LOG_LEVEL="debug")
    yield running
    running.kill()


def asked(server: Server, request: bytes) -> tuple[int, dict, dict]:
    """Status, headers and body of what is answered."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(request)
        raw.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    line, _, headers = head.partition(b"\r\n")
    return int(line.split()[1]), dict(BytesParser().parsebytes(headers)), json.loads(body)


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_refused_unread_is_an_error_like_any_other(refused, server):
    request, expected = REFUSED[refused]
    status, headers, body = asked(server, request)
    assert (status, headers["Content-Type"]) == (expected, "application/json")
    assert sorted(body) == ["code", "error"]
    assert body["error"].endswith(".")
    assert SECRET.decode() not in json.dumps([headers, body])
    usual = requests.get(f"{server.url}/nothing", timeout=20).headers
    protecting = {name for name in usual if name.startswith(("Content-Security", "X-", "Referrer"))}
    protecting.remove("X-Request-ID")
    assert len(protecting) == 3
    assert headers["X-Request-ID"] != usual["X-Request-ID"]
    for name in (*protecting, "Cache-Control"):
        assert headers[name] == usual[name]
    assert SECRET.decode() not in server.log
    assert "Traceback" not in server.log
    assert f"127.0.0.1 {expected}, not read" in server.log


def test_a_stranger_who_stops_at_1_mb_is_answered_and_not_waited_for(server):
    head = SEND + b"Content-Type: application/json\r\nContent-Length: 3000000\r\n\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(head + b" " * STRANGERS_BYTES)
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_header_moves_the_service_to_no_other_address(server):
    for name in ("SCRIPT_NAME", "Script-Name", "PATH_INFO"):
        answer = requests.get(f"{server.url}/healthz", headers={name: "/x"}, timeout=20)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    listing = requests.get(server.url, headers={"SCRIPT_NAME": "/"}, timeout=20).json()
    assert listing["email_services"][0]["url"] == f"{server.url}/example.com"
