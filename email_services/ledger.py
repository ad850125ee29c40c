"""What is kept of the messages of one domain: their keys, the log, the answers to repeat."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from email_services.abstract import AbstractEmailService
from email_services.breakers import GRACE_SECONDS, without_the_store
from email_services.copies import Copies
from email_services.counters import count_message, count_replays
from email_services.delivery import Delivery, Run, log_failover
from email_services.exceptions import (
    NOT_SENT,
    UNKNOWN,
    KeyInProgress,
    KeyReused,
    StoreUnavailable,
)
from email_services.logs import event, ids
from email_services.message import EmailMessage
from email_services.packing import packed
from email_services.store import DEFAULT_STREAM, QUEUED, LoggedMessage, Store, Waiting
from email_services.streams import BUILT_IN, Stream

logger = logging.getLogger("email_services.queue")  # which operators look for


class Queue(Protocol):
    """What takes messages that are to wait: the store, or what takes them on their way there."""

    def put(self, messages: Sequence[Waiting], reserved_at: float) -> list[bool | None]:
        """As Store.put."""


@dataclass(frozen=True)
class Once:
    """An Idempotency-Key, and a fingerprint of the request that it stands for."""

    key: str
    fingerprint: str


class Ledger:
    """What is kept of the messages of one domain.

    deadline_seconds: after which, and some grace, a request that has not been heard of was cut off.
    streams: those that its messages go in, by name. queue: what takes those that are to wait, if
    not the store. copies: what keeps them, if anything does.
    Times, `now`, are in seconds since the epoch: when the request came.
    """

    def __init__(
        self,
        email_domain: str,
        store: Store,
        deadline_seconds: float,
        streams: Mapping[str, Stream] = BUILT_IN,
        queue: Queue | None = None,
        *,
        copies: Copies | None = None,
    ) -> None:
        self._email_domain = email_domain
        self._store = store
        self._copies = copies
        self._queue = queue or store
        self._streams = streams
        self._seconds = deadline_seconds + GRACE_SECONDS

    def reserve(
        self,
        runs: Sequence[Run],
        once: Sequence[Once],
        whole: Once | None,
        now: float,
        *,
        only_queues: bool = False,
    ) -> dict[int, Delivery]:
        """Reserve the keys; returns the stored answers, by the number of the message.

        whole: what stands for all together. only_queues: whether none of them is handed to a
        service before it is queued. Raises KeyInProgress, KeyReused and StoreUnavailable.
        """
        keys = [(one.key, one.fingerprint) for one in [*once, *([whole] if whole else [])]]
        ids = {one.key: run.given.message_id for run, one in zip(runs, once, strict=True)}
        until = now + self._seconds
        found = self._store.reserve_keys(
            self._email_domain, keys, now, until, ids, only_queues=only_queues
        )
        states = {reservation.state for reservation in found}
        if "other" in states:
            raise KeyReused("This Idempotency-Key was used for another request.")
        if "in progress" in states:
            raise KeyInProgress("The first request with this Idempotency-Key is in progress.")
        answered = {}
        for n, (run, one, reservation) in enumerate(
            zip(runs, once, found[: len(once)], strict=True)
        ):
            run.once_key = one.key
            if reservation.state == "abandoned":
                run.follow(reservation.message)
            if reservation.answer is not None:
                answered[n] = Delivery.from_stored(reservation.answer)
        count_replays(self._email_domain, len(answered))
        return answered

    def begin(self, runs: Sequence[Run], now: float) -> None:
        """Log that the messages are about to be tried, and have them kept, whatever ends this."""
        with without_the_store(self._email_domain):
            self._store.log_messages([self._logged(run, now) for run in runs])
        self.keep_copies(runs)

    def note(self, runs: Sequence[Run], now: float) -> None:
        """Log what became of the messages, and keep the answers to those with a key."""
        if not runs:
            return
        deliveries = [run.delivery() for run in runs]
        keys = {
            run.once_key: None if delivery.outcome == NOT_SENT else asdict(delivery)
            for run, delivery in zip(runs, deliveries, strict=True)
            if run.once_key
        }
        with without_the_store(self._email_domain):
            self._store.log_outcomes(
                [
                    self._logged(
                        run,
                        now,
                        outcome=delivery.outcome,
                        service_used=delivery.service_used,
                        service_message_id=delivery.service_message_id,
                        possible_duplicate=delivery.possible_duplicate,
                        attempts=[attempt.as_dict() for attempt in delivery.attempts],
                    )
                    for run, delivery in zip(runs, deliveries, strict=True)
                ]
            )
        if keys:
            with without_the_store(self._email_domain):
                self._store.settle_keys(self._email_domain, now, keys)
        for run, delivery in zip(runs, deliveries, strict=True):
            run.is_noted = True
            count_message(self._email_domain, self._stream(run.given).name, delivery)
            log_failover(self._email_domain, delivery)

    def keep_copies(self, runs: Sequence[Run]) -> None:
        """Keep messages that are tried, or were, where the domain does so."""
        if self._copies:
            self._copies.keep(self._email_domain, [run.given for run in runs])

    def queue(
        self,
        runs: Sequence[Run],
        only: AbstractEmailService | None,
        now: float,
        *,
        retry_seconds: float | None = None,
    ) -> list[Delivery]:
        """Have the messages wait in the queue, on the disk; returns what to say of each.

        only: the service that they may go through, if not all. retry_seconds: after which they are
        tried again, where they have been tried. Raises StoreUnavailable where none is there.
        """
        queued = {run: replace(run.delivery(), outcome=QUEUED, rejected=False) for run in runs}
        service = only.name if only else None
        waiting = [self._waiting(run, now, retry_seconds, service, queued[run]) for run in runs]
        try:
            taken = self._queue.put(waiting, now)
        except StoreUnavailable:
            self._free(runs, now)
            raise
        # A key whose message may be there is kept: who repeats it is told so, or goes on from it.
        self._free([r for r, is_there in zip(runs, taken, strict=True) if is_there is False], now)
        deliveries = []
        for run, is_there in zip(runs, taken, strict=True):
            run.is_noted = True
            delivery = queued[run] if is_there else run.delivery()
            if is_there is None:
                delivery = replace(delivery, outcome=UNKNOWN, is_taken_in_doubt=True)
            deliveries.append(delivery)
        self._log_queued([d.message_id for d in deliveries if d.outcome == QUEUED])
        return deliveries

    def _log_queued(self, message_ids: Sequence[str]) -> None:
        if message_ids:
            more = f" and {len(message_ids) - 1} more" if len(message_ids) > 1 else ""
            said = event("queued", domain=self._email_domain, **ids(message_ids))
            logger.info("%s: queued %s%s", self._email_domain, message_ids[0], more, extra=said)

    def _free(self, runs: Sequence[Run], now: float) -> None:
        """Let go of the keys of messages that were not taken, as far as is known."""
        if keys := {run.once_key: None for run in runs if run.once_key}:
            with without_the_store(self._email_domain):
                self._store.settle_keys(self._email_domain, now, keys)

    def _waiting(
        self,
        run: Run,
        now: float,
        retry_seconds: float | None,
        service: str | None,
        queued: Delivery,
    ) -> Waiting:
        message = run.given
        ready_at = message.send_at.timestamp() if message.send_at else now
        expires = ready_at + (message.expires_in or self._stream(message).expires_in)
        due = ready_at if retry_seconds is None else now + retry_seconds
        return Waiting(
            self._logged(
                run,
                now,
                outcome=QUEUED,
                attempts=[attempt.as_dict() for attempt in queued.attempts],
            ),
            packed(message.for_now()),
            ready_at,
            min(due, expires),
            expires,
            service=service,
            tries=0 if retry_seconds is None else 1,
            key=run.once_key,
            answer=asdict(queued) if run.once_key else None,
        )

    def settle(self, whole: Once, deliveries: Sequence[Delivery], now: float) -> None:
        """Keep what stands for all of them together, unless none was sent, not even perhaps."""
        is_kept = any(delivery.outcome != NOT_SENT for delivery in deliveries)
        with without_the_store(self._email_domain):
            self._store.settle_keys(self._email_domain, now, {whole.key: {} if is_kept else None})

    def _logged(self, run: Run, now: float, **became: Any) -> LoggedMessage:
        """How the message log shows it, which began `now`, if not before, and what it became."""
        message = run.given
        recipients = message.recipients
        return LoggedMessage(
            message.message_id,
            now if run.began is None else run.began,
            self._email_domain,
            message.from_email.email,
            [address.key for address in recipients],
            message.filled(message.subject),
            deadline=now + self._seconds,
            from_name=message.from_email.name,
            names={address.key: address.name for address in recipients if address.name},
            cc_from=(cc_from := len(message.to_recipients)),
            bcc_from=cc_from + len(message.to_cc),
            tags=message.tags,
            stream=self._stream(message).name,
            kept_back=run.kept_back.addresses,
            redirected_to=run.kept_back.redirected_to,
            again_of=message.again_of,
            **became,
        )

    def _stream(self, message: EmailMessage) -> Stream:
        return self._streams.get(message.stream) or self._streams[DEFAULT_STREAM]
