"""Networks of IP addresses, as an administrator writes them: ``10.0.0.0/8, 2001:db8::/32``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
ANY = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """
    Return an address; None if the text is none.

    A socket that takes IPv4 and IPv6 has IPv4 clients as ``::ffff:192.0.2.1`` (RFC 4291, 2.5.5.2):
    that is ``192.0.2.1``.  The zone of a link-local address is dropped.
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def parse_networks(text: str, words: Mapping[str, Iterable[Network]]) -> tuple[Network, ...]:
    """
    Parse networks that are separated by commas or spaces.

    Args:
        text: What was written.  A single address is a network of one.
        words: Names for networks that may be used as well.

    Raises:
        ValueError: With a sentence for the user.
    """
    found: list[Network] = []
    for part in text.replace(",", " ").split():
        if part.lower() in words:
            found += words[part.lower()]
            continue
        try:
            found.append(ip_network(part))
        except ValueError as error:
            known = "".join(f", or {word}" for word in words)
            reason = f": {error}" if "host bits" in str(error) else ""
            raise ValueError(
                f"{part!r} is not a network such as 10.0.0.0/8{known}{reason}"
            ) from None
    return tuple(found)


def _pairs(networks: Iterable[Network]) -> dict[int, list[tuple[int, int]]]:
    """Return mask and base of each network, by version."""
    pairs: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    for network in networks:
        pairs[network.version].append((int(network.netmask), int(network.network_address)))
    return pairs


class Networks:
    """A set of addresses."""

    def __init__(self, networks: Iterable[Network], excluded: Iterable[Network] = ()) -> None:
        """``networks`` have the addresses, but for those that are ``excluded``."""
        self._networks = _pairs(networks)
        self._excluded = _pairs(excluded)

    def __contains__(self, address: Address) -> bool:
        number, version = int(address), address.version
        return any(number & mask == base for mask, base in self._networks[version]) and not any(
            number & mask == base for mask, base in self._excluded[version]
        )
