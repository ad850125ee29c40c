"""Twilio SendGrid v3, through its SDK.

Sources: the SDK itself (sendgrid 6.12, python_http_client 3.3), SendGrid's OpenAPI description,
twilio.com/docs/sendgrid (mail send, errors, rate limits).
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import requests
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

from email_services.abstract import Acceptance, Standing
from email_services.addresses import Address
from email_services.attachments import Attachment, InlineImage
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused, MessageRejected
from email_services.http_service import (
    Complaint,
    HTTPEmailService,
    HTTPSettings,
    complaint_of,
    not_the_providers,
    objects_in,
    shared_content,
)
from email_services.message import EmailMessage
from email_services.transport import Answer

MAX_SUBSTITUTION_BYTES: Final = 10_000
"""Of one personalization (OpenAPI description)."""


class SendGrid(HTTPEmailService):
    """SendGrid's `POST /v3/mail/send`: payload, URL and headers by its SDK, sent by us.

    The SDK's own HTTP is not used: it opens a connection for every call, has no timeout, follows
    redirects of a POST with a GET whose 200 counts as success, and logs the key at DEBUG.

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
    - `send_at` reaches 72 hours ahead; all custom_args may have 10,000 bytes (docs).
    - An address is of the format "email" (OpenAPI description), which has no characters beyond
      ASCII left of the @: those are another format, "idn-email" (JSON Schema, 7.3.2).
    - `/v3/scopes` lists what the key may do, and `/v3/whitelabel/domains` the domains that are
      authenticated (docs). A sender may be verified by itself, so that a domain which is not listed
      is not known to be refused. The selectors are those of "automated security" (docs).
    """

    provider = "sendgrid"
    default_base_url = "https://api.sendgrid.com"
    account_path = "/v3/scopes"
    spf_names = ("sendgrid.net",)
    dkim_selectors = ("s1", "s2")
    reserved_headers = ("x-sg-", "x-smtpapi")
    capabilities = Capabilities(
        bcc_alone=False,
        any_local_part=False,
        any_filename=False,
        any_charset=False,
        empty_files=False,
        metadata_bytes=10_000,
        schedule_days=3,
        megabytes=30,
    )
    max_batch = 1000
    substitutes = True
    words = ((401, "maximum credits exceeded", AccountRefused),)

    def __init__(self, name: str, email_domain: str, settings: HTTPSettings) -> None:
        super().__init__(name, email_domain, settings)
        self._mail_send = SendGridAPIClient(self.api_key, host=self.base_url).client.mail.send

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if any("," in file.filename for file in message.files):
            yield "It carries no file's name with a comma."

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

    def _request(self, mail: Mail) -> requests.Request:
        """What the SDK's `client.mail.send.post` would send."""
        return requests.Request(
            "POST",
            self._mail_send._build_url(query_params=None),  # noqa: SLF001 - post() sends at once
            headers=self._mail_send.request_headers,
            json=mail.get(),
        )

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:  # noqa: ARG002
        """X-Message-Id; the `sg_message_id` of SendGrid's events begins with it."""
        if message_id := answer.headers.get("X-Message-Id"):
            return Acceptance(message_id)
        if answer.is_empty and answer.status == HTTPStatus.ACCEPTED:
            return Acceptance()
        raise not_the_providers(answer)

    def look_at_account(self, timeout: float) -> Standing:
        """What the key may do; then, if it may ask, whether the domain is authenticated."""
        standing = super().look_at_account(timeout)
        path = f"/v3/whitelabel/domains?domain={self.email_domain}"
        answer = self.transport.exchange(self.get(path), timeout)
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return replace(standing, note="The key may not ask about domains.")
        self.refuse(answer, [])
        domains = (d for d in objects_in(answer.json) if d.get("domain") == self.email_domain)
        valid = [domain.get("valid") is True for domain in domains]
        if not valid:
            return replace(standing, note="The account has not authenticated the domain.")
        return replace(standing, domain=any(valid))

    def read_standing(self, answer: Answer) -> Standing:
        """The scopes of the key, of which one is to send. Raises AccountRefused without it."""
        standing = super().read_standing(answer)
        scopes = answer.json_object.get("scopes")
        if isinstance(scopes, list) and "mail.send" not in scopes:
            raise AccountRefused("The key may not send (scope mail.send).")
        return standing

    def complaint(self, answer: Answer) -> Complaint:
        """`{"errors": [{"message": "...", "field": "..."}]}`."""
        return complaint_of(answer.json_object.get("errors"), "message")

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
