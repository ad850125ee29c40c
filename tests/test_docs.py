"""The documentation names everything there is, and what it shows works."""

from __future__ import annotations

import base64
import json
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from conftest import PLAIN, POOL, PROVIDER_KEY, make_message
from conftest import ROOT as WITH_ROOT_KEY
from contract import Contract, outcome_of
from messages import PDF
from prometheus_client.parser import text_string_to_metric_families
from standins import answer, answer_json, response, send_and_close

from docs import measured, tables
from email_services import VERSION, exceptions
from email_services.abstract import Acceptance
from email_services.attachments import InlineImage
from email_services.capabilities import Capabilities
from email_services.config import ConfigFile, DomainSettings, load_config
from email_services.delivery import Attempt, Recipient
from email_services.discovery import is_reserved, reserved_headers
from email_services.drill import KINDS
from email_services.exceptions import (
    CannotCarry,
    EmailServicesError,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
)
from email_services.http_service import APIKeySettings, HTTPEmailService
from email_services.message import EmailMessage
from email_services.providers import find_provider, provider_names
from endpoints.access import KEY_FIELDS
from endpoints.rooms import STATUS_OF_ERROR
from endpoints.sending.answers import STATUS_OF_BATCH, STATUS_OF_OUTCOME

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OPERATING = (ROOT / "docs/operating.md").read_text()
SENDING = (ROOT / "docs/sending.md").read_text()
API = (ROOT / "docs/api.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
PROVIDERS = (ROOT / "docs/providers.md").read_text()
ADDING = (ROOT / "docs/adding-a-provider.md").read_text()


def json_in_readme(word: str) -> str:
    """The example in JSON that has `word` in it."""
    blocks = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if word in block)


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_the_tables_of_a_page_are_what_make_docs_would_write(page):
    text = page.read_text()
    assert tables.with_tables(text) == text, "run `make docs`"


def test_every_table_is_on_one_page():
    text = "".join(page.read_text() for page in tables.pages())
    assert sorted(re.findall(r"<!-- table: ([a-z ]+) -->", text)) == sorted(tables.TABLES)


def test_what_was_measured_replaces_what_was_measured_before():
    page = "a\n<!-- measured: start -->\nold\n<!-- end -->\nb\n<!-- end -->\n"
    new = page.replace("old", r"\1 new")
    assert measured.with_measured(page, "start", "\\1 new\n") == new
    with pytest.raises(ValueError, match="no place for what was measured of: budget"):
        measured.with_measured(page, "budget", "")


@pytest.mark.parametrize("name", ["budget", "start"])
def test_the_page_of_performance_has_a_place_for_each_table(name):
    page = measured.PAGE.read_text()
    assert measured.with_measured(page, name, "new") != page


def test_every_capability_has_words():
    assert tables.LACKS.keys() == Capabilities.__dataclass_fields__.keys()
    few = Capabilities(tags=1, inline=0, schedule_days=0, megabytes=0.5, tracking=False)
    assert list(tables.lacks(few)) == [
        "inline images",
        "over 1 `tags`",
        "tracking",
        "`send_at`",
        "over 0.5 MB",
    ]
    assert list(tables.lacks(Capabilities())) == []


def test_every_route_is_on_the_page_about_the_api(make_app, config):
    rules = [rule for rule in make_app(config).url_map.iter_rules() if rule.endpoint != "static"]
    routes = [rule.rule.replace("<domain:email_domain>", "<domain>") for rule in rules]
    routes = [re.sub(r"<\w+:(\w+)>", r"<\1>", route) for route in routes]
    assert [route for route in routes if f" {route}`" not in API] == []


def test_every_route_in_the_readme_is_one(make_app, config):
    rules = {rule.rule for rule in make_app(config).url_map.iter_rules()}
    routes = {re.sub(r"<(?:\w+:)?(?:email_)?(\w+)>", r"<\1>", rule) for rule in rules}
    table = README[README.index("## The API") : README.index("## From your program")]
    shown = re.findall(r"^\| (`/.*?) \|", table, re.MULTILINE)
    assert {path.strip("`") for paths in shown for path in paths.split(", ")} - routes == set()
    assert len(shown) > 5


def test_every_setting_is_in_the_page_about_configuration():
    models = [ConfigFile, DomainSettings, APIKeySettings]
    models += [find_provider(name).Settings for name in provider_names()]
    names = {name for model in models for name in model.model_fields} | {"service"}
    assert {name for name in names if f"| `{name}` |" not in CONFIGURATION} == set()


