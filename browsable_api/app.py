"""The application class: Flask-API with what it gets wrong put right."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from flask import Flask, current_app, g
from flask.typing import ResponseReturnValue
from flask_api import FlaskAPI
from flask_api.exceptions import APIException, NotAcceptable
from werkzeug.exceptions import HTTPException
from werkzeug.urls import uri_to_iri
from werkzeug.wrappers import Response

from browsable_api.charts import bar, columns
from browsable_api.clients import Proxies
from browsable_api.conventions import (
    add_links,
    add_tag,
    allow_origins,
    compress,
    explain_precondition,
)
from browsable_api.errors import SENTENCES, APIError, sentence_of
from browsable_api.operations import current_operation, operations_here
from browsable_api.renderers import JSONRenderer, PageRenderer, as_html, here, pretty, with_links
from browsable_api.request import FORMAT, MEGABYTE, Request, request
from browsable_api.request_ids import REQUEST_ID, usable_id
from browsable_api.structure import Structure
from browsable_api.times import ahead, clock, is_past, lasting, this_moment

access_log = logging.getLogger("access")

MAX_BODY_BYTES: Final = 10 * MEGABYTE
MAX_JSON: Final = Structure(containers=200_000, members=200_000, values=1_000_000)

STANDARD_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""What every answer carries, unless it says otherwise."""


class BrowsableAPI(FlaskAPI):  # type: ignore[misc]
    """A Flask-API application whose views return dicts, for programs and for people.

    A view's docstring is its page: the first line is the title, the rest Markdown. Every error
    leaves in the same shape (see `errors`) and in the format the client asked for.
    """

    request_class = Request

    # Flask-API's own ignore TRUSTED_HOSTS, and handlers registered for a base class.
    create_url_adapter = Flask.create_url_adapter
    handle_user_exception = Flask.handle_user_exception

    def __init__(
        self,
        import_name: str,
        max_body_bytes: int = MAX_BODY_BYTES,
        *,
        title: str = "",
        description: str = "",
        cors_origins: Collection[str] = (),
        max_json: Structure = MAX_JSON,
        knows_sender: Callable[[bytearray], bool] = lambda _: True,
        trusted_proxies: str = "",
        unreadable: tuple[type[Exception], ...] = (),
        on_request: Callable[[str, Mapping[str, Any]], None] = lambda *_: None,
    ) -> None:
        """Set up like FlaskAPI, but for its blueprint, which serves jQuery 1.8 and Bootstrap 2.

        title: of every page. max_body_bytes: a larger body of a request is answered 413.
        description: the path where
        the API is described for programs, "" for nowhere. cors_origins: the origins whose pages
        may ask and read the answer. max_json: what a body in JSON may become. knows_sender: whether
        a request is from somebody known, going by its headers and the beginning of its body; of
        others no more than STRANGERS_BYTES are read. trusted_proxies: see `clients.Proxies`.
        unreadable: what the server raises where a body is not as its headers say. on_request: told
        the id of each request, and WSGI's environment, before anything is done with it.
        """
        folder = Path(__file__).parent
        Flask.__init__(
            self,
            import_name,
            static_folder=folder / "static",
            template_folder=str(folder / "templates"),
        )
        self._proxies = Proxies(trusted_proxies)
        self._on_request = on_request
        self.config["TITLE"] = title
        self.config["UNREADABLE"] = unreadable
        self.config["MAX_CONTENT_LENGTH"] = max_body_bytes
        self.config["MAX_JSON"] = max_json
        self.config["KNOWS_SENDER"] = knows_sender
        self.config["SECRET_FIELDS"] = ()  # beside passwords, what a page repeats to nobody
        self.config["COUNTING_FIELDS"] = ()  # of answers: they count on while nothing happens
        self.config["API_DESCRIPTION"] = description
        self.config["CORS_ORIGINS"] = frozenset(cors_origins)
        self.jinja_env.filters |= {"here": here, "markdown": as_html, "pretty": pretty}
        self.jinja_env.filters["with_links"] = with_links
        self.jinja_env.filters |= {"ahead": ahead, "clock": clock, "lasting": lasting}
        self.jinja_env.tests["past"] = is_past
        self.jinja_env.globals |= {"bar": bar, "columns": columns, "this_moment": this_moment}
        self.before_request(_start_clock)
        self.after_request(compress)
        self.after_request(add_links)
        self.after_request(allow_origins)
        self.after_request(_complete)
        self.after_request(explain_precondition)
        self.after_request(add_tag)
        self.register_error_handler(APIError, _answer_error)
        self.register_error_handler(APIException, _answer_flask_api_exception)
        self.register_error_handler(HTTPException, _answer_http_exception)

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        """Trailing slashes never matter, and a client is who it is, whatever stands in between.

        A request has an id: the one that its client or a proxy has given it, or a new one.
        """
        environ["HTTP_X_REQUEST_ID"] = request_id = usable_id(environ.get("HTTP_X_REQUEST_ID", ""))
        self._on_request(request_id, environ)
        environ["REMOTE_ADDR"] = self._proxies.client(
            environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR", "")
        )
        if not _is_host(environ.get("HTTP_HOST", "")):
            del environ["HTTP_HOST"]  # before anything is done: no answer could name its addresses
        environ["PATH_INFO"] = environ["PATH_INFO"].rstrip("/") or "/"
        return super().wsgi_app(environ, start_response)

    def preprocess_request(self) -> ResponseReturnValue | None:
        """Settle the format of the answer first: nothing is done for one we cannot give."""
        request.renderer_classes = (JSONRenderer, PageRenderer)
        try:
            _ = request.accepted_renderer
        except NotAcceptable:
            operation = current_operation()
            if FORMAT in request.args or not (operation and operation.gives_files):
                raise
            _fall_back_to_json()
        return Flask.preprocess_request(self)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """No view is a coroutine; to find that out takes Flask 2 µs for each function it calls."""
        return func

    def make_default_options_response(self) -> Response:
        """Say what can be done here, and with which fields."""
        response: Response = super().make_default_options_response()
        said = {
            method: {
                "summary": operation.title,
                "opened_by": operation.access.opened_by,
                "keys": [key for key in operation.access.schemes if key],
                "fields": sorted(operation.body_names | operation.query_names),
            }
            for method, operation in operations_here().items()
        }
        if said:
            response.set_data(json.dumps(said) + "\n")
            response.mimetype = "application/json"
        return response

    def log_exception(self, exc_info: Any) -> None:
        """A bug of ours, with its traceback; the path quoted, so that it stays one line."""
        self.logger.error("%s %s failed", request.method, quote(request.path), exc_info=exc_info)


