"""Options that are read again while the daemon runs (feature row BX-7)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from tofmipd.errors import CONFIG, PERMISSION, UNAVAILABLE, Fatal
from tofmipd.server import ListenError, address_of, bind
from tofmipd.settings import Listen, Options, Scripts, Settings

log = logging.getLogger(__name__)

# By destination: what a running daemon keeps as it was; the names of its settings, too.
_FOR_LIFE = {
    "foreground": "foreground",
    "pid_file": "pid_file",
    "log_file": "log_file",
    "log_format": "log_settings",
    "syslog_facility": "log_settings",
    "cpus": "one_cpu",
    # Of the global mode; the rest of it may change.
    "username": "",
    "min_uid": "",
}
# Not of the options, but of how the daemon was started.
_OF_THE_START = ("port_hint", "quiet", "host_name")


# Where a listening socket was asked for, and it.
Bound = tuple[Listen, socket.socket]


class Renewal:
    """``read`` gives the options as they are now; it raises Fatal.

    ``activated``: the listening sockets were passed, so that options do not say which they are.
    """

    def __init__(
        self, now: Settings, read: Callable[[], Options] | None, *, activated: bool = False
    ) -> None:
        self._now = now
        self._read = read
        self._activated = activated
        self._values = read().values if read is not None else {}

    def changed(self) -> Changed | None:
        """What is to be in force from now on, None where nothing is new.  Raises Fatal."""
        if self._read is None:
            return None
        settings, values = self._read()
        names = sorted(
            name for name in values if values[name] != self._values.get(name, values[name])
        )
        for name in names:
            if name in _FOR_LIFE:
                log.warning("%s changes with the next start only", _dashed(name))
        names = [name for name in names if name not in _FOR_LIFE]
        if not names:
            log.info("options read again, none is new")
            return None
        kept = {*_FOR_LIFE.values(), *_OF_THE_START}.intersection(Settings._fields)
        if self._activated:
            kept.add("listen")
        settings = settings._replace(**{name: getattr(self._now, name) for name in kept})
        before, mode = self._now.global_mode, settings.global_mode
        if before is not None and mode is not None:
            mode = mode._replace(service=before.service, min_uid=before.min_uid)
            settings = settings._replace(global_mode=mode)
        return Changed(settings, values, ", ".join(map(_dashed, names)))

    def take(self, changed: Changed) -> None:
        """It is in force."""
        self._now, self._values = changed.settings, changed.values
        log.info("changed: %s", changed.names)


class Changed(NamedTuple):
    """``names`` are those of the options that are new, for people."""

    settings: Settings
    values: Mapping[str, object]
    names: str


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def check_scripts(scripts: Scripts) -> None:
    """Raises Fatal for one that cannot be run."""
    for letter, path in (("-t", scripts.throttle), ("-S", scripts.virtual_home)):
        if path and not (os.path.isfile(path) and os.access(path, os.X_OK)):
            what = "cannot be executed (chmod 755)" if os.path.exists(path) else "is not there"
            what = "is a directory" if os.path.isdir(path) else what
            raise Fatal(CONFIG, f"{path} {what}; {letter} names a program")


def listen(settings: Settings, have: Iterable[Bound] = ()) -> list[socket.socket]:
    """A listening socket for each address, those that there are already first.

    Raises Fatal when one cannot be had.
    """
    available = list(have)
    sockets: list[socket.socket] = []
    made: list[socket.socket] = []
    for where in settings.listen:
        found = next((one for one in available if _is_for(where, one)), None)
        if found is not None:
            available.remove(found)
            sockets.append(found[1])
            continue
        try:
            made.append(bind(where))
        except ListenError as error:
            close(made)
            status = PERMISSION if error.denied else UNAVAILABLE
            raise Fatal(status, f"{error}; choose another with {settings.port_hint}") from None
        sockets.append(made[-1])
    return sockets


def _is_for(where: Listen, bound: Bound) -> bool:
    """Whether it listens there, whatever the place was called."""
    before, sock = bound
    if (where.port, where.ipv6) != (before.port, before.ipv6):
        return False
    return where.host == before.host or address_of(where) == sock.getsockname()[0]


def close(sockets: Iterable[socket.socket], but: Iterable[socket.socket] = ()) -> None:
    """Close all that are not among others."""
    others = list(but)
    for sock in sockets:
        if sock not in others:
            sock.close()
