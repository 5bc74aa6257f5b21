"""Content in memory and on disk, stuffed dots, and the local form of a message."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest
from fakes import content_of, in_pieces, octet_by_octet
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.content import (
    BLOCK_OCTETS,
    MEMORY_LIMIT_OCTETS,
    Content,
    as_local_text,
    as_wire_text,
    message_id,
    stuffed,
    unstuffed,
)

noise = settings(max_examples=200, deadline=None)

BLOCK = bytes(range(256)) * 256
SIZES = [0, 1, MEMORY_LIMIT_OCTETS - 1, MEMORY_LIMIT_OCTETS, MEMORY_LIMIT_OCTETS + 1, 3_000_000]


def octets_of(size):
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


def pieces_of(octets, size=100_000):
    return (octets[start : start + size] for start in range(0, len(octets), size))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_can_be_read_any_number_of_times(size):
    octets = octets_of(size)
    content = content_of(pieces_of(octets))
    assert content.size_octets == size
    for _ in range(2):
        assert b"".join(content.blocks()) == octets
    for start in (1, size // 2, size - 1, size, size + 1):
        assert b"".join(content.blocks(max(start, 0))) == octets[max(start, 0) :]
    content.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wanted", [0, 1, 1000, MEMORY_LIMIT_OCTETS, MEMORY_LIMIT_OCTETS + 10])
def test_the_head_is_at_most_what_was_asked_for(size, wanted):
    octets = octets_of(size)
    content = content_of(pieces_of(octets))
    assert content.head(wanted) == octets[:wanted]
    assert b"".join(content.blocks()) == octets
    content.close()


def test_no_piece_is_larger_than_what_may_be_in_memory():
    content = content_of(pieces_of(octets_of(3_000_000)))
    assert max(map(len, content.blocks())) == BLOCK_OCTETS
    content.close()


def test_a_large_content_lies_in_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    content = content_of(pieces_of(octets_of(2_000_000)))
    assert os.listdir(tmp_path) == []
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1
    content.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_closing_twice_is_safe_and_leaves_nothing():
    for size in (10, 2_000_000):
        content = content_of(octets_of(size))
        content.close()
        content.close()
        assert b"".join(content.blocks()) == b""
        assert content.head(10) == b""


def test_two_readers_do_not_disturb_each_other():
    octets = octets_of(2_000_000)
    content = content_of(octets)
    first, second = content.blocks(), content.blocks()
    assert next(first) == next(second) == octets[:BLOCK_OCTETS]
    assert b"".join(first) == b"".join(second) == octets[BLOCK_OCTETS:]
    content.close()


def test_a_file_that_takes_only_a_part_is_given_the_rest(monkeypatch):
    class Slow:
        """A raw file that takes at most 1000 octets at a time."""

        def __init__(self, file):
            self.file = file

        def write(self, view):
            return self.file.write(view[:1000])

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Slow(real(**options)))
    octets = octets_of(MEMORY_LIMIT_OCTETS + 2500)
    content = content_of(pieces_of(octets))
    assert b"".join(content.blocks()) == octets
    content.close()


def test_a_full_disk_is_an_os_error():
    content = Content()
    with open("/dev/full", "wb", buffering=0) as full:
        content._file = full
        with pytest.raises(OSError, match="No space left") as caught:
            content.write(b"x")
        assert caught.value.errno == errno.ENOSPC


# Dots.


@pytest.mark.parametrize(
    ("plain", "wire"),
    [
        (b"", b""),
        (b"a\r\n", b"a\r\n"),
        (b".\r\n", b"..\r\n"),
        (b"..\r\n", b"...\r\n"),
        (b".a\r\n.b\r\n", b"..a\r\n..b\r\n"),
        (b"a.\r\nb.c\r\n", b"a.\r\nb.c\r\n"),
        (b"a\r\n\r\n.\r\n", b"a\r\n\r\n..\r\n"),
        (b"a\n.b\r\n", b"a\n.b\r\n"),
        (b"\r\n.", b"\r\n.."),
    ],
)
def test_a_leading_dot_is_doubled_and_halved_again(plain, wire):
    assert stuffed(plain) == wire
    assert unstuffed(wire) == plain


def test_a_leading_dot_that_was_never_doubled_is_taken_away_all_the_same():
    assert unstuffed(b".a\r\nb\r\n.c\r\n") == b"a\r\nb\r\nc\r\n"


PARTS = [b"\r\n", b".", b"..", b"\r\n.", b"a", b"\0\xff", b"\r\n\r\n"]
LINES = st.lists(st.sampled_from(PARTS), max_size=30).map(b"".join)


@noise
@given(LINES)
def test_stuffing_can_always_be_undone(octets):
    assert unstuffed(stuffed(octets)) == octets
    assert b"\r\n.\r\n" not in b"\r\n" + stuffed(octets) + b"\r\n"


# The form that programs on this machine expect.


def local_by_the_book(wire):
    lines = wire.split(b"\r\n")
    return b"\n".join(line.removeprefix(b".") for line in lines)


@pytest.mark.parametrize(
    ("wire", "local"),
    [
        (b"", b""),
        (b"\r\n", b"\n"),
        (b"a\r\n", b"a\n"),
        (b"..\r\n", b".\n"),
        (b"..a\r\n...b\r\n", b".a\n..b\n"),
        (b"a\r\n\r\n..\r\nb\r\n", b"a\n\n.\nb\n"),
        (b"\x80\0\xff\r\n", b"\x80\0\xff\n"),
    ],
)
def test_the_local_form_has_lf_and_no_stuffed_dots(wire, local):
    assert b"".join(as_local_text([wire])) == local
    assert b"".join(as_local_text(octet_by_octet(wire))) == local


@noise
@given(LINES, st.lists(st.integers(1, 60), max_size=10))
def test_the_local_form_does_not_depend_on_the_pieces(octets, cuts):
    expected = local_by_the_book(octets)
    for pieces in ([octets], octet_by_octet(octets), in_pieces(octets, cuts), [b"", octets, b""]):
        assert b"".join(as_local_text(pieces)) == expected


@pytest.mark.parametrize(
    ("local", "wire"),
    [
        (b"", b""),
        (b"\n", b"\r\n"),
        (b"a\n", b"a\r\n"),
        (b"a", b"a"),
        (b".", b".."),
        (b".\n", b"..\r\n"),
        (b".a\n..b\n", b"..a\r\n...b\r\n"),
        (b"a\n\n.\nb.\n", b"a\r\n\r\n..\r\nb.\r\n"),
        (b"\n.", b"\r\n.."),
        (b"\x80\0\xff\n", b"\x80\0\xff\r\n"),
    ],
)
def test_the_wire_form_has_crlf_and_stuffed_dots(local, wire):
    assert b"".join(as_wire_text([local])) == wire
    assert b"".join(as_wire_text(octet_by_octet(local))) == wire
    assert b"".join(as_wire_text([b"", *octet_by_octet(local), b""])) == wire


LOCAL_PARTS = [b"\n", b".", b"..", b"\n.", b"a", b"\0\xff", b"\n\n", b"\r", b"\r\n"]
CUTS = st.lists(st.integers(1, 60), max_size=10)


@noise
@given(st.lists(st.sampled_from(LOCAL_PARTS), max_size=30).map(b"".join), CUTS, CUTS)
def test_the_wire_form_and_the_local_form_undo_each_other(local, cuts, others):
    """However either is cut; a carriage return of the text stays one."""
    wire = b"".join(as_wire_text([b"", *in_pieces(local, cuts), b""]))
    assert wire == stuffed(local.replace(b"\n", b"\r\n"))
    assert b"\r\n.\r\n" not in b"\r\n" + wire + b"\r\n"
    assert b"".join(as_local_text(in_pieces(wire, others))) == local


@noise
@given(LINES, CUTS, CUTS)
def test_what_came_by_smtp_goes_out_by_smtp_as_it_came(octets, cuts, others):
    """By way of the local form, for messages whose lines all end with CRLF."""
    wire = stuffed(octets)
    local = b"".join(as_local_text(in_pieces(wire, cuts)))
    assert b"".join(as_wire_text(in_pieces(local, others))) == wire


@pytest.mark.parametrize(
    ("octets", "shown"),
    [
        (b"Message-ID: <1@a>\r\n\r\n", "<1@a>"),
        (b"X: y\r\nMESSAGE-id :\r\n\t<1@a>\r\n (x)\r\nY: z\r\n\r\n", "<1@a> (x)"),
        (b"X: y\r\n\r\nMessage-ID: <1@a>\r\n", ""),
        (b"X-Message-ID: <1@a>\r\nX: y\r\n Message-ID: <1@a>\r\n\r\n", ""),
        (b"Message-ID: a\xff\x00\r\n\r\n", "a\ufffd\0"),
        (b"Message-ID: " + b"x" * 900 + b"\r\n\r\n", "x" * 250),
        (b"Message-ID: <1@a>", "<1@a>"),
        (b"Message-ID:\r\n\r\n", ""),
        (b"X: " + b"y" * 70_000 + b"\r\nMessage-ID: <1@a>\r\n\r\n", ""),
        (b"", ""),
    ],
)
def test_the_message_id_is_the_headers_on_one_line(octets, shown):
    content = Content()
    content.write(octets)
    assert content.message_id() == message_id(octets) == shown
    content.close()
