"""Who delivers what waits in the outbox: each stream of each domain in a lane of its own.

Any number of processes may do this side by side.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from email_services.config import Config
from email_services.copies import Copies
from email_services.exceptions import StoreUnavailable
from email_services.kafka import Intake
from email_services.pool import PooledEmailService
from email_services.queue.lane import POLL_SECONDS, Lane
from email_services.rounds import AT_ONCE
from email_services.store import Store
from email_services.streams import Stream

logger = logging.getLogger("email_services.queue")  # which operators look for

CALLS: Final = 64
"""Calls to providers that the streams of a domain may have under way in one process, together."""

STOP_SECONDS: Final = 60.0
"""How long a process that ends waits for what it has handed over."""

SWEEP_SECONDS: Final = 600.0
"""How often it is seen to what waits where nobody looks."""


class Dispatcher:
    """All lanes of one process.

    pools: of each domain, for this alone: what is under way here takes no place of a request's.
    calls: that the streams of a domain share. intake: what takes into the outbox, meanwhile, what
    waits elsewhere. now: the time in seconds since the epoch.
    """

    def __init__(
        self,
        pools: Sequence[PooledEmailService],
        store: Store,
        *,
        calls: int = CALLS,
        intake: Intake | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.pools = pools
        self._store = store
        self.intake = intake
        self._now = now
        self._changed = threading.Condition()
        self._has_changed = False
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lanes = {
            (pool.email_domain, stream.name): Lane(
                pool,
                stream,
                store,
                self._is_stopping,
                self._look_again,
                threads=_threads(calls, stream),
                now=now,
            )
            for pool in pools
            for stream in pool.streams.values()
        }

    @classmethod
    def of(
        cls, config: Config, store: Store, calls: int = CALLS, copies: Copies | None = None
    ) -> Dispatcher:
        """For all domains of a configuration. copies: what keeps messages once they were sent."""
        pools = [domain.pool(store, calls, copies=copies) for domain in config.domains.values()]
        intake = Intake(config.queue, store, config.streams) if config.queue else None
        return cls(pools, store, calls=calls, intake=intake)

    def start(self) -> None:
        """Begin, in threads of this process: after it was forked."""
        self._store.when_put(self.wake)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()
        if self.intake:
            self.intake.start()

    def listen(self) -> None:
        """Hear, too, what other processes put there; in a thread of its own."""
        arguments = (self._is_stopping.is_set,)
        threading.Thread(target=self._store.listen, args=arguments, daemon=True).start()

    def stop(self) -> None:
        """Take nothing more, finish what is with a service, and give the rest back."""
        self._is_stopping.set()
        if self._thread:
            self._store.no_longer_when_put(self.wake)
        self._look_again()
        if self.intake:
            self.intake.stop(STOP_SECONDS)
        if self._thread:
            self._thread.join(STOP_SECONDS)
        for lane in self._lanes.values():
            lane.close()

    def wake(self, email_domain: str, stream: str) -> None:
        """Say that a message may be due there."""
        if lane := self._lanes.get((email_domain, stream)):
            lane.look_at = 0.0
            self._look_again()

    def deliver_due(self) -> int:
        """Deliver here and now what is due; returns how many messages were taken."""
        self._sweep()
        return sum(lane.deliver_all() for lane in self._lanes.values())

    def _look_again(self) -> None:
        with self._changed:
            self._has_changed = True
            self._changed.notify()

    def _run(self) -> None:
        """Look after the lanes; a bug is logged and does not end that, or nothing would be sent."""
        while not self._is_stopping.is_set():
            with self._going_on_after_bugs():
                self._look_after_lanes()

    @contextmanager
    def _going_on_after_bugs(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            logger.exception("A bug stopped the dispatcher for a moment.")
            self._is_stopping.wait(POLL_SECONDS)

    def _look_after_lanes(self) -> None:
        next_sweep = 0.0
        while not self._is_stopping.is_set():
            now = time.monotonic()
            if now >= next_sweep:
                next_sweep = now + SWEEP_SECONDS
                self._sweep()
            for lane in self._lanes.values():
                lane.begin_if_due(now)
            with self._changed:
                if not self._has_changed:
                    soonest = min((lane.next_look for lane in self._lanes.values()), default=now)
                    wait = min(max(soonest - time.monotonic(), 0.0), POLL_SECONDS)
                    self._changed.wait(wait)
                self._has_changed = False

    def _sweep(self) -> None:
        """See to what waits in streams and domains that are no more."""
        try:
            for pool in self.pools:
                self._store.adopt(pool.email_domain, list(pool.streams))
            self._store.end_the_forgotten(self._now())
            self._store.remove_abandoned(self._now())
        except StoreUnavailable as error:
            logger.error("What waits where nobody looks is left alone: %s", error)


def _threads(calls: int, stream: Stream) -> int:
    """Each thread has up to AT_ONCE calls under way."""
    return max(1, round(calls * stream.share / AT_ONCE))
