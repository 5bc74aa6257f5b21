"""One input, cut in several ways: the first octets of an input say where."""

from __future__ import annotations

from collections.abc import Iterator

from fakes import octet_by_octet

HEAD_OCTETS = 4
# Cuts a text into pieces of 1, 2, 3 and 97 octets, in turn.
HEAD = bytes([0, 1, 2, 96])


def parted(octets: bytes) -> tuple[bytes, bytes]:
    """The head and what follows it; an input that is too short has a head all the same."""
    return octets[:HEAD_OCTETS].ljust(HEAD_OCTETS, b"\0"), octets[HEAD_OCTETS:]


def ways(head: bytes, text: bytes) -> Iterator[list[bytes]]:
    """A text whole, octet by octet, and cut as the head says."""
    yield [text] if text else []
    yield list(octet_by_octet(text))
    yield list(cut(text, [size + 1 for size in head]))


def cut(text: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Pieces of these sizes, over and over."""
    place, turn = 0, 0
    while place < len(text):
        size = sizes[turn % len(sizes)]
        yield text[place : place + size]
        place, turn = place + size, turn + 1
