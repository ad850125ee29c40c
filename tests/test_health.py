from __future__ import annotations

from dataclasses import replace

import pytest

from email_services.abstract import MAX_TIMEOUT_SECONDS
from email_services.breakers import GRACE_SECONDS
from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
)
from email_services.health import (
    FAILURES_TO_REST,
    FIRST_ACCOUNT_REST_SECONDS,
    FIRST_REST_SECONDS,
    JITTER,
    LONGEST_ACCOUNT_REST_SECONDS,
    LONGEST_PROBE_SECONDS,
    LONGEST_REST_SECONDS,
    SKEW_SECONDS,
    Health,
    after_fault,
    after_success,
    believable,
    to_be_tried,
)

NOW = 1_000_000.0
DOWN, SILENT = ServiceUnavailable("down"), OutcomeUnknown("silence")
QUOTA, LIMIT, BAD = AccountRefused("quota"), RateLimited("slow down"), MessageRejected("bad")


def after(*faults, health=None, now=NOW, seen=None, was_probe=False, random=0.0) -> Health:
    health = health or Health()
    for fault in faults:
        health = after_fault(
            health, fault, now, lambda: random, seen=seen or health, was_probe=was_probe
        )
    return health


def accepted(health, now, *, seen=None, was_probe=False) -> Health:
    return after_success(health, now, seen=seen or health, was_probe=was_probe)


RESTING = after(*[DOWN] * FAILURES_TO_REST)


@pytest.mark.parametrize("faults", [[DOWN] * 5, [SILENT] * 5, [DOWN, SILENT, DOWN, SILENT, DOWN]])
def test_it_rests_after_that_many_failures_in_a_row(faults):
    nearly = after(*faults[:-1])
    assert (nearly.state(NOW), nearly.rest_until) == ("failing", None)
    health = after(*faults)
    assert health.state(NOW) == "resting"
    assert health.rest_until == NOW + FIRST_REST_SECONDS
    assert (health.since, health.reason) == (NOW, faults[-1].cause)


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (QUOTA, FIRST_ACCOUNT_REST_SECONDS),
        (AccountRefused("quota", retry_after=7200), 7200),
        (AccountRefused("quota", retry_after=1), FIRST_ACCOUNT_REST_SECONDS),
        (LIMIT, FIRST_REST_SECONDS),
        (RateLimited("slow down", retry_after=120), 120),
        (RateLimited("slow down", retry_after=1e9), 24 * 3600),
    ],
)
def test_an_account_or_a_limit_makes_it_rest_at_once_and_as_long_as_asked(fault, seconds):
    health = after(fault)
    assert health.state(NOW) == "resting"
    assert health.rest_until == NOW + seconds


def test_a_bad_message_blames_nobody():
    assert after(*[BAD] * 100) == Health()
    nearly = after(*[DOWN] * 4)
    assert after(BAD, health=nearly) == nearly


def test_a_success_between_starts_the_count_again():
    health = accepted(after(*[DOWN] * 4), NOW)
    assert health.state(NOW) == "working"
    again = after(*[DOWN] * 4, health=health, now=NOW + 9)
    assert (again.state(NOW), again.failing_since) == ("failing", NOW + 9)


def test_it_is_failing_from_the_first_fault_until_something_is_accepted():
    health = after(DOWN)
    assert (health.state(NOW), health.reason, health.failing_since) == ("failing", "down", NOW)
    rests = after(SILENT, *[DOWN] * 3, health=health, now=NOW + 60)
    rests = after(QUOTA, health=rests, now=rests.rest_until, was_probe=True)
    assert (rests.failing_since, rests.reason) == (NOW, "quota")
    assert accepted(rests, NOW + 99, was_probe=True) == Health(since=NOW + 99)
    assert accepted(health, NOW + 99) == Health()


@pytest.mark.parametrize("health", [Health(), after(DOWN), accepted(RESTING, NOW)])
def test_to_ask_for_a_try_changes_nothing_of_what_does_not_rest(health):
    assert to_be_tried(health, NOW + 1) == health


def test_to_ask_for_a_try_ends_the_rest_and_says_nothing_of_whether_it_works():
    asked = to_be_tried(replace(after(*[QUOTA] * 3), rests=3, probe_until=NOW + 9), NOW + 1)
    assert asked.state(NOW + 1) == "resting"
    assert asked.is_due(NOW + 1)
    failed = after(DOWN, health=asked, now=NOW + 2, was_probe=True)
    assert failed.rest_until == NOW + 2 + FIRST_REST_SECONDS, "its rests begin anew"
    due = to_be_tried(RESTING, RESTING.rest_until + 5)
    assert due.rest_until == RESTING.rest_until, "it has been due since then"


def test_a_rest_ends_in_one_probe_at_a_time():
    due = RESTING.rest_until
    assert not RESTING.is_due(due - 0.001)
    assert RESTING.is_due(due)
    probed = Health(**{**vars(RESTING), "probe_until": due + 15})
    assert probed.state(due + 14) == "probing"
    assert not probed.is_due(due + 14)
    assert probed.is_due(due + 15), "a probe whose worker died is lost after its time"


def test_a_successful_probe_makes_it_work_as_if_nothing_had_been():
    health = accepted(RESTING, NOW + 20, was_probe=True)
    assert health == Health(since=NOW + 20)
    assert health.is_clean()


def test_failed_probes_lengthen_the_rest_up_to_a_bound():
    health, rests = RESTING, []
    for _ in range(30):
        now = health.rest_until
        health = after(DOWN, health=health, now=now, was_probe=True)
        rests.append(health.rest_until - now)
    assert rests[:4] == [30, 60, 120, 240]
    assert set(rests[4:]) == {LONGEST_REST_SECONDS}
    assert health.since == NOW, "it rests since the first of them"


