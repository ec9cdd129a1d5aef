"""What was accepted, compared with what arrived.

A ``Publisher`` posts until each event is accepted and enters the receipts in a ``Ledger``.  The
subscribers of ``harness.clients`` enter what they receive.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from harness.clients import (
    RECONNECT_DELAY,
    ConnectionFailed,
    HttpConnection,
    Subscriber,
    connect,
    sleep,
)


class Ledger:
    """The events that were accepted, and the subscribers that want them."""

    def __init__(self) -> None:
        self.accepted: dict[str, dict[int, str]] = {}  # the IDs by account and number
        self.subscribers: list[Subscriber] = []
        self.problems: list[str] = []
        self.refused: dict[int, int] = {}  # how often each status but 201 and 202 came
        self.delays: list[float] = []  # seconds from each receipt to each delivery
        self._accepted_at: dict[str, float] = {}  # when the receipt of each ID came

    def record(self, account: str, id: str, receipt: Mapping[str, Any]) -> None:
        """Enter the receipt of a POST."""
        seq = int(receipt["cursor"].partition(".")[2])
        numbers = self.accepted.setdefault(account, {})
        if numbers.setdefault(seq, id) != id:
            self.problems.append(f"{account}: number {seq} was given to {numbers[seq]} and to {id}")
        self._accepted_at.setdefault(id, time.monotonic())

    def delivered(self, id: str) -> None:
        """Enter the delay of an event that a subscriber has received."""
        accepted_at = self._accepted_at.get(id)
        self.delays.append(time.monotonic() - accepted_at if accepted_at is not None else 0.0)

    @property
    def events(self) -> int:
        """The number of accepted events."""
        return sum(map(len, self.accepted.values()))

    @property
    def deliveries(self) -> int:
        """The number of events that the subscribers have received."""
        return sum(len(subscriber.events) for subscriber in self.subscribers)

    @property
    def duplicates(self) -> int:
        """The number of events that a subscriber has received once more."""
        return sum(
            len(each.events) - len({seq for seq, _ in each.events}) for each in self.subscribers
        )

    def missing(self) -> list[str]:
        """Describe what was accepted and has not reached a subscriber."""
        lines = []
        for subscriber in self.subscribers:
            arrived = dict(subscriber.events)
            wanted = self.accepted.get(subscriber.account, {})
            lost = [
                seq
                for seq, id in wanted.items()
                if seq > (subscriber.start or 0) and arrived.get(seq) != id
            ]
            if lost:
                lines.append(
                    f"{subscriber}: {len(lost)} of {len(wanted)} missing, first {min(lost)},"
                    f" at {subscriber.cursor}"
                )
        return lines

    def wrong(self) -> list[str]:
        """Describe what no later event can repair: duplicates, disorder, holes and gaps."""
        return self.problems + [
            f"{each}: {problem}" for each in self.subscribers for problem in each.problems
        ]


class Publisher:
    """Posts one event after the other to one account, each until it is accepted."""

    def __init__(self, ledger: Ledger, ports: Sequence[int], account: str, name: str) -> None:
        """Prepare to post; ``name`` is the beginning of the IDs."""
        self._ledger = ledger
        self._ports = list(ports)
        self._connection: HttpConnection | None = None
        self.account = account
        self.name = name
        self.sent = 0
        self.stopping = False
        self.abandoned = False
        self.done: Deferred[None] = succeed(None)

    async def post(self, data: str = "") -> Mapping[str, Any]:
        """Post one event, and return its receipt.

        A POST without a response may have been accepted or not, so it is repeated with the same ID.

        Raises:
            ConnectionFailed: The publisher was abandoned.
        """
        self.sent += 1
        id = f"{self.name}-{self.sent}"
        headers = {"Webhook-Id": id, "Content-Type": "application/json"}
        body = json.dumps({"n": self.sent, "data": data}).encode()
        path = f"/hooks/{self.account}"
        while not self.abandoned:
            try:
                if self._connection is None or self._connection.lost:
                    self._connection = await connect(self._ports[0], HttpConnection())
                response = await self._connection.request("POST", path, body, headers, timeout=12.0)
            except ConnectionFailed:
                self._next_instance()
            else:
                if response.status in (201, 202):
                    self._ledger.record(self.account, id, response.json)
                    return response.json
                refused = self._ledger.refused
                refused[response.status] = refused.get(response.status, 0) + 1
                if "retry-after" not in response.headers:
                    raise AssertionError(
                        f"{response.status} without Retry-After: {response.body!r}"
                    )
                self._next_instance()
            await sleep(RECONNECT_DELAY)
        raise ConnectionFailed("abandoned")

    def _next_instance(self) -> None:
        self._ports.append(self._ports.pop(0))
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.transport.abortConnection()
            self._connection = None

    async def _run(self, count: int, pause: float, data: str) -> None:
        while self.sent < count and not self.stopping:
            await self.post(data)
            if pause:
                await sleep(pause)
        self.close()

    def run(self, count: int = 10**9, pause: float = 0.0, data: str = "") -> Deferred[None]:
        """Post so many events, or until ``stop``.  Fires when the last has been accepted."""
        self.done = Deferred.fromCoroutine(self._run(count, pause, data))
        return self.done

    def stop(self) -> Deferred[None]:
        """Post no more.  Fires when the present event has been accepted."""
        self.stopping = True
        return self.done

    def abandon(self) -> Deferred[None]:
        """Post no more, and give up the present event."""
        self.stopping = self.abandoned = True
        self.close()
        return self.done.addErrback(lambda failure: failure.trap(ConnectionFailed) and None)
