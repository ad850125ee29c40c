from __future__ import annotations

import json
import re
import sys
import threading
import time
from contextlib import closing

import pytest
from conftest import POOL_KEY, ROOT_KEY, make_config
from messages import PLAIN

from email_services import api_keys
from email_services.__main__ import main
from email_services.api_keys import ApiKey, Keyring, hash_key
from email_services.config import load_config
from email_services.exceptions import ConfigError, StoreUnavailable
from email_services.store import Store
from endpoints.key_uses import KeyUses
from endpoints.upkeep import Upkeep

LONG = "a-key-that-was-made-at-random"
READ_KEY, OLD_KEY, METRICS_KEY, SECOND_ROOT = "reads", "old", "counts", "second-root"
PAST, FUTURE = "2020-01-01T00:00:00Z", "2120-01-01T01:00:00+01:00"


def with_lists(tmp_path, **changes):
    """Several keys on the server and on its first domain, one of them known by its hash alone."""
    config = make_config(tmp_path, **changes)
    config["root_api_key"] = [
        {"name": "ops", "key": ROOT_KEY},
        {"name": "second", "key": SECOND_ROOT, "role": "root", "until": FUTURE},
        {"name": "prometheus", "key": METRICS_KEY, "role": "metrics"},
    ]
    config["email_services"][0]["pool_api_key"] = [
        {"name": "shop", "hash": hash_key(LONG)},
        {"name": "plain", "key": POOL_KEY, "until": FUTURE},
        {"name": "support", "key": READ_KEY, "role": "read"},
        {"name": "last-year", "key": OLD_KEY, "until": PAST},
    ]
    return config


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


OPENS = {
    ("POST", "/example.com/send"): {LONG, POOL_KEY, ROOT_KEY, SECOND_ROOT},
    ("POST", "/example.com/primary/send"): {LONG, POOL_KEY, ROOT_KEY, SECOND_ROOT},
    ("GET", "/example.com/messages"): {LONG, POOL_KEY, READ_KEY, ROOT_KEY, SECOND_ROOT},
    ("GET", "/example.com"): {LONG, POOL_KEY, READ_KEY, ROOT_KEY, SECOND_ROOT},
    ("GET", "/"): {LONG, POOL_KEY, READ_KEY, ROOT_KEY, SECOND_ROOT},
    ("POST", "/example.com/primary/fail"): {ROOT_KEY, SECOND_ROOT},
    ("GET", "/keys"): {ROOT_KEY, SECOND_ROOT},
    ("GET", "/example.net/messages"): {ROOT_KEY, SECOND_ROOT},
}


@pytest.mark.parametrize("production", [False, True])
@pytest.mark.parametrize(("method", "path"), OPENS)
def test_a_key_opens_what_its_role_may_until_it_ends(method, path, production, make_app, tmp_path):
    client = make_app(with_lists(tmp_path, production=production)).test_client()
    for key in (LONG, POOL_KEY, READ_KEY, OLD_KEY, METRICS_KEY, ROOT_KEY, SECOND_ROOT, "wrong"):
        body = {"json": PLAIN} if path.endswith("send") else {}
        answer = client.open(path, method=method, headers=bearer(key), **body)
        assert (answer.status_code == 200) is (key in OPENS[method, path]), (key, answer.text)
        assert answer.status_code in {200, 401}


def test_who_shows_a_key_that_only_reads_is_told_so(make_app, tmp_path):
    client = make_app(with_lists(tmp_path)).test_client()
    answer = client.post("/example.com/send", json=PLAIN, headers=bearer(READ_KEY))
    assert answer.json["error"] == (
        "This is a key of this domain that only reads, which does not open this: "
        "the pool key of this domain or the root key is needed."
    )


def test_a_session_says_which_key_signed_in(make_app, tmp_path):
    client = make_app(with_lists(tmp_path)).test_client()
    here = {"Sec-Fetch-Site": "same-origin"}
    answer = client.post("/sign-in", json={"key": READ_KEY}, headers=here)
    assert {**answer.json, "until": ""} == {
        "signed_in": "example.com",
        "key_name": "support",
        "role": "read",
        "until": "",
    }
    assert "Signed in for example.com (support)" in client.get("/?format=html").text
    assert client.get("/example.com/messages").status_code == 200


