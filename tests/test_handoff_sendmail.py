"""Hand-off to a sendmail program: small scripts stand for it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time

import pytest
from fakes import copy_of, wait_for

from tofmipd.handoff import sendmail
from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.sendmail import SendmailTransport

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "USER": "bobby"}
# Writes down its arguments, one a line in brackets.
RECORD = "for word; do printf '[%s]\\n' \"$word\"; done > {out}\n"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def sendmail_that(tmp_path, out):
    """Makes a transport out of what a program does; {out} is a file to write to."""

    def make(body, *, shell="/bin/sh", null_sender="<>", timeout=10, directory="/"):
        path = tmp_path / "sendmail"
        path.write_text(f"#!{shell}\n" + body.replace("{out}", str(out)))
        path.chmod(0o755)
        return SendmailTransport(str(path), null_sender, ENVIRONMENT, directory, timeout)

    return make


def failure_of(transport, copy=None):
    with pytest.raises(HandOffFailed) as caught:
        transport.send(copy or copy_of())
    return str(caught.value.reply)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("sender", "null_sender", "shown"),
    [
        (b"a@example.org", "<>", "[a@example.org]"),
        (b"-f@example.org", "<>", "[-f@example.org]"),
        (b'"a b"@example.org', "<>", '["a b"@example.org]'),
        (b"", "<>", "[<>]"),
        (b"", "", "[]"),
    ],
)
def test_sender_and_recipients_are_arguments_that_no_shell_sees(
    sendmail_that, out, sender, null_sender, shown
):
    recipients = (b"x@example.net", b"-bs", b"$(touch x)@example.net", b"y z", b"*")
    transport = sendmail_that(RECORD, null_sender=null_sender)
    assert transport.send(copy_of(sender=sender, recipients=recipients)) == "sendmail exited with 0"
    assert out.read_text().splitlines() == [
        *["[-i]", "[-f]", shown, "[--]"],
        *["[x@example.net]", "[-bs]", "[$(touch x)@example.net]", "[y z]", "[*]"],
    ]


BODIES = {
    "lines": (b"one\r\n\r\ntwo\r\n", b"one\n\ntwo\n"),
    "dots": (b"..\r\n..a\r\n...\r\n", b".\n.a\n..\n"),
    "empty": (b"", b""),
    "octets": (b"\0\x80\xff\r\n", b"\0\x80\xff\n"),
    "large": ((b"..x" + b"y" * 1000 + b"\r\n") * 3000, (b".x" + b"y" * 1000 + b"\n") * 3000),
}


@pytest.mark.parametrize(("body", "local"), BODIES.values(), ids=BODIES)
def test_the_message_comes_on_standard_input_with_lf_and_its_own_dots(
    sendmail_that, out, body, local
):
    copy = copy_of(body, header=b"Subject: x\r\n.dot: y\r\n\r\n")
    sendmail_that("exec cat > {out}\n").send(copy)
    assert out.read_bytes() == b"Subject: x\n.dot: y\n\n" + local


def test_the_program_gets_its_own_environment_only(sendmail_that, out, monkeypatch):
    monkeypatch.setenv("TOFMIPD_SECRET", "x")
    sendmail_that("cat /proc/$$/environ > {out}\n").send(copy_of())
    variables = dict(pair.split("=", 1) for pair in out.read_text().split("\0") if pair)
    assert variables == ENVIRONMENT


LIST_DESCRIPTORS = """\
import os
names = sorted(os.listdir("/proc/self/fd"), key=int)
with open("{out}", "w") as out:
    for name in names:
        if os.path.lexists(f"/proc/self/fd/{name}"):
            print(name, os.readlink(f"/proc/self/fd/{name}"), file=out)
