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

        Raises BadCommand for a line that is too long or holds a bare CR or LF; the buffer is
        unusable then, and the reply closes the connection.
        """
        start = self._start
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
        self._last = b""
        self._cr = self._lf = self._crlf = 0

    @property
    def too_big(self) -> bool:
        return self.size_octets > self._limit

    @property
    def bare_newline(self) -> bool:
        """Whether a CR or an LF stood alone anywhere so far."""
        return not self._cr == self._lf == self._crlf

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
        self._cr += block.count(b"\r")
        self._lf += block.count(b"\n")
        self._crlf += block.count(b"\r\n")
        if self._last == b"\r" and block.startswith(b"\n"):
            self._crlf += 1
        self._last = block[-1:]
        self.size_octets += len(block)
        if not self.too_big:
            self._write(block)


class NewlineFixer:
    """Makes each bare CR and LF of a message a CRLF, block by block.

    A line that is then a single dot gets a second one, so that nothing becomes an end of data.
    """

    def __init__(self) -> None:
        self._held = b""
        self._tail = b"\r\n"
        self._skip = 2

    def feed(self, block: bytes) -> bytes:
        block = self._held + block
        self._held = b"\r" if block.endswith(b"\r") else b""
        return self._fix(block[: len(block) - len(self._held)], keep=len(_END) - 1)

    def finish(self) -> bytes:
        """What was held back."""
        return self._fix(self._held, keep=0)

    def _fix(self, block: bytes, keep: int) -> bytes:
        text = self._tail + _LINE_END.sub(b"\r\n", block)
        text = _LONE_DOT.sub(b"..", text)
        cut = max(len(text) - keep, 0)
        fixed = text[self._skip : cut]
        self._skip = max(self._skip - cut, 0)
        self._tail = text[cut:]
        return fixed
