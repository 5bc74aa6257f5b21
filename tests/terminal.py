"""A program that runs at a terminal, and somebody who reads and types there."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

LIMIT_SECONDS = 30.0
INTERRUPT, END_OF_INPUT = "\x03", "\x04"


@dataclass
class Terminal:
    """What has been shown so far is in ``shown``, with LF line ends."""

    pid: int
    descriptor: int
    shown: str = ""
    _read_to: int = 0

    def expect(self, text: str) -> None:
        """Wait until this is shown, behind all that was expected before."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while (place := self.shown.find(text, self._read_to)) < 0:
            left = deadline - time.monotonic()
            assert left > 0, f"waited for {text!r} in {self.shown!r}"
            assert self._read(left), f"the program ended without {text!r}: {self.shown!r}"
        self._read_to = place + len(text)

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def answer(self, question: str, answer: str) -> None:
        self.expect(question)
        self.type(answer + "\n")

    def end(self) -> int:
        """Wait for the end; the exit status, negative for a signal."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self._read(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"no end: {self.shown!r}"
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def _read(self, seconds: float) -> bool:
        """Whether there may be more."""
        ready, _, _ = select.select([self.descriptor], [], [], max(seconds, 0))
        if not ready:
            return True
        try:
            octets = os.read(self.descriptor, 4096)
        except OSError:
            return False
        self.shown += octets.decode(errors="replace").replace("\r\n", "\n")
        return bool(octets)


@contextlib.contextmanager
def at_terminal(
    command: Sequence[str], variables: Mapping[str, str], uid: int | None = None
) -> Iterator[Terminal]:
    """Run a command at a terminal of its own, with these variables only; ``uid`` is also the gid
    to run it with."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir("/")
        if uid is not None:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        os.execvpe(command[0], list(command), dict(variables))
    terminal = Terminal(pid, descriptor)
    try:
        yield terminal
    finally:
        os.close(descriptor)
        if terminal.pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
