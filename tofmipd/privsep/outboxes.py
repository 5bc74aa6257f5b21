"""The outboxes of global mode: a directory for each identity, its account's own, below one that is
root's; and when the monitor starts a worker only to look after one of them."""

from __future__ import annotations

import contextlib
import os
import stat
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

from tofmipd.handoff import durable
from tofmipd.handoff.outbox import BAD, ENVELOPE, NEW, when_due
from tofmipd.privsep import linux
from tofmipd.privsep.identity import Identity

# A name that holds both, if the login is not the account's: no account's name has this sign.
_BETWEEN = ":"
# What a login may show as it is.  No slash: it would lead to another directory.
_PLAIN = "@+=~!#$&'*^`{|},"
# Names that are looked at in one outbox: what a user puts there must not hold the monitor up.
_LOOK_LIMIT = 50_000
# How long a worker that has done its work stays away at least; and one that has died or has left
# undone what was due, which doubles each time.
_REST_SECONDS, _LONG_REST_SECONDS, _LONGEST_REST_SECONDS = 5.0, 60.0, 3600.0
# Those who have something to do when all begins come one after the other.
_STAGGER_SECONDS = 0.05
# How often it is looked whether somebody else has put something there.
_LOOK_SECONDS = 60.0


class OutboxError(Exception):
    """An outbox is not what it must be; ``str()`` says which, and what to do."""


def name_of(identity: Identity) -> str:
    """The name of an identity's directory."""
    account, login = identity.account, identity.login
    if login == account:
        return account
    return account + _BETWEEN + urllib.parse.quote(login, _PLAIN, errors="surrogateescape")


def identity_of(name: str) -> Identity:
    """The opposite of ``name_of``."""
    account, between, login = name.partition(_BETWEEN)
    if not between:
        return Identity(account, account)
    return Identity(account, urllib.parse.unquote(login, errors="surrogateescape"))


def make_base(base: str) -> None:
    """Have the directory of all outboxes: root's, in which nobody else can make or list anything.

    Raises OutboxError.
    """
    try:
        os.makedirs(base, 0o711, exist_ok=True)
        check_base(base)
        os.chmod(base, 0o711)
    except OSError as error:
        raise OutboxError(f"{base} cannot be made: {error.strerror}; see --outbox") from None


def check_base(base: str) -> None:
    """Raises OutboxError unless a directory that is there can be that of all outboxes; OSError."""
    status = os.stat(base, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        raise OutboxError(f"{base} is not a directory; --outbox names one")
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OutboxError(f"{base} must be root's and writable by nobody else (chmod 711)")


def make_own(base: str, identity: Identity, uid: int, gid: int) -> str:
    """Have an identity's own directory, as root; its path.  Raises OutboxError."""
    path = os.path.join(base, name_of(identity))
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            durable.flush(base)
        status = os.stat(path, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() != uid:
            # New; or whoever made it has died of it.
            os.chown(path, uid, gid, follow_symlinks=False)
            status = os.stat(path, follow_symlinks=False)
    except OSError as error:
        raise OutboxError(f"{path} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o022:
        raise OutboxError(f"{path} must be a directory of uid {uid} that nobody else can write to")
    return path


def due_of(base: str, name: str) -> float | None:
    """When something in an outbox is to be tried next (seconds since the epoch), None for never.

    It is long ago where there is too much to look at.
    """
    now = time.time()
    due = None
    try:
        descriptor = linux.open_directory(base, name)
    except OSError:
        return None
    try:
        with os.scandir(descriptor) as files:
            for number, file in enumerate(files):
                if number >= _LOOK_LIMIT:
                    return 0.0
                middle, suffix = file.name.rpartition(ENVELOPE)[1:]
                if middle and suffix not in (NEW, BAD):
                    with contextlib.suppress(OSError):
                        at = when_due(file.stat(follow_symlinks=False).st_mtime, now)
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


def _names(base: str) -> Iterator[tuple[str, int]]:
    """All outboxes, each with the time of its last change (ns)."""
    with contextlib.suppress(OSError), os.scandir(base) as files:
        for file in files:
            if file.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    yield file.name, file.stat(follow_symlinks=False).st_mtime_ns


@dataclass(slots=True)
class Chores:
    """Which identities' outboxes have something to do, and when (time.monotonic()).

    ``base`` is the directory of all outboxes, "" for none.
    """

    base: str
    _due: dict[Identity, float] = field(default_factory=dict)
    _rests: dict[Identity, float] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    _look_at: float = 0.0

    def begin(self) -> None:
        """See what was left when all this ran last."""
        if self.base:
            for number, name in enumerate(self._changed()):
                self._plan_unless_planned(name, number * _STAGGER_SECONDS)

    def look(self, now: float) -> None:
        """Now and then, see what others have put there: a tool, a report."""
        if self.base and now >= self._look_at:
            for name in self._changed():
                self._plan_unless_planned(name, _REST_SECONDS)

    def _changed(self) -> list[str]:
        """The outboxes in which files have come or gone since this was asked last."""
        self._look_at = time.monotonic() + _LOOK_SECONDS
        old, self._seen = self._seen, dict(_names(self.base))
        return sorted(name for name, changed in self._seen.items() if old.get(name) != changed)

    def _plan_unless_planned(self, name: str, rest: float) -> None:
        identity = identity_of(name)
        wait = self._wait(identity) if identity not in self._due else None
        if wait is not None:
            self._plan(identity, max(wait, rest))

    def ended(self, identity: Identity, *, died: bool) -> None:
        """A worker of that identity has ended: somebody must go on when something is due."""
        wait = self._wait(identity) if self.base else None
        if wait is None:
            self._due.pop(identity, None)
            self._rests.pop(identity, None)
        elif died or wait < -_REST_SECONDS:
            last = self._rests.get(identity, _LONG_REST_SECONDS / 2)
            self._rests[identity] = min(2 * last, _LONGEST_REST_SECONDS)
            self._plan(identity, max(wait, self._rests[identity]))
        else:
            self._rests.pop(identity, None)
            self._plan(identity, max(wait, _REST_SECONDS))

    def _wait(self, identity: Identity) -> float | None:
        """Seconds until something is due, None for never."""
        due = due_of(self.base, name_of(identity))
        return None if due is None else due - time.time()

    def _plan(self, identity: Identity, seconds: float) -> None:
        self._due[identity] = time.monotonic() + seconds

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
        self._plan(identity, _REST_SECONDS)
