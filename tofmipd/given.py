"""What the command line and the configuration file say together, and where each of it was said.

The command line goes before the file, and the file before the defaults, for each option by itself.
Options that make one list (listeners, sources) count as one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from tofmipd.arguments import Parser, nearest
from tofmipd.configfile import Line, parse
from tofmipd.errors import CONFIG, USAGE

# Options that a file cannot have.
NOT_IN_FILE = frozenset({"help", "version", "config", "personal", "one-session"})
COMMAND_LINE = "command line"
DEFAULT = "default"
_TOGETHER = (
    frozenset({"sources", "authfile", "authprog", "remoteauth", "pamauth"}),
    frozenset({"proxyport", "ipv6proxyport"}),
)
# A switch that stands alone is on.
_TRUTH = {None: True, "yes": True, "no": False}
_PATHS = frozenset({"FILE", "DIR", "PATH"})

# By destination: where each value of an option was said, "FILE:LINE" or COMMAND_LINE.
Origins = dict[str, tuple[str, ...]]


class Fault(NamedTuple):
    """``place`` is "FILE:LINE", or "" for the command line; ``status`` is for the program's end."""

    place: str
    text: str
    status: int = USAGE

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class Given(NamedTuple):
    """All options with their values; one that was not said has no origin."""

    options: argparse.Namespace
    origins: Origins
    faults: tuple[Fault, ...] = ()

    def origin(self, name: str, index: int = -1) -> str:
        """Of one option, or of one of the values of an option that is repeated."""
        places = self.origins.get(name)
        return places[index] if places else DEFAULT

    def fault(self, text: str, names: Iterable[str], index: int = -1, status: int = USAGE) -> Fault:
        """What is wrong with these options, of which not all need have been said."""
        said = {name: self.origin(name, index) for name in names if name in self.origins}
        place = next((place for place in said.values() if place != COMMAND_LINE), "")
        others = [f"--{dashed(name)}: {at}" for name, at in said.items() if at != place]
        if place and others:
            text += f" ({', '.join(others)})"
        return Fault(place, text, CONFIG if place and status == USAGE else status)


def dashed(destination: str) -> str:
    return destination.replace("_", "-")


def is_path(action: argparse.Action) -> bool:
    return action.metavar in _PATHS and action.dest != "config"


def is_switch(action: argparse.Action) -> bool:
    return action.nargs == 0


def long_name(action: argparse.Action) -> str:
    """Without its dashes, "" for none."""
    names = [name for name in action.option_strings if name.startswith("--")]
    return names[0].removeprefix("--") if names else ""


def in_file(parser: Parser) -> dict[str, argparse.Action]:
    """The options that a file can have, by their names there."""
    named = {long_name(action): action for action in parser.table}
    return {name: action for name, action in named.items() if name and name not in NOT_IN_FILE}


def from_command_line(parser: Parser, arguments: list[str], directory: str) -> Given:
    """Relative paths begin at ``directory``.  Raises ValueError."""
    options = parser.given(arguments)
    for action in parser.table:
        if is_path(action):
            value = getattr(options, action.dest)
            setattr(options, action.dest, _joined(directory, value))
    if options.sources:
        options.sources = [
            spec
            if spec.kind != "file"
            else spec._replace(argument=_joined(directory, spec.argument))
            for spec in options.sources
        ]
    origins = {}
    for name, value in vars(options).items():
        if value is not None:
            origins[name] = (COMMAND_LINE,) * (len(value) if isinstance(value, list) else 1)
    return Given(options, origins)


def _joined(directory: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_joined(directory, one) for one in value]
    return os.path.join(directory, value) if value and not _is_whole(value) else value


def _is_whole(path: str) -> bool:
    return path.startswith(("/", "~/")) or path == "~"


