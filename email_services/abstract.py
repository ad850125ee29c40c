"""What a provider is: `AbstractEmailService`, and `HTTPEmailService` for an HTTP API."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Final

import requests
from pydantic import AfterValidator, AnyHttpUrl, BaseModel, ConfigDict, Field, SecretStr

from email_services.capabilities import Capabilities
from email_services.exceptions import (
    AccountRefused,
    CannotCarry,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)
from email_services.message import EmailMessage
from email_services.transport import Answer, Transport, is_loopback, upload_seconds

USER_AGENT: Final = "mailpool/0.1"
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
        10, description="Seconds this service may take for one message, without its upload."
    )


@dataclass(frozen=True)
class Acceptance:
    """A message that a provider took.

    message_id: the provider's id of it, or None where it gave none: it is accepted either way.
    refused: why it did not take some of the recipients, by their `Address.key`; never all.
    """

    message_id: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


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


class HTTPSettings(ServiceSettings):
    """What config.json may say of a service behind an HTTP API."""

    base_url: Annotated[AnyHttpUrl, AfterValidator(_plain_url)] | None = Field(
        None, description="Where the API is, if not at the provider's own address."
    )


class APIKeySettings(HTTPSettings):
    """What config.json may say of a service whose API wants one key."""

    api_key: Key = Field(description="The account's key.")


Rule = tuple[int, str, type[ProviderError]]
"""A status, a pattern searched in the provider's own error text, and what the two mean together."""

GATEWAYS: Final = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT, *range(520, 525))
"""Statuses by which a gateway speaks of the provider behind it, to which it had passed the request
(RFC 9110 15.6.3 and 15.6.5; 520 to 524 are Cloudflare's, of an origin that fell silent)."""


class HTTPEmailService(AbstractEmailService):
    """A provider behind an HTTP API.

    A subclass says five things: where the API is (`default_base_url`), what it cannot carry
    (`capabilities`), the request for a message (`build_request`), whether a 2xx is the provider's
    own and where the id is (`read_acceptance`), and which answers mean something special there
    (`rules`, `error_text`).

    Whose word a 5xx is decides what it means. 502, 504 and 520 to 524 are a gateway's: the provider
    may have accepted the message. 500 and 503 are the provider's: each that documents them says
    that it failed and is to be tried again, and none says that a message may have gone out. A 503
    that is a page or a text, not the provider's own error, is taken for a gateway's too: Varnish,
    Fastly and Envoy say so of a server that fell silent with the request in its hands. An empty
    one, and JSON of any shape, is taken for the provider's. So is any 500, since gateways have
    other words for what is behind them.
    """

    Settings: ClassVar[type[ServiceSettings]] = APIKeySettings
    default_base_url: ClassVar[str]
    """Where its API is; a setting may stand in it, as "https://{settings.region}.acme.example"."""

    refuses_in_2xx: ClassVar[bool] = False
    """Whether its 2xx may say that it refused the message, or some recipients: one that was cut
    before it said so or not is then unknown. Elsewhere its own 2xx is an acceptance, cut or not."""

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Looked through in order, before the general ones."""

    general_rules: Final[tuple[Rule, ...]] = (
        (400, "", MessageRejected),
        (401, "", LoginRefused),
        (402, "", AccountRefused),
        (403, "", AccountRefused),
        (404, "", AccountRefused),
        (405, "", AccountRefused),
        (413, "", MessageRejected),
        (415, "", MessageRejected),
        (422, "", MessageRejected),
        (429, "", RateLimited),
        *((status, "", OutcomeUnknown) for status in GATEWAYS),
    )

    settings: HTTPSettings

    def __init__(self, name: str, email_domain: str, settings: HTTPSettings) -> None:
        super().__init__(name, email_domain, settings)
        default = self.default_base_url.format(settings=settings)
        self.base_url = str(settings.base_url or default).rstrip("/")
        self.transport = Transport(self.base_url, settings.timeout_seconds)

    def unencrypted(self) -> str:
        """See AbstractEmailService."""
        url = self.settings.base_url
        is_open = url is not None and url.scheme == "http" and not is_loopback(url.host or "")
        return "its key" if is_open else ""

    @property
    def api_key(self) -> str:
        """The key that most APIs want."""
        return self.secrets["api_key"]

    @abstractmethod
    def build_request(self, message: EmailMessage) -> requests.Request:
        """The provider's request for `message`; pure.

        Raises MessageRejected where the provider cannot express something in the message.
        """

    @abstractmethod
    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:
        """What the provider took, from its own 2xx.

        Raises OutcomeUnknown (`unread`, `not_the_providers`) where it does not say that.
        """

    def unread(self, answer: Answer) -> Acceptance:
        """What a 2xx means in which nothing of what the provider says was found.

        Accepted where it was cut before it said anything, and could have said nothing else; raises
        OutcomeUnknown where it could, or where it says what somebody else must have said.
        """
        if answer.complete or answer.json or not answer.claims_json:
            raise not_the_providers(answer)
        if self.refuses_in_2xx:
            raise was_cut(answer)
        return Acceptance()

    def build_batch(self, messages: Sequence[EmailMessage]) -> requests.Request:
        """The provider's request for several messages; pure. Only where `max_batch` is above 1."""
        raise NotImplementedError

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """What became of each of `messages`, in their order, from the provider's own 2xx."""
        raise NotImplementedError

    def error_text(self, answer: Answer) -> str:  # noqa: ARG002 - for subclasses
        """The provider's own words for what is wrong, or ""."""
        return ""

    def retry_after(self, answer: Answer) -> float | None:
        """Seconds after which the provider wants to be tried again, if it says so."""
        return parse_retry_after(answer.headers.get("Retry-After", ""), time.time())

    def send(self, message: EmailMessage, timeout: float) -> Acceptance:
        """See AbstractEmailService."""
        answer = self.exchange(self.build_request(message), timeout)
        self.refuse(answer, [message])
        return _storable(self.read_acceptance(answer, message))

    def send_batch(
        self, messages: Sequence[EmailMessage], timeout: float
    ) -> list[Acceptance | ProviderError]:
        """See AbstractEmailService."""
        try:
            answer = self.exchange(self.build_batch(messages), timeout)
            self.refuse(answer, messages)
            results = self.read_batch(answer, messages)
        except ProviderError as fault:
            return [fault] * len(messages)
        return [_storable(r) if isinstance(r, Acceptance) else r for r in results]

    def exchange(self, request: requests.Request, timeout: float) -> Answer:
        """Make the request and return whatever was answered."""
        return self.transport.exchange(request, timeout)

    def refuse(self, answer: Answer, messages: Sequence[EmailMessage]) -> None:
        """Raise the ProviderError that `answer` means, unless it is a success."""
        if 200 <= answer.status < 300:  # noqa: PLR2004 - the meaning of 2xx
            return
        raise self.fault(answer, self.error_text(answer), messages)

    def fault(self, answer: Answer, text: str, messages: Sequence[EmailMessage]) -> ProviderError:
        """The error that `text`, the provider's words in `answer`, means.

        messages: those it was about, whose bodies must not be repeated.
        """
        said = text[:MAX_TEXT]
        fault = next(
            (
                fault
                for status, pattern, fault in (*self.rules, *self.general_rules)
                if status == answer.status and re.search(pattern, said, re.IGNORECASE)
            ),
            OutcomeUnknown if _is_a_gateways(answer, said) else ServiceUnavailable,
        )
        words = self.redacted(text, messages)
        reason = f"HTTP {answer.status}: {words}" if words else f"HTTP {answer.status}."
        # What a provider says may quote the message, so that it is in no log and no listing.
        return fault(reason, self.retry_after(answer), f"HTTP {answer.status}.")


