"""What HTTP clients expect: formats in the URL, links, methods, validators, and CORS."""

from __future__ import annotations

import gzip
import re
import time

import pytest
from conftest import PLAIN, POOL, ROOT, make_config
from markupsafe import escape

from email_services.message import EmailMessage
from endpoints.log import MessageFilter
from endpoints.sending.bodies import Batch

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
APP = "https://app.example.com"
GETS = [
    "/",
    "/example.com",
    "/example.com/send",
    "/example.com/primary/send",
    "/example.com/primary/fail",
    "/example.com/primary/health",
    "/example.com/messages",
    "/sign-in",
    "/sign-out",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/reference",
    "/static/style.css",
]


@pytest.fixture
def cors_client(make_app, tmp_path):
    return make_app(make_config(tmp_path, cors_origins=[APP])).test_client()


@pytest.mark.parametrize(
    ("query", "accept", "status", "mimetype"),
    [
        ("?format=json", "text/html", 200, "application/json"),
        ("?format=html", "application/json", 200, "text/html"),
        ("?format=html", "image/png", 200, "text/html"),
        ("", "text/html", 200, "text/html"),
        ("?format=xml", "*/*", 406, "application/json"),
        ("?format=", "*/*", 406, "application/json"),
    ],
)
def test_a_format_in_the_url_comes_before_the_accept_header(
    query, accept, status, mimetype, client
):
    answer = client.get(f"/example.com{query}", headers={"Accept": accept})
    assert (answer.status_code, answer.mimetype) == (status, mimetype)


def test_a_format_is_no_filter_of_the_messages_and_stays_on_the_next_page(client):
    for _ in range(2):
        client.post("/example.com/send", json=PLAIN, headers=POOL)
    first = client.get("/example.com/messages?limit=1&format=json", headers={**POOL, **BROWSER})
    assert len(first.json["messages"]) == 1
    assert "format=json" in first.json["next"]
    assert client.get(first.json["next"], headers={**POOL, **BROWSER}).json["messages"]


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", [*GETS, "/nothing", "/a/b/c/d"])
def test_every_answer_says_where_it_is_described(path, method, accept, client):
    with client.open(path, method=method, headers={"Accept": accept}) as answer:
        links = answer.headers["Link"]
    assert '</openapi.json>; rel="describedby"' in links
    is_page = answer.mimetype == "text/html" and method in {"GET", "HEAD"}
    assert ('rel="alternate"' in links) is is_page


@pytest.mark.parametrize(
    ("path", "alternate"),
    [
        ("/", "/?format=json"),
        ("/example.com/", "/example.com?format=json"),
        ("/example.com?format=html", "/example.com?format=json"),
        (
            "/example.com/messages?recipient=a%40b.org&limit=2",
            "/example.com/messages?recipient=a%40b.org&limit=2&format=json",
        ),
        (
            "/x%0d%0aSet-Cookie:a%3E?b=%0d%0a%3E",
            "/x%0D%0ASet-Cookie%3Aa%3E?format=json",
        ),
    ],
)
def test_a_page_leads_to_the_same_in_json(path, alternate, client):
    page = client.get(path, headers={**ROOT, **BROWSER})
    assert f'<{alternate}>; rel="alternate"; type="application/json"' in page.headers["Link"]
    assert "Set-Cookie" not in page.headers
    assert client.get(alternate, headers={**ROOT, **BROWSER}).mimetype == "application/json"


@pytest.mark.parametrize("slash", ["", "/", "//"])
@pytest.mark.parametrize("path", GETS)
def test_every_get_has_its_head_and_its_options(path, slash, client):
    for headers in ({**ROOT}, {**ROOT, **BROWSER}):
        with client.get(path + slash, headers=headers) as got:
            expected = got.status_code, got.content_type, len(got.data)
        with client.head(path + slash, headers=headers) as head:
            assert (head.status_code, head.content_type, head.content_length) == expected
            assert head.data == b""
    assert expected[0] == 200
    options = client.options(path + slash)
    assert options.status_code == 200
    assert set(options.allow) >= {"GET", "HEAD", "OPTIONS"}
    if path.startswith("/static/"):
        assert options.data == b""
    else:
        assert set(options.json) == set(options.allow) - {"HEAD", "OPTIONS"}


