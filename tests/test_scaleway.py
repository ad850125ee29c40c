"""Scaleway Transactional Email: what it answers, and what only it does."""

import json
import math

import pytest
from contract import PROVIDER_KEY, Contract, in_json, make_message, make_service, outcome_of
from standins import answer, answer_json

from email_services.abstract import Standing
from email_services.exceptions import (
    AccountRefused,
    CannotCarry,
    LoginRefused,
    MessageRejected,
    RateLimited,
    ServiceUnavailable,
)

PROJECT = "6170692e-7363-616c-6577-61792e636f6d"
MESSAGE_ID = "3d928e21-187a-4539-b303-403156e37911"


def accepted_for(*recipients):
    """An email for each recipient, all of one message."""
    emails = [
        {
            "id": f"655c27f2-b2a3-4a9f-8e1f-3e6dc268b1c{number}",
            "message_id": MESSAGE_ID,
            "project_id": PROJECT,
            "mail_from": "me@example.com",
            "mail_rcpt": recipient,
            "rcpt_to": recipient,
            "rcpt_type": "to",
            "status": "new",
            "status_details": "not yet processed",
            "try_count": 0,
            "last_tries": [],
        }
        for number, recipient in enumerate(recipients)
    ]
    return in_json(200, {"emails": emails})


def invalid(argument, reason="constraint", message="invalid argument(s)"):
    """What it says of an argument that it does not like."""
    details = [{"argument_name": argument, "reason": reason, "help_message": "must be other"}]
    return in_json(400, {"type": "invalid_arguments", "message": message, "details": details})


def our_ids(body):
    """Our id is in the metadata, which are a header."""
    headers = {header["key"]: header["value"] for header in body["additional_headers"]}
    return [json.loads(headers["X-Mailpool-Metadata"])["mailpool_id"]]


CONTRACT = Contract(
    accepted=accepted_for("ada@example.org"),
    message_id=MESSAGE_ID,
    without_id=[b'{"emails": []}', b'{"emails": [{}]}', b'{"emails": [{"message_id": 7}]}'],
    secrets={"x-auth-token": PROVIDER_KEY},
    error=lambda text: {"message": text},
    answers={
        "an address": (invalid("to.0.email", "format"), MessageRejected),
        "a sender": (in_json(400, {"message": "Invalid email from address"}), MessageRejected),
        "a project": (invalid("project_id", "format"), AccountRefused),
        "a subject about it": (invalid("subject", message="my_project_id"), MessageRejected),
        "a key": (
            in_json(
                401,
                {
                    "type": "denied_authentication",
                    "message": "authentication is denied",
                    "method": "api_key",
                    "reason": "not_found",
                },
            ),
            LoginRefused,
        ),
        "a right": (
            in_json(
                403,
                {
                    "type": "permissions_denied",
                    "message": "insufficient permissions",
                    "details": [{"resource": "email", "action": "write"}],
                },
            ),
            AccountRefused,
        ),
        "a quota": (
            in_json(
                403,
                {
                    "type": "quotas_exceeded",
                    "message": "quota exceeded",
                    "details": [{"resource": "emails", "quota": 10000, "current": 10000}],
                },
            ),
            AccountRefused,
        ),
        "nothing there": (
            in_json(404, {"type": "not_found", "resource": "project", "resource_id": PROJECT}),
            AccountRefused,
        ),
        "a state": (
            in_json(409, {"type": "transient_state", "resource": "domain"}),
            ServiceUnavailable,
        ),
        "a key of old": (
            in_json(410, {"type": "expired", "resource": "account_token"}),
            LoginRefused,
        ),
        "a precondition": (
            in_json(412, {"type": "precondition_failed", "precondition": "attribute_must_be_set"}),
            AccountRefused,
        ),
        "a lock": (in_json(423, {"type": "locked", "resource": "domain"}), AccountRefused),
        "haste": (
            in_json(429, {"type": "too_many_requests", "help_message": "", "reset_seconds": 13}),
            RateLimited,
        ),
    },
    our_ids=our_ids,
    settings={"api_key": PROVIDER_KEY, "project_id": PROJECT},
    looks={
        "good": (
            [in_json(200, {"domains": [{"name": "example.com", "status": "checked"}]})],
            Standing(account=True, domain=True),
        ),
        "not verified": (
            [in_json(200, {"domains": [{"name": "example.com", "status": "unchecked"}]})],
            Standing(account=True, domain=False),
        ),
        "no such domain": (
            [in_json(200, {"domains": []})],
            Standing(account=True, domain=False, note="The project has no such domain."),
        ),
        "a wrong key": ([in_json(401, {"type": "denied_authentication"})], LoginRefused),
    },
)


