"""The monitor's order of things, with hand-made children; the system tests run the whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tofmipd.privsep.channel import Channel
from tofmipd.privsep.children import Birth, Child
from tofmipd.privsep.frames import CONTROL_LIMIT_OCTETS, TO_SERVER, Control, Kind, decode_control
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.monitor import Monitor
from tofmipd.privsep.plan import Plan

# No process has this number, so that nothing is killed.
NOBODY = 2**31 - 1


@dataclass
class Court:
    """A monitor, and the other ends of the channels to its server and auth."""

    monitor: Monitor
    server: Channel
    auth: Channel

    def turn(self) -> None:
        child = self.monitor._server.child
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
    for post in (monitor._server, monitor._auth):
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
    assert court.monitor._offences == 0
    assert court.monitor._sessions[last] == Identity("anna", "anna")
    assert [session for _, session in court.monitor._queue] == [last]


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
    assert court.monitor._offences == 1
