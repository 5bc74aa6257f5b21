"""Servers that are asked about passwords: what the tests of all protocols share."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator

from fakes import PATIENCE_SECONDS

from tofmipd.auth.asking import Asking
from tofmipd.auth.credentials import Password, Verdict

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
BOBBY = Password("bobby", b"FooBar")
SHORT_SECONDS = 0.3


class Peer:
    """The server's end of one connection; no wait is unbounded."""

    def __init__(self, sock: socket.socket, ending: threading.Event) -> None:
        self.sock = sock
        self.ending = ending
        self._file = sock.makefile("rb")

    def say(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def line(self) -> bytes:
        return self._file.readline()

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def stall(self) -> None:
        self.ending.wait(PATIENCE_SECONDS)

    def drip(self, octets: bytes) -> None:
        """One at a time, without end."""
        while not self.ending.wait(0.01):
            for octet in octets:
                self.say(bytes([octet]))
                if self.ending.wait(0.01):
                    return

    def close(self) -> None:
        self._file.close()
        self.sock.close()


Script = Callable[[Peer], None]


class Server:
    """Listens on loopback and does what ``script`` says with each connection, in a thread."""

    def __init__(self, script: Script, host: str = "127.0.0.1") -> None:
        self.script = script
        self.connections = 0
        self.ending = threading.Event()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            sock.settimeout(PATIENCE_SECONDS)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        peer = Peer(sock, self.ending)
        with contextlib.closing(peer), contextlib.suppress(OSError, ValueError):
            self.script(peer)

    def close(self) -> None:
        self.ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    @property
    def place(self) -> str:
        """For URLs."""
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(script: Script, host: str = "127.0.0.1") -> Iterator[Server]:
    server = Server(script, host)
    try:
        yield server
    finally:
        server.close()


def stall(peer: Peer) -> None:
    peer.stall()


def reset_at_close(peer: Peer) -> None:
    linger = (1).to_bytes(4, sys.byteorder) + bytes(4)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def within_tls(context: ssl.SSLContext, inner: Script) -> Script:
    def script(peer: Peer) -> None:
        secure = Peer(context.wrap_socket(peer.sock, server_side=True), peer.ending)
        with contextlib.closing(secure):
            inner(secure)

    return script


def elapsed(source: Asking, credentials: Password = BOBBY) -> tuple[Verdict, float]:
    start = time.monotonic()
    verdict = source.check(credentials)
    return verdict, time.monotonic() - start


def addresses(*places: tuple[str, int]) -> list[tuple[object, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in places]


@contextlib.contextmanager
def deaf() -> Iterator[tuple[str, int]]:
    """An address where connections are neither taken nor refused."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()
