"""What a process leaves in the outbox that was killed, and what others do about it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fakes import copy_of

from tofmipd.handoff.attempt import Rules
from tofmipd.handoff.outbox import CONTENT, ENVELOPE, NEW, Outbox
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.stored import REFUSED, Event, Origin, Place

ORIGIN = Origin("bobby", "1", time.time())
REPORT = "one.b1.0"


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    """In which one message was refused, and its sender does not know."""
    outbox = Outbox(str(tmp_path / "outbox"))
    with outbox.prepare([copy_of()], ORIGIN, "one") as draft:
        draft.commit([Event(REFUSED, 0, Place(0, 0), "x", "550 no")], time.time() + 1000)
    return outbox


def names(outbox: Outbox) -> list[str]:
    return sorted(path.name for path in Path(outbox.directory).iterdir())


def retries_of(outbox: Outbox) -> Retries:
    """They begin nothing by themselves."""
    retries = Retries(outbox, Rules("example.org"), lambda *line: None)
    retries.stop(1)
    return retries


def attend(outbox: Outbox) -> None:
    assert retries_of(outbox).try_now("one") is None


@pytest.mark.parametrize("left", [[ENVELOPE + NEW], [CONTENT], [ENVELOPE + NEW, CONTENT], []])
def test_a_report_that_was_being_written_is_written_again(left, outbox):
    for suffix in left:
        Path(outbox.path(REPORT, suffix)).write_bytes(b"Format: tof")
    attend(outbox)
    assert names(outbox) == [REPORT + CONTENT, REPORT + ENVELOPE]
    with outbox.take(REPORT) as pair:
        assert pair.stored.copies[0].recipients == (b"a@example.org",)


def test_a_report_that_was_committed_is_not_written_again(outbox):
    with outbox.prepare([copy_of(b"first\r\n", sender=b"")], ORIGIN, REPORT) as draft:
        draft.commit([], time.time() + 1000)
    attend(outbox)
    assert names(outbox) == [REPORT + CONTENT, REPORT + ENVELOPE]
    with outbox.take(REPORT) as pair:
        assert b"".join(pair.copy(0).blocks()).endswith(b"first\r\n")


def test_a_message_that_another_process_has_is_looked_at_again(outbox):
    retries = retries_of(outbox)
    with Outbox(outbox.directory).take("one") as pair:
        now = time.time()
        assert now < retries.try_now("one") <= now + 100
        pair.remove()
    assert retries.try_now("one") is None


def test_the_beginning_of_a_report_is_swept_away_and_the_committed_one_stays(outbox):
    Path(outbox.path("one", ENVELOPE + NEW)).write_bytes(b"")
    Path(outbox.path("two", ENVELOPE + NEW)).write_bytes(b"")
    Path(outbox.path("two", CONTENT)).write_bytes(b"")
    for path in Path(outbox.directory).iterdir():
        os.utime(path, (0, 0))
    assert outbox.sweep() == 2
    assert names(outbox) == ["one" + CONTENT, "one" + ENVELOPE]


def test_what_somebody_is_writing_is_not_cleared_away(outbox):
    with outbox.prepare([copy_of()], ORIGIN, "two") as draft:
        Outbox(outbox.directory).forget("two")
        draft.commit([], time.time())
    assert "two" + ENVELOPE in names(outbox)
