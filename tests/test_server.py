"""The service as it runs: several workers under gunicorn, real providers' servers on loopback."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from clocks import FOREVER, no_waiting
from conftest import (
    OTHER_POOL_KEY,
    PLAIN,
    POOL,
    POOL_KEY,
    PROVIDER_KEY,
    ROOT,
    ROOT_KEY,
    make_config,
)
from messages import in_base64
from servers import ROOT as REPOSITORY
from servers import Server
from standins import answer, answer_json, delayed, hang

from email_services.abstract import MAX_TIMEOUT_SECONDS
from email_services.store.engines import CONNECTIONS, LOG_CONNECTIONS

CONNECTIONS_TO_THE_STATE = sum(
    CONNECTIONS[kind] + LOG_CONNECTIONS[kind] for kind in ("pool_size", "max_overflow")
)

ACCEPTED = {
    "mailgun": answer_json(200, {"id": "<1@example.com>", "message": "Queued. Thank you."}),
    "sendgrid": answer(202, {"X-Message-Id": "1"}),
}


@pytest.fixture
def serve(tmp_path):
    """Start a service; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(config: dict, *application: str, **environment: str) -> Server:
            server = Server(tmp_path, config, *application, **environment)
            stack.callback(server.kill)
            return server

        yield start


def with_services(tmp_path, services: dict, **domain_settings) -> dict:
    config = make_config(tmp_path)
    config["email_services"][0].update(enabled_services=services, **domain_settings)
    return config


def account(provider: str, url: str, priority: int, **settings) -> dict:
    return {
        "service": provider,
        "api_key": PROVIDER_KEY,
        "priority_value": priority,
        "base_url": url,
        **settings,
    }


def post(server: Server, **settings) -> requests.Response:
    return requests.post(f"{server.url}/example.com/send", json=PLAIN, headers=POOL, **settings)


def test_after_one_toggle_200_of_200_requests_to_4_workers_see_it(serve, config):
    server = serve(config, WEB_CONCURRENCY="4")
    wait_for(lambda: len(server.workers) == 4)
    address = f"{server.url}/example.com/primary/fail"
    for expected in (True, False):
        requests.post(address, headers=ROOT, timeout=30).raise_for_status()
        with ThreadPoolExecutor(16) as threads:
            seen = list(threads.map(lambda _: requests.get(address, timeout=30).json(), range(200)))
        assert [answer["simulated_failure_enabled"] for answer in seen] == [expected] * 200


def test_a_toggle_is_still_there_after_a_restart(serve, config):
    first = serve(config, WEB_CONCURRENCY="1")
    requests.post(f"{first.url}/example.com/primary/fail", headers=ROOT, timeout=30)
    first.stop()
    second = serve(config)
    assert post(second, timeout=30).json()["service_used"] == "backup"


@pytest.mark.parametrize("provider", sorted(ACCEPTED))
def test_200_sends_use_no_more_connections_than_busy_threads(provider, serve, stand_in, tmp_path):
    stand = stand_in(delayed(ACCEPTED[provider], 0.02))
    services = {provider: account(provider, stand.url, 1)}
    server = serve(with_services(tmp_path, services), WEB_CONCURRENCY="4", WEB_THREADS="4")
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=16))
    with session, ThreadPoolExecutor(16) as threads:
        url = f"{server.url}/example.com/send"
        sent = threads.map(
            lambda _: session.post(url, json=PLAIN, headers=POOL, timeout=30).status_code,
            range(200),
        )
        assert list(sent) == [200] * 200
    assert len(stand.requests) == 200
    assert stand.connections <= 4 * 4


