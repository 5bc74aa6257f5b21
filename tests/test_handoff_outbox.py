"""The outbox in real files: who has a pair, and that nothing is there by halves."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import stat
import threading
import time
import tracemalloc

import pytest
from fakes import copy_of
from forking import Child
from outboxes import (
    ARRIVED,
    BODY,
    ORIGIN,
    TO,
    Disk,
    commit,
    copies_of,
    disk,
    fill,
    names,
    small_disk,
    unfill,
)

from tofmipd.content import Content, memory_file
from tofmipd.handoff import durable
from tofmipd.handoff import outbox as outbox_module
from tofmipd.handoff.outbox import BAD, BUSY, CONTENT, ENVELOPE, NEW, WAITING, Outbox, when_due
from tofmipd.handoff.stored import (
    DEFERRED,
    EVENT_LIMIT_OCTETS,
    TAKEN,
    BadEnvelope,
    Event,
    Place,
    encode,
    stored_of,
)

__all__ = ["disk", "small_disk"]

HOUR = 3600.0
TOOK_IT = Event(TAKEN, 1790000001, Place(0, 0), "hop:25", "250 2.0.0 Ok")
SUFFIXES = [".content.", ".envelope."]


@pytest.fixture
def outbox(tmp_path) -> Outbox:
    return Outbox(str(tmp_path / "outbox"))


def aged(outbox: Outbox, seconds: float) -> None:
    """All of it is as old as that."""
    then = time.time() - seconds
    for name in os.listdir(outbox.directory):
        os.utime(os.path.join(outbox.directory, name), (then, then), follow_symlinks=False)


def killed(act) -> None:
    """Let a child do that, and die of SIGKILL."""

    def live() -> None:
        kept = act()
        assert kept is not None
        os.kill(os.getpid(), signal.SIGKILL)

    assert Child(live).end().status == -signal.SIGKILL


# Drafts.


def test_a_committed_message_is_what_was_prepared(outbox):
    copies = copies_of(TO[:2], TO[2:], ret="FULL")
    due = time.time() + HOUR
    with outbox.prepare(copies, ORIGIN) as draft:
        assert names(outbox) == [".content.", ".envelope.new"]
        draft.commit([TOOK_IT], due)
    assert names(outbox) == SUFFIXES
    (entry,) = outbox.entries()
    assert (entry.id, entry.state) == (draft.id, WAITING)
    assert entry.due == pytest.approx(due, abs=1e-3)
    with outbox.take(draft.id) as pair:
        assert pair.stored == stored_of(copies, ORIGIN)
        assert pair.history.last == {Place(0, 0): TOOK_IT}
        for number, copy in enumerate(copies):
            read = pair.copy(number)
            assert (read.sender, read.recipients) == (copy.sender, copy.recipients)
            assert b"".join(read.blocks()) == copy.header + BODY
            assert read.size_octets == copy.size_octets
        assert pair.copy(0, [1]).recipients == TO[1:2]


def test_the_files_are_their_owners_alone_and_hold_no_more_than_they_say(outbox):
    copies = copies_of(TO)
    id_ = commit(outbox, copies, TOOK_IT)
    assert os.stat(outbox.directory).st_mode & 0o777 == 0o700
    for name in os.listdir(outbox.directory):
        assert os.stat(os.path.join(outbox.directory, name)).st_mode & 0o777 == 0o600
    with open(outbox.path(id_, ENVELOPE), "rb") as envelope:
        assert envelope.read() == encode(stored_of(copies, ORIGIN)) + TOOK_IT.encode()
    with open(outbox.path(id_, CONTENT), "rb") as content:
        assert content.read() == copies[0].header + BODY


@pytest.mark.parametrize("how", ["left", "raised", "discarded"])
def test_a_draft_that_is_not_committed_leaves_nothing(how, outbox):
    try:
        with outbox.prepare(copies_of(TO), ORIGIN) as draft:
            if how == "discarded":
                draft.discard()
            if how == "raised":
                raise KeyError
    except KeyError:
        pass
    assert names(outbox) == []


def test_a_name_that_is_in_use_is_not_touched(outbox):
    id_ = commit(outbox, copies_of(TO))
    with pytest.raises(FileExistsError):
        outbox.prepare([copy_of(b"another\r\n")], ORIGIN, id_)
    assert names(outbox) == SUFFIXES
    with outbox.take(id_) as pair:
        assert b"".join(pair.copy(0).blocks()).endswith(BODY)


def test_two_outboxes_of_one_directory_have_names_of_their_own(outbox):
    """As two containers that share a disk, in each of which the process has the same number."""
    other = Outbox(outbox.directory)
    ids = {commit(one, copies_of(TO)) for _ in range(20) for one in (outbox, other)}
    assert len(ids) == 40
    assert {entry.id for entry in outbox.entries()} == ids


def test_a_big_message_is_not_held_in_memory(outbox):
    with memory_file(*[bytes(1 << 20)] * 30) as file:
        content = Content.of_file(os.dup(file.fileno()), 30 << 20)
    copies = [dataclasses.replace(copies_of(TO)[0], content=content)]
    tracemalloc.start()
    try:
        with outbox.take(commit(outbox, copies)) as pair:
            size = sum(map(len, pair.copy(0).blocks()))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert size > 30 << 20


def test_what_a_crash_has_left_of_a_draft_is_forgotten_but_no_message(outbox):
    killed(lambda: outbox.prepare(copies_of(TO), ORIGIN, "report"))
    assert sorted(os.listdir(outbox.directory)) == ["report.content", "report.envelope.new"]
    outbox.forget("report")
    assert names(outbox) == []
    with outbox.prepare(copies_of(TO), ORIGIN, "report") as draft:
        outbox.forget("report")
        draft.commit([], 0)
    outbox.forget("report")
    with outbox.take("report") as pair:
        assert pair.stored.copies[0].recipients == TO
    with open(outbox.path("alone", CONTENT), "wb"):
        pass
    outbox.forget("alone")
    assert len(os.listdir(outbox.directory)) == 2


def test_a_draft_is_flushed_before_it_counts(outbox, disk: Disk):
    with outbox.prepare(copies_of(TO), ORIGIN) as draft:
        assert "fsync directory" in disk.calls  # that of the outbox's own name
        del disk.calls[:]
        draft.commit([TOOK_IT], 5)
    assert disk.calls == [
        "pwrite .envelope.new",
        "fsync .content",
        "fsync .envelope.new",
        "utime .envelope.new",
        "rename .envelope.new",
        "fsync directory",
    ]


# A full disk.


def test_at_whatever_call_the_disk_is_full_nothing_half_written_stays(outbox, disk: Disk):
    commit(outbox, copies_of(TO))
    del disk.calls[:]
    commit(outbox, copies_of(TO, TO), TOOK_IT)
    count, before = len(disk.calls), os.listdir(outbox.directory)
    assert count > 10
    for full_at in range(1, count + 1):
        disk.calls, disk.full_at = [], full_at
        with pytest.raises(OSError, match="No space left"):
            commit(outbox, copies_of(TO, TO), TOOK_IT)
        assert os.listdir(outbox.directory) == before, disk.calls
    disk.full_at = count + 1
    disk.calls = []
    assert outbox.take(commit(outbox, copies_of(TO, TO), TOOK_IT)) is not None


@pytest.mark.parametrize("call", ["fsync", "rename", "utime", "posix_fallocate", "write_all"])
def test_what_cannot_be_kept_is_not_there(call, outbox, disk: Disk):
    os.mkdir(outbox.directory)
    disk.only, disk.error = call, errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        commit(outbox, copies_of(TO))
    assert names(outbox) == []


def test_a_file_system_that_cannot_reserve_is_good_enough(outbox, disk: Disk):
    disk.only, disk.error = "posix_fallocate", errno.EOPNOTSUPP
    with outbox.take(commit(outbox, copies_of(TO))) as pair:
        pair.reserve(3)
        pair.tell(TOOK_IT)
    with outbox.take(pair.id) as pair:
        assert pair.history.last == {Place(0, 0): TOOK_IT}


@pytest.mark.root
def test_what_was_reserved_for_can_be_told_on_a_full_disk(small_disk):
    """The next hop would get the message again if this were not written down."""
    outbox = Outbox(str(small_disk / "outbox"))
    everybody = tuple(b"%040d@example.net" % number for number in range(50))
    pair = outbox.take(commit(outbox, copies_of(everybody)))
    events = [
        Event(TAKEN, 1790000001, Place(0, number), "hop:25", "x" * 400)
        for number in range(len(everybody))
    ]
    pair.reserve(len(events))
    fill(small_disk)
    pair.tell(*events)
    pair.let_go()
    with outbox.take(pair.id) as again:
        assert again.history.waiting(again.stored) == []


@pytest.mark.root
def test_room_that_cannot_be_reserved_is_no_half_event(small_disk):
    outbox = Outbox(str(small_disk / "outbox"))
    id_ = commit(outbox, copies_of(TO))
    fill(small_disk)
    with outbox.take(id_) as pair, pytest.raises(OSError, match="No space left"):
        pair.reserve(100)
    unfill(small_disk)
    with outbox.take(id_) as pair:
        assert pair.history.last == {}


# Pairs.


def test_what_is_told_is_there_for_the_next(outbox):
    id_ = commit(outbox, copies_of(TO))
    with outbox.take(id_) as pair:
        pair.reserve(3)
        pair.tell(TOOK_IT)
        pair.tell()
        pair.tell(Event(DEFERRED, 1790000002, Place(0, 1), "", "451 later"))
        assert pair.history.waiting(pair.stored) == [Place(0, 1), Place(0, 2)]
    with open(outbox.path(id_, ENVELOPE), "rb") as envelope:
        assert b"\0" not in envelope.read()
    with outbox.take(id_) as pair:
        assert pair.history.waiting(pair.stored) == [Place(0, 1), Place(0, 2)]


def test_what_is_told_is_flushed(outbox, disk: Disk):
    with outbox.take(commit(outbox, copies_of(TO))) as pair:
        del disk.calls[:]
        pair.tell(TOOK_IT)
        assert disk.calls == ["pwrite .envelope", "fdatasync .envelope"]


@pytest.mark.parametrize("end", [1, 5, 20, len(TOOK_IT.encode()) - 1])
@pytest.mark.parametrize("room", [0, EVENT_LIMIT_OCTETS])
def test_after_a_line_that_was_cut_off_the_next_one_counts(end, room, outbox):
    id_ = commit(outbox, copies_of(TO))
    with open(outbox.path(id_, ENVELOPE), "ab") as envelope:
        envelope.write(TOOK_IT.encode()[:end] + bytes(room))
    for number in (1, 2):
        with outbox.take(id_) as pair:
            pair.tell(Event(TAKEN, 1790000009, Place(0, number)))
    with outbox.take(id_) as pair:
        assert pair.history.waiting(pair.stored) == [Place(0, 0)]


def test_the_names_show_how_a_pair_stands(outbox):
    id_ = commit(outbox, copies_of(TO))
    due = time.time() + HOUR
    pair = outbox.take(id_)
    pair.mark(BUSY)
    assert names(outbox) == [".content.", ".envelope.busy"]
    assert (outbox.has(id_), outbox.waits(id_)) == (True, True)
    pair.put_off(due)
    pair.let_go()
    pair.let_go()
    assert names(outbox) == SUFFIXES
    assert outbox.entries()[0].due == pytest.approx(due, abs=1e-3)
    with outbox.take(id_) as pair:
        assert pair.due == pytest.approx(due, abs=1e-3)
        pair.mark(BAD)
    assert names(outbox) == [".content.", ".envelope.bad"]
    assert (outbox.has(id_), outbox.waits(id_)) == (True, False)
    with outbox.take(id_) as pair:
        pair.mark(BUSY)
        pair.remove()
    assert names(outbox) == []
    assert (outbox.has(id_), outbox.waits(id_)) == (False, False)
    assert outbox.take(id_) is None


def test_nobody_else_gets_a_pair_before_it_is_let_go(outbox):
    draft = outbox.prepare(copies_of(TO), ORIGIN)
    assert outbox.take(draft.id) is None
    draft.commit([], 0)
    with outbox.take(draft.id) as pair:
        for state in (BUSY, BAD, WAITING):
            assert outbox.take(draft.id) is None
            assert Child(lambda: outbox.take(draft.id)).end() == (0, "")
            pair.mark(state)
    assert outbox.take(draft.id) is not None


def test_a_pair_of_a_process_that_was_killed_is_free(outbox):
    id_ = commit(outbox, copies_of(TO))

    def take():
        pair = outbox.take(id_)
        pair.mark(BUSY)
        pair.reserve(10)
        pair.tell(TOOK_IT)
        return pair

    killed(take)
    assert names(outbox) == [".content.", ".envelope.busy"]
    with outbox.take(id_) as pair:
        assert (pair.state, pair.history.waiting(pair.stored)) == (BUSY, [Place(0, 1), Place(0, 2)])
    assert names(outbox) == SUFFIXES


@pytest.mark.parametrize("held", ["pair", "draft"])
def test_what_somebody_has_forked_holds_no_lock(held, outbox):
    reader, writer = os.pipe()
    with outbox.prepare(copies_of(TO), ORIGIN) as draft:
        if held == "pair":
            draft.commit([], 0)
        pair = outbox.take(draft.id)
        child = Child(lambda: os.read(reader, 1) and None)
        if pair is None:
            draft.commit([], 0)
        else:
            pair.let_go()
    assert outbox.take(draft.id) is not None
    os.write(writer, b"x")
    assert child.end().status == 0
    os.close(reader)
    os.close(writer)


def test_who_opens_an_envelope_just_before_it_gets_another_name_sees_that(outbox, monkeypatch):
    id_ = commit(outbox, copies_of(TO))
    first = outbox.take(id_)
    usual = durable.open_plain

    def open_plain(path: str, flags: int) -> int:
        descriptor = usual(path, flags)
        first.mark(BAD)
        first.let_go()
        return descriptor

    monkeypatch.setattr(durable, "open_plain", open_plain)
    with outbox.take(id_) as second:
        assert second.state == BAD


@pytest.mark.parametrize("state", [WAITING, BUSY])
def test_of_many_takers_each_pair_has_one(state, outbox):
    """Two processes of eight threads each, and a hundred pairs, some left by the dead."""
    ids = [commit(outbox, copies_of(TO[:1])) for _ in range(100)]
    for id_ in ids:
        if state == BUSY:
            os.rename(outbox.path(id_, ENVELOPE), outbox.path(id_, ENVELOPE + BUSY))

    def take_all() -> str:
        taken: list[str] = []

        def run() -> None:
            for id_ in ids:
                pair = outbox.take(id_)
                if pair is not None:
                    with pair:
                        pair.mark(BUSY)
                        if not pair.history.tries:
                            taken.append(id_)
                        pair.tell(Event("Tried", 5))
                        if pair.history.tries > 3:
                            pair.remove()

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return " ".join(taken)

    children = [Child(take_all), Child(take_all)]
    ends = [child.end() for child in children]
    assert [end.status for end in ends] == [0, 0]
    assert sorted(" ".join(end.said for end in ends).split()) == sorted(ids)
    assert {entry.state for entry in outbox.entries()} <= {WAITING}


# What else may be in the place of files.


def put(kind: str, path: str) -> None:
    match kind:
        case "link":
            os.symlink("/etc/passwd", path)
        case "dangling link":
            os.symlink("/nonexistent", path)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            os.mkdir(path)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        case "garbage":
            with open(path, "wb") as file:
                file.write(os.urandom(500))
        case "nothing":
            with open(path, "wb"):
                pass


KINDS = ["link", "dangling link", "fifo", "directory", "socket", "garbage", "nothing"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [WAITING, BUSY])
def test_what_is_no_envelope_is_put_aside(kind, state, outbox):
    os.mkdir(outbox.directory)
    put(kind, outbox.path("x", ENVELOPE + state))
    assert [entry.id for entry in outbox.entries()] == ["x"]
    with pytest.raises(BadEnvelope):
        outbox.take("x")
    outbox.spoil("x")
    assert [(entry.id, entry.state) for entry in outbox.entries()] == [("x", BAD)]


@pytest.mark.parametrize("kind", [*KINDS[:5], "nothing", "gone"])
def test_what_is_no_content_is_not_sent(kind, outbox):
    id_ = commit(outbox, copies_of(TO))
    os.unlink(outbox.path(id_, CONTENT))
    if kind != "gone":
        put(kind, outbox.path(id_, CONTENT))
    with outbox.take(id_) as pair, pytest.raises(BadEnvelope):
        pair.copy(0)
    outbox.spoil(id_)
    assert [entry.state for entry in outbox.entries()] == [BAD]


def test_an_envelope_without_end_is_not_read(outbox, monkeypatch):
    id_ = commit(outbox, copies_of(TO))
    monkeypatch.setattr(outbox_module, "_ENVELOPE_LIMIT_OCTETS", 10)
    with pytest.raises(BadEnvelope, match="too long"):
        outbox.take(id_)


def test_only_envelopes_are_entries(outbox):
    assert outbox.entries() == []
    os.mkdir(outbox.directory)
    for name in (ENVELOPE, "x.envelope.old", "x.content", ".x", "envelope", "x.envelope~"):
        put("nothing", os.path.join(outbox.directory, name))
    assert outbox.entries() == []


def test_ten_thousand_messages_are_no_trouble(outbox):
    os.mkdir(outbox.directory)
    for number in range(10_000):
        put("nothing", outbox.path(f"{number}", ENVELOPE))
    assert len(outbox.entries()) == 10_000


@pytest.mark.parametrize(
    ("modified", "due"),
    [(0, 0), (999, 999), (1000 + 4.5 * HOUR, 1000 + 4.5 * HOUR), (1000 + 6 * HOUR, 1000)],
)
def test_a_time_that_no_pause_leads_to_is_now(modified, due):
    assert when_due(modified, now=1000) == due


# Sweeping.


def test_drafts_of_the_dead_are_swept_when_they_are_old(outbox):
    killed(lambda: outbox.prepare(copies_of(TO), ORIGIN))
    assert outbox.sweep() == 0
    assert len(os.listdir(outbox.directory)) == 2
    aged(outbox, 700)
    assert outbox.sweep() == 1
    assert os.listdir(outbox.directory) == []


def test_drafts_of_the_living_are_not_swept(outbox):
    with outbox.prepare(copies_of(TO), ORIGIN) as draft:
        aged(outbox, HOUR)
        assert outbox.sweep() == 0
        assert Child(outbox.sweep).end().said == "0\n"
        draft.commit([], 0)
    with outbox.take(draft.id) as pair:
        assert pair.copy(0).recipients == TO


def test_content_without_an_envelope_is_swept_when_it_is_old(outbox):
    os.mkdir(outbox.directory)
    put("nothing", outbox.path("x", CONTENT))
    outbox.sweep()
    assert os.listdir(outbox.directory) == ["x.content"]
    aged(outbox, HOUR)
    outbox.sweep()
    assert os.listdir(outbox.directory) == []


@pytest.mark.parametrize("state", [WAITING, BUSY, BAD])
def test_a_message_is_not_swept_however_old(state, outbox):
    id_ = commit(outbox, copies_of(TO))
    with outbox.take(id_) as pair:
        pair.mark(state)
    aged(outbox, 100 * HOUR)
    assert outbox.sweep() == 0
    with outbox.take(id_) as pair:
        assert pair.copy(0).recipients == TO


def test_a_message_that_the_listing_has_missed_is_not_swept(outbox, monkeypatch):
    """A directory that is read while a file in it is renamed need not show either name."""
    id_ = commit(outbox, copies_of(TO))
    aged(outbox, HOUR)
    monkeypatch.setattr(outbox, "entries", list)
    outbox.sweep()
    with outbox.take(id_) as pair:
        assert pair.copy(0).recipients == TO


def test_what_cannot_be_removed_does_not_keep_sweeping_from_the_rest(outbox):
    os.mkdir(outbox.directory)
    for kind in ("directory", "link", "fifo"):
        put(kind, outbox.path(f"a {kind}", CONTENT))
        put(kind, outbox.path(f"b {kind}", ENVELOPE + NEW))
    put("nothing", outbox.path("z", CONTENT))
    aged(outbox, HOUR)
    outbox.sweep()
    assert not os.path.exists(outbox.path("z", CONTENT))


def test_there_is_nothing_to_sweep_where_there_is_no_outbox(outbox):
    assert outbox.sweep() == 0
    assert not os.path.exists(outbox.directory)


def test_the_time_of_arrival_is_kept(outbox):
    with outbox.take(commit(outbox, copies_of(TO))) as pair:
        assert pair.stored.origin.arrived == ARRIVED
