"""The state of each service, and the record of its changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from email_services.drill import Drill
from email_services.health import Health
from email_services.store.database import Database
from email_services.store.schema import CAPS, CHANGES, SERVICES

KEPT_ERRORS: Final = 5
"""The last faults of a service that are shown."""

_STATES: Final = select(SERVICES).where(SERVICES.c.email_domain == bindparam("email_domain"))
_ALL_STATES: Final = select(SERVICES)


@dataclass(frozen=True)
class ServiceState:
    """What is known of one service. last_errors: the newest first, each with `at` and `reason`."""

    health: Health = field(default_factory=Health)
    drill: Drill | None = None
    last_errors: Sequence[Mapping[str, Any]] = ()


class Services(Database):
    """What is known of each service of each domain."""

    def service_states(self, email_domain: str) -> dict[str, ServiceState]:
        """What is known of the domain's services, by name; nothing of some."""
        rows = self._read(_STATES, {"email_domain": email_domain})
        return {row["service"]: _state(row) for row in rows}

    def all_service_states(self) -> dict[tuple[str, str], ServiceState]:
        """The same of all domains, by domain and name."""
        rows = self._read(_ALL_STATES, {})
        return {(row["email_domain"], row["service"]): _state(row) for row in rows}

    def change_service(
        self,
        email_domain: str,
        service: str,
        change: Callable[[ServiceState], tuple[ServiceState, str]],
        now: float,
    ) -> ServiceState:
        """Apply `change` to what is known of a service, one worker at a time; returns the result.

        change: gives the new state, and words for the record, or "" for no entry there.
        """
        key = {"email_domain": email_domain, "service": service}
        try:
            return self._change_service(key, change, now)
        except IntegrityError:  # another node made the row between our two statements
            return self._change_service(key, change, now)

    def _change_service(
        self,
        key: Mapping[str, str],
        change: Callable[[ServiceState], tuple[ServiceState, str]],
        now: float,
    ) -> ServiceState:
        with self._transaction() as connection:
            found = select(SERVICES).filter_by(**key).with_for_update()
            row = connection.execute(found).one_or_none()
            before = _state(row._asdict()) if row else ServiceState()
            after, words = change(before)
            if after != before and row:
                connection.execute(update(SERVICES).filter_by(**key).values(**_columns(after)))
            elif after != before:
                connection.execute(insert(SERVICES).values(**key, **_columns(after)))
            if words:
                connection.execute(insert(CHANGES).values(**key, at=now, change=words))
        return after

    def use(self, email_domain: str, service: str) -> str:
        """What is kept of how much a service was handed; "" where nothing is."""
        with self._statement() as connection:
            found = select(CAPS.c.used).filter_by(email_domain=email_domain, service=service)
            return connection.execute(found).scalar_one_or_none() or ""

    def change_use(self, email_domain: str, service: str, change: Callable[[str], str]) -> None:
        """Apply `change` to what is kept of how much a service was handed, one at a time.

        It is a text, "" at first.
        """
        key = {"email_domain": email_domain, "service": service}
        try:
            self._change_use(key, change)
        except IntegrityError:  # another node made the row between our two statements
            self._change_use(key, change)

    def _change_use(self, key: Mapping[str, str], change: Callable[[str], str]) -> None:
        with self._transaction() as connection:
            found = select(CAPS.c.used).filter_by(**key).with_for_update()
            before = connection.execute(found).scalar_one_or_none()
            after = change(before or "")
            if before is None:
                connection.execute(insert(CAPS).values(**key, used=after))
            elif after != before:
                connection.execute(update(CAPS).filter_by(**key).values(used=after))

    def service_changes(self, email_domain: str, limit: int = 20) -> list[dict[str, Any]]:
        """The newest changes of the domain's services: at, service, change.

        Raises SearchTooSlow.
        """
        query = (
            select(CHANGES.c.at, CHANGES.c.service, CHANGES.c.change)
            .where(CHANGES.c.email_domain == email_domain)
            .order_by(CHANGES.c.id.desc())
            .limit(limit)
        )
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def remove_old(self, now: float) -> bool:
        """See Database."""
        more = self._remove_some(CHANGES, now - self._keep_seconds)
        return super().remove_old(now) or more


def _state(row: Mapping[str, Any]) -> ServiceState:
    health = {column.name: row[column.name] for column in fields(Health)}
    return ServiceState(
        Health(**{**health, "simulated": bool(row["simulated"])}),  # a number in SQLite
        Drill(**json.loads(row["drill"])) if row["drill"] else None,
        tuple(json.loads(row["last_errors"])),
    )


def _columns(state: ServiceState) -> dict[str, Any]:
    return {
        **asdict(state.health),
        "drill": json.dumps(asdict(state.drill)) if state.drill else None,
        "last_errors": json.dumps(list(state.last_errors[:KEPT_ERRORS])),
    }
