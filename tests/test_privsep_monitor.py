"""The monitor's order of things, with hand-made children; the system tests run the whole."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tofmipd import events
from tofmipd.privsep import monitor as monitor_module
from tofmipd.privsep import worker as worker_module
from tofmipd.privsep.channel import Channel
from tofmipd.privsep.children import Birth, Child
from tofmipd.privsep.crew import Crew
from tofmipd.privsep.frames import CONTROL_LIMIT_OCTETS, TO_SERVER, Control, Kind, decode_control
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.monitor import Monitor
from tofmipd.privsep.plan import Change, Plan
from tofmipd.privsep.workers import Worker

# No process has this number, so that nothing is killed.
NOBODY = 2**31 - 1
ANNA, BEN = Identity("anna", "anna"), Identity("ben", "ben")


@dataclass
class Court:
    """A monitor, and the other ends of the channels to its server and auth."""

    monitor: Monitor
    server: Channel
    auth: Channel

    def turn(self) -> None:
        child = self.monitor._crew.server.child
        assert child is not None
        self.monitor._read(child)


@pytest.fixture
def court() -> Iterator[Court]:
    birth = Birth("x", "x", lambda control: 0)
    plan = Plan(
        server=birth,
        auth=birth,
        worker=lambda identity: birth,
        files=(),
        # Whoever is entitled to a worker waits for a place, so nothing is forked.
        max_workers=0,
        sessions=1000,
        stop_timeout=1,
        leave_timeout=1,
        reopen=lambda: None,
        close_listeners=lambda: None,
    )
    signals, writer = os.pipe()
    monitor = Monitor(plan, signals)
    others = []
    for post in (monitor._crew.server, monitor._crew.auth):
        ours, theirs = Channel.pair()
        ours.never_wait()
        post.child = Child(post.birth.name, NOBODY - len(others), ours)
        monitor._adopt(post.child)
        others.append(theirs)
    yield Court(monitor, *others)
    for child in monitor._children.values():
        child.close()
    for channel in others:
        channel.close()
    os.close(signals)
    os.close(writer)


def test_all_that_auth_has_said_is_heard_before_a_session_asks(court: Court) -> None:
    """However many have logged in while the monitor was busy, the last one is no offender."""
    court.auth.never_wait()
    last = 0
    try:
        for last in range(1, 1000):
            court.auth.send(Control(Kind.PROVED, last, ("anna", "anna")).encode())
    except BlockingIOError:
        last -= 1
    assert last > 100
    court.server.send(Control(Kind.GRANT, last).encode())
    court.turn()
    assert court.monitor._crew.offences == 0
    assert court.monitor._crew.sessions[last] == Identity("anna", "anna")
    assert [session for _, _, session in court.monitor._queue] == [last]


def test_what_is_queued_behind_a_breach_is_not_obeyed(court: Court) -> None:
    court.auth.send(Control(Kind.PROVED, 1, ("anna", "anna")).encode())
    court.server.send(b"nonsense")
    court.server.send(Control(Kind.GRANT, 1).encode())
    for _ in range(3):
        court.turn()
    assert not court.monitor._queue


def test_a_session_that_has_proved_nothing_is_refused(court: Court) -> None:
    court.server.send(Control(Kind.GRANT, 5).encode())
    court.turn()
    frame = decode_control(court.server.receive(CONTROL_LIMIT_OCTETS), TO_SERVER)
    assert (frame.kind, frame.number) == (Kind.REFUSED, 5)
    assert court.monitor._crew.offences == 1


# Lines of workers for the log.


@dataclass
class Talker:
    """A worker of the court's, and its end of the channel."""

    monitor: Monitor
    worker: Worker
    channel: Channel

    def say(self, *frames: Control) -> None:
        for frame in frames:
            self.channel.send(frame.encode())
            self.monitor._read(self.worker)

    def line(self, text: str, level: int = logging.INFO) -> Control:
        return Control(Kind.LINE, level, (text,))


@pytest.fixture
def talker(court: Court, caplog: pytest.LogCaptureFixture) -> Iterator[Talker]:
    caplog.set_level(logging.DEBUG)
    ours, theirs = Channel.pair()
    ours.never_wait()
    worker = Worker("worker for 'anna'", NOBODY - 5, ours, identity=ANNA)
    court.monitor._adopt(worker)
    court.monitor._workers.add(worker)
    yield Talker(court.monitor, worker, theirs)
    theirs.close()


