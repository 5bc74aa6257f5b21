"""The text of an envelope file: what is to be handed over, and what has become of it.

Pure: octets in, octets out.  The first part is written once and ends with ``End``; events are
lines behind it, so that telling one is a single write.  What follows them may be NUL, room that
was reserved.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tofmipd.handoff.copy import Copy, Parameters
from tofmipd.smtp.reply import printable

_FORMAT = b"tofmipd 1"
# What an address may show as it is; all else is escaped as in a URL (RFC 3986 section 2.1).
_PLAIN = "@!#$&'*+/=?^`{|}~.,:;[]()<>\"\\"
_REPLY_LIMIT, _BY_LIMIT = 500, 200
# No event is longer.
EVENT_LIMIT_OCTETS = 800
_NOT_IN_AN_ADDRESS = re.compile(rb"[\x00-\x1f\x7f]")
_NUMBER = re.compile(rb"[0-9]{1,15}")
_TIME = re.compile(rb"[0-9]{1,11}(?:\.[0-9]{1,6})?")


class BadEnvelope(Exception):
    """An envelope file is not what was written."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose a message is and how it came in.

    ``arrived`` is in seconds since the epoch; ``local_address`` is the one the client chose.
    """

    login: str
    session_id: str
    arrived: float
    local_address: str = ""


class StoredCopy(NamedTuple):
    """A copy without its octets: its header is ``header_octets`` of the content file, behind the
    headers of those before it."""

    sender: bytes
    recipients: tuple[bytes, ...]
    header_octets: int


@dataclass(frozen=True, slots=True)
class Stored:
    """All that the first part says; the body begins in the content file at ``body_start``."""

    origin: Origin
    copies: tuple[StoredCopy, ...]
    body_start: int
    parameters: Parameters


class Place(NamedTuple):
    """One recipient of one copy, both counted from 0."""

    copy: int
    recipient: int


# What may become of a recipient.  REFUSED is for good; TOLD: the sender knows of the refusal.
TAKEN, REFUSED, DEFERRED, TOLD = "Taken", "Refused", "Deferred", "Told"
# What may happen to the whole message.
TRIED, WARNED = "Tried", "Warned"


class Event(NamedTuple):
    """``what`` happened at ``at`` (seconds since the epoch), to one recipient or to all.

    ``by`` is the next hop, ``reply`` what it said.
    """

    what: str
    at: float
    place: Place | None = None
    by: str = ""
    reply: str = ""

    def encode(self) -> bytes:
        words = [f"{self.what}:"]
        if self.place is not None:
            words.append(f"{self.place.copy + 1}.{self.place.recipient + 1}")
        words.append(f"{max(self.at, 0):.0f}")
        if self.by or self.reply:
            words += [_quoted(self.by)[:_BY_LIMIT], printable(self.reply, _REPLY_LIMIT)]
        return " ".join(words).rstrip().encode() + b"\n"


@dataclass(slots=True)
class History:
    """What the events come to: the last one of each recipient, and those of the whole."""

    last: dict[Place, Event] = field(default_factory=dict)
    tries: int = 0
    warned: bool = False

    def add(self, event: Event) -> None:
        place = event.place
        if place is not None:
            if event.what == TOLD and place in self.last:
                # What the sender knows is what the next hop said.
                event = self.last[place]._replace(what=TOLD, at=event.at)
            self.last[place] = event
        elif event.what == TRIED:
            self.tries += 1
        elif event.what == WARNED:
            self.warned = True

    def what(self, place: Place) -> str:
        """The last that became of a recipient, "" for nothing yet."""
        event = self.last.get(place)
        return event.what if event is not None else ""

    def waiting(self, stored: Stored) -> list[Place]:
        """Who has neither the message nor been refused."""
        return [place for place in places(stored) if self.what(place) in ("", DEFERRED)]

    def refused(self, stored: Stored) -> list[Place]:
        """Who was refused, and the sender does not know."""
        return [place for place in places(stored) if self.what(place) == REFUSED]


def places(stored: Stored) -> Iterator[Place]:
    """All recipients of all copies."""
    for number, copy in enumerate(stored.copies):
        for recipient in range(len(copy.recipients)):
            yield Place(number, recipient)


def stored_of(copies: Sequence[Copy], origin: Origin) -> Stored:
    """What is written for copies of one message."""
    return Stored(
        origin,
        tuple(StoredCopy(copy.sender, copy.recipients, len(copy.header)) for copy in copies),
        sum(len(copy.header) for copy in copies),
        copies[0].parameters,
    )


def encode(stored: Stored) -> bytes:
    """The first part of an envelope file."""
    origin, parameters = stored.origin, stored.parameters
    lines = [
        b"Format: %s" % _FORMAT,
        b"Login: " + _quoted(origin.login).encode(),
        b"Session: " + _quoted(origin.session_id).encode(),
        b"Arrived: %.3f" % max(origin.arrived, 0),
        b"Body: %d" % stored.body_start,
    ]
    if origin.local_address:
        lines.append(b"Local-Address: " + _quoted(origin.local_address).encode())
    wanted = [
        name
        for name, asked in (("8BITMIME", parameters.eight_bit), ("SMTPUTF8", parameters.smtputf8))
        if asked
    ]
    if wanted:
        lines.append(b"Extensions: " + " ".join(wanted).encode())
    if parameters.ret:
        lines.append(b"Ret: " + parameters.ret.encode())
    if parameters.envid:
        lines.append(b"Envid: " + parameters.envid.encode())
    for copy in stored.copies:
        lines += [b"Copy: %d" % copy.header_octets, b"From: " + _escaped(copy.sender)]
        for address in copy.recipients:
            notice = parameters.notices.get(address, b"")
            lines.append(b"To: " + (_escaped(address) + b" " + notice).rstrip())
    return b"\n".join([*lines, b"End", b""])


def decode(octets: bytes) -> tuple[Stored, History]:
    """What ``encode`` and events have written.  A last line without an end is left out: it was cut
    off, or is room that was reserved.

    Raises BadEnvelope.
    """
    first, end, events = octets.partition(b"\nEnd\n")
    if not end:
        raise BadEnvelope("it has no end")
    try:
        stored = _stored(first.split(b"\n"))
        history = History()
        for line in events.split(b"\n")[:-1]:
            history.add(_event(line.decode()))
    except (ValueError, KeyError, IndexError) as error:
        raise BadEnvelope(str(error) or type(error).__name__) from None
    return stored, history


def _stored(lines: Sequence[bytes]) -> Stored:
    """Raises ValueError, KeyError, IndexError."""
    pairs = [(name.decode(), value) for name, _, value in (x.partition(b": ") for x in lines)]
    begin = next((n for n, (name, _) in enumerate(pairs) if name == "Copy"), len(pairs))
    general = dict(pairs[:begin])
    if general.pop("Format") != _FORMAT:
        raise ValueError("its format is unknown")
    notices: dict[bytes, bytes] = {}
    copies = list(_copies(pairs[begin:], notices))
    extensions = general.get("Extensions", b"").split()
    stored = Stored(
        Origin(
            _unquoted(general["Login"]),
            _unquoted(general["Session"]),
            float(_matched(_TIME, general["Arrived"])),
            _unquoted(general.get("Local-Address", b"")),
        ),
        tuple(copies),
        int(_matched(_NUMBER, general["Body"])),
        Parameters(
            b"8BITMIME" in extensions,
            b"SMTPUTF8" in extensions,
            general.get("Ret", b"").decode("ascii"),
            general.get("Envid", b"").decode("ascii"),
            notices,
        ),
    )
    if not copies or stored.body_start != sum(copy.header_octets for copy in copies):
        raise ValueError("its parts do not fit together")
    return stored


def _copies(
    pairs: Sequence[tuple[str, bytes]], notices: dict[bytes, bytes]
) -> Iterator[StoredCopy]:
    starts = [number for number, (name, _) in enumerate(pairs) if name == "Copy"]
    for start, end in zip(starts, [*starts[1:], len(pairs)], strict=True):
        (_, size), (name, sender), *rest = pairs[start:end]
        if name != "From" or not rest or any(name != "To" for name, _ in rest):
            raise ValueError("a copy is not whole")
        recipients = []
        for _, value in rest:
            escaped, _, notice = value.partition(b" ")
            address = _address(escaped)
            recipients.append(address)
            if notice:
                notices[address] = notice
        yield StoredCopy(_address(sender), tuple(recipients), int(_matched(_NUMBER, size)))


def _address(escaped: bytes) -> bytes:
    """Raises ValueError for one with a control character: it would be a line of its own."""
    address = urllib.parse.unquote_to_bytes(escaped)
    if _NOT_IN_AN_ADDRESS.search(address):
        raise ValueError(f"not an address: {address!r}")
    return address


def _matched(pattern: re.Pattern[bytes], value: bytes) -> bytes:
    """Raises ValueError for anything else."""
    if not pattern.fullmatch(value):
        raise ValueError(f"unknown value {value[:40]!r}")
    return value


_EVENT = re.compile(
    r"(?:(?P<all>Tried|Warned): (?P<when>[0-9]{1,11})"
    r"|(?P<one>Taken|Refused|Deferred|Told):"
    r" (?P<copy>[0-9]{1,9})\.(?P<to>[0-9]{1,9}) (?P<at>[0-9]{1,11}))"
    r"(?: (?P<by>[^ ]*)(?: (?P<reply>.*))?)?"
)


def _event(line: str) -> Event:
    """Raises ValueError."""
    match = _EVENT.fullmatch(line)
    if match is None:
        raise ValueError(f"unknown line {line[:80]!r}")
    by, reply = _unquoted((match["by"] or "").encode()), match["reply"] or ""
    if match["all"]:
        return Event(match["all"], float(match["when"]), None, by, reply)
    place = Place(int(match["copy"]) - 1, int(match["to"]) - 1)
    return Event(match["one"], float(match["at"]), place, by, reply)


def _escaped(address: bytes) -> bytes:
    return urllib.parse.quote_from_bytes(address, safe=_PLAIN).encode()


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe=_PLAIN, errors="surrogateescape")


def _unquoted(octets: bytes) -> str:
    return urllib.parse.unquote(octets.decode("ascii"), errors="surrogateescape")
