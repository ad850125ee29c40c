"""What OpenTelemetry is told: requests, and the attempts in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import requests
from conftest import POOL, POOL_KEY, ROOT_KEY, make_config
from contract import PROVIDER_KEY, contract_of
from messages import PLAIN
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from servers import ROOT as REPOSITORY
from servers import Server
from standins import answer, answer_json

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SECRET = "Nobody else should read this, ever."
CLIENT, SERVER = 3, 2


@pytest.fixture
def collector(stand_in):
    return stand_in(answer(200))


@pytest.fixture
def traced(tmp_path, stand_in, collector):
    """A server whose first provider is down, and the second works, until `stop`."""
    down = stand_in(answer_json(503, {}))
    works = stand_in(answer(*contract_of("sendgrid").accepted))
    config = make_config(tmp_path)
    config["email_services"][0]["enabled_services"] = {
        "mailgun": {"api_key": PROVIDER_KEY, "priority_value": 2, "base_url": down.url},
        "sendgrid": {"api_key": PROVIDER_KEY, "priority_value": 1, "base_url": works.url},
    }
    server = Server(
        tmp_path,
        config,
        WEB_CONCURRENCY="1",
        LOG_FORMAT="json",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    )
    server.providers = (down, works)
    yield server
    server.kill()


def spans(collector):
    """All that was told, and the names of what tells it."""
    found, names = [], set()
    for received in collector.requests:
        assert received.path == "/v1/traces"
        told = ExportTraceServiceRequest.FromString(received.body)
        for resource in told.resource_spans:
            names |= {
                a.value.string_value
                for a in resource.resource.attributes
                if a.key == "service.name"
            }
            found += [span for scope in resource.scope_spans for span in scope.spans]
    return found, names


def attributes(span):
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_span_and_so_is_each_attempt_in_it(traced, collector):
    headers = {**POOL, "traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "order-42"}
    body = {**PLAIN, "raw_text_body": SECRET, "root_api_key": ROOT_KEY}
    url = f"{traced.url}/example.com/send"
    answered = requests.post(url, json=body, headers=headers, timeout=30)
    assert answered.status_code == 200
    traced.stop()
    found, names = spans(collector)
    assert names == {"mailpool"}
    ours = [span for span in found if span.trace_id.hex() == TRACE]
    (request,) = [span for span in ours if span.kind == SERVER]
    assert request.parent_span_id.hex() == PARENT
    assert request.name == "POST /<domain:email_domain>/send"
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(request)["mailpool.request_id"] == "order-42"
    attempts = sorted(
        (span for span in ours if span.kind == CLIENT), key=lambda span: span.start_time_unix_nano
    )
    assert [span.name for span in attempts] == ["attempt mailgun", "attempt sendgrid"]
    assert {span.parent_span_id for span in attempts} == {request.span_id}
    told = [attributes(span) for span in attempts]
    assert [(a["mailpool.outcome"], a["mailpool.code"]) for a in told] == [
        ("not sent", "unavailable"),
        ("sent", 0),
    ]
    assert {a["mailpool.message_id"] for a in told} == {answered.json()["message_id"]}
    for provider, span in zip(traced.providers, attempts, strict=True):
        assert provider.requests[0].headers["traceparent"] == (
            f"00-{TRACE}-{span.span_id.hex()}-01"
        )
        assert "baggage" not in provider.requests[0].headers
    lines = [json.loads(line) for line in traced.log.splitlines()]
    assert {line["trace_id"] for line in lines if line.get("request_id") == "order-42"} == {TRACE}


def test_the_attempts_of_a_batch_are_in_its_request_and_what_is_queued_has_a_trace_of_its_own(
    traced, collector
):
    url = f"{traced.url}/example.com/sendgrid/send"
    batch = {"messages": [PLAIN, {**PLAIN, "subject": "Another"}]}
    requests.post(url, json=batch, headers={**POOL, "baggage": "a=b"}, timeout=30)
    later = {**POOL, "Prefer": "respond-async"}
    queued = requests.post(url, json=PLAIN, headers=later, timeout=30).json()
    for _ in range(500):
        if requests.get(queued["url"], headers=POOL, timeout=30).json()["outcome"] == "sent":
            break
    traced.stop()
    found, _ = spans(collector)
    request = next(s for s in found if s.kind == SERVER and s.name.startswith("POST"))
    attempts = [s for s in found if s.kind == CLIENT]
    of_batch = [s for s in attempts if s.parent_span_id == request.span_id]
    assert of_batch
    (of_queue,) = [
        s for s in attempts if attributes(s)["mailpool.message_id"] == queued["message_id"]
    ]
    assert not of_queue.parent_span_id
    assert all("baggage" not in r.headers for p in traced.providers for r in p.requests)


def test_no_span_holds_a_key_a_recipient_or_a_body(traced, collector):
    body = {**PLAIN, "raw_text_body": SECRET, "root_api_key": ROOT_KEY}
    url = f"{traced.url}/example.com/send?pool_api_key={POOL_KEY}"
    requests.post(url, json=body, headers=POOL, timeout=30)
    requests.get(f"{traced.url}/example.com/messages?recipient=ada@example.org", timeout=30)
    traced.stop()
    told = b"".join(received.body for received in collector.requests)
    assert b"attempt sendgrid" in told
    for secret in (POOL_KEY, ROOT_KEY, PROVIDER_KEY, SECRET, "ada@example.org"):
        assert secret.encode() not in told


def imported(**variables: str) -> bool:
    """Whether a process with these variables imports any of it."""
    program = """
import os, sys
from email_services import traces
traces.begin(os.environ)
with traces.attempt("example.com", "a", ["1"]) as told:
    told([None])
assert traces.begin_request({}) == "" or "opentelemetry" in sys.modules
traces.end()
print("opentelemetry" in sys.modules)
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout == "True\n"


OFF = {
    "nothing is said": {},
    "the exporter is none": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_TRACES_EXPORTER": "none",
    },
    "it is disabled": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_SDK_DISABLED": "true",
    },
}


@pytest.mark.parametrize("why", OFF)
def test_nothing_of_it_is_imported_where(why):
    assert not imported(**OFF[why])


def test_where_its_packages_are_not_there_a_line_says_so_and_all_goes_on(monkeypatch, caplog):
    from email_services import traces  # noqa: PLC0415 - with its module missing below

    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    traces.begin({"OTEL_TRACES_EXPORTER": "otlp"})
    assert "Nothing is traced: that needs pip install opentelemetry-sdk" in caplog.text
    assert traces.begin_request({}) == ""
