"""Lists of addresses, a line each (TMDA reference, section 4.8)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tofmipd.tmda.pattern import PatternSet


class Entry(NamedTuple):
    """What stands beside a pattern: an action or "", and the line, 1-based."""

    action: str
    line: int


class TextList:
    """Patterns with their actions, in their order."""

    def __init__(self, rows: Iterable[tuple[bytes, Entry]]) -> None:
        self._lines = array("L")
        self._actions: dict[int, str] = {}
        self._patterns = PatternSet(self._kept(rows))

    def _kept(self, rows: Iterable[tuple[bytes, Entry]]) -> Iterator[bytes]:
        """The patterns; most have no action, and many small objects would be dear."""
        for number, (pattern, entry) in enumerate(rows):
            self._lines.append(entry.line)
            if entry.action:
                self._actions[number] = entry.action
            yield pattern

    def find(self, keys: Sequence[bytes]) -> Entry | None:
        """The entry of the first line that matches the first key that any line matches.

        Keys are in lower case.
        """
        for key in keys:
            index = self._patterns.first(key)
            if index is not None:
                return Entry(self._actions.get(index, ""), self._lines[index])
        return None


def read_rows(text: bytes) -> Iterable[tuple[bytes, Entry]]:
    """The pattern and the action of each line; comments begin at any ``#``."""
    for number, line in enumerate(text.split(b"\n"), 1):
        words = line.partition(b"#")[0].split(None, 2)
        if words:
            yield words[0].lower(), row_entry(words[1:], number)


def row_entry(words: Sequence[bytes], line: int) -> Entry:
    """The entry of a row whose words after the pattern are given; all but the first are idle."""
    return Entry(words[0].decode("utf-8", "surrogateescape") if words else "", line)


def parse_list(text: bytes) -> TextList:
    return TextList(read_rows(text))
