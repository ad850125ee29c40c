from __future__ import annotations

import base64
import time
from datetime import datetime, timedelta, timezone

import pytest
from clocks import little_work
from conftest import PLAIN, make_message

from email_services.addresses import Address
from email_services.exceptions import InvalidInput, MessageTooLarge
from email_services.message import (
    MAX_RECIPIENTS,
    OTHER_NAMES,
    EmailMessage,
)


def problems_of(**changes) -> dict[str, str]:
    fields = {name: value for name, value in {**PLAIN, **changes}.items() if value is not ...}
    with pytest.raises(InvalidInput) as caught:
        EmailMessage.parse(fields, "example.com")
    return caught.value.problems


@pytest.mark.parametrize(
    "given",
    [
        "a@example.org, b@example.org",
        "a@example.org,b@example.org,",
        "a@example.org\nb@example.org\n",
        ["a@example.org", "b@example.org"],
        ["a@example.org", "b@example.org", "A@example.org"],
    ],
)
def test_recipients_may_be_a_string_or_a_list(given):
    message = make_message(to_recipients=given)
    assert message.to_recipients == [Address("a@example.org"), Address("b@example.org")]


def test_a_comma_inside_quotes_separates_nothing():
    message = make_message(to_recipients='"Doe, Jane" <j@example.org>, "B, C" <b@example.org>')
    assert [address.name for address in message.to_recipients] == ["Doe, Jane", "B, C"]


def test_an_address_is_kept_once_in_the_most_visible_place():
    message = make_message(
        to_recipients=["a@example.org", "A@EXAMPLE.ORG"],
        to_cc=["a@example.org", "b@example.org"],
        to_bcc=["B@example.org", "c@example.org", "c@example.org"],
    )
    assert [message.to_recipients, message.to_cc, message.to_bcc] == [
        [Address("a@example.org")],
        [Address("b@example.org")],
        [Address("c@example.org")],
    ]


def test_the_senders_name_may_be_in_either_place_and_its_own_field_wins():
    assert make_message(from_email="Me <me@example.com>").from_email.name == "Me"
    assert make_message(from_name="Us").from_email.name == "Us"
    assert make_message(from_email="Me <me@example.com>", from_name="Us").from_email.name == "Us"


def test_every_parse_has_an_id_of_its_own():
    first, second = make_message(), make_message()
    assert first.message_id != second.message_id
    assert len(first.message_id) == 32


OPTIONAL = [name for name, field in EmailMessage.model_fields.items() if not field.is_required()]


@pytest.mark.parametrize(
    "optional", sorted({*OPTIONAL} - {"to_recipients", "raw_text_body", "dry_run"})
)
@pytest.mark.parametrize("nothing", [None, ""])
def test_an_optional_field_may_be_null_or_empty(optional, nothing):
    assert make_message(**{optional: nothing}).model_dump() == make_message().model_dump()


