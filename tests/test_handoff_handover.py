"""Copies on their way out while the client waits: what it hears, and what the outbox has then."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field

import pytest
from outboxes import LATER, NEVER, ORIGIN, TO, Disk, Scripted, copies_of, disk, names

from tofmipd.handoff.attempt import Rules
from tofmipd.handoff.handover import HandedOver, hand_over, keep
from tofmipd.handoff.outbox import Outbox
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.stored import DEFERRED, REFUSED, TAKEN, stored_of

__all__ = ["disk"]

A, B, C = TO
LEFT_LATER = "250 2.0.0 Ok: taken for 1 of 3 recipients, queued as {id} for the others"
STOPPED = "451 4.3.0 taken for 1 of 3 recipients, then: later"
NO_ROOM = "451 4.3.0 Error: your message cannot be kept here now, try again later"


@dataclass
class Desk:
    """Hands copies over to a transport by script; what is told of it is kept."""

    outbox: Outbox
    told: list[tuple[int, str]] = field(default_factory=list)
    kept: list[tuple[int, str]] = field(default_factory=list)
    added: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.retries = Retries(self.outbox, Rules("host.example"), print)
        # Nothing is tried in these tests.
        self.retries.add = lambda id_, due: self.added.append((id_, due))

    def hand_over(self, copies, *answers, retries=True) -> HandedOver:
        self.hop = Scripted(list(answers))
        return hand_over(
            copies,
            self.hop,
            ORIGIN,
            self.retries if retries else None,
            lambda number, said: self.told.append((number, said)),
            lambda number, queue: self.kept.append((number, queue)),
        )

    def left(self):
        """The only message in the outbox: its text, and the last event of each recipient."""
        (entry,) = self.outbox.entries()
        with self.outbox.take(entry.id) as pair:
            last = {place: event.what for place, event in pair.history.last.items()}
            return entry, pair.stored, last


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(Outbox(str(tmp_path / "outbox")))


@pytest.mark.parametrize("copies", [[TO], [(A,), (B, C)], [(A,), (B,), (C,)]])
def test_what_is_taken_leaves_nothing(copies, desk):
    reply, count = desk.hand_over(copies_of(*copies), {})
    assert str(reply) == "250 2.0.0 Ok: sent"
    assert count == len(copies)
    assert desk.told == [(number, "250 2.0.0 Ok") for number in range(len(copies))]
    assert (names(desk.outbox), desk.added) == ([], [])


@pytest.mark.parametrize("copies", [[TO], [(A,), (B, C)]])
@pytest.mark.parametrize("answer", [LATER, NEVER])
def test_until_the_first_copy_is_taken_a_refusal_is_the_clients(answer, copies, desk):
    assert desk.hand_over(copies_of(*copies), answer) == (answer, 0)
    assert (names(desk.outbox), desk.added, desk.told) == ([], [], [])


def test_one_copy_needs_no_outbox(desk, disk: Disk):
    disk.full_at = 0
    reply, _ = desk.hand_over(copies_of(TO), {})
    assert str(reply) == "250 2.0.0 Ok: sent"
    assert disk.calls == []


def test_the_outbox_is_prepared_before_the_first_copy_and_not_flushed_in_vain(desk, disk: Disk):
    os.mkdir(desk.outbox.directory)

    def look(copy):
        assert names(desk.outbox) == [".content.", ".envelope.new"]
        return {}

    desk.hand_over(copies_of((A,), (B, C)), look)
    assert not [call for call in disk.calls if "sync" in call]


def test_what_is_left_goes_to_the_outbox(desk, caplog):
    before = time.time()
    copies = copies_of((A,), (B, C))
    with caplog.at_level(logging.WARNING):
        reply, count = desk.hand_over(copies, {}, LATER)
    entry, stored, last = desk.left()
    assert str(reply) == LEFT_LATER.format(id=entry.id)
    assert count == 2
    assert stored == stored_of(copies, ORIGIN)
    assert last == {(0, 0): TAKEN, (1, 0): DEFERRED, (1, 1): DEFERRED}
    assert desk.told == [(0, "250 2.0.0 Ok")]
    ((id_, due),) = desk.added
    assert id_ == entry.id
    assert entry.due == pytest.approx(due, abs=1e-3)
    assert 50 < due - before < 80
    assert "s=7f3a 1 of 3 recipients have this message, the outbox has it" in caplog.text


def test_copies_that_were_not_offered_wait_too(desk):
    desk.hand_over(copies_of((A,), (B,), (C,)), {}, LATER)
    entry, _, last = desk.left()
    assert last == {(0, 0): TAKEN, (1, 0): DEFERRED}
    assert desk.kept == [(1, entry.id), (2, entry.id)]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ((B,), {(0, 0): TAKEN, (1, 0): REFUSED}),
        # Which of them was refused nobody has said: the others must not pay for it.
        ((B, C), {(0, 0): TAKEN, (1, 0): DEFERRED, (1, 1): DEFERRED}),
    ],
)
def test_a_refusal_that_comes_late_is_the_outboxes(rest, expected, desk, caplog):
    reply, _ = desk.hand_over(copies_of((A,), rest, (C,)), {}, NEVER)
    assert reply.code == 250
    entry, _, last = desk.left()
    assert last == expected
    assert desk.added[0][1] <= time.time()
    # Of everybody who does not have it yet there is a line: he is refused, or kept.
    refused = [one for one in caplog.messages if one.startswith("s=7f3a refused to=")]
    assert len(refused) == (REFUSED in expected.values())
    assert all(f" queue={entry.id} delay=" in line for line in refused)
    assert [number for number, _ in desk.kept] == ([2] if refused else [1, 2])


def test_the_message_is_on_the_disk_before_the_client_hears_of_it(desk, disk: Disk):
    os.mkdir(desk.outbox.directory)
    desk.hand_over(copies_of((A,), (B,)), {}, LATER)
    assert disk.calls[-5:] == [
        "fsync .content",
        "fsync .envelope.new",
        "utime .envelope.new",
        "rename .envelope.new",
        "fsync directory",
    ]


def test_at_whatever_call_the_disk_is_full_nobody_has_it_or_the_client_hears_who_has(
    desk, disk: Disk
):
    """Once the first copy is taken only flushing can fail: its room is there."""
    copies = copies_of((A,), (B, C))
    desk.hand_over(copies, {}, LATER)
    desk.outbox.take(desk.left()[0].id).remove()
    disk.calls.clear()
    desk.hand_over(copies, {}, LATER)
    desk.outbox.take(desk.left()[0].id).remove()
    prepared = next(n for n, call in enumerate(disk.calls, 1) if call.startswith("posix_fallocate"))
    count = next(n for n, call in enumerate(disk.calls, 1) if call == "fsync directory")
    desk.added.clear()
    for full_at in range(1, count + 1):
        disk.calls, disk.full_at = [], full_at
        reply, _ = desk.hand_over(copies, {}, LATER)
        if full_at <= prepared:
            assert str(reply) == NO_ROOM
            assert desk.hop.copies == []
        else:
            assert str(reply) == STOPPED
        assert (names(desk.outbox), desk.added) == ([], [])


def test_a_directory_that_cannot_be_written_is_said_before_anything_is_sent(tmp_path, caplog):
    (tmp_path / "outbox").write_bytes(b"")
    desk = Desk(Outbox(str(tmp_path / "outbox")))
    reply, count = desk.hand_over(copies_of((A,), (B,)), {})
    assert (str(reply), count) == (NO_ROOM, 0)
    assert desk.hop.copies == []
    assert f"the outbox {tmp_path}/outbox cannot be written: Not a directory" in caplog.text


def test_without_an_outbox_the_client_hears_how_many_have_it(desk):
    reply, count = desk.hand_over(copies_of((A,), (B, C)), {}, LATER, retries=False)
    assert (str(reply), count) == (STOPPED, 1)
    assert names(desk.outbox) == []


# Defects of ours, and of what stands behind us.


def explode(*ignored):
    raise ZeroDivisionError


def test_a_defect_before_the_first_copy_is_for_the_session_to_tell(desk):
    with pytest.raises(ZeroDivisionError):
        desk.hand_over(copies_of((A,), (B,)), explode)
    assert names(desk.outbox) == []


def test_a_defect_after_the_first_copy_loses_nothing(desk, caplog):
    reply, count = desk.hand_over(copies_of((A,), (B, C)), {}, explode)
    assert (reply.code, count) == (250, 2)
    assert desk.left()[2] == {(0, 0): TAKEN, (1, 0): DEFERRED, (1, 1): DEFERRED}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(("copies", "left"), [([TO], 0), ([(A,), (B,)], 1)])
def test_who_cannot_be_told_of_a_copy_does_not_undo_it(copies, left, desk):
    hop = Scripted([{}])
    reply, _ = hand_over(copies_of(*copies), hop, ORIGIN, desk.retries, explode)
    assert reply.code == 250
    assert len(hop.copies) == 1
    assert len(desk.outbox.entries()) == left


# Everything by way of the outbox.


def test_what_is_kept_is_offered_to_nobody_yet(desk, disk: Disk):
    os.mkdir(desk.outbox.directory)
    copies = copies_of((A,), (B, C))
    kept: list[tuple[int, str]] = []
    told = lambda number, queue: kept.append((number, queue))  # noqa: E731
    reply, count = keep(copies, ORIGIN, desk.retries, told)
    assert disk.calls[-1] == "fsync directory"
    entry, stored, last = desk.left()
    assert (str(reply), count) == (f"250 2.0.0 Ok: queued as {entry.id}", 2)
    assert kept == [(0, entry.id), (1, entry.id)]
    assert (stored, last) == (stored_of(copies, ORIGIN), {})
    assert [id_ for id_, _ in desk.added] == [entry.id]
    assert entry.due <= time.time()


def test_what_cannot_be_kept_is_the_clients(desk, disk: Disk):
    disk.full_at = 0
    reply, count = keep(copies_of((A,)), ORIGIN, desk.retries)
    assert (str(reply), count) == (NO_ROOM, 0)
    assert (names(desk.outbox), desk.added) == ([], [])
