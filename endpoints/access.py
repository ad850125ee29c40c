"""Who may see and do what: each function gives it, or raises what the caller is told.

A request that shows a key is judged by that alone; for one that shows none, a session may do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress

from flask import g

from browsable_api import request
from email_services.config import EmailDomain
from email_services.exceptions import KeyRefused, StoreUnavailable, UnknownDomain, UnknownMessage
from email_services.store import LoggedMessage
from endpoints.bodies import KEY_FIELDS
from endpoints.context import mailpool
from endpoints.sessions import ROOT, Session, current_session, level_of, usable_session


def keys_shown() -> list[str]:
    """Every key the caller shows, in the Authorization header or in the body.

    A key in the header that opens nothing here is the only one: no body makes up for it, and so it
    is not read.
    """
    key = _key_in_header()
    if key is not None and not _is_right(key):
        return [key]
    shown = [key, *(request.data.get(name) for name in KEY_FIELDS)]
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
    early = request.early_values(beginning, KEY_FIELDS)
    is_known = any(map(_is_right, early))
    if not is_known:
        _count_wrong(early)
    return is_known


def _key_in_header() -> str | None:
    bearer = request.authorization
    return bearer.token if bearer and bearer.type == "bearer" else None


def _is_right(key: str) -> bool:
    """Whether `key` opens anything here; a request asks it again and again of the same."""
    known: dict[str, bool] = g.setdefault("right_keys", {})
    if key not in known:
        known[key] = level_of(key) is not None
    return known[key]


def _refused(needed: str) -> KeyRefused:
    """What a caller is told whose keys do not open this; wrong ones are counted.

    Raises TooManyWrongKeys.
    """
    _count_wrong(keys_shown())
    return KeyRefused(needed)


def _count_wrong(keys: list[str]) -> None:
    """Count, once in a request, that keys were shown which open nothing here."""
    if not g.get("counted") and not all(map(_is_right, keys)):
        g.counted = True
        mailpool.guesses.count(request.remote_addr, time.time())


def is_root() -> bool:
    """Whether the caller shows the root key, or has signed in with it."""
    session = _session()
    if session:
        return _noted("ROOT_KEY", is_open=session.level == ROOT)
    return _noted("ROOT_KEY", is_open=mailpool.config.is_root(keys_shown()))


def visible_domain(name: str) -> EmailDomain:
    """The domain `name`, for someone who may see it."""
    is_open = _open_to_all()
    needed = "The root key or the pool key of this domain is needed."
    return _opened(name, needed, lambda domain: is_open or is_root() or _has_pool_key(domain))


def visible_domains() -> list[EmailDomain]:
    """The domains the caller may see. Raises KeyRefused."""
    domains = list(mailpool.config.domains.values())
    own = [domain for domain in domains if _has_pool_key(domain)]
    if own and mailpool.config.production and not is_root():
        return own
    if _open_to_all() or own or is_root():
        return domains
    raise _refused("The root key or a pool key is needed.")


def with_pool_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who shows its pool key."""
    return _opened(name, "The pool key of this domain is needed.", _has_pool_key)


def with_reading_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who may read its messages."""
    needed = "The pool key of this domain or the root key is needed."
    return _opened(name, needed, may_read)


def readable_message(name: str, message_id: str) -> LoggedMessage:
    """The message of the domain `name` with that id, for someone who may read it.

    Raises KeyRefused, UnknownDomain, UnknownMessage or StoreUnavailable.
    """
    domain = with_reading_key(name).email_domain
    is_one = re.fullmatch(r"[0-9a-f]{32}", message_id)
    found = is_one and mailpool.store.messages(domain, time.time(), message_id=message_id)
    if not found:
        raise UnknownMessage(message_id)
    return found[0]


def with_root_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who shows the root key."""
    return _opened(name, "The root key is needed.", lambda _: is_root())


def may_read(domain: EmailDomain) -> bool:
    """Whether the caller may read the domain's messages."""
    return is_root() or _has_pool_key(domain)


def _opened(name: str, needed: str, opens: Callable[[EmailDomain], bool]) -> EmailDomain:
    """The domain `name`, if the caller's keys open it.

    Raises KeyRefused that says what is `needed`, or UnknownDomain; in production whether a domain
    exists is the root's to know, so that a stranger is told the same of both.
    """
    try:
        domain = mailpool.config.domain(name)
    except UnknownDomain:
        if mailpool.config.production and not is_root():
            raise _refused(needed) from None
        raise
    if not opens(domain):
        raise _refused(needed)
    return domain


def _has_pool_key(domain: EmailDomain) -> bool:
    session = _session()
    if session:
        return _noted("POOL_KEY", is_open=session.level == domain.email_domain)
    return _noted("POOL_KEY", is_open=mailpool.config.opens(domain, keys_shown()))


def _noted(key_name: str, *, is_open: bool) -> bool:
    """For the curl command of a page: which key, as the README's variables are named, opens."""
    if is_open:
        g.key_name = key_name
    return is_open


def _session() -> Session | None:
    """The session that the request is judged by."""
    return None if _shows_a_key() else usable_session()


def _shows_a_key() -> bool:
    """Whether there is something in a key's place, even if it can be none."""
    return bool(keys_shown()) or any(name in request.data for name in KEY_FIELDS)


def _open_to_all() -> bool:
    return not (keys_shown() or mailpool.config.production or request.method == "POST")
