"""Times for people: how long ago or ahead, beside the clock's time in UTC."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Final

from markupsafe import Markup

_UNITS: Final = ((86_400, "day"), (3600, "h"), (60, "min"), (1, "s"))
_MOST: Final = 2
"""Up to so many of a unit, the next smaller one is counted: 90 s, and not 1 min."""


def span(seconds: float) -> str:
    """A length of time in words: "40 s", "6 min", "3 days"; static/page.js counts on from it."""
    size, unit = next((u for u in _UNITS if seconds >= _MOST * u[0]), _UNITS[-1])
    number = max(0, int(seconds / size))
    return f"{number} {unit}{'s' if unit == 'day' else ''}"


def clock(moment: str, now: float | None = None) -> str:
    """A time in ISO 8601 as a clock shows it, in UTC, with the day where that is another one."""
    then, today = _utc(moment), _today(now)
    day = "" if then.date() == today.date() else f"{_day(then, today)} "
    return f"{day}{then:%H:%M} UTC"


def this_moment() -> str:
    """The time of now, as `clock` takes it."""
    return _today(None).isoformat()


def lasting(moment: str, now: float | None = None) -> Markup:
    """How long ago it was, and when: "6 min, since 14:31 UTC"."""
    return Markup("{}, since {}").format(_counted(moment, now, "ago"), clock(moment, now))


def ahead(moment: str, now: float | None = None) -> Markup:
    """How long it is until then, and when: "in 4 min, 14:37 UTC"."""
    return Markup("in {}, {}").format(_counted(moment, now, "ahead"), clock(moment, now))


def is_past(moment: str | None, now: float | None = None) -> bool:
    """Whether there is such a time, and it has come."""
    return bool(moment) and _utc(str(moment)) <= _today(now)


def _counted(moment: str, now: float | None, way: str) -> Markup:
    words = span(abs((_utc(moment) - _today(now)).total_seconds()))
    return Markup('<time datetime="{}" data-span="{}">{}</time>').format(moment, way, words)


def _utc(moment: str) -> datetime:
    return datetime.fromisoformat(moment.replace("Z", "+00:00")).astimezone(timezone.utc)


def _today(now: float | None) -> datetime:
    return datetime.fromtimestamp(time.time() if now is None else now, timezone.utc)


def _day(then: datetime, today: datetime) -> str:
    return f"{then.day} {then:%b}" + ("" if then.year == today.year else f" {then.year}")
