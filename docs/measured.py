"""Write what a benchmark has measured into the documentation.

A table stands between `<!-- measured: NAME -->` and `<!-- end -->`, under a line that says where
and when; what is between is replaced. Unlike `tables`, no test can say whether it is still so.
"""

from __future__ import annotations

import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

from docs.tables import markdown

PAGE: Final = Path(__file__).with_name("performance.md")


def machine(*packages: str) -> str:
    """Where and when something is measured, and with which versions of what it depends on."""
    versions = [f"{name} {version(name)}" for name in packages]
    python = f"Python {platform.python_version()}"
    return ", ".join(
        [f"{time.strftime('%Y-%m-%d')}: {processor()}, {os.cpu_count()} CPUs", python, *versions]
    )


def processor() -> str:
    """What the processor calls itself, where the system says so."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def tell(name: str, said: str, rows: list[list[str]], *, is_kept: bool) -> None:
    """Print a table and what is said of it, and put both into the page if they are to be kept.

    Raises ValueError where the page has no place for them.
    """
    text = f"Measured {said}.\n\n{markdown(rows)}"
    print(text)  # noqa: T201 - a benchmark's
    if is_kept:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_measured(page, name, text), encoding="utf-8")


def with_measured(page: str, name: str, text: str) -> str:
    """The page with that between the marks of `name`. Raises ValueError where it has none."""
    marks = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(page):
        raise ValueError(f"There is no place for what was measured of: {name}")
    return marks.sub(lambda found: found[1] + text + found[2], page)
