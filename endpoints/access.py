"""Who may see and do what: which keys open an operation, and what a view gets then.

A request that shows a key is judged by that alone; for one that shows none, a session may do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from flask import g

from browsable_api import Access, KeyField, request
from email_services.api_keys import ApiKey, Keyring, Role
from email_services.exceptions import (
    KeyMissing,
    KeyRefused,
    StoreUnavailable,
    UnknownDomain,
    UnknownMessage,
)
from email_services.kafka import TAKEN_IN_SECONDS
from email_services.logs import about
from email_services.pool import PooledEmailService
from endpoints.context import mailpool
from endpoints.sessions import Session, current_session, usable_session

POOL_KEY: Final = KeyField("pool_api_key", "Pool key", "The pool key of this domain.")
ROOT_KEY: Final = KeyField("root_api_key", "Root key", "The root key of this server.")
KEY_FIELDS: Final = (POOL_KEY.name, ROOT_KEY.name)

SCHEMES: Final[Mapping[Role, str]] = {
    "root": "root_key",
    "send": "pool_key",
    "read": "read_key",
    "metrics": "metrics_key",
}
"""What a key of each role is called where an operation says which open it."""

OPEN: Final = Access()
"""Nobody's key is asked for."""

READING: Final = Access(
    ("root_key", "pool_key", "read_key"), ROOT_KEY, "the root key, the pool key or a read key"
)
LISTED: Final = Access(
    ("", *READING.schemes), ROOT_KEY, f"anybody; in production {READING.opened_by}"
)
"""Open outside production, to who shows no key."""

MEASURED: Final = Access(
    ("", "root_key", "metrics_key"),
    ROOT_KEY,
    "anybody; in production the root key or a metrics key",
)
"""What concerns all domains, and is no secret outside production."""

SENDING: Final = Access(("pool_key", "root_key"), POOL_KEY, "the pool key or the root key")
ROOT: Final = Access(("root_key",), ROOT_KEY, "the root key")
_NEEDED: Final = {
    LISTED: "the root key or a key of this domain",
    READING: "the root key or a key of this domain",
    SENDING: "the pool key of this domain or the root key",
    ROOT: "the root key",
    MEASURED: "the root key or a metrics key",
}

_IN_WORDS: Final[Mapping[Role, str]] = {
    "root": "the root key",
    "send": "the pool key of this domain",
    "read": "a key of this domain that only reads",
    "metrics": "a key that only reads metrics",
}


def enter(access: Access, parts: dict[str, Any]) -> dict[str, Any]:
    """What a view gets for the parts of its path, if the caller's keys open it.

    `pool` for the email domain, or `pools` where the path has none, `service` and `message`; the
    rest as it came. Raises KeyRefused that says what is needed, TooManyWrongKeys, UnknownDomain,
    UnknownService, UnknownMessage or StoreUnavailable.
    """
    if access == OPEN:
        return parts
    if "email_domain" not in parts:
        return {"pools": _visible_pools(access), **parts}
    pool = _opened(access, parts.pop("email_domain"))
    if "service" in parts:
        parts["service"] = pool.service(parts["service"])
    if "message_id" in parts:
        parts["message"] = _message(pool, parts.pop("message_id"))
    return {"pool": pool, **parts}


def _opened(access: Access, name: str) -> PooledEmailService:
    """The pool of the domain `name`, if the caller's keys open it.

    In production whether a domain exists is the root's to know, so that a stranger is told the same
    of both.
    """
    try:
        domain = mailpool.config.domain(name)
    except UnknownDomain:
        if mailpool.config.production and not is_root():
            raise _refused(access) from None
        raise
    if not may(access, domain.email_domain):
        raise _refused(access, _held(domain.email_domain))
    return mailpool.pools[domain.email_domain]


def may(access: Access, name: str) -> bool:
    """Whether the caller may do what is opened so, with the email domain `name`."""
    if "" in access.schemes and _is_open_to_all():
        return True
    opening = [key for key in _keys_held(name) if SCHEMES[key.role] in access.schemes]
    if opening:
        _note(opening[0])
    return bool(opening)


def _visible_pools(access: Access) -> list[PooledEmailService]:
    """Of the domains the caller may see; all, outside production, to who may see one."""
    pools = mailpool.pools
    own = [pool for name, pool in pools.items() if may(access, name)]
    if not own:
        needed = "" if access in {ROOT, MEASURED} else "the root key or a key of a domain"
        raise _refused(access, needed=needed)
    return own if mailpool.config.production else list(pools.values())


def _message(pool: PooledEmailService, message_id: str) -> Any:
    is_one = re.fullmatch(r"[0-9a-f]{32}", message_id)
    domain = pool.email_domain
    found = is_one and mailpool.store.messages(domain, time.time(), message_id=message_id)
    if not found:
        is_perhaps_queued = is_one and mailpool.config.queue
        raise UnknownMessage(message_id, TAKEN_IN_SECONDS if is_perhaps_queued else None)
    return found[0]


def may_hold_keys() -> bool:
    """Whether a request's body may show keys. What is PUT is a whole, and none is part of it."""
    return bool(request.method != "PUT")


def keys_shown() -> list[str]:
    """Every key the caller shows, in the Authorization header or in the body.

    A key in the header that opens nothing here is the only one: no body makes up for it, and so it
    is not read. A request asks it several times.
    """
    if "keys_shown" not in g:
        g.keys_shown = _keys_shown()
    shown: list[str] = g.keys_shown
    return shown


