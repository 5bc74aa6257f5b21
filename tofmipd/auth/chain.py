"""Several sources in the order in which they were given."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from tofmipd.auth.credentials import (
    MALFORMED,
    NOWHERE,
    Certificate,
    Credentials,
    KnowsVerifiers,
    Origin,
    Password,
    Scram,
    Source,
    Verdict,
    is_login_name,
)
from tofmipd.auth.saslprep import login_name
from tofmipd.auth.scram import PLUS, BadMessage, ClientFirst, Exchange


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict and the name of the source that gave it, "none" if no source was asked.

    ``reason`` is one word for the log; ``answer`` is for the client with its success.
    """

    verdict: Verdict
    source: str
    reason: str = ""
    answer: bytes = field(default=b"", repr=False)


_REASONS = {
    Verdict.ACCEPTED: "ok",
    Verdict.REJECTED: "password",
    Verdict.UNAVAILABLE: "source",
}


def _outcome(verdict: Verdict, source: str, answer: bytes = b"") -> Outcome:
    return Outcome(verdict, source, _REASONS[verdict], answer)


class Chain:
    """The first source that accepts wins; else any unavailable one makes it UNAVAILABLE.

    ``certificates`` alone judges certificates, None for nobody.
    """

    def __init__(self, sources: Sequence[Source], certificates: Source | None = None) -> None:
        self._sources = tuple(sources)
        self._certificates = certificates

    @property
    def mechanisms(self) -> frozenset[str]:
        """Those that every source can serve now, and that of certificates."""
        common = frozenset.intersection(*(source.mechanisms for source in self._sources))
        return common | (self._certificates.mechanisms if self._certificates else frozenset())

    def exchange(self, mechanism: str, opening: bytes) -> Exchange | None:
        """Begin SCRAM with the client's first message; None for a malformed one.

        The first source that knows the user has his verifier.
        """
        try:
            first = ClientFirst.parse(opening)
            user = login_name(first.user)
        except (BadMessage, UnicodeDecodeError):
            return None
        made_up = None
        for source in self._sources:
            if not isinstance(source, KnowsVerifiers):
                continue
            verifier, known = source.verifier(user, mechanism.removesuffix(PLUS))
            known &= is_login_name(user)
            if known or made_up is None:
                nonce = secrets.token_urlsafe(24).encode()
                found = Exchange(first, verifier, nonce, source.name, known=known)
                if known:
                    return found
                made_up = found
        return made_up

    def check(self, credentials: Credentials, origin: Origin = NOWHERE) -> Outcome:
        """Ask the sources.  Nobody is asked about a bad name or an empty password, which some
        servers would accept (RFC 4513 section 5.1.2)."""
        if credentials == MALFORMED or _holds_nul(credentials):
            return Outcome(Verdict.REJECTED, "none", "malformed")
        if not is_login_name(credentials.user):
            return Outcome(Verdict.REJECTED, "none", "name")
        if isinstance(credentials, Password) and not credentials.password:
            return Outcome(Verdict.REJECTED, "none", "empty")
        if isinstance(credentials, Scram):
            return _finish(credentials)
        sources = self._sources
        if isinstance(credentials, Certificate):
            sources = (self._certificates,) if self._certificates else ()
        outcome = _outcome(Verdict.REJECTED, "none")
        for source in sources:
            verdict = source.check(credentials, origin)
            if verdict is Verdict.ACCEPTED:
                return _outcome(verdict, source.name)
            if outcome.verdict is not Verdict.UNAVAILABLE:
                outcome = _outcome(verdict, source.name)
        return outcome


def _holds_nul(credentials: Credentials) -> bool:
    """No mechanism allows it (RFC 4616 section 2), and HMAC does not see one at the end."""
    return isinstance(credentials, Password) and b"\0" in credentials.password


def _finish(credentials: Scram) -> Outcome:
    exchange = credentials.exchange
    if exchange is None:
        return Outcome(Verdict.REJECTED, "none", "challenge")
    answer = exchange.finish(credentials.final, credentials.binding)
    if answer is None:
        return _outcome(Verdict.REJECTED, exchange.source)
    return _outcome(Verdict.ACCEPTED, exchange.source, answer)
