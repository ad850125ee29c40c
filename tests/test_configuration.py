"""A configuration that is uploaded: checked, kept for all, shown, compared and restored."""

from __future__ import annotations

import copy
import json
import re
from datetime import datetime, timedelta, timezone
from html import unescape
from io import BytesIO

import pytest
from conftest import POOL, POOL_KEY, ROOT, ROOT_KEY, make_config
from sqlalchemy import create_engine, text
from test_sign_in import HERE, PAGE, sign_in

from app import renewed
from browsable_api.request import MEGABYTE
from email_services.api_keys import hash_key
from email_services.config import load_config
from email_services.config_secrets import HIDDEN, without_secrets
from email_services.exceptions import ConfigError, StoreUnavailable
from email_services.store import Uploaded
from endpoints.configuration import LOCKED_OUT, NO_FORM, SOON_LOCKED_OUT
from server.following import Follower

JSON = {**ROOT, "Content-Type": "application/json"}
PLAIN_PROVIDER_KEY = "a-key-at-the-provider"


@pytest.fixture
def upload(tmp_path, monkeypatch):
    """What may be uploaded."""
    monkeypatch.setenv("ROOT_KEY", ROOT_KEY)
    monkeypatch.setenv("POOL_KEY", POOL_KEY)
    monkeypatch.setenv("PROVIDER_KEY", PLAIN_PROVIDER_KEY)
    config = make_config(tmp_path)
    del config["state_url"]
    config["root_api_key"] = [{"name": "ada", "key": "env:ROOT_KEY"}]
    first, second = config["email_services"]
    first["pool_api_key"] = "env:POOL_KEY"
    second["pool_api_key"] = [{"name": "shop", "hash": hash_key("k" * 30)}]
    first["enabled_services"]["mailgun"] = {"api_key": "env:PROVIDER_KEY", "priority_value": 30}
    return config


@pytest.fixture
def app(make_app, tmp_path):
    return make_app(make_config(tmp_path, config_upload=True))


@pytest.fixture
def client(app):
    return app.test_client()


def put(client, config, headers=ROOT):
    return client.put("/config", json=config, headers=headers)


def newest(client):
    return client.get("/config/versions", headers=ROOT).json["versions"][0]["version"]


def ahead(**time_left):
    """A time in the future, as config.json writes it."""
    return (datetime.now(timezone.utc) + timedelta(**time_left)).isoformat()


def test_an_upload_is_a_version_with_who_and_when(client, upload):
    answered = put(client, upload)
    assert answered.status_code == 200
    assert answered.json["version"] == 1
    assert answered.json["by"] == "root_api_key"
    assert put(client, upload).json["version"] == 2
    listed = client.get("/config/versions", headers=ROOT).json["versions"]
    assert [found["version"] for found in listed] == [2, 1]
    assert {found["by"] for found in listed} == {"root_api_key"}


def test_of_two_who_upload_at_once_the_second_is_told_what_was_there_is_gone(app, client, upload):
    for path in ("/config", "/config/versions"):
        seen = client.get(path, headers=ROOT).headers["ETag"]
        first = put(client, upload, {**ROOT, "If-Match": seen})
        assert first.status_code == 200
        second = put(client, upload, {**ROOT, "If-Match": seen})
        assert (second.status_code, second.json["code"]) == (412, "precondition_failed")
        assert newest(client) == first.json["version"]
        # The workers of this server are a moment behind: what they show is replaced already.
        shown = app.test_client().get("/config", headers=ROOT).headers["ETag"]
        late = put(client, upload, {**ROOT, "If-Match": shown})
        assert late.status_code == 412
        app = renewed(app)
        client = app.test_client()
        assert client.get("/config", headers=ROOT).headers["ETag"] == first.headers["ETag"]
    last = put(client, upload, {**ROOT, "If-Match": first.headers["ETag"]})
    assert last.json["version"] == 3, "what one's own upload was answered is good for the next"


def test_a_restore_names_what_it_replaces_in_the_same_way(client, upload):
    seen = put(client, upload).headers["ETag"]
    put(client, upload)
    restore = "/config/versions/1/restore"
    assert client.post(restore, headers={**ROOT, "If-Match": seen}).status_code == 412
    assert newest(client) == 2
    seen = client.get("/config/versions", headers=ROOT).headers["ETag"]
    assert client.post(restore, headers={**ROOT, "If-Match": seen}).json["version"] == 3


