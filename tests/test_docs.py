"""The documentation names everything there is, and what it shows works."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import PLAIN, POOL, make_message
from conftest import ROOT as WITH_ROOT_KEY
from standins import answer, answer_json

from email_services.abstract import HTTPSettings
from email_services.config import ConfigFile, DomainSettings, load_config
from email_services.drill import KINDS
from email_services.exceptions import AccountRefused, MessageRejected, OutcomeUnknown
from email_services.message import EmailMessage
from email_services.pool import Attempt
from email_services.providers import find_provider, provider_names
from endpoints.answers import STATUS_OF_OUTCOME
from endpoints.bodies import KEY_FIELDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OPERATING = (ROOT / "docs/operating.md").read_text()
ADDING = (ROOT / "docs/adding-a-provider.md").read_text()


def json_in_readme(word: str) -> str:
    """The example in JSON that has `word` in it."""
    blocks = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if word in block)


def test_every_route_is_in_the_readme(make_app, config):
    rules = [rule for rule in make_app(config).url_map.iter_rules() if rule.endpoint != "static"]
    routes = [rule.rule.replace("<domain:email_domain>", "<domain>") for rule in rules]
    assert [route for route in routes if f"`{route}`" not in README] == []


def test_every_setting_is_in_the_readme():
    models = [ConfigFile, DomainSettings, HTTPSettings]
    models += [find_provider(name).Settings for name in provider_names()]
    names = {name for model in models for name in model.model_fields} | {"service"}
    assert {name for name in names if f"| `{name}` |" not in README} == set()


def test_every_field_of_a_message_and_an_answer_is_in_the_readme():
    names = {*EmailMessage.model_fields, *KEY_FIELDS}
    names |= {"service_used", "service_message_id", "services_unsuccessful", "attempts"}
    names |= {"possible_duplicate"}
    assert {name for name in names if f"`{name}`" not in README} == set()
    assert all(field in README for field in Attempt.__dataclass_fields__)


def test_every_status_of_a_message_is_in_the_readme():
    assert all(f"| {status.value} |" in README for status in STATUS_OF_OUTCOME.values())


def test_every_provider_is_in_the_readme():
    assert [name for name in provider_names() if f"| `{name}` |" not in README] == []


def test_every_variable_of_the_environment_is_in_the_page_for_operators():
    sources = [
        *ROOT.glob("*.py"),
        *ROOT.glob("email_services/*.py"),
        *ROOT.glob("browsable_api/*.py"),
    ]
    pattern = re.compile(r"""environ(?:\.get)?[(\[]["'](\w+)|"(\w+)" in os\.environ""")
    named = {
        name for source in sources for pair in pattern.findall(source.read_text()) for name in pair
    }
    named -= {"", "DYNO", "PATH_INFO"}  # Heroku's own sign; WSGI's
    assert named >= {"EMAIL_CONFIG", "DATABASE_URL", "PORT"}
    assert {name for name in named if f"`{name}`" not in OPERATING} == set()


def test_every_kind_of_simulated_failure_is_in_the_page_for_operators():
    assert [kind for kind in KINDS if f"| `{kind}` |" not in OPERATING] == []


def test_the_readmes_configuration_for_mailgun_and_sendgrid_loads(tmp_path, monkeypatch):
    shown = next(
        block
        for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL)
        if "root_api" in block
    )
    for name in ("ROOT_KEY", "POOL_KEY", "SENDGRID_KEY", "MAILGUN_KEY"):
        monkeypatch.setenv(name, f"the-{name}")
    (tmp_path / "config.json").write_text(shown)
    config = load_config(str(tmp_path / "config.json"))
    assert [service.name for service in config.domain("example.com").services] == [
        "sendgrid",
        "mailgun",
    ]


def test_the_answer_in_the_readme_has_the_shape_of_a_real_one(make_app, config):
    shown = json.loads(
        next(
            block
            for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL)
            if "result" in block
        )
    )
    client = make_app(config).test_client()
    client.post("/example.com/primary/fail", headers=WITH_ROOT_KEY)
    real = client.post("/example.com/send", json=PLAIN, headers=POOL).json
    assert list(shown) == list(real)
    assert [list(attempt) for attempt in shown["attempts"]] == [
        list(attempt) for attempt in real["attempts"]
    ]
    assert shown["services_unsuccessful"] == real["services_unsuccessful"]


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """The provider of the guide, loaded from the guide."""
    (code,) = re.findall(r"```python\n(.*?)```", ADDING, re.DOTALL)
    (tmp_path / "acme.py").write_text(code)
    spec = importlib.util.spec_from_file_location("acme", tmp_path / "acme.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "acme", module)
    spec.loader.exec_module(module)

    def make(url):
        settings = HTTPSettings(api_key="key", priority_value=1, base_url=url)
        return module.Acme("acme", "example.com", settings)

    return make


def test_the_guides_provider_sends(acme, stand_in):
    server = stand_in(answer_json(201, {"email_id": "7"}))
    assert acme(server.url).send(make_message(to_cc="Bob <b@example.org>"), 5) == "7"
    (request,) = server.requests
    assert request.path == "/v2/emails"
    assert request.headers["authorization"] == "Bearer key"
    assert request.json == {
        "sender": {"address": "me@example.com", "name": ""},
        "to": [{"address": "ada@example.org", "name": ""}],
        "cc": [{"address": "b@example.org", "name": "Bob"}],
        "subject": "Hello",
        "text": "It works.",
    }


@pytest.mark.parametrize(
    ("behaviour", "fault"),
    [
        (answer_json(422, {"reason": "Out of credit"}), AccountRefused),
        (answer_json(422, {"reason": "no such address"}), MessageRejected),
        (answer(200, {"Content-Type": "text/html"}, b"<html>"), OutcomeUnknown),
    ],
)
def test_the_guides_provider_understands_its_answers(behaviour, fault, acme, stand_in):
    with pytest.raises(fault):
        acme(stand_in(behaviour).url).send(make_message(), 5)


def test_the_guides_provider_drops_nothing(acme, stand_in):
    with pytest.raises(MessageRejected, match="no bcc"):
        acme(stand_in().url).send(make_message(to_bcc="b@example.org"), 5)


def test_the_changelog_has_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    assert "## [Unreleased]" in text
    kinds = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_link_between_the_documents_leads_somewhere():
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
