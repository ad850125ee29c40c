"""When a service is left alone, and when it is tried again: the rules, without clock or storage.

A service works until it meets a fault of its own; then it is failing, which changes nothing for
messages, until one is accepted. With `FAILURES_TO_REST` in a row it rests; an account's fault or a
rate limit suffices alone. Messages pass a resting one by at no cost. After the rest one message
is its probe, one at a time over all workers. If that is accepted, the service works again, at its
place in the order, at once; if it fails, the next rest is longer.

An attempt may end long after others have changed what is known. A probe's result always counts.
Any other counts only if `since` is what it was when the attempt began (`seen`): what was under way
before a rest neither ends that rest nor opens the next. A fault never shortens a rest. While a
service rests, one that is not its probe's lengthens the rest in one case: the provider says just
now how long it wants to be left alone (Retry-After), and that is later than the rest's end.

Times are seconds since the epoch, and always passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from email_services.exceptions import AccountRefused, ProviderError, RateLimited

FAILURES_TO_REST: Final = 5
FIRST_REST_SECONDS: Final = 15.0
LONGEST_REST_SECONDS: Final = 300.0
FIRST_ACCOUNT_REST_SECONDS: Final = 300.0
LONGEST_ACCOUNT_REST_SECONDS: Final = 3600.0
LONGEST_ASKED_SECONDS: Final = 24 * 3600.0
JITTER: Final = 0.2
"""A rest is up to this part longer, so that the nodes of a fleet do not probe in step."""
LONGEST_PROBE_SECONDS: Final = 120.0
"""No timeout with its grace is longer (email_services.abstract, email_services.breakers)."""

SKEW_SECONDS: Final = 60.0
"""By how much the clocks of a fleet may differ."""

WORKING: Final = "working"
FAILING: Final = "failing"
RESTING: Final = "resting"
PROBING: Final = "probing"
State = Literal["working", "failing", "resting", "probing"]


@dataclass(frozen=True)
class Health:
    """The health of one service.

    failures: in a row. rests: in a row, without a success between them.
    rest_until: None while it works. rest_seconds: how long it was to rest when that was decided.
    probe_until: until when a probe may take, None without one.
    since: when it began to work or to rest. failing_since: when the first of `failures` came, None
    without one. reason: the fault that it met last and that counts, in a few words.
    simulated: whether a drill's fault was the last one; what a drill did ends with it.
    """

    failures: int = 0
    rests: int = 0
    rest_until: float | None = None
    probe_until: float | None = None
    since: float | None = None
    reason: str = ""
    simulated: bool = False
    rest_seconds: float | None = None
    failing_since: float | None = None

    def state(self, now: float) -> State:
        """What is known of it now."""
        if self.rest_until is None:
            return FAILING if self.failures else WORKING
        return PROBING if self.probe_until is not None and now < self.probe_until else RESTING

    def is_due(self, now: float) -> bool:
        """Whether it rests, and a message may probe it."""
        rested = self.rest_until is not None and self.rest_until <= now
        return rested and self.state(now) != PROBING

    def is_clean(self) -> bool:
        """Whether a success changes nothing."""
        return self.failures == 0 and self.rest_until is None


def believable(health: Health, now: float) -> Health:
    """The health without times that cannot be: the clock has been set back since.

    A service would rest, and a lost probe would last, until the clock is where it was again. A rest
    with more before it than it was to last is due instead: one message finds out.
    """
    longest = health.rest_seconds
    if longest is None:  # a version before decided
        longest = max(LONGEST_ACCOUNT_REST_SECONDS, LONGEST_ASKED_SECONDS) * (1 + JITTER)
    if health.rest_until is not None and health.rest_until > now + longest + SKEW_SECONDS:
        health = replace(health, rest_until=now)
    if health.probe_until is not None and health.probe_until > now + LONGEST_PROBE_SECONDS:
        health = replace(health, probe_until=None)
    return health


def after_success(health: Health, now: float, *, seen: Health, was_probe: bool) -> Health:
    """What a success makes of it.

    seen: the health when the attempt began. was_probe: whether the message was its probe.
    """
    if health.is_clean() or (health.since != seen.since and not was_probe):
        return health
    return Health(since=health.since if health.rest_until is None else now)


def to_be_tried(health: Health, now: float) -> Health:
    """What is known once an administrator asks for a try: a rest is over, and that is all.

    Whether it works is for the next message to find out; if it does not, its rests begin anew.
    """
    if health.rest_until is None:
        return health
    return replace(health, rests=0, rest_until=min(now, health.rest_until), probe_until=None)


def after_fault(
    health: Health,
    fault: ProviderError,
    now: float,
    random: Callable[[], float],
    *,
    seen: Health,
    was_probe: bool,
) -> Health:
    """What a fault makes of it.

    seen: the health when the attempt began. was_probe: whether the message was its probe.
    random: gives a number from 0 to 1.
    """
    if not fault.blames_service:
        return replace(health, probe_until=None) if was_probe else health
    if health.rest_until is not None and not was_probe:
        return _lengthened(health, health.rest_until, fault, now)
    if health.since != seen.since and not was_probe:
        return health
    failures = health.failures + 1
    failing_since = now if health.failing_since is None else health.failing_since
    urgent = isinstance(fault, AccountRefused | RateLimited)
    if failures < FAILURES_TO_REST and not urgent and not was_probe:
        return replace(
            health,
            failures=failures,
            failing_since=failing_since,
            reason=fault.cause,
            simulated=fault.simulated,
        )
    rest = _rest_seconds(fault, health.rests) * (1 + JITTER * random())
    rest_until = max(now + rest, health.rest_until or 0.0)
    return Health(
        failures=failures,
        rests=health.rests + 1,
        rest_until=rest_until,
        rest_seconds=rest_until - now,
        since=health.since if health.rest_until is not None else now,
        failing_since=failing_since,
        reason=fault.cause,
        simulated=fault.simulated,
    )


def _lengthened(health: Health, rest_until: float, fault: ProviderError, now: float) -> Health:
    """The same rest, until the provider wants to be tried again, where that is later."""
    asked = now + _asked_seconds(fault)
    if not fault.retry_after or asked <= rest_until:
        return health
    return replace(
        health,
        rest_until=asked,
        rest_seconds=asked - now,
        reason=fault.cause,
        simulated=fault.simulated,
    )


def _rest_seconds(fault: ProviderError, rests: int) -> float:
    """Twice as long each time, up to a bound; at least as long as the provider asks for."""
    account = isinstance(fault, AccountRefused)
    first = FIRST_ACCOUNT_REST_SECONDS if account else FIRST_REST_SECONDS
    longest = LONGEST_ACCOUNT_REST_SECONDS if account else LONGEST_REST_SECONDS
    rest = min(longest, first * 2.0 ** min(rests, 20))
    return max(rest, _asked_seconds(fault))


def _asked_seconds(fault: ProviderError) -> float:
    """How long the provider asks to be left alone, within reason."""
    return min(fault.retry_after or 0.0, LONGEST_ASKED_SECONDS)
