"""Every line of the log: its name, the names of its values, and what docs/log.md says of it."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tofmipd.events import ALL, OF_WORKERS, OTHERS, Claim, Json, packed, unpacked

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs/log.md").read_text()
LEVELS = {"debug", "info", "warning", "error"}
PLACEHOLDER = re.compile(r"%(?:\.[0-9])?[a-z]")
# Where a user's own programs run beside us.
WORKER_ROOMS = {"handoff"}
WORKER_MODULES = {"errands", "outbound", "senders", "users", "worker"}


# The calls in the source.


@dataclass(frozen=True)
class Call:
    """One place that logs; ``levels`` are those that it may log at."""

    text: str
    levels: frozenset[str]
    place: str
    of_worker: bool


def levels_of(node: ast.Call, name: str, function: ast.AST) -> frozenset[str]:
    """Of a level that is chosen, all that the function speaks of."""
    if name == "note":
        return frozenset({"info"})
    if name != "log":
        return frozenset({"error" if name == "exception" else name})
    fixed = isinstance(node.args[0], ast.IfExp) and "_LEVELS" not in ast.unparse(node.args[0])
    where = ast.unparse(node.args[0] if fixed else function)
    if "_LEVELS" in where:
        return frozenset(LEVELS)
    return frozenset(level.lower() for level in re.findall(r"logging\.([A-Z]+)", where))


def calls_in(path: Path) -> Iterator[Call]:
    """What looks like a call that logs must say what as a plain text."""
    of_worker = path.parent.name in WORKER_ROOMS or path.stem in WORKER_MODULES
    tree = ast.parse(path.read_text())
    functions = {
        node: function
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(ast.Name("log" | "trace"), name)):
                pass
            case ast.Call(func=ast.Attribute(_, "note" | "_note" as name)):
                name = "note"
            case ast.Call(func=ast.Name("note")):
                name = "note"
            case _:
                continue
        if name in (*LEVELS, "exception", "critical", "log", "note"):
            place = f"{path.name}:{node.lineno}"
            text = node.args[name == "log"]
            assert isinstance(text, ast.Constant), f"{place}: its text is not told"
            yield Call(text.value, levels_of(node, name, functions[node]), place, of_worker)


CALLS = [call for path in sorted((ROOT / "tofmipd").rglob("*.py")) for call in calls_in(path)]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.place)
def test_every_call_has_a_name_and_one_for_each_of_its_values(call):
    assert call.text in ALL, call.text
    name, *names = ALL[call.text].split()
    assert len(names) == len(PLACEHOLDER.findall(call.text.replace("%%", "")))
    assert re.fullmatch(r"[a-z]+(?:-[a-z]+)*", name)
    assert all(re.fullmatch(r"-|[a-z]+(?:_[a-z]+)*", one) for one in names)
    told = [one for one in names if one != "-"]
    assert len(told) == len(set(told))
    assert not {"time", "level", "event", "message", "traceback"} & set(told)


def test_no_name_is_for_a_line_that_nobody_logs():
    assert set(ALL) - {call.text for call in CALLS} == set()


def test_workers_may_claim_what_is_logged_in_workers_and_nothing_else():
    in_workers = {call.text for call in CALLS if call.of_worker}
    # That of a process which becomes a worker.
    assert set(OF_WORKERS) == in_workers | {"no outbox: %s"}
    assert not set(OF_WORKERS) & set(OTHERS)


# docs/log.md


@dataclass(frozen=True)
class Row:
    line: str
    levels: frozenset[str]
    event: str
    meaning: str


def rows() -> list[Row]:
    cells = re.findall(
        r"^\| ``? ?(.*?) ?``? \| ([a-z, ]+) \| ([a-z-]+) \| (.*) \|$", DOCUMENT, re.M
    )
    return [Row(line, frozenset(a.split(", ")), event, text) for line, a, event, text in cells]


def shown(text: str) -> str:
    """A call's text as the document has it: the names of values in capitals in their places."""
    names = iter(ALL[text].split()[1:])

    def named(match: re.Match[str]) -> str:
        name = next(names)
        capitals = "..." if name == "-" else name.upper()
        return f"'{capitals}'" if match[0] == "%r" else capitals

    return PLACEHOLDER.sub(named, text)


