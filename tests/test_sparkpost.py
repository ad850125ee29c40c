from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from contract import JSON, PROVIDER_KEY, Contract, in_json, make_message, make_service, outcome_of
from messages import NEXT_YEAR, PDF
from standins import answer_json, response, send_and_close

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


def errors(message, description=None, code=None):
    given = {"message": message, "description": description, "code": code}
    return {"errors": [{name: text for name, text in given.items() if text}]}


def totals(accepted, rejected, *rcpt_to_errors, **more):
    counted = {"total_accepted_recipients": accepted, "total_rejected_recipients": rejected}
    told = {"rcpt_to_errors": [*rcpt_to_errors]} if rcpt_to_errors else {}
    return {"results": {"id": "11668787484950529", **counted, **told}, **more}


SYNTAX = {"message": "invalid data format/type", "code": "1300"}
WITH_ERRORS = errors("transmission created, but with validation errors", code="2000")

CONTRACT = Contract(
    accepted=in_json(200, totals(1, 0)),
    message_id="11668787484950529",
    without_id=[
        b'{"results": {"total_accepted_recipients": 1}}',
        b'{"results": {"id": 7, "total_accepted_recipients": 1, "total_rejected_recipients": 0}}',
    ],
    secrets={"authorization": PROVIDER_KEY},
    error=errors,
    answers={
        "a wrong key": (in_json(401, errors("Unauthorized.")), LoginRefused),
        "a key that may not send": (in_json(403, errors("Forbidden.")), AccountRefused),
        "quota": (
            in_json(420, errors("Exceed Sending Limit (hourly)", code="2101")),
            AccountRefused,
        ),
        "a sending domain": (
            in_json(400, errors("Invalid domain", "Unconfigured or unverified sending domain.")),
            AccountRefused,
        ),
        "a sending domain, by its code": (
            in_json(400, errors("Invalid domain", code="7001")),
            AccountRefused,
        ),
        "a sending domain without DKIM": (
            in_json(400, errors("Unable to sign", code="1100")),
            AccountRefused,
        ),
        "an address that is called like a code": (
            in_json(400, errors("Invalid recipient", "7001@example.org", "1300")),
            MessageRejected,
        ),
        "no recipient that is valid": (
            in_json(400, errors("At least one valid recipient is required", code="5002")),
            MessageRejected,
        ),
        "a suppressed recipient, long ago": (
            in_json(400, errors("Message generation rejected", code="1902")),
            MessageRejected,
        ),
        "a field": (
            in_json(422, errors("required field is missing", "content.subject", "1400")),
            MessageRejected,
        ),
        "rate": (in_json(429, errors("Too many requests")), RateLimited),
        "a failure of its own": (in_json(503, errors("Try later")), ServiceUnavailable),
        "nobody accepted, and why": (
            in_json(200, {**totals(0, 1, SYNTAX), **WITH_ERRORS}),
            MessageRejected,
        ),
        "nobody accepted": (in_json(200, totals(0, 1)), OutcomeUnknown),
        "no count": (in_json(200, {"results": {"id": "1"}}), OutcomeUnknown),
        "a count that is a list": (in_json(200, totals([1], 0)), OutcomeUnknown),
        "a count that is none": (in_json(200, totals(0, "some")), OutcomeUnknown),
    },
    our_ids=lambda body: [body["metadata"]["mailpool_id"]],
    looks={
        "good": (
            [
                in_json(
                    200,
                    {
                        "results": {
                            "status": {"ownership_verified": True},
                            "dkim": {"selector": "scph1126"},
                        }
                    },
                )
            ],
            Standing(account=True, domain=True, dkim=("scph1126",)),
        ),
        "not verified": (
            [in_json(200, {"results": {"status": {"ownership_verified": False}}})],
            Standing(account=True, domain=False),
        ),
        "no such domain": (
            [in_json(404, {"errors": [{"message": "resource not found"}]})],
            Standing(account=True, domain=False, note="The account has no such domain."),
        ),
        "a key that may only send": (
            [in_json(403, {"errors": [{"message": "Forbidden."}]})],
            Standing(note="The key may not ask about sending domains."),
        ),
        "a wrong key": ([in_json(401, {"errors": [{"message": "Unauthorized."}]})], LoginRefused),
    },
)

TWO = {"to_recipients": ["Ada@example.org", "bob@example.org"]}


def a_service(url="http://127.0.0.1:1"):
    return make_service("sparkpost", url)


def sent_to_two(stand_in, told):
    return a_service(stand_in(answer_json(200, told)).url).send(make_message(**TWO), 5)


def payload_of(**fields):
    return a_service().build_request(make_message(**fields)).json


@pytest.mark.parametrize("written", ["<ada@example.org>", "'Ada@Example.org'.", "ada@example.org"])
def test_a_recipient_it_names_is_the_one_it_refused(stand_in, written):
    named = {**SYNTAX, "description": f"Error with {written}"}
    acceptance = sent_to_two(stand_in, {**totals(1, 1, named), **WITH_ERRORS})
    reason = f"1300 invalid data format/type Error with {written}"
    assert acceptance == Acceptance("11668787484950529", {"ada@example.org": reason})


