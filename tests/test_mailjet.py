from __future__ import annotations

import json

import pytest
from contract import (
    JSON,
    PROVIDER_KEY,
    Contract,
    in_json,
    make_message,
    make_service,
    outcome_of,
    seen,
)
from messages import NEXT_YEAR, PDF
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

BASIC = "Basic cHVibGljLWtleTpTRy5rZXktYXQtdGhlLXByb3ZpZGVy"


def accepted(number):
    to = {"Email": "ada@example.org", "MessageUUID": f"uuid-{number}", "MessageID": number}
    return {"Status": "success", "CustomID": "", "To": [to], "Cc": [], "Bcc": []}


def refused(code, status, text="No."):
    error = {"ErrorIdentifier": "f9", "ErrorCode": code, "StatusCode": status}
    return {"Status": "error", "Errors": [{**error, "ErrorMessage": text, "ErrorRelatedTo": []}]}


def results(*each):
    return {"Messages": each}


def of_the_call(code, text):
    return {"ErrorIdentifier": "06", "ErrorCode": code, "ErrorMessage": text}


CONTRACT = Contract(
    accepted=in_json(200, results(accepted(576460752303423488))),
    message_id="576460752303423488",
    without_id=[
        json.dumps(results({"Status": "success", **to})).encode()
        for to in ({}, {"To": []}, {"To": [{"MessageID": None}]}, {"To": [7]}, {"To": 7})
    ],
    secrets={"authorization": BASIC},
    error=lambda text: {"ErrorMessage": text},
    settings={"api_key": "public-key", "secret_key": PROVIDER_KEY},
    answers={
        "a wrong key": (in_json(401, of_the_call("mj-0015", "Unauthorized")), LoginRefused),
        "a suspended key": (in_json(400, of_the_call("mj-0001", "Suspended")), AccountRefused),
        "JSON that it cannot read": (
            in_json(400, of_the_call("mj-0002", "Malformed JSON")),
            MessageRejected,
        ),
        "a sender, by the status of the message": (
            in_json(400, results(refused("send-0008", 403))),
            AccountRefused,
        ),
        "a sender, by its code": (
            in_json(400, results(refused("send-0008", 400))),
            AccountRefused,
        ),
        "a sender, with a success of the call": (
            in_json(200, results(refused("send-0008", 403))),
            AccountRefused,
        ),
        "an address": (in_json(400, results(refused("mj-0013", 400))), MessageRejected),
        "an address that is called like a code": (
            in_json(400, results(refused("mj-0013", 400, "send-0008@example.org is invalid."))),
            MessageRejected,
        ),
        "an error that says nothing": (in_json(200, results({"Status": "error"})), MessageRejected),
        "a failure of its own": (in_json(500, results(refused("mj-1", 500))), ServiceUnavailable),
        "a status that nobody knows": (
            in_json(400, results({"Status": "queued"})),
            OutcomeUnknown,
        ),
        "no word on the message": (in_json(200, results()), OutcomeUnknown),
        "rate": ((429, {}, b"Too Many Requests"), RateLimited),
    },
    batch=(in_json(200, results(accepted(1), accepted(2))), ["1", "2"]),
    our_ids=lambda body: [message["CustomID"] for message in body["Messages"]],
    looks={
        "good": (
            [in_json(200, {"Data": [{"Email": "*@example.com", "Status": "Active"}]})],
            Standing(account=True, domain=True),
        ),
        "not verified": (
            [in_json(200, {"Data": [{"Email": "*@example.com", "Status": "Inactive"}]})],
            Standing(account=True, domain=False),
        ),
        "an address alone": (
            [in_json(200, {"Data": [{"Email": "me@example.com", "Status": "Active"}]})],
            Standing(account=True, note="The account has no sender *@example.com."),
        ),
        "a wrong key": (
            [in_json(401, {"ErrorCode": "mj-0015", "ErrorMessage": "API key is wrong"})],
            LoginRefused,
        ),
    },
)


def a_service(url="http://127.0.0.1:1"):
    return make_service("mailjet", url)


def sent_together(stand_in, behaviour, count=3):
    """What became of `count` messages in one call."""
    service = a_service(stand_in(behaviour).url)
    return service.send_batch([make_message() for _ in range(count)], 5)


def test_a_refused_call_may_hold_accepted_messages(stand_in):
    told = results(accepted(1), refused("mj-0013", 400, "Invalid email."), accepted(3))
    first, second, third = sent_together(stand_in, answer_json(400, told))
    assert (first, third) == (Acceptance("1"), Acceptance("3"))
    assert type(second) is MessageRejected
    assert second.reason == "HTTP 400: mj-0013 Invalid email."


def test_an_accepted_message_in_a_refused_call_is_accepted(stand_in):
    assert outcome_of(a_service(stand_in(answer_json(400, results(accepted(1)))).url)) == "1"


def test_a_call_that_is_refused_as_a_whole_is_everyones(stand_in):
    outcomes = sent_together(stand_in, answer_json(401, of_the_call("mj-0015", "No.")))
    assert [type(outcome) for outcome in outcomes] == [LoginRefused] * 3


def test_a_result_that_says_nothing_is_unknown_and_the_others_are_not(stand_in):
    told = results(accepted(1), "?", accepted(3))
    outcomes = sent_together(stand_in, answer_json(200, told))
    assert [type(outcome) for outcome in outcomes] == [Acceptance, OutcomeUnknown, Acceptance]


@pytest.mark.parametrize("numbers", [[], [1, 2], [1, 2, 3, 4]])
def test_where_results_are_missing_or_too_many_nobody_gets_anothers(numbers, stand_in):
    told = results(*map(accepted, numbers))
    outcomes = sent_together(stand_in, answer_json(200, told))
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 3


