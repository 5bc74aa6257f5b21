"""Which workers the monitor has: one for each identity, the one used last at the end."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

from tofmipd.privsep.children import Child
from tofmipd.privsep.identity import Identity


@dataclass(slots=True, kw_only=True)
class Worker(Child):
    """``frames`` and ``lines`` count what it has said; ``born`` is when it was made, ``used`` when
    it was used last (time.monotonic()).  It is ``replaced`` when it leaves for other options."""

    identity: Identity
    frames: int = 0
    lines: int = 0
    replaced: bool = False
    born: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)


class Workers:
    """Those that serve, by identity, and those that have been asked to leave."""

    def __init__(self) -> None:
        self._serving: OrderedDict[Identity, Worker] = OrderedDict()
        self._all: dict[int, Worker] = {}

    @property
    def count(self) -> int:
        return len(self._all)

    @property
    def leaving(self) -> int:
        """How many have been asked to leave and have not yet."""
        return len(self._all) - len(self._serving)

    def all(self) -> list[Worker]:
        return list(self._all.values())

    def serving(self) -> list[Worker]:
        return list(self._serving.values())

    def add(self, worker: Worker) -> None:
        self._all[worker.pid] = worker
        self._serving[worker.identity] = worker

    def find(self, identity: Identity) -> Worker | None:
        """The one that serves the identity."""
        return self._serving.get(identity)

    def leaving_of(self, identity: Identity) -> int:
        """How many of an identity have been asked to leave and have not yet; those that are
        replaced may take their time."""
        return sum(
            worker.identity == identity
            and self._serving.get(identity) is not worker
            and not worker.replaced
            for worker in self._all.values()
        )

    def use(self, worker: Worker) -> None:
        worker.used = time.monotonic()
        if worker.identity in self._serving:
            self._serving.move_to_end(worker.identity)

    def least_recently_used(self) -> Worker | None:
        return next(iter(self._serving.values()), None)

    def retire(self, worker: Worker) -> None:
        """It serves nobody new."""
        if self._serving.get(worker.identity) is worker:
            del self._serving[worker.identity]

    def remove(self, worker: Worker) -> None:
        """It is dead."""
        self.retire(worker)
        self._all.pop(worker.pid, None)
