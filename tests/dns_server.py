"""A name server on loopback that knows what a test tells it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping

from dns.flags import Flag
from dns.message import QueryMessage, from_wire, make_response
from dns.rcode import Rcode
from dns.resolver import Resolver
from dns.rrset import from_text

TEXT = "TXT"


class DNSServer:
    """texts: TXT records by name. aliases: CNAMEs. failing: whether it says SERVFAIL to all."""

    def __init__(
        self,
        texts: Mapping[str, list[str]],
        aliases: Mapping[str, str] | None = None,
        failing: bool = False,
    ) -> None:
        self._texts, self._aliases, self._failing = texts, aliases or {}, failing
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def resolver(self) -> Resolver:
        resolver = Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self._socket.getsockname()[1]
        resolver.lifetime = 5
        return resolver

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answer(from_wire(query)).to_wire(), sender)

    def _answer(self, query: QueryMessage):
        answer = make_response(query)
        answer.flags |= Flag.RA
        name = query.question[0].name.to_text()
        if self._failing:
            answer.set_rcode(Rcode.SERVFAIL)
            return answer
        if alias := self._aliases.get(name.rstrip(".")):
            answer.answer.append(from_text(name, 60, "IN", "CNAME", f"{alias}."))
            name = f"{alias}."
        texts = self._texts.get(name.rstrip("."))
        if texts is None:
            answer.set_rcode(Rcode.NXDOMAIN)
        elif texts:
            quoted = [f'"{text[:200]}" "{text[200:]}"' for text in texts]
            answer.answer.append(from_text(name, 60, "IN", TEXT, *quoted))
        return answer
