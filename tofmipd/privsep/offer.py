"""What mechanisms can be offered: auth knows, the server says it at each EHLO.

One octet of memory that all processes of the daemon share, written by auth: a file of passwords may
change at any time, and to ask at the beginning of each session would cost both processes a turn.
"""

from __future__ import annotations

import mmap
import threading

_NAMES = ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "EXTERNAL")
# Auth has said something.
_KNOWN = 1 << 7
_LOOK_SECONDS = 0.002


class Offer:
    """Made before the processes are forked that share it.  ``at_first`` are the mechanisms as long
    as auth has not said anything."""

    def __init__(self, at_first: frozenset[str]) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._at_first = at_first

    def publish(self, mechanisms: frozenset[str]) -> None:
        """Called by auth."""
        bits = sum(1 << number for number, name in enumerate(_NAMES) if name in mechanisms)
        self._memory[0] = bits | _KNOWN

    def wait(self, given_up: threading.Event) -> None:
        """Until auth has said something, or nobody wants to know any more."""
        while not self._memory[0] & _KNOWN and not given_up.wait(_LOOK_SECONDS):
            pass

    @property
    def mechanisms(self) -> frozenset[str]:
        bits = self._memory[0]
        if not bits & _KNOWN:
            return self._at_first
        return _SETS[bits & (_KNOWN - 1)]


_SETS = tuple(
    frozenset(name for number, name in enumerate(_NAMES) if bits & 1 << number)
    for bits in range(1 << len(_NAMES))
)
