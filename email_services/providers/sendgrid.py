"""Twilio SendGrid v3, through its SDK.

Sources: the SDK itself (sendgrid 6.12, python_http_client 3.3), SendGrid's OpenAPI description,
twilio.com/docs/sendgrid (mail send, errors, rate limits).
"""

from __future__ import annotations

import html
import json
import logging
import time
from collections.abc import Hashable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

import requests
from python_http_client.client import Client
from sendgrid import SendGridAPIClient
from sendgrid.helpers.mail import Attachment as SDKAttachment
from sendgrid.helpers.mail import (
    Bcc,
    Category,
    Cc,
    ClickTracking,
    Content,
    ContentId,
    CustomArg,
    Disposition,
    From,
    Header,
    Mail,
    OpenTracking,
    Personalization,
    ReplyTo,
    SendAt,
    Subject,
    Substitution,
    To,
    TrackingSettings,
)
from sendgrid.helpers.mail.exceptions import ApiKeyIncludedException

from email_services.abstract import (
    Acceptance,
    HTTPEmailService,
    HTTPSettings,
    not_the_providers,
    shared_content,
)
from email_services.addresses import Address
from email_services.attachments import Attachment, InlineImage
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused, MessageRejected, ProviderError
from email_services.message import EmailMessage
from email_services.transport import Answer, Transport

# At DEBUG the SDK logs the Authorization header and the whole payload.
logging.getLogger("python_http_client.client").setLevel(logging.INFO)

MAX_METADATA_BYTES: Final = 10_000
"""Of all custom_args (docs)."""

MAX_SUBSTITUTION_BYTES: Final = 10_000
"""Of one personalization (OpenAPI description)."""


