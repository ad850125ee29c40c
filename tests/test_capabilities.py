from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest
from conftest import make_message
from messages import PDF, PNG, TEXT

from email_services.capabilities import Capabilities


def in_days(days: float) -> str:
    return datetime.fromtimestamp(time.time() + days * 86400, timezone.utc).isoformat()


HTML = {"html_body": "<p>"}
# What a provider declares; what is just right for it; what is too much; the sentence.
TABLE = {
    "recipients": (
        Capabilities(recipients=2),
        {"to_cc": "b@example.org"},
        {"to_cc": "b@example.org", "to_bcc": "c@example.org"},
        "It carries at most 2 recipients.",
    ),
    "bcc_alone": (
        Capabilities(bcc_alone=False),
        {"to_bcc": "b@example.org"},
        {"to_recipients": [], "to_bcc": "b@example.org"},
        "It needs an address in to_recipients.",
    ),
    "any_local_part": (
        Capabilities(any_local_part=False),
        {"to_cc": "a@bücher.example"},
        {"reply_to": "jörg@example.org"},
        "It carries no address beyond ASCII left of the @.",
    ),
    "reply_to": (
        Capabilities(reply_to=1),
        {"reply_to": "a@example.org"},
        {"reply_to": "a@example.org, b@example.org"},
        "It carries at most 1 address in reply_to.",
    ),
    "headers": (
        Capabilities(headers=0),
        {},
        {"headers": {"X-A": "1"}},
        "It carries no headers.",
    ),
    "attachments": (
        Capabilities(attachments=1),
        {"attachments": [PDF]},
        {"attachments": [PDF, PDF]},
        "It carries at most 1 attachment.",
    ),
    "inline": (
        Capabilities(inline=0),
        {"attachments": [PDF]},
        {**HTML, "inline": [PNG]},
        "It carries no inline images.",
    ),
    "any_filename": (
        Capabilities(any_filename=False),
        {"attachments": [PDF]},
        {"attachments": [{**PDF, "filename": "ä.pdf"}]},
        "It carries no file's name beyond ASCII.",
    ),
    "any_charset": (
        Capabilities(any_charset=False),
        {"attachments": [{**TEXT, "content_type": "text/plain; charset=UTF-8"}]},
        {"attachments": [{**TEXT, "content_type": "text/plain; charset=iso-8859-1"}]},
        "It carries no text file in another charset than UTF-8.",
    ),
    "empty_files": (
        Capabilities(empty_files=False),
        {"attachments": [PDF]},
        {"attachments": [{**PDF, "content": ""}]},
        "It carries no empty file.",
    ),
    "own_headers": (
        Capabilities(own_headers=frozenset({"list-id"})),
        {"headers": {"List-Idea": "1"}},
        {"headers": {"LIST-ID": "1"}},
        "It carries no header LIST-ID, which it sets itself.",
    ),
    "tags": (
        Capabilities(tags=1),
        {"tags": ["a"]},
        {"tags": ["a", "b"]},
        "It carries at most 1 tag.",
    ),
    "metadata": (
        Capabilities(metadata=False),
        {"tags": "a"},
        {"metadata": {"a": "1"}},
        "It carries no metadata.",
    ),
    "metadata_bytes": (
        Capabilities(metadata_bytes=1000),  # our id among them
        {"metadata": {"a": "x" * 450, "b": "y" * 481}},
        {"metadata": {"a": "x" * 450, "b": "y" * 482}},
        "It carries at most 1,000 bytes of metadata with our id.",
    ),
    "tracking": (
        Capabilities(tracking=False),
        {"track_opens": None},
        {"track_clicks": False},
        "It does not set tracking for a message.",
    ),
    "schedule_days": (
        Capabilities(schedule_days=3),
        {"send_at": in_days(2.9)},
        {"send_at": in_days(3.1)},
        "It schedules at most 3 days ahead.",
    ),
    "no schedule": (
        Capabilities(schedule_days=0),
        {},
        {"send_at": in_days(0.1)},
        "It sends at once, never at a time.",
    ),
    "attachments_scheduled": (
        Capabilities(attachments_scheduled=False),
        {"send_at": in_days(1)},
        {"send_at": in_days(1), "attachments": [PDF]},
        "It schedules no message with files.",
    ),
    "megabytes": (
        Capabilities(megabytes=1),
        {"raw_text_body": "x" * 1024 * 1024},
        {"raw_text_body": "x" * 1024 * 1024 + "x"},
        "It carries at most 1 MB, files in base64.",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_a_provider_declares_is_held_to_the_limit(name):
    capabilities, right, too_much, sentence = TABLE[name]
    assert list(capabilities.lacking(make_message(**right), time.time())) == []
    assert list(capabilities.lacking(make_message(**too_much), time.time())) == [sentence]


def test_everything_that_can_be_declared_is_tried():
    assert set(Capabilities.__dataclass_fields__) <= set(TABLE)


def test_all_that_is_lacking_is_named_at_once():
    message = make_message(tags="a", metadata={"a": "1"})
    found = list(Capabilities(tags=0, metadata=False).lacking(message, time.time()))
    assert found == ["It carries no tags.", "It carries no metadata."]
