"""Questions at the terminal, each with an answer that Enter takes."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

from tofmipd.errors import USAGE, Fatal

# A terminal gives one line at a time, and no longer ones.
_LIMIT_OCTETS = 4096


def _as_it_is(text: str) -> str:
    return text


class Questions:
    """Asks where both standard input and output are a terminal, else takes the defaults."""

    def __init__(self) -> None:
        both = (sys.stdin, sys.stdout)
        self.asked = all(stream is not None and stream.isatty() for stream in both)

    def text(self, question: str, default: str, check: Callable[[str], str] = _as_it_is) -> str:
        """An answer as ``check`` returns it.

        What that refuses, with Fatal, is said and asked for again; a default is not asked for
        again.  Raises Fatal at the end of input.
        """
        if not self.asked:
            return check(default)
        while True:
            octets = _read(f"{question} [{default}]: " if default else f"{question}: ")
            try:
                return check(octets.decode(sys.stdin.encoding).strip() or default)
            except Fatal as error:
                print(f"  {error}")
            except UnicodeError:
                print("  that is no text in the terminal's encoding")

    def yes(self, question: str, *, default: bool) -> bool:
        """Whether the answer is yes."""
        return self.text(question, "yes" if default else "no", _yes_or_no) == "yes"


def _yes_or_no(answer: str) -> str:
    for word in ("yes", "no"):
        if word.startswith(answer.lower()):
            return word
    raise Fatal(USAGE, "yes or no?")


def _read(prompt: str) -> bytes:
    """A line.  Raises Fatal at the end of input."""
    print(prompt, end="", flush=True)
    try:
        octets = _line(sys.stdin.fileno())
    except KeyboardInterrupt:
        print()
        raise
    if not octets:
        print()
        raise Fatal(USAGE, "the questions were not answered; nothing has been written")
    return octets


def _line(terminal: int) -> bytes:
    """What is typed up to Enter.

    input() does not notice a Ctrl-C that comes just before it begins to wait.
    """
    here, there = os.pipe()
    os.set_blocking(there, False)
    before = signal.set_wakeup_fd(there, warn_on_full_buffer=False)
    try:
        select.select([terminal, here], [], [])
        return os.read(terminal, _LIMIT_OCTETS)
    finally:
        signal.set_wakeup_fd(before)
        os.close(here)
        os.close(there)