def test_what_a_worker_keeps_open_has_a_bound_whatever_it_was_asked(serve, stand_in, tmp_path):
    """As docs/operating.md has it: for the state of SQLite, and for each service."""
    stand = stand_in(delayed(ACCEPTED["mailgun"], 0.01))
    services = {"mailgun": account("mailgun", stand.url, 1)}
    server = serve(
        with_services(tmp_path, services), WEB_CONCURRENCY="1", WEB_THREADS="8", QUEUE_CALLS="4"
    )
    (worker,) = server.workers
    idle = open_in(worker)
    later = {**POOL, "Prefer": "respond-async"}
    url = f"{server.url}/example.com"
    asked = (
        lambda: requests.post(f"{url}/send", json=PLAIN, headers=POOL, timeout=60),
        lambda: requests.post(f"{url}/send", json=PLAIN, headers=later, timeout=60),
        lambda: requests.get(f"{url}/messages?q=hello", headers=POOL, timeout=60),
        lambda: requests.get(f"{url}/messages/export.csv", headers=POOL, timeout=60),
        lambda: requests.get(f"{url}?format=html", headers=POOL, timeout=60),
    )
    for _ in range(2):
        with ThreadPoolExecutor(24) as threads:
            told = threads.map(lambda number: asked[number % len(asked)]().status_code, range(250))
            assert {200, 202} <= {*told} <= {200, 202, 503}, "some may find no room"
        wait_for(lambda: not waiting(url))
        found = open_in(worker)
        assert found["state.sqlite3"] <= CONNECTIONS_TO_THE_STATE
        assert found["state.sqlite3-wal"] <= CONNECTIONS_TO_THE_STATE
        assert found["state.sqlite3-shm"] <= 1
        # Those to the service are as many as its threads and its queue; clients read what is left.
        wait_for(lambda: open_in(worker)["socket"] <= idle["socket"] + 8 + 4)
        others = {*found} - {*idle, "state.sqlite3", "state.sqlite3-wal", "state.sqlite3-shm"}
        assert not others


def waiting(url: str) -> int:
    """Messages in the queue of the domain at `url`."""
    listed = requests.get(url, headers=POOL, timeout=60).json()
    return sum(depth["waiting"] for depth in listed["queue"].values())


def open_in(process: int) -> Counter:
    """What a process has open, by the name of the file or, of others, by the kind."""
    found: Counter = Counter()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this very look, and what has ended
            found[descriptor.readlink().name.partition(":")[0]] += 1
    return found


@pytest.mark.parametrize("provider", sorted(ACCEPTED))
def test_a_provider_that_never_answers_costs_its_timeout(provider, serve, stand_in, tmp_path):
    hanging = stand_in(hang)
    services = {
        "hanging": account(provider, hanging.url, 2, timeout_seconds=2),
        "working": account(provider, stand_in(ACCEPTED[provider]).url, 1),
    }
    server = serve(with_services(tmp_path, services, deadline_seconds=60))
    started = time.monotonic()
    with no_waiting():
        answer = post(server, timeout=90)
    assert answer.json()["service_used"] == "working"
    assert answer.json()["possible_duplicate"] is True
    assert time.monotonic() - started >= 2
    assert len(hanging.requests) == 1, "not twice"


def test_two_that_never_answer_cost_no_more_than_the_deadline(serve, stand_in, tmp_path):
    services = {
        name: account("mailgun", stand_in(hang).url, 1, timeout_seconds=60) for name in ("a", "b")
    }
    server = serve(with_services(tmp_path, services, deadline_seconds=2))
    started = time.monotonic()
    with no_waiting():
        answer = post(server, timeout=60)
    assert (answer.status_code, answer.json()["result"]) == (504, "unknown")
    assert [attempt["outcome"] for attempt in answer.json()["attempts"]] == ["unknown"] * 2
    assert time.monotonic() - started >= 1.9


def test_a_slow_provider_does_not_block_other_requests(serve, stand_in, tmp_path):
    stand = stand_in(hang)
    services = {"slow": account("mailgun", stand.url, 1, timeout_seconds=60)}
    server = serve(with_services(tmp_path, services, deadline_seconds=60), WEB_CONCURRENCY="1")
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(post, server, timeout=90) for _ in range(8)]
        wait_for(lambda: len(stand.requests) == 8)
        with no_waiting():
            assert requests.get(f"{server.url}/example.com", timeout=60).status_code == 200
        stand.close()
        assert {future.result().status_code for future in waiting} == {504}


