"""Outages under load: providers that fail, workers and servers that are killed, keys in a race.

MESSAGES=1000 makes the provider's outages longer, and `pytest -s` prints what they cost.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import requests
import short_times
from clocks import FOREVER
from conftest import PLAIN, POOL, ROOT
from servers import Server
from standins import answer, answer_json, hang, reset
from test_server import ACCEPTED, account, wait_for, with_services

from email_services.health import FAILURES_TO_REST

MESSAGES = int(os.environ.get("MESSAGES", "200"))
CLIENTS = 16
SHORT_TIMES = "short_times:create_app()"


@pytest.fixture
def serve(tmp_path):
    """Start a service; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(config: dict, *application: str, **environment: str) -> Server:
            server = Server(tmp_path, config, *application, **environment)
            stack.callback(server.kill)
            workers = int(environment["WEB_CONCURRENCY"])
            wait_for(lambda: len(server.workers) == workers)
            return server

        yield start


class Provider:
    """Mailgun, which remembers the subject of every message that it took.

    accepted: those it answered 200. in_doubt: those whose answer never came. Both are taken, so
    that a message in both lists, or twice in one, has reached its recipient twice.
    """

    def __init__(self, stand_in):
        self.accepted: list[str] = []
        self.in_doubt: list[str] = []
        self._stand = stand_in(self.accept)

    @property
    def taken(self) -> list[str]:
        return self.accepted + self.in_doubt

    @property
    def requests(self) -> int:
        return len(self._stand.requests)

    def behave(self, behaviour) -> None:
        self._stand.behaviour = behaviour

    def accept(self, exchange) -> None:
        self.accepted.append(subject_of(exchange))
        ACCEPTED["mailgun"](exchange)

    def accept_when(self, released: threading.Event, seconds: float = FOREVER) -> None:
        def behave(exchange) -> None:
            self.accepted.append(subject_of(exchange))
            released.wait(seconds)
            ACCEPTED["mailgun"](exchange)

        self.behave(behave)

    def take_and(self, behaviour):
        """Take the message, and never say so: the worst that a cut connection can mean."""

        def behave(exchange) -> None:
            self.in_doubt.append(subject_of(exchange))
            behaviour(exchange)

        return behave

    def account(self, priority: int, **settings) -> dict:
        return account("mailgun", self._stand.url, priority, **settings)


def alone(config: dict) -> dict:
    """The same with the first domain only, which has nearly all threads then."""
    return {**config, "email_services": config["email_services"][:1]}


def subject_of(exchange) -> str:
    request = exchange.request
    if len(request.body) < int(request.headers["content-length"]):
        raise ConnectionAbortedError  # whoever wrote it was killed: nothing was taken
    return dict(request.form)["subject"]


@pytest.fixture
def first(stand_in):
    return Provider(stand_in)


@pytest.fixture
def second(stand_in):
    return Provider(stand_in)


@pytest.fixture
def two_services(first, second):
    return {"first": first.account(2), "second": second.account(1)}


@dataclass(frozen=True)
class Sent:
    """A message and the answer to it. at: when it came, by the monotonic clock."""

    subject: str
    status: int
    headers: dict[str, str]
    answer: dict
    at: float

    @property
    def service(self) -> str | None:
        return self.answer.get("service_used")

    @property
    def flagged(self) -> bool:
        return self.answer.get("possible_duplicate") is True


def send(server: Server, subject: str, key: str | None = None) -> Sent:
    headers = {**POOL, "Idempotency-Key": key} if key else POOL
    answered = requests.post(
        f"{server.url}/example.com/send",
        json={**PLAIN, "subject": subject},
        headers=headers,
        timeout=60,
    )
    return Sent(subject, answered.status_code, answered.headers, answered.json(), time.monotonic())


def log_of(server: Server) -> list[dict]:
    url = f"{server.url}/example.com/messages?limit=500"
    return requests.get(url, headers=POOL, timeout=30).json()["messages"]


# A provider's outage


@dataclass(frozen=True)
class Fault:
    """What the first provider does in an outage.

    failures: how many it takes until the service rests. taken: whether it takes the message all
    the same. timeout: what the service may take, in seconds. rest: the least it asks for.
    """

    behaviour: object
    failures: int
    taken: bool = False
    timeout: float = 10
    rest: float = 0


