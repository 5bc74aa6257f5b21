"""Work that root wants to have done as a user: a child gives up root for good, does it, and says
line by line what came of it.

The child may run what the user has written.  So what it says is data and no more, limited, and
there is an end to waiting for it.
"""

from __future__ import annotations

# What others import when they need it first: by then the child may not be able to read a library
# that was installed for root.
import encodings.ascii
import encodings.idna
import encodings.latin_1
import encodings.unicode_escape  # noqa: F401
import json
import os
import select
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tofmipd.privsep import children, confine, linux
from tofmipd.privsep.channel import Channel
from tofmipd.privsep.drop import Rights, become
from tofmipd.privsep.identity import Identity

_LINE_LIMIT_OCTETS = 128 << 20

# An object of JSON.
Line = dict[str, Any]


class DeputyFailed(Exception):
    """The child did not do all; ``str()`` says how it ended."""


@dataclass(frozen=True, slots=True)
class Deputy:
    """For whom a child works.  It may be silent for ``limit_seconds``; ``title`` is its name."""

    identity: Identity
    rights: Rights
    home: str
    limit_seconds: float
    title: str = "tofmipd-queue"

    def lines(self, work: Callable[[], Iterable[Line]]) -> Generator[Line, None, None]:
        """Have it done; what the work yields.  The child is gone when that ends, or is closed.

        The caller is root and has one thread.  Raises DeputyFailed, OSError.
        """
        reading, writing = os.pipe()
        monitor = os.getpid()
        main = _Main(self, work, writing, monitor)
        try:
            birth = children.Birth(
                f"deputy of {self.identity.login!r}", self.title, main, (writing,), apart=True
            )
            child = children.fork(birth, [])
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            yield from _lines(reading, self.limit_seconds)
            _await_end(child.pid, self.limit_seconds)
        finally:
            os.close(reading)
            # Its number is its own until it is waited for.
            children.kill(child, group=True)
            status = os.waitpid(child.pid, 0)[1]
            children.kill_session(child.pid)
            child.close()
        if status != 0:
            raise DeputyFailed(children.how_it_ended(status))


@dataclass(frozen=True, slots=True)
class _Main:
    deputy: Deputy
    work: Callable[[], Iterable[Line]]
    writing: int
    monitor: int

    def __call__(self, control: Channel) -> int:
        """The life of the child."""
        deputy = self.deputy
        confine.confine(deputy.rights.uid)
        become(deputy.rights)
        linux.hide()
        children.end_with_monitor(self.monitor)
        os.umask(0o077)
        confine.clean_environment(deputy.identity, deputy.home)
        with open(self.writing, "wb") as pipe:
            for line in self.work():
                pipe.write(json.dumps(line).encode() + b"\n")
                pipe.flush()
        return 0


def _lines(reading: int, limit_seconds: float) -> Iterator[Line]:
    """Raises DeputyFailed."""
    pieces: list[bytes] = []
    size = 0
    while octets := _read(reading, limit_seconds):
        first, *rest = octets.split(b"\n")
        pieces.append(first)
        size += len(first)
        for piece in rest:
            yield _line(b"".join(pieces))
            pieces, size = [piece], len(piece)
        if size > _LINE_LIMIT_OCTETS:
            raise DeputyFailed("talks too much")


def _read(reading: int, limit_seconds: float) -> bytes:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    if not poll.poll(limit_seconds * 1000):
        raise DeputyFailed(f"gave no answer within {limit_seconds:g} s")
    return os.read(reading, 1 << 20)


def _line(octets: bytes) -> Line:
    try:
        line = json.loads(octets)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise DeputyFailed("talks nonsense")
    return line


def _await_end(pid: int, limit_seconds: float) -> None:
    """Of a child that has closed its pipe.  Raises DeputyFailed."""
    poll = select.poll()
    with open(os.pidfd_open(pid), "rb", buffering=0) as end:
        poll.register(end, select.POLLIN)
        if not poll.poll(limit_seconds * 1000):
            raise DeputyFailed(f"did not end within {limit_seconds:g} s")
