"""What can be done at an address, told once for all that reads it.

A view says what it does where it is declared (`Room.operation`) and in its signature; the check of
the key and of the body, the form of its page, the curl command, the answer to OPTIONS and the
description of the API read it here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from inspect import cleandoc
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from flask import Blueprint, current_app, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from werkzeug.wrappers import Response

PART: Final = re.compile(r"<(?:\w+:)?(\w+)>")
"""A part of an address that is given with each request, as Flask writes it."""

Answer = type | str
"""The shape of an answer in JSON, a TypedDict; or the media type of anything else."""


@dataclass(frozen=True)
class KeyField:
    """The field of a form in which a key is typed."""

    name: str
    label: str
    description: str


@dataclass(frozen=True)
class Access:
    """Who may do something.

    schemes: the keys that open it, each enough, by their names in the description of the API; ""
    for no key at all. asks_for: what a form asks for. opened_by: the keys in words.
    """

    schemes: tuple[str, ...] = ("",)
    asks_for: KeyField | None = None
    opened_by: str = "anybody"


@dataclass(frozen=True)
class Asked:
    """How a form asks for a field, where that is not as a line of text named like the field.

    widget: "text", "search", "time" (a picker), "password", "textarea", "html" (one with a
    preview), "addresses", "select", "files", "buttons" (to send the form with, one for each option)
    or "none". help: for people, if the description is more for programs. is_folded: whether few
    need it. options: values and labels, for a select and for buttons. is_wide: whether it has a
    line of its own. is_first: whether the cursor is in it from the beginning. ends_with: what the
    page adds to what is typed; {parts} of the address are filled in there and in help. value: what
    stands in it at first.
    """

    widget: str = "text"
    label: str = ""
    help: str = ""
    is_folded: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    is_wide: bool = False
    is_first: bool = False
    ends_with: str = ""
    value: str = ""


@dataclass(frozen=True)
class Form:
    """The form of a page.

    button: what it is sent with, "" where fields of it are buttons. is_once: whether it holds a key
    that stands for an Idempotency-Key. fields: how it asks for them, by name, in this order; those
    that are not named come after them.
    """

    button: str = "Send"
    is_once: bool = False
    fields: Mapping[str, Asked] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Operation:
    """What a view does with one method at one address. Its docstring is the page that says so.

    name: its operationId. rule: the address, as Flask writes it. tag: what it belongs to. wants:
    which parts of its path, and of what else is known, the view asks for. bodies: what a POST
    takes: the model of its form, and what JSON may hold instead. query: what is read of the URL.
    answers: what it answers with, by status. errors: the statuses of its errors. means: what a
    status says here, in Markdown; usually_means: the same of all others. headers: what its answers
    carry, beside errors. request_headers: what it reads of a request's, beside keys. leads_to: an
    address where a GET asks on, and where in an answer the id is that it needs, as a JSON pointer.
    examples: of a body, by name. reads: makes one of `bodies` of the body's fields and of what the
    view gets, where its model alone cannot. answer_examples: by shape, or by shape and status.
    page: the template.
    """

    name: str
    method: str
    rule: str
    view: Callable[..., Any]
    access: Access = Access()
    tag: str = ""
    wants: frozenset[str] = frozenset()
    bodies: Sequence[type[BaseModel]] = ()
    query: type[BaseModel] | None = None
    answers: Mapping[int, Sequence[Answer]] = field(default_factory=dict)
    errors: frozenset[int] = frozenset()
    means: Mapping[int, str] = field(default_factory=dict)
    usually_means: Mapping[int, str] = field(default_factory=dict)
    headers: Sequence[str] = ()
    request_headers: Sequence[str] = ()
    leads_to: tuple[str, str] | None = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    reads: Callable[..., Any] | None = None
    answer_examples: Mapping[Any, Any] = field(default_factory=dict)
    page: str = ""
    form: Form = Form()

    @property
    def title(self) -> str:
        """The first line of the docstring, without its full stop."""
        return cleandoc(self.view.__doc__ or "").partition("\n")[0].rstrip(".")

    @property
    def text(self) -> str:
        """The rest of it, in Markdown."""
        return cleandoc(self.view.__doc__ or "").partition("\n")[2].strip()

    @property
    def parts(self) -> list[str]:
        """The names of the parts of its address that are given with each request."""
        return PART.findall(self.rule)

    @property
    def takes_a_body(self) -> bool:
        """Whether what it does depends on one."""
        return self.method in {"POST", "PUT"}

    @property
    def gives_files(self) -> bool:
        """Whether a success is no data in the client's format, but a file as it is."""
        return any(isinstance(answer, str) for held in self.answers.values() for answer in held)

    def example(self, shape: Answer, status: int) -> Any:
        """What such an answer looks like, or None."""
        return self.answer_examples.get((shape, status), self.answer_examples.get(shape))

    def meaning(self, status: int) -> str:
        """What a status says, in Markdown."""
        said = self.means.get(status) or self.usually_means.get(status)
        return said or f"{HTTPStatus(status).phrase}."

    @property
    def body_names(self) -> frozenset[str]:
        """The fields of all that its body may be."""
        return frozenset(name for model in self.bodies for name in model.model_fields)

    @property
    def query_names(self) -> frozenset[str]:
        """The fields of the URL's query."""
        return frozenset(self.query.model_fields if self.query else ())


