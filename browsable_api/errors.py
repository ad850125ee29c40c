"""Errors in the API's one shape, and every exception that becomes one.

`{"error": "one sentence", "problems": {"field": "..."}}`, in the format the client asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any


class APIError(Exception):
    """An answer other than success.

    status: the HTTP status. error: one sentence. problems: a sentence for each field at fault.
    headers: what else the answer carries, as `WWW-Authenticate`.
    """

    def __init__(
        self,
        status: int,
        error: str,
        problems: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.problems = dict(problems or {})
        self.headers = dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        body: dict[str, Any] = {"error": self.error}
        if self.problems:
            body["problems"] = self.problems
        return body


SENTENCES = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method.",
    HTTPStatus.NOT_ACCEPTABLE: "Only application/json and text/html can be answered.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (
        "Send application/json, application/x-www-form-urlencoded or multipart/form-data."
    ),
    HTTPStatus.INTERNAL_SERVER_ERROR: "An error of this service; it is in the log.",
}
"""Our words for what Flask, Werkzeug and Flask-API raise; for the rest, theirs serve."""
