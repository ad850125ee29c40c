"""Where config.json comes from, and its values that stand for a secret kept elsewhere.

A string may be "env:NAME", the variable NAME of the environment, or "file:/run/secrets/name", what
is in that file: so that a configuration holds no secret, wherever it rests.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path as FilePath
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from email_services.exceptions import ConfigError

Path = tuple[int | str, ...]
"""Where something stands in the file."""

MAX_SECRET_BYTES: Final = 64 * 1024
"""More is no secret, but the wrong file."""

TOO_DEEP: Final = "it is nested too deeply"

_UNRESOLVED: Final = "unset"
"""In the place of a value that is missing, so that its other problems are told, too."""


class Problems:
    """What is wrong, by JSON path, in the order found."""

    def __init__(self) -> None:
        self.sentences: dict[str, str] = {}

    def add(self, path: Path, sentence: str) -> None:
        """There is this problem at `path`."""
        place, said = _json_path(path), sentence.rstrip(".")
        known = self.sentences.get(place)
        self.sentences[place] = f"{known}; {place}: {said}" if known else said

    def __bool__(self) -> bool:
        return bool(self.sentences)

    def __str__(self) -> str:
        return "; ".join(f"{place}: {said}" for place, said in self.sentences.items())


def _json_path(path: Path) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".") or "the file"


def read_source(source: str) -> str:
    """The text at a path or URL. Raises ConfigError."""
    name = printable(source)
    try:
        if source.startswith("s3://"):
            return _read_from_s3(source).decode("utf-8-sig")
        if re.match(r"https?://", source):
            response = requests.get(source, timeout=10)
            response.raise_for_status()
            return response.content.decode("utf-8-sig")
        return FilePath(source).read_text(encoding="utf-8-sig")
    except requests.HTTPError as error:
        raise ConfigError(f"{name}: HTTP {error.response.status_code}") from None
    except requests.RequestException:
        raise ConfigError(f"{name}: could not be fetched") from None
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8
        raise ConfigError(f"{name}: {error}") from None


def _read_from_s3(source: str) -> bytes:
    """What is at `s3://bucket/key`; as AWS's variables say who asks. Raises ConfigError.

    By boto3 alone: what is made to open any URL wraps it, and says less of what went wrong.
    """
    try:
        from boto3 import client  # noqa: PLC0415 - for who has a configuration there
        from botocore.config import Config as Settings  # noqa: PLC0415 - likewise
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - likewise
    except ModuleNotFoundError:
        raise ConfigError(f"{source}: it needs boto3 (pip install boto3)") from None
    bucket, _, key = source.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise ConfigError(f"{source}: it should be s3://bucket/key")
    patience = Settings(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3})
    try:
        found = client("s3", config=patience).get_object(Bucket=bucket, Key=key)
        content: bytes = found["Body"].read()
    except ClientError as error:
        raise ConfigError(f"{source}: S3 says {error.response['Error']['Code']}") from None
    except BotoCoreError as error:
        kind = type(error).__name__
        raise ConfigError(f"{source}: it could not be fetched ({kind})") from None
    return content


def printable(source: str) -> str:
    """The source without what may be secret in a URL."""
    try:
        url = urlsplit(source)
    except ValueError:
        return "the URL of the configuration"
    host = url.netloc.rpartition("@")[2]
    return f"{url.scheme}://{host}{url.path}" if url.netloc else source


def parsed(text: str, name: str) -> Any:
    """The JSON in `text`. Raises ConfigError if it is none."""
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ConfigError(f"{name}: {TOO_DEEP}") from None
    except ValueError as error:  # not JSON, or a key given twice
        raise ConfigError(f"{name}: {error}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' is given twice in one object")
    return result


def resolved(value: Any, problems: Problems, path: Path = ()) -> Any:
    """`value` with what each "env:NAME" and "file:/NAME" in it stands for."""
    if isinstance(value, dict):
        return {k: resolved(v, problems, (*path, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [resolved(v, problems, (*path, i)) for i, v in enumerate(value)]
    if not is_reference(value):
        return value
    kind, _, where = value.partition(":")
    try:
        return _variable(where) if kind == "env" else _content(where)
    except LookupError as error:
        problems.add(path, str(error.args[0]))
        return _UNRESOLVED


def is_reference(value: object) -> bool:
    """Whether it stands for a value that is kept elsewhere."""
    return isinstance(value, str) and value.startswith(("env:", "file:"))


def _variable(name: str) -> str:
    if name not in os.environ:
        raise LookupError(f"the environment has no variable {name}")
    return os.environ[name]


def _without_waiting(path: str, flags: int) -> int:
    """Open it so that no read waits: some files that look like any other do, as /proc/kmsg."""
    return os.open(path, flags | os.O_NONBLOCK)


def _content(path: str) -> str:
    """What is in a file, without the line's end that editors and `echo` leave behind it."""
    if not path.startswith("/"):
        raise LookupError(f"'file:{path}' should name a whole path: file:/run/secrets/name")
    try:
        file = FilePath(path)
        if file.exists() and not file.is_file():
            raise LookupError(f"{path} is no file")
        with open(file, "rb", opener=_without_waiting) as opened:
            content = opened.read(MAX_SECRET_BYTES + 1)
        if content is None:
            raise LookupError(f"{path} cannot be read: it holds nothing yet")
        if len(content) > MAX_SECRET_BYTES:
            raise LookupError(f"{path} is larger than a secret")
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise LookupError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:  # not UTF-8, or a path that can be none
        raise LookupError(f"{path} does not hold text in UTF-8") from None
