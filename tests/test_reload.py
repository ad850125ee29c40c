"""A changed configuration, taken over by a server that is in use."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import POOL_KEY, ROOT, ROOT_KEY, make_config
from messages import PLAIN
from servers import ROOT as ROOT_FOLDER
from servers import Server

NEW_KEY = "another-pool-key"
FOREVER = 60


@pytest.fixture
def server(tmp_path):
    running = Server(tmp_path, make_config(tmp_path))
    yield running
    running.kill()


def send(server, key):
    headers = {"Authorization": f"Bearer {key}"}
    return requests.post(f"{server.url}/example.com/send", json=PLAIN, headers=headers, timeout=30)


def reload(server, config):
    """Have the server take `config` over, or refuse it."""
    said = server.log.count("taken over")
    server.config_file.write_text(config)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.log.count("taken over") > said)


def wait_for(condition):
    over = threading.Event()
    deadline = time.monotonic() + FOREVER
    while not condition():
        assert time.monotonic() < deadline
        over.wait(0.02)


def with_both_keys(tmp_path):
    config = make_config(tmp_path)
    config["email_services"][0]["pool_api_key"] = [
        {"name": "old", "key": POOL_KEY},
        {"name": "new", "key": NEW_KEY},
    ]
    return json.dumps(config)


def test_a_changed_configuration_is_taken_over_and_no_send_under_way_fails(server, tmp_path):
    is_over, before = threading.Event(), server.workers

    def go_on():
        statuses = []
        while not is_over.is_set():
            statuses.append(send(server, POOL_KEY).status_code)
        return statuses

    with ThreadPoolExecutor(4) as threads:
        senders = [threads.submit(go_on) for _ in range(4)]
        assert send(server, NEW_KEY).status_code == 401
        reload(server, with_both_keys(tmp_path))
        wait_for(lambda: not {*before} & {*server.workers})
        assert send(server, NEW_KEY).status_code == 200
        is_over.set()
        statuses = [status for sender in senders for status in sender.result()]
    assert len(statuses) > len(senders)
    assert {*statuses} == {200}


def test_a_configuration_that_is_not_usable_changes_nothing_and_says_why(server, tmp_path):
    before = server.workers
    reload(server, json.dumps(make_config(tmp_path, production="perhaps", surprise=1)))
    wait_for(lambda: not {*before} & {*server.workers})
    assert "The configuration was not taken over: " in server.log
    assert "production: " in server.log
    assert "surprise: " in server.log
    assert send(server, POOL_KEY).status_code == 200
    assert "mailpool_config_last_reload_successful 0" in metrics(server)
    reload(server, with_both_keys(tmp_path))
    wait_for(lambda: "mailpool_config_last_reload_successful 1" in metrics(server))


def metrics(server):
    return requests.get(f"{server.url}/metrics", timeout=30).text


def uploadable(tmp_path, service, deadline):
    """A configuration with one service, which is called like that, and says it in two places."""
    config = make_config(tmp_path, root_api_key="env:ROOT_KEY")
    del config["state_url"]
    config["email_services"] = config["email_services"][:1]
    config["email_services"][0].update(
        pool_api_key="env:POOL_KEY",
        deadline_seconds=deadline,
        enabled_services={
            service: {"service": "maildir", "priority_value": 1, "path": f"{tmp_path}/{service}"}
        },
    )
    return config


def node(tmp_path, **environment):
    config = make_config(tmp_path, config_upload=True)
    return Server(tmp_path, config, ROOT_KEY=ROOT_KEY, POOL_KEY=POOL_KEY, **environment)


def put(server, config):
    return requests.put(f"{server.url}/config", json=config, headers=ROOT, timeout=30)


def versions_in_use(server):
    """As its workers answer, whichever does."""
    asked = [requests.get(f"{server.url}/config", headers=ROOT, timeout=30) for _ in range(6)]
    return {(answer.json()["version"], answer.json()["hash"]) for answer in asked}


def test_uploads_under_load_fail_no_request_and_none_sees_half_of_each(tmp_path):
    server, is_over, seen = node(tmp_path), threading.Event(), set()

    def go_on():
        statuses = []
        while not is_over.is_set():
            statuses.append(send(server, POOL_KEY).status_code)
            shown = requests.get(f"{server.url}/example.com", headers=ROOT, timeout=30).json()
            seen.add((*shown["enabled_services"], shown["deadline_seconds"]))
        return statuses

    try:
        wait_for(lambda: len(server.workers) == 2)
        before = server.workers
        with ThreadPoolExecutor(4) as threads:
            senders = [threads.submit(go_on) for _ in range(4)]
            for version, (service, deadline) in enumerate([("a", 11), ("b", 12), ("c", 13)], 1):
                assert put(server, uploadable(tmp_path, service, deadline)).status_code == 200
                assert put(server, {"root_api_key": "plain"}).status_code == 400
                wait_for(lambda v=version: {v} == {n for n, _ in versions_in_use(server)})
            is_over.set()
            statuses = [status for sender in senders for status in sender.result()]
        assert {*statuses} == {200}
        assert len(statuses) > 20
        assert seen >= {("a", 11), ("b", 12), ("c", 13)}
        assert seen <= {("primary", "backup", 25), ("a", 11), ("b", 12), ("c", 13)}
        assert server.workers == before, "no process is replaced"
        sent = sum(len([*(tmp_path / name / "new").iterdir()]) for name in ("primary", *"abc"))
        assert sent == len(statuses)
    finally:
        server.kill()


def test_two_nodes_end_on_the_same_configuration_also_over_a_reload_and_a_restart(tmp_path):
    nodes = [node(tmp_path, WEB_CONCURRENCY="1") for _ in range(2)]
    try:
        for version in (1, 2):
            put(nodes[version - 1], uploadable(tmp_path, "a", 10 + version)).raise_for_status()
            wait_for(lambda v=version: {v} == {n for s in nodes for n, _ in versions_in_use(s)})
        (in_use,) = versions_in_use(nodes[0])
        assert versions_in_use(nodes[1]) == {in_use}
        file = make_config(tmp_path, config_upload=True, message_retention_days=3)
        before = nodes[0].workers
        reload(nodes[0], json.dumps(file))
        wait_for(lambda: not {*before} & {*nodes[0].workers})
        assert versions_in_use(nodes[0]) == {in_use}, "what is uploaded comes before the file"
        third = node(tmp_path, WEB_CONCURRENCY="1")
        nodes.append(third)
        assert versions_in_use(third) == {in_use}
        reload(nodes[0], json.dumps({**file, "config_upload": False}))
        wait_for(lambda: {None} == {n for n, _ in versions_in_use(nodes[0])})
    finally:
        for server in nodes:
            server.kill()


def test_a_file_that_is_not_usable_is_told_beside_an_upload_that_is_in_use(tmp_path):
    server = node(tmp_path)
    try:
        put(server, uploadable(tmp_path, "a", 11)).raise_for_status()
        wait_for(lambda: {1} == {n for n, _ in versions_in_use(server)})
        taken_over = last_reload(server)
        good, before = server.config_file.read_text(), server.workers
        reload(server, "{")
        wait_for(lambda: len(server.workers) == 2 and not {*before} & {*server.workers})
        assert {1} == {n for n, _ in versions_in_use(server)}
        assert "mailpool_config_last_reload_successful 0" in metrics(server)
        assert last_reload(server) == taken_over
        reload(server, good)
        wait_for(lambda: "mailpool_config_last_reload_successful 1" in metrics(server))
        assert last_reload(server) > taken_over
    finally:
        server.kill()


def last_reload(server):
    name = "mailpool_config_last_reload_timestamp_seconds"
    return float(re.search(rf"^{name} (\S+)$", metrics(server), re.MULTILINE)[1])


def test_what_waits_is_delivered_by_what_was_uploaded(tmp_path):
    server = node(tmp_path, WEB_CONCURRENCY="1")
    try:
        put(server, uploadable(tmp_path, "a", 11)).raise_for_status()
        wait_for(lambda: {1} == {n for n, _ in versions_in_use(server)})
        later = {"Authorization": f"Bearer {POOL_KEY}", "Prefer": "respond-async"}
        url = f"{server.url}/example.com/send"
        queued = requests.post(url, json=PLAIN, headers=later, timeout=30).json()
        shown = lambda: requests.get(queued["url"], headers=later, timeout=30).json()  # noqa: E731
        wait_for(lambda: shown()["outcome"] == "sent")
        assert shown()["service_used"] == "a"
    finally:
        server.kill()


def test_a_worker_that_runs_apart_takes_over_what_was_uploaded(tmp_path):
    server = node(tmp_path, WEB_CONCURRENCY="1", QUEUE_CALLS="0")
    logged = {"LOG_FORMAT": "json", "LOG_LEVEL": "debug"}
    environment = {"EMAIL_CONFIG": str(server.config_file), **logged}
    keys = {"ROOT_KEY": ROOT_KEY, "POOL_KEY": POOL_KEY}
    log = (tmp_path / "worker.log").open("wb")
    server.watch(tmp_path / "worker.log", is_json=True)
    worker = subprocess.Popen(
        [sys.executable, "-m", "email_services", "worker"],
        cwd=ROOT_FOLDER,
        env={**os.environ, **environment, **keys},
        stdout=log,
    )
    try:
        later = {"Authorization": f"Bearer {POOL_KEY}", "Prefer": "respond-async"}

        def sender():
            url = f"{server.url}/example.com/send"
            queued = requests.post(url, json=PLAIN, headers=later, timeout=30).json()
            shown = lambda: requests.get(queued["url"], headers=later, timeout=30).json()  # noqa: E731
            wait_for(lambda: shown()["outcome"] == "sent")
            return shown()["service_used"]

        assert sender() == "primary"
        put(server, uploadable(tmp_path, "a", 11)).raise_for_status()
        wait_for(lambda: sender() == "a")
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
        log.close()
        server.kill()
    lines = [json.loads(line) for line in (tmp_path / "worker.log").read_text().splitlines()]
    assert [line["version"] for line in lines if line["event"] == "config"] == [1]