FAULTS = {
    "takes it and never answers": Fault(hang, FAILURES_TO_REST, taken=True, timeout=1),
    "takes it and resets the connection": Fault(reset, FAILURES_TO_REST, taken=True),
    "answers 500": Fault(answer_json(500, {"message": "Internal error"}), FAILURES_TO_REST),
    "answers 401": Fault(answer(401, body=b"Forbidden"), 1),
    "answers 429, Retry-After: 1": Fault(answer(429, {"Retry-After": "1"}), 1, rest=1),
}


def most_probes(fault: Fault, seconds: float) -> int:
    """How many probes can have failed so far: before each there is a rest, longer each time."""
    rests = (short_times.FIRST_SECONDS * 2**number for number in itertools.count())
    rests = (max(fault.rest, min(rest, short_times.LONGEST_SECONDS)) for rest in rests)
    return sum(1 for _ in itertools.takewhile(seconds.__ge__, itertools.accumulate(rests)))


@pytest.fixture(scope="module")
def report():
    """A line for each outage, printed as a table when all are over."""
    columns = (
        "the first provider",
        "waited on it",
        "sent",
        "twice, flagged",
        "twice, not flagged",
        "lost",
        "back in order after",
    )
    lines = [" | ".join(columns), " | ".join(["---"] * len(columns))]
    yield lines
    print("", *(f"| {line} |" for line in lines), sep="\n")  # noqa: T201 - to be seen with -s


@pytest.mark.parametrize("name", FAULTS)
def test_an_outage_loses_nothing_and_ends_in_priority_order(
    name, serve, first, second, two_services, tmp_path, report
):
    fault = FAULTS[name]
    two_services["first"]["timeout_seconds"] = fault.timeout
    server = serve(
        with_services(tmp_path, two_services),
        SHORT_TIMES,
        WEB_CONCURRENCY="4",
    )
    subjects = map("message-{}".format, itertools.count())
    with ThreadPoolExecutor(CLIENTS) as clients:

        def send_many(count: int) -> list[Sent]:
            return list(clients.map(lambda s: send(server, s), itertools.islice(subjects, count)))

        before = send_many(CLIENTS)
        assert {sent.service for sent in before} == {"first"}

        at_first, began = first.requests, time.monotonic()
        first.behave(first.take_and(fault.behaviour) if fault.taken else fault.behaviour)
        during = send_many(MESSAGES)
        waited, recovered = first.requests - at_first, time.monotonic()
        first.behave(first.accept)

        after: list[Sent] = []
        while not any(sent.service == "first" for sent in after):
            assert time.monotonic() < recovered + FOREVER
            after += send_many(CLIENTS)
        back = min(sent.at for sent in after if sent.service == "first") - recovered
        in_order = send_many(3 * CLIENTS)

    sent = [*before, *during, *after, *in_order]
    times = Counter(first.taken + second.taken)
    twice = [message for message in sent if times[message.subject] > 1]
    flagged = sum(message.flagged for message in twice)
    answered = {*first.accepted, *second.accepted}
    lost = sum(message.subject not in answered for message in sent)
    succeeded = sum(message.status == 200 for message in sent)
    report.append(
        f"{name} | {waited} | {succeeded} of {len(sent)} | {flagged} | {len(twice) - flagged}"
        f" | {lost} | {back:.1f} s"
    )

    assert succeeded == len(sent)
    assert lost == 0
    assert {message.subject for message in sent if message.flagged} == set(first.in_doubt)
    assert {message.subject for message in twice} == set(first.in_doubt)
    # The failures that make it rest; those that the other clients had in progress at the moment
    # when the last of these was written down; and after each rest one probe.
    most = fault.failures + CLIENTS - 1 + most_probes(fault, recovered - began)
    assert fault.failures <= waited <= most
    assert {message.service for message in during} == {"second"}
    assert {message.service for message in in_order} == {"first"}


