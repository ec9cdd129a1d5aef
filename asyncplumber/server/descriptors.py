"""How many connections a process can have, by its limit of open files."""

from __future__ import annotations

import resource

RESERVE = 256  # files that are no connections of clients: store, peers, logs, modules


def most_connections() -> int | None:
    """
    Return how many connections leave enough files for everything else; None for any number.

    A process that has no file left can neither reach its store nor tell anybody why.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return max(soft - RESERVE, soft // 2, 1)
