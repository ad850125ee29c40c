"""Several messages of one request, and messages that a service takes for some recipients only."""

from __future__ import annotations

import threading
import weakref
from collections import deque

import pytest
from conftest import make_message

from email_services.abstract import AbstractEmailService, Acceptance, ServiceSettings
from email_services.capabilities import Capabilities
from email_services.drill import Drill
from email_services.exceptions import (
    AccountRefused,
    KeyInProgress,
    KeyReused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)
from email_services.health import FIRST_REST_SECONDS, JITTER
from email_services.ledger import Once
from email_services.pool import PooledEmailService
from email_services.rounds import AT_ONCE, TOO_LATE
from endpoints.sending.answers import delivery_as_dict

NOW = 1_000_000.0


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Scripted(AbstractEmailService):
    """A provider of the test's own, which asks `judge` what becomes of a message.

    judge: gives an Acceptance or a ProviderError. calls: the recipients of each call.
    """

    provider = "scripted"

    def __init__(self, name, judge=None, priority=0, max_batch=1, lacks=None):
        super().__init__(name, "example.com", ServiceSettings(priority_value=priority))
        self.judge = judge or (lambda message: Acceptance(f"{message.recipients[0].email}"))
        self.max_batch, self.capabilities = max_batch, lacks or Capabilities()
        self.calls, self.messages = [], []

    def batch_key(self, message):
        return None if message.tags else "all"

    def send(self, message, timeout):  # noqa: ARG002
        self.calls.append([a.email for a in message.recipients])
        self.messages.append(message)
        result = self.judge(message)
        if isinstance(result, ProviderError):
            raise result
        return result

    def send_batch(self, messages, timeout):  # noqa: ARG002
        self.calls.append([message.recipients[0].email for message in messages])
        self.messages += messages
        return [self.judge(message) for message in messages]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_pool(store, clock):
    def make(*services, **options) -> PooledEmailService:
        return PooledEmailService("example.com", services, store, clock=clock, now=clock, **options)

    return make


def messages_for(*names, **fields):
    return [make_message(to_recipients=f"{name}@example.org", **fields) for name in names]


def outcomes(deliveries):
    return [(delivery.outcome, delivery.service_used) for delivery in deliveries]


def health_of(pool, store, service="first"):
    return pool.breakers.health_in(store.service_states("example.com")[service], NOW)


def refusing(*names):
    """A judge who takes a message for everybody but `names`."""

    def judge(message):
        keys = [address.key for address in message.recipients]
        refused = {key: "inactive" for key in keys if key.partition("@")[0] in names}
        if len(refused) == len(message.recipients):
            return MessageRejected("all inactive")
        return Acceptance("id", refused)

    return judge


# Some recipients only


def test_only_those_that_were_refused_go_to_the_next_service(make_pool):
    first, second = Scripted("first", refusing("b"), priority=2), Scripted("second")
    message = make_message(to_recipients=["a@example.org", "b@example.org"], to_cc="c@example.org")
    answer = delivery_as_dict(make_pool(first, second).send(message))
    assert second.calls == [["b@example.org"]]
    assert (answer["result"], answer["service_used"]) == ("success", "first")
    assert [(a["outcome"], a["reason"]) for a in answer["attempts"]] == [
        ("sent", "b@example.org: inactive"),
        ("sent", ""),
    ]
    assert answer["recipients"] == [
        {"email": "a@example.org", "outcome": "sent", "service": "first", "reason": ""},
        {"email": "b@example.org", "outcome": "sent", "service": "second", "reason": ""},
        {"email": "c@example.org", "outcome": "sent", "service": "first", "reason": ""},
    ]
    assert answer["possible_duplicate"] is False


