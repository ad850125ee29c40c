"""How much may be handed to a service: caps that all workers and nodes keep together.

The rules come first, without clock or storage; `ServiceCaps` applies them to what the workers
share. What is handed over in a second is counted exactly, in any second and not by the clock's: a
message takes its place when it goes, and the place is free again one second later.

Times are seconds since the epoch.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Final, NamedTuple

from email_services.abstract import AbstractEmailService
from email_services.breakers import GRACE_SECONDS, without_the_store
from email_services.exceptions import StoreUnavailable
from email_services.message import DAY_SECONDS
from email_services.store import Store

logger = logging.getLogger(__name__)

TICKS: Final = 20
"""In a second. What went in the same tick is counted together, and its place is free one tick
later than need be."""

TRUSTED_SECONDS: Final = 1.0
"""For how long a process believes that a service is at its cap before it looks again."""

CALL_SECONDS: Final = 1.0
"""After which one of the calls that are under way may be over."""


@dataclass(frozen=True)
class Caps:
    """What a service may be handed; None for as much as there is.

    per_second, per_day: messages, a day being one of UTC. at_once: calls that are under way.
    """

    per_second: int | None = None
    per_day: int | None = None
    at_once: int | None = None

    def __bool__(self) -> bool:
        return self != Caps()

    def shared_by(self, processes: int) -> Caps:
        """The part of one of so many processes that cannot ask each other; at least 1."""
        caps = (self.per_second, self.per_day, self.at_once)
        return Caps(*(cap if cap is None else max(1, cap // processes) for cap in caps))


@dataclass(frozen=True)
class Use:
    """What a service has been handed.

    recent: messages of the last second, by tick. day: since the epoch. today: messages of that day.
    under_way: until when each call that has begun may last, by its name.
    """

    recent: Mapping[int, int] = field(default_factory=dict)
    day: int = 0
    today: int = 0
    under_way: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_stored(cls, stored: str) -> Use:
        """As it was kept (`stored`); "" for what nobody has kept."""
        if not stored:
            return cls()
        parts = json.loads(stored)
        recent = {int(tick): number for tick, number in parts["recent"].items()}
        return cls(**{**parts, "recent": recent})

    def stored(self) -> str:
        """To be kept."""
        return json.dumps(asdict(self))

    def at(self, now: float) -> Use:
        """The part of it that counts at that time.

        What another clock puts more than a second ahead does not: it would count for too long.
        """
        tick, day = int(now * TICKS), int(now // DAY_SECONDS)
        return Use(
            {t: n for t, n in self.recent.items() if tick - TICKS <= t <= tick + TICKS},
            day,
            self.today if day == self.day else 0,
            {name: until for name, until in self.under_way.items() if until > now},
        )


class Grant(NamedTuple):
    """How many messages may go. why: the others may not. until: when they may, at the earliest."""

    number: int
    why: str = ""
    until: float = 0.0


def take(
    use: Use, caps: Caps, wanted: int, now: float, call: tuple[str, float]
) -> tuple[Use, Grant]:
    """Have as many of `wanted` messages go as the caps let, in one call; what is used then.

    call: its name, and until when it may last.
    """
    use = use.at(now)
    if caps.at_once is not None and len(use.under_way) >= caps.at_once:
        return use, Grant(0, f"{caps.at_once} calls at once", now + CALL_SECONDS)
    number = wanted
    if caps.per_second is not None:
        number = min(number, caps.per_second - sum(use.recent.values()))
    if caps.per_day is not None:
        number = min(number, caps.per_day - use.today)
    number = max(0, number)
    if number:
        tick = int(now * TICKS)
        recent = {**use.recent, tick: use.recent.get(tick, 0) + number}
        under_way = dict([*use.under_way.items(), call])
        use = Use(recent, use.day, use.today + number, under_way)
    if number == wanted:
        return use, Grant(number)
    if caps.per_day is not None and use.today >= caps.per_day:
        until = float((use.day + 1) * DAY_SECONDS)
        return use, Grant(number, f"{caps.per_day} messages a day", until)
    until = (min(use.recent) + TICKS + 1) / TICKS
    return use, Grant(number, f"{caps.per_second} messages a second", until)


def give_back(use: Use, call: str) -> Use:
    """What is used once a call is over."""
    under_way = {name: until for name, until in use.under_way.items() if name != call}
    return Use(use.recent, use.day, use.today, under_way)


class ServiceCaps:
    """The caps of one service, kept by all that share the store.

    While that is away, each of `processes` keeps to its part of them. now: the time.
    """

    def __init__(
        self,
        service: AbstractEmailService,
        store: Store,
        now: Callable[[], float],
        processes: int = 1,
    ) -> None:
        settings = service.settings
        self._caps = Caps(settings.max_per_second, settings.max_per_day, settings.max_at_once)
        self._share = self._caps.shared_by(processes)
        self._domain, self._name = service.email_domain, service.name
        self._store = store
        self._now = now
        self._lock = threading.Lock()
        self._own_use = Use()  # while the store is away
        self._full = Grant(0)
        self._full_until = 0.0  # when to look again

    @contextmanager
    def turn(self, wanted: int, seconds: float) -> Iterator[Grant]:
        """For a call with as many of `wanted` messages as may go; it is over at the end of this.

        seconds: what it may take at the most. Without caps, nobody is asked.
        """
        if not self._caps:
            yield Grant(wanted)
            return
        now = self._now()
        if now < self._full_until:
            yield self._full
            return
        until = now + seconds + GRACE_SECONDS + self._store.skew_seconds
        call = (uuid.uuid4().hex, until)
        grant, is_shared = self._take(wanted, now, call)
        if grant.number < wanted and self._caps.at_once is None:
            self._full = grant._replace(number=0)
            self._full_until = min(grant.until, now + TRUSTED_SECONDS)
        try:
            yield grant
        finally:
            if grant.number and self._caps.at_once is not None:
                self._give_back(call[0], is_shared=is_shared)

    def look(self) -> Grant:
        """Whether a message could go now; it is not counted. Raises StoreUnavailable."""
        if not self._caps:
            return Grant(1)
        use = Use.from_stored(self._store.use(self._domain, self._name))
        return take(use, self._caps, 1, self._now(), ("", 0.0))[1]

    def seconds_until(self, grant: Grant) -> float:
        """How long it is from now until those may go that were not let."""
        return max(0.0, grant.until - self._now())

    def _take(self, wanted: int, now: float, call: tuple[str, float]) -> tuple[Grant, bool]:
        """What may go, and whether that is known to all who share the store."""
        grants: list[Grant] = []

        def change(stored: str) -> str:
            use, grant = take(Use.from_stored(stored), self._caps, wanted, now, call)
            grants.append(grant)
            return self._kept(use)

        try:
            self._store.change_use(self._domain, self._name, change)
        except StoreUnavailable as error:
            logger.error("%s: %s keeps to a part of its caps: %s", self._domain, self._name, error)
            with self._lock:
                self._own_use, grant = take(self._own_use, self._share, wanted, now, call)
            return grant, False
        return grants[-1], True

    def _kept(self, use: Use) -> str:
        """Without the calls where they are not counted, since nobody takes them off then."""
        if self._caps.at_once is None:
            use = Use(use.recent, use.day, use.today)
        return use.stored()

    def _give_back(self, call: str, *, is_shared: bool) -> None:
        if not is_shared:
            with self._lock:
                self._own_use = give_back(self._own_use, call)
            return
        with without_the_store(self._domain):  # its place comes back by itself, later
            self._store.change_use(
                self._domain,
                self._name,
                lambda stored: give_back(Use.from_stored(stored), call).stored(),
            )
