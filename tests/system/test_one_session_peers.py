"""One session behind the super-servers that there are (TO-8 to TO-13, TO-16)."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import re
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hops import RawHop
from running import HOST, LIMIT_SECONDS
from superservers import (
    Program,
    SuperServer,
    inetd,
    socket_activate,
    started,
    stunnel,
    tcpserver,
    xinetd,
)
from village import Village, Villager

CLIENT = "127.0.0.2"
MESSAGE = b"To: x@example.net\r\nSubject: x\r\n\r\nbody\r\n"
UNAVAILABLE = b"421 4.3.2 Service not available, try again later\r\n"
# By the program that must be there.
PEERS: dict[str, SuperServer] = {
    "xinetd": xinetd,
    "inetd": inetd,
    "tcpserver": tcpserver,
    "stunnel4": stunnel,
    "systemd-socket-activate": socket_activate,
}
all_peers = pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=pytest.mark.peer(name)) for name in PEERS]
)
pytestmark = pytest.mark.root


@pytest.fixture
def person(village: Village) -> Villager:
    """Somebody who also has a password for a daemon of his own."""
    person = village.people[0]
    person.write("tofmipd", f"{person.name}:{person.password}\n")
    return person


@pytest.fixture
def personal(village: Village, person: Villager, tmp_path: Path) -> Program:
    """tofmipd -1 of the person's own."""
    return Program(
        village.directory / tmp_path.name, person.name, village.program, (), village.variables
    )


@pytest.fixture(params=["personal", "global"])
def program(request: pytest.FixtureRequest, village: Village, personal: Program) -> Program:
    """The same, or root's."""
    if request.param == "personal":
        return personal
    return dataclasses.replace(personal, owner="root", options=village.options())


@contextlib.contextmanager
def connected(peer: str, port: int) -> Iterator[socket.socket]:
    """A connection that comes from CLIENT, with TLS where the peer wants it."""
    sock = socket.create_connection((HOST, port), LIMIT_SECONDS, (CLIENT, 0))
    if peer == "stunnel4":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    with sock:
        yield sock


def log_in(sock: socket.socket, person: Villager) -> smtplib.SMTP:
    client = smtplib.SMTP()
    client.sock = sock
    assert client.getreply()[0] == 220
    client.ehlo("client.example.net")
    client.login(person.name, person.password)
    return client


@all_peers
def test_a_message_goes_through(peer, program, person, village_hop: RawHop):
    with started(PEERS[peer], program) as port:
        with connected(peer, port) as sock:
            client = log_in(sock, person)
            client.sendmail(f"{person.name}@example.org", ["x@example.net"], MESSAGE)
            assert client.docmd("QUIT")[0] == 221
        assert program.statuses(1) == [0]
    stored = village_hop.message("x@example.net")
    assert stored.sender.startswith(f"{person.name}-dated-")
    # The first is tofmipd's own, whose client the super-server has named.
    assert stored.values("Received")[0].startswith(f"from client.example.net ({CLIENT})")


@all_peers
def test_a_client_may_vanish(peer, personal, person):
    with started(PEERS[peer], personal) as port:
        with connected(peer, port) as sock:
            log_in(sock, person)
        assert personal.statuses(1) == [0]


@all_peers
def test_of_a_mistake_the_client_hears_that_there_is_no_service(peer, personal):
    program = personal.with_options("-a", "/nonexistent")
    with started(PEERS[peer], program) as port:
        heard = b""
        with connected(peer, port) as sock, contextlib.suppress(ssl.SSLEOFError):
            while octets := sock.recv(1000):
                heard += octets
        assert program.statuses(1) == [os.EX_CONFIG]
    # Files are read while the client thinks about the greeting.
    assert re.fullmatch(rb"(220 .*\r\n)?" + re.escape(UNAVAILABLE), heard)
    assert "/nonexistent" in program.told()


def test_a_pipe_is_a_connection_too(program, person, village_hop):
    """TO-13."""
    program.install()
    response = base64.b64encode(f"\0{person.name}\0{person.password}".encode()).decode()
    lines = ["EHLO me", f"AUTH PLAIN {response}", f"MAIL FROM:<{person.name}@example.org>"]
    lines += ["RCPT TO:<x@example.net>", "DATA", "", "body", ".", "QUIT", ""]
    result = subprocess.run(
        [program.path, "-1"],
        env={"PATH": os.environ["PATH"]},
        user=program.uid,
        group=program.uid,
        extra_groups=[],
        cwd="/",
        input="\r\n".join(lines).encode(),
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    replies = [line for line in result.stdout.decode().splitlines() if line[3] == " "]
    assert [reply[:3] for reply in replies] == [
        "220",
        "250",
        "235",
        "250",
        "250",
        "354",
        "250",
        "221",
    ]
    assert program.statuses(1) == [0]
    assert "(unknown)" in village_hop.message("x@example.net").values("Received")[0]
