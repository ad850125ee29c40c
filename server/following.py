"""Which configuration a worker serves with: the newest that was uploaded.

Another one is another application, made aside and whole. Each request is given to one of them, so
that none sees half of each, and those in progress end in the one they began in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from email_services.counters import note_reload
from email_services.exceptions import ConfigError, StoreUnavailable
from email_services.logs import event

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often a worker asks whether something was uploaded."""


class Follower:
    """Has a worker serve with the newest configuration, in a thread of its own.

    worker: a `server.worker.Worker`. renewed: makes the application that takes over from one, or
    None; as `app.renewed`. begin, end: what an application does beside requests.
    """

    def __init__(
        self,
        worker: Any,
        renewed: Callable[[Any], Any],
        begin: Callable[[Any], None],
        end: Callable[[Any], None],
    ) -> None:
        self._worker = worker
        self._renewed = renewed
        self._begin = begin
        self._end = end
        self._refused = ""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Look at once, and go on to.

        What the other workers know already is no news to tell: SIGHUP, which began this one, may
        just have met a file that is not usable.
        """
        self.look(is_news=False)
        self._thread.start()

    def stop(self) -> None:
        """The end."""
        self._is_over.set()
        if self._thread.is_alive():  # not where the first look failed
            self._thread.join()

    def look(self, *, is_news: bool = True) -> None:
        """Take over what was uploaded since, if it can be used here."""
        try:
            renewed = self._renewed(self._worker.wsgi)
        except StoreUnavailable:
            return  # which others say
        except ConfigError as error:
            self._refuse(str(error))
            return
        if renewed is not None:
            before = self._worker.wsgi
            self._begin(renewed)
            self._worker.take_over(renewed)
            self._end(before)
            if is_news:
                note_reload(is_in_use=True)

    def _refuse(self, why: str) -> None:
        """Go on with the one before; said once, since it is found again and again."""
        note_reload(is_in_use=False)
        if why != self._refused:
            words = "The configuration was not taken over: %s"
            logger.error(words, why, extra=event("config", is_taken_over=False))
        self._refused = why

    def _run(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            with self._going_on_after_bugs():
                self.look()

    @contextmanager
    def _going_on_after_bugs(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            logger.exception("A bug kept a configuration from being taken over.")
