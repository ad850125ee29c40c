from __future__ import annotations

import copy
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import POOL_KEY, ROOT_KEY, make_config
from standins import answer

from email_services import providers
from email_services.__main__ import curl_command, main
from email_services.__main__ import make_config as write_config
from email_services.config import PLACEHOLDER, checked_config, load_config
from email_services.exceptions import ConfigError, UnknownDomain
from email_services.pool import DEFAULT_DEADLINE_SECONDS
from email_services.providers import provider_names
from email_services.store import Store

ROOT = Path(__file__).parents[1]

ORIGINAL_DESIGN = {
    "root_api_key": "root",
    "email_services": [
        {
            "email_domain": "example.com",
            "pool_api_key": "pool",
            "enabled_services": {
                "Mailgun": {"api_key": "key-123", "priority_value": 10},
                "Sendgrid": {"api_key": "SG.456", "priority_value": 20},
            },
        }
    ],
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)

    def write_and_load(content):
        path = tmp_path / "config.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_config(str(path))

    return write_and_load


def error_of(load, content, tmp_path) -> str:
    """The one line that ends the start, without the file's name before it."""
    with pytest.raises(ConfigError) as caught:
        load(content)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/config.json: ")
    assert "\n" not in line
    return line.partition("config.json: ")[2]


def roles(config, key):
    return [found.role for found in config.keyring.find(key, 0)]


def changed(*path_and_value):
    """The configuration of the original design with one value changed, or left out for `...`."""
    *path, last, value = path_and_value
    content = copy.deepcopy(ORIGINAL_DESIGN)
    place = content
    for step in path:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


def test_a_configuration_of_the_original_design_loads_unchanged(load, store):
    config = load(ORIGINAL_DESIGN)
    pool = config.domain("example.com").pool(store)
    assert {name: service.provider for name, service in pool.services.items()} == {
        "sendgrid": "sendgrid",
        "mailgun": "mailgun",
    }
    assert list(pool.services) == ["sendgrid", "mailgun"]
    assert (pool.deadline_seconds, pool.on_unknown) == (DEFAULT_DEADLINE_SECONDS, "failover")
    assert config.production is False


def test_every_setting_of_the_contract_is_taken(load, store):
    config = load(
        {
            "root_api_key": "root",
            "production": True,
            "state_url": "sqlite:///elsewhere.sqlite3",
            "email_services": [
                {
                    "email_domain": "Bücher.example",
                    "pool_api_key": "pool",
                    "deadline_seconds": 12.5,
                    "on_unknown": "stop",
                    "enabled_services": {
                        "Mailgun": {
                            "api_key": "k",
                            "priority_value": 10,
                            "base_url": "https://api.eu.mailgun.net",
                            "timeout_seconds": 3,
                        },
                        "Backup": {"service": "MAILGUN", "api_key": "k", "priority_value": 5},
                    },
                }
            ],
        }
    )
    pool = config.domain("BÜCHER.example").pool(store)
    assert (pool.email_domain, pool.deadline_seconds) == ("xn--bcher-kva.example", 12.5)
    assert pool.on_unknown == "stop"
    assert pool.service("mailgun").base_url == "https://api.eu.mailgun.net"
    assert pool.service("mailgun").settings.timeout_seconds == 3
    assert pool.service("backup").provider == "mailgun"
    assert (config.production, config.state_url) == (True, "sqlite:///elsewhere.sqlite3")