def test_no_send_waits_behind_a_busy_thread_while_another_is_free(serve, stand_in, tmp_path):
    stand = stand_in(hang)
    services = {"slow": account("mailgun", stand.url, 1, timeout_seconds=60)}
    config = with_services(tmp_path, services, deadline_seconds=60)
    del config["email_services"][1]  # with nobody to leave threads to
    server = serve(config, "long_yields:create_app()", WEB_CONCURRENCY="4", WEB_THREADS="4")
    wait_for(lambda: server.log.count("Booting worker") == 4)
    with ThreadPoolExecutor(16) as threads:
        waiting = [threads.submit(post, server, timeout=90) for _ in range(16)]
        wait_for(lambda: len(stand.requests) == 16)
        stand.close()
        assert {future.result().status_code for future in waiting} == {504}


def test_a_domain_whose_provider_hangs_leaves_threads_to_the_others(serve, stand_in, tmp_path):
    stand = stand_in(hang)
    services = {"hanging": account("mailgun", stand.url, 1, timeout_seconds=60)}
    config = with_services(tmp_path, services, deadline_seconds=60)
    server = serve(config, WEB_CONCURRENCY="1", WEB_THREADS="8")
    with ThreadPoolExecutor(20) as threads:
        held = [threads.submit(post, server, timeout=60) for _ in range(20)]
        # Four have a thread: half of all. The others hear at once that there is no room.
        wait_for(lambda: sum(future.done() for future in held) == 16)
        assert len(stand.requests) == 4
        refused = [future.result() for future in held if future.done()]
        other = requests.post(
            f"{server.url}/example.net/send",
            json={**PLAIN, "from_email": "me@example.net"},
            headers={"Authorization": f"Bearer {OTHER_POOL_KEY}"},
            timeout=20,
        )
        pages = [requests.get(f"{server.url}/{p}", timeout=20) for p in ("healthz", "example.com")]
        stand.close()
        answered = [future.result() for future in held]
    assert other.json()["result"] == "success"
    assert [page.status_code for page in pages] == [200, 200]
    for refusal in refused:
        assert (refusal.status_code, refusal.headers["Retry-After"]) == (503, "1")
        assert refusal.json()["code"] == "busy"
        assert refusal.json()["attempts"] == []
    assert Counter(each.status_code for each in answered) == {503: 16, 504: 4}


def test_a_client_that_does_not_close_holds_up_nobody(serve, config):
    server = serve(config, WEB_CONCURRENCY="1", WEB_THREADS="1")
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            raw = stack.enter_context(socket.create_connection(address_of(server), timeout=20))
            raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw.recv(4096).startswith(b"HTTP/1.1 200")
        with no_waiting():  # of two minutes that gunicorn waits for all of them in its loop
            requests.get(f"{server.url}/healthz", timeout=60).raise_for_status()


def wait_for(condition, seconds: float = FOREVER) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


