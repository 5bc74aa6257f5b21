"""The map of local addresses: which server judges logins that came in where (row TO-58)."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import stat
import threading
from typing import IO

from tofmipd.auth.files import Opener, without_waiting

log = logging.getLogger(__name__)

# Host, and port or None.
Place = tuple[str, int | None]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ELSEWHERE: Place = ("127.0.0.1", None)
_LIMIT_OCTETS = 1 << 20
_SHOWN_OCTETS = 80
_OLD_FORM = re.compile(r"([0-9.]+):([0-9.]+)(?::([0-9]+))?")


class IpMap:
    """Tells the remote server for a local address, by a file.

    A line is ``LOCAL REMOTE [PORT]``, addresses in any spelling, or in the old form for IPv4
    ``LOCAL:REMOTE[:PORT]``; the last of several lines for one local address counts.  ``#``
    begins a comment.  A bad line is logged and skipped.  The file is read again when it has
    changed; a missing one is an empty map, while one that cannot be read leaves the old map in
    force, so that no password goes to another server.

    ``opener`` is as for open().  Safe for threads.
    """

    def __init__(self, path: str, opener: Opener | None = None) -> None:
        self._path = path
        self._opener = opener or without_waiting
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._places: dict[Address, Place] = {}
        self._trouble = ""

    def find(self, local_address: str) -> tuple[str, int | None]:
        """Host and port of the server; port None stands for the usual one.

        127.0.0.1 for what is not listed, and for what is no address.  Raises nothing.
        """
        places = self._current()
        try:
            return places.get(_address(local_address), _ELSEWHERE)
        except ValueError:
            return _ELSEWHERE

    def _current(self) -> dict[Address, Place]:
        # The file is opened before each look at it: whoever opens it for us may be the only one
        # that is able to see it.
        with self._lock:
            trouble = ""
            try:
                with open(self._path, "rb", opener=self._opener) as file:
                    self._read_if_changed(file)
            except FileNotFoundError:
                if self._stamp is not None:
                    log.warning("%s: gone, the map is empty", self._path)
                self._stamp, self._places = None, {}
            except (OSError, ValueError) as error:
                trouble = getattr(error, "strerror", None) or str(error)
            if trouble and trouble != self._trouble:
                log.error("%s: cannot be read, unchanged in memory: %s", self._path, trouble)
            self._trouble = trouble
            return self._places

    def _read_if_changed(self, file: IO[bytes]) -> None:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp == self._stamp:
            return
        if status.st_size > _LIMIT_OCTETS:
            raise ValueError(f"more than {_LIMIT_OCTETS} octets")
        self._places = parse_map(self._path, file.read(_LIMIT_OCTETS))
        self._stamp = stamp
        log.info("%s: read, %d addresses", self._path, len(self._places))


def parse_map(path: str, text: bytes) -> dict[Address, Place]:
    """The map that ``text`` describes; ``path`` is for the log lines about bad lines."""
    places = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition(b"#")[0].strip()
        if not content:
            continue
        try:
            local, place = _parse_line(content.decode("latin-1"))
        except ValueError as error:
            shown = content[:_SHOWN_OCTETS]
            log.warning("%s:%d: line skipped: %s: %r", path, number, error, shown)
            continue
        places[local] = place
    return places


def _parse_line(line: str) -> tuple[Address, Place]:
    """Raises ValueError that says in short what is wrong."""
    old = _OLD_FORM.fullmatch(line)
    words = [word for word in old.groups() if word is not None] if old else line.split()
    if len(words) not in (2, 3) or not line.isascii() or not "".join(words).isprintable():
        raise ValueError("not of the form LOCAL REMOTE [PORT]")
    local, remote, *port = words
    return _address(local), (str(_address(remote)), parse_port(port[0]) if port else None)


def _address(text: str) -> Address:
    """An IPv4 address written as IPv6 is the IPv4 one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("not an IP address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_port(text: str) -> int:
    """Raises ValueError."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError("not a port (1 to 65535)")
    return int(text)
