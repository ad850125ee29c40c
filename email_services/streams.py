"""Streams: kinds of mail of one domain, which do not wait for each other in the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from email_services.message import DAY_SECONDS, OnUnknown
from email_services.store import DEFAULT_STREAM

BULK: Final = "bulk"
NAME: Final = r"^[a-z0-9][a-z0-9_-]{0,63}$"
"""What a stream may be called."""


@dataclass(frozen=True)
class Stream:
    """One kind of mail.

    share: the part of the calls of the queue that is kept for it, from 0 to 1. services: those it
    goes through, in this order; empty for all of the domain's in theirs. expires_in: seconds after
    which what waits in it is not sent any more, unless the message says so itself. on_unknown: the
    same as for the domain, None for what that says. at_cap: whether what waits in the queue is
    taken to the next service, or goes on waiting, where one has been handed all it may have.
    """

    name: str = DEFAULT_STREAM
    share: float = 0.25
    services: Sequence[str] = ()
    expires_in: float = DAY_SECONDS
    on_unknown: OnUnknown | None = None
    at_cap: Literal["next", "wait"] = "next"


BUILT_IN: Final[Mapping[str, Stream]] = {
    DEFAULT_STREAM: Stream(DEFAULT_STREAM, share=0.75),
    BULK: Stream(BULK, share=0.25),
}
"""The streams that every domain has."""
