from __future__ import annotations

import contextlib
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


@pytest.fixture
def open_store(tmp_path):
    """Open the same database once more, as another process does."""
    with contextlib.ExitStack() as stack:

        def make(url: str = f"sqlite:///{tmp_path}/state.sqlite3") -> Store:
            return stack.enter_context(contextlib.closing(Store(url)))

        yield make


def test_it_is_seen_by_another_process_and_after_a_restart(open_store):
    first, second = open_store(), open_store()
    first.set_simulated_failure("example.com", "a", enabled=True)
    assert second.simulated_failures("example.com") == {"a"}
    assert open_store().simulated_failures("example.com") == {"a"}


def test_switches_at_once_take_turns(open_store):
    results = []

    def switch(store):
        results.extend(store.set_simulated_failure("example.com", "a", None) for _ in range(10))

    threads = [threading.Thread(target=switch, args=(open_store(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (results.count(True), results.count(False)) == (40, 40)
    assert open_store().simulated_failures("example.com") == frozenset()


def test_a_database_that_is_away_is_an_error_and_no_crash(tmp_path, open_store):
    store = open_store(f"sqlite:///{tmp_path}/no/such/folder/state.sqlite3")
    for ask in (
        lambda: store.simulated_failures("example.com"),
        lambda: store.set_simulated_failure("example.com", "a", None),
        store.check,
    ):
        with pytest.raises(StoreUnavailable):
            ask()


def test_a_locked_database_is_an_error_and_readers_do_not_mind(tmp_path, open_store, monkeypatch):
    monkeypatch.setattr("email_services.store.BUSY_SECONDS", 0)
    store = open_store()
    engine = create_engine(f"sqlite:///{tmp_path}/state.sqlite3")
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
def test_herokus_url_is_understood(scheme, open_store):
    store = open_store(f"{scheme}://user:secret@127.0.0.1:1/db")
    with pytest.raises(StoreUnavailable) as caught:
        store.check()
    assert "secret" not in str(caught.value)
