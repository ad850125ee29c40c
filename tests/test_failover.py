"""Failover over many messages: resting, probing, recovering; keys; the log. Time is the test's."""

from __future__ import annotations

import threading
from dataclasses import asdict

import pytest
from conftest import make_message
from test_pool import Clock, Scripted

from email_services.abstract import Acceptance
from email_services.breakers import GRACE_SECONDS
from email_services.drill import Drill
from email_services.exceptions import (
    AccountRefused,
    KeyInProgress,
    KeyReused,
    MessageRejected,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
)
from email_services.guard import KeptBack
from email_services.health import (
    FAILURES_TO_REST,
    FIRST_ACCOUNT_REST_SECONDS,
    FIRST_REST_SECONDS,
    JITTER,
)
from email_services.ledger import Once
from email_services.pool import PooledEmailService
from endpoints.sending.answers import delivery_as_dict, plan_as_dict

JITTERED = 1 + JITTER


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def first(clock):
    return Scripted("first", clock, priority=2)


@pytest.fixture
def second(clock):
    return Scripted("second", clock, priority=1)


@pytest.fixture
def make_pool(store, clock):
    def make(*services, **options) -> PooledEmailService:
        return PooledEmailService("example.com", services, store, clock=clock, now=clock, **options)

    return make


@pytest.fixture
def pool(make_pool, first, second):
    return make_pool(first, second)


def send(pool, **fields):
    return pool.send(make_message(**fields))


def state_of(pool, store, name="first") -> str:
    state = store.service_states("example.com")[name]
    return pool.breakers.health_in(state, pool._now()).state(pool._now())


FAULTS = [
    (ServiceUnavailable("down"), FAILURES_TO_REST, FIRST_REST_SECONDS),
    (OutcomeUnknown("silence"), FAILURES_TO_REST, FIRST_REST_SECONDS),
    (AccountRefused("quota"), 1, FIRST_ACCOUNT_REST_SECONDS),
    (RateLimited("limit", 120), 1, 120),
]


@pytest.mark.parametrize(("fault", "failures", "rest"), FAULTS)
def test_a_service_at_fault_is_passed_by_probed_and_back(
    fault, failures, rest, pool, first, second, clock, store
):
    first.fault = fault
    for _ in range(50):
        assert send(pool).service_used == "second"
    assert len(first.timeouts) == failures, "no more messages wait on it than it takes to tell"
    clock.now += rest * JITTERED
    assert send(pool).service_used == "second"
    assert len(first.timeouts) == failures + 1, "one probe, which fails"
    for _ in range(10):
        send(pool)
    assert len(first.timeouts) == failures + 1
    clock.now += 2 * rest * JITTERED
    first.fault = None
    assert send(pool).service_used == "first", "the probe that succeeds is a real message"
    assert send(pool).service_used == "first", "and priority order is back at once"
    assert state_of(pool, store) == "working"


def test_one_bad_recipient_marks_nobody_dead(pool, first, second):
    first.fault = second.fault = MessageRejected("no such address")
    for _ in range(50):
        assert send(pool).rejected
    assert len(first.timeouts) == len(second.timeouts) == 50


def test_a_skipped_service_is_in_the_answer_with_its_reason(pool, first, clock):
    first.fault = AccountRefused("HTTP 401: Maximum credits exceeded")
    send(pool)
    clock.now += 10
    answer = delivery_as_dict(send(pool))
    assert answer["result"] == "success"
    skipped, sent = answer["attempts"]
    assert (skipped["service"], skipped["outcome"], skipped["code"], skipped["milliseconds"]) == (
        "first",
        "skipped",
        "resting",
        0,
    )
    assert skipped["reason"].startswith("It rests for ")
    assert skipped["reason"].endswith(
        "s more: account refused (HTTP 401: Maximum credits exceeded)"
    )
    assert answer["services_unsuccessful"] == {"first": skipped["reason"]}
    assert sent["outcome"] == "sent"


def test_when_all_rest_the_one_due_first_is_tried(pool, first, second, clock):
    first.fault, second.fault = AccountRefused("quota"), RateLimited("limit", 30)
    send(pool)
    tried = (len(first.timeouts), len(second.timeouts))
    clock.now += 1
    delivery = send(pool)
    assert [a.outcome for a in delivery.attempts] == ["skipped", "not sent"]
    assert (len(first.timeouts), len(second.timeouts)) == (tried[0], tried[1] + 1)
    second.fault = None
    assert send(pool).service_used == "second"
    planned = [step.service.name for step in pool.plan(make_message())]
    assert planned == ["second", "first"], "the one that still rests is asked last"


