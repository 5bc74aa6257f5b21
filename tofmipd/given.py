"""What the command line and the configuration file say together, and where each of it was said.

The command line goes before the file, and the file before the defaults, for each option by itself.
Options that make one list (listeners, sources) count as one.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from tofmipd.arguments import Parser
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
_TRUTH = {"yes": True, "no": False}
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
    origins = {
        name: tuple(f"{path}:{number}" for number in numbers)
        for name, numbers in reading.numbers.items()
    }
    return Given(
        reading.options,
        origins,
        tuple(Fault(f"{path}:{number}", faults[number], CONFIG) for number in sorted(faults)),
    )


class _Reading:
    """A file, line by line."""

    def __init__(self, parser: Parser) -> None:
        self.options = parser.given([])
        self.numbers: dict[str, tuple[int, ...]] = {}
        self._parser = parser
        self._known = in_file(parser)

    def take(self, line: Line) -> None:
        """Raises ValueError."""
        action = self._known.get(line.name)
        if action is None:
            raise ValueError(self._unknown(line.name))
        before = dict(vars(self.options))
        earlier = self.numbers.get(action.dest)
        if earlier and not (is_source(action) or isinstance(before[action.dest], list)):
            raise ValueError(f"{line.name}: line {earlier[-1]} says it already")
        try:
            self._set(action, line)
        except ValueError as error:
            raise ValueError(f"{line.name}: {error}") from None
        for name, value in vars(self.options).items():
            if value is not before[name]:
                several = isinstance(value, list) and self.numbers.get(name)
                self.numbers[name] = (*(several or ()), line.number)

    def _set(self, action: argparse.Action, line: Line) -> None:
        """Raises ValueError."""
        if is_switch(action):
            word = "yes" if line.value is None else line.value
            if word not in _TRUTH:
                raise ValueError(f"yes or no, not {word!r}")
            setattr(self.options, action.dest, action.const is _TRUTH[word])
            return
        if line.value is None:
            raise ValueError(f"its value is missing: {line.name} {action.metavar or 'WORD'}")
        if is_path(action) and line.value and not _is_whole(line.value):
            raise ValueError(f"{line.value!r} must begin with / or ~/, for a file is read anywhere")
        self._parser.take(self.options, line.name, line.value)

    def _unknown(self, name: str) -> str:
        bare = name.lower().strip("-")
        if bare in NOT_IN_FILE:
            return f"{bare} is for the command line only"
        short = {
            one.removeprefix("-"): long
            for long, action in self._known.items()
            for one in action.option_strings
        }
        near = difflib.get_close_matches(bare, list(self._known), 1)
        found = short.get(name.strip("-")) or (near[0] if near else "")
        hint = f"did you mean {found}?" if found else "tofmipd --help shows all, without the dashes"
        return f"unknown option {name!r}; {hint}"


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
