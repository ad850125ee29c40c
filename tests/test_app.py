"""The contract over HTTP: every path, format, key and method; and what each endpoint answers."""

from __future__ import annotations

import contextlib
import csv
import email
import email.policy
import io
import json
import logging
import re
import threading
import time
from datetime import datetime, timedelta, timezone
from io import BytesIO
from urllib.parse import quote

import pytest
from conftest import (
    OTHER_POOL,
    OTHER_POOL_KEY,
    PLAIN,
    POOL,
    POOL_KEY,
    PROVIDER_KEY,
    ROOT,
    ROOT_KEY,
    make_config,
)
from standins import answer as answering
from standins import answer_json, hang
from werkzeug.test import create_environ, run_wsgi_app

from email_services.bulkhead import Bulkhead
from email_services.message import EmailMessage

JSON = "application/json"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
WRONG = {"Authorization": "Bearer wrong"}
KEYS = {"no": {}, "wrong": WRONG, "pool": POOL, "other": OTHER_POOL, "root": ROOT}

# path, then the status for each key of GET, and of POST with a body that is right
MATRIX = {
    "/": (
        {"no": 200, "wrong": 401, "pool": 200, "other": 200, "root": 200},
        {"no": 401, "wrong": 401, "pool": 200, "other": 200, "root": 200},
    ),
    "/example.com": (
        {"no": 200, "wrong": 401, "pool": 200, "other": 401, "root": 200},
        {"no": 401, "wrong": 401, "pool": 200, "other": 401, "root": 200},
    ),
    "/example.com/send": (
        {"no": 200, "wrong": 401, "pool": 200, "other": 401, "root": 200},
        {"no": 401, "wrong": 401, "pool": 200, "other": 401, "root": 200},
    ),
    "/example.com/primary/send": (
        {"no": 200, "wrong": 401, "pool": 200, "other": 401, "root": 200},
        {"no": 401, "wrong": 401, "pool": 200, "other": 401, "root": 200},
    ),
    "/example.com/primary/fail": (
        {"no": 200, "wrong": 401, "pool": 200, "other": 401, "root": 200},
        {"no": 401, "wrong": 401, "pool": 401, "other": 401, "root": 200},
    ),
    "/example.org": (dict.fromkeys(KEYS, 404), dict.fromkeys(KEYS, 404)),
    "/example.org/send": (dict.fromkeys(KEYS, 404), dict.fromkeys(KEYS, 404)),
    "/example.com/nobody/send": (
        {"no": 404, "wrong": 401, "pool": 404, "other": 401, "root": 404},
        {"no": 401, "wrong": 401, "pool": 404, "other": 401, "root": 404},
    ),
    "/example.com/nobody/fail": (
        {"no": 404, "wrong": 401, "pool": 404, "other": 401, "root": 404},
        {"no": 401, "wrong": 401, "pool": 401, "other": 401, "root": 404},
    ),
    "/a/b/c/d": (dict.fromkeys(KEYS, 404), dict.fromkeys(KEYS, 404)),
    "/nodot": (dict.fromkeys(KEYS, 404), dict.fromkeys(KEYS, 404)),
    "/example.com/primary": (dict.fromkeys(KEYS, 404), dict.fromkeys(KEYS, 404)),
    "/example.com/primary/health": (
        {"no": 200, "wrong": 401, "pool": 200, "other": 401, "root": 200},
        {"no": 401, "wrong": 401, "pool": 401, "other": 401, "root": 200},
    ),
    "/example.com/messages": (
        {"no": 401, "wrong": 401, "pool": 200, "other": 401, "root": 200},
        dict.fromkeys(KEYS, 405),
    ),
    "/example.com/messages/none": (
        {"no": 401, "wrong": 401, "pool": 404, "other": 401, "root": 404},
        dict.fromkeys(KEYS, 405),
    ),
    "/healthz": (dict.fromkeys(KEYS, 200), dict.fromkeys(KEYS, 405)),
    "/readyz": (dict.fromkeys(KEYS, 200), dict.fromkeys(KEYS, 405)),
}
NOWHERE = ("/a/b/c/d", "/nodot", "/example.com/primary")


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("accept", [JSON, BROWSER])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("path", MATRIX)
def test_every_path_has_the_contracts_status_and_shape(path, key, method, accept, slash, client):
    body = PLAIN if path.endswith("/send") else {}
    headers = {**KEYS[key], "Accept": accept}
    answer = client.open(
        path if path == "/" else path + slash,
        method=method,
        headers=headers,
        json=body if method == "POST" else None,
    )
    gets, posts = MATRIX[path]
    put = 404 if path in NOWHERE else 405
    expected = {"GET": gets[key], "POST": posts[key], "PUT": put}[method]
    assert answer.status_code == expected
    assert answer.mimetype == accept.partition(",")[0]
    if answer.status_code == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    if answer.status_code == 405:
        assert "GET" in answer.headers["Allow"]
    if accept == JSON and expected >= 400:
        assert list(answer.json) == ["error", "code"]
        assert answer.json["error"].endswith(".")
    if accept == BROWSER:
        assert answer.text.startswith("<!doctype html>")


PRODUCTION = {
    "/": {"no": 401, "wrong": 401, "pool": 200, "other": 200, "root": 200},
    "/example.com": {"no": 401, "wrong": 401, "pool": 200, "other": 401, "root": 200},
    "/example.com/send": {"no": 401, "wrong": 401, "pool": 200, "other": 401, "root": 200},
    "/example.com/primary/fail": {"no": 401, "wrong": 401, "pool": 200, "other": 401, "root": 200},
    "/example.org": {"no": 401, "wrong": 401, "pool": 401, "other": 401, "root": 404},
}


LISTINGS = [("GET", path) for path in PRODUCTION]
LISTINGS += [("POST", path) for path in PRODUCTION if not path.endswith(("send", "fail"))]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("method", "path"), LISTINGS)
def test_in_production_listings_need_a_key(path, key, method, make_app, tmp_path):
    client = make_app(make_config(tmp_path, production=True)).test_client()
    answer = client.open(path, method=method, headers=KEYS[key])
    assert answer.status_code == PRODUCTION[path][key]


@pytest.mark.parametrize("path", ["", "/send", "/primary/fail", "/primary/health", "/messages"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_in_production_a_stranger_is_not_told_which_domains_exist(path, method, make_app, tmp_path):
    client = make_app(make_config(tmp_path, production=True)).test_client()
    told = [
        client.open(f"/{name}{path}", method=method, headers=OTHER_POOL)
        for name in ("example.com", "example.org")
    ]
    assert told[0].data == told[1].data
    assert told[0].status == told[1].status


POOL_NEEDED = "the pool key of this domain or the root key"
EITHER_NEEDED = "the root key or a key of this domain"
NEEDED = {
    ("POST", "/example.com/send"): (POOL_NEEDED, {"wrong", "other"}),
    ("POST", "/example.com/primary/send"): (POOL_NEEDED, {"wrong", "other"}),
    ("POST", "/example.com/primary/fail"): ("the root key", {"wrong", "other", "pool"}),
    ("POST", "/example.com/primary/health"): ("the root key", {"wrong", "other", "pool"}),
    ("GET", "/example.com/messages"): (EITHER_NEEDED, {"wrong", "other"}),
    ("POST", "/example.com"): (EITHER_NEEDED, {"wrong", "other"}),
    ("POST", "/"): ("the root key or a key of a domain", {"wrong"}),
}
HELD = {
    ("/example.com/primary/fail", "pool"): "This is the pool key of this domain, which",
    ("/example.com/primary/health", "pool"): "This is the pool key of this domain, which",
}


@pytest.mark.parametrize(("method", "path"), NEEDED)
def test_who_is_refused_is_told_whether_a_key_is_missing_or_another_is_needed(
    method, path, make_app, tmp_path
):
    needed, refused = NEEDED[method, path]
    client = make_app(make_config(tmp_path, production=True)).test_client()
    missing = client.open(path, method=method)
    assert missing.status_code == 401
    assert missing.json == {
        "error": f"No key was shown: {needed} is needed, as Authorization: Bearer KEY.",
        "code": "key_missing",
    }
    for key in refused:
        in_header = client.open(path, method=method, headers=KEYS[key])
        shown = KEYS[key]["Authorization"].removeprefix("Bearer ")
        held = HELD.get((path, key), "This key")
        in_body = client.open(path, method=method, json={"pool_api_key": shown})
        for answer in (in_header, in_body):
            assert answer.status_code == 401
            assert answer.json == {
                "error": f"{held} does not open this: {needed} is needed.",
                "code": "key_wrong",
            }


LOST = {
    "/a/b/c/d": "There is nothing at this address. Every one is described at /openapi.json.",
    "/example.org/send": (
        "There is no email domain 'example.org' here. GET / lists those there are."
    ),
    "/example.com/nobody/send": (
        "The email domain 'example.com' has no service 'nobody'. "
        "GET /example.com lists those there are."
    ),
    "/example.com/messages/none": (
        "There is no message 'none' in the log of this email domain. "
        "GET /example.com/messages lists those there are."
    ),
}


@pytest.mark.parametrize("path", LOST)
def test_who_is_lost_is_told_where_to_look(path, client):
    answer = client.get(path, headers=POOL)
    assert (answer.status_code, answer.json["error"]) == (404, LOST[path])
    looked = re.search(r"(?:at|GET) (/\S*?)\.?(?: |$)", answer.json["error"])[1]
    assert client.get(looked, headers=POOL).status_code == 200


def test_behind_a_prefix_who_is_lost_is_told_of_it(client):
    for path in ("/nothing", "/example.com/nobody/send"):
        answer = client.get(path, headers=POOL, environ_overrides={"SCRIPT_NAME": "/mail"})
        assert " /mail/" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/example.com/send", "GET, HEAD, OPTIONS, POST"),
        ("/preview", "OPTIONS, POST"),
    ],
)
def test_a_method_that_an_address_does_not_take_is_met_with_those_it_takes(path, methods, client):
    answer = client.delete(path)
    assert answer.status_code == 405
    assert {*answer.headers["Allow"].split(", ")} == {*methods.split(", ")}
    assert answer.json["error"] == (f"This address does not take that method. It takes {methods}.")


