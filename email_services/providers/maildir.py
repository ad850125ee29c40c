"""Maildir: the embedded default, which keeps each message in a folder of this machine."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from email_services.abstract import AbstractEmailService, Acceptance, ServiceSettings, Standing
from email_services.capabilities import Capabilities
from email_services.exceptions import ServiceUnavailable
from email_services.message import EmailMessage
from email_services.mime import build_mime
from email_services.texts import refuse_control_characters

STALE_SECONDS: Final = 36 * 3600
"""After which nobody writes a file in `tmp/` any more (cr.yp.to/proto/maildir.html)."""

CLEARING_SECONDS: Final = 3600
"""How often such files are looked for."""


def _can_be_there(path: Path) -> Path:
    refuse_control_characters(str(path))
    return path


class MaildirSettings(ServiceSettings):
    """What config.json may say of a maildir service."""

    path: Annotated[Path, AfterValidator(_can_be_there)] = Field(
        Path("mail"), description="The Maildir; made where there is none."
    )


class Maildir(AbstractEmailService):
    """A Maildir that any mail program opens, written as its format asks.

    A message is a complete RFC 5322 file: written and synced in `tmp/`, then moved to `new/`, so
    that no reader ever sees half of it (cr.yp.to/proto/maildir.html). Recipients of a bcc are kept
    in the file, as mail programs keep them in a folder of sent mail. Tags and metadata, which only
    a provider's events would give back, are headers: X-Tag and X-Metadata-KEY.

    What could not be written whole leaves `tmp/` again, so that a large message takes no room that
    smaller ones need. What a kill leaves there goes after 36 hours, as the format says.
    """

    provider = "maildir"
    Settings = MaildirSettings
    capabilities = Capabilities(tracking=False, schedule_days=0)
    keeps_messages = True
    settings: MaildirSettings
    _next_clearing = 0.0
    """Seconds of `time.monotonic`."""

    def look_at_account(self, timeout: float) -> Standing:  # noqa: ARG002 - a file does not wait
        """Write a file where messages are written, and remove it."""
        name = _unique_name()
        try:
            (self.settings.path / "tmp").mkdir(parents=True, exist_ok=True)
            temporary = self.settings.path / "tmp" / name
            with open(temporary, "xb", opener=_private):
                pass
            temporary.unlink()
        except OSError as error:
            raise ServiceUnavailable(f"The Maildir cannot be written: {error.strerror}.") from None
        return Standing(account=True, domain=True)

    @property
    def depends_on(self) -> str:
        """See AbstractEmailService."""
        return "this machine's disk"

    def send(self, message: EmailMessage, timeout: float) -> Acceptance:  # noqa: ARG002 - a file does not wait
        """The id is the file's name. Raises ServiceUnavailable where it cannot be written."""
        name = _unique_name()
        content = bytes(build_mime(message, with_bcc=True))
        try:
            for part in ("tmp", "new", "cur"):
                (self.settings.path / part).mkdir(parents=True, exist_ok=True)
            self._clear_sometimes()
            self._write(name, content)
        except OSError as error:
            raise ServiceUnavailable(f"The Maildir cannot be written: {error.strerror}.") from None
        return Acceptance(name)

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.settings.path / "tmp" / name
        try:
            with open(temporary, "xb", opener=_private) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.settings.path / "new" / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _clear_sometimes(self) -> None:
        """Remove what nobody writes any more; once an hour, as a listing takes time."""
        if (now := time.monotonic()) < self._next_clearing:
            return
        self._next_clearing = now + CLEARING_SECONDS
        with suppress(OSError), os.scandir(self.settings.path / "tmp") as files:
            for file in files:
                _remove_if_stale(file, time.time())

    def kept_message(self, message_id: str) -> bytes | None:
        """The file of that name; a mail program moves it to `cur/` and adds flags, as ":2,S"."""
        if not re.fullmatch(r"[^/:\0]+", message_id) or message_id in {".", ".."}:
            return None
        try:
            return self._file(message_id).read_bytes()
        except (OSError, UnicodeEncodeError):  # gone, not ours to read; no name for a file
            return None

    def _file(self, name: str) -> Path:
        """Where the file is now; as long as it is in neither folder, where it was put."""
        new = self.settings.path / "new" / name
        if new.is_file():
            return new
        seen = (self.settings.path / "cur").iterdir()
        return next((file for file in seen if file.name.partition(":")[0] == name), new)


def _remove_if_stale(file: os.DirEntry[str], now: float) -> None:
    """now: seconds since the epoch. A file that cannot be removed stops no message."""
    with suppress(OSError):
        said = file.stat(follow_symlinks=False)
        # Either alone may be old in a file that a mail program is copying.
        if max(said.st_atime, said.st_mtime) < now - STALE_SECONDS:
            Path(file).unlink()


def _private(path: str, flags: int) -> int:
    """Mail is for the user whom this service runs as, whatever the umask."""
    return os.open(path, flags, 0o600)


def _unique_name() -> str:
    """Time, randomness and host, as the format asks; "/" and ":" have a meaning in it."""
    host = socket.gethostname().replace("/", "\\057").replace(":", "\\072")
    return f"{time.time():.6f}.{os.getpid()}_{secrets.token_hex(8)}.{host}"
