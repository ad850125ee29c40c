"""Clients that generators make of the description send through a running service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path

import pytest
import requests
from conftest import POOL_KEY, make_config
from servers import Server

CLIENTS = Path(__file__).with_name("clients")
PYTHON_TOOLS = Path(sys.executable).parent
NODE_TOOLS = CLIENTS / "node_modules" / ".bin"
METHODS = ("get", "post", "put", "delete")


@pytest.fixture
def server(tmp_path):
    running = Server(tmp_path, make_config(tmp_path))
    yield running
    running.kill()


def needed(program: Path | str, how: str) -> str:
    """The program; without it the test is skipped, but fails in CI, which installs it."""
    found = shutil.which(program)
    if found is None:
        assert not os.environ.get("CI"), f"CI has {program}"
        pytest.skip(f"there is no {Path(program).name}: {how}")
    return found


def run(*command: str | Path, cwd: Path) -> str:
    """What it prints, where it ends well."""
    path = os.pathsep.join([str(PYTHON_TOOLS), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def python_tool(name: str) -> str:
    if sys.version_info < (3, 11):
        pytest.skip("openapi-python-client needs Python 3.11")
    return needed(PYTHON_TOOLS / name, "pip install -r requirements-dev.txt")


def node_tool(name: str) -> str:
    needed("node", "install Node.js")
    return needed(NODE_TOOLS / name, "npm ci --prefix tests/clients")


@pytest.fixture
def description(server, tmp_path):
    """The file of it, as the service gives it."""
    path = tmp_path / "openapi.json"
    path.write_bytes(requests.get(f"{server.url}/openapi.json", timeout=60).content)
    return path


@pytest.fixture
def python_client(description, tmp_path):
    """A folder with a program and what openapi-python-client made; a warning of it fails."""
    generator = python_tool("openapi-python-client")
    folder = tmp_path / "python"
    folder.mkdir()
    shutil.copy(CLIENTS / "send.py", folder)
    options = [f"--path={description}", "--output-path=mailpool_client", "--meta=none"]
    run(generator, "generate", *options, "--fail-on-warning", cwd=folder)
    return folder


@pytest.fixture
def typescript_client(description, tmp_path):
    """The same of openapi-typescript."""
    generator = node_tool("openapi-typescript")
    folder = tmp_path / "typescript"
    folder.mkdir()
    for name in ("send.ts", "tsconfig.json", "package.json"):
        shutil.copy(CLIENTS / name, folder)
    (folder / "node_modules").symlink_to(CLIENTS / "node_modules")
    run(generator, description, "--output", "mailpool.ts", cwd=folder)
    return folder


def check(printed: str, folder: Path) -> None:
    """What a program got, and that the file it sent arrived, is as it should be."""
    got = json.loads(printed)
    (letter,) = (folder / "primary" / "new").glob(f"{got.pop('file')}*")
    (file,) = [
        part
        for part in message_from_bytes(letter.read_bytes()).walk()
        if part.get_filename() == "note.txt"
    ]
    assert file.get_payload(decode=True) == b"It works."
    assert got == {
        "service": "primary",
        "batch": ["success", "dry run"],
        "problems": ["subject", "tags"],
        "subjects": ["Hello", "A file", "Hello"],
    }


def test_a_generated_python_client_sends_a_message_a_batch_and_a_file(
    python_client, server, tmp_path
):
    program = [sys.executable, "-W", "error", "send.py"]
    check(run(*program, server.url, POOL_KEY, cwd=python_client), tmp_path)


def test_a_generated_python_client_has_a_function_for_each_operation_and_types_that_hold(
    python_client, description
):
    described = json.loads(description.read_bytes())["paths"].values()
    operations = [item[method] for item in described for method in METHODS if method in item]
    made = (python_client / "mailpool_client" / "api").glob("*/[!_]*.py")
    assert {function.stem for function in made} == {o["operationId"] for o in operations}
    # Silent about what the generator itself writes, which is not strict.
    strict = ["--strict", "--follow-imports=silent", "--cache-dir=.cache"]
    run(python_tool("mypy"), *strict, "send.py", cwd=python_client)


def test_a_generated_typescript_client_sends_a_message_a_batch_and_a_file(
    typescript_client, server, tmp_path
):
    run(node_tool("tsc"), cwd=typescript_client)
    printed = run("node", "send.js", server.url, POOL_KEY, cwd=typescript_client)
    check(printed, tmp_path)
