"""Octets to lines and to messages: what may arrive in any pieces (RFC 5321 section 2.3.8).

Only CRLF ends a line, only CRLF.CRLF a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tofmipd.smtp import replies
from tofmipd.smtp.reply import BadCommand

_END = b"\r\n.\r\n"
_LINE_END = re.compile(rb"\r\n|[\r\n]")
# A handshake record (RFC 8446 section 5.1); no command begins so.
_TLS_HELLO = b"\x16\x03"
_LONE_DOT = re.compile(rb"(?<=\r\n)\.(?=\r\n)")


class LineReader:
    """Cuts lines out of octets; keeps at most one unfinished line and what came with it."""

    def __init__(self) -> None:
        self._buffer = b""
        self._start = 0

    def feed(self, octets: bytes) -> None:
        left = self._buffer[self._start :]
        self._buffer = left + octets if left else octets
        self._start = 0

    def line(self, limit_octets: int) -> bytes | None:
        """The next line without its CRLF, or None if it is not complete.

        Raises BadCommand for a line that is too long, holds a bare CR or LF, or begins TLS; the
        buffer is unusable then, and the reply closes the connection.
        """
        start = self._start
        if self._buffer.startswith(_TLS_HELLO, start):
            raise BadCommand(replies.TLS_AT_ONCE)
        end = self._buffer.find(b"\n", start)
        length = (len(self._buffer) if end < 0 else end) - start
        if length > limit_octets:
            raise BadCommand(replies.LINE_TOO_LONG)
        if end < 0:
            return None
        line = self._buffer[start : end + 1]
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise BadCommand(replies.BARE_LINE_END)
        self._start = end + 1
        return line[:-2]

    def take(self) -> bytes:
        """Hand over all octets that belong to no line yet."""
        octets = self._buffer[self._start :]
        self._buffer, self._start = b"", 0
        return octets

    @property
    def empty(self) -> bool:
        return self._start == len(self._buffer)


class LineEnds:
    """Counts CR, LF and CRLF over blocks: one pass each in C, where looking at lines takes many."""

    def __init__(self) -> None:
        self._last = b""
        self._cr = self._lf = self._crlf = 0

    def count(self, block: bytes) -> None:
        """``block`` is not empty."""
        self._cr += block.count(b"\r")
        self._lf += block.count(b"\n")
        self._crlf += block.count(b"\r\n")
        if self._last == b"\r" and block.startswith(b"\n"):
            self._crlf += 1
        self._last = block[-1:]

    @property
    def bare(self) -> bool:
        """Whether a CR or an LF has stood alone anywhere so far."""
        return not self._cr == self._lf == self._crlf


class MessageReader:
    """Finds the end of a message, checks its line ends and its size.

    Octets of the message go to ``write`` in wire form: CRLF, dots stuffed, without the final
    dot.  Beyond ``limit_octets`` nothing more is written.
    """

    def __init__(self, write: Callable[[bytes], None], limit_octets: int) -> None:
        self.size_octets = 0
        self._write = write
        self._limit = limit_octets
        # The CRLF of the DATA line stands before the message: an empty one is ".CRLF" alone.
        self._tail = b"\r\n"
        self._skip = 2
        self._ends = LineEnds()

    @property
    def too_big(self) -> bool:
        return self.size_octets > self._limit

    @property
    def bare_newline(self) -> bool:
        """Whether a CR or an LF stood alone anywhere so far."""
        return self._ends.bare

    def feed(self, octets: bytes) -> bytes | None:
        """Take a piece.  None while the message goes on, else what came behind its end."""
        block = self._tail + octets
        end = block.find(_END)
        if end >= 0:
            self._take(block[self._skip : end + 2])
            return block[end + len(_END) :]
        cut = max(len(block) - len(_END) + 1, 0)
        self._take(block[self._skip : cut])
        self._skip = max(self._skip - cut, 0)
        self._tail = block[cut:]
        return None

    def _take(self, block: bytes) -> None:
        if not block:
            return
        self._ends.count(block)
        self.size_octets += len(block)
        if not self.too_big:
            self._write(block)


class ChunkReader:
    """Counts the octets of chunks (RFC 3030), which have no end mark and no stuffed dots.

    Octets go to ``write`` as they came.  One reader serves all chunks of a message.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.size_octets = 0
        self._write = write
        self._left = 0
        self._ends = LineEnds()

    @property
    def bare_newline(self) -> bool:
        """Whether a CR or an LF stood alone anywhere so far, also at the end of a chunk."""
        return self._ends.bare

    def expect(self, octets: int) -> None:
        """A chunk of so many octets follows."""
        self._left = octets

    def feed(self, octets: bytes) -> bytes | None:
        """Take a piece.  None while the chunk goes on, else what came behind its end."""
        block = octets[: self._left]
        if block:
            self._left -= len(block)
            self.size_octets += len(block)
            self._ends.count(block)
            self._write(block)
        return None if self._left else octets[len(block) :]


class NewlineFixer:
    """Makes each bare CR and LF a CRLF, block by block."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, block: bytes) -> bytes:
        block = self._held + block
        self._held = b"\r" if block.endswith(b"\r") else b""
        return _LINE_END.sub(b"\r\n", block[: len(block) - len(self._held)])

    def finish(self) -> bytes:
        """What was held back."""
        held, self._held = self._held, b""
        return _LINE_END.sub(b"\r\n", held)


class _LineStarts:
    """Changes what stands at the start of lines, over blocks that are whole when joined."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self._tail = b"\r\n"
        self._skip = 2

    def feed(self, block: bytes) -> bytes:
        return self._change(block, keep=len(_END) - 1)

    def finish(self) -> bytes:
        """What was held back."""
        return self._change(b"", keep=0)

    def _change(self, block: bytes, keep: int) -> bytes:
        text = self._pattern.sub(b"..", self._tail + block)
        cut = max(len(text) - keep, 0)
        changed = text[self._skip : cut]
        self._skip = max(self._skip - cut, 0)
        self._tail = text[cut:]
        return changed


class LoneDots(_LineStarts):
    """Gives a line that is a single dot a second one.

    In a message whose line ends have been mended it would else have become the end of data.
    """

    def __init__(self) -> None:
        super().__init__(_LONE_DOT)


class Stuffer:
    """Doubles the dot that begins a line (RFC 5321 section 4.5.2), block by block."""

    def __init__(self) -> None:
        # The last octets so far, as much as matters for what follows.
        self._before = b"\r\n"

    def feed(self, block: bytes) -> bytes:
        if not block:
            return block
        before, self._before = self._before, (self._before + block)[-2:]
        text = block.replace(b"\r\n.", b"\r\n..")
        if before == b"\r\n" and block.startswith(b"."):
            return b"." + text
        if before[-1:] == b"\r" and block.startswith(b"\n."):
            return b"\n." + text[1:]
        return text

    def finish(self) -> bytes:
        """Nothing is held back."""
        return b""