SERVICES = ("email_services", 0, "enabled_services")
PROBLEMS = [
    ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ("[]", "the file: It should be an object"),
    ("[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
    (f'{{"a": {"[" * 2000 + "]" * 2000}}}', "it is nested too deeply"),
    (f'{{"a": {"[" * 700 + "]" * 700}}}', "it is nested too deeply"),
    (b'{"root_api_key": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
    ('{"a": 1, "a": 2}', "the key 'a' is given twice in one object"),
    (changed("root_api_key", ...), "root_api_key: Required"),
    (changed("root_api_key", 5), "root_api_key: It should be a string"),
    (changed("root_api_key", ""), "root_api_key: It should be printable ASCII without spaces"),
    (changed("root_api_key", "a\n"), "root_api_key: It should be printable ASCII without spaces"),
    (changed("prodution", True), "prodution: Unknown field. Did you mean 'production'?"),
    (changed("email_services", []), "email_services: It should hold at least 1"),
    (
        changed("email_services", 0, "email_domain", "a b"),
        "email_services[0].email_domain: It should be a domain name, with a dot",
    ),
    (
        changed("email_services", 0, "deliver_only_to", []),
        "email_services[0].deliver_only_to: It should hold at least 1",
    ),
    (
        changed("email_services", 0, "deliver_only_to", ["*@example.com", "a*@example.com"]),
        "email_services[0].deliver_only_to[1]: Write an address (ada@example.com), everybody at",
    ),
    (
        changed("email_services", 0, "deliver_only_to", [5]),
        "email_services[0].deliver_only_to[0]: Write an address",
    ),
    (
        changed("email_services", 0, "redirect_to", "nobody"),
        "email_services[0].redirect_to: An email address must have an @-sign",
    ),
    (
        changed("email_services", 0, "deadline_seconds", 0),
        "email_services[0].deadline_seconds: It should be more than 0",
    ),
    (
        changed("email_services", 0, "deadline_seconds", 3600),
        "email_services[0].deadline_seconds: It should be at most 110",
    ),
    (
        changed("email_services", 0, "on_unknown", "retry"),
        "email_services[0].on_unknown: It should be 'failover' or 'stop'",
    ),
    (
        changed("email_services", 0, "enabled_services", {}),
        "email_services[0].enabled_services: It should hold at least 1",
    ),
    *(
        (
            changed(*SERVICES, "Mailgun", "priority_value", value),
            f"email_services[0].enabled_services.Mailgun.priority_value: {sentence}",
        )
        for value, sentence in [
            ("high", "It should be a number"),
            ([], "It should be a number"),
            (None, "It should be a number"),
            (float("inf"), "It should be a finite number"),
        ]
    ),
    (
        changed(*SERVICES, "Mailgun", "priority_value", 10**400),
        "email_services[0].enabled_services.Mailgun: a number in it is too large",
    ),
    (
        changed(*SERVICES, "int", 5),
        "email_services[0].enabled_services.int: It should be an object",
    ),
    (
        changed(*SERVICES, "Mailgun", "api_key", ...),
        "email_services[0].enabled_services.Mailgun.api_key: Required",
    ),
    (
        changed(*SERVICES, "Mailgun", "priority", 3),
        (
            "email_services[0].enabled_services.Mailgun.priority: "
            "Unknown field. Did you mean 'priority_value'?"
        ),
    ),
    (
        changed(*SERVICES, "Mailgun", "base_url", "api.mailgun.net"),
        "email_services[0].enabled_services.Mailgun.base_url: It should be a URL like https://api.example.com",
    ),
    (
        changed(*SERVICES, "Mailgun", "base_url", "https://u:p@api.mailgun.net"),
        "email_services[0].enabled_services.Mailgun.base_url: It should hold no user",
    ),
    *(
        (
            changed(*SERVICES, "Mailgun", "base_url", f"https://{host}/v3"),
            "email_services[0].enabled_services.Mailgun.base_url: Its host can be none",
        )
        for host in (".", "..example.com", "*")
    ),
    *(
        (
            changed(*SERVICES, "kept", {"service": "maildir", "priority_value": 1, "path": path}),
            "email_services[0].enabled_services.kept.path: It holds a line break",
        )
        for path in ("mail\0", "\ud800", "mail\n")
    ),
    (
        changed(*SERVICES, "Mailgun", "api_key", "k k"),
        "email_services[0].enabled_services.Mailgun.api_key: It should be printable ASCII",
    ),
    (
        changed(*SERVICES, "backup", {"api_key": "k", "priority_value": 1}),
        (
            "email_services[0].enabled_services.backup: no such provider; "
            f'give "service" one of: {", ".join(provider_names())}'
        ),
    ),
    (
        changed(*SERVICES, "MAILGUN", {"api_key": "k", "priority_value": 1}),
        "email_services[0].enabled_services.MAILGUN: 'mailgun' is given twice",
    ),
    (
        changed(*SERVICES, "send", {"service": "mailgun", "api_key": "k", "priority_value": 1}),
        "email_services[0].enabled_services.send: a service's name has letters, digits",
    ),
    (
        changed(*SERVICES, "a/b", {"service": "mailgun", "api_key": "k", "priority_value": 1}),
        "email_services[0].enabled_services.a/b: a service's name has letters, digits",
    ),
    (
        changed(*SERVICES, "backup", {"service": "../config", "priority_value": 1}),
        "email_services[0].enabled_services.backup: no such provider",
    ),
    (
        changed(*SERVICES, "backup", 5),
        "email_services[0].enabled_services.backup: It should be an object",
    ),
    (
        changed("root_api_key", "env:NO_SUCH_VARIABLE"),
        "root_api_key: the environment has no variable NO_SUCH_VARIABLE",
    ),
    (
        changed("root_api_key", "file:/no/such/secret"),
        "root_api_key: /no/such/secret cannot be read: No such file or directory",
    ),
    # Where it may be read, nothing is there to be read but what has not been yet.
    (changed("root_api_key", "file:/proc/kmsg"), "root_api_key: "),
    (changed("root_api_key", "file:/dev/zero"), "root_api_key: /dev/zero is no file"),
    (changed("root_api_key", "file:/etc"), "root_api_key: /etc is no file"),
    (
        changed("root_api_key", "file:secret"),
        "root_api_key: 'file:secret' should name a whole path",
    ),
]


@pytest.mark.parametrize(("content", "expected"), PROBLEMS)
def test_an_error_names_file_path_and_problem(content, expected, load, tmp_path):
    assert error_of(load, content, tmp_path).startswith(expected)


def test_a_number_that_is_none_is_one_problem(load, tmp_path):
    content = changed(*SERVICES, "Mailgun", "priority_value", "high")
    content["email_services"][0]["enabled_services"]["Sendgrid"]["timeout_seconds"] = []
    assert error_of(load, content, tmp_path).count("It should be") == 2


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite:///a%00b",
        "sqlite:///a\0b",
    ],
)
def test_a_state_that_is_in_no_file_is_an_error(url, load, monkeypatch):
    expected = re.escape("($DATABASE_URL or state_url) is not usable: SQLite needs a file.")
    with pytest.raises(ConfigError, match=expected):
        load({**ORIGINAL_DESIGN, "state_url": url})
    if "\0" not in url:
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(ConfigError, match=expected):
            load(ORIGINAL_DESIGN)


