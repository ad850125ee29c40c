from __future__ import annotations

import email
import itertools
import json
import time

import pytest
from conftest import POOL_KEY, make_message
from test_batch import Scripted

from email_services.abstract import Acceptance
from email_services.addresses import parse_address
from email_services.exceptions import InvalidInput, MessageRejected, OutcomeUnknown
from email_services.guard import ORIGINAL_TO, Guard, Pattern
from email_services.ledger import Once
from email_services.pool import PooledEmailService
from email_services.queue.dispatcher import Dispatcher
from endpoints.sending.answers import delivery_as_dict, plan_as_dict

STAGING = parse_address("Staging <staging@example.com>")
FIELDS = ("to_recipients", "to_cc", "to_bcc")


def guard(*patterns, redirect_to=None) -> Guard:
    return Guard([Pattern.parse(p) for p in patterns] if patterns else None, redirect_to)


@pytest.fixture
def make_pool(store):
    def make(*services, **options) -> PooledEmailService:
        return PooledEmailService("example.com", services, store, **options)

    return make


MATCHES = [
    ("ada@example.org", "ada@example.org", True),
    ("Ada@Example.ORG", "aDA@exAmple.org", True),
    ("ada@example.org", "ada+x@example.org", False),
    ("ada@example.org", "bada@example.org", False),
    ("ada@example.org", "ada@example.org.evil.test", False),
    ("*@example.com", "anybody@example.com", True),
    ("*@example.com", "any+tag@EXAMPLE.com", True),
    ("*@example.com", "a@sub.example.com", False),
    ("*@example.com", "a@notexample.com", False),
    ("*@example.com", "a%evil.test@example.org", False),
    ("*@*.example.com", "a@sub.example.com", True),
    ("*@*.example.com", "a@very.sub.example.com", True),
    ("*@*.example.com", "a@example.com", False),
    ("*@*.example.com", "a@notexample.com", False),
    ("ada@*.example.com", "ada@sub.example.com", True),
    ("ada@*.example.com", "bob@sub.example.com", False),
    ("*@bücher.example", "a@xn--bcher-kva.example", True),
    ("*@xn--bcher-kva.example", "a@BÜCHER.example", True),
    ("*@example.com", "a@ex\u0430mple.com", False),  # with a Cyrillic a
    ("*@example.com", "a@example\u3002com", True),  # a dot to those who write in Japanese
    ("zoë@example.com", "zoe\u0308@example.com", True),  # composed, or not
]


@pytest.mark.parametrize(("pattern", "address", "matches"), MATCHES)
def test_a_pattern_is_for_those_who_are_named_and_nobody_else(pattern, address, matches):
    assert Pattern.parse(pattern).matches(parse_address(address)) is matches


WRONG = [
    "",
    "*",
    "example.com",
    "@example.com",
    "a*@example.com",
    "**@example.com",
    "*@*",
    "*@*.com",
    "*@ex*mple.com",
    "*@a.*.example.com",
    "*@*example.com",
    "*@*.*.example.com",
    "Ada <ada@example.org>",
    "ada@example.org, bob@example.org",
    '"a@b"@example.com',
    "ada@[127.0.0.1]",
    "*@localhost",
]


@pytest.mark.parametrize("written", WRONG)
def test_a_pattern_that_could_be_read_in_two_ways_is_refused(written):
    with pytest.raises(ValueError, match="everybody at a domain"):
        Pattern.parse(written)


SPELLINGS = [
    "eve@evil.test",
    "EVE@EVIL.TEST",
    "ada@example.com.evil.test",
    "ada%example.com@evil.test",
    "ada+example.com@evil.test",
    "ada@example.com <eve@evil.test>",
    '"ada@example.com" <eve@evil.test>',
    '"ada@example.com," <eve@evil.test>',
    "Ada\\@example.com <eve@evil.test>",
    "eve@ex\u0430mple.com",
    "éve@evil.test",
    '"eve@evil.test>, <ada"@example.com',
    "<eve@evil.test>ada@example.com",
    "eve@evil.test\n<ada@example.com>",
    "eve@evil.test,ada@example.com",
    "eve@evil.test ada@example.com",
    "(ada@example.com)eve@evil.test",
    "@example.com:eve@evil.test",
]


