"""Children of the tests, for what changes or ends a process."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

_LIMIT_SECONDS = 20


class Ended(NamedTuple):
    """``status`` is negative for a signal; ``said`` is what was printed, the result's text last."""

    status: int
    said: str


class Child:
    """A forked process that runs ``act``: status 0 and the text of its result, if it comes back."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _live(act, writer)
        os.close(writer)

    def end(self) -> Ended:
        """Wait for it, which takes a limited time."""
        with open(self._reader, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), said.decode("utf-8", "replace"))


def in_child(act: Callable[[], object]) -> Ended:
    return Child(act).end()


def _live(act: Callable[[], object], writer: int) -> None:
    """Whatever happens, nothing of the parent's stack is returned to."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LIMIT_SECONDS)
        sys.stdout = sys.stderr = open(writer, "w", buffering=1)  # noqa: SIM115 - until the end
        result = act()
        if result is not None:
            print(result)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
