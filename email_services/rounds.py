"""What is done with one service: its turn with the messages of one request."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from email_services import traces
from email_services.abstract import AbstractEmailService, Acceptance
from email_services.breakers import CircuitBreakers, Step
from email_services.bulkhead import Bulkhead
from email_services.caps import ServiceCaps
from email_services.counters import count_attempt, count_call
from email_services.delivery import Run
from email_services.exceptions import SENT, AccountRefused, MessageRejected, ProviderError
from email_services.logs import event, ids
from email_services.message import EmailMessage

logger = logging.getLogger("email_services.pool")  # which operators look for

AT_ONCE: Final = 16
"""Calls to one service at a time, for messages that came in one request."""

LEAST_SECONDS: Final = 1.0
"""With less time left no attempt begins: most would end as unknown. Providers on the internet
answer within 0.3 s, on a new connection within 0.6 s."""

ENOUGH: Final = 0.9
"""The part of its regular time that a service must have had to be blamed for taking longer."""

TOO_LATE: Final = "Not tried: too little of the deadline was left."
NO_ROOM: Final = "Not tried: too many messages are with it already."
AT_CAP: Final = "Not tried: it is at its cap of {}."


class Handover(Protocol):
    """What is kept of messages that come from the outbox, and nobody else's request waits for.

    calls: makes AT_ONCE calls at a time for them, in threads that it has already.
    """

    @property
    def calls(self) -> Executor:
        """See above."""

    def begin(self, service: str, runs: Sequence[Run]) -> Sequence[Run]:
        """Note that the service may have these from now on; returns those that are to be sent.

        Raises StoreUnavailable where that could not be noted, and none is then.
        """

    def end(self) -> None:
        """Keep what has been noted of those that are over."""


@dataclass
class Round:
    """One service's turn with the messages of one request.

    places: for the calls to the service that are under way. caps: how much it may have.
    regular_seconds: what an attempt has for the service itself, if those before it took no more
    than that. until: the time by `clock`
    at which all its calls must have ended. note: takes messages that are over. finds_out: whether
    the service has rested, so that one message goes before the others. handover: of messages from
    the outbox.
    """

    step: Step
    breakers: CircuitBreakers
    places: Bulkhead
    caps: ServiceCaps
    clock: Callable[[], float]
    regular_seconds: float
    until: float
    note: Callable[[Sequence[Run]], None]
    finds_out: bool
    handover: Handover | None = None

    def __post_init__(self) -> None:
        self._service = self.step.service
        # Whether a call has met a fault of the service's: those that follow look whether it rests.
        self._is_doubted = False
        self._is_asked = False

    def send(self, runs: Sequence[Run]) -> None:
        """Have the service send the messages, in as few calls as it takes and several at once."""
        if self.finds_out:  # one message does, and the others wait for it
            for run in self._begun(runs[:1]):
                self._hand_over(self.step, [run])
            self._end()
            if not self._is_asked:
                self.breakers.leave(self.step)
            runs = runs[1:]
            self._is_doubted = True
        parcels = _parcels(self._service, runs)
        if self.handover is None:
            self._send_at_once(parcels)
            return
        # What is noted to be with the service is no more than what is under way.
        for start in range(0, len(parcels), AT_ONCE):
            some = parcels[start : start + AT_ONCE]
            if not self._has_turn([run for parcel in some for run in parcel]):
                continue
            ours = {*self._begun([run for parcel in some for run in parcel])}
            self._send_at_once([left for p in some if (left := [r for r in p if r in ours])])
            self._end()

    def _begun(self, runs: Sequence[Run]) -> Sequence[Run]:
        return self.handover.begin(self._service.name, runs) if self.handover else runs

    def _end(self) -> None:
        if self.handover:
            self.handover.end()

    def _send_at_once(self, parcels: Sequence[Sequence[Run]]) -> None:
        if len(parcels) < 2:  # noqa: PLR2004 - the usual case, which needs no thread
            for parcel in parcels:
                self._take_turn(parcel)
        else:
            with self._executor(len(parcels)) as executor:
                jobs = [
                    executor.submit(copy_context().run, self._take_turn, parcel)
                    for parcel in parcels
                ]
                wait(jobs)  # all: a bug that one meets costs no other what becomes of it
            for job in jobs:
                job.result()

    def _executor(self, calls: int) -> AbstractContextManager[Executor]:
        if self.handover:
            return nullcontext(self.handover.calls)
        return ThreadPoolExecutor(min(AT_ONCE, calls))

    def _has_turn(self, runs: Sequence[Run]) -> bool:
        """Whether the service is asked; it is not where others of these found that it is down."""
        if not self._is_doubted:
            return True
        (step,) = self.breakers.plan([self._service])
        if step.decision != "try":
            pass_by(runs, step)
        return step.decision == "try"

    def _take_turn(self, parcel: Sequence[Run]) -> None:
        """Ask the service, unless others of the same request have found that it is down."""
        step = self.step
        if self._is_doubted:
            (step,) = self.breakers.plan([self._service])
            if step.decision != "try":
                pass_by(parcel, step)
                return
        if not self.places.enter():
            for run in parcel:
                run.find_no_room(self._service.name, NO_ROOM)
            return
        try:
            self._hand_over(step, parcel)
        finally:
            self.places.leave()

    def _hand_over(self, step: Step, parcel: Sequence[Run]) -> None:
        """Attempt as many of the messages as the caps of the service let it have."""
        with self.caps.turn(len(parcel), max(0.0, self.until - self.clock())) as grant:
            if surplus := parcel[grant.number :]:
                why, seconds = AT_CAP.format(grant.why), self.caps.seconds_until(grant)
                for run in surplus:
                    run.reach_cap(self._service.name, why, seconds)
            if grant.number:
                self._attempt(step, parcel[: grant.number])

    def _attempt(
        self,
        step: Step,
        parcel: Sequence[Run],
        refusal: MessageRejected | None = None,
    ) -> None:
        """Hand the messages to the service in one call, and note what it says of each.

        refusal: what it said of a larger call that they were part of.
        """
        started = self.clock()
        wanted = self._service.seconds_for([run.template for run in parcel])
        timeout = min(wanted, self.until - started)
        is_in_time = timeout >= min(LEAST_SECONDS, self.regular_seconds / 2)
        if is_in_time:
            self._is_asked = True
            results = self._call(step, parcel, timeout)
            self._excuse(results)
        elif refusal:  # there is no time to find out which of them was to blame
            results = [refusal] * len(parcel)
        else:  # which is no fault of the service's
            for run in parcel:
                run.pass_by(self._service.name, "too_late", TOO_LATE)
            return
        refused = results[0] if isinstance(results[0], MessageRejected) else None
        if len(parcel) > 1 and refused and is_in_time and _all_rejected(results):
            # One of them may be to blame for the refusal of all: find out which.
            middle = len(parcel) // 2
            self._attempt(step, parcel[:middle], refused)
            self._attempt(step, parcel[middle:], refused)
            return
        milliseconds = round((self.clock() - started) * 1000)
        for run, result in zip(parcel, results, strict=True):
            run.note(self._service.name, result, milliseconds)
        blamed = self._record(step, parcel, results, milliseconds)
        self._is_doubted = self._is_doubted or blamed
        self.note([run for run in parcel if run.is_over])

    def _excuse(self, results: Sequence[Acceptance | ProviderError]) -> None:
        """Blame nobody for what our own deadline cut short, or a slow line of ours."""
        enough = ENOUGH * self.regular_seconds
        faults = [result for result in results if isinstance(result, ProviderError)]
        for fault in faults:
            if fault.waited is not None and fault.waited < enough:
                fault.blames_service = False

    def _call(
        self, step: Step, parcel: Sequence[Run], timeout: float
    ) -> list[Acceptance | ProviderError]:
        """The same as `_answers`, as a span of a trace."""
        message_ids = [run.given.message_id for run in parcel]
        with traces.attempt(self._service.email_domain, self._service.name, message_ids) as told:
            results = self._answers(step, parcel, timeout)
            told(results)
        return results

    def _answers(
        self, step: Step, parcel: Sequence[Run], timeout: float
    ) -> list[Acceptance | ProviderError]:
        """What the service says of each message; the fault of a whole call is everyone's."""
        send: Callable[[float], list[Acceptance | ProviderError]]
        if len(parcel) == 1:
            send = partial(_send_one, self._service, parcel[0].message)
        else:
            send = partial(self._service.send_batch, [_carried(self._service, r) for r in parcel])
        drill = self.breakers.drill_in(step.state)
        began = self.clock()
        try:
            return drill.meet(send, timeout) if drill else send(timeout)
        except ProviderError as fault:
            return [fault] * len(parcel)
        finally:
            count_call(self._service.email_domain, self._service.name, self.clock() - began)

    def _record(
        self,
        step: Step,
        parcel: Sequence[Run],
        results: Sequence[Acceptance | ProviderError],
        milliseconds: int,
    ) -> bool:
        """Log what happened, and have the next message know how the service is.

        Returns whether it is to blame for something.
        """
        faults: dict[int, tuple[ProviderError, list[Run]]] = {}
        for run, result in zip(parcel, results, strict=True):
            count_attempt(self._service.email_domain, self._service.name, result)
            if isinstance(result, ProviderError):  # a fault of the whole call is the same object
                faults.setdefault(id(result), (result, []))[1].append(run)
            else:
                _log_acceptance(self._service, run, milliseconds)
        for fault, runs in faults.values():
            _log_fault(self._service, fault, runs, milliseconds)
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


