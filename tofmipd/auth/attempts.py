"""Sources whose attempts are made in processes of their own: PAM, checkpassword programs."""

from __future__ import annotations

import logging
from typing import Protocol

from tofmipd.auth.asking import Asking
from tofmipd.auth.credentials import Origin, Password, Verdict
from tofmipd.network import Deadline

log = logging.getLogger(__name__)


class Attempts(Protocol):
    """Whoever makes attempts: source number so and so is asked, within a limit of seconds.

    The words are for the log, "" for none.  Raises OSError when there is nobody to do it.
    """

    def __call__(
        self, source: int, credentials: Password, origin: Origin, timeout_seconds: float
    ) -> tuple[Verdict, str]: ...


class AttemptSource(Asking):
    """See Attempts.  ``label`` is the service or program, for the log."""

    def __init__(
        self,
        name: str,
        label: str,
        number: int,
        attempts: Attempts,
        timeout_seconds: float,
        at_once: int,
    ) -> None:
        super().__init__(timeout_seconds, at_once)
        self.name = name
        self._label = label
        self._number = number
        self._attempts = attempts

    def shown(self, origin: Origin) -> str:
        return f"{self.name} {self._label}"

    def ask(self, credentials: Password, origin: Origin, deadline: Deadline) -> Verdict:
        verdict, words = self._attempts(self._number, credentials, origin, deadline.left_seconds())
        if words:
            unavailable = verdict is Verdict.UNAVAILABLE
            log.log(
                logging.WARNING if unavailable else logging.INFO,
                "%s %s: user=%r %s",
                self.shown(origin),
                "unavailable" if unavailable else "says no",
                credentials.user,
                words,
            )
        return verdict
