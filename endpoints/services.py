"""Email domains and their services: listings, health, and simulated failures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, cast

from pydantic import BeforeValidator, ConfigDict, Field, with_config
from typing_extensions import NotRequired, TypeAliasType, TypedDict

from browsable_api import Asked, Form, request
from browsable_api.errors import told
from email_services.abstract import AbstractEmailService
from email_services.config import EmailDomain
from email_services.drill import KINDS, Drill, DrillKind
from email_services.exceptions import UNKNOWN, StoreUnavailable
from email_services.health import WORKING, State
from email_services.message import OnUnknown
from email_services.pool import PooledEmailService
from email_services.store import ServiceState
from endpoints.access import LISTED, READING, ROOT, is_root, is_signed_in, may, may_look_at
from endpoints.addresses import (
    DOMAIN,
    FAIL,
    HEALTH,
    HOME,
    MESSAGES,
    QUEUE,
    SEND,
    SEND_THROUGH,
    path_of,
    url_of,
)
from endpoints.context import mailpool
from endpoints.messages import (
    MessageInShort,
    QueueDepth,
    Time,
    in_short,
    iso,
    iso_or_none,
    queue_as_dict,
)
from endpoints.overview import (
    DomainState,
    Known,
    LastDay,
    LastHour,
    Trouble,
    gravity,
    state_of,
    traffic_of_day,
    traffic_of_hour,
    troubles_of,
)
from endpoints.rooms import Endpoints, Fields, tagged

LAST_MESSAGES: Final = 5
"""How many of a domain's messages a listing shows."""

# What is taken


def _refuse_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("It should be a number.")
    return value


Number = Annotated[float, BeforeValidator(_refuse_flag)]
# The bounds come first, or the description of the API would not have them.
Minutes = Annotated[float, Field(gt=0, le=7 * 24 * 60), BeforeValidator(_refuse_flag)]


class FailureWanted(Fields):
    """What the simulated failure of a service should be."""

    other_names = {  # noqa: RUF012 - nobody changes it
        **dict.fromkeys(("enabled", "on", "simulated_failure_enabled"), "simulated_failure"),
        **dict.fromkeys(("type", "simulated_failure_kind"), "kind"),
        **dict.fromkeys(("rate", "probability", "simulated_failure_share"), "share"),
        **dict.fromkeys(("until", "duration", "simulated_failure_until"), "minutes"),
    }

    simulated_failure: bool = Field(
        False, description="On or off; without it, it is switched over."
    )
    kind: DrillKind = Field(
        "unavailable", description=f"The fault that is simulated: {', '.join(KINDS)}."
    )
    share: Number = Field(
        1, gt=0, le=1, description="The part of messages that meets it: 0.1 is one in ten."
    )
    minutes: Minutes | None = Field(
        None, description="When it ends by itself; without it, it does not."
    )

    def drill(self, current: Drill | None, now: float) -> Drill | None:
        """The drill that is wanted, where `current` is on or none is."""
        wanted = self.simulated_failure
        if "simulated_failure" not in self.model_fields_set:
            wanted = current is None or bool(self.model_fields_set)
        until = now + self.minutes * 60 if self.minutes else None
        return Drill(self.kind, self.share, now, until) if wanted else None


FAILURE_FORM: Final = Form(
    button="",
    fields={
        "kind": Asked(
            "select",
            label="What messages meet there",
            help="The fault that is simulated.",
            options={
                "unavailable": "The service cannot be used",
                "timeout": "No answer: each waits its whole timeout, and may be unknown",
                "answer_lost": "The answer is lost: it is sent there, and perhaps once more",
                "rate_limited": "Too many requests",
                "key_refused": "The key is refused",
                "slow": "It takes 3 s longer",
            },
        ),
        "share": Asked(
            "select",
            label="How many of them",
            options={"1": "All", "0.5": "Half", "0.1": "One in ten", "0.01": "One in a hundred"},
        ),
        "minutes": Asked(
            label="For how many minutes",
            help="Then it ends by itself; left empty, it lasts until somebody ends it.",
            value="15",
        ),
        # Which of its buttons there is depends on what is on (fail.html).
        "simulated_failure": Asked("buttons"),
    },
)

# What is answered


# A schema of its own: generators would call it ServiceHealth, which is another.
HealthState = TypeAliasType("HealthState", State)


