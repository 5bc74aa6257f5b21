"""A worker in threads of the test: the test is the monitor, the server, and what tags messages."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fakes import PATIENCE_SECONDS, TAKEN, wait_for
from forking import Child, in_child

from tofmipd import events
from tofmipd.content import memory_file
from tofmipd.errors import TEMPORARY
from tofmipd.log import OneLine
from tofmipd.privsep import frames
from tofmipd.privsep import worker as worker_module
from tofmipd.privsep.channel import Channel, Gone, close_all
from tofmipd.privsep.frames import Control, Kind, Submission
from tofmipd.privsep.worker import Shipping, Worker
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply

log = logging.getLogger("tofmipd.test")

PEER = Peer("192.0.2.7", 40000, False, "192.0.2.1")
MESSAGE = b"Subject: test\r\n\r\nHello\r\n"
SIZE_LIMIT = 1 << 20


def envelope(recipients=("x@example.net",)) -> Envelope:
    return Envelope("a@example.org", "?", "laptop", "ESMTPA", PEER, 0, False, list(recipients))


class Office:
    """A worker for bobby, and its monitor's end of the channel.

    ``submit`` may be set to what deals with a message; ``taken`` has what came in.
    """

    def __init__(
        self, idle_timeout: float = 60, occupied: Callable[[], bool] = lambda: False
    ) -> None:
        self.monitor, self.control = Channel.pair()
        self.monitor.limit_waiting(PATIENCE_SECONDS)
        shipping = Shipping()
        shipping.setFormatter(OneLine("%(message)s"))
        logger = logging.getLogger("tofmipd")
        logger.handlers[:] = [shipping]
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        self.worker = Worker(
            self.control,
            "bobby",
            shipping,
            idle_timeout=idle_timeout,
            size_limit_octets=SIZE_LIMIT,
            occupied=occupied,
        )
        self.taken: list[tuple[Envelope, bytes, str]] = []
        self.submit = lambda envelope, content, session_id: TAKEN
        self.status: int | None = None
        self._sessions: list[Channel] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.status = self.worker.run(self._submit)

    def _submit(self, envelope, content, session_id) -> Reply:
        self.taken.append((envelope, b"".join(content.blocks()), session_id))
        return self.submit(envelope, content, session_id)

    def session(self) -> Channel:
        """A session's channel, made as the monitor does."""
        ours, theirs = Channel.pair()
        ours.limit_waiting(PATIENCE_SECONDS)
        with theirs:
            self.monitor.send(Control(Kind.SERVE, 1).encode(), [theirs.fileno()])
        self._sessions.append(ours)
        return ours

    def leave(self) -> None:
        self.monitor.send(Control(Kind.LEAVE).encode())

    def ended(self) -> int | None:
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()
        return self.status

    def close(self) -> None:
        for channel in (self.monitor, *self._sessions):
            channel.close()
        self.ended()
        self.control.close()


@pytest.fixture
def office():
    """Makes offices; afterwards all threads and descriptors are gone."""
    # What another test has left may end meanwhile.
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    offices: list[Office] = []

    def make(**options) -> Office:
        offices.append(Office(**options))
        return offices[-1]

    yield make
    for one in offices:
        one.close()
    wait_for(lambda: set(threading.enumerate()) <= threads)
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


def send(channel: Channel, message: bytes = MESSAGE, session_id: str = "1f") -> None:
    encoded = frames.encode_envelope(envelope(), session_id)
    channel.send(Submission(len(message), len(encoded), encoded, message).encode())


def answer(channel: Channel) -> tuple[Reply, list[frames.LogLine]]:
    """The reply, and all lines that came before or with it."""
    lines = []
    for _ in range(10_000):
        reply, more = frames.decode_answer(channel.receive(frames.WORKER_LIMIT_OCTETS))
        lines += more
        if reply is not None:
            return reply, lines
    raise AssertionError("no reply comes")


def send_and_wait(channel: Channel) -> tuple[Reply, list[frames.LogLine]]:
    send(channel)
    return answer(channel)


# Messages.


def test_a_session_sends_one_message_after_the_other(office):
    place = office()
    session = place.session()
    for number in range(3):
        send(session, b"%d" % number, "1f")
        assert answer(session) == (TAKEN, [])
    expected = Envelope("a@example.org", "bobby", "laptop", "ESMTPA", PEER, 0, False)
    expected.recipients = ["x@example.net"]
    assert place.taken == [(expected, b"%d" % number, "1f") for number in range(3)]


