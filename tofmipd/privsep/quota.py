"""Limits on what a login may send in a time (feature row BX-3).

Times slide: what counts for a limit by the hour is what was taken in the last 3600 seconds.  The
counts are in a file of SQLite's, which processes may share and which outlives them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import secrets
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tofmipd.dates import rfc5322_date
from tofmipd.errors import CONFIG, Fatal
from tofmipd.settings import Quotas, Rate
from tofmipd.smtp.reply import Reply

log = logging.getLogger(__name__)

_UNKNOWN = Reply(451, "3.0", ("Error: the limits cannot be looked up now, try again later",))

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sent (id INTEGER PRIMARY KEY, login TEXT NOT NULL,"
    " at REAL NOT NULL, recipients INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS sent_of_login ON sent (login, at, recipients)",
    "CREATE INDEX IF NOT EXISTS sent_at ON sent (at)",
)
_MESSAGES, _RECIPIENTS = "messages", "recipients"
_USED = {
    _MESSAGES: "SELECT count(*) FROM sent WHERE login = ? AND at > ?",
    _RECIPIENTS: "SELECT total(recipients) FROM sent WHERE login = ? AND at > ?",
}
_IN_ORDER = "SELECT at, recipients FROM sent WHERE login = ? AND at > ? ORDER BY at"
_WORDS = {"d": "day", "h": "hour", "m": "minute", "s": "second"}
_DAY_SECONDS = 86400

_PATIENCE_SECONDS = 5.0
_RETRY_SECONDS = 0.01
# What may be over before anybody has changed anything.
_PASSING = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
)
_PASSING_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class LimitsFileError(Exception):
    """The file of limits must not be used; ``str()`` says why."""


_TROUBLE = (sqlite3.Error, OSError, LimitsFileError)


@dataclass(frozen=True, slots=True)
class Exceeded:
    """The limit of ``what`` that a message would exceed, and that lasts longest.

    ``now`` and ``ends`` are in seconds since 1970; a message that can never pass has no end.
    """

    what: str
    rate: Rate
    asked: int
    now: float
    ends: float

    @property
    def wait_seconds(self) -> int:
        return math.ceil(self.ends - self.now)

    @property
    def reply(self) -> Reply:
        number, unit = self.rate.span
        to = "to " if self.what == _RECIPIENTS else ""
        may = f"You may send {to}{_counted(self.rate.most, self.what[:-1])}"
        may += f" in {_counted(number, _WORDS[unit])}"
        if self.ends == math.inf:
            return Reply(554, "7.1", (f"{may}: this message has {self.asked}",))
        date = rfc5322_date(math.ceil(self.ends))
        if self.wait_seconds <= _DAY_SECONDS:
            date = " ".join(date.split()[-2:])
        return Reply(452, "7.1", (f"{may}: try again in {self.wait_seconds} s, at {date}",))


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


class Quota:
    """Counts the messages of logins.  Safe for threads, and for processes that share the file.

    A place is taken before a message is passed on.  ``clock`` gives seconds since 1970; should it
    go back, what was sent later than now counts as sent now.  ``patience_seconds`` is how long to
    wait for others of this process, and for each lock of another.
    """

    def __init__(
        self,
        quotas: Quotas,
        clock: Callable[[], float] = time.time,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._path = quotas.file
        self._rates = [(_MESSAGES, rate) for rate in quotas.messages]
        self._rates += [(_RECIPIENTS, rate) for rate in quotas.recipients]
        self._longest = max(rate.seconds for _, rate in self._rates)
        self._clock = clock
        self._patience = patience_seconds
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        # Places to give back, the latest last; taken out under the lock.
        self._owed: list[int] = []

    def check(self) -> None:
        """Find out whether the file is of use; made if missing, and closed again.

        Raises Fatal, but not for what may pass: that is logged.
        """
        try:
            with self._writing():
                pass
        except _TROUBLE as error:
            if not _passes(error):
                text = f"{self._path}: limits cannot be kept here: {error}"
                raise Fatal(CONFIG, f"{text}; --limit-file names another file") from None
            log.error("the limits in %s cannot be used now: %s", self._path, error)
        finally:
            self.close()

    def close(self) -> None:
        """What comes later opens the file again."""
        with self._lock:
            self._close()

    def limited(
        self, login: str, recipients: int, session_id: str, pass_on: Callable[[], Reply]
    ) -> Reply:
        """What ``pass_on`` says, or if the login has sent enough, why it was not called."""
        try:
            place = self.take(login, recipients)
        except _TROUBLE as error:
            log.error("s=%s the limits in %s cannot be used: %s", session_id, self._path, error)
            return _UNKNOWN
        if isinstance(place, Exceeded):
            wait = "never" if place.ends == math.inf else place.wait_seconds
            text = f"{place.what}={place.rate} asked={place.asked} wait={wait}"
            log.warning("s=%s limited user=%r %s", session_id, login, text)
            return place.reply
        reply = None
        try:
            reply = pass_on()
        finally:
            if reply is None or not reply.positive:
                self._give_back(place, session_id)
        return reply

    def take(self, login: str, recipients: int) -> int | Exceeded:
        """A place for a message, or why there is none.

        Raises sqlite3.Error, OSError, LimitsFileError: then none is taken.
        """
        with self._writing() as database:
            now = self._clock()
            database.execute("DELETE FROM sent WHERE at <= ?", (now - self._longest,))
            database.execute("UPDATE sent SET at = ? WHERE at > ?", (now, now))
            exceeded = self._exceeded(database, login, recipients, now)
            if exceeded is not None:
                return exceeded
            # A number of its own: the file may be another one when the place is given back.
            place = secrets.randbits(62)
            row = (place, login, now, recipients)
            database.execute(
                "INSERT INTO sent (id, login, at, recipients) VALUES (?, ?, ?, ?)", row
            )
        return place

    def give_back(self, place: int) -> None:
        """The message was not sent.  If that cannot be noted now, it is done with the next one.

        Raises sqlite3.Error, OSError, LimitsFileError.
        """
        self._owed.append(place)
        with self._writing():
            pass

    def _give_back(self, place: int, session_id: str) -> None:
        try:
            self.give_back(place)
        except _TROUBLE as error:
            log.error("s=%s its place in %s is given back later: %s", session_id, self._path, error)

    def _exceeded(
        self, database: sqlite3.Connection, login: str, recipients: int, now: float
    ) -> Exceeded | None:
        found = []
        for what, rate in self._rates:
            asked = recipients if what == _RECIPIENTS else 1
            since = (login, now - rate.seconds)
            (used,) = database.execute(_USED[what], since).fetchone()
            too_many = used + asked - rate.most
            if asked > rate.most:
                found.append(Exceeded(what, rate, asked, now, math.inf))
            elif too_many > 0:
                rows = database.execute(_IN_ORDER, since)
                oldest = _freeing(rows, too_many, what)
                found.append(Exceeded(what, rate, asked, now, oldest + rate.seconds))
        return max(found, key=lambda exceeded: exceeded.ends, default=None)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The file while nobody else writes it; after trouble it is opened anew."""
        if not self._lock.acquire(timeout=self._patience):
            raise TimeoutError("others of this process take too long")
        try:
            database = self._connected()
            database.execute("BEGIN IMMEDIATE")
            owed = [(place,) for place in self._owed]
            database.executemany("DELETE FROM sent WHERE id = ?", owed)
            yield database
            database.execute("COMMIT")
            del self._owed[: len(owed)]
        except BaseException:
            self._close()
            raise
        finally:
            self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        """Opened again where the file has been replaced."""
        if self._database is not None and self._opened == _identity(self._path):
            return self._database
        self._close()
        _make(self._path)
        database = sqlite3.connect(
            self._path,
            timeout=self._patience,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _prepare(database, time.monotonic() + self._patience)
        except BaseException:
            database.close()
            raise
        self._database, self._opened = database, _identity(self._path)
        return database

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()


def _freeing(rows: Iterator[tuple[float, int]], too_many: float, what: str) -> float:
    """When that was sent whose end, after that of all before it, makes room enough."""
    for at, recipients in rows:
        too_many -= recipients if what == _RECIPIENTS else 1
        if too_many <= 0:
            return at
    raise AssertionError("more is counted than there is")


def _make(path: str) -> None:
    """Make the file, or look whether it may be used.

    SQLite follows links, and gives a new file more rights.  Opening one that is there could end
    the locks of this process on it.  Raises OSError, LimitsFileError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, flags, 0o600))
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise LimitsFileError("not a regular file")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise LimitsFileError("others can write it")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _prepare(database: sqlite3.Connection, deadline: float) -> None:
    """``deadline`` is one of time.monotonic().  Raises sqlite3.Error."""
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait for others who do this at the same time.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
    # A power cut may cost the last counts, never the file.
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        database.execute(statement)
    database.execute("COMMIT")


def _passes(error: Exception) -> bool:
    """Whether the trouble may be over by itself."""
    if isinstance(error, sqlite3.Error):
        # The lowest octet; the others tell more about it.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNO
