from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import pytest

from email_services import exceptions
from email_services.exceptions import (
    AccountRefused,
    EmailServicesError,
    LoginRefused,
    OutcomeUnknown,
    Passing,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)


def below(base: type) -> Iterator[type]:
    for one in base.__subclasses__():
        if one.__module__ == exceptions.__name__:
            yield one
            yield from below(one)


ERRORS = [*below(EmailServicesError), *below(ProviderError)]
CODES = {
    "InvalidInput": "invalid",
    "MessageTooLarge": "too_large",
    "UnknownDomain": "unknown_domain",
    "UnknownService": "unknown_service",
    "UnknownMessage": "unknown_message",
    "UnknownStream": "unknown_stream",
    "UnknownVersion": "unknown_version",
    "UploadsOff": "uploads_off",
    "NotWaiting": "not_waiting",
    "NoCopy": "no_copy",
    "UnderWay": "under_way",
    "KeyRefused": "key_wrong",
    "KeyMissing": "key_missing",
    "TooManyWrongKeys": "too_many_wrong_keys",
    "KeyInProgress": "idempotency_key_in_progress",
    "KeyReused": "idempotency_key_reused",
    "StoreUnavailable": "store_unavailable",
    "SearchTooSlow": "search_too_slow",
    "MessageRejected": "message_refused",
    "CannotCarry": "cannot_carry",
    "AccountRefused": "account_refused",
    "LoginRefused": "key_refused",
    "RateLimited": "rate_limited",
    "ServiceUnavailable": "unavailable",
    "OutcomeUnknown": "unknown_outcome",
}
"""Programs rely on them: a word never changes."""


def test_every_error_has_a_word_of_its_own_for_programs():
    assert {error.__name__: vars(error).get("code") for error in ERRORS} == CODES


CAUSES = [
    (LoginRefused("HTTP 401: Hello Ada", summary="HTTP 401."), "key refused (HTTP 401)"),
    (AccountRefused("SMTP 454."), "account refused (SMTP 454)"),
    (RateLimited("HTTP 429."), "rate limited (HTTP 429)"),
    (ServiceUnavailable("HTTP 503."), "unavailable (HTTP 503)"),
    (ServiceUnavailable("The connection was refused."), "connection was refused"),
    (ServiceUnavailable("The TLS handshake failed."), "TLS handshake failed"),
    (OutcomeUnknown("HTTP 504."), "outcome unknown (HTTP 504)"),
    (OutcomeUnknown("No answer within 10 s."), "no answer within 10 s"),
]


@pytest.mark.parametrize(("fault", "cause"), CAUSES)
def test_a_fault_is_told_in_a_few_words_that_quote_nothing(fault, cause):
    assert fault.cause == cause


def test_no_two_things_have_one_word():
    words = [*CODES.values(), *get_args(Passing)]
    assert len(words) == len(set(words))
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", word) for word in words)


def test_the_tree_of_the_module_has_every_error_below_its_base_with_its_word():
    drawn, above = {}, []
    for line in exceptions.__doc__.splitlines():
        if found := re.match(r"    ([│ ]*(?:[├└]── )?)([A-Z]\w+)  +(?:([a-z_]+): )?", line):
            above[len(found[1]) // 4 :] = [found[2]]
            drawn[found[2]] = (above[-2] if len(above) > 1 else None, found[3])
    for error in ERRORS:
        base = error.__base__.__name__
        assert drawn[error.__name__] == (base, CODES[error.__name__]), error
    passing = re.findall(r"^    ([a-z_]+)  +", exceptions.__doc__, re.MULTILINE)
    assert passing == list(get_args(Passing))
