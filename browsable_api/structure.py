"""How much JSON would become, counted before any of it is built.

Twelve million empty lists are 36 MB on the wire, a gigabyte as objects, and seconds in which the
interpreter does nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_WINDOW_BYTES: Final = 256 * 1024
"""Looked at together: others have their turn in between."""


@dataclass(frozen=True)
class Structure:
    """The most that a text in JSON may become.

    containers: objects and lists. members: of all objects. values: of all containers.
    """

    containers: int
    members: int
    values: int


def fits(text: bytes | bytearray, most: Structure) -> bool:
    """Whether the JSON in `text` becomes no more than `most`; of what is no JSON, either is said.

    What strings hold does not count. It takes a few ms for each MB, whatever that is.
    """
    containers = members = commas = 0
    is_in_string = False
    split_escape = b""
    for start in range(0, len(text), _WINDOW_BYTES):
        window = split_escape + bytes(text[start : start + _WINDOW_BYTES])
        window = window.replace(rb"\\", b"").replace(rb"\"", b"")
        split_escape = b"\\" if window.endswith(b"\\") else b""
        pieces = window.removesuffix(split_escape).split(b'"')
        outside = b"".join(pieces[is_in_string::2])
        is_in_string ^= len(pieces) % 2 == 0
        containers += outside.count(b"[") + outside.count(b"{")
        members += outside.count(b":")
        commas += outside.count(b",")
        if (
            containers > most.containers
            or members > most.members
            or commas + containers > most.values
        ):
            return False
    return True
