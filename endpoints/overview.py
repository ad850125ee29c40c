"""How a domain is, told from the facts of its services and its log: what is wrong comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from typing_extensions import TypeAliasType, TypedDict

from browsable_api.errors import told
from email_services.exceptions import NOT_SENT, SENT, UNKNOWN
from email_services.store import IN_PROGRESS, Count, Counted
from email_services.store.counts import DAY, HOUR, MINUTE
from endpoints.messages import Time

CERTAIN_FAILURES: Final = 2
"""In a row: one alone may have been an accident of its message's."""

State = Literal["cannot_send", "failing", "on_backup", "impaired", "rehearsing", "working"]
# A schema of its own, as others have.
DomainState = TypeAliasType("DomainState", State)


class LastHour(TypedDict):
    """What became of the messages of the last hour."""

    sent_by: Annotated[dict[str, int], told("How many each service sent.")]
    failed_over: Annotated[int, told("Of these, how many not by the first service of their turn.")]
    possible_duplicates: Annotated[int, told("Of these, how many may have been sent twice.")]
    not_sent: Annotated[int, told("How many were surely not sent.")]
    unknown: Annotated[int, told("How many may have been sent.")]
    in_progress: Annotated[int, told("How many are on their way.")]


class ByHour(TypedDict):
    """The same for each of the 24 hours, the oldest first."""

    sent: Annotated[list[int], told("How many were sent, these in all.")]
    failed_over: Annotated[list[int], told("Of these, how many failed over.")]
    not_sent: Annotated[list[int], told("How many were surely not sent.")]
    unknown: Annotated[list[int], told("How many may have been sent.")]


class LastDay(LastHour):
    """What became of the messages of the last day, and when."""

    by_hour: Annotated[ByHour, told("How they are spread over the day.")]


class Trouble(TypedDict):
    """What is wrong, for people."""

    what: Annotated[str, told("In a sentence.")]
    since: Annotated[Time | None, told("Since when, where that is known.")]
    why: Annotated[str, told("The faults of its services, or what to do.")]
    cost: Annotated[str, told('What it cost in the last hour, or "".')]
    is_grave: Annotated[bool, told("Whether messages are lost, or may be.")]


def traffic_of_hour(counted: Counted, now: float, order: Iterable[str]) -> LastHour:
    """Of the last hour. order: of the services, those that are no more come after them."""
    since = (now - HOUR) / MINUTE
    return _traffic([count for count in counted.counts if count.minute + 1 > since], order)


