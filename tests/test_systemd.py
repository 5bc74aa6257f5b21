"""What systemd passes and hears, with a socket of ours in the place of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from tofmipd import systemd
from tofmipd.systemd import Supervisor


@pytest.fixture(params=["path", "abstract"])
def ear(request, tmp_path):
    """A socket that hears, and the environment that names it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"{tmp_path}/notify" if request.param == "path" else f"@tofmipd-{os.getpid()}"
        sock.bind(name.replace("@", "\0", 1))
        sock.settimeout(10)
        yield sock, {"NOTIFY_SOCKET": name, "OTHER": "stays"}


def test_it_hears_each_change(ear):
    sock, environment = ear
    supervisor = Supervisor(environment)
    assert environment == {"OTHER": "stays"}
    supervisor.ready("serving")
    assert sock.recv(1000).decode() == f"READY=1\nSTATUS=serving\nMAINPID={os.getpid()}"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    supervisor.reloading()
    reloading, stamp, _ = sock.recv(1000).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert int(stamp.removeprefix("MONOTONIC_USEC=")) >= before
    supervisor.stopping()
    assert sock.recv(1000).startswith(b"STOPPING=1\n")
    supervisor.status("3 workers")
    assert sock.recv(1000) == b"STATUS=3 workers"


def test_the_watchdog_is_fed_twice_in_its_time(ear):
    sock, environment = ear
    supervisor = Supervisor(environment | {"WATCHDOG_USEC": "60000000"})
    supervisor.beat()
    assert sock.recv(1000) == b"WATCHDOG=1"
    assert supervisor.beat_at == pytest.approx(time.monotonic() + 30, abs=5)
    supervisor.beat()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1000)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(environment):
    supervisor = Supervisor(environment)
    supervisor.beat()
    assert supervisor.beat_at is None
    assert environment == {}


def test_nobody_there_is_no_error():
    Supervisor({"NOTIFY_SOCKET": "/nonexistent/notify"}).ready("serving")


_PASSED = """
import os, socket, sys
from tofmipd import systemd
listening = socket.create_server(("127.0.0.1", 0))
connection = socket.create_connection(listening.getsockname())
ports = [listening.getsockname()[1], connection.getsockname()[1]]
for number, sock in ((13, listening), (14, connection)):
    os.dup2(sock.detach(), number)
os.closerange(3, 13)
os.dup2(13, 3), os.dup2(14, 4)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
found = systemd.inherited(os.environ)
print([(ports.index(s.getsockname()[1]), name, systemd.accepts(s)) for s, name in found])
print(sorted(name for name in os.environ if name.startswith("LISTEN")))
print([os.get_inheritable(s.fileno()) for s, _ in found])
"""


def passed(names: str | None, *, count: str = "2", other: int = 0) -> list[str]:
    """What a process sees that gets a listening socket and a connection on 3 and 4."""
    environment = dict(os.environ, LISTEN_FDS=count)
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    result = subprocess.run(
        [sys.executable, "-c", _PASSED, str(other)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


def test_sockets_come_with_their_names():
    first, rest, inheritable = passed("smtps:other")
    assert first == "[(0, 'smtps', True), (1, 'other', False)]"
    assert rest == "[]"
    assert inheritable == "[False, False]"


def test_sockets_without_names_come_too():
    assert passed(None)[0] == "[(0, '', True), (1, '', False)]"


@pytest.mark.parametrize(("count", "other"), [("2", 1), ("", 0), ("x", 0), ("-1", 0)])
def test_what_is_for_another_process_is_left_alone(count, other):
    assert passed("a:b", count=count, other=other)[:2] == ["[]", "[]"]


def test_a_descriptor_that_is_no_socket_is_left_out():
    reader, writer = os.pipe()
    try:
        assert list(systemd._sockets([(reader, "pipe")])) == []
    finally:
        os.close(reader)
        os.close(writer)
