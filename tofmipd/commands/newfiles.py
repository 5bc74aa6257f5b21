"""Files that tools make: whole or not at all, and never in the place of something else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from tofmipd.errors import CANT_CREATE, Fatal

# Of file systems that know no second name of a file.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_new(path: str, text: str, mode: int = 0o600) -> None:
    """Write a file that must not exist yet.  Raises Fatal."""
    if not write_if_missing(path, text, mode):
        raise Fatal(CANT_CREATE, f"{path} is there already and is left as it is")


def write_if_missing(path: str, text: str, mode: int = 0o600) -> bool:
    """Whether the file was written; it has this mode, whatever the umask.  Raises Fatal."""
    if os.path.lexists(path):
        return False
    directory, name = os.path.split(path)
    beside = os.path.join(directory, f".{name}.{os.getpid()}.new")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            return _name(beside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
    except OSError as error:
        raise Fatal(CANT_CREATE, f"cannot make {path}: {error.strerror}") from None


def _name(beside: str, path: str) -> bool:
    """Whether the finished file got its name; not if another has it by now."""
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            return False
        os.rename(beside, path)
    return True


def make_directory(path: str, mode: int = 0o700) -> None:
    """Have a directory, and those above it; new ones have this mode, whatever the umask.

    Raises Fatal.
    """
    try:
        _make(path, mode)
    except OSError as error:
        raise Fatal(CANT_CREATE, f"cannot make {path}: {error.strerror}") from None


def _make(path: str, mode: int) -> None:
    """Raises OSError."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    if above != path:
        _make(above, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, mode)
    if not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def demand_own(path: str, uid: int) -> None:
    """Refuse to write into a directory that is a symbolic link, or another's.  Raises Fatal."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Fatal(CANT_CREATE, f"cannot make {path}: {error.strerror}") from None
    fault = ""
    if stat.S_ISLNK(status.st_mode):
        fault = f"a symbolic link to {os.readlink(path)}"
    elif not stat.S_ISDIR(status.st_mode):
        fault = "not a directory"
    elif status.st_uid != uid:
        fault = f"that of uid {status.st_uid}, not yours"
    if fault:
        raise Fatal(CANT_CREATE, f"{path} is {fault}; nothing is written there")
