"""What handshakes are done with: contexts, replaced as a whole when anything changes."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from OpenSSL import SSL, crypto

from tofmipd.auth.certificates import certificates_in
from tofmipd.content import memory_file
from tofmipd.settings import EncryptionSettings
from tofmipd.tls.files import is_open_to_all, paths_of
from tofmipd.tls.files import read as read_file
from tofmipd.tls.material import Key, Material, Pair, TlsError, load

log = logging.getLogger(__name__)

# A context has its own keys for session tickets: a new one is what makes old tickets useless.
_TICKET_SECONDS = 3600
# Not in older versions of the library, though what it calls knows it.
_NO_RENEGOTIATION = getattr(SSL, "OP_NO_RENEGOTIATION", 1 << 30)
# A connection whose other end has gone, or that is interrupted, can still send: SMTP says itself
# where a message ends, so that it takes no goodbye of TLS to know that all of it has come.
_IGNORE_UNEXPECTED_EOF = getattr(SSL, "OP_IGNORE_UNEXPECTED_EOF", 1 << 7)


class Contexts:
    """The contexts that are in force.  Safe for threads: one that is in use is never changed."""

    def __init__(self, settings: EncryptionSettings, *, expired: bool = False) -> None:
        """``expired``: take also what would be refused for its date.  Raises TlsError."""
        self._settings = settings
        self._lock = threading.Lock()
        self._made = 0.0
        # Files that were opened first are not to replace those that were opened after them.
        self._reloading = threading.Lock()
        try:
            paths = paths_of(settings)
        except OSError as error:
            raise TlsError(f"{settings.sni_directory}: cannot be read: {error.strerror}") from None
        self._take(self._load(paths, read_file, expired=expired))
        for _, key in settings.pairs:
            if is_open_to_all(key):
                log.warning("%s: everybody on this machine can read the key (chmod 600)", key)

    def reload(self, paths: Sequence[str], read: Callable[[str], bytes] = read_file) -> None:
        """Read all files again; bad ones leave everything as it is, and the log says so.

        ``paths`` are those of ``paths_of``, which may have been opened by another process.
        """
        with self._reloading:
            try:
                material = self._load(paths, read)
                with self._lock:
                    self._take(material)
            except TlsError as error:
                log.error("certificates unchanged in memory: %s", error)
                return
        log.info("certificates read again: %s", ", ".join(p.path for p in material.named))

    def complain(self, error: OSError) -> None:
        """The files cannot even be listed."""
        log.error("certificates unchanged in memory: %s: %s", error.filename, error.strerror)

    def current(self) -> SSL.Context:
        """The context for a new connection."""
        with self._lock:
            if time.monotonic() - self._made > _TICKET_SECONDS:
                try:
                    self._take(self._material)
                except TlsError as error:
                    log.error("certificates unchanged in memory: %s", error)
                    self._made = time.monotonic()
            return self._context

    def _load(
        self, paths: Sequence[str], read: Callable[[str], bytes], *, expired: bool = False
    ) -> Material:
        now = datetime.datetime.now(datetime.UTC)
        material = load(self._settings, paths, read, None if expired else now)
        for warning in material.warnings(now):
            log.warning("%s", warning)
        return material

    def _take(self, material: Material) -> None:
        """Raises TlsError."""
        context = self._context_of(material.named, material.authorities)
        by_name = self._by_name(material)
        if by_name:
            context.set_tlsext_servername_callback(lambda c: _choose(c, by_name))
        self._material, self._context, self._made = material, context, time.monotonic()

    def _by_name(self, material: Material) -> dict[str, SSL.Context]:
        """For each name of ``more`` one with its first certificate of each kind of key.

        Raises TlsError.
        """
        chosen: dict[str, dict[type[Key], Pair]] = {}
        for pair in material.more:
            for name in pair.names:
                chosen.setdefault(name, {}).setdefault(type(pair.key), pair)
        # Many names share a certificate, and so a context.
        contexts: dict[tuple[str, ...], SSL.Context] = {}
        by_name = {}
        for name, kinds in chosen.items():
            pairs = tuple(kinds.values())
            paths = tuple(pair.path for pair in pairs)
            if paths not in contexts:
                contexts[paths] = self._context_of(pairs, material.authorities)
            by_name[name] = contexts[paths]
        return by_name

    def _context_of(self, pairs: tuple[Pair, ...], authorities: bytes) -> SSL.Context:
        """One for the certificates of one name.  Raises TlsError."""
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(
            SSL.OP_NO_COMPRESSION
            | SSL.OP_CIPHER_SERVER_PREFERENCE
            | _NO_RENEGOTIATION
            | _IGNORE_UNEXPECTED_EOF
        )
        # An idle connection keeps no buffers; tickets are the client's to keep, not ours.
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_session_id(b"tofmipd")
        if self._settings.ciphers:
            try:
                context.set_cipher_list(self._settings.ciphers.encode())
            except (SSL.Error, UnicodeEncodeError):
                text = f"--ciphers {self._settings.ciphers}: there is no such cipher"
                raise TlsError(f"{text}; see 'openssl ciphers'") from None
        for pair in pairs:
            try:
                with _as_path(pair.chain) as path:
                    context.use_certificate_chain_file(path)
                _use_key(context, pair.key)
                context.check_privatekey()
            except SSL.Error as error:
                raise TlsError(f"{pair.path}: cannot be used: {reason_of(error)}") from None
            except OSError as error:
                # Such as no descriptor for a file in memory.
                raise TlsError(f"{pair.path}: cannot be used: {error.strerror}") from None
        if authorities:
            _ask_for_certificates(context, authorities)
        return context


def _use_key(context: SSL.Context, key: Key) -> None:
    """Older versions of the library take only an object of their own."""
    try:
        context.use_privatekey(key)
    except TypeError:
        context.use_privatekey(crypto.PKey.from_cryptography_key(key))


def _ask_for_certificates(context: SSL.Context, authorities: bytes) -> None:
    """A client may show one; if it does, it must be good."""
    store = context.get_cert_store()
    names = []
    for certificate in certificates_in(authorities):
        known = crypto.X509.from_cryptography(certificate)
        names.append(known.get_subject())
        if store is not None:
            store.add_cert(known)
    context.set_client_ca_list(names)
    context.set_verify(SSL.VERIFY_PEER)


def _choose(connection: SSL.Connection, by_name: dict[str, SSL.Context]) -> None:
    """Take the certificate for the name that the client asks for (RFC 6066 section 3)."""
    name = (connection.get_servername() or b"").decode("ascii", "replace").lower().rstrip(".")
    context = by_name.get(name) or by_name.get("*." + name.partition(".")[2])
    if context is not None:
        connection.set_context(context)


@contextlib.contextmanager
def _as_path(octets: bytes) -> Iterator[str]:
    """The octets, which are no secret, as a file that the library can open by name."""
    if os.path.isdir("/proc/self/fd"):
        with memory_file(octets) as memory:
            yield f"/proc/self/fd/{memory.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(octets)
        file.flush()
        yield file.name


def reason_of(error: SSL.Error) -> str:
    """What the library says was the matter, in its own words."""
    try:
        return (
            "; ".join(dict.fromkeys(reason for _, _, reason in error.args[0])) or "no reason given"
        )
    except (IndexError, TypeError, ValueError):
        return str(error) or "no reason given"


def library_version() -> str:
    """Of the OpenSSL that is in use here."""
    return SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode("ascii", "replace")
