"""Several sources in the order in which they were given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tofmipd.auth.credentials import (
    NOWHERE,
    Certificate,
    Credentials,
    Origin,
    Password,
    Source,
    Verdict,
    is_login_name,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict and the name of the source that gave it, "none" if no source was asked."""

    verdict: Verdict
    source: str


class Chain:
    """The first source that accepts wins; else any unavailable one makes it UNAVAILABLE.

    ``certificates`` alone judges certificates, None for nobody.
    """

    def __init__(self, sources: Sequence[Source], certificates: Source | None = None) -> None:
        self._sources = tuple(sources)
        self._certificates = certificates

    @property
    def mechanisms(self) -> frozenset[str]:
        """Those that every source can serve, and that of certificates."""
        common = frozenset.intersection(*(source.mechanisms for source in self._sources))
        return common | (self._certificates.mechanisms if self._certificates else frozenset())

    def check(self, credentials: Credentials, origin: Origin = NOWHERE) -> Outcome:
        """Ask the sources.  Nobody is asked about a bad name or an empty password, which some
        servers would accept (RFC 4513 section 5.1.2)."""
        if not is_login_name(credentials.user):
            return Outcome(Verdict.REJECTED, "none")
        if isinstance(credentials, Password) and not credentials.password:
            return Outcome(Verdict.REJECTED, "none")
        sources = self._sources
        if isinstance(credentials, Certificate):
            sources = (self._certificates,) if self._certificates else ()
        outcome = Outcome(Verdict.REJECTED, "none")
        for source in sources:
            verdict = source.check(credentials, origin)
            if verdict is Verdict.ACCEPTED:
                return Outcome(verdict, source.name)
            if outcome.verdict is not Verdict.UNAVAILABLE:
                outcome = Outcome(verdict, source.name)
        return outcome
