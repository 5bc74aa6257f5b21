"""Entries of LOGFILE_OUTGOING (TMDA reference, section 5.9)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tofmipd.tmda import header
from tofmipd.tmda.header import Field
from tofmipd.tmda.mailbox import first_mailbox

_WIDTH = 72
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def submitted_size(fields: Sequence[Field], body_octets: int) -> int:
    """The octets of a message with LF for its line ends and one blank behind each colon."""
    return sum(len(field.name) + len(field.text) + 3 for field in fields) + 1 + body_octets


def entry(
    fields: list[Field], sender: bytes, recipient: bytes, rule: str, date: bytes, size: int
) -> bytes:
    """What is noted of one recipient of one copy, whose header is given.

    ``sender`` is that of the envelope, empty for the null sender.  No value can bring in a line
    of its own.
    """
    from_ = _value(fields, b"from")
    lines = [(b"Date", date)]
    for label, value in (
        (b"XPri", _value(fields, b"x-primary-address")),
        (b"Sndr", _unless_in(from_, sender)),
        (b"From", from_),
        (b"Rept", _value(fields, b"reply-to")),
        (b"To", recipient),
        (b"Subj", _subject(fields)),
    ):
        if value is not None:
            lines.append((label, value))
    text = rule.encode("utf-8", "surrogateescape")
    lines.append((b"Actn", text.ljust(_WIDTH - len(f"({size})")) + b"(%d)" % size))
    return b"".join(b"%4b: %b\n" % (label, _one_line(value)) for label, value in lines) + b"\n"


def _unless_in(from_: bytes | None, sender: bytes) -> bytes | None:
    shown = sender or b"<>"
    if from_ is not None and first_mailbox(from_).address == shown:
        return None
    return shown


def _value(fields: list[Field], name: bytes) -> bytes | None:
    """As header.first, with the white space at its end."""
    for field in fields:
        if field.name == name:
            value = field.octets.partition(b":")[2].removesuffix(b"\r\n")
            return header.unfold(value).lstrip(b" \t")
    return None


def _subject(fields: list[Field]) -> bytes:
    subject = _value(fields, b"subject")
    return b"None" if subject is None else subject


def _one_line(value: bytes) -> bytes:
    return _CONTROL.sub(b"?", header.unfold(value))
