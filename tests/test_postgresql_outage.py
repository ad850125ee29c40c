"""Sends while PostgreSQL is frozen or killed. It is a server of these tests' own."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import SimpleNamespace

import pytest
from conftest import make_message, run_postgresql
from psycopg.pq import TransactionStatus
from test_pool import Clock, Scripted
from test_store import NOW, RESTING

from email_services.exceptions import StoreUnavailable
from email_services.ledger import Once
from email_services.pool import PooledEmailService
from email_services.store import Store
from email_services.store.database import AWAY_SECONDS
from email_services.store.engines import TRUSTED_SECONDS, PostgreSQL

psutil = pytest.importorskip("psutil", reason="it comes with PostgreSQL for tests")

HANG_SECONDS = 60
"""No send takes as long: its deadline is a third of it."""


class Server:
    """A PostgreSQL that freezes, dies and comes back."""

    def __init__(self, server):
        self._server = server
        self.url = server.get_uri()

    def signal_all(self, number: signal.Signals) -> list:
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return processes

    def freeze(self) -> None:
        self.signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal_all(signal.SIGCONT)

    def kill(self) -> None:
        psutil.wait_procs(self.signal_all(signal.SIGKILL), timeout=HANG_SECONDS)

    def start(self) -> None:
        self._server.ensure_postgres_running()


@pytest.fixture
def server():
    with run_postgresql() as running:
        server = Server(running)
        try:
            yield server
        finally:
            server.thaw()  # or it would not end


@pytest.fixture
def clock(monkeypatch):
    """The store's clock, which the test moves."""
    clock = Clock()
    for part in ("database", "engines"):
        monkeypatch.setattr(f"email_services.store.{part}.time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def store(server, clock):
    with contextlib.closing(Store(server.url)) as opened:
        yield opened


@pytest.fixture
def waits(monkeypatch):
    """The connections that were given up while an answer was waited for; each took its time."""
    given_up, close = [], PostgreSQL.close

    def note_and_close(connection):
        if connection.info.transaction_status == TransactionStatus.ACTIVE:
            given_up.append(connection)
        close(connection)

    monkeypatch.setattr(PostgreSQL, "close", note_and_close)
    return given_up


@pytest.fixture
def pool(store):
    """With a real deadline: past it, no service is tried."""
    service = Scripted("first", Clock())
    return PooledEmailService("example.com", [service], store, deadline_seconds=20)


def in_time(work):
    """What `work` returns or raises; a failure if it hangs."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - the caller gets it
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert results, "it hangs"
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def keyed(pool, key: str):
    return pool.send(make_message(), once=Once(key, "fingerprint"))


def sees_it_go_out_but_not_with_a_key(pool, caplog) -> None:
    caplog.clear()
    deliveries = in_time(lambda: [pool.send(make_message()) for _ in range(20)])
    assert [delivery.outcome for delivery in deliveries] == ["sent"] * 20
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    assert "going on without it" in caplog.text
    with pytest.raises(StoreUnavailable):
        in_time(lambda: keyed(pool, "refused"))


def sees_it_work(pool, store, key: str) -> None:
    message = make_message()
    assert in_time(lambda: pool.send(message)).outcome == "sent"
    (logged,) = store.messages("example.com", 0, message_id=message.message_id)
    assert logged.outcome == "sent"
    assert in_time(lambda: keyed(pool, key)).outcome == "sent"
    assert in_time(lambda: keyed(pool, key)).replayed


@pytest.mark.parametrize("idle", [0, TRUSTED_SECONDS + 1])
def test_while_it_is_frozen_messages_go_out(idle, pool, store, server, clock, waits, caplog):
    sees_it_work(pool, store, "before")
    clock.now += idle
    server.freeze()
    sees_it_go_out_but_not_with_a_key(pool, caplog)
    assert len(waits) == 1, "one message finds out, and the others know"
    server.thaw()
    clock.now += AWAY_SECONDS
    sees_it_work(pool, store, "after")
    assert keyed(pool, "before").replayed


def test_a_freeze_in_the_middle_of_a_transaction_ends_it(pool, store, server, clock, waits):
    def change(_):
        server.freeze()
        return RESTING, "resting"

    with pytest.raises(StoreUnavailable):
        in_time(lambda: store.change_service("example.com", "first", change, NOW))
    assert len(waits) == 1, "a rollback is not waited for"
    server.thaw()
    clock.now += AWAY_SECONDS
    assert store.service_states("example.com") == {}, "none of it was done"
    sees_it_work(pool, store, "after")


def test_while_it_is_dead_messages_go_out(pool, store, server, clock, caplog):
    sees_it_work(pool, store, "before")
    server.kill()
    sees_it_go_out_but_not_with_a_key(pool, caplog)
    server.start()
    clock.now += AWAY_SECONDS
    sees_it_work(pool, store, "after")
    assert keyed(pool, "before").replayed, "what was promised is on the disk"


def test_a_restart_while_nothing_was_sent_goes_unnoticed(pool, store, server, clock, caplog):
    sees_it_work(pool, store, "before")
    server.kill()
    server.start()
    clock.now += TRUSTED_SECONDS + 1
    caplog.clear()
    sees_it_work(pool, store, "after")
    assert "ERROR" not in {record.levelname for record in caplog.records}