@pytest.mark.parametrize(
    "told",
    [
        totals(1, 1),
        totals(1, 1, SYNTAX),
        totals(1, 1, {**SYNTAX, "description": "ada@example.orgs, xada@example.org"}),
        totals(1, 1, {**SYNTAX, "description": "ada@example.org or bob@example.org"}),
    ],
)
def test_some_rejected_and_nobody_knows_whom_is_unknown(stand_in, told):
    with pytest.raises(OutcomeUnknown, match="some of the recipients, and does not say whom"):
        sent_to_two(stand_in, {**told, **WITH_ERRORS})


@pytest.mark.parametrize(
    "told",
    [
        totals(1, 0),
        totals(3, 0),
        totals(0, 1, {**SYNTAX, "description": "ada@example.org"}),
    ],
)
def test_numbers_that_do_not_add_up_to_everybody_are_unknown(stand_in, told):
    with pytest.raises(OutcomeUnknown):
        sent_to_two(stand_in, told)


def test_an_answer_that_was_cut_after_it_counted_everybody_is_accepted(stand_in):
    counted = b'{"results": {"total_rejected_recipients": 0, "total_accepted_recipients": 2, "id": '
    server = stand_in(send_and_close(response(200, JSON, counted + b'"116"}}')[:-4]))
    assert a_service(server.url).send(make_message(**TWO), 5) == Acceptance()


def test_everybody_rejected_is_refused_in_its_own_words(stand_in):
    told = {**totals(0, 2, {**SYNTAX, "description": f"{PROVIDER_KEY} It works."}), **WITH_ERRORS}
    with pytest.raises(MessageRejected) as refused:
        sent_to_two(stand_in, told)
    assert refused.value.reason.startswith(
        "It rejected every recipient: 1300 invalid data format/type [removed] [removed] 2000"
    )
    assert "1300" not in refused.value.summary


def test_everybody_sees_the_same_to_and_nobody_the_bcc():
    payload = payload_of(
        to_recipients=["Ada <ada@example.org>", "bob@example.org"],
        to_cc="Carol <carol@example.org>",
        to_bcc="dave@example.org",
    )
    shown = "Ada <ada@example.org>, bob@example.org"
    assert payload["recipients"] == [
        {"address": {"email": f"{name}@example.org", "header_to": shown}}
        for name in ("ada", "bob", "carol", "dave")
    ]
    assert payload["content"]["headers"]["Cc"] == "Carol <carol@example.org>"
    assert "dave" not in str(payload["content"])


def test_its_template_language_is_switched_off_in_bodies():
    body = {"raw_text_body": "{{name}}", "html_body": "<p>{{name}}</p>"}
    a_service().check(make_message(**body, to_bcc="{{name}} <b@example.org>"))
    payload = payload_of(**body)
    assert payload["content"]["text"] == "{{name}}"
    assert payload["options"] == {"perform_substitutions": False}


def test_a_time_to_send_at_is_in_seconds_with_its_zone():
    at = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=71)
    payload = payload_of(send_at=at.isoformat())
    assert payload["options"]["start_time"] == at.isoformat()
    assert payload["options"]["start_time"].endswith("+00:00")


@pytest.mark.parametrize(
    ("not_carried", "why"),
    [
        ({"to_recipients": [f"{n:04}@example.org" for n in range(600)]}, "so many"),
        ({"tags": "t" * 65}, "64 bytes in a tag"),
        ({"tags": ["a", "b"]}, "at most 1 tag"),
        ({"attachments": [{**PDF, "filename": "ä" * 126 + ".pdf"}]}, "255 bytes in a file's name"),
        ({"metadata": {f"k{n}": "x" * 487 for n in range(20)}}, "10,000 bytes of metadata"),
        ({"raw_text_body": "x" * 21 * 1024 * 1024}, "at most 20 MB"),
        ({"send_at": NEXT_YEAR}, "3 days"),
        ({"to_recipients": [], "to_bcc": "a@example.org"}, "to_recipients"),
        ({"subject": "{{name}}"}, "{{ in bodies alone"),
        ({"from_name": "{{name}}"}, "{{ in bodies alone"),
        ({"reply_to": "{{name}} <b@example.org>"}, "{{ in bodies alone"),
        ({"reply_to": "{{name}}@example.org"}, "{{ in bodies alone"),
        ({"headers": {"X-Name": "{{name}}"}}, "{{ in bodies alone"),
        ({"to_recipients": "{{name}} <b@example.org>"}, "{{ in bodies alone"),
        ({"to_cc": "{{name}} <b@example.org>"}, "{{ in bodies alone"),
        ({"headers": {"list-unsubscribe": "<https://example.com/u>"}}, "which it sets itself"),
        ({"headers": {"List-Unsubscribe-Post": "One-Click"}}, "which it sets itself"),
    ],
)
def test_what_it_cannot_carry(not_carried, why):
    with pytest.raises(CannotCarry, match=why):
        a_service().check(make_message(**not_carried))


def test_what_it_carries_at_the_most():
    metadata = {f"k{n}": "x" * 486 for n in range(20)}
    files = [{**PDF, "filename": "ä" * 125 + ".pdf"}]
    a_service().check(make_message(to_bcc=[f"{n}@example.org" for n in range(999)]))
    a_service().check(make_message(tags="t" * 64, attachments=files, metadata=metadata))


def test_an_answer_that_counts_nobody_is_unknown(stand_in):
    server = stand_in(answer_json(200, totals(0, 0)))
    error = outcome_of(make_service("sparkpost", server.url))
    assert type(error) is OutcomeUnknown
