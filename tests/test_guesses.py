"""Wrong keys are limited for each address, and nobody's right key is ever."""

from __future__ import annotations

import contextlib

import pytest
from conftest import OTHER_POOL, PLAIN, POOL, POOL_KEY, make_config
from sqlalchemy import create_engine, text
from test_store import NOW, in_threads

from email_services.exceptions import TooManyWrongKeys
from email_services.store import Store
from email_services.store.access import KEEP_WRONG_KEYS_SECONDS
from email_services.store.migrations import MIGRATIONS, _add_wrong_keys
from endpoints.guesses import MAX_WRONG_KEYS, WINDOW_SECONDS, Guesses, network_of

WRONG = {"Authorization": "Bearer wrong"}
HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"
LAST = NOW + WINDOW_SECONDS - 1


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.sqlite3"
    return request.getfixturevalue("postgresql")


@pytest.fixture
def open_store(url):
    """Open the database once more, as another process does."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Store(url)))


def execute(url: str, *statements: str) -> list:
    """The first column of what the last statement finds."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        results = [connection.execute(text(statement)) for statement in statements]
        found = results[-1].scalars().all() if results[-1].returns_rows else []
    engine.dispose()
    return found


def wait_told(guesses: Guesses, address: str, now: float) -> int | None:
    """How long who shows a wrong key is told to wait, if at all."""
    try:
        guesses.count(address, now)
    except TooManyWrongKeys as error:
        return error.retry_after
    return None


def test_workers_count_together_and_each_minute_begins_anew(open_store):
    workers = [Guesses(open_store()) for _ in range(3)]
    for number in range(MAX_WRONG_KEYS):
        assert wait_told(workers[number % 3], HERE, NOW + number) is None
    for worker in workers:
        assert wait_told(worker, HERE, NOW + 20) == WINDOW_SECONDS - 20
        assert wait_told(worker, ELSEWHERE, NOW + 20) is None
        assert wait_told(worker, HERE, LAST) == 1
    assert [wait_told(worker, HERE, LAST + 2) for worker in workers] == [None] * 3


def test_of_many_at_once_no_more_are_looked_at(open_store):
    workers = [Guesses(open_store()) for _ in range(2)]
    told = []
    in_threads(16, lambda number: told.append(wait_told(workers[number % 2], HERE, NOW)))
    assert told.count(None) == MAX_WRONG_KEYS


def test_requests_that_overtake_each_other_count_as_well(open_store):
    guesses = Guesses(open_store())
    told = [wait_told(guesses, HERE, NOW - number / 1000) for number in range(MAX_WRONG_KEYS + 2)]
    assert told == [None] * MAX_WRONG_KEYS + [WINDOW_SECONDS] * 2


def test_a_clock_that_was_set_back_limits_nobody_for_longer(open_store):
    guesses, other = Guesses(open_store()), Guesses(open_store())
    for _ in range(MAX_WRONG_KEYS + 1):
        wait_told(guesses, HERE, NOW + 7200)
    assert wait_told(guesses, HERE, NOW + 7200) == WINDOW_SECONDS
    assert wait_told(guesses, HERE, NOW) is None
    assert wait_told(other, HERE, NOW) is None


def test_an_address_that_is_limited_costs_the_store_nothing_more(store, monkeypatch):
    guesses = Guesses(store)
    for _ in range(MAX_WRONG_KEYS + 1):
        wait_told(guesses, HERE, NOW)
    monkeypatch.delattr("email_services.store.Access.count_wrong_keys")
    assert wait_told(guesses, HERE, NOW) == WINDOW_SECONDS


def test_addresses_are_forgotten_after_a_while(url, open_store):
    store = open_store()
    for number in range(50):
        store.count_wrong_keys(f"10.0.0.{number}", NOW, 1, WINDOW_SECONDS)
    store.count_wrong_keys(ELSEWHERE, NOW + KEEP_WRONG_KEYS_SECONDS + 1, 1, WINDOW_SECONDS)
    assert execute(url, "SELECT address FROM wrong_keys") == [ELSEWHERE]