def pass_by(runs: Sequence[Run], step: Step) -> None:
    """Note for each message that it is not taken to the service, and why."""
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


def _log_acceptance(service: AbstractEmailService, run: Run, milliseconds: int) -> None:
    said = _attempt_event(service, [run], milliseconds, SENT, "")
    domain, message_id = service.email_domain, run.given.message_id
    logger.info("%s: %s sent %s", domain, service.name, message_id, extra=said)


def _log_fault(
    service: AbstractEmailService, fault: ProviderError, runs: Sequence[Run], milliseconds: int
) -> None:
    """Log the fault as loudly as an operator has to act on it.

    What a provider says of a message may quote it, so that it is for the caller's eyes only.
    """
    level = logging.ERROR if isinstance(fault, AccountRefused) else logging.WARNING
    words = "refused the message" if isinstance(fault, MessageRejected) else fault.summary
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    said = _attempt_event(service, runs, milliseconds, fault.outcome, fault.code)
    logger.log(
        level,
        "%s: %s, %s: %s (%s%s)",
        service.email_domain,
        service.name,
        fault.outcome,
        words,
        runs[0].given.message_id,
        more,
        extra=said,
    )


def _attempt_event(
    service: AbstractEmailService, runs: Sequence[Run], milliseconds: int, outcome: str, code: str
) -> dict[str, object]:
    return event(
        "attempt",
        domain=service.email_domain,
        service=service.name,
        outcome=outcome,
        code=code,
        milliseconds=milliseconds,
        recipients=[address.key for run in runs for address in run.given.recipients],
        **ids([run.given.message_id for run in runs]),
    )
