"""Copies of what was sent: kept for a while, encrypted, and at nobody's cost."""

from __future__ import annotations

import base64
import contextlib
import os
import sqlite3
import time

import pytest
from conftest import PLAIN, POOL, make_config, make_message
from contract import contract_of
from cryptography.fernet import Fernet
from sqlalchemy import select, update
from standins import answer

from email_services.config import load_config
from email_services.copies import MOST_WAITING_BYTES, Copies, Seal
from email_services.exceptions import NoCopy
from email_services.store import Store
from email_services.store.contents import PART_BYTES, REMOVED_TOGETHER
from email_services.store.schema import CONTENTS

DOMAIN, OTHER = "example.com", "example.net"
DAY = 24 * 3600
DAYS = {DOMAIN: 7 * DAY, OTHER: 0}


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def url(request, state_url):
    return state_url if request.param == "SQLite" else request.getfixturevalue("postgresql")


@pytest.fixture
def open_copies(url, clock):
    """Open them as another process does."""
    with contextlib.ExitStack() as stack:

        def make(keys=(), seconds=DAYS) -> Copies:
            store = stack.enter_context(contextlib.closing(Store(url, content_seconds=seconds)))
            copies = Copies(store, seconds, Seal(keys), clock)
            stack.callback(copies.stop)
            return copies

        yield make


def rows_in(copies):
    copies.stop()
    with copies._store._statement() as connection:
        return connection.execute(select(CONTENTS)).all()


EVERYTHING = {
    "from_email": "Shop <me@example.com>",
    "to_recipients": ["Ada <ada@example.org>"],
    "to_cc": ["b@example.org"],
    "to_bcc": ["c@example.org"],
    "subject": "Grüße {{name}}",
    "html_body": '<p>{{name}}<img src="cid:dot"></p>',
    "substitutions": {"name": "<Ada>"},
    "attachments": [{"filename": "a.txt", "content": "SXQgd29ya3Mu"}],
    "inline": [{"filename": "dot.gif", "content": "R0lGODlhAQ==", "content_id": "dot"}],
    "headers": {"X-Order": "42"},
    "tags": ["welcome"],
    "metadata": {"order": "42"},
    "stream": "bulk",
}


def test_a_copy_is_the_message_as_it_came(open_copies):
    copies, message = open_copies(), make_message(**EVERYTHING)
    copies.keep(DOMAIN, [message])
    assert copies.find(DOMAIN, message.message_id) == message, "before it is written, too"
    copies.stop()
    found = open_copies().find(DOMAIN, message.message_id)
    assert (found, found.message_id) == (message, message.message_id)


def test_a_domain_that_keeps_none_has_none_and_says_so(open_copies):
    copies, message = open_copies(), make_message()
    copies.keep(OTHER, [message])
    assert rows_in(copies) == []
    with pytest.raises(NoCopy, match="keeps no copies") as error:
        copies.find(OTHER, message.message_id)
    assert error.value.code == "no_copy"
    with pytest.raises(NoCopy, match="for 7 days"):
        copies.find(DOMAIN, message.message_id)


def test_a_copy_is_unreadable_without_the_key_and_keys_take_turns(open_copies):
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    first, second = (make_message(subject=f"Secret {n}") for n in range(2))
    with_old = open_copies([old])
    with_old.keep(DOMAIN, [first])
    (row,) = rows_in(with_old)
    assert row.is_encrypted
    assert b"Secret" not in bytes(row.content)
    both = open_copies([new, old])
    both.keep(DOMAIN, [second])
    assert both.find(DOMAIN, first.message_id) == first
    both.stop()
    with_new = open_copies([new])
    assert with_new.find(DOMAIN, second.message_id) == second
    for keys in ([], [new]):
        with pytest.raises(NoCopy, match="a key that this server has not"):
            open_copies(keys).find(DOMAIN, first.message_id)


def test_what_was_kept_before_there_was_a_key_is_still_read(open_copies):
    copies, message = open_copies(), make_message()
    copies.keep(DOMAIN, [message])
    copies.stop()
    key = Fernet.generate_key().decode()
    assert open_copies([key]).find(DOMAIN, message.message_id) == message


@pytest.mark.parametrize("changed", ["another's", "no message", "half of it"])
def test_a_copy_that_is_not_what_it_should_be_is_none(changed, open_copies):
    copies, messages = open_copies(), [make_message(), make_message()]
    copies.keep(DOMAIN, messages)
    rows = {row.message_id: row for row in rows_in(copies)}
    mine, others = (message.message_id for message in messages)
    values = {
        "another's": {"content": rows[others].content},
        "no message": {"content": b"nonsense"},
        "half of it": {"parts": 2},
    }
    with copies._store._transaction() as connection:
        connection.execute(
            update(CONTENTS).where(CONTENTS.c.message_id == mine).values(values[changed])
        )
    with pytest.raises(NoCopy):
        copies.find(DOMAIN, mine)


