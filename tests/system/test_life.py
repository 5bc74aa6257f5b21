"""Beginning and end: who runs it, how it starts, and what it leaves undone."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from accounts import Account, new_account
from clients import Mail, by_curl, dialogue, logged_in, submit
from hops import smtp_sink
from running import (
    HOST,
    PROGRAM,
    Home,
    ending,
    environment,
    free_port,
    greets,
    run,
    to_smtp,
    wait_until,
)

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_message_that_is_coming_in_is_delivered_before_the_end(number, start, home, hop):
    """TO-19."""
    daemon = start(home)
    with logged_in(daemon.port) as idle, logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        talk.send(MESSAGE[:40])
        daemon.process.send_signal(number)
        assert idle.reply() == "421 4.3.2 The service is shutting down"
        wait_until(lambda: not greets(daemon.port), "the port to close")
        assert daemon.process.poll() is None
        talk.send(MESSAGE[40:])
        assert talk.reply().startswith("250")
        assert talk.reply().startswith("421 4.3.2 ")
    assert daemon.stop() == 0
    assert len(hop.messages()) == 1


def test_a_hangup_ends_nobody(start, home):
    """TO-19; the certificates are read again, if there are any."""
    daemon = start(home)
    with logged_in(daemon.port) as talk:
        daemon.process.send_signal(signal.SIGHUP)
        assert talk.say("NOOP").startswith("250")
        assert greets(daemon.port)
    assert daemon.stop() == 0


def test_a_closed_standard_error_keeps_nobody_from_serving(home):
    """As supervisors and scripts close it."""
    port = free_port()
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", PROGRAM, "--personal", "-f"]
    process = subprocess.Popen(
        [*command, "-p", f"{HOST}:{port}"], env=environment(home), stdout=subprocess.DEVNULL
    )
    with ending(process):
        wait_until(lambda: greets(port), "the greeting")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_message_that_is_being_handed_over_is_finished_before_the_end(start, home, hop):
    """TO-19."""
    daemon = start(home)
    hop.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        reply = pool.submit(submit, daemon.port, TO)
        assert hop.data_complete.wait(10)
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not greets(daemon.port), "the port to close")
        hop.may_answer.set()
        assert reply.result(10).startswith("250")
    assert daemon.stop() == 0
    assert len(hop.messages()) == 1


@pytest.mark.parametrize("attempt", range(4))
def test_sigterm_is_obeyed_while_clients_keep_coming(attempt, start, home):
    """TO-19: whichever thread of the process the signal interrupts."""
    daemon = start(home)
    done = threading.Event()

    def keep_coming() -> None:
        while not done.is_set():
            greets(daemon.port)

    with ThreadPoolExecutor() as pool:
        for _ in range(2):
            pool.submit(keep_coming)
        try:
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(10)
        finally:
            done.set()


def test_impatience_changes_nothing(start, home):
    """More than one signal, of both kinds: status 0 nevertheless."""
    daemon = start(home)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        daemon.process.send_signal(number)
    assert daemon.process.wait(10) == 0


def test_an_idle_daemon_ends_at_once(start, home):
    daemon = start(home)
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 2


def test_a_client_that_vanishes_within_a_message_sends_nothing(daemon, hop):
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        talk.send(MESSAGE[:-3])
    daemon.says("gone")
    assert not hop.commands


@pytest.mark.parametrize("size", [1000, 5_000_000])
def test_a_client_that_vanishes_after_the_final_dot_has_sent_its_mail(size, daemon, hop):
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        talk.send(b"Subject: x\r\n\r\n" + b"x" * size + b"\r\n.\r\n")
    assert hop.message(TO)


@pytest.mark.peer("smtp-sink")
def test_a_next_hop_killed_within_a_message_defers(daemon, home, tmp_path):
    big = b"Subject: x\r\n\r\n" + b"x" * 20_000_000 + b"\r\n"
    with smtp_sink(tmp_path / "sink", "-H", "30") as sink, ThreadPoolExecutor() as pool:
        home.configure(to_smtp(sink.port))
        reply = pool.submit(submit, daemon.port, TO, message=big)
        wait_until(lambda: list(sink.directory.iterdir()), "the transaction to begin")
        sink.process.kill()
        said = reply.result(20)
    assert re.fullmatch(r"451 4\.4\.2 connection to next hop \S+ lost: .*", said)


def test_a_next_hop_that_refuses_within_a_message_is_believed(daemon, home, tmp_path):
    """The refusal reaches the client, not the broken pipe that comes with it."""
    big = b"Subject: x\r\n\r\n" + b"x" * 20_000_000 + b"\r\n"
    with smtp_sink(tmp_path / "sink", "-A", "0") as sink:
        home.configure(to_smtp(sink.port))
        assert submit(daemon.port, TO, message=big).startswith("550")


def background(home: Home, port: int, log: Path) -> int:
    """Start a daemon in the background; its pid."""
    place = f"{HOST}:{port}"
    result = run("--personal", "-b", "-p", place, "--log-file", str(log), home=home)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    # The parent ends only when clients can connect: no waiting here.
    with dialogue(port):
        pass
    return int(re.search(r"started, pid ([0-9]+)", log.read_text())[1])


def test_in_the_background_it_is_detached_from_whoever_started_it(home, hop, tmp_path):
    """TO-17, TO-73."""
    port, log = free_port(), tmp_path / "log"
    pid = background(home, port, log)
    try:
        assert os.getsid(pid) not in (os.getsid(0), pid)
        assert os.getpgid(pid) != os.getpgid(0)
        descriptors = [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)]
        assert descriptors == ["/dev/null"] * 3
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert submit(port, TO).startswith("250")
        assert len(hop.messages()) == 1
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not _lives(pid), "the end of the daemon")
    assert log.read_text().endswith("stopped\n")
    assert "Traceback" not in log.read_text()


def _lives(pid: int) -> bool:
    """Whether the process runs; what waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_background_is_the_default(home, tmp_path):
    """TO-17."""
    port, log = free_port(), tmp_path / "log"
    result = run("--personal", "-p", f"{HOST}:{port}", "--log-file", str(log), home=home)
    assert result.returncode == 0
    assert greets(port)
    os.kill(int(re.search(r"started, pid ([0-9]+)", log.read_text())[1]), signal.SIGTERM)
    wait_until(lambda: log.read_text().endswith("stopped\n"), "the end of the daemon")


