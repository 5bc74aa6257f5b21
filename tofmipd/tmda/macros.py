"""Macros and variables of a filter: text in the place of text (TMDA reference, 4.3 and 4.4)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tofmipd.tmda.errors import TagError

# Beyond that a rule grows without end: macros that double each other, a variable of itself.
_RULE_LIMIT_CHARACTERS = 100_000
_STEPS_LIMIT = 1000
_DEPTH_LIMIT = 100
# So much text is searched for names in one rule: a tenth of a second.
_SEARCH_LIMIT_CHARACTERS = 10_000_000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DEFINITION = re.compile(r"macro(?: +(.*))?\Z", re.ASCII | re.DOTALL | re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{(\w+)\}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Macro:
    """``name(parameters)`` stands for ``text``."""

    name: str
    parameters: tuple[str, ...]
    text: str
    word: re.Pattern[str] = field(repr=False)

    def filled_in(self, arguments: list[str]) -> str:
        """The text with arguments in the place of parameters.  Raises TagError."""
        if len(arguments) != len(self.parameters):
            raise TagError(
                f"the macro {self.name!r} takes {len(self.parameters)} arguments,"
                f" not {len(arguments)}"
            )
        if not arguments:
            return self.text
        given = {
            name.lower(): value for name, value in zip(self.parameters, arguments, strict=True)
        }
        words = "|".join(re.escape(name) for name in given)
        return re.sub(
            rf"(?i)\b(?:{words})\b", lambda match: given[match[0].lower()], self.text, flags=re.A
        )


class Macros:
    """The macros that have been defined so far, in their order."""

    def __init__(self) -> None:
        self._macros: dict[str, Macro] = {}
        self._steps = 0
        self._searched = 0

    def define(self, text: str) -> bool:
        """Take ``text`` if it is a definition; whether it is.  Raises TagError."""
        match = _DEFINITION.match(text)
        if match is None:
            return False
        macro = _parse(match[1] or "")
        self._macros[macro.name.lower()] = macro
        return True

    def expand(self, text: str) -> str:
        """Put the texts of macros in the place of their names.  Raises TagError."""
        self._steps = self._searched = 0
        return self._expand(text, tuple(self._macros.values())) if self._macros else text

    def _expand(self, text: str, macros: tuple[Macro, ...]) -> str:
        for macro in macros:
            self._searched += len(text)
            if self._searched > _SEARCH_LIMIT_CHARACTERS:
                raise _endless(macro)
            if macro.word.search(text):
                text = self._replace(text, macro, macros)
        return text

    def _replace(self, text: str, macro: Macro, macros: tuple[Macro, ...]) -> str:
        """What a macro makes may name all others, but not itself."""
        others = tuple(other for other in macros if other is not macro)
        if len(self._macros) - len(others) > _DEPTH_LIMIT:
            raise _endless(macro)
        result, position, size = [], 0, len(text)
        while (match := macro.word.search(text, position)) is not None:
            arguments, end = _arguments(macro, text, match.end())
            made = self._expand(macro.filled_in(arguments), others)
            result += [text[position : match.start()], made]
            position = end
            size += len(made)
            self._steps += 1
            if self._steps > _STEPS_LIMIT or size > _RULE_LIMIT_CHARACTERS:
                raise _endless(macro)
        return "".join([*result, text[position:]])


def _endless(macro: Macro) -> TagError:
    return TagError(f"the macro {macro.name!r} makes the rule grow without end")


def _parse(text: str) -> Macro:
    """What follows the word ``macro``."""
    if not text:
        raise TagError("'macro' needs a name and a text: macro NAME TEXT")
    match = _NAME.match(text)
    if match is None or (match.end() < len(text) and text[match.end()] not in " ("):
        raise TagError(
            f"{text.split(' ')[0]!r} is no name for a macro: letters, digits and _ only,"
            " a letter or _ first"
        )
    name, rest = match[0], text[match.end() :].lstrip(" ")
    parameters: tuple[str, ...] = ()
    if rest.startswith("("):
        inside, bracket, rest = rest[1:].partition(")")
        if not bracket:
            raise TagError(f"the macro {name!r} lacks a ')' after its parameters")
        parameters = tuple(word.strip() for word in inside.split(",")) if inside.strip() else ()
        for parameter in parameters:
            if not _NAME.match(parameter):
                raise TagError(f"{parameter!r} is no name for a parameter of {name!r}")
    if not rest.strip():
        raise TagError(f"the macro {name!r} has no text: macro {name} TEXT")
    word = re.compile(rf"\b{name}\b", re.ASCII | re.IGNORECASE)
    return Macro(name, parameters, rest.strip(" "), word)


def _arguments(macro: Macro, text: str, position: int) -> tuple[list[str], int]:
    """The arguments that follow a name, and where they end."""
    rest = text[position:].lstrip(" ")
    if not rest.startswith("("):
        return [], position
    inside, bracket, rest = rest[1:].partition(")")
    if not bracket:
        raise TagError(f"the macro {macro.name!r} lacks a ')' after its arguments")
    arguments = [word.strip() for word in inside.split(",")] if inside.strip() else []
    return arguments, len(text) - len(rest)


def substitute(text: str, variable: Callable[[str], str]) -> str:
    """Put values in the place of ``${NAME}``, also of those that values bring in.

    ``variable`` gives the value of a name or raises TagError.
    """
    for _ in range(_STEPS_LIMIT):
        match = _VARIABLE.search(text)
        if match is None:
            return text
        text = text[: match.start()] + variable(match[1]) + text[match.end() :]
        if len(text) > _RULE_LIMIT_CHARACTERS:
            break
    raise TagError("the variables of the rule never come to an end")
