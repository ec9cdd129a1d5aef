"""Callbacks on the asyncio reactor, with a real Tornado: in a process of its own."""

from __future__ import annotations

import json
import sys

from twisted.trial.unittest import SynchronousTestCase

from harness.processes import Process


class AsyncioTests(SynchronousTestCase):
    """
    On the asyncio reactor, with a real Tornado: in a process of its own, as there is one reactor in
    each.
    """

    def test_what_suspends_in_asyncio_is_awaited(self) -> None:
        """
        Futures and coroutines of asyncio, with Deferreds among them, are awaited; one that fails
        costs no other event.
        """
        application = Process([sys.executable, "-m", "tests.asyncio_application"])
        self.addCleanup(application.kill)
        application.wait_for(r'^\["(all|failed)"')
        self.assertEqual(application.wait(), 0, application.output)
        said = [
            json.loads(line) for line in application.output.splitlines() if line.startswith("[")
        ]
        self.assertEqual([fact[1] for fact in said if fact[0] == "tornado"], [1, 2, 3, 4])
        both = [fact[1:] for fact in said if fact[0] == "both"]
        self.assertEqual(both, [[number, "deferred"] for number in (1, 2, 3, 4)])
        self.assertEqual([fact[1] for fact in said if fact[0] == "cancelled"], [1, 2, 3, 4])
        self.assertEqual(said[-1], ["all", True])
