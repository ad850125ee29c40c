from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from contract import JSON, PROVIDER_KEY, Contract, in_json, make_message, make_service, outcome_of
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


def error(code, message):
    return {"code": code, "message": message}


CONTRACT = Contract(
    accepted=(201, JSON, b'{"messageId": "<202611240745.1@smtp-relay.mailin.fr>"}'),
    message_id="<202611240745.1@smtp-relay.mailin.fr>",
    without_id=[b'{"messageId": null}', b'{"messageId": 7}', b""],
    secrets={"api-key": PROVIDER_KEY},
    error=lambda text: {"message": text},
    answers={
        "a wrong key": (in_json(401, error("unauthorized", "Key not found")), LoginRefused),
        "quota": (in_json(402, error("not_enough_credits", "Buy some")), AccountRefused),
        "not activated": (
            in_json(403, error("permission_denied", "Your SMTP account is not yet activated.")),
            AccountRefused,
        ),
        "under validation": (
            in_json(400, error("account_under_validation", "Your account is under validation")),
            AccountRefused,
        ),
        "a sender": (
            in_json(
                400,
                error(
                    "invalid_parameter",
                    "Sending has been rejected because the sender "
                    "you used me@example.com is not valid.",
                ),
            ),
            AccountRefused,
        ),
        "an address": (
            in_json(400, error("invalid_parameter", "email is not valid in to")),
            MessageRejected,
        ),
        "an address that is called like a fault": (
            in_json(400, error("invalid_parameter", "account_under_validation@a.org: not valid")),
            MessageRejected,
        ),
        "no subject": (
            in_json(400, error("missing_parameter", "subject is missing")),
            MessageRejected,
        ),
        "a request that was made before": (
            in_json(400, error("duplicate_parameter", "idempotencyKey was used")),
            OutcomeUnknown,
        ),
        "rate": (in_json(429, error("too_many_requests", "Slow down")), RateLimited),
    },
    our_ids=lambda body: [json.loads(body["headers"]["X-Mailin-custom"])["mailpool_id"]],
    looks={
        "good": (
            [in_json(200, {"domains": [{"domain_name": "example.com", "authenticated": True}]})],
            Standing(account=True, domain=True),
        ),
        "not verified": (
            [in_json(200, {"domains": [{"domain_name": "example.com", "authenticated": False}]})],
            Standing(account=True, domain=False),
        ),
        "not listed": (
            [in_json(200, {"domains": []})],
            Standing(account=True, note="The account's list does not name the domain."),
        ),
        "a wrong key": (
            [in_json(401, {"code": "unauthorized", "message": "Key not found"})],
            LoginRefused,
        ),
    },
)


def in_hours(hours):
    return (datetime.now(timezone.utc) + timedelta(hours=hours)).isoformat()


def check(**fields):
    make_service("brevo", "http://127.0.0.1:1").check(make_message(**fields))


def payload_of(**fields):
    service = make_service("brevo", "http://127.0.0.1:1")
    return service.build_request(make_message(**fields)).json


def test_the_end_of_a_rate_limit_is_in_seconds(stand_in):
    server = stand_in(answer_json(429, {}, {"x-sib-ratelimit-reset": "17"}))
    service = make_service("brevo", server.url)
    assert outcome_of(service).retry_after == 17
    server.behaviour = answer_json(429, {}, {"x-sib-ratelimit-reset": "17", "Retry-After": "3"})
    assert outcome_of(service).retry_after == 3
    server.behaviour = answer_json(401, {}, {"x-sib-ratelimit-reset": "17"})
    assert outcome_of(service).retry_after is None


def test_a_scheduled_message_is_accepted_without_a_body(stand_in):
    service = make_service("brevo", stand_in(answer(202)).url)
    assert outcome_of(service) is None


def test_an_empty_answer_with_another_success_is_unknown(stand_in):
    service = make_service("brevo", stand_in(answer(200)).url)
    assert type(outcome_of(service)) is OutcomeUnknown


def test_an_accepted_answer_whose_body_is_cut_is_accepted(stand_in):
    server = stand_in(send_and_close(response(201, JSON, b'{"messageId": "<1>"}')[:-10]))
    assert outcome_of(make_service("brevo", server.url)) is None


def test_the_same_message_has_the_same_idempotency_key():
    service = make_service("brevo", "http://127.0.0.1:1")
    message = make_message()
    keys = {service.build_request(message).json["headers"]["idempotencyKey"] for _ in range(2)}
    assert {key.replace("-", "") for key in keys} == {message.message_id}


def test_a_text_without_html_is_sent_as_it_is():
    payload = payload_of(raw_text_body="Hello <Ada>")
    assert payload["textContent"] == "Hello <Ada>"
    assert "htmlContent" not in payload


def test_a_name_that_it_would_drop_is_encoded():
    sender = payload_of(from_name="Müller, Jörg")["sender"]
    assert sender["name"] == "=?utf-8?b?TcO8bGxlciwgSsO2cmc=?="
    assert payload_of(from_name="Jörg Müller")["sender"]["name"] == "Jörg Müller"
    assert payload_of(from_name="Doe, Jane")["sender"]["name"] == "Doe, Jane"


@pytest.mark.parametrize(
    "carried",
    [
        {"from_name": "n" * 70},
        {"reply_to": "Help <help@example.net>"},
        {"metadata": {"path": "C:\\temp", "n": "x" * 450, "m": "x" * 400}},
        {"attachments": [{"filename": "a.PDF", "content": ""}]},
        {"html_body": "<style>@media print{#a{b:c}}</style>{ %"},
        {"send_at": in_hours(71)},
        {"to_cc": "a@bücher.example", "to_bcc": "jörg@example.org", "reply_to": "jörg@example.net"},
    ],
)
def test_what_it_carries(carried):
    check(**carried)


@pytest.mark.parametrize(
    ("not_carried", "why"),
    [
        ({"to_recipients": [f"{n}@example.org" for n in range(100)]}, "at most 99 recipients"),
        ({"raw_text_body": "x" * 21 * 1024 * 1024}, "at most 20 MB"),
        ({"from_name": "n" * 71}, "70 characters"),
        ({"to_recipients": f"{'n' * 71} <ada@example.org>"}, "70 characters"),
        ({"reply_to": "Jörg <help@example.net>"}, "beyond ASCII in reply_to"),
        ({"headers": {"IdempotencyKey": "1"}}, "no header called idempotencyKey"),
        ({"metadata": {"name": "Zoë"}}, "metadata beyond ASCII"),
        ({"metadata": {"n": "x" * 490, "m": "x" * 440}}, "990 characters of metadata"),
        ({"attachments": [{"filename": "a.exe", "content": ""}]}, "no file with such an extension"),
        ({"subject": "{{a"}, "template language"),
        ({"raw_text_body": "{% if"}, "template language"),
        ({"html_body": "<p>{{ a }}"}, "template language"),
        ({"send_at": in_hours(73)}, "3 days"),
        ({"to_cc": "jörg@example.org"}, "beyond ASCII left of the @ in to_cc"),
        ({"to_recipients": "Jörg <jörg@example.org>"}, "no name of an address beyond ASCII"),
        ({"attachments": [{"filename": "ä.pdf", "content": ""}]}, "file's name beyond ASCII"),
    ],
)
def test_what_it_cannot_carry(not_carried, why):
    with pytest.raises(CannotCarry, match=why):
        check(**not_carried)
