"""How a connection came in: at which port, from where, and what it counts as."""

from __future__ import annotations

from typing import NamedTuple

from asyncplumber.auth.limits.client_limits import Hold
from asyncplumber.http.client_address import Peer
from asyncplumber.http.ports import Port


class Arrival(NamedTuple):
    """
    How a connection came in.

    Attributes:
        port: Where.
        peer: The other end of the socket.
        hold: What it counts as until it is closed; None if it is not counted.
    """

    port: Port
    peer: Peer
    hold: Hold | None = None
