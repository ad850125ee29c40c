"""A guard for staging: who may get messages of a domain, and where those of the others go.

It is between the pool and the providers, so that no way of sending passes it: whatever a message
asks for, it is taken to services for those only whom the guard lets through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

from pydantic import PlainValidator

from email_services.addresses import Address, parse_address, unique
from email_services.message import RECIPIENT_FIELDS, EmailMessage

ANYBODY: Final = "*"
BELOW: Final = "*."
ORIGINAL_TO: Final = "X-Original-To"
"""The header of a redirected message that names whom it was for."""

MAX_ORIGINAL_TO: Final = 800
"""Characters of it; a header has 995 at the most."""

KEPT_BACK: Final = "Kept back: it is not among those that are delivered to (deliver_only_to)."
ALL_KEPT_BACK: Final = "None of its recipients is delivered to (deliver_only_to)."

_WRITE: Final = (
    "Write an address (ada@example.com), everybody at a domain (*@example.com), or at all domains "
    "below one (*@*.example.com)."
)


class Pattern(NamedTuple):
    """Recipients who may get messages.

    local_part: in lower case, or `ANYBODY`. domain: in ASCII and lower case. is_below: whether it
    is for all domains below that one, and not for itself.
    """

    local_part: str
    domain: str
    is_below: bool = False

    @classmethod
    def parse(cls, written: str) -> Pattern:
        """Parse "ada@example.com", "*@example.com" or "*@*.example.com". Raises ValueError."""
        local_part, _, domain = written.strip().rpartition("@")
        anybody, is_below = local_part == ANYBODY, domain.startswith(BELOW)
        # What is left is read as every address is, so that both are spelled in one way.
        example = f"{'a' if anybody else local_part}@{domain.removeprefix(BELOW)}"
        if "*" in example or "<" in example:
            raise ValueError(_WRITE)
        try:
            address = parse_address(example)
        except ValueError as error:
            raise ValueError(f"{str(error).rstrip('.')}. {_WRITE}") from None
        local_part = ANYBODY if anybody else address.key.rpartition("@")[0]
        return cls(local_part, address.domain, is_below)

    def matches(self, address: Address) -> bool:
        """Whether that is one of them."""
        local_part = address.key.rpartition("@")[0]
        if self.local_part not in {ANYBODY, local_part}:
            return False
        if self.is_below:
            return address.domain.endswith(f".{self.domain}")
        return address.domain == self.domain

    def __str__(self) -> str:
        return f"{self.local_part}@{BELOW if self.is_below else ''}{self.domain}"


def _pattern(value: object) -> Pattern:
    if not isinstance(value, str):
        raise ValueError(_WRITE)
    return Pattern.parse(value)


PatternField = Annotated[Pattern, PlainValidator(_pattern)]
"""A pattern as a field of a model: a string."""


@dataclass(frozen=True)
class KeptBack:
    """Whom a message is kept from.

    addresses: in lower case. redirected_to: who gets it in their place, if anybody.
    """

    addresses: tuple[str, ...] = ()
    redirected_to: str | None = None


NOBODY_KEPT_BACK: Final = KeptBack()


@dataclass(frozen=True)
class Guard:
    """Who may get messages of a domain.

    deliver_only_to: patterns; None for everybody, unless all is redirected. redirect_to: who gets
    what others are kept from.
    """

    deliver_only_to: Sequence[Pattern] | None = None
    redirect_to: Address | None = None

    def __str__(self) -> str:
        whom = ", ".join(map(str, self.deliver_only_to or ())) or "nobody"
        to = self.redirect_to
        others = f"those to others are redirected to {to.email}" if to else "others are dropped"
        return f"go only to {whom}; {others}"

    @property
    def is_on(self) -> bool:
        """Whether anybody is kept from anything."""
        return self.deliver_only_to is not None or self.redirect_to is not None

    def apply(self, message: EmailMessage) -> tuple[EmailMessage, KeptBack]:
        """The message for those who may get it, perhaps nobody, and whom it is kept from."""
        kept = [a for a in message.recipients if not self._lets_through(a)] if self.is_on else []
        if not kept:
            return message, NOBODY_KEPT_BACK
        keys = {address.key for address in kept}
        seen: set[str] = set()
        update = {
            name: unique(self._instead(getattr(message, name), keys), seen)
            for name in RECIPIENT_FIELDS
        }
        redirected_to = self.redirect_to.email if self.redirect_to else None
        headers = _with_original(message, keys) if redirected_to else message.headers
        guarded = message.model_copy(update={**update, "headers": headers})
        return guarded, KeptBack(tuple(address.key for address in kept), redirected_to)

    def _lets_through(self, address: Address) -> bool:
        if self.redirect_to and address.key == self.redirect_to.key:
            return True
        return any(pattern.matches(address) for pattern in self.deliver_only_to or ())

    def _instead(self, addresses: Sequence[Address], kept: set[str]) -> list[Address]:
        found = [self.redirect_to if a.key in kept else a for a in addresses]
        return [address for address in found if address]


NO_GUARD: Final = Guard()


def _with_original(message: EmailMessage, kept: set[str]) -> dict[str, str]:
    """The headers, with one that names those in to and cc; those in bcc nobody is to know of."""
    named = [a.email for a in (*message.to_recipients, *message.to_cc) if a.key in kept]
    headers = {n: v for n, v in message.headers.items() if n.lower() != ORIGINAL_TO.lower()}
    return {**headers, ORIGINAL_TO: _in_one_line(named)} if named else headers


def _in_one_line(emails: Sequence[str]) -> str:
    words: list[str] = []
    length = 0
    for email in emails:
        # As RFC 6533 writes addresses beyond ASCII where ASCII has to do.
        word = "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in email)
        length += len(word) + 2
        if words and length > MAX_ORIGINAL_TO:
            return f"{', '.join(words)}, and {len(emails) - len(words)} more"
        words.append(word)
    return ", ".join(words)
