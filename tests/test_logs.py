"""What is logged: named events in JSON, and never a key or a body."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from typing import get_args

import pytest
import requests
from conftest import OTHER_POOL_KEY, POOL, POOL_KEY, ROOT, ROOT_KEY, make_config
from contract import contract_of, http_providers, make_service
from messages import PLAIN
from pydantic import SecretStr
from servers import ROOT as REPOSITORY
from servers import Server
from smtp_server import SMTPServer
from standins import answer, answer_json

from email_services.exceptions import ConfigError
from email_services.logs import Event, JSONLines, hashed, settings

SECRET_TEXT = "Nobody else should read this text, ever."
SECRET_HTML = "<p>Nobody else should read this HTML, ever.</p>"
SECRET_FILE = base64.b64encode(b"Nobody else should read this file, ever.").decode()
PASSWORD = "the-password-of-the-mailbox"
SESSION_TOKEN = "token-of-a-session-at-the-provider"
USER = "user-of-the-mailbox"
BODIES = (SECRET_TEXT, SECRET_HTML, SECRET_FILE, base64.b64decode(SECRET_FILE).decode())
MESSAGE = {
    **PLAIN,
    "raw_text_body": SECRET_TEXT,
    "html_body": SECRET_HTML,
    "attachments": [{"filename": "note.txt", "content": SECRET_FILE}],
}


@pytest.fixture
def lines():
    """What is logged, as data; `lines(recipients, secret)` begins."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setLevel(logging.INFO)
    root = logging.getLogger()

    def begin(recipients="none", secret=""):
        handler.setFormatter(JSONLines(recipients, SecretStr(secret)))
        root.addHandler(handler)
        return lambda event=None: [
            line
            for line in map(json.loads, handler.stream.getvalue().splitlines())
            if event in {None, line["event"]}
        ]

    yield begin
    root.removeHandler(handler)


@pytest.fixture
def app(make_app, tmp_path, stand_in):
    """One whose first provider answers 503."""
    config = make_config(tmp_path)
    services = config["email_services"][0]["enabled_services"]
    services["mailgun"] = {
        "api_key": "key",
        "priority_value": 30,
        "base_url": stand_in(answer_json(503, {"message": "down"})).url,
    }
    config["root_api_key"] = [{"name": "ada", "key": ROOT_KEY}]
    return make_app(config)


@pytest.fixture
def client(app):
    return app.test_client()


def send(client, path="/example.com/send", body=PLAIN, **headers):
    return client.post(path, json=body, headers={**POOL, **headers})


def test_all_that_is_logged_of_a_send_has_its_ids(client, lines):
    told = lines()
    answered = send(client, **{"X-Request-ID": "order-42"})
    assert answered.headers["X-Request-ID"] == "order-42"
    found = told()
    assert [line["event"] for line in found] == ["attempt", "attempt", "failover", "request"]
    assert {line["request_id"] for line in found} == {"order-42"}
    assert {line["message_id"] for line in found} == {answered.json["message_id"]}
    assert {line["key"] for line in found} == {"pool_api_key of example.com"}
    refused, sent, failover, access = found
    assert (refused["service"], refused["outcome"], refused["code"]) == (
        "mailgun",
        "not sent",
        "unavailable",
    )
    assert (sent["service"], sent["outcome"], sent["level"]) == ("primary", "sent", "INFO")
    assert (failover["service"], failover["instead_of"]) == ("primary", ["mailgun"])
    assert (access["method"], access["path"], access["status"]) == (
        "POST",
        "/example.com/send",
        200,
    )
    assert access["milliseconds"] >= sent["milliseconds"] >= 0


def test_the_messages_of_a_batch_have_the_id_of_their_request(client, lines):
    told = lines()
    batch = {"messages": [PLAIN, PLAIN, PLAIN]}
    answered = send(client, "/example.com/primary/send", batch, **{"X-Request-ID": "batch-1"})
    ids = {result["message_id"] for result in answered.json["results"]}
    assert {line["message_id"] for line in told("attempt")} == ids
    assert {line["request_id"] for line in told()} == {"batch-1"}


def test_a_message_that_waits_is_found_by_its_id(client, lines):
    told = lines()
    answered = send(client, Prefer="respond-async")
    (queued,) = told("queued")
    assert queued["message_id"] == answered.json["message_id"]
    assert queued["request_id"] == answered.headers["X-Request-ID"]


@pytest.mark.parametrize("given", ["", "a b", "ä", "x" * 129, 'a"b', "a;b"])
def test_an_id_that_can_be_none_is_replaced(given, client):
    answered = client.get("/healthz", headers={"X-Request-ID": given.encode().decode("latin-1")})
    assert answered.status_code == 200
    assert re.fullmatch("[0-9a-f]{32}", answered.headers["X-Request-ID"])


def test_each_request_has_an_id_of_its_own_and_nothing_of_the_one_before(client, lines):
    told = lines()
    ids = {client.get("/healthz").headers["X-Request-ID"] for _ in range(3)}
    send(client)
    client.get("/healthz")
    assert len(ids) == 3
    assert not {"key", "message_id"} & {*told()[-1]}


