"""Errors in the API's one shape, and every exception that becomes one.

`{"error": "one sentence", "code": "a_word", "problems": {"field": "..."}}`, in the format that the
client asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from flask import current_app, request
from pydantic import Field
from typing_extensions import NotRequired, TypedDict
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound


def told(description: str) -> Any:
    """What a field of an answer is, for its description."""
    return Field(description=description)


class Error(TypedDict):
    """What went wrong, and with which fields of the request."""

    error: Annotated[str, told("One sentence.")]
    code: Annotated[str, told("The same as one word for programs.")]
    problems: NotRequired[
        Annotated[dict[str, str], told("A sentence for each field at fault, by its path.")]
    ]


class APIError(Exception):
    """An answer other than success.

    status: the HTTP status. error: one sentence. problems: a sentence for each field at fault.
    headers: what else the answer carries, as `WWW-Authenticate`. code: a word for programs, by
    default that of the status.
    """

    def __init__(
        self,
        status: int,
        error: str,
        problems: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        code: str = "",
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.problems = dict(problems or {})
        self.headers = dict(headers or {})
        self.code = code or code_of(status)

    def as_dict(self) -> Error:
        """The body of the answer."""
        body = Error(error=self.error, code=self.code)
        if self.problems:
            body["problems"] = self.problems
        return body


def code_of(status: int) -> str:
    """The word for an error of which no more is known than its status."""
    return CODES.get(status) or HTTPStatus(status).name.lower()


CODES: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "invalid",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal_error",
}
"""Codes that say it better than the name of the status."""

SENTENCES = {
    HTTPStatus.NOT_ACCEPTABLE: "Only application/json and text/html can be answered.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (
        "Send application/json, application/x-www-form-urlencoded or multipart/form-data."
    ),
    HTTPStatus.INTERNAL_SERVER_ERROR: "An error of this service; it is in the log.",
}
"""Our words for what Flask, Werkzeug and Flask-API raise; for the rest, theirs serve."""


def sentence_of(error: HTTPException) -> str:
    """Our words for one of Werkzeug's errors, with what to do where nothing was found."""
    if isinstance(error, MethodNotAllowed):
        takes = ", ".join(sorted(error.valid_methods or ()))
        return f"This address does not take that method. It takes {takes}."
    if isinstance(error, NotFound):
        description = current_app.config["API_DESCRIPTION"]
        told = f" Every one is described at {request.script_root}{description}."
        return f"There is nothing at this address.{told if description else ''}"
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    return SENTENCES.get(status) or error.description or status.phrase
