"""What a listing says is wrong, from what is known of each service and of the log."""

from __future__ import annotations

import pytest

from email_services.store import Count, Counted
from email_services.store.counts import DAY, HOUR
from endpoints.overview import (
    Known,
    gravity,
    state_of,
    traffic_of_day,
    traffic_of_hour,
    troubles_of,
)

NOW = 1_800_000_030.0
EARLIER, LATER = "2026-11-29T14:20:00.000+00:00", "2026-11-29T14:31:00.000+00:00"


def service(health: str = "working", priority: float = 1, **facts) -> dict:
    known = {"since": None, "failures": 0, "reason": "", **facts}
    return {
        "health": health,
        "priority_value": priority,
        "failing_since": known["since"],
        "failures_in_a_row": known["failures"],
        "health_reason": known["reason"],
        "last_errors": [{"code": known["code"]}] if "code" in known else [],
        "simulated_failure_enabled": "drill" in facts,
        **facts.get("drill", {}),
    }


def failing(failures: int = 4, priority: float = 1, since: str = LATER) -> dict:
    facts = {"since": since, "failures": failures, "reason": "connection was refused"}
    return service("failing", priority, **facts)


def resting(priority: float = 2, since: str = EARLIER, health: str = "resting") -> dict:
    return service(health, priority, since=since, failures=1, reason="key refused (HTTP 401)")


DRILLED = service(priority=2, drill={})
IN_PART = service(priority=2, drill={"simulated_failure_kind": "slow"})
SOME = service(priority=2, drill={"simulated_failure_share": 0.1})
REFUSED, CUT = "a: key refused (HTTP 401)", "b: connection was refused, 4 in a row"

STATES = {
    "all work": ({"a": service()}, "working", None, "", ""),
    "neither of two works": (
        {"a": resting(), "b": failing()},
        "cannot_send",
        LATER,
        "x.example cannot send",
        f"{REFUSED}; {CUT}",
    ),
    "the only one is probed": (
        {"a": resting(health="probing")},
        "cannot_send",
        EARLIER,
        "x.example cannot send",
        REFUSED,
    ),
    "one failure is no proof": (
        {"a": resting(), "b": failing(1)},
        "failing",
        LATER,
        "x.example may not be able to send: the last attempt at each of its services failed",
        f"{REFUSED}; b: connection was refused",
    ),
    "the first does not work": (
        {"a": resting(), "b": service(), "c": service()},
        "on_backup",
        EARLIER,
        "x.example works only thanks to b and c",
        REFUSED,
    ),
    "neither of the first two works": (
        {"a": resting(), "b": failing(priority=2), "c": service()},
        "on_backup",
        LATER,
        "x.example works only thanks to c",
        f"{REFUSED}; {CUT}",
    ),
    "one of the first two does": (
        {"a": resting(), "b": service(priority=2)},
        "impaired",
        EARLIER,
        "x.example works without a",
        REFUSED,
    ),
    "the backup does not work": (
        {"x": service(priority=3), "a": resting(), "b": failing()},
        "impaired",
        EARLIER,
        "x.example works without a and b",
        f"{REFUSED}; {CUT}",
    ),
    "a drill lets nothing through": (
        {"a": DRILLED, "b": service()},
        "on_backup",
        None,
        "x.example works only thanks to b",
        "a: simulated failure (unavailable)",
    ),
    "a drill delays it": (
        {"a": IN_PART},
        "rehearsing",
        None,
        "x.example rehearses an outage of a",
        "a: simulated failure (slow)",
    ),
    "a drill is for some": (
        {"a": SOME, "b": service()},
        "rehearsing",
        None,
        "x.example rehearses an outage of a",
        "a: simulated failure (unavailable)",
    ),
}


def hour(**numbers: int) -> dict:
    names = ("failed_over", "possible_duplicates", "not_sent", "unknown", "in_progress")
    return {"sent_by": {}, **dict.fromkeys(names, 0), **numbers}


URL, UNKNOWN_URL = "/x.example", "/x.example/messages?outcome=unknown"


def troubles(services: dict, counts: dict | None = None, waiting: int = 0) -> list[dict]:
    known = Known("x.example", services, counts or hour(), waiting, URL, UNKNOWN_URL)
    return troubles_of(known, *state_of(services))


@pytest.mark.parametrize("case", STATES)
def test_what_is_wrong_is_told_with_since_when_and_why(case):
    services, state, since, what, why = STATES[case]
    assert state_of(services) == (state, since)
    told = troubles(services)
    assert [(t["what"], t["why"], t["since"]) for t in told] == (
        [(what, why, since)] if what else []
    )
    assert [t["is_grave"] for t in told] == [state == "cannot_send"] * len(told)
    assert [t["url"] for t in told] == [URL] * len(told)