LARGE = {**PLAIN, "raw_text_body": "x" * (26 * 1024 * 1024)}
CODES = {
    "a field that is wrong": ("POST", "/example.com/send", {"json": {}}, 400, "invalid"),
    "no JSON": ("POST", "/example.com/send", {"data": b"{", "content_type": JSON}, 400, "invalid"),
    "a wrong filter": ("GET", "/example.com/messages?limit=0", {}, 400, "invalid"),
    "another site": (
        "POST",
        "/sign-in",
        {"json": {"key": POOL_KEY}, "headers": {"Origin": "https://evil.example"}},
        403,
        "forbidden",
    ),
    "no address": ("GET", "/a/b/c/d", {}, 404, "not_found"),
    "no domain": ("GET", "/example.org", {"headers": {}}, 404, "unknown_domain"),
    "no service": ("GET", "/example.com/nobody/health", {}, 404, "unknown_service"),
    "no message": ("GET", "/example.com/messages/none", {}, 404, "unknown_message"),
    "no such method": ("PUT", "/example.com/send", {}, 405, "method_not_allowed"),
    "no such format": ("GET", "/?format=xml", {}, 406, "not_acceptable"),
    "a large message": ("POST", "/example.com/send", {"json": LARGE}, 413, "too_large"),
    "a large body": (
        "POST",
        "/example.com/send",
        {"data": b"x" * (40 * 1024 * 1024), "content_type": JSON},
        413,
        "too_large",
    ),
    "plain text": (
        "POST",
        "/example.com/send",
        {"data": b"Hello", "content_type": "text/plain"},
        415,
        "unsupported_media_type",
    ),
}


@pytest.mark.parametrize("case", CODES)
def test_every_error_has_a_code_for_programs_beside_its_sentence(case, client):
    method, path, asked, status, code = CODES[case]
    answer = client.open(path, method=method, **{"headers": POOL, **asked})
    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert list(answer.json)[:2] == ["error", "code"]
    assert set(answer.json) <= {"error", "code", "problems"}


def test_a_message_of_a_batch_that_is_wrong_has_its_code_too(client):
    batch = {"messages": [PLAIN, {}]}
    wrong = client.post("/example.com/send", json=batch, headers=POOL).json["results"][1]
    assert list(wrong) == ["result", "error", "code", "problems"]
    assert wrong["code"] == "invalid"


def test_the_key_is_asked_for_before_the_body_is_looked_at(client):
    for path in ("/", "/example.com", "/example.com/primary/fail", "/example.com/primary/health"):
        assert client.post(path, json={"no": "such field"}).status_code == 401
        assert client.post(path, json={"no": "such field"}, headers=ROOT).status_code == 400


def test_in_production_a_pool_key_sees_its_domain_only_and_nobody_sees_keys(make_app, tmp_path):
    client = make_app(make_config(tmp_path, production=True)).test_client()
    seen = {key: client.get("/", headers=KEYS[key]) for key in ("pool", "root")}
    names = {
        key: [domain["email_domain"] for domain in answer.json["email_services"]]
        for key, answer in seen.items()
    }
    assert names == {"pool": ["example.com"], "root": ["example.com", "example.net"]}
    for answer in seen.values():
        assert not any(key in answer.text for key in (ROOT_KEY, POOL_KEY, OTHER_POOL_KEY))


def listed_service(name: str, priority: int) -> dict:
    return {
        "service": "maildir",
        "priority_value": priority,
        "weight": 1,
        "timeout_seconds": 10,
        "max_per_second": None,
        "max_per_day": None,
        "max_at_once": None,
        "simulated_failure_enabled": False,
        "health": "working",
        "health_since": None,
        "failing_since": None,
        "health_reason": "",
        "failures_in_a_row": 0,
        "next_probe": None,
        "last_errors": [],
        "send_url": f"http://localhost/example.com/{name}/send",
        "fail_url": f"http://localhost/example.com/{name}/fail",
        "health_url": f"http://localhost/example.com/{name}/health",
    }


NOTHING_SENT = {
    "sent_by": {},
    **dict.fromkeys(("failed_over", "possible_duplicates", "not_sent", "unknown"), 0),
    "in_progress": 0,
}


def test_a_listing_shows_services_by_priority_and_where_to_go(client):
    domain = client.get("/example.com").json
    assert domain == {
        "email_domain": "example.com",
        "url": "http://localhost/example.com",
        "send_url": "http://localhost/example.com/send",
        "messages_url": "http://localhost/example.com/messages",
        "deadline_seconds": 25,
        "on_unknown": "failover",
        "enabled_services": {
            "primary": listed_service("primary", 20),
            "backup": listed_service("backup", 10),
        },
        "state": "working",
        "state_since": None,
        "troubles": [],
        "queue": {
            key: {
                **dict.fromkeys(("waiting", "retrying", "scheduled"), 0),
                "oldest_seconds": None,
                "paused": False,
            }
            for key in ("default", "bulk")
        },
        "queue_url": "http://localhost/example.com/queue",
        "last_hour": NOTHING_SENT,
        "last_day": {
            **NOTHING_SENT,
            "by_hour": dict.fromkeys(("sent", "failed_over", "not_sent", "unknown"), [0] * 24),
        },
        "changes": [],
    }
    assert list(domain["enabled_services"]) == ["primary", "backup"]
    home = client.get("/").json
    assert [entry["email_domain"] for entry in home["email_services"]] == [
        "example.com",
        "example.net",
    ]
    del domain["changes"]
    assert home["email_services"][0] == domain


def with_providers(tmp_path, **services):
    config = make_config(tmp_path)
    config["email_services"][0]["enabled_services"] = services
    return config


def http_service(url, priority, **settings):
    return {"api_key": PROVIDER_KEY, "priority_value": priority, "base_url": url, **settings}


