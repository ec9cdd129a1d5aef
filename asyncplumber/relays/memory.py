"""Carries batches between instances in one process, without sockets: for tests."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import Deliver, ICarrier, RelayFailed
from asyncplumber.wire.event_batch import pack, unpack


class MemoryNetwork:
    """What the carriers of several instances have in common."""

    def __init__(self, clock: IReactorTime) -> None:
        """`clock` gives a batch the turn of the reactor in which it arrives."""
        self.clock = clock
        self.receivers: dict[str, Deliver] = {}  # of the instances that are started

    def carrier(self, instance_id: str) -> MemoryCarrier:
        """Make the carrier of the instance with this id."""
        return MemoryCarrier(self, instance_id)


@implementer(ICarrier)
class MemoryCarrier:
    """Hands a batch to the other instance in the reactor's next turn."""

    _log = Logger()

    def __init__(self, network: MemoryNetwork, instance_id: str) -> None:
        self._network = network
        self._instance_id = instance_id

    def start(self, deliver: Deliver) -> Deferred[None]:
        """See `ICarrier.start`."""
        self._network.receivers[self._instance_id] = deliver
        return succeed(None)

    def carry(self, instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        """See `ICarrier.carry`."""
        if self._instance_id not in self._network.receivers:
            return fail(RelayFailed("this instance is stopped"))
        # Packed, so that an event that no wire could carry is noticed in tests.
        return deferLater(self._network.clock, 0, self._arrive, instance.id, pack(events))

    def stop(self) -> Deferred[None]:
        """See `ICarrier.stop`."""
        self._network.receivers.pop(self._instance_id, None)
        return succeed(None)

    def _arrive(self, instance_id: str, body: bytes) -> dict[str, int]:
        deliver = self._network.receivers.get(instance_id)
        if deliver is None:
            raise RelayFailed("no such instance is started")
        try:
            return deliver(unpack(body) if body else [])
        except Exception as error:
            self._log.failure("a batch could not be delivered")
            raise RelayFailed(f"{type(error).__name__}: {error}") from error
