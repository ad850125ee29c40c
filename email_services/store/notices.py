"""Word from other processes that something was put into the outbox; PostgreSQL has that.

Without it what waits is found a little later, when somebody looks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg

CHANNEL: Final = "mailpool_outbox"
QUIET_SECONDS: Final = 0.05
"""Between two notices of the same: who was woken looks until nothing is left."""


class Quiet:
    """Which notices were just given."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}

    def is_due(self, lane: tuple[str, str]) -> bool:
        """Whether one is to be given now; it is noted that it was."""
        now = time.monotonic()
        is_due = now - self._last.get(lane, 0.0) > QUIET_SECONDS
        if is_due:
            self._last[lane] = now
        return is_due


def listen(
    url: str, heard: Callable[[str, str], None], is_over: Callable[[], bool], patience: float
) -> None:
    """Call `heard` with the domain and the stream of each notice, until it is over.

    url: of a PostgreSQL database. patience: seconds between two looks whether it is over, and to
    wait where the database is away.
    """
    plain = re.sub(r"^postgres(ql)?(\+psycopg)?://", "postgresql://", url)
    while not is_over():
        with suppress(psycopg.Error):
            _listen(plain, heard, is_over, patience)
        time.sleep(patience)


def _listen(
    url: str, heard: Callable[[str, str], None], is_over: Callable[[], bool], patience: float
) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        while not is_over():
            for notice in connection.notifies(timeout=patience):
                domain, _, stream = notice.payload.partition(" ")
                heard(domain, stream)
