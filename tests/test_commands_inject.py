"""`tofmipd inject`: which rule matches (-M), how a message is read, what is wrong usage.

tests/system/test_tools.py and test_inject_vectors.py run the sending.
"""

from __future__ import annotations

import io
import os
import re

import pytest
from fakes import in_pieces
from test_tmda_vectors import (
    FILTER_DEFECTS,
    FILTERS,
    Errors,
    Home,
    expected_of_filter,
    octets,
    parametrized,
)

from tofmipd import cli
from tofmipd.commands import inject
from tofmipd.commands.inject import Reading, match_report
from tofmipd.errors import CONFIG, USAGE, Fatal
from tofmipd.tmda.parser import parse_filter

RULES = """\
to x@example.net dated=5d
from Bobby@* tag envelope sender x-note "some words"
"""


@pytest.mark.parametrize(
    ("recipient", "sender", "last"),
    [
        ("X@Example.net", "a@b.example", "MATCH: to x@example.net tag from dated=5d"),
        (
            "y@example.net",
            "bobby@b.example",
            'MATCH: from Bobby@* tag envelope sender x-note "some words"',
        ),
        ("y@example.net", "a@b.example", "Sorry, no matching lines."),
    ],
)
def test_the_report_names_file_addresses_and_rule(recipient, sender, last):
    """Reference, section 4.10."""
    report = match_report(parse_filter(RULES, "/a/filter"), recipient, sender)
    assert report.splitlines() == [
        "Checking /a/filter",
        "------------------",
        f"To: {recipient}",
        f"From: {sender}",
        "------------------",
        last,
    ]


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """An environment that says nothing of whoever runs the tests."""
    for name in set(os.environ) - {"PATH", "TZ"}:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def home(tmp_path, clean):
    (tmp_path / ".tmda/filters").mkdir(parents=True)
    (tmp_path / ".tmda/crypt_key").write_text("00" * 20)
    (tmp_path / ".tmda/crypt_key").chmod(0o600)
    (tmp_path / ".tmda/filters/outgoing").write_text(RULES)
    return tmp_path


