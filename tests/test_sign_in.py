"""Signing in: what the cookie is and opens, and what a page of another site cannot do with it."""

from __future__ import annotations

import html
import logging
import re
import time
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

import pytest
from conftest import OTHER_POOL_KEY, PLAIN, POOL, POOL_KEY, ROOT, ROOT_KEY, make_config
from itsdangerous import URLSafeSerializer

from endpoints.access import KEY_FIELDS
from endpoints.signing_in import page_variables

JSON = "application/json"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PAGE = {"Accept": BROWSER}
HERE = {"Origin": "http://localhost"}
KEYS = {"root": ROOT_KEY, "example.com": POOL_KEY, "example.net": OTHER_POOL_KEY}


def sign_in(client, key: str, **options):
    answer = client.post("/sign-in", json={"key": key}, **options)
    assert answer.status_code == 200, answer.text
    return answer


def token_of(client) -> str:
    page = client.get("/sign-in", headers=PAGE).text
    return re.search(r'name="csrf_token" value="([^"]+)"', page)[1]


def value_of(answer) -> str:
    """The name and value of the cookie that an answer sets."""
    return answer.headers["Set-Cookie"].partition(";")[0]


def with_cookie(app, cookie: str):
    """A client that shows that cookie with every request, and stores none."""
    client = app.test_client(use_cookies=False)
    client.environ_base["HTTP_COOKIE"] = cookie
    return client


def signed_in(client) -> str | None:
    return client.get("/sign-in").json["signed_in"]


# The cookie


NOBODY = {"signed_in": None, "key_name": None, "role": None, "until": None}


@pytest.mark.parametrize("level", KEYS)
def test_who_signs_in_is_told_the_level_and_until_when(level, client):
    assert client.get("/sign-in").json == NOBODY
    answer = sign_in(client, KEYS[level])
    assert answer.json["signed_in"] == level
    assert answer.json["until"].endswith("+00:00")
    assert client.get("/sign-in").json == answer.json


TLS = {"base_url": "https://localhost"}


@pytest.mark.parametrize(
    ("options", "name", "attributes"),
    [
        ({}, "mailpool", {"HttpOnly", "SameSite=Strict", "Path=/"}),
        (TLS, "__Host-mailpool", {"HttpOnly", "SameSite=Strict", "Path=/", "Secure"}),
    ],
)
def test_the_cookie_is_for_this_server_only_and_short_lived(options, name, attributes, client):
    cookie, *given = sign_in(client, POOL_KEY, **options).headers["Set-Cookie"].split("; ")
    assert cookie.startswith(f"{name}=")
    assert "Max-Age=3600" in given
    assert {item for item in given if not item.startswith(("Expires", "Max-Age"))} == attributes


def test_a_session_that_stands_for_another_key_is_no_missing_key(client):
    sign_in(client, OTHER_POOL_KEY)
    answer = client.get("/example.com/messages")
    assert (answer.status_code, answer.json["code"]) == (401, "key_wrong")
    answer = client.application.test_client().get("/example.com/messages")
    assert (answer.status_code, answer.json["code"]) == (401, "key_missing")


@pytest.mark.parametrize("path", ["", "/send", "/primary/send", "/messages", "/primary/fail"])
def test_the_page_of_a_domain_that_is_not_here_asks_for_nothing(path, client):
    for headers in ({**PAGE}, {**PAGE, **ROOT}, {**PAGE, **POOL}):
        page = client.get(f"/example.org{path}", headers=headers)
        assert page.status_code == 404
        assert "<form" not in page.text
        assert "There is no email domain" in page.text


@pytest.mark.parametrize("path", ["/example.com/messages", "/example.com/send"])
def test_a_page_that_needs_a_key_leads_with_the_way_to_sign_in(path, client):
    page = client.open(path, method="GET" if "messages" in path else "POST", headers=PAGE)
    assert page.status_code == 401
    heading = re.search('<h2 id="error">(.*?)</h2>\\s*<p>(.*?)</p>', page.text)
    there = f"/sign-in?next={quote(path, safe='')}"
    assert heading[1] == f'<a href="{there}">Sign in</a> to go on here'
    assert heading[2].startswith("No key was shown: ")


def command_on(page) -> str:
    return html.unescape(re.search('id="curl"[^>]*>(.*?)</pre>', page.text)[1])


WITH_POOL_KEY = '-H "Authorization: Bearer $POOL_KEY"'
WITH_ROOT_KEY = '-H "Authorization: Bearer $ROOT_KEY"'