@pytest.mark.parametrize("fault", [MessageRejected("bad"), ServiceUnavailable("down")])
def test_before_a_message_is_given_up_one_that_rests_is_asked(fault, pool, first, second):
    first.fault = AccountRefused("quota")
    send(pool)
    first.fault, second.fault = None, fault
    delivery = send(pool)
    assert [(a.service, a.outcome) for a in delivery.attempts] == [
        ("second", "not sent"),
        ("first", "sent"),
    ]


def test_of_many_messages_at_once_one_is_the_probe(make_pool, first, second, clock):
    pool = make_pool(first, second)
    first.fault = AccountRefused("quota")
    send(pool)
    clock.now += FIRST_ACCOUNT_REST_SECONDS * JITTERED
    probing, release = threading.Event(), threading.Event()

    def slow(message, timeout):
        first.timeouts.append(timeout)
        probing.set()
        release.wait(60)
        return Acceptance("id")

    first.send = slow
    probe = threading.Thread(target=send, args=(pool,))
    probe.start()
    assert probing.wait(60)
    others = [send(pool) for _ in range(20)]
    release.set()
    probe.join()
    assert {delivery.service_used for delivery in others} == {"second"}
    assert {(d.attempts[0].code, d.attempts[0].reason) for d in others} == {
        ("being_probed", "Another message is finding out whether it works again.")
    }
    assert len(first.timeouts) == 2
    assert send(pool).service_used == "first"


def test_of_two_workers_that_planned_to_probe_at_once_one_does(make_pool, first, second, clock):
    one, other = make_pool(first, second), make_pool(first, second)
    first.fault = AccountRefused("quota")
    send(one)
    clock.now += FIRST_ACCOUNT_REST_SECONDS * JITTERED
    steps = one.steps(None)[0], other.steps(None)[0]
    assert [step.decision for step in steps] == ["probe", "probe"]
    assert [one.breakers.may_try(steps[0]), other.breakers.may_try(steps[1])] == [True, False]


def test_the_last_service_is_tried_even_while_another_message_probes_it(make_pool, first, clock):
    pool = make_pool(first)
    first.fault = AccountRefused("quota")
    send(pool)
    clock.now += FIRST_ACCOUNT_REST_SECONDS * JITTERED
    (step,) = pool.steps(None)
    assert pool.breakers.may_try(step)
    first.fault = None
    assert send(pool).service_used == "first"


def test_a_probe_whose_worker_died_is_followed_by_another(pool, first, clock):
    first.fault = AccountRefused("quota")
    send(pool)
    clock.now += FIRST_ACCOUNT_REST_SECONDS * JITTERED
    assert pool.breakers.may_try(pool.steps(None)[0])
    first.fault = None
    assert send(pool).service_used == "second"
    clock.now += 10 + GRACE_SECONDS
    assert send(pool).service_used == "first"


YEAR = 365 * 24 * 3600


@pytest.mark.parametrize(("fault", "failures", "_rest"), FAULTS)
def test_a_clock_that_is_set_back_ends_a_rest(fault, failures, _rest, pool, first, clock):
    first.fault = fault
    for _ in range(failures):
        send(pool)
    clock.now -= YEAR
    first.fault = None
    assert send(pool).service_used == "first"


def test_a_rest_that_began_while_the_clock_was_two_hours_ahead_is_due(pool, first, clock):
    first.fault = AccountRefused("key")
    pool.send(make_message())
    clock.now -= 7200
    first.fault = None
    assert pool.send(make_message()).service_used == "first"


def test_clocks_that_differ_a_little_end_no_rest(pool, first, clock):
    first.fault = AccountRefused("key")
    pool.send(make_message())
    clock.now -= 1
    assert pool.send(make_message()).service_used == "second"


def test_a_longer_rest_that_began_while_the_clock_was_two_hours_ahead_is_due(pool, first, clock):
    first.fault = AccountRefused("key")
    pool.send(make_message())
    clock.now += 7200
    pool.send(make_message())  # its probe, so that it rests for longer
    clock.now -= 7200
    first.fault = None
    assert pool.send(make_message()).service_used == "first"


