"""The user's settings: which there are, their defaults, and how they are checked.

Source: TMDA reference, section 3.  A new setting is one new field of ``Config``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tofmipd.tmda import values
from tofmipd.tmda.actions import Action
from tofmipd.tmda.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a configuration may ask about the person and the machine.

    ``environment`` holds the variables that may replace defaults (reference, section 3.3); the
    daemon gives none, for its own environment is nobody's.  ``variables`` is what ``${NAME}`` in
    a filter may stand for beside settings.
    """

    home: str
    login: str
    full_name: str
    host_name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def variable(self, *names: str) -> str:
        """The first of these environment variables that is not empty, or ""."""
        return next((v for v in (self.environment.get(name) for name in names) if v), "")


def setting(convert: Callable[[object], Any], default: object, *, path: bool = False) -> Any:
    """A field of Config: how a value is checked, its default, and whether ``~`` is expanded."""
    return field(default=default, metadata={"convert": convert, "path": path})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings that influence outgoing mail (reference, section 3.3).

    Names are those of the file in lower case.  ``origin`` is the file, for messages; ``lines``
    has the line of each setting that the file assigns; ``names`` is all that it assigns.
    """

    origin: str
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)
    names: Mapping[str, Any] = field(default_factory=dict, compare=False)

    action_outgoing: Action = setting(values.to_action, Action("dated"))
    added_headers_client: tuple[tuple[str, str], ...] = setting(values.to_headers, ())
    allow_mode_640: bool = setting(values.to_flag, False)
    bare_append: str = setting(values.to_text, "", path=True)
    crypt_key_file: str = setting(values.to_text, "", path=True)
    datadir: str = setting(values.to_text, "~/.tmda", path=True)
    dated_timeout: str = setting(values.to_text, "5d")
    db_bare_append: str = setting(values.to_text, "")
    db_connection: Any = setting(values.to_connection, None)
    filter_outgoing: str = setting(values.to_text, "", path=True)
    fingerprint: tuple[str, ...] = setting(values.to_texts, ())
    fullname: str = setting(values.to_text, "")
    hmac_bytes: int = setting(values.to_number, 3)
    hostname: str = setting(values.to_part, "")
    logfile_outgoing: str = setting(values.to_text, "", path=True)
    mail_followup_to: str | tuple[str, ...] = setting(values.to_text_or_texts, "", path=True)
    mail_transfer_agent: str = setting(values.to_text, "qmail")
    mail_transport: str = setting(values.to_one_of("sendmail", "smtp"), "sendmail")
    message_from_style: str = setting(values.to_text, "angles")
    message_tag_header_style: str = setting(values.to_text, "angles")
    purged_headers_client: tuple[str, ...] = setting(values.to_texts, ())
    received: str = setting(values.to_one_of("", "full", "private", "none"), "")
    recipient_delimiter: str = setting(values.to_delimiter, "-")
    sendmail_program: str = setting(values.to_text, "", path=True)
    smtp_max_sessions_per_connection: int = setting(values.to_number, 0)
    smtpauth_password: str = setting(values.to_text, "")
    smtpauth_username: str = setting(values.to_text, "")
    smtphost: str | tuple[str, ...] = setting(values.to_smtphost, "localhost")
    smtpssl: bool | str = setting(values.to_smtpssl, False)
    smtpssl_cafile: str = setting(values.to_text, "", path=True)
    smtpssl_certfile: str = setting(values.to_text, "", path=True)
    smtpssl_keyfile: str = setting(values.to_text, "", path=True)
    smtptls: str = setting(values.to_smtptls, "")
    tags_confirm: tuple[str, ...] = setting(values.to_tags, ("confirm",))
    tags_dated: tuple[str, ...] = setting(values.to_tags, ("dated",))
    tags_keyword: tuple[str, ...] = setting(values.to_tags, ("keyword",))
    tags_sender: tuple[str, ...] = setting(values.to_tags, ("sender",))
    tmdainject: str = setting(values.to_text, "")
    username: str = setting(values.to_part, "")
    x_tmda_in_subject: bool = setting(values.to_flag, False)

    def __repr__(self) -> str:
        """Without values: one of them is a password."""
        return f"Config({self.origin!r})"

    def text(self, name: str) -> str | None:
        """A setting, or another name that the configuration assigns, as a filter has it by
        ``${NAME}``; None where it is empty or unknown.  Raises TypeError if it is no text.
        """
        item = SETTINGS.get(name)
        value = getattr(self, item.name) if item is not None else self.names.get(name)
        value = values.plain(value)
        if isinstance(value, bool) or not isinstance(value, str | bytes | int | Action):
            if value:
                raise TypeError("not a text")
            return None
        return values.to_text(value) if isinstance(value, bytes) else str(value) or None


SETTINGS = {f.name.upper(): f for f in dataclasses.fields(Config) if "convert" in f.metadata}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A configuration file as it was read, for messages."""

    path: str
    octets: bytes