@pytest.mark.parametrize(
    ("path", "shown", "option"),
    [
        ("/example.com/send", {}, WITH_POOL_KEY),
        ("/example.com/send", {"pool_api_key": "mistyped"}, WITH_POOL_KEY),
        ("/example.com/send", {"pool_api_key": OTHER_POOL_KEY}, WITH_POOL_KEY),
        ("/example.com/primary/fail", {"root_api_key": POOL_KEY}, WITH_ROOT_KEY),
        ("/", {"root_api_key": "mistyped"}, WITH_POOL_KEY),
    ],
)
def test_the_command_of_a_page_that_refused_has_the_key_that_opens_it(path, shown, option, client):
    page = client.post(path, data=shown, headers=PAGE)
    assert page.status_code == 401
    assert option in command_on(page)
    assert "mistyped" not in page.text


def test_the_command_of_a_failed_sign_in_has_a_place_for_the_key(client):
    page = client.post("/sign-in", data={"key": "mistyped", "next": "/"}, headers=PAGE)
    assert command_on(page).endswith("""-d '{"key": "YOUR-KEY", "next": "/"}'""")
    assert "mistyped" not in page.text


def test_who_signed_in_with_a_pool_key_is_told_that_a_rehearsal_takes_another(client):
    sign_in(client, POOL_KEY)
    form = {"csrf_token": token_of(client)}
    answer = client.post("/example.com/primary/fail", data=form, headers=HERE)
    assert answer.status_code == 401
    assert answer.json["error"] == (
        "You are signed in with the pool key of this domain, which does not open this: "
        "the root key is needed."
    )


def test_no_other_answer_sets_a_cookie(client):
    for path in ("/", "/example.com/send", "/example.com/messages", "/sign-in", "/nothing"):
        for headers in ({}, ROOT, POOL, PAGE, {"Cookie": "mailpool=x"}):
            for method in ("GET", "POST"):
                answer = client.open(path, method=method, headers=headers)
                assert "Set-Cookie" not in answer.headers
    sign_in(client, POOL_KEY)
    for path in ("/", "/example.com/messages", "/sign-in"):
        assert "Set-Cookie" not in client.get(path, headers=PAGE).headers
    assert "Set-Cookie" not in client.application.test_client().post("/sign-out").headers


def test_answers_are_not_cached_for_another_person(client):
    for path in ("/", "/sign-in", "/nothing"):
        for headers in ({}, PAGE):
            answer = client.get(path, headers=headers)
            assert answer.headers["Cache-Control"] == "no-store"
            assert {"Accept", "Cookie"} <= set(answer.headers.getlist("Vary"))


def test_a_cookie_is_void_after_an_hour(client, monkeypatch):
    now = time.time()
    visitor = with_cookie(client.application, value_of(sign_in(client, POOL_KEY)))
    monkeypatch.setattr("time.time", lambda: now + 3590)
    assert signed_in(visitor) == "example.com"
    monkeypatch.setattr("time.time", lambda: now + 3605)
    assert signed_in(visitor) is None
    assert visitor.get("/example.com/messages").status_code == 401


def test_a_cookie_that_was_tampered_with_is_void(client):
    name, _, value = value_of(sign_in(client, POOL_KEY)).partition("=")
    content = URLSafeSerializer("x").loads_unsafe(value)[1]
    forged = URLSafeSerializer("a guess", salt="session").dumps({**content, "level": "root"})
    payload, _, signature = value.rpartition(".")
    others = [
        "",
        "x",
        ".",
        value[:-1],
        value + "A",
        payload,
        f"{payload}.",
        f".{signature}",
        f"A{value}",
        forged,
        f"{forged.rpartition('.')[0]}.{signature}",
        "\xff",
        f"{value} {value}",
    ]
    assert signed_in(with_cookie(client.application, f"{name}={value}")) == "example.com"
    for other in others:
        visitor = with_cookie(client.application, f"{name}={other}")
        assert signed_in(visitor) is None, other
        assert visitor.get("/example.com/messages", headers=PAGE).status_code == 401


def test_another_servers_cookie_is_void(client, make_app, tmp_path):
    elsewhere = make_app(make_config(tmp_path, state_url=f"sqlite:///{tmp_path}/other.sqlite3"))
    cookie = value_of(sign_in(elsewhere.test_client(), ROOT_KEY))
    assert signed_in(with_cookie(elsewhere, cookie)) == "root"
    assert signed_in(with_cookie(client.application, cookie)) is None


