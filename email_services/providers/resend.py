"""Resend, through requests.

Sources: resend.com/docs (API reference, errors, batch sending, changelog), Resend's OpenAPI
description, django-anymail, whose authors saw it on the wire.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence
from datetime import timezone
from typing import Any, Final

import requests

from email_services.abstract import USER_AGENT, Acceptance, HTTPEmailService
from email_services.attachments import Attachment, InlineImage
from email_services.capabilities import Capabilities
from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
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
    - A wrong key is 403 in the docs; 400 "API key is invalid" has been seen.
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
    """

    provider = "resend"
    default_base_url = "https://api.resend.com"
    capabilities = Capabilities(
        bcc_alone=False,
        any_local_part=False,
        tracking=False,
        schedule_days=30,
        attachments_scheduled=False,
        megabytes=40,
    )
    max_batch = 100
    rules = (
        # Of one message in a batch.
        (200, r"domain is not verified|verify a domain", AccountRefused),
        (200, "", MessageRejected),
        (400, r"API key is invalid", AccountRefused),
        (409, r"idempotent_request", OutcomeUnknown),
        (429, r"quota", AccountRefused),
        (451, r"security_error", MessageRejected),
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
        return self._request("/emails", _email(message), {"Idempotency-Key": message.message_id})

    def _request(self, path: str, payload: Any, headers: dict[str, str]) -> requests.Request:
        headers = {
            "Authorization": f"Bearer {self.api_key}",
            "User-Agent": USER_AGENT,
            **headers,
        }
        return requests.Request("POST", self.base_url + path, headers=headers, json=payload)

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:  # noqa: ARG002
        """`{"id": "..."}`."""
        return _acceptance(answer.json) if "id" in answer.json_object else self.unread(answer)

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
        return self._request("/emails/batch", [_email(message) for message in messages], headers)

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """`{"data": [{"id": "..."}], "errors": [{"index": 1, "message": "..."}]}`."""
        accepted = _objects(answer.json_object.get("data"))
        wrong = {
            error["index"]: str(error.get("message", ""))
            for error in _objects(answer.json_object.get("errors"))
            if isinstance(error.get("index"), int)
        }
        places = range(len(messages))
        if len(accepted) + len(wrong) != len(places) or not wrong.keys() <= {*places}:
            raise OutcomeUnknown(f"HTTP {answer.status}, without what became of each message.")
        following = iter(accepted)
        return [
            self.fault(answer, wrong[place], [messages[place]])
            if place in wrong
            else _acceptance(next(following))
            for place in places
        ]

    def error_text(self, answer: Answer) -> str:
        """`{"statusCode": 403, "name": "validation_error", "message": "..."}`."""
        said = answer.json_object
        name, text = said.get("name"), str(said.get("message", ""))
        return f"{name}: {text}" if name else text


def _email(message: EmailMessage) -> dict[str, Any]:
    tags = {**dict.fromkeys(message.tags, "1"), **message.event_data}
    email: dict[str, Any] = {
        "from": str(message.from_email),
        "to": [str(address) for address in message.to_recipients],
        "cc": [str(address) for address in message.to_cc],
        "bcc": [str(address) for address in message.to_bcc],
        "reply_to": [str(address) for address in message.reply_to],
        "subject": message.subject,
        "text": message.raw_text_body,
        "html": message.html_body,
        "headers": {"Message-ID": message.message_id_header, **message.headers},
        "attachments": [_attachment(file) for file in message.files],
        "tags": [{"name": name, "value": value} for name, value in tags.items()],
    }
    if message.send_at:
        # In UTC and to the millisecond, as in its examples.
        at = message.send_at.astimezone(timezone.utc)
        email["scheduled_at"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {name: value for name, value in email.items() if value}


def _attachment(file: Attachment) -> dict[str, str]:
    attachment = {
        "filename": file.filename,
        "content": file.base64,
        "content_type": file.full_type,
    }
    if isinstance(file, InlineImage):
        attachment["content_id"] = file.content_id
    return attachment


def _acceptance(said: dict[str, Any]) -> Acceptance:
    message_id = said.get("id")
    return Acceptance(message_id if isinstance(message_id, str) else None)


def _objects(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
