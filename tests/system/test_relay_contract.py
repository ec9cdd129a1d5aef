"""The contract of a carrier, for HTTP over real sockets."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from asyncplumber.auth.signatures import PeerSigner
from asyncplumber.clocks import WallClock
from asyncplumber.event import Instance
from asyncplumber.relays.http import HttpCarrier
from harness.carriers import PeerSite
from tests.relay_contracts import CarrierContract

SECRET = b"sixteen bytes or more"


class HttpCarrierTests(CarrierContract, TestCase):
    """Persistent connections to a site on the loopback interface."""

    timeout = 20
    clock: Any = reactor

    def setUp(self) -> None:
        self.site = PeerSite()
        self.port = self.clock.listenTCP(0, Site(self.site), interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def make_carrier(self, instance_id: str) -> HttpCarrier:
        carrier = HttpCarrier.over_treq(
            self.clock, instance_id, WallClock.seconds, PeerSigner(SECRET)
        )
        return self.site.carriers.setdefault(instance_id, carrier)

    def address(self, instance_id: str) -> Instance:
        # A port where nobody listens: binding to it was never asked for.
        number = 1 if instance_id == "nowhere" else self.port.getHost().port
        return Instance(instance_id, f"http://127.0.0.1:{number}/instances/{instance_id}")

    async def result(self, waiting: Deferred[Any]) -> Any:
        return await waiting
