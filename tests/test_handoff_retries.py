"""What becomes of a message in the outbox: attempts, pauses, reports; a transport by script."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from fakes import PATIENCE_SECONDS, wait_for
from forking import Child
from outboxes import ARRIVED, BODY, LATER, NEVER, TO, Disk, Scripted, commit, copies_of, disk, names

from tofmipd.handoff import bounce, retries
from tofmipd.handoff.attempt import Rules
from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.outbox import BAD, BUSY, CONTENT, ENVELOPE, NEW, Outbox
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.stored import DEFERRED, REFUSED, TAKEN, TOLD, TRIED, Event, Origin, Place

__all__ = ["disk"]

HOUR = 3600.0
A, B, C = TO


@dataclass
class Bench:
    """An outbox, what looks after it, and the script of its transport."""

    outbox: Outbox
    hop: Scripted
    rules: Rules = field(default_factory=lambda: Rules("host.example"))
    asked: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.retries = Retries(self.outbox, self.rules, self.note)
        self.retries.transports = self._transport

    def _transport(self, login: str, address: str) -> Scripted:
        self.asked.append((login, address))
        return self.hop

    def note(self, text: str, *values: object) -> None:
        self.notes.append(text % values)

    def commit(self, *recipients, events=(), due=0.0, parameters=None, **origin) -> str:
        origin = {"arrived": time.time()} | origin
        copies = copies_of(*recipients, **parameters or {})
        return commit(self.outbox, copies, *events, due=due, **origin)

    def history(self, id_: str):
        """Each recipient's last event, and the number of attempts."""
        with self.outbox.take(id_) as pair:
            found = [event.what for _, event in sorted(pair.history.last.items())]
            return found, pair.history.tries

    def settle(self) -> None:
        """Wait until the threads leave the outbox alone."""
        wait_for(lambda: not self.retries.occupied(30))

    def due_in(self, id_: str) -> float:
        (entry,) = (one for one in self.outbox.entries() if one.id == id_)
        return entry.due - time.time()

    def reports(self) -> list[bytes]:
        """What has come to the transport from nobody."""
        # One may just be coming in.
        pairs = zip(self.hop.copies, self.hop.texts, strict=False)
        return [text for copy, text in pairs if copy.sender == b""]


@pytest.fixture
def make(tmp_path) -> Iterator[Callable[..., Bench]]:
    made = []

    def make(*answers, **rules) -> Bench:
        outbox = Outbox(str(tmp_path / "outbox"))
        bench = Bench(outbox, Scripted(list(answers or [{}])), Rules("host.example", **rules))
        made.append(bench)
        return bench

    yield make
    for bench in made:
        assert bench.retries.stop(PATIENCE_SECONDS)


# One attempt.


def test_a_message_that_is_taken_is_done_with(make):
    bench = make()
    id_ = bench.commit((A, B), (C,), login="größe", local_address="192.0.2.1")
    assert bench.retries.try_now(id_) is None
    assert bench.hop.recipients() == [(A, B), (C,)]
    assert bench.hop.texts == [b"Subject: %d\r\n\r\n" % n + BODY for n in (1, 2)]
    assert bench.asked == [("größe", "192.0.2.1")]
    assert names(bench.outbox) == []
    assert [note.split(" sender=")[0] for note in bench.notes] == [
        f"s=7f3a sent to={one.decode()!r}" for one in TO
    ]


def test_who_has_it_does_not_get_it_again(make):
    bench = make(LATER, {}, {})
    id_ = bench.commit((A, B), (C,), events=[Event(TAKEN, 5, Place(0, 1))])
    assert bench.retries.try_now(id_) is not None
    assert bench.hop.recipients() == [(A,), (C,)]
    assert bench.history(id_) == ([DEFERRED, TAKEN, TAKEN], 1)
    assert bench.retries.try_now(id_) is None
    assert bench.hop.recipients() == [(A,), (C,), (A,)]