def test_what_it_costs_is_told_with_it():
    counts = hour(not_sent=1, failed_over=1234, possible_duplicates=3)
    (trouble,) = troubles({"a": resting()}, counts, waiting=14)
    assert trouble["cost"] == (
        "No mail goes out. In the last hour: 1 not sent, 1,234 sent by another service, "
        "3 perhaps sent twice. 14 messages wait in the queue."
    )


@pytest.mark.parametrize(
    ("case", "cost"),
    [
        ("one failure is no proof", "Mail may not go out."),
        ("the first does not work", "Mail goes out."),
        ("one of the first two does", "Mail goes out."),
        ("a drill delays it", "Mail goes out."),
    ],
)
def test_whether_mail_goes_out_is_told(case, cost):
    (trouble,) = troubles(STATES[case][0])
    assert trouble["cost"] == cost


def test_what_to_do_depends_on_the_fault():
    faults = ("key_refused", "account_refused", "rate_limited", "unavailable", "unknown_outcome")
    services = {code[0:3]: service("resting", code=code) for code in faults}
    services["drilled"] = DRILLED
    (trouble,) = troubles(services)
    assert trouble["todo"] == (
        "key: renew its key in the configuration, and reload that; "
        "acc: see to its account at the provider; rat: wait until its provider takes more; "
        "una and unk: wait for the next try, or ask the provider; "
        "drilled: end the rehearsal once you have seen enough"
    )


@pytest.mark.parametrize(
    ("number", "what"),
    [(1, "1 message of x.example is unknown"), (3, "3 messages of x.example are unknown")],
)
@pytest.mark.parametrize("services", [{"a": service()}, {"a": resting()}])
def test_unknown_messages_are_a_trouble_of_their_own_that_leads_to_them(number, what, services):
    *_, trouble = troubles(services, hour(unknown=number))
    assert (trouble["what"], trouble["url"]) == (what, UNKNOWN_URL)


def test_the_worst_comes_first():
    cases = {case: facts[0] for case, facts in STATES.items()}
    domains = [
        {"name": name, "state": state_of(services)[0], "troubles": troubles(services, counts)}
        for name, services, counts in (
            ("works", {"a": service()}, hour()),
            ("rehearses", cases["a drill delays it"], hour()),
            ("unknown", {"a": service()}, hour(unknown=1)),
            ("without one", cases["one of the first two does"], hour()),
            ("on backup", cases["the first does not work"], hour()),
            ("in doubt", cases["one failure is no proof"], hour()),
            ("down", cases["neither of two works"], hour()),
        )
    ]
    found = [domain["name"] for domain in sorted(domains, key=gravity)]
    assert found == [
        "down", "in doubt", "on backup", "without one", "unknown", "rehearses", "works",
    ]  # fmt: skip


def counted(*ago: tuple[float, str, int], **kind) -> Counted:
    """Some seconds ago, an outcome, and how many."""
    kind = {"service": "b", "failed_over": False, "possible_duplicate": False, **kind}
    counts = [
        Count(int(NOW - seconds) // 60, outcome=outcome, number=number, **kind)
        for seconds, outcome, number in ago
    ]
    return Counted(counts, NOW - DAY - 30)


def test_the_last_hour_is_to_the_minute():
    told = counted((0, "sent", 1), (HOUR - 1, "sent", 2), (HOUR + 60, "sent", 4))
    assert traffic_of_hour(told, NOW, ["a", "b"]) == {**hour(), "sent_by": {"b": 3}}


def test_services_stand_in_their_order_and_those_of_before_come_last():
    counts = [c for name in "cab" for c in counted((0, "sent", 1), service=name).counts]
    told = traffic_of_hour(Counted(counts, 0), NOW, ["b", "a"])
    assert [*told["sent_by"]] == ["b", "a", "c"]


def test_a_day_is_told_by_the_hour():
    told = counted(
        (0, "sent", 1),
        (HOUR + 60, "not sent", 2),
        (DAY - 60, "unknown", 4),
        (DAY, "unknown", 8),
        failed_over=True,
    )
    day = traffic_of_day(told, NOW, ["b"])
    assert day["failed_over"] == 1
    assert day["by_hour"] == {
        "sent": [0] * 23 + [1],
        "failed_over": [0] * 23 + [1],
        "not_sent": [0] * 22 + [2, 0],
        "unknown": [12] + [0] * 23,
    }


def test_a_day_that_could_not_be_counted_whole_is_not_told():
    assert traffic_of_day(Counted([], NOW - HOUR), NOW, ["a"]) is None
