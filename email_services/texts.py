"""What text may go into an email: its headers and its bodies."""

from __future__ import annotations

import re
from typing import Final

MAX_HEADER_TEXT: Final = 998
"""Characters in a subject, a display name or a header: the longest line of RFC 5322, 2.1.1."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def refuse_control_characters(value: str) -> None:
    """Raise ValueError where `value` would break a header, or is no text at all."""
    if _CONTROL_CHARACTER.search(value):
        raise ValueError("It holds a line break or another control character.")


def header_text(value: str) -> str:
    """`value` without space around it; raises ValueError where it cannot stand in a header."""
    refuse_control_characters(value)
    if len(value) > MAX_HEADER_TEXT:
        raise ValueError(f"It is longer than {MAX_HEADER_TEXT} characters.")
    if has_encoded_word(value):
        raise ValueError("It holds an encoded word (=?...?=); write the text itself.")
    return value.strip()


def has_encoded_word(value: str) -> bool:
    """Whether mail programs would decode something in it (RFC 2047).

    They do so too with the line breaks that are refused in plain.
    """
    _, begins, rest = value.partition("=?")
    return bool(begins) and "?=" in rest


def body_text(value: str) -> str:
    """`value`; raises ValueError where it is no text."""
    if "\x00" in value:
        raise ValueError("It holds a NUL character.")
    if _SURROGATE.search(value):
        raise ValueError("It holds half of a surrogate pair, which is no text.")
    return value
