"""A daemon in global mode with limits that no option sets, and looks at all of its processes."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hmac
import itertools
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from clients import dialogue, submit
from hops import Hop, RawHop
from running import ADDRESS, Daemon, wait_until
from village import Village, Villager, children, status

# The command line as always; settings and constants replaced before anything is forked.
_START = """\
import importlib, sys
from tofmipd import cli
for place, value in {constants!r}.items():
    module, _, name = place.rpartition(".")
    module = importlib.import_module("tofmipd." + module)
    getattr(module, name)
    setattr(module, name, value)
usual = cli.settings_from
def settings_from(arguments):
    settings = usual(arguments)
    limits = settings.limits._replace(**{limits!r})
    return settings._replace(limits=limits, global_mode=settings.global_mode._replace(**{mode!r}))
cli.settings_from = settings_from
sys.exit(cli.main())
"""
# What issue and design promise: after a crash service is back this soon.
BACK_SECONDS = 1.0

_MARK = b"TEST_DAEMON"
_numbers = itertools.count()


def with_limits(
    village: Village,
    constants: dict[str, float] | None = None,
    limits: dict[str, float] | None = None,
    mode: dict[str, float] | None = None,
) -> Village:
    """The same village with another program.

    ``constants`` are named ``module.NAME`` below tofmipd; ``limits`` are fields of
    settings.Limits and ``mode`` of settings.GlobalMode.
    """
    code = _START.format(constants=constants or {}, limits=limits or {}, mode=mode or {})
    variables = village.variables | {_MARK.decode(): f"{os.getpid()}.{next(_numbers)}"}
    program = (village.program[0], "-c", code)
    return dataclasses.replace(village, program=program, variables=variables)


# Processes.


def only_child(daemon: Daemon, name: str) -> int:
    """The one living child of that name (server, auth, worker), as soon as there is just one."""

    def one() -> int | None:
        found = [pid for pid in children(daemon.pid, name) if state(pid) not in ("", "Z")]
        return found[0] if len(found) == 1 else None

    return wait_until(one, f"one process {name}") or 0


def state(pid: int) -> str:
    """R, S, T, Z ...; "" for a process that is no more."""
    try:
        return status(pid)["State"][0]
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return ""


def kill(pid: int) -> None:
    """kill -9, and wait until none of the process's threads runs any more."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _is_dead(pid), f"{pid} to be dead")


