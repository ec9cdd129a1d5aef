"""What every request must pass, whichever way it comes in, before anything is done with it."""

from __future__ import annotations

from typing import Any

from asyncplumber.auth.hosts import Hosts
from asyncplumber.errors import NotFound
from asyncplumber.wire.parse import Headers


class Gate:
    """The checks that need no store and no account."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts

    def check(self, target: bytes, headers: Headers, connection: Any) -> None:
        """
        Raise the `PlumberError` with which the request is refused.

        `target` begins with the path below our root, `connection` has ``getHost()``.
        """
        if target.startswith(b"//"):
            # Klein folds these slashes.  A proxy may not, and its rules are for the path without
            # them.
            raise NotFound
        self.hosts.check(target.partition(b"?")[0], headers, connection)