@pytest.mark.parametrize("where", [(True, True), (True, False), (False, True)])
def test_envelope_and_message_may_come_in_files(office, where):
    place = office()
    session = place.session()
    many = envelope([f"r{number}@example.net" for number in range(5000)])
    message = MESSAGE * 10_000
    parts = [frames.encode_envelope(many if where[0] else envelope(), "1f"), message]
    if not where[1]:
        parts[1] = MESSAGE
    files = [memory_file(part) for part, apart in zip(parts, where, strict=True) if apart]
    head, body = (None if apart else part for part, apart in zip(parts, where, strict=True))
    octets = Submission(len(parts[1]), len(parts[0]), head, body).encode()
    session.send(octets, [file.fileno() for file in files])
    for file in files:
        file.close()
    assert answer(session) == (TAKEN, [])
    ((taken, content, _),) = place.taken
    assert content == parts[1]
    assert taken.recipients == (many if where[0] else envelope()).recipients


def test_the_lines_of_a_message_go_with_its_own_answer(office):
    place = office()
    meeting = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def submit(envelope, content, session_id):
        log.info("s=%s begins", session_id)
        meeting.wait()
        log.warning("s=%s ends", session_id)
        meeting.wait()
        return TAKEN

    place.submit = submit
    sessions = {name: place.session() for name in ("1a", "1b")}
    for name, session in sessions.items():
        send(session, session_id=name)
    for name, session in sessions.items():
        lines = [(logging.INFO, f"s={name} begins"), (logging.WARNING, f"s={name} ends")]
        assert answer(session) == (TAKEN, lines)


def test_many_lines_come_in_batches_and_without_end_they_do_not(office):
    place = office()

    def submit(envelope, content, session_id):
        for number in range(worker_module._LINES_LIMIT + 5):
            log.info("%d %s", number, "é" * 3000)
        return TAKEN

    place.submit = submit
    session = place.session()
    send(session)
    reply, lines = answer(session)
    assert reply == TAKEN
    assert len(lines) == worker_module._LINES_LIMIT
    assert all(text.startswith(f"{n} éé") for n, (_, text) in enumerate(lines))
    assert {len(text) for _, text in lines} == {worker_module._LINE_CHARACTERS}


@pytest.mark.parametrize(
    "act",
    [
        lambda: log.log(1000, "a level that no octet holds"),
        lambda: log.info("%d", "no number"),
        lambda: log.info("\ud800\udcff\0\r\n"),
        lambda: log.info("%s", type("Bad", (), {"__str__": lambda self: 1 / 0})()),
    ],
    ids=["level", "format", "text", "object"],
)
def test_no_line_of_a_users_program_costs_the_answer(office, act):
    place = office()

    def submit(envelope, content, session_id):
        act()
        return TAKEN

    place.submit = submit
    session = place.session()
    send(session)
    reply, _ = answer(session)
    assert reply == TAKEN


def test_lines_that_belong_to_no_message_go_with_the_next(office):
    place = office()
    session = place.session()
    log.warning("nobody's")
    send(session)
    assert answer(session) == (TAKEN, [(logging.WARNING, "nobody's")])


def test_a_defect_is_one_line_and_a_reason_to_try_later(office):
    place = office()
    session = place.session()
    place.submit = lambda *_: 1 / 0
    send(session)
    reply, ((level, text),) = answer(session)
    assert (reply, level) == (replies.INTERNAL_ERROR, logging.ERROR)
    assert re.fullmatch(r"internal error\\nTraceback .*ZeroDivisionError: division by zero", text)
    place.submit = lambda *_: TAKEN
    send(session)
    assert answer(session) == (TAKEN, [])


def test_so_many_messages_at_once_and_no_more(office, monkeypatch):
    monkeypatch.setattr(worker_module, "MESSAGES_AT_ONCE", 2)
    place = office()
    go_on = threading.Event()

    def submit(envelope, content, session_id):
        assert go_on.wait(PATIENCE_SECONDS)
        return TAKEN

    place.submit = submit
    sessions = [place.session() for _ in range(4)]
    for session in sessions:
        send(session)
    wait_for(lambda: len(place.worker._busy) == 4)
    assert len(place.taken) == 2
    go_on.set()
    assert [answer(session) for session in sessions] == [(TAKEN, [])] * 4