@pytest.mark.parametrize("url", ["", " ", "://", "postgres://[::1/x", "postgres://h:port/x", "x:y"])
def test_a_state_url_that_is_no_url_is_an_error(url):
    with pytest.raises(ConfigError, match="is not usable"):
        Store(url)


def test_a_domain_given_twice_in_two_spellings_is_an_error(load, tmp_path):
    content = copy.deepcopy(ORIGINAL_DESIGN)
    content["email_services"] *= 2
    content["email_services"][1] = {**content["email_services"][1], "email_domain": "EXAMPLE.com."}
    assert error_of(load, content, tmp_path) == (
        "email_services[1].email_domain: 'example.com' is given twice"
    )


def test_a_provider_whose_package_is_not_installed_says_what_to_install(
    load, tmp_path, monkeypatch
):
    (tmp_path / "acme.py").write_text(
        "from email_services.exceptions import MissingPackage\nraise MissingPackage('acme-sdk')\n"
    )
    monkeypatch.setattr(providers, "__path__", [*providers.__path__, str(tmp_path)])
    content = changed(*SERVICES, "acme", {"priority_value": 1})
    assert error_of(load, content, tmp_path) == (
        "email_services[0].enabled_services.acme: "
        "It needs a package that is not installed: pip install acme-sdk"
    )


def test_all_problems_are_in_the_one_line(load, tmp_path):
    content = changed("root_api_key", ...)
    content["email_services"][0]["on_unknown"] = "?"
    line = error_of(load, content, tmp_path)
    assert "root_api_key: Required; email_services[0].on_unknown" in line


def test_no_error_shows_a_key(load, tmp_path):
    secret = "a secret with spaces"
    content = changed(*SERVICES, "Mailgun", "api_key", secret)
    content["root_api_key"] = [secret]
    content["email_services"][0]["pool_api_key"] = {"key": secret}
    assert secret not in error_of(load, content, tmp_path)


def test_keys_may_come_from_the_environment(load, monkeypatch):
    monkeypatch.setenv("THE_ROOT_KEY", "from-the-environment")
    monkeypatch.setenv("THE_API_KEY", "also-from-there")
    content = changed(*SERVICES, "Mailgun", "api_key", "env:THE_API_KEY")
    config = load({**content, "root_api_key": "env:THE_ROOT_KEY"})
    assert roles(config, "from-the-environment") == ["root"]
    mailgun = next(s for s in config.domain("example.com").services if s.name == "mailgun")
    assert mailgun.api_key == "also-from-there"


