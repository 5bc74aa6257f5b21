"""One attempt at one message of the outbox, and what its sender hears of it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tofmipd.content import Content, as_local_text, message_id, stuffed
from tofmipd.handoff import bounce
from tofmipd.handoff.copy import Copy, HandOffFailed, Transport
from tofmipd.handoff.outbox import BAD, Pair
from tofmipd.handoff.stored import (
    DEFERRED,
    REFUSED,
    TAKEN,
    TOLD,
    TRIED,
    WARNED,
    Event,
    Origin,
    Place,
)
from tofmipd.smtp.reply import Reply, printable

log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 4 * 3600.0
_JITTER = 0.1
_WARNING_SECONDS = 4 * 3600.0
# Of a message that its sender wants back whole (RFC 3461 section 4.3).
_FULL_LIMIT_OCTETS = 1 << 20

# What hands over for a login whose client came in at a local address.  Raises HandOffFailed.
Transports = Callable[[str, str], Transport]
# What commits a message of ours to the outbox, under that name.  Raises OSError.
Send = Callable[[Copy, Origin, str], None]
# What puts a line on the log, at INFO: a text, and the values for it.
Note = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Rules:
    """``lifetime`` is in seconds, after which a message goes back to its sender; with ``warning``
    he hears after four hours that it is still there.  ``first_pause`` (seconds) is that after the
    first attempt.  ``host_name`` is ours."""

    host_name: str
    lifetime: float = 5 * 86400
    warning: bool = False
    first_pause: float = 60.0

    def pause_seconds(self, tries: int) -> float:
        """How long to wait after so many attempts, spread a little by chance."""
        pause = min(self.first_pause * 2.0 ** min(max(tries - 1, 0), 20), _LONGEST_PAUSE_SECONDS)
        return pause * random.uniform(1 - _JITTER, 1 + _JITTER)


@dataclass(frozen=True, slots=True)
class Told:
    """What the log says of one recipient of a message in the outbox: what all of its lines have.

    ``arrived`` is when the message came in, in seconds since the epoch.
    """

    session: str
    sender: str
    message_id: str
    queue: str
    arrived: float

    @classmethod
    def of(cls, origin: Origin, copy: Copy, queue: str) -> Told:
        id_ = message_id(copy.header) if copy.header else copy.content.message_id()
        return cls(origin.session_id, _shown(copy.sender), id_, queue, origin.arrived)

    def _values(self, recipient: bytes, by: str, said: str) -> tuple[object, ...]:
        delay = max(time.time() - self.arrived, 0)
        id_, to = self.message_id, _shown(recipient)
        return (self.session, to, self.sender, id_, by or "-", said, self.queue, delay)

    def taken(self, recipient: bytes, by: str, said: str, note: Note) -> None:
        note(
            "s=%s sent to=%r sender=%r id=%r by=%s reply=%r queue=%s delay=%.1f",
            *self._values(recipient, by, said),
        )

    def not_taken(self, recipient: bytes, by: str, reply: Reply, detail: str) -> None:
        """``reply`` says whether for good, ``detail`` is what is shown."""
        values = self._values(recipient, by, printable(detail))
        if _what(reply) == REFUSED:
            log.warning(
                "s=%s refused to=%r sender=%r id=%r by=%s reply=%r queue=%s delay=%.1f", *values
            )
        else:
            log.warning(
                "s=%s deferred to=%r sender=%r id=%r by=%s reply=%r queue=%s delay=%.1f", *values
            )

    def given_up(self, recipient: bytes, by: str, said: str) -> None:
        log.warning(
            "s=%s given up to=%r sender=%r id=%r by=%s reply=%r queue=%s delay=%.1f",
            *self._values(recipient, by, said),
        )


class Attempt:
    """One attempt at one message."""

    def __init__(self, pair: Pair, rules: Rules, note: Note) -> None:
        self._pair = pair
        self._rules = rules
        self._note = note
        self._session = pair.stored.origin.session_id

    def run(self, transports: Transports, stopping: Callable[[], bool]) -> None:
        """Offer each copy to those who wait for it, but begin none any more once it is to stop.

        Raises BadEnvelope, OSError.
        """
        pair, origin = self._pair, self._pair.stored.origin
        waiting = pair.history.waiting(pair.stored)
        if not waiting:
            return
        try:
            transport = transports(origin.login, origin.local_address)
        except HandOffFailed as error:
            self._not_taken(waiting, error.reply, "", str(error))
            waiting = []
        for number in sorted({place.copy for place in waiting}):
            if stopping():
                return
            mine = [place for place in waiting if place.copy == number]
            self._hand_over(mine, transport)
        pair.tell(Event(TRIED, time.time()))

    def _hand_over(self, places: Sequence[Place], transport: Transport) -> None:
        """One copy, for those who do not have it yet."""
        copy = self._pair.copy(places[0].copy, [place.recipient for place in places])
        by = str(transport)
        self._pair.reserve(len(places))
        try:
            said, refused = transport.send_to_some(copy)
        except HandOffFailed as error:
            self._not_taken(places, error.reply, by if error.heard else "", str(error))
            return
        now = time.time()
        addresses = dict(zip(places, copy.recipients, strict=True))
        taken = [place for place in places if addresses[place] not in refused]
        refused_places = [place for place in places if addresses[place] in refused]
        self._pair.tell(
            *(Event(TAKEN, now, place, by, said) for place in taken),
            *(_not_taken(place, refused[addresses[place]], by) for place in refused_places),
        )
        told = self._told(copy)
        for place in taken:
            told.taken(addresses[place], by, said, self._note)
        for place in refused_places:
            reply = refused[addresses[place]]
            told.not_taken(addresses[place], by, reply, str(reply))

    def _told(self, copy: Copy) -> Told:
        return Told.of(self._pair.stored.origin, copy, self._pair.id)

    def _by_copy(self, places: Sequence[Place]) -> Iterator[tuple[Place, bytes, Told]]:
        """The places with their addresses.  Raises BadEnvelope, OSError."""
        for number, mine in itertools.groupby(places, lambda place: place.copy):
            copy = self._pair.copy(number)
            told = self._told(copy)
            for place in mine:
                yield place, copy.recipients[place.recipient], told

    def _not_taken(self, places: Sequence[Place], reply: Reply, by: str, detail: str) -> None:
        """Raises BadEnvelope, OSError."""
        self._pair.tell(*(_not_taken(place, reply, by) for place in places))
        for _, recipient, told in self._by_copy(places):
            told.not_taken(recipient, by, reply, detail)

    def report(self, send: Send) -> None:
        """Let the sender know what he is to know.  Raises BadEnvelope, OSError."""
        pair, now = self._pair, time.time()
        age = now - pair.stored.origin.arrived
        if age > self._rules.lifetime:
            self._give_up()
        refused = pair.history.refused(pair.stored)
        self._report(refused, send, 0.0)
        # Of whom nobody is to hear: that is obeyed.  What has no sender stays as it is.
        quiet = [place for place in refused if pair.stored.copies[place.copy].sender]
        pair.tell(*(Event(TOLD, now, place) for place in quiet))
        waiting = pair.history.waiting(pair.stored)
        if self._rules.warning and age > _WARNING_SECONDS and not pair.history.warned and waiting:
            self._report(waiting, send, pair.stored.origin.arrived + self._rules.lifetime)
            pair.tell(Event(WARNED, now))

    def _give_up(self) -> None:
        """Those who wait have waited too long."""
        pair = self._pair
        events = []
        for place, recipient, told in self._by_copy(pair.history.waiting(pair.stored)):
            last = pair.history.last.get(place)
            reply, by = (last.reply, last.by) if last is not None else ("", "")
            events.append(Event(REFUSED, time.time(), place, by, reply))
            told.given_up(recipient, by, reply)
        pair.tell(*events)

    def _report(self, places: Sequence[Place], send: Send, until: float) -> None:
        """A report for each copy, for each has a sender of its own; ``until`` is 0 for a refusal,
        else when it will be one."""
        for number in sorted({place.copy for place in places}):
            mine = [
                place
                for place in places
                if place.copy == number and self._may_be_told(place, until)
            ]
            if mine:
                kind = "w" if until else "b"
                id_ = f"{self._pair.id}.{kind}{number + 1}.{self._pair.history.tries}"
                origin = dataclasses.replace(self._pair.stored.origin, arrived=time.time())
                send(self._report_copy(number, mine, until), origin, id_)

    def _may_be_told(self, place: Place, until: float) -> bool:
        copy = self._pair.stored.copies[place.copy]
        words = self._pair.stored.parameters.notices.get(copy.recipients[place.recipient], b"")
        notify = _parameter(words, b"NOTIFY")
        return bounce.may_bounce(copy.sender, notify, delayed=bool(until))

    def _report_copy(self, number: int, places: Sequence[Place], until: float) -> Copy:
        """Raises BadEnvelope, OSError."""
        stored, now = self._pair.stored, time.time()
        copy = self._pair.copy(number)
        full = self._full(copy, until)
        report = bounce.Report(
            host_name=self._rules.host_name,
            message_id=f"<{int(now)}.{secrets.token_hex(6)}@{self._rules.host_name}>",
            sender=copy.sender,
            arrived=stored.origin.arrived,
            now=now,
            envid=stored.parameters.envid,
            failures=tuple(self._failure(place, copy) for place in places),
            retry_until=until,
            eight_bit=full is not None and not all(block.isascii() for block in full),
        )
        return _message_of_ours(report, copy.header, full)

    def _full(self, copy: Copy, until: float) -> list[bytes] | None:
        """The whole message, dots no longer doubled, if its sender wants it back."""
        wanted = self._pair.stored.parameters.ret == "FULL" and not until
        if not wanted or copy.size_octets > _FULL_LIMIT_OCTETS:
            return None
        return [block.replace(b"\n", b"\r\n") for block in as_local_text(copy.blocks())]

    def _failure(self, place: Place, copy: Copy) -> bounce.Failure:
        event = self._pair.history.last.get(place)
        recipient = copy.recipients[place.recipient]
        words = copy.parameters.notices.get(recipient, b"")
        return bounce.Failure(
            recipient=recipient,
            reply=event.reply if event is not None else "",
            next_hop=event.by if event is not None else "",
            original=_parameter(words, b"ORCPT"),
            at=event.at if event is not None else 0.0,
        )

    def finish(self) -> float | None:
        """Remove it, set it aside, or say when to try again.  Raises OSError."""
        pair = self._pair
        if pair.history.waiting(pair.stored):
            due = time.time() + self._rules.pause_seconds(pair.history.tries)
            pair.put_off(due)
            return due
        if pair.history.refused(pair.stored):
            log.error("s=%s nobody can be told: kept as %s%s", self._session, pair.id, BAD)
            pair.mark(BAD)
        else:
            pair.remove()
        return None


def _what(reply: Reply) -> str:
    return REFUSED if reply.code >= 500 else DEFERRED


def _not_taken(place: Place, reply: Reply, by: str) -> Event:
    return Event(_what(reply), time.time(), place, by, str(reply))


def _message_of_ours(report: bounce.Report, header: bytes, full: list[bytes] | None) -> Copy:
    """The report as a copy without a sender."""
    boundary = secrets.token_hex(16)
    octets = b"".join(bounce.report(report, header, boundary=boundary, full=full))
    own, _, body = octets.partition(b"\r\n\r\n")
    content = Content()
    content.write(stuffed(body))
    parameters = bounce.needs(report, header, full=full is not None)
    return Copy(b"", (report.sender,), own + b"\r\n\r\n", content, 0, parameters)


def _parameter(words: bytes, name: bytes) -> str:
    """The value of one parameter of RCPT, "" if it is not there."""
    for word in words.split():
        key, _, value = word.partition(b"=")
        if key == name:
            return value.decode("utf-8", "replace")
    return ""


def _shown(address: bytes) -> str:
    return address.decode("utf-8", "replace")
