"""Half an hour of all there is, while things go wrong: `python -m benchmarks.soak`.

Callers send messages, have them queued, send batches, search and read pages, at a steady pace.
Meanwhile, in turn: a worker is killed (SIGKILL), the configuration is read anew (SIGHUP), the first
provider cuts every connection, takes everything and answers too late, or is made to fail.

Every so often it is noted what the service takes of the machine. What grows with time would end it
one day: the table has the median of the first and of the last quarter, and the most there was. In
the end the log is compared with what the providers took, as in `queue_chaos.py`.

Everything is on 127.0.0.1 and ends with this program. It fails where a message was lost, is not
over in the end, or was taken twice with neither a flag nor an unknown outcome.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from benchmarks.queue_chaos import (
    CALM_SECONDS,
    LATE_SECONDS,
    Node,
    Provider,
    Taken,
    ask,
    compare,
    configuration,
    exchange,
    message,
    postgresql_server,
    told,
    wait_until,
)
from benchmarks.queue_chaos import POOL_KEY as KEY
from benchmarks.send import BenchmarkError

NOTED_EVERY: Final = 10.0
TROUBLE_EVERY: Final = 40.0
TROUBLE_SECONDS: Final = 10.0
BATCH: Final = 50
GIVING_UP: Final = 30
"""Requests for one message, after which it was never taken: no trouble lasts as long."""

READ: Final = (
    "",
    "/messages?limit=50",
    "/messages?q=order",
    "/messages?recipient=n1",
    "/messages/export.csv?limit=1000",
    "/queue",
    "/send",
    "/first/health",
)


class Soak:
    """What is done at once, until it is over."""

    def __init__(self, node: Node, providers: list[Provider], root_key: str) -> None:
        self.taken: list[Taken] = []
        self.answers: Counter[str] = Counter()
        self.troubles: Counter[str] = Counter()
        self.figures: list[dict[str, float]] = []
        self._node = node
        self._providers = providers
        self._root_key = root_key
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def run(self, seconds: float, database: Path | None) -> None:
        """Go on for so long. database: its file, if it has one."""
        jobs: list[tuple[float, Callable[[], None]]] = [
            *[(0.4, lambda: self._send(queued=False))] * 4,
            *[(0.4, lambda: self._send(queued=True))] * 2,
            (4.0, lambda: self._send_batch(queued=False)),
            (4.0, lambda: self._send_batch(queued=True)),
            (0.5, self._read),
            (TROUBLE_EVERY, self._make_trouble),
            (NOTED_EVERY, lambda: self._note(database)),
        ]
        threads = [threading.Thread(target=self._repeat, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        self._is_over.wait(seconds)
        self._is_over.set()
        for thread in threads:
            thread.join()

    def _repeat(self, seconds: float, job: Callable[[], None]) -> None:
        while not self._is_over.wait(seconds * (0.5 + random.random())):
            job()

    # What callers do

    def _send(self, *, queued: bool) -> None:
        (number,) = self._next(1)
        self._post([number], message(number), queued=queued)

    def _send_batch(self, *, queued: bool) -> None:
        numbers = self._next(BATCH)
        self._post(numbers, {"messages": [message(n) for n in numbers]}, queued=queued)

    def _next(self, count: int) -> list[int]:
        with self._lock:
            return [next(self._numbers) for _ in range(count)]

    def _post(self, numbers: list[int], body: dict[str, Any], *, queued: bool) -> None:
        """Until it is known what became of it, with one key."""
        headers = self._headers(KEY) | {"Idempotency-Key": f"order-{numbers[0]}"}
        if queued:
            headers["Prefer"] = "respond-async"
        for attempt in range(GIVING_UP):
            status, answer = exchange(self._node.port, "POST", "/send", headers, json.dumps(body))
            results = answer.get("results", [answer])
            self.answers[f"{status}"] += 1
            if len(results) == len(numbers) and all("message_id" in one for one in results):
                for number, one in zip(numbers, results, strict=True):
                    self.taken.append(Taken(number, one["message_id"], attempt + 1))
            if status not in {0, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.CONFLICT}:
                return
            time.sleep(1)

    def _read(self) -> None:
        html = {"Accept": "text/html"} if random.random() < 0.5 else {}  # noqa: PLR2004 - half
        path = random.choice(READ)
        status, _ = exchange(self._node.port, "GET", path, self._headers(KEY) | html)
        self.answers[f"read {status}"] += 0 if status in {0, HTTPStatus.OK} else 1

    @staticmethod
    def _headers(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    # What goes wrong

    def _make_trouble(self) -> None:
        first = self._providers[0]
        troubles: dict[str, Callable[[], None]] = {
            "a worker killed": self._node.kill_a_worker,
            "SIGHUP": self._node.reload,
            "connections cut": lambda: self._for_a_while(first, cut=1.0),
            "answers too late": lambda: self._for_a_while(first, late=1.0),
            "made to fail": self._rehearse,
        }
        name = [*troubles][self.troubles.total() % len(troubles)]
        self.troubles[name] += 1
        troubles[name]()

    def _for_a_while(self, provider: Provider, **faults: float) -> None:
        before = provider.cut, provider.late
        for name, share in faults.items():
            setattr(provider, name, share)
        self._is_over.wait(TROUBLE_SECONDS)
        provider.cut, provider.late = before

    def _rehearse(self) -> None:
        for is_on in (True, False):
            body = json.dumps({"simulated_failure": is_on})
            exchange(self._node.port, "POST", "/first/fail", self._headers(self._root_key), body)
            self._is_over.wait(TROUBLE_SECONDS)

    # What it takes of the machine

    def _note(self, database: Path | None) -> None:
        processes = [psutil.Process(self._node.master)]
        processes += processes[0].children(recursive=True)
        found: Counter[str] = Counter()
        with contextlib.suppress(psutil.Error):  # one was killed meanwhile
            for process in processes:
                found["memory, MB"] += process.memory_full_info().pss / 1e6
                found["file descriptors"] += process.num_fds()
                found["threads"] += process.num_threads()
                found["connections"] += len(process.net_connections("tcp"))
        files = [Path(f"{database}{end}") for end in ("", "-wal")] if database else []
        size = sum(file.stat().st_size for file in files if file.exists()) / 1e6
        with self._lock:
            number = len(self.taken)
        self.figures.append(
            {**found, "processes": len(processes), "database, MB": size, "messages": number}
        )


def main() -> None:
    """Soak it, and print what came of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # what we started ends with us
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="default: 30")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    options = parser.parse_args()
    try:
        with running(is_postgresql=options.postgresql) as (soak, node, providers, database):
            soak.run(options.minutes * 60, database)
            wait_until(lambda: waiting(node) == 0, CALM_SECONDS)
            time.sleep(LATE_SECONDS)
            log = told([node])
            bugs = [line for line in node.log.splitlines() if "Traceback" in line or "bug" in line]
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    times = sum((provider.taken for provider in providers), Counter[int]())
    last = {one.number: one for one in soak.taken}  # one that was not sent was sent again
    found = compare([*last.values()], log, times)
    print(table(soak.figures))
    print(
        f"\n{len(last)} messages. Answers: {dict(soak.answers)}. Troubles: {dict(soak.troubles)}."
    )
    print(f"{found}; lines of bugs in the log: {len(bugs)}")
    if found["lost"] or found["open"] or found["twice_unflagged"] or bugs:
        sys.exit("\nIt did not answer for what it took.")


