"""A new user's first hour (BX-10), by what the program prints and the documents say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from accounts import new_account
from hops import RawHop
from running import HOST, LIMIT_SECONDS, Daemon, Home, environment, run, started
from terminal import at_terminal

from tofmipd.commands.selfsigned import new_certificate, new_key

DOCS = Path(__file__).parents[2] / "docs"
ME = "new@example.org"


@pytest.fixture
def newcomer(tmp_path) -> Home:
    """Somebody who has nothing yet."""
    (tmp_path / "newcomer").mkdir()
    return Home(tmp_path / "newcomer")


def prepare(newcomer: Home, hop: RawHop) -> str:
    """Run init; what it printed."""
    words = ["--address", ME, "--smtp", f"{HOST}:{hop.port}"]
    made = run("init", "--personal", *words, home=newcomer)
    assert (made.returncode, made.stderr) == (0, "")
    return made.stdout


def command(text: str, label: str, word: str = "") -> str:
    """The command that stands behind a label of what was printed, with this word in it."""
    lines = re.findall(rf"(?m)^{label}: +(.*)$", text)
    (line,) = [line for line in lines if not word or word in line.split()]
    return str(line)


def test_init_start_and_test_are_all_that_a_first_mail_needs(newcomer, start, hop):
    prepare(newcomer, hop)
    place = f"{HOST}:{start(newcomer).port}"
    sent = run("test", "--server", place, ME, home=newcomer)
    assert (sent.returncode, sent.stderr) == (0, "")
    lines = dict(line.split(":", 1) for line in sent.stdout.splitlines())
    assert lines["server"].strip() == f"{place}, without TLS"
    assert lines["taken"].strip().startswith("250 2.0.0 Ok: ")
    assert lines["next hop"].strip() == f"{HOST}:{hop.port} by SMTP"
    stored = hop.message(ME)
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
    line = command(prepare(newcomer, hop), "or", program)
    (port,) = set(re.findall(r"localhost:(\d+)|--port (\d+)", line)[0]) - {""}
    # The port is all that differs from what a person would paste.
    line = line.replace(port, str(start(newcomer).port))
    sent = subprocess.run(
        ["sh", "-c", line],
        env=environment(newcomer),
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    assert hop.message(ME).sender.startswith("new-dated-")


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
    assert "taken:" not in sent.stdout
    assert sent.stderr.count("\n") == 1
    return sent.returncode, sent.stderr


def test_the_tool_says_what_the_daemon_said(newcomer, start, hop):
    prepare(newcomer, hop)
    daemon = start(newcomer)
    hop.refuse["RCPT"] = b"550 5.1.1 No such user"
    status, words = outcome(newcomer, daemon)
    assert status not in (0, 75)
    assert words.startswith("tofmipd: refused: 550 5.1.1 <you@example.net>: No such user; ")
    hop.refuse["RCPT"] = b"450 4.2.1 Busy"
    status, words = outcome(newcomer, daemon)
    assert status == 75
    assert words.startswith("tofmipd: refused: 450 4.2.1 <you@example.net>: Busy; ")


def test_the_tool_says_that_the_password_is_not_the_daemons(newcomer, home, start, hop):
    prepare(newcomer, hop)
    status, words = outcome(newcomer, start(home))
    assert status != 0
    refused = "tofmipd: refused: 535 5.7.8 AUTH failed: user name or password is wrong; "
    assert words.startswith(refused)


def test_the_tool_names_who_says_more_when_the_next_hop_is_down(newcomer, start, hop):
    prepare(newcomer, hop)
    daemon = start(newcomer)
    hop.refuse["CONNECT"] = b""
    status, words = outcome(newcomer, daemon)
    assert status == 75
    assert words.endswith("; 'tofmipd probe' says more about the next hop\n")


def test_a_message_that_stays_in_the_outbox_can_be_found_by_what_the_tool_says(
    newcomer, start, hop
):
    prepare(newcomer, hop)
    hop.refuse["CONNECT"] = b""
    place = f"{HOST}:{start(newcomer, '--spool').port}"
    sent = run("test", "--server", place, "you@example.net", home=newcomer)
    assert sent.returncode == 0, sent.stderr
    (words,) = re.findall(r"(?m)^outbox: .*see 'tofmipd (queue show [^']+)'$", sent.stdout)
    shown = run(*words.split(), home=newcomer)
    assert shown.returncode == 0, shown.stderr
    assert "you@example.net" in shown.stdout


@pytest.mark.root
@pytest.mark.peer("curl", "swaks")
def test_a_new_account_answers_questions_and_sends_by_what_is_printed(hop):
    """All that it says is done as it says it: commands pasted, the certificate trusted."""
    with new_account(f"tofmipd-f{os.getpid() % 100_000}") as account:
        variables = environment(account.home) | account.variables
        with at_terminal(
            [*account.program, "init", "--personal"], variables, account.uid
        ) as terminal:
            terminal.answer("Your address", ME)
            terminal.answer("Your name [Test Person]", "")
            terminal.answer("Mail leaves", f"{HOST}:{hop.port}")
            terminal.answer("User name", "")
            terminal.answer("Shall mail clients", "yes")
            terminal.answer("certificate", "")
            terminal.answer("Name of this machine", "box.example.org")
            assert terminal.end() == 0
        told = terminal.shown
        (port,) = re.findall(r"server box\.example\.org, port (\d+), SSL/TLS\n", told)
        conf = account.home.path / ".config/tofmipd.conf"
        assert conf.stat().st_uid == account.uid

        def paste(line: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["sh", "-c", line],
                env=variables,
                cwd="/",
                user=account.uid,
                group=account.uid,
                extra_groups=[],
                capture_output=True,
                text=True,
                timeout=LIMIT_SECONDS,
                check=False,
            )

        first, second = command(told, "Next"), command(told, "and then")
        assert first == shlex.join([*account.program, "-f"])
        looked = paste(shlex.join([*account.program, "check"]))
        assert looked.returncode == 0, looked.stdout + looked.stderr
        with started(
            ["sh", "-c", f"exec {first}"], account.home.path / "log", variables, account.uid
        ):
            lines = [second, *re.findall(r"(?m)^or: +(.*)$", told)]
            lines.append(f"{second} --server localhost:{port},ssl --ca ~/.tmda/tls-cert.pem")
            for number, line in enumerate(lines):
                done = paste(line)
                assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
                assert len(hop.messages()) == number + 1
            other = account.home.path / "other.pem"
            other.write_text(new_certificate(new_key(), ["localhost"]))
            other.chmod(0o644)
            refused = paste(f"{second} --server localhost:{port},ssl --ca {other}")
            assert refused.returncode == 69
            assert "certificate not to be trusted" in refused.stderr
        assert {stored.recipients for stored in hop.messages()} == {(ME,)}
        assert all(stored.sender.startswith("new-dated-") for stored in hop.messages())


@pytest.mark.peer("msmtp")
def test_the_documented_msmtprc_delivers(newcomer, start, hop):
    """TO-22."""
    blocks = re.findall(r"(?ms)^```[^\n]*\n(.*?)^```$", (DOCS / "clients.md").read_text())
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
