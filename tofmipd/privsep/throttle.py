"""The throttle script: may this login send another message now (feature row TO-82)?"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tofmipd import programs
from tofmipd.smtp.reply import Reply, printable

log = logging.getLogger(__name__)

_EXCEEDED = Reply(450, "7.1", ("Outgoing mail quota exceeded",))
_UNKNOWN = Reply(451, "3.0", ("Error: the quota cannot be looked up now, try again later",))


@dataclass(frozen=True, slots=True)
class Throttle:
    """A program that gets the login name as its only argument; status 0 lets the message pass.

    ``path`` is the search path it gets; ``timeout`` is in seconds.
    """

    program: str
    path: str
    timeout: float

    def refusal(self, login: str, session_id: str) -> Reply | None:
        """What the client hears instead, or None if the message may pass."""
        environment = {"PATH": self.path, "HOME": "/", "LOGIN": login}
        try:
            outcome = programs.run([self.program, login], environment, self.timeout)
        except (OSError, ValueError) as error:
            log.error("s=%s throttle script %s cannot be run: %s", session_id, self.program, error)
            return _UNKNOWN
        if outcome.status == 0:
            return None
        said = printable(outcome.output.decode("utf-8", "replace").strip())
        if outcome.status is None:
            log.error("s=%s throttle script does not end in %g s", session_id, self.timeout)
            return _UNKNOWN
        log.warning(
            "s=%s throttled user=%r status=%d said=%r", session_id, login, outcome.status, said
        )
        return _EXCEEDED
