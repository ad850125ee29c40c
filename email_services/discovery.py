"""Which providers there are, found by name, and what can be told of them without importing any.

A module in `providers/` is one, called like the module; so is each entry point in the group
"email_services" that a package adds. Nothing here knows what a provider is, so that the check of a
message, which every provider imports, can ask.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Final

GROUP: Final = "email_services"
"""The group of entry points in which packages add providers."""

_FOLDER: Final = Path(__file__).with_name("providers")
_DECLARED: Final = re.compile(r"^    reserved_headers = (\(.*?\))$", re.MULTILINE | re.DOTALL)


def built_in(folders: Iterable[str] = (str(_FOLDER),)) -> list[str]:
    """The names of the providers that are modules, in `folders`."""
    return [module.name for module in iter_modules(folders)]


def added() -> dict[str, EntryPoint]:
    """What packages add, by name; none takes the name of a provider that is here."""
    found = {point.name.lower(): point for point in entry_points(group=GROUP)}
    return {name: point for name, point in found.items() if name not in built_in()}


def is_reserved(header: str) -> bool:
    """Whether some provider takes orders by a header of this name, whatever a domain uses.

    At that provider it would be an order, at the others it would go to the readers.
    """
    name = header.lower()
    return any(
        name.startswith(reserved) if reserved.endswith("-") else name == reserved
        for reserved in reserved_headers()
    )


@cache
def reserved_headers() -> frozenset[str]:
    """What all providers declare as `reserved_headers`; found once."""
    return frozenset({*_of_built_in(), *_of_added()})


def _of_built_in() -> Iterator[str]:
    """Read from their sources: to import them would load every SDK, of which some may lack."""
    for name in built_in():
        if declared := _DECLARED.search((_FOLDER / f"{name}.py").read_text("utf-8")):
            yield from literal_eval(declared[1])


def _of_added() -> Iterator[str]:
    for point in added().values():
        with suppress(ImportError, AttributeError):  # the start tells whoever wants to use it
            yield from getattr(point.load(), "reserved_headers", ())
