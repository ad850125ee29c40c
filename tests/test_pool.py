from __future__ import annotations

import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import make_message

from email_services import bulkhead
from email_services.abstract import AbstractEmailService, Acceptance, ServiceSettings
from email_services.drill import Drill
from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
    StoreUnavailable,
    UnknownService,
)
from email_services.health import FAILURES_TO_REST, FIRST_ACCOUNT_REST_SECONDS, JITTER
from email_services.ledger import Once
from email_services.pool import LAST_RESORTS_AT_ONCE, PooledEmailService
from email_services.rounds import NO_ROOM
from email_services.store import Store
from endpoints.sending.answers import delivery_as_dict


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scripted(AbstractEmailService):
    """A provider of the test's own: takes `seconds`, then accepts, or fails with `fault`."""

    def __init__(self, name, clock, fault=None, priority=0, seconds=0.0, timeout=10):
        settings = ServiceSettings(priority_value=priority, timeout_seconds=timeout)
        super().__init__(name, "example.com", settings)
        self.clock, self.fault, self.seconds = clock, fault, seconds
        self.timeouts = []

    def send(self, message, timeout):  # noqa: ARG002
        self.timeouts.append(timeout)
        self.clock.now += min(self.seconds, timeout)
        if self.fault:
            raise self.fault
        return Acceptance(f"id at {self.name}")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_pool(store, clock):
    def make(*services, **options) -> PooledEmailService:
        return PooledEmailService("example.com", services, store, clock=clock, **options)

    return make


def test_the_highest_priority_is_used_alone(make_pool, clock):
    low, high = Scripted("low", clock, priority=1), Scripted("high", clock, priority=1.5)
    message = make_message()
    delivery = make_pool(low, high).send(message)
    assert delivery_as_dict(delivery) == {
        "result": "success",
        "message_id": message.message_id,
        "service_used": "high",
        "service_message_id": "id at high",
        "services_unsuccessful": {},
        "attempts": [
            {"service": "high", "outcome": "sent", "code": "", "reason": "", "milliseconds": 0}
        ],
        "possible_duplicate": False,
    }
    assert low.timeouts == []


NOT_SENT = [
    MessageRejected("no"),
    AccountRefused("no"),
    RateLimited("no", 60),
    ServiceUnavailable("no"),
]


@pytest.mark.parametrize("fault", NOT_SENT, ids=lambda fault: type(fault).__name__)
def test_a_definite_refusal_fails_over(fault, make_pool, clock):
    first = Scripted("first", clock, fault, priority=2, seconds=0.25)
    second = Scripted("second", clock, priority=1, seconds=0.5)
    answer = delivery_as_dict(make_pool(second, first).send(make_message()))
    assert answer["service_used"] == "second"
    assert answer["services_unsuccessful"] == {"first": "no"}
    assert answer["possible_duplicate"] is False
    assert answer["attempts"] == [
        {
            "service": "first",
            "outcome": "not sent",
            "code": fault.code,
            "reason": "no",
            "milliseconds": 250,
        },
        {"service": "second", "outcome": "sent", "code": "", "reason": "", "milliseconds": 500},
    ]


def test_an_unknown_outcome_fails_over_with_a_flag(make_pool, clock):
    first = Scripted("first", clock, OutcomeUnknown("silence"), priority=2)
    answer = delivery_as_dict(make_pool(first, Scripted("second", clock)).send(make_message()))
    assert answer["result"] == "success"
    assert answer["possible_duplicate"] is True
    assert [attempt["outcome"] for attempt in answer["attempts"]] == ["unknown", "sent"]


