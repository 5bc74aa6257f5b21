"""The daemon's own configuration file, as the tools write it and learn from it where it listens."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from tofmipd import contradictions
from tofmipd.cli import GLOBAL_CONFIG, attempt
from tofmipd.commands.newfiles import make_directory, write_if_missing
from tofmipd.configfile import parse, read, written
from tofmipd.settings import Listen

GLOBAL_PATH = GLOBAL_CONFIG
_HEAD = """\
# What the daemon does, an option a line; tofmipd(8) lists all, here without the dashes.
# What is said on the command line holds in its place.
"""
_EVERYWHERE = ("", "0.0.0.0", "::")
_PORTS_TRIED = 20


def write(path: str, lines: Sequence[tuple[str, str]], mode: int = 0o600) -> tuple[str, bool]:
    """Write names and values of options unless the file is there; the path, and whether it is new.

    Raises Fatal.
    """
    make_directory(os.path.dirname(path))
    text = _HEAD + "".join(f"{written(name, value)}\n" for name, value in lines)
    return path, write_if_missing(path, text, mode)


def listeners(path: str) -> tuple[Listen, ...]:
    """Where a daemon with this file listens, also if some of its lines have faults.

    Raises Fatal.
    """
    file = path if os.path.exists(path) else "none"
    _, given = attempt(["--personal", "--config", file])
    return contradictions.listeners(given.options)


def value(path: str, name: str) -> str:
    """That of an option in the file, "" for none.  Raises Fatal."""
    return dict(_lines(path)).get(name, "")


def _lines(path: str) -> list[tuple[str, str]]:
    """Those that say something; none of a file that is not there.  Raises Fatal."""
    lines, _ = parse(read(path, named=False) or "")
    return [(line.name, line.value or "") for line in lines]


def nearest(places: Sequence[Listen]) -> Listen:
    """The one to be used from this machine: without TLS where there is such a one, and not one for
    proxies."""
    place = min(places, key=_distance)
    return place._replace(host="localhost") if place.host in _EVERYWHERE else place


def _distance(place: Listen) -> tuple[bool, ...]:
    return place.proxies is not None, place.mode != "plain", not is_local(place), place.ipv6


def is_local(place: Listen) -> bool:
    """Whether nobody but this machine can connect there."""
    return place.host in ("localhost", "::1") or place.host.startswith("127.")


def free_port(first: int) -> int:
    """This port, or if somebody has it now the next one that nobody has."""
    return next((port for port in range(first, first + _PORTS_TRIED) if is_free(port)), first)


def is_free(port: int) -> bool:
    """Whether a daemon that may could listen there."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", port))
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def has_ipv6() -> bool:
    """Whether this machine speaks it at all."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def everywhere(port: int, mode: str) -> list[tuple[str, str]]:
    """The lines for a port of all interfaces; ``mode`` is what stands behind the comma."""
    lines = [("proxyport", f"0.0.0.0:{port},{mode}")]
    if has_ipv6():
        lines.append(("ipv6proxyport", f"[::]:{port},{mode}"))
    return lines
