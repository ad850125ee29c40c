"""One domain's services, tried in priority order until one accepts the message."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from email_services.abstract import AbstractEmailService
from email_services.breakers import CircuitBreakers, Step, without_the_store
from email_services.bulkhead import Bulkhead
from email_services.caps import ServiceCaps
from email_services.copies import Copies
from email_services.counters import begin_at_zero
from email_services.delivery import Attempt, Delivery, Run
from email_services.exceptions import (
    NOT_SENT,
    UNKNOWN,
    CannotCarry,
    OutcomeUnknown,
    StoreUnavailable,
    UnknownService,
)
from email_services.guard import ALL_KEPT_BACK, NO_GUARD, Guard
from email_services.ledger import Ledger, Once, Queue
from email_services.message import EmailMessage, OnUnknown
from email_services.rounds import AT_CAP, Handover, Round, pass_by
from email_services.store import DEFAULT_STREAM, Store
from email_services.streams import BUILT_IN, Stream

DEFAULT_DEADLINE_SECONDS: Final = 25
"""Below the 30 s after which Heroku's router gives up on a request."""

SERVICE_PART: Final = 0.75
"""What one service may take of the domain's threads, where there are others."""

LAST_RESORTS_AT_ONCE: Final = 2
"""Requests that wait for a service which rests because no other is left, in one process. They find
out whether it is back; the others hear at once that nobody is."""

FIRST_RETRY_SECONDS: Final = 15.0
"""After which a message that waits is tried again for the first time."""

_CUT_OFF: Final = Attempt(
    "", UNKNOWN, OutcomeUnknown.code, "The first request with its Idempotency-Key was cut off.", 0
)

MANY: Final = 1000
"""Threads, where nobody has counted them."""


