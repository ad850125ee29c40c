"""Brevo, formerly Sendinblue.

Sources: the docstrings of Brevo's own SDK (brevo-python 5.1), developers.brevo.com.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from email.header import Header
from http import HTTPStatus
from typing import Final
from uuid import UUID

import requests

from email_services.abstract import Acceptance, Standing
from email_services.addresses import Address
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused, OutcomeUnknown
from email_services.http_service import (
    Complaint,
    HTTPEmailService,
    complaint_of,
    filled,
    objects_in,
    parse_retry_after,
)
from email_services.message import EmailMessage
from email_services.transport import Answer

FILE: Final = re.compile(
    r".*\.(xlsx|xls|ods|docx|docm|doc|csv|pdf|txt|gif|jpg|jpeg|png|tif|tiff|rtf|bmp|cgm|css|shtml"
    r"|html|htm|zip|xml|ppt|pptx|tar|ez|ics|mobi|msg|pub|eps|odt|mp3|m4a|m4v|wma|ogg|flac|wav|aif"
    r"|aifc|aiff|mp4|mov|avi|mkv|mpeg|mpg|wmv|pkpass|xlsm)",
    re.IGNORECASE,
)
"""The names of the files that it takes (SDK)."""

MAX_NAME: Final = 70
"""Characters of a display name (SDK)."""

MAX_METADATA: Final = 990
"""Characters of JSON: all metadata is one header, and a line has at most 998 (RFC 5322 2.1.1)."""

_TEMPLATE = re.compile(r"\{[{%]")
_SPECIAL = re.compile(r'[()<>\[\]:;@\\,."]')


class Brevo(HTTPEmailService):
    """Brevo's `POST /v3/smtp/email`.

    Quirks, with their sources:

    - A message without HTML is taken (docs, send-a-transactional-email), and reaches its readers
      as HTML alone, which Brevo makes of the text (seen by users of django-anymail, whose pull
      requests 483 and 487 tell it). The SDK still says that HTML is required.
    - Metadata, our id among them, is the header X-Mailin-custom, which Brevo's events give back
      (SDK) and every recipient can read; nothing else comes back with them. That it would be folded
      is not confirmed, so it must fit one line.
    - A header's value beyond ASCII leaves as raw UTF-8, JSON's escapes too; so does a name in
      replyTo. A name elsewhere that is beyond ASCII and holds a comma or the like is dropped,
      unless we encode it (all seen by the authors of django-anymail).
    - {{...}} and {%...%} are its template language in every subject and body (docs,
      send-a-transactional-email; help.brevo.com 4402386448530), with no escape that is known.
    - `idempotencyKey`, a UUID, stands inside `headers` and holds for 30 minutes. One that was
      used before gives duplicate_parameter: the request before this one may have been accepted
      (docs, heterogenous-versions-batch-emails). That the status is 400 is not confirmed.
    - Standard headers are not supported (SDK), so that our Message-ID stays behind.
    - A file's type is the one of its extension, and there are no inline images nor tracking by
      message (SDK, django-anymail). A file's name beyond ASCII arrives garbled, and every text file
      is said to be UTF-8 (django-anymail, issue 449).
    - Where an address is beyond ASCII left of the @, its name in `to` goes missing, and in `cc` the
      whole Cc header (django-anymail).
    - `scheduledAt` reaches 72 hours ahead (docs, schedule-batch-sendings).
    - Quota is 402; an account under validation, and a sender that is not valid, may be 400 (not
      confirmed).
    - Of 500 and 503 its reference says nothing: see HTTPEmailService.
    - 429 has no Retry-After; x-sib-ratelimit-reset holds seconds (docs, limit-headers).
    - An acceptance may have no body (django-anymail provides for it).
    - `/v3/senders/domains` lists domains with `authenticated` and `verified` (reference); a sender
      may be verified by itself. The DKIM selectors are not confirmed for accounts of before 2024.
    """

    provider = "brevo"
    default_base_url = "https://api.brevo.com"
    account_path = "/v3/senders/domains"
    spf_names = ("spf.brevo.com", "spf.sendinblue.com")
    dkim_selectors = ("mail", "brevo1", "brevo2")
    reserved_headers = ("x-sib-", "x-mailin-")
    capabilities = Capabilities(
        recipients=99,
        bcc_alone=False,
        reply_to=1,
        inline=0,
        any_filename=False,
        any_charset=False,
        tracking=False,
        schedule_days=3,
        megabytes=20,
    )
    id_field = "messageId"
    codes = {
        "duplicate_parameter": OutcomeUnknown,
        "duplicate_request": OutcomeUnknown,
        "account_under_validation": AccountRefused,
    }
    words = ((400, "sender .*not valid", AccountRefused),)

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        addresses = (message.from_email, *message.recipients, *message.reply_to)
        if any(len(_name(address)) > MAX_NAME for address in addresses):
            yield f"It carries names of at most {MAX_NAME} characters."
        if not all(address.email.isascii() for address in message.to_cc):
            yield "It carries no address beyond ASCII left of the @ in to_cc."
        if any(address.name and not address.email.isascii() for address in message.to_recipients):
            yield "It carries no name of an address beyond ASCII left of the @."
        if not all(address.name.isascii() for address in message.reply_to):
            yield "It carries no name beyond ASCII in reply_to."
        if "idempotencykey" in map(str.lower, message.headers):
            yield "It carries no header called idempotencyKey, which it keeps for itself."
        metadata = json.dumps(message.event_data)
        if "\\u" in metadata:
            yield "It carries no metadata beyond ASCII."
        if len(metadata) > MAX_METADATA:
            yield f"It carries at most {MAX_METADATA} characters of metadata with our id."
        if not all(FILE.fullmatch(file.filename) for file in message.attachments):
            yield "It carries no file with such an extension."
        texts = (message.subject, message.raw_text_body, message.html_body)
        if any(_TEMPLATE.search(text) for text in texts):
            yield "It carries no {{ and no {%, which it takes for its template language."

    def authentication(self) -> dict[str, str]:
        """The key in a header of its own."""
        return {"api-key": self.api_key}

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        payload = {
            "sender": _mailbox(message.from_email),
            "replyTo": _mailbox(message.reply_to[0]) if message.reply_to else None,
            "to": [_mailbox(address) for address in message.to_recipients],
            "cc": [_mailbox(address) for address in message.to_cc],
            "bcc": [_mailbox(address) for address in message.to_bcc],
            "subject": message.subject,
            "textContent": message.raw_text_body,
            "htmlContent": message.html_body,
            "headers": {
                **message.headers,
                "idempotencyKey": str(UUID(message.message_id)),
                "X-Mailin-custom": json.dumps(message.event_data),
            },
            "attachment": [
                {"name": file.filename, "content": file.base64} for file in message.attachments
            ],
            "tags": message.tags,
            "scheduledAt": message.send_at and message.send_at.isoformat(timespec="milliseconds"),
        }
        return self.post("/v3/smtp/email", json=filled(payload))

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:
        """`{"messageId": "<...>"}`; the id keeps its angle brackets, as Brevo's events show it."""
        if answer.is_empty and answer.status in {HTTPStatus.CREATED, HTTPStatus.ACCEPTED}:
            return Acceptance()
        return super().read_acceptance(answer, message)

    def read_standing(self, answer: Answer) -> Standing:
        """The account's domains and whether they are authenticated."""
        standing = super().read_standing(answer)
        domains = objects_in(answer.json_object.get("domains"))
        found = [d for d in domains if d.get("domain_name") == self.email_domain]
        if not found:
            return replace(standing, note="The account's list does not name the domain.")
        return replace(standing, domain=any(d.get("authenticated") is True for d in found))

    def complaint(self, answer: Answer) -> Complaint:
        """`{"code": "...", "message": "..."}`."""
        return complaint_of(answer.json, "code", "message", code="code")

    def retry_after(self, answer: Answer) -> float | None:
        """From x-sib-ratelimit-reset, in seconds, where it rate-limits and gives no Retry-After."""
        seconds = super().retry_after(answer)
        if seconds is None and answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            return parse_retry_after(answer.headers.get("x-sib-ratelimit-reset", ""), time.time())
        return seconds


def _mailbox(address: Address) -> dict[str, str]:
    return filled({"email": address.email, "name": _name(address)})


def _name(address: Address) -> str:
    if address.name.isascii() or not _SPECIAL.search(address.name):
        return address.name
    return Header(address.name, "utf-8").encode(linesep="")