def traffic_of_day(counted: Counted, now: float, order: Iterable[str]) -> LastDay | None:
    """Of the last day; None where there is more of it than could be counted."""
    if counted.since > now - DAY:
        return None
    by_hour: ByHour = {
        "sent": [0] * 24,
        "failed_over": [0] * 24,
        "not_sent": [0] * 24,
        "unknown": [0] * 24,
    }
    for count in counted.counts:
        hour = max(0, 23 - int(now / MINUTE - count.minute) * MINUTE // HOUR)
        if count.outcome == SENT:
            by_hour["sent"][hour] += count.number
            by_hour["failed_over"][hour] += count.number * count.failed_over
        elif count.outcome == NOT_SENT:
            by_hour["not_sent"][hour] += count.number
        elif count.outcome == UNKNOWN:
            by_hour["unknown"][hour] += count.number
    return {**_traffic(counted.counts, order), "by_hour": by_hour}


def _traffic(counts: Sequence[Count], order: Iterable[str]) -> LastHour:
    became: Counter[str] = Counter()
    sent_by: Counter[str] = Counter()
    failed_over = twice = 0
    for count in counts:
        if count.outcome == SENT:
            sent_by[str(count.service)] += count.number
            failed_over += count.number * count.failed_over
        else:
            became[count.outcome] += count.number
        twice += count.number * count.possible_duplicate
    names = [*order]
    names += sorted(set(sent_by) - set(names))
    return {
        "sent_by": {name: sent_by[name] for name in names if sent_by[name]},
        "failed_over": failed_over,
        "possible_duplicates": twice,
        "not_sent": became[NOT_SENT],
        "unknown": became[UNKNOWN],
        "in_progress": became[IN_PROGRESS],
    }


Services = Mapping[str, Mapping[str, Any]]
"""As a listing shows them, in their order."""


def state_of(services: Services) -> tuple[State, str | None]:
    """How the domain is that has these services, and since when, where that is known."""
    top = max(service["priority_value"] for service in services.values())
    broken = [service for service in services.values() if not _works(service)]
    first = [service for service in services.values() if service["priority_value"] == top]
    since = [service["failing_since"] for service in broken]
    if len(broken) == len(services):
        is_certain = all(_surely_broken(service) for service in broken)
        return "cannot_send" if is_certain else "failing", _last(since)
    if not any(_works(service) for service in first):
        return "on_backup", _last([service["failing_since"] for service in first])
    if broken:
        return "impaired", min(since) if all(since) else None
    if any(service["simulated_failure_enabled"] for service in services.values()):
        return "rehearsing", None
    return "working", None


def _last(since: Sequence[str | None]) -> str | None:
    """When the last of them began to fail; None where that of any is not known."""
    return max(map(str, since)) if all(since) else None


def _works(service: Mapping[str, Any]) -> bool:
    return service["health"] == "working" and not _is_made_to_fail(service)


def _is_made_to_fail(service: Mapping[str, Any]) -> bool:
    """Whether a drill lets no message through."""
    is_on, kind = service["simulated_failure_enabled"], service.get("simulated_failure_kind")
    return is_on and kind != "slow" and service.get("simulated_failure_share", 1) == 1


def _surely_broken(service: Mapping[str, Any]) -> bool:
    is_sure = service["health"] != "failing" or service["failures_in_a_row"] >= CERTAIN_FAILURES
    return is_sure or _is_made_to_fail(service)


_WHAT: Final[Mapping[State, str]] = {
    "cannot_send": "{domain} cannot send",
    "failing": "{domain} may not be able to send: the last attempt at each of its services failed",
    "on_backup": "{domain} works only thanks to {working}",
    "impaired": "{domain} works without {broken}",
    "rehearsing": "{domain} rehearses an outage of {rehearsing}",
}


def troubles_of(
    domain: str, services: Services, state: State, since: str | None, hour: LastHour
) -> list[Trouble]:
    """What is wrong with the domain, the gravest first."""
    cost = _cost(hour)
    working = [name for name, service in services.items() if _works(service)]
    broken = [name for name in services if name not in working]
    drilled = [name for name, found in services.items() if found["simulated_failure_enabled"]]
    if state in _WHAT:
        named = {"working": working, "broken": broken, "rehearsing": drilled}
        words = {name: _joined(names) for name, names in named.items()}
        why = "; ".join(f"{name}: {_why(services[name])}" for name in broken or drilled)
        what = _WHAT[state].format(domain=domain, **words)
        is_grave = state == "cannot_send"
        return [{"what": what, "since": since, "why": why, "cost": cost, "is_grave": is_grave}]
    if hour["unknown"]:
        number = hour["unknown"]
        plural = f"{number} messages of {domain} are" if number > 1 else f"1 message of {domain} is"
        return [
            {
                "what": f"{plural} unknown",
                "since": None,
                "why": "Sent or not, nobody said so in the last hour: look before sending again.",
                "cost": "",
                "is_grave": False,
            }
        ]
    return []


def _why(service: Mapping[str, Any]) -> str:
    if _is_made_to_fail(service) or service["health"] == "working":
        kind = service.get("simulated_failure_kind", "unavailable").replace("_", " ")
        return f"simulated failure ({kind})"
    often = service["failures_in_a_row"]
    in_a_row = f", {often} in a row" if often > 1 and service["health"] == "failing" else ""
    return f"{service['health_reason']}{in_a_row}"


def _cost(hour: LastHour) -> str:
    """What it cost in the last hour, in a sentence."""
    numbers = {
        "not sent": hour["not_sent"],
        "unknown": hour["unknown"],
        "sent by another service": hour["failed_over"],
        "perhaps sent twice": hour["possible_duplicates"],
    }
    parts = [f"{number:,} {words}" for words, number in numbers.items() if number]
    return f"In the last hour: {', '.join(parts)}." if parts else ""


def _joined(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1] if names else ""]))