def test_the_root_sees_the_api_keys(make_app, tmp_path):
    app = make_app(with_providers(tmp_path, Mailgun=http_service("http://127.0.0.1:1", 1)))
    client = app.test_client()
    for answer in (
        client.get("/example.com", headers=ROOT),
        client.post("/example.com", json={"root_api_key": ROOT_KEY}),
        client.post("/example.com", data={"root_api_key": ROOT_KEY}),
    ):
        assert answer.json["pool_api_key"] == POOL_KEY
        assert answer.json["enabled_services"]["mailgun"]["api_key"] == PROVIDER_KEY
    for answer in (client.get("/example.com"), client.get("/example.com", headers=POOL)):
        assert POOL_KEY not in answer.text
        assert PROVIDER_KEY not in answer.text


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {**PLAIN, "pool_api_key": POOL_KEY}},
        {"data": {**PLAIN, "pool_api_key": POOL_KEY}},
        {"data": {**PLAIN, "pool_api_key": POOL_KEY}, "content_type": "multipart/form-data"},
        {"json": PLAIN, "headers": POOL},
        {"data": PLAIN, "headers": {"Authorization": f"bearer {POOL_KEY}"}},
    ],
)
def test_a_key_may_be_in_the_header_or_the_body(sent, client):
    assert client.post("/example.com/send", **sent).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"query_string": {"pool_api_key": POOL_KEY}, "json": PLAIN},
        {"json": {**PLAIN, "pool_api_key": [POOL_KEY]}},
        {"json": {**PLAIN, "pool_api_key": None}},
        {"json": PLAIN, "headers": {"Authorization": f"Basic {POOL_KEY}"}},
        {"json": PLAIN, "headers": {"Authorization": "Bearer"}},
        {"json": PLAIN, "headers": {"Authorization": f"Bearer {POOL_KEY.upper()}"}},
        {"json": PLAIN, "headers": {"Authorization": "Bearer \xe9"}},
    ],
)
def test_a_key_anywhere_else_is_none(sent, client):
    assert client.post("/example.com/send", **sent).status_code == 401


def test_a_message_is_sent(client, tmp_path):
    answer = client.post("/example.com/send", json=PLAIN, headers=POOL)
    assert answer.status_code == 200
    assert {name: type(value) for name, value in answer.json.items()} == {
        "result": str,
        "message_id": str,
        "service_used": str,
        "service_message_id": str,
        "services_unsuccessful": dict,
        "attempts": list,
        "possible_duplicate": bool,
    }
    assert answer.json["service_used"] == "primary"
    assert len(list((tmp_path / "primary" / "new").iterdir())) == 1


@pytest.mark.parametrize("path", ["/EXAMPLE.com/send", "/example.com/send/", "/example.com./send"])
def test_a_domain_may_be_spelled_in_other_ways(path, client):
    assert client.post(path, json=PLAIN, headers=POOL).status_code == 200


def test_a_simulated_failure_is_seen_everywhere_and_fails_over(client):
    switched = client.post("/example.com/PRIMARY/fail", headers=ROOT)
    assert switched.json == {"service_name": "primary", "simulated_failure_enabled": True}
    assert client.get("/example.com/primary/fail").json == switched.json
    services = client.get("/").json["email_services"][0]["enabled_services"]
    assert services["primary"]["simulated_failure_enabled"] is True
    assert services["backup"]["simulated_failure_enabled"] is False
    sent = client.post("/example.com/send", json=PLAIN, headers=POOL).json
    assert sent["service_used"] == "backup"
    assert sent["services_unsuccessful"] == {"primary": "Simulated failure."}
    client.post("/example.com/primary/fail", headers=ROOT)
    assert client.get("/example.com/primary/fail").json["simulated_failure_enabled"] is False


@pytest.mark.parametrize(
    ("sent", "result"),
    [
        ({"json": {"simulated_failure": True}}, True),
        ({"json": {"simulated_failure": False}}, False),
        ({"data": {"simulated_failure": "true"}}, True),
        ({"data": {"simulated_failure": "false"}}, False),
        ({"data": {"simulated_failure": ""}}, None),
        ({}, None),
    ],
)
def test_a_simulated_failure_is_set_or_switched_over(sent, result, client):
    answers = [
        client.post("/example.com/primary/fail", headers=ROOT, **sent).json for _ in range(2)
    ]
    enabled = [answer["simulated_failure_enabled"] for answer in answers]
    assert enabled == ([True, False] if result is None else [result, result])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/openapi.json", "/openapi.json/", "/reference", "/healthz"])
def test_an_address_with_a_dot_is_no_domain_where_it_is_our_own(method, path, client):
    answer = client.open(path, method=method)
    assert (answer.status_code, "GET" in answer.headers["Allow"]) == (405, True)
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    "wrong", [{"simulated_failure": "perhaps"}, {"simulated_failure": None}, {"simulated": True}]
)
def test_a_wrong_switch_is_named_and_changes_nothing(wrong, client):
    answer = client.post("/example.com/primary/fail", json=wrong, headers=ROOT)
    assert answer.status_code == 400
    assert list(answer.json["problems"]) == list(wrong)
    assert client.get("/example.com/primary/fail").json["simulated_failure_enabled"] is False


def test_a_kind_of_failure_a_share_and_an_end_may_be_chosen(client):
    chosen = {"kind": "rate_limited", "share": 0.5, "minutes": 10}
    answer = client.post("/example.com/primary/fail", json=chosen, headers=ROOT).json
    until = datetime.fromisoformat(answer.pop("simulated_failure_until"))
    assert timedelta(minutes=9) < until - datetime.now(timezone.utc) <= timedelta(minutes=10)
    assert answer == {
        "service_name": "primary",
        "simulated_failure_enabled": True,
        "simulated_failure_kind": "rate_limited",
        "simulated_failure_share": 0.5,
    }
    services = client.get("/example.com").json["enabled_services"]
    assert services["primary"]["simulated_failure_kind"] == "rate_limited"
    off = client.post("/example.com/primary/fail", headers=ROOT).json
    assert off == {"service_name": "primary", "simulated_failure_enabled": False}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "earthquake"},
        {"share": 0},
        {"share": 1.1},
        {"minutes": -1},
        {"share": "x"},
        {"share": True},
    ],
)
def test_a_failure_that_cannot_be_is_named(wrong, client):
    answer = client.post("/example.com/primary/fail", json=wrong, headers=ROOT)
    assert answer.status_code == 400
    assert list(answer.json["problems"]) == list(wrong)


def test_a_resting_service_is_seen_and_reset(client):
    client.post("/example.com/primary/fail", json={"kind": "key_refused"}, headers=ROOT)
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    domain = client.get("/example.com").json
    primary = domain["enabled_services"]["primary"]
    assert (primary["health"], primary["failures_in_a_row"]) == ("resting", 1)
    assert primary["health_reason"] == "simulated failure: the key was refused"
    assert primary["health_since"] < primary["next_probe"]
    assert primary["last_errors"][0]["reason"] == primary["health_reason"]
    assert [change["service"] for change in domain["changes"]] == ["primary", "primary"]
    assert primary["failing_since"] <= primary["health_since"]
    tried = client.post("/example.com/primary/health", headers=ROOT).json
    assert (tried["service_name"], tried["health"]) == ("primary", "resting")
    assert tried["next_probe"] < primary["next_probe"]
    client.post("/example.com/primary/fail", json={"simulated_failure": False}, headers=ROOT)
    assert client.get("/example.com/primary/health").json["health"] == "working"


def test_a_service_that_fails_is_said_to_with_how_often_and_why_until_it_sends(client, make_app):
    client.post("/example.com/primary/fail", json={"simulated_failure": True}, headers=ROOT)
    for number in (1, 2):
        client.post("/example.com/send", json=PLAIN, headers=POOL)
        health = client.get("/example.com/primary/health").json
        assert (health["health"], health["failures_in_a_row"]) == ("failing", number)
        assert health["health_reason"] == "simulated failure"
        assert health["failing_since"] == health["last_errors"][-1]["at"]


def test_a_dry_run_tells_what_would_happen_and_sends_nothing(client, tmp_path):
    for body in ({"json": {**PLAIN, "dry_run": True}}, {"data": {**PLAIN, "dry_run": "true"}}):
        answer = client.post("/example.com/send", headers=POOL, **body)
        assert answer.json == {
            "result": "dry run",
            "plan": [
                {"service": "primary", "decision": "try", "reason": ""},
                {"service": "backup", "decision": "try", "reason": ""},
            ],
        }
    alone = client.post("/example.com/backup/send", json={**PLAIN, "dry_run": True}, headers=POOL)
    assert [step["service"] for step in alone.json["plan"]] == ["backup"]
    assert not (tmp_path / "primary").exists()
    assert client.get("/example.com/messages", headers=POOL).json["messages"] == []


def test_a_dry_run_finds_what_a_service_cannot_carry(make_app, tmp_path):
    app = make_app(with_providers(tmp_path, mailgun=http_service("http://127.0.0.1:1", 1)))
    message = {**PLAIN, "to_recipients": [], "to_bcc": "ada@example.org", "dry_run": True}
    answer = app.test_client().post("/example.com/send", json=message, headers=POOL)
    assert answer.json["plan"] == [
        {
            "service": "mailgun",
            "decision": "skip",
            "reason": "It needs an address in to_recipients.",
        }
    ]


def with_key(key: str) -> dict[str, str]:
    return {**POOL, "Idempotency-Key": key}


