"""The contract of a carrier, for the one in memory and for HTTP without a network."""

from __future__ import annotations

from typing import TypeVar

from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from asyncplumber.auth.signatures import PeerSigner
from asyncplumber.event import Instance
from asyncplumber.http_bodies import BytesProducer
from asyncplumber.interfaces import ICarrier
from asyncplumber.relays.http import HttpCarrier
from asyncplumber.relays.memory import MemoryNetwork
from harness.carriers import PeerSite
from tests.relay_contracts import CarrierContract

SECRET = b"sixteen bytes or more"

T = TypeVar("T")


class MemoryCarrierTests(CarrierContract, TestCase):
    """Between instances in one process."""

    def setUp(self) -> None:
        self.clock: Clock = Clock()
        self.network = MemoryNetwork(self.clock)

    def make_carrier(self, instance_id: str) -> ICarrier:
        return self.network.carrier(instance_id)

    def address(self, instance_id: str) -> Instance:
        return Instance(instance_id, f"memory:{instance_id}")

    def flush(self) -> None:
        """Let what is under way arrive."""

    async def result(self, waiting: Deferred[T]) -> T:
        for _ in range(100):
            if waiting.called:
                break
            self.clock.advance(0)
            self.flush()
        self.assertTrue(waiting.called, "nothing is under way, and it has not fired")
        return await waiting


class HttpCarrierTests(MemoryCarrierTests):
    """By HTTP, with a client that hands requests to a resource."""

    def setUp(self) -> None:
        super().setUp()
        self.site = PeerSite()
        self.agent = RequestTraversalAgent(self.site)

    def make_carrier(self, instance_id: str) -> ICarrier:
        client = HTTPClient(self.agent, data_to_body_producer=BytesProducer)
        carrier = HttpCarrier(client, instance_id, self.clock.seconds, PeerSigner(SECRET))
        return self.site.carriers.setdefault(instance_id, carrier)

    def address(self, instance_id: str) -> Instance:
        return Instance(instance_id, f"http://127.0.0.1/instances/{instance_id}")

    def flush(self) -> None:
        self.agent.flush()
