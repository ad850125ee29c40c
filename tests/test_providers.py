"""The contract that every provider is held to, over real connections to a stand-in."""

from __future__ import annotations

import socket
import ssl
import threading
import time

import pytest
import requests
import trustme
from conftest import PROVIDER_KEY, make_message, make_service
from standins import (
    answer,
    answer_json,
    delayed,
    drip,
    hang,
    reset,
    response,
    send_and_close,
    send_bytes,
    sip,
)

from email_services import transport
from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)
from email_services.providers import find_provider, provider_names

JSON = {"Content-Type": "application/json"}
HTML = {"Content-Type": "text/html"}
PAGE = b"<html><body>Welcome to the hotel's Wi-Fi</body></html>"

ACCEPTED = {
    "mailgun": (200, JSON, b'{"id": "<20261124.1@example.com>", "message": "Queued. Thank you."}'),
    "sendgrid": (202, {"X-Message-Id": "14c5d75ce93"}, b""),
}
"""What each provider behind HTTP answers when it takes a message."""

IDS = {"mailgun": "<20261124.1@example.com>", "sendgrid": "14c5d75ce93"}

ID_IS_IN_A_HEADER = {"sendgrid"}
"""Where the id is known though the body is cut."""

AUTHORIZATION = {
    "mailgun": "Basic YXBpOlNHLmtleS1hdC10aGUtcHJvdmlkZXI=",
    "sendgrid": f"Bearer {PROVIDER_KEY}",
}
"""The header that the provider's key makes."""

ERRORS = {
    "mailgun": lambda text: {"message": text},
    "sendgrid": lambda text: {"errors": [{"message": text}]},
}
"""How each provider says what is wrong."""

every_http_provider = pytest.mark.parametrize("provider", sorted(ACCEPTED))


def outcome_of(service, message=None, timeout=5.0):
    """The id for an accepted message, else the error."""
    try:
        return service.send(message or make_message(), timeout)
    except ProviderError as error:
        return error


def test_every_provider_is_held_to_this_contract():
    assert provider_names() == sorted([*ACCEPTED, "maildir"])


@every_http_provider
def test_an_accepted_message_has_the_providers_id(provider, stand_in):
    server = stand_in(answer(*ACCEPTED[provider]))
    assert outcome_of(make_service(provider, server.url)) == IDS[provider]
    assert len(server.requests) == 1


STATUSES = {
    **dict.fromkeys((400, 413, 415, 422), MessageRejected),
    **dict.fromkeys((401, 402, 403, 404, 405), AccountRefused),
    429: RateLimited,
    **dict.fromkeys((300, 301, 302, 303, 307, 308), ServiceUnavailable),
    **dict.fromkeys((406, 408, 409, 418, 451), ServiceUnavailable),
    **dict.fromkeys((500, 501, 502, 503, 504, 520, 599), ServiceUnavailable),
}
ODD_BODIES = {
    "nothing": ({}, b""),
    "a page": (HTML, PAGE),
    "JSON of another shape": (JSON, b'{"message": {"a": [1]}, "errors": {"b": null}, "id": 7}'),
    "a list": (JSON, b'[null, 1, "x"]'),
    "deep JSON": (JSON, b"[" * 60_000),
    "half a surrogate pair": (JSON, b'{"message": "\\ud800", "errors": [{"message": "\\ud800"}]}'),
    "not UTF-8": (JSON, b'{"message": "\xff"}'),
    "errors of the wrong kind": (JSON, b'{"errors": [1, null, {"message": 3}]}'),
    "a megabyte": (HTML, b"x" * 1_000_000),
}


@every_http_provider
@pytest.mark.parametrize("status", STATUSES)
def test_each_status_means_what_the_design_says(provider, status, stand_in):
    headers = {"Location": "/elsewhere"} if status < 400 else {}
    server = stand_in(answer(status, headers))
    error = outcome_of(make_service(provider, server.url))
    assert type(error) is STATUSES[status]
    assert error.reason == f"HTTP {status}."
    assert len(server.requests) == 1, "neither retried nor redirected"


@every_http_provider
@pytest.mark.parametrize("body", ODD_BODIES)
@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_an_odd_body_changes_no_meaning(provider, status, body, stand_in):
    server = stand_in(answer(status, *ODD_BODIES[body]))
    assert type(outcome_of(make_service(provider, server.url))) is STATUSES[status]


