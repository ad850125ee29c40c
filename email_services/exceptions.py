"""Every error this package raises on purpose.

    EmailServicesError
    ├── InvalidInput              the caller's fault, with a sentence for every field
    │   └── MessageTooLarge       more bytes than this server takes
    ├── UnknownDomain             no such email domain
    ├── UnknownService            no such service in the domain
    ├── UnknownMessage            no such message in the log
    ├── KeyRefused                the key is missing or opens nothing here
    ├── TooManyWrongKeys          so many came from one address that no more are looked at
    ├── KeyInProgress             the request with this Idempotency-Key is still in progress
    ├── KeyReused                 the Idempotency-Key stands for another request
    ├── StoreUnavailable          the state that workers share cannot be read or written
    ├── SearchTooSlow             what is wanted of the log takes too long to find
    └── ProviderError             the one family that the pool catches and fails over on
        ├── MessageRejected       the message itself is refused; other services may take it
        │   └── CannotCarry       the provider has no way to express something in it
        ├── AccountRefused        key, quota or account settings at the provider
        ├── RateLimited           too many requests at the provider
        ├── ServiceUnavailable    the provider is down, or cannot be reached
        └── OutcomeUnknown        the provider may or may not have accepted the message

    ConfigError (SystemExit)      config.json is wrong: the start stops with one line
    UnusableProvider (ImportError)  a provider cannot be used as it is; ends as ConfigError
    └── MissingPackage            its own package is not installed

Any other exception is a bug of ours: it is never caught to fail over.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from pydantic import ValidationError

SENT: Final = "sent"
NOT_SENT: Final = "not sent"
UNKNOWN: Final = "unknown"


class ConfigError(SystemExit):
    """The configuration cannot be used.

    It derives from SystemExit so that a start that nobody guards ends with this one line
    on stderr and exit status 1, not with a traceback.
    """


class UnusableProvider(ImportError):
    """A provider cannot be used as it is installed: the start stops with one line."""


class MissingPackage(UnusableProvider):
    """A provider needs a package that is not installed, and that no other provider needs.

    Its module raises this when it is imported. package: its name for pip.
    """

    def __init__(self, package: str) -> None:
        super().__init__(f"It needs a package that is not installed: pip install {package}")


class EmailServicesError(Exception):
    """Base of the errors that have an answer for the caller.

    retry_after: seconds after which the same may fare better, where that can be said.
    """

    retry_after: int | None = None


class InvalidInput(EmailServicesError):
    """What the caller sent is not acceptable.

    problems: a sentence for each field at fault, keyed by its dotted path ("to_recipients.1").
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        count = len(problems)
        super().__init__(f"{count} {'problem' if count == 1 else 'problems'} with what was sent.")
        self.problems = dict(problems)

    @classmethod
    def from_validation(cls, error: ValidationError, known: Iterable[str] = ()) -> InvalidInput:
        """Turn pydantic's error into problems; `known` field names serve as suggestions."""
        return cls(
            {
                _path(item["loc"]): describe(item, known if len(item["loc"]) == 1 else ())
                for item in error.errors()
            }
        )


class MessageTooLarge(InvalidInput):
    """A message, or a batch, holds more than this server takes.

    size, limit: bytes. field: what it is mostly, "attachments" or "substitutions". subject: whose
    size it is.
    """

    def __init__(
        self,
        size: int,
        limit: int,
        field: str = "attachments",
        subject: str = "The message has",
    ) -> None:
        filled_in = " with its substitutions" if field == "substitutions" else ""
        super().__init__(
            {field: f"{subject} {size:,} bytes{filled_in}, and {limit:,} are allowed."}
        )


class UnknownDomain(EmailServicesError):
    """This server has no such email domain."""

    def __init__(self, email_domain: str) -> None:
        super().__init__(f"There is no email domain '{email_domain}' here.")


class UnknownService(EmailServicesError):
    """The email domain has no such service."""

    def __init__(self, email_domain: str, service: str) -> None:
        super().__init__(f"The email domain '{email_domain}' has no service '{service}'.")


class KeyRefused(EmailServicesError):
    """The key is missing, wrong, or opens something else."""


class TooManyWrongKeys(EmailServicesError):
    """One address has shown more wrong keys than a person mistypes."""

    retry_after = 60

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many wrong keys came from your address: wait before the next.")
        self.retry_after = retry_after


class UnknownMessage(EmailServicesError):
    """The log has no such message of this email domain."""

    def __init__(self, message_id: str) -> None:
        super().__init__(f"There is no message '{message_id}' in the log of this email domain.")


class KeyInProgress(EmailServicesError):
    """A request with the same Idempotency-Key has not been answered yet."""

    retry_after = 1


class KeyReused(EmailServicesError):
    """The Idempotency-Key was used for another request."""


class StoreUnavailable(EmailServicesError):
    """The database behind $DATABASE_URL did not answer, or is locked."""

    retry_after = 5


class SearchTooSlow(EmailServicesError):
    """A look at the log took too long, or too many others were looking at it."""

    retry_after = 5

    def __init__(self) -> None:
        super().__init__(
            "The search in the log took too long: narrow it with since and until, or try again."
        )


class ProviderError(Exception):
    """One attempt at one service did not end in acceptance.

    reason: one sentence for the caller; it never holds a key.
    summary: the same for logs and listings, where it may hold nothing of the message either.
    retry_after: seconds after which the provider wants to be tried again, if it said so.
    """

    outcome: ClassVar[str] = NOT_SENT
    blames_service: bool = True
    """Whether the fault counts against the service's health."""

    def __init__(
        self, reason: str, retry_after: float | None = None, summary: str | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.summary = reason if summary is None else summary
        self.retry_after = retry_after
        self.waited: float | None = None
        """Seconds that the service was waited for, where our time was over before it had done
        anything. Neither our line's time nor anybody else's is in it."""
        self.simulated = False
        """Whether a drill raised it."""


class MessageRejected(ProviderError):
    """The provider refuses this message (400, 413, 422), or cannot carry it."""

    blames_service = False


class CannotCarry(MessageRejected):
    """The provider has no way to express something in this message: it is not asked."""


class AccountRefused(ProviderError):
    """Key, quota or settings of the account (401, 403, 404): an operator has to act."""


class RateLimited(ProviderError):
    """Too many requests (429)."""


class ServiceUnavailable(ProviderError):
    """The provider failed (3xx, its own 5xx) or was never reached (DNS, TCP, TLS)."""


class OutcomeUnknown(ProviderError):
    """The request was written and no trustworthy answer came back, or a gateway's (502, 504)."""

    outcome = UNKNOWN


def describe(item: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """One sentence for one of pydantic's errors. It never repeats the value that was given."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "Required."
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(item["loc"][-1]), list(known), n=1)
        return f"Unknown field. Did you mean '{close[0]}'?" if close else "Unknown field."
    if kind in ("model_type", "dict_type"):
        return "It should be an object."
    if kind == "value_error":
        return str(context["error"])
    sentence = str(item["msg"]).replace("Input should", "It should", 1)
    return sentence if sentence.endswith((".", "?")) else sentence + "."


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
