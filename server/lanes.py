"""Which of the requests that have arrived gets a thread next: nobody takes all of them.

A lane is what shares a fate: requests below the same first part of the path, which is an email
domain or a page. While one lane's requests hang, those of all others find threads:

* With neighbours, a lane takes a further thread only while more are free than it has. So one that
  hangs holds half of them, two hold a third each, and there are always some left.
* Messages leave a reserve, for health checks, listings and pages.
* Large bodies of all lanes together are only so many bytes at a time, however many threads there
  are; small ones never wait for that.

What has no thread waits here at no cost, and lanes take turns. Where nothing moves in a lane that
is full, its requests are told so instead of waiting for a provider's timeout.

Nothing here knows of sockets, nor of the clock: times are passed in, in seconds.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from email_services.bulkhead import STUCK_SECONDS

RESERVED_PART: Final = 8
"""One in so many threads is kept from messages."""

LARGE_BYTES: Final = 256 * 1024
"""A body of more is large."""

LARGE_STUCK_SECONDS: Final = 10.0
"""The STUCK_SECONDS of large bodies, which take their time to arrive and to be passed on."""

MAX_WAIT_SECONDS: Final = 20.0
"""No request waits longer for a thread, whatever moves: its client has a limit, too."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ticket:
    """What decides when a request gets a thread.

    lane: whose it is. is_send: whether it takes a message, and may take as long as a provider
    does. size: bytes of its body, as far as it says. since: when it had arrived.
    """

    lane: str
    is_send: bool
    size: int
    since: float

    @property
    def is_large(self) -> bool:
        """Whether its body counts against the bytes that are in progress together."""
        return self.size > LARGE_BYTES

    @property
    def group(self) -> tuple[str, bool]:
        """A lane's messages and its pages do not wait for each other."""
        return (self.lane, self.is_send)


class Lanes(Generic[Item]):
    """The requests that wait, and how many threads each lane has.

    free: threads that are nobody's now.
    threads: of this worker. max_bytes: of large bodies in progress together; one always may.
    has_neighbours: whether there are several email domains.
    """

    def __init__(self, threads: int, max_bytes: int, *, has_neighbours: bool) -> None:
        self.free = threads
        self._reserve = threads // RESERVED_PART
        self._bytes_left = self._max_bytes = max_bytes
        self.has_neighbours = has_neighbours
        self._busy: Counter[tuple[str, bool]] = Counter()
        self._moved: dict[tuple[str, bool], float] = {}
        self._waiting: OrderedDict[Hashable, deque[tuple[Ticket, Item]]] = OrderedDict()

    @property
    def are_waiting(self) -> bool:
        """Whether any request waits."""
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether no message gets a thread."""
        return self.free <= self._reserve

    def add(self, ticket: Ticket, item: Item) -> None:
        """A request has arrived."""
        queue = (ticket.group, ticket.is_large)
        self._waiting.setdefault(queue, deque()).append((ticket, item))

    def begin(self, now: float) -> Iterator[tuple[Ticket, Item]]:
        """Each request that gets a thread now; the lanes take turns."""
        started = True
        while started:
            started = False
            for queue, line in list(self._waiting.items()):
                ticket, item = line[0]
                if not self._may_begin(ticket):
                    continue
                self._take(queue)
                if line:
                    self._waiting.move_to_end(queue)
                self.free -= 1
                self._busy[ticket.group] += 1
                self._moved[ticket.group] = now
                self._bytes_left -= ticket.size if ticket.is_large else 0
                started = True
                yield ticket, item

    def end(self, ticket: Ticket, now: float) -> None:
        """A request has been answered, and its thread is free."""
        self.free += 1
        self._bytes_left += ticket.size if ticket.is_large else 0
        self._busy[ticket.group] -= 1
        self._moved[ticket.group] = now
        if not self._busy[ticket.group]:
            del self._busy[ticket.group], self._moved[ticket.group]

    def give_up(self, now: float) -> Iterator[Item]:
        """Each request that is to wait no longer."""
        for queue, line in list(self._waiting.items()):
            while line and self._is_stuck(line[0][0], now):
                yield self._take(queue)

    def _take(self, queue: Hashable) -> Item:
        line = self._waiting[queue]
        _, item = line.popleft()
        if not line:
            del self._waiting[queue]
        return item

    def _may_begin(self, ticket: Ticket) -> bool:
        if self.free <= (self._reserve if ticket.is_send else 0):
            return False
        if self.has_neighbours and self._busy[ticket.group] >= self.free:
            return False
        is_alone = self._bytes_left == self._max_bytes
        return not ticket.is_large or is_alone or ticket.size <= self._bytes_left

    def _is_stuck(self, ticket: Ticket, now: float) -> bool:
        if now - ticket.since > MAX_WAIT_SECONDS:
            return True
        moved = self._moved.get(ticket.group, ticket.since)
        return now - moved > (LARGE_STUCK_SECONDS if ticket.is_large else STUCK_SECONDS)
