"""What clients and the machine notice of a MongoDB that hangs: real processes, SIGSTOP."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from unittest import skipUnless

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from harness.clients import sleep
from harness.cluster import Cluster, eventually

MEGABYTE = 1_000_000
PROMISED = 5.0  # seconds, by docs/howto/cluster.rst
LOADED = 1.5  # seconds that a loaded machine may add


class HangingStoreTests(TestCase):
    """One instance on a mongod that does not answer."""

    timeout = 90

    async def setUp(self) -> None:
        self.cluster = Cluster(1)
        self.addCleanup(self.cluster.down)
        await self.cluster.up()
        self.node = self.cluster.nodes[0]
        self.assertEqual(await self.posted(b"before"), 202)

    async def posted(self, body: bytes, after: float = 0.0) -> int:
        """
        The status of a POST that is sent some seconds from now.  Fails if the answer does not come
        in time.
        """
        await sleep(after)
        began = time.monotonic()
        status = (
            await self.node.fetch("POST", "/hooks/a", body, {"Content-Type": "text/plain"})
        ).status
        self.assertLess(time.monotonic() - began, PROMISED + LOADED)
        return status

    async def memory(self) -> int:
        """Bytes that the instance has in memory."""
        return int(Path(f"/proc/{self.node.pid}/statm").read_text().split()[1]) * 4096

    async def test_every_post_is_answered_in_time(self) -> None:
        """Those who come while others wait do not wait for them first."""
        self.cluster.mongod.pause()
        try:
            posts = [Deferred.fromCoroutine(self.posted(b"%d" % n, n / 2)) for n in range(14)]
            self.assertEqual(set(await gatherResults(posts)), {503})
        finally:
            self.cluster.mongod.resume()
        await self.node.ready()
        self.assertEqual(await self.posted(b"after"), 202)

    @skipUnless(sys.platform == "linux", "memory is read from /proc")
    async def test_large_posts_take_bounded_memory_and_give_it_back(self) -> None:
        """
        200 of 1 MB: some wait, the rest are 429 at once; when all are answered the memory is as it
        was.
        """
        before = await self.memory()
        self.cluster.mongod.pause()
        try:
            posts = [Deferred.fromCoroutine(self.posted(b"x" * MEGABYTE)) for _ in range(200)]
            await sleep(3)
            self.assertLess(await self.memory() - before, 160 * MEGABYTE)
            self.assertEqual(set(await gatherResults(posts)), {429, 503})
        finally:
            self.cluster.mongod.resume()
        await eventually(
            self.memory, lambda now: now - before < 40 * MEGABYTE, "the memory is given back"
        )
