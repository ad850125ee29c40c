"""Rooms of endpoints: each operation's key and body are checked as it declares them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote

from flask.typing import ResponseReturnValue
from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, ValidationError

from browsable_api import Access, APIError, Operation, Room, request
from browsable_api.errors import Error
from browsable_api.operations import View
from email_services.counters import COUNTED
from email_services.exceptions import (
    EmailServicesError,
    InvalidInput,
    KeyInProgress,
    KeyMissing,
    KeyRefused,
    KeyReused,
    MessageTooLarge,
    Names,
    NoCopy,
    NotWaiting,
    SearchTooSlow,
    StoreUnavailable,
    TooManyWrongKeys,
    UnderWay,
    UnknownDomain,
    UnknownMessage,
    UnknownService,
    UnknownStream,
    UnknownVersion,
    UploadsOff,
)
from email_services.logs import event
from endpoints.access import KEY_FIELDS, OPEN, ROOT, caller, enter, may_hold_keys
from endpoints.addresses import DOMAIN, HOME, MESSAGES, QUEUE, VERSIONS, path_of
from endpoints.sessions import TOKEN_FIELD

logger = logging.getLogger(__name__)


class Fields(BaseModel):
    """What is read of a request: these fields, and no others.

    other_names: what somebody may call a field, in lower case, and what it is called here.
    """

    model_config = ConfigDict(extra="forbid")

    other_names: ClassVar[Mapping[str, str]] = {}


Model = TypeVar("Model", bound=BaseModel)

KEYS_REFUSED: Final = Counter(
    "mailpool_keys_refused_total",
    "Requests with a key that does not open what they asked for.",
    registry=COUNTED,
)

STATUS_OF_ERROR: Final[Mapping[type[EmailServicesError], HTTPStatus]] = {
    MessageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    InvalidInput: HTTPStatus.BAD_REQUEST,
    KeyRefused: HTTPStatus.UNAUTHORIZED,
    TooManyWrongKeys: HTTPStatus.TOO_MANY_REQUESTS,
    UnknownDomain: HTTPStatus.NOT_FOUND,
    UnknownService: HTTPStatus.NOT_FOUND,
    UnknownMessage: HTTPStatus.NOT_FOUND,
    UnknownStream: HTTPStatus.NOT_FOUND,
    UnknownVersion: HTTPStatus.NOT_FOUND,
    UploadsOff: HTTPStatus.FORBIDDEN,
    KeyInProgress: HTTPStatus.CONFLICT,
    KeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotWaiting: HTTPStatus.CONFLICT,
    NoCopy: HTTPStatus.CONFLICT,
    UnderWay: HTTPStatus.CONFLICT,
    StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    SearchTooSlow: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""What an error is answered with; one that derives from another comes before it."""

_MEANS: Final[Mapping[int, str]] = {
    HTTPStatus.OK: "Done.",
    HTTPStatus.NOT_MODIFIED: "What you have is still so.",
    HTTPStatus.BAD_REQUEST: "Nothing was done: `problems` names every field at fault.",
    HTTPStatus.UNAUTHORIZED: "Nothing was done: no key was shown (`key_missing`), or one that does "
    "not open this (`key_wrong`).",
    HTTPStatus.FORBIDDEN: "Nothing was done: a browser sent this from another site's page.",
    HTTPStatus.NOT_FOUND: "There is no such domain, service or message.",
    HTTPStatus.NOT_ACCEPTABLE: "Nothing was done: that format cannot be answered.",
    HTTPStatus.CONFLICT: "The first request with this `Idempotency-Key` is in progress: ask again "
    "after `Retry-After` seconds.",
    HTTPStatus.PRECONDITION_FAILED: "What `If-Match` names is not what is here now.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "Nothing was done: it is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "Nothing was done: the body is in no format that is read.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "Nothing was done: the `Idempotency-Key` was used for another "
    "request.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many wrong keys came from your address.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A bug of this server; it is in its log.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The state database does not answer: try again after "
    "`Retry-After` seconds.",
}
"""What a status says, where an operation does not say more."""

_ERROR_EXAMPLES: Final[Mapping[int, Error]] = {
    400: {
        "error": "1 problem with what was sent.",
        "code": "invalid",
        "problems": {"to_recipients.1": "It should be a string with one email address."},
    },
    401: {
        "error": "No key was shown: the pool key of this domain or the root key is needed, as "
        "Authorization: Bearer KEY.",
        "code": "key_missing",
    },
    404: {
        "error": "There is no email domain 'example.org' here. GET / lists those there are.",
        "code": "unknown_domain",
    },
    503: {"error": "The state database does not answer.", "code": "store_unavailable"},
}

