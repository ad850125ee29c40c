"""How a domain is, told from the facts of its services and its log: what is wrong comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    why: Annotated[str, told("The faults of its services.")]
    cost: Annotated[str, told("Whether mail goes out, and what it cost in the last hour.")]
    todo: Annotated[str, told('What to do, or "".')]
    url: Annotated[str, told("Where more of it is.")]
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


@dataclass(frozen=True)
class Known:
    """What is known of a domain.

    waiting: messages in its queue. url: its address. unknown_url: of its messages of the last hour
    that are unknown.
    """

    domain: str
    services: Services
    hour: LastHour
    waiting: int
    url: str
    unknown_url: str


def troubles_of(known: Known, state: State, since: str | None) -> list[Trouble]:
    """What is wrong with the domain that is in this state, the gravest first."""
    troubles = [_trouble_of_state(known, state, since)] if state in _WHAT else []
    return [*troubles, _unknown_messages(known)] if known.hour["unknown"] else troubles


def _trouble_of_state(known: Known, state: State, since: str | None) -> Trouble:
    services = known.services
    working = [name for name, service in services.items() if _works(service)]
    broken = [name for name in services if name not in working]
    drilled = [name for name, found in services.items() if found["simulated_failure_enabled"]]
    named = {"working": working, "broken": broken, "rehearsing": drilled}
    words = {name: _joined(names) for name, names in named.items()}
    at_fault = {name: services[name] for name in broken or drilled}
    return {
        "what": _WHAT[state].format(domain=known.domain, **words),
        "since": since,
        "why": "; ".join(f"{name}: {_why(found)}" for name, found in at_fault.items()),
        "cost": _cost(state, known.hour, known.waiting),
        "todo": _todo(at_fault),
        "url": known.url,
        "is_grave": state == "cannot_send",
    }


def _unknown_messages(known: Known) -> Trouble:
    number = known.hour["unknown"]
    messages, are = ("message", "is") if number == 1 else ("messages", "are")
    return {
        "what": f"{number:,} {messages} of {known.domain} {are} unknown",
        "since": None,
        "why": "in the last hour a service was handed it, and did not say whether it took it",
        "cost": "",
        "todo": "look for it at the service before sending it again",
        "url": known.unknown_url,
        "is_grave": False,
    }


def gravity(domain: Mapping[str, Any]) -> float:
    """By which domains are listed: the less, the worse."""
    order = [*_WHAT, "working"]
    if domain["state"] == "working" and domain["troubles"]:
        return order.index("rehearsing") - 0.5
    return order.index(domain["state"])


def _why(service: Mapping[str, Any]) -> str:
    if _is_rehearsed(service):
        kind = service.get("simulated_failure_kind", "unavailable").replace("_", " ")
        return f"simulated failure ({kind})"
    often = service["failures_in_a_row"]
    in_a_row = f", {often} in a row" if often > 1 and service["health"] == "failing" else ""
    return f"{service['health_reason']}{in_a_row}"


def _is_rehearsed(service: Mapping[str, Any]) -> bool:
    return _is_made_to_fail(service) or service["health"] == "working"


def _cost(state: State, hour: LastHour, waiting: int) -> str:
    """Whether mail goes out, and what it cost in the last hour, in sentences."""
    numbers = {
        "not sent": hour["not_sent"],
        "unknown": hour["unknown"],
        "sent by another service": hour["failed_over"],
        "perhaps sent twice": hour["possible_duplicates"],
    }
    parts = [f"{number:,} {words}" for words, number in numbers.items() if number]
    queued = (
        f"{waiting:,} {'messages wait' if waiting > 1 else 'message waits'} in the queue."
        if waiting
        else ""
    )
    in_hour = f"In the last hour: {', '.join(parts)}." if parts else ""
    return " ".join(filter(None, [_GOES_OUT[state], in_hour, queued]))


_GOES_OUT: Final[Mapping[State, str]] = {
    "cannot_send": "No mail goes out.",
    "failing": "Mail may not go out.",
    "on_backup": "Mail goes out.",
    "impaired": "Mail goes out.",
    "rehearsing": "Mail goes out.",
}

_TODO: Final = {
    "key_refused": "renew its key in the configuration, and reload that",
    "account_refused": "see to its account at the provider",
    "rate_limited": "wait until its provider takes more",
}
_WAIT: Final = "wait for the next try, or ask the provider"
_END_IT: Final = "end the rehearsal once you have seen enough"


def _todo(at_fault: Services) -> str:
    """What to do about each service."""
    needed: dict[str, list[str]] = {}
    for name, service in at_fault.items():
        faults = service["last_errors"]
        of_fault = _TODO.get(faults[0]["code"] if faults else "", _WAIT)
        needed.setdefault(_END_IT if _is_rehearsed(service) else of_fault, []).append(name)
    return "; ".join(f"{_joined(names)}: {what}" for what, names in needed.items())


def _joined(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1] if names else ""]))
