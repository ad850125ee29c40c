"""The description names everything there is, and what it says is so."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PLAIN, POOL, POOL_KEY, ROOT, ROOT_KEY, make_config
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel
from servers import Server
from typing_extensions import TypedDict

from browsable_api import BrowsableAPI, Room
from browsable_api.openapi import About, describe
from browsable_api.operations import all_operations
from email_services.message import EmailMessage
from endpoints.guesses import MAX_WRONG_KEYS
from endpoints.log import MessageFilter
from endpoints.rooms import STATUS_OF_ERROR
from endpoints.sending.answers import EXAMPLES, STATUS_OF_BATCH, STATUS_OF_OUTCOME
from endpoints.sending.bodies import Batch
from endpoints.services import FailureWanted
from endpoints.signing_in import SignIn

TOP = Path(__file__).parents[1]
CASES = 2000
BROWSER = {"Accept": "text/html"}
JSON = "application/json"
VARIABLES = {"ROOT_KEY": ROOT_KEY, "POOL_KEY": POOL_KEY, "MAILGUN_KEY": "a-key-at-mailgun"}


def keeping_copies(tmp_path, **changes):
    """A configuration under which a message of example.com can be sent again."""
    config = make_config(tmp_path, **changes)
    config["email_services"][0]["keep_content_days"] = 1
    return config


@pytest.fixture
def config(tmp_path, monkeypatch):
    """One that takes uploads, and the variables that the example of one names."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    return keeping_copies(tmp_path, config_upload=True)


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json


def operations(document: dict):
    """Method, path and description of each operation."""
    return [
        (method.upper(), path, item[method])
        for path, item in document["paths"].items()
        for method in ("get", "post", "put", "delete")
        if method in item
    ]


def resolved(thing: dict, document: dict) -> dict:
    while "$ref" in thing:
        _, _, kind, name = thing["$ref"].split("/")
        thing = document["components"][kind][name]
    return thing


def problems(value, schema: dict, document: dict) -> list[str]:
    """What of `value` is not as `schema` says."""
    whole = {**schema, "components": document["components"]}
    validator = Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [error.message for error in validator.iter_errors(value)]


def test_it_is_openapi(document):
    assert document["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_route_and_method_is_described_and_nothing_else(client, document):
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in client.application.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if rule.endpoint != "static"
    }
    assert routes == {(method, path) for method, path, _ in operations(document)}