class PooledEmailService:
    """The services of one email domain.

    email_domain: in ASCII and lower case.
    deadline_seconds: what all attempts at the messages of one request may take together.
    on_unknown: whether an attempt that may have been accepted is followed by another one.
    streams: the kinds of its mail, by name.
    queues_unsent: whether a message that could not be sent waits in the outbox, and is not refused.
    guard: who may get messages.
    queue: what takes those that are to wait, if not the store.
    copies: what keeps messages that are tried, if anything does.
    threads: how many requests of this domain may be in progress in this process.
    processes: how many of them there are, for when they cannot ask each other.
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
        streams: Mapping[str, Stream] = BUILT_IN,
        queues_unsent: bool = False,
        guard: Guard = NO_GUARD,
        queue: Queue | None = None,
        copies: Copies | None = None,
        threads: int = MANY,
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.email_domain = email_domain
        self.services = {
            service.name: service for service in sorted(services, key=lambda s: -s.priority_value)
        }
        self.deadline_seconds = deadline_seconds
        self.on_unknown = on_unknown
        self.streams = streams
        self.queues_unsent = queues_unsent
        self.guard = guard
        self.breakers = CircuitBreakers(email_domain, store, now)
        begin_at_zero(email_domain, self.services, streams)
        self._ledger = Ledger(email_domain, store, deadline_seconds, streams, queue, copies=copies)
        self._clock = clock
        self._now = now
        places = threads if len(services) == 1 else max(1, int(threads * SERVICE_PART))
        self._places = {name: Bulkhead(places, clock) for name in self.services}
        self._caps = {s.name: ServiceCaps(s, store, now, processes) for s in services}
        self._last_places = {name: Bulkhead(LAST_RESORTS_AT_ONCE, clock) for name in self.services}

    def service(self, name: str) -> AbstractEmailService:
        """The service `name`, whatever its case. Raises UnknownService."""
        try:
            return self.services[name.lower()]
        except KeyError:
            raise UnknownService(self.email_domain, name) from None

    def plan(self, message: EmailMessage, only: AbstractEmailService | None = None) -> list[Step]:
        """What would be done with each service for `message` now, in order."""
        message = self.guard.apply(message.rendered())[0]
        if not message.recipients:
            return [_skipped(step, ALL_KEPT_BACK) for step in self.steps(only, message.stream)]
        steps, passed_by = [], []
        for step in self.steps(only, message.stream):
            why = _lacking(step.service, message) or self._at_cap(step)
            steps.append(_skipped(step, why) if why else step)
            if step.decision == "skip" and not why:
                passed_by.append(step)
        if passed_by:
            last = self.breakers.last_resort(passed_by)
            steps = [step for step in steps if step.service is not last.service] + [last]
        return steps

    def _at_cap(self, step: Step) -> str:
        """Why the service, which would be asked, may not be handed a message now, or ""."""
        if step.decision != "skip":
            with without_the_store(self.email_domain):
                grant = self._caps[step.service.name].look()
                return "" if grant.number else AT_CAP.format(grant.why)
        return ""

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
        runs = [self.run(message) for message in messages]
        answered = self._ledger.reserve(runs, once, whole, now) if once else {}
        deadline = self._clock() + self.deadline_seconds
        fresh = [run for n, run in enumerate(runs) if n not in answered]
        queued: dict[Run, Delivery] = {}
        if fresh:
            self._ledger.begin(fresh, now)
            open_runs = [run for run in fresh if not _stays_cut_off(run)]
            note = partial(self._ledger.note, now=now)
            for some in _by_stream(open_runs):
                self._deliver(some, only, deadline, note)
            if self.queues_unsent:
                queued = self._queue_unsent(open_runs, only, now)
            note([run for run in fresh if not run.is_noted])
        return self._told(runs, answered, queued, whole, now)

    def accept(
        self,
        messages: Sequence[EmailMessage],
        only: AbstractEmailService | None = None,
        once: Sequence[Once] | None = None,
        whole: Once | None = None,
    ) -> list[Delivery]:
        """Take the messages into the outbox, from which they are delivered later.

        What is said to be queued is on the disk. Returns what to say of each, in their order: one
        that no service can carry is refused. Raises StoreUnavailable where none could be taken,
        and as `send_all` does.
        """
        now = self._now()
        runs = [self.run(message) for message in messages]
        answered = {}
        if once:
            answered = self._ledger.reserve(runs, once, whole, now, only_queues=True)
        fresh = [run for n, run in enumerate(runs) if n not in answered]
        for run in fresh:
            if run.follows_cut_off and not run.stops:
                run.earlier = (_CUT_OFF,)
        waiting = [r for r in fresh if not (_stays_cut_off(r) or self._is_refused(r, only))]
        queued: dict[Run, Delivery] = {}
        if waiting:
            taken = self._ledger.queue(waiting, only, now)
            queued = dict(zip(waiting, taken, strict=True))
        if refused := [run for run in fresh if run not in queued]:
            self._ledger.begin(refused, now)
            self._ledger.note(refused, now)
        return self._told(runs, answered, queued, whole, now)

    def _told(
        self,
        runs: Sequence[Run],
        answered: Mapping[int, Delivery],
        queued: Mapping[Run, Delivery],
        whole: Once | None,
        now: float,
    ) -> list[Delivery]:
        """What to say of each: what was said before, by its number, or what became of it now."""
        told = [
            answered[n] if n in answered else queued.get(run) or run.delivery()
            for n, run in enumerate(runs)
        ]
        if whole:
            self._ledger.settle(whole, told, now)
        return told

    def keep_copies(self, runs: Sequence[Run]) -> None:
        """Keep messages of the outbox that are over, where the domain does so."""
        self._ledger.keep_copies(runs)

    def has_to_wait(self, message: EmailMessage, only: AbstractEmailService | None = None) -> bool:
        """Whether the message is for later, and no service can hold it as long."""
        if message.send_at is None:
            return False
        services = self.services_for(message.stream, only)
        at_once = message.for_now()
        return all(_lacking(service, message) for service in services) and not all(
            _lacking(service, at_once) for service in services
        )

    def deliver(
        self,
        runs: Sequence[Run],
        only: AbstractEmailService | None,
        handover: Handover,
        note: Callable[[Sequence[Run]], None],
        *,
        is_patient: bool,
    ) -> None:
        """Send messages of the outbox, all of one stream, which can wait if this fails.

        note: takes those that are over. is_patient: whether a service that rests is left alone,
        even if no other takes them. Raises StoreUnavailable.
        """
        deadline = self._clock() + self.deadline_seconds
        self._deliver(runs, only, deadline, note, handover=handover, is_patient=is_patient)

    def run(self, message: EmailMessage) -> Run:
        """The message on its way through the services."""
        policy = message.on_unknown or self.stream(message.stream).on_unknown or self.on_unknown
        guarded, kept_back = self.guard.apply(message)
        return Run(message, guarded, policy == "stop", kept_back)

    def steps(self, only: AbstractEmailService | None, stream: str = "") -> list[Step]:
        """What is to be done now with each service that a message of the stream may go through."""
        if only:
            return [self.breakers.forced(only)]
        services = self.services_for(stream)
        return self.breakers.plan(services, in_order=bool(self.stream(stream).services))

    def stream(self, name: str) -> Stream:
        """The stream of that name, or the default one."""
        return self.streams.get(name) or self.streams[DEFAULT_STREAM]

    def services_for(
        self, stream: str, only: AbstractEmailService | None = None
    ) -> list[AbstractEmailService]:
        """Those that a message of the stream may go through, in the order of the configuration."""
        if only:
            return [only]
        return [self.services[name] for name in self.stream(stream).services or self.services]

    def _is_refused(self, run: Run, only: AbstractEmailService | None) -> bool:
        """Whether no service can carry the message, at whatever time, or nobody may get it."""
        if not run.template.recipients:
            return True
        message = run.message.for_now()
        whys = []
        for service in self.services_for(run.given.stream, only):
            why = _lacking(service, message)
            if not why:
                return False
            whys.append((service.name, why))
        for name, why in whys:
            run.cannot_use(name, why)
        return True

    def _queue_unsent(
        self, runs: Sequence[Run], only: AbstractEmailService | None, now: float
    ) -> dict[Run, Delivery]:
        """Have those wait that surely were not sent, and that nobody refused for what they are."""
        unsent = [run for run in runs if _may_be_tried_again(run.delivery())]
        if not unsent:
            return {}
        # One that a cap held up is tried as soon as any other: a day is long.
        waits = [r.retry_after for r in unsent if r.retry_after is not None and not r.is_at_cap]
        seconds = max(FIRST_RETRY_SECONDS, *waits) if waits else FIRST_RETRY_SECONDS
        try:
            queued = self._ledger.queue(unsent, only, now, retry_seconds=seconds)
        except StoreUnavailable:
            return {}  # then it is said that they were not sent
        return dict(zip(unsent, queued, strict=True))

    def _deliver(
        self,
        runs: Sequence[Run],
        only: AbstractEmailService | None,
        deadline: float,
        note: Callable[[Sequence[Run]], None],
        *,
        handover: Handover | None = None,
        is_patient: bool = False,
    ) -> None:
        """Take the messages, of one stream, to one service after the other, until all are sent.

        note: what is done with those that are over. The rest as in `deliver`.
        """
        make_round = partial(self._round, note=note, handover=handover)
        steps = self.steps(only, runs[0].given.stream)
        for position, step in enumerate(steps):
            waits = handover is not None and self.stream(runs[0].given.stream).at_cap == "wait"
            going = [run for run in runs if not (run.is_over or (waits and run.is_at_cap))]
            able = _able(step.service, going)
            if able and self.breakers.may_try(step):
                until = self._clock() + _fair_share(deadline - self._clock(), steps[position:])
                make_round(step, until, finds_out=step.decision == "probe").send(able)
            else:
                pass_by(able, step)
        if is_patient:
            self._say_when_rests_end([r for r in runs if r.passed_by and not r.is_over], steps)
            return
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
                make_round(step, deadline, finds_out=True).send(waiting)
            finally:
                places.leave()
        self._say_when_limits_end([run for run in runs if run.met_a_limit and run.is_whole], only)

    def _say_when_rests_end(self, runs: Sequence[Run], steps: Sequence[Step]) -> None:
        """Note when the first of the services that were left alone is to be tried again."""
        now = self.breakers.plan([step.service for step in steps]) if runs else []
        rests = {step.service.name: self.breakers.seconds_to_rest(step) for step in now}
        for run in runs:
            known = [] if run.retry_after is None else [run.retry_after]
            run.retry_after = min([*known, *(rests[name] for name in run.passed_by)])

    def _say_when_limits_end(self, runs: Sequence[Run], only: AbstractEmailService | None) -> None:
        """Note when to send what met a limit again, where all who might take it rest by now."""
        steps = self.breakers.plan([only] if only else [*self.services.values()]) if runs else []
        for run in runs:
            able = [step for step in steps if step.service.name not in run.refused_by]
            if run.retry_after is None and all(step.decision == "skip" for step in able):
                run.retry_after = min(map(self.breakers.seconds_to_rest, able), default=None)

    def _last_resorts(
        self, runs: Sequence[Run], steps: Sequence[Step]
    ) -> list[tuple[Step, list[Run]]]:
        found: dict[str, tuple[Step, list[Run]]] = {}
        for run in runs:
            passed_by = [step for step in steps if step.service.name in run.passed_by]
            step = self.breakers.last_resort(passed_by)
            found.setdefault(step.service.name, (step, []))[1].append(run)
        return list(found.values())

    def _round(
        self,
        step: Step,
        until: float,
        *,
        note: Callable[[Sequence[Run]], None],
        finds_out: bool,
        handover: Handover | None = None,
    ) -> Round:
        service = step.service
        share = self.deadline_seconds / len(self.services)
        return Round(
            step,
            self.breakers,
            self._places[service.name],
            self._caps[service.name],
            self._clock,
            regular_seconds=min(service.settings.timeout_seconds, share),
            until=until,
            note=note,
            finds_out=finds_out,
            handover=handover,
        )


def _skipped(step: Step, why: str) -> Step:
    return replace(step, decision="skip", reason=why)


def _stays_cut_off(run: Run) -> bool:
    """Whether an earlier request with its key may have sent it, and nothing is to follow that."""
    return run.follows_cut_off and run.stops


def _may_be_tried_again(delivery: Delivery) -> bool:
    return delivery.outcome == NOT_SENT and not delivery.rejected


def _by_stream(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.given.stream, []).append(run)
    return [*groups.values()]


def _lacking(service: AbstractEmailService, message: EmailMessage) -> str:
    """Why the service cannot carry the message, or ""."""
    try:
        service.check(message)
    except CannotCarry as fault:
        return fault.reason
    return ""


def _able(service: AbstractEmailService, runs: Sequence[Run]) -> list[Run]:
    """Those whose message the service can carry; the others learn why not.

    Nor are those among them that it may have accepted at an earlier try.
    """
    able = []
    for run in runs:
        if service.name in run.doubted:
            continue
        if why := _lacking(service, run.message):
            run.cannot_use(service.name, why)
        else:
            able.append(run)
    return able


def _fair_share(remaining: float, steps: Sequence[Step]) -> float:
    """Seconds for the first of `steps`, such that those after it, if they are tried, get theirs.

    Where there is not enough for all, the rest of the deadline is shared equally, so that a backup
    always gets a try.
    """
    others = [step.service for step in steps[1:] if step.decision != "skip"]
    reserved = sum(service.settings.timeout_seconds for service in others)
    return max(remaining / (len(others) + 1), remaining - reserved)
