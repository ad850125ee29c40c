"""Write the tables of the documentation that the code itself knows.

    make docs

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced.
tests/test_docs.py fails where a table is not what this would write.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from app import ROOMS
from browsable_api.forms import described
from email_services.attachments import InlineImage
from email_services.capabilities import Capabilities
from email_services.message import EmailMessage
from email_services.providers import find_provider, provider_names

ROOT: Final = Path(__file__).parents[1]
LACKS: Final[Mapping[str, str]] = {
    "recipients": "over {} recipients",
    "bcc_alone": "cc or bcc without to",
    "any_local_part": "addresses beyond ASCII left of the @",
    "reply_to": "over {} `reply_to`",
    "headers": "over {} headers",
    "own_headers": "{} headers that it sets itself",
    "attachments": "over {} attachments",
    "inline": "over {} inline images",
    "any_filename": "files' names beyond ASCII",
    "any_charset": "text files in another charset than UTF-8",
    "empty_files": "empty files",
    "tags": "over {} `tags`",
    "metadata": "metadata",
    "metadata_bytes": "over {} bytes of metadata",
    "tracking": "tracking",
    "schedule_days": "`send_at` over {} days ahead",
    "attachments_scheduled": "files with `send_at`",
    "megabytes": "over {} MB",
}
"""What a provider cannot carry, by the field of its capabilities; {} is the most it takes."""


def message_fields() -> list[list[str]]:
    """What a message has."""
    return [["field", "", "required"], *map(_field, EmailMessage.model_fields.items())]


def file_fields() -> list[list[str]]:
    """What a file has, and an image beside that."""
    return [["field", "", "required"], *map(_field, InlineImage.model_fields.items())]


def providers() -> list[list[str]]:
    """What each provider takes in one call, and what it cannot carry; as far as it is declared."""
    rows = [["`service`", "in one call", "does not carry"]]
    for name in provider_names():
        provider = find_provider(name)
        batch = f"{provider.max_batch:,} messages" if provider.max_batch > 1 else "1 message"
        rows.append([f"`{name}`", batch, ", ".join(lacks(provider.capabilities))])
    return rows


def lacks(capabilities: Capabilities) -> Iterable[str]:
    """What they say no to, in words."""
    for field in fields(Capabilities):
        most, words = getattr(capabilities, field.name), LACKS[field.name]
        if most == field.default:
            continue
        if isinstance(most, frozenset):
            yield words.format(len(most))
        elif most:
            yield words.format(f"{most:,g}")
        else:
            yield words.removeprefix("over {} ").split(" over")[0]


def modules() -> list[list[str]]:
    """What each module is, by the first sentence of its docstring."""
    rows = [["module", ""]]
    files = [*sorted(ROOT.glob("*.py"))]
    for package in ("server", "endpoints", "browsable_api", "email_services"):
        files += sorted((ROOT / package).rglob("*.py"))
    for file in files:
        told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if file.parent.name != "providers":  # which have a page of their own
            sentence = told.partition("\n\n")[0].replace("\n", " ")
            rows.append([f"`{file.relative_to(ROOT)}`", sentence])
    return rows


def operations() -> list[list[str]]:
    """What can be done, and which keys open it."""
    rows = [["", "what it does", "opened by"]]
    for operation in (operation for module in ROOMS for operation in module.room.operations):
        address = re.sub(r"<domain:\w+>", "<domain>", operation.rule)
        address = re.sub(r"<\w+:(\w+)>", r"<\1>", address)
        keys = operation.access.opened_by
        rows.append([f"`{operation.method} {address}`", f"{operation.title}.", keys])
    return rows


def _field(named: tuple[str, Any]) -> list[str]:
    name, field = named
    return [f"`{name}`", described(field), "yes" if field.is_required() else ""]


TABLES: Final[Mapping[str, Callable[[], list[list[str]]]]] = {
    "message fields": message_fields,
    "file fields": file_fields,
    "providers": providers,
    "modules": modules,
    "operations": operations,
}


def with_tables(text: str) -> str:
    """The text of a page with each of its tables as it should be. Raises KeyError."""
    return re.sub(
        r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + markdown(TABLES[found[2]]()) + found[3],
        text,
        flags=re.DOTALL,
    )


def markdown(rows: list[list[str]]) -> str:
    """The rows as a table, of which the first is the head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return re.sub("`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)


def pages() -> list[Path]:
    """Every page of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
