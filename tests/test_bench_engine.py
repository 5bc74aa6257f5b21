"""The benchmark of the engine runs, judges what it measures, and its figures tell what was read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tofmipd.tmda.pattern import PatternSet, compile_pattern

ENGINE = Path(__file__).parent.parent / "bench/engine.py"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, ENGINE, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run with tiny numbers, of all that needs no other program; its figures."""
    path = tmp_path_factory.mktemp("engine") / "figures"
    result = run(
        "--quick",
        "--scale",
        "0.002",
        "--parts",
        "load,find,wildcards,growth,message",
        "--json",
        str(path),
        TMPDIR=str(path.parent),
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout, json.loads(path.read_text()), path


@pytest.mark.parametrize(
    "heading", ["Reading: ", "Finding: ", "Wildcards: ", "Growth: ", "A message: "]
)
def test_each_part_prints_a_table_with_figures(done, heading):
    _, found, table = done[0].partition(f"### {heading}")
    rows = [line for line in table.partition("###")[0].splitlines() if line.startswith("|")]
    assert found
    assert len(rows) > 2
    assert len({row.count(" |") for row in (rows[0], *rows[2:])}) == 1


def test_the_figures_are_those_of_the_tables(done):
    printed, figures, _ = done
    assert list(figures) == ["load", "find", "wildcards", "growth", "message"]
    for rows in figures.values():
        for row in rows:
            assert f"| {next(iter(row.values()))} |" in printed
            assert all(value >= 0 for value in row.values() if not isinstance(value, str))


def test_nothing_is_left_behind(done):
    path = done[2]
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("nothing read yet", 3 + 5),
        ("nothing has changed", 0),
        ("one list has", 1),
        ("all lists have", 5),
    ],
)
def test_a_file_is_read_once_each_time_it_changes(done, change, read):
    (row,) = [row for row in done[1]["load"] if row["what"] == change]
    assert row["files read"] == read


def test_equal_tags_share_a_copy(done):
    copies = [(row["tags"], row["recipients"], row["copies"]) for row in done[1]["message"]]
    assert copies == [
        *[("equal", number, 1) for number in (1, 10, 100)],
        *[("different", number, number) for number in (1, 10, 100)],
    ]


def test_a_large_message_takes_no_more_memory_than_a_small_one(tmp_path):
    """10 MB beside 10 KB.  The same through a daemon is left to the benchmark."""
    path = tmp_path / "figures"
    result = run(
        "--quick",
        "--scale",
        "0.2",
        "--parts",
        "memory",
        "--json",
        str(path),
        SMTPLOAD="/nonexistent",
    )
    assert result.returncode == 0, result.stderr
    assert "skipped daemon" in result.stderr
    rows = json.loads(path.read_text())["memory"]
    assert len(rows) == 2
    for row in rows:
        assert 5 < row["small MiB"] < 100
        assert row["more MiB"] < 5


@pytest.mark.parametrize(
    "arguments", [["--parts", "nonsense"], ["--scale", "0"], ["--scale", "nan"], ["more"]]
)
def test_a_wrong_command_line_is_refused(arguments):
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage:" in result.stderr


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        (b"*@=", b"a@b.example"),
        (b"*@=", b"a@b"),
        (b"*@=", b"a@b."),
        (b"*@=", b"a@"),
        (b"x[@.]y.example", b"x@y.example"),
        (b"x[@.]y.example", b"x.y.example"),
        (b"x[@=.]y.example", b"x.y.example"),
        (b"[@=-abcd]", b"*"),
        (b"*@=d.example", b"a@.d.example"),
        (b"*@=d.example", b"a@xd.example"),
        (b"name-*@=d.example", b"name-x@b.d.example"),
        (b"*foo", b"foo"),
        (b"fo*oo", b"foo"),
        (b"*[!foo", b"x[!foo"),
        (b"[]foo]*", b"]foo"),
    ],
)
def test_what_is_looked_up_quickly_is_what_the_pattern_says(pattern, key):
    wanted = compile_pattern(pattern).fullmatch(key) is not None
    assert (PatternSet([pattern]).first(key) is not None) == wanted
