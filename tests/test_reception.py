"""One message as it comes in, by DATA and by BDAT: what is kept, what is the matter with it."""

from __future__ import annotations

import errno
import os
import re
import tracemalloc

import pytest
from fakes import in_pieces, octet_by_octet

from tofmipd.content import Content
from tofmipd.reception import Reception, discard
from tofmipd.smtp import replies

UNLIMITED = 1 << 30

# What some program somewhere takes for the end of a message, between two texts; as it is kept
# when line ends are mended.  By BDAT all dots are part of the text, so one more is put before each.
FORMS = {
    b"\n.\n": b"\r\n..\r\n",
    b"\n.\r\n": b"\r\n..\r\n",
    b"\r\n.\n": b"\r\n..\r\n",
    b"\r.\r": b"\r\n..\r\n",
    b"\r.\r\n": b"\r\n..\r\n",
    b"\r\n.\r": b"\r\n..\r\n",
    b"\r.\n": b"\r\n..\r\n",
    b"\n.\r": b"\r\n..\r\n",
    b"\n\n.\r\n": b"\r\n\r\n..\r\n",
    b"\r\n.\r\r\n": b"\r\n..\r\n\r\n",
    b"\r\r\n.\r\r\n": b"\r\n\r\n..\r\n\r\n",
    b"\n\r.\n\r": b"\r\n\r\n..\r\n\r\n",
}
TIDY_FORMS = {
    b"\r\n\0.\r\n": b"\r\n\0.\r\n",
    b"\r\n.\0\r\n": b"\r\n..\0\r\n",
    b"\r\n. \r\n": b"\r\n.. \r\n",
    b"\r\n \r\n .\r\n": b"\r\n \r\n .\r\n",
    b"\r\n\xff.\r\n": b"\r\n\xff.\r\n",
    b"\r\n.\xff\r\n": b"\r\n..\xff\r\n",
    b"\r\n.\x85\r\n": b"\r\n..\x85\r\n",
    b"\r\n..\r\n": b"\r\n...\r\n",
}


def octets_of(reception):
    return b"".join(reception.content.blocks())


def by_data(pieces, limit=UNLIMITED, *, fix=False):
    """A message with its end, in pieces; what was kept of it, and the problem."""
    reception = Reception(limit, fix=fix)
    reader = reception.whole()
    rest = [reader.feed(piece) for piece in pieces]
    assert rest[-1] == b""
    assert set(rest[:-1]) <= {None}
    problem = reception.finish()
    return octets_of(reception), problem


def by_chunks(chunks, limit=UNLIMITED, *, fix=False):
    reception = Reception(limit, fix=fix)
    for chunk in chunks:
        reader = reception.chunk(len(chunk))
        assert reader.feed(chunk) == b""
        assert reception.chunk_problem() is None
    problem = reception.finish()
    return octets_of(reception), problem


def all_cuts(octets):
    """The octets whole, one by one, and in two pieces each way."""
    yield [octets]
    yield list(octet_by_octet(octets)) or [b""]
    for cut in range(1, len(octets)):
        yield list(in_pieces(octets, [cut]))


# Line ends.


@pytest.mark.parametrize("form", FORMS)
def test_a_false_end_is_refused_whatever_the_pieces(form):
    message = b"one" + form + b"two\r\n"
    for pieces in all_cuts(message + b".\r\n"):
        assert by_data(pieces)[1] is replies.BARE_NEWLINE
    for chunks in all_cuts(message):
        assert by_chunks(chunks)[1] is replies.BARE_NEWLINE


@pytest.mark.parametrize("form", FORMS)
def test_a_false_end_that_is_mended_is_text_whatever_the_pieces(form):
    kept = b"one" + FORMS[form] + b"two\r\n"
    for pieces in all_cuts(b"one" + form + b"two\r\n.\r\n"):
        assert by_data(pieces, fix=True) == (kept, None)
    for chunks in all_cuts(b"one" + form + b"two\r\n"):
        assert by_chunks(chunks, fix=True) == (kept, None)


@pytest.mark.parametrize("fix", [False, True])
@pytest.mark.parametrize("form", TIDY_FORMS)
def test_what_only_looks_like_an_end_is_kept_as_it_is(form, fix):
    message = b"one" + form + b"two\r\n"
    for pieces in all_cuts(message + b".\r\n"):
        assert by_data(pieces, fix=fix) == (message, None)
    for chunks in all_cuts(message):
        assert by_chunks(chunks, fix=fix) == (b"one" + TIDY_FORMS[form] + b"two\r\n", None)


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b".", b".."),
        (b".\r\n", b"..\r\n"),
        (b"no line end", b"no line end"),
        (b"a\r\n.", b"a\r\n.."),
        (b"a\r\n.\r\n", b"a\r\n..\r\n"),
        (b"..a\r\n...\r\n", b"...a\r\n....\r\n"),
        (b"a.\r\nb..\r\n", b"a.\r\nb..\r\n"),
    ],
)
def test_a_message_in_chunks_is_kept_with_its_dots_doubled(message, kept):
    for chunks in all_cuts(message):
        assert by_chunks(chunks) == (kept, None)
    assert by_chunks([b"", *octet_by_octet(message), b"", b""]) == (kept, None)