@contextlib.contextmanager
def running(*, is_postgresql: bool) -> Iterator[tuple[Soak, Node, list[Provider], Path | None]]:
    """The service and its providers."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        providers = [Provider(0.002, 0.002), Provider(0.0, 0.0)]
        for provider in providers:
            stack.enter_context(provider.running())
        database = None if is_postgresql else folder / "state.sqlite3"
        url = f"sqlite:///{database}"
        if is_postgresql:
            url = stack.enter_context(postgresql_server()).get_uri()
        config = folder / "config.json"
        root_key = secrets.token_urlsafe(24)
        settings = {**configuration(providers), "root_api_key": root_key}
        config.write_text(json.dumps(settings), encoding="utf-8")
        node = Node(folder, {"EMAIL_CONFIG": str(config), "DATABASE_URL": url})
        stack.callback(node.stop)
        node.start()
        yield Soak(node, providers, root_key), node, providers, database


def waiting(node: Node) -> int:
    """How many messages wait; very many where nobody says."""
    answer = ask([node], "/messages?outcome=queued&limit=500")
    return len(answer["messages"]) if answer else sys.maxsize


def table(figures: list[dict[str, float]]) -> str:
    """The median of each figure in the first and the last quarter, and the most."""
    quarter = max(1, len(figures) // 4)
    rows = ["| | first quarter | last quarter | most |", "|---|---|---|---|"]
    for name in figures[-1]:
        all_ = [figure.get(name, 0.0) for figure in figures]
        first, last = median(all_[:quarter]), median(all_[-quarter:])
        rows.append(f"| {name} | {first:.0f} | {last:.0f} | {max(all_):.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