def test_while_one_message_probes_a_service_all_workers_pass_it_by(
    serve, first, second, two_services, tmp_path
):
    two_services["first"]["timeout_seconds"] = 25
    server = serve(with_services(tmp_path, two_services), SHORT_TIMES, WEB_CONCURRENCY="4")
    first.behave(answer(401, body=b"Forbidden"))
    send(server, "refused")
    tried, released = first.requests, threading.Event()
    first.accept_when(released)

    def is_due() -> bool:
        planned = requests.post(
            f"{server.url}/example.com/send",
            json={**PLAIN, "dry_run": True},
            headers=POOL,
            timeout=30,
        )
        return planned.json()["plan"][0]["decision"] == "probe"

    wait_for(is_due)
    with ThreadPoolExecutor(2 * CLIENTS) as clients:
        sends = [clients.submit(send, server, f"at once {n}") for n in range(CLIENTS)]
        wait_for(lambda: first.requests > tried)
        wait_for(lambda: sum(future.done() for future in sends) >= CLIENTS - 1)
        later = clients.map(lambda n: send(server, f"later {n}"), range(CLIENTS))
        assert {sent.service for sent in later} == {"second"}
        released.set()
        services = Counter(future.result().service for future in sends)
    assert services == {"first": 1, "second": CLIENTS - 1}
    assert first.requests == tried + 1
    assert send(server, "the next one").service == "first"


# Our own end


def test_a_stop_in_the_middle_of_100_sends_answers_all_of_them(serve, first, tmp_path):
    released = threading.Event()
    first.accept_when(released)
    # In each worker threads enough for all, however they share them; none is just starting.
    server = serve(
        alone(with_services(tmp_path, {"first": first.account(1)})),
        WEB_CONCURRENCY="4",
        WEB_THREADS="128",
    )
    wait_for(lambda: server.log.count("Booting worker") == 4)
    with ThreadPoolExecutor(100) as clients:
        sends = [clients.submit(send, server, f"message-{number}") for number in range(100)]
        wait_for(lambda: first.requests == 100)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "Handling signal: term" in server.log)
        released.set()
        assert [future.result().status for future in sends] == [200] * 100
    assert server.process.wait(FOREVER) == 0
    assert set(Counter(first.accepted).values()) == {1}


def test_what_a_killed_worker_had_in_progress_is_in_the_log_as_unknown(serve, first, tmp_path):
    released = threading.Event()
    first.accept_when(released)
    server = serve(
        alone(with_services(tmp_path, {"first": first.account(1)}, deadline_seconds=10)),
        SHORT_TIMES,
        WEB_CONCURRENCY="4",
        WEB_THREADS="128",
    )
    subjects = {f"message-{number}" for number in range(100)}
    answered, cut_off = set(), set()

    def send_and_note(subject: str) -> None:
        try:
            assert send(server, subject).status == 200
            answered.add(subject)
        except requests.ConnectionError:
            cut_off.add(subject)

    wait_for(lambda: server.log.count("Booting worker") == 4)
    with ThreadPoolExecutor(100) as clients:
        sends = [clients.submit(send_and_note, subject) for subject in subjects]
        wait_for(lambda: first.requests == 100)
        os.kill(server.workers[0], signal.SIGKILL)
        wait_for(lambda: cut_off)
        released.set()
        for future in sends:
            future.result()
    assert 1 <= len(cut_off) <= 56, "which it had threads for"

    during = {message["subject"]: message["outcome"] for message in log_of(server)}
    assert during == dict.fromkeys(answered, "sent") | dict.fromkeys(cut_off, "in progress")
    wait_for(lambda: all(message["outcome"] != "in progress" for message in log_of(server)))
    log = log_of(server)
    assert len(log) == 100
    outcomes = {message["subject"]: message["outcome"] for message in log}
    assert outcomes == dict.fromkeys(answered, "sent") | dict.fromkeys(cut_off, "unknown")
    wait_for(lambda: len(server.workers) == 4)
    assert send(server, "the next one").status == 200


# Two servers


@pytest.fixture
def serve_two(serve, postgresql):
    """Two servers with the same configuration and the same PostgreSQL."""

    def start(config: dict) -> tuple[Server, Server]:
        environment = {"DATABASE_URL": postgresql, "WEB_CONCURRENCY": "2"}
        one, other = (serve(config, SHORT_TIMES, **environment) for _ in range(2))
        return one, other

    return start


