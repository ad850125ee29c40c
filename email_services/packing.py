"""A message as bytes, for as long as it waits, and back.

What was checked once is not checked again. It is JSON, so that another version of this service can
read it, and a person who has to.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from copy import copy
from datetime import datetime
from typing import Any, Final

from email_services.addresses import Address
from email_services.attachments import Attachment, InlineImage, MediaType
from email_services.message import RECIPIENT_FIELDS, EmailMessage

_ADDRESSES: Final = (*RECIPIENT_FIELDS, "reply_to")
_FILES: Final[Mapping[str, type[Attachment]]] = {"attachments": Attachment, "inline": InlineImage}
_NOT_KEPT: Final = frozenset({"dry_run", "from_name"})
"""What has been done by then: the sender's name is with its address."""

_PLAIN: Final = tuple(
    name
    for name in EmailMessage.model_fields
    if name not in {"from_email", "send_at", *_ADDRESSES, *_FILES, *_NOT_KEPT}
)

# Pydantic works out how to make a default each time that it is asked for one, which takes it longer
# than all else that is done here.
_DEFAULTS: Final = {
    name: field.get_default(call_default_factory=True)
    for name, field in EmailMessage.model_fields.items()
    if not field.is_required()
}


def packed(message: EmailMessage) -> bytes:
    """The message with its id, as `unpacked` takes it."""
    fields: dict[str, Any] = {"message_id": message.message_id, "from_email": message.from_email}
    for name in _ADDRESSES + _PLAIN:
        value = getattr(message, name)
        if name not in _DEFAULTS or value != _DEFAULTS[name]:
            fields[name] = value
    for name in _FILES:
        if files := getattr(message, name):
            fields[name] = [_packed_file(file) for file in files]
    if message.send_at:
        fields["send_at"] = message.send_at.isoformat()
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def unpacked(data: bytes) -> EmailMessage:
    """The message that was packed, by the same id."""
    fields: dict[str, Any] = json.loads(data)
    message_id = fields.pop("message_id")
    fields["from_email"] = Address(*fields["from_email"])
    for name in _ADDRESSES:
        if name in fields:
            fields[name] = [Address(*address) for address in fields[name]]
    for name, kind in _FILES.items():
        if name in fields:
            fields[name] = [_unpacked_file(kind, file) for file in fields[name]]
    if "send_at" in fields:
        fields["send_at"] = datetime.fromisoformat(fields["send_at"])
    for name, default in _DEFAULTS.items():
        if name not in fields:
            fields[name] = copy(default)  # a list or a dict is each message's own
    return EmailMessage.model_construct(**fields).known_as(message_id)


def _packed_file(file: Attachment) -> dict[str, Any]:
    fields = {
        "filename": file.filename,
        "content": file.base64,
        "content_type": str(file.content_type),
        "charset": file.charset,
    }
    return {**fields, "content_id": file.content_id} if isinstance(file, InlineImage) else fields


def _unpacked_file(kind: type[Attachment], fields: dict[str, Any]) -> Attachment:
    media_type = MediaType(fields.pop("content_type"))
    media_type.charset = fields.pop("charset")
    content = base64.b64decode(fields.pop("content"))
    return kind.model_construct(**fields, content=content, content_type=media_type)