def test_a_message_that_some_never_get_is_partial_and_says_who(make_pool, store):
    first, second = Scripted("first", refusing("b"), priority=2), Scripted("second", refusing("b"))
    message = make_message(to_recipients=["a@example.org", "B@example.org"])
    delivery = make_pool(first, second).send(message)
    answer = delivery_as_dict(delivery)
    assert (delivery.outcome, answer["result"]) == ("sent", "partial")
    assert answer["recipients"][1] == {
        "email": "B@example.org",
        "outcome": "not sent",
        "service": "second",
        "reason": "all inactive",
    }
    (logged,) = store.messages("example.com", NOW)
    assert logged.outcome == "sent"
    assert logged.recipients == ["a@example.org", "b@example.org"]


def test_a_rest_whose_outcome_is_unknown_is_said_to_be_unknown(make_pool):
    first = Scripted("first", refusing("b"), priority=2)
    second = Scripted("second", lambda _: OutcomeUnknown("silence"))
    message = make_message(to_recipients=["a@example.org", "b@example.org"])
    answer = delivery_as_dict(make_pool(first, second).send(message))
    assert answer["result"] == "partial"
    assert [r["outcome"] for r in answer["recipients"]] == ["sent", "unknown"]
    assert answer["possible_duplicate"] is False


def test_who_is_refused_after_a_silence_may_have_it_all_the_same(make_pool):
    first = Scripted("first", lambda _: OutcomeUnknown("silence"), priority=2)
    second = Scripted("second", refusing("b"))
    message = make_message(to_recipients=["a@example.org", "b@example.org"])
    answer = delivery_as_dict(make_pool(first, second).send(message))
    assert [r["outcome"] for r in answer["recipients"]] == ["sent", "unknown"]
    assert answer["possible_duplicate"] is True


def test_a_partial_answer_is_replayed_as_it_was(make_pool):
    pool = make_pool(Scripted("first", refusing("b")))
    message = make_message(to_recipients=["a@example.org", "b@example.org"])
    once = Once("key", "fingerprint")
    first, again = (delivery_as_dict(pool.send(message, once=once)) for _ in range(2))
    assert first == again


# Several messages


def test_messages_that_can_share_a_call_do_and_each_has_its_result(make_pool):
    service = Scripted("first", max_batch=3)
    names = ["a", "b", "c", "d"]
    tagged = messages_for("e", tags="alone")
    deliveries = make_pool(service).send_all([*messages_for(*names), *tagged])
    assert sorted(map(len, service.calls)) == [1, 1, 3]
    assert [d.service_message_id for d in deliveries] == [f"{n}@example.org" for n in "abcde"]
    assert len({d.message_id for d in deliveries}) == 5


def test_others_get_single_sends_several_at_once(make_pool):
    together = threading.Barrier(AT_ONCE, timeout=10)

    def judge(message):
        together.wait()
        return Acceptance(message.recipients[0].email)

    service = Scripted("first", judge)
    names = [f"n{number}" for number in range(AT_ONCE * 2)]
    deliveries = make_pool(service).send_all(messages_for(*names))
    assert [d.service_message_id for d in deliveries] == [f"{n}@example.org" for n in names]
    assert sorted(service.calls) == sorted([f"{n}@example.org"] for n in names)


def test_one_recipient_is_never_twice_in_a_call(make_pool):
    service = Scripted("first", max_batch=10)
    make_pool(service).send_all(messages_for("a", "b", "A", "b"))
    assert sorted(map(sorted, service.calls)) == [
        ["A@example.org", "b@example.org"],
        ["a@example.org", "b@example.org"],
    ]


def test_what_failed_alone_moves_to_the_next_service(make_pool):
    def judge(message):
        bad = message.recipients[0].email.startswith("b")
        return MessageRejected("no") if bad else Acceptance("id")

    first = Scripted("first", judge, priority=2, max_batch=10)
    second = Scripted("second", max_batch=10)
    deliveries = make_pool(first, second).send_all(messages_for("a", "b1", "c", "b2"))
    assert second.calls == [["b1@example.org", "b2@example.org"]]
    assert outcomes(deliveries) == [
        ("sent", "first"),
        ("sent", "second"),
        ("sent", "first"),
        ("sent", "second"),
    ]


