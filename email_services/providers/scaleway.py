"""Scaleway Transactional Email (TEM).

Sources, read 2026-11-24: www.scaleway.com/en/developers/api/transactional-email (the reference),
www.scaleway.com/en/docs/transactional-email (limits and how-to pages), and what Scaleway's own
clients (github.com/scaleway/scaleway-sdk-js and -python) say of fields and errors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from email.header import Header
from typing import ClassVar, Final

import requests
from pydantic import Field

from email_services.abstract import Acceptance, ServiceSettings, Standing
from email_services.addresses import Address
from email_services.attachments import Attachment
from email_services.capabilities import Capabilities
from email_services.exceptions import AccountRefused, LoginRefused
from email_services.http_service import (
    APIKeySettings,
    Complaint,
    HTTPEmailService,
    complaint_of,
    filled,
    id_from,
    objects_in,
    parse_retry_after,
)
from email_services.message import EmailMessage
from email_services.transport import Answer

FILE_TYPES: Final = frozenset(
    {
        *("application/acad", "application/acad-template", "application/autocad_dwg"),
        *("application/autocad_dxf", "application/dwf", "application/dxf", "application/ics"),
        *("application/msword", "application/pdf", "application/pkcs10", "application/pkcs7-mime"),
        *("application/pkcs7-signature", "application/vnd.dwt", "application/vnd.ms-excel"),
        "application/vnd.oasis.opendocument.spreadsheet",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.template",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        *("application/x-dwf", "application/x-dwg", "application/x-dwt", "application/x-pkcs12"),
        *("application/x-pkcs7-certificates", "application/x-pkcs7-certreqresp"),
        *("application/x-pkcs7-crl", "application/x-pkcs7-mime", "application/x-pkcs7-signature"),
        *("application/xml", "application/zip", "audio/mpeg", "audio/wav", "image/gif"),
        *("image/jpeg", "image/jpg", "image/png", "image/svg+xml", "image/tiff", "image/vnd.dwg"),
        *("image/vnd.dxf", "image/webp", "model/vnd.dwf", "text/calendar", "text/csv", "text/html"),
        *("text/plain", "text/xml"),
    }
)
"""The files that it takes (docs/transactional-email/reference-content/tem-capabilities-and-limits);
ZIP with its Scale plan only, which it has to say itself."""


class ScalewaySettings(APIKeySettings):
    """What config.json may say of a Scaleway service."""

    project_id: str = Field(
        pattern="^[0-9a-fA-F-]{36}$",
        description="The id of the project that the domain belongs to.",
    )


class Scaleway(HTTPEmailService):
    """Scaleway's `POST /transactional-email/v1alpha1/regions/fr-par/emails`.

    Quirks, with their sources (limits: tem-capabilities-and-limits of its documentation):

    - The key is the secret key of an API key, in `X-Auth-Token` (reference). There is no region
      but fr-par (limits; scaleway-sdk-js, packages_generated/tem).
    - 10 recipients and 10 files are the quotas of a new account, which Scaleway raises on request;
      2 MB, with the files, are for everybody (limits). It does not say whether that is before or
      after base64, nor whether MB are MiB: after, and 10^6, is what surely fits.
    - Files of some types only (limits). No images in the text: a file has a name, a type and a
      content (scaleway-sdk-python, tem/v1alpha1/types.py).
    - The 10 characters that a subject, text and HTML once needed are gone from the limits and from
      scaleway-cli (#5162), though not from each how-to page: should it still want them, it says so.
    - Reply-To is one of `additional_headers` (how-to "send emails with API"; scaleway-sdk-js #848),
      so its names are encoded here: it encodes those of from, to, cc and bcc, not those in a header
      (tests of django-anymail's backend for it, which is tried against the API).
    - An address beyond ASCII left of the @ makes a message that is lost, and a file's name beyond
      ASCII arrives in RFC 2047 form, which is not for names (django-anymail, docs/esps/scaleway.rst
      and tests/test_scaleway_backend.py).
    - No tags, tracking, scheduling (`send_before` is a deadline) nor batches (reference).
    - No metadata either, but its events give back the headers (webhook-events-payloads): they go
      along as a header, in JSON that fits into a line. Recipients can see it.
    - An answer has an email for each recipient. Its `id` is that recipient's, `message_id` the same
      in all; the list of emails can be asked for it (reference). A recipient on a blocklist is
      accepted and refused later (manage-blocklists), so a 2xx never refuses.
    - Errors have a `type`, most also `details` (scaleway-sdk-js, packages/client/src/scw/errors):
      400 invalid_arguments, 401 denied_authentication, 403 permissions_denied and quotas_exceeded,
      404 not_found, 409 transient_state, 410 expired, 412 precondition_failed, 423 locked,
      429 too_many_requests with `reset_seconds`.
    - Of 500 and 503 it says nothing but that 5xx are its own errors: see HTTPEmailService.

    Not confirmed: that it takes a message with nobody in `to` (so none is sent), a file of 0 bytes
    (sent), what becomes of a Message-ID of ours (not sent: it has its own `message_id`), and which
    error tells of a sender's domain that is not checked, or blocked: locked and precondition_failed
    are taken for the account's, as is an invalid `project_id`.
    - Domains are listed by project and name, with a status of which "checked" is the good one
      (reference); a DKIM selector is the project's own.
    """

    provider = "scaleway"
    default_base_url = "https://api.scaleway.com"
    account_path = (
        "/transactional-email/v1alpha1/regions/fr-par/domains"
        "?project_id={settings.project_id}&name={domain}"
    )
    spf_names = ("_spf.tem.scaleway.com",)
    Settings: ClassVar[type[ServiceSettings]] = ScalewaySettings
    settings: ScalewaySettings
    capabilities = Capabilities(
        recipients=10,
        bcc_alone=False,
        any_local_part=False,
        attachments=10,
        inline=0,
        any_filename=False,
        tags=0,
        metadata_bytes=998 - len("X-Mailpool-Metadata: "),
        tracking=False,
        schedule_days=0,
        megabytes=2,
    )
    codes = {
        "expired": LoginRefused,
        "locked": AccountRefused,
        "precondition_failed": AccountRefused,
    }
    words = (("invalid_arguments", r"\bproject_id\b", AccountRefused),)

    def authentication(self) -> dict[str, str]:
        """See HTTPEmailService."""
        return {"X-Auth-Token": self.api_key}

    def lacking(self, message: EmailMessage) -> Iterable[str]:
        """See AbstractEmailService."""
        for file in message.attachments:
            if file.content_type.lower() not in FILE_TYPES:
                yield f"It carries no file of the type {file.content_type}."

    def build_request(self, message: EmailMessage) -> requests.Request:
        """See HTTPEmailService."""
        headers = {
            "Reply-To": ", ".join(map(_in_ascii, message.reply_to)),
            "X-Mailpool-Metadata": json.dumps(message.event_data),
            **message.headers,
        }
        payload = {
            "project_id": self.settings.project_id,
            "from": _mailbox(message.from_email),
            "to": [_mailbox(address) for address in message.to_recipients],
            "cc": [_mailbox(address) for address in message.to_cc],
            "bcc": [_mailbox(address) for address in message.to_bcc],
            "subject": message.subject,
            "text": message.raw_text_body,
            "html": message.html_body,
            "attachments": [_file(attachment) for attachment in message.attachments],
            "additional_headers": [
                {"key": name, "value": value} for name, value in filled(headers).items()
            ],
        }
        return self.post(
            "/transactional-email/v1alpha1/regions/fr-par/emails", json=filled(payload)
        )

    def read_acceptance(self, answer: Answer, message: EmailMessage) -> Acceptance:  # noqa: ARG002
        """`{"emails": [{"id": "...", "message_id": "...", "mail_rcpt": "..."}]}`."""
        said = answer.json_object
        if "emails" not in said:
            return self.unread(answer)
        ids = (id_from(email.get("message_id")) for email in objects_in(said["emails"]))
        return Acceptance(next(filter(None, ids), None))

    def read_standing(self, answer: Answer) -> Standing:
        """The project's domains and their status."""
        standing = super().read_standing(answer)
        domains = objects_in(answer.json_object.get("domains"))
        states = [d.get("status") for d in domains if d.get("name") == self.email_domain]
        if not states:
            return replace(standing, domain=False, note="The project has no such domain.")
        return replace(standing, domain="checked" in states)

    def complaint(self, answer: Answer) -> Complaint:
        """`{"type": "invalid_arguments", "message": "...", "details": [{"argument_name": ...}]}`.

        What is wrong is in different fields for each type.
        """
        said = answer.json_object
        told = [said, *objects_in(said.get("details"))]
        fields = ("message", "help_message", "argument_name", "reason", "action", "resource")
        return complaint_of(told, *fields, "precondition", code="type")

    def retry_after(self, answer: Answer) -> float | None:
        """`{"type": "too_many_requests", "reset_seconds": 13}`."""
        said = super().retry_after(answer)
        seconds = answer.json_object.get("reset_seconds")
        if said is None and isinstance(seconds, int):
            return parse_retry_after(str(seconds), time.time())
        return said


def _mailbox(address: Address) -> dict[str, str]:
    return filled({"email": address.email, "name": address.name})


def _in_ascii(address: Address) -> str:
    if address.name.isascii():
        return str(address)
    return f"{Header(address.name, 'utf-8', 75).encode(linesep='')} <{address.email}>"


def _file(attachment: Attachment) -> dict[str, str]:
    return {
        "name": attachment.filename,
        "type": attachment.full_type,
        "content": attachment.base64,
    }
