"""Whose addresses a login may use as sender: its own (feature rows BX-1, BX-2).

Asked before anything is tagged.  Every tagged or sub-addressed form of an address counts as that
address.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tofmipd.auth.files import without_waiting
from tofmipd.auth.saslprep import login_name
from tofmipd.privsep import authors
from tofmipd.settings import SenderCheck
from tofmipd.smtp.reply import Reply, printable
from tofmipd.tmda.header import Field
from tofmipd.tmda.pattern import PatternSet

log = logging.getLogger(__name__)

_LIMIT_OCTETS = 4 << 20
# For so long it is remembered whether there is an account of a name.
_ACCOUNT_SECONDS = 60
_ACCOUNTS_LIMIT = 10_000
# Forms of one address that are looked at, by the number of delimiters in it.
_FORMS_LIMIT = 32
# Of all that names an author: nobody needs more, and each address may be asked for.
_AUTHORS_LIMIT_OCTETS = 10_000
_SHOWN_CHARACTERS = 120
# An address literal may be this host as well; so may one without its brackets.
_LITERAL = re.compile(r"\[.*|[0-9.]+", re.DOTALL)

_CANNOT_TELL = Reply(451, "3.5", ("Error: the list of senders cannot be read, the log has more",))


class SendersError(Exception):
    """The file of senders cannot be used; ``str()`` says why, and what to do."""


class SendersFile:
    """``USER: PATTERN, PATTERN ...`` lines; patterns are those of filters.  Safe for threads.

    Read again when it has changed; a missing one is empty.  It must belong to root, or to
    ``owner``, and nobody else may be able to write it.
    """

    def __init__(self, path: str, owner: int = 0) -> None:
        self._path = path
        self._owner = owner
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._patterns: dict[str, PatternSet] = {}

    def find(self, login: str) -> PatternSet | None:
        """The patterns of a user.  Raises SendersError."""
        if not self._path:
            return None
        with self._lock:
            try:
                with open(self._path, "rb", opener=without_waiting) as file:
                    status = os.fstat(file.fileno())
                    stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                    if stamp != self._stamp:
                        self._check(status)
                        self._patterns = parse_senders(self._path, file.read(_LIMIT_OCTETS))
                        self._stamp = stamp
            except FileNotFoundError:
                self._stamp, self._patterns = None, {}
            except OSError as error:
                raise SendersError(
                    f"{self._path}: cannot be read ({error.strerror}); workers read it as the"
                    f" user who sends (chmod 644 {self._path})"
                ) from None
            return self._patterns.get(login)

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise SendersError(f"{self._path}: not a regular file")
        if status.st_size > _LIMIT_OCTETS:
            raise SendersError(f"{self._path}: more than {_LIMIT_OCTETS} octets")
        if status.st_uid not in (0, self._owner) or status.st_mode & 0o022:
            raise SendersError(
                f"{self._path}: others can write it (chown root {self._path}; chmod 644"
                f" {self._path})"
            )


def parse_senders(path: str, text: bytes) -> dict[str, PatternSet]:
    """Patterns by user; several lines of one user add up.  Bad lines are logged and skipped."""
    found: dict[str, list[bytes]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if not content or content.startswith(b"#"):
            continue
        user, colon, rest = content.partition(b":")
        patterns = [word for word in re.split(rb"[,\s]+", rest) if word]
        try:
            name = login_name(user.strip())
        except UnicodeDecodeError:
            name = ""
        if not (colon and name and patterns):
            log.warning("%s:%d: line skipped: not USER: ADDRESS, ADDRESS", path, number)
            continue
        found.setdefault(name, []).extend(patterns)
    return {name: PatternSet(patterns) for name, patterns in found.items()}


class Accounts:
    """Which names are accounts of this system, those from ``min_uid`` on people's.  Safe for
    threads."""

    def __init__(self, min_uid: int = 0) -> None:
        self._min_uid = min_uid
        self._lock = threading.Lock()
        # When it was asked for, and the uid.
        self._known: dict[str, tuple[float, int | None]] = {}

    def exists(self, name: str) -> bool:
        return self._uid(name) is not None

    def is_person(self, name: str) -> bool:
        uid = self._uid(name)
        return uid is not None and uid >= self._min_uid

    def _uid(self, name: str) -> int | None:
        now = time.monotonic()
        with self._lock:
            asked, uid = self._known.get(name, (0.0, None))
            if asked and now - asked < _ACCOUNT_SECONDS:
                return uid
        try:
            uid = pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError, UnicodeEncodeError):
            uid = None
        with self._lock:
            if len(self._known) >= _ACCOUNTS_LIMIT:
                self._known.clear()
            self._known[name] = now, uid
        return uid


@dataclass(frozen=True, slots=True)
class SenderRules:
    """What is the same for all users of a process.

    ``own_names`` are names that all of them go by, beside that of their login.
    """

    check: SenderCheck
    file: SendersFile
    exists: Callable[[str], bool]
    own_names: tuple[str, ...] = ()
    # Whether a name without an extension is that of somebody who may have one: the system has an
    # account "news", but news-letter need not be its address.
    is_person: Callable[[str], bool] | None = None

    @classmethod
    def of(
        cls,
        check: SenderCheck,
        min_uid: int,
        owner: int = 0,
        own_names: tuple[str, ...] = (),
    ) -> SenderRules:
        """``min_uid`` is where people's accounts begin; ``owner`` a uid that the file may belong
        to beside root."""
        check = check._replace(domains=tuple(map(authors.domain_name, check.domains)))
        accounts = Accounts(min_uid)
        file = SendersFile(check.senders, owner)
        return cls(check, file, accounts.exists, own_names, accounts.is_person)

    def refusal(
        self, login: str, sender: str, fields: Sequence[Field], delimiter: str, session_id: str
    ) -> Reply | None:
        """Why the envelope sender or From may not be used by this login, None if they may.

        ``delimiter`` is the user's own; others' addresses may have "-" or "+".  The null
        reverse-path is nobody's.  A message that is being resent has two kinds of From.
        """
        mode = self.check.mode
        if mode == "off":
            return None
        values = authors.values(fields)
        if sum(map(len, values)) > _AUTHORS_LIMIT_OCTETS:
            text = f"From is longer than {_AUTHORS_LIMIT_OCTETS} octets (sender-check={mode})"
            log.warning("s=%s refused: user=%r %s", session_id, login, text)
            return Reply(553, "7.1", (text,))
        rules = dict.fromkeys([sender] if sender else [], mode)
        for value in values:
            rules |= dict.fromkeys(authors.addresses(value), mode)
        for value in values:
            for address in authors.lookalikes(value):
                rules.setdefault(address, "others")
        for address, rule in rules.items():
            try:
                why = self._why_not(login, address, delimiter, rule)
            except SendersError as error:
                log.error("s=%s deferred: %s", session_id, error)
                return _CANNOT_TELL
            if why:
                shown = printable(address, _SHOWN_CHARACTERS)
                text = f"<{shown}> {why} (sender-check={mode})"
                log.warning("s=%s refused: user=%r %s", session_id, login, text)
                return Reply(553, "7.1", (text,))
        return None

    def _why_not(self, login: str, address: str, delimiter: str, rule: str) -> str:
        """ "" for an address that the login may use.  Raises SendersError."""
        local, domain = authors.parts(address)
        if not domain and self.check.domains:
            domain = self.check.domains[0]
        forms = list(_forms(local, delimiter.lower()))
        owner = self._owner(login, forms, domain)
        if owner == login or (rule == "others" and not owner):
            return ""
        patterns = self.file.find(login)
        if patterns is not None and any(
            patterns.first(f"{form}@{domain}".encode("utf-8", "replace")) is not None
            for form in forms
        ):
            return ""
        return "is the address of another account" if owner else "is not an address of yours"

    def _owner(self, login: str, forms: Sequence[str], domain: str) -> str:
        """Whose an address is: ``login``, another account, or "" for nobody's.

        The longest form that is somebody's counts: an account may have a delimiter in its name.
        """
        domain = authors.domain_name(domain)
        name, at, own_domain = login.partition("@")
        if at and domain == authors.domain_name(own_domain):
            # Which others a virtual domain has is not known here: all that is not his.
            return login if name in forms else forms[0]
        if domain not in self.check.domains and not _LITERAL.fullmatch(domain):
            return ""
        exists = self.exists
        for form in forms:
            if form == login or form in self.own_names:
                return login
            if exists(form):
                return form
            exists = self.is_person or self.exists
        return ""


def _forms(local: str, delimiter: str) -> Iterator[str]:
    """A local part, and what is left of it without one extension after the other.

    What follows "%" is a way to go (RFC 5321 appendix F.2 calls it a route).
    """
    yield local
    cut = "|".join(re.escape(one) for one in {delimiter, "-", "+", "%"} if one)
    places = [match.start() for match in re.finditer(cut, local)]
    for place in reversed(places[:_FORMS_LIMIT]):
        if place:
            yield local[:place]
