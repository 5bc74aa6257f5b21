"""Files that are to outlive a power cut and a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import IO

# What opening says of a link, a directory or a socket.
_NOT_PLAIN = (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO)
# What a file system says that cannot reserve.
_CANNOT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class NotPlain(Exception):
    """There is something else than a plain file."""


def flush(directory: str) -> None:
    """Have the names in a directory on the disk.  Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(path: str) -> IO[bytes]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o600), "r+b", buffering=0)


def open_plain(path: str, flags: int) -> int:
    """The descriptor of a file.  Raises NotPlain for a link and for what is no file, OSError."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise NotPlain from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlain
    return descriptor


def unlock(file: IO[bytes]) -> None:
    """Close it.  A process that somebody else's code has forked holds no lock of ours."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def reserve(file: IO[bytes], start: int, octets: int) -> None:
    """Have room from ``start`` on, read as NUL until it is written to.  Raises OSError."""
    try:
        os.posix_fallocate(file.fileno(), start, octets)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def same(file: IO[bytes], path: str) -> bool:
    """Whether the name still leads to the open file."""
    ours, theirs = os.fstat(file.fileno()), os.stat(path, follow_symlinks=False)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def write_all(file: IO[bytes], block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]


def write_at(file: IO[bytes], place: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(file.fileno(), view, place)
        view, place = view[written:], place + written
