"""What a request may hold, beside a message, and how it is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from browsable_api import Structure, request
from email_services.drill import KINDS, Drill, DrillKind
from email_services.exceptions import InvalidInput, MessageTooLarge
from email_services.ledger import Once
from email_services.message import MAX_FILES, MAX_RECIPIENTS, EmailMessage

KEY_FIELDS = ("pool_api_key", "root_api_key")
TOKEN_FIELD = "csrf_token"  # noqa: S105 - its name
"""What a form of a page holds where a session stands for the key."""

Model = TypeVar("Model", bound=BaseModel)


CURSOR = "^([0-9]{1,15}(?:[.][0-9]{1,15})?)_([0-9a-f]{32})$"


def _refuse_bare_number(value: object) -> object:
    if re.fullmatch(r"[-+0-9.eE_\s]*", str(value)):
        raise ValueError("It should be a time in ISO 8601 with its zone: 2026-11-24T12:00:00Z.")
    return value


def _refuse_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("It should be a number.")
    return value


def _parse_cursor(value: object) -> object:
    match = re.fullmatch(CURSOR, str(value))
    if not match:
        raise ValueError("It should be one that a page gave as next.")
    return (float(match.group(1)), match.group(2))


Number = Annotated[float, BeforeValidator(_refuse_flag)]
# The bounds come first, or the description of the API would not have them.
Minutes = Annotated[float, Field(gt=0, le=7 * 24 * 60), BeforeValidator(_refuse_flag)]


class PoolKey(BaseModel):
    """The key of one email domain."""

    pool_api_key: str = Field(
        title="Pool key",
        description="The pool key of this domain.",
        json_schema_extra={"widget": "password"},
    )


class RootKey(BaseModel):
    """The administrator's key."""

    root_api_key: str = Field(
        title="Root key",
        description="The root key of this server.",
        json_schema_extra={"widget": "password"},
    )


class AnyKey(BaseModel):
    """A key to sign in with."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(
        description="The root key, or the pool key of a domain.",
        json_schema_extra={"widget": "password", "pattern": r"\S"},  # in a form, blank is none
    )


class SignIn(AnyKey):
    """A key to sign in with, and where to go then."""

    next: str = Field("/", description="The page of this server to go to then.")


class Preview(BaseModel):
    """HTML to be looked at."""

    model_config = ConfigDict(extra="forbid")

    html: str = Field("", description="The HTML.")


class Failure(BaseModel):
    """What the simulated failure of a service should be."""

    model_config = ConfigDict(extra="forbid")

    simulated_failure: bool = Field(
        False,
        description="On or off; without it, it is switched over.",
        json_schema_extra={
            "widget": "buttons",
            "options": {"true": "Start this failure", "false": "End it"},
        },
    )
    kind: DrillKind = Field(
        "unavailable",
        description="The fault that is simulated.",
        json_schema_extra={
            "widget": "select",
            # The first is empty, so that a form that was left alone switches over.
            "options": {"": "unavailable", **{kind: kind.replace("_", " ") for kind in KINDS[1:]}},
        },
    )
    share: Number = Field(
        1, gt=0, le=1, description="The part of messages that meets it: 0.1 is one in ten."
    )
    minutes: Minutes | None = Field(
        None, description="When it ends by itself; without it, it does not."
    )

    def drill(self, current: Drill | None, now: float) -> Drill | None:
        """The drill that is wanted, where `current` is on or none is."""
        wanted = self.simulated_failure
        if "simulated_failure" not in self.model_fields_set:
            wanted = current is None or bool(self.model_fields_set)
        until = now + self.minutes * 60 if self.minutes else None
        return Drill(self.kind, self.share, now, until) if wanted else None


Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""What a database can be asked for: PostgreSQL takes no NUL."""


Outcome = Literal["sent", "not sent", "unknown", "in progress"]

Time = Annotated[AwareDatetime, BeforeValidator(_refuse_bare_number)]
"""A time as people and programs write it, not seconds since some epoch."""

Cursor = Annotated[
    tuple[float, str],
    BeforeValidator(_parse_cursor),
    WithJsonSchema({"type": "string", "pattern": CURSOR}),
]
"""The place between two messages of the log."""


class MessageFilter(BaseModel):
    """Which messages of the log are wanted, from the query of the URL."""

    model_config = ConfigDict(extra="forbid")

    recipient: Text | None = Field(None, description="An address it was sent to, or a part of one.")
    outcome: Outcome | None = Field(
        None,
        description="What became of it.",
        json_schema_extra={
            "widget": "select",
            "options": {"": "any", **{outcome: outcome for outcome in get_args(Outcome)}},
        },
    )
    service: Text | None = Field(None, description="One that was tried or passed by.")
    since: Time | None = Field(None, description="ISO 8601 with a zone: 2026-11-24T12:00:00Z.")
    until: Time | None = Field(None, description="ISO 8601 with a zone: 2026-11-24T12:00:00Z.")
    cursor: Cursor | None = Field(
        None,
        description="Where a page ends, as its `next` says.",
        json_schema_extra={"widget": "none"},
    )
    limit: int = Field(50, ge=1, le=500, description="How many at once, 50 by default.")

    @classmethod
    def read(cls, query: Mapping[str, str]) -> MessageFilter:
        """The query of a URL; what a form left empty was not given. Raises InvalidInput."""
        return checked(cls, {name: value for name, value in query.items() if value})