ROWS = {row.line: row for row in rows()}


@pytest.mark.parametrize("text", ALL)
def test_every_line_is_in_the_document(text):
    assert shown(text) in ROWS
    row = ROWS[shown(text)]
    assert row.event == ALL[text].split()[0]
    assert row.levels == set().union(*(call.levels for call in CALLS if call.text == text))
    assert len(row.meaning) > 20


def test_the_document_has_no_other_line():
    assert len(ROWS) == len(rows())
    assert set(ROWS) == {shown(text) for text in ALL}


def test_every_value_is_explained_and_no_other():
    values = DOCUMENT.partition("\n### Values\n")[2]
    explained = re.findall(r"^\| `([A-Z_]+)` \| \S", values, re.M)
    used = {name for row in ALL.values() for name in row.split()[1:] if name != "-"}
    assert sorted(explained) == sorted(name.upper() for name in used)


# JSON


def record(text: object, *values: object, error: bool = False) -> logging.LogRecord:
    failure = None
    if error:
        try:
            raise ValueError("first\nsecond \udcff")
        except ValueError:
            failure = sys.exc_info()
    return logging.LogRecord("tofmipd", logging.WARNING, "x", 1, text, values, failure)


def object_of(line: str) -> dict[str, object]:
    """Of one line, as strict as can be."""
    assert line.isascii()
    assert line.isprintable()

    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        assert len(dict(found)) == len(found)
        return dict(found)

    told = json.loads(line, object_pairs_hook=pairs, parse_constant=pytest.fail)
    json.dumps(told, ensure_ascii=False).encode()
    return dict(told)


def test_a_line_is_an_object_with_its_values():
    made = record("s=%s %d octets behind STARTTLS are ignored", "7f3a", 6)
    made.created = 1_795_300_000.0126
    assert object_of(Json().format(made)) == {
        "time": "2026-11-21T22:26:40.012Z",
        "level": "warning",
        "event": "early-octets",
        "session": "7f3a",
        "count": 6,
        "message": "s=7f3a 6 octets behind STARTTLS are ignored",
    }


HOSTILE = st.one_of(
    st.text(), st.text(st.sampled_from('"\\\n\r\x00\x1b\x7f\x85\u2028\udcff\ud800ä😀'))
)
NUMBERS = st.one_of(st.integers(), st.floats())
# The first text of a fresh clone takes seconds to draw where others work, too.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(st.sampled_from(sorted(ALL)), st.data())
def test_whatever_a_line_tells_it_is_one_object(text, data):
    values = []
    for kind in PLACEHOLDER.findall(text):
        if kind in ("%s", "%r"):
            values.append(data.draw(HOSTILE))
        else:
            values.append(data.draw(st.integers(-(10**12), 10**12)))
    told = object_of(Json().format(record(text, *values)))
    names = ALL[text].split()[1:]
    for name, value in zip(names, values, strict=True):
        if name != "-":
            shown = value if isinstance(value, int) else value.encode("utf-8", "backslashreplace")
            assert told[name] == (shown if isinstance(shown, int) else shown.decode())
    assert told["event"] == ALL[text].split()[0]


@unhurried
@given(HOSTILE, st.lists(st.one_of(HOSTILE, NUMBERS, st.none(), st.binary()), max_size=2))
def test_lines_of_others_are_objects_too(text, values):
    plain = text.replace("%", "%%") + " %s" * len(values)
    told = object_of(Json().format(record(plain, *values)))
    assert told["event"] == "other"
    assert set(told) == {"time", "level", "event", "message"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, True),
        (None, None),
        (1.23456, 1.235),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (ValueError("x\ny"), "x\ny"),
        (b"x", "b'x'"),
    ],
)
def test_a_value_is_what_json_can_have(value, shown):
    told = object_of(Json().format(record("s=%s timeout: %s", "7f3a", value)))
    assert told["reason"] == shown


