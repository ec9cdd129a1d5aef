"""The ports of a server, and which paths each of them has."""

from __future__ import annotations

from enum import Enum


class Port(Enum):
    """What a port is for."""

    ONLY = "only"  # there is no private one: it has all paths, each with its rules
    PUBLIC = "public"  # beside a private one
    PEERS = "peers"  # a worker's own port, for the other instances, beside a private one
    PRIVATE = "private"  # `--private-listen`: who reaches it may do everything


_OPERATORS = (b"/metrics", b"/revocations", b"/admin")
_INSTANCES = b"/instances"
_HIDDEN = {
    Port.ONLY: (),
    Port.PUBLIC: (*_OPERATORS, _INSTANCES),
    Port.PEERS: _OPERATORS,
}
_SHOWN = (*_OPERATORS, _INSTANCES, b"/accounts", b"/healthz", b"/readyz")


def has_path(port: Port, path: bytes) -> bool:
    """Whether there may be something at this path, as it was sent and without its query."""
    if port is Port.ONLY:
        return True
    first = path[: path.find(b"/", 1)] if path.find(b"/", 1) > 0 else path
    return first in _SHOWN if port is Port.PRIVATE else first not in _HIDDEN[port]
