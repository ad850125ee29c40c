"""Signing in: a key is typed once, and a cookie stands for it for an hour.

The cookie holds which key signed in, by its name, until when, a random id and a fingerprint of the
key, all signed; no key is in it. The secret that signs it is in the store, so that every worker
knows every cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from flask import g
from itsdangerous import BadData, URLSafeSerializer
from werkzeug.wrappers import Response

from browsable_api import APIError, request
from email_services.api_keys import ApiKey
from email_services.exceptions import KeyRefused, StoreUnavailable
from email_services.logs import event
from endpoints.context import mailpool

logger = logging.getLogger(__name__)

TOKEN_FIELD: Final = "csrf_token"  # noqa: S105 - its name
"""What a form of a page holds where a session stands for the key."""

SESSION_SECONDS: Final = 3600

_LOCAL = re.compile(r"/(?!/)[!-\[\]-~]*")
"""An address on this server: one slash, and no space, control character or backslash anywhere."""


@dataclass(frozen=True)
class Session:
    """What a cookie stands for.

    key: who signed in. until: seconds since the epoch. id: random, in no page.
    """

    key: ApiKey
    until: float
    id: str

    @property
    def words(self) -> str:
        """Who it is, for people."""
        whose = f"for {self.key.email_domain}" if self.key.email_domain else "as administrator"
        if self.key.role == "metrics":
            whose = "to read metrics"
        return f"{whose} ({self.key.name})" if self.key.is_named else whose

    @property
    def token(self) -> str:
        """What our own forms hold, and nobody else can know."""
        return _mac("form", self.id)


def current_session() -> Session | None:
    """Whose cookie comes with the request; None without one, or if it is void.

    Raises StoreUnavailable where there is a cookie that cannot be checked.
    """
    if "session" not in g:
        cookie = request.cookies.get(_cookie_name())
        g.session = _read(cookie) if cookie else None
    session: Session | None = g.session
    return session


def usable_session() -> Session | None:
    """The session where it may be acted on: what changes something comes from our own page.

    Raises APIError (403) where it does not.
    """
    session = current_session()
    if session and request.method not in {"GET", "HEAD", "OPTIONS"}:
        token = request.data.get(TOKEN_FIELD)
        is_ours = isinstance(token, str) and hmac.compare_digest(
            token.encode("utf-8", "replace"), session.token.encode()
        )
        refuse_unless(is_ours and comes_from_here() is True)
    return session


def comes_from_here() -> bool | None:
    """Whether the browser says that a page of this server sent the request; None if it is silent.

    No page can make a browser lie in these headers.
    """
    if site := request.headers.get("Sec-Fetch-Site"):
        return str(site) == "same-origin"
    sender = request.headers.get("Origin") or request.headers.get("Referer")
    if not sender:
        return None
    try:
        return bool(urlsplit(sender).netloc == request.host)
    except ValueError:
        return False


def open_session(key: str) -> Session:
    """A session for who shows a key of this server.

    Raises KeyRefused, which is the same for every wrong key, TooManyWrongKeys, which looks at none,
    APIError (403) where another site's page would sign a person in, and StoreUnavailable.
    """
    refuse_unless(comes_from_here() is not False)
    mailpool.guesses.count(request.remote_addr, time.time())  # first: many may come at once
    found = mailpool.config.keyring.find(key, time.time())
    if not found:
        raise KeyRefused("This key opens nothing here.")
    mailpool.guesses.take_back(request.remote_addr, time.time())
    _ = _secret()  # without it nobody is signed in, nor said to be
    session = Session(found[0], time.time() + SESSION_SECONDS, secrets.token_urlsafe(16))
    said = event("signed_in", key=str(session.key), client=request.remote_addr)
    logger.info("Signed in %s, from %s.", session.words, request.remote_addr, extra=said)
    return session


def set_cookie(response: Response, session: Session) -> Response:
    """Give the browser what stands for the session."""
    content = {
        "place": session.key.place,
        "name": session.key.name,
        "until": session.until,
        "id": session.id,
        "key": _fingerprint(session.key),
    }
    response.set_cookie(
        _cookie_name(),
        _serializer().dumps(content),
        max_age=SESSION_SECONDS,
        secure=request.is_secure,
        httponly=True,
        samesite="Strict",
    )
    return response


def may_sign_out() -> bool:
    """Whether there is a cookie to be forgotten. Raises APIError (403) if another site asks."""
    if _cookie_name() not in request.cookies:
        return False
    with suppress(StoreUnavailable):  # there is a way out even so
        usable_session()
    refuse_unless(comes_from_here() is True)  # where the cookie is void too
    return True


def forget_cookie(response: Response) -> Response:
    """Have the browser forget the session."""
    response.delete_cookie(
        _cookie_name(), secure=request.is_secure, httponly=True, samesite="Strict"
    )
    return response


def local_address(target: str) -> str:
    """`target` if it is on this server, else the home page."""
    return target if _LOCAL.fullmatch(target) else "/"


def vary_by_cookie(response: Response) -> Response:
    """No cache may take a page for another person's."""
    response.headers.add("Vary", "Cookie")
    return response


def _cookie_name() -> str:
    # The prefix: browsers take it from this very host only, and over TLS.
    return "__Host-mailpool" if request.is_secure else "mailpool"


def _read(cookie: str) -> Session | None:
    try:
        content = _serializer().loads(cookie)
    except BadData:
        return None
    now = time.time()
    key = mailpool.config.keyring.named(content["place"], content["name"])
    if key is None or not hmac.compare_digest(content["key"], _fingerprint(key)):
        return None  # the key is another one now
    session = Session(key, content["until"], content["id"])
    return session if now < session.until and key.is_valid(now) else None


def _secret() -> str:
    """What signs cookies; asked for once in a request, so that who removes it ends all sessions."""
    if "session_secret" not in g:
        g.session_secret = mailpool.store.secret("sessions")
    return str(g.session_secret)


def _serializer() -> URLSafeSerializer:
    # Not its timed sibling, which refuses what a machine whose clock is a second ahead has signed.
    return URLSafeSerializer(
        _secret(),
        salt="session of a key",  # another one when `Session` changes: older cookies are void then
        signer_kwargs={"digest_method": hashlib.sha256},
    )


def _mac(*parts: str) -> str:
    return hmac.new(_secret().encode(), "\n".join(parts).encode(), hashlib.sha256).hexdigest()


def _fingerprint(key: ApiKey) -> str:
    """Another one once the key is."""
    return _mac("key", key.place, key.name, key.secret)


def refuse_unless(is_ours: bool) -> None:
    """Raises APIError (403) where a request is not from our own page."""
    if not is_ours:
        raise APIError(
            HTTPStatus.FORBIDDEN,
            "Nothing was done: this did not come from a current page of this server. Try it again.",
        )
