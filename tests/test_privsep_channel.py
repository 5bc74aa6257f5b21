"""What the kernel does with packets and descriptors, as channels rely on it."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
from fakes import PATIENCE_SECONDS, wait_for

from tofmipd.privsep.channel import Channel, Gone, close_all
from tofmipd.privsep.frames import BadFrame

LIMIT = 100
RECEIVERS = {
    "receive": lambda channel: channel.receive(LIMIT),
    "receive_strictly": lambda channel: channel.receive_strictly(LIMIT),
    "receive_with": lambda channel: channel.receive_with(LIMIT, 2)[0],
}


@pytest.fixture(params=RECEIVERS)
def receive(request):
    return RECEIVERS[request.param]


@pytest.fixture
def pair():
    ours, theirs = Channel.pair()
    for channel in (ours, theirs):
        channel.limit_waiting(PATIENCE_SECONDS)
    with ours, theirs:
        yield ours, theirs


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def no_leak():
    """As many descriptors are open afterwards as before."""
    before = len(descriptors())
    yield
    assert len(descriptors()) == before


class Waiting:
    """A thread that waits in ``act``; what came of it is in ``result``."""

    def __init__(self, act) -> None:
        self.result = None
        self._thread = threading.Thread(target=self._run, args=(act,), daemon=True)
        self._thread.start()
        wait_for(self._asleep)

    def _run(self, act) -> None:
        try:
            self.result = act()
        except Exception as error:
            self.result = error

    def _asleep(self) -> bool:
        with open(f"/proc/self/task/{self._thread.native_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"

    def join(self):
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        return self.result


def is_gone(error, *, unread: bool) -> bool:
    return isinstance(error, Gone) and error.unread is unread


# Packets.


def test_packets_keep_their_bounds_and_their_order(pair, receive):
    ours, theirs = pair
    for octets in (b"a", b"bc", b"d" * LIMIT):
        ours.send(octets)
    assert [receive(theirs) for _ in range(3)] == [b"a", b"bc", b"d" * LIMIT]


def test_a_packet_that_is_too_long_is_refused_whole(pair, receive):
    ours, theirs = pair
    ours.send(b"x" * (LIMIT + 1))
    ours.send(b"next")
    with pytest.raises(BadFrame, match="too long"):
        receive(theirs)
    assert receive(theirs) == b"next"


# The end.


def test_a_packet_that_was_never_read_is_known_to_be(pair, receive):
    ours, theirs = pair
    ours.send(b"x")
    theirs.close()
    with pytest.raises(Gone) as caught:
        receive(ours)
    assert caught.value.unread


def test_a_packet_that_was_read_may_have_had_its_effect(pair, receive):
    ours, theirs = pair
    ours.send(b"x")
    receive(theirs)
    theirs.close()
    with pytest.raises(Gone) as caught:
        receive(ours)
    assert not caught.value.unread


def test_of_two_packets_the_second_one_counts(pair, receive):
    ours, theirs = pair
    ours.send(b"x")
    ours.send(b"y")
    receive(theirs)
    theirs.close()
    with pytest.raises(Gone) as caught:
        receive(ours)
    assert caught.value.unread


def test_an_answer_can_be_read_after_the_end_of_who_gave_it(pair, receive):
    ours, theirs = pair
    ours.send(b"question")
    receive(theirs)
    theirs.send(b"answer")
    theirs.close()
    assert receive(ours) == b"answer"
    with pytest.raises(Gone) as caught:
        receive(ours)
    assert not caught.value.unread


@pytest.mark.parametrize("with_descriptor", [False, True])
def test_nothing_can_be_sent_to_who_is_gone(pair, with_descriptor):
    ours, theirs = pair
    theirs.close()
    for _ in range(2):
        with pytest.raises(Gone) as caught:
            ours.send(b"x", [0] if with_descriptor else [])
        assert caught.value.unread


def test_the_end_wakes_who_waits(pair, receive):
    ours, theirs = pair
    waiting = Waiting(lambda: receive(ours))
    theirs.close()
    assert is_gone(waiting.join(), unread=False)


def test_a_process_that_is_killed_is_gone_with_what_it_has_not_read(pair):
    ours, theirs = pair
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            theirs.receive(LIMIT)
        finally:
            os.kill(os.getpid(), 9)
    theirs.close()
    ours.send(b"read")
    os.waitpid(child, 0)
    with pytest.raises(Gone) as caught:
        ours.receive(LIMIT)
    assert not caught.value.unread
    with pytest.raises(Gone) as caught:
        ours.send(b"never read")
    assert caught.value.unread


# The end of reading.


def test_who_stops_reading_wakes_the_thread_that_waits(pair, receive):
    ours, _ = pair
    waiting = Waiting(lambda: receive(ours))
    ours.stop_reading()
    assert is_gone(waiting.join(), unread=False)


def test_what_came_before_the_end_of_reading_can_be_read_and_answered(pair, receive):
    ours, theirs = pair
    theirs.send(b"first")
    theirs.send(b"second")
    ours.stop_reading()
    assert (receive(ours), receive(ours)) == (b"first", b"second")
    with pytest.raises(Gone) as caught:
        receive(ours)
    assert not caught.value.unread
    ours.send(b"answer")
    assert receive(theirs) == b"answer"


def test_what_is_sent_after_the_end_of_reading_is_known_to_be_unread(pair):
    ours, theirs = pair
    ours.stop_reading()
    for _ in range(2):
        with pytest.raises(Gone) as caught:
            theirs.send(b"x")
        assert caught.value.unread


def test_reading_may_be_stopped_twice_and_after_the_end(pair):
    ours, theirs = pair
    ours.stop_reading()
    ours.stop_reading()
    theirs.close()
    ours.stop_reading()
    ours.close()
    ours.stop_reading()


# Waiting.


def test_a_limit_ends_waiting_for_a_packet(pair, receive):
    ours, _ = pair
    ours.limit_waiting(0.02)
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        receive(ours)
    assert 0.01 < time.monotonic() - begun < PATIENCE_SECONDS


def fill(channel: Channel) -> tuple[int, type[OSError]]:
    """Send until nothing more fits; how many packets that were, and what ended it."""
    for number in range(10_000):
        try:
            channel.send(b"x" * LIMIT)
        except (TimeoutError, BlockingIOError) as error:
            return number, type(error)
    raise AssertionError("there is room without end")


@pytest.mark.parametrize("limit", ["limit_waiting", "limit_sending"])
def test_a_limit_ends_waiting_for_room(pair, limit):
    ours, _ = pair
    getattr(ours, limit)(0.02)
    number, error = fill(ours)
    assert number > 10
    assert error is TimeoutError


def test_a_limit_for_sending_is_none_for_reading(pair):
    ours, theirs = pair
    ours.limit_waiting(PATIENCE_SECONDS)
    ours.limit_sending(0.01)
    threading.Timer(0.05, theirs.send, (b"late",)).start()
    assert ours.receive(LIMIT) == b"late"


def test_who_never_waits_is_told_so(pair, receive):
    ours, theirs = pair
    ours.never_wait()
    with pytest.raises(BlockingIOError):
        receive(ours)
    number, error = fill(ours)
    assert number > 10
    assert error is BlockingIOError
    for _ in range(number):
        receive(theirs)
    ours.send(b"there is room again")


# Descriptors.


def test_descriptors_come_as_copies_in_their_order_and_not_for_programs(pair, no_leak):
    ours, theirs = pair
    reader, writer = os.pipe()
    ours.send(b"x", (reader, writer))
    octets, (first, second) = theirs.receive_with(LIMIT, 2)
    assert octets == b"x"
    os.write(second, b"through")
    assert os.read(reader, 10) == b"through"
    assert not os.get_inheritable(first)
    assert not os.get_inheritable(second)
    close_all([reader, writer, first, second])


@pytest.mark.parametrize(("sent", "most"), [(1, 0), (2, 1), (3, 1), (3, 2), (4, 2), (253, 2)])
def test_too_many_descriptors_are_closed_and_refused(pair, no_leak, sent, most):
    ours, theirs = pair
    ours.send(b"x", [0] * sent)
    with pytest.raises(BadFrame, match="too many descriptors"):
        theirs.receive_with(LIMIT, most)
    ours.send(b"y", [0] * most)
    octets, given = theirs.receive_with(LIMIT, most)
    close_all(given)
    assert (octets, len(given)) == (b"y", most)


def test_a_descriptor_is_a_fault_where_none_may_come(pair, no_leak):
    ours, theirs = pair
    ours.send(b"x", [0])
    with pytest.raises(BadFrame, match="too many descriptors"):
        theirs.receive_strictly(LIMIT)


def test_a_descriptor_is_thrown_away_where_nobody_looks(pair, no_leak):
    ours, theirs = pair
    reader, writer = os.pipe()
    ours.send(b"x", [writer])
    os.close(writer)
    assert theirs.receive(LIMIT) == b"x"
    assert os.read(reader, 1) == b""  # no copy is open any more
    os.close(reader)


def test_descriptors_of_a_packet_that_is_too_long_are_closed(pair, no_leak):
    ours, theirs = pair
    ours.send(b"x" * (LIMIT + 1), [0, 0])
    with pytest.raises(BadFrame, match="too long"):
        theirs.receive_with(LIMIT, 2)


def test_descriptors_of_an_empty_packet_are_closed(pair, no_leak):
    ours, theirs = pair
    ours.send(b"", [0])
    with pytest.raises(Gone):
        theirs.receive_with(LIMIT, 1)


def test_descriptors_that_nobody_ever_takes_are_closed_with_the_channel():
    ours, theirs = Channel.pair()
    reader, writer = os.pipe()
    ours.send(b"x", [writer])
    os.close(writer)
    ours.close()
    theirs.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


# Channels that come from elsewhere.


def test_a_descriptor_of_a_channel_becomes_one(pair):
    ours, theirs = pair
    one, other = Channel.pair()
    with one, other:
        ours.send(b"x", [other.fileno()])
        _, (descriptor,) = theirs.receive_with(LIMIT, 1)
        with Channel.of(descriptor) as channel:
            assert channel.fileno() == descriptor
            channel.send(b"hello")
            assert one.receive(LIMIT) == b"hello"


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


FOREIGN = {
    "file": lambda: os.open(os.devnull, os.O_RDWR),
    "memory": lambda: os.memfd_create("x"),
    "pipe": pipe_end,
    "stream": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(),
    "datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
    "tcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_descriptor_of_anything_else_is_closed_and_refused(kind, no_leak):
    with pytest.raises(BadFrame):
        Channel.of(FOREIGN[kind]())


def test_closing_descriptors_that_are_closed_is_no_error(no_leak):
    descriptor = os.open(os.devnull, os.O_RDONLY)
    close_all([descriptor, descriptor, -1])
