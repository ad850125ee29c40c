"""Charts show what there is of each part, and hide nothing that is there."""

from __future__ import annotations

import re

from browsable_api.charts import LEAST, bar, columns


def rects(svg: str) -> list[tuple[str, float, float, float, float]]:
    found = re.findall(r'class="([^"]+)" x="(.+?)" y="(.+?)" width="(.+?)" height="(.+?)"/', svg)
    return [(kind, *map(float, numbers)) for kind, *numbers in found]


def test_the_parts_of_a_bar_are_as_long_as_there_are_many():
    assert rects(bar([("a", 3), ("none", 0), ("b", 1)])) == [
        ("a", 0, 0, 75, 4),
        ("b", 75, 0, 25, 4),
    ]


def test_one_in_a_million_is_seen_and_the_bar_stays_as_long():
    first, second = rects(bar([("a", 999_999), ("b", 1)]))
    assert second == ("b", 100 - LEAST, 0, LEAST, 4)
    assert first == ("a", 0, 0, 100 - LEAST, 4)


def test_a_bar_of_nothing_is_empty():
    assert rects(bar([("a", 0)])) == []
    assert rects(bar([])) == []


def test_columns_stand_on_each_other_and_the_highest_fills_the_chart():
    svg = columns({"a": [2, 0, 1], "b": [2, 0, 0]})
    assert 'viewBox="0 0 28 100"' in svg
    assert rects(svg) == [
        ("a", 0, 50, 8, 50),
        ("b", 0, 0, 8, 50),
        ("a", 20, 75, 8, 25),
    ]


def test_a_little_on_top_of_much_is_seen_and_nothing_is_cut_off():
    svg = columns({"a": [1000], "b": [1]})
    (_, _, top, _, height) = rects(svg)[1]
    assert height == 2 * LEAST
    assert top == 0
    assert 'viewBox="0 0 8 105.9"' in svg


def test_columns_of_nothing_are_empty():
    assert rects(columns({"a": [0, 0]})) == []


def test_what_a_chart_is_called_is_escaped():
    assert "<b>" not in bar([("<b>", 1)], name='"<b>')
