from __future__ import annotations

import threading

import pytest
from sqlalchemy import create_engine, text

from email_services.exceptions import ConfigError, StoreUnavailable
from email_services.store import Store


def test_a_failure_is_switched_over_and_set(store):
    changes = [None, None, True, True, False, False, None]
    results = [store.set_simulated_failure("example.com", "a", change) for change in changes]
    assert results == [True, False, True, True, False, False, True]
    assert store.simulated_failures("example.com") == {"a"}
    assert store.simulated_failures("example.net") == frozenset()


def test_it_is_seen_by_another_process_and_after_a_restart(tmp_path):
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    first, second = Store(url), Store(url)
    first.set_simulated_failure("example.com", "a", enabled=True)
    assert second.simulated_failures("example.com") == {"a"}
    assert Store(url).simulated_failures("example.com") == {"a"}


def test_switches_at_once_take_turns(tmp_path):
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    results = []

    def switch():
        store = Store(url)
        results.extend(store.set_simulated_failure("example.com", "a", None) for _ in range(10))

    threads = [threading.Thread(target=switch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (results.count(True), results.count(False)) == (40, 40)
    assert Store(url).simulated_failures("example.com") == frozenset()


def test_a_database_that_is_away_is_an_error_and_no_crash(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/no/such/folder/state.sqlite3")
    for ask in (
        lambda: store.simulated_failures("example.com"),
        lambda: store.set_simulated_failure("example.com", "a", None),
        store.check,
    ):
        with pytest.raises(StoreUnavailable):
            ask()


def test_a_locked_database_is_an_error_and_readers_do_not_mind(tmp_path, monkeypatch):
    monkeypatch.setattr("email_services.store.BUSY_SECONDS", 0)
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    store = Store(url)
    engine = create_engine(url)
    with engine.connect() as other:
        other.execute(text("BEGIN IMMEDIATE"))
        with pytest.raises(StoreUnavailable):
            store.set_simulated_failure("example.com", "a", enabled=True)
        assert store.simulated_failures("example.com") == frozenset()
    engine.dispose()


@pytest.mark.parametrize("url", ["", "nonsense", "nosuch://host/db", "sqlite"])
def test_a_url_that_is_none_stops_the_start(url):
    with pytest.raises(ConfigError):
        Store(url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_herokus_url_is_understood(scheme):
    store = Store(f"{scheme}://user:secret@127.0.0.1:1/db")
    with pytest.raises(StoreUnavailable) as caught:
        store.check()
    assert "secret" not in str(caught.value)
