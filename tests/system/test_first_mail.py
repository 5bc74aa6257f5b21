"""A new user's first hour (BX-10), by what the program prints and the documents say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hops import RawHop
from running import HOST, LIMIT_SECONDS, Daemon, Home, environment, run

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def newcomer(tmp_path) -> Home:
    """Somebody who has nothing yet."""
    (tmp_path / "newcomer").mkdir()
    return Home(tmp_path / "newcomer")


def prepare(newcomer: Home, hop: RawHop) -> str:
    """Run init; what it printed."""
    address = ["--address", "new@example.org", "--smtp", f"{HOST}:{hop.port}"]
    made = run("init", "--personal", *address, home=newcomer)
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    return made.stdout


def test_init_start_and_test_are_all_that_a_first_mail_needs(newcomer, start, hop):
    prepare(newcomer, hop)
    place = f"{HOST}:{start(newcomer).port}"
    sent = run("test", "--server", place, "you@example.net", home=newcomer)
    assert (sent.returncode, sent.stderr) == (0, "")
    assert sent.stdout.startswith("taken: 250 2.0.0 Ok: ")
    stored = hop.message("you@example.net")
    assert re.fullmatch(r"new-dated-[0-9]{10}\.[0-9a-f]{6}@example\.org", stored.sender)
    assert stored.sender in stored.value("From")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("curl", marks=pytest.mark.peer("curl")),
        pytest.param("swaks", marks=pytest.mark.peer("swaks")),
    ],
)
def test_the_commands_that_init_prints_work(program, newcomer, start, hop):
    (line,) = re.findall(rf"(?m)^or: +(.*\b{program} .*)$", prepare(newcomer, hop))
    # The port is all that differs from what a person would paste.
    command = line.replace("8025", str(start(newcomer).port))
    sent = subprocess.run(
        ["sh", "-c", command],
        env=environment(newcomer),
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    assert hop.message("friend@example.net").sender.startswith("new-dated-")


@pytest.mark.parametrize("password", ["FooBar", "pässwört", 'it\'s "so" $HOME', "-x", "a:b"])
def test_any_password_in_the_file_is_good_for_the_tool(password, newcomer, start, hop):
    prepare(newcomer, hop)
    newcomer.write("tofmipd", f"me:{password}\n")
    place = f"{HOST}:{start(newcomer).port}"
    sent = run("test", "--server", place, "you@example.net", home=newcomer)
    assert (sent.returncode, sent.stderr) == (0, "")


def outcome(newcomer: Home, daemon: Daemon) -> tuple[int, str]:
    place = f"{HOST}:{daemon.port}"
    sent = run("test", "--server", place, "you@example.net", home=newcomer)
    assert sent.stdout == ""
    assert sent.stderr.count("\n") == 1
    return sent.returncode, sent.stderr


def test_the_tool_says_what_the_daemon_said(newcomer, start, hop):
    prepare(newcomer, hop)
    daemon = start(newcomer)
    hop.refuse["RCPT"] = b"550 5.1.1 No such user"
    status, words = outcome(newcomer, daemon)
    assert status not in (0, 75)
    assert words == "tofmipd: refused: 550 5.1.1 <you@example.net>: No such user\n"
    hop.refuse["RCPT"] = b"450 4.2.1 Busy"
    status, words = outcome(newcomer, daemon)
    assert status == 75
    assert words == "tofmipd: refused: 450 4.2.1 <you@example.net>: Busy\n"


def test_the_tool_says_that_the_password_is_not_the_daemons(newcomer, home, start, hop):
    prepare(newcomer, hop)
    status, words = outcome(newcomer, start(home))
    assert status != 0
    assert words == "tofmipd: refused: 535 5.7.8 AUTH failed: user name or password is wrong\n"


@pytest.mark.peer("msmtp")
def test_the_documented_msmtprc_delivers(newcomer, start, hop):
    """TO-22."""
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```$", (DOCS / "clients.md").read_text())
    (text,) = [block for block in blocks if block.startswith("account ")]
    prepare(newcomer, hop)
    newcomer.write("tofmipd", "you:FooBar\n")
    port = start(newcomer).port
    newcomer.write("../.msmtprc", re.sub(r"(?m)^(port +)8025$", rf"\g<1>{port}", text))
    mail = "To: friend@example.net\nSubject: Hello\n\nIt works.\n"
    sent = subprocess.run(
        ["msmtp", "-t"],
        input=mail.encode(),
        env=environment(newcomer),
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    stored = hop.message("friend@example.net")
    assert stored.body == b"It works.\r\n"
    assert "you-dated-" in stored.value("From")
