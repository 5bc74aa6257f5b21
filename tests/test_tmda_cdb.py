"""Constant databases: ours read by the tool of others, theirs by us, and damaged ones."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.tmda import cdb

RECORDS = [
    (b"bob@x.example", b""),
    (b"x.example", b"dated=5d"),
    (b"", b"the empty key"),
    (b"a\0b\nc", b"->\n+1,1:a->b\n\xff\x00"),
    ("jürgen@x.example".encode(), b"kw=j"),
    (b"k" * 5000, b"v" * 70_000),
]


def reader(octets):
    """As a file gives them: fewer where it ends."""

    def read_at(place, size):
        file = io.BytesIO(octets)
        file.seek(place)
        return file.read(size)

    return read_at


def find(octets, key):
    return cdb.look_up(reader(octets), key)


def dumped(records):
    """The form in which the tool reads and writes records."""
    parts = [b"+%d,%d:%s->%s\n" % (len(key), len(value), key, value) for key, value in records]
    return b"".join([*parts, b"\n"])


def tool(*arguments, given=b""):
    return subprocess.run(
        ["cdb", *arguments], input=given, capture_output=True, timeout=20, check=False
    )


# Round trips


@pytest.mark.parametrize("records", [[], RECORDS, RECORDS * 2])
def test_what_has_been_put_in_is_found_again(records):
    octets = cdb.make(records)
    for key, value in records:
        assert find(octets, key) == value
    for key in (b"nobody@x.example", b"BOB@x.example", b"bob@x.exampl", b"\0"):
        assert find(octets, key) is None


def test_the_first_of_equal_keys_counts():
    octets = cdb.make([(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"a", b"")])
    assert find(octets, b"a") == b"1"


def colliding():
    """Two keys of the same length whose hashes are equal, and a third in the same table."""
    seen = {}
    for first in range(256):
        for second in range(256):
            number = ((5381 * 33 ^ first) * 33 & 0xFFFFFFFF) ^ second
            if number in seen:
                return seen[number], bytes([first, second])
            seen[number] = bytes([first, second])
    raise AssertionError("none")


def test_keys_with_the_same_hash_are_told_apart():
    one, other = colliding()
    octets = cdb.make([(one, b"one"), (other, b"other")])
    assert (find(octets, one), find(octets, other)) == (b"one", b"other")
    assert find(cdb.make([(one, b"one")]), other) is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=20)), max_size=40),
    st.lists(st.binary(max_size=6), max_size=10),
)
def test_a_database_is_a_table_of_the_first_values(records, others):
    octets = cdb.make(records)
    table = dict(reversed(records))
    for key in [*table, *others]:
        assert find(octets, key) == table.get(key)


def test_two_databases_of_the_same_records_are_the_same():
    assert cdb.make(RECORDS) == cdb.make(iter(RECORDS))


# The tool of Debian


@pytest.mark.peer("cdb")
def test_the_tool_finds_what_we_have_made(tmp_path):
    path = tmp_path / "ours.cdb"
    path.write_bytes(cdb.make([*RECORDS, (b"bob@x.example", b"second")]))
    for key, value in RECORDS:
        if b"\0" not in key:
            ended = tool("-q", "-n", "1", path, key)
            assert (ended.returncode, ended.stdout) == (0, value)
    assert tool("-q", path, b"nobody").returncode == 100
    assert tool("-d", path).stdout == dumped([*RECORDS, (b"bob@x.example", b"second")])


@pytest.mark.peer("cdb")
@pytest.mark.parametrize("records", [[], RECORDS, RECORDS + RECORDS[::-1]])
def test_we_find_what_the_tool_has_made(tmp_path, records):
    path = tmp_path / "theirs.cdb"
    assert tool("-c", "-t", "-", path, given=dumped(records)).returncode == 0
    octets = path.read_bytes()
    for key, _ in records:
        assert find(octets, key) == dict(reversed(records))[key]
    assert find(octets, b"nobody@x.example") is None


@pytest.mark.peer("cdb")
def test_ours_and_theirs_are_the_same_octets(tmp_path):
    records = [(b"a%d@x.example" % number, b"kw=%d" % number) for number in range(5000)]
    path = tmp_path / "theirs.cdb"
    assert tool("-c", "-t", "-", path, given=dumped(records)).returncode == 0
    assert path.read_bytes() == cdb.make(records)


@pytest.mark.peer("cdb")
def test_a_database_made_from_a_list_by_the_tool_can_be_read(tmp_path):
    """``cdb -c -m`` takes lines of key and value, as lists have them."""
    path = tmp_path / "list.cdb"
    text = b"bob@x.example dated=1d\ncarol@x.example\nz.example kw=zed\n"
    assert tool("-c", "-m", "-t", "-", path, given=text).returncode == 0
    octets = path.read_bytes()
    assert find(octets, b"bob@x.example") == b"dated=1d"
    assert find(octets, b"carol@x.example") == b""
    assert find(octets, b"z.example") == b"kw=zed"


# Damage

WHOLE = cdb.make([(b"bob@x.example", b"bare"), *((b"%d" % n, b"v%d" % n) for n in range(30))])


@pytest.mark.parametrize("octets", [b"", b"\0", b"text\n" * 5, b"\xff" * 2047])
def test_what_is_too_short_is_no_database(octets):
    with pytest.raises(cdb.BadDatabase):
        find(octets, b"bob@x.example")


def test_a_database_that_ends_anywhere_is_found_out_or_serves():
    for end in range(len(WHOLE)):
        try:
            assert find(WHOLE[:end], b"bob@x.example") in (None, b"bare")
        except cdb.BadDatabase:
            continue
    with pytest.raises(cdb.BadDatabase):
        find(WHOLE[: cdb.HEADER_OCTETS], b"bob@x.example")


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=20),
    st.sampled_from([b"bob@x.example", b"7", b"none"]),
)
def test_flipped_octets_end_in_an_answer_or_in_bad_database(flips, key):
    octets = bytearray(WHOLE)
    for place, octet in flips:
        octets[place] = octet
    try:
        found = find(bytes(octets), key)
    except cdb.BadDatabase:
        return
    assert found is None or isinstance(found, bytes)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=2048, max_size=2200), st.binary(max_size=4))
def test_noise_ends_in_an_answer_or_in_bad_database(octets, key):
    try:
        found = find(octets, key)
    except cdb.BadDatabase:
        return
    assert found is None or isinstance(found, bytes)


@pytest.mark.parametrize(
    "pair",
    [(0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (2048, 0xFFFFFFFF), (0, 1), (2047, 1)],
)
def test_tables_that_lie_about_their_size_are_found_out_soon(pair):
    """The file has one slot after another that is filled by something else."""
    octets = struct.pack("<LL", *pair) * 256 + struct.pack("<LL", 1, 1) * 20_000
    begin = time.process_time()
    with contextlib.suppress(cdb.BadDatabase):
        find(octets, b"bob@x.example")
    assert time.process_time() - begin < 2


def test_a_record_that_claims_to_be_huge_is_found_out():
    octets = bytearray(cdb.make([(b"k", b"v")]))
    octets[2048 + 4 : 2048 + 8] = struct.pack("<L", 0xFFFFFFFF)
    with pytest.raises(cdb.BadDatabase):
        find(bytes(octets), b"k")
    octets[2048 : 2048 + 4] = struct.pack("<L", 0xFFFFFFFF)
    assert find(bytes(octets), b"k") is None


class Long(bytes):
    """An octet string that says that it is 3 GiB long, for want of so much memory."""

    def __len__(self):
        return 3 << 30


def test_more_than_four_gigabytes_are_refused():
    with pytest.raises(cdb.BadDatabase, match="4 GiB"):
        cdb.make([(b"a", Long()), (b"b", Long())])