def test_servers_that_share_a_store_take_each_others_cookies(make_app, config):
    first, second = make_app(config), make_app(config)
    for one, other in ((first, second), (second, first)):
        visitor = with_cookie(other, value_of(sign_in(one.test_client(), POOL_KEY)))
        assert signed_in(visitor) == "example.com"
        form = {**PLAIN, "csrf_token": token_of(visitor)}
        assert visitor.post("/example.com/send", data=form, headers=HERE).status_code == 200


def test_a_cookie_ends_with_the_key_it_was_opened_with(make_app, tmp_path):
    cookies = {
        level: value_of(sign_in(make_app(make_config(tmp_path)).test_client(), key))
        for level, key in KEYS.items()
    }
    config = make_config(tmp_path)
    config["email_services"][0]["pool_api_key"] = "another-key"
    changed = make_app(config)
    left = {level: signed_in(with_cookie(changed, cookie)) for level, cookie in cookies.items()}
    assert left == {"root": "root", "example.com": None, "example.net": "example.net"}
    changed = make_app(make_config(tmp_path, root_api_key="another-key"))
    assert signed_in(with_cookie(changed, cookies["root"])) is None
    del config["email_services"][1]
    assert signed_in(with_cookie(make_app(config), cookies["example.net"])) is None


def test_two_sessions_have_nothing_in_common(client):
    app = client.application
    cookies = [value_of(sign_in(app.test_client(), POOL_KEY)) for _ in range(2)]
    tokens = [token_of(with_cookie(app, cookie)) for cookie in cookies]
    assert cookies[0] != cookies[1]
    assert tokens[0] != tokens[1]
    assert tokens[0] not in str(URLSafeSerializer("x").loads_unsafe(cookies[0].split("=", 1)[1]))


# Signing in and out


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/sign-in", '<button class="primary">Sign in</button>'),
        ("/sign-out", "Nobody is signed in"),
    ],
)
def test_both_addresses_are_pages_and_json_whatever_key_is_shown(path, shown, client):
    for headers in ({}, ROOT, POOL, {"Authorization": "Bearer wrong"}):
        assert client.get(f"{path}/", headers=headers).json["signed_in"] is None
        page = client.get(path, headers={**headers, **PAGE})
        assert (page.status_code, page.text.startswith("<!doctype html>")) == (200, True)
        assert shown in page.text
        assert client.put(path, headers=headers).status_code == 405


@pytest.mark.parametrize("accept", [JSON, BROWSER])
def test_every_wrong_key_is_told_the_same(accept, client):
    wrong = ["wrong", " ", POOL_KEY[:-1], POOL_KEY + "x", POOL_KEY.upper(), "ü", "x" * 10_000]
    answers = [
        client.post("/sign-in", json={"key": key}, headers={"Accept": accept}) for key in wrong
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.data for answer in answers}) == 1
    assert "This key opens nothing here." in answers[0].text
    assert not any("Set-Cookie" in answer.headers for answer in answers)


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "key"),
        ({"key": None}, "key"),
        ({"key": [ROOT_KEY]}, "key"),
        ({"key": ROOT_KEY, "next": []}, "next"),
        ({"key": ROOT_KEY, "colour": "red"}, "colour"),
    ],
)
def test_what_is_no_key_is_named(body, at, client):
    answer = client.post("/sign-in", json=body)
    assert answer.status_code == 400
    assert list(answer.json["problems"]) == [at]
    assert "Set-Cookie" not in answer.headers


def test_a_key_in_the_address_signs_nobody_in(client):
    assert client.post(f"/sign-in?key={ROOT_KEY}").status_code == 400
    assert client.get(f"/sign-in?key={ROOT_KEY}").json["signed_in"] is None


FROM = {
    "nothing said": ({}, True),
    "our page": (HERE, True),
    "another site": ({"Origin": "http://evil.example"}, False),
    "a sandbox": ({"Origin": "null"}, False),
    "a neighbour": ({"Sec-Fetch-Site": "same-site", **HERE}, False),
}


@pytest.mark.parametrize("said", FROM)
def test_another_site_cannot_sign_a_person_in(said, client):
    headers, is_fine = FROM[said]
    answer = client.post("/sign-in", data={"key": POOL_KEY}, headers=headers)
    assert answer.status_code == (200 if is_fine else 403)
    assert ("Set-Cookie" in answer.headers) is is_fine


@pytest.mark.parametrize("accept", [JSON, BROWSER])
def test_who_signs_out_is_out(accept, client):
    sign_in(client, POOL_KEY)
    form = {"csrf_token": token_of(client)}
    answer = client.post("/sign-out", data=form, headers={**HERE, "Accept": accept})
    if accept == JSON:
        assert answer.json == NOBODY
    else:
        assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in")
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert signed_in(client) is None
    assert client.get("/example.com/messages").status_code == 401


