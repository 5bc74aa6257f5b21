"""The gate of personal mode: one process, plain calls."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable

from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import CramMd5, Credentials, Verdict
from tofmipd.content import Content
from tofmipd.privsep.outbound import Outbound
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply

log = logging.getLogger(__name__)


class DirectGate:
    """Sources and tagging in the session's own thread.

    ``outbound_for`` makes the way out of a login name; it is asked once for each.
    """

    def __init__(
        self, chain: Chain, host_name: str, outbound_for: Callable[[str], Outbound]
    ) -> None:
        self.mechanisms = chain.mechanisms
        self.chain = chain
        self.host_name = host_name
        self._outbound_for = outbound_for
        self._lock = threading.Lock()
        self._outbounds: dict[str, Outbound] = {}

    def admit(self, session_id: str, peer: Peer) -> DirectPass:
        return DirectPass(self, session_id, peer)

    def outbound(self, login: str) -> Outbound:
        with self._lock:
            if login not in self._outbounds:
                self._outbounds[login] = self._outbound_for(login)
            return self._outbounds[login]


class DirectPass:
    """See gate.Pass."""

    def __init__(self, gate: DirectGate, session_id: str, peer: Peer) -> None:
        self._gate = gate
        self._id = session_id
        self._peer = peer
        self._challenge = b""
        self._login = ""

    def challenge(self) -> bytes:
        """``<RANDOM.SECONDS@HOST>``, as RFC 2195 has it."""
        text = f"<{secrets.token_hex(16)}.{int(time.time())}@{self._gate.host_name}>"
        self._challenge = text.encode()
        return self._challenge

    def verify(self, credentials: Credentials, mechanism: str) -> Verdict:
        if isinstance(credentials, CramMd5):
            challenge, self._challenge = self._challenge, b""
            if not challenge:
                return Verdict.REJECTED
            credentials = dataclasses.replace(credentials, challenge=challenge)
        outcome = self._gate.chain.check(credentials)
        level = logging.WARNING if outcome.verdict is Verdict.UNAVAILABLE else logging.INFO
        log.log(
            level,
            "s=%s auth %s user=%r ip=%s mechanism=%s source=%s",
            self._id,
            outcome.verdict.value,
            credentials.user,
            self._peer,
            mechanism,
            outcome.source,
        )
        if outcome.verdict is Verdict.ACCEPTED:
            self._login = credentials.user
        return outcome.verdict

    def submit(self, envelope: Envelope, content: Content) -> Reply:
        if not self._login:
            return replies.AUTH_REQUIRED
        return self._gate.outbound(self._login).submit(envelope, content, self._id)
