"""The providers: one module each here, and what other packages add.

A module's name is the provider's in config.json. A package adds a provider with an entry point in
the group "email_services", whose name is the provider's and whose object is its class.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import EntryPoint

from email_services.abstract import AbstractEmailService
from email_services.discovery import added, built_in
from email_services.exceptions import UnusableProvider


def provider_names() -> list[str]:
    """The names of all providers there are."""
    return sorted({*built_in(__path__), *added()})


def find_provider(name: str) -> type[AbstractEmailService]:
    """The class of the provider `name`.

    Raises KeyError if there is none, UnusableProvider if it cannot be used as it is installed.
    """
    if name in built_in(__path__):
        return _class_in(import_module(f"{__name__}.{name}"))
    return _loaded(added()[name])


def _class_in(module: object) -> type[AbstractEmailService]:
    return next(
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, AbstractEmailService)
        and value.__module__ == getattr(module, "__name__", "")
    )


def _loaded(point: EntryPoint) -> type[AbstractEmailService]:
    """The class behind an entry point; whatever is wrong with it ends the start with one line."""
    try:
        found = point.load()
    except UnusableProvider:
        raise
    except (ImportError, AttributeError) as error:
        raise UnusableProvider(f"{point.value} cannot be loaded: {error}") from None
    if not (inspect.isclass(found) and issubclass(found, AbstractEmailService)):
        raise UnusableProvider(f"{point.value} is no AbstractEmailService")
    if getattr(found, "provider", None) != point.name.lower():
        raise UnusableProvider(f"{point.value} should have provider = {point.name.lower()!r}")
    return found