class SendGrid(HTTPEmailService):
    """SendGrid's `POST /v3/mail/send`: payload and call by its SDK, over our connections.

    Quirks, with their sources:

    - An exhausted quota is 401 "Maximum credits exceeded", with the status of a bad key
      (twilio.com support article 34677918767131, sendgrid-nodejs issue 1032).
    - 429 has no documented Retry-After; X-RateLimit-Reset holds the time in Unix seconds (docs).
    - 500 and 503 are its own words ("an error occurred on a SendGrid server", "the v3 API is not
      available": docs, errors); it documents 504 too, which is a gateway's here.
    - 202 has an empty body; the id is in X-Message-Id (docs). Without either, one that announces
      a body is somebody else's.
    - `to` is required in every personalization (docs): a message with bcc alone is not for it.
    - The SDK refuses a body that begins with something like an API key (its ValidateApiKey).
    - Message-ID is not among the headers it reserves, so that it is asked to keep ours (docs;
      whether it does is not confirmed).
    - The name of a file must hold no comma and no semicolon (docs); one beyond ASCII
      arrives garbled (seen by the authors of django-anymail).
    - The type of a file must hold no semicolon (docs; "The attachment type cannot contain ';'",
      django-anymail issue 492), so that its charset stays behind; SendGrid adds one of its own.
    - Substitutions go into the bodies of a batch as they are (docs); the subject is finished here.
    - `send_at` reaches 72 hours ahead (docs).
    - An address is of the format "email" (OpenAPI description), which has no characters beyond
      ASCII left of the @: those are another format, "idn-email" (JSON Schema, 7.3.2).
    """

    provider = "sendgrid"
    default_base_url = "https://api.sendgrid.com"
    reserved_headers = ("x-sg-", "x-smtpapi")
    capabilities = Capabilities(
        bcc_alone=False,
        any_local_part=False,
        any_filename=False,
        any_charset=False,
        schedule_days=3,
        megabytes=30,
    )
    max_batch = 1000
    substitutes = True
    rules = ((401, "maximum credits exceeded", AccountRefused),)

    def __init__(self, name: str, email_domain: str, settings: HTTPSettings) -> None:
        super().__init__(name, email_domain, settings)
        self._sdk = SendGridAPIClient(self.api_key, host=self.base_url)
        # The headers are complete from the start: the SDK shares the dictionary between threads.
        headers = {**self._sdk.client.request_headers, "Content-Type": "application/json"}
        self._sdk.client = _PooledClient(
            self.base_url, headers, version=3, transport=self.transport
        )

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if any("," in file.filename for file in message.files):
            yield "It carries no file's name with a comma."
        if not all(file.content for file in message.files):
            yield "It carries no empty file."
        if len(json.dumps(message.event_data)) > MAX_METADATA_BYTES:
            yield "It carries at most 10,000 bytes of metadata with our id."

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService; the SDK's helpers write the payload."""
        mail = _mail(message, message.raw_text_body, message.html_body)
        mail.subject = Subject(message.subject)
        mail.add_header(Header("Message-ID", message.message_id_header))
        mail.add_personalization(_recipients(message))
        return self._request(mail)

    def batch_key(self, message: EmailMessage) -> Hashable | None:
        """Messages of one content, each to one recipient, with at most 10,000 bytes of values."""
        if len(json.dumps(_substitutions(message))) > MAX_SUBSTITUTION_BYTES:
            return None
        return shared_content(message, reserved="{{sub.")

    def build_batch(self, messages: Sequence[EmailMessage]) -> requests.Request:
        """A personalization for each message; HTML has substitutions of its own, escaped."""
        first = messages[0]
        mail = _mail(
            first,
            first.marked(first.raw_text_body, _TEXT_SUBSTITUTION),
            first.marked(first.html_body, _HTML_SUBSTITUTION),
        )
        for message in reversed(messages):  # the SDK puts each before the others
            recipient = _recipients(message)
            recipient.subject = message.filled(message.subject)
            recipient.add_header(Header("Message-ID", message.message_id_header))
            for tag, value in _substitutions(message).items():
                recipient.add_substitution(Substitution(tag, value))
            mail.add_personalization(recipient)
        return self._request(mail)

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """SendGrid takes all or none, and has one id for them."""
        return [self.read_acceptance(answer, message) for message in messages]

    def _request(self, mail: Mail) -> requests.Request:
        return requests.Request("POST", f"{self.base_url}/v3/mail/send", json=mail.get())

    def exchange(self, request: requests.Request, timeout: float) -> Answer:
        """Post the payload with the SDK's client; `send()` of the SDK takes no timeout."""
        answer: Answer = self._sdk.client.mail.send.post(request_body=request.json, timeout=timeout)
        return answer

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:  # noqa: ARG002
        """X-Message-Id; the `sg_message_id` of SendGrid's events begins with it."""
        if message_id := answer.headers.get("X-Message-Id"):
            return Acceptance(message_id)
        if answer.status == HTTPStatus.ACCEPTED and answer.complete and not answer.body:
            return Acceptance()
        raise not_the_providers(answer)

    def error_text(self, answer: Answer) -> str:
        """`{"errors": [{"message": "...", "field": "..."}]}`."""
        errors = answer.json_object.get("errors")
        items = (
            [item for item in errors if isinstance(item, dict)] if isinstance(errors, list) else []
        )
        return " ".join(str(item.get("message", "")) for item in items)

    def retry_after(self, answer: Answer) -> float | None:
        """Until X-RateLimit-Reset, Unix seconds, where it rate-limits and gives no Retry-After."""
        reset = answer.headers.get("X-RateLimit-Reset", "")
        seconds = super().retry_after(answer)
        if seconds is None and answer.status == HTTPStatus.TOO_MANY_REQUESTS and reset.isdecimal():
            return max(0.0, float(reset) - time.time())
        return seconds


_TEXT_SUBSTITUTION = "{{{{sub.text.{}}}}}".format
_HTML_SUBSTITUTION = "{{{{sub.html.{}}}}}".format


def _substitutions(message: EmailMessage) -> dict[str, str]:
    values = message.substitutions or {}
    plain = {_TEXT_SUBSTITUTION(name): value for name, value in values.items()}
    return plain | {_HTML_SUBSTITUTION(name): html.escape(v) for name, v in values.items()}