@pytest.mark.parametrize(
    ("match", "status"),
    [("*", 200), ('"0", "{tag}"', 200), ('W/"{tag}"', 200), ('"0"', 412), ("nothing", 412)],
)
def test_what_if_match_names_may_be_anything_or_a_list(match, status, client, upload):
    tag = client.get("/config", headers=ROOT).headers["ETag"].strip('"')
    answered = put(client, upload, {**ROOT, "If-Match": match.replace("{tag}", tag)})
    assert answered.status_code == status


@pytest.mark.parametrize("names_it", [True, False])
def test_another_that_is_kept_while_one_is_checked_is_not_replaced_unseen(
    names_it, app, client, upload, monkeypatch
):
    seen = client.get("/config", headers=ROOT).headers["ETag"]
    store = app.extensions["mailpool"].store
    add, others = store.add_configuration, [Uploaded(1, 0.0, "another", "{}")]

    def add_after_another(uploaded):
        if others:
            assert add(others.pop())
        return add(uploaded)

    monkeypatch.setattr(store, "add_configuration", add_after_another)
    answered = put(client, upload, {**ROOT, "If-Match": seen} if names_it else ROOT)
    assert answered.status_code == (412 if names_it else 200)
    assert newest(client) == (1 if names_it else 2)


def test_who_looks_again_and_again_is_told_that_nothing_is_new(client, upload):
    put(client, upload)
    for path in ("/config", "/config/versions"):
        tag = client.get(path, headers=ROOT).headers["ETag"]
        asked = {**ROOT, "If-None-Match": tag}
        assert client.get(path, headers=asked).status_code == 304
    put(client, upload)
    assert client.get("/config/versions", headers=asked).status_code == 200


def test_the_file_of_a_machine_is_named_by_what_it_says(make_app, tmp_path):
    tags = {
        make_app(make_config(tmp_path, config_upload=True, message_retention_days=days))
        .test_client()
        .get("/config", headers=ROOT)
        .headers["ETag"]
        for days in (30, 30, 31)
    }
    assert len(tags) == 2


def test_the_next_application_is_what_was_uploaded(app, client, upload):
    assert renewed(app) is None
    put(client, upload)
    after = renewed(app)
    assert renewed(after) is None
    shown = after.test_client().get("/config", headers=ROOT).json
    assert (shown["version"], shown["takes_uploads"]) == (1, True)
    assert shown["configuration"] == upload
    services = after.test_client().get("/example.com", headers=POOL).json["enabled_services"]
    assert [*services] == ["mailgun", "primary", "backup"]
    before = client.get("/config", headers=ROOT).json
    assert before["version"] is None, "a request in progress has what it began with"
    assert before["hash"] != shown["hash"]


def test_a_service_of_which_nothing_changed_keeps_its_connections(app, client, upload):
    put(client, upload)
    first = renewed(app)
    upload["email_services"][0]["enabled_services"]["mailgun"]["timeout_seconds"] = 3
    put(client, upload)
    second = renewed(first)
    services = [
        app.extensions["mailpool"].pools["example.com"].services for app in (app, first, second)
    ]
    assert services[0]["primary"] is services[1]["primary"] is services[2]["primary"]
    assert services[1]["mailgun"] is not services[2]["mailgun"]


def test_the_start_after_an_upload_is_with_it(client, upload, tmp_path):
    put(client, upload)
    config = load_config(str(tmp_path / "config.json"))
    assert config.version == 1
    file = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**file, "config_upload": False}))
    assert load_config(str(tmp_path / "config.json")).version is None


def test_without_the_database_no_start_is_with_another_configuration(client, upload, tmp_path):
    put(client, upload)
    file = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**file, "state_url": f"sqlite:///{tmp_path}/nowhere/state.sqlite3"})
    )
    with pytest.raises(ConfigError, match=r"^What was uploaded cannot be read\."):
        load_config(str(tmp_path / "config.json"))