def test_what_is_known_of_each_recipient_is_kept_apart(make):
    bench = make({A: NEVER, B: LATER}, {})
    id_ = bench.commit(TO)
    bench.retries.try_now(id_)
    bench.settle()
    assert bench.history(id_) == ([TOLD, DEFERRED, TAKEN], 1)
    assert bench.retries.try_now(id_) is None
    wait_for(lambda: names(bench.outbox) == [])
    assert sorted(bench.hop.recipients()) == [TO, (B,), (b"bobby-1@example.org",)]


def test_what_is_gone_or_somebody_elses_is_left_alone(make):
    bench = make()
    assert bench.retries.try_now("nothing") is None
    id_ = bench.commit((A,))
    with bench.outbox.take(id_):
        # Who has it may yet die of it.
        assert bench.retries.try_now(id_) > time.time()
    assert bench.hop.copies == []


@pytest.mark.parametrize(
    ("tries", "least", "most"),
    [(0, 54, 66), (1, 54, 66), (2, 108, 132), (3, 216, 264), (8, 6912, 8448), (9, 12960, 15840)]
    + [(tries, 12960, 15840) for tries in (10, 30, 5000)],
)
def test_pauses_double_up_to_four_hours(tries, least, most):
    pauses = {Rules("host.example").pause_seconds(tries) for _ in range(50)}
    assert len(pauses) > 1
    assert least <= min(pauses) <= max(pauses) <= most


def test_each_attempt_puts_the_next_one_off(make):
    bench = make(LATER)
    id_ = bench.commit((A,))
    for tries, pause in ((1, 60), (2, 120), (3, 240)):
        due = bench.retries.try_now(id_)
        assert due - time.time() == pytest.approx(pause, rel=0.2)
        assert bench.due_in(id_) == pytest.approx(pause, rel=0.2)
        assert bench.history(id_) == ([DEFERRED], tries)


@pytest.mark.parametrize(("reply", "wait"), [(NEVER, 0), (LATER, 60)])
def test_after_a_refusal_the_first_attempt_comes_at_once(reply, wait, make):
    due = make().retries.first_due(reply)
    assert due - time.time() == pytest.approx(wait, rel=0.2, abs=5)


def test_a_configuration_that_is_broken_meanwhile_is_no_end(make):
    bench = make()

    def broken(login, address):
        raise HandOffFailed(LATER, "config:5")

    id_ = bench.commit((A, B))
    bench.retries.transports, usual = broken, bench.retries.transports
    assert bench.retries.try_now(id_) is not None
    assert bench.history(id_) == ([DEFERRED, DEFERRED], 1)
    bench.retries.transports = usual
    assert bench.retries.try_now(id_) is None
    assert bench.hop.recipients() == [(A, B)]


def test_without_a_transport_it_waits(tmp_path):
    outbox = Outbox(str(tmp_path))
    id_ = commit(outbox, copies_of((A,)), arrived=time.time())
    assert Retries(outbox, Rules("host.example"), print).try_now(id_) is not None
    assert names(outbox) == [".content.", ".envelope."]


# Reports.


def test_after_its_lifetime_a_message_goes_back(make, caplog):
    bench = make(lambda copy: LATER if copy.sender else {})
    id_ = bench.commit((A, B), (C,), arrived=time.time() - 6 * 24 * HOUR)
    with caplog.at_level(logging.WARNING):
        assert bench.retries.try_now(id_) is None
    days = [one.getMessage() for one in caplog.records if "given up to=" in one.getMessage()]
    assert len(days) == 3
    assert all(" delay=518400." in day for day in days)
    wait_for(lambda: names(bench.outbox) == [])
    assert bench.hop.recipients()[:2] == [(A, B), (C,)]
    assert sorted(bench.hop.recipients()[2:]) == [
        (b"bobby-1@example.org",),
        (b"bobby-2@example.org",),
    ]
    assert len(bench.reports()) == 2