class Fault(TypedDict):
    """A fault of a service."""

    at: Annotated[Time, told("When.")]
    code: Annotated[
        str, told('What kind of fault, as a word for programs; "" of earlier versions.')
    ]
    reason: Annotated[str, told("Why.")]


class Health(TypedDict):
    """Whether a service works."""

    health: Annotated[
        HealthState,
        told(
            "Whether messages are taken to it: working, or failing since its last attempt did; not "
            "while it is resting, nor while it is probing, as one message tries it."
        ),
    ]
    health_since: Annotated[Time | None, told("Since when it is used, or rests.")]
    failing_since: Annotated[
        Time | None, told("When the first of `failures_in_a_row` was; null without one.")
    ]
    health_reason: Annotated[str, told('The last of these faults, in a few words, or "".')]
    failures_in_a_row: Annotated[int, told("Failures since the last success.")]
    next_probe: Annotated[
        Time | None, told("When it has rested. Once that is past, the next message tries it.")
    ]
    last_errors: Annotated[list[Fault], told("Its last faults, the newest first.")]


class Failure(TypedDict):
    """A simulated failure."""

    simulated_failure_enabled: Annotated[bool, told("Whether it is on.")]
    simulated_failure_kind: NotRequired[Annotated[DrillKind, told("Which fault, if chosen.")]]
    simulated_failure_share: NotRequired[Annotated[float, told("The part that meets it.")]]
    simulated_failure_until: NotRequired[Annotated[Time | None, told("When it ends by itself.")]]


class ServiceHealth(Failure, Health):
    """The health of one service."""

    service_name: Annotated[str, told("The service.")]


class ServiceFailure(Failure):
    """The simulated failure of one service."""

    service_name: Annotated[str, told("The service.")]


@with_config(
    ConfigDict(extra="allow", json_schema_extra={"additionalProperties": {"type": "string"}})
)
class Service(Failure, Health):
    """A service of a domain, as listings show it; to the root key with the keys it uses."""

    service: Annotated[str, told("The provider.")]
    priority_value: Annotated[float, told("The highest is tried first.")]
    weight: Annotated[float, told("Its part of the load among those of equal priority.")]
    timeout_seconds: Annotated[float, told("What one attempt may take, without its upload.")]
    max_per_second: Annotated[int | None, told("Messages it is handed in any second.")]
    max_per_day: Annotated[int | None, told("Messages it is handed in a day of UTC.")]
    max_at_once: Annotated[int | None, told("Calls to it that are under way at once.")]
    send_url: Annotated[str, told("Sends through this service alone.")]
    fail_url: Annotated[str, told("Switches its simulated failure.")]
    health_url: Annotated[str, told("Its health.")]


class Domain(TypedDict):
    """An email domain."""

    email_domain: Annotated[str, told("Its name.")]
    url: Annotated[str, told("Its address here.")]
    send_url: Annotated[str, told("Sends a message, with failover.")]
    messages_url: Annotated[str, told("What was sent.")]
    pool_api_key: NotRequired[Annotated[str, told("Shown to the root key, outside production.")]]
    deadline_seconds: Annotated[float, told("What all attempts may take together.")]
    on_unknown: Annotated[OnUnknown, told("After an attempt that may have been accepted.")]
    enabled_services: Annotated[dict[str, Service], told("By name, in the order they are tried.")]
    state: Annotated[
        DomainState,
        Known,
        told(
            "Whether it can send: `working`, and `rehearsing` with a simulated failure on; "
            "`impaired` while a service that is not tried first fails; `on_backup` while those "
            "that are tried first do; `failing` once the last attempt at each failed, and "
            "`cannot_send` where that was no accident."
        ),
    ]
    state_since: Annotated[Time | None, told("Since when, where that is known.")]
    troubles: Annotated[list[Trouble], told("What is wrong, for people.")]
    queue: Annotated[dict[str, QueueDepth], told("What waits to be sent, by stream.")]
    queue_url: Annotated[str, told("What waits, and what can be done with it.")]
    last_hour: Annotated[LastHour, told("What became of the last hour's messages.")]
    last_day: Annotated[LastDay | None, told("The same; null where they are too many to count.")]
    deliver_only_to: NotRequired[
        Annotated[list[str], told("Where it is guarded, for who has a key: who gets messages.")]
    ]
    redirect_to: NotRequired[
        Annotated[str | None, told("Who gets those to others; null where they are dropped.")]
    ]
    last_messages: NotRequired[Annotated[list[MessageInShort], told("For who may read them.")]]


