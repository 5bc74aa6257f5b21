"""The durable place of copies that could not be handed over after the client was told 250.

Each message is a pair of files: ``ID.content`` holds the header blocks of its copies and then the
body, ``ID.envelope`` all else (``stored``).  The envelope's suffix says how it stands: ``.new``
while the pair is being written, ``.busy`` while somebody hands it over, ``.bad`` when nobody will.
A lock on the envelope file tells whether somebody really has it: it ends with its process.  The
time of last modification of an envelope without suffix is when it is to be tried next.

What is told of a copy that has been taken must not fail for want of room, or the next hop would
get it again.  So the room for it is reserved before the copy is handed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO

from tofmipd.content import Content
from tofmipd.handoff import durable
from tofmipd.handoff import stored as text
from tofmipd.handoff.copy import Copy
from tofmipd.handoff.stored import EVENT_LIMIT_OCTETS, BadEnvelope, Event, Origin, Stored

ENVELOPE, CONTENT = ".envelope", ".content"
NEW, BUSY, BAD = ".new", ".busy", ".bad"
WAITING = ""
_STATES = (WAITING, NEW, BUSY, BAD)
# What nobody has touched for so long was left behind by a crash.
_LEFT_BEHIND_SECONDS = 600
_ENVELOPE_LIMIT_OCTETS = 1 << 30
# No pause is that long: a time beyond it comes of a clock that was wrong.
_FARTHEST_SECONDS = 5 * 3600.0


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
        """Write a pair that nobody will hand over yet.  Raises OSError; then there is nothing.

        That is a FileExistsError for an ``id_`` in use.
        """
        stored = text.stored_of(copies, origin)
        while True:
            name = id_ or f"tofmipd.{os.getpid()}.{time.time():.0f}.{next(self._numbers)}"
            content = itertools.chain((copy.header for copy in copies), _body(copies[0]))
            try:
                return self._draft(stored, content, name)
            except FileExistsError:
                # Somebody elsewhere may have our number, and the same disk.
                if id_ or not self._is_taken(name):
                    raise

    def _draft(self, stored: Stored, content: Iterable[bytes], id_: str) -> Draft:
        """Raises OSError."""
        try:
            envelope = durable.create(self.path(id_, ENVELOPE + NEW))
        except FileNotFoundError:
            os.makedirs(self.directory, 0o700, exist_ok=True)
            durable.flush(os.path.dirname(os.path.abspath(self.directory)))
            envelope = durable.create(self.path(id_, ENVELOPE + NEW))
        draft = Draft(self, id_, envelope)
        try:
            fcntl.flock(envelope, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.fill(stored, content)
        except BaseException:
            draft.discard()
            raise
        return draft

    def _is_taken(self, id_: str) -> bool:
        names = (ENVELOPE + NEW, CONTENT)
        return any(os.path.lexists(self.path(id_, name)) for name in names)

    def exists(self) -> bool:
        """Whether there has ever been anything."""
        return os.path.isdir(self.directory)

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

    def has(self, id_: str) -> bool:
        """Whether somebody answers for that message, or has given it up."""
        return self._there(id_, WAITING, BUSY, BAD)

    def waits(self, id_: str) -> bool:
        """Whether it is still to be handed over, by whomever."""
        return self._there(id_, WAITING, BUSY)

    def _there(self, id_: str, *states: str) -> bool:
        """One that is renamed meanwhile may be missed under both names, but not three times."""
        names = [self.path(id_, ENVELOPE + state) for state in states]
        return any(os.path.lexists(name) for _ in range(3) for name in names)

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
        try:
            file = open(durable.open_plain(path, os.O_RDWR), "r+b", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            return None
        except durable.NotPlain:
            raise BadEnvelope("it is no plain file") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if durable.same(file, path):
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

    def forget(self, id_: str) -> None:
        """Remove what a crash has left of a draft of that name.  Raises OSError."""
        file = self._lock(id_, NEW)
        if file is not None:
            with file:
                self._abandon(id_)
        elif not (self.has(id_) or os.path.lexists(self.path(id_, ENVELOPE + NEW))):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(id_, CONTENT))

    def sweep(self) -> int:
        """Remove what crashes have left behind: pairs that nobody answers for.  Returns how many.

        Raises OSError.
        """
        horizon = time.time() - _LEFT_BEHIND_SECONDS
        count = 0
        for entry in self.entries():
            if entry.state == NEW and entry.due < horizon:
                with contextlib.suppress(BadEnvelope, OSError):
                    file = self._lock(entry.id, NEW)
                    if file is not None:
                        with file:
                            self._abandon(entry.id)
                        count += 1
        known = {entry.id for entry in self.entries()}
        for name in _names(self.directory):
            id_ = name.removesuffix(CONTENT)
            if id_ != name and id_ not in known:
                # What cannot be removed is nobody's message, and no reason to give the others up.
                with contextlib.suppress(BadEnvelope, OSError):
                    content = os.stat(self.path(id_, CONTENT), follow_symlinks=False)
                    if content.st_mtime < horizon:
                        self.forget(id_)
        return count

    def _abandon(self, id_: str) -> None:
        """A draft is nobody's; what was committed under its name stays."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(id_, ENVELOPE + NEW))
        if not self.has(id_):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(id_, CONTENT))

    def _remove(self, id_: str, state: str) -> None:
        """The envelope goes first: without it the content means nothing."""
        for suffix in (ENVELOPE + state, CONTENT):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(id_, suffix))

    def flush(self) -> None:
        """The names in the directory are on the disk after that.  Raises OSError."""
        durable.flush(self.directory)


