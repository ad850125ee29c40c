from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from contract import (
    PROVIDER_KEY,
    Contract,
    data_of,
    in_json,
    make_message,
    make_service,
    outcome_of,
)
from messages import NEXT_YEAR, PDF, PLAIN
from standins import answer, answer_json, response, send_and_close

from email_services.abstract import Acceptance, Standing
from email_services.exceptions import (
    AccountRefused,
    CannotCarry,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
)
from email_services.message import EmailMessage

ID = "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"
OTHER_ID = "c11a2b12-c014-41df-9386-2b9b8240cbd5"


def refused(status, name, text="", headers=None):
    return in_json(status, {"statusCode": status, "name": name, "message": text}, headers)


CONTRACT = Contract(
    accepted=in_json(200, {"id": ID}),
    message_id=ID,
    without_id=[b'{"id": null}', b'{"id": 7}'],
    secrets={"authorization": f"Bearer {PROVIDER_KEY}"},
    error=lambda text: {"message": text},
    answers={
        "no key": (refused(401, "missing_api_key"), LoginRefused),
        "a key for something else": (refused(401, "restricted_api_key"), LoginRefused),
        "a wrong key": (refused(403, "invalid_api_key", "API key is invalid"), LoginRefused),
        "a wrong key, as seen": (
            refused(400, "validation_error", "API key is invalid"),
            LoginRefused,
        ),
        "a domain": (
            refused(403, "validation_error", "The example.com domain is not verified."),
            AccountRefused,
        ),
        "daily quota": (refused(429, "daily_quota_exceeded", "Reached."), AccountRefused),
        "monthly quota": (refused(429, "monthly_quota_exceeded", "Reached."), AccountRefused),
        "rate": (refused(429, "rate_limit_exceeded", "Too many requests."), RateLimited),
        "rate, at an address that is called like a quota": (
            refused(429, "rate_limit_exceeded", "Too many requests for quota@example.org."),
            RateLimited,
        ),
        "a field": (refused(400, "validation_error", "Invalid `to` field."), MessageRejected),
        "a field that speaks of a key": (
            refused(400, "validation_error", "Invalid `subject`: Your new API key"),
            MessageRejected,
        ),
        "a sender": (refused(422, "invalid_from_address"), MessageRejected),
        "a file": (refused(422, "invalid_attachment"), MessageRejected),
        "security": (refused(451, "security_error"), MessageRejected),
        "the same key at once": (refused(409, "concurrent_idempotent_requests"), OutcomeUnknown),
        "the same key before": (refused(409, "invalid_idempotent_request"), OutcomeUnknown),
        "a fault of theirs": (refused(500, "application_error"), ServiceUnavailable),
    },
    batch=(in_json(200, {"data": [{"id": ID}, {"id": OTHER_ID}]}), [ID, OTHER_ID]),
    our_ids=lambda body: [
        data_of(email["tags"])["mailpool_id"]
        for email in (body if isinstance(body, list) else [body])
    ],
    looks={
        "good": (
            [in_json(200, {"data": [{"name": "example.com", "status": "verified"}]})],
            Standing(account=True, domain=True),
        ),
        "not verified": (
            [in_json(200, {"data": [{"name": "example.com", "status": "pending"}]})],
            Standing(account=True, domain=False),
        ),
        "not listed": (
            [in_json(200, {"data": []})],
            Standing(account=True, note="The account's list does not name the domain."),
        ),
        "a key that may only send": (
            [in_json(401, {"name": "restricted_api_key", "message": "Only sending."})],
            Standing(account=True, note="The key may only send."),
        ),
        "a wrong key": (
            [in_json(403, {"name": "invalid_api_key", "message": "API key is invalid"})],
            LoginRefused,
        ),
    },
)


def check(**fields):
    make_service("resend", "http://127.0.0.1:1").check(make_message(**fields))


def tags_of(message):
    return make_service("resend", "http://127.0.0.1:1").build_request(message).json["tags"]