@pytest.mark.parametrize("message", [b"\r", b"\n", b"a\r", b"a\r\n\r", b"\r\n\n"])
def test_a_message_in_chunks_that_ends_in_half_a_line_end_is_refused_or_mended(message):
    assert by_chunks([message])[1] is replies.BARE_NEWLINE
    kept, problem = by_chunks(list(octet_by_octet(message)), fix=True)
    assert problem is None
    assert kept == re.sub(rb"\r\n|\r|\n", b"\r\n", message)


def test_a_line_end_may_be_cut_by_the_end_of_a_chunk():
    assert by_chunks([b"a\r", b"\nb\r\n"]) == (b"a\r\nb\r\n", None)
    assert by_chunks([b"a\r\n", b".b\r", b"", b"\n"]) == (b"a\r\n..b\r\n", None)
    assert by_chunks([b"a\r", b"b\n"])[1] is replies.BARE_NEWLINE
    assert by_chunks([b"a\r", b"\n."], fix=True) == (b"a\r\n..", None)


def test_chunks_may_come_in_pieces_with_commands_behind_them():
    reception = Reception(UNLIMITED, fix=False)
    first = reception.chunk(5)
    assert first.feed(b"") is None
    assert first.feed(b"a\r") is None
    assert first.feed(b"\n.bBDAT 2 LAST\r\n") == b"BDAT 2 LAST\r\n"
    second = reception.chunk(2)
    assert second.feed(b"\r\nQUIT\r\n") == b"QUIT\r\n"
    assert second.size_octets == 7
    assert reception.finish() is None
    assert octets_of(reception) == b"a\r\n..b\r\n"


def test_a_chunk_that_nobody_wants_is_read_to_its_end():
    reader = discard(10)
    assert reader.feed(b"") is None
    assert reader.feed(b"QUIT\r\n") is None
    assert reader.feed(b"MAILNOOP\r\n") == b"NOOP\r\n"
    assert discard(0).feed(b"NOOP\r\n") == b"NOOP\r\n"


# Size, and room.


@pytest.mark.parametrize("fix", [False, True])
@pytest.mark.parametrize(
    ("size", "problem"), [(998, None), (1000, None), (1001, replies.MESSAGE_TOO_BIG)]
)
def test_a_message_beyond_the_limit_is_refused(size, problem, fix):
    kept, found = by_data([b"x" * (size - 2), b"\r\n", b".\r\n"], 1000, fix=fix)
    assert found is problem
    assert len(kept) <= 1000


def test_of_a_message_that_goes_on_beyond_the_limit_no_more_is_kept():
    pieces = [b"x" * 98 + b"\r\n"] * 500
    for fix in (False, True):
        kept, problem = by_data([*pieces, b".\r\n"], 1000, fix=fix)
        assert problem is replies.MESSAGE_TOO_BIG
        assert len(kept) <= 1000


def test_too_big_counts_more_than_a_bare_line_end():
    assert by_data([b"x\n" * 1000, b"\r\n.\r\n"], 1000)[1] is replies.MESSAGE_TOO_BIG


@pytest.fixture
def full_after(monkeypatch):
    """Lets so many writes succeed; no room for the others, which are counted."""

    def limit(number):
        done = []
        write = Content.write

        def may_fail(self, block):
            done.append(block)
            if len(done) > number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(self, block)

        monkeypatch.setattr(Content, "write", may_fail)
        return done

    return limit


@pytest.mark.parametrize("fix", [False, True])
def test_without_room_a_message_is_read_to_its_end_and_refused_for_now(full_after, fix):
    writes = full_after(2)
    reception = Reception(1000, fix=fix)
    reader = reception.whole()
    for _ in range(100):
        assert reader.feed(b"x" * 98 + b"\r\n") is None
    assert reader.feed(b"bare\n\r\n.\r\nNOOP\r\n") == b"NOOP\r\n"
    # Not "too big", nor "a bare line end": it may be none of both the next time.
    assert reception.finish() is replies.NO_ROOM
    assert reception.failure is not None
    assert reception.failure.errno == errno.ENOSPC
    assert len(writes) == 3


def test_without_room_no_further_chunks_are_wanted(full_after):
    full_after(1)
    reception = Reception(1000, fix=False)
    assert reception.chunk(3).feed(b"a\r\n") == b""
    assert reception.chunk_problem() is None
    assert reception.chunk(3).feed(b"b\r\nNOOP") == b"NOOP"
    assert reception.chunk_problem() is replies.NO_ROOM
    assert reception.chunk(3).feed(b"c\r\n") == b""
    assert reception.finish() is replies.NO_ROOM


def test_closing_gives_a_file_back_and_may_be_done_twice():
    before = len(os.listdir("/proc/self/fd"))
    for fix in (False, True):
        reception = Reception(UNLIMITED, fix=fix)
        reader = reception.whole()
        for _ in range(20):
            assert reader.feed(b"x" * 99_998 + b"\r\n") is None
        assert len(os.listdir("/proc/self/fd")) == before + 1
        reception.close()
        reception.close()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("chunked", [False, True])
def test_a_message_in_tiny_pieces_takes_hardly_more_memory_than_it_has_octets(chunked):
    size = 200_000
    reception = Reception(UNLIMITED, fix=False)
    reader = reception.chunk(size) if chunked else reception.whole()
    tracemalloc.start()
    try:
        for number in range(size // 2):
            reader.feed(b"%02d" % (number % 100))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reception.content.size_octets > size - 10
    assert kept < 2 * size
