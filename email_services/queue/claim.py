"""Messages that one thread has taken from the outbox, on their way through the services."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

from email_services.counters import count_message
from email_services.delivery import Attempt, Delivery, Run, log_failover
from email_services.exceptions import (
    NOT_SENT,
    UNKNOWN,
    OutcomeUnknown,
    StoreUnavailable,
)
from email_services.packing import unpacked
from email_services.pool import PooledEmailService
from email_services.queue.retries import what_follows
from email_services.store import Again, Claimed, Ended, Store

logger = logging.getLogger("email_services.queue")  # which operators look for

AGAIN_SECONDS: Final = 1.0
"""After which it is tried again to write down what became of messages, while the database is away.
What is never written counts as unknown once the lease is over."""

GONE: Final = "Cut off: the process that was handing it over has ended."
NO_SUCH_SERVICE: Final = "The domain has no such service any more."


class Claim:
    """What one thread has taken, and what becomes of it; a Handover.

    claim: whose it is, for the store. is_stopping: whether nothing more is to be handed over.
    calls: see Handover. lease_seconds: how long it is ours after each time that is noted.
    """

    def __init__(
        self,
        claim: str,
        taken: Sequence[Claimed],
        pool: PooledEmailService,
        store: Store,
        is_stopping: threading.Event,
        *,
        calls: Executor,
        lease_seconds: float,
        now: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._claim = claim
        self._taken = taken
        self._pool = pool
        self._store = store
        self._is_stopping = is_stopping
        self.calls = calls
        self._lease_seconds = lease_seconds
        self._now = now
        self._random = random
        self._open: dict[Run, Claimed] = {}
        self._over: list[Run] = []
        self._lost: set[Run] = set()
        self.met_a_cap = False
        """Whether some of them wait since a service is at its cap."""

    def deliver(self, *, is_patient: bool) -> None:
        """Send what can be sent, and write down what became of each.

        is_patient: whether a service that rests is left alone, even if no other takes them.
        """
        self._read()
        groups: dict[str | None, list[Run]] = {}
        for run, item in self._open.items():
            if not (run.is_over or self._is_late(item)):
                groups.setdefault(item.service, []).append(run)
        try:
            for service, runs in groups.items():
                self._deliver_through(service, runs, is_patient=is_patient)
        except StoreUnavailable as error:
            logger.error("%s: nothing is handed over: %s", self._pool.email_domain, error)
        finally:  # a bug of ours with one of them costs the others nothing that is known by then
            self.end()
        self._settle(list(self._open))

    def _deliver_through(self, name: str | None, runs: Sequence[Run], *, is_patient: bool) -> None:
        only = self._pool.services.get(name) if name else None
        if name and only is None:
            for run in runs:
                run.cannot_use(name, NO_SUCH_SERVICE)
            return
        self._pool.deliver(runs, only, self, self._over.extend, is_patient=is_patient)

    # A Handover

    def begin(self, service: str, runs: Sequence[Run]) -> Sequence[Run]:
        """Note that the service may have them now. Raises StoreUnavailable."""
        if self._is_stopping.is_set():
            return []
        in_time = [run for run in runs if not self._is_late(self._open[run])]
        if not in_time:
            return []
        ids = [run.given.message_id for run in in_time]
        until = self._now() + self._lease_seconds
        ours = self._store.hand_over(self._claim, ids, service, until)
        self._lost.update(run for run in in_time if run.given.message_id not in ours)
        return [run for run in in_time if run not in self._lost]

    def end(self) -> None:
        """Write down what became of those that are over."""
        over, self._over = self._over, []
        self._settle(over)

    # What is read, and what is written

    def _read(self) -> None:
        unreadable, cut_off = [], []
        for item in self._taken:
            try:
                message = unpacked(item.payload)
            except (ValueError, KeyError, TypeError):
                logger.exception("%s cannot be read, and is not sent", item.message_id)
                unreadable.append(Ended(item.message_id, NOT_SENT, item.attempts))
                continue
            run = self._pool.run(message)
            run.earlier = tuple(map(Attempt.from_stored, item.attempts))
            if item.handing_to:
                run.earlier = (*run.earlier, self._cut_off(item.handing_to))
                cut_off.append(run)
            run.is_over = run.is_over or (run.stops and bool(run.doubted))
            self._open[run] = item
        if unreadable:
            self._persist(lambda: self._store.settle(self._claim, unreadable))
        if cut_off:
            attempts = {
                run.given.message_id: [attempt.as_dict() for attempt in run.earlier]
                for run in cut_off
            }
            self._persist(lambda: self._store.note_cut_off(self._claim, attempts))

    def _cut_off(self, service: str) -> Attempt:
        return Attempt(service, UNKNOWN, OutcomeUnknown.code, GONE, 0, self._now())

    def _is_late(self, item: Claimed) -> bool:
        return item.expires <= self._now()

    def _settle(self, runs: Sequence[Run]) -> None:
        ended: list[Ended] = []
        again: list[Again] = []
        deliveries: list[tuple[str, Delivery]] = []
        over: list[Run] = []
        now = self._now()
        for run in runs:
            item = self._open.pop(run)
            if run in self._lost:
                continue
            stream = self._pool.services_for(run.given.stream)
            services = [item.service] if item.service else [service.name for service in stream]
            follows = what_follows(run, item, services, now, self._random)
            if isinstance(follows, Ended):
                ended.append(follows)
                over.append(run)
                delivery = replace(run.delivery(), outcome=follows.outcome)
                deliveries.append((self._pool.stream(run.given.stream).name, delivery))
            else:
                again.append(follows)
                self.met_a_cap = self.met_a_cap or run.is_at_cap

        def write() -> None:
            self._store.settle(self._claim, ended, again)
            for stream, delivery in deliveries:
                count_message(self._pool.email_domain, stream, delivery)
                log_failover(self._pool.email_domain, delivery)
            self._pool.keep_copies(over)

        if ended or again:
            self._persist(write)

    def _persist(self, write: Callable[[], None]) -> None:
        """Write it, however long the database is away, as long as this process goes on."""
        while not self._is_written(write):
            if self._is_stopping.wait(AGAIN_SECONDS):
                return

    def _is_written(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except StoreUnavailable as error:
            logger.error("What became of messages is not written down yet: %s", error)
            return False
        return True
