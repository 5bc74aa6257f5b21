"""What an outbox holds, for people and programs: told without disturbing whoever hands it over.

Nothing is written and nothing waited for.  Only where a name says that somebody has the message is
a shared lock tried, and given back at once: one that nobody has was left behind by a crash.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tofmipd.content import Content, as_local_text
from tofmipd.handoff import stored as text
from tofmipd.handoff.outbox import BAD, BUSY, CONTENT, ENVELOPE, NEW, WAITING, Outbox
from tofmipd.handoff.stored import (
    DEFERRED,
    REFUSED,
    TAKEN,
    TOLD,
    BadEnvelope,
    Event,
    History,
    Place,
    Stored,
)

# How a message stands.
WAITS, TRYING, FAILED, BROKEN = "waiting", "trying", "failed", "broken"
# How a recipient stands; REPORTED: his sender knows of the refusal.
_WORDS = {"": "waiting", DEFERRED: "waiting", TAKEN: "taken", REFUSED: "refused", TOLD: "reported"}
_ENVELOPE_LIMIT_OCTETS = 64 << 20
_HEADER_LIMIT_OCTETS = 1 << 20
_SUFFIXES = (WAITING, BUSY, BAD)
# The end of the year 9999, the last that a date has room for.
_LAST_SECOND = 253402300799.0
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

# A message as JSON has it; times are in seconds since the epoch, None for one that is unknown.
Description = dict[str, Any]


class _Unreadable(Exception):
    """A file of a pair is not what it must be; ``str()`` says why."""


def ids(outbox: Outbox) -> set[str]:
    """Of all messages that somebody has answered for.  Raises OSError."""
    return {entry.id for entry in outbox.entries() if entry.state != NEW}


def describe(outbox: Outbox, id_: str) -> Description | None:
    """All about one message but its octets, or None if it is gone.  Raises nothing."""
    # Whoever hands it over may give it another name at any time.
    for suffix in _SUFFIXES * 3:
        told = _empty(outbox, id_)
        try:
            _read(outbox, id_, suffix, told)
        except FileNotFoundError:
            continue
        except (_Unreadable, BadEnvelope, OSError) as error:
            if not any(os.path.lexists(outbox.path(id_, ENVELOPE + s)) for s in _SUFFIXES):
                return None
            fault = error.strerror if isinstance(error, OSError) else None
            told.update(state=BROKEN, fault=fault or str(error), next_attempt=None)
        return told
    return None


def _empty(outbox: Outbox, id_: str) -> Description:
    return {
        "id": id_,
        "outbox": outbox.directory,
        "state": BROKEN,
        "fault": None,
        "login": None,
        "session": None,
        "local_address": "",
        "arrived": None,
        "age_seconds": None,
        "size_octets": None,
        "attempts": 0,
        "next_attempt": None,
        "waiting": 0,
        "taken": 0,
        "refused": 0,
        "reported": 0,
        "last_reply": "",
        "copies": [],
    }


def _read(outbox: Outbox, id_: str, suffix: str, told: Description) -> None:
    """Raises FileNotFoundError for an envelope that is not there; _Unreadable, BadEnvelope,
    OSError."""
    with _opened(outbox.path(id_, ENVELOPE + suffix), "its envelope") as descriptor:
        status = os.fstat(descriptor)
        told.update(state=WAITS, next_attempt=_time(status.st_mtime))
        if suffix == BAD or (suffix == BUSY and _is_held(descriptor)):
            told.update(state=FAILED if suffix == BAD else TRYING, next_attempt=None)
        if status.st_size > _ENVELOPE_LIMIT_OCTETS:
            raise _Unreadable("its envelope is too large")
        stored, history = text.decode(os.pread(descriptor, status.st_size, 0))
    _fill(told, stored, history)
    told["size_octets"] = _content_size(outbox, id_)
    if told["size_octets"] < stored.body_start:
        raise _Unreadable("its content file is too short")


def _content_size(outbox: Outbox, id_: str) -> int:
    """Raises _Unreadable, OSError."""
    try:
        status = os.stat(outbox.path(id_, CONTENT), follow_symlinks=False)
    except FileNotFoundError:
        raise _Unreadable("its content file is gone") from None
    if not stat.S_ISREG(status.st_mode):
        raise _Unreadable("its content is no file")
    return status.st_size


@contextlib.contextmanager
def _opened(path: str, what: str) -> Iterator[int]:
    """Open a file, and nothing else.  Raises _Unreadable, OSError."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _Unreadable(f"{what} is no file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _Unreadable(f"{what} is no file")
        yield descriptor
    finally:
        os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _fill(told: Description, stored: Stored, history: History) -> None:
    origin = stored.origin
    told.update(
        login=origin.login,
        session=origin.session_id,
        local_address=origin.local_address,
        arrived=_time(origin.arrived),
        age_seconds=max(0, int(time.time() - origin.arrived)),
        attempts=history.tries,
    )
    for number, copy in enumerate(stored.copies):
        recipients = [
            _recipient(address, history.last.get(Place(number, place)))
            for place, address in enumerate(copy.recipients)
        ]
        for recipient in recipients:
            told[recipient["state"]] += 1
        told["copies"].append(
            {
                "sender": _text(copy.sender),
                "header_octets": copy.header_octets,
                "recipients": recipients,
            }
        )
    told["last_reply"] = last_reply(history.last.values())


def last_reply(events: Iterable[Event]) -> str:
    """What the next hop said last, of its refusals if there are any."""
    said = [(event.what != TAKEN, event.at, event.reply) for event in events if event.reply]
    return max(said)[2] if said else ""


def _recipient(address: bytes, event: Event | None) -> Description:
    return {
        "address": _text(address),
        "state": _WORDS[event.what if event is not None else ""],
        "reply": event.reply if event is not None else "",
        "next_hop": event.by if event is not None else "",
        "at": _time(event.at) if event is not None else None,
    }


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _time(at: float) -> float | None:
    return at if 0 <= at <= _LAST_SECOND else None


def headers(outbox: Outbox, id_: str, told: Description) -> list[str]:
    """The header blocks of the copies, with LF line ends.  Raises BadEnvelope, OSError."""
    found = []
    with _content(outbox, id_) as content:
        start = 0
        for copy in told["copies"]:
            size = copy["header_octets"]
            block = os.pread(content.descriptor(), min(size, _HEADER_LIMIT_OCTETS), start)
            found.append(_text(block.replace(b"\r\n", b"\n")))
            start += size
    return found


def body(outbox: Outbox, id_: str, told: Description) -> Iterator[str]:
    """The body, in pieces, with LF line ends.  Raises BadEnvelope, OSError."""
    start = sum(copy["header_octets"] for copy in told["copies"])
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with _content(outbox, id_) as content:
        for piece in as_local_text(content.blocks(start)):
            yield decoder.decode(piece)
    yield decoder.decode(b"", True)


@contextlib.contextmanager
def _content(outbox: Outbox, id_: str) -> Iterator[Content]:
    try:
        with _opened(outbox.path(id_, CONTENT), "its content") as descriptor:
            copy = os.dup(descriptor)
            content = Content.of_file(copy, os.fstat(copy).st_size)
            try:
                yield content
            finally:
                content.close()
    except _Unreadable as error:
        raise BadEnvelope(str(error)) from None


def remove_broken(outbox: Outbox, id_: str) -> bool:
    """Remove the files of a pair that cannot be read, whatever they are; whether there were any.

    Raises OSError.
    """
    there = False
    for suffix in (*(ENVELOPE + s for s in _SUFFIXES), CONTENT):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(outbox.path(id_, suffix))
            there = True
    return there
