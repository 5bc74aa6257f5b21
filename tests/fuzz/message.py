"""The DATA reader, held against a reading of RFC 5321, section 4.5.2, octet by octet.

Input: how to cut, the limit of the size, then what comes after DATA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fuzz.dialogues import conversations
from fuzz.pieces import HEAD, parted, ways
from tofmipd.smtp.stream import MessageReader

WORDS = (b"\r\n.\r\n", b".\r\n", b"\r\n", b"\n.\n", b"\r.\r", b"\r\n..\r\n", b"\n", b"\r")


@dataclass(frozen=True)
class Outcome:
    """``rest`` is None as long as the message has no end; nothing else is told of it then."""

    written: bytes = b""
    rest: bytes | None = None
    size_octets: int = 0
    bare_newline: bool = False
    too_big: bool = False


def check(octets: bytes) -> None:
    limit = int.from_bytes(octets[:1], "big")
    head, text = parted(octets[1:])
    expected = by_the_book(text, limit)
    for pieces in ways(head, text):
        outcome = read(pieces, limit)
        assert outcome.rest == expected.rest, f"{outcome}, by the book {expected}"
        if expected.rest is not None:
            assert outcome.written == expected.written[: len(outcome.written)]
            assert len(outcome.written) <= limit
            assert outcome.too_big or outcome.written == expected.written
            assert (outcome.size_octets, outcome.bare_newline, outcome.too_big) == (
                expected.size_octets,
                expected.bare_newline,
                expected.too_big,
            )


def read(pieces: list[bytes], limit: int) -> Outcome:
    written: list[bytes] = []
    reader = MessageReader(written.append, limit)
    for number, piece in enumerate(pieces):
        rest = reader.feed(piece)
        if rest is not None:
            return Outcome(
                b"".join(written),
                rest + b"".join(pieces[number + 1 :]),
                reader.size_octets,
                reader.bare_newline,
                reader.too_big,
            )
    return Outcome(b"".join(written))


def by_the_book(octets: bytes, limit: int = 1 << 40) -> Outcome:
    """Only the octets CR LF "." CR LF end a message; the first CR LF may be that of DATA."""
    seen = b"\r\n"
    for place in range(len(octets)):
        seen += octets[place : place + 1]
        if seen.endswith(b"\r\n.\r\n"):
            message = seen[2:-3]
            size = len(message)
            bare = has_bare_newline(message)
            return Outcome(message, octets[place + 1 :], size, bare, size > limit)
    return Outcome()


def has_bare_newline(octets: bytes) -> bool:
    """Whether a CR has no LF after it, or an LF no CR before it."""
    return any(b"\r" in part or b"\n" in part for part in octets.split(b"\r\n"))


def seeds() -> Iterator[bytes]:
    for limit in (b"\0", b"\x14", b"\xff"):
        for talk in conversations():
            _, data, message = talk.partition(b"DATA\r\n")
            if data:
                yield limit + HEAD + message
        yield limit + HEAD + b"Subject: a\r\n\r\nb\n.\r\n.c\r\n..\r\n.\r\nQUIT\r\n"
