"""The lines of the log as events: what each is called, and the names of its values.

The key is the text of the call that logs it; the value is the event's name and a name for each
value, ``-`` for one that is not told apart.  docs/log.md explains all of them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

Value = str | int | float | bool | None
# See ``packed`` and ``unpacked``.
Pack = Callable[[str, tuple[object, ...], str, int], str]
Unpack = Callable[[str], "Claim | None"]

# What may be logged where a user's own programs run; nothing else is believed of them.
OF_WORKERS = {
    # One recipient of one message.
    "s=%s sent to=%r rule=%r action=%r sender=%r from=%r id=%r new-id=%r by=%s reply=%r ms=%d": (
        "sent session to rule action sender from message_id new_message_id next_hop reply ms"
    ),
    "s=%s kept to=%r rule=%r action=%r sender=%r from=%r id=%r new-id=%r queue=%s ms=%d": (
        "kept session to rule action sender from message_id new_message_id queue ms"
    ),
    "s=%s passed through to=%r sender=%r id=%r by=%s reply=%r ms=%d": (
        "passed session to sender message_id next_hop reply ms"
    ),
    "s=%s sent to=%r sender=%r id=%r by=%s reply=%r queue=%s delay=%.1f": (
        "sent session to sender message_id next_hop reply queue delay"
    ),
    "s=%s deferred to=%r sender=%r id=%r by=%s reply=%r queue=%s delay=%.1f": (
        "deferred session to sender message_id next_hop reply queue delay"
    ),
    "s=%s refused to=%r sender=%r id=%r by=%s reply=%r queue=%s delay=%.1f": (
        "refused session to sender message_id next_hop reply queue delay"
    ),
    "s=%s given up to=%r sender=%r id=%r by=%s reply=%r queue=%s delay=%.1f": (
        "given-up session to sender message_id next_hop reply queue delay"
    ),
    # A whole message.
    "s=%s hand-off to %s failed: %s": "hand-off-failed session next_hop reason",
    "s=%s refused: %s": "refusal session reason",
    "s=%s refused: user=%r %s": "refusal session user reason",
    "s=%s deferred: %s": "deferral session reason",
    "s=%s deferred: the outbox %s cannot be written: %s": "deferral session path reason",
    "s=%s %d of %d recipients have this message, the outbox has it for the others queue=%s": (
        "partly-kept session done total queue"
    ),
    "s=%s only %d of %d recipients have this message": "partly-sent session done total",
    "s=%s nobody can be told: kept as %s%s": "nobody-told session queue -",
    "s=%s internal error": "internal-error session",
    "internal error": "internal-error",
    "the server breaks the protocol towards a worker: %s": "protocol-broken reason",
    "%s:%d: line skipped: not USER: ADDRESS, ADDRESS": "senders-line-skipped path line",
    # On the way out.
    "next hop %s is used instead: %s": "next-hop-replaced next_hop reason",
    "next hop %s refuses XCLIENT: %d %s": "xclient-refused next_hop code text",
    "%s has taken a message and says: %s": "sendmail-says program text",
    "%s: LOGFILE_OUTGOING: %s cannot be written: %s": "outgoing-log-failed config path reason",
    "%s: BARE_APPEND: %r means others in a list": "append-refused config to",
    "%s: DB_BARE_APPEND: %s": "append-failed config reason",
    # The outbox as a whole.
    "no outbox: %s": "no-outbox reason",
    "outbox: %s: %s": "outbox-trouble queue reason",
    "outbox: %s is set aside: %s": "outbox-set-aside queue reason",
    "internal error in the outbox": "internal-error",
    "the outbox %s cannot be read: %s": "outbox-unreadable path reason",
    "%d messages that nobody answered for were removed": "outbox-swept count",
}

OTHERS = {
    # Sessions.
    "s=%s session from %s": "session session ip",
    "s=%s end after %.1f s": "session-end session seconds",
    "s=%s C: %s": "command session text",
    "s=%s S: %s": "reply session reply",
    "s=%s %s": "worker session -",
    "s=%s no TLS: %s": "no-tls session reason",
    "s=%s now %s": "tls session encryption",
    "s=%s %d octets behind STARTTLS are ignored": "early-octets session count",
    "s=%s logged in": "logged-in session",
    "s=%s timeout: %s": "timeout session reason",
    "s=%s gone: %s": "gone session reason",
    "s=%s closed without a word: %s": "closed session reason",
    "no PROXY header from %s: %s": "no-proxy-header ip reason",
    "no PROXY header from %s: it does not come": "no-proxy-header ip",
    "s=%s no room for the message: %s": "no-room session reason",
    "s=%s refused to=%r sender=%r id=%r reply=%r ms=%d": (
        "refused session to sender message_id reply ms"
    ),
    "s=%s deferred to=%r sender=%r id=%r reply=%r ms=%d": (
        "deferred session to sender message_id reply ms"
    ),
    "session of %s failed": "internal-error ip",
    "too many connections from %s, one is closed": "too-many-connections ip",
    "clients must wait: %s": "clients-wait reason",
    # Logins.
    "s=%s auth %s ip=%s mechanism=%s source=%s reason=%s user=%r": (
        "auth session verdict ip mechanism source reason user"
    ),
    "s=%s user=%r may not log in: %s": "no-account session user reason",
    "s=%s auth does not answer: %s": "auth-silent session reason",
    "%s unavailable: %s": "source-unavailable source reason",
    "%s unavailable: too many logins wait for it": "source-unavailable source",
    "%s %s: user=%r %s": "source-says source verdict user reason",
    "the certificate of %r is not valid: %s": "certificate-refused user reason",
    "the certificate of %r cannot be read: %s": "certificate-refused user reason",
    "password file %s read again": "password-file-read path",
    "password file unchanged in memory: %s": "password-file-unchanged reason",
    "password file %s unavailable: too many logins at a time": "password-file-unavailable path",
    "password file %s unavailable: no memory for a hash": "password-file-unavailable path",
    "authorities %s read again": "authorities-read path",
    "authorities unchanged in memory: %s": "authorities-unchanged reason",
    "%s: read, %d addresses": "ipauthmap-read path count",
    "%s: gone, the map is empty": "ipauthmap-gone path",
    "%s: cannot be read, unchanged in memory: %s": "ipauthmap-unchanged path reason",
    "%s:%d: line skipped: %s: %r": "ipauthmap-line-skipped path line reason text",
    # Certificates.
    "certificates read again: %s": "certificates-read path",
    "certificates unchanged in memory: %s": "certificates-unchanged reason",
    "certificates unchanged in memory: %s: %s": "certificates-unchanged path reason",
    "certificates cannot be read again: %s": "certificates-unchanged reason",
    "%s: everybody on this machine can read the key (chmod 600)": "key-readable path",
    "%s": "certificate-warning reason",
    # Who may send how much.
    "s=%s limited user=%r %s": "limited session user reason",
    "s=%s the limits in %s cannot be used: %s": "limits-unavailable session path reason",
    "s=%s its place in %s is given back later: %s": "limits-late session path reason",
    "the limits in %s cannot be used now: %s": "limits-unavailable path reason",
    "s=%s throttled user=%r status=%d said=%r": "throttled session user status text",
    "s=%s throttle script %s cannot be run: %s": "throttle-failed session program reason",
    "s=%s throttle script does not end in %g s": "throttle-failed session seconds",
    # Virtual domains.
    "virtual domains read again from %s": "domains-read path",
    "%s: unchanged in memory: %s": "domains-unchanged path reason",
    "%s:%d: not domain:owner, the line is skipped": "domains-line-skipped path line",
    # The daemon and its processes.
    "listening on %s port %d": "listening host port",
    "started, pid %d": "started pid",
    "started, pid %d; %s": "started pid roles",
    "stopping on %s": "stopping signal",
    "stopped": "stopped",
    "options read again, none is new": "options-unchanged",
    "changed: %s": "options-changed options",
    "%s changes with the next start only": "option-waits options",
    "nothing has changed: %s": "options-refused reason",
    "log file opened again": "log-reopened",
    "the log file cannot be opened again: %s": "log-not-reopened reason",
    "some sessions did not end in time and are cut off": "sessions-cut-off",
    "messages of the outbox that are being handed over are cut off": "outbox-cut-off",
    "%s may not read Python's library (%s), and users may not either: their configurations cannot"
    " import all modules; install tofmipd where all can read it": "library-unreadable user path",
    "outbox of %r: %s": "worker user -",
    "%s started, pid %d": "process-started process pid",
    "%s (pid %d) is ready": "process-ready process pid",
    "%s (pid %d) %s": "process-ended process pid reason",
    "%s (pid %d) cannot start: %s": "process-failed process pid reason",
    "%s cannot be started: %s": "process-failed process reason",
    "%s failed": "process-failed process",
    "%s (pid %d) is killed": "process-killed process pid",
    "%s (pid %d) does not end and is killed": "process-killed process pid",
    "%s (pid %d) does not answer and is killed": "process-killed process pid",
    "%s (pid %d) does not listen and is killed": "process-killed process pid",
    "%s (pid %d) breaks the protocol: %s": "protocol-broken process pid reason",
    "the server breaks the protocol towards auth: %s": "protocol-broken reason",
    "the server asks for a worker for session %x, which has proved nothing": (
        "protocol-broken number"
    ),
    "internal error towards the monitor": "internal-error",
    "all %d workers are busy, a session is turned away": "workers-busy count",
    "workers for %r do not leave": "workers-busy user",
    "no channel for a session: %s": "no-channel reason",
    "no thread for a channel: %s": "no-channel reason",
    "server and auth cannot be connected: %s": "no-channel reason",
    "s=%s no worker: %s": "no-worker session reason",
    "s=%s no worker takes the message": "no-worker session",
    "s=%s the worker has died with the message": "worker-died session",
    "s=%s the worker does not answer": "worker-silent session",
    "s=%s the worker breaks the protocol: %s": "protocol-broken session reason",
}

ALL = OF_WORKERS | OTHERS
# The name of lines that are not from us: of libraries, and of users' own programs.
UNKNOWN = "other"

_VALUE_LIMIT = 1000
_TRACEBACK_LIMITS = (4000, 1000, 400, 0)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker says, whose word it is: ``text`` for people, an event and its values for
    programs."""

    text: str
    event: str
    values: Mapping[str, Value]

    def __str__(self) -> str:
        return self.text

    def shown_as(self, text: str) -> Claim:
        return Claim(text, self.event, self.values)


