"""What HTTP clients expect of every answer: where it is described, its JSON, and who may ask.

`Link` leads to the description of the API and from a page to the same in JSON. `ETag` saves a
second transfer, and compression most of a large one. CORS lets pages of other sites ask, where the
operator lists their origins.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlencode

from flask import current_app
from werkzeug.http import generate_etag
from werkzeug.wrappers import Response

from browsable_api.errors import APIError
from browsable_api.operations import current_operation, operations_here
from browsable_api.request import FORMAT, request

PREFLIGHT_SECONDS: Final = 600
"""How long a browser may remember what a preflight request was told."""

LEAST_COMPRESSED_BYTES: Final = 32 * 1024
"""Below it, time is worth more than bytes."""

_REQUEST_HEADERS: Final = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Prefer, X-Request-ID"
)
_EXPOSED_HEADERS: Final = "ETag, Idempotent-Replayed, Retry-After, Link, X-Request-ID"


def add_links(response: Response) -> Response:
    """Say where the API is described, and where a page's content is in JSON."""
    links = []
    if description := current_app.config["API_DESCRIPTION"]:
        links.append(f'<{quote(request.script_root)}{description}>; rel="describedby"')
    if response.mimetype == "text/html" and request.method in {"GET", "HEAD"}:
        links.append(f'<{same_in_json()}>; rel="alternate"; type="application/json"')
    if links:
        response.headers.add("Link", ", ".join(links))
    return response


def allow_origins(response: Response) -> Response:
    """CORS: let pages of the listed origins ask, and read the answer; never with cookies."""
    origins: Collection[str] = current_app.config["CORS_ORIGINS"]
    if not origins:
        return response
    response.headers.add("Vary", "Origin")
    origin = request.headers.get("Origin")
    if origin not in origins:
        return response
    response.headers["Access-Control-Allow-Origin"] = origin
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        response.headers["Access-Control-Allow-Methods"] = response.headers.get("Allow", "")
        response.headers["Access-Control-Allow-Headers"] = _REQUEST_HEADERS
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    else:
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
    return response


def compress(response: Response) -> Response:
    """Send a large answer compressed, where the client takes that.

    Compressed length can tell a secret to who has the browser ask for a page again and again with
    guesses in it; not here, since the cookie does not come with a request from another site.
    """
    response.headers.add("Vary", "Accept-Encoding")
    is_text = response.mimetype in {"text/html", "application/json"}
    if not is_text or response.direct_passthrough or not request.accept_encodings["gzip"]:
        return response
    body = response.get_data()
    if len(body) < LEAST_COMPRESSED_BYTES:
        return response
    response.set_data(gzip.compress(body, 6, mtime=0))
    response.headers["Content-Encoding"] = "gzip"
    tag, _ = response.get_etag()
    if tag:
        response.set_etag(tag, weak=True)  # no longer byte for byte what it names
    return response


def explain_precondition(response: Response) -> Response:
    """Say why a precondition failed, as of any error: Werkzeug leaves the content as it was."""
    is_conditional = request.method in {"GET", "HEAD"}  # else the view has said it
    if response.status_code != HTTPStatus.PRECONDITION_FAILED or not is_conditional:
        return response
    response.close()  # it may be a file
    error = APIError(response.status_code, "What If-Match names is not what is here now.")
    return current_app.make_response((error.as_dict(), error.status))


def add_tag(response: Response) -> Response:
    """Tell whoever asks again and again whether anything is new, where an operation says it does.

    Of JSON alone: a page is made anew for each who looks at it.
    """
    is_whole = response.status_code == HTTPStatus.OK and response.mimetype == "application/json"
    if request.method not in {"GET", "HEAD"} or not is_whole:
        return response
    operation = current_operation()
    if operation is None or HTTPStatus.NOT_MODIFIED not in operation.answers:
        return response
    if "ETag" not in response.headers:  # the view may have said which
        response.set_etag(*tag_of(response.get_data()))
    return response.make_conditional(request)


def tag_of(body: bytes) -> tuple[str, bool]:
    """The ETag of an answer in JSON, and whether it is weak: that something counts on is no news.

    What does, the application's COUNTING_FIELDS name: numbers, as of seconds until now.
    """
    names = "|".join(current_app.config["COUNTING_FIELDS"]).encode()
    steady, count = re.subn(b'"(?:%s)": [0-9.e+-]+' % names, b"", body) if names else (body, 0)
    return generate_etag(steady), count > 0


def kept_by_clients(body: str, media_type: str) -> Response:
    """An answer that is the same for everybody: a client may keep it, and ask whether it is new.

    Whoever has it already (`If-None-Match`) is told 304, and 412 who wants another (`If-Match`).
    """
    response = Response(body, mimetype=media_type)
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    return response.make_conditional(request)


def same_in_json() -> str:
    """The address of what this one answers to GET, as JSON."""
    get = operations_here().get("GET")
    names = get.query_names if get else ()  # elsewhere may be a key, by mistake
    query = [pair for pair in request.args.items(multi=True) if pair[0] in names]
    return f"{quote(request.script_root + request.path)}?{urlencode([*query, (FORMAT, 'json')])}"