def test_the_same_idempotency_key_replays_the_answer(client, tmp_path):
    first = client.post("/example.com/send", json=PLAIN, headers=with_key("k"))
    again = client.post("/example.com/send", json=PLAIN, headers=with_key("k"))
    assert again.data == first.data
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(list((tmp_path / "primary/new").iterdir())) == 1
    in_body = {**PLAIN, "pool_api_key": POOL_KEY}
    other_form = client.post("/example.com/send", json=in_body, headers=with_key("k"))
    assert other_form.headers["Idempotent-Replayed"] == "true", "a key is no part of the message"


@pytest.mark.parametrize("path", ["/example.com/send", "/example.com/backup/send"])
def test_an_idempotency_key_for_another_request_is_422(path, client):
    client.post("/example.com/send", json=PLAIN, headers=with_key("k"))
    message = PLAIN if path.count("/") > 2 else {**PLAIN, "subject": "Another"}
    answer = client.post(path, json=message, headers=with_key("k"))
    assert answer.status_code == 422
    assert answer.json == {
        "error": "This Idempotency-Key was used for another request.",
        "code": "idempotency_key_reused",
    }


def test_an_idempotency_key_in_progress_is_409(client):
    store = client.application.extensions["mailpool"].store
    fingerprint = "0" * 64
    store.reserve_keys("example.com", [("k", fingerprint)], time.time(), time.time() + 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("endpoints.sending.bodies.fingerprint", lambda *_: fingerprint)
        answer = client.post("/example.com/send", json=PLAIN, headers=with_key("k"))
    assert answer.status_code == 409
    assert answer.headers["Retry-After"] == "1"
    assert answer.json["code"] == "idempotency_key_in_progress"


@pytest.mark.parametrize("key", ["", " ", "a b", "\xe9", "x" * 256])
def test_an_idempotency_key_that_cannot_be_one_is_400(key, client):
    answer = client.post("/example.com/send", json=PLAIN, headers=with_key(key))
    assert answer.status_code == 400
    assert list(answer.json["problems"]) == ["Idempotency-Key"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_idempotency_key_is_named_with_the_messages_other_problems(dry_run, client):
    message = {**PLAIN, "subject": "", "dry_run": dry_run}
    answer = client.post("/example.com/send", json=message, headers=with_key("a b"))
    assert answer.status_code == 400
    assert set(answer.json["problems"]) == {"subject", "Idempotency-Key"}


def test_an_idempotency_key_is_checked_in_a_dry_run_and_not_used(client):
    dry_run = {**PLAIN, "dry_run": True}
    refused = client.post("/example.com/send", json=dry_run, headers=with_key("a b"))
    assert (refused.status_code, list(refused.json["problems"])) == (400, ["Idempotency-Key"])
    assert client.post("/example.com/send", json=dry_run, headers=with_key("k")).json["plan"]
    assert client.post("/example.com/send", json=PLAIN, headers=with_key("k")).status_code == 200


def test_a_search_that_takes_too_long_is_told_so_and_sends_do_not_notice(client, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("email_services.store.database.LOG_SECONDS", -1)
        patch.setattr("email_services.store.sqlite.LOOK_EVERY", 1)
        answer = client.get("/example.com/messages?recipient=ada", headers=POOL)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
        assert answer.json["error"].startswith("The search in the log took too long: narrow it")
        keyed = {**POOL, "Idempotency-Key": "k"}
        assert client.post("/example.com/send", json=PLAIN, headers=keyed).status_code == 200
        assert client.get("/readyz").status_code == 200
    found = client.get("/example.com/messages?recipient=EXAMPLE.org", headers=POOL).json
    assert len(found["messages"]) == 1


def test_messages_are_listed_filtered_paged_and_shown(client):
    ids = [
        client.post("/example.com/send", json={**PLAIN, "subject": f"{n} <b>"}, headers=POOL).json[
            "message_id"
        ]
        for n in range(3)
    ]
    client.post(
        "/example.com/backup/send", json={**PLAIN, "to_cc": "bob@example.org"}, headers=POOL
    )
    page = client.get("/example.com/messages?limit=2", headers=POOL).json
    assert [message["subject"] for message in page["messages"]] == ["Hello", "2 <b>"]
    page = client.get(page["next"], headers=POOL).json
    assert [message["message_id"] for message in page["messages"]] == [ids[1], ids[0]]
    rest = client.get(page["next"], headers=POOL).json
    assert rest == {"messages": [], "next": None, "total": 4, "is_more_than_total": False}
    for query, count in {
        "recipient=Bob@example.org": 1,
        "service=PRIMARY": 3,
        "outcome=sent": 4,
        "outcome=unknown": 0,
        "since=2020-01-01T00:00:00Z&until=2021-01-01T00:00:00%2B01:00": 0,
        "since=2020-01-01T00:00&period=week": 4,
        "until=2020-01-01T00:00": 0,
        "period=hour&q=hel": 1,
        "q=bob@example": 1,
        "tag=none": 0,
    }.items():
        found = client.get(f"/example.com/messages?{query}", headers=POOL).json["messages"]
        assert len(found) == count, query
    shown = client.get(f"/example.com/messages/{ids[0]}", headers=ROOT).json
    captured = shown.pop("captured")
    assert captured["text"].strip() == PLAIN["raw_text_body"]
    assert shown.pop("why_not_captured") == ""
    assert (shown.pop("sent_again"), shown.pop("send_again_url")) == ([], None)
    assert shown == page["messages"][1]
    assert shown["url"] == f"http://localhost/example.com/messages/{ids[0]}"
    other = client.get(f"/example.net/messages/{ids[0]}", headers=OTHER_POOL)
    assert other.status_code == 404, "another domain's message is not there"


@pytest.mark.parametrize(
    "query",
    [
        "outcome=lost",
        "since=yesterday",
        "since=0",
        "until=1494012000",
        "since=2020-01-01T00:00:00",
        "limit=0",
        "cursor=x",
        "x=1",
    ],
)
def test_a_wrong_filter_is_named(query, client):
    answer = client.get(f"/example.com/messages?{query}", headers=POOL)
    assert answer.status_code == 400
    assert next(iter(answer.json["problems"])).split(".")[0] == query.partition("=")[0]


def test_problems_are_named_all_at_once_and_nothing_is_sent(client, tmp_path):
    answer = client.post(
        "/example.com/send",
        json={"from_email": "me@example.net", "to_bcc": ["nobody"], "subjct": "x"},
        headers=POOL,
    )
    assert answer.status_code == 400
    assert answer.json["error"] == "5 problems with what was sent."
    assert sorted(answer.json["problems"]) == [
        "from_email",
        "raw_text_body",
        "subjct",
        "subject",
        "to_bcc.0",
    ]
    assert not (tmp_path / "primary").exists()


OUTCOMES = [
    ((500, 500), 503, "error", ["not sent", "not sent"]),
    ((400, 500), 503, "error", ["not sent", "not sent"]),
    ((400, 422), 422, "error", ["not sent", "not sent"]),
    ((401, 420), 503, "error", ["not sent", "not sent"]),
    ((500, 200), 200, "success", ["not sent", "sent"]),
    ((None, 200), 200, "success", ["unknown", "sent"]),
    ((502, 200), 200, "success", ["unknown", "sent"]),
    ((524, 500), 504, "unknown", ["unknown", "not sent"]),
    ((None, 500), 504, "unknown", ["unknown", "not sent"]),
    ((None, 400), 504, "unknown", ["unknown", "not sent"]),
]


@pytest.mark.parametrize(("statuses", "status", "result", "outcomes"), OUTCOMES)
def test_the_status_says_what_became_of_the_message(
    statuses, status, result, outcomes, stand_in, make_app, tmp_path
):
    behaviours = [hang if code is None else answer_json(code, {"id": "1"}) for code in statuses]
    services = {
        f"mailgun{n}": http_service(
            stand_in(behaviour).url, 10 - n, service="mailgun", timeout_seconds=1
        )
        for n, behaviour in enumerate(behaviours)
    }
    client = make_app(with_providers(tmp_path, **services)).test_client()
    sent = client.post("/example.com/send", json=PLAIN, headers=POOL)
    assert sent.status_code == status
    assert sent.json["result"] == result
    assert [attempt["outcome"] for attempt in sent.json["attempts"]] == outcomes
    if status == 200:
        assert sent.json["possible_duplicate"] is ("unknown" in outcomes)
    else:
        assert list(sent.json) == [
            *("result", "error", "code", "message_id", "services_unsuccessful", "attempts")
        ]
        assert list(sent.json["services_unsuccessful"]) == ["mailgun0", "mailgun1"]
        codes = {422: "message_refused", 503: "unavailable", 504: "unknown_outcome"}
        assert sent.json["code"] == codes[status]
        logged = client.get(f"/example.com/messages/{sent.json['message_id']}", headers=POOL).json
        assert logged["message_id"] == sent.json["message_id"]
        assert logged["outcome"] == ("unknown" if status == 504 else "not sent")
        assert [attempt["outcome"] for attempt in logged["attempts"]] == outcomes


def test_where_every_provider_limits_the_rate_the_answer_says_when_to_send_again(
    stand_in, make_app, tmp_path
):
    limits = [answering(429, {"Retry-After": seconds}) for seconds in ("600", "60")]
    services = {
        f"mailgun{n}": http_service(stand_in(limit).url, 10 - n, service="mailgun")
        for n, limit in enumerate(limits)
    }
    client = make_app(with_providers(tmp_path, **services)).test_client()
    for body in (PLAIN, {"messages": [PLAIN]}):
        sent = client.post("/example.com/send", json=body, headers=POOL)
        assert (sent.status_code, sent.json["code"]) == (503, "unavailable")
        assert 50 <= int(sent.headers["Retry-After"]) <= 72


def test_each_message_of_a_batch_that_was_not_sent_is_in_the_log_by_its_id(client):
    for service in ("primary", "backup"):
        client.post(f"/example.com/{service}/fail", headers=ROOT)
    batch = {"messages": [PLAIN, {**PLAIN, "to_recipients": "b@example.org"}]}
    answer = client.post("/example.com/send", json=batch, headers=POOL)
    assert answer.status_code == 503
    for result in answer.json["results"]:
        logged = client.get(f"/example.com/messages/{result['message_id']}", headers=POOL).json
        assert logged["outcome"] == "not sent"


def test_one_service_is_tried_alone(stand_in, make_app, tmp_path):
    server = stand_in(answering(500))
    config = with_providers(
        tmp_path,
        mailgun=http_service(server.url, 2),
        maildir={"priority_value": 1, "path": str(tmp_path / "mail")},
    )
    client = make_app(config).test_client()
    assert client.post("/example.com/mailgun/send", json=PLAIN, headers=POOL).status_code == 503
    assert client.post("/example.com/maildir/send", json=PLAIN, headers=POOL).status_code == 200
    assert len(server.requests) == 1


def test_without_the_store_messages_go_out_and_the_rest_says_so(make_app, tmp_path):
    url = f"sqlite:///{tmp_path}/no/such/folder/state.sqlite3"
    client = make_app(make_config(tmp_path, state_url=url)).test_client()
    assert client.post("/example.com/send", json=PLAIN, headers=POOL).status_code == 200
    for answer in (
        client.get("/"),
        client.get("/example.com/primary/fail"),
        client.post("/example.com/primary/fail", headers=ROOT),
        client.post("/example.com/primary/health", headers=ROOT),
        client.get("/example.com/messages", headers=POOL),
        client.post("/example.com/send", json=PLAIN, headers=with_key("k")),
        client.get("/readyz"),
    ):
        assert answer.status_code == 503
        assert answer.json == {
            "error": "The state database does not answer.",
            "code": "store_unavailable",
        }
    assert client.get("/healthz").status_code == 200


NAMELESS = b'--x\r\nContent-Disposition: form-data; name=""\r\n\r\n%b\r\n--x--\r\n'
NAMELESS_FORMS = {
    "=": (b"=", "application/x-www-form-urlencoded"),
    "=x": (b"=x", "application/x-www-form-urlencoded"),
    "among others": (b"simulated_failure=true&=", "application/x-www-form-urlencoded"),
    "a part": (NAMELESS % b"", "multipart/form-data; boundary=x"),
    "a part with something": (NAMELESS % b"x", "multipart/form-data; boundary=x"),
}


@pytest.mark.parametrize("form", NAMELESS_FORMS)
def test_a_field_without_a_name_is_unknown(form, client):
    body, content_type = NAMELESS_FORMS[form]
    asked = {"data": body, "content_type": content_type}
    answer = client.post("/example.com/primary/fail", headers=ROOT, **asked)
    assert (answer.status_code, answer.json["problems"]) == (400, {"": "Unknown field."})
    now = client.get("/example.com/primary/fail").json
    assert now["simulated_failure_enabled"] is False


@pytest.mark.parametrize("wrong", [5, None, [POOL_KEY], {"a": 1}])
def test_a_key_in_the_body_that_can_be_none_is_named_though_another_opens(wrong, client):
    message = {**PLAIN, "pool_api_key": wrong}
    answer = client.post("/example.com/send", json=message, headers=POOL)
    assert (answer.status_code, list(answer.json["problems"])) == (400, ["pool_api_key"])


def test_how_to_send_tells_a_program_what_it_needs(client):
    told = client.get("/example.com/send").json
    assert told["services"] == ["primary", "backup"]
    assert told["fields"]["subject"] == {"required": True, "description": "The subject, not empty."}
    sent = client.post("/example.com/send", json=told["example"], headers=POOL)
    assert sent.status_code == 200
    assert client.get("/example.com/backup/send").json["services"] == ["backup"]


def test_a_page_names_a_few_of_a_thousand_recipients_and_weighs_little(client):
    everybody = [f"recipient.number.{n}@customers.example.org" for n in range(1000)]
    batch = {"messages": [{**PLAIN, "to_recipients": everybody} for _ in range(20)]}
    assert client.post("/example.com/send", json=batch, headers=POOL).status_code == 200
    in_short = f"<td>{everybody[0]}, {everybody[1]} and 998 more</td>"
    for path in ("/example.com/messages", "/example.com"):
        as_json = client.get(path, headers=POOL)
        page = client.get(path, headers={**POOL, "Accept": BROWSER}).text
        assert page.count(in_short) == min(page.count("<td><a href="), 20) > 0
        assert len(page) < 250_000, "of which 100,000 are the JSON, before it is escaped"
        assert everybody[999] in as_json.text, "programs get them all"
    message = client.get("/example.com/messages", headers=POOL).json["messages"][0]
    page = client.get(message["url"], headers={**POOL, "Accept": BROWSER}).text
    before, _, rest = page.partition("<summary>and 980 more</summary>")
    assert f"{everybody[19]}\n" in before
    assert everybody[20] not in before
    assert ", ".join(everybody[20:]) in rest


def test_a_listing_counts_the_last_hour_for_all_and_shows_the_last_messages_to_readers(client):
    for number in range(7):
        message = {**PLAIN, "subject": str(number)}
        assert client.post("/example.com/send", json=message, headers=POOL).status_code == 200
    for headers, is_reader in (({}, False), (OTHER_POOL, False), (POOL, True), (ROOT, True)):
        for domain in (
            client.get("/", headers=headers).json["email_services"][0],
            client.get("/example.com", headers=ROOT if headers is OTHER_POOL else headers).json,
        ):
            assert domain["last_hour"]["sent_by"] == {"primary": 7}
        domain = client.get("/", headers=headers).json["email_services"][0]
        assert ("last_messages" in domain) is is_reader
    assert [message["subject"] for message in domain["last_messages"]] == list("65432")
    in_full = client.get(domain["last_messages"][0]["url"], headers=POOL).json
    assert domain["last_messages"][0].items() <= in_full.items()


def test_the_log_says_who_was_in_to_cc_and_bcc_and_by_which_name(client):
    message = {
        **PLAIN,
        "from_email": "Wir <me@example.com>",
        "to_recipients": ['"Doe, Jane" <Jane@example.org>', "b@example.org"],
        "to_cc": "c@example.org",
        "to_bcc": "Dörte <d@example.org>",
        "tags": ["welcome", "order 42"],
    }
    assert client.post("/example.com/send", json=message, headers=POOL).status_code == 200
    (logged,) = client.get("/example.com/messages", headers=POOL).json["messages"]
    assert logged["from_name"] == "Wir"
    assert logged["to_recipients"] == ['"Doe, Jane" <jane@example.org>', "b@example.org"]
    assert logged["to_cc"] == ["c@example.org"]
    assert logged["to_bcc"] == ["Dörte <d@example.org>"]
    assert logged["tags"] == ["welcome", "order 42"]
    everybody = [f"{name}@example.org" for name in ("jane", "b", "c", "d")]
    assert logged["recipients"] == everybody


def test_the_root_reads_one_log_of_all_domains_and_a_pool_key_does_not(client):
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    other = {**PLAIN, "from_email": "me@example.net", "subject": "Other"}
    client.post("/example.net/send", json=other, headers=OTHER_POOL)
    found = client.get("/messages?limit=1", headers=ROOT).json
    assert [message["subject"] for message in found["messages"]] == ["Other"]
    assert found["total"] == 2
    rest = client.get(found["next"], headers=ROOT).json["messages"]
    assert [message["subject"] for message in rest] == [PLAIN["subject"]]
    assert client.get(rest[0]["url"], headers=ROOT).status_code == 200
    for path in ("/messages", "/messages/export.csv", "/messages/export.jsonl"):
        assert client.get(path, headers=POOL).status_code == 401
        assert client.get(path).status_code == 401


def test_the_log_is_exported_as_a_table_and_as_lines_whatever_its_length(client, monkeypatch):
    monkeypatch.setattr("endpoints.export.AT_ONCE", 2)
    subjects = ["=1+1", "+1", "-1", "@x", 'A "b", ü', "Plain"]
    for subject in subjects:
        message = {**PLAIN, "subject": subject, "to_cc": "Bob <bob@example.org>"}
        client.post("/example.com/send", json=message, headers=POOL)

    def exported(address):
        answer = client.get(f"/example.com/messages/{address}", headers=POOL)
        with contextlib.closing(answer):
            return answer.headers, answer.text

    headers, table = exported("export.csv")
    assert headers["Content-Type"] == "text/csv; charset=utf-8"
    assert "messages-example.com.csv" in headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(table)))
    harmless = ["'=1+1", "'+1", "'-1", "'@x", 'A "b", ü', "Plain"]
    assert [row["subject"] for row in rows] == harmless[::-1]
    assert rows[0]["cc"] == "Bob <bob@example.org>"
    _, lines = exported("export.jsonl?limit=3")
    logged = client.get("/example.com/messages", headers=POOL).json["messages"]
    assert [json.loads(line) for line in lines.splitlines()] == logged[:3]
    assert len(exported("export.csv?q=plain")[1].splitlines()) == 2


def test_a_few_exports_at_once_are_enough(client, monkeypatch):
    monkeypatch.setattr("endpoints.export._places", Bulkhead(1))
    path = "/example.com/messages/export.csv"
    slow = client.get(path, headers=POOL, buffered=False)
    busy = client.get(path, headers=POOL)
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "60")
    slow.close()
    assert client.get(path, headers=POOL).status_code == 200


