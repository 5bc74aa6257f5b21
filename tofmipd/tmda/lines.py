"""From the lines of a filter to the text of its rules (TMDA reference, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Rules as (number of the first line, text): no comments, continuations joined.

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