def test_who_signs_out_is_out_whatever_else_is_sent(client):
    sign_in(client, POOL_KEY)
    body = {"csrf_token": token_of(client), "x": 1}
    assert client.post("/sign-out", json=body, headers=HERE).status_code == 200
    assert signed_in(client) is None


def test_a_void_cookie_can_be_forgotten_but_not_by_another_site(client):
    visitor = with_cookie(client.application, "mailpool=void")
    assert "Set-Cookie" in visitor.post("/sign-out", headers=HERE).headers
    answer = visitor.post("/sign-out", headers={"Origin": "http://evil.example"})
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)


WAYS_OUT = [
    "//evil",
    "///evil",
    "////evil",
    "https:evil",
    "https://evil",
    "http:\\\\evil",
    "javascript:alert(1)",
    "\\\\evil",
    "/\\evil",
    "\\/evil",
    "/a\\b",
    "/\t/evil",
    "/\n/evil",
    "\t//evil",
    " //evil",
    "/ /evil",
    "/a\r\nSet-Cookie: b=c",
    "/a\x00",
    "/\x7f",
    "/ä",
    "/\u2028/evil",
    "evil",
    "@evil",
    "?a",
    "",
]
WAYS_BACK = [
    "/",
    "/example.com/send",
    "/example.com/messages?outcome=not+sent&limit=5",
    "/%2f%2fevil",
    "/%0d%0aSet-Cookie:%20a=b",
    "/@evil",
    "/a//evil",
]


@pytest.mark.parametrize("target", [*WAYS_OUT, *WAYS_BACK])
def test_who_signs_in_goes_back_and_never_elsewhere(target, client):
    expected = target if target in WAYS_BACK else "/"
    form = client.get("/sign-in", query_string={"next": target}, headers=PAGE).text
    hidden = re.findall(r'name="next" value="([^"]*)"', form)
    assert [html.unescape(value) for value in hidden] == [expected]
    wrong = client.post("/sign-in", data={"key": "x", "next": target}, headers=PAGE)
    assert re.findall(r'name="next" value="([^"]*)"', wrong.text) == hidden
    answer = client.post("/sign-in", data={"key": POOL_KEY, "next": target}, headers=PAGE)
    assert (answer.status_code, answer.headers["Location"]) == (303, expected)
    assert len(answer.headers.getlist("Set-Cookie")) == 1


@pytest.mark.parametrize(
    ("path", "back"),
    [
        ("/", "/"),
        ("/example.com/send/", "/example.com/send"),
        ("/example.com/messages?outcome=unknown&pool_api_key=x&y=z", "MESSAGES?outcome=unknown"),
        ("/n%C3%A4h%0a%22%3Cb%3E", "/n%C3%A4h%0A%22%3Cb%3E"),
        ("/sign-in?next=/example.com", "/example.com"),
        ("//evil", None),
    ],
)
def test_a_page_leads_to_signing_in_and_back(path, back, client):
    page = client.get(path, headers=PAGE).text
    link = html.unescape(re.search(r'href="(/sign-in\?next=[^"]*)">Sign in<', page)[1])
    form = client.get(link, headers=PAGE).text
    found = html.unescape(re.search(r'name="next" value="([^"]*)"', form)[1])
    assert found == ("/" if back is None else back.replace("MESSAGES", "/example.com/messages"))


# What a session opens

READING = {
    "/": {"root": 200, "example.com": 200, "example.net": 200},
    "/example.com": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.com/send": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.com/primary/fail": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.com/messages": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.org": {"root": 404, "example.com": 401, "example.net": 401},
}


@pytest.mark.parametrize("level", KEYS)
@pytest.mark.parametrize("path", READING)
def test_a_session_reads_what_its_key_reads(path, level, make_app, tmp_path):
    app = make_app(make_config(tmp_path, production=True))
    client = app.test_client()
    sign_in(client, KEYS[level])
    with_key = app.test_client().get(path, headers={"Authorization": f"Bearer {KEYS[level]}"})
    for accept in (JSON, BROWSER):
        answer = client.get(path, headers={"Accept": accept})
        assert answer.status_code == READING[path][level] == with_key.status_code
    assert client.get(path).data == with_key.data


