from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import POOL_KEY, ROOT_KEY, make_config
from contract import PROVIDER_KEY, contract_of, in_json
from dns_server import DNSServer
from smtp_server import SMTPServer
from standins import answer
from test_store import wait_until

from email_services.checkup import BROKEN, FINE, WARNING, check
from email_services.config import load_config
from email_services.store import Store

ROOT = Path(__file__).parents[1]
RESEND_VERIFIED = contract_of("resend").looks["good"][0][0]
WRONG_KEY = contract_of("resend").looks["a wrong key"][0][0]

DNS = {
    "example.com": ["v=spf1 include:amazonses.com -all"],
    "amazonses.com": ["v=spf1 -all"],
    "mail._domainkey.example.com": ["v=DKIM1; p=MIGf"],
}


@pytest.fixture
def resolver():
    server = DNSServer(DNS)
    yield server.resolver
    server.close()


@pytest.fixture
def brevo(stand_in):
    """An account that works."""
    return {"base_url": stand_in(answer(*contract_of("brevo").looks["good"][0][0])).url}


@pytest.fixture
def run(tmp_path, monkeypatch, resolver, capsys):
    """Check a configuration with these services; returns the status and what was printed."""
    monkeypatch.delenv("DATABASE_URL", raising=False)

    def run(state_url: str = f"sqlite:///{tmp_path}/state.sqlite3", **services):
        domain = {
            "email_domain": "example.com",
            "pool_api_key": POOL_KEY,
            "enabled_services": {
                name: {"priority_value": 1, "timeout_seconds": 5, **given}
                for name, given in services.items()
            },
        }
        path = tmp_path / "config.json"
        path.write_text(
            json.dumps(
                {"root_api_key": ROOT_KEY, "state_url": state_url, "email_services": [domain]}
            )
        )
        status = check(lambda: load_config(str(path)), resolver)
        said = capsys.readouterr().out
        assert not [key for key in (ROOT_KEY, POOL_KEY, PROVIDER_KEY) if key in said]
        return status, said

    return run


def keyed(**fields):
    return {"api_key": PROVIDER_KEY, **fields}


def test_two_accounts_that_work_and_are_named_are_fine(run, stand_in, brevo):
    resend = stand_in(answer(*RESEND_VERIFIED))
    status, said = run(resend=keyed(base_url=resend.url), brevo=keyed(**brevo))
    assert status == FINE
    assert "SPF names it, DKIM does not name it." in said
    assert "SPF does not name it, DKIM names it." in said
    assert "warning" not in said


def test_a_refused_key_leaves_a_single_point_of_failure(run, stand_in, brevo):
    resend = stand_in(answer(*WRONG_KEY))
    status, said = run(resend=keyed(base_url=resend.url), brevo=keyed(**brevo))
    assert status == WARNING
    assert "key_refused: HTTP 403" in said
    assert "single point of failure: only brevo can send" in said


def test_where_no_service_can_send_it_is_broken(run, stand_in):
    resend = stand_in(answer(*WRONG_KEY))
    status, said = run(resend=keyed(base_url=resend.url))
    assert status == BROKEN
    assert "No service can send." in said


def test_a_domain_that_is_not_verified_is_broken(run, stand_in, brevo):
    pending = in_json(200, {"data": [{"name": "example.com", "status": "pending"}]})
    resend = stand_in(answer(*pending))
    status, said = run(resend=keyed(base_url=resend.url), brevo=keyed(**brevo))
    assert status == WARNING
    assert "domain_refused" in said


def test_what_a_provider_does_not_tell_is_unknown_and_nothing_to_wake_for(run, stand_in, brevo):
    resend = stand_in(answer(429))
    status, said = run(resend=keyed(base_url=resend.url), brevo=keyed(**brevo))
    assert status == FINE
    assert "Account unknown, domain unknown. HTTP 429." in said


def test_two_accounts_at_one_provider_are_one_point_of_failure(run, stand_in):
    resend = {"service": "resend", "base_url": stand_in(answer(*RESEND_VERIFIED)).url}
    status, said = run(first=keyed(**resend), second=keyed(**resend))
    assert status == WARNING
    assert "first, second all depend on resend" in said


