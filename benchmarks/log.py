"""Pages, searches and sends with a thousand and a million messages: `python -m benchmarks.log`.

The log is filled as sends fill it, with its index of words, over the last 29 days: most messages
are of one domain of four, were sent, and have words that many have; a few have a rare one. Then
pages are asked for in this process by somebody who has signed in, in turns, each with a time that
is the whole request's; a send is one of the pool, with a provider that does nothing. Given is the
least of several, since a shared machine is slower at times; of the first request after the start
there is one.

A million takes minutes to fill. With `--write` the table goes into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import psycopg
from werkzeug.test import Client

from app import create_app
from benchmarks.budget import DOMAIN, Idle, messages
from benchmarks.store import postgresql
from docs.measured import machine, tell
from email_services.abstract import ServiceSettings
from email_services.config import load_config
from email_services.pool import PooledEmailService
from email_services.store import LoggedMessage, Store
from email_services.store.messages import LOG_MESSAGE, message_columns
from email_services.store.words import ADD_WORDS, words_of

ROOT_KEY: Final = "a-root-key"
DOMAINS: Final = (DOMAIN, "example.com", "example.net", "example.org")
WEIGHTS: Final = (85, 5, 5, 5)
DATABASES: Final = ("SQLite", "PostgreSQL")
DAYS: Final = 29
FILLED_AT_ONCE: Final = 2000
ROUNDS: Final = 15
SENDS: Final = 100
WORDS: Final = ("order", "invoice", "welcome", "password", "shipped", "reminder", "report", "offer")
RARE: Final = 20_000
"""One message of so many has the rare word."""

PAGES: Final = {
    "home": "/",
    "the domain": f"/{DOMAIN}",
    "the log": f"/{DOMAIN}/messages",
    "the log of all domains": "/messages",
    "one message": f"/{DOMAIN}/messages/ID",
    "a word that many have": f"/{DOMAIN}/messages?q=order",
    "two such words": f"/{DOMAIN}/messages?q=order+shipped",
    "a word that few have": f"/{DOMAIN}/messages?q=zeppelin",
    "a word that none has": f"/{DOMAIN}/messages?q=quagga",
    "a whole address": f"/{DOMAIN}/messages?recipient=reader7@example.org",
    "a part of one": f"/{DOMAIN}/messages?recipient=reader99",
    "those that are unknown": f"/{DOMAIN}/messages?outcome=unknown",
    "a tag": f"/{DOMAIN}/messages?tag=zeppelin",
    "today": f"/{DOMAIN}/messages?period=today",
}

Found = dict[str, float]
"""Milliseconds of each."""


def main() -> None:
    """Measure all, and print the table or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--many", type=int, default=1_000_000, help="messages (default: a million)")
    parser.add_argument("--only", choices=DATABASES, help="one database (default: both)")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    logging.disable()
    databases = [options.only] if options.only else DATABASES
    few, many = "1,000", f"{options.many:,}"
    rows = [["", *(f"{name}, {n}" for name in databases for n in (few, many))]]
    found: list[Found] = []
    for database in databases:
        for number in (1000, options.many):
            with contextlib.ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                url = f"sqlite:///{folder / 'state.sqlite3'}"
                if database == "PostgreSQL":
                    url = stack.enter_context(postgresql())
                found.append(measured(folder, url, number))
    rows += [[name, *(f"{column[name]:.1f}" for column in found)] for name in found[0]]
    said = f"{machine('SQLAlchemy', 'psycopg', 'Flask')}; milliseconds"
    tell("log", said, rows, is_kept=options.write)


def measured(folder: Path, url: str, number: int) -> Found:
    """With so many messages in the database at `url`."""
    client, store = make_client(folder, url)
    with contextlib.closing(store):
        id_ = fill(store, number)
        paths = {name: path.replace("ID", id_) for name, path in PAGES.items()}
        found = {"home, the first time": milliseconds(lambda: ask(client, "/"))}
        taken: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(ROUNDS):
            for name, path in paths.items():
                taken[name].append(milliseconds(lambda path=path: ask(client, path)))
        found |= {name: min(times) for name, times in taken.items()}
        pool = PooledEmailService(
            DOMAIN, [Idle("idle", DOMAIN, ServiceSettings(priority_value=1))], store
        )
        given = messages(SENDS)
        found["a send"] = min(milliseconds(lambda m=m: pool.send(m)) for m in given)
        return found


