"""Readers of the three forms of a configuration (TMDA reference, section 3.2)."""

from __future__ import annotations

import ast
import configparser
import re
from types import TracebackType
from typing import Any

from tofmipd.tmda.errors import ConfigError
from tofmipd.tmda.values import TRUTH, IniText

_INI_SECTION = "TMDA_CONFIG"

# What Python 3 says of a line written for Python 2, and what would be right.
_PYTHON_2 = (
    (r"Missing parentheses in call to 'print'", "write print(...), not print ..."),
    (r"Missing parentheses in call to 'exec'", "write exec(...), not exec ..."),
    (
        r"multiple exception types must be parenthesized",
        "write 'except X as e:', not 'except X, e:'",
    ),
    (r"leading zeros in decimal integer", "write octal numbers as 0o600, not 0600"),
    (
        r"invalid (?:hexa)?decimal literal.*\b(?:[0-9]+|0[xX][0-9A-Fa-f]+)[lL]\b",
        "write numbers without an L",
    ),
    (r"unsupported operand .* >>: 'builtin_function", "write print(..., file=f)"),
    (r"invalid syntax.*<>", "write != in place of <>"),
    (r"invalid syntax.*\braise\b", "write 'raise X(\"text\")', not 'raise X, \"text\"'"),
    (r"invalid syntax.*`", "write repr(x), not `x`"),
    (r"invalid syntax.*\b[uU][rR]['\"]", "write texts without ur"),
    (r"inconsistent use of tabs", "indent with blanks only, or with tabs only"),
    (r"name 'unicode' is not defined", "write str, not unicode"),
    (r"name '(?:basestring|long|raw_input|xrange|reduce|file|execfile)' is not defined", ""),
    (r"has no attribute '(?:has_key|iteritems|itervalues|iterkeys)'", ""),
    (r"module 'string' has no attribute", "use the methods of texts"),
    (r"module 'os' has no attribute 'getcwdu'", "write os.getcwd()"),
    (r"No module named '(?:urllib2|ConfigParser|commands|cPickle|StringIO|anydbm|sets|TMDA)", ""),
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
    statement = _statement(source, line)
    if b"PASSWORD" in statement.upper():
        problem = f"{type(error).__name__} in a line with a password"
    return ConfigError(path, line, problem + _python_2_hint(f"{error}", statement))


def _python_2_hint(said: str, statement: bytes) -> str:
    """What to do about a line that was good in Python 2, or ""."""
    text = f"{said} {statement.decode('utf-8', 'replace')}"
    for pattern, advice in _PYTHON_2:
        if re.search(pattern, text):
            return "; written for Python 2" + (f": {advice}" if advice else "")
    return ""


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
