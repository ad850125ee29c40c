"""One email message, parsed and checked once, before any provider sees it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple

import idna
from email_validator import EmailNotValidError, validate_email
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from email_services.exceptions import InvalidInput

MAX_RECIPIENTS: Final = 1000
"""Over to, cc and bcc together; what Mailgun and SendGrid take in one request."""

RECIPIENT_FIELDS: Final = ("to_recipients", "to_cc", "to_bcc")
"""From the most visible to the least."""

MAX_HEADER_TEXT: Final = 998
"""Characters in a subject or a display name: the longest line of RFC 5322, 2.1.1."""


OnUnknown = Literal["failover", "stop"]
"""What follows an attempt that may have been accepted."""


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
_QUOTED_OR_COMMA = re.compile(r'"(?:\\.|[^"\\])*(?:"|\Z)|[,\n]')
# Mail programs decode these (RFC 2047), also into the line breaks that were refused in plain.
_ENCODED_WORD = re.compile(r"=\?.*\?=")


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
    _refuse_control_characters(value)
    match = _NAME_AND_ADDRESS.fullmatch(value.strip())
    quoted, unquoted, email = match.groups() if match else (None, None, value)
    if not email.strip():
        raise ValueError("It is empty; an email address is needed.")
    if unquoted and _SEPARATOR.search(unquoted):
        raise ValueError('Write a name that holds any of ",;:@<> in double quotes.')
    name = re.sub(r"\\(.)", r"\1", quoted) if quoted else (unquoted or "").rstrip()
    if _ENCODED_WORD.search(email):
        raise ValueError("It holds an encoded word (=?...?=), which is no address.")
    try:
        parsed = validate_email(
            email.strip(),
            check_deliverability=False,
            test_environment=True,  # .test is reserved for tests, and only for them
        )
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None
    return Address(f"{parsed.local_part}@{parsed.ascii_domain}", _header_text(name))


def _mailbox(value: object) -> Address:
    if not isinstance(value, str):
        raise ValueError("It should be a string with one email address.")
    return parse_address(value)


def _sender(address: Address, info: ValidationInfo) -> Address:
    email_domain = (info.context or {}).get("email_domain")
    if email_domain is not None and address.domain != email_domain:
        raise ValueError(f"It should be an address at {email_domain}, the domain in the URL.")
    return address


def _as_list(value: object) -> object:
    """One string holds one address or several; a list holds one address an item."""
    if isinstance(value, str):
        return [item for item in _split(value) if item.strip()]
    return [] if value is None else value


def _split(value: str) -> Iterator[str]:
    """Split at commas and line breaks that are not inside quotes, as people type addresses."""
    start = 0
    for match in _QUOTED_OR_COMMA.finditer(value):
        if match.group() in ",\n":
            yield value[start : match.start()]
            start = match.end()
    yield value[start:]


def _header_text(value: str) -> str:
    _refuse_control_characters(value)
    if _ENCODED_WORD.search(value):
        raise ValueError("It holds an encoded word (=?...?=); write the text itself.")
    if len(value) > MAX_HEADER_TEXT:
        raise ValueError(f"It is longer than {MAX_HEADER_TEXT} characters.")
    return value.strip()


def _not_empty(value: str) -> str:
    if not value:
        raise ValueError("It is empty.")
    return value


def _body_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("It holds a NUL character.")
    if _SURROGATE.search(value):
        raise ValueError("It holds half of a surrogate pair, which is no text.")
    return value


def _refuse_control_characters(value: str) -> None:
    if _CONTROL_CHARACTER.search(value):
        raise ValueError("It holds a line break or another control character.")


_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _absent_if_none(value: object) -> object:
    return "" if value is None else value


_ONE_ADDRESS: Final[dict[str, Any]] = {"type": "string"}
_ADDRESSES: Final[dict[str, Any]] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
}
_Mailbox = Annotated[Address, PlainValidator(_mailbox), WithJsonSchema(_ONE_ADDRESS)]
_HeaderText = Annotated[str, BeforeValidator(_absent_if_none), AfterValidator(_header_text)]
_BodyText = Annotated[str, BeforeValidator(_absent_if_none), AfterValidator(_body_text)]


def _recipients(description: str) -> Any:
    return Field(
        default_factory=list, description=description, json_schema_extra={"widget": "addresses"}
    )


def _body(description: str) -> Any:
    return Field(default="", description=description, json_schema_extra={"widget": "textarea"})


class EmailMessage(BaseModel):
    """A message that every provider can be asked to carry.

    Build it with `EmailMessage.parse`, which checks everything and reports all problems at once.
    Addresses are `Address` tuples, each in one of to, cc and bcc only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    from_email: Annotated[_Mailbox, AfterValidator(_sender)] = Field(
        description="The sender, an address at the email domain in the URL."
    )
    from_name: _HeaderText = Field(default="", description="The sender's display name.")
    to_recipients: list[_Mailbox] = _recipients(
        "Who it is for: one address or a list; Ada <ada@example.org> gives a name."
    )
    to_cc: list[_Mailbox] = _recipients("Who gets a copy.")
    to_bcc: list[_Mailbox] = _recipients("Who gets a copy that nobody else knows of.")
    subject: Annotated[_HeaderText, AfterValidator(_not_empty)] = Field(
        description="The subject, not empty."
    )
    raw_text_body: _BodyText = _body("The plain text. A message has this, html_body, or both.")
    html_body: _BodyText = _body("The HTML.")
    on_unknown: Annotated[OnUnknown | None, BeforeValidator(_none_if_empty)] = Field(
        default=None,
        description="After an attempt that may have been accepted: failover or stop.",
        json_schema_extra={
            "widget": "select",
            "options": {"": "as the domain says", "failover": "failover", "stop": "stop"},
        },
    )
    dry_run: Annotated[bool, Field(strict=False)] = Field(
        default=False,
        description="Send nothing; say which services would be tried.",
        json_schema_extra={
            "widget": "select",
            "options": {"": "send it", "true": "say what would happen"},
        },
    )

    _message_id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def parse(cls, fields: Mapping[str, Any], email_domain: str) -> EmailMessage:
        """Check `fields`, as a client sent them, for a sender at `email_domain`.

        Raises InvalidInput with every problem there is.
        """
        given = {**fields, **{name: _as_list(fields.get(name)) for name in RECIPIENT_FIELDS}}
        problems = _problems_of_the_whole(given)
        if _count_recipients(given) > MAX_RECIPIENTS:
            # Their number is the problem: do not parse a million addresses to say so.
            given.update({name: [] for name in RECIPIENT_FIELDS})
        try:
            message = cls.model_validate(given, context={"email_domain": email_domain})
        except ValidationError as error:
            invalid = InvalidInput.from_validation(error, known=cls.model_fields)
            raise InvalidInput({**problems, **invalid.problems}) from None
        if problems:
            raise InvalidInput(problems)
        return message.normalised()

    @property
    def message_id(self) -> str:
        """Our own id of this message: 32 hexadecimal digits, new for every parse."""
        return self._message_id

    @property
    def message_id_header(self) -> str:
        """The Message-ID of every copy, whoever carries it: recipients can tell them for one."""
        return f"<{self.message_id}@{self.from_email.domain}>"

    @property
    def recipients(self) -> list[Address]:
        """Everybody who gets the message: to, then cc, then bcc."""
        return [*self.to_recipients, *self.to_cc, *self.to_bcc]

    def normalised(self) -> EmailMessage:
        """Give the sender its name, and keep each recipient once, where it is most visible."""
        seen: set[str] = set()
        return self.model_copy(
            update={
                "from_email": Address(
                    self.from_email.email, self.from_name or self.from_email.name
                ),
                "to_recipients": _unseen(self.to_recipients, seen),
                "to_cc": _unseen(self.to_cc, seen),
                "to_bcc": _unseen(self.to_bcc, seen),
            }
        )


def _count_recipients(given: Mapping[str, Any]) -> int:
    lists = [given[name] for name in RECIPIENT_FIELDS if isinstance(given[name], list)]
    return sum(len(items) for items in lists)


def _problems_of_the_whole(given: Mapping[str, Any]) -> dict[str, str]:
    """Find what no single field is to blame for."""
    problems = {}
    count = _count_recipients(given)
    if not any(given[name] for name in RECIPIENT_FIELDS):
        problems["to_recipients"] = "Required: a message needs at least one recipient."
    if count > MAX_RECIPIENTS:
        problems["to_recipients"] = (
            f"Too many recipients: {count} over to, cc and bcc, and {MAX_RECIPIENTS} are allowed."
        )
    bodies = (given.get("raw_text_body"), given.get("html_body"))
    if not any(body if not isinstance(body, str) else body.strip() for body in bodies):
        problems["raw_text_body"] = "Required: a message needs a text or an HTML body, not empty."
    return problems


def _unseen(addresses: list[Address], seen: set[str]) -> list[Address]:
    fresh = []
    for address in addresses:
        if address.key not in seen:
            seen.add(address.key)
            fresh.append(address)
    return fresh