def test_any_value_may_come_from_a_file_without_its_last_line_end(load, tmp_path):
    secrets = {"root": "from-a-file\n", "key": "also-from-there", "port": "2525\r\n"}
    for name, value in secrets.items():
        (tmp_path / name).write_bytes(value.encode())
    smtp = {"host": "localhost", "port": f"file:{tmp_path}/port", "priority_value": 1}
    content = changed(*SERVICES, "smtp", smtp)
    content["email_services"][0]["enabled_services"]["Mailgun"]["api_key"] = f"file:{tmp_path}/key"
    config = load({**content, "root_api_key": f"file:{tmp_path}/root"})
    assert roles(config, "from-a-file") == ["root"]
    services = {service.name: service for service in config.domain("example.com").services}
    assert services["mailgun"].api_key == "also-from-there"
    assert services["smtp"].settings.port == 2525


@pytest.mark.parametrize("content", [b"\xff\xfe", b"k" * 100_000])
def test_a_file_that_holds_no_secret_is_named_and_never_quoted(content, load, tmp_path):
    (tmp_path / "secret").write_bytes(content)
    error = error_of(load, changed("root_api_key", f"file:{tmp_path}/secret"), tmp_path)
    assert f"root_api_key: {tmp_path}/secret" in error
    assert "kkkk" not in error


def test_the_file_is_found_by_argument_environment_or_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMAIL_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=re.escape("config.json: No such file or directory")):
        load_config()
    Path("config.json").write_text(json.dumps(changed("root_api_key", "by-name")))
    assert roles(load_config(), "by-name") == ["root"]
    Path("other.json").write_text(json.dumps(changed("root_api_key", "by-environment")))
    monkeypatch.setenv("EMAIL_CONFIG", "other.json")
    assert roles(load_config(), "by-environment") == ["root"]


