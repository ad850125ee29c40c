"""Forms of the pages, made from the pydantic models that check what they send."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

FOR_FORMS: Final = ("widget", "folded", "help", "options")
"""What a field of a model may say, in `json_schema_extra`, of how a form asks for it."""

_View = TypeVar("_View", bound=Callable[..., Any])


@dataclass(frozen=True)
class FormField:
    """One field of a form.

    label: for people; `name` is for programs. widget: "text", "password", "textarea", "html" (one
    with a preview), "addresses", "select", "files", or "buttons" (to send the form
    with, one for each option).
    is_folded: whether few need it. options: values and labels, for a select. problem: what was
    wrong with it the last time, or "".
    """

    name: str
    label: str
    description: str
    required: bool
    widget: str
    is_folded: bool
    options: tuple[tuple[str, str], ...]
    value: str
    problem: str


def takes(
    *models: type[BaseModel],
    button: str = "Send",
    once: bool = False,
    also: tuple[type[BaseModel], ...] = (),
) -> Callable[[_View], _View]:
    """Declare what a view's POST takes: the fields of `models`, in that order.

    button: what the page's form is sent with. once: whether the form holds a key that stands for an
    Idempotency-Key, which the view heeds. also: what JSON may hold instead.
    """

    def decorate(view: _View) -> _View:
        view.models = models  # type: ignore[attr-defined]
        view.button = button  # type: ignore[attr-defined]
        view.also = also  # type: ignore[attr-defined]
        view.once = once  # type: ignore[attr-defined]
        return view

    return decorate


def filtered_by(model: type[BaseModel]) -> Callable[[_View], _View]:
    """Declare what a view's GET takes from the query of the URL."""

    def decorate(view: _View) -> _View:
        view.filter_model = model  # type: ignore[attr-defined]
        return view

    return decorate


def shown_in(template: str) -> Callable[[_View], _View]:
    """Declare the template of a view's page; it extends page.html, and `data` is the answer."""

    def decorate(view: _View) -> _View:
        view.template = template  # type: ignore[attr-defined]
        return view

    return decorate


def gives_files(view: _View) -> _View:
    """Declare that a view's success is no data in the client's format, but a file as it is."""
    view.gives_files = True  # type: ignore[attr-defined]
    return view


def form_fields(
    view: Callable[..., Any], typed: Mapping[str, Any], problems: Mapping[str, str]
) -> list[FormField]:
    """The fields of the view's form, with what was typed before and what was wrong with it.

    A password is never filled in again.
    """
    models = getattr(view, "models", ())
    return _fields(models, typed, problems) if typed or problems else list(_blank_fields(models))


def filter_fields(
    view: Callable[..., Any], typed: Mapping[str, Any], problems: Mapping[str, str]
) -> list[FormField]:
    """The same for what filters a list."""
    model = getattr(view, "filter_model", None)
    return _fields((model,), typed, problems) if model else []


@cache
def body_names(view: Callable[..., Any]) -> frozenset[str]:
    """All that a view's POST takes."""
    models = (*getattr(view, "models", ()), *getattr(view, "also", ()))
    return frozenset(name for model in models for name in model.model_fields)


def filter_names(view: Callable[..., Any]) -> Collection[str]:
    """All that a view's GET takes from the query of the URL."""
    model = getattr(view, "filter_model", None)
    return model.model_fields if model else ()


@cache
def _blank_fields(models: tuple[type[BaseModel], ...]) -> tuple[FormField, ...]:
    return tuple(_fields(models, {}, {}))


def _fields(
    models: tuple[type[BaseModel], ...], typed: Mapping[str, Any], problems: Mapping[str, str]
) -> list[FormField]:
    return [
        _field(name, info, typed.get(name, ""), problems)
        for model in models
        for name, info in model.model_fields.items()
        if _extra(info).get("widget") != "none"
    ]


def _field(name: str, info: FieldInfo, value: Any, problems: Mapping[str, str]) -> FormField:
    extra = _extra(info)
    widget = str(extra.get("widget", "text"))
    found = [
        _of_item(path, problem)
        for path, problem in problems.items()
        if path.partition(".")[0] == name
    ]
    return FormField(
        name,
        info.title or name.replace("_", " ").capitalize(),
        str(extra.get("help", info.description or "")),
        info.is_required(),
        widget,
        bool(extra.get("folded")),
        tuple(extra.get("options", {}).items()),
        "" if widget == "password" else _as_text(value),
        " ".join(found),
    )


def _of_item(path: str, problem: str) -> str:
    """The problem, with which item of a list has it, as people count."""
    item = re.fullmatch(r"[^.]+\.([0-9]{1,6})(\..*)?", path, re.DOTALL)
    return f"Number {int(item[1]) + 1}: {problem}" if item else problem


def _extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _as_text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
