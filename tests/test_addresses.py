from __future__ import annotations

import pytest
from clocks import little_work

from email_services.addresses import Address, canonical_domain, parse_address

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
    encoded = "=?utf-8?q?x=0aBcc:_eve=40x.org?="
    many = 100_000
    hostile_ones = ('"' * many, '"\\' * many, "<" * many, " " * many, "a <" * many)
    for hostile in (f"{encoded}@example.org", "a" + " " * many + "b", *hostile_ones):
        with little_work(), pytest.raises(ValueError, match=r"\w+"):
            parse_address(hostile)


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