def test_no_secret_of_the_file_is_shown(make_app, tmp_path, upload):
    file = make_config(tmp_path, config_upload=True)
    mailgun = {"api_key": PLAIN_PROVIDER_KEY, "priority_value": 30}
    file["email_services"][0]["enabled_services"]["mailgun"] = mailgun
    file["email_services"][1]["pool_api_key"] = [{"name": "shop", "key": "another-secret-key"}]
    answered = make_app(file).test_client().get("/config", headers=ROOT)
    for secret in (ROOT_KEY, POOL_KEY, PLAIN_PROVIDER_KEY, "another-secret-key"):
        assert secret not in answered.text
    shown = answered.json["configuration"]
    assert shown["root_api_key"] == HIDDEN
    assert shown["email_services"][0]["enabled_services"]["mailgun"]["api_key"] == HIDDEN
    assert shown["email_services"][1]["pool_api_key"] == [{"name": "shop", "key": HIDDEN}]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:pass/word@db.example.com/mail", HIDDEN),
        ("postgresql:///mail?password=word", HIDDEN),
        ("kafka://kafka.example.com:9092/mail?sasl.password=word", HIDDEN),
        ("sqlite:////var/mail/state.sqlite3", "sqlite:////var/mail/state.sqlite3"),
        ("env:STATE_URL", "env:STATE_URL"),
    ],
)
def test_no_password_in_a_url_is_shown(url, shown):
    names = ("state_url", "queue_url")
    assert without_secrets(dict.fromkeys(names, url)) == dict.fromkeys(names, shown)


def test_the_database_holds_no_secret(client, upload, state_url):
    put(client, upload)
    with create_engine(state_url).connect() as connection:
        rows = connection.execute(text("SELECT content FROM configurations")).scalars().all()
    assert len(rows) == 1
    for secret in (ROOT_KEY, POOL_KEY, PLAIN_PROVIDER_KEY, "k" * 30):
        assert secret not in rows[0]


def test_versions_are_compared(client, upload):
    put(client, upload)
    first = upload["email_services"][0]
    first["deadline_seconds"] = 20
    del first["enabled_services"]["backup"]
    upload["email_services"].reverse()
    put(client, upload)
    answered = client.get("/config/versions/2?against=1", headers=ROOT).json
    assert answered["configuration"] == upload
    assert sorted(answered["differences"], key=lambda found: found["path"]) == [
        {"path": "email_services.example.com.deadline_seconds", "after": 20},
        {
            "path": "email_services.example.com.enabled_services.backup",
            "before": {"service": "maildir", "priority_value": 10, "path": first_path(upload)},
        },
    ]


def first_path(upload):
    primary = upload["email_services"][1]["enabled_services"]["Primary"]["path"]
    return primary.replace("primary", "backup")


def test_a_version_is_restored_as_a_new_one(client, upload):
    put(client, upload)
    put(client, {**upload, "message_retention_days": 3})
    answered = client.post("/config/versions/1/restore", headers=ROOT)
    assert (answered.status_code, answered.json["version"]) == (200, 3)
    assert client.get("/config/versions/3", headers=ROOT).json["configuration"] == upload


def test_a_version_is_found_and_restored_with_a_browser(client, upload):
    put(client, upload)
    put(client, {**upload, "message_retention_days": 3})
    sign_in(client, ROOT_KEY)
    listed = client.get("/config/versions", headers=PAGE).text
    links = re.findall(r'href="(/config/versions/[^"]+)"', listed)
    assert links == ["/config/versions/2?against=1", "/config/versions/1"]
    page = client.get(links[0], headers=PAGE).text
    assert "<code>message_retention_days</code>: not there, here <code>3</code>" in page
    page = client.get(links[1], headers=PAGE).text
    assert '<a href="/config/versions/2?against=1">version 2</a>' in page, "what it would replace"
    restored = restore_from(client, page).text
    assert '<a href="/config/versions/3">version 3</a> now.' in restored
    assert client.get("/config/versions/3", headers=ROOT).json["configuration"] == upload


def restore_from(client, page):
    """Click on the button of a page that was loaded, perhaps long ago."""
    (form,) = re.findall(r'<form method="post" action="/config.*?</form>', page, re.DOTALL)
    fields = {n: unescape(value) for n, value in re.findall(r'name="(\w+)" value="([^"]+)"', form)}
    action = re.search(r'action="([^"]+)"', form)[1]
    return client.post(action, data=fields, headers={**PAGE, **HERE})


