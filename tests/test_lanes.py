"""Which request gets a thread next. Time is the test's."""

from __future__ import annotations

import pytest

from email_services.bulkhead import STUCK_SECONDS
from server.lanes import (
    LARGE_BYTES,
    LARGE_STUCK_SECONDS,
    MAX_WAIT_SECONDS,
    Lanes,
    Ticket,
)

MEGABYTE = 1024 * 1024


@pytest.fixture
def make_lanes():
    def make(threads=64, has_neighbours=True, max_bytes=100 * MEGABYTE) -> Lanes[str]:
        return Lanes(threads, max_bytes, has_neighbours=has_neighbours)

    return make


def send(lane, size=1000, since=0.0) -> Ticket:
    return Ticket(lane, True, size, since)


def page(lane, since=0.0) -> Ticket:
    return Ticket(lane, False, 0, since)


def fill(lanes, ticket, number=1000) -> int:
    """Add many of the same; returns how many begin."""
    for _ in range(number):
        lanes.add(ticket, ticket.lane)
    return len(list(lanes.begin(0.0)))


@pytest.mark.parametrize(
    ("threads", "has_neighbours", "expected"),
    [(64, False, 56), (64, True, 32), (16, False, 14), (4, False, 4), (4, True, 2), (1, True, 1)],
)
def test_one_domain_has_nearly_all_threads_or_half_where_there_are_others(
    threads, has_neighbours, expected, make_lanes
):
    assert fill(make_lanes(threads, has_neighbours), send("a.example")) == expected


def test_however_many_domains_hang_another_finds_a_thread(make_lanes):
    lanes = make_lanes()
    taken = [fill(lanes, send(f"{n}.example")) for n in range(5)]
    assert taken == [32, 16, 8, 0, 0], "and then the reserve"
    assert fill(lanes, page("healthz")) == 4
    assert lanes.free == 4


def test_a_domains_pages_do_not_wait_for_its_messages(make_lanes):
    lanes = make_lanes()
    fill(lanes, send("a.example"))
    lanes.add(page("a.example"), "page")
    assert [item for _, item in lanes.begin(0.0)] == ["page"]


def test_a_thread_that_is_free_again_goes_to_the_lanes_in_turns(make_lanes):
    lanes = make_lanes(threads=3, has_neighbours=False)
    for lane in ("a.example", "a.example", "a.example", "b.example", "c.example"):
        lanes.add(send(lane), lane)
    running = list(lanes.begin(0.0))
    assert [item for _, item in running] == ["a.example", "b.example", "c.example"]
    for ticket, _ in running:
        lanes.end(ticket, 1.0)
    assert [item for _, item in lanes.begin(1.0)] == ["a.example", "a.example"]
    assert not lanes.are_waiting


def test_a_lane_that_has_ended_all_may_take_as_many_again(make_lanes):
    lanes = make_lanes()
    lanes.add(send("a.example"), "first")
    ((ticket, _),) = lanes.begin(0.0)
    lanes.end(ticket, 1.0)
    assert lanes.free == 64
    assert fill(lanes, send("a.example")) == 32


def test_large_bodies_are_only_so_many_bytes_at_once_and_small_ones_pass_them(make_lanes):
    lanes = make_lanes()
    assert fill(lanes, send("a.example", size=30 * MEGABYTE), 5) == 3
    assert fill(lanes, send("a.example", size=LARGE_BYTES), 5) == 5


def test_a_body_larger_than_all_together_may_be_goes_alone(make_lanes):
    lanes = make_lanes(max_bytes=MEGABYTE)
    assert fill(lanes, send("a.example", size=2 * MEGABYTE), 2) == 1


@pytest.mark.parametrize(
    ("size", "patience"), [(1000, STUCK_SECONDS), (MEGABYTE, LARGE_STUCK_SECONDS)]
)
def test_what_waits_in_a_full_lane_where_nothing_ends_is_told_so(size, patience, make_lanes):
    lanes = make_lanes(threads=1)
    lanes.add(send("a.example", size), "runs")
    ((ticket, _),) = lanes.begin(0.0)
    lanes.add(send("a.example", size), "waits")
    assert list(lanes.give_up(patience)) == []
    assert list(lanes.give_up(patience + 0.1)) == ["waits"]
    lanes.add(send("a.example", size, since=patience + 0.2), "comes later")
    assert list(lanes.give_up(patience + 0.2)) == ["comes later"], "and at once"
    assert not lanes.are_waiting
    lanes.end(ticket, 99.0)


def test_what_waits_where_something_ends_gets_its_turn_but_does_not_wait_for_ever(make_lanes):
    lanes = make_lanes(threads=1)
    lanes.add(send("a.example"), "first")
    lanes.add(send("a.example"), "waits")
    lanes.add(send("a.example"), "waits too")
    ((ticket, _),) = lanes.begin(0.0)
    now = 0.0
    while now < MAX_WAIT_SECONDS - 1:
        now += STUCK_SECONDS
        lanes.end(ticket, now)
        lanes.add(send("a.example"), "another")
        ((ticket, _),) = lanes.begin(now)
        assert list(lanes.give_up(now)) == []
    lanes.end(ticket, now)
    assert "another" in list(lanes.give_up(MAX_WAIT_SECONDS + 0.1))
