"""Who sent a request, where proxies stand in front of this server."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

_HOP: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([0-9.]+)(?::\d+)?|([0-9A-Fa-f:.]+)")
"""An address as proxies write it, some with a port."""


class Proxies:
    """The proxies whose word is taken for where a request came from.

    trusted: addresses and networks with commas between, or * for whoever reaches this server.
    Raises ValueError where it is no such list.
    """

    def __init__(self, trusted: str) -> None:
        parts = [part.strip() for part in trusted.split(",") if part.strip()]
        self._are_all = "*" in parts
        self._networks: list[IPv4Network | IPv6Network] = []
        self._networks += [ip_network(part) for part in parts if part != "*"]

    def client(self, peer: str, forwarded_for: str) -> str:
        """The address of the client: the last that no trusted proxy has.

        peer: who connected to us, "" over a Unix socket. forwarded_for: the header, to which each
        proxy adds whom it heard; what stands left of the first that is not trusted may be made up.
        """
        address = peer
        for hop in reversed(forwarded_for.split(",")):
            if not self._trust(address):
                break
            match = _HOP.fullmatch(hop.strip())
            found = _canonical(match[1] or match[2] or match[3]) if match else ""
            if not found:
                break
            address = found
            if self._are_all:  # that is the one in front of us; of those before it we know nothing
                break
        return address

    def _trust(self, address: str) -> bool:
        if self._are_all or not address:
            return True
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def _canonical(address: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        return ""
