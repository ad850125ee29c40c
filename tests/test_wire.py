"""What goes over the wire to each provider: a literal, accepted by the official description."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import requests
from contract import contract_of, http_providers, make_message, make_service
from messages import MESSAGES
from openapi_core import OpenAPI
from openapi_core.contrib.requests import RequestsOpenAPIRequest
from openapi_core.exceptions import OpenAPIError
from wire import literals_of, wire_of

from email_services.exceptions import CannotCarry

every_message = pytest.mark.parametrize("name", MESSAGES)


@every_message
@pytest.mark.parametrize("provider", http_providers())
def test_the_request_is_the_literal(provider, name):
    assert wire_of(provider, name) == literals_of(provider)[name]


SPECS = Path(__file__).parents[2] / "shared" / "specs"
DESCRIPTIONS = {
    "mailgun": ("mailgun-prism.yaml", "https://api.mailgun.net"),
    "resend": ("resend.json", "https://api.resend.com"),
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
    service = make_service(provider, base_url)
    service.check(message)
    return as_described(service.build_request(message))


def as_described(request: requests.Request) -> requests.Request:
    """The same request with what openapi-core needs to judge it."""
    if request.files:  # openapi-core takes a part of a multipart for bytes, where it is a string
        request.data += [(name, "content") for name, _ in request.files]
        request.files = []
    request.headers["Authorization"] = request.headers.get("Authorization", "Bearer key")
    return request


@every_message
@pytest.mark.parametrize("provider", DESCRIPTIONS)
def test_the_official_description_accepts_the_request(provider, name, descriptions):
    try:
        request = wire_request(provider, make_message(**MESSAGES[name]))
    except CannotCarry:
        pytest.skip("it cannot carry this message")
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


@pytest.mark.parametrize("provider", [name for name in DESCRIPTIONS if contract_of(name).batch])
def test_the_official_description_accepts_a_batch(provider, descriptions):
    service = make_service(provider, DESCRIPTIONS[provider][1])
    messages = [make_message(to_recipients=f"{name}@example.org") for name in ("ada", "bob")]
    request = as_described(service.build_batch(messages))
    descriptions[provider].validate_request(RequestsOpenAPIRequest(request))
