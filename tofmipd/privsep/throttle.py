"""May this login send another message now?  The limits (row BX-3) and the throttle script (row
TO-82) say."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tofmipd import programs
from tofmipd.smtp.reply import Reply, printable

if TYPE_CHECKING:
    from tofmipd.privsep.quota import Quota

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


def within_limits(
    quota: Quota | None,
    throttle: Throttle | None,
    login: str,
    recipients: int,
    session_id: str,
    pass_on: Callable[[], Reply],
) -> Reply:
    """What ``pass_on`` says, or whoever does not let the message pass.

    What the script refuses does not count for the limits.
    """

    def ask_script() -> Reply:
        refusal = throttle.refusal(login, session_id) if throttle is not None else None
        return pass_on() if refusal is None else refusal

    if quota is None:
        return ask_script()
    return quota.limited(login, recipients, session_id, ask_script)