def test_errors_have_an_id_too(client):
    for path in ("/nothing", "/example.org/send"):
        assert client.get(path).headers["X-Request-ID"]
    assert client.get("/healthz", headers={"Accept": "image/png"}).headers["X-Request-ID"]


RECIPIENTS = {"to_recipients": ["Ada <Ada@example.org>"], "to_bcc": "bob@example.org"}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("none", None),
        ("plain", ["ada@example.org", "bob@example.org"]),
        ("hashed", ["ad922a3632bea6f5", "6059667f1cfb46aa"]),
    ],
)
def test_recipients_are_told_as_the_setting_says(kind, told, client, lines):
    read = lines(kind, "salt")
    send(client, body={**PLAIN, **RECIPIENTS})
    assert [line.get("recipients") for line in read("attempt")] == [told, told]
    assert ("ada@example.org" in json.dumps(read())) is (kind == "plain")


def test_a_hash_can_be_made_in_a_shell_to_look_for_it():
    """By `printf ada@example.org | openssl dgst -sha256 -hmac salt`."""
    assert hashed("ada@example.org", b"salt") == "ad922a3632bea6f5"


def test_what_recipients_are_hashed_with_is_in_no_settings_that_gunicorn_logs():
    environment = {"LOG_FORMAT": "json", "LOG_RECIPIENTS": "hashed", "LOG_SECRET": "the-secret"}
    made = settings(environment)
    assert "the-secret" not in repr(made)
    formatter = made["formatters"]["line"]
    line = logging.makeLogRecord({"recipients": ["ada@example.org"]})
    told = json.loads(formatter.pop("()")(**formatter).format(line))
    assert told["recipients"] == [hashed("ada@example.org", b"the-secret")]


def test_a_change_of_health_is_told_once(client, lines):
    told = lines()
    for _ in range(7):
        send(client)
    (change,) = told("health")
    assert (change["service"], change["health"], change["level"]) == (
        "mailgun",
        "resting",
        "WARNING",
    )
    assert change["change"].startswith("resting for ")
    assert change["request_id"]


def test_what_an_administrator_changes_has_their_name(client, lines):
    told = lines()
    drill = {"kind": "slow", "minutes": 5}
    client.post("/example.com/backup/fail", json=drill, headers=ROOT)
    client.post("/example.com/queue", json={"stream": "bulk", "paused": True}, headers=ROOT)
    client.get("/example.com/queue", headers=ROOT)
    client.post("/example.com/backup/fail", json={"kind": "odd"}, headers=ROOT)
    first, second = told("change")
    assert first["key"] == second["key"] == "root_api_key 'ada'"
    assert (first["path"], first["asked"]) == ("/example.com/backup/fail", drill)
    assert second["asked"] == {"stream": "bulk", "paused": True}
    assert [line["change"] for line in told("health")] == ["simulated failure on: slow"]


def test_a_message_that_is_cancelled_is_a_change_by_who_did_it(client, lines):
    told = lines()
    url = send(client, Prefer="respond-async").json["url"]
    client.delete(url, headers=POOL)
    (change,) = told("change")
    assert (change["operation"], change["key"]) == ("delete_message", "pool_api_key of example.com")


def test_a_key_that_is_refused_is_told_with_who_showed_it_and_not_what(client, lines):
    told = lines()
    wrong = "a-key-of-somebody-else"
    send(client, Authorization=f"Bearer {wrong}")
    client.post("/sign-in", json={"key": wrong})
    found = told("key_refused")
    assert [(line["client"], line["code"]) for line in found] == [("127.0.0.1", "key_wrong")] * 2
    assert wrong not in json.dumps(told())


def test_who_signs_in_is_told(client, lines):
    told = lines()
    client.post("/sign-in", json={"key": ROOT_KEY})
    (line,) = told("signed_in")
    assert (line["key"], line["client"]) == ("root_api_key 'ada'", "127.0.0.1")


def test_a_bug_is_one_line_with_its_traceback(app, lines, monkeypatch):
    app.config["PROPAGATE_EXCEPTIONS"] = False
    pool = app.extensions["mailpool"].pools["example.com"]
    monkeypatch.delattr(pool.service("mailgun"), "settings")
    told = lines()
    answered = send(app.test_client())
    assert answered.status_code == 500
    (line,) = told("exception")
    assert "AttributeError" in line["exception"]
    assert line["exception"].startswith("Traceback")
    assert line["request_id"] == answered.headers["X-Request-ID"]


