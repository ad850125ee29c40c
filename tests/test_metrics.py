"""What is counted is what happened, and `/metrics` says it whoever answers and whatever is away."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import requests
from conftest import PLAIN, POOL, POOL_KEY, PROVIDER_KEY, ROOT, make_config
from contract import contract_of
from prometheus_client.parser import text_string_to_metric_families
from standins import answer
from test_server import serve, wait_for, with_services  # noqa: F401 - serve is a fixture

from email_services import gauges
from email_services.config import load_config
from email_services.counters import KINDS_OF_ATTEMPTS
from email_services.exceptions import ProviderError, StoreUnavailable
from email_services.health import State
from email_services.store import database

ACCEPTED = answer(*contract_of("mailgun").accepted)


def samples(text: str, name: str = "") -> dict[tuple[str, frozenset], float]:
    """Every series, or those of that name, by name and labels."""
    if name:  # to read all takes seconds, where other tests have counted in this process
        starts = (f"{name}{{", f"{name} ")
        text = "".join(line for line in text.splitlines(keepends=True) if line.startswith(starts))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Metrics:
    """What `/metrics` says, beside what it said when this was made: tests share one process."""

    def __init__(self, client) -> None:
        self._client = client
        self._before = client.get("/metrics").text

    def now(self, name: str = "") -> dict[tuple[str, frozenset], float]:
        return samples(self._client.get("/metrics").text, name)

    def changes(self, name: str) -> dict[tuple[str, ...], float]:
        """Series of that name that have risen, by the values of their labels in order."""
        before = samples(self._before, name)
        return {
            tuple(value for _, value in sorted(key[1])): value - before.get(key, 0)
            for key, value in self.now(name).items()
            if value != before.get(key, 0)
        }

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(value for _, value in sorted(key[1])): value
            for key, value in self.now(name).items()
        }


@pytest.fixture
def app(make_app, config):
    return make_app(config)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def metrics(client):
    return Metrics(client)


def send(client, *, key="", body=PLAIN):
    headers = {**POOL, "Idempotency-Key": key} if key else POOL
    return client.post("/example.com/send", json=body, headers=headers)


def fail(client, service, **drill):
    client.post(f"/example.com/{service}/fail", json=drill, headers=ROOT)


def test_a_message_is_counted_once_and_so_is_its_attempt(client, metrics):
    send(client)
    # The labels in the order of their names: domain, outcome, service, stream.
    assert metrics.changes("mailpool_messages_total") == {
        ("example.com", "sent", "primary", "default"): 1
    }
    # code, domain, outcome, service
    assert metrics.changes("mailpool_attempts_total") == {("", "example.com", "sent", "primary"): 1}
    assert metrics.changes("mailpool_attempt_seconds_count") == {("example.com", "primary"): 1}
    assert metrics.changes("mailpool_failovers_total") == {}


def test_a_failover_is_two_attempts_at_one_message_and_counts_for_the_backup(client, metrics):
    fail(client, "primary", kind="key_refused")
    send(client)
    assert metrics.changes("mailpool_messages_total") == {
        ("example.com", "sent", "backup", "default"): 1
    }
    assert metrics.changes("mailpool_attempts_total") == {
        ("key_refused", "example.com", "not sent", "primary"): 1,
        ("", "example.com", "sent", "backup"): 1,
    }
    assert metrics.changes("mailpool_failovers_total") == {("example.com", "backup"): 1}
    send(client)  # the first rests now, and is passed by
    assert metrics.changes("mailpool_failovers_total") == {("example.com", "backup"): 2}
    skipped = ("resting", "example.com", "skipped", "primary")
    assert metrics.changes("mailpool_attempts_total")[skipped] == 1


def test_a_message_that_nobody_sent_has_no_service(client, metrics):
    fail(client, "primary", kind="answer_lost")
    fail(client, "backup")
    send(client)
    fail(client, "primary", simulated_failure=False)
    fail(client, "primary", kind="unavailable")
    send(client)
    assert metrics.changes("mailpool_messages_total") == {
        ("example.com", "unknown", "", "default"): 1,
        ("example.com", "not sent", "", "default"): 1,
    }


def test_a_service_that_cannot_carry_a_message_is_not_failed_over_from(make_app, config, stand_in):
    services = {
        "first": {"service": "postmark", "api_key": "key", "priority_value": 2},
        "second": {"service": "maildir", "priority_value": 1, "path": "mail"},
    }
    services["first"]["base_url"] = stand_in(answer(500)).url
    services["second"]["path"] = config["email_services"][1]["enabled_services"]["maildir"]["path"]
    config["email_services"][0]["enabled_services"] = services
    client = make_app(config).test_client()
    metrics = Metrics(client)
    told = send(client, body={**PLAIN, "tags": ["two", "tags"]}).json
    assert [a["code"] for a in told["attempts"]] == ["cannot_carry", ""]
    skipped = ("cannot_carry", "example.com", "skipped", "first")
    assert metrics.changes("mailpool_attempts_total")[skipped] == 1
    assert metrics.changes("mailpool_failovers_total") == {}


def test_a_batch_is_as_many_messages_and_attempts_in_fewer_calls(make_app, config, stand_in):
    stand = stand_in(ACCEPTED)
    account = {"api_key": "key", "priority_value": 1, "base_url": stand.url}
    config["email_services"][0]["enabled_services"] = {"mailgun": account}
    client = make_app(config).test_client()
    metrics = Metrics(client)
    messages = [{**PLAIN, "to_recipients": f"reader{n}@example.org"} for n in range(20)]
    assert send(client, body={"messages": messages}).status_code == 200
    assert sum(metrics.changes("mailpool_messages_total").values()) == 20
    assert sum(metrics.changes("mailpool_attempts_total").values()) == 20
    calls = metrics.changes("mailpool_attempt_seconds_count")
    assert calls == {("example.com", "mailgun"): len(stand.requests)}


def test_an_answer_that_is_repeated_is_a_replay_and_no_message(client, metrics):
    send(client, key="order-1")
    send(client, key="order-1")
    assert metrics.changes("mailpool_replays_total") == {("example.com",): 1}
    assert sum(metrics.changes("mailpool_messages_total").values()) == 1


def test_a_queued_message_waits_and_is_counted_once_when_it_has_ended(app, client, metrics):
    headers = {**POOL, "Prefer": "respond-async"}
    body = {**PLAIN, "stream": "bulk"}
    assert client.post("/example.com/send", json=body, headers=headers).status_code == 202
    assert metrics.changes("mailpool_messages_total") == {}
    assert metrics.values("mailpool_queue_waiting")["example.com", "bulk"] == 1
    fail(client, "primary")
    fail(client, "backup")
    app.extensions["mailpool"].dispatcher.deliver_due()  # nobody takes it, and it waits on
    assert metrics.changes("mailpool_messages_total") == {}
    assert metrics.values("mailpool_queue_oldest_seconds")["example.com", "bulk"] > 0
    fail(client, "backup", simulated_failure=False)
    message_id = client.get("/example.com/messages", headers=POOL).json["messages"][0]["message_id"]
    store = app.extensions["mailpool"].store
    assert store.send_now("example.com", message_id, time.time())
    app.extensions["mailpool"].dispatcher.deliver_due()
    assert metrics.changes("mailpool_messages_total") == {
        ("example.com", "sent", "backup", "bulk"): 1
    }
    assert metrics.values("mailpool_queue_waiting")["example.com", "bulk"] == 0


def test_keys_that_open_nothing_here_are_counted_and_missing_ones_are_not(client, metrics):
    client.post("/example.com/send", json=PLAIN)
    assert metrics.changes("mailpool_keys_refused_total") == {}
    client.post("/example.com/send", json=PLAIN, headers={"Authorization": "Bearer guessed"})
    client.post("/sign-in", json={"key": "guessed"})
    assert metrics.changes("mailpool_keys_refused_total") == {(): 2}


def test_requests_are_counted_by_what_they_ask_for_and_are_answered(client, metrics):
    send(client)
    client.get("/example.com")
    client.head("/example.com")
    for number in range(3):
        client.get(f"/nowhere/{number}/at/all")
    assert metrics.changes("mailpool_requests_total") == {
        ("send_message", "200"): 1,
        ("get_domain", "200"): 2,
        ("", "404"): 3,
        ("get_metrics", "200"): 1,  # the one that was told this
    }


def test_what_the_database_takes_is_timed(client):
    client.get("/metrics")  # the first makes a secret
    send(client)  # and the first removes what is old
    metrics = Metrics(client)  # which reads twice, once it has told what it knew before
    send(client)
    assert metrics.changes("mailpool_store_seconds_count") == {("read",): 3, ("write",): 2}


def test_every_service_is_in_one_state(client, metrics):
    assert set(metrics.values("mailpool_service_state").values()) == {0, 1}
    fail(client, "primary", kind="key_refused")
    send(client)
    states = metrics.values("mailpool_service_state")
    assert states["example.com", "primary", "resting"] == 1
    assert states["example.com", "primary", "working"] == 0
    assert states["example.com", "backup", "working"] == 1
    assert states["example.net", "maildir", "working"] == 1
    assert len(states) == 3 * len(get_args(State))


def test_without_the_database_what_is_counted_is_told_all_the_same(make_app, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "AWAY_SECONDS", 0)
    away = "postgresql://127.0.0.1:1/none"
    client = make_app(make_config(tmp_path, state_url=away)).test_client()
    metrics = Metrics(client)
    assert send(client).status_code == 200
    assert sum(metrics.changes("mailpool_messages_total").values()) == 1
    assert metrics.changes("mailpool_store_errors_total")[()] >= 3
    assert metrics.values("mailpool_store_up") == {(): 0}
    assert metrics.values("mailpool_service_state") == {}


def test_the_database_is_asked_no_more_once_it_is_silent(app, monkeypatch):
    """Each silence may take 2.5 s, and Prometheus waits for 10."""
    there = app.extensions["mailpool"]
    asked = []

    def silent(*_):
        asked.append(True)
        raise StoreUnavailable

    for name in ("all_service_states", "secret"):
        monkeypatch.setattr(there.store, name, silent)
    (up,) = gauges.Known(there.config, there.store, there.pools).collect()
    assert up.samples[0].value == 0
    assert len(asked) == 1


# The configuration


def fingerprint(tmp_path, salt="salt", **changes):
    path = tmp_path / "config.json"
    config = make_config(tmp_path, **changes)
    path.write_text(json.dumps(config))
    return load_config(str(path)).fingerprint(salt)


def test_the_same_configuration_has_the_same_hash_and_another_key_another(tmp_path):
    first = fingerprint(tmp_path)
    assert first == fingerprint(tmp_path)
    assert first != fingerprint(tmp_path, root_api_key="another-key")
    assert first != fingerprint(tmp_path, production=True, root_api_key="another-key")
    assert first == fingerprint(tmp_path, state_url="sqlite:///elsewhere.sqlite3")


def test_nobody_can_try_keys_against_the_hash_without_the_secret(tmp_path):
    assert fingerprint(tmp_path, "one secret") != fingerprint(tmp_path, "another")


def test_two_nodes_at_one_database_tell_the_same_hash(make_app, config):
    first, second = (Metrics(make_app(config).test_client()) for _ in range(2))
    assert first.values("mailpool_config_info") == second.values("mailpool_config_info")
    assert list(first.values("mailpool_config_info").values()) == [1]
    assert first.values("mailpool_config_last_reload_successful") == {(): 1}
    (at,) = first.values("mailpool_config_last_reload_timestamp_seconds").values()
    assert 0 <= time.time() - at < 60


# Who may read it


@pytest.mark.parametrize(
    ("production", "key", "status"),
    [
        (False, {}, 200),
        (False, ROOT, 200),
        (False, {"Authorization": "Bearer wrong"}, 401),
        (False, POOL, 401),
        (True, {}, 401),
        (True, POOL, 401),
        (True, ROOT, 200),
    ],
)
def test_in_production_the_root_key_is_needed(production, key, status, make_app, tmp_path):
    client = make_app(make_config(tmp_path, production=production)).test_client()
    answered = client.get("/metrics", headers=key)
    assert answered.status_code == status
    if status == 401:
        assert "the root key or a metrics key is needed" in answered.json["error"]
    else:
        assert answered.content_type.startswith("text/plain; version=0.0.4")


def test_prometheus_gets_what_it_asks_for(client):
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    answered = client.get("/metrics", headers={"Accept": asked})
    assert answered.status_code == 200
    assert answered.text.startswith("# HELP mailpool_")


# Labels


def test_every_fault_there_is_is_there_from_the_start(metrics):
    def codes(cls):
        return {cls.code, *(code for sub in cls.__subclasses__() for code in codes(sub))}

    faults = {code for sub in ProviderError.__subclasses__() for code in codes(sub)}
    assert faults <= {code for _, code in KINDS_OF_ATTEMPTS}
    there = {labels[0] for labels in metrics.values("mailpool_attempts_total")}
    assert there == {code for _, code in KINDS_OF_ATTEMPTS}


def test_no_caller_makes_a_series(client, metrics):
    known = set(metrics.now())
    for number in range(5):
        client.get(f"/domain{number}.example", headers={"Authorization": f"Bearer key{number}"})
        client.post(f"/example.com/service{number}/send", json=PLAIN, headers=POOL)
        client.open(f"/{number}", method="PROPFIND")
        send(client, key=f"key-{number}", body={**PLAIN, "tags": [f"tag{number}"]})
    text = client.get("/metrics").text
    assert len(set(samples(text)) - known) < 20
    for word in ("domain1", "service1", "PROPFIND", "key-1", "tag1", PLAIN["to_recipients"]):
        assert word not in text


def test_no_key_is_in_it(client):
    send(client)
    text = client.get("/metrics", headers=ROOT).text
    assert ROOT["Authorization"].split()[1] not in text
    assert POOL_KEY not in text


# Several workers


def test_four_workers_count_what_the_provider_does_also_after_one_was_killed(
    serve,  # noqa: F811 - the fixture
    stand_in,
    tmp_path,
):
    stand = stand_in(ACCEPTED)
    account = {"api_key": PROVIDER_KEY, "priority_value": 1, "base_url": stand.url}
    config = with_services(tmp_path, {"mailgun": account})
    server = serve(config, WEB_CONCURRENCY="4", TMPDIR=str(tmp_path))
    wait_for(lambda: len(server.workers) == 4)

    def load(number: int) -> Counter:
        with ThreadPoolExecutor(16) as threads:
            return Counter(threads.map(lambda _: post(server), range(number)))

    def sums() -> tuple[float, float, float]:
        found = samples(requests.get(f"{server.url}/metrics", timeout=30).text)

        def of(name, **labels):
            wanted = set(labels.items())
            return sum(v for (n, held), v in found.items() if n == name and wanted <= held)

        return (
            of("mailpool_attempts_total", outcome="sent"),
            of("mailpool_messages_total"),
            of("mailpool_requests_total", operation="send_message", status="200"),
        )

    assert load(200) == {200: 200}
    assert sums() == (len(stand.requests),) * 3 == (200,) * 3
    # Killed while nothing is under way: what it has counted stays.
    killed = server.workers[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len(server.workers) == 4 and killed not in server.workers)
    assert sums() == (200,) * 3
    assert load(100) == {200: 100}
    assert sums() == (len(stand.requests),) * 3 == (300,) * 3
    # Killed in mid-load: what was under way in it has not ended, and its caller knows.
    with ThreadPoolExecutor(1) as threads:
        told = threads.submit(load, 100)
        wait_for(lambda: len(stand.requests) > 330)
        os.kill(server.workers[1], signal.SIGKILL)
        cut = told.result()[0]
    attempts, messages, _ = sums()
    assert len(stand.requests) - cut <= messages <= attempts <= len(stand.requests)
    # Only who asks is under way: what the killed was at goes once gunicorn has seen it end, and a
    # request that is answered goes a moment after its caller has read the answer.
    wait_for(lambda: under_way(server) == 1)
    files = {path.name for path in tmp_path.glob("mailpool-counts-*/*")}
    assert len([name for name in files if name.startswith("counter_")]) == 5
    # All workers are replaced: what they have counted stays.
    before, old = sums(), set(server.workers)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(server.workers) == 4 and not old & set(server.workers))
    assert sums() == before
    # A new start begins anew, and removes what was left of one that could not.
    server.kill()
    (left,) = tmp_path.glob("mailpool-counts-*")
    server = serve(config, WEB_CONCURRENCY="4", TMPDIR=str(tmp_path))
    assert not left.exists()
    seen = len(stand.requests)
    assert load(20) == {200: 20}
    assert sums() == (len(stand.requests) - seen,) * 3 == (20,) * 3
    server.stop()
    assert list(tmp_path.glob("mailpool-counts-*")) == []


def post(server) -> int:
    """The status; 0 where the connection was cut."""
    try:
        return requests.post(
            f"{server.url}/example.com/send", json=PLAIN, headers=POOL, timeout=30
        ).status_code
    except requests.RequestException:
        return 0


def under_way(server) -> float:
    text = requests.get(f"{server.url}/metrics", timeout=30).text
    return samples(text)["mailpool_requests_in_progress", frozenset()]