@pytest.mark.parametrize("production", [False, True])
@pytest.mark.parametrize("level", KEYS)
def test_only_the_administrator_sees_api_keys_and_not_in_production(
    level, production, make_app, tmp_path
):
    client = make_app(make_config(tmp_path, production=production)).test_client()
    sign_in(client, KEYS[level])
    for accept in (JSON, BROWSER):
        seen = client.get("/", headers={"Accept": accept}).text
        assert (POOL_KEY in seen) is (level == "root" and not production)
        assert ROOT_KEY not in seen


WRITING = {
    "/": {"root": 200, "example.com": 200, "example.net": 200},
    "/example.com": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.com/send": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.com/backup/send": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.com/primary/fail": {"root": 200, "example.com": 401, "example.net": 401},
    "/example.com/primary/health": {"root": 200, "example.com": 401, "example.net": 401},
    "/example.com/queue": {"root": 200, "example.com": 401, "example.net": 401},
    "/example.com/messages/WAITING/cancel": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.com/messages/WAITING/send-now": {"root": 200, "example.com": 200, "example.net": 401},
    "/example.com/messages/SENT/send-again": {"root": 200, "example.com": 200, "example.net": 401},
    "/config/versions/1/restore": {"root": 200, "example.com": 401, "example.net": 401},
    "/sign-out": {"root": 200, "example.com": 200, "example.net": 200},
}
PARTS = {
    "example.com": "<domain:email_domain>",
    "primary": "<service>",
    "backup": "<service>",
    "WAITING": "<message:message_id>",
    "SENT": "<message:message_id>",
    "1": "<version>",
}


def test_every_address_that_takes_a_post_is_in_the_table(client):
    rules = client.application.url_map.iter_rules()
    posts = {rule.rule for rule in rules if "POST" in rule.methods}
    posts -= {"/sign-in", "/preview"}  # neither acts on a session
    named = {"/".join(PARTS.get(part, part) for part in path.split("/")) for path in WRITING}
    assert named == posts


@pytest.fixture
def acted_on(make_app, tmp_path, monkeypatch):
    """A client of a server on which each of these addresses has something to do."""
    config = make_config(tmp_path, config_upload=True)
    config["email_services"][0]["keep_content_days"] = 1
    client = make_app(config).test_client()
    upload = {**config, "root_api_key": "env:ROOT_KEY"}
    del upload["state_url"], upload["config_upload"]
    for domain, key in zip(upload["email_services"], (POOL_KEY, OTHER_POOL_KEY), strict=True):
        name = domain["email_domain"].upper().replace(".", "_")
        monkeypatch.setenv(name, key)
        domain["pool_api_key"] = f"env:{name}"
    monkeypatch.setenv("ROOT_KEY", ROOT_KEY)
    assert client.put("/config", json=upload, headers=ROOT).status_code == 200
    make_it_rest(client)
    return client


def fields_for(path: str) -> dict:
    paused = {"stream": "bulk", "paused": "true"}
    return PLAIN if path.endswith("/send") else paused if path.endswith("/queue") else {}


def with_message(client, path: str) -> str:
    """The path, with the id of a message that waits for its time, or of one that was sent."""
    later = datetime.now(timezone.utc) + timedelta(days=1)
    messages = {"WAITING": {**PLAIN, "send_at": later.isoformat()}, "SENT": PLAIN}
    for word, message in messages.items():
        if word in path:
            told = client.post("/example.com/send", json=message, headers=POOL).json
            path = path.replace(word, told["message_id"])
    return path


def what_is(client, path: str) -> list:
    """All that a POST could change."""
    return [
        client.get("/example.com", headers=ROOT).json,
        client.get("/example.com/messages", headers=ROOT).json,
        client.get("/example.com/queue", headers=ROOT).json["messages"],
        client.get("/config/versions", headers=ROOT).json,
        signed_in(client) if path == "/sign-out" else None,
    ]


CHANGING = [path for path in WRITING if path.count("/") > 1 or path == "/sign-out"]


def make_it_rest(client) -> None:
    """So that there is something to reset."""
    client.post("/example.com/primary/fail", json={"kind": "key_refused"}, headers=ROOT)
    client.post("/example.com/send", json=PLAIN, headers=POOL)


@pytest.mark.parametrize("content_type", [None, "multipart/form-data", JSON])
@pytest.mark.parametrize("level", KEYS)
@pytest.mark.parametrize("path", WRITING)
def test_a_session_does_what_its_key_does(path, level, content_type, acted_on):
    client = acted_on
    sign_in(client, KEYS[level])
    fields = {**fields_for(path), "csrf_token": token_of(client)}
    body = {"json": fields} if content_type == JSON else {"data": fields}
    address = with_message(client, path)
    before = what_is(client, path)
    answer = client.post(address, headers=HERE, content_type=content_type, **body)
    expected = WRITING[path][level]
    assert answer.status_code == expected, answer.text
    is_changed = expected == 200 and path in CHANGING
    assert (what_is(client, path) != before) is is_changed