def from_file(parser: Parser, path: str, text: str) -> Given:
    """What the text of a file says; lines with a fault count as if they were not there."""
    lines, problems = parse(text)
    faults = {problem.number: problem.text for problem in problems}
    reading = _Reading(parser)
    for line in lines:
        try:
            reading.take(line)
        except ValueError as error:
            faults[line.number] = str(error)
    options = reading.finish(faults)
    origins: Origins = {}
    for line, action in reading.said:
        for name in (action.dest, "sources") if is_source(action) else (action.dest,):
            before = origins.get(name, ()) if isinstance(getattr(options, name), list) else ()
            origins[name] = (*before, f"{path}:{line.number}")
    said = [Fault(f"{path}:{number}", faults[number], CONFIG) for number in sorted(faults)]
    return Given(options, origins, tuple(said))


class _Reading:
    """A file, line by line; then all that it says is parsed at once, for that takes time.

    ``said`` are the lines without a fault, each with its option.
    """

    def __init__(self, parser: Parser) -> None:
        self.said: list[tuple[Line, argparse.Action]] = []
        self._parser = parser
        self._known = in_file(parser)

    def take(self, line: Line) -> None:
        """Raises ValueError."""
        action = self._known.get(line.name)
        if action is None:
            raise ValueError(self._unknown(line.name))
        if not (is_source(action) or isinstance(action.default, list)):
            for earlier, other in self.said:
                if other.dest == action.dest:
                    raise ValueError(f"{line.name}: line {earlier.number} says it already")
        fault = _fault_of(action, line)
        if fault:
            raise ValueError(f"{line.name}: {fault}")
        self.said.append((line, action))

    def finish(self, faults: dict[int, str]) -> argparse.Namespace:
        """The options; lines that cannot be parsed are faults, too."""
        try:
            options = self._parser.given(self._words())
        except ValueError:
            for line, action in self.said:
                fault = "" if is_switch(action) else self._parser.fault_of(_word(line))
                if fault:
                    faults[line.number] = f"{line.name}: {fault}"
            self.said = [pair for pair in self.said if pair[0].number not in faults]
            options = self._parser.given(self._words())
        for line, action in self.said:
            if is_switch(action):
                setattr(options, action.dest, action.const is _TRUTH[line.value])
        return options

    def _words(self) -> list[str]:
        return [_word(line) for line, action in self.said if not is_switch(action)]

    def _unknown(self, name: str) -> str:
        bare = name.lower().strip("-")
        if bare in NOT_IN_FILE:
            return f"{bare} is for the command line only"
        short = {
            one.removeprefix("-"): long
            for long, action in self._known.items()
            for one in action.option_strings
        }
        found = short.get(name.strip("-")) or nearest(bare, self._known)
        hint = f"did you mean {found}?" if found else "tofmipd --help shows all, without the dashes"
        return f"unknown option {name!r}; {hint}"


def _word(line: Line) -> str:
    return f"--{line.name}={line.value}"


def _fault_of(action: argparse.Action, line: Line) -> str:
    """What is wrong with a value but its type, "" for nothing."""
    if is_switch(action):
        return "" if line.value in _TRUTH else f"yes or no, not {line.value!r}"
    if line.value is None:
        return f"its value is missing: {line.name} {action.metavar or 'WORD'}"
    if is_path(action) and line.value and not _is_whole(line.value):
        return f"{line.value!r} must begin with / or ~/, for a file is read anywhere"
    return ""


def is_source(action: argparse.Action) -> bool:
    return action.dest in _TOGETHER[0]


def merged(parser: Parser, said: Given, file: Given) -> Given:
    """``said`` goes before ``file``, and that before the defaults."""
    values = parser.defaults
    origins: Origins = {}
    hidden = set(said.origins)
    for group in _TOGETHER:
        if group & hidden:
            hidden |= group
    for given, without in ((file, hidden), (said, set[str]())):
        for name, places in given.origins.items():
            if name not in without:
                values[name], origins[name] = getattr(given.options, name), places
    return Given(argparse.Namespace(**values), origins, said.faults + file.faults)
