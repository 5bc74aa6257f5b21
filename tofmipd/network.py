"""Connecting to a host in limited time."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any


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


def connect(
    host: str, port: int, deadline: Deadline, context: ssl.SSLContext | None = None
) -> tuple[socket.socket, str]:
    """A connection, with ``context`` encrypted at once, and the numeric address that it leads to.

    Each address of the host is tried, none longer than its share of the time left.  Raises
    OSError, ValueError for a host that is none; ssl.SSLError is an OSError.
    """
    addresses = look_up(host, port, deadline)
    trouble = OSError("its name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        share = deadline.left_seconds() / (len(addresses) - number)
        try:
            sock = _connected((family, kind, protocol), address, share, host, context)
            break
        except OSError as error:
            trouble = error
    else:
        raise trouble
    if isinstance(sock, ssl.SSLSocket):
        with _closed_on_failure(sock):
            shake_hands(sock, deadline)
    return sock, str(address[0])


def _connected(
    kind: tuple[int, int, int],
    address: Any,
    limit_seconds: float,
    host: str,
    context: ssl.SSLContext | None,
) -> socket.socket:
    sock = socket.socket(*kind)
    if context is not None:
        # Not later: wrapping leaks a socket that the server resets at that moment.
        with _closed_on_failure(sock):
            sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    with _closed_on_failure(sock):
        sock.settimeout(limit_seconds)
        sock.connect(address)
    return sock


@contextlib.contextmanager
def _closed_on_failure(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


def shake_hands(sock: ssl.SSLSocket, deadline: Deadline) -> None:
    """Raises OSError."""
    sock.settimeout(deadline.left_seconds())  # for the handshake as a whole
    sock.do_handshake()


def is_near(address: str) -> bool:
    """Whether a numeric address is one of this machine's loopback."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def look_up(host: str, port: int, deadline: Deadline) -> list[tuple[Any, ...]]:
    """As getaddrinfo, which knows no limit of time: its thread may go on after us.

    A numeric address needs no thread, and where there can be none the limit is the resolver's own.
    """
    if _is_numeric(host):
        return _addresses(host, port)
    future: Future[list[tuple[Any, ...]]] = Future()

    def work() -> None:
        try:
            future.set_result(_addresses(host, port))
        except (OSError, ValueError) as error:
            future.set_exception(error)

    try:
        threading.Thread(target=work, name="look-up", daemon=True).start()
    except RuntimeError:
        work()
    try:
        return future.result(deadline.left_seconds())
    except TimeoutError:
        raise TimeoutError("the look-up of its name timed out") from None


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
