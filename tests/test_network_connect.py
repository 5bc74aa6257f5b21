"""Connections to a host with several addresses, within one limit of time."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import pytest
from certificates import authority, client_context
from fakes import FakeNextHop, server_context

from tofmipd.network import Deadline, connect, is_near, look_up


@pytest.fixture
def addresses(monkeypatch):
    """The addresses that each look-up finds."""
    found: list[tuple[str, int]] = []

    def look(host, port, *_, **__):
        kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address, _ in found]
        return [(kind, socket.SOCK_STREAM, 0, "", a) for kind, a in zip(kinds, found, strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return found


@pytest.fixture
def place():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


def closed_port(family=socket.AF_INET, host="127.0.0.1"):
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        return sock.getsockname()[:2]


@contextlib.contextmanager
def silent_place():
    """Where a connection is never established: the backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()


def has_ipv6():
    try:
        closed_port(socket.AF_INET6, "::1")
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="IPv6"))],
)
def test_the_next_address_is_tried_when_nobody_listens_at_the_first(host, addresses, place):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    addresses += [closed_port(family, host), place]
    sock, address = connect("mail.example", 25, Deadline(10))
    with sock:
        assert sock.getpeername() == place
        assert address == "127.0.0.1"


def test_an_address_that_does_not_answer_takes_no_more_than_its_share(addresses, place):
    with silent_place() as silent:
        addresses += [silent, silent, place]
        begun = time.monotonic()
        sock, _ = connect("mail.example", 25, Deadline(6))
        sock.close()
        assert time.monotonic() - begun > 3


def test_the_failure_of_the_last_address_is_told(addresses):
    addresses += [closed_port(), closed_port()]
    with pytest.raises(ConnectionRefusedError):
        connect("mail.example", 25, Deadline(10))


def test_a_name_without_an_address_is_said_to_be_one(addresses):
    with pytest.raises(OSError, match="no address"):
        connect("mail.example", 25, Deadline(10))


def test_where_there_can_be_no_thread_a_name_is_looked_up_all_the_same(monkeypatch):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for host in ("127.0.0.1", "::1", "localhost"):
        assert look_up(host, 25, Deadline(10))


def test_a_look_up_that_hangs_ends_with_the_time(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(30) and [])
    try:
        with pytest.raises(TimeoutError, match="look-up of its name"):
            connect("mail.example", 25, Deadline(0.1))
    finally:
        over.set()


@pytest.mark.parametrize("host", ["a..b", "\0", "x" * 300])
def test_a_host_that_is_none_is_an_error_that_is_declared(host):
    with pytest.raises((OSError, ValueError)):
        look_up(host, 25, Deadline(10))


def test_a_connection_may_be_encrypted_at_once(tmp_path):
    context, cafile = server_context(tmp_path)
    trusting = client_context()
    trusting.load_verify_locations(cafile)
    with FakeNextHop(tls=context, implicit=True) as server:
        sock, _ = connect("127.0.0.1", server.port, Deadline(10), trusting)
        with sock:
            assert sock.recv(3) == b"220"


def test_nothing_stays_open_when_the_handshake_fails(tmp_path):
    context, _ = server_context(tmp_path)
    with FakeNextHop(tls=context, implicit=True) as server:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="certificate"):
            connect("127.0.0.1", server.port, Deadline(10), client_context(authority()))
        server.close()
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_deadline_is_over_when_its_time_is():
    with pytest.raises(TimeoutError):
        Deadline(-1).left_seconds()
    assert 0 < Deadline(5).left_seconds() <= 5


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("192.0.2.1", False),
        ("fe80::1%lo", False),
    ],
)
def test_only_loopback_is_near(address, near):
    assert is_near(address) is near
