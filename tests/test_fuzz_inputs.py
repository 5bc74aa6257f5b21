"""The fuzz targets without a fuzzer: their kept inputs, and that they notice what is broken."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import run
from fuzz import session as session_target
from fuzz.session import Circumstances

from tofmipd import proxyprotocol, pump
from tofmipd.auth import scram
from tofmipd.handoff.replies import ReplyReader
from tofmipd.privsep import frames
from tofmipd.smtp import sasl, stream, syntax
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import Session
from tofmipd.tmda import header

FOLDER = Path(__file__).parent / "fuzz"
INPUTS = sorted(path for path in (FOLDER / "inputs").glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_kept_input_breaks_nothing(path):
    run.load(path.parent.name).check(path.read_bytes())


def test_every_target_has_kept_inputs_and_no_other_has():
    assert {path.parent.name for path in INPUTS} == set(run.TARGETS)


@pytest.mark.parametrize("name", run.TARGETS)
def test_what_a_target_begins_with_breaks_nothing(name):
    target = run.load(name)
    for octets in (b"", *target.seeds()):
        target.check(octets)


# Each defect, and the target that must notice it.


def drop_last(function):
    return lambda *arguments: function(*arguments)[:-1]


def keep_bare_line_feeds(fixer, block):
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def any_base64(text):
    return sasl.binascii.a2b_base64(text)


BROKEN = [
    ("session", Reply, "encode", lambda reply: f"{reply}\n".encode()),
    ("session", Session, "authenticated", True),
    ("session", Session, "shown", lambda session, octets: octets.decode("latin-1")),
    ("session", stream.MessageReader, "bare_newline", False),
    ("session", stream.LineReader, "take", lambda reader: b""),
    ("session", stream.Stuffer, "feed", lambda stuffer, block: block),
    ("session", pump.Pump, "_verify", lambda pump, step: 1 // 0),
    ("message", stream, "_END", b"\n.\r\n"),
    ("message", stream.MessageReader, "too_big", False),
    ("newlines", stream.NewlineFixer, "feed", keep_bare_line_feeds),
    ("newlines", stream.LoneDots, "feed", lambda dots, block: block),
    ("newlines", stream, "_LINE_END", re.compile(rb"\n")),
    ("paths", syntax, "_PATH", re.compile(r"<([^>]*)>|(\S+)")),
    ("paths", syntax, "_PARAMETER", re.compile(r"([^=]+)(?:=(.*))?")),
    ("sasl", sasl, "decode", any_base64),
    ("sasl", sasl, "_name", lambda octets: octets.decode("latin-1")),
    ("sasl", scram, "_unescaped", lambda name: name),
    ("sasl", sasl, "BINDING", ""),
    ("replies", ReplyReader, "idle", True),
    ("replies", ReplyReader, "_last", lambda reader, line: True),
    ("frames", frames.Control, "encode", drop_last(frames.Control.encode)),
    ("frames", frames.Reader, "end", lambda reader: None),
    ("header", header, "_FIELD", re.compile(rb"([^:]+):([^\r\n]*)\r\n")),
    ("proxy", proxyprotocol, "V1_LIMIT_OCTETS", 108),
    ("proxy", proxyprotocol, "_check_sum", lambda whole, start, value: None),
    ("proxy", proxyprotocol, "_spelled", str),
    ("proxy", proxyprotocol, "_name", lambda octets, limit: octets.decode()),
]


@pytest.mark.parametrize(("name", "where", "what", "broken"), BROKEN)
def test_a_target_notices_what_is_broken(monkeypatch, name, where, what, broken):
    target = run.load(name)
    inputs = [*target.seeds(), *(p.read_bytes() for p in INPUTS if p.parent.name == name)]
    if broken in (True, False):
        broken = property(lambda self, value=broken: value)
    monkeypatch.setattr(where, what, broken)
    assert any(fails(target.check, octets) for octets in inputs)


def fails(check, octets):
    try:
        check(octets)
    except Exception:
        return True
    return False


def test_each_circumstance_has_a_bit_of_its_own():
    assert Circumstances.of(0) == Circumstances()
    assert Circumstances.of(1) == Circumstances(logged_in=True)
    assert Circumstances.of(1 << 10) == Circumstances(tls_fails=True)
    assert len({Circumstances.of(1 << bit) for bit in range(11)}) == 11


def test_a_session_leaves_the_log_as_it_was():
    log = logging.getLogger("tofmipd.pump")
    before = (log.level, log.propagate, list(log.handlers))
    session_target.check(next(session_target.seeds()))
    assert (log.level, log.propagate, list(log.handlers)) == before


# The command.


def run_py(*arguments):
    return subprocess.run(
        [sys.executable, FOLDER / "run.py", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_input_is_repeated_without_a_fuzzer():
    path = next(path for path in INPUTS if path.parent.name == "message")
    done = run_py("message", "--input", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"message: nothing wrong with {path}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nonsense"], "run.py: there is no target 'nonsense'; there are session, message, "),
        (["--input", "/dev/null"], "run.py: --input takes one target"),
    ],
)
def test_a_command_that_makes_no_sense_is_told_so(arguments, complaint):
    done = run_py(*arguments)
    assert done.returncode != 0
    assert done.stderr.startswith(complaint)


def test_beside_a_found_input_stands_how_to_repeat_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HERE", tmp_path / "tests/fuzz")
    found = tmp_path / "tests/fuzz/found/message-crash-1"
    found.parent.mkdir(parents=True)
    found.write_bytes(b"\0\r\n.")
    run.describe(found, "message", ["AssertionError: it ended"])
    text = found.with_name("message-crash-1.txt").read_text()
    assert text.startswith(
        "python tests/fuzz/run.py message --input tests/fuzz/found/message-crash-1\n"
    )
    assert repr(b"\0\r\n.") in text
    assert text.endswith("AssertionError: it ended\n")
