"""Every error this package raises on purpose.

    EmailServicesError          what has an answer for the caller
    ├── InvalidInput            invalid: the caller's fault, with a sentence for every field
    │   └── MessageTooLarge     too_large: more bytes than this server takes
    ├── UnknownDomain           unknown_domain: no such email domain
    ├── UnknownService          unknown_service: no such service in the domain
    ├── UnknownMessage          unknown_message: no such message in the log
    ├── UnknownStream           unknown_stream: no such stream in the domain
    ├── UnknownVersion          unknown_version: no such version of the configuration
    ├── KeyRefused              key_wrong: the key that was shown does not open this
    │   └── KeyMissing          key_missing: none was shown
    ├── TooManyWrongKeys        too_many_wrong_keys: no more from this address are looked at
    ├── KeyInProgress           idempotency_key_in_progress: its request is not answered yet
    ├── KeyReused               idempotency_key_reused: it stands for another request
    ├── UploadsOff              uploads_off: this server takes no configuration that is uploaded
    ├── NotWaiting              not_waiting: the message is not in the queue any more
    ├── NoCopy                  no_copy: the message itself is not here
    ├── UnderWay                under_way: the message may still be sent without being sent again
    ├── StoreUnavailable        store_unavailable: the shared state cannot be read or written
    └── SearchTooSlow           search_too_slow: what is wanted of the log takes too long to find

    ProviderError               the one family that the pool catches and fails over on
    ├── MessageRejected     message_refused: the message itself; other services may take it
    │   └── CannotCarry     cannot_carry: the provider has no way to express something in it
    ├── AccountRefused      account_refused: quota or settings of the account there
    │   └── LoginRefused    key_refused: the key, or the login, at the provider
    ├── RateLimited         rate_limited: too many requests at the provider
    ├── ServiceUnavailable  unavailable: the provider is down, or cannot be reached
    └── OutcomeUnknown      unknown_outcome: it may or may not have accepted the message

    ConfigError (SystemExit)      config.json is wrong: the start stops with one line
    UnusableProvider (ImportError)  a provider cannot be used as it is; ends as ConfigError
    └── MissingPackage            its own package is not installed

Beside each stands its `code`, a word for programs that stays as it is: answers have those of
EmailServicesError, attempts those of ProviderError. An attempt that was none, since the service was
passed by, is no error, and has a `Passing` word:

    resting         it rests after a fault, so that no message waits for it
    being_probed    another message is finding out whether it works again
    no_room         too many messages are with it already
    at_cap          it has been handed as much as the configuration lets it have
    too_late        too little of the deadline was left

Any other exception is a bug of ours: it is never caught to fail over.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, NamedTuple

from pydantic import ValidationError

SENT: Final = "sent"
NOT_SENT: Final = "not sent"
UNKNOWN: Final = "unknown"

Passing = Literal["resting", "being_probed", "no_room", "at_cap", "too_late"]
"""Why a service was not asked, for programs."""


class ConfigError(SystemExit):
    """The configuration cannot be used.

    It derives from SystemExit so that a start that nobody guards ends with this one line
    on stderr and exit status 1, not with a traceback.
    problems: its sentences by JSON path, where they are about a place.
    """

    def __init__(self, line: str, problems: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(line)
        self.problems = problems


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

    code: the same for programs. retry_after: seconds after which the same may fare better, where
    that can be said.
    """

    code: ClassVar[str]
    retry_after: int | None = None


class Names(NamedTuple):
    """What the fields of an object are called: here, and elsewhere (in lower case)."""

    here: Collection[str] = ()
    elsewhere: Mapping[str, str] = MappingProxyType({})

    def meant_by(self, name: str) -> str | None:
        """The field that somebody calls `name`, if that can be told."""
        meant = self.elsewhere.get(name.lower())
        if meant in self.here:
            return meant
        return next(iter(difflib.get_close_matches(name, list(self.here), n=1)), None)