def test_every_field_that_is_taken_is_described(document):
    schemas = document["components"]["schemas"]
    for model in (EmailMessage, Batch, FailureWanted, SignIn):
        fields = schemas[model.__name__]["properties"]
        assert set(fields) == {*model.model_fields}
        assert all(field["description"] for field in fields.values())
    parameters = document["paths"]["/{email_domain}/messages"]["get"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == {*MessageFilter.model_fields}


def test_every_status_of_a_send_and_of_an_error_is_described(document):
    described = [operation for *_, operation in operations(document)]
    every = {status for operation in described for status in operation["responses"]}
    tables = {*STATUS_OF_ERROR.values(), *STATUS_OF_OUTCOME.values(), *STATUS_OF_BATCH.values()}
    assert {str(int(status)) for status in tables} <= every


def test_every_component_is_used_and_none_is_for_forms_of_pages(document):
    text = json.dumps(document)
    for kind in ("schemas", "parameters", "headers"):
        names = document["components"][kind]
        assert [n for n in names if f'"#/components/{kind}/{n}"' not in text] == []
    assert '"widget"' not in text


def test_every_operation_has_a_name_a_text_and_an_example(document):
    described = operations(document)
    assert len({operation["operationId"] for *_, operation in described}) == len(described)
    for _, path, operation in described:
        assert operation["summary"], path
        assert operation["description"], path
        for needed in operation["security"]:
            assert set(needed) <= set(document["components"]["securitySchemes"])


def test_every_example_is_as_the_schema_beside_it_says(document):
    checked = 0
    for _, path, operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for media in [m for body in bodies for m in body.get("content", {}).values()]:
            for name, example in media.get("examples", {}).items():
                assert problems(example["value"], media["schema"], document) == [], (path, name)
                checked += 1
    assert checked >= len(EXAMPLES)


def test_every_example_of_a_request_is_taken(client, document):
    message_id = client.post("/example.com/send", json=PLAIN, headers=POOL).json["message_id"]
    for method, path, operation in operations(document):
        media = operation.get("requestBody", {}).get("content", {}).get(JSON, {})
        for name, example in media.get("examples", {}).items():
            key = (
                ROOT
                if path.endswith(("/fail", "/queue", "/config"))
                else {}
                if path == "/sign-in"
                else POOL
            )
            body = {"key": ROOT_KEY} if path == "/sign-in" else example["value"]
            target = fill(path, message_id)
            answer = client.open(target, method=method, json=body, headers=key)
            assert answer.status_code == 200, (path, name, answer.text)


def test_what_a_stranger_may_ask_needs_no_key_and_the_rest_does(client, document):
    for method, path, operation in operations(document):
        asked = fill(path)
        answer = client.open(asked, method=method, json={} if method in {"POST", "PUT"} else None)
        needs_a_key = operation["security"] != [] and {} not in operation["security"]
        assert (answer.status_code == 401) is (needs_a_key or asked == "/sign-in?wrong"), path


def fill(path: str, message_id: str = "0" * 32) -> str:
    parts = {"email_domain": "example.com", "service": "primary", "number": 1, "version": 1}
    return path.format(**parts, message_id=message_id)


BODIES = {
    "send": PLAIN,
    "queue": {"stream": "bulk", "paused": False},
    "fail": {"simulated_failure": False},
    "sign-in": {"key": ROOT_KEY},
    "config": {
        "root_api_key": "env:ROOT_KEY",
        "email_services": [
            {
                "email_domain": "example.com",
                "pool_api_key": "env:POOL_KEY",
                "enabled_services": {"maildir": {"priority_value": 1}},
            }
        ],
    },
}


WITH_FILE = {**PLAIN, "attachments": [{"filename": "a.txt", "content": "YQ=="}]}


class Staged:
    """Every answer that can be had, by operation and status: who gives it, and how to ask."""

    def __init__(self, make_app, tmp_path, monkeypatch) -> None:
        for name, value in VARIABLES.items():
            monkeypatch.setenv(name, value)
        some = {"max_message_megabytes": 0.1, "config_upload": True}
        small = make_app(keeping_copies(tmp_path, **some))
        self.client = small.test_client(use_cookies=False)
        broken = {"state_url": f"sqlite:///{tmp_path}/no/folder/state.sqlite3", "production": True}
        self.broken = make_app(make_config(tmp_path, **broken)).test_client()
        self.buggy = make_app(make_config(tmp_path)).test_client()
        self.buggy.application.config["PROPAGATE_EXCEPTIONS"] = False
        monkeypatch.setenv("TRUSTED_HOSTS", "localhost")
        self.strict = make_app(make_config(tmp_path)).test_client()
        self.signed_in = make_app(make_config(tmp_path)).test_client()
        self.signed_in.post("/sign-in", json={"key": ROOT_KEY})
        sent = self.client.post("/example.com/send", json=WITH_FILE, headers=POOL)
        self.message_id = sent.json["message_id"]
        self.client.put("/config", json=BODIES["config"], headers=ROOT)
        self.monkeypatch = monkeypatch
        self.addresses = itertools.count(1)
        self.guesses = small.extensions["mailpool"].guesses

    def ask(self, client, method: str, path: str, **asked):
        if method in {"POST", "PUT"} and "data" not in asked:
            asked.setdefault("json", BODIES.get(path.rpartition("/")[2], {}))
        root = path.endswith(("/fail", "/health", "/metrics", "/queue", "/keys"))
        root = root or path.startswith("/config")
        root = root or ("/messages" in path and method == "GET")
        ours = {"Sec-Fetch-Site": "same-origin"} if path == "/preview" else {}
        headers = {**(ROOT if root else POOL), **ours, **asked.pop("headers", {})}
        target = fill(path, self.message_id)
        target = asked.pop("target", target)
        return client.open(target, method=method, headers=headers, **asked)

    def __call__(self, method: str, path: str, status: str):
        ask = self.ask
        if stage := getattr(self, f"_{status}", None):
            return stage(method, path)
        return ask(self.client, method, path)

    def _304(self, method, path):
        # A listing is another one each time, while something waits and grows older.
        return self.ask(self.client, method, path, headers={"If-None-Match": "*"})

    def _400(self, method, path):
        return self.ask(self.strict, method, path, headers={"Host": "evil.example"})

    def _401(self, method, path):
        wrong = {"json": {"key": "wrong"}} if path == "/sign-in" else {}
        headers = {"Authorization": "Bearer wrong"}
        environ = {"REMOTE_ADDR": f"192.0.2.{next(self.addresses)}"}
        return self.ask(
            self.client, method, path, headers=headers, environ_overrides=environ, **wrong
        )

    def _429(self, method, path):
        address = f"192.0.2.{next(self.addresses)}"
        for _ in range(MAX_WRONG_KEYS):
            self.guesses.count(address, time.time())
        with self.monkeypatch.context() as patch:
            patch.setattr(self, "addresses", iter([address.rpartition(".")[2]]))
            return self._401(method, path)

    def _403(self, method, path):
        asked = {"json": {"key": ROOT_KEY}} if path == "/sign-in" else {}
        headers = {"Origin": "https://evil.example"}
        return self.signed_in.open(fill(path), method=method, headers=headers, **asked)

    def _404(self, method, path):
        target = (
            fill(path).replace("example.com", "example.org").replace("versions/1", "versions/99")
        )
        return self.ask(self.client, method, path, target=target)

    def _406(self, method, path):
        return self.ask(self.client, method, path, query_string={"format": "png"})

    def _412(self, method, path):
        return self.ask(self.client, method, path, headers={"If-Match": '"an old one"'})

    def _413(self, method, path):
        headers = {"Content-Type": JSON}
        client = self.signed_in if path == "/sign-out" else self.client
        if client is self.signed_in:
            client.application.config["MAX_CONTENT_LENGTH"] = 1_000_000
        return self.ask(client, method, path, data=b" " * 2_000_000, headers=headers)

    def _200(self, method, path):
        if method == "DELETE" or path.endswith(("/cancel", "/send-now")):
            return self._of_one_that_waits(method, path)
        return self.ask(self.client, method, path)

    def _of_one_that_waits(self, method, path):
        later = {"Prefer": "respond-async"}
        waiting = self.ask(self.client, "POST", "/{email_domain}/send", headers=later)
        target = fill(path, waiting.json["message_id"])
        return self.ask(self.client, method, path, target=target)

    def _415(self, method, path):
        client = self.signed_in if path == "/sign-out" else self.client
        return self.ask(client, method, path, data=b"x", headers={"Content-Type": "text/plain"})

    def _202(self, method, path):
        return self.ask(self.client, method, path, headers={"Prefer": "respond-async"})

    def _207(self, method, path):
        batch = [PLAIN, {**PLAIN, "subject": ""}]
        return self.ask(self.client, method, path, json={"messages": batch})

    def _409(self, method, path):
        if path.endswith("/send-again"):
            return self._of_one_that_waits(method, path)
        if not path.endswith("/send"):
            return self.ask(self.client, method, path)  # what was sent waits no more
        store = self.client.application.extensions["mailpool"].store
        store.reserve_keys("example.com", [(path, "0" * 64)], time.time(), time.time() + 60)
        with self.monkeypatch.context() as patch:
            patch.setattr("endpoints.sending.bodies.fingerprint", lambda *_: "0" * 64)
            return self.ask(self.client, method, path, headers={"Idempotency-Key": path})

    def _422(self, method, path):
        is_again = path.endswith("/send-again")
        two = ({}, {"service": "backup"}) if is_again else (PLAIN, {**PLAIN, "subject": "Another"})
        for body in two:
            headers = {"Idempotency-Key": "used" + path[-9:]}
            answer = self.ask(self.client, method, path, json=body, headers=headers)
        return answer

    def _500(self, method, path):
        def view(**_):
            raise ZeroDivisionError

        adapter = self.buggy.application.url_map.bind("localhost")
        endpoint, _ = adapter.match(fill(path), method)
        with self.monkeypatch.context() as patch:
            patch.setitem(self.buggy.application.view_functions, endpoint, view)
            return self.ask(self.buggy, method, path)

    def _503(self, method, path):
        self.broken.set_cookie("mailpool", "a cookie that cannot be checked")
        asked = {"headers": {"Idempotency-Key": "k"}} if method == "POST" else {}
        if method == "GET" and path != "/readyz":
            return self.broken.get(fill(path))
        return self.ask(self.broken, method, path, **asked)

    def _504(self, method, path):
        for service in ("primary", "backup"):
            drill = {"kind": "answer_lost"}
            self.client.post(f"/example.com/{service}/fail", json=drill, headers=ROOT)
        answer = self.ask(self.client, method, path)
        for service in ("primary", "backup"):
            off = {"simulated_failure": False}
            self.client.post(f"/example.com/{service}/fail", json=off, headers=ROOT)
        return answer


@pytest.fixture
def staged(make_app, tmp_path, monkeypatch):
    return Staged(make_app, tmp_path, monkeypatch)


def test_a_real_answer_of_every_operation_and_status_is_as_described(staged, document):
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            with staged(method, path, status) as answer:
                assert str(answer.status_code) == status, (method, path, answer.text)
                check(answer, response, document)


@pytest.mark.parametrize("status", ["400", "401", "404", "406", "413", "415", "429", "500", "503"])
def test_a_fault_that_an_operation_can_meet_is_among_its_answers(status, staged, document):
    for method, path, operation in operations(document):
        with staged(method, path, status) as answer:
            assert str(answer.status_code) in operation["responses"], (method, path)


LENIENT = [
    ("send", "EmailMessage", {"on_unknown": ""}),
    ("send", "EmailMessage", {"track_opens": "", "track_clicks": None}),
    ("send", "EmailMessage", {"send_at": None, "attachments": "", "inline": None}),
    ("send", "EmailMessage", {"to_cc": "a@b.example, c@d.example", "tags": None}),
    ("send", "EmailMessage", {"headers": "X-One: 1", "metadata": None, "from_name": None}),
    ("send", "EmailMessage", {"html_body": None, "dry_run": "true", "substitutions": "a: b"}),
    ("send", "EmailMessage", {"pool_api_key": POOL_KEY}),
    (
        "primary/fail",
        "FailureWanted",
        {"simulated_failure": "true", "share": "0.5", "minutes": "2.5"},
    ),
]


@pytest.mark.parametrize(("path", "model", "fields"), LENIENT)
def test_what_forms_and_other_languages_send_is_taken_and_not_recommended(
    path, model, fields, client, document
):
    body = {**PLAIN, **fields} if model == "EmailMessage" else fields
    key = ROOT if model == "FailureWanted" else POOL
    answer = client.post(f"/example.com/{path}", json=body, headers=key)
    assert answer.status_code == 200, answer.text
    assert problems(body, document["components"]["schemas"][model], document)


def test_a_request_is_json_whose_fields_have_one_form_and_no_default(document):
    for _, path, operation in operations(document):
        assert [*operation.get("requestBody", {}).get("content", {JSON: ()})] == [JSON], path
        for field in fields_taken(operation, document):
            assert {"default", "title", "anyOf"}.isdisjoint(field), (path, field)


def fields_taken(operation: dict, document: dict):
    """The schema of each field of the body, of what is in it, and of the query."""
    for parameter in operation.get("parameters", ()):
        yield resolved(parameter, document)["schema"]
    media = operation.get("requestBody", {}).get("content", {JSON: {"schema": {}}})[JSON]
    waiting = media["schema"].get("anyOf", [media["schema"]])
    while waiting:
        schema = resolved(waiting.pop(), document)
        fields = schema.get("properties", {}).values()
        yield from fields
        waiting += [field.get("items", field) for field in fields]


def test_a_person_finds_sending_first_and_every_operation_under_one_tag(document):
    order = [tag["name"] for tag in document["tags"]]
    assert order == [
        "sending",
        "messages",
        "queue",
        "services",
        "signing in",
        "keys",
        "configuration",
        "operating",
    ]
    tags = [operation["tags"] for *_, operation in operations(document)]
    assert tags == sorted(tags, key=lambda tag: order.index(*tag))
    assert {tag for (tag,) in tags} == set(order)


def test_an_operation_has_the_name_of_a_function(document):
    for _, path, operation in operations(document):
        assert re.fullmatch("[a-z]+(_[a-z]+)*", operation["operationId"]), path


def test_no_two_operations_at_an_address_are_told_the_same(document):
    for path, item in document["paths"].items():
        told = [found["summary"] for method, found in item.items() if method != "parameters"]
        assert len({*told}) == len(told), path


def test_what_needs_no_key_asks_for_none(document):
    for path in ("/healthz", "/readyz", "/openapi.json", "/sign-in"):
        assert document["paths"][path]["get"]["security"] == []


def test_no_enumeration_gets_the_name_of_a_schema_from_a_generator(document):
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        for field, found in schema.get("properties", {}).items():
            choices = [found, *found.get("anyOf", ()), found.get("items", {})]
            if any("enum" in choice for choice in choices):
                assert name + field.title().replace("_", "") not in schemas


class Thing(BaseModel):
    size: int


def a_thing_that_is_answered():
    class Thing(TypedDict):
        size: str

    return Thing


def test_two_schemas_of_one_name_are_refused():
    room = Room("things", __name__)
    shape = a_thing_that_is_answered()

    def make(body: Thing) -> shape:
        """Make a thing."""

    make.__annotations__ |= {"body": Thing, "return": shape}
    room.operation("POST", "/things")(make)
    app = BrowsableAPI(__name__)
    app.register_blueprint(room)
    with app.app_context(), pytest.raises(TypeError, match="Two schemas are named Thing"):
        describe(all_operations(), About("Things", "1", "Things."))


def check(answer, response: dict, document: dict) -> None:
    """Hold a real answer to what is said of it."""
    where = f"{answer.request.method} {answer.request.path} {answer.status_code}"
    assert "Link" in response["headers"], where
    for name in ("WWW-Authenticate", "Retry-After", "Idempotent-Replayed", "Location"):
        assert name not in answer.headers or name in response["headers"], (where, name)
    if "content" not in response:
        return
    assert answer.mimetype in response["content"], where
    if answer.mimetype == JSON:
        schema = response["content"][JSON]["schema"]
        assert problems(answer.json, schema, document) == [], where


SENDS = [
    ({"dry_run": True}, 200),
    ({"messages": [PLAIN]}, 200),
    ({"messages": [{**PLAIN, "subject": ""}]}, 503),
    ({"messages": [{**PLAIN, "dry_run": True}, {}]}, 207),
]


@pytest.mark.parametrize(("change", "status"), SENDS)
def test_every_kind_of_answer_to_a_send_is_described(change, status, client, document):
    body = change if "messages" in change else {**PLAIN, **change}
    answer = client.post("/example.com/send", json=body, headers=POOL)
    assert answer.status_code == status
    check(
        answer,
        document["paths"]["/{email_domain}/send"]["post"]["responses"][str(status)],
        document,
    )


def test_what_the_root_sees_is_described_and_beyond_that_only_keys(client, document):
    client.post("/example.com/primary/fail", json={"share": 0.5, "minutes": 1}, headers=ROOT)
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    answer = client.get("/example.com", headers=ROOT)
    described = document["paths"]["/{email_domain}"]["get"]["responses"]["200"]
    check(answer, described, document)
    fields = document["components"]["schemas"]["Service"]["properties"]
    services = answer.json["enabled_services"].values()
    assert {field for service in services for field in service} <= set(fields)


def test_the_reference_is_a_page_of_its_own_about_every_operation_and_field(client, document):
    page = client.get("/reference", headers=BROWSER).text
    for method, path, operation in operations(document):
        assert f'id="{operation["operationId"]}"' in page
        assert f"{method} {path}" in page
    for name, schema in document["components"]["schemas"].items():
        assert f'id="schema-{name}"' in page
        for field in schema.get("properties", ()):
            assert f"<code>{field}</code>" in page
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(re.findall(r'id="([^"]+)"', page))
    assert re.findall("<script.*?>", page) == ['<script src="/static/page.js" defer>']
    assert " style=" not in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert client.get("/reference").json == document


def test_a_reference_that_cannot_be_given_is_an_error_page(client, monkeypatch):
    client.application.config["PROPAGATE_EXCEPTIONS"] = False
    monkeypatch.setattr("endpoints.operating.describe", lambda *_: 1 / 0)
    answer = client.get("/reference", headers=BROWSER)
    assert (answer.status_code, answer.mimetype) == (500, "text/html")
    assert "An error of this service; it is in the log." in answer.text


@pytest.fixture
def server(tmp_path):
    running = Server(tmp_path, make_config(tmp_path), "many_guesses:create_app()")
    yield running
    running.kill()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Schemathesis needs Python 3.11")
def test_schemathesis_finds_no_fault_in_thousands_of_requests(server, tmp_path):
    """All its checks; what schemathesis.toml says of two of them, it says why."""
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        assert not os.environ.get("CI"), "CI has Schemathesis"
        pytest.skip("there is no Schemathesis")
    command = [program, "--config-file", TOP / "schemathesis.toml", "run"]
    command += [f"{server.url}/openapi.json", "--max-examples=5", "--seed=1", "--no-color"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "POOL_KEY": POOL_KEY, "ROOT_KEY": ROOT_KEY},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    (count,) = re.findall(r"(\d[\d,]*) generated", done.stdout)
    assert int(count.replace(",", "")) >= CASES
    assert " 500 " not in server.log
