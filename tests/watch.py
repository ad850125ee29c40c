"""Whether a line that is logged while a test runs holds a key or a body, or is no JSON.

Every record of every logger is looked at, at DEBUG and as `LOG_FORMAT=json` writes it: of this
process, and of the servers that `servers` starts, which write to a file. What no line may hold is
what the product itself takes for a key or a body there: what is configured as a secret, what is
shown as a key, whether it opens something or not, and the bodies and files of what is to be sent.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

MIN = 8
"""Characters of what is looked for: what is shorter stands in many a line by chance."""

MAX = 60
"""Of what is longer, its beginning is looked for."""

BEGINNING = 1000
"""Characters of a body from which that is taken."""

PLAIN = re.compile(r"[ !#-&(-\[\]-~]+")
"""What stands in a line as it is, whatever it is written in."""

SECRETS_FILE = "SECRETS_FILE"
"""In the environment of a server: where it notes them, one JSON text a line."""


def create_app():
    """The service, for gunicorn, noting its secrets in the file that the environment names."""
    from app import create_app as create_service  # noqa: PLC0415 - gunicorn.conf.py comes first

    secrets = Path(os.environ[SECRETS_FILE])
    known: set[str] = set()

    def keep(secret: str) -> None:
        if secret not in known:
            known.add(secret)
            with secrets.open("a") as file:  # whole lines of all workers, one after the other
                file.write(f"{json.dumps(secret)}\n")

    note_secrets(keep)
    return create_service()


def note_secrets(keep: Callable[[str], object]) -> None:
    """Have `keep` told of each key and each body, until the process ends: of what to look for.

    That is a run of characters that no language escapes, if there is a long one, else a line.
    """
    from email_services.api_keys import Keyring  # noqa: PLC0415 - in a server: as above
    from email_services.message import EmailMessage  # noqa: PLC0415 - likewise

    make_secret, find, parse = SecretStr.__init__, Keyring.find, EmailMessage.parse.__func__

    def note(secret: str) -> None:
        beginning = secret[:BEGINNING]
        for parts in (PLAIN.findall(beginning), beginning.splitlines()):
            longest = max(parts, key=len, default="").strip()[:MAX]
            if len(longest) >= MIN:
                keep(longest)
                return

    def make_and_note(self: SecretStr, value: str) -> None:
        note(value)
        make_secret(self, value)

    def note_and_find(self: Keyring, shown: str, now: float) -> Any:
        note(shown)
        return find(self, shown, now)

    def note_and_parse(
        cls: Any, fields: Mapping[str, Any], *rest: Any, **named: Any
    ) -> EmailMessage:
        for body in bodies_in(fields):
            note(body)
        return parse(cls, fields, *rest, **named)

    SecretStr.__init__ = make_and_note
    Keyring.find = note_and_find
    EmailMessage.parse = classmethod(note_and_parse)


def bodies_in(fields: Mapping[str, Any]) -> Iterator[str]:
    """The bodies of a message as somebody gave it, and its files in base64."""
    files = [fields.get("attachments"), fields.get("inline")]
    given = [f.get("content") for some in files for f in as_list(some) if isinstance(f, Mapping)]
    for text in (fields.get("raw_text_body"), fields.get("html_body"), *given):
        if isinstance(text, str):
            yield text


def as_list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


@cache
def forms(secret: str) -> tuple[str, ...]:
    """The ways in which it may stand in a line.

    In base64 it looks different after one byte and after two.
    """
    raw = secret.encode("utf-8", "replace")
    in_base64 = [
        base64.b64encode(bytes(before) + raw)[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        for before in range(3)
    ]
    escaped = {json.dumps(secret, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
    written = {secret, *escaped, quote(raw)}
    return (*written, *(coded.decode() for coded in in_base64))


def leaks(text: str, secrets: Iterable[str]) -> list[str]:
    """Which of them the lines hold, each as one sentence."""
    return [
        f"{secret!r} is in: {next(line for line in text.splitlines() if form in line)}"
        for secret in secrets
        for form in forms(secret)
        if form in text
    ]


def not_json(lines: Iterable[str]) -> list[str]:
    """Which of them are none, each as one sentence."""
    found = []
    for line in lines:
        try:
            is_one = isinstance(json.loads(line), dict)
        except ValueError:
            is_one = False
        if not is_one:
            found.append(f"no JSON object: {line}")
    return found


class ServersLog:
    """What the server at `url` has logged since it was looked at last.

    is_json: whether it was told to.
    """

    def __init__(self, url: str, path: Path, secrets: Path, *, is_json: bool) -> None:
        self.url = url
        self._path = path
        self._secrets_path = secrets
        self._is_json = is_json
        self._read = 0
        self.secrets: set[str] = set()

    def problems(self) -> list[str]:
        """What is wrong in it; of a line that is not whole yet, the next time."""
        with suppress(FileNotFoundError):  # where it never began
            self.secrets |= set(map(json.loads, self._secrets_path.read_text().splitlines()))
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole + end)
        text = whole.decode("utf-8", "replace")
        broken = not_json(text.splitlines()) if self._is_json else []
        return [*broken, *leaks(text, self.secrets)]


class Watch(logging.Handler):
    """All that is logged here and in the servers, and what may not be."""

    def __init__(self) -> None:
        super().__init__()
        from email_services.logs import JSONLines  # noqa: PLC0415 - in a server: as above

        self._lines: list[str] = []
        self._secrets: set[str] = set()
        self.servers: list[ServersLog] = []
        self._as_json = JSONLines("plain")

    def begin(self) -> None:
        """Until the process ends."""
        root = logging.getLogger()
        root.setLevel(logging.DEBUG)
        root.addHandler(self)
        note_secrets(self._secrets.add)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler; what cannot be written is a line that is no JSON."""
        try:
            if record.name.startswith("urllib3.") and self._is_of_a_test(record):
                return
            line = self._as_json.format(record)
        except Exception:  # noqa: BLE001 - whatever it is
            line = traceback.format_exc()
        self._lines.append(line)

    def _is_of_a_test(self, record: logging.LogRecord) -> bool:
        """Whether it is about what a test asks of a server, with a key in the URL for one."""
        about = record.getMessage()
        return any(server.url in about for server in self.servers)

    def follow(self, server: ServersLog) -> None:
        """Look at what it logs, too."""
        self.servers.append(server)

    def problems(self) -> list[str]:
        """What is wrong in what was logged since the last time."""
        lines, self._lines = self._lines, []
        found = [*not_json(lines), *leaks("\n".join(lines), self._secrets)]
        for server in self.servers:
            found += server.problems()
        root = logging.getLogger()
        if root.level != logging.DEBUG or self not in root.handlers:
            found.append("the test left the root logger so that not everything is looked at")
        return found

    def forget(self) -> None:
        """A module's tests have ended, and with them its servers."""
        self._secrets.clear()
        self.servers.clear()


WATCH = Watch()
