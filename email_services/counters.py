"""What is counted of email: messages, the attempts at them, and what the database takes.

Every label has few values: names in the configuration, and words that the code has. Where several
workers count, each does so in files, and what is read is the sum (server/slots.py).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from functools import cache
from typing import Final, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from email_services.abstract import Acceptance
from email_services.delivery import SKIPPED, Delivery
from email_services.exceptions import (
    NOT_SENT,
    SENT,
    UNKNOWN,
    AccountRefused,
    CannotCarry,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    Passing,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)

disable_created_metrics()  # a second series for each

COUNTED: Final = CollectorRegistry()
"""All that is counted in this process, or declared here and counted by all workers."""

MESSAGES: Final = Counter(
    "mailpool_messages_total",
    "Messages that ended, by what became of them; service: the one that took it.",
    ("domain", "stream", "service", "outcome"),
    registry=COUNTED,
)
ATTEMPTS: Final = Counter(
    "mailpool_attempts_total",
    "Messages at a service, each time; code: the fault, or why the service was passed by.",
    ("domain", "service", "outcome", "code"),
    registry=COUNTED,
)
ATTEMPT_SECONDS: Final = Histogram(
    "mailpool_attempt_seconds",
    "What calls to a service took, each with one message or a batch.",
    ("domain", "service"),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60),
    registry=COUNTED,
)
FAILOVERS: Final = Counter(
    "mailpool_failovers_total",
    "Messages that a service took in place of one before it.",
    ("domain", "service"),
    registry=COUNTED,
)
REPLAYS: Final = Counter(
    "mailpool_replays_total",
    "Stored answers that were repeated for an Idempotency-Key.",
    ("domain",),
    registry=COUNTED,
)
COPIES_LOST: Final = Counter(
    "mailpool_copies_lost_total",
    "Messages that were sent without the copy that their domain keeps.",
    ("domain",),
    registry=COUNTED,
)
STORE_ERRORS: Final = Counter(
    "mailpool_store_errors_total",
    "Times that the state database did not answer, or not in time.",
    registry=COUNTED,
)
STORE_SECONDS: Final = Histogram(
    "mailpool_store_seconds",
    "What the state database took, with the wait for a connection and for a turn.",
    ("kind",),
    buckets=(0.001, 0.005, 0.025, 0.1, 0.5, 2.5),
    registry=COUNTED,
)
_RELOADED: Final = Gauge(
    "mailpool_config_last_reload_successful",
    "Whether the configuration that was read last is in use.",
    multiprocess_mode="mostrecent",
    registry=COUNTED,
)
_LAST_RELOAD: Final = Gauge(
    "mailpool_config_last_reload_timestamp_seconds",
    "When a configuration was taken over last, in seconds since the epoch.",
    multiprocess_mode="mostrecent",
    registry=COUNTED,
)


def note_reload(*, is_in_use: bool) -> None:
    """A configuration was read."""
    _RELOADED.set(is_in_use)
    if is_in_use:
        _LAST_RELOAD.set_to_current_time()


_FAULTS: Final[Collection[type[ProviderError]]] = (
    MessageRejected,
    AccountRefused,
    LoginRefused,
    RateLimited,
    ServiceUnavailable,
    OutcomeUnknown,
)
KINDS_OF_ATTEMPTS: Final = (
    (SENT, ""),
    *((fault.outcome, fault.code) for fault in _FAULTS),
    *((SKIPPED, code) for code in (CannotCarry.code, *get_args(Passing))),
)
"""Every outcome of an attempt, with the codes it may have."""


def begin_at_zero(domain: str, services: Collection[str], streams: Collection[str]) -> None:
    """Have all that may be counted of a domain be there: else its first fault is no increase."""
    _replays(domain)
    COPIES_LOST.labels(domain)
    for stream in streams:
        for outcome in (NOT_SENT, UNKNOWN):
            _messages(domain, stream, "", outcome)
        for service in services:
            _messages(domain, stream, service, SENT)
    for service in services:
        _failovers(domain, service)
        _seconds(domain, service)
        for outcome, code in KINDS_OF_ATTEMPTS:
            _attempts(domain, service, outcome, code)


def count_message(domain: str, stream: str, delivery: Delivery) -> None:
    """A message has ended, and so have the services that it was not taken to."""
    service = delivery.service_used or ""
    _messages(domain, stream, service, delivery.outcome).inc()
    if delivery.is_failed_over:
        _failovers(domain, service).inc()
    for attempt in delivery.attempts:
        if attempt.outcome == SKIPPED:
            _attempts(domain, attempt.service, SKIPPED, attempt.code).inc()


def count_attempt(domain: str, service: str, result: Acceptance | ProviderError) -> None:
    """A service was asked to take a message."""
    if isinstance(result, ProviderError):
        _attempts(domain, service, result.outcome, result.code).inc()
    else:
        _attempts(domain, service, SENT, "").inc()


def count_call(domain: str, service: str, seconds: float) -> None:
    """A call to a service is over."""
    _seconds(domain, service).observe(seconds)


def count_replays(domain: str, number: int) -> None:
    """So many answers are repeated."""
    if number:
        _replays(domain).inc(number)


def count_store(seconds: float, *, writes: bool) -> None:
    """The state database was asked for something."""
    _store_seconds("write" if writes else "read").observe(seconds)


# To look a child up by its labels takes as long as to count.
_messages = cache(MESSAGES.labels)
_attempts = cache(ATTEMPTS.labels)
_seconds = cache(ATTEMPT_SECONDS.labels)
_failovers = cache(FAILOVERS.labels)
_replays = cache(REPLAYS.labels)
_store_seconds = cache(STORE_SECONDS.labels)

_HALF_MADE: Final = (struct.error, RuntimeError, FileNotFoundError)
"""What is met where a worker is just making or removing one of its files."""


def counted() -> bytes:
    """All counts, of all workers together, as Prometheus reads them."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return generate_latest(COUNTED) if folder is None else _in_files(folder)


def _in_files(folder: str, more_tries: int = 5) -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)
    try:
        return generate_latest(registry)
    except _HALF_MADE:
        if not more_tries:
            raise
        return _in_files(folder, more_tries - 1)