def test_a_restore_from_a_page_that_is_stale_replaces_nothing_unseen(client, upload):
    put(client, upload)
    sign_in(client, ROOT_KEY)
    page = client.get("/config/versions/1", headers=PAGE).text
    put(client, {**upload, "message_retention_days": 3})
    refused = restore_from(client, page)
    assert refused.status_code == 412
    assert "another configuration was uploaded since you looked" in refused.text
    assert '<a class="button" href="/config/versions">' in refused.text
    assert 'action="/config' not in refused.text
    assert newest(client) == 2
    page = client.get("/config/versions/1", headers=PAGE).text
    assert restore_from(client, page).status_code == 200
    assert newest(client) == 3


def test_a_restore_that_is_wrong_asks_again_for_what_was_seen(client, upload, monkeypatch):
    put(client, upload)
    sign_in(client, ROOT_KEY)
    page = client.get("/config/versions/1", headers=PAGE).text
    monkeypatch.delenv("PROVIDER_KEY")
    refused = restore_from(client, page)
    assert refused.status_code == 400
    monkeypatch.setenv("PROVIDER_KEY", PLAIN_PROVIDER_KEY)
    assert restore_from(client, refused.text).status_code == 200
    assert restore_from(client, refused.text).status_code == 412


def test_what_is_restored_is_checked_again(client, upload, monkeypatch):
    put(client, upload)
    monkeypatch.delenv("PROVIDER_KEY")
    answered = client.post("/config/versions/1/restore", headers=ROOT)
    assert answered.status_code == 400
    assert "the environment has no variable PROVIDER_KEY." in str(answered.json["problems"])


@pytest.mark.parametrize("version", ["2", "0", "x", "9" * 30, "²"])
def test_a_version_that_is_not_there_is_404(version, client, upload):
    put(client, upload)
    for path in (f"/config/versions/{version}", f"/config/versions/1?against={version}"):
        assert client.get(path, headers=ROOT).status_code in {404, 400}
    answered = client.post(f"/config/versions/{version}/restore", headers=ROOT)
    assert (answered.status_code, answered.json["code"]) == (404, "unknown_version")


def test_nothing_is_uploaded_where_the_file_does_not_say_so(make_app, tmp_path, upload):
    client = make_app(make_config(tmp_path)).test_client()
    answered = put(client, upload)
    assert (answered.status_code, answered.json["code"]) == (403, "uploads_off")
    assert '"config_upload": true' in answered.json["error"]
    assert client.get("/config/versions", headers=ROOT).json["versions"] == []


@pytest.mark.parametrize("headers", [POOL, {}, {"Authorization": "Bearer wrong"}])
def test_only_the_root_key_uploads_or_sees(headers, client, upload):
    put(client, upload)
    assert put(client, upload, headers).status_code == 401
    for path in ("/config", "/config/versions", "/config/versions/1"):
        assert client.get(path, headers=headers).status_code == 401
    assert client.post("/config/versions/1/restore", headers=headers).status_code == 401


def test_a_key_in_what_is_uploaded_opens_nothing(client, upload):
    answered = put(client, {**upload, "root_api_key": ROOT_KEY}, headers={})
    assert (answered.status_code, answered.json["code"]) == (401, "key_missing")


def domain(config):
    return config["email_services"][0]


def service(config):
    return domain(config)["enabled_services"]["mailgun"]


