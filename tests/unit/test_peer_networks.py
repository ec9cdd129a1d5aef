"""To which addresses an instance sends, whatever the registry says."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent

from asyncplumber.plumber import Plumber
from asyncplumber.relays.peer_networks import parse_peer_networks, restricted


class FakeResolver:
    """Knows the addresses of some names; an address is its own name."""

    names = {"peer.example": ["10.0.0.7"], "evil.example": ["10.0.0.8", "169.254.169.254"]}

    def resolveHostName(
        self, receiver: Any, name: str, portNumber: int = 0, *rest: Any, **more: Any
    ) -> Any:
        from twisted.internet.address import IPv4Address, IPv6Address

        receiver.resolutionBegan(None)
        for text in self.names.get(name, [name]):
            kind = IPv4Address if ip_address(text).version == 4 else IPv6Address
            receiver.addressResolved(kind("TCP", text, portNumber))
        receiver.resolutionComplete()


class PeerNetworksTests(SynchronousTestCase):
    """Connections of a reactor in memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.nameResolver = FakeResolver()  # type: ignore[assignment]

    def reached(self, host: str, networks: str = "") -> list[str]:
        """The addresses to which a connection to this host goes."""
        reactor = restricted(self.reactor, parse_peer_networks(networks))
        before = len(self.reactor.tcpClients)
        connecting = HostnameEndpoint(reactor, host, 80).connect(Factory())
        self.reactor.advance(1)
        if len(self.reactor.tcpClients) == before:
            self.failureResultOf(connecting, DNSLookupError)
        else:
            connecting.addErrback(lambda _: None)
            connecting.cancel()
        return [client[0] for client in self.reactor.tcpClients[before:]]

    def test_all_but_link_local_by_default(self) -> None:
        """There the clouds have services that give out credentials."""
        for host in ("10.0.0.7", "127.0.0.1", "203.0.113.7", "::1", "2001:db8::7"):
            self.assertEqual(self.reached(host), [host])
        for host in (
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
        ):
            self.assertEqual(self.reached(host), [], host)

    def test_named_networks_only(self) -> None:
        """Of IPv4 and IPv6, and an instance on this machine only if it is named."""
        networks = "10.0.0.0/24, 2001:db8::/64"
        for host in ("10.0.0.7", "2001:db8::7", "::ffff:10.0.0.7"):
            self.assertEqual(self.reached(host, networks), [host])
        for host in ("10.0.1.7", "127.0.0.1", "2001:db8:1::7"):
            self.assertEqual(self.reached(host, networks), [], host)
        self.assertEqual(self.reached("127.0.0.1", "loopback"), ["127.0.0.1"])
        self.assertEqual(self.reached("169.254.1.1", "169.254.0.0/16"), ["169.254.1.1"])

    def test_a_name_is_checked_when_it_is_resolved(self) -> None:
        """It may point anywhere at any time; what is allowed of it is used."""
        self.assertEqual(self.reached("peer.example"), ["10.0.0.7"])
        self.assertEqual(self.reached("peer.example", "192.0.2.0/24"), [])
        self.assertEqual(self.reached("evil.example"), ["10.0.0.8"])

    def test_the_log_says_why(self) -> None:
        """A line in an interval."""
        with capturedLogs() as lines:
            self.reached("169.254.169.254")
        (line,) = [formatEvent(line) for line in lines if line["log_level"].name == "warn"]
        self.assertIn("169.254.169.254", line)
        self.assertIn("--peer-networks", line)

    def test_an_instance_sends_to_no_other(self) -> None:
        """Neither events nor questions: both connect by the same reactor."""
        for networks, reached in (("", 0), ("169.254.0.0/16", 1)):
            plumber = Plumber(reactor=self.reactor, peer_networks=parse_peer_networks(networks))
            before = len(self.reactor.tcpClients)
            asked = Agent(plumber._peers).request(b"POST", b"http://169.254.169.254/instances/x")
            self.reactor.advance(1)
            self.assertEqual(len(self.reactor.tcpClients) - before, reached)
            asked.addErrback(lambda _: None)
            asked.cancel()

    def test_mistakes_get_a_sentence(self) -> None:
        """With the words that can be used."""
        error = self.assertRaises(ValueError, parse_peer_networks, "10.0.0.300")
        self.assertIn("or loopback", str(error))