PROBLEMS = {
    "a missing sender": ({"from_email": ...}, {"from_email": "Required."}),
    "an unknown field": (
        {"to_recipient": "a@example.org"},
        {"to_recipient": "Unknown field. Did you mean 'to_recipients'?"},
    ),
    "an unknown field like no other": ({"zzz": 1}, {"zzz": "Unknown field."}),
    "another domain": (
        {"from_email": "me@example.net"},
        {"from_email": "It should be an address at example.com, the domain in the URL."},
    ),
    "a domain below": (
        {"from_email": "me@news.example.com"},
        {"from_email": "It should be an address at example.com, the domain in the URL."},
    ),
    "an empty subject": ({"subject": ""}, {"subject": "It is empty."}),
    "a blank subject": ({"subject": " \u00a0 "}, {"subject": "It is empty."}),
    "a line break in the subject": (
        {"subject": "Hello\r\nBcc: eve@example.org"},
        {"subject": "It holds a line break or another control character."},
    ),
    "a line break in a name": (
        {"from_name": "Me\nBcc: eve@example.org"},
        {"from_name": "It holds a line break or another control character."},
    ),
    "half a surrogate pair": (
        {"html_body": "\ud800"},
        {"html_body": "It holds half of a surrogate pair, which is no text."},
    ),
    "a NUL in the body": ({"raw_text_body": "a\0"}, {"raw_text_body": "It holds a NUL character."}),
    "an encoded word in the subject": (
        {"subject": "=?utf-8?q?hi=0d=0aReply-To:_evil=40x.org?="},
        {"subject": "It holds an encoded word (=?...?=); write the text itself."},
    ),
    "an encoded word in a name": (
        {"from_email": "=?utf-8?q?x=0aBcc=3A_e=40x.org?= <me@example.com>"},
        {"from_email": "It holds an encoded word (=?...?=); write the text itself."},
    ),
    "an encoded word for an address": (
        {"to_cc": ["=?utf-8?q?a=40evil.org=3E=2C=3Cb?=@example.org"]},
        {"to_cc.0": "It holds an encoded word (=?...?=), which is no address."},
    ),
    "a subject that is too long": (
        {"subject": "x" * 999},
        {"subject": "It is longer than 998 characters."},
    ),
    "no recipient": (
        {"to_recipients": []},
        {"to_recipients": "Required: a message needs at least one recipient."},
    ),
    "no recipient but commas": (
        {"to_recipients": " , "},
        {"to_recipients": "Required: a message needs at least one recipient."},
    ),
    "an empty address": (
        {"to_bcc": ["a@example.org", ""]},
        {"to_bcc.1": "It is empty; an email address is needed."},
    ),
    "no body": (
        {"raw_text_body": " \n", "html_body": ""},
        {"raw_text_body": "Required: a message needs a text or an HTML body, not empty."},
    ),
    "a header that is ours": (
        {"headers": {"X-One": "1", "reply-TO": "a@example.org"}},
        {"headers": "The header reply-TO is set by this service or by the provider."},
    ),
    "a header of the MIME structure": (
        {"headers": {"Content-Type": "text/html"}},
        {"headers": "The header Content-Type is set by this service or by the provider."},
    ),
    "a header that orders one provider about": (
        {"headers": {"X-SES-Configuration-Set": "x"}},
        {
            "headers": "The header X-SES-Configuration-Set is set by this service or by the "
            "provider."
        },
    ),
    "a header's name that is none": (
        {"headers": {"X One:": "1"}},
        {"headers": "The name of a header has letters, digits, - and _, at most 126."},
    ),
    "a line break in a header": (
        {"headers": {"X-One": "1\r\nBcc: eve@example.org"}},
        {"headers": "It holds a line break or another control character."},
    ),
    "a header beyond ASCII": (
        {"headers": {"X-One": "é"}},
        {"headers": "X-One should hold 1 to 995 printable ASCII characters."},
    ),
    "an empty header": (
        {"headers": {"X-One": " "}},
        {"headers": "X-One should hold 1 to 995 printable ASCII characters."},
    ),
    "a header twice": (
        {"headers": {"X-One": "1", "x-one": "2"}},
        {"headers": "A header is given twice; case makes no difference."},
    ),
    "headers that are no object": ({"headers": ["X"]}, {"headers": "It should be an object."}),
    "headers that are no lines": (
        {"headers": "X-One"},
        {"headers": 'It should hold one "name: value" on each line.'},
    ),
    "a number in a header": (
        {"headers": {"X-One": 1}},
        {"headers.X-One": "It should be a string."},
    ),
    "a tag that is too long": (
        {"tags": ["x" * 129]},
        {"tags": "A tag is 1 to 128 printable ASCII characters."},
    ),
    "an eleventh tag": (
        {"tags": [str(n) for n in range(11)]},
        {"tags": "It should hold at most 10."},
    ),
    "a key of metadata with a space": (
        {"metadata": {"a b": "1"}},
        {"metadata": "A key is a letter followed by letters, digits, - and _, at most 64 in all."},
    ),
    "metadata of our own": (
        {"metadata": {"Mailpool_ID": "1"}},
        {"metadata": "Mailpool_ID is set by this service, to its own id of the message."},
    ),
    "empty metadata": (
        {"metadata": {"a": ""}},
        {"metadata": "The value of a should have 1 to 500 characters."},
    ),
    "a time without a zone": (
        {"send_at": "2999-01-01T00:00:00"},
        {"send_at": "It should be a time in ISO 8601 with its zone: 2026-11-24T12:00:00Z."},
    ),
    "a time that has passed": ({"send_at": "2020-01-01T00:00:00Z"}, {"send_at": "It has passed."}),
    "a number for a time": (
        {"send_at": 32472144000},
        {"send_at": "It should be a time in ISO 8601 with its zone: 2026-11-24T12:00:00Z."},
    ),
    "tracking that is neither on nor off": (
        {"track_opens": "perhaps"},
        {"track_opens": "It should be true or false."},
    ),
    "an image that is not there": (
        {"html_body": '<img src="cid:logo">'},
        {"html_body": "It shows cid:logo, and inline has no such content_id."},
    ),
    "an address to answer to that is none": (
        {"reply_to": ["a@example.org", "b"]},
        {
            "reply_to.1": "An email address must have an @-sign.",
        },
    ),
    "a substitution without a value": (
        {"subject": "Hello {{name}}", "substitutions": {"nam": "Ada"}},
        {"substitutions": "There is no value for {{name}}."},
    ),
    "a substitution that breaks the subject": (
        {"subject": "Hello {{name}}", "substitutions": {"name": "Ada\r\nBcc: e@example.org"}},
        {"subject": "With its substitutions: It holds a line break or another control character."},
    ),
    "a substitution's name that is none": (
        {"substitutions": {"a b": "1"}},
        {"substitutions": "A name is 1 to 64 letters, digits and _."},
    ),
    "a number for a subject": ({"subject": 5}, {"subject": "It should be a string."}),
    "an object for addresses": ({"to_cc": {"a": 1}}, {"to_cc": "It should be a list."}),
    "a number for an address": (
        {"to_cc": [7]},
        {"to_cc.0": "It should be a string with one email address."},
    ),
    "too many recipients in one field": (
        {"to_bcc": [f"{n}@example.org" for n in range(1001)]},
        {
            "to_recipients": "Too many recipients: 1002 over to, cc and bcc, and 1000 are allowed.",
        },
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_is_named_at_its_field(problem):
    changes, expected = PROBLEMS[problem]
    assert problems_of(**changes) == expected


FOREIGN = {
    "from": "from_email",
    "From": "from_email",
    "sender": "from_email",
    "to": "to_recipients",
    "To": "to_recipients",
    "recipients": "to_recipients",
    "cc": "to_cc",
    "Bcc": "to_bcc",
    "ReplyTo": "reply_to",
    "h:Reply-To": "reply_to",
    "title": "subject",
    "text": "raw_text_body",
    "body": "raw_text_body",
    "TextBody": "raw_text_body",
    "html": "html_body",
    "htmlContent": "html_body",
    "attachment": "attachments",
    "images": "inline",
    "o:tag": "tags",
    "categories": "tags",
    "custom_args": "metadata",
    "scheduledAt": "send_at",
    "o:deliverytime": "send_at",
    "dynamic_template_data": "substitutions",
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_other_services_call_a_field_is_met_with_what_it_is_called_here(foreign):
    problem = f"Unknown field. Did you mean '{FOREIGN[foreign]}'?"
    assert problems_of(**{foreign: "x"}) == {foreign: problem}


def test_every_other_name_leads_to_a_field_and_is_none_itself():
    assert set(OTHER_NAMES.values()) <= set(EmailMessage.model_fields)
    assert not set(OTHER_NAMES) & set(EmailMessage.model_fields)
    assert {name.lower() for name in OTHER_NAMES} == set(OTHER_NAMES)


def test_a_message_as_another_service_takes_it_is_met_with_every_name_at_once():
    fields = {"from": "me@example.com", "to": "a@example.org", "subject": "Hi", "text": "Hello"}
    with pytest.raises(InvalidInput) as caught:
        EmailMessage.parse(fields, "example.com")
    assert {path: problem for path, problem in caught.value.problems.items() if path in fields} == {
        "from": "Unknown field. Did you mean 'from_email'?",
        "to": "Unknown field. Did you mean 'to_recipients'?",
        "text": "Unknown field. Did you mean 'raw_text_body'?",
    }


def test_all_problems_are_named_at_once():
    problems = problems_of(
        from_email="me@example.net",
        from_name="a\nb",
        to_recipients=["a@example.org", "nobody"],
        to_cc=["a@example.org\nBcc: b@example.org"],
        to_bcc=5,
        subject="",
        raw_text_body="",
        html_body=None,
        colour="red",
    )
    assert sorted(problems) == [
        "colour",
        "from_email",
        "from_name",
        "raw_text_body",
        "subject",
        "to_bcc",
        "to_cc.0",
        "to_recipients.1",
    ]


def test_no_problem_repeats_the_body():
    secret = "a secret that ends in a NUL \0"
    assert secret not in str(problems_of(raw_text_body=secret, html_body=[secret]))


def test_as_many_recipients_as_allowed_are_taken():
    message = make_message(
        to_recipients=[f"{n}@example.org" for n in range(MAX_RECIPIENTS - 1)], to_cc="c@example.org"
    )
    assert len(message.recipients) == MAX_RECIPIENTS


def test_quotes_that_never_end_cost_no_time():
    with little_work():
        problems_of(to_recipients='"' + '\\"' * 200_000)


def test_a_million_recipients_are_counted_and_not_parsed():
    with little_work():
        problems_of(to_recipients=["not an address"] * 1_000_000, subject="")


def test_a_form_gives_headers_and_metadata_as_lines():
    message = make_message(
        headers="X-One: 1\r\nX-Two:  a: b \n\n", metadata="order: 42", tags="a, b"
    )
    assert message.headers == {"X-One": "1", "X-Two": "a: b"}
    assert message.metadata == {"order": "42"}
    assert message.tags == ["a", "b"]


def test_a_tag_counts_once():
    assert make_message(tags=["a", "b", "a"]).tags == ["a", "b"]


@pytest.mark.parametrize(("given", "is_on"), [(True, True), ("true", True), ("false", False)])
def test_tracking_is_on_off_or_the_providers_choice(given, is_on):
    assert make_message(track_opens=given).track_opens is is_on
    assert make_message().track_opens is None


def test_a_time_is_understood_with_its_zone():
    tomorrow = datetime.now(timezone(timedelta(hours=2))) + timedelta(days=1)
    at = make_message(send_at=tomorrow.isoformat()).send_at
    assert (at, at.utcoffset()) == (tomorrow, timedelta(hours=2))


def test_a_time_that_has_just_passed_means_now():
    just_now = datetime.fromtimestamp(time.time() - 60, timezone.utc)
    assert make_message(send_at=just_now.isoformat()).send_at == just_now


def test_a_missing_text_is_read_out_of_the_html_and_never_the_reverse():
    html = '<h1>Hi</h1><p>See <a href="https://example.com/a">this</a></p><style>p {}</style>'
    message = make_message(raw_text_body="", html_body=html)
    assert message.raw_text_body == "Hi\n\nSee [this](https://example.com/a)"
    assert make_message(raw_text_body="Hi").html_body == ""
    assert make_message(raw_text_body="Own", html_body=html).raw_text_body == "Own"


HOSTILE_HTML = {
    "deep": "<div>" * 100_000,
    "tables in tables": "<table><tr><td>" * 5_000,
    "lists in lists": "<ul><li>" * 5_000,
    "a huge span": '<table><tr><td colspan="99999999" rowspan="99999999">x</td></tr></table>',
    "huge space": '<div style="padding-left: 999999999em; margin-top: 999999999em">x</div>',
    "an XML declaration": '<?xml version="1.0" encoding="utf-7"?><p>x</p>',
    "an entity of entities": '<!DOCTYPE x [<!ENTITY a "&b;"><!ENTITY b "&a;">]><p>&a;</p>',
    "characters that are none": "<p>&#xd800;&#0;\x01</p>",
    "no markup at all": "a < b",
    "a comment that never ends": "<!-- x",
}


@pytest.mark.parametrize("name", HOSTILE_HTML)
def test_hostile_html_is_carried_as_it_is_and_costs_no_time(name):
    with little_work():
        message = make_message(raw_text_body="", html_body=HOSTILE_HTML[name])
        message.raw_text_body.encode()
    assert message.html_body == HOSTILE_HTML[name]


def test_substitutions_are_filled_in_and_html_shows_them_as_text():
    message = make_message(
        subject="Hello {{name}}",
        raw_text_body="Dear {{ name }}, {{name",
        html_body="<p>{{name}} {{order}}</p>",
        substitutions={"name": "<b> & {{order}}", "order": "42"},
    ).rendered()
    assert message.subject == "Hello <b> & {{order}}"
    assert message.raw_text_body == "Dear <b> & {{order}}, {{name"
    assert message.html_body == "<p>&lt;b&gt; &amp; {{order}} 42</p>"


def test_without_substitutions_braces_are_text():
    assert make_message(raw_text_body="{{name}}").rendered().raw_text_body == "{{name}}"


def test_a_message_for_some_of_its_recipients_keeps_its_id():
    message = make_message(
        to_recipients=["a@example.org", "B@example.org"], to_cc="c@example.org", to_bcc=None
    )
    some = message.only_for({"b@example.org", "c@example.org"})
    assert [address.email for address in some.recipients] == ["B@example.org", "c@example.org"]
    assert some.message_id == message.message_id


def test_a_message_that_is_too_large_is_refused_as_such():
    file = {"filename": "a.pdf", "content": base64.b64encode(b"x" * 2000).decode()}
    fields = {**PLAIN, "attachments": [file]}
    assert EmailMessage.parse(fields, "example.com", max_bytes=2009).size == 2009
    with pytest.raises(MessageTooLarge) as caught:
        EmailMessage.parse(fields, "example.com", max_bytes=2008)
    assert caught.value.problems == {
        "attachments": "The message has 2,009 bytes, and 2,008 are allowed."
    }


BOMBS = {
    "a subject": {"subject": "=?a" * 400_000},
    "a name": {"from_name": "=?a" * 400_000},
    "an address": {"to_cc": "=?a" * 100_000 + "@example.org"},
    "a header": {"headers": {"X-One": "=?a" * 400_000}},
    "substitutions": {"raw_text_body": "{{a}}" * 20_000, "substitutions": {"a": "x" * 10_000}},
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_ages_or_all_memory_is_refused_at_once(name):
    with little_work():
        problems_of(**BOMBS[name])


@pytest.mark.parametrize(
    ("body", "grown"),
    [("raw_text_body", 10_000), ("html_body", 20_000)],
    ids=["in a text", "in HTML and in the text that is read out of it"],
)
def test_what_substitutions_add_counts_as_part_of_the_message(body, grown):
    fields = {**PLAIN, "raw_text_body": "", "substitutions": {"a": "x" * 1000}}
    fields[body] = "{{a}}" * 10
    with pytest.raises(MessageTooLarge) as caught:
        EmailMessage.parse(fields, "example.com", max_bytes=grown + 49)
    assert caught.value.problems == {
        "substitutions": f"The message has {grown + 50:,} bytes with its substitutions, "
        f"and {grown + 49:,} are allowed."
    }
    assert EmailMessage.parse(fields, "example.com", max_bytes=grown + 50)


def test_an_encoded_word_is_refused_in_a_tag():
    assert list(problems_of(tags=["=?utf-8?q?=0d=0aEvil:_1?="])) == ["tags"]