def test_an_unknown_outcome_stops_where_the_domain_says_so(make_pool, clock):
    first = Scripted("first", clock, OutcomeUnknown("silence"), priority=2)
    second = Scripted("second", clock)
    message = make_message()
    answer = delivery_as_dict(make_pool(first, second, on_unknown="stop").send(message))
    assert answer == {
        "result": "unknown",
        "error": "The message may have been sent: a service took it and did not answer.",
        "code": "unknown_outcome",
        "message_id": message.message_id,
        "services_unsuccessful": {"first": "silence"},
        "attempts": [
            {
                "service": "first",
                "outcome": "unknown",
                "code": "unknown_outcome",
                "reason": "silence",
                "milliseconds": 0,
            }
        ],
    }
    assert second.timeouts == []


OUTCOMES = [
    ([ServiceUnavailable("a"), ServiceUnavailable("b")], "not sent", False),
    ([MessageRejected("a"), ServiceUnavailable("b")], "not sent", False),
    ([MessageRejected("a"), MessageRejected("b")], "not sent", True),
    ([OutcomeUnknown("a"), ServiceUnavailable("b")], "unknown", False),
    ([OutcomeUnknown("a"), MessageRejected("b")], "unknown", False),
    ([AccountRefused("a"), OutcomeUnknown("b")], "unknown", False),
]


@pytest.mark.parametrize(("faults", "outcome", "rejected"), OUTCOMES)
def test_what_became_of_it_is_the_honest_sum(faults, outcome, rejected, make_pool, clock):
    services = [
        Scripted(name, clock, fault, priority=-index)
        for index, (name, fault) in enumerate(zip("ab", faults, strict=True))
    ]
    delivery = make_pool(*services).send(make_message())
    assert (delivery.outcome, delivery.rejected) == (outcome, rejected)
    assert delivery.services_unsuccessful == {"a": "a", "b": "b"}


def test_a_bug_is_no_failover(make_pool, clock):
    second = Scripted("second", clock)
    pool = make_pool(Scripted("first", clock, KeyError("bug"), priority=2), second)
    with pytest.raises(KeyError, match="bug"):
        pool.send(make_message())
    assert second.timeouts == []


def test_equals_share_the_load(make_pool, clock):
    pool = make_pool(*(Scripted(name, clock, priority=1) for name in "abc"), Scripted("d", clock))
    used = Counter(pool.send(make_message()).service_used for _ in range(300))
    assert sorted(used) == ["a", "b", "c"]
    assert min(used.values()) > 50


def test_one_service_alone_has_no_backup(make_pool, clock):
    first = Scripted("first", clock, ServiceUnavailable("down"), priority=2)
    second = Scripted("second", clock)
    pool = make_pool(first, second)
    assert pool.send(make_message(), only=pool.service("FIRST")).outcome == "not sent"
    assert second.timeouts == []


def test_a_service_that_is_not_there_is_an_error(make_pool, clock):
    with pytest.raises(UnknownService, match="no service 'nobody'"):
        make_pool(Scripted("first", clock)).service("nobody")


def test_a_simulated_failure_fails_without_the_provider(make_pool, clock, store):
    first, second = Scripted("first", clock, priority=2), Scripted("second", clock)
    pool = make_pool(first, second)
    pool.breakers.set_drill(first, lambda *_: Drill())
    answer = delivery_as_dict(pool.send(make_message()))
    assert answer["services_unsuccessful"] == {"first": "Simulated failure."}
    assert answer["service_used"] == "second"
    assert first.timeouts == []


def test_a_simulated_failure_elsewhere_changes_nothing(make_pool, clock, store):
    first = Scripted("first", clock)
    other = PooledEmailService("example.net", [first], store)
    other.breakers.set_drill(first, lambda *_: Drill())
    assert make_pool(first).send(make_message()).outcome == "sent"


def test_a_send_goes_out_without_the_store(clock, tmp_path, caplog):
    store = Store(f"sqlite:///{tmp_path}/no/such/folder/state.sqlite3")
    pool = PooledEmailService("example.com", [Scripted("first", clock)], store, clock=clock)
    caplog.clear()
    assert pool.send(make_message()).outcome == "sent"
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    with pytest.raises(StoreUnavailable):
        pool.send(make_message(), once=Once("key", "fingerprint"))


