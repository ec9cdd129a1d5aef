"""Tells the other instances of new events, and counts for the receipts whom they reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.python.failure import Failure

from asyncplumber.event import Event, Instance
from asyncplumber.interfaces import IRelay

RELAY_PATIENCE = (
    1.0  # seconds that a receipt waits for other instances; they are relayed to all the same
)

# For each account, how many subscribers got it elsewhere, and how many instances took it or failed.
Reached = dict[str, tuple[int, dict[str, int]]]


class Forwarder:
    """Forwards events by a relay.  Without one it sends nothing."""

    def __init__(self, relay: IRelay | None, instance: Instance | None, clock: Any) -> None:
        """`instance` is this one, which is left out."""
        self._relay = relay
        self._instance = instance
        self._clock = clock
        self._hanging: set[str] = set()  # instances whose answer is overdue

    async def send(
        self, wanted: Deferred[dict[str, list[Instance]]], events: list[Event]
    ) -> Reached:
        """
        Relay these events to the instances that `wanted` will name.  Fails with what `wanted` fails
        with.
        """
        instances = await wanted
        batches: dict[Instance, list[Event]] = {}
        for event in events:
            for instance in instances.get(event.account, ()):
                if self._instance is None or instance.id != self._instance.id:
                    batches.setdefault(instance, []).append(event)
        if not batches or self._relay is None:
            return {}
        relay = self._relay
        carried = await gatherResults(
            [
                self._patiently(to.id, maybeDeferred(relay.carry, to, batch))
                for to, batch in batches.items()
            ]
        )
        return self._tally(zip(batches.values(), carried, strict=True))

    @staticmethod
    def _tally(outcomes: Iterable[tuple[list[Event], dict[str, int] | str]]) -> Reached:
        reached: Reached = {}
        for batch, outcome in outcomes:
            for account in {event.account for event in batch}:
                subscribers, instances = reached.setdefault(account, (0, {"ok": 0, "failed": 0}))
                if isinstance(outcome, str):
                    instances[outcome] = instances.get(outcome, 0) + 1
                elif outcome.get(account):
                    instances["ok"] += 1
                    reached[account] = subscribers + outcome[account], instances
        return reached

    def _patiently(
        self, id: str, carried: Deferred[dict[str, int]]
    ) -> Deferred[dict[str, int] | str]:
        """
        The outcome of relaying to one instance: what it answered, or "failed", or "pending" if that
        takes too long.

        An instance that has kept one receipt waiting keeps no other one waiting until it answers.
        """
        outcome: Deferred[dict[str, int] | str] = Deferred()

        def give_up() -> None:
            self._hanging.add(id)
            outcome.callback("pending")

        late = self._clock.callLater(0 if id in self._hanging else RELAY_PATIENCE, give_up)

        def settle(result: dict[str, int] | Failure) -> None:
            self._hanging.discard(id)
            if late.active():
                late.cancel()
                outcome.callback("failed" if isinstance(result, Failure) else result)

        carried.addBoth(settle)
        return outcome
