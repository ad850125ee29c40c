"""The integration test against the real service, and what it does when it is cut short."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import servers

from integrationtest_online import run_from

ROOT = Path(__file__).parent.parent
ROOT_KEY = "-root-key-JpYq7yXr3nVb5tWc"  # what begins with a dash is a key all the same
POOL_KEY = "pool-key-9sKd4mZt2hQx8fLg"
RECIPIENT = "ada@example.org"
ENOUGH_SECONDS = 120
CHECKS = [
    "plain message",
    "cc and bcc",
    "HTML and a file",
    "bad bcc address",
    "wrong pool key",
    "first provider failed",
    "all providers failed",
]


@dataclass(frozen=True)
class Server:
    """The service under gunicorn, two workers, and the Maildirs it sends to."""

    port: int
    mail: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body: object = None) -> dict:
        headers = {"Authorization": f"Bearer {ROOT_KEY}", "Content-Type": "application/json"}
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=ENOUGH_SECONDS)
        ) as connection:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            assert answer.status == 200
            return json.loads(answer.read())

    def failures(self, domain: str) -> dict[str, bool]:
        services = self.call("GET", f"/{domain}")["enabled_services"]
        return {name: about["simulated_failure_enabled"] for name, about in services.items()}

    def set_failures(self, domain: str, failures: dict[str, bool]) -> None:
        for name, on in failures.items():
            self.call("POST", f"/{domain}/{name}/fail", {"simulated_failure": on})

    def take_mail(self, domain: str) -> dict[str, list[tuple[str, ...]]]:
        """By service, the To, Cc and Bcc of each message, which are removed."""
        taken: dict[str, list[tuple[str, ...]]] = {}
        for path in sorted(self.mail.glob(f"{domain}/*/new/*")):
            mime = message_from_bytes(path.read_bytes())
            recipients = tuple(str(mime[name] or "") for name in ("To", "Cc", "Bcc"))
            taken.setdefault(path.parent.parent.name, []).append(recipients)
            path.unlink()
        return taken


def domain_config(mail: Path, domain: str, priorities: dict[str, int]) -> dict:
    return {
        "email_domain": domain,
        "pool_api_key": f"{POOL_KEY}.{domain}",
        "enabled_services": {
            name: {"service": "maildir", "priority_value": value, "path": f"{mail}/{domain}/{name}"}
            for name, value in priorities.items()
        },
    }


@contextlib.contextmanager
def running_server(folder: Path, production: bool):
    """The service on a port of its own; ready when the first request is answered."""
    mail = folder / "mail"
    config = {
        "root_api_key": ROOT_KEY,
        "production": production,
        "state_url": f"sqlite:///{folder}/state.sqlite3",
        "email_services": [
            # Not in the order of priority: the listing puts them right.
            domain_config(mail, "two.example", {"backup": 10, "primary": 20}),
            domain_config(mail, "one.example", {"only": 10}),
            domain_config(mail, "equal.example", {"left": 10, "right": 10}),
            domain_config(mail, "three.example", {"left": 20, "backup": 10, "right": 20}),
        ],
    }
    # Each run shows a wrong key, and many may be within a minute.
    running = servers.Server(folder, config, "many_guesses:create_app()")
    try:
        yield Server(int(running.url.rpartition(":")[2]), mail)
    finally:
        running.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("production"), production=True) as server:
        yield server


@pytest.fixture(autouse=True)
def all_well(server):
    """No failure is simulated and no mail is there when a test with two.example starts."""
    server.set_failures("two.example", {"primary": False, "backup": False})
    server.take_mail("two.example")


Interception = Callable[[bytes], "tuple[int, dict] | str | None"]
HOLD = "hold"
"""Do not answer until the client has gone."""
HANG_UP = "hang up"


class Relay(ThreadingHTTPServer):
    """Stands between script and service; `intercept` sees each request and may answer instead.

    intercept: gets method, path and body in one. None lets the request through.
    """

    daemon_threads = False  # closing waits for them

    def __init__(self, server: Server, intercept: Interception) -> None:
        super().__init__(("127.0.0.1", 0), RelayHandler)
        self.target = server
        self.intercept = intercept
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class RelayHandler(BaseHTTPRequestHandler):
    server: Relay
    timeout = ENOUGH_SECONDS

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.intercept(f"{self.command} {self.path} ".encode() + body)
        if answer == HOLD:
            with contextlib.suppress(ConnectionResetError):
                assert self.rfile.read() == b""
        elif isinstance(answer, tuple):
            self.answer(answer[0], json.dumps(answer[1]).encode())
        elif answer is None:
            self.answer(*self.forward(body))

    do_POST = do_GET  # noqa: N815 - the name that http.server looks for

    def forward(self, body: bytes) -> tuple[int, bytes]:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.server.target.port, timeout=ENOUGH_SECONDS)
        ) as connection:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            return answer.status, answer.read()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == HTTPStatus.PERMANENT_REDIRECT:
            self.send_header("Location", "https://mail.example.com/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def relay(server):
    """Start a Relay with this `intercept`; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(intercept: Interception) -> Relay:
            relay = stack.enter_context(Relay(server, intercept))
            thread = threading.Thread(target=relay.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(relay.shutdown)
            return relay

        yield start


@dataclass
class Script:
    """One run of the script; no run ever shows a key."""

    status: int
    stdout: str
    stderr: str
    rows: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        assert ROOT_KEY not in self.stdout + self.stderr
        assert POOL_KEY not in self.stdout + self.stderr
        lines = re.findall(
            r"^(.+?)  +(ok|FAILED|skipped)  +(.*?)  *\d+$", self.stdout, re.MULTILINE
        )
        self.rows = {check: f"{result}: {what}" for check, result, what in lines}

    @property
    def results(self) -> dict[str, str]:
        return {check: line.partition(":")[0] for check, line in self.rows.items()}


@contextlib.contextmanager
def started_script(*arguments: str):
    with subprocess.Popen(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error",
            ROOT / "integrationtest_online.py",
            *arguments,
        ],
        cwd="/",
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(process: subprocess.Popen) -> Script:
    stdout, stderr = process.communicate(timeout=ENOUGH_SECONDS)
    return Script(process.returncode, stdout, stderr)


def run_against(url: str, domain: str = "two.example", **other_keys: str) -> Script:
    with started_script(*arguments_for(url, domain, **other_keys)) as process:
        return finished(process)


def arguments_for(
    url: str, domain: str = "two.example", *, pool_key: str | None = None, root_key: str = ROOT_KEY
) -> tuple[str, ...]:
    return (url, domain, RECIPIENT, pool_key or f"{POOL_KEY}.{domain}", root_key)


@pytest.fixture
def no_signal_is_ignored():
    """Shells ignore SIGINT for what runs in the background, and nohup SIGHUP; children inherit."""
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_all_checks_pass_and_real_mail_goes_through_the_right_service(server):
    script = run_against(server.url + "/")

    assert script.stderr == ""
    assert script.rows == {
        "plain message": "ok: sent by primary",
        "cc and bcc": "ok: sent by primary",
        "HTML and a file": "ok: sent by primary",
        "bad bcc address": "ok: refused, nothing sent; "
        "to_bcc.0: An email address must have an @-sign.",
        "wrong pool key": (
            "ok: HTTP 401: This key does not open this: the pool key of this domain or the root "
            "key is needed."
        ),
        "first provider failed": "ok: sent by backup; primary: Simulated failure.",
        "all providers failed": "ok: not sent; "
        "primary: Simulated failure.; backup: Simulated failure.",
    }
    assert list(script.rows) == CHECKS
    assert script.stdout.endswith("\nThe simulated failures are as they were before.\n")
    assert script.status == 0
    assert server.failures("two.example") == {"primary": False, "backup": False}
    plain = (RECIPIENT, "", "")
    assert server.take_mail("two.example") == {
        "primary": [plain, (RECIPIENT, "ada+cc@example.org", "ada+bcc@example.org"), plain],
        "backup": [plain],
    }


def test_it_passes_where_listings_are_open_and_show_keys(tmp_path):
    with running_server(tmp_path, production=False) as server:
        assert run_against(server.url).status == 0


@pytest.mark.parametrize("failing", [{"primary"}, {"primary", "backup"}])
def test_a_failure_simulated_before_is_put_aside_and_back_again(server, failing):
    before = {name: name in failing for name in ("primary", "backup")}
    server.set_failures("two.example", before)

    script = run_against(server.url)

    assert script.rows["plain message"] == "ok: sent by primary"
    assert script.results == dict.fromkeys(CHECKS, "ok")
    assert script.status == 0
    assert server.failures("two.example") == before


def test_a_drill_is_put_back_with_its_kind_its_share_and_its_end(server):
    chosen = {"kind": "slow", "share": 0.5, "minutes": 30}
    before = server.call("POST", "/two.example/primary/fail", chosen)
    script = run_against(server.url)
    after = server.call("GET", "/two.example/primary/fail")
    server.set_failures("two.example", {"primary": False})
    assert script.status == 0, script.stdout
    ends = [
        datetime.fromisoformat(answer.pop("simulated_failure_until")) for answer in (before, after)
    ]
    assert after == before
    assert abs((ends[1] - ends[0]).total_seconds()) < 5


def test_a_single_service_has_nothing_to_fail_over_to(server):
    script = run_against(server.url, "one.example")

    assert script.rows["first provider failed"] == "skipped: only one service"
    assert script.rows["all providers failed"] == "ok: not sent; only: Simulated failure."
    assert script.status == 0
    assert server.failures("one.example") == {"only": False}


def test_among_services_of_equal_priority_none_is_the_first(server):
    script = run_against(server.url, "equal.example")

    assert script.rows["first provider failed"].startswith("skipped: all services have the same")
    assert script.status == 0


def test_services_that_share_the_highest_priority_fail_together(server):
    script = run_against(server.url, "three.example")

    assert script.rows["first provider failed"].startswith("ok: sent by backup; ")
    assert script.status == 0
    assert list(server.take_mail("three.example")["backup"]) == [(RECIPIENT, "", "")]


@pytest.mark.parametrize(
    ("root_key", "shown"),
    [
        ("not-the-root-key", "This key"),
        (f"{POOL_KEY}.two.example", "This is the pool key of this domain, which"),
    ],
)
def test_a_wrong_root_key_ends_it_before_anything_is_sent_or_changed(server, root_key, shown):
    before = {"primary": True, "backup": False}
    server.set_failures("two.example", before)

    script = run_against(server.url, root_key=root_key)

    assert script.status == 1
    assert re.fullmatch(
        rf"{server.url}: HTTP 401: {shown} does not open this: the root key .*\n", script.stderr
    )
    assert script.stdout == ""
    assert server.failures("two.example") == before
    assert server.take_mail("two.example") == {}


def test_a_wrong_pool_key_fails_every_check_that_needs_it(server):
    script = run_against(server.url, pool_key="not-the-pool-key")

    assert {check for check, result in script.results.items() if result == "ok"} == {
        "wrong pool key"
    }
    assert script.status == 1
    assert server.failures("two.example") == {"primary": False, "backup": False}


def test_an_unknown_domain_is_one_line(server):
    script = run_against(server.url, "other.example")

    assert script.stderr.startswith(f"{server.url}: HTTP 404: ")
    assert (script.stderr.count("\n"), script.stdout, script.status) == (1, "", 1)


def test_a_redirect_is_one_line_that_says_where_to(relay):
    url = relay(lambda _request: (308, {})).url

    script = run_against(url)

    assert script.stderr == (
        f"{url}: HTTP 308: a redirect to https://mail.example.com/ (expected 200)\n"
    )
    assert (script.stdout, script.status) == ("", 1)


def test_an_unreachable_server_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    script = run_against(url)

    assert script.stderr == f"{url}: The server cannot be reached, or broke off the connection.\n"
    assert (script.stdout, script.status) == ("", 1)


def test_options_are_before_the_others_or_after_them():
    others = ["http://127.0.0.1", "example.com", RECIPIENT, POOL_KEY, "--looks-like-an-option"]
    options = ["--imap-seconds=3", "--textfile", "report.prom"]
    for arguments in (
        [*options, *others],
        [*others, *options],
        [*options[:1], *others, *options[1:]],
    ):
        run = run_from(arguments)
        assert (run.inbox_seconds, run.textfile) == (3.0, "report.prom")
        assert [run.pool_key, run.root_key] == others[3:]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["http://127.0.0.1", "two.example", RECIPIENT, POOL_KEY],
        ["http://127.0.0.1", "two.example", RECIPIENT, "surplus", POOL_KEY, ROOT_KEY],
        ["127.0.0.1:8000", "two.example", RECIPIENT, POOL_KEY, ROOT_KEY],
        ["http://127.0.0.1", "two.example", "Ada", POOL_KEY, ROOT_KEY],
        ["http://127.0.0.1", "two.example", RECIPIENT, POOL_KEY, f"{ROOT_KEY}\n"],
    ],
)
def test_wrong_usage_is_explained_without_quoting_a_key(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_from(arguments)

    assert exit_.value.code == 2
    explained = capsys.readouterr().err
    assert explained.startswith("usage:")
    assert ROOT_KEY not in explained
    assert POOL_KEY not in explained


def test_help_says_what_it_does_to_the_deployment(capsys):
    with pytest.raises(SystemExit) as exit_:
        run_from(["--help"])

    assert exit_.value.code == 0
    explained = capsys.readouterr().out
    assert "real mail" in explained
    assert "simulated failures" in explained


def sent_by(service: str, unsuccessful: list[str]) -> tuple[int, dict]:
    reasons = dict.fromkeys(unsuccessful, "why")
    return 200, {
        "result": "success",
        "service_used": service,
        "services_unsuccessful": reasons,
    }


REFUSED = {"error": "It is invalid."}
NOT_SENT = {"result": "error", "error": "It was not sent."}


WRONG_ANSWERS = {
    "plain message": [
        (503, {**NOT_SENT, "services_unsuccessful": {"primary": "its reason"}}),
        (200, {"result": "unknown", "service_used": "primary"}),
        sent_by("stranger", []),
        (200, {}),
    ],
    "cc and bcc": [(400, REFUSED)],
    "HTML and a file": [(500, {}), HANG_UP],
    "bad bcc address": [
        sent_by("primary", []),
        (400, REFUSED),
        (400, {**REFUSED, "problems": {"to_recipients": "why"}}),
        (400, {**REFUSED, "problems": {"to_bcc": "why"}, "attempts": []}),
    ],
    "wrong pool key": [sent_by("primary", []), (403, REFUSED)],
    "first provider failed": [
        sent_by("primary", ["primary"]),
        sent_by("backup", []),
        (503, NOT_SENT),
    ],
    "all providers failed": [
        (503, {**NOT_SENT, "services_unsuccessful": {"primary": "why"}}),
        (504, {**NOT_SENT, "services_unsuccessful": {"primary": "why", "backup": "why"}}),
    ],
}


@pytest.mark.parametrize("turn", range(4))
def test_each_check_fails_on_an_answer_that_is_not_right(server, relay, turn):
    answers = {check: wrong[turn % len(wrong)] for check, wrong in WRONG_ANSWERS.items()}

    def intercept(request: bytes):
        return next((answers[c] for c in CHECKS if b"check: " + c.encode() in request), None)

    script = run_against(relay(intercept).url)

    assert script.results == dict.fromkeys(CHECKS, "FAILED")
    assert script.status == 1
    assert server.failures("two.example") == {"primary": False, "backup": False}


def test_a_check_that_fails_says_why_and_leaves_the_others_alone(server, relay):
    answer = 503, {**NOT_SENT, "services_unsuccessful": {"primary": "No\ncr\u00e9dit\x1b[2J."}}
    relay = relay(lambda request: answer if b"check: cc and bcc" in request else None)

    script = run_against(relay.url)

    assert script.results == {**dict.fromkeys(CHECKS, "ok"), "cc and bcc": "FAILED"}
    assert script.rows["cc and bcc"] == (
        r"FAILED: HTTP 503: It was not sent.; primary: No cr\xe9dit\x1b[2J. (expected 200)"
    )
    assert script.status == 1


def during_a_send(request: bytes) -> bool:
    return b"check: all providers failed" in request


def during_a_switch(request: bytes) -> bool:
    return b'/backup/fail {"simulated_failure": true}' in request


def after_the_last_check() -> Callable[[bytes], bool]:
    """Whether a request comes after the last check; counts on being shown each one."""
    seen = []

    def is_after(request: bytes) -> bool:
        seen.append(request)
        return any(during_a_send(earlier) for earlier in seen[:-1])

    return is_after


RESTORED = [
    b'POST /two.example/primary/fail {"simulated_failure": false}',
    b'POST /two.example/backup/fail {"simulated_failure": false}',
]


@pytest.mark.usefixtures("no_signal_is_ignored")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_a_check_stops_it_and_restores(server, relay, number):
    before = {"primary": True, "backup": False}
    server.set_failures("two.example", before)
    running: Future[subprocess.Popen] = Future()
    failures_then = []

    def intercept(request: bytes):
        if not during_a_send(request):
            return None
        failures_then.append(server.failures("two.example"))
        running.result().send_signal(number)
        return HOLD

    with started_script(*arguments_for(relay(intercept).url)) as process:
        running.set_result(process)
        script = finished(process)

    assert failures_then == [{"primary": True, "backup": True}]
    assert server.failures("two.example") == before
    assert script.status == 128 + number
    assert script.stderr == "Stopped; the simulated failures are as they were before.\n"
    assert list(script.results) == CHECKS[:-1]


@pytest.mark.usefixtures("no_signal_is_ignored")
def test_a_switch_under_way_is_waited_for_before_it_is_switched_back(server, relay):
    running: Future[subprocess.Popen] = Future()
    requests = []
    last_before_the_answer = []

    def intercept(request: bytes):
        requests.append(request)
        if during_a_switch(request):
            running.result().send_signal(signal.SIGINT)
            # Long enough for a script that does not wait to send its next request.
            for _ in range(5):
                server.failures("two.example")
            last_before_the_answer.append(requests[-1])

    with started_script(*arguments_for(relay(intercept).url)) as process:
        running.set_result(process)
        script = finished(process)

    assert last_before_the_answer == [requests[-3]]
    assert requests[-2:] == RESTORED
    assert server.failures("two.example") == {"primary": False, "backup": False}
    assert script.status == 130
    assert "all providers failed" not in script.results


@pytest.mark.usefixtures("no_signal_is_ignored")
@pytest.mark.parametrize("stopped_before", [True, False])
def test_signals_while_it_restores_do_not_stop_it_and_the_first_one_counts(
    server, relay, stopped_before
):
    running: Future[subprocess.Popen] = Future()
    after_all_checks = after_the_last_check()
    requests = []
    signals = [signal.SIGINT, *[signal.SIGTERM] * 9]

    def intercept(request: bytes):
        requests.append(request)
        hold = stopped_before and during_a_send(request)
        if after_all_checks(request) or hold:
            running.result().send_signal(signals.pop(0))
        return HOLD if hold else None

    with started_script(*arguments_for(relay(intercept).url)) as process:
        running.set_result(process)
        script = finished(process)

    assert requests[-2:] == RESTORED
    assert server.failures("two.example") == {"primary": False, "backup": False}
    assert script.status == 130


def test_it_restores_when_nobody_reads_the_table(server, relay):
    before = {"primary": True, "backup": True}
    server.set_failures("two.example", before)
    running: Future[subprocess.Popen] = Future()

    def intercept(request: bytes):
        if b"check: plain message" in request:
            running.result().stdout.close()

    with started_script(*arguments_for(relay(intercept).url)) as process:
        running.set_result(process)
        error = process.stderr.read()
        process.wait(timeout=ENOUGH_SECONDS)

    assert "BrokenPipeError" in error
    assert process.returncode == 1
    assert server.failures("two.example") == before


def test_a_service_that_cannot_be_switched_fails_the_checks_that_need_it(server, relay):
    def intercept(request: bytes):
        return (500, {"error": "No."}) if during_a_switch(request) else None

    script = run_against(relay(intercept).url)

    assert script.rows["all providers failed"] == "FAILED: HTTP 500: No. (expected 200)"
    assert script.rows["first provider failed"].startswith("ok")
    assert script.status == 1
    assert server.failures("two.example") == {"primary": False, "backup": False}


def test_restoring_is_tried_again(server, relay):
    restores = after_the_last_check()
    refused = []

    def intercept(request: bytes):
        if restores(request) and request not in refused:
            refused.append(request)
            return HANG_UP
        return None

    script = run_against(relay(intercept).url)

    assert len(refused) == 2
    assert script.status == 0
    assert server.failures("two.example") == {"primary": False, "backup": False}


@pytest.fixture
def failed_restore(server, relay):
    """A run that could not switch the primary's failure off again; the backup's it could."""
    restores = after_the_last_check()

    def intercept(request: bytes):
        return HANG_UP if restores(request) and b"/primary/fail" in request else None

    relay = relay(intercept)
    script = run_against(relay.url)
    return relay, script


def test_what_cannot_be_restored_is_said_loudly(server, failed_restore):
    relay, script = failed_restore

    assert server.failures("two.example") == {"primary": True, "backup": False}
    assert script.results == dict.fromkeys(CHECKS, "ok")
    assert "are as they were" not in script.stdout
    assert script.stderr == (
        "\n*** SIMULATED FAILURES WERE NOT PUT BACK AS THEY WERE. ***\n"
        "Mail may fail until you run this, with the root key in $ROOT_KEY:\n"
        '  curl --fail -X POST -H "Authorization: Bearer $ROOT_KEY"'
        " -H 'Content-Type: application/json' -d '{\"simulated_failure\": false}'"
        f" {relay.url}/two.example/primary/fail\n"
    )
    assert script.status == 1


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_line_that_restores_by_hand_works(server, failed_restore):
    relay, script = failed_restore
    line = script.stderr.splitlines()[-1].replace(relay.url, server.url)

    subprocess.run(
        ["sh", "-c", line],
        check=True,
        env={**os.environ, "ROOT_KEY": ROOT_KEY, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        timeout=ENOUGH_SECONDS,
    )

    assert server.failures("two.example") == {"primary": False, "backup": False}