WRONG = {
    "LOG_LEVEL": {"LOG_LEVEL": "loud"},
    "LOG_FORMAT": {"LOG_FORMAT": "xml"},
    "LOG_RECIPIENTS": {"LOG_RECIPIENTS": "all"},
    "LOG_SECRET": {"LOG_RECIPIENTS": "hashed"},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_that_is_none_is_refused_with_its_name(name):
    with pytest.raises(ConfigError, match=rf"^\${name} should be .*\.$"):
        settings(WRONG[name])


def test_every_event_is_in_the_documentation_and_in_the_code():
    table = (REPOSITORY / "docs/operating.md").read_text().partition("| event |")[2]
    rows = re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert sorted(rows) == sorted(get_args(Event))
    files = [
        p
        for f in ("email_services", "endpoints", "server", "browsable_api")
        for p in (REPOSITORY / f).rglob("*.py")
    ]
    code = "".join(p.read_text() for p in [*files, REPOSITORY / "gunicorn.conf.py"])
    used = {*re.findall(r'\bevent\(\s*"(\w+)"', code), *re.findall(r'"event": "(\w+)"', code)}
    assert used | {"exception", "note"} == {*get_args(Event)}


def accounts(stand_in, behave):
    """One at every provider behind HTTP, as config.json says it, and all of their secrets."""
    found, secrets = {}, set()
    for priority, provider in enumerate(http_providers()):
        url = stand_in(behave(provider)).url
        found[provider] = {
            **contract_of(provider).settings,
            "priority_value": priority + 10,
            "base_url": url,
        }
        secrets |= {*make_service(provider, url).secret_texts()}
    found["amazon_ses"]["session_token"] = SESSION_TOKEN
    return found, secrets


def accepting(provider):
    return answer(*contract_of(provider).accepted)


def echoing(_provider):
    """One that says what it was sent, and who by, and that it is wrong."""

    def behave(exchange):
        said = f"{exchange.request.headers} {exchange.request.body.decode('latin-1')}"
        answer_json(400, {"message": said, "errors": [{"message": said}]})(exchange)

    return behave


@pytest.fixture
def mail_server():
    server = SMTPServer(credentials=(USER, PASSWORD))
    yield server
    server.close()


@pytest.mark.parametrize("behave", [accepting, echoing])
def test_no_line_at_debug_holds_a_key_or_a_body_and_each_is_json(
    behave, stand_in, mail_server, tmp_path
):
    services, secrets = accounts(stand_in, behave)
    services["smtp"] = {
        "host": "127.0.0.1",
        "port": mail_server.port,
        "security": "none",
        "username": USER,
        "password": PASSWORD,
        "priority_value": 5,
    }
    services["maildir"] = {"priority_value": 1, "path": str(tmp_path / "mail")}
    config = make_config(tmp_path)
    config["email_services"][0]["enabled_services"] = services
    server = Server(
        tmp_path, config, LOG_FORMAT="json", LOG_LEVEL="debug", LOG_RECIPIENTS="plain",
        WEB_CONCURRENCY="1",
    )  # fmt: skip
    try:
        statuses = use_all_of(server, services)
    finally:
        server.stop()
    assert statuses
    log = server.log
    found = [json.loads(line) for line in log.splitlines()]
    assert {"DEBUG", "INFO"} <= {line["level"] for line in found}
    attempted = {line["service"] for line in found if line["event"] == "attempt"}
    assert attempted == {*services}
    assert "ada@example.org" in log, "recipients are told, as was asked for"
    in_base64 = {base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()}
    secrets |= {ROOT_KEY, POOL_KEY, OTHER_POOL_KEY, PASSWORD, SESSION_TOKEN, *in_base64, *BODIES}
    for secret in secrets:
        assert secret not in log
        assert json.dumps(secret)[1:-1] not in log


def use_all_of(server, services):
    """Send through each, one and many, now and later, with keys wherever they may be shown."""
    in_body = {**MESSAGE, "root_api_key": ROOT_KEY}
    asked = []
    for service in services:
        url = f"{server.url}/example.com/{service}/send?pool_api_key={POOL_KEY}"
        once = {**POOL, "Idempotency-Key": f"once-{service}"}
        asked += [
            requests.post(url, json=in_body, headers=POOL, timeout=60),
            requests.post(url, json=MESSAGE, headers=once, timeout=60),
            requests.post(url, json={"messages": [MESSAGE] * 3}, headers=POOL, timeout=60),
        ]
    later = {**POOL, "Prefer": "respond-async"}
    queued = requests.post(
        f"{server.url}/example.com/send", json=MESSAGE, headers=later, timeout=60
    )
    for _ in range(200):
        shown = requests.get(queued.json()["url"], headers=POOL, timeout=60)
        if shown.json().get("outcome") == "sent":
            break
    form = {**PLAIN, "raw_text_body": SECRET_TEXT, "pool_api_key": POOL_KEY}
    asked += [
        queued,
        requests.post(f"{server.url}/example.com/send", data=form, timeout=60),
        requests.post(f"{server.url}/sign-in", json={"key": ROOT_KEY}, timeout=60),
        requests.get(f"{server.url}/?format=html", headers=ROOT, timeout=60),
        requests.get(f"{server.url}/example.com/messages", headers=ROOT, timeout=60),
        requests.get(f"{server.url}/keys", headers=ROOT, timeout=60),
    ]
    return [answered.status_code for answered in asked]