HALF_SENT = {
    "headers": b"POST /example.com/send HTTP/1.1\r\nHost: x\r\n",
    "a body": (
        b"POST /example.com/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Authorization: {POOL['Authorization']}\r\nContent-Length: 9999\r\n\r\n".encode()
        + b'{"subject'
    ),
    "a chunk": (
        b"POST /example.com/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Authorization: {POOL['Authorization']}\r\n".encode()
        + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n{"
    ),
}


def address_of(server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def half_send(server, sent) -> socket.socket:
    raw = socket.create_connection(address_of(server), timeout=20)
    raw.sendall(HALF_SENT[sent])
    return raw


@pytest.mark.parametrize("sent", HALF_SENT)
def test_clients_that_never_finish_their_request_do_not_hold_the_threads(sent, serve, config):
    server = serve(config, WEB_CONCURRENCY="1", WEB_THREADS="4", WEB_REQUEST_SECONDS="1")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(half_send(server, sent)) for _ in range(4)]
        assert requests.get(f"{server.url}/healthz", timeout=20).status_code == 200
        answers = [b"".join(iter(functools.partial(raw.recv, 4096), b"")) for raw in slow]
    expected = b"" if sent == "headers" else b"HTTP/1.1 400 "
    assert [answer[:13] for answer in answers] == [expected] * 4
    assert "Traceback" not in server.log


@pytest.mark.parametrize("sent", HALF_SENT)
def test_half_requests_hold_no_thread(sent, serve, config):
    server = serve(config, WEB_CONCURRENCY="1", WEB_THREADS="1")
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(half_send(server, sent))
        assert requests.get(f"{server.url}/healthz", timeout=20).status_code == 200
        assert post(server, timeout=20).json()["result"] == "success"


def test_who_asks_before_sending_the_body_is_told_to_go_on_once(serve, config):
    server = serve(config, WEB_CONCURRENCY="1")
    head = (
        "POST /example.com/send HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: {POOL['Authorization']}\r\n"
        "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    with socket.create_connection(address_of(server), timeout=20) as raw:
        raw.sendall(head.encode())
        assert raw.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"{}")
        assert raw.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_drips_its_request_is_given_up_on(serve, config):
    server = serve(config, WEB_CONCURRENCY="1", WEB_THREADS="1", WEB_REQUEST_SECONDS="1")
    with half_send(server, "a body") as raw:
        raw.setblocking(False)

        def is_answered():
            with contextlib.suppress(BlockingIOError):
                raw.send(b"x")
                return raw.recv(13) == b"HTTP/1.1 400 "
            return False

        wait_for(is_answered)


LARGE = 10_000_000
"""Bytes: more than the systems of a server and a client take without anybody reading."""


def test_clients_that_do_not_read_their_answer_do_not_hold_the_threads(serve, make_app, config):
    file = {"filename": "a.bin", "content": in_base64(b"x" * LARGE)}
    message = {**PLAIN, "attachments": [file]}
    client = make_app(config).test_client()
    sent = client.post("/example.com/send", json=message, headers=POOL).json
    server = serve(config, WEB_CONCURRENCY="1", WEB_THREADS="1", WEB_REQUEST_SECONDS="1")
    with socket.socket() as deaf:
        deaf.settimeout(20)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        deaf.connect(address_of(server))
        path = f"/example.com/messages/{sent['message_id']}/files/1"
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {POOL['Authorization']}\r\n\r\n"
        deaf.sendall(head.encode())
        assert deaf.recv(15) == b"HTTP/1.1 200 OK"
        assert requests.get(f"{server.url}/healthz", timeout=20).status_code == 200
        read = sum(map(len, iter(functools.partial(deaf.recv, 1_000_000), b"")))
    assert read < LARGE, "it was given up on"


def test_a_send_may_take_longer_than_its_request_may_take_to_arrive(serve, stand_in, tmp_path):
    release = threading.Event()

    def when_released(exchange):
        release.wait(FOREVER)
        ACCEPTED["mailgun"](exchange)

    stand = stand_in(when_released)
    config = with_services(tmp_path, {"mailgun": account("mailgun", stand.url, 1)})
    server = serve(config, WEB_CONCURRENCY="1", WEB_REQUEST_SECONDS="1")
    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(post, server, timeout=30)
        wait_for(lambda: len(stand.requests) == 1)
        with half_send(server, "headers") as later:
            assert later.recv(1) == b"", "its time is over, and so is that of the one before it"
        release.set()
        assert sent.result().json()["result"] == "success"


def test_a_graceful_stop_lets_sends_in_progress_finish(serve, stand_in, tmp_path):
    release = threading.Event()

    def when_released(exchange):
        release.wait(FOREVER)
        ACCEPTED["mailgun"](exchange)

    stand = stand_in(when_released)
    server = serve(with_services(tmp_path, {"mailgun": account("mailgun", stand.url, 1)}))
    with ThreadPoolExecutor(20) as threads:
        sends = [threads.submit(post, server, timeout=30) for _ in range(20)]
        wait_for(lambda: len(stand.requests) == 20)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "Handling signal: term" in server.log)
        release.set()
        assert {future.result().status_code for future in sends} == {200}
    assert server.process.wait(FOREVER) == 0


