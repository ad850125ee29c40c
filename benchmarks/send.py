"""How much of a bare pass-through's throughput the service reaches: `python -m benchmarks.send`.

The service and the pass-through (`passthrough.py`) run under the same `gunicorn.conf.py` and send
the same messages to the same stand-in of a provider (`standin.py`), which answers at once, after
50 ms, or after 200 ms with as many callers as there are threads. They take turns under the same
load (`load.py`), since a shared machine may be twice as fast a minute later: only the ratio of two
neighbouring runs means anything, and its median over the rounds is the result. That of the CPU time
(user and system) which all workers take for a request is steadier than that of the throughput.

Everything is on 127.0.0.1 and ends with this program. It fails where an answer was not 200, or the
provider did not get exactly one message for each request.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
GUNICORN_CONF: Final = ROOT / "gunicorn.conf.py"

START_SECONDS: Final = 30
STOP_SECONDS: Final = 5
RUN_SECONDS: Final = 300
"""More than any run takes, unless something hangs."""

CPU_TARGET: Final = 1.4
"""The most CPU time that a request should take, by the pass-through's."""

PROVIDERS: Final = ("mailgun", "sendgrid")
PROVIDER_KEY: Final = secrets.token_urlsafe(24)
POOL_KEYS: Final = {provider: secrets.token_urlsafe(24) for provider in PROVIDERS}


class BenchmarkError(Exception):
    """The numbers would mean nothing: something did not start, or a message was lost or doubled."""


@dataclass(frozen=True)
class Scenario:
    """One line of the table.

    delay: milliseconds until the provider answers. callers: who send at once. requests: in each
    run. target: the least ratio of the throughput, if there is one.
    """

    provider: str
    delay: int
    callers: int
    requests: int
    target: float | None

    @property
    def email_domain(self) -> str:
        """The domain that prefers the provider."""
        return f"{self.provider}.example.com"


@dataclass(frozen=True)
class Server:
    """A gunicorn that sends what is posted to `path`. master: the parent of its workers."""

    port: int
    path: str
    master: int
    log: Path

    def failed(self, sentence: str) -> BenchmarkError:
        """An error with what the server has to say about it."""
        return BenchmarkError(f"{sentence}\n{self.log.read_text(errors='replace')[-2000:]}")


@dataclass(frozen=True)
class Run:
    """One run of the load. per_second: requests. cpu: microseconds for each, in the workers."""

    per_second: float
    cpu: float


