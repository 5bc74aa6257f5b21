"""What a unit of systemd leaves to a service, for tests: no systemd here would run it.

Run as a program, ``sandbox.py RULES COMMAND...``, it is what becomes the service.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
# Of the filter: do not set no_new_privs; of an argument: equal to.
_NO_NEW_PRIVS, _EQUAL = 3, 4
_BOUNDING_SET_DROP = 24
_LAST_CAPABILITY = 40
# ProtectSystem=full, ProtectKernelTunables=.
_READ_ONLY = ("/usr", "/boot", "/etc", "/proc/sys")


class _Argument(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
    )


def sandboxed(unit: Path, directory: Path) -> tuple[str, ...]:
    """What stands before a command that is to have no more than the unit leaves it.

    Those of its settings count that a sandbox of this kind can keep: capabilities, system calls,
    address families, file systems that cannot be written to.
    """
    from units import settings, system_calls, words

    found = settings(unit)
    rules = {
        "capabilities": words(found, "CapabilityBoundingSet"),
        "calls": sorted(set(system_calls(words(found, "SystemCallFilter")))),
        "families": words(found, "RestrictAddressFamilies"),
        "read_only": _READ_ONLY if words(found, "ProtectSystem") == ["full"] else (),
    }
    file = directory / "sandbox.json"
    file.write_text(json.dumps(rules))
    return ("unshare", "--mount", sys.executable, "-I", __file__, str(file))


def _main() -> None:
    rules = json.loads(Path(sys.argv[1]).read_text())
    for path in rules["read_only"]:
        subprocess.run(["mount", "--rbind", path, path], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
    _filter(rules["calls"], rules["families"])
    _keep(rules["capabilities"])
    os.execvp(sys.argv[2], sys.argv[2:])


def _filter(calls: list[str], families: list[str]) -> None:
    """Allow these calls, and sockets of these families; the others fail with EPERM."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_REFUSE)))
    library.seccomp_attr_set(context, _NO_NEW_PRIVS, 0)

    def allow(number: int, *arguments: _Argument) -> None:
        array = (_Argument * len(arguments))(*arguments)
        done = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(_ALLOW), number, len(arguments), array
        )
        assert done == 0, os.strerror(-done)

    for name in calls:
        number = library.seccomp_syscall_resolve_name(name.encode())
        # Many are another architecture's.
        if number >= 0 and name != "socket":
            allow(number)
    number = library.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        allow(number, _Argument(0, _EQUAL, getattr(socket, family), 0))
    done = library.seccomp_load(context)
    assert done == 0, os.strerror(-done)


def _keep(names: list[str]) -> None:
    """Drop all capabilities but these from the bounding set."""
    library = ctypes.CDLL("libcap.so.2")
    prctl = ctypes.CDLL(None).prctl
    kept = set()
    for name in names:
        number = ctypes.c_int()
        assert library.cap_from_name(name.lower().encode(), ctypes.byref(number)) == 0, name
        kept.add(number.value)
    for number in range(_LAST_CAPABILITY + 1):
        if number not in kept:
            assert prctl(_BOUNDING_SET_DROP, ctypes.c_ulong(number), 0, 0, 0) == 0, number


if __name__ == "__main__":
    _main()
