"""What systemd passes to a service and wants to hear of it (sd_notify(3), sd_listen_fds(3)).

All of it does nothing where there is no systemd.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterable, Iterator, MutableMapping

# The first descriptor that is passed.
_FIRST = 3


class Supervisor:
    """Tells how the service is.  Takes what concerns only this process out of ``environment``."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self.watchdog_seconds = _watchdog_seconds(environment)
        self._beat_at = 0.0

    def ready(self, status: str) -> None:
        """The service can be used, for the first time or after it was ``reloading``."""
        self._tell(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=reloading")

    def stopping(self) -> None:
        self._tell("STOPPING=1\nSTATUS=finishing what is under way")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell(f"STATUS={text}")

    @property
    def beat_at(self) -> float | None:
        """When it wants to hear next that this process lives, of time.monotonic()."""
        return self._beat_at if self.watchdog_seconds is not None else None

    def beat(self) -> None:
        """Say so, if it is time."""
        now = time.monotonic()
        if self.watchdog_seconds is not None and now >= self._beat_at:
            self._beat_at = now + self.watchdog_seconds / 2
            self._tell("WATCHDOG=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        # Nothing depends on it: what is lost would have been for people, or comes again.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        ):
            sock.sendto(text.encode(), self._address)


def _watchdog_seconds(environment: MutableMapping[str, str]) -> float | None:
    microseconds = environment.pop("WATCHDOG_USEC", "")
    pid = environment.pop("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6 if pid in ("", str(os.getpid())) else None


def inherited(environment: MutableMapping[str, str]) -> list[tuple[socket.socket, str]]:
    """The sockets that were passed to this process, each with its name, "" for none.

    They are taken out of ``environment``: programs that are started later do not have them.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    numbers = range(_FIRST, _FIRST + min(int(count), 1000))
    return list(_sockets(zip(numbers, itertools.chain(names, itertools.repeat("")), strict=False)))


def _sockets(passed: Iterable[tuple[int, str]]) -> Iterator[tuple[socket.socket, str]]:
    for number, name in passed:
        with contextlib.suppress(OSError):
            os.set_inheritable(number, False)
            yield socket.socket(fileno=number), name


def accepts(sock: socket.socket) -> bool:
    """Whether it listens; else it is a connection."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
