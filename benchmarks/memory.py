"""The memory of a worker while 16 messages with files of about 20 MB are under way at once.

    .venv/bin/python -m benchmarks.memory

The provider takes every message whole and answers after 5 s, so that all are in memory together.
What is shown is the most that the worker ever had, less what it had before, by the bytes of the
files under way. Each case has a worker of its own. The bound on large bodies in progress is lifted:
a worker as it is has a few of these at a time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import secrets
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from benchmarks.batch import DOMAIN, POOL_KEY, run_service
from benchmarks.send import BenchmarkError, Server, stand_in

AT_ONCE: Final = 16
FILE_BYTES: Final = {"sendgrid": 20 * 1024 * 1024, "mailgun": 18 * 1024 * 1024}
"""What each takes at most, in whole MB and in base64."""

DELAY_MILLISECONDS: Final = 5000
TARGET: Final = 4.0
CASES: Final = (
    ("mailgun", "JSON"),
    ("mailgun", "form"),
    ("sendgrid", "JSON"),
    ("sendgrid", "form"),
)
MAX_SECONDS: Final = 100
WAIT_SECONDS: Final = 110


def main() -> None:
    """Measure every case and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs; one worker, {AT_ONCE} messages"
        " at once.\n\n"
        "| provider | file MB | sent to us as | MB before | MB at most"
        " | **most - before, by the files** | target |\n|---|---|---|---|---|---|---|"
    )
    try:
        for provider, kind in CASES:
            before, most = measure(provider, kind)
            multiple = (most - before) / (AT_ONCE * FILE_BYTES[provider])
            met = "met" if multiple <= TARGET else "missed"
            size = f"{FILE_BYTES[provider] // 1024 // 1024}"
            cells = (provider, size, kind, f"{before / 1e6:.0f}", f"{most / 1e6:.0f}")
            print(f"| {' | '.join(cells)} | **{multiple:.1f}** | {TARGET:g} {met} |", flush=True)
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")


def measure(provider: str, kind: str) -> tuple[int, int]:
    """Bytes of the worker before the messages came, and at most."""
    os.environ["WEB_BODY_MEGABYTES"] = "10000"  # they would wait for their turn
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(stand_in(DELAY_MILLISECONDS))
        server = stack.enter_context(run_service(provider, port, folder, MAX_SECONDS))
        content_type, body = request_body(kind, b"warm up")
        if post(server, content_type, body) != "success":
            raise server.failed("The first message was not sent.")
        before = memory(server, "VmRSS")
        content_type, body = request_body(kind, os.urandom(FILE_BYTES[provider]))
        start = threading.Barrier(AT_ONCE)

        def call(_: int) -> str:
            start.wait()
            return post(server, content_type, body)

        with ThreadPoolExecutor(AT_ONCE) as callers:
            results = list(callers.map(call, range(AT_ONCE)))
        if results != ["success"] * AT_ONCE:
            raise server.failed(f"Not all were sent: {set(results) - {'success'}}")
        return before, memory(server, "VmHWM")


def request_body(kind: str, content: bytes) -> tuple[str, bytes]:
    """A message with a file, as JSON or as a multipart form: its Content-Type and its bytes."""
    fields = {
        "from_email": f"me@{DOMAIN}",
        "to_recipients": "ada@example.org",
        "subject": "A file",
        "raw_text_body": "Here it is.",
    }
    if kind == "JSON":
        file = {"filename": "file.bin", "content": base64.b64encode(content).decode()}
        return "application/json", json.dumps({**fields, "attachments": [file]}).encode()
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="attachments"; '
        'filename="file.bin"\r\nContent-Type: application/octet-stream\r\n\r\n'
    )
    end = f"\r\n--{boundary}--\r\n"
    return (
        f"multipart/form-data; boundary={boundary}",
        b"".join([*parts, head.encode(), content, end.encode()]),
    )


def post(server: Server, content_type: str, body: bytes) -> str:
    """Send a body; returns the word of the answer."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS)
    try:
        headers = {"Authorization": f"Bearer {POOL_KEY}", "Content-Type": content_type}
        connection.request("POST", f"/{DOMAIN}/send", body, headers)
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return str(answer if answer.get("result") != "success" else "success")


def memory(server: Server, name: str) -> int:
    """Bytes of the worker: VmRSS, what it has in memory now, or VmHWM, the most it ever had."""
    children = Path(f"/proc/{server.master}/task/{server.master}/children").read_text()
    (worker,) = children.split()
    status = Path(f"/proc/{worker}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
