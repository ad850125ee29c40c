"""Messages that a service keeps on this machine: what they hold, and the answers that give it."""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import Any, Final

from markupsafe import escape
from werkzeug.wrappers import Response

from browsable_api import APIError
from email_services.captured import CapturedMail
from email_services.config import EmailDomain
from email_services.exceptions import UnknownMessage
from email_services.store import LoggedMessage
from endpoints.answers import address_of
from endpoints.context import mailpool, pool_of

MAIL_POLICY: Final = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
"""For HTML that somebody else wrote: an origin of its own, in which nothing runs, is fetched or is
sent. Inline styles are what mail is made of, and can do none of that."""


def message_in_log(domain: EmailDomain, message_id: str) -> LoggedMessage:
    """The message of the domain's log. Raises UnknownMessage."""
    is_one = re.fullmatch(r"[0-9a-f]{32}", message_id)
    name = domain.email_domain
    found = is_one and mailpool.store.messages(name, time.time(), message_id=message_id)
    if not found:
        raise UnknownMessage(message_id)
    return found[0]


def captured_as_dict(domain: EmailDomain, message: LoggedMessage) -> dict[str, Any] | None:
    """What the mail holds and where to see it; None where this machine does not keep it."""
    mail = _mail(domain, message)
    if mail is None:
        return None
    at = {"email_domain": domain.email_domain, "message_id": message.message_id}
    return {
        "headers": [{"name": name, "value": value} for name, value in mail.headers],
        "text": mail.text,
        "content_url": address_of("content", **at),
        "source_url": address_of("source", **at),
        "files": [
            {
                "filename": file.filename,
                "content_type": file.content_type,
                "bytes": len(file.content),
                "url": address_of("file", number=str(number), **at),
            }
            for number, file in enumerate(mail.files, 1)
        ],
    }


def content_answer(domain: EmailDomain, message_id: str) -> Response:
    """The mail's HTML, or its text as HTML, for a frame. Raises UnknownMessage and APIError."""
    mail = _kept(domain, message_id)
    return html_of_others(mail.html or f"<pre>{escape(mail.text)}</pre>")


def source_answer(domain: EmailDomain, message_id: str) -> Response:
    """The mail as it is kept. Raises UnknownMessage and APIError."""
    return _sandboxed(Response(_kept(domain, message_id).source, mimetype="text/plain"))


def file_answer(domain: EmailDomain, message_id: str, number: int) -> Response:
    """A file in the mail, to be saved. Raises UnknownMessage and APIError."""
    files = _kept(domain, message_id).files
    if not 1 <= number <= len(files):
        raise APIError(HTTPStatus.NOT_FOUND, "The message has no such file.")
    # Never its own type: a browser might show it, and what it is was said by whoever sent it.
    response = Response(files[number - 1].content, mimetype="application/octet-stream")
    response.headers.set(
        "Content-Disposition", "attachment", filename=_one_line(files[number - 1].filename)
    )
    return _sandboxed(response)


def html_of_others(html: str) -> Response:
    """HTML that somebody else wrote, in `MAIL_POLICY`."""
    return _sandboxed(Response(html.encode("utf-8", "replace"), mimetype="text/html"))


def _sandboxed(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = MAIL_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _one_line(filename: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f/\\]", "_", filename)


def _kept(domain: EmailDomain, message_id: str) -> CapturedMail:
    mail = _mail(domain, message_in_log(domain, message_id))
    if mail is None:
        raise APIError(HTTPStatus.NOT_FOUND, "This server does not keep the content of it.")
    return mail


def _mail(domain: EmailDomain, message: LoggedMessage) -> CapturedMail | None:
    service = pool_of(domain).services.get(message.service_used or "")
    if service is None or message.service_message_id is None:
        return None
    source = service.kept(message.service_message_id)
    return None if source is None else CapturedMail.parse(source)
