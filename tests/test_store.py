"""The shared state, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import contextlib
import importlib
import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, event, insert, text

from email_services.drill import Drill
from email_services.exceptions import ConfigError, SearchTooSlow, StoreUnavailable
from email_services.health import Health
from email_services.store import LoggedMessage, Reservation, ServiceState, Store, Waiting
from email_services.store.database import AWAY_SECONDS
from email_services.store.engines import LOG_CONNECTIONS, POSTGRESQL
from email_services.store.keys import KEEP_KEY_SECONDS
from email_services.store.migrations import MIGRATIONS, _keep_payloads_apart
from email_services.store.schema import KEYS
from email_services.store.services import KEPT_ERRORS

NOW = 1_800_000_000.0
DAY = 24 * 3600


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/state.sqlite3"
    else:
        yield request.getfixturevalue("postgresql")


@pytest.fixture
def open_store(url):
    """Open the database once more, as another process does."""
    with contextlib.ExitStack() as stack:

        def make(other_url: str = url, **options) -> Store:
            return stack.enter_context(contextlib.closing(Store(other_url, **options)))

        yield make


@pytest.fixture
def store(open_store):
    return open_store()


def wait_until(condition) -> None:
    pause = threading.Event()
    for _ in range(10_000):
        if condition():
            return
        pause.wait(0.001)
    pytest.fail("it does not come to pass")


def in_threads(count: int, work) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


RESTING = ServiceState(
    Health(5, 1, NOW + 30, NOW + 45, NOW, "HTTP 503.", simulated=True),
    Drill("timeout", 0.5, NOW, NOW + 60),
    ({"at": NOW, "reason": "HTTP 503."},),
)


def test_a_services_state_is_seen_by_another_process(open_store):
    first, second = open_store(), open_store()
    result = first.change_service("example.com", "a", lambda _: (RESTING, "resting"), NOW)
    assert result == RESTING
    assert second.service_states("example.com") == {"a": RESTING}
    assert second.service_states("example.net") == {}
    second.change_service("example.com", "a", lambda _: (ServiceState(), "working"), NOW + 1)
    assert first.service_states("example.com") == {"a": ServiceState()}
    assert first.service_changes("example.com") == [
        {"at": NOW + 1, "service": "a", "change": "working"},
        {"at": NOW, "service": "a", "change": "resting"},
    ]


def test_a_change_without_words_is_not_on_record(store):
    store.change_service("example.com", "a", lambda _: (RESTING, ""), NOW)
    assert store.service_changes("example.com") == []


def test_only_the_last_errors_are_kept(store):
    many = tuple({"at": NOW + n, "reason": str(n)} for n in range(100))
    store.change_service("example.com", "a", lambda _: (ServiceState(last_errors=many), ""), NOW)
    kept = store.service_states("example.com")["a"].last_errors
    assert kept == many[:KEPT_ERRORS]


def test_changes_at_once_take_turns_from_the_first_on(open_store):
    stores = [open_store() for _ in range(8)]

    def count_to_ten(number):
        for _ in range(10):
            stores[number].change_service("example.com", "a", one_more, NOW)

    def one_more(state):
        failures = state.health.failures + 1
        return replace(state, health=replace(state.health, failures=failures)), ""

    in_threads(8, count_to_ten)
    assert stores[0].service_states("example.com")["a"].health.failures == 80


def logged(number: int = 0, **changes) -> LoggedMessage:
    message = LoggedMessage(
        f"{number:032x}",
        NOW + number,
        "example.com",
        "me@example.com",
        ["ada@example.org", "b_b@example.org"],
        "Grüße ✉",
        deadline=NOW + number + 30,
    )
    return replace(message, **changes)


def test_a_message_is_in_progress_then_what_became_of_it(store):
    store.log_messages([logged()])
    assert store.messages("example.com", NOW + 29) == [logged()]
    sent = logged(
        outcome="sent",
        service_used="a",
        service_message_id="<1>",
        possible_duplicate=True,
        attempts=(
            {"service": "a", "outcome": "sent", "code": "", "reason": "", "milliseconds": 3},
        ),
    )
    store.log_outcomes([sent])
    assert store.messages("example.com", NOW + 1000) == [sent]
    assert store.messages("example.net", NOW) == []


def test_an_attempt_that_a_version_before_logged_has_an_empty_word(store):
    store.log_outcomes([logged(outcome="not sent", attempts=(ATTEMPT,))])
    (message,) = store.messages("example.com", NOW)
    assert message.attempts == ({**ATTEMPT, "code": ""},)


def test_the_log_knows_who_was_named_where_and_of_a_version_before_that_it_does_not(url, store):
    named = logged(
        from_name="Wir",
        names={"ada@example.org": 'Ada "A" Ünal'},
        cc_from=1,
        bcc_from=2,
        tags=("welcome", "a b"),
    )
    store.log_messages([named])
    assert store.messages("example.com", NOW) == [named]
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for name in ("from_name", "names", "cc_from", "bcc_from", "tags"):
            connection.execute(text(f"ALTER TABLE messages DROP COLUMN {name}"))
        connection.execute(text("DELETE FROM schema_version WHERE version > 8"))
    engine.dispose()
    with contextlib.closing(Store(url)) as newer:
        assert newer.messages("example.com", NOW) == [logged()]
        newer.log_messages([replace(named, message_id="f" * 32)])
        assert newer.messages("example.com", NOW)[0].tags == ("welcome", "a b")


def test_a_message_that_was_cut_off_is_unknown_after_its_deadline(store):
    store.log_messages([logged()])
    (message,) = store.messages("example.com", NOW + 31)
    assert message.outcome == "unknown"
    assert store.messages("example.com", NOW + 31, outcome="unknown") == [message]
    assert store.messages("example.com", NOW + 31, outcome="in progress") == []
    assert store.messages("example.com", NOW + 29, outcome="unknown") == []


def test_an_outcome_is_logged_even_if_the_beginning_was_not(store):
    store.log_outcomes([logged(outcome="sent")])
    assert store.messages("example.com", NOW) == [logged(outcome="sent")]


def test_what_comes_late_changes_nothing_of_a_message_that_another_has_taken_over(store):
    store.log_messages([logged()])
    again = logged(deadline=NOW + 90)
    store.log_messages([again])
    assert store.messages("example.com", NOW + 60) == [again]
    store.log_outcomes([replace(again, outcome="sent")])
    store.log_outcomes([logged(outcome="not sent")])
    assert store.messages("example.com", NOW + 60) == [replace(again, outcome="sent")]


ATTEMPT = {"service": "mail_gun", "outcome": "not sent", "reason": "50% _", "milliseconds": 3}
FILTERS = [
    ({}, [3, 2, 1, 0]),
    ({"recipient": "ADA@example.org"}, [3, 2, 1]),
    ({"recipient": "da@example.org"}, []),
    ({"recipient": "b%b@example.org"}, []),
    ({"recipient": "Example.org"}, [3, 2, 1, 0]),
    ({"recipient": "da@"}, [3, 2, 1]),
    ({"recipient": "b_b"}, [3, 2, 1]),
    ({"recipient": "b%b"}, []),
    ({"recipient": "ada@example"}, [3, 2, 1]),
    ({"recipient": "example.org", "limit": 2}, [3, 2]),
    ({"recipient": "example.org", "before": (NOW + 2, f"{2:032x}")}, [1, 0]),
    ({"recipient": "example.org", "since": NOW + 1, "until": NOW + 3}, [2, 1]),
    ({"recipient": "example.org", "outcome": "not sent", "service": "mail_gun"}, [2]),
    ({"recipient": "b_b@example.org"}, [3, 2, 1]),
    ({"outcome": "sent"}, [1]),
    ({"outcome": "not sent"}, [2]),
    ({"service": "mail_gun"}, [2]),
    ({"service": "mail%gun"}, []),
    ({"since": NOW + 2}, [3, 2]),
    ({"until": NOW + 2}, [1, 0]),
    ({"message_id": f"{2:032x}"}, [2]),
    ({"limit": 2}, [3, 2]),
    ({"before": (NOW + 2, f"{2:032x}")}, [1, 0]),
]


@pytest.mark.parametrize(("wanted", "expected"), FILTERS)
def test_messages_are_found_newest_first(wanted, expected, store):
    store.log_messages([logged(0, recipients=["other@example.org"])])
    store.log_messages([logged(1, outcome="sent")])
    store.log_messages([logged(2, outcome="not sent", attempts=[ATTEMPT])])
    store.log_messages([logged(3)])
    found = store.messages("example.com", NOW, **wanted)
    assert [int(message.message_id, 16) for message in found] == expected


@pytest.mark.parametrize("recipient", ["ada@example.org", "example.org"])
def test_a_search_goes_on_until_it_has_found_enough(recipient, store, monkeypatch):
    monkeypatch.setattr("email_services.store.search.MOST_CANDIDATES", 10)
    outcomes = ["sent" if number % 30 == 0 else "not sent" for number in range(100)]
    store.log_messages([logged(n, outcome=outcome) for n, outcome in enumerate(outcomes)])
    found = store.messages("example.com", NOW, recipient=recipient, outcome="sent", limit=3)
    assert [int(message.message_id, 16) for message in found] == [90, 60, 30]


def test_a_whole_address_is_found_without_looking_at_others(tmp_path):
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/state.sqlite3")) as store:
        store.log_messages([logged()])
        asked = []
        event.listen(store._log, "before_cursor_execute", lambda *about: asked.append(about[2:4]))
        assert len(store.messages("example.com", NOW, recipient="ada@example.org")) == 1
        with store._log.connect() as connection:
            plans = [
                row[3]
                for words, values in list(asked)
                for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}", values)
            ]
    assert plans[0].startswith("SEARCH recipients USING PRIMARY KEY (email_domain=? AND address=?")
    assert not [plan for plan in plans if plan.startswith("SCAN")]


def test_pages_miss_nothing_where_messages_have_the_same_time(store):
    for number in range(10):
        store.log_messages([replace(logged(number), at=NOW)])
    seen, before = [], None
    while page := store.messages("example.com", NOW, before=before, limit=3):
        seen += [int(message.message_id, 16) for message in page]
        before = (page[-1].at, page[-1].message_id)
    assert seen == list(range(9, -1, -1))


def test_messages_are_kept_as_long_as_they_should_be(open_store):
    store = open_store(keep_seconds=DAY)
    store.log_messages([logged(0)])
    store.log_messages([logged(10)])
    assert len(store.messages("example.com", NOW + DAY)) == 2
    assert len(store.messages("example.com", NOW + DAY + 5)) == 1, "not shown a second longer"
    late = replace(logged(99), at=NOW + DAY + 3600, message_id="f" * 32)
    store.log_messages([late])  # removes what is old, as any message may
    assert len(open_store(keep_seconds=100 * DAY).messages("example.com", NOW + DAY)) == 1


def test_what_is_old_is_removed_a_little_at_a_time(open_store, monkeypatch):
    for part in ("database", "messages"):
        monkeypatch.setattr(f"email_services.store.{part}.CHANGED_AT_ONCE", 2)
    store = open_store(keep_seconds=DAY)
    for number in range(5):
        store.log_messages([logged(number)])
        reserve(store, key=str(number))
    everything = open_store(keep_seconds=100 * DAY)
    late = NOW + 3 * DAY
    left = []
    for second in range(4):
        message = logged(100 + second, at=late + second)
        store.log_messages([message])
        left.append(len(everything.messages("example.com", late, until=late)))
    assert left == [3, 1, 0, 0]
    assert reserve(store, key="0", fingerprint="other", now=late).state == "new"


def test_the_recipients_of_a_message_are_removed_with_it(open_store):
    store = open_store(keep_seconds=DAY)
    many = [f"u{number}@example.org" for number in range(1000)]
    store.log_messages([logged(1, recipients=many), logged(2)])
    store.log_messages([logged(3, at=NOW + 3 * DAY)])
    with store._engine.connect() as connection:
        left = connection.execute(text("SELECT DISTINCT message_id FROM recipients")).scalars()
        assert list(left) == [f"{3:032x}"]


def test_who_searches_too_long_hears_so_and_nobody_else_notices(
    request, url, open_store, monkeypatch
):
    monkeypatch.setattr("email_services.store.engines.LOG_OPTIONS", "-c statement_timeout=50")
    monkeypatch.setattr("email_services.store.sqlite.LOOK_EVERY", 1)
    store = open_store()
    reserve(store)
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        if url.startswith("sqlite"):
            patch.setattr("email_services.store.database.LOG_SECONDS", -1)
        else:
            engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
            stack.callback(engine.dispose)
            other = stack.enter_context(engine.connect())
            other.execute(text("LOCK TABLE recipients, messages, service_changes"))
        for look in readers(store):
            with pytest.raises(SearchTooSlow):
                look()
        store.check()
        assert store.service_states("example.com") == {}
        assert reserve(store).state == "in progress"
        store.settle_keys("example.com", NOW, {"k": {}})
    for look in readers(store):
        look()


def readers(store) -> list:
    return [
        lambda: store.messages("example.com", NOW),
        lambda: store.messages("example.com", NOW, recipient="ada@example.org"),
        lambda: store.messages("example.com", NOW, recipient="ada"),
        lambda: store.messages("example.com", NOW, words="ada"),
        lambda: store.counted("example.com", NOW),
        lambda: store.service_changes("example.com"),
    ]


def test_those_who_read_the_log_take_no_connection_from_senders(open_store, monkeypatch):
    monkeypatch.setitem(LOG_CONNECTIONS, "pool_timeout", 0.01)
    store = open_store()
    with contextlib.ExitStack() as stack:
        for _ in range(LOG_CONNECTIONS["pool_size"]):
            stack.enter_context(store._reading())
        with pytest.raises(SearchTooSlow):
            store.messages("example.com", NOW)
        in_threads(20, lambda number: store.log_messages([logged(number)]))
    assert len(store.messages("example.com", NOW)) == 20


def make_older(url: str) -> None:
    """Take back what came after version 2."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for event_ in ("insert", "delete"):
            on = "" if url.startswith("sqlite") else "ON messages"
            connection.execute(text(f"DROP TRIGGER recipients_at_{event_} {on}"))
        connection.execute(text("DROP TABLE recipients"))
        connection.execute(text("DELETE FROM schema_version WHERE version > 2"))
    engine.dispose()


