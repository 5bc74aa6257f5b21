"""On which CPUs this process runs.

Threads that pass the interpreter lock between two CPUs cost twice what they cost on one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_allowed: set[int] = set()


def keep_to_one() -> None:
    """Run on one CPU from now on, threads started later included; does nothing where there is
    no choice."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cpus = os.sched_getaffinity(0)
    if len(cpus) > 1:
        _allowed.update(cpus)
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {sorted(cpus)[os.getpid() % len(cpus)]})


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
