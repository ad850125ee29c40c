"""Small charts as SVG; what they show stands beside them as text, for who does not see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from markupsafe import Markup

LEAST: Final = 3.0
"""Per cent of a chart that is the least to be seen: one in a thousand is no line of nothing."""

_COLUMN: Final = 10
_GAP: Final = 2

Parts = Sequence[tuple[str, int]]
"""A class of style.css that says what it is, and how many there are of it."""


def bar(parts: Parts, name: str = "") -> Markup:
    """One bar, of which each part is as long as there are many of it. name: a class for it."""
    lengths = _lengths([number for _, number in parts])
    rects, x = [], 0.0
    for (kind, number), length in zip(parts, lengths, strict=True):
        if number:
            rects.append(_rect(kind, x, 0, length, 4))
        x += length
    return _svg(f"stack {name}".strip(), 100, 4, rects)


def columns(series: Mapping[str, Sequence[int]]) -> Markup:
    """A column for each number of the series, which stand on each other, the first below."""
    stacks = list(zip(*series.values(), strict=True))
    most = max((sum(stack) for stack in stacks), default=0) or 1
    heights = [[max(LEAST * 2, 100 * n / most) if n else 0.0 for n in stack] for stack in stacks]
    tallest = max([100.0, *map(sum, heights)])
    rects = []
    for place, stack in enumerate(heights):
        x, y = place * _COLUMN, tallest
        for kind, height in zip(series, stack, strict=True):
            y -= height
            if height:
                rects.append(_rect(kind, x, y, _COLUMN - _GAP, height))
    return _svg("columns", len(stacks) * _COLUMN - _GAP, tallest, rects)


def _lengths(numbers: Sequence[int]) -> list[float]:
    """In per cent of all: the small ones a little longer, and the others so much shorter."""
    total = sum(numbers) or 1
    small = [0 < number < total * LEAST / 100 for number in numbers]
    left = 100 - LEAST * sum(small)
    large = sum(n for n, is_small in zip(numbers, small, strict=True) if not is_small) or 1
    pairs = zip(numbers, small, strict=True)
    return [LEAST if is_small else left * number / large for number, is_small in pairs]


def _rect(kind: str, x: float, y: float, width: float, height: float) -> Markup:
    return Markup('<rect class="{}" x="{:.4g}" y="{:.4g}" width="{:.4g}" height="{:.4g}"/>').format(
        kind, x, y, width, height
    )


def _svg(name: str, width: float, height: float, rects: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {:.4g} {:.4g}" preserveAspectRatio="none" '
        'aria-hidden="true" focusable="false">{}</svg>'
    ).format(name, width, height, Markup("").join(rects))
