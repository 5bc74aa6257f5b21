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
    whose choice is left out: two that work for each other had better not share a CPU.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return
    _allowed.update(cpus)
    if but is not None:
        del cpus[but % len(cpus)]
    chosen = cpus[(os.getpid() if number is None else number) % len(cpus)]
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