def test_two_servers_on_one_database_are_as_one(serve_two, first, second, two_services, tmp_path):
    one, other = serve_two(with_services(tmp_path, two_services))

    def post(server: Server, path: str) -> None:
        url = f"{server.url}/example.com/first/{path}"
        requests.post(url, headers=ROOT, timeout=30).raise_for_status()

    def state(server: Server) -> dict:
        url = f"{server.url}/example.com"
        return requests.get(url, timeout=30).json()["enabled_services"]["first"]

    post(one, "fail")
    assert state(other)["simulated_failure_enabled"] is True
    assert send(other, "during the drill").service == "second"
    post(other, "fail")
    assert state(one)["simulated_failure_enabled"] is False
    assert send(one, "after the drill").service == "first"

    first.behave(answer(401, body=b"Forbidden"))
    assert send(one, "refused").service == "second"
    tried = first.requests
    rested = send(other, "passed by")  # at once: the rest is short here
    assert [attempt["outcome"] for attempt in rested.answer["attempts"]] == ["skipped", "sent"]
    assert first.requests == tried
    assert state(other)["health"] == "resting"
    first.behave(first.accept)
    post(other, "health")
    assert send(one, "mended").service == "first"

    once = send(one, "once", key="key")
    again = send(other, "once", key="key")
    assert (once.status, again.status) == (200, 200)
    assert again.answer == once.answer
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in once.headers
    assert send(other, "another", key="key").status == 422

    subjects = ["during the drill", "after the drill", "refused", "passed by", "mended", "once"]
    for server in (one, other):
        log = [(message["subject"], message["outcome"]) for message in log_of(server)]
        assert log == [(subject, "sent") for subject in reversed(subjects)]
    assert Counter(first.accepted + second.accepted) == Counter(subjects)


def send_until_answered(servers: list[Server], subject: str) -> Sent:
    """Send to one server after the other, with the same key, until one has an answer."""
    deadline = time.monotonic() + 2 * FOREVER
    for server in itertools.cycle(servers):
        assert time.monotonic() < deadline
        try:
            sent = send(server, subject, key=subject)
        except requests.RequestException:
            continue  # it was killed
        if sent.status != 409:
            return sent
        threading.Event().wait(0.5)  # the first request with the key is in progress, or cut off
    raise AssertionError


def test_a_client_that_repeats_its_requests_outlives_a_server(serve_two, first, tmp_path):
    first.accept_when(threading.Event(), seconds=0.2)
    services = {"first": first.account(1)}
    servers = serve_two(with_services(tmp_path, services, deadline_seconds=5))
    subjects = [f"message-{number}" for number in range(200)]
    with ThreadPoolExecutor(CLIENTS) as clients:
        orders = itertools.cycle([servers, servers[::-1]])
        sends = [
            clients.submit(send_until_answered, order, subject)
            for subject, order in zip(subjects, orders, strict=False)
        ]
        wait_for(lambda: first.requests >= 60)
        servers[0].kill()
        sent = [future.result() for future in sends]

    times = Counter(first.accepted)
    flagged = {message.subject for message in sent if message.flagged}
    assert [message.status for message in sent] == [200] * 200
    assert set(times) == set(subjects), "none is lost"
    assert {subject for subject in subjects if times[subject] > 1} <= flagged
    assert max(times.values()) <= 2
    assert 1 <= len(flagged) <= CLIENTS, "only those that were in progress there"
    log = log_of(servers[1])
    assert [message["outcome"] for message in log] == ["sent"] * 200, "a repeated one is the same"
    assert {message["subject"] for message in log} == set(subjects)
    assert {message["subject"] for message in log if message["possible_duplicate"]} == flagged


# One key


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_40_sends_at_once_with_one_key_reach_the_provider_once(
    database, serve, first, tmp_path, request
):
    environment = {"WEB_CONCURRENCY": "4"}
    if database == "postgresql":
        environment["DATABASE_URL"] = request.getfixturevalue("postgresql")
    released = threading.Event()
    first.accept_when(released)
    server = serve(with_services(tmp_path, {"first": first.account(1)}), **environment)
    with ThreadPoolExecutor(40) as clients:

        def send_40():
            return [clients.submit(send, server, "once", key="key") for _ in range(40)]

        sends = send_40()
        wait_for(lambda: sum(future.done() for future in sends) == 39)
        released.set()
        answers = [future.result() for future in sends]
        repeated = [future.result() for future in send_40()]
    assert Counter(sent.status for sent in answers) == {200: 1, 409: 39}
    (accepted,) = (sent for sent in answers if sent.status == 200)
    assert "Idempotent-Replayed" not in accepted.headers
    for replay in repeated:
        assert (replay.status, replay.answer) == (200, accepted.answer)
        assert replay.headers["Idempotent-Replayed"] == "true"
    assert first.accepted == ["once"]
