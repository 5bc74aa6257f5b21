"""Authorities and certificates for tests; each kind of key is made once and then shared."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOST_NAME = "mail.example.org"
# From when until when, in days from now.
GOOD, OVER, NOT_YET = (-1, 90), (-20, -1), (1, 20)
BOTH_PURPOSES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_MAKERS = {
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "rsa1024": lambda: rsa.generate_private_key(65537, 1024),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "dsa": lambda: dsa.generate_private_key(2048),
}


def key_of(kind: str, number: int = 0) -> Any:
    """A key of one of the kinds above; another number, another key."""
    return _made(kind, number)


@functools.cache
def _made(kind: str, number: int) -> Any:
    return _MAKERS[kind]()


def key_pem(key: Any, passphrase: bytes = b"", *, traditional: bool = False) -> bytes:
    """The key as PEM, encrypted if there is a passphrase."""
    form = serialization.PrivateFormat
    return key.private_bytes(
        serialization.Encoding.PEM,
        form.TraditionalOpenSSL if traditional else form.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


class Files(NamedTuple):
    """Where a chain and its key are."""

    chain: Path
    key: Path

    @property
    def options(self) -> tuple[str, str, str, str]:
        return ("--ssl-cert", str(self.chain), "--ssl-key", str(self.key))


@dataclass(frozen=True)
class Issued:
    """A certificate with its key and the certificates between it and the root."""

    certificate: x509.Certificate
    begins: datetime.datetime
    ends: datetime.datetime
    key: Any = field(repr=False)
    between: tuple[x509.Certificate, ...] = ()

    @property
    def serial(self) -> str:
        """As ``openssl x509 -serial`` shows it."""
        return f"{self.certificate.serial_number:X}"

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def chain(self) -> bytes:
        """As PEM, its own certificate first."""
        return b"".join(map(pem, (self.certificate, *self.between)))

    @property
    def key_pem(self) -> bytes:
        return key_pem(self.key)

    def save(self, directory: Path, name: str = "server") -> Files:
        """Write NAME.pem and NAME.key, each replaced at once as programs for this do."""
        return Files(
            replace(directory / f"{name}.pem", self.chain),
            replace(directory / f"{name}.key", self.key_pem, 0o600),
        )


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def replace(path: Path, octets: bytes, mode: int = 0o644) -> Path:
    """Write a file anew, with another inode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(octets)
    new.chmod(mode)
    new.replace(path)
    return path


class Authority:
    """Signs certificates, with its own key or below another authority."""

    def __init__(
        self,
        name: str = "Test Authority",
        above: Authority | None = None,
        *,
        number: int = 100,
    ) -> None:
        """``number`` is that of its key."""
        self._key = key_of("ecdsa", number)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._above = above
        issuer, signer = (self.name, self._key) if above is None else (above.name, above._key)
        begins, ends = _times((-30, 3650))
        self.certificate = (
            _builder(self.name, issuer, self._key, begins, ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .add_extension(_identifier(self._key), False)
            .sign(signer, hashes.SHA256())
        )
        self.itself = Issued(self.certificate, begins, ends, self._key)

    @property
    def pem(self) -> bytes:
        return pem(self.certificate)

    @property
    def between(self) -> tuple[x509.Certificate, ...]:
        """What has to go with a certificate of this authority."""
        return () if self._above is None else (self.certificate, *self._above.between)

    def save(self, directory: Path, name: str = "ca") -> Path:
        return replace(directory / f"{name}.crt", self.pem)

    def issue(
        self,
        name: str = HOST_NAME,
        *,
        dns: Iterable[str] | None = None,
        mail: Iterable[str] = (),
        days: tuple[float, float] = GOOD,
        kind: str = "ecdsa",
        number: int = 0,
        purposes: Iterable[x509.ObjectIdentifier] = BOTH_PURPOSES,
        extensions: Iterable[x509.ExtensionType] = (),
    ) -> Issued:
        """Sign a certificate that is good from and until so many days from now.

        ``name`` is the common name, "" for none; ``dns`` are the host names, those of a server
        on this machine unless told otherwise.
        """
        key = key_of(kind, number)
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        begins, ends = _times(days)
        builder = _builder(x509.Name(attributes), self.name, key, begins, ends)
        names: list[x509.GeneralName] = [x509.RFC822Name(address) for address in mail]
        if dns is None:
            names += [x509.DNSName(HOST_NAME), x509.DNSName("localhost")]
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        else:
            names += map(x509.DNSName, dns)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), False)
        # By it two authorities of one name are told apart.
        signer = x509.AuthorityKeyIdentifier(_identifier(self._key).digest, None, None)
        builder = builder.add_extension(signer, False)
        for extension in extensions:
            builder = builder.add_extension(extension, False)
        signed = builder.sign(self._key, hashes.SHA256())
        return Issued(signed, begins, ends, key, self.between)


def _identifier(key: Any) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _times(days: tuple[float, float]) -> tuple[datetime.datetime, datetime.datetime]:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return now + datetime.timedelta(days=days[0]), now + datetime.timedelta(days=days[1])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    begins: datetime.datetime,
    ends: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


@functools.cache
def authority() -> Authority:
    """The one that signs most certificates."""
    return Authority()


@functools.cache
def intermediate() -> Authority:
    """One below it."""
    return Authority("Test Intermediate", authority(), number=101)


@functools.cache
def stranger() -> Authority:
    """One that nobody here trusts, though it has the name of the first."""
    return Authority(number=102)


def client_context(
    *trusted: Authority, certificate: Files | None = None, weak: bool = False
) -> ssl.SSLContext:
    """A client's side of TLS that checks the server, by name if it is told one.

    ``weak``: it takes whatever protocol and cipher its library has.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for one in trusted or (authority(),):
        context.load_verify_locations(cadata=one.pem.decode())
    if certificate is not None:
        context.load_cert_chain(certificate.chain, certificate.key)
    if weak:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    return context
