"""Rehearsed faults: a service does what it would do in a real outage, and says it is simulated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar, get_args

from email_services.exceptions import (
    LoginRefused,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)

Sent = TypeVar("Sent")
DrillKind = Literal["unavailable", "timeout", "answer_lost", "rate_limited", "key_refused", "slow"]
KINDS: Final[tuple[str, ...]] = get_args(DrillKind)
SLOW_SECONDS: Final = 3.0
RETRY_AFTER: Final = 60.0


@dataclass(frozen=True)
class Drill:
    """A rehearsal at one service.

    kind: the fault. share: the part of its messages that meets it, above 0 and up to 1.
    since, until: seconds since the epoch; until is None if it lasts until it is switched off.
    health_before: the service's health, as a dict, before this drill's faults changed it.
    """

    kind: DrillKind = "unavailable"
    share: float = 1.0
    since: float = 0.0
    until: float | None = None
    health_before: Mapping[str, Any] | None = field(default=None, compare=False)

    def is_on(self, now: float) -> bool:
        """Whether it has not lapsed."""
        return self.until is None or now < self.until

    def meet(
        self,
        send: Callable[[float], Sent],
        timeout: float,
        wait: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> Sent:
        """Have `send` do what it does, but for the fault. Raises what the real fault would.

        send: takes the seconds it may take.
        """
        if chance() >= self.share:
            return send(timeout)
        if self.kind == "slow":
            wait(min(SLOW_SECONDS, timeout / 2))
            return send(timeout / 2)
        if self.kind == "timeout":
            wait(timeout)
        if self.kind == "answer_lost":
            send(timeout)
        raise self._fault(timeout)

    def _fault(self, timeout: float) -> ProviderError:
        faults: dict[str, ProviderError] = {
            "unavailable": ServiceUnavailable("Simulated failure."),
            "timeout": OutcomeUnknown(f"Simulated failure: no answer within {timeout:.3g} s."),
            "answer_lost": OutcomeUnknown("Simulated failure: accepted, and the answer lost."),
            "rate_limited": RateLimited("Simulated failure: too many requests.", RETRY_AFTER),
            "key_refused": LoginRefused("Simulated failure: the key was refused."),
        }
        fault = faults[self.kind]
        fault.simulated = True
        fault.waited = timeout if self.kind == "timeout" else None
        return fault