class Change(TypedDict):
    """A change of a service, with its reason."""

    at: Annotated[Time, told("When.")]
    service: Annotated[str, told("The service.")]
    change: Annotated[str, told("What became of it, and why.")]


class DomainWithChanges(Domain):
    """An email domain, and what happened to its services."""

    changes: Annotated[list[Change], told("The newest changes of its services.")]


class Home(TypedDict):
    """The email domains of this server that the caller may see."""

    production: Annotated[bool, told("Whether listings need a key.")]
    email_services: Annotated[list[Domain], told("The email domains, those with trouble first.")]


room = Endpoints(
    "services",
    __name__,
    "Which services each email domain has, how they are, and what to rehearse.",
    {
        ServiceFailure: {"service_name": "primary", "simulated_failure_enabled": True},
        ServiceHealth: {
            "service_name": "primary",
            "simulated_failure_enabled": False,
            "health": "resting",
            "health_since": "2026-11-24T12:00:00.000+00:00",
            "failing_since": "2026-11-24T11:59:42.000+00:00",
            "health_reason": "unavailable (HTTP 503)",
            "failures_in_a_row": 5,
            "next_probe": "2026-11-24T12:00:15.000+00:00",
            "last_errors": [
                {
                    "at": "2026-11-24T12:00:00.000+00:00",
                    "code": "unavailable",
                    "reason": "unavailable (HTTP 503)",
                }
            ],
        },
    },
)


@room.operation("GET", HOME, LISTED, page="home.html", **tagged(Home))
def list_domains(pools: list[PooledEmailService]) -> Home:
    """Email domains.

    This server sends email through whichever provider works. Here are its email domains, and for
    each the services that are tried, the highest `priority_value` first.

    * **GET** lists them. On a production server this needs a key, and a pool key sees its own
      domain only.
    * **POST** does the same with a key in the body.

    The root key sees the API keys too, unless the server is in production. To look again and again
    costs little with the `ETag` of the last answer as `If-None-Match`: while nothing is new, it is
    304.

    To send, go to a domain and follow its `send_url`.
    """
    return {
        "production": mailpool.config.production,
        "email_services": sorted(map(_domain, pools), key=gravity),
    }


@room.operation("POST", HOME, READING, form=Form("Show them"))
def list_domains_with_key(pools: list[PooledEmailService]) -> Home:
    """Email domains, with a key in the body."""
    return list_domains(pools)


@room.operation("GET", DOMAIN, LISTED, page="domain.html", **tagged(DomainWithChanges))
def get_domain(pool: PooledEmailService) -> DomainWithChanges:
    """An email domain.

    Its services in the order they are tried, and the addresses of what can be done.

    * `send_url` sends a message through the pool, with failover.
    * A service's own `send_url` sends through that service alone.
    * A service's `fail_url` switches its simulated failure, to rehearse an outage.

    **GET** and **POST** are as one level up. The root key sees the API keys, outside production.
    """
    changes = mailpool.store.service_changes(pool.email_domain)
    return {
        **_domain(pool),
        "changes": [
            {"at": iso(found["at"]), "service": found["service"], "change": found["change"]}
            for found in changes
        ],
    }


@room.operation("POST", DOMAIN, READING, form=Form("Show it"))
def get_domain_with_key(pool: PooledEmailService) -> DomainWithChanges:
    """An email domain, with a key in the body."""
    return get_domain(pool)


@room.operation("GET", FAIL, LISTED, page="fail.html", **tagged(ServiceFailure))
def get_failure(pool: PooledEmailService, service: AbstractEmailService) -> ServiceFailure:
    """Simulated failure.

    While it is on, messages meet a fault at this service, so that you can see them fail over.

    | `kind` | what each message meets |
    |---|---|
    | `unavailable` | the service cannot be used (the default) |
    | `timeout` | it waits its whole timeout; the outcome is unknown |
    | `answer_lost` | the provider accepts it, and the answer is lost: the outcome is unknown |
    | `rate_limited` | too many requests |
    | `key_refused` | the account's key is refused |
    | `slow` | it is sent 3 s later |
    """
    drill = pool.breakers.drill_in(_state(pool, service))
    return {"service_name": service.name, **_failure(drill)}


