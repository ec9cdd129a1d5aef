"""Whose address a request has, and whom it is believed from."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as some
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from asyncplumber.auth.networks import parse_networks
from asyncplumber.http.client_address import (
    TRUSTED,
    ClientAddress,
    ClientAddresses,
    TrustedProxies,
    parse_trusted_proxies,
)

STRANGER = IPv4Address("TCP", "203.0.113.7", 50000)
PROXY = IPv4Address("TCP", "10.0.0.1", 50000)
HERE = IPv4Address("TCP", "127.0.0.1", 50000)
SOCKET = UNIXAddress("/run/plumber.sock")
FIRST_IPV4 = ipaddress.IPv4Address("203.0.113.0")
FIRST_IPV6 = ipaddress.IPv6Address("2001:db8::")
# Hypothesis' own ip_addresses() takes two seconds to begin.
ADDRESSES = some.integers(0, 2**32 - 1).map(ipaddress.IPv4Address) | some.integers(
    0, 2**128 - 1
).map(ipaddress.IPv6Address)


def forwarded(trusted: str, peer: object, *lines: str) -> ClientAddress:
    """The address of a request with this X-Forwarded-For, given whom to trust."""
    addresses = ClientAddresses(parse_trusted_proxies(trusted))
    headers = {b"x-forwarded-for": ", ".join(lines).encode("latin-1")} if lines else {}
    return addresses.client(addresses.peer(peer), headers)


class PeerTests(SynchronousTestCase):
    """Connections without a proxy."""

    def test_it_is_the_peer(self) -> None:
        """IPv4 by address, IPv6 by its /64; IPv4 on a socket for both is IPv4."""
        for host, text, key in (
            ("203.0.113.7", "203.0.113.7", "203.0.113.7"),
            ("::ffff:203.0.113.7", "203.0.113.7", "203.0.113.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::1", "fe80::/64"),
        ):
            peer = IPv6Address("TCP", host, 50000)
            self.assertEqual(forwarded(TRUSTED, peer), (text, key))

    def test_what_runs_here_has_no_limit(self) -> None:
        """A proxy or a tool on this machine, unless that is not wanted."""
        for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
            peer = IPv6Address("TCP", host, 50000)
            self.assertEqual(forwarded(TRUSTED, peer).key, "")
            self.assertNotEqual(forwarded("none", peer).key, "")
        for trusted in (TRUSTED, "none"):
            self.assertEqual(forwarded(trusted, SOCKET), ("", ""))

    def test_an_untrusted_peer_may_lie(self) -> None:
        """All its requests are its own."""
        for lie in ("198.51.100.1", "127.0.0.1", "10.0.0.1", "unknown", ""):
            self.assertEqual(forwarded("10.0.0.0/8", STRANGER, lie).key, "203.0.113.7")
        self.assertEqual(forwarded("none", HERE, "198.51.100.1").key, "127.0.0.1")
        self.assertEqual(forwarded("none", SOCKET, "198.51.100.1").key, "")


class ForwardedTests(SynchronousTestCase):
    """Connections of a proxy that is trusted."""

    def test_it_is_the_right_most_address_that_is_no_proxy(self) -> None:
        """A client can write what it wants to the left of it."""
        for value in (
            "203.0.113.7",
            "198.51.100.1, 203.0.113.7",
            "127.0.0.1,203.0.113.7",
            "garbage, 203.0.113.7, 10.2.3.4",
            " 203.0.113.7 ,10.2.3.4,  10.2.3.5",
            "203.0.113.7:40000",
            "::ffff:203.0.113.7",
            "x, " * 5000 + "203.0.113.7",
        ):
            self.assertEqual(
                forwarded("10.0.0.0/8", PROXY, value), ("203.0.113.7", "203.0.113.7"), value[-60:]
            )
        self.assertEqual(
            forwarded("10.0.0.0/8", PROXY, "1.2.3.4", "[2001:db8::1]:443").key, "2001:db8::/64"
        )

    def test_a_socket_can_be_a_proxy(self) -> None:
        """nginx, in front of a UNIX socket."""
        self.assertEqual(forwarded("unix", SOCKET, "203.0.113.7").key, "203.0.113.7")
        self.assertEqual(forwarded("loopback", SOCKET, "203.0.113.7").key, "")

    def test_what_is_no_address_ends_at_the_last_proxy(self) -> None:
        """Nobody gets rid of a limit by it: all such clients share one."""
        for value in ("unknown", "_hidden", "203.0.113.7.1", "203.0.113.7, ", "a:b:c", "[", "\xff"):
            self.assertEqual(forwarded("10.0.0.0/8", PROXY, value), ("10.0.0.1", "10.0.0.1"), value)
        self.assertEqual(
            forwarded("10.0.0.0/8", PROXY, "unknown, 10.7.7.7"), ("10.7.7.7", "10.7.7.7")
        )
        self.assertEqual(forwarded("unix", SOCKET, "unknown").key, "unix")

    def test_what_proxies_do_themselves_has_no_limit(self) -> None:
        """Such as asking whether we live."""
        self.assertEqual(forwarded("10.0.0.0/8", PROXY), ("10.0.0.1", ""))
        self.assertEqual(forwarded("10.0.0.0/8", PROXY, "10.9.9.9"), ("10.9.9.9", ""))

    @given(
        some.lists(ADDRESSES.map(str) | some.text(max_size=20), max_size=5),
        some.integers(0, 2**8 - 1).map(lambda number: FIRST_IPV4 + number)
        | some.integers(0, 2**96 - 1).map(lambda number: FIRST_IPV6 + number),
    )
    def test_nothing_to_the_left_counts(self, left: list[str], address: object) -> None:
        """Whatever a client writes, the proxy adds the address of the connection."""
        lies = [text.encode("utf-8").decode("latin-1") for text in left]
        self.assertEqual(
            forwarded(TRUSTED, HERE, *lies, str(address)), forwarded(TRUSTED, HERE, str(address))
        )

    def test_little_is_kept_of_long_headers(self) -> None:
        """Clients cannot fill the memory with them."""
        addresses = ClientAddresses()
        peer = addresses.peer(HERE)
        for number in range(10):
            header = b"%d, " % number + b"1" * 10000 + b", 203.0.113.7"
            self.assertEqual(addresses.client(peer, {b"x-forwarded-for": header})[0], "203.0.113.7")
        self.assertEqual(addresses._forwarded.cache_info().currsize, 1)


class NetworksTests(SynchronousTestCase):
    """What an administrator writes."""

    def test_networks_addresses_and_words(self) -> None:
        """Separated by commas or spaces."""
        self.assertEqual(
            parse_trusted_proxies("10.0.0.0/8, 2001:db8::7 UNIX"),
            TrustedProxies(parse_networks("10.0.0.0/8 2001:db8::7/128", {}), True),
        )
        self.assertEqual(parse_trusted_proxies("none"), TrustedProxies((), False))
        self.assertEqual(parse_trusted_proxies(TRUSTED), TrustedProxies())

    def test_mistakes_get_a_sentence(self) -> None:
        """Also an address with a mask that does not fit, which is most likely a mistake."""
        for text, words in (
            ("10.0.0.5/8", "host bits"),
            ("10.0.0.0/33", "is not a network such as"),
            ("proxy.example", "or loopback, or unix, or none"),
            ("none, 10.0.0.0/8", "stands alone"),
        ):
            self.assertIn(words, str(self.assertRaises(ValueError, parse_trusted_proxies, text)))
