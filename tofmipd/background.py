"""Going into the background, and signals: what a daemon does with its process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from typing import NoReturn

from tofmipd.errors import SOFTWARE, Fatal


def open_missing(descriptors: Iterable[int]) -> None:
    """Have nothing on those that whoever started this has closed.

    What is opened next would get their numbers, and what is printed, or put there later, would
    hit it.
    """
    for descriptor in descriptors:
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null == descriptor:
                os.set_inheritable(null, True)
            else:
                os.dup2(null, descriptor)
                os.close(null)


def be_deaf() -> None:
    """While the interpreter goes down a second signal would otherwise count as a failure.

    Blocked first: one that comes just while it is being ignored makes Python complain.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def catch_signals(*numbers: int) -> int:
    """A descriptor from which the number of each signal that comes can be read, an octet each.

    A signal may interrupt any thread; one that waits for a lock would not notice that.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda number, frame: None)
    return reader


def detach() -> None:
    """Become a daemon.  There is one thread yet.

    The parent ends with status 0, for all that can fail has been done.
    """
    Background().succeed()


class Background:
    """The process goes on in the background; who started it waits until it is told how that went.

    Two forks, a session of its own, nothing on descriptors 0 to 2.  There is one thread yet.
    """

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        reader, self._writer = os.pipe()
        if os.fork():
            os.close(self._writer)
            _await(reader)
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        if null > 2:
            os.close(null)
        for number in (signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN):
            signal.signal(number, signal.SIG_IGN)

    def succeed(self) -> None:
        """Let the one who waits end with status 0."""
        os.write(self._writer, b"\0")
        os.close(self._writer)

    def fail(self, error: Fatal) -> NoReturn:
        """Have the error told and its status given by the one who waits."""
        os.write(self._writer, bytes([error.status]) + str(error).encode("utf-8", "replace"))
        os._exit(error.status)


def _await(reader: int) -> NoReturn:
    """Wait for the word of the process in the background, and end as it says."""
    with open(reader, "rb") as pipe:
        word = pipe.read()
    status = word[0] if word else SOFTWARE
    if status:
        text = word[1:].decode("utf-8", "replace") or "internal error at the start"
        print(f"tofmipd: {text}", file=sys.stderr, flush=True)
    os._exit(status)
