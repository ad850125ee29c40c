"""The providers, one module each; the module's name is the provider's in config.json."""

from __future__ import annotations

import inspect
from importlib import import_module
from pkgutil import iter_modules

from email_services.abstract import AbstractEmailService


def provider_names() -> list[str]:
    """The names of all providers there are."""
    return sorted(module.name for module in iter_modules(__path__))


def find_provider(name: str) -> type[AbstractEmailService]:
    """The class of the provider `name`; raises KeyError if there is none."""
    if name not in provider_names():
        raise KeyError(name)
    module = import_module(f"{__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, AbstractEmailService)
        and value.__module__ == module.__name__
    )
