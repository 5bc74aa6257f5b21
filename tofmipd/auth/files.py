"""Files that a source reads, perhaps opened for it by a process with more rights."""

from __future__ import annotations

import os
from collections.abc import Callable


class SourceFileError(Exception):
    """A file of a source cannot be used; ``str()`` says which, why, and what to do."""


# As for open(): path and flags, a descriptor.  Raises OSError.
Opener = Callable[[str, int], int]


def without_waiting(path: str, flags: int) -> int:
    """The usual opener; a pipe of that name would otherwise hold everything up."""
    return os.open(path, flags | os.O_NONBLOCK)


def status_of(path: str, opener: Opener) -> os.stat_result:
    """Also of a file in a directory that this process may not search.  Raises OSError."""
    try:
        return os.stat(path)
    except PermissionError:
        descriptor = opener(path, os.O_RDONLY)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