def test_a_worker_killed_in_mid_send_is_replaced(serve, stand_in, tmp_path):
    stand = stand_in(hang)
    services = {
        "slow": account("mailgun", stand.url, 2),
        "maildir": {"priority_value": 1, "path": str(tmp_path / "mail")},
    }
    server = serve(with_services(tmp_path, services), WEB_CONCURRENCY="1")
    with ThreadPoolExecutor(1) as threads:
        cut_off = threads.submit(post, server, timeout=30)
        wait_for(lambda: len(stand.requests) == 1)
        (killed,) = server.workers
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(requests.ConnectionError):
            cut_off.result()
    wait_for(lambda: server.workers not in ([], [killed]))
    answer = requests.post(
        f"{server.url}/example.com/maildir/send", json=PLAIN, headers=POOL, timeout=30
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(("trusted", "is_secure"), [("127.0.0.1", True), ("192.0.2.1", False)])
def test_a_sessions_cookie_is_secure_where_a_trusted_proxy_says_tls(
    trusted, is_secure, serve, config
):
    server = serve(config, WEB_CONCURRENCY="2", FORWARDED_ALLOW_IPS=trusted)
    headers = {"X-Forwarded-Proto": "https"}
    answer = requests.post(
        f"{server.url}/sign-in", json={"key": POOL_KEY}, headers=headers, timeout=30
    )
    cookie = answer.headers["Set-Cookie"]
    assert ("; Secure" in cookie, cookie.startswith("__Host-")) == (is_secure, is_secure)
    headers["Cookie"] = cookie.partition(";")[0]
    for _ in range(8):  # whichever worker it is
        answer = requests.get(f"{server.url}/sign-in", headers=headers, timeout=30)
        assert answer.json()["signed_in"] == "example.com"


def test_no_key_and_no_body_is_in_the_log_at_debug(serve, stand_in, tmp_path):
    secret_body = "Nobody else should read this, ever."
    services = {
        provider: account(provider, stand_in(ACCEPTED[provider]).url, priority)
        for priority, provider in enumerate(ACCEPTED)
    }
    server = serve(with_services(tmp_path, services), LOG_LEVEL="debug", WEB_CONCURRENCY="1")
    for path in ("send", "mailgun/send", "sendgrid/send"):
        url = f"{server.url}/example.com/{path}?pool_api_key={POOL_KEY}"
        body = {**PLAIN, "raw_text_body": secret_body, "root_api_key": ROOT_KEY}
        answer = requests.post(url, json=body, headers=POOL, timeout=30)
        assert answer.status_code == 200
    requests.get(f"{server.url}/%0aINJECTED?{ROOT_KEY}", timeout=30)
    server.stop()
    log = server.log
    assert "DEBUG" in log
    assert log.count("sent") >= 3
    for secret in (ROOT_KEY, POOL_KEY, OTHER_POOL_KEY, PROVIDER_KEY, secret_body):
        assert secret not in log
    assert "\nINJECTED" not in log
    assert "gunicorn.ctl" not in log or "control_socket_disable: True" in log


def test_no_answer_says_which_software_serves_it(serve, config):
    server = serve(config, WEB_CONCURRENCY="1")
    for asked in (b"GET /healthz HTTP/1.1\r\nHost: x", b"GET /none HTTP/1.0", b"no HTTP"):
        with socket.create_connection(address_of(server), timeout=20) as raw:
            raw.sendall(asked + b"\r\n\r\n")
            told = raw.makefile("rb").read()
        assert told.startswith(b"HTTP/1.")
        assert b"server:" not in told.lower()
        assert b"gunicorn" not in told.lower()


def test_a_request_that_is_no_http_is_not_quoted_in_the_log(serve, config):
    server = serve(config, WEB_CONCURRENCY="1")
    start = b"POST /example.com/send HTTP/1.1\r\nHost: x\r\n"
    for rest in (
        b"Authorization Bearer SECRET\r\n\r\n",
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nSECRET\r\n",
    ):
        with socket.create_connection(address_of(server), timeout=20) as raw:
            raw.sendall(start + rest)
            assert raw.recv(4096).startswith(b"HTTP/1.1 400")
    server.stop()
    assert "SECRET" not in server.log
    assert "Traceback" not in server.log


def test_a_wrong_configuration_is_one_line_and_no_worker(tmp_path):
    (tmp_path / "config.json").write_text('{"root_api_key": 5}')
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", str(REPOSITORY / "gunicorn.conf.py")],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "EMAIL_CONFIG": str(tmp_path / "config.json"),
        },
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.decode() == (
        f"{tmp_path}/config.json: root_api_key: It should be a string; email_services: Required\n"
    )
    assert "Booting worker" not in ended.stdout.decode()