def test_a_message_that_was_not_sent_has_its_page_too(client):
    for service in ("primary", "backup"):
        client.post(f"/example.com/{service}/fail", headers=ROOT)
    sign_in(client, POOL_KEY)
    form = {**PLAIN, "csrf_token": token_of(client)}
    page = client.post("/example.com/send", data=form, headers={**PAGE, **HERE})
    assert page.status_code == 503
    (address,) = re.findall(
        r'href="(/example.com/messages/[0-9a-f]{32})">Open the message', page.text
    )
    assert client.get(address).json["outcome"] == "not sent"


def test_a_batch_needs_no_key_either(client):
    sign_in(client, POOL_KEY)
    body = {"messages": [PLAIN, PLAIN], "csrf_token": token_of(client)}
    answer = client.post("/example.com/send", json=body, headers=HERE)
    assert (answer.status_code, answer.json["result"]) == (200, "success")


SAYING_SO = {
    "its Origin": HERE,
    "its Origin, over TLS that ends before us": {"Origin": "https://localhost"},
    "its Referer": {"Referer": "http://localhost/example.com/send"},
    "the browser": {"Sec-Fetch-Site": "same-origin"},
}


@pytest.mark.parametrize("said", SAYING_SO)
def test_a_form_of_our_own_is_known_by(said, client):
    sign_in(client, POOL_KEY)
    form = {**PLAIN, "csrf_token": token_of(client)}
    answer = client.post("/example.com/send", data=form, headers=SAYING_SO[said])
    assert answer.status_code == 200


TOKENS = {
    "no token": {},
    "an empty token": {"csrf_token": ""},
    "a wrong token": {"csrf_token": "0" * 64},
    "a token that is no text": {"csrf_token": ["a", "b"]},
    "an odd token": {"csrf_token": "ü\ufffd"},
    "another session's token": {"csrf_token": "OTHER"},
    "half of the token": {"csrf_token": "HALF"},
}
ORIGINS = {
    "no Origin": {},
    "a foreign Origin": {"Origin": "http://evil.example"},
    "a sandbox's Origin": {"Origin": "null"},
    "an Origin that begins like ours": {"Origin": "http://localhost.evil.example"},
    "an Origin with our name as its user": {"Origin": "http://localhost@evil.example"},
    "another port's Origin": {"Origin": "http://localhost:8001"},
    "a name alone": {"Origin": "localhost"},
    "an Origin that is none": {"Origin": "http://["},
    "a foreign Referer": {"Referer": "http://evil.example/http://localhost/"},
    "a foreign Origin and our Referer": {
        "Origin": "http://evil.example",
        "Referer": "http://localhost/",
    },
    "a browser that says cross-site": {"Sec-Fetch-Site": "cross-site", **HERE},
    "a browser that says same-site": {"Sec-Fetch-Site": "same-site", **HERE},
    "a browser that says none": {"Sec-Fetch-Site": "none"},
}


@pytest.mark.parametrize("wrong", [*TOKENS, *ORIGINS])
@pytest.mark.parametrize("path", WRITING)
def test_a_post_that_is_not_from_our_page_changes_nothing(path, wrong, acted_on):
    client = acted_on
    sign_in(client, ROOT_KEY if WRITING[path]["example.com"] == 401 else POOL_KEY)
    token = token_of(client)
    other = client.application.test_client()
    sign_in(other, POOL_KEY)
    fields = {"csrf_token": token, **fields_for(path)}
    if wrong in TOKENS:
        del fields["csrf_token"]
        fields |= TOKENS[wrong]
        stands_for = {"OTHER": token_of(other), "HALF": token[:32]}
        if isinstance(given := fields.get("csrf_token"), str):
            fields["csrf_token"] = stands_for.get(given, given)
    headers = ORIGINS.get(wrong, HERE)
    address = with_message(client, path)
    before = what_is(client, path)
    for accept in (JSON, BROWSER):
        answer = client.post(address, data=fields, headers={**headers, "Accept": accept})
        assert answer.status_code == 403
        assert answer.mimetype == accept.partition(",")[0]
        assert "Nothing was done" in answer.text
        assert "Set-Cookie" not in answer.headers
        assert what_is(client, path) == before


