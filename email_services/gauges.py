"""What is known when it is asked for: how the services are, and which configuration is in use.

It is read from the database each time, since all workers and machines share it there. Where that
is away, what it would say is left out, and `mailpool_store_up` is 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from email_services.config import Config
from email_services.exceptions import SearchTooSlow, StoreUnavailable
from email_services.health import State
from email_services.kafka import KafkaAddress, lag
from email_services.pool import PooledEmailService
from email_services.store import Depth, ServiceState, Store

STORE_UP: Final = "mailpool_store_up", "Whether the state database answers."
SERVICE_STATE: Final = (
    "mailpool_service_state",
    "1 for the state that a service is in, 0 for the others.",
)
QUEUE_WAITING: Final = "mailpool_queue_waiting", "Messages that could be sent now, and wait."
QUEUE_OLDEST: Final = (
    "mailpool_queue_oldest_seconds",
    "For how long the first of them waits; 0 where none does.",
)
QUEUE_RECORDS: Final = (
    "mailpool_queue_records",
    "Records of Kafka that are not taken into the database yet, of all domains.",
)
QUEUE_UP: Final = "mailpool_queue_up", "Whether Kafka answers, where it is the queue."
CONFIG_INFO: Final = (
    "mailpool_config_info",
    "1 for the configuration in use; the same on all machines that share it and the database.",
)


class Known(Collector):
    """All of it, for one scrape. now: seconds since the epoch."""

    def __init__(
        self,
        config: Config,
        store: Store,
        pools: Mapping[str, PooledEmailService],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._store = store
        self._pools = pools
        self._now = now

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See prometheus-client. The first silence of the database is the last: it takes 2.5 s."""
        found: list[GaugeMetricFamily] = []
        is_up = True
        try:
            found += [self._states(self._store.all_service_states()), self._fingerprint()]
            found += self._queues(self._store.all_depths(self._now()))
        except StoreUnavailable:
            is_up = False
        except SearchTooSlow:  # what waits is not counted just now, and the rest is known
            pass
        yield GaugeMetricFamily(*STORE_UP, value=int(is_up))
        yield from found
        if self._config.queue:
            yield from _records(self._config.queue)

    def _queues(self, depths: Mapping[tuple[str, str], Depth]) -> list[GaugeMetricFamily]:
        waiting = GaugeMetricFamily(*QUEUE_WAITING, labels=("domain", "stream"))
        oldest = GaugeMetricFamily(*QUEUE_OLDEST, labels=("domain", "stream"))
        for domain, pool in self._pools.items():
            for stream in pool.streams:
                depth = depths.get((domain, stream), Depth())
                waiting.add_metric((domain, stream), depth.waiting)
                oldest.add_metric((domain, stream), depth.oldest_seconds or 0)
        return [waiting, oldest]

    def _states(self, states: Mapping[tuple[str, str], ServiceState]) -> GaugeMetricFamily:
        told = GaugeMetricFamily(*SERVICE_STATE, labels=("domain", "service", "state"))
        now = self._now()
        for domain, pool in self._pools.items():
            for service in pool.services:
                state = states.get((domain, service), ServiceState())
                current = pool.breakers.health_in(state, now).state(now)
                for word in get_args(State):
                    told.add_metric((domain, service, word), int(word == current))
        return told

    def _fingerprint(self) -> GaugeMetricFamily:
        told = GaugeMetricFamily(*CONFIG_INFO, labels=("hash",))
        told.add_metric((self._config.fingerprint(self._store.secret("configuration")),), 1)
        return told


def _records(address: KafkaAddress) -> Iterator[GaugeMetricFamily]:
    try:
        found = lag(address)
    except StoreUnavailable:
        yield GaugeMetricFamily(*QUEUE_UP, value=0)
        return
    yield GaugeMetricFamily(*QUEUE_UP, value=1)
    told = GaugeMetricFamily(*QUEUE_RECORDS, labels=("stream",))
    for stream, records in found.items():
        told.add_metric((stream,), records)
    yield told


def known(config: Config, store: Store, pools: Mapping[str, PooledEmailService]) -> bytes:
    """The same as Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(Known(config, store, pools))
    return generate_latest(registry)
