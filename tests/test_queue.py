"""What waits is delivered once, or said to be unknown; whatever happens to who delivers it."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from conftest import PLAIN, make_message
from sqlalchemy import func, select, update

from email_services.abstract import AbstractEmailService, Acceptance, ServiceSettings
from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    ServiceUnavailable,
    StoreUnavailable,
)
from email_services.ledger import Once
from email_services.pool import FIRST_RETRY_SECONDS, PooledEmailService
from email_services.queue import Dispatcher
from email_services.queue.retries import (
    JITTER,
    LONGEST_RETRY_SECONDS,
    SOON_SECONDS,
    wait_before,
)
from email_services.store import Store
from email_services.store.schema import OUTBOX, PAYLOADS
from email_services.streams import BUILT_IN, Stream

DOMAIN = "example.com"
DOWN = ServiceUnavailable("HTTP 503.")
LOST = OutcomeUnknown("No answer.")
NO = MessageRejected("It is too odd.")
LATER = "2027-01-15T09:20:00Z"


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Mailbox(AbstractEmailService):
    """A provider of the test's own: what it was given, and the faults that it meets first."""

    def __init__(self, name, *faults, priority=0, then=None):
        super().__init__(name, DOMAIN, ServiceSettings(priority_value=priority, timeout_seconds=10))
        self.faults, self.then, self.sent, self.texts = list(faults), then, [], []

    def send(self, message, timeout):  # noqa: ARG002
        fault = self.faults.pop(0) if self.faults else self.then
        if isinstance(fault, Exception):
            raise fault
        if fault:
            fault(message)
        self.sent.append(message.message_id)
        self.texts.append(message.raw_text_body)
        return Acceptance(f"id at {self.name}")


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def any_store(request, state_url):
    url = state_url if request.param == "SQLite" else request.getfixturevalue("postgresql")
    store = Store(url)
    yield store
    store.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(any_store, clock):
    """A pool of services, and what delivers its messages."""

    def make(*services, **options):
        pool = PooledEmailService(DOMAIN, services, any_store, now=clock, **options)
        return pool, Dispatcher([pool], any_store, now=clock)

    return make


@pytest.fixture
def log(any_store, clock):
    def log(message):
        (found,) = any_store.messages(DOMAIN, clock.now, message_id=message.message_id)
        return found

    return log


def test_what_was_accepted_is_sent_and_nothing_of_it_stays(make, log, any_store, clock):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    message = make_message()
    (delivery,) = pool.accept([message])
    assert (delivery.outcome, log(message).outcome) == ("queued", "queued")
    assert any_store.depths(DOMAIN, clock.now)["default"].waiting == 1
    assert dispatcher.deliver_due() == 1
    assert service.sent == [message.message_id]
    found = log(message)
    assert (found.outcome, found.service_used) == ("sent", "a")
    assert found.service_message_id == "id at a"
    assert any_store.depths(DOMAIN, clock.now) == {}
    assert dispatcher.deliver_due() == 0


LARGE = "A large letter. " * 100_000


def parts(store):
    """How many are kept of what waits."""
    with store._statement() as connection:
        return connection.scalar(select(func.count()).select_from(PAYLOADS))


@pytest.mark.parametrize("text", ["Small.", "Not so small. " * 50_000, LARGE])
def test_a_message_is_delivered_as_it_was_accepted_however_large(make, any_store, text):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    pool.accept([make_message(raw_text_body=text), make_message()])
    assert parts(any_store) > 1
    dispatcher.deliver_due()
    assert sorted(map(len, service.texts)) == sorted([len(text), len(PLAIN["raw_text_body"])])
    assert text in service.texts
    assert parts(any_store) == 0


@pytest.mark.parametrize("text", ["Small.", LARGE])
def test_nothing_stays_of_what_is_cancelled_or_forgotten(make, any_store, clock, text):
    pool, _ = make(Mailbox("a"))
    first, second = (make_message(raw_text_body=text, send_at=LATER) for _ in range(2))
    pool.accept([first, second])
    assert any_store.cancel(DOMAIN, first.message_id, clock.now)
    any_store.end_the_forgotten(clock.now + 366 * 86400)
    assert parts(any_store) == 0


