"""The configuration file of a real daemon, and `tofmipd check` beside it, also as root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from clients import logged_in, submit
from running import HOST, Home, free_port, make_home, run, to_program, to_smtp, tofmipd

from tofmipd.errors import CONFIG

TO = "a@example.net"


def check(home: Home, *options: str) -> subprocess.CompletedProcess[str]:
    ended = run("check", "--personal", *options, home=home)
    assert "Traceback" not in ended.stderr
    return ended


@pytest.fixture
def own(tmp_path: Path) -> Home:
    return make_home(tmp_path, to_program(Path("/bin/true")))


def configure(home: Home, *lines: str) -> Path:
    path = home.path / ".config/tofmipd.conf"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["# for a test", *lines, ""]))
    return path


def test_a_personal_daemon_obeys_its_file_and_the_check_knows_that_it_runs(own, sink):
    own.configure(to_smtp(sink.port))
    port = free_port()
    conf = configure(own, f"proxyport {HOST}:{port}", "log-file ~/log", "debug", "max-recipients 1")
    assert check(own).returncode == 0
    with tofmipd(own, listen=("-p", f"{HOST}:0")) as daemon:
        # The command line goes before the file.
        assert daemon.port != port
        with logged_in(daemon.port) as talk:
            talk.envelope(TO)
            assert talk.say("RCPT TO:<b@example.net>").startswith("452 ")
        assert submit(daemon.port, TO).startswith("250 ")
        assert "sent to=" in (own.path / "log").read_text()
        ended = check(own, "-p", f"{HOST}:{daemon.port}")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert f"note: {HOST}:{daemon.port}: in use by tofmipd, pid {daemon.pid}\n" in ended.stdout
        assert f"max-recipients 1  # {conf}:5\n" in check(own, "--print").stdout


# What stands in the file, and the beginning of what is said of it.
BROKEN = {
    "szie 1": ":2: unknown option 'szie'; did you mean size?",
    "size many": ":2: size: 'many' is not a whole number of at least 1",
    "log-file here": ":2: log-file: 'here' must begin with / or ~/",
    "spool perhaps": ":2: spool: yes or no, not 'perhaps'",
    "ssl": ":2: --ssl and --tls need both --ssl-cert and --ssl-key",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_file_is_one_line_with_status_78_for_check_and_daemon(line, own):
    conf = configure(own, line)
    for ended in (check(own), run("-f", "--personal", home=own)):
        assert ended.returncode == CONFIG
        (said,) = ended.stderr.splitlines()
        assert said.removeprefix("tofmipd: ").startswith(f"{conf}{BROKEN[line]}")


def test_a_port_of_another_program_is_named_with_it(own, sink):
    ended = check(own, "-p", f"{HOST}:{sink.port}")
    assert ended.returncode == CONFIG
    assert "--proxyport: cannot listen on" in ended.stderr
    assert "(by smtp-sink, pid " in ended.stderr


# Global mode


@pytest.fixture
def conf(village) -> Path:
    """The file of a daemon for the village, where only root can change it."""
    path = village.directory / "tofmipd.conf"
    village.write_passwords({person.name: person.password for person in village.people})
    lines = [
        f"username {village.service}",
        f"authfile {village.passwords}",
        f"outbox {village.outboxes}",
        f"proxyport {HOST}:{free_port()}",
        f"log-file {village.directory}/log",
    ]
    path.write_text("\n".join([*lines, ""]))
    path.chmod(0o644)
    yield path
    path.unlink()


def check_all(village, conf: Path, *options: str) -> subprocess.CompletedProcess[str]:
    ended = village.run("check", "--config", str(conf), *options)
    assert "Traceback" not in ended.stderr
    return ended


@pytest.mark.root
def test_root_checks_for_all_and_one_user_with_his_own_rights(village, conf):
    bobby, chloe, _ = village.people
    before = sorted(map(str, village.directory.rglob("*")))
    ended = check_all(village, conf, "--user", bobby.name)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"ok: account: {village.service}, uid {village.service_uid}\n" in ended.stdout
    assert f"ok: user: {bobby.name}, {bobby.home.tmda}/config, " in ended.stdout
    assert sorted(map(str, village.directory.rglob("*"))) == before
    # What chloe's files do they do as chloe, and nobody believes what they print.
    said = "print('ok: nothing'); import os; os.write(1, b'ok: nothing')"
    chloe.configure(said, "raise RuntimeError(f'uid {os.getuid()} {os.environ.get(\"PATH\")}')")
    ended = check_all(village, conf, "--user", chloe.name)
    assert ended.returncode == CONFIG
    assert ended.stdout == ""
    (fault,) = ended.stderr.splitlines()
    assert fault.startswith(f"{chloe.home.tmda}/config:4: ")
    assert f"uid {chloe.uid} /usr" in fault


@pytest.mark.root
def test_what_keeps_others_than_root_from_their_files_is_found(village, conf):
    bobby = village.people[1]
    bobby.write("crypt_key", "00\n", 0o644)
    bobby.write("filters/outgoing", "two * bare\nto *\n")
    directory = village.directory / "secret"
    directory.mkdir(mode=0o700)
    try:
        throttle = directory / "throttle"
        throttle.write_text("#!/bin/sh\n")
        throttle.chmod(0o755)
        village.passwords.chmod(0o644)
        with conf.open("a") as file:
            file.write(f"throttle-script {throttle}\nmin-uid 1000\nmax-eror 3\n")
        ended = check_all(village, conf, "--user", bobby.name)
    finally:
        throttle.unlink()
        directory.rmdir()
    assert ended.returncode == CONFIG
    expected = [
        f"{conf}:8: unknown option 'max-eror'; did you mean max-errors?",
        f"{conf}:2: {village.passwords}: mode 0644, must be 0600 or 0400",
        f"{conf}:6: {throttle} cannot be executed by {village.service}",
        f"{bobby.home.tmda}/crypt_key: mode 0644",
        f"{bobby.home.tmda}/filters/outgoing:1: ",
        f"{bobby.home.tmda}/filters/outgoing:2: ",
    ]
    lines = ended.stderr.splitlines()
    assert len(lines) == len(expected), lines
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning)


@pytest.mark.root
@pytest.mark.parametrize(
    ("login", "reason"),
    [("daemon", "below --min-uid 1000"), ("root", "has the uid or gid of root")],
)
def test_who_may_not_log_in_is_told_so(login, reason, village, conf):
    ended = check_all(village, conf, "--user", login)
    assert (ended.returncode, ended.stdout) == (CONFIG, "")
    assert ended.stderr.startswith(f"{login!r} may not log in: ")
    assert reason in ended.stderr


@pytest.mark.root
def test_a_file_that_others_can_change_starts_no_daemon_of_root(village, conf):
    for spoil in (lambda: conf.chmod(0o666), lambda: os.chown(conf, village.people[0].uid, 0)):
        conf.chmod(0o644)
        spoil()
        for words in (["check"], ["-f"]):
            ended = village.run(*words, "--config", str(conf))
            assert ended.returncode == CONFIG
            assert ended.stderr.startswith(f"tofmipd: {conf}: others than root can change it (")
            assert ended.stderr.count("\n") == 1


@pytest.mark.root
def test_a_daemon_for_all_obeys_its_file_and_can_be_checked_while_it_runs(
    village, conf, village_hop
):
    with conf.open("a") as file:
        file.write("debug\nforeground\n")
    with tofmipd(
        Home(village.directory),
        "--config",
        str(conf),
        program=village.program,
        variables=village.variables,
    ) as daemon:
        bobby = village.people[0]
        options = {"login": bobby.name, "password": bobby.password}
        assert submit(daemon.port, TO, sender="bobby@example.org", **options).startswith("250 ")
        assert "auth accepted" in (village.directory / "log").read_text()
        where = f"{HOST}:{daemon.port}"
        ended = check_all(village, conf, "-p", where, "--user", bobby.name)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert f"note: {where}: in use by tofmipd, pid " in ended.stdout
        assert submit(daemon.port, TO, sender="bobby@example.org", **options).startswith("250 ")
    (village.directory / "log").unlink()