def test_a_key_reserved_while_the_clock_was_two_hours_ahead_is_free_with_a_flag(pool, store, clock):
    store.reserve_keys("example.com", [("key", "print")], clock.now + 7200, clock.now + 7230)
    for _ in range(2):
        with pytest.raises(KeyInProgress):  # as far as anybody knows
            pool.send(make_message(), once=Once("key", "print"))
        clock.now += (25 + GRACE_SECONDS) / 2
    delivery = pool.send(make_message(), once=Once("key", "print"))
    assert (delivery.outcome, delivery.possible_duplicate) == ("sent", True)


def test_a_clock_that_is_set_back_ends_a_lost_probe(pool, first, clock):
    first.fault = AccountRefused("quota")
    send(pool)
    clock.now += FIRST_ACCOUNT_REST_SECONDS * JITTERED
    assert pool.breakers.may_try(pool.steps(None)[0])
    clock.now -= YEAR
    first.fault = None
    assert send(pool).service_used == "first"


def test_a_clock_that_is_set_back_ends_the_rest_that_is_shown(pool, first, store, clock):
    first.fault = AccountRefused("quota")
    send(pool)
    clock.now -= YEAR
    health = pool.breakers.health_in(store.service_states("example.com")["first"], clock.now)
    assert health.rest_until == clock.now
    assert health.reason == "quota"


def test_health_is_shared_by_all_workers(make_pool, first, second, clock):
    one, other = make_pool(first, second), make_pool(first, second)
    first.fault = ServiceUnavailable("down")
    for _ in range(FAILURES_TO_REST):
        send(one)
    tried = len(first.timeouts)
    send(other)
    assert len(first.timeouts) == tried


def test_health_is_kept_apart_by_domain(store, first, second, clock, pool):
    first.fault = AccountRefused("quota")
    send(pool)
    other = PooledEmailService("example.net", [first, second], store, clock=clock, now=clock)
    tried = len(first.timeouts)
    send(other)
    assert len(first.timeouts) == tried + 1


def test_each_change_is_on_record_with_its_reason(pool, first, second, clock, store):
    first.fault = RateLimited("HTTP 429.", 60)
    send(pool)
    clock.now += 60 * JITTERED
    send(pool)
    clock.now += 600
    first.fault = None
    send(pool)
    second.fault = RateLimited("HTTP 429.", 60)
    pool.send(make_message(), only=second)
    for _ in range(2):
        pool.breakers.reset(second)
    changes = [(c["service"], c["change"]) for c in reversed(store.service_changes("example.com"))]
    assert [service for service, _ in changes] == ["first", "first", "first", "second", "second"]
    assert changes[0][1].startswith("resting for ")
    assert changes[0][1].endswith(" s: rate limited (HTTP 429)")
    assert changes[2][1] == "working again"
    assert changes[4][1] == "to be tried by the next message, as was asked for"
    errors = store.service_states("example.com")["first"].last_errors
    assert [error["reason"] for error in errors] == ["rate limited (HTTP 429)"] * 2


@pytest.fixture
def begin(pool, first, clock):
    """Begin that many sends that the first service holds up; returns how to end one of them.

    They wait in threads of their own, so that what they record comes when the test says so.
    """
    held = []

    def make(number):
        begun = threading.Semaphore(0)
        quick = first.send

        def hold(message, timeout):
            release, result = threading.Event(), []
            held.append((threading.current_thread(), release, result))
            begun.release()
            assert release.wait(60)
            if result[0]:
                raise result[0]
            return Acceptance("id")

        first.send = hold
        for _ in range(number):
            threading.Thread(target=send, args=(pool,)).start()
            assert begun.acquire(timeout=60)
        first.send = quick

    def end(fault=None):
        thread, release, result = held.pop()
        result.append(fault)
        release.set()
        thread.join(60)

    make.end = end
    yield make
    while held:
        end()


@pytest.mark.parametrize("fault", [fault for fault, *_ in FAULTS])
def test_what_hung_before_the_recovery_does_not_make_it_rest_again(
    fault, begin, pool, first, clock, store
):
    begin(16)
    for _ in range(FAILURES_TO_REST):
        begin.end(OutcomeUnknown("silence"))
    assert state_of(pool, store) == "resting"
    clock.now += FIRST_REST_SECONDS * JITTERED
    assert send(pool).service_used == "first", "its probe"
    for _ in range(16 - FAILURES_TO_REST):
        begin.end(fault)
    assert state_of(pool, store) == "working"
    assert send(pool).service_used == "first"


def test_what_was_accepted_late_does_not_end_the_rest(begin, pool, first, clock, store):
    first.fault = ServiceUnavailable("down")
    send(pool)
    begin(1)
    for _ in range(FAILURES_TO_REST):
        send(pool)
    clock.now += 1
    begin.end()
    assert state_of(pool, store) == "resting"


