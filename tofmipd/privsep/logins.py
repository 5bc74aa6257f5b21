"""A login is judged: the chain of sources is asked, an identity is found, the log is told."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import Credentials, Origin, Verdict
from tofmipd.privsep.accounts import NoAccount
from tofmipd.privsep.identity import Identity

log = logging.getLogger(__name__)


class Logins:
    """``identity_of`` says whom a login name stands for, and raises NoAccount for nobody."""

    def __init__(
        self, chain: Chain, host_name: str, identity_of: Callable[[str], Identity]
    ) -> None:
        self.mechanisms = chain.mechanisms
        self._chain = chain
        self._host_name = host_name
        self._identity_of = identity_of

    def challenge(self) -> bytes:
        """``<RANDOM.SECONDS@HOST>``, as RFC 2195 has it."""
        return f"<{secrets.token_hex(16)}.{int(time.time())}@{self._host_name}>".encode()

    def judge(
        self, session_id: str, mechanism: str, credentials: Credentials, origin: Origin
    ) -> tuple[Verdict, Identity | None]:
        """The verdict, and for an accepted login whom it stands for."""
        outcome = self._chain.check(credentials, origin)
        verdict, why, identity = outcome.verdict, "", None
        if verdict is Verdict.ACCEPTED:
            try:
                identity = self._identity_of(credentials.user)
            except NoAccount as error:
                verdict, why = Verdict.REJECTED, f" reason: {error}"
        usual = verdict is not Verdict.UNAVAILABLE and not why
        log.log(
            logging.INFO if usual else logging.WARNING,
            "s=%s auth %s user=%r ip=%s mechanism=%s source=%s%s",
            session_id,
            verdict.value,
            credentials.user,
            origin.address or "unknown",
            mechanism,
            outcome.source,
            why,
        )
        return verdict, identity
