"""Hand-off by SMTP: connections are kept and shared by all sessions of a process."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from tofmipd.handoff.connection import Connection, NextHop, Stale
from tofmipd.handoff.copy import Copy, Outcome, Taken

IDLE_LIMIT_SECONDS = 30

_T = TypeVar("_T")


class Pool:
    """Idle connections by next hop; the one used last goes out first.  Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: defaultdict[NextHop, list[Connection]] = defaultdict(list)

    def take(self, hop: NextHop) -> Connection:
        """An idle connection that is still alive, or a new one.  Raises HandOffFailed."""
        while (connection := self._pop(hop)) is not None:
            if connection.alive():
                return connection
            connection.close()
        return Connection(hop)

    def give_back(self, hop: NextHop, connection: Connection) -> None:
        """Keep the connection for the next message, unless it has served its turn."""
        if not connection.usable:
            return
        if connection.messages >= hop.messages:
            connection.quit()
            return
        connection.idle_since = time.monotonic()
        with self._lock:
            kept = self._idle[hop]
            kept.append(connection)
            old = self._expired(kept)
        for connection in old:
            connection.quit()

    def close(self) -> None:
        """Part from all next hops."""
        with self._lock:
            connections = [c for kept in self._idle.values() for c in kept]
            self._idle.clear()
        for connection in connections:
            connection.quit()

    def _pop(self, hop: NextHop) -> Connection | None:
        with self._lock:
            kept = self._idle[hop]
            return kept.pop() if kept else None

    @staticmethod
    def _expired(kept: list[Connection]) -> list[Connection]:
        """Take out those at the front that have been idle for too long."""
        horizon = time.monotonic() - IDLE_LIMIT_SECONDS
        count = next((n for n, c in enumerate(kept) if c.idle_since >= horizon), len(kept))
        old, kept[:] = kept[:count], kept[count:]
        return old


class SmtpTransport:
    """Hands copies to one next hop through a pool."""

    def __init__(self, hop: NextHop, pool: Pool) -> None:
        self._hop = hop
        self._pool = pool

    def __str__(self) -> str:
        return str(self._hop)

    def send(self, copy: Copy) -> str:
        """See Transport."""
        said: list[str] = []
        self.send_all([copy], said.append)
        return said[0]

    def send_all(self, copies: Sequence[Copy], taken: Taken) -> None:
        """See Transport."""
        self._use(lambda connection: connection.send_all(copies, taken))

    def send_to_some(self, copy: Copy) -> Outcome:
        """See Transport."""
        return self._use(lambda connection: connection.send_to_some(copy))

    def _use(self, action: Callable[[Connection], _T]) -> _T:
        """Do it on a kept connection; one that turns out stale is replaced once."""
        connection = self._pool.take(self._hop)
        try:
            result = action(connection)
        except Stale:
            connection = Connection(self._hop)
            result = action(connection)
        self._pool.give_back(self._hop, connection)
        return result
