"""The file with the daemon's process id, which is locked as long as the daemon runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from tofmipd.errors import CANT_CREATE, UNAVAILABLE, Fatal

_ELSE = "something else is in it"


class PidFile:
    """Takes the file at once, so that there is one daemon for it.  Raises Fatal.

    The lock belongs to all who have the open file: children close it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = _locked(path)
        while not self._is_there():
            # Who had it has removed it just before it was locked.
            os.close(self._descriptor)
            self._descriptor = _locked(path)

    def write(self) -> None:
        """The calling process is the daemon from now on.  Raises Fatal."""
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
            # Whatever the umask is, a script must be able to read it.
            os.fchmod(self._descriptor, 0o644)
        except OSError as error:
            text = f"cannot write the pid file {self._path}: {error.strerror}"
            raise Fatal(CANT_CREATE, text) from None

    def remove(self) -> None:
        """The daemon is gone.  Where somebody has put another file there, that stays."""
        with contextlib.suppress(OSError):
            if self._is_there():
                os.unlink(self._path)
        os.close(self._descriptor)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def fault_of(path: str) -> str:
    """Why a file that is there is no pid file, "" where nothing speaks against it."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return _reason(error)
    try:
        return "" if _is_pid_file(descriptor) else _ELSE
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)


def _locked(path: str) -> int:
    """A descriptor of the file, which this process has now.  Raises Fatal."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        text = f"cannot write the pid file {path}: {_reason(error)}"
        raise Fatal(CANT_CREATE, text) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        text = f"tofmipd is running already, pid {pid}, says {path}"
        raise Fatal(UNAVAILABLE, text) from None
    if not _is_pid_file(descriptor):
        os.close(descriptor)
        raise Fatal(CANT_CREATE, f"cannot write the pid file {path}: {_ELSE}")
    return descriptor


def _is_pid_file(descriptor: int) -> bool:
    """Whether it may be overwritten, and removed at the end: a typing error may name any file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    # Zeros are what a machine that went down may leave.
    octets = os.pread(descriptor, 100, 0).strip(b"\0\r\n\t ")
    return not octets or octets.isdigit()
