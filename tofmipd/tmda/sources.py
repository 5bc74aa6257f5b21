"""What a rule of the outgoing filter can look at: a table, one row a source.

Source: TMDA reference, sections 4.2 and 4.6.  A new source is one new row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tofmipd.tmda.errors import TagError


class Found(NamedTuple):
    """An address has been found: the action that stands beside it, or "", and where that is."""

    action: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What a rule looks up: ``kind`` is a name of ``KINDS``, ``match`` the file or statement."""

    kind: str
    match: str
    options: Mapping[str, str]

    def has(self, option: str) -> bool:
        return option in self.options


class Lists(Protocol):
    """Where rules look addresses up."""

    def look_up(self, question: Question, keys: Sequence[bytes], recipient: bytes) -> Found | None:
        """The first of ``keys`` that is there, or None.

        ``keys`` are an address and its domain, in lower case.  Raises TagError.
        """
        ...


class NoLists:
    """For filters that look nothing up."""

    def look_up(self, question: Question, keys: Sequence[bytes], recipient: bytes) -> Found | None:
        raise TagError(f"{question.match!r} cannot be looked up here")


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to look addresses up.

    ``options`` are the names of its options; whether each takes a value.  ``required`` must be
    given.  ``is_path``: the match is the name of a file, which reports show as they found it if
    ``shows_path``, with what ``below`` adds.
    """

    options: Mapping[str, bool]
    required: tuple[str, ...] = ()
    is_path: bool = True
    shows_path: bool = False
    below: str = ""


_OPTIONAL = {"optional": False}

# "" is the plain source, whose match is a pattern.
KINDS = {
    "": Kind({}, is_path=False),
    "file": Kind({"autocdb": False, "autodbm": False} | _OPTIONAL),
    "cdb": Kind(_OPTIONAL, shows_path=True),
    "dbm": Kind(_OPTIONAL, shows_path=True),
    "ezmlm": Kind(_OPTIONAL, shows_path=True, below="/subscribers"),
    "mailman": Kind({"attr": True} | _OPTIONAL, required=("attr",)),
    "sql": Kind({"addr_column": True, "action_column": True, "wildcards": False}, is_path=False),
}

SOURCES = tuple(f"{side}-{kind}" if kind else side for side in ("to", "from") for kind in KINDS)

# What the original reads in a filter for incoming mail; it needs the text of a message.
INCOMING = frozenset(
    ("size", "pipe", "pipe-headers", "body", "body-file", "headers", "headers-file")
)


def check_options(source: str, options: Mapping[str, str]) -> None:
    """What options of a source must be together.  Raises TagError."""
    kind = KINDS[source.partition("-")[2]]
    for name in kind.required:
        if name not in options:
            raise TagError(f"{source!r} needs -{name}=VALUE")
    if source.endswith("-sql"):
        if "wildcards" in options and len(options) > 1:
            raise TagError("-wildcards excludes -addr_column and -action_column")
        if "wildcards" not in options and "addr_column" not in options:
            raise TagError(f"{source!r} needs -addr_column=NAME or -wildcards")
    if "autocdb" in options and "autodbm" in options:
        raise TagError("-autocdb and -autodbm exclude each other")
