"""Octets to lines and messages, against a simple reading of RFC 5321 section 2.3.8."""

from __future__ import annotations

import itertools
import re

import pytest
from fakes import in_pieces, octet_by_octet
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.content import stuffed
from tofmipd.smtp import replies
from tofmipd.smtp.reply import BadCommand
from tofmipd.smtp.stream import (
    ChunkReader,
    LineReader,
    LoneDots,
    MessageReader,
    NewlineFixer,
    Stuffer,
)

noise = settings(max_examples=200, deadline=None)

UNLIMITED = 1 << 40
# Noise that is made of what matters: line ends, dots, and some of everything else.
PARTS = [b"\r\n", b"\r", b"\n", b".", b"..", b"\r\n.", b".\r\n", b"a", b" ", b"\0", b"\xff", b"bc"]
NOISE = st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join)
CUTS = st.lists(st.integers(1, 80), max_size=20)


def lines_of(pieces, limit=100):
    """All lines, and at the end the reply of the error if there is one."""
    reader, found = LineReader(), []
    for piece in pieces:
        reader.feed(piece)
        try:
            while (line := reader.line(limit)) is not None:
                found.append(line)
        except BadCommand as error:
            return [*found, error.reply]
    return found


def lines_by_the_book(octets, limit=100):
    found = []
    while b"\n" in octets:
        line, octets = octets.split(b"\n", 1)
        if len(line) > limit:
            return [*found, replies.LINE_TOO_LONG]
        if not line.endswith(b"\r") or b"\r" in line[:-1]:
            return [*found, replies.BARE_LINE_END]
        found.append(line[:-1])
    return [*found, replies.LINE_TOO_LONG] if len(octets) > limit else found


def read(pieces, limit=UNLIMITED):
    """The reader, what it wrote, and what it gave back behind the end (None: no end)."""
    written = []
    reader = MessageReader(written.append, limit)
    for piece in (pieces := iter(pieces)):
        rest = reader.feed(piece)
        if rest is not None:
            return reader, b"".join(written), rest + b"".join(pieces)
    return reader, b"".join(written), None


def message_by_the_book(octets):
    """The message and what follows it, or None; the CRLF of DATA stands before it."""
    whole = b"\r\n" + octets
    end = whole.find(b"\r\n.\r\n")
    return None if end < 0 else (whole[2 : end + 2], whole[end + 5 :])


def has_bare_newline(octets):
    return re.search(rb"\r(?!\n)|(?<!\r)\n", octets) is not None


def fixed(pieces):
    fixer = Fixer()
    return b"".join([*(fixer.feed(piece) for piece in pieces), fixer.finish()])


class Fixer:
    """As a message that comes by DATA is mended: line ends, then what has become an end of data."""

    def __init__(self):
        self.ends, self.dots = NewlineFixer(), LoneDots()

    def feed(self, piece):
        return self.dots.feed(self.ends.feed(piece))

    def finish(self):
        return self.dots.feed(self.ends.finish()) + self.dots.finish()


def fixed_by_the_book(message):
    lines = re.split(rb"\r\n|\r|\n", message)
    return b"\r\n".join(b".." if line == b"." else line for line in lines)


# Lines.


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", []),
        (b"NOOP\r\n", [b"NOOP"]),
        (b"NOOP\r", []),
        (b"\r\n", [b""]),
        (b"a\r\nb\r\nc", [b"a", b"b"]),
        (b"a\r\nb\nc\r\n", [b"a", replies.BARE_LINE_END]),
        (b"\n", [replies.BARE_LINE_END]),
        (b"a\rb\r\n", [replies.BARE_LINE_END]),
        (b"a\r\r\n", [replies.BARE_LINE_END]),
        (b"\0\xff\r\n", [b"\0\xff"]),
        (b"x" * 99 + b"\r\n", [b"x" * 99]),
        (b"x" * 100 + b"\r\n", [replies.LINE_TOO_LONG]),
        (b"x" * 101, [replies.LINE_TOO_LONG]),
        (b"a\r\n" + b"x" * 101, [b"a", replies.LINE_TOO_LONG]),
    ],
)
def test_only_cr_lf_ends_a_line_whatever_the_pieces(octets, expected):
    assert lines_of([octets]) == expected
    assert lines_of(octet_by_octet(octets)) == expected


