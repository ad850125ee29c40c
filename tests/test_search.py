"""Messages found by words, tags and outcomes, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, text

from email_services.exceptions import SearchTooSlow
from email_services.store import LoggedMessage, Store, search
from email_services.store.words import asked_words

NOW = 1_800_000_000.0


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state.sqlite3"
    return request.getfixturevalue("postgresql")


@pytest.fixture
def store(url):
    with contextlib.closing(Store(url)) as opened:
        yield opened


@pytest.fixture(params=["indexed", "in part", "not indexed"])
def settle(request, store, monkeypatch):
    """Have what was logged be in the index, be read one by one, or some of it so and some so."""
    monkeypatch.setattr(search, "READ_FIRST", 3)

    def index():
        store.index(NOW)
        store._indexer.join()

    def settled(messages):
        half = len(messages) // 2
        store.log_outcomes(messages[:half])
        if request.param == "in part":
            index()
        store.log_outcomes(messages[half:])
        if request.param == "indexed":
            index()

    return settled


def message(number: int, subject: str = "Hello", **changes) -> LoggedMessage:
    values = {
        "email_domain": "example.com",
        "from_email": "shop@example.com",
        "recipients": [f"reader{number}@example.org"],
        "subject": subject,
        "outcome": "sent",
        "deadline": NOW + 30,
        "cc_from": 1,
        "bcc_from": 1,
    }
    return LoggedMessage(f"{number:032x}", **{"at": NOW + number, **values, **changes})


MESSAGES = [
    message(0, "Your order 42 is on its way"),
    message(1, "Ihre Bestellung für Müller & Söhne", names={"reader1@example.org": "Ada Lovelace"}),
    message(2, "تأكيد الطلب رقم ١٢٣"),
    message(3, "订单号已确认", tags=("order", "a b")),
    message(4, "Your order 421 is late", recipients=["ada.byron@sub.example.org"]),
    message(5, "Your order 42", email_domain="example.net", from_email="a@example.net"),
    message(6, "a_b 100%", outcome="not sent", tags=("late", "Order")),
    message(7, "Straße", from_name="Wir vom Laden", outcome="unknown"),
    message(8, "Your orders"),
    message(9, "Hello"),
    message(10, "Hello"),
    message(11, "Hello"),
]

FOUND = {
    "order 42": [4, 0],
    "ORDER": [8, 6, 4, 3, 0],
    "42 way": [0],
    "der": [],
    "muller": [1],
    "Müll": [1],
    "ada": [4, 1],
    "ada love": [1],
    "ada.byron@sub.example.org": [4],
    "byron@sub": [4],
    "الطلب": [2],
    "订单": [3],
    "单号": [3],
    "认": [3],
    "号单": [],
    "strasse": [7],
    "laden": [7],
    "100%": [6],
    "a b": [6, 4, 3, 1],
    '"': [],
    '" NOT *': [],
    "  ": list(range(11, 5, -1)) + list(range(4, -1, -1)),
    "zzz": [],
}


def numbers(found):
    return [int(m.message_id, 16) for m in found]


def test_words_are_found_by_their_beginning_whatever_the_case_accent_or_script(store, settle):
    settle(MESSAGES)
    for words, expected in FOUND.items():
        found = numbers(store.messages("example.com", NOW, words=words))
        assert found == expected, words
        assert store.count_messages("example.com", NOW, words=words) == len(expected), words


def test_pages_of_what_was_found_hold_each_message_once_in_order(store, settle):
    settle([message(n, "Hello" if n % 3 else "Order", at=NOW + n // 4) for n in range(40)])
    for words, expected in (("order", 14), ("hello", 26), ("reader", 40)):
        seen, place = [], None
        while page := store.messages("example.com", NOW, words=words, before=place, limit=4):
            seen += page
            place = (page[-1].at, page[-1].message_id)
        assert len(seen) == expected
        assert seen == sorted(seen, key=lambda m: (m.at, m.message_id), reverse=True)
        assert len({m.message_id for m in seen}) == expected


def test_words_go_with_everything_else_that_is_asked(store, settle):
    settle(MESSAGES)
    for wanted, expected in (
        ({"words": "late", "tag": "order"}, [6]),
        ({"tag": "order"}, [6, 3]),
        ({"tag": "Order"}, [6, 3]),
        ({"tag": "a b"}, [3]),
        ({"tag": "a"}, []),
        ({"words": "order", "outcome": "not sent"}, [6]),
        ({"words": "your", "recipient": "byron@sub"}, [4]),
        ({"words": "your", "since": NOW + 1}, [8, 4]),
        ({"words": "your", "until": NOW + 4}, [0]),
        ({"outcome": "unknown"}, [7]),
        ({"recipient": "reader1"}, [11, 10, 1]),
    ):
        assert numbers(store.messages("example.com", NOW, **wanted)) == expected, wanted
        assert store.count_messages("example.com", NOW, **wanted) == len(expected), wanted


def test_all_domains_are_searched_together_for_who_may_and_one_never_shows_another(store, settle):
    settle(MESSAGES)
    assert numbers(store.messages(None, NOW, words="order 42")) == [5, 4, 0]
    assert numbers(store.messages("example.net", NOW, words="order")) == [5]
    assert numbers(store.messages(None, NOW, limit=7)) == [11, 10, 9, 8, 7, 6, 5]
    assert numbers(store.messages(None, NOW, recipient="reader5@example.org")) == [5]
    assert store.count_messages(None, NOW) == 12


def test_more_than_some_thousands_are_not_counted_to_the_end(store, monkeypatch):
    monkeypatch.setattr(search, "MOST_COUNTED", 5)
    store.log_outcomes(MESSAGES)
    assert store.count_messages("example.com", NOW) == 6
    assert store.count_messages("example.com", NOW, words="hello") == 3


def test_a_count_that_takes_long_is_given_up(store, monkeypatch):
    store.log_outcomes(MESSAGES)
    monkeypatch.setattr(search, "_counted", slow)
    assert store.count_messages("example.com", NOW) is None


def slow(*_):
    raise SearchTooSlow


def test_a_message_in_progress_is_found_too_and_its_words_are_kept_when_it_is_over(store):
    begun = message(1, "Order", outcome="in progress")
    store.log_messages([begun])
    store.index(NOW)
    store._indexer.join()
    assert store.messages("example.com", NOW, words="order") == [begun]
    store.log_outcomes([sent := replace(begun, outcome="sent")])
    store.index(NOW)
    store._indexer.join()
    assert store.messages("example.com", NOW, words="order") == [sent]


def test_what_is_removed_leaves_the_index(store, url):
    store.log_outcomes(MESSAGES)
    store.index(NOW)
    store._indexer.join()
    store.remove_old(NOW + 40 * 24 * 3600)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM message_words")) == 0
    engine.dispose()


def test_workers_add_to_the_index_by_themselves(store, monkeypatch):
    monkeypatch.setattr(search, "INDEX_EVERY", 3)
    monkeypatch.setattr(search, "_read", lambda *_: [])
    monkeypatch.setattr(search, "READ_FIRST", 1)
    store.log_outcomes(MESSAGES)
    assert store.messages("example.com", NOW, words="order") == []
    for number in range(20, 23):
        store.log_messages([message(number, outcome="sent")])
    store._indexer.join()
    assert numbers(store.messages("example.com", NOW, words="order 42")) == [4, 0]


def test_messages_of_before_there_was_an_index_are_added(store, url):
    store.log_outcomes(MESSAGES)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        on = "" if url.startswith("sqlite") else "ON messages"
        connection.execute(text(f"DROP TRIGGER words_at_delete {on}"))
        connection.execute(text("DROP TABLE message_words"))
        connection.execute(text("DELETE FROM schema_version WHERE version > 9"))
    engine.dispose()
    with contextlib.closing(Store(url)) as newer:
        newer.check()
        newer._worker.join()
        assert numbers(newer.messages("example.com", NOW, words="order 42")) == [4, 0]
        with newer._reading() as connection:
            assert connection.scalar(text("SELECT count(*) FROM message_words")) == 12


def test_a_long_word_is_known_by_its_beginning():
    assert asked_words("x" * 1000) == ["x" * 40]
