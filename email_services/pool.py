"""One domain's services, tried in priority order until one accepts the message."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Final

from email_services.abstract import AbstractEmailService, Acceptance
from email_services.breakers import (
    GRACE_SECONDS,
    CircuitBreakers,
    Step,
    without_the_store,
)
from email_services.bulkhead import Bulkhead
from email_services.delivery import Delivery, Run
from email_services.exceptions import (
    NOT_SENT,
    AccountRefused,
    CannotCarry,
    KeyInProgress,
    KeyReused,
    MessageRejected,
    ProviderError,
    UnknownService,
)
from email_services.message import EmailMessage, OnUnknown
from email_services.store import LoggedMessage, Store

logger = logging.getLogger(__name__)

DEFAULT_DEADLINE_SECONDS: Final = 25
"""Below the 30 s after which Heroku's router gives up on a request."""

AT_ONCE: Final = 16
"""Calls to one service at a time, for messages that came in one request."""

LEAST_SECONDS: Final = 1.0
"""With less time left no attempt begins: most would end as unknown. Providers on the internet
answer within 0.3 s, on a new connection within 0.6 s."""

ENOUGH: Final = 0.9
"""The part of its regular time that a service must have had to be blamed for taking longer."""

TOO_LATE: Final = "Not tried: too little of the deadline was left."
NO_ROOM: Final = "Not tried: too many messages are with it already."

SERVICE_PART: Final = 0.75
"""What one service may take of the domain's threads, where there are others."""

LAST_RESORTS_AT_ONCE: Final = 2
"""Requests that wait for a service which rests because no other is left, in one process. They find
out whether it is back; the others hear at once that nobody is."""

MANY: Final = 1000
"""Threads, where nobody has counted them."""


@dataclass(frozen=True)
class Once:
    """An Idempotency-Key, and a fingerprint of the request that it stands for."""

    key: str
    fingerprint: str


