"""Headers by which some provider takes orders: no message may hold one, whoever carries it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from contract import make_message

from email_services.discovery import built_in, is_reserved, reserved_headers
from email_services.exceptions import InvalidInput
from email_services.providers import find_provider


@pytest.fixture(autouse=True)
def _found_anew():
    """What other tests install is gone again."""
    reserved_headers.cache_clear()


def test_what_every_provider_here_declares_is_reserved():
    declared = {name: find_provider(name).reserved_headers for name in built_in()}
    assert {name for names in declared.values() for name in names} == reserved_headers()
    assert declared["mailgun"] == ("x-mailgun-",)


RESERVED = ["SG-ID", "Mailgun-Tag", "SES-Source-Arn", "PM-KeepID", "MJ-A", "MSYS-API", "SMTPAPI"]
RESERVED += ["Sib-Sandbox", "Mailin-custom"]


@pytest.mark.parametrize("name", RESERVED)
def test_a_providers_header_is_refused_whatever_the_domain_uses(name):
    with pytest.raises(InvalidInput) as refused:
        make_message(headers={f"X-{name}": "1"})
    why = f"The header X-{name} is set by this service or by the provider."
    assert refused.value.problems == {"headers": why}


@pytest.mark.parametrize("name", ["X-SMTPAPI-Other", "X-Sga", "X-Mailgun", "My-X-SES-Tag"])
def test_a_header_that_only_looks_like_one_is_taken(name):
    assert not is_reserved(name)
    make_message(headers={name: "1"})


def test_to_know_them_imports_no_provider():
    code = """
import sys
from email_services.message import EmailMessage
from email_services.discovery import is_reserved
assert is_reserved("X-SES-A")
loaded = ("email_services.providers", "botocore", "sendgrid")
sys.exit(", ".join(name for name in sys.modules if name.startswith(loaded)) or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
