"""Client certificates as logins: whom they name, and whether an authority vouches for that."""

from __future__ import annotations

import logging
import re
import threading

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID
from OpenSSL import crypto

from tofmipd.auth.credentials import NOWHERE, Certificate, Credentials, Origin, Verdict
from tofmipd.auth.files import Opener, SourceFileError, status_of, without_waiting

log = logging.getLogger(__name__)

_LIMIT_OCTETS = 4 << 20
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\s*", re.DOTALL)

# What the library raises for a certificate that it cannot make sense of.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class AuthorityError(SourceFileError):
    """A file of authorities cannot be used; ``str()`` names it and says why."""


class Certificates:
    """Judges certificates by the authorities in a PEM file, which is read again when it changes.

    The connection has been verified by the same file already, in another process: what is
    checked here is that nobody can log in as somebody whose certificate nobody has signed.
    """

    name = "certificate"
    mechanisms = frozenset({"EXTERNAL"})

    def __init__(self, path: str, opener: Opener = without_waiting) -> None:
        self._path = path
        self._opener = opener
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._store = _store(read_authorities(path, opener))

    def check(self, credentials: Credentials, origin: Origin = NOWHERE) -> Verdict:
        if not isinstance(credentials, Certificate):
            return Verdict.REJECTED
        try:
            certificate = crypto.load_certificate(crypto.FILETYPE_ASN1, credentials.der)
            crypto.X509StoreContext(self._current(), certificate).verify_certificate()
            names = names_of(certificate.to_cryptography())
        except crypto.X509StoreContextError as error:
            log.warning("the certificate of %r is not valid: %s", credentials.user, error)
            return Verdict.REJECTED
        except (crypto.Error, *UNREADABLE) as error:
            log.warning("the certificate of %r cannot be read: %s", credentials.user, error)
            return Verdict.REJECTED
        return Verdict.ACCEPTED if credentials.user in names else Verdict.REJECTED

    def _look(self) -> tuple[int, ...] | None:
        try:
            status = status_of(self._path, self._opener)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _current(self) -> crypto.X509Store:
        stamp = self._look()
        with self._lock:
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._store = _store(read_authorities(self._path, self._opener))
                    log.info("authorities %s read again", self._path)
                except AuthorityError as error:
                    log.error("authorities unchanged in memory: %s", error)
            return self._store


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Whom a certificate names, in lower case: its common name, then its mail addresses."""
    found: list[str] = []
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        found.append(str(attribute.value))
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found += extension.value.get_values_for_type(x509.RFC822Name)
    except (x509.ExtensionNotFound, *UNREADABLE):
        pass
    return tuple(dict.fromkeys(name.lower() for name in found if name))


def read_authorities(path: str, opener: Opener = without_waiting) -> bytes:
    """The PEM text of a file of certificates.  Raises AuthorityError."""
    try:
        with open(path, "rb", opener=opener) as file:
            text = file.read(_LIMIT_OCTETS)
    except OSError as error:
        raise AuthorityError(f"{path}: cannot be read: {error.strerror}") from None
    authorities_in(path, text)
    return text


def authorities_in(path: str, text: bytes) -> list[x509.Certificate]:
    """All certificates of the text of a file, at least one.  Raises AuthorityError."""
    try:
        found = certificates_in(text)
        for certificate in found:
            crypto.X509.from_cryptography(certificate)
    except (crypto.Error, *UNREADABLE) as error:
        raise AuthorityError(f"{path}: not a PEM file of certificates: {error}") from None
    if not found:
        raise AuthorityError(f"{path}: no certificate in it; it must be PEM")
    return found


def pem_blocks(text: bytes) -> list[bytes]:
    """The certificates of a text, each as PEM, without what stands around them."""
    return _PEM.findall(text)


def certificates_in(text: bytes) -> list[x509.Certificate]:
    """Raises one of UNREADABLE."""
    return [x509.load_pem_x509_certificate(block) for block in pem_blocks(text)]


def _store(text: bytes) -> crypto.X509Store:
    store = crypto.X509Store()
    for certificate in certificates_in(text):
        store.add_cert(crypto.X509.from_cryptography(certificate))
    return store
