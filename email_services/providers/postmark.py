"""Postmark, through requests.

Sources: postmarkapp.com/developer (email API, error codes, tracking), Postmark's own SDKs and their
tests, django-anymail, whose authors saw it on the wire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import requests

from email_services.abstract import Acceptance, Standing
from email_services.attachments import Attachment
from email_services.capabilities import Capabilities
from email_services.exceptions import (
    AccountRefused,
    LoginRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)
from email_services.http_service import (
    Complaint,
    HTTPEmailService,
    filled,
    id_from,
    joined,
    refuse_cut,
)
from email_services.message import MEGABYTE, EmailMessage
from email_services.transport import Answer

MAX_BODY_BYTES: Final = 5 * MEGABYTE
"""Of the text, and of the HTML (support article 1056)."""

MAX_SHARED_BYTES: Final = 99_000
"""Of a message that shares a call: 500 of them stay below the 50 MB that a call may have."""

MAX_METADATA: Final = 10
MAX_METADATA_KEY: Final = 20
MAX_METADATA_VALUE: Final = 80


class Postmark(HTTPEmailService):
    """Postmark's email API, `POST /email` and `POST /email/batch`.

    Quirks, with their sources:

    - What is wrong is an ErrorCode in the body: nearly all come with HTTP 422, and many look like
      an HTTP status that means something else (error codes). 400, 401 and 409 are in older lists
      only.
    - Suppressed ("inactive") recipients: where all are, 422 and ErrorCode 406; where some are, 200
      and "Message OK, but will not deliver to these inactive addresses: a, b.", in lower case
      (postmark-gem, django-anymail). One report says 406 may also come after the others were
      served; it is not confirmed, and a 406 that names only some is `unknown` here.
    - A batch is answered 200 with an ErrorCode for each message, in order (batch emails).
    - Message-ID is kept (send a single email); X-PM-KeepID asks for it where it is not, as over
      SMTP (Symfony's and Swift's bridges; that the API needs it is not confirmed).
    - One tag. Metadata: 10 pairs, one of them our id, keys of 20 and values of 80 characters (not
      confirmed). Recipients do not see them (custom metadata).
    - The server's TrackOpens cannot be switched off by a message (tracking opens, per email);
      its TrackLinks can (tracking links).
    - ContentType takes a charset (django-anymail issue 449).
    - A message without `To` is taken if it has Cc or Bcc (django-anymail).
    - No addresses beyond ASCII left of the @ (django-anymail). 50 recipients, 10 MB (overview).
    - After a 500 the message is lost "in most cases", and 503 is maintenance (overview, response
      codes): neither is sent.
    - A 429 has no Retry-After (rate limits); there is no idempotency key.
    - `/server` is the server of the token (servers API); domains are shown to another token, the
      account's. Each domain has a DKIM selector of its own.
    """

    provider = "postmark"
    default_base_url = "https://api.postmarkapp.com"
    account_path = "/server"
    spf_names = ("spf.mtasv.net",)
    reserved_headers = ("x-pm-",)
    capabilities = Capabilities(
        recipients=50, any_local_part=False, tags=1, schedule_days=0, megabytes=10
    )
    max_batch = 500
    refuses_in_2xx = True
    codes = {
        "10": LoginRefused,  # the token
        "100": ServiceUnavailable,  # maintenance
        "400": AccountRefused,  # no such sender signature
        "401": AccountRefused,  # it is not confirmed
        "405": AccountRefused,  # out of credits
        "412": AccountRefused,  # pending approval
        "413": AccountRefused,  # the account may not send
        "422": AccountRefused,  # no such server
        "429": RateLimited,
        **dict.fromkeys(map(str, range(1220, 1240)), AccountRefused),  # the stream
        "1480": AccountRefused,  # this machine's IP address
        200: MessageRejected,  # with any other ErrorCode
    }

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        bodies = (message.raw_text_body, message.html_body)
        if any(len(body.encode()) > MAX_BODY_BYTES for body in bodies):
            yield "It carries at most 5 MB of text and 5 MB of HTML."
        if message.track_opens is False:
            yield "It cannot switch the tracking of opens off for a message."
        if len(message.event_data) > MAX_METADATA or any(
            len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE
            for key, value in message.event_data.items()
        ):
            yield "It carries at most 9 metadata with keys of 20 and values of 80 characters."

    def authentication(self) -> dict[str, str]:
        """The token of the server."""
        return {"X-Postmark-Server-Token": self.api_key}

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        return self.post("/email", json=_email(message), headers=_JSON)

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:
        """See `read_item`."""
        return self.read_item(answer, answer.json, message)

    def read_item(self, answer: Answer, said: Any, message: EmailMessage) -> Acceptance:
        """MessageID, and which recipients are inactive; a message in a batch looks the same."""
        if not isinstance(said, dict) or not said.keys() & {"ErrorCode", "MessageID"}:
            return self.unread(answer)
        refuse_cut(answer, said, "ErrorCode", "Message")
        complaint = _told(said)
        inactive = _inactive(complaint.text, message)
        if complaint.codes or len(inactive) == len(message.recipients):
            raise self.fault(answer, complaint, [message])
        return Acceptance(
            id_from(said.get("MessageID")),
            dict.fromkeys(inactive, "It is inactive at Postmark: it bounced, or wants no mail."),
        )

    def batch_key(self, message: EmailMessage) -> Hashable | None:
        """Any messages can share a call, unless they are large."""
        if message.encoded_size > MAX_SHARED_BYTES:
            return None  # without writing megabytes of JSON to find out
        return "small" if len(json.dumps(_email(message))) <= MAX_SHARED_BYTES else None

    def build_batch(self, messages: Sequence[EmailMessage]) -> requests.Request:
        """See HTTPEmailService."""
        emails = [_email(message) for message in messages]
        return self.post("/email/batch", json=emails, headers=_JSON)

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """An object for each, like the one that a message alone is answered with."""
        return self.read_each(answer, answer.json, messages)

    def read_standing(self, answer: Answer) -> Standing:
        """The server that the token belongs to; of domains only an account's token hears."""
        return replace(super().read_standing(answer), note="A server's token hears of no domain.")

    def complaint(self, answer: Answer) -> Complaint:
        """`{"ErrorCode": 300, "Message": "..."}`."""
        return _told(answer.json_object)

    def fault(
        self, answer: Answer, complaint: Complaint, messages: Sequence[EmailMessage]
    ) -> ProviderError:
        """See HTTPEmailService; where not all are inactive, the others may have been served."""
        fault = super().fault(answer, complaint, messages)
        if "406" in complaint.codes and len(messages) == 1:
            inactive = _inactive(complaint.text, messages[0])
            if inactive and len(inactive) < len(messages[0].recipients):
                return OutcomeUnknown(fault.reason, summary=fault.summary)
        return fault


