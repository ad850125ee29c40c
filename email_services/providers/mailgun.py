"""Mailgun, through requests.

Sources: documentation.mailgun.com (messages, responses), Mailgun's OpenAPI description.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any, Final

import requests

from email_services.abstract import MAX_TEXT, Acceptance, Standing, storable
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused
from email_services.http_service import (
    Complaint,
    HTTPEmailService,
    basic,
    complaint_of,
    joined,
    objects_in,
    parse_retry_after,
    shared_content,
)
from email_services.message import EmailMessage
from email_services.transport import Answer

MAX_PARAMETER_BYTES: Final = 16 * 1024
"""In the values of all fields that begin with o:, h:, v: or t: (documentation)."""


class Mailgun(HTTPEmailService):
    """Mailgun's messages API, `POST /v3/DOMAIN/messages`.

    Quirks, with their sources:

    - Quota is HTTP 420, which Mailgun does not document; the text names the end as a date
      (github.com/TryGhost/Ghost issues 15725 and 24494).
    - 429 has no documented Retry-After; the text says "try again after 120 seconds" (OpenAPI).
    - 401 is the bare string "Forbidden", not JSON (documentation, responses).
    - 500 is "Internal Error on the Mailgun side", to be tried again (documentation, responses); of
      503 it says nothing: see HTTPEmailService.
    - A 200 without an id is an acceptance if it says "Queued. Thank you." (documentation): one
      with other words, or with none, is not.
    - A wrong path is answered 200 "Mailgun Magnificent API", which is no acceptance (seen by the
      authors of django-anymail).
    - An account that is not activated gives 400, told apart by the text (not confirmed).
    - A sender beyond ASCII left of the @ leaves with broken headers (django-anymail).
    - `to` is required (documentation): a message with bcc alone is not for Mailgun.
    - A file's type is that of its part, with its charset (django-anymail issue 449).
    - The filename of an inline image is its content id (documentation).
    - `o:deliverytime` reaches 3 days ahead on every plan, 7 on some (documentation).
    - Headers, tags and metadata may have 16 KB together (documentation).
    - Metadata, `v:`, are in the header X-Mailgun-Variables, which recipients can read (OpenAPI). In
      a batch, each is a variable of the recipient's, called "v:KEY" (django-anymail).
    - A batch has no Message-ID of ours: a header is the same for all its recipients.
    - A domain's sending key may do nothing but send, so that its 401 is not told from a wrong key's
      (documentation, API keys). That a domain of the account is at `/v4/domains/DOMAIN`, its state
      and sending_dns_records, is from the OpenAPI description.
    """

    provider = "mailgun"
    default_base_url = "https://api.mailgun.net"
    account_path = "/v4/domains/{domain}"
    spf_names = ("mailgun.org", "eu.mailgun.org")
    reserved_headers = ("x-mailgun-",)
    capabilities = Capabilities(bcc_alone=False, schedule_days=3, megabytes=25)
    max_batch = 1000
    substitutes = True
    id_field = "id"
    codes = {420: AccountRefused}
    words = ((400, "sandbox|activate|not allowed to send", AccountRefused),)

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if not message.from_email.email.isascii():
            yield "It cannot send from an address beyond ASCII."
        if _parameter_bytes(message) > MAX_PARAMETER_BYTES:
            yield "It carries at most 16 KB of headers, tags and metadata together."

    def authentication(self) -> dict[str, str]:
        """The key as the password of "api"."""
        return {"Authorization": basic("api", self.api_key)}

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        return self._request(
            message,
            {
                "to": [str(address) for address in message.to_recipients],
                "cc": [str(address) for address in message.to_cc],
                "bcc": [str(address) for address in message.to_bcc],
                "subject": message.subject,
                "h:Message-Id": message.message_id_header,
                "text": message.raw_text_body,
                "html": message.html_body,
                **{f"v:{key}": value for key, value in message.event_data.items()},
            },
        )

    def batch_key(self, message: EmailMessage) -> Hashable | None:
        """Messages of one content, each to one recipient who sees nobody else.

        Their metadata have the same keys: a key that one lacks would come back empty.
        """
        if any(_RESERVED in value for value in message.metadata.values()):
            return None
        content = shared_content(message, reserved=_RESERVED)
        return content and (content, *sorted(message.metadata))

    def build_batch(self, messages: Sequence[EmailMessage]) -> requests.Request:
        """One content with `recipient-variables`; HTML has variables of its own, escaped."""
        first = messages[0]
        variables = {message.to_recipients[0].email: _variables(message) for message in messages}
        return self._request(
            first,
            {
                "to": [str(message.to_recipients[0]) for message in messages],
                "recipient-variables": json.dumps(variables),
                "subject": first.marked(first.subject, _TEXT_VARIABLE),
                "text": first.marked(first.raw_text_body, _TEXT_VARIABLE),
                "html": first.marked(first.html_body, _HTML_VARIABLE),
                **{f"v:{key}": _DATA_VARIABLE(key) for key in first.event_data},
            },
        )

    def _request(self, message: EmailMessage, its_own: dict[str, Any]) -> requests.Request:
        """Of what a message and a batch have in common."""
        fields = {
            "from": str(message.from_email),
            **its_own,
            "h:Reply-To": joined(message.reply_to),
            **{f"h:{name}": value for name, value in message.headers.items()},
            "o:tag": message.tags,
            "o:tracking-opens": _YES_OR_NO.get(message.track_opens),
            "o:tracking-clicks": _YES_OR_NO.get(message.track_clicks),
            "o:deliverytime": message.send_at and format_datetime(message.send_at),
        }
        files = [
            *(("attachment", (f.filename, f.content, f.full_type)) for f in message.attachments),
            *(("inline", (f.content_id, f.content, f.full_type)) for f in message.inline),
        ]
        return self.post(f"/v3/{self.email_domain}/messages", data=_pairs(fields), files=files)

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:
        """The id keeps its angle brackets, as Mailgun's events and logs show it."""
        said = answer.json_object
        if "id" not in said and str(said.get("message", "")).startswith("Queued"):
            return Acceptance()
        return super().read_acceptance(answer, message)

    def read_standing(self, answer: Answer) -> Standing:
        """The domain's state, and the DNS records that it asks for."""
        if answer.status == HTTPStatus.UNAUTHORIZED:
            return Standing(note="The key is wrong, or one that may only send.")
        if answer.status == HTTPStatus.NOT_FOUND and answer.claims_json:
            return Standing(account=True, domain=False, note="The account has no such domain.")
        standing = super().read_standing(answer)
        state = answer.json_object.get("domain", {})
        records = objects_in(answer.json_object.get("sending_dns_records"))
        names = (str(record.get("name", "")) for record in records)
        selectors = (name.partition("._domainkey.")[0] for name in names if "._domainkey." in name)
        said = state.get("state") if isinstance(state, dict) else None
        return replace(
            standing,
            domain=None if said is None else said == "active",
            note="" if said in {None, "active"} else f"The domain is {storable(str(said)[:40])}.",
            dkim=tuple(selectors),
        )

    def complaint(self, answer: Answer) -> Complaint:
        """`{"message": "..."}`, or a bare string."""
        if answer.claims_json:
            return complaint_of(answer.json, "message")
        return Complaint("Forbidden" if answer.body.strip() == b"Forbidden" else "")

    def retry_after(self, answer: Answer) -> float | None:
        """From the text where the header is missing."""
        seconds = super().retry_after(answer)
        said = _TRY_AGAIN.search(self.complaint(answer).text[:MAX_TEXT])
        if seconds is None and said:
            return parse_retry_after(said[1] or said[2], time.time())
        return seconds


_TEXT_VARIABLE = "%recipient.text_{}%".format
_HTML_VARIABLE = "%recipient.html_{}%".format
_DATA_VARIABLE = "%recipient.v:{}%".format
_RESERVED = "%recipient"

_TRY_AGAIN = re.compile(r"try again after (?:(\d+) seconds|(.+ (?:UTC|GMT)))")
_YES_OR_NO: Final[dict[bool | None, str]] = {True: "yes", False: "no"}


def _variables(message: EmailMessage) -> dict[str, str]:
    values = message.substitutions or {}
    return {
        **{f"text_{name}": value for name, value in values.items()},
        **{f"html_{name}": html.escape(value) for name, value in values.items()},
        **{f"v:{key}": value for key, value in message.event_data.items()},
    }


def _pairs(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """One for each value; a list is several, and what is empty none."""
    given = ((name, each if isinstance(each, list) else [each]) for name, each in fields.items())
    return [(name, value) for name, values in given for value in values if value]


def _parameter_bytes(message: EmailMessage) -> int:
    tags = ((tag, "") for tag in message.tags)
    pairs = (*message.headers.items(), *message.event_data.items(), *tags)
    return sum(len(name.encode()) + len(value.encode()) for name, value in pairs)