def test_a_worker_may_have_lines_on_the_log(talker: Talker, caplog) -> None:
    talker.say(talker.line("s=7 sent"), talker.line("s=7 deferred", logging.WARNING))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.INFO, "outbox of 'anna': s=7 sent"),
        (logging.WARNING, "outbox of 'anna': s=7 deferred"),
    ]


@pytest.mark.parametrize("level", [0, 1, 11, 50, 255, 2**64 - 1])
def test_a_line_has_no_level_of_its_own_making(level: int, talker: Talker, caplog) -> None:
    talker.say(talker.line("x", level))
    assert [record.levelno for record in caplog.records] == [logging.INFO]


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "a\tb", "\udcff", "ü", "\u2028", "%s %d", "x" * 1024, "outbox of 'root': y"]
)
def test_a_line_cannot_be_taken_for_somebody_elses(text: str, talker: Talker, caplog) -> None:
    talker.say(talker.line(text))
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("outbox of 'anna': ")
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 1100


def test_an_event_of_a_worker_has_the_name_of_its_login(
    talker: Talker, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    plan = dataclasses.replace(talker.monitor._plan, unpack=events.unpacked)
    monkeypatch.setattr(Monitor, "_plan", plan)
    claims = [
        events.packed("s=%s refused: user=%r %s", ("7", "root", "no\n"), "", 1000),
        '["s=%s session from %s", ["7", "::1"], ""]',
        "[" * 1000,
    ]
    talker.say(*map(talker.line, claims))
    told = [json.loads(events.Json().format(record)) for record in caplog.records]
    assert [(one["event"], one["user"]) for one in told] == [
        ("refusal", "anna"),
        ("worker", "anna"),
        ("worker", "anna"),
    ]
    assert told[0]["session"] == "7"
    assert told[0]["message"] == r"outbox of 'anna': s=7 refused: user='root' no\n"
    assert "session" not in told[1]


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b", "x" * 1025])
def test_a_line_that_is_none_ends_the_worker(text: str, talker: Talker, caplog) -> None:
    talker.say(talker.line(text), talker.line("and then"))
    assert talker.worker.distrusted
    assert "and then" not in caplog.text
    assert talker.monitor._workers.find(ANNA) is None


def test_who_talks_too_much_is_ended(talker: Talker, caplog) -> None:
    # None is earned by waiting.
    talker.worker.born = time.monotonic() + 3600
    limit = monitor_module._LINES_LIMIT - 3600 * monitor_module._LINES_A_SECOND
    assert limit < 0
    talker.say(talker.line("x"))
    assert talker.worker.distrusted
    assert "talks too much" in caplog.text


def test_so_many_lines_are_borne(talker: Talker, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(monitor_module, "_LINES_A_SECOND", 0)
    for number in range(monitor_module._LINES_LIMIT):
        talker.say(talker.line(f"{number}"))
    assert not talker.worker.distrusted
    assert len(caplog.records) == monitor_module._LINES_LIMIT
    talker.say(talker.line("one too many"))
    assert talker.worker.distrusted


def test_a_worker_says_less_than_the_monitor_bears() -> None:
    assert worker_module._SENT_LIMIT < monitor_module._LINES_LIMIT
    assert worker_module._SENT_A_SECOND < monitor_module._LINES_A_SECOND


@pytest.mark.parametrize("who", ["server", "auth"])
def test_nobody_but_a_worker_has_lines_for_the_log(who: str, court: Court, caplog) -> None:
    channel = getattr(court, who)
    channel.send(Control(Kind.LINE, 20, ("forged",)).encode())
    child = getattr(court.monitor._crew, who).child
    court.monitor._read(child)
    assert child.distrusted
    assert "forged" not in caplog.text


# Outboxes that nobody looks after.


@pytest.fixture
def started(court: Court, monkeypatch: pytest.MonkeyPatch) -> list[Identity]:
    """For whom a worker would have been forked."""
    found: list[Identity] = []
    monkeypatch.setattr(court.monitor, "_start_worker", lambda identity: found.append(identity))
    return found


def with_places(court: Court, count: int) -> None:
    crew = court.monitor._crew
    crew.plan = dataclasses.replace(crew.plan, max_workers=count)


def test_a_worker_is_started_for_an_outbox_in_which_something_is_due(
    court: Court, started: list[Identity]
) -> None:
    with_places(court, 1)
    court.monitor._chores._due = {ANNA: time.monotonic() - 1, BEN: time.monotonic() + 3600}
    assert court.monitor._patience() < 0
    court.monitor._keep_time()
    court.monitor._keep_time()
    assert started == [ANNA]
    assert 0 < court.monitor._patience() <= 60


def test_sessions_go_first(court: Court, started: list[Identity]) -> None:
    court.monitor._chores._due = {ANNA: 0.0}
    court.monitor._keep_time()
    with_places(court, 5)
    court.auth.send(Control(Kind.PROVED, 1, ("ben", "ben")).encode())
    court.monitor._queue.append((time.monotonic() + 100, court.monitor._crew, 1))
    court.monitor._chores._due = {ANNA: 0.0}
    court.monitor._keep_time()
    assert started == []
    assert court.monitor._chores._due[ANNA] > time.monotonic()


def test_who_is_at_work_looks_after_his_outbox_himself(
    court: Court, started: list[Identity], talker: Talker
) -> None:
    with_places(court, 5)
    court.monitor._chores._due = {ANNA: 0.0}
    court.monitor._keep_time()
    assert started == []
    assert court.monitor._chores.next() is None


def test_when_it_stops_no_worker_is_started(court: Court, started: list[Identity]) -> None:
    with_places(court, 5)
    court.monitor._chores._due = {ANNA: 0.0}
    court.monitor._stop_at = time.monotonic() + 100
    court.monitor._keep_time()
    assert started == []


# Options that are read again.


def asked_to_reload(court: Court, reload: Callable[[], Change | None]) -> None:
    crew = court.monitor._crew
    crew.plan = dataclasses.replace(crew.plan, reload=reload)
    court.monitor._started = True
    court.monitor._obey_reload()
    assert court.monitor._crews() == [crew]


def test_a_defect_in_reading_options_changes_nothing(
    court: Court, caplog: pytest.LogCaptureFixture
) -> None:
    def defective() -> None:
        raise OSError("no more descriptors")

    asked_to_reload(court, defective)
    assert "nothing has changed: internal error" in caplog.text


def test_who_stops_reads_nothing_again(court: Court) -> None:
    court.monitor._stop_at = time.monotonic() + 100
    asked_to_reload(court, lambda: pytest.fail("read"))


@pytest.mark.parametrize("why", ["another", "stop"])
def test_a_server_that_is_not_to_serve_after_all_keeps_its_clients(court: Court, why: str) -> None:
    """It accepts before the monitor has heard that it is ready."""
    monitor, told = court.monitor, []
    monitor._started = True
    successor = Crew(dataclasses.replace(monitor._plan, reload=lambda: None))
    monitor._change = Change(successor.plan, lambda: None, lambda: told.append("given up"))
    monitor._successor = successor
    others = []
    for post in successor.posts:
        ours, theirs = Channel.pair()
        ours.never_wait()
        post.child = Child(post.birth.name, NOBODY - 2 - len(others), ours)
        monitor._adopt(post.child)
        others.append(theirs)
    if why == "another":
        monitor._obey_reload()
    else:
        monitor._obey_stop(signal.SIGTERM)
    frames = [decode_control(others[1].receive(CONTROL_LIMIT_OCTETS), TO_SERVER)]
    if why == "stop":
        frames.append(decode_control(others[1].receive(CONTROL_LIMIT_OCTETS), TO_SERVER))
    assert [frame.kind for frame in frames] == [Kind.RETIRE, Kind.STOP][: len(frames)]
    assert told == ["given up"]
    for child in successor.children():
        assert child.kill_at is None
    assert monitor._crews()[1:] == [successor]
    for channel in others:
        channel.close()


def test_workers_that_a_change_replaces_keep_nobody_waiting(court: Court) -> None:
    """However many changes there are while their next hops take their time."""
    monitor = court.monitor
    crew, server = monitor._crew, monitor._crew.server.child
    assert server is not None
    crew.proved(5, ANNA)
    others = []
    for number in range(3):
        ours, theirs = Channel.pair()
        ours.never_wait()
        others.append(theirs)
        worker = Worker("worker", NOBODY - 10 - number, ours, identity=ANNA)
        monitor._adopt(worker)
        monitor._workers.add(worker)
        monitor._change = Change(crew.plan, lambda: None, lambda: None)
        monitor._change_over(Crew(crew.plan))
    monitor._grant(server, Control(Kind.GRANT, 5))
    assert [session for _, _, session in monitor._queue] == [5]
    for channel in others:
        channel.close()