def test_each_rest_is_on_record_once_however_often_it_is_lengthened(begin, pool, store, clock):
    begin(8)
    for _ in range(8):
        begin.end(RateLimited("HTTP 429.", 60))
        clock.now += 30
    changes = [change["change"] for change in store.service_changes("example.com")]
    assert len(changes) == 1
    health = store.service_states("example.com")["first"].health
    assert health.rest_until == clock.now - 30 + 60


def test_an_admin_can_have_it_tried_again_at_once(pool, first, store):
    first.fault = AccountRefused("quota")
    send(pool)
    first.fault = None
    assert send(pool).service_used == "second"
    pool.breakers.reset(first)
    assert state_of(pool, store) == "resting", "nobody knows yet whether it works"
    assert send(pool).service_used == "first"
    assert state_of(pool, store) == "working"
    changes = [change["change"] for change in store.service_changes("example.com")]
    assert changes[:2] == ["working again", "to be tried by the next message, as was asked for"]


def test_a_service_asked_for_by_name_is_tried_though_it_rests(pool, first, store):
    first.fault = AccountRefused("quota")
    send(pool)
    first.fault = None
    assert pool.send(make_message(), only=first).outcome == "sent"
    assert state_of(pool, store) == "working", "and that it was accepted counts"


def test_what_a_drill_did_to_its_health_ends_with_it(pool, first, store, clock):
    pool.breakers.set_drill(first, lambda *_: Drill("key_refused", until=clock.now + 60))
    send(pool)
    assert state_of(pool, store) == "resting"
    clock.now += 60
    assert state_of(pool, store) == "working"
    assert send(pool).service_used == "first"
    pool.breakers.set_drill(first, lambda *_: Drill())
    for _ in range(FAILURES_TO_REST):
        send(pool)
    assert state_of(pool, store) == "resting"
    pool.breakers.set_drill(first, lambda *_: None)
    assert send(pool).service_used == "first"


WAYS_TO_END = {
    "switched off": lambda pool, first, _: pool.breakers.set_drill(first, lambda *_: None),
    "lapsed": lambda _pool, _first, clock: setattr(clock, "now", clock.now + 60),
    "replaced": lambda pool, first, _: pool.breakers.set_drill(first, lambda *_: Drill(share=1e-9)),
}
FAULTS_BEFORE = {
    "none": [],
    "some failures": [ServiceUnavailable("down")] * (FAILURES_TO_REST - 1),
    "a rest that is over": [RateLimited("limit")],
    "a rest": [AccountRefused("quota")],
}


@pytest.mark.parametrize("kind", ["unavailable", "key_refused", "rate_limited"])
@pytest.mark.parametrize("before", FAULTS_BEFORE)
@pytest.mark.parametrize("end", WAYS_TO_END)
def test_a_drill_leaves_the_health_as_it_was(end, before, kind, pool, first, store, clock):
    def health():
        return pool.breakers.health_in(store.service_states("example.com")["first"], clock.now)

    for first.fault in FAULTS_BEFORE[before]:
        send(pool)
    clock.now += FIRST_REST_SECONDS * JITTERED
    pool.breakers.set_drill(first, lambda *_: Drill(kind, until=clock.now + 60))
    real = health()
    for _ in range(FAILURES_TO_REST + 1):
        send(pool)
        pool.send(make_message(), only=first)
    assert health().state(clock.now) == "resting"
    WAYS_TO_END[end](pool, first, clock)
    assert health() == real


def test_a_drill_begins_without_what_a_lapsed_one_did(pool, first, store, clock):
    pool.breakers.set_drill(first, lambda *_: Drill("key_refused", until=clock.now + 60))
    send(pool)
    clock.now += 60
    pool.breakers.set_drill(first, lambda *_: Drill("slow"))
    assert state_of(pool, store) == "working"


def test_a_success_during_a_drill_outlasts_it(pool, first, store, clock):
    first.fault = AccountRefused("quota")
    send(pool)
    first.fault = None
    pool.breakers.set_drill(first, lambda *_: Drill(share=1e-9))
    assert pool.send(make_message(), only=first).outcome == "sent"
    pool.breakers.set_drill(first, lambda *_: Drill("key_refused"))
    send(pool)
    assert state_of(pool, store) == "resting"
    pool.breakers.set_drill(first, lambda *_: None)
    assert state_of(pool, store) == "working"


