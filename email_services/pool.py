"""One domain's services, tried in priority order until one accepts the message."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from email_services.abstract import AbstractEmailService
from email_services.drill import Drill
from email_services.exceptions import (
    NOT_SENT,
    SENT,
    UNKNOWN,
    AccountRefused,
    KeyInProgress,
    KeyReused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    StoreUnavailable,
    UnknownService,
)
from email_services.health import WORKING, Health, after_fault, after_success, believable
from email_services.message import EmailMessage, OnUnknown
from email_services.store import LoggedMessage, ServiceState, Store

logger = logging.getLogger(__name__)

DEFAULT_DEADLINE_SECONDS: Final = 25
"""Below the 30 s after which Heroku's router gives up on a request."""

GRACE_SECONDS: Final = 5
"""How long after its deadline a send that has not been heard of counts as cut off."""

SKIPPED: Final = "skipped"
BEING_PROBED: Final = "Another message is finding out whether it works again."


@dataclass(frozen=True)
class Attempt:
    """What one service did with the message.

    outcome: "sent", "not sent", "unknown" or "skipped". reason: why it was not sent, or "".
    """

    service: str
    outcome: str
    reason: str
    milliseconds: int


@dataclass(frozen=True)
class Delivery:
    """What became of a message, with every attempt in order.

    outcome: "sent", "not sent" or "unknown".
    rejected: whether every service refused the message itself, rather than failed or was skipped.
    follows_cut_off: whether an earlier request with its Idempotency-Key was cut off.
    replayed: whether this is the stored answer to an earlier request.
    """

    message_id: str
    outcome: str
    attempts: tuple[Attempt, ...]
    service_used: str | None = None
    service_message_id: str | None = None
    rejected: bool = False
    follows_cut_off: bool = False
    replayed: bool = False

    @property
    def possible_duplicate(self) -> bool:
        """Whether it was sent after an attempt that may have been accepted too."""
        doubtful = self.follows_cut_off or any(a.outcome == UNKNOWN for a in self.attempts)
        return self.outcome == SENT and doubtful

    def after_cut_off(self) -> Delivery:
        """The same after an earlier request with its key that was cut off, and may have sent it."""
        outcome = UNKNOWN if self.outcome == NOT_SENT else self.outcome
        return replace(self, outcome=outcome, rejected=False, follows_cut_off=True)

    @property
    def services_unsuccessful(self) -> dict[str, str]:
        """Why each service that did not send it did not."""
        return {a.service: a.reason for a in self.attempts if a.outcome != SENT}

    @property
    def error(self) -> str:
        """One sentence for the caller of a message that was not surely sent."""
        if self.outcome == UNKNOWN and self.follows_cut_off:
            return "The message may have been sent: the first request with its key was cut off."
        if self.outcome == UNKNOWN:
            return "The message may have been sent: a service took it and did not answer."
        if self.rejected:
            return "The message was not sent: every service refused it."
        return "The message was not sent: no service could send it."

    def as_dict(self) -> dict[str, Any]:
        """The answer of the API."""
        attempts = [asdict(attempt) for attempt in self.attempts]
        if self.outcome == SENT:
            return {
                "result": "success",
                "message_id": self.message_id,
                "service_used": self.service_used,
                "service_message_id": self.service_message_id,
                "services_unsuccessful": self.services_unsuccessful,
                "attempts": attempts,
                "possible_duplicate": self.possible_duplicate,
            }
        return {
            "result": "unknown" if self.outcome == UNKNOWN else "error",
            "error": self.error,
            "services_unsuccessful": self.services_unsuccessful,
            "attempts": attempts,
        }

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Delivery:
        """An answer as it was kept (`asdict`) for requests that repeat an Idempotency-Key."""
        attempts = tuple(Attempt(**attempt) for attempt in stored["attempts"])
        return cls(**{**stored, "attempts": attempts, "replayed": True})


@dataclass(frozen=True)
class Step:
    """What is to be done with one service for a message.

    decision: "try", "probe" (it has rested; this message finds out) or "skip". reason: why, or "".
    """

    service: AbstractEmailService
    decision: Literal["try", "probe", "skip"]
    reason: str
    state: ServiceState

    def as_dict(self) -> dict[str, str]:
        """A line of the answer to a dry run."""
        return {"service": self.service.name, "decision": self.decision, "reason": self.reason}


@dataclass(frozen=True)
class Once:
    """An Idempotency-Key, and a fingerprint of the request that it stands for."""

    key: str
    fingerprint: str