class Json(logging.Formatter):
    """Each record is one object on one line of ASCII (RFC 8259)."""

    def format(self, record: logging.LogRecord) -> str:
        arguments = record.args if isinstance(record.args, tuple) else ()
        event, values = _told(record.msg, arguments)
        for claim in (one for one in arguments if isinstance(one, Claim)):
            # What this process knows itself cannot be replaced.
            event, values = claim.event, {**claim.values, **values}
        when = datetime.fromtimestamp(record.created, UTC)
        told = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": event,
            **values,
            "message": _plain(record.getMessage()),
        }
        if record.exc_info:
            told["traceback"] = _plain(self.formatException(record.exc_info))
        return json.dumps(told)


def _told(text: object, arguments: tuple[object, ...]) -> tuple[str, dict[str, Value]]:
    """The event that a call logs, and its values by name."""
    name, *names = ALL.get(str(text), UNKNOWN).split()
    pairs = zip(names, arguments, strict=False)
    return name, {name: _plain(value) for name, value in pairs if name != "-"}


def _plain(value: object) -> Value:
    """As JSON can have it: there are no infinite numbers, and no halves of characters."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 3)
    return str(value).encode("utf-8", "backslashreplace").decode()


def packed(text: str, arguments: tuple[object, ...], traceback: str, limit: int) -> str:
    """A call of a worker's on its way to the log: text, values, traceback.

    "" where it has no name, or takes more than ``limit`` characters.
    """
    if text not in OF_WORKERS:
        return ""
    values = [_plain(value) for value in arguments]
    short = [value[:_VALUE_LIMIT] if isinstance(value, str) else value for value in values]
    for kept in _TRACEBACK_LIMITS:
        # Its end says most.
        end = traceback[max(len(traceback) - kept, 0) :]
        line = json.dumps([text, short, _plain(end)])
        if len(line) <= limit:
            return line
    return ""


def unpacked(line: str) -> Claim | None:
    """What a worker says was logged there; None if it is no event that it could have logged."""
    try:
        text, values, traceback = json.loads(line)
        name, *names = OF_WORKERS[text].split()
        if not (isinstance(traceback, str) and isinstance(values, list)):
            return None
        if not all(value is None or isinstance(value, str | int | float) for value in values):
            return None
        pairs = zip(names, values, strict=True)
        told = {name: _plain(value) for name, value in pairs if name != "-"}
        message = text % tuple(values)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if traceback:
        told["traceback"] = _plain(traceback)
    return Claim(message, name, told)
