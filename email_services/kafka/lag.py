"""How much waits in the topics, whoever reads them."""

from __future__ import annotations

import logging
from typing import Final

from email_services.exceptions import StoreUnavailable
from email_services.kafka.address import KafkaAddress

logger = logging.getLogger("email_services.queue")  # which operators look for

_ASKING_SECONDS: Final = 2.0


def lag(address: KafkaAddress) -> dict[str, int]:
    """How many records of each stream, of all domains, are not in the database yet.

    Raises StoreUnavailable where the brokers do not answer.
    """
    from confluent_kafka import (  # noqa: PLC0415 - see is_installed
        Consumer,
        KafkaException,
        TopicPartition,
    )

    # It joins no group, and so takes nothing from those who read.
    consumer = Consumer(address.settings(group_id=address.prefix), logger=logger)
    try:
        topics = consumer.list_topics(timeout=_ASKING_SECONDS).topics.values()
        ours = [topic for topic in topics if topic.topic.startswith(address.topic(""))]
        places = [TopicPartition(topic.topic, n) for topic in ours for n in topic.partitions]
        found = {address.stream(topic.topic): 0 for topic in ours}
        for place in consumer.committed(places, _ASKING_SECONDS) if places else ():
            low, high = consumer.get_watermark_offsets(place, _ASKING_SECONDS)
            found[address.stream(place.topic)] += max(high - max(place.offset, low), 0)
    except KafkaException as error:
        raise StoreUnavailable("The queue does not answer.") from error
    finally:
        consumer.close()
    return found