BROKEN = {
    "no root key": (lambda c: c.pop("root_api_key"), "root_api_key", "Required"),
    "a root key as it is": (
        lambda c: c.update(root_api_key=ROOT_KEY),
        "root_api_key",
        "a secret is not uploaded",
    ),
    "a pool key as it is": (
        lambda c: domain(c).update(pool_api_key=POOL_KEY),
        "email_services[0].pool_api_key",
        "a secret is not uploaded",
    ),
    "a key of several as it is": (
        lambda c: c.update(root_api_key=[{"name": "ada", "key": ROOT_KEY}]),
        "root_api_key[0].key",
        "a secret is not uploaded",
    ),
    "a provider's key as it is": (
        lambda c: service(c).update(api_key=PLAIN_PROVIDER_KEY),
        "email_services[0].enabled_services.mailgun.api_key",
        "a secret is not uploaded",
    ),
    "a key that is nowhere": (
        lambda c: service(c).update(api_key="env:NOWHERE"),
        "email_services[0].enabled_services.mailgun.api_key",
        "the environment has no variable NOWHERE",
    ),
    "a file that is nowhere": (
        lambda c: service(c).update(api_key="file:/nowhere/key"),
        "email_services[0].enabled_services.mailgun.api_key",
        "cannot be read",
    ),
    "who uploads it is locked out": (
        lambda c: c.update(root_api_key="env:PROVIDER_KEY"),
        "root_api_key",
        LOCKED_OUT,
    ),
    "who uploads it reads metrics alone": (
        lambda c: c["root_api_key"][0].update(role="metrics"),
        "root_api_key",
        LOCKED_OUT,
    ),
    "all are locked out in an hour": (
        lambda c: c["root_api_key"][0].update(until=ahead(hours=1)),
        "root_api_key",
        SOON_LOCKED_OUT,
    ),
    "only metrics can be read tomorrow": (
        lambda c: (
            c["root_api_key"][0].update(until=ahead(hours=1)),
            c["root_api_key"].append({"name": "graphs", "key": "env:PROVIDER_KEY"}),
            c["root_api_key"][1].update(role="metrics"),
        ),
        "root_api_key",
        SOON_LOCKED_OUT,
    ),
    "where the state is": (
        lambda c: c.update(state_url="sqlite:///other.sqlite3"),
        "state_url",
        "the file of each machine says it",
    ),
    "where the queue is": (
        lambda c: c.update(queue_url="kafka://127.0.0.1:9092/mailpool"),
        "queue_url",
        "the file of each machine says it",
    ),
    "that uploads count": (
        lambda c: c.update(config_upload=False),
        "config_upload",
        "the file of each machine says it",
    ),
    "an unknown setting": (lambda c: c.update(prodution=True), "prodution", "mean 'production'?"),
    "a word for a number": (
        lambda c: domain(c).update(deadline_seconds="long"),
        "email_services[0].deadline_seconds",
        "number",
    ),
    "too long a deadline": (
        lambda c: domain(c).update(deadline_seconds=1000),
        "email_services[0].deadline_seconds",
        "110",
    ),
    "no domain": (lambda c: c.update(email_services=[]), "email_services", "at least 1"),
    "no services": (
        lambda c: domain(c).update(enabled_services={}),
        "email_services[0].enabled_services",
        "at least 1",
    ),
    "a domain twice": (
        lambda c: c["email_services"].append(copy.deepcopy(domain(c))),
        "email_services[2].email_domain",
        "given twice",
    ),
    "an unknown provider": (
        lambda c: service(c).update(service="pigeon"),
        "email_services[0].enabled_services.mailgun",
        "no such provider",
    ),
    "a service without a priority": (
        lambda c: service(c).pop("priority_value"),
        "email_services[0].enabled_services.mailgun.priority_value",
        "Required",
    ),
    "a service's name that is reserved": (
        lambda c: domain(c)["enabled_services"].update(send=service(c) | {"service": "mailgun"}),
        "email_services[0].enabled_services.send",
        "reserved",
    ),
    "a stream through nothing": (
        lambda c: domain(c).update(streams={"codes": {"services": ["pigeon"]}}),
        "email_services[0].streams.codes.services[0]",
        "no usable service of this name",
    ),
    "a key where a service's name should be": (
        lambda c: domain(c).update(streams={"codes": {"services": ["env:PROVIDER_KEY"]}}),
        "email_services[0].streams.codes.services[0]",
        "no usable service of this name",
    ),
    "a list for an object": (
        lambda c: c.update(email_services=[[]]),
        "email_services[0]",
        "should be",
    ),
    "clear text in production": (
        lambda c: (c.update(production=True), service(c).update(base_url="http://192.0.2.1")),
        "configuration",
        "unencrypted",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_one_that_is_broken_changes_nothing_and_says_why(broken, app, client, upload):
    spoil, place, words = BROKEN[broken]
    spoil(upload)
    answered = put(client, upload)
    assert (answered.status_code, answered.json["code"]) == (400, "invalid")
    assert words in answered.json["problems"][place]
    assert answered.json["problems"][place].endswith((".", "?"))
    for secret in (ROOT_KEY, POOL_KEY, PLAIN_PROVIDER_KEY):
        assert secret not in answered.text
    assert client.get("/config/versions", headers=ROOT).json["versions"] == []
    assert renewed(app) is None


@pytest.mark.parametrize("left", [{"hours": 25}, {"days": 365}])
def test_a_root_key_that_ends_is_taken_where_one_is_left_for_a_day(left, client, upload):
    upload["root_api_key"][0]["until"] = ahead(**left)
    assert put(client, upload).status_code == 200
    upload["root_api_key"] = [
        {"name": "ada", "key": "env:ROOT_KEY", "until": ahead(minutes=5)},
        {"name": "bob", "hash": hash_key("b" * 30)},
    ]
    assert put(client, upload).status_code == 200, "it is bob's from then on"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"root_api_key": "a", "root_api_key": "b"}', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"root_api_key=x", "application/x-www-form-urlencoded", 400),
        (b"<xml/>", "application/xml", 415),
        (b"", "application/json", 400),
    ],
)
def test_what_is_no_configuration_at_all_is_refused(body, kind, status, client):
    answered = client.put("/config", data=body, headers={**ROOT, "Content-Type": kind})
    assert answered.status_code == status
    assert answered.json["error"].endswith(".")


