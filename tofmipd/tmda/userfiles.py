"""The files of one user, read once and again when one of them has changed."""

from __future__ import annotations

import binascii
import contextlib
import os
import threading
from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from typing import Any, Literal

from tofmipd.tmda import readers
from tofmipd.tmda.config import SETTINGS, Config, SourceFile, Surroundings, build, line_of
from tofmipd.tmda.errors import ConfigError, FilterError, KeyFileError, MissingConfig
from tofmipd.tmda.filter import Filter, parse_filter
from tofmipd.tmda.profile import Profile, tag_settings
from tofmipd.tmda.values import TRUTH

_DEFAULT_PATH = "~/.tmda/config"

Stamp = tuple[int, int, int, int] | None


def stamp(path: str) -> Stamp:
    """What changes when a file does: inode, size, time in ns, mode; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode


class UserFiles:
    """Configuration, key and filter of one user.

    ``config_path`` may be "": then the site file's TMDARC holds, else ~/.tmda/config.
    ``form`` says how the user's file is read: "python" executes it, which only a process that
    runs as that user may do; "literal" executes nothing (and ignores the site file's wish), and
    lets the user name no program and no file outside his home.
    ``required``: a missing configuration file is a MissingConfig instead of all defaults.
    Without ``with_filter`` the filter is not read and counts as empty; ``filter_path`` replaces
    the one that the configuration names.  Files are read, and programs in them run, within
    ``loading()``.
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
        filter_path: str = "",
        loading: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._config_path = config_path
        self._site_path = site_path
        self._surroundings = surroundings
        self._form = form
        self._required = required
        self._with_filter = with_filter
        self._filter_path = filter_path
        self._loading = loading
        self._lock = threading.Lock()
        self._profile: Profile | None = None
        self._stamps: dict[str, Stamp] = {}

    def profile(self) -> Profile:
        """The current state of the files.  Raises ConfigError, KeyFileError, FilterError."""
        with self._lock:
            profile = self._profile
            if profile is not None and all(
                stamp(path) == old for path, old in self._stamps.items()
            ):
                return profile
            self._profile = None
            self._stamps = {}
            with self._loading():
                self._profile = self._load()
            return self._profile

    def _load(self) -> Profile:
        config = self._load_config()
        tags = tag_settings(config, self._load_key(config))
        return Profile(config, tags, self._load_filter(config))

    def _load_config(self) -> Config:
        names: dict[str, Any] = dict(TRUTH)
        set_by_site: Set[str] = frozenset()
        site = SourceFile(self._site_path or "", b"")
        if self._site_path is not None:
            site = SourceFile(self._site_path, self._read(self._site_path) or b"")
            readers.run_python(site.octets, site.path, names)
        path = self._config_path or str(names.get("TMDARC") or _DEFAULT_PATH)
        own = self._read(path := self._surroundings.expand(path))
        if own is None and self._required:
            raise MissingConfig(path, 0, "missing; make one with 'tofmipd init'")
        if own is not None and self._form == "literal":
            given: dict[str, Any] = {}
            readers.read_literals(own, path, given)
            if "SENDMAIL_PROGRAM" in given:
                line = line_of("SENDMAIL_PROGRAM", own)
                raise ConfigError(path, line, "SENDMAIL_PROGRAM is not allowed here")
            set_by_site = names.keys() - given.keys()
            names.update(given)
        elif own is not None:
            reader = readers.run_python
            if names.get("CONFIG_EXEC", True) in (False, 0, "0"):
                reader = readers.read_ini
            reader(own, path, names)
        config = build(names, self._surroundings, SourceFile(path, own or b""), site)
        if self._form == "literal":
            self._refuse_what_is_not_his(config, set_by_site)
        return config

    def _refuse_what_is_not_his(self, config: Config, set_by_site: Set[str]) -> None:
        """A user whose uid cannot be taken has all files below his home, links followed: others
        would be read, and quoted in an error, with the rights of somebody else."""
        home = os.path.realpath(self._surroundings.home)
        for name, item in SETTINGS.items():
            path = getattr(config, item.name) if item.metadata["path"] else ""
            if not path or name in set_by_site:
                continue
            if not os.path.realpath(path).startswith(home + "/"):
                line = config.lines.get(name, 0)
                raise ConfigError(config.origin, line, f"{name} must be below your home here")

    def _load_key(self, config: Config) -> bytes:
        path = config.crypt_key_file
        self._stamps[path] = stamp(path)
        return read_key(path, config.allow_mode_640)

    def _load_filter(self, config: Config) -> Filter:
        path = self._surroundings.expand(self._filter_path or config.filter_outgoing)
        if not self._with_filter:
            return Filter(path)
        try:
            text = self._read(path)
        except ConfigError as error:
            raise FilterError(path, 0, error.problem) from None
        return parse_filter((text or b"").decode("utf-8", "surrogateescape"), path)

    def _read(self, path: str) -> bytes | None:
        """The whole file, or None when there is none.  The stamp is taken before the octets."""
        self._stamps[path] = stamp(path)
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                return file.read()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(path, 0, f"cannot be read: {reason}") from None


def _without_waiting(path: str, flags: int) -> int:
    """A pipe of that name would otherwise hold everything up."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_key(path: str, allow_mode_640: bool = False) -> bytes:
    """The key, decoded (reference, section 2).  Raises KeyFileError."""
    allowed = (0o400, 0o600, 0o640) if allow_mode_640 else (0o400, 0o600)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode & 0o7777
            text = file.read(65536).strip()
    except FileNotFoundError:
        raise KeyFileError(path, 0, "missing; make one with 'tofmipd keygen'") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KeyFileError(path, 0, f"cannot be read: {reason}") from None
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
