"""Forms of the pages, made from the pydantic models that check what they send."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from browsable_api.operations import Asked, Form, KeyField, Operation

_PICKED: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)?")
"""What a picker of a time gives."""


@dataclass(frozen=True)
class FormField:
    """One field of a form.

    label: for people; `name` is for programs. value: what was typed the last time, problem: what
    was wrong with it, or "". The rest is as in `Asked`.
    """

    name: str
    label: str
    description: str
    required: bool
    widget: str
    is_folded: bool
    options: tuple[tuple[str, str], ...]
    is_wide: bool = False
    is_first: bool = False
    ends_with: str = ""
    value: str = ""
    problem: str = ""

    @property
    def input_type(self) -> str:
        """Of the field in HTML, where it is one line. What no picker can show is shown as text."""
        if self.widget == "time":
            return "datetime-local" if _PICKED.fullmatch(self.value) else "text"
        return self.widget if self.widget in {"password", "search"} else "text"


def form_fields(
    operation: Operation | None,
    parts: Mapping[str, Any],
    typed: Mapping[str, Any],
    problems: Mapping[str, str],
) -> list[FormField]:
    """The fields of a POST's form, with what was typed before and what was wrong with it.

    parts: of the address. A password is never filled in again.
    """
    if operation is None:
        return []
    blank = [_placed(field, parts) for field in _blank_form(operation)]
    return [_filled(field, typed, problems) for field in blank] if typed or problems else blank


def filter_fields(
    operation: Operation | None, typed: Mapping[str, Any], problems: Mapping[str, str]
) -> list[FormField]:
    """The same for a GET's query."""
    if operation is None or operation.query is None:
        return []
    blank = _fields(operation.query, operation.form)
    return [_filled(field, typed, problems) for field in blank]


def described(info: FieldInfo) -> str:
    """What a field is, with the most that it takes, in Markdown."""
    most = next((found.max_length for found in info.metadata if hasattr(found, "max_length")), None)
    return f"{info.description or ''}{f' At most {most:,}.' if most else ''}"


@cache
def _blank_form(operation: Operation) -> tuple[FormField, ...]:
    key = operation.access.asks_for
    keys = [_password(key)] if key else []
    return (*keys, *(_fields(operation.bodies[0], operation.form) if operation.bodies else ()))


def _password(key: KeyField) -> FormField:
    return FormField(key.name, key.label, key.description, True, "password", False, ())


def _placed(field: FormField, parts: Mapping[str, Any]) -> FormField:
    if not field.ends_with:
        return field
    return replace(
        field,
        ends_with=field.ends_with.format_map(parts),
        description=field.description.format_map(parts),
    )


def _fields(model: type[BaseModel], form: Form) -> list[FormField]:
    names = [name for name in form.fields if name in model.model_fields]
    names += [name for name in model.model_fields if name not in form.fields]
    found = [
        _field(name, model.model_fields[name], form.fields.get(name, Asked())) for name in names
    ]
    return [field for field in found if field.widget != "none"]


def _field(name: str, info: FieldInfo, asked: Asked) -> FormField:
    return FormField(
        name,
        asked.label or name.replace("_", " ").capitalize(),
        asked.help or (info.description or "").replace("`", ""),  # a form shows plain text
        info.is_required(),
        asked.widget,
        asked.is_folded,
        tuple(asked.options.items()),
        asked.is_wide or asked.widget in {"textarea", "html", "files"},
        asked.is_first,
        asked.ends_with,
        asked.value,
    )


def _filled(field: FormField, typed: Mapping[str, Any], problems: Mapping[str, str]) -> FormField:
    found = [
        _of_item(path, problem)
        for path, problem in problems.items()
        if path.partition(".")[0] == field.name
    ]
    value = "" if field.widget == "password" else _as_text(typed.get(field.name, ""))
    return replace(field, value=value, problem=" ".join(found))


def _of_item(path: str, problem: str) -> str:
    """The problem, with which item of a list has it, as people count."""
    item = re.fullmatch(r"[^.]+\.([0-9]{1,6})(\..*)?", path, re.DOTALL)
    return f"Number {int(item[1]) + 1}: {problem}" if item else problem


def _as_text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
