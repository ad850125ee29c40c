"""What the views work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from flask import current_app
from werkzeug.local import LocalProxy

from email_services.config import Config
from email_services.pool import PooledEmailService
from email_services.queue import Dispatcher
from email_services.store import Store
from endpoints.guesses import Guesses


@dataclass(frozen=True)
class Mailpool:
    """What the views work with; one in each application.

    dispatcher: what delivers what waits, once it is started.
    """

    config: Config
    store: Store
    pools: dict[str, PooledEmailService]
    guesses: Guesses
    dispatcher: Dispatcher


mailpool = cast("Mailpool", LocalProxy(lambda: current_app.extensions["mailpool"]))
