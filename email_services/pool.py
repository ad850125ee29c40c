"""One domain's services, tried in priority order until one accepts the message."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from email_services.abstract import AbstractEmailService
from email_services.breakers import CircuitBreakers, Step
from email_services.bulkhead import Bulkhead
from email_services.delivery import Delivery, Run
from email_services.exceptions import CannotCarry, UnknownService
from email_services.ledger import Ledger, Once
from email_services.message import EmailMessage, OnUnknown
from email_services.rounds import Round, pass_by
from email_services.store import Store

DEFAULT_DEADLINE_SECONDS: Final = 25
"""Below the 30 s after which Heroku's router gives up on a request."""

SERVICE_PART: Final = 0.75
"""What one service may take of the domain's threads, where there are others."""

LAST_RESORTS_AT_ONCE: Final = 2
"""Requests that wait for a service which rests because no other is left, in one process. They find
out whether it is back; the others hear at once that nobody is."""

MANY: Final = 1000
"""Threads, where nobody has counted them."""


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
        self._ledger = Ledger(email_domain, store, deadline_seconds)
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
        steps, passed_by = [], []
        for step in self._steps(only):
            why = _lacking(step.service, message)
            steps.append(replace(step, decision="skip", reason=why) if why else step)
            if step.decision == "skip" and not why:
                passed_by.append(step)
        if passed_by:
            last = self.breakers.last_resort(passed_by)
            steps = [step for step in steps if step.service is not last.service] + [last]
        return steps

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
        answered = self._ledger.reserve(runs, once, whole, now) if once else {}
        deadline = self._clock() + self.deadline_seconds
        fresh = [run for n, run in enumerate(runs) if n not in answered]
        if fresh:
            self._ledger.begin(fresh, now)
            open_runs = [run for run in fresh if not (run.follows_cut_off and run.stops)]
            self._deliver(open_runs, only, deadline, partial(self._ledger.note, now=now))
            self._ledger.note([run for run in fresh if not run.is_noted], now)
        found = [answered[n] if n in answered else run.delivery() for n, run in enumerate(runs)]
        if whole:
            self._ledger.settle(whole, found, now)
        return found

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
                finds_out = step.decision == "probe"
                self._round(step, until, note, finds_out=finds_out).send(able)
            else:
                pass_by(able, step)
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
                self._round(step, deadline, note, finds_out=True).send(waiting)
            finally:
                places.leave()
        self._say_when_limits_end([run for run in runs if run.met_a_limit and run.is_whole], only)

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
        note: Callable[[Sequence[Run]], None],
        *,
        finds_out: bool,
    ) -> Round:
        service = step.service
        share = self.deadline_seconds / len(self.services)
        return Round(
            step,
            self.breakers,
            self._places[service.name],
            self._clock,
            regular_seconds=min(service.settings.timeout_seconds, share),
            until=until,
            note=note,
            finds_out=finds_out,
        )


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


def _fair_share(remaining: float, steps: Sequence[Step]) -> float:
    """Seconds for the first of `steps`, such that those after it, if they are tried, get theirs.

    Where there is not enough for all, the rest of the deadline is shared equally, so that a backup
    always gets a try.
    """
    others = [step.service for step in steps[1:] if step.decision != "skip"]
    reserved = sum(service.settings.timeout_seconds for service in others)
    return max(remaining / (len(others) + 1), remaining - reserved)
