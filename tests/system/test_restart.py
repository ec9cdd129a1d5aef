"""A plumber that is stopped and started again, in a tree of services, on every store."""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.filepath import FilePath
from twisted.trial.unittest import TestCase

from asyncplumber import Cursor, Plumber
from harness.mongod import fresh_uri

SOON = 10.0  # seconds


class RestartTests(TestCase):
    """Nothing is lost over a stop, and all works after it."""

    async def until(self, condition: Any, told: Any = str) -> None:
        for _ in range(int(SOON / 0.02)):
            if condition():
                return
            await deferLater(reactor, 0.02, lambda: None)
        self.fail(f"not in time: {told()}")

    async def check(self, store: str) -> None:
        """Stop, start, stop without waiting for it, start, as services of a tree."""
        tree = MultiService()
        plumber = Plumber(store)
        plumber.setServiceParent(tree)
        before: list[Any] = []
        after: list[Any] = []
        plumber.register("a", lambda event: before.append(event.data))
        tree.startService()
        await plumber.when_running()
        await self.until(lambda: plumber.hub.count("a") == 1)
        await plumber.send("a", 1)
        await self.until(lambda: before == [1])
        await tree.stopService()
        plumber.register("a", lambda event: after.append(event.data), after="earliest")
        tree.startService()
        await plumber.when_running()
        receipt = await plumber.send("a", 2)
        self.assertEqual(Cursor.parse(receipt.cursor).seq, 2)
        await self.until(lambda: (before, after) == ([1, 2], [1, 2]), lambda: (before, after))
        stopped = tree.stopService()
        tree.startService()
        await plumber.when_running()
        await plumber.send("a", 3)
        await self.until(lambda: (before, after) == ([1, 2, 3], [1, 2, 3]), lambda: (before, after))
        await stopped
        await tree.stopService()

    def test_memory(self) -> None:
        """The history stays as long as the process."""
        return Deferred.fromCoroutine(self.check("memory:"))  # type: ignore[return-value]

    def test_sqlite(self) -> None:
        """The file is opened anew."""
        return Deferred.fromCoroutine(self.check(f"sqlite:{FilePath(self.mktemp()).path}"))  # type: ignore[return-value]

    def test_mongodb(self) -> None:
        """There are new connections, and what was known by the old ones is forgotten."""
        return Deferred.fromCoroutine(self.check(fresh_uri()))  # type: ignore[return-value]
