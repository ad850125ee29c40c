"""A message that waits as a record in a topic, and back.

It is JSON, as the message itself, so that another version of this service can read it.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, Final

from email_services.store import LoggedMessage, Waiting

_OF_LOG: Final = frozenset(field.name for field in fields(LoggedMessage))
_OF_MESSAGE: Final = frozenset({"payload", "ready_at", "due", "expires", "service", "tries"})
"""One with a key, and an answer to repeat, is never a record."""


def record_of(message: Waiting) -> bytes:
    """The whole message."""
    given: dict[str, Any] = {name: getattr(message, name) for name in _OF_MESSAGE}
    given["payload"] = message.payload.decode()
    given["logged"] = vars(message.logged)
    return json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode()


def message_of(record: bytes) -> Waiting:
    """The message that was a record. Raises ValueError, KeyError or TypeError."""
    given: dict[str, Any] = json.loads(record)
    logged = {name: value for name, value in given["logged"].items() if name in _OF_LOG}
    rest = {name: given[name] for name in _OF_MESSAGE}
    return Waiting(LoggedMessage(**logged), **{**rest, "payload": rest["payload"].encode()})
