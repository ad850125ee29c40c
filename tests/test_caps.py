"""What a service is handed stays under its caps, whoever hands it over."""

from __future__ import annotations

import itertools

import pytest
from conftest import make_message
from test_batch import Scripted

from email_services.abstract import Acceptance, ServiceSettings
from email_services.capabilities import Capabilities
from email_services.caps import Caps, Use, give_back, take
from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    ServiceUnavailable,
    StoreUnavailable,
)
from email_services.pool import PooledEmailService
from email_services.queue import Dispatcher
from email_services.rounds import AT_ONCE
from email_services.store import Store
from email_services.streams import BUILT_IN, Stream

NOON = 1_800_014_400.0 // 86400 * 86400 + 43200
DOMAIN = "example.com"


class Clock:
    def __init__(self):
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_pool(any_store, clock):
    def make(*services, **options) -> PooledEmailService:
        return PooledEmailService(DOMAIN, services, any_store, clock=clock, now=clock, **options)

    return make


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def any_store(request, store):
    if request.param == "SQLite":
        yield store
        return
    made = Store(request.getfixturevalue("postgresql"))
    yield made
    made.close()


def service(name, judge=None, priority=0, max_batch=1, **caps) -> Scripted:
    made = Scripted(name, judge, priority, max_batch)
    made.settings = ServiceSettings(priority_value=priority, **caps)
    return made


def codes(delivery):
    return [(a.service, a.outcome, a.code) for a in delivery.attempts]


# The rules


def granted(caps, asked):
    """Asked for (seconds, messages), how many may go each time."""
    use, numbers = Use(), []
    for n, (now, wanted) in enumerate(asked):
        use, grant = take(Use.from_stored(use.stored()), caps, wanted, now, (str(n), now + 10))
        numbers.append(grant.number)
    return numbers


ASKED = [
    (Caps(per_second=3), [(0, 2), (0.5, 2), (0.9, 1), (1.06, 5), (1.56, 5)], [2, 1, 0, 2, 1]),
    (Caps(per_second=1), [(0.99, 1), (1.01, 1), (1.98, 1), (2.05, 1)], [1, 0, 0, 1]),
    (Caps(per_day=3), [(0, 2), (50, 2), (86399, 1), (86400, 5)], [2, 1, 0, 3]),
    (Caps(per_second=2, per_day=3), [(0, 9), (2, 9), (4, 9)], [2, 1, 0]),
    (Caps(at_once=2), [(0, 5), (1, 1), (2, 1), (10.5, 1), (10.6, 1)], [5, 1, 0, 1, 0]),
    (Caps(), [(0, 1000)], [1000]),
    (Caps(per_second=2), [(100, 2), (40, 2)], [2, 2]),  # by a clock that is behind
]


@pytest.mark.parametrize(("caps", "asked", "expected"), ASKED)
def test_no_more_may_go_than_the_caps_say(caps, asked, expected):
    assert granted(caps, asked) == expected


