"""What delivers the messages of one stream of a domain, and lets no other wait for it.

A lane has threads of its own, so that a provider that hangs, or a newsletter, holds up nobody but
those behind it. Each thread takes messages that are due, has the pool send them as it would any
other, and writes down what became of them.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from email_services.breakers import GRACE_SECONDS, Step
from email_services.exceptions import StoreUnavailable
from email_services.pool import PooledEmailService
from email_services.queue.claim import Claim
from email_services.rounds import AT_ONCE
from email_services.store import Store
from email_services.streams import Stream

logger = logging.getLogger("email_services.queue")  # which operators look for

POLL_SECONDS: Final = 2.0
"""How often a lane looks for itself, if nobody tells it that something waits."""

REST_POLL_SECONDS: Final = 10.0
"""The same while all services rest, or the stream is paused."""

CAP_POLL_SECONDS: Final = 0.25
"""The same while a service is at its cap."""

MOST_TAKEN: Final = 1000
TAKEN_BYTES: Final = 32 * 1024 * 1024
"""What one thread takes at once."""

QUICK_SECONDS: Final = 1.0
SLOW_SECONDS: Final = 4.0
GROWTH: Final = 4
"""A thread that was done sooner takes so many times as much next; one that took longer, half."""


class _Wanted(NamedTuple):
    """What is to be taken of the messages that are due.

    expiring_by: only those that expire by then, unless it is None.
    """

    limit: int
    expiring_by: float | None = None


class Lane:
    """What delivers the messages of one stream.

    is_stopping: whether nothing more is to be taken. look_again: tells who calls `begin_if_due`
    that it may be time. threads: how many there may be. look_at: when the lane is to be looked at
    again, by the monotonic clock. now: the time in seconds since the epoch.
    """

    def __init__(
        self,
        pool: PooledEmailService,
        stream: Stream,
        store: Store,
        is_stopping: threading.Event,
        look_again: Callable[[], None],
        *,
        threads: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.look_at = 0.0
        self._pool = pool
        self._stream = stream.name
        self._store = store
        self._is_stopping = is_stopping
        self._look_again = look_again
        self._now = now
        self._free = threads
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(threads)
        self._calls = ThreadPoolExecutor(threads * AT_ONCE)
        self._limit = AT_ONCE
        self._all_rested = False

    @property
    def next_look(self) -> float:
        """When it is of use to look, by the monotonic clock."""
        return self.look_at if self._free else float("inf")

    def close(self) -> None:
        """Wait for the threads."""
        self._executor.shutdown(wait=True)
        self._calls.shutdown(wait=True)

    def begin_if_due(self, now: float) -> None:
        """Have a thread deliver, if something is due and one is free.

        now: by the monotonic clock.
        """
        if now < self.next_look:
            return
        self.look_at = now + POLL_SECONDS
        try:
            due = self._store.next_due(self._pool.email_domain, self._stream)
        except StoreUnavailable:
            return  # which is said where somebody waits for it
        if due is None:
            return
        if (seconds := due - self._now()) > 0 and not self._has_recovered():
            self.look_at = min(self.look_at, now + seconds)
            return
        with self._lock:
            self._free -= 1
        self._executor.submit(self._work).add_done_callback(_complain)

    def deliver_all(self) -> int:
        """Deliver here and now what is due; returns how many messages were taken."""
        taken = 0
        while some := self._deliver_some():
            taken += some
        return taken

    def _work(self) -> None:
        try:
            while not self._is_stopping.is_set():
                limit = self._limit
                taken = self._deliver_some()
                if taken:  # there may be more, where a probe or large ones were taken alone
                    self.look_at = 0.0
                if taken < limit:
                    break
                self._look_again()  # where all that were wanted were there, others come to help
        finally:
            with self._lock:
                self._free += 1
            self._look_again()

    def _deliver_some(self) -> int:
        """Take messages that are due, and deliver them; returns how many.

        0, too, where those that were taken found a service at its cap: it is of no use to go on.
        """
        now = self._now()
        claim = uuid.uuid4().hex
        try:
            wanted = self._wanted(now)
            taken = self._store.claim(
                self._pool.email_domain,
                self._stream,
                claim,
                now,
                now + self._lease_seconds,
                limit=wanted.limit,
                max_bytes=TAKEN_BYTES,
                expiring_by=wanted.expiring_by,
            )
        except StoreUnavailable as error:
            logger.error("%s: nothing is taken from the queue: %s", self._pool.email_domain, error)
            return 0
        if taken:
            started = time.monotonic()
            delivery = Claim(
                claim,
                taken,
                self._pool,
                self._store,
                self._is_stopping,
                calls=self._calls,
                lease_seconds=self._lease_seconds,
                now=self._now,
                random=random.random,
            )
            delivery.deliver(is_patient=wanted.expiring_by is None)
            if delivery.met_a_cap:
                # To take more would only be to put them back.
                self._limit = AT_ONCE
                self.look_at = time.monotonic() + CAP_POLL_SECONDS
                return 0
            self._adapt(len(taken), time.monotonic() - started)
        return len(taken)

    def _wanted(self, now: float) -> _Wanted:
        """All that is due, unless it is of no use to try; what expires then has to be told."""
        if self._stream in self._store.paused_streams(self._pool.email_domain):
            self.look_at = time.monotonic() + REST_POLL_SECONDS
            return _Wanted(self._limit, expiring_by=now)
        steps = self._steps()
        decisions = {step.decision for step in steps}
        if decisions == {"skip"}:
            rest = min(map(self._pool.breakers.seconds_to_rest, steps))
            self.look_at = time.monotonic() + min(max(rest, 0.1), REST_POLL_SECONDS)
            self._all_rested = True
            return _Wanted(self._limit, expiring_by=now + rest)
        if self._all_rested:
            self._all_rested = False
            self._store.hasten(self._pool.email_domain, self._stream, now)
        # Where no service is known to work, one message finds out, and the others wait for it.
        return _Wanted(self._limit if "try" in decisions else 1)

    def _has_recovered(self) -> bool:
        """Whether all services rested, and one does not now: what failed need not wait."""
        if {step.decision for step in self._steps()} == {"skip"}:
            self._all_rested = True
            return False
        return self._all_rested

    def _steps(self) -> list[Step]:
        return self._pool.steps(None, self._stream)

    @property
    def _lease_seconds(self) -> float:
        """After which what was taken counts as nobody's: longer than any delivery takes."""
        return self._pool.deadline_seconds + GRACE_SECONDS + self._store.skew_seconds

    def _adapt(self, taken: int, seconds: float) -> None:
        if seconds > SLOW_SECONDS:
            self._limit = max(AT_ONCE, self._limit // 2)
        elif seconds < QUICK_SECONDS and taken >= self._limit:
            self._limit = min(MOST_TAKEN, self._limit * GROWTH)


def _complain(job: Future[None]) -> None:
    """Log a bug of ours. What the thread had taken is due again when its lease is over."""
    if error := job.exception():
        logger.error("A bug ended a delivery from the queue.", exc_info=error)
