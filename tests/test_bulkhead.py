"""How many calls to one service are under way at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from test_pool import Clock

from email_services.bulkhead import PATIENCE_SECONDS, STUCK_SECONDS, Bulkhead


def test_who_finds_every_place_taken_and_nothing_moving_is_turned_away_at_once():
    clock = Clock()
    bulkhead = Bulkhead(2, clock)
    assert bulkhead.enter()
    assert bulkhead.enter()
    clock.now += STUCK_SECONDS
    assert not bulkhead.enter()
    bulkhead.leave()
    assert bulkhead.enter()


def test_no_patience_waits_for_nothing():
    bulkhead = Bulkhead(1, Clock())
    assert bulkhead.enter(patience=0)
    assert not bulkhead.enter(patience=0)


def test_where_calls_come_back_the_next_waits_for_its_turn():
    bulkhead = Bulkhead(1)
    assert bulkhead.enter()
    is_waiting = threading.Event()

    def enter() -> bool:
        is_waiting.set()
        return bulkhead.enter()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(enter)
        assert is_waiting.wait(20)
        bulkhead.leave()
        assert waiting.result(20)


def test_a_turn_is_waited_for_no_longer_than_the_deadlines_leave():
    assert STUCK_SECONDS < PATIENCE_SECONDS < 10
