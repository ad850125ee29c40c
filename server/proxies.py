"""Which proxies stand in front of this server."""

from __future__ import annotations

import os

from browsable_api.clients import Proxies


def trusted_proxies() -> str:
    """$FORWARDED_ALLOW_IPS: addresses and networks, or * for whoever reaches this server.

    On Heroku only its router does, and says who the client was and whether it used TLS. Ends a
    start with one line where it is no such list.
    """
    trusted = os.environ.get("FORWARDED_ALLOW_IPS", "*" if "DYNO" in os.environ else "127.0.0.1")
    try:
        Proxies(trusted)
    except ValueError:
        raise SystemExit(
            "$FORWARDED_ALLOW_IPS should be addresses and networks with commas between, or *."
        ) from None
    return trusted
