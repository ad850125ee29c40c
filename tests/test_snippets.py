"""The commands and programs of the documentation, run against the service as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path

import pytest
from conftest import POOL_KEY, ROOT_KEY, make_config
from servers import ROOT, Server
from test_store import wait_until

ADDRESS = "http://localhost:8000"
RUN_BY = {
    "bash": ["bash", "-eu"],
    "python": [sys.executable, "-"],
    "js": ["node", "--input-type=module", "-"],
    "php": ["php"],
}


def snippets(language: str, page: str = "README.md") -> list[str]:
    """The blocks of a page that are in this language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )


def program(language: str) -> str:
    """The program that sends a message, in this language."""
    page = "README.md" if language == "python" else "docs/sending.md"
    (code,) = snippets(language, page)
    return code


def ended(fail: str) -> str:
    """The same with false, as the README says."""
    assert "true" in fail
    return fail.replace("true", "false")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snippets")
    server = Server(folder, make_config(folder))
    yield Service(folder, server.url)
    server.kill()


class Service:
    """A service with the domain of the example; mail goes into folders."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def run(self, language: str, code: str) -> str:
        """What a snippet prints, with this service in place of the README's."""
        command = RUN_BY[language]
        if shutil.which(command[0]) is None:
            if os.environ.get("CI"):
                pytest.fail(f"CI has {command[0]}")
            pytest.skip(f"{command[0]} is not installed")
        assert ADDRESS in code
        done = subprocess.run(
            command,
            input=code.replace(ADDRESS, self.url),
            cwd=ROOT,
            env={**os.environ, "POOL_KEY": POOL_KEY, "ROOT_KEY": ROOT_KEY, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def take_mail(self) -> list[tuple[str, str]]:
        """The service and the subject of each message that arrived, which is removed."""
        files = [
            file for name in ("primary", "backup") for file in self.folder.glob(f"{name}/new/*")
        ]
        taken = [
            (f.parent.parent.name, message_from_bytes(f.read_bytes())["Subject"]) for f in files
        ]
        for file in files:
            file.unlink()
        return taken


def test_the_first_message_arrives_and_after_a_failure_the_same_fails_over(service):
    send, fail = snippets("bash")
    assert json.loads(service.run("bash", send))["service_used"] == "primary"
    assert service.take_mail() == [("primary", "Hello")]
    assert json.loads(service.run("bash", fail))["simulated_failure_enabled"] is True
    told = json.loads(service.run("bash", send))
    assert told["service_used"] == "backup"
    assert told["services_unsuccessful"] == {"primary": "Simulated failure."}
    assert service.take_mail() == [("backup", "Hello")]
    assert json.loads(service.run("bash", ended(fail)))["simulated_failure_enabled"] is False


@pytest.mark.parametrize(
    ("language", "subject"), [("python", "Order 42"), ("js", "Order 43"), ("php", "Order 44")]
)
def test_the_program_sends_and_says_through_whom(service, language, subject):
    code = program(language)
    assert service.run(language, code).strip() == "primary"
    assert service.take_mail() == [("primary", subject)]


@pytest.mark.parametrize("language", ["python", "js", "php"])
def test_the_program_says_why_a_message_was_not_sent(service, language):
    code = program(language)
    (_, fail) = snippets("bash")
    for name in ("primary", "backup"):
        service.run("bash", fail.replace("primary", name))
    told = service.run(language, code.replace("order-4", "refused-4"))
    for name in ("primary", "backup"):
        service.run("bash", ended(fail).replace("primary", name))
    assert "unavailable: The message was not sent: no service could send it." in told
    assert service.take_mail() == []


@pytest.mark.parametrize("language", ["python", "js", "php"])
def test_the_program_says_what_is_wrong_with_a_message(service, language):
    code = program(language)
    told = service.run(language, code.replace("me@example.com", "me@example.net"))
    assert "invalid: 1 problem with what was sent." in told
    assert re.search("from_email.*It should be an address at example.com", told)
    assert service.take_mail() == []


def test_the_file_of_the_page_about_sending_arrives(service):
    file, _, _ = snippets("bash", "docs/sending.md")
    assert json.loads(service.run("bash", file))["result"] == "success"
    assert service.take_mail() == [("primary", "Report")]


def test_the_batch_of_the_page_about_sending_arrives(service):
    _, batch, _ = snippets("bash", "docs/sending.md")
    told = json.loads(service.run("bash", batch))
    assert [result["result"] for result in told["results"]] == ["success", "success"]
    assert service.take_mail() == [("primary", "News 7")] * 2


def test_what_the_page_about_sending_queues_is_answered_with_its_address(service):
    _, _, queued = snippets("bash", "docs/sending.md")
    told = json.loads(service.run("bash", queued))
    assert told["result"] == "queued"
    assert told["url"].endswith(f"/example.com/messages/{told['message_id']}")
    wait_until(lambda: service.take_mail() == [("primary", "Later")])
