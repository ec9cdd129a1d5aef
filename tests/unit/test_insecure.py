"""``--insecure`` is never forgotten: a line a minute, and a metric."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.http.clients import ClientPolicy
from asyncplumber.server.insecure import InsecureWarning
from asyncplumber.testing import MemoryServer


class InsecureTests(SynchronousTestCase):
    """A server that was started with ``--insecure``."""

    def test_a_line_a_minute(self) -> None:
        """From the start to the stop."""
        clock = Clock()
        service = InsecureWarning(clock)
        with capturedLogs() as lines:
            service.startService()
            for _ in range(600):
                clock.advance(1)
            service.stopService()
            clock.advance(600)
        self.assertEqual(len(lines), 11)
        self.assertIn("--insecure", formatEvent(lines[0]))
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_a_metric(self) -> None:
        """1 or 0."""
        for insecure in (True, False):
            server = MemoryServer(plumber={"client_policy": ClientPolicy(insecure=insecure)})
            line = b"\nasyncplumber_insecure %d.0\n" % insecure
            self.assertIn(line, server.request("GET", "/metrics").body)
