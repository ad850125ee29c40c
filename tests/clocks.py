"""That something takes no time, held so that it says nothing of how fast the machine is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

FOREVER = 60
"""Seconds for which a test makes wait who waits."""

LITTLE = 10
"""Seconds of a processor: what should take less than one, and would take minutes if not bounded."""


@contextmanager
def no_waiting() -> Iterator[None]:
    """What is done inside does not wait forever, but for a few seconds at most."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < FOREVER / 2


@contextmanager
def little_work() -> Iterator[None]:
    """What is done inside keeps no processor busy for long, however many others do."""
    started = time.process_time()
    yield
    assert time.process_time() - started < LITTLE
