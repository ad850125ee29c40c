"""What DNS says of who may send for an email domain: SPF (RFC 7208) and DKIM (RFC 6376)."""

from __future__ import annotations

from typing import Final

from dns.exception import DNSException
from dns.rdatatype import RdataType
from dns.resolver import NXDOMAIN, NoAnswer, Resolver

MAX_LOOKUPS: Final = 10
"""More make an SPF record void (RFC 7208, 4.6.4)."""


def included_by_spf(domain: str, resolver: Resolver) -> set[str] | None:
    """Every name that the domain's SPF record includes, itself or through others, in lower case.

    Empty where there is no record; None where DNS does not tell.
    """
    found: set[str] = set()
    waiting = [domain]
    for _ in range(MAX_LOOKUPS + 1):
        if not waiting:
            return found
        texts = _texts(waiting.pop(), resolver)
        if texts is None:
            return None
        for name in _includes(texts):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found if not waiting else None


def has_dkim_key(domain: str, selector: str, resolver: Resolver) -> bool | None:
    """Whether there is a key under this selector, not one that was revoked (an empty `p=`).

    None where DNS does not tell.
    """
    texts = _texts(f"{selector}._domainkey.{domain}", resolver)
    if texts is None:
        return None
    return any(_tags(text).get("p") for text in texts)


def _tags(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def _includes(texts: list[str]) -> list[str]:
    """What the SPF record among `texts` refers to."""
    names = []
    for text in texts:
        first, *terms = text.lower().split() or [""]
        if first == "v=spf1":
            names += [t.removeprefix("redirect=") for t in terms if t.startswith("redirect=")]
            bare = (term.lstrip("+-~?") for term in terms)
            names += [t.removeprefix("include:") for t in bare if t.startswith("include:")]
    return [name.rstrip(".") for name in names]


def _texts(name: str, resolver: Resolver) -> list[str] | None:
    """The TXT records there, behind a CNAME too; none where there are none, None if unknown."""
    try:
        answer = resolver.resolve(name, RdataType.TXT)
    except (NXDOMAIN, NoAnswer):
        return []
    except DNSException:
        return None
    return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]
