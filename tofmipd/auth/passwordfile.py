"""The password file: ``user:password`` lines (feature rows TO-45 to TO-47)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import threading

from tofmipd.auth.credentials import NOWHERE, CramMd5, Credentials, Origin, Password, Verdict
from tofmipd.auth.files import Opener, SourceFileError, status_of, without_waiting

log = logging.getLogger(__name__)

_MODES = (0o400, 0o600)
_LIMIT_OCTETS = 64 << 20


class PasswordFileError(SourceFileError):
    """The file cannot be used; ``str()`` says what was found, what is wanted and what mends it."""


class PasswordFile:
    """Judges logins by a file of clear passwords.

    Raises PasswordFileError when made.  The file is read again when it has changed; if it is
    wrong then, the old content stays in force and the log says why.  ``owner`` is the uid that
    the file must belong to; ``opener`` is as for open(), if this process may not read the file.
    """

    name = "file"
    mechanisms = frozenset({"PLAIN", "LOGIN", "CRAM-MD5"})

    def __init__(self, path: str, owner: int, opener: Opener = without_waiting) -> None:
        self._path = path
        self._owner = owner
        self._opener = opener
        self._lock = threading.Lock()
        # What an unknown user is compared with, so that the answer takes the same time.
        self._nobody = secrets.token_bytes(16)
        self._stamp = self._look()
        self._bad = self._stamp
        self._passwords = read_passwords(path, owner, opener)

    def check(self, credentials: Credentials, origin: Origin = NOWHERE) -> Verdict:
        password = self._current().get(credentials.user)
        known = bool(password)
        password = password or self._nobody
        if isinstance(credentials, Password):
            good = hmac.compare_digest(
                hashlib.sha256(credentials.password).digest(), hashlib.sha256(password).digest()
            )
        elif isinstance(credentials, CramMd5):
            digest = hmac.digest(password, credentials.challenge, "md5").hex().encode()
            good = hmac.compare_digest(credentials.digest, digest)
        else:
            good = False
        return Verdict.ACCEPTED if good and known else Verdict.REJECTED

    def _look(self) -> tuple[int, ...] | None:
        try:
            status = status_of(self._path, self._opener)
        except OSError:
            return None
        return (
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_mode,
            status.st_uid,
        )

    def _current(self) -> dict[str, bytes]:
        stamp = self._look()
        if stamp == self._stamp:
            return self._passwords
        with self._lock:
            if stamp != self._stamp:
                try:
                    self._passwords = read_passwords(self._path, self._owner, self._opener)
                    self._stamp = stamp
                    log.info("password file %s read again", self._path)
                except PasswordFileError as error:
                    # Asked again at the next login: perhaps it could not be opened just now.
                    if stamp != self._bad:
                        log.error("password file unchanged in memory: %s", error)
                    self._bad = stamp
            return self._passwords


def read_passwords(path: str, owner: int, opener: Opener = without_waiting) -> dict[str, bytes]:
    """User names in lower case and their passwords.  Raises PasswordFileError."""
    try:
        with open(path, "rb", opener=opener) as file:
            _check_status(path, os.fstat(file.fileno()), owner)
            text = file.read(_LIMIT_OCTETS)
    except FileNotFoundError:
        raise PasswordFileError(
            f"{path}: no such password file; make one ('tofmipd init' does for yourself;"
            " lines user:password, mode 0600), or name another with -a"
        ) from None
    except OSError as error:
        raise PasswordFileError(
            f"{path}: cannot be read ({error.strerror}), must be readable by uid {owner}"
            f" (chown {owner} {path}; chmod 600 {path})"
        ) from None
    return _parse(path, text)


def _check_status(path: str, status: os.stat_result, owner: int) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise PasswordFileError(f"{path}: not a regular file, but a password file must be one")
    if status.st_uid != owner:
        raise PasswordFileError(
            f"{path}: owned by uid {status.st_uid}, must be owned by uid {owner}"
            f" (chown {owner} {path})"
        )
    if mode not in _MODES:
        raise PasswordFileError(f"{path}: mode {mode:04o}, must be 0600 or 0400 (chmod 600 {path})")


def _parse(path: str, text: bytes) -> dict[str, bytes]:
    """The last of several lines for one user counts."""
    passwords = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        user, colon, password = line.partition(b":")
        if not colon:
            raise PasswordFileError(
                f"{path}:{number}: no colon in the line, must be user:password"
                f" (edit line {number} of {path})"
            )
        name = user.strip().decode("utf-8", "replace").lower()
        passwords[name] = password.strip()
    return passwords