def test_what_was_typed_stays_when_a_form_was_out_of_date(client):
    sign_in(client, POOL_KEY)
    headers = {**HERE, **PAGE}
    refused = client.post("/example.com/send", data={**PLAIN, "csrf_token": "x"}, headers=headers)
    assert (refused.status_code, f'value="{PLAIN["subject"]}"' in refused.text) == (403, True)
    token = re.search(r'name="csrf_token" value="([^"]+)"', refused.text)[1]
    again = {**PLAIN, "csrf_token": token}
    assert client.post("/example.com/send", data=again, headers=headers).status_code == 303


SHOWN = {
    "a wrong key in the header": ({"headers": {"Authorization": "Bearer wrong"}}, 401),
    "no key in the header": ({"headers": {"Authorization": "Bearer"}}, 401),
    "another domain's key": ({"headers": {"Authorization": f"Bearer {OTHER_POOL_KEY}"}}, 401),
    "a wrong key in the body": ({"json": {"pool_api_key": "wrong"}}, 401),
    "a wrong key in a form": ({"data": {"root_api_key": "wrong"}}, 401),
    "an empty key": ({"json": {"pool_api_key": ""}}, 401),
    "a key that is none": ({"json": {"pool_api_key": None}}, 401),
    "a list of keys": ({"json": {"pool_api_key": [POOL_KEY]}}, 401),
    "the right key in the header": ({"headers": POOL}, 200),
    "the right key in the body": ({"json": {"pool_api_key": POOL_KEY}}, 200),
    "a password of a proxy": ({"headers": {"Authorization": "Basic eDp5"}}, 200),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_a_request_that_shows_a_key_is_judged_by_that_alone(shown, client):
    sign_in(client, POOL_KEY)
    options, expected = SHOWN[shown]
    headers = {**options.get("headers", {}), **HERE}
    fields = {**PLAIN, "csrf_token": token_of(client)}
    kind = "data" if "data" in options else "json"
    body = {kind: {**fields, **options.get(kind, {})}}
    assert client.post("/example.com/send", headers=headers, **body).status_code == expected


def test_a_program_with_a_key_needs_neither_token_nor_origin_nor_cookie(client):
    sign_in(client, ROOT_KEY)
    for headers in (POOL, {**POOL, "Origin": "http://evil.example"}):
        answer = client.post("/example.com/send", json=PLAIN, headers=headers)
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (200, False)
    assert client.post("/example.com/primary/fail", headers=POOL).status_code == 401


def test_a_stranger_with_a_token_is_a_stranger(client):
    sign_in(client, POOL_KEY)
    form = {**PLAIN, "csrf_token": token_of(client)}
    stranger = client.application.test_client()
    assert stranger.post("/example.com/send", data=form, headers=HERE).status_code == 401


# Pages


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("root", "Signed in as administrator"),
        ("example.com", "Signed in for example.com"),
        (None, ">Sign in</a>"),
    ],
)
def test_every_page_says_who_is_signed_in(level, words, client):
    if level:
        sign_in(client, KEYS[level])
    for path in ("/", "/example.com/send", "/example.com/messages", "/sign-in", "/nothing"):
        page = client.get(path, headers=PAGE).text
        assert words in page
        assert ("Sign out</button>" in page) is (level is not None)
        assert ('action="/sign-out"' in page) is (level is not None)


def test_a_token_is_in_forms_that_post_and_in_no_address(client):
    sign_in(client, POOL_KEY)
    page = client.get("/example.com/send", headers=PAGE).text
    forms = re.findall(r"<form[^>]*?method=\"(\w+)\".*?</form>", page, re.DOTALL)
    assert forms == ["post", "post", "post"], "out, the fields, and the JSON"
    page += client.get("/example.com/messages", headers=PAGE).text
    assert 'method="get"' in page
    token = token_of(client)
    for form in re.findall(r"<form.*?</form>", page, re.DOTALL):
        assert (token in form) is ('method="post"' in form)
    assert not re.search(rf'(href|action|src)="[^"]*{token}', page)


STANDS_IN = {
    ("example.com", "/example.com/send"): True,
    ("example.com", "/EXAMPLE.com/primary/send"): True,
    ("example.com", "/example.net/send"): False,
    ("example.com", "/example.org/send"): False,
    ("example.com", "/example.com/primary/fail"): False,
    ("example.com", "/"): False,
    ("example.com", "/sign-in"): False,
    ("example.com", "/example.com/messages"): True,
    ("example.com", "/nothing"): True,
    ("root", "/example.com/send"): True,
    ("root", "/example.com/primary/fail"): True,
    ("root", "/example.com/primary/health"): True,
    ("root", "/"): True,
    ("root", "/sign-in"): False,
}


