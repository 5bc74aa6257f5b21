"""Reading and writing the files of a user."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import stat
import time
from collections.abc import Iterable, Iterator

# Inode, size, times in ns and mode; None where there is no file.
Stamp = tuple[int, int, int, int, int] | None

LOCK_SECONDS = 10
# What is read whole; less where one process serves people who need not trust each other.
LIMIT_OCTETS = 64 << 20
CONFINED_LIMIT_OCTETS = 4 << 20
_DEVICE_OCTETS = 4096
_PAUSE_SECONDS = 0.02


def stamp(path: str) -> Stamp:
    """What changes when a file does."""
    try:
        return _stamp(os.stat(path))
    except (OSError, ValueError):
        return None


def _stamp(status: os.stat_result) -> Stamp:
    # The time of change also tells what has been written with the old time put back.
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode


def reason(error: Exception) -> str:
    """What to say of an error of the system."""
    return str(getattr(error, "strerror", None) or error)


class Files:
    """Opens what lies below, or is named from, the home directory of one user.

    ``confined``: this process does not run as the user, so nothing outside his home is opened,
    links followed; others would be read, and quoted in an error, with somebody else's rights.
    Methods raise OSError or ValueError.
    """

    def __init__(self, home: str, *, confined: bool = False) -> None:
        self.home = home
        self.confined = confined
        self._allowed: set[str] = set()

    def allow(self, paths: Iterable[str]) -> None:
        """These may be anywhere: the administrator has named them."""
        self._allowed.update(paths)

    def names_home(self, path: str) -> bool:
        """Whether a path, taken literally, is one below the home."""
        return os.path.normpath(path).startswith(os.path.normpath(self.home) + "/")

    def is_below_home(self, path: str) -> bool:
        """The same with all links followed."""
        try:
            return os.path.realpath(path).startswith(os.path.realpath(self.home) + "/")
        except ValueError:
            return False

    def refuse_outside(self, path: str) -> None:
        """Raises PermissionError for what is not to be opened, whether it is there or not."""
        if not self.confined or path in self._allowed:
            return
        if not f"{os.path.realpath(path)}/".startswith(os.path.realpath(self.home) + "/"):
            raise PermissionError(errno.EPERM, "is not below your home", path)

    def expand(self, path: str) -> str:
        """``~`` is the home directory, whatever HOME says, ``~name`` that of somebody else; other
        relative paths begin at home."""
        if path.startswith("~"):
            name, slash, rest = path[1:].partition("/")
            if not name:
                return self.home + slash + rest
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name).pw_dir + slash + rest
        return os.path.join(self.home, path) if path else path

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """A descriptor of the file."""
        # A pipe of that name would hold everything up without O_NONBLOCK.
        flags |= os.O_NONBLOCK | os.O_CLOEXEC
        if not self.confined or path in self._allowed:
            return os.open(path, flags, mode)
        self.refuse_outside(path)
        path = os.path.realpath(path)
        with self._directory(os.path.dirname(path)) as directory:
            return os.open(os.path.basename(path), flags | os.O_NOFOLLOW, mode, dir_fd=directory)

    @contextlib.contextmanager
    def _directory(self, path: str) -> Iterator[int]:
        """A directory within the home; what it is when it is open counts, not its name."""
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            home = os.path.realpath(self.home)
            found = os.path.realpath(path)
            with contextlib.suppress(OSError):
                found = os.readlink(f"/proc/self/fd/{directory}")
            if found != home and not found.startswith(home + "/"):
                raise PermissionError(errno.EPERM, "is not below your home", path)
            yield directory
        finally:
            os.close(directory)

    def read(self, path: str) -> bytes | None:
        """The whole file; None when there is none."""
        try:
            with open(path, "rb", opener=self.open) as file:
                found = os.fstat(file.fileno())
                if stat.S_ISFIFO(found.st_mode):
                    raise OSError(errno.EINVAL, "is a pipe, not a file", path)
                if not stat.S_ISREG(found.st_mode):
                    # Such as /dev/null; others may have no end.
                    return file.read(_DEVICE_OCTETS)
                limit = CONFINED_LIMIT_OCTETS if self.confined else LIMIT_OCTETS
                # What is asked for is allocated at once, so no more than the file seems to need.
                octets = file.read(min(found.st_size, limit) + 1)
                if found.st_size < len(octets) <= limit:
                    # It grows, or the kernel makes it up, as in /proc, and had no size for it.
                    octets += file.read(limit + 1 - len(octets))
                if len(octets) > limit:
                    raise OSError(errno.EFBIG, f"has more than {limit} octets", path)
                return octets
        except FileNotFoundError:
            return None

    def read_stamped(self, path: str) -> tuple[Stamp, bytes | None]:
        """The file with its stamp, which is taken before the octets."""
        before = stamp(path)
        return before, self.read(path)

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted."""
        if self.confined:
            self.refuse_outside(path)
            with self._directory(os.path.realpath(path)) as directory:
                return sorted(os.listdir(directory))
        return sorted(os.listdir(path))

    def replace(self, path: str, octets: bytes) -> None:
        """Write a whole file; a reader finds the old one or the new one."""
        temporary = f"{path}.{os.getpid()}.{time.monotonic_ns()}.new"
        descriptor = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with open(descriptor, "wb") as file:
                file.write(octets)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    @contextlib.contextmanager
    def locked(self, path: str) -> Iterator[int]:
        """A descriptor for reading and appending, of a file that is made if there is none.

        Nobody else who locks it writes meanwhile.  Raises TimeoutError after ten seconds.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        deadline = time.monotonic() + LOCK_SECONDS
        locked = False
        while not locked:
            descriptor = self.open(path, flags)
            try:
                _lock(descriptor, deadline)
                # Who had it locked may have put another file in its place.
                locked = os.path.samestat(os.fstat(descriptor), os.stat(path))
                if locked:
                    yield descriptor
            except FileNotFoundError:
                if locked:
                    raise
            finally:
                os.close(descriptor)


def _lock(descriptor: int, deadline: float) -> None:
    """Raises TimeoutError after ``deadline``, a time of the monotonic clock."""
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE_SECONDS)
    raise TimeoutError(errno.ETIMEDOUT, "somebody else keeps it locked")


def write_all(descriptor: int, octets: bytes) -> None:
    """Append all octets or none: what does not fit is taken back."""
    size = os.fstat(descriptor).st_size
    view = memoryview(octets)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def append_once(files: Files, path: str, *addresses: bytes) -> bool:
    """Put addresses on a list unless they are there already; whether any was put there.

    Lines are compared in lower case up to a ``#`` (TMDA reference, section 7, ``bare=append``).
    """
    with files.locked(path) as descriptor:
        text = _whole(descriptor)
        known = set()
        for line in text.lower().split(b"\n"):
            known |= {line.strip(), line.partition(b"#")[0].strip()}
        new: dict[bytes, bytes] = {}
        for address in addresses:
            if address.lower() not in known:
                new.setdefault(address.lower(), address)
        if not new:
            return False
        glue = b"\n" if text and not text.endswith(b"\n") else b""
        write_all(descriptor, glue + b"".join(address + b"\n" for address in new.values()))
        return True


def _whole(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts = []
    place = 0
    while place < size:
        part = os.pread(descriptor, size - place, place)
        if not part:
            break
        parts.append(part)
        place += len(part)
    return b"".join(parts)


def append(files: Files, path: str, text: bytes) -> None:
    """Write at the end of a file that others may write to as well."""
    with files.locked(path) as descriptor:
        write_all(descriptor, text)