def _is_dead(pid: int) -> bool:
    """A thread that takes its time to die still takes what comes in."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        alone = len(os.listdir(f"/proc/{pid}/task")) == 1
        return state(pid) == "" or (state(pid) == "Z" and alone)
    return True


class Crew:
    """All processes that a daemon started by ``with_limits`` ever has, also when it is gone."""

    def __init__(self, daemon: Daemon, village: Village) -> None:
        self._daemon = daemon
        self._uids = {str(x) for x in (village.service_uid, *(p.uid for p in village.people))}
        self._mark = next(word for word in _environment(daemon.pid) if word.startswith(_MARK))

    def alive(self) -> dict[int, str]:
        """Number and name of each.

        They have the daemon's environment, or the uid of the service or of a user and another
        parent than the monitor of some other daemon.
        """
        found = {}
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):
                facts = status(pid)
                ours = self._mark in _environment(pid)
                if not ours and facts["Uid"].split()[0] in self._uids:
                    parent = int(facts["PPid"])
                    ours = parent == self._daemon.pid or "monitor" not in status(parent)["Name"]
                if ours and facts["State"][0] != "Z":
                    found[pid] = facts["Name"]
        return found

    def is_whole(self) -> bool:
        """Whether there are monitor, server, auth and nobody else but workers, and all of them
        are living children of the monitor."""
        family = {self._daemon.pid, *children(self._daemon.pid)}
        alive = self.alive()
        names = sorted(name for name in alive.values() if name != "tofmipd-worker")
        usual = ["tofmipd-auth", "tofmipd-monitor", "tofmipd-server"]
        return set(alive) == family and names == usual and self._daemon.process.poll() is None


def _environment(pid: int) -> list[bytes]:
    """What a process was started with."""
    # Not all processes of a container's host may be looked at, not even by root.
    with contextlib.suppress(PermissionError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def processor_seconds(pid: int) -> float:
    """What a process has used of a processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """The process is stopped within; it goes on in the end if it lives then."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state(pid) == "T", f"{pid} to stand still")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class _Over(Exception):
    pass


@contextlib.contextmanager
def doomed(village: Village, *options: str) -> Iterator[Daemon]:
    """A daemon that need not live to its orderly end."""
    with contextlib.suppress(_Over), village.daemon(*options) as daemon:
        yield daemon
        raise _Over


# Mail.


def sends(daemon: Daemon, person: Villager, recipient: str) -> bool:
    """Whether a new session of this person gets a message through."""
    try:
        said = submit(daemon.port, recipient, login=person.name, password=person.password)
    except (OSError, AssertionError):
        return False
    return said.startswith("250")


def is_back(daemon: Daemon, people: Sequence[Villager], hop: Hop, since: float) -> None:
    """New sessions of these people send a message that arrives, within BACK_SECONDS of a moment
    of time.monotonic()."""
    for person in people:
        recipients = (f"back-{next(_numbers)}@example.net" for _ in range(1000))

        def arrives(person: Villager = person, recipients: Iterator[str] = recipients) -> bool:
            recipient = next(recipients)
            return sends(daemon, person, recipient) and len(hop.for_recipient(recipient)) == 1

        wait_until(arrives, f"mail of {person.name}", since + BACK_SECONDS - time.monotonic())


class OtherReply(Exception):
    """The server has said something else than what a message needs to go on."""


STAGES = (
    *("connected", "greeted", "EHLO", "challenge", "login"),
    *("MAIL", "RCPT", "DATA", "body", "dot", "reply"),
)


def message(daemon: Daemon, person: Villager, recipient: str, hop: RawHop) -> Iterator[str]:
    """Send a message step by step: yields the name of every stage when it is reached.

    At the stage "dot" the next hop has the message and has not answered.  Raises OtherReply,
    ConnectionError.
    """
    octets = b"From: <%s>\r\nSubject: x\r\n\r\n%s\r\n" % (recipient.encode(), b"x" * 70)
    sessions = daemon.text().count(" session from ")
    with dialogue(daemon.port, greeted=False) as talk:

        def hears(code: str, line: str = "") -> str:
            if line:
                talk.send(line.encode() + b"\r\n")
            said = talk.reply()
            if not said.startswith(code):
                raise OtherReply(said)
            return said

        wait_until(lambda: daemon.text().count(" session from ") > sessions, "the session")
        yield "connected"
        hears("220")
        yield "greeted"
        hears("250", "EHLO client.example")
        yield "EHLO"
        challenge = base64.b64decode(hears("334", "AUTH CRAM-MD5").split()[1])
        yield "challenge"
        digest = hmac.new(person.password.encode(), challenge, "md5").hexdigest()
        hears("235", base64.b64encode(f"{person.name} {digest}".encode()).decode())
        yield "login"
        hears("250", f"MAIL FROM:<{ADDRESS}>")
        yield "MAIL"
        hears("250", f"RCPT TO:<{recipient}>")
        yield "RCPT"
        hears("354", "DATA")
        yield "DATA"
        talk.send(octets[:60])
        yield "body"
        hop.may_answer.clear()
        hop.data_complete.clear()
        try:
            talk.send(octets[60:] + b".\r\n")
            poll = select.poll()
            poll.register(talk.socket, select.POLLIN)
            wait_until(lambda: hop.data_complete.is_set() or poll.poll(0), "the next hop")
            yield "dot"
        finally:
            hop.may_answer.set()
        hears("250")
        yield "reply"


def finish(steps: Iterator[str]) -> str:
    """Go on to the end of a message; what was said last: "250" if all went well, "" for a
    connection that has been closed."""
    try:
        for _ in steps:
            pass
    except OtherReply as error:
        return str(error)
    except ConnectionError:
        return ""
    return "250"
