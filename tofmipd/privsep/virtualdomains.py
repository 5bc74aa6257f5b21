"""Virtual users: which account of the system a domain belongs to, and where a user's home is.

Source: TMDA reference, section 6.5 (options -S and -v), feature rows TO-83 to TO-85.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from tofmipd import programs
from tofmipd.auth.files import Opener, status_of

log = logging.getLogger(__name__)

_LIMIT_OCTETS = 16 << 20
_Stamp = tuple[int, int, int] | None


class NoHome(Exception):
    """A virtual user has no home; ``str()`` says why, for the log."""


@dataclass(frozen=True, slots=True)
class _Row:
    """``user`` is "" for all of a domain; ``domain`` begins with a dot for all below it."""

    user: str
    domain: str
    owner: str

    def fits(self, user: str, domain: str) -> bool:
        if self.domain.startswith("."):
            return domain.endswith(self.domain) and not self.user
        return domain == self.domain and self.user in ("", user)


class VirtualDomains:
    """qmail's virtualdomains: lines ``domain:owner``, ``.domain:owner``, ``user@domain:owner``.

    The first line that fits decides.  The file is read again when it has changed; if it cannot be
    read then, the old content stays in force.  ``opener`` is as for open().  Making one raises
    OSError.  Safe for threads.
    """

    def __init__(self, path: str, opener: Opener) -> None:
        self._path = path
        self._opener = opener
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._bad = self._stamp
        self._rows = self._read()

    def owner(self, login: str) -> str | None:
        """The account that the domain of a login belongs to, if it belongs to any."""
        user, _, domain = login.partition("@")
        if not (user and domain):
            return None
        return next((row.owner for row in self._current() if row.fits(user, domain)), None)

    def _current(self) -> tuple[_Row, ...]:
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                try:
                    self._rows = self._read()
                    self._stamp = stamp
                    log.info("virtual domains read again from %s", self._path)
                except OSError as error:
                    # Tried again at the next login, but told once.
                    if stamp != self._bad:
                        log.error(
                            "%s: unchanged in memory: %s", self._path, error.strerror or error
                        )
                    self._bad = stamp
            return self._rows

    def _look(self) -> _Stamp:
        try:
            status = status_of(self._path, self._opener)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _read(self) -> tuple[_Row, ...]:
        with open(self._path, "rb", opener=self._opener) as file:
            text = file.read(_LIMIT_OCTETS).decode("utf-8", "replace")
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            line = line.partition("#")[0].strip()
            if not line:
                continue
            place, colon, owner = line.rpartition(":")
            user, _, domain = place.lower().rpartition("@")
            if not (colon and owner.strip() and domain.strip()):
                log.warning("%s:%d: not domain:owner, the line is skipped", self._path, number)
                continue
            rows.append(_Row(user.strip(), domain.strip(), owner.strip()))
        return tuple(rows)


@dataclass(frozen=True, slots=True)
class HomeScript:
    """A program that gets a user and a domain as arguments and prints the user's home.

    ``path`` is the search path it gets; ``timeout`` is in seconds.
    """

    program: str
    path: str
    timeout: float

    def home(self, login: str, owner_home: str, local_address: str) -> str:
        """Ask for the home of a virtual user.  Raises NoHome."""
        user, _, domain = login.partition("@")
        environment = {"PATH": self.path, "HOME": owner_home, "TCPLOCALIP": local_address}
        try:
            outcome = programs.run([self.program, user, domain], environment, self.timeout)
        except (OSError, ValueError) as error:
            raise NoHome(f"{self.program} cannot be run: {error}") from None
        said = outcome.output.decode("utf-8", "surrogateescape").strip()
        if outcome.status is None:
            raise NoHome(f"{self.program} did not end within {self.timeout:g} s")
        if outcome.status != 0:
            raise NoHome(f"{self.program} ended with {outcome.status} for {login!r}: {said!r}")
        if len(outcome.output) >= programs.OUTPUT_LIMIT_OCTETS:
            raise NoHome(f"{self.program} printed too much for {login!r}")
        home = said.removeprefix("dir:").strip()
        if not home.startswith("/") or not home.isprintable():
            raise NoHome(f"{self.program} printed no home for {login!r}, but {said!r}")
        return home
