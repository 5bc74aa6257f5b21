"""The gate of personal mode: one process, plain calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from tofmipd.auth.credentials import Credentials, Judgement, Origin, Verdict
from tofmipd.content import Content
from tofmipd.privsep.logins import Challenge, Logins
from tofmipd.privsep.throttle import Throttle, within_limits
from tofmipd.privsep.users import Submits
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply

if TYPE_CHECKING:
    from tofmipd.privsep.quota import Quota


class DirectGate:
    """Sources and tagging in the session's own thread.

    ``user_of`` makes what deals with the messages of a login name; it is asked once for each.
    """

    def __init__(
        self,
        logins: Logins,
        user_of: Callable[[str], Submits],
        throttle: Throttle | None = None,
        quota: Quota | None = None,
    ) -> None:
        self.logins = logins
        self.throttle = throttle
        self.quota = quota
        self._user_of = user_of
        self._lock = threading.Lock()
        self._users: dict[str, Submits] = {}

    @property
    def mechanisms(self) -> frozenset[str]:
        return self.logins.mechanisms

    def admit(self, session_id: str, peer: Peer) -> DirectPass:
        return DirectPass(self, session_id, peer)

    def user(self, login: str) -> Submits:
        with self._lock:
            if login not in self._users:
                self._users[login] = self._user_of(login)
            return self._users[login]


class DirectPass:
    """See gate.Pass."""

    def __init__(self, gate: DirectGate, session_id: str, peer: Peer) -> None:
        self._gate = gate
        self._id = session_id
        self._origin = Origin(peer.address, peer.local_address)
        self._challenge: Challenge | None = None
        self._login = ""

    def challenge(self, mechanism: str, opening: bytes) -> bytes:
        self._challenge = self._gate.logins.challenge(mechanism, opening)
        return self._challenge.text if self._challenge is not None else b""

    def verify(self, credentials: Credentials, mechanism: str) -> Judgement:
        challenge, self._challenge = self._challenge, None
        judgement, _ = self._gate.logins.judge(
            self._id, mechanism, credentials, self._origin, challenge
        )
        if judgement.verdict is Verdict.ACCEPTED:
            self._login = credentials.user
        return judgement

    def submit(self, envelope: Envelope, content: Content) -> Reply:
        if not self._login:
            return replies.AUTH_REQUIRED
        return within_limits(
            self._gate.quota,
            self._gate.throttle,
            self._login,
            len(envelope.recipients),
            self._id,
            lambda: self._pass_on(envelope, content),
        )

    def _pass_on(self, envelope: Envelope, content: Content) -> Reply:
        return self._gate.user(self._login).submit(envelope, content, self._id)

    def close(self) -> None:
        """Nothing is kept for a session."""
