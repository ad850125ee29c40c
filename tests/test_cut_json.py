from __future__ import annotations

import json

import pytest

from email_services.cut_json import whole_part

TABLE = {
    '{"a": [1, 2': {"a": [1]},
    '{"a": [1, 2]': {"a": [1, 2]},
    '{"a": 12': {},
    '{"a": 12,': {"a": 12},
    '{"a": "x"': {"a": "x"},
    '{"a": "x': {},
    r'{"a": "x\"': {},
    r'{"a": "\\"': {"a": "\\"},
    '{"a": "x", "b"': {"a": "x"},
    '{"a": "x", "b":': {"a": "x"},
    '{"a": "}],{[:", "b': {"a": "}],{[:"},
    '["a", "b"': ["a", "b"],
    '["a", "b': ["a"],
    '{"a": {"b": [{"c": 1}, {"d"': {"a": {"b": [{"c": 1}, {}]}},
    "[true, fal": [True],
    "": None,
    "12": None,
    '"a': None,
    "<p>[1</p>": None,
    "[1}": None,
    "]": None,
    "[" * 60_000: None,
}


@pytest.mark.parametrize("text", TABLE, ids=lambda text: text[:30])
def test_what_stands_whole_is_read(text):
    assert whole_part(text.encode()) == TABLE[text]


def test_a_character_that_was_cut_is_left_out():
    assert whole_part('["ä", "ö'.encode()[:-1]) == ["ä"]


def holds(whole, part) -> bool:
    """Whether every value in `part` is the one that stands at its place in `whole`."""
    if isinstance(part, dict):
        return all(key in whole and holds(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return len(part) <= len(whole) and all(map(holds, whole, part))
    return whole == part


def test_nothing_is_made_up_wherever_it_is_cut():
    value = {"a": [{"b": "c,]}", "d": -1.5e3}, [], {}, "\\", None], "e": {"f": True}, "ö": "\u2028"}
    body = json.dumps(value, ensure_ascii=False).encode()
    parts = [whole_part(body[:length]) for length in range(1, len(body) + 1)]
    assert all(holds(value, part) for part in parts)
    assert parts[-1] == value
