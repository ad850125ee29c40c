"""How many calls to one service may be under way in this process: no service may hold all threads.

It is about the threads of one process, so that nothing of it is in the store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

STUCK_SECONDS: Final = 1.0
"""What is full and from which nothing came back for so long is stuck: who waits for it hears so at
once. While something comes back, there is a place soon, and who waits gets a turn: a message is not
to leave the order of the services for a crowd that is gone in a moment. It is the same for a
request that waits for a thread (server/lanes.py)."""

PATIENCE_SECONDS: Final = 5.0
"""But no longer than that."""


class Bulkhead:
    """The places for calls to one service.

    places: how many. clock: monotonic, in seconds.
    """

    def __init__(self, places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = places
        self._clock = clock
        self._moved = clock()
        self._changed = threading.Condition()

    def enter(self, patience: float = PATIENCE_SECONDS) -> bool:
        """Take a place, or return False. Who has one has to `leave`.

        patience: seconds to wait for one at the most, as long as places become free.
        """
        until = self._clock() + patience
        with self._changed:
            while not self._free:
                left = min(until, self._moved + STUCK_SECONDS) - self._clock()
                if left <= 0:
                    return False
                self._changed.wait(left)
            self._free -= 1
            self._moved = self._clock()
            return True

    def leave(self) -> None:
        """Give the place back."""
        with self._changed:
            self._free += 1
            self._moved = self._clock()
            self._changed.notify()
