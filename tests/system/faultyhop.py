"""A next hop that fails once, at one moment of one message, and the faults that it knows."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from fakes import CLOSE, STALL, Act, FakeNextHop, Moment, Taken
from running import HOST, free_port

CREDENTIALS = ("joe", "secret")
_GOOD = {
    "GREETING": b"220",
    "STARTTLS": b"220",
    "AUTH": b"235",
    "DATA": b"354",
}
_LINE = b" 2.0.0 all is well"
_MEGABYTE = 1 << 20
# A whole reply as RFC 5321 section 4.2 has it, of a size that anybody takes.
_VALID = re.compile(rb"(?:250-[^\r\n]{0,500}\r\n){0,99}250 [^\r\n]{0,500}\r\n")


def good(stage: str) -> bytes:
    """The code of success at a stage."""
    return _GOOD.get(stage, b"250")


def act_of(fault: str, stage: str, *, takes: bool = False) -> Act:
    """What a next hop does that has the fault at that stage; ``takes``: it has the message."""
    return dataclasses.replace(_act_of(fault, stage), takes=takes)


def _act_of(fault: str, stage: str) -> Act:
    code = good(stage)
    whole = code + _LINE + b"\r\n"
    # Who speaks within a message and then reads on has taken it, or has not: nobody could tell.
    close = stage == "BODY"
    match fault:
        case "refuses for now":
            return Act(b"450 4.3.0 not now\r\n", close=close)
        case "refuses":
            return Act(b"554 5.3.0 never\r\n", close=close)
        case "stalls":
            return STALL
        case "drops":
            return CLOSE
        case "resets":
            return Act(reset=True)
        case "garbage":
            return Act(b"\xff\x00 what?\r\n", close=close)
        case "bare LF":
            return Act(code + _LINE + b"\n", close=close)
        case "megabyte":
            return Act(code + b"-" + b"x" * _MEGABYTE + b"\r\n" + whole, close=close)
        case "many lines":
            lines = (code + b"-" + b"x" * 500 + b"\r\n") * (_MEGABYTE // 500)
            return Act(lines + whole, close=close)
        case "too many":
            return Act((b"" if stage in ("BODY", "REPLIED") else whole) + b"250 2.0.0 more\r\n")
        case "421":
            return Act(b"421 4.3.2 going down\r\n", close=True)
    raise ValueError(fault)


FAULTS = (
    *("refuses for now", "refuses", "stalls", "drops", "resets", "garbage", "bare LF"),
    *("megabyte", "many lines", "too many", "421"),
)
# After them nobody can know whether a message was taken.
VANISHING = ("stalls", "drops", "resets", "garbage", "bare LF", "megabyte", "many lines")


@dataclass
class Trap:
    """Does ``act`` when ``stage`` comes for the ``count``-th time from now on, and that once.

    ``then`` is set after it.  Without an act nothing happens but that.
    """

    stage: str
    count: int = 1
    act: Act | None = None
    then: Trap | None = None


@dataclass
class Record:
    """What a next hop was asked about one message, and what it refused for good.

    ``senders`` are those of the copies, by recipient.
    """

    senders: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    refused_sender: str = ""

    def sender(self, recipient: str) -> str:
        """A recipient who never was named is one of the sender who was refused."""
        return self.senders.get(recipient, self.refused_sender)

    def has_refused(self, recipient: str) -> bool:
        refused_sender = self.refused_sender and self.sender(recipient) == self.refused_sender
        return recipient in self.refused or bool(refused_sender)


class FaultyHop(FakeNextHop):
    """Healthy but for its ``trap``.  Only one connection may be in use at a time."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.record = Record()
        self.sprung = threading.Event()
        self._trap: Trap | None = None
        # Those up to that one are of no interest any more.
        self._last_connection = 0
        self._senders: dict[int, str] = {}
        super().__init__(
            self._decide, login=None if tls is None else CREDENTIALS, tls=tls, port=free_port()
        )

    def begin(self, record: Record) -> None:
        """Close all connections, also those on which there is still something to read."""
        self.set_trap(None)
        self._last_connection = self.connections
        self.record = record
        self.hang_up()

    def set_trap(self, trap: Trap | None) -> None:
        self.sprung.clear()
        self._trap = trap

    def _decide(self, moment: Moment) -> Act | None:
        if moment.connection <= self._last_connection:
            return None
        if moment.stage == "MAIL":
            self._senders[moment.connection] = address_in(moment.argument)
        sender = self._senders.get(moment.connection, "")
        if moment.stage == "RCPT":
            self.record.senders[address_in(moment.argument)] = sender
        trap = self._trap
        if trap is None or trap.stage != moment.stage:
            return None
        trap.count -= 1
        if trap.count:
            return None
        self._trap = trap.then
        if trap.act is None:
            return None
        if trap.act.octets.startswith(b"5"):
            if moment.stage == "RCPT":
                self.record.refused.add(address_in(moment.argument))
            else:
                self.record.refused_sender = sender
        self.sprung.set()
        return trap.act

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Connections are refused."""
        self.refuse_connections()
        try:
            yield
        finally:
            self.take_connections()

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Connections are not answered at all: too many wait already."""
        self.refuse_connections()
        try:
            with (
                socket.create_server((HOST, self.port), backlog=0),
                contextlib.ExitStack() as stack,
            ):
                for _ in range(2):
                    waiting = stack.enter_context(socket.socket())
                    waiting.setblocking(False)
                    waiting.connect_ex((HOST, self.port))
                yield
        finally:
            self.take_connections()


def answered(message: Taken) -> bool:
    """Whether the next hop has said, as it should, that it has the message."""
    return _VALID.match(message.reply) is not None


def address_in(argument: str) -> str:
    return argument[argument.index("<") + 1 : argument.rindex(">")]
