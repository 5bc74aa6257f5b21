"""What the monitor is to run, and the places of the two processes that are always there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tofmipd.privsep.children import Birth, Child
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.keyfiles import Keys
from tofmipd.systemd import Supervisor

if TYPE_CHECKING:
    from tofmipd.events import Unpack

# A child that lived longer than this is replaced at once; else the pause doubles up to a limit.
_QUICK_DEATH_SECONDS = 5
_PAUSE_SECONDS, _PAUSE_LIMIT_SECONDS = 0.1, 5.0


@dataclass(frozen=True)
class Plan:
    """What the monitor is to run.

    ``worker`` makes the birth of an identity's worker.  ``files`` are those that auth may have
    opened, by number.  ``sessions`` bounds how many proved sessions are remembered;
    ``stop_timeout`` and ``leave_timeout`` (seconds) how long the server may take to stop, and a
    worker to finish its messages.  ``reopen`` opens the log anew and returns its descriptor.
    ``outboxes`` is the directory of all outboxes, "" for none.
    ``reload`` looks whether the options have changed; it raises Fatal if they are wrong now.
    ``supervisor`` hears how the service is.  With ``once`` all ends when the server does.
    ``keys`` are files for the server that only root may read, None for none.  ``unpack`` makes
    events of the lines of workers, None for a log that has none.
    """

    server: Birth
    auth: Birth
    worker: Callable[[Identity], Birth]
    files: tuple[str, ...]
    max_workers: int
    sessions: int
    stop_timeout: float
    leave_timeout: float
    reopen: Callable[[], int | None]
    close_listeners: Callable[[], None]
    keys: Keys | None = None
    outboxes: str = ""
    supervisor: Supervisor = field(default_factory=lambda: Supervisor({}))
    once: bool = False
    reload: Callable[[], Change | None] = lambda: None
    unpack: Unpack | None = None


class Change(NamedTuple):
    """Another plan; it will be told whether it was ``applied`` or ``given_up``."""

    plan: Plan
    applied: Callable[[], None]
    given_up: Callable[[], None]


class Post:
    """The place of the server or of auth: who has it now, and when the next one comes."""

    def __init__(self, birth: Birth) -> None:
        self.birth = birth
        self.child: Child | None = None
        self.begun = 0.0
        self.due: float | None = None
        self._pause = 0.0

    def vacated(self) -> None:
        """Its child is dead: when to make the next one."""
        self.child = None
        now = time.monotonic()
        quick = now - self.begun < _QUICK_DEATH_SECONDS
        self._pause = min(max(self._pause * 2, _PAUSE_SECONDS), _PAUSE_LIMIT_SECONDS)
        if not quick:
            self._pause = 0.0
        self.due = now + self._pause
