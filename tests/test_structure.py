"""What JSON would become is counted as it is, whatever its strings hold."""

from __future__ import annotations

import json
import random

import pytest

from browsable_api.structure import Structure, fits

NOTHING = Structure(0, 0, 0)
ALL = Structure(10**9, 10**9, 10**9)


def counted(value) -> tuple[int, int, int]:
    """Containers, members and values of what was built."""
    if isinstance(value, dict):
        parts = [counted(item) for item in value.values()]
        members = len(value)
    elif isinstance(value, list):
        parts, members = [counted(item) for item in value], 0
    else:
        return 0, 0, 0
    return (
        1 + sum(part[0] for part in parts),
        members + sum(part[1] for part in parts),
        max(len(value), 1) + sum(part[2] for part in parts),
    )


VALUES = {
    "empty": {},
    "brackets in a string": {"a": "[[[{{{,,,:::"},
    "quotes in a string": {"a": '"[","{":"', '"[': "b"},
    "backslashes at the end": {"a\\": ["\\", '\\"', "\\\\", "[\\"]},
    "text": {"ü": ["☃", "\x01", "/", 1, 2.5, None, True, []]},
    "an end inside an escape": {"a": "\\" * 600_000 + '"' * 300_000 + "["},
    "many": {"messages": [{"to": ["a@b.c", "d@e.f"], "n": {"x": "{"}}] * 20_000},
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("spaces", [None, 1])
def test_what_is_counted_is_what_would_be_built(name, spaces):
    text = json.dumps(VALUES[name], indent=spaces, ensure_ascii=False).encode()
    containers, members, values = counted(VALUES[name])
    exactly = Structure(containers, members, values)
    assert fits(text, exactly)
    assert not fits(text, Structure(containers - 1, members, values))
    if members:
        assert not fits(text, Structure(containers, members - 1, values))
    assert not fits(text, Structure(containers, members, values - 1))


def test_what_random_strings_hold_never_counts():
    rng = random.Random(1)
    for _ in range(200):
        texts = ["".join(rng.choices('\\"[]{},:a', k=rng.randrange(12))) for _ in range(50)]
        text = json.dumps(texts).encode()
        assert fits(text, Structure(1, 0, 50))
        assert not fits(text, Structure(1, 0, 49))


@pytest.mark.parametrize("text", [b"", b'"', b"\\", b'\\"[', b'"' * 600_001, b"\xff" * 10])
def test_what_is_no_json_is_left_to_who_parses_it(text):
    assert fits(text, ALL)
