"""`tofmipd address`: makes what TMDA's own tool makes, and checks it."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path

import pytest

from tofmipd.commands import address
from tofmipd.errors import USAGE, Fatal
from tofmipd.tmda.cookies import TagSettings

VECTORS = json.loads((Path(__file__).parent / "vectors/addresses.json").read_text())
TOOL = [vector for vector in VECTORS if vector["op"].startswith("tool_")]
KEY = "00112233445566778899aabbccddeeff01234567"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tmda = tmp_path / ".tmda"
    tmda.mkdir()
    (tmda / "config").write_text('USERNAME = "bobby"\nHOSTNAME = "example.org"\n')
    (tmda / "crypt_key").write_text(KEY)
    (tmda / "crypt_key").chmod(0o600)
    return tmp_path


@pytest.mark.parametrize("vector", TOOL, ids=lambda vector: vector["id"])
def test_the_vectors_of_the_originals_tool_hold(vector):
    options = argparse.Namespace(keyword=None, sender=None, dated=None, timeout=None)
    setattr(options, vector["op"].removeprefix("tool_"), vector["args"][1])
    config = vector.get("config", {})
    tags = TagSettings(
        bytes.fromhex(vector["crypt_key"]),
        **{
            name.lower(): tuple(word.encode() for word in value)
            for name, value in config.items()
            if name.startswith("TAGS_")
        },
    )
    base = vector["args"][0] or f"{config['USERNAME']}@{config['HOSTNAME']}"
    made = address.make(tags, base.encode(), options, vector.get("time", 0))
    assert made.decode() == vector["expect"]["result"]


def test_there_are_vectors_of_each_kind():
    assert {vector["op"] for vector in TOOL} == {"tool_dated", "tool_keyword", "tool_sender"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-s", "Carol@Remote.Example"], "bobby-sender-a3c664@example.org\n"),
        (["-s", "remote.example", "-n"], "bobby-sender-088a85@example.org"),
        (["-k", "shop", "-a", "Al@X.example"], r"al-keyword-shop\.[0-9a-f]{6}@x.example" + "\n"),
        (["-n"], r"bobby-dated-[0-9]{10}\.[0-9a-f]{6}@example.org"),
    ],
)
def test_it_prints_the_address(arguments, expected, capsys):
    assert address.main(arguments) == 0
    out = capsys.readouterr().out
    assert out == expected or re.fullmatch(expected, out)


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [([], 5 * 86400), (["-d"], 5 * 86400), (["-d", "1w"], 7 * 86400), (["-d", "-t", "2h"], 7200)],
)
def test_a_dated_address_expires_when_asked_to(arguments, seconds, capsys):
    assert address.main(arguments) == 0
    match = re.search(r"-dated-([0-9]+)\.", capsys.readouterr().out)
    assert match is not None
    assert abs(int(match[1]) - time.time() - seconds) < 60


@pytest.mark.parametrize(
    ("make", "check", "verdict"),
    [
        (["-d", "1d"], [], "VALID dated address"),
        (["-d", "0s"], [], "VALID dated address"),
        (["-k", "shop"], [], "VALID keyword address"),
        (["-s", "c@d.example"], ["c@d.example"], "VALID sender address"),
        (["-s", "d.example"], ["any@sub.d.example"], "VALID sender address"),
        (["-s", "c@d.example"], ["x@d.example"], "BAD sender address"),
        (["-s", "c@d.example"], [], "BAD sender address"),
    ],
)
def test_what_it_made_it_checks(make, check, verdict, capsys):
    """TO-113."""
    address.main([*make, "-n"])
    made = capsys.readouterr().out
    status = address.main(["--check", made, *check])
    assert capsys.readouterr().out == verdict + "\n"
    assert status == (0 if verdict.startswith("VALID") else 1)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ("bobby@example.org", "UNTAGGED address"),
        ("bobby-lists@example.org", "UNTAGGED address"),
        ("bobby-dated-1234999890.be01c1@example.org", "EXPIRED dated address"),
        ("bobby-dated-9999999999.000000@example.org", "BAD dated address"),
        ("bobby-keyword-shop.000000@example.org", "BAD keyword address"),
    ],
)
def test_what_does_not_hold_has_status_1(given, verdict, capsys):
    assert address.main(["--check", given]) == 1
    assert capsys.readouterr().out.strip() in (verdict, verdict.removesuffix(" address"))


def test_capitals_in_a_keyword_are_warned_of(capsys):
    """Such an address can never be checked (reference, section 1.4)."""
    assert address.main(["-k", "MixedCase", "-a", "alice@example.com"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "alice-keyword-MixedCase.10bac6@example.com\n"
    assert "capitals in the keyword" in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-d", "5x"], "invalid timeout '5x'"),
        (["-d", "soon"], "invalid timeout 'soon'"),
        (["-a", "nope"], "'nope' is not an address with one @"),
        (["-a", "a@b@c"], "is not an address with one @"),
    ],
)
def test_what_cannot_be_tagged_is_wrong_usage(arguments, words):
    with pytest.raises(Fatal, match=words) as caught:
        address.main(arguments)
    assert caught.value.status == USAGE


def test_another_configuration_may_be_named(home, capsys):
    other = home / "other"
    other.write_text('USERNAME = "me"\nHOSTNAME = "here.example"\nRECIPIENT_DELIMITER = "+"\n')
    assert address.main(["-c", str(other), "-k", "x", "-n"]) == 0
    assert capsys.readouterr().out.startswith("me+keyword+x.")


def test_a_missing_key_is_said(home):
    (home / ".tmda/crypt_key").unlink()
    with pytest.raises(Fatal, match="crypt_key: missing; make one with 'tofmipd keygen'") as caught:
        address.main([])
    assert caught.value.status == os.EX_CONFIG


def test_an_error_in_the_filter_is_not_its_business(home, capsys):
    (home / ".tmda/filters").mkdir()
    (home / ".tmda/filters/outgoing").write_text("to oops\n")
    assert address.main(["-k", "shop"]) == 0
    assert capsys.readouterr().out.startswith("bobby-keyword-shop.")


def test_a_configuration_that_is_named_must_be_there(home):
    with pytest.raises(Fatal, match="typo: missing"):
        address.main(["-c", str(home / "typo"), "-k", "shop"])
