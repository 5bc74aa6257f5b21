"""The pattern language of filters and lists (TMDA reference, section 4.8)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator

_WILDCARD = re.compile(rb"[*?\[]")
# What stands between the literal parts of a pattern; a "[" that nothing closes is literal.
_BETWEEN = re.compile(rb"[*?]+|\[!?\]?[^\]]*\]")
_GRAM_OCTETS = 3
# So many alternatives share an expression: a match reserves room for each of them.
_ALTERNATIVES = 100


def compile_pattern(pattern: bytes) -> re.Pattern[bytes]:
    """A pattern as an expression to ``fullmatch`` against a lower-case key.

    ``*``, ``?`` and sets are those of the shell, also across ``@`` and dots; backslash is
    literal.  If the last ``@`` is followed by ``=``, the domain and all its sub-domains match.
    """
    return re.compile(_expression(pattern.lower()))


def _expression(pattern: bytes) -> bytes:
    text = pattern.decode("latin-1")
    expression = fnmatch.translate(text)
    local, at, domain = text.rpartition("@")
    if at and domain.startswith("="):
        own = fnmatch.translate(f"{local}@{domain[1:]}")
        below = fnmatch.translate(f"{local}@*.{domain[1:]}")
        expression = f"{own}|{below}"
    return expression.encode("latin-1")


class _Candidate:
    """A pattern that a key may match; made an expression when the first key asks."""

    __slots__ = ("_matches", "_pattern", "index")

    def __init__(self, index: int, pattern: bytes) -> None:
        self.index = index
        self._pattern = pattern
        self._matches: re.Pattern[bytes] | None = None

    def matches(self, key: bytes) -> bool:
        if self._matches is None:
            self._matches = compile_pattern(self._pattern)
        return self._matches.fullmatch(key) is not None


class PatternSet:
    """Patterns in their order; says which is the first to match, without trying each.

    Those without wildcards are looked up as they are; ``*@domain``, ``*@=domain`` and ``name@*``
    by that part of a key.  Any other is tried only on keys that have a few octets of its literal
    text; those that have no such text are tried on all, many in one expression.
    """

    def __init__(self, patterns: Iterable[bytes]) -> None:
        self._exact: dict[bytes, int] = {}
        self._locals: dict[bytes, int] = {}
        self._domains: dict[bytes, int] = {}
        self._parents: dict[bytes, int] = {}
        self._by_gram: dict[bytes, list[_Candidate]] = {}
        self._others: list[tuple[int, bytes]] = []
        self._compiled: list[re.Pattern[bytes]] | None = None
        self.size = 0
        for pattern in patterns:
            self._add(self.size, pattern.lower())
            self.size += 1
        self._looks_at_parts = bool(self._locals or self._domains or self._parents)

    def _add(self, index: int, pattern: bytes) -> None:
        local, at, domain = pattern.rpartition(b"@")
        with_sub_domains = bool(at) and domain.startswith(b"=")
        if not with_sub_domains and not _WILDCARD.search(pattern):
            self._exact.setdefault(pattern, index)
        elif at and local == b"*" and not _WILDCARD.search(domain):
            domain = domain[with_sub_domains:]
            self._domains.setdefault(domain, index)
            if with_sub_domains:
                self._parents.setdefault(domain, index)
        elif at and domain == b"*" and not _WILDCARD.search(local) and b"@" not in local:
            self._locals.setdefault(local, index)
        else:
            self._add_by_gram(index, pattern)

    def _add_by_gram(self, index: int, pattern: bytes) -> None:
        """Under those octets, of all in its literal text, that the fewest others are under."""
        fewest: int | None = None
        for gram in _grams(pattern):
            number = len(self._by_gram.get(gram, ()))
            if fewest is None or number < fewest:
                best, fewest = gram, number
            if not number:
                break
        if fewest is None:
            self._others.append((index, pattern))
        else:
            self._by_gram.setdefault(best, []).append(_Candidate(index, pattern))

    def first(self, key: bytes) -> int | None:
        """The number of the first pattern that the lower-case ``key`` matches, from 0 on."""
        best = self._exact.get(key, self.size)
        if self._looks_at_parts:
            best = self._first_by_part(key, best)
        if self._by_gram:
            best = self._first_by_gram(key, best)
        if self._others and self._others[0][0] < best:
            best = self._first_of_the_others(key, best)
        return best if best < self.size else None

    def _first_by_part(self, key: bytes, best: int) -> int:
        local, at, domain = key.rpartition(b"@")
        if not at:
            return best
        best = min(best, self._domains.get(domain, best))
        while self._parents and b"." in domain:
            domain = domain.partition(b".")[2]
            best = min(best, self._parents.get(domain, best))
        return min(best, self._locals.get(local.partition(b"@")[0], best))

    def _first_by_gram(self, key: bytes, best: int) -> int:
        for start in range(len(key) - _GRAM_OCTETS + 1):
            for candidate in self._by_gram.get(key[start : start + _GRAM_OCTETS], ()):
                if candidate.index >= best:
                    break
                if candidate.matches(key):
                    best = candidate.index
        return best

    def _first_of_the_others(self, key: bytes, best: int) -> int:
        if self._compiled is None:
            self._compiled = [
                re.compile(b"|".join(b"(" + _expression(p) + b")" for _, p in some))
                for some in _slices(self._others)
            ]
        for number, expression in enumerate(self._compiled):
            match = expression.fullmatch(key)
            if match is not None and match.lastindex is not None:
                index = self._others[number * _ALTERNATIVES + match.lastindex - 1][0]
                return min(best, index)
        return best


def _grams(pattern: bytes) -> Iterator[bytes]:
    """Octets that stand next to each other in every key that the pattern matches."""
    local, at, domain = pattern.rpartition(b"@")
    if at and domain.startswith(b"="):
        pattern = local + b"@*" + domain[1:]
    for literal in _BETWEEN.split(pattern):
        for start in range(len(literal) - _GRAM_OCTETS + 1):
            yield literal[start : start + _GRAM_OCTETS]


def _slices(patterns: list[tuple[int, bytes]]) -> Iterable[list[tuple[int, bytes]]]:
    for start in range(0, len(patterns), _ALTERNATIVES):
        yield patterns[start : start + _ALTERNATIVES]
