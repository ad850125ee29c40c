"""The shapes of the answers, for the description of the API; tests hold real answers to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from email_services.drill import DrillKind
from email_services.message import OnUnknown


def _absent(description: str) -> Any:
    """A field that an answer may leave out."""
    return Field(default=None, description=description, json_schema_extra=_without_default)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class Shape(BaseModel):
    """Base of the shapes: an answer holds these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Error(Shape):
    """What went wrong, and with which fields of the request."""

    error: str = Field(description="One sentence.")
    problems: dict[str, str] = _absent("A sentence for each field at fault, by its path.")


class Fault(Shape):
    """A fault of a service."""

    at: datetime = Field(description="When.")
    reason: str = Field(description="Why.")


class Health(Shape):
    """Whether a service works."""

    health: Literal["working", "resting", "probing"] = Field(
        description="Messages pass a resting service by; probing: one message tries it."
    )
    health_since: datetime | None = Field(description="Since when.")
    health_reason: str = Field(description='The fault that made it rest, or "".')
    failures_in_a_row: int = Field(description="Failures since the last success.")
    next_probe: datetime | None = Field(description="When a message will try it.")
    last_errors: list[Fault] = Field(description="Its last faults, the newest first.")


class Failure(Shape):
    """A simulated failure."""

    simulated_failure_enabled: bool = Field(description="Whether it is on.")
    simulated_failure_kind: DrillKind = _absent("Which fault, where it was chosen.")
    simulated_failure_share: float = _absent("The part of messages that meets it.")
    simulated_failure_until: datetime | None = _absent("When it ends by itself.")


class ServiceHealth(Health):
    """The health of one service."""

    service_name: str = Field(description="The service.")


class ServiceFailure(Failure):
    """The simulated failure of one service."""

    service_name: str = Field(description="The service.")