def test_every_field_of_a_message_and_an_answer_is_in_the_docs():
    names = {*EmailMessage.model_fields, *KEY_FIELDS}
    names |= {"service_used", "service_message_id", "services_unsuccessful", "attempts"}
    names |= {"possible_duplicate", "recipients", *InlineImage.model_fields, "messages", "results"}
    assert {name for name in names if f"`{name}`" not in SENDING + API} == set()
    fields = {*Attempt.__dataclass_fields__, *Recipient.__dataclass_fields__}
    assert all(field in SENDING for field in fields)


def test_every_code_of_an_error_is_in_the_readme_or_the_docs_and_of_an_attempt_too():
    """An error with its status; an attempt with what is to be done."""
    errors = {e.code for e in subclasses(EmailServicesError) if hasattr(e, "code")}
    errors |= {"message_refused", "busy", "unavailable", "unknown_outcome"}
    attempts = {e.code for e in subclasses(ProviderError) if hasattr(e, "code")}
    attempts |= set(get_args(getattr(exceptions, "Passing", None)))
    rows = re.findall(r"^\| (?:\d{3}|others) \|(.*?)\|", README + API, re.MULTILINE)
    assert errors - set(re.findall(r"`(\w+)`", "".join(rows))) == set()
    assert {code for code in attempts if f"\n| `{code}` |" not in SENDING} == set()


def subclasses(cls: type) -> list[type]:
    return [found for sub in cls.__subclasses__() for found in (sub, *subclasses(sub))]


def test_every_status_of_a_message_and_an_error_is_in_the_readme():
    statuses = {*STATUS_OF_OUTCOME.values(), *STATUS_OF_BATCH.values(), *STATUS_OF_ERROR.values()}
    assert [s.value for s in statuses if f"| {s.value} |" not in README] == []


