"""Where the brokers are, and which topics are ours: `queue_url` of config.json."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

logger = logging.getLogger("email_services.queue")  # which operators look for

PORT: Final = 9092

MAX_RECORD_BYTES: Final = 1_000_000
"""What a broker takes of one record, if nobody has told it otherwise; a little less than that."""

PARTITIONS: Final = 6
"""Of a topic that we make: so many processes may take records from it at once."""

_MAKING_SECONDS: Final = 5.0
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_OPTION: Final = re.compile(r"(?:security|sasl|ssl)\.[a-z0-9._]+")
_LARGEST: Final = "message.max.bytes"


@dataclass(frozen=True)
class KafkaAddress:
    """What `queue_url` says.

    servers: host:port, with commas between. prefix: how the names of our topics begin, and the name
    of the group of those who take records from them. options: of librdkafka, how to get in.
    max_bytes: the largest record that the brokers take.
    """

    servers: str
    prefix: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_bytes: int = MAX_RECORD_BYTES

    @classmethod
    def of(cls, url: str) -> KafkaAddress:
        """Read the URL. Raises ValueError with a sentence that repeats nothing secret."""
        parts = urlsplit(url)
        prefix = parts.path.strip("/")
        if parts.scheme != "kafka" or not parts.netloc or "@" in parts.netloc:
            raise ValueError("It should be like kafka://host:9092/mailpool")
        if not _NAME.fullmatch(prefix):
            raise ValueError(
                "After the host it should name the topics, as in kafka://host/mailpool"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        largest = options.pop(_LARGEST, str(MAX_RECORD_BYTES))
        if not re.fullmatch(r"[1-9][0-9]{3,8}", largest):
            raise ValueError(f"{_LARGEST} should be a number of bytes from 1000 to 999999999")
        for name in options:
            if not _OPTION.fullmatch(name):
                raise ValueError(
                    f"It takes {_LARGEST}, security.*, sasl.* and ssl.*, as librdkafka, no '{name}'"
                )
        return cls(_servers(parts.netloc), prefix, options, int(largest))

    def topic(self, stream: str) -> str:
        """Where the messages of a stream wait, those of all domains."""
        return f"{self.prefix}.{stream}"

    def stream(self, topic: str) -> str:
        """The stream whose messages wait in the topic."""
        return topic.removeprefix(f"{self.prefix}.")

    def settings(self, **more: Any) -> dict[str, Any]:
        """For a client; the names in `more` have _ where librdkafka's have dots."""
        return {
            "bootstrap.servers": self.servers,
            "message.max.bytes": self.max_bytes,
            "log_level": 2,  # it would say the same at each try; what matters, we say
            "topic.metadata.refresh.interval.ms": 30_000,  # a stream may be new
            **self.options,
            **{name.replace("_", "."): value for name, value in more.items()},
        }


def _servers(netloc: str) -> str:
    return ",".join(
        server if re.search(r":[0-9]+$", server) else f"{server}:{PORT}"
        for server in netloc.split(",")
    )


def is_installed() -> bool:
    """Whether the client is there, which is an extra."""
    try:
        import confluent_kafka  # noqa: F401, PLC0415 - nobody needs it without a queue_url
    except ImportError:
        return False
    return True


def make_topics(address: KafkaAddress, streams: Collection[str]) -> None:
    """Make the topics of the streams, where they are not there and we may.

    Raises KafkaException where the brokers do not answer.
    """
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - see is_installed
    from confluent_kafka.cimpl import NewTopic  # noqa: PLC0415

    admin = AdminClient(address.settings(), logger=logger)
    there = admin.list_topics(timeout=_MAKING_SECONDS).topics
    missing = sorted({address.topic(stream) for stream in streams} - {*there})
    if not missing:
        return
    topics = [NewTopic(name, PARTITIONS, replication_factor=-1) for name in missing]
    made = admin.create_topics(topics, operation_timeout=_MAKING_SECONDS)
    for name, future in made.items():
        if error := future.exception(_MAKING_SECONDS + 1):  # another was first, or we may not
            logger.warning("The topic %s was not made: %s", name, error)
