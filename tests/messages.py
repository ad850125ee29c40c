"""Messages whose way over the wire is known for every provider, and what they are made of."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta, timezone
from typing import Any

NEXT_YEAR = f"{datetime.now(timezone.utc) + timedelta(days=300):%Y-%m-%d}T00:00:00Z"
"""A time as far ahead as a message may be, and few providers hold one."""

PLAIN = {
    "from_email": "me@example.com",
    "to_recipients": "ada@example.org",
    "subject": "Hello",
    "raw_text_body": "It works.",
}


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


PDF = {"filename": "report.pdf", "content": in_base64(b"%PDF-1.7 \x00\xff"), "content_type": ""}
TEXT = {"filename": "naive.txt", "content": in_base64("naïve\r\n".encode())}
PNG = {"filename": "logo.png", "content": in_base64(b"\x89PNG\r\n\x1a\n"), "content_id": "logo"}
GIF = {"filename": "dot.gif", "content": in_base64(b"GIF89a"), "content_id": "dot.1"}

MESSAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "HTML alone, whose text is read out of it": {
        "raw_text_body": "",
        "html_body": '<p>It <b>works</b>. <a href="https://example.com/">See</a></p>',
    },
    "both bodies": {"html_body": "<p>It works.</p>"},
    "an empty text beside HTML": {"raw_text_body": " ", "html_body": "<p>It works.</p>"},
    "a sender's name in its own field": {"from_name": "Jörg Müller, Sales"},
    "a sender's name in the address": {"from_email": '"Müller, Jörg" <me@example.com>'},
    "names with commas, umlauts, quotes and emoji": {
        "to_recipients": [
            '"Doe, Jane" <jane@example.org>',
            "Zoë Ångström <zoe@example.org>",
            r'"The \"Boss\"" <boss@example.org>',
            "😀 Smiley <smile@example.org>",
        ]
    },
    "several to, cc and bcc": {
        "to_recipients": ["a@example.org", "b@example.org"],
        "to_cc": ["Carol <c@example.org>", "d@example.org"],
        "to_bcc": "e@example.org, f@example.org",
    },
    "bcc alone": {"to_recipients": [], "to_bcc": ["ada@example.org", "bob@example.org"]},
    "cc alone": {"to_recipients": [], "to_cc": "ada@example.org"},
    "internationalised domains": {
        "to_recipients": ["a@bücher.example", "b@xn--bcher-kva.example"],
        "to_cc": "c@例え.example",
    },
    "an address beyond ASCII left of the @": {"to_recipients": "jörg@example.org"},
    "the same address everywhere": {
        "to_recipients": ["a@example.org", "A@Example.org"],
        "to_cc": ["a@EXAMPLE.org", "b@example.org"],
        "to_bcc": ["B@example.org", "c@example.org"],
    },
    "text beyond ASCII, of several lines": {
        "subject": "Grüße aus 東京 ✉",
        "raw_text_body": "Erste Zeile\r\nZweite & dritte = Zeile\n\n😀",
    },
    "a subject from right to left": {"subject": "שלום עולם, مرحبا", "raw_text_body": "مرحبا"},
    "a long subject": {"subject": "日本語の件名" * 40},
    "lines that SMTP has to escape": {"raw_text_body": ".\n.hidden\nFrom me\n.\n"},
    "a line longer than SMTP takes": {"raw_text_body": "x" * 2000},
    "one address to answer to": {"reply_to": '"Help, Inc." <help@example.net>'},
    "several addresses to answer to": {"reply_to": ["a@example.net", "B <b@example.net>"]},
    "a header": {"headers": {"X-Order": "42"}},
    "headers": {"headers": {"X-Order": "42", "List-Unsubscribe": "<https://example.com/u?a=1>"}},
    "a long header": {"headers": {"X-Long": "word " * 150 + "end"}},
    "a header that cannot be folded": {"headers": {"X-Token": "t" * 900}},
    "an attachment": {"attachments": [PDF]},
    "attachments with names beyond ASCII": {
        "attachments": [
            {**PDF, "filename": "Änderung 変更.pdf"},
            {"filename": "data.csv", "content": in_base64("a;ä\r\n".encode())},
        ]
    },
    "a text file beyond ASCII": {"attachments": [TEXT]},
    "a text file in a charset of its own": {
        "attachments": [
            {
                "filename": "naive.txt",
                "content": in_base64("naïve".encode("latin-1")),
                "content_type": "text/plain; charset=ISO-8859-1",
            }
        ]
    },
    "an empty attachment of no known type": {
        "attachments": [{"filename": "nothing.qqq", "content": ""}]
    },
    "two inline images": {
        "html_body": '<p><img src="cid:logo"><img src="cid:dot.1"></p>',
        "inline": [PNG, GIF],
    },
    "an attachment and an inline image": {
        "html_body": '<img src="cid:logo">',
        "inline": [PNG],
        "attachments": [PDF],
    },
    "one tag": {"tags": "welcome"},
    "several tags": {"tags": ["welcome", "spring sale 2026"]},
    "metadata": {"metadata": {"order": "42", "customer": "Zoë"}},
    "tracking on": {"track_opens": True, "track_clicks": True},
    "tracking off": {"track_opens": False, "track_clicks": False},
    "tracking of opens alone": {"track_opens": True},
    "tracking in HTML": {"html_body": "<p>", "track_opens": True, "track_clicks": False},
    "substitutions": {
        "subject": "Hello {{name}}",
        "raw_text_body": "Dear {{ name }}, {{unknown",
        "html_body": "<p>Dear {{name}}</p>",
        "substitutions": {"name": "Ada & Bob"},
    },
}
