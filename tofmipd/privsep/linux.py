"""What Linux can do for separated processes and Python's library does not offer: prctl, capset,
staying in a file system.

Elsewhere, and where the C library lacks a call, the functions do nothing: ``privsep.drop``
verifies what matters.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import sys

_SET_PDEATHSIG = 1
_SET_DUMPABLE = 4
_SET_NAME = 15
_CAPBSET_DROP = 24
_SET_NO_NEW_PRIVS = 38
_CAP_AMBIENT = 47
_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

PRESENT = sys.platform == "linux"
_LIBRARY = ctypes.CDLL(None, use_errno=True) if PRESENT else None


def _prctl(option: int, argument: int = 0) -> bool:
    if _LIBRARY is None:
        return False
    zero = ctypes.c_ulong(0)
    done = _LIBRARY.prctl(option, ctypes.c_ulong(argument), zero, zero, zero)
    return bool(done == 0)


def end_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends (prctl(2)).

    Changing the uid undoes it, so it comes after that.
    """
    _prctl(_SET_PDEATHSIG, number)


def hide() -> None:
    """Let no other process of the same uid look into this one (ptrace, /proc/PID/mem), and
    write no core."""
    _prctl(_SET_DUMPABLE, 0)


def gain_nothing() -> None:
    """No program that this process starts gets more rights than it has (setuid bits count not)."""
    _prctl(_SET_NO_NEW_PRIVS, 1)


def drop_bounding_set() -> None:
    """Root only: no process of this line can ever get a capability again."""
    number = 0
    while number < 64 and _prctl(_CAPBSET_DROP, number):
        number += 1


def drop_capabilities() -> None:
    """Give up all capabilities, the inheritable and ambient ones included (capabilities(7))."""
    if _LIBRARY is None:
        return
    _prctl(_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _LIBRARY.capset(header, nothing)


def wipe_environment() -> None:
    """Overwrite what this process was started with: to forget a variable leaves its octets, and a
    user's program can read all memory of its own process."""
    if _LIBRARY is None:
        return
    _LIBRARY.strlen.restype = ctypes.c_size_t
    entries = ctypes.POINTER(ctypes.c_void_p).in_dll(_LIBRARY, "environ")
    for number in itertools.count():
        entry = entries[number]
        if not entry:
            break
        ctypes.memset(entry, 0, _LIBRARY.strlen(ctypes.c_void_p(entry)))


def set_name(name: str) -> None:
    """What ps and top show; at most 15 octets."""
    if _LIBRARY is not None:
        _LIBRARY.prctl(_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def open_directory(base: str, name: str) -> int:
    """A descriptor of a directory in ``base`` that belongs to another user, for root to list.

    No link is followed, and where that can be told no mount is entered: a user may mount a file
    system of his own there (FUSE), which answers when it likes.  Raises OSError.
    """
    path = os.path.join(base, name)
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    if not PRESENT:
        return os.open(path, os.O_RDONLY | flags)
    # Such a descriptor asks nothing of the file system.
    below, above = os.open(path, os.O_PATH | flags), os.open(base, os.O_PATH | flags)
    try:
        if _mount_of(below) != _mount_of(above):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        return os.open(f"/proc/self/fd/{below}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(below)
        os.close(above)


def _mount_of(descriptor: int) -> str:
    """Raises OSError."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        return next((line for line in lines if line.startswith("mnt_id:")), "")
