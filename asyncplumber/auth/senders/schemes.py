"""
How the senders of webhooks sign their requests.  Pure.

Nearly all compute an HMAC-SHA256 of the body, and perhaps of a timestamp and an id, and put it into
a header.  They differ in what `Scheme` has as its attributes.  Everything but the body is in the
headers.  So a request that is malformed or too old is refused before its body is read.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import NamedTuple

from asyncplumber.auth.reasons import Reason
from asyncplumber.errors import InvalidSignature
from asyncplumber.wire.fields import Headers

TOLERANCE = 300  # seconds that a timestamp may be away from now, as in Standard Webhooks
MAX_SIGNATURES = 16  # in one header; each costs time, and nobody has that many secrets in use
MAX_PUBLIC_SIGNATURES = 4  # of Ed25519, each of which takes more than 100 µs
MAX_ID_LENGTH = 256  # bytes of an id that is signed
ED25519_KEY_LENGTH = 32  # bytes

_TIMESTAMP = re.compile(rb"[0-9]{1,12}")  # only ASCII digits: int() takes much more
_FIELD = re.compile(r"\{([^{}]*)\}")
_FIELDS = ("body", "timestamp", "id")

#: Whether the last argument is the Ed25519 signature (RFC 8032) by the owner of the first one, a
#: public key, of the second one.
VerifyEd25519 = Callable[[bytes, bytes, bytes], bool]


class Proof(Enum):
    """What the header has."""

    HEX = "hex"  # the HMAC in hexadecimal digits
    BASE64 = "base64"  # the HMAC in base64
    PLAIN = "plain"  # no signature, but the secret itself


@dataclass(frozen=True, slots=True)
class Content:
    """
    What is signed: a text with the fields ``{body}``, ``{timestamp}`` and ``{id}``.

    Attributes:
        parts: Literal text and names of fields, by turns; the first and the last are literals.
    """

    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Content:
        """
        Read such a text.

        Raises:
            ValueError: A field is unknown or there twice, there is no body, or two fields are not
                separated: who has one signed request could move bytes from one to the other.
        """
        parts = tuple(_FIELD.split(text))
        names, between = parts[1::2], parts[2:-1:2]
        if "body" not in names or len(set(names)) != len(names) or set(names) - set(_FIELDS):
            raise ValueError('"signed" has {body} once, and perhaps {timestamp} and {id}')
        literals = "".join(parts[::2])
        if not text.isascii() or set(literals) & set("{}") or not all(between):
            raise ValueError('"signed" is ASCII text with something between its fields')
        return cls(parts)

    def __contains__(self, name: object) -> bool:
        return name in self.parts[1::2]

    def around(self, name: str) -> list[bytes]:
        """Return the literals on both sides of a field, if they are not empty."""
        at = self.parts.index(name, 1)
        return [part.encode("ascii") for part in self.parts[at - 1 : at + 2 : 2] if part]

    def fill(self, values: dict[str, bytes]) -> tuple[bytes, bytes]:
        """Return what is before and what is behind the body."""
        sides = [b"", b""]
        side = 0
        for number, part in enumerate(self.parts):
            if number % 2 == 0:
                sides[side] += part.encode("ascii")
            elif part == "body":
                side = 1
            else:
                sides[side] += values[part]
        return sides[0], sides[1]


class Claim(NamedTuple):
    """
    What the headers of a request say, of which nothing is proven yet.

    Attributes:
        before: What is signed before the body.
        behind: What is signed behind it.
        signatures: Those that are made with a secret.
        public_signatures: Those that are made with a private key.
        id: The id that is signed; None if there is none.
    """

    before: bytes
    behind: bytes
    signatures: tuple[bytes, ...]
    public_signatures: tuple[bytes, ...]
    id: bytes | None


class Keys(NamedTuple):
    """
    What signatures are verified with.

    Attributes:
        secrets: Those that the sender and we know.
        public: Public keys of Ed25519.
    """

    secrets: tuple[bytes, ...] = ()
    public: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        # It may be in a traceback.
        return f"<{len(self.secrets)} secrets, {len(self.public)} public keys>"


@dataclass(frozen=True, slots=True)
class Scheme:
    """
    One way to sign.

    Names of headers are in lower case.

    Attributes:
        header: The header with the signature.  A request without it is not meant.
        proof: What is in it.
        content: What is signed.
        prefix: How a signature begins there, before what `proof` says.
        separator: What is between several items of the header; a space stands for any white
            space.  None: the header is one signature.
        timestamp_header: Where the timestamp is.
        timestamp_prefix: How the item of the header begins that is the timestamp, where it is
            among the signatures.
        id_header: Where the id is that is signed.
        public_prefix: How signatures of Ed25519 begin; None if the scheme has none.
        tolerance: Seconds that the timestamp may be away from now.
    """

    header: bytes
    proof: Proof
    content: Content
    prefix: bytes = b""
    separator: bytes | None = None
    timestamp_header: bytes | None = None
    timestamp_prefix: bytes | None = None
    id_header: bytes | None = None
    public_prefix: bytes | None = None
    tolerance: int = TOLERANCE

    def read(self, headers: Headers, now: float) -> Claim:
        """
        Return what the headers claim.

        Args:
            headers: They have the header of the scheme.
            now: Seconds since 1970.

        Raises:
            InvalidSignature: A header is missing or malformed, or the timestamp is too far away.
        """
        items = self._items(headers[self.header])
        values: dict[str, bytes] = {}
        if "timestamp" in self.content:
            values["timestamp"] = self._timestamp(headers, items, now)
        if "id" in self.content:
            values["id"] = self._id(headers)
        signatures = self._with_prefix(items, self.prefix)
        public = self._with_prefix(items, self.public_prefix)
        if (
            not signatures + public
            or len(signatures) > MAX_SIGNATURES
            or len(public) > MAX_PUBLIC_SIGNATURES
        ):
            raise InvalidSignature(Reason.MALFORMED)
        before, behind = self.content.fill(values)
        return Claim(before, behind, signatures, public, values.get("id"))

    def _items(self, value: bytes) -> list[bytes]:
        if self.separator is None:
            return [value]
        if self.separator == b" ":
            return value.split()
        return [item.strip() for item in value.split(self.separator)]

    @staticmethod
    def _with_prefix(items: Sequence[bytes], prefix: bytes | None) -> tuple[bytes, ...]:
        """Return what is behind the prefix, of the items that begin with it."""
        if prefix is None:
            return ()
        return tuple(item[len(prefix) :] for item in items if item.startswith(prefix))

    def _timestamp(self, headers: Headers, items: Sequence[bytes], now: float) -> bytes:
        """Return the timestamp as it was sent, for that is what is signed."""
        if self.timestamp_header is not None:
            found = headers.get(self.timestamp_header, b"")
        else:
            given = self._with_prefix(items, self.timestamp_prefix)
            found = given[0] if len(given) == 1 else b""
        if not _TIMESTAMP.fullmatch(found):
            raise InvalidSignature(Reason.MALFORMED)
        if abs(now - int(found)) > self.tolerance:
            raise InvalidSignature(Reason.EXPIRED)
        return found

    def _id(self, headers: Headers) -> bytes:
        found = headers.get(self.id_header or b"", b"")
        # An id that contained the text beside it could be cut shorter by somebody who has one
        # signed request, and the rest would move to the next field.
        around = self.content.around("id")
        if not 0 < len(found) <= MAX_ID_LENGTH or any(text in found for text in around):
            raise InvalidSignature(Reason.MALFORMED)
        return found

    def is_genuine(
        self, claim: Claim, body: bytes, keys: Keys, verify_ed25519: VerifyEd25519
    ) -> bool:
        """
        Whether one of the signatures is right.

        All are compared with all secrets, so that the time taken does not tell which one came near.
        """
        content = b"%b%b%b" % (claim.before, body, claim.behind)
        matches = []
        for secret in keys.secrets:
            expected = self._sign(secret, content)
            matches += [
                hmac.compare_digest(expected, self._comparable(given)) for given in claim.signatures
            ]
        for given in claim.public_signatures:
            try:
                signature = b64decode(given, validate=True)
            except BadBase64:
                continue
            matches += [verify_ed25519(key, content, signature) for key in keys.public]
        return any(matches)

    def _sign(self, secret: bytes, content: bytes) -> bytes:
        """Return what a right signature is, in the form of `_comparable`."""
        if self.proof is Proof.PLAIN:
            return sha256(secret).digest()
        digest = hmac.digest(secret, content, "sha256")
        return digest.hex().encode("ascii") if self.proof is Proof.HEX else b64encode(digest)

    def _comparable(self, given: bytes) -> bytes:
        # A comparison takes as long as the texts; a secret's length is nobody's business.
        if self.proof is Proof.PLAIN:
            return sha256(given).digest()
        return given.lower() if self.proof is Proof.HEX else given


def _standard(family: bytes) -> Scheme:
    return Scheme(
        header=family + b"-signature",
        proof=Proof.BASE64,
        content=Content.parse("{id}.{timestamp}.{body}"),
        prefix=b"v1,",
        separator=b" ",
        timestamp_header=family + b"-timestamp",
        id_header=family + b"-id",
        public_prefix=b"v1a,",
    )


#: Standard Webhooks 1.0.0, also with the names of headers that Svix has used before.
STANDARD = (_standard(b"webhook"), _standard(b"svix"))
GITHUB = Scheme(b"x-hub-signature-256", Proof.HEX, Content.parse("{body}"), b"sha256=")
STRIPE = Scheme(
    header=b"stripe-signature",
    proof=Proof.HEX,
    content=Content.parse("{timestamp}.{body}"),
    prefix=b"v1=",
    separator=b",",
    timestamp_prefix=b"t=",
)
SLACK = Scheme(
    header=b"x-slack-signature",
    proof=Proof.HEX,
    content=Content.parse("v0:{timestamp}:{body}"),
    prefix=b"v0=",
    timestamp_header=b"x-slack-request-timestamp",
)

_STANDARD_SECRET = re.compile(rb"(?:v1,)?(whsec_|whpk_)([A-Za-z0-9+/]+={0,2})")


def standard_keys(lines: Sequence[bytes]) -> Keys:
    """
    Return the keys of secrets in the form of Standard Webhooks.

    ``whsec_`` and base64 is a secret, ``whpk_`` and base64 a public key.

    Raises:
        ValueError: One has another form.  The sentence has no secret in it.
    """
    secrets, public = [], []
    for line in lines:
        match = _STANDARD_SECRET.fullmatch(line)
        try:
            key = b64decode(match[2], validate=True) if match is not None else b""
        except BadBase64:
            key = b""
        if match is None or b64encode(key) != match[2]:
            raise ValueError(
                "a secret of Standard Webhooks is whsec_ and base64, a public key whpk_ and base64"
            )
        if match[1] == b"whsec_":
            secrets.append(key)
        elif len(key) == ED25519_KEY_LENGTH:
            public.append(key)
        else:
            raise ValueError(f"a public key of Ed25519 has {ED25519_KEY_LENGTH} bytes")
    return Keys(tuple(secrets), tuple(public))
