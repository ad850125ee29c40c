"""What a provider is: `AbstractEmailService`, and `HTTPEmailService` for an HTTP API."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from email.utils import parsedate_to_datetime
from typing import Annotated, ClassVar, Final

import requests
from pydantic import AfterValidator, AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr

from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)
from email_services.message import EmailMessage
from email_services.transport import Answer, Transport

USER_AGENT: Final = "mailpool/0.1"
MAX_TIMEOUT_SECONDS: Final = 110
"""No wait may be longer than gunicorn grants a worker to finish (gunicorn.conf.py)."""

Seconds = Annotated[int | float, Field(gt=0, le=MAX_TIMEOUT_SECONDS)]


def _header_safe(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
        raise ValueError("It should be printable ASCII without spaces, and not empty.")
    return key


Key = Annotated[SecretStr, AfterValidator(_header_safe)]
"""A key goes into an HTTP header, so it cannot hold a space or a line break."""


def _plain_url(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("It should hold no user, password, query or fragment.")
    return url


class ServiceSettings(BaseModel):
    """What config.json may say of any service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority_value: int | float = Field(
        allow_inf_nan=False, description="A higher value is tried first; equals share the load."
    )
    timeout_seconds: Seconds = Field(
        10, description="Seconds this service may take for one message, all together."
    )


class AbstractEmailService(ABC):
    """One account at one provider, for one email domain.

    A subclass is found by its module: `email_services/providers/NAME.py` holds the one class for
    `"NAME"` in config.json. Instances are shared by the threads of a worker.

    name: the service's name in lower case. email_domain: in ASCII and lower case.
    """

    Settings: ClassVar[type[ServiceSettings]] = ServiceSettings
    """What config.json may say of a service of this kind."""

    def __init__(self, name: str, email_domain: str, settings: ServiceSettings) -> None:
        self.name = name
        self.email_domain = email_domain
        self.settings = settings

    @property
    def provider(self) -> str:
        """The provider's name: the one of its module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def priority_value(self) -> int | float:
        """A higher value is tried first."""
        return self.settings.priority_value

    def check(self, message: EmailMessage) -> None:  # noqa: B027 - most carry everything
        """Raise MessageRejected if this provider cannot carry `message`. Sends nothing."""

    @abstractmethod
    def send(self, message: EmailMessage, timeout: float) -> str | None:
        """Hand `message` to the provider within `timeout` seconds.

        Returns the provider's id of it, or None where the provider gave none: the message is
        accepted either way. Raises a ProviderError in every other case.
        """


class HTTPSettings(ServiceSettings):
    """What config.json may say of a service behind an HTTP API."""

    api_key: Key = Field(description="The account's key.")
    base_url: Annotated[AnyHttpUrl, AfterValidator(_plain_url)] | None = Field(
        None, description="Where the API is, if not at the provider's own address."
    )


Rule = tuple[int, str, type[ProviderError]]
"""A status, a pattern searched in the provider's own error text, and what the two mean together."""


class HTTPEmailService(AbstractEmailService):
    """A provider behind an HTTP API.

    A subclass says four things: where the API is (`default_base_url`), the request for a message
    (`build_request`), whether a 2xx is the provider's own and where the id is (`read_acceptance`),
    and which answers mean something special there (`rules`, `error_text`).
    """

    Settings = HTTPSettings
    default_base_url: ClassVar[str]
    rules: ClassVar[tuple[Rule, ...]] = ()
    """Looked through in order, before the general ones."""

    general_rules: Final[tuple[Rule, ...]] = (
        (400, "", MessageRejected),
        (401, "", AccountRefused),
        (402, "", AccountRefused),
        (403, "", AccountRefused),
        (404, "", AccountRefused),
        (405, "", AccountRefused),
        (413, "", MessageRejected),
        (415, "", MessageRejected),
        (422, "", MessageRejected),
        (429, "", RateLimited),
    )

    settings: HTTPSettings

    def __init__(self, name: str, email_domain: str, settings: HTTPSettings) -> None:
        super().__init__(name, email_domain, settings)
        self.base_url = str(settings.base_url or self.default_base_url).rstrip("/")
        self.api_key = settings.api_key.get_secret_value()
        self.transport = Transport(self.base_url)

    @abstractmethod
    def build_request(self, message: EmailMessage) -> requests.Request:
        """The provider's request for `message`; pure.

        Raises MessageRejected where the provider cannot express something in the message.
        """

    @abstractmethod
    def read_acceptance(self, answer: Answer) -> str | None:
        """The provider's id of the message, from its own 2xx, or None where it holds none.

        Raises OutcomeUnknown (`not_the_providers`) where somebody else must have answered.
        """

    def error_text(self, answer: Answer) -> str:  # noqa: ARG002 - for subclasses
        """The provider's own words for what is wrong, or ""."""
        return ""

    def secrets(self) -> tuple[str, ...]:
        """What no text may hold: the key, in every form in which it is sent."""
        return (self.api_key,)

    def retry_after(self, answer: Answer) -> float | None:
        """Seconds after which the provider wants to be tried again, if it says so."""
        return parse_retry_after(answer.headers.get("Retry-After", ""), time.time())

    def check(self, message: EmailMessage) -> None:
        """See AbstractEmailService."""
        self.build_request(message)

    def send(self, message: EmailMessage, timeout: float) -> str | None:
        """See AbstractEmailService."""
        answer = self.call(message, timeout)
        if 200 <= answer.status < 300:  # noqa: PLR2004 - the meaning of 2xx
            message_id = self.read_acceptance(answer)
            return message_id and storable(message_id)
        if answer.status < 200:  # noqa: PLR2004 - interim: the real answer was still to come
            raise not_the_providers(answer)
        raise self._refusal(answer, message)

    def call(self, message: EmailMessage, timeout: float) -> Answer:
        """Make the request and return whatever was answered."""
        return self.transport.exchange(self.build_request(message), timeout)

    def _refusal(self, answer: Answer, message: EmailMessage) -> ProviderError:
        text = self.error_text(answer)
        fault = next(
            (
                fault
                for status, pattern, fault in (*self.rules, *self.general_rules)
                if status == answer.status and re.search(pattern, text, re.IGNORECASE)
            ),
            ServiceUnavailable,
        )
        words = self._redacted(text, message)
        reason = f"HTTP {answer.status}: {words}" if words else f"HTTP {answer.status}."
        # What is said of account and rate is for operators; the rest may quote the message.
        plain = f"HTTP {answer.status}."
        summary = reason if issubclass(fault, AccountRefused | RateLimited) else plain
        return fault(reason, self.retry_after(answer), summary)

    def _redacted(self, text: str, message: EmailMessage) -> str:
        """Shorten `text`, and take out what must not be in a log if it was echoed."""
        for secret in (*self.secrets(), message.raw_text_body, message.html_body):
            if secret:
                text = text.replace(secret, "[removed]")
        return storable(" ".join(text.split()))[:300]


def storable(text: str) -> str:
    """A provider's text without what no database takes: NUL and half surrogate pairs."""
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def not_the_providers(answer: Answer) -> OutcomeUnknown:
    """The error for a 2xx that somebody else than the provider must have given."""
    return OutcomeUnknown(f"HTTP {answer.status}, but the answer is not the provider's.")


def parse_retry_after(value: str, now: float) -> float | None:
    """Seconds from a Retry-After header, in seconds or as an HTTP date; None if it is neither.

    now: seconds since the epoch.
    """
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
