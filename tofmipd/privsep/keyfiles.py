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
    """Lists the files, which raises OSError, and tells whether they have changed since then."""

    def __init__(
        self,
        paths: Callable[[], list[str]],
        changed: Callable[[], bool],
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        self._paths = paths
        self._changed = changed
        self._taken = taken
        self.due = time.monotonic() + LOOK_SECONDS

    def look(self, now: float) -> bool:
        """Whether it is time to look, and there is something new."""
        if now < self.due:
            return False
        self.due = now + LOOK_SECONDS
        return self._changed()

    def send(self, send: Send) -> None:
        self._taken()
        try:
            _send_files(self._paths(), send)
        except OSError as error:
            log.error("certificates cannot be read again: %s", error)


def _send_files(paths: Sequence[str], send: Send) -> None:
    """The list of all, then those that can be opened, a few at a time.

    Raises OSError when not even the list can be made.
    """
    listed = [(path, _problem(path)) for path in paths]
    good = [path for path, problem in listed if not problem]
    with memory_file(json.dumps(listed).encode()) as file:
        file.seek(0)
        send(Control(Kind.KEYS, len(good)), (file.fileno(),))
    for start in range(0, len(good), KEY_FILES_AT_ONCE):
        opened: list[int] = []
        try:
            for path in good[start : start + KEY_FILES_AT_ONCE]:
                opened.append(_open_in_any_case(path))
            send(Control(Kind.KEY_FILES), tuple(opened))
        finally:
            close_all(opened)


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _problem(path: str) -> str:
    """Why a file cannot be opened, "" if it can."""
    try:
        close_all([_open(path)])
    except OSError as error:
        return error.strerror or "no reason given"
    return ""


def _open_in_any_case(path: str) -> int:
    """One that has vanished since it was listed counts as empty, which is reason enough."""
    try:
        return _open(path)
    except OSError:
        return _open(os.devnull)


class KeyFiles:
    """What the server has got so far.  It is read as it comes: there may be many files."""

    def __init__(self) -> None:
        self._expected = 0
        self._listed: list[tuple[str, str]] = []
        self._contents: list[bytes | OSError] = []

    def begin(self, count: int, descriptors: Sequence[int]) -> None:
        """Take the list; so many descriptors are to come."""
        with open(descriptors[0], "rb") as file:
            self._listed = [(str(path), str(error)) for path, error in json.loads(file.read())]
        self._contents = []
        self._expected = count

    def add(self, descriptors: Sequence[int]) -> None:
        self._contents += map(_content, descriptors)

    def take(self) -> Mapping[str, bytes | OSError] | None:
        """Path and content of all files, or why there is none; None if more are to come."""
        if not self._listed or len(self._contents) < self._expected:
            return None
        contents = iter(self._contents)
        found: dict[str, bytes | OSError] = {}
        for path, error in self._listed:
            found[path] = OSError(0, error, path) if error else next(contents)
        self._listed, self._contents = [], []
        return found


def _content(descriptor: int) -> bytes | OSError:
    try:
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(_LIMIT_OCTETS)
    except OSError as error:
        return error
    finally:
        close_all([descriptor])


def reader_of(files: Mapping[str, bytes | OSError]) -> Callable[[str], bytes]:
    """As if the files were read by their paths."""

    def read(path: str) -> bytes:
        content = files.get(path, FileNotFoundError(0, "not there any more", path))
        if isinstance(content, OSError):
            raise content
        return content

    return read
