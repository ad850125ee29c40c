"""The service itself under gunicorn, as `make run` and a platform run it, on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import requests
from urllib3.util import Retry

ROOT = Path(__file__).parents[1]


class Server:
    """A running service; its log is in `log`."""

    def __init__(self, folder: Path, config: dict, **environment: str) -> None:
        self._log = folder / f"server-{os.urandom(4).hex()}.log"
        config_file = folder / f"{self._log.name}.json"
        config_file.write_text(json.dumps(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("DATABASE_URL", "EMAIL_CONFIG", "DYNO")
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py")],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, to be killed as one
                env={
                    **inherited,
                    "EMAIL_CONFIG": str(config_file),
                    "HOST": "127.0.0.1",
                    "PORT": str(port),
                    **environment,
                },
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        retries = Retry(total=12, connect=12, read=12, backoff_factor=0.05, backoff_max=1)
        with requests.Session() as session:
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
            session.get(f"{self.url}/healthz", timeout=10).raise_for_status()

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def stop(self) -> int:
        """End gracefully; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """End master and workers at once, if they are still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
