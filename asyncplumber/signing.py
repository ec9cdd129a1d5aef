"""
Is this POST genuine and fresh?  Standard Webhooks 1.0.0 with a symmetric secret.  Pure.

Signed is ``{webhook-id}.{webhook-timestamp}.{body}``, by HMAC-SHA256; compared in constant time.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Mapping

PEER_TOLERANCE = 3600.0  # seconds: peers' clocks may be minutes apart, and a parcel that comes twice does no harm


class Signer:
    """Signs and verifies with one secret."""

    def __init__(self, secret: bytes, tolerance: float = PEER_TOLERANCE) -> None:
        """`tolerance` is in seconds.  Raises ValueError for a secret shorter than 16 bytes."""
        if len(secret) < 16:
            raise ValueError("a secret has at least 16 bytes")
        self._secret = secret
        self._tolerance = tolerance

    def _signature(self, id: bytes, time: bytes, body: bytes) -> bytes:
        return b"v1," + b64encode(hmac.digest(self._secret, b"%b.%b.%b" % (id, time, body), "sha256"))

    def sign(self, id: bytes, now: float, body: bytes) -> dict[bytes, bytes]:
        """The headers that make this body genuine.  `now` is in seconds since 1970."""
        time = b"%d" % now
        return {b"webhook-id": id, b"webhook-timestamp": time, b"webhook-signature": self._signature(id, time, body)}

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now: float) -> bool:
        """Whether these headers, with lower-case names, make this body genuine and fresh."""
        id, time = headers.get(b"webhook-id", b""), headers.get(b"webhook-timestamp", b"")
        if not id or not time.isdigit() or len(time) > 12 or abs(now - int(time)) > self._tolerance:
            return False
        expected = self._signature(id, time, body)
        # All are compared, so that the time taken does not tell which one came near.
        matches = [hmac.compare_digest(expected, given) for given in headers.get(b"webhook-signature", b"").split()]
        return any(matches)
