"""
Every attribute of Twisted that this package uses and that Twisted does not document as public.

Nothing else in the package names them.  ``tests/unit/test_twisted_compat.py`` has a test for each,
which fails if a release of Twisted renames one or gives it another meaning.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IProtocol

# Raised before the first byte of a request was sent.  ``twisted.web.client`` exports its siblings,
# but not this one.
from twisted.web._newclient import RequestNotSent
from twisted.web.http import HTTPChannel

__all__ = [
    "RequestNotSent",
    "abort_response",
    "can_take_over",
    "has_unsent",
    "is_plain_socket",
    "is_wrapped",
    "limit_accepts",
    "quieten",
    "reactor_of",
    "replace_protocol",
    "replace_reactor",
    "socket_of",
    "take_over",
    "unsent_bytes",
]


def abort_response(transport: Any) -> None:
    """
    Close the connection from which a response of ``twisted.web.client`` is read, at once.

    The transport of a response has only ``loseConnection``, which waits for the other side where
    there is TLS.
    """
    connection: Any = getattr(transport, "_producer", None)
    if connection is not None and hasattr(connection, "abortConnection"):
        connection.abortConnection()
    else:
        transport.loseConnection()


def quieten(pool: Any) -> None:
    """Let a pool of connections of ``twisted.web.client`` log nothing about each of them."""

    class Quiet(pool._factory):  # type: ignore[misc]
        noisy = False

    pool._factory = Quiet


def is_plain_socket(transport: Any) -> bool:
    """Tell whether bytes for the client can go to the socket as they are: TCP or UNIX, no TLS."""
    return isinstance(transport, tcp.Connection) and not getattr(transport, "TLS", False)


def is_wrapped(transport: Any) -> bool:
    """Tell whether this is a layer above the transport: TLS, or HAProxy's PROXY protocol."""
    return hasattr(transport, "wrappedProtocol")


def socket_of(transport: Any) -> socket.socket | None:
    """
    Return the socket of a transport, also of one below TLS.

    None for a transport without one, as in memory, and for a connection that is lost.
    """
    found: socket.socket | None = getattr(transport, "socket", None)
    return found


def unsent_bytes(transport: Any) -> tuple[int, int]:
    """
    Return what the reactor has left to send in its current buffer.

    Returns:
        The size of the buffer, and how many bytes of it were handed to the socket already.  What
        was written since the buffer was filled is not counted.
    """
    return len(getattr(transport, "dataBuffer", b"")), getattr(transport, "offset", 0)


def has_unsent(transport: Any) -> bool:
    """Tell whether the transport holds bytes that it has not handed to the socket yet."""
    size, offset = unsent_bytes(transport)
    return size > offset or bool(getattr(transport, "_tempDataBuffer", ()))


def can_take_over(request: Any) -> bool:
    """Tell whether `take_over` works: a request over HTTP/1.1, on a transport with a protocol."""
    channel = getattr(request, "channel", None)
    transport = getattr(channel, "transport", None)
    return isinstance(channel, HTTPChannel) and (
        hasattr(transport, "wrappedProtocol") or hasattr(transport, "protocol")
    )


def take_over(request: Any) -> tuple[Any, bytes]:
    """
    Take the transport from the HTTP channel that has read this ``twisted.web`` request.

    The channel has to be idle: call this in a turn of the reactor after the one that rendered the
    request, and before any response.

    Returns:
        The transport, which reads and has no producer; and what the client has sent after the
        request.
    """
    channel = request.channel
    transport, channel.transport = channel.transport, None
    channel.setTimeout(None)
    unread, channel._dataBuffer = b"".join(channel._dataBuffer), []
    channel._networkProducer.unregisterProducer()
    channel._networkProducer.resumeProducing()  # it is paused while much is unread
    return transport, unread


def replace_protocol(transport: Any, protocol: IProtocol) -> None:
    """Let another protocol have the bytes and the end of a connection, also of one with TLS."""
    if is_wrapped(transport):
        transport.wrappedProtocol = protocol
    else:
        transport.protocol = protocol


def reactor_of(transport: tcp.Connection) -> Any:
    """Return the reactor that watches the socket of this transport."""
    return transport.reactor


def replace_reactor(transport: tcp.Connection, reactor: Any) -> None:
    """Let another reactor watch the socket.  The transport is not being read at this moment."""
    transport.reactor = reactor


def limit_accepts(ports: Iterable[Any], count: int) -> None:
    """
    Let each port accept about ``count`` connections in one turn of the reactor.

    Twisted raises the number by 20 after each turn that used it up, so a storm of new connections
    would starve the open ones.  Call this for each new connection: then a turn takes at most 20
    more than ``count``.  A port that has no such number is left alone.
    """
    for port in ports:
        if hasattr(port, "numberAccepts"):
            port.numberAccepts = count


def global_reactor() -> Any:
    """Return the reactor of this process, and install one if there is none."""
    from twisted.internet import reactor

    return reactor
