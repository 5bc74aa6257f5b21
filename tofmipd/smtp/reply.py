"""The one thing that is ever written to a client: a reply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole reply to one command (RFC 5321 section 4.2).

    ``detail`` is the "subject.detail" half of an RFC 3463 status, or "" where RFC 2034 has none
    (3yz, the greeting, EHLO).  The class digit is not stored: it is the first digit of ``code``,
    so the two cannot disagree.  ``closes`` makes the pump hang up after it.  Raises ValueError
    for text with a control character.
    """

    code: int
    detail: str
    lines: tuple[str, ...]
    closes: bool = False

    def __post_init__(self) -> None:
        if not self.lines or not all(line.isprintable() for line in self.lines):
            raise ValueError(f"not the text of a reply: {self.lines!r}")

    @property
    def positive(self) -> bool:
        return self.code < 400

    @property
    def status(self) -> str:
        """The enhanced status code, e.g. "5.7.8", or "" when there is none."""
        return f"{self.code // 100}.{self.detail}" if self.detail else ""

    def encode(self) -> bytes:
        """The octets of the reply; what is not ASCII is escaped."""
        status = self.status + " " if self.detail else ""
        last = len(self.lines) - 1
        return b"".join(
            f"{self.code}{' ' if number == last else '-'}{status}{line}\r\n".encode(
                "ascii", "backslashreplace"
            )
            for number, line in enumerate(self.lines)
        )

    def __str__(self) -> str:
        return " ".join(filter(None, [str(self.code), self.status, *self.lines]))


class BadCommand(Exception):
    """The client is at fault; ``reply`` tells it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)
        self.reply = reply


def printable(text: str, limit: int = 400) -> str:
    """Foreign text as it may stand in a reply or a log line: ASCII, on one line, bounded."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(
            c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text[: limit + 1]
        )
    return text if len(text) <= limit else text[: limit - 3] + "..."
