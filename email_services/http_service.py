"""What a provider behind an HTTP API is: `HTTPEmailService`, and what its subclasses write with."""

from __future__ import annotations

import base64
import re
import time
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import requests
from pydantic import AfterValidator, AnyHttpUrl, Field

from email_services import VERSION
from email_services.abstract import (
    MAX_TEXT,
    AbstractEmailService,
    Acceptance,
    Key,
    ServiceSettings,
    Standing,
    storable,
)
from email_services.addresses import Address, without_addresses
from email_services.exceptions import (
    AccountRefused,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)
from email_services.message import EmailMessage
from email_services.transport import Answer, Transport, is_loopback

USER_AGENT: Final = f"mailpool/{VERSION}"


def _plain_url(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.username or url.password or url.query or url.fragment:
        raise ValueError("It should hold no user, password, query or fragment.")
    try:
        requests.Request("GET", str(url)).prepare()
    except requests.RequestException:
        raise ValueError("Its host can be none.") from None
    return url


class HTTPSettings(ServiceSettings):
    """What config.json may say of a service behind an HTTP API."""

    base_url: Annotated[AnyHttpUrl, AfterValidator(_plain_url)] | None = Field(
        None, description="Where the API is, if not at the provider's own address."
    )


class APIKeySettings(HTTPSettings):
    """What config.json may say of a service whose API wants one key."""

    api_key: Key = Field(description="The account's key.")


class Complaint(NamedTuple):
    """What a provider says is wrong with a message, or with a call.

    text: its words, or "". codes: its own codes for it, as its reference lists them.
    """

    text: str = ""
    codes: tuple[str, ...] = ()


def complaint_of(errors: Any, *fields: str, code: str = "") -> Complaint:
    """What `errors`, an object or a list of them, say in `fields`, and in the field `code`."""
    told = objects_in(errors if isinstance(errors, list) else [errors])
    words = (str(error[field]) for error in told for field in fields if error.get(field))
    return Complaint(" ".join(words), tuple(str(error[code]) for error in told if code in error))


Codes = Mapping[int | str, type[ProviderError]]
"""What codes mean: an HTTP status is a number, a code of the provider's own a text."""

Words = tuple[int | str, str, type[ProviderError]]
"""A code that says too little, a pattern of the words that go with it, what the two mean."""

GATEWAYS: Final = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT, *range(520, 525))
"""Statuses by which a gateway speaks of the provider behind it, to which it had passed the request
(RFC 9110 15.6.3 and 15.6.5; 520 to 524 are Cloudflare's, of an origin that fell silent)."""

EVERYBODYS_CODES: Final[Codes] = {
    **dict.fromkeys((400, 413, 415, 422), MessageRejected),
    401: LoginRefused,
    **dict.fromkeys((402, 403, 404, 405), AccountRefused),
    429: RateLimited,
    **dict.fromkeys(GATEWAYS, OutcomeUnknown),
}
"""What a status means where the provider does not say otherwise; each other one is a failure of
the provider's own."""


