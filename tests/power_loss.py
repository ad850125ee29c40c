"""Has a message queued and sent, and says when: for test_queue_proofs.py, which traces its writes.

`python power_loss.py URL SIZE` writes a line as soon as the message was accepted, and one as soon
as a service has it. SIZE: of its text, in bytes.
"""

from __future__ import annotations

import os
import sys

from contract import make_message

from email_services.abstract import AbstractEmailService, Acceptance, ServiceSettings
from email_services.pool import PooledEmailService
from email_services.queue import Dispatcher
from email_services.store import Store


class Telling(AbstractEmailService):
    """A provider that says so when it has a message."""

    def send(self, message, timeout):  # noqa: ARG002
        tell("handed", message.message_id)
        return Acceptance("id")


def tell(what: str, message_id: str) -> None:
    """Tell whoever traces this, in one write."""
    os.write(1, f"{what} {message_id}\n".encode())


def main() -> None:
    """Accept one message and deliver it."""
    store = Store(sys.argv[1])
    service = Telling("a", "example.com", ServiceSettings(priority_value=1, timeout_seconds=10))
    pool = PooledEmailService("example.com", [service], store)
    message = make_message(raw_text_body="x" * int(sys.argv[2]))
    pool.accept([message])
    tell("accepted", message.message_id)
    Dispatcher([pool], store).deliver_due()


if __name__ == "__main__":
    main()
