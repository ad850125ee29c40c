"""What is done from a shell: prepare a first run, deliver what waits, try all without sending.

`python -m email_services`, which `make run` does before it starts, makes config.json from
config_example.json, with random keys, where neither it nor $EMAIL_CONFIG is there, and prints where
the service will be and a command that sends a message.

`python -m email_services check` tries the configuration, the database and each provider's account;
its exit status is for cron (email_services/checkup.py).

`python -m email_services worker` delivers what waits in the queue, apart from the web: any number
of them, on any number of machines. SIGTERM ends it, once what it has handed over is through.
"""

from __future__ import annotations

import argparse
import json
import logging.config
import os
import re
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from getpass import getpass
from pathlib import Path
from typing import Final

from email_services import checkup, logs
from email_services.apart import WorkerApart
from email_services.api_keys import ApiKey, Role, hash_key
from email_services.config import PLACEHOLDER, Config, load_config


def make_config(example: Path, target: Path) -> None:
    """Write `target` as `example` with a random key for each placeholder; for the owner alone."""
    text = example.read_text(encoding="utf-8")
    text = re.sub(rf"{PLACEHOLDER}-\w+", lambda _: secrets.token_urlsafe(24), text)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def key_that_may(role: Role, keys: Iterable[ApiKey]) -> str:
    """The first of these keys with that role which is not only known by its hash."""
    now = time.time()
    found = (key.value for key in keys if key.role == role and key.is_valid(now) and key.value)
    return next(found, "YOUR-KEY")


def curl_command(config: Config, address: str) -> str:
    """A command for a shell that sends a message through the first domain."""
    domain = next(iter(config.domains.values()))
    message = {
        "from_email": f"me@{domain.email_domain}",
        "to_recipients": "ada@example.org",
        "subject": "Hello",
        "raw_text_body": "It works.",
    }
    arguments = [
        f"{address}/{domain.email_domain}/send",
        "-H",
        f"Authorization: Bearer {key_that_may('send', domain.keys)}",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(message),
    ]
    return shlex.join(["curl", *arguments])


def export_command(config: Config) -> str:
    """A command for a shell that sets the keys which README.md's examples use."""
    domain = next(iter(config.domains.values()))
    keys = {
        "POOL_KEY": key_that_may("send", domain.keys),
        "ROOT_KEY": key_that_may("root", config.root_keys),
    }
    values = (f"{name}={shlex.quote(key)}" for name, key in keys.items())
    return f"export {' '.join(values)}"


def work() -> None:
    """Deliver what waits, until SIGTERM or SIGINT."""
    logging.config.dictConfig(logs.settings(os.environ))
    is_over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    worker = WorkerApart()
    worker.tell_metrics()
    worker.run(is_over)


def print_hash(is_new: bool = False) -> None:
    """Print what stands for a key in config.json: of one that is typed, or of a new one."""
    if is_new:
        key = secrets.token_urlsafe(32)
        print(f"key:  {key}")  # noqa: T201
        print(f"hash: {hash_key(key)}")  # noqa: T201
        return
    key = getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    try:
        print(hash_key(key))  # noqa: T201
    except ValueError as error:
        raise SystemExit(str(error)) from None


def prepare() -> None:
    """Make the configuration if there is none, and say what to do next."""
    target = Path("config.json")
    if "EMAIL_CONFIG" not in os.environ and not target.exists():
        make_config(Path("config_example.json"), target)
    config = load_config()
    if config.production:
        return  # what is printed goes where the log goes, and keys do not belong there
    port = os.environ.get("PORT", "8000")
    address = f"http://localhost:{port}"
    print(f"\nOpen {address}/ in a browser, or send a message:\n")  # noqa: T201 - for a person
    print(f"  {curl_command(config, address)}\n")  # noqa: T201
    how = "as they stand" if port == "8000" else f"with {port} for 8000"
    print(f"To try the README's commands {how}:\n")  # noqa: T201
    print(f"  {export_command(config)}\n")  # noqa: T201


def check() -> None:
    """Try everything that a send needs, and send nothing."""
    sys.exit(checkup.check(load_config))


COMMANDS: Final = {"check": check, "hash-key": print_hash, "worker": work}


def main(arguments: Sequence[str] = ()) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m email_services")
    parser.add_argument("command", nargs="?", choices=COMMANDS, help="without one: prepare a run")
    parser.add_argument("--new", action="store_true", help="hash-key: make a new key, too")
    given = parser.parse_args(arguments)
    if given.new and given.command != "hash-key":
        parser.error("--new goes with hash-key")
    if given.new:
        print_hash(is_new=True)
    else:
        (COMMANDS[given.command] if given.command else prepare)()


if __name__ == "__main__":
    os.umask(0o077)  # as gunicorn.conf.py: what is written holds addresses and mail
    main(sys.argv[1:])