class HTTPEmailService(AbstractEmailService):
    """A provider behind an HTTP API.

    A subclass says what is only its own: where the API is (`default_base_url`) and how it wants the
    key (`authentication`), what it cannot carry (`capabilities`, `lacking`), the request for a
    message (`build_request`), where the id is in the answer (`id_field`, or `read_acceptance`), how
    it says what is wrong (`complaint`), and which codes mean something special (`codes`, `words`).

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

    id_field: ClassVar[str] = ""
    """The field of its 2xx, a JSON object, that holds the id."""

    account_path: ClassVar[str] = ""
    """What is asked for to check the account: it costs nothing, sends nothing, and needs the key.
    {domain} is the email domain; a setting may stand in it, too."""

    refuses_in_2xx: ClassVar[bool] = False
    """Whether its 2xx may say that it refused the message, or some recipients: one that was cut
    before it said so or not is then unknown. Elsewhere its own 2xx is an acceptance, cut or not."""

    codes: ClassVar[Codes] = {}
    """The codes that mean something special there; its own go before the status they come with."""

    words: ClassVar[tuple[Words, ...]] = ()
    """Looked at first, in order, where a code alone does not tell. Addresses, hosts and URLs are
    taken out of the text before: no word of theirs decides."""

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

    def authentication(self) -> dict[str, str]:
        """The headers that show who asks; whatever follows the last space in them is secret."""
        return {"Authorization": f"Bearer {self.api_key}"}

    def secret_texts(self) -> tuple[str, ...]:
        """See AbstractEmailService."""
        sent = (value.rpartition(" ")[2] for value in self.authentication().values())
        return (*sent, *super().secret_texts())

    # What is asked.

    @abstractmethod
    def build_request(self, message: EmailMessage) -> requests.Request:
        """The provider's request for `message`; pure.

        Raises MessageRejected where the provider cannot express something in the message.
        """

    def build_batch(self, messages: Sequence[EmailMessage]) -> requests.Request:
        """The provider's request for several messages; pure. Only where `max_batch` is above 1."""
        raise NotImplementedError

    def post(
        self, path: str, headers: Mapping[str, str] | None = None, **content: Any
    ) -> requests.Request:
        """The request that posts `content` (json, data, files: as `requests` takes it) to `path`.

        headers: more of them, besides those that show who asks.
        """
        headers = {**self.authentication(), "User-Agent": USER_AGENT, **(headers or {})}
        return requests.Request("POST", self.base_url + path, headers=headers, **content)

    def get(self, path: str) -> requests.Request:
        """The request that asks for `path`."""
        headers = {**self.authentication(), "User-Agent": USER_AGENT}
        return requests.Request("GET", self.base_url + path, headers=headers)

    # What is answered, if it is a success.

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:  # noqa: ARG002
        """What the provider took, from its own 2xx: by default the message, if `id_field` is there.

        Raises OutcomeUnknown (`unread`) where it does not say that, and whatever else it says.
        """
        if self.id_field in answer.json_object:
            return Acceptance(id_from(answer.json_object[self.id_field]))
        return self.unread(answer)

    def unread(self, answer: Answer) -> Acceptance:
        """What a 2xx means in which nothing of what the provider says was found.

        Accepted where it was cut before it said anything, and could have said nothing else; raises
        OutcomeUnknown where it could, or where it says what somebody else must have said.
        """
        if answer.complete or answer.json or not answer.claims_json:
            raise not_the_providers(answer)
        if self.refuses_in_2xx:
            raise _was_cut(answer)
        return Acceptance()

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """What became of each of `messages`, in their order, from the provider's own 2xx.

        By default it takes all or none, and has one id for them.
        """
        return [self.read_acceptance(answer, message) for message in messages]

    def read_each(
        self, answer: Answer, told: object, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """A `read_batch` where `told`, in `answer`, is a list with an item for each message.

        Raises OutcomeUnknown where it is no list, or has not as many.
        """
        if not isinstance(told, list) or len(told) > len(messages):
            raise not_of_each(answer)
        if answer.complete and len(told) < len(messages):
            raise not_of_each(answer)
        items = [*told, *[None] * (len(messages) - len(told))]
        return [self._outcome(answer, *pair) for pair in zip(items, messages, strict=True)]

    def _outcome(
        self, answer: Answer, said: Any, message: EmailMessage
    ) -> Acceptance | ProviderError:
        try:
            return self.read_item(answer, said, message)
        except ProviderError as fault:
            return fault

    def read_item(self, answer: Answer, said: Any, message: EmailMessage) -> Acceptance:
        """What became of `message`, by the item of `read_each`; None if it was cut before.

        Raises what else it means.
        """
        raise NotImplementedError

    # What is answered, if it is none.

    def complaint(self, answer: Answer) -> Complaint:  # noqa: ARG002 - for subclasses
        """What the provider itself says is wrong; empty where the words are somebody else's."""
        return Complaint()

    def retry_after(self, answer: Answer) -> float | None:
        """Seconds after which the provider wants to be tried again, if it says so."""
        return parse_retry_after(answer.headers.get("Retry-After", ""), time.time())

    def refuse(self, answer: Answer, messages: Sequence[EmailMessage]) -> None:
        """Raise the ProviderError that `answer` means, unless it is a success."""
        if not 200 <= answer.status < 300:  # noqa: PLR2004 - the meaning of 2xx
            raise self.fault(answer, self.complaint(answer), messages)

    def fault(
        self, answer: Answer, complaint: Complaint, messages: Sequence[EmailMessage]
    ) -> ProviderError:
        """The error that `complaint`, which stands in `answer`, means.

        messages: those it is about, whose bodies must not be repeated.
        """
        words = self.redacted(complaint.text, messages)
        reason = f"HTTP {answer.status}: {words}" if words else f"HTTP {answer.status}."
        meaning = self._meaning(answer, complaint, messages)
        # What a provider says may quote the message, so that it is in no log and no listing.
        return meaning(reason, self.retry_after(answer), f"HTTP {answer.status}.")

    def _meaning(
        self, answer: Answer, complaint: Complaint, messages: Sequence[EmailMessage]
    ) -> type[ProviderError]:
        text = _without_recipients(complaint.text[:MAX_TEXT], messages) if self.words else ""
        codes = {**EVERYBODYS_CODES, **self.codes}
        for code in (*complaint.codes, answer.status):
            for of, pattern, meaning in self.words:
                if of == code and re.search(pattern, text, re.IGNORECASE):
                    return meaning
            if code in codes:
                return codes[code]
        return OutcomeUnknown if _is_a_gateways(answer, complaint.text) else ServiceUnavailable

    # What is said of the account.

    def read_standing(self, answer: Answer) -> Standing:
        """What the answer to `account_path` says: by default, that the key is good.

        Raises what a refusal means.
        """
        self.refuse(answer, [])
        if not answer.json_object:
            raise not_the_providers(answer)
        return Standing(account=True)

    # The exchange.

    def look_at_account(self, timeout: float) -> Standing:
        """See AbstractEmailService."""
        if not self.account_path:
            return Standing()
        path = self.account_path.format(domain=self.email_domain, settings=self.settings)
        return self.read_standing(self.transport.exchange(self.get(path), timeout))

    def send(self, message: EmailMessage, timeout: float) -> Acceptance:
        """See AbstractEmailService."""
        answer = self.transport.exchange(self.build_request(message), timeout)
        self.refuse(answer, [message])
        return _storable(self.read_acceptance(answer, message))

    def send_batch(
        self, messages: Sequence[EmailMessage], timeout: float
    ) -> list[Acceptance | ProviderError]:
        """See AbstractEmailService."""
        try:
            answer = self.transport.exchange(self.build_batch(messages), timeout)
            self.refuse(answer, messages)
            results = self.read_batch(answer, messages)
        except ProviderError as fault:
            return [fault] * len(messages)
        return [_storable(r) if isinstance(r, Acceptance) else r for r in results]


# For payloads.


def basic(username: str, password: str) -> str:
    """The value of an `Authorization` header with both (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `fields` that hold something; False and 0 do."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}


def joined(addresses: Iterable[Address]) -> str:
    """Several addresses in one text, as in a header."""
    return ", ".join(map(str, addresses))


def shared_content(message: EmailMessage, reserved: str) -> Hashable | None:
    """The `batch_key` of providers that take one content for many recipients.

    None where the message has not exactly one, or holds `reserved`, by which the provider would
    know its own placeholders.
    """
    alone = len(message.recipients) == len(message.to_recipients) == 1
    values = (message.substitutions or {}).values()
    texts = (message.subject, message.raw_text_body, message.html_body, *values)
    return message.content_key() if alone and not any(reserved in t for t in texts) else None


# For answers.


def id_from(value: object) -> str | None:
    """`value` as the id of a message: a text, or None."""
    return value if isinstance(value, str) else None


def objects_in(value: object) -> list[dict[str, Any]]:
    """The objects in `value`, if it is a list; whatever else is in it is passed over."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def refuse_cut(answer: Answer, said: Mapping[str, Any], *fields: str) -> None:
    """Raise OutcomeUnknown where `answer` was cut before it had `said` all of `fields`."""
    whole = {name for name, value in said.items() if not isinstance(value, dict | list)}
    if answer.is_cut and not whole >= {*fields}:  # a list or an object may have been cut itself
        raise _was_cut(answer)


def not_the_providers(answer: Answer) -> OutcomeUnknown:
    """The error for a 2xx that somebody else than the provider must have given."""
    return OutcomeUnknown(f"HTTP {answer.status}, but the answer is not the provider's.")


def not_of_each(answer: Answer) -> OutcomeUnknown:
    """The error for a 2xx to a batch that does not tell what became of each message."""
    return OutcomeUnknown(f"HTTP {answer.status}, without what became of each message.")


def _was_cut(answer: Answer) -> OutcomeUnknown:
    return OutcomeUnknown(f"HTTP {answer.status}, and what it says of the message was cut.")


def _storable(acceptance: Acceptance) -> Acceptance:
    return Acceptance(storable(acceptance.message_id), acceptance.refused)


def _without_recipients(text: str, messages: Sequence[EmailMessage]) -> str:
    """`text` without any address, and the names of those in `messages` that stand by theirs."""
    for message in messages:
        for address in (message.from_email, *message.recipients, *message.reply_to):
            text = text.replace(str(address), "") if address.name else text
    return without_addresses(text)


def _is_a_gateways(answer: Answer, text: str) -> bool:
    """Whether a 503 is somebody else's words than the provider's, which `text` would hold."""
    is_written = answer.headers.get("Content-Type", "").lower().startswith("text/")
    unavailable = answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    return unavailable and is_written and bool(answer.body) and not text


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
