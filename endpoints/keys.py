"""For the administrator: which keys there are, and when each was last used."""

from __future__ import annotations

import time
from typing import Annotated

from typing_extensions import TypedDict

from browsable_api.errors import told
from email_services.api_keys import ApiKey, Role
from endpoints.access import ROOT
from endpoints.addresses import KEYS
from endpoints.context import mailpool
from endpoints.messages import Time, iso_or_none
from endpoints.rooms import Endpoints


class KnownKey(TypedDict):
    """A key of this server; never the key itself."""

    name: Annotated[str, told("Its name, or that of the setting where it has none.")]
    role: Annotated[Role, told("What it may: root, send, read or metrics.")]
    email_domain: Annotated[str | None, told("Whose it is; null for the whole server.")]
    is_hashed: Annotated[bool, told("Whether this server knows its hash alone.")]
    until: Annotated[Time | None, told("When it ends; null where it does not.")]
    is_valid: Annotated[bool, told("Whether it opens anything now.")]
    last_used: Annotated[Time | None, told("When it was last shown, a minute late at most.")]


class KnownKeys(TypedDict):
    """The keys of this server."""

    keys: Annotated[list[KnownKey], told("Those of the whole server, then by domain.")]


room = Endpoints("keys", __name__, "Which keys there are, for the administrator.")


@room.operation("GET", KEYS, ROOT, page="keys.html")
def list_keys() -> KnownKeys:
    """Keys.

    Every key of this server by its name, with what it may, when it ends and when it was last used;
    never the key itself. A key that nobody has used for long can go.
    """
    uses = mailpool.key_uses.all()
    keys = mailpool.config.keyring.keys
    return {"keys": [_known(key, uses.get((key.place, key.name))) for key in keys]}


def _known(key: ApiKey, last_used: float | None) -> KnownKey:
    return {
        "name": key.name,
        "role": key.role,
        "email_domain": key.email_domain,
        "is_hashed": key.hashed is not None,
        "until": iso_or_none(key.until),
        "is_valid": key.is_valid(time.time()),
        "last_used": iso_or_none(last_used),
    }