@room.operation(
    "POST",
    FAIL,
    ROOT,
    form=FAILURE_FORM,
    examples={
        "switch over": {},
        "on": {"simulated_failure": True},
        "some, for a while": {"kind": "rate_limited", "share": 0.1, "minutes": 15},
    },
)
def simulate_failure(
    pool: PooledEmailService, service: AbstractEmailService, body: FailureWanted
) -> tuple[ServiceFailure, HTTPStatus, Mapping[str, str]]:
    """Switch a simulated failure.

    Without a field it is switched over; with any of these fields, on. With
    `{"simulated_failure": true}` or `false` it ends as you say, however often you say it. Every
    worker sees the change at once, and it stays after a restart.
    """
    pool.breakers.set_drill(service, body.drill)
    return get_failure(pool, service), *_then(FAIL, service)


@room.operation("GET", HEALTH, LISTED, page="health.html", **tagged(ServiceHealth))
def get_health(pool: PooledEmailService, service: AbstractEmailService) -> ServiceHealth:
    """Health of a service.

    A service whose last attempt failed is `failing`. One that fails several times in a row, or
    whose account or rate limit is at fault, rests: messages pass it by at no cost. After the rest
    one message tries it; if that is accepted, it is back at its place in the order.
    """
    state = _state(pool, service)
    drill = pool.breakers.drill_in(state)
    return {"service_name": service.name, **_failure(drill), **_health(pool, state)}


@room.operation("POST", HEALTH, ROOT, form=Form("Try it with the next message"))
def reset_health(
    pool: PooledEmailService, service: AbstractEmailService
) -> tuple[ServiceHealth, HTTPStatus, Mapping[str, str]]:
    """Try a service again.

    Its rest is over: the next message tries it, and it works again if that is accepted. Nothing is
    sent by this itself, and it changes nothing of a service that does not rest.
    """
    pool.breakers.reset(service)
    return get_health(pool, service), *_then(HEALTH, service)


def _then(address: str, service: AbstractEmailService) -> tuple[HTTPStatus, Mapping[str, str]]:
    """The status and headers of what was done: a person goes to a page that can be loaded again."""
    if not (request.is_from_a_form and is_signed_in()):
        return HTTPStatus.OK, {}
    return HTTPStatus.SEE_OTHER, {"Location": path_of(address, **_names(service))}


@dataclass(frozen=True)
class Rehearsal:
    """A simulated failure that is on. url: where it is ended."""

    service: str
    email_domain: str
    failure: Failure
    url: str


@dataclass(frozen=True)
class Others:
    """Who takes what a service refuses: those of its domain that work. on_unknown: its domain's."""

    working: list[str]
    on_unknown: OnUnknown


@room.app_context_processor
def page_variables() -> dict[str, Any]:
    """What pages say of rehearsals; found out only where they do.

    rehearsals: those that are on, of domains that the caller may see. others: who takes the
    messages that the service of this page refuses.
    """
    return {"rehearsals": _rehearsals, "others": _others}


def _rehearsals() -> list[Rehearsal]:
    try:
        states = mailpool.store.all_service_states()
        pools = {name: pool for name, pool in mailpool.pools.items() if may_look_at(name)}
    except StoreUnavailable:
        return []
    return [
        Rehearsal(service.name, name, _failure(drill), path_of(FAIL, **_names(service)))
        for name, pool in pools.items()
        for service in pool.services.values()
        if (drill := pool.breakers.drill_in(states.get((name, service.name), ServiceState())))
    ]


def _others() -> Others:
    parts = request.view_args or {}
    pool = mailpool.pools[mailpool.config.domain(parts["email_domain"]).email_domain]
    states, now = mailpool.store.service_states(pool.email_domain), time.time()
    working = []
    for service in pool.services.values():
        state = states.get(service.name, ServiceState())
        is_well = pool.breakers.health_in(state, now).state(now) == WORKING
        if is_well and not pool.breakers.drill_in(state):
            working.append(service.name)
    name = pool.service(parts["service"]).name
    return Others([other for other in working if other != name], pool.on_unknown)


def _names(service: AbstractEmailService) -> dict[str, str]:
    """The parts of its addresses."""
    return {"email_domain": service.email_domain, "service": service.name}


