"""Kafka as the queue: nothing that was accepted is lost, and nothing is taken in twice."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from broker import Broker
from conftest import make_config, make_message
from test_queue import DOMAIN, Clock, Mailbox
from test_server import wait_for

from email_services.config import load_config
from email_services.exceptions import StoreUnavailable
from email_services.gauges import known
from email_services.kafka import Intake, KafkaAddress, KafkaQueue, lag
from email_services.kafka.records import message_of, record_of
from email_services.ledger import Once
from email_services.pool import PooledEmailService
from email_services.queue import Dispatcher
from email_services.store import Store

STREAMS = {"default", "bulk"}
NOW = 1_800_000_000.0
NOBODY = "kafka://127.0.0.1:9/mailpool"


@pytest.fixture(scope="module")
def broker():
    broker = Broker()
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def any_store(request, state_url):
    url = state_url if request.param == "SQLite" else request.getfixturevalue("postgresql")
    store = Store(url)
    yield store
    store.close()


@pytest.fixture
def topics(broker, request):
    """An address whose topics no other test has."""
    name = f"t{abs(hash(request.node.nodeid)) % 10**9}"
    return KafkaAddress.of(broker.url.replace("mailpool", name))


class Taken:
    """A queue that keeps what it takes."""

    def __init__(self):
        self.messages = []

    def put(self, messages, reserved_at):  # noqa: ARG002
        self.messages += messages
        return [True] * len(messages)


def waiting(store, *messages):
    taken = Taken()
    PooledEmailService(DOMAIN, [Mailbox("a")], store, queue=taken).accept(messages)
    return taken.messages


def outcome(store, message_id):
    found = store.messages(DOMAIN, time.time(), message_id=message_id)
    return found[0].outcome if found else None


# The address


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("kafka://kafka.example.com/mailpool", "kafka.example.com:9092"),
        ("kafka://a:9093,b/mailpool", "a:9093,b:9092"),
    ],
)
def test_an_address_has_servers_and_the_beginning_of_topics(url, servers):
    address = KafkaAddress.of(url)
    assert (address.servers, address.topic("bulk")) == (servers, "mailpool.bulk")


def test_an_address_may_say_how_to_get_in_and_never_shows_it():
    url = "kafka://h/m?security.protocol=SASL_SSL&sasl.password=s3cret&message.max.bytes=5000"
    address = KafkaAddress.of(url)
    assert address.max_bytes == 5000
    settings = address.settings(acks="all")
    assert (settings["sasl.password"], settings["acks"]) == ("s3cret", "all")
    assert "s3cret" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/mailpool",
        "kafka:///mailpool",
        "kafka://h",
        "kafka://h/a b",
        "kafka://user:s3cret@h/m",
        "kafka://h/m?acks=s3cret",
        "kafka://h/m?message.max.bytes=s3cret",
    ],
)
def test_an_address_that_is_none_is_an_error_without_its_secrets(url):
    with pytest.raises(ValueError, match=r"should|takes") as caught:
        KafkaAddress.of(url)
    assert "s3cret" not in str(caught.value)


# Records


def test_a_record_is_the_whole_message(store):
    (message,) = waiting(store, make_message(subject="Grüße", tags=["a"], stream="bulk"))
    read = message_of(record_of(message))
    assert record_of(read) == record_of(message)
    logged = (read.logged.subject, read.logged.tags, read.logged.stream, read.logged.outcome)
    assert logged == ("Grüße", ["a"], "bulk", "queued")
    assert (read.payload, read.due, read.expires) == (message.payload, message.due, message.expires)


# Taking in


def test_what_comes_twice_is_taken_in_once(any_store):
    messages = waiting(any_store, *(make_message() for _ in range(30)))
    any_store.take_in(messages[:20] + messages[10:20], NOW)
    any_store.take_in(messages, NOW)
    assert any_store.depths(DOMAIN, time.time())["default"].waiting == 30


def test_what_was_sent_meanwhile_is_not_taken_in_again(any_store):
    service, clock = Mailbox("a"), Clock()
    clock.now = time.time() + 1
    pool = PooledEmailService(DOMAIN, [service], any_store, now=clock)
    messages = waiting(any_store, make_message())
    any_store.take_in(messages, NOW)
    assert Dispatcher([pool], any_store, now=clock).deliver_due() == 1
    any_store.take_in(messages, NOW)
    assert Dispatcher([pool], any_store, now=clock).deliver_due() == 0
    assert len(service.sent) == 1
    assert outcome(any_store, messages[0].logged.message_id) == "sent"


# Without the broker


def test_without_the_broker_the_database_takes_it_and_soon_nobody_waits(any_store):
    queue = KafkaQueue(KafkaAddress.of(NOBODY), any_store, STREAMS)
    assert queue.put(waiting(any_store, make_message()), time.time()) == [True]
    began = time.monotonic()
    assert queue.put(waiting(any_store, make_message()), time.time()) == [True]
    assert time.monotonic() < began + 1
    assert any_store.depths(DOMAIN, time.time())["default"].waiting == 2


def test_without_broker_and_database_it_is_unknown_whether_it_is_taken(store, monkeypatch):
    messages = waiting(store, make_message())
    queue = KafkaQueue(KafkaAddress.of(NOBODY), store, STREAMS)

    def away(*_):
        raise StoreUnavailable("It is away.")

    monkeypatch.setattr(store, "take_in", away)
    monkeypatch.setattr(store, "put", away)
    assert queue.put(messages, time.time()) == [None]
    with pytest.raises(StoreUnavailable):  # nobody was asked who may have it
        queue.put(messages, time.time())


# With one


def test_what_is_accepted_is_a_record_and_only_that(broker, topics, store, monkeypatch):
    queue = KafkaQueue(topics, store, STREAMS)
    messages = waiting(store, *(make_message() for _ in range(1000)))

    def refuse(*_):
        raise AssertionError("the database was asked")

    monkeypatch.setattr(store, "put", refuse)
    monkeypatch.setattr(store, "take_in", refuse)
    assert queue.put(messages, time.time()) == [True] * 1000


@pytest.fixture
def gauges(store, tmp_path):
    """What is told of the queue, where `queue` says of config.json where it is."""

    def gauges(**queue):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({**make_config(tmp_path), **queue}))
        lines = known(load_config(str(file)), store, {}).decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if line.startswith("mailpool_queue_"))

    return gauges


def test_how_much_waits_in_the_topics_is_told_and_whether_the_brokers_answer(topics, store, gauges):
    queue = KafkaQueue(topics, store, STREAMS)
    pool = PooledEmailService(DOMAIN, [Mailbox("a")], store, queue=queue)
    for _ in range(3):
        pool.accept([make_message(stream="bulk")])
    assert gauges(queue_url=f"kafka://{topics.servers}/{topics.prefix}") == {
        'mailpool_queue_records{stream="bulk"}': "3.0",
        'mailpool_queue_records{stream="default"}': "0.0",
        "mailpool_queue_up": "1.0",
    }
    assert gauges(queue_url=NOBODY) == {"mailpool_queue_up": "0.0"}
    assert gauges() == {}


def test_what_is_too_large_or_has_a_key_or_was_tried_waits_in_the_database(topics, store):
    queue = KafkaQueue(dataclasses.replace(topics, max_bytes=50_000), store, STREAMS)
    pool = PooledEmailService(DOMAIN, [Mailbox("a")], store, queue=queue)
    large, keyed = make_message(raw_text_body="x" * 60_000), make_message()
    pool.accept([large])
    pool.accept([keyed], once=[Once("key", "print")])
    (tried,) = waiting(store, make_message())
    store.log_messages([tried.logged])
    queue.put([dataclasses.replace(tried, tries=1)], time.time())
    for id_ in (large.message_id, keyed.message_id, tried.logged.message_id):
        assert outcome(store, id_) == "queued"


def test_records_are_taken_in_over_an_outage_of_the_database(topics, store, monkeypatch):
    """One test, since to join a group takes 20 s with this broker."""
    queue = KafkaQueue(topics, store, STREAMS)
    pool = PooledEmailService(DOMAIN, [Mailbox("a")], store, queue=queue)
    first = [make_message(stream="bulk" if n % 2 else "default") for n in range(50)]
    for message in first:  # one by one: this broker counts records that come together as one
        pool.accept([message])
    intake = Intake(topics, store, STREAMS)
    calls, is_away, take_in = [], True, store.take_in

    def sometimes(messages, now):
        calls.append(len(messages))
        if is_away:
            raise StoreUnavailable("It is away.")
        take_in(messages, now)

    monkeypatch.setattr(store, "take_in", sometimes)
    intake.start()
    wait_for(lambda: len(calls) > 2, 60)
    assert lag(topics) == {"default": 25, "bulk": 25}  # nothing is committed before it is in
    for message in (second := [make_message() for _ in range(10)]):
        pool.accept([message])
    is_away = False
    ids = [message.message_id for message in first + second]
    wait_for(lambda: {outcome(store, id_) for id_ in ids} == {"queued"}, 60)
    wait_for(lambda: lag(topics) == {"default": 0, "bulk": 0}, 60)
    with monkeypatch.context() as patch:  # one is taken in at once, whatever might follow it
        patch.setattr("email_services.kafka.intake.WAIT_SECONDS", 60)
        for message in [make_message() for _ in range(2)]:
            pool.accept([message])
            wait_for(lambda message=message: outcome(store, message.message_id) == "queued", 10)
    pool.accept([make_message()])
    intake.stop(30)
