"""Giving up root for good: one function, which verifies itself."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from dataclasses import dataclass
from typing import NoReturn

from tofmipd.errors import PERMISSION
from tofmipd.privsep import linux

_STATUS = "/proc/self/status"


@dataclass(frozen=True, slots=True)
class Rights:
    """Numeric ids of an account; ``groups`` are all of its groups, the primary one included."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def become(rights: Rights) -> None:
    """Be this account from now on, in all ids and groups, without any capability.

    Ends the process with status 77 on any difference between what is wanted and what is, also
    if there were a way back.  The caller has one thread.  Source: setresuid(2), credentials(7).
    """
    if rights.uid <= 0 or rights.gid < 0:
        _die(f"refuses to run as uid {rights.uid}, gid {rights.gid}")
    try:
        os.setgroups(rights.groups)
        os.setresgid(rights.gid, rights.gid, rights.gid)
        os.setresuid(rights.uid, rights.uid, rights.uid)
    except OSError as error:
        _die(f"cannot become {rights.name}: {error.strerror}")
    linux.drop_capabilities()
    for fault in faults(rights):
        _die(f"is not what it should be as {rights.name}: {fault}")


def faults(rights: Rights) -> list[str]:
    """In what this process differs from the account."""
    wanted = {
        "uids": (os.getresuid(), (rights.uid,) * 3),
        "gids": (os.getresgid(), (rights.gid,) * 3),
        "groups": (set(os.getgroups()) - {rights.gid}, set(rights.groups) - {rights.gid}),
    }
    found = [f"{what} {is_} for {want}" for what, (is_, want) in wanted.items() if is_ != want]
    if linux.PRESENT:
        found += _faults_in_status(rights)
    for back in (os.setuid, os.seteuid, os.setgid, os.setegid):
        with contextlib.suppress(OSError):
            back(0)
            found.append(f"{back.__name__}(0) is possible")
    return found


def _faults_in_status(rights: Rights) -> list[str]:
    """What only the kernel's own account of a process tells: file system ids, capabilities."""
    try:
        with open(_STATUS, "rb") as file:
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return [f"{_STATUS} cannot be read: {error.strerror}"]
    status = dict(re.findall(r"^(\w+):\s*(.*?)\s*$", text, re.MULTILINE))
    found = []
    for name, number in (("Uid", rights.uid), ("Gid", rights.gid)):
        if status.get(name, "").split() != [str(number)] * 4:
            found.append(f"{name} {status.get(name)}")
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        if int(status.get(name, "0"), 16):
            found.append(f"{name} {status[name]}")
    return found


def _die(text: str) -> NoReturn:
    """Not an exception: nobody may catch it and go on."""
    with contextlib.suppress(OSError, ValueError):
        print(f"tofmipd: process {os.getpid()} {text}", file=sys.stderr, flush=True)
    os._exit(PERMISSION)
