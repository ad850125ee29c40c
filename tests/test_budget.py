"""How often a send asks the database: what it asks once more, everybody waits for.

Counted where the drivers are told, whoever tells them. What it costs is in docs/performance.md.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest
from conftest import POOL
from contract import contract_of
from messages import PLAIN
from psycopg.pq import Trace
from standins import answer

from email_services.health import FAILURES_TO_REST
from email_services.store import database, engines

WRITES = ("INSERT", "UPDATE", "DELETE")


@dataclass
class Told:
    """What a database was told. writes: one for each row."""

    reads: int = 0
    writes: int = 0
    commits: int = 0


@pytest.fixture
def sqlite(monkeypatch, tmp_path):
    """The URL of an SQLite database, and what counts what it is told."""
    told = Told()

    class Cursor(sqlite3.Cursor):
        def execute(self, sql, *values):
            self._count(sql, 1)
            return super().execute(sql, *values)

        def executemany(self, sql, rows):
            rows = list(rows)
            self._count(sql, len(rows))
            return super().executemany(sql, rows)

        def _count(self, sql, rows):
            verb = sql.split(maxsplit=1)[0]
            told.reads += verb == "SELECT"
            told.writes += rows * (verb in WRITES)
            if verb == "COMMIT":
                told.commits += 1
            elif verb in WRITES and not self.connection.in_transaction:
                told.commits += rows

    class Connection(sqlite3.Connection):
        def cursor(self, factory=Cursor):
            return super().cursor(factory)

        def execute(self, *statement):
            return self.cursor().execute(*statement)

    @contextmanager
    def counting():
        vars(told).update(vars(Told()))
        yield told

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Connection))
    return f"sqlite:///{tmp_path}/state.sqlite3", counting


@pytest.fixture
def postgres(monkeypatch, tmp_path, postgresql):
    """The same for PostgreSQL, which says over the wire what it has done."""
    connections = []
    connect = psycopg.Connection.connect.__func__

    def connect_and_keep(cls, *place, **options):
        connections.append(connect(cls, *place, **options))
        return connections[-1]

    @contextmanager
    def counting():
        told, known = Told(), [c.pgconn for c in connections if not c.closed]
        with (tmp_path / "wire").open("w+") as wire:
            for connection in known:
                connection.trace(wire.fileno())
                connection.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
            yield told
            assert known == [c.pgconn for c in connections if not c.closed]
            for connection in known:
                connection.untrace()  # which writes the rest
            wire.seek(0)
            count_on_the_wire(told, wire.read())

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(connect_and_keep))
    monkeypatch.setattr(engines, "TRUSTED_SECONDS", 3600)  # a slow test asks if it is still there
    return postgresql, counting


def count_on_the_wire(told: Told, wire: str) -> None:
    """By the ends of statements; after one that left nothing open, what was written is kept."""
    has_written = False
    for verb, state in re.findall(r'\tCommandComplete\t "(\w+)|\tReadyForQuery\t (\w)', wire):
        told.reads += verb == "SELECT"
        told.writes += verb in WRITES
        has_written = has_written or verb in {"COMMIT", *WRITES}
        if state == "I" and has_written:
            told.commits += 1
            has_written = False


@pytest.fixture(params=["sqlite", "postgres"])
def ask(request, make_app, config, stand_in):
    """Send through two accounts at Mailgun, of which the second is a backup; what that tells."""
    url, counting = request.getfixturevalue(request.param)
    works = answer(*contract_of("mailgun").accepted)
    first, second = stand_in(works), stand_in(works)
    account = {"service": "mailgun", "api_key": "key"}
    config["state_url"] = url
    config["email_services"][0]["enabled_services"] = {
        "first": {**account, "priority_value": 2, "base_url": first.url},
        "second": {**account, "priority_value": 1, "base_url": second.url},
    }
    client = make_app(config).test_client()

    def post(body=PLAIN, key=None, behaviour=works) -> Told:
        first.behaviour = behaviour
        headers = {**POOL, "Idempotency-Key": key} if key else POOL
        with counting() as told:
            answered = client.post("/example.com/send", json=body, headers=headers)
            client.application.extensions["mailpool"].copies.stop()
        assert answered.status_code == 200
        return told

    client.post("/example.com/send", json=PLAIN, headers=POOL)  # connects; removes what is old
    client.application.extensions["mailpool"].copies.stop()
    return post


BATCH_OF_100 = {
    "messages": [{**PLAIN, "to_recipients": f"reader{n}@example.org"} for n in range(100)]
}


def test_a_send_reads_once_and_writes_twice(ask):
    assert ask() == Told(reads=1, writes=2, commits=2)


def test_an_idempotency_key_is_two_writes_more(ask):
    assert ask(key="order-1") == Told(reads=1, writes=4, commits=4)


def test_an_answer_that_is_repeated_is_one_attempt_to_reserve_its_key_and_one_look(ask):
    ask(key="order-1")
    assert ask(key="order-1") == Told(reads=1, writes=1, commits=2)


def test_a_batch_is_written_in_parts_of_100_rows_two_for_each_message(ask):
    assert ask(BATCH_OF_100) == Told(reads=1, writes=200, commits=4)


def test_a_batch_with_a_key_reserves_one_for_each_message_and_one_for_all(ask):
    assert ask(BATCH_OF_100, key="batch-1") == Told(reads=2, writes=402, commits=7)


@pytest.fixture
def keeping(config):
    """With a copy of each message."""
    config["email_services"][0]["keep_content_days"] = 7


@pytest.mark.parametrize("ask", ["sqlite"], indirect=True)  # one connection more elsewhere
def test_a_copy_is_one_write_more_by_a_thread_that_no_send_waits_for(keeping, ask):
    assert ask() == Told(reads=1, writes=3, commits=3)


@pytest.mark.parametrize("ask", ["sqlite"], indirect=True)  # one connection more elsewhere
def test_the_copies_of_a_batch_are_a_row_each_and_few_transactions(keeping, ask):
    told = ask(BATCH_OF_100)
    assert (told.reads, told.writes) == (1, 300)
    assert told.commits <= 8


def test_a_failover_is_one_look_and_one_write_more_for_the_fault(ask):
    assert ask(behaviour=answer(500)) == Told(reads=2, writes=3, commits=3)


def test_a_service_that_rests_is_passed_by_for_nothing(ask):
    for _ in range(FAILURES_TO_REST):
        ask(behaviour=answer(500))
    assert ask(behaviour=answer(500)) == Told(reads=1, writes=2, commits=2)


@pytest.mark.parametrize("url", ["sqlite:///{a_folder}", "postgresql://127.0.0.1:1/none"])
def test_a_database_that_was_away_a_moment_ago_is_not_asked(
    url, tmp_path, monkeypatch, make_app, config
):
    tried = []

    def noting(connect):
        return lambda *place, **options: tried.append(place) or connect(*place, **options)

    monkeypatch.setattr(sqlite3, "connect", noting(sqlite3.connect))
    monkeypatch.setattr(psycopg.Connection, "connect", noting(psycopg.Connection.connect))
    monkeypatch.setattr(database, "AWAY_SECONDS", 3600)
    config["state_url"] = url.format(a_folder=tmp_path)
    client = make_app(config).test_client()
    assert tried
    tried.clear()
    assert client.post("/example.com/send", json=PLAIN, headers=POOL).status_code == 200
    assert tried == []
