"""What changes line ends and dots on the way: NewlineFixer, LoneDots and Stuffer.

Input: how to cut, then a message.  For DATA it ends where the reader would have found its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from fuzz.message import by_the_book, has_bare_newline
from fuzz.pieces import HEAD, parted, ways
from tofmipd.smtp.stream import LoneDots, NewlineFixer, Stuffer

WORDS = (b"\r\n.\r\n", b".\r\n", b"\r\n", b"\n.\n", b"\r.\r", b"\r\n..\r\n", b"\n", b"\r", b"\r.\n")


class Stage(Protocol):
    def feed(self, block: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


def check(octets: bytes) -> None:
    head, text = parted(octets)
    message = by_the_book(text + b"\r\n.\r\n").written
    for pieces in ways(head, message):
        mended = through([NewlineFixer(), LoneDots()], pieces, is_whole)
        assert mended == lone_dots_doubled(mended_by_the_book(message)), f"{mended!r}"
        assert by_the_book(mended + b".\r\n").written == mended
        assert through([NewlineFixer(), LoneDots()], [mended]) == mended
    for pieces in ways(head, text):
        assert through([NewlineFixer()], pieces) == mended_by_the_book(text)
        assert through([Stuffer()], pieces) == stuffed_by_the_book(text)
        mended = through([NewlineFixer(), Stuffer()], pieces, is_whole)
        assert mended == stuffed_by_the_book(mended_by_the_book(text)), f"{mended!r}"


def through(
    stages: list[Stage], pieces: Iterable[bytes], so_far: Callable[[bytes], None] | None = None
) -> bytes:
    """What comes out behind the last stage; ``so_far`` is shown all of it after each piece."""
    out = b""
    for piece in pieces:
        for stage in stages:
            piece = stage.feed(piece)
        out += piece
        if so_far is not None:
            so_far(out)
    held = b""
    for stage in stages:
        held = stage.feed(held) + stage.finish()
    return out + held


def is_whole(out: bytes) -> None:
    """Nobody who reads this finds an end of the message in it, nor half a line end."""
    assert b"\r\n.\r\n" not in b"\r\n" + out
    assert not has_bare_newline(out.removesuffix(b"\r"))


def mended_by_the_book(message: bytes) -> bytes:
    """CR LF, CR and LF each end a line; each becomes CR LF."""
    mended, last = b"", b""
    for place in range(len(message)):
        octet = message[place : place + 1]
        if octet == b"\n" and last == b"\r":
            pass
        elif octet in (b"\r", b"\n"):
            mended += b"\r\n"
        else:
            mended += octet
        last = octet
    return mended


def lone_dots_doubled(message: bytes) -> bytes:
    *lines, last = message.split(b"\r\n")
    return b"\r\n".join([b".." if line == b"." else line for line in lines] + [last])


def stuffed_by_the_book(message: bytes) -> bytes:
    """RFC 5321 section 4.5.2: a line that begins with a dot gets another one."""
    lines = message.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


def seeds() -> Iterator[bytes]:
    for text in (
        b"a\nb\r\n",
        b"a\rb\r\n",
        b"a\r\r\n",
        b"a\n.\nb\r\n",
        b".\na\r\n..\r\n.b",
        b"a\n.\n.\r.\r\n",
        b"\n\r\n\r.b\r",
        b"\r\n.\r\n.",
    ):
        yield HEAD + text
