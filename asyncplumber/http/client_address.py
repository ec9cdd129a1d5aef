"""
Whose address a request has: that of the connection, or the one that a trusted proxy tells.

Limits are for addresses.  Permission never is: who can choose an address can only choose whose
limit it meets.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from asyncplumber.auth.networks import (
    LOOPBACK,
    Address,
    Network,
    Networks,
    parse_address,
    parse_networks,
)
from asyncplumber.wire.fields import Headers

UNIX = "unix"
NONE = "none"
TRUSTED = "loopback, unix"  # the default: what runs on this machine
# Addresses that are looked at in one header.  More proxies than these are not in front of us.
_HOPS = 16


class TrustedProxies(NamedTuple):
    """
    Who may tell the address of a client.

    Attributes:
        networks: The addresses of proxies.
        unix: Whether a client of a UNIX socket is one.
    """

    networks: tuple[Network, ...] = LOOPBACK
    unix: bool = True


def parse_trusted_proxies(text: str) -> TrustedProxies:
    """
    Parse networks, ``loopback``, ``unix``, or ``none`` for nobody.

    Raises ValueError, with a sentence for the user.
    """
    words = text.lower().replace(",", " ").split()
    if NONE in words and len(words) > 1:
        raise ValueError("none is for nobody, and stands alone")
    networks = parse_networks(text, {"loopback": LOOPBACK, UNIX: (), NONE: ()})
    return TrustedProxies(networks, UNIX in words)


class ClientAddress(NamedTuple):
    """
    Where a client is.

    Attributes:
        text: Its address; empty for a UNIX socket.
        key: What the limits of addresses count by: the address, or the /64 network of IPv6, which
            is what one customer has.  Empty where these limits do not apply.
    """

    text: str
    key: str


NOWHERE = ClientAddress("", "")


class Peer(NamedTuple):
    """
    The other end of a connection.

    Attributes:
        address: Where it is.
        is_trusted: Whether it may tell the addresses of its clients.
        is_local: Whether it is on this machine.
        is_encrypted: Whether the connection is TLS.
    """

    address: ClientAddress
    is_trusted: bool
    is_local: bool
    is_encrypted: bool = False


def _key(address: Address) -> str:
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address)


def _without_port(text: str) -> str:
    """Return the address of ``192.0.2.1:50000`` and ``[2001:db8::1]:50000``, as some proxies do."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


class ClientAddresses:
    """Tells the addresses of clients, given whom to believe."""

    def __init__(self, trusted: TrustedProxies | None = None) -> None:
        """``trusted``: who may tell the address of a client; None for this machine only."""
        trusted = trusted or TrustedProxies()
        self._trusted = Networks(trusted.networks)
        self._trusts_unix = trusted.unix
        self._local = Networks(LOOPBACK)
        self._peer = lru_cache(maxsize=4096)(self._peer_at)
        self._forwarded = lru_cache(maxsize=4096)(self._walk)

    def peer(self, address: Any) -> Peer:
        """Return the other end of a plain connection, from the address that its transport tells."""
        return self._peer(getattr(address, "host", "") or "")

    def _peer_at(self, host: str) -> Peer:
        address = parse_address(host)
        if address is None:  # a UNIX socket, or a transport in memory
            return Peer(NOWHERE, self._trusts_unix, True)
        trusted = address in self._trusted
        # What a proxy does on its own account, such as asking whether we live, has no limit.
        client = ClientAddress(str(address), "" if trusted else _key(address))
        return Peer(client, trusted, address in self._local)

    def client(self, peer: Peer, headers: Headers) -> ClientAddress:
        """
        Return whose request this is.

        Args:
            peer: The other end of its connection.
            headers: With names in lower case.  ``X-Forwarded-For`` counts only where the peer is
                trusted.  Then it is the right-most address that is not a proxy itself: a client
                can write what it wants to the left of that.
        """
        if not peer.is_trusted:
            return peer.address
        value = headers.get(b"x-forwarded-for")
        if not value:
            return peer.address
        # The left part of a long one is not ours, and would only fill the cache.
        return self._forwarded(peer.address, value[-400:])

    def _walk(self, nearest: ClientAddress, value: bytes) -> ClientAddress:
        for entry in reversed(value.decode("latin-1").rsplit(",", _HOPS)[-_HOPS:]):
            address = parse_address(_without_port(entry.strip()))
            if address is None:
                # A trusted proxy wrote no address.  All such clients share the limit of the last
                # one that is known: nobody gets rid of a limit by this.
                at = parse_address(nearest.text)
                return ClientAddress(nearest.text, _key(at) if at is not None else UNIX)
            if address not in self._trusted:
                return ClientAddress(str(address), _key(address))
            nearest = ClientAddress(str(address), "")
        return nearest
