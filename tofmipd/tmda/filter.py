"""The outgoing filter: rules, and which of them decides.

Source: TMDA reference, section 4.  Rules are frozen; `tmda.parser` makes them of text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tofmipd.tmda.actions import Action, parse_action
from tofmipd.tmda.errors import FilterError, TagError
from tofmipd.tmda.pattern import PatternSet
from tofmipd.tmda.sources import Found, Lists, NoLists, Question

Actions = tuple[tuple[str, Action], ...]

# In ``tag``: what stands for these is the sender's address, not the text of a field.
ADDRESS_HEADERS = frozenset({"from", "envelope", "resent-from"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule stands; ``line`` is 1-based."""

    path: str
    line: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.  ``shown`` is what reports have before the actions.

    ``by_sender``: its key is the sender, not the recipient.  A rule has a ``pattern`` or a
    ``question``.
    """

    shown: str
    by_sender: bool
    actions: Actions
    place: Place
    pattern: bytes = b""
    question: Question | None = None

    def report(self, actions: Actions) -> str:
        """What the log and `inject -M` show (reference, section 4.10)."""
        pairs = " ".join(f"{header} {action}" for header, action in actions)
        return f"{self.shown} tag {pairs}"

    @property
    def text(self) -> str:
        return self.report(self.actions)


@dataclass(frozen=True, slots=True)
class Match:
    """The rule that matched, and the actions that follow from it: its own or those of a list."""

    rule: Rule
    actions: Actions

    @property
    def text(self) -> str:
        return self.rule.report(self.actions)


class Filter:
    """All rules of a file and those that it includes, in order.  ``path`` is for messages."""

    def __init__(self, path: str, rules: tuple[Rule, ...] = ()) -> None:
        self.path = path
        self.rules = rules
        self._by_recipient = _Plain(rules, by_sender=False)
        self._by_sender = _Plain(rules, by_sender=True)
        self._asking = [
            (number, rule, rule.question)
            for number, rule in enumerate(rules)
            if rule.question is not None
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and (self.path, self.rules) == (other.path, other.rules)

    def __hash__(self) -> int:
        return hash((self.path, len(self.rules)))

    def find(self, recipient: bytes, sender: bytes, lists: Lists | None = None) -> Match | None:
        """The first rule that matches wins; None means that the default action holds.

        Raises FilterError when something cannot be looked up.
        """
        to, own = recipient.lower(), sender.lower()
        plain = min(self._by_recipient.first(to), self._by_sender.first(own))
        for number, rule, question in self._asking:
            if number > plain:
                break
            try:
                match = _ask(rule, question, own if rule.by_sender else to, recipient, lists)
            except TagError as error:
                raise FilterError(rule.place.path, rule.place.line, str(error)) from None
            if match is not None:
                return match
        if plain == len(self.rules):
            return None
        return Match(self.rules[plain], self.rules[plain].actions)


class _Plain:
    """The plain rules of one side of a filter."""

    def __init__(self, rules: tuple[Rule, ...], *, by_sender: bool) -> None:
        self._end = len(rules)
        self._numbers = [
            number
            for number, rule in enumerate(rules)
            if rule.question is None and rule.by_sender is by_sender
        ]
        self._patterns = PatternSet(rules[number].pattern for number in self._numbers)
        self.first: Callable[[bytes], int] = self._first if self._numbers else self._none

    def _first(self, key: bytes) -> int:
        """The number of the first rule that matches, or of none."""
        index = self._patterns.first(key)
        return self._end if index is None else self._numbers[index]

    def _none(self, key: bytes) -> int:
        return self._end


def _ask(
    rule: Rule, question: Question, key: bytes, recipient: bytes, lists: Lists | None
) -> Match | None:
    """Raises TagError."""
    _, at, domain = key.rpartition(b"@")
    keys = (key, domain) if at else (key,)
    found = (lists or NoLists()).look_up(question, keys, recipient)
    if found is None:
        return None
    return Match(rule, _actions_beside(found) or rule.actions)


def _actions_beside(found: Found) -> Actions:
    if not found.action:
        return ()
    try:
        return (("from", parse_action(found.action)),)
    except TagError as error:
        raise TagError(f"{found.where}: {error}") from None
