"""
Is this POST genuine and fresh?  Standard Webhooks 1.0.0 with a symmetric secret.

Signed is ``{webhook-id}.{webhook-timestamp}.{body}``, by HMAC-SHA256; compared in constant time.
Instances sign the method and the path of what they ask of each other as well, so that a captured
signature is of no use elsewhere.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import quote
from uuid import uuid4

from twisted.internet.defer import Deferred, succeed

from asyncplumber.interfaces import ISecrets

# Seconds.  The clocks of two machines may be some minutes off, each in its own direction.  A
# request that is sent again within that time does no harm: events that came before are dropped by
# their number, and a count changes nothing.
PEER_TOLERANCE = 900.0


class Signer:
    """Signs and verifies with one secret."""

    def __init__(self, secret: bytes, tolerance: float = PEER_TOLERANCE) -> None:
        """`tolerance` is in seconds.  Raises ValueError for a secret shorter than 16 bytes."""
        if len(secret) < 16:
            raise ValueError("a secret has at least 16 bytes")
        self._secret = secret
        self._tolerance = tolerance

    def _signature(self, id: bytes, time: bytes, body: bytes) -> bytes:
        return b"v1," + b64encode(
            hmac.digest(self._secret, b"%b.%b.%b" % (id, time, body), "sha256")
        )

    def sign(self, id: bytes, now: float, body: bytes) -> dict[bytes, bytes]:
        """The headers that make this body genuine.  `now` is in seconds since 1970."""
        time = b"%d" % now
        return {
            b"webhook-id": id,
            b"webhook-timestamp": time,
            b"webhook-signature": self._signature(id, time, body),
        }

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now: float) -> bool:
        """Whether these headers, with lower-case names, make this body genuine and fresh."""
        id, time = headers.get(b"webhook-id", b""), headers.get(b"webhook-timestamp", b"")
        if not id or not time.isdigit() or len(time) > 12 or abs(now - int(time)) > self._tolerance:
            return False
        expected = self._signature(id, time, body)
        # All are compared, so that the time taken does not tell which one came near.
        matches = [
            hmac.compare_digest(expected, given)
            for given in headers.get(b"webhook-signature", b"").split()
        ]
        return any(matches)


def batchs_target(instance_id: str) -> str:
    """
    What a POST of a batch to this instance asks for, as it is signed: without the prefix of a proxy
    in front.
    """
    return f"POST /instances/{instance_id}/events"


def count_target(instance_id: str, account: str) -> str:
    """The same for the question how many listen to this account there."""
    return f"GET /instances/{instance_id}/accounts/{quote(account, safe='')}"


def _content(target: str, body: bytes) -> bytes:
    return b"%b\n%b" % (target.encode(), body)


class PeerSigner:
    """
    Signs what this instance asks of the others, and verifies what they ask of it.

    The secret is the one that the operator gave, or the one that the store keeps for all its
    instances.  Before it is known nothing is genuine.
    """

    def __init__(self, secret: bytes | None = None, secrets: ISecrets | None = None) -> None:
        """
        `secrets` keeps the secret where `secret` is None.  Raises ValueError for a secret shorter
        than 16 bytes.
        """
        self.is_given = secret is not None  # by the operator
        self._signer = Signer(secret) if secret is not None else None
        self._secrets = secrets

    def learn(self) -> Deferred[None]:
        """
        Ask the store for the secret, again if it is known: a new database has a new one.

        @return: Deferred that fires when the secret is known.  Fails with `Unavailable`.
        """
        if self.is_given or self._secrets is None:
            return succeed(None)
        return self._secrets.secret().addCallback(self._learned)

    def _learned(self, secret: bytes) -> None:
        self._signer = Signer(secret)

    def sign(self, target: str, now: float, body: bytes) -> Deferred[dict[bytes, bytes]]:
        """
        The headers that make this request genuine.  `target` is its method and path, see
        `batchs_target`.

        @return: Deferred of a dict, already fired where the secret is known.  Fails with
        `Unavailable`.
        """
        known = self.learn() if self._signer is None else succeed(None)
        return known.addCallback(lambda _: self._signed(target, now, body))

    def _signed(self, target: str, now: float, body: bytes) -> dict[bytes, bytes]:
        if self._signer is None:
            return {}  # the other instance will refuse it
        return self._signer.sign(uuid4().hex.encode("ascii"), now, _content(target, body))

    def verify(self, target: str, headers: Mapping[bytes, bytes], body: bytes, now: float) -> bool:
        """Whether this request, to this method and path, is genuine and fresh."""
        return self._signer is not None and self._signer.verify(
            headers, _content(target, body), now
        )