_JSON: Final = {"Accept": "application/json"}
_TRACK_LINKS: Final[dict[bool | None, str]] = {True: "HtmlAndText", False: "None"}


def _email(message: EmailMessage) -> dict[str, Any]:
    headers = {
        "Message-ID": message.message_id_header,
        "X-PM-KeepID": "true",
        **message.headers,
    }
    return filled(
        {
            "From": str(message.from_email),
            "To": joined(message.to_recipients),
            "Cc": joined(message.to_cc),
            "Bcc": joined(message.to_bcc),
            "ReplyTo": joined(message.reply_to),
            "Subject": message.subject,
            "TextBody": message.raw_text_body,
            "HtmlBody": message.html_body,
            "Headers": [{"Name": name, "Value": value} for name, value in headers.items()],
            "Attachments": [
                *(_file(file) for file in message.attachments),
                *({**_file(i), "ContentID": f"cid:{i.content_id}"} for i in message.inline),
            ],
            "Tag": "".join(message.tags),  # there is one at most
            "Metadata": message.event_data,
            "TrackOpens": message.track_opens,
            "TrackLinks": _TRACK_LINKS.get(message.track_clicks),
        }
    )


def _file(file: Attachment) -> dict[str, str]:
    return {
        "Name": file.filename,
        "Content": file.base64,
        "ContentType": file.full_type,
    }


def _told(said: dict[str, Any]) -> Complaint:
    """The ErrorCode, where there is an error, and the text with it, for people to read."""
    text, code = str(said.get("Message", "")), str(said.get("ErrorCode"))
    if not re.fullmatch(r"[1-9][0-9]*", code):
        return Complaint(text)
    return Complaint(f"ErrorCode {code}: {text}", (code,))


def _inactive(text: str, message: EmailMessage) -> list[str]:
    """The keys of the recipients that Postmark's `text` names as inactive."""
    _, _, listed = text.partition("inactive addresses:")
    named = {word.strip(".") for word in re.split(r"[\s,;]+", listed.lower())}
    return [address.key for address in message.recipients if address.key in named]