def _mail(message: EmailMessage, text: str, rich: str) -> Mail:
    """Everything but the recipients and what is theirs alone."""
    mail = Mail()
    mail.from_email = _mailbox(From, message.from_email)
    if message.reply_to:
        mail.reply_to_list = [_mailbox(ReplyTo, address) for address in message.reply_to]
    _add_bodies(mail, text, rich)
    for name, value in message.headers.items():
        mail.add_header(Header(name, value))
    for tag in message.tags:
        mail.add_category(Category(tag))
    if (message.track_opens, message.track_clicks) != (None, None):
        mail.tracking_settings = _tracking(message)
    if message.send_at:
        mail.send_at = SendAt(int(message.send_at.timestamp()))
    for file in message.files:
        mail.add_attachment(_attachment(file))
    return mail


def _add_bodies(mail: Mail, text: str, rich: str) -> None:
    try:
        if text:
            mail.add_content(Content("text/plain", text))
        if rich:
            mail.add_content(Content("text/html", rich))
    except ApiKeyIncludedException:
        raise MessageRejected(
            "SendGrid's SDK refuses a body that begins with an API key."
        ) from None


def _attachment(file: Attachment) -> SDKAttachment:
    attachment = SDKAttachment(file.base64, file.filename, file.content_type)
    if isinstance(file, InlineImage):
        attachment.disposition = Disposition("inline")
        attachment.content_id = ContentId(file.content_id)
    return attachment


def _tracking(message: EmailMessage) -> TrackingSettings:
    settings = TrackingSettings()
    if message.track_opens is not None:
        settings.open_tracking = OpenTracking(message.track_opens)
    if message.track_clicks is not None:
        settings.click_tracking = ClickTracking(message.track_clicks, message.track_clicks)
    return settings


def _recipients(message: EmailMessage) -> Personalization:
    recipients = Personalization()
    for kind, addresses in (
        (To, message.to_recipients),
        (Cc, message.to_cc),
        (Bcc, message.to_bcc),
    ):
        for address in addresses:
            recipients.add_email(_mailbox(kind, address))
    for key, value in message.event_data.items():
        recipients.add_custom_arg(CustomArg(key, value))
    return recipients


def _mailbox(kind: type, address: Address) -> Any:
    """The SDK's address; set attribute by attribute, since a lone address it would parse again."""
    mailbox = kind(name=address.name or None)
    mailbox.email = address.email
    return mailbox


class _PooledClient(Client):  # type: ignore[misc]
    """The SDK's HTTP client, over our transport.

    The original opens a connection for every call, has no timeout, follows redirects of a POST
    with a GET whose 200 counts as success, and raises urllib's, http.client's and its own errors.
    """

    def __init__(  # noqa: PLR0917 - the SDK's signature
        self,
        host: str,
        request_headers: dict[str, str] | None = None,
        version: int | None = None,
        url_path: list[str] | None = None,
        append_slash: bool = False,
        timeout: float | None = None,
        transport: Any = None,  # a Transport; the SDK's own arguments all have defaults
    ) -> None:
        self._transport: Transport = (
            transport  # first: the SDK turns any unknown attribute into a URL segment
        )
        super().__init__(host, request_headers, version, url_path, append_slash, timeout)

    def _build_client(self, name: str | None = None) -> _PooledClient:
        """Each attribute step of the SDK makes a client; the original would make its own kind."""
        path = [*self._url_path, name] if name else self._url_path
        return type(self)(
            self.host,
            self.request_headers,
            self._version,
            path,
            self.append_slash,
            self.timeout,
            self._transport,
        )

    def post(self, request_body: dict[str, Any], timeout: float) -> Answer:
        """The end of the SDK's `client.mail.send.post(...)`, in place of one made on the fly.

        That one builds an opener of urllib for every call, which takes longer than to send.
        """
        request = requests.Request(
            "POST", self._build_url(None), headers=self.request_headers, json=request_body
        )
        return self._transport.exchange(request, timeout)
