from __future__ import annotations

import logging
import time

import pytest
from contract import PROVIDER_KEY, Contract, in_json, make_message, make_service, outcome_of, seen
from messages import MESSAGES
from sendgrid import SendGridAPIClient
from standins import answer, answer_json, response, send_and_close

from email_services.abstract import Standing
from email_services.exceptions import (
    AccountRefused,
    CannotCarry,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    RateLimited,
)


def errors(text):
    return {"errors": [{"message": text, "field": None, "help": None}]}


CONTRACT = Contract(
    accepted=(202, {"X-Message-Id": "14c5d75ce93"}, b""),
    message_id="14c5d75ce93",
    without_id=[b""],
    secrets={"authorization": f"Bearer {PROVIDER_KEY}"},
    error=errors,
    id_is_in_a_header=True,
    batch=((202, {"X-Message-Id": "14c5d75ce93"}, b""), ["14c5d75ce93"] * 2),
    answers={
        "quota": (in_json(401, errors("Maximum credits exceeded")), AccountRefused),
        "a wrong key": (
            in_json(401, errors("The provided authorization grant is invalid")),
            LoginRefused,
        ),
        "a sender": (
            in_json(403, errors("The from address does not match a verified Sender Identity.")),
            AccountRefused,
        ),
        "an address": (in_json(400, errors("Does not contain a valid address.")), MessageRejected),
        "size": (in_json(413, errors("Payload too large")), MessageRejected),
        "rate": (in_json(429, errors("too many requests")), RateLimited),
    },
    our_ids=lambda body: [
        to_one["custom_args"]["mailpool_id"] for to_one in body["personalizations"]
    ],
    looks={
        "good": (
            [
                in_json(200, {"scopes": ["mail.send"]}),
                in_json(200, [{"domain": "example.com", "valid": True}]),
            ],
            Standing(account=True, domain=True),
        ),
        "not verified": (
            [
                in_json(200, {"scopes": ["mail.send"]}),
                in_json(200, [{"domain": "example.com", "valid": False}]),
            ],
            Standing(account=True, domain=False),
        ),
        "another domain's": (
            [
                in_json(200, {"scopes": ["mail.send"]}),
                in_json(200, [{"domain": "sub.example.com", "valid": True}]),
            ],
            Standing(account=True, note="The account has not authenticated the domain."),
        ),
        "a key that may only send": (
            [
                in_json(200, {"scopes": ["mail.send"]}),
                in_json(403, {"errors": [{"message": "access forbidden"}]}),
            ],
            Standing(account=True, note="The key may not ask about domains."),
        ),
        "a key that may not send": ([in_json(200, {"scopes": ["stats.read"]})], AccountRefused),
        "a wrong key": (
            [in_json(401, {"errors": [{"message": "authorization required"}]})],
            LoginRefused,
        ),
    },
)


def test_the_end_of_a_rate_limit_is_in_unix_time(stand_in):
    reset_at = str(int(time.time()) + 300)
    server = stand_in(answer_json(429, {}, {"X-RateLimit-Reset": reset_at}))
    error = outcome_of(make_service("sendgrid", server.url))
    assert 290 < error.retry_after <= 300


@pytest.mark.parametrize("body", [b"", b"<html>"])
def test_a_202_without_an_id_that_announces_a_body_is_unknown(body, stand_in):
    head = response(202, {}, b"x" * 100)[:-100]
    server = stand_in(send_and_close(head + body))
    assert type(outcome_of(make_service("sendgrid", server.url))) is OutcomeUnknown


@pytest.mark.parametrize("name", MESSAGES)
def test_the_sdk_itself_would_send_the_same(name, stand_in, caplog):
    caplog.set_level(logging.INFO, "python_http_client")  # which tells what is sent at DEBUG
    server = stand_in(answer(*CONTRACT.accepted))
    service = make_service("sendgrid", server.url)
    message = make_message(**MESSAGES[name]).rendered()
    try:
        service.check(message)
        outcome_of(service, message)
    except CannotCarry:
        pytest.skip("it cannot carry this message")
    payload = service.build_request(message).json
    SendGridAPIClient(PROVIDER_KEY, host=server.url).send(payload)
    ours, theirs = server.requests
    assert seen(ours) == seen(theirs)
    assert ours.headers["user-agent"] == theirs.headers["user-agent"]


