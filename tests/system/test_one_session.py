"""One session on descriptor 0 (TO-8 to TO-13, TO-79), with a connection of the test's own."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import smtplib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hops import RawHop
from running import (
    HOST,
    LIMIT_SECONDS,
    LOGIN,
    PASSWORD,
    PROGRAM,
    Home,
    environment,
    host_name,
    make_home,
    to_smtp,
)
from terminal import at_terminal

from tofmipd.smtp import replies
from tofmipd.smtp.reply import Reply

PERSONAL = (PROGRAM, "--personal", "-1")
MESSAGE = b"From: bobby@example.org\r\nTo: x@example.net\r\nSubject: x\r\n\r\nbody\r\n"
UNAVAILABLE = b"421 4.3.2 Service not available, try again later\r\n"


@dataclass
class Served:
    """The client's end of a connection that a process has on descriptors 0 and 1."""

    client: socket.socket
    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> int:
        return self.process.wait(LIMIT_SECONDS)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def served(
    home: Home,
    *options: str,
    program: Sequence[str] = PERSONAL,
    variables: dict[str, str] | None = None,
    kind: str = "tcp",
    discreet: bool = False,
) -> Iterator[Served]:
    """``discreet``: standard error is the connection, too."""
    if kind == "tcp":
        with socket.create_server((HOST, 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
    else:
        client, server = socket.socketpair()
    client.settimeout(LIMIT_SECONDS)
    log = home.path / "session.log"
    with client, server, log.open("wb") as output:
        process = subprocess.Popen(
            [*program, *options],
            env=environment(home) | (variables or {}),
            cwd="/",
            stdin=server,
            stdout=server,
            stderr=server if discreet else output,
        )
        server.close()
        try:
            yield Served(client, process, log)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def hop(village_hop: RawHop) -> RawHop:
    return village_hop


@pytest.fixture
def home(tmp_path: Path, hop: RawHop) -> Home:
    return make_home(tmp_path, to_smtp(hop.port))


class Client(smtplib.SMTP):
    """smtplib on a connection that is there already."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        code, text = self.getreply()
        assert code == 220, text


def log_in(client: Client, name: str = LOGIN, password: str = PASSWORD) -> None:
    client.ehlo("client.example.net")
    response = base64.b64encode(f"\0{name}\0{password}".encode()).decode()
    assert client.docmd("AUTH", f"PLAIN {response}")[0] == 235


def greeting() -> Reply:
    return replies.greeting(host_name())


def send(sock: socket.socket, name: str = LOGIN, password: str = PASSWORD) -> None:
    client = Client(sock)
    log_in(client, name, password)
    assert client.sendmail("bobby@example.org", ["x@example.net"], MESSAGE) == {}
    assert client.docmd("QUIT")[0] == 221


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_message_is_tagged_and_sent(home, hop, kind):
    with served(home, kind=kind) as session:
        send(session.client)
        assert session.ended() == 0
        [stored] = hop.messages()
    assert re.match(rb"bobby-dated-[0-9]+\.[0-9a-f]{6}@example\.org", stored.sender.encode())
    address = r"127\.0\.0\.1" if kind == "tcp" else "unknown"
    assert re.search(rf"Received: from client.example.net \({address}\)", stored.head.decode())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TCPREMOTEIP": "192.0.2.7", "TCPREMOTEPORT": "1234"}, "192.0.2.7"),
        ({"REMOTE_HOST": "192.0.2.8"}, "192.0.2.8"),
        ({"REMOTE_ADDR": "2001:db8::9"}, "2001:db8::9"),
        ({"TCPREMOTEIP": "192.0.2.7", "REMOTE_HOST": "192.0.2.8"}, "192.0.2.7"),
        ({"REMOTE_HOST": "client.example.net\n"}, "127.0.0.1"),
        ({}, "127.0.0.1"),
    ],
)
def test_the_client_is_who_the_environment_names(home, variables, expected):
    with served(home, "--insecure-auth", variables=variables) as session:
        client = Client(session.client)
        log_in(client)
        client.docmd("QUIT")
        assert session.ended() == 0
    assert f"session from {expected}\n" in session.text()


def test_a_client_elsewhere_shows_no_password_in_the_clear(home):
    with served(home, variables={"TCPREMOTEIP": "192.0.2.7"}) as session:
        client = Client(session.client)
        client.ehlo()
        assert "PLAIN" not in client.esmtp_features["auth"]


def test_what_a_program_on_this_machine_passes_on_has_come_as_that_program_says(home):
    """TO-15: stunnel has decrypted it."""
    with served(home, kind="unix", variables={"REMOTE_HOST": "192.0.2.7"}) as session:
        client = Client(session.client)
        client.ehlo()
        assert "PLAIN" in client.esmtp_features["auth"]


def test_pipes_do_as_well(home):
    """TO-13."""
    result = subprocess.run(
        [*PERSONAL, "-a", str(home.tmda / "tofmipd")],
        env=environment(home),
        input=b"EHLO a\r\nQUIT\r\n",
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    codes = [line[:4] for line in result.stdout.splitlines()]
    assert (codes[0], codes[-2], codes[-1]) == (b"220 ", b"250 ", b"221 ")
    assert result.returncode == 0


def test_a_file_does_as_well(home, tmp_path):
    """TO-11."""
    (tmp_path / "dialogue").write_bytes(b"EHLO a\r\nNOOP\r\n")
    with (tmp_path / "dialogue").open("rb") as dialogue:
        result = subprocess.run(
            PERSONAL,
            env=environment(home) | {"REMOTE_HOST": "192.0.2.7"},
            stdin=dialogue,
            capture_output=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    assert result.stdout.splitlines()[-1].startswith(b"250 2.0.0")
    assert b"session from 192.0.2.7" in result.stderr
    assert result.returncode == 0


@pytest.mark.parametrize("discreet", [False, True])
@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        (["--no-such-option"], os.EX_USAGE, "no-such-option"),
        (["-a", "/nonexistent"], os.EX_CONFIG, "/nonexistent"),
        (["-t", "/nonexistent"], os.EX_CONFIG, "/nonexistent"),
    ],
)
def test_of_a_mistake_the_client_hears_only_421(home, options, status, word, discreet):
    with served(home, *options, discreet=discreet) as session:
        heard = b""
        while octets := session.client.recv(1000):
            heard += octets
        session.client.close()
        assert session.ended() == status
    # The greeting may have come first: files are read while the client thinks.
    assert heard.removeprefix(greeting().encode()) == UNAVAILABLE
    assert (word in session.text()) is not discreet


def test_a_long_list_of_mistakes_keeps_no_client_waiting(home, tmp_path):
    """Longer than what a pipe takes that nobody reads."""
    file = tmp_path / "tofmipd.conf"
    file.write_text("=\n" * 5000)
    with served(home, "--config", str(file), discreet=True) as session:
        assert session.client.recv(1000) == UNAVAILABLE
        assert session.ended() == os.EX_CONFIG


def test_letters_before_it_make_no_difference(home):
    with served(home, "-a", "/nonexistent", program=(*PERSONAL[:2], "-L1"), discreet=True) as one:
        heard = b""
        while octets := one.client.recv(1000):
            heard += octets
        one.client.close()
        assert one.ended() == os.EX_CONFIG
    assert heard.removeprefix(greeting().encode()) == UNAVAILABLE


def test_the_connection_never_becomes_standard_error(home):
    """Where that is closed: programs that are started complain there."""
    closed = ("sh", "-c", 'exec "$@" 2>&-', "sh", *PERSONAL)
    with served(home, program=closed) as session:
        assert session.client.recv(1000) == greeting().encode()
        session.client.sendall(b"NOOP\r\n")
        assert session.client.recv(1000).startswith(b"250 2.0.0")
        assert os.readlink(f"/proc/{session.process.pid}/fd/2") == os.devnull


def test_a_person_at_a_terminal_can_speak(home):
    with at_terminal(PERSONAL, environment(home)) as person:
        person.expect("220 ")
        person.type("EHLO a\n")
        person.expect("250 ENHANCEDSTATUSCODES")
        person.type("QUIT\n")
        person.expect("221 2.0.0 Bye")
        assert person.end() == 0


def test_a_listening_socket_is_not_a_connection(home):
    with socket.create_server((HOST, 0)) as listener:
        result = subprocess.run(
            PERSONAL,
            env=environment(home),
            stdin=listener,
            stdout=listener,
            stderr=subprocess.PIPE,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    assert result.returncode == os.EX_CONFIG
    assert b"wait = no" in result.stderr


def test_a_client_that_vanishes_ends_it(home):
    with served(home) as session:
        log_in(Client(session.client))
        session.client.close()
        assert session.ended() == 0


def test_sigterm_parts_from_an_idle_client(home):
    with served(home) as session:
        client = Client(session.client)
        log_in(client)
        session.process.send_signal(signal.SIGTERM)
        assert client.getreply()[0] == 421
        assert session.ended() == 0


def test_what_is_in_the_outbox_is_handed_over_before_it_ends(home, hop):
    with served(home, "--spool") as session:
        send(session.client)
        assert session.ended() == 0
        assert len(hop.messages()) == 1
    assert not list((home.tmda / "outbox").iterdir())


def test_what_systemd_passes_as_descriptor_3_is_served(home, hop):
    """BX-19: Accept=yes without StandardInput=socket."""
    script = 'exec 3<&0 <&- >&2; export LISTEN_PID=$$; exec "$0" "$@"'
    program = ("sh", "-c", script, PROGRAM, "--personal")
    with served(home, program=program, variables={"LISTEN_FDS": "1"}) as session:
        send(session.client)
        assert session.ended() == 0
        assert len(hop.messages()) == 1


@pytest.mark.root
def test_in_global_mode_all_processes_end_with_the_session(village, village_hop):
    person = village.people[0]
    home = Home(village.directory)
    with served(
        home, *village.options(), program=(*village.program, "-1"), variables=village.variables
    ) as session:
        send(session.client, person.name, person.password)
        assert session.ended() == 0
        [stored] = village_hop.messages()
    assert "-dated-" in stored.sender
    log = session.text()
    assert f"worker for '{person.name}'" in log
    for pid in re.findall(r"\(pid ([0-9]+)\)", log):
        assert not os.path.exists(f"/proc/{pid}"), log


@pytest.mark.root
def test_in_global_mode_a_wrong_password_file_is_421(village):
    options = ("-u", village.service, "-a", "/nonexistent", "--outbox", str(village.outboxes))
    home = Home(village.directory)
    with served(
        home, *options, program=(*village.program, "-1"), variables=village.variables
    ) as session:
        heard = b""
        while octets := session.client.recv(1000):
            heard += octets
        session.client.close()
        assert heard.removeprefix(greeting().encode()) == UNAVAILABLE
        assert session.ended() == os.EX_CONFIG
    assert "/nonexistent" in session.text()