class Service(Failure, Health):
    """A service of a domain, as listings show it; to the root key with the keys it uses."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, str]

    service: str = Field(description="The provider.")
    priority_value: float = Field(description="The highest is tried first.")
    timeout_seconds: float = Field(description="What one attempt may take, without its upload.")
    send_url: str = Field(description="Sends through this service alone.")
    fail_url: str = Field(description="Switches its simulated failure.")
    health_url: str = Field(description="Its health.")


class LastHour(Shape):
    """What became of the messages of the last hour."""

    sent_by: dict[str, int] = Field(description="How many each service sent.")
    not_sent: int = Field(description="How many were surely not sent.")
    unknown: int = Field(description="How many may have been sent.")
    in_progress: int = Field(description="How many are on their way.")


class MessageInShort(Shape):
    """A message, as listings show it."""

    message_id: str = Field(description="Our id of it.")
    at: datetime = Field(description="When it came.")
    recipients: list[str] = Field(description="Everybody it was for.")
    subject: str = Field(description="The subject.")
    outcome: Literal["sent", "not sent", "unknown", "in progress"] = Field(
        description="What became of it."
    )
    service_used: str | None = Field(description="The service that accepted it.")
    url: str = Field(description="Its address here.")


class Domain(Shape):
    """An email domain."""

    email_domain: str = Field(description="Its name.")
    url: str = Field(description="Its address here.")
    send_url: str = Field(description="Sends a message, with failover.")
    messages_url: str = Field(description="What was sent.")
    pool_api_key: str = _absent("Shown to the root key, outside production.")
    deadline_seconds: float = Field(description="What all attempts may take together.")
    on_unknown: OnUnknown = Field(description="After an attempt that may have been accepted.")
    enabled_services: dict[str, Service] = Field(
        description="By name, in the order they are tried."
    )
    last_hour: LastHour = Field(description="What became of the last hour's messages.")
    last_messages: list[MessageInShort] = _absent("The newest, for who may read them.")


class Change(Shape):
    """A change of a service, with its reason."""

    at: datetime = Field(description="When.")
    service: str = Field(description="The service.")
    change: str = Field(description="What became of it, and why.")


class DomainWithChanges(Domain):
    """An email domain, and what happened to its services."""

    changes: list[Change] = Field(description="The newest changes of its services.")


class Home(Shape):
    """The email domains of this server that the caller may see."""

    production: bool = Field(description="Whether listings need a key.")
    email_services: list[Domain] = Field(description="The email domains.")


class FieldHelp(Shape):
    """What one field of a message is."""

    required: bool = Field(description="Whether every message needs it.")
    description: str = Field(description="What it is.")


class HowToSend(Shape):
    """What a program needs to send a message."""

    email_domain: str = Field(description="The domain of the sender.")
    services: list[str] = Field(description="The services that are tried, in order.")
    fields: dict[str, FieldHelp] = Field(description="The fields of a message.")
    example: dict[str, JsonValue] = Field(description="A message.")


class Attempt(Shape):
    """What one service did with the message."""

    service: str = Field(description="The service.")
    outcome: Literal["sent", "not sent", "unknown", "skipped"] = Field(description="What it did.")
    code: str = Field(description='Why it was not sent, for programs, or "".')
    reason: str = Field(description='Why it was not sent, or not to everybody, or "".')
    milliseconds: int = Field(description="How long it took.")


class Recipient(Shape):
    """What became of one recipient."""

    email: str = Field(description="The address.")
    outcome: Literal["sent", "not sent", "unknown"] = Field(description="What became of it.")
    service: str = Field(description="The last one that was asked.")
    reason: str = Field(description='Why not, or "".')


class _Tried(Shape):
    services_unsuccessful: dict[str, str] = Field(
        description="Why each service that did not send it did not."
    )
    attempts: list[Attempt] = Field(description="What each service did, in order.")


class Sent(_Tried):
    """A service accepted the message."""

    result: Literal["success", "partial"] = Field(description="Partial: not for all recipients.")
    message_id: str = Field(description="Our id of it.")
    service_used: str = Field(description="The service that accepted it.")
    service_message_id: str | None = Field(description="The provider's id of it.")
    possible_duplicate: bool = Field(
        description="Whether an attempt before may have been accepted too."
    )
    recipients: list[Recipient] = _absent("Each one's fate, where some were refused.")


class NotSent(_Tried):
    """The message was surely not sent."""

    result: Literal["error"] = Field(description="Not sent.")
    error: str = Field(description="One sentence.")
    code: Literal["message_refused", "busy", "unavailable"] = Field(
        description="The same for programs; `busy`: too many are in progress, try again soon."
    )


class Unknown(_Tried):
    """The message may have been sent: a service took it and did not answer."""

    result: Literal["unknown"] = Field(description="It may have been sent.")
    error: str = Field(description="One sentence.")
    code: Literal["unknown_outcome"] = Field(description="The same for programs.")


class Step(Shape):
    """What would be done with one service."""

    service: str = Field(description="The service.")
    decision: Literal["try", "probe", "skip"] = Field(description="What would be done.")
    reason: str = Field(description='Why, or "".')


class Plan(Shape):
    """What would happen to a message; nothing was sent."""

    result: Literal["dry run"] = Field(description="Nothing was sent.")
    plan: list[Step] = Field(description="Each service, in order.")


class Invalid(Error):
    """A message of a batch that was not tried."""

    result: Literal["error"] = Field(description="Not sent.")


class BatchAnswer(Shape):
    """What became of each message of a batch."""

    result: Literal["success", "mixed", "error"] = Field(description="Of all together.")
    results: list[Sent | NotSent | Unknown | Plan | Invalid] = Field(
        description="One for each message, in the same order."
    )


class Message(MessageInShort):
    """A message of the log."""

    from_email: str = Field(description="The sender.")
    service_message_id: str | None = Field(description="The provider's id of it.")
    possible_duplicate: bool = Field(
        description="Whether an attempt before may have been accepted too."
    )
    attempts: list[Attempt] = Field(description="What each service did, in order.")


class Header(Shape):
    """A header of a mail."""

    name: str = Field(description="Its name.")
    value: str = Field(description="What it says, decoded.")


class CapturedFile(Shape):
    """A file in a mail."""

    filename: str = Field(description="Its name.")
    content_type: str = Field(description="What the mail says it is.")
    bytes: int = Field(description="Its size.")
    url: str = Field(description="Where it is.")


class Captured(Shape):
    """A mail that this server keeps."""

    headers: list[Header] = Field(description="Its headers, in order.")
    text: str = Field(description='Its text, or "".')
    content_url: str = Field(description="What its reader sees.")
    source_url: str = Field(description="All of it.")
    attachments: list[CapturedFile] = Field(description="Its files, images too.")


class MessageInFull(Message):
    """A message of the log, and the mail itself where this server keeps it."""

    captured: Captured | None = Field(description="The mail; null where it is kept elsewhere.")


class Messages(Shape):
    """Messages of the log, the newest first."""

    messages: list[Message] = Field(description="The messages.")
    next: str | None = Field(description="The address of the following page.")


class SessionState(Shape):
    """Who is signed in."""

    signed_in: str | None = Field(description='"root", or the email domain of a pool key.')
    until: datetime | None = Field(description="When the session ends.")


class Description(Shape):
    """This description."""

    model_config = ConfigDict(extra="allow")

    openapi: str = Field(description="The version of its form.")


class Status(Shape):
    """That all is well."""

    status: Literal["ok", "ready"] = Field(description="What is well.")
