"""SparkPost (Bird).

Sources: SparkPost's own documentation (github.com/SparkPost/developers.sparkpost.com,
content/api/transmissions.apib).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import requests

from email_services.abstract import Acceptance, Standing
from email_services.attachments import Attachment
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused, MessageRejected, OutcomeUnknown
from email_services.http_service import (
    Complaint,
    HTTPEmailService,
    complaint_of,
    filled,
    id_from,
    joined,
    objects_in,
    refuse_cut,
)
from email_services.message import MEGABYTE, EmailMessage
from email_services.transport import Answer

MAX_TAG_BYTES: Final = 64
MAX_FILENAME_BYTES: Final = 255
MAX_HEADER_TO: Final = 5 * MEGABYTE
"""Characters of all header_to together, each of which names everybody in to; our own limit."""

_COUNTED: Final = ("total_accepted_recipients", "total_rejected_recipients")
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
    - Metadata may have 10,000 bytes of JSON (documentation; another version of it says 1000).
    - A file's type takes a charset (documentation, attachment object).
    - An inline image's name is its content id, and its file's name is not sent (documentation).
    - It is asked to keep our Message-ID (not confirmed), and several addresses in reply_to are
      joined by commas, as django-anymail does.
    - Addresses beyond ASCII left of the @ are delivered (django-anymail). Empty files are left to
      SparkPost to judge (not confirmed).
    - `/api/v1/sending-domains/DOMAIN` has `status.ownership_verified` and `dkim.selector`
      (documentation). A key without the grant to read them is refused with 403, as a wrong key may
      be (not confirmed).
    """

    provider = "sparkpost"
    default_base_url = "https://api.sparkpost.com"
    account_path = "/api/v1/sending-domains/{domain}"
    spf_names = ("sparkpostmail.com", "_spf.sparkpostmail.com")
    reserved_headers = ("x-msys-",)
    capabilities = Capabilities(
        bcc_alone=False,
        own_headers=frozenset({"list-unsubscribe", "list-unsubscribe-post"}),
        tags=1,
        metadata_bytes=10_000,
        schedule_days=3,
        megabytes=20,
    )
    refuses_in_2xx = True
    codes = {
        420: AccountRefused,
        "1100": AccountRefused,
        "7001": AccountRefused,
    }
    words = ((400, "sending domain", AccountRefused),)

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if len(joined(message.to_recipients)) * len(message.recipients) > MAX_HEADER_TO:
            yield "It carries no to_recipients that are so many, repeated for every recipient."
        if any(len(tag.encode()) > MAX_TAG_BYTES for tag in message.tags):
            yield f"It carries at most {MAX_TAG_BYTES} bytes in a tag."
        if any(len(file.filename.encode()) > MAX_FILENAME_BYTES for file in message.attachments):
            yield f"It carries at most {MAX_FILENAME_BYTES} bytes in a file's name."
        if any("{{" in text for text in _rendered(message)):
            yield "It carries {{ in bodies alone: elsewhere it is its template language."

    def authentication(self) -> dict[str, str]:
        """The key alone."""
        return {"Authorization": self.api_key}

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        shown = joined(message.to_recipients)
        sender = {"email": message.from_email.email, "name": message.from_email.name}
        content = {
            "from": filled(sender),
            "reply_to": joined(message.reply_to),
            "subject": message.subject,
            "text": message.raw_text_body,
            "html": message.html_body,
            "headers": {
                **message.headers,
                **filled({"Message-ID": message.message_id_header, "Cc": joined(message.to_cc)}),
            },
            "attachments": [_file(file, file.filename) for file in message.attachments],
            "inline_images": [_file(image, image.content_id) for image in message.inline],
        }
        options = {
            "open_tracking": message.track_opens,
            "click_tracking": message.track_clicks,
            "start_time": message.send_at and message.send_at.isoformat(timespec="seconds"),
            "perform_substitutions": False,
        }
        payload = {
            "recipients": [
                {"address": {"email": address.email, "header_to": shown}}
                for address in message.recipients
            ],
            "content": filled(content),
            "campaign_id": "".join(message.tags),  # there is one at most
            "metadata": message.event_data,
            "options": filled(options),
        }
        return self.post("/api/v1/transmissions", json=filled(payload))

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:
        """`{"results": {"id": "...", "total_accepted_recipients": 1, ...}}`."""
        results = answer.json_object.get("results")
        if not isinstance(results, dict):
            return self.unread(answer)
        refuse_cut(answer, results, *_COUNTED)
        message_id = id_from(results.get("id"))
        accepted, rejected = map(results.get, _COUNTED)
        if not rejected:
            if accepted != len(message.recipients):
                raise OutcomeUnknown("It does not account for all of the recipients.")
            return Acceptance(message_id)
        errors = [
            *objects_in(results.get("rcpt_to_errors")),
            *objects_in(answer.json_object.get("errors")),
        ]
        if rejected == len(message.recipients) and errors:
            words = self.redacted(_told(errors).text, [message])
            raise MessageRejected(f"It rejected every recipient: {words}", summary="HTTP 200.")
        refused = self._refused(message, errors)
        if rejected == len(refused) and accepted == len(message.recipients) - rejected:
            return Acceptance(message_id, refused)
        raise OutcomeUnknown("It rejected some of the recipients, and does not say whom.")

    def _refused(self, message: EmailMessage, errors: list[dict[str, Any]]) -> dict[str, str]:
        """Why it rejected those recipients whose address stands in one of `errors`."""
        texts = [_told(error).text for error in errors]
        told = {word: text for text in texts for word in _words(text.lower())}
        return {
            address.key: self.redacted(told[address.key], [message])
            for address in message.recipients
            if address.key in told
        }

    def read_standing(self, answer: Answer) -> Standing:
        """The status of the sending domain."""
        if answer.status == HTTPStatus.FORBIDDEN:
            return Standing(note="The key may not ask about sending domains.")
        if answer.status == HTTPStatus.NOT_FOUND and answer.claims_json:
            return Standing(account=True, domain=False, note="The account has no such domain.")
        standing = super().read_standing(answer)
        told = answer.json_object.get("results")
        results: dict[str, Any] = told if isinstance(told, dict) else {}
        status, dkim = results.get("status"), results.get("dkim")
        selector = dkim.get("selector") if isinstance(dkim, dict) else None
        verified = status.get("ownership_verified") if isinstance(status, dict) else None
        return replace(
            standing,
            domain=verified if isinstance(verified, bool) else None,
            dkim=(selector,) if isinstance(selector, str) else (),
        )

    def complaint(self, answer: Answer) -> Complaint:
        """`{"errors": [{"message": "...", "description": "...", "code": "7001"}]}`."""
        return _told(answer.json_object.get("errors"))


def _told(errors: Any) -> Complaint:
    return complaint_of(errors, "code", "message", "description", code="code")


def _words(text: str) -> list[str]:
    return [word.strip(".") for word in _BETWEEN_WORDS.split(text)]


def _rendered(message: EmailMessage) -> list[str]:
    """Every text in which it follows its template language whatever the options say."""
    addresses = [message.from_email, *message.reply_to, *message.to_recipients, *message.to_cc]
    return [message.subject, *map(str, addresses), *message.headers.values()]


def _file(file: Attachment, name: str) -> dict[str, str]:
    return {"name": name, "type": file.full_type, "data": file.base64}
