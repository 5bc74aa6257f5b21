"""`tofmipd inject -M`: which rule matches, told as the original told it."""

from __future__ import annotations

import os

import pytest

from tofmipd.commands import inject
from tofmipd.commands.inject import match_report
from tofmipd.errors import CONFIG, UNAVAILABLE, Fatal
from tofmipd.tmda.filter import parse_filter

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
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
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


def test_a_filter_with_errors_is_told_with_all_of_them(home):
    (home / ".tmda/filters/outgoing").write_text("to x\nto * bare\nhop x y\n")
    with pytest.raises(Fatal) as caught:
        inject.main(["-M", "a@b", "c@d"])
    assert caught.value.status == CONFIG
    for line in (1, 3):
        assert f"filters/outgoing:{line}: " in str(caught.value)


def test_sending_is_not_built_yet(home):
    with pytest.raises(Fatal, match="not built yet; see -M") as caught:
        inject.main([])
    assert caught.value.status == UNAVAILABLE == os.EX_UNAVAILABLE
