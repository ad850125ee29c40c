from __future__ import annotations

import contextlib
import email
import email.policy
import socket
import ssl
import threading

import pytest
import trustme
from clocks import FOREVER, no_waiting
from contract import make_message, outcome_of
from messages import MESSAGES, PDF, in_base64
from pydantic import ValidationError
from smtp_server import SMTPServer, cut, drip, hang, reset, say

from email_services import transport
from email_services.exceptions import (
    AccountRefused,
    CannotCarry,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
)
from email_services.providers import smtp
from email_services.providers.smtp import SMTP, SMTPSettings

PASSWORD = "pass wörd"
CREDENTIALS = ("me", PASSWORD)
LOGIN = {"username": "me", "password": PASSWORD}
ID = "4ABC"


@pytest.fixture
def smtp_server():
    """Make an SMTPServer; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(script=None, **options) -> SMTPServer:
            server = SMTPServer(script, **options)
            stack.callback(server.close)
            return server

        yield make


def service_at(server, **settings) -> SMTP:
    given = {"priority_value": 1, "host": "127.0.0.1", "security": "none", **settings}
    return SMTP("smtp", "example.com", SMTPSettings(**{"port": server.port, **given}))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority, tmp_path, monkeypatch) -> ssl.SSLContext:
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("fields", MESSAGES.values(), ids=MESSAGES)
def test_a_real_server_gets_every_message_whole(fields, smtp_server):
    server = smtp_server(enable_SMTPUTF8=True)
    message = make_message(**fields).rendered()
    assert outcome_of(service_at(server), message) == ID
    (mail,) = server.mails
    assert mail.sender == message.from_email.email
    assert mail.recipients == [address.email for address in message.recipients]
    found = email.message_from_string(mail.content.decode(), policy=email.policy.default)
    assert found["Subject"] == message.subject
    assert found["Message-ID"] == message.message_id_header
    assert found["Bcc"] is None
    text = found.get_body(("plain",)).get_content()
    assert text.rstrip("\n").splitlines() == message.raw_text_body.rstrip("\n").splitlines()
    files = [part for part in found.walk() if part.get_filename()]
    assert {part.get_payload(decode=True) for part in files} == {f.content for f in message.files}


SAID = {
    "Postfix's": ("250 2.0.0 Ok: queued as 4XyZ", "4XyZ"),
    "hMailServer's": ("250 Queued (0.032 seconds)", None),
    "Exchange's": ("250 2.6.0 <a@b.local> [InternalId=1] Queued mail for delivery", None),
    "with a full stop": ("250 Message queued as 12-ab.", "12-ab"),
    "in brackets": ("250 Queued as <a@b.example> today", "a@b.example"),
    "of several lines": ("250-2.0.0 Ok\r\n250 queued as 77", "77"),
    "without any": ("250 OK", None),
}


@pytest.mark.parametrize("said", SAID)
def test_the_id_is_what_the_server_says_it_is_queued_as(said, smtp_server):
    reply, message_id = SAID[said]
    assert outcome_of(service_at(smtp_server({".": say(reply)}))) == message_id


# What each code means where the message is the matter: at MAIL, at RCPT for all, at the dot. What
# differs from stage to stage is in test_smtp_replies.py.
CODES = {
    "421 4.3.2 Service not available": ServiceUnavailable,
    "421 4.7.0 Try again later": RateLimited,
    "450 4.7.1 Greylisted": MessageRejected,
    "451 Sending quota exceeded": AccountRefused,
    "450 4.2.1 The mailbox is over its quota": MessageRejected,
    "451 4.3.0 Local error": ServiceUnavailable,
    "451 Authentication failed: Maximum credits exceeded": AccountRefused,
    "452 4.5.3 Too many recipients": MessageRejected,
    "452 4.3.1 Insufficient system storage": ServiceUnavailable,
    "454 Throttling failure: Maximum sending rate exceeded.": RateLimited,
    "454 Throttling failure: Daily message quota exceeded.": AccountRefused,
    "454 4.7.0 Temporary failure": ServiceUnavailable,
    "500 5.5.2 What?": ServiceUnavailable,
    "501 5.1.3 Bad address syntax": MessageRejected,
    "530 5.7.0 Authentication required": AccountRefused,
    "535 5.7.8 No": LoginRefused,
    "550 5.1.1 No such user": MessageRejected,
    "550 5.7.1 This looks like spam": MessageRejected,
    "550 5.4.5 Daily sending quota exceeded": AccountRefused,
    "550 Sender not verified": AccountRefused,
    "550 Sender denied": AccountRefused,
    "552 5.2.2 The mailbox is over its quota": MessageRejected,
    "552 5.3.4 Too large": MessageRejected,
    "553 5.7.1 Sender address rejected: not owned by user": AccountRefused,
    "554 5.7.1 Relay access denied": AccountRefused,
    "554 Message rejected: Email address is not verified.": AccountRefused,
    "554 Transaction failed": MessageRejected,
    "550": MessageRejected,
}


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("said", CODES)
def test_each_code_means_what_its_text_says(said, stage, smtp_server):
    server = smtp_server({stage: say(said)})
    error = outcome_of(service_at(server))
    assert type(error) is CODES[said]
    code, _, text = said.partition(" ")
    assert error.reason == (f"SMTP {code}: {text}" if text else f"SMTP {code}.")
    assert error.summary == f"SMTP {code}."
    assert len(server.mails) == (stage == ".")


@pytest.mark.parametrize("stage", ["banner", "EHLO", "STARTTLS", "AUTH"])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("554 5.7.1 Go away", ServiceUnavailable),
        ("421 Not now", ServiceUnavailable),
        ("421 4.7.0 Too fast", RateLimited),
        ("454 Daily message quota exceeded", AccountRefused),
        ("451 Maximum credits exceeded", AccountRefused),
    ],
)
def test_a_refusal_before_the_message_is_not_its_fault(
    stage, said, expected, smtp_server, certificate
):
    server = smtp_server({stage: say(said)}, starttls=certificate, credentials=CREDENTIALS)
    error = outcome_of(service_at(server, security="starttls", **LOGIN))
    refused_for_good = stage == "AUTH" and said.startswith("5")
    assert type(error) is (LoginRefused if refused_for_good else expected)


EARLY = ["banner", "EHLO", "MAIL", "RCPT", "DATA"]
TROUBLE = {
    "hangs": (hang, "No {awaited} within 1 s."),
    "drips": (drip("250 this takes f" + "o" * FOREVER * 20 + "rever"), "No {awaited} within 1 s."),
    "ends the connection": (cut, "The connection was cut."),
    "resets the connection": (reset, "The connection was cut."),
    "talks of something else": (say("HTTP/1.1 400 Bad Request"), "What it answered is not SMTP."),
    "gives a code that makes no sense": (say("199 Hm"), "What it answered is not SMTP."),
}


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("stage", EARLY)
def test_before_the_final_dot_nothing_is_sent(stage, trouble, smtp_server):
    behaviour, reason = TROUBLE[trouble]
    server = smtp_server({stage: behaviour})
    with no_waiting():
        error = outcome_of(service_at(server), timeout=1)
    assert type(error) is ServiceUnavailable
    assert error.reason == reason.format(
        awaited="connection" if stage in ("banner", "EHLO") else "answer"
    )
    assert server.mails == []


@pytest.mark.parametrize("trouble", TROUBLE)
def test_after_the_final_dot_only_the_servers_word_counts(trouble, smtp_server):
    behaviour, reason = TROUBLE[trouble]
    server = smtp_server({".": behaviour})
    with no_waiting():
        error = outcome_of(service_at(server), timeout=1)
    assert type(error) is OutcomeUnknown
    assert error.reason == reason.format(awaited="answer")
    assert (len(server.mails), server.connections) == (1, 1)


def test_a_reader_that_stops_in_the_middle_is_not_sent(smtp_server):
    async def stop_reading(server):
        server.transport.write(b"354 Go on\r\n")
        server.transport.pause_reading()

    server = smtp_server({"DATA": stop_reading})
    # More than the system takes of what nobody reads.
    message = make_message(attachments=[{**PDF, "content": in_base64(b"x" * 3_000_000)}])
    error = outcome_of(service_at(server), message, timeout=3)
    assert type(error) is ServiceUnavailable
    assert error.reason == "The upload was not finished within 3 s."


REFUSED = "550 5.1.1 No such user"


@pytest.mark.parametrize("pipelining", [False, True])
def test_some_recipients_may_be_refused(pipelining, smtp_server):
    said = {"B@example.org": say(REFUSED), "c@example.org": say("450 No")}
    server = smtp_server({"RCPT": said}, pipelining=pipelining)
    message = make_message(to_recipients=["a@example.org", "B@example.org"], to_bcc="c@example.org")
    acceptance = service_at(server).send(message, 5)
    assert acceptance.message_id == ID
    assert acceptance.refused == {
        "b@example.org": "SMTP 550: 5.1.1 No such user",
        "c@example.org": "SMTP 450: No",
    }
    assert server.mails[0].recipients == ["a@example.org"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (REFUSED, REFUSED, MessageRejected),
        (REFUSED, "451 4.3.0 Not now", ServiceUnavailable),
        ("450 4.7.1 Greylisted", REFUSED, MessageRejected),
        (REFUSED, "450 4.7.1 Error: too much mail from 192.0.2.1", RateLimited),
        (REFUSED, "554 Relay access denied", AccountRefused),
    ],
)
@pytest.mark.parametrize("pipelining", [False, True])
def test_where_all_are_refused_the_codes_say_why(first, second, expected, pipelining, smtp_server):
    said = {"a@example.org": say(first), "b@example.org": say(second)}
    server = smtp_server({"RCPT": said}, pipelining=pipelining)
    message = make_message(to_recipients="a@example.org, b@example.org")
    assert type(outcome_of(service_at(server), message)) is expected
    assert not [command for command in server.commands if command.startswith("DATA")]


def test_a_server_that_closes_between_recipients_has_taken_nothing(smtp_server):
    server = smtp_server({"RCPT": {"b@example.org": say("421 Closing")}})
    message = make_message(to_recipients="a@example.org, b@example.org, c@example.org")
    assert type(outcome_of(service_at(server), message)) is ServiceUnavailable
    assert "c@example.org" not in repr(server.commands)


@pytest.mark.parametrize("pipelining", [False, True])
def test_recipients_are_named_in_one_round_trip_where_the_server_allows_it(pipelining, smtp_server):
    server = smtp_server({"RCPT": {"a@example.org": hang}}, pipelining=pipelining)
    message = make_message(to_recipients="a@example.org, b@example.org")
    assert type(outcome_of(service_at(server), message, timeout=1)) is ServiceUnavailable
    assert ("RCPT TO:<b@example.org>" in server.commands) == pipelining


def test_a_thousand_recipients_are_named(smtp_server):
    server = smtp_server(pipelining=True, enable_SMTPUTF8=True)
    addresses = [f"ü{n}@example.org" for n in range(1000)]
    assert outcome_of(service_at(server), make_message(to_recipients=addresses)) == ID
    assert server.mails[0].recipients == addresses


def test_after_a_refusal_no_reply_is_left_over(smtp_server):
    server = smtp_server({"RCPT": {"a@example.org": say("421 Closing")}}, pipelining=True)
    service = service_at(server)
    message = make_message(to_recipients="a@example.org, b@example.org")
    assert type(outcome_of(service, message)) is ServiceUnavailable
    assert outcome_of(service) == ID
    assert (len(server.mails), server.connections) == (1, 1)


def test_a_connection_is_used_again(smtp_server):
    server = smtp_server()
    service = service_at(server)
    assert [outcome_of(service) for _ in range(5)] == [ID] * 5
    assert (len(server.mails), server.connections) == (5, 1)


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "."])
def test_a_connection_is_used_again_after_a_refusal(stage, smtp_server):
    server = smtp_server({stage: say("550 5.7.1 No")})
    service = service_at(server)
    assert type(outcome_of(service)) is MessageRejected
    del server.script[stage]
    assert outcome_of(service) == ID
    assert (len(server.mails[-1].recipients), server.connections) == (1, 1)


def test_a_connection_that_died_is_replaced(smtp_server):
    server = smtp_server()
    service = service_at(server)
    outcome_of(service)
    server.cut_all()
    assert outcome_of(service) == ID
    assert (len(server.mails), server.connections) == (2, 2)


@pytest.mark.parametrize("behaviour", [hang, say("421 Too long idle"), cut])
def test_a_connection_that_fails_before_the_message_is_replaced(behaviour, smtp_server):
    server = smtp_server({"RSET": behaviour})
    service = service_at(server)
    assert [outcome_of(service, timeout=4), outcome_of(service, timeout=4)] == [ID, ID]
    assert (len(server.mails), server.connections) == (2, 2)


def test_a_reused_connection_that_dies_later_is_not_replaced_in_silence(smtp_server):
    server = smtp_server()
    service = service_at(server)
    outcome_of(service)
    server.script["MAIL"] = cut
    assert type(outcome_of(service)) is ServiceUnavailable
    assert server.connections == 1


def test_a_connection_that_idled_long_is_not_used_again(smtp_server, monkeypatch):
    server = smtp_server()
    service = service_at(server)
    monkeypatch.setattr(smtp, "MAX_IDLE_SECONDS", 0.0)
    assert [outcome_of(service), outcome_of(service)] == [ID, ID]
    assert server.connections == 2
    assert "RSET" not in server.commands


@pytest.mark.parametrize("behaviour", [hang, say("HTTP/1.1 400 Bad Request")])
def test_after_an_unknown_outcome_the_connection_is_not_used_again(behaviour, smtp_server):
    server = smtp_server({".": behaviour})
    service = service_at(server)
    assert type(outcome_of(service, timeout=1)) is OutcomeUnknown
    del server.script["."]
    assert outcome_of(service) == ID
    assert server.connections == 2


def test_more_connections_than_are_kept_are_closed(smtp_server, monkeypatch):
    monkeypatch.setattr(transport, "KEPT_CONNECTIONS", 0)
    server = smtp_server()
    service = service_at(server)
    assert [outcome_of(service), outcome_of(service)] == [ID, ID]
    assert server.connections == 2


def test_threads_share_connections_but_never_one_at_a_time(smtp_server):
    server = smtp_server()
    service = service_at(server)
    outcomes = []

    def send_ten():
        outcomes.extend(outcome_of(service, make_message()) for _ in range(10))

    threads = [threading.Thread(target=send_ten) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [ID] * 80
    assert len({mail.content for mail in server.mails}) == 80
    assert server.connections <= 8


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_it_encrypts_and_logs_in(security, smtp_server, certificate):
    server = smtp_server(**{security: certificate}, credentials=CREDENTIALS)
    service = service_at(server, security=security, **LOGIN)
    assert [outcome_of(service), outcome_of(service)] == [ID, ID]
    assert [mail.encrypted for mail in server.mails] == [security == "starttls"] * 2
    assert server.connections == 1


@pytest.mark.parametrize("excluded", [[], ["PLAIN"]])
def test_it_logs_in_as_the_server_offers(excluded, smtp_server):
    server = smtp_server(credentials=CREDENTIALS, auth_exclude_mechanism=excluded)
    assert outcome_of(service_at(server, **LOGIN)) == ID
    (login,) = (command for command in server.commands if command.startswith("AUTH"))
    assert login.startswith("AUTH LOGIN" if excluded else "AUTH PLAIN ")


@pytest.mark.parametrize("excluded", [[], ["PLAIN"]])
def test_a_wrong_password_is_for_an_operator(excluded, smtp_server):
    server = smtp_server(credentials=("me", "other"), auth_exclude_mechanism=excluded)
    error = outcome_of(service_at(server, **LOGIN))
    assert type(error) is LoginRefused
    assert error.reason.startswith("SMTP 535")


@pytest.mark.parametrize("excluded", [[], ["PLAIN", "LOGIN"]])
def test_a_server_without_a_way_to_log_in_is_told_of(excluded, smtp_server):
    options = {"credentials": CREDENTIALS, "auth_exclude_mechanism": excluded} if excluded else {}
    error = outcome_of(service_at(smtp_server(**options), **LOGIN))
    assert type(error) is AccountRefused
    assert error.reason == "The server offers neither AUTH PLAIN nor AUTH LOGIN."


def test_a_server_without_starttls_gets_no_password(smtp_server):
    server = smtp_server(credentials=CREDENTIALS)
    error = outcome_of(service_at(server, security="starttls", **LOGIN))
    assert type(error) is ServiceUnavailable
    assert error.reason == "The server offers no STARTTLS."
    assert not [command for command in server.commands if command.startswith("AUTH")]


def test_what_was_sent_ahead_of_the_encryption_is_ignored(smtp_server, certificate):
    async def inject(server):
        server.transport.write(b"220 Go on\r\n250-evil.example\r\n250 AUTH PLAIN\r\n")

    server = smtp_server({"STARTTLS": inject}, starttls=certificate)
    error = outcome_of(service_at(server, security="starttls", **LOGIN), timeout=0.5)
    assert type(error) is ServiceUnavailable


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_that_proves_nothing_is_refused(
    security, trusted, authority, certificate, smtp_server, monkeypatch
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer = authority if trusted else trustme.CA()
    issuer.issue_cert("other.example" if trusted else "127.0.0.1").configure_cert(context)
    server = smtp_server(**{security: context}, credentials=CREDENTIALS)
    error = outcome_of(service_at(server, security=security, **LOGIN))
    assert type(error) is ServiceUnavailable
    assert error.reason == "The TLS handshake failed."


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_server_that_never_shakes_hands_is_not_waited_for(security, smtp_server, certificate):
    server = smtp_server({"STARTTLS": say("220 Go on")}, starttls=certificate)
    with no_waiting():
        error = outcome_of(service_at(server, security=security), timeout=0.5)
    assert type(error) is ServiceUnavailable
    assert error.reason in ("No connection within 0.5 s.", "The TLS handshake failed.")


@pytest.mark.parametrize(
    "fields", [{"to_bcc": "jörg@example.org"}, {"reply_to": "jörg@example.org"}]
)
def test_an_address_beyond_ascii_needs_a_server_that_knows_them(fields, smtp_server):
    message = make_message(**fields)
    error = outcome_of(service_at(smtp_server()), message)
    assert type(error) is CannotCarry
    server = smtp_server(enable_SMTPUTF8=True)
    service = service_at(server)
    assert [outcome_of(service, message), outcome_of(service)] == [ID, ID]
    assert ["SMTPUTF8" in mail.options for mail in server.mails] == [True, False]


def test_a_message_larger_than_the_server_takes_is_not_taken_to_it(smtp_server):
    server = smtp_server(data_size_limit=5000)
    service = service_at(server)
    error = outcome_of(service, make_message(raw_text_body="x" * 5000))
    assert type(error) is CannotCarry
    assert error.reason == "The server takes at most 5000 bytes, files in base64."
    assert server.mails == []
    assert outcome_of(service) == ID


def test_a_size_of_nothing_is_no_limit(smtp_server):
    async def greet(server):
        server.session.host_name, server.session.extended_smtp = "example.com", True
        await server.push("250-mail.example.net\r\n250 SIZE 0")

    assert outcome_of(service_at(smtp_server({"EHLO": greet}))) == ID


def test_the_size_is_told(smtp_server):
    server = smtp_server()
    assert outcome_of(service_at(server)) == ID
    assert server.mails[0].options == [f"SIZE={len(server.mails[0].content)}"]


def test_a_server_that_echoes_everything_leaks_nothing(smtp_server):
    body = "Nobody else should read this."
    server = smtp_server(
        {".": say(f"550 {body} secret-1 AG1lbWUAc2VjcmV0LTE=")}, credentials=("meme", "secret-1")
    )
    service = service_at(server, username="meme", password="secret-1")
    error = outcome_of(service, make_message(raw_text_body=body))
    assert error.reason == "SMTP 550: [removed] [removed] [removed]"
    assert error.summary == "SMTP 550."
    assert "secret-1" not in f"{service!r} {service.settings!r}"


def test_it_greets_with_the_domain_it_sends_for(smtp_server):
    server = smtp_server()
    outcome_of(service_at(server))
    assert server.commands[0] == "EHLO example.com"


def test_a_server_that_is_not_there_is_not_sent(smtp_server):
    server = SMTPServer()
    server.close()
    error = outcome_of(service_at(server))
    assert type(error) is ServiceUnavailable
    assert error.reason == "The connection was refused."


@pytest.mark.parametrize("host", ["mail.invalid", "x" * 70 + ".example", "a..example"])
def test_a_name_that_does_not_exist_is_not_sent(host, smtp_server):
    error = outcome_of(service_at(smtp_server(), host=host))
    assert type(error) is ServiceUnavailable
    assert error.reason == "Its host name was not found."


def test_a_slow_name_server_is_not_waited_for(smtp_server, monkeypatch):
    test_over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: test_over.wait(FOREVER) and [])
    with no_waiting():
        error = outcome_of(service_at(smtp_server(), host="slow.example"), timeout=0.3)
    test_over.set()
    assert type(error) is ServiceUnavailable
    assert error.reason == "No connection within 0.3 s."


BASE = {"priority_value": 1, "host": "mail.example.com"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"host": ""}, "match pattern"),
        ({"host": "mail.example.com/x"}, "match pattern"),
        ({"port": 0}, "greater than"),
        ({"security": "ssl"}, "'starttls', 'tls' or 'none'"),
        ({"username": "me"}, "both username and password, or neither"),
        ({"password": "x"}, "both username and password, or neither"),
        ({"username": "", "password": "x"}, "It is empty."),
        ({"username": "me", "password": "x\r\ny"}, "control character"),
        ({**LOGIN, "security": "none"}, "would go unencrypted"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        SMTPSettings.model_validate({**BASE, **given})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_password_may_go_unencrypted_within_this_machine(host):
    assert SMTPSettings(**{**BASE, **LOGIN, "host": host, "security": "none"})


@pytest.mark.parametrize(("security", "port"), [("starttls", 587), ("tls", 465), ("none", 25)])
def test_the_port_follows_from_the_security(security, port):
    settings = SMTPSettings(**BASE, security=security)
    assert SMTP("smtp", "example.com", settings)._port == port


ENDLESS = {
    "lines": "\r\n".join(["250-and more"] * 5000),
    "a line": "250 " + "x" * 100_000,
}


@pytest.mark.parametrize("stage", ["banner", "EHLO", "MAIL", "."])
@pytest.mark.parametrize("of_what", ENDLESS)
def test_a_reply_without_end_is_not_read_to_it(of_what, stage, smtp_server):
    error = outcome_of(service_at(smtp_server({stage: say(ENDLESS[of_what])})), timeout=5)
    assert type(error) is (OutcomeUnknown if stage == "." else ServiceUnavailable)
    assert "No answer" not in error.reason, "it did not wait for more either"