def test_the_root_sees_keys_by_name_and_when_they_were_used_and_never_themselves(
    make_app, tmp_path
):
    client = make_app(with_lists(tmp_path, production=True)).test_client()
    before = client.get("/keys", headers=bearer(ROOT_KEY)).json["keys"]
    assert [(key["name"], key["role"], key["email_domain"]) for key in before] == [
        ("ops", "root", None),
        ("second", "root", None),
        ("prometheus", "metrics", None),
        ("shop", "send", "example.com"),
        ("plain", "send", "example.com"),
        ("support", "read", "example.com"),
        ("last-year", "send", "example.com"),
        ("pool_api_key", "send", "example.net"),
    ]
    assert [key["name"] for key in before if key["last_used"]] == ["ops"]
    assert [key["name"] for key in before if not key["is_valid"]] == ["last-year"]
    assert [key["name"] for key in before if key["is_hashed"]] == ["shop"]
    client.get("/example.com/messages", headers=bearer(READ_KEY))
    answer = client.get("/keys", headers=bearer(ROOT_KEY))
    assert [k["name"] for k in answer.json["keys"] if k["last_used"]] == ["ops", "support"]
    for key in (LONG, POOL_KEY, READ_KEY, ROOT_KEY, METRICS_KEY):
        assert key not in answer.text
    assert "scrypt" not in answer.text


def test_the_page_of_keys_says_of_each_what_the_answer_for_programs_does(make_app, tmp_path):
    client = make_app(with_lists(tmp_path)).test_client()
    client.get("/example.com/messages", headers=bearer(READ_KEY))
    page = client.get("/keys?format=html", headers=bearer(ROOT_KEY)).text
    page = " ".join(re.sub(r"<[^>]+>", " ", page.partition("<details")[0]).split())
    assert re.findall("(?:The whole server|example.com|example.net) (?=ops|shop|pool)", page) == [
        "The whole server ",
        "example.com ",
        "example.net ",
    ]
    assert "prometheus metrics Not used yet" in page
    assert re.search(r"support read Last used 20\d\d-", page)
    assert re.search(r"shop send .*; known by its hash plain send", page)
    assert re.search(r"last-year send ended Not used yet; ended 20\d\d-", page)


def test_a_hash_is_never_listed_and_a_key_only_outside_production(make_app, tmp_path):
    config = with_lists(tmp_path)
    found = make_app(config).test_client().get("/example.com", headers=bearer(ROOT_KEY))
    assert found.json["pool_api_key"] == POOL_KEY
    del config["email_services"][0]["pool_api_key"][1]
    found = make_app(config).test_client().get("/example.com", headers=bearer(ROOT_KEY))
    assert "pool_api_key" not in found.json
    assert "scrypt" not in found.text


def test_uses_are_kept_for_all_workers_and_the_later_one_stays(store, state_url):
    with closing(Store(state_url)) as other:
        key = ApiKey("ops", "root", value="x")
        first, second = KeyUses(store), KeyUses(other)
        second.note(key, 200.0)
        second.write()
        first.note(key, 100.0)
        first.write()
        assert first.all() == second.all() == KeyUses(store).all() == {("root", "ops"): 200.0}
        first.note(key, 300.0)
        assert first.all() == {("root", "ops"): 300.0}
        assert second.all() == {("root", "ops"): 200.0}


def test_what_was_written_is_not_written_again(store, monkeypatch):
    uses = KeyUses(store)
    uses.note(ApiKey("ops", "root", value="x"), 1.0)
    written = []
    monkeypatch.setattr(store, "note_key_uses", written.append)
    uses.write()
    uses.write()
    assert written == [{("root", "ops"): 1.0}, {}]


def test_upkeep_is_done_again_after_a_database_that_was_away_and_when_it_stops():
    done, went_on = [], threading.Event()

    def task():
        done.append(len(done))
        if len(done) == 1:
            raise StoreUnavailable
        went_on.set()

    upkeep = Upkeep(task, seconds=0.001)
    upkeep.start()
    assert went_on.wait(10)
    upkeep.stop()
    last = Upkeep(went_on.clear, seconds=1000)
    last.start()
    last.stop()
    assert not went_on.is_set()


# Hashes