"""


def test_the_program_gets_three_descriptors_and_no_other(sendmail_that, out, tmp_path):
    read_end, write_end = os.pipe()
    try:
        os.set_inheritable(read_end, True)
        os.set_inheritable(write_end, True)
        sendmail_that(LIST_DESCRIPTORS, shell=f"{sys.executable} -IS").send(copy_of())
    finally:
        os.close(read_end)
        os.close(write_end)
    own = ("/proc/", str(tmp_path))  # what it has opened itself
    numbers = [
        number
        for number, _, target in (line.partition(" ") for line in out.read_text().splitlines())
        if not target.startswith(own)
    ]
    assert numbers == ["0", "1", "2"]


def test_the_program_runs_in_the_directory_and_a_group_of_its_own(sendmail_that, out, tmp_path):
    body = "pwd > {out}; cut -d' ' -f 1,5,6 /proc/$$/stat >> {out}\n"
    sendmail_that(body, directory=str(tmp_path)).send(copy_of())
    directory, numbers = out.read_text().splitlines()
    assert directory == str(tmp_path)
    pid, group, session = numbers.split()
    assert pid == group != str(os.getpgid(0))
    assert session == str(os.getsid(0))


@pytest.mark.parametrize(
    ("status", "heard"),
    [
        (75, "451 4.3.0 "),
        (71, "451 4.3.0 "),
        (74, "451 4.3.0 "),
        (67, "554 5.1.1 "),
        (68, "554 5.1.2 "),
        (65, "554 5.6.0 "),
        (77, "554 5.7.1 "),
        (1, "554 5.0.0 "),
        (64, "554 5.0.0 "),
        (255, "554 5.0.0 "),
    ],
)
def test_the_status_says_whether_to_try_again(sendmail_that, status, heard):
    said = failure_of(sendmail_that(f"exit {status}\n"))
    assert said.startswith(heard)
    assert f"(status {status})" in said
    assert "/" not in said


@pytest.mark.parametrize("name", ["KILL", "TERM", "HUP"])
def test_a_program_that_dies_by_a_signal_is_a_reason_to_try_later(sendmail_that, name):
    said = failure_of(sendmail_that(f"kill -{name} $$\n"))
    number = getattr(signal, f"SIG{name}").value
    assert said == f"451 4.3.0 sendmail was ended by signal {number}"


@pytest.mark.parametrize("kind", ["missing", "not executable", "directory", "no interpreter"])
def test_a_program_that_cannot_be_run_is_a_reason_to_try_later(tmp_path, kind):
    path = tmp_path / "sendmail"
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_text("#!/nonexistent/sh\n" if kind == "no interpreter" else "#!/bin/sh\n")
        path.chmod(0o755 if kind == "no interpreter" else 0o644)
    said = failure_of(SendmailTransport(str(path), "<>", ENVIRONMENT))
    assert said.startswith("451 4.3.5 ")
    assert "cannot be run" in said


def test_an_argument_that_no_program_can_get_is_a_reason_to_try_later(sendmail_that, out):
    said = failure_of(sendmail_that(RECORD), copy_of(recipients=(b"x\0@example.net",)))
    assert said.startswith("451 4.3.5 ")
    assert not out.exists()


def test_a_program_that_hangs_is_killed_with_its_children(sendmail_that, out):
    body = "trap '' TERM INT\nsleep 300 &\necho $$ $! > {out}\nwait\n"
    begun = time.monotonic()
    said = failure_of(sendmail_that(body, timeout=1))
    assert 0.9 < time.monotonic() - begun < 5
    assert said.startswith("451 4.3.0 ")
    assert "did not end within 1 s" in said
    for pid in out.read_text().split():
        wait_for(lambda pid=pid: not running(pid))


def test_what_a_program_leaves_behind_holds_nobody_up(sendmail_that, out):
    begun = time.monotonic()
    sendmail_that("sleep 300 &\necho $! > {out}\nexit 0\n").send(copy_of())
    assert time.monotonic() - begun < 5
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(out.read_text()), signal.SIGKILL)


def test_a_program_need_not_read_the_message(sendmail_that):
    copy = copy_of([b"x" * 998 + b"\r\n"] * 3000)
    assert sendmail_that("exit 0\n").send(copy) == "sendmail exited with 0"


def test_what_the_program_says_is_for_the_log_and_not_for_the_client(sendmail_that):
    body = "echo on stdout; printf 'on\\033[31m stderr\\n' >&2; exit 75\n"
    with pytest.raises(HandOffFailed) as caught:
        sendmail_that(body).send(copy_of())
    assert r"on stdout\non\x1b[31m stderr" in str(caught.value)
    assert "stderr" not in str(caught.value.reply)


def test_of_much_output_little_is_kept_for_the_log(sendmail_that):
    with pytest.raises(HandOffFailed) as caught:
        sendmail_that("head -c 5000000 /dev/zero; exit 75\n").send(copy_of())
    assert str(caught.value.reply).startswith("451 4.3.0 ")
    assert len(str(caught.value)) < 4000


@pytest.fixture
def temporary_files(monkeypatch):
    """Descriptors of all temporary files that are made, good for a look when they are closed."""
    copies = []
    real = tempfile.TemporaryFile

    def make(*arguments, **options):
        file = real(*arguments, **options)
        copies.append(os.dup(file.fileno()))
        return file

    monkeypatch.setattr(sendmail.tempfile, "TemporaryFile", make)
    yield copies
    for descriptor in copies:
        os.close(descriptor)


def test_a_program_that_talks_without_end_does_not_fill_the_disk(sendmail_that, temporary_files):
    body = "while :; do head -c 1000000 /dev/zero || sleep 1; done\n"
    assert failure_of(sendmail_that(body, timeout=0.5)).startswith("451 4.3.0 ")
    assert sum(os.fstat(descriptor).st_size for descriptor in temporary_files) <= 2_000_000


def test_without_room_for_temporary_files_the_client_may_try_later(sendmail_that, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    assert failure_of(sendmail_that("exit 0\n")).startswith("451 4.3.")


def test_the_transport_is_called_by_its_program(sendmail_that, tmp_path):
    assert str(sendmail_that("exit 0\n")) == str(tmp_path / "sendmail")


def test_copies_are_given_one_by_one_until_one_is_not_taken(sendmail_that, out):
    said = []
    sender = sendmail_that("echo x >> {out}; test $(wc -l < {out}) -lt 2\n")
    with pytest.raises(HandOffFailed):
        sender.send_all([copy_of(), copy_of(), copy_of()], said.append)
    assert said == ["sendmail exited with 0"]
    assert out.read_text() == "x\nx\n"
