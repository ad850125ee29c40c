"""Mailgun, through requests.

Sources: documentation.mailgun.com (messages, responses), Mailgun's OpenAPI description.
"""

from __future__ import annotations

import base64
import re
import time
from email.utils import parsedate_to_datetime

import requests

from email_services.abstract import USER_AGENT, HTTPEmailService, not_the_providers
from email_services.exceptions import AccountRefused, MessageRejected
from email_services.message import EmailMessage
from email_services.transport import Answer


class Mailgun(HTTPEmailService):
    """Mailgun's messages API, `POST /v3/DOMAIN/messages`.

    Quirks, with their sources:

    - Quota is HTTP 420, which Mailgun does not document; the text names the end as a date
      (github.com/TryGhost/Ghost issues 15725 and 24494).
    - 429 has no documented Retry-After; the text says "try again after 120 seconds" (OpenAPI).
    - 401 is the bare string "Forbidden", not JSON (documentation, responses).
    - A wrong path is answered 200 "Mailgun Magnificent API", which is no acceptance (seen by the
      authors of django-anymail).
    - An account that is not activated gives 400, told apart by the text (not confirmed).
    - A sender beyond ASCII left of the @ leaves with broken headers (django-anymail).
    - `to` is required (documentation): a message with bcc alone is not for Mailgun.
    """

    default_base_url = "https://api.mailgun.net"
    rules = (
        (400, r"sandbox|activate|not allowed to send", AccountRefused),
        (420, "", AccountRefused),
    )

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        if not message.to_recipients:
            raise MessageRejected("Mailgun needs an address in to_recipients.")
        if not message.from_email.email.isascii():
            raise MessageRejected("Mailgun cannot send from an address beyond ASCII.")
        form = [
            ("from", str(message.from_email)),
            *(("to", str(address)) for address in message.to_recipients),
            *(("cc", str(address)) for address in message.to_cc),
            *(("bcc", str(address)) for address in message.to_bcc),
            ("subject", message.subject),
            ("h:Message-Id", message.message_id_header),
        ]
        if message.raw_text_body:
            form.append(("text", message.raw_text_body))
        if message.html_body:
            form.append(("html", message.html_body))
        return requests.Request(
            "POST",
            f"{self.base_url}/v3/{self.email_domain}/messages",
            auth=("api", self.api_key),
            headers={"User-Agent": USER_AGENT},
            data=form,
        )

    def read_acceptance(self, answer: Answer) -> str | None:
        """The id keeps its angle brackets, as Mailgun's events and logs show it."""
        if isinstance(answer.json, dict):
            if answer.json and not answer.json.keys() & {"id", "message"}:
                raise not_the_providers(answer)
            queued = answer.json.get("id")
            return queued if isinstance(queued, str) else None
        if answer.claims_json and not answer.complete:
            return None
        raise not_the_providers(answer)

    def error_text(self, answer: Answer) -> str:
        """`{"message": "..."}`, or a bare string."""
        if answer.claims_json:
            return str(answer.json_object.get("message", ""))
        return "Forbidden" if answer.body.strip() == b"Forbidden" else ""

    def secrets(self) -> tuple[str, ...]:
        """The key, and as Basic authentication encodes it."""
        return (self.api_key, base64.b64encode(f"api:{self.api_key}".encode()).decode())

    def retry_after(self, answer: Answer) -> float | None:
        """From the text where the header is missing."""
        seconds = super().retry_after(answer)
        return _try_again_after(self.error_text(answer)) if seconds is None else seconds


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
