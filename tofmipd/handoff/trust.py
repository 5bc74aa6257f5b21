"""Whether who answers is the next hop: TLS contexts, and what is wrong with certificates."""

from __future__ import annotations

import functools
import hashlib
import os
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.nexthop import NextHop
from tofmipd.smtp.reply import Reply, printable

# What OpenSSL's verification says (openssl-verification-options(1), X509_STORE_CTX_get_error(3)).
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
_OTHER_NAME = frozenset({62, 64})
_DER = 2


class NotTrusted(ConnectionError):
    """Whoever answered is not known to be the next hop; ``str()`` says why."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a certificate says of itself; nothing of it need be true.

    ``names`` are hosts and addresses.  Times are in seconds since the epoch.
    """

    names: tuple[str, ...]
    issuer: str
    begins: float
    ends: float
    fingerprint: str

    @property
    def shown_names(self) -> str:
        return ", ".join(self.names) or "nobody"


def context_for(hop: NextHop) -> ssl.SSLContext:
    """Its sockets raise NotTrusted in the handshake with anybody else.  Raises HandOffFailed."""
    try:
        return _made(hop, tuple(map(_stamp, _files(hop))))
    except OSError as error:
        files = hop.cafile_setting
        if files == "SMTPSSL_CAFILE":
            files = "SMTPSSL_CAFILE, _CERTFILE or _KEYFILE"
        text = f"{files} cannot be loaded: {error.strerror or error}"
        raise HandOffFailed(Reply(451, "3.5", (printable(text),))) from error


def _files(hop: NextHop) -> Iterator[str]:
    """All that a context is made of."""
    if hop.certfile:
        yield hop.certfile
        yield hop.keyfile or hop.certfile
    if hop.verified:
        system = ssl.get_default_verify_paths()
        paths = [hop.cafile] if hop.cafile else [system.cafile, system.capath]
        yield from filter(None, paths)


def _stamp(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


# The authorities of a system take 50 ms to load: that is not for each connection.
@functools.lru_cache(maxsize=4)
def _made(hop: NextHop, stamps: tuple[tuple[int, ...], ...]) -> ssl.SSLContext:
    """Raises OSError."""
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.hop = hop
    if not hop.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif hop.cafile:
        context.load_verify_locations(hop.cafile)
    else:
        context.load_default_certs()
    if hop.certfile:
        # With no password the library would ask for one at the terminal.
        context.load_cert_chain(hop.certfile, hop.keyfile or None, password="")
    return context


class _Socket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        """Raises NotTrusted, OSError."""
        assert isinstance(self.context, _Context)
        hop = self.context.hop
        try:
            super().do_handshake(block)
        except ssl.SSLCertVerificationError as error:
            raise NotTrusted(_complaint(hop, error, certificate_of(self))) from error
        if hop.fingerprint:
            found = fingerprint_of(self.getpeercert(binary_form=True) or b"")
            if found != hop.fingerprint:
                raise NotTrusted(f"fingerprint of {hop.host} is {found}, not {hop.fingerprint}")


class _Context(ssl.SSLContext):
    sslsocket_class = _Socket
    hop: NextHop


def fingerprint_of(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def _complaint(
    hop: NextHop, error: ssl.SSLCertVerificationError, certificate: PeerCertificate | None
) -> str:
    """What is wrong with a certificate, for whoever has to do something about it."""
    subject = f"certificate of {hop.host}"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return f"{subject} is signed by an unknown authority ({hop.cafile_setting})"
    if certificate is not None:
        if error.verify_code in _OTHER_NAME:
            return f"{subject} is for {certificate.shown_names}"
        if error.verify_code == _EXPIRED and certificate.ends < time.time():
            return f"{subject} has expired on {date_of(certificate.ends)}"
        if error.verify_code == _NOT_YET_VALID and certificate.begins > time.time():
            return f"{subject} is not valid before {date_of(certificate.begins)}"
    return f"{subject} is not accepted: {error.verify_message}"


def date_of(seconds: float) -> str:
    """In UTC, as certificates have it."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def certificate_of(sock: ssl.SSLSocket) -> PeerCertificate | None:
    """What the peer has shown, verified or not, as far as the library lets it be seen.

    After a failed handshake, and for a certificate that was not to be verified, Python has no
    public way to what it says.  It is for people to read: nothing may depend on it.
    """
    try:
        leaf = sock._sslobj.get_unverified_chain()[0]  # type: ignore[attr-defined]
        told, der = leaf.get_info(), leaf.public_bytes(_DER)
        return PeerCertificate(
            tuple(_names(told)),
            _one_line(told.get("issuer", ())),
            ssl.cert_time_to_seconds(told["notBefore"]),
            ssl.cert_time_to_seconds(told["notAfter"]),
            fingerprint_of(der),
        )
    except (AttributeError, LookupError, TypeError, ValueError, ssl.SSLError):
        return None


def _names(told: dict[str, Any]) -> Iterable[str]:
    """The hosts that a certificate is for (RFC 6125 section 6.4), else its common name."""
    found = [name for kind, name in told.get("subjectAltName", ()) if kind in _HOST_KINDS]
    return found or [
        value for part in told.get("subject", ()) for name, value in part if name == "commonName"
    ]


_HOST_KINDS = frozenset({"DNS", "IP Address"})


def _one_line(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A distinguished name."""
    return ", ".join(f"{key}={value}" for part in name for key, value in part)
