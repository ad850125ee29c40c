"""Which services a message is taken to, and what its outcome means for the next one.

The rules are in `health`; here they are applied to the state that all workers share.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

from email_services.abstract import AbstractEmailService
from email_services.drill import Drill
from email_services.exceptions import Passing, ProviderError, StoreUnavailable
from email_services.health import (
    PROBING,
    WORKING,
    Health,
    after_fault,
    after_success,
    believable,
    to_be_tried,
)
from email_services.logs import event
from email_services.store import ServiceState, Store

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5
"""How long after its deadline a send that has not been heard of counts as cut off."""

BEING_PROBED: Final = "Another message is finding out whether it works again."


@dataclass(frozen=True)
class Step:
    """What is to be done with one service.

    decision: "try", "probe" (it has rested; this message finds out) or "skip". reason: why, or "".
    code: why it is skipped, for programs.
    """

    service: AbstractEmailService
    decision: Literal["try", "probe", "skip"]
    reason: str
    state: ServiceState
    code: Passing = "resting"

    @property
    def passing(self) -> tuple[Passing, str]:
        """Why a message is not taken there, if it is not: for programs, and for people."""
        if self.decision == "skip":
            return self.code, self.reason
        return "being_probed", BEING_PROBED


class CircuitBreakers:
    """The health of one domain's services, and their drills.

    now: the time in seconds since the epoch.
    """

    def __init__(self, email_domain: str, store: Store, now: Callable[[], float]) -> None:
        self._email_domain = email_domain
        self._store = store
        self._now = now

    # What is known

    def drill_in(self, state: ServiceState) -> Drill | None:
        """The drill in `state`, unless it has lapsed."""
        return state.drill if state.drill and state.drill.is_on(self._now()) else None

    def health_in(self, state: ServiceState, now: float) -> Health:
        """The health in `state`, where what a drill did ends with the drill."""
        return believable(state.health if self.drill_in(state) else _without_drill(state), now)

    # What is to be done

    def plan(
        self, services: Sequence[AbstractEmailService], *, in_order: bool = False
    ) -> list[Step]:
        """What is to be done with each of `services` now; by priority, equals at random.

        in_order: as they are given instead.
        """
        states, now = self._states(), self._now()
        if not in_order:
            services = shuffled(services, random.expovariate)
        return [self._step(s, states.get(s.name, ServiceState()), now) for s in services]

    def forced(self, service: AbstractEmailService) -> Step:
        """The step of a service that was asked for by name: it is tried, whatever its health."""
        state = self._states().get(service.name, ServiceState())
        return Step(service, "try", "", state)

    def may_try(self, step: Step) -> bool:
        """Whether it is this message's turn; of those that could probe a service, one may."""
        return step.decision == "try" or (step.decision == "probe" and self._claim_probe(step))

    def last_resort(self, steps: Sequence[Step]) -> Step:
        """The one of those that were passed by which is due first: rather than refuse, it is asked.

        It is, once none of the others has taken the message.
        """
        now = self._now()
        due = min(steps, key=lambda step: self.health_in(step.state, now).rest_until or 0)
        reason = f"Asked only if no other service takes the message. {due.reason}"
        return replace(due, decision="try", reason=reason)

    def seconds_to_rest(self, step: Step) -> float:
        """How long the service rests from now on."""
        now = self._now()
        return max(0.0, (self.health_in(step.state, now).rest_until or now) - now)

    # What has happened

    def record_success(self, step: Step) -> None:
        """Note that the service accepted a message."""
        now = self._now()
        was_probe, seen = step.decision == "probe", self.health_in(step.state, now)
        if not was_probe and seen.is_clean():
            return  # the usual case costs nothing

        def change(state: ServiceState) -> tuple[ServiceState, str]:
            before = self.health_in(state, now)
            health = after_success(before, now, seen=seen, was_probe=was_probe)
            has_rested = before.rest_until is not None and health.rest_until is None
            words = "working again" if has_rested else ""
            return replace(state, health=health), words

        self._change(step, change)

    def record_fault(self, step: Step, fault: ProviderError) -> None:
        """Note the fault, if it is the service's, or if the message was its probe."""
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
                errors = ({"at": now, "code": fault.code, "reason": fault.cause}, *errors)
            words = ""
            if health.rest_until is not None and health.rests != before.rests:
                words = f"resting for {health.rest_until - now:.0f} s: {fault.cause}"
            if drill and health.simulated and not before.simulated:
                drill = replace(drill, health_before=asdict(replace(before, probe_until=None)))
            return ServiceState(health, drill, errors), words

        self._change(step, change)

    def leave(self, step: Step) -> None:
        """Note that the service was not asked after all: whether it is back, another finds out."""

        def change(state: ServiceState) -> tuple[ServiceState, str]:
            return replace(state, health=replace(state.health, probe_until=None)), ""

        if step.decision == "probe":
            self._change(step, change)

    # What an administrator asks for

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

        self._apply(service.name, change, self._now())

    def reset(self, service: AbstractEmailService) -> None:
        """Have the next message try a service that rests. Raises StoreUnavailable."""

        def change(state: ServiceState) -> tuple[ServiceState, str]:
            before = self.health_in(state, now)
            after = to_be_tried(before, now)
            words = "to be tried by the next message, as was asked for"
            return replace(state, health=after), words if after != before else ""

        now = self._now()
        self._apply(service.name, change, now)

    def _step(self, service: AbstractEmailService, state: ServiceState, now: float) -> Step:
        health = self.health_in(state, now)
        if health.rest_until is None:
            return Step(service, "try", "", state)
        if health.is_due(now):
            return Step(
                service, "probe", f"It has rested; this message tries it: {health.reason}", state
            )
        if health.state(now) == PROBING:
            return Step(service, "skip", BEING_PROBED, state, "being_probed")
        rest = (health.rest_until or now) - now
        return Step(service, "skip", f"It rests for {rest:.0f} s more: {health.reason}", state)

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
            self._store.change_service(self._email_domain, step.service.name, change, now)
        except StoreUnavailable:
            return True
        return bool(claimed)

    def _states(self) -> dict[str, ServiceState]:
        with without_the_store(self._email_domain):
            return self._store.service_states(self._email_domain)
        return {}

    def _change(
        self, step: Step, change: Callable[[ServiceState], tuple[ServiceState, str]]
    ) -> None:
        with without_the_store(self._email_domain):
            self._apply(step.service.name, change, self._now())

    def _apply(
        self,
        service: str,
        change: Callable[[ServiceState], tuple[ServiceState, str]],
        now: float,
    ) -> None:
        """Change what is known of the service, and log what goes on record. Raises as the store."""
        recorded = ""

        def noting(state: ServiceState) -> tuple[ServiceState, str]:
            nonlocal recorded
            after, recorded = change(state)
            return after, recorded

        after = self._store.change_service(self._email_domain, service, noting, now)
        if not recorded:
            return
        health = self.health_in(after, now).state(now)
        said = event(
            "health", domain=self._email_domain, service=service, health=health, change=recorded
        )
        level = logging.INFO if health == WORKING else logging.WARNING
        logger.log(level, "%s: %s: %s", self._email_domain, service, recorded, extra=said)


def shuffled(
    services: Sequence[AbstractEmailService], wait: Callable[[float], float]
) -> list[AbstractEmailService]:
    """The services by priority, and equals in a random order in which their weights tell.

    Of equals, each is the first as often as its weight is part of all of theirs, and so on among
    the rest. wait: a random time until what happens at the given rate happens (exponential).
    """
    return sorted(services, key=lambda s: (-s.priority_value, wait(s.settings.weight)))


@contextmanager
def without_the_store(email_domain: str) -> Iterator[None]:
    """Messages go out without the database too, with a loud log."""
    try:
        yield
    except StoreUnavailable as error:
        logger.error("%s: going on without it: %s", email_domain, error)


def _without_drill(state: ServiceState) -> Health:
    """The health in `state` without what the faults of its drill did."""
    if not state.health.simulated:
        return state.health
    return Health(**((state.drill and state.drill.health_before) or {}))
