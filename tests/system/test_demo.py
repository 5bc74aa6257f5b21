"""`tofmipd demo`, as `make run` starts it: from a clean machine to the first tagged mail."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import Mail, by_smtplib
from running import (
    HOST,
    LIMIT_SECONDS,
    PROGRAM,
    Home,
    ending,
    environment,
    free_port,
    greets,
    wait_until,
)


@dataclass(frozen=True)
class Demo:
    """A running demonstration, what it prints, and the directory it was started in."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path

    def text(self) -> str:
        return (self.directory / "output").read_text()

    def command(self, program: str) -> str:
        """The line that is printed for being pasted into a shell."""
        lines = [line.strip() for line in self.text().splitlines()]
        pattern = rf"(printf .*\| |HOME=\S+ .*)?{program} "
        return next(line for line in lines if re.match(pattern, line))

    def login(self) -> tuple[str, str]:
        match = re.search(r"as user (\S+), password (\S+)", self.text())
        assert match is not None
        return match[1], match[2]

    def send(self, recipient: str) -> None:
        login, password = self.login()
        text = f"From: You <you@example.org>\nTo: {recipient}\n\nhello\n"
        mail = Mail((recipient,), text, login=login, password=password)
        assert by_smtplib(mail, self.port, self.directory).status == 0

    def blocks(self) -> list[dict[str, str]]:
        """What was printed for each recipient: label to text, the new From as "->"."""
        after = self.text().partition("Ctrl-C ends this.\n")[2]
        found = []
        for block in re.split(r"\n\n+", after.strip()):
            pairs = [line.strip().partition("  ") for line in block.splitlines() if line]
            found.append({label: text.strip() for label, _, text in pairs})
        return found

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LIMIT_SECONDS)


@contextlib.contextmanager
def running_demo(directory: Path, port: int) -> Iterator[Demo]:
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [PROGRAM, "demo", "--directory", ".demo", "--port", str(port)],
            env=environment(Home(directory / "home")),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    with ending(process):
        demo = Demo(process, port, directory)
        wait_until(lambda: "Ctrl-C ends this.\n" in demo.text(), "the demo's words")
        yield demo


@pytest.fixture
def demo(tmp_path) -> Iterator[Demo]:
    with running_demo(tmp_path, free_port()) as running:
        yield running
        assert running.end() == 0
    assert "Traceback" not in running.text()


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("curl", marks=pytest.mark.peer("curl")),
        pytest.param("swaks", marks=pytest.mark.peer("swaks")),
        "test",
    ],
)
def test_the_printed_command_works_when_pasted_into_a_shell(program, demo, tmp_path):
    sent = subprocess.run(
        ["sh", "-c", demo.command(program)],
        env=environment(None),
        cwd=tmp_path,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    (block,) = wait_until(demo.blocks, "a block")
    assert block["recipient"] == "friend@example.net"
    assert block["rule"] == "to friend@* tag from dated=4w"
    assert block["From"] == "you@example.org"
    assert re.fullmatch(r"you-dated-[0-9]{10}\.[0-9a-f]{6}@example\.org", block["->"])
    assert block["envelope"] == block["->"]
    stored = (tmp_path / block["stored in"]).read_text()
    assert stored.startswith(f"Return-Path: <{block['->']}>\n")
    assert "X-Envelope-To: <friend@example.net>\n" in stored
    assert re.search(rf"\nFrom: (.* <)?{re.escape(block['->'])}>?\n", stored)


@pytest.mark.parametrize(
    ("recipient", "rule", "sender"),
    [
        ("shop@example.com", "to shop@* tag from kw=shop", r"you-keyword-shop\.\w{6}@example.org"),
        ("box@bank.example", "to *@=bank.example tag from sender", r"you-sender-\w{6}@example.org"),
        ("news@lists.example.net", "to *@=lists.example.net tag from bare", "you@example.org"),
        ("who@else.example", "action_outgoing (dated)", r"you-dated-\d+\.\w{6}@example.org"),
    ],
)
def test_each_suggested_recipient_shows_its_rule(recipient, rule, sender, demo):
    demo.send(recipient)
    (block,) = wait_until(demo.blocks, "a block")
    assert block["recipient"] == recipient
    assert block["rule"] == rule
    assert re.fullmatch(sender, block["->"])


def test_a_second_run_uses_what_is_there(tmp_path):
    port = free_port()
    logins = []
    for number, words in enumerate(["Made .demo:", "Using .demo:"], 1):
        with running_demo(tmp_path, port) as demo:
            assert words in demo.text()
            logins.append(demo.login())
            demo.send("friend@example.net")
            wait_until(demo.blocks, "a block")
            assert demo.end() == 0
        assert len(list((tmp_path / ".demo/Maildir/new").iterdir())) == number
    assert logins[0] == logins[1]


def test_nothing_outside_its_folder_is_touched(demo, tmp_path):
    demo.send("friend@example.net")
    assert {path.name for path in tmp_path.iterdir()} == {".demo", "output"}


def test_files_with_secrets_are_for_the_owner_alone(demo, tmp_path):
    for path in (tmp_path / ".demo/.tmda").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def failing_demo(directory: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "demo", "--directory", ".demo", "--port", str(port)],
        env=environment(None),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def test_a_taken_port_is_said_with_the_way_out(tmp_path):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        result = failing_demo(tmp_path, port)
    assert result.returncode == os.EX_UNAVAILABLE
    assert result.stderr == (
        f"tofmipd: cannot listen on {HOST}:{port}: Address already in use;"
        " choose another with make run PORT=NUMBER, or --port NUMBER\n"
    )


def test_a_second_demo_in_the_folder_leaves_the_first_one_working(demo, tmp_path):
    same_port = failing_demo(tmp_path, demo.port)
    assert "Address already in use" in same_port.stderr
    other_port = failing_demo(tmp_path, free_port())
    assert other_port.returncode == os.EX_CANTCREAT
    assert "is in use by another demo" in other_port.stderr.splitlines()[-1]
    demo.send("friend@example.net")
    assert wait_until(demo.blocks, "a block")


@pytest.mark.parametrize("text", ["me:secret\n", "# nobody\n", "you secret\n"])
def test_a_password_file_that_lost_its_login_is_said_in_one_line(text, tmp_path):
    """Somebody may have edited it."""
    path = tmp_path / ".demo/.tmda/tofmipd"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o600)
    result = failing_demo(tmp_path, free_port())
    assert result.returncode == os.EX_CONFIG
    assert str(path) in result.stderr
    assert "internal error" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("tofmipd: ")


def test_the_receiver_is_gone_when_the_demo_is(tmp_path):
    with running_demo(tmp_path, free_port()) as demo:
        config = (tmp_path / ".demo/.tmda/config").read_text()
        port = int(re.search(r"SMTPHOST = '127\.0\.0\.1:([0-9]+)'", config)[1])
        assert greets(port)
        assert demo.end() == 0
    assert not greets(port)
    assert not greets(demo.port)