@lru_cache(maxsize=128)
def _is_host(host: str) -> bool:
    """Whether addresses can be made of a Host header; they are shown with its IDNA decoded."""
    try:
        uri_to_iri(f"http://{host}/")
    except ValueError:  # UnicodeError is one
        return False
    return True


def _answer_error(error: APIError) -> ResponseReturnValue:
    return error.as_dict(), error.status, error.headers


def _answer_flask_api_exception(error: APIException) -> ResponseReturnValue:
    if error.status_code == HTTPStatus.NOT_ACCEPTABLE:
        _fall_back_to_json()
    sentence = SENTENCES.get(HTTPStatus(error.status_code), error.detail)
    return _answer_error(APIError(error.status_code, sentence))


def _fall_back_to_json() -> None:
    request._accepted_renderer = JSONRenderer()  # noqa: SLF001
    request._accepted_media_type = JSONRenderer.media_type  # noqa: SLF001


def _answer_http_exception(error: HTTPException) -> ResponseReturnValue:
    """Werkzeug's and Flask's errors, a bug of ours (500) among them; with their headers (Allow)."""
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    sentence = sentence_of(error)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        limit = current_app.config["MAX_CONTENT_LENGTH"] // MEGABYTE
        sentence = f"The body is larger than {limit} MB."
    headers = {k: v for k, v in error.get_headers() if k.lower() != "content-type"}
    return _answer_error(APIError(status, sentence, headers=headers))


def _start_clock() -> None:
    g.started = time.monotonic()


def _complete(response: Response) -> Response:
    for name, value in STANDARD_HEADERS.items():
        if name not in response.headers:
            response.headers.add(name, value)
    response.headers.add("Vary", "Accept")
    response.headers[REQUEST_ID] = request.headers[REQUEST_ID]
    said = {
        "event": "request",
        "client": request.remote_addr,
        "method": request.method,
        "path": quote(request.path),  # never the query, where somebody may put a key by mistake
        "status": response.status_code,
        "milliseconds": round((time.monotonic() - g.started) * 1000) if "started" in g else 0,
    }
    access_log.info(
        "%(client)s %(method)s %(path)s %(status)d %(milliseconds)d ms", said, extra=said
    )
    return response
