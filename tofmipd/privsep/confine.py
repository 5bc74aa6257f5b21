"""What a worker finds: limits that the kernel keeps, and a clean environment."""

from __future__ import annotations

import contextlib
import os
import resource

from tofmipd.privsep import linux
from tofmipd.privsep.identity import Identity
from tofmipd.programs import PATH

_MIB = 1 << 20
# Private memory, and all that is mapped: threads reserve more than they use.
_DATA_OCTETS = 512 * _MIB
_ADDRESS_OCTETS = 2048 * _MIB
_DESCRIPTORS = 4096
# Tasks beyond those that the user has already; the kernel counts all of a uid together.
_TASKS = 100


def confine(uid: int) -> None:
    """Set the limits, for root's child that is about to become ``uid``."""
    _at_most(resource.RLIMIT_CORE, 0)
    _at_most(resource.RLIMIT_NOFILE, _DESCRIPTORS)
    _at_most(resource.RLIMIT_DATA, _DATA_OCTETS)
    _at_most(resource.RLIMIT_AS, _ADDRESS_OCTETS)
    _at_most(resource.RLIMIT_NPROC, _tasks(uid) + _TASKS)


def descriptors(number: int) -> None:
    """Let this process, which is root's yet, have that many open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    choices = [(number, hard)]
    if hard != resource.RLIM_INFINITY:
        # Not even root may raise the hard limit everywhere.
        choices = [(number, max(hard, number)), (min(number, hard), hard)]
    for choice in choices:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, choice)
            return


def clean_environment(identity: Identity, home: str) -> None:
    """What a user's configuration sees of the daemon's environment: the time zone."""
    zone = os.environ.get("TZ")
    linux.wipe_environment()
    os.environ.clear()
    login = identity.login
    os.environ.update(PATH=PATH, HOME=home, LOGIN=login, LOGNAME=identity.account)
    os.environ["USER"] = identity.account
    if zone is not None:
        os.environ["TZ"] = zone
    os.chdir("/")


def _at_most(what: int, number: int) -> None:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        number = min(number, hard)
    resource.setrlimit(what, (number, number))


def _tasks(uid: int) -> int:
    """How many processes and threads a user has now, as far as can be seen."""
    count = 0
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}").st_uid == uid:
                        count += len(os.listdir(f"/proc/{name}/task"))
    return count
