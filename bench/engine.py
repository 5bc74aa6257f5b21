#!/usr/bin/env python3
"""Measure the engine that tags: reading filters and lists, finding rules, tagging, memory.

    engine.py --quick
    engine.py --parts load,find
    engine.py --scale 0.1           (a tenth of all rules, entries and octets)

README.md beside this file tells what is measured and how to read the tables.
"""

import argparse
import functools
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compare import SIGNALS, unwind
from enginehome import (
    BATCH,
    ENTRIES,
    ENTRIES_GROWTH,
    HEADER,
    LISTS,
    NOBODY,
    ONE_LIST,
    RECIPIENTS_GROWTH,
    RULES,
    RULES_GROWTH,
    SENDER,
    WANTED_US,
    Effort,
    Home,
    Row,
    WrongResult,
    cost,
    large_home,
    large_title,
    nothing,
    show,
)
from enginememory import measure_memory
from machine import describe

from tofmipd.tmda import header
from tofmipd.tmda.inject import Message, Outside, Stamp, tag_message
from tofmipd.tmda.lists import parse_list
from tofmipd.tmda.parser import parse_filter
from tofmipd.tmda.profile import Profile

# Reading


class Opened:
    """Counts how often files below a directory are opened, as the interpreter tells of it."""

    def __init__(self, below: Path) -> None:
        self.count = 0
        self._below = f"{below}/"
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        # An open() is told of, too, and has a mode: the engine's have an os.open() beneath them.
        if event == "open" and arguments[1] is None and str(arguments[0]).startswith(self._below):
            self.count += 1


def measure_load(base: Path, effort: Effort) -> list[Row]:
    """What is done before the first recipient of a message is judged."""
    home = large_home(base / "load", effort)
    opened = Opened(home.path)
    files = home.files()
    recipient = NOBODY.format("").encode()

    def use() -> None:
        profile = files.profile()
        profile.filter.find(recipient, SENDER, profile.library.reading())

    def forget() -> None:
        nonlocal files
        files = home.files()

    lists = [f"lists/{number}" for number in range(1, LISTS + 1)]
    changes: dict[str, Callable[[], None]] = {
        "nothing read yet": forget,
        "nothing has changed": nothing,
        "one list has": lambda: home.touch(lists[2]),
        "all lists have": lambda: home.touch(*lists),
        "the filter has": lambda: home.touch("filters/outgoing"),
        "the configuration has": lambda: home.touch("config"),
    }
    rows: list[Row] = []
    for name, change in changes.items():
        use()
        spent = cost(use, 1, effort.seconds, before=change)
        change()
        opened.count = 0
        use()
        rows.append({"what": name, **spent.row("µs"), "files read": opened.count})
    return show(f"Reading: {large_title(effort)}", "", rows)


# Finding


