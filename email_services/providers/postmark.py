"""Postmark, through requests.

Sources: postmarkapp.com/developer (email API, error codes, tracking), Postmark's own SDKs and their
tests, django-anymail, whose authors saw it on the wire.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final

import requests

from email_services.abstract import (
    USER_AGENT,
    Acceptance,
    HTTPEmailService,
    each_of,
    was_cut,
)
from email_services.addresses import Address
from email_services.attachments import Attachment, InlineImage
from email_services.capabilities import Capabilities
from email_services.exceptions import (
    AccountRefused,
    MessageRejected,
    OutcomeUnknown,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)
from email_services.message import MEGABYTE, EmailMessage
from email_services.transport import Answer

MAX_BODY_BYTES: Final = 5 * MEGABYTE
"""Of the text, and of the HTML (support article 1056)."""

MAX_SHARED_BYTES: Final = 99_000
"""Of a message that shares a call: 500 of them stay below the 50 MB that a call may have."""

MAX_CODE: Final = 10
"""Digits of an ErrorCode."""

MAX_METADATA: Final = 10
MAX_METADATA_KEY: Final = 20
MAX_METADATA_VALUE: Final = 80

CODES: Final = (
    # key; sender signature; credits; approval; server; streams; this machine's IP address
    (r"10|400|401|405|412|413|422|12[23]\d|1480", AccountRefused),
    (r"100", ServiceUnavailable),
    (r"429", RateLimited),
)
"""What an ErrorCode means; each one that is not here is about the message."""


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
    """

    provider = "postmark"
    default_base_url = "https://api.postmarkapp.com"
    reserved_headers = ("x-pm-",)
    capabilities = Capabilities(
        recipients=50, any_local_part=False, tags=1, schedule_days=0, megabytes=10
    )
    max_batch = 500
    refuses_in_2xx = True
    rules = (
        *(
            (status, rf"^ErrorCode ({codes}):", fault)
            for status in (200, 422)
            for codes, fault in CODES
        ),
        (200, "", MessageRejected),
    )

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

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        return self._request("/email", _email(message))

    def _request(self, path: str, payload: Any) -> requests.Request:
        headers = {
            "X-Postmark-Server-Token": self.api_key,
            "Accept": "application/json",
            "User-Agent": USER_AGENT,
        }
        return requests.Request("POST", self.base_url + path, headers=headers, json=payload)

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:
        """MessageID, and which recipients are inactive."""
        return self._acceptance(answer, answer.json, message)

    def _acceptance(self, answer: Answer, said: Any, message: EmailMessage) -> Acceptance:
        """What Postmark `said` of one message, alone or in a batch."""
        if not isinstance(said, dict) or not said.keys() & {"ErrorCode", "MessageID"}:
            return self.unread(answer)
        if not answer.complete and not said.keys() >= {"ErrorCode", "Message"}:
            raise was_cut(answer)
        text = _words(said)
        inactive = _inactive(text, message)
        if _code(said) or len(inactive) == len(message.recipients):
            raise self.fault(answer, text, [message])
        message_id = said.get("MessageID")
        return Acceptance(
            message_id if isinstance(message_id, str) else None,
            dict.fromkeys(inactive, "It is inactive at Postmark: it bounced, or wants no mail."),
        )

    def batch_key(self, message: EmailMessage) -> Hashable | None:
        """Any messages can share a call, unless they are large."""
        if message.encoded_size > MAX_SHARED_BYTES:
            return None  # without writing megabytes of JSON to find out
        return "small" if len(json.dumps(_email(message))) <= MAX_SHARED_BYTES else None

    def build_batch(self, messages: Sequence[EmailMessage]) -> requests.Request:
        """See HTTPEmailService."""
        return self._request("/email/batch", [_email(message) for message in messages])

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """An object for each, like the one that a message alone is answered with."""
        said = each_of(answer, answer.json, messages)
        return [self._result(answer, *pair) for pair in zip(said, messages, strict=True)]

    def _result(
        self, answer: Answer, said: Any, message: EmailMessage
    ) -> Acceptance | ProviderError:
        try:
            return self._acceptance(answer, said, message)
        except ProviderError as fault:
            return fault

    def error_text(self, answer: Answer) -> str:
        """`{"ErrorCode": 300, "Message": "..."}`."""
        return _words(answer.json_object)

    def fault(self, answer: Answer, text: str, messages: Sequence[EmailMessage]) -> ProviderError:
        """See HTTPEmailService; where not all are inactive, the others may have been served."""
        fault = super().fault(answer, text, messages)
        if text.startswith("ErrorCode 406:") and len(messages) == 1:
            inactive = _inactive(text, messages[0])
            if inactive and len(inactive) < len(messages[0].recipients):
                return OutcomeUnknown(fault.reason, summary=fault.summary)
        return fault


def _email(message: EmailMessage) -> dict[str, Any]:
    headers = {
        "Message-ID": message.message_id_header,
        "X-PM-KeepID": "true",
        **message.headers,
    }
    email: dict[str, Any] = {
        "From": str(message.from_email),
        "To": _joined(message.to_recipients),
        "Cc": _joined(message.to_cc),
        "Bcc": _joined(message.to_bcc),
        "ReplyTo": _joined(message.reply_to),
        "Subject": message.subject,
        "TextBody": message.raw_text_body,
        "HtmlBody": message.html_body,
        "Headers": [{"Name": name, "Value": value} for name, value in headers.items()],
        "Attachments": [_attachment(file) for file in message.files],
        "Tag": "".join(message.tags),  # there is one at most
        "Metadata": message.event_data,
        "TrackOpens": message.track_opens,
    }
    if message.track_clicks is not None:
        email["TrackLinks"] = "HtmlAndText" if message.track_clicks else "None"
    return {name: value for name, value in email.items() if value}


def _joined(addresses: Iterable[Address]) -> str:
    return ", ".join(map(str, addresses))


def _attachment(file: Attachment) -> dict[str, str]:
    attachment = {
        "Name": file.filename,
        "Content": file.base64,
        "ContentType": file.full_type,
    }
    if isinstance(file, InlineImage):
        attachment["ContentID"] = f"cid:{file.content_id}"
    return attachment


def _code(said: dict[str, Any]) -> int:
    """The ErrorCode, 0 if there is no error."""
    code = str(said.get("ErrorCode"))
    return int(code) if code.isascii() and code.isdecimal() and len(code) < MAX_CODE else 0


def _words(said: dict[str, Any]) -> str:
    """The code and the text, for `rules` to look at and for people to read."""
    text = str(said.get("Message", ""))
    return f"ErrorCode {_code(said)}: {text}" if _code(said) else text


def _inactive(text: str, message: EmailMessage) -> list[str]:
    """The keys of the recipients that Postmark's `text` names as inactive."""
    _, _, listed = text.partition("inactive addresses:")
    named = {word.strip(".") for word in re.split(r"[\s,;]+", listed.lower())}
    return [address.key for address in message.recipients if address.key in named]