# deadline, then (timeout, seconds taken) of each service, then the timeouts they are given
TIMEOUTS = [
    (25, [(10, 0)], [10]),
    (25, [(10, 0), (10, 0)], [10, 10]),
    (25, [(10, 99), (10, 99)], [10, 10]),
    (25, [(10, 99), (10, 99), (10, 99)], [25 / 3, 25 / 3, 25 / 3]),
    (25, [(10, 0), (10, 99), (10, 99)], [25 / 3, 10, 10]),
    (6, [(10, 99), (10, 99)], [3, 3]),
    (6, [(1, 99), (10, 99)], [1, 5]),
    (6, [(10, 99), (1, 99)], [5, 1]),
]


@pytest.mark.parametrize(("deadline", "services", "expected"), TIMEOUTS)
def test_the_deadline_is_shared_fairly(deadline, services, expected, make_pool, clock):
    scripted = [
        Scripted(f"s{n}", clock, OutcomeUnknown("slow"), -n, seconds, timeout)
        for n, (timeout, seconds) in enumerate(services)
    ]
    make_pool(*scripted, deadline_seconds=deadline).send(make_message())
    assert [service.timeouts for service in scripted] == [[pytest.approx(t)] for t in expected]
    assert clock.now - 1000 <= deadline + 1e-6


def test_a_service_for_which_no_time_is_left_is_named(make_pool, clock):
    class Late(Scripted):
        def send(self, message, timeout):  # noqa: ARG002
            self.clock.now += 100  # what no real service can do: its transport holds the deadline
            raise ServiceUnavailable("late")

    second = Scripted("second", clock)
    delivery = make_pool(Late("first", clock, priority=2), second).send(make_message())
    assert (
        delivery.services_unsuccessful["second"]
        == "Not tried: too little of the deadline was left."
    )
    assert (delivery.outcome, second.timeouts) == ("not sent", [])


class Overlong(Scripted):
    """Takes its `seconds`, whatever it is given."""

    def send(self, message, timeout):  # noqa: ARG002
        self.clock.now += self.seconds
        raise self.fault


# deadline, services, seconds that the first one took of it, and what the second one is given
LAST_SECONDS = [
    (25, 2, 23.5, [1.5]),
    (25, 2, 24.2, []),
    (25, 2, 24.9, []),
    (25, 5, 24.2, []),
    (1.2, 2, 0.8, [0.4]),  # which is enough where all is short
    (1.2, 2, 1.0, []),
]


@pytest.mark.parametrize(("deadline", "count", "taken", "given"), LAST_SECONDS)
def test_no_attempt_begins_without_time_enough_for_it(
    deadline, count, taken, given, make_pool, clock
):
    first = Overlong("first", clock, ServiceUnavailable("late"), 1, taken)
    services = [Scripted(f"s{n}", clock, priority=-n) for n in range(1, count)]
    pool = make_pool(first, *services, deadline_seconds=deadline)
    delivery = pool.send(make_message())
    assert services[0].timeouts == [pytest.approx(seconds) for seconds in given]
    if not given:
        reason = "Not tried: too little of the deadline was left."
        assert delivery.services_unsuccessful["s1"] == reason
        assert delivery.attempts[1].code == "too_late"
        assert delivery.outcome == "not sent"


class Silent(Scripted):
    """Takes all the time it is given, and has not answered then."""

    def send(self, message, timeout):
        self.fault = OutcomeUnknown("silence")
        self.fault.waited = self.seconds = timeout
        return super().send(message, timeout)


# deadline, how many services, the seconds that the first took of it, and who is blamed
SILENT = {
    "all had their own timeout": (25, 2, 10, {"s0", "s1"}),
    "all had their share": (25, 3, 25 / 3, {"s0", "s1", "s2"}),
    "the deadline is short for all": (2, 2, 1, {"s0", "s1"}),
    "the second had nearly all of its time": (25, 2, 15.5, {"s0", "s1"}),
    "the second had what the first left": (25, 2, 20, {"s0"}),
}