def test_what_is_cancelled_is_so_though_its_parts_cannot_be_removed(
    make, any_store, clock, monkeypatch
):
    def fail(*_):
        raise StoreUnavailable("It is away.")

    pool, dispatcher = make(Mailbox("a"))
    message = make_message(raw_text_body=LARGE, send_at=LATER)
    pool.accept([message])
    with monkeypatch.context() as patch:
        patch.setattr(any_store, "_remove_parts", fail)
        assert any_store.cancel(DOMAIN, message.message_id, clock.now)
    assert parts(any_store) > 0
    clock.now += 3601
    dispatcher.deliver_due()
    assert parts(any_store) == 0


def test_what_was_written_ahead_of_a_message_that_never_came_is_removed_later(
    make, any_store, clock, monkeypatch
):
    pool, dispatcher = make(Mailbox("a"))
    waits = make_message(raw_text_body=LARGE, send_at=LATER)
    pool.accept([waits])
    there = parts(any_store)

    def fail(_):
        raise StoreUnavailable("It is away.")

    with monkeypatch.context() as patch:
        patch.setattr(any_store, "_carry_out", refusing_the_log(any_store, fail))
        with pytest.raises(StoreUnavailable):
            pool.accept([make_message(raw_text_body=LARGE)])
    assert parts(any_store) == 2 * there
    dispatcher.deliver_due()
    assert parts(any_store) == 2 * there  # who is still at it may need them
    clock.now += 3601
    dispatcher.deliver_due()
    assert parts(any_store) == there


def refusing_the_log(store, fail):
    """What writes, and fails where the message itself is to be written."""
    carry_out = store._carry_out

    def sometimes(write):
        is_message = any("INSERT INTO outbox" in rows.sql for rows in write.statements)
        return fail(write) if is_message else carry_out(write)

    return sometimes


def test_what_could_not_be_sent_is_tried_again_after_a_while(make, log, clock):
    service = Mailbox("a", DOWN, DOWN)
    pool, dispatcher = make(service)
    message = make_message()
    pool.accept([message])
    dispatcher.deliver_due()
    assert log(message).outcome == "queued"
    clock.now += FIRST_RETRY_SECONDS - 1
    assert dispatcher.deliver_due() == 0
    clock.now += 1 + FIRST_RETRY_SECONDS * JITTER
    assert dispatcher.deliver_due() == 1
    clock.now += 2 * FIRST_RETRY_SECONDS * (1 + JITTER)
    dispatcher.deliver_due()
    assert log(message).outcome == "sent"
    told = [(attempt["outcome"], attempt["at"]) for attempt in log(message).attempts]
    assert [outcome for outcome, _ in told] == ["not sent", "not sent", "sent"]
    assert sorted(at for _, at in told) == [at for _, at in told]


@pytest.mark.parametrize(
    ("tries", "least"), [(1, 15), (2, 30), (3, 60), (4, 120), (7, 900), (100, 900)]
)
def test_each_wait_is_twice_as_long_up_to_a_quarter_of_an_hour(tries, least):
    assert wait_before(tries, lambda: 0.0) == least
    assert wait_before(tries, lambda: 1.0) == least * (1 + JITTER)
    assert least <= LONGEST_RETRY_SECONDS


def test_what_expires_is_surely_not_sent(make, log, clock):
    service = Mailbox("a", then=DOWN)
    pool, dispatcher = make(service)
    message = make_message(expires_in=20)
    pool.accept([message])
    dispatcher.deliver_due()
    clock.now += 21
    service.then = None
    dispatcher.deliver_due()
    assert (log(message).outcome, service.sent) == ("expired", [])


def test_what_may_have_been_sent_does_not_expire_but_is_unknown(make, log, clock):
    one, other = Mailbox("a", LOST, priority=1), Mailbox("b", then=DOWN)
    pool, dispatcher = make(one, other)
    message = make_message(expires_in=20)
    pool.accept([message])
    dispatcher.deliver_due()
    assert log(message).outcome == "queued"
    clock.now += 21
    dispatcher.deliver_due()
    assert log(message).outcome == "unknown"


def test_a_refusal_of_the_message_is_final(make, log):
    pool, dispatcher = make(Mailbox("a", NO), Mailbox("b", NO))
    message = make_message()
    pool.accept([message])
    dispatcher.deliver_due()
    assert log(message).outcome == "not sent"


