"""An outage as those on call meet it: ten domains of three services, two of them in trouble.

The state database of a server is made to hold what a day of sends would have left in it, by the
service's own code and with its clock set back; the server itself is the real one.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from conftest import PROVIDER_KEY, ROOT_KEY
from servers import Server

from email_services.breakers import CircuitBreakers
from email_services.config import Config, load_config
from email_services.exceptions import (
    LoginRefused,
    OutcomeUnknown,
    ProviderError,
    ServiceUnavailable,
)
from email_services.store import LoggedMessage, Store

MINUTE: Final = 60
DAY: Final = 24 * 60 * MINUTE
CANNOT_SEND: Final = "alerts.example.net"
ON_BACKUP: Final = "shop.example"
NEVER_USED: Final = "archive.example"
DOMAINS: Final = (
    "example.com",
    "news.example.org",
    ON_BACKUP,
    "accounts.example",
    CANNOT_SEND,
    "billing.example",
    "support.example",
    "a-very-long-name-of-a-company-with-many-words-in-it.and-a-department.example",
    "רשימת-דיוור.example",
    NEVER_USED,
)
ALL: Final = ("mailgun", "sendgrid", "backup")
REFUSED_MINUTES: Final = {CANNOT_SEND: 14, ON_BACKUP: 12}
"""For how long the first service refuses what it is handed."""
CUT_OFF_MINUTES: Final = {CANNOT_SEND: 6}
"""For how long all of them do."""
SUBJECTS: Final = ("Your order is on its way", "Password reset", "ההזמנה שלך בדרך ✓", "Invoice 42")


@contextlib.contextmanager
def staged_outage(folder: Path) -> Iterator[Server]:
    """A server in the middle of it."""
    content = config_of(folder)
    server = Server(folder, content)
    try:
        config = load_config(str(server.config_file))
        with contextlib.closing(Store(config.state_url)) as store:
            stage(config, store, time.time())
        yield server
    finally:
        server.kill()


def config_of(folder: Path) -> dict:
    """Ten domains with a pool key each, `pool-key-of-` and its name; Mailgun is never reached."""
    return {
        "root_api_key": ROOT_KEY,
        "state_url": f"sqlite:///{folder}/state.sqlite3",
        "email_services": [
            {
                "email_domain": domain,
                "pool_api_key": f"pool-key-of-{place}.example",
                "enabled_services": {
                    "Mailgun": provider(30),
                    "Sendgrid": provider(20),
                    "backup": {
                        "service": "maildir",
                        "priority_value": 10,
                        "path": f"{folder}/{place}",
                    },
                },
            }
            for place, domain in enumerate(DOMAINS)
        ],
    }


def provider(priority: int) -> dict:
    """One that nobody could mistake for the real one."""
    url = "http://127.0.0.1:9"
    return {"api_key": PROVIDER_KEY, "priority_value": priority, "base_url": url}


def stage(config: Config, store: Store, now: float) -> None:
    """Let a day have been."""
    chance = random.Random(14)
    for domain in config.domains:
        if domain != NEVER_USED:
            store.log_messages(list(day_of(domain, now, chance)))
    refused = LoginRefused("The key was refused.", summary="HTTP 401.")
    silent = OutcomeUnknown("No answer came within 10 s.")
    cut = ServiceUnavailable("The connection was refused.")
    for service, fault, minutes in (
        ("mailgun", refused, (14, 8)),
        ("sendgrid", cut, (6, 5, 3, 2)),
        ("backup", ServiceUnavailable("The disk is full."), (6, 4)),
    ):
        meet(config, store, CANNOT_SEND, service, fault, [now - m * MINUTE for m in minutes])
    times = [now - m * MINUTE for m in (12, 11.9, 11.8, 11.7, 11.6, 11, 10, 8, 5, 1)]
    meet(config, store, ON_BACKUP, "mailgun", silent, times)
    store.index(now)


def meet(
    config: Config,
    store: Store,
    domain: str,
    service: str,
    fault: ProviderError,
    times: list[float],
) -> None:
    """A service meets the fault at these times; once it rests, with messages that try it."""
    pool = config.domains[domain].pool(store, 1, None)
    for at in times:
        breakers = CircuitBreakers(domain, store, lambda at=at: at)
        state = store.service_states(domain).get(service)
        is_resting = bool(state and state.health.rest_until)
        step = breakers.forced(pool.services[service])
        breakers.record_fault(replace(step, decision="probe") if is_resting else step, fault)


def day_of(domain: str, now: float, chance: random.Random) -> Iterator[LoggedMessage]:
    """What became of a day's messages, most of them in the last hours."""
    for number in range(160):
        at = now - MINUTE - chance.expovariate(1 / (5 * 60 * MINUTE)) % DAY
        minutes_ago = (now - at) / MINUTE
        if minutes_ago < CUT_OFF_MINUTES.get(domain, 0):
            yield message(domain, at, "not sent", ALL, number)
        elif minutes_ago < REFUSED_MINUTES.get(domain, 0) or chance.random() < 0.02:
            yield message(domain, at, "sent", ALL[:2], number)
        else:
            yield message(domain, at, "sent", ALL[:1], number)
    if domain == ON_BACKUP:
        for number in range(3):
            yield message(domain, now - (12 + number) * MINUTE, "unknown", ALL[:1], 1000 + number)


def message(
    domain: str, at: float, outcome: str, tried: Sequence[str], number: int
) -> LoggedMessage:
    """One that these services were tried with, the last of which sent it if any did."""
    attempts = [
        {
            "service": service,
            "outcome": "sent" if outcome == "sent" and service == tried[-1] else "not sent",
            "code": "",
            "reason": "",
            "milliseconds": 120,
        }
        for service in tried
    ]
    return LoggedMessage(
        hashlib.md5(f"{domain} {number}".encode()).hexdigest(),
        at,
        domain,
        f"noreply@{domain}",
        [f"customer{number}@example.org"],
        SUBJECTS[number % len(SUBJECTS)],
        outcome=outcome,
        service_used=tried[-1] if outcome == "sent" else None,
        attempts=attempts,
    )