def test_a_message_sent_twice_has_the_same_idempotency_key(stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    service = make_service("resend", server.url)
    message = make_message()
    service.send(message, 5)
    service.send(message, 5)
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys == [message.message_id] * 2


def test_tags_and_metadata_are_both_its_tags():
    message = make_message(tags=["welcome", "spring_2026"], metadata={"order": "42"})
    assert tags_of(message) == [
        {"name": "welcome", "value": "1"},
        {"name": "spring_2026", "value": "1"},
        {"name": "mailpool_id", "value": message.message_id},
        {"name": "order", "value": "42"},
    ]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"tags": "spring sale"}, "only tags and metadata of"),
        ({"metadata": {"customer": "Zoë"}}, "only tags and metadata of"),
        ({"metadata": {"order": "x" * 257}}, "only tags and metadata of"),
        ({"tags": "order", "metadata": {"order": "42"}}, "the name of a key in metadata"),
        ({"tags": "mailpool_id"}, "or called mailpool_id"),
        ({"track_opens": False}, "tracking"),
        ({"track_clicks": True}, "tracking"),
        ({"to_recipients": [f"{n}@example.org" for n in range(51)]}, "at most 50 addresses"),
        ({"to_recipients": [], "to_cc": "ada@example.org"}, "needs an address in to_recipients"),
        ({"to_recipients": "jörg@example.org"}, "beyond ASCII"),
    ],
)
def test_what_it_cannot_carry_is_not_taken_to_it(fields, why):
    with pytest.raises(CannotCarry, match=why):
        check(**fields)


def test_it_takes_40_megabytes():
    file = {"filename": "a.pdf", "content": "AAAA" * 10_300_000}
    message = EmailMessage.parse({**PLAIN, "attachments": [file]}, "example.com", 10**8)
    with pytest.raises(CannotCarry, match="40 MB"):
        make_service("resend", "http://127.0.0.1:1").check(message)


def test_what_is_just_within_its_limits_is_taken_to_it():
    check(
        to_recipients=[f"{n}@example.org" for n in range(50)],
        to_bcc=[f"{n}@example.net" for n in range(50)],
        metadata={"order": "x" * 256},
        tags="other",
    )


def at(days):
    return datetime.fromtimestamp(time.time() + days * 24 * 3600, timezone.utc).isoformat()


def test_it_schedules_30_days_ahead_without_files():
    check(send_at=at(29))
    with pytest.raises(CannotCarry, match="30 days"):
        check(send_at=at(31))
    with pytest.raises(CannotCarry, match="with files"):
        check(send_at=at(1), attachments=[PDF])


def test_the_time_is_in_utc_to_the_millisecond():
    message = make_message(send_at=NEXT_YEAR.replace("00Z", "00.123456+02:00"))
    payload = make_service("resend", "http://127.0.0.1:1").build_request(message).json
    two_hours_before = datetime.fromisoformat(NEXT_YEAR[:-1]) - timedelta(hours=2)
    assert payload["scheduled_at"] == f"{two_hours_before.isoformat()}.123Z"


def test_a_rate_limit_says_when_it_ends(stand_in):
    server = stand_in(answer(*refused(429, "rate_limit_exceeded", "", {"retry-after": "3"})))
    assert outcome_of(make_service("resend", server.url)).retry_after == 3


def test_messages_with_files_or_a_time_go_alone():
    service = make_service("resend", "http://127.0.0.1:1")
    assert service.batch_key(make_message()) == service.batch_key(make_message(subject="Other"))
    assert service.batch_key(make_message(attachments=[PDF])) is None
    assert service.batch_key(make_message(send_at=at(1))) is None


def three():
    return [make_message(to_recipients=f"{name}@example.org") for name in ("ada", "bob", "eve")]


def test_each_message_of_a_batch_has_its_own_outcome(stand_in):
    said = {
        "data": [{"id": ID}, {"id": OTHER_ID}],
        "errors": [{"index": 1, "message": "The `to` field is not valid."}],
    }
    server = stand_in(answer_json(200, said))
    messages = three()
    first, second, third = make_service("resend", server.url).send_batch(messages, 5)
    assert (first, third) == (Acceptance(ID), Acceptance(OTHER_ID))
    assert (type(second), second.reason) == (
        MessageRejected,
        "HTTP 200: The `to` field is not valid.",
    )
    (request,) = server.requests
    assert request.path == "/emails/batch"
    assert request.headers["x-batch-validation"] == "permissive"
    assert [email["to"] for email in request.json] == [
        [str(message.to_recipients[0])] for message in messages
    ]


