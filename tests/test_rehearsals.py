"""What pages say of simulated failures, and to whom."""

from __future__ import annotations

import re

import pytest
from conftest import OTHER_POOL_KEY, PLAIN, POOL, POOL_KEY, ROOT, ROOT_KEY, make_config

PAGE = {"Accept": "text/html"}
FAIL = "/example.com/primary/fail"


def start(client, **chosen) -> None:
    wanted = {"simulated_failure": True, **chosen}
    assert client.post(FAIL, json=wanted, headers=ROOT).status_code == 200


def sign_in(client, key: str) -> None:
    assert client.post("/sign-in", json={"key": key}).status_code == 200


def banners(client, path: str = "/sign-in") -> list[str]:
    page = client.get(path, headers=PAGE).text
    found = re.findall(r'<p class="banner".*?</p>', page, re.DOTALL)
    return [re.sub(r"<.*?>", "", banner) for banner in found]


@pytest.mark.parametrize(
    "path",
    [
        "/", "/example.com", "/example.net", "/example.com/send", "/example.com/messages",
        "/example.com/primary/health", "/sign-in", "/reference", "/healthz", "/nothing/here",
        "/example.org",
    ],
)  # fmt: skip
def test_every_page_says_that_a_rehearsal_is_on(path, client):
    assert banners(client, path) == []
    start(client)
    (banner,) = banners(client, path)
    assert banner.startswith(
        "Rehearsal: primary of example.com, simulated failure: unavailable. See or end it"
    )


def test_the_row_of_a_service_says_once_that_its_failure_is_a_rehearsal(client):
    start(client)
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    page = client.get("/", headers=PAGE).text
    (row,) = re.findall(r'<span class="why">(.*?)</span>\s*<span class="count">', page, re.DOTALL)[
        :1
    ]
    said = re.sub(r"\s+", " ", re.sub(r"<.*?>", "", row)).strip()
    assert re.match(r"simulated failure: unavailable; failing, for \d+ s, since ", said)
    assert said.count("simulated failure") == 1


def test_it_says_what_is_simulated_for_whom_and_until_when(client):
    start(client, kind="rate_limited", share=0.1, minutes=60)
    assert re.match(
        r"Rehearsal: primary of example.com, simulated failure: rate limited, for 10 % of its "
        r"messages, until (\d+ \w+ )?\d\d:\d\d UTC\.",
        *banners(client),
    )


@pytest.mark.parametrize(
    ("key", "is_told"), [("", False), (OTHER_POOL_KEY, False), (POOL_KEY, True), (ROOT_KEY, True)]
)
def test_in_production_it_is_told_to_who_may_see_the_domain(key, is_told, make_app, tmp_path):
    client = make_app(make_config(tmp_path, production=True)).test_client()
    start(client)
    if key:
        sign_in(client, key)
    assert len(banners(client)) == is_told


def test_a_page_that_says_the_database_is_away_is_made_without_it(make_app, tmp_path):
    url = f"sqlite:///{tmp_path}/no/such/folder/state.sqlite3"
    client = make_app(make_config(tmp_path, state_url=url)).test_client()
    page = client.get("/readyz", headers=PAGE)
    assert page.status_code == 503
    assert "The state database does not answer." in page.text


def test_the_form_has_a_bound_in_time_and_one_button(client):
    off = client.get(FAIL, headers=PAGE).text
    assert re.search(r'name="minutes" type="text" value="15"', off)
    assert re.findall(r"<button name.*?>(.*?)</button>", off) == ["Start the rehearsal"]
    start(client)
    on = client.get(FAIL, headers=PAGE).text
    assert 'name="minutes"' not in on
    assert re.findall(r"<button name.*?>(.*?)</button>", on) == ["End the rehearsal"]


def test_minutes_that_are_none_are_named_and_what_was_chosen_stays(client):
    chosen = {"simulated_failure": "true", "kind": "slow", "share": "0.1", "minutes": "soon"}
    answer = client.post(FAIL, data={**chosen, "root_api_key": ROOT_KEY}, headers=PAGE)
    assert answer.status_code == 400
    assert 'id="minutes-problem"' in answer.text
    assert 'value="soon"' in answer.text
    for name in ("slow", "0.1"):
        assert f'<option value="{name}" selected>' in answer.text
    assert "Start the rehearsal" in answer.text


def will_happen(client) -> str:
    page = client.get(FAIL, headers=PAGE).text
    found = re.search(r"<p><strong>What (?:will )?happens?:.*?</p>", page, re.DOTALL)
    return re.sub(r"<.*?>", "", found[0])


def test_the_page_says_what_will_happen_to_messages(client):
    assert "what primary refuses goes on to backup, and is sent there." in will_happen(client)
    assert "and may be sent twice" in will_happen(client)


def test_it_warns_where_no_other_service_works(client):
    client.post("/example.com/backup/fail", json={}, headers=ROOT)
    assert "no other service of the domain works" in will_happen(client)


def test_it_says_so_where_what_is_unknown_goes_nowhere_else(make_app, tmp_path):
    config = make_config(tmp_path)
    config["email_services"][0]["on_unknown"] = "stop"
    text = will_happen(make_app(config).test_client())
    assert "a message is unknown, and goes nowhere else" in text


@pytest.mark.parametrize("path", [FAIL, "/example.com/primary/health"])
def test_who_is_signed_in_is_led_to_a_page_that_can_be_loaded_again(path, client):
    sign_in(client, ROOT_KEY)
    page = client.get(FAIL, headers=PAGE).text
    token = re.search(r'name="csrf_token" value="([^"]+)"', page)[1]
    headers = {**PAGE, "Origin": "http://localhost"}
    answer = client.post(path, data={"csrf_token": token}, headers=headers)
    assert (answer.status_code, answer.headers["Location"]) == (303, path)


def test_a_service_that_does_not_rest_is_not_to_be_tried_again(client):
    page = client.get("/example.com/primary/health", headers=PAGE).text
    assert "Try it" not in page.partition("<footer>")[0].partition('class="foot"')[0]
