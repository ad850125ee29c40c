"""Mailjet, its Send API v3.1.

Sources: Mailjet's guide (github.com/mailjet/api-documentation, guides/_send-api.md), which
dev.mailjet.com shows.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, ClassVar, Final

import requests
from pydantic import Field

from email_services.abstract import Acceptance, Key, ServiceSettings, Standing
from email_services.addresses import Address
from email_services.attachments import Attachment
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused, LoginRefused, OutcomeUnknown, ProviderError
from email_services.http_service import (
    APIKeySettings,
    Complaint,
    HTTPEmailService,
    basic,
    complaint_of,
    filled,
    objects_in,
)
from email_services.message import EmailMessage
from email_services.transport import Answer

MAX_SUBJECT: Final = 255
"""Characters (guide)."""

ITS_HEADERS: Final = frozenset(
    {
        *("delivered-to", "domainkey-status", "list-id", "received-spf", "user-agent", "x-mailer"),
        *("x-csa-complaints", "x-feedback-id", "x-mailjet-campaign", "x-mailjet-debug"),
        *("x-mailjet-prio", "x-mailjet-segmentation", "x-mailjet-trackclick"),
        "x-mailjet-trackopen",
    }
)
"""Refused with send-0011 (guide), besides those that no message may hold."""


class MailjetSettings(APIKeySettings):
    """What config.json may say of a Mailjet service."""

    secret_key: Key = Field(description="The secret key that belongs to the API key.")


class Mailjet(HTTPEmailService):
    """Mailjet's `POST /v3.1/send`, of up to 50 whole messages.

    Quirks, with their sources:

    - Each message is accepted or refused by itself, and a 400 may hold both: what counts is each
      message's Status, never the code (guide; django-anymail). Projects have seen a 200 with a
      Status of "error" too.
    - Each refusal has a StatusCode of its own, which is the one that is classified here (guide).
    - Wrong keys are 401 mj-0015, a suspended key 401 mj-0001, a sender that is not validated 403
      send-0008 (guide). 429 is plain text, not JSON (django-anymail).
    - 500 is an error of its own, with an ErrorIdentifier to tell its support (guide); of 503 it
      says nothing: see HTTPEmailService.
    - Every recipient has an id of its own; ours is the MessageID of the first in To, which
      Mailjet's other APIs and its events take (guide).
    - Message-Id is a forbidden header, so that our Message-ID stays behind; CustomID, which
      Mailjet's events give back, holds our id of the message instead (guide).
    - One tag, the CustomCampaign; one ReplyTo; metadata is EventPayload, JSON in a string (guide).
    - `To` is required (mj-0003, guide): a message with bcc alone is not for it.
    - 50 recipients a message, and by some accounts 50 a call: messages that share one have one
      recipient each, so that both hold. They have no files either, whose 15 MB may be a call's.
    - ContentType is a MIME type (guide); that it takes a charset is not confirmed.
    - An empty string is refused where a file's content should be (mj-0012, guide).
    - Opens and clicks are tracked in HTML alone, and asked for with HTML alone (guide).
    - Addresses beyond ASCII left of the @ are carried (django-anymail).
    - `/v3/REST/sender` lists senders with a Status, a whole domain as "*@DOMAIN" (guide,
      senders and domains). An address may be validated by itself.
    """

    provider = "mailjet"
    default_base_url = "https://api.mailjet.com"
    account_path = "/v3/REST/sender?Limit=1000"
    spf_names = ("spf.mailjet.com",)
    dkim_selectors = ("mailjet",)
    reserved_headers = ("x-mj-",)
    Settings: ClassVar[type[ServiceSettings]] = MailjetSettings
    capabilities = Capabilities(
        recipients=50,
        bcc_alone=False,
        reply_to=1,
        own_headers=ITS_HEADERS,
        attachments=50,
        inline=50,
        empty_files=False,
        tags=1,
        schedule_days=0,
        megabytes=15,
    )
    max_batch = 50
    refuses_in_2xx = True
    codes = {
        "mj-0001": AccountRefused,  # the key is suspended
        "mj-0015": LoginRefused,
        **dict.fromkeys(("send-0006", "send-0007", "send-0008"), AccountRefused),  # the sender
    }

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if len(message.subject) > MAX_SUBJECT:
            yield f"It carries at most {MAX_SUBJECT} characters of subject."
        if not message.html_body and (message.track_opens or message.track_clicks):
            yield "It tracks opens and clicks in HTML alone."

    def batch_key(self, message: EmailMessage) -> Hashable | None:
        """Any two messages of one recipient, and without files, can share a call."""
        return None if len(message.recipients) > 1 or message.files else "one recipient"

    def authentication(self) -> dict[str, str]:
        """Both keys."""
        return {"Authorization": basic(self.api_key, self.secrets["secret_key"])}

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        return self.build_batch([message])

    def build_batch(self, messages: Sequence[EmailMessage]) -> requests.Request:
        """See HTTPEmailService."""
        return self.post("/v3.1/send", json={"Messages": [_message(m) for m in messages]})

    def refuse(self, answer: Answer, messages: Sequence[EmailMessage]) -> None:
        """Raise what the answer means for the call; one that tells of messages is read by message.

        Raises OutcomeUnknown where what it tells of several messages was cut.
        """
        if _results(answer) is not None:
            return
        cut = answer.claims_json and not answer.complete
        if cut and answer.status == HTTPStatus.BAD_REQUEST and len(messages) > 1:
            raise OutcomeUnknown("HTTP 400, and what it says of each message was cut.")
        super().refuse(answer, messages)

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:
        """See HTTPEmailService."""
        (outcome,) = self.read_batch(answer, [message])
        if isinstance(outcome, ProviderError):
            raise outcome
        return outcome

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """One result for each message, in their order."""
        results = _results(answer)
        if results is None:
            return [self.unread(answer) for _ in messages]
        return self.read_each(answer, results, messages)

    def read_item(self, answer: Answer, said: Any, message: EmailMessage) -> Acceptance:
        """By its own Status."""
        status = _status(said)
        if status == "success":
            return Acceptance(_first_id(said))
        if status != "error":
            raise OutcomeUnknown(f"HTTP {answer.status}, and no word on this message.")
        errors = objects_in(said.get("Errors"))
        code = next((e["StatusCode"] for e in errors if isinstance(e.get("StatusCode"), int)), 400)
        raise self.fault(replace(answer, status=code), _told(errors), [message])

    def read_standing(self, answer: Answer) -> Standing:
        """The account's senders, of which "*@DOMAIN" is the domain's."""
        standing = super().read_standing(answer)
        senders = objects_in(answer.json_object.get("Data"))
        wanted = f"*@{self.email_domain}"
        states = [s.get("Status") for s in senders if str(s.get("Email")).lower() == wanted]
        if not states:
            return replace(standing, note=f"The account has no sender {wanted}.")
        return replace(standing, domain="Active" in states)

    def complaint(self, answer: Answer) -> Complaint:
        """`{"ErrorCode": "...", "ErrorMessage": "..."}`, of an error of the whole call."""
        return _told(answer.json)


def _message(message: EmailMessage) -> dict[str, Any]:
    tracking = _TRACKING if message.html_body else {}
    return filled(
        {
            "From": _mailbox(message.from_email),
            "ReplyTo": _mailbox(message.reply_to[0]) if message.reply_to else None,
            "To": [_mailbox(address) for address in message.to_recipients],
            "Cc": [_mailbox(address) for address in message.to_cc],
            "Bcc": [_mailbox(address) for address in message.to_bcc],
            "Subject": message.subject,
            "TextPart": message.raw_text_body,
            "HTMLPart": message.html_body,
            "Headers": message.headers,
            "Attachments": [_file(file) for file in message.attachments],
            "InlinedAttachments": [
                {**_file(image), "ContentID": image.content_id} for image in message.inline
            ],
            "CustomID": message.message_id,
            "CustomCampaign": "".join(message.tags),  # there is one at most
            "EventPayload": json.dumps(message.metadata) if message.metadata else None,
            "TrackOpens": tracking.get(message.track_opens),
            "TrackClicks": tracking.get(message.track_clicks),
        }
    )


_TRACKING: Final[dict[bool | None, str]] = {True: "enabled", False: "disabled"}


def _mailbox(address: Address) -> dict[str, str]:
    return filled({"Email": address.email, "Name": address.name})


def _file(file: Attachment) -> dict[str, str]:
    return {
        "ContentType": file.full_type,
        "Filename": file.filename,
        "Base64Content": file.base64,
    }


def _results(answer: Answer) -> list[Any] | None:
    """What the answer tells of each message, or of those it was not cut before; or None."""
    results = answer.json_object.get("Messages")
    if not isinstance(results, list):
        return None
    if answer.complete:
        return results
    has_whole_end = bool(results) and _status(results[-1])
    return (results if has_whole_end else results[:-1]) or None


def _status(result: Any) -> Any:
    return result.get("Status") if isinstance(result, dict) else None


def _first_id(result: dict[str, Any]) -> str | None:
    first = next((to.get("MessageID") for to in objects_in(result.get("To"))), None)
    return str(first) if isinstance(first, int | str) else None


def _told(errors: Any) -> Complaint:
    return complaint_of(errors, "ErrorCode", "ErrorMessage", code="ErrorCode")