def test_a_drills_fault_that_comes_after_its_end_does_not_count(begin, pool, first, store):
    fault = AccountRefused("Simulated failure.")
    fault.simulated = True
    pool.breakers.set_drill(first, lambda *_: Drill(share=1e-9))
    begin(1)
    pool.breakers.set_drill(first, lambda *_: None)
    begin.end(fault)
    assert state_of(pool, store) == "working"
    assert store.service_states("example.com")["first"].last_errors == ()


@pytest.mark.parametrize(("policy", "used"), [("stop", None), ("failover", "second")])
def test_a_message_may_say_what_follows_an_unknown_outcome(policy, used, make_pool, first, second):
    opposite = {"stop": "failover", "failover": "stop"}[policy]
    pool = make_pool(first, second, on_unknown=opposite)
    first.fault = OutcomeUnknown("silence")
    delivery = send(pool, on_unknown=policy)
    assert delivery.service_used == used
    assert delivery.possible_duplicate is (used is not None)


def test_a_dry_run_tells_and_changes_nothing(pool, first, second, store):
    first.fault = AccountRefused("quota")
    send(pool)
    tried = len(first.timeouts) + len(second.timeouts)
    before = store.service_states("example.com"), store.messages("example.com", 0)
    plan = plan_as_dict(pool.plan(make_message()), KeptBack())["plan"]
    assert [(step["service"], step["decision"]) for step in plan] == [
        ("second", "try"),
        ("first", "try"),
    ]
    assert plan[1]["reason"].startswith(
        "Asked only if no other service takes the message. It rests"
    )
    assert len(first.timeouts) + len(second.timeouts) == tried
    assert (store.service_states("example.com"), store.messages("example.com", 0)) == before


# Idempotency keys

ONCE = Once("key", "fingerprint")


def test_the_same_key_replays_the_answer(pool, first):
    sent = pool.send(make_message(), once=ONCE)
    again = pool.send(make_message(), once=ONCE)
    assert delivery_as_dict(again) == delivery_as_dict(sent)
    assert (sent.replayed, again.replayed) == (False, True)
    assert len(first.timeouts) == 1
    with pytest.raises(KeyReused):
        pool.send(make_message(), once=Once("key", "another"))


def test_an_answer_that_a_version_before_kept_is_replayed_with_empty_words(pool, store, clock):
    sent = pool.send(make_message(), once=ONCE)
    kept = asdict(sent)
    for attempt in kept["attempts"]:
        del attempt["code"]
    store.settle_keys("example.com", clock.now, {"key": kept})
    again = pool.send(make_message(), once=ONCE)
    assert (again.replayed, again.attempts) == (True, sent.attempts)


def test_a_definite_failure_frees_the_key(pool, first, second):
    first.fault = second.fault = ServiceUnavailable("down")
    assert pool.send(make_message(), once=ONCE).outcome == "not sent"
    first.fault = None
    assert pool.send(make_message(), once=ONCE).outcome == "sent"


def test_an_unknown_outcome_keeps_the_key(make_pool, first):
    pool = make_pool(first)
    first.fault = OutcomeUnknown("silence")
    assert pool.send(make_message(), once=ONCE).outcome == "unknown"
    first.fault = None
    again = pool.send(make_message(), once=ONCE)
    assert (again.outcome, again.replayed) == ("unknown", True)
    assert len(first.timeouts) == 1


def test_a_key_in_progress_is_told_and_one_that_was_cut_off_is_flagged(pool, first, store, clock):
    now = clock.now
    store.reserve_keys("example.com", [("key", "fingerprint")], now, now + 25 + GRACE_SECONDS)
    with pytest.raises(KeyInProgress):
        pool.send(make_message(), once=ONCE)
    clock.now += 25 + GRACE_SECONDS
    delivery = pool.send(make_message(), once=ONCE)
    assert (delivery.outcome, delivery.possible_duplicate) == ("sent", True)
    assert pool.send(make_message(), once=ONCE).possible_duplicate is True, "the stored answer too"
    (logged,) = store.messages("example.com", clock.now)
    assert logged.possible_duplicate is True, "and the log"


class Killed(BaseException):
    """What ends a worker."""


