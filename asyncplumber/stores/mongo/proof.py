"""
A position that is about to be reported as lost must be lost.

A primary that was cut off from the others answers reads until it notices, by default for up to ten
seconds.  Its answer was true once, and a majority has it; but the majority may have more by now.
So "your cursor is beyond the end" and "there is no such instance" are checked by a linearizable
read.  The server answers it after a majority has acknowledged a no-op write, which only the primary
of that majority can achieve.
"""

from __future__ import annotations

from asyncplumber.concurrency import SingleFlight
from asyncplumber.stores.mongo.accounts import Accounts, MongoAccount
from asyncplumber.stores.mongo.link import MongoLink


class Proof:
    """
    Looks up accounts so that a replaced primary cannot answer.

    One such question is under way at a time, for all accounts that wait.  It costs a write, and at
    a primary that is cut off it blocks a connection until its time is up.
    """

    def __init__(self, link: MongoLink, accounts: Accounts) -> None:
        self._link = link
        self._accounts = accounts
        self._wanted: set[str] = set()
        self._found: dict[str, MongoAccount] = {}
        self._asking = SingleFlight(self._ask, "a linearizable read of MongoDB")

    async def account(self, deadline: float, name: str) -> MongoAccount | None:
        """
        Return the account, or None if it has no row.

        Raises:
            Unavailable: Nothing is known.
        """
        self._wanted.add(name)
        await self._link.limited(self._asking.run(), deadline)
        # The waiters are resumed before the next question begins.
        return self._found.get(name)

    async def _ask(self) -> None:
        wanted, self._wanted = self._wanted, set()
        self._found = await self._link.call(
            lambda deadline: self._accounts.find(deadline, wanted, proven=True), is_part=True
        )
