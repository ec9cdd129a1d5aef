"""
The names by which a request may address this server (RFC 9110, section 7.2).

The check stops DNS rebinding.  A page of ``http://evil.example:8080`` can make its own name resolve
to 127.0.0.1.  The browser then takes our responses for those of that page, and sends an Origin
header that equals Host.  Only the Host header gives the page away.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from asyncplumber.errors import BadRequest, PlumberError
from asyncplumber.wire.fields import Headers

# uri-host [ ":" port ].  RFC 3986 allows a comma in a name; here it is refused, because a proxy
# joins two values with one.
_SYNTAX = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._~!$&'()*+;=%-]+))(?::[0-9]{0,5})?")
MAX_HOST_LENGTH = 300  # bytes: a name has 253 at most, and longer values would fill the cache
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
# Paths that are served under any name: orchestrators have names of their own for a server, and
# these responses are no secret.
_PROBES = (b"/healthz", b"/readyz")


class Misdirected(PlumberError):
    """The request is meant for a server with another name (RFC 9110, section 15.5.20)."""

    status, code = 421, "misdirected"
    default = "this server is not known by that Host; --host adds a name"


class HasLocalAddress(Protocol):
    """A connection or a request."""

    def getHost(self) -> object:
        """Return the address at which it came in."""


class _Host(NamedTuple):
    """A Host header without its port: the name in lower case, or the address."""

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
def _parse_host(header: bytes) -> _Host | None:
    """Parse a Host header; None if it is malformed."""
    match = _SYNTAX.fullmatch(header)
    if match is None:
        return None
    literal, name = match.groups()
    if literal is not None:
        address = _address(literal.decode("ascii"))
        return (
            _Host(str(address), True, _is_loopback(address))
            if isinstance(address, IPv6Address)
            else None
        )
    text = name.decode("ascii").lower().removesuffix(".")
    address = _address(text)
    return _Host(text) if address is None else _Host(str(address), True, _is_loopback(address))


def _normal(name: str) -> str:
    """Return a configured name as `_parse_host` returns it.  Raises ValueError."""
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
    Parse names that are separated by commas or spaces.

    Raises ValueError, with a sentence for the user, for what is no host name.
    """
    return tuple(_normal(name) for name in text.replace(",", " ").split())


class Hosts:
    """The names of this server."""

    def __init__(self, names: Iterable[str] = (), public_url: str = "") -> None:
        """
        Args:
            names: The names beside ``localhost`` and the hosts of the URLs.
                ``*.example.com`` stands for every name below ``example.com``.
            public_url: The URL for clients and services; empty for none.

        Raises ValueError for what is no host name.
        """
        public = filter(None, [urlsplit(public_url).hostname])
        given = [_normal(name) for name in (*names, *public)]
        self._suffixes = (".localhost", *[name[1:] for name in given if name.startswith("*")])
        self._given = frozenset({"localhost", *given})
        self._names: Collection[str] = self._given

    def set_advertised_url(self, url: str) -> None:
        """Accept the host of this URL, and no longer that of an earlier one.  Empty: of none."""
        name = urlsplit(url).hostname
        self._names = self._given | {_normal(name)} if name else self._given

    def check(self, path: bytes, headers: Headers, connection: HasLocalAddress) -> None:
        """
        Raise `BadRequest` for a malformed Host header, and `Misdirected` for a foreign name.

        A request without Host passes: it is HTTP/1.0, which no browser speaks.

        Args:
            path: The path of the request.
            headers: With names in lower case.
            connection: Its ``getHost()`` is the address at which the request came in.
        """
        header = headers.get(b"host")
        if header is None:
            return
        host = _parse_host(header) if len(header) <= MAX_HOST_LENGTH else None
        if host is None:
            raise BadRequest("the Host header has a name or an address, and perhaps a port")
        if (
            host.name not in self._names
            and not self._is_ours(host, connection)
            and path not in _PROBES
        ):
            raise Misdirected

    def _is_ours(self, host: _Host, connection: HasLocalAddress) -> bool:
        """
        Whether an address, or a name below one of ours, is this server.

        An address cannot be rebound, because it is no DNS name.  So a request that came in beyond
        the loopback interface may have any address as Host: a port may be forwarded to us.  A
        request on the loopback interface must have a loopback address.
        """
        if host.is_loopback:
            return True
        if not host.is_address:
            return host.name.endswith(self._suffixes)
        local = _address(getattr(connection.getHost(), "host", ""))
        return local is not None and not _is_loopback(local)
