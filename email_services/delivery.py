"""What became of a message: every attempt at every service, and the answer that says so."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Final

from email_services.abstract import Acceptance
from email_services.exceptions import (
    NOT_SENT,
    SENT,
    UNKNOWN,
    CannotCarry,
    MessageRejected,
    Passing,
    ProviderError,
    RateLimited,
)
from email_services.guard import ALL_KEPT_BACK, KEPT_BACK, NOBODY_KEPT_BACK, KeptBack
from email_services.logs import event
from email_services.message import EmailMessage

logger = logging.getLogger("email_services.pool")  # which operators look for

SKIPPED: Final = "skipped"
NO_ROOM_SECONDS: Final = 1.0
"""After which there may be room again."""

BACK_SECONDS: Final = 15.0
"""After which a service that failed may be back."""


@dataclass(frozen=True)
class Attempt:
    """What one service did with the message.

    outcome: "sent", "not sent", "unknown" or "skipped". code: why it was not sent, as one of the
    words in `exceptions`; "" where it was, and in what a version before has kept. reason: why it
    was not sent, or not to all of its recipients, or "". at: when, in seconds since the epoch, if
    the message waited before.
    """

    service: str
    outcome: str
    code: str
    reason: str
    milliseconds: int
    at: float | None = None

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Attempt:
        """An attempt as it was kept (`asdict`), perhaps by a version before."""
        return cls(**{"code": "", **stored})

    def as_dict(self) -> dict[str, Any]:
        """As it is answered and kept."""
        told = vars(self)
        return told if self.at is not None else {k: v for k, v in told.items() if k != "at"}


@dataclass(frozen=True)
class Recipient:
    """What became of one recipient, where not all fared alike.

    outcome: "sent", "not sent" or "unknown". service: the last one that was asked, or "".
    """

    email: str
    outcome: str
    service: str
    reason: str


@dataclass(frozen=True)
class Delivery:
    """What became of a message, with every attempt in order.

    outcome: "sent", if to anybody, "not sent", "unknown" or "queued".
    is_taken_in_doubt: whether it is unknown since the database did not say if it is queued.
    recipients: what became of each, only where some service refused some of them, or some were
    kept back. rejected: whether every service refused the message itself or could not carry it, or
    nobody may get it. kept_back: those of its recipients that the domain does not deliver to.
    redirected_to: who got it in their place.
    follows_cut_off: whether an earlier request with its Idempotency-Key was cut off.
    found_no_room: whether a service was passed by since too many messages were with it, or
    it was at its cap.
    retry_after: seconds after which it may fare better, where it was not sent and that can be said.
    replayed: whether this is the stored answer to an earlier request.
    """

    message_id: str
    outcome: str
    attempts: tuple[Attempt, ...]
    service_used: str | None = None
    service_message_id: str | None = None
    recipients: tuple[Recipient, ...] = ()
    rejected: bool = False
    follows_cut_off: bool = False
    found_no_room: bool = False
    retry_after: float | None = None
    replayed: bool = False
    is_taken_in_doubt: bool = False
    kept_back: tuple[str, ...] = ()
    redirected_to: str | None = None

    @property
    def possible_duplicate(self) -> bool:
        """Whether it was sent after an attempt that may have been accepted too."""
        outcomes = [attempt.outcome for attempt in self.attempts]
        doubtful = UNKNOWN in outcomes and SENT in outcomes[outcomes.index(UNKNOWN) :]
        return self.outcome == SENT and (doubtful or self.follows_cut_off)

    @property
    def is_partial(self) -> bool:
        """Whether it was sent to some of its recipients, and surely not, or perhaps, to others."""
        outcomes = {recipient.outcome for recipient in self.recipients}
        return self.outcome == SENT and bool(outcomes - {SENT})

    @property
    def is_failed_over(self) -> bool:
        """Whether it was sent in place of a service before, which could have carried it."""
        before = takewhile(lambda attempt: attempt.outcome != SENT, self.attempts)
        return self.outcome == SENT and any(
            a.service != self.service_used and a.code != CannotCarry.code for a in before
        )

    def after_cut_off(self) -> Delivery:
        """The same after an earlier request with its key that was cut off, and may have sent it."""
        outcome = UNKNOWN if self.outcome == NOT_SENT else self.outcome
        return replace(self, outcome=outcome, rejected=False, follows_cut_off=True)

    @property
    def services_unsuccessful(self) -> dict[str, str]:
        """Why each service that did not send it did not."""
        return {a.service: a.reason for a in self.attempts if a.outcome != SENT}

    @property
    def error(self) -> str:
        """One sentence for the caller of a message that was not surely sent."""
        if self.is_taken_in_doubt:
            return (
                "The message may have been queued: the state database took it and did not answer."
            )
        if self.outcome == UNKNOWN and self.follows_cut_off:
            return "The message may have been sent: the first request with its key was cut off."
        if self.outcome == UNKNOWN:
            return "The message may have been sent: a service took it and did not answer."
        if self._is_for_nobody:
            return f"The message was not sent. {ALL_KEPT_BACK}"
        if self.rejected:
            return "The message was not sent: no service takes it as it is."
        return "The message was not sent: no service could send it."

    @property
    def code(self) -> str:
        """The same as one word for programs."""
        if self.outcome == UNKNOWN:
            return "unknown_outcome"
        if self._is_for_nobody:
            return "kept_back"
        if self.rejected:
            return "message_refused"
        return "busy" if self.found_no_room else "unavailable"

    @property
    def _is_for_nobody(self) -> bool:
        """Whether no service was asked, since it was kept from all of its recipients."""
        return self.rejected and not self.attempts

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Delivery:
        """An answer as it was kept (`asdict`) for requests that repeat an Idempotency-Key."""
        attempts = tuple(map(Attempt.from_stored, stored["attempts"]))
        recipients = tuple(Recipient(**recipient) for recipient in stored.get("recipients", ()))
        parts = {"attempts": attempts, "recipients": recipients}
        kept_back = tuple(stored.get("kept_back", ()))
        return cls(**{**stored, **parts, "kept_back": kept_back, "replayed": True})


def log_failover(email_domain: str, delivery: Delivery) -> None:
    """Log that the message went through a service in place of one before it, if it did."""
    if not delivery.is_failed_over:
        return
    used, message_id = delivery.service_used, delivery.message_id
    others = [*dict.fromkeys(a.service for a in delivery.attempts if a.service != used)]
    said = event(
        "failover", domain=email_domain, service=used, instead_of=others, message_id=message_id
    )
    words = "%s: %s took %s in place of %s"
    logger.info(words, email_domain, used, message_id, ", ".join(others), extra=said)


@dataclass(eq=False)
class Run:
    """One message on its way through the services.

    given: as it came. template: the same for those of its recipients to whom it is still to be
    sent. stops: whether nobody is asked after an attempt that may have been accepted.
    kept_back: whom it is kept from.
    once_key: its Idempotency-Key, if it has one.
    follows_cut_off: whether an earlier request with that key was cut off, and may have sent it.
    began: when that was, if it is known, in seconds since the epoch.
    earlier: attempts in which it was not sent, of one that has waited since.
    """

    given: EmailMessage
    template: EmailMessage
    stops: bool = False
    kept_back: KeptBack = NOBODY_KEPT_BACK
    once_key: str | None = None
    follows_cut_off: bool = False
    began: float | None = None
    earlier: Sequence[Attempt] = ()
    attempts: list[Attempt] = field(default_factory=list)
    faults: list[ProviderError] = field(default_factory=list)
    recipients: dict[str, Recipient] = field(default_factory=dict)
    unable: set[str] = field(default_factory=set)
    passed_by: set[str] = field(default_factory=set)
    found_no_room: bool = False
    is_at_cap: bool = False
    retry_after: float | None = None
    service_used: str | None = None
    service_message_id: str | None = None
    is_over: bool = False
    is_noted: bool = False

    def __post_init__(self) -> None:
        self.is_over = not self.template.recipients

    def follow(self, begun: tuple[str, float] | None) -> None:
        """Note that an earlier request was cut off, and may have sent it.

        begun: the id that it had, which all copies have then, and when that was.
        """
        self.follows_cut_off = True
        if begun:
            message_id, self.began = begun
            self.given = self.given.known_as(message_id)
            self.template = self.template.known_as(message_id)

    @property
    def message(self) -> EmailMessage:
        """With its substitutions, made when it is asked for: those of a batch may be large."""
        return self.template.rendered()

    @property
    def met_a_limit(self) -> bool:
        """Whether a service did not take it since it limits the rate."""
        return any(isinstance(fault, RateLimited) for fault in self.faults)

    @property
    def refused_by(self) -> set[str]:
        """The services that would refuse it again, or cannot carry it."""
        codes = {MessageRejected.code, CannotCarry.code}
        return {attempt.service for attempt in self.attempts if attempt.code in codes}

    @property
    def doubted(self) -> set[str]:
        """The services that may have accepted it before: they are not asked a second time."""
        return {attempt.service for attempt in self.earlier if attempt.outcome == UNKNOWN}

    @property
    def is_whole(self) -> bool:
        """Whether nobody has been sent it yet."""
        return self.service_used is None

    def cannot_use(self, service: str, why: str) -> None:
        """Note that the service has no way to carry the message."""
        self.unable.add(service)
        self._skip(service, CannotCarry.code, why)

    def pass_by(self, service: str, code: Passing, why: str) -> None:
        """Note that the service was not asked, for a reason that may pass."""
        self.passed_by.add(service)
        self._skip(service, code, why)

    def find_no_room(self, service: str, why: str) -> None:
        """Note that too many messages are with the service already: no use to come back to it."""
        self.found_no_room, self.retry_after = True, NO_ROOM_SECONDS
        self._skip(service, "no_room", why)

    def reach_cap(self, service: str, why: str, seconds: float) -> None:
        """Note that the service has been handed as much as it may be, for so long.

        It is not among those to come back to, which would take it past its cap.
        """
        waits = [seconds] if self.retry_after is None else [seconds, self.retry_after]
        self.is_at_cap = self.found_no_room = True
        self.retry_after = min(waits)
        self._skip(service, "at_cap", why)

    def come_back_to(self, service: str) -> None:
        """The service that was passed by is asked after all."""
        self.passed_by.discard(service)
        self.attempts = [attempt for attempt in self.attempts if attempt.service != service]

    def note(self, service: str, result: Acceptance | ProviderError, milliseconds: int) -> None:
        """Note what the service made of it."""
        if isinstance(result, ProviderError):
            self._note_fault(service, result, milliseconds)
        else:
            self._note_acceptance(service, result, milliseconds)

    def delivery(self) -> Delivery:
        """What has become of it so far."""
        unsent = UNKNOWN if self._is_doubtful else NOT_SENT
        outcome = SENT if self.service_used else unsent
        delivery = Delivery(
            self.given.message_id,
            outcome,
            (*self.earlier, *self.attempts),
            self.service_used,
            self.service_message_id,
            self._fates() if outcome == SENT else (),
            rejected=outcome == NOT_SENT and self.is_refused,
            found_no_room=self.found_no_room,
            retry_after=self._wait if outcome == NOT_SENT else None,
            kept_back=self.kept_back.addresses,
            redirected_to=self.kept_back.redirected_to,
        )
        return delivery.after_cut_off() if self.follows_cut_off else delivery

    @property
    def _wait(self) -> float | None:
        """When it may fare better; a cap says nothing of the services that failed beside it."""
        if self.retry_after is None or not (self.is_at_cap and self.faults):
            return self.retry_after
        return min(self.retry_after, BACK_SECONDS)

    def _skip(self, service: str, code: str, why: str) -> None:
        self.attempts.append(Attempt(service, SKIPPED, code, why, 0))

    def _note_fault(self, service: str, fault: ProviderError, milliseconds: int) -> None:
        self.faults.append(fault)
        attempt = Attempt(service, fault.outcome, fault.code, fault.reason, milliseconds)
        self.attempts.append(attempt)
        self.is_over = self.stops and fault.outcome == UNKNOWN
        for key, recipient in self.recipients.items():
            if recipient.outcome == NOT_SENT:
                again = Recipient(recipient.email, fault.outcome, service, fault.reason)
                self.recipients[key] = again

    def _note_acceptance(self, service: str, accepted: Acceptance, milliseconds: int) -> None:
        if self.is_whole:
            self.service_used, self.service_message_id = service, accepted.message_id
        if accepted.refused or self.recipients or self._dropped:
            refused = UNKNOWN if self._is_doubtful else NOT_SENT
            for address in self.template.recipients:
                why = accepted.refused.get(address.key)
                outcome = SENT if why is None else refused
                self.recipients[address.key] = Recipient(address.email, outcome, service, why or "")
        reason = " ".join(f"{key}: {why}" for key, why in accepted.refused.items())
        self.attempts.append(Attempt(service, SENT, "", reason, milliseconds))
        self.template = self.template.only_for(accepted.refused)
        self.is_over = not self.template.recipients

    def _fates(self) -> tuple[Recipient, ...]:
        """What became of each recipient, where not all fared alike."""
        dropped = [Recipient(email, NOT_SENT, "", KEPT_BACK) for email in self._dropped]
        return (*self.recipients.values(), *dropped)

    @property
    def _dropped(self) -> tuple[str, ...]:
        """Those whom it is kept from, where nobody gets it in their place."""
        return () if self.kept_back.redirected_to else self.kept_back.addresses

    @property
    def _is_doubtful(self) -> bool:
        """Whether a service may have accepted it without saying so."""
        return bool(self.doubted) or any(fault.outcome == UNKNOWN for fault in self.faults)

    @property
    def is_refused(self) -> bool:
        """Whether every service refused the message itself, or could not carry it.

        So it is, too, where nobody may get it.
        """
        if not self.attempts:
            return not self.template.recipients
        refusals = [fault for fault in self.faults if isinstance(fault, MessageRejected)]
        return len(refusals) + len(self.unable) == len(self.attempts)
