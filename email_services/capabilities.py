"""What a provider can carry, declared: a message that holds more is not taken to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from email_services.message import (
    DAY_SECONDS,
    MAX_DAYS_AHEAD,
    MAX_FILES,
    MAX_HEADERS,
    MAX_RECIPIENTS,
    MAX_REPLY_TO,
    MAX_TAGS,
    MEGABYTE,
    EmailMessage,
)

UTF_8: Final = (None, "utf-8", "utf8", "us-ascii", "ascii")
"""What a file's charset is where nothing is lost if it is taken for UTF-8."""


@dataclass(frozen=True)
class Capabilities:
    """What a provider can carry of a message; by default everything that a message may hold.

    Numbers are the most it takes. recipients: over to, cc and bcc. bcc_alone: a message with
    nobody in to. any_local_part: addresses beyond ASCII left of the @. any_filename: names of
    files beyond ASCII. any_charset: text files in another charset than UTF-8.
    empty_files: files of 0 bytes. own_headers: those that it sets itself, in lower case.
    metadata_bytes: of the metadata with our id, as JSON. attachments_scheduled: files and `send_at`
    together. schedule_days: how far ahead, 0 for not at all. megabytes: bodies and files in base64.
    None is for no limit of its own.
    """

    recipients: int = MAX_RECIPIENTS
    bcc_alone: bool = True
    any_local_part: bool = True
    reply_to: int = MAX_REPLY_TO
    headers: int = MAX_HEADERS
    own_headers: frozenset[str] = frozenset()
    attachments: int = MAX_FILES
    inline: int = MAX_FILES
    any_filename: bool = True
    any_charset: bool = True
    empty_files: bool = True
    tags: int = MAX_TAGS
    metadata: bool = True
    metadata_bytes: int | None = None
    tracking: bool = True
    schedule_days: float = MAX_DAYS_AHEAD
    attachments_scheduled: bool = True
    megabytes: float | None = None

    def lacking(self, message: EmailMessage, now: float) -> Iterator[str]:
        """A sentence for each thing in `message` that it cannot carry.

        now: seconds since the epoch.
        """
        yield from self._too_many(message)
        yield from self._files(message)
        addresses = (message.from_email, *message.recipients, *message.reply_to)
        if not self.any_local_part and not all(a.email.isascii() for a in addresses):
            yield "It carries no address beyond ASCII left of the @."
        if not self.bcc_alone and not message.to_recipients:
            yield "It needs an address in to_recipients."
        for name in message.headers:
            if name.lower() in self.own_headers:
                yield f"It carries no header {name}, which it sets itself."
        if not self.metadata and message.metadata:
            yield "It carries no metadata."
        if self.metadata_bytes and len(json.dumps(message.event_data)) > self.metadata_bytes:
            yield f"It carries at most {self.metadata_bytes:,} bytes of metadata with our id."
        if not self.tracking and (message.track_opens, message.track_clicks) != (None, None):
            yield "It does not set tracking for a message."
        if self.megabytes and message.encoded_size > self.megabytes * MEGABYTE:
            yield f"It carries at most {self.megabytes:g} MB, files in base64."
        yield from self._scheduling(message, now)

    def _files(self, message: EmailMessage) -> Iterator[str]:
        if not self.any_filename and not all(file.filename.isascii() for file in message.files):
            yield "It carries no file's name beyond ASCII."
        if not self.any_charset and any(file.charset not in UTF_8 for file in message.files):
            yield "It carries no text file in another charset than UTF-8."
        if not self.empty_files and not all(file.content for file in message.files):
            yield "It carries no empty file."

    def _too_many(self, message: EmailMessage) -> Iterator[str]:
        for most, given, one, several in (
            (self.recipients, message.recipients, "recipient", "recipients"),
            (self.reply_to, message.reply_to, "address in reply_to", "addresses in reply_to"),
            (self.headers, message.headers, "header", "headers"),
            (self.attachments, message.attachments, "attachment", "attachments"),
            (self.inline, message.inline, "inline image", "inline images"),
            (self.tags, message.tags, "tag", "tags"),
        ):
            if len(given) > most:
                limit = f"at most {most}" if most else "no"
                yield f"It carries {limit} {one if most == 1 else several}."

    def _scheduling(self, message: EmailMessage, now: float) -> Iterator[str]:
        if message.send_at is None:
            return
        if not self.schedule_days:
            yield "It sends at once, never at a time."
        elif message.send_at.timestamp() > now + self.schedule_days * DAY_SECONDS:
            yield f"It schedules at most {self.schedule_days:g} days ahead."
        if not self.attachments_scheduled and message.files:
            yield "It schedules no message with files."
