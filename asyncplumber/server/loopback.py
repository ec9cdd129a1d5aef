"""
Whether a Twisted endpoint can be reached from this machine only, as far as its description says.
"""

from __future__ import annotations

LOCAL = ("127.0.0.1", "::1", "localhost")


def _arguments(endpoint: str) -> list[str]:
    """
    The parts of a description between colons; after a backslash the next character stands for
    itself.
    """
    parts = [""]
    characters = iter(endpoint)
    for character in characters:
        if character == ":":
            parts.append("")
        else:
            parts[-1] += next(characters, "") if character == "\\" else character
    return parts


def is_local(endpoint: str) -> bool:
    """
    Whether a server endpoint listens on nothing but the loopback interface, a UNIX socket or what
    systemd opens.

    Twisted takes the last of several interfaces: each of them must be local.
    """
    kind, *arguments = _arguments(endpoint)
    interfaces = [
        value
        for key, found, value in (part.partition("=") for part in arguments)
        if found and key == "interface"
    ]
    return kind in ("unix", "systemd") or (
        bool(interfaces) and all(interface in LOCAL for interface in interfaces)
    )