def test_a_database_from_before_gets_the_table(url, open_store):
    open_store()
    before = MIGRATIONS.index(_add_wrong_keys)
    execute(url, "DROP TABLE wrong_keys", f"DELETE FROM schema_version WHERE version > {before}")
    assert open_store().count_wrong_keys(HERE, NOW, 1, WINDOW_SECONDS) == (NOW, 1)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", None),
        (None, None),
        ("unix:", None),
    ],
)
def test_an_address_stands_for_who_has_it(address, network):
    assert network_of(address) == network


def test_who_has_no_address_is_not_limited(store):
    guesses = Guesses(store)
    assert {wait_told(guesses, "", NOW) for _ in range(MAX_WRONG_KEYS * 2)} == {None}


# Over HTTP


def guess(client, address: str = HERE, **asked):
    asked = asked or {"headers": WRONG}
    return client.post(
        "/example.com/send",
        environ_overrides={"REMOTE_ADDR": address},
        **{"json": PLAIN, **asked},
    )


def sign_in(client, key: str, address: str = HERE):
    environ = {"REMOTE_ADDR": address}
    return client.post("/sign-in", json={"key": key}, environ_overrides=environ)


PLACES = {
    "in the header": {"headers": WRONG},
    "in the body": {"json": {**PLAIN, "pool_api_key": "wrong"}},
    "in a form": {"json": None, "data": {"root_api_key": "wrong"}},
    "in a body of 3 MB": {"json": {"pool_api_key": "wrong", "text": "x" * 3_000_000}},
}


@pytest.mark.parametrize("place", PLACES)
def test_the_eleventh_wrong_key_of_a_minute_is_429_and_right_ones_work_on(place, client, caplog):
    first = [guess(client, **PLACES[place]).status_code for _ in range(MAX_WRONG_KEYS)]
    assert set(first) <= {401, 413}
    answer = guess(client, **PLACES[place])
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= WINDOW_SECONDS
    assert answer.json == {
        "error": "Too many wrong keys came from your address: wait before the next.",
        "code": "too_many_wrong_keys",
    }
    assert guess(client, headers=POOL).status_code == 200
    assert guess(client, json={**PLAIN, "pool_api_key": POOL_KEY}).status_code == 200
    assert guess(client, ELSEWHERE).status_code == 401
    assert caplog.text.count(f"Too many wrong keys from {HERE}.") == 1


def test_signing_in_is_refused_unseen_after_ten_wrong_keys_wherever_they_were_shown(client):
    for _ in range(MAX_WRONG_KEYS // 2):
        assert sign_in(client, "wrong").status_code == 401
        assert guess(client).status_code == 401
    for key in ("wrong", POOL_KEY):
        answer = sign_in(client, key)
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (429, False)
        assert "Retry-After" in answer.headers
    assert sign_in(client, POOL_KEY, ELSEWHERE).status_code == 200


def test_no_key_and_a_right_key_are_no_guess_however_often(client):
    client = client.application.test_client(use_cookies=False)
    for _ in range(MAX_WRONG_KEYS * 2):
        assert guess(client, headers={}).status_code == 401
        assert guess(client, headers=OTHER_POOL).status_code == 401, "right, elsewhere"
        assert sign_in(client, POOL_KEY).status_code == 200
    assert guess(client).status_code == 401


def test_a_key_in_several_places_is_one_guess(client):
    for _ in range(MAX_WRONG_KEYS):
        body = {**PLAIN, "pool_api_key": "wrong", "root_api_key": "wrong too"}
        assert guess(client, json=body).status_code == 401
    assert guess(client).status_code == 429


def test_without_the_store_nobody_is_locked_out_and_each_worker_counts_for_itself(
    make_app, tmp_path
):
    broken = f"sqlite:///{tmp_path}/no/folder/state.sqlite3"
    client = make_app(make_config(tmp_path, state_url=broken)).test_client()
    told = [guess(client).status_code for _ in range(MAX_WRONG_KEYS + 1)]
    assert told == [401] * MAX_WRONG_KEYS + [429]
    assert guess(client, headers=POOL).status_code == 200
    assert guess(client, ELSEWHERE).status_code == 401


def test_a_page_says_so_too(client):
    for _ in range(MAX_WRONG_KEYS + 1):
        answer = guess(client, headers={**WRONG, "Accept": "text/html"})
    assert (answer.status_code, answer.mimetype) == (429, "text/html")
    assert "Too many wrong keys came from your address" in answer.text