class InvalidInput(EmailServicesError):
    """What the caller sent is not acceptable.

    problems: a sentence for each field at fault, keyed by its dotted path ("to_recipients.1").
    """

    code = "invalid"

    def __init__(self, problems: Mapping[str, str]) -> None:
        count = len(problems)
        super().__init__(f"{count} {'problem' if count == 1 else 'problems'} with what was sent.")
        self.problems = dict(problems)

    @classmethod
    def from_validation(cls, error: ValidationError, names: Mapping[str, Names]) -> InvalidInput:
        """Turn pydantic's error into problems.

        names: of the fields of the whole, by "", and of what is in it, by its path without numbers.
        """
        problems = {}
        for item in error.errors():
            place = ".".join(part for part in item["loc"][:-1] if isinstance(part, str))
            problems[_path(item["loc"])] = describe(item, names.get(place, Names()))
        return cls(problems)


class MessageTooLarge(InvalidInput):
    """A message, or a batch, holds more than this server takes.

    size, limit: bytes. field: what it is mostly, "attachments" or "substitutions". subject: whose
    size it is.
    """

    code = "too_large"

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

    code = "unknown_domain"

    def __init__(self, email_domain: str) -> None:
        super().__init__(f"There is no email domain '{email_domain}' here.")


class UnknownService(EmailServicesError):
    """The email domain has no such service."""

    code = "unknown_service"

    def __init__(self, email_domain: str, service: str) -> None:
        super().__init__(f"The email domain '{email_domain}' has no service '{service}'.")


class UnknownStream(EmailServicesError):
    """The email domain has no such stream."""

    code = "unknown_stream"

    def __init__(self, email_domain: str, stream: str) -> None:
        super().__init__(f"The email domain '{email_domain}' has no stream '{stream}'.")


class UnknownVersion(EmailServicesError):
    """No configuration of that number was uploaded."""

    code = "unknown_version"

    def __init__(self, version: str) -> None:
        super().__init__(f"There is no version '{version}' of the configuration.")


class UploadsOff(EmailServicesError):
    """This server takes no configuration that is uploaded."""

    code = "uploads_off"

    def __init__(self) -> None:
        super().__init__(
            'This server takes no upload: its file would have to say "config_upload": true.'
        )


class KeyRefused(EmailServicesError):
    """The key that was shown is wrong, or opens something else."""

    code = "key_wrong"


class KeyMissing(KeyRefused):
    """No key was shown, and one is needed."""

    code = "key_missing"


class TooManyWrongKeys(EmailServicesError):
    """One address has shown more wrong keys than a person mistypes."""

    code = "too_many_wrong_keys"
    retry_after = 60

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many wrong keys came from your address: wait before the next.")
        self.retry_after = retry_after


class UnknownMessage(EmailServicesError):
    """The log has no such message of this email domain."""

    code = "unknown_message"

    def __init__(self, message_id: str, retry_after: int | None = None) -> None:
        super().__init__(f"There is no message '{message_id}' in the log of this email domain.")
        self.retry_after = retry_after


class NotWaiting(EmailServicesError):
    """The message does not wait in the queue, so that nothing can be done with it there."""

    code = "not_waiting"

    def __init__(self, message_id: str) -> None:
        super().__init__(
            f"The message '{message_id}' does not wait: it is being sent, or what became of it is"
            " at its address."
        )


class NoCopy(EmailServicesError):
    """The message is in the log, and what was in it is not here, or cannot be read."""

    code = "no_copy"


class UnderWay(EmailServicesError):
    """It is not known yet what becomes of the message: it is no time to send it again."""

    code = "under_way"

    def __init__(self, message_id: str) -> None:
        super().__init__(
            f"The message '{message_id}' is still on its way: wait for what becomes of it, or "
            "cancel it while it waits."
        )


class KeyInProgress(EmailServicesError):
    """A request with the same Idempotency-Key has not been answered yet."""

    code = "idempotency_key_in_progress"
    retry_after = 1


class KeyReused(EmailServicesError):
    """The Idempotency-Key was used for another request."""

    code = "idempotency_key_reused"


class StoreUnavailable(EmailServicesError):
    """The database behind $DATABASE_URL did not answer, or is locked."""

    code = "store_unavailable"
    retry_after = 5


