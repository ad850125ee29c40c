"""The configuration: which one is in use, which were uploaded, and another one in its place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import NotRequired, TypedDict
from werkzeug.http import quote_etag

from browsable_api import APIError, Form, request
from browsable_api.errors import told
from browsable_api.request import MEGABYTE
from email_services.config import Config, checked_upload
from email_services.config_secrets import without_secrets
from email_services.config_source import TOO_DEEP
from email_services.exceptions import (
    ConfigError,
    InvalidInput,
    UnknownVersion,
    UploadsOff,
)
from email_services.message import DAY_SECONDS
from email_services.store import Uploaded
from endpoints.access import ROOT, caller, opens_for_caller
from endpoints.addresses import CONFIG, RESTORE, VERSION, VERSIONS
from endpoints.context import mailpool
from endpoints.messages import Time, iso
from endpoints.rooms import Endpoints, Fields, tagged

LOCKED_OUT: Final = "the key that you use now would not open this any more: keep it beside the new"
SOON_LOCKED_OUT: Final = (
    "no key would open this a day from now: one should have no end, or a later one"
)

MAX_BYTES: Final = MEGABYTE
"""All workers of all machines check it: that took 24 s for 3 MB in which all was wrong."""

NO_FORM: Final = "It should be no file of a form: send what the file holds, as application/json."

_REPLACED: Final = "Nothing was changed: another configuration was uploaded since you looked."

_NAMES: Final = ("email_domain", "name")
"""What an entry of a list is known by, in this order, if it has one."""


class ConfigurationFile(BaseModel):
    """A configuration, as in config.json."""

    model_config = ConfigDict(extra="allow")

    # Of any shape: what is wrong with it, `checked_config` says better.
    root_api_key: Any = Field(None, description="Where the administrator's key is, or its hash.")
    email_services: Any = Field(None, description="The email domains.")


class Compared(Fields):
    """What a version is compared with, from the query of the URL."""

    against: int | None = Field(None, description="The number of another version.", ge=1)


class Version(TypedDict):
    """A configuration that was uploaded."""

    version: Annotated[int, told("Its number.")]
    at: Annotated[Time, told("When it was uploaded.")]
    by: Annotated[str, told("With whose key, by its name.")]


class Difference(TypedDict):
    """A place in which two configurations differ."""

    path: Annotated[str, told("Where.")]
    before: NotRequired[Annotated[Any, told("In the other; left out where it has nothing.")]]
    after: NotRequired[Annotated[Any, told("In this one, likewise.")]]


class VersionInFull(Version):
    """A configuration that was uploaded, and what it says."""

    newest: Annotated[int, told("The number of the newest, which a restore would replace.")]
    configuration: Annotated[dict[str, Any], told("What was uploaded.")]
    differences: NotRequired[Annotated[list[Difference], told("From the one asked for.")]]


class Versions(TypedDict):
    """The configurations that were uploaded."""

    versions: Annotated[list[Version], told("The newest 100, the last first.")]


class InUse(TypedDict):
    """The configuration that this worker serves with."""

    version: Annotated[int | None, told("Its number; null for the file of this machine.")]
    hash: Annotated[str, told("The same on all machines that serve with the same, as in /metrics.")]
    takes_uploads: Annotated[bool, told("Whether another one may be uploaded.")]
    configuration: Annotated[dict[str, Any], told("What it says, without what is secret.")]


_EXAMPLE: Final = {
    "root_api_key": "env:ROOT_KEY",
    "email_services": [
        {
            "email_domain": "example.com",
            "pool_api_key": "env:POOL_KEY",
            "enabled_services": {"mailgun": {"api_key": "env:MAILGUN_KEY", "priority_value": 1}},
        }
    ],
}
_VERSION: Final[Version] = {
    "version": 4,
    "at": "2026-11-24T12:00:00.000+00:00",
    "by": "root_api_key 'ada'",
}

room = Endpoints(
    "configuration",
    __name__,
    "The configuration of this server, for the administrator.",
    {
        Version: _VERSION,
        VersionInFull: {**_VERSION, "newest": 5, "configuration": _EXAMPLE},
        Versions: {"versions": [_VERSION]},
        InUse: {
            "version": 4,
            "hash": "9f86d081884c7d65",
            "takes_uploads": True,
            "configuration": _EXAMPLE,
        },
    },
)


_CHANGING: Final[dict[str, Any]] = {
    "headers": ("ETag",),
    "request_headers": ("If-Match",),
    "raises": (UploadsOff, HTTPStatus.PRECONDITION_FAILED),
}


@room.operation("GET", CONFIG, ROOT, **tagged(InUse))
def get_configuration() -> tuple[InUse, int, Mapping[str, str]]:
    """Configuration.

    What this server serves with. Secrets that its file holds as they are, are not shown. What was
    uploaded is at [/config/versions](/config/versions).

    **PUT** another one, as JSON, with the root key in the `Authorization` header. The file of each
    machine has to say `"config_upload": true`. It is checked as a whole first; one that is wrong
    changes nothing, and `problems` says why. Then every worker of every machine takes it over
    within a second or two, requests in progress end with the one they began with, and services of
    which nothing changed keep their connections. With the `ETag` of this as `If-Match`, it is taken
    only while nobody else has uploaded another one.
    """
    config = mailpool.config
    answer: InUse = {
        "version": config.version,
        "hash": _fingerprint(),
        "takes_uploads": config.takes_uploads,
        "configuration": without_secrets(config.written),
    }
    return _tagged(answer, config.version)


@room.operation(
    "PUT",
    CONFIG,
    ROOT,
    **_CHANGING,
    examples={"one domain": _EXAMPLE},
)
def put_configuration(body: ConfigurationFile) -> tuple[Version, int, Mapping[str, str]]:
    """Upload a configuration.

    The body is what `config.json` would be, but for `state_url`, `queue_url` and `config_upload`,
    which the file of each machine says. It is kept in the database for all of them, and so it may
    hold no secret: a key is `"env:NAME"` or `"file:/run/secrets/name"`, to be read on each machine,
    and keys of this server may be a `hash` instead. The answer comes once it is on the disk.

    With `If-Match`, the `ETag` of what it was made of ([/config](/config)), it is 412 where another
    one was uploaded since; without it, the last one holds.
    """
    return _upload(body.model_dump(exclude_unset=True))


@room.operation("GET", VERSIONS, ROOT, page="versions.html", **tagged(Versions))
def list_versions() -> tuple[Versions, int, Mapping[str, str]]:
    """Uploaded configurations.

    Each with its number, and who uploaded it when. None is ever removed. The `ETag` is that of the
    newest.
    """
    found = mailpool.store.configurations()
    answer: Versions = {"versions": [_version(uploaded) for uploaded in found]}
    return _tagged(answer, found[0].version if found else None)


@room.operation("GET", VERSION, ROOT, page="version.html")
def get_version(version: str, query: Compared) -> VersionInFull:
    """An uploaded configuration.

    What it says; with `?against=3`, also in what it differs from version 3. **POST** to `/restore`
    there uploads it again.
    """
    found = _found(version)
    content = json.loads(found.content)
    answer: VersionInFull = {
        "version": found.version,
        "at": iso(found.at),
        "by": found.author,
        "newest": mailpool.store.newest_version() or found.version,
        "configuration": content,
    }
    if query.against is not None:
        other = json.loads(_found(str(query.against)).content)
        answer["differences"] = list(differences(other, content))
    return answer


@room.operation(
    "POST",
    RESTORE,
    ROOT,
    page="restored.html",
    form=Form("Restore it"),
    **_CHANGING,
)
def restore_version(version: str) -> tuple[Version, int, Mapping[str, str]]:
    """Restore a configuration.

    It is uploaded again, as a new version, and checked again: what it names may be gone. `If-Match`
    is as for an upload.
    """
    return _upload(json.loads(_found(version).content))


def differences(before: Any, after: Any, path: str = "") -> Iterator[Difference]:
    """Where two configurations differ, in the order in which they say it."""
    if isinstance(before, list) and isinstance(after, list):
        before, after = _by_name(before), _by_name(after)
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if before != after:
            yield {"path": path, "before": before, "after": after}
        return
    for name in {**before, **after}:
        place = f"{path}.{name}".lstrip(".")
        if name not in before:
            yield {"path": place, "after": after[name]}
        elif name not in after:
            yield {"path": place, "before": before[name]}
        else:
            yield from differences(before[name], after[name], place)


def _by_name(entries: list[Any]) -> dict[str, Any]:
    """The entries by what they are known by, or their number: their order tells nothing."""
    return {_name(entry) or str(number): entry for number, entry in enumerate(entries)}


def _name(entry: Any) -> str:
    if not isinstance(entry, dict):
        return ""
    return next((str(entry[name]) for name in _NAMES if name in entry), "")


def _upload(given: Mapping[str, Any]) -> tuple[Version, int, Mapping[str, str]]:
    """Keep it for all workers and machines, if it is good, and what it is to replace is there."""
    kept = None
    while kept is None:
        kept = _kept_after(mailpool.store.newest_version(), given)
    return _tagged(_version(kept), kept.version)


def _kept_after(newest: int | None, given: Mapping[str, Any]) -> Uploaded | None:
    """It as the version after the newest; None where another was faster."""
    if not mailpool.config.takes_uploads:
        raise UploadsOff
    # The tag is of what is said, not of bytes: compression makes it weak, and it holds.
    if request.if_match and not request.if_match.contains_weak(_tag(newest)):
        raise APIError(HTTPStatus.PRECONDITION_FAILED, _REPLACED)
    uploaded = Uploaded((newest or 0) + 1, time.time(), caller(), _written(given))
    _refuse_if_locked_out(_checked(uploaded))
    return uploaded if mailpool.store.add_configuration(uploaded) else None


def _refuse_if_locked_out(config: Config) -> None:
    """One that the caller could not change again, or that nobody could tomorrow."""
    if not opens_for_caller(config.keyring):
        raise InvalidInput({"root_api_key": f"{LOCKED_OUT}."})
    tomorrow = time.time() + DAY_SECONDS
    if not any(key.role == "root" and key.is_valid(tomorrow) for key in config.root_keys):
        raise InvalidInput({"root_api_key": f"{SOON_LOCKED_OUT}."})


def _tag(version: int | None) -> str:
    """What stands for a configuration in `If-Match`: its number, or which file it is."""
    return str(version) if version else _fingerprint()


def _fingerprint() -> str:
    return mailpool.config.fingerprint(mailpool.store.secret("configuration"))


Answer = TypeVar("Answer")


def _tagged(answer: Answer, version: int | None) -> tuple[Answer, int, Mapping[str, str]]:
    return answer, HTTPStatus.OK, {"ETag": quote_etag(_tag(version))}


def _written(given: Mapping[str, Any]) -> str:
    """It as it is kept. Raises InvalidInput, and APIError (413) for one that is too large."""
    if request.file_names:
        raise InvalidInput(dict.fromkeys(request.file_names, NO_FORM))
    try:
        content = json.dumps(given)
    except RecursionError:
        raise InvalidInput({"configuration": f"{TOO_DEEP}."}) from None
    if len(content) > MAX_BYTES:
        said = f"A configuration is at most {MAX_BYTES // MEGABYTE} MB."
        raise APIError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, said)
    return content


def _checked(uploaded: Uploaded) -> Config:
    try:
        return checked_upload(uploaded, mailpool.config.of_the_file)
    except ConfigError as error:
        problems = error.problems or {"configuration": str(error)}
        raise InvalidInput(
            {place: said if said.endswith("?") else f"{said}." for place, said in problems.items()}
        ) from None


def _found(version: str) -> Uploaded:
    is_number = version.isdecimal() and version.isascii() and len(version) < 10  # noqa: PLR2004
    found = mailpool.store.configuration(int(version)) if is_number else None
    if found is None:
        raise UnknownVersion(version)
    return found


def _version(uploaded: Uploaded) -> Version:
    return {"version": uploaded.version, "at": iso(uploaded.at), "by": uploaded.author}
