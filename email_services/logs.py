"""What the service logs: lines of text, or one JSON object a line, as $LOG_FORMAT says.

What can be searched for is named: a line about something that happens is an `Event`, with fields
(`extra=event(...)`). Lines that one request or task writes say so: `about`. Fields are only in
JSON; a line of text has what its sentence says.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import SecretStr
from pythonjsonlogger.json import JsonFormatter

from email_services.exceptions import ConfigError

Event = Literal[
    "attempt",
    "failover",
    "queued",
    "health",
    "change",
    "key_refused",
    "signed_in",
    "config",
    "request",
    "exception",
    "note",
]
"""What happened; the names stay. The last two are given to lines that name none."""

TEXT: Final = "%(asctime)s %(levelname)s %(process)d %(name)s %(message)s"
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
FORMATS: Final = ("text", "json")
HASH_CHARACTERS: Final = 16

_ABOUT: ContextVar[Mapping[str, object]] = ContextVar("about", default=MappingProxyType({}))


def about(**fields: object) -> None:
    """Have what is logged from here on in this context say so, too."""
    _ABOUT.set({**_ABOUT.get(), **fields})


def only_about(**fields: object) -> None:
    """The same, and nothing of what was said before: a request or a task begins."""
    _ABOUT.set(fields)


def event(name: Event, **fields: object) -> dict[str, object]:
    """What a line is about, for `extra`. Never a key or a body."""
    return {"event": name, **fields}


def ids(message_ids: Sequence[str]) -> dict[str, object]:
    """The field for one message, or for several."""
    if len(message_ids) == 1:
        return {"message_id": message_ids[0]}
    return {"message_ids": [*message_ids]}


def settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """How to log, for `logging.config.dictConfig`. Raises ConfigError for a setting that is none.

    environment: of the process.
    """
    level = environment.get("LOG_LEVEL", "info").upper()
    if level not in LEVELS:
        raise ConfigError("$LOG_LEVEL should be debug, info, warning or error.")
    form = environment.get("LOG_FORMAT", "text")
    if form not in FORMATS:
        raise ConfigError("$LOG_FORMAT should be text or json.")
    recipients = environment.get("LOG_RECIPIENTS", "none")
    if recipients not in {"none", "hashed", "plain"}:
        raise ConfigError("$LOG_RECIPIENTS should be none, hashed or plain.")
    secret = environment.get("LOG_SECRET", "")
    if recipients == "hashed" and not secret:
        raise ConfigError("$LOG_SECRET should be there to hash recipients with, and hard to guess.")
    # gunicorn logs all of its settings at DEBUG, this among them.
    json_lines = {"()": JSONLines, "recipients": recipients, "secret": SecretStr(secret)}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": json_lines if form == "json" else {"format": TEXT}},
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": "line",
            },
        },
        "root": {"level": level, "handlers": ["stdout"]},
        "loggers": {
            "gunicorn.error": {"level": level, "propagate": True},
        },
    }


class JSONLines(JsonFormatter):  # type: ignore[misc,unused-ignore]
    """One JSON object for each line.

    recipients: "plain", "hashed" with `secret`, or "none".
    """

    def __init__(self, recipients: str = "none", secret: SecretStr | None = None) -> None:
        super().__init__(
            ["message", "name", "process"],
            rename_fields={"name": "logger", "process": "pid", "exc_info": "exception"},
        )
        self._recipients = recipients
        self._secret = secret.get_secret_value().encode() if secret else b""

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """See JsonFormatter; the line's own fields win over what its context is about."""
        at = datetime.fromtimestamp(record.created, tz=timezone.utc)
        log_data["time"] = at.isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname
        log_data["event"] = "exception" if record.exc_info else "note"
        log_data.update(_ABOUT.get())
        super().add_fields(log_data, record, message_dict)
        if "recipients" in log_data:
            self._tell(log_data, log_data.pop("recipients"))

    def _tell(self, log_data: dict[str, Any], recipients: Sequence[str]) -> None:
        if self._recipients == "plain":
            log_data["recipients"] = [*recipients]
        elif self._recipients == "hashed":
            log_data["recipients"] = [hashed(address, self._secret) for address in recipients]


def hashed(address: str, secret: bytes) -> str:
    """What stands for an address: HMAC-SHA-256 in hexadecimal, shortened."""
    return hmac.new(secret, address.encode(), hashlib.sha256).hexdigest()[:HASH_CHARACTERS]
