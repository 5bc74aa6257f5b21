"""Handing over what is in the outbox: when, how often, and what the sender hears at the end."""

from __future__ import annotations

import dataclasses
import heapq
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tofmipd.content import Content, as_local_text, stuffed
from tofmipd.handoff import bounce
from tofmipd.handoff.copy import Copy, HandOffFailed, Transport
from tofmipd.handoff.outbox import BAD, BUSY, NEW, Outbox, Pair
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

    ``note`` puts a line on the log, at INFO.
    """

    def __init__(
        self,
        outbox: Outbox,
        rules: Rules,
        note: Callable[[str], None],
        begin_thread: Callable[[], None] = lambda: None,
    ) -> None:
        self.outbox = outbox
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
        """Look what is there; a thread begins only if there is something."""
        try:
            left_behind = self.outbox.sweep()
            if left_behind:
                log.info("%d messages that nobody answered for were removed", left_behind)
        except OSError as error:
            log.error("the outbox %s cannot be read: %s", self.outbox.directory, error.strerror)
            return
        with self._changed:
            self._look()
            if self._due:
                self._wake()

    def add(self, id_: str, due: float) -> None:
        """A pair has been committed."""
        with self._changed:
            self._remember(id_, due)
            self._wake()

    def first_due(self, events: Iterable[Event]) -> float:
        """When a message to which that has happened is tried next: at once where something is
        settled."""
        settled = any(event.what == REFUSED for event in events)
        return time.time() + (0.0 if settled else self._rules.pause_seconds(1))

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
            self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                self._thread = None
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
        there = {e.id: e.due for e in entries if e.state not in (BAD, NEW)}
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
                elif not self._known and not self._under_way:
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
        due: float | None = time.time() + _TROUBLE_PAUSE_SECONDS
        try:
            due = self.try_now(id_)
        except BadEnvelope as error:
            log.error("outbox: %s is set aside: %s", id_, error)
            self.outbox.spoil(id_)
            due = None
        except OSError as error:
            log.error("outbox: %s: %s", id_, error)
        except Exception:
            log.exception("internal error in the outbox")
        finally:
            with self._changed:
                self._under_way.discard(id_)
                if due is not None:
                    self._remember(id_, due)
                self._changed.notify_all()

    def try_now(self, id_: str) -> float | None:
        """Hand a message over, as far as that is possible; when to try again, or None.

        Nothing is done if somebody else has it.  Raises BadEnvelope, OSError.
        """
        tried = self.attempt(id_)
        if tried is not None:
            return tried.due
        # Gone, or somebody else is trying it, who may not succeed.
        return time.time() + _TROUBLE_PAUSE_SECONDS if self.outbox.holds(id_) else None

    def attempt(self, id_: str, *, again: bool = False) -> Tried | None:
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
            before = tuple(pair.history.waiting(pair.stored))
            pair.mark(BUSY)
            attempt = _Attempt(pair, self._rules, self._note)
            attempt.run(self.transports)
            attempt.report(self._send_report)
            return Tried(pair, before, attempt.finish())

    def _send_report(self, copy: Copy, origin: Origin, id_: str) -> None:
        """Raises OSError."""
        now = time.time()
        try:
            with self.outbox.prepare([copy], origin, id_) as draft:
                draft.commit([], now)
        except FileExistsError:
            return  # committed before a crash
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

    def run(self, transports: Transports) -> None:
        """Raises BadEnvelope, OSError."""
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
            mine = [place for place in waiting if place.copy == number]
            self._hand_over(mine, transport)
        pair.tell(Event(TRIED, time.time()))

    def _hand_over(self, places: Sequence[Place], transport: Transport) -> None:
        """One copy, for those who do not have it yet."""
        copy = self._pair.copy(places[0].copy, [place.recipient for place in places])
        by = str(transport)
        try:
            said, refused = transport.send_to_some(copy)
        except HandOffFailed as error:
            self._not_taken(places, error.reply, by if error.heard else "", str(error))
            return
        now = time.time()
        addresses = dict(zip(places, copy.recipients, strict=True))
        taken = [place for place in places if addresses[place] not in refused]
        self._pair.tell(*(Event(TAKEN, now, place, by, said) for place in taken))
        for place in taken:
            self._note(
                f"s={self._session} sent to={_shown(addresses[place])!r}"
                f" from={_shown(copy.sender)!r} by={by} reply={said!r} queue={self._pair.id}"
            )
        for place, address in addresses.items():
            if address in refused:
                self._not_taken([place], refused[address], by, str(refused[address]))

    def _not_taken(self, places: Sequence[Place], reply: Reply, by: str, detail: str) -> None:
        what = REFUSED if reply.code >= 500 else DEFERRED
        now = time.time()
        self._pair.tell(*(Event(what, now, place, by, str(reply)) for place in places))
        log.warning(
            "s=%s %s for %d recipients by=%s reply=%r queue=%s",
            self._session,
            what.lower(),
            len(places),
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
