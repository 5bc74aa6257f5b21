"""The outboxes of global mode: a directory for each identity, its account's own, below one that is
root's; and when the monitor starts a worker only to look after one of them."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tofmipd.handoff.outbox import BAD, ENVELOPE, NEW
from tofmipd.privsep.identity import Identity

# A name that holds both, if the login is not the account's: no account's name has this sign.
_BETWEEN = ":"
# Envelopes that are looked at in one outbox: what a user puts there must not hold the monitor up.
_LOOK_LIMIT = 1000
# How long a worker that has ended well, or died, stays away at least.
_REST_SECONDS, _REST_OF_THE_DEAD_SECONDS = 5.0, 60.0
# Those who have something to do when all begins come one after the other.
_STAGGER_SECONDS = 0.05


class OutboxError(Exception):
    """An outbox is not what it must be; ``str()`` says which, and what to do."""


def name_of(identity: Identity) -> str:
    """The name of an identity's directory."""
    account, login = identity.account, identity.login
    return login if login == account else f"{account}{_BETWEEN}{login}"


def identity_of(name: str) -> Identity:
    """The opposite of ``name_of``."""
    account, between, login = name.partition(_BETWEEN)
    return Identity(account, login if between else account)


def make_base(base: str) -> None:
    """Have the directory of all outboxes: root's, in which nobody else can make or list anything.

    Raises OutboxError.
    """
    try:
        os.makedirs(base, 0o711, exist_ok=True)
        status = os.stat(base, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            raise OutboxError(f"{base} is not a directory; --outbox names one")
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise OutboxError(f"{base} must be root's and writable by nobody else (chmod 711)")
        os.chmod(base, 0o711)
    except OSError as error:
        raise OutboxError(f"{base} cannot be made: {error.strerror}; see --outbox") from None


def make_own(base: str, identity: Identity, uid: int, gid: int) -> str:
    """Have an identity's own directory, as root; its path.  Raises OutboxError."""
    path = os.path.join(base, name_of(identity))
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            os.chown(path, uid, gid, follow_symlinks=False)
        status = os.stat(path, follow_symlinks=False)
    except OSError as error:
        raise OutboxError(f"{path} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o022:
        raise OutboxError(f"{path} must be a directory of uid {uid} that nobody else can write to")
    return path


def due_of(base: str, name: str) -> float | None:
    """When something in an outbox is to be tried next (seconds since the epoch), None for never."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    due = None
    try:
        descriptor = os.open(os.path.join(base, name), flags)
    except OSError:
        return None
    try:
        with os.scandir(descriptor) as files:
            for number, file in enumerate(files):
                if number >= _LOOK_LIMIT:
                    break
                middle, suffix = file.name.rpartition(ENVELOPE)[1:]
                if middle and suffix not in (NEW, BAD):
                    with contextlib.suppress(OSError):
                        at = file.stat(follow_symlinks=False).st_mtime
                        due = at if due is None else min(at, due)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return due


def may_hold_any(path: str) -> bool:
    """Whether an outbox may hold messages; root follows no link for that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return not isinstance(error, (FileNotFoundError, NotADirectoryError))
    try:
        with os.scandir(descriptor) as files:
            for number, file in enumerate(files):
                if ENVELOPE in file.name or number >= _LOOK_LIMIT:
                    return True
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _names(base: str) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(base) as files:
        for file in files:
            if file.is_dir(follow_symlinks=False):
                yield file.name


@dataclass(slots=True)
class Chores:
    """Which identities' outboxes have something to do, and when (time.monotonic()).

    ``base`` is the directory of all outboxes, "" for none.
    """

    base: str
    _due: dict[Identity, float] = field(default_factory=dict)

    def begin(self) -> None:
        """See what was left when all this ran last."""
        if self.base:
            for number, name in enumerate(sorted(_names(self.base))):
                self._plan(identity_of(name), number * _STAGGER_SECONDS)

    def ended(self, identity: Identity, *, died: bool) -> None:
        """A worker of that identity has ended: somebody must go on when something is due."""
        if self.base:
            self._plan(identity, _REST_OF_THE_DEAD_SECONDS if died else _REST_SECONDS)

    def _plan(self, identity: Identity, rest: float) -> None:
        due = due_of(self.base, name_of(identity))
        if due is None:
            self._due.pop(identity, None)
        else:
            self._due[identity] = time.monotonic() + max(due - time.time(), rest)

    def next(self) -> float | None:
        """When the next one is due, None for never."""
        return min(self._due.values(), default=None)

    def take(self, now: float) -> list[Identity]:
        """Those that are due; they are not asked for again before a worker of theirs has ended."""
        found = [identity for identity, due in self._due.items() if due <= now]
        for identity in found:
            del self._due[identity]
        return found

    def put_off(self, identity: Identity) -> None:
        """There is no place for its worker now."""
        self._due[identity] = time.monotonic() + _REST_SECONDS
