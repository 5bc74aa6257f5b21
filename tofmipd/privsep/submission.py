"""A submitted message as it comes in: its header, and what it is stamped with."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import time
from typing import Protocol

from tofmipd import __version__
from tofmipd.content import Content, unstuffed
from tofmipd.dates import rfc5322_date
from tofmipd.smtp.envelope import Envelope
from tofmipd.tmda import header
from tofmipd.tmda.config import Config
from tofmipd.tmda.header import Field
from tofmipd.tmda.inject import Stamp

AGENT = f"tofmipd/{__version__}".encode()

HEADER_LIMIT_OCTETS = 1 << 20

# A client may call itself anything; in Received it cannot write more than a name.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_NOT_IN_A_COMMENT = re.compile(r"[^A-Za-z0-9._, -]")
_NAME_LIMIT = 255
_AUTHORS = re.compile(
    rb"^((?:resent-)?from)[ \t]*:[^\r\n]*(?:\r\n[ \t][^\r\n]*)*", re.IGNORECASE | re.MULTILINE
)
# RFC 3848, RFC 6531 section 3.7.3.
_PROTOCOLS = frozenset(
    ("SMTP", *(a + b for a in ("ESMTP", "UTF8SMTP") for b in ("", "A", "S", "SA")))
)


def parsed_header(content: Content) -> tuple[list[Field], int]:
    """The fields of a message, their dots no longer stuffed, and where its body begins.

    The place is one in wire form, found by counting lines: a client need not have stuffed the
    dots that were taken away.  It is beyond HEADER_LIMIT_OCTETS if the header does not end there.
    """
    wire = content.head(HEADER_LIMIT_OCTETS + 1)
    end = 0 if wire.startswith(b"\r\n") else wire.find(b"\r\n\r\n") + 2
    if end >= 2:
        wire = wire[: end + 2]
    text = unstuffed(wire)
    fields, start = header.parse(text)
    if content.size_octets > len(wire) > HEADER_LIMIT_OCTETS and b"\r\n" not in text[start:]:
        return fields, HEADER_LIMIT_OCTETS + 1
    if len(text) == len(wire):
        return fields, start
    body_start = 0
    for _ in range(text.count(b"\r\n", 0, start)):
        body_start = wire.index(b"\r\n", body_start) + 2
    return fields, body_start


def author_fields(content: Content) -> tuple[list[Field], bool]:
    """The fields with authors that anybody may find who gets the message as it is, and whether
    all of its header has been looked at.

    A line that is no field ends the header for some programs; others drop it and read on.
    """
    wire = content.head(HEADER_LIMIT_OCTETS + 1)
    end = 0 if wire.startswith(b"\r\n") else wire.find(b"\r\n\r\n")
    whole = end >= 0 or len(wire) <= HEADER_LIMIT_OCTETS
    text = unstuffed(wire if end < 0 else wire[: end + 2])
    return [Field(match[1].lower(), match[0]) for match in _AUTHORS.finditer(text)], whole


def received_value(
    style: str, envelope: Envelope, host_name: str, date: str, session_id: str = ""
) -> bytes | None:
    """The trace field (RFC 5321 section 4.4), in the manner of the original.

    "private" tells neither address nor name nor encryption of the client, "none" leaves the field
    out.  ``session_id`` is "" for none.
    """
    if style == "none":
        return None
    client = "from [127.0.0.1]"
    if style != "private":
        name = _NOT_IN_A_NAME.sub("?", envelope.helo[:_NAME_LIMIT]) or "unknown"
        client = f"from {name} ({envelope.peer})"
        if envelope.encryption:
            client += f" ({_NOT_IN_A_COMMENT.sub('?', envelope.encryption)})"
    protocol = envelope.protocol if envelope.protocol in _PROTOCOLS else "ESMTPA"
    number = f" id {session_id}" if session_id else ""
    return f"{client} by {host_name} (tofmipd) with {protocol}{number}; {date}".encode()


class Stamps(Protocol):
    """Makes what a message is stamped with."""

    def stamp(self, config: Config, envelope: Envelope, session_id: str = "") -> Stamp: ...


class SessionStamps:
    """For messages that clients submit; ``received`` is the style of the trace field for those
    whose configuration names none.  Safe for threads."""

    def __init__(self, host_name: str, received: str) -> None:
        self._host_name = host_name
        self._received = received
        self._numbers = itertools.count(secrets.randbits(20))

    def stamp(self, config: Config, envelope: Envelope, session_id: str = "") -> Stamp:
        now = time.time()
        date = rfc5322_date(now)
        style = config.received or self._received
        unique = f"{os.getpid()}.{next(self._numbers):x}"
        return Stamp(
            now=now,
            date=date.encode(),
            received=received_value(style, envelope, self._host_name, date, session_id),
            message_id=f"<{int(now)}.{unique}.TMDA@{self._host_name}>".encode(),
            agent=AGENT,
        )
