"""What each worker does now and then, out of the way of requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from email_services.exceptions import StoreUnavailable

EVERY_SECONDS: Final = 60.0


class Upkeep:
    """Does `task` every `seconds` in a thread of its own, and a last time when it is stopped.

    A database that is away is met with patience: the next time does what this one could not.
    """

    def __init__(self, task: Callable[[], None], seconds: float = EVERY_SECONDS) -> None:
        self._task = task
        self._seconds = seconds
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in the process that does it: threads survive no fork."""
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Do it a last time."""
        self._is_over.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(self._seconds)
            with suppress(StoreUnavailable):
                self._task()