def _keys_shown() -> list[str]:
    key = _key_in_header()
    if key is not None and not _is_right(key):
        return [key]
    shown = [key]
    if may_hold_keys():
        shown += [request.data.get(name) for name in KEY_FIELDS]
    return [key for key in shown if isinstance(key, str)]


def knows_sender(beginning: bytearray) -> bool:
    """Whether the caller is signed in or shows a key that opens something here.

    beginning: of the body, which may hold the key where the header has none.
    """
    key = _key_in_header()
    if key is not None:
        return _is_right(key)
    with suppress(StoreUnavailable):
        if current_session():
            return True
    early = request.early_values(beginning, KEY_FIELDS) if may_hold_keys() else []
    is_known = any(map(_is_right, early))
    if not is_known:
        _count_wrong(early)
    return is_known


def _key_in_header() -> str | None:
    bearer = request.authorization
    return bearer.token if bearer and bearer.type == "bearer" else None


def _is_right(key: str) -> bool:
    """Whether `key` opens anything here; a request asks it again and again of the same."""
    return bool(_found(key))


def _found(shown: str) -> tuple[ApiKey, ...]:
    """Which keys it is; a request asks it again and again of the same."""
    known: dict[str, tuple[ApiKey, ...]] = g.setdefault("found_keys", {})
    if shown not in known:
        known[shown] = mailpool.config.keyring.find(shown, time.time())
    return known[shown]


def _callers_keys() -> list[ApiKey]:
    """Those that the caller shows, or has signed in with."""
    if "callers_keys" not in g:
        session = _session()
        found = [session.key] if session else [k for shown in keys_shown() for k in _found(shown)]
        for key in found:
            mailpool.key_uses.note(key, time.time())
        g.callers_keys = found
    keys: list[ApiKey] = g.callers_keys
    return keys


def _keys_held(name: str) -> list[ApiKey]:
    """Of those the ones for the email domain `name`, or for the whole server."""
    return [key for key in _callers_keys() if key.email_domain in {None, name}]


def _held(name: str) -> str:
    """Which right key the caller has, or "": whoever holds it may know."""
    held = _keys_held(name)
    return _IN_WORDS[held[0].role] if held else ""


def _refused(access: Access, held: str = "", needed: str = "") -> KeyRefused:
    """What a caller is told whose keys do not open this; wrong ones are counted.

    held: the key that was shown, where it opens other things. needed: what does, if that is not the
    same for all that is opened so. Raises TooManyWrongKeys.
    """
    needed = needed or _NEEDED[access]
    g.key_name = "POOL_KEY" if "pool_key" in access.schemes else "ROOT_KEY"
    keys = keys_shown()
    _count_wrong(keys)
    if not _shows_a_key() and _session() is None:
        return KeyMissing(f"No key was shown: {needed} is needed, as Authorization: Bearer KEY.")
    if held:
        shown = "You are signed in with" if _session() else "This is"
        return KeyRefused(f"{shown} {held}, which does not open this: {needed} is needed.")
    return KeyRefused(f"This key does not open this: {needed} is needed.")


def _count_wrong(keys: list[str]) -> None:
    """Count, once in a request, that keys were shown which open nothing here."""
    if not g.get("counted") and not all(map(_is_right, keys)):
        g.counted = True
        mailpool.guesses.count(request.remote_addr, time.time())


def is_root() -> bool:
    """Whether the caller shows a root key, or has signed in with one."""
    found = [key for key in _callers_keys() if key.role == "root"]
    if found:
        _note(found[0])
    return bool(found)


def is_signed_in() -> bool:
    """Whether the caller may do what they do since they have signed in."""
    return _session() is not None


def caller() -> str:
    """Whose key opened this, by its name."""
    return ", ".join(dict.fromkeys(map(str, _callers_keys()))) or "nobody"


def may_look_at(name: str) -> bool:
    """Whether every page may tell the caller of the email domain `name`, going by the session.

    Raises StoreUnavailable.
    """
    session = current_session()
    return not mailpool.config.production or (
        session is not None and session.key.email_domain in {None, name}
    )


def opens_for_caller(keyring: Keyring) -> bool:
    """Whether the caller would be an administrator by the keys of another configuration."""
    if _shows_a_key():
        found = [key for shown in keys_shown() for key in keyring.find(shown, time.time())]
    else:
        held = {key.secret for key in _callers_keys()}
        found = [key for key in keyring.keys if key.secret in held and key.is_valid(time.time())]
    return any(key.role == "root" for key in found)


def does_for(access: Access, session: Session) -> bool:
    """Whether the session stands for the key that a form asks for on this page."""
    if access.asks_for == POOL_KEY:
        try:
            domain = mailpool.config.domain((request.view_args or {})["email_domain"])
        except UnknownDomain:
            return False
        is_here = session.key.email_domain in {None, domain.email_domain}
        return is_here and SCHEMES[session.key.role] in access.schemes
    return access.asks_for is None or session.key.role == "root"


def _note(key: ApiKey) -> None:
    """Note which key opens, for the log and, as the README's variables are named, for curl."""
    about(key=str(key))
    g.key_name = "POOL_KEY" if key.email_domain else "ROOT_KEY"


def _session() -> Session | None:
    """The session that the request is judged by."""
    return None if _shows_a_key() else usable_session()


def _shows_a_key() -> bool:
    """Whether there is something in a key's place, even if it can be none."""
    return bool(keys_shown()) or (
        may_hold_keys() and any(name in request.data for name in KEY_FIELDS)
    )


def _is_open_to_all() -> bool:
    return not (keys_shown() or mailpool.config.production)