def test_the_own_filter_is_asked(home, capsys):
    assert inject.main(["-M", "x@example.net", "a@b.example"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Checking {home}/.tmda/filters/outgoing"
    assert lines[-1] == "MATCH: to x@example.net tag from dated=5d"


def test_the_filter_of_another_configuration_is_asked(home, capsys):
    (home / "rules").write_text("to * bare\n")
    (home / "config").write_text('FILTER_OUTGOING = "~/rules"\n')
    assert inject.main(["-c", "~/config", "--match", "a@b", "c@d"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "MATCH: to * tag from bare"


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        (["-O", "~/rules"], {}),
        ([], {"TMDA_FILTER_OUTGOING": "~/rules"}),
        (["-O", "~/rules"], {"TMDA_FILTER_OUTGOING": "~/others"}),
        (["-O", "~/rules", "-c", "~/config"], {"TMDARC": "~/others"}),
        ([], {"TMDARC": "~/config"}),
        ([], {"GLOBAL_TMDARC": "~/site"}),
    ],
)
def test_a_filter_may_be_named_in_many_ways(options, variables, home, capsys, monkeypatch):
    """TO-86: the command line goes before the environment, and that before the configuration."""
    (home / "rules").write_text("to * ext=rules\n")
    (home / "others").write_text("to * ext=others\n")
    (home / "config").write_text('FILTER_OUTGOING = "~/rules"\n')
    (home / "site").write_text('TMDARC = "~/config"\n')
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert inject.main([*options, "-M", "a@b", "c@d"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "MATCH: to * tag from ext=rules"


def test_a_filter_with_errors_is_told_with_all_of_them(home):
    (home / ".tmda/filters/outgoing").write_text("to x\nto * bare\nhop x y\n")
    with pytest.raises(Fatal) as caught:
        inject.main(["-M", "a@b", "c@d"])
    assert caught.value.status == CONFIG
    for line in (1, 3):
        assert f"filters/outgoing:{line}: " in str(caught.value)


def test_a_list_that_cannot_be_read_is_an_error_of_the_rule(home):
    (home / ".tmda/filters/outgoing").write_text("to a@b bare\nto-file ~/friends bare\n")
    assert inject.main(["-M", "a@b", "c@d"]) == 0
    with pytest.raises(Fatal, match=r"filters/outgoing:2: .*friends") as caught:
        inject.main(["-M", "x@y", "c@d"])
    assert caught.value.status == CONFIG


@parametrized(FILTERS)
def test_the_report_names_the_line_that_the_original_named(
    case, tmp_path, clean, monkeypatch, capfd
):
    home = Home(tmp_path)
    home.fill(case)
    for name, value in (case.get("env") or {}).items():
        monkeypatch.setenv(name, value)
    addresses = [
        octets(case[name]).decode("utf-8", "surrogateescape") for name in ("recipient", "sender")
    ]
    if any(address.startswith("-") for address in addresses):
        # -M takes the next two words, which cannot look like options.
        addresses = [re.sub("^-", "?-", address) for address in addresses]
    status = cli.main(["inject", "-M", *addresses])
    printed = capfd.readouterr()
    expected = FILTER_DEFECTS.get(case["id"]) or expected_of_filter(case, home)
    if expected is None or isinstance(expected, Errors):
        assert (status, printed.out) == (CONFIG, "")
        for line in expected.lines if expected is not None else ():
            assert f":{line}: " in printed.err
        return
    assert (status, printed.err) == (0, "")
    last = printed.out.splitlines()[-1]
    wanted = f"MATCH: {expected.line}" if expected.line else "Sorry, no matching lines."
    assert sorted(last.split()) == sorted(wanted.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["-M", "a@b"],
        ["-M"],
        ["-c"],
        ["-f"],
        ["-Z", "a@b"],
        ["--unknown", "a@b"],
        ["-bs"],
        ["-bp"],
        ["-bv", "a@b"],
    ],
)
def test_wrong_options_are_told_in_one_line(arguments, home, capfd):
    """What is no way to submit a message must not look like one (-bs, -bp ...)."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["inject", *arguments])
    assert caught.value.code == USAGE
    printed = capfd.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"tofmipd inject: [^\n]+\n", printed.err)


# Reading


class Trickle(io.RawIOBase):
    """A file that gives its octets in these pieces, after the first one."""

    def __init__(self, first, pieces):
        self._pieces = [first, *pieces]

    def read(self, size=-1):
        return self._pieces.pop(0) if self._pieces else b""


LOCAL = [
    # What came, what programs on this machine would write, whether it has a CR elsewhere.
    (b"", b"", False),
    (b"A: b\n\nx\n", b"A: b\n\nx\n", False),
    (b"A: b\r\n\r\nx\r\n", b"A: b\n\nx\n", False),
    (b"A: b\r\n\r\nx", b"A: b\n\nx", False),
    (b"A: b\r\n\nx\n", b"A: b\n\nx\n", False),
    (b"A: b\r\n\r\nx\ry\r\n", b"A: b\n\nx\ry\n", True),
    (b"A: b\r\n\r\nx\r\r\n", b"A: b\n\nx\r\n", True),
    (b"A: b\r\n\r\nx\r", b"A: b\n\nx\r", True),
    (b"A: b\r\n\r\nx\r\r", b"A: b\n\nx\r\r", True),
    (b"A: b\n\nx\r\n", b"A: b\n\nx\r\n", True),
    (b"A: b\n\n\r", b"A: b\n\n\r", True),
    (b"\r\n\r\n", b"\n\n", False),
    (b"\r", b"\r", True),
]


@pytest.mark.parametrize(("came", "local", "bare"), LOCAL)
@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_line_ends_are_those_of_the_first_line_wherever_blocks_end(came, local, bare, step):
    first = came[: came.find(b"\n") + 1] or came
    rest = came[len(first) :]
    reading = Reading(Trickle(first, list(in_pieces(rest, range(0, len(rest), step)))))
    assert b"".join(reading.blocks()) == local
    assert reading.bare_return == bare
    assert not reading.eight_bit


@pytest.mark.parametrize("at", [0, 1, 5, 11])
def test_an_octet_beyond_ascii_is_seen_wherever_it_stands(at):
    text = bytearray(b"A: b\n\nxyz xyz")
    text[at : at + 1] = b"\xe9"
    reading = Reading(Trickle(bytes(text[:5]), list(in_pieces(bytes(text[5:]), range(9)))))
    assert b"".join(reading.blocks()) == bytes(text)
    assert reading.eight_bit