@pytest.mark.parametrize("redirect_to", [None, STAGING], ids=["dropped", "redirected"])
@pytest.mark.parametrize(("field", "spelling"), list(itertools.product(FIELDS, SPELLINGS)))
def test_no_spelling_slips_through(field, spelling, redirect_to, make_pool):
    service = Scripted("only")
    pool = make_pool(service, guard=guard("*@example.com", redirect_to=redirect_to))
    fields = {"to_recipients": ["ada@example.com"], field: ["bob@example.com", spelling]}
    try:
        message = make_message(**fields)
    except InvalidInput:
        return  # it is no address at all
    pool.send(message)
    for sent in service.messages:
        assert {a.domain for a in sent.recipients} == {"example.com"}


def test_without_a_guard_a_message_is_as_it_came(make_pool):
    service = Scripted("only")
    message = make_message(to_recipients="eve@evil.test")
    answer = delivery_as_dict(make_pool(service).send(message))
    assert service.messages == [message]
    assert not {"kept_back", "redirected_to"} & answer.keys()


def test_others_are_dropped_and_the_answer_says_whom_it_did_not_reach(make_pool):
    service = Scripted("only")
    pool = make_pool(service, guard=guard("*@example.com"))
    message = make_message(
        to_recipients=["ada@example.com", "Eve@evil.test"], to_bcc="mallory@evil.test"
    )
    answer = delivery_as_dict(pool.send(message))
    assert service.calls == [["ada@example.com"]]
    assert ORIGINAL_TO not in service.messages[0].headers
    assert answer["result"] == "partial"
    assert answer["kept_back"] == ["eve@evil.test", "mallory@evil.test"]
    assert "redirected_to" not in answer
    assert [(r["email"], r["outcome"], r["service"]) for r in answer["recipients"]] == [
        ("ada@example.com", "sent", "only"),
        ("eve@evil.test", "not sent", ""),
        ("mallory@evil.test", "not sent", ""),
    ]


def test_a_message_for_nobody_is_a_refusal_of_its_own(make_pool, store):
    service = Scripted("only")
    pool = make_pool(service, guard=guard("*@example.com"))
    message = make_message(to_recipients="eve@evil.test")
    delivery = pool.send(message, once=Once("key", "print"))
    assert service.calls == []
    assert (delivery.outcome, delivery.code, delivery.rejected) == ("not sent", "kept_back", True)
    assert delivery.retry_after is None
    assert delivery_as_dict(delivery)["kept_back"] == ["eve@evil.test"]
    (logged,) = store.messages("example.com", time.time())
    assert (logged.outcome, logged.kept_back) == ("not sent", ("eve@evil.test",))
    # The key is free: once the guard is another one, the same request is sent.
    pool.guard = guard("*@evil.test")
    assert pool.send(message, once=Once("key", "print")).outcome == "sent"


def test_what_is_refused_by_every_service_is_not_said_to_be_kept_back(make_pool):
    service = Scripted("only", lambda _: MessageRejected("no"))
    pool = make_pool(service, guard=guard("*@example.com"))
    delivery = pool.send(make_message(to_recipients="ada@example.com, eve@evil.test"))
    assert delivery.code == "message_refused"
    assert delivery.kept_back == ("eve@evil.test",)


def test_redirected_a_message_keeps_its_bodies_and_says_whom_it_was_for(make_pool, store):
    service = Scripted("only")
    pool = make_pool(service, guard=guard("*@example.com", redirect_to=STAGING))
    message = make_message(
        to_recipients=["Eve <eve@evil.test>", "ada@example.com"],
        to_cc=["bob@evil.test", "éva@evil.test"],
        to_bcc=["mallory@evil.test"],
        html_body="<p>Hello</p>",
        headers={"x-original-to": "somebody", "X-Order": "42"},
    )
    delivery = pool.send(message)
    (sent,) = service.messages
    assert sent.to_recipients == [STAGING, parse_address("ada@example.com")]
    assert (sent.to_cc, sent.to_bcc) == ([], [])
    assert sent.headers == {
        "X-Order": "42",
        ORIGINAL_TO: r"eve@evil.test, bob@evil.test, \x{E9}va@evil.test",
    }
    for name in ("subject", "raw_text_body", "html_body", "message_id", "from_email"):
        assert getattr(sent, name) == getattr(message, name)
    answer = delivery_as_dict(delivery)
    assert answer["result"] == "success"
    assert answer["redirected_to"] == "staging@example.com"
    assert answer["kept_back"] == [
        "eve@evil.test",
        "bob@evil.test",
        "éva@evil.test",
        "mallory@evil.test",
    ]
    (logged,) = store.messages("example.com", time.time())
    assert logged.redirected_to == "staging@example.com"
    assert list(logged.kept_back) == answer["kept_back"]
    assert logged.recipients[0] == "eve@evil.test"