def test_a_refusal_is_reported_once_and_others_go_on_waiting(make):
    bench = make({A: NEVER, B: LATER}, {}, {B: LATER})
    id_ = bench.commit((A, B))
    bench.retries.try_now(id_)
    wait_for(lambda: len(bench.reports()) == 1)
    bench.settle()
    bench.retries.try_now(id_)
    assert len(bench.reports()) == 1
    assert bench.history(id_) == ([TOLD, DEFERRED], 2)


def test_who_was_refused_before_is_not_tried_but_reported(make):
    bench = make()
    id_ = bench.commit((A,), (B,), events=[Event(REFUSED, 5, Place(0, 0), "hop:25", "550 no")])
    bench.retries.try_now(id_)
    wait_for(lambda: names(bench.outbox) == [])
    assert [copy.recipients for copy in bench.hop.copies] == [(B,), (b"bobby-1@example.org",)]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (b"NOTIFY=NEVER", 0),
        (b"NOTIFY=SUCCESS", 0),
        (b"NOTIFY=DELAY", 0),
        (b"NOTIFY=FAILURE", 1),
        (b"ORCPT=rfc822;x NOTIFY=SUCCESS,FAILURE", 1),
        (b"", 1),
    ],
)
def test_nobody_hears_of_what_he_does_not_want_to(words, count, make, monkeypatch):
    # By RFC 3461 section 4.1; whether the real one obeys is tested with it.
    def may_bounce(sender, notify, *, delayed=False):
        return bool(sender) and (not notify or "FAILURE" in notify.split(","))

    monkeypatch.setattr(bounce, "may_bounce", may_bounce)
    bench = make({A: NEVER}, {})
    bench.commit((A,), parameters={"notices": {A: words} if words else {}})
    bench.retries.start()
    wait_for(lambda: names(bench.outbox) == [])
    assert len(bench.reports()) == count


def test_for_a_report_there_is_no_report_and_it_is_kept(make, caplog):
    bench = make(NEVER)
    bench.commit((A,))
    bench.retries.start()
    wait_for(lambda: names(bench.outbox) == [".content.", ".envelope.bad"])
    assert [copy.sender for copy in bench.hop.copies] == [b"bobby-1@example.org", b""]
    assert "nobody can be told" in caplog.text


def test_what_was_given_up_is_not_tried_again(make):
    bench = make()
    id_ = bench.commit((A,))
    with bench.outbox.take(id_) as pair:
        pair.mark(BAD)
    other = bench.commit((B,))
    bench.retries.start()
    wait_for(lambda: not bench.outbox.has(other))
    assert bench.hop.recipients() == [(B,)]


def test_a_warning_comes_once_after_four_hours(make):
    bench = make({A: LATER, B: LATER}, warning=True)
    id_ = bench.commit((A, B), arrived=time.time() - 3 * HOUR)
    bench.retries.try_now(id_)
    assert [entry.id for entry in bench.outbox.entries()] == [id_]
    id_ = bench.commit((A, B), arrived=time.time() - 5 * HOUR)
    bench.retries.try_now(id_)
    wait_for(lambda: len(bench.reports()) == 1)
    bench.settle()
    for _ in range(2):
        bench.retries.try_now(id_)
    bench.settle()
    assert len(bench.reports()) == 1
    assert bench.history(id_) == ([DEFERRED, DEFERRED], 3)


def test_without_being_asked_for_there_is_no_warning(make):
    bench = make(LATER)
    bench.retries.try_now(bench.commit((A,), arrived=time.time() - 5 * HOUR))
    assert len(bench.outbox.entries()) == 1


@pytest.mark.parametrize(
    ("ret", "size", "whole"),
    [("FULL", 5, True), ("HDRS", 5, False), ("", 5, False), ("FULL", 2 << 20, False)],
)
def test_the_whole_message_goes_back_only_where_that_is_asked_for(
    ret, size, whole, make, monkeypatch
):
    given = []

    def report(report, header, *, boundary, full=None):
        given.append((header, full and b"".join(full)))
        yield b"Subject: report\r\n\r\n.dot\r\n"

    monkeypatch.setattr(bounce, "report", report)
    bench = make({A: NEVER}, {})
    copies = copies_of((A,), ret=ret)
    copies[0].content.write(b"x" * size)
    commit(bench.outbox, copies, arrived=time.time())
    bench.retries.start()
    wait_for(lambda: names(bench.outbox) == [])
    text = b"Subject: 1\r\n\r\n" + BODY.replace(b"..", b".") + b"x" * size
    assert given == [(b"Subject: 1\r\n\r\n", text if whole else None)]
    assert bench.reports() == [b"Subject: report\r\n\r\n..dot\r\n"]


