from __future__ import annotations

import time

import pytest
from conftest import PLAIN, make_message

from email_services.exceptions import InvalidInput
from email_services.message import (
    MAX_RECIPIENTS,
    Address,
    EmailMessage,
    canonical_domain,
    parse_address,
)


def problems_of(**changes) -> dict[str, str]:
    fields = {name: value for name, value in {**PLAIN, **changes}.items() if value is not ...}
    with pytest.raises(InvalidInput) as caught:
        EmailMessage.parse(fields, "example.com")
    return caught.value.problems


ADDRESSES = {
    "ada@example.org": Address("ada@example.org"),
    " ada@example.org ": Address("ada@example.org"),
    "<ada@example.org>": Address("ada@example.org"),
    "Ada <ada@example.org>": Address("ada@example.org", "Ada"),
    "Ada Lovelace<ada@example.org>": Address("ada@example.org", "Ada Lovelace"),
    "Jörg Müller <j@example.org>": Address("j@example.org", "Jörg Müller"),
    "A. B. O'Neil <a@example.org>": Address("a@example.org", "A. B. O'Neil"),
    '"Doe, Jane" <j@example.org>': Address("j@example.org", "Doe, Jane"),
    r'"The \"Boss\" \\" <b@example.org>': Address("b@example.org", 'The "Boss" \\'),
    "ada@Bücher.example": Address("ada@xn--bcher-kva.example"),
    "ada@xn--bcher-kva.example": Address("ada@xn--bcher-kva.example"),
    "Ada.Lovelace+x@EXAMPLE.org": Address("Ada.Lovelace+x@example.org"),
    "jörg@example.org": Address("jörg@example.org"),
    "ada@example.test": Address("ada@example.test"),
}


@pytest.mark.parametrize("written", ADDRESSES)
def test_an_address_is_understood(written):
    assert parse_address(written) == ADDRESSES[written]


@pytest.mark.parametrize("written", ADDRESSES)
def test_an_address_survives_being_written_and_read(written):
    address = ADDRESSES[written]
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "ada",
        "ada@",
        "@example.org",
        "ada@example",
        "ada@localhost",
        "ada@[127.0.0.1]",
        "a b@example.org",
        "ada@example..org",
        "ada@-example.org",
        "ada@example.org, bob@example.org",
        "ada@example.org, Bob <bob@example.org>",
        "Ada <ada@example.org> Lovelace",
        "Doe, Jane <jane@example.org>",
        "Ada <>",
        "Ada <ada@example.org",
        "ada@example.org\nBcc: eve@example.org",
        "Ada\r\nBcc: eve <ada@example.org>",
        "Ada\x00 <ada@example.org>",
        "Ada\u2028 <ada@example.org>",
        "Ada\ud800 <ada@example.org>",
        "a@" + "x" * 300 + ".org",
        '"' * 5000 + " <ada@example.org>",
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence(written):
    with pytest.raises(ValueError, match=r"\w+ .*"):
        parse_address(written)


def test_hostile_addresses_cost_no_time():
    started = time.monotonic()
    encoded = "=?utf-8?q?x=0aBcc:_eve=40x.org?="
    many = 100_000
    hostile_ones = ('"' * many, '"\\' * many, "<" * many, " " * many, "a <" * many)
    for hostile in (f"{encoded}@example.org", "a" + " " * many + "b", *hostile_ones):
        with pytest.raises(ValueError, match=r"\w+"):
            parse_address(hostile)
    assert time.monotonic() - started < 5


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


@pytest.mark.parametrize("optional", ["from_name", "to_cc", "to_bcc", "html_body"])
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
    "a number for a subject": ({"subject": 5}, {"subject": "It should be a valid string."}),
    "an object for addresses": ({"to_cc": {"a": 1}}, {"to_cc": "It should be a valid list."}),
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
    started = time.monotonic()
    problems_of(to_recipients='"' + '\\"' * 200_000)
    assert time.monotonic() - started < 2


def test_a_million_recipients_are_counted_and_not_parsed():
    started = time.monotonic()
    problems_of(to_recipients=["not an address"] * 1_000_000, subject="")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.com.", "example.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_a_domain_has_one_spelling(written, canonical):
    assert canonical_domain(written) == canonical


@pytest.mark.parametrize(
    "written", ["", ".", "a b.example", "x" * 64 + ".example", "a..b", "a/b.example", "localhost"]
)
def test_what_is_no_domain_is_refused(written):
    with pytest.raises(ValueError, match="domain name"):
        canonical_domain(written)