_ERROR_OF_PART: Final = {
    "email_domain": UnknownDomain,
    "service": UnknownService,
    "message_id": UnknownMessage,
    "number": UnknownMessage,
    "version": UnknownVersion,
}
_DEMANDS: Final = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""Errors that any request can meet: what it is itself, the format it wants, and a bug of ours."""

_DEMANDS_ON_BODIES: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}


class Endpoints(Room):
    """A room whose views get what their keys open, and what was sent once it was checked."""

    def __init__(
        self,
        name: str,
        import_name: str,
        description: str,
        answer_examples: Mapping[Any, Any] | None = None,
    ) -> None:
        templates = Path(__file__).parent / "templates"
        super().__init__(name, import_name, description, answer_examples, template_folder=templates)

    def operation(
        self, method: str, rule: str, access: Access = OPEN, **declared: Any
    ) -> Callable[[View], View]:
        """As in `Room`; raises: errors beside those that key, path and body bring."""
        raises: Collection[type[EmailServicesError] | int] = declared.pop("raises", ())
        declared["errors"] = frozenset(
            error if isinstance(error, int) else STATUS_OF_ERROR[error] for error in raises
        )
        return super().operation(method, rule, access, **declared)

    def completed(self, operation: Operation) -> Operation:
        """With the statuses of the errors that its key, path and body bring."""
        examples = {(Error, status): example for status, example in _ERROR_EXAMPLES.items()}
        return replace(
            operation,
            errors=operation.errors | _errors_of(operation),
            usually_means=_MEANS,
            answer_examples={**examples, **operation.answer_examples},
        )

    def run(self, operation: Operation, /, **parts: Any) -> ResponseReturnValue:
        """Do it for who may, with what was sent."""
        given = enter(operation.access, parts)
        if operation.query:
            asked = {name: value for name, value in request.query.items() if value}
            given["query"] = checked(operation.query, asked)  # what a form left empty was not given
        if operation.takes_a_body:
            body = _body(operation, given)
            given |= {"body": body} if operation.bodies else {}
        answer = super().run(operation, **given)
        if operation.method != "GET" and (operation.access == ROOT or "message" in given):
            _log_change(operation, given)
        return answer


def tagged(shape: type) -> dict[str, Any]:
    """Of an operation that tells whoever asks again and again whether anything is new."""
    return {
        "answers": {HTTPStatus.OK: (shape,), HTTPStatus.NOT_MODIFIED: ()},
        "headers": ("ETag",),
        "raises": (HTTPStatus.PRECONDITION_FAILED,),
    }


def _log_change(operation: Operation, given: Mapping[str, Any]) -> None:
    """Log what a person has changed, with what they asked for; who it was, every line says."""
    asked = given.get("body")
    fields = asked.model_dump(mode="json", exclude_unset=True) if isinstance(asked, Fields) else {}
    path = quote(request.path)
    said = event("change", operation=operation.name, path=path, asked=fields)
    words = "Asked for with the %s: %s at %s."
    logger.info(words, caller(), operation.title.lower(), path, extra=said)


def _body(operation: Operation, given: Mapping[str, Any]) -> Any:
    if operation.reads:
        return operation.reads(given_fields(), **given)
    return checked(operation.bodies[0] if operation.bodies else Nothing, given_fields())


def _errors_of(operation: Operation) -> set[int]:
    statuses: set[int] = {*_DEMANDS}
    if operation.takes_a_body:
        statuses |= _DEMANDS_ON_BODIES
    if operation.access != OPEN:
        statuses |= {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}
        statuses |= {HTTPStatus.SERVICE_UNAVAILABLE} | _DEMANDS_ON_BODIES
        statuses |= {HTTPStatus.FORBIDDEN} if operation.method != "GET" else set()
    return statuses | {STATUS_OF_ERROR[_ERROR_OF_PART[part]] for part in operation.parts}


class Nothing(Fields):
    """No field but a key."""


def given_fields() -> dict[str, Any]:
    """What the body holds beside keys and what stands for them.

    Raises InvalidInput for a key that can be none.
    """
    if not may_hold_keys():
        return request.data
    fields = request.data
    wrong = [name for name in KEY_FIELDS if not isinstance(fields.get(name, ""), str)]
    if wrong:
        raise InvalidInput(dict.fromkeys(wrong, "It should be a string."))
    credentials = {*KEY_FIELDS, TOKEN_FIELD}
    return {name: value for name, value in fields.items() if name not in credentials}


def checked(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """The fields as a `model`. Raises InvalidInput."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        elsewhere = model.other_names if issubclass(model, Fields) else {}
        names = Names(model.model_fields, elsewhere)
        raise InvalidInput.from_validation(error, {"": names}) from None


_LISTED_AT: Final = {
    UnknownDomain: HOME,
    UnknownService: DOMAIN,
    UnknownMessage: MESSAGES,
    UnknownStream: QUEUE,
    UnknownVersion: VERSIONS,
}
"""Where to find what there is; who is told that something is unknown may look there."""


def _advice(error: EmailServicesError) -> str:
    address = _LISTED_AT.get(type(error))
    if address is None:
        return ""
    return f" GET {path_of(address, **request.view_args)} lists those there are."


def answer_error(error: EmailServicesError) -> ResponseReturnValue:
    """An error of `email_services` in the API's shape."""
    status = next(status for kind, status in STATUS_OF_ERROR.items() if isinstance(error, kind))
    if isinstance(error, KeyRefused | TooManyWrongKeys) and not isinstance(error, KeyMissing):
        KEYS_REFUSED.inc()
        said = event("key_refused", client=request.remote_addr, code=error.code)
        words = "%s %s: a key was refused, from %s."
        where = quote(request.path)
        logger.warning(words, request.method, where, request.remote_addr, extra=said)
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": 'Bearer realm="Mailpool"'}
    if error.retry_after is not None:
        headers = {"Retry-After": str(error.retry_after)}
    problems = error.problems if isinstance(error, InvalidInput) else None
    answer = APIError(status, f"{error}{_advice(error)}", problems, headers, error.code)
    return answer.as_dict(), answer.status, answer.headers
