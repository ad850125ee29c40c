"""The service with one part changed, to see what that part does: `gunicorn variants:create_app()`.

The environment says which; without any of these it is the service as it is.

- `VARIANT_FAILURES_TO_REST`: how many faults in a row make a service rest. Very many: none ever
  rests, as if there were no breaker.
- `VARIANT_FIRST_REST_SECONDS`: how long its first rest is; those that follow are longer, as ever.
- `VARIANT_NULL_STORE`: if set, the store is one that keeps nothing, and costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import app
from browsable_api import BrowsableAPI
from email_services import config, health
from email_services.store import LoggedMessage, Reservation, ServiceState, Store
from email_services.store.contents import Contents
from email_services.store.outbox import Outbox


class NullStore:
    """What a `Store` does for a send, without a database: nothing is known, all is forgotten."""

    def __init__(self, *_: object) -> None:
        """Take what `Store` takes."""

    def remove_when_due(self, now: float) -> None:
        """Nothing is old."""

    def close(self) -> None:
        """Nothing is open."""

    def when_put(self, listener: object) -> None:
        """Nothing ever is."""

    def next_due(self, *_: object) -> None:
        """Nothing waits."""

    def adopt(self, *_: object) -> None:
        """Nothing waits."""

    def remove_abandoned(self, now: float) -> None:
        """There is none."""

    def end_the_forgotten(self, now: float) -> None:
        """Nothing waits."""

    def service_states(self, email_domain: str) -> dict[str, ServiceState]:  # noqa: ARG002
        """Nothing is known of any service, so that each is tried in its turn."""
        return {}

    def change_service(
        self,
        email_domain: str,  # noqa: ARG002
        service: str,  # noqa: ARG002
        change: Callable[[ServiceState], tuple[ServiceState, str]],
        now: float,  # noqa: ARG002
    ) -> ServiceState:
        """Apply the change to nothing, and forget it."""
        return change(ServiceState())[0]

    def log_messages(self, messages: Sequence[LoggedMessage]) -> None:
        """Forget them."""

    def log_outcomes(self, messages: Sequence[LoggedMessage]) -> None:
        """Forget them."""

    def reserve_keys(
        self,
        email_domain: str,  # noqa: ARG002
        keys: Sequence[tuple[str, str]],
        *_: object,
    ) -> list[Reservation]:
        """Each key is a new one."""
        return [Reservation("new") for _ in keys]

    def settle_keys(
        self, email_domain: str, at: float, answers: Mapping[str, Mapping[str, Any] | None]
    ) -> None:
        """They were never kept."""


def _public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


FOR_READERS = frozenset(
    {
        "all_service_states",
        "change_use",
        "add_configuration",
        "check",
        "configuration",
        "configurations",
        "count_messages",
        "count_wrong_keys",
        "counted",
        "index",
        "key_uses",
        "keep",
        "messages",
        "newest_version",
        "note_key_uses",
        "remove_old",
        "secret",
        "sent_again",
        "service_changes",
        "use",
    }
    | _public(Contents)
    | _public(Outbox)
)
"""What no send calls, but those through a service with caps, which no benchmark has; with what only
the queue does, and those who keep copies. For the rest a `NullStore` has to stand in."""


def create_app() -> BrowsableAPI:
    """Make the changes that the environment asks for, and then the application."""
    if failures := os.environ.get("VARIANT_FAILURES_TO_REST"):
        _replace(health, "FAILURES_TO_REST", int(failures))
    if seconds := os.environ.get("VARIANT_FIRST_REST_SECONDS"):
        _replace(health, "FIRST_REST_SECONDS", float(seconds))
    if os.environ.get("VARIANT_NULL_STORE"):
        _replace(config, "Store", NullStore)
    return app.create_app()


def _replace(module: object, name: str, value: object) -> None:
    """Give something of the service another value; AttributeError where there is none any more."""
    getattr(module, name)
    setattr(module, name, value)


def missing() -> set[str]:
    """What a send may call and `NullStore` does not have."""
    return _public(Store) - FOR_READERS - _public(NullStore)
