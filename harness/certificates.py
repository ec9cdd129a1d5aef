"""Certificates that the tests sign themselves."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import ssl

_DAY = datetime.timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """Begin a certificate that is valid for a day."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(
            _name(issuer), _name(subject), key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )


def _names(*names: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def certificate() -> ssl.PrivateCertificate:
    """Make a new key and a certificate for ``localhost`` that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("localhost", "localhost", key)
    builder = builder.add_extension(_names("localhost"), critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return ssl.PrivateCertificate.loadPEM(pem + _pem(key))


class Authority:
    """
    A certificate authority.

    Attributes:
        certificate: Its own, as PEM.
    """

    def __init__(self) -> None:
        """Make its key."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder("an authority", "an authority", self._key)
        builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
        signed = builder.sign(self._key, hashes.SHA256())
        self.certificate = signed.public_bytes(serialization.Encoding.PEM)

    def issue(self, *names: str) -> tuple[bytes, bytes]:
        """Make a key and a certificate for servers with these names, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(names[0], "an authority", key)
        builder = builder.add_extension(_names(*names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        signed = builder.sign(self._key, hashes.SHA256())
        return _pem(key), signed.public_bytes(serialization.Encoding.PEM)

    @staticmethod
    def public_key_of(pem: bytes) -> bytes:
        """Return the public key in a certificate, in DER (SubjectPublicKeyInfo)."""
        return (
            x509.load_pem_x509_certificate(pem)
            .public_key()
            .public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