def test_a_body_that_begins_like_a_key_is_refused_by_its_sdk(stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    message = make_message(raw_text_body="SG.abc.def is a key")
    assert type(outcome_of(make_service("sendgrid", server.url), message)) is MessageRejected
    assert server.requests == []


def test_a_files_name_with_a_comma_is_not_for_it():
    message = make_message(attachments=[{"filename": "a, b.pdf", "content": ""}])
    with pytest.raises(CannotCarry, match="comma"):
        make_service("sendgrid", "http://127.0.0.1:1").check(message)


@pytest.mark.parametrize("field", ["from_email", "to_recipients", "to_cc", "to_bcc", "reply_to"])
def test_an_address_beyond_ascii_left_of_the_at_is_not_for_it(field):
    service = make_service("sendgrid", "http://127.0.0.1:1")
    with pytest.raises(CannotCarry, match="left of the @"):
        service.check(make_message(**{field: "jörg@example.com"}))


def test_it_takes_10000_bytes_of_metadata():
    service = make_service("sendgrid", "http://127.0.0.1:1")
    service.check(make_message(metadata={f"k{n}": "x" * 486 for n in range(20)}))
    with pytest.raises(CannotCarry, match="metadata"):
        service.check(make_message(metadata={f"k{n}": "x" * 487 for n in range(20)}))


def test_messages_of_one_content_are_one_call_with_substitutions(stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    service = make_service("sendgrid", server.url)
    messages = [
        make_message(
            to_recipients=f"{name}@example.org",
            subject="Hello {{name}}",
            raw_text_body="Dear {{name}}",
            html_body="<p>Dear {{ name }}</p>",
            metadata={"order": order},
            substitutions={"name": value},
        )
        for name, value, order in (("ada", "Ada & Co", "1"), ("bob", "<b>", "2"))
    ]
    assert len({service.batch_key(message) for message in messages}) == 1
    results = service.send_batch(messages, 5)
    assert [result.message_id for result in results] == [CONTRACT.message_id] * 2
    (request,) = server.requests
    ada, bob = messages
    assert request.json == {
        "from": {"email": "me@example.com"},
        "personalizations": [
            {
                "to": [{"email": "ada@example.org"}],
                "subject": "Hello Ada & Co",
                "headers": {"Message-ID": ada.message_id_header},
                "substitutions": {
                    "{{sub.text.name}}": "Ada & Co",
                    "{{sub.html.name}}": "Ada &amp; Co",
                },
                "custom_args": {"mailpool_id": ada.message_id, "order": "1"},
            },
            {
                "to": [{"email": "bob@example.org"}],
                "subject": "Hello <b>",
                "headers": {"Message-ID": bob.message_id_header},
                "substitutions": {
                    "{{sub.text.name}}": "<b>",
                    "{{sub.html.name}}": "&lt;b&gt;",
                },
                "custom_args": {"mailpool_id": bob.message_id, "order": "2"},
            },
        ],
        "content": [
            {"type": "text/plain", "value": "Dear {{sub.text.name}}"},
            {"type": "text/html", "value": "<p>Dear {{sub.html.name}}</p>"},
        ],
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"to_recipients": ["a@example.org", "b@example.org"]},
        {"to_cc": "b@example.org"},
        {"html_body": "{{sub.html.name}}"},
        {"substitutions": {"name": "{{sub.text.name}}"}},
        {"substitutions": {"name": "x" * 5000}},
    ],
)
def test_a_message_that_cannot_share_a_call_goes_alone(fields):
    service = make_service("sendgrid", "http://127.0.0.1:1")
    assert service.batch_key(make_message(**fields)) is None


def test_a_header_of_the_messages_own_does_not_displace_another(stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    messages = [
        make_message(to_recipients=f"{name}@example.org", headers={"X-One": "1"})
        for name in ("a", "b")
    ]
    make_service("sendgrid", server.url).send_batch(messages, 5)
    (request,) = server.requests
    assert request.json["headers"] == {"X-One": "1"}
