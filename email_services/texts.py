"""What text may go into an email: its headers, its bodies, and the text read out of HTML."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from inscriptis import get_text
from inscriptis.model.config import ParserConfig

MAX_HEADER_TEXT: Final = 998
"""Characters in a subject, a display name or a header: the longest line of RFC 5322, 2.1.1."""

# Mail programs decode these (RFC 2047), also into the line breaks that were refused in plain.
ENCODED_WORD: Final = re.compile(r"=\?.*\?=")

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
    if ENCODED_WORD.search(value):
        raise ValueError("It holds an encoded word (=?...?=); write the text itself.")
    if len(value) > MAX_HEADER_TEXT:
        raise ValueError(f"It is longer than {MAX_HEADER_TEXT} characters.")
    return value.strip()


def body_text(value: str) -> str:
    """`value`; raises ValueError where it is no text."""
    if "\x00" in value:
        raise ValueError("It holds a NUL character.")
    if _SURROGATE.search(value):
        raise ValueError("It holds half of a surrogate pair, which is no text.")
    return value


@lru_cache(maxsize=16)  # the messages of a batch often have one HTML
def text_of_html(html: str) -> str:
    """What a person reads in `html`, for mail programs that show text; "" where there is none."""
    text: str = get_text(html, _AS_TEXT)
    return text.strip()
