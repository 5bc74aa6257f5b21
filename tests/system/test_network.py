"""Clients on other hosts, which are network namespaces made here; nothing leaves this machine."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hops import Sendmail, make_sendmail
from running import (
    ADDRESS,
    LOGIN,
    PASSWORD,
    PROGRAM,
    Home,
    cannot_run,
    ending,
    environment,
    make_home,
    to_program,
    wait_until,
)

pytestmark = [pytest.mark.root, pytest.mark.peer("ip", "swaks")]
PORT = 8025


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@dataclass(frozen=True)
class Network:
    """A server's namespace and those of two clients, each with a line of its own to the server.

    ``clients`` maps a client's namespace to its own address and that of the server.
    """

    server: str
    clients: dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    mark = f"tof{os.getpid()}"
    server = f"{mark}s"
    # Addresses for documentation (RFC 5737), two lines of four addresses.
    clients = {f"{mark}{n}": (f"192.0.2.{4 * n + 2}", f"192.0.2.{4 * n + 1}") for n in (1, 2)}
    with contextlib.ExitStack() as stack:
        try:
            for name in (server, *clients):
                command("ip", "netns", "add", name)
                stack.callback(command, "ip", "netns", "del", name)
                command("ip", "-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            cannot_run(f"no network namespaces here: {error.stderr.decode().strip()}")
        for name, (own, servers) in clients.items():
            near, far = f"{name}a", f"{name}b"
            command(
                *("ip", "-n", server, "link", "add", near, "type", "veth"),
                *("peer", "name", far, "netns", name),
            )
            for place, link, address in ((server, near, servers), (name, far, own)):
                command("ip", "-n", place, "address", "add", f"{address}/30", "dev", link)
                command("ip", "-n", place, "link", "set", link, "up")
        yield Network(server, clients)


def swaks(name: str, place: str, mechanism: str, *more: str) -> subprocess.CompletedProcess[str]:
    """One mail from a client's namespace."""
    return subprocess.run(
        [
            *("ip", "netns", "exec", name, "swaks", "--server", place, "--port", str(PORT)),
            *("--auth", mechanism, "--auth-user", LOGIN, "--auth-password", PASSWORD),
            *("--from", ADDRESS, "--to", "shop@example.net", "--helo", "client.example", *more),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass
class Serving:
    """What a test needs to start a daemon in the server's namespace, and what came of it."""

    network: Network
    home: Home
    program: Sendmail
    stack: contextlib.ExitStack

    def start(self, *options: str) -> None:
        log = self.home.path / "daemon.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.network.server, PROGRAM, "--personal", "-f"),
                    *("-p", f"0.0.0.0:{PORT}", *options),
                ],
                env=environment(self.home),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.stack.enter_context(ending(process))
        wait_until(lambda: b"Listening on" in log.read_bytes(), "the start lines")


@pytest.fixture
def serving(network: Network, tmp_path: Path) -> Iterator[Serving]:
    program = make_sendmail(tmp_path / "program")
    home = make_home(tmp_path / "home", to_program(program.path), rules="to shop@* kw=shop\n")
    with contextlib.ExitStack() as stack:
        yield Serving(network, home, program, stack)


def test_one_configuration_serves_a_persons_clients_on_two_hosts(network, serving):
    """TO-3: the same key tags for both; Received tells them apart."""
    serving.start()
    for name, (_, servers) in network.clients.items():
        sent = swaks(name, servers, "CRAM-MD5")
        assert sent.returncode == 0, sent.stdout
    messages = serving.program.messages()
    assert len(messages) == 2
    assert len({message.sender for message in messages}) == 1
    assert messages[0].sender.startswith("bobby-keyword-shop.")
    for own, _ in network.clients.values():
        assert any(f"from client.example ({own}) by ".encode() in m.octets for m in messages)


def test_a_client_elsewhere_may_not_send_its_password_in_the_clear(network, serving):
    serving.start()
    name, (_, servers) = next(iter(network.clients.items()))
    refused = swaks(name, servers, "PLAIN")
    assert refused.returncode != 0
    assert re.search(r"(?m)^<-  250-AUTH CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256$", refused.stdout)
    assert serving.program.messages() == []


def test_it_may_when_the_administrator_says_so(network, serving):
    serving.start("--insecure-auth")
    name, (_, servers) = next(iter(network.clients.items()))
    sent = swaks(name, servers, "PLAIN")
    assert sent.returncode == 0, sent.stdout
    assert len(serving.program.messages()) == 1
