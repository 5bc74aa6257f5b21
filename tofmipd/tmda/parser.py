"""From the text of an outgoing filter to its rules (TMDA reference, sections 4.1 to 4.7)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tofmipd.tmda.actions import Action, parse_action, parse_value
from tofmipd.tmda.errors import FilterError, TagError
from tofmipd.tmda.filter import ADDRESS_HEADERS, Actions, Filter, Place, Rule
from tofmipd.tmda.lines import logical_lines
from tofmipd.tmda.macros import Macros, substitute
from tofmipd.tmda.sources import INCOMING, KINDS, SOURCES, Question, check_options

_DEPTH_LIMIT = 20
_INCLUDES_LIMIT = 1000

_SOURCE = re.compile(r"(to|from)(?:-(file|cdb|dbm|ezmlm|mailman|sql)|(?!-))", re.I)
_WORD = re.compile(r"\S+", re.ASCII)
# What separates words; other blanks that Unicode knows are parts of words.
_BLANKS = " \t\r\n\f\v"
_QUOTED = r"""(?:"(?:[^"]|(?<=\\)")+(?<!\\)"|'(?:[^']|(?<=\\)')+(?<!\\)')"""
_QUOTED_OR_WORD = re.compile(r"""(?:"(.+?)(?<!\\)"|'(.+?)(?<!\\)'|(\S+))[ ]*""", re.ASCII)
_OPTION = re.compile(rf"-([A-Za-z_][\w-]*)(?:(=)({_QUOTED}|[^\s\"']\S*)?)?(?: +|\Z)", re.ASCII)
_INCLUDE = re.compile(r"include(?: +(-optional\b)?(.*))?\Z", re.IGNORECASE | re.DOTALL)
_PAIR = re.compile(
    r"""([A-Za-z][A-Za-z0-9_-]+)[ ]+          # header
        ([A-Za-z]+[ ]*=[ ]*(?=["'\S]))?       # NAME = before a quoted or plain option
        (?:"((?:[^"]|(?<=\\)")+)(?<!\\)"|'((?:[^']|(?<=\\)')+)(?<!\\)'
          |(?!"[^"]+"|'[^']+')(\S+))(?:[ ]+|\Z)""",
    re.ASCII | re.VERBOSE,
)


def _no_variable(name: str) -> str:
    raise TagError(f"${{{name}}} is neither a setting nor a variable of the environment")


@dataclass(frozen=True, slots=True)
class Given:
    """What a filter may ask for while it is parsed.

    ``read`` gives the text of a file, None when there is none, and raises TagError when it
    cannot be read; ``expand`` makes a path absolute; ``variable`` raises TagError for an unknown
    name.
    """

    read: Callable[[str], str | None] = lambda path: None
    expand: Callable[[str], str] = lambda path: path
    variable: Callable[[str], str] = _no_variable


def parse_filter(text: str, path: str, given: Given | None = None) -> Filter:
    """Parse a whole file.  Raises FilterError that holds all errors of it."""
    reading = _Reading(given or Given())
    reading.read(text, path)
    if reading.errors:
        head, *others = reading.errors
        raise FilterError(head.path, head.line, head.problem, tuple(others))
    return Filter(path, tuple(reading.rules))


class _Stop(Exception):
    """Nothing more is read: what comes would be judged without its macros."""


class _Reading:
    """One filter with all that it includes."""

    def __init__(self, given: Given) -> None:
        self.rules: list[Rule] = []
        self.errors: list[FilterError] = []
        self._given = given
        self._macros = Macros()
        self._open: list[str] = []
        self._includes = 0

    def read(self, text: str, path: str) -> None:
        self._open.append(path)
        try:
            for line, statement in logical_lines(text):
                place = Place(path, line)
                try:
                    self._obey(statement, place)
                except TagError as error:
                    self.errors.append(FilterError(path, line, str(error)))
        except _Stop:
            pass
        self._open.pop()

    def _obey(self, text: str, place: Place) -> None:
        """One macro, include or rule.  Raises TagError, _Stop."""
        if text.startswith(" "):
            raise TagError("the line is indented but continues no rule")
        if self._macros.define(text):
            return
        text = substitute(self._macros.expand(text), self._given.variable)
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise TagError("the rule has a character that no file can have") from None
        match = _INCLUDE.match(text)
        if match is not None:
            self._include((match[2] or "").strip(" "), place, optional=bool(match[1]))
        else:
            self.rules.append(parse_rule(text, place, self._given.expand))

    def _include(self, name: str, place: Place, *, optional: bool) -> None:
        if not name:
            raise TagError("'include' needs the name of a file: include [-optional] FILE")
        path = self._given.expand(name)
        if path in self._open or len(self._open) > _DEPTH_LIMIT:
            error = f"{name!r} includes itself; take the line out of one of the files"
            self.errors.append(FilterError(place.path, place.line, error))
            raise _Stop
        self._includes += 1
        if self._includes > _INCLUDES_LIMIT:
            error = f"more than {_INCLUDES_LIMIT} files are included"
            self.errors.append(FilterError(place.path, place.line, error))
            raise _Stop
        text = self._given.read(path)
        if text is None:
            if optional:
                return
            raise TagError(f"there is no file {path!r}; write 'include -optional' if it may miss")
        before = len(self.errors)
        self.read(text, path)
        if len(self.errors) > before:
            raise _Stop


def parse_rule(text: str, place: Place, expand: Callable[[str], str] = lambda path: path) -> Rule:
    """Parse one rule: ``SOURCE [-option...] MATCH ACTION``.  Raises TagError."""
    side, kind_name, rest = _source_of(text)
    kind = KINDS[kind_name]
    source = f"{side}-{kind_name}" if kind_name else side
    options, rest = _options_of(source, kind.options, rest)
    match, rest = _match_of(source, rest)
    actions = _actions_of(source, rest)
    check_options(source, options)
    shown = expand(match) + kind.below if kind.shows_path else match
    words = [f"-{name}={value}" if value else f"-{name}" for name, value in options.items()]
    question = None
    if kind_name:
        question = Question(kind_name, expand(match) if kind.is_path else match, options)
    return Rule(
        " ".join([source, *words, shown]),
        side == "from",
        actions,
        place,
        b"" if kind_name else _word(match).encode("utf-8", "surrogateescape"),
        question,
    )


def _word(text: str) -> str:
    """The first word of a text, or ""."""
    match = _WORD.search(text)
    return match[0] if match is not None else ""


def _source_of(text: str) -> tuple[str, str, str]:
    """Side, kind and what comes after them."""
    word = _word(text)
    if word.lower() in INCOMING:
        raise TagError(f"the source {word!r} looks at incoming mail only; use 'to' or 'from'")
    match = _SOURCE.match(text)
    if match is None:
        near = difflib.get_close_matches(word.lower(), [*SOURCES, "include", "macro"], 1)
        hint = f"did you mean {near[0]!r}?" if near else "a rule begins with 'to' or 'from'"
        raise TagError(f"{word!r} is no source; {hint}")
    return match[1].lower(), (match[2] or "").lower(), text[match.end() :].lstrip(" ")


def _options_of(source: str, known: Mapping[str, bool], rest: str) -> tuple[dict[str, str], str]:
    options: dict[str, str] = {}
    while rest.startswith("-"):
        word = _word(rest)
        match = _OPTION.match(rest)
        if match is None or match[1] not in known:
            if not known:
                raise TagError(
                    f"{source!r} takes no option {word!r}; quote a pattern that begins with -"
                )
            names = ", ".join(f"-{name}" for name in known)
            raise TagError(f"{source!r} has no option {word!r}; there are {names}")
        name, value = match[1], match[3] or ""
        if known[name] and not value:
            raise TagError(f"the option -{name} needs a value: -{name}=VALUE")
        if match[2] and not known[name]:
            raise TagError(f"the option -{name} takes no value")
        if value[:1] in ("'", '"'):
            value = value[1:-1]
        options[name] = value
        rest = rest[match.end() :]
    return options, rest


def _match_of(source: str, rest: str) -> tuple[str, str]:
    what = {"": "an address pattern", "sql": "a SELECT statement in quotes"}.get(
        source.partition("-")[2], "the name of a file"
    )
    match = _QUOTED_OR_WORD.match(rest)
    if match is None:
        raise TagError(f"{source!r} needs {what} and an action")
    text = match[1] or match[2] or match[3]
    if not text.strip(_BLANKS):
        raise TagError(f"{source!r} needs {what}, not blanks")
    return text, rest[match.end() :]


def _actions_of(source: str, rest: str) -> Actions:
    if not rest:
        raise TagError(f"the action is missing after {source!r} and its pattern")
    if rest == "tag":
        raise TagError("'tag' needs pairs of HEADER and ACTION")
    if not rest.startswith("tag "):
        return (("from", parse_action(rest)),)
    pairs: dict[str, Action] = {}
    position = len("tag")
    while rest[position:].strip(_BLANKS):
        position += len(rest[position:]) - len(rest[position:].lstrip(" "))
        match = _PAIR.match(rest, position)
        if match is None:
            word = _word(rest[position:])
            raise TagError(f"'tag' needs pairs of HEADER and ACTION; {word!r} begins none")
        value = (match[2] or "") + (match[3] or match[4] or match[5])
        header = match[1].lower()
        pairs.pop(header, None)
        pairs[header] = parse_value(value, address=header in ADDRESS_HEADERS)
        position = match.end()
    return tuple(pairs.items())
