from __future__ import annotations

import functools

import pytest
from conftest import make_message, make_service
from standins import answer_json

from email_services.drill import KINDS, SLOW_SECONDS, Drill
from email_services.exceptions import (
    LoginRefused,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
)

# kind: the error it raises, what it waits of a timeout of 8 s, how often the provider is asked
WHAT_HAPPENS = {
    "unavailable": (ServiceUnavailable, [], 0),
    "timeout": (OutcomeUnknown, [8], 0),
    "answer_lost": (OutcomeUnknown, [], 1),
    "rate_limited": (RateLimited, [], 0),
    "key_refused": (LoginRefused, [], 0),
    "slow": (None, [SLOW_SECONDS], 1),
}


def test_every_kind_is_in_the_table():
    assert list(WHAT_HAPPENS) == list(KINDS)


@pytest.fixture
def provider(stand_in):
    return stand_in(answer_json(200, {"id": "<1@example.com>"}))


@pytest.mark.parametrize("kind", WHAT_HAPPENS)
def test_a_drill_does_what_the_real_fault_would(kind, provider):
    error, waits, requests = WHAT_HAPPENS[kind]
    waited = []
    service = make_service("mailgun", provider.url)
    send = functools.partial(service.send, make_message())
    meet = functools.partial(Drill(kind).meet, send, 8, waited.append)
    if error is None:
        assert meet().message_id == "<1@example.com>"
    else:
        with pytest.raises(error, match="Simulated failure") as caught:
            meet()
        assert caught.value.simulated
    assert waited == waits
    assert len(provider.requests) == requests


@pytest.mark.parametrize(("chance", "fails"), [(0.0, True), (0.24, True), (0.25, False)])
def test_a_share_of_the_messages_meets_it(chance, fails, provider):
    service = make_service("mailgun", provider.url)
    meet = functools.partial(Drill("unavailable", share=0.25).meet, chance=lambda: chance)
    send = functools.partial(service.send, make_message())
    if fails:
        with pytest.raises(ServiceUnavailable):
            meet(send, 8)
    else:
        assert meet(send, 8).message_id == "<1@example.com>"


def test_a_drill_lapses():
    assert Drill(until=None).is_on(1e12)
    assert Drill(until=100.0).is_on(99.9)
    assert not Drill(until=100.0).is_on(100.0)
