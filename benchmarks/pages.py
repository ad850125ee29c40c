"""The time a page takes on the server, beside the same answer in JSON.

    .venv/bin/python -m benchmarks.pages

Requests go to the application in this process, in turn for JSON and for the page, by someone who is
signed in; each time is that of the whole request. The log has a hundred messages.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from werkzeug.test import Client

sys.path.insert(0, str(Path(__file__).parents[1]))

from app import create_app
from email_services.config import load_config

ROUNDS: Final = 200
MESSAGES: Final = 100
TARGET: Final = 3.0
KEY: Final = "a-pool-key"
FORMATS: Final = ("application/json", "text/html")
PATHS: Final = (
    "/",
    "/example.com",
    "/example.com/send",
    "/example.com/primary/fail",
    "/example.com/primary/health",
    "/example.com/messages",
    "/example.com/messages/ID",
    "/sign-in",
    "/reference",
    "/nothing",
)


def main() -> None:
    """Measure every page and print the table."""
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        client = make_client(Path(folder))
        message_id = send_messages(client)
        print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs; median of {ROUNDS}.\n")
        print("| page | JSON ms | page ms | **page / JSON** | target |\n|---|---|---|---|---|")
        for path in PATHS:
            as_json, page = measure(client, path.replace("ID", message_id))
            ratio = page / as_json
            met = "met" if ratio <= TARGET else "missed"
            print(f"| `{path}` | {as_json:.2f} | {page:.2f} | **{ratio:.2f}** | {TARGET:g} {met} |")


def make_client(folder: Path) -> Client:
    """A client, signed in, of a new application in `folder`."""
    services = {
        name: {"service": "maildir", "priority_value": priority, "path": str(folder / name)}
        for name, priority in (("primary", 2), ("backup", 1))
    }
    domain = {"email_domain": "example.com", "pool_api_key": KEY, "enabled_services": services}
    config = {
        "root_api_key": "a-root-key",
        "state_url": f"sqlite:///{folder}/state.sqlite3",
        "email_services": [domain],
    }
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    client = Client(create_app(load_config(str(file))))
    client.post("/sign-in", json={"key": KEY})
    return client


def send_messages(client: Client) -> str:
    """Fill the log; the id of the last message."""
    message = {
        "from_email": "me@example.com",
        "to_recipients": "ada@example.org",
        "subject": "Hello",
        "html_body": "<p>It works.</p>",
    }
    for _ in range(MESSAGES):
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = client.post("/example.com/send", json=message, headers=headers)
    return str(json.loads(answer.text)["message_id"])


def measure(client: Client, path: str) -> tuple[float, float]:
    """Milliseconds for JSON and for the page."""
    times: dict[str, list[float]] = {media_type: [] for media_type in FORMATS}
    for _ in range(ROUNDS):
        for media_type in FORMATS:
            start = time.perf_counter()
            answer = client.get(path, headers={"Accept": media_type, "Accept-Encoding": "gzip"})
            answer.get_data()
            times[media_type].append((time.perf_counter() - start) * 1000)
    as_json, page = (median(times[media_type]) for media_type in FORMATS)
    return as_json, page


if __name__ == "__main__":
    main()
