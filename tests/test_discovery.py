"""Headers by which some provider takes orders: no message may hold one, whoever carries it."""

from __future__ import annotations

import json
import os
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


SDKS = {"boto3", "botocore", "sendgrid"}


@pytest.mark.parametrize(
    ("service", "settings", "loaded"),
    [
        ("maildir", {"path": "mail"}, {"email_services.providers.maildir"}),
        ("mailgun", {"api_key": "key"}, {"email_services.providers.mailgun"}),
        ("sendgrid", {"api_key": "key"}, {"email_services.providers.sendgrid", "sendgrid"}),
    ],
)
def test_a_start_loads_only_the_providers_that_are_configured(
    service, settings, loaded, tmp_path, config
):
    config["email_services"] = config["email_services"][:1]
    config["email_services"][0]["enabled_services"] = {service: {**settings, "priority_value": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    environment = {**os.environ, "EMAIL_CONFIG": str(tmp_path / "config.json")}
    environment.pop("DATABASE_URL", None)
    code = "import sys; from app import create_app; create_app(); print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    modules = run.stdout.split()
    providers = {name for name in modules if name.startswith("email_services.providers.")}
    assert providers | (SDKS & {*modules}) == loaded
