"""What the queue promises where it is hardest: long outages, power loss, a provider that hangs."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import PLAIN, make_message
from test_queue import DOMAIN, DOWN, Clock, Mailbox

from email_services.abstract import ServiceSettings
from email_services.ledger import Once
from email_services.message import EmailMessage
from email_services.pool import PooledEmailService
from email_services.queue import CALLS, Dispatcher
from email_services.rounds import AT_ONCE as TOGETHER
from email_services.store import Store
from email_services.streams import BUILT_IN, Stream

HERE = Path(__file__).parent
OLD_NOW = 1_795_000_000.0
WAIT_SECONDS = 60


@pytest.fixture
def clock():
    return Clock()


# All providers down for ten minutes


class Moved(Clock):
    """The time of the test, which goes on by itself from when it is told to."""

    def __init__(self):
        super().__init__()
        self.began = None

    def __call__(self):
        return self.now + (time.monotonic() - self.began if self.began else 0.0)

    def run(self):
        self.began = time.monotonic()


class Call(NamedTuple):
    """One to a provider. beside: of each lane, how many were under way when it began."""

    at: float
    service: str
    message_id: str
    stream: str
    beside: Counter


class Outage(Mailbox):
    """A provider that is down, and notes its calls."""

    def __init__(self, name, clock, priority, **caps):
        super().__init__(name, then=DOWN)
        self.settings = ServiceSettings(priority_value=priority, timeout_seconds=10, **caps)
        self.calls: list[Call] = []
        self._clock = clock
        self._under_way = Counter()
        self._lock = threading.Lock()

    def send(self, message, timeout):
        with self._lock:
            what = message.message_id, message.stream
            call = Call(self._clock(), self.name, *what, self._under_way.copy())
            self.calls.append(call)
            self._under_way[message.stream] += 1
        try:
            threading.Event().wait(0.01)  # a provider takes its time, and others come meanwhile
            return super().send(message, timeout)
        finally:
            with self._lock:
                self._under_way[message.stream] -= 1

    @property
    def is_idle(self):
        return not self._under_way.total()

    def calls_since(self):
        """Those since it was asked last."""
        calls, self.calls = self.calls, []
        return calls


WAITING = 5000
PROCESSES = 2


def test_after_ten_minutes_without_a_provider_all_goes_out_by_shares_and_without_a_stampede(store):
    clock = Moved()
    services = Outage("a", clock, 20), Outage("b", clock, 10)
    pools = [PooledEmailService(DOMAIN, services, store, now=clock) for _ in range(PROCESSES)]
    messages = accepted(pools[0], WAITING)

    def is_over():
        return all(service.is_idle for service in services) and not any(
            step.decision == "try" for step in pools[0].steps(None)
        )

    with running(pools, store, clock):
        wait_for(is_over)
    # All threads begin at once, and then everybody knows.
    assert max(len(service.calls_since()) for service in services) <= PROCESSES * CALLS
    processes = [Dispatcher([pool], store, now=clock) for pool in pools]
    for _ in range(60):
        clock.now += 10
        with ThreadPoolExecutor(PROCESSES) as executor:
            list(executor.map(Dispatcher.deliver_due, processes))
    for service in services:  # one message for each rest: 15, 30, 60, 120, 240 s, and longer
        found_out = service.calls_since()
        assert 4 <= len(found_out) <= 6
        assert not any(call.beside.total() for call in found_out)
    assert store.depths(DOMAIN, clock.now)["default"].waiting == WAITING * 3 / 4

    calls = calls_of_recovery(services, pools, store, clock)
    assert sorted(call.message_id for call in calls) == sorted(m.message_id for m in messages)
    for name in "a", "b":  # one had found out before others followed
        firsts = [call for call in calls if call.service == name][:2]
        assert not any(call.beside.total() for call in firsts)
    half = Counter(call.stream for call in calls[: WAITING // 2])
    for name, stream in BUILT_IN.items():
        assert max(call.beside[name] for call in calls) <= PROCESSES * CALLS * stream.share
        assert half[name] >= WAITING / 2 * stream.share / 2


PER_SECOND, AT_ONCE = 60, 6


def test_what_has_waited_for_its_providers_goes_out_within_their_caps(store):
    clock = Moved()
    services = (
        Outage("a", clock, 20, max_per_second=PER_SECOND),
        Outage("b", clock, 10, max_at_once=AT_ONCE),
    )
    pools = [PooledEmailService(DOMAIN, services, store, now=clock) for _ in range(PROCESSES)]
    messages = accepted(pools[0], 500)
    Dispatcher([pools[0]], store, now=clock).deliver_due()
    for service in services:
        assert service.calls_since()
    calls = calls_of_recovery(services, pools, store, clock)
    assert sorted(call.message_id for call in calls) == sorted(m.message_id for m in messages)
    for number, call in enumerate((call for call in calls if call.service == "a"), 1):
        assert number <= PER_SECOND * (int(call.at - clock.now) + 1)
    assert max(call.beside.total() for call in calls if call.service == "b") < AT_ONCE


def test_what_a_cap_holds_up_goes_out_in_the_order_it_came_in_but_for_what_is_taken_at_once(store):
    clock = Moved()
    service = Outage("a", clock, 10, max_per_second=PER_SECOND)
    service.then = None
    pools = [PooledEmailService(DOMAIN, [service], store, now=clock) for _ in range(PROCESSES)]
    messages = [make_message() for _ in range(10 * PER_SECOND)]
    for message in messages:
        pools[0].accept([message])
        clock.now += 0.001
    clock.run()
    with running(pools, store, clock):
        wait_for(lambda: not store.depths(DOMAIN, clock()))
    places = {message.message_id: n for n, message in enumerate(messages)}
    came = [places[call.message_id] for call in service.calls_since()]
    assert len(came) == len(messages)
    # A process takes so many for each call, and gives back what the cap leaves over.
    assert max(n - place for n, place in enumerate(came)) < 4 * PROCESSES * TOGETHER


def accepted(pool, number):
    messages = [make_message(stream="default" if n % 4 else "bulk") for n in range(number)]
    for start in range(0, number, 500):
        pool.accept(messages[start : start + 500])
    return messages


def calls_of_recovery(services, pools, store, clock):
    """All that went out once the services were back, in order."""
    for service in services:
        service.then = None
    clock.now += 15 * 60  # the longest rest, and the longest wait
    clock.run()
    with running(pools, store, clock):
        wait_for(lambda: not store.depths(DOMAIN, clock()))
    calls = [call for service in services for call in service.calls_since()]
    return sorted(calls, key=lambda call: call.at)


@contextlib.contextmanager
def running(pools, store, clock):
    """Processes that deliver, one for each pool."""
    dispatchers = [Dispatcher([pool], store, now=clock) for pool in pools]
    for dispatcher in dispatchers:
        dispatcher.start()
    try:
        yield
    finally:
        for dispatcher in dispatchers:
            dispatcher.stop()


def test_what_waited_goes_out_in_the_order_it_came_in_but_for_what_is_under_way_at_once(
    store, clock
):
    service = Outage("a", clock, 10)
    pool = PooledEmailService(DOMAIN, [service], store, now=clock)
    dispatcher = Dispatcher([pool], store, now=clock)
    messages = [make_message() for _ in range(10 * TOGETHER)]
    for message in messages:
        pool.accept([message])
        clock.now += 0.001
    for _ in range(60):
        dispatcher.deliver_due()
        clock.now += 10
    log = store.messages(DOMAIN, clock.now, limit=len(messages))
    tried = {message.message_id for message in log if message.attempts}
    service.then = None
    clock.now += 15 * 60
    dispatcher.deliver_due()
    waited = [m.message_id for m in messages if m.message_id not in tried]
    came = [waited.index(id_) for id_ in service.sent if id_ not in tried]
    assert len(came) >= 8 * TOGETHER
    assert max(abs(n - place) for n, place in enumerate(came)) < TOGETHER


# Power loss


@pytest.mark.parametrize("size", [100, 2_000_000])
def test_what_was_answered_is_on_the_disk_and_what_is_handed_over_too(tmp_path, migrated, size):
    """Only what was synced by then is there after a loss of power."""
    if not shutil.which("strace"):
        pytest.skip("there is no strace here")
    database = Path(shutil.copy(migrated, tmp_path))
    before = database.read_bytes()
    trace = tmp_path / "trace"
    watched = "trace=pwrite64,write,fsync,fdatasync,ftruncate"
    tracer = ["strace", "-y", "-xx", "-s", "1000000", "-e", watched, "-o", str(trace)]
    script = [sys.executable, str(HERE / "power_loss.py"), f"sqlite:///{database}", f"{size}"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [*tracer, *script], env=environment, capture_output=True, text=True, check=False
    )
    if "ptrace" in done.stderr:
        pytest.skip("nobody may trace a process here")
    assert done.returncode == 0, done.stderr
    found = {}
    for what in ("accepted", "handed"):
        synced = Synced({str(database): before})
        synced.read(trace.read_text().splitlines(), what)
        found[what] = synced.outbox(tmp_path / what, database)
    message_id = done.stdout.split()[1]
    assert found["accepted"] == [(message_id, None)]
    assert found["handed"] == [(message_id, "a")]


class Synced:
    """Files as they are after a loss of power: what was written and not synced is gone."""

    _CALL = re.compile(r'(\w+)\(\d+<([^>]*)>(?:, "([^"]*)")?[^)]*?(?:, (\d+))?\) += (\d+)')

    def __init__(self, files):
        self.files = {path: bytearray(content) for path, content in files.items()}
        self._pending = {}

    def read(self, lines, until: str) -> None:
        """Go through what strace has seen, up to the line that the process has told of."""
        for line in lines:
            if not (call := self._CALL.match(line)):
                continue
            name, path, text, number, result = call.groups()
            path = bytes_of(path).decode()
            if name == "write" and bytes_of(text).startswith(until.encode()):
                return
            if name == "pwrite64":
                written = bytes_of(text)[: int(result)]
                self._pending.setdefault(path, []).append((int(number), written))
            elif name == "ftruncate":
                self._pending.setdefault(path, []).append((int(number), None))
            elif name in {"fsync", "fdatasync"}:
                self._sync(path)
        raise AssertionError(f"It never said {until}.")

    def _sync(self, path) -> None:
        content = self.files.setdefault(path, bytearray())
        for offset, data in self._pending.pop(path, []):
            if data is None:
                del content[offset:]
                continue
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data

    def outbox(self, folder, database):
        """What is in the outbox of the database after it."""
        folder.mkdir()
        for path, content in self.files.items():
            if path.startswith(str(database)):
                (folder / Path(path).name).write_bytes(content)
        with contextlib.closing(sqlite3.connect(folder / database.name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found = "SELECT sum(length(content)) FROM payloads WHERE message_id = o.message_id"
            whole = f"SELECT message_id, handing_to FROM outbox AS o WHERE size = ({found})"
            return connection.execute(whole).fetchall()


def bytes_of(text: str) -> bytes:
    """What strace shows with -xx."""
    return ast.literal_eval(f'b"{text}"')


# A provider that hangs


def test_a_provider_that_hangs_in_one_lane_holds_up_no_other_lane_nor_domain(store):
    released = threading.Event()
    hanging = Mailbox("a", then=lambda _: released.wait(WAIT_SECONDS))
    well = Mailbox("b")
    others = Mailbox("a")
    streams = {
        **BUILT_IN,
        "bulk": Stream("bulk", services=("a",)),
        "default": Stream("default", share=0.75, services=("b",)),
    }
    pools = [
        PooledEmailService(DOMAIN, [hanging, well], store, streams=streams),
        PooledEmailService("example.net", [others], store),
    ]
    dispatcher = Dispatcher(pools, store)
    pools[0].accept([make_message(stream="bulk") for _ in range(200)])
    dispatcher.start()
    try:
        wait_for(lambda: store.depths(DOMAIN, time.time()))
        pools[0].accept([make_message() for _ in range(300)])
        pools[1].accept([message_of("example.net") for _ in range(300)])
        wait_for(lambda: (len(well.sent), len(others.sent)) == (300, 300))
        assert not hanging.sent
    finally:
        released.set()
        dispatcher.stop()
    assert hanging.sent  # what was with it is finished, and the rest given back
    assert len(hanging.sent) + store.depths(DOMAIN, time.time())["bulk"].waiting == 200


def message_of(email_domain: str) -> EmailMessage:
    return EmailMessage.parse({**PLAIN, "from_email": f"shop@{email_domain}"}, email_domain)


def wait_for(condition) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# A database of the version before


def test_a_database_of_the_version_before_keeps_all_and_takes_messages_in(tmp_path, clock):
    path = tmp_path / "state.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript((HERE / "state-0.2.0.sql").read_text())
        rows = connection.execute("SELECT * FROM messages ORDER BY at").fetchall()
    with contextlib.closing(Store(f"sqlite:///{path}")) as store:
        clock.now = OLD_NOW + 3600
        found = store.messages(DOMAIN, clock.now)[::-1]
        assert [(m.message_id, m.subject, m.service_used) for m in found] == [
            (row[0], row[5], row[8]) for row in rows
        ]
        assert [m.outcome for m in found] == ["sent", "not sent", "unknown", "unknown"]
        assert {m.stream for m in found} == {"default"}
        assert len(found[0].attempts) == 2
        by_recipient = store.messages(DOMAIN, clock.now, recipient="ada1@example.org")
        assert by_recipient == [found[0]]
        assert store.secret("sessions") == "a-secret-of-the-version-before"
        service = Mailbox("a")
        pool = PooledEmailService(DOMAIN, [service], store, now=clock)
        (replayed,) = pool.accept([make_message()], once=[Once("order-1", "f" * 64)])
        assert (replayed.outcome, replayed.message_id) == ("sent", found[0].message_id)
        (followed,) = pool.accept([make_message()], once=[Once("order-4", "e" * 64)])
        (fresh,) = pool.accept([make_message()], once=[Once("order-5", "e" * 64)])
        Dispatcher([pool], store, now=clock).deliver_due()
        assert service.sent == [found[3].message_id, fresh.message_id]
        (sent,) = store.messages(DOMAIN, clock.now, message_id=followed.message_id)
        assert (sent.outcome, sent.possible_duplicate, sent.at) == ("sent", True, found[3].at)
