"""What the views work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from flask import current_app
from werkzeug.local import LocalProxy

from email_services.config import Config
from email_services.copies import Copies
from email_services.pool import PooledEmailService
from email_services.queue import Dispatcher
from email_services.store import Store
from endpoints.guesses import Guesses
from endpoints.key_uses import KeyUses
from endpoints.upkeep import Upkeep


@dataclass(frozen=True)
class Mailpool:
    """What the views work with; one in each application.

    upkeep: what each worker does now and then; dispatcher: what delivers what waits. Both begin
    once they are started. copies: what keeps messages once they were sent.
    """

    config: Config
    store: Store
    pools: dict[str, PooledEmailService]
    guesses: Guesses
    key_uses: KeyUses
    upkeep: Upkeep
    dispatcher: Dispatcher
    copies: Copies


mailpool = cast("Mailpool", LocalProxy(lambda: current_app.extensions["mailpool"]))
