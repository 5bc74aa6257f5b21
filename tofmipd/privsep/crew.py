"""A server and its auth, and what the monitor knows of their sessions.

There is one that serves.  After a change of the options another one is made beside it, which
serves from then on; the old one stays as long as it has sessions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from tofmipd.privsep.children import Child
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.plan import Plan, Post


class Crew:
    """``sessions`` are those that have proved an identity, by their number in this server."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.server = Post(plan.server)
        self.auth = Post(plan.auth)
        self.sessions: OrderedDict[int, Identity] = OrderedDict()
        # How often its server has asked for what no session had proved.
        self.offences = 0
        # It takes no further sessions.
        self.retired = False
        # It was to serve, but never has.
        self.discarded = False

    @property
    def posts(self) -> tuple[Post, Post]:
        return self.auth, self.server

    @property
    def complete(self) -> bool:
        return all(post.child is not None and post.child.ready for post in self.posts)

    @property
    def gone(self) -> bool:
        return all(post.child is None for post in self.posts)

    def children(self) -> Iterator[Child]:
        for post in self.posts:
            if post.child is not None:
                yield post.child

    def has(self, child: Child) -> bool:
        return any(post.child is child for post in self.posts)

    def proved(self, session: int, identity: Identity) -> None:
        self.sessions[session] = identity
        self.sessions.move_to_end(session)
        if len(self.sessions) > self.plan.sessions:
            self.sessions.popitem(last=False)

    def server_lost(self) -> None:
        """The sessions ended with it."""
        self.server.vacated()
        self.sessions.clear()
        self.offences = 0
        if self.retired:
            self.server.due = None

    def stand_down(self) -> None:
        """Whoever dies from now on has no successor."""
        for post in self.posts:
            post.due = None