def test_a_provider_that_dns_does_not_name_is_told(run, stand_in, brevo):
    server = stand_in(answer(*contract_of("mailgun").looks["good"][0][0]))
    status, said = run(mailgun=keyed(base_url=server.url), brevo=keyed(**brevo))
    assert status == WARNING
    assert "neither SPF nor DKIM of example.com is known to name mailgun" in said


@pytest.mark.parametrize(
    ("password", "status", "words"),
    [("right", FINE, "Account accepted"), ("wrong", WARNING, "key_refused")],
)
def test_smtp_logs_in_and_sends_nothing(password, status, words, run, brevo):
    server = SMTPServer(credentials=("mailpool", "right"))
    smtp = {"host": "127.0.0.1", "port": server.port, "security": "none", "username": "mailpool"}
    try:
        found, said = run(smtp={**smtp, "password": password}, brevo=keyed(**brevo))
    finally:
        server.close()
    assert (found, words in said) == (status, True)
    assert not {"MAIL", "RCPT", "DATA"} & {command.split()[0] for command in server.commands}
    assert password not in said


def test_a_maildir_that_cannot_be_written_is_broken(run, tmp_path, brevo):
    (tmp_path / "file").write_text("")
    status, said = run(maildir={"path": f"{tmp_path}/file/box"}, brevo=keyed(**brevo))
    assert status == WARNING
    assert "The Maildir cannot be written: Not a directory." in said


def test_a_maildir_is_left_as_it_was(run, tmp_path, brevo):
    assert run(maildir={"path": f"{tmp_path}/box"}, brevo=keyed(**brevo))[0] == FINE
    assert not [file for file in (tmp_path / "box").rglob("*") if file.is_file()]


def test_the_database_is_not_made_or_changed(run, tmp_path, brevo):
    _, said = run(brevo=keyed(**brevo))
    assert "It is made at the first start." in said
    assert not list(tmp_path.glob("state*"))
    Store(f"sqlite:///{tmp_path}/state.sqlite3").close()
    _, said = run(brevo=keyed(**brevo))
    assert "its tables are up to date" in said


@pytest.mark.parametrize("kind", ["nobody there", "no database"])
def test_a_database_that_cannot_be_used_is_broken(kind, run, tmp_path, brevo):
    (tmp_path / "text").write_text("a text that is long enough to be looked at" * 9)
    urls = {
        "nobody there": "postgresql://user:hidden@127.0.0.1:1/mail",
        "no database": f"sqlite:///{tmp_path}/text",
    }
    status, said = run(urls[kind], brevo=keyed(**brevo), maildir={"path": f"{tmp_path}/box"})
    assert status == BROKEN
    assert "hidden" not in said


def test_postgresql_answers(run, brevo, postgresql):
    _, said = run(postgresql, brevo=keyed(**brevo))
    assert "its tables are made at the first start" in said
    Store(postgresql).close()
    _, said = run(postgresql, brevo=keyed(**brevo))
    assert "its tables are up to date" in said


def test_a_wrong_configuration_is_broken_with_its_sentence(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert check(lambda: load_config(str(tmp_path / "config.json"))) == BROKEN
    assert "root_api_key" in capsys.readouterr().out


def test_the_command_ends_with_the_status(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    ended = subprocess.run(
        [sys.executable, "-m", "email_services", "check"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == BROKEN
    assert b"configuration" in ended.stdout


@pytest.mark.parametrize("command", ["check", "worker"])
def test_a_database_that_a_command_makes_is_for_the_owner_alone(command, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(make_config(tmp_path, config_upload=True)))
    made = tmp_path / "state.sqlite3"
    process = subprocess.Popen(
        [sys.executable, "-m", "email_services", command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONWARNINGS": "ignore"},
        umask=0o022,
    )
    wait_until(made.exists)
    process.terminate()
    process.wait(timeout=30)
    assert made.stat().st_mode & 0o077 == 0
