"""What SQLite needs: writers in turns."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import event
from test_store import NOW, logged, wait_until

from email_services.exceptions import StoreUnavailable
from email_services.store import WRITTEN_AT_ONCE, Store
from email_services.store_sqlite import Turns

PATIENCE = 30


def test_writers_have_their_turns_in_the_order_in_which_they_came():
    turns, order, threads = Turns(), [], []

    def write(number):
        with turns.turn(PATIENCE):
            order.append(number)

    with turns.turn(PATIENCE):
        for number in range(8):
            threads.append(threading.Thread(target=write, args=(number,)))
            threads[-1].start()
            wait_until(lambda: len(turns._waiting) == len(threads))
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_who_waits_too_long_for_a_turn_hears_so_and_holds_up_nobody():
    turns = Turns()
    with turns.turn(PATIENCE), pytest.raises(StoreUnavailable), turns.turn(0):
        pass
    with turns.turn(0):
        pass


@pytest.fixture
def statements(store):
    """What the database is told."""
    told = []

    @event.listens_for(store._engine, "connect")
    def trace(connection, _record):
        connection.set_trace_callback(told.append)

    return told


def a_thousand(**changes) -> list:
    return [replace(logged(number), recipients=["a@b.org"], **changes) for number in range(1000)]


def test_the_rows_of_a_batch_are_written_in_short_transactions(store, statements):
    keys = [(f"key {number}", "f") for number in range(1000)]
    writing = {
        "log_messages": lambda: store.log_messages(a_thousand()),
        "log_outcomes": lambda: store.log_outcomes(a_thousand(outcome="sent")),
        "settle_keys": lambda: store.settle_keys("example.com", NOW, {key: {} for key, _ in keys}),
    }
    store.reserve_keys("example.com", keys, NOW, NOW + 30)
    for name, write in writing.items():
        statements.clear()
        write()
        rows = [len(part.split("\0")) for part in transactions(statements)]
        assert sum(rows) >= 1000, name
        assert max(rows) <= WRITTEN_AT_ONCE, name


def transactions(statements) -> list[str]:
    """Its writing statements, for each transaction."""
    parts = []
    for words in statements:
        if words.startswith("BEGIN"):
            parts.append([])
        elif words.startswith(("INSERT", "UPDATE", "DELETE")):
            parts[-1].append(words)
    return ["\0".join(part) for part in parts if part]


def test_the_keys_of_a_batch_take_no_more_than_a_look_and_a_statement(store):
    executed = Counter()
    event.listen(store._engine, "before_cursor_execute", lambda *about: executed.update([about[5]]))
    keys = [(f"key {number}", "f") for number in range(1000)]
    store.reserve_keys("example.com", keys, NOW, NOW + 30)
    assert executed == {False: 1, True: 1}, "by whether it is for many rows"


def test_a_writer_that_waits_for_another_process_finds_a_short_moment(tmp_path, monkeypatch):
    """SQLite itself would look after 100 ms again."""
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    stop = threading.Event()

    def write_nearly_always():
        other = sqlite3.connect(tmp_path / "state.sqlite3", isolation_level=None)
        with contextlib.closing(other):
            while not stop.is_set():
                other.execute("BEGIN IMMEDIATE")
                stop.wait(0.1)
                other.execute("COMMIT")
                stop.wait(0.005)

    with contextlib.closing(Store(url)) as store:
        busy = threading.Thread(target=write_nearly_always)
        busy.start()
        try:
            for number in range(5):
                store.log_messages([logged(number)])
        finally:
            stop.set()
            busy.join()
        assert len(store.messages("example.com", NOW)) == 5
