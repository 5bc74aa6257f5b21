"""What `tofmipd check` has found."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tofmipd.given import COMMAND_LINE, DEFAULT, Given, dashed

_HAS_LINE = re.compile(r"/[^:]*:[0-9]+: ")


@dataclass(slots=True)
class Report:
    """Lines: what keeps the daemon from starting, or from doing what was asked for; what is worth
    knowing; what has been found good."""

    given: Given
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    good: list[str] = field(default_factory=list)

    def blame(self, text: str, name: str = "", index: int = -1, shown: str = "") -> None:
        """A fault, because of an option if there is a ``name``: its place comes first, unless the
        text has a file and line itself.  ``shown`` is how it is called on the command line."""
        place = self.given.origin(name, index) if name else DEFAULT
        if place != DEFAULT and not _HAS_LINE.match(text):
            where = f"--{shown or dashed(name)}" if place == COMMAND_LINE else place
            text = f"{where}: {text}"
        if text not in self.faults:
            self.faults.append(text)

    def is_said(self, name: str) -> bool:
        return name in self.given.origins


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The warnings and errors that are logged within."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear, root = Ear(logging.WARNING), logging.getLogger("tofmipd")
    root.addHandler(ear)
    try:
        yield said
    finally:
        root.removeHandler(ear)


def why_not_writable(path: str) -> str:
    """Why a file could not be written there by this process, "" if it could."""
    if os.path.isdir(path):
        return "a directory"
    if os.path.exists(path):
        return "" if os.access(path, os.W_OK) else "cannot be written"
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        return f"there is no directory {parent}"
    return "" if os.access(parent, os.W_OK | os.X_OK) else f"{parent} cannot be written"


def why_no_directory(path: str) -> str:
    """Why this process could have no directory there, made or found, "" if it could."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        return f"{path} is not a directory"
    return "" if os.access(path, os.W_OK | os.X_OK) else f"{path} cannot be written"
