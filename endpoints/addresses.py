"""Every address of this server: what the rooms are reached at, and what answers lead to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from werkzeug.routing import BaseConverter

from browsable_api import request
from browsable_api.operations import PART

HOME: Final = "/"
DOMAIN: Final = "/<domain:email_domain>"
SEND: Final = f"{DOMAIN}/send"
SEND_THROUGH: Final = f"{DOMAIN}/<service>/send"
FAIL: Final = f"{DOMAIN}/<service>/fail"
HEALTH: Final = f"{DOMAIN}/<service>/health"
ALL_MESSAGES: Final = "/messages"
ALL_AS_CSV: Final = f"{ALL_MESSAGES}/export.csv"
ALL_AS_LINES: Final = f"{ALL_MESSAGES}/export.jsonl"
MESSAGES: Final = f"{DOMAIN}/messages"
AS_CSV: Final = f"{MESSAGES}/export.csv"
AS_LINES: Final = f"{MESSAGES}/export.jsonl"
MESSAGE: Final = f"{MESSAGES}/<message:message_id>"
CANCEL: Final = f"{MESSAGE}/cancel"
SEND_NOW: Final = f"{MESSAGE}/send-now"
SEND_AGAIN: Final = f"{MESSAGE}/send-again"
QUEUE: Final = f"{DOMAIN}/queue"
CONTENT: Final = f"{MESSAGE}/content"
SOURCE: Final = f"{MESSAGE}/source"
FILE: Final = f"{MESSAGE}/files/<number>"
KEYS: Final = "/keys"
CONFIG: Final = "/config"
VERSIONS: Final = f"{CONFIG}/versions"
VERSION: Final = f"{VERSIONS}/<version>"
RESTORE: Final = f"{VERSION}/restore"
SIGN_IN: Final = "/sign-in"
SIGN_OUT: Final = "/sign-out"
PREVIEW: Final = "/preview"
DESCRIPTION: Final = "/openapi.json"
REFERENCE: Final = "/reference"
HEALTHZ: Final = "/healthz"
READYZ: Final = "/readyz"
METRICS: Final = "/metrics"

SHORT_ID: Final = 8
"""Characters of a message's id that tell one from another for people."""


class DomainConverter(BaseConverter):
    """A part of an address that may be an email domain: it has a dot, as one other word here."""

    regex = rf"(?!{re.escape(DESCRIPTION[1:])}$)[^/]+\.[^/]*"


class MessageConverter(BaseConverter):
    """A part of an address that may be the id of a message: it has no dot, as names of files do."""

    regex = r"[^/.]+"


def path_of(address: str, query: Mapping[str, str] | None = None, /, **parts: str) -> str:
    """One of the above on this server, with its parts filled in."""
    filled = PART.sub(lambda part: quote(parts[part[1]], safe="@"), address)
    asked = f"?{urlencode(query)}" if query else ""
    return f"{quote(request.script_root)}{filled}{asked}"


def url_of(address: str, query: Mapping[str, str] | None = None, /, **parts: str) -> str:
    """The same in full."""
    return f"{request.host_url.removesuffix('/')}{path_of(address, query, **parts)}"


def page_addresses() -> dict[str, Any]:
    """Where pages lead to, beside what the answer says; for templates.

    message_url: a function of a message's id. places: what a page is about, for its title.
    called: what a part of the path is called, where that says more than the part.
    """
    parts = request.view_args or {}
    name = parts.get("email_domain")
    if name is None:
        return {
            "all_messages_url": path_of(ALL_MESSAGES),
            "keys_url": path_of(KEYS),
            "config_url": path_of(CONFIG),
        }
    id_ = parts.get("message_id")
    called = {id_: f"message {id_[:SHORT_ID]}"} if id_ else {}
    about = [parts[part] for part in ("message_id", "service", "email_domain") if part in parts]
    return {
        "places": [called.get(part, part) for part in about],
        "called": called,
        "preview_url": path_of(PREVIEW),
        "send_url": path_of(SEND, email_domain=name),
        "message_url": lambda id_: path_of(MESSAGE, email_domain=name, message_id=id_),
    }
