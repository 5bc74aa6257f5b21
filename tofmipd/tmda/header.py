"""The header block of a message, as octets (RFC 5322 section 2.2).

A block is a list of fields in submitted order; each keeps its own octets, so that what nobody
touches goes out as it came in.  Lines end with CRLF; the body is never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from tofmipd.tmda.errors import TagError

# RFC 5322 section 2.1.1, both without the CRLF.
_WANTED_OCTETS = 78
_LIMIT_OCTETS = 998

_WHITE = b" \t"
# Before these a line may end: something stands on both sides.
_BLANKS = re.compile(rb"(?<=[^ \t])[ \t]+(?=[^ \t])")

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)(?:\r\n|\Z)")


class Field(NamedTuple):
    """One header field: its name in lower case and its octets with the final CRLF.

    ``made``: we made it, and any folds are ours.
    """

    name: bytes
    octets: bytes
    made: bool = False

    @property
    def value(self) -> bytes:
        """What follows the colon, without white space around it; folds are kept."""
        return self.octets.partition(b":")[2].strip(b" \t\r\n")

    @property
    def text(self) -> bytes:
        """The value as programs on this machine have it: without our folds, those of others by
        LF, white space at the end kept."""
        first, *others = self.octets.partition(b":")[2].removesuffix(b"\r\n").split(b"\r\n")
        first = first.lstrip(b" \t")
        if self.made:
            return b"".join([first, *others]).lstrip(b" \t")
        return b"\n".join([first, *others] if first else others)


def make_field(name: bytes, value: bytes) -> Field:
    """A new field; ``value`` has no line end.

    It is folded at blanks after 78 characters where that can be done (RFC 5322 section 2.2.3).
    Raises TagError if a line would be longer than 998 octets.
    """
    line = name + b": " + value
    if len(line) > _WANTED_OCTETS:
        line = _folded(line)
    return Field(name.lower(), line + b"\r\n", made=True)


def _folded(line: bytes) -> bytes:
    """The line with line ends before some of its blanks, none of which goes lost."""
    lines = []
    # The name and its colon stay with the first word.
    start, earliest = 0, line.index(b":") + 2
    while len(line) - start > _WANTED_OCTETS:
        end = start + _WANTED_OCTETS
        at = line.rfind(b" ", earliest, end + 1)
        if at < 0 or line[at - 1] in _WHITE or line[at + 1 : at + 2] in (b" ", b"\t", b""):
            at = _blank_near(line, earliest, end)
        if at < 0:
            break
        lines.append(line[start:at])
        start, earliest = at, at + 1
    lines.append(line[start:])
    if len(lines[0]) > _LIMIT_OCTETS:
        colon = line.index(b":") + 1
        lines[:1] = [lines[0][:colon], lines[0][colon:]]
    if any(len(part) > _LIMIT_OCTETS for part in lines):
        name = line.partition(b":")[0].decode("utf-8", "replace")
        raise TagError(f"{name} would have a line of more than {_LIMIT_OCTETS} octets")
    return b"\r\n".join(lines)


def _blank_near(line: bytes, earliest: int, end: int) -> int:
    """The last place up to ``end`` where a line may end, else the first one after it, else -1."""
    last = -1
    for blank in _BLANKS.finditer(line, earliest):
        if blank.start() > end and last >= 0:
            break
        last = blank.start()
        if last > end:
            break
    return last


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
        # "From : a@x" is a field, whose blank RFC 5322 section 4.5 allows.
        if head.startswith(b"From ", position) and (position or _FIELD.match(head)):
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