def test_who_closes_all_descriptors_starts_it_as_well(home, hop, tmp_path):
    """What it opens must not get the numbers that are for nothing in the background."""
    port, pid_file = free_port(), tmp_path / "pid"
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", PROGRAM, "--personal"]
    options = ["-p", f"{HOST}:{port}", "--pid-file", str(pid_file)]
    result = subprocess.run([*command, *options], env=environment(home), check=False, timeout=20)
    assert result.returncode == 0
    assert greets(port)
    pid = int(pid_file.read_text())
    names = [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]
    assert names == [os.devnull] * 3
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pid_file.exists(), "the end of the daemon")


def test_what_is_wrong_is_said_before_it_detaches(home):
    """TO-17."""
    with socket.create_server((HOST, 0)) as taken:
        place = f"{HOST}:{taken.getsockname()[1]}"
        assert run("--personal", "-p", place, home=home).returncode == os.EX_UNAVAILABLE
    result = run("--personal", "-a", "/none", "-p", f"{HOST}:0", home=home)
    assert result.returncode == os.EX_CONFIG
    assert result.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with new_account(f"tofmipd{os.getpid()}") as made:
        yield made


@pytest.mark.root
@pytest.mark.peer("curl")
def test_an_ordinary_account_serves_itself(account, start, hop, tmp_path):
    """TO-4, BX-10: from nothing to the first mail, and all files are the account's own."""
    mine = {"program": account.program, "variables": account.variables, "user": account.uid}
    home = account.home
    made = run("init", "--smtp", f"{HOST}:{hop.port}", home=home, **mine)
    assert made.returncode == 0, made.stderr
    login, password = re.search(r"user name (\S+), password (\S+)", made.stdout).groups()
    assert login == account.name
    daemon = start(home, "-d", "--log-file", str(home.path / "log"), **mine)
    mail = Mail((TO,), "Subject: x\n\nx\n", login=login, password=password)
    assert by_curl(mail, daemon.port, tmp_path).status == 0
    stored = hop.message(TO)
    assert re.match(rf"Test Person <{login}-dated-[0-9]+\.[0-9a-f]+@", stored.value("From"))
    tested = run("test", "--server", f"{HOST}:{daemon.port}", "you@example.net", home=home, **mine)
    assert tested.returncode == 0, tested.stderr
    assert hop.message("you@example.net")
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert re.search(rf"Uid:(\t{account.uid}){{4}}\n", status)
    paths = [home.path, *home.path.rglob("*")]
    assert len(paths) > 8
    assert {path.lstat().st_uid for path in paths} == {account.uid}
    open_to_others = [path for path in home.tmda.rglob("*") if path.lstat().st_mode & 0o077]
    assert not open_to_others


@pytest.mark.root
def test_an_ordinary_account_may_have_neither_a_low_port_nor_another_user(account):
    mine = {"program": account.program, "variables": account.variables, "user": account.uid}
    make = run("init", home=account.home, **mine)
    assert make.returncode == 0
    first_free = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first_free <= 1:
        pytest.skip("here everybody may listen on every port")
    place = f"{HOST}:{min(first_free - 1, 465)}"
    result = run("-f", "-p", place, home=account.home, **mine)
    assert result.returncode == os.EX_NOPERM
    expected = f"cannot listen on {place}: Permission denied; choose another with -p HOST:PORT"
    assert result.stderr == f"tofmipd: {expected}\n"
    result = run("-f", "-u", "root", home=account.home, **mine)
    assert result.returncode == os.EX_NOPERM
    assert result.stderr == "tofmipd: only root can run as -u root; start as root\n"
    path = account.home.tmda / "tofmipd"
    path.chmod(0)
    result = run("-f", home=account.home, **mine)
    assert result.returncode == os.EX_CONFIG
    assert result.stderr.startswith(f"tofmipd: {path}: cannot be read (Permission denied)")
    assert f"chmod 600 {path}" in result.stderr
