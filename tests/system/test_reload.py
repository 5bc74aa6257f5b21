"""SIGHUP reads all options again (BX-7): new sessions have them, or nothing changes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import smtplib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import authority
from hops import RawHop
from running import (
    HOST,
    LOGIN,
    PASSWORD,
    Daemon,
    Home,
    free_port,
    greets,
    make_home,
    to_smtp,
    tofmipd,
    wait_until,
)

MESSAGE = b"From: a@example.org\r\nTo: x@example.net\r\nSubject: x\r\n\r\nbody\r\n"


@dataclass(frozen=True)
class Reloading:
    """A daemon whose options are in ``file``."""

    daemon: Daemon
    file: Path
    login: str
    password: str
    passwords: Path

    def hang_up(self, word: str) -> str:
        """SIGHUP; the line that it leads to."""
        self.daemon.forget()
        self.daemon.process.send_signal(signal.SIGHUP)
        return self.daemon.says(word)

    def change(self, *lines: str) -> str:
        self.file.write_text("\n".join(lines) + "\n")
        return self.hang_up("changed: ")

    def client(self, port: int = 0) -> smtplib.SMTP:
        client = smtplib.SMTP(HOST, port or self.daemon.port, timeout=20)
        client.ehlo()
        return client

    def size(self) -> str:
        """What a new session offers."""
        with self.client() as client:
            return client.esmtp_features["size"]

    def send(self, client: smtplib.SMTP) -> None:
        assert client.sendmail("a@example.org", ["x@example.net"], MESSAGE) == {}


Make = Callable[..., Reloading]


@pytest.fixture(params=["personal", pytest.param("global", marks=pytest.mark.root)])
def make(request, tmp_path: Path, village_hop: RawHop) -> Iterator[Make]:
    """Start a daemon whose file has these lines."""
    started = []

    def personal(*lines: str) -> Reloading:
        home = make_home(tmp_path / "home", to_smtp(village_hop.port))
        file = tmp_path / "tofmipd.conf"
        file.write_text("\n".join(lines) + "\n")
        running = tofmipd(home, "--config", str(file))
        started.append(running)
        passwords = home.tmda / "tofmipd"
        return Reloading(running.__enter__(), file, LOGIN, PASSWORD, passwords)

    def of_all(*lines: str) -> Reloading:
        village = request.getfixturevalue("village")
        file = village.directory / "tofmipd.conf"
        file.write_text("\n".join(lines) + "\n")
        running = village.daemon("--config", str(file))
        started.append(running)
        person = village.people[0]
        daemon = running.__enter__()
        return Reloading(daemon, file, person.name, person.password, village.passwords)

    yield personal if request.param == "personal" else of_all
    for running in started:
        running.__exit__(None, None, None)


def test_new_sessions_have_the_new_options_and_old_ones_the_old(make: Make, village_hop) -> None:
    reloading = make("size 1000000")
    with reloading.client() as before:
        before.login(reloading.login, reloading.password)
        line = reloading.change("size 2000000", "max-errors 3")
        assert line.endswith("changed: max-errors, size")
        wait_until(lambda: reloading.size() == "2000000", "the new size")
        before.ehlo()
        assert before.esmtp_features["size"] == "1000000"
        reloading.send(before)
    with reloading.client() as client:
        client.login(reloading.login, reloading.password)
        reloading.send(client)
    assert len(village_hop.messages()) == 2


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("szie 3", "did you mean size?"),
        ("ssl-cert /nonexistent", "--ssl-key"),
        ("throttle-script /nonexistent", "/nonexistent is not there"),
        ("ssl\nssl-cert /nonexistent\nssl-key /nonexistent", "/nonexistent: cannot be read"),
    ],
)
def test_nothing_changes_where_one_thing_is_wrong(make: Make, line: str, word: str) -> None:
    reloading = make("size 1000000")
    reloading.file.write_text(f"size 2000000\n{line}\n")
    assert word in reloading.hang_up("nothing has changed: ")
    assert reloading.size() == "1000000"
    with reloading.client() as client:
        client.login(reloading.login, reloading.password)
    # And what is mended counts.
    reloading.change("size 3000000")
    wait_until(lambda: reloading.size() == "3000000", "the new size")


def test_what_cannot_change_is_told(make: Make, tmp_path: Path) -> None:
    reloading = make("size 1000000")
    reloading.file.write_text(f"size 2000000\npid-file {tmp_path}/pid\n")
    reloading.hang_up("pid-file changes with the next start only")
    wait_until(lambda: reloading.size() == "2000000", "the new size")
    assert not (tmp_path / "pid").exists()


def test_other_sources_judge_from_then_on(make: Make, tmp_path: Path) -> None:
    reloading = make()
    path = reloading.passwords.with_name("others")
    path.write_text(f"{reloading.login}:another\n")
    path.chmod(0o600)
    # The command line names the first one; without it the file's counts.
    path.replace(reloading.passwords)
    reloading.hang_up("none is new")

    def accepted() -> bool:
        with reloading.client() as client:
            try:
                client.login(reloading.login, "another")
            except smtplib.SMTPAuthenticationError:
                return False
            return True

    wait_until(accepted, "the new password")


def test_a_message_under_way_is_finished_by_the_options_it_began_with(
    make: Make, village_hop
) -> None:
    reloading = make("size 1000000")
    with socket.create_connection((HOST, reloading.daemon.port), timeout=20) as sock:
        client = smtplib.SMTP()
        client.sock = sock
        client.getreply()
        client.ehlo()
        client.login(reloading.login, reloading.password)
        client.mail("a@example.org")
        client.rcpt("x@example.net")
        assert client.docmd("DATA")[0] == 354
        client.send(MESSAGE[:20])
        reloading.change("size 2000000")
        wait_until(lambda: reloading.size() == "2000000", "the new size")
        client.send(MESSAGE[20:] + b".\r\n")
        assert client.getreply()[0] == 250
    assert len(village_hop.messages()) == 1


def test_it_ends_as_ever_with_sessions_of_both_times(make: Make) -> None:
    reloading = make("size 1000000")
    before = reloading.client()
    for number in range(2, 5):
        reloading.change(f"size {number}000000")
        wait_until(lambda size=f"{number}000000": reloading.size() == size, "the new size")
    after = reloading.client()
    reloading.daemon.process.send_signal(signal.SIGTERM)
    assert before.getreply()[0] == 421
    assert after.getreply()[0] == 421
    assert reloading.daemon.process.wait(20) == 0
    assert "Traceback" not in reloading.daemon.text()


def test_more_connections_may_need_more_descriptors(tmp_path: Path) -> None:
    home = make_home(tmp_path, to_smtp(9))
    file = tmp_path / "tofmipd.conf"
    file.write_text("connections 10\n")
    with tofmipd(home, "--config", str(file)) as daemon:
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0] < 400
        file.write_text("connections 200\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.says("changed: connections")
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0] > 800


def test_reloads_leave_no_file_of_limits_open(tmp_path: Path, village_hop) -> None:
    home = make_home(tmp_path, to_smtp(village_hop.port))
    file = tmp_path / "tofmipd.conf"
    file.write_text("limit 1000/1d\n")
    with tofmipd(home, "--config", str(file)) as daemon:
        for number in range(2, 6):
            with smtplib.SMTP(HOST, daemon.port, timeout=20) as client:
                client.login(LOGIN, PASSWORD)
                assert client.sendmail("a@example.org", ["x@example.net"], MESSAGE) == {}
            daemon.forget()
            file.write_text(f"limit 1000/1d\nsize {number}000000\n")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.says("changed: size")
        wait_until(lambda: not limits_open_in(daemon.pid), "the end of the last one")


def limits_open_in(pid: int) -> list[str]:
    paths = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.readlink(link))
    return [path for path in paths if path.startswith("/") and "limits" in path]


@pytest.mark.root
def test_nothing_changes_where_auth_cannot_start(village) -> None:
    file = village.directory / "tofmipd.conf"
    file.write_text("size 1000000\n")
    with village.daemon("--config", str(file)) as daemon:
        before = children_of(daemon.pid)
        file.write_text("vhome-script /bin/true\nvdomains-path /nonexistent\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.says("nothing has changed: cannot read /nonexistent")
        wait_until(lambda: children_of(daemon.pid) == before, "the end of the new ones")


@pytest.mark.root
def test_who_has_no_more_sessions_is_gone(village) -> None:
    """The server and auth of the time before."""
    file = village.directory / "tofmipd.conf"
    file.write_text("size 1000000\n")
    with village.daemon("--config", str(file)) as daemon:
        before = children_of(daemon.pid)
        client = smtplib.SMTP(HOST, daemon.port, timeout=20)
        client.ehlo()
        for number in range(2, 12):
            daemon.forget()
            file.write_text(f"size {number}000000\n")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.says("changed: size")
        # That of the first session was asked to stop when there were too many.
        assert client.getreply()[0] == 421
        wait_until(lambda: len(children_of(daemon.pid)) == len(before), "the end of all others")
        assert not set(before) & set(children_of(daemon.pid))
        assert greets(daemon.port)


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_listeners_come_and_go(tmp_path: Path) -> None:
    """In a file of its own: -p on the command line would count instead."""
    home = make_home(tmp_path, to_smtp(9))
    first, second = free_port(), free_port()
    files = authority().issue().save(tmp_path)
    file = tmp_path / "tofmipd.conf"
    tls = f"ssl-cert {files.chain}\nssl-key {files.key}\n"
    file.write_text(f"proxyport {HOST}:{first}\n")
    with tofmipd(home, "--config", str(file), listen=(), count=1) as daemon:
        file.write_text(f"proxyport {HOST}:{first}\nproxyport {HOST}:{second},ssl\n{tls}")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.says("changed: proxyport, ssl-cert, ssl-key")
        assert greets(first)
        smtplib.SMTP_SSL(HOST, second, timeout=20).quit()
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
            file.write_text(f"proxyport {HOST}:{port}\n")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.says(f"nothing has changed: cannot listen on {HOST}:{port}")
        assert greets(first)
        daemon.forget()
        file.write_text(f"proxyport {HOST}:{second}\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.says("changed: proxyport")
        wait_until(lambda: greets(second), "the plain listener")
        assert not greets(first)


def test_a_listener_stays_whatever_its_place_is_called(tmp_path: Path) -> None:
    home = make_home(tmp_path, to_smtp(9))
    port, other = free_port(), free_port()
    file = tmp_path / "tofmipd.conf"
    file.write_text(f"proxyport localhost:{port}\nproxyport :{other}\n")
    with tofmipd(home, "--config", str(file), listen=(), count=2) as daemon:
        file.write_text(f"proxyport 127.0.0.1:{port}\nproxyport 0.0.0.0:{other}\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.says("changed: ").endswith(": proxyport")
        assert greets(port)
        assert greets(other)


def test_each_fault_has_a_line(make: Make) -> None:
    reloading = make("size 1000000")
    reloading.file.write_text("szie 3\nproxyport nowhere\n")
    assert ":1: unknown option 'szie'" in reloading.hang_up("nothing has changed: ")
    assert "nowhere" in reloading.daemon.says("tofmipd.conf:2: ")


@pytest.mark.root
def test_so_they_do_in_global_mode(village) -> None:
    first, second = free_port(), free_port()
    file = village.directory / "tofmipd.conf"
    file.write_text(f"proxyport {HOST}:{first}\n")
    options = village.options("--config", str(file))
    with tofmipd(
        Home(village.directory),
        "-d",
        *options,
        listen=(),
        count=1,
        program=village.program,
        variables=village.variables,
    ) as daemon:
        file.write_text(f"proxyport {HOST}:{second}\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.says("changed: proxyport")
        assert greets(second)
        wait_until(lambda: not greets(first), "the end of the first listener")
        with socket.create_server((HOST, 0)) as taken:
            file.write_text(f"proxyport {HOST}:{taken.getsockname()[1]}\n")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.says("nothing has changed: cannot listen on")
        assert greets(second)
        assert os.path.exists(f"/proc/{daemon.pid}")