def look_up(
    profile: Profile, recipients: Sequence[bytes], line: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Finds all recipients, as those of one message, and as one of a message each.

    Raises WrongResult if the rule is not on that line; 0 is for no rule.
    """
    find = profile.filter.find
    for recipient in recipients:
        match = find(recipient, SENDER, profile.library.reading())
        found = match.rule.place.line if match is not None else 0
        if found != line:
            raise WrongResult(f"{recipient.decode()}: line {found} instead of {line}")
    reading = profile.library.reading()

    def together() -> None:
        for recipient in recipients:
            find(recipient, SENDER, reading)

    def apart() -> None:
        for recipient in recipients:
            find(recipient, SENDER, profile.library.reading())

    return together, apart


def many(pattern: str, numbers: Iterable[int], count: int = BATCH) -> list[bytes]:
    """Recipients that differ, if the pattern lets them."""
    return [pattern.format(n).encode() for n in itertools.islice(itertools.cycle(numbers), count)]


def measure_find(base: Path, effort: Effort) -> list[Row]:
    """What each recipient costs, by which rule decides."""
    profile = large_home(base / "find", effort).files().profile()
    rules, entries = effort.sized(RULES), effort.sized(ENTRIES)
    every = rules // LISTS
    plain = [n for n in range(1, entries - 1) if n % 10]
    cases = {
        "first rule": (many("rule1@rules.example", [1]), 1),
        "last rule": (many(f"rule{rules - 1}@rules.example", [1]), rules - 1),
        "`*@=domain` in the middle": (many("a{}@b.domain.example", range(BATCH)), rules // 2 + 1),
        "entry of the first list": (many("user{}@list1.example", plain), every),
        "entry of the last list": (many(f"user{{}}@list{LISTS}.example", plain), rules),
        "entry with an action": (
            many(f"user{{}}@list{LISTS}.example", range(0, entries - 1, 10)),
            rules,
        ),
        "domain in the last list": (many(f"a{{}}@domain{LISTS}.example", range(BATCH)), rules),
        "none": (many(NOBODY, range(BATCH)), 0),
    }
    rows: list[Row] = []
    for name, (recipients, line) in cases.items():
        together, apart = look_up(profile, recipients, line)
        first = cost(apart, BATCH, effort.seconds)
        further = cost(together, BATCH, effort.seconds)
        rows.append({"decided by": name, **further.row("µs"), **first.row("alone µs")})
    remark = f"Per recipient; wanted are less than {WANTED_US} µs."
    return show(f"Finding: {large_title(effort)}", remark, rows)


# Kinds of patterns; an address that the last of them matches, and one that none does, but nearly.
WILDCARDS = {
    "`*@d`": ("*@d{:06}.example", "a@d{:06}.example", "a@c{:06}.example"),
    "`*@=d`": ("*@=d{:06}.example", "a@b.d{:06}.example", "a@b.c{:06}.example"),
    "`name@*`": ("name{:06}@*", "name{:06}@b.example", "nane{:06}@b.example"),
    "`name-*@one`": ("name{:06}-*@b.example", "name{:06}-a@b.example", "name{:06}@b.example"),
    "`*@*.d`": ("*@*.d{:06}.example", "a@b.d{:06}.example", "a@b.c{:06}.example"),
    "`*foo*`": ("*foo{:06}*", "a.foo{:06}.b@c.example", "a.fou{:06}.b@c.example"),
    "`?[ab]*foo@*`": ("?[ab]*foo{:06}@*", "1a2foo{:06}@b.example", "1c2foo{:06}@b.example"),
}


def measure_wildcards(base: Path, effort: Effort) -> list[Row]:
    """One list of patterns of one kind; the first address that is looked up compiles them."""
    entries = effort.sized(ENTRIES)
    rows: list[Row] = []
    for name, (pattern, hit, miss) in WILDCARDS.items():
        text = "".join(f"{pattern.format(n)}\n" for n in range(entries))
        home = Home(base / f"wildcards{len(rows)}", ONE_LIST, [text])
        profile = home.files().profile()
        read = cost(functools.partial(parse_list, text.encode()), 1, effort.seconds / 4)
        patterns, key = parse_list(text.encode()), miss.format(0).encode()
        begun = time.perf_counter_ns()
        patterns.find([key, key.rpartition(b"@")[2]])
        first = (time.perf_counter_ns() - begun) / 1e6
        row: Row = {"kind": name, "read ms": read.best / 1000, "first ms": first}
        hits, misses = many(hit, [entries - 1], 10), many(miss, range(0, entries, 7), 10)
        for column, recipients, line in (("last µs", hits, 1), ("none µs", misses, 0)):
            together, _ = look_up(profile, recipients, line)
            row |= cost(together, len(recipients), effort.seconds).row(column)
        rows.append(row)
    remark = "Per recipient: of the last pattern, and of none."
    return show(f"Wildcards: a list of {entries}", remark, rows)


# What there is more and more of, a line of it, and an address that only the last line matches.
GROWTH = (
    ("rules", RULES_GROWTH, "to rule{:06}@rules.example sender\n", "rule{:06}@rules.example"),
    ("rules `*foo*`", RULES_GROWTH, "to *foo{:06}* sender\n", "a.foo{:06}.b@c.example"),
    ("entries", ENTRIES_GROWTH, "user{:06}@list.example\n", "user{:06}@list.example"),
)


def measure_growth(base: Path, effort: Effort) -> list[Row]:
    """Whether reading and finding stay what they are when there is more."""
    rows: list[Row] = []
    for kind, growth, line, hit in GROWTH:
        for number in effort.sizes(growth):
            text = "".join(line.format(n) for n in range(1, number + 1))
            path = base / f"growth{len(rows)}"
            if kind == "entries":
                home = Home(path, ONE_LIST, [text])
                parse: Callable[[], object] = functools.partial(parse_list, text.encode())
            else:
                home = Home(path, text)
                parse = functools.partial(parse_filter, text, "outgoing")
            figures: Row = {"read ms": cost(parse, 1, effort.seconds / 4).best / 1000}
            figures["KiB"] = kept_octets(parse) / 1024
            profile = home.files().profile()
            cases = {
                "last µs": (many(hit, [number], 10), 1 if kind == "entries" else number),
                "none µs": (many(NOBODY, range(10)), 0),
            }
            for column, (recipients, found) in cases.items():
                together, _ = look_up(profile, recipients, found)
                figures[column] = cost(together, len(recipients), effort.seconds).best
            rows.append({"of": kind, "number": number, **figures})
    return show("Growth: the last one decides, or none", "", rows)


def kept_octets(parse: Callable[[], object]) -> int:
    """What the result of ``parse`` takes in memory."""
    tracemalloc.start()
    try:
        kept = parse()
        octets, _ = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return octets


# Tagging

STAMP = Stamp(1.7e9, b"Tue, 14 Nov 2023 22:13:20 +0000", b"from a by b", b"<2@example.org>", b"b")


def tag_all(profile: Profile, recipients: Sequence[bytes]) -> int:
    """All that is done for a message but reading and sending it; how many copies there are."""
    fields, _ = header.parse(HEADER)
    outside = Outside(profile.library.reading())
    copies = tag_message(profile, Message(fields, recipients), STAMP, outside)
    for copy in copies:
        assert copy.header
    return len(copies)


def measure_message(base: Path, effort: Effort) -> list[Row]:
    """A whole message, from the octets of its header to those of its copies'."""
    profile = large_home(base / "message", effort).files().profile()
    # Every tenth entry has an action of its own, and would get another tag.
    plain = [n for n in range(effort.sized(ENTRIES) - 1) if n % 10]
    tags = {
        "equal": (f"user{{}}@list{LISTS}.example", plain),
        "different": ("a{}@b.domain.example", range(RECIPIENTS_GROWTH[-1])),
    }
    rows: list[Row] = []
    for name, (pattern, numbers) in tags.items():
        for number in RECIPIENTS_GROWTH:
            recipients = many(pattern, numbers, number)
            copies = tag_all(profile, recipients)
            if copies != (1 if name == "equal" else number):
                raise WrongResult(f"{copies} copies for {number} recipients with {name} tags")
            work = functools.partial(tag_all, profile, recipients)
            spent = cost(work, 1, effort.seconds)
            each: Row = {"µs per recipient": spent.best / number}
            head: Row = {"tags": name, "recipients": number, "copies": copies}
            rows.append(head | spent.row("µs") | each)
    return show(f"A message: {large_title(effort)}", "", rows)


# The command line

PARTS: dict[str, Callable[[Path, Effort], list[Row]]] = {
    "memory": measure_memory,
    "load": measure_load,
    "find": measure_find,
    "wildcards": measure_wildcards,
    "growth": measure_growth,
    "message": measure_message,
}


@dataclass(frozen=True)
class Options:
    parts: list[str]
    effort: Effort
    json: Path | None


def parse_options() -> Options:
    """Read the command line; ends the program when it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="less time for each figure, smaller growth")
    add("--parts", default=",".join(PARTS), help=f"comma-separated; default: {','.join(PARTS)}")
    add("--scale", type=float, default=1.0, help="multiplies all sizes")
    add("--json", type=Path, help="file for all figures")
    given = parser.parse_args()
    parts = [part for part in given.parts.split(",") if part]
    for part in parts:
        if part not in PARTS:
            parser.error(f"no part {part!r}; there are {', '.join(PARTS)}")
    if not 0 < given.scale < 100:
        parser.error("--scale must be positive and below 100")
    effort = Effort(0.4, 3, given.scale)
    if given.quick:
        effort = Effort(0.05, 1, given.scale, part=0.1)
    return Options(parts, effort, given.json)


def measure(options: Options) -> None:
    """Measure and print all that was asked for.  Raises WrongResult, RuntimeError."""
    print(f"{describe((), {})}\n", flush=True)
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="enginebench-") as directory:
        for part in options.parts:
            results[part] = PARTS[part](Path(directory), options.effort)
            if options.json:
                options.json.write_text(f"{json.dumps(results, indent=1)}\n")


def main() -> None:
    """Run from the command line."""
    options = parse_options()
    for sign in SIGNALS:
        signal.signal(sign, unwind)
    try:
        measure(options)
    except (WrongResult, RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"engine.py: {error}")


if __name__ == "__main__":
    main()
