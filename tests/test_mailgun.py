from __future__ import annotations

import json

import pytest
from contract import HTML, JSON, Contract, in_json, make_message, make_service, outcome_of
from messages import NEXT_YEAR
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

BASIC = "Basic YXBpOlNHLmtleS1hdC10aGUtcHJvdmlkZXI="
QUOTA = (
    "Domain example.com is not allowed to send: recipient limit exceeded, "
    "try again after Mon, 25 Aug 2125 07:00:31 UTC"
)
RATE = "account-requests-per-sec limit exceeded, try again after 120 seconds"


def our_ids(fields):
    """From the variable itself, or in a batch from what it stands for, for each recipient."""
    found = fields["v:mailpool_id"]
    if found != "%recipient.v:mailpool_id%":
        return [found]
    variables = json.loads(fields["recipient-variables"])
    return [of_one["v:mailpool_id"] for of_one in variables.values()]


CONTRACT = Contract(
    accepted=(200, JSON, b'{"id": "<20261124.1@example.com>", "message": "Queued. Thank you."}'),
    message_id="<20261124.1@example.com>",
    without_id=[b'{"message": "Queued. Thank you."}', b'{"id": 7}', b'{"id": null}'],
    secrets={"authorization": BASIC},
    error=lambda text: {"message": text},
    batch=(
        (200, JSON, b'{"id": "<1@example.com>", "message": "Queued. Thank you."}'),
        ["<1@example.com>"] * 2,
    ),
    answers={
        "a wrong key": ((401, HTML, b"Forbidden"), LoginRefused),
        "quota": (in_json(420, {"message": QUOTA}), AccountRefused),
        "rate": (in_json(429, {"message": RATE}), RateLimited),
        "not activated": (
            in_json(400, {"message": "Please activate your Mailgun account."}),
            AccountRefused,
        ),
        "an address": (
            in_json(400, {"message": "to parameter is not a valid address"}),
            MessageRejected,
        ),
        "an address that is called like a fault": (
            in_json(400, {"message": "'activate@sandbox.example.org' is not a valid address"}),
            MessageRejected,
        ),
        "a wrong domain": (in_json(404, {"message": "Domain not found"}), AccountRefused),
        "a wrong path": ((200, HTML, b"Mailgun Magnificent API"), OutcomeUnknown),
        "words that accept nothing": (in_json(200, {"message": "Forbidden"}), OutcomeUnknown),
        "a message of another kind": (in_json(200, {"message": ["Queued."]}), OutcomeUnknown),
    },
    our_ids=lambda body: our_ids(dict(map(tuple, body))),
    looks={
        "good": (
            [
                in_json(
                    200,
                    {
                        "domain": {"name": "example.com", "state": "active"},
                        "sending_dns_records": [
                            {"record_type": "TXT", "name": "example.com", "value": "v=spf1"},
                            {"record_type": "TXT", "name": "pic._domainkey.example.com"},
                        ],
                    },
                )
            ],
            Standing(account=True, domain=True, dkim=("pic",)),
        ),
        "not verified": (
            [in_json(200, {"domain": {"state": "unverified"}})],
            Standing(account=True, domain=False, note="The domain is unverified."),
        ),
        "no such domain": (
            [in_json(404, {"message": "Domain not found"})],
            Standing(account=True, domain=False, note="The account has no such domain."),
        ),
        "a key that may only send, or a wrong one": (
            [(401, HTML, b"Forbidden")],
            Standing(note="The key is wrong, or one that may only send."),
        ),
    },
)


def test_words_that_accept_nothing_accept_nothing_when_they_are_cut_either(stand_in):
    server = stand_in(send_and_close(response(200, JSON, b'{"message": "Forbidden"}')[:-1]))
    assert type(outcome_of(make_service("mailgun", server.url))) is OutcomeUnknown


def test_a_name_beside_an_address_is_no_fault_of_the_accounts(stand_in):
    recipient = "Sandbox Team <team@example.org>"
    told = {"message": f"to parameter is not a valid address: {recipient}"}
    service = make_service("mailgun", stand_in(answer_json(400, told)).url)
    error = outcome_of(service, make_message(to_recipients=recipient))
    assert type(error) is MessageRejected
    assert recipient in error.reason