@pytest.mark.parametrize("path", ["/openapi.json", "/static/style.css"])
def test_who_wants_what_is_not_here_any_more_is_told_so_as_of_any_error(path, client):
    wanted = {"If-Match": '"an old one"'}
    answer = client.get(path, headers=wanted)
    assert (answer.status_code, answer.json) == (
        412,
        {"error": "What If-Match names is not what is here now.", "code": "precondition_failed"},
    )
    page = client.get(path, headers={**wanted, **BROWSER})
    assert (page.status_code, page.mimetype) == (412, "text/html")
    with client.get(path) as got:
        tag = got.headers["ETag"]
    with client.get(path, headers={"If-Match": tag}) as same:
        assert same.status_code == 200


def test_options_says_what_can_be_done_with_which_keys_and_fields(client):
    assert client.options("/example.com/primary/fail").json == {
        "GET": {
            "summary": "Simulated failure",
            "opened_by": "anybody; in production the root key, the pool key or a read key",
            "keys": ["root_key", "pool_key", "read_key"],
            "fields": [],
        },
        "POST": {
            "summary": "Switch a simulated failure",
            "opened_by": "the root key",
            "keys": ["root_key"],
            "fields": ["kind", "minutes", "share", "simulated_failure"],
        },
    }
    assert client.options("/example.com/messages").json == {
        "GET": {
            "summary": "Messages",
            "opened_by": "the root key, the pool key or a read key",
            "keys": ["root_key", "pool_key", "read_key"],
            "fields": sorted(MessageFilter.model_fields),
        },
    }
    assert client.options("/healthz").json == {
        "GET": {"summary": "Health", "opened_by": "anybody", "keys": [], "fields": []}
    }
    sending = client.options("/example.com/send").json["POST"]
    assert sending["keys"] == ["pool_key", "root_key"]
    assert sending["fields"] == sorted({*EmailMessage.model_fields, *Batch.model_fields})


def test_options_says_it_in_json_to_a_browser_too_and_needs_no_key(make_app, tmp_path):
    client = make_app(make_config(tmp_path, production=True)).test_client()
    answers = [
        client.options(f"/{domain}/send", headers=headers)
        for domain in ("example.com", "example.org")
        for headers in ({}, BROWSER)
    ]
    assert {answer.mimetype for answer in answers} == {"application/json"}
    assert len({answer.data for answer in answers}) == 1, "nobody learns which domains there are"


def test_where_nothing_is_there_is_nothing_to_do(client):
    assert client.options("/a/b/c/d").status_code == 404


@pytest.mark.parametrize("path", ["/openapi.json", "/static/style.css", "/static/page.js"])
def test_what_is_the_same_for_everybody_is_transferred_once(path, client):
    with client.get(path) as first:
        assert first.status_code == 200
        assert "no-store" not in first.headers["Cache-Control"]
    with client.get(path, headers={"If-None-Match": first.headers["ETag"]}) as again:
        assert (again.status_code, again.data) == (304, b"")
    with client.get(path, headers={"If-None-Match": '"another"'}) as changed:
        assert changed.status_code == 200


@pytest.mark.parametrize("path", ["/", "/example.com"])
def test_a_listing_is_transferred_again_once_it_is_another_one(path, client):
    first = client.get(path, headers=POOL)
    assert first.headers["Cache-Control"] == "no-store", "what a key opens is kept by nobody"
    again = {**POOL, "If-None-Match": first.headers["ETag"]}
    same = client.get(path, headers=again)
    assert (same.status_code, same.data) == (304, b"")
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    other = client.get(path, headers=again)
    assert (other.status_code, other.json == first.json) == (200, False)
    assert "ETag" not in client.get(path, headers={**POOL, **BROWSER}).headers


@pytest.mark.parametrize("path", ["/example.com/send", "/sign-in", "/nothing", "/reference"])
def test_everything_else_is_kept_by_nobody(path, client):
    answer = client.get(path)
    assert answer.headers["Cache-Control"] == "no-store"
    assert "ETag" not in answer.headers


def test_an_answer_that_a_later_try_may_change_says_when(make_app, tmp_path):
    url = f"sqlite:///{tmp_path}/no/such/folder/state.sqlite3"
    client = make_app(make_config(tmp_path, state_url=url)).test_client()
    assert client.get("/readyz").headers["Retry-After"] == "5"