def test_a_form_that_comes_twice_sends_once_and_one_filled_in_anew_sends_again(client):
    form = {**PLAIN, "_once": "0123456789abcdef"}
    first, again = (client.post("/example.com/send", data=form, headers=POOL) for _ in range(2))
    assert (again.status_code, again.json) == (200, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    for changes in ({"subject": "Another"}, {"_once": "another"}):
        other = client.post("/example.com/send", data={**form, **changes}, headers=POOL)
        assert other.json["message_id"] != first.json["message_id"]
    batch = {"_json": json.dumps({"messages": [PLAIN, PLAIN]}), "_once": "x"}
    first, again = (client.post("/example.com/send", data=batch, headers=POOL) for _ in range(2))
    assert again.json == first.json
    told = client.post("/example.com/send", json=form, headers=POOL)
    assert told.json["problems"].keys() == {"_once"}, "programs have the header"


@pytest.mark.parametrize(
    "typed",
    [
        '{"subject": "Typed", "pool_api_key": "se\\"cret", "x": }',
        '{"subject": "Typed", "root_api_key" :"secret',
        '{"subject": "Typed", "pool_api_key":"secret"}',
    ],
)
def test_a_key_typed_into_the_json_of_a_form_is_not_repeated_on_its_page(typed, client):
    answer = client.post("/example.com/send", data={"_json": typed}, headers={"Accept": BROWSER})
    assert "Typed" in answer.text
    assert "cret" not in answer.text


@pytest.mark.parametrize(
    "typed",
    [
        "{'pool_api_key': 'secret'}",
        '{"pool_api_key": secret}',
        '{"pool_api_key": ["secret"]}',
        '{"Pool_Api_Key": "secret"}',
        '{"pool_api_\\u006bey": "secret"}',
        '{"messages": [{"root_api_key" "secret"}]}',
        "pool_api_key=secret",
    ],
)
def test_json_with_a_key_that_is_not_written_plainly_is_not_filled_in_again(typed, client):
    answer = client.post("/example.com/send", data={"_json": typed}, headers={"Accept": BROWSER})
    assert answer.status_code in {400, 401}
    assert "secret" not in answer.text


def test_a_key_inside_a_batch_is_not_in_the_command_of_its_page(client):
    batch = {"messages": [{"subject": "Typed", "pool_api_key": "secret"}]}
    answer = client.post("/example.com/send", json=batch, headers={"Accept": BROWSER})
    assert answer.status_code == 401
    assert "Typed" in answer.text
    assert "secret" not in answer.text


def test_what_a_filters_form_leaves_empty_is_no_filter(client):
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    query = "recipient=&outcome=&service=&since=&until=&limit="
    answer = client.get(f"/example.com/messages?{query}", headers=POOL)
    assert len(answer.json["messages"]) == 1


def test_both_forms_that_send_hold_a_key_for_once_and_each_page_another(client):
    pages = [client.get("/example.com/send", headers={"Accept": BROWSER}).text for _ in range(2)]
    keys = [re.findall('name="_once" value="([0-9a-f]{32})"', page) for page in pages]
    assert [len(found) for found in keys] == [2, 2]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("digits", [1, 5000])
def test_a_field_that_looks_like_an_item_of_a_list_is_a_problem_and_no_more(digits, client):
    form = {**PLAIN, "to_recipients." + "9" * digits: "x"}
    headers = {**POOL, "Accept": BROWSER}
    assert client.post("/example.com/send", data=form, headers=headers).status_code == 400


OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OURS, 200),
        ({"Origin": "http://localhost"}, 200),
        ({}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_a_preview_is_for_our_own_pages_and_can_do_nothing(headers, status, client):
    answer = client.post("/preview", data={"html": "<b>x</b><script>"}, headers=headers)
    assert answer.status_code == status
    if status == 200:
        assert (answer.text, answer.mimetype) == ("<b>x</b><script>", "text/html")
        policy = answer.headers["Content-Security-Policy"].split("; ")
        assert {"sandbox", "default-src 'none'", "frame-ancestors 'self'"} <= set(policy)
        assert "script" not in answer.headers["Content-Security-Policy"]
    else:
        assert "<b>" not in answer.text


def test_html_in_every_field_of_a_message_and_in_a_providers_words_is_shown_and_not_run(
    make_app, tmp_path, stand_in
):
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    refusing = stand_in(answer_json(400, {"message": attack}))
    config = with_providers(
        tmp_path,
        mailgun=http_service(refusing.url, 2),
        maildir={"priority_value": 1, "path": str(tmp_path / "mail")},
    )
    client = make_app(config).test_client()
    with_browser = {**POOL, "Accept": BROWSER}
    bodies = [
        {**PLAIN, "subject": attack, "from_name": attack, "html_body": attack},
        {name: attack for name in EmailMessage.model_fields if name != "messages"},
        {attack: attack},
        {**PLAIN, "to_recipients": [f'"{attack}" <a@example.org>', attack]},
        {"_json": json.dumps({"messages": [{attack: attack}, {**PLAIN, "subject": attack}]})},
    ]
    pages = [client.post("/example.com/send", data=b, headers=with_browser) for b in bodies]
    listed = client.get("/example.com/messages", headers=POOL).json["messages"]
    addresses = ["/", "/example.com", "/example.com/messages", *(m["url"] for m in listed)]
    path = quote(attack.replace("alert", "confirm"), "")  # which is logged, as a body is not
    addresses += [f"/{path}", f"/example.com/{path}/send"]
    addresses += [f"/example.com/messages?recipient={quote(attack)}&outcome={quote(attack)}"]
    pages += [client.get(address, headers=with_browser) for address in addresses]
    shown = [page for page in pages if "&lt;script" in page.text]
    assert len(shown) > len(bodies) + 2
    for page in pages:
        assert page.text.startswith("<!doctype html>")
        assert page.text.count("<script") == 1, "our own"
        assert "<img" not in page.text
        assert "unsafe" not in page.headers["Content-Security-Policy"]


def test_no_key_and_no_body_is_in_any_log_or_answer(stand_in, make_app, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    secret_body = "Nobody else should read this, ever."
    echo = answer_json(401, {"message": f"{PROVIDER_KEY} {secret_body}", "errors": []})
    config = with_providers(
        tmp_path,
        sendgrid=http_service(stand_in(echo).url, 3),
        mailgun=http_service(stand_in(echo).url, 2),
        maildir={"priority_value": 1, "path": str(tmp_path / "mail")},
    )
    client = make_app(config).test_client()
    answers = [
        client.post(
            "/example.com/send?pool_api_key=" + POOL_KEY,
            headers={**POOL, "Accept": accept},
            data={**PLAIN, "raw_text_body": secret_body, "root_api_key": ROOT_KEY, **changes},
        )
        for accept in (JSON, BROWSER)
        for changes in ({}, {"subject": ""})
    ]
    answers += [client.get("/?root_api_key=" + ROOT_KEY), client.get("/%0aINJECTED?" + ROOT_KEY)]
    assert [answer.status_code for answer in answers[:4]] == [200, 400, 200, 400]
    log = "\n".join(f"{r.getMessage()} {r.args!r} {r.exc_text}" for r in caplog.records)
    for secret in (ROOT_KEY, POOL_KEY, OTHER_POOL_KEY, PROVIDER_KEY):
        assert secret not in log
        assert not any(secret in answer.text for answer in answers)
    assert secret_body not in log
    assert "\nINJECTED" not in log
    assert "POST /example.com/send 200" in log


def test_a_bug_of_ours_is_a_500_in_the_log_and_no_failover(make_app, config, caplog, monkeypatch):
    app = make_app(config)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    pool = app.extensions["mailpool"].pools["example.com"]
    monkeypatch.delattr(pool.service("primary"), "settings")
    for accept in (JSON, BROWSER):
        headers = {**POOL, "Accept": accept}
        answer = app.test_client().post("/example.com/send", json=PLAIN, headers=headers)
        assert answer.status_code == 500
        assert answer.mimetype == accept.partition(",")[0]
        assert "An error of this service; it is in the log." in answer.text
    assert "AttributeError" in caplog.text
    assert "/example.com/send failed" in caplog.text


def test_trusted_hosts_are_kept_to(make_app, config, monkeypatch):
    monkeypatch.setenv("TRUSTED_HOSTS", "mail.example.com,.example.net")
    client = make_app(config).test_client()
    assert client.get("/", headers={"Host": "mail.example.com"}).status_code == 200
    assert client.get("/", headers={"Host": "a.example.net"}).status_code == 200
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


def stored_in(folder) -> list[email.message.EmailMessage]:
    return [
        email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        for path in (folder / "new").iterdir()
    ]


def test_a_form_with_files_sends_them(client, tmp_path):
    form = {
        **PLAIN,
        "pool_api_key": POOL_KEY,
        "html_body": '<img src="cid:logo.png">',
        "headers": "X-One: 1\r\nX-Two: 2",
        "attachments": [(BytesIO(b"\x00\xff"), "Änderung.pdf"), (BytesIO(b"a;b"), "data.csv")],
        "inline": (BytesIO(b"\x89PNG"), "logo.png"),
    }
    answer = client.post("/example.com/send", data=form, content_type="multipart/form-data")
    assert answer.status_code == 200, answer.text
    (found,) = stored_in(tmp_path / "primary")
    files = {part.get_filename(): part.get_payload(decode=True) for part in found.walk()}
    del files[None]
    assert files == {"Änderung.pdf": b"\x00\xff", "data.csv": b"a;b", "logo.png": b"\x89PNG"}
    assert (found["X-One"], found["X-Two"]) == ("1", "2")


def test_a_forms_text_keeps_the_charset_it_came_with(client, tmp_path):
    text = (BytesIO(b"na\xefve"), "a.txt", 'text/plain; charset=iso-8859-1; name="a.txt"')
    form = {**PLAIN, "pool_api_key": POOL_KEY, "attachments": text}
    answer = client.post("/example.com/send", data=form, content_type="multipart/form-data")
    assert answer.status_code == 200, answer.text
    (found,) = stored_in(tmp_path / "primary")
    (attached,) = found.iter_attachments()
    assert attached.get_content() == "naïve"


def test_a_form_whose_files_are_left_empty_sends_none(client, tmp_path):
    form = {**PLAIN, "pool_api_key": POOL_KEY, "attachments": (BytesIO(), "")}
    answer = client.post("/example.com/send", data=form, content_type="multipart/form-data")
    assert answer.status_code == 200, answer.text
    (found,) = stored_in(tmp_path / "primary")
    assert found.get_content_type() == "text/plain"


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_a_file_where_none_belongs_is_named_and_not_shown_again(accept, client):
    form = {**PLAIN, "pool_api_key": POOL_KEY, "subject": (BytesIO(b"secret"), "a.txt")}
    answer = client.post(
        "/example.com/send",
        data=form,
        content_type="multipart/form-data",
        headers={"Accept": accept},
    )
    assert answer.status_code == 400
    assert "subject" in answer.text
    assert "secret" not in answer.text


def test_a_message_larger_than_the_setting_is_413_and_says_the_limit(make_app, config):
    client = make_app({**config, "max_message_megabytes": 1}).test_client()
    message = {**PLAIN, "raw_text_body": "x" * (1024 * 1024 + 1)}
    answer = client.post("/example.com/send", json=message, headers=POOL)
    assert (answer.status_code, list(answer.json)) == (413, ["error", "code", "problems"])
    assert "1,048,576" in answer.json["problems"]["attachments"]
    message["raw_text_body"] *= 4
    answer = client.post("/example.com/send", json=message, headers=POOL)
    assert (answer.status_code, answer.json["error"]) == (413, "The body is larger than 2 MB.")


def test_a_batch_answers_each_message_in_its_place(client, tmp_path):
    batch = [
        {**PLAIN, "to_recipients": "a@example.org"},
        {**PLAIN, "to_recipients": "nobody", "subject": ""},
        {**PLAIN, "to_recipients": "c@example.org", "dry_run": True},
        {**PLAIN, "to_recipients": "d@example.org"},
    ]
    answer = client.post("/example.com/send", json={"messages": batch}, headers=POOL)
    assert (answer.status_code, answer.json["result"]) == (207, "mixed")
    first, wrong, planned, last = answer.json["results"]
    assert (first["result"], first["service_used"]) == ("success", "primary")
    assert (wrong["result"], list(wrong["problems"])) == ("error", ["to_recipients.0", "subject"])
    assert (planned["result"], planned["plan"][0]["service"]) == ("dry run", "primary")
    assert last["result"] == "success"
    assert sorted(mail["To"] for mail in stored_in(tmp_path / "primary")) == [
        "a@example.org",
        "d@example.org",
    ]
    listed = client.get("/example.com/messages", headers=POOL).json["messages"]
    assert {m["message_id"] for m in listed} == {first["message_id"], last["message_id"]}


@pytest.mark.parametrize(
    ("recipients", "status", "word"),
    [
        (["a@example.org", "b@example.org"], 200, "success"),
        (["nobody", "b@example.org"], 207, "mixed"),
        (["nobody", "noone"], 503, "error"),
    ],
)
def test_the_status_of_a_batch_says_how_many_were_sent(recipients, status, word, client):
    batch = [{**PLAIN, "to_recipients": recipient} for recipient in recipients]
    answer = client.post("/example.com/send", json={"messages": batch}, headers=POOL)
    assert (answer.status_code, answer.json["result"]) == (status, word)


def send_batch(client, *, wrong: int, fine: int, **headers: str):
    messages = [{**PLAIN, "subject": ""}] * wrong + [PLAIN] * fine
    headers |= POOL
    return client.post("/example.com/send", json={"messages": messages}, headers=headers)


def test_a_batch_whose_messages_are_all_wrong_is_not_to_be_sent_again(client):
    answer = send_batch(client, wrong=2, fine=0)
    assert answer.status_code == 503
    assert list(answer.json) == ["result", "error", "code", "results"]
    assert answer.json["code"] == "batch_refused"
    assert answer.json["error"] == (
        "None of the messages was sent: each is invalid or was refused, and has to be mended."
    )
    assert [result["code"] for result in answer.json["results"]] == ["invalid", "invalid"]
    assert "Retry-After" not in answer.headers
    page = send_batch(client, wrong=2, fine=0, Accept="text/html").text
    assert f"<p>{answer.json['error']}</p>" in page


def test_a_batch_that_no_service_takes_as_it_is_is_not_to_be_sent_again_either(
    stand_in, make_app, tmp_path
):
    refuses = stand_in(answering(400))
    app = make_app(with_providers(tmp_path, sendgrid=http_service(refuses.url, 1)))
    sent = send_batch(app.test_client(), wrong=1, fine=1)
    assert (sent.status_code, sent.json["code"]) == (503, "batch_refused")
    codes = [result["code"] for result in sent.json["results"]]
    assert codes == ["invalid", "message_refused"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (0, "no service could send them."),
        (1, "no service could send 2 of them, and the rest has to be mended."),
    ],
)
def test_a_batch_of_which_some_may_be_sent_later_says_so(wrong, words, client):
    for service in ("primary", "backup"):
        client.post(f"/example.com/{service}/fail", headers=ROOT)
    answer = send_batch(client, wrong=wrong, fine=2)
    assert (answer.status_code, answer.json["code"]) == (503, "unavailable")
    assert answer.json["error"] == f"None of the messages was sent: {words}"


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        ({"messages": []}, ["messages"]),
        ({"messages": [PLAIN] * 1001}, ["messages"]),
        ({"messages": {"a": 1}}, ["messages"]),
        ({"messages": "[]"}, ["messages"]),
        ({"messages": [PLAIN, 5]}, ["messages.1"]),
        ({"messages": [PLAIN], "subject": "x"}, ["subject"]),
    ],
)
def test_a_batch_that_is_none_is_named_and_sends_nothing(body, problems, client, tmp_path):
    answer = client.post("/example.com/send", json=body, headers=POOL)
    assert (answer.status_code, list(answer.json["problems"])) == (400, problems)
    assert not (tmp_path / "primary").exists()