@noise
@given(NOISE, CUTS)
def test_lines_of_noise_are_those_of_the_book(octets, cuts):
    expected = lines_by_the_book(octets, limit=20)
    assert lines_of([octets], 20) == expected
    assert lines_of(octet_by_octet(octets), 20) == expected
    assert lines_of(in_pieces(octets, cuts), 20) == expected


def test_what_belongs_to_no_line_yet_can_be_taken():
    reader = LineReader()
    assert reader.empty
    reader.feed(b"DATA\r\nSubject: x\r\n")
    assert reader.line(100) == b"DATA"
    assert not reader.empty
    assert reader.take() == b"Subject: x\r\n"
    assert reader.empty
    assert reader.line(100) is None


def test_an_unfinished_line_is_refused_as_soon_as_it_is_too_long():
    reader = LineReader()
    for _ in range(5):
        reader.feed(b"x" * 10)
        assert reader.line(50) is None
    reader.feed(b"x" * 10)
    with pytest.raises(BadCommand) as caught:
        reader.line(50)
    assert caught.value.reply is replies.LINE_TOO_LONG


# Messages.

# Ways to end a message that somebody somewhere takes for one: none but the last is.
ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r.\n",
    b"\n.\r",
    b"\n\n.\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n..\r\n",
    b"\r\n. \r\n",
    b"\r\n .\r\n",
    b"\r\n\xe2\x80\xa8.\r\n",
    b"\r\n.\x85\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\n",
]
PIECES = {"whole": lambda octets: [octets], "octets": octet_by_octet}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("end", ENDS)
def test_nothing_but_cr_lf_dot_cr_lf_ends_a_message(end, pieces):
    before, after = b"one" + end, b"MAIL FROM:<b@example.org>\r\n"
    reader, written, rest = read(pieces(before + after))
    assert rest is None
    reader, written, rest = read(pieces(before + after + b".\r\nNOOP\r\n"))
    assert (written, rest) == (before + after, b"NOOP\r\n")
    assert reader.bare_newline == has_bare_newline(before + after)
    assert reader.size_octets == len(before + after)


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize(
    ("octets", "message", "rest"),
    [
        (b".\r\n", b"", b""),
        (b".\r\nQUIT\r\n", b"", b"QUIT\r\n"),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\r\n.\r\n", b"a\r\n", b""),
        (b"..\r\n.\r\n", b"..\r\n", b""),
        (b"a\r\n.b\r\n.\r\n.\r\n", b"a\r\n.b\r\n", b".\r\n"),
        (b"a\r\n\r\n.\r\n", b"a\r\n\r\n", b""),
        (b"\0\x80\xff\r\n.\r\n", b"\0\x80\xff\r\n", b""),
    ],
)
def test_a_message_ends_at_the_first_lone_dot(octets, message, rest, pieces):
    reader, written, left = read(pieces(octets))
    assert (written, left) == (message, rest)
    assert not reader.bare_newline
    assert reader.size_octets == len(message)


@noise
@given(NOISE, CUTS)
@example(b"\r\n.\r\n", [1, 2, 3, 4])
@example(b"a\r\n.\r\n\r\n.\r\n", [2, 3, 6])
def test_a_message_of_noise_is_that_of_the_book(octets, cuts):
    expected = message_by_the_book(octets)
    for pieces in ([octets], octet_by_octet(octets), in_pieces(octets, cuts)):
        reader, written, rest = read(pieces)
        if expected is None:
            assert rest is None
            assert octets.startswith(written)
            assert len(octets) - len(written) <= 4
        else:
            assert (written, rest) == expected
            assert reader.bare_newline == has_bare_newline(written)
            assert reader.size_octets == len(written)


@pytest.mark.parametrize(
    ("message", "bare"),
    [
        (b"a\r\nb\r\n", False),
        (b"a\nb\r\n", True),
        (b"a\rb\r\n", True),
        (b"a\n\rb\r\n", True),
        (b"\n\r\n", True),
        (b"\r\r\n", True),
        (b"a\r\n\nb\r\r\n", True),
    ],
)
def test_a_bare_newline_is_found_on_either_side_of_every_cut(message, bare):
    octets = message + b".\r\n"
    for cuts in itertools.combinations(range(1, len(octets)), 2):
        reader, _, rest = read(in_pieces(octets, cuts))
        assert rest == b""
        assert reader.bare_newline is bare


