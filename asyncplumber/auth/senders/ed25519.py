"""Signatures with Ed25519 (RFC 8032)."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def verify_ed25519(public_key: bytes, content: bytes, signature: bytes) -> bool:
    """
    Whether `signature` is that of `content` by the owner of this key.

    Args:
        public_key: Its 32 bytes.
        content: What was signed.
        signature: Any bytes.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except InvalidSignature:
        return False
    return True
