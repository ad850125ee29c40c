"""When a message that waits is tried again, and when it is over: without clock or storage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from email_services.delivery import SKIPPED, Attempt, Run
from email_services.exceptions import NOT_SENT, SENT, UNKNOWN
from email_services.pool import FIRST_RETRY_SECONDS
from email_services.store import EXPIRED, Again, Claimed, Ended

LONGEST_RETRY_SECONDS: Final = 15 * 60.0
SOON_SECONDS: Final = 1.0
"""After which one is tried again that nobody had room or time for."""

KEPT_PLACE_SECONDS: Final = 2.0
"""One that a cap holds up for less stays where it is in its lane, which waits, rather than come
behind all the others there; but not where these may go through services that it may not."""

JITTER: Final = 0.2
"""A wait is up to this part longer, so that what failed together is not tried again together."""

KEPT_ATTEMPTS: Final = 100
"""The last ones that the log shows of a message; those that may have sent it are always there."""


def wait_before(tries: int, random: Callable[[], float]) -> float:
    """Seconds until a message is tried again that has so many tries behind it."""
    wait = FIRST_RETRY_SECONDS * 2.0 ** min(max(tries, 1) - 1, 20)
    return min(wait, LONGEST_RETRY_SECONDS) * (1 + JITTER * random())


def what_follows(
    run: Run, claimed: Claimed, services: Collection[str], now: float, random: Callable[[], float]
) -> Ended | Again:
    """What becomes of a message after a try, in which its `run` was taken to some services.

    services: those it may go through. random: gives a number from 0 to 1.
    """
    delivery = run.delivery()
    attempts = _timeline(run, now)
    doubted = {attempt.service for attempt in attempts if attempt.outcome == UNKNOWN}
    is_doubtful = delivery.outcome == UNKNOWN
    if delivery.outcome == SENT:
        outcome = SENT
    elif is_doubtful and (run.stops or run.is_refused or doubted.issuperset(services)):
        outcome = UNKNOWN
    elif run.is_refused:
        outcome = NOT_SENT
    elif now >= claimed.expires:
        outcome = UNKNOWN if is_doubtful else EXPIRED
    else:
        due, tries = _next_try(run, claimed, now, random)
        due = min(due, claimed.expires)
        return Again(claimed.message_id, due, tries, _as_dicts(attempts))
    return Ended(
        claimed.message_id,
        outcome,
        _as_dicts(attempts),
        delivery.service_used,
        delivery.service_message_id,
        possible_duplicate=delivery.possible_duplicate,
    )


def _next_try(
    run: Run, claimed: Claimed, now: float, random: Callable[[], float]
) -> tuple[float, int]:
    """When it is due for its next try, and how many it has behind it then."""
    if any(attempt.outcome != SKIPPED for attempt in run.attempts):
        return now + wait_before(claimed.tries + 1, random), claimed.tries + 1
    seconds = max(SOON_SECONDS, run.retry_after or 0.0)
    if run.is_at_cap:
        may_go_anywhere = not (claimed.service or run.unable or run.doubted)
        if seconds < KEPT_PLACE_SECONDS and may_go_anywhere:
            return claimed.ready_at, claimed.tries
        # Another service may take it before a day is over.
        seconds = min(seconds, LONGEST_RETRY_SECONDS)
    return now + seconds * (1 + JITTER * random()), claimed.tries


def _timeline(run: Run, now: float) -> list[Attempt]:
    """All attempts; that a service was passed by is told of the last try only."""
    new = [replace(attempt, at=now) for attempt in run.attempts]
    old = [attempt for attempt in run.earlier if not (new and attempt.outcome == SKIPPED)]
    surplus = max(0, len(old) + len(new) - KEPT_ATTEMPTS)
    return [*(a for a in old[:surplus] if a.outcome == UNKNOWN), *old[surplus:], *new]


def _as_dicts(attempts: Sequence[Attempt]) -> list[dict[str, object]]:
    return [attempt.as_dict() for attempt in attempts]
