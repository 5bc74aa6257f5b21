"""Handing over what is in the outbox: when, and how many at a time."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from tofmipd.handoff.attempt import Attempt, Note, Rules, Transports
from tofmipd.handoff.copy import Copy, HandOffFailed, Transport
from tofmipd.handoff.outbox import BAD, BUSY, NEW, WAITING, Outbox, Pair, when_due
from tofmipd.handoff.stored import DEFERRED, BadEnvelope, Origin, Place
from tofmipd.smtp.reply import Reply

log = logging.getLogger(__name__)

# After a fault of ours.
_TROUBLE_PAUSE_SECONDS = 60.0
# Of messages that are handed over at a time.
_AT_ONCE = 4
# How often it is looked whether somebody else has put something there.
_LOOK_SECONDS = 60.0
_GONE = Reply(451, "3.0", ("its files cannot be read",))


class Tried(NamedTuple):
    """``pair`` after an attempt for ``places``; when to try again, or None."""

    pair: Pair
    places: tuple[Place, ...]
    due: float | None


class Retries:
    """Of one outbox: a thread while there is something to do, others for each message.

    With ``watches`` the thread stays once there has been
    anything, since somebody else may put something there.
    """

    def __init__(
        self,
        outbox: Outbox,
        rules: Rules,
        note: Note,
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

    def finish(self, limit_seconds: float) -> bool:
        """Hand over what is due, then ``stop``; whether both were done in time."""
        deadline = time.monotonic() + limit_seconds
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._under_way or self._is_due()), timeout=limit_seconds
            )
        return self.stop(max(deadline - time.monotonic(), 0))

    def _is_due(self) -> bool:
        """The caller has the lock."""
        return min(self._known.values(), default=math.inf) <= time.time()

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
            attempt = Attempt(pair, self._rules, self._note)
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
