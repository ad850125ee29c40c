"""What waits, delivered apart from the web: `python -m email_services worker`.

It follows what is uploaded, and is a target for Prometheus of its own: it may be on another machine
than the web, and of two servers that both told its counts, each message would be counted twice.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Final
from wsgiref.simple_server import ServerHandler

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from email_services import traces
from email_services.config import Config, load_config, newest_config
from email_services.counters import COUNTED, note_reload
from email_services.exceptions import ConfigError, StoreUnavailable
from email_services.gauges import Known
from email_services.logs import event
from email_services.queue import CALLS, Dispatcher

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
"""How often it asks whether a configuration was uploaded."""

PORT_VARIABLE: Final = "WORKER_METRICS_PORT"


class WorkerApart(Collector):
    """Delivers what waits, until it is stopped."""

    def __init__(self) -> None:
        self._config = load_config()
        note_reload(is_in_use=True)
        self._store = self._config.store()
        self._copies = self._config.copies(self._store)
        self._calls = int(os.environ.get("QUEUE_CALLS", CALLS)) or CALLS
        self._refused = ""
        self._dispatcher = self._made()

    def run(self, is_over: threading.Event) -> None:
        """Go on until `is_over`, and end what was handed over."""
        traces.begin(os.environ)
        self._begin()
        while not is_over.wait(LOOK_SECONDS):
            self._look()
        self._dispatcher.stop()
        self._copies.stop()
        self._store.close()
        traces.end()

    def tell_metrics(self) -> None:
        """Answer Prometheus at the port that the environment names, if it does. Raises ConfigError.

        Nobody is asked for a key: it is to be reached by Prometheus alone.
        """
        value = os.environ.get(PORT_VARIABLE)
        if value is None:
            return
        if not re.fullmatch(r"[1-9][0-9]{0,4}", value) or int(value) > 65535:  # noqa: PLR2004
            raise ConfigError(f"${PORT_VARIABLE} should be a whole number from 1 to 65535.")
        registry = CollectorRegistry()
        registry.register(self)
        host = os.environ.get("HOST", "127.0.0.1")
        ServerHandler.server_software = ""  # it would say which Python this is
        try:
            start_http_server(int(value), host, registry)
        except OSError as error:
            where = f"{host}:{value}"
            raise ConfigError(
                f"Nobody can listen at {where}: {error.strerror}. Choose another ${PORT_VARIABLE}."
            ) from None

    def collect(self) -> Iterator[Metric]:
        """See prometheus-client: the same as the web's /metrics, but for requests."""
        yield from COUNTED.collect()
        pools = {pool.email_domain: pool for pool in self._dispatcher.pools}
        yield from Known(self._config, self._store, pools).collect()

    def describe(self) -> Iterator[Metric]:
        """Nothing: it would ask the database."""
        return iter(())

    def _made(self) -> Dispatcher:
        return Dispatcher.of(self._config, self._store, self._calls, self._copies)

    def _begin(self) -> None:
        self._dispatcher.start()
        self._dispatcher.listen()

    def _look(self) -> None:
        """Take over what was uploaded since, if it is usable here."""
        try:
            newest = newest_config(self._config, self._store)
        except StoreUnavailable:
            return
        except ConfigError as error:
            self._refuse(str(error))
            return
        if newest:
            self._take_over(newest)

    def _take_over(self, newest: Config) -> None:
        newest.go_on_from(self._config, self._store, self._copies)
        self._config, before = newest, self._dispatcher
        self._dispatcher = self._made()
        self._begin()
        before.stop()
        note_reload(is_in_use=True)
        said = event("config", is_taken_over=True, version=newest.version)
        logger.info("The configuration is version %d now.", newest.version, extra=said)

    def _refuse(self, why: str) -> None:
        note_reload(is_in_use=False)
        if why != self._refused:
            said = event("config", is_taken_over=False)
            logger.error("The configuration was not taken over: %s", why, extra=said)
        self._refused = why
