"""Mailgun, through requests.

Sources: documentation.mailgun.com (messages, responses), Mailgun's OpenAPI description.
"""

from __future__ import annotations

import base64
import html
import json
import re
import time
from collections.abc import Hashable, Iterable, Sequence
from email.utils import format_datetime, parsedate_to_datetime
from typing import Final

import requests

from email_services.abstract import (
    MAX_TEXT,
    USER_AGENT,
    Acceptance,
    HTTPEmailService,
    shared_content,
)
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused, ProviderError
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
    """

    provider = "mailgun"
    default_base_url = "https://api.mailgun.net"
    reserved_headers = ("x-mailgun-",)
    capabilities = Capabilities(bcc_alone=False, schedule_days=3, megabytes=25)
    max_batch = 1000
    substitutes = True
    rules = (
        (400, r"sandbox|activate|not allowed to send", AccountRefused),
        (420, "", AccountRefused),
    )

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        if not message.from_email.email.isascii():
            yield "It cannot send from an address beyond ASCII."
        if _parameter_bytes(message) > MAX_PARAMETER_BYTES:
            yield "It carries at most 16 KB of headers, tags and metadata together."

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        return self._request(
            message,
            [
                *(("to", str(address)) for address in message.to_recipients),
                *(("cc", str(address)) for address in message.to_cc),
                *(("bcc", str(address)) for address in message.to_bcc),
                ("subject", message.subject),
                ("h:Message-Id", message.message_id_header),
                *_bodies(message.raw_text_body, message.html_body),
                *((f"v:{key}", value) for key, value in message.event_data.items()),
            ],
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
            [
                *(("to", str(message.to_recipients[0])) for message in messages),
                ("recipient-variables", json.dumps(variables)),
                ("subject", first.marked(first.subject, _TEXT_VARIABLE)),
                *_bodies(
                    first.marked(first.raw_text_body, _TEXT_VARIABLE),
                    first.marked(first.html_body, _HTML_VARIABLE),
                ),
                *((f"v:{key}", _DATA_VARIABLE(key)) for key in first.event_data),
            ],
        )

    def read_batch(
        self, answer: Answer, messages: Sequence[EmailMessage]
    ) -> list[Acceptance | ProviderError]:
        """Mailgun takes all or none, and has one id for them."""
        return [self.read_acceptance(answer, message) for message in messages]

    def _request(self, message: EmailMessage, fields: list[tuple[str, str]]) -> requests.Request:
        form = [("from", str(message.from_email)), *fields]
        if message.reply_to:
            form.append(("h:Reply-To", ", ".join(map(str, message.reply_to))))
        form += [(f"h:{name}", value) for name, value in message.headers.items()]
        form += [("o:tag", tag) for tag in message.tags]
        if message.track_opens is not None:
            form.append(("o:tracking-opens", _yes_or_no(message.track_opens)))
        if message.track_clicks is not None:
            form.append(("o:tracking-clicks", _yes_or_no(message.track_clicks)))
        if message.send_at:
            form.append(("o:deliverytime", format_datetime(message.send_at)))
        files = [
            *(("attachment", (f.filename, f.content, f.full_type)) for f in message.attachments),
            *(("inline", (f.content_id, f.content, f.full_type)) for f in message.inline),
        ]
        return requests.Request(
            "POST",
            f"{self.base_url}/v3/{self.email_domain}/messages",
            auth=("api", self.api_key),
            headers={"User-Agent": USER_AGENT},
            data=form,
            files=files,
        )

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:  # noqa: ARG002
        """The id keeps its angle brackets, as Mailgun's events and logs show it."""
        said = answer.json_object
        if "id" not in said and not str(said.get("message", "")).startswith("Queued"):
            return self.unread(answer)
        queued = said.get("id")
        return Acceptance(queued if isinstance(queued, str) else None)

    def error_text(self, answer: Answer) -> str:
        """`{"message": "..."}`, or a bare string."""
        if answer.claims_json:
            return str(answer.json_object.get("message", ""))
        return "Forbidden" if answer.body.strip() == b"Forbidden" else ""

    def secret_texts(self) -> tuple[str, ...]:
        """The key, and as Basic authentication encodes it."""
        return (self.api_key, base64.b64encode(f"api:{self.api_key}".encode()).decode())

    def retry_after(self, answer: Answer) -> float | None:
        """From the text where the header is missing."""
        seconds = super().retry_after(answer)
        return _try_again_after(self.error_text(answer)[:MAX_TEXT]) if seconds is None else seconds


_TEXT_VARIABLE = "%recipient.text_{}%".format
_HTML_VARIABLE = "%recipient.html_{}%".format
_DATA_VARIABLE = "%recipient.v:{}%".format
_RESERVED = "%recipient"


def _variables(message: EmailMessage) -> dict[str, str]:
    values = message.substitutions or {}
    return {
        **{f"text_{name}": value for name, value in values.items()},
        **{f"html_{name}": html.escape(value) for name, value in values.items()},
        **{f"v:{key}": value for key, value in message.event_data.items()},
    }


def _bodies(text: str, rich: str) -> list[tuple[str, str]]:
    return [(name, body) for name, body in (("text", text), ("html", rich)) if body]


def _yes_or_no(wanted: bool) -> str:
    return "yes" if wanted else "no"


def _parameter_bytes(message: EmailMessage) -> int:
    tags = ((tag, "") for tag in message.tags)
    pairs = (*message.headers.items(), *message.event_data.items(), *tags)
    return sum(len(name.encode()) + len(value.encode()) for name, value in pairs)


def _try_again_after(text: str) -> float | None:
    match = re.search(r"try again after (?:(\d+) seconds|(.+ (?:UTC|GMT)))", text)
    if not match:
        return None
    seconds, date = match.groups()
    if seconds:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
