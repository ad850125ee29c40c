"""One email message, parsed and checked once, before any provider sees it."""

from __future__ import annotations

import html
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from email_services.addresses import Address, Mailbox, as_list, unique
from email_services.attachments import OTHER_FILE_NAMES, Attachment, InlineImage
from email_services.discovery import is_reserved
from email_services.exceptions import A_TIME, InvalidInput, MessageTooLarge, Names
from email_services.html_text import text_of_html
from email_services.texts import body_text, has_encoded_word, header_text

MEGABYTE: Final = 1024 * 1024
MAX_MESSAGE_BYTES: Final = 25 * MEGABYTE
"""What a message may hold, unless config.json says otherwise: the bodies, and the files decoded."""

MAX_RECIPIENTS: Final = 1000
"""Over to, cc and bcc together; what Mailgun and SendGrid take in one request."""

MAX_FILES: Final = 100
MAX_REPLY_TO: Final = 10
MAX_HEADERS: Final = 50
MAX_TAGS: Final = 10
MAX_TAG: Final = 128
MAX_METADATA: Final = 20
MAX_METADATA_KEY: Final = 64
MAX_METADATA_VALUE: Final = 500
ID_NAME: Final = "mailpool_id"
"""What our id of a message is called among what a provider's events give back."""

MAX_SUBSTITUTIONS: Final = 100
MAX_SUBSTITUTION: Final = 10_000
DAY_SECONDS: Final = 24 * 3600
MAX_DAYS_AHEAD: Final = 366
LATE_SECONDS: Final = 300
"""A `send_at` that has passed by less means now: clocks differ."""

RECIPIENT_FIELDS: Final = ("to_recipients", "to_cc", "to_bcc")
"""From the most visible to the least."""

LIST_FIELDS: Final = (*RECIPIENT_FIELDS, "reply_to", "tags")
"""One item may be given as a string, and several with commas, as a form does."""

OTHER_NAMES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("from", "sender", "from_address"), "from_email"),
    **dict.fromkeys(("to", "recipient", "recipients", "to_email"), "to_recipients"),
    "cc": "to_cc",
    "bcc": "to_bcc",
    **dict.fromkeys(("replyto", "reply-to", "h:reply-to"), "reply_to"),
    "title": "subject",
    **dict.fromkeys(("text", "body", "textbody", "text_body", "textcontent"), "raw_text_body"),
    **dict.fromkeys(("html", "htmlbody", "htmlcontent", "html_content"), "html_body"),
    **dict.fromkeys(("attachment", "files"), "attachments"),
    **dict.fromkeys(("images", "inlines", "inlinedattachments"), "inline"),
    **dict.fromkeys(("tag", "categories", "o:tag"), "tags"),
    **dict.fromkeys(("custom_args", "variables", "unique_args"), "metadata"),
    **dict.fromkeys(("scheduled_at", "scheduledat", "sendat", "o:deliverytime"), "send_at"),
    **dict.fromkeys(("recipient_variables", "dynamic_template_data"), "substitutions"),
}
"""What other services call our fields, in lower case."""

OnUnknown = Literal["failover", "stop"]
"""What follows an attempt that may have been accepted."""

