"""
Whether a client takes what it was sent, as TCP keeps the books of it where the system shows them.
"""

from __future__ import annotations

import socket
import sys
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

from asyncplumber._twisted_compat import socket_of, unsent_bytes

# Where struct tcp_info (linux/tcp.h) has what is used here: segments sent and not acknowledged,
# bytes acknowledged, bytes not sent yet.  The kernel only ever appends to it; the last is there
# since 4.6.
_UNACKED, _BYTES_ACKED, _NOT_SENT = slice(24, 28), slice(120, 128), slice(144, 148)
_SIZE = 148


def progress(transport: Any) -> object | None:
    """
    Return None if the client has everything that was written to `transport`.

    Otherwise return a mark that is another one as soon as the client has taken some of it.  On
    Linux the mark counts the bytes that the other end of the TCP connection has acknowledged.  On
    UNIX sockets and elsewhere it tells how full the buffers on this side are: there also new bytes
    make another mark, as long as the buffers have room.
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
