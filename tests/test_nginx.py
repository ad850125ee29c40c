"""deploy/nginx/mailpool.conf, with nginx itself in front of two nodes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
import trustme
from conftest import PLAIN, POOL, PROVIDER_KEY, make_config
from servers import ROOT, Server
from standins import answer_json, delayed

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
if not NGINX and "CI" not in os.environ:
    pytest.skip("nginx is not installed", allow_module_level=True)

SENT = answer_json(200, {"id": "<1@example.com>", "message": "Queued. Thank you."})
HASH = "    hash $mailpool_domain consistent;\n"
ONES = {"rate=100r/s": "rate=1r/s", "burst=200": "burst=5"}
MESSAGES = 120
SENDERS = 6


class Front:
    """nginx with our file. `nodes` are where it goes, `answered()` who answered what."""

    def __init__(self, folder, nodes, changes) -> None:
        self._log = folder / "access.log"
        self._asked = 0
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        certificate.private_key_pem.write_to_path(folder / "cert.key")
        authority.cert_pem.write_to_path(folder / "ca.pem")
        replaced = {
            "10.0.0.1:8000": nodes[0],
            "10.0.0.2:8000": nodes[1],
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/ssl/mail.example.com.pem": f"{folder}/cert.pem",
            "/etc/ssl/mail.example.com.key": f"{folder}/cert.key",
            "/var/log/nginx/mailpool.log": str(self._log),
            **changes,
        }
        text = (ROOT / "deploy/nginx/mailpool.conf").read_text()
        for old, new in replaced.items():
            assert old in text, old
            text = text.replace(old, new)
        (folder / "mailpool.conf").write_text(text)
        places = "".join(
            f"{name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"worker_processes 1;\ndaemon off;\npid {folder}/nginx.pid;\n"
            f"events {{}}\nhttp {{\n{places}include {folder}/mailpool.conf;\n}}\n"
        )
        self.url = f"https://localhost:{port}"
        self.session = requests.Session()
        self.session.trust_env = False  # which may name other authorities
        self.session.verify = str(folder / "ca.pem")
        command = [NGINX, "-p", str(folder), "-e", f"{folder}/error.log"]
        self._process = subprocess.Popen([*command, "-c", str(folder / "nginx.conf")])
        until = time.monotonic() + 30
        while not _listens(port):
            assert self._process.poll() is None, "nginx has ended"
            assert time.monotonic() < until

    def get(self, path: str) -> requests.Response:
        self._asked += 1
        return self.session.get(self.url + path, timeout=60)

    def answered(self) -> list[tuple[str, str]]:
        """The path of each request by `get`, and the node that had the last word.

        nginx writes a request down after its answer is out: the last may be read before that.
        """
        until = time.monotonic() + 30
        while (log := self._log.read_text()).count("\n") < self._asked:
            assert time.monotonic() < until, log
        return [(line[3], line[-1]) for line in map(str.split, log.splitlines())]

    def close(self) -> None:
        self.session.close()
        self._process.terminate()
        self._process.wait(60)


def _listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def front(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(nodes, **changes) -> Front:
            front = Front(tmp_path, nodes, changes.get("changes", {}))
            stack.callback(front.close)
            return front

        yield make


class Named(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        for name in ("X-Forwarded-For", "X-Forwarded-Proto"):
            self.send_header(f"Saw-{name}", self.headers[name])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def small_node(port: int = 0):
    """A node that answers everything; yields where."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Named)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_domain_stays_at_one_node_and_the_domains_are_shared_out(front):
    with small_node() as one, small_node() as two:
        nginx = front([one, two])
        for path in [f"/d{n}.example/send" for n in range(20)] * 3:
            assert nginx.get(path).status_code == 200
        pairs = Counter(nginx.answered())
    assert set(pairs.values()) == {3}, "each domain went to one node, all three times"
    assert {node for _, node in pairs} == {one, two}


def test_without_the_hash_the_nodes_take_turns(front):
    with small_node() as one, small_node() as two:
        nginx = front([one, two], changes={HASH: ""})
        for _ in range(20):
            nginx.get("/example.com")
        assert Counter(node for _, node in nginx.answered()) == {one: 10, two: 10}


