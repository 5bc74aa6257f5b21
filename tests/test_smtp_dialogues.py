"""Conversations as files: tests/dialogues/*.txt.

Each line of a file begins with one of these:

``# ``   a comment, as is an empty line
``! ``   NAME VALUE: a field of Policy (`size_limit_octets 100`, `mechanisms PLAIN LOGIN`), or
         `password USER PASSWORD`, `sources unavailable`, `outcome CODE DETAIL TEXT`;
         these stand before the conversation
``C: ``  a line that the client sends, without its CRLF; lines that follow each other are sent at
         once.  ``\\xNN`` is an octet, ``\\n`` a line feed
``S: ``  a line that the server answers; ``...`` stands for any text.  `<closed>` is the end of
         the connection
``G: ``  what the session asks of what stands behind the gate, as `fakes.Desk` puts it

``{a*500}`` is five hundred times "a", and ``{ *1}`` a blank at the end of a line.  All S and G
lines between two C lines are compared, in their order, with all that came out.  Each file is
played twice: with whole groups of C lines, and octet by octet.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from fakes import ALL_MECHANISMS, Desk, octet_by_octet

from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import Policy

FILES = sorted((Path(__file__).parent / "dialogues").glob("*.txt"))
PASSWORDS = {"bobby": b"FooBar", "tim": b"tanstaaftanstaaf"}
NUMBERS = {f.name for f in dataclasses.fields(Policy) if f.type in ("int", "bool")}


def desk_for(settings: list[str]) -> Desk:
    """A desk with the settings of the "!" lines."""
    policy = Policy("mx.example", ALL_MECHANISMS)
    desk = Desk(policy, dict(PASSWORDS))
    for name, value in (setting.split(" ", 1) for setting in settings):
        if name == "password":
            user, password = value.split(" ", 1)
            desk.passwords[user] = password.encode()
        elif name == "sources":
            desk.unavailable = value == "unavailable"
        elif name == "outcome":
            code, detail, text = value.split(" ", 2)
            desk.outcome = Reply(int(code), detail, (text,))
        elif name in NUMBERS:
            policy = dataclasses.replace(policy, **{name: int(value)})
        else:
            policy = dataclasses.replace(policy, **{name: tuple(value.split())})
    return Desk(policy, desk.passwords, unavailable=desk.unavailable, outcome=desk.outcome)


def repeated(line: str) -> str:
    return re.sub(r"\{(.+?)\*([0-9]+)\}", lambda m: m[1] * int(m[2]), line)


def octets_of(line: str) -> bytes:
    octets = repeated(line[2:].removeprefix(" ")).encode().replace(b"\\n", b"\n")
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), octets) + b"\r\n"


def pattern_of(line: str) -> str:
    return ".*".join(re.escape(part) for part in repeated(line).split("..."))


def groups_of(lines: list[str]) -> Iterable[tuple[list[str], list[str]]]:
    """What the client sends at once, and all that it must get for it; the greeting is first."""
    sent: list[str] = []
    expected: list[str] = []
    for line in lines:
        if line.startswith("C:") and expected:
            yield sent, expected
            sent, expected = [], []
        (sent if line.startswith("C:") else expected).append(line)
    yield sent, expected


def whole(octets: bytes) -> Iterable[bytes]:
    return (octets,)


def test_there_are_dialogues():
    assert len(FILES) > 20


@pytest.mark.parametrize("pieces", [whole, octet_by_octet])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_session_answers_as_written(
    path: Path, pieces: Callable[[bytes], Iterable[bytes]]
) -> None:
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    desk = desk_for([line[2:] for line in lines if line.startswith("! ")])
    talk = [line for line in lines if not line.startswith("! ")]
    assert all(line.startswith(("C:", "S: ", "G: ")) for line in talk)
    for sent, expected in groups_of(talk):
        for octets in pieces(b"".join(octets_of(line) for line in sent)):
            desk.feed(octets)
        said = desk.said()
        shown = f"after {sent}: {said}"
        assert len(said) == len(expected), shown
        for is_line, must_line in zip(said, expected, strict=True):
            assert re.fullmatch(pattern_of(must_line), is_line), f"{shown}, wanted {must_line}"
