"""Flask-API 3.1 on Flask 3.1 and Werkzeug 3.1: import this before `flask_api`.

Flask-API imports two names that its foundations have dropped. Both are put back here, so that the
newest Flask and Werkzeug can be used. Nothing else in this project relies on them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import IO, Any
from urllib.parse import parse_qsl

import flask.globals
import werkzeug.urls
from werkzeug.datastructures import MultiDict


def url_decode_stream(stream: IO[bytes]) -> MultiDict[str, str]:
    """Parse a urlencoded form, as werkzeug.urls did before Werkzeug 3."""
    return MultiDict(parse_qsl(stream.read().decode(), keep_blank_values=True))


class _RequestContextStack:
    """As flask.globals had before Flask 3.1; Flask-API reads `top.url_adapter` of it."""

    @property
    def top(self) -> Any:
        return SimpleNamespace(url_adapter=flask.globals.request_ctx.url_adapter)


vars(werkzeug.urls).setdefault("url_decode_stream", url_decode_stream)
vars(flask.globals).setdefault("_request_ctx_stack", _RequestContextStack())
