"""Sending a message of the log again: a new one, and each of the two names the other."""

from __future__ import annotations

import re

import pytest
from conftest import OTHER_POOL, PLAIN, POOL, POOL_KEY, ROOT
from standins import answer
from test_copies import EVERYTHING, WORKS, file_of  # noqa: F401 - for a fixture
from test_sign_in import HERE, PAGE, sign_in, token_of

DAY = 24 * 3600


@pytest.fixture
def config(config):
    """Copies are kept for a day."""
    config["email_services"][0]["keep_content_days"] = 1
    return config


def sent(client, **fields):
    """The path of a message that was sent."""
    told = client.post("/example.com/send", json={**PLAIN, **fields}, headers=POOL).json
    return f"/example.com/messages/{told['message_id']}"


def again(client, path, headers=POOL, **body):
    return client.post(f"{path}/send-again", json=body, headers=headers)


def logged(client, path):
    return client.get(path, headers=POOL).json


def test_it_is_a_new_message_that_has_all_that_the_old_one_had(client):
    old = sent(client, **EVERYTHING)
    told = again(client, old)
    assert (told.status_code, told.json["result"]) == (200, "success")
    first, second = (
        logged(client, old),
        logged(client, f"/example.com/messages/{told.json['message_id']}"),
    )
    assert first["message_id"] != second["message_id"]
    same = (
        "from_email",
        "from_name",
        "to_recipients",
        "to_cc",
        "to_bcc",
        "subject",
        "tags",
        "stream",
    )
    assert [first[name] for name in same] == [second[name] for name in same]
    assert first["captured"]["text"] == second["captured"]["text"]
    assert [file["bytes"] for file in second["captured"]["attachments"]] == [9]


def test_each_names_the_other(client):
    old = sent(client)
    ids = [again(client, old).json["message_id"] for _ in range(2)]
    for id_ in ids:
        assert logged(client, f"/example.com/messages/{id_}")["again_of"] == old.rpartition("/")[2]
    found = logged(client, old)
    assert found["again_of"] is None
    assert {message["message_id"] for message in found["sent_again"]} == {*ids}
    listed = client.get("/example.com/messages", headers=POOL).json["messages"]
    assert [message["again_of"] for message in listed].count(old.rpartition("/")[2]) == 2


def test_what_was_sent_again_can_be_sent_again(client):
    new = again(client, sent(client)).json["message_id"]
    third = again(client, f"/example.com/messages/{new}").json["message_id"]
    assert logged(client, f"/example.com/messages/{third}")["again_of"] == new


@pytest.mark.parametrize(
    ("service", "used"), [("backup", "backup"), ("BACKUP", "backup"), (None, "primary")]
)
def test_it_goes_through_the_pool_or_one_service(service, used, client):
    assert again(client, sent(client), service=service).json["service_used"] == used


def test_a_service_that_is_none_is_unknown_and_other_fields_are_problems(client):
    path = sent(client)
    told = again(client, path, service="none")
    assert (told.status_code, told.json["code"]) == (404, "unknown_service")
    assert again(client, path, subject="x").json["problems"].keys() == {"subject"}
    headers = {**POOL, "Idempotency-Key": "a key"}
    assert again(client, path, headers).json["problems"].keys() == {"Idempotency-Key"}


def test_it_is_queued_where_the_caller_or_the_domain_wants_that(client):
    told = again(client, sent(client), {**POOL, "Prefer": "respond-async"})
    assert (told.status_code, told.json["result"]) == (202, "queued")
    assert told.headers["Preference-Applied"] == "respond-async"
    path = told.headers["Location"].removeprefix("http://localhost")
    assert logged(client, path)["again_of"]
    client.application.extensions["mailpool"].dispatcher.deliver_due()
    delivered = logged(client, path)
    assert (delivered["outcome"], bool(delivered["again_of"])) == ("sent", True)


def test_the_same_idempotency_key_sends_it_again_once(client):
    path, other = sent(client), sent(client)
    headers = {**POOL, "Idempotency-Key": "again-1"}
    first, repeated = again(client, path, headers), again(client, path, headers)
    assert repeated.json == first.json
    assert repeated.headers["Idempotent-Replayed"] == "true"
    assert len(logged(client, path)["sent_again"]) == 1
    for refused in (again(client, path, headers, service="backup"), again(client, other, headers)):
        assert (refused.status_code, refused.json["code"]) == (422, "idempotency_key_reused")


def test_without_a_copy_it_is_409_and_nothing_is_sent(make_app, config):
    config["email_services"][0]["keep_content_days"] = 0
    client = make_app(config).test_client()
    path = sent(client)
    for told in (again(client, path), client.get(f"{path}/send-again", headers=POOL)):
        assert (told.status_code, told.json["code"]) == (409, "no_copy")
        assert "keep_content_days" in told.json["error"]
    assert logged(client, path)["send_again_url"] is None
    assert len(client.get("/example.com/messages", headers=POOL).json["messages"]) == 1


