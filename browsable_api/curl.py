"""The command for a shell that asks what a page has just asked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlencode

from browsable_api.request import Request


def curl_command(
    request: Request, asked: Collection[str], secrets: Collection[str], key_name: str
) -> str:
    """The request as a curl command, whose answer is the page's in JSON.

    asked: what of the query is repeated; there may be a key in it by mistake. secrets: names of
    fields that are left out. key_name: the variable of the shell that holds the
    key which the request needs, or "".
    """
    query = {name: value for name, value in request.args.items() if name in asked}
    words = ["curl", shlex.quote(request.base_url + (f"?{urlencode(query)}" if query else ""))]
    if request.method == "POST":
        words += ["-X", "POST"]
    if key_name:
        words += ["-H", f'"Authorization: Bearer ${key_name}"']
    if request.method == "POST":
        given = request.read_so_far.items()
        words += _body(request, {name: value for name, value in given if name not in secrets})
    return " ".join(words)


def _body(request: Request, fields: Mapping[str, Any]) -> list[str]:
    if not request.file_names:
        body = json.dumps(fields, ensure_ascii=False)
        json_type = shlex.quote("Content-Type: application/json")
        return ["-H", json_type, "-d", shlex.quote(body)] if fields else []
    words = []
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if name not in request.file_names:
                words += ["--form-string", shlex.quote(f"{name}={one}")]
    for name, files in request.file_names.items():
        for file in files:
            words += ["-F", shlex.quote(f"{name}=@{json.dumps(file, ensure_ascii=False)}")]
    return words
