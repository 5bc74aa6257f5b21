"""A client's connection: blocking reads with absolute deadlines, few large writes."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

# By so much a read may outlast its deadline; less would cost a system call for every line.
_SLACK_SECONDS = 0.1
_LINGER_SECONDS = 2
_LINGER_OCTETS = 4 << 20


class Unwelcome(Exception):
    """The client is to be parted from without a word; ``str()`` says why."""


class Wire:
    """Octets to and from a client.

    A blocking socket with SO_RCVTIMEO needs one system call a read, where Python's own timeouts
    need two.  ``write_timeout`` is in seconds, for all that is sent at once.  Raises TimeoutError
    and ConnectionError.
    """

    def __init__(self, sock: socket.socket, write_timeout: float = 120) -> None:
        self._socket = sock
        self._queued: list[bytes] = []
        self._limit = 0.0
        self._write_timeout = write_timeout
        sock.setblocking(True)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(write_timeout))

    def _take_over(self, other: Wire) -> None:
        """Be the other wire, which nobody uses any more."""
        self._socket = other._socket
        self._queued = other._queued
        self._limit = other._limit
        self._write_timeout = other._write_timeout

    def receive(self, octets: int, deadline: float) -> bytes:
        """Some octets, b"" when the client has closed; ``deadline`` is of time.monotonic()."""
        return self._received(octets, deadline)

    def peek(self, octets: int, deadline: float) -> bytes:
        """As ``receive``, but they stay where they are: the next call gets them again."""
        return self._received(octets, deadline, socket.MSG_PEEK)

    def _received(self, octets: int, deadline: float, flags: int = 0) -> bytes:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the client is too slow")
            if not left / 2 <= self._limit <= left + _SLACK_SECONDS:
                self._limit = left
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(left))
            try:
                return self._socket.recv(octets, flags)
            except BlockingIOError:
                continue

    def queue(self, octets: bytes) -> None:
        """Have the octets sent with the next flush."""
        self._queued.append(octets)

    def flush(self) -> None:
        """Send what is queued, in one write."""
        if not self._queued:
            return
        octets = self._queued[0] if len(self._queued) == 1 else b"".join(self._queued)
        self._queued.clear()
        self._send(octets, time.monotonic() + self._write_timeout)

    def _send(self, octets: bytes, deadline: float) -> None:
        """Mostly the kernel takes all at once; who reads an octet now and then gains nothing."""
        try:
            sent = self._socket.send(octets)
            while sent < len(octets):
                if time.monotonic() > deadline:
                    raise TimeoutError("the client does not read its replies")
                sent += self._socket.send(octets[sent:])
        except BlockingIOError:
            raise TimeoutError("the client does not read its replies") from None

    def interrupt(self) -> None:
        """Wake up a thread that waits in ``receive``; it gets b""."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self, *, linger: bool = False) -> None:
        """Close.  ``linger``: first read for a moment, or unread input would make the kernel
        throw away the last reply before the client has seen it."""
        if linger:
            with contextlib.suppress(OSError):
                self._drain()
        self._socket.close()

    def _drain(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _LINGER_SECONDS
        left = _LINGER_OCTETS
        while left > 0:
            octets = self._drain_some(65536, deadline)
            if not octets:
                return
            left -= len(octets)

    def _drain_some(self, octets: int, deadline: float) -> bytes:
        return self.receive(octets, deadline)


def _timeval(seconds: float) -> bytes:
    """struct timeval, at least a millisecond: zero would mean for ever."""
    micros = max(int(seconds * 1_000_000), 1000)
    return struct.pack("@ll", micros // 1_000_000, micros % 1_000_000)