def test_what_is_still_on_its_way_is_not_sent_again(client):
    headers = {**POOL, "Prefer": "respond-async"}
    path = client.post("/example.com/send", json=PLAIN, headers=headers).headers["Location"]
    for told in (again(client, path), client.get(f"{path}/send-again", headers=POOL)):
        assert (told.status_code, told.json["code"]) == (409, "under_way")
    assert logged(client, path)["send_again_url"] is None


def test_one_that_is_not_here_or_another_domains_is_404(client):
    path = sent(client)
    assert again(client, f"/example.com/messages/{'0' * 32}").status_code == 404
    elsewhere = path.replace("example.com", "example.net")
    assert again(client, elsewhere, OTHER_POOL).status_code == 404
    assert again(client, path, OTHER_POOL).status_code == 401


def test_a_key_that_only_reads_does_not_send_and_is_not_asked_to(make_app, config):
    keys = [{"name": "shop", "key": POOL_KEY}, {"name": "desk", "key": "x" * 24, "role": "read"}]
    config["email_services"][0]["pool_api_key"] = keys
    client = make_app(config).test_client()
    path = sent(client)
    reader = {"Authorization": f"Bearer {'x' * 24}"}
    assert again(client, path, reader).status_code == 401
    for key, is_offered in (("x" * 24, False), (POOL_KEY, True)):
        sign_in(client, key)
        assert ("Send again…" in client.get(path, headers=PAGE).text) is is_offered


def test_a_person_confirms_and_is_led_to_the_new_messages_page(client):
    path = sent(client, subject="<b>Hello</b>")
    sign_in(client, POOL_KEY)
    confirm = client.get(f"{path}/send-again", headers=PAGE)
    assert confirm.status_code == 200
    assert "Whoever has got it gets another one" in confirm.text
    assert "&lt;b&gt;Hello" in confirm.text
    assert re.findall(r"<option>(\w+)</option>", confirm.text) == ["primary", "backup"]
    form = {"service": "", "csrf_token": token_of(client), "_once": "0123456789abcdef"}
    led = [client.post(f"{path}/send-again", data=form, headers={**PAGE, **HERE}) for _ in range(2)]
    assert [answered.status_code for answered in led] == [303, 303]
    new, repeated = (client.get(a.headers["Location"], headers=PAGE).text for a in led)
    assert "It was sent" in new
    assert f'href="{path}"' in new
    assert "nothing was sent again" in repeated
    assert led[0].headers["Location"].partition("?")[0] in client.get(path, headers=PAGE).text


def test_what_could_not_be_sent_again_says_so_and_can_be_tried_again(client):
    path = sent(client)
    for service in ("primary", "backup"):
        client.post(f"/example.com/{service}/fail", headers=ROOT)
    sign_in(client, POOL_KEY)
    form = {"service": "backup", "csrf_token": token_of(client)}
    failed = client.post(f"{path}/send-again", data=form, headers={**PAGE, **HERE})
    assert failed.status_code == 503
    assert "It was not sent" in failed.text
    assert "<option selected>backup</option>" in failed.text


def test_an_unknown_outcome_is_warned_of(make_app, config, stand_in):
    account = {"service": "mailgun", "api_key": "key", "priority_value": 1}
    account["base_url"] = stand_in(answer(504)).url
    config["email_services"][0]["enabled_services"] = {"mailgun": account}
    client = make_app(config).test_client()
    path = sent(client)
    sign_in(client, POOL_KEY)
    assert "It may have been sent" in client.get(f"{path}/send-again", headers=PAGE).text


def test_a_name_that_turns_what_follows_around_leaves_its_address_as_it_is(client):
    turned = "\u202egro.elpmaxe"
    file = {"filename": "\u05e9\u05dc\u05d5\u05dd.bin", "content": "eA=="}
    fields = {"from_name": turned, "to_recipients": [f"{turned} <eve@example.org>"]}
    old = sent(client, **fields, attachments=[file])
    for address in (old, f"{old}/send-again"):
        page = client.get(address, headers={**POOL, **PAGE}).get_data(as_text=True)
        shown = re.search(r"<dl>.*?</dl>", page, re.DOTALL)[0]
        assert f"<bdi>{turned}</bdi> <bdi>&lt;me@example.com&gt;</bdi>" in shown
        assert f"<bdi>&#34;{turned}&#34;</bdi> <bdi>&lt;eve@example.org&gt;</bdi>" in shown
    files = client.get(f"{old}?show=files", headers={**POOL, **PAGE}).get_data(as_text=True)
    assert "<bdi>\u05e9\u05dc\u05d5\u05dd.bin</bdi></a>" in files
