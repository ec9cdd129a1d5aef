"""
To which addresses this instance sends: the URLs of other instances come from the registry.

Who can write into the database could else let us send signed requests with events to any service
that we can reach, such as that of a cloud with the credentials of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IResolutionReceiver,
)
from twisted.logger import Logger
from zope.interface import implementer

from asyncplumber.auth.networks import (
    ANY,
    LOOPBACK,
    Network,
    Networks,
    parse_address,
    parse_networks,
)
from asyncplumber.rate_limited_log import RateLimitedLog

# Where no other instance is, unless it is named.
_NEVER = tuple(
    map(
        ip_network,
        (
            *("169.254.0.0/16", "fe80::/10"),  # link-local: the metadata services of clouds
            *("0.0.0.0/8", "::/128"),  # this machine, by an address that is none
            *("224.0.0.0/4", "ff00::/8", "255.255.255.255/32"),  # multicast and broadcast
        ),
    )
)


def parse_peer_networks(text: str) -> tuple[Network, ...]:
    """
    Parse networks, or ``loopback``.

    Raises ValueError, with a sentence for the user.
    """
    return parse_networks(text, {"loopback": LOOPBACK})


@implementer(IResolutionReceiver)
class _Filter:
    """Passes on the addresses that are allowed, and drops the others."""

    def __init__(self, receiver: Any, allowed: Networks, log: RateLimitedLog) -> None:
        self._receiver = receiver
        self._allowed = allowed
        self._log = log
        self._dropped: list[str] = []
        self._passed = False

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        self._receiver.resolutionBegan(resolution)

    def addressResolved(self, address: IAddress) -> None:
        host: str = getattr(address, "host", "")
        found = parse_address(host)
        if found is not None and found in self._allowed:
            self._passed = True
            self._receiver.addressResolved(address)
        else:
            self._dropped.append(host)

    def resolutionComplete(self) -> None:
        if self._dropped and not self._passed:
            self._log.warn(
                "nothing is sent to an instance at {addresses}: it is not in --peer-networks",
                addresses=", ".join(self._dropped),
            )
        self._receiver.resolutionComplete()


@implementer(IHostnameResolver)
class _Resolver:
    """Resolves a name, and an address itself, to those addresses that are allowed."""

    _log = Logger()

    def __init__(self, reactor: Any, allowed: Networks) -> None:
        self._resolver = reactor.nameResolver
        self._allowed = allowed
        self._refusals = RateLimitedLog(self._log, reactor.seconds)

    def resolveHostName(
        self, resolutionReceiver: IResolutionReceiver, *arguments: Any, **options: Any
    ) -> IHostResolution:
        receiver = _Filter(resolutionReceiver, self._allowed, self._refusals)
        found: IHostResolution = self._resolver.resolveHostName(receiver, *arguments, **options)
        return found


@implementer(IReactorPluggableNameResolver, IReactorTCP, IReactorTime)
class _RestrictedReactor:
    """
    A reactor whose clients by name reach only some addresses.

    ``twisted.web.client`` connects by name, also where the name is an address.  So there is one
    place that sees each address just before the connection, and a name cannot change in between.
    """

    def __init__(self, reactor: Any, allowed: Networks) -> None:
        self._reactor = reactor
        self.nameResolver = _Resolver(reactor, allowed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def restricted(reactor: Any, networks: Sequence[Network]) -> Any:
    """
    Return a reactor that connects to these networks only; no networks are all but link-local ones.

    A reactor that looks up no names is returned as it is: nothing connects by it.
    """
    if not IReactorPluggableNameResolver.providedBy(reactor):
        return reactor
    allowed = Networks(networks) if networks else Networks(ANY, _NEVER)
    return _RestrictedReactor(reactor, allowed)
