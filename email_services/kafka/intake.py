"""Take records out of the topics into the database, in bulk; from there all is as ever.

Any number of processes may do this side by side: the brokers share the partitions out. A record
may come twice, as where its offset was not committed; what the database knows already is left as it
is, so that this does nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any, Final

from email_services.exceptions import StoreUnavailable
from email_services.kafka.address import KafkaAddress, make_topics
from email_services.kafka.records import message_of
from email_services.store import Store, Waiting

logger = logging.getLogger("email_services.queue")  # which operators look for

TAKEN_IN_SECONDS: Final = 1
"""After which it is of use to ask again for a message that may be a record still."""

MOST_TAKEN: Final = 500
"""Records at once."""

WAIT_SECONDS: Final = 0.5
"""For a record; as often it is looked whether this is to end."""

GATHER_SECONDS: Final = 0.01
"""For those that come just behind it, to be taken in with it."""

AGAIN_SECONDS: Final = 5.0
"""After which it is begun again, where it could not go on."""


class Intake:
    """What takes records into the database, in a thread of this process.

    streams: the names of those whose topics there should be.
    """

    def __init__(
        self,
        address: KafkaAddress,
        store: Store,
        streams: Collection[str],
    ) -> None:
        self._address = address
        self._store = store
        self._streams = streams
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in the process that does it: after it was forked."""
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Read nothing more, and wait until what was read is taken in, or let go."""
        self._is_stopping.set()
        if self._thread:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            self._begin()

    def _begin(self) -> None:
        from confluent_kafka import KafkaException  # noqa: PLC0415 - see is_installed

        try:
            make_topics(self._address, self._streams)
            self._take_all()
        except (ValueError, KafkaException) as error:
            logger.error("No records are taken from the queue: %s", error)
            self._is_stopping.wait(AGAIN_SECONDS)
        except Exception:  # or nothing more would be taken for as long as this process lives
            logger.exception("A bug stopped taking records from the queue for a moment.")
            self._is_stopping.wait(AGAIN_SECONDS)

    def _take_all(self) -> None:
        from confluent_kafka import Consumer  # noqa: PLC0415 - see is_installed

        settings = self._address.settings(
            group_id=self._address.prefix,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        consumer = Consumer(settings, logger=logger)
        try:
            # By their beginning, since what waits in a stream that is no more is not lost.
            consumer.subscribe(["^" + self._address.prefix.replace(".", r"\.") + r"\."])
            while not self._is_stopping.is_set():
                self._take_some(consumer)
        finally:
            consumer.close()

    def _take_some(self, consumer: Any) -> None:
        records = _come(consumer)
        messages = _messages(records)
        while messages and not self._is_taken_in(messages):
            # Who does not ask for records counts as gone: so we ask, and want none. Those that had
            # been fetched before come all the same.
            consumer.pause(consumer.assignment())
            more = _come(consumer)
            records, messages = records + more, messages + _messages(more)
            if self._is_stopping.is_set():
                return  # nothing is committed: they come again
        if records:
            consumer.resume(consumer.assignment())
            self._commit(consumer, records)

    def _is_taken_in(self, messages: Sequence[Waiting]) -> bool:
        try:
            self._store.take_in(messages, time.time())
        except StoreUnavailable as error:
            logger.error("%d records of the queue wait for the database: %s", len(messages), error)
            return False
        return True

    def _commit(self, consumer: Any, records: Sequence[Any]) -> None:
        """Say that all before these, and these, need not come again."""
        from confluent_kafka import KafkaException, TopicPartition  # noqa: PLC0415

        next_: dict[tuple[str, int], int] = {}
        for record in records:
            place = (record.topic(), record.partition())
            next_[place] = max(next_.get(place, 0), record.offset() + 1)
        offsets = [TopicPartition(*place, offset) for place, offset in next_.items()]
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # they are another's by now, who does nothing with them
            logger.warning("Records of the queue will come again: %s", error)


def _come(consumer: Any) -> list[Any]:
    """Records as soon as there are any: to be asked for several, it would wait for all of them."""
    first = consumer.poll(WAIT_SECONDS)
    if first is None:
        return []
    return _good([first, *consumer.consume(MOST_TAKEN - 1, GATHER_SECONDS)])


def _good(records: Sequence[Any]) -> list[Any]:
    good = []
    for record in records:
        if record.error():
            logger.error("The queue: %s", record.error())
        else:
            good.append(record)
    return good


def _messages(records: Sequence[Any]) -> list[Waiting]:
    return [message for message in map(_message, records) if message]


def _message(record: Any) -> Waiting | None:
    try:
        return message_of(record.value())
    except (ValueError, KeyError, TypeError, AttributeError):
        place = f"{record.topic()}, {record.partition()}, {record.offset()}"
        logger.exception("A record cannot be read, and is not sent: %s", place)
        return None
