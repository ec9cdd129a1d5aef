"""
Signatures that prove a POST genuine and fresh: Standard Webhooks 1.0.0, with a symmetric secret.

``{webhook-id}.{webhook-timestamp}.{body}`` is signed with HMAC-SHA256, and compared in constant
time.  Requests between instances have their method and path signed as well, so that a captured
signature is of no use for another request.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import quote
from uuid import uuid4

from twisted.internet.defer import Deferred, succeed

from asyncplumber.errors import NotAllowed
from asyncplumber.interfaces import ISecrets

# Seconds that a signature is valid before and after its time.  The clocks of two machines may each
# be wrong by some minutes.  A captured request that is sent again within that time does no harm:
# old events are dropped by their numbers, and a count changes nothing.
PEER_TOLERANCE = 900.0
MIN_SECRET_LENGTH = 16  # bytes


class Signer:
    """Signs and verifies with one secret."""

    def __init__(self, secret: bytes, tolerance: float = PEER_TOLERANCE) -> None:
        """`tolerance` is in seconds.  Raises ValueError for a secret that is too short."""
        if len(secret) < MIN_SECRET_LENGTH:
            raise ValueError(f"a secret has at least {MIN_SECRET_LENGTH} bytes")
        self._secret = secret
        self._tolerance = tolerance

    def _signature(self, id: bytes, time: bytes, body: bytes) -> bytes:
        return b"v1," + b64encode(
            hmac.digest(self._secret, b"%b.%b.%b" % (id, time, body), "sha256")
        )

    def sign(self, id: bytes, now: float, body: bytes) -> dict[bytes, bytes]:
        """Return the headers that sign this body.  `now` is in seconds since 1970."""
        time = b"%d" % now
        return {
            b"webhook-id": id,
            b"webhook-timestamp": time,
            b"webhook-signature": self._signature(id, time, body),
        }

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now: float) -> bool:
        """Whether `headers`, with names in lower case, sign this body and are fresh."""
        id, time = headers.get(b"webhook-id", b""), headers.get(b"webhook-timestamp", b"")
        if not id or not time.isdigit() or len(time) > 12 or abs(now - int(time)) > self._tolerance:
            return False
        expected = self._signature(id, time, body)
        # Compare with all of them, so that the time taken does not tell which one came near.
        matches = [
            hmac.compare_digest(expected, given)
            for given in headers.get(b"webhook-signature", b"").split()
        ]
        return any(matches)


def batch_target(instance_id: str) -> str:
    """
    Return what is signed as method and path of a POST of a batch.

    It has no prefix that a proxy in front of the instance may add or remove.
    """
    return f"POST /instances/{instance_id}/events"


def count_target(instance_id: str, account: str) -> str:
    """Return the same for the question how many subscribers an account has at an instance."""
    return question_target(instance_id, f"/accounts/{quote(account, safe='')}")


def question_target(instance_id: str, path: str) -> str:
    """Return the same for any question; `path` is what follows the id, with the query."""
    return f"GET /instances/{instance_id}{path}"


def _content(target: str, body: bytes) -> bytes:
    return b"%b\n%b" % (target.encode(), body)


class PeerSigner:
    """
    Signs requests of this instance to other instances, and verifies theirs.

    The secret is the operator's, or else the one that the store keeps for all its instances.  Until
    it is known, no request is genuine.
    """

    def __init__(self, secret: bytes | None = None, secrets: ISecrets | None = None) -> None:
        """
        Args:
            secret: The operator's secret; None takes the one of `secrets`.
            secrets: Keeps the secret where the operator gave none.

        Raises ValueError for a secret that is too short.
        """
        self.is_given = secret is not None  # by the operator
        self._signer = Signer(secret) if secret is not None else None
        self._secrets = secrets

    def learn(self) -> Deferred[None]:
        """
        Ask the store for the secret, also if it is known: a new database has a new one.

        Returns:
            A Deferred that fires when the secret is known.  Fails with `Unavailable`.
        """
        if self.is_given or self._secrets is None:
            return succeed(None)
        return self._secrets.secret().addCallback(self._set_secret)

    def _set_secret(self, secret: bytes) -> None:
        self._signer = Signer(secret)

    def sign(self, target: str, now: float, body: bytes) -> Deferred[dict[bytes, bytes]]:
        """
        Sign a request to another instance.

        Args:
            target: The method and the path, see `batch_target`.
            now: Seconds since 1970.
            body: The body of the request.

        Returns:
            A Deferred of the headers, which has fired if the secret is known.  Fails with
            `Unavailable`.
        """
        known = self.learn() if self._signer is None else succeed(None)
        return known.addCallback(lambda _: self._sign(target, now, body))

    def _sign(self, target: str, now: float, body: bytes) -> dict[bytes, bytes]:
        if self._signer is None:
            return {}  # the other instance will refuse it
        return self._signer.sign(uuid4().hex.encode("ascii"), now, _content(target, body))

    def check(self, target: str, headers: Mapping[bytes, bytes], body: bytes, now: float) -> None:
        """Raise `NotAllowed` if this request is not genuine and fresh.  For `target` see `sign`."""
        if self._signer is None or not self._signer.verify(headers, _content(target, body), now):
            raise NotAllowed("this is not signed with the secret of the instances")
