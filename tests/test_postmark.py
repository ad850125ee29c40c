from __future__ import annotations

import pytest
from contract import (
    PROVIDER_KEY,
    Contract,
    in_json,
    make_message,
    make_service,
    outcome_of,
    seen,
)
from messages import NEXT_YEAR
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

OK = {"To": "ada@example.org", "MessageID": "b7bc2f4a", "ErrorCode": 0, "Message": "OK"}
WHY = "Inactive recipients are ones that have generated a hard bounce or a spam complaint."


def refused(code, text="", status=422):
    return in_json(status, {"ErrorCode": code, "Message": text})


def all_inactive(addresses):
    text = "You tried to send to recipient(s) that have been marked as inactive."
    return f"{text} Found inactive addresses: {addresses}. {WHY}"


def some_inactive(addresses, end="."):
    text = f"Message OK, but will not deliver to these inactive addresses: {addresses}{end}"
    return {**OK, "Message": text}


CONTRACT = Contract(
    accepted=in_json(200, OK),
    message_id="b7bc2f4a",
    without_id=[
        b'{"ErrorCode": 0, "Message": "OK"}',
        b'{"ErrorCode": 0, "MessageID": null}',
        b'{"ErrorCode": "0", "MessageID": 7, "Message": [1]}',
    ],
    secrets={"x-postmark-server-token": PROVIDER_KEY},
    error=lambda text: {"Message": text},
    answers={
        "a wrong token": (refused(10, "Bad or missing API token.", 401), LoginRefused),
        "a wrong token with 422": (refused(10, "Bad or missing API token."), LoginRefused),
        "no signature": (refused(400, "Sender Signature not found."), AccountRefused),
        "an unconfirmed signature": (
            refused(401, "Sender signature not confirmed."),
            AccountRefused,
        ),
        "no credits": (refused(405, "Not allowed to send: out of credits."), AccountRefused),
        "pending": (refused(412, "Account is pending."), AccountRefused),
        "may not send": (refused(413, "Account may not send."), AccountRefused),
        "no such server": (refused(422, "Invalid Server or Account."), AccountRefused),
        "no such stream": (refused(1235, "The stream provided does not exist."), AccountRefused),
        "another IP address": (refused(1480, "You are not authorized to send."), AccountRefused),
        "an address": (refused(300, "Invalid 'To' address: 'a'."), MessageRejected),
        "a code that begins like another": (refused(1000, "Something new."), MessageRejected),
        "words like a code": (refused(300, "ErrorCode 405: is odd."), MessageRejected),
        "a forbidden file": (refused(411, "Attachment file type not allowed."), MessageRejected),
        "not JSON": (refused(409, "JSON required.", 415), MessageRejected),
        "too large": (refused(300, "Too large.", 413), MessageRejected),
        "all inactive": (refused(406, all_inactive("ada@example.org")), MessageRejected),
        "all inactive, unnamed": (refused(406, "Inactive recipient."), MessageRejected),
        "inactive at once": (
            in_json(200, some_inactive("ada@example.org")),
            MessageRejected,
        ),
        "an error with 200": (refused(300, "Zero recipients specified", 200), MessageRejected),
        "no credits with 200": (refused(405, "Not allowed to send", 200), AccountRefused),
        "maintenance": (refused(100, "Maintenance"), ServiceUnavailable),
        "down for maintenance": (refused(100, "Maintenance", 503), ServiceUnavailable),
        "rate": (refused(429, "Rate limit exceeded"), RateLimited),
        "rate by status": (refused(0, "Slow down", 429), RateLimited),
    },
    batch=(in_json(200, [OK, {**OK, "MessageID": "c8"}]), ["b7bc2f4a", "c8"]),
    our_ids=lambda body: [
        email["Metadata"]["mailpool_id"] for email in (body if isinstance(body, list) else [body])
    ],
    looks={
        "good": (
            [in_json(200, {"ID": 1, "Name": "Production"})],
            Standing(account=True, note="A server's token hears of no domain."),
        ),
        "a wrong key": ([in_json(401, {"ErrorCode": 10, "Message": "No token"})], LoginRefused),
    },
)

SEVERAL = {
    "to_recipients": ["Ada@Example.org", "Bob <bob@example.org>"],
    "to_cc": "b@bücher.example",
    "to_bcc": "dan@example.org",
}


