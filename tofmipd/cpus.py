"""On which CPUs this process runs.

Threads that pass the interpreter lock between two CPUs cost twice what they cost on one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_allowed: set[int] = set()


def keep_to_one(number: int | None = None, *, but: int | None = None) -> None:
    """Run on one CPU from now on, threads started later included; does nothing where there is
    no choice.

    ``number`` chooses among the CPUs, the process's own number if it is None; ``but`` is a number
    whose choice is left out: two that work for each other had better not share a CPU.  Of two
    CPUs one would have all the others then, so every fourth goes to the first all the same.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return
    _allowed.update(cpus)
    number = os.getpid() if number is None else number
    if but is not None:
        left_out = cpus.pop(but % len(cpus))
        if len(cpus) == 1 and number % 4 == 0:
            cpus = [left_out]
    chosen = cpus[number % len(cpus)]
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {chosen})


@contextlib.contextmanager
def all_of_them() -> Iterator[None]:
    """Within this the calling thread may run anywhere, and so may programs that it starts."""
    if not _allowed:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