def test_a_report_that_was_committed_before_a_crash_is_not_made_again(make):
    bench = make({A: NEVER})
    id_ = bench.commit((A,), events=[Event(REFUSED, 5, Place(0, 0)), Event(TRIED, 5)])
    with bench.outbox.prepare(copies_of((C,)), Origin("x", "y", ARRIVED), f"{id_}.b1.1") as draft:
        draft.commit([], time.time() + HOUR)
    assert bench.retries.try_now(id_) is None
    (entry,) = bench.outbox.entries()
    with bench.outbox.take(entry.id) as pair:
        assert pair.stored.copies[0].recipients == (C,)


def test_a_report_that_a_crash_has_left_unfinished_is_made_anew(make):
    """It had not been committed, so nobody would ever have been told."""
    bench = make()
    id_ = bench.commit((A,), events=[Event(REFUSED, 5, Place(0, 0)), Event(TRIED, 5)])

    def die() -> None:
        draft = bench.outbox.prepare(copies_of((C,)), Origin("x", "y", 5), f"{id_}.b1.1")
        os._exit(draft is None)

    Child(die).end()
    assert names(bench.outbox).count(".envelope.new") == 1 or os.path.exists(
        bench.outbox.path(f"{id_}.b1.1", ENVELOPE + NEW)
    )
    assert bench.retries.try_now(id_) is None
    wait_for(lambda: names(bench.outbox) == [])
    assert [copy.recipients for copy in bench.hop.copies] == [(b"bobby-1@example.org",)]


def test_a_report_for_which_there_is_no_room_is_made_later(make, disk: Disk):
    bench = make({A: NEVER})
    id_ = bench.commit((A,))
    disk.only = "create"
    with pytest.raises(OSError, match="No space left"):
        bench.retries.try_now(id_)
    disk.only = "none"
    assert bench.history(id_) == ([REFUSED], 1)
    assert bench.retries.try_now(id_) is None
    wait_for(lambda: names(bench.outbox) == [])
    assert len(bench.reports()) == 1


def test_what_somebody_has_put_off_meanwhile_is_not_tried(make):
    bench = make(LATER)
    id_ = bench.commit((A,))
    bench.retries.try_now(id_)
    bench.retries.add(id_, 0)
    wait_for(lambda: bench.retries.occupied(HOUR) and not bench.retries.occupied(30))
    assert len(bench.hop.copies) == 1


# Trouble.


def test_on_a_full_disk_nothing_is_handed_over_twice(make, disk: Disk):
    """Every attempt would give the message to the next hop, and none could be written down."""
    bench = make()
    id_ = bench.commit((A,), (B,))
    disk.only = "posix_fallocate"
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            bench.retries.try_now(id_)
        assert bench.due_in(id_) == pytest.approx(60, abs=10)
    assert bench.hop.copies == []
    disk.only = "none"
    assert bench.retries.try_now(id_) is None
    assert bench.hop.recipients() == [(A,), (B,)]


def test_a_defect_does_not_make_attempts_come_faster(make, monkeypatch, caplog):
    def report(*arguments, **keywords):
        raise ZeroDivisionError

    monkeypatch.setattr(bounce, "report", report)
    bench = make({A: NEVER, B: LATER})
    id_ = bench.commit((A, B))
    bench.retries.start()
    wait_for(lambda: "internal error in the outbox" in caplog.text)
    assert bench.retries.stop(PATIENCE_SECONDS)
    assert bench.due_in(id_) == pytest.approx(60, abs=15)
    assert len(bench.hop.copies) == 1