def test_an_accounts_rest_has_a_bound_of_its_own():
    health = after(QUOTA)
    for _ in range(10):
        health = after(QUOTA, health=health, now=NOW, was_probe=True)
    assert health.rest_until == NOW + LONGEST_ACCOUNT_REST_SECONDS


def test_a_probe_that_was_a_bad_message_lets_the_next_one_find_out():
    probed = Health(**{**vars(RESTING), "probe_until": NOW + 100})
    health = after(BAD, health=probed, now=NOW + 50, was_probe=True)
    assert health == RESTING


BEFORE, WORKS = Health(), accepted(RESTING, NOW + 20)
AGAIN = after(*[DOWN] * 5, health=WORKS, now=NOW + 30)
LATE_FAULTS = {
    "one that began before the rest does not lengthen it": (BEFORE, RESTING, DOWN),
    "nor does one of the account": (BEFORE, RESTING, QUOTA),
    "nor one that asks for less": (BEFORE, AGAIN, RateLimited("slow", 1)),
    "one that began before the recovery does not count after it": (BEFORE, WORKS, DOWN),
    "nor does one that began in the rest": (RESTING, WORKS, SILENT),
    "nor do the account and a limit": (BEFORE, WORKS, QUOTA),
    "nor one that asks for more": (BEFORE, WORKS, RateLimited("slow", 9999)),
    "one that began before the last rest does not lengthen this one": (BEFORE, AGAIN, DOWN),
}


@pytest.mark.parametrize("case", LATE_FAULTS)
def test_a_late_fault_changes_nothing(case):
    seen, health, fault = LATE_FAULTS[case]
    assert after(*[fault] * 16, health=health, now=NOW + 31, seen=seen) == health


def test_a_fault_counts_as_long_as_nothing_has_changed_since_its_attempt_began():
    assert after(*[DOWN] * 4, seen=BEFORE).failures == 4
    assert after(*[DOWN] * 5, health=WORKS, seen=WORKS).state(NOW) == "resting"
    counted = accepted(after(*[DOWN] * 4), NOW + 1)
    assert counted.since is None, "it worked all the time"
    assert after(DOWN, health=counted, seen=BEFORE).failures == 1


@pytest.mark.parametrize("seen", [BEFORE, RESTING, WORKS])
def test_what_a_provider_asks_for_while_the_service_rests_lengthens_the_rest(seen):
    health = after(RateLimited("slow", 60), health=AGAIN, now=NOW + 31, seen=seen)
    assert health.rest_until == NOW + 31 + 60
    assert (health.reason, health.since) == ("slow", AGAIN.since)
    assert (health.rests, health.failures) == (AGAIN.rests, AGAIN.failures), "it is the same rest"
    longest = after(RateLimited("slow", 1e9), health=AGAIN, now=NOW + 31, seen=seen)
    assert longest.rest_until == NOW + 31 + 24 * 3600


def test_a_probe_that_fails_does_not_shorten_the_rest_that_was_asked_for_meanwhile():
    asked = after(RateLimited("slow", 3600), health=RESTING, now=NOW + 16)
    assert after(DOWN, health=asked, now=NOW + 17, was_probe=True).rest_until == asked.rest_until


@pytest.mark.parametrize(
    ("seen", "health"), [(BEFORE, RESTING), (BEFORE, AGAIN), (RESTING, AGAIN), (WORKS, AGAIN)]
)
def test_a_late_success_does_not_end_a_rest_that_began_after_it(seen, health):
    assert accepted(health, NOW + 31, seen=seen) == health


def test_a_success_of_an_attempt_during_the_rest_ends_it():
    assert accepted(AGAIN, NOW + 31, seen=AGAIN) == Health(since=NOW + 31)


@pytest.mark.parametrize("health", [RESTING, AGAIN, WORKS])
def test_a_probes_result_always_counts(health):
    assert accepted(health, NOW + 31, seen=BEFORE, was_probe=True).state(NOW + 31) == "working"
    failed = after(DOWN, health=health, now=NOW + 31, seen=BEFORE, was_probe=True)
    assert (failed.rests, failed.state(NOW + 31)) == (health.rests + 1, "resting")


def test_rests_differ_so_that_nodes_do_not_probe_in_step():
    longest = after(*[DOWN] * 5, random=1.0)
    assert longest.rest_until == NOW + FIRST_REST_SECONDS * (1 + JITTER)


def test_a_simulated_fault_is_remembered_as_one():
    fault = ServiceUnavailable("Simulated failure.")
    fault.simulated = True
    assert after(fault).simulated
    assert after(*[fault] * 5).simulated
    assert not after(*[DOWN] * 5, health=after(fault)).simulated


LONGEST = after(RateLimited("slow", 1e9), random=1.0)


@pytest.mark.parametrize(
    ("health", "past"), [(LONGEST, 0), (RESTING, 0), (Health(), 1e9), (RESTING, -1e9)]
)
def test_every_rest_that_can_be_is_believed(health, past):
    assert believable(health, NOW - past) == health
    probed = replace(health, probe_until=NOW + MAX_TIMEOUT_SECONDS + GRACE_SECONDS)
    assert believable(probed, NOW) == probed


def test_what_cannot_be_is_not_believed():
    now = NOW - SKEW_SECONDS - 1
    assert believable(LONGEST, now) == replace(LONGEST, rest_until=now)
    probed = replace(RESTING, probe_until=NOW + LONGEST_PROBE_SECONDS + 1)
    assert believable(probed, NOW) == RESTING
    of_before = replace(LONGEST, rest_seconds=None)
    assert believable(of_before, now) == replace(of_before, rest_until=now)