def test_a_service_that_may_have_it_is_not_asked_again(make, log, clock):
    one, other = Mailbox("a", LOST, priority=1), Mailbox("b", DOWN)
    pool, dispatcher = make(one, other)
    message = make_message()
    pool.accept([message])
    dispatcher.deliver_due()
    clock.now += 60
    dispatcher.deliver_due()
    found = log(message)
    assert (found.outcome, found.possible_duplicate) == ("sent", True)
    assert (one.sent, other.sent) == ([], [message.message_id])


def test_nothing_follows_an_unknown_outcome_where_that_stops(make, log):
    one, other = Mailbox("a", LOST, priority=1), Mailbox("b")
    pool, dispatcher = make(one, other)
    message = make_message(on_unknown="stop")
    pool.accept([message])
    dispatcher.deliver_due()
    assert (log(message).outcome, other.sent) == ("unknown", [])


def test_what_no_service_of_its_stream_may_be_asked_for_is_unknown_though_others_are(make, log):
    one, other = Mailbox("a", LOST), Mailbox("b")
    streams = {**BUILT_IN, "bulk": Stream("bulk", services=("a",))}
    pool, dispatcher = make(one, other, streams=streams)
    message = make_message(stream="bulk")
    pool.accept([message])
    assert dispatcher.deliver_due() == 1
    assert (log(message).outcome, other.sent) == ("unknown", [])


def test_what_was_given_back_is_not_taken_again_at_once(make, log, clock):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    message = make_message()
    pool.accept([message])
    dispatcher.stop()
    assert dispatcher.deliver_due() == 1
    assert (log(message).outcome, service.sent) == ("queued", [])
    _, other = make(service)
    assert other.deliver_due() == 0
    clock.now += SOON_SECONDS * (1 + JITTER)
    other.deliver_due()
    assert service.sent == [message.message_id]


class Killed(BaseException):
    """What ends a process without a word."""


def killed(message):
    raise Killed


@pytest.mark.parametrize(
    ("policy", "outcome", "sent_by_b"), [("failover", "sent", 1), ("stop", "unknown", 0)]
)
def test_what_a_dead_process_was_handing_over_is_unknown(
    make, log, clock, policy, outcome, sent_by_b
):
    one, other = Mailbox("a", killed, priority=1), Mailbox("b")
    pool, dispatcher = make(one, other)
    message = make_message(on_unknown=policy)
    pool.accept([message])
    with pytest.raises(Killed):
        dispatcher.deliver_due()
    assert dispatcher.deliver_due() == 0  # it is still that one's
    clock.now += 1000
    dispatcher.deliver_due()
    found = log(message)
    assert (found.outcome, len(other.sent)) == (outcome, sent_by_b)
    assert found.possible_duplicate == (outcome == "sent")
    assert found.attempts[0]["outcome"] == "unknown"
    assert (found.attempts[0]["service"], one.sent) == ("a", [])


def test_what_a_dead_process_had_not_handed_over_is_sent_as_if_nothing_was(
    make, log, clock, any_store
):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    message = make_message()
    pool.accept([message])
    claimed = any_store.claim(
        DOMAIN, "default", "dead", clock.now, clock.now + 30, limit=10, max_bytes=10**6
    )
    assert [item.message_id for item in claimed] == [message.message_id]
    clock.now += 31
    dispatcher.deliver_due()
    assert (log(message).outcome, log(message).possible_duplicate) == ("sent", False)


def test_who_comes_too_late_changes_nothing(make, log, clock, any_store):
    """A process that was only slow, and whose lease is over."""
    pool, dispatcher = make(Mailbox("a", DOWN))
    message = make_message()
    pool.accept([message])
    taken = any_store.claim(
        DOMAIN, "default", "slow", clock.now, clock.now + 1, limit=10, max_bytes=10**6
    )
    clock.now += 2
    dispatcher.deliver_due()  # by somebody else, to be tried again
    before = log(message)
    ids = [item.message_id for item in taken]
    assert not any_store.hand_over("slow", ids, "a", clock.now + 9)
    assert log(message) == before


def test_what_is_alike_goes_out_in_one_call(make, log):
    class Batching(Mailbox):
        max_batch = 100
        calls = 0

        def batch_key(self, message):
            return message.content_key()

        def send_batch(self, messages, timeout):  # noqa: ARG002
            self.calls += 1
            return [Acceptance(message.message_id) for message in messages]

    service = Batching("a")
    pool, dispatcher = make(service)
    messages = [make_message(to_recipients=f"r{n}@example.org") for n in range(12)]
    pool.accept(messages)
    dispatcher.deliver_due()
    assert service.calls == 1
    assert {log(message).outcome for message in messages} == {"sent"}


