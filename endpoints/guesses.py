"""Wrong keys, limited for each address they come from, over all workers and machines.

A right key is never refused for it, nor asked about: who shares an address with somebody who
guesses, behind a proxy say, sends mail as before. What keeps a key safe is its length; this bounds
what guessing costs others, and closes the sign-in form, which is no right of programs.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from threading import Lock
from typing import Final

from email_services.exceptions import StoreUnavailable, TooManyWrongKeys
from email_services.store import Store

logger = logging.getLogger(__name__)

MAX_WRONG_KEYS: Final = 10
WINDOW_SECONDS: Final = 60
_REMEMBERED: Final = 10_000
"""Addresses that a worker remembers of itself."""

_PREFIX: Final = 64
"""What a household or a rented server has of IPv6, all addresses of which are one here."""


class Guesses:
    """How many wrong keys came from whom.

    Where the store is away each worker counts for itself.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._lock = Lock()

    def count(self, address: str | None, now: float) -> None:
        """A wrong key came from `address`. Raises TooManyWrongKeys where it is one too many.

        Once it is, the store is left alone: whoever guesses on has no more of it.
        """
        who = network_of(address)
        if who is None:
            return
        since, number = self._remembered(who, now)
        if number <= MAX_WRONG_KEYS:
            since, number = self._add(who, now, 1, (since, number))
            if number == MAX_WRONG_KEYS + 1:
                logger.warning("Too many wrong keys from %s.", who)
        if number > MAX_WRONG_KEYS:
            wait = math.ceil(since + WINDOW_SECONDS - now)
            raise TooManyWrongKeys(min(max(wait, 1), WINDOW_SECONDS))

    def take_back(self, address: str | None, now: float) -> None:
        """What was counted before it was known proved to be a right key."""
        who = network_of(address)
        if who is not None:
            self._add(who, now, -1, self._remembered(who, now))

    def _remembered(self, who: str, now: float) -> tuple[float, int]:
        with self._lock:
            since, number = self._known.get(who, (now, 0))
        return (since, number) if abs(now - since) <= WINDOW_SECONDS else (now, 0)

    def _add(self, who: str, now: float, more: int, known: tuple[float, int]) -> tuple[float, int]:
        found = (known[0], known[1] + more)
        with suppress(StoreUnavailable):
            found = self._store.count_wrong_keys(who, now, more, WINDOW_SECONDS)
        with self._lock:
            self._known[who] = found
            self._known.move_to_end(who)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found


def network_of(address: str | None) -> str | None:
    """Whom an address stands for; None for what is none, as where the server has a Unix socket."""
    try:
        parsed = ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    mapped: IPv4Address | IPv6Address = getattr(parsed, "ipv4_mapped", None) or parsed
    if isinstance(mapped, IPv4Address):
        return str(mapped)
    return str(IPv6Network((int(mapped), _PREFIX), strict=False))