def test_the_one_that_makes_a_provider_refuse_all_is_found(make_pool):
    class AllOrNothing(Scripted):
        def send_batch(self, messages, timeout):
            results = super().send_batch(messages, timeout)
            refused = [r for r in results if isinstance(r, MessageRejected)]
            return [refused[0]] * len(messages) if refused else results

    def judge(message):
        bad = message.recipients[0].email.startswith("bad")
        return MessageRejected("no") if bad else Acceptance("id")

    service = AllOrNothing("first", judge, max_batch=1000)
    names = [f"n{number}" for number in range(200)]
    names[77] = "bad"
    deliveries = make_pool(service).send_all(messages_for(*names))
    assert [n for n, d in enumerate(deliveries) if d.outcome != "sent"] == [77]
    assert deliveries[77].rejected
    assert len(service.calls) <= 17


def test_a_provider_that_fails_half_way_leaves_every_message_one_true_result(make_pool, store):
    sent, lock = [], threading.Lock()

    def judge(message):
        with lock:
            if len(sent) >= 40:
                return ServiceUnavailable("down")
            sent.append(message.recipients[0].email)
        return Acceptance("id")

    first, second = Scripted("first", judge, priority=2), Scripted("second")
    pool = make_pool(first, second)
    names = [f"n{number}" for number in range(100)]
    deliveries = pool.send_all(messages_for(*names))
    taken = {n for n, d in zip(names, deliveries, strict=True) if d.service_used == "first"}
    assert {f"{name}@example.org" for name in taken} == set(sent)
    assert sorted(second.calls) == sorted([f"{n}@example.org"] for n in names if n not in taken)
    assert outcomes(deliveries).count(("sent", "second")) == 60
    # A few were under way together; the others saw that it rests and did not wait for it.
    assert len(first.calls) < 40 + 5 + AT_ONCE
    logged = store.messages("example.com", NOW, limit=500)
    assert {m.message_id: (m.outcome, m.service_used) for m in logged} == {
        d.message_id: (d.outcome, d.service_used) for d in deliveries
    }


def test_one_message_of_a_batch_is_the_probe(make_pool, store, clock):
    first, second = Scripted("first", priority=2), Scripted("second")
    pool = make_pool(first, second)
    first.judge = lambda _: RateLimited("slow down")
    pool.send(make_message())
    clock.now += FIRST_REST_SECONDS * (1 + JITTER)
    first.calls.clear()
    deliveries = pool.send_all(messages_for("a", "b", "c"))
    assert first.calls == [["a@example.org"]]
    assert outcomes(deliveries) == [("sent", "second")] * 3
    clock.now += 2 * FIRST_REST_SECONDS * (1 + JITTER)
    first.judge = lambda _: Acceptance("id")
    assert outcomes(pool.send_all(messages_for("a", "b", "c"))) == [("sent", "first")] * 3


def test_a_batch_does_not_hammer_the_last_service(make_pool):
    first = Scripted("first", lambda _: AccountRefused("quota"))
    names = [f"n{number}" for number in range(100)]
    deliveries = make_pool(first).send_all(messages_for(*names))
    assert {d.outcome for d in deliveries} == {"not sent"}
    assert not any(d.rejected for d in deliveries)
    assert len(first.calls) <= 2 * AT_ONCE
    asked = [d for d in deliveries if any(a.outcome == "not sent" for a in d.attempts)]
    assert asked
    assert all("It rests" in d.attempts[-1].reason for d in deliveries if d not in asked)