def build(
    names: Mapping[str, Any],
    surroundings: Surroundings,
    own: SourceFile,
    *others: SourceFile,
    expand: Callable[[str], str] = lambda path: path,
) -> Config:
    """Check the values that configurations left in ``names`` and fill in the defaults.

    ``own`` is the user's file, ``others`` what was read before it; ``expand`` makes a path
    absolute.  Raises ConfigError for the first wrong value.
    """
    given: dict[str, Any] = {}
    for name, item in SETTINGS.items():
        value = names.get(name)
        if value is None:
            continue
        try:
            given[item.name] = values.converted(value, item.metadata["convert"])
        except TypeError as error:
            value = values.plain(value)
            shown = "that" if "PASSWORD" in name or name == "DB_CONNECTION" else repr(value)[:60]
            problem = f"{name} must be {error}, not {shown}"
            for file in (own, *others, own):
                line = line_of(name, file.octets)
                if line:
                    break
            raise ConfigError(file.path, line, problem) from None
    if given.get("smtptls") == "off" and given.get("smtpssl"):
        line = line_of("SMTPTLS", own.octets)
        raise ConfigError(own.path, line, "SMTPTLS = 'off' contradicts SMTPSSL, which asks for TLS")
    lines = {name: line_of(name, own.octets) for name in SETTINGS if names.get(name)}
    config = Config(origin=own.path, lines=lines, names=names, **given)
    return _with_defaults(config, surroundings, expand)


def line_of(name: str, source: bytes) -> int:
    """The line of the last assignment to ``name``, 0 where there is none to see."""
    last = 0
    for match in re.finditer(rb"(?mi)^\s*" + name.encode() + rb"\s*[=:]", source):
        last = source.count(b"\n", 0, match.end()) + 1
    return last


def _with_defaults(config: Config, around: Surroundings, expand: Callable[[str], str]) -> Config:
    """The defaults that depend on the person, the machine or other settings."""
    changes: dict[str, Any] = {}
    datadir = expand(config.datadir)
    changes["crypt_key_file"] = config.crypt_key_file or f"{datadir}/crypt_key"
    changes["filter_outgoing"] = config.filter_outgoing or f"{datadir}/filters/outgoing"
    changes["fullname"] = (
        config.fullname
        or around.variable("TMDANAME", "QMAILNAME", "NAME", "MAILNAME")
        or around.full_name
    )
    changes["hostname"] = (
        config.hostname or around.variable("TMDAHOST", "QMAILHOST", "MAILHOST") or around.host_name
    )
    changes["username"] = (
        config.username
        or around.variable("TMDAUSER", "QMAILUSER", "USER", "LOGNAME")
        or around.login.partition("@")[0]
    )
    for item in SETTINGS.values():
        if item.metadata["path"]:
            value = changes.get(item.name) or getattr(config, item.name)
            if isinstance(value, str):
                changes[item.name] = expand(value)
    return dataclasses.replace(config, **changes)
