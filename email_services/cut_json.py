"""What can be told from JSON of which only the beginning came."""

from __future__ import annotations

import re
from json import JSONDecodeError, loads
from typing import Any, Final

_CLOSED_BY: Final = {"{": "}", "[": "]"}
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:"]', re.DOTALL)


def whole_part(body: bytes) -> Any:
    """The values that stand whole in `body`, in what holds them; None where it is no JSON.

    `{"a": [1, 2` is read as `{"a": [1]}`: another digit may have followed the 2.
    """
    text = body.decode("utf-8", "ignore")
    open_until: list[str] = []
    whole, before = 0, ""
    for token in _TOKEN.finditer(text):
        mark = token[0]
        is_value = before == ":" or open_until[-1:] == ["]"]
        if mark == '"':  # a text that does not end
            break
        if mark in _CLOSED_BY:
            open_until.append(_CLOSED_BY[mark])
            whole = token.end()
        elif mark in "]}":
            if not open_until or open_until.pop() != mark:
                return None
            whole = token.end()
        elif mark == ",":
            whole = token.start()
        elif mark != ":" and is_value:
            whole = token.end()
        before = mark
    try:
        return loads(text[:whole] + "".join(reversed(open_until)))
    except (JSONDecodeError, RecursionError):
        return None
