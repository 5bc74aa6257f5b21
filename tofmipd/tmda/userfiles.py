"""The files of one user, read once and again when one of them has changed."""

from __future__ import annotations

import binascii
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from typing import Any, Literal

from tofmipd.tmda import readers
from tofmipd.tmda.config import SETTINGS, Config, SourceFile, Surroundings, build, line_of
from tofmipd.tmda.database import Database, Keeper
from tofmipd.tmda.errors import ConfigError, FilterError, KeyFileError, MissingConfig, TagError
from tofmipd.tmda.files import Files, Stamp, reason, stamp
from tofmipd.tmda.filter import Filter
from tofmipd.tmda.library import Library
from tofmipd.tmda.parser import Given, parse_filter
from tofmipd.tmda.profile import Profile, tag_settings
from tofmipd.tmda.values import TRUTH

_DEFAULT_PATH = "~/.tmda/config"
_NEXT_HOP = frozenset({"MAIL_TRANSPORT", "SMTPHOST", "SMTPSSL", "SMTPSSL_CAFILE", "SMTPTLS"})
_RECONNECT_SECONDS = 5


class UserFiles:
    """Configuration, key and filter of one user.

    ``config_path`` may be "": then the site file's TMDARC holds, else ~/.tmda/config.
    ``form`` says how the user's file is read: "python" executes it, which only a process that
    runs as that user may do; "literal" executes nothing (and ignores the site file's wish), and
    lets the user name no program and no file outside his home.
    ``required``: a missing configuration file is a MissingConfig instead of all defaults.
    Without ``with_filter`` the filter is not read and counts as empty, and so does the key
    without ``with_key``; ``filter_path`` replaces the one that the configuration names.  Files
    are read, and programs in them run, within ``loading()``.
    A change of what a configuration itself reads or imports is not seen.  Safe for threads.
    """

    def __init__(
        self,
        config_path: str,
        surroundings: Surroundings,
        *,
        site_path: str | None = None,
        form: Literal["python", "literal"] = "python",
        required: bool = False,
        with_filter: bool = True,
        with_key: bool = True,
        filter_path: str = "",
        loading: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._config_path = config_path
        self._site_path = site_path
        self._surroundings = surroundings
        self._form = form
        self._required = required
        self._with_filter = with_filter
        self._with_key = with_key
        self._filter_path = filter_path
        self._loading = loading
        self.files = Files(surroundings.home, confined=form == "literal")
        # What a rule names is the user's own, also where the administrator's settings name it.
        self._of_rules = Files(surroundings.home, confined=form == "literal")
        self._hidden: Set[str] = frozenset()
        self._lock = threading.Lock()
        self._profile: Profile | None = None
        self._reconnected = -math.inf
        self._library: Library | None = None
        self._stamps: dict[str, Stamp] = {}

    def profile(self) -> Profile:
        """The current state of the files.  Raises ConfigError, KeyFileError, FilterError.

        A database connection that has failed is opened again by the configuration.
        """
        with self._lock:
            profile = self._profile
            if profile is not None and not self._is_old(profile):
                return profile
            self._profile = None
            self._stamps = {}
            with self._loading():
                self._profile = self._load()
            return self._profile

    def _is_old(self, profile: Profile) -> bool:
        database = profile.library.database
        if database is not None and database.broken and self._may_reconnect():
            return True
        return any(stamp(path) != old for path, old in self._stamps.items())

    def _may_reconnect(self) -> bool:
        """Not for each message: what is wrong with a statement does not go away by that."""
        now = time.monotonic()
        if now - self._reconnected < _RECONNECT_SECONDS:
            return False
        self._reconnected = now
        return True

    def _load(self) -> Profile:
        """In a thread of its own, which stays when the configuration opens a database."""
        keeper = Keeper()
        try:
            config = keeper.run(self._load_config)
        except BaseException:
            keeper.end()
            raise
        database = None
        if config.db_connection is None:
            keeper.end()
        else:
            database = Database(config.db_connection, keeper)
        tags = tag_settings(config, self._load_key(config))
        names = {"username": config.username.lower(), "hostname": config.hostname.lower()}
        filter_, followup = self._load_filter(config), self._load_followup(config)
        # A database is the site's where the user's own text is not to be trusted.
        asks = self._form != "literal" or not self.files.names_home(filter_.path)
        library = self._library = Library(self._of_rules, database, names, self._library, asks=asks)
        return Profile(config, tags, filter_, library, followup)

    def _load_config(self) -> Config:
        names: dict[str, Any] = dict(TRUTH)
        set_by_site: Set[str] = frozenset()
        site = SourceFile(self._site_path or "", b"")
        if self._site_path is not None:
            self.files.allow([self._site_path])
            site = SourceFile(self._site_path, self._read(self._site_path) or b"")
            readers.run_python(site.octets, site.path, names)
        path = self._config_path or str(names.get("TMDARC") or _DEFAULT_PATH)
        own = self._read(path := self.files.expand(path))
        if own is None and self._required:
            raise MissingConfig(path, 0, "missing; make one with 'tofmipd init'")
        if own is not None and self._form == "literal":
            given: dict[str, Any] = {}
            readers.read_literals(own, path, given)
            for name in ("SENDMAIL_PROGRAM", "DB_BARE_APPEND"):
                if name in given:
                    raise ConfigError(path, line_of(name, own), f"{name} is not allowed here")
            set_by_site = names.keys() - given.keys()
            self._hidden = {x for x in set_by_site if x not in SETTINGS or "PASSWORD" in x}
            if _NEXT_HOP & given.keys():
                # What the administrator logs in with is for the host that he has named.
                for name in ("SMTPAUTH_USERNAME", "SMTPAUTH_PASSWORD"):
                    names.pop(name, None)
            if "DATADIR" in set_by_site:
                set_by_site |= {"CRYPT_KEY_FILE", "FILTER_OUTGOING"} - given.keys()
            names.update(given)
        elif own is not None:
            reader = readers.run_python
            if names.get("CONFIG_EXEC", True) in (False, 0, "0"):
                reader = readers.read_ini
            reader(own, path, names)
        mine = SourceFile(path, own or b"")
        config = build(names, self._surroundings, mine, site, expand=self.files.expand)
        if self._form == "literal":
            self._refuse_what_is_not_his(config, set_by_site)
        return config

    def _refuse_what_is_not_his(self, config: Config, set_by_site: Set[str]) -> None:
        """A user whose uid cannot be taken has all files below his home, links followed: others
        would be read, and quoted in an error, with the rights of somebody else.  What the site
        puts elsewhere is allowed; a place that it names in each home is his as well."""
        for name, item in sorted(SETTINGS.items(), key=lambda pair: pair[0] != "DATADIR"):
            path = getattr(config, item.name) if item.metadata["path"] else ""
            if not path or not isinstance(path, str):
                continue
            if name in set_by_site and not self.files.names_home(path):
                self.files.allow([path])
            elif not self.files.is_below_home(path):
                line = config.lines.get(name, 0)
                raise ConfigError(config.origin, line, f"{name} must be below your home here")

    def _load_key(self, config: Config) -> bytes:
        if not self._with_key:
            return b""
        path = config.crypt_key_file
        self._stamps[path] = stamp(path)
        return read_key(path, config.allow_mode_640, self.files.open)

    def _load_filter(self, config: Config) -> Filter:
        path = self.files.expand(self._filter_path or config.filter_outgoing)
        if not self._with_filter:
            return Filter(path)
        try:
            octets = self._read(path)
        except ConfigError as error:
            raise FilterError(path, 0, error.problem) from None

        def variable(name: str) -> str:
            return self._variable(config, name)

        given = Given(self._text, self.files.expand, variable)
        return parse_filter(_decoded(octets or b""), path, given)

    def _text(self, path: str) -> str | None:
        """A file that the filter includes.  Raises TagError."""
        try:
            octets = self._read(path, self._of_rules)
        except ConfigError as error:
            raise TagError(str(error)) from None
        return None if octets is None else _decoded(octets)

    def _variable(self, config: Config, name: str) -> str:
        """What ``${name}`` stands for (reference, section 4.4).  Raises TagError."""
        try:
            own = None if name in self._hidden else config.text(name)
            value = own or self._surroundings.variables.get(name)
        except TypeError as error:
            raise TagError(f"${{{name}}} is {error}") from None
        if not value:
            raise TagError(
                f"${{{name}}} is neither a setting with a value nor a variable of the environment"
            )
        return value

    def _load_followup(self, config: Config) -> frozenset[bytes]:
        """The mailing lists of MAIL_FOLLOWUP_TO; a file that is missing has none."""
        entries = config.mail_followup_to
        if isinstance(entries, str):
            text = self._read(entries) if entries else None
            lines = (text or b"").split(b"\n")
        else:
            lines = [entry.encode("utf-8", "surrogateescape") for entry in entries]
        return frozenset(line.strip().lower() for line in lines if line.strip())

    def _read(self, path: str, files: Files | None = None) -> bytes | None:
        """The whole file, or None when there is none.  Raises ConfigError."""
        try:
            self._stamps[path], octets = (files or self.files).read_stamped(path)
        except (OSError, ValueError) as error:
            raise ConfigError(path, 0, f"cannot be read: {reason(error)}") from None
        return octets


def _decoded(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _without_waiting(path: str, flags: int) -> int:
    """A pipe of that name would otherwise hold everything up."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_key(
    path: str, allow_mode_640: bool = False, opener: Callable[[str, int], int] | None = None
) -> bytes:
    """The key, decoded (reference, section 2); ``opener`` is one of open().  Raises
    KeyFileError."""
    allowed = (0o400, 0o600, 0o640) if allow_mode_640 else (0o400, 0o600)
    try:
        with open(path, "rb", opener=opener or _without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode & 0o7777
            text = file.read(65536).strip()
    except FileNotFoundError:
        raise KeyFileError(path, 0, "missing; make one with 'tofmipd keygen'") from None
    except (OSError, ValueError) as error:
        raise KeyFileError(path, 0, f"cannot be read: {reason(error)}") from None
    if mode not in allowed:
        wanted = " or ".join(f"{m:04o}" for m in allowed)
        raise KeyFileError(path, 0, f"mode {mode:04o}, must be {wanted} (chmod 600 the file)")
    try:
        key = binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        raise KeyFileError(path, 0, "not an even number of hexadecimal digits") from None
    if not key:
        raise KeyFileError(path, 0, "empty; make one with 'tofmipd keygen'")
    return key