def test_every_picture_is_on_the_page_of_pictures_and_there():
    shown = set(re.findall(r'"(screenshots/[^"]+)', (ROOT / "docs/pages.md").read_text()))
    there = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/screenshots/*.png")}
    assert shown == there
    assert len(shown) == 28
    assert {f"docs/{path}" for path in shown} >= set(re.findall(r'docs/screenshots/[^"]+', README))


def test_every_provider_is_in_the_readme_and_has_its_settings_in_the_page_about_providers():
    headings = re.findall(r"^## (.*)$", PROVIDERS, re.MULTILINE)
    assert len(headings) == len(provider_names())
    for heading in headings:
        assert heading in README.replace("any SMTP server", "SMTP"), heading
    for name in provider_names():
        settings = find_provider(name).Settings
        for field, about in settings.model_fields.items():
            assert not about.is_required() or field == "priority_value" or f"`{field}`" in PROVIDERS


def test_every_variable_of_the_environment_is_in_the_page_for_operators():
    packages = ("server", "endpoints", "browsable_api", "email_services")
    sources = [*ROOT.glob("*.py"), *(f for name in packages for f in (ROOT / name).rglob("*.py"))]
    pattern = re.compile(r"""environ(?:\.get)?[(\[]["'](\w+)|"(\w+)" in os\.environ""")
    named = {
        name for source in sources for pair in pattern.findall(source.read_text()) for name in pair
    }
    named -= {"", "DYNO"}  # Heroku's own sign
    named -= {"PATH_INFO", "REMOTE_ADDR", "REQUEST_METHOD"}  # WSGI's
    named -= {name for name in named if name.startswith("HTTP_") and name != "HTTP_PROXY"}
    assert named >= {"EMAIL_CONFIG", "DATABASE_URL", "PORT", "FORWARDED_ALLOW_IPS"}
    assert {name for name in named if f"`{name}`" not in OPERATING} == set()


def test_every_metric_and_its_labels_are_in_the_page_for_operators(make_app, config):
    client = make_app({**config, "queue_url": "kafka://127.0.0.1:9/mailpool"}).test_client()
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    told = client.get("/metrics").text
    # Only brokers tell of records: tests/test_kafka.py.
    labels: dict[str, set[str]] = {"mailpool_queue_records": {"stream"}}
    for family in text_string_to_metric_families(told):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        held = (set(sample.labels) for sample in family.samples)
        labels[name] = set().union(*held) - {"le"}
    rows = re.findall(r"^\| `(mailpool_\w+)` \|(.*?)\|", OPERATING, re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", held)) for name, held in rows} == labels


def test_every_kind_of_simulated_failure_is_in_the_page_for_operators():
    assert [kind for kind in KINDS if f"| `{kind}` |" not in OPERATING] == []


def test_the_readmes_configuration_for_mailgun_and_sendgrid_loads(tmp_path, monkeypatch):
    shown = json_in_readme("root_api")
    for name in ("ROOT_KEY", "POOL_KEY", "SENDGRID_KEY", "MAILGUN_KEY"):
        monkeypatch.setenv(name, f"the-{name}")
    (tmp_path / "config.json").write_text(shown)
    config = load_config(str(tmp_path / "config.json"))
    assert [service.name for service in config.domain("example.com").services] == [
        "sendgrid",
        "mailgun",
    ]


def test_the_answer_in_the_readme_has_the_shape_of_a_real_one(make_app, config):
    shown = json.loads(json_in_readme("result"))
    client = make_app(config).test_client()
    client.post("/example.com/primary/fail", headers=WITH_ROOT_KEY)
    real = client.post("/example.com/send", json=PLAIN, headers=POOL).json
    assert list(shown) == list(real)
    assert [list(attempt) for attempt in shown["attempts"]] == [
        list(attempt) for attempt in real["attempts"]
    ]
    assert shown["services_unsuccessful"] == real["services_unsuccessful"]


@pytest.fixture
def acme_package(tmp_path, monkeypatch):
    """The provider of the guide as a package that is installed, with the guide's entry point."""
    code = next(block for block in blocks("python") if "class Acme" in block)
    (tmp_path / "acme_mail.py").write_text(code)
    metadata = tmp_path / "acme_mail-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-mail\nVersion: 1.0\n")
    (shown,) = blocks("toml")
    group, line = shown.strip().splitlines()
    assert group == "[project.entry-points.email_services]"
    (metadata / "entry_points.txt").write_text(f"[email_services]\n{line.replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(tmp_path)
    reserved_headers.cache_clear()
    yield
    reserved_headers.cache_clear()
    sys.modules.pop("acme_mail", None)


@pytest.fixture
def acme_contract(acme_package):
    """The CONTRACT of the guide."""
    code = next(block for block in blocks("python") if "CONTRACT" in block)
    names: dict = {}
    exec(textwrap.dedent(code), names)
    return names["CONTRACT"]


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", ADDING, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for _, code in found]


def make_acme(url):
    settings = {"api_key": PROVIDER_KEY, "priority_value": 1, "base_url": url}
    cls = find_provider("acme")
    return cls("acme", "example.com", cls.Settings.model_validate(settings))


def test_a_package_adds_the_guides_provider_to_the_configuration(acme_package, tmp_path, config):
    services = {"acme": {"api_key": "key", "priority_value": 1}}
    config["email_services"][0]["enabled_services"] = services
    (tmp_path / "config.json").write_text(json.dumps(config))
    (service,) = load_config(str(tmp_path / "config.json")).domain("example.com").services
    assert (service.provider, service.name) == ("acme", "acme")
    assert "acme" in provider_names()


def test_the_guides_provider_sends(acme_contract, stand_in):
    server = stand_in(answer(*acme_contract.accepted))
    message = make_message(
        to_cc="Bob <b@example.org>", attachments=[PDF], headers={"X-One": "1"}, reply_to="c@d.org"
    )
    assert outcome_of(make_acme(server.url), message) == acme_contract.message_id
    (request,) = server.requests
    assert request.path == "/v2/emails"
    assert request.headers["authorization"] == acme_contract.secrets["authorization"]
    assert request.json == {
        "sender": {"address": "me@example.com", "name": ""},
        "to": [{"address": "ada@example.org", "name": ""}],
        "cc": [{"address": "b@example.org", "name": "Bob"}],
        "reply_to": [{"address": "c@d.org", "name": ""}],
        "subject": "Hello",
        "text": "It works.",
        "headers": {"Message-ID": message.message_id_header, "X-One": "1"},
        "files": [
            {
                "name": "report.pdf",
                "type": "application/pdf",
                "data": base64.b64encode(b"%PDF-1.7 \x00\xff").decode(),
            }
        ],
    }


def test_the_guides_provider_understands_its_answers(acme_contract, stand_in):
    for behaviour, fault in acme_contract.answers.values():
        assert type(outcome_of(make_acme(stand_in(answer(*behaviour)).url))) is fault
    for body in acme_contract.without_id:
        server = stand_in(answer(201, {"Content-Type": "application/json"}, body))
        assert outcome_of(make_acme(server.url)) is None
    page = stand_in(answer(200, {"Content-Type": "text/html"}, b"<html>"))
    assert type(outcome_of(make_acme(page.url))) is OutcomeUnknown


def test_the_tests_in_the_guide_pass(acme_package, monkeypatch, stand_in):
    code = next(block for block in blocks("python") if "CONTRACT" in block)
    names: dict = {}
    exec(code, names)
    monkeypatch.setitem(sys.modules, "test_acme", SimpleNamespace(CONTRACT=names["CONTRACT"]))
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test(stand_in)


@pytest.fixture
def telling_acme(acme_package, stand_in):
    """The guide's provider whose 2xx may refuse, with what it answers for two recipients."""
    code = next(block for block in blocks("python") if "class AcmeThatTells" in block)
    names: dict = {}
    exec(code, names)
    cls = names["AcmeThatTells"]

    def outcome(behaviour):
        settings = {"api_key": "k", "priority_value": 1, "base_url": stand_in(behaviour).url}
        service = cls("acme", "example.com", cls.Settings.model_validate(settings))
        message = make_message(to_recipients=["Ada@example.org", "bob@example.org"])
        try:
            return service.send(message, 5)
        except ProviderError as error:
            return error

    return outcome


def test_the_guides_provider_tells_whom_it_refused(telling_acme):
    def told(*names):
        refused = [{"address": f"{name}@example.org", "reason": "Bounced."} for name in names]
        return {"email_id": "7", "refused": refused}

    assert telling_acme(answer_json(201, told())) == Acceptance("7")
    acceptance = telling_acme(answer_json(201, told("ada")))
    assert acceptance == Acceptance("7", {"ada@example.org": "Bounced."})
    error = telling_acme(answer_json(201, told("ada", "bob")))
    assert (type(error), error.reason) == (MessageRejected, "HTTP 201: Bounced. Bounced.")
    body = json.dumps(told("ada")).encode()
    head = {"Content-Type": "application/json"}
    for length in range(len(body)):
        cut = response(201, head, body)[: length - len(body)]
        assert type(telling_acme(send_and_close(cut))) is OutcomeUnknown, body[:length]
    cut_behind = response(201, head, body + b" ")[:-1]
    assert telling_acme(send_and_close(cut_behind)) == acceptance


def test_the_settings_in_the_guide_are_read():
    code = next(block for block in blocks("python") if "class AcmeSettings" in block)
    names: dict = {}
    exec(compile(code, "guide", "exec", dont_inherit=True), names)
    given = {"priority_value": 1, "api_key": "key", "project": "post", "second_key": "other"}
    settings = names["AcmeWithProjects"].Settings.model_validate(given)
    assert (settings.project, settings.second_key.get_secret_value()) == ("post", "other")


def test_everything_that_the_guide_is_to_explain_is_in_it(acme_package):
    declared = {name for name in vars(HTTPEmailService) if not name.startswith("_")}
    declared -= {"api_key", "unencrypted", "refuse", "send", "send_batch", "transport"}
    declared -= {"secret_texts"}  # what follows from the rest
    names = {*declared, *Capabilities.__dataclass_fields__, *Contract.__dataclass_fields__}
    ours = {"from_name", "metadata", "on_unknown", "dry_run", "stream", "expires_in"}
    fields = {*EmailMessage.model_fields} - ours
    unexplained = {name for name in names | fields if not re.search(rf"\b{name}\b", ADDING)}
    assert unexplained == set()


@pytest.mark.parametrize("header", ["X-Acme-Tag", "x-acme-"])
def test_the_headers_of_the_guides_provider_are_reserved(header, acme_package):
    assert is_reserved(header)


@pytest.mark.parametrize("lacked", [{"to_bcc": "b@example.org"}, {"tags": "a"}])
def test_the_guides_provider_drops_nothing(lacked, acme_package):
    with pytest.raises(CannotCarry):
        make_acme("http://127.0.0.1:1").check(make_message(**lacked))


def test_the_changelog_has_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    versions = re.findall(r"^## \[(.*?)\](?: - \d{4}-\d\d-\d\d)?$", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == VERSION
    kinds = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_link_between_the_documents_leads_somewhere():
    for document in tables.pages():
        for target, heading in re.findall(
            r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", document.read_text()
        ):
            path = document.parent / target if target else document
            assert path.exists(), f"{document.name}: {target}"
            assert not heading or heading in anchors(path), f"{document.name}: {target}#{heading}"


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_trials_name_tests_that_are_there():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs" / "trials.md").read_text())
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