def test_a_service_that_cannot_carry_a_message_is_passed_by_for_that_one(make_pool, store):
    plain = Scripted("plain", priority=2, lacks=Capabilities(tags=0))
    pool = make_pool(plain, Scripted("rich"))
    deliveries = pool.send_all([*messages_for("a"), *messages_for("b", tags="x")])
    assert outcomes(deliveries) == [("sent", "plain"), ("sent", "rich")]
    assert deliveries[1].services_unsuccessful == {"plain": "It carries no tags."}
    assert [attempt.code for attempt in deliveries[1].attempts] == ["cannot_carry", ""]
    assert "plain" not in store.service_states("example.com")


def test_a_message_that_nobody_can_carry_is_rejected_with_each_ones_reason(make_pool):
    first = Scripted("first", priority=2, lacks=Capabilities(tags=0))
    second = Scripted("second", lambda _: MessageRejected("no such address"))
    delivery = make_pool(first, second).send(make_message(tags="x"))
    assert delivery.rejected
    assert delivery.services_unsuccessful == {
        "first": "It carries no tags.",
        "second": "no such address",
    }


def test_a_service_that_is_down_is_no_reason_to_reject_the_message(make_pool):
    first = Scripted("first", priority=2, lacks=Capabilities(tags=0))
    second = Scripted("second", lambda _: ServiceUnavailable("down"))
    assert not make_pool(first, second).send(make_message(tags="x")).rejected


def test_the_last_resort_is_one_that_can_carry_the_message(make_pool):
    first = Scripted("first", lambda _: RateLimited("slow"), priority=2, lacks=Capabilities(tags=0))
    second = Scripted("second", lambda _: AccountRefused("quota"))
    pool = make_pool(first, second)
    pool.send(make_message())
    first.calls.clear()
    second.judge = lambda _: Acceptance("id")
    assert pool.send(make_message(tags="x")).service_used == "second"
    assert first.calls == []


def test_what_there_was_no_time_for_is_not_sent_and_says_so(make_pool, clock):
    def judge(message):
        clock.now += 30
        return ServiceUnavailable("late")

    pool = make_pool(Scripted("first", judge, max_batch=1))
    deliveries = pool.send_all(messages_for("a", "b", tags="x"))
    reasons = {a.reason for d in deliveries for a in d.attempts}
    assert {d.outcome for d in deliveries} == {"not sent"}
    assert TOO_LATE in reasons


@pytest.mark.parametrize("substitutes", [True, False])
def test_substitutions_are_finished_for_those_who_take_finished_texts(substitutes, make_pool):
    service = Scripted("first", max_batch=10)
    service.substitutes = substitutes
    given = [
        make_message(
            to_recipients=f"{name}@example.org",
            raw_text_body="Dear {{name}}",
            substitutions={"name": name},
        )
        for name in ("Ada", "Bob")
    ]
    make_pool(service).send_all(given)
    found = [message.raw_text_body for message in service.messages]
    assert found == (["Dear {{name}}"] * 2 if substitutes else ["Dear Ada", "Dear Bob"])
    make_pool(service).send(
        make_message(raw_text_body="Dear {{name}}", substitutions={"name": "Ada"})
    )
    assert service.messages[-1].raw_text_body == "Dear Ada"


def test_what_the_messages_of_a_batch_become_is_not_kept_for_all_at_once(make_pool):
    made, most = [], []

    def judge(message):
        made.append(weakref.ref(message))
        most.append(sum(reference() is not None for reference in list(made)))
        return Acceptance("id")

    given = [
        make_message(raw_text_body="{{a}}" * 100, substitutions={"a": f"{number}"})
        for number in range(100)
    ]
    service = Scripted("first", judge)
    service.messages = deque(maxlen=0)
    deliveries = make_pool(service).send_all(given)
    assert outcomes(deliveries) == [("sent", "first")] * 100
    assert max(most) <= 2 * AT_ONCE


def test_a_drill_meets_a_batch_as_it_meets_a_message(make_pool):
    first, second = Scripted("first", priority=2, max_batch=10), Scripted("second", max_batch=10)
    pool = make_pool(first, second)
    pool.breakers.set_drill(first, lambda *_: Drill())
    deliveries = pool.send_all(messages_for("a", "b"))
    assert outcomes(deliveries) == [("sent", "second")] * 2
    assert first.calls == []


