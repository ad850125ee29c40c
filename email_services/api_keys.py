"""The keys of this service: what config.json says of them, and which one a caller has shown.

A key is written as it is, or as the hash of one (`python -m email_services hash-key`). A hash is
slow by intent, and a key comes with every request; so whose key it was is remembered in the
process, under a digest that nobody outside can make. Each hash holds a mark of its key as well, by
which all but one wrong key in 65,536 is turned away at once: a stranger buys no slow hashes. The
mark helps to guess a short key, and so a hash is only made of one that is long.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    model_validator,
)

from email_services.abstract import Key

Role = Literal["root", "send", "read", "metrics"]

ROOT_ROLES: Final[tuple[Role, ...]] = ("root", "metrics")
"""Of keys of the whole server; the first where none is said."""

DOMAIN_ROLES: Final[tuple[Role, ...]] = ("send", "read")
"""Of keys of one email domain."""

MIN_HASHED: Final = 20
"""Characters of a key that may be hashed."""

MARK_BYTES: Final = 2
_REFUSED_AT_ONCE: Final = 1000
"""How many keys are remembered whose mark was right and which were not."""

_HASH = re.compile(r"scrypt:([A-Za-z0-9_-]{22}):([A-Za-z0-9_-]{3}):([A-Za-z0-9_-]{43})", re.ASCII)


def _hash_of_ours(value: str) -> str:
    if not _HASH.fullmatch(value):
        raise ValueError("It should be what `python -m email_services hash-key` prints")
    return value


class KeySettings(BaseModel):
    """One of several keys as config.json describes it."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$")]
    key: Key | None = None
    hash: Annotated[str, AfterValidator(_hash_of_ours)] | None = None
    role: Role | None = None
    until: AwareDatetime | None = None

    @model_validator(mode="after")
    def _is_one(self) -> KeySettings:
        if (self.key is None) == (self.hash is None):
            raise ValueError('It should have either "key" or "hash"')
        return self


class OneKey(RootModel[Key]):
    """The only key, which has no name."""


@dataclass(frozen=True)
class ApiKey:
    """A key that opens something here.

    email_domain: whose; None for the whole server. until: seconds since the epoch. value: the key,
    where it is known. hashed: else its hash. is_named: whether config.json gives it the name.
    """

    name: str
    role: Role
    email_domain: str | None = None
    until: float | None = None
    value: str | None = field(default=None, repr=False)
    hashed: str | None = field(default=None, repr=False)
    is_named: bool = True

    @classmethod
    def of(cls, given: KeySettings, email_domain: str | None) -> ApiKey:
        """The key that config.json describes. Raises ValueError for a role it cannot have."""
        roles = DOMAIN_ROLES if email_domain else ROOT_ROLES
        role = given.role or roles[0]
        if role not in roles:
            raise ValueError(f"the role should be {' or '.join(roles)} here")
        until = given.until.timestamp() if given.until else None
        value = given.key.get_secret_value() if given.key else None
        return cls(given.name, role, email_domain, until, value, given.hash)

    @property
    def place(self) -> str:
        """Whose key it is: "root" for the whole server's, or an email domain, which has a dot."""
        return self.email_domain or "root"

    def __str__(self) -> str:
        kind = "pool_api_key" if self.email_domain else "root_api_key"
        name = f" '{self.name}'" if self.is_named else ""
        return f"{kind}{name}{f' of {self.email_domain}' if self.email_domain else ''}"

    @property
    def secret(self) -> str:
        """What another key does not have: itself, or its hash."""
        return str(self.value or self.hashed)

    def is_valid(self, now: float) -> bool:
        """Whether it has not ended."""
        return self.until is None or now < self.until


class Keyring:
    """All keys of a configuration."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self.keys = tuple(keys)
        self._order = {key: number for number, key in enumerate(self.keys)}
        self._secret = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[ApiKey, ...]] = {}
        """By digest: a key that is shown cannot choose where it is looked for, nor learn from how
        long that takes."""
        for key in self.keys:
            if key.value is not None:
                self._learn(self._digest(key.value), key)
        self._hashed = [key for key in self.keys if key.hashed is not None]
        self._refused: set[tuple[bytes, str]] = set()
        self._lock = threading.Lock()

    def find(self, shown: str, now: float) -> tuple[ApiKey, ...]:
        """Which keys `shown` is, those of the whole server first; none where it opens nothing."""
        digest = self._digest(shown)
        for key in tuple(self._hashed):
            self._try(key, shown, digest)
        found = self._known.get(digest, ())
        return tuple(key for key in found if key.is_valid(now))

    def named(self, place: str, name: str) -> ApiKey | None:
        """The key of this name there."""
        found = (key for key in self.keys if (key.place, key.name) == (place, name))
        return next(found, None)

    def _try(self, key: ApiKey, shown: str, digest: bytes) -> None:
        """Whether it is the key of a hash; asked slowly once at most."""
        hashed = str(key.hashed)
        if not has_mark(hashed, shown) or (digest, hashed) in self._refused:
            return
        with self._lock:  # one at a time: it takes 16 MB
            if key not in self._hashed:
                return  # another thread was first
            if is_hash_of(hashed, shown):
                self._learn(digest, key)
                self._hashed = [other for other in self._hashed if other != key]
            elif len(self._refused) < _REFUSED_AT_ONCE:
                self._refused.add((digest, hashed))

    def _learn(self, digest: bytes, key: ApiKey) -> None:
        known = {*self._known.get(digest, ()), key}
        self._known[digest] = tuple(sorted(known, key=self._order.__getitem__))

    def _digest(self, shown: str) -> bytes:
        return hmac.new(self._secret, _bytes(shown), hashlib.sha256).digest()


def hash_key(key: str) -> str:
    """What may stand for a key in config.json. Raises ValueError for one that is too short."""
    if len(key) < MIN_HASHED:
        raise ValueError(f"A key should have at least {MIN_HASHED} characters, made at random.")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ValueError("A key should be printable ASCII without spaces.")
    salt = secrets.token_bytes(16)
    return ":".join(("scrypt", *map(_base64, (salt, _mark(salt, key), _slow_hash(salt, key)))))


def has_mark(hashed: str, key: str) -> bool:
    """Whether `key` may be that of the hash; for one wrong key in 65,536, too."""
    salt, mark, _ = _parts(hashed)
    return hmac.compare_digest(mark, _mark(salt, key))


def is_hash_of(hashed: str, key: str) -> bool:
    """Whether `key` is that of the hash."""
    salt, _, expected = _parts(hashed)
    return hmac.compare_digest(expected, _slow_hash(salt, key))


def _parts(hashed: str) -> tuple[bytes, bytes, bytes]:
    salt, mark, digest = (base64.urlsafe_b64decode(f"{p}==") for p in hashed.split(":")[1:])
    return salt, mark, digest


def _mark(salt: bytes, key: str) -> bytes:
    return hmac.new(salt, _bytes(key), hashlib.sha256).digest()[:MARK_BYTES]


def _slow_hash(salt: bytes, key: str) -> bytes:
    return hashlib.scrypt(_bytes(key), salt=salt, n=2**14, r=8, p=1, dklen=32)


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "replace")


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