class Draft:
    """A pair for which nobody answers yet; it is either committed or discarded."""

    def __init__(self, outbox: Outbox, id_: str, envelope: IO[bytes]) -> None:
        self._outbox = outbox
        self.id = id_
        self._envelope: IO[bytes] | None = envelope
        self._content: IO[bytes] | None = None
        self._name = outbox.path(id_, ENVELOPE + NEW)
        self._end = 0

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
        self._content = durable.create(self._outbox.path(self.id, CONTENT))
        for block in content:
            durable.write_all(self._content, block)
        octets = text.encode(stored)
        durable.write_all(self._envelope, octets)
        self._end = len(octets)
        recipients = sum(len(copy.recipients) for copy in stored.copies)
        durable.reserve(self._envelope, self._end, recipients * EVENT_LIMIT_OCTETS)

    def commit(self, events: Sequence[Event], due: float) -> None:
        """From now on the message is not lost; what has happened to it already are ``events``.

        Raises OSError; then nobody answers for it.
        """
        envelope, content = self._envelope, self._content
        assert envelope is not None
        assert content is not None
        octets = b"".join([event.encode() for event in events])
        durable.write_at(envelope, self._end, octets)
        os.ftruncate(envelope.fileno(), self._end + len(octets))
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
        if self._envelope is not None:
            durable.unlock(self._envelope)
        if self._content is not None:
            self._content.close()
        self._envelope = self._content = None


class Pair:
    """A message of the outbox that nobody else has until it is let go."""

    def __init__(self, outbox: Outbox, id_: str, state: str, envelope: IO[bytes]) -> None:
        """Raises BadEnvelope, OSError."""
        self._outbox = outbox
        self.id = id_
        self.state = state
        self._envelope = envelope
        status = os.fstat(envelope.fileno())
        if status.st_size > _ENVELOPE_LIMIT_OCTETS:
            raise BadEnvelope("it is too long")
        octets = os.pread(envelope.fileno(), status.st_size, 0)
        self.stored, self.history = text.decode(octets)
        # What follows is a line that was cut off, or room that was reserved.
        self._end = octets.rfind(b"\n") + 1
        self._reserved = len(octets) > self._end
        self._due = when_due(status.st_mtime, time.time())
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
            try:
                descriptor = durable.open_plain(path, os.O_RDONLY)
            except FileNotFoundError:
                raise BadEnvelope("its content file is gone") from None
            except durable.NotPlain:
                raise BadEnvelope("its content file is none") from None
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

    def reserve(self, events: int) -> None:
        """So many events, told next, will not fail for want of room.  Raises OSError."""
        self._reserved = True
        durable.reserve(self._envelope, self._end, events * EVENT_LIMIT_OCTETS)

    def tell(self, *events: Event) -> None:
        """Write down what has happened, at once and on the disk.  Raises OSError."""
        if not events:
            return
        octets = b"".join([event.encode() for event in events])
        durable.write_at(self._envelope, self._end, octets)
        self._end += len(octets)
        for event in events:
            self.history.add(event)
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
        if self._reserved:
            with contextlib.suppress(OSError):
                os.ftruncate(self._envelope.fileno(), self._end)
        if self.state == BUSY:
            with contextlib.suppress(OSError):
                self.mark(WAITING)
        if self.state == WAITING:
            with contextlib.suppress(OSError):
                os.utime(self._envelope.fileno(), (self._due, self._due))
        durable.unlock(self._envelope)


def when_due(modified: float, now: float) -> float:
    """When an envelope with that time of modification is due, in seconds since the epoch."""
    return modified if modified <= now + _FARTHEST_SECONDS else now


def _body(copy: Copy) -> Iterator[bytes]:
    return copy.content.blocks(copy.body_start)


def _names(directory: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(directory)
    return []
