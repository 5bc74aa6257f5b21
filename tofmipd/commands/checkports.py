"""Whether addresses can be listened on, or who has them already."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from tofmipd.commands.checkreport import Report
from tofmipd.options import COMMANDS
from tofmipd.server import ListenError, address_of, bind
from tofmipd.settings import Listen, Settings

_LISTENING = "0A"
_NETWORK = "/proc/net/tcp{}"
# Whoever listens for a daemon of ours: itself, or what starts it.
_GOOD = ("tofmipd", "systemd")
# What the processes that listen are called in global mode.
_ROOTS = ("tofmipd-monitor", "tofmipd-server")


def check_ports(report: Report, settings: Settings) -> None:
    """An address that a running tofmipd has is as good as free."""
    before = len(report.faults)
    numbers = {"proxyport": 0, "ipv6proxyport": 0}
    seen: list[Listen] = []
    for where in settings.listen:
        name = "ipv6proxyport" if where.ipv6 else "proxyport"
        index = numbers[name]
        numbers[name] += 1
        fault = next(filter(None, (_fault_of_two(one, where) for one in seen)), "")
        if fault:
            report.blame(fault, name, index)
            continue
        seen.append(where)
        try:
            bind(where, listens=False).close()
        except ListenError as error:
            holder = _holder(where) if error.taken else ""
            if holder.startswith(_GOOD):
                report.notes.append(f"{where}: in use by {holder}")
            else:
                by = f" (by {holder})" if holder else ""
                report.blame(f"{error}{by}", name, index)
    if len(report.faults) == before:
        report.good.append(f"listen: {', '.join(map(str, settings.listen))}")


def _fault_of_two(one: Listen, other: Listen) -> str:
    """Why not both can be listened on, "" if they can."""
    if not one.port or (one.port, one.ipv6) != (other.port, other.ipv6):
        return ""
    first, second = address_of(one), address_of(other)
    if first and first == second:
        return f"{other} is there twice" + ("" if one.host == other.host else f", also as {one}")
    if {first, second} & {"0.0.0.0", "::"}:
        return f"{other} and {one} cannot both be listened on: one of them is all addresses"
    return ""


def _holder(where: Listen) -> str:
    """Who listens there, "" if that cannot be told; one of _GOOD only if there is no other."""
    sockets = [one for one in _listening(where.ipv6) if _overlap(one, where)]
    holders = [_named(pid) for pid in _pids_of({one.inode for one in sockets})]
    if holders:
        others = [name for name in holders if not name.startswith(_GOOD)]
        return (others or sorted(holders, reverse=True))[0]
    # What processes have open can be hidden even from root, but not who has made a socket.
    if sockets and all(one.uid == os.getuid() for one in sockets):
        running = [pid for pid in _all_pids() if _is_tofmipd(pid) and _is_ours(pid)]
        return f"tofmipd, it seems, pid {running[0]}" if running else ""
    return ""


class _Socket(NamedTuple):
    """One that listens; ``uid`` is that of who has made it."""

    address: str
    port: int
    uid: int
    inode: str


def _listening(ipv6: bool) -> Iterator[_Socket]:
    """All that may be in the way (proc_pid_net(5))."""
    for version in ("6", "") if not ipv6 else ("6",):
        with contextlib.suppress(OSError), open(_NETWORK.format(version)) as file:
            for line in list(file)[1:]:
                words = line.split()
                if words[3] == _LISTENING:
                    address, _, port = words[1].partition(":")
                    yield _Socket(_address(address), int(port, 16), int(words[7]), words[9])


def _address(digits: str) -> str:
    """Written as words of 32 bits in the order of this machine."""
    words = [bytes.fromhex(digits[n : n + 8]) for n in range(0, len(digits), 8)]
    if socket.htonl(1) != 1:
        words = [word[::-1] for word in words]
    octets = b"".join(words)
    return socket.inet_ntop(socket.AF_INET if len(octets) == 4 else socket.AF_INET6, octets)


def _overlap(one: _Socket, where: Listen) -> bool:
    if one.port != where.port:
        return False
    if not where.host or one.address in ("0.0.0.0", "::"):
        return True
    family = socket.AF_INET6 if where.ipv6 else socket.AF_INET
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(where.host, None, family, socket.SOCK_STREAM)
        return one.address in {str(info[4][0]) for info in found}
    return False


def _pids_of(inodes: set[str]) -> Iterator[int]:
    """The processes that have one of these sockets open, as far as can be seen."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}") in wanted:
                        yield pid
                        break


def _all_pids() -> list[int]:
    with contextlib.suppress(OSError):
        found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return sorted(pid for pid in found if pid != os.getpid())
    return []


def _named(pid: int) -> str:
    name = _comm(pid) or "process"
    if _is_tofmipd(pid):
        name = "tofmipd" if _is_ours(pid) else "the tofmipd of somebody else"
    return f"{name}, pid {pid}"


def _is_ours(pid: int) -> bool:
    """Whether it runs as this user, or belongs to root's daemon and root asks."""
    if os.getuid() == 0 and _comm(pid) in _ROOTS:
        return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", errors="replace") as file:
        uids = next(line for line in file if line.startswith("Uid:"))
        return int(uids.split()[1]) == os.getuid()
    return False


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", errors="replace") as file:
        return file.read().strip()
    return ""


def _is_tofmipd(pid: int) -> bool:
    """Whether it is a daemon; its tools listen nowhere."""
    if _comm(pid) in _ROOTS:
        return True
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", errors="replace") as file:
        words = file.read().split("\0")
        for number, word in enumerate(words[:4]):
            if os.path.basename(word) in ("tofmipd", "tmda-ofmipd"):
                return words[number + 1] not in COMMANDS
    return False