def test_every_copy_of_a_message_has_the_id_of_the_first(pool, first, store, clock):
    ids = []
    accept = first.send

    def send(message, timeout):
        ids.append(message.message_id_header)
        if len(ids) < 3:
            raise Killed
        return accept(message, timeout)

    first.send = send
    began = clock.now
    for _ in range(2):
        with pytest.raises(Killed):
            pool.send(make_message(), once=ONCE)
        clock.now += 25 + GRACE_SECONDS + 1
    delivery = pool.send(make_message(), once=ONCE)
    assert ids == [f"<{delivery.message_id}@example.com>"] * 3
    assert (delivery.outcome, delivery.possible_duplicate) == ("sent", True)
    (logged,) = store.messages("example.com", clock.now)
    assert (logged.message_id, logged.at) == (delivery.message_id, began), "one in the log, too"
    assert (logged.outcome, logged.possible_duplicate) == ("sent", True)
    address = logged.recipients[0]
    assert store.messages("example.com", clock.now, recipient=address) == [logged]
    assert store.messages("example.com", clock.now, recipient=address[:5]) == [logged]


def test_a_message_that_was_not_sent_is_another_one_when_it_is_repeated(pool, first, second):
    first.fault = second.fault = ServiceUnavailable("down")
    before = pool.send(make_message(), once=ONCE)
    first.fault = None
    assert pool.send(make_message(), once=ONCE).message_id != before.message_id


def test_a_failure_after_a_cut_off_request_says_unknown_and_keeps_the_key(
    pool, first, second, store, clock
):
    now = clock.now
    store.reserve_keys("example.com", [("key", "fingerprint")], now, now + 25 + GRACE_SECONDS)
    clock.now += 25 + GRACE_SECONDS
    first.fault = second.fault = ServiceUnavailable("down")
    assert pool.send(make_message(), once=ONCE).outcome == "unknown", "the first may have sent it"
    first.fault = None
    again = pool.send(make_message(), once=ONCE)
    assert (again.outcome, again.replayed) == ("unknown", True)
    (logged,) = store.messages("example.com", clock.now)
    assert logged.outcome == "unknown"


def test_where_unknown_outcomes_stop_nothing_follows_a_cut_off_request(pool, first, store, clock):
    now = clock.now
    store.reserve_keys("example.com", [("key", "fingerprint")], now, now + 25 + GRACE_SECONDS)
    clock.now += 25 + GRACE_SECONDS
    delivery = pool.send(make_message(on_unknown="stop"), once=ONCE)
    assert (delivery.outcome, delivery.attempts, first.timeouts) == ("unknown", (), [])
    assert "cut off" in delivery.error
    (logged,) = store.messages("example.com", clock.now)
    assert logged.outcome == "unknown"
    assert pool.send(make_message(on_unknown="stop"), once=ONCE).replayed


def test_40_sends_at_once_with_one_key_reach_a_service_once(make_pool, first):
    pool = make_pool(first)
    outcomes = []

    def send_once():
        try:
            outcomes.append(pool.send(make_message(), once=ONCE).outcome)
        except KeyInProgress:
            outcomes.append("in progress")

    threads = [threading.Thread(target=send_once) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 40
    assert set(outcomes) <= {"sent", "in progress"}
    assert len(first.timeouts) == 1


# The message log


def test_every_send_is_in_the_log_before_its_first_attempt(pool, first, second, store, clock):
    seen = []

    def look(message, timeout):
        seen.extend(store.messages("example.com", clock.now))
        raise ServiceUnavailable("down")

    first.send = look
    message = make_message(to_cc="Bob <Bob@Example.org>")
    delivery = pool.send(message)
    (during,) = seen
    assert (during.message_id, during.outcome) == (message.message_id, "in progress")
    (after,) = store.messages("example.com", clock.now)
    assert (after.outcome, after.service_used) == ("sent", "second")
    assert after.recipients == ["ada@example.org", "bob@example.org"]
    assert [a["reason"] for a in after.attempts] == [a.reason for a in delivery.attempts]


def test_a_bug_leaves_the_message_in_the_log_as_unknown(pool, first, store, clock):
    first.fault = KeyError("bug")
    with pytest.raises(KeyError):
        send(pool)
    clock.now += 25 + GRACE_SECONDS + 1
    (message,) = store.messages("example.com", clock.now)
    assert message.outcome == "unknown"


def test_a_body_is_nowhere_in_the_database(pool, store, tmp_path):
    send(pool, raw_text_body="Nobody else should read this.", html_body="<p>Nor this.</p>")
    store.close()
    content = b"".join(path.read_bytes() for path in tmp_path.glob("state.sqlite3*"))
    assert b"Hello" in content
    assert b"Nobody else" not in content
    assert b"Nor this" not in content
