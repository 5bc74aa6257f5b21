"""The durable place of copies that could not be handed over after the client was told 250.

Each message is a pair of files: ``ID.content`` holds the header blocks of its copies and then the
body, ``ID.envelope`` all else (``stored``).  The envelope's suffix says how it stands: ``.new``
while the pair is being written, ``.busy`` while somebody hands it over, ``.bad`` when nobody will.
A lock on the envelope file tells whether somebody really has it: it ends with its process.  The
time of last modification of an envelope without suffix is when it is to be tried next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from tofmipd.content import Content
from tofmipd.handoff import stored as text
from tofmipd.handoff.copy import Copy
from tofmipd.handoff.stored import BadEnvelope, Event, Origin, Stored

ENVELOPE, CONTENT = ".envelope", ".content"
NEW, BUSY, BAD = ".new", ".busy", ".bad"
WAITING = ""
_STATES = (WAITING, NEW, BUSY, BAD)
# What nobody has touched for so long was left behind by a crash.
_LEFT_BEHIND_SECONDS = 600
_ENVELOPE_LIMIT_OCTETS = 64 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """An envelope file; ``due`` is in seconds since the epoch."""

    id: str
    state: str
    due: float


class Outbox:
    """A directory of pairs; made when it is first needed.  Safe for threads and processes."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._numbers = itertools.count(1)

    def path(self, id_: str, suffix: str) -> str:
        return os.path.join(self.directory, id_ + suffix)

    def prepare(self, copies: Sequence[Copy], origin: Origin, id_: str = "") -> Draft:
        """Write a pair that nobody will hand over yet.  Raises OSError; then there is nothing."""
        stored = text.stored_of(copies, origin)
        return self._draft(stored, [*(copy.header for copy in copies), *_body(copies[0])], id_)

    def _draft(self, stored: Stored, content: Iterable[bytes], id_: str) -> Draft:
        """As ``prepare``, for ready-made octets.  Raises FileExistsError for an ``id_`` in use."""
        id_ = id_ or f"tofmipd.{os.getpid()}.{time.time():.0f}.{next(self._numbers)}"
        try:
            envelope = self._create(id_ + ENVELOPE + NEW)
        except FileNotFoundError:
            os.makedirs(self.directory, 0o700, exist_ok=True)
            envelope = self._create(id_ + ENVELOPE + NEW)
        draft = Draft(self, id_, envelope)
        try:
            fcntl.flock(envelope, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.fill(stored, content)
        except BaseException:
            draft.discard()
            raise
        return draft

    def _create(self, name: str) -> IO[bytes]:
        return _create(os.path.join(self.directory, name))

    def entries(self) -> list[Entry]:
        """All envelopes.  Raises OSError, but not where there is no outbox yet."""
        found = []
        try:
            with os.scandir(self.directory) as files:
                for file in files:
                    id_, middle, suffix = file.name.rpartition(ENVELOPE)
                    if middle and id_ and suffix in _STATES:
                        with contextlib.suppress(FileNotFoundError):
                            due = file.stat(follow_symlinks=False).st_mtime
                            found.append(Entry(id_, suffix, due))
        except FileNotFoundError:
            pass
        return found

    def holds(self, id_: str) -> bool:
        """Whether it is there to be handed over."""
        path = self.path(id_, ENVELOPE)
        return any(os.path.lexists(path + state) for state in (WAITING, BUSY))

    def take(self, id_: str) -> Pair | None:
        """A pair for oneself, or None if it is gone or somebody else has it.

        Raises BadEnvelope, and OSError.
        """
        for suffix in (WAITING, BUSY, BAD):
            envelope = self._lock(id_, suffix)
            if envelope is not None:
                try:
                    return Pair(self, id_, suffix, envelope)
                except BaseException:
                    envelope.close()
                    raise
        return None

    def _lock(self, id_: str, suffix: str) -> IO[bytes] | None:
        path = self.path(id_, ENVELOPE + suffix)
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = open(os.open(path, flags), "r+b", buffering=0)  # noqa: SIM115 - the caller's
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(file, path):
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        file.close()
        return None

    def spoil(self, id_: str) -> None:
        """Put an envelope that cannot be read aside, for a person to look at."""
        for suffix in (WAITING, BUSY):
            with contextlib.suppress(FileNotFoundError):
                envelope = self.path(id_, ENVELOPE)
                os.rename(envelope + suffix, envelope + BAD)

    def sweep(self) -> int:
        """Remove what crashes have left behind: pairs that nobody answers for.  Returns how many.

        Raises OSError.
        """
        horizon = time.time() - _LEFT_BEHIND_SECONDS
        count = 0
        for entry in self.entries():
            if entry.state == NEW and entry.due < horizon:
                file = self._lock(entry.id, NEW)
                if file is not None:
                    with file:
                        count += 1
                        self._remove(entry.id, NEW)
        known = {entry.id for entry in self.entries()}
        for name in _names(self.directory):
            id_, middle, _ = name.rpartition(CONTENT)
            if middle and name.endswith(CONTENT) and id_ not in known:
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(self.path(id_, CONTENT)).st_mtime < horizon:
                        os.unlink(self.path(id_, CONTENT))
        return count

    def _remove(self, id_: str, state: str) -> None:
        """The envelope goes first: without it the content means nothing."""
        for suffix in (ENVELOPE + state, CONTENT):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(id_, suffix))

    def flush(self) -> None:
        """The names in the directory are on the disk after that.  Raises OSError."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Draft:
    """A pair for which nobody answers yet; it is either committed or discarded."""

    def __init__(self, outbox: Outbox, id_: str, envelope: IO[bytes]) -> None:
        self._outbox = outbox
        self.id = id_
        self._envelope: IO[bytes] | None = envelope
        self._content: IO[bytes] | None = None
        self._name = outbox.path(id_, ENVELOPE + NEW)

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def fill(self, stored: Stored, content: Iterable[bytes]) -> None:
        """Raises OSError."""
        assert self._envelope is not None
        self._content = _create(self._outbox.path(self.id, CONTENT))
        for block in content:
            _write_all(self._content, block)
        _write_all(self._envelope, text.encode(stored))

    def commit(self, events: Sequence[Event], due: float) -> None:
        """From now on the message is not lost; what has happened to it already are ``events``.

        Raises OSError; then nobody answers for it.
        """
        envelope, content = self._envelope, self._content
        assert envelope is not None
        assert content is not None
        _write_all(envelope, b"".join([event.encode() for event in events]))
        os.fsync(content.fileno())
        os.fsync(envelope.fileno())
        os.utime(envelope.fileno(), (due, due))
        path = self._outbox.path(self.id, ENVELOPE)
        os.rename(self._name, path)
        self._name = path
        self._outbox.flush()
        self._close()

    def discard(self) -> None:
        """Unless it has been committed, it never was.  Safe to call twice."""
        if self._envelope is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._name)
            if self._content is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._outbox.path(self.id, CONTENT))
            self._close()

    def _close(self) -> None:
        for file in (self._envelope, self._content):
            if file is not None:
                file.close()
        self._envelope = self._content = None


class Pair:
    """A message of the outbox that nobody else has until it is let go."""

    def __init__(self, outbox: Outbox, id_: str, state: str, envelope: IO[bytes]) -> None:
        """Raises BadEnvelope, OSError."""
        self._outbox = outbox
        self.id = id_
        self.state = state
        self._envelope = envelope
        octets = os.pread(envelope.fileno(), _ENVELOPE_LIMIT_OCTETS, 0)
        self.stored, self.history = text.decode(octets)
        if not octets.endswith(b"\n"):
            # A line that was cut off; nothing may be appended to it.
            os.ftruncate(envelope.fileno(), octets.rfind(b"\n") + 1)
        self._due = os.fstat(envelope.fileno()).st_mtime
        self._content: Content | None = None

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.let_go()

    @property
    def due(self) -> float:
        return self._due

    def mark(self, state: str) -> None:
        """Show how it stands by the envelope's name."""
        if state != self.state:
            path = self._outbox.path(self.id, ENVELOPE)
            os.rename(path + self.state, path + state)
            self.state = state

    def content(self) -> Content:
        """The content file, which stays the pair's.  Raises BadEnvelope, OSError."""
        if self._content is None:
            path = self._outbox.path(self.id, CONTENT)
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                descriptor = os.open(path, flags)
            except FileNotFoundError:
                raise BadEnvelope("its content file is gone") from None
            size = os.fstat(descriptor).st_size
            self._content = Content.of_file(descriptor, size)
            if size < self.stored.body_start:
                raise BadEnvelope("its content file is too short")
        return self._content

    def copy(self, number: int, recipients: Sequence[int] = ()) -> Copy:
        """One of its copies, for some of its recipients if they are given by their numbers.

        Raises BadEnvelope, OSError.
        """
        content = self.content()
        copies = self.stored.copies
        start = sum(one.header_octets for one in copies[:number])
        size = copies[number].header_octets
        header = os.pread(content.descriptor(), size, start)
        everybody = copies[number].recipients
        chosen = tuple(everybody[n] for n in recipients) if recipients else everybody
        return Copy(
            copies[number].sender,
            chosen,
            header,
            content,
            self.stored.body_start,
            self.stored.parameters,
        )

    def tell(self, *events: Event) -> None:
        """Write down what has happened, at once and on the disk.  Raises OSError."""
        for event in events:
            self.history.add(event)
        _write_all(self._envelope, b"".join([event.encode() for event in events]))
        os.fdatasync(self._envelope.fileno())

    def put_off(self, due: float) -> None:
        """Try it next at that time.  Raises OSError."""
        self._due = due

    def remove(self) -> None:
        """It is done with."""
        self._outbox._remove(self.id, self.state)
        self.state = "gone"
        self.let_go()

    def let_go(self) -> None:
        """Let others have it.  Safe to call twice."""
        if self._content is not None:
            self._content.close()
            self._content = None
        if self._envelope.closed:
            return
        if self.state == BUSY:
            with contextlib.suppress(OSError):
                self.mark(WAITING)
        if self.state == WAITING:
            with contextlib.suppress(OSError):
                os.utime(self._envelope.fileno(), (self._due, self._due))
        self._envelope.close()


def is_full(error: OSError) -> bool:
    """Whether there is no room, rather than no right."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _body(copy: Copy) -> Iterator[bytes]:
    return copy.content.blocks(copy.body_start)


def _create(path: str) -> IO[bytes]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o600), "r+b", buffering=0)


def _same(file: IO[bytes], path: str) -> bool:
    """Whether the name still leads to the open file."""
    ours, theirs = os.fstat(file.fileno()), os.stat(path, follow_symlinks=False)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _names(directory: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(directory)
    return []


def _write_all(file: IO[bytes], block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]
