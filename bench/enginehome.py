"""The home directory that the engine is measured with, and how its costs are taken."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ofmipd import KEY
from report import table

from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.userfiles import UserFiles

RULES, LISTS, ENTRIES = 1000, 5, 10_000
RULES_GROWTH = (10, 100, 1000, 10_000)
ENTRIES_GROWTH = (1000, 10_000, 100_000)
RECIPIENTS_GROWTH = (1, 10, 100)
SMALL_OCTETS, LARGE_OCTETS = 50_000, 50_000_000
WANTED_US = 50  # per recipient, for exact entries
BATCH = 200  # recipients that are timed together
LEAST_ROUNDS = 5
MEMORY_MESSAGES = 3  # through the daemon; a sampler must have time to see the peak
INJECT_LIMIT = 120.0  # seconds
SENDER = b"sender@example.org"
NOBODY = "nobody{}@nowhere.example"
ONE_LIST = "to-file ~/.tmda/lists/1 bare\n"

Row = dict[str, str | int | float]

HEADER = b"".join(
    [
        b"Received: from a.example (a.example [192.0.2.1]) by b.example; 1 Jan 2024 00:00:00 +0000",
        b"\r\nFrom: Bench Sender <sender@example.org>\r\nTo: <someone@domain.example>\r\n",
        b"Subject: what it costs\r\nDate: Mon, 01 Jan 2024 00:00:00 +0000\r\n",
        b"Message-ID: <1@example.org>\r\nMIME-Version: 1.0\r\n",
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n",
        *(b"X-Field-%d: a value of some words\r\n" % n for n in range(8)),
        b"\r\n",
    ]
)


class WrongResult(Exception):
    """The engine found something else than it should have, however fast it was."""


@dataclass(frozen=True)
class Effort:
    """How much is measured: ``seconds`` for each figure, a factor for all sizes.

    ``rounds`` are those of what runs for itself until its end; ``part`` of the largest size is
    the largest that is measured of a growth.
    """

    seconds: float
    rounds: int
    scale: float
    part: float = 1

    def sized(self, number: int, least: int = 4 * LISTS) -> int:
        return max(int(number * self.scale), least)

    def sizes(self, growth: Sequence[int]) -> list[int]:
        kept = [number for number in growth if number <= growth[-1] * self.part]
        return sorted({self.sized(number, least=1) for number in kept})


@dataclass(frozen=True)
class Cost:
    """Of one thing, in microseconds: in the best round, and in the median one."""

    best: float
    median: float

    def row(self, name: str) -> Row:
        return {name: self.best, f"{name}, median": self.median}


def nothing() -> None:
    """What need not be done before a round."""


def cost(
    work: Callable[[], object],
    things: int,
    seconds: float,
    before: Callable[[], object] = nothing,
) -> Cost:
    """Of each of the ``things`` that ``work`` does in a round; ``before`` it is not timed.

    A disturbance of the machine makes rounds slower, and none faster.
    """
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < LEAST_ROUNDS or time.perf_counter() < end:
        before()
        begun = time.perf_counter_ns()
        work()
        samples.append((time.perf_counter_ns() - begun) / 1000 / things)
    return Cost(min(samples), statistics.median(samples))


def show(title: str, remark: str, rows: list[Row]) -> list[Row]:
    """Print rows as a table; what is no count gets three digits that count."""

    def text(value: str | int | float) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"

    head = list(rows[0]) if rows else []
    table(title, remark, head, [[text(value) for value in row.values()] for row in rows])
    return rows


# The files of a user


def filter_text(rules: int, lists: int) -> str:
    """Addresses, a rule each, with lists among them; in the middle a domain and all below it."""
    lines = [f"to rule{number}@rules.example sender" for number in range(1, rules + 1)]
    lines[rules // 2] = "to *@=domain.example sender"
    for number in range(1, lists + 1):
        lines[number * (rules // lists) - 1] = f"to-file ~/.tmda/lists/{number} bare"
    return "".join(f"{line}\n" for line in lines)


def list_text(number: int, entries: int) -> str:
    """Addresses, every tenth with an action of its own; the last line is a domain."""
    lines = [f"user{n}@list{number}.example{' dated=1d' * (n % 10 == 0)}" for n in range(entries)]
    lines[-1] = f"domain{number}.example"
    return "".join(f"{line}\n" for line in lines)


class Home:
    """A home directory with what the engine reads of it."""

    def __init__(self, path: Path, rules: str, lists: Iterable[str] = ()) -> None:
        self.path = path
        self.write("config", 'USERNAME = "sender"\nHOSTNAME = "example.org"\n')
        self.write("crypt_key", KEY)
        self.write("filters/outgoing", rules)
        for number, text in enumerate(lists, 1):
            self.write(f"lists/{number}", text)

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        path = self.path / ".tmda" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def touch(self, *names: str) -> None:
        for name in names:
            path = self.path / ".tmda" / name
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))

    def files(self) -> UserFiles:
        who = Surroundings(str(self.path), "sender", "Bench Sender", "proxy.example.org")
        return UserFiles("", who)


def large_home(path: Path, effort: Effort) -> Home:
    lists = (list_text(number, effort.sized(ENTRIES)) for number in range(1, LISTS + 1))
    return Home(path, filter_text(effort.sized(RULES), LISTS), lists)


def large_title(effort: Effort) -> str:
    rules, entries = effort.sized(RULES), effort.sized(ENTRIES)
    return f"{rules} rules, {LISTS} of them lists of {entries} entries"