class SearchTooSlow(EmailServicesError):
    """A look at the log took too long, or too many others were looking at it."""

    code = "search_too_slow"
    retry_after = 5

    def __init__(self) -> None:
        super().__init__(
            "The search in the log took too long: narrow it with since and until, or try again."
        )


class ProviderError(Exception):
    """One attempt at one service did not end in acceptance.

    code: its class, for programs; words: for people. reason: one sentence for the caller; it never
    holds a key.
    summary: the same for logs and listings, where it may hold nothing of the message either.
    retry_after: seconds after which the provider wants to be tried again, if it said so.
    """

    code: ClassVar[str]
    words: ClassVar[str]
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

    @property
    def cause(self) -> str:
        """The summary in a few words that name its class: "key refused (HTTP 401)"."""
        said = self.summary.removeprefix("The ").removesuffix(".")
        if said.startswith(("HTTP ", "SMTP ")):
            return f"{self.words} ({said})"
        return said if said[1:2].isupper() else said[:1].lower() + said[1:]  # "TLS" stays


class MessageRejected(ProviderError):
    """The provider refuses this message (400, 413, 422), or cannot carry it."""

    code = "message_refused"
    words = "message refused"
    blames_service = False


class CannotCarry(MessageRejected):
    """The provider has no way to express something in this message: it is not asked."""

    code = "cannot_carry"
    words = "cannot carry it"


class AccountRefused(ProviderError):
    """Quota or settings of the account (402, 403, 404): an operator has to act."""

    code = "account_refused"
    words = "account refused"


class LoginRefused(AccountRefused):
    """The provider does not take the key (401), or the user name and password."""

    code = "key_refused"
    words = "key refused"


class RateLimited(ProviderError):
    """Too many requests (429)."""

    code = "rate_limited"
    words = "rate limited"


class ServiceUnavailable(ProviderError):
    """The provider failed (3xx, its own 5xx) or was never reached (DNS, TCP, TLS)."""

    code = "unavailable"
    words = "unavailable"


class OutcomeUnknown(ProviderError):
    """The request was written and no trustworthy answer came back, or a gateway's (502, 504)."""

    code = "unknown_outcome"
    words = "outcome unknown"
    outcome = UNKNOWN


A_TIME: Final = "It should be a time in ISO 8601 with its zone: 2026-11-24T12:00:00Z."

SENTENCES: Final[Mapping[str, str]] = {
    "missing": "Required.",
    **dict.fromkeys(("model_type", "dict_type"), "It should be an object."),
    "list_type": "It should be a list.",
    **dict.fromkeys(("string_type", "string_unicode", "path_type"), "It should be a string."),
    **dict.fromkeys(
        ("url_type", "url_parsing"), "It should be a URL like https://api.example.com."
    ),
    **dict.fromkeys(("bool_type", "bool_parsing"), "It should be true or false."),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "It should be a whole number."),
    **dict.fromkeys(("float_type", "float_parsing"), "It should be a number."),
    "finite_number": "It should be a finite number.",
    "greater_than": "It should be more than {gt}.",
    "greater_than_equal": "It should be at least {ge}.",
    "less_than_equal": "It should be at most {le}.",
    "too_short": "It should hold at least {min_length}.",
    "too_long": "It should hold at most {max_length}.",
    "literal_error": "It should be {expected}.",
    "string_pattern_mismatch": "It should match {pattern}.",
    **dict.fromkeys(("datetime_type", "datetime_parsing", "datetime_from_date_parsing"), A_TIME),
    "timezone_aware": A_TIME,
}
"""Our words for pydantic's errors, by type; tests try for all that our models can raise."""


def describe(item: Mapping[str, Any], names: Names) -> str:
    """One sentence for one of pydantic's errors. It never repeats the value that was given.

    names: of the fields of the object that it is in, as suggestions.
    """
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        meant = names.meant_by(str(item["loc"][-1]))
        return f"Unknown field. Did you mean '{meant}'?" if meant else "Unknown field."
    if kind == "value_error":
        return str(context["error"])
    return SENTENCES.get(kind, "It is not what it should be.").format(**context)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
