from __future__ import annotations

import pytest

from browsable_api.times import ahead, clock, is_past, lasting, span

NOW = 1_795_960_800.0  # 2026-11-29 14:00 UTC


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.9, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (47 * 3600, "47 h"),
        (48 * 3600, "2 days"),
        (400 * 86_400, "400 days"),
    ],
)
def test_a_length_of_time_is_told_in_one_unit(seconds, words):
    assert span(seconds) == words


@pytest.mark.parametrize(
    ("moment", "told"),
    [
        ("2026-11-29T14:37:05.123+00:00", "14:37 UTC"),
        ("2026-11-29T14:37:05Z", "14:37 UTC"),
        ("2026-11-29T15:37:05+01:00", "14:37 UTC"),
        ("2026-11-03T23:59:00+00:00", "3 Nov 23:59 UTC"),
        ("2025-12-31T00:00:00+00:00", "31 Dec 2025 00:00 UTC"),
    ],
)
def test_a_time_has_its_day_where_that_is_another(moment, told):
    assert clock(moment, NOW) == told


def test_a_time_is_told_by_how_far_it_is_and_by_the_clock():
    before, after = "2026-11-29T13:54:00+00:00", "2026-11-29T14:04:00+00:00"
    counted = '<time datetime="{}" data-span="{}">{}</time>'
    assert lasting(before, NOW) == f"{counted.format(before, 'ago', '6 min')}, since 13:54 UTC"
    assert ahead(after, NOW) == f"in {counted.format(after, 'ahead', '4 min')}, 14:04 UTC"
    assert [is_past(moment, NOW) for moment in (before, after, None)] == [True, False, False]
