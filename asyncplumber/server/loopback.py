"""Which Twisted endpoints can be reached from this machine only, by their descriptions."""

from __future__ import annotations

LOCAL = ("127.0.0.1", "::1", "localhost")


def _arguments(endpoint: str) -> list[str]:
    """
    Split a description at its colons.

    A character after a backslash stands for itself.
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
    Return whether an endpoint listens only on the loopback interface or a UNIX socket.

    A socket that systemd opens counts as local: its unit file says where it listens.  Of several
    interfaces in one description Twisted takes the last one, so each of them must be local.
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


def private_endpoint(text: str) -> str:
    """
    Return the description of an endpoint for operators.  Empty for none.

    A number is a port on 127.0.0.1.

    Twisted listens on all interfaces if none is named.  Here that would be a trap.

    Raises:
        ValueError: No interface is named.
    """
    if not text:
        return text
    if text.isascii() and text.isdigit():
        return f"tcp:{text}:interface=127.0.0.1:backlog=128"
    kind, *arguments = _arguments(text)
    named = any(each.partition("=")[0] == "interface" for each in arguments)
    if kind not in ("unix", "systemd") and not named:
        raise ValueError(
            f"{text!r} names no interface, and everybody who reaches the port may do everything; "
            "add interface=127.0.0.1, or another address at which only operators reach it"
        )
    return text
