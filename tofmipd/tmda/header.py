"""The header block of a message, as octets (RFC 5322 section 2.2).

A block is a list of fields in submitted order; each keeps its own octets, so that what nobody
touches goes out as it came in.  Lines end with CRLF; the body is never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?:\r\n|\Z)")


class Field(NamedTuple):
    """One header field: its name in lower case and its octets with the final CRLF."""

    name: bytes
    octets: bytes

    @property
    def value(self) -> bytes:
        """What follows the colon, without white space around it; folds are kept."""
        return self.octets.partition(b":")[2].strip(b" \t\r\n")


def make_field(name: bytes, value: bytes) -> Field:
    """A new field; ``value`` must hold no line end but those of folds."""
    return Field(name.lower(), name + b": " + value + b"\r\n")


def parse(head: bytes) -> tuple[list[Field], int]:
    """Split a message, or the beginning of one, into fields and the offset of its body.

    The block ends at the first empty line, or before the first line that is no field: that line
    is then the body's first.  A leading mbox "From " line and continuation lines before any
    field are dropped (reference, section 5).
    """
    fields = []
    position = _skip_preamble(head)
    match = _FIELD.match(head, position)
    while match is not None:
        octets = match[0]
        if not octets.endswith(b"\r\n"):
            octets += b"\r\n"
        fields.append(Field(match[1].lower(), octets))
        position = match.end()
        match = _FIELD.match(head, position)
    if head.startswith(b"\r\n", position):
        position += 2
    return fields, position


def _skip_preamble(head: bytes) -> int:
    position = 0
    while head.startswith((b"From ", b" ", b"\t"), position):
        if head.startswith(b"From ", position) and position:
            break
        end = head.find(b"\r\n", position)
        if end < 0:
            return len(head)
        position = end + 2
    return position


def first(fields: list[Field], name: bytes) -> bytes | None:
    """The value of the first field of that lower-case name."""
    for field in fields:
        if field.name == name:
            return field.value
    return None


def values(fields: list[Field], name: bytes) -> list[bytes]:
    return [field.value for field in fields if field.name == name]


def without(fields: list[Field], names: Collection[bytes]) -> list[Field]:
    """All fields but those whose lower-case names are given."""
    return [field for field in fields if field.name not in names]


def render(fields: list[Field]) -> bytes:
    """The block with the empty line that ends it."""
    return b"".join([field.octets for field in fields]) + b"\r\n"


def unfold(value: bytes) -> bytes:
    """The value on one line, each fold made one blank."""
    first, *others = value.split(b"\r\n")
    if not others:
        return value
    *middle, last = (part.lstrip(b" \t") for part in others)
    return b" ".join([*(part.rstrip(b" \t") for part in (first, *middle)), last])


def capitalised(name: bytes) -> bytes:
    """``x-ORIG-addr`` as ``X-Orig-Addr`` (reference, section 5.8)."""
    return b"-".join(word.capitalize() for word in name.split(b"-") if word)
