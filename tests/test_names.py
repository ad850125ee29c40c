from __future__ import annotations

import contextlib

import pytest
from dns_server import DNSServer

from email_services.names import has_dkim_key, included_by_spf


@pytest.fixture
def dns():
    """Make a name server's resolver; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(texts, **options):
            server = DNSServer(texts, **options)
            stack.callback(server.close)
            return server.resolver

        yield make


A_LONG_WAY = {f"s{n}.example": [f"v=spf1 include:s{n + 1}.example"] for n in range(12)}
A_CIRCLE = {"a.example": ["v=spf1 include:b.example"], "b.example": ["v=spf1 include:a.example"]}

# records: what the domain's SPF includes
SPF = {
    "one of its own": (
        {"example.com": ["v=spf1 include:mailgun.org ~all"], "mailgun.org": []},
        {"mailgun.org"},
    ),
    "beside other texts, in capitals and split": (
        {"example.com": ["x=1", "V=SPF1 a:" + "x" * 200 + ".example ?Include:SendGrid.net. -all"]},
        {"sendgrid.net"},
    ),
    "through another": (
        {"example.com": ["v=spf1 redirect=p.example"], "p.example": ["v=spf1 include:q.example"]},
        {"p.example", "q.example"},
    ),
    "a word that only begins so": ({"example.com": ["v=spf10 include:mailgun.org"]}, set()),
    "no record": ({"example.com": ["hello"]}, set()),
    "no name": ({}, set()),
    "more than may be": ({**A_LONG_WAY, "example.com": ["v=spf1 include:s0.example"]}, None),
    "a circle": (
        {**A_CIRCLE, "example.com": ["v=spf1 include:a.example"]},
        {"a.example", "b.example"},
    ),
}


@pytest.mark.parametrize("case", SPF)
def test_what_spf_includes_is_found_through_others_too(case, dns):
    texts, expected = SPF[case]
    assert included_by_spf("example.com", dns(texts)) == expected


def test_a_key_is_found_behind_an_alias_and_a_revoked_one_is_none(dns):
    resolver = dns(
        {
            "k1._domainkey.example.com": ["v=DKIM1; k=rsa; p=MIGf"],
            "old._domainkey.example.com": ["v=DKIM1; p="],
            "s1.domainkey.u1.sendgrid.net": ["k=rsa; t=s; p=" + "A" * 390],
        },
        aliases={"s1._domainkey.example.com": "s1.domainkey.u1.sendgrid.net"},
    )
    found = {s: has_dkim_key("example.com", s, resolver) for s in ("k1", "s1", "old", "none")}
    assert found == {"k1": True, "s1": True, "old": False, "none": False}


def test_where_dns_does_not_tell_nothing_is_known(dns):
    resolver = dns({}, failing=True)
    assert included_by_spf("example.com", resolver) is None
    assert has_dkim_key("example.com", "k1", resolver) is None
