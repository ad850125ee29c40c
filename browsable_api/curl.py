"""The command for a shell that asks what a page has just asked."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from browsable_api.request import Request

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def curl_command(
    request: Request,
    asked: Collection[str],
    known: Collection[str],
    secret: Collection[str],
    key_name: str,
) -> str:
    """The request as a curl command, whose answer is the page's in JSON.

    asked, known: what of the query and of the body is repeated; elsewhere may be a key, by mistake.
    secret: what is to be filled in instead, wherever it stands in the body.
    key_name: the variable of the shell that holds the key which the request needs, or "".
    """
    query = {name: value for name, value in request.args.items() if name in asked}
    words = ["curl", _quoted(request.base_url + (f"?{urlencode(query)}" if query else ""))]
    if request.method not in {"GET", "HEAD"}:
        words += ["-X", request.method]
    if key_name:
        words += ["-H", f'"Authorization: Bearer ${key_name}"']
    if request.method == "POST":
        given = request.read_so_far.items()
        fields = {name: value for name, value in given if name in known}
        files = {name: files for name, files in request.file_names.items() if name in known}
        words += _body(fields, files, secret)
    return " ".join(words)


def _quoted(text: str) -> str:
    """As one word of bash, of characters that a terminal takes for nothing but text."""
    if not _CONTROLS.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return "$'" + _CONTROLS.sub(_in_hexadecimal, escaped) + "'"


def _in_hexadecimal(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode())


def _body(
    fields: Mapping[str, Any], files: Mapping[str, list[str]], secret: Collection[str]
) -> list[str]:
    if not files:
        body = _blanked(secret, json.dumps(fields, ensure_ascii=False))
        json_type = _quoted("Content-Type: application/json")
        return ["-H", json_type, "-d", _quoted(body)] if fields else []
    words = []
    for name, value in _without_secrets(secret, fields).items():
        for one in value if isinstance(value, list) else [value]:
            if name not in files:
                words += ["--form-string", _quoted(f"{name}={one}")]
    for name, names in files.items():
        for file in names:
            base = file.replace("\\", "/").rpartition("/")[2]  # a file here, not one somewhere
            words += ["-F", _quoted(f"{name}=@{json.dumps(base, ensure_ascii=False)}")]
    return words


def _blanked(secret: Collection[str], body: str) -> str:
    """The JSON without what is secret, in whatever object it is."""
    if not any(name in body for name in secret):
        return body
    found = json.loads(body, object_hook=partial(_without_secrets, secret))
    return json.dumps(found, ensure_ascii=False)


def _without_secrets(secret: Collection[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {n: f"YOUR-{n.upper()}" if n in secret else value for n, value in fields.items()}