def test_while_all_services_rest_nothing_is_tried_and_then_all_is(make, log, clock):
    service = Mailbox("a", AccountRefused("No."))
    pool, dispatcher = make(service)
    first, later = make_message(), [make_message() for _ in range(20)]
    pool.accept([first])
    dispatcher.deliver_due()
    pool.accept(later)
    clock.now += 60
    assert dispatcher.deliver_due() == 0
    clock.now += 400
    dispatcher.deliver_due()
    assert len(service.sent) == 21
    assert {log(message).outcome for message in (first, *later)} == {"sent"}


def test_one_that_would_expire_meanwhile_is_tried_all_the_same(make, clock):
    service = Mailbox("a", AccountRefused("No."))
    pool, dispatcher = make(service)
    pool.accept([make_message()])
    dispatcher.deliver_due()
    urgent = make_message(expires_in=60)
    pool.accept([urgent])
    dispatcher.deliver_due()
    assert service.sent[0] == urgent.message_id


def test_a_stream_has_its_own_order_of_services(make):
    one, other = Mailbox("a", priority=1), Mailbox("b")
    streams = {**BUILT_IN, "bulk": Stream("bulk", services=("b",))}
    pool, dispatcher = make(one, other, streams=streams)
    message, letter = make_message(), make_message(stream="bulk")
    pool.accept([message, letter])
    dispatcher.deliver_due()
    assert (one.sent, other.sent) == ([message.message_id], [letter.message_id])
    assert pool.send(make_message(stream="bulk")).service_used == "b"


def test_a_message_for_later_waits_here_where_no_service_can_hold_it(make, clock, log):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    message = make_message(send_at=LATER)
    pool.accept([message])
    assert dispatcher.deliver_due() == 0
    clock.now = 1_800_004_801.0
    dispatcher.deliver_due()
    assert (service.sent, log(message).outcome) == ([message.message_id], "sent")


def test_a_message_of_one_service_alone_goes_through_no_other(make, log, clock):
    one, other = Mailbox("a", DOWN, priority=1), Mailbox("b")
    pool, dispatcher = make(one, other)
    message = make_message()
    pool.accept([message], only=one)
    dispatcher.deliver_due()
    clock.now += 60
    dispatcher.deliver_due()
    assert (log(message).service_used, other.sent) == ("a", [])


def test_a_send_that_failed_waits_where_the_domain_says_so(make, log, clock):
    service = Mailbox("a", DOWN)
    pool, dispatcher = make(service, queues_unsent=True)
    message = make_message()
    delivery = pool.send(message)
    assert (delivery.outcome, log(message).outcome) == ("queued", "queued")
    assert [attempt.outcome for attempt in delivery.attempts] == ["not sent"]
    clock.now += 60
    dispatcher.deliver_due()
    assert log(message).outcome == "sent"
    assert [attempt["outcome"] for attempt in log(message).attempts] == ["not sent", "sent"]


@pytest.mark.parametrize("fault", [LOST, NO])
def test_a_send_that_may_have_succeeded_or_never_will_does_not_wait(make, fault):
    pool, _ = make(Mailbox("a", fault), queues_unsent=True)
    assert pool.send(make_message()).outcome != "queued"


def test_the_same_key_gets_the_same_answer(make):
    pool, dispatcher = make(Mailbox("a"))
    once = [Once("order-1", "mark")]
    (first,) = pool.accept([make_message()], once=once)
    dispatcher.deliver_due()
    (again,) = pool.accept([make_message()], once=once)
    assert again.replayed
    assert (again.outcome, again.message_id) == ("queued", first.message_id)
    assert dispatcher.deliver_due() == 0


def test_what_no_service_can_carry_is_refused_at_once(make, log):
    class Picky(Mailbox):
        def lacking(self, message):  # noqa: ARG002
            yield "It carries nothing."

    pool, dispatcher = make(Picky("a"))
    message = make_message()
    (delivery,) = pool.accept([message])
    assert (delivery.outcome, delivery.rejected) == ("not sent", True)
    assert log(message).outcome == "not sent"
    assert dispatcher.deliver_due() == 0