def file_of(size):
    content = base64.b64encode(os.urandom(size)).decode()
    return {"filename": "a.bin", "content": content}


def test_a_large_message_is_written_in_parts_and_read_as_one(open_copies):
    copies = open_copies([Fernet.generate_key().decode()])
    message = make_message(attachments=[file_of(3 * PART_BYTES)])
    copies.keep(DOMAIN, [message])
    rows = rows_in(copies)
    assert len(rows) > 3
    assert max(len(row.content) for row in rows) == PART_BYTES
    assert copies.find(DOMAIN, message.message_id) == message


def test_many_messages_are_a_row_each(open_copies):
    copies = open_copies()
    messages = [make_message(subject=str(number)) for number in range(250)]
    copies.keep(DOMAIN, messages)
    rows = rows_in(copies)
    assert {row.message_id for row in rows} == {message.message_id for message in messages}
    assert len(rows) == len(messages)


def test_a_copy_goes_when_its_time_is_over(open_copies, clock):
    copies, early, late = open_copies(), make_message(), make_message()
    copies.keep(DOMAIN, [early])
    copies.stop()
    clock.now += DAY
    copies.keep(DOMAIN, [late])
    copies.stop()
    clock.now += 6 * DAY
    with pytest.raises(NoCopy):  # on time, whenever it is removed
        copies.find(DOMAIN, early.message_id)
    copies._store.remove_old(clock.now)
    assert [row.message_id for row in rows_in(copies)] == [late.message_id]


@pytest.mark.parametrize(("seconds", "left"), [(7 * DAY, 1), (2 * DAY, 1), (0, 0)])
def test_a_shorter_time_is_that_of_what_is_there_too(seconds, left, open_copies, clock):
    copies, message = open_copies(), make_message()
    copies.keep(DOMAIN, [message])
    copies.stop()
    shortened = open_copies(seconds={DOMAIN: seconds})
    shortened._store.remove_old(clock.now)
    assert len(rows_in(shortened)) == left
    shortened._store.remove_old(clock.now + seconds)
    assert rows_in(shortened) == []


def test_nothing_of_a_domain_that_is_no_more_stays_longer(open_copies, clock):
    copies, message = open_copies(), make_message()
    copies.keep(DOMAIN, [message])
    copies.stop()
    others = open_copies(seconds={OTHER: DAY})._store
    others.remove_old(clock.now + 7 * DAY - 1)
    assert len(rows_in(copies)) == 1
    others.remove_old(clock.now + 7 * DAY)
    assert rows_in(copies) == []


def test_many_are_removed_a_few_at_a_time(open_copies, clock):
    copies = open_copies()
    copies.keep(DOMAIN, [make_message() for _ in range(2 * REMOVED_TOGETHER + 1)])
    copies.stop()
    assert copies._store.remove_old(clock.now + 8 * DAY) is False
    assert rows_in(copies) == []


def test_what_does_not_fit_is_sent_without_a_copy_and_counted(state_url, clock, caplog):
    store = Store(state_url)
    copies = Copies(store, DAYS, None, clock)
    huge = make_message(raw_text_body="x" * (20 * 1024 * 1024))
    waiting = [huge.known_as(f"{number:032x}") for number in range(4)]
    with copies._changed:  # so that nothing is written meanwhile
        copies.keep(DOMAIN, waiting)
        kept = [*copies._waiting]
    copies.stop()
    store.close()
    fitting = MOST_WAITING_BYTES // (20 * 1024 * 1024)
    assert kept == [message.message_id for message in waiting[:fitting]]
    assert f"{len(waiting) - fitting} messages were sent without a copy" in caplog.text


def test_copies_wait_for_a_database_that_is_away_and_no_send_does(state_url, clock):
    store = Store(state_url)
    copies, message = Copies(store, DAYS, None, clock), make_message()
    other = sqlite3.connect(store._engine.url.database)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    copies.keep(DOMAIN, [message])
    assert time.monotonic() - started < 0.5
    assert copies.find(DOMAIN, message.message_id) == message
    other.rollback()
    other.close()
    assert [row.message_id for row in rows_in(copies)] == [message.message_id]
    store.close()


# Through the service


WORKS = answer(*contract_of("mailgun").accepted)


@pytest.fixture
def keeping(make_app, config, stand_in):
    """The application with an account at a provider, whose mail is kept for a week."""

    def make(behaviour=WORKS, **settings):
        config["email_services"][0] |= {"keep_content_days": 7, **settings}
        account = {"service": "mailgun", "api_key": "key", "priority_value": 1}
        account["base_url"] = stand_in(behaviour).url
        config["email_services"][0]["enabled_services"] = {"mailgun": account}
        return make_app(config).test_client()

    return make


def sent(client, status=200, **fields):
    """The message's address."""
    told = client.post("/example.com/send", json={**PLAIN, **fields}, headers=POOL)
    assert told.status_code == status, told.text
    client.application.extensions["mailpool"].copies.stop()
    return f"/example.com/messages/{told.json['message_id']}"


