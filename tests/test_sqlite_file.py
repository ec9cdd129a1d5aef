"""One SQLite file, many who open it."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from asyncplumber.stores import open_store
from asyncplumber.stores.keeping import Keeping


class OpeningTests(TestCase):
    """As the workers of one port do when they start."""

    async def test_many_may_open_a_new_file_at_the_same_moment(self) -> None:
        """None of them is turned away because another is just making the tables, or changing the file's mode."""
        for _ in range(60):
            path = self.mktemp()
            stores: list[Any] = [open_store(f"sqlite:{path}", Keeping(), reactor) for _ in range(4)]
            opened: list[Deferred[None]] = [store.start() for store in stores]
            await gatherResults(opened, consumeErrors=True)
            await gatherResults([store.stop() for store in stores])
