"""What goes over the wire to each provider: a literal, accepted by the official description."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
import requests
from conftest import PROVIDER_KEY, make_message, make_service
from openapi_core import OpenAPI
from openapi_core.contrib.requests import RequestsOpenAPIRequest
from openapi_core.exceptions import OpenAPIError
from standins import answer, answer_json

MESSAGES = {
    "plain": {},
    "HTML alone": {"raw_text_body": "", "html_body": "<p>It <b>works</b>.</p>"},
    "both bodies": {"html_body": "<p>It works.</p>"},
    "a sender's name in its own field": {"from_name": "Jörg Müller, Sales"},
    "a sender's name in the address": {"from_email": '"Müller, Jörg" <me@example.com>'},
    "names with commas, umlauts, quotes and emoji": {
        "to_recipients": [
            '"Doe, Jane" <jane@example.org>',
            "Zoë Ångström <zoe@example.org>",
            r'"The \"Boss\"" <boss@example.org>',
            "😀 Smiley <smile@example.org>",
        ]
    },
    "several to, cc and bcc": {
        "to_recipients": ["a@example.org", "b@example.org"],
        "to_cc": ["Carol <c@example.org>", "d@example.org"],
        "to_bcc": "e@example.org, f@example.org",
    },
    "internationalised domains": {
        "to_recipients": ["a@bücher.example", "b@xn--bcher-kva.example"],
        "to_cc": "c@例え.example",
    },
    "the same address everywhere": {
        "to_recipients": ["a@example.org", "A@Example.org"],
        "to_cc": ["a@EXAMPLE.org", "b@example.org"],
        "to_bcc": ["B@example.org", "c@example.org"],
    },
    "text beyond ASCII, of several lines": {
        "subject": "Grüße aus 東京 ✉",
        "raw_text_body": "Erste Zeile\r\nZweite & dritte = Zeile\n\n😀",
    },
}

MAILGUN = {
    "plain": [
        ("from", "me@example.com"),
        ("to", "ada@example.org"),
        ("subject", "Hello"),
        ("text", "It works."),
    ],
    "HTML alone": [
        ("from", "me@example.com"),
        ("to", "ada@example.org"),
        ("subject", "Hello"),
        ("html", "<p>It <b>works</b>.</p>"),
    ],
    "both bodies": [
        ("from", "me@example.com"),
        ("to", "ada@example.org"),
        ("subject", "Hello"),
        ("text", "It works."),
        ("html", "<p>It works.</p>"),
    ],
    "a sender's name in its own field": [
        ("from", '"Jörg Müller, Sales" <me@example.com>'),
        ("to", "ada@example.org"),
        ("subject", "Hello"),
        ("text", "It works."),
    ],
    "a sender's name in the address": [
        ("from", '"Müller, Jörg" <me@example.com>'),
        ("to", "ada@example.org"),
        ("subject", "Hello"),
        ("text", "It works."),
    ],
    "names with commas, umlauts, quotes and emoji": [
        ("from", "me@example.com"),
        ("to", '"Doe, Jane" <jane@example.org>'),
        ("to", "Zoë Ångström <zoe@example.org>"),
        ("to", r'"The \"Boss\"" <boss@example.org>'),
        ("to", "😀 Smiley <smile@example.org>"),
        ("subject", "Hello"),
        ("text", "It works."),
    ],
    "several to, cc and bcc": [
        ("from", "me@example.com"),
        ("to", "a@example.org"),
        ("to", "b@example.org"),
        ("cc", "Carol <c@example.org>"),
        ("cc", "d@example.org"),
        ("bcc", "e@example.org"),
        ("bcc", "f@example.org"),
        ("subject", "Hello"),
        ("text", "It works."),
    ],
    "internationalised domains": [
        ("from", "me@example.com"),
        ("to", "a@xn--bcher-kva.example"),
        ("to", "b@xn--bcher-kva.example"),
        ("cc", "c@xn--r8jz45g.example"),
        ("subject", "Hello"),
        ("text", "It works."),
    ],
    "the same address everywhere": [
        ("from", "me@example.com"),
        ("to", "a@example.org"),
        ("cc", "b@example.org"),
        ("bcc", "c@example.org"),
        ("subject", "Hello"),
        ("text", "It works."),
    ],
    "text beyond ASCII, of several lines": [
        ("from", "me@example.com"),
        ("to", "ada@example.org"),
        ("subject", "Grüße aus 東京 ✉"),
        ("text", "Erste Zeile\r\nZweite & dritte = Zeile\n\n😀"),
    ],
}

SENDGRID = {
    "plain": {
        "from": {"email": "me@example.com"},
        "subject": "Hello",
        "personalizations": [{"to": [{"email": "ada@example.org"}]}],
        "content": [{"type": "text/plain", "value": "It works."}],
    },
    "HTML alone": {
        "from": {"email": "me@example.com"},
        "subject": "Hello",
        "personalizations": [{"to": [{"email": "ada@example.org"}]}],
        "content": [{"type": "text/html", "value": "<p>It <b>works</b>.</p>"}],
    },
    "both bodies": {
        "from": {"email": "me@example.com"},
        "subject": "Hello",
        "personalizations": [{"to": [{"email": "ada@example.org"}]}],
        "content": [
            {"type": "text/plain", "value": "It works."},
            {"type": "text/html", "value": "<p>It works.</p>"},
        ],
    },
    "a sender's name in its own field": {
        "from": {"email": "me@example.com", "name": "Jörg Müller, Sales"},
        "subject": "Hello",
        "personalizations": [{"to": [{"email": "ada@example.org"}]}],
        "content": [{"type": "text/plain", "value": "It works."}],
    },
    "a sender's name in the address": {
        "from": {"email": "me@example.com", "name": "Müller, Jörg"},
        "subject": "Hello",
        "personalizations": [{"to": [{"email": "ada@example.org"}]}],
        "content": [{"type": "text/plain", "value": "It works."}],
    },
    "names with commas, umlauts, quotes and emoji": {
        "from": {"email": "me@example.com"},
        "subject": "Hello",
        "personalizations": [
            {
                "to": [
                    {"email": "jane@example.org", "name": "Doe, Jane"},
                    {"email": "zoe@example.org", "name": "Zoë Ångström"},
                    {"email": "boss@example.org", "name": 'The "Boss"'},
                    {"email": "smile@example.org", "name": "😀 Smiley"},
                ]
            }
        ],
        "content": [{"type": "text/plain", "value": "It works."}],
    },
    "several to, cc and bcc": {
        "from": {"email": "me@example.com"},
        "subject": "Hello",
        "personalizations": [
            {
                "to": [{"email": "a@example.org"}, {"email": "b@example.org"}],
                "cc": [{"email": "c@example.org", "name": "Carol"}, {"email": "d@example.org"}],
                "bcc": [{"email": "e@example.org"}, {"email": "f@example.org"}],
            }
        ],
        "content": [{"type": "text/plain", "value": "It works."}],
    },
    "internationalised domains": {
        "from": {"email": "me@example.com"},
        "subject": "Hello",
        "personalizations": [
            {
                "to": [{"email": "a@xn--bcher-kva.example"}, {"email": "b@xn--bcher-kva.example"}],
                "cc": [{"email": "c@xn--r8jz45g.example"}],
            }
        ],
        "content": [{"type": "text/plain", "value": "It works."}],
    },
    "the same address everywhere": {
        "from": {"email": "me@example.com"},
        "subject": "Hello",
        "personalizations": [
            {
                "to": [{"email": "a@example.org"}],
                "cc": [{"email": "b@example.org"}],
                "bcc": [{"email": "c@example.org"}],
            }
        ],
        "content": [{"type": "text/plain", "value": "It works."}],
    },
    "text beyond ASCII, of several lines": {
        "from": {"email": "me@example.com"},
        "subject": "Grüße aus 東京 ✉",
        "personalizations": [{"to": [{"email": "ada@example.org"}]}],
        "content": [
            {"type": "text/plain", "value": "Erste Zeile\r\nZweite & dritte = Zeile\n\n😀"}
        ],
    },
}

every_message = pytest.mark.parametrize("name", MESSAGES)


@every_message
def test_mailguns_request_is_the_literal(name, stand_in):
    server = stand_in(answer_json(200, {"id": "<1@example.com>"}))
    message = make_message(**MESSAGES[name])
    make_service("mailgun", server.url).send(message, 5)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v3/example.com/messages")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    basic = base64.b64encode(f"api:{PROVIDER_KEY}".encode()).decode()
    assert request.headers["authorization"] == f"Basic {basic}"
    assert ("h:Message-Id", f"<{message.message_id}@example.com>") in request.form
    assert [field for field in request.form if field[0] != "h:Message-Id"] == MAILGUN[name]


@every_message
def test_sendgrids_request_is_the_literal(name, stand_in):
    server = stand_in(answer(202, {"X-Message-Id": "1"}))
    message = make_message(**MESSAGES[name])
    make_service("sendgrid", server.url).send(message, 5)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v3/mail/send")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    headers = {"Message-ID": f"<{message.message_id}@example.com>"}
    assert request.json == {**SENDGRID[name], "headers": headers}


def test_mailgun_in_europe_is_asked_there(stand_in):
    service = make_service("mailgun", "https://api.eu.mailgun.net/")
    url = service.build_request(make_message()).url
    assert url == "https://api.eu.mailgun.net/v3/example.com/messages"


SPECS = Path(__file__).parents[2] / "shared" / "specs"
DESCRIPTIONS = {
    "mailgun": ("mailgun-prism.yaml", "https://api.mailgun.net"),
    "sendgrid": ("sendgrid-tsg_mail_v3.json", "https://api.sendgrid.com"),
}


@pytest.fixture(scope="module")
def descriptions():
    """The official descriptions, which are not ours to copy into the project."""
    if not SPECS.is_dir():
        if os.environ.get("CI"):
            pytest.fail("CI has the providers' official descriptions")
        pytest.skip("the providers' official descriptions are not in ../shared/specs")
    return {
        name: OpenAPI.from_file_path(str(SPECS / file)) for name, (file, _) in DESCRIPTIONS.items()
    }


def wire_request(provider: str, message) -> requests.Request:
    """The request as it goes over the wire to the provider's own address."""
    _, base_url = DESCRIPTIONS[provider]
    request = make_service(provider, base_url).build_request(message)
    request.headers["Authorization"] = request.headers.get("Authorization", "Bearer key")
    return request


@every_message
@pytest.mark.parametrize("provider", DESCRIPTIONS)
def test_the_official_description_accepts_the_request(provider, name, descriptions):
    message = make_message(**MESSAGES[name])
    request = wire_request(provider, message)
    descriptions[provider].validate_request(RequestsOpenAPIRequest(request))


@pytest.mark.parametrize("provider", DESCRIPTIONS)
def test_the_official_description_would_notice_a_missing_sender(provider, descriptions):
    request = wire_request(provider, make_message())
    if provider == "mailgun":
        request.data = [field for field in request.data if field[0] != "from"]
    else:
        del request.json["from"]
    with pytest.raises(OpenAPIError):
        descriptions[provider].validate_request(RequestsOpenAPIRequest(request))
