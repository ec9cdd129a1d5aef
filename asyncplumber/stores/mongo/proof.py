"""
What is about to be told as lost must be lost.

A primary that was cut off from the others goes on answering reads until it notices, by default for
up to ten seconds. What it says was true once, and a majority has it; but a majority may have more.
So "your cursor is beyond the end" and "there is no such instance" are asked once more as a
linearizable read: the server answers after it has written a no-op that a majority acknowledged,
which only the primary of that majority can.
"""

from __future__ import annotations

from time import monotonic

from twisted.internet.defer import Deferred

from asyncplumber.stores.mongo.heads import Place, Places
from asyncplumber.stores.mongo.link import PATIENCE, MongoLink


class Proof:
    """
    Looks places up so that a replaced primary cannot answer.

    One such question is under way at a time, for all accounts that were waiting: it costs a write,
    and before a primary that is cut off it blocks a connection until its time is up.
    """

    def __init__(self, link: MongoLink, places: Places) -> None:
        self._link = link
        self._places = places
        self._waiting: list[tuple[str, Deferred[Place | None]]] = []
        self._asking = False

    async def place(self, deadline: float, account: str) -> Place | None:
        """
        The account's place, or None if it has none.

        Fails with what the link fails with, so as a whole with `Unavailable`: then nothing is
        known.
        """
        answer: Deferred[Place | None] = Deferred()
        answer.addTimeout(max(0.0, deadline - monotonic()), self._link.reactor)
        self._waiting.append((account, answer))
        if not self._asking:
            self._asking = True
            Deferred.fromCoroutine(self._ask())
        return await answer

    async def _ask(self) -> None:
        """Ask for all who wait, and again for those who came meanwhile."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            # The time of some is up already, and nobody reads their answer.
            waiting = [(account, answer) for account, answer in waiting if not answer.called]
            accounts = {account for account, _ in waiting}
            try:
                places = await self._places.find(monotonic() + PATIENCE, accounts, proven=True)
            except Exception as error:
                for _, answer in waiting:
                    answer.errback(error)
            else:
                for account, answer in waiting:
                    answer.callback(places.get(account))
        self._asking = False