RESERVED_HEADERS: Final = re.compile(
    r"from|to|cc|bcc|subject|reply-to|sender|date|message-id|return-path|received|mime-version"
    r"|(content|resent|arc|dkim|domainkey)-.*|authentication-results",
    re.IGNORECASE,
)
"""What this service sets; what providers set, each of them declares."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,125}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{1,995}")
_TAG = re.compile(rf"[\x21-\x7e]([\x20-\x7e]{{0,{MAX_TAG - 2}}}[\x21-\x7e])?")
_METADATA_KEY = re.compile(rf"[A-Za-z][A-Za-z0-9_-]{{0,{MAX_METADATA_KEY - 1}}}")
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d.*")
_PLACEHOLDER = re.compile(r"\{\{ *([A-Za-z0-9_]{1,64}) *\}\}")
_CID = re.compile(r"""\bcid:([^\s"'<>)]+)""", re.IGNORECASE)
_TIME = TypeAdapter(AwareDatetime)


def _sender(address: Address, info: ValidationInfo) -> Address:
    email_domain = (info.context or {}).get("email_domain")
    if email_domain is not None and address.domain != email_domain:
        raise ValueError(f"It should be an address at {email_domain}, the domain in the URL.")
    return address


def _not_empty(value: str) -> str:
    if not value:
        raise ValueError("It is empty.")
    return value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


def _absent_if_none(value: object) -> object:
    return "" if value is None else value


def _empty_if_none(value: object) -> object:
    return [] if value is None or value == "" else value


def _mapping(value: object) -> object:
    """An object, or lines of "name: value" as a form sends them."""
    if isinstance(value, str):
        pairs = [line.partition(":") for line in value.splitlines() if line.strip()]
        if not all(colon for _, colon, _ in pairs):
            raise ValueError('It should hold one "name: value" on each line.')
        return {name.strip(): text.strip() for name, _, text in pairs}
    return {} if value is None else value


def _headers(headers: dict[str, str]) -> dict[str, str]:
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("A header is given twice; case makes no difference.")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError("The name of a header has letters, digits, - and _, at most 126.")
        if RESERVED_HEADERS.fullmatch(name) or is_reserved(name):
            raise ValueError(f"The header {name} is set by this service or by the provider.")
        if not _HEADER_VALUE.fullmatch(header_text(value)):
            raise ValueError(f"{name} should hold 1 to 995 printable ASCII characters.")
    return {name: value.strip() for name, value in headers.items()}


def _tags(tags: list[str]) -> list[str]:
    tags = [tag.strip() for tag in tags]
    if any(has_encoded_word(tag) for tag in tags):
        raise ValueError("It holds an encoded word (=?...?=); write the text itself.")
    if not all(_TAG.fullmatch(tag) for tag in tags):
        raise ValueError(f"A tag is 1 to {MAX_TAG} printable ASCII characters.")
    return list(dict.fromkeys(tags))


def _metadata(metadata: dict[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not _METADATA_KEY.fullmatch(key):
            raise ValueError(
                "A key is a letter followed by letters, digits, - and _, "
                f"at most {MAX_METADATA_KEY} in all."
            )
        if key.lower() == ID_NAME:
            raise ValueError(f"{key} is set by this service, to its own id of the message.")
        if not 0 < len(header_text(value)) <= MAX_METADATA_VALUE:
            raise ValueError(
                f"The value of {key} should have 1 to {MAX_METADATA_VALUE} characters."
            )
    return {key: value.strip() for key, value in metadata.items()}


def _substitutions(values: dict[str, str] | None) -> dict[str, str] | None:
    for name, value in (values or {}).items():
        if not _PLACEHOLDER.fullmatch(f"{{{{{name}}}}}"):
            raise ValueError("A name is 1 to 64 letters, digits and _.")
        if len(body_text(value)) > MAX_SUBSTITUTION:
            raise ValueError(f"The value of {name} is longer than {MAX_SUBSTITUTION} characters.")
    return values


def _send_at(value: object) -> object:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _ISO_TIME.fullmatch(value):
        raise ValueError(A_TIME)
    try:
        at = _TIME.validate_python(value)
    except ValidationError:
        raise ValueError(A_TIME) from None
    now = time.time()
    if at.timestamp() < now - LATE_SECONDS:
        raise ValueError("It has passed.")
    if at.timestamp() > now + MAX_DAYS_AHEAD * DAY_SECONDS:
        raise ValueError(f"It is more than {MAX_DAYS_AHEAD} days from now.")
    return at


def _number(value: object) -> object:
    """A number, or one as a form sends it; never true or false."""
    if isinstance(value, bool):
        return "no number"
    return None if value == "" else value


def _no_two_content_ids(images: list[InlineImage]) -> list[InlineImage]:
    if len({image.content_id for image in images}) < len(images):
        raise ValueError("Two images have the same content_id.")
    return images


_HeaderText = Annotated[str, BeforeValidator(_absent_if_none), AfterValidator(header_text)]
_BodyText = Annotated[str, BeforeValidator(_absent_if_none), AfterValidator(body_text)]


def _list(description: str, limit: int | None = None) -> Any:
    return Field(default_factory=list, description=description, max_length=limit)


def _pairs(description: str, limit: int) -> Any:
    return Field(default_factory=dict, description=description, max_length=limit)


_Choice = Annotated[bool | None, Field(strict=False), BeforeValidator(_none_if_empty)]


class EmailMessage(BaseModel):
    """A message that every provider can be asked to carry.

    Build it with `EmailMessage.parse`, which checks everything and reports all problems at once.
    Addresses are `Address` tuples, each in one of to, cc and bcc only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    from_email: Annotated[Mailbox, AfterValidator(_sender)] = Field(
        description="The sender, an address at the email domain in the URL."
    )
    from_name: _HeaderText = Field(default="", description="The sender's display name.")
    to_recipients: list[Mailbox] = _list(
        "Who it is for: a list of addresses; `Ada <ada@example.org>` gives a name."
    )
    to_cc: list[Mailbox] = _list("Who gets a copy.")
    to_bcc: list[Mailbox] = _list("Who gets a copy that nobody else knows of.")
    reply_to: list[Mailbox] = _list("Where answers go, if not to the sender.", MAX_REPLY_TO)
    subject: Annotated[_HeaderText, AfterValidator(_not_empty)] = Field(
        description="The subject, not empty."
    )
    raw_text_body: _BodyText = Field(
        default="",
        description=(
            "The plain text. A message has this, html_body, or both; without it, the HTML is read."
        ),
    )
    html_body: _BodyText = Field(default="", description="The HTML, for those who see it.")
    attachments: Annotated[list[Attachment], BeforeValidator(_empty_if_none)] = _list(
        "Files: filename, content in base64, content_type.", MAX_FILES
    )
    inline: Annotated[
        list[InlineImage], BeforeValidator(_empty_if_none), AfterValidator(_no_two_content_ids)
    ] = _list(
        "Images that the HTML shows as `cid:CONTENT_ID`; like attachments, with content_id.",
        MAX_FILES,
    )
    headers: Annotated[dict[str, str], BeforeValidator(_mapping), AfterValidator(_headers)] = (
        _pairs("Further headers by name, in ASCII.", MAX_HEADERS)
    )
    tags: Annotated[list[str], AfterValidator(_tags)] = _list(
        "What the provider's statistics call it: each 1 to 128 ASCII characters.", MAX_TAGS
    )
    metadata: Annotated[dict[str, str], BeforeValidator(_mapping), AfterValidator(_metadata)] = (
        _pairs(
            "What the provider's events give back: values of 1 to 500 characters.",
            MAX_METADATA,
        )
    )
    track_opens: _Choice = Field(
        default=None,
        description="Whether the provider notes that it was opened; without it, as it does.",
    )
    track_clicks: _Choice = Field(
        default=None,
        description="Whether the provider notes clicks on links; without it, as it does.",
    )
    send_at: Annotated[
        datetime | None,
        BeforeValidator(_send_at),
        WithJsonSchema({"type": "string", "format": "date-time"}),
    ] = Field(
        default=None,
        description="When it should be sent, up to a year ahead: ISO 8601 with a zone, "
        "`2026-11-24T12:00:00Z`. The provider holds it, or the queue where none can.",
    )
    substitutions: Annotated[
        dict[str, str] | None,
        BeforeValidator(lambda value: None if value in (None, "") else _mapping(value)),
        AfterValidator(_substitutions),
    ] = Field(
        default=None,
        description="What to put for each `{{name}}` in the subject and the bodies.",
        max_length=MAX_SUBSTITUTIONS,
    )
    on_unknown: Annotated[OnUnknown | None, BeforeValidator(_none_if_empty)] = Field(
        default=None,
        description="After an attempt that may have been accepted: `failover` or `stop`.",
    )
    stream: Annotated[str, BeforeValidator(_absent_if_none)] = Field(
        default="",
        description="What kind of mail it is, of those that the domain knows: each has its own way "
        "through the queue. `default` and `bulk` are always there.",
    )
    expires_in: Annotated[
        float | None,
        Field(strict=False, gt=0, le=MAX_DAYS_AHEAD * DAY_SECONDS),
        BeforeValidator(_number),
    ] = Field(
        default=None,
        description="Seconds after which it is not to be sent any more, as a code that lapses; "
        "from `send_at` on, where that is given.",
    )
    dry_run: Annotated[bool, Field(strict=False)] = Field(
        default=False, description="Send nothing; say which services would be tried."
    )

    _message_id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _again_of: str | None = PrivateAttr(None)

    @classmethod
    def parse(
        cls, fields: Mapping[str, Any], email_domain: str, max_bytes: int = MAX_MESSAGE_BYTES
    ) -> EmailMessage:
        """Check `fields`, as a client sent them, for a sender at `email_domain`.

        Raises InvalidInput with every problem there is, MessageTooLarge if the size is the only
        one.
        """
        given = {**fields, **{name: as_list(fields.get(name)) for name in LIST_FIELDS}}
        problems = _problems_of_the_whole(given)
        if _count_recipients(given) > MAX_RECIPIENTS:
            # Their number is the problem: do not parse a million addresses to say so.
            given.update({name: [] for name in RECIPIENT_FIELDS})
        try:
            message = cls.model_validate(given, context={"email_domain": email_domain})
        except ValidationError as error:
            invalid = InvalidInput.from_validation(error, _NAMES)
            raise InvalidInput({**problems, **invalid.problems}) from None
        problems |= _problems_between_fields(message)
        if problems:
            raise InvalidInput(problems)
        if message.size > max_bytes:
            raise MessageTooLarge(message.size, max_bytes)
        normal = message.normalised()
        size = message.size + normal.substituted_bytes()
        if size > max_bytes:
            raise MessageTooLarge(size, max_bytes, "substitutions")
        return normal

    @property
    def message_id(self) -> str:
        """Our own id of this message: 32 hexadecimal digits, new for every parse."""
        # Where pydantic keeps it: a send asks often, and its own way there takes 20 times as long.
        return str((self.__pydantic_private__ or {})["_message_id"])

    def known_as(self, message_id: str) -> EmailMessage:
        """The same message by the id that it was given when it was parsed before."""
        copy = self.model_copy()
        copy._message_id = message_id  # noqa: SLF001 - it is one of these
        return copy

    @property
    def again_of(self) -> str | None:
        """Our id of the message that this one sends again."""
        return self._again_of

    def again(self) -> EmailMessage:
        """A new message that is the same, and knows of which."""
        copy = self.for_now().known_as(uuid.uuid4().hex)
        copy._again_of = self.message_id  # noqa: SLF001 - it is one of these
        return copy

    def for_now(self) -> EmailMessage:
        """The same message without a time to be sent at."""
        return self.model_copy(update={"send_at": None}) if self.send_at else self

    @property
    def message_id_header(self) -> str:
        """The Message-ID of every copy, whoever carries it: recipients can tell them for one."""
        return f"<{self.message_id}@{self.from_email.domain}>"

    @property
    def event_data(self) -> dict[str, str]:
        """What the provider's events should give back: our id of the message, and the metadata."""
        return {ID_NAME: self.message_id, **self.metadata}

    @property
    def recipients(self) -> list[Address]:
        """Everybody who gets the message: to, then cc, then bcc."""
        return [*self.to_recipients, *self.to_cc, *self.to_bcc]

    @property
    def files(self) -> list[Attachment]:
        """Everything attached, inline images too."""
        return [*self.attachments, *self.inline]

    @property
    def size(self) -> int:
        """Bytes of the bodies and of the files as they are."""
        return self._body_bytes + sum(len(file.content) for file in self.files)

    @property
    def rendered_size(self) -> int:
        """The same at most with its substitutions, none of which is made for this."""
        return self.size + self.substituted_bytes()

    @property
    def encoded_size(self) -> int:
        """Bytes of the bodies and of the files in base64 with its line breaks."""
        return self._body_bytes + sum(-(-len(file.content) * 78 // 57) for file in self.files)

    @property
    def _body_bytes(self) -> int:
        return len(self.raw_text_body.encode()) + len(self.html_body.encode())

    def content_key(self) -> Hashable:
        """The same for messages that differ in recipients, metadata and substituted values only."""
        return (
            self.from_email,
            self.subject,
            self.raw_text_body,
            self.html_body,
            *((file.filename, file.full_type, file.content) for file in self.attachments),
            *((file.content_id, file.full_type, file.content) for file in self.inline),
            tuple(self.reply_to),
            tuple(self.headers.items()),
            tuple(self.tags),
            (self.track_opens, self.track_clicks, self.send_at, self.substitutions is None),
        )

    def normalised(self) -> EmailMessage:
        """Give the sender its name, keep each recipient once, and derive a missing text."""
        seen: set[str] = set()
        return self.model_copy(
            update={
                "from_email": Address(
                    self.from_email.email, self.from_name or self.from_email.name
                ),
                "to_recipients": unique(self.to_recipients, seen),
                "to_cc": unique(self.to_cc, seen),
                "to_bcc": unique(self.to_bcc, seen),
                "reply_to": unique(self.reply_to, set()),
                # The reverse is never invented.
                "raw_text_body": self.raw_text_body or text_of_html(self.html_body),
            }
        )

    def rendered(self) -> EmailMessage:
        """With each {{name}} filled in; HTML shows the value as the text it is."""
        if self.substitutions is None:
            return self
        return self.model_copy(
            update={
                "subject": self.filled(self.subject),
                "raw_text_body": self.filled(self.raw_text_body),
                "html_body": self.filled(self.html_body, html.escape),
                "substitutions": None,
            }
        )

    def filled(self, text: str, escape: Callable[[str], str] = str) -> str:
        """`text` with each {{name}} that has a value filled in, after `escape`."""
        values = self.substitutions or {}
        return self.marked(text, lambda name: escape(values[name]))

    def substituted_bytes(self) -> int:
        """By how much the bodies grow at most when they are filled in; nothing is filled in yet."""
        sizes = {
            name: len(html.escape(v).encode()) for name, v in (self.substitutions or {}).items()
        }
        if not sizes:
            return 0
        found = Counter(_PLACEHOLDER.findall(self.raw_text_body))
        found.update(_PLACEHOLDER.findall(self.html_body))
        return sum(sizes.get(name, 0) * times for name, times in found.items())

    def marked(self, text: str, mark: Callable[[str], str]) -> str:
        """`text` with each {{name}} that has a value replaced by what `mark` makes of the name."""
        values = self.substitutions or {}
        return _PLACEHOLDER.sub(
            lambda found: mark(found[1]) if found[1] in values else found[0], text
        )

    def only_for(self, keys: Collection[str]) -> EmailMessage:
        """The same message for those of its recipients whose `Address.key` is in `keys`."""
        return self.model_copy(
            update={
                name: [address for address in getattr(self, name) if address.key in keys]
                for name in RECIPIENT_FIELDS
            }
        )


_NAMES: Final = {
    "": Names(EmailMessage.model_fields, OTHER_NAMES),
    "attachments": Names(Attachment.model_fields, OTHER_FILE_NAMES),
    "inline": Names(InlineImage.model_fields, OTHER_FILE_NAMES),
}


def placeholders(text: str) -> set[str]:
    """The names that stand in `text` as {{name}}."""
    return set(_PLACEHOLDER.findall(text))


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


def _problems_between_fields(message: EmailMessage) -> dict[str, str]:
    """Find where one field asks for what another does not hold."""
    problems = {}
    images = {image.content_id for image in message.inline}
    if missing := {cid for cid in _CID.findall(message.html_body) if cid not in images}:
        problems["html_body"] = f"It shows cid:{min(missing)}, and inline has no such content_id."
    if message.substitutions is not None:
        texts = (message.subject, message.raw_text_body, message.html_body)
        missing = set().union(*map(placeholders, texts)) - message.substitutions.keys()
        if missing:
            problems["substitutions"] = f"There is no value for {{{{{min(missing)}}}}}."
        try:
            _not_empty(header_text(message.filled(message.subject)))
        except ValueError as error:
            problems["subject"] = f"With its substitutions: {error}"
    return problems