def test_messages_that_differ_in_metadata_alone_are_one_call():
    service = make_service("mailgun", "http://127.0.0.1:1")
    metadata = ({"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"b": "5", "a": "6"})
    keys = {service.batch_key(make_message(metadata=given)) for given in metadata}
    assert len(keys) == 1


def test_in_europe_it_is_asked_there():
    service = make_service("mailgun", "https://api.eu.mailgun.net/")
    url = service.build_request(make_message()).url
    assert url == "https://api.eu.mailgun.net/v3/example.com/messages"


@pytest.mark.parametrize(
    ("status", "text", "at_least"), [(420, QUOTA, 1_000_000), (429, RATE, 120), (429, "soon", None)]
)
def test_the_text_says_when_to_try_again(status, text, at_least, stand_in):
    error = outcome_of(
        make_service("mailgun", stand_in(answer_json(status, {"message": text})).url)
    )
    assert error.retry_after == at_least or error.retry_after > at_least


def test_a_date_that_cannot_be_is_no_crash(stand_in):
    text = "try again after Mon, 01 Jan 99999999999999999999 00:00:00 UTC"
    server = stand_in(answer_json(429, {"message": text}))
    error = outcome_of(make_service("mailgun", server.url))
    assert (type(error), error.retry_after) == (RateLimited, None)


def test_what_no_database_takes_is_taken_out_of_its_texts(stand_in):
    server = stand_in(answer_json(200, {"id": "<\ud800\0>"}))
    service = make_service("mailgun", server.url)
    assert outcome_of(service) == "<\ufffd\ufffd>"
    server.behaviour = answer_json(401, {"message": "bad \ud800\0"})
    assert outcome_of(service).reason == "HTTP 401: bad \ufffd\ufffd"


def test_its_key_is_taken_out_as_it_is_sent_too(stand_in):
    server = stand_in(answer_json(401, {"message": f"What is {BASIC}?"}))
    error = outcome_of(make_service("mailgun", server.url))
    assert error.reason == "HTTP 401: What is Basic [removed]?"


def test_a_sender_beyond_ascii_is_not_for_it():
    service = make_service("mailgun", "http://127.0.0.1:1")
    with pytest.raises(CannotCarry, match="beyond ASCII"):
        service.check(make_message(from_email="jörg@example.com"))
    service.check(make_message(to_recipients="jörg@example.org"))


def test_headers_and_metadata_have_16_kb_together():
    service = make_service("mailgun", "http://127.0.0.1:1")
    service.check(make_message(headers={f"X-{n}": "x" * 900 for n in range(18)}))
    with pytest.raises(CannotCarry, match="16 KB"):
        service.check(make_message(headers={f"X-{n}": "x" * 900 for n in range(19)}))


def batch():
    """Two messages of one content, with values that HTML must not take for markup."""
    return [
        make_message(
            to_recipients=f"{name} <{name}@example.org>",
            subject="Hello {{name}}",
            raw_text_body="Dear {{name}}, 100 %",
            html_body="<p>Dear {{ name }}</p>",
            metadata={"order-id": order},
            substitutions={"name": value},
        )
        for name, value, order in (("ada", "Ada & Co", "1"), ("bob", "<b>", "2"))
    ]


def test_messages_of_one_content_are_one_call_with_variables(stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    service = make_service("mailgun", server.url)
    assert len({service.batch_key(message) for message in batch()}) == 1
    ada, bob = batch()
    results = service.send_batch([ada, bob], 5)
    assert [result.message_id for result in results] == [CONTRACT.message_id] * 2
    (request,) = server.requests
    assert request.form == [
        ("from", "me@example.com"),
        ("to", "ada <ada@example.org>"),
        ("to", "bob <bob@example.org>"),
        (
            "recipient-variables",
            json.dumps(
                {
                    "ada@example.org": {
                        "text_name": "Ada & Co",
                        "html_name": "Ada &amp; Co",
                        "v:mailpool_id": ada.message_id,
                        "v:order-id": "1",
                    },
                    "bob@example.org": {
                        "text_name": "<b>",
                        "html_name": "&lt;b&gt;",
                        "v:mailpool_id": bob.message_id,
                        "v:order-id": "2",
                    },
                }
            ),
        ),
        ("subject", "Hello %recipient.text_name%"),
        ("text", "Dear %recipient.text_name%, 100 %"),
        ("html", "<p>Dear %recipient.html_name%</p>"),
        ("v:mailpool_id", "%recipient.v:mailpool_id%"),
        ("v:order-id", "%recipient.v:order-id%"),
    ]


ALONE = {
    "two recipients": {"to_recipients": ["a@example.org", "b@example.org"]},
    "a cc": {"to_cc": "b@example.org"},
    "a bcc": {"to_bcc": "b@example.org"},
    "words that Mailgun would replace": {"raw_text_body": "%recipient.name%"},
    "metadata that Mailgun would replace": {"metadata": {"a": "%recipient.text_b%"}},
    "a value that Mailgun would replace": {"substitutions": {"a": "%recipient.text_b%"}},
}


@pytest.mark.parametrize("name", ALONE)
def test_a_message_that_cannot_share_a_call_goes_alone(name):
    service = make_service("mailgun", "http://127.0.0.1:1")
    assert service.batch_key(make_message(**ALONE[name])) is None


APART = {
    "another subject": {"subject": "Other"},
    "another text": {"raw_text_body": "Other"},
    "another HTML": {"html_body": "<p>"},
    "a file": {"attachments": [{"filename": "a.pdf", "content": ""}]},
    "a header": {"headers": {"X-A": "1"}},
    "another key of metadata": {"metadata": {"a": "1"}},
    "a tag": {"tags": "a"},
    "an address to answer to": {"reply_to": "a@example.org"},
    "tracking": {"track_opens": True},
    "a time": {"send_at": NEXT_YEAR},
    "a sender's name": {"from_name": "Me"},
    "substitutions": {"substitutions": {}},
}


@pytest.mark.parametrize("name", APART)
def test_messages_of_different_content_do_not_share_a_call(name):
    service = make_service("mailgun", "http://127.0.0.1:1")
    assert service.batch_key(make_message(**APART[name])) != service.batch_key(make_message())
    assert service.batch_key(make_message()) == service.batch_key(
        make_message(to_recipients="bob@example.org")
    )
