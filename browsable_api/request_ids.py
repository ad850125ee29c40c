"""Ids of requests, by which an answer and all that is logged of it are found."""

from __future__ import annotations

import re
import uuid
from typing import Final

REQUEST_ID: Final = "X-Request-ID"
"""The header that has it, of requests and answers."""

_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}", re.ASCII)


def usable_id(given: str) -> str:
    """`given`, if it can be one; else a new one."""
    return given if _ID.fullmatch(given) else new_id()


def new_id() -> str:
    """One that no other request has."""
    return uuid.uuid4().hex