MAX_BATCH = 1000
LARGEST_IN_A_BATCH = 4
"""What the messages of a batch may become in all: as much as so many of the largest."""


class Batch(BaseModel):
    """Several messages in one request; each is checked on its own."""

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, Any]] = Field(
        description="Up to 1,000 messages, each with all its fields; JSON only.",
        min_length=1,
        max_length=MAX_BATCH,
    )


class Nothing(BaseModel):
    """No field but a key."""

    model_config = ConfigDict(extra="forbid")


def given_fields() -> dict[str, Any]:
    """What the body holds beside keys and what stands for them.

    Raises InvalidInput for a key that can be none.
    """
    wrong = [name for name in KEY_FIELDS if not isinstance(request.data.get(name, ""), str)]
    if wrong:
        raise InvalidInput(dict.fromkeys(wrong, "It should be a string."))
    credentials = {*KEY_FIELDS, TOKEN_FIELD}
    return {name: value for name, value in request.data.items() if name not in credentials}


def checked(model: type[Model], fields: Mapping[str, Any] | None = None) -> Model:
    """The body, or `fields`, as a `model`. Raises InvalidInput."""
    try:
        return model.model_validate(given_fields() if fields is None else fields)
    except ValidationError as error:
        raise InvalidInput.from_validation(error, known=model.model_fields) from None


def checked_message(fields: Mapping[str, Any], email_domain: str, max_bytes: int) -> EmailMessage:
    """The message in `fields`, for a sender at `email_domain`, of at most `max_bytes`.

    Raises InvalidInput with every problem of the request, its Idempotency-Key's among them.
    """
    problems = _problems_of_the_key()
    try:
        message = EmailMessage.parse(fields, email_domain, max_bytes)
    except InvalidInput as error:
        if not problems:
            raise
        raise InvalidInput({**error.problems, **problems}) from None
    if problems:
        raise InvalidInput(problems)
    return message


def checked_batch(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each message of a batch, not yet checked. Raises InvalidInput."""
    problems = _problems_of_the_key()
    try:
        batch = Batch.model_validate(fields)
    except ValidationError as error:
        known = InvalidInput.from_validation(error, known=Batch.model_fields)
        raise InvalidInput({**known.problems, **problems}) from None
    if problems:
        raise InvalidInput(problems)
    return batch.messages


def refuse_large_batch(size: int, max_message_bytes: int) -> None:
    """Raise MessageTooLarge where the first messages of a batch become `size` bytes, and too many.

    A request of a few megabytes may ask for gigabytes, by substitutions and by HTML whose text is
    longer: nothing of the rest is made then.
    """
    limit = LARGEST_IN_A_BATCH * max_message_bytes
    if size > limit:
        raise MessageTooLarge(size, limit, "substitutions", "The batch has at least")


def once(asked: object) -> Once | None:
    """The Idempotency-Key of a request that was checked, which asks for `asked`."""
    if request.once_key is None and "Idempotency-Key" not in request.headers:
        return None
    mark = fingerprint(asked)
    return Once(_idempotency_key(mark), mark)


def once_each(asked: Mapping[int, object]) -> tuple[list[Once] | None, Once | None]:
    """The same for the messages of a batch, each with a key of its own, by its number.

    And the key itself, which then stands for a batch and for nothing else.
    """
    if request.once_key is None and "Idempotency-Key" not in request.headers:
        return None, None
    marks = {number: fingerprint(message) for number, message in asked.items()}
    key = _idempotency_key(str(marks))
    stem = hashlib.sha256(key.encode()).hexdigest()
    each = [Once(f"{stem}.{number}", mark) for number, mark in marks.items()]
    return each, Once(key, "a batch")


def _idempotency_key(mark: str) -> str:
    """The header's, or one for this form as it was filled in: another message is another one."""
    if request.once_key is None:
        return str(request.headers["Idempotency-Key"])
    return hashlib.sha256(f"{request.once_key} {mark}".encode()).hexdigest()


def _problems_of_the_key() -> dict[str, str]:
    key = request.headers.get("Idempotency-Key")
    if key is None or re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        return {}
    return {"Idempotency-Key": "It should be 1 to 255 printable ASCII characters without spaces."}


def max_body_bytes(message_bytes: int) -> int:
    """What a body may hold that carries a message: base64, its line breaks, JSON around it."""
    return int(message_bytes * 1.45) + 1024 * 1024


MAX_JSON: Final = Structure(
    containers=MAX_BATCH * (50 + 2 * MAX_FILES),
    members=MAX_BATCH * 500,
    values=MAX_BATCH * (MAX_RECIPIENTS + 500),
)
"""What a batch may become: its messages, each with as many recipients and files as one may have."""


def fingerprint(asked: object) -> str:
    """The same for the same, whatever the order of its fields; a file counts by its hash."""
    text = json.dumps(
        asked, sort_keys=True, default=lambda content: hashlib.sha256(content).hexdigest()
    )
    return hashlib.sha256(text.encode()).hexdigest()