def test_a_traceback_is_a_value_of_its_own():
    told = object_of(Json().format(record("s=%s internal error", "7f3a", error=True)))
    assert told["message"] == "s=7f3a internal error"
    first, *_, last = str(told["traceback"]).split("\n")
    assert first == "Traceback (most recent call last):"
    assert last == "second \\udcff"


# What workers say.


SENT = next(text for text in OF_WORKERS if text.startswith("s=%s sent to=%r rule="))
VALUES = ("7f3a", "x@y.example", "to * bare", "bare", "a", "b", "<1@c>", "", "h:25", "250 ok", 7)


@unhurried
@given(st.sampled_from(sorted(OF_WORKERS)), st.data())
def test_what_a_worker_logs_arrives_as_it_was(text, data):
    kinds = PLACEHOLDER.findall(text)
    values = tuple(
        data.draw(HOSTILE if kind in ("%s", "%r") else st.integers(0, 10**9)) for kind in kinds
    )
    claim = unpacked(packed(text, values, "", 100_000))
    assert claim is not None
    direct = object_of(Json().format(record(text, *values)))
    for name, value in claim.values.items():
        assert direct[name] == value
    assert claim.event == direct["event"]
    assert claim.text == direct["message"] or "\\ud" in claim.text


def test_what_the_reader_knows_itself_is_not_believed():
    claim = unpacked(packed(SENT, VALUES, "", 7000))
    told = object_of(Json().format(record("s=%s %s", "beef", claim)))
    assert (told["event"], told["session"], told["to"]) == ("sent", "beef", "x@y.example")
    claim = unpacked(packed("s=%s refused: user=%r %s", ("7", "victim", "no"), "", 7000))
    told = object_of(Json().format(record("outbox of %r: %s", "anna", claim)))
    assert (told["event"], told["user"], told["session"]) == ("refusal", "anna", "7")


def test_a_traceback_of_a_worker_is_a_value_too():
    claim = unpacked(packed("internal error", (), "Traceback\nx", 7000))
    told = object_of(Json().format(record("s=%s %s", "7f3a", claim)))
    assert told["traceback"] == "Traceback\nx"
    assert told["session"] == "7f3a"


def test_what_is_too_long_for_its_way_is_no_event():
    line = packed(SENT, VALUES, "", 1000)
    assert packed(SENT, VALUES, "", len(line)) == line
    assert packed(SENT, VALUES, "", len(line) - 1) == ""
    for limit in (7000, 1000):
        long = packed("s=%s refused: %s", ("7f3a", "x"), "y" * 100_000 + "end", limit)
        assert limit / 3 < len(long) <= limit
        assert str(unpacked(long).values["traceback"]).endswith("end")


FORGED = [
    "",
    "sent",
    "null",
    "[]",
    "{}",
    "[1, 2, 3]",
    '["' + SENT + '", [], ""]',
    json.dumps([SENT, "x" * len(VALUES), ""]),
    json.dumps([SENT, [*VALUES[:-1], "seven"], ""]),
    json.dumps([SENT, [*VALUES, 1], ""]),
    json.dumps([SENT, [*VALUES[:-1], [1]], ""]),
    json.dumps([SENT, [*VALUES[:-1], {"a": 1}], ""]),
    json.dumps([SENT, [*VALUES[:-1], float("inf")], ""]),
    json.dumps([SENT, [*VALUES[:-1], None], ""]),
    json.dumps([SENT, list(VALUES), 5]),
    json.dumps([SENT, list(VALUES)]),
    json.dumps([[SENT], list(VALUES), ""]),
    "[" * 5000,
    '["internal error", [], "", ' + "9" * 5000 + "]",
    *(json.dumps([text, ["x"] * len(ALL[text].split()[1:]), ""]) for text in OTHERS),
]


@pytest.mark.parametrize("line", FORGED, ids=range(len(FORGED)))
def test_what_no_worker_could_have_logged_is_no_event(line):
    assert unpacked(line) is None


@unhurried
@given(st.one_of(st.text(), st.from_type(bool | int | float | None | list | dict).map(str)))
def test_noise_is_no_event(line):
    assert unpacked(line) is None or isinstance(unpacked(line), Claim)
