"""Copies that are left when the next hop fails, and what becomes of them."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import submit
from fakes import CLOSE, Act, FakeNextHop, at
from hops import RawHop, Stored, raw_hop
from running import (
    LIMIT_SECONDS,
    LOGIN,
    PASSWORD,
    Daemon,
    Home,
    free_port,
    make_home,
    to_smtp,
    tofmipd,
    wait_until,
)
from test_global_workers import leaving_after
from village import Village, children

RULES = "to a@* dated=1d\nto b@* dated=2d\nto * bare\n"
TO = ("a@example.net", "b@example.net", "c@example.net")
SMTP = ('MAIL_TRANSPORT = "smtp"', 'HOSTNAME = "example.org"', 'USERNAME = "bobby"')


def smtp_to(hop: FakeNextHop) -> tuple[str, ...]:
    return (*SMTP, f'SMTPHOST = "127.0.0.1:{hop.port}"')


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []


def recipients(hop: FakeNextHop) -> list[str]:
    return sorted(one for message in hop.messages for one in message.recipients)


def once(stage: str, act: Act, message: int) -> Callable[..., Act | None]:
    """Do that at one stage of one message, the first time only."""
    done = []
    script = at(stage, act, message=message)

    def first(moment):
        if done or script(moment) is None:
            return None
        done.append(moment)
        return act

    return first


@pytest.fixture
def home(tmp_path: Path):
    return make_home(tmp_path, *SMTP, rules=RULES)


@pytest.mark.parametrize(
    ("stage", "act"),
    [
        ("DOT", Act(b"451 4.3.0 later\r\n")),
        ("DOT", Act(b"421 4.3.2 going\r\n", close=True)),
        ("MAIL", Act(b"450 4.7.1 later\r\n")),
        ("RCPT", CLOSE),
        ("DATA", CLOSE),
        ("BODY", CLOSE),
    ],
)
def test_what_is_left_after_the_first_copy_is_handed_over_later(stage, act, home):
    outbox = home.path / ".tmda/outbox"
    with FakeNextHop(once(stage, act, 2)) as hop:
        home.configure(*smtp_to(hop))
        with tofmipd(home, "--queue-retry", "1s") as daemon:
            reply = submit(daemon.port, *TO)
            assert re.fullmatch(
                r"250 2\.0\.0 Ok: taken for 1 of 3 recipients, queued as \S+ for the others", reply
            )
            wait_until(lambda: recipients(hop) == sorted(TO), "all to have it")
            wait_until(lambda: files(outbox) == [], "the outbox to be empty")
    assert recipients(hop) == sorted(TO)


def test_nothing_is_left_where_all_is_taken(home):
    with FakeNextHop() as hop:
        home.configure(*smtp_to(hop))
        with tofmipd(home) as daemon:
            assert submit(daemon.port, *TO).startswith("250 2.0.0 Ok: queued as FAKE3")
            assert files(home.path / ".tmda/outbox") == []


def test_it_is_handed_over_by_the_next_daemon(home):
    outbox = home.path / ".tmda/outbox"
    with FakeNextHop(at("DOT", b"451 4.3.0 later\r\n", message=2)) as hop:
        home.configure(*smtp_to(hop))
        with tofmipd(home) as daemon:
            assert submit(daemon.port, *TO).startswith("250 ")
        (envelope,) = outbox.glob("*.envelope")
        assert len(files(outbox)) == 2
    with FakeNextHop() as hop:
        home.configure(*smtp_to(hop))
        os.utime(envelope, (0, 0))
        with tofmipd(home):
            wait_until(lambda: files(outbox) == [], "the outbox to be empty")
        assert recipients(hop) == sorted(TO[1:])


def test_a_refusal_that_comes_too_late_goes_to_the_sender(home):
    outbox = home.path / ".tmda/outbox"
    script = at("RCPT", b"550 5.1.1 unknown\r\n", argument=f"TO:<{TO[1]}>")
    begun = []

    def late(moment):
        if moment.stage == "DOT":
            begun.append(moment)
        return script(moment) if begun else None

    with FakeNextHop(late) as hop:
        home.configure(*smtp_to(hop))
        with tofmipd(home, "--queue-retry", "1s") as daemon:
            assert submit(daemon.port, *TO).startswith("250 ")
            wait_until(lambda: len(hop.messages) == 3, "the report")
            wait_until(lambda: files(outbox) == [], "the outbox to be empty")
        by_sender = {message.sender: message for message in hop.messages}
        report = by_sender[""]
        assert report.recipients[0].startswith("bobby-dated-")
        assert b"unknown" in report.text
        assert TO[1].encode() in report.text


# Every message by way of the outbox.


def report_at(hop: RawHop) -> Stored:
    """Wait for the report that has come; there must be just one."""
    (found,) = wait_until(lambda: [one for one in hop.stored if one.sender == ""], "a report")
    return found


@dataclass(frozen=True)
class Place:
    """A person whose daemon keeps every message first; the next hop may be there or not."""

    start: Callable[..., contextlib.AbstractContextManager[Daemon]]
    login: str
    password: str
    outbox: Path
    port: int
    village: Village | None = None

    def submit(self, daemon: Daemon, *recipients: str) -> str:
        return submit(daemon.port, *recipients, login=self.login, password=self.password)

    def emptied(self) -> None:
        wait_until(lambda: files(self.outbox) == [], "the outbox to be empty")

    def change(self, old: bytes, new: bytes) -> None:
        """Replace octets of the only envelope, and have it due."""
        (envelope,) = self.outbox.glob("*.envelope")
        octets, owner = envelope.read_bytes(), envelope.stat()
        changed = re.sub(old, new, octets)
        assert changed != octets
        envelope.write_bytes(changed)
        os.chown(envelope, owner.st_uid, owner.st_gid)
        os.utime(envelope, (0, 0))


@pytest.fixture(params=["personal", pytest.param("global", marks=pytest.mark.root)])
def place(request: pytest.FixtureRequest, home: Home) -> Iterator[Place]:
    port = free_port()
    retry = ("--spool", "--queue-retry", "1s")
    if request.param == "personal":
        home.configure(to_smtp(port))
        home.write("filters/outgoing", "")
        start = functools.partial(tofmipd, home, *retry)
        yield Place(start, LOGIN, PASSWORD, home.path / ".tmda/outbox", port)
    else:
        village: Village = request.getfixturevalue("village")
        person = village.people[0]
        person.configure(to_smtp(port))
        start = functools.partial(village.daemon, *retry)
        outbox = village.outboxes / person.name
        yield Place(start, person.name, person.password, outbox, port, village)


def test_what_is_kept_is_handed_over_once_when_the_next_hop_is_back(place):
    with place.start() as daemon:
        for recipient in TO[:2]:
            assert re.fullmatch(
                r"250 2\.0\.0 Ok: queued as tofmipd\S+", place.submit(daemon, recipient)
            )
        daemon.says("deferred to=", "Connection refused")
        assert len(files(place.outbox)) == 4
        with raw_hop(place.port) as hop:
            for recipient in TO[:2]:
                hop.message(recipient)
            place.emptied()
            assert place.submit(daemon, TO[2]).startswith("250 ")
            hop.message(TO[2])
            place.emptied()
        daemon.says(f"sent to={TO[0]!r}", "queue=tofmipd.")
    assert len(hop.stored) == 3


def test_the_client_does_not_wait_for_the_next_hop(place):
    with raw_hop(place.port) as hop, place.start() as daemon:
        hop.may_answer.clear()
        assert place.submit(daemon, *TO).startswith("250 ")
        assert hop.data_complete.wait(LIMIT_SECONDS)
        assert hop.stored == []
        assert any(name.endswith(".busy") for name in files(place.outbox))
        hop.may_answer.set()
        place.emptied()
        assert hop.message(TO[0]).recipients == TO


def test_a_restart_loses_and_doubles_nothing(place):
    with place.start() as daemon:
        assert place.submit(daemon, *TO).startswith("250 ")
        daemon.says("deferred to=")
    assert len(files(place.outbox)) == 2
    with place.start() as daemon, raw_hop(place.port) as hop:
        assert hop.message(TO[0]).recipients == TO
        place.emptied()
    assert len(hop.stored) == 1


def test_who_is_refused_is_reported_and_the_others_have_it(place):
    with raw_hop(place.port) as hop, place.start() as daemon:
        hop.refuse[f"RCPT TO:<{TO[1]}>"] = b"550 5.1.1 unknown here"
        assert place.submit(daemon, *TO).startswith("250 ")
        report = report_at(hop)
        place.emptied()
        assert b"unknown here" in report.octets
        assert {one.recipients for one in hop.stored} == {(TO[0], TO[2]), report.recipients}


def test_after_its_lifetime_a_message_goes_back(place):
    with raw_hop(place.port) as hop, place.start("--queue-lifetime", "1s") as daemon:
        hop.refuse["RCPT TO:<a@"] = b"451 4.7.1 greylisted"
        assert place.submit(daemon, TO[0]).startswith("250 ")
        report = report_at(hop)
        place.emptied()
        assert TO[0].encode() in report.octets
        daemon.says("given up to=")
    assert len(hop.stored) == 1


def test_for_a_report_that_cannot_be_delivered_there_is_no_other(place):
    with raw_hop(place.port) as hop, place.start() as daemon:
        hop.refuse["RCPT"] = b"550 5.1.1 unknown here"
        assert place.submit(daemon, TO[0]).startswith("250 ")
        daemon.says("nobody can be told: kept as", ".b1.1.bad")
        names = files(place.outbox)
        assert [name.partition(".b1.1")[2] for name in names] == [".content", ".envelope.bad"]
    for name in names:
        (place.outbox / name).unlink()


def test_a_sender_hears_of_a_long_delay_once_where_that_is_asked_for(place):
    with place.start() as daemon:
        assert place.submit(daemon, TO[0]).startswith("250 ")
        daemon.says("deferred to=")
    place.change(rb"Arrived: [0-9.]+", b"Arrived: %d" % (time.time() - 5 * 3600))
    refused = {"RCPT TO:<a@": b"451 4.7.1 greylisted"}
    with raw_hop(place.port, refuse=refused) as hop, place.start("--queue-warning") as daemon:
        report_at(hop)
        daemon.forget()
        daemon.says("deferred to=")
        refused.clear()
        hop.message(TO[0])
        place.emptied()
    report_at(hop)


def test_an_envelope_that_cannot_be_read_is_set_aside(place):
    with place.start() as daemon:
        for recipient in TO[:2]:
            assert place.submit(daemon, recipient).startswith("250 ")
    broken, _ = sorted(place.outbox.glob("*.envelope"))
    broken.write_bytes(b"garbage\n")
    for envelope in place.outbox.glob("*.envelope"):
        os.utime(envelope, (0, 0))
    with raw_hop(place.port) as hop, place.start() as daemon:
        daemon.says("is set aside", "no end")
        wait_until(lambda: hop.stored, "the other message")
        wait_until(lambda: len(files(place.outbox)) == 2, "the other files to go")
        assert any(name.endswith(".envelope.bad") for name in files(place.outbox))
    shutil.rmtree(place.outbox)


# Global mode.


@pytest.fixture
def spoolers(village: Village) -> tuple[Village, int]:
    """A village whose people have a next hop that is down."""
    port = free_port()
    for person in village.people:
        person.configure(to_smtp(port))
    return village, port


@pytest.mark.root
def test_outboxes_are_their_owners_alone(spoolers):
    village, _ = spoolers
    with village.daemon("--spool") as daemon:
        for person in village.people:
            reply = submit(daemon.port, TO[0], login=person.name, password=person.password)
            assert reply.startswith("250 ")
    assert village.outboxes.stat().st_mode & 0o777 == 0o711
    for person in village.people:
        own = village.outboxes / person.name
        for path in (own, *own.iterdir()):
            assert (path.stat().st_uid, path.stat().st_mode & 0o077) == (person.uid, 0)


@pytest.mark.root
def test_a_worker_that_has_left_comes_back_for_its_outbox(spoolers):
    village, port = spoolers
    person = village.people[0]
    with leaving_after(0.2, village, "--spool", "--queue-retry", "1s") as daemon:
        reply = submit(daemon.port, TO[0], login=person.name, password=person.password)
        assert reply.startswith("250 ")
        daemon.says("worker for", "ended with status 0")
        with raw_hop(port) as hop:
            hop.message(TO[0])
        daemon.says(f"outbox of {person.name!r}: ", f"sent to={TO[0]!r}")
        assert daemon.text().count(f"worker for {person.name!r} started") >= 2


@pytest.mark.root
def test_a_worker_that_is_killed_loses_nothing(spoolers):
    village, port = spoolers
    person = village.people[0]
    with raw_hop(port) as hop, village.daemon("--spool") as daemon:
        hop.may_answer.clear()
        reply = submit(daemon.port, TO[0], login=person.name, password=person.password)
        assert reply.startswith("250 ")
        assert hop.data_complete.wait(LIMIT_SECONDS)
        (worker,) = children(daemon.pid, "worker")
        os.kill(worker, signal.SIGKILL)
        daemon.says("worker for", "killed by SIGKILL")
        hop.may_answer.set()
        # The next one finds what the dead one had, at once.
        reply = submit(daemon.port, TO[1], login=person.name, password=person.password)
        assert reply.startswith("250 ")
        hop.message(TO[1])
        # Whether it was taken nobody has heard.
        wait_until(lambda: len(hop.for_recipient(TO[0])) == 2, "the first message again")
        wait_until(lambda: files(village.outboxes / person.name) == [], "the end of all")


@pytest.mark.root
def test_what_a_user_puts_into_his_outbox_is_his_own_trouble(spoolers):
    village, port = spoolers
    bobby, chloe, _ = village.people
    with village.daemon("--spool") as daemon:
        assert submit(daemon.port, TO[0], login=bobby.name, password=bobby.password).startswith(
            "250 "
        )
    own = village.outboxes / bobby.name
    (own / "shadow.envelope").symlink_to("/etc/shadow")
    os.mkfifo(own / "fifo.envelope")
    (own / "garbage.envelope").write_bytes(os.urandom(1000))
    for path in own.iterdir():
        os.chown(path, bobby.uid, bobby.gid, follow_symlinks=False)
    with raw_hop(port) as hop, village.daemon("--spool") as daemon:
        for name in ("shadow", "fifo", "garbage"):
            daemon.says(f"outbox of {bobby.name!r}", f"{name} is set aside")
        assert submit(daemon.port, TO[1], login=chloe.name, password=chloe.password).startswith(
            "250 "
        )
        hop.message(TO[1])
    assert len(list(own.glob("*.bad"))) == 3


@pytest.mark.root
def test_a_directory_that_is_not_his_alone_gives_a_user_no_outbox(spoolers):
    village, port = spoolers
    person = village.people[0]
    own = village.outboxes / person.name
    with raw_hop(port) as hop, village.daemon() as daemon:
        assert submit(daemon.port, TO[0], login=person.name, password=person.password).startswith(
            "250 "
        )
        own.chmod(0o777)
    with raw_hop(port) as hop, village.daemon("--spool") as daemon:
        reply = submit(daemon.port, TO[0], login=person.name, password=person.password)
        assert reply.startswith("451 4.3.0 ")
        assert str(own) not in reply
        daemon.says("no outbox", f"must be a directory of uid {person.uid}")
    assert hop.stored == []