@pytest.mark.parametrize("damage", ["garbage", "no content", "link"])
def test_what_cannot_be_read_is_set_aside_and_the_rest_goes_on(damage, make, caplog):
    bench = make()
    bad, good = bench.commit((A,)), bench.commit((B,))
    path = bench.outbox.path(bad, CONTENT if damage == "no content" else ENVELOPE)
    os.unlink(path)
    if damage == "garbage":
        with open(path, "wb") as file:
            file.write(b"garbage")
    if damage == "link":
        os.symlink("/etc/passwd", path)
    bench.retries.start()
    wait_for(lambda: not bench.outbox.has(good))
    wait_for(lambda: [entry.state for entry in bench.outbox.entries()] == [BAD])
    assert bench.hop.recipients() == [(B,)]
    assert f"{bad} is set aside" in caplog.text
    assert "Traceback" not in caplog.text


def test_what_cannot_even_be_set_aside_is_no_end_of_the_thread(make, caplog):
    bench = make()
    id_ = bench.commit((A,))
    with open(bench.outbox.path(id_, ENVELOPE), "wb"):
        pass
    os.mkdir(bench.outbox.path(id_, ENVELOPE + BAD))
    bench.retries.start()
    wait_for(lambda: "Is a directory" in caplog.text)
    wait_for(lambda: not bench.retries.busy)
    other = bench.commit((B,))
    bench.retries.add(other, 0)
    wait_for(lambda: not bench.outbox.has(other))


def test_an_outbox_that_cannot_be_read_is_said(tmp_path, caplog):
    (tmp_path / "outbox").write_bytes(b"")
    tried = Retries(Outbox(str(tmp_path / "outbox")), Rules("host.example"), print)
    tried.start()
    assert "cannot be read: Not a directory" in caplog.text
    assert not tried.occupied(HOUR)


# The threads.


def test_what_was_left_is_handed_over_at_the_start(make):
    bench = make()
    for due in (0.0, time.time()):
        bench.commit((A,), due=due)
    id_ = bench.commit((B,))
    os.rename(bench.outbox.path(id_, ENVELOPE), bench.outbox.path(id_, ENVELOPE + BUSY))
    bench.retries.start()
    wait_for(lambda: names(bench.outbox) == [])
    assert sorted(bench.hop.recipients()) == [(A,), (A,), (B,)]


def test_what_is_not_due_waits(make):
    bench = make()
    id_ = bench.commit((A,), due=time.time() + HOUR)
    bench.retries.start()
    assert not bench.retries.occupied(HOUR - 60)
    assert bench.retries.occupied(HOUR + 60)
    other = bench.commit((B,))
    bench.retries.add(other, 0)
    wait_for(lambda: not bench.outbox.has(other))
    assert bench.outbox.has(id_)
    assert bench.hop.recipients() == [(B,)]


def test_a_time_of_a_clock_that_was_wrong_does_not_count(make):
    bench = make()
    bench.commit((A,), due=time.time() + 1000 * 24 * HOUR)
    bench.retries.start()
    wait_for(lambda: names(bench.outbox) == [])


def threads() -> int:
    """Those that look after an outbox."""
    return sum(thread.name == "outbox" for thread in threading.enumerate())


def test_there_is_no_thread_where_there_is_nothing_to_do(make):
    bench = make()
    before = threads()
    bench.retries.start()
    assert threads() == before
    assert not os.path.exists(bench.outbox.directory)
    bench.retries.add(bench.commit((A,)), 0)
    wait_for(lambda: names(bench.outbox) == [])
    wait_for(lambda: threads() == before)
    assert not bench.retries.occupied(HOUR)