def test_who_was_in_bcc_alone_stays_unseen(make_pool):
    service = Scripted("only")
    pool = make_pool(service, guard=guard("*@example.com", redirect_to=STAGING))
    pool.send(make_message(to_recipients="ada@example.com", to_bcc="eve@evil.test"))
    (sent,) = service.messages
    assert sent.to_bcc == [STAGING]
    assert ORIGINAL_TO not in sent.headers


def test_where_only_redirect_to_is_set_everything_goes_there(make_pool):
    service = Scripted("only")
    pool = make_pool(service, guard=guard(redirect_to=STAGING))
    delivery = pool.send(make_message(to_recipients="ada@example.com, STAGING@example.com"))
    assert service.calls == [["staging@example.com"]]
    assert delivery.kept_back == ("ada@example.com",)


def test_a_thousand_originals_fit_into_one_header(make_pool):
    service = Scripted("only")
    pool = make_pool(service, guard=guard(redirect_to=STAGING))
    pool.send(make_message(to_recipients=[f"person{n}@evil.test" for n in range(1000)]))
    (sent,) = service.messages
    assert len(sent.headers[ORIGINAL_TO]) < 995
    named = sent.headers[ORIGINAL_TO].split(", ")
    assert named[-1] == f"and {1000 - len(named) + 1} more"


def test_the_next_service_gets_it_guarded_too(make_pool):
    first = Scripted("first", lambda _: OutcomeUnknown("silence"), priority=2)
    second = Scripted("second")
    pool = make_pool(first, second, guard=guard("*@example.com"))
    pool.send(make_message(to_recipients="ada@example.com", to_cc="eve@evil.test"))
    assert first.calls == second.calls == [["ada@example.com"]]


def test_who_was_refused_by_one_service_is_kept_apart_from_who_was_kept_back(make_pool):
    refused = {"ada@example.com": "full"}
    first = Scripted("first", lambda _: Acceptance("1", refused), priority=2)
    second = Scripted("second", lambda _: MessageRejected("full there too"))
    pool = make_pool(first, second, guard=guard("*@example.com"))
    delivery = pool.send(
        make_message(to_recipients=["ada@example.com", "bob@example.com", "eve@evil.test"])
    )
    assert [(r.email, r.outcome, r.service) for r in delivery.recipients] == [
        ("ada@example.com", "not sent", "second"),
        ("bob@example.com", "sent", "first"),
        ("eve@evil.test", "not sent", ""),
    ]


def test_substitutions_change_no_recipient_and_batches_are_guarded_one_by_one(make_pool):
    service = Scripted("only", max_batch=10)
    pool = make_pool(service, guard=guard("*@example.com", redirect_to=STAGING))
    messages = [
        make_message(
            to_recipients=to,
            subject="{{a}}",
            substitutions={"a": "To: eve@evil.test", "ada": "eve@evil.test"},
        )
        for to in ("ada@example.com", "eve@evil.test", "{{ada}}@example.com", "x@evil.test")
    ]
    deliveries = pool.send_all(messages)
    assert {delivery.outcome for delivery in deliveries} == {"sent"}
    assert {a.domain for m in service.messages for a in m.recipients} == {"example.com"}
    assert [d.redirected_to is None for d in deliveries] == [True, False, True, False]


def test_a_dry_run_says_what_the_guard_would_do(make_pool):
    pool = make_pool(Scripted("only"), guard=guard("*@example.com"))
    some = make_message(to_recipients="ada@example.com, eve@evil.test")
    none = make_message(to_recipients="eve@evil.test")
    for message, decision in ((some, "try"), (none, "skip")):
        plan = plan_as_dict(pool.plan(message), pool.guard.apply(message)[1])
        assert [step["decision"] for step in plan["plan"]] == [decision]
        assert plan["kept_back"] == ["eve@evil.test"]


