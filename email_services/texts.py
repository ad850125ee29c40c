"""What text may go into an email: its headers, its bodies, and the text read out of HTML."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from inscriptis import get_text
from inscriptis.model.config import ParserConfig

MAX_HEADER_TEXT: Final = 998
"""Characters in a subject, a display name or a header: the longest line of RFC 5322, 2.1.1."""

MAX_CACHED: Final = 100_000
"""Characters of HTML whose text is remembered."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# A link is kept with its address: without it, half of all mail makes no sense as text.
_AS_TEXT = ParserConfig(display_links=True, display_images=True)


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


def text_of_html(html: str) -> str:
    """What a person reads in `html`, for mail programs that show text; "" where there is none."""
    return _remembered_text(html) if len(html) <= MAX_CACHED else _text(html)


@lru_cache(maxsize=16)  # the messages of a batch often have one HTML
def _remembered_text(html: str) -> str:
    return _text(html)


def _text(html: str) -> str:
    text: str = get_text(html, _AS_TEXT)
    return text.strip()
