"""Certificates and keys as they are in their files, checked before anybody relies on them."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from tofmipd.auth.certificates import (
    UNREADABLE,
    AuthorityError,
    authorities_in,
    certificates_in,
    pem_blocks,
)
from tofmipd.settings import EncryptionSettings
from tofmipd.tls.files import pairs_among

_KEY = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL
)
_SOON = datetime.timedelta(days=10)


# What TLS 1.2 and 1.3 have certificates for.
Key = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


class TlsError(Exception):
    """Certificates or keys cannot be used; ``str()`` says which and what to do."""


@dataclass(frozen=True)
class Pair:
    """A chain as PEM, the server's own certificate first, and its key.

    ``names`` are the DNS names of the certificate in lower case, some as ``*.example.org``.
    """

    path: str
    chain: bytes
    key: Key = field(repr=False)
    names: tuple[str, ...]
    ends: datetime.datetime


@dataclass(frozen=True)
class Material:
    """All that contexts are made of.  ``named`` are of different kinds of key, for all names that
    none of ``more`` has."""

    named: tuple[Pair, ...]
    more: tuple[Pair, ...] = ()
    authorities: bytes = b""

    def warnings(self, now: datetime.datetime) -> list[str]:
        """What should be said of certificates that are good for now."""
        return [
            f"{pair.path}: the certificate {'expires' if pair.ends > now else 'expired'}"
            f" on {pair.ends:%Y-%m-%d}; renew it"
            for pair in (*self.named, *self.more)
            if pair.ends - now < _SOON
        ]


def load(
    settings: EncryptionSettings,
    paths: Sequence[str],
    read: Callable[[str], bytes],
    now: datetime.datetime | None,
) -> Material:
    """Read and check all.  ``paths`` are those of ``paths_of``; ``now`` has a time zone, and is
    None where certificates that have expired are better than none.

    Raises TlsError.
    """
    return Material(
        tuple(_pair(chain, key, read, now) for chain, key in settings.pairs),
        tuple(_pair(chain, key, read, now) for chain, key in pairs_among(settings, paths)),
        _authorities(settings.client_ca, read) if settings.client_ca else b"",
    )


def _authorities(path: str, read: Callable[[str], bytes]) -> bytes:
    text = _read(path, read)
    try:
        authorities_in(path, text)
    except AuthorityError as error:
        raise TlsError(str(error)) from None
    return text


def _pair(
    chain_path: str, key_path: str, read: Callable[[str], bytes], now: datetime.datetime | None
) -> Pair:
    chain = b"".join(pem_blocks(_read(chain_path, read)))
    certificate, public = _first_certificate(chain_path, chain)
    key = _key(key_path, _read(key_path, read))
    if key.public_key().public_bytes(*_PUBLIC) != public:
        raise TlsError(
            f"{key_path} is not the key of the first certificate in {chain_path}; the server's own"
            " must come first"
        )
    begins, ends = _validity(certificate)
    if now is not None and now > ends:
        text = f"{chain_path}: the certificate expired on {ends:%Y-%m-%d %H:%M} UTC; renew it"
        raise TlsError(text)
    if now is not None and now < begins:
        text = f"{chain_path}: the certificate begins on {begins:%Y-%m-%d %H:%M} UTC"
        raise TlsError(f"{text}; is the clock right?")
    return Pair(chain_path, chain, key, _names(certificate), ends)


_PUBLIC = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read(path: str, read: Callable[[str], bytes]) -> bytes:
    try:
        return read(path)
    except OSError as error:
        raise TlsError(f"{path}: cannot be read: {error.strerror}") from None


def _first_certificate(path: str, chain: bytes) -> tuple[x509.Certificate, bytes]:
    """The certificate and its public key."""
    if not chain:
        raise TlsError(f"{path}: no certificate in it; it must be PEM (BEGIN CERTIFICATE)")
    try:
        first = certificates_in(chain)[0]
        return first, first.public_key().public_bytes(*_PUBLIC)
    except UNREADABLE as error:
        raise TlsError(f"{path}: a certificate in it is broken: {error}") from None


def _key(path: str, text: bytes) -> Key:
    match = _KEY.search(text)
    if match is None:
        raise TlsError(f"{path}: no key in it; it must be PEM (BEGIN PRIVATE KEY)")
    try:
        key = serialization.load_pem_private_key(match[0] + b"\n", None)
    except TypeError:
        raise TlsError(
            f"{path}: the key is encrypted and nobody is there to type its passphrase; take it off"
            f" (openssl pkey -in {path} -out NEW)"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TlsError(f"{path}: the key cannot be read: {error}") from None
    if not isinstance(key, Key):
        raise TlsError(f"{path}: not a kind of key for TLS; make an ECDSA or RSA key")
    return key


def _validity(certificate: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    """Older versions of the library know only times without a zone, which are UTC."""
    if hasattr(certificate, "not_valid_before_utc"):
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    utc = datetime.UTC
    return (
        certificate.not_valid_before.replace(tzinfo=utc),
        certificate.not_valid_after.replace(tzinfo=utc),
    )


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    """RFC 6125: the alternative names, and the common name only if there are none."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, *UNREADABLE):
        names = []
    if not names:
        attributes = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names = [str(attribute.value) for attribute in attributes]
    return tuple(name.lower().rstrip(".") for name in names)
