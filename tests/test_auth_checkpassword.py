"""Logins judged by a checkpassword program: what it is given, what its end means, how it is ended.

An attempt uses descriptor 3 of its process, so each is made in a child.
"""

from __future__ import annotations

import ast
import os
import re
import time
from pathlib import Path

import pytest
from fakes import PATIENCE_SECONDS
from forking import in_child
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth import checkpassword
from tofmipd.auth.checkpassword import LIMIT_OCTETS, ProgramError, arguments_of, fits
from tofmipd.auth.credentials import NOWHERE, Origin, Password, Verdict

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
BOBBY = Password("bobby", b"FooBar")
# Reads what comes and judges it: a checkpassword program as people write them.
HONEST = r"""
input=$(tr '\0' '\n' <&3)
case $input in
"bobby
FooBar
Y"*) exec "$@";;
esac
exit 1
"""


@pytest.fixture
def program(tmp_path):
    """Write a shell script; its path."""

    def write(text: str, name: str = "check") -> str:
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return str(path)

    return write


def attempt(
    command: str, credentials: Password = BOBBY, origin: Origin = NOWHERE, seconds: float = 10
) -> tuple[Verdict, str]:
    """Make one in a process of its own."""

    def act() -> str:
        os.setsid()
        verdict, words = checkpassword.attempt(arguments_of(command), credentials, origin, seconds)
        return repr((verdict.value, words))

    ended = in_child(act)
    assert ended.status == 0, ended.said
    value, words = ast.literal_eval(ended.said)
    return Verdict(value), words


# What it is given.


def test_it_reads_name_password_and_time_on_descriptor_3(program, tmp_path):
    begun = int(time.time())
    command = program(f"cat <&3 >{tmp_path}/seen")
    assert attempt(command, Password("jörg", b"\xff a\tb")) == (YES, "")
    match = re.fullmatch(rb"j\xc3\xb6rg\0\xff a\tb\0Y([0-9]+)\0", (tmp_path / "seen").read_bytes())
    assert begun <= int(match[1]) <= time.time() + 1


@pytest.mark.parametrize(
    ("password", "verdict"), [(b"FooBar", YES), (b"foobar", NO), (b"FooBar ", NO), (b"Foo", NO)]
)
def test_a_program_as_people_write_them_judges(program, password, verdict):
    command = f"{program(HONEST)} /bin/true"
    assert attempt(command, Password("bobby", password)) == (verdict, "")


def test_what_it_is_to_run_then_has_the_last_word(program):
    """checkpassword PROGRAM: the status is that of whatever it runs for a good login."""
    assert attempt(f"{program(HONEST)} /bin/false") == (NO, "")


def test_it_has_nothing_else_open_and_nobody_s_environment(program, tmp_path, monkeypatch):
    monkeypatch.setenv("LEAK", "secret")
    command = program(f"ls /proc/$$/fd >{tmp_path}/fds; env >{tmp_path}/env; cat <&0 >&2; pwd")
    leaking = os.dup2(1, 50, inheritable=True)
    try:
        assert attempt(command, origin=Origin("192.0.2.7", "2001:db8::1"))[0] is YES
    finally:
        os.close(leaking)
    # the shell has the script open, too, and what it redirects
    assert set((tmp_path / "fds").read_text().split()) <= {"0", "1", "2", "3", "10", "11"}
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {name: seen.get(name) for name in ("LEAK", "TCPREMOTEIP", "TCPLOCALIP", "PROTO")} == {
        "LEAK": None,
        "TCPREMOTEIP": "192.0.2.7",
        "TCPLOCALIP": "2001:db8::1",
        "PROTO": "TCP",
    }
    assert set(seen) <= {
        "PATH",
        "PROTO",
        "TCPREMOTEIP",
        "TCPLOCALIP",
        "PWD",
        "SHLVL",
        "_",
        "OLDPWD",
    }


def test_no_shell_reads_the_command_line(program, tmp_path):
    command = program(f"printf '[%s]' \"$@\" >{tmp_path}/seen")
    words = f"'$(id)' \"a b\" * ; && -s id -- /bin/true > {tmp_path}/out"
    assert attempt(f"{command} {words}") == (YES, "")
    seen = (tmp_path / "seen").read_text()
    assert seen == f"[$(id)][a b][*][;][&&][-s][id][--][/bin/true][>][{tmp_path}/out]"
    assert not (tmp_path / "out").exists()


def test_name_and_password_are_on_no_command_line(program, tmp_path):
    command = program(f"tr '\\0' ' ' </proc/$$/cmdline >{tmp_path}/seen")
    attempt(command)
    assert "FooBar" not in (tmp_path / "seen").read_text()


def test_a_program_that_reads_nothing_is_judged_by_its_end_all_the_same(program):
    assert attempt(program("exit 1"), Password("b" * 255, b"x" * 200)) == (NO, "")


# What its end means.


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        ("exit 0", YES, ""),
        ("echo hello; exit 0", YES, ""),
        ("exit 1", NO, ""),
        ("echo no; exit 1", NO, ""),
        ("exit 111", MAYBE, "ended with status 111"),
        ("echo the database is down >&2; exit 111", MAYBE, "status 111: b'the database is down'"),
        ("exit 2", NO, "ended with status 2"),
        ("exit 100", NO, "ended with status 100"),
        ("exit 255", NO, "ended with status 255"),
        ("echo usage: x; echo more; exit 64", NO, "ended with status 64: b'usage: x'"),
        ("nonsense-that-is-none", NO, "ended with status 127"),
        ("kill -KILL $$", MAYBE, "was killed by signal 9"),
        ("kill -SEGV $$", MAYBE, "was killed by signal 11"),
        ("ulimit -c 0; kill -ABRT $$", MAYBE, "was killed by signal 6"),
    ],
)
def test_only_status_0_lets_anybody_in(program, text, verdict, words):
    found, said = attempt(program(text))
    assert (found, words in said if words else said == "") == (verdict, True), said


