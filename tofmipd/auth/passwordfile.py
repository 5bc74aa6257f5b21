"""The password file: ``user:password`` lines (feature rows TO-45 to TO-47, BX-23)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import threading
from collections.abc import Mapping

from tofmipd.auth import scram
from tofmipd.auth.credentials import NOWHERE, CramMd5, Credentials, Origin, Password, Verdict
from tofmipd.auth.files import Opener, SourceFileError, status_of, without_waiting
from tofmipd.auth.hashes import AT_ONCE, Clear, Scram, Secret, parse_secret
from tofmipd.auth.saslprep import login_name, prepared_password

log = logging.getLogger(__name__)

_MODES = (0o400, 0o600)
_LIMIT_OCTETS = 64 << 20
_SIZES = {name: hashlib.new(name).digest_size for name in scram.HASHES.values()}


class PasswordFileError(SourceFileError):
    """The file cannot be used; ``str()`` says what was found, what is wanted and what mends it.

    ``faults`` are all that are wrong, the first one included.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__(faults[0])
        self.faults = faults


class Table:
    """The content of a password file: names in lower case, and what stands for a password.

    ``key`` is secret and lasts: what it makes up for a name stays the same.
    """

    def __init__(self, secrets_by_name: Mapping[str, Secret], key: bytes) -> None:
        self._secrets = dict(secrets_by_name)
        self._list = tuple(self._secrets.values())
        self._key = key
        self._nobody = Clear(key, key)
        self._verifiers: dict[tuple[str, str], scram.LaterVerifier] = {}
        every = (secret.mechanisms for secret in self._list)
        self.mechanisms = frozenset.intersection(Clear(b"", b"").mechanisms, *every)

    def __len__(self) -> int:
        return len(self._secrets)

    def find(self, user: str) -> tuple[Secret, bool]:
        """What stands for the user's password, and whether there is such a user.

        For nobody it is the secret of somebody, always the same one for a name: so the time that
        a refusal takes, or the number of iterations, tells nothing about the name.
        """
        secret = self._secrets.get(user)
        if secret is not None and not (isinstance(secret, Clear) and not secret.password):
            return secret, True
        if not self._list:
            return self._nobody, False
        return self._list[int.from_bytes(self._made_up(user, b"who")[:8]) % len(self._list)], False

    def verifier(self, user: str, mechanism: str) -> tuple[scram.Keys, bool]:
        """For SCRAM, and whether there is such a user.

        A clear password has no salt: one is made up of the name, and that stays.
        """
        secret, known = self.find(user)
        name = scram.HASHES[mechanism]
        salt = self._made_up(user, mechanism.encode())[: scram.SALT_OCTETS]
        if not known:
            iterations = scram.LEAST_ITERATIONS
            if isinstance(secret, Scram):
                iterations = secret.verifier.iterations
                salt = self._made_up(user, mechanism.encode(), len(secret.verifier.salt))
            wrong = self._made_up(user, b"wrong")
            return scram.Verifier(name, salt, iterations, wrong[: _SIZES[name]], wrong), False
        if isinstance(secret, Scram) and secret.verifier.hash_name == name:
            return secret.verifier, True
        if not isinstance(secret, Clear):
            return scram.Verifier(name, salt, scram.LEAST_ITERATIONS, self._key, self._key), False
        made = self._verifiers.get((user, name))
        if made is None:
            made = scram.LaterVerifier(secret.password, salt, scram.LEAST_ITERATIONS, name)
            self._verifiers[user, name] = made
        return made, True

    def _made_up(self, user: str, purpose: bytes, octets: int = 32) -> bytes:
        seed = hmac.digest(self._key, purpose + b"\0" + user.encode("utf-8", "replace"), "sha256")
        return hashlib.shake_256(seed).digest(octets)