def tls_server(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@every_http_provider
def test_a_refused_connection_is_not_sent(provider, stand_in):
    server = stand_in()
    server.close()
    error = outcome_of(make_service(provider, server.url))
    assert type(error) is ServiceUnavailable
    assert error.reason == "The connection was refused."


@every_http_provider
def test_a_name_that_does_not_exist_is_not_sent(provider):
    error = outcome_of(make_service(provider, "http://provider.invalid"))
    assert type(error) is ServiceUnavailable
    assert error.reason == "Its host name was not found."


@every_http_provider
def test_a_host_name_that_cannot_be_is_not_sent(provider):
    error = outcome_of(make_service(provider, f"http://{'x' * 70}.example"))
    assert type(error) is ServiceUnavailable
    assert error.reason == "Its host name was not found."


@every_http_provider
def test_a_slow_name_server_is_not_waited_for(provider, monkeypatch):
    test_over = threading.Event()

    def slow(*args, **kwargs):
        test_over.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    started = time.monotonic()
    error = outcome_of(make_service(provider, "http://slow.example"), timeout=0.3)
    test_over.set()
    assert type(error) is ServiceUnavailable
    assert error.reason == "No connection within 0.3 s."
    assert time.monotonic() - started < 1


@every_http_provider
def test_a_connection_that_is_never_taken_is_not_sent(provider):
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.setblocking(False)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        service = make_service(provider, f"http://127.0.0.1:{full.getsockname()[1]}")
        error = outcome_of(service, timeout=0.3)
        for filler in fillers:
            filler.close()
    assert type(error) is ServiceUnavailable
    assert error.reason == "No connection within 0.3 s."


@every_http_provider
def test_a_certificate_that_nobody_trusts_is_not_sent(provider, authority, stand_in):
    server = stand_in(answer(*ACCEPTED[provider]), tls=tls_server(authority))
    error = outcome_of(make_service(provider, server.url))
    assert type(error) is ServiceUnavailable
    assert error.reason == "The TLS handshake failed."
    assert server.requests == []


@every_http_provider
def test_plain_http_behind_https_is_not_sent(provider, stand_in):
    server = stand_in(answer(*ACCEPTED[provider]))
    error = outcome_of(make_service(provider, server.url.replace("http:", "https:")), timeout=1)
    assert type(error) is ServiceUnavailable


@every_http_provider
def test_a_silent_tls_handshake_is_not_sent(provider, stand_in):
    server = stand_in(silent=True)
    service = make_service(provider, server.url.replace("http:", "https:"))
    error = outcome_of(service, timeout=0.3)
    assert type(error) is ServiceUnavailable
    assert error.reason == "No connection within 0.3 s."


@every_http_provider
def test_tls_with_a_trusted_authority_works_and_holds_the_deadline(
    provider, authority, stand_in, tmp_path, monkeypatch
):
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    server = stand_in(answer(*ACCEPTED[provider]), tls=tls_server(authority))
    service = make_service(provider, server.url)
    assert [outcome_of(service), outcome_of(service)] == [IDS[provider]] * 2
    assert server.connections == 1
    server.behaviour = drip(response(*ACCEPTED[provider]))
    started = time.monotonic()
    assert type(outcome_of(service, timeout=0.3)) is OutcomeUnknown
    assert time.monotonic() - started < 1


UNKNOWN = {
    "no answer": hang,
    "headers that drip": drip(response(200, JSON, b"{}")),
    "a reset after the request": reset,
    "an end without an answer": send_and_close(b""),
    "something that is not HTTP": send_and_close(b"220 mail.example.com ESMTP\r\n"),
    "half a status line": send_and_close(b"HTTP/1.1 20"),
    "a header that makes no sense": send_and_close(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "an interim answer": answer(103, {"Link": "</style.css>"}),
    "a proxy's page": answer(200, HTML, PAGE),
    "a proxy's page, 202": answer(202, HTML, PAGE),
    "a list": answer_json(200, ["id"]),
    "a bare word": answer_json(200, "ok"),
    "somebody else's JSON": answer_json(200, {"error": "login required"}),
    "nothing, with a success that is not theirs": answer(204),
}


@every_http_provider
@pytest.mark.parametrize("behaviour", UNKNOWN)
def test_after_the_request_is_written_only_the_providers_word_counts(provider, behaviour, stand_in):
    server = stand_in(UNKNOWN[behaviour])
    timeout = 0.5 if behaviour in ("no answer", "headers that drip") else 30
    started = time.monotonic()
    error = outcome_of(make_service(provider, server.url), timeout=timeout)
    assert type(error) is OutcomeUnknown
    assert len(server.requests) == 1
    assert time.monotonic() - started < 5


@every_http_provider
def test_a_reset_while_the_request_is_written_is_not_sent(provider, stand_in):
    server = stand_in(reset, read_body=False)
    message = make_message(raw_text_body="x" * 9_000_000)
    error = outcome_of(make_service(provider, server.url), message)
    assert type(error) is ServiceUnavailable
    assert error.reason == "The connection was cut."


@every_http_provider
def test_a_request_that_nobody_reads_is_not_sent(provider, stand_in):
    server = stand_in(hang, read_body=False)
    message = make_message(raw_text_body="x" * 9_000_000)
    error = outcome_of(make_service(provider, server.url), message, timeout=0.5)
    assert type(error) is ServiceUnavailable


@every_http_provider
@pytest.mark.parametrize("tls", [False, True])
def test_a_slow_name_server_and_a_slow_reader_share_the_time(
    provider, tls, authority, stand_in, tmp_path, monkeypatch
):
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    context = tls_server(authority) if tls else None
    server = stand_in(sip, tls=context, read_body=False, receive_buffer=16384)
    look_up = socket.getaddrinfo

    def slow(host, *args, **kwargs):
        if host == "localhost":
            threading.Event().wait(0.8)
        return look_up("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    message = make_message(raw_text_body="x" * 9_000_000)
    service = make_service(provider, server.url.replace("127.0.0.1", "localhost"))
    started = time.monotonic()
    error = outcome_of(service, message, timeout=1)
    assert type(error) is ServiceUnavailable
    assert time.monotonic() - started < 1.5


@every_http_provider
def test_a_connection_that_comes_too_late_is_closed(provider, stand_in, monkeypatch):
    server = stand_in(answer(*ACCEPTED[provider]))
    connect = transport.create_connection

    def slow(*args, **kwargs):
        threading.Event().wait(0.2)
        return connect(*args, **kwargs)

    monkeypatch.setattr(transport, "create_connection", slow)
    error = outcome_of(make_service(provider, server.url), timeout=0.1)
    assert type(error) is ServiceUnavailable
    server.wait_until_closed()
    assert server.requests == []


def accepted_but_for_the_body(provider: str) -> bytes:
    status, headers, body = ACCEPTED[provider]
    head = response(status, headers, body + b" " * 100)
    return head[: head.index(b"\r\n\r\n") + 4]


CUT = {
    "cut": lambda head: send_and_close(head + b'{"id'),
    "missing": send_and_close,
    "dripping": lambda head: drip(b" " * 100, after=head),
}


@every_http_provider
@pytest.mark.parametrize("cut", CUT)
def test_accepted_stays_accepted_with_its_body(provider, cut, stand_in):
    server = stand_in(CUT[cut](accepted_but_for_the_body(provider)))
    started = time.monotonic()
    result = outcome_of(make_service(provider, server.url), timeout=0.5)
    assert result == (IDS[provider] if provider in ID_IS_IN_A_HEADER else None)
    assert time.monotonic() - started < 2


WITHOUT_ID = {
    "mailgun": [b'{"message": "Queued. Thank you."}', b"{}", b'{"id": 7}', b'{"id": null}'],
    "sendgrid": [b""],
}


@pytest.mark.parametrize(
    ("provider", "body"), [(name, body) for name in WITHOUT_ID for body in WITHOUT_ID[name]]
)
def test_accepted_without_an_id_is_sent(provider, body, stand_in):
    status = ACCEPTED[provider][0]
    server = stand_in(answer(status, JSON if body else {}, body))
    assert outcome_of(make_service(provider, server.url)) is None


@every_http_provider
def test_a_connection_is_used_again(provider, stand_in):
    server = stand_in(answer(*ACCEPTED[provider]))
    service = make_service(provider, server.url)
    assert [outcome_of(service) for _ in range(5)] == [IDS[provider]] * 5
    assert (len(server.requests), server.connections) == (5, 1)


@every_http_provider
def test_a_connection_is_used_again_after_an_error(provider, stand_in):
    server = stand_in(answer(500, HTML, PAGE))
    service = make_service(provider, server.url)
    outcomes = {type(outcome_of(service)) for _ in range(3)}
    assert (outcomes, server.connections) == ({ServiceUnavailable}, 1)


@every_http_provider
def test_a_connection_the_provider_closed_is_not_used_again(provider, stand_in):
    server = stand_in(send_and_close(response(*ACCEPTED[provider])))
    service = make_service(provider, server.url)
    for _ in range(3):
        assert outcome_of(service) == IDS[provider]
        server.wait_until_closed()
    assert server.connections == 3


@every_http_provider
def test_a_connection_that_idled_long_is_not_used_again(provider, stand_in, monkeypatch):
    server = stand_in(answer(*ACCEPTED[provider]))
    service = make_service(provider, server.url)
    monkeypatch.setattr(transport, "MAX_IDLE_SECONDS", 0.0)
    assert [outcome_of(service), outcome_of(service)] == [IDS[provider]] * 2
    assert server.connections == 2


@every_http_provider
def test_cookies_and_netrc_are_ignored(provider, stand_in, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    status, headers, body = ACCEPTED[provider]
    server = stand_in(answer(status, {**headers, "Set-Cookie": "a=b"}, body))
    service = make_service(provider, server.url)
    for _ in range(2):
        outcome_of(service)
    assert "cookie" not in server.requests[1].headers
    assert server.requests[1].headers["authorization"] == AUTHORIZATION[provider]


@every_http_provider
def test_a_proxy_of_the_environment_is_used(provider, stand_in, monkeypatch):
    proxy = stand_in(answer(*ACCEPTED[provider]))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert outcome_of(make_service(provider, "http://provider.example")) == IDS[provider]
    assert proxy.requests[0].path.startswith("http://provider.example/")


RETRY = {
    "seconds": ({"Retry-After": "120"}, 120),
    "a date": ({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}, None),
    "a date long past": ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    "rubbish": ({"Retry-After": "soon"}, None),
    "nothing": ({}, None),
}


@every_http_provider
@pytest.mark.parametrize("retry", RETRY)
def test_retry_after_is_read(provider, retry, stand_in):
    headers, seconds = RETRY[retry]
    server = stand_in(answer(429, headers))
    error = outcome_of(make_service(provider, server.url))
    if retry == "a date":
        assert error.retry_after > 1_000_000
    else:
        assert error.retry_after == seconds


@every_http_provider
@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_provider_that_echoes_everything_leaks_nothing(provider, status, stand_in):
    body = "Nobody else should read this."
    echo = f"{PROVIDER_KEY} {body}"
    server = stand_in(answer_json(status, ERRORS[provider](echo)))
    error = outcome_of(make_service(provider, server.url), make_message(raw_text_body=body))
    assert error.reason == f"HTTP {status}: [removed] [removed]"
    server.behaviour = answer_json(status, ERRORS[provider](f"near '{body[:12]}...'"))
    error = outcome_of(make_service(provider, server.url), make_message(raw_text_body=body))
    if status != 401:  # what is said of the account is for operators
        assert error.summary == f"HTTP {status}."


def test_what_no_database_takes_is_taken_out_of_a_providers_text(stand_in):
    server = stand_in(answer_json(200, {"id": "<\ud800\0>"}))
    service = make_service("mailgun", server.url)
    assert outcome_of(service) == "<\ufffd\ufffd>"
    server.behaviour = answer_json(401, {"message": "bad \ud800\0"})
    assert outcome_of(service).reason == "HTTP 401: bad \ufffd\ufffd"


def test_mailguns_key_is_taken_out_as_it_is_sent_too(stand_in):
    sent = AUTHORIZATION["mailgun"]
    server = stand_in(answer_json(401, {"message": f"What is {sent}?"}))
    error = outcome_of(make_service("mailgun", server.url))
    assert error.reason == "HTTP 401: What is Basic [removed]?"


def test_a_date_that_cannot_be_is_no_crash(stand_in):
    text = "try again after Mon, 01 Jan 99999999999999999999 00:00:00 UTC"
    server = stand_in(answer_json(429, {"message": text}))
    error = outcome_of(make_service("mailgun", server.url))
    assert (type(error), error.retry_after) == (RateLimited, None)


@every_http_provider
def test_a_key_is_in_no_representation(provider):
    service = make_service(provider, "http://127.0.0.1:1")
    assert PROVIDER_KEY not in f"{service!r} {service.settings!r} {service.transport!r}"


def test_every_exception_of_requests_is_mapped_or_known_to_be_a_bug():
    bugs = {
        requests.exceptions.InvalidJSONError,  # raised where we would encode or decode with it
        requests.exceptions.JSONDecodeError,
        requests.exceptions.HTTPError,  # raised by raise_for_status, which is not called
        requests.exceptions.URLRequired,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,  # base_url is checked at the start
        requests.exceptions.InvalidProxyURL,
        requests.exceptions.TooManyRedirects,  # none is followed
        requests.exceptions.StreamConsumedError,
        requests.exceptions.RetryError,  # nothing is retried
        requests.exceptions.UnrewindableBodyError,
    }
    everything = {
        value
        for value in vars(requests.exceptions).values()
        if isinstance(value, type) and issubclass(value, requests.RequestException)
    } - {requests.RequestException}
    unmapped = {error for error in everything if not issubclass(error, transport.FAULTS)}
    assert unmapped == bugs


MAILGUN_TEXTS = [
    (401, answer(401, {"Content-Type": "text/html"}, b"Forbidden"), AccountRefused, None),
    (
        "quota",
        answer_json(
            420,
            {
                "message": "Domain example.com is not allowed to send: recipient limit exceeded, "
                "try again after Mon, 25 Aug 2125 07:00:31 UTC"
            },
        ),
        AccountRefused,
        1_000_000,
    ),
    (
        "rate",
        answer_json(
            429, {"message": "account-requests-per-sec limit exceeded, try again after 120 seconds"}
        ),
        RateLimited,
        120,
    ),
    (
        "not activated",
        answer_json(400, {"message": "Please activate your Mailgun account."}),
        AccountRefused,
        None,
    ),
    (
        "address",
        answer_json(400, {"message": "to parameter is not a valid address"}),
        MessageRejected,
        None,
    ),
    ("wrong domain", answer_json(404, {"message": "Domain not found"}), AccountRefused, None),
    ("magnificent", answer(200, HTML, b"Mailgun Magnificent API"), OutcomeUnknown, None),
]


@pytest.mark.parametrize(("behaviour", "expected", "at_least"), [row[1:] for row in MAILGUN_TEXTS])
def test_mailguns_own_texts_are_understood(behaviour, expected, at_least, stand_in):
    error = outcome_of(make_service("mailgun", stand_in(behaviour).url))
    assert type(error) is expected
    assert (error.retry_after or 0) >= (at_least or 0)


SENDGRID_TEXTS = [
    (401, "Maximum credits exceeded", AccountRefused),
    (401, "The provided authorization grant is invalid, expired, or revoked", AccountRefused),
    (403, "The from address does not match a verified Sender Identity.", AccountRefused),
    (400, "Does not contain a valid address.", MessageRejected),
    (413, "Payload too large", MessageRejected),
]


@pytest.mark.parametrize(("status", "text", "expected"), SENDGRID_TEXTS)
def test_sendgrids_own_texts_are_understood(status, text, expected, stand_in):
    behaviour = answer_json(status, {"errors": [{"message": text, "field": None, "help": None}]})
    error = outcome_of(make_service("sendgrid", stand_in(behaviour).url))
    assert type(error) is expected
    assert error.reason == f"HTTP {status}: {text}"


def test_sendgrid_names_the_end_of_a_rate_limit_in_unix_time(stand_in):
    reset_at = str(int(time.time()) + 300)
    server = stand_in(answer_json(429, {}, {"X-RateLimit-Reset": reset_at}))
    error = outcome_of(make_service("sendgrid", server.url))
    assert 290 < error.retry_after <= 300


def test_a_body_that_begins_like_a_sendgrid_key_is_refused_by_its_sdk_only(stand_in):
    message = make_message(raw_text_body="SG.abc.def is a key")
    server = stand_in(answer(*ACCEPTED["mailgun"]))
    assert outcome_of(make_service("mailgun", server.url), message) == IDS["mailgun"]
    error = outcome_of(make_service("sendgrid", server.url), message)
    assert type(error) is MessageRejected
    assert len(server.requests) == 1


@every_http_provider
def test_bcc_alone_is_refused_rather_than_changed(provider, stand_in):
    message = make_message(to_recipients=[], to_bcc=["ada@example.org"])
    server = stand_in(answer(*ACCEPTED[provider]))
    assert type(outcome_of(make_service(provider, server.url), message)) is MessageRejected
    assert server.requests == []


def test_the_provider_of_each_module_is_called_like_it():
    for name in provider_names():
        assert find_provider(name).__module__ == f"email_services.providers.{name}"


def test_a_slow_provider_has_its_whole_timeout(stand_in):
    server = stand_in(delayed(answer(*ACCEPTED["sendgrid"]), 0.3))
    assert outcome_of(make_service("sendgrid", server.url), timeout=5) == IDS["sendgrid"]


def test_an_answer_that_came_before_the_body_was_read_counts(stand_in):
    server = stand_in(send_bytes(response(413)), read_body=False)
    assert type(outcome_of(make_service("mailgun", server.url))) is MessageRejected
