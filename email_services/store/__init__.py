"""What the workers of all machines share, in one database: SQLite, or PostgreSQL.

Nothing here decides anything about email: rules are passed in, and so is the time, in seconds since
the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from email_services.store.access import Access
from email_services.store.configurations import MOST_LISTED, Configurations, Uploaded
from email_services.store.contents import Content, Contents
from email_services.store.counts import Count, Counted, Counts
from email_services.store.keys import Keys, Reservation
from email_services.store.messages import (
    CANCELLED,
    EXPIRED,
    IN_PROGRESS,
    QUEUED,
    LoggedMessage,
)
from email_services.store.migrations import MIGRATIONS
from email_services.store.outbox import Again, Claimed, Depth, Ended, Outbox, Waiting
from email_services.store.schema import DEFAULT_STREAM
from email_services.store.search import MOST_COUNTED, Search, Wanted
from email_services.store.services import Services, ServiceState

__all__ = [
    "CANCELLED",
    "DEFAULT_STREAM",
    "DEFAULT_URL",
    "EXPIRED",
    "IN_PROGRESS",
    "MOST_COUNTED",
    "MOST_LISTED",
    "QUEUED",
    "Again",
    "Claimed",
    "Content",
    "Count",
    "Counted",
    "Depth",
    "Ended",
    "LoggedMessage",
    "Reservation",
    "ServiceState",
    "Store",
    "Uploaded",
    "Waiting",
    "Wanted",
]

DEFAULT_URL: Final = "sqlite:///state.sqlite3"


class Store(Services, Counts, Search, Keys, Access, Configurations, Outbox, Contents):
    """The shared state. Every method raises StoreUnavailable if the database does not answer.

    keep_seconds: how long the message log and the record of changes go back. content_seconds: how
    long the contents of messages of each domain are kept.
    url: an SQLAlchemy URL; Heroku's `postgres://` is understood. Raises ConfigError if it cannot
    be one. Brings the schema up to date.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        keep_seconds: float = 30 * 24 * 3600,
        content_seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.content_seconds = content_seconds or {}
        super().__init__(url, MIGRATIONS, keep_seconds)

    def keep(self, keep_seconds: float, content_seconds: Mapping[str, float]) -> None:
        """Keep what grows old for so long from now on; see the class."""
        self._keep_seconds = keep_seconds
        self.content_seconds = content_seconds
