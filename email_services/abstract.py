"""What a provider is: `AbstractEmailService`."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from email_services.capabilities import Capabilities
from email_services.exceptions import CannotCarry, ProviderError
from email_services.message import EmailMessage
from email_services.transport import upload_seconds

MAX_TIMEOUT_SECONDS: Final = 110
"""No wait may be longer than gunicorn grants a worker to finish (gunicorn.conf.py)."""

MIN_BODY: Final = 4
"""Characters of a body that is worth hiding: "e" is in everything."""

MAX_TEXT: Final = 4000
"""Characters of a provider's words that are looked at."""

Seconds = Annotated[int | float, Field(gt=0, le=MAX_TIMEOUT_SECONDS)]


def _header_safe(key: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value()):
        raise ValueError("It should be printable ASCII without spaces, and not empty.")
    return key


Key = Annotated[SecretStr, AfterValidator(_header_safe)]
"""A key goes into an HTTP header, so it cannot hold a space or a line break."""


Cap = Annotated[int, Field(ge=1, le=1_000_000_000)] | None


class ServiceSettings(BaseModel):
    """What config.json may say of any service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority_value: int | float = Field(
        allow_inf_nan=False, description="A higher value is tried first; equals share the load."
    )
    weight: int | float = Field(
        1, ge=0.001, le=1000, description="Its part of the load among equals: 3 is three to one."
    )
    timeout_seconds: Seconds = Field(
        10, description="Seconds this service may take for one message, without its upload."
    )
    max_per_second: Cap = Field(None, description="Messages it is handed in any second.")
    max_per_day: Cap = Field(None, description="Messages it is handed in a day of UTC.")
    max_at_once: Cap = Field(None, description="Calls to it that are under way at once.")


@dataclass(frozen=True)
class Acceptance:
    """A message that a provider took.

    message_id: the provider's id of it, or None where it gave none: it is accepted either way.
    refused: why it did not take some of the recipients, by their `Address.key`; never all.
    """

    message_id: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """What a provider says of an account, asked without sending anything.

    account: whether it takes the key or the login. domain: whether it lets the email domain send.
    None where it does not tell. note: a sentence about that, or "".
    dkim: the selectors under which the domain's DKIM keys should be in DNS, where it says so.
    """

    account: bool | None = None
    domain: bool | None = None
    note: str = ""
    dkim: tuple[str, ...] = ()


class AbstractEmailService(ABC):
    """One account at one provider, for one email domain.

    A subclass is found by its module: `email_services/providers/NAME.py` holds the one class for
    `"NAME"` in config.json. Instances are shared by the threads of a worker.

    name: the service's name in lower case. email_domain: in ASCII and lower case.
    """

    Settings: ClassVar[type[ServiceSettings]] = ServiceSettings
    """What config.json may say of a service of this kind."""

    provider: ClassVar[str]
    """The provider's name in config.json, the one of its module."""

    capabilities: ClassVar[Capabilities] = Capabilities()
    """What it can carry; a message that holds more is not taken to it."""

    reserved_headers: ClassVar[tuple[str, ...]] = ()
    """Headers by which it takes orders, in lower case; one that ends with "-" is a beginning.

    No message may hold one, whoever carries it. It is read from the source: keep it a literal.
    """

    max_batch: ClassVar[int] = 1
    """How many messages it takes in one call."""
    keeps_messages: ClassVar[bool] = False
    """Whether what it takes stays on this server, where `kept_message` finds it."""

    substitutes: ClassVar[bool] = False
    """Whether a batch gives it the values for each {{name}}, instead of finished texts."""

    spf_names: ClassVar[tuple[str, ...]] = ()
    """What an SPF record includes to name it, any of these; () where that is not known."""

    dkim_selectors: ClassVar[tuple[str, ...]] = ()
    """Where it has domains publish their DKIM keys, any of these; () where each has its own."""

    def __init__(self, name: str, email_domain: str, settings: ServiceSettings) -> None:
        self.name = name
        self.email_domain = email_domain
        self.settings = settings
        self.secrets = _secrets_in(settings)
        """What config.json says of it that nobody else may know, by its name there."""

    @property
    def priority_value(self) -> int | float:
        """A higher value is tried first."""
        return self.settings.priority_value

    @property
    def depends_on(self) -> str:
        """Whose outage it shares with every other service that says the same."""
        return self.provider

    def look_at_account(self, timeout: float) -> Standing:  # noqa: ARG002 - for subclasses
        """What the provider says of the account and the email domain; sends nothing.

        Raises a ProviderError where it refuses the account, or does not answer. By default nothing
        is known.
        """
        return Standing()

    def unencrypted(self) -> str:
        """What it would send over a network for everybody to read, or ""."""
        return ""

    def check(self, message: EmailMessage) -> None:
        """Raise CannotCarry if this provider cannot carry `message`. Sends nothing."""
        lacking = [*self.capabilities.lacking(message, time.time()), *self.lacking(message)]
        if lacking:
            raise CannotCarry(" ".join(lacking))

    def lacking(self, message: EmailMessage) -> Iterable[str]:  # noqa: ARG002 - for subclasses
        """A sentence for each thing in `message` that only this provider cannot carry."""
        return ()

    def batch_key(self, message: EmailMessage) -> Hashable | None:  # noqa: ARG002 - for subclasses
        """Messages with equal keys can share a call; None for one that must have its own."""
        return None

    def seconds_for(self, messages: Sequence[EmailMessage]) -> float:
        """Seconds that one call with `messages` may take: the more, the more is to be uploaded."""
        uploaded = messages[:1] if self.substitutes else messages  # which share one content
        size = sum(message.encoded_size for message in uploaded)
        return self.settings.timeout_seconds + upload_seconds(size)

    @abstractmethod
    def send(self, message: EmailMessage, timeout: float) -> Acceptance:
        """Hand `message`, which `check` let pass, to the provider within `timeout` seconds.

        Raises a ProviderError where it is not accepted, or may not be.
        """

    def send_batch(
        self, messages: Sequence[EmailMessage], timeout: float
    ) -> list[Acceptance | ProviderError]:
        """Hand several messages, whose `batch_key` is the same, to the provider in one call.

        Returns what became of each, in their order; a fault of the whole call is everyone's.
        """
        raise NotImplementedError(f"{self.provider} takes one message at a time.")

    def kept_message(self, message_id: str) -> bytes | None:  # noqa: ARG002 - for subclasses
        """The message with this id of the provider's, as RFC 5322 describes it, if it is here.

        None where the provider keeps it elsewhere, or it is gone or cannot be read. Any text may
        be asked for.
        """
        return None

    def is_the_same(self, other: AbstractEmailService | None) -> bool:
        """Whether `other` is at the same account with the same settings."""
        return (
            other is not None
            and type(other) is type(self)
            and (other.name, other.email_domain) == (self.name, self.email_domain)
            and other.settings == self.settings
        )

    def secret_texts(self) -> tuple[str, ...]:
        """What no text may hold: the secrets, in every form in which they are sent."""
        return tuple(self.secrets.values())

    def redacted(self, text: str, messages: Sequence[EmailMessage]) -> str:
        """Shorten `text`, and take out keys and bodies if they were echoed."""
        for secret in self.secret_texts():
            text = text.replace(secret, "[removed]")
        text = text[:MAX_TEXT]
        # Once, whatever the number of messages, and longest first: one may be in another.
        bodies = {body for m in messages for body in (m.raw_text_body, m.html_body)}
        echoed = [body for body in bodies if len(body) >= MIN_BODY and body in text]
        if echoed:
            pattern = "|".join(map(re.escape, sorted(echoed, key=len, reverse=True)))
            text = re.sub(pattern, "[removed]", text)
        return (storable(" ".join(text.split())) or "")[:300]


def _secrets_in(settings: BaseModel) -> dict[str, str]:
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {k: v.get_secret_value() for k, v in values.items() if isinstance(v, SecretStr)}


def storable(text: str | None) -> str | None:
    """A provider's text without what no database takes: NUL and half surrogate pairs."""
    return text and re.sub("[\x00\ud800-\udfff]", "\ufffd", text)