def cut(status, told):
    whole = response(status, JSON, json.dumps(told).encode())
    return send_and_close(whole[:-20])


@pytest.mark.parametrize("status", [200, 400])
def test_of_a_call_whose_answer_is_cut_what_was_read_decides(status, stand_in):
    told = results(accepted(1), refused("mj-0013", 400), accepted(3))
    whole = response(status, JSON, json.dumps(told).encode())
    until = whole.index(b'"success"', whole.index(b"mj-0013"))
    outcomes = sent_together(stand_in, send_and_close(whole[:until]))
    kinds = [Acceptance, MessageRejected, OutcomeUnknown]
    assert [type(outcome) for outcome in outcomes] == kinds


@pytest.mark.parametrize("status", [200, 400])
def test_a_call_whose_answer_is_cut_before_it_says_anything_is_unknown(status, stand_in):
    whole = response(status, JSON, json.dumps(results(accepted(1))).encode())
    outcomes = sent_together(stand_in, send_and_close(whole[: whole.index(b"success")]))
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 3


def test_a_refused_message_whose_answer_is_cut_is_refused(stand_in):
    server = stand_in(cut(400, results(refused("mj-0013", 400))))
    assert type(outcome_of(a_service(server.url))) is MessageRejected


def test_a_page_instead_of_results_is_unknown(stand_in):
    outcomes = sent_together(stand_in, answer(200, {"Content-Type": "text/html"}, b"<p>"))
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 3


def test_a_batch_holds_whole_messages(stand_in):
    status, headers, body = CONTRACT.batch[0]
    server = stand_in(answer(status, headers, body))
    messages = [
        make_message(subject="One", tags="a"),
        make_message(to_recipients="bob@example.org", html_body="<p>Two</p>"),
    ]
    outcomes = a_service(server.url).send_batch(messages, 5)
    assert [outcome.message_id for outcome in outcomes] == CONTRACT.batch[1]
    sender = {"Email": "me@example.com"}
    assert seen(server.requests[0])["body"] == {
        "Messages": [
            {
                "From": sender,
                "To": [{"Email": "ada@example.org"}],
                "Subject": "One",
                "TextPart": "It works.",
                "CustomID": messages[0].message_id,
                "CustomCampaign": "a",
            },
            {
                "From": sender,
                "To": [{"Email": "bob@example.org"}],
                "Subject": "Hello",
                "TextPart": "It works.",
                "HTMLPart": "<p>Two</p>",
                "CustomID": messages[1].message_id,
            },
        ]
    }


def test_messages_of_one_recipient_without_files_share_a_call():
    service = a_service()
    keys = {service.batch_key(make_message(**fields)) for fields in ({}, {"subject": "Other"})}
    assert len(keys) == 1
    assert None not in keys
    assert service.batch_key(make_message(to_cc="bob@example.org")) is None
    assert service.batch_key(make_message(attachments=[PDF])) is None


def test_a_refusal_repeats_neither_key_nor_body(stand_in):
    text = f"{BASIC} {PROVIDER_KEY} public-key It works."
    server = stand_in(answer_json(400, results(refused("mj-0004", 400, text))))
    error = outcome_of(a_service(server.url))
    assert error.reason == "HTTP 400: mj-0004 Basic [removed] [removed] [removed] [removed]"
    assert error.summary == "HTTP 400."


def test_it_needs_both_keys():
    with pytest.raises(ValueError, match="secret_key"):
        type(a_service()).Settings.model_validate({"priority_value": 1, "api_key": "public-key"})


@pytest.mark.parametrize(
    ("not_carried", "why"),
    [
        ({"to_recipients": [f"{n}@example.org" for n in range(51)]}, "at most 50 recipients"),
        ({"attachments": [PDF] * 51}, "at most 50 attachments"),
        ({"raw_text_body": "x" * 16 * 1024 * 1024}, "at most 15 MB"),
        ({"subject": "s" * 256}, "255 characters of subject"),
        ({"headers": {"List-Id": "<a.example>"}}, "no header List-Id"),
        ({"headers": {"USER-AGENT": "x"}}, "no header USER-AGENT"),
        ({"attachments": [{"filename": "a.pdf", "content": ""}]}, "no empty file"),
        ({"send_at": NEXT_YEAR}, "at once"),
        ({"tags": ["a", "b"]}, "at most 1 tag"),
        ({"track_opens": True}, "in HTML alone"),
        ({"track_clicks": True}, "in HTML alone"),
        ({"reply_to": ["a@example.org", "b@example.org"]}, "at most 1 address in reply_to"),
        ({"to_recipients": [], "to_bcc": "a@example.org"}, "to_recipients"),
    ],
)
def test_what_it_cannot_carry(not_carried, why):
    with pytest.raises(CannotCarry, match=why):
        a_service().check(make_message(**not_carried))


def test_a_text_is_never_tracked_and_nothing_is_asked_for():
    untracked = make_message(track_opens=False, track_clicks=False)
    a_service().check(untracked)
    (asked,) = a_service().build_request(untracked).json["Messages"]
    assert asked.keys().isdisjoint({"TrackOpens", "TrackClicks"})
    html = make_message(html_body="<p>", track_opens=True, track_clicks=False)
    a_service().check(html)
    (asked,) = a_service().build_request(html).json["Messages"]
    assert (asked["TrackOpens"], asked["TrackClicks"]) == ("enabled", "disabled")


def test_what_it_carries_at_the_most():
    fifty = [f"{n}@example.org" for n in range(50)]
    headers = {"List-Unsubscribe": "<https://example.com/u>"}
    a_service().check(make_message(to_recipients=fifty, subject="s" * 255, headers=headers))
