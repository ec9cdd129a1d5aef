"""A connection that is closed before anything is read from it."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IProtocol
from zope.interface import implementer


@implementer(IProtocol)
class RefusedConnection:
    """
    The protocol of a connection that is one too many.

    A response would cost more than the connection.  A factory could return no protocol at all, but
    not every wrapper around a factory, such as that of TLS, knows what to do then.
    """

    def makeConnection(self, transport: Any) -> None:
        transport.abortConnection()

    def connectionMade(self) -> None:
        """Do nothing: it is about to close."""

    def dataReceived(self, data: bytes) -> None:
        """Drop it."""

    def connectionLost(self, reason: Any) -> None:
        """Do nothing: nobody knows of it."""
