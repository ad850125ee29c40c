"""SparkPost (Bird).

Sources: SparkPost's own documentation (github.com/SparkPost/developers.sparkpost.com,
content/api/transmissions.apib).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

import requests

from email_services.abstract import USER_AGENT, Acceptance, HTTPEmailService, was_cut
from email_services.addresses import Address
from email_services.attachments import Attachment
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused, MessageRejected, OutcomeUnknown
from email_services.message import MEGABYTE, EmailMessage
from email_services.transport import Answer

MAX_TAG_BYTES: Final = 64
MAX_FILENAME_BYTES: Final = 255
MAX_METADATA_BYTES: Final = 10_000
"""Of the JSON (documentation; another version of it says 1000)."""

MAX_HEADER_TO: Final = 5 * MEGABYTE
"""Characters of all header_to together, each of which names everybody in to; our own limit."""

ITS_HEADERS: Final = frozenset({"list-unsubscribe", "list-unsubscribe-post"})

_COUNTED: Final = ("accepted", "rejected")
_BETWEEN_WORDS = re.compile(r"[\s<>()\[\]\"',;:]+")


class SparkPost(HTTPEmailService):
    """SparkPost's `POST /api/v1/transmissions`, with inline content.

    Quirks, with their sources:

    - Authorization is the key itself, without a word before it (documentation).
    - Everybody is in `recipients`. header_to is the To that they see, and content.headers.Cc the
      Cc (sparkpost.com/docs/faq/cc-bcc-with-rest-api). That To has to name somebody: a message
      with cc or bcc alone is not for it.
    - {{...}} is its template language in from, subject, reply_to, headers and the bodies
      (documentation, inline content). perform_substitutions switches it off in the bodies alone; it
      has no escape. Where it stands in header_to is not confirmed, and taken for a header.
    - A List-Unsubscribe of the message's own is ignored in silence: SparkPost sets one (user guide,
      remove-list-unsubscribe-header; django-anymail, whose authors saw it).
    - It adds up whom it accepted and whom it rejected. A 200 may reject some, and rcpt_to_errors,
      which its reference shows and does not explain, need not name them (documentation). Where
      they cannot be told, all is unknown: some got the message and some did not.
    - A 200 that accepted nobody is a refusal if it tells an error, and else unknown: the reference
      shows such a one for a scheduled transmission. So is one whose numbers do not add up to all
      recipients.
    - Over a limit of the account is 420, "Exceed Sending Limit", and nothing is sent
      (documentation). A sending domain that is not verified is 400, code 7001 (documentation), or
      1100 where its DKIM is missing (not confirmed).
    - 500 and 503 are its own: to be tried again (documentation, API conventions).
    - A suppressed recipient is accepted, and an event tells; older accounts were answered 400,
      code 1902 (not confirmed).
    - One tag, campaign_id, of 64 bytes; start_time is at most 3 days ahead (documentation).
    - A file's type takes a charset (documentation, attachment object).
    - An inline image's name is its content id, and its file's name is not sent (documentation).
    - It is asked to keep our Message-ID (not confirmed), and several addresses in reply_to are
      joined by commas, as django-anymail does.
    - Addresses beyond ASCII left of the @ are delivered (django-anymail). Empty files are left to
      SparkPost to judge (not confirmed).
    """

    provider = "sparkpost"
    default_base_url = "https://api.sparkpost.com"
    reserved_headers = ("x-msys-",)
    capabilities = Capabilities(bcc_alone=False, tags=1, schedule_days=3, megabytes=20)
    refuses_in_2xx = True
    rules = (
        (400, r"\b(7001|1100)\b|sending domain", AccountRefused),
        (420, "", AccountRefused),
    )

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if len(_joined(message.to_recipients)) * len(message.recipients) > MAX_HEADER_TO:
            yield "It carries no to_recipients that are so many, repeated for every recipient."
        if any(len(tag.encode()) > MAX_TAG_BYTES for tag in message.tags):
            yield f"It carries at most {MAX_TAG_BYTES} bytes in a tag."
        if any(len(file.filename.encode()) > MAX_FILENAME_BYTES for file in message.attachments):
            yield f"It carries at most {MAX_FILENAME_BYTES} bytes in a file's name."
        if any("{{" in text for text in _rendered(message)):
            yield "It carries {{ in bodies alone: elsewhere it is its template language."
        for name in message.headers:
            if name.lower() in ITS_HEADERS:
                yield f"It carries no header {name}, which it sets itself."
        if len(json.dumps(message.event_data)) > MAX_METADATA_BYTES:
            yield f"It carries at most {MAX_METADATA_BYTES:,} bytes of metadata with our id."

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        payload = {
            "recipients": [
                {"address": {"email": address.email, "header_to": _joined(message.to_recipients)}}
                for address in message.recipients
            ],
            "content": _filled(
                {
                    "from": _filled(
                        {"email": message.from_email.email, "name": message.from_email.name}
                    ),
                    "reply_to": _joined(message.reply_to),
                    "subject": message.subject,
                    "text": message.raw_text_body,
                    "html": message.html_body,
                    "headers": _headers(message),
                    "attachments": [_file(file, file.filename) for file in message.attachments],
                    "inline_images": [_file(image, image.content_id) for image in message.inline],
                }
            ),
            "campaign_id": message.tags[0] if message.tags else None,
            "metadata": message.event_data,
            "options": _options(message),
        }
        return requests.Request(
            "POST",
            f"{self.base_url}/api/v1/transmissions",
            headers={"Authorization": self.api_key, "User-Agent": USER_AGENT},
            json=_filled(payload),
        )

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:
        """`{"results": {"id": "...", "total_accepted_recipients": 1, ...}}`."""
        results = answer.json_object.get("results")
        if not isinstance(results, dict):
            return self.unread(answer)
        found = results.get("id")
        message_id = found if isinstance(found, str) else None
        accepted, rejected = (results.get(f"total_{what}_recipients") for what in _COUNTED)
        if not answer.complete and (accepted is None or rejected is None):
            raise was_cut(answer)
        if not rejected:
            if accepted != len(message.recipients):
                raise OutcomeUnknown("It does not account for all of the recipients.")
            return Acceptance(message_id)
        errors = _dicts(results.get("rcpt_to_errors")) + _dicts(answer.json_object.get("errors"))
        if rejected == len(message.recipients) and errors:
            words = self.redacted(_text(errors), [message])
            raise MessageRejected(f"It rejected every recipient: {words}", summary="HTTP 200.")
        refused = self._refused(message, errors)
        if rejected == len(refused) and accepted == len(message.recipients) - rejected:
            return Acceptance(message_id, refused)
        raise OutcomeUnknown("It rejected some of the recipients, and does not say whom.")

    def _refused(self, message: EmailMessage, errors: list[dict[str, Any]]) -> dict[str, str]:
        """Why it rejected those recipients whose address stands in one of `errors`."""
        told = {word: error for error in errors for word in _words(_text([error]).lower())}
        return {
            address.key: self.redacted(_text([told[address.key]]), [message])
            for address in message.recipients
            if address.key in told
        }

    def error_text(self, answer: Answer) -> str:
        """`{"errors": [{"message": "...", "description": "...", "code": "7001"}]}`."""
        return _text(_dicts(answer.json_object.get("errors")))


def _words(text: str) -> list[str]:
    return [word.strip(".") for word in _BETWEEN_WORDS.split(text)]


def _rendered(message: EmailMessage) -> list[str]:
    """Every text in which it follows its template language whatever the options say."""
    addresses = [message.from_email, *message.reply_to, *message.to_recipients, *message.to_cc]
    return [message.subject, *map(str, addresses), *message.headers.values()]


def _headers(message: EmailMessage) -> dict[str, str]:
    ours = {"Message-ID": message.message_id_header, "Cc": _joined(message.to_cc)}
    return {**message.headers, **_filled(ours)}


def _options(message: EmailMessage) -> dict[str, Any]:
    options = {
        "open_tracking": message.track_opens,
        "click_tracking": message.track_clicks,
        "start_time": message.send_at and message.send_at.isoformat(timespec="seconds"),
        "perform_substitutions": False,
    }
    return {name: value for name, value in options.items() if value is not None}


def _joined(addresses: list[Address]) -> str:
    return ", ".join(map(str, addresses))


def _file(file: Attachment, name: str) -> dict[str, str]:
    return {"name": name, "type": file.full_type, "data": file.base64}


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(errors: list[dict[str, Any]]) -> str:
    words = (error.get(key) for error in errors for key in ("code", "message", "description"))
    return " ".join(str(word) for word in words if word)