def test_the_file_may_be_fetched(stand_in):
    server = stand_in(answer(200, {}, json.dumps(ORIGINAL_DESIGN).encode()))
    assert roles(load_config(f"{server.url}/config.json"), "root") == ["root"]


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [(answer(404), "HTTP 404"), (answer(200, {}, b"<"), "Expecting value")],
)
def test_a_url_that_fails_is_named_without_what_is_secret_in_it(behaviour, problem, stand_in):
    server = stand_in(behaviour)
    url = server.url.replace("://", "://user:password@") + "/config.json?token=secret"
    with pytest.raises(ConfigError) as caught:
        load_config(url)
    assert str(caught.value).startswith(f"{server.url}/config.json: {problem}")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://[::1", "the URL of the configuration: could not be fetched"),
        ("http://127.0.0.1:99999/x?k=s", "http://127.0.0.1:99999/x: could not be fetched"),
        ("http://u:s@127.0.0.1:x/", "http://127.0.0.1:x/: could not be fetched"),
        ("http://u:s@/x", "http:///x: could not be fetched"),
    ],
)
def test_a_url_that_is_none_is_an_error(url, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(url)
    assert str(caught.value) == expected


def test_database_url_wins_over_state_url(load, monkeypatch):
    content = {**ORIGINAL_DESIGN, "state_url": "sqlite:///a.sqlite3"}
    assert load(content).state_url == "sqlite:///a.sqlite3"
    assert load(ORIGINAL_DESIGN).state_url == "sqlite:///state.sqlite3"
    monkeypatch.setenv("DATABASE_URL", "sqlite:///b.sqlite3")
    assert load(content).state_url == "sqlite:///b.sqlite3"


WEAK = {
    "a placeholder": (
        changed("root_api_key", "CHANGE-ME-root"),
        "the root_api_key is a placeholder that everybody knows",
    ),
    "one key for two things": (
        changed("root_api_key", "pool"),
        "the pool_api_key of example.com is the same as the root_api_key",
    ),
    "a key in clear text": (
        changed(*SERVICES, "Mailgun", "base_url", "http://mailgun.example"),
        "mailgun of example.com would send its key unencrypted",
    ),
    "mail in clear text": (
        changed(
            *SERVICES,
            "smtp",
            {"priority_value": 1, "host": "mail.example.com", "security": "none"},
        ),
        "smtp of example.com would send its mail unencrypted",
    ),
}


@pytest.mark.parametrize("weakness", WEAK)
def test_what_is_weak_is_warned_of_and_refused_in_production(weakness, load, tmp_path, caplog):
    content, expected = WEAK[weakness]
    load(content)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert expected in caplog.text
    line = error_of(load, {**content, "production": True}, tmp_path)
    assert line == f"not fit for production: {expected}"


def test_what_is_fetched_in_clear_text_is_fit_for_production_from_this_machine_alone():
    text = json.dumps(changed("production", True))
    for name in ("https://config.example/mail.json", "http://127.0.0.1:8080/mail.json"):
        assert checked_config(text, name).production
    with pytest.raises(ConfigError, match=r"fit for production: it was fetched unencrypted$"):
        checked_config(text, "http://config.example/mail.json")


def test_a_stand_in_on_loopback_is_fit_for_production(load):
    content = changed(*SERVICES, "Mailgun", "base_url", "http://127.0.0.1:4010")
    assert load({**content, "production": True}).production


def test_keys_are_told_apart(load, tmp_path):
    config = load(make_config(tmp_path))
    assert roles(config, ROOT_KEY) == ["root"]
    (own,) = config.keyring.find(POOL_KEY, 0)
    assert (own.role, own.email_domain) == ("send", "example.com")
    for wrong in ("", "é\ud800", POOL_KEY + " ", POOL_KEY[:-1]):
        assert roles(config, wrong) == []


@pytest.mark.parametrize("name", ["example.org", "", "..", "x" * 300, "a b", "\ud800"])
def test_a_domain_that_is_not_there_is_an_error(name, load, tmp_path):
    with pytest.raises(UnknownDomain):
        load(make_config(tmp_path)).domain(name)


def test_the_example_runs_as_it_is(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    config = load_config(str(ROOT / "config_example.json"))
    providers = [service.provider for service in config.domain("example.com").services]
    assert providers == ["maildir", "maildir"]
    assert caplog.text.count("placeholder") == 2


def test_the_first_run_makes_keys_that_nobody_knows(tmp_path):
    target = tmp_path / "config.json"
    write_config(ROOT / "config_example.json", target)
    assert PLACEHOLDER not in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o600
    config = load_config(str(target))
    key = config.domain("example.com").keys[0].value
    assert key != config.root_keys[0].value
    assert len(key) >= 32
    assert f"'Authorization: Bearer {key}'" in curl_command(config, "http://localhost:8000")


def test_in_production_no_key_is_printed(load, tmp_path, monkeypatch, capsys):
    load({**ORIGINAL_DESIGN, "production": True})
    monkeypatch.setenv("EMAIL_CONFIG", str(tmp_path / "config.json"))
    main()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("port", "words"), [(None, "commands as they stand:"), ("8301", "commands with 8301 for 8000:")]
)
def test_what_to_do_next_is_said_for_the_port_that_is_listened_at(
    port, words, load, tmp_path, monkeypatch, capsys
):
    load(ORIGINAL_DESIGN)
    monkeypatch.setenv("EMAIL_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.delenv("PORT", raising=False)
    if port:
        monkeypatch.setenv("PORT", port)
    main()
    said = capsys.readouterr().out
    assert words in said
    assert f"curl http://localhost:{port or 8000}/" in said


def test_a_config_that_is_there_is_not_overwritten(tmp_path):
    target = tmp_path / "config.json"
    target.write_text("mine")
    with pytest.raises(FileExistsError):
        write_config(ROOT / "config_example.json", target)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("module", ["app", "email_services"])
def test_a_start_with_an_error_ends_with_one_line(module, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code = (
        "import app; app.create_app()"
        if module == "app"
        else "import email_services.__main__ as m; m.main()"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.decode() == (
        "config.json: root_api_key: Required; email_services: Required\n"
    )


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "http://localhost:3000",
        "https://xn--bcher-kva.example:8443",
        "http://127.0.0.1:5173",
        "http://[::1]:5173",
    ],
)
def test_an_origin_is_taken_as_a_browser_writes_it(origin, load):
    assert load({**ORIGINAL_DESIGN, "cors_origins": [origin]}).cors_origins == [origin]
    assert load(ORIGINAL_DESIGN).cors_origins == []


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "",
        "app.example.com",
        "https://",
        "https://*.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?x",
        "https://App.example.com",
        "https://bücher.example",
        "https://user@app.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://app.example.com:65536",
        "https://app.example.com:0",
        "https://app.example.com:",
        "ftp://app.example.com",
        "https://app.example.com\n",
        "https://-app.example.com",
    ],
)
def test_an_origin_that_would_never_match_is_an_error(origin, load):
    with pytest.raises(ConfigError, match=r"cors_origins\[1\]: It should be an origin"):
        load({**ORIGINAL_DESIGN, "cors_origins": ["https://app.example.com", origin]})