def test_what_is_cancelled_is_not_sent(make, log, any_store, clock):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    message = make_message()
    pool.accept([message])
    assert not any_store.cancel("example.net", message.message_id, clock.now)
    assert any_store.cancel(DOMAIN, message.message_id, clock.now)
    assert not any_store.cancel(DOMAIN, message.message_id, clock.now)
    dispatcher.deliver_due()
    assert (log(message).outcome, service.sent) == ("cancelled", [])


def test_what_somebody_is_sending_cannot_be_cancelled(make, any_store, clock, log):
    sending = []

    def cancel(message):
        sending.append(any_store.cancel(DOMAIN, message.message_id, clock.now))

    pool, dispatcher = make(Mailbox("a", cancel))
    message = make_message()
    pool.accept([message])
    dispatcher.deliver_due()
    assert (sending, log(message).outcome) == ([False], "sent")


def test_a_message_can_be_sent_now(make, any_store, clock):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    message = make_message(send_at=LATER)
    pool.accept([message])
    assert any_store.send_now(DOMAIN, message.message_id, clock.now)
    dispatcher.deliver_due()
    assert service.sent == [message.message_id]


def test_a_stream_that_is_paused_waits(make, any_store, clock, log):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    message, other, brief = make_message(stream="bulk"), make_message(), make_message(expires_in=5)
    any_store.pause(DOMAIN, "bulk", clock.now, is_paused=True)
    any_store.pause(DOMAIN, "bulk", clock.now, is_paused=True)
    pool.accept([message, other])
    dispatcher.deliver_due()
    assert service.sent == [other.message_id]
    any_store.pause(DOMAIN, "default", clock.now, is_paused=True)
    pool.accept([brief])
    clock.now += 6
    dispatcher.deliver_due()
    assert log(brief).outcome == "expired"
    any_store.pause(DOMAIN, "bulk", clock.now, is_paused=False)
    dispatcher.deliver_due()
    assert service.sent == [other.message_id, message.message_id]


def test_streams_and_domains_that_are_no_more_lose_nothing(make, any_store, clock, log):
    streams = {**BUILT_IN, "codes": Stream("codes")}
    pool, _ = make(Mailbox("a"), streams=streams)
    message = make_message(stream="codes")
    pool.accept([message])
    service = Mailbox("a")
    _, dispatcher = make(service)
    dispatcher.deliver_due()
    assert service.sent == [message.message_id]
    lost = make_message()
    pool.accept([lost])
    clock.now += 26 * 3600
    Dispatcher([], any_store, now=clock).deliver_due()
    assert log(lost).outcome == "expired"


def test_without_the_database_nothing_is_accepted(make, any_store):
    pool, _ = make(Mailbox("a"))
    any_store._away_until = {False: float("inf"), True: float("inf")}
    with pytest.raises(StoreUnavailable):
        pool.accept([make_message()])


def test_a_message_that_cannot_be_read_stops_no_other(make, any_store, log, clock, caplog):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    broken, other = make_message(), make_message()
    pool.accept([broken, other])
    with any_store._transaction() as connection:
        broken_row = update(PAYLOADS).where(PAYLOADS.c.message_id == broken.message_id)
        connection.execute(broken_row.values(content=b"{}"))
    dispatcher.deliver_due()
    assert service.sent == [other.message_id]
    assert log(broken).outcome == "not sent"
    assert "cannot be read" in caplog.text


def test_word_of_what_was_put_reaches_other_processes(postgresql):
    heard, is_over = threading.Event(), threading.Event()
    listening, other = Store(postgresql), Store(postgresql)
    listening.when_put(lambda *lane: lane == (DOMAIN, "default") and heard.set())
    thread = threading.Thread(target=listening.listen, args=(is_over.is_set,))
    thread.start()
    pool = PooledEmailService(DOMAIN, [Mailbox("a")], other)
    try:
        # The first may come before anybody listens.
        assert any(pool.accept([make_message()]) and heard.wait(0.2) for _ in range(100))
    finally:
        is_over.set()
        thread.join()
        for store in (listening, other):
            store.close()


