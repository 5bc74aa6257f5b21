"""Asking a server on the network: TLS, lines; all within one limit of time.

The libraries for IMAP and POP3 take any amount of data from a server, keep passwords in logs of
their own, and have limits for single reads only.
"""

from __future__ import annotations

import socket
import ssl

from tofmipd import network
from tofmipd.auth.remote import RemoteServer, RemoteTls
from tofmipd.network import Deadline, is_near, shake_hands

# No server says more than that before a verdict.
_LIMIT_OCTETS = 1 << 14


class NoVerdict(Exception):
    """The server did not say whether the password is right; ``str()`` is what it did instead."""


class Talk:
    """Lines to and from a server, in bounded time and number.

    Raises NoVerdict and OSError.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._buffer = b""
        self._room_octets = _LIMIT_OCTETS

    def send(self, octets: bytes) -> None:
        self._sock.settimeout(self._deadline.left_seconds())
        self._sock.sendall(octets)

    def line(self) -> bytes:
        """The next line, without its end."""
        while b"\n" not in self._buffer:
            if self._room_octets <= 0:
                raise NoVerdict("it talks without end")
            self._sock.settimeout(self._deadline.left_seconds())
            octets = self._sock.recv(self._room_octets)
            if not octets:
                raise NoVerdict("it closed the connection")
            self._room_octets -= len(octets)
            self._buffer += octets
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.removesuffix(b"\r")

    def secure(self, context: ssl.SSLContext, name: str) -> None:
        """Go on encrypted, with whoever has a certificate for ``name``.

        What has come before that and was not read is an error: nobody has vouched for it.
        """
        if self._buffer:
            raise NoVerdict("it says more than its go-ahead for TLS")
        self._sock = context.wrap_socket(
            self._sock, server_hostname=name, do_handshake_on_connect=False
        )
        shake_hands(self._sock, self._deadline)

    def close(self) -> None:
        self._sock.close()


def context_of(tls: RemoteTls) -> ssl.SSLContext:
    """Raises OSError when the file of authorities cannot be loaded."""
    context = ssl.create_default_context(cafile=tls.ca_file or None)
    if not tls.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def connect(
    server: RemoteServer, deadline: Deadline, context: ssl.SSLContext | None
) -> tuple[Talk, bool]:
    """Connect, with ``context`` encrypted at once; whether the server is on this machine.

    Raises OSError, ValueError; see network.connect.
    """
    sock, address = network.connect(server.host, server.port, deadline, context)
    return Talk(sock, deadline), is_near(address)
