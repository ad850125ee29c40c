"""When each key was last used: remembered in the process, and written down now and then."""

from __future__ import annotations

from email_services.api_keys import ApiKey
from email_services.store import Store


class KeyUses:
    """The last use of each key in this process; a request that shows one waits for nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: dict[tuple[str, str], float] = {}
        self._written: dict[tuple[str, str], float] = {}

    def note(self, key: ApiKey, now: float) -> None:
        """It is used."""
        self._noted[key.place, key.name] = now

    def write(self) -> None:
        """Keep them where all workers find them. Raises StoreUnavailable; they are kept then."""
        known = self._written
        new = {who: at for who, at in dict(self._noted).items() if at > known.get(who, 0)}
        self._store.note_key_uses(new)
        known.update(new)

    def all(self) -> dict[tuple[str, str], float]:
        """The last uses by place and name, as far as they are known here."""
        found = self._store.key_uses()
        for who, at in dict(self._noted).items():
            found[who] = max(at, found.get(who, 0))
        return found