@pytest.mark.parametrize("name", SILENT)
def test_nobody_is_blamed_for_what_our_deadline_cut_short(name, make_pool, clock, store):
    deadline, count, taken, blamed = SILENT[name]
    first = Overlong("s0", clock, OutcomeUnknown("late"), 1, taken)
    others = [Silent(f"s{n}", clock, priority=-n) for n in range(1, count)]
    delivery = make_pool(first, *others, deadline_seconds=deadline).send(make_message())
    assert {attempt.outcome for attempt in delivery.attempts} == {"unknown"}
    states = store.service_states("example.com")
    assert {name for name, state in states.items() if state.last_errors} == blamed


def test_what_is_no_lack_of_time_is_the_services_in_the_shortest_attempt(make_pool, clock, store):
    first = Overlong("first", clock, OutcomeUnknown("late"), 1, 20)
    second = Scripted("second", clock, OutcomeUnknown("The connection was cut."))
    make_pool(first, second).send(make_message())
    assert second.timeouts == [pytest.approx(5)]
    assert set(store.service_states("example.com")) == {"first", "second"}


LEVELS = [
    (MessageRejected("it quotes the message"), "WARNING", False),
    (AccountRefused("quota"), "ERROR", True),
    (RateLimited("slow down"), "WARNING", True),
    (ServiceUnavailable("down"), "WARNING", True),
    (OutcomeUnknown("silence"), "WARNING", True),
]


@pytest.mark.parametrize(("fault", "level", "in_log"), LEVELS)
def test_a_fault_is_logged_as_loud_as_it_is_urgent(fault, level, in_log, make_pool, clock, caplog):
    caplog.set_level(logging.DEBUG)
    message = make_message()
    make_pool(Scripted("first", clock, fault)).send(message)
    (record,) = [r for r in caplog.records if r.name == "email_services.pool"]
    assert record.levelname == level
    assert (fault.reason in record.message) is in_log
    assert message.message_id in record.message


class Held(Scripted):
    """A service that answers when the test lets it."""

    def __init__(self, name, clock, fault=None, priority=0):
        super().__init__(name, clock, fault, priority)
        self.asked = threading.Semaphore(0)
        self.may_answer = threading.Event()

    def send(self, message, timeout):
        self.asked.release()
        assert self.may_answer.wait(20)
        return super().send(message, timeout)


@pytest.fixture
def senders():
    with ThreadPoolExecutor(8) as threads:
        yield threads


def test_a_full_service_from_which_nothing_comes_back_is_passed_by(make_pool, clock, senders):
    first, second = Held("first", clock, priority=2), Scripted("second", clock, priority=1)
    pool = make_pool(first, second, threads=4)
    held = [senders.submit(pool.send, make_message()) for _ in range(3)]
    assert all(first.asked.acquire(timeout=20) for _ in held)
    clock.now += bulkhead.STUCK_SECONDS
    delivery = pool.send(make_message())
    first.may_answer.set()
    assert delivery.service_used == "second"
    assert delivery.services_unsuccessful == {"first": NO_ROOM}
    assert [attempt.code for attempt in delivery.attempts] == ["no_room", ""]
    assert {answer.result(20).service_used for answer in held} == {"first"}
    assert pool.send(make_message()).service_used == "first", "and nobody was blamed"


def test_where_every_service_is_full_the_answer_comes_at_once(make_pool, clock, senders):
    only = Held("only", clock)
    pool = make_pool(only, threads=2)
    held = [senders.submit(pool.send, make_message()) for _ in range(2)]
    assert all(only.asked.acquire(timeout=20) for _ in held)
    clock.now += bulkhead.STUCK_SECONDS
    delivery = pool.send(make_message())
    only.may_answer.set()
    assert (delivery.outcome, delivery.code, delivery.retry_after) == ("not sent", "busy", 1)
    assert {answer.result(20).outcome for answer in held} == {"sent"}


