"""Sending in the browser: where a form leads to, and what it asks for in which order."""

from __future__ import annotations

import re

import pytest
from conftest import PLAIN, POOL, POOL_KEY
from test_sign_in import HERE, PAGE, sign_in, token_of

ONCE = "0123456789abcdef"


@pytest.fixture
def post(client):
    """Fill in the form of somebody who has signed in, and send it."""
    sign_in(client, POOL_KEY)

    def fill_in(path="/example.com/send", accept=PAGE, **fields):
        form = {**PLAIN, "csrf_token": token_of(client), "_once": ONCE, **fields}
        return client.post(path, data=form, headers={**accept, **HERE})

    return fill_in


def switch_off(config, count):
    """Have that many services of the first domain write where nobody can."""
    services = config["email_services"][0]["enabled_services"]
    for service in list(services.values())[:count]:
        service["path"] = "/dev/null/no-folder"


@pytest.mark.parametrize("path", ["/example.com/send", "/example.com/backup/send"])
def test_a_form_leads_to_the_page_of_its_message_which_says_what_happened(path, post, client):
    answer = post(path)
    assert answer.status_code == 303
    for _ in range(2):  # and loads again as often as one likes
        page = client.get(answer.headers["Location"], headers=PAGE)
        assert page.status_code == 200
        assert '<h2 id="happened">It was sent</h2>' in page.text
        assert "</strong> accepted it." in page.text
        assert "sent before" not in page.text
    assert len(client.get("/example.com/messages").json["messages"]) == 1


def test_the_same_form_again_leads_to_the_same_page_and_sends_nothing(post, client):
    first, again = post().headers["Location"], post().headers["Location"]
    assert again.partition("?")[0] == first.partition("?")[0]
    assert "nothing was sent again" in client.get(again, headers=PAGE).text
    assert len(client.get("/example.com/messages").json["messages"]) == 1


def test_a_message_that_waits_is_led_to_its_page_too(config, make_app):
    config["email_services"][0]["send"] = "queued"
    client = make_app(config).test_client()
    sign_in(client, POOL_KEY)
    form = {**PLAIN, "csrf_token": token_of(client)}
    answer = client.post("/example.com/send", data=form, headers={**PAGE, **HERE})
    assert answer.status_code == 303
    assert "It waits to be sent" in client.get(answer.headers["Location"], headers=PAGE).text


def test_what_was_not_sent_is_mended_in_the_form(config, make_app):
    switch_off(config, 2)
    client = make_app(config).test_client()
    sign_in(client, POOL_KEY)
    form = {**PLAIN, "csrf_token": token_of(client)}
    answer = client.post("/example.com/send", data=form, headers={**PAGE, **HERE})
    assert answer.status_code == 503
    assert "It was not sent" in answer.text
    assert f'value="{PLAIN["subject"]}"' in answer.text


def test_whom_it_was_not_sent_to_is_said_at_once(config, make_app):
    config["email_services"][0]["deliver_only_to"] = ["ada@example.org"]
    client = make_app(config).test_client()
    sign_in(client, POOL_KEY)
    form = {**PLAIN, "to_cc": "eve@evil.test", "csrf_token": token_of(client)}
    answer = client.post("/example.com/send", data=form, headers={**PAGE, **HERE})
    assert (answer.status_code, "It was sent to some" in answer.text) == (200, True)


def test_who_types_the_key_has_the_answer_since_the_page_would_ask_for_it_again(client):
    form = {**PLAIN, "pool_api_key": POOL_KEY}
    answer = client.post("/example.com/send", data=form, headers=PAGE)
    assert (answer.status_code, "It was sent" in answer.text) == (200, True)


def test_programs_have_their_answers_whatever_they_send_and_ask_for(post, client):
    assert post(accept={"Accept": "application/json"}).json["result"] == "success"
    for accept in ("text/html", "application/json"):
        headers = {**POOL, "Accept": accept}
        assert client.post("/example.com/send", json=PLAIN, headers=headers).status_code == 200
        assert client.post("/example.com/send", data=PLAIN, headers=headers).status_code == 200


def test_a_dry_run_and_a_batch_lead_nowhere(post):
    assert post(dry_run="true").status_code == 200
    batch = '{"messages": [{"subject": 1}]}'
    assert post(_json=batch, **dict.fromkeys(PLAIN, "")).status_code == 503


def test_the_form_asks_in_the_order_of_a_letter(client):
    page = client.get("/example.com/send", headers=PAGE).text
    asked = re.findall(r'<(?:input|textarea|select) id="(\w+)"', page)
    wanted = ["pool_api_key", "from_email", "to_recipients", "to_cc", "to_bcc", "subject"]
    assert asked[:9] == [*wanted, "raw_text_body", "html_body", "attachments"]


@pytest.mark.parametrize("name", ["example.com", "EXAMPLE.com"])
def test_the_senders_domain_stands_there(name, client):
    page = client.get(f"/{name}/send", headers=PAGE).text
    assert f"<span>@{name}</span>" in page
    unknown = client.get("/%3Cb%3E{0}.org/send", headers=PAGE)
    assert (unknown.status_code, "<b>" in unknown.text) == (404, False)


@pytest.mark.parametrize(
    ("typed", "sender", "name"),
    [
        ("me", "me@example.com", ""),
        (" me ", "me@example.com", ""),
        ("you@example.com", "you@example.com", ""),
        ("Shop <shop@example.com>", "shop@example.com", "Shop"),
    ],
)
def test_a_person_need_not_type_it(typed, sender, name, post, client):
    post(from_email=typed)
    (logged,) = client.get("/example.com/messages").json["messages"]
    assert (logged["from_email"], logged["from_name"]) == (sender, name)


@pytest.mark.parametrize("typed", ["", "  ", "me and you", "me@example.net", "<me>"])
def test_what_is_no_sender_is_a_problem_and_stays_as_it_was_typed(typed, post):
    answer = post(from_email=typed)
    assert answer.status_code == 400
    assert 'id="from_email-problem"' in answer.text


def test_a_program_says_who_sends_in_full(client):
    for body in ({"json": {**PLAIN, "from_email": "me"}}, {"data": {**PLAIN, "from_email": "me"}}):
        answer = client.post("/example.com/send", **body, headers=POOL)
        assert answer.json["problems"].keys() == {"from_email"}


def test_the_cursor_is_where_the_key_goes_and_a_password_manager_may_fill_it_in(client):
    for path, is_first in (("/sign-in", True), ("/example.com/send", False)):
        page = client.get(path, headers=PAGE).text
        (key,) = re.findall(r'<input [^>]*type="password"[^>]*>', page)[:1]
        assert 'autocomplete="current-password"' in key
        assert (" autofocus" in key) == is_first
