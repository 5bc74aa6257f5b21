"""A client's connection: deadlines hold, few writes, the last reply arrives."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest
from fakes import PATIENCE_SECONDS, CountingSocket, tcp_pair, wait_for

from tofmipd import wire as wire_module
from tofmipd.wire import Wire, _timeval


@pytest.fixture
def pair():
    server, client = tcp_pair()
    yield server, client
    server.close()
    client.close()


def in_thread(target):
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def soon(seconds=PATIENCE_SECONDS):
    return time.monotonic() + seconds


def test_what_the_client_sends_is_received(pair):
    wire = Wire(pair[0])
    pair[1].sendall(b"NOOP\r\n")
    assert wire.receive(100, soon()) == b"NOOP\r\n"
    pair[1].sendall(b"abcdef")
    wait_for(lambda: len(pair[0].recv(100, socket.MSG_PEEK)) == 6)
    assert wire.receive(4, soon()) == b"abcd"
    assert wire.receive(4, soon()) == b"ef"


def test_a_client_that_has_closed_gives_nothing(pair):
    pair[1].close()
    assert Wire(pair[0]).receive(100, soon()) == b""


def test_a_silent_client_runs_into_the_deadline(pair):
    wire = Wire(pair[0])
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(100, begun + 0.2)
    assert 0.15 < time.monotonic() - begun < 1


def test_a_deadline_in_the_past_is_over_at_once(pair):
    pair[1].sendall(b"x")
    with pytest.raises(TimeoutError):
        Wire(pair[0]).receive(100, time.monotonic() - 1)


def test_a_deadline_is_absolute_however_the_client_drips(pair):
    wire = Wire(pair[0])
    over = threading.Event()

    def drip():
        while not over.wait(0.02):
            pair[1].sendall(b"x")

    def read():
        for _ in range(1000):
            received.append(wire.receive(100, begun + 0.4))

    thread = in_thread(drip)
    received = []
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        read()
    taken = time.monotonic() - begun
    over.set()
    thread.join(PATIENCE_SECONDS)
    assert len(received) > 3
    assert 0.35 < taken < 1.5


def test_a_later_deadline_is_waited_for(pair):
    wire = Wire(pair[0])
    with pytest.raises(TimeoutError):
        wire.receive(100, soon(0.05))
    answer = threading.Timer(0.3, pair[1].sendall, [b"late"])
    answer.start()
    assert wire.receive(100, soon()) == b"late"
    answer.join()


def test_an_interrupt_wakes_whoever_waits(pair):
    wire = Wire(pair[0])
    got = []
    thread = in_thread(lambda: got.append(wire.receive(100, soon())))
    for _ in range(200):  # it may not wait yet
        wire.interrupt()
        thread.join(0.05)
        if not thread.is_alive():
            break
    assert got == [b""]
    wire.queue(b"421 bye\r\n")
    wire.flush()
    assert pair[1].recv(100) == b"421 bye\r\n"


def test_an_interrupt_of_a_dead_connection_is_harmless(pair):
    wire = Wire(pair[0])
    wire.close()
    wire.interrupt()


def test_what_is_queued_leaves_in_one_write(pair):
    sock = CountingSocket(fileno=pair[0].detach())
    wire = Wire(sock)
    wire.flush()
    for number in range(5):
        wire.queue(b"250 %d\r\n" % number)
    assert sock.writes == 0
    wire.flush()
    wire.flush()
    assert sock.writes == 1
    assert pair[1].recv(1000) == b"250 0\r\n250 1\r\n250 2\r\n250 3\r\n250 4\r\n"
    wire.close()


def test_a_client_that_does_not_read_cannot_hold_a_writer(pair):
    wire = Wire(pair[0], 0.2)
    wire.queue(bytes(30_000_000))
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.flush()
    assert time.monotonic() - begun < 5


def test_a_client_that_has_gone_is_a_connection_error(pair):
    wire = Wire(pair[0])
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[1].close()

    def write():
        for _ in range(100):
            wire.queue(b"x" * 1000)
            wire.flush()

    with pytest.raises(ConnectionError):
        write()


def test_the_last_reply_arrives_though_much_was_never_read(pair):
    wire = Wire(pair[0])
    pair[1].sendall(b"x" * 50_000)
    wait_for(lambda: pair[0].recv(100, socket.MSG_PEEK))
    wire.queue(b"500 5.5.6 Error: line too long\r\n")
    wire.flush()
    closing = in_thread(lambda: wire.close(linger=True))
    pair[1].settimeout(PATIENCE_SECONDS)
    assert pair[1].recv(100) == b"500 5.5.6 Error: line too long\r\n"
    assert pair[1].recv(100) == b""
    pair[1].close()
    closing.join(PATIENCE_SECONDS)
    assert not closing.is_alive()


def test_lingering_ends_though_the_client_goes_on_sending(pair, monkeypatch):
    monkeypatch.setattr(wire_module, "_LINGER_SECONDS", 0.2)
    wire = Wire(pair[0])
    over = threading.Event()

    def drip():
        try:
            while not over.wait(0.01):
                pair[1].sendall(b"x")
        except ConnectionError:
            pass

    thread = in_thread(drip)
    begun = time.monotonic()
    wire.close(linger=True)
    assert time.monotonic() - begun < 2
    over.set()
    thread.join(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("seconds", "timeval"),
    [(1, (1, 0)), (1.5, (1, 500000)), (0.25, (0, 250000)), (0, (0, 1000)), (-1, (0, 1000))],
)
def test_a_time_is_never_zero_for_zero_means_for_ever(seconds, timeval):
    assert struct.unpack("@ll", _timeval(seconds)) == timeval
