"""What is deployed with: the files that are in the image, their commands, and the worker apart."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import requests
import yaml
from conftest import POOL, POOL_KEY, ROOT, make_config
from messages import PLAIN
from servers import ROOT as REPOSITORY
from servers import Server
from test_reload import wait_for

NOBODY = 10001
"""Whom the image runs as."""

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(*command: str, cwd: Path = REPOSITORY, log: Path, prefix=(), **more: str):
    given = {name: value for name, value in os.environ.items() if name not in {"DYNO", "HOST"}}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, sys.executable, *command],
            cwd=cwd,
            env={**given, **more},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()


def answers(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(url, timeout=30).ok
    return False


@pytest.fixture
def open_folder():
    """One that others may look into, as nobody may into pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_the_files_of_the_image_are_enough_for_nobody_who_can_write_none_of_them(open_folder):
    """This is what would be in it, with its own commands."""
    image, state = open_folder / "app", open_folder / "state"
    for folder in (image, state):
        folder.mkdir(mode=0o755)
    ignored = (REPOSITORY / ".dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        *names, target = line.split()
        for name in names:
            assert f"!{name}\n" in ignored
            source = REPOSITORY / name
            if target in {"./", "."}:
                shutil.copy(source, image)
            else:
                shutil.copytree(source, image / target)
    for path in image.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    config = open_folder / "config.json"
    config.write_text(json.dumps(make_config(state)))
    config.chmod(0o644)
    prefix = ()
    if os.geteuid() == 0:  # root, too, is kept from writing what is another's
        prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
        for path in (image, *image.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    else:
        image.chmod(0o555)
    port = str(free_port())
    variables = {"EMAIL_CONFIG": str(config), "PORT": port, "HOME": "/", "HOST": "127.0.0.1"}
    variables |= {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(state)}
    (command,) = re.findall(r'^CMD \["gunicorn", (.*)\]$', DOCKERFILE, re.MULTILINE)
    arguments = ["-m", "gunicorn", *json.loads(f"[{command}]")]
    (check,) = re.findall(r"HEALTHCHECK .* CMD (\[.*\])", DOCKERFILE)
    _, *check = json.loads(check)
    touch = [*prefix, "touch", str(image / "written")]
    assert subprocess.run(touch, check=False, stderr=subprocess.DEVNULL).returncode != 0
    log = open_folder / "log"
    with running(*arguments, cwd=image, log=log, prefix=prefix, **variables) as process:
        wait_for(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/healthz"))
        url = f"http://127.0.0.1:{port}/example.com/send"
        assert requests.post(url, json=PLAIN, headers=POOL, timeout=30).status_code == 200
        healthy = subprocess.run([sys.executable, *check], env=variables, check=False)
        assert healthy.returncode == 0
    done = subprocess.run(
        [sys.executable, *check], env=variables, check=False, stderr=subprocess.DEVNULL
    )
    assert done.returncode != 0, "it is gone"


def test_a_worker_apart_tells_prometheus_what_it_does(tmp_path):
    server = Server(tmp_path, make_config(tmp_path), WEB_CONCURRENCY="1", QUEUE_CALLS="0")
    port = free_port()
    variables = {"EMAIL_CONFIG": str(server.config_file), "WORKER_METRICS_PORT": str(port)}
    variables |= {"LOG_FORMAT": "json", "LOG_LEVEL": "debug"}
    log = tmp_path / "worker.log"
    url = f"http://127.0.0.1:{port}/metrics"
    labels = 'domain="example.com",outcome="sent",service="primary",stream="default"'
    counted = f"mailpool_messages_total{{{labels}}} 1.0"
    command = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]["worker"]
    _, _, *check = [part.replace("9464", str(port)) for part in command["healthcheck"]["test"]]
    try:
        with running(*command["command"][1:], log=log, **variables) as process:
            server.watch(log, is_json=True)
            wait_for(lambda: process.poll() is not None or answers(url))
            later = {**POOL, "Prefer": "respond-async"}
            sent = requests.post(
                f"{server.url}/example.com/send", json=PLAIN, headers=later, timeout=30
            )
            wait_for(lambda: outcome(sent.json()["url"]) == "sent")
            wait_for(lambda: counted in requests.get(url, timeout=30).text)  # a moment later
            telling = requests.get(url, timeout=30)
            told = telling.text
            webs = requests.get(f"{server.url}/metrics", headers=ROOT, timeout=30).text
            assert subprocess.run([sys.executable, *check], check=False).returncode == 0
    finally:
        server.kill()
    assert counted not in webs, "it is counted once"
    assert "mailpool_config_last_reload_successful 1.0" in told
    (info,) = re.findall(r"^mailpool_config_info\{.*$", told, re.MULTILINE)
    assert info in webs
    assert 'mailpool_queue_waiting{domain="example.com",stream="default"} 0.0' in told
    assert POOL_KEY not in told
    assert "Server" not in telling.headers, "which software it is, is nobody's business"


def outcome(url: str) -> str:
    return requests.get(url, headers=POOL, timeout=30).json()["outcome"]


@pytest.mark.parametrize("port", ["x", "0", "70000", ""])
def test_a_wrong_port_of_the_worker_ends_its_start_with_one_line(port, tmp_path):
    done = worker_with(port, tmp_path)
    assert done.returncode == 1
    assert done.stderr == "$WORKER_METRICS_PORT should be a whole number from 1 to 65535.\n"


def test_a_port_that_is_taken_ends_it_too(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = worker_with(port, tmp_path)
    assert done.stderr.startswith(f"Nobody can listen at 127.0.0.1:{port}: ")
    assert done.stderr.endswith("Choose another $WORKER_METRICS_PORT.\n")


def worker_with(port: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "config.json").write_text(json.dumps(make_config(tmp_path)))
    variables = {"EMAIL_CONFIG": str(tmp_path / "config.json"), "WORKER_METRICS_PORT": port}
    return subprocess.run(
        [sys.executable, "-m", "email_services", "worker"],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_heroku_is_told_of_the_processes_of_the_procfile_and_of_variables_that_there_are():
    told = json.loads((REPOSITORY / "app.json").read_text())
    procfile = (REPOSITORY / "Procfile").read_text()
    assert {*told["formation"]} == {*re.findall(r"^(\w+):", procfile, re.MULTILINE)}
    known = (REPOSITORY / "docs" / "operating.md").read_text()
    assert [name for name in told["env"] if f"`{name}`" not in known + "`ROOT_KEY``POOL_KEY`"] == []


def test_in_compose_no_process_of_ours_writes_or_is_root():
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    for name in ("web", "worker"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
        assert "user" not in services[name], "the image says who"
    assert f"\nUSER {NOBODY}:{NOBODY}\n" in DOCKERFILE
    known = (REPOSITORY / "docs" / "operating.md").read_text()
    for name in services["worker"]["environment"]:
        assert f"`{name}`" in known


@pytest.mark.parametrize("name", ["mailpool", "mailpool-worker"])
def test_systemd_finds_nothing_wrong_with_the_units(name):
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    unit = REPOSITORY / "deploy" / "systemd" / f"{name}.service"
    for command in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run(
            ["systemd-analyze", *command, unit], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert command != ["verify"] or not done.stderr
