"""Who may see and do what: every function gives the domain, or raises what the caller is told."""

from __future__ import annotations

from browsable_api import request
from email_services.config import EmailDomain
from email_services.exceptions import KeyRefused, UnknownDomain
from endpoints.bodies import KEY_FIELDS
from endpoints.context import mailpool


def keys_shown() -> list[str]:
    """Every key the caller shows, in the Authorization header or in the body."""
    bearer = request.authorization
    shown = [bearer.token] if bearer and bearer.type == "bearer" else []
    shown += [request.data.get(name) for name in KEY_FIELDS]
    return [key for key in shown if isinstance(key, str)]


def known_domain(name: str) -> EmailDomain:
    """The domain `name`; in production, whether it exists is the root's to know."""
    try:
        return mailpool.config.domain(name)
    except UnknownDomain:
        if mailpool.config.production and not mailpool.config.is_root(keys_shown()):
            raise KeyRefused("The root key or the pool key of this domain is needed.") from None
        raise


def visible_domain(name: str) -> EmailDomain:
    """The domain `name`, for someone who may see it. Raises UnknownDomain or KeyRefused."""
    domain = known_domain(name)
    config, keys = mailpool.config, keys_shown()
    open_to_all = not (keys or config.production or request.method == "POST")
    if open_to_all or config.is_root(keys) or config.opens(domain, keys):
        return domain
    raise KeyRefused("The root key or the pool key of this domain is needed.")


def visible_domains() -> list[EmailDomain]:
    """The domains the caller may see. Raises KeyRefused."""
    config, keys = mailpool.config, keys_shown()
    domains = list(config.domains.values())
    own = [domain for domain in domains if config.opens(domain, keys)]
    if own and config.production and not config.is_root(keys):
        return own
    open_to_all = not (keys or config.production or request.method == "POST")
    if open_to_all or own or config.is_root(keys):
        return domains
    raise KeyRefused("The root key or a pool key is needed.")


def with_pool_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who shows its pool key. Raises UnknownDomain or KeyRefused."""
    domain = known_domain(name)
    if not mailpool.config.opens(domain, keys_shown()):
        raise KeyRefused("The pool key of this domain is needed.")
    return domain


def with_reading_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who may read its messages."""
    domain = known_domain(name)
    keys = keys_shown()
    if not (mailpool.config.opens(domain, keys) or mailpool.config.is_root(keys)):
        raise KeyRefused("The pool key of this domain or the root key is needed.")
    return domain


def with_root_key(name: str) -> EmailDomain:
    """The domain `name`, for someone who shows the root key. Raises UnknownDomain or KeyRefused."""
    domain = known_domain(name)
    if not mailpool.config.is_root(keys_shown()):
        raise KeyRefused("The root key is needed.")
    return domain
