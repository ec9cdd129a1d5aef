"""For tests of the relay: a carrier that a test answers, and the way in of the HTTP carrier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.web.resource import Resource
from zope.interface import implementer

from asyncplumber.errors import Gone, PlumberError
from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import Deliver, ICarrier, RelayFailed
from asyncplumber.relays.http import HttpCarrier

Batch = tuple[Instance, Sequence[Event], Deferred[dict[str, int]]]


@implementer(ICarrier)
class HeldCarrier:
    """Holds each batch until the test answers it."""

    def __init__(self) -> None:
        self.waiting: list[Batch] = []  # the test takes them out, or leaves them in
        self.cancelled = 0  # batches
        self.is_down = False  # nothing gets out any more
        self.is_started = False

    def start(self, deliver: Deliver) -> Deferred[None]:
        self.is_started = True
        return succeed(None)

    def carry(self, instance: Instance, events: Sequence[Event]) -> Deferred[dict[str, int]]:
        if self.is_down:
            return fail(RelayFailed("the carrier is down"))
        answer: Deferred[dict[str, int]] = Deferred(self._cancel)
        self.waiting.append((instance, events, answer))
        return answer

    def _cancel(self, _: Deferred[dict[str, int]]) -> None:
        self.cancelled += 1

    def stop(self) -> Deferred[None]:
        self.is_started = False
        return succeed(None)


class PeerSite(Resource):
    """The way in of the instances at one address: ``POST /instances/{id}/events``."""

    isLeaf = True
    _log = Logger()

    def __init__(self) -> None:
        super().__init__()
        self.carriers: dict[str, HttpCarrier] = {}

    def render_POST(self, request: Any) -> bytes:
        instance_id = request.path.decode("ascii").split("/")[2]
        headers = {
            name.lower(): values[0] for name, values in request.requestHeaders.getAllRawHeaders()
        }
        try:
            carrier = self.carriers.get(instance_id)
            if carrier is None:
                raise Gone
            counts = carrier.receive(instance_id, headers, request.content.read())
        except PlumberError as error:
            request.setResponseCode(error.status)
            return b"{}"
        except Exception:
            self._log.failure("a batch could not be delivered")
            request.setResponseCode(500)
            return b"{}"
        return json.dumps({"subscribers": counts}).encode()