@pytest.fixture
def service():
    """A service that is never asked."""
    return make_service("scaleway", "http://localhost")


def headers_of(service, **fields):
    """The headers in the request for a message, by name."""
    payload = service.build_request(make_message(**fields)).json
    return {header["key"]: header["value"] for header in payload["additional_headers"]}


def test_a_message_to_several_has_the_id_that_they_share(stand_in):
    server = stand_in(answer(*accepted_for("ada@example.org", "bob@example.org")))
    message = make_message(to_recipients=["ada@example.org", "bob@example.org"])
    assert outcome_of(make_service("scaleway", server.url), message) == MESSAGE_ID


def test_it_is_asked_in_its_only_region_for_the_project(stand_in):
    server = stand_in(answer(*CONTRACT.accepted))
    outcome_of(make_service("scaleway", server.url))
    (request,) = server.requests
    assert request.path == "/transactional-email/v1alpha1/regions/fr-par/emails"
    assert request.json["project_id"] == PROJECT


def test_what_is_wrong_is_told_in_its_own_words(stand_in):
    server = stand_in(answer(*invalid("subject")))
    error = outcome_of(make_service("scaleway", server.url))
    assert error.reason == "HTTP 400: invalid argument(s) must be other subject constraint"


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [(13, 13.0), (0, 0.0), ("13", None), (True, None), (-1, None), (10**400, math.inf)],
)
def test_it_says_in_its_json_when_to_come_back(stand_in, reset, seconds):
    server = stand_in(answer_json(429, {"type": "too_many_requests", "reset_seconds": reset}))
    error = outcome_of(make_service("scaleway", server.url))
    assert error.retry_after == seconds


def test_names_in_reply_to_are_ascii(service):
    reply_to = ['"Lovelace, Ada" <ada@example.org>', "Zoë <z@example.org>", "b@example.org"]
    assert headers_of(service, reply_to=reply_to)["Reply-To"] == (
        '"Lovelace, Ada" <ada@example.org>, =?utf-8?q?Zo=C3=AB?= <z@example.org>, b@example.org'
    )


def test_a_long_name_in_reply_to_is_several_encoded_words(service):
    value = headers_of(service, reply_to=f"{'é' * 60} <e@example.org>")["Reply-To"]
    assert "\n" not in value
    assert all(len(word) <= 75 for word in value.split(" "))


def test_metadata_fit_into_a_line(service):
    longest = {"a": "x" * 500, "b": "x" * 395}
    message = make_message(metadata=longest)
    service.check(message)
    line = f"X-Mailpool-Metadata: {json.dumps(message.event_data)}"
    assert len(line) <= 998
    with pytest.raises(CannotCarry):
        service.check(make_message(metadata={**longest, "c": "x" * 40}))


def file_named(name, **fields):
    return {"filename": name, "content": "aGVsbG8=", **fields}


@pytest.mark.parametrize("name", ["a.pdf", "a.txt", "a.csv", "a.png", "a.zip"])
def test_a_file_of_a_type_in_its_list_is_carried(service, name):
    service.check(make_message(attachments=[file_named(name)]))


def test_a_file_of_another_type_is_not_carried(service):
    with pytest.raises(CannotCarry, match="application/json"):
        service.check(make_message(attachments=[file_named("a.json")]))


def test_a_charset_does_not_make_another_type(service):
    text = file_named("a.txt", content_type="text/plain; charset=iso-8859-1")
    message = make_message(attachments=[text])
    service.check(message)
    (attachment,) = service.build_request(message).json["attachments"]
    assert attachment == {
        "name": "a.txt",
        "type": "text/plain; charset=iso-8859-1",
        "content": "aGVsbG8=",
    }
