"""What SQLite needs: writers in turns, and an eye on the file."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import event
from test_store import NOW, in_threads, logged, reserve, wait_until

from email_services.exceptions import StoreUnavailable
from email_services.store import LoggedMessage, Store
from email_services.store.database import WRITTEN_AT_ONCE
from email_services.store.driver import Rows, Write
from email_services.store.sqlite import SMALL_FIRST, WRITTEN_TOGETHER, Turns

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


def written_by_several(store, messages) -> list:
    """Log the messages, each by a thread of its own, while none gets its turn; what each raised."""
    raised = [None] * len(messages)

    def log(number):
        try:
            store.log_messages([messages[number]])
        except (StoreUnavailable, ValueError) as error:
            raised[number] = error

    threads = [threading.Thread(target=log, args=(number,)) for number in range(len(messages))]
    with store._turns.turn(PATIENCE):
        for count, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda count=count: len(store._turns._waiting) == count)
    for thread in threads:
        thread.join()
    return raised


def test_writes_that_wait_together_are_made_in_one_transaction(store, statements):
    store.log_messages([logged(100)])  # removes what is old, too
    statements.clear()
    messages = [logged(number) for number in range(20)]
    assert written_by_several(store, messages) == [None] * 20
    assert Counter(statements)["COMMIT"] == 1
    assert len(store.messages("example.com", NOW)) == 21


def test_no_more_rows_are_written_together_than_others_can_wait_for(store, statements):
    store.log_messages([logged(1000)])
    statements.clear()
    recipients = [f"{number}@example.org" for number in range(WRITTEN_TOGETHER // 4)]
    messages = [replace(logged(number), recipients=recipients) for number in range(9)]
    assert written_by_several(store, messages) == [None] * len(messages)
    assert Counter(statements)["COMMIT"] == 3, "each has a row, and one for each recipient"


def test_what_no_database_takes_is_an_error_of_whoever_wrote_it_alone(store):
    messages = [logged(number) for number in range(6)]
    messages[3] = replace(messages[3], subject="\ud800")
    raised = written_by_several(store, messages)
    assert [type(error) for error in raised if error] == [UnicodeEncodeError]
    assert raised[3]
    assert len(store.messages("example.com", NOW)) == 5


def test_a_database_that_is_full_is_an_error_of_all_that_write_together(store):
    store.log_messages([logged(100)])
    store.close()

    @event.listens_for(store._engine, "connect")
    def allow_no_more(connection, _record):
        connection.execute("PRAGMA max_page_count = 1")  # it counts as what there is

    messages = [replace(logged(n), subject="x" * 100_000) for n in range(6)]
    raised = written_by_several(store, messages)
    assert [type(error) for error in raised] == [StoreUnavailable] * 6
    assert len(store.messages("example.com", NOW)) == 1


def test_nobody_who_wants_a_transaction_is_overtaken_by_writes_behind():
    turns, order, threads = Turns(), [], []

    def change():
        with turns.turn(PATIENCE):
            order.append("change")

    def carry_out(writes):
        for write in writes:
            order.append("write")
            write.is_over = True

    def write(_):
        turns.write(Write([Rows("", [{}])], 1), PATIENCE, carry_out)

    with turns.turn(PATIENCE):
        for work in (write, write, lambda _: change(), write):
            threads.append(threading.Thread(target=work, args=(0,)))
            threads[-1].start()
            wait_until(lambda: len(turns._waiting) == len(threads))
    for thread in threads:
        thread.join()
    assert order == ["write", "write", "change", "write"]


def test_a_part_of_a_batch_lets_a_few_that_write_little_go_first():
    turns, order, threads = Turns(), [], []

    def carry_out(writes):
        order.append([write.weight for write in writes])
        for write in writes:
            write.is_over = True

    def write(weight):
        turns.write(Write([Rows("", [{}])], weight), PATIENCE, carry_out)

    def change():
        with turns.turn(PATIENCE):
            order.append("change")

    def large():
        write(WRITTEN_TOGETHER)

    def small():
        write(2)

    with turns.turn(PATIENCE):
        for work in (large, large, *[change] * SMALL_FIRST, small, small):
            threads.append(threading.Thread(target=work))
            threads[-1].start()
            wait_until(lambda: len(turns._waiting) == len(threads))
    for thread in threads:
        thread.join()
    few = ["change"] * (SMALL_FIRST - 1)  # with the one that they waited for
    much = [WRITTEN_TOGETHER]
    assert order == [*few, much, "change", [2, 2], much]


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
    """Its writing statements, for each transaction; a trigger's are called as what fired it."""
    parts = []
    for words in statements:
        if words.startswith("BEGIN"):
            parts.append([])
        elif words.startswith(("INSERT", "UPDATE", "DELETE")):
            parts[-1].append(words)
    return ["\0".join(set(part)) for part in parts if part]


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