@pytest.mark.parametrize(
    "text",
    [
        "cat <&3; exit 111",
        "cat <&3; exit 2",
        "tr '\\0' '\\n' <&3; exit 2",
        "yes x | head -c 300; cat <&3; exit 111",
        "cat <&3; kill -KILL $$",
    ],
)
def test_no_password_is_told_even_if_the_program_repeats_it(program, text):
    _, words = attempt(program(text), Password("bobby", b"Sesame"))
    assert "Sesame" not in words


@pytest.mark.parametrize(
    "text",
    [
        "head -c 3000 /dev/zero; exit 2",
        "printf '\\033[2Jx\\r\\377'; exit 2",
        "yes | head -n 9; exit 2",
    ],
)
def test_what_it_says_is_shown_printable_short_and_on_one_line(program, text):
    _, words = attempt(program(text))
    assert words.isprintable()
    assert len(words) < 600


def test_a_program_that_floods_is_judged_in_time(program):
    begun = time.monotonic()
    assert attempt(program("yes & yes | head -c 50000000; kill $!; exit 1")) == (NO, "")
    assert time.monotonic() - begun < PATIENCE_SECONDS


# When it does not end.


@pytest.mark.parametrize(
    "text",
    [
        "sleep 60",
        "trap '' TERM INT HUP; sleep 60",
        "yes",
        "cat <&3 >/dev/null; exec sleep 60",
        "echo still at it; sleep 60",
    ],
)
def test_a_program_that_does_not_end_is_ended(program, text):
    begun = time.monotonic()
    verdict, words = attempt(program(text), seconds=0.3)
    assert 0.3 <= time.monotonic() - begun < 3
    assert verdict is MAYBE
    assert words.startswith("does not end")


def test_one_that_leaves_a_child_behind_is_judged_at_once(program):
    """Also if the child keeps the pipe open."""
    begun = time.monotonic()
    assert attempt(program("sleep 3 & exit 1")) == (NO, "")
    assert time.monotonic() - begun < 2.5


@pytest.mark.parametrize("make", [lambda path: path.unlink(), lambda path: path.chmod(0o644)])
def test_a_program_that_is_gone_since_is_unavailable(program, make):
    command = program("exit 0")
    arguments = arguments_of(command)
    make(Path(command))

    def act() -> str:
        return repr(checkpassword.attempt(arguments, BOBBY, NOWHERE, 1)[1])

    assert "cannot be started: " in in_child(act).said


def test_a_file_that_is_no_program_is_unavailable(tmp_path):
    path = tmp_path / "check"
    path.write_bytes(b"\0\1\2")
    path.chmod(0o755)
    verdict, words = attempt(str(path))
    assert (verdict, "cannot be started" in words) == (MAYBE, True)


# What the interface can carry.


@pytest.mark.parametrize(("octets", "carried"), [(LIMIT_OCTETS, True), (LIMIT_OCTETS + 1, False)])
def test_no_more_than_512_octets_are_carried(octets, carried):
    now = 1234567890.9
    fixed = len(b"bobby\0\0Y1234567890\0")
    made = fits(Password("bobby", b"x" * (octets - fixed)), now)
    assert (made is not None) == carried
    if carried:
        assert len(made) == octets


def test_what_cannot_be_carried_is_refused_without_running_anything(program, tmp_path):
    command = program(f"touch {tmp_path}/ran")
    for credentials in (Password("bobby", b"x" * 600), Password("b\0", b"x"), Password("b", b"\0")):
        verdict, words = attempt(command, credentials)
        assert (verdict, words) == (NO, "a name or password that the interface cannot carry")
    assert not (tmp_path / "ran").exists()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300), st.binary(max_size=520))
def test_what_is_carried_comes_out_as_it_was(user, password):
    made = fits(Password(user, password), 0)
    if made is not None:
        parts = made.split(b"\0")
        assert parts == [user.encode("utf-8", "surrogateescape"), password, b"Y0", b""]
        assert len(made) <= LIMIT_OCTETS


# The option.


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "-A needs a program"),
        ("   ", "-A needs a program"),
        ("checkpassword /bin/true", "checkpassword must be a whole path"),
        ("./check", "./check must be a whole path"),
        ("/nowhere/check /bin/true", "/nowhere/check cannot be executed"),
        ("/etc", "/etc cannot be executed"),
        ("/etc/passwd", "/etc/passwd cannot be executed"),
        ("/bin/true 'unbalanced", "No closing quotation"),
    ],
)
def test_what_is_no_program_is_told_in_one_line(command, words):
    with pytest.raises(ProgramError, match=re.escape(words)) as caught:
        arguments_of(command)
    assert str(caught.value).isprintable()


def test_the_command_line_is_split_as_a_shell_would(program):
    path = program("exit 0", "with a blank")
    assert arguments_of(f"'{path}' -s \"a b\" -- /bin/true") == (
        path,
        "-s",
        "a b",
        "--",
        "/bin/true",
    )