WIDE = "<table><tr><td>" + "w" * 4_000 + "</td></tr>" + "<tr><td>a" * 100 + "</table>"


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"raw_text_body": "{{a}}" * 90, "substitutions": {"a": "x" * 10_000}}, 5),
        ({"html_body": "{{a}}" * 90, "substitutions": {"a": "&" * 2_000}}, 5),
        ({"raw_text_body": "", "html_body": WIDE}, 12),
    ],
    ids=["substitutions", "substitutions that are escaped", "HTML whose text is longer"],
)
def test_what_blows_up_a_batch_is_refused_before_all_of_it_is_made(
    fields, number, make_app, config, tmp_path
):
    client = make_app({**config, "max_message_megabytes": 1}).test_client()
    message = {**PLAIN, **fields}
    assert client.post("/example.com/send", json=message, headers=POOL).status_code == 200
    batch = {"messages": [message] * number}
    answer = client.post("/example.com/send", json=batch, headers=POOL)
    assert answer.status_code == 413
    assert list(answer.json["problems"]) == ["substitutions"]
    assert "and 4,194,304 are allowed" in answer.json["problems"]["substitutions"]
    assert len(list(tmp_path.glob("*/new/*"))) == 1, "the one before the batch"


def test_a_batch_goes_through_one_service_alone(client, tmp_path):
    body = {"messages": [PLAIN, {**PLAIN, "to_recipients": "b@example.org"}]}
    answer = client.post("/example.com/backup/send", json=body, headers=POOL)
    assert [r["service_used"] for r in answer.json["results"]] == ["backup"] * 2
    assert len(stored_in(tmp_path / "backup")) == 2