class PooledEmailService:
    """The services of one email domain.

    email_domain: in ASCII and lower case.
    deadline_seconds: what all attempts at the messages of one request may take together.
    on_unknown: whether an attempt that may have been accepted is followed by another one.
    threads: how many requests of this domain may be in progress in this process.
    clock: a monotonic clock in seconds. now: the time in seconds since the epoch.
    """

    def __init__(
        self,
        email_domain: str,
        services: Sequence[AbstractEmailService],
        store: Store,
        *,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        on_unknown: OnUnknown = "failover",
        threads: int = MANY,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.email_domain = email_domain
        self.services = {
            service.name: service for service in sorted(services, key=lambda s: -s.priority_value)
        }
        self.deadline_seconds = deadline_seconds
        self.on_unknown = on_unknown
        self.breakers = CircuitBreakers(email_domain, store, now)
        self._store = store
        self._clock = clock
        self._now = now
        places = threads if len(services) == 1 else max(1, int(threads * SERVICE_PART))
        self._places = {name: Bulkhead(places, clock) for name in self.services}
        self._last_places = {name: Bulkhead(LAST_RESORTS_AT_ONCE, clock) for name in self.services}

    def service(self, name: str) -> AbstractEmailService:
        """The service `name`, whatever its case. Raises UnknownService."""
        try:
            return self.services[name.lower()]
        except KeyError:
            raise UnknownService(self.email_domain, name) from None

    def plan(self, message: EmailMessage, only: AbstractEmailService | None = None) -> list[Step]:
        """What would be done with each service for `message` now, in order."""
        message = message.rendered()
        lacking = {service.name: _lacking(service, message) for service in self.services.values()}
        steps = self._steps(only)
        able = [step for step in steps if not lacking[step.service.name]]
        if able and all(step.decision == "skip" for step in able):
            first = self.breakers.last_resort(able)
            steps = [first if step.service is first.service else step for step in steps]
        return [
            replace(step, decision="skip", reason=why)
            if (why := lacking[step.service.name])
            else step
            for step in steps
        ]

    def send(
        self,
        message: EmailMessage,
        only: AbstractEmailService | None = None,
        once: Once | None = None,
    ) -> Delivery:
        """`send_all` for one message."""
        return self.send_all([message], only, [once] if once else None)[0]

    def send_all(
        self,
        messages: Sequence[EmailMessage],
        only: AbstractEmailService | None = None,
        once: Sequence[Once] | None = None,
        whole: Once | None = None,
    ) -> list[Delivery]:
        """Try the services in order, or `only` one, until each message was accepted by one.

        Returns what happened to each, in their order; ProviderErrors never leave. Any other
        exception is a bug and does. With `once`, one for each message, raises KeyInProgress,
        KeyReused and StoreUnavailable, and tries nobody then. whole: what stands for them together,
        so that a request for one message does not take the key of a batch for its own.
        """
        now = self._now()
        runs = [Run(message, self._policy(message) == "stop") for message in messages]
        answered = self._reserve(runs, once, whole, now) if once else {}
        deadline = self._clock() + self.deadline_seconds
        fresh = [run for n, run in enumerate(runs) if n not in answered]
        if fresh:
            with without_the_store(self.email_domain):
                self._store.log_messages([self._logged(run, now) for run in fresh])
            open_runs = [run for run in fresh if not (run.follows_cut_off and run.stops)]
            self._deliver(open_runs, only, deadline, partial(self._note, now))
            self._note(now, [run for run in fresh if not run.is_noted])
        found = [answered[n] if n in answered else run.delivery() for n, run in enumerate(runs)]
        if whole:
            is_kept = any(delivery.outcome != NOT_SENT for delivery in found)
            with without_the_store(self.email_domain):
                self._store.settle_keys(
                    self.email_domain, now, {whole.key: {} if is_kept else None}
                )
        return found

    # What is kept of it

    def _reserve(
        self, runs: Sequence[Run], once: Sequence[Once], whole: Once | None, now: float
    ) -> dict[int, Delivery]:
        """Reserve the keys; returns the stored answers, by the number of the message."""
        until = now + self.deadline_seconds + GRACE_SECONDS
        keys = [(one.key, one.fingerprint) for one in [*once, *([whole] if whole else [])]]
        ids = {one.key: run.given.message_id for run, one in zip(runs, once, strict=True)}
        found = self._store.reserve_keys(self.email_domain, keys, now, until, ids)
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
        return answered

    def _logged(self, run: Run, now: float) -> LoggedMessage:
        """How the message log shows it, which began `now`, if not before."""
        message = run.given
        return LoggedMessage(
            message.message_id,
            now if run.began is None else run.began,
            self.email_domain,
            message.from_email.email,
            [address.key for address in message.recipients],
            message.filled(message.subject),
            deadline=now + self.deadline_seconds + GRACE_SECONDS,
        )

    def _note(self, now: float, runs: Sequence[Run]) -> None:
        """Write what became of the messages, which began `now`."""
        if not runs:
            return
        deliveries = [run.delivery() for run in runs]
        keys = {
            run.once_key: None if delivery.outcome == NOT_SENT else asdict(delivery)
            for run, delivery in zip(runs, deliveries, strict=True)
            if run.once_key
        }
        with without_the_store(self.email_domain):
            self._store.log_outcomes(
                [
                    replace(
                        self._logged(run, now),
                        outcome=delivery.outcome,
                        service_used=delivery.service_used,
                        service_message_id=delivery.service_message_id,
                        possible_duplicate=delivery.possible_duplicate,
                        attempts=[asdict(attempt) for attempt in delivery.attempts],
                    )
                    for run, delivery in zip(runs, deliveries, strict=True)
                ]
            )
        if keys:
            with without_the_store(self.email_domain):
                self._store.settle_keys(self.email_domain, now, keys)
        for run in runs:
            run.is_noted = True

    # The way through the services

    def _steps(self, only: AbstractEmailService | None) -> list[Step]:
        if only:
            return [self.breakers.forced(only)]
        return self.breakers.plan(list(self.services.values()))

    def _policy(self, message: EmailMessage) -> OnUnknown:
        return message.on_unknown or self.on_unknown

    def _deliver(
        self,
        runs: Sequence[Run],
        only: AbstractEmailService | None,
        deadline: float,
        note: Callable[[Sequence[Run]], None],
    ) -> None:
        """Take the messages to one service after the other, as long as any is not sent.

        note: what is done with those that are over.
        """
        steps = self._steps(only)
        for position, step in enumerate(steps):
            able = _able(step.service, [run for run in runs if not run.is_over])
            if able and self.breakers.may_try(step):
                until = self._clock() + _fair_share(deadline - self._clock(), steps[position:])
                self._round(_Round(step, until, note, finds_out=step.decision == "probe"), able)
            else:
                _pass_by(able, step)
        # Nobody else took these: rather than refuse, ask the one that is due first.
        left = [run for run in runs if run.passed_by and not run.is_over]
        for step, waiting in self._last_resorts(left, steps):
            places = self._last_places[step.service.name]
            if not places.enter(patience=0):
                for run in waiting:
                    run.retry_after = self.breakers.seconds_to_rest(step)
                continue
            for run in waiting:
                run.come_back_to(step.service.name)
            try:
                self._round(_Round(step, deadline, note, finds_out=True), waiting)
            finally:
                places.leave()

    def _last_resorts(
        self, runs: Sequence[Run], steps: Sequence[Step]
    ) -> list[tuple[Step, list[Run]]]:
        found: dict[str, tuple[Step, list[Run]]] = {}
        for run in runs:
            passed_by = [step for step in steps if step.service.name in run.passed_by]
            step = self.breakers.last_resort(passed_by)
            found.setdefault(step.service.name, (step, []))[1].append(run)
        return list(found.values())

    def _round(self, course: _Round, runs: Sequence[Run]) -> None:
        """Have one service send the messages, in as few calls as it takes and several at once."""
        if course.finds_out:  # one message does, and the others wait for it
            self._attempt(course, course.step, [runs[0]])
            runs = runs[1:]
            course.is_doubted = True
        parcels = _parcels(course.step.service, runs)
        if len(parcels) < 2:  # noqa: PLR2004 - the usual case, which needs no thread
            for parcel in parcels:
                self._take_turn(course, parcel)
        else:
            with ThreadPoolExecutor(min(AT_ONCE, len(parcels))) as executor:
                list(executor.map(partial(self._take_turn, course), parcels))

    def _take_turn(self, course: _Round, parcel: Sequence[Run]) -> None:
        """Ask the service, unless others of the same request have found that it is down."""
        step = course.step
        if course.is_doubted:
            (step,) = self.breakers.plan([step.service])
            if step.decision != "try":
                _pass_by(parcel, step)
                return
        places = self._places[step.service.name]
        if not places.enter():
            for run in parcel:
                run.find_no_room(step.service.name, NO_ROOM)
            return
        try:
            self._attempt(course, step, parcel)
        finally:
            places.leave()

    def _attempt(
        self,
        course: _Round,
        step: Step,
        parcel: Sequence[Run],
        refusal: MessageRejected | None = None,
    ) -> None:
        """Hand the messages to the service in one call, and note what it says of each.

        refusal: what it said of a larger call that they were part of.
        """
        started = self._clock()
        wanted = step.service.seconds_for([run.template for run in parcel])
        timeout = min(wanted, course.until - started)
        is_in_time = timeout >= min(LEAST_SECONDS, self._regular_seconds(step.service) / 2)
        if is_in_time:
            results = self._call(step, parcel, timeout)
            self._excuse(step.service, results)
        elif refusal:  # there is no time to find out which of them was to blame
            results = [refusal] * len(parcel)
        else:  # which is no fault of the service's
            for run in parcel:
                run.pass_by(step.service.name, "too_late", TOO_LATE)
            return
        refused = results[0] if isinstance(results[0], MessageRejected) else None
        if len(parcel) > 1 and refused and is_in_time and _all_rejected(results):
            # One of them may be to blame for the refusal of all: find out which.
            middle = len(parcel) // 2
            self._attempt(course, step, parcel[:middle], refused)
            self._attempt(course, step, parcel[middle:], refused)
            return
        milliseconds = round((self._clock() - started) * 1000)
        for run, result in zip(parcel, results, strict=True):
            run.note(step.service.name, result, milliseconds)
        blamed = self._record(step, parcel, results)
        course.is_doubted = course.is_doubted or blamed
        course.note([run for run in parcel if run.is_over])

    def _regular_seconds(self, service: AbstractEmailService) -> float:
        """What an attempt has for the service itself, if those before it took no more than that."""
        share = self.deadline_seconds / len(self.services)
        return min(service.settings.timeout_seconds, share)

    def _excuse(
        self, service: AbstractEmailService, results: Sequence[Acceptance | ProviderError]
    ) -> None:
        """Blame nobody for what our own deadline cut short, or a slow line of ours."""
        enough = ENOUGH * self._regular_seconds(service)
        faults = [result for result in results if isinstance(result, ProviderError)]
        for fault in faults:
            if fault.waited is not None and fault.waited < enough:
                fault.blames_service = False

    def _call(
        self, step: Step, parcel: Sequence[Run], timeout: float
    ) -> list[Acceptance | ProviderError]:
        """What the service says of each message; the fault of a whole call is everyone's."""
        send: Callable[[float], list[Acceptance | ProviderError]]
        if len(parcel) == 1:
            send = partial(_send_one, step.service, parcel[0].message)
        else:
            send = partial(step.service.send_batch, [_carried(step.service, r) for r in parcel])
        drill = self.breakers.drill_in(step.state)
        try:
            return drill.meet(send, timeout) if drill else send(timeout)
        except ProviderError as fault:
            return [fault] * len(parcel)

    def _record(
        self, step: Step, parcel: Sequence[Run], results: Sequence[Acceptance | ProviderError]
    ) -> bool:
        """Log what happened, and have the next message know how the service is.

        Returns whether it is to blame for something.
        """
        faults: dict[int, tuple[ProviderError, list[str]]] = {}
        for run, result in zip(parcel, results, strict=True):
            message_id = run.given.message_id
            if isinstance(result, ProviderError):  # a fault of the whole call is the same object
                faults.setdefault(id(result), (result, []))[1].append(message_id)
            else:
                logger.info("%s: %s sent %s", self.email_domain, step.service.name, message_id)
        for fault, message_ids in faults.values():
            _log_fault(self.email_domain, step.service.name, fault, message_ids)
        blamed = next((fault for fault, _ in faults.values() if fault.blames_service), None)
        if any(isinstance(result, Acceptance) for result in results):
            # It works, whatever it has against some of them.
            self.breakers.record_success(step)
        elif blamed:
            self.breakers.record_fault(step, blamed)
        else:
            for fault, _ in faults.values():
                self.breakers.record_fault(step, fault)
        return blamed is not None


@dataclass
class _Round:
    """One service's turn with the messages of one request.

    until: the time by which all its calls must have ended. note: takes messages that are over.
    finds_out: whether it has rested, so that one message goes before the others.
    is_doubted: whether a call has met a fault of the service's, so that those that follow look
    first whether it rests by now.
    """

    step: Step
    until: float
    note: Callable[[Sequence[Run]], None]
    finds_out: bool = False
    is_doubted: bool = False


def _lacking(service: AbstractEmailService, message: EmailMessage) -> str:
    """Why the service cannot carry the message, or ""."""
    try:
        service.check(message)
    except CannotCarry as fault:
        return fault.reason
    return ""


def _able(service: AbstractEmailService, runs: Sequence[Run]) -> list[Run]:
    """Those whose message the service can carry; the others learn why not."""
    able = []
    for run in runs:
        if why := _lacking(service, run.message):
            run.cannot_use(service.name, why)
        else:
            able.append(run)
    return able


def _pass_by(runs: Sequence[Run], step: Step) -> None:
    for run in runs:
        run.pass_by(step.service.name, *step.passing)


def _parcels(service: AbstractEmailService, runs: Sequence[Run]) -> list[Sequence[Run]]:
    """The messages as they go to the service: those that can share a call together."""
    if service.max_batch == 1 or len(runs) == 1:
        return [[run] for run in runs]
    groups: dict[Hashable, list[Run]] = {}
    seen: Counter[Hashable] = Counter()
    for run in runs:
        key = service.batch_key(_carried(service, run))
        if key is None:
            groups["alone", id(run)] = [run]
            continue
        # Providers know the messages of a call by their recipients: each is in it once.
        names = [(key, address.key) for address in run.template.recipients]
        seen.update(names)
        groups.setdefault((key, max(seen[name] for name in names)), []).append(run)
    most = service.max_batch
    return [
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    ]


def _all_rejected(results: Sequence[Acceptance | ProviderError]) -> bool:
    return all(isinstance(result, MessageRejected) for result in results)


def _carried(service: AbstractEmailService, run: Run) -> EmailMessage:
    """The message as the service takes it in a batch."""
    return run.template if service.substitutes and run.is_whole else run.message


def _send_one(
    service: AbstractEmailService, message: EmailMessage, timeout: float
) -> list[Acceptance | ProviderError]:
    return [service.send(message, timeout)]


def _log_fault(
    email_domain: str, service: str, fault: ProviderError, message_ids: Sequence[str]
) -> None:
    """Log the fault as loudly as an operator has to act on it.

    What a provider says of a message may quote it, so that it is for the caller's eyes only.
    """
    level = logging.ERROR if isinstance(fault, AccountRefused) else logging.WARNING
    words = "refused the message" if isinstance(fault, MessageRejected) else fault.summary
    more = f" and {len(message_ids) - 1} more" if len(message_ids) > 1 else ""
    line = "%s: %s, %s: %s (%s%s)"
    logger.log(level, line, email_domain, service, fault.outcome, words, message_ids[0], more)


def _fair_share(remaining: float, steps: Sequence[Step]) -> float:
    """Seconds for the first of `steps`, such that those after it, if they are tried, get theirs.

    Where there is not enough for all, the rest of the deadline is shared equally, so that a backup
    always gets a try.
    """
    others = [step.service for step in steps[1:] if step.decision != "skip"]
    reserved = sum(service.settings.timeout_seconds for service in others)
    return max(remaining / (len(others) + 1), remaining - reserved)
