"""Replies of the next hop, held against RFC 5321, section 4.2.1.

Input: how to cut, then what the next hop says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from fuzz.pieces import HEAD, parted, ways
from tofmipd.handoff.replies import BadReply, NextHopReply, ReplyReader, refusal

WORDS = (b"250 ", b"250-", b"354 ", b"421 ", b"550 5.1.1 ", b"\r\n", b"4.2.2 ", b"5.7.1")
LINE_LIMIT_OCTETS = 2048
LINES_LIMIT = 200

Found = list[tuple[int, str] | str]


def check(octets: bytes) -> None:
    head, text = parted(octets)
    expected = by_the_book(text)
    for pieces in ways(head, text):
        found = read(pieces)
        assert found == expected, f"{found}, by the book {expected}"
    for one in expected:
        if isinstance(one, tuple):
            check_refusal(NextHopReply(*one))


def check_refusal(reply: NextHopReply) -> None:
    """What the client hears of any reply is one line, and a refusal."""
    assert str(reply).isprintable()
    for about in ("", "x@example.net"):
        heard = refusal(reply, about)
        assert 400 <= heard.code <= 599
        assert heard.code != 421
        assert re.fullmatch(rb"([45])[0-9][0-9] \1\.[0-9.]+ [ -~]*\r\n", heard.encode())


def read(pieces: Iterable[bytes]) -> Found:
    """All replies; "bad" after them if what follows is none, "more" if one has begun."""
    reader = ReplyReader()
    found: Found = []
    for piece in pieces:
        reader.feed(piece)
        try:
            while (reply := reader.reply()) is not None:
                found.append((reply.code, reply.text))
        except BadReply:
            return [*found, "bad"]
    return found if reader.idle else [*found, "more"]


def by_the_book(octets: bytes) -> Found:
    found: Found = []
    texts: list[str] = []
    codes = set()
    while octets:
        line, end, octets = octets.partition(b"\n")
        if len(line) > LINE_LIMIT_OCTETS:
            return [*found, "bad"]
        if not end:
            return [*found, "more"]
        codes.add(line[:3])
        ended = line[-1:] == b"\r" and b"\r" not in line[:-1]
        coded = line[:1] in b"2345" and line[1:3].isdigit() and line[3:4] in (b" ", b"-", b"\r")
        if not (ended and coded and len(codes) == 1 and len(texts) < LINES_LIMIT):
            return [*found, "bad"]
        texts.append(line[4:].strip().decode("utf-8", "replace"))
        if line[3:4] != b"-":
            found.append((int(line[:3]), " ".join(texts)))
            texts, codes = [], set()
    return [*found, "more"] if texts else found


def seeds() -> Iterator[bytes]:
    for text in (
        b"220 next.example ESMTP\r\n250-next.example\r\n250-PIPELINING\r\n250 SIZE 1000\r\n",
        b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 go on\r\n550 5.7.1 <x@y> no: gr\xc3\xbc\xc3\x9fe\r\n",
        b"421 4.3.2 shutting down\r\n",
        b"250\r\n250-\r\n250\r\n",
        b"250-one\r\n251 two\r\n",
        b"250 ok\n",
    ):
        yield HEAD + text