def make_client(folder: Path, url: str) -> tuple[Client, Store]:
    """A client, signed in as administrator, of a new application; and its store."""
    services = {
        name: {"service": "maildir", "priority_value": priority, "path": str(folder / name)}
        for name, priority in (("primary", 2), ("backup", 1))
    }
    domains = [
        {"email_domain": name, "pool_api_key": f"key-of-{name}", "enabled_services": services}
        for name in DOMAINS
    ]
    file = folder / "config.json"
    file.write_text(json.dumps({"root_api_key": ROOT_KEY, "email_services": domains}))
    os.environ["DATABASE_URL"] = url
    app = create_app(load_config(str(file)))
    client = Client(app)
    client.post("/sign-in", json={"key": ROOT_KEY})
    return client, app.extensions["mailpool"].store


def fill(store: Store, number: int) -> str:
    """Log so many messages, and index them; returns the id of one."""
    made = logged(number)
    dialect = store._engine.dialect.name  # noqa: SLF001 - for a benchmark
    id_ = ""
    for start in range(0, number, FILLED_AT_ONCE):
        some = [next(made) for _ in range(min(FILLED_AT_ONCE, number - start))]
        rows = [{**message_columns(m), "number": start + n} for n, m in enumerate(some, 1)]
        words = [
            {"number": row["number"], "words": " ".join(sorted(words_of(SimpleNamespace(**row))))}
            for row in rows
        ]
        with store._transaction() as connection:  # noqa: SLF001 - likewise
            connection.execute(LOG_MESSAGE, rows)
            connection.execute(ADD_WORDS[dialect], words)
        id_ = next(message.message_id for message in some if message.email_domain == DOMAIN)
    if dialect == "postgresql":  # what it does by itself, in a while; here without our patience
        with psycopg.connect(store._url, autocommit=True) as connection:  # noqa: SLF001 - likewise
            connection.execute("VACUUM ANALYZE")
    return id_


def logged(number: int) -> Iterator[LoggedMessage]:
    """So many messages, the oldest first, as they are once it is known what became of them."""
    chance = random.Random(7)
    now = time.time()
    for position in range(number):
        domain = chance.choices(DOMAINS, WEIGHTS)[0]
        at = now - DAYS * 24 * 3600 * (1 - position / number)
        outcome = chance.choices(("sent", "not sent", "unknown"), (97, 2, 1))[0]
        service = "primary" if chance.random() < 0.95 else "backup"  # noqa: PLR2004 - most
        subject = f"Your {' '.join(chance.sample(WORDS, 3))} {position}"
        is_rare = position % min(RARE, number // 10) == 0
        attempt = {"service": service, "outcome": outcome, "code": "", "reason": ""}
        yield LoggedMessage(
            f"{chance.getrandbits(128):032x}",
            at,
            domain,
            f"shop@{domain}",
            [f"reader{chance.randrange(200_000)}@example.org"],
            f"{subject} zeppelin" if is_rare else subject,
            outcome,
            at + 30,
            service if outcome == "sent" else None,
            f"<{position}@example.com>",
            attempts=[{**attempt, "milliseconds": 120}],
            cc_from=1,
            bcc_from=1,
            tags=["zeppelin"] if is_rare else ["order"],
        )


def ask(client: Client, path: str) -> None:
    """For the page."""
    answer = client.get(path, headers={"Accept": "text/html", "Accept-Encoding": "gzip"})
    answer.get_data()
    if answer.status_code != 200:  # noqa: PLR2004 - OK
        raise SystemExit(f"{path} answered {answer.status}")


def milliseconds(call: Callable[[], object]) -> float:
    """What it takes."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