@pytest.mark.parametrize("end", ["", ".", f". {WHY}"])
@pytest.mark.parametrize("separator", [", ", ","])
def test_those_who_are_inactive_are_refused_and_the_others_are_sent_to(end, separator, stand_in):
    listed = separator.join(["ada@example.org", "b@xn--bcher-kva.example"])
    server = stand_in(answer_json(200, some_inactive(listed, end)))
    acceptance = make_service("postmark", server.url).send(make_message(**SEVERAL), 5)
    assert acceptance.message_id == "b7bc2f4a"
    assert acceptance.refused.keys() == {"ada@example.org", "b@xn--bcher-kva.example"}
    assert "inactive" in acceptance.refused["ada@example.org"]


def test_an_address_that_ends_like_an_inactive_one_is_sent_to(stand_in):
    message = make_message(to_recipients=["a@example.org", "ada@example.org", "a@example.org.uk"])
    server = stand_in(answer_json(200, some_inactive("Ada@example.org")))
    acceptance = make_service("postmark", server.url).send(message, 5)
    assert acceptance.refused.keys() == {"ada@example.org"}


def test_a_refusal_that_names_only_some_may_have_served_the_others(stand_in):
    server = stand_in(answer(*refused(406, all_inactive("dan@example.org"))))
    error = outcome_of(make_service("postmark", server.url), make_message(**SEVERAL))
    assert type(error) is OutcomeUnknown
    assert error.reason.startswith("HTTP 422: ErrorCode 406: You tried to send")
    assert error.summary == "HTTP 422."


def four():
    return [make_message(to_recipients=[f"{n}@example.org", "ada@example.org"]) for n in range(4)]


def test_each_message_of_a_batch_has_its_own_outcome(stand_in):
    elements = [
        OK,
        {"ErrorCode": 300, "Message": "Invalid 'To' address."},
        some_inactive("ada@example.org"),
        {"ErrorCode": 405, "Message": "Not allowed to send."},
    ]
    server = stand_in(answer_json(200, elements))
    service = make_service("postmark", server.url)
    first, second, third, fourth = service.send_batch(four(), 5)
    assert first == Acceptance("b7bc2f4a")
    assert (type(second), second.reason) == (
        MessageRejected,
        "HTTP 200: ErrorCode 300: Invalid 'To' address.",
    )
    assert third.refused.keys() == {"ada@example.org"}
    assert type(fourth) is AccountRefused
    (request,) = server.requests
    assert request.path == "/email/batch"
    assert [email["To"][:13] for email in request.json] == [f"{n}@example.org" for n in range(4)]


def test_a_message_looks_the_same_alone_and_in_a_batch(stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    service = make_service("postmark", server.url)
    message = make_message(**SEVERAL, headers={"X-One": "1"}, tags="welcome")
    service.send(message, 5)
    server.behaviour = answer_json(200, [OK])
    service.send_batch([message], 5)
    alone, batch = map(seen, server.requests)
    assert batch == {**alone, "request": "POST /email/batch", "body": [alone["body"]]}


def test_a_batch_leaks_neither_key_nor_body(stand_in):
    echo = {"ErrorCode": 405, "Message": f"{PROVIDER_KEY} It works."}
    server = stand_in(answer_json(200, [echo]))
    (error,) = make_service("postmark", server.url).send_batch([make_message()], 5)
    assert error.reason == "HTTP 200: ErrorCode 405: [removed] [removed]"


@pytest.mark.parametrize(
    "said",
    [
        [OK, OK, OK],
        [OK, OK, OK, OK, OK],
        OK,
        {"ErrorCode": 0, "Message": "OK"},
        [],
    ],
)
def test_a_batch_whose_answer_does_not_name_each_message_is_unknown(said, stand_in):
    server = stand_in(answer_json(200, said))
    results = make_service("postmark", server.url).send_batch(four(), 5)
    assert [type(result) for result in results] == [OutcomeUnknown] * 4


def test_an_odd_element_of_a_batch_is_unknown_alone(stand_in):
    server = stand_in(answer_json(200, [OK, {}, "OK", {"error": 1}]))
    results = make_service("postmark", server.url).send_batch(four(), 5)
    kinds = [Acceptance, OutcomeUnknown, OutcomeUnknown, OutcomeUnknown]
    assert [type(result) for result in results] == kinds


@pytest.mark.parametrize("missing", [20, 100])  # from the last element on, from the one before
def test_of_a_batch_whose_answer_is_cut_what_was_read_decides(missing, stand_in):
    refusal = {"ErrorCode": 300, "Message": "Invalid 'To' address."}
    whole = response(*in_json(200, [OK, refusal, OK, OK]))
    server = stand_in(send_and_close(whole[:-missing]))
    results = make_service("postmark", server.url).send_batch(four(), 5)
    kinds = [Acceptance, MessageRejected, Acceptance, OutcomeUnknown]
    if missing == 100:
        kinds[2] = OutcomeUnknown
    assert [type(result) for result in results] == kinds


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (refused(410, "Too many batch messages."), MessageRejected),
        (refused(10, "Bad or missing API token.", 401), LoginRefused),
        (refused(100, "Maintenance", 503), ServiceUnavailable),
    ],
)
def test_a_fault_of_the_whole_call_is_everyones(behaviour, expected, stand_in):
    server = stand_in(answer(*behaviour))
    results = make_service("postmark", server.url).send_batch(four(), 5)
    assert [type(result) for result in results] == [expected] * 4


