"""Under a supervisor: what it hears, the sockets that it passes, the pid file (BX-19, TO-17)."""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import authority
from running import (
    HOST,
    PROGRAM,
    Daemon,
    ending,
    environment,
    free_port,
    greets,
    make_home,
    run,
    to_smtp,
    tofmipd,
    wait_until,
)
from superservers import INSTALLED, document, listening, replaced

DISCARD = to_smtp(9)


class Ear:
    """The socket that a service notifies."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(20)

    def hears(self, word: str) -> str:
        """The next message with the word; others are passed over."""
        for _ in range(1000):
            text = self._socket.recv(10_000).decode()
            if word in text:
                return text
        raise AssertionError(f"no {word}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    with contextlib.closing(Ear(tmp_path / "notify")) as made:
        yield made


@pytest.fixture
def hearing(tmp_path: Path, ear: Ear) -> dict[str, str]:
    """The environment of a service that the ear hears, and that must say often that it lives."""
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}


def lives_and_tells(daemon: Daemon, ear: Ear) -> None:
    """From its start over a reload to its end."""
    assert f"MAINPID={daemon.pid}" in ear.hears("READY=1")
    for _ in range(3):
        ear.hears("WATCHDOG=1")
    daemon.process.send_signal(signal.SIGHUP)
    ear.hears("RELOADING=1\nMONOTONIC_USEC=")
    ear.hears("READY=1")
    assert daemon.stop() == 0
    ear.hears("STOPPING=1")


def test_a_personal_daemon_tells_how_it_is(tmp_path, ear, hearing):
    with tofmipd(make_home(tmp_path, DISCARD), variables=hearing) as daemon:
        lives_and_tells(daemon, ear)


@pytest.mark.root
def test_so_does_the_monitor(village, ear, hearing):
    with village.daemon(variables=hearing) as daemon:
        lives_and_tells(daemon, ear)


# Does what systemd does: listen, say so, become the service.
_ACTIVATE = """
import os, socket, sys
ports, program = sys.argv[1].split(","), sys.argv[2:]
sockets = [socket.create_server(("127.0.0.1", int(port))).detach() for port in ports]
for number, sock in enumerate(sockets, 100):
    os.dup2(sock, number)
os.closerange(3, 100)
for number in range(len(ports)):
    os.dup2(100 + number, 3 + number)
os.closerange(3 + len(ports), 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(ports)))
os.execv(program[0], program)
"""


def passing(*names: str) -> tuple[list[int], dict[str, str], tuple[str, ...]]:
    """Ports, environment and program of a daemon to which sockets are passed."""
    ports = [free_port() for _ in names]
    program = (sys.executable, "-c", _ACTIVATE, ",".join(map(str, ports)), PROGRAM)
    return ports, {"LISTEN_FDNAMES": ":".join(names)}, program


def test_sockets_that_systemd_passes_are_served(tmp_path):
    """A name says that one begins with TLS; -p is not used."""
    files = authority().issue().save(tmp_path)
    home = make_home(tmp_path / "home", DISCARD)
    ports, variables, program = passing("smtps", "anything")
    process = subprocess.Popen(
        [*program, "--personal", "-p", f"{HOST}:1", *files.options],
        env=environment(home) | variables,
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    with ending(process):
        wait_until(lambda: greets(ports[1]), "the daemon")
        with smtplib.SMTP_SSL(HOST, ports[0], timeout=20) as client:
            assert client.noop()[0] == 250
        with smtplib.SMTP(HOST, ports[1], timeout=20) as client:
            assert client.noop()[0] == 250


def test_one_that_needs_tls_needs_a_certificate(tmp_path):
    home = make_home(tmp_path, DISCARD)
    _, variables, program = passing("smtps")
    result = run("--personal", "-f", home=home, variables=variables, program=program)
    assert (result.returncode, result.stderr.count("\n")) == (os.EX_CONFIG, 1)
    assert "--ssl-cert" in result.stderr


def test_the_pid_file_is_there_when_the_start_has_succeeded(tmp_path):
    """TO-17: the daemon in the background is the one that it names."""
    home = make_home(tmp_path, DISCARD)
    path = tmp_path / "pid"
    port = free_port()
    arguments = ("--personal", "-p", f"{HOST}:{port}", "--pid-file", str(path))
    assert run(*arguments, home=home).returncode == 0
    pid = int(path.read_text())
    try:
        assert greets(port)
        again = run(*arguments, home=home)
        assert again.returncode == os.EX_UNAVAILABLE
        assert f"running already, pid {pid}" in again.stderr
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not path.exists(), "the end")


@pytest.mark.root
def test_so_it_is_in_global_mode(village):
    path = village.directory / "pid"
    with village.daemon("--pid-file", str(path)) as daemon:
        assert int(path.read_text()) == daemon.pid
        other = village.run(*village.options("-p", f"{HOST}:0", "--pid-file", str(path)))
        assert other.returncode == os.EX_UNAVAILABLE
        # No child keeps the lock.
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.process.wait(20) == 0
    assert not path.exists()


@pytest.mark.peer("systemd-socket-activate")
def test_systemd_s_own_tool_passes_a_socket_as_the_document_says(tmp_path):
    home = make_home(tmp_path, DISCARD)
    port = free_port()
    changes = {f"{HOST}:8025": f"{HOST}:{port}", INSTALLED: f"{PROGRAM} --personal"}
    command = replaced(document("systemd-socket-activate -l"), changes).split()
    variables = [f"--setenv=HOME={home.path}", f"--setenv=PATH={os.environ['PATH']}"]
    command[1:1] = variables
    with listening(command, tmp_path, port):
        # It starts the daemon for the first connection, and is replaced by it.
        assert greets(port)
        assert greets(port)
        assert f"Listening on {HOST}:{port}" in (tmp_path / "superserver.log").read_text()