def test_a_request_that_was_cut_off_before_it_queued_anything_has_done_nothing(
    make, any_store, clock, log, monkeypatch
):
    """A worker that is killed between the two. Who repeats the key is told of no doubt."""
    service = Mailbox("a")
    pool, dispatcher = make(service)
    once = [Once("order-1", "mark")]
    with monkeypatch.context() as patch:
        patch.setattr(any_store, "put", lambda *_: killed(None))
        with pytest.raises(Killed):
            pool.accept([make_message(on_unknown="stop")], once=once)
    clock.now += 1000
    message = make_message(on_unknown="stop")
    (delivery,) = pool.accept([message], once=once)
    assert delivery.outcome == "queued"
    dispatcher.deliver_due()
    found = log(message)
    assert (found.outcome, found.possible_duplicate) == ("sent", False)


def test_the_key_of_a_message_that_may_be_queued_is_kept(make, any_store, clock, monkeypatch):
    """The database's answer to the commit was lost. Nobody may queue it a second time."""
    service = Mailbox("a")
    pool, dispatcher = make(service)
    once = [Once("order-1", "mark")]
    put = any_store.put

    def put_without_a_word(messages, reserved_at):
        put(messages, reserved_at)
        return [None] * len(messages)

    with monkeypatch.context() as patch:
        patch.setattr(any_store, "put", put_without_a_word)
        (first,) = pool.accept([make_message()], once=once)
    assert (first.outcome, first.is_taken_in_doubt) == ("unknown", True)
    (again,) = pool.accept([make_message()], once=once)
    assert (again.outcome, again.message_id) == ("queued", first.message_id)
    dispatcher.deliver_due()
    assert service.sent == [first.message_id]


def test_what_waits_long_is_tried_as_soon_as_a_service_is_back(make, any_store, clock, log):
    """Though nothing is due while it rests, and whoever finds it back sends another message."""
    service = Mailbox("a", then=AccountRefused("No."))
    pool, dispatcher = make(service)
    message = make_message()
    pool.accept([message])
    dispatcher.deliver_due()
    lane = dispatcher._lanes[DOMAIN, "default"]
    with any_store._transaction() as connection:
        connection.execute(update(OUTBOX).values(due=clock.now + 900, tries=7))
    lane.begin_if_due(time.monotonic())
    service.then = None
    clock.now += 600  # its rest is over
    assert pool.send(make_message()).outcome == "sent"
    lane.look_at = 0.0
    lane.begin_if_due(time.monotonic())
    lane.close()
    assert log(message).outcome == "sent"


@pytest.mark.parametrize("alone", ["since one finds out whether a service is back", "being large"])
def test_what_is_taken_alone_is_followed_by_the_others_at_once(make, clock, monkeypatch, alone):
    service = Mailbox("a")
    pool, dispatcher = make(service)
    pool.accept([make_message() for _ in range(20)])
    if alone == "being large":
        monkeypatch.setattr("email_services.queue.lane.TAKEN_BYTES", 1)
    else:
        service.then = AccountRefused("No.")
        dispatcher.deliver_due()
        service.then = None
        clock.now += 3600
    monkeypatch.setattr("email_services.queue.lane.POLL_SECONDS", 3600)
    dispatcher.wake(DOMAIN, "default")
    dispatcher.start()
    until = time.monotonic() + 10
    while len(service.sent) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    dispatcher.stop()
    assert len(service.sent) == 20


def test_a_bug_that_one_message_meets_costs_no_other_what_is_known_of_it(make, log):
    def bug(message):
        raise ZeroDivisionError

    service = Mailbox("a")
    pool, dispatcher = make(service)
    messages = [make_message() for _ in range(20)]
    pool.accept(messages)
    service.faults = [*[None] * 15, bug]  # the last of those that are under way together
    with pytest.raises(ZeroDivisionError):
        dispatcher.deliver_due()
    outcomes = Counter(log(message).outcome for message in messages)
    assert outcomes == {"sent": 15, "queued": 5}


def test_a_bug_does_not_end_the_dispatcher(make, log, caplog, monkeypatch):
    """Whoever waits for a thread that is gone waits for ever."""
    monkeypatch.setattr("email_services.queue.dispatcher.POLL_SECONDS", 0.01)
    sent = threading.Event()
    pool, dispatcher = make(Mailbox("a", lambda _: sent.set()))
    bugs = iter([ZeroDivisionError()])

    def sweep(now):
        for bug in bugs:
            raise bug

    monkeypatch.setattr(dispatcher._store, "end_the_forgotten", sweep)
    dispatcher.start()
    try:
        pool.accept([make_message()])
        assert sent.wait(10)
    finally:
        dispatcher.stop()
    assert "A bug stopped the dispatcher" in caplog.text