def test_the_answer_to_the_largest_batch_is_read_whole(stand_in):
    element = {**OK, "To": ", ".join(f"somebody-{n}@mail.example.org" for n in range(50))}
    server = stand_in(answer_json(200, [element] * 500))
    results = make_service("postmark", server.url).send_batch([make_message()] * 500, 5)
    assert results == [Acceptance("b7bc2f4a")] * 500


def test_what_no_database_takes_is_taken_out_of_the_ids_of_a_batch(stand_in):
    server = stand_in(answer_json(200, [{**OK, "MessageID": "b7\ud800\0"}]))
    results = make_service("postmark", server.url).send_batch([make_message()], 5)
    assert results == [Acceptance("b7\ufffd\ufffd")]


def test_only_small_messages_share_a_call():
    service = make_service("postmark", "http://127.0.0.1:1")
    assert service.batch_key(make_message()) == service.batch_key(make_message(subject="Other"))
    for fields in (
        {"raw_text_body": "x" * 100_000},
        {"raw_text_body": "ü" * 20_000},  # six bytes each in JSON
        {"attachments": [{"filename": "a.pdf", "content": "AAAA" * 25_000}]},
    ):
        assert service.batch_key(make_message(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"track_opens": False}, "switch the tracking of opens off"),
        ({"tags": ["a", "b"]}, "at most 1 tag"),
        ({"metadata": {"k" * 21: "1"}}, "metadata"),
        ({"metadata": {"k": "1" * 81}}, "metadata"),
        ({"metadata": {f"k{n}": "1" for n in range(10)}}, "at most 9 metadata"),
        ({"to_bcc": [f"{n}@example.org" for n in range(50)]}, "at most 50 recipients"),
        ({"html_body": "ü" * 2_700_000}, "5 MB"),
        ({"raw_text_body": "x" * 5_300_000}, "5 MB"),
        ({"attachments": [{"filename": "a.pdf", "content": "AAAA" * 2_600_000}]}, "10 MB"),
        ({"to_recipients": "jörg@example.org"}, "beyond ASCII"),
        ({"send_at": NEXT_YEAR}, "sends at once"),
    ],
)
def test_what_it_cannot_carry_is_not_taken_to_it(fields, why):
    with pytest.raises(CannotCarry, match=why):
        make_service("postmark", "http://127.0.0.1:1").check(make_message(**fields))


def test_what_is_just_within_its_limits_is_taken_to_it():
    metadata = {"k" * 20: "1" * 80, **{f"k{n}": "1" for n in range(8)}}
    to_bcc = [f"{n}@example.org" for n in range(49)]
    message = make_message(metadata=metadata, to_bcc=to_bcc, raw_text_body="x" * 5_242_880)
    make_service("postmark", "http://127.0.0.1:1").check(message)


@pytest.mark.parametrize(("wanted", "links"), [(True, "HtmlAndText"), (False, "None")])
def test_the_tracking_of_clicks_can_be_switched_on_and_off(wanted, links):
    service = make_service("postmark", "http://127.0.0.1:1")
    payload = service.build_request(make_message(track_clicks=wanted)).json
    assert payload["TrackLinks"] == links
    assert "TrackOpens" not in payload


def test_a_code_in_quotes_is_an_error_too(stand_in):
    server = stand_in(answer_json(200, {**OK, "ErrorCode": "300", "Message": "Invalid."}))
    error = outcome_of(make_service("postmark", server.url))
    assert type(error) is MessageRejected