# Idempotency keys


def keys_for(messages):
    return [Once(f"key.{number}", message.subject) for number, message in enumerate(messages)]


def test_a_repeated_batch_sends_what_was_not_sent_and_replays_the_rest(make_pool):
    def judge(message):
        down = message.recipients[0].email.startswith("b") and not healed
        return MessageRejected("no") if down else Acceptance("id")

    healed = []
    service = Scripted("first", judge, max_batch=10)
    pool = make_pool(service)
    once = keys_for(messages_for("a", "b", "c"))
    first = pool.send_all(messages_for("a", "b", "c"), once=once)
    assert [d.outcome for d in first] == ["sent", "not sent", "sent"]
    healed.append(True)
    service.calls.clear()
    again = pool.send_all(messages_for("a", "b", "c"), once=once)
    assert service.calls == [["b@example.org"]]
    assert [d.outcome for d in again] == ["sent"] * 3
    assert [d.replayed for d in again] == [True, False, True]
    assert again[0].message_id == first[0].message_id


def test_a_batch_whose_keys_stand_for_something_else_reserves_none(make_pool, store, clock):
    pool = make_pool(Scripted("first", max_batch=10))
    pool.send_all(messages_for("b"), once=[Once("key.1", "another")])
    messages = messages_for("a", "b", "c")
    with pytest.raises(KeyReused):
        pool.send_all(messages, once=keys_for(messages))
    assert store.reserve_keys("example.com", [("key.0", "f")], NOW, NOW + 1)[0].state == "new"


def test_a_batch_that_is_in_progress_is_told_so(make_pool, store):
    pool = make_pool(Scripted("first", max_batch=10))
    messages = messages_for("a", "b")
    once = keys_for(messages)
    store.reserve_keys("example.com", [(o.key, o.fingerprint) for o in once], NOW, NOW + 30)
    with pytest.raises(KeyInProgress):
        pool.send_all(messages, once=once)


def test_a_batch_that_was_cut_off_is_sent_again_with_a_flag(make_pool, store, clock):
    pool = make_pool(Scripted("first", max_batch=10))
    messages = messages_for("a", "b")
    once = keys_for(messages)
    keys = [(o.key, o.fingerprint) for o in once]
    ids = {once[0].key: "0" * 32, once[1].key: "1" * 32}
    store.reserve_keys("example.com", keys, NOW, NOW + 30, ids)
    store.settle_keys("example.com", NOW, {once[0].key: None})
    clock.now += 31
    deliveries = pool.send_all(messages, once=once)
    assert [d.possible_duplicate for d in deliveries] == [False, True]
    assert [d.message_id for d in deliveries] == [messages[0].message_id, "1" * 32]


def test_who_takes_others_of_the_same_call_is_not_to_blame(make_pool, store):
    def judge(message):
        bad = message.recipients[0].email.startswith("b")
        return AccountRefused("that sender") if bad else Acceptance("id")

    pool = make_pool(Scripted("first", judge, max_batch=10))
    deliveries = pool.send_all(messages_for("a", "b", "c"))
    assert [d.outcome for d in deliveries] == ["sent", "not sent", "sent"]
    assert "first" not in store.service_states("example.com")


def test_a_refusal_that_there_was_no_time_to_look_into_is_told(make_pool, clock):
    class Slow(Scripted):
        def send_batch(self, messages, timeout):
            clock.now += 20
            return super().send_batch(messages, timeout)

    service = Slow("first", lambda _: MessageRejected("one of them is bad"), max_batch=10)
    deliveries = make_pool(service).send_all(messages_for("a", "b", "c", "d"))
    assert {d.attempts[-1].reason for d in deliveries} == {"one of them is bad"}
