"""Forms of the pages, made from the pydantic models that check what they send."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

_View = TypeVar("_View", bound=Callable[..., Any])


@dataclass(frozen=True)
class FormField:
    """One field of a form.

    widget: "text", "password", "textarea", "addresses", "select" or "files".
    options: value to label, for a select. problem: what was wrong with it the last time, or "".
    """

    name: str
    description: str
    required: bool
    widget: str
    options: Mapping[str, str]
    value: str
    problem: str


def takes(*models: type[BaseModel]) -> Callable[[_View], _View]:
    """Declare what a view's POST takes: the fields of `models`, in that order."""

    def decorate(view: _View) -> _View:
        view.models = models  # type: ignore[attr-defined]
        return view

    return decorate


def shown_with(template: str) -> Callable[[_View], _View]:
    """Declare the template of a view's page, which extends `page.html`; it knows the `data`."""

    def decorate(view: _View) -> _View:
        view.template = template  # type: ignore[attr-defined]
        return view

    return decorate


def form_fields(
    view: Callable[..., Any], typed: Mapping[str, Any], problems: Mapping[str, str]
) -> list[FormField]:
    """The fields of the view's form, with what was typed before and what was wrong with it.

    A password is never filled in again.
    """
    fields = []
    for model in getattr(view, "models", ()):
        for name, info in model.model_fields.items():
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            widget = str(extra.get("widget", "text"))
            found = [p for path, p in problems.items() if path.partition(".")[0] == name]
            fields.append(
                FormField(
                    name,
                    info.description or "",
                    info.is_required(),
                    widget,
                    extra.get("options", {}),
                    "" if widget == "password" else _as_text(typed.get(name, "")),
                    " ".join(found),
                )
            )
    return fields


def _as_text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