@pytest.mark.parametrize(("level", "path"), STANDS_IN)
def test_a_form_asks_for_a_key_unless_the_session_stands_for_that_very_key(level, path, client):
    headers = {"Cookie": value_of(sign_in(client, KEYS[level]))}
    with client.application.test_request_context(path, headers=headers):
        told = page_variables()
    words = {"example.com": "for example.com", "root": "as administrator"}[level]
    assert told["session_level"] == words
    assert told["signed_in"] == ({"level": words} if STANDS_IN[level, path] else None)


def test_no_key_is_in_any_cookie_page_address_or_log(client, caplog):
    caplog.set_level(logging.DEBUG)
    texts = []
    for level, key in list(KEYS.items())[1:]:  # the root sees the keys of pools, outside production
        for accept in (JSON, BROWSER):
            for given in ("wrong-" + key, key):
                answer = client.post(
                    f"/sign-in?{key}&next=/&root_api_key={key}",
                    data={"key": given, "next": f"/{level}"},
                    headers={**HERE, "Accept": accept},
                )
                texts += [answer.text, str(answer.headers)]
            cookie = value_of(answer).partition("=")[2]
            texts.append(str(URLSafeSerializer("x").loads_unsafe(cookie)))
            for path in ("/", f"/{level}/send", f"/{level}/messages", "/sign-in"):
                texts.append(client.get(f"{path}?key={key}", headers=PAGE).text)
            form = {"csrf_token": token_of(client)}
            texts.append(client.post("/sign-out", data=form, headers=HERE).text)
    log = "\n".join(f"{r.getMessage()} {r.args!r} {r.exc_text}" for r in caplog.records)
    for key in KEYS.values():
        assert key not in log
        assert not any(key in text for text in texts)
    assert "Signed in for example.com, from 127.0.0.1." in log
    assert "POST /sign-in: a key was refused, from 127.0.0.1." in log
    assert not any(name in log for name in KEY_FIELDS)


# Without the database


@pytest.fixture
def without_store(make_app, tmp_path):
    return make_app(make_config(tmp_path, state_url=f"sqlite:///{tmp_path}/no/such/folder"))


@pytest.mark.parametrize("accept", [JSON, BROWSER])
def test_without_the_database_nobody_signs_in_and_keys_go_on_working(accept, without_store, caplog):
    caplog.set_level(logging.DEBUG)
    client = without_store.test_client()
    headers = {"Accept": accept}
    answer = client.post("/sign-in", data={"key": POOL_KEY}, headers=headers)
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (503, False)
    assert "The state database does not answer." in answer.text
    assert "Signed in" not in caplog.text
    assert client.post("/sign-in", data={"key": "x"}, headers=headers).status_code == 401
    for cookie in ({}, {"Cookie": "mailpool=x"}):
        sent = client.post("/example.com/send", json=PLAIN, headers={**POOL, **headers, **cookie})
        assert sent.status_code == 200


@pytest.mark.parametrize("accept", [JSON, BROWSER])
def test_without_the_database_a_cookie_opens_nothing_but_the_way_out(
    accept, client, without_store, tmp_path
):
    visitor = with_cookie(without_store, value_of(sign_in(client, POOL_KEY)))
    headers = {**HERE, "Accept": accept}
    form = {**PLAIN, "csrf_token": token_of(client)}
    assert visitor.post("/example.com/send", data=form, headers=headers).status_code == 503
    assert not (tmp_path / "primary").exists()
    assert visitor.get("/example.com/send", headers=headers).status_code == 200
    assert "Max-Age=0" in visitor.post("/sign-out", headers=headers).headers["Set-Cookie"]
    assert visitor.post("/sign-out", headers={"Accept": accept}).status_code == 403


@pytest.mark.parametrize(
    ("path", "level", "field"),
    [
        ("/example.com/send", "example.com", "pool_api_key"),
        ("/example.com/primary/fail", "root", "root_api_key"),
    ],
)
def test_a_form_asks_for_a_key_only_where_the_session_does_not_stand_for_it(
    path, level, field, client
):
    asked = f'name="{field}"'
    assert asked in client.get(path, headers=PAGE).text
    sign_in(client, KEYS["example.net" if level != "root" else "example.com"])
    assert asked in client.get(path, headers=PAGE).text
    sign_in(client, KEYS[level])
    assert asked not in client.get(path, headers=PAGE).text
