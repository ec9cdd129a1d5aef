"""Tell whether a client takes what it was sent, by what the operating system knows of it."""

from __future__ import annotations

import socket
import sys
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

from asyncplumber._twisted_compat import socket_of, unsent_bytes

# Where ``struct tcp_info`` (linux/tcp.h) has the segments that are sent and not acknowledged, the
# bytes acknowledged, and the bytes not sent yet.  The kernel only ever appends to it.  The last of
# the three is there since Linux 4.6.
_UNACKED, _BYTES_ACKED, _NOT_SENT = slice(24, 28), slice(120, 128), slice(144, 148)
_SIZE = 148


def progress(transport: Any) -> object | None:
    """
    Return a mark that changes when the client takes some of what waits for it.

    On Linux the mark is the number of bytes that the other end of the TCP connection has
    acknowledged.  On UNIX sockets and on other systems it tells how full the buffers on this side
    are.  There new bytes change it too, as long as the buffers have room.

    Returns:
        None if the client has everything that was written to ``transport``, or if the connection
        is lost.
    """
    own = socket_of(transport)
    waiting, sent = unsent_bytes(transport)
    queued = 0
    if own is not None and sys.platform == "linux":
        try:
            if own.family != socket.AF_UNIX:
                info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
                if len(info) == _SIZE:
                    return info[_BYTES_ACKED] if any(info[_UNACKED] + info[_NOT_SENT]) else None
            queued = int.from_bytes(ioctl(own, TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:  # the connection is lost; the reactor notices when it reads
            return None
    return (queued, waiting, sent) if queued or waiting > sent else None
