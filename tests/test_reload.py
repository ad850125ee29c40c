"""A changed configuration, taken over by a server that is in use."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import POOL_KEY, make_config
from messages import PLAIN
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