def test_a_port_that_is_taken_ends_the_start_at_once_with_one_line(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "EMAIL_CONFIG": str(tmp_path / "config.json"),
                "HOST": "127.0.0.1",
                "PORT": str(port),
                "LOG_LEVEL": "error",
            },
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr.decode() == (
        f"Nobody can listen at 127.0.0.1:{port}: Address already in use. Choose another $PORT.\n"
    )


@pytest.fixture
def _umask_is_kept():
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)


NUMBERS = ("PORT", "WEB_CONCURRENCY", "WEB_THREADS", "WEB_REQUEST_SECONDS")


@pytest.mark.usefixtures("_umask_is_kept")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *((name, value) for name in NUMBERS for value in ("x", "", "0", "-1", "100000")),
        ("LOG_LEVEL", "loud"),
        ("LOG_LEVEL", ""),
    ],
)
def test_a_wrong_setting_of_the_process_ends_the_start_with_one_line(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "gunicorn.conf.py"))
    assert str(ended.value).startswith(f"${variable} should be ")
    assert "\n" not in str(ended.value)


def test_what_is_written_is_for_the_owner_alone(serve, config, tmp_path):
    server = serve(config, WEB_CONCURRENCY="1")
    post(server, timeout=30).raise_for_status()
    (mail,) = (tmp_path / "primary/new").iterdir()
    for path in (tmp_path / "state.sqlite3", mail, mail.parent):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("_umask_is_kept")
def test_gunicorn_waits_longer_than_any_deadline(monkeypatch):
    monkeypatch.delenv("PORT", raising=False)
    monkeypatch.delenv("HOST", raising=False)
    settings = runpy.run_path(str(REPOSITORY / "gunicorn.conf.py"))
    assert settings["timeout"] > MAX_TIMEOUT_SECONDS
    assert settings["graceful_timeout"] > MAX_TIMEOUT_SECONDS
    assert settings["control_socket_disable"] is True
    assert settings["bind"] == "127.0.0.1:8000"
    monkeypatch.setenv("PORT", "1234")
    assert runpy.run_path(str(REPOSITORY / "gunicorn.conf.py"))["bind"] == "0.0.0.0:1234"


def test_the_procfile_starts_what_is_tested_here():
    assert (REPOSITORY / "Procfile").read_text() == (
        "web: gunicorn --config gunicorn.conf.py\nworker: python -m email_services worker\n"
    )
