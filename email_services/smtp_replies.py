"""Whose fault it is where an SMTP server refuses: read from its reply and from what was asked.

Where in the dialogue it refuses and the status of RFC 3463 decide first, words last: servers word
the same refusal in a hundred ways, and repeat in it names that whoever sends has chosen.

Sources: RFC 5321, 4.2 and 4.3.2; RFC 3463 and the registry of its codes at IANA (RFC 4954, 7372);
Postfix's replies, as its documents quote them; Gmail's (support.google.com/a/answer/3726730);
Exchange Online's (learn.microsoft.com, non-delivery reports; 5.2.252 and STOREDRV.Submission are
not confirmed); Amazon SES's (developer guide, errors); SendGrid's (its SMTP errors).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Flag, auto
from typing import Final, NamedTuple

from email_services.addresses import Address, without_addresses
from email_services.exceptions import (
    AccountRefused,
    LoginRefused,
    MessageRejected,
    ProviderError,
    RateLimited,
    ServiceUnavailable,
)


class Stage(Flag):
    """What a reply is to. CONNECT: the connection itself, EHLO, STARTTLS. END: the final dot."""

    CONNECT = auto()
    AUTH = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    END = auto()


_ANY: Final = ~Stage(0)
_MESSAGE: Final = Stage.MAIL | Stage.RCPT | Stage.DATA | Stage.END


class _Rule(NamedTuple):
    """What a refusal means where everything fits that a rule says.

    code: a pattern of the whole code. status: of the status without its class, "1.1" in 5.1.1;
    where it is "", any will do, and none. words: a pattern searched in the text.
    """

    means: type[ProviderError]
    at: Stage = _ANY
    code: str = "[45].."
    status: str = ""
    words: str = ""


# The sender's system (1.8) is ours; to send as another (2.252, 7.60), with no or wrong credentials,
# from an address that is banned, without SPF or DKIM (7.20 to 7.30): ours too. 4.5: Gmail's limit.
_OURS: Final = (
    r"1\.8|2\.252|4\.5|7\.(8|9|11|13|14|2\d|30|54|57|60|64|68|139)"
    r"|7\.(50[1-3]|509|511|6[0-4]\d|7[0-4]\d|750)"
)
# An address or a mailbox; too many recipients for one message; what its content is made of; who may
# write to a group of an organisation (Exchange).
_MESSAGES: Final = r"1\.(?!8$)\d+|2\.\d+|5\.3|6\.\d+|7\.1(2|24|29|3[3-6])"

_RELAY_DENIED: Final = (
    r"\brelay(ing)?\b.{0,20}\b(denied|disallowed|prohibited|not (allowed|permitted|authori[sz]ed))"
    r"|\b(unable|cannot|not|no)( allowed| permitted| authori[sz]ed)?( to)? relay|allowed rcpthosts"
)
_SENDING_STOPPED: Final = (
    r"sending( is| has been)? (paused|suspended|blocked|disabled)|not authori[sz]ed to perform"
    r"|sending (quota|limit)|daily message quota|relay( sending)? limit|credits exceeded"
    r"|exceed.{0,60}\bper (hour|day)\b"
)
_ACCOUNT_STOPPED: Final = (
    r"account( is| has been)? (not (yet )?activated|paused|suspended|blocked|disabled|deactivated)"
    r"|(message|email|daily|hourly)( message| email)? (quota|limit)\b.{0,20}(exceed|reach)"
)
_SENDER_REFUSED: Final = (
    r"sender( address| domain| identity)?:? (is )?(reject|denied|not (verified|allowed|permitted))"
    r"|not (verified|owned)\b|verified sender|unauthenticated sender"
    r"|not (allowed|authori[sz]ed) to send(?!( \w+)? to\b)"
)
_NOT_LOGGED_IN: Final = r"authenticat(e|ion)\b.{0,20}(required|first|fail)|not authenticated"
_CLIENT_REFUSED: Final = r"client host\b.{0,40}(reject|block)"

_RULES: Final = (
    # What Gmail and Exchange say with the status of a mailbox, or of policy, and mean otherwise.
    _Rule(RateLimited, code="4..", words="relay limit exceeded|sender thread limit"),
    _Rule(AccountRefused, code="5..", words="SendAsDenied|OutboundSpam"),
    _Rule(MessageRejected, at=_MESSAGE, words=r"RESOLVER\.RST"),
    _Rule(LoginRefused, code="535"),
    _Rule(AccountRefused, code="5..", status=_OURS),
    _Rule(MessageRejected, at=_MESSAGE, status=_MESSAGES),
    _Rule(AccountRefused, code="530|534|538"),
    _Rule(AccountRefused, words=f"{_RELAY_DENIED}|{_SENDING_STOPPED}"),
    _Rule(AccountRefused, at=~Stage.RCPT, words=_ACCOUNT_STOPPED),
    _Rule(AccountRefused, code="5..", words=f"{_SENDER_REFUSED}|{_NOT_LOGGED_IN}"),
    _Rule(AccountRefused, code="5..", words=_CLIENT_REFUSED),
    _Rule(ServiceUnavailable, code="4..", words=_CLIENT_REFUSED),
    _Rule(RateLimited, code="4..", words="throttl|sending rate|too (much|many) .*(from|connect)"),
    # 3.X is the server's own trouble, with its disk for one; all else is greylisting, or full.
    _Rule(MessageRejected, at=Stage.RCPT, code="450|451|452", status=r"(?!3\.).*"),
    _Rule(MessageRejected, at=_MESSAGE, code="4..", words="gr[ea]ylist"),
    _Rule(RateLimited, code="421|450|451", status=r"7\.\d+"),
    _Rule(RateLimited, code="4..", words=r"\brate\b|too (many|much)"),
    _Rule(ServiceUnavailable, code="4.."),
    _Rule(ServiceUnavailable, code="500|502|503|504"),  # it does not know the command
    _Rule(ServiceUnavailable, at=Stage.CONNECT),
    _Rule(LoginRefused, at=Stage.AUTH),
    _Rule(MessageRejected),
)

_STATUS = re.compile(r"(?:^\W{0,3}|#)[245]\.(\d{1,3}\.\d{1,3})\b")  # qmail ends with (#5.1.1)


def meaning_of(
    code: int, text: str, stage: Stage, names: frozenset[str] = frozenset()
) -> type[ProviderError]:
    """What a refusal (4XX, 5XX) means.

    names: what nobody is to be judged by where the reply repeats it, as `names_in` gives it.
    """
    words = without_addresses(text, names)
    found = _STATUS.search(words)
    status = found[1] if found else ""
    return next(
        rule.means
        for rule in _RULES
        if stage in rule.at
        and re.fullmatch(rule.code, str(code))
        and re.fullmatch(rule.status or ".*", status)
        and re.search(rule.words, words, re.IGNORECASE | re.DOTALL)
    )


def names_in(addresses: Iterable[Address]) -> frozenset[str]:
    """What a server repeats of them, in lower case, beside the whole: "daily", "relay.example"."""
    return frozenset(part for a in addresses for part in (*a.key.rsplit("@", 1), a.domain))
