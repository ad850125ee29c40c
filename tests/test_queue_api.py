"""What programs and people do with messages that wait."""

from __future__ import annotations

import pytest
from conftest import OTHER_POOL, PLAIN, POOL, ROOT

LATER = {"Prefer": "respond-async"}


def accept(client, headers=LATER, **fields):
    return client.post("/example.com/send", json={**PLAIN, **fields}, headers={**POOL, **headers})


@pytest.fixture
def deliver(client):
    return client.application.extensions["mailpool"].dispatcher.deliver_due


def outcome(client, message_id):
    path = f"/example.com/messages/{message_id}"
    return client.get(path, headers=POOL).json["outcome"]


@pytest.mark.parametrize(
    "prefer", ["respond-async", "Respond-Async; wait=10", "return=minimal, respond-async"]
)
def test_a_message_is_taken_and_sent_later(client, deliver, prefer):
    answer = accept(client, {"Prefer": prefer})
    assert answer.status_code == 202
    assert answer.json.keys() == {"result", "message_id", "url"}
    assert answer.json["result"] == "queued"
    assert answer.headers["Location"] == answer.json["url"]
    assert answer.headers["Preference-Applied"] == "respond-async"
    message_id = answer.json["message_id"]
    assert answer.json["url"].endswith(f"/example.com/messages/{message_id}")
    assert outcome(client, message_id) == "queued"
    deliver()
    assert outcome(client, message_id) == "sent"


@pytest.mark.parametrize("prefer", ["wait=10", "respond-asynchronously", "handling=lenient"])
def test_who_prefers_something_else_waits_for_the_answer(client, prefer):
    assert accept(client, {"Prefer": prefer}).status_code == 200


def test_a_domain_can_queue_all(make_app, config):
    config["email_services"][0]["send"] = "queued"
    client = make_app(config).test_client()
    answer = accept(client, {})
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


def test_a_batch_has_an_answer_for_each(client, deliver):
    batch = {"messages": [PLAIN, PLAIN, {**PLAIN, "subject": ""}]}
    answer = client.post("/example.com/send", json=batch, headers={**POOL, **LATER})
    assert (answer.status_code, answer.json["result"]) == (207, "mixed")
    assert [result["result"] for result in answer.json["results"]] == ["queued", "queued", "error"]
    batch["messages"].pop()
    answer = client.post("/example.com/send", json=batch, headers={**POOL, **LATER})
    assert (answer.status_code, answer.json["result"]) == (202, "queued")
    assert deliver() == 4


def test_an_idempotency_key_holds_for_what_is_queued(client, deliver):
    key = {**LATER, "Idempotency-Key": "order-1"}
    first = accept(client, key)
    deliver()
    again = accept(client, key)
    assert (again.status_code, again.json) == (202, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert accept(client, key, subject="Another").status_code == 422
    assert deliver() == 0


def test_a_message_for_later_is_queued_where_no_service_holds_it(client, deliver):
    answer = accept(client, {}, send_at="2027-11-01T12:00:00Z")
    assert answer.status_code == 202
    assert deliver() == 0
    (waiting,) = client.get("/example.com/queue", headers=POOL).json["messages"]
    assert waiting["next_try"].startswith("2027-11-01T12:00:00")


def test_a_stream_that_is_not_there_is_a_problem(client):
    answer = accept(client, stream="newsletter", subject="")
    assert answer.status_code == 400
    assert answer.json["problems"] == {
        "stream": "The domain has no such stream. It has: default, bulk.",
        "subject": "It is empty.",
    }


def test_what_waits_is_told_by_stream(client):
    accept(client)
    accept(client, stream="bulk")
    accept(client, stream="bulk", send_at="2027-11-01T12:00:00Z")
    told = client.get("/example.com/queue", headers=POOL).json
    assert len(told["messages"]) == 3
    counts = {name: (d["waiting"], d["scheduled"]) for name, d in told["queue"].items()}
    assert counts == {"default": (1, 0), "bulk": (1, 1)}
    listed = client.get("/example.com", headers=POOL).json["queue"]
    assert listed["bulk"]["waiting"] == 1
    assert (
        client.get("/example.com/queue?stream=bulk", headers=POOL).json["messages"][0]["stream"]
        == "bulk"
    )
    assert client.get("/example.com/queue?stream=x", headers=POOL).json["messages"] == []
    page = client.get("/example.com/queue?format=html", headers=POOL)
    assert page.status_code == 200
    assert "Nothing waits" not in page.text


@pytest.mark.parametrize("way", ["DELETE", "POST"])
def test_what_waits_can_be_cancelled_once(client, deliver, way):
    message_id = accept(client).json["message_id"]
    path = f"/example.com/messages/{message_id}" + ("/cancel" if way == "POST" else "")
    assert client.open(path, method=way).status_code == 401
    assert client.open(path, method=way, headers=OTHER_POOL).status_code == 401
    answer = client.open(path, method=way, headers=POOL)
    assert (answer.status_code, answer.json["outcome"]) == (200, "cancelled")
    assert deliver() == 0
    again = client.open(path, method=way, headers=POOL)
    assert (again.status_code, again.json["code"]) == (409, "not_waiting")
    sent = accept(client).json["message_id"]
    deliver()
    assert client.delete(f"/example.com/messages/{sent}", headers=POOL).status_code == 409


def test_what_waits_can_be_sent_now(client, deliver):
    message_id = accept(client, send_at="2027-11-01T12:00:00Z").json["message_id"]
    path = f"/example.com/messages/{message_id}/send-now"
    assert client.post(path, headers=POOL).status_code == 200
    deliver()
    assert outcome(client, message_id) == "sent"
    assert client.post(path, headers=POOL).json["code"] == "not_waiting"


def test_a_stream_is_paused_with_the_root_key(client, deliver):
    wanted = {"stream": "bulk", "paused": True}
    assert client.post("/example.com/queue", json=wanted, headers=POOL).status_code == 401
    answer = client.post("/example.com/queue", json=wanted, headers=ROOT)
    assert answer.json["queue"]["bulk"]["paused"] is True
    message_id = accept(client, stream="bulk").json["message_id"]
    deliver()
    assert outcome(client, message_id) == "queued"
    client.post("/example.com/queue", json={**wanted, "paused": "false"}, headers=ROOT)
    deliver()
    assert outcome(client, message_id) == "sent"
    bad = client.post("/example.com/queue", json={"stream": "x", "paused": True}, headers=ROOT)
    assert (bad.status_code, bad.json["code"]) == (404, "unknown_stream")


def test_readiness_says_when_the_queue_is_late(client, monkeypatch):
    assert client.get("/readyz").json == {
        "status": "ready",
        "oldest_waiting_seconds": None,
        "queue_is_late": False,
    }
    accept(client)
    told = client.get("/readyz").json
    assert 0 <= told["oldest_waiting_seconds"] < 60
    monkeypatch.setattr("endpoints.operating.LATE_SECONDS", -1)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["queue_is_late"]) == (200, True)


@pytest.mark.parametrize("seconds", [0, -1, "soon", True, 1e12])
def test_a_message_expires_within_reason(client, seconds):
    assert accept(client, expires_in=seconds).json["problems"].keys() == {"expires_in"}


def test_a_form_gives_seconds_as_text(client):
    assert accept(client, expires_in="60.5").status_code == 202
