"""The contract that every provider is held to, over real connections to a stand-in."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from datetime import datetime, timezone
from types import SimpleNamespace

import pytest
import requests
import trustme
from clocks import FOREVER, little_work, no_waiting
from contract import (
    HTML,
    JSON,
    PROVIDER_KEY,
    contract_of,
    http_providers,
    make_message,
    make_service,
    outcome_of,
    seen,
)
from messages import PDF, PNG
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
from email_services.abstract import Acceptance
from email_services.exceptions import (
    AccountRefused,
    CannotCarry,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)
from email_services.message import EmailMessage
from email_services.providers import find_provider, provider_names

DRIPS = 2 * FOREVER * 20
"""Bytes, of which 20 come in a second."""

PAGE = b"<html><body>Welcome to the hotel's Wi-Fi</body></html>"

every_http_provider = pytest.mark.parametrize("provider", http_providers())
every_batching_provider = pytest.mark.parametrize(
    "provider", [name for name in http_providers() if find_provider(name).max_batch > 1]
)


def test_every_provider_is_held_to_this_contract():
    assert {*provider_names()} - {*http_providers()} == {"maildir", "smtp"}
    assert all(contract_of(provider) for provider in http_providers())


@every_http_provider
def test_an_accepted_message_has_the_providers_id(provider, stand_in):
    server = stand_in(answer(*contract_of(provider).accepted))
    assert outcome_of(make_service(provider, server.url)) == contract_of(provider).message_id
    assert len(server.requests) == 1


STATUSES = {
    **dict.fromkeys((400, 413, 415, 422), MessageRejected),
    **dict.fromkeys((402, 403, 404, 405), AccountRefused),
    401: LoginRefused,
    429: RateLimited,
    **dict.fromkeys((300, 301, 302, 303, 307, 308), ServiceUnavailable),
    **dict.fromkeys((406, 408, 409, 418, 451), ServiceUnavailable),
    **dict.fromkeys((500, 501, 503, 505, 519, 525, 599), ServiceUnavailable),
    **dict.fromkeys((502, 504, 520, 521, 522, 523, 524), OutcomeUnknown),
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
    assert type(error) is {**STATUSES, **contract_of(provider).statuses}[status]
    assert error.reason == f"HTTP {status}."
    assert len(server.requests) == 1, "neither retried nor redirected"


@every_http_provider
@pytest.mark.parametrize("body", ODD_BODIES)
@pytest.mark.parametrize("status", [400, 401, 429, 500, 502, 524])
def test_an_odd_body_changes_no_meaning(provider, status, body, stand_in):
    server = stand_in(answer(status, *ODD_BODIES[body]))
    expected = {**STATUSES, **contract_of(provider).statuses}[status]
    assert type(outcome_of(make_service(provider, server.url))) is expected


UNAVAILABLE = {
    "nothing": (answer(503), ServiceUnavailable),
    "nothing, as a page": (answer(503, HTML), ServiceUnavailable),
    "JSON": (answer_json(503, {"error": "overloaded"}), ServiceUnavailable),
    "a gateway's page": (answer(503, HTML, b"<h1>503 Backend fetch failed</h1>"), OutcomeUnknown),
    "a gateway's text": (
        answer(503, {"Content-Type": "text/plain"}, b"upstream connect error or disconnect/reset"),
        OutcomeUnknown,
    ),
}


@every_http_provider
@pytest.mark.parametrize("said", UNAVAILABLE)
def test_unavailable_is_not_sent_unless_somebody_else_says_it(provider, said, stand_in):
    behaviour, expected = UNAVAILABLE[said]
    assert type(outcome_of(make_service(provider, stand_in(behaviour).url))) is expected


@every_http_provider
def test_unavailable_in_its_own_words_is_not_sent(provider, stand_in):
    server = stand_in(answer_json(503, contract_of(provider).error("Come back later.")))
    error = outcome_of(make_service(provider, server.url))
    assert (type(error), error.reason) == (ServiceUnavailable, "HTTP 503: Come back later.")


ITS_OWN_ANSWERS = [(name, said) for name in http_providers() for said in contract_of(name).answers]


@pytest.mark.parametrize(("provider", "said"), ITS_OWN_ANSWERS)
def test_its_own_answers_are_understood(provider, said, stand_in):
    behaviour, expected = contract_of(provider).answers[said]
    server = stand_in(answer(*behaviour))
    assert type(outcome_of(make_service(provider, server.url))) is expected


LOOKS = [(name, said) for name in http_providers() for said in contract_of(name).looks]


@pytest.mark.parametrize(("provider", "said"), LOOKS)
def test_an_account_is_looked_at_without_sending(provider, said, stand_in):
    answers, expected = contract_of(provider).looks[said]
    left = [answer(*one) for one in answers]

    def in_turn(exchange):
        left.pop(0)(exchange)

    server = stand_in(in_turn)
    service = make_service(provider, server.url)
    try:
        standing = service.look_at_account(5)
    except ProviderError as error:
        standing = type(error)
    assert standing == expected
    assert not left
    assert {request.method for request in server.requests} == {"GET"}
    assert not any(request.body for request in server.requests)
    shown = contract_of(provider).secrets.items()
    assert all(r.headers[name] == secret for r in server.requests for name, secret in shown)


@every_http_provider
def test_a_good_account_is_known_wherever_one_can_be_looked_at(provider):
    looks = contract_of(provider).looks
    assert bool(find_provider(provider).account_path) == ("good" in looks)
    assert not looks or looks["good"][1].account


@every_http_provider
@pytest.mark.parametrize("body", ODD_BODIES)
def test_an_odd_answer_says_nothing_good_of_an_account(provider, body, stand_in):
    service = make_service(provider, stand_in(answer(200, *ODD_BODIES[body])).url)
    try:
        said = service.look_at_account(5).domain
    except OutcomeUnknown:
        said = None
    assert said is not True


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
        test_over.wait(FOREVER)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with no_waiting():
        error = outcome_of(make_service(provider, "http://slow.example"), timeout=0.3)
    test_over.set()
    assert type(error) is ServiceUnavailable
    assert error.reason == "No connection within 0.3 s."


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
    server = stand_in(answer(*contract_of(provider).accepted), tls=tls_server(authority))
    error = outcome_of(make_service(provider, server.url))
    assert type(error) is ServiceUnavailable
    assert error.reason == "The TLS handshake failed."
    assert server.requests == []


@every_http_provider
def test_plain_http_behind_https_is_not_sent(provider, stand_in):
    server = stand_in(answer(*contract_of(provider).accepted))
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
    server = stand_in(answer(*contract_of(provider).accepted), tls=tls_server(authority))
    service = make_service(provider, server.url)
    assert [outcome_of(service), outcome_of(service)] == [contract_of(provider).message_id] * 2
    assert server.connections == 1
    status, headers, body = contract_of(provider).accepted
    server.behaviour = drip(response(status, {"X-Long": "x" * DRIPS, **headers}, body))
    with no_waiting():
        assert type(outcome_of(service, timeout=1)) is OutcomeUnknown


UNKNOWN = {
    "no answer": hang,
    "headers that drip": drip(response(200, {"X-Long": "x" * DRIPS}, b"{}")),
    "a reset after the request": reset,
    "an end without an answer": send_and_close(b""),
    "something that is not HTTP": send_and_close(b"220 mail.example.com ESMTP\r\n"),
    "half a status line": send_and_close(b"HTTP/1.1 20"),
    "a header that makes no sense": send_and_close(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "an interim answer alone": send_and_close(response(103, {"Link": "</style.css>"})),
    "a proxy's page": answer(200, HTML, PAGE),
    "a proxy's page, 202": answer(202, HTML, PAGE),
    "a list": answer_json(200, ["id"]),
    "a bare word": answer_json(200, "ok"),
    "somebody else's JSON": answer_json(200, {"error": "login required"}),
    "an empty object": answer_json(200, {}),
    "an empty object, 201": answer_json(201, {}),
    "JSON that refuses": answer_json(200, {"message": "Forbidden"}),
    "nothing, with a success that is not theirs": answer(204),
    **{
        f"a proxy's page that was cut, {status}": send_and_close(
            response(status, HTML, PAGE)[: -len(PAGE)]
        )
        for status in (200, 201, 202)
    },
}


@every_http_provider
@pytest.mark.parametrize("behaviour", UNKNOWN)
def test_after_the_request_is_written_only_the_providers_word_counts(provider, behaviour, stand_in):
    server = stand_in(UNKNOWN[behaviour])
    timeout = 1 if behaviour in ("no answer", "headers that drip") else FOREVER
    with no_waiting():
        error = outcome_of(make_service(provider, server.url, timeout), timeout=timeout)
    assert type(error) is OutcomeUnknown
    assert len(server.requests) == 1


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
    passed = [0.0]

    def slow(host, *args, **kwargs):
        if host == "localhost":
            passed.append(FOREVER - 0.5)
        return look_up("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[-1])
    monkeypatch.setattr(transport, "time", later)
    message = make_message(raw_text_body="x" * 9_000_000)
    url = server.url.replace("127.0.0.1", "localhost")
    service = make_service(provider, url, FOREVER)
    with no_waiting():
        error = outcome_of(service, message, timeout=FOREVER)
    assert type(error) is ServiceUnavailable
    assert len(passed) == 2


@every_http_provider
def test_a_connection_that_comes_too_late_is_closed(provider, stand_in, monkeypatch):
    server = stand_in(answer(*contract_of(provider).accepted))
    connect = transport.create_connection

    def slow(*args, **kwargs):
        threading.Event().wait(0.2)
        return connect(*args, **kwargs)

    monkeypatch.setattr(transport, "create_connection", slow)
    error = outcome_of(make_service(provider, server.url), timeout=0.1)
    assert type(error) is ServiceUnavailable
    server.wait_until_closed()
    assert server.requests == []


def head_of(status: int, headers: dict[str, str], body: bytes) -> bytes:
    """An answer whose body is still to come, and longer than anybody waits for."""
    whole = response(status, headers, body + b" " * DRIPS)
    return whole[: whole.index(b"\r\n\r\n") + 4]


CUT = {
    "cut": lambda head: send_and_close(head + b'{"id'),
    "missing": send_and_close,
    "dripping": lambda head: drip(b" " * DRIPS, after=head),
}


@every_http_provider
@pytest.mark.parametrize("cut", CUT)
def test_accepted_stays_accepted_unless_it_may_say_refused(provider, cut, stand_in):
    contract = contract_of(provider)
    server = stand_in(CUT[cut](head_of(*contract.accepted)))
    with no_waiting():
        result = outcome_of(make_service(provider, server.url), timeout=1)
    if find_provider(provider).refuses_in_2xx:
        assert type(result) is OutcomeUnknown
    else:
        assert result == (contract.message_id if contract.id_is_in_a_header else None)


@every_http_provider
def test_what_was_read_before_it_was_cut_decides(provider, stand_in):
    status, headers, body = contract_of(provider).accepted
    server = stand_in(send_and_close(response(status, headers, body + b" " * 100)[:-50]))
    assert outcome_of(make_service(provider, server.url)) == contract_of(provider).message_id


REFUSALS_IN_2XX = [
    (provider, said)
    for provider, said in ITS_OWN_ANSWERS
    if contract_of(provider).answers[said][0][0] in range(200, 300)
    and contract_of(provider).answers[said][1] is not OutcomeUnknown
]


def test_a_provider_whose_2xx_may_refuse_says_so():
    declared = {name for name in http_providers() if find_provider(name).refuses_in_2xx}
    assert {provider for provider, _ in REFUSALS_IN_2XX} == declared


@pytest.mark.parametrize(("provider", "said"), REFUSALS_IN_2XX)
def test_a_refusal_that_was_cut_is_never_called_sent(provider, said, stand_in):
    (status, headers, body), _ = contract_of(provider).answers[said]
    for length in range(len(body)):
        cut = response(status, headers, body)[: length - len(body)]
        error = outcome_of(make_service(provider, stand_in(send_and_close(cut)).url))
        assert isinstance(error, ProviderError), body[:length]


@pytest.mark.parametrize(
    ("provider", "body"),
    [(name, body) for name in http_providers() for body in contract_of(name).without_id],
)
def test_accepted_without_an_id_is_sent(provider, body, stand_in):
    status = contract_of(provider).accepted[0]
    server = stand_in(answer(status, JSON if body else {}, body))
    assert outcome_of(make_service(provider, server.url)) is None


@every_http_provider
def test_a_connection_is_used_again(provider, stand_in):
    server = stand_in(answer(*contract_of(provider).accepted))
    service = make_service(provider, server.url)
    assert [outcome_of(service) for _ in range(5)] == [contract_of(provider).message_id] * 5
    assert (len(server.requests), server.connections) == (5, 1)


@every_http_provider
def test_a_connection_is_used_again_after_an_error(provider, stand_in):
    server = stand_in(answer(500, HTML, PAGE))
    service = make_service(provider, server.url)
    outcomes = {type(outcome_of(service)) for _ in range(3)}
    assert (outcomes, server.connections) == ({ServiceUnavailable}, 1)


@every_http_provider
def test_a_connection_the_provider_closed_is_not_used_again(provider, stand_in):
    server = stand_in(send_and_close(response(*contract_of(provider).accepted)))
    service = make_service(provider, server.url)
    for _ in range(3):
        assert outcome_of(service) == contract_of(provider).message_id
        server.wait_until_closed()
    assert server.connections == 3


@every_http_provider
def test_a_connection_that_idled_long_is_not_used_again(provider, stand_in, monkeypatch):
    server = stand_in(answer(*contract_of(provider).accepted))
    service = make_service(provider, server.url)
    monkeypatch.setattr(transport, "MAX_IDLE_SECONDS", 0.0)
    assert [outcome_of(service), outcome_of(service)] == [contract_of(provider).message_id] * 2
    assert server.connections == 2


@every_http_provider
def test_cookies_and_netrc_are_ignored(provider, stand_in, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    status, headers, body = contract_of(provider).accepted
    server = stand_in(answer(status, {**headers, "Set-Cookie": "a=b"}, body))
    service = make_service(provider, server.url)
    for _ in range(2):
        outcome_of(service)
    assert "cookie" not in server.requests[1].headers
    secrets = contract_of(provider).secrets
    assert {name: server.requests[1].headers.get(name) for name in secrets} == secrets


@every_http_provider
def test_a_proxy_of_the_environment_is_used(provider, stand_in, monkeypatch):
    proxy = stand_in(answer(*contract_of(provider).accepted))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert (
        outcome_of(make_service(provider, "http://provider.example"))
        == contract_of(provider).message_id
    )
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
    server = stand_in(answer_json(status, contract_of(provider).error(echo)))
    error = outcome_of(make_service(provider, server.url), make_message(raw_text_body=body))
    assert error.reason == f"HTTP {status}: [removed] [removed]"
    server.behaviour = answer_json(status, contract_of(provider).error(f"near '{body[:12]}...'"))
    error = outcome_of(make_service(provider, server.url), make_message(raw_text_body=body))
    assert error.summary == f"HTTP {status}."


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


def test_the_provider_of_each_module_is_called_like_it():
    for name in provider_names():
        assert find_provider(name).__module__ == f"email_services.providers.{name}"
        assert find_provider(name).provider == name


def test_a_slow_provider_has_its_whole_timeout(stand_in):
    server = stand_in(delayed(answer(*contract_of("sendgrid").accepted), 0.3))
    assert (
        outcome_of(make_service("sendgrid", server.url), timeout=5)
        == contract_of("sendgrid").message_id
    )


def test_an_answer_that_came_before_the_body_was_read_counts(stand_in):
    server = stand_in(send_bytes(response(413)), read_body=False)
    assert type(outcome_of(make_service("mailgun", server.url))) is MessageRejected


def marked(mark: str) -> dict[str, dict]:
    """For each field of a message, one that holds `mark` there."""
    in_file = {"filename": f"{mark}.pdf", "content": ""}
    return {
        "from_email": {"from_email": f"{mark}@example.com"},
        "from_name": {"from_name": mark},
        "to_recipients": {"to_recipients": ["a@example.org", f"Name {mark} <b@example.org>"]},
        "to_cc": {"to_cc": f"{mark}@example.org"},
        "to_bcc": {"to_bcc": f"{mark}@example.org"},
        "reply_to": {"reply_to": f"{mark}@example.org"},
        "reply_to, the second": {"reply_to": ["a@example.org", f"{mark}@example.org"]},
        "subject": {"subject": mark},
        "raw_text_body": {"raw_text_body": mark},
        "html_body": {"html_body": f"<p>{mark}</p>"},
        "attachments": {"attachments": [in_file]},
        "attachments, the second": {"attachments": [PDF, in_file]},
        "inline": {"html_body": "x", "inline": [{**PNG, "content_id": mark}]},
        "headers": {"headers": {"X-One": mark}},
        "headers, the second": {"headers": {"X-One": "1", "X-Two": mark}},
        "tags": {"tags": mark},
        "tags, the second": {"tags": ["one", mark]},
        "metadata": {"metadata": {"key": mark}},
        "metadata, the second": {"metadata": {"key": "1", "other": mark}},
        "substitutions": {"raw_text_body": "{{a}}", "substitutions": {"a": mark}},
    }


def request_for(provider, message, stand_in):
    """The request as text, or None where the provider declares that it cannot carry it."""
    contract = contract_of(provider)
    server = stand_in(answer(*contract.accepted))
    service = make_service(provider, server.url)
    try:
        service.check(message)
    except CannotCarry:
        return None
    outcome_of(service, message)  # an acceptance of one recipient may not fit
    return repr(seen(server.requests[0], contract.moving))


@every_http_provider
@pytest.mark.parametrize("field", marked(""))
def test_no_field_is_dropped_in_silence(provider, field, stand_in):
    message = make_message(**marked("mark7")[field]).rendered()
    request = request_for(provider, message, stand_in)
    assert request is None or "mark7" in request


@every_http_provider
@pytest.mark.parametrize("field", ["track_opens", "track_clicks"])
def test_tracking_is_asked_for_or_declared_impossible(provider, field, stand_in):
    requests = [
        request_for(provider, make_message(html_body="<p>", **given), stand_in)
        for given in ({field: True}, {field: False})
    ]
    assert requests == [None, None] or len(set(requests)) == 2


@every_http_provider
def test_a_time_to_send_at_is_asked_for_or_declared_impossible(provider, stand_in):
    base = time.time() + 3600
    requests = [
        request_for(provider, make_message(send_at=iso(base + seconds)), stand_in)
        for seconds in (0, 60)
    ]
    assert requests == [None, None] or len(set(requests)) == 2


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds")


def test_every_field_is_tried():
    tried = {field.partition(",")[0] for field in marked("")}
    apart = {"track_opens", "track_clicks", "send_at", "on_unknown", "dry_run", "stream"}
    apart |= {"expires_in"}
    assert tried | apart == set(EmailMessage.model_fields)


@every_http_provider
def test_our_id_goes_along_as_data_that_events_give_back(provider, stand_in):
    server = stand_in(answer(*contract_of(provider).accepted))
    service = make_service(provider, server.url)
    tags = ["one"] if service.capabilities.tags else []
    message = make_message(tags=tags, metadata={"order": "42"})
    if contract_of(provider).our_ids is None:
        assert not service.capabilities.metadata
        return
    service.check(message)
    outcome_of(service, message)
    body = seen(server.requests[0])["body"]
    assert contract_of(provider).our_ids(body) == [message.message_id]


@every_batching_provider
def test_in_a_batch_each_message_has_its_own_id_as_data(provider, stand_in):
    server = stand_in(answer(*contract_of(provider).batch[0]))
    messages = two_messages()
    make_service(provider, server.url).send_batch(messages, 5)
    body = seen(server.requests[0])["body"]
    assert contract_of(provider).our_ids(body) == [message.message_id for message in messages]


def two_messages():
    return [make_message(to_recipients=f"{name}@example.org") for name in ("a", "b")]


@every_batching_provider
def test_two_messages_can_share_a_call(provider, stand_in):
    accepted, ids = contract_of(provider).batch
    server = stand_in(answer(*accepted))
    service = make_service(provider, server.url)
    first, second = two_messages()
    assert service.batch_key(first) is not None
    assert service.batch_key(first) == service.batch_key(second)
    results = service.send_batch([first, second], 5)
    assert [result.message_id for result in results] == ids
    assert len(server.requests) == 1


@every_batching_provider
@pytest.mark.parametrize("status", [400, 401, 429, 500, 502, 504, 520, 524])
def test_the_fault_of_a_call_is_every_messages(provider, status, stand_in):
    service = make_service(provider, stand_in(answer(status)).url)
    expected = {**STATUSES, **contract_of(provider).statuses}[status]
    assert {type(result) for result in service.send_batch(two_messages(), 5)} == {expected}


@every_batching_provider
@pytest.mark.parametrize("behaviour", UNKNOWN)
def test_a_batch_whose_answer_says_nothing_is_unknown(provider, behaviour, stand_in):
    timeout = 1 if behaviour in ("no answer", "headers that drip") else FOREVER
    service = make_service(provider, stand_in(UNKNOWN[behaviour]).url)
    results = service.send_batch(two_messages(), timeout)
    assert {type(result) for result in results} == {OutcomeUnknown}


@every_batching_provider
def test_a_batch_that_never_arrived_is_not_sent(provider):
    service = make_service(provider, "http://provider.invalid")
    results = service.send_batch(two_messages(), 5)
    assert {type(result) for result in results} == {ServiceUnavailable}


@every_batching_provider
@pytest.mark.parametrize("cut", CUT)
def test_a_batch_that_was_accepted_is_never_called_not_sent(provider, cut, stand_in):
    server = stand_in(CUT[cut](head_of(*contract_of(provider).batch[0])))
    results = make_service(provider, server.url).send_batch(two_messages(), 1)
    not_sent = [r for r in results if not isinstance(r, Acceptance | OutcomeUnknown)]
    assert (len(results), not_sent) == (2, [])


@every_http_provider
def test_a_thousand_recipients_all_get_it_or_it_is_declared_impossible(provider, stand_in):
    everybody = [f"reader{number}@example.org" for number in range(1000)]
    request = request_for(provider, make_message(to_recipients=everybody), stand_in)
    assert request is None or all(address in request for address in everybody)


def test_some_providers_take_a_thousand_recipients_at_once():
    message = make_message(to_recipients=[f"reader{n}@example.org" for n in range(1000)])
    for provider in ("mailgun", "sendgrid"):
        make_service(provider, "http://127.0.0.1:1").check(message)


@every_batching_provider
def test_an_echo_to_many_messages_is_taken_out_in_no_time(provider, stand_in):
    server = stand_in(answer_json(500, contract_of(provider).error("Something went wrong" * 50)))
    messages = [
        make_message(to_recipients=f"n{n}@example.org", raw_text_body="went") for n in range(100)
    ]
    with little_work():
        results = make_service(provider, server.url).send_batch(messages, 5)
    assert all(len(result.reason) < 400 and "went" not in result.reason for result in results)


@every_http_provider
def test_a_hostile_answer_of_a_megabyte_costs_no_time(provider, stand_in):
    for text in ("." * 900_000, "sender " * 120_000, "try again after " * 50_000, "a@" * 400_000):
        server = stand_in(answer_json(400, contract_of(provider).error(text)))
        with little_work():
            assert isinstance(outcome_of(make_service(provider, server.url)), ProviderError)
