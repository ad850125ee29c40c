"""Behind proxies a request is its client's: in the log, and where wrong keys are counted."""

from __future__ import annotations

import pytest
import requests
from conftest import PLAIN, POOL, make_config
from servers import Server

from browsable_api.clients import Proxies
from endpoints.guesses import MAX_WRONG_KEYS
from server.proxies import trusted_proxies

PROXY, INNER, CLIENT, MADE_UP = "10.0.0.1", "10.0.0.2", "192.0.2.7", "198.51.100.9"
SEEN_AS = [
    # trusted, who connects, X-Forwarded-For, the client
    (PROXY, PROXY, CLIENT, CLIENT),
    (PROXY, PROXY, f"{MADE_UP}, {CLIENT}", CLIENT),
    (PROXY, PROXY, f"{MADE_UP},{CLIENT} , {PROXY}", CLIENT),
    ("10.0.0.0/8", PROXY, f"{MADE_UP}, {CLIENT}, {INNER}", CLIENT),
    (f" {PROXY} ,{INNER}", PROXY, f"{CLIENT}, {INNER}", CLIENT),
    (PROXY, PROXY, f"{CLIENT}, {INNER}", INNER),
    (PROXY, PROXY, "", PROXY),
    (PROXY, PROXY, PROXY, PROXY),
    (PROXY, CLIENT, MADE_UP, CLIENT),
    ("", PROXY, MADE_UP, PROXY),
    ("127.0.0.1", PROXY, MADE_UP, PROXY),
    ("*", PROXY, f"{MADE_UP}, {CLIENT}", CLIENT),
    ("*", PROXY, "", PROXY),
    ("127.0.0.1", "", CLIENT, CLIENT),
    ("", "", "", ""),
    (PROXY, PROXY, f"{CLIENT}:4711", CLIENT),
    (PROXY, PROXY, "2001:DB8::7", "2001:db8::7"),
    (PROXY, PROXY, "[2001:db8::7]", "2001:db8::7"),
    (PROXY, PROXY, "[2001:db8::7]:4711", "2001:db8::7"),
    ("2001:db8::/32", "2001:db8::1", f"{CLIENT}, 2001:db8::2", CLIENT),
    (PROXY, PROXY, f"{CLIENT}, unknown", PROXY),
    (PROXY, PROXY, f"{CLIENT}, _hidden, {PROXY}", PROXY),
    (PROXY, PROXY, "1.2.3", PROXY),
    (PROXY, PROXY, "\nINJECTED", PROXY),
    (PROXY, PROXY, "1" * 100_000, PROXY),
]


@pytest.mark.parametrize(("trusted", "peer", "forwarded_for", "client"), SEEN_AS)
def test_a_client_is_the_last_that_no_trusted_proxy_has(trusted, peer, forwarded_for, client):
    assert Proxies(trusted).client(peer, forwarded_for) == client


@pytest.mark.parametrize(
    ("environment", "trusted"),
    [({}, "127.0.0.1"), ({"DYNO": "web.1"}, "*"), ({"FORWARDED_ALLOW_IPS": PROXY}, PROXY)],
)
def test_on_heroku_its_router_is_trusted_and_elsewhere_who_is_named(
    environment, trusted, monkeypatch
):
    for name in ("DYNO", "FORWARDED_ALLOW_IPS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert trusted_proxies() == trusted


@pytest.mark.parametrize("trusted", ["proxy.example", "10.0.0.1/8", "10.0.0.1;10.0.0.2"])
def test_a_list_of_proxies_that_is_none_ends_the_start_with_one_line(trusted, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with pytest.raises(SystemExit, match=r"^\$FORWARDED_ALLOW_IPS should be addresses"):
        trusted_proxies()


@pytest.fixture
def server(tmp_path):
    running = Server(
        tmp_path, make_config(tmp_path), FORWARDED_ALLOW_IPS="127.0.0.1", WEB_CONCURRENCY="2"
    )
    yield running
    running.kill()


def test_all_workers_count_and_log_the_client_and_not_the_proxy(server):
    def guess(client: str, **headers) -> int:
        headers = {"Authorization": "Bearer wrong", "X-Forwarded-For": client, **headers}
        url = f"{server.url}/example.com/send"
        return requests.post(url, json=PLAIN, headers=headers, timeout=30).status_code

    told = [guess(f"{MADE_UP}{number}, {CLIENT}") for number in range(MAX_WRONG_KEYS + 5)]
    assert told == [401] * MAX_WRONG_KEYS + [429] * 5
    assert guess(INNER) == 401
    assert guess(CLIENT, **POOL) == 200
    assert f'"{CLIENT} POST /example.com/send 429 ' in server.log
    assert f'"{INNER} POST /example.com/send 401 ' in server.log
    assert server.log.count(f"Too many wrong keys from {CLIENT}.") == 1
    assert "127.0.0.1 POST" not in server.log
