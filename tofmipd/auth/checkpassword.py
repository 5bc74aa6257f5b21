"""One login judged by a checkpassword program (row TO-49).

The interface is that of https://cr.yp.to/checkpwd/interface.html: name, password and a timestamp,
each with a NUL behind it, on descriptor 3; the exit status is the verdict.
"""

from __future__ import annotations

import os
import shlex
import time

from tofmipd import programs
from tofmipd.auth.credentials import Origin, Password, Verdict

LIMIT_OCTETS = 512
_ACCEPTED, _REJECTED, _TEMPORARY = 0, 1, 111
_SHOWN_OCTETS = 120


class ProgramError(Exception):
    """The program cannot be run; ``str()`` says why, and what to do."""


def arguments_of(command: str) -> tuple[str, ...]:
    """Program and arguments, quoted as for a shell, which there is not.  Raises ProgramError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ProgramError(f"-A {command!r}: {error}") from None
    if not words:
        raise ProgramError("-A needs a program, e.g. -A '/usr/bin/checkpassword /bin/true'")
    if not words[0].startswith("/"):
        raise ProgramError(f"-A: {words[0]} must be a whole path, e.g. /usr/bin/checkpassword")
    if not os.path.isfile(words[0]) or not os.access(words[0], os.X_OK):
        raise ProgramError(f"-A: {words[0]} cannot be executed (chmod 755, and its directories)")
    return tuple(words)


def fits(credentials: Password, now: float) -> bytes | None:
    """What the program reads, None if the interface cannot carry it."""
    user = credentials.user.encode("utf-8", "surrogateescape")
    if b"\0" in user or b"\0" in credentials.password:
        return None
    octets = b"%s\0%s\0Y%d\0" % (user, credentials.password, int(now))
    return octets if len(octets) <= LIMIT_OCTETS else None


def attempt(
    arguments: tuple[str, ...], credentials: Password, origin: Origin, timeout_seconds: float
) -> tuple[Verdict, str]:
    """Run the program; the verdict, and words for the log unless it is usual.

    Descriptor 3 of this process is used: it has one thread, and nothing of its own there.  What
    the program leaves behind is in this process's group, and ends with that.
    """
    octets = fits(credentials, time.time())
    if octets is None:
        return Verdict.REJECTED, "a name or password that the interface cannot carry"
    reading, writing = os.pipe()
    os.write(writing, octets)  # a pipe holds so much
    os.close(writing)
    if reading != 3:
        os.dup2(reading, 3)
        os.close(reading)
    try:
        outcome = programs.run(
            arguments,
            _environment(origin),
            timeout_seconds,
            pass_descriptors=(3,),
            own_group=False,
        )
    except (OSError, ValueError) as error:
        return Verdict.UNAVAILABLE, f"cannot be started: {error}"
    return _judge(outcome, credentials.password)


def _environment(origin: Origin) -> dict[str, str]:
    """As that of qmail's programs, for those who look at it."""
    variables = {"PATH": programs.PATH, "PROTO": "TCP"}
    if origin.address:
        variables["TCPREMOTEIP"] = origin.address
    if origin.local_address:
        variables["TCPLOCALIP"] = origin.local_address
    return variables


def _judge(outcome: programs.Outcome, password: bytes) -> tuple[Verdict, str]:
    said = outcome.output[:_SHOWN_OCTETS].partition(b"\n")[0]
    words = f": {said!r}" if said and password not in outcome.output else ""
    match outcome.status:
        case int(status) if status == _ACCEPTED:
            return Verdict.ACCEPTED, ""
        case int(status) if status == _REJECTED:
            return Verdict.REJECTED, ""
        case int(status) if status == _TEMPORARY:
            return Verdict.UNAVAILABLE, f"ended with status 111{words}"
        case int(status) if status > 0:
            return Verdict.REJECTED, f"ended with status {status}{words}"
        case int(status):
            return Verdict.UNAVAILABLE, f"was killed by signal {-status}{words}"
    return Verdict.UNAVAILABLE, f"does not end{words}"
