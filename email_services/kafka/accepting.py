"""Take messages into topics, and into the database where that is not possible."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final

from email_services.exceptions import StoreUnavailable
from email_services.kafka.address import KafkaAddress, make_topics
from email_services.kafka.records import record_of
from email_services.store import Store, Waiting

logger = logging.getLogger("email_services.queue")  # which operators look for

REPORT_SECONDS: Final = 2.0
"""For how long the brokers are waited for."""

AWAY_SECONDS: Final = 5.0
"""For how long nobody waits for them again after that, and the database takes what comes."""

_LINGER_MILLISECONDS: Final = 1
_RECORD_BYTES: Final = 1000
"""What is around a record on its way: its key, its topic, its numbers."""


class KafkaQueue:
    """Takes messages that are to wait.

    streams: the names of those that messages may be in.
    """

    def __init__(
        self,
        address: KafkaAddress,
        store: Store,
        streams: Collection[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._store = store
        self._streams = streams
        self._clock = clock
        self._lock = threading.Lock()
        self._made: tuple[int, Any] | None = None
        self._topics: threading.Thread | None = None
        self._away_until = 0.0

    def put(self, messages: Sequence[Waiting], reserved_at: float) -> list[bool | None]:
        """Take the messages: what is here when this returns, the brokers have, or the database.

        The rest as in Store.put. The database has those with an Idempotency-Key, whose answer is
        written with them; those it has in its log already; and those too large for a record.
        """
        records = {
            n: record
            for n, message in enumerate(messages)
            if message.key is None
            and not message.tries
            and len(record := record_of(message)) + _RECORD_BYTES <= self._address.max_bytes
        }
        if not records or self._clock() < self._away_until:
            return self._store.put(messages, reserved_at)
        reported = self._produce({n: (messages[n], record) for n, record in records.items()})
        others = [n for n in range(len(messages)) if n not in records]
        doubted = [n for n in records if n not in reported]
        taken: list[bool | None] = [n in reported for n in range(len(messages))]
        if doubted:
            self._away_until = self._clock() + AWAY_SECONDS
            self._see_to_topics()
            logger.error("The queue does not answer: the database takes what is to wait.")
            is_in = self._take_in([messages[n] for n in doubted], reserved_at)
            for n in doubted:
                taken[n] = is_in or None  # the record may be there
        if others:
            try:
                put = self._store.put([messages[n] for n in others], reserved_at)
            except StoreUnavailable:
                if not any(is_in is not False for is_in in taken):
                    raise
                put = [False] * len(others)
            for n, is_in_store in zip(others, put, strict=True):
                taken[n] = is_in_store
        return taken

    def _take_in(self, messages: Sequence[Waiting], now: float) -> bool:
        """Not as `put` does: their records may come, and be taken in and sent, before that."""
        try:
            self._store.take_in(messages, now)
        except StoreUnavailable as error:
            logger.error("Nor does the database: %s", error)
            return False
        return True

    def _produce(self, records: dict[int, tuple[Waiting, bytes]]) -> Collection[int]:
        """Have the brokers take them; returns which ones they have reported."""
        reports = _Reports(len(records))
        producer = self._producer()
        if producer is None:
            return ()
        for n, (message, record) in records.items():
            logged = message.logged
            try:
                producer.produce(
                    self._address.topic(logged.stream),
                    record,
                    key=f"{logged.email_domain} {logged.stream}",
                    on_delivery=partial(reports.note, n),
                )
            except (BufferError, _kafka_exception()) as error:
                logger.error("The queue takes no record: %s", error)
                reports.note(n, error)
        return reports.wait(REPORT_SECONDS + 1)

    def _producer(self) -> Any:
        """This process's: none survives a fork. None where it cannot be made."""
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), self._make())
            return self._made[1]

    def _make(self) -> Any:
        from confluent_kafka import Producer  # noqa: PLC0415 - see is_installed

        settings = self._address.settings(
            enable_idempotence=True,
            acks="all",
            message_timeout_ms=int(REPORT_SECONDS * 1000),
            linger_ms=_LINGER_MILLISECONDS,
        )
        try:
            producer = Producer(settings, logger=logger)
        except (ValueError, _kafka_exception()) as error:
            logger.error("The queue cannot be used: %s", error)
            return None
        threading.Thread(target=_hear, args=(producer,), name="kafka", daemon=True).start()
        self._see_to_topics()
        return producer

    def _see_to_topics(self) -> None:
        """Have them made, unless somebody is about it; nobody waits for that."""
        if self._topics is None or not self._topics.is_alive():
            self._topics = threading.Thread(target=self._make_topics, daemon=True)
            self._topics.start()

    def _make_topics(self) -> None:
        try:
            make_topics(self._address, self._streams)
        except _kafka_exception() as error:
            logger.error("The queue does not answer: %s", error)


def _hear(producer: Any) -> None:
    """Have reports heard as soon as they come, whoever waits for them."""
    while True:
        producer.poll(1.0)


def _kafka_exception() -> type[Exception]:
    from confluent_kafka import KafkaException  # noqa: PLC0415 - see is_installed

    return KafkaException  # type: ignore[no-any-return, unused-ignore]


class _Reports:
    """What the brokers say of records, by their numbers."""

    def __init__(self, number: int) -> None:
        self._missing = number
        self._good: set[int] = set()
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def note(self, n: int, error: Any, _record: Any = None) -> None:
        with self._lock:
            if error is None:
                self._good.add(n)
            self._missing -= 1
            if not self._missing:
                self._is_over.set()

    def wait(self, seconds: float) -> set[int]:
        """Those that are there, once all have been reported, or the time is over."""
        self._is_over.wait(seconds)
        with self._lock:
            return set(self._good)
