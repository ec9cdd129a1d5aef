"""Ports of 127.0.0.1 for servers that have to know their port before they start."""

from __future__ import annotations

import atexit
import socket
import sys


def reserve_port() -> int:
    """Return a port that the system gives to nobody else while this process lives.

    On Linux the reservation is a socket that is bound, but does not listen.  A server that sets
    ``SO_REUSEADDR``, as all of ours do, can still bind the port, again and again.  The system skips
    the port when it chooses one for somebody else.  Other systems refuse the second bind; there the
    port was merely free a moment ago.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    port = int(reservation.getsockname()[1])
    if sys.platform == "linux":
        atexit.register(reservation.close)  # until then it keeps the port
    else:
        reservation.close()
    return port