def test_recipients_of_before_there_was_a_table_of_them_are_found(url, open_store, monkeypatch):
    monkeypatch.setattr("email_services.store.migrations.FILLED_AT_ONCE", 7)
    store = open_store()
    store.log_messages([replace(logged(n), at=NOW + n // 4) for n in range(50)])
    make_older(url)
    store = open_store()
    store.log_messages([logged(100)])
    store._worker.join()
    for recipient in ("ada@example.org", "b_b"):
        found = store.messages("example.com", NOW, recipient=recipient, limit=99)
        assert len(found) == 51
        assert found == store.messages("example.com", NOW, limit=99)


def test_what_takes_long_goes_on_after_a_restart_and_once_it_is_done_is_done(
    url, open_store, monkeypatch
):
    monkeypatch.setattr("email_services.store.migrations.FILLED_AT_ONCE", 3)
    open_store().log_messages([logged(number) for number in range(3)])
    make_older(url)
    with monkeypatch.context() as patch:
        patch.setattr("email_services.store.migrations.newest_first", fail)
        store = open_store()
        store.check()
        wait_until(lambda: store._away_until[True])
        store.close()
    store = open_store()
    assert store._long_steps
    store._away_until = {False: 0.0, True: 0.0}
    store.check()
    store._worker.join()
    assert len(store.messages("example.com", NOW, recipient="ada@example.org")) == 3
    assert not open_store()._long_steps


def fail(*_):
    raise sqlite3.OperationalError("disk I/O error")


def reserve(store, key="k", fingerprint="f", now=NOW):
    return store.reserve_keys("example.com", [(key, fingerprint)], now, now + 30)[0]


def test_a_key_stands_for_its_first_request(store):
    assert reserve(store) == Reservation("new")
    assert reserve(store, now=NOW + 29).state == "in progress"
    assert reserve(store, fingerprint="other").state == "other"
    assert reserve(store, key="other").state == "new"
    store.settle_keys("example.com", NOW, {"k": {"a": ["ü", None]}})
    assert reserve(store, now=NOW + 1000) == Reservation("done", {"a": ["ü", None]})
    assert reserve(store, fingerprint="other").state == "other"
    assert store.reserve_keys("example.net", [("k", "f")], NOW, NOW + 30)[0].state == "new"


def test_a_freed_key_is_new_again(store):
    reserve(store)
    store.settle_keys("example.com", NOW, {"k": None})
    assert reserve(store, fingerprint="other").state == "new"


def test_a_reservation_whose_worker_died_lapses(store):
    reserve(store)
    assert reserve(store, now=NOW + 30).state == "abandoned"
    assert reserve(store, now=NOW + 59).state == "in progress", "the second request has it now"


def test_a_key_of_a_version_before_is_known(url, open_store):
    store = open_store()
    reserve(store)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for column in ("message_id", "message_at"):
            connection.execute(text(f"ALTER TABLE idempotency_keys DROP COLUMN {column}"))
        connection.execute(text("DELETE FROM schema_version WHERE version > 5"))
    engine.dispose()
    assert reserve(open_store(), now=NOW + 31) == Reservation("abandoned")


def test_a_key_is_taken_over_with_the_message_of_the_first(store):
    def taken(now, message_id):
        ids = {"k": message_id}
        return store.reserve_keys("example.com", [("k", "f")], now, now + 30, ids)[0]

    assert taken(NOW, "first") == Reservation("new")
    assert taken(NOW + 31, "second") == Reservation("abandoned", message=("first", NOW))
    assert taken(NOW + 62, "third") == Reservation("abandoned", message=("first", NOW))
    store.settle_keys("example.com", NOW + 62, {"k": None})
    assert taken(NOW + 63, "fourth") == Reservation("new")
    assert taken(NOW + 94, "fifth") == Reservation("abandoned", message=("fourth", NOW + 63))


def test_a_request_that_lost_its_key_to_another_touches_it_no_more(store):
    reserve(store)
    assert reserve(store, now=NOW + 31).state == "abandoned"
    store.settle_keys("example.com", NOW, {"k": None})
    store.settle_keys("example.com", NOW, {"k": {"late": True}})
    assert reserve(store, now=NOW + 32).state == "in progress"


def test_a_key_is_forgotten_after_a_day(store):
    reserve(store)
    store.settle_keys("example.com", NOW, {"k": {}})
    assert reserve(store, now=NOW + KEEP_KEY_SECONDS).state == "done"
    assert reserve(store, now=NOW + KEEP_KEY_SECONDS + 1, fingerprint="other").state == "new"


def test_of_many_at_once_one_gets_the_key(open_store):
    stores = [open_store() for _ in range(8)]
    states = []
    in_threads(40, lambda number: states.append(reserve(stores[number % 8]).state))
    assert sorted(states) == ["in progress"] * 39 + ["new"]


def test_a_batch_that_loses_one_of_its_keys_at_the_last_moment_takes_none(postgresql):
    found, waiting = [], text("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid'")

    def reserve_both(store):
        keys = [("a", "f"), ("b", "f")]
        found.extend(store.reserve_keys("example.com", keys, NOW, NOW + 30))

    with (
        contextlib.closing(Store(postgresql)) as store,
        store._autocommit.connect() as watcher,
    ):
        batch = threading.Thread(target=reserve_both, args=(store,))
        with store._engine.begin() as other:
            row = {"email_domain": "example.com", "key": "b", "fingerprint": "f"}
            other.execute(insert(KEYS).values(**row, at=NOW, reserved_until=NOW + 30))
            batch.start()
            wait_until(lambda: watcher.execute(waiting).scalar())
        batch.join()
        assert [reservation.state for reservation in found] == ["new", "in progress"]
        assert reserve(store, "a").state == "new"


def test_a_secret_is_the_same_for_all_who_ask_and_no_other(open_store):
    stores = [open_store() for _ in range(8)]
    found = []
    in_threads(40, lambda number: found.append(stores[number % 8].secret("a")))
    assert len(found) == 40
    assert len(set(found)) == 1
    assert open_store().secret("a") == found[0]
    assert len(found[0]) >= 32
    assert stores[0].secret("b") != found[0]


def test_a_database_from_before_there_were_secrets_gets_their_table(url, open_store):
    open_store()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE secrets"))
        connection.execute(text("DELETE FROM schema_version WHERE version > 1"))
    engine.dispose()
    assert open_store().secret("a")


def test_what_waited_before_payloads_were_kept_apart_is_there(url, open_store):
    store = open_store()
    waiting = Waiting(logged(message_id="a" * 32, at=NOW), b"{}", NOW, NOW, NOW + 60)
    store.put([waiting], NOW)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    kind = "BLOB" if engine.dialect.name == "sqlite" else "BYTEA"
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE outbox ADD COLUMN payload {kind}"))
        connection.execute(text("UPDATE outbox SET payload = (SELECT content FROM payloads)"))
        connection.execute(text("DROP TABLE payloads"))
        number = MIGRATIONS.index(_keep_payloads_apart)
        connection.execute(text(f"DELETE FROM schema_version WHERE version > {number}"))
    engine.dispose()
    (claimed,) = open_store().claim(
        "example.com", "default", "me", NOW, NOW + 60, limit=1, max_bytes=1
    )
    assert claimed.payload == b"{}"


def test_many_that_start_at_once_make_one_schema(url, open_store):
    opened = []
    in_threads(8, lambda _: opened.append(open_store()))
    for store in opened:
        store.check()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        versions = connection.execute(text("SELECT version FROM schema_version")).scalars().all()
    engine.dispose()
    assert versions == list(range(1, len(MIGRATIONS) + 1))


def test_a_database_of_an_older_version_is_brought_up_to_date(url, open_store, monkeypatch):
    open_store()
    added = lambda connection: connection.execute(text("CREATE TABLE later (id INTEGER)"))  # noqa: E731
    monkeypatch.setattr("email_services.store.MIGRATIONS", (*MIGRATIONS, added))
    open_store()
    open_store().check()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM later")).scalar() == 0
    engine.dispose()


def test_bringing_a_big_database_up_to_date_may_take_its_time(postgresql, monkeypatch):
    with contextlib.closing(Store(postgresql)):
        pass
    monkeypatch.setattr("email_services.store.engines.PostgreSQL.silence_seconds", 1)
    monkeypatch.setitem(POSTGRESQL, "options", "-c statement_timeout=500")
    slow = lambda connection: connection.execute(text("SELECT pg_sleep(1.5)"))  # noqa: E731
    monkeypatch.setattr("email_services.store.MIGRATIONS", (*MIGRATIONS, slow))
    with contextlib.closing(Store(postgresql)) as store:
        assert store._is_migrated
        with store._engine.connect() as connection:
            timeout = connection.execute(text("SHOW statement_timeout")).scalar()
        assert timeout == "500ms", "messages wait no longer than ever"


def everything(store) -> list:
    return [
        store.check,
        lambda: store.service_states("example.com"),
        lambda: store.change_service("example.com", "a", lambda _: (RESTING, ""), NOW),
        lambda: store.service_changes("example.com"),
        lambda: store.counted("example.com", NOW),
        lambda: store.log_messages([logged()]),
        lambda: store.log_outcomes([logged()]),
        lambda: store.messages("example.com", NOW),
        lambda: reserve(store),
        lambda: store.settle_keys("example.com", NOW, {"k": {}}),
        lambda: store.settle_keys("example.com", NOW, {"k": None}),
        lambda: store.secret("a"),
    ]


AWAY = [
    "sqlite:////no/such/folder/state.sqlite3",
    "postgres://user:secret@127.0.0.1:1/db",
    "postgresql://user:secret@127.0.0.1:1/db",
]


@pytest.mark.parametrize("away", AWAY)
def test_a_database_that_is_away_is_an_error_and_no_crash(away, caplog):
    with contextlib.closing(Store(away)) as store:
        for ask in everything(store):
            with pytest.raises(StoreUnavailable) as caught:
                ask()
            assert "secret" not in f"{caught.value} {caught.value.__cause__}"
    assert "secret" not in caplog.text


def test_a_database_that_was_away_at_the_start_is_used_when_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr("email_services.store.database.AWAY_SECONDS", 0)
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/late/state.sqlite3")) as store:
        with pytest.raises(StoreUnavailable):
            store.messages("example.com", NOW)
        (tmp_path / "late").mkdir()
        assert store.messages("example.com", NOW) == []


def test_a_database_that_is_damaged_is_an_error_and_no_crash(tmp_path):
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/state.sqlite3")) as store:
        store.close()
        (tmp_path / "state.sqlite3").write_bytes(b"this is no database" * 1000)
        for ask in everything(store):
            with pytest.raises(StoreUnavailable):
                ask()


def test_a_database_that_is_away_is_waited_for_once(tmp_path, monkeypatch):
    attempts = []

    def silent(*_, **__):
        attempts.append(1)
        raise sqlite3.OperationalError("timeout")

    now = [NOW]
    clock = SimpleNamespace(monotonic=lambda: now[-1])
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/state.sqlite3")) as store:
        monkeypatch.setattr("email_services.store.database.time", clock)
        store.check()
        store._engine.dispose()
        monkeypatch.setattr(sqlite3, "connect", silent)
        for ask in everything(store):
            with pytest.raises(StoreUnavailable):
                ask()
        assert len(attempts) == 1
        now.append(NOW + AWAY_SECONDS)
        with pytest.raises(StoreUnavailable):
            store.check()
        assert len(attempts) == 2, "and again after a moment"


def test_a_locked_database_is_an_error_and_readers_do_not_mind(tmp_path, monkeypatch):
    monkeypatch.setattr("email_services.store.database.WAIT_SECONDS", 0)
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    engine = create_engine(url)
    with contextlib.closing(Store(url)) as store, engine.connect() as other:
        other.execute(text("BEGIN IMMEDIATE"))
        with pytest.raises(StoreUnavailable):
            store.log_messages([logged()])
        assert store.messages("example.com", NOW) == []
    engine.dispose()


@pytest.mark.parametrize("url", ["", "nonsense", "nosuch://host/db", "sqlite"])
def test_a_url_that_is_none_stops_the_start(url):
    with pytest.raises(ConfigError):
        Store(url)


def test_ci_has_postgresql(request):
    if os.environ.get("CI"):
        assert request.getfixturevalue("postgresql")


def test_the_store_that_keeps_nothing_of_the_benchmarks_has_all_that_a_send_calls(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    assert importlib.import_module("variants").missing() == set()