def test_a_domain_that_is_not_verified_is_the_accounts_fault_in_a_batch_too(stand_in):
    text = "The example.com domain is not verified. Please, add and verify your domain."
    errors = [{"index": n, "message": text} for n in range(3)]
    server = stand_in(answer_json(200, {"data": [], "errors": errors}))
    results = make_service("resend", server.url).send_batch(three(), 5)
    assert [type(result) for result in results] == [AccountRefused] * 3


def test_a_batch_leaks_neither_key_nor_body(stand_in):
    errors = [{"index": 0, "message": f"{PROVIDER_KEY} It works."}]
    server = stand_in(answer_json(200, {"errors": errors}))
    (error,) = make_service("resend", server.url).send_batch([make_message()], 5)
    assert error.reason == "HTTP 200: [removed] [removed]"


def test_a_batch_has_one_idempotency_key_for_its_messages_in_their_order():
    service = make_service("resend", "http://127.0.0.1:1")
    messages = three()

    def key(batch):
        return service.build_batch(batch).headers["Idempotency-Key"]

    assert key(messages) == key(messages)
    assert len(key(messages)) <= 256
    assert len({key(messages), key(messages[:2]), key(messages[::-1])}) == 3


@pytest.mark.parametrize(
    "said",
    [
        {},
        [],
        {"data": [{"id": ID}] * 2},
        {"data": [{"id": ID}] * 4},
        {"data": [{"id": ID}, None, {"id": ID}]},
        {"data": [{"id": ID}] * 3, "errors": [{"index": 1, "message": "?"}]},
        {"data": [{"id": ID}] * 2, "errors": [{"index": 3, "message": "?"}]},
        {"data": [{"id": ID}] * 2, "errors": [{"index": [1], "message": "?"}]},
        {"data": [{"id": ID}] * 2, "errors": [{"message": "?"}]},
        {"data": [{"id": ID}], "errors": [{"index": 1, "message": "?"}] * 2},
        {"data": {"id": ID}, "errors": "?"},
    ],
)
def test_a_batch_whose_answer_does_not_fit_is_unknown(said, stand_in):
    server = stand_in(answer_json(200, said))
    results = make_service("resend", server.url).send_batch(three(), 5)
    assert [type(result) for result in results] == [OutcomeUnknown] * 3


def test_a_batch_whose_answer_is_cut_is_unknown(stand_in):
    whole = response(*in_json(200, {"data": [{"id": ID}] * 3}))
    server = stand_in(send_and_close(whole[:-60]))
    results = make_service("resend", server.url).send_batch(three(), 5)
    assert [type(result) for result in results] == [OutcomeUnknown] * 3


def test_a_batch_whose_answer_is_cut_after_everybody_was_named_is_sent(stand_in):
    whole = response(*in_json(200, {"data": [{"id": ID}] * 3}))
    server = stand_in(send_and_close(whole[:-20]))
    results = make_service("resend", server.url).send_batch(three(), 5)
    assert results == [Acceptance(ID), Acceptance(ID), Acceptance()]


def test_a_batch_without_ids_is_sent(stand_in):
    server = stand_in(answer_json(200, {"data": [{}, {"id": 7}, {"id": None}], "errors": []}))
    results = make_service("resend", server.url).send_batch(three(), 5)
    assert results == [Acceptance()] * 3


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (refused(422, "missing_required_field"), MessageRejected),
        (refused(429, "daily_quota_exceeded"), AccountRefused),
        (refused(500, "internal_server_error"), ServiceUnavailable),
    ],
)
def test_a_fault_of_the_whole_call_is_everyones(behaviour, expected, stand_in):
    server = stand_in(answer(*behaviour))
    results = make_service("resend", server.url).send_batch(three(), 5)
    assert [type(result) for result in results] == [expected] * 3
