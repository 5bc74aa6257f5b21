"""Running a program: no shell, a clean environment, an end to its time and to what it says."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from fakes import PATIENCE_SECONDS, wait_for
from forking import in_child

from tofmipd import programs
from tofmipd.programs import OUTPUT_LIMIT_OCTETS, Outcome

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def shell(text: str, *arguments: str, timeout: float = PATIENCE_SECONDS, **others) -> Outcome:
    return programs.run(["/bin/sh", "-c", text, "sh", *arguments], ENVIRONMENT, timeout, **others)


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("status", [0, 1, 75, 255])
def test_the_status_is_the_programs_own(status):
    assert shell(f"exit {status}") == Outcome(status, b"")


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV"])
def test_a_signal_is_a_negative_status(name):
    outcome = shell(f"kill -{name} $$")
    assert outcome.status == -signal.Signals[f"SIG{name}"]


def test_both_outputs_are_read_in_their_order():
    assert shell("echo one; echo two >&2; echo three").output == b"one\ntwo\nthree\n"


def test_no_shell_sees_the_arguments():
    words = ["$(id)", "a b", "*", ";", "'", "-n", "", "é", "\udcff"]
    outcome = shell("for word; do printf '[%s]' \"$word\"; done", *words)
    assert outcome.output == b"[$(id)][a b][*][;]['][-n][][\xc3\xa9][\xff]"


def test_the_environment_is_what_is_given_and_nothing_else(monkeypatch):
    monkeypatch.setenv("LEAK", "secret")
    outcome = programs.run(["/usr/bin/env"], {"A": "1", "B": "x y"}, PATIENCE_SECONDS)
    assert sorted(outcome.output.decode().splitlines()) == ["A=1", "B=x y"]


def test_there_is_nothing_to_read_unless_it_is_given():
    assert shell("cat").output == b""
    with tempfile.TemporaryFile() as file:
        file.write(b"input")
        file.seek(0)
        assert shell("cat", stdin=file).output == b"input"


def test_the_program_runs_in_a_directory_and_a_group_of_its_own_but_in_the_same_session(tmp_path):
    """By its session the monitor finds what a killed worker has left behind."""
    code = "import os; print(os.getcwd(), os.getpid() == os.getpgid(0), os.getsid(0))"
    command = [sys.executable, "-c", code]
    session = os.getsid(0)
    outcome = programs.run(command, {}, PATIENCE_SECONDS)
    assert outcome.output == f"/ True {session}\n".encode()
    outcome = programs.run(command, {}, PATIENCE_SECONDS, directory=str(tmp_path))
    assert outcome.output == f"{tmp_path} True {session}\n".encode()


@pytest.mark.parametrize("inheritable", [False, True])
def test_no_descriptor_but_three_reaches_the_program(inheritable):
    pipe = os.pipe()
    for descriptor in pipe:
        os.set_inheritable(descriptor, inheritable)
    outcome = shell("ls /proc/self/fd")
    for descriptor in pipe:
        os.close(descriptor)
    # The fourth is that of ls itself.
    assert outcome.output == b"0\n1\n2\n3\n"


def test_a_program_has_the_usual_reactions_to_signals():
    """Python ignores SIGPIPE; a program that did so would go on writing to nobody."""
    ignored = shell("grep SigIgn /proc/self/status").output.split()[1]
    assert not int(ignored, 16) & (1 << (signal.SIGPIPE - 1))
    assert shell("yes | head -n 1") == Outcome(0, b"y\n")


def test_when_its_time_is_up_the_program_is_killed_with_its_children():
    begun = time.monotonic()
    outcome = shell("trap '' TERM HUP; sleep 60 & echo $$ $!; sleep 60", timeout=0.2)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert outcome.status is None
    pids = [int(word) for word in outcome.output.split()]
    assert len(pids) == 2
    wait_for(lambda: not any(running(pid) for pid in pids))


def test_output_that_never_ends_does_not_outlive_the_limit_of_time():
    begun = time.monotonic()
    outcome = shell("yes", timeout=0.2)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert outcome == Outcome(None, (b"y\n" * OUTPUT_LIMIT_OCTETS)[:OUTPUT_LIMIT_OCTETS])


def test_of_much_output_the_beginning_is_kept_and_the_program_can_go_on():
    outcome = shell("echo first; head -c 1000000 /dev/zero; exit 3")
    assert outcome.status == 3
    assert len(outcome.output) == OUTPUT_LIMIT_OCTETS
    assert outcome.output.startswith(b"first\n\0\0")


@pytest.mark.parametrize("limit", [0, 1, 10, 65536, 1_000_000])
def test_the_limit_of_the_output_can_be_another(limit):
    outcome = shell("head -c 300000 /dev/zero", output_limit=limit)
    assert outcome == Outcome(0, b"\0" * min(limit, 300_000))


@pytest.mark.parametrize("octets", [999, 1000, 1001, 300_000])
def test_a_program_may_be_ended_when_it_has_written_so_much(octets):
    """It would wait for a minute otherwise."""
    begun = time.monotonic()
    text = f"head -c {octets} /dev/zero; test {octets} -lt 1000 || sleep 60"
    outcome = shell(text, output_limit=1000, ends_at_limit=True)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert outcome == Outcome(0 if octets < 1000 else None, b"\0" * min(octets, 1000))


def test_what_a_program_writes_last_is_read_though_it_has_ended():
    """More than a pipe holds, so that it waits for its reader."""
    outcome = shell("head -c 200000 /dev/zero; echo end", output_limit=1_000_000)
    assert outcome == Outcome(0, b"\0" * 200_000 + b"end\n")


def test_a_child_that_floods_the_output_after_the_end_holds_nobody_up(tmp_path):
    begun = time.monotonic()
    outcome = shell(f"echo first; cat /dev/zero & echo $! > {tmp_path}/pid; exit 6", timeout=60)
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert outcome.status == 6
    assert outcome.output.startswith(b"first\n")
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not running(pid))


def test_what_is_written_last_is_read_whole_again_and_again():
    """A pipe full, so that nothing waits for its reader."""
    for _ in range(30):
        outcome = shell("head -c 65536 /dev/zero; exit 1", output_limit=100_000)
        assert outcome == Outcome(1, b"\0" * 65536)


@pytest.mark.root
@pytest.mark.peer("setpriv")
def test_a_program_that_cannot_be_killed_does_not_outlive_the_limit_of_time(monkeypatch):
    """By its set-user-ID bit it runs as root for somebody else, like some sendmail programs."""
    monkeypatch.setattr(programs, "_KILL_SECONDS", 0.1)
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        if os.statvfs(directory).f_flag & os.ST_NOSUID:
            pytest.skip("set-user-ID bits have no effect on this file system")
        program = shutil.copy(shutil.which("setpriv") or "setpriv", directory)
        os.chmod(program, 0o4755)
        as_root = [program, "--reuid=0", "--regid=0", "--clear-groups"]
        command = [*as_root, "/bin/sh", "-c", "echo $$; exec sleep 60"]

        def act():
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            outcome = programs.run(command, ENVIRONMENT, 1)
            return outcome.status, int(outcome.output)

        begun = time.monotonic()
        ended = in_child(act)
        assert time.monotonic() - begun < PATIENCE_SECONDS
        assert ended.status == 0, ended.said
        status, _, pid = ended.said.strip("()\n").partition(", ")
        assert status == "None"
        assert running(int(pid))
        os.kill(int(pid), signal.SIGKILL)


def test_many_programs_run_side_by_side():
    outcomes = {}

    def ask(number):
        outcomes[number] = shell(f"sleep 0.1; echo {number}; exit {number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert outcomes == {number: Outcome(number, b"%d\n" % number) for number in range(16)}
    assert time.monotonic() - begun < 16 * 0.1 + PATIENCE_SECONDS / 2


def test_a_program_that_closes_its_output_is_waited_for():
    assert shell("exec >&- 2>&-; sleep 0.05; exit 4") == Outcome(4, b"")


def test_what_a_program_leaves_behind_is_not_waited_for():
    """It keeps the pipe open."""
    begun = time.monotonic()
    outcome = shell("sleep 60 & echo $!; exit 5")
    assert time.monotonic() - begun < PATIENCE_SECONDS / 2
    os.kill(int(outcome.output), signal.SIGKILL)
    assert outcome.status == 5


def children():
    """Of this process; what other tests keep running is among them."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {child for task in tasks for child in task.read_text().split()}


def test_no_zombie_and_no_descriptor_is_left():
    before = len(os.listdir("/proc/self/fd")), children()
    shell("exit 0")
    shell("sleep 60", timeout=0.05)
    assert (len(os.listdir("/proc/self/fd")), children()) == before


@pytest.mark.parametrize(
    ("command", "environment", "error"),
    [
        (["/nonexistent/program"], {}, FileNotFoundError),
        (["/etc/passwd"], {}, PermissionError),
        (["/"], {}, PermissionError),
        (["/bin/true", "a\0b"], {}, ValueError),
        (["/bin/true", chr(0xD800)], {}, ValueError),
        (["/bin/true"], {"A": "\0"}, ValueError),
        (["/bin/true", "x" * (4 << 20)], {}, OSError),
    ],
)
def test_what_cannot_be_started_is_told_by_the_errors_that_are_declared(
    command, environment, error
):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error):
        programs.run(command, environment, PATIENCE_SECONDS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_not_there_is_such_an_error():
    with pytest.raises(FileNotFoundError):
        programs.run(["/bin/true"], {}, PATIENCE_SECONDS, directory="/nonexistent")
