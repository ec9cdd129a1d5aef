"""
Public keys in the forms that issuers publish them in: JWK (RFC 7517) and PEM (RFC 7468).

This is the only module with joserfc.  It makes typed keys of JWKs, and verifies a signature with a
key that was chosen before.  Its parser of tokens is not used: what a token is like is judged once,
in `claims`, and no second reader can understand it differently.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from asyncplumber.auth.credentials import decode_base64url
from asyncplumber.auth.strict_json import parse_object
from asyncplumber.auth.tokens.claims import MAX_KID_LENGTH
from asyncplumber.auth.tokens.signing_keys import ALGORITHMS, Key, KeySet, Secret

RSA_BITS = range(2048, 4097)  # of a modulus: shorter ones are weak, longer ones slow
RSA_EXPONENT = 65537
MAX_KEYS = 50  # in one set
LARGEST_SET = 64 * 1024  # bytes

AnyKey = RSAKey | ECKey | OKPKey

_PEM = "-----BEGIN "
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
# The type of a key and its curve decide what it can do; nothing else does.
_TYPES: Mapping[tuple[object, object], tuple[str, type[AnyKey]]] = {
    ("RSA", None): ("RS256", RSAKey),
    ("EC", "P-256"): ("ES256", ECKey),
    ("OKP", "Ed25519"): ("Ed25519", OKPKey),
}


class PublicKey:
    """A public key, and the one algorithm that it verifies by."""

    __slots__ = ("_algorithm", "_key", "alg", "kid")

    def __init__(self, key: AnyKey, alg: str, kid: str | None) -> None:
        """
        Args:
            key: A key of the type that the algorithm needs.
            alg: The algorithm.
            kid: Its id; None if it has none.

        Raises ValueError for a key that is too weak.
        """
        if isinstance(key, RSAKey):
            numbers = key.public_key.public_numbers()
            if numbers.n.bit_length() not in RSA_BITS or numbers.e != RSA_EXPONENT:
                raise ValueError(
                    f"an RSA key has {RSA_BITS[0]} to {RSA_BITS[-1]} bits and the exponent "
                    f"{RSA_EXPONENT}"
                )
        # A registry without a list of algorithms would take the library's own list.
        self._algorithm = JWSRegistry(algorithms=[alg]).get_alg(alg)
        try:
            self._algorithm.check_key(key)
        except JoseError as error:
            raise ValueError(f"this is no key for {alg}: {error}") from None
        self._key = key
        self.alg = alg
        self.kid = kid

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """See `Key`."""
        return bool(self._algorithm.verify(signed, signature, self._key))


def load_jwk(member: Mapping[str, Any]) -> Key:
    """
    Return the key that a public JWK stands for.

    Raises:
        ValueError: It is secret, malformed, too weak, or no key for the algorithms that are
            accepted.
    """
    kind = member.get("kty")
    curve = member.get("crv") if kind != "RSA" else None
    if kind == "oct":
        raise ValueError("a secret is no public key")
    if (
        not isinstance(kind, str)
        or not isinstance(curve, str | None)
        or (kind, curve) not in _TYPES
    ):
        raise ValueError("a key is of RSA, of EC with the curve P-256, or of OKP with Ed25519")
    alg, cls = _TYPES[kind, curve]
    kid = _checked(member, alg)
    if not _PRIVATE.isdisjoint(member):
        raise ValueError("this is a private key; give only its public part")
    try:
        # Only what makes the key: the library has opinions on other members.
        value = {name: member[name] for name in _NAMES[kind] if name in member}
        return PublicKey(_import(cls, value), alg, kid)
    except ValueError:
        raise
    except Exception as error:
        # It raises errors of many kinds for values of the wrong type.
        raise ValueError(f"the key is malformed ({type(error).__name__})") from None


def _import(cls: type[AnyKey], value: Any) -> AnyKey:
    with warnings.catch_warnings():
        # About short keys, which are refused a moment later.
        warnings.simplefilter("ignore", SecurityWarning)
        return cls.import_key(value)


_NAMES = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}


def _checked(member: Mapping[str, Any], alg: str) -> str | None:
    """Return the id of a JWK, after a look at what it is for."""
    given = member.get("alg", alg)
    if not isinstance(given, str) or ALGORITHMS.get(given) != alg:
        raise ValueError(f"a key of this type is for {alg}, and not for {given!r}")
    if member.get("use", "sig") != "sig":
        raise ValueError("this key is not for signatures")
    operations = member.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("this key is not for verifying")
    kid = member.get("kid")
    if "kid" in member and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID_LENGTH):
        raise ValueError(f"a kid is 1 to {MAX_KID_LENGTH} characters")
    return kid


def _load_secret(member: Mapping[str, Any]) -> Key:
    """Return the secret of a JWK (RFC 7518, 6.4)."""
    kid = _checked(member, Secret.alg)
    encoded = member.get("k")
    if not isinstance(encoded, str):
        raise ValueError("a secret has a member k")
    return Secret(decode_base64url(encoded.encode()), kid)


def load_keys(data: bytes) -> KeySet:
    """
    Return the keys of a file: a JWK set, one JWK, or a public key in PEM.

    In a file that only we can read, a set may have secrets as well.

    Raises:
        ValueError: One of them cannot be used.  The sentence has no secret in it.
    """
    if len(data) > LARGEST_SET:
        raise ValueError(f"it has more than {LARGEST_SET} bytes")
    if data.lstrip().startswith(_PEM.encode()):
        return KeySet([_load_pem(data)])
    value = parse_object(data)
    members = value.get("keys", [value])
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise ValueError("a JWK set is an object with a list of keys")
    if len(members) > MAX_KEYS:
        raise ValueError(f"a set has at most {MAX_KEYS} keys")
    keys = []
    for number, member in enumerate(members, 1):
        try:
            keys.append(_load_secret(member) if member.get("kty") == "oct" else load_jwk(member))
        except ValueError as error:
            raise ValueError(f"key {number}: {error}") from None
    return KeySet(keys)


def _load_pem(data: bytes) -> Key:
    text = data.decode("ascii", "replace").strip()
    if not text.startswith(f"{_PEM}PUBLIC KEY-----"):
        raise ValueError("a key in PEM is a public key, which begins with BEGIN PUBLIC KEY")
    for alg, cls in _TYPES.values():
        try:
            return PublicKey(_import(cls, text), alg, None)
        except (ValueError, TypeError, JoseError):
            continue  # a key of another type
    raise ValueError("this is no public key of RSA, P-256 or Ed25519, or too weak a one")