@pytest.fixture
def slow_hashes(monkeypatch):
    """Which keys were hashed slowly."""
    hashed, ask = [], api_keys.is_hash_of

    def noting(expected, key):
        hashed.append(key)
        return ask(expected, key)

    monkeypatch.setattr(api_keys, "is_hash_of", noting)
    return hashed


def test_a_key_is_hashed_slowly_once_and_a_wrong_one_hardly_ever(slow_hashes):
    keyring = Keyring([ApiKey("shop", "send", "example.com", hashed=hash_key(LONG))])
    for number in range(2000):
        assert keyring.find(f"{LONG}{number}", 0) == ()
    assert len(slow_hashes) <= 2
    slow_hashes.clear()
    for _ in range(3):
        assert [key.name for key in keyring.find(LONG, 0)] == ["shop"]
    assert slow_hashes == [LONG]


def test_a_wrong_key_with_the_right_mark_is_hashed_slowly_once(slow_hashes, monkeypatch):
    monkeypatch.setattr(api_keys, "has_mark", lambda *_: True)
    keyring = Keyring([ApiKey("shop", "send", "example.com", hashed=hash_key(LONG))])
    assert [keyring.find("wrong", 0) for _ in range(3)] == [()] * 3
    assert slow_hashes == ["wrong"]


def test_many_keys_are_taken_in_without_comparing_each_to_all_others(monkeypatch):
    looks = []
    plain_hash = ApiKey.__hash__
    monkeypatch.setattr(ApiKey, "__hash__", lambda key: looks.append(key) or plain_hash(key))
    keys = [ApiKey(f"key {n}", "send", f"d{n}.example", value=f"{n:020}") for n in range(200)]
    keyring = Keyring(keys)
    assert len(looks) < 10 * len(keys)
    assert keyring.find(f"{7:020}", now=0) == (keys[7],)


def test_a_hash_is_another_one_each_time():
    assert hash_key(LONG) != hash_key(LONG)


def test_a_short_key_is_not_hashed():
    with pytest.raises(ValueError, match="at least 20"):
        hash_key("x" * 19)


def test_the_command_prints_what_the_configuration_takes(capsys, monkeypatch, tmp_path):
    main(["hash-key", "--new"])
    key, hashed = (line.split()[1] for line in capsys.readouterr().out.splitlines())
    assert Keyring([ApiKey("a", "root", hashed=hashed)]).find(key, 0)
    (tmp_path / "key").write_text(f"{LONG}\n")
    with (tmp_path / "key").open() as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        main(["hash-key"])
    hashed = capsys.readouterr().out.strip()
    assert Keyring([ApiKey("a", "root", hashed=hashed)]).find(LONG, time.time())


# What is wrong with a list

ONE = {"name": "a", "key": "k"}
WRONG = [
    ([], "root_api_key: It should have at least one key"),
    ([ONE, ONE], "root_api_key[1].name: 'a' is given twice"),
    ([{**ONE, "hash": hash_key(LONG)}], 'root_api_key[0]: It should have either "key" or "hash"'),
    ([{"name": "a"}], 'root_api_key[0]: It should have either "key" or "hash"'),
    ([{"name": "a", "hash": "secret"}], "root_api_key[0].hash: It should be what"),
    ([{**ONE, "role": "send"}], "root_api_key[0].role: the role should be root or metrics here"),
    ([{**ONE, "role": "boss"}], "root_api_key[0].role: "),
    ([{**ONE, "until": "2026-01-01T00:00:00"}], "root_api_key[0].until: "),
    ([{**ONE, "until": "soon"}], "root_api_key[0].until: "),
    ([{"key": "k"}], "root_api_key[0].name: "),
    ([{**ONE, "name": ""}], "root_api_key[0].name: "),
    ([{**ONE, "rank": 1}], "root_api_key[0].rank: "),
    (["secret"], "root_api_key[0]: "),
    ({"name": "a", "key": "secret"}, "root_api_key: It should be a string"),
]


@pytest.mark.parametrize(("keys", "problem"), WRONG)
def test_what_is_wrong_with_keys_is_said_at_its_place(keys, problem, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config(tmp_path, root_api_key=keys)))
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert problem in str(caught.value)
    assert "secret" not in str(caught.value)
