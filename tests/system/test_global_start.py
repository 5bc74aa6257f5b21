"""Global mode: what it needs to start, who may log in, signals, and the end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import re
import shlex
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import Dialogue, dialogue, logged_in, plain, submit
from running import DATE, HOST, Daemon, Home, free_port, greets, to_smtp, tofmipd, wait_until
from village import Village, Villager, descriptors, processes, status

pytestmark = pytest.mark.root

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"
WRONG = "535 5.7.8 AUTH failed: user name or password is wrong"


def started_with(word: str) -> list[int]:
    """The processes that have this in their command lines; children keep their monitor's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def send(daemon: Daemon, person: Villager, password: str = "") -> str:
    words = {"login": person.name, "password": password or person.password}
    return submit(daemon.port, TO, **words)


def log_in(port: int, login: str, password: str) -> str:
    """The reply to a login in a session of its own."""
    with dialogue(port) as talk:
        assert talk.say("EHLO client.example").startswith("250")
        return talk.say(f"AUTH PLAIN {plain(login, password)}")


# The service's account.


def test_a_missing_service_account_is_told_with_the_commands_that_make_it(village):
    """TO-6."""
    name = f"{village.service}n"
    result = village.run("-f", "-u", name, "-a", str(village.passwords), "-p", f"{HOST}:0")
    assert result.returncode == os.EX_CONFIG
    assert result.stderr.count("\n") == 1
    for words in (f"groupadd --system {name}", "useradd --system", f"pw useradd {name}", "-u"):
        assert words in result.stderr
    linux = re.search(r"make it: (.*?) \(Linux\)", result.stderr)[1]
    try:
        for command in linux.split("; "):
            subprocess.run(shlex.split(command), check=True, capture_output=True)
        with village.daemon("-u", name) as daemon:
            uid = str(pwd.getpwnam(name).pw_uid)
            assert status(processes(daemon)["server"])["Uid"].split() == [uid] * 4
    finally:
        subprocess.run(["userdel", name], check=False, capture_output=True)


def test_the_service_account_is_tofmipd_unless_told_otherwise(village):
    """TO-6."""
    options = ("-a", str(village.passwords))
    try:
        uid = str(pwd.getpwnam("tofmipd").pw_uid)
    except KeyError:
        result = village.run("-f", *options, "-p", f"{HOST}:0")
        assert result.returncode == os.EX_CONFIG
        assert "there is no account tofmipd" in result.stderr
        return
    home = Home(village.directory)
    with tofmipd(home, *options, program=village.program, variables=village.variables) as daemon:
        assert status(processes(daemon)["server"])["Uid"].split() == [uid] * 4


def test_the_service_account_can_be_chosen(village, village_hop):
    """TO-74: with its groups."""
    entry = pwd.getpwnam("daemon")
    with village.daemon("-u", "daemon") as daemon:
        assert send(daemon, village.people[0]).startswith("250")
        found = processes(daemon)
        for name in ("server", "auth"):
            lines = status(found[name])
            assert lines["Uid"].split() == [str(entry.pw_uid)] * 4
            assert lines["Gid"].split() == [str(entry.pw_gid)] * 4
            groups = set(os.getgrouplist("daemon", entry.pw_gid))
            assert set(map(int, lines["Groups"].split())) == groups
        assert "server and auth: daemon" in daemon.text()


def test_root_is_no_service_account(village):
    result = village.run("-f", "-u", "root", "-a", str(village.passwords), "-p", f"{HOST}:0")
    assert result.returncode == os.EX_CONFIG
    expected = "-u root has the rights of root; name an account without any"
    assert result.stderr == f"tofmipd: {expected}\n"


# What is wrong is said at the start.


def _missing(path: Path, person: Villager) -> None:
    path.unlink()


def _open_to_all(path: Path, person: Villager) -> None:
    path.chmod(0o644)


def _somebody_else_s(path: Path, person: Villager) -> None:
    os.chown(path, person.uid, person.gid)


def _pipe(path: Path, person: Villager) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _without_colon(path: Path, person: Villager) -> None:
    path.write_text("bobby FooBar\n")