DELETED = {
    "the database": ["state.sqlite3"],
    "all of it": ["state.sqlite3", "state.sqlite3-wal", "state.sqlite3-shm"],
    "what was written last": ["state.sqlite3-wal"],
    "the index of that": ["state.sqlite3-shm"],
    "both": ["state.sqlite3-wal", "state.sqlite3-shm"],
}


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Several processes' stores, each of which has used the database."""
    monkeypatch.setattr("email_services.store.sqlite.LOOK_BESIDE_SECONDS", 0)
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/state.sqlite3"
        opened = [stack.enter_context(contextlib.closing(Store(url))) for _ in range(3)]
        for number, store in enumerate(opened):
            store.log_messages([logged(number)])
            store.messages("example.com", NOW)
            reserve(store, f"of before {number}")
        yield opened


@pytest.mark.parametrize("case", DELETED)
def test_workers_agree_on_one_database_after_files_of_it_were_deleted(
    case, workers, tmp_path, caplog
):
    for name in DELETED[case]:
        (tmp_path / name).unlink()
    caplog.clear()
    keys = [f"key {number}" for number in range(30)]
    for turn in range(3):
        for number, key in enumerate(keys):
            expected = "in progress" if turn else "new"
            assert reserve(workers[(number + turn) % 3], key).state == expected
    assert [record.levelname for record in caplog.records] == ["ERROR"] * len(workers)
    for store in workers:
        store.check()
        store.log_messages([replace(logged(99), message_id=secrets.token_hex(16))])
    for store in workers:
        kept = 0 if "state.sqlite3" in DELETED[case] else 3
        assert len(store.messages("example.com", NOW)) == 3 + kept
        with store._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    state = "in progress" if kept else "new"
    assert reserve(workers[0], "of before 1").state == state


def test_a_database_that_was_replaced_is_taken_for_what_it_is(workers, tmp_path, caplog):
    other = tmp_path / "other.sqlite3"
    with contextlib.closing(Store(f"sqlite:///{other}")) as store:
        reserve(store, "of the other")
        store.log_messages([logged(7)])
    caplog.clear()
    other.replace(tmp_path / "state.sqlite3")
    for store in workers:
        assert reserve(store, "of the other").state == "in progress"
        assert [m.message_id for m in store.messages("example.com", NOW)] == [f"{7:032x}"]
    assert "replaced" in caplog.records[0].message


WRITES = {
    "one row": reserve,
    "several": lambda store: store.reserve_keys("example.com", [("k", "f"), ("l", "f")], NOW, NOW),
}


@pytest.mark.parametrize("case", WRITES)
def test_who_waited_while_the_database_was_deleted_writes_into_no_file_that_is_gone(
    case, workers, tmp_path
):
    waiting, deleting = workers[:2]
    outcome = []

    def wait():
        try:
            outcome.append(WRITES[case](waiting))
        except StoreUnavailable as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    other = sqlite3.connect(tmp_path / "state.sqlite3", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        thread.start()
        wait_until(lambda: waiting._turns._is_taken)
        (tmp_path / "state.sqlite3").unlink()
        assert reserve(deleting).state == "new"
        other.execute("COMMIT")
    thread.join()
    assert isinstance(outcome[0], StoreUnavailable)
    assert reserve(waiting).state == "in progress"


def test_workers_that_find_out_at_once_agree(workers, tmp_path):
    (tmp_path / "state.sqlite3").unlink()
    states = Counter()

    def ask(number):
        with contextlib.suppress(StoreUnavailable):
            states[reserve(workers[number % 3], "the same").state] += 1

    in_threads(24, ask)
    assert states["new"] == 1
    assert set(states) <= {"new", "in progress"}


def plans_of(store, look) -> list[str]:
    """How SQLite finds what a look at the log asks for, statement by statement."""
    asked = []

    def note(*given):
        asked.append((given[2], given[3]))

    event.listen(store._log, "before_cursor_execute", note)
    look()
    event.remove(store._log, "before_cursor_execute", note)
    with store._log.connect() as connection:
        return [
            " / ".join(
                step[3] for step in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)
            )
            for sql, values in asked
        ]


@pytest.mark.parametrize(
    ("look", "ways"),
    [
        (lambda store, now: store.messages("example.com", now, message_id="0" * 32), ["autoindex"]),
        (lambda store, now: store.sent_again("0" * 32, now, 20), ["messages_sent_again"]),
        (
            lambda store, now: store.messages("example.com", now, words="hello"),
            ["messages_by_domain", "messages_by_domain", "by_number", "messages_to_index"],
        ),
        (
            lambda store, now: store.messages("example.com", now, recipient="reader"),
            ["recipients", "autoindex"],
        ),
        (
            lambda store, now: store.messages("example.com", now, outcome="unknown"),
            ["messages_in_trouble"],
        ),
    ],
)
def test_a_look_at_the_log_goes_through_no_more_than_it_has_to(look, ways, state_url, monkeypatch):
    monkeypatch.setattr("email_services.store.search.READ_FIRST", 3)
    now = time.time()
    with contextlib.closing(Store(state_url)) as store:
        for number in range(5):
            id_, to = f"{number:032x}", f"reader{number}@example.org"
            one = LoggedMessage(id_, now - number, "example.com", "a@example.com", [to], "Hello")
            store.log_messages([replace(one, outcome="sent")])
        store.index(now)
        store._indexer.join()
        plans = plans_of(store, lambda: look(store, now))
    assert len(plans) == len(ways)
    for plan, way in zip(plans, ways, strict=True):
        assert way in plan, plans
