"""The user's configuration: its settings, and the readers of its three forms.

Source: TMDA reference, section 3.  A new setting is one new field of ``Config``.
"""

from __future__ import annotations

import ast
import configparser
import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tofmipd.tmda.actions import DEFAULT, Action, parse_action
from tofmipd.tmda.errors import ConfigError, TagError

# Words for truth that configurations of the original may use without defining them.
TRUTH = {
    word: value
    for words, value in (("ON YES TRUE", True), ("OFF NO FALSE", False))
    for base in words.split()
    for word in (base, base.capitalize(), base.lower())
}
_INI_SECTION = "TMDA_CONFIG"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a configuration may ask about the person and the machine.

    ``environment`` holds the variables that may replace defaults (reference, section 3.3); the
    daemon gives none, for its own environment is nobody's.
    """

    home: str
    login: str
    full_name: str
    host_name: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def expand(self, path: str) -> str:
        """``~`` at the beginning is the home directory, whatever HOME says."""
        if path == "~" or path.startswith("~/"):
            return self.home + path[1:]
        return path

    def variable(self, *names: str) -> str:
        """The first of these environment variables that is not empty, or ""."""
        return next((v for v in (self.environment.get(name) for name in names) if v), "")


class IniText(str):
    """The raw text of a value in INI form."""


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise TypeError("a text in quotes")
    return value


def _flag(value: object) -> bool:
    if isinstance(value, str) and value in TRUTH:
        return TRUTH[value]
    if not isinstance(value, int):
        raise TypeError("True or False")
    return bool(value)


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError("a whole number, 0 or more")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError('a list of texts: ["...", "..."]')
    return tuple(_text(item) for item in value)


def _tags(value: object) -> tuple[str, ...]:
    words = _texts(value)
    if not words or not all(words):
        raise TypeError('a list of at least one word: ["..."]')
    return words


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise TypeError('a table of names and texts: {"Name": "text"}')
    return tuple(sorted((_header_name(k), _header_value(v)) for k, v in value.items()))


def _part(value: object) -> str:
    """One side of an address."""
    text = _text(value)
    if "@" in text or " " in text or not text.isprintable():
        raise TypeError("one side of an address, without @ and blanks")
    return text


def _delimiter(value: object) -> str:
    text = _text(value)
    if not text or "@" in text or not text.isprintable() or " " in text:
        raise TypeError("one or more characters that may stand in an address, not @")
    return text


_SMTPHOST = re.compile(
    r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?|([^\s:\[\]]+)(?::([0-9]{1,5}))?", re.ASCII
)


def split_smtphost(text: str) -> tuple[str, int]:
    """``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or plain v6; port 25 if absent.

    Raises TypeError."""
    match = _SMTPHOST.fullmatch(text)
    if match is None and re.fullmatch(r"[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", text):
        return text, 25
    port = int((match and (match[2] or match[4])) or 25)
    if match is None or not 0 < port < 65536:
        raise TypeError("HOST or HOST:PORT")
    return match[1] or match[3], port


def _smtphost(value: object) -> str:
    text = _text(value)
    split_smtphost(text)
    return text


def _header_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-9;-~]+", value):
        raise TypeError("a table whose keys are names of header fields")
    return value


def _header_value(value: object) -> str:
    text = _text(value)
    if "\n" in text or "\r" in text:
        raise TypeError("a table of texts without line ends")
    return text


def _one_of(*words: str) -> Callable[[object], str]:
    def convert(value: object) -> str:
        text = _text(value)
        if text not in words:
            raise TypeError("one of " + ", ".join(repr(word) for word in words))
        return text

    return convert


def _action(value: object) -> Action:
    try:
        action = parse_action(_text(value))
    except TagError as error:
        raise TypeError(f"an action ({error})") from None
    if action.name == DEFAULT:
        raise TypeError("an action other than 'default'")
    return action


def setting(convert: Callable[[object], Any], default: object, *, path: bool = False) -> Any:
    """A field of Config: how a value is checked, its default, and whether ``~`` is expanded."""
    return field(default=default, metadata={"convert": convert, "path": path})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings that influence outgoing mail (reference, section 3.3).

    Names are those of the file in lower case.  ``origin`` is the file, for messages; ``unused``
    names settings that were given but are not built yet; ``lines`` has the line of each setting
    that the file assigns.
    """

    origin: str
    unused: tuple[str, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)

    action_outgoing: Action = setting(_action, Action("dated"))
    added_headers_client: tuple[tuple[str, str], ...] = setting(_headers, ())
    allow_mode_640: bool = setting(_flag, False)
    crypt_key_file: str = setting(_text, "", path=True)
    datadir: str = setting(_text, "~/.tmda", path=True)
    dated_timeout: str = setting(_text, "5d")
    filter_outgoing: str = setting(_text, "", path=True)
    fullname: str = setting(_text, "")
    hmac_bytes: int = setting(_number, 3)
    hostname: str = setting(_part, "")
    mail_transfer_agent: str = setting(_text, "qmail")
    mail_transport: str = setting(_one_of("sendmail", "smtp"), "sendmail")
    message_from_style: str = setting(_text, "angles")
    message_tag_header_style: str = setting(_text, "angles")
    purged_headers_client: tuple[str, ...] = setting(_texts, ())
    received: str = setting(_one_of("", "full", "private", "none"), "")
    recipient_delimiter: str = setting(_delimiter, "-")
    sendmail_program: str = setting(_text, "", path=True)
    smtp_max_sessions_per_connection: int = setting(_number, 0)
    smtpauth_password: str = setting(_text, "")
    smtpauth_username: str = setting(_text, "")
    smtphost: str = setting(_smtphost, "localhost")
    smtpssl: bool = setting(_flag, False)
    smtpssl_cafile: str = setting(_text, "", path=True)
    smtpssl_certfile: str = setting(_text, "", path=True)
    smtpssl_keyfile: str = setting(_text, "", path=True)
    tags_confirm: tuple[str, ...] = setting(_tags, ("confirm",))
    tags_dated: tuple[str, ...] = setting(_tags, ("dated",))
    tags_keyword: tuple[str, ...] = setting(_tags, ("keyword",))
    tags_sender: tuple[str, ...] = setting(_tags, ("sender",))
    tmdainject: str = setting(_text, "")
    username: str = setting(_part, "")

    def __repr__(self) -> str:
        """Without values: one of them is a password."""
        return f"Config({self.origin!r})"