def test_a_replayed_answer_says_the_same(make_pool):
    pool = make_pool(Scripted("only"), guard=guard(redirect_to=STAGING))
    message, once = make_message(to_recipients="eve@evil.test"), Once("key", "print")
    first, again = pool.send(message, once=once), pool.send(message, once=once)
    assert again.replayed
    assert delivery_as_dict(again) == delivery_as_dict(first)


MESSAGE = {
    "from_email": "me@example.com",
    "to_recipients": ["ada@example.org", "eve@evil.test"],
    "subject": "Hello",
    "raw_text_body": "It works.",
}
KEY = {"Authorization": f"Bearer {POOL_KEY}"}


@pytest.fixture
def make_client(make_app, config):
    def make(**settings):
        config["email_services"][0].update(settings)
        return make_app(config).test_client()

    return make


def test_over_http_a_message_is_redirected_and_its_page_says_so(make_client, tmp_path):
    client = make_client(
        deliver_only_to=["*@example.org", "ops@*.example.net"], redirect_to="Q <q@example.com>"
    )
    answer = client.post("/example.com/send", json=MESSAGE, headers=KEY)
    assert (answer.status_code, answer.json["redirected_to"]) == (200, "q@example.com")
    (kept,) = (tmp_path / "primary" / "new").iterdir()
    mail = email.message_from_bytes(kept.read_bytes())
    assert mail[ORIGINAL_TO] == "eve@evil.test"
    assert mail["To"] == "ada@example.org, Q <q@example.com>"
    address = f"/example.com/messages/{answer.json['message_id']}"
    logged = client.get(address, headers=KEY).json
    assert logged["kept_back"] == ["eve@evil.test"]
    assert logged["redirected_to"] == "q@example.com"
    page = client.get(address, headers={**KEY, "Accept": "text/html"}).text
    assert "This domain does not deliver to eve@evil.test." in page
    listed = client.get("/example.com", headers=KEY).json
    assert listed["deliver_only_to"] == ["*@example.org", "ops@*.example.net"]
    assert listed["redirect_to"] == "q@example.com"
    assert "deliver_only_to" not in client.get("/example.com").json


def test_over_http_what_nobody_may_get_is_422(make_client):
    client = make_client(deliver_only_to=["ada@example.net"])
    answer = client.post("/example.com/send", json=MESSAGE, headers=KEY)
    assert (answer.status_code, answer.json["code"]) == (422, "kept_back")
    through = client.post("/example.com/backup/send", json=MESSAGE, headers=KEY)
    assert (through.status_code, through.json["code"]) == (422, "kept_back")
    batch = client.post("/example.com/send", json={"messages": [MESSAGE]}, headers=KEY)
    assert (batch.status_code, batch.json["code"]) == (503, "batch_refused")
    dry = client.post("/example.com/send", json={**MESSAGE, "dry_run": True}, headers=KEY).json
    assert {step["decision"] for step in dry["plan"]} == {"skip"}
    assert json.dumps(dry).count("evil.test") == 1


def test_what_waits_is_guarded_when_it_is_delivered(make_client, tmp_path):
    client = make_client(deliver_only_to=["*@example.org"], redirect_to="q@example.com")
    mailpool = client.application.extensions["mailpool"]
    pool = mailpool.pools["example.com"]
    queued = client.post(
        "/example.com/send", json=MESSAGE, headers={**KEY, "Prefer": "respond-async"}
    )
    assert (queued.status_code, queued.json["redirected_to"]) == (202, "q@example.com")
    pool.guard = guard("*@example.org")  # as a restart would have it that takes over another
    assert Dispatcher([pool], mailpool.store).deliver_due() == 1
    (kept,) = (tmp_path / "primary" / "new").iterdir()
    assert email.message_from_bytes(kept.read_bytes())["To"] == "ada@example.org"


def test_what_nobody_may_get_does_not_wait(make_client):
    client = make_client(deliver_only_to=["ada@example.net"], send="queued")
    answer = client.post("/example.com/send", json=MESSAGE, headers=KEY)
    assert (answer.status_code, answer.json["code"]) == (422, "kept_back")