def shared_content(message: EmailMessage, reserved: str) -> Hashable | None:
    """The `batch_key` of providers that take one content for many recipients.

    None where the message has not exactly one, or holds `reserved`, by which the provider would
    know its own placeholders.
    """
    alone = len(message.recipients) == len(message.to_recipients) == 1
    values = (message.substitutions or {}).values()
    texts = (message.subject, message.raw_text_body, message.html_body, *values)
    return message.content_key() if alone and not any(reserved in t for t in texts) else None


def storable(text: str | None) -> str | None:
    """A provider's text without what no database takes: NUL and half surrogate pairs."""
    return text and re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def _storable(acceptance: Acceptance) -> Acceptance:
    return Acceptance(storable(acceptance.message_id), acceptance.refused)


def _is_a_gateways(answer: Answer, text: str) -> bool:
    """Whether a 503 is somebody else's words than the provider's, which `text` would hold."""
    is_written = answer.headers.get("Content-Type", "").lower().startswith("text/")
    unavailable = answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    return unavailable and is_written and bool(answer.body) and not text


def not_the_providers(answer: Answer) -> OutcomeUnknown:
    """The error for a 2xx that somebody else than the provider must have given."""
    return OutcomeUnknown(f"HTTP {answer.status}, but the answer is not the provider's.")


def each_of(answer: Answer, told: object, messages: Sequence[EmailMessage]) -> list[Any]:
    """What the list `told`, from `answer`, says of each message; None of those it was cut before.

    Raises OutcomeUnknown where it is no list, or has not one item for each message.
    """
    if not isinstance(told, list) or len(told) > len(messages):
        raise _not_of_each(answer)
    if answer.complete and len(told) < len(messages):
        raise _not_of_each(answer)
    return [*told, *[None] * (len(messages) - len(told))]


def _not_of_each(answer: Answer) -> OutcomeUnknown:
    return OutcomeUnknown(f"HTTP {answer.status}, without what became of each message.")


def was_cut(answer: Answer) -> OutcomeUnknown:
    """The error for a 2xx that was cut before it said what became of the message."""
    return OutcomeUnknown(f"HTTP {answer.status}, and what it says of the message was cut.")


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
