"""What the views work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from flask import current_app
from werkzeug.local import LocalProxy

from email_services.config import Config
from email_services.pool import PooledEmailService
from email_services.store import Store
from endpoints.guesses import Guesses


@dataclass(frozen=True)
class Mailpool:
    """What the views work with; one in each application."""

    config: Config
    store: Store
    pools: dict[str, PooledEmailService]
    guesses: Guesses


mailpool = cast("Mailpool", LocalProxy(lambda: current_app.extensions["mailpool"]))
