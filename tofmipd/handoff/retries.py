"""Handing over what is in the outbox: when, how often, and what the sender hears at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tofmipd.content import Content, as_local_text, stuffed
from tofmipd.handoff import bounce
from tofmipd.handoff.copy import Copy, HandOffFailed, Transport
from tofmipd.handoff.outbox import BAD, BUSY, NEW, WAITING, Outbox, Pair, when_due
from tofmipd.handoff.stored import (
    DEFERRED,
    REFUSED,
    TAKEN,
    TOLD,
    TRIED,
    WARNED,
    BadEnvelope,
    Event,
    Origin,
    Place,
)
from tofmipd.smtp.reply import Reply, printable

log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 4 * 3600.0
# After a fault of ours.
_TROUBLE_PAUSE_SECONDS = 60.0
_JITTER = 0.1
_WARNING_SECONDS = 4 * 3600.0
# Of messages that are handed over at a time.
_AT_ONCE = 4
# How often it is looked whether somebody else has put something there.
_LOOK_SECONDS = 60.0
# Of a message that its sender wants back whole (RFC 3461 section 4.3).
_FULL_LIMIT_OCTETS = 1 << 20
_GONE = Reply(451, "3.0", ("its files cannot be read",))

# What hands over for a login whose client came in at a local address.  Raises HandOffFailed.
Transports = Callable[[str, str], Transport]
# What commits a message of ours to the outbox, under that name.  Raises OSError.
_Send = Callable[[Copy, Origin, str], None]


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


class Tried(NamedTuple):
    """``pair`` after an attempt for ``places``; when to try again, or None."""

    pair: Pair
    places: tuple[Place, ...]
    due: float | None


class Retries:
    """Of one outbox: a thread while there is something to do, others for each message.

    ``note`` puts a line on the log, at INFO.  With ``watches`` the thread stays once there has been
    anything, since somebody else may put something there.
    """

    def __init__(
        self,
        outbox: Outbox,
        rules: Rules,
        note: Callable[[str], None],
        begin_thread: Callable[[], None] = lambda: None,
        *,
        watches: bool = False,
    ) -> None:
        self.outbox = outbox
        self._watches = watches
        self._rules = rules
        self._note = note
        # Called in each thread of ours, before anything else.
        self._begin_thread = begin_thread
        self.transports: Transports = _no_transport
        self._changed = threading.Condition()
        self._due: list[tuple[float, str]] = []
        self._known: dict[str, float] = {}
        self._under_way: set[str] = set()
        self._thread: threading.Thread | None = None
        self._look_at = 0.0
        self._stopping = False

    def start(self) -> None:
        """Look what is there."""
        try:
            left_behind = self.outbox.sweep()
            if left_behind:
                log.info("%d messages that nobody answered for were removed", left_behind)
        except OSError as error:
            log.error("the outbox %s cannot be read: %s", self.outbox.directory, error.strerror)
            return
        with self._changed:
            self._look()
            if self._due or (self._watches and self.outbox.exists()):
                self._wake()

    def add(self, id_: str, due: float) -> None:
        """A pair has been committed."""
        with self._changed:
            self._remember(id_, due)
            self._wake()

    def first_due(self, reply: Reply) -> float:
        """When a message of which that has been said is tried next: at once after a refusal, which
        need not be about all recipients."""
        return time.time() + (0.0 if reply.code >= 500 else self._rules.pause_seconds(1))

    @property
    def busy(self) -> bool:
        """Whether something is being handed over."""
        return bool(self._under_way)

    def occupied(self, seconds: float) -> bool:
        """Whether something is being handed over, or will be within that time."""
        with self._changed:
            due = min(self._known.values(), default=None)
            return self.busy or (due is not None and due <= time.time() + seconds)

    def upcoming(self) -> set[str]:
        """What is to be tried, as far as that is known here."""
        with self._changed:
            return set(self._known)

    def stop(self, limit_seconds: float) -> bool:
        """Begin nothing new, and wait for what is under way; whether that has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._under_way, limit_seconds)

    def _wake(self) -> None:
        """The caller has the lock."""
        if self._thread is None and not self._stopping:
            thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread
        self._changed.notify_all()

    def _remember(self, id_: str, due: float) -> None:
        self._known[id_] = due
        heapq.heappush(self._due, (due, id_))

    def _look(self) -> None:
        """See what is there now; the caller has the lock.  Somebody else may have come or gone."""
        self._look_at = time.monotonic() + _LOOK_SECONDS
        try:
            entries = self.outbox.entries()
        except OSError as error:
            log.error("the outbox %s cannot be read: %s", self.outbox.directory, error.strerror)
            return
        now = time.time()
        there = {e.id: when_due(e.due, now) for e in entries if e.state not in (BAD, NEW)}
        self._known = {}
        self._due = []
        for id_, due in there.items():
            if id_ not in self._under_way:
                self._remember(id_, due)

    def _run(self) -> None:
        self._begin_thread()
        with self._changed:
            while not self._stopping:
                if time.monotonic() >= self._look_at:
                    self._look()
                id_ = self._next()
                if id_ is not None:
                    self._begin(id_)
                elif not (self._watches or self._known or self._under_way):
                    break
                else:
                    self._changed.wait(self._patience())
            self._thread = None

    def _next(self) -> str | None:
        """A message that is due, if there is a place for it."""
        while self._due and len(self._under_way) < _AT_ONCE:
            due, id_ = self._due[0]
            if self._known.get(id_) != due:
                heapq.heappop(self._due)
            elif due <= time.time():
                heapq.heappop(self._due)
                del self._known[id_]
                return id_
            else:
                return None
        return None

    def _patience(self) -> float:
        """Seconds until something is to be done."""
        look = self._look_at - time.monotonic()
        if not self._due or len(self._under_way) >= _AT_ONCE:
            return max(look, 0.01)
        return max(min(self._due[0][0] - time.time(), look), 0.01)

    def _begin(self, id_: str) -> None:
        self._under_way.add(id_)
        thread = threading.Thread(target=self._attend, args=(id_,), name=id_, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._under_way.discard(id_)
            self._remember(id_, time.time() + _TROUBLE_PAUSE_SECONDS)

    def _attend(self, id_: str) -> None:
        self._begin_thread()
        due = self._tried(id_)
        with self._changed:
            self._under_way.discard(id_)
            if due is not None:
                self._remember(id_, due)
            self._changed.notify_all()

    def _tried(self, id_: str) -> float | None:
        """As ``try_now``, whatever happens."""
        try:
            try:
                return self.try_now(id_, early=False)
            except BadEnvelope as error:
                log.error("outbox: %s is set aside: %s", id_, error)
                self.outbox.spoil(id_)
                return None
        except OSError as error:
            log.error("outbox: %s: %s", id_, error)
        except Exception:
            log.exception("internal error in the outbox")
        return time.time() + _TROUBLE_PAUSE_SECONDS

    def try_now(self, id_: str, *, early: bool = True) -> float | None:
        """Hand a message over, as far as that is possible; when to try again, or None.

        Nothing is done if somebody else has it, nor, unless ``early``, if somebody has put it off
        or all is to stop.
        Raises BadEnvelope, OSError.
        """
        tried = self.attempt(id_, early=early)
        if tried is not None:
            return tried.due
        # Somebody else who has it may yet die of it.
        return time.time() + _LOOK_SECONDS if self.outbox.waits(id_) else None

    def attempt(self, id_: str, *, again: bool = False, early: bool = True) -> Tried | None:
        """As ``try_now``, but says more; None if it is gone or somebody else has it.

        With ``again`` a message that was set aside is tried as well, and whom nobody could tell of
        a refusal waits again.
        """
        pair = self.outbox.take(id_)
        if pair is None:
            return None
        with pair:
            if pair.state == BAD:
                if not again:
                    return None
                _wait_again(pair)
            if not early and pair.state == WAITING and pair.due > time.time() + 1:
                return Tried(pair, (), pair.due)
            before = tuple(pair.history.waiting(pair.stored))
            # Whatever goes wrong now, it is not tried again at once.
            pair.put_off(time.time() + _TROUBLE_PAUSE_SECONDS)
            pair.mark(BUSY)
            attempt = _Attempt(pair, self._rules, self._note)
            attempt.run(self.transports, lambda: self._stopping and not early)
            attempt.report(self._send_report)
            return Tried(pair, before, attempt.finish())

    def _send_report(self, copy: Copy, origin: Origin, id_: str) -> None:
        """Raises OSError."""
        now = time.time()
        if self.outbox.has(id_):
            return  # committed before a crash
        self.outbox.forget(id_)
        with self.outbox.prepare([copy], origin, id_) as draft:
            draft.commit([], now)
        self.add(id_, now)


def _wait_again(pair: Pair) -> None:
    """What the next hop said last stays on record.  Raises OSError."""
    now = time.time()
    refused = [pair.history.last[place] for place in pair.history.refused(pair.stored)]
    pair.tell(*(event._replace(what=DEFERRED, at=now) for event in refused))


def _no_transport(login: str, local_address: str) -> Transport:
    raise HandOffFailed(_GONE)


class _Attempt:
    """One attempt at one message."""

    def __init__(self, pair: Pair, rules: Rules, note: Callable[[str], None]) -> None:
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
        for place in taken:
            self._note(
                f"s={self._session} sent to={_shown(addresses[place])!r}"
                f" from={_shown(copy.sender)!r} by={by} reply={said!r} queue={self._pair.id}"
            )
        for place in refused_places:
            reply = refused[addresses[place]]
            self._warn(reply, 1, by, str(reply))

    def _not_taken(self, places: Sequence[Place], reply: Reply, by: str, detail: str) -> None:
        self._pair.tell(*(_not_taken(place, reply, by) for place in places))
        self._warn(reply, len(places), by, detail)

    def _warn(self, reply: Reply, count: int, by: str, detail: str) -> None:
        log.warning(
            "s=%s %s for %d recipients by=%s reply=%r queue=%s",
            self._session,
            _what(reply).lower(),
            count,
            by or "-",
            printable(detail),
            self._pair.id,
        )

    def report(self, send: _Send) -> None:
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
        for place in pair.history.waiting(pair.stored):
            last = pair.history.last.get(place)
            reply, by = (last.reply, last.by) if last is not None else ("", "")
            events.append(Event(REFUSED, time.time(), place, by, reply))
        if events:
            log.warning(
                "s=%s given up for %d recipients after %.1f days queue=%s",
                self._session,
                len(events),
                (time.time() - pair.stored.origin.arrived) / 86400,
                pair.id,
            )
            pair.tell(*events)

    def _report(self, places: Sequence[Place], send: _Send, until: float) -> None:
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
