"""WebSocket frames as a client writes and reads them (RFC 6455), for tests.

Nothing here shares code with the server.
"""

from __future__ import annotations

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455, 1.3
_MASK = b"\x01\x02\x03\x04"


def handshake_request(
    path: str = "/events/a", *lines: str, version: str = "13", key: str = KEY
) -> bytes:
    """Return the request by which a browser opens a WebSocket; ``lines`` are more headers."""
    head = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
        f"Sec-WebSocket-Version: {version}",
        f"Sec-WebSocket-Key: {key}",
    ]
    return "\r\n".join([*head, *lines, "", ""]).encode()


def client_frame(
    payload: bytes, opcode: int = TEXT, *, final: bool = True, masked: bool = True
) -> bytes:
    """Return one frame of a client.  A correct client masks each frame."""
    size = len(payload)
    head = bytes([opcode | (0x80 if final else 0)])
    bit = 0x80 if masked else 0
    if size < 126:
        head += bytes([size | bit])
    elif size < 65536:
        head += bytes([126 | bit]) + size.to_bytes(2, "big")
    else:
        head += bytes([127 | bit]) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + _MASK + bytes([byte ^ _MASK[at % 4] for at, byte in enumerate(payload)])


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Read the frames of a server.

    Returns:
        The opcode and the payload of each.

    Raises:
        ValueError: A frame is not complete, is a fragment, is masked or has a reserved bit.
    """
    found = []
    while data:
        head, size, at = data[0], data[1], 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(data[2:10], "big"), 10
        if not head & 0x80 or head & 0x70 or size & ~0x7FFFFFFFFFFFFFFF or len(data) < at + size:
            raise ValueError(f"no whole frame: {data[:20]!r}")
        found.append((head & 0xF, data[at : at + size]))
        data = data[at + size :]
    return found


def close_code(payload: bytes) -> int:
    """Return the code in the payload of a close frame."""
    return int.from_bytes(payload[:2], "big")
