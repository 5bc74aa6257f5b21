"""Replace a file as a whole: whoever reads it finds the old content or the new, whatever happens.

The new content is written to ``.NAME.new`` in the same directory, which then gets the name of the
file.  That other file is the lock as well: who has locked it, and finds it still in its place, is
alone.  One that was left by a process that was killed is thrown away by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable

from tofmipd.errors import CANT_CREATE, TEMPORARY, Fatal

WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.02


def rewrite(path: str, change: Callable[[], bytes]) -> None:
    """Replace the file by what ``change`` makes of it while nobody else replaces it.

    A symbolic link stays, and what it leads to is replaced.  Mode and group stay; a file that is
    not there yet gets mode 0600.  Raises Fatal, and what ``change`` raises; then all is as before.
    """
    path = os.path.realpath(path)
    directory, name = os.path.split(path)
    beside = f"{directory}/.{name}.new"
    try:
        descriptor = _take(beside)
        try:
            _fill(descriptor, change(), path)
            os.rename(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                if _stands_at(descriptor, beside):
                    os.unlink(beside)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        text = f"{path}: cannot be written ({error.strerror}); it is left as it was"
        raise Fatal(CANT_CREATE, text) from None
    # The new file has its name by now, and some file systems cannot do this.
    with contextlib.suppress(OSError):
        _sync(directory)


def _take(path: str) -> int:
    """A descriptor of an empty file that is ours alone until it is closed."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            descriptor, writable = _open(path)
        except FileNotFoundError:
            if not os.path.isdir(os.path.dirname(path)):
                raise
            continue  # renamed while we looked at it
        try:
            if not _lock(descriptor):
                if time.monotonic() > deadline:
                    raise Fatal(
                        TEMPORARY,
                        f"{path}: locked for {WAIT_SECONDS:g} s by another process that changes"
                        " the same file; try again when it has ended",
                    )
                time.sleep(_POLL_SECONDS)
            elif _stands_at(descriptor, path):
                if writable and not os.fstat(descriptor).st_size:
                    return os.dup(descriptor)
                os.unlink(path)
        finally:
            os.close(descriptor)


def _open(path: str) -> tuple[int, bool]:
    """A descriptor, and whether it can be written to: one that was finished may have got mode 0400
    before it was renamed."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    writable = True
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except PermissionError:
        if not os.access(os.path.dirname(path), os.W_OK):
            raise
        writable = False
        descriptor = os.open(path, os.O_RDONLY | flags)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
        os.close(descriptor)
        raise Fatal(CANT_CREATE, f"{path} is in the way, and not ours; remove it")
    return descriptor, writable


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stands_at(descriptor: int, path: str) -> bool:
    """Whether the file is still the one of that name: who had the lock may have renamed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _fill(descriptor: int, octets: bytes, path: str) -> None:
    """Write the content, with mode and group of the file at ``path``."""
    with open(descriptor, "wb", closefd=False) as file:
        file.write(octets)
    mode = 0o600
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(path)
        mode = stat.S_IMODE(status.st_mode)
        # Not everybody may give a file to a group; with these modes the group may do nothing.
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, -1, status.st_gid)
    os.fchmod(descriptor, mode)
    os.fsync(descriptor)


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
