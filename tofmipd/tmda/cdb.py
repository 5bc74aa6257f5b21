"""Constant databases (D. J. Bernstein's cdb, https://cr.yp.to/cdb/cdb.txt): reading and making.

The file begins with 256 pairs of a place and a number of slots; a hash of the key chooses the
table and the slot in it; a slot has the hash and the place of a record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

_PAIR = struct.Struct("<LL")
_TABLES = 256
HEADER_OCTETS = _TABLES * _PAIR.size
_SIZE_LIMIT_OCTETS = 1 << 32


class BadDatabase(Exception):
    """The file is no constant database, or a damaged one."""


# Gives so many octets from a place on; fewer at the end of the file.
ReadAt = Callable[[int, int], bytes]


def look_up(read_at: ReadAt, key: bytes) -> bytes | None:
    """The first value of a key, None if there is none.  Raises BadDatabase, OSError."""
    number = _hash(key)
    start, slots = _pair(read_at, number % _TABLES * _PAIR.size)
    for step in range(slots):
        slot = (number // _TABLES + step) % slots
        found, place = _pair(read_at, start + slot * _PAIR.size)
        if not place:
            return None
        if found == number:
            key_octets, value_octets = _pair(read_at, place)
            if key_octets == len(key):
                place += _PAIR.size
                if _exactly(read_at, place, key_octets) == key:
                    return _exactly(read_at, place + key_octets, value_octets)
    return None


def make(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A whole database of these records.  Raises BadDatabase beyond 4 GiB."""
    parts = []
    place = HEADER_OCTETS
    tables: list[list[tuple[int, int]]] = [[] for _ in range(_TABLES)]
    for key, value in records:
        number = _hash(key)
        tables[number % _TABLES].append((number, place))
        parts += [_PAIR.pack(len(key), len(value)), key, value]
        place += _PAIR.size + len(key) + len(value)
    header = []
    for table in tables:
        slots = 2 * len(table)
        if place + slots * _PAIR.size >= _SIZE_LIMIT_OCTETS:
            raise BadDatabase("a constant database cannot have more than 4 GiB")
        header.append(_PAIR.pack(place, slots))
        parts.append(_filled(table, slots))
        place += slots * _PAIR.size
    return b"".join(header + parts)


def _filled(table: list[tuple[int, int]], slots: int) -> bytes:
    """The slots of one table."""
    filled = [(0, 0)] * slots
    for number, place in table:
        slot = number // _TABLES % slots
        while filled[slot][1]:
            slot = (slot + 1) % slots
        filled[slot] = (number, place)
    return b"".join(_PAIR.pack(*pair) for pair in filled)


def _hash(key: bytes) -> int:
    number = 5381
    for octet in key:
        number = (number * 33 & 0xFFFFFFFF) ^ octet
    return number


def _pair(read_at: ReadAt, place: int) -> tuple[int, int]:
    first, second = _PAIR.unpack(_exactly(read_at, place, _PAIR.size))
    return first, second


def _exactly(read_at: ReadAt, place: int, octets: int) -> bytes:
    found = read_at(place, octets) if octets else b""
    if len(found) != octets:
        raise BadDatabase("not a constant database, or a damaged one")
    return found