class Gate:
    """Holds a copy up until it is opened; knows how many it holds."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        return self._inside

    def __call__(self, copy) -> dict:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        assert self.open.wait(PATIENCE_SECONDS)
        with self._lock:
            self._inside -= 1
        return {}


def test_only_a_few_are_handed_over_at_a_time(make):
    gate = Gate()
    bench = make(gate)
    for _ in range(20):
        bench.commit((A,))
    bench.retries.start()
    wait_for(lambda: gate.inside == 4)
    assert bench.retries.busy
    assert bench.retries.occupied(0)
    gate.open.set()
    wait_for(lambda: names(bench.outbox) == [])
    assert gate.most == 4
    assert len(bench.hop.copies) == 20


def test_stop_begins_nothing_and_waits_for_what_is_under_way(make):
    gate = Gate()
    bench = make(gate)
    for _ in range(10):
        bench.commit((A,), (B,))
    bench.retries.start()
    wait_for(lambda: gate.inside == 4)
    assert not bench.retries.stop(0.01)
    gate.open.set()
    assert bench.retries.stop(PATIENCE_SECONDS)
    # What was under way ended with the copy that had been begun.
    assert bench.hop.recipients() == [(A,)] * 4
    assert len(bench.outbox.entries()) == 10
    bench.retries.add(bench.commit((A,)), 0)
    assert not bench.retries.busy


def test_of_two_that_look_after_one_outbox_each_message_has_one(make):
    first, second = make(), make()
    for _ in range(50):
        first.commit((A,))
    first.retries.start()
    second.retries.start()
    wait_for(lambda: names(first.outbox) == [])
    assert len(first.hop.copies) + len(second.hop.copies) == 50


def test_what_somebody_else_takes_away_is_forgotten(make):
    bench = make()
    ids = [bench.commit((A,), due=time.time() + HOUR) for _ in range(3)]
    bench.retries.start()
    bench.outbox.take(ids[0]).remove()
    bench.retries.add(ids[0], 0)
    bench.retries.add("never was", 0)
    wait_for(lambda: not bench.retries.occupied(60))
    assert bench.hop.copies == []


def test_what_somebody_else_has_left_is_found(make, monkeypatch):
    monkeypatch.setattr(retries, "_LOOK_SECONDS", 0.05)
    bench = make()
    waiting = bench.commit((A,), due=time.time() + HOUR)
    bench.retries.start()
    other = commit(Outbox(bench.outbox.directory), copies_of((B,)), arrived=time.time())
    wait_for(lambda: not bench.outbox.has(other))
    assert bench.outbox.has(waiting)


def test_what_another_process_dies_of_is_tried_again(make, monkeypatch):
    monkeypatch.setattr(retries, "_LOOK_SECONDS", 0.05)
    bench = make()
    id_ = bench.commit((A,))
    reader, writer = os.pipe()

    def hold() -> None:
        pair = bench.outbox.take(id_)
        pair.mark(BUSY)
        os.write(writer, b"x")
        time.sleep(0.3)
        os._exit(0)

    child = Child(hold)
    assert os.read(reader, 1) == b"x"
    bench.retries.start()
    wait_for(lambda: names(bench.outbox) == [])
    assert bench.hop.recipients() == [(A,)]
    child.end()
    os.close(reader)
    os.close(writer)


def test_where_there_can_be_no_thread_it_is_tried_later(make, monkeypatch):
    bench = make()
    id_ = bench.commit((A,))

    def start(self) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        bench.retries.start()
    assert bench.outbox.has(id_)
    bench.retries.add(bench.commit((B,)), 0)
    wait_for(lambda: names(bench.outbox) == [])


def test_each_thread_is_begun_as_it_is_told(tmp_path):
    outbox = Outbox(str(tmp_path))
    begun: list[str] = []
    hop = Scripted()
    tried = Retries(
        outbox,
        Rules("host.example"),
        lambda *line: None,
        lambda: begun.append(threading.current_thread().name),
    )
    tried.transports = lambda login, address: hop
    id_ = commit(outbox, copies_of((A,)), arrived=time.time())
    tried.start()
    wait_for(lambda: not outbox.has(id_))
    assert tried.stop(PATIENCE_SECONDS)
    assert begun == ["outbox", id_]
