"""What is handed over, how, and how that can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tofmipd.content import Content, stuffed
from tofmipd.handoff.xclient import Submitter
from tofmipd.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the client has asked for with MAIL and RCPT (RFC 6152, 6531, 3461), "" for nothing.

    ``notices`` are NOTIFY and ORCPT by recipient, as they go behind RCPT.
    """

    eight_bit: bool = False
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    notices: Mapping[bytes, bytes] = field(default_factory=dict)

    @property
    def dsn(self) -> bool:
        """Whether notifications are asked for in any way of their own."""
        return bool(self.ret or self.envid or self.notices)


NO_PARAMETERS = Parameters()


@dataclass(frozen=True, slots=True)
class Copy:
    """One message for some recipients.

    ``sender`` is empty for the null sender.  ``header`` ends with its empty line; the body is
    ``content`` from ``body_start`` on, in wire form.  ``submitter`` is of whom a next hop is told
    that asks for it, None for nobody.
    """

    sender: bytes
    recipients: tuple[bytes, ...]
    header: bytes
    content: Content
    body_start: int = 0
    parameters: Parameters = NO_PARAMETERS
    submitter: Submitter | None = None

    @property
    def size_octets(self) -> int:
        return len(self.header) + self.content.size_octets - self.body_start

    def blocks(self) -> Iterator[bytes]:
        """The whole message in wire form; the header travels with the first piece of the body."""
        body = self.content.blocks(self.body_start)
        yield stuffed(self.header) + next(body, b"")
        yield from body


class HandOffFailed(Exception):
    """The copy was not taken.  ``reply`` is what the client should hear, ``detail`` what only
    the log should.  ``heard``: the reply is the next hop's own."""

    def __init__(self, reply: Reply, detail: str = "", *, heard: bool = False) -> None:
        super().__init__(reply, detail)
        self.reply = reply
        self.detail = detail
        self.heard = heard

    def __str__(self) -> str:
        return f"{self.reply} ({self.detail})" if self.detail else str(self.reply)


# Told what the next hop said, each time that it has taken a copy.
Taken = Callable[[str], None]


class Outcome(NamedTuple):
    """What became of a copy that nobody waits for: who of its recipients was refused, with the
    reply, and what the next hop said when it took it for the others, "" if there were none."""

    said: str
    refused: Mapping[bytes, Reply]


class Transport(Protocol):
    """A way to hand copies over.  Called from many threads at once."""

    def send(self, copy: Copy) -> str:
        """Hand one copy over; all its recipients have it then.  Returns what the next hop said.

        Raises HandOffFailed; then none of them has it, as far as can be known.
        """
        ...

    def send_all(self, copies: Sequence[Copy], taken: Taken) -> None:
        """Hand copies over, one after the other; ``taken`` is called for each that all its
        recipients have now.

        All senders and recipients are offered before the first message is given, where that is
        possible.  Raises HandOffFailed; those that were not taken before nobody has, as far as
        can be known.
        """
        ...

    def send_to_some(self, copy: Copy) -> Outcome:
        """Hand one copy over to those of its recipients that are not refused.

        Raises HandOffFailed; then none of them has it, as far as can be known.
        """
        ...
