from __future__ import annotations

import random
from collections import Counter

import pytest
from test_batch import Scripted

from email_services.abstract import ServiceSettings
from email_services.breakers import shuffled

TIMES = 20_000


def service(name: str, weight: float, priority: float = 0) -> Scripted:
    made = Scripted(name)
    made.settings = ServiceSettings(priority_value=priority, weight=weight)
    return made


def share(weights, place=0, without=None):
    """How often each is at that place, of those times when `without` is the first."""
    draw = random.Random(7)  # the same each time
    services = [service(name, weight) for name, weight in weights.items()]
    orders = [[s.name for s in shuffled(services, draw.expovariate)] for _ in range(TIMES)]
    if without:
        orders = [order for order in orders if order[0] == without]
    counts = Counter(order[place] for order in orders)
    return {name: counts[name] / len(orders) for name in weights}


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1, "b": 1},
        {"a": 3, "b": 1},
        {"a": 1, "b": 2, "c": 5},
        {"a": 0.001, "b": 1000},
    ],
)
def test_of_equals_each_is_first_as_often_as_its_weight_is_part_of_all(weights):
    expected = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    assert share(weights) == pytest.approx(expected, abs=0.02)


def test_the_weights_tell_among_those_who_are_left_too():
    found = share({"a": 6, "b": 3, "c": 1}, place=1, without="a")
    assert found == pytest.approx({"a": 0, "b": 0.75, "c": 0.25}, abs=0.02)


def test_no_weight_outdoes_a_priority():
    services = [service("light", 0.001, priority=2), service("heavy", 1000, priority=1)]
    for _ in range(1000):
        assert [s.name for s in shuffled(services, random.expovariate)] == ["light", "heavy"]