def test_what_a_provider_has_is_seen_here_too(keeping):
    client = keeping()
    fields = {**EVERYTHING, "from_email": "Shop <me@example.com>"}
    path = sent(client, **fields)
    captured = client.get(path, headers=POOL).json["captured"]
    headers = {header["name"]: header["value"] for header in captured["headers"]}
    assert headers["Subject"] == "Grüße <Ada>"
    assert headers["Bcc"] == "c@example.org"
    assert "&lt;Ada&gt;<img src=" in client.get(f"{path}/content", headers=POOL).text
    assert "X-Order: 42" in client.get(f"{path}/source", headers=POOL).text
    (url,) = [file["url"] for file in captured["attachments"] if file["filename"] == "a.txt"]
    assert client.get(url, headers=POOL).data == b"It works."


@pytest.mark.parametrize(
    ("behaviour", "status"), [(answer(504), 504), (answer(500), 503), (answer(400), 422)]
)
def test_so_is_what_may_have_been_sent_and_what_was_not(behaviour, status, keeping):
    client = keeping(behaviour)
    path = sent(client, status)
    assert client.get(path, headers=POOL).json["captured"]["text"].strip() == "It works."


def test_so_is_what_waits_and_what_was_sent_from_the_queue(keeping):
    client = keeping(send="queued")
    path = sent(client, 202)
    waiting = client.get(path, headers=POOL).json
    assert (waiting["outcome"], waiting["captured"]["text"]) == ("queued", "It works.\n")
    mailpool = client.application.extensions["mailpool"]
    mailpool.dispatcher.deliver_due()
    mailpool.copies.stop()
    delivered = client.get(path, headers=POOL).json
    assert (delivered["outcome"], delivered["captured"]["text"]) == ("sent", "It works.\n")


def test_so_is_what_a_worker_was_sending_that_is_killed(keeping, state_url):
    seen = []

    def look(exchange):
        with contextlib.closing(Store(state_url)) as other:
            (message,) = other.messages("example.com", time.time())
            end = time.monotonic() + 20
            while not (content := other.content(message.message_id, time.time())):
                assert time.monotonic() < end, "it is written while the provider is asked"
            seen.append((message.outcome, content.message_id))
        WORKS(exchange)

    path = sent(keeping(look))
    assert seen == [("in progress", path.rpartition("/")[2])]


def test_so_is_each_message_of_a_batch(keeping):
    client = keeping()
    batch = {"messages": [{**PLAIN, "raw_text_body": f"Number {n}"} for n in range(3)]}
    told = client.post("/example.com/send", json=batch, headers=POOL).json
    for number, result in enumerate(told["results"]):
        path = f"/example.com/messages/{result['message_id']}"
        assert client.get(path, headers=POOL).json["captured"]["text"] == f"Number {number}\n"


def test_without_it_nothing_is_kept_and_it_is_said_who_has_the_mail(keeping):
    client = keeping(keep_content_days=0)
    path = sent(client)
    told = client.get(path, headers=POOL).json
    assert (told["captured"], told["why_not_captured"]) == (
        None,
        "The provider keeps this message, not this server.",
    )
    assert rows_in(client.application.extensions["mailpool"].copies) == []


# The configuration


def test_a_copy_is_not_kept_for_longer_than_the_log(tmp_path, make_app):
    config = make_config(tmp_path, message_retention_days=3)
    config["email_services"][1]["keep_content_days"] = 7
    with pytest.raises(SystemExit, match=r"email_services\[1\].keep_content_days: .*which is 3"):
        make_app(config)


@pytest.mark.parametrize("key", ["x", "a b", f"{base64.urlsafe_b64encode(bytes(32)).decode()}, x"])
def test_a_key_that_is_none_stops_the_start_and_is_not_repeated(key, config, make_app, monkeypatch):
    monkeypatch.setenv("CONTENT_KEY", key)
    with pytest.raises(SystemExit, match=r"\$CONTENT_KEY is not usable") as error:
        make_app(config)
    assert key not in str(error.value)


@pytest.mark.parametrize("is_set", [True, False])
def test_that_copies_are_not_encrypted_is_said_at_the_start(
    is_set, config, make_app, monkeypatch, caplog
):
    if is_set:
        keys = ", ".join(Fernet.generate_key().decode() for _ in range(2))
        monkeypatch.setenv("CONTENT_KEY", keys)
    config["email_services"][0]["keep_content_days"] = 0.5
    make_app(config)
    assert ("example.com are kept unencrypted" in caplog.text) is not is_set


def test_keys_are_read_when_the_server_starts(config, tmp_path, make_app, monkeypatch):
    monkeypatch.setenv("CONTENT_KEY", Fernet.generate_key().decode())
    make_app(config)
    assert load_config(str(tmp_path / "config.json")).seal.is_on
