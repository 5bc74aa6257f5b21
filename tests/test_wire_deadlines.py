"""No client holds a session longer than its limits say, however it goes about it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time

import pytest
from fakes import ALL_MECHANISMS, PATIENCE_SECONDS, FakeGate, b64, tcp_pair, wait_for
from test_pump import ENVELOPE, Serving, begin_message, logged_in, timed_out

from tofmipd import pump as pump_module
from tofmipd import wire as wire_module
from tofmipd.smtp.session import Policy
from tofmipd.wire import Wire

TOO_BIG = "552 5.3.4 Error: the message is far beyond the size limit"


def soon(seconds=PATIENCE_SECONDS):
    return time.monotonic() + seconds


@contextlib.contextmanager
def at_the_same_time(action):
    """Run ``action`` again and again, until it returns something, fails, or the block is left."""
    over = threading.Event()

    def run():
        with contextlib.suppress(OSError):
            while not over.is_set() and not action():
                pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield over
    finally:
        over.set()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


@contextlib.contextmanager
def takes(least, most):
    """The block lasts between so many seconds."""
    begun = time.monotonic()
    yield
    taken = time.monotonic() - begun
    assert least < taken < most, taken


@pytest.fixture
def pair():
    server, client = tcp_pair()
    # The kernel is to take little, so that the tests are about what it does not take.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    client.settimeout(PATIENCE_SECONDS)
    yield server, client
    server.close()
    client.close()


# Reading.


def test_a_sooner_deadline_than_the_last_one_holds(pair):
    wire = Wire(pair[0])
    pair[1].sendall(b"NOOP")
    assert wire.receive(100, soon(60)) == b"NOOP"
    with takes(0.15, 0.6), pytest.raises(TimeoutError):
        wire.receive(100, soon(0.2))
    with takes(0.25, 0.8), pytest.raises(TimeoutError):
        wire.receive(100, soon(0.3))


# Writing.


@pytest.mark.parametrize("octets", [1, 20_000])
def test_who_reads_a_little_now_and_then_gains_nothing(pair, octets):
    """All of it must be read in time, not just some."""
    wire = Wire(pair[0], 0.4)
    wire.queue(bytes(30_000_000))

    def read():
        pair[1].recv(octets)
        time.sleep(0.01)

    with at_the_same_time(read), takes(0.3, 1.5), pytest.raises(TimeoutError):
        wire.flush()


def test_who_reads_slowly_but_steadily_gets_every_octet(pair):
    wire = Wire(pair[0], 5)
    octets = bytes(range(256)) * 10_000
    got = []

    def read():
        time.sleep(0.001)
        got.append(pair[1].recv(50_000))
        return not got[-1]

    with at_the_same_time(read) as over:
        wire.queue(octets)
        wire.flush()
        pair[0].shutdown(socket.SHUT_WR)
        wait_for(lambda: got and not got[-1])
        over.set()
    assert b"".join(got) == octets


def test_the_time_to_write_is_that_of_one_flush(pair):
    """Who is slow every time, but not too slow, is served on."""
    wire = Wire(pair[0], 1)

    def read():
        time.sleep(0.03)
        return not pair[1].recv(100_000)

    with at_the_same_time(read), takes(1.1, 8):
        for _ in range(6):
            wire.queue(bytes(1_000_000))
            wire.flush()
        pair[0].shutdown(socket.SHUT_WR)


def test_who_goes_while_octets_are_written_is_gone(pair):
    wire = Wire(pair[0], PATIENCE_SECONDS)
    wire.queue(bytes(1_000_000))
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    leave = threading.Timer(0.1, pair[1].close)
    leave.start()
    with takes(0, 2), pytest.raises(ConnectionError):
        wire.flush()
    leave.join()


def test_lingering_ends_after_so_many_octets(pair, monkeypatch):
    monkeypatch.setattr(wire_module, "_LINGER_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(wire_module, "_LINGER_OCTETS", 200_000)
    wire = Wire(pair[0])
    sent = []

    def send():
        sent.append(pair[1].send(bytes(10_000)))

    with at_the_same_time(send), takes(0, 3):
        wire.close(linger=True)
    assert sum(sent) >= 200_000


# Sessions.


@pytest.fixture
def gate():
    return FakeGate()


@pytest.fixture
def serve(gate, monkeypatch):
    """Starts sessions, in which a slow message has no time of grace worth mentioning; afterwards
    none of them may be left, nor may one have raised anything."""
    monkeypatch.setattr(pump_module, "_GRACE_SECONDS", 0.3)
    running = []

    def start(**options):
        running.append(Serving(gate, **options))
        return running[-1]

    yield start
    for serving in running:
        serving.client.close()
        assert serving.ended()


def begin_by_chunk(client, octets):
    assert client.ask(*ENVELOPE).startswith("250 ")
    client.say(f"BDAT {octets} LAST")


def begin_by_data(client, octets):
    begin_message(client)


def drip(client, octets=b"x", pause=0.03):
    def send():
        client.raw(octets)
        time.sleep(pause)

    return at_the_same_time(send)


@pytest.mark.parametrize("begin", [begin_by_data, begin_by_chunk])
def test_a_message_that_comes_octet_by_octet_is_given_up(serve, gate, begin):
    client = logged_in(serve())
    begin(client, 100_000)
    with drip(client), takes(0.25, 3):
        timed_out(client)
    assert gate.submitted == []


@pytest.mark.parametrize("begin", [begin_by_data, begin_by_chunk])
def test_what_came_fast_does_not_help_a_message_that_drips_for_long(serve, gate, begin):
    """The rate is that of the whole message."""
    client = logged_in(serve(minimum_rate=100_000))
    begin(client, 1_000_000)
    client.raw(b"x" * 60_000)
    with drip(client), takes(0.5, 3):
        timed_out(client)
    assert gate.submitted == []


@pytest.mark.parametrize("begin", [begin_by_data, begin_by_chunk])
def test_a_message_that_is_just_fast_enough_may_take_its_time(serve, gate, begin):
    client = logged_in(serve(minimum_rate=100))
    line = b"x" * 98 + b"\r\n"
    begin(client, 20 * len(line))
    for _ in range(19):
        client.raw(line)
        assert client.silent_for(0.05)
    client.raw(line if begin is begin_by_chunk else line + b".\r\n")
    assert client.reply() == "250 2.0.0 Ok: taken"
    assert gate.submitted[0][1] == 20 * line


def test_a_chunk_that_stops_is_given_up(serve, gate):
    client = logged_in(serve(data_timeout=0.4))
    begin_by_chunk(client, 100)
    client.raw(b"x" * 99)
    with takes(0.3, 2):
        timed_out(client)
    assert gate.submitted == []


def test_between_two_chunks_the_limit_is_that_of_commands(serve, gate):
    client = logged_in(serve(data_timeout=0.1, idle_timeout=0.6, size=10_000_000))
    files = len(os.listdir("/proc/self/fd"))
    assert client.ask(*ENVELOPE).startswith("250 ")
    client.raw(b"BDAT 2000000\r\n" + bytes(2_000_000))
    assert client.reply() == "250 2.0.0 2000000 octets received"
    assert len(os.listdir("/proc/self/fd")) == files + 1
    with takes(0.5, 2):
        timed_out(client)
    client.close()
    wait_for(lambda: len(os.listdir("/proc/self/fd")) == files - 2)
    assert gate.submitted == []


def test_a_message_without_an_end_is_cut_off(serve, gate, monkeypatch):
    monkeypatch.setattr(pump_module, "_PATIENCE_OCTETS", 100_000)
    client = logged_in(serve(size=50_000))
    begin_message(client)
    block = b"x" * 998 + b"\r\n"
    # As much is read as could be an honest mistake.
    client.raw(block * 195)
    assert client.silent_for(0.2)
    with at_the_same_time(lambda: client.raw(block)):
        assert client.reply() == TOO_BIG
        assert client.rest() == b""
    assert gate.submitted == []


# Those who have not logged in.


@pytest.mark.parametrize(
    "begin",
    [
        ("EHLO x",),
        ("AUTH PLAIN",),
        ("AUTH LOGIN", b64(b"bobby")),
        ("AUTH CRAM-MD5",),
    ],
)
def test_a_response_that_comes_octet_by_octet_does_not_move_the_time_to_log_in(serve, begin):
    client = serve(login_timeout=0.5).client
    assert client.ask(*begin)[:1] in "23"
    with drip(client, b"A"), takes(0.3, 2):
        timed_out(client)


@pytest.mark.parametrize("pause", [None, 0.03], ids=["silent", "dripping"])
def test_a_chunk_of_nobody_does_not_move_the_time_to_log_in(serve, pause):
    client = serve(login_timeout=0.5, minimum_rate=1).client
    client.say("BDAT 60000 LAST")
    dripping = contextlib.nullcontext() if pause is None else drip(client, b"x", pause)
    with dripping, takes(0.3, 2):
        timed_out(client)


def test_who_sends_a_chunk_of_nobody_is_asked_to_go_like_all_others(serve):
    serving = serve(minimum_rate=1)
    serving.client.say("NOOP", "BDAT 60000 LAST")
    assert serving.client.reply() == "250 2.0.0 Ok"

    def told():
        serving.pump.expire(0)
        return not serving.client.silent_for(0.01)

    with drip(serving.client), takes(0, 2):
        wait_for(told)
        timed_out(serving.client)


def test_who_has_logged_in_is_not_asked_to_go(serve):
    serving = serve()
    client = logged_in(serving)
    serving.pump.expire(0)
    assert client.ask(*ENVELOPE).startswith("250 ")
    client.say("BDAT 4")
    serving.pump.expire(0)
    client.raw(b"abcd")
    assert client.reply() == "250 2.0.0 4 octets received"
    serving.pump.expire(0)
    assert client.ask("NOOP") == "250 2.0.0 Ok"


# Chunks whose octets are never obeyed.


def test_octets_of_a_chunk_without_a_place_are_never_commands(serve, gate, monkeypatch):
    """However many they are; those of a chunk far too big are not even awaited."""
    monkeypatch.setattr(pump_module, "_PATIENCE_OCTETS", 50_000)
    policy = Policy("mx.example", ALL_MECHANISMS, size_limit_octets=100_000)
    client = logged_in(serve(policy=policy, size=100_000))
    octets = b"VRFY bobby\r\n" * 16_600
    client.raw(b"BDAT %d LAST\r\n" % len(octets) + octets)
    assert client.reply() == "503 5.5.1 Error: need MAIL command"
    assert client.ask("NOOP") == "250 2.0.0 Ok"
    with contextlib.suppress(ConnectionError):
        client.raw(b"BDAT 300000 LAST\r\n" + octets * 2)
    assert client.reply() == TOO_BIG
    assert client.rest() == b""


def test_nobody_may_have_many_octets_thrown_away(serve):
    client = serve().client
    client.raw(b"BDAT 65536 LAST\r\n" + b"NOOP xx\r\n" * 7281 + b"1234567")
    assert client.reply() == "530 5.7.0 Error: Authentication required"
    client.raw(b"BDAT 65537 LAST\r\nNOOP\r\n")
    assert client.reply() == "530 5.7.0 Error: Authentication required"
    assert client.rest() == b""


def test_chunks_without_a_place_count_as_errors(serve):
    policy = Policy("mx.example", ALL_MECHANISMS, max_errors=3)
    client = logged_in(serve(policy=policy))
    for _ in range(2):
        client.raw(b"BDAT 4 LAST\r\nNOOP")
        assert client.reply().startswith("503 ")
    client.raw(b"BDAT 4 LAST\r\nNOOP")
    assert client.reply().startswith("421 4.7.0 ")
    assert client.rest() == b""
