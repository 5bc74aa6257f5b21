"""How `tofmipd queue` shows messages: to people, on a terminal, and to programs, as JSON.

What comes from files and next hops is escaped; nothing in it can speak to a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tofmipd.commands import queuework as work
from tofmipd.handoff import inventory

Line = dict[str, Any]

_HEAD = ("ID", "AGE", "SIZE", "STATE", "NEXT", "WAIT", "HAVE", "REFUSED", "SENDER", "LAST REPLY")
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_STATES = {inventory.TRYING: "trying now"}
# How a recipient stands, in the words of the report.
_RECIPIENT = {
    "waiting": "waits",
    "taken": "has it",
    "refused": "refused",
    "reported": "refused, and the sender knows",
}
_NOBODY = "-"


def shown(text: str) -> str:
    """Foreign text on one line, without anything that is not seen."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def several(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """In the largest unit of which there are at least two, or seconds: "90s", "2h", "5d"."""
    whole = max(0, int(seconds))
    unit, letter = next(((u, x) for u, x in _UNITS if whole >= 2 * u), _UNITS[-1])
    return f"{whole // unit}{letter}"


def size(octets: int) -> str:
    for limit, letter in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if octets >= limit:
            return f"{octets / limit:.1f}{letter}"
    return str(octets)


def table(messages: Sequence[Line], *, users: bool) -> Iterator[str]:
    """A line for each message below one that names the columns; with ``users`` whose it is."""
    now = time.time()
    rows = [_HEAD, *(_row(message, now) for message in messages)]
    if users:
        names = ["USER", *(shown(message["user"]) for message in messages)]
        rows = [(row[0], name, *row[1:]) for row, name in zip(rows, names, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _row(message: Line, now: float) -> tuple[str, ...]:
    senders = [shown(copy["sender"]) or "<>" for copy in message["copies"]]
    more = f" +{len(senders) - 1}" if len(senders) > 1 else ""
    broken = message["state"] == inventory.BROKEN
    known = not (broken and not senders)
    age, octets = message["age_seconds"], message["size_octets"]
    return (
        shown(message["id"]),
        _NOBODY if age is None else duration(age),
        _NOBODY if octets is None else size(octets),
        _state(message),
        _next(message["next_attempt"], now),
        str(message["waiting"]) if known else _NOBODY,
        str(message["taken"]) if known else _NOBODY,
        str(message["refused"] + message["reported"]) if known else _NOBODY,
        senders[0] + more if senders else _NOBODY,
        shown(message["fault"] if broken else message["last_reply"]),
    )


def _state(message: Line) -> str:
    return _STATES.get(message["state"], str(message["state"]))


def _next(at: float | None, now: float) -> str:
    if at is None:
        return _NOBODY
    return "now" if at <= now else f"in {duration(at - now)}"


def report(message: Line) -> Iterator[str]:
    """All about one message but its body, in lines."""
    state = _state(message)
    fault = message["fault"]
    rows = [
        ("id", message["id"]),
        ("user", message["user"]),
        ("outbox", message["outbox"]),
        ("state", f"{state}: {fault}" if fault else state),
    ]
    if message["copies"]:
        rows += [
            ("login", message["login"]),
            ("session", message["session"]),
            ("arrived", _moment(message["arrived"])),
            ("size", several(message["size_octets"] or 0, "octet")),
            ("attempts", str(message["attempts"])),
            ("next", _moment(message["next_attempt"])),
        ]
    for name, value in rows:
        yield f"{name + ':':<10}{shown(value)}"
    for copy in message["copies"]:
        yield ""
        yield f"{'from:':<10}{shown(copy['sender']) or '<>'}"
        for recipient in copy["recipients"]:
            yield f"{'to:':<10}{shown(recipient['address'])}: {_standing(recipient)}"
        if "header" in copy:
            yield ""
            yield from lines([copy["header"].rstrip("\n")])


def _standing(recipient: Line) -> str:
    words = [_RECIPIENT[recipient["state"]]]
    if recipient["at"] is not None:
        words.append(f"since {_moment(recipient['at'])}")
    if recipient["reply"]:
        by = f"{shown(recipient['next_hop'])}: " if recipient["next_hop"] else ""
        words.append(f"{by}{shown(recipient['reply'])}")
    return ", ".join(words)


def _moment(at: float | None) -> str:
    """In local time."""
    return _NOBODY if at is None else time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at))


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """A text that comes in pieces, line by line."""
    held = ""
    for piece in pieces:
        *whole, held = (held + piece).split("\n")
        for line in whole:
            yield _with_tabs(line)
    if held:
        yield _with_tabs(held)


def _with_tabs(line: str) -> str:
    return "\t".join(map(shown, line.split("\t")))


def for_programs(message: Line) -> Line:
    """As JSON has it: times by ISO 8601 in UTC."""
    copies = [
        {**copy, "recipients": [{**r, "at": _utc(r["at"])} for r in copy["recipients"]]}
        for copy in message["copies"]
    ]
    return message | {
        "arrived": _utc(message["arrived"]),
        "next_attempt": _utc(message["next_attempt"]),
        "copies": copies,
    }


def _utc(at: float | None) -> str | None:
    return None if at is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def outcome(line: Line) -> str:
    """What is said of one message after ``retry`` or ``remove``."""
    reply = shown(str(line.get("reply", ""))[:1000])
    match line["outcome"]:
        case work.HELD:
            said = "is being tried by somebody else"
        case work.GONE:
            said = "is gone"
        case work.REMOVED if line["lost"] is None:
            said = "removed; it could not be read"
        case work.REMOVED:
            said = f"removed; {several(line['lost'], 'recipient')} will never get it"
        case work.BROKEN:
            said = f"cannot be used: {reply}"
        case work.MISCONFIGURED:
            said = f"not tried: {reply}"
        case what:
            said = _attempt(what, line) + (f": {reply}" if reply else "")
    return f"{shown(line['id'])}: {said}"


def _attempt(what: str, line: Line) -> str:
    said = []
    if line["taken"]:
        said.append(f"sent to {several(line['taken'], 'recipient')}")
    if line["refused"]:
        said.append(f"refused for {line['refused']}")
    if line["waiting"]:
        due = _next(line["next_attempt"], time.time())
        verb = "waits" if line["waiting"] == 1 else "wait"
        said.append(f"{line['waiting']} still {verb}, next attempt {due}")
    if what == work.FAILED:
        said.append("nobody can be told: failed")
    return ", ".join(said) or "nobody waited for it"
