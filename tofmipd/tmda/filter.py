"""The outgoing filter: text becomes frozen rules once, a pure function matches them later.

Source: TMDA reference, section 4.  A new source is one new row of ``SOURCES``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tofmipd.tmda.actions import Action, parse_action, parse_value
from tofmipd.tmda.errors import FilterError, TagError
from tofmipd.tmda.pattern import compile_pattern

Actions = tuple[tuple[str, Action], ...]

# In ``tag``: what stands for these is the sender's address, not the text of a field.
ADDRESS_HEADERS = frozenset({"from", "envelope", "resent-from"})


@dataclass(frozen=True, slots=True)
class Keys:
    """What rules are matched against, in lower case."""

    recipient: bytes
    sender: bytes


# Gives the actions to take, which are the rule's unless the source has its own, or None.
Matcher = Callable[[Keys, Actions], Actions | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; ``text`` is what the log and `inject -M` show (reference, section 4.10)."""

    source: str
    match: str
    actions: Actions
    matcher: Matcher
    line: int

    @property
    def text(self) -> str:
        pairs = " ".join(f"{header} {action}" for header, action in self.actions)
        return f"{self.source} {self.match} tag {pairs}"


@dataclass(frozen=True, slots=True)
class Match:
    """The rule that matched and the actions that follow from it."""

    rule: Rule
    actions: Actions


@dataclass(frozen=True, slots=True)
class Filter:
    """All rules of a file, in order.  ``path`` is for messages."""

    path: str
    rules: tuple[Rule, ...] = ()

    def find(self, recipient: bytes, sender: bytes) -> Match | None:
        """The first rule that matches wins; None means that the default action holds."""
        keys = Keys(recipient.lower(), sender.lower())
        for rule in self.rules:
            actions = rule.matcher(keys, rule.actions)
            if actions is not None:
                return Match(rule, actions)
        return None


def _to(match: str) -> Matcher:
    full = compile_pattern(_first_word(match)).fullmatch
    return lambda keys, actions: actions if full(keys.recipient) else None


def _from(match: str) -> Matcher:
    full = compile_pattern(_first_word(match)).fullmatch
    return lambda keys, actions: actions if full(keys.sender) else None


def _first_word(match: str) -> bytes:
    return _word(match).encode("utf-8", "surrogateescape")


def _word(text: str) -> str:
    """The first word of a text, or ""."""
    match = _WORD.search(text)
    return match[0] if match is not None else ""


# What a source makes of the text of its match.
SOURCES: dict[str, Callable[[str], Matcher]] = {"to": _to, "from": _from}

_NOT_BUILT_YET = re.compile(r"(?:to|from)-(?:file|cdb|dbm|ezmlm|mailman|sql)|include|macro", re.I)
_INCOMING = re.compile(r"size|pipe-headers|pipe|body-file|body|headers-file|headers", re.I)
_SOURCE = re.compile(r"(to|from)(?!-)", re.I)
_WORD = re.compile(r"\S+", re.ASCII)
# What separates words; other blanks that Unicode knows are parts of words.
_BLANKS = " \t\r\n\f\v"
_QUOTED_OR_WORD = re.compile(r"""(?:"(.+?)(?<!\\)"|'(.+?)(?<!\\)'|(\S+))[ ]*""", re.ASCII)
_PAIR = re.compile(
    r"""([A-Za-z][A-Za-z0-9_-]+)[ ]+          # header
        ([A-Za-z]+[ ]*=[ ]*(?=["'\S]))?       # NAME = before a quoted or plain option
        (?:"((?:[^"]|(?<=\\)")+)(?<!\\)"|'((?:[^']|(?<=\\)')+)(?<!\\)'
          |(?!"[^"]+"|'[^']+')(\S+))(?:[ ]+|\Z)""",
    re.ASCII | re.VERBOSE,
)


def parse_filter(text: str, path: str) -> Filter:
    """Parse a whole file.  Raises FilterError that holds all errors of it."""
    rules: list[Rule] = []
    errors: list[FilterError] = []
    for line, rule_text in logical_lines(text):
        try:
            rules.append(parse_rule(rule_text, line))
        except TagError as error:
            errors.append(FilterError(path, line, str(error)))
    if errors:
        head = errors[0]
        raise FilterError(path, head.line, head.problem, tuple(errors[1:]))
    return Filter(path, tuple(rules))


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Rules as (number of the first line, text): no comments, continuations joined (4.1).

    A continuation of nothing comes out with its leading blank; no rule begins with one.
    """
    start, rule = 0, ""
    for number, raw in enumerate(text.split("\n"), 1):
        if raw.lstrip(" \t").startswith("#"):
            continue
        line = raw.replace("\t", " ").partition(" #")[0].rstrip(" \r\f\v")
        if rule and line.startswith(" "):
            rule += line
            continue
        if rule:
            yield start, rule
        start, rule = number, line
        if line.startswith(" "):
            yield start, rule
            rule = ""
    if rule:
        yield start, rule


def parse_rule(text: str, line: int) -> Rule:
    """Parse one rule: ``SOURCE MATCH ACTION``; ``line`` is kept for messages.  Raises TagError."""
    if text.startswith(" "):
        raise TagError("the line is indented but continues no rule")
    if "${" in text:
        raise TagError("variables such as ${NAME} are not built yet")
    source, rest = _source_of(text)
    match_text, rest = _match_of(source, rest)
    actions = _actions_of(source, rest)
    return Rule(source, match_text, actions, SOURCES[source](match_text), line)


def _source_of(text: str) -> tuple[str, str]:
    word = _word(text)
    if _NOT_BUILT_YET.fullmatch(word):
        raise TagError(f"{word!r} is not built yet")
    if _INCOMING.fullmatch(word):
        raise TagError(f"the source {word!r} looks at incoming mail only; use 'to' or 'from'")
    match = _SOURCE.match(text)
    if match is None:
        raise TagError(f"{word!r} is no source; a rule begins with 'to' or 'from'")
    return match[1].lower(), text[match.end() :].lstrip(" ")


def _match_of(source: str, rest: str) -> tuple[str, str]:
    if not rest:
        raise TagError(f"{source!r} needs an address pattern and an action")
    if rest.startswith("-"):
        option = _word(rest)
        raise TagError(f"{source!r} takes no option {option!r}; quote a pattern that begins with -")
    match = _QUOTED_OR_WORD.match(rest)
    if match is None:
        raise TagError(f"{source!r} needs an address pattern and an action")
    text = match[1] or match[2] or match[3]
    if not text.strip(_BLANKS):
        raise TagError(f"the address pattern of {source!r} is blank")
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
