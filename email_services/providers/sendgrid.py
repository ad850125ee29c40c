"""Twilio SendGrid v3, through its SDK.

Sources: the SDK itself (sendgrid 6.12, python_http_client 3.3), SendGrid's OpenAPI description,
twilio.com/docs/sendgrid (mail send, errors, rate limits).
"""

from __future__ import annotations

import logging
import time
from http import HTTPStatus
from typing import Any

import requests
from python_http_client.client import Client
from sendgrid import SendGridAPIClient
from sendgrid.helpers.mail import (
    Bcc,
    Cc,
    Content,
    From,
    Header,
    Mail,
    Personalization,
    Subject,
    To,
)
from sendgrid.helpers.mail.exceptions import ApiKeyIncludedException

from email_services.abstract import HTTPEmailService, HTTPSettings, not_the_providers
from email_services.exceptions import MessageRejected
from email_services.message import Address, EmailMessage
from email_services.transport import Answer, Transport

# At DEBUG the SDK logs the Authorization header and the whole payload.
logging.getLogger("python_http_client.client").setLevel(logging.INFO)


class SendGrid(HTTPEmailService):
    """SendGrid's `POST /v3/mail/send`: payload and call by its SDK, over our connections.

    Quirks, with their sources:

    - An exhausted quota is 401 "Maximum credits exceeded", like a bad key; both are the account's
      (twilio.com support article 34677918767131, sendgrid-nodejs issue 1032).
    - 429 has no documented Retry-After; X-RateLimit-Reset holds the time in Unix seconds (docs).
    - 202 has an empty body; the id is in X-Message-Id (docs).
    - `to` is required in every personalization (docs): a message with bcc alone is not for it.
    - The SDK refuses a body that begins with something like an API key (its ValidateApiKey).
    - Message-ID is not among the headers it reserves, so that it is asked to keep ours (docs;
      whether it does is not confirmed).
    - Addresses beyond ASCII left of the @ are left to SendGrid to judge (not confirmed).
    """

    default_base_url = "https://api.sendgrid.com"

    def __init__(self, name: str, email_domain: str, settings: HTTPSettings) -> None:
        super().__init__(name, email_domain, settings)
        self._sdk = SendGridAPIClient(self.api_key, host=self.base_url)
        # The headers are complete from the start: the SDK shares the dictionary between threads.
        headers = {**self._sdk.client.request_headers, "Content-Type": "application/json"}
        self._sdk.client = _PooledClient(
            self.base_url, headers, version=3, transport=self.transport
        )

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService; the SDK's helpers write the payload."""
        if not message.to_recipients:
            raise MessageRejected("SendGrid needs an address in to_recipients.")
        mail = Mail()
        mail.from_email = _mailbox(From, message.from_email)
        mail.subject = Subject(message.subject)
        mail.add_header(Header("Message-ID", message.message_id_header))
        recipients = Personalization()
        for kind, addresses in (
            (To, message.to_recipients),
            (Cc, message.to_cc),
            (Bcc, message.to_bcc),
        ):
            for address in addresses:
                recipients.add_email(_mailbox(kind, address))
        mail.add_personalization(recipients)
        try:
            if message.raw_text_body:
                mail.add_content(Content("text/plain", message.raw_text_body))
            if message.html_body:
                mail.add_content(Content("text/html", message.html_body))
        except ApiKeyIncludedException:
            raise MessageRejected(
                "SendGrid's SDK refuses a body that begins with an API key."
            ) from None
        return requests.Request("POST", f"{self.base_url}/v3/mail/send", json=mail.get())

    def call(self, message: EmailMessage, timeout: float) -> Answer:
        """Post the payload with the SDK's client; `send()` of the SDK takes no timeout."""
        request = self.build_request(message)
        answer: Answer = self._sdk.client.mail.send.post(request_body=request.json, timeout=timeout)
        return answer

    def read_acceptance(self, answer: Answer) -> str | None:
        """X-Message-Id; the `sg_message_id` of SendGrid's events begins with it."""
        if message_id := answer.headers.get("X-Message-Id"):
            return message_id
        if answer.status == HTTPStatus.ACCEPTED and not answer.body:
            return None
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