@pytest.mark.parametrize("depth", [*range(300, 1000, 50), *range(900, 1000, 5)])
def test_one_that_is_nested_too_deeply_is_refused(depth, client, upload):
    upload["root_api_key"] = None
    body = json.dumps(upload).replace("null", "[" * depth + "]" * depth)
    answered = client.put("/config", data=body, headers=JSON)
    assert (answered.status_code, answered.json["code"]) == (400, "invalid")


def test_one_that_is_too_large_is_refused_before_it_is_checked(client, upload):
    upload.update({f"setting {n}": "x" * 1000 for n in range(MEGABYTE // 1000)})
    answered = put(client, upload)
    assert (answered.status_code, answered.json["code"]) == (413, "too_large")
    assert answered.json["error"] == "A configuration is at most 1 MB."


def test_a_file_of_a_form_is_told_to_be_sent_as_json(client, upload):
    file = (BytesIO(json.dumps(upload).encode()), "config.json")
    answered = client.put("/config", data={"config": file}, headers=ROOT)
    assert answered.status_code == 400
    assert answered.json["problems"] == {"config": NO_FORM}


def test_all_problems_are_told_at_once(client, upload):
    for spoil, _, _ in (BROKEN["a root key as it is"], BROKEN["where the state is"]):
        spoil(upload)
    del domain(upload)["email_domain"]
    assert {*put(client, upload).json["problems"]} >= {
        "root_api_key",
        "state_url",
        "email_services[0].email_domain",
    }


def test_an_upload_is_a_change_in_the_log_without_what_it_says(client, upload, caplog):
    caplog.set_level("DEBUG")
    put(client, upload)
    (line,) = [r for r in caplog.records if getattr(r, "event", "") == "change"]
    assert line.getMessage() == (
        "Asked for with the root_api_key: upload a configuration at /config."
    )
    assert line.asked == {}


class Worker:
    """What a follower needs of gunicorn's."""

    def __init__(self, app):
        self.wsgi = app

    def take_over(self, app):
        self.wsgi = app


def test_a_machine_that_cannot_use_it_goes_on_with_the_one_before(
    app, client, upload, monkeypatch, caplog
):
    put(client, upload)
    monkeypatch.delenv("PROVIDER_KEY")
    worker, ended = Worker(app), []
    follower = Follower(worker, renewed, lambda _: None, ended.append)
    follower.look()
    follower.look()
    assert worker.wsgi is app
    told = [r.getMessage() for r in caplog.records if "not taken over" in r.getMessage()]
    assert len(told) == 1
    assert "the environment has no variable PROVIDER_KEY" in told[0]
    assert "mailpool_config_last_reload_successful 0.0" in client.get("/metrics").text
    monkeypatch.setenv("PROVIDER_KEY", "mended")
    follower.look()
    assert worker.wsgi is not app
    assert ended == [app]
    assert "mailpool_config_last_reload_successful 1.0" in client.get("/metrics").text


def test_a_worker_goes_on_while_the_database_is_away(app):
    def away(_):
        raise StoreUnavailable("It is away.")

    worker = Worker(app)
    Follower(worker, away, lambda _: None, lambda _: None).look()
    assert worker.wsgi is app


def test_a_worker_whose_first_look_met_a_bug_can_end(app):
    follower = Follower(Worker(app), lambda _: 1 / 0, lambda _: None, lambda _: None)
    with pytest.raises(ZeroDivisionError):
        follower.start()
    follower.stop()
