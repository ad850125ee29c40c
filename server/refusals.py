"""What is answered to a request that never reaches the application.

Gunicorn refuses what is no HTTP, or too large to be looked at, with a page of its own, and quotes
it in the log, where a key may be in it. Here it is an error like any other.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from gunicorn.http.errors import (
    ConfigurationProblem,
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)

from browsable_api.app import STANDARD_HEADERS
from browsable_api.errors import SENTENCES, APIError
from server.traffic import count_refused

logger = logging.getLogger(__name__)
access_log = logging.getLogger("access")

_STATUS_AND_SENTENCE: Final[Mapping[type[ParseException], tuple[HTTPStatus, str]]] = {
    LimitRequestLine: (HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long."),
    LimitRequestHeaders: (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "There are too many headers, or one is too long.",
    ),
    UnsupportedTransferCoding: (HTTPStatus.NOT_IMPLEMENTED, "Of transfer codings, use chunked."),
    ExpectationFailed: (HTTPStatus.EXPECTATION_FAILED, "Of expectations, use 100-continue."),
}
_NO_HTTP: Final = (HTTPStatus.BAD_REQUEST, "The request is no HTTP that can be read.")
_BUG: Final = (
    HTTPStatus.INTERNAL_SERVER_ERROR,
    SENTENCES[HTTPStatus.INTERNAL_SERVER_ERROR],
)


def refuse(client: socket.socket, address: Any, error: BaseException) -> None:
    """Answer a request that gunicorn gave up on because of `error`.

    address: of who connected, as its socket gives it.
    """
    status, sentence = _status_and_sentence(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("A request could not be handled.", exc_info=error)
    count_refused(status)
    peer = address[0] if isinstance(address, tuple) else "-"
    access_log.info("%s %d, not read", peer, status)
    answer = whole_answer(status, APIError(status, sentence).as_dict())
    with suppress(OSError):  # the client is gone
        client.sendall(answer)


def whole_answer(
    status: HTTPStatus, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> bytes:
    """An answer in JSON as it goes over the wire, after which the connection ends."""
    text = json.dumps(body) + "\n"
    lines = {
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(text)),
        **STANDARD_HEADERS,
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status:d} {status.phrase}\r\n{head}\r\n{text}".encode()


def _status_and_sentence(error: BaseException) -> tuple[HTTPStatus, str]:
    if not isinstance(error, ParseException) or isinstance(error, ConfigurationProblem):
        return _BUG
    return _STATUS_AND_SENTENCE.get(type(error), _NO_HTTP)
