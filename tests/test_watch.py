"""What looks at all that the tests log finds what it is for: each test here leaks, and is seen."""

from __future__ import annotations

import base64
import json
import logging
from urllib.parse import quote

import pytest
import requests
from conftest import PLAIN, POOL, POOL_KEY, PROVIDER_KEY, make_config, make_message, make_service
from servers import Server
from watch import WATCH, ServersLog, forms

LEAKING = logging.getLogger("urllib3.connectionpool")  # one that is no concern of ours
BODY = "Dear Zoë,\nnobody else should read this “letter”."


def seen():
    """What is wrong by now; and the test that is to leak does not fail for it."""
    return "\n".join(WATCH.problems())


def test_a_key_that_is_configured_or_shown_is_found_at_debug(client):
    client.post("/sign-in", json={"key": "a-key-that-opens-nothing"})
    make_service("sendgrid", "http://127.0.0.1:1")
    assert seen() == ""
    for secret in (POOL_KEY, PROVIDER_KEY, "a-key-that-opens-nothing"):
        LEAKING.debug("It is %r.", {"key": secret})
        assert f"'{secret}' is in: {{" in seen()
    assert seen() == "", "each line is looked at once"


@pytest.mark.parametrize("field", ["raw_text_body", "html_body"])
def test_a_body_is_found_however_it_is_written(field):
    make_message(**{field: BODY})
    letter = "nobody else should read this"
    for written in (
        BODY,
        repr(BODY),
        json.dumps(BODY),
        quote(BODY),
        base64.b64encode(BODY.encode()).decode(),
    ):
        LEAKING.debug(written)
        assert f"{letter!r} is in: " in seen()
    LEAKING.info("", extra={"asked": {"deep": [BODY]}})
    assert letter in seen()


def test_a_file_is_found():
    content = base64.b64encode(b"what is in the file").decode()
    make_message(attachments=[{"filename": "a.txt", "content": content}])
    LEAKING.debug(content)
    assert content in seen()


@pytest.mark.parametrize("before", range(4))
def test_a_key_is_found_in_what_is_in_base64_with_other_things(before):
    basic = base64.b64encode(b"a" * before + POOL_KEY.encode() + b":password").decode()
    assert any(form in basic for form in forms(POOL_KEY))


def test_a_traceback_is_looked_at_too(client):
    assert client
    LEAKING.debug("It failed.", exc_info=ValueError(POOL_KEY))
    assert POOL_KEY in seen()


def test_a_line_that_cannot_be_written_is_no_json():
    LEAKING.debug("%d", "no number")
    assert "no JSON object: Traceback" in seen()


def test_what_would_keep_it_from_seeing_is_told():
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    try:
        assert "not everything is looked at" in seen()
    finally:
        root.setLevel(logging.DEBUG)


def test_the_log_of_a_server_is_looked_at_by_whole_lines(tmp_path):
    log, secrets = tmp_path / "log", tmp_path / "secrets"
    log.write_text(f'{{"message": "{POOL_KEY}"}}\n{{"message": ')
    server = ServersLog("http://127.0.0.1:1", log, secrets, is_json=True)
    assert server.problems() == [], "it has noted no secret"
    secrets.write_text(f"{json.dumps(POOL_KEY)}\n")
    with log.open("a") as file:
        file.write(f'"{POOL_KEY}"}}\nWarning: no JSON\n')
        file.flush()
        broken, leak = server.problems()
        assert broken == "no JSON object: Warning: no JSON"
        assert leak.startswith(f"'{POOL_KEY}' is in: ")
        file.write(f"{POOL_KEY} once more, and the end is missing")
    assert server.problems() == []


def test_a_server_notes_its_keys_and_what_it_was_sent(tmp_path):
    server = Server(tmp_path, make_config(tmp_path), WEB_CONCURRENCY="1")
    (watched,) = WATCH.servers
    try:
        asked = {**PLAIN, "raw_text_body": BODY}
        url = f"{server.url}/example.com/send"
        assert requests.post(url, json=asked, headers=POOL, timeout=30).status_code == 200
    finally:
        server.stop()
    assert seen() == ""
    assert {POOL_KEY, "nobody else should read this"} <= watched.secrets
    assert '"level": "DEBUG"' in server.log
