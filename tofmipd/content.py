"""The octets of one message between its arrival and its hand-off."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

MEMORY_LIMIT_OCTETS = 1 << 20
BLOCK_OCTETS = 256 << 10
# Of a message that comes in tiny pieces, each of which would cost more than its octets.
_MOST_BLOCKS = 1024


_MESSAGE_ID = re.compile(
    rb"^message-id[ \t]*:((?:[^\r\n]|\r\n[ \t])*)", re.IGNORECASE | re.MULTILINE
)
_ID_CHARACTERS = 250
# Of a header in which one is looked for.
_HEADER_OCTETS = 64 << 10


def message_id(octets: bytes) -> str:
    """The Message-ID of what begins with a header, as the log shows it, "" for none."""
    found = _MESSAGE_ID.search(octets[:_HEADER_OCTETS].partition(b"\r\n\r\n")[0])
    return shown_id(found[1]) if found else ""


def shown_id(value: bytes) -> str:
    """The value of such a field on one line, bounded."""
    return " ".join(value[: 4 * _ID_CHARACTERS].decode("utf-8", "replace").split())[:_ID_CHARACTERS]


class Content:
    """A message in wire form: in memory up to 1 MiB, then in a file without a name.

    Written once, then read any number of times.  Writing raises OSError when there is no room.
    """

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.size_octets = 0

    def write(self, block: bytes) -> None:
        self.size_octets += len(block)
        if self._file is None and self.size_octets > MEMORY_LIMIT_OCTETS:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - close() ends it
            for earlier in self._blocks:
                _write_all(self._file, earlier)
            self._blocks.clear()
        if self._file is None:
            self._blocks.append(block)
            if len(self._blocks) > _MOST_BLOCKS:
                self._blocks = [b"".join(self._blocks)]
        else:
            _write_all(self._file, block)

    @classmethod
    def of_file(cls, descriptor: int, size_octets: int) -> Content:
        """The message that a file holds, whose descriptor is the content's from now on."""
        content = cls()
        content._file = open(descriptor, "rb", buffering=0)  # noqa: SIM115 - close() ends it
        content.size_octets = size_octets
        return content

    def descriptor(self) -> int:
        """Of a file that holds the octets, made if there is none; it stays the content's.

        Raises OSError when there is no room.
        """
        if self._file is None:
            self._file = memory_file(*self._blocks)
            self._blocks.clear()
        return self._file.fileno()

    def head(self, octets: int) -> bytes:
        """The first octets, at most as many as are asked for."""
        if self._file is not None:
            return os.pread(self._file.fileno(), octets, 0)
        if len(self._blocks) > 1:
            self._blocks = [b"".join(self._blocks)]
        return self._blocks[0][:octets] if self._blocks else b""

    def message_id(self) -> str:
        """As the log shows it, "" for none."""
        return message_id(self.head(_HEADER_OCTETS))

    def blocks(self, start: int = 0) -> Iterator[bytes]:
        """All octets from ``start`` on, in large pieces."""
        if self._file is None:
            whole = self.head(self.size_octets)
            if start < len(whole):
                yield whole[start:] if start else whole
            return
        while block := os.pread(self._file.fileno(), BLOCK_OCTETS, start):
            yield block
            start += len(block)

    def close(self) -> None:
        """Give memory and disk back; safe to call twice."""
        self._blocks.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def memory_file(*blocks: bytes) -> IO[bytes]:
    """A file without a name that holds the blocks; in memory where the system has such files."""
    file: IO[bytes]
    if hasattr(os, "memfd_create"):
        file = open(os.memfd_create("message"), "w+b", buffering=0)  # noqa: SIM115 - the caller's
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the caller's
    for block in blocks:
        _write_all(file, block)
    return file


def _write_all(file: IO[bytes], block: bytes) -> None:
    """A raw file may take less than it is given."""
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]


_LINE_BEGINS_WITH_DOT = re.compile(rb"(\A|\r\n)\.")


def stuffed(octets: bytes) -> bytes:
    """Whole lines as they go over the wire: a leading dot is doubled (RFC 5321 section 4.5.2)."""
    if not octets.startswith(b".") and b"\r\n." not in octets:
        return octets
    return _LINE_BEGINS_WITH_DOT.sub(rb"\1..", octets)


def unstuffed(octets: bytes) -> bytes:
    """The opposite of ``stuffed``."""
    if not octets.startswith(b".") and b"\r\n." not in octets:
        return octets
    return _LINE_BEGINS_WITH_DOT.sub(rb"\1", octets)


def as_local_text(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Wire form as programs on this machine expect it: LF line ends, dots no longer stuffed."""
    held, skip = b"\r\n", 1
    for block in blocks:
        text = held + block
        # A line end is kept back until it is known whether a dot follows it.
        held = b"\r\n" if text.endswith(b"\r\n") else text[-1:] if text.endswith(b"\r") else b""
        local = _local(text[: len(text) - len(held)])
        if local:
            yield local[skip:]
            skip = 0
    if local := _local(held)[skip:]:
        yield local


def as_wire_text(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The opposite: what a program on this machine wrote, whose lines end with LF, in wire form."""
    fresh = True
    for block in blocks:
        if not block:
            continue
        begun = b"." + block if fresh and block.startswith(b".") else block
        fresh = block.endswith(b"\n")
        yield begun.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")


def _local(wire: bytes) -> bytes:
    return wire.replace(b"\r\n.", b"\r\n").replace(b"\r\n", b"\n")