def _state(pool: PooledEmailService, service: AbstractEmailService) -> ServiceState:
    return mailpool.store.service_states(pool.email_domain).get(service.name, ServiceState())


def _domain(pool: PooledEmailService) -> Domain:
    """What a listing says of a domain; with its keys for the root, outside production."""
    name = pool.email_domain
    domain = mailpool.config.domains[name]
    with_keys = is_root() and not mailpool.config.production
    states = mailpool.store.service_states(name)
    services = {
        service.name: _service(pool, service, states, with_keys)
        for service in pool.services.values()
    }
    now = time.time()
    counted = mailpool.store.counted(name, now)
    last_hour = traffic_of_hour(counted, now, services)
    state, since = state_of(services)
    queue = queue_as_dict(pool)
    known = Known(
        name,
        services,
        last_hour,
        sum(depth["waiting"] + depth["scheduled"] for depth in queue.values()),
        url_of(DOMAIN, email_domain=name),
        url_of(MESSAGES, {"outcome": UNKNOWN, "period": "hour"}, email_domain=name),
    )
    found: Domain = {
        "email_domain": name,
        "url": known.url,
        "send_url": url_of(SEND, email_domain=name),
        "messages_url": url_of(MESSAGES, email_domain=name),
        "deadline_seconds": pool.deadline_seconds,
        "on_unknown": pool.on_unknown,
        "state": state,
        "state_since": since,
        "troubles": troubles_of(known, state, since),
        "enabled_services": services,
        "last_hour": last_hour,
        "last_day": traffic_of_day(counted, now, services),
        "queue": queue,
        "queue_url": url_of(QUEUE, email_domain=name),
    }
    if with_keys:
        found |= _plain_pool_key(domain)
    if may(READING, name):
        last = mailpool.store.messages(name, now, limit=LAST_MESSAGES)
        found["last_messages"] = [in_short(message) for message in last]
        if pool.guard.is_on:
            found["deliver_only_to"] = [str(p) for p in pool.guard.deliver_only_to or ()]
            found["redirect_to"] = pool.guard.redirect_to and pool.guard.redirect_to.email
    return found


def _plain_pool_key(domain: EmailDomain) -> Any:
    """The key to send with, where it is known by more than its hash."""
    keys = (key for key in domain.keys if key.role == "send" and key.is_valid(time.time()))
    return next(({"pool_api_key": key.value} for key in keys if key.value), {})


def _service(
    pool: PooledEmailService,
    service: AbstractEmailService,
    states: Mapping[str, ServiceState],
    with_keys: bool,
) -> Service:
    """What a listing says of a service."""
    names = _names(service)
    state = states.get(service.name, ServiceState())
    found: Service = {
        "service": service.provider,
        "priority_value": service.priority_value,
        "weight": service.settings.weight,
        "timeout_seconds": service.settings.timeout_seconds,
        "max_per_second": service.settings.max_per_second,
        "max_per_day": service.settings.max_per_day,
        "max_at_once": service.settings.max_at_once,
        **_failure(pool.breakers.drill_in(state)),
        **_health(pool, state),
        "send_url": url_of(SEND_THROUGH, **names),
        "fail_url": url_of(FAIL, **names),
        "health_url": url_of(HEALTH, **names),
    }
    if with_keys:
        cast("dict[str, Any]", found).update(service.secrets)
    return found


def _health(pool: PooledEmailService, state: ServiceState) -> Health:
    """Whether a service works, since when, why not, and when it is tried again."""
    now = time.time()
    health = pool.breakers.health_in(state, now)
    return {
        "health": health.state(now),
        "health_since": iso_or_none(health.since),
        "failing_since": iso_or_none(health.failing_since),
        "health_reason": health.reason,
        "failures_in_a_row": health.failures,
        "next_probe": iso_or_none(health.rest_until),
        "last_errors": [
            {"at": iso(e["at"]), "code": e.get("code", ""), "reason": e["reason"]}
            for e in state.last_errors
        ],
    }


def _failure(drill: Drill | None) -> Failure:
    """The state of a simulated failure; more than on and off where there is more to say."""
    if drill is None or drill == Drill(since=drill.since):
        return {"simulated_failure_enabled": drill is not None}
    return {
        "simulated_failure_enabled": True,
        "simulated_failure_kind": drill.kind,
        "simulated_failure_share": drill.share,
        "simulated_failure_until": iso_or_none(drill.until),
    }
