"""Conversations as files: tests/dialogues/*.txt.

Each line of a file begins with one of these:

``# ``   a comment, as is an empty line
``! ``   NAME VALUE: a field of Policy (`size_limit_octets 100`, `mechanisms PLAIN LOGIN`), or
         `password USER PASSWORD`, `sources unavailable`, `outcome CODE DETAIL TEXT`,
         `certificate NAME ADDRESS ...` for whom the certificate of the client names, which is
         seen when TLS begins, and `encryption at-once` for TLS that comes before the greeting;
         these stand before the conversation
``C: ``  a line that the client sends, without its CRLF; lines that follow each other are sent at
         once.  ``\\xNN`` is an octet, ``\\r`` and ``\\n`` are CR and LF
``D: ``  octets that the client sends with no CRLF behind them, as they follow BDAT
``S: ``  a line that the server answers; ``...`` stands for any text, and a line of nothing else
         for any number of lines.  `<closed>` is the end of the connection
``G: ``  what the session asks of what stands behind the gate, as `fakes.Desk` puts it
``M: ``  behind "G: submit", a line of the message in wire form; where there are none before the
         next C line, messages are not looked at.  A last line without CRLF looks like any other
``--``   alone on a line: the connection ends here, and another one begins

``{a*500}`` is five hundred times "a", and ``{ *1}`` a blank at the end of a line.  All S, G and M
lines between two C lines are compared, in their order, with all that came out.  Each file is
played twice: with whole groups of C lines, and octet by octet.  test_dialogues_over_the_wire.py
plays them over real connections.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from fakes import TAKEN, TLS, Desk, octet_by_octet

from tofmipd.smtp.envelope import Encryption
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import Policy

FILES = sorted((Path(__file__).parent / "dialogues").glob("*.txt"))
STATES = [path for path in FILES if path.name.startswith("state-")]
VERBS = [
    *("EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY"),
    # EXPN and TURN are unknown here; "" is the empty line.
    *("EXPN", "HELP", "QUIT", "TURN", ""),
]
HOST_NAME = "mx.example"
PASSWORDS = {"bobby": b"FooBar", "tim": b"tanstaaftanstaaf"}
# SCRAM is offered where a file says so: clients that can would take it.
MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
NUMBERS = {f.name for f in dataclasses.fields(Policy) if f.type in ("int", "bool")}


class Group(NamedTuple):
    """What the client sends at once, and all that must come of it; the greeting is first."""

    sent: list[str]
    expected: list[str]

    @property
    def octets(self) -> bytes:
        return b"".join(octets_of(line) for line in self.sent)


@dataclass
class Dialogue:
    """One file: the settings of its "!" lines, and its conversations."""

    policy: Policy = field(default_factory=lambda: Policy(HOST_NAME, MECHANISMS))
    passwords: dict[str, bytes] = field(default_factory=lambda: dict(PASSWORDS))
    unavailable: bool = False
    outcome: Reply = TAKEN
    names: tuple[str, ...] = ()
    at_once: bool = False
    conversations: list[list[Group]] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """All that is said in it."""
        groups = [group for groups in self.conversations for group in groups]
        return [line for group in groups for line in (*group.sent, *group.expected)]

    @property
    def encryption(self) -> Encryption:
        certificate = b"a certificate" if self.names else b""
        return dataclasses.replace(
            TLS, at_once=self.at_once, names=self.names, certificate=certificate
        )

    def set(self, name: str, value: str) -> None:
        """Obey a "!" line."""
        match name:
            case "password":
                user, password = value.split(" ", 1)
                self.passwords[user] = password.encode()
            case "sources":
                self.unavailable = value == "unavailable"
            case "outcome":
                code, detail, text = value.split(" ", 2)
                self.outcome = Reply(int(code), detail, (text,))
            case "certificate":
                self.names = tuple(value.split())
            case "encryption":
                assert value == "at-once"
                self.at_once = True
            case _:
                new = int(value) if name in NUMBERS else tuple(value.split())
                self.policy = dataclasses.replace(self.policy, **{name: new})


def read(path: Path) -> Dialogue:
    dialogue = Dialogue()
    talk: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("! "):
            assert not talk, f"{path.name}: {line}"
            dialogue.set(*line[2:].split(" ", 1))
        elif line and line[0] != "#":
            assert line == "--" or line.startswith(("C:", "D: ", "S: ", "G: ", "M:")), line
            talk.append(line)
    while "--" in talk:
        end = talk.index("--")
        dialogue.conversations.append(list(_groups(talk[:end])))
        del talk[: end + 1]
    dialogue.conversations.append(list(_groups(talk)))
    return dialogue


def _groups(lines: list[str]) -> Iterable[Group]:
    group = Group([], [])
    for line in lines:
        ours = line.startswith(("C:", "D: "))
        if ours and group.expected:
            yield group
            group = Group([], [])
        (group.sent if ours else group.expected).append(line)
    yield group


def repeated(line: str) -> str:
    return re.sub(r"\{(.+?)\*([0-9]+)\}", lambda m: m[1] * int(m[2]), line)


def octets_of(line: str) -> bytes:
    """What a C or a D line puts on the wire."""
    octets = repeated(line[2:].removeprefix(" ")).encode()
    octets = octets.replace(b"\\r", b"\r").replace(b"\\n", b"\n")
    octets = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), octets)
    return octets if line.startswith("D:") else octets + b"\r\n"


def lines_of(message: bytes) -> list[str]:
    """The M lines for a message in wire form."""
    text = message.decode("utf-8", "backslashreplace")
    lines = text.removesuffix("\r\n").split("\r\n") if text else []
    return [f"M: {line}" if line else "M:" for line in lines]


def pattern_of(line: str) -> str:
    if line == "S: ...":
        return "(?:S: .*\n)*"
    return ".*".join(re.escape(part) for part in repeated(line).split("...")) + "\n"


def compare(said: list[str], expected: list[str], sent: list[str]) -> None:
    if not any(line.startswith("M:") for line in expected):
        said = [line for line in said if not line.startswith("M:")]
    wanted = "".join(pattern_of(line) for line in expected)
    text = "".join(line + "\n" for line in said)
    assert re.fullmatch(wanted, text), f"after {sent}: {said}, wanted {expected}"


class FileDesk(Desk):
    """A desk as a file wants it; with the messages in what it says."""

    def __init__(self, dialogue: Dialogue) -> None:
        super().__init__(
            dialogue.policy,
            dialogue.passwords,
            outcome=dialogue.outcome,
            encryption=dialogue.encryption,
        )
        self.judge.unavailable = dialogue.unavailable
        if dialogue.at_once:
            self.session.secured(self.encryption)

    def said(self) -> list[str]:
        said: list[str] = []
        for line in super().said():
            said.append(line)
            if line.startswith("G: submit"):
                said += lines_of(self.received.pop(0))
        return said


def whole(octets: bytes) -> Iterable[bytes]:
    return (octets,)


def test_there_are_dialogues():
    assert len(FILES) > 100


@pytest.mark.parametrize("pieces", [whole, octet_by_octet])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_session_answers_as_written(
    path: Path, pieces: Callable[[bytes], Iterable[bytes]]
) -> None:
    dialogue = read(path)
    for groups in dialogue.conversations:
        desk = FileDesk(dialogue)
        for group in groups:
            for octets in pieces(group.octets):
                desk.feed(octets)
            compare(desk.said(), group.expected, group.sent)


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_each_verb_is_tried_in_each_state(path):
    said = {line[2:].split(" ")[1] for line in read(path).lines if line.startswith("C: ")}
    if "C:" in path.read_text().splitlines():
        said.add("")
    assert not set(VERBS) - said
