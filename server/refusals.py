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
from browsable_api.request_ids import REQUEST_ID, new_id
from email_services.logs import event
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
    answer = refused(address, status, APIError(status, sentence).as_dict(), "not read")
    with suppress(OSError):  # the client is gone
        client.sendall(answer)


def refused(address: Any, status: HTTPStatus, body: Mapping[str, Any], why: str) -> bytes:
    """An answer in JSON as it goes over the wire, after which the connection ends; it is logged.

    address: as in `refuse`. why: for the log.
    """
    count_refused(status)
    request_id = new_id()
    peer = address[0] if isinstance(address, tuple) else "-"
    said = event("request", request_id=request_id, client=peer, status=int(status), reason=why)
    access_log.info("%s %d, %s", peer, status, why, extra=said)
    text = json.dumps(body) + "\n"
    lines = {
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(text)),
        **STANDARD_HEADERS,
        REQUEST_ID: request_id,
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        lines["Retry-After"] = "1"
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status:d} {status.phrase}\r\n{head}\r\n{text}".encode()


def _status_and_sentence(error: BaseException) -> tuple[HTTPStatus, str]:
    if not isinstance(error, ParseException) or isinstance(error, ConfigurationProblem):
        return _BUG
    return _STATUS_AND_SENTENCE.get(type(error), _NO_HTTP)
