"""Start-up and the end in pieces; the system tests run the whole."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from fakes import wait_for

from tofmipd import background, daemon, renewal
from tofmipd.errors import CANT_CREATE, CONFIG, UNAVAILABLE, Fatal
from tofmipd.settings import Listen, Person, Scripts, Settings


def settings(tmp_path, *places: Listen, **others) -> Settings:
    person = Person(os.getuid(), "bobby", "Bobby", str(tmp_path))
    return Settings(person, places, authfile=str(tmp_path / "passwords"), **others)


def free(*, ipv6: bool = False) -> Listen:
    """Port 0: whatever is free."""
    return Listen("::1" if ipv6 else "127.0.0.1", 0, ipv6)


def test_all_places_are_announced(tmp_path, capsys):
    """TO-18."""
    made = settings(tmp_path, free(), free(ipv6=True))
    sockets = renewal.listen(made)
    daemon.announce(sockets)
    printed = capsys.readouterr()
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    first, second, third = printed.err.splitlines()
    assert re.fullmatch(r"tofmipd started at [A-Z][a-z]{2}, .* [+-][0-9]{4}", first)
    assert second == f"\tListening on 127.0.0.1:{ports[0]}"
    assert third == f"\tListening on [::1]:{ports[1]}"
    assert printed.out == ""


def test_when_one_place_cannot_be_had_the_others_are_given_back(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = Listen("127.0.0.1", taken.getsockname()[1])
        made = settings(tmp_path, Listen("127.0.0.1", port), place, port_hint="--somehow")
        with pytest.raises(Fatal) as caught:
            renewal.listen(made)
    assert caught.value.status == UNAVAILABLE
    expected = f"cannot listen on {place}: Address already in use; choose another with --somehow"
    assert str(caught.value) == expected
    socket.create_server(("127.0.0.1", port)).close()


def test_nothing_is_listened_on_when_nobody_could_log_in(tmp_path, capsys):
    with pytest.raises(Fatal, match="no such password file") as caught:
        daemon.run(settings(tmp_path, free(), foreground=True))
    assert caught.value.status == CONFIG
    assert capsys.readouterr().err == ""


def test_a_log_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(Fatal, match="cannot write the log file /none/log: No such file") as caught:
        daemon.set_up_log(settings(tmp_path, log_file="/none/log"))
    assert caught.value.status == CANT_CREATE


def test_a_signal_can_be_read_as_its_number():
    number = signal.SIGUSR1
    before = signal.getsignal(number)
    reader = background.catch_signals(number)
    try:
        os.kill(os.getpid(), number)
        assert os.read(reader, 1) == bytes([number])
    finally:
        os.close(signal.set_wakeup_fd(-1))
        os.close(reader)
        signal.signal(number, before)


# Going into the background: the parent waits for the word of the one that goes on.

BACKGROUND = """
import os, signal, sys, time
from tofmipd.background import Background, detach
from tofmipd.errors import Fatal

sys.stdout.write("before ")
{act}
"""


def run_detached(act: str) -> tuple[int, str, str]:
    """A program that goes into the background; how who started it sees it end."""
    done = subprocess.run(
        [sys.executable, "-c", BACKGROUND.format(act=act)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("act", "status", "error"),
    [
        ("Background().succeed()", 0, ""),
        ("detach()", 0, ""),
        ("Background().fail(Fatal(78, 'é is wrong'))", 78, "tofmipd: é is wrong\n"),
        ("Background().fail(Fatal(69, ''))", 69, "tofmipd: internal error at the start\n"),
        ("Background(); os._exit(3)", 70, "tofmipd: internal error at the start\n"),
        ("Background(); raise OSError", 70, "tofmipd: internal error at the start\n"),
        ("Background(); os.kill(os.getpid(), 9)", 70, "tofmipd: internal error at the start\n"),
    ],
)
def test_who_starts_a_daemon_learns_how_the_start_went(act, status, error):
    assert run_detached(act) == (status, "before ", error)


def test_who_starts_a_daemon_waits_for_its_word():
    begun = time.monotonic()
    act = "b = Background(); time.sleep(0.3); b.fail(Fatal(75, 'late'))"
    assert run_detached(act) == (75, "before ", "tofmipd: late\n")
    assert time.monotonic() - begun >= 0.3


def test_a_long_reason_arrives_whole():
    text = "x" * 200_000
    act = "Background().fail(Fatal(78, 'x' * 200_000))"
    assert run_detached(act) == (78, "before ", f"tofmipd: {text}\n")


def test_what_goes_on_has_a_session_of_its_own_and_nothing_of_the_terminal(tmp_path):
    report = tmp_path / "report"
    act = f"""
background = Background()
background.succeed()
ids = os.getsid(0) == os.getpgid(0) != os.getpid()
names = [os.readlink(f"/proc/self/fd/{{n}}") for n in (0, 1, 2)]
ignored = [signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGTSTP, signal.SIGTTOU)]
open({str(report)!r} + ".new", "w").write(repr((ids, os.getcwd(), names, ignored)))
os.rename({str(report)!r} + ".new", {str(report)!r})
os._exit(0)
"""
    assert run_detached(act) == (0, "before ", "")
    wait_for(report.exists)
    expected = (True, "/", ["/dev/null"] * 3, [True, True])
    assert report.read_text() == repr(expected)


# Scripts.


@pytest.mark.parametrize(("field", "letter"), [("throttle", "-t"), ("virtual_home", "-S")])
def test_a_script_that_cannot_be_run_is_found_at_the_start(tmp_path, field, letter):
    path = tmp_path / "script"
    for words in (f"{path} is not there; {letter} names", "cannot be executed (chmod 755)"):
        with pytest.raises(Fatal) as caught:
            renewal.check_scripts(Scripts(**{field: str(path)}))
        assert caught.value.status == CONFIG
        assert words in str(caught.value)
        path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    renewal.check_scripts(Scripts(**{field: str(path)}))


def test_without_scripts_there_is_nothing_to_find():
    renewal.check_scripts(Scripts())