def test_a_batch_with_an_idempotency_key_is_replayed_message_by_message(client, tmp_path):
    body = {"messages": [PLAIN, {**PLAIN, "to_recipients": "nobody"}]}
    first = client.post("/example.com/send", json=body, headers=with_key("k"))
    again = client.post("/example.com/send", json=body, headers=with_key("k"))
    assert again.json == first.json
    assert (first.headers.get("Idempotent-Replayed"), again.headers["Idempotent-Replayed"]) == (
        None,
        "true",
    )
    body["messages"][1] = {**PLAIN, "to_recipients": "b@example.org"}
    mended = client.post("/example.com/send", json=body, headers=with_key("k"))
    assert [r["result"] for r in mended.json["results"]] == ["success"] * 2
    assert mended.json["results"][0] == first.json["results"][0]
    assert len(stored_in(tmp_path / "primary")) == 2
    body["messages"][0] = {**PLAIN, "subject": "Another"}
    assert client.post("/example.com/send", json=body, headers=with_key("k")).status_code == 422


BATCH = {"messages": [PLAIN, {**PLAIN, "to_recipients": "b@example.org"}]}
BATCH_OF_ONE = {"messages": [PLAIN]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (PLAIN, BATCH),
        (BATCH, PLAIN),
        (PLAIN, {"messages": [PLAIN]}),
        ({"messages": [PLAIN]}, PLAIN),
    ],
)
def test_a_key_stands_for_one_message_or_for_a_batch(first, second, client, tmp_path):
    answer = client.post("/example.com/send", json=first, headers=with_key("k"))
    assert answer.status_code == 200
    sent = len(stored_in(tmp_path / "primary"))
    reused = client.post("/example.com/send", json=second, headers=with_key("k"))
    assert (reused.status_code, "another request" in reused.json["error"]) == (422, True)
    assert len(stored_in(tmp_path / "primary")) == sent
    again = client.post("/example.com/send", json=first, headers=with_key("k"))
    assert (again.json, again.headers["Idempotent-Replayed"]) == (answer.json, "true")


