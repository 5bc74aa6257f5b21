"""The header parser, held against a reading line by line: no octet goes lost.

Input: a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fuzz.dialogues import conversations
from tofmipd.tmda import header

WORDS = (b"\r\n", b"\r\n ", b"\r\n\t", b"From ", b"From: ", b"Subject: ", b": ", b"\r\n\r\n")
_NAME = re.compile(rb"[!-9;-~]+[ \t]*:")
_BARE = re.compile(rb"[\r\n]")


def check(octets: bytes) -> None:
    fields, start = header.parse(octets)
    expected, preamble, end = by_the_book(octets)
    found = [field.octets for field in fields]
    assert (found, start) == (expected, end), f"by the book {expected}, {end}"
    block = b"".join(found)
    kept = octets[preamble:start]
    # The empty line belongs to neither; a last line without an end gets one.
    assert kept in (block, block + b"\r\n", block.removesuffix(b"\r\n"))
    for field in fields:
        assert field.name == field.name.lower()
        name, colon, _ = field.octets.partition(b":")
        assert colon
        assert name.rstrip(b" \t").lower() == field.name
        assert field.value in field.octets
        assert b"\r" not in header.unfold(field.value)
        assert b"\r" not in field.text
    again, end = header.parse(header.render(fields))
    assert [field.octets for field in again] == found
    assert end == len(header.render(fields))


def by_the_book(message: bytes) -> tuple[list[bytes], int, int]:
    """The fields, and where the first of them and the body begin."""
    lines = message.split(b"\r\n")
    skipped = 0
    if lines[0].startswith(b"From ") and not _begins_a_field(lines[0]):
        skipped = 1
    while skipped < len(lines) and lines[skipped][:1] in (b" ", b"\t"):
        skipped += 1
    preamble = place = min(sum(len(line) + 2 for line in lines[:skipped]), len(message))
    fields: list[bytes] = []
    for line in lines[skipped:]:
        folded = bool(fields) and line[:1] in (b" ", b"\t")
        if not (_begins_a_field(line) or (folded and not _BARE.search(line))):
            if line == b"" and message.startswith(b"\r\n", place):
                place += 2
            break
        if folded:
            fields[-1] += line + b"\r\n"
        else:
            fields.append(line + b"\r\n")
        place = min(place + len(line) + 2, len(message))
    return fields, preamble, place


def _begins_a_field(line: bytes) -> bool:
    return bool(_NAME.match(line)) and not _BARE.search(line)


def seeds() -> Iterator[bytes]:
    for talk in conversations():
        _, data, message = talk.partition(b"DATA\r\n")
        if data:
            yield message.partition(b"\r\n.\r\n")[0] + b"\r\n"
    yield from (
        b"From: a@x\r\nTo: b@x\r\n\r\nbody\r\n",
        b"From a@x Thu Jan\r\n stray\r\nSubject : one\r\n two\r\n\tthree\r\n\r\n\r\n",
        b"A: 1\r\nno field\r\nB: 2\r\n\r\n",
        b"A: 1\r\n \xff\r\nB: 2\rC: 3\r\n\r\n",
        b"A:",
    )
