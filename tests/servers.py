"""The service itself under gunicorn, as `make run` and a platform run it, on a port of its own."""

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
from watch import SECRETS_FILE, WATCH, ServersLog

ROOT = Path(__file__).parents[1]
_NOT_INHERITED = ("DATABASE_URL", "EMAIL_CONFIG", "DYNO", "PORT", "HOST")


class Server:
    """A running service; its log is in `log`, at DEBUG and in JSON, and is watched.

    application: one of a module in this folder that makes the service by `watch`.
    """

    def __init__(
        self,
        folder: Path,
        config: dict,
        application: str = "watch:create_app()",
        **environment: str,
    ) -> None:
        self._log = folder / f"server-{os.urandom(4).hex()}.log"
        self._secrets = self._log.with_name(f"{self._log.name}.secrets")
        self.config_file.write_text(json.dumps(config))
        environment = {
            **{name: value for name, value in os.environ.items() if name not in _NOT_INHERITED},
            "EMAIL_CONFIG": str(self.config_file),
            "LOG_LEVEL": "debug",
            "LOG_FORMAT": "json",
            SECRETS_FILE: str(self._secrets),
            **environment,
        }
        command = [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py"]
        command += ["--pythonpath", str(ROOT / "tests"), application]
        # The socket listens before the server does: a first request waits and is not refused.
        with socket.create_server(("127.0.0.1", 0)) as listener, self._log.open("wb") as log:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self.process = subprocess.Popen(
                [*command, "--bind", f"fd://{listener.fileno()}"],
                cwd=ROOT,
                env=environment,
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, to be killed as one
            )
        self.watch(self._log, is_json=environment["LOG_FORMAT"] == "json")
        try:
            requests.get(f"{self.url}/healthz", timeout=60).raise_for_status()
        except requests.RequestException:
            self.kill()
            raise

    def watch(self, log: Path, *, is_json: bool) -> None:
        """Look at what is logged there, too: by a process that has the same keys and messages."""
        WATCH.follow(ServersLog(self.url, log, self._secrets, is_json=is_json))

    @property
    def config_file(self) -> Path:
        return self._log.with_name(f"{self._log.name}.json")

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def stop(self) -> int:
        """End gracefully; returns the exit status.

        For one worker only: gunicorn loses the signal for a worker that it is just starting.
        """
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """End master and workers at once, if they are still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
