"""
The names by which a request may address this server (RFC 9110, 7.2).

A page of ``http://evil.example:8080`` can make its own name resolve to 127.0.0.1 (DNS rebinding).
The browser then takes our answers for those of that page, and sends an Origin that equals Host.
Only Host tells.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from asyncplumber.errors import BadRequest, PlumberError
from asyncplumber.wire.parse import Headers

# uri-host [ ":" port ], without the comma that RFC 3986 allows in a name: a proxy may have joined
# two values by it.
_SYNTAX = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._~!$&'()*+;=%-]+))(?::[0-9]{0,5})?")
_LONGEST = 300  # bytes: a name has 253 at most, and longer values would fill the cache
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
_PROBES = (
    b"/healthz",
    b"/readyz",
)  # an orchestrator may ask by any name, and the answer is no secret


class Misdirected(PlumberError):
    """The request is meant for a server of another name (RFC 9110, 15.5.20)."""

    status, code = 421, "misdirected"
    default = "this server is not known by that Host; --host adds a name"


class _Place(NamedTuple):
    """A Host without its port: the name in lower case, or the address."""

    name: str
    is_address: bool = False
    is_loopback: bool = False


def _is_loopback(address: IPv4Address | IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def _place(header: bytes) -> _Place | None:
    """What a Host header names; None if it is malformed."""
    match = _SYNTAX.fullmatch(header)
    if match is None:
        return None
    literal, name = match.groups()
    if literal is not None:
        address = _address(literal.decode("ascii"))
        return (
            _Place(str(address), True, _is_loopback(address))
            if isinstance(address, IPv6Address)
            else None
        )
    text = name.decode("ascii").lower().removesuffix(".")
    address = _address(text)
    return _Place(text) if address is None else _Place(str(address), True, _is_loopback(address))


def _normal(name: str) -> str:
    """A configured name as `_place` would give it. Raises ValueError."""
    address = _address(name.removeprefix("[").removesuffix("]"))
    if address is not None:
        return str(address)
    try:
        # Browsers send the ASCII form of an international name.
        text = name.lower().removesuffix(".").encode("idna").decode("ascii")
    except UnicodeError:
        text = ""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{name!r} is not a host name such as push.example.com or *.example.com, without a port"
        )
    return text


def parse_hosts(text: str) -> tuple[str, ...]:
    """
    The names in `text`, separated by commas or spaces. Raises ValueError for one that is none.
    """
    return tuple(_normal(name) for name in text.replace(",", " ").split())


class Hosts:
    """The names of this server."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """
        `names` are those beside ``localhost`` and the host of the public URL.

        ``*.example.com`` is every name below ``example.com``. Raises ValueError for a name that is
        none.
        """
        given = [_normal(name) for name in names]
        self._suffixes = (".localhost", *[name[1:] for name in given if name.startswith("*")])
        self._given = frozenset({"localhost", *given})
        self._names: Collection[str] = self._given

    def set_public_url(self, url: str) -> None:
        """Accept the host of `url` as well, instead of that of an earlier one. Empty: of none."""
        host = urlsplit(url).hostname
        self._names = self._given | {_normal(host)} if host else self._given

    def check(self, path: bytes, headers: Headers, connection: Any) -> None:
        """
        Raise `BadRequest` for a malformed Host, and `Misdirected` for a foreign one.

        `connection` has ``getHost()``, the address at which the request came in. HTTP/1.0 has no
        Host, and passes: no browser speaks it.
        """
        header = headers.get(b"host")
        if header is None:
            return
        place = _place(header) if len(header) <= _LONGEST else None
        if place is None:
            raise BadRequest("Host is a name or an address, and perhaps a port")
        if (
            place.name not in self._names
            and not self._is_ours(place, connection)
            and path not in _PROBES
        ):
            raise Misdirected

    def _is_ours(self, place: _Place, connection: Any) -> bool:
        """
        Whether an address, or a name below one of ours, is this server.

        No DNS name is an address, so nothing can be rebound to one: where we listen beyond the
        loopback interface, any is accepted, as a port may be forwarded to us. On the loopback
        interface only loopback addresses are.
        """
        if place.is_loopback:
            return True
        if not place.is_address:
            return place.name.endswith(self._suffixes)
        local = _address(getattr(connection.getHost(), "host", ""))
        return local is not None and not _is_loopback(local)
