"""Asking a server on the network: connecting, TLS, lines; all within one limit of time.

The libraries for IMAP and POP3 take any amount of data from a server, keep passwords in logs of
their own, and have limits for single reads only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from typing import Any

from tofmipd.auth.remote import RemoteServer, RemoteTls

# No server says more than that before a verdict.
_LIMIT_OCTETS = 1 << 14


class NoVerdict(Exception):
    """The server did not say whether the password is right; ``str()`` is what it did instead."""


class Deadline:
    """An end of all waiting, ``limit_seconds`` from now."""

    def __init__(self, limit_seconds: float) -> None:
        self._end = time.monotonic() + limit_seconds

    def left_seconds(self) -> float:
        """More than 0.  Raises TimeoutError."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


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


def shake_hands(sock: ssl.SSLSocket, deadline: Deadline) -> None:
    """Raises OSError."""
    sock.settimeout(deadline.left_seconds())  # for the handshake as a whole
    sock.do_handshake()


def connect(
    server: RemoteServer, deadline: Deadline, context: ssl.SSLContext | None
) -> tuple[Talk, bool]:
    """Connect, with ``context`` encrypted at once; whether the server is on this machine.

    Each address of the server is tried, none longer than its share of the time left.  Raises
    NoVerdict, OSError.
    """
    addresses = look_up(server.host, server.port, deadline)
    trouble = "its name has no address"
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        try:
            sock = socket.socket(family, kind, protocol)
            if context is not None:
                # Not later: wrapping leaks a socket that the server resets at that moment.
                sock = context.wrap_socket(
                    sock, server_hostname=server.host, do_handshake_on_connect=False
                )
            with contextlib.ExitStack() as stack:
                stack.enter_context(sock)
                sock.settimeout(deadline.left_seconds() / (len(addresses) - number))
                sock.connect(address)
                stack.pop_all()
                break
        except OSError as error:
            trouble = str(error)
    else:
        raise NoVerdict(trouble)
    try:
        if isinstance(sock, ssl.SSLSocket):
            shake_hands(sock, deadline)
    except BaseException:
        sock.close()
        raise
    return Talk(sock, deadline), is_near(address[0])


def is_near(address: str) -> bool:
    """Whether a numeric address is one of this machine's loopback."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def look_up(host: str, port: int, deadline: Deadline) -> list[tuple[Any, ...]]:
    """As getaddrinfo, which knows no limit of time: its thread may go on after us."""
    future: Future[list[tuple[Any, ...]]] = Future()

    def work() -> None:
        try:
            future.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:
            future.set_exception(error)

    threading.Thread(target=work, name="look-up", daemon=True).start()
    try:
        return future.result(deadline.left_seconds())
    except TimeoutError:
        raise TimeoutError("the look-up of its name timed out") from None
