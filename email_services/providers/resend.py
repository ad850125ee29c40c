"""Resend, through requests.

Sources: resend.com/docs (API reference, errors, batch sending, changelog), Resend's OpenAPI
description, django-anymail, whose authors saw it on the wire.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Final

import requests

from email_services.abstract import Acceptance, Standing
from email_services.addresses import Address
from email_services.attachments import Attachment
from email_services.capabilities import Capabilities
from email_services.exceptions import (
    AccountRefused,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
)
from email_services.http_service import (
    Complaint,
    HTTPEmailService,
    complaint_of,
    filled,
    id_from,
    not_of_each,
    objects_in,
)
from email_services.message import ID_NAME, EmailMessage
from email_services.transport import Answer

MAX_TO: Final = 50
TAG: Final = re.compile(r"[A-Za-z0-9_-]{1,256}")
"""What the name and the value of a tag may be (OpenAPI)."""


class Resend(HTTPEmailService):
    """Resend's email API, `POST /emails` and `POST /emails/batch`.

    Quirks, with their sources:

    - The same Idempotency-Key and payload within 24 hours give the first id again, and nothing is
      sent. 409 says that the key is in use or stood for another payload: the message may have been
      sent before (errors; changelog, batch idempotency keys).
    - A tag has a name and a value (OpenAPI). One of ours has the value "1", and metadata, our id
      of the message among them, are tags by their key; events give both back by name, so that no
      name may occur twice.
    - Tracking is set for a domain, never for a message (docs).
    - An exhausted quota is 429, like a rate limit; the name tells them apart (errors).
    - 500 is an unexpected error of its own, to be tried again (errors); of 503 it says nothing: see
      HTTPEmailService.
    - A wrong key is 403 invalid_api_key in the docs; 400 "API key is invalid" has been seen.
    - 451 security_error is taken to be about the message (not confirmed).
    - `to` is required and has 50 addresses at most (OpenAPI). No addresses beyond ASCII left of
      the @, no files with `scheduled_at` (django-anymail). 40 MB with files in base64 (docs).
    - `scheduled_at` reaches 30 days ahead (not confirmed).
    - Message-ID is asked for as any header; Amazon SES, which delivers, may set its own (not
      confirmed).
    - content_type takes a charset (django-anymail issue 449).
    - A batch has no files, which it drops in silence, and no `scheduled_at` (docs). It is sent
      `permissive`: one bad message does not stop the others, and `errors` names it by its index,
      while `data` has the ids of the others in order (changelog, batch validation modes; that
      `data` leaves no gaps is not confirmed, so the numbers have to fit).
    - `/domains` lists the account's domains with a status (OpenAPI); a key that may only send is
      refused there as restricted_api_key, with 401 (errors). The selector and the SPF of its
      subdomain `send` are those that it has people publish (docs, domains).
    """

    provider = "resend"
    default_base_url = "https://api.resend.com"
    account_path = "/domains"
    spf_names = ("amazonses.com",)
    dkim_selectors = ("resend",)
    capabilities = Capabilities(
        bcc_alone=False,
        any_local_part=False,
        tracking=False,
        schedule_days=30,
        attachments_scheduled=False,
        megabytes=40,
    )
    max_batch = 100
    id_field = "id"
    codes = {
        "invalid_api_key": LoginRefused,
        "daily_quota_exceeded": AccountRefused,
        "monthly_quota_exceeded": AccountRefused,
        "concurrent_idempotent_requests": OutcomeUnknown,
        "invalid_idempotent_request": OutcomeUnknown,
        "security_error": MessageRejected,
        200: MessageRejected,  # of one message in a batch, which has no code
    }
    words = (
        ("validation_error", "API key is invalid", LoginRefused),
        (200, "domain is not verified|verify a domain", AccountRefused),
    )

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if len(message.to_recipients) > MAX_TO:
            yield f"It carries at most {MAX_TO} addresses in to_recipients."
        if not all(TAG.fullmatch(text) for text in (*message.tags, *message.metadata.values())):
            yield "It carries only tags and metadata of at most 256 letters, digits, - and _."
        if not message.event_data.keys().isdisjoint(message.tags):
            yield f"It carries no tag with the name of a key in metadata, or called {ID_NAME}."

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        headers = {"Idempotency-Key": message.message_id}
        return self.post("/emails", json=_email(message), headers=headers)

    def batch_key(self, message: EmailMessage) -> Hashable | None:
        """Any messages can share a call, unless they have files or wait for a time."""
        return None if message.files or message.send_at else "at once, without files"

    def build_batch(self, messages: Sequence[EmailMessage]) -> requests.Request:
        """See HTTPEmailService."""
        ids = "".join(message.message_id for message in messages)
        headers = {
            "Idempotency-Key": hashlib.sha256(ids.encode()).hexdigest(),
            "x-batch-validation": "permissive",
        }
        emails = [_email(message) for message in messages]
        return self.post("/emails/batch", json=emails, headers=headers)

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """`{"data": [{"id": "..."}], "errors": [{"index": 1, "message": "..."}]}`."""
        accepted = objects_in(answer.json_object.get("data"))
        wrong = {
            error["index"]: str(error.get("message", ""))
            for error in objects_in(answer.json_object.get("errors"))
            if isinstance(error.get("index"), int)
        }
        places = range(len(messages))
        if len(accepted) + len(wrong) != len(places) or not wrong.keys() <= {*places}:
            raise not_of_each(answer)
        following = iter(accepted)
        return [
            self.fault(answer, Complaint(wrong[place]), [messages[place]])
            if place in wrong
            else Acceptance(id_from(next(following).get("id")))
            for place in places
        ]

    def read_standing(self, answer: Answer) -> Standing:
        """The account's domains and whether they are verified."""
        if "restricted_api_key" in self.complaint(answer).codes:
            return Standing(account=True, note="The key may only send.")
        standing = super().read_standing(answer)
        domains = objects_in(answer.json_object.get("data"))
        states = [d.get("status") for d in domains if d.get("name") == self.email_domain]
        if not states:
            return replace(standing, note="The account's list does not name the domain.")
        return replace(standing, domain="verified" in states)

    def complaint(self, answer: Answer) -> Complaint:
        """`{"statusCode": 403, "name": "validation_error", "message": "..."}`."""
        return complaint_of(answer.json, "name", "message", code="name")


def _email(message: EmailMessage) -> dict[str, Any]:
    tags = {**dict.fromkeys(message.tags, "1"), **message.event_data}
    return filled(
        {
            "from": str(message.from_email),
            "to": _written(message.to_recipients),
            "cc": _written(message.to_cc),
            "bcc": _written(message.to_bcc),
            "reply_to": _written(message.reply_to),
            "subject": message.subject,
            "text": message.raw_text_body,
            "html": message.html_body,
            "headers": {"Message-ID": message.message_id_header, **message.headers},
            "attachments": [
                *(_file(file) for file in message.attachments),
                *({**_file(image), "content_id": image.content_id} for image in message.inline),
            ],
            "tags": [{"name": name, "value": value} for name, value in tags.items()],
            "scheduled_at": message.send_at and _time(message.send_at),
        }
    )


def _written(addresses: list[Address]) -> list[str]:
    return [str(address) for address in addresses]


def _file(file: Attachment) -> dict[str, str]:
    return {
        "filename": file.filename,
        "content": file.base64,
        "content_type": file.full_type,
    }


def _time(at: datetime) -> str:
    """In UTC and to the millisecond, as in its examples."""
    return at.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
