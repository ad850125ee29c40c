"""Email addresses: parsed and compared in one way, before any provider sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple

import idna
from email_validator import EmailNotValidError, validate_email
from pydantic import PlainValidator, WithJsonSchema

from email_services.texts import has_encoded_word, header_text, refuse_control_characters

MAX_WRITTEN: Final = 2500
"""Characters of an address with its name: the longest of both, and every one of them escaped."""


class Address(NamedTuple):
    """One mailbox.

    email: as it goes over the wire, its domain in ASCII ("a@xn--bcher-kva.example").
    name: the display name, or "".
    """

    email: str
    name: str = ""

    @property
    def domain(self) -> str:
        """The part after the @, in ASCII and lower case."""
        return self.email.rpartition("@")[2].lower()

    @property
    def key(self) -> str:
        """What makes two spellings the same recipient: providers compare without case."""
        return self.email.lower()

    def __str__(self) -> str:
        """RFC 5322 form; the name is quoted where it holds a special character, never encoded."""
        if not self.name:
            return self.email
        if _PLAIN_NAME.fullmatch(self.name):
            return f"{self.name} <{self.email}>"
        escaped = re.sub(r'(["\\])', r"\\\1", self.name)
        return f'"{escaped}" <{self.email}>'


# RFC 5322 atoms and spaces, or anything beyond ASCII; every other name needs quotes.
_PLAIN_NAME = re.compile(r"[\w!#$%&'*+\-/=?^`{|}~\u0080-\U0010ffff ]+")
_NAME_AND_ADDRESS = re.compile(r'(?:"((?:\\.|[^"\\])*)"\s*|([^"]*?))<([^<>]*)>')
_SEPARATOR = re.compile(r'[",;:@<>]')
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}")
_TOKEN = re.compile(r"[^\s<>()\[\]{}:;,\"'`]+")
_QUOTED_OR_COMMA = re.compile(r'"(?:\\.|[^"\\])*(?:"|\Z)|[,\n]')


@lru_cache(maxsize=1024)
def canonical_domain(name: str) -> str:
    """An email domain in ASCII and lower case, whichever way it was written.

    Raises ValueError if it is not a host name with a dot, as all email domains are.
    """
    try:
        domain = idna.encode(name.rstrip("."), uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        domain = ""
    if "." not in domain:
        raise ValueError("It should be a domain name, with a dot.")
    return domain


def parse_address(value: str) -> Address:
    """Parse "ada@example.org" or "Ada <ada@example.org>".

    A name may be written without quotes, beyond ASCII too, unless it holds a character that
    separates addresses. Raises ValueError with a sentence for the caller.
    """
    if len(value) > MAX_WRITTEN:
        raise ValueError(f"It is longer than {MAX_WRITTEN} characters.")
    return _parsed(value)


@lru_cache(maxsize=1024)  # who sends is mostly the same, and many write to one address again
def _parsed(value: str) -> Address:
    refuse_control_characters(value)
    match = _NAME_AND_ADDRESS.fullmatch(value.strip())
    quoted, unquoted, email = match.groups() if match else (None, None, value)
    if not email.strip():
        raise ValueError("It is empty; an email address is needed.")
    if unquoted and _SEPARATOR.search(unquoted):
        raise ValueError('Write a name that holds any of ",;:@<> in double quotes.')
    name = re.sub(r"\\(.)", r"\1", quoted) if quoted else (unquoted or "").rstrip()
    if has_encoded_word(email):
        raise ValueError("It holds an encoded word (=?...?=), which is no address.")
    try:
        parsed = validate_email(
            email.strip(),
            check_deliverability=False,
            test_environment=True,  # .test is reserved for tests, and only for them
        )
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None
    return Address(f"{parsed.local_part}@{parsed.ascii_domain}", header_text(name))


def as_list(value: object) -> object:
    """One string holds one item or several; a list holds one an item."""
    if isinstance(value, str):
        return [item for item in split(value) if item.strip()]
    return [] if value is None else value


def split(value: str) -> Iterator[str]:
    """Split at commas and line breaks that are not inside quotes, as people type addresses."""
    start = 0
    for match in _QUOTED_OR_COMMA.finditer(value):
        if match.group() in ",\n":
            yield value[start : match.start()]
            start = match.end()
    yield value[start:]


def without_addresses(text: str, names: frozenset[str] = frozenset()) -> str:
    """`text` without addresses, hosts, URLs and `names`, which are in lower case.

    What is left are the words of whoever wrote it, and none that a sender has chosen.
    """

    def kept(found: re.Match[str]) -> str:
        token = found[0].strip(".?!")
        is_name = "@" in token or token.lower() in names or token.startswith("//")
        return "" if is_name or _HOST.fullmatch(token) else found[0]

    return _TOKEN.sub(kept, text)


def unique(addresses: list[Address], seen: set[str]) -> list[Address]:
    """Those of `addresses` whose key is not in `seen`, which learns them; each once."""
    fresh = []
    for address in addresses:
        if address.key not in seen:
            seen.add(address.key)
            fresh.append(address)
    return fresh


def _mailbox(value: object) -> Address:
    if not isinstance(value, str):
        raise ValueError("It should be a string with one email address.")
    return parse_address(value)


_ONE_ADDRESS: Final[dict[str, Any]] = {"type": "string"}
Mailbox = Annotated[Address, PlainValidator(_mailbox), WithJsonSchema(_ONE_ADDRESS)]
"""An address as a field of a model: a string that `parse_address` takes."""