def main() -> None:
    """Measure every scenario and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # what we started ends with us
    options = parse_arguments()
    settings = runpy.run_path(str(GUNICORN_CONF))
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs; gunicorn with"
        f" {settings['workers']} workers of {settings['threads']}"
        f" threads, keepalive {settings['keepalive']} s, log level WARNING;"
        f" {options.rounds} rounds.\n"
    )
    print(
        "| provider | answers | callers | **throughput**: median (min to max) | target"
        " | requests/s: service | bare | **CPU time**: median (min to max) | target"
        " | µs/request: service | bare | provider connections |\n"
        f"|{'---|' * 12}"
    )
    try:
        for scenario in scenarios(options, settings["workers"] * settings["threads"]):
            print(measure(scenario, options, settings["threads"]), flush=True)
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--callers", type=int, default=16, help="who send at once, but for 200 ms (default: 16)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs (default: 5)")
    parser.add_argument(
        "--requests", type=int, default=3000, help="in a run; half after a delay (default: 3000)"
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 600 requests")
    parser.add_argument(
        "--without-database", action="store_true", help="what would be if keeping it cost nothing"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.requests = 2, 600
    return options


def scenarios(options: argparse.Namespace, all_threads: int) -> list[Scenario]:
    """Both providers: at once, after 50 ms, and after 200 ms with a caller for each thread."""
    count = options.requests
    cases = ((0, options.callers, count, 0.7), (50, options.callers, count // 2, 0.95))
    return [
        Scenario(provider, *case)
        for case in (*cases, (200, all_threads, count // 2, None))
        for provider in PROVIDERS
    ]


def measure(scenario: Scenario, options: argparse.Namespace, threads: int) -> str:
    """Start the three servers, let the two that are compared take turns, and stop them all.

    Returns the scenario's row of the table.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(stand_in(scenario.delay))
        keeps = not options.without_database
        service = stack.enter_context(run_service(scenario, provider, folder, keeps=keeps))
        bare = stack.enter_context(run_passthrough(scenario, provider, folder, threads))

        def run(server: Server, requests: int) -> Run:
            return run_load(server, provider, scenario.provider, scenario.callers, requests)

        for server in (service, bare):
            run(server, max(scenario.callers, scenario.requests // 4))  # to warm up
        ours, theirs = [], []
        for number in range(options.rounds):
            # Who goes first may have it better, so that is taken in turns too.
            if number % 2:
                ours.append(run(service, scenario.requests))
            theirs.append(run(bare, scenario.requests))
            if not number % 2:
                ours.append(run(service, scenario.requests))
        return row(scenario, ours, theirs, counts(provider)["connections"])


def row(scenario: Scenario, ours: list[Run], theirs: list[Run], connections: int) -> str:
    """One line of the table."""
    pairs = list(zip(ours, theirs, strict=True))
    rates = [service.per_second / bare.per_second for service, bare in pairs]
    times = [service.cpu / bare.cpu for service, bare in pairs]
    rate_met, time_met = median(rates) >= (scenario.target or 0), median(times) <= CPU_TARGET
    cells = (
        scenario.provider,
        f"after {scenario.delay} ms" if scenario.delay else "at once",
        f"{scenario.callers}",
        spread(rates),
        f"{scenario.target} {'met' if rate_met else 'missed'}" if scenario.target else "",
        *(f"{median(run.per_second for run in runs):.0f}" for runs in (ours, theirs)),
        spread(times),
        f"{CPU_TARGET} {'met' if time_met else 'missed'}",
        *(f"{median(run.cpu for run in runs):.0f}" for runs in (ours, theirs)),
        f"{connections}",
    )
    return f"| {' | '.join(cells)} |"


def spread(ratios: list[float]) -> str:
    """Their median, the least and the most."""
    return f"**{median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


@contextlib.contextmanager
def stand_in(delay: int) -> Iterator[int]:
    """Run the stand-in of a provider; gives its port."""
    command = [sys.executable, str(HERE / "standin.py"), str(delay)]
    with running(command, signal.SIGTERM, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())


@contextlib.contextmanager
def run_service(
    scenario: Scenario, provider: int, folder: Path, *, keeps: bool = True
) -> Iterator[Server]:
    """Run the service, with a configuration and a state of its own; or the one that keeps none."""
    config = folder / "config.json"
    config.write_text(json.dumps(configuration(provider)), encoding="utf-8")
    environment = {
        "EMAIL_CONFIG": str(config),
        "DATABASE_URL": f"sqlite:///{folder / 'state.sqlite3'}",
    }
    application = [] if keeps else ["--pythonpath", str(HERE), "variants:create_app()"]
    environment |= {} if keeps else {"VARIANT_NULL_STORE": "yes"}
    path = f"/{scenario.email_domain}/send"
    with run_gunicorn(application, environment, path, folder / "service.log") as server:
        yield server


@contextlib.contextmanager
def run_passthrough(
    scenario: Scenario, provider: int, folder: Path, threads: int
) -> Iterator[Server]:
    """Run the pass-through."""
    application = ["--pythonpath", str(HERE), "passthrough:app"]
    environment = {
        "PROVIDER_URL": f"http://127.0.0.1:{provider}",
        "PROVIDER_KEY": PROVIDER_KEY,
        "WEB_THREADS": str(threads),
    }
    path = f"/{scenario.email_domain}/{scenario.provider}"
    with run_gunicorn(application, environment, path, folder / "passthrough.log") as server:
        yield server


def configuration(provider: int) -> dict[str, Any]:
    """A config.json with a domain for each provider, in which the other one is the backup."""
    account = {"api_key": PROVIDER_KEY, "base_url": f"http://127.0.0.1:{provider}"}
    return {
        "root_api_key": secrets.token_urlsafe(24),
        "production": True,
        "email_services": [
            {
                "email_domain": f"{preferred}.example.com",
                "pool_api_key": POOL_KEYS[preferred],
                "enabled_services": {
                    name: {**account, "priority_value": 20 if name == preferred else 10}
                    for name in PROVIDERS
                },
            }
            for preferred in PROVIDERS
        ],
    }


@contextlib.contextmanager
def run_gunicorn(
    application: list[str], environment: dict[str, str], path: str, log: Path
) -> Iterator[Server]:
    """Run gunicorn as the service does."""
    command = [sys.executable, "-m", "gunicorn", "--config", str(GUNICORN_CONF), *application]
    port = free_port()
    environment |= {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "WARNING"}
    # SIGINT stops gunicorn at once; SIGTERM would have it wait for idle connections.
    with (
        log.open("wb") as output,
        running(command, signal.SIGINT, environment, stdout=output, stderr=output) as process,
    ):
        server = Server(port, path, process.pid, log)
        wait_for(server, process)
        yield server


@contextlib.contextmanager
def running(
    command: list[str],
    stop: signal.Signals,
    environment: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[subprocess.Popen[Any]]:
    """Run `command`, and end it and all it started, with `stop` or by force, come what may."""
    # No proxy is wanted on the way to loopback.
    inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    # Its own session, so that Ctrl-C is ours alone and a signal to the group reaches the workers.
    process = subprocess.Popen(
        command, cwd=ROOT, env=inherited | (environment or {}), start_new_session=True, **options
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(server: Server, process: subprocess.Popen[Any]) -> None:
    """Return when `server` takes connections. Raises BenchmarkError if it does not come to that."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.1)
    raise server.failed("gunicorn did not start.")


def run_load(server: Server, provider: int, name: str, callers: int, requests: int) -> Run:
    """Send `requests` messages through `server`.

    Raises BenchmarkError unless each was answered 200 and reached the provider `name` once.
    """
    before, cpu_before = counts(provider), worker_cpu(server.master)
    command = [
        sys.executable,
        str(HERE / "load.py"),
        *(str(number) for number in (server.port, callers, requests)),
    ]
    try:
        answer = subprocess.run(
            command,
            input=request_bytes(server, name),
            stdout=subprocess.PIPE,
            timeout=RUN_SECONDS,
            check=True,
            start_new_session=True,  # Ctrl-C is ours alone; it is ended with this call
        )
    except subprocess.SubprocessError:
        raise server.failed(f"The load on {server.path} failed, or took too long.") from None
    cpu = worker_cpu(server.master) - cpu_before
    result = json.loads(answer.stdout)
    arrived = {key: value - before[key] for key, value in counts(provider).items()}
    expected = dict.fromkeys(PROVIDERS, 0) | {name: requests}
    if result["statuses"] != {"200": requests} or any(
        arrived[key] != expected[key] for key in PROVIDERS
    ):
        raise server.failed(
            f"{requests} requests to {server.path} were answered {result['statuses']},"
            f" and the provider got {arrived}."
        )
    return Run(requests / result["seconds"], cpu / requests * 1e6)


def request_bytes(server: Server, provider: str) -> bytes:
    """A message as a client of the service posts it, 1 kB of text and HTML; the same for both."""
    body = json.dumps(
        {
            "from_email": f"shop@{provider}.example.com",
            "to_recipients": ["ada@example.org"],
            "subject": "Your order has been shipped",
            "raw_text_body": "Your order is on its way. " * 10,
            "html_body": "<p>Your order is <b>on its way</b>.</p>" * 20,
        }
    )
    head = (
        f"POST {server.path} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "User-Agent: benchmark",
        "Accept: */*",
        f"Authorization: Bearer {POOL_KEYS[provider]}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*head, "", body)).encode()


def counts(provider: int) -> dict[str, int]:
    """What the stand-in has seen so far: connections, and messages by provider."""
    connection = http.client.HTTPConnection("127.0.0.1", provider, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/counts")
        return dict(json.load(connection.getresponse()))


def worker_cpu(master: int) -> float:
    """Seconds of CPU, user and system, that the workers of a gunicorn have used; needs Linux."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # proc(5): "pid (name) state ppid ... utime stime"; the name may hold anything.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == master:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
