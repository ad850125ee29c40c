"""One domain's services, tried in priority order until one accepts the message."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from email_services.abstract import AbstractEmailService
from email_services.exceptions import (
    NOT_SENT,
    SENT,
    UNKNOWN,
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    ServiceUnavailable,
    StoreUnavailable,
    UnknownService,
)
from email_services.message import EmailMessage
from email_services.store import Store

logger = logging.getLogger(__name__)

OnUnknown = Literal["failover", "stop"]
DEFAULT_DEADLINE_SECONDS: Final = 25
"""Below the 30 s after which Heroku's router gives up on a request."""


@dataclass(frozen=True)
class Attempt:
    """What one service did with the message.

    outcome: "sent", "not sent" or "unknown". reason: why it was not sent, or "".
    """

    service: str
    outcome: str
    reason: str
    milliseconds: int


@dataclass(frozen=True)
class Delivery:
    """What became of a message, with every attempt in order.

    outcome: "sent", "not sent" or "unknown".
    rejected: whether every service refused the message itself, rather than failed.
    """

    message_id: str
    outcome: str
    attempts: tuple[Attempt, ...]
    service_used: str | None = None
    service_message_id: str | None = None
    rejected: bool = False

    @property
    def possible_duplicate(self) -> bool:
        """Whether it was sent after an attempt that may have been accepted too."""
        return self.outcome == SENT and any(a.outcome == UNKNOWN for a in self.attempts)

    @property
    def services_unsuccessful(self) -> dict[str, str]:
        """Why each service that did not send it did not."""
        return {a.service: a.reason for a in self.attempts if a.outcome != SENT}

    @property
    def error(self) -> str:
        """One sentence for the caller of a message that was not surely sent."""
        if self.outcome == UNKNOWN:
            return "The message may have been sent: a service took it and did not answer."
        if self.rejected:
            return "The message was not sent: every service refused it."
        return "The message was not sent: no service could send it."

    def as_dict(self) -> dict[str, Any]:
        """The answer of DESIGN's contract."""
        attempts = [asdict(attempt) for attempt in self.attempts]
        if self.outcome == SENT:
            return {
                "result": "success",
                "message_id": self.message_id,
                "service_used": self.service_used,
                "service_message_id": self.service_message_id,
                "services_unsuccessful": self.services_unsuccessful,
                "attempts": attempts,
                "possible_duplicate": self.possible_duplicate,
            }
        return {
            "result": "unknown" if self.outcome == UNKNOWN else "error",
            "error": self.error,
            "services_unsuccessful": self.services_unsuccessful,
            "attempts": attempts,
        }


class PooledEmailService:
    """The services of one email domain.

    email_domain: in ASCII and lower case.
    deadline_seconds: what all attempts at one message may take together.
    on_unknown: whether an attempt that may have been accepted is followed by another one.
    clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        email_domain: str,
        services: Sequence[AbstractEmailService],
        store: Store,
        *,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        on_unknown: OnUnknown = "failover",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.email_domain = email_domain
        self.services = {
            service.name: service for service in sorted(services, key=lambda s: -s.priority_value)
        }
        self.deadline_seconds = deadline_seconds
        self.on_unknown = on_unknown
        self._store = store
        self._clock = clock

    def service(self, name: str) -> AbstractEmailService:
        """The service `name`, whatever its case. Raises UnknownService."""
        try:
            return self.services[name.lower()]
        except KeyError:
            raise UnknownService(self.email_domain, name) from None

    def send(self, message: EmailMessage, only: AbstractEmailService | None = None) -> Delivery:
        """Try the services in order, or `only` one, until one accepts `message`.

        Returns what happened; ProviderErrors never leave. Any other exception is a bug and does.
        """
        deadline = self._clock() + self.deadline_seconds
        services = [only] if only else self._in_order()
        simulated = self._simulated_failures()
        attempts: list[Attempt] = []
        faults: list[ProviderError] = []
        for position, service in enumerate(services):
            timeout = _fair_timeout(deadline - self._clock(), services[position:])
            started = self._clock()
            try:
                if service.name in simulated:
                    raise ServiceUnavailable("Simulated failure.")
                if timeout <= 0:
                    raise ServiceUnavailable("Not tried: the deadline had passed.")
                service_message_id = service.send(message, timeout)
            except ProviderError as fault:
                faults.append(fault)
                attempts.append(self._failed(service, fault, started, message))
                if isinstance(fault, OutcomeUnknown) and self.on_unknown == "stop":
                    break
            else:
                attempts.append(self._attempt(service.name, SENT, "", started))
                logger.info("%s: %s sent %s", self.email_domain, service.name, message.message_id)
                return Delivery(
                    message.message_id, SENT, tuple(attempts), service.name, service_message_id
                )
        return Delivery(
            message.message_id,
            UNKNOWN if any(fault.outcome == UNKNOWN for fault in faults) else NOT_SENT,
            tuple(attempts),
            rejected=all(isinstance(fault, MessageRejected) for fault in faults),
        )

    def _in_order(self) -> list[AbstractEmailService]:
        """By priority, equals in random order: sorting keeps the order of what it finds equal."""
        services = list(self.services.values())
        random.shuffle(services)
        return sorted(services, key=lambda service: -service.priority_value)

    def _simulated_failures(self) -> frozenset[str]:
        try:
            return self._store.simulated_failures(self.email_domain)
        except StoreUnavailable as error:
            logger.error("%s: sending without the state database: %s", self.email_domain, error)
            return frozenset()

    def _failed(
        self,
        service: AbstractEmailService,
        fault: ProviderError,
        started: float,
        message: EmailMessage,
    ) -> Attempt:
        """Log the fault as loudly as an operator has to act on it.

        What a provider says of a message may quote it, so that it is for the caller's eyes only.
        """
        level = logging.ERROR if isinstance(fault, AccountRefused) else logging.WARNING
        words = "refused the message" if isinstance(fault, MessageRejected) else fault.reason
        logger.log(
            level,
            "%s: %s, %s: %s (%s)",
            self.email_domain,
            service.name,
            fault.outcome,
            words,
            message.message_id,
        )
        return self._attempt(service.name, fault.outcome, fault.reason, started)

    def _attempt(self, service: str, outcome: str, reason: str, started: float) -> Attempt:
        return Attempt(service, outcome, reason, round((self._clock() - started) * 1000))


def _fair_timeout(remaining: float, services: Sequence[AbstractEmailService]) -> float:
    """Seconds for the first of `services`: its own timeout, unless the others would go short.

    Then the rest of the deadline is shared equally, so that a backup always gets a try.
    """
    own, *others = (service.settings.timeout_seconds for service in services)
    return min(own, max(remaining / len(services), remaining - sum(others)))
