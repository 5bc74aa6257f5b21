"""One end of a channel between two processes: packets, and descriptors that go with them.

The channel is a pair of AF_UNIX sockets of the type SOCK_SEQPACKET: a packet arrives whole or not
at all, and the kernel tells three things apart that a stream does not (each is tested):
a packet that the other end has never read gives ConnectionResetError here, one that it has read
gives the end of the channel; after ``stop_reading`` what was queued can still be read, and the
other end cannot send any more.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from types import TracebackType

from tofmipd.privsep.frames import BadFrame

_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Gone(Exception):
    """The other end is closed.  ``unread``: what was sent last has certainly not been read."""

    def __init__(self, *, unread: bool) -> None:
        super().__init__("the other end is closed")
        self.unread = unread


class Channel:
    """Raises Gone when the other end is, BadFrame for a packet that is too long or brings more
    descriptors than may come, TimeoutError when a limit set by ``limit_waiting`` is over."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @classmethod
    def of(cls, descriptor: int) -> Channel:
        """The channel that a descriptor from another process is.  Raises BadFrame if it is none."""
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            raise BadFrame("the descriptor is no socket") from None
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            sock.close()
            raise BadFrame("the descriptor is no channel")
        return cls(sock)

    def fileno(self) -> int:
        return self._socket.fileno()

    def never_wait(self) -> None:
        """From now on BlockingIOError is raised instead of waiting."""
        self._socket.setblocking(False)

    def limit_waiting(self, seconds: float) -> None:
        """How long ``send`` and ``receive`` may wait."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
        self.limit_sending(seconds)

    def limit_sending(self, seconds: float) -> None:
        """How long ``send`` may wait."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))

    def send(self, octets: bytes, descriptors: Iterable[int] = ()) -> None:
        """The descriptors stay the caller's; the other end gets copies."""
        try:
            if descriptors:
                rights = array.array("i", descriptors)
                self._socket.sendmsg([octets], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            else:
                self._socket.send(octets)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone(unread=True) from None
        except BlockingIOError:
            raise self._waited() from None

    def receive(self, limit_octets: int) -> bytes:
        """A packet without descriptors: the kernel throws any away."""
        try:
            octets = self._socket.recv(limit_octets + 1)
        except ConnectionResetError:
            raise Gone(unread=True) from None
        except BlockingIOError:
            raise self._waited() from None
        if not octets:
            raise Gone(unread=False)
        if len(octets) > limit_octets:
            raise BadFrame("too long")
        return octets

    def receive_strictly(self, limit_octets: int) -> bytes:
        """The same; a descriptor that came along is a fault."""
        octets, _ = self.receive_with(limit_octets, 0)
        return octets

    def receive_with(self, limit_octets: int, most: int) -> tuple[bytes, list[int]]:
        """A packet and its descriptors, which are the caller's then; at most ``most`` of them."""
        room = socket.CMSG_SPACE(most * array.array("i").itemsize) if most else 0
        try:
            octets, ancillary, flags, _ = self._socket.recvmsg(limit_octets, room, _CLOSE_ON_EXEC)
        except ConnectionResetError:
            raise Gone(unread=True) from None
        except BlockingIOError:
            raise self._waited() from None
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        given = list(descriptors)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(given) > most:
            close_all(given)
            raise BadFrame("too long" if flags & socket.MSG_TRUNC else "too many descriptors")
        if not octets:
            close_all(given)
            raise Gone(unread=False)
        return octets, given

    def _waited(self) -> Exception:
        if self._socket.gettimeout() == 0:
            return BlockingIOError()
        return TimeoutError("the other process does not answer")

    def has_something(self) -> bool:
        """Whether there is a packet, or the end, to be received."""
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def stop_reading(self) -> None:
        """Let the other end send no more; what is queued can still be read."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