def test_beyond_the_limit_nothing_is_written_but_the_end_is_found():
    written = []
    reader = MessageReader(written.append, 1000)
    for _ in range(100):
        assert reader.feed(b"x" * 98 + b"\r\n") is None
    assert reader.feed(b".\r\nNOOP\r\n") == b"NOOP\r\n"
    assert reader.too_big
    assert reader.size_octets == 10000
    assert sum(map(len, written)) <= 1000


@pytest.mark.parametrize(("size", "too_big"), [(998, False), (1000, False), (1001, True)])
def test_the_limit_itself_is_allowed(size, too_big):
    reader, written, _ = read([b"x" * (size - 2) + b"\r\n.\r\n"], 1000)
    assert reader.too_big is too_big
    assert len(written) == (0 if too_big else size)


# The repair of line ends.


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", b""),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\nb\r\n", b"a\r\nb\r\n"),
        (b"a\rb\r\n", b"a\r\nb\r\n"),
        (b"a\r\r\n", b"a\r\n\r\n"),
        (b"\n\r\n", b"\r\n\r\n"),
        (b"a\n.\nb\r\n", b"a\r\n..\r\nb\r\n"),
        (b".\na\r\n", b"..\r\na\r\n"),
        (b"a\n.\n.\r.\r\n", b"a\r\n..\r\n..\r\n..\r\n"),
        (b"a\r\n..\r\n", b"a\r\n..\r\n"),
        (b"a\r\n.b\r\n", b"a\r\n.b\r\n"),
    ],
)
def test_a_bare_newline_becomes_cr_lf_and_no_line_a_lone_dot(message, expected):
    assert fixed([message]) == expected
    assert fixed(octet_by_octet(message)) == expected


# A message as the reader lets it through: it ends with CRLF and holds no end.
MESSAGES = NOISE.map(lambda noise: message_by_the_book(noise + b"\r\n.\r\n")[0])


@noise
@given(MESSAGES, CUTS)
def test_repaired_noise_is_that_of_the_book_and_safe(message, cuts):
    result = fixed([message])
    assert result == fixed_by_the_book(message)
    assert result == fixed(octet_by_octet(message)) == fixed(in_pieces(message, cuts))
    assert not has_bare_newline(result)
    assert b"\r\n.\r\n" not in b"\r\n" + result
    assert message_by_the_book(result + b".\r\n") == (result, b"")


@noise
@given(NOISE, CUTS)
def test_what_has_come_out_so_far_never_holds_a_bare_newline_or_an_end(octets, cuts):
    fixer, seen = Fixer(), b"\r\n"
    for piece in in_pieces(octets, cuts):
        seen += fixer.feed(piece)
        assert b"\r\n.\r\n" not in seen
        assert not has_bare_newline(seen.removesuffix(b"\r"))


# Chunks.


@noise
@given(NOISE, CUTS)
def test_stuffed_in_pieces_is_stuffed_as_a_whole(octets, cuts):
    stuffer = Stuffer()
    found = b"".join([stuffer.feed(piece) for piece in in_pieces(octets, cuts)])
    assert found + stuffer.finish() == stuffed(octets)


@noise
@given(st.lists(st.tuples(NOISE, CUTS), max_size=6), NOISE)
def test_chunks_are_counted_not_looked_at(chunks, behind):
    kept = []
    reader = ChunkReader(kept.append)
    for octets, cuts in chunks:
        reader.expect(len(octets))
        rest = reader.feed(b"")
        for piece in in_pieces(octets, cuts):
            assert rest is None
            rest = reader.feed(piece)
        assert rest == b""
    reader.expect(3)
    assert reader.feed(b"xyz" + behind) == behind
    whole = b"".join(octets for octets, _ in chunks) + b"xyz"
    assert b"".join(kept) == whole
    assert reader.size_octets == len(whole)
    assert reader.bare_newline == has_bare_newline(whole)
