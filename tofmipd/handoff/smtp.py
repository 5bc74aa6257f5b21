"""Hand-off by SMTP: connections are kept and shared by all sessions of a process."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tofmipd.handoff.connection import Connection, Stale
from tofmipd.handoff.copy import Copy, HandOffFailed, Outcome, Taken
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.xclient import Submitter

log = logging.getLogger(__name__)

IDLE_LIMIT_SECONDS = 30
# For so long a next hop that could not be had comes last.
AVOID_SECONDS = 60
_AVOIDED_LIMIT = 1000
# So many to one next hop are kept that are of use for a single client only.
_BOUND_LIMIT = 10
# A QUIT may have to wait for a moment.
_END_SECONDS = 5

_T = TypeVar("_T")


class Pool:
    """Idle connections by next hop; the one used last goes out first.  Safe for threads.

    A thread says goodbye on those that have been idle for too long.  It is there only while there
    are idle ones, and wakes up once for many messages.
    """

    def __init__(self) -> None:
        # It is notified when the thread has something to do before its time.
        self._changed = threading.Condition()
        self._idle: dict[NextHop, list[Connection]] = {}
        # Until when; those that failed longest ago stand first.
        self._avoided: dict[NextHop, float] = {}
        self._sweeper: threading.Thread | None = None
        self._closed = False

    def take(self, hops: Sequence[NextHop], submitter: Submitter | None = None) -> Connection:
        """An idle connection that is still alive, or a new one, to the first next hop that can be
        had; for messages of that client, where next hops are told.  Raises the HandOffFailed of
        the first one."""
        return self._try(hops, lambda hop: self._take_one(hop, submitter))

    def open(self, hops: Sequence[NextHop], submitter: Submitter | None = None) -> Connection:
        """A new connection, as ``take``."""
        return self._try(hops, lambda hop: Connection(hop, submitter))

    def give_back(self, connection: Connection) -> None:
        """Keep the connection for the next message, unless it has served its turn."""
        if not connection.usable:
            connection.close()
            return
        if connection.messages >= connection.hop.messages:
            connection.quit()
            return
        connection.idle_since = time.monotonic()
        with self._changed:
            if not self._closed:
                kept = self._idle.setdefault(connection.hop, [])
                kept.append(connection)
                self._have_swept()
                if not connection.bound:
                    return
                bound = [one for one in kept if one.bound]
                if len(bound) <= _BOUND_LIMIT:
                    return
                connection = bound[0]
                kept.remove(connection)
        connection.quit()

    def close(self) -> None:
        """Part from all next hops; what is given back later is not kept."""
        with self._changed:
            self._closed = True
            connections = [c for kept in self._idle.values() for c in kept]
            self._idle.clear()
            sweeper = self._sweeper
            self._changed.notify_all()
        for connection in connections:
            connection.quit()
        if sweeper is not None:
            sweeper.join(_END_SECONDS)

    def _try(self, hops: Sequence[NextHop], get: Callable[[NextHop], Connection]) -> Connection:
        failures: dict[NextHop, HandOffFailed] = {}
        for hop in self._by_preference(hops):
            try:
                connection = get(hop)
            except HandOffFailed as error:
                failures[hop] = error
                if len(hops) > 1:
                    self._avoid(hop)
                continue
            if failures:
                log.warning("next hop %s is used instead: %s", hop, _told(failures))
            if self._avoided:
                self._trust_again(hop)
            return connection
        raise failures[hops[0]]

    def _take_one(self, hop: NextHop, submitter: Submitter | None) -> Connection:
        while (connection := self._pop(hop, submitter)) is not None:
            if connection.alive():
                return connection
            connection.close()
        return Connection(hop, submitter)

    def _pop(self, hop: NextHop, submitter: Submitter | None) -> Connection | None:
        with self._changed:
            kept = self._idle.get(hop, [])
            for place in range(len(kept) - 1, -1, -1):
                if kept[place].fits(submitter):
                    connection = kept.pop(place)
                    if not kept:
                        del self._idle[hop]
                    return connection
            return None

    def _by_preference(self, hops: Sequence[NextHop]) -> Sequence[NextHop]:
        """Those that could not be had a moment ago come last."""
        if len(hops) == 1:
            return hops
        now = time.monotonic()
        with self._changed:
            order = sorted(hops, key=lambda hop: self._avoided.get(hop, 0) > now)
            if self._avoided.get(order[0], now + 1) <= now:
                # Who gets this order finds out whether it is back; others need not wait for that.
                self._avoided[order[0]] = now + AVOID_SECONDS
            return order

    def _avoid(self, hop: NextHop) -> None:
        with self._changed:
            self._avoided.pop(hop, None)
            if len(self._avoided) >= _AVOIDED_LIMIT:
                del self._avoided[next(iter(self._avoided))]
            self._avoided[hop] = time.monotonic() + AVOID_SECONDS

    def _trust_again(self, hop: NextHop) -> None:
        with self._changed:
            self._avoided.pop(hop, None)

    def _have_swept(self) -> None:
        """Called with the lock.  Without a thread they are idle for longer, which hurts nobody."""
        if self._sweeper is None:
            sweeper = threading.Thread(target=self._sweep, name="idle", daemon=True)
            with contextlib.suppress(RuntimeError):
                sweeper.start()
                self._sweeper = sweeper

    def _sweep(self) -> None:
        while True:
            with self._changed:
                old = self._expired()
                if not old:
                    if not self._idle:
                        self._sweeper = None
                        return
                    self._changed.wait(self._rest_seconds())
            for connection in old:
                connection.quit()

    def _expired(self) -> list[Connection]:
        """Take out those that have been idle for too long: they are at the front."""
        horizon = time.monotonic() - IDLE_LIMIT_SECONDS
        old = []
        for hop, kept in list(self._idle.items()):
            while kept and kept[0].idle_since <= horizon:
                old.append(kept.pop(0))
            if not kept:
                del self._idle[hop]
        return old

    def _rest_seconds(self) -> float:
        """Until the next one will have been idle for too long."""
        first = min(kept[0].idle_since for kept in self._idle.values())
        return max(first + IDLE_LIMIT_SECONDS - time.monotonic(), 0)


def _told(failures: dict[NextHop, HandOffFailed]) -> str:
    return "; ".join(failure.reply.lines[0] for failure in failures.values())


class SmtpTransport:
    """Hands copies to one of some next hops, in order of preference, through a pool."""

    def __init__(self, hops: Sequence[NextHop], pool: Pool) -> None:
        self._hops = tuple(hops)
        self._pool = pool

    def __str__(self) -> str:
        return ",".join(map(str, self._hops))

    def send(self, copy: Copy) -> str:
        """See Transport."""
        said: list[str] = []
        self.send_all([copy], said.append)
        return said[0]

    def send_all(self, copies: Sequence[Copy], taken: Taken) -> None:
        """See Transport."""
        submitter = copies[0].submitter
        self._use(submitter, lambda connection: connection.send_all(copies, taken))

    def send_to_some(self, copy: Copy) -> Outcome:
        """See Transport."""
        return self._use(copy.submitter, lambda connection: connection.send_to_some(copy))

    def _use(self, submitter: Submitter | None, action: Callable[[Connection], _T]) -> _T:
        """Do it on a kept connection; one that turns out stale is replaced once."""
        connection = self._pool.take(self._hops, submitter)
        try:
            result = action(connection)
        except Stale:
            connection = self._pool.open(self._hops, submitter)
            result = action(connection)
        self._pool.give_back(connection)
        return result
