"""The tables."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects import postgresql

METADATA = MetaData()

DEFAULT_STREAM: Final = "default"
"""What a message goes in that names no other."""

NOT_ALL_IS_WELL = "outcome <> 'sent'"
"""For an index to be used, a statement has to say it in these words."""


def _where(condition: str) -> dict[str, Any]:
    return dict.fromkeys(("sqlite_where", "postgresql_where"), text(condition))


VERSIONS = Table("schema_version", METADATA, Column("version", Integer, primary_key=True))

SERVICES = Table(
    "services",
    METADATA,
    Column("email_domain", String(255), primary_key=True),
    Column("service", String(64), primary_key=True),
    # A Health
    Column("failures", Integer, nullable=False, default=0),
    Column("rests", Integer, nullable=False, default=0),
    Column("rest_until", Float),
    Column("probe_until", Float),
    Column("since", Float),
    Column("reason", Text, nullable=False, default=""),
    Column("simulated", Boolean, nullable=False, default=False),
    Column("rest_seconds", Float),
    Column("failing_since", Float),
    # A Drill, if there is one
    Column("drill", Text),
    Column("last_errors", Text, nullable=False, default="[]"),
)

CHANGES = Table(
    "service_changes",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("email_domain", String(255), nullable=False),
    Column("service", String(64), nullable=False),
    Column("change", Text, nullable=False),
    Index("service_changes_by_domain", "email_domain", "id"),
)

MESSAGES = Table(
    "messages",
    METADATA,
    Column("message_id", String(32), primary_key=True),
    Column("at", Float, nullable=False),
    Column("email_domain", String(255), nullable=False),
    Column("from_email", Text, nullable=False),
    Column("recipients", Text, nullable=False),  # each between two line breaks, in lower case
    Column("subject", Text, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("deadline", Float, nullable=False),  # still in progress after it: cut off
    Column("service_used", String(64)),
    Column("service_message_id", Text),
    Column("possible_duplicate", Boolean, nullable=False, default=False),
    Column("attempts", Text, nullable=False, default="[]"),
    # NULL in what a version before has kept, which did not know
    Column("from_name", Text),
    Column("names", Text),  # of recipients, by address, in JSON
    Column("cc_from", Integer),  # where among the recipients those of cc begin, and those of bcc
    Column("bcc_from", Integer),
    Column("tags", Text),  # each between two line breaks
    Column("stream", String(64), nullable=False, server_default=DEFAULT_STREAM),
    Column("kept_back", Text),  # those of the recipients whom it was kept from, likewise
    Column("redirected_to", Text),
    Column("number", BigInteger),  # its number in the index of words
    Column("again_of", String(32)),  # the message that it sends again
    Index("messages_by_domain", "email_domain", "at", "message_id"),
    Index("messages_by_time", "at"),
    Index("messages_by_number", "number", **_where("number IS NOT NULL")),
    Index("messages_sent_again", "again_of", "at", **_where("again_of IS NOT NULL")),
    Index("messages_to_index", "at", **_where("number IS NULL")),
    # What was sent is most of it, and what is looked for mostly is the rest.
    Index("messages_in_trouble", "email_domain", "at", "message_id", **_where(NOT_ALL_IS_WELL)),
)
RECIPIENTS = Table(
    "recipients",
    METADATA,
    # What is in MESSAGES, to be searched: in the order of the table for a whole address, and for a
    # part of one because it is narrow.
    Column("email_domain", String(255), primary_key=True),
    Column(
        "address",
        Text().with_variant(postgresql.TEXT(collation="C"), "postgresql"),
        primary_key=True,
    ),
    Column("at", Float, primary_key=True),
    Column("message_id", String(32), primary_key=True),
    sqlite_with_rowid=False,
)

KEYS = Table(
    "idempotency_keys",
    METADATA,
    Column("email_domain", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("reserved_until", Float, nullable=False),
    Column("answer", Text),  # NULL while the first request with it is in progress
    # The message that the first request began, for one that takes the key over
    Column("message_id", String(32)),
    Column("message_at", Float),
    Index("idempotency_keys_by_time", "at"),
)

SECRETS = Table(
    "secrets",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

KEY_USES = Table(
    "key_uses",
    METADATA,
    Column("place", String(255), primary_key=True),  # "root", or an email domain
    Column("name", String(64), primary_key=True),
    Column("at", Float, nullable=False),
)

WRONG_KEYS = Table(
    "wrong_keys",
    METADATA,
    Column("address", String(64), primary_key=True),
    Column("at", Float, nullable=False),  # since when they are counted
    Column("number", Integer, nullable=False),
    Index("wrong_keys_by_time", "at"),
)

OUTBOX = Table(
    "outbox",
    METADATA,
    # A message that waits; it is in MESSAGES, too.
    Column("message_id", String(32), primary_key=True),
    Column("email_domain", String(255), nullable=False),
    Column("stream", String(64), nullable=False),
    Column("service", String(64)),  # the only one that it may go through, if there is one
    Column("size", Integer, nullable=False),  # of what it holds, in bytes; see PAYLOADS
    Column("ready_at", Float, nullable=False),  # since when it could have been sent
    # When it may be taken: not before; once it is taken, when whoever took it counts as gone.
    Column("due", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("claim", String(32)),  # whose it is; nobody else may say what became of it
    Column("handing_to", String(64)),  # the service that may have it by now
    Index("outbox_by_lane", "email_domain", "stream", "due"),
    Index("outbox_by_age", "ready_at"),
)

CONTENTS = Table(
    "contents",
    METADATA,
    # A message as it was sent, for as long as its domain keeps that; most are one part.
    Column("message_id", String(32), primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("parts", Integer, nullable=False),
    Column("email_domain", String(255), nullable=False),
    Column("until", Float, nullable=False),
    Column("is_encrypted", Boolean, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Index("contents_by_end", "until"),
    Index("contents_by_domain", "email_domain", "until"),
)

PAYLOADS = Table(
    "payloads",
    METADATA,
    # What a message in OUTBOX holds, in parts; most have one. Apart, since a row that is changed is
    # written anew as a whole.
    Column("message_id", String(32), primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("ahead", Float),  # when it was written, if that was before the message was put there
    Column("content", LargeBinary, nullable=False),
    Index("payloads_ahead", "ahead", **_where("ahead IS NOT NULL")),
)

CAPS = Table(
    "service_caps",
    METADATA,
    Column("email_domain", String(255), primary_key=True),
    Column("service", String(64), primary_key=True),
    Column("used", Text, nullable=False),  # what it has been handed, in JSON
)

CONFIGURATIONS = Table(
    "configurations",
    METADATA,
    # Those that were uploaded; none is ever removed.
    Column("version", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("author", Text, nullable=False),  # whose key it was, by its name
    Column("content", Text, nullable=False),  # in JSON, with no secret in it
)

PAUSED = Table(
    "paused_streams",
    METADATA,
    Column("email_domain", String(255), primary_key=True),
    Column("stream", String(64), primary_key=True),
    Column("at", Float, nullable=False),
)