class PasswordFile:
    """Judges logins by a file of passwords, clear or hashed (see auth.hashes).

    Raises PasswordFileError when made.  The file is read again when it has changed; if it is
    wrong then, the old content stays in force and the log says why.  ``owner`` is the uid that
    the file must belong to; ``opener`` is as for open(), if this process may not read the file.
    """

    name = "file"

    def __init__(
        self,
        path: str,
        owner: int,
        opener: Opener = without_waiting,
        timeout_seconds: float = 10,
    ) -> None:
        self._path = path
        self._owner = owner
        self._opener = opener
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._key = _lasting_key(path)
        # Whose hashed password was right last, by a key of this process: to hash it anew for each
        # session of a client that sends many would take most of a CPU.
        self._passing_key = secrets.token_bytes(32)
        self._passed: dict[str, tuple[Secret, bytes]] = {}
        self._stamp = self._look()
        self._bad = self._stamp
        self._table = Table(read_passwords(path, owner, opener), self._key)

    @property
    def mechanisms(self) -> frozenset[str]:
        """Those that every entry of the file can serve, as it is now."""
        return self._current().mechanisms

    def check(self, credentials: Credentials, origin: Origin = NOWHERE) -> Verdict:
        secret, known = self._current().find(credentials.user)
        if isinstance(credentials, Password):
            return self._check_password(credentials, secret, known=known)
        good = False
        if isinstance(credentials, CramMd5):
            clear = secret if isinstance(secret, Clear) else Clear(self._key, self._key)
            for password in {clear.password, clear.written}:
                digest = hmac.digest(password, credentials.challenge, "md5").hex().encode()
                good |= hmac.compare_digest(credentials.digest, digest)
            known &= secret is clear
        return Verdict.ACCEPTED if good and known else Verdict.REJECTED

    def verifier(self, user: str, mechanism: str) -> tuple[scram.Keys, bool]:
        """What SCRAM needs of the user, and whether there is such a user."""
        return self._current().verifier(user, mechanism)

    def _check_password(self, credentials: Password, secret: Secret, *, known: bool) -> Verdict:
        password = prepared_password(credentials.password)
        if not secret.costly:
            return Verdict.ACCEPTED if secret.matches(password) and known else Verdict.REJECTED
        mark = hmac.digest(self._passing_key, password, "sha256")
        before, passed = self._passed.get(credentials.user, (None, b""))
        if known and before is secret and hmac.compare_digest(passed, mark):
            return Verdict.ACCEPTED
        if not AT_ONCE.acquire(timeout=self._timeout_seconds):
            log.warning("password file %s unavailable: too many logins at a time", self._path)
            return Verdict.UNAVAILABLE
        try:
            good = secret.matches(password)
            if not good and password != credentials.password:
                # Who hashed it may not have prepared it first.
                good = secret.matches(credentials.password)
        except MemoryError:
            log.warning("password file %s unavailable: no memory for a hash", self._path)
            return Verdict.UNAVAILABLE
        finally:
            AT_ONCE.release()
        if good and known:
            self._passed[credentials.user] = secret, mark
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

    def _current(self) -> Table:
        stamp = self._look()
        if stamp == self._stamp:
            return self._table
        with self._lock:
            if stamp != self._stamp:
                try:
                    found = read_passwords(self._path, self._owner, self._opener)
                    self._table = Table(found, self._key)
                    self._stamp = stamp
                    self._passed = {}
                    log.info("password file %s read again", self._path)
                except PasswordFileError as error:
                    # Asked again at the next login: perhaps it could not be opened just now.
                    if stamp != self._bad:
                        log.error("password file unchanged in memory: %s", error)
                    self._bad = stamp
            return self._table


def read_passwords(path: str, owner: int, opener: Opener = without_waiting) -> dict[str, Secret]:
    """User names as they are looked up, and what stands for their passwords.

    Raises PasswordFileError.
    """
    try:
        with open(path, "rb", opener=opener) as file:
            _check_status(path, os.fstat(file.fileno()), owner)
            text = file.read(_LIMIT_OCTETS)
    except FileNotFoundError:
        raise PasswordFileError(
            f"{path}: no such password file; 'tofmipd user add NAME' makes one, and 'tofmipd init'"
            " for yourself (lines user:password, mode 0600); -a names another"
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


def _parse(path: str, text: bytes) -> dict[str, Secret]:
    """The last of several lines for one user counts."""
    found: dict[str, Secret] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = split_line(line)
        if entry is None:
            continue
        user, password = entry
        if password is None:
            faults.append(
                f"{path}:{number}: no colon in the line, must be user:password"
                f" (edit line {number} of {path})"
            )
            continue
        try:
            found[name_in_file(user)] = parse_secret(password)
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}")
    if faults:
        raise PasswordFileError(*faults)
    return found


def split_line(line: bytes) -> tuple[bytes, bytes | None] | None:
    """Name and password of a line, None for a comment or nothing; without a colon there is no
    password."""
    line = line.strip()
    if not line or line.startswith(b"#"):
        return None
    user, colon, password = line.partition(b":")
    return user.strip(), password.strip() if colon else None


def name_in_file(user: bytes) -> str:
    """The name of a line as it is looked up."""
    try:
        return login_name(user)
    except UnicodeDecodeError:
        return user.decode("utf-8", "replace").lower()


def _lasting_key(path: str) -> bytes:
    """Secret for whoever has no account on this machine, and the same after a restart."""
    try:
        with open("/etc/machine-id", "rb") as file:
            machine = file.read(64).strip()
    except OSError:
        machine = b""
    if not machine:
        return secrets.token_bytes(32)
    return hmac.digest(machine, b"tofmipd " + os.fsencode(path), "sha256")
