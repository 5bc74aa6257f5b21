"""Files that only root may read, opened by the monitor and read by the server.

The monitor sends a list of the files, then their descriptors.  It reads none of them: every worker
begins as a copy of its memory.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence

from tofmipd.content import memory_file
from tofmipd.privsep.channel import close_all
from tofmipd.privsep.frames import KEY_FILES_AT_ONCE, Control, Kind

_LIMIT_OCTETS = 1 << 20

Send = Callable[[Control, tuple[int, ...]], None]

log = logging.getLogger(__name__)

# How often it is looked whether files have changed.
LOOK_SECONDS = 5.0


class Keys:
    """Lists the files, which raises OSError, and tells whether they have changed."""

    def __init__(self, paths: Callable[[], list[str]], changed: Callable[[], bool]) -> None:
        self._paths = paths
        self._changed = changed
        self.due = time.monotonic() + LOOK_SECONDS

    def look(self, now: float) -> bool:
        """Whether it is time to look, and there is something new."""
        if now < self.due:
            return False
        self.due = now + LOOK_SECONDS
        return self._changed()

    def send(self, send: Send) -> None:
        try:
            _send_files(self._paths(), send)
        except OSError as error:
            log.error("certificates cannot be read again: %s", error)


def _send_files(paths: Sequence[str], send: Send) -> None:
    """Open all and send them.  Raises OSError when not even the list can be made."""
    opened: list[int] = []
    listed: list[tuple[str, str]] = []
    try:
        for path in paths:
            try:
                opened.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
                listed.append((path, ""))
            except OSError as error:
                listed.append((path, error.strerror or "no reason given"))
        with memory_file(json.dumps(listed).encode()) as file:
            file.seek(0)
            send(Control(Kind.KEYS, len(opened)), (file.fileno(),))
        for start in range(0, len(opened), KEY_FILES_AT_ONCE):
            send(Control(Kind.KEY_FILES), tuple(opened[start : start + KEY_FILES_AT_ONCE]))
    finally:
        close_all(opened)


class KeyFiles:
    """What the server has got so far."""

    def __init__(self) -> None:
        self._expected = 0
        self._listed: list[tuple[str, str]] = []
        self._descriptors: list[int] = []

    def begin(self, count: int, descriptors: Sequence[int]) -> None:
        """Take the list; so many descriptors are to come."""
        close_all(self._descriptors)
        with open(descriptors[0], "rb") as file:
            self._listed = [(str(path), str(error)) for path, error in json.loads(file.read())]
        self._descriptors = []
        self._expected = count

    def add(self, descriptors: Sequence[int]) -> None:
        self._descriptors += descriptors

    def take(self) -> Mapping[str, bytes | OSError] | None:
        """Path and content of all files, or why there is none; None if more are to come."""
        if not self._listed or len(self._descriptors) < self._expected:
            return None
        descriptors, self._descriptors = self._descriptors, []
        found: dict[str, bytes | OSError] = {}
        rest = iter(descriptors)
        for path, error in self._listed:
            found[path] = OSError(0, error, path) if error else _content(next(rest))
        self._listed = []
        return found


def _content(descriptor: int) -> bytes | OSError:
    try:
        with open(descriptor, "rb") as file:
            return file.read(_LIMIT_OCTETS)
    except OSError as error:
        return error


def reader_of(files: Mapping[str, bytes | OSError]) -> Callable[[str], bytes]:
    """As if the files were read by their paths."""

    def read(path: str) -> bytes:
        content = files.get(path, FileNotFoundError(0, "not there any more", path))
        if isinstance(content, OSError):
            raise content
        return content

    return read
