"""Hand-off to a sendmail program: small scripts stand for it."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

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


FINAL = {
    1: "5.0.0",
    os.EX_USAGE: "5.5.4",
    os.EX_DATAERR: "5.6.0",
    os.EX_NOUSER: "5.1.1",
    os.EX_NOPERM: "5.7.1",
    79: "5.0.0",
    100: "5.0.0",
    128: "5.0.0",
    255: "5.0.0",
}
TEMPORARY = {
    2: "4.3.5",
    os.EX_NOINPUT: "4.3.5",
    os.EX_NOHOST: "4.4.3",
    os.EX_UNAVAILABLE: "4.3.0",
    os.EX_SOFTWARE: "4.3.0",
    os.EX_OSERR: "4.3.0",
    os.EX_OSFILE: "4.3.5",
    os.EX_CANTCREAT: "4.3.0",
    os.EX_IOERR: "4.3.0",
    os.EX_TEMPFAIL: "4.3.0",
    os.EX_PROTOCOL: "4.5.0",
    os.EX_CONFIG: "4.3.5",
    111: "4.3.0",
    126: "4.3.5",
    127: "4.3.5",
}


@pytest.mark.parametrize("status", FINAL)
def test_a_status_that_blames_the_message_or_is_unknown_is_final(sendmail_that, status):
    said = failure_of(sendmail_that(f"exit {status}\n"))
    assert said == f"554 {FINAL[status]} sendmail refuses the message (status {status})"


@pytest.mark.parametrize("status", TEMPORARY)
def test_a_status_that_blames_the_machine_is_a_reason_to_try_later(sendmail_that, status):
    said = failure_of(sendmail_that(f"exit {status}\n"))
    assert said == f"451 {TEMPORARY[status]} sendmail cannot take the message now (status {status})"


def test_every_status_of_sysexits_is_in_one_of_the_tables():
    assert not FINAL.keys() & TEMPORARY.keys()
    assert set(range(64, 79)) <= FINAL.keys() | TEMPORARY.keys()


NO_USER = "550 5.1.1 <x@example.net>: No such user"
REPLIES = [
    # As msmtp has it.
    (
        os.EX_DATAERR,
        "msmtp: recipient address x@example.net not accepted by the server\n"
        "msmtp: server message: 550 5.1.1 No such user\n"
        "msmtp: could not send mail (account default from /home/you/.msmtprc)",
        NO_USER,
    ),
    (os.EX_UNAVAILABLE, "msmtp: server message: 450 4.2.0 Later", "450 4.2.0 Later"),
    (os.EX_UNAVAILABLE, "msmtp: server message: 554 5.7.1 Spam", "554 5.7.1 Spam"),
    (os.EX_UNAVAILABLE, "a: 550-5.1.1 No such user\na: 550 5.1.1 here", "550 5.1.1 No such user"),
    # Final or not, the next hop decides on what may pass.
    (os.EX_NOUSER, "451 4.7.1 Greylisted", "451 4.7.1 Greylisted"),
    (1, "x@example.net: 452 4.2.2 Mailbox full", "452 4.2.2 <x@example.net>: Mailbox full"),
    (1, "550 5.1.1 No such user\n450 4.2.1 Busy", "450 4.2.1 Busy"),
    (1, "421 4.3.2 Closing", "451 4.3.2 Closing"),
    (1, "550 no status", "550 5.0.0 no status"),
    (1, "550 4.1.1 which of them", "550 5.0.0 which of them"),
    (1, "550 5.1.1 x@example.net and y@example.net", "550 5.1.1 x@example.net and y@example.net"),
    (1, "550 \nmore", "550 5.0.0 refused by the next hop"),
    (1, "554 5.7.1 \x1b[31mred\r", r"554 5.7.1 \x1b[31mred"),
    # What was to pass does not become final.
    (os.EX_TEMPFAIL, "550 5.1.1 No such user", "451 4.3.0 sendmail cannot take the message now"),
    (os.EX_NOHOST, "554 5.7.1 no", "451 4.4.3 sendmail cannot take the message now (status 68)"),
    # The login of the program is not that of the client.
    (
        os.EX_NOPERM,
        "msmtp: authentication failed (method PLAIN)\nmsmtp: server message: 535 5.7.8 wrong",
        "451 4.7.0 the next hop does not let sendmail in (status 77)",
    ),
    (1, "454 4.7.0 not now", "451 4.7.0 the next hop does not let sendmail in (status 1)"),
    (1, "530 5.7.0 TLS first", "451 4.7.0 the next hop does not let sendmail in (status 1)"),
    # What is no reply.
    (1, "error: 404 not found, 503 tried", "554 5.0.0 sendmail refuses the message (status 1)"),
    (1, "the file has 550 lines", "554 5.0.0 sendmail refuses the message (status 1)"),
    (1, "1550 5.1.1 x", "554 5.0.0 sendmail refuses the message (status 1)"),
    (1, "line 550", "554 5.0.0 sendmail refuses the message (status 1)"),
]


@pytest.mark.parametrize(("status", "words", "heard"), REPLIES)
def test_a_reply_of_the_next_hop_in_the_words_of_the_program_decides(
    sendmail_that, status, words, heard
):
    recipients = (b"x@example.net", b"y@example.net")
    body = f"cat >&2 <<'END'\n{words}\nEND\nexit {status}\n"
    assert failure_of(sendmail_that(body), copy_of(recipients=recipients)).startswith(heard)


def test_the_log_has_status_and_words_where_the_client_hears_the_next_hop(sendmail_that):
    with pytest.raises(HandOffFailed) as caught:
        sendmail_that("echo 'a: 550 5.1.1 No' >&2; echo more >&2; exit 65\n").send(copy_of())
    assert str(caught.value) == r"550 5.1.1 No (status 65: a: 550 5.1.1 No\nmore)"


def test_a_reply_behind_many_words_is_found_and_shown(sendmail_that):
    body = "head -c 20000 /dev/zero | tr '\\0' x; echo; echo a: 450 4.2.0 Later; exit 69\n"
    with pytest.raises(HandOffFailed) as caught:
        sendmail_that(body).send(copy_of())
    assert str(caught.value.reply) == "450 4.2.0 Later"
    assert str(caught.value).endswith(r"xxx\na: 450 4.2.0 Later)")
    assert " [...] " in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("words", [" " * 60_000, ": " * 30_000, "550 " * 15_000, "\n" * 60_000])
def test_no_words_take_long_to_search(words):
    begun = time.monotonic()
    sendmail._next_hop_reply("x" + words + "x", (b"x@example.net",))
    assert time.monotonic() - begun < 5


def test_what_a_program_says_of_a_message_that_it_takes_is_logged(sendmail_that, caplog):
    caplog.set_level(logging.INFO)
    said = sendmail_that("echo 'warning: bad\033' >&2\n").send(copy_of())
    assert said == "sendmail exited with 0"
    assert caplog.messages == [r"sendmail has taken a message and says: warning: bad\x1b"]


@pytest.mark.parametrize("name", ["KILL", "TERM", "HUP"])
def test_a_program_that_dies_by_a_signal_is_a_reason_to_try_later(sendmail_that, name):
    said = failure_of(sendmail_that(f"kill -{name} $$\n"))
    number = getattr(signal, f"SIG{name}").value
    assert said == f"451 4.3.0 sendmail was ended by signal {number}"


@pytest.mark.parametrize("name", ["KILL", "SEGV"])
def test_so_is_one_that_dies_so_behind_a_script(sendmail_that, name):
    said = failure_of(sendmail_that(f"sh -c 'kill -{name} $$'\nexit $?\n"))
    number = getattr(signal, f"SIG{name}").value
    assert said == f"451 4.3.0 sendmail was ended by signal {number}"


def missing(path):
    """Nothing is made."""


def not_executable(path):
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)


def of_no_kind(path):
    path.write_text("exit 0\n")
    path.chmod(0o755)


def without_interpreter(path):
    path.write_text("#!/nonexistent/sh\n")
    path.chmod(0o755)


def directory(path):
    path.mkdir()


def round_about(path):
    path.symlink_to(path)


def below_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (missing, "No such file or directory"),
        (not_executable, "Permission denied"),
        (of_no_kind, "Exec format error; a script must begin with #!"),
        (without_interpreter, "No such file or directory (what its first line names)"),
        (directory, "Permission denied"),
        (round_about, "Too many levels of symbolic links"),
        (below_a_file, "Not a directory"),
    ],
)
def test_a_program_that_cannot_be_run_is_a_reason_to_try_later(tmp_path, make, reason):
    path = tmp_path / "below" / "sendmail"
    path.parent.mkdir()
    make(path)
    said = failure_of(SendmailTransport(str(path), "<>", ENVIRONMENT))
    assert said == f"451 4.3.5 {path} cannot be run: {reason}"


def test_more_recipients_than_a_command_line_may_hold_are_refused_for_good(sendmail_that, out):
    """To try later would not help."""
    recipients = tuple(b"%0100d@example.net" % number for number in range(70_000))
    said = failure_of(sendmail_that(RECORD), copy_of(recipients=recipients))
    assert said.startswith("554 5.5.3 too many recipients for one run of /")
    assert not out.exists()


def test_a_thousand_long_recipients_fit(sendmail_that, out):
    recipients = tuple(b"%0064d@%s.example.net" % (n, b"a" * 60 + b".b" * 60) for n in range(1000))
    sendmail_that(RECORD).send(copy_of(recipients=recipients))
    assert out.read_text().splitlines()[4:] == [f"[{one.decode()}]" for one in recipients]


def test_without_descriptors_or_processes_the_client_may_try_later(sendmail_that, out):
    """The limit is that of this process; its temporary files are made before."""
    transport, open_files = sendmail_that(RECORD), []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    message = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, limit[1]))
        with contextlib.suppress(OSError):
            while True:
                open_files.append(os.open("/", os.O_RDONLY))
        with pytest.raises(HandOffFailed) as caught:
            transport._run([transport.program], message)
    finally:
        for descriptor in open_files:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        message.close()
    assert str(caught.value.reply).startswith("451 4.3.2 ")
    assert str(caught.value.reply).endswith(" cannot be run: Too many open files")
    assert not out.exists()


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


def test_what_floods_the_output_behind_the_program_s_end_does_not_undo_it(sendmail_that, out):
    """The message has been taken: to say otherwise would send it twice."""
    begun = time.monotonic()
    body = "cat /dev/zero >&2 &\necho $! > {out}\nexit 0\n"
    assert sendmail_that(body, timeout=60).send(copy_of()) == "sendmail exited with 0"
    assert time.monotonic() - begun < 30
    pid = int(out.read_text())
    wait_for(lambda: not running(pid))


@pytest.mark.parametrize(
    "body",
    [
        "exit 0\n",
        "exec <&-\nexit 0\n",
        "head -c 1500000 > /dev/null\nexit 0\n",
        "echo spoiled >&0\nexit 0\n",
        "exec <&- >&- 2>&-\nexit 0\n",
    ],
    ids=["not at all", "closed", "half", "written to", "all closed"],
)
def test_a_program_may_do_with_its_input_what_it_likes(sendmail_that, out, body):
    copy = copy_of([b"x" * 998 + b"\r\n"] * 3000)
    for _ in range(2):
        assert sendmail_that(body).send(copy) == "sendmail exited with 0"
    sendmail_that("exec cat > {out}\n").send(copy)
    assert out.read_bytes().endswith(b"\n\n" + (b"x" * 998 + b"\n") * 3000)


def test_two_programs_run_at_once_each_with_its_own_message(sendmail_that, tmp_path):
    """Each waits for the other."""
    body = (
        'cat > "$5"; me=$5; case $me in *one) other=two;; *) other=one;; esac\n'
        'until test -e "${me%/*}/$other"; do sleep 0.01; done\n'
    )
    transport = sendmail_that(body, timeout=60)
    names = ("one", "two")

    def work(name):
        to = str(tmp_path / name).encode()
        return transport.send(copy_of(name.encode() + b"\r\n", recipients=(to,)))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, names)) == ["sendmail exited with 0"] * 2
    for name in names:
        assert (tmp_path / name).read_text() == f"Subject: test\n\n{name}\n"


def test_the_words_of_a_program_that_does_not_end_are_logged(sendmail_that):
    with pytest.raises(HandOffFailed) as caught:
        sendmail_that("echo waiting for the queue; sleep 300\n", timeout=1).send(copy_of())
    assert str(caught.value).endswith(" did not end within 1 s (waiting for the queue)")


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


def test_a_disk_that_is_full_runs_nothing(sendmail_that, out, monkeypatch):
    def full(*arguments, **options):
        return open("/dev/full", "w+b")

    monkeypatch.setattr(sendmail.tempfile, "TemporaryFile", full)
    for size in (10, 1_000_000):
        said = failure_of(sendmail_that(RECORD), copy_of(b"x" * size + b"\r\n"))
        assert said == "451 4.3.1 no room for the message: No space left on device"
    assert not out.exists()


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