Operations = Mapping[str, Operation]
"""What can be done at one address, by method; GET is first."""

View = TypeVar("View", bound=Callable[..., Any])


class Room(Blueprint):
    """Operations that belong together: a blueprint whose views are declared with all they do.

    description: what a person finds here. answer_examples: as in `Operation`. options: Blueprint's.
    """

    def __init__(
        self,
        name: str,
        import_name: str,
        description: str = "",
        answer_examples: Mapping[Any, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, import_name, **options)
        self.description = description
        self.answer_examples = answer_examples or {}
        self.operations: list[Operation] = []

    def operation(
        self,
        method: str,
        rule: str,
        access: Access = Access(),
        **declared: Any,
    ) -> Callable[[View], View]:
        """Declare what a view does; see `Operation` for what else there is to say.

        The rest is in its signature: `body` and `query` are the models of what it takes, and what
        it returns is the shape of its answer with 200, where `answers` does not say more.
        """

        def decorate(view: View) -> View:
            hints = get_type_hints(view)
            shapes = _shapes(hints["return"])
            declared.setdefault("answers", {HTTPStatus.OK: shapes})
            said = {a for held in declared["answers"].values() for a in held}
            if shapes and said != {*shapes}:
                raise TypeError(f"{view.__name__} returns {shapes}, and declares {said}.")
            operation = Operation(
                view.__name__,
                method,
                rule,
                view,
                access,
                self.name,
                wants=frozenset(hints) - {"return"},
                bodies=_parts(hints["body"]) if "body" in hints else (),
                query=hints.get("query"),
                answer_examples=self.answer_examples,
                **declared,
            )
            self._declare(self.completed(operation))
            return view

        return decorate

    def completed(self, operation: Operation) -> Operation:
        """The operation with what is the same for all of this application."""
        return operation

    def run(self, operation: Operation, /, **parts: Any) -> ResponseReturnValue:
        """Do it. parts: of the path, as they came, and whatever else a view may ask for."""
        wanted = {name: part for name, part in parts.items() if name in operation.wants}
        answer: ResponseReturnValue = operation.view(**wanted)
        return answer

    def _declare(self, operation: Operation) -> None:
        self.operations.append(operation)
        endpoint = partial(self.run, operation)
        self.add_url_rule(operation.rule, operation.name, endpoint, methods=[operation.method])
        self.record(lambda state: _collect(state.app.extensions, operation))


_COLLECTED: Final = "operations"


def _collect(extensions: dict[str, Any], operation: Operation) -> None:
    addresses: dict[str, dict[str, Operation]] = extensions.setdefault(_COLLECTED, {})
    addresses.setdefault(operation.rule, {})[operation.method] = operation


def all_operations() -> Mapping[str, Operations]:
    """Of the application, at each address."""
    addresses: Mapping[str, Operations] = current_app.extensions.get(_COLLECTED, {})
    return addresses


def operations_here() -> Operations:
    """What can be done at the address of the request."""
    return all_operations().get(request.url_rule.rule, {}) if request.url_rule else {}


def current_operation() -> Operation | None:
    """What is being done; None where nothing is there to be done."""
    return operations_here().get("GET" if request.method == "HEAD" else request.method)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type."""
    return get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)


def _shapes(hint: Any) -> tuple[type, ...]:
    """The shapes in what a view returns: alone, or with a status and headers; none of a file."""
    shape = get_args(hint)[0] if get_origin(hint) is tuple else hint
    return tuple(part for part in _parts(shape) if not issubclass(part, Response))