# What a server may not send.

ENCODED = frames.encode_envelope(envelope(), "1f")
INLINE = Submission(len(MESSAGE), len(ENCODED), ENCODED, MESSAGE).encode()
IN_FILE = Submission(5, len(ENCODED), ENCODED, None).encode()
IN_FILES = Submission(5, len(ENCODED), None, None).encode()


def file_of(octets: bytes) -> int:
    with memory_file(octets) as file:
        return os.dup(file.fileno())


def pipe_end() -> int:
    reader, writer = os.pipe()
    os.write(writer, b"12345")
    os.close(writer)
    return reader


WRONG = {
    "noise": (b"\xff" * 20, []),
    "half": (INLINE[:-1], []),
    "another frame": (frames.encode_lines([]), []),
    "no envelope": (Submission(2, 3, b"abc", b"hi").encode(), []),
    "bad envelope": (Submission(2, 9, b"\0\0\0\0\0\0\0\0\2", b"hi").encode(), []),
    "no file": (IN_FILE, []),
    "a file too many": (INLINE, [lambda: file_of(b"")]),
    "one file of two": (IN_FILES, [lambda: file_of(ENCODED)]),
    "two files of one": (IN_FILE, [lambda: file_of(b"12345"), lambda: file_of(b"12345")]),
    "a pipe": (IN_FILE, [pipe_end]),
    "a device": (IN_FILE, [lambda: os.open("/dev/zero", os.O_RDONLY)]),
    "a directory": (IN_FILE, [lambda: os.open("/", os.O_RDONLY)]),
    "a socket": (IN_FILE, [lambda: socket.socket().detach()]),
    "too short": (IN_FILE, [lambda: file_of(b"1234")]),
    "too long": (IN_FILE, [lambda: file_of(b"123456")]),
    "the envelope is a pipe": (IN_FILES, [pipe_end, lambda: file_of(b"12345")]),
    "the envelope is short": (IN_FILES, [lambda: file_of(ENCODED[1:]), lambda: file_of(b"12345")]),
    "swapped": (IN_FILES, [lambda: file_of(b"12345"), lambda: file_of(ENCODED)]),
    "not to be read": (IN_FILE, [lambda: os.open("/dev/null", os.O_WRONLY)]),
    "too big": (
        Submission(SIZE_LIMIT + 1, len(ENCODED), ENCODED, None).encode(),
        [lambda: file_of(b"x" * (SIZE_LIMIT + 1))],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_submission_is_answered_and_nothing_is_sent(office, case):
    place = office()
    session = place.session()
    octets, makers = WRONG[case]
    given = [make() for make in makers]
    session.send(octets, given)
    close_all(given)
    reply, ((level, text),) = answer(session)
    assert (reply, level) == (replies.INTERNAL_ERROR, logging.ERROR)
    assert text.startswith("the server breaks the protocol towards a worker: ")
    assert place.taken == []
    send(session)
    assert answer(session) == (TAKEN, [])


def test_a_file_that_cannot_be_read_costs_that_message_only(office, tmp_path):
    place = office()
    session = place.session()
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    with open(path, "ab") as write_only:
        session.send(IN_FILE, [write_only.fileno()])
    reply, lines = answer(session)
    assert reply == replies.INTERNAL_ERROR
    assert len(lines) == 1
    send(session)
    assert answer(session) == (TAKEN, [])


@pytest.mark.parametrize(
    ("octets", "files"), [(b"x" * (frames.WORK_LIMIT_OCTETS + 1), 0), (INLINE, 3), (INLINE, 200)]
)
def test_a_packet_beyond_all_limits_ends_its_session_and_no_other(office, octets, files):
    place = office()
    good, bad = place.session(), place.session()
    bad.send(octets, [0] * files)
    with pytest.raises(Gone):
        bad.receive(frames.WORKER_LIMIT_OCTETS)
    send(good)
    assert answer(good) == (TAKEN, [])


def test_a_session_that_ends_while_its_message_is_dealt_with_hurts_nobody(office):
    place = office()
    go_on = threading.Event()
    place.submit = lambda *_: go_on.wait(PATIENCE_SECONDS) and TAKEN
    gone, other = place.session(), place.session()
    send(gone)
    wait_for(lambda: place.taken)
    gone.close()
    go_on.set()
    send(other)
    assert answer(other) == (TAKEN, [])


# Room.


def test_where_no_thread_can_be_had_the_session_is_told_that_nothing_was_read(office, monkeypatch):
    place = office()
    first = place.session()
    send(first)
    answer(first)

    def start(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        second = place.session()
        with pytest.raises(Gone) as caught:
            send_and_wait(second)
    assert caught.value.unread
    send(first)
    assert answer(first) == (TAKEN, [])
    third = place.session()
    send(third)
    assert answer(third) == (TAKEN, [])


def test_so_many_sessions_and_no_more(office, monkeypatch):
    monkeypatch.setattr(worker_module, "SESSIONS_LIMIT", 2)
    place = office()
    first, second, third = (place.session() for _ in range(3))
    with pytest.raises(Gone):
        third.receive(frames.WORKER_LIMIT_OCTETS)
    first.close()
    wait_for(lambda: len(place.worker._sessions) == 1)
    for session in (second, place.session()):
        send(session)
        assert answer(session) == (TAKEN, [])


# The end.


def said_by(place: Office) -> Kind:
    octets = place.monitor.receive(frames.CONTROL_LIMIT_OCTETS)
    return frames.decode_control(octets, frames.FROM_WORKER).kind


def test_a_worker_without_work_says_so_once(office):
    place = office(idle_timeout=0.05)
    begun = time.monotonic()
    assert said_by(place) is Kind.IDLE
    assert time.monotonic() - begun >= 0.04
    place.monitor.limit_waiting(0.2)
    with pytest.raises(TimeoutError):
        said_by(place)
    place.leave()
    assert place.ended() == 0


def test_a_worker_with_work_is_not_idle(office, monkeypatch):
    monkeypatch.setattr(worker_module, "HEARTBEAT_SECONDS", 0.1)
    place = office(idle_timeout=0.05)
    go_on = threading.Event()
    place.submit = lambda *_: go_on.wait(PATIENCE_SECONDS) and TAKEN
    session = place.session()
    send(session)
    wait_for(lambda: place.taken)
    place.monitor.limit_waiting(0.2)
    with pytest.raises(TimeoutError):
        said_by(place)
    place.monitor.limit_waiting(PATIENCE_SECONDS)
    go_on.set()
    assert answer(session)[0] == TAKEN
    assert said_by(place) is Kind.IDLE


def told(monitor: Channel, limit_seconds: float = PATIENCE_SECONDS) -> Control:
    """The next frame of a worker."""
    monitor.limit_waiting(limit_seconds)
    octets = monitor.receive(frames.CONTROL_LIMIT_OCTETS)
    return frames.decode_control(octets, frames.FROM_WORKER)


def test_a_worker_with_something_in_its_outbox_does_not_leave(office, monkeypatch):
    monkeypatch.setattr(worker_module, "_FIRST_IDLE_SECONDS", 0.01)
    asked, occupied = [], threading.Event()
    occupied.set()
    place = office(idle_timeout=0.01, occupied=lambda: asked.append(1) or occupied.is_set())
    wait_for(lambda: len(asked) > 20)
    assert not place.monitor.has_something()
    occupied.clear()
    assert told(place.monitor) == Control(Kind.IDLE)


def test_a_worker_that_was_started_for_no_message_leaves_sooner(office, monkeypatch):
    monkeypatch.setattr(worker_module, "_FIRST_IDLE_SECONDS", 0.01)
    assert told(office(idle_timeout=3600).monitor) == Control(Kind.IDLE)


def test_a_worker_that_has_had_a_message_stays_as_long_as_it_is_told(office, monkeypatch):
    monkeypatch.setattr(worker_module, "_FIRST_IDLE_SECONDS", 0.5)
    place = office(idle_timeout=3600)
    send_and_wait(place.session())
    wait_for(lambda: not place.worker._busy)
    assert place.worker._patience() > 3000


# Lines about the outbox.


@contextlib.contextmanager
def shipping(pack: events.Pack | None = None) -> Iterator[tuple[Shipping, Channel]]:
    """One that the calling thread looks after an outbox with, and the monitor's end."""
    monitor, control = Channel.pair()
    with monitor, control:
        made = Shipping(pack)
        made.setFormatter(OneLine("%(message)s"))
        made.look_after_outbox(control)
        log_module = logging.getLogger("tofmipd")
        log_module.handlers[:], log_module.level = [made], logging.DEBUG
        log_module.propagate = False
        yield made, monitor


def test_lines_about_the_outbox_go_to_the_monitor():
    with shipping() as (ours, monitor):
        log.warning("s=%s deferred %s", "7f", "\x1b\nü")
        ours.note("s=%s sent", "7f")
        assert told(monitor) == Control(Kind.LINE, 30, ("s=7f deferred \\x1b\\n\\xfc",))
        assert told(monitor) == Control(Kind.LINE, 20, ("s=7f sent",))
        assert ours.take() == []


def claimed(line: str) -> tuple[str, str]:
    claim = events.unpacked(line)
    return (claim.event, claim.text) if claim is not None else ("", line)


def test_lines_travel_as_events_where_they_are_some():
    with shipping(events.packed) as (ours, monitor):
        log.warning("s=%s deferred: %s", "7f", "\x1b\nü")
        ours.note("s=%s passed through to=%r sender=%r id=%r by=%s reply=%r ms=%d", *"123456", 7)
        log.info("of somebody else: %s", "ü")
        log.warning("s=%s deferred: %s", "7f", "x" * 5000)
        texts = [told(monitor).texts[0] for _ in range(4)]
    assert [claimed(text) for text in texts] == [
        ("deferral", "s=7f deferred: \x1b\nü"),
        ("passed", "s=1 passed through to='2' sender='3' id='4' by=5 reply='6' ms=7"),
        ("", r"of somebody else: \xfc"),
        ("", "s=7f deferred: " + "x" * 982 + "..."),
    ]


def test_an_event_of_a_message_has_its_traceback():
    with shipping(events.packed) as (ours, _):
        ours._own.outbox = False
        ours.begin()
        try:
            raise ZeroDivisionError("ü" * 9000)
        except ZeroDivisionError:
            log.exception("s=%s internal error", "7f")
        ((level, line),) = ours.take()
    assert level == logging.ERROR
    claim = events.unpacked(line)
    assert claim is not None
    assert claim.event == "internal-error"
    assert str(claim.values["traceback"]).endswith("üüü")
    assert len(line) < 8000


def test_a_traceback_is_one_line_that_the_monitor_takes():
    with shipping() as (_, monitor):
        try:
            raise ZeroDivisionError("ü" * 5000)
        except ZeroDivisionError:
            log.exception("internal error")
        (text,) = told(monitor).texts
        assert text.startswith("internal error")
        assert len(text) <= 1000


def test_lines_of_messages_do_not_go_to_the_monitor():
    with shipping() as (ours, monitor):

        def serve() -> None:
            ours.begin()
            log.info("about a message")
            said.extend(ours.take())

        said: list = []
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
        assert said == [(20, "about a message")]
        assert not monitor.has_something()


def test_of_too_many_lines_some_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(worker_module, "_SENT_LIMIT", 3)
    monkeypatch.setattr(worker_module, "_SENT_A_SECOND", 0)
    with shipping() as (_, monitor):
        for number in range(10):
            log.info("%d", number)
        assert [told(monitor).texts[0] for _ in range(3)] == ["0", "1", "2"]
        assert not monitor.has_something()
        monkeypatch.setattr(worker_module, "_SENT_LIMIT", 100)
        log.info("last")
        assert told(monitor) == Control(Kind.LINE, 30, ("7 lines are left out here",))
        assert told(monitor) == Control(Kind.LINE, 20, ("last",))


def test_without_a_monitor_a_line_is_lost_without_harm():
    with shipping() as (_, monitor):
        monitor.close()
        log.error("nobody hears this")


def test_who_is_to_leave_finishes_what_has_come_and_takes_nothing_new(office):
    place = office()
    go_on = threading.Event()
    place.submit = lambda *_: go_on.wait(PATIENCE_SECONDS) and TAKEN
    busy, waiting, idle = (place.session() for _ in range(3))
    send(busy)
    wait_for(lambda: place.taken)
    send(busy, b"queued behind")
    send(waiting, b"just sent")
    wait_for(lambda: len(place.taken) == 2)
    wait_for(lambda: len(place.worker._sessions) == 3)
    place.leave()
    with pytest.raises(Gone):
        idle.receive(frames.WORKER_LIMIT_OCTETS)
    for channel in (idle, busy, waiting):
        with pytest.raises(Gone) as caught:
            send(channel, b"too late")
        assert caught.value.unread
    go_on.set()
    assert [answer(channel) for channel in (busy, busy, waiting)] == [(TAKEN, [])] * 3
    assert place.ended() == 0
    contents = [content for _, content, _ in place.taken]
    assert sorted(contents) == sorted([MESSAGE, b"queued behind", b"just sent"])


def test_without_a_monitor_there_is_no_worker(office):
    place = office()
    place.session()
    place.monitor.close()
    assert place.ended() == 1


def test_who_waits_for_a_long_time_gets_signs_of_life(office, monkeypatch):
    monkeypatch.setattr(worker_module, "HEARTBEAT_SECONDS", 0.03)
    place = office(idle_timeout=0.03)
    go_on = threading.Event()
    place.submit = lambda *_: go_on.wait(PATIENCE_SECONDS) and TAKEN
    session = place.session()
    send(session)
    for _ in range(3):
        assert frames.decode_answer(session.receive(frames.WORKER_LIMIT_OCTETS)) == (None, [])
    place.leave()
    for _ in range(3):
        assert frames.decode_answer(session.receive(frames.WORKER_LIMIT_OCTETS)) == (None, [])
    go_on.set()
    assert answer(session) == (TAKEN, [])
    assert place.ended() == 0


# The user's own program.


def loading_in_child(act):
    """A worker in a child that runs ``act`` while it reads the user's files; its session."""
    monitor, control = Channel.pair()
    session, theirs = Channel.pair()

    def work():
        monitor.close()
        session.close()
        worker = Worker(control, "bobby", Shipping(), idle_timeout=60, size_limit_octets=SIZE_LIMIT)

        def submit(*_):
            with worker.loading(0.2):
                act()
            return TAKEN

        return worker.run(submit)

    child = Child(work)
    control.close()
    with theirs:
        monitor.send(Control(Kind.SERVE, 1).encode(), [theirs.fileno()])
    session.limit_waiting(PATIENCE_SECONDS)
    return child, monitor, session


def spin() -> None:
    while True:
        pass


@pytest.mark.parametrize("act", [spin, lambda: time.sleep(60)])
def test_a_configuration_that_never_ends_is_answered_and_ends_the_worker(act):
    child, monitor, session = loading_in_child(act)
    with monitor, session:
        send(session)
        reply, lines = answer(session)
        assert str(reply) == "451 4.3.5 Error: reading your TMDA files takes too long"
        assert lines == [(logging.ERROR, "reading the user's files took longer than 0.2 s")]
        assert child.end().status == TEMPORARY


def test_where_no_thread_gets_a_turn_the_kernel_ends_the_worker():
    """A regular expression that backtracks without end.  This takes more than 2 s."""
    child, monitor, session = loading_in_child(lambda: re.match(r"(a*)*b", "a" * 40))
    with monitor, session:
        send(session)
        assert child.end().status == -14
        with pytest.raises(Gone) as caught:
            answer(session)
        assert not caught.value.unread


def test_loading_that_ends_in_time_leaves_no_timer():
    """The worker lives longer than the limit and serves on."""
    child, monitor, session = loading_in_child(lambda: None)
    with monitor, session:
        begun = time.monotonic()
        while time.monotonic() - begun < 0.4:
            send(session)
            assert answer(session) == (TAKEN, [])
        monitor.send(Control(Kind.LEAVE).encode())
        assert child.end().status == 0


def test_what_the_configuration_forks_holds_no_channel(office):
    """The server would wait for an end that does not come, the monitor too."""
    place = office()
    session = place.session()
    send(session)
    answer(session)
    inside = list(place.worker._sessions)

    def look():
        return [channel.fileno() for channel in (place.control, *inside)]

    assert in_child(look) == (0, "[-1, -1]\n")
    send(session)
    assert answer(session) == (TAKEN, [])