SETTINGS = {f.name.upper(): f for f in dataclasses.fields(Config) if "convert" in f.metadata}
_NOT_BUILT_YET = (
    "BARE_APPEND",
    "DB_BARE_APPEND",
    "DB_CONNECTION",
    "FINGERPRINT",
    "LOGFILE_OUTGOING",
    "MAIL_FOLLOWUP_TO",
    "X_TMDA_IN_SUBJECT",
)


def run_python(source: bytes, path: str, names: dict[str, Any]) -> None:
    """Execute a configuration; ``names`` holds what it may use and takes what it assigns.

    Only for files of the user whom this process runs as.  Raises ConfigError with the line.
    """
    _refuse_nul(source, path)
    try:
        exec(compile(source, path, "exec"), names)
    except (Exception, SystemExit) as error:
        raise _config_error(source, path, error) from None


def _refuse_nul(source: bytes, path: str) -> None:
    """Which error Python itself makes of it depends on its version."""
    if b"\0" in source:
        line = source.count(b"\n", 0, source.index(b"\0")) + 1
        raise ConfigError(path, line, "syntax error: a NUL octet in the file")


def _config_error(source: bytes, path: str, error: BaseException) -> ConfigError:
    """Where and why a configuration failed; a line with a password is not quoted."""
    line = _failing_line(error.__traceback__, path)
    problem = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        problem = f"syntax error: {error.msg}"
        line = (error.lineno or 0) if error.filename == path else line
    if b"PASSWORD" in _statement(source, line).upper():
        problem = f"{type(error).__name__} in a line with a password"
    return ConfigError(path, line, problem)


def _statement(source: bytes, line: int) -> bytes:
    """The whole statement that the line belongs to, or the line if it cannot be told."""
    lines = source.split(b"\n")
    first = last = line
    try:
        for statement in ast.parse(source).body:
            if statement.lineno <= line <= (statement.end_lineno or line):
                first, last = statement.lineno, statement.end_lineno or line
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    return b"\n".join(lines[max(first - 1, 0) : max(last, 0)])


