"""What became of the last day's messages, counted; on SQLite and PostgreSQL."""

from __future__ import annotations

import itertools
import json

import pytest
from sqlalchemy import event
from test_store import open_store, store, url  # noqa: F401 - fixtures

from email_services.exceptions import SearchTooSlow
from email_services.store import Count, LoggedMessage
from email_services.store import counts as counting
from email_services.store.counts import DAY, HOUR, MINUTE

NOW = 1_800_000_030.0  # half a minute after one has begun
MINUTE_NOW = int(NOW) // MINUTE
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def never_slow(monkeypatch):
    monkeypatch.setattr(counting, "SLOW_SECONDS", 1e9)


def logged(at: float, outcome: str, *tried: str, **columns) -> LoggedMessage:
    """A message that was tried at some services, the last of which sent it if anybody did."""
    attempts = [{"service": name, "outcome": "not sent", "reason": ""} for name in tried]
    values = {"email_domain": "example.com", "from_email": "", "recipients": ["a@b"], "subject": ""}
    sender = tried[-1] if tried and outcome == "sent" else None
    return LoggedMessage(
        f"{next(NUMBERS):032x}",
        at,
        **{**values, "outcome": outcome, "service_used": sender, "attempts": attempts, **columns},
    )


def counts_of(store, now: float = NOW) -> dict:  # noqa: F811 - not the fixture
    return {
        (MINUTE_NOW - c.minute, c.service, c.outcome, c.failed_over, c.possible_duplicate): c.number
        for c in store.counted("example.com", now).counts
    }


def statements(store) -> list:  # noqa: F811 - not the fixture
    asked = []
    event.listen(store._log, "before_cursor_execute", lambda *about: asked.append(about[2]))
    return asked


def test_messages_are_counted_by_minute_service_and_what_became_of_them(store):  # noqa: F811
    store.log_messages(
        [
            logged(NOW, "sent", "a"),
            logged(NOW - 29, "sent", "a"),
            logged(NOW - 31, "sent", "a"),
            logged(NOW, "sent", "a", "b"),
            logged(NOW, "sent", "aa", "a"),
            logged(NOW, "sent", "a", "a", possible_duplicate=True),
            logged(NOW, "not sent", "a", "b"),
            logged(NOW, "unknown", "a"),
            logged(NOW, "in progress", deadline=NOW - 1),  # cut off
            logged(NOW, "in progress", deadline=NOW + 1),
            logged(NOW, "sent", "a", email_domain="example.net"),
            logged(NOW - DAY - 31, "sent", "a"),
        ]
    )
    assert counts_of(store) == {
        (0, "a", "sent", False, False): 2,
        (1, "a", "sent", False, False): 1,
        (0, "b", "sent", True, False): 1,
        (0, "a", "sent", True, False): 1,
        (0, "a", "sent", False, True): 1,
        (0, None, "not sent", False, False): 1,
        (0, None, "unknown", False, False): 2,
        (0, None, "in progress", False, False): 1,
    }


def test_what_is_over_is_counted_once_and_what_may_change_each_time(store):  # noqa: F811
    old = logged(NOW - HOUR, "in progress", deadline=NOW + 60)
    store.log_messages([logged(NOW - n * HOUR, "sent", "a") for n in range(2, 20)])
    store.log_messages([old, logged(NOW, "sent", "a")])
    first, asked = counts_of(store), statements(store)
    assert first[60, None, "in progress", False, False] == 1
    assert counts_of(store) == first
    assert len(asked) == 2, "that of the unfinished one, and the last three minutes"
    store.log_messages([logged(NOW - 90, "sent", "b")])
    store.log_outcomes([LoggedMessage(**{**vars(old), "outcome": "sent", "service_used": "a"})])
    later = counts_of(store, NOW + 30)
    assert later[1, "b", "sent", False, False] == 1
    assert (60, None, "in progress", False, False) not in later
    asked.clear()
    assert counts_of(store, NOW + 30) == later
    assert len(asked) == 1


def test_what_is_older_than_a_day_is_forgotten(store):  # noqa: F811
    store.log_messages([logged(NOW - n * HOUR, "sent", "a") for n in (1, 20)])
    assert len(counts_of(store)) == 2
    assert len(counts_of(store, NOW + 10 * HOUR)) == 1
    assert min(store._settled["example.com"]) >= (NOW - 14 * HOUR) // MINUTE


def test_two_processes_count_the_same(open_store):  # noqa: F811
    stores = [open_store(), open_store()]
    for at in (NOW - HOUR, NOW - 10, NOW):
        stores[0].log_messages([logged(at, "sent", "a")])
        assert counts_of(stores[0]) == counts_of(stores[1])


def too_slow_before(start: float, monkeypatch):
    """Have the database be too slow for what is older than that."""
    minutes = counting.Counts._minutes

    def slow(self, email_domain, first, *rest):
        if first * MINUTE < start:
            raise SearchTooSlow
        return minutes(self, email_domain, first, *rest)

    monkeypatch.setattr(counting.Counts, "_minutes", slow)


def test_where_a_day_takes_too_long_less_is_counted_and_said_to_be(store, monkeypatch):  # noqa: F811
    store.log_messages([logged(NOW - n * HOUR, "sent", "a") for n in range(20)])
    with monkeypatch.context() as patch:
        too_slow_before(NOW - 2 * HOUR, patch)
        counted = store.counted("example.com", NOW)
    assert len(counted.counts) == 2, "the last hour, which is counted before the rest"
    assert counted.since <= NOW - HOUR
    assert len(store.counted("example.com", NOW).counts) == 20, "it goes on where it was"
    too_slow_before(NOW + HOUR, monkeypatch)
    with pytest.raises(SearchTooSlow):
        store.counted("example.com", NOW)


def test_what_takes_long_to_count_is_used_again_for_a_while(store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(counting, "SLOW_SECONDS", -1)
    monkeypatch.setattr(counting, "REUSED_TIMES", 1e9)
    store.log_messages([logged(NOW, "sent", "a")])
    first, asked = counts_of(store), statements(store)
    store.log_messages([logged(NOW, "sent", "a")])
    assert counts_of(store) == first
    assert asked == []


def test_a_count_is_of_one_kind(store):  # noqa: F811
    store.log_messages([logged(NOW, "sent", "a")])
    (count,) = store.counted("example.com", NOW).counts
    assert count == Count(
        MINUTE_NOW, "a", "sent", failed_over=False, possible_duplicate=False, number=1
    )
    assert json.dumps(vars(count)), "plain values, whatever the database"
