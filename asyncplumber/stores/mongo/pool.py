"""
Connections to MongoDB.  Only this module uses txmongo.

txmongo's interface is small, but the meaning of ``getprotocol`` is not documented, and its
connections are reached through attributes.  So setup.cfg has an upper bound, and
tests/unit/test_mongo_pool.py names all that is used.
"""

from __future__ import annotations

import weakref
from typing import Any
from urllib.parse import quote

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pymongo.errors import AutoReconnect
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from txmongo import connection as driver
from txmongo.connection import ConnectionPool
from txmongo.errors import TimeExceeded
from zope.interface import implementer

from asyncplumber.stores.mongo.uri import Address

__all__ = ["ConnectionChanged", "Pool", "TimeExceeded"]

# Seconds.  The first is also what txmongo gives a server for its first answer.  A server that is
# back is found within the second.
_RETRY_DELAY, _MAX_DELAY = 1, 1
_PING_INTERVAL, _PING_TIMEOUT = 1, 3  # seconds until a server that hangs is given up
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, uuid_representation=UuidRepresentation.STANDARD
)


# While the server is away, the driver dials each of its connections once a second.  It would log
# each attempt, in the constructor of a pool already.
for _factory in ("_Connection", "_Pinger"):
    if hasattr(driver, _factory):
        getattr(driver, _factory).noisy = False


class ConnectionChanged(AutoReconnect):
    """The connection is not the expected one any more, so the command was not sent."""

    def __init__(self) -> None:
        super().__init__("the connection changed, and the command was not sent")


@implementer(IOpenSSLClientConnectionCreator)
class _Trust:
    """
    TLS to whichever node is dialled, by the name it is dialled by.

    The driver takes one context for all nodes.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """
        Raises:
            OSError: A file that `options` names cannot be read.
        """
        self._root: Any = platformTrust()
        self._own: PrivateCertificate | None = None
        self._names: dict[tuple[str, int], str] = {}
        if path := options.get("tlscafile"):
            with open(path, "rb") as file:
                self._root = trustRootFromCertificates([Certificate.loadPEM(file.read())])
        if path := options.get("tlscertificatekeyfile"):
            with open(path, "rb") as file:
                self._own = PrivateCertificate.loadPEM(file.read())

    def learn(self, protocol: Any) -> None:
        """
        Note the name that a connection was dialled by.

        The driver's pinger dials the bare address of each connection that is up.
        """
        peer = protocol.transport.getPeer()
        self._names[peer.host, peer.port] = protocol.factory.connector.host

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Any:
        to = tlsProtocol.factory.wrappedFactory.connector
        name = self._names.get((to.host, to.port), to.host)
        options = optionsForClientTLS(name, trustRoot=self._root, clientCertificate=self._own)
        return options.clientConnectionForTLS(tlsProtocol)


class Pool(ConnectionPool):  # type: ignore[misc]
    """
    Connections that count their generations.

    A server that restarts forgets what is not durable before we reach it by a new connection.  So
    two commands between which `generation` did not change spoke to the same run of the server.
    """

    def __init__(self, address: Address, size: int) -> None:
        """Dial at once, and again whenever a connection is lost."""
        self.generation = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._expected: int | None = None
        self._trust = _Trust(address.options) if address.options.get("tls") else None
        nodes = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in address.nodes
        )
        name = address.options.get("replicaset")
        super().__init__(
            f"mongodb://{nodes}/" + (f"?replicaSet={quote(name, safe='')}" if name else ""),
            pool_size=size,
            ssl_context_factory=self._trust,
            ping_interval=_PING_INTERVAL,
            ping_timeout=_PING_TIMEOUT,
            retry_delay=_RETRY_DELAY,
            max_delay=_MAX_DELAY,
            codec_options=_CODEC,
        )
        if address.user:
            # The driver would leave it out if the URI names no database.
            self.authenticate(
                address.source,
                address.user,
                address.password,
                address.options.get("authmechanism", "DEFAULT"),
            )

    def command_on(
        self, generation: int, database: str, body: dict[str, Any], timeout: float
    ) -> Deferred[dict[str, Any]]:
        """
        Send a command, but only by a connection of this generation.

        Only for a pool of one connection.

        Raises:
            ConnectionChanged: The connection is another one.  Through the Deferred; nothing was
                sent.
        """
        self._expected = generation
        answer: Deferred[dict[str, Any]] = self.command(database, body, timeout=timeout)
        if self._expected is not None:
            raise AssertionError("txmongo did not ask for a connection when a command was given")
        return answer

    def getprotocol(self) -> Deferred[Any]:
        expected, self._expected = self._expected, None
        # txmongo sends a command by what this returns, in the same turn in which it fires.
        return super().getprotocol().addCallback(self._checked, expected)  # type: ignore[no-any-return]

    def _checked(self, protocol: Any, expected: int | None) -> Any:
        if protocol is None:
            raise AutoReconnect("the connection was lost")
        if protocol not in self._seen:
            self._seen.add(protocol)
            self.generation += 1
            if self._trust is not None:
                self._trust.learn(protocol)
        if expected is not None and expected != self.generation:
            raise ConnectionChanged
        return protocol
