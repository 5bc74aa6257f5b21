"""The daemon's configuration file: lines ``option value``, named like the long options.

``#`` begins a comment, at the beginning of a line or behind a blank.  A value goes to the end of
its line; in double quotes it may hold anything, ``\\"`` and ``\\\\`` standing for the two.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from tofmipd.errors import CONFIG, Fatal

_LIMIT_OCTETS = 1 << 20
_LINE = re.compile(r"([^\s=\"#]+)(?:\s*=\s*|\s+|\Z)(.*)", re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:(?<=\s)#.*)?', re.DOTALL)
_COMMENT = re.compile(r"(?:\A|\s)#")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Line(NamedTuple):
    """One option; ``value`` is None where there is nothing but its name."""

    number: int
    name: str
    value: str | None


class Problem(NamedTuple):
    """What is wrong with a line."""

    number: int
    text: str


def parse(text: str) -> tuple[list[Line], list[Problem]]:
    """All lines that say something, and what is wrong with the others."""
    lines, problems = [], []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        content = raw.strip()
        if not content or content.startswith("#"):
            continue
        try:
            lines.append(Line(number, *_parse_line(content)))
        except ValueError as error:
            problems.append(Problem(number, str(error)))
    return lines, problems


def _parse_line(content: str) -> tuple[str, str | None]:
    """Raises ValueError."""
    if _CONTROL.search(content):
        raise ValueError("a control character in the line")
    match = _LINE.fullmatch(content)
    if match is None:
        raise ValueError("not OPTION VALUE")
    name, rest = match.groups()
    if rest.startswith('"'):
        quoted = _QUOTED.fullmatch(rest)
        if quoted is None:
            raise ValueError('quotes go around the whole value; \\" stands for one within')
        return name, re.sub(r'\\([\\"])', r"\1", quoted[1])
    comment = _COMMENT.search(rest)
    value = rest[: comment.start()].rstrip() if comment else rest
    return name, value or None


def written(name: str, value: str) -> str:
    """A line that ``parse`` understands; the value holds no line end."""
    plain = value and value == value.strip() and value[0] not in '"=' and not _COMMENT.search(value)
    if not plain:
        value = '"' + re.sub(r'([\\"])', r"\\\1", value) + '"'
    return f"{name} {value}"


def read(path: str, *, named: bool) -> str | None:
    """The text of the file.  None for one that is missing, unless somebody has ``named`` it.

    What root obeys nobody else may be able to change.  Raises Fatal.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Fatal(CONFIG, f"{path}: not a regular file; --config none is for no file")
            if os.getuid() == 0:
                _refuse_what_others_can_change(path, status)
            octets = file.read(_LIMIT_OCTETS + 1)
    except (FileNotFoundError, NotADirectoryError):
        if not named:
            return None
        text = f"{path}: there is no such file; --config names one, or none"
        raise Fatal(CONFIG, text) from None
    except OSError as error:
        raise Fatal(CONFIG, f"{path}: cannot be read: {error.strerror}") from None
    if len(octets) > _LIMIT_OCTETS:
        raise Fatal(CONFIG, f"{path}: more than {_LIMIT_OCTETS} octets")
    return octets.decode("utf-8", "surrogateescape")


def _without_waiting(path: str, flags: int) -> int:
    """A pipe of that name would otherwise hold everything up."""
    return os.open(path, flags | os.O_NONBLOCK)


def _refuse_what_others_can_change(path: str, status: os.stat_result) -> None:
    """Raises Fatal, OSError."""
    if status.st_uid != 0 or status.st_mode & 0o022:
        mend = f"chown root {path}; chmod 644 {path}"
        raise Fatal(CONFIG, f"{path}: others than root can change it ({mend})")
    directory = os.path.dirname(os.path.realpath(path))
    while True:
        above = os.stat(directory)
        # In a directory with the sticky bit nobody moves what is root's away.
        if above.st_uid != 0 or (above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX):
            raise Fatal(
                CONFIG,
                f"{path}: others than root can change {directory}, and put another file in its"
                f" place (chown root {directory}; chmod 755 {directory})",
            )
        if directory == os.path.dirname(directory):
            return
        directory = os.path.dirname(directory)
