"""Copies of what was sent: kept for a while where a domain wants that, and no send waits for it.

What is handed in is written by a thread of its own, which also packs and encrypts it, while the
provider is asked. So what a process had begun a moment before it is killed is lost, and some are
where the database is away for long: a copy is for people to look at, and what became of a message
is in the log.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from email_services.counters import COPIES_LOST
from email_services.exceptions import NoCopy, StoreUnavailable
from email_services.message import DAY_SECONDS, EmailMessage
from email_services.packing import packed, unpacked
from email_services.store import Content, Store

logger = logging.getLogger(__name__)

MOST_WAITING_BYTES: Final = 64 * 1024 * 1024
"""What may wait in one process to be written; beyond it, messages are sent without a copy."""

TOGETHER: Final = 100
"""Messages that are written together."""

AGAIN_SECONDS: Final = 1.0
STOP_SECONDS: Final = 30.0
"""How long a process that ends waits for copies to be written."""

_QUICKLY: Final = 1
"""zlib's level: a message of text becomes a third, and a file in base64 what it was before."""


class Seal:
    """Encrypts copies, with the first of the keys, and decrypts those of any; without one, neither.

    keys: as `Fernet.generate_key` makes them. Raises ValueError where one cannot be.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._keys = MultiFernet([Fernet(key) for key in keys]) if keys else None

    @property
    def is_on(self) -> bool:
        """Whether there is a key."""
        return self._keys is not None

    def closed(self, data: bytes) -> bytes:
        """`data` in a form that only the keys open, or as it is."""
        return base64.urlsafe_b64decode(self._keys.encrypt(data)) if self._keys else data

    def opened(self, content: Content) -> bytes:
        """What was closed. Raises NoCopy where no key fits."""
        if not content.is_encrypted:
            return content.content
        try:
            if self._keys:
                return self._keys.decrypt(base64.urlsafe_b64encode(content.content))
        except InvalidToken:
            pass
        raise NoCopy("The copy of this message is encrypted with a key that this server has not.")


@dataclass(frozen=True)
class _Waiting:
    email_domain: str
    message: EmailMessage
    until: float
    size: int


class Copies:
    """The copies of messages of all domains.

    seconds: how long each domain keeps its own; 0 where it keeps none. now: the time in seconds
    since the epoch.
    """

    def __init__(
        self,
        store: Store,
        seconds: Mapping[str, float],
        seal: Seal | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._seconds = seconds
        self._seal = seal or Seal()
        self._now = now
        self._changed = threading.Condition()
        self._waiting: dict[str, _Waiting] = {}
        self._bytes = 0
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def keep_for(self, seconds: Mapping[str, float]) -> None:
        """Keep those that come from now on for so long; see the class."""
        self._seconds = seconds

    def days(self, email_domain: str) -> float:
        """How long the domain keeps copies, 0 where it keeps none."""
        return self._seconds.get(email_domain, 0) / DAY_SECONDS

    def keep(self, email_domain: str, messages: Sequence[EmailMessage]) -> None:
        """Keep copies of messages that are handed over, if the domain does; never waits."""
        seconds = self._seconds.get(email_domain, 0)
        if not seconds or not messages:
            return
        until, lost = self._now() + seconds, 0
        with self._changed:
            for message in messages:
                item = _Waiting(email_domain, message, until, _size(message))
                if self._waiting and self._bytes + item.size > MOST_WAITING_BYTES:
                    lost += 1
                    continue
                self._waiting[message.message_id] = item
                self._bytes += item.size
            if self._thread is None:  # here, since a thread survives no fork
                self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
                self._thread.start()
            self._changed.notify()
        self._note_lost(email_domain, lost)

    def find(self, email_domain: str, message_id: str) -> EmailMessage:
        """The message as it came, from its copy or where it waits to be sent.

        Raises NoCopy, which says why there is none, and StoreUnavailable.
        """
        with self._changed:
            item = self._waiting.get(message_id)
        if item:
            return item.message
        content = self._store.content(message_id, self._now())
        if content:
            return _unpacked(message_id, self._seal.opened(content), zlib.decompress)
        payload = self._store.payload(message_id)
        if payload is None:
            raise NoCopy(self._why_none(email_domain))
        return _unpacked(message_id, payload)

    def has(self, message_id: str) -> bool:
        """Whether there is a copy, readable or not. Raises StoreUnavailable."""
        with self._changed:
            is_waiting = message_id in self._waiting
        return is_waiting or self._store.has_content(message_id, self._now())

    def stop(self) -> None:
        """Write what waits, and end; it may be used again."""
        with self._changed:
            thread, self._is_stopping = self._thread, True
            self._changed.notify()
        if thread:
            thread.join(STOP_SECONDS)
        with self._changed:
            self._thread, self._is_stopping = None, False

    def _why_none(self, email_domain: str) -> str:
        if not self._seconds.get(email_domain):
            return f"{email_domain} keeps no copies of its messages (keep_content_days)."
        days = f"{self.days(email_domain):g}"
        return (
            f"No copy of this message is here: {email_domain} keeps them for {days} days, and one "
            "may take a moment to be written."
        )

    def _run(self) -> None:
        while some := self._next():
            try:
                self._store.keep_contents([self._content(item) for item in some])
            except StoreUnavailable as error:
                logger.error("%d copies of messages are not written yet: %s", len(some), error)
                with self._changed:
                    if not self._is_stopping:
                        self._changed.wait(AGAIN_SECONDS)
                        continue
                self._give_up()
                return
            except Exception:  # a bug of ours costs these copies, and no others
                logger.exception("A bug lost copies of messages.")
                for item in some:
                    self._note_lost(item.email_domain, 1)
            self._forget(some)

    def _next(self) -> list[_Waiting]:
        """Some that wait; none where it is over."""
        with self._changed:
            while not (self._waiting or self._is_stopping):
                self._changed.wait()
            found: list[_Waiting] = []
            size = 0
            for item in islice(self._waiting.values(), TOGETHER):
                size += item.size
                if found and size > MOST_WAITING_BYTES // 8:
                    break
                found.append(item)
            return found

    def _content(self, item: _Waiting) -> Content:
        data = self._seal.closed(zlib.compress(packed(item.message.for_now()), _QUICKLY))
        id_ = item.message.message_id
        return Content(id_, item.email_domain, item.until, data, self._seal.is_on)

    def _forget(self, some: Sequence[_Waiting]) -> None:
        with self._changed:
            for item in some:
                del self._waiting[item.message.message_id]
                self._bytes -= item.size

    def _give_up(self) -> None:
        with self._changed:
            lost = list(self._waiting.values())
            self._waiting, self._bytes = {}, 0
        for item in lost:
            self._note_lost(item.email_domain, 1)

    def _note_lost(self, email_domain: str, number: int) -> None:
        if number:
            COPIES_LOST.labels(email_domain).inc(number)
            logger.warning("%s: %d messages were sent without a copy", email_domain, number)


def _size(message: EmailMessage) -> int:
    """About what it takes in memory."""
    bodies = len(message.raw_text_body) + len(message.html_body)
    return 1000 + bodies + sum(len(file.content) for file in message.files)


def _unpacked(
    message_id: str, data: bytes, expand: Callable[[bytes], bytes] = bytes
) -> EmailMessage:
    """Raises NoCopy where it is another message's, or no message."""
    with suppress(ValueError, KeyError, TypeError, zlib.error):
        message = unpacked(expand(data))
        if message.message_id == message_id:
            return message
    raise NoCopy("The copy of this message cannot be read.")
