"""What the tests of the outbox share: messages in it, a transport by script, a full disk."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fakes import copy_of

from tofmipd.handoff import durable
from tofmipd.handoff.copy import Copy, HandOffFailed, Outcome, Taken
from tofmipd.handoff.outbox import Outbox
from tofmipd.handoff.stored import Event, Origin
from tofmipd.smtp.reply import Reply

ARRIVED = 1790000000.0
ORIGIN = Origin("bobby", "7f3a", ARRIVED, "127.0.0.1")
BODY = b"Hello.\r\n..dot\r\n"
TO = (b"a@example.net", b"b@example.net", b"c@example.net")
LATER = Reply(451, "4.1", ("later",))
NEVER = Reply(550, "1.1", ("unknown",))


def copies_of(*recipients: tuple[bytes, ...], **parameters: Any) -> list[Copy]:
    """A copy for each, with a header and a sender of its own, and one body."""
    one = copy_of(BODY, **parameters)
    return [
        Copy(
            b"bobby-%d@example.org" % number,
            those,
            b"Subject: %d\r\n\r\n" % number,
            one.content,
            0,
            one.parameters,
        )
        for number, those in enumerate(recipients, 1)
    ]


def commit(
    outbox: Outbox, copies: Sequence[Copy], *events: Event, due: float = 0.0, **origin: Any
) -> str:
    """Put a message into the outbox; its id."""
    with outbox.prepare(copies, dataclasses.replace(ORIGIN, **origin)) as draft:
        draft.commit(events, due)
    return draft.id


def names(outbox: Outbox) -> list[str]:
    """The files of an outbox, by their suffixes only."""
    with contextlib.suppress(FileNotFoundError):
        found = sorted(os.listdir(outbox.directory))
        return [name[name.rindex(".", 0, name.rindex(".")) :] for name in map(_padded, found)]
    return []


def _padded(name: str) -> str:
    """With two suffixes, whether it has them or not."""
    return name if name.endswith((".new", ".busy", ".bad")) else name + "."


@dataclass
class Scripted:
    """A transport: ``answers`` are asked in turn for what it says to a copy, the last one for all
    that come later.

    An answer is a reply for the whole copy, a table of refusals, or something to be called with the
    copy that comes to one of them.
    """

    answers: list[Any] = field(default_factory=lambda: [{}])
    copies: list[Copy] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        return "hop:25"

    def send(self, copy: Copy) -> str:
        return self.send_to_some(copy).said

    def send_all(self, copies: Sequence[Copy], taken: Taken) -> None:
        for copy in copies:
            taken(self.send(copy))

    def send_to_some(self, copy: Copy) -> Outcome:
        with self.lock:
            answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
            self.copies.append(copy)
            self.texts.append(b"".join(copy.blocks()))
        if callable(answer):
            answer = answer(copy)
        if isinstance(answer, Reply):
            raise HandOffFailed(answer)
        refused = {one: answer[one] for one in copy.recipients if one in answer}
        return Outcome("" if len(refused) == len(copy.recipients) else "250 2.0.0 Ok", refused)

    def recipients(self) -> list[tuple[bytes, ...]]:
        return [copy.recipients for copy in self.copies]


@dataclass
class Disk:
    """Counts the calls that may fail for want of room; the ``full_at``-th and those after it do.

    ``calls`` are their names, with the last parts of the files' names.
    """

    full_at: int = 10**9
    only: str = ""
    error: int = errno.ENOSPC
    calls: list[str] = field(default_factory=list)

    def of(self, module: Any, name: str) -> Callable[..., Any]:
        usual = getattr(module, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append(f"{name} {_named(*arguments)}")
            if name == self.only or (not self.only and len(self.calls) >= self.full_at):
                raise OSError(self.error, os.strerror(self.error))
            return usual(*arguments, **keywords)

        return call


def _named(target: Any, *others: Any) -> str:
    number = target if isinstance(target, int) else getattr(target, "fileno", lambda: -1)()
    path = os.readlink(f"/proc/self/fd/{number}") if number >= 0 else str(target)
    # IDs have dots in them; what follows the last part that is a number is the suffix.
    parts = Path(path).name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return "." + ".".join(parts[numbers[-1] + 1 :]) if numbers else "directory"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk that can be made full, or to refuse one kind of call."""
    disk = Disk()
    with monkeypatch.context() as patch:
        for module, name in [
            (durable, "create"),
            (durable, "write_all"),
            (os, "posix_fallocate"),
            (os, "pwrite"),
            (os, "fsync"),
            (os, "fdatasync"),
            (os, "rename"),
            (os, "utime"),
        ]:
            patch.setattr(module, name, disk.of(module, name))
        yield disk


@contextlib.contextmanager
def mounted(directory: Path, *options: str) -> Iterator[Path]:
    """A small file system in memory on a directory, which is made; gone afterwards."""
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tofmipd-test", str(directory)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a mebibyte.  Tests that use it bear the mark root."""
    with mounted(tmp_path / "small", "size=1m") as directory:
        yield directory


def fill(directory: Path) -> None:
    """Leave no room there."""
    with contextlib.suppress(OSError), open(directory / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def unfill(directory: Path) -> None:
    (directory / "filler").unlink()