def test_a_batch_of_which_nothing_was_sent_frees_its_key_and_one_of_which_some_was_does_not(client):
    for service in ("primary", "backup"):
        client.post(f"/example.com/{service}/fail", headers=ROOT)
    assert client.post("/example.com/send", json=BATCH, headers=with_key("k")).status_code == 503
    assert client.post("/example.com/send", json=PLAIN, headers=with_key("k")).status_code == 503
    client.post("/example.com/primary/fail", headers=ROOT)
    assert client.post("/example.com/send", json=BATCH, headers=with_key("k")).status_code == 200
    client.post("/example.com/primary/fail", headers=ROOT)
    more = {"messages": [*BATCH["messages"], {**PLAIN, "to_recipients": "c@example.org"}]}
    mixed = client.post("/example.com/send", json=more, headers=with_key("k"))
    assert [result["result"] for result in mixed.json["results"]] == ["success", "success", "error"]
    assert client.post("/example.com/send", json=PLAIN, headers=with_key("k")).status_code == 422


def test_a_provider_that_fails_half_way_through_a_batch_loses_and_repeats_nothing(
    stand_in, make_app, tmp_path
):
    taken, lock = [], threading.Lock()

    def until_it_fails(exchange):
        with lock:
            fails = len(taken) >= 30
            if not fails:
                taken.append(dict(exchange.request.form)["to"])
        answer_json(500 if fails else 200, {"id": "<1@example.com>"})(exchange)

    first = stand_in(until_it_fails)
    second = stand_in(answer_json(200, {"id": "<2@example.com>"}))
    app = make_app(
        with_providers(
            tmp_path,
            first=http_service(first.url, 2, service="mailgun"),
            second=http_service(second.url, 1, service="mailgun"),
        )
    )
    batch = [
        {**PLAIN, "to_recipients": f"n{number}@example.org", "subject": f"Number {number}"}
        for number in range(100)
    ]
    answer = app.test_client().post("/example.com/send", json={"messages": batch}, headers=POOL)
    assert (answer.status_code, answer.json["result"]) == (200, "success")
    by_first = {
        message["to_recipients"]
        for message, result in zip(batch, answer.json["results"], strict=True)
        if result["service_used"] == "first"
    }
    by_second = [dict(request.form)["to"] for request in second.requests]
    assert by_first == set(taken)
    assert sorted([*taken, *by_second]) == sorted(message["to_recipients"] for message in batch)


@pytest.mark.parametrize("host", ["xn--", "xn--a", "xn--.com", "a.xn--a:80", "[", "a:b:c"])
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_a_host_that_is_none_is_no_bug_of_ours_and_no_reason_to_send_again(host, accept, client):
    app = client.application
    app.config["PROPAGATE_EXCEPTIONS"] = False

    def ask(path: str, **asked) -> int:
        environ = create_environ(path, headers={"Accept": accept, **POOL}, **asked)
        # Past the client of the tests, which knows no such host.
        return int(run_wsgi_app(app, {**environ, "HTTP_HOST": host})[1].partition(" ")[0])

    for path in ("/", "/example.com", "/example.com/messages", "/sign-in", "/nothing"):
        assert ask(path) < 500, path
    assert ask("/example.com/send", method="POST", json=PLAIN) == 200