def _failing_line(traceback: TracebackType | None, path: str) -> int:
    line = 0
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def read_literals(source: bytes, path: str, names: dict[str, Any]) -> None:
    """Read ``NAME = literal`` lines without executing anything.

    For users whose uid cannot be taken.  Raises ConfigError for any other statement.
    """
    _refuse_nul(source, path)
    try:
        tree = ast.parse(source, path)
    except SyntaxError as error:
        raise _config_error(source, path, error) from None
    except (ValueError, MemoryError, RecursionError) as error:
        raise ConfigError(path, 0, f"syntax error: {error}") from None
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=word)) if word in TRUTH:
                names[name] = TRUTH[word]
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    names[name] = ast.literal_eval(value)
                except (ValueError, TypeError, MemoryError, RecursionError):
                    raise _not_literal(path, statement) from None
            case _:
                raise _not_literal(path, statement)


def _not_literal(path: str, statement: ast.stmt) -> ConfigError:
    return ConfigError(path, statement.lineno, "only NAME = text, number or list is allowed here")


def read_ini(source: bytes, path: str, names: dict[str, Any]) -> None:
    """Read the declarative form: one section [TMDA_CONFIG], ``name = value`` lines.

    What a value means is decided by the setting that it is for.  Raises ConfigError.
    """
    parser = configparser.RawConfigParser(strict=True)
    try:
        parser.read_string(source.decode("utf-8", "surrogateescape"), path)
        items = parser.items(_INI_SECTION)
    except configparser.NoSectionError:
        raise ConfigError(path, 0, f"the section [{_INI_SECTION}] is missing") from None
    except configparser.Error as error:
        faults = getattr(error, "errors", None) or [(getattr(error, "lineno", None) or 0, "")]
        line = faults[0][0]
        problem = str(error).splitlines()[0]
        raise ConfigError(path, line, f"not in INI form: {problem}") from None
    for name, value in items:
        names[name.upper()] = IniText(value) if value else None


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A configuration file as it was read, for messages."""

    path: str
    octets: bytes


def build(
    names: Mapping[str, Any], surroundings: Surroundings, own: SourceFile, *others: SourceFile
) -> Config:
    """Check the values that configurations left in ``names`` and fill in the defaults.

    ``own`` is the user's file, ``others`` what was read before it.  Raises ConfigError for the
    first wrong value.
    """
    given: dict[str, Any] = {}
    for name, item in SETTINGS.items():
        value = names.get(name)
        if value is None:
            continue
        try:
            given[item.name] = _converted(value, item.metadata["convert"])
        except TypeError as error:
            value = _plain(value)
            shown = "that" if "PASSWORD" in name else repr(value)[:60]
            problem = f"{name} must be {error}, not {shown}"
            for file in (own, *others, own):
                line = _line_of(name, file.octets)
                if line:
                    break
            raise ConfigError(file.path, line, problem) from None
    unused = tuple(name for name in _NOT_BUILT_YET if _plain(names.get(name)))
    lines = {name: _line_of(name, own.octets) for name in SETTINGS if names.get(name)}
    config = Config(origin=own.path, unused=unused, lines=lines, **given)
    return _with_defaults(config, surroundings)


def _converted(value: object, convert: Callable[[object], Any]) -> Any:
    """The value as its setting wants it.  In INI form that is the text as it stands, or without
    its quotes, or the literal that it spells.  Raises TypeError."""
    if not isinstance(value, IniText):
        return convert(value)
    literal = _literal(value)
    if isinstance(literal, str):
        return convert(literal)
    try:
        return convert(str(value))
    except TypeError:
        return convert(literal)


def _plain(value: object) -> object:
    """The value, or what it spells in INI form."""
    return _literal(value) if isinstance(value, IniText) else value


def _literal(text: str) -> object:
    """What the text spells, or itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return str(text)


def _line_of(name: str, source: bytes) -> int:
    """The line of the last assignment to ``name``, 0 where there is none to see."""
    last = 0
    for match in re.finditer(rb"(?mi)^\s*" + name.encode() + rb"\s*[=:]", source):
        last = source.count(b"\n", 0, match.end()) + 1
    return last


def _with_defaults(config: Config, around: Surroundings) -> Config:
    """The defaults that depend on the person, the machine or other settings."""
    changes: dict[str, Any] = {}
    datadir = around.expand(config.datadir)
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
    for name, item in SETTINGS.items():
        if item.metadata["path"]:
            key = name.lower()
            changes[key] = around.expand(changes.get(key) or getattr(config, key))
    return dataclasses.replace(config, **changes)
