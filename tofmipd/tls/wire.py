"""A client's connection once it is encrypted."""

from __future__ import annotations

import contextlib
import dataclasses
import select
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from OpenSSL import SSL, crypto

from tofmipd.auth.certificates import names_of
from tofmipd.smtp.envelope import Encryption
from tofmipd.tls.contexts import Contexts, reason_of
from tofmipd.wire import Wire

# The most that one record holds.
_RECORD_OCTETS = 16384
# RFC 9266 section 4.1.
_EXPORTER_LABEL = b"EXPORTER-Channel-Binding"
_EXPORTER_OCTETS = 32
# One thread computes all handshakes: each thread that has done so keeps some 35 KiB for good (a
# deep stack, random generators, freed memory of its own), and a session lasts.  It never waits for
# a client.
_handshakes = ThreadPoolExecutor(1, "handshakes")


class HandshakeFailed(ConnectionError):
    """The client and this end cannot agree; ``str()`` says why."""


class TlsWire(Wire):
    """See Wire.  The socket never blocks: a record that comes octet by octet would outlast any
    limit that the kernel keeps for single reads."""

    def __init__(self, plain: Wire, contexts: Contexts, deadline: float, *, at_once: bool) -> None:
        """Do the handshake.  Raises HandshakeFailed, TimeoutError."""
        self._take_over(plain)
        self._socket.setblocking(False)
        self._connection = SSL.Connection(contexts.current(), self._socket)
        self._connection.set_accept_state()
        try:
            self._shake_hands(deadline)
        except BaseException:
            # It is the plain wire's again.
            self._socket.setblocking(True)
            raise
        self.encryption = _encryption(self._connection, at_once)

    def _shake_hands(self, deadline: float) -> None:
        while True:
            try:
                _handshakes.submit(self._connection.do_handshake).result()
                return
            except (SSL.WantReadError, SSL.WantWriteError) as error:
                self._wait(error, deadline, "the TLS handshake takes too long")
            except SSL.ZeroReturnError:
                raise HandshakeFailed("TLS handshake: closed by the client") from None
            except SSL.SysCallError as error:
                raise HandshakeFailed(f"TLS handshake: {error.args[-1]}") from None
            except SSL.Error as error:
                raise HandshakeFailed(f"TLS handshake: {reason_of(error)}") from None

    def receive(self, octets: int, deadline: float) -> bytes:
        if time.monotonic() >= deadline:
            raise TimeoutError("the client is too slow")
        while True:
            try:
                return self._connection.recv(min(octets, _RECORD_OCTETS))
            except (SSL.WantReadError, SSL.WantWriteError) as error:
                self._wait(error, deadline, "the client is too slow")
            except SSL.ZeroReturnError:
                return b""
            except SSL.SysCallError as error:
                if error.args[0] == -1:
                    return b""
                raise ConnectionResetError(error.args[-1]) from None
            except SSL.Error as error:
                raise ConnectionAbortedError(f"TLS: {reason_of(error)}") from None

    def _send(self, octets: bytes, deadline: float) -> None:
        view = memoryview(octets)
        while view:
            try:
                view = view[self._connection.send(view[:_RECORD_OCTETS]) :]
            except (SSL.WantReadError, SSL.WantWriteError) as error:
                self._wait(error, deadline, "the client does not read its replies")
            except SSL.ZeroReturnError:
                raise ConnectionResetError("closed by the client") from None
            except SSL.SysCallError as error:
                raise ConnectionResetError(error.args[-1]) from None
            except SSL.Error as error:
                raise ConnectionAbortedError(f"TLS: {reason_of(error)}") from None

    def _wait(self, error: Exception, deadline: float, complaint: str) -> None:
        """Until the socket can do what TLS wants of it; raises TimeoutError when it cannot.

        A record may be on its way in either direction whatever was asked for.
        """
        left = deadline - time.monotonic()
        poll = select.poll()
        wanted = select.POLLIN if isinstance(error, SSL.WantReadError) else select.POLLOUT
        poll.register(self._socket, wanted)
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError(complaint)

    def close(self, *, linger: bool = False) -> None:
        """Say goodbye to TLS, if that can be said without waiting, and close."""
        with contextlib.suppress(SSL.Error):
            self._connection.shutdown()
        super().close(linger=linger)

    def _drain_some(self, octets: int, deadline: float) -> bytes:
        """What still comes is of no interest: it need not be deciphered."""
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError("the client is too slow")
        return self._socket.recv(octets)


def encryptor(contexts: Contexts) -> Callable[[Wire, float, bool], tuple[Wire, Encryption]]:
    """What starts TLS on a connection; see pump.Encrypt."""

    def encrypt(plain: Wire, deadline: float, at_once: bool) -> tuple[Wire, Encryption]:
        wire = TlsWire(plain, contexts, deadline, at_once=at_once)
        return wire, wire.encryption

    return encrypt


def _encryption(connection: SSL.Connection, at_once: bool) -> Encryption:
    certificate = connection.get_peer_certificate()
    version, cipher = connection.get_protocol_version_name(), connection.get_cipher_name()
    binding = b""
    if version == "TLSv1.3":
        # With TLS 1.2 it would bind only where both ends use the extended master secret (RFC 9266
        # section 3), which the library does not tell.
        binding = connection.export_keying_material(_EXPORTER_LABEL, _EXPORTER_OCTETS, b"")
    encryption = Encryption(version, cipher or "unknown", at_once, binding=binding)
    if certificate is None:
        return encryption
    return dataclasses.replace(
        encryption,
        certificate=crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate),
        names=names_of(certificate.to_cryptography()),
    )
