"""A login is judged: the chain of sources is asked, an identity is found, the log is told."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from tofmipd.auth.chain import Chain, Outcome
from tofmipd.auth.credentials import (
    NAME_LIMIT,
    CramMd5,
    Credentials,
    Judgement,
    Origin,
    Password,
    Scram,
    Verdict,
)
from tofmipd.auth.limiter import Limiter
from tofmipd.auth.scram import HASHES, PLUS, Exchange
from tofmipd.privsep.accounts import NoAccount
from tofmipd.privsep.identity import Identity
from tofmipd.settings import Limits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What was sent to a client, and what its answer will be checked with; good for one answer."""

    text: bytes
    exchange: Exchange | None = None


class Logins:
    """``identity_of`` says whom a login name stands for, and raises NoAccount for nobody."""

    def __init__(
        self,
        chain: Chain,
        host_name: str,
        identity_of: Callable[[str], Identity],
        limits: Limits,
    ) -> None:
        self._chain = chain
        self._host_name = host_name
        self._identity_of = identity_of
        self._limiter = Limiter(
            limits.auth_failures_per_address, limits.failure_delay, secrets.token_bytes(16)
        )

    @property
    def mechanisms(self) -> frozenset[str]:
        """Those that every source can serve now."""
        return self._chain.mechanisms

    def challenge(self, mechanism: str, opening: bytes) -> Challenge | None:
        """``<RANDOM.SECONDS@HOST>``, as RFC 2195 has it, or the server's first message of SCRAM.

        None if there can be none.
        """
        if mechanism.removesuffix(PLUS) in HASHES:
            exchange = self._chain.exchange(mechanism, opening)
            return None if exchange is None else Challenge(exchange.challenge, exchange)
        unique = f"{secrets.token_hex(16)}.{int(time.time())}"
        return Challenge(f"<{unique}@{self._host_name}>".encode())

    def judge(
        self,
        session_id: str,
        mechanism: str,
        credentials: Credentials,
        origin: Origin,
        challenge: Challenge | None = None,
    ) -> tuple[Judgement, Identity | None]:
        """The verdict, and for an accepted login whom it stands for.

        ``challenge`` is what the credentials answer, for mechanisms that have one.
        """
        place, user = origin.address, credentials.user
        wait = self._limiter.ask(place, user, time.monotonic())
        if wait > 0:
            outcome = Outcome(Verdict.REJECTED, "none", "too-many-failures")
            self._tell(session_id, mechanism, user, origin, outcome)
            return Judgement(Verdict.REJECTED, wait=wait), None
        outcome, identity = Outcome(Verdict.UNAVAILABLE, "none", "internal"), None
        delay = 0.0
        try:
            outcome = self._outcome(credentials, origin, challenge)
            if outcome.verdict is Verdict.ACCEPTED:
                try:
                    identity = self._identity_of(user)
                except NoAccount as error:
                    log.warning("s=%s user=%r may not log in: %s", session_id, user, error)
                    outcome = Outcome(Verdict.REJECTED, outcome.source, "account")
        finally:
            mark = b""
            if isinstance(credentials, Password) and credentials.password:
                mark = self._limiter.mark(credentials.password)
            delay = self._limiter.tell(place, user, outcome.verdict, mark, time.monotonic())
            self._tell(session_id, mechanism, user, origin, outcome)
        return Judgement(outcome.verdict, outcome.answer, delay), identity

    def _outcome(
        self, credentials: Credentials, origin: Origin, challenge: Challenge | None
    ) -> Outcome:
        if isinstance(credentials, CramMd5 | Scram):
            if challenge is None:
                return Outcome(Verdict.UNAVAILABLE, "none", "challenge")
            if isinstance(credentials, Scram):
                credentials = dataclasses.replace(credentials, exchange=challenge.exchange)
            else:
                credentials = dataclasses.replace(credentials, challenge=challenge.text)
        return self._chain.check(credentials, origin)

    def _tell(
        self, session_id: str, mechanism: str, user: str, origin: Origin, outcome: Outcome
    ) -> None:
        """The form of this line is fixed: programs such as fail2ban read it (row BX-5).

        What a client can choose comes last.
        """
        log.log(
            logging.WARNING if outcome.verdict is Verdict.UNAVAILABLE else logging.INFO,
            "s=%s auth %s ip=%s mechanism=%s source=%s reason=%s user=%r",
            session_id,
            outcome.verdict.value,
            origin.address or "unknown",
            mechanism,
            outcome.source,
            outcome.reason,
            user[:NAME_LIMIT],
        )
