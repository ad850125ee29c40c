"""What is secret in a configuration, and stands there as it is: not to be kept, nor to be shown."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, get_args

from pydantic import SecretStr

from email_services.config_source import Path, is_reference
from email_services.exceptions import UnusableProvider
from email_services.providers import find_provider

HIDDEN: Final = "[hidden]"
"""What is shown in the place of a secret."""

_URLS: Final = ("state_url", "queue_url")
"""Settings that may hold a password: before an @, or among options after a ?."""


def plain_secrets(given: Any) -> Iterator[Path]:
    """Where one is: what is neither kept elsewhere (`env:`, `file:`) nor a hash.

    given: the configuration as it was written; what is no configuration has none.
    """
    if not isinstance(given, dict):
        return
    yield from _plain_keys(given.get("root_api_key"), ("root_api_key",))
    domains = given.get("email_services")
    for index, domain in enumerate(domains if isinstance(domains, list) else ()):
        if isinstance(domain, dict):
            path = ("email_services", index)
            yield from _plain_keys(domain.get("pool_api_key"), (*path, "pool_api_key"))
            yield from _of_services(domain.get("enabled_services"), (*path, "enabled_services"))


def without_secrets(given: Any) -> Any:
    """The same configuration with HIDDEN in the place of each; `given` stays."""
    shown = copy.deepcopy(given)
    for path in (*plain_secrets(given), *_plain_urls(given)):
        holder = shown
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = HIDDEN
    return shown


def _plain_urls(given: Mapping[str, Any]) -> Iterator[Path]:
    for name in _URLS:
        url = given.get(name)
        if isinstance(url, str) and not is_reference(url) and re.search("[@?]", url):
            yield (name,)


def _plain_keys(given: Any, path: Path) -> Iterator[Path]:
    if isinstance(given, str) and not is_reference(given):
        yield path
    for index, key in enumerate(given if isinstance(given, list) else ()):
        value = key.get("key") if isinstance(key, dict) else None
        if isinstance(value, str) and not is_reference(value):
            yield (*path, index, "key")


def _of_services(services: Any, path: Path) -> Iterator[Path]:
    for name, settings in services.items() if isinstance(services, dict) else ():
        if not isinstance(settings, dict):
            continue
        known = _secret_fields(str(settings.get("service", name)).lower())
        for field, value in settings.items():
            # Of a provider that nobody knows, all may be one.
            is_secret = known is None or field in known
            if is_secret and isinstance(value, str) and not is_reference(value):
                yield (*path, name, field)


def _secret_fields(provider: str) -> set[str] | None:
    """The settings of the provider that are secret; None where there is no such provider."""
    try:
        fields = find_provider(provider).Settings.model_fields
    except (KeyError, UnusableProvider):
        return None
    return {name for name, info in fields.items() if _is_secret(info.annotation)}


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))
