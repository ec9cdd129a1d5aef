"""The log that clients cannot fill."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.rate_limited_log import INTERVAL, RateLimitedLog, peer_name


class RateLimitedLogTests(SynchronousTestCase):
    """One line in an interval."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.log = RateLimitedLog(Logger(), self.clock.seconds)

    def lines(self, count: int) -> list[str]:
        """Return what is logged when so many clients do the same."""
        with capturedLogs() as events:
            for number in range(count):
                self.log.warn("client {peer} did it", peer=number)
        self.assertEqual({event["log_level"].name for event in events} - {"warn"}, set())
        return [str(formatEvent(event)) for event in events]

    def test_the_first_is_written_at_once(self) -> None:
        """With its values."""
        self.assertEqual(self.lines(1), ["client 0 did it"])

    def test_one_line_in_an_interval_and_it_counts_the_others(self) -> None:
        """Nothing is written just before the end of the interval, and one line at its end."""
        self.assertEqual(self.lines(1000), ["client 0 did it"])
        self.clock.advance(INTERVAL - 0.001)
        self.assertEqual(self.lines(1), [])
        self.clock.advance(0.001)
        expected = "client 0 did it (and 1000 more like this since the last such line)"
        self.assertEqual(self.lines(5), [expected])
        self.clock.advance(INTERVAL)
        self.assertTrue(self.lines(1)[0].startswith("client 0 did it (and 4 more"))
        self.clock.advance(INTERVAL)
        self.assertEqual(self.lines(1), ["client 0 did it"])

    def test_no_interval_is_no_limit(self) -> None:
        """Every line is written."""
        self.log = RateLimitedLog(Logger(), self.clock.seconds, 0)
        self.assertEqual(len(self.lines(3)), 3)

    def test_peers_have_names(self) -> None:
        """For each kind of address."""
        addresses: list[tuple[Any, str]] = [
            (IPv4Address("TCP", "192.0.2.7", 80), "192.0.2.7:80"),
            (IPv6Address("TCP", "2001:db8::7", 80), "[2001:db8::7]:80"),
            (UNIXAddress(None), "a client of a UNIX socket"),
        ]
        for address, name in addresses:
            self.assertEqual(peer_name(StringTransport(peerAddress=address)), name)
