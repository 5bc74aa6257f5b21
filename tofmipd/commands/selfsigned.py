"""Self-signed certificates, for servers whose clients can be told to trust one."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tofmipd.commands.newfiles import write_if_missing
from tofmipd.errors import CONFIG, UNAVAILABLE, USAGE, Fatal

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as missing:
    reason = f"certificates need the Python package cryptography: {missing}"
    raise Fatal(UNAVAILABLE, reason) from None

# Apple's clients take no server certificate for longer than 825 days, whoever vouches for it.
DAYS = 820
# What a name may be on a certificate: labels of letters, digits and hyphens (RFC 5280).
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.A)
_COMMON_NAME_LIMIT = 64

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Shown:
    """What a person sees of a certificate; the last day is in UTC."""

    names: tuple[str, ...]
    last_day: datetime.date
    fingerprint: str
    self_signed: bool


def new_key() -> str:
    """An ECDSA key on P-256, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def names_for(names: Sequence[str]) -> tuple[str, ...]:
    """The names, and those that the machine has for itself; each once.  Raises Fatal."""
    all_names = [name.lower().rstrip(".") for name in names] + ["localhost", "127.0.0.1", "::1"]
    for name in all_names:
        if not _is_address(name) and not _NAME.fullmatch(name):
            raise Fatal(USAGE, f"{name!r} is not the name of a host, such as mail.example.org")
    return tuple(dict.fromkeys(all_names))


def new_certificate(key_text: str, names: Sequence[str], days: int = DAYS) -> str:
    """A certificate for these names from now on, signed by its own key, PEM.  Raises Fatal."""
    key = _key(key_text)
    common = next((name for name in names if len(name) <= _COMMON_NAME_LIMIT), "tofmipd")
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    now = datetime.datetime.now(datetime.UTC)
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.SubjectAlternativeName([_general(name) for name in names]), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (identifier, False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
    ]
    # A client's clock may be slow.
    begin = now - datetime.timedelta(hours=1)
    builder = x509.CertificateBuilder(
        who, who, public, x509.random_serial_number(), begin, begin + datetime.timedelta(days=days)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def make_pair(
    cert: str, key: str, names: Sequence[str], days: int = DAYS, *, cert_mode: int = 0o600
) -> list[tuple[str, bool]]:
    """Make key and certificate where they are missing; each path, and whether it is new.

    A key that is there gets a certificate.  Raises Fatal.
    """
    if os.path.lexists(cert):
        if not os.path.lexists(key):
            raise Fatal(CONFIG, f"{cert} is there, but not its key {key}; move it away")
        return [(key, False), (cert, False)]
    names = names_for(names)
    made = write_if_missing(key, new_key())
    text = new_certificate(read_text(key), names, days)
    return [(key, made), (cert, write_if_missing(cert, text, cert_mode))]


def read_text(path: str) -> str:
    """The content of a PEM file.  Raises Fatal."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise Fatal(CONFIG, f"{path}: {error.strerror}") from None


def shown(path: str) -> Shown:
    """What is to be seen of the first certificate of a file.  Raises Fatal."""
    try:
        certificate = x509.load_pem_x509_certificate(read_text(path).encode())
    except ValueError:
        raise Fatal(CONFIG, f"{path}: no certificate in PEM form") from None
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest().upper()
    return Shown(
        _names_of(certificate),
        _end_of(certificate).date(),
        ":".join(digest[place : place + 2] for place in range(0, len(digest), 2)),
        certificate.subject == certificate.issuer,
    )


def _key(text: str) -> PrivateKey:
    """Raises Fatal."""
    try:
        key = load_pem_private_key(text.encode(), None)
    except (ValueError, TypeError):
        raise Fatal(CONFIG, "the key is none in PEM form, or it has a passphrase") from None
    if not isinstance(key, PrivateKey):
        raise Fatal(CONFIG, "the key is neither of the kind ECDSA nor RSA")
    return key


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    hosts = found.value.get_values_for_type(x509.DNSName)
    return (*hosts, *map(str, found.value.get_values_for_type(x509.IPAddress)))


def _end_of(certificate: x509.Certificate) -> datetime.datetime:
    """Old versions of the library have another name for it."""
    if hasattr(certificate, "not_valid_after_utc"):
        return certificate.not_valid_after_utc
    return certificate.not_valid_after


def _general(name: str) -> x509.GeneralName:
    if _is_address(name):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