class PooledEmailService:
    """The services of one email domain.

    email_domain: in ASCII and lower case.
    deadline_seconds: what all attempts at one message may take together.
    on_unknown: whether an attempt that may have been accepted is followed by another one.
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
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.email_domain = email_domain
        self.services = {
            service.name: service for service in sorted(services, key=lambda s: -s.priority_value)
        }
        self.deadline_seconds = deadline_seconds
        self.on_unknown = on_unknown
        self._store = store
        self._clock = clock
        self._now = now

    def service(self, name: str) -> AbstractEmailService:
        """The service `name`, whatever its case. Raises UnknownService."""
        try:
            return self.services[name.lower()]
        except KeyError:
            raise UnknownService(self.email_domain, name) from None

    def send(
        self,
        message: EmailMessage,
        only: AbstractEmailService | None = None,
        once: Once | None = None,
    ) -> Delivery:
        """Try the services in order, or `only` one, until one accepts `message`.

        Returns what happened; ProviderErrors never leave. Any other exception is a bug and does.
        With `once`, raises KeyInProgress, KeyReused and StoreUnavailable, and tries nobody then.
        """
        if once is None:
            return self._send_and_log(message, only)
        now = self._now()
        until = now + self.deadline_seconds + GRACE_SECONDS
        found = self._store.reserve_key(self.email_domain, once.key, once.fingerprint, now, until)
        if found.answer is not None:
            return Delivery.from_stored(found.answer)
        if found.state == "in progress":
            raise KeyInProgress("The first request with this Idempotency-Key is in progress.")
        if found.state == "other":
            raise KeyReused("This Idempotency-Key was used for another request.")
        delivery = self._send_and_log(message, only, follows_cut_off=found.state == "abandoned")
        with self._storing():
            if delivery.outcome == NOT_SENT:
                self._store.free_key(self.email_domain, once.key, now)
            else:
                self._store.store_answer(self.email_domain, once.key, now, asdict(delivery))
        return delivery

    def plan(self, message: EmailMessage, only: AbstractEmailService | None = None) -> list[Step]:
        """What would be done with each service for `message` now, in order."""
        steps = self._plan(only)
        if all(step.decision == "skip" for step in steps):
            first = self._last_resort(steps)
            steps = [first if step.service is first.service else step for step in steps]
        return [_checked(step, message) for step in steps]

    def drill_in(self, state: ServiceState) -> Drill | None:
        """The drill in `state`, unless it has lapsed."""
        return state.drill if state.drill and state.drill.is_on(self._now()) else None

    def health_in(self, state: ServiceState, now: float) -> Health:
        """The health in `state`, where what a drill did ends with the drill."""
        return believable(state.health if self.drill_in(state) else _without_drill(state), now)

    def set_drill(
        self,
        service: AbstractEmailService,
        wanted: Callable[[Drill | None, float], Drill | None],
    ) -> None:
        """Begin, change or end a rehearsal. Raises StoreUnavailable.

        wanted: gives the new drill, or None for none, from the one that is on and the time.
        Each begins with the service's own health, whatever an earlier one did to it.
        """

        def change(state: ServiceState) -> tuple[ServiceState, str]:
            before, after = self.drill_in(state), wanted(self.drill_in(state), self._now())
            words = f"simulated failure on: {after.kind}" if after else "simulated failure off"
            state = replace(state, drill=after, health=_without_drill(state))
            return state, words if before or after else ""

        self._store.change_service(self.email_domain, service.name, change, self._now())

    def reset_health(self, service: AbstractEmailService) -> None:
        """Have the service tried again at once. Raises StoreUnavailable."""

        def change(state: ServiceState) -> tuple[ServiceState, str]:
            return replace(state, health=Health(since=self._now())), "working: reset"

        self._store.change_service(self.email_domain, service.name, change, self._now())

    def _send_and_log(
        self,
        message: EmailMessage,
        only: AbstractEmailService | None,
        *,
        follows_cut_off: bool = False,
    ) -> Delivery:
        deadline, now = self._clock() + self.deadline_seconds, self._now()
        entry = LoggedMessage(
            message.message_id,
            now,
            self.email_domain,
            message.from_email.email,
            [address.key for address in message.recipients],
            message.subject,
            deadline=now + self.deadline_seconds + GRACE_SECONDS,
        )
        with self._storing():
            self._store.log_message(entry)
        if follows_cut_off and self._policy(message) == "stop":
            delivery = Delivery(message.message_id, NOT_SENT, ())
        else:
            delivery = self._deliver(message, only, deadline)
        if follows_cut_off:
            delivery = delivery.after_cut_off()
        with self._storing():
            self._store.log_outcome(
                replace(
                    entry,
                    outcome=delivery.outcome,
                    service_used=delivery.service_used,
                    service_message_id=delivery.service_message_id,
                    possible_duplicate=delivery.possible_duplicate,
                    attempts=[asdict(attempt) for attempt in delivery.attempts],
                )
            )
        return delivery

    def _deliver(
        self, message: EmailMessage, only: AbstractEmailService | None, deadline: float
    ) -> Delivery:
        run = _Run(message, deadline)
        steps = self._plan(only)
        for position, step in enumerate(steps):
            if not self._may_try(step):
                run.attempts.append(Attempt(step.service.name, SKIPPED, _why_not(step), 0))
                continue
            if self._try(run, step, steps[position:]) or self._must_stop(run):
                return run.delivery()
        skipped = {a.service for a in run.attempts if a.outcome == SKIPPED}
        passed_by = [step for step in steps if step.service.name in skipped]
        if passed_by:  # nobody else took it: rather than refuse, ask the one that is due first
            first = self._last_resort(passed_by)
            run.attempts = [a for a in run.attempts if a.service != first.service.name]
            self._try(run, first, [first])
        return run.delivery()

    def _last_resort(self, steps: Sequence[Step]) -> Step:
        now = self._now()
        due = min(steps, key=lambda step: self.health_in(step.state, now).rest_until or 0)
        return replace(due, decision="try", reason="No other service is left; it is due first.")

    def _plan(self, only: AbstractEmailService | None) -> list[Step]:
        """By priority, equals in random order."""
        states, now = self._states(), self._now()
        if only:
            return [Step(only, "try", "", states.get(only.name, ServiceState()))]
        services = list(self.services.values())
        random.shuffle(services)
        services.sort(key=lambda service: -service.priority_value)  # keeps the order of equals
        return [self._step(s, states.get(s.name, ServiceState()), now) for s in services]

    def _step(self, service: AbstractEmailService, state: ServiceState, now: float) -> Step:
        health = self.health_in(state, now)
        if health.state(now) == WORKING:
            return Step(service, "try", "", state)
        if health.is_due(now):
            return Step(
                service, "probe", f"It has rested; this message tries it: {health.reason}", state
            )
        return Step(service, "skip", _resting(health, now), state)

    def _may_try(self, step: Step) -> bool:
        """Whether it is this message's turn; of those that could probe a service, one may."""
        return step.decision == "try" or (step.decision == "probe" and self._claim_probe(step))

    def _claim_probe(self, step: Step) -> bool:
        now = self._now()
        until = now + step.service.settings.timeout_seconds + GRACE_SECONDS
        claimed = []

        def change(state: ServiceState) -> tuple[ServiceState, str]:
            health = self.health_in(state, now)
            if not health.is_due(now):
                return state, ""
            claimed.append(True)
            return replace(state, health=replace(health, probe_until=until)), ""

        try:
            self._store.change_service(self.email_domain, step.service.name, change, now)
        except StoreUnavailable:
            return True
        return bool(claimed)

    def _try(self, run: _Run, step: Step, rest: Sequence[Step]) -> bool:
        """Have the service send the message; returns whether it did.

        rest: this step and those after it, which share what is left of the deadline.
        """
        name, started = step.service.name, self._clock()
        others = [s.service for s in rest[1:] if s.decision != "skip"]
        timeout = _fair_timeout(run.deadline - started, [step.service, *others])
        if timeout <= 0:  # which is no fault of the service's
            run.attempts.append(Attempt(name, SKIPPED, "Not tried: the deadline had passed.", 0))
            return False
        try:
            run.service_message_id = self._send(step, run.message, timeout)
        except ProviderError as fault:
            run.faults.append(fault)
            run.attempts.append(self._timed(name, fault.outcome, fault.reason, started))
            self._log_fault(name, fault, run.message)
            self._record_fault(step, fault)
            return False
        run.service_used = name
        run.attempts.append(self._timed(name, SENT, "", started))
        logger.info("%s: %s sent %s", self.email_domain, name, run.message.message_id)
        self._record_success(step)
        return True

    def _send(self, step: Step, message: EmailMessage, timeout: float) -> str | None:
        if drill := self.drill_in(step.state):
            return drill.send(step.service, message, timeout)
        return step.service.send(message, timeout)

    def _must_stop(self, run: _Run) -> bool:
        stops = self._policy(run.message) == "stop"
        return stops and any(isinstance(fault, OutcomeUnknown) for fault in run.faults)

    def _policy(self, message: EmailMessage) -> OnUnknown:
        return message.on_unknown or self.on_unknown

    def _record_success(self, step: Step) -> None:
        now = self._now()
        was_probe, seen = step.decision == "probe", self.health_in(step.state, now)
        if not was_probe and seen.is_clean():
            return  # the usual case costs nothing

        def change(state: ServiceState) -> tuple[ServiceState, str]:
            before = self.health_in(state, now)
            health = after_success(before, now, seen=seen, was_probe=was_probe)
            words = "working again" if before.rests and not health.rests else ""
            return replace(state, health=health), words

        self._change(step, change)

    def _record_fault(self, step: Step, fault: ProviderError) -> None:
        now = self._now()
        was_probe, seen = step.decision == "probe", self.health_in(step.state, now)
        if not fault.blames_service and not was_probe:
            return

        def change(state: ServiceState) -> tuple[ServiceState, str]:
            before, drill = self.health_in(state, now), self.drill_in(state)
            if fault.simulated and drill is None:
                return state, ""  # its drill has ended meanwhile
            health = after_fault(before, fault, now, random.random, seen=seen, was_probe=was_probe)
            errors = state.last_errors
            if fault.blames_service:
                errors = ({"at": now, "reason": fault.summary}, *errors)
            words = ""
            if health.rest_until is not None and health.rests != before.rests:
                words = f"resting for {health.rest_until - now:.0f} s: {fault.summary}"
            if drill and health.simulated and not before.simulated:
                drill = replace(drill, health_before=asdict(replace(before, probe_until=None)))
            return ServiceState(health, drill, errors), words

        self._change(step, change)

    def _change(
        self, step: Step, change: Callable[[ServiceState], tuple[ServiceState, str]]
    ) -> None:
        with self._storing():
            self._store.change_service(self.email_domain, step.service.name, change, self._now())

    def _states(self) -> dict[str, ServiceState]:
        with self._storing():
            return self._store.service_states(self.email_domain)
        return {}

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Messages go out without the database too, with a loud log."""
        try:
            yield
        except StoreUnavailable as error:
            logger.error("%s: going on without it: %s", self.email_domain, error)

    def _log_fault(self, service: str, fault: ProviderError, message: EmailMessage) -> None:
        """Log the fault as loudly as an operator has to act on it.

        What a provider says of a message may quote it, so that it is for the caller's eyes only.
        """
        level = logging.ERROR if isinstance(fault, AccountRefused) else logging.WARNING
        words = "refused the message" if isinstance(fault, MessageRejected) else fault.summary
        line = "%s: %s, %s: %s (%s)"
        outcome, message_id = fault.outcome, message.message_id
        logger.log(level, line, self.email_domain, service, outcome, words, message_id)

    def _timed(self, service: str, outcome: str, reason: str, started: float) -> Attempt:
        return Attempt(service, outcome, reason, round((self._clock() - started) * 1000))


@dataclass
class _Run:
    """One message on its way through the services."""

    message: EmailMessage
    deadline: float
    attempts: list[Attempt] = field(default_factory=list)
    faults: list[ProviderError] = field(default_factory=list)
    service_used: str | None = None
    service_message_id: str | None = None

    def delivery(self) -> Delivery:
        """What has become of it so far."""
        unknown = any(fault.outcome == UNKNOWN for fault in self.faults)
        outcome = SENT if self.service_used else UNKNOWN if unknown else NOT_SENT
        return Delivery(
            self.message.message_id,
            outcome,
            tuple(self.attempts),
            self.service_used,
            self.service_message_id,
            rejected=outcome == NOT_SENT and self._is_rejected_by_all(),
        )

    def _is_rejected_by_all(self) -> bool:
        """Whether every service was asked, and refused the message itself."""
        refusals = [fault for fault in self.faults if isinstance(fault, MessageRejected)]
        return len(refusals) == len(self.attempts)


def _checked(step: Step, message: EmailMessage) -> Step:
    """The step, or why its service cannot carry the message."""
    try:
        step.service.check(message)
    except MessageRejected as fault:
        return replace(step, decision="skip", reason=fault.reason)
    return step


def _why_not(step: Step) -> str:
    if step.decision == "probe":
        return BEING_PROBED
    return step.reason


def _without_drill(state: ServiceState) -> Health:
    """The health in `state` without what the faults of its drill did."""
    if not state.health.simulated:
        return state.health
    return Health(**((state.drill and state.drill.health_before) or {}))


def _resting(health: Health, now: float) -> str:
    if health.rest_until is None or health.rest_until <= now:
        return BEING_PROBED
    return f"It rests for {health.rest_until - now:.0f} s more: {health.reason}"


def _fair_timeout(remaining: float, services: Sequence[AbstractEmailService]) -> float:
    """Seconds for the first of `services`: its own timeout, unless the others would go short.

    Then the rest of the deadline is shared equally, so that a backup always gets a try.
    """
    own, *others = (service.settings.timeout_seconds for service in services)
    return min(own, max(remaining / len(services), remaining - sum(others)))