def test_a_service_that_rests_is_asked_as_the_last_resort_by_a_few_at_a_time(
    make_pool, clock, senders
):
    only = Held("only", clock, AccountRefused("key"))
    pool = make_pool(only, now=clock)
    only.may_answer.set()
    pool.send(make_message())  # it rests now
    only.may_answer.clear()
    assert only.asked.acquire(timeout=20)
    few = [senders.submit(pool.send, make_message()) for _ in range(LAST_RESORTS_AT_ONCE)]
    assert all(only.asked.acquire(timeout=20) for _ in few)
    delivery = pool.send(make_message())
    only.may_answer.set()
    assert (delivery.outcome, delivery.code) == ("not sent", "unavailable")
    assert delivery.services_unsuccessful["only"].startswith("It rests for ")
    assert delivery.retry_after >= FIRST_ACCOUNT_REST_SECONDS
    for answer in few:
        assert [attempt.reason for attempt in answer.result(20).attempts] == ["key"]


def limited(seconds: float | None = None) -> RateLimited:
    return RateLimited("slower", seconds)


def within_jitter(seconds: float) -> object:
    return pytest.approx(seconds * (1 + JITTER / 2), rel=JITTER / 2)


def test_where_all_limit_the_rate_the_answer_says_when_the_first_may_be_asked_again(
    make_pool, clock
):
    first = Scripted("first", clock, limited(600), priority=2)
    second = Scripted("second", clock, limited(60), priority=1)
    pool = make_pool(first, second, now=clock)
    delivery = pool.send(make_message())
    assert (delivery.outcome, delivery.code) == ("not sent", "unavailable")
    assert delivery.retry_after == within_jitter(60)
    clock.now += 30
    assert 30 <= pool.send(make_message()).retry_after <= 60 * (1 + JITTER)


@pytest.mark.parametrize("other", [ServiceUnavailable("down"), OutcomeUnknown("silent")])
def test_where_one_may_be_asked_at_any_time_there_is_no_need_to_wait(other, make_pool, clock):
    first = Scripted("first", clock, limited(60), priority=2)
    second = Scripted("second", clock, other, priority=1)
    assert make_pool(first, second, now=clock).send(make_message()).retry_after is None


def test_who_refuses_the_message_itself_is_not_waited_for(make_pool, clock):
    first = Scripted("first", clock, limited(60), priority=2)
    second = Scripted("second", clock, MessageRejected("no"), priority=1)
    delivery = make_pool(first, second, now=clock).send(make_message())
    assert delivery.retry_after == within_jitter(60)


def test_one_service_that_limits_the_rate_is_waited_for_where_no_other_was_to_be_asked(
    make_pool, clock
):
    first = Scripted("first", clock, limited(60), priority=2)
    pool = make_pool(first, Scripted("second", clock, priority=1), now=clock)
    assert pool.send(make_message(), first).retry_after == within_jitter(60)
    assert pool.send(make_message()).service_used == "second"


def test_a_rest_after_an_outage_is_a_guess_and_nobody_is_told_to_wait_for_it(make_pool, clock):
    pool = make_pool(Scripted("only", clock, ServiceUnavailable("down")), now=clock)
    for _ in range(FAILURES_TO_REST + 1):
        assert pool.send(make_message()).retry_after is None


def test_of_a_batch_one_message_is_the_last_resort_for_all(make_pool, clock):
    only = Scripted("only", clock, AccountRefused("key"))
    pool = make_pool(only, now=clock)
    pool.send(make_message())
    deliveries = pool.send_all([make_message() for _ in range(20)])
    assert len(only.timeouts) == 2, "the one that made it rest, and the one that finds out"
    assert {delivery.outcome for delivery in deliveries} == {"not sent"}
    only.fault = None
    deliveries = pool.send_all([make_message() for _ in range(20)])
    assert {delivery.outcome for delivery in deliveries} == {"sent"}
