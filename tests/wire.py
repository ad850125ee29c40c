"""The literals of `wire/NAME.json`: what goes over the wire to each provider, for each message.

`.venv/bin/python tests/wire.py NAME` writes them anew. Read what it wrote against the provider's
reference before it is committed: from then on the tests hold the code to it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from contract import contract_of, make_service, outcome_of, seen
from messages import MESSAGES, PLAIN
from standins import StandIn, answer

from email_services.exceptions import CannotCarry
from email_services.message import EmailMessage

FOLDER = Path(__file__).parent / "wire"
MESSAGE_ID = "0123456789abcdef0123456789abcdef"


def wire_of(provider: str, name: str) -> Any:
    """What `provider` gets for the message called `name`, or why it cannot carry it."""
    message = EmailMessage.parse({**PLAIN, **MESSAGES[name]}, "example.com").rendered()
    message._message_id = MESSAGE_ID
    contract = contract_of(provider)
    server = StandIn(answer(*contract.accepted))
    try:
        service = make_service(provider, server.url)
        service.check(message)
        outcome_of(service, message)  # an acceptance of one recipient may not fit
        (request,) = server.requests
    except CannotCarry as error:
        return {"cannot carry": error.reason}
    finally:
        server.close()
    return seen(request, contract.moving)


def literals_of(provider: str) -> dict[str, Any]:
    literals: dict[str, Any] = json.loads((FOLDER / f"{provider}.json").read_text())
    return literals


if __name__ == "__main__":
    for provider in sys.argv[1:]:
        found = {name: wire_of(provider, name) for name in MESSAGES}
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (FOLDER / f"{provider}.json").write_text(text + "\n")