def test_who_asks_too_often_is_told_in_json(front):
    with small_node() as one, small_node() as two:
        nginx = front([one, two], changes=ONES)
        answers = [nginx.get("/example.com") for _ in range(20)]
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[429] >= 10
    assert statuses[200] >= 6, "a burst passes"
    assert answers[-1].json()["code"] == "too_many_requests"
    assert answers[-1].headers["Retry-After"] == "1"
    assert answers[-1].headers["Server"] == "nginx", "without a version"


def test_what_a_client_claims_of_itself_is_not_passed_on(front):
    with small_node() as one, small_node() as two:
        nginx = front([one, two])
        said = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "http"}
        answer = nginx.session.get(nginx.url, headers=said, timeout=60)
    seen = answer.headers["Saw-X-Forwarded-For"], answer.headers["Saw-X-Forwarded-Proto"]
    assert seen == ("127.0.0.1", "https")


def test_a_node_that_is_back_is_used_again(front):
    with small_node() as one:
        with small_node() as two:
            no_limit = {"rate=100r/s": "rate=10000r/s"}  # it is asked until the node is back
            changes = {HASH: "", "fail_timeout=5s": "fail_timeout=1s", **no_limit}
            nginx = front([one, two], changes=changes)
            assert {nginx.get("/").status_code for _ in range(4)} == {200}
        assert {nginx.get("/").status_code for _ in range(10)} == {200}
        assert nginx.answered()[-1][1] == one
        with small_node(int(two.rpartition(":")[2])):
            until = time.monotonic() + 60
            while nginx.answered()[-1][1] != two:
                assert nginx.get("/").status_code == 200
                assert time.monotonic() < until


@pytest.mark.parametrize(("end", "most_in_doubt"), [(Server.kill, SENDERS), (Server.stop, 0)])
def test_no_message_is_lost_when_a_node_ends_under_load(
    end, most_in_doubt, front, tmp_path, stand_in
):
    """Killed, it leaves in doubt what was in progress there; stopped, as for an update, nothing."""
    provider = stand_in(delayed(SENT, 0.05))
    config = make_config(tmp_path)
    mailgun = {"api_key": PROVIDER_KEY, "priority_value": 1, "base_url": provider.url}
    config["email_services"][0]["enabled_services"] = {"mailgun": mailgun}
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(2):
            nodes.append(Server(tmp_path, config, WEB_CONCURRENCY="1"))
            stack.callback(nodes[-1].kill)
        where = [node.url.removeprefix("http://") for node in nodes]
        nginx = front(where, changes={HASH: "", "rate=50r/s": "rate=5000r/s"})
        half = threading.Semaphore(0)

        def send(number: int) -> list[int]:
            """The statuses until it is sent, or told to be unknown."""
            statuses = []
            while not statuses or statuses[-1] == 502:
                answer = nginx.session.post(
                    f"{nginx.url}/example.com/send",
                    json={**PLAIN, "subject": f"Message {number}."},
                    headers={**POOL, "Idempotency-Key": f"order-{number}"},
                    timeout=60,
                )
                statuses.append(answer.status_code)
            half.release()
            return statuses

        with ThreadPoolExecutor(SENDERS) as threads:
            sending = [threads.submit(send, number) for number in range(MESSAGES)]
            for _ in range(MESSAGES // 3):
                half.acquire()
            end(nodes[0])
            ended = [future.result() for future in sending]
    whole = [r for r in provider.requests if len(r.body) == int(r.headers["content-length"])]
    received = Counter(dict(request.form)["subject"] for request in whole)
    sent = [number for number, statuses in enumerate(ended) if statuses[-1] == 200]
    in_doubt = [statuses for statuses in ended if statuses[-1] != 200]
    assert {received[f"Message {number}."] for number in sent} == {1}
    assert max(received.values()) == 1, "none twice"
    assert len(in_doubt) <= most_in_doubt, "only those in progress at the node that was killed"
    assert {statuses[0] for statuses in in_doubt} <= {502}
    assert {statuses[-1] for statuses in in_doubt} <= {409, 504}, "told, and not lost in silence"
    assert len(sent) >= MESSAGES - most_in_doubt