BROKEN = {
    "no such password file": _missing,
    "mode 0644": _open_to_all,
    "owned by uid": _somebody_else_s,
    "not a regular file": _pipe,
    "no colon in the line": _without_colon,
}


@pytest.mark.parametrize("ground", ["-f", "-b"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_bad_password_file_ends_the_start_and_leaves_nothing_running(
    fault, ground, village, tmp_path
):
    """TO-17: the one who starts it hears why, also when it would go on in the background."""
    passwords = tmp_path / "passwords"
    passwords.write_text("bobby:FooBar\n")
    passwords.chmod(0o600)
    BROKEN[fault](passwords, village.people[0])
    port = free_port()
    options = ("-u", village.service, "-a", str(passwords), "-p", f"{HOST}:{port}")
    result = village.run(ground, *options, "--log-file", str(tmp_path / "log"))
    assert result.returncode == os.EX_CONFIG
    assert re.fullmatch(rf"tofmipd: {re.escape(str(passwords))}.*\n", result.stderr)
    assert fault in result.stderr
    assert not greets(port)
    assert not started_with(str(tmp_path))
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("ground", ["-f", "-b"])
def test_a_taken_port_ends_the_start_and_leaves_nothing_running(ground, village, tmp_path):
    with socket.create_server((HOST, 0)) as taken:
        place = f"{HOST}:{taken.getsockname()[1]}"
        log = ("--log-file", str(tmp_path / "log"))
        result = village.run(ground, *village.options("-p", place, *log))
    assert result.returncode == os.EX_UNAVAILABLE
    reason = "Address already in use; choose another with -p HOST:PORT"
    assert result.stderr == f"tofmipd: cannot listen on {place}: {reason}\n"
    assert not started_with(str(tmp_path))


@pytest.mark.parametrize("options", [(), ("-b",)])
def test_in_the_background_it_answers_as_soon_as_its_starter_has_ended(
    options, village, village_hop, tmp_path
):
    """TO-17: the background is the default."""
    port, log = free_port(), tmp_path / "log"
    place = ("-p", f"{HOST}:{port}", "--log-file", str(log))
    result = village.run(*village.options(*place, *options))
    try:
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        # No waiting here.
        with dialogue(port):
            pass
        monitor = int(re.search(r"started, pid ([0-9]+); ", log.read_text())[1])
        assert os.getsid(monitor) not in (os.getsid(0), monitor)
        assert os.readlink(f"/proc/{monitor}/cwd") == "/"
        bobby = village.people[0]
        reply = submit(port, TO, login=bobby.name, password=bobby.password)
        assert reply.startswith("250")
        running = started_with(str(tmp_path))
        assert len(running) == 4
        for pid in running:
            found = descriptors(pid)
            assert [found[number] for number in (0, 1, 2)] == ["/dev/null"] * 3
        os.kill(monitor, signal.SIGTERM)
        wait_until(lambda: not started_with(str(tmp_path)), "the end of all processes")
        assert log.read_text().endswith("stopped\n")
        assert "Traceback" not in log.read_text()
    finally:
        for pid in started_with(str(tmp_path)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_the_start_lines_say_where_it_listens_and_who_runs_as_whom(village):
    """TO-18, TO-20: before anything that -d has to say."""
    with village.daemon("--min-uid", "1234") as daemon:
        first, second, third = daemon.text().splitlines()[:3]
        assert re.fullmatch(rf"tofmipd started at {DATE}", first)
        assert second == f"\tListening on {HOST}:{daemon.port}"
        who = (
            f"monitor: root, server and auth: {village.service},"
            " workers: the user who logged in (uid 1234 or above)"
        )
        assert third == f"\tRunning as {who}"
        assert daemon.says(f"started, pid {daemon.pid}; {who}")


def test_the_full_version_says_who_would_run_as_whom(village):
    """TO-20."""
    result = village.run(*village.options("-V"))
    assert result.returncode == 0
    assert f"server and auth: {village.service}" in result.stdout


# Who may log in.


@pytest.mark.parametrize(
    ("options", "login", "reason"),
    [
        ((), "root", "has the uid or gid of root"),
        (("--min-uid", "1"), "root", "has the uid or gid of root"),
        ((), "daemon", "below --min-uid 1000"),
        ((), "SERVICE", "below --min-uid 1000"),
        (("--min-uid", "1"), "SERVICE", "is the account of the service itself"),
        (("--min-uid", "2000000"), "PERSON", "below --min-uid 2000000"),
        ((), "nobody-of-that-name", "is no account of this system"),
    ],
)
def test_who_may_not_log_in_is_refused_like_a_wrong_password(options, login, reason, village):
    """The log says why; the client cannot tell."""
    login = {"SERVICE": village.service, "PERSON": village.people[0].name}.get(login, login)
    bobby = village.people[1]
    village.write_passwords({login: "TheRightOne", bobby.name: bobby.password})
    with village.daemon(*options) as daemon, ThreadPoolExecutor() as pool:
        replies: list[tuple[str, float]] = []

        def attempt(user: str, password: str) -> None:
            begun = time.monotonic()
            replies.append((log_in(daemon.port, user, password), time.monotonic() - begun))

        list(pool.map(attempt, [login, login, bobby.name], ["TheRightOne", "wrong", "wrong"]))
        assert [reply for reply, _ in replies] == [WRONG] * 3
        # All of them take the pause that a failed login takes.
        assert min(seconds for _, seconds in replies) > 0.9
        daemon.says("WARNING", f"user={login!r} may not log in: ", reason)
        lines = [x for x in daemon.text().splitlines() if "auth rejected" in x]
        reasons = sorted(x.partition("reason=")[2] for x in lines)
        wrong = [f"password user={name!r}" for name in sorted([login, bobby.name])]
        assert reasons == [f"account user={login!r}", *wrong]
        assert not [x for x in processes(daemon) if x not in ("monitor", "server", "auth")]


def test_a_session_that_was_refused_sends_nothing(village, village_hop):
    village.write_passwords({"daemon": "TheRightOne"})
    with village.daemon() as daemon, dialogue(daemon.port) as talk:
        assert talk.say("EHLO client.example").startswith("250")
        assert talk.say(f"AUTH PLAIN {plain('daemon', 'TheRightOne')}") == WRONG
        assert talk.say("MAIL FROM:<bobby@example.org>").startswith("530 ")
    assert not village_hop.commands


# Sessions.


def test_an_address_in_the_environment_of_the_daemon_is_ignored(village, village_hop):
    """TO-12."""
    variables = {
        "TCPREMOTEIP": "6.6.6.6",
        "TCPREMOTEHOST": "evil.example",
        "TCPREMOTEINFO": "evil",
        "TCPLOCALIP": "6.6.6.7",
    }
    with village.daemon(variables=variables) as daemon:
        assert send(daemon, village.people[0]).startswith("250")
        (stored,) = village_hop.messages()
        assert f"({HOST})" in stored.value("Received") or f"[{HOST}]" in stored.value("Received")
        for text in (stored.octets.decode(), daemon.text()):
            assert "6.6.6" not in text
            assert "evil" not in text


@pytest.mark.parametrize("same", [True, False])
def test_two_sessions_side_by_side_keep_their_own_names(same, village, village_hop):
    """TO-35: of one user, whose messages one worker deals with, and of two."""
    bobby, chloe, _ = village.people
    with village.daemon() as daemon, dialogue(daemon.port) as one, dialogue(daemon.port) as two:
        pairs = {"one.example": (one, bobby), "two.example": (two, bobby if same else chloe)}

        def both(step: Callable[[Dialogue, str, Villager], None]) -> None:
            for name, (talk, person) in pairs.items():
                step(talk, name, person)

        def say(line: str, beginning: str) -> None:
            def step(talk: Dialogue, name: str, person: Villager) -> None:
                response = plain(person.name, person.password)
                text = line.format(name=name, response=response)
                assert talk.say(text).startswith(beginning)

            both(step)

        say("EHLO {name}", "250")
        say("AUTH PLAIN {response}", "235")
        say("MAIL FROM:<bobby@example.org>", "250")
        say("RCPT TO:<to@{name}>", "250")
        say("DATA", "354")
        both(lambda talk, name, person: talk.send(MESSAGE[:30]))
        both(lambda talk, name, person: talk.send(MESSAGE[30:]))
        for talk, _ in pairs.values():
            assert talk.reply().startswith("250")
    for name in pairs:
        (stored,) = village_hop.for_recipient(f"to@{name}")
        assert stored.value("Received").startswith(f"from {name} ")


def test_a_configuration_directory_serves_each_user_his_own(village, village_hop):
    """TO-75: in the place of that in his home."""
    directory = village.directory / "configurations"
    bobby, chloe, dora = village.people
    for person in (bobby, chloe):
        config = directory / person.name / "config"
        config.parent.mkdir(parents=True)
        lines = [f'ACTION_OUTGOING = "ext={person.name}"', to_smtp(village_hop.port), ""]
        config.write_text("\n".join(lines))
        person.write("config", "raise RuntimeError('nobody asked for this one')\n")
    with village.daemon("-c", str(directory)) as daemon:
        for person in (bobby, chloe):
            assert send(daemon, person).startswith("250")
            assert village_hop.messages()[-1].sender == f"bobby-{person.name}@example.org"
        # Nobody has written one for her.
        assert send(daemon, dora).startswith("554 5.3.5 ")


# Files that change.


def logs_of(pid: int) -> list[str]:
    """The log files that a process has open, under their names of now."""
    found = descriptors(pid).values()
    return [path for path in found if Path(path).name in ("log", "log.1")]


def test_sighup_begins_a_new_log_file_in_all_processes_that_write_it(
    village, village_hop, tmp_path
):
    """Rotation as logrotate does it: rename, signal."""
    log, old = tmp_path / "log", tmp_path / "log.1"
    bobby = village.people[0]
    with village.daemon("--log-file", str(log)) as daemon:
        assert send(daemon, bobby).startswith("250")
        found = processes(daemon)
        writers = [found[name] for name in ("monitor", "server", "auth")]
        for _ in range(2):
            log.rename(old)
            daemon.process.send_signal(signal.SIGHUP)
            for pid in writers:
                wait_until(lambda pid=pid: logs_of(pid) == [str(log)], "the new log file")
            wait_until(lambda: "log file opened again" in log.read_text(), "the monitor's line")
            before = old.read_text()
            assert send(daemon, bobby).startswith("250")
            text = log.read_text()
            # Of auth, of the worker by way of the server.
            assert "auth accepted" in text
            assert "sent to=" in text
            assert old.read_text() == before
            for path in (log, old):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert path.stat().st_uid == 0
        assert processes(daemon) == found
    assert log.read_text().endswith("stopped\n")


def test_a_log_file_that_cannot_be_opened_again_is_not_lost(village, village_hop, tmp_path):
    directory = tmp_path / "directory"
    directory.mkdir()
    log = directory / "log"
    with village.daemon("--log-file", str(log)) as daemon:
        old = tmp_path / "log.1"
        log.rename(old)
        directory.rmdir()
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "cannot be opened again" in old.read_text(), "the complaint")
        assert send(daemon, village.people[0]).startswith("250")
        assert "auth accepted" in old.read_text()


@pytest.fixture(params=["a directory of all", "a directory of root's alone"])
def passwords(request: pytest.FixtureRequest, village: Village, tmp_path: Path) -> Iterator[Path]:
    """Where the password file is: the service's account cannot even see it in the second."""
    directory = tmp_path if "alone" in request.param else village.directory
    if directory is tmp_path:
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    path = directory / "changing"
    yield path
    path.unlink(missing_ok=True)


def write_passwords(path: Path, *lines: str, mode: int = 0o600) -> None:
    """Replace the file as an editor or tool does."""
    new = path.with_name("new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.chmod(mode)
    new.replace(path)


def test_a_changed_password_file_counts_at_the_next_login(village, village_hop, passwords):
    """Auth may not read it: the monitor opens it, and reads nothing."""
    bobby, chloe, _ = village.people
    write_passwords(passwords, f"{bobby.name}:FooBar")
    with village.daemon("-a", str(passwords)) as daemon:
        options = {"login": chloe.name, "password": "second"}
        assert log_in(daemon.port, bobby.name, "FooBar").startswith("235")
        for turn in ("first", "second"):
            write_passwords(passwords, f"{bobby.name}:{turn}", f"{chloe.name}:{turn}")
            assert log_in(daemon.port, bobby.name, turn).startswith("235")
            assert log_in(daemon.port, chloe.name, turn).startswith("235")
        assert log_in(daemon.port, bobby.name, "FooBar") == WRONG
        assert submit(daemon.port, TO, **options).startswith("250")
        # No new daemon, no new auth process: the file was read again.
        assert "password file" in daemon.says("read again", str(passwords))


@pytest.mark.parametrize("fault", BROKEN)
def test_a_password_file_that_breaks_changes_nothing(fault, village):
    """The log says what is wrong; when it is mended it counts."""
    bobby = village.people[0]
    passwords = village.directory / "changing"
    write_passwords(passwords, f"{bobby.name}:FooBar")
    try:
        with village.daemon("-a", str(passwords)) as daemon:
            BROKEN[fault](passwords, bobby)
            assert log_in(daemon.port, bobby.name, "FooBar").startswith("235")
            assert daemon.says("ERROR", "password file unchanged in memory", fault)
            write_passwords(passwords, f"{bobby.name}:mended")
            assert log_in(daemon.port, bobby.name, "mended").startswith("235")
    finally:
        passwords.unlink(missing_ok=True)


# The end.


@pytest.mark.parametrize("how", ["SIGTERM to the monitor", "SIGINT to its process group"])
def test_at_the_end_messages_under_way_are_delivered_and_nobody_stays(how, village, village_hop):
    """TO-19: one is coming in, one waits for the next hop; idle sessions are sent away."""
    bobby, chloe, dora = village.people
    own_group = dataclasses.replace(village, program=("setsid", *village.program))
    with own_group.daemon() as daemon, ThreadPoolExecutor() as pool, contextlib.ExitStack() as open:
        assert os.getpgid(daemon.pid) == daemon.pid
        # A worker without work ends as well.
        assert send(daemon, dora).startswith("250")
        village_hop.data_complete.clear()
        village_hop.may_answer.clear()
        waiting = pool.submit(send, daemon, chloe)
        assert village_hop.data_complete.wait(10)
        sessions = [logged_in(daemon.port, p.name, p.password) for p in (bobby, bobby)]
        idle, talk = (open.enter_context(session) for session in sessions)
        talk.envelope("y@example.net")
        assert talk.say("DATA").startswith("354")
        talk.send(MESSAGE[:40])
        everybody = processes(daemon)
        assert set(everybody) == {"monitor", "server", "auth", chloe.name, dora.name}
        if "group" in how:
            os.killpg(daemon.pid, signal.SIGINT)
        else:
            daemon.process.send_signal(signal.SIGTERM)
        assert idle.reply() == "421 4.3.2 The service is shutting down"
        wait_until(lambda: not greets(daemon.port), "the port to close")
        assert daemon.process.poll() is None
        village_hop.may_answer.set()
        assert waiting.result(10).startswith("250")
        # The worker of this message is started now.
        talk.send(MESSAGE[40:])
        assert talk.reply().startswith("250")
        assert talk.reply().startswith("421 4.3.2 ")
        assert daemon.process.wait(10) == 0
        assert not started_with(str(village.passwords))
        assert not [pid for pid in everybody.values() if Path(f"/proc/{pid}").exists()]
        assert daemon.text().endswith("stopped\n")
        assert "killed" not in daemon.text()
    assert len(village_hop.messages()) == 3
    assert village_hop.for_recipient("y@example.net")


def test_an_idle_daemon_with_workers_ends_at_once(village, village_hop):
    with village.daemon() as daemon:
        for person in village.people:
            assert send(daemon, person).startswith("250")
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 3


def test_impatience_changes_nothing(village, village_hop):
    """More than one signal, of all kinds: status 0 nevertheless."""
    with village.daemon() as daemon:
        assert send(daemon, village.people[0]).startswith("250")
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                daemon.process.send_signal(number)
        assert daemon.process.wait(10) == 0


def test_in_the_foreground_too_a_mistake_is_one_line(village):
    """The log goes to standard error there: it does not say the same again."""
    done = village.run("-f", "-p", f"{HOST}:0", "-u", village.service, "-a", "/nonexistent/file")
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tofmipd: /nonexistent/file: no such password file")
