"""What a MongoDB URI says, and connections as it wants them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pymongo.errors import AutoReconnect, PyMongoError
from pymongo.uri_parser import parse_uri
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from txmongo.connection import ConnectionPool
from zope.interface import implementer

DATABASE = "asyncplumber"
# Seconds.  The first is also what txmongo gives a server for its first answer; a server that is
# back is found within the second.
_RETRY_DELAY, _MAX_DELAY = 1, 1
_PING_INTERVAL, _PING_TIMEOUT = 1, 3  # seconds until a server that hangs is given up
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, uuid_representation=UuidRepresentation.STANDARD
)


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """
    A MongoDB URI, taken apart.  `options` has lower-case names.  Its text never holds the password.
    """

    nodes: list[tuple[str, int]]
    database: str
    user: str
    password: str
    source: str  # the database that knows the user
    options: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"mongodb://{','.join(f'{host}:{port}' for host, port in self.nodes)}/{self.database}"
        )


def parsed(uri: str) -> Address:
    """
    Take `uri` apart; ``mongodb+srv`` asks the DNS and waits.  Raises ValueError with a sentence for
    the user.
    """
    try:
        parts = parse_uri(uri)
    except (PyMongoError, ValueError) as error:
        raise ValueError(f"the MongoDB URI cannot be used: {error}") from error
    options = {name.lower(): value for name, value in parts["options"].items()}
    mechanism = options.get("authmechanism", "SCRAM-SHA-1")
    if parts["username"] and mechanism not in ("SCRAM-SHA-1", "MONGODB-X509", "DEFAULT"):
        raise ValueError(
            f"the MongoDB URI cannot be used: authMechanism={mechanism} is not among SCRAM-SHA-1 and MONGODB-X509"
        )
    return Address(
        nodes=parts["nodelist"],
        database=parts["database"] or DATABASE,
        user=parts["username"] or "",
        password=parts["password"] or "",
        source=options.get("authsource") or parts["database"] or "admin",
        options=options,
    )


@implementer(IOpenSSLClientConnectionCreator)
class _Trust:
    """
    TLS to whichever node is dialled, by the name it is dialled by.  (The driver takes one context
    for all nodes.)
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """Raises OSError if a file that `options` names cannot be read."""
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
        The driver's pinger dials the bare address of a connection that is up: note the name that
        this one was dialled by.
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

    Whatever a restarted server forgot, it forgot before we reached it again by a new connection.
    So two commands between which `generation` did not change spoke to the same run of the server.
    """

    def __init__(self, address: Address, size: int) -> None:
        """Dials at once, and for ever."""
        self.generation = 0
        self._seen: Any = weakref.WeakSet()
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

    def getprotocol(self) -> Deferred[Any]:
        return super().getprotocol().addCallback(self._noted)  # type: ignore[no-any-return]

    def _noted(self, protocol: Any) -> Any:
        if protocol is None:
            raise AutoReconnect("the connection was lost")
        if protocol not in self._seen:
            self._seen.add(protocol)
            self.generation += 1
            if self._trust is not None:
                self._trust.learn(protocol)
        return protocol
