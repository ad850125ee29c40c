"""How a database of an earlier version becomes one of this."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, bindparam, inspect, text

from email_services.store.database import LongStep, Migration, Place, in_parts
from email_services.store.messages import SIZES, Bounds, newest_first, rows_of
from email_services.store.outbox import FEW_PARTS
from email_services.store.schema import (
    CAPS,
    CONFIGURATIONS,
    CONTENTS,
    DEFAULT_STREAM,
    KEY_USES,
    MESSAGES,
    METADATA,
    OUTBOX,
    PAUSED,
    PAYLOADS,
    RECIPIENTS,
    SECRETS,
    WRONG_KEYS,
)
from email_services.store.words import index_some, make_index

FILLED_AT_ONCE: Final = 500
"""Rows in one part of a step that goes over all there is."""

_EACH_RECIPIENT: Final = {
    # A byte that is in no address stands for the line breaks, since JSON writes those otherwise.
    "sqlite": """json_each('[' || replace(
        json_quote(replace(trim({row}.recipients, char(10)), char(10), char(127))),
        char(127), '","') || ']')""",
    "postgresql": """unnest(
        string_to_array(trim(both chr(10) from {row}.recipients), chr(10))) AS one(value)""",
}
"""The recipients of a message as the rows of a table with one column, `value`."""

_ADD_RECIPIENTS: Final = """
    INSERT INTO recipients (email_domain, address, at, message_id)
    SELECT {row}.email_domain, value, {row}.at, {row}.message_id FROM {source} WHERE {condition}
    ON CONFLICT DO NOTHING"""
_REMOVE_RECIPIENTS: Final = """
    DELETE FROM recipients
    WHERE email_domain = OLD.email_domain AND at = OLD.at AND message_id = OLD.message_id
    AND address IN (SELECT value FROM {source})"""
_REMOVE_PAYLOAD: Final = "DELETE FROM payloads WHERE message_id = OLD.message_id AND part < {few}"
_TRIGGER: Final = {
    "sqlite": (
        "DROP TRIGGER IF EXISTS {name}",
        "CREATE TRIGGER {name} AFTER {event} ON {table} BEGIN {words}; END",
    ),
    "postgresql": (
        """CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN {words}; RETURN NULL; END $$""",
        "DROP TRIGGER IF EXISTS {name} ON {table}",
        "CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    ),
}


def _create_tables(connection: Connection) -> None:
    METADATA.create_all(connection)


def _add_secrets(connection: Connection) -> None:
    SECRETS.create(connection, checkfirst=True)  # a new database has them since the first step


def _add_wrong_keys(connection: Connection) -> None:
    WRONG_KEYS.create(connection, checkfirst=True)


def _add_recipients(connection: Connection) -> None:
    RECIPIENTS.create(connection, checkfirst=True)


def _fill_recipients(connection: Connection, before: Place | None) -> Place | None:
    """For the messages of before there was such a table; the newest first."""
    bounds = Bounds(before=before)
    query = bounds.applied(SIZES, MESSAGES).order_by(*newest_first(MESSAGES))
    found = connection.execute(query.limit(FILLED_AT_ONCE)).all()
    some = next(in_parts(found, rows_of, FILLED_AT_ONCE), None)
    if not some:
        return None
    each = _EACH_RECIPIENT[connection.dialect.name].format(row="m")
    words = _ADD_RECIPIENTS.format(
        row="m", source=f"messages AS m, {each}", condition="m.message_id IN :ids"
    )
    fill = text(words).bindparams(bindparam("ids", expanding=True))
    connection.execute(fill, {"ids": [row.message_id for row in some]})
    return some[-1].at, some[-1].message_id


def _let_the_database_keep_recipients(connection: Connection) -> None:
    """It does so in the statement that adds or removes a message, whoever does that."""
    dialect = connection.dialect.name
    changes = {
        "INSERT": _ADD_RECIPIENTS.format(
            row="NEW", source=_EACH_RECIPIENT[dialect].format(row="NEW"), condition="true"
        ),
        "DELETE": _REMOVE_RECIPIENTS.format(source=_EACH_RECIPIENT[dialect].format(row="OLD")),
    }
    for event, words in changes.items():
        _make_trigger(connection, f"recipients_at_{event.lower()}", event, "messages", words)


def _make_trigger(connection: Connection, name: str, event: str, table: str, words: str) -> None:
    for statement in _TRIGGER[connection.dialect.name]:
        line = statement.format(name=name, event=event, table=table, words=words)
        connection.exec_driver_sql(line)


def _keep_messages_with_keys(connection: Connection) -> None:
    _add_columns(connection, "idempotency_keys", message_id="VARCHAR(32)", message_at="FLOAT")


def _keep_how_long_rests_were_to_be(connection: Connection) -> None:
    _add_columns(connection, "services", rest_seconds="FLOAT")


def _keep_who_was_named_where(connection: Connection) -> None:
    texts = dict.fromkeys(("from_name", "names", "tags"), "TEXT")
    _add_columns(connection, "messages", **texts, cc_from="INTEGER", bcc_from="INTEGER")


def _keep_since_when_services_fail(connection: Connection) -> None:
    _add_columns(connection, "services", failing_since="FLOAT")


def _add_the_outbox(connection: Connection) -> None:
    OUTBOX.create(connection, checkfirst=True)
    PAUSED.create(connection, checkfirst=True)
    _add_columns(connection, "messages", stream=f"VARCHAR(64) DEFAULT '{DEFAULT_STREAM}' NOT NULL")


def _keep_who_was_kept_from_what(connection: Connection) -> None:
    _add_columns(connection, "messages", kept_back="TEXT", redirected_to="TEXT")


def _make_an_index_of_words(connection: Connection) -> None:
    _add_columns(connection, "messages", number="BIGINT")
    _add_indexes_of_messages(connection)
    make_index(connection)


def _index_words(connection: Connection, _: Place | None) -> Place | None:
    """Of all messages of before there was such an index, but for those in progress."""
    return (0.0, "") if index_some(connection, now=0.0) else None


def _add_key_uses(connection: Connection) -> None:
    KEY_USES.create(connection, checkfirst=True)


def _count_what_services_are_handed(connection: Connection) -> None:
    CAPS.create(connection, checkfirst=True)


def _add_contents(connection: Connection) -> None:
    CONTENTS.create(connection, checkfirst=True)


def _add_configurations(connection: Connection) -> None:
    CONFIGURATIONS.create(connection, checkfirst=True)


def _keep_payloads_apart(connection: Connection) -> None:
    """A version that was never released had them in the outbox."""
    PAYLOADS.create(connection, checkfirst=True)
    if "payload" in {column["name"] for column in inspect(connection).get_columns("outbox")}:
        connection.exec_driver_sql(
            "INSERT INTO payloads (message_id, part, content)"
            " SELECT message_id, 0, payload FROM outbox"
        )
        connection.exec_driver_sql("ALTER TABLE outbox DROP COLUMN payload")
    words = _REMOVE_PAYLOAD.format(few=FEW_PARTS)
    _make_trigger(connection, "payload_at_delete", "DELETE", "outbox", words)


def _keep_what_was_sent_again(connection: Connection) -> None:
    _add_columns(connection, "messages", again_of="VARCHAR(32)")
    _add_indexes_of_messages(connection)


_SIZES: Final = {
    # As ANALYZE would write them of a million messages of four domains: how many there are, and how
    # many have the same first column, the same first two, and so on.
    ("messages", "sqlite_autoindex_messages_1"): "1000000 1",
    ("messages", "messages_by_domain"): "1000000 250000 1 1",
    ("messages", "messages_by_time"): "1000000 1",
    ("messages", "messages_by_number"): "1000000 1",
    ("messages", "messages_to_index"): "200 1",
    ("messages", "messages_in_trouble"): "50000 12500 1 1",
    ("messages", "messages_sent_again"): "1000 1 1",
    ("recipients", "recipients"): "1000000 250000 5 1 1",
}


def _tell_sqlite_how_large_the_log_is(connection: Connection) -> None:
    """It would think that a domain has ten messages, and go through all of them to find one."""
    if connection.dialect.name != "sqlite":
        return  # others find out by themselves
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # makes the table
    connection.exec_driver_sql("DELETE FROM sqlite_stat1")
    told = [(table, index, sizes) for (table, index), sizes in _SIZES.items()]
    connection.exec_driver_sql("INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?)", told)


def _add_indexes_of_messages(connection: Connection) -> None:
    """Those that are not there, of columns that are: later steps add others."""
    there = {column["name"] for column in inspect(connection).get_columns(MESSAGES.name)}
    for index in MESSAGES.indexes:
        if there.issuperset(column.name for column in index.columns):
            index.create(connection, checkfirst=True)


def _add_columns(connection: Connection, table: str, **kinds: str) -> None:
    """Those that are not there: a new database has all since the first step."""
    there = {column["name"] for column in inspect(connection).get_columns(table)}
    for name, kind in kinds.items():
        if name not in there:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


MIGRATIONS: Final[tuple[Migration, ...]] = (
    _create_tables,
    _add_secrets,
    _add_wrong_keys,
    _add_recipients,
    LongStep(_fill_recipients),
    _keep_messages_with_keys,
    _keep_how_long_rests_were_to_be,
    _let_the_database_keep_recipients,
    _keep_who_was_named_where,
    _keep_since_when_services_fail,
    _add_the_outbox,
    _keep_who_was_kept_from_what,
    _make_an_index_of_words,
    LongStep(_index_words),
    _add_key_uses,
    _count_what_services_are_handed,
    _add_contents,
    _add_configurations,
    _keep_payloads_apart,
    _keep_what_was_sent_again,
    _tell_sqlite_how_large_the_log_is,
)
"""Step n brings a database from version n to version n + 1. Append; never change one."""
