"""Replies of the next hop: a strict parser, and what becomes of a refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tofmipd.smtp.reply import Reply, printable

_LINE = re.compile(rb"([2345][0-9][0-9])(?:([ -])([^\r]*))?")
_STATUS = re.compile(r"([245])\.([0-9]{1,3}\.[0-9]{1,3})(?:\s+|$)")
_LINE_LIMIT_OCTETS = 2048
_LINES_LIMIT = 200


class BadReply(Exception):
    """What the next hop sent is no reply (RFC 5321 section 4.2)."""


@dataclass(frozen=True, slots=True)
class NextHopReply:
    """One reply: its code and the text of its lines, joined by blanks, and each by itself."""

    code: int
    text: str
    lines: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return printable(f"{self.code} {self.text}")


class ReplyReader:
    """Cuts replies out of octets.  Raises BadReply; the connection is of no use then."""

    def __init__(self) -> None:
        self._buffer = b""
        self._code = b""
        self._texts: list[bytes] = []

    def feed(self, octets: bytes) -> None:
        self._buffer += octets

    @property
    def idle(self) -> bool:
        """Whether nothing is left over from what came."""
        return not self._buffer and not self._texts

    def reply(self) -> NextHopReply | None:
        """The next whole reply, or None until more has come."""
        while True:
            end = self._buffer.find(b"\n")
            if max(end, len(self._buffer) if end < 0 else 0) > _LINE_LIMIT_OCTETS:
                raise BadReply("a line of the reply is too long")
            if end < 0:
                return None
            line, self._buffer = self._buffer[: end + 1], self._buffer[end + 1 :]
            if self._last(line):
                lines = tuple(text.decode("utf-8", "replace") for text in self._texts)
                self._texts = []
                return NextHopReply(int(self._code), " ".join(lines), lines)

    def _last(self, line: bytes) -> bool:
        """Take one line with its end; whether it completes a reply."""
        if not line.endswith(b"\r\n"):
            raise BadReply("a line of the reply does not end with CR LF")
        match = _LINE.fullmatch(line[:-2])
        if match is None:
            raise BadReply("a line of the reply has no reply code")
        if self._texts and match[1] != self._code:
            raise BadReply("the lines of the reply have different codes")
        if len(self._texts) >= _LINES_LIMIT:
            raise BadReply("the reply has too many lines")
        self._code = match[1]
        self._texts.append((match[3] or b"").strip())
        return match[2] != b"-"


def refusal(reply: NextHopReply, about: str = "") -> Reply:
    """What the client hears of a refusal: the next hop's code, status and text.

    ``about`` is the recipient or sender concerned.  A 421 concerns our own connection to the
    next hop, so it becomes a 451; a code that is no refusal becomes one too.
    """
    code = reply.code if reply.code >= 400 and reply.code != 421 else 451
    text, detail = reply.text, "0.0"
    status = _STATUS.match(text)
    if status is not None:
        text = text[status.end() :]
        if int(status[1]) == code // 100:
            detail = status[2]
    subject = f"<{about}>: " if about else ""
    return Reply(code, detail, (printable(f"{subject}{text}" or "refused by the next hop"),))