@pytest.mark.parametrize("cap", [1, 7, 50])
def test_in_no_second_whatever_its_beginning_does_more_go_than_the_cap(cap):
    times = [n * 0.013 for n in range(400)]
    numbers = granted(Caps(per_second=cap), [(time, 1) for time in times])
    went = [time for time, number in zip(times, numbers, strict=True) if number]
    most = max(sum(start <= other < start + 1 for other in went) for start in went)
    assert most == cap
    assert len(went) >= cap * (times[-1] // 1.08)


def test_it_is_said_when_a_place_is_free_again_and_it_is_then():
    caps = Caps(per_second=1)
    use, _ = take(Use(), caps, 1, 100.03, ("a", 0))
    use, grant = take(use, caps, 1, 100.5, ("b", 0))
    assert grant.until == pytest.approx(101.05)
    assert take(use, caps, 1, grant.until + 0.001, ("c", 0))[1].number == 1


def test_a_call_that_is_over_gives_its_place_back():
    caps = Caps(at_once=1)
    use, _ = take(Use(), caps, 1, 0, ("a", 10))
    assert take(give_back(use, "a"), caps, 1, 1, ("b", 10))[1].number == 1


def test_processes_that_cannot_ask_each_other_stay_under_the_cap_together():
    assert Caps(50, None, 3).shared_by(4) == Caps(12, None, 1)


# A pool


def test_a_service_at_its_cap_is_passed_by_and_not_blamed(make_pool, any_store):
    first, second = service("first", priority=2, max_per_second=1), service("second")
    pool = make_pool(first, second)
    pool.send(make_message())
    delivery = pool.send(make_message())
    assert codes(delivery) == [("first", "skipped", "at_cap"), ("second", "sent", "")]
    assert delivery.attempts[0].reason == "Not tried: it is at its cap of 1 messages a second."
    assert any_store.service_states(DOMAIN) == {}


def test_a_dry_run_says_that_a_service_is_at_its_cap_and_counts_nothing(make_pool, clock):
    pool = make_pool(service("first", priority=2, max_per_second=1), service("second"))
    for _ in range(2):
        assert [step.decision for step in pool.plan(make_message())] == ["try", "try"]
    pool.send(make_message())
    first, second = pool.plan(make_message())
    assert (first.decision, second.decision) == ("skip", "try")
    assert first.reason == "Not tried: it is at its cap of 1 messages a second."
    clock.now += 1.06
    assert [step.decision for step in pool.plan(make_message())] == ["try", "try"]


def test_pools_of_several_workers_keep_a_cap_together_until_the_second_is_over(make_pool, clock):
    services = [service("first", max_per_second=2) for _ in range(3)]
    pools = [make_pool(one) for one in services]
    assert [pool.send(make_message()).outcome for pool in pools] == ["sent", "sent", "not sent"]
    clock.now += 1.06
    assert pools[2].send(make_message()).outcome == "sent"


@pytest.mark.parametrize(
    ("caps", "seconds"),
    [({"max_per_second": 1}, 1.05), ({"max_per_day": 1}, 43200)],
)
def test_when_all_are_at_their_caps_the_answer_says_until_when(make_pool, caps, seconds):
    pool = make_pool(service("first", **caps))
    pool.send(make_message())
    delivery = pool.send(make_message())
    assert (delivery.outcome, delivery.code) == ("not sent", "busy")
    assert delivery.retry_after == pytest.approx(seconds, abs=0.01)


def test_a_cap_of_a_day_says_nothing_of_when_the_service_that_failed_is_back(make_pool):
    capped = service("capped", max_per_day=1)
    pool = make_pool(service("down", lambda _: ServiceUnavailable("HTTP 503."), 1), capped)
    pool.send(make_message())
    assert pool.send(make_message()).retry_after == 15


def test_a_service_that_rests_is_not_asked_past_its_cap_as_a_last_resort(make_pool, clock):
    first = service("first", lambda _: ServiceUnavailable("HTTP 503."), max_per_day=5)
    pool = make_pool(first)
    for _ in range(8):
        pool.send(make_message())
    assert len(first.calls) == 5


def test_a_batch_is_split_to_what_there_is(make_pool):
    first, second = service("first", priority=2, max_batch=50, max_per_second=3), service("second")
    pool = make_pool(first, second)
    messages = [make_message(to_recipients=f"reader{n}@example.org") for n in range(5)]
    used = [delivery.service_used for delivery in pool.send_all(messages)]
    assert used == ["first"] * 3 + ["second"] * 2
    assert len(first.calls) == 1


def test_calls_under_way_are_counted_over_all_workers_and_given_back(make_pool):
    inner = []

    def meanwhile(message):
        inner.append(make_pool(service("first", max_at_once=1)).send(make_message()))
        return OutcomeUnknown("No answer.")

    pool = make_pool(service("first", meanwhile, max_at_once=1))
    pool.send(make_message())
    assert codes(inner[0]) == [("first", "skipped", "at_cap")]
    pool.send(make_message())
    assert len(inner) == 2


def test_whether_a_service_is_back_is_the_next_messages_to_find_out_where_a_cap_held_one_up(
    make_pool, clock
):
    answers = iter([AccountRefused("Wrong key.")])
    first = service("first", lambda _: next(answers, Acceptance("id")), 1, max_at_once=1)
    pool = make_pool(first, service("second"))
    pool.send(make_message())
    clock.now += 3600
    held_up = []

    def meanwhile(_):
        held_up.append(pool.send(make_message()))
        return MessageRejected("No.")

    same = service("first", meanwhile, max_at_once=1)
    make_pool(same).send(make_message(), only=same)
    assert codes(held_up[0]) == [("first", "skipped", "at_cap"), ("second", "sent", "")]
    assert pool.send(make_message()).service_used == "first"


def test_while_the_database_is_away_a_process_keeps_to_its_part(make_pool, any_store, monkeypatch):
    def away(*_):
        raise StoreUnavailable("Away.")

    monkeypatch.setattr(any_store, "change_use", away)
    pool = make_pool(service("first", max_per_second=8), processes=4)
    assert [pool.send(make_message()).outcome for _ in range(3)] == ["sent", "sent", "not sent"]


@pytest.mark.parametrize("caps", [{}, {"max_per_second": 5}])
def test_only_a_capped_service_costs_a_look_at_what_it_was_handed(
    make_pool, any_store, monkeypatch, caps
):
    looks, change_use = [], any_store.change_use
    monkeypatch.setattr(
        any_store, "change_use", lambda *given: (looks.append(given), change_use(*given))
    )
    make_pool(service("first", **caps)).send(make_message())
    assert len(looks) == bool(caps)


def test_a_process_that_found_a_cap_reached_does_not_look_again_at_once(
    make_pool, any_store, monkeypatch
):
    pool = make_pool(service("first", max_per_second=1))
    pool.send(make_message())
    pool.send(make_message())
    monkeypatch.setattr(any_store, "change_use", None)
    assert pool.send(make_message()).code == "busy"


# The queue


def queued(pool, number, stream="default"):
    messages = [make_message(stream=stream) for _ in range(number)]
    pool.accept(messages)
    return messages


@pytest.mark.parametrize(
    ("at_cap", "used"), [("next", ["first", "second"]), ("wait", ["first", "first"])]
)
def test_what_waits_is_taken_to_the_next_service_or_waits_as_the_stream_says(
    make_pool, any_store, clock, at_cap, used
):
    first, second = service("first", priority=2, max_per_second=1), service("second")
    streams = {**BUILT_IN, "codes": Stream("codes", at_cap=at_cap)}
    pool = make_pool(first, second, streams=streams)
    messages = queued(pool, 2, "codes")
    dispatcher = Dispatcher([pool], any_store, now=clock)
    dispatcher.deliver_due()
    clock.now += 1.5
    dispatcher.deliver_due()
    found = [
        any_store.messages(DOMAIN, clock.now, message_id=m.message_id)[0].service_used
        for m in messages
    ]
    assert sorted(found) == used


def test_what_waits_goes_out_at_the_pace_of_the_cap(make_pool, any_store, clock):
    first = service("first", max_per_second=4)
    pool = make_pool(first)
    queued(pool, 40)
    dispatcher = Dispatcher([pool], any_store, now=clock)
    counts = []
    for _ in itertools.repeat(None, 40):
        before = len(first.calls)
        dispatcher.deliver_due()
        counts.append(len(first.calls) - before)
        clock.now += 1.06
        if len(first.calls) == 40:
            break
    assert max(counts) == 4
    assert len(first.calls) == 40
    assert len(counts) <= 16


@pytest.mark.parametrize("reason", ["is asked for by name", "alone can carry it"])
def test_what_waits_for_the_only_service_it_may_go_through_holds_up_no_other(
    make_pool, any_store, clock, reason
):
    first, second = service("first", priority=2, max_per_second=1), service("second")
    second.capabilities = Capabilities(headers=0)
    pool = make_pool(first, second)
    headers = {"X-Shop": "1"} if reason == "alone can carry it" else {}
    many = [make_message(stream="default", headers=headers) for _ in range(3 * AT_ONCE)]
    pool.accept(many, only=None if headers else first)
    clock.now += 0.1
    other = make_message(stream="default")
    pool.accept([other])
    dispatcher = Dispatcher([pool], any_store, now=clock)
    for _ in range(4):
        dispatcher.deliver_due()
        clock.now += 0.01
    found = any_store.messages(DOMAIN, clock.now, message_id=other.message_id)
    assert found[0].service_used == "second"