def test_without_the_setting_no_other_sites_page_may_ask(client):
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST"}
    for answer in (client.get("/", headers=asked), client.options("/", headers=asked)):
        assert not [name for name in answer.headers.keys() if name.startswith("Access-Control")]  # noqa: SIM118 - of werkzeug's Headers
        assert "Origin" not in answer.headers.getlist("Vary")


@pytest.mark.parametrize("path", ["/example.com/send", "/nothing", "/example.com/messages"])
@pytest.mark.parametrize("origin", [APP, "https://evil.example", "null", f"{APP}.evil.example"])
def test_a_page_of_a_listed_origin_may_read_the_answer(origin, path, cors_client):
    answer = cors_client.get(path, headers={"Origin": origin})
    is_listed = origin == APP
    assert answer.headers.get("Access-Control-Allow-Origin") == (APP if is_listed else None)
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Origin" in answer.headers.getlist("Vary")
    exposed = answer.headers.get("Access-Control-Expose-Headers", "")
    told = {"ETag", "Idempotent-Replayed", "Retry-After", "Link", "X-Request-ID"}
    assert set(re.split(", ", exposed)) == (told if is_listed else {""})


def test_a_page_of_a_listed_origin_is_told_beforehand_what_it_may_send(cors_client):
    asked = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,if-match",
    }
    answer = cors_client.options("/example.com/send", headers=asked)
    assert (answer.status_code, set(answer.json)) == (200, {"GET", "POST"})
    assert answer.headers["Access-Control-Allow-Origin"] == APP
    assert {"GET", "POST"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert set(asked["Access-Control-Request-Headers"].split(",")) <= set(allowed)
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "Access-Control-Allow-Credentials" not in answer.headers
    refused = cors_client.options("/", headers={**asked, "Origin": "https://evil.example"})
    assert "Access-Control-Allow-Methods" not in refused.headers


def test_another_sites_page_cannot_use_a_session(cors_client):
    """Not even one of a listed origin: it shows a key with every request."""
    answer = cors_client.post("/sign-in", json={"key": "wrong"}, headers={"Origin": APP})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/openapi.json", "/reference"])
def test_what_is_large_travels_compressed_to_who_takes_it(path, client):
    plain = client.get(path, headers=BROWSER)
    for encodings in ("gzip", "br, gzip;q=0.5"):
        packed = client.get(path, headers={**BROWSER, "Accept-Encoding": encodings})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed.data) == plain.data
        assert len(packed.data) == int(packed.headers["Content-Length"]) < len(plain.data) / 4
    for encodings in ("", "identity", "gzip;q=0"):
        asked = client.get(path, headers={**BROWSER, "Accept-Encoding": encodings})
        assert "Content-Encoding" not in asked.headers
    assert "Accept-Encoding" in plain.headers.getlist("Vary")


def test_that_a_message_waits_for_longer_is_no_news(client, monkeypatch):
    listed = lambda **tag: client.get("/example.com", headers={**POOL, **tag})  # noqa: E731
    none = listed().headers["ETag"]
    client.post("/example.com/send", json=PLAIN, headers={**POOL, "Prefer": "respond-async"})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1)
    first = listed()
    page = client.get("/example.com", headers={**POOL, **BROWSER}).text
    monkeypatch.setattr(time, "time", lambda: now + 2)
    assert listed().json["queue"] != first.json["queue"], "how long it waits is told"
    assert listed(**{"If-None-Match": first.headers["ETag"]}).status_code == 304
    assert f'data-tag="{escape(first.headers["ETag"])}"' in page
    assert listed(**{"If-None-Match": none}).status_code == 200
    client.post("/example.com/send", json=PLAIN, headers={**POOL, "Prefer": "respond-async"})
    assert listed(**{"If-None-Match": first.headers["ETag"]}).status_code == 200


def test_a_compressed_answer_is_transferred_once_too(client):
    first = client.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    again = {"If-None-Match": first.headers["ETag"], "Accept-Encoding": "gzip"}
    assert client.get("/openapi.json", headers=again).status_code == 304


def test_what_is_small_is_not_worth_compressing(client):
    answer = client.get("/", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in answer.headers


def test_no_key_that_is_in_the_query_by_mistake_is_repeated_in_a_header(client):
    answer = client.get("/example.com?pool_api_key=secret&format=html")
    assert "secret" not in str(answer.headers)
