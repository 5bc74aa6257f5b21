"""Copies that are left when the next hop fails, and what becomes of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients import submit
from fakes import CLOSE, Act, FakeNextHop, at
from running import make_home, tofmipd, wait_until

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


@pytest.fixture(params=["personal", "global"])
def spooling(request, home, tmp_path) -> Iterator[tuple]:
    """A way to start a daemon that keeps every message first, and its outbox."""
    if request.param == "personal":
        yield (lambda *o: tofmipd(home, "--spool", *o)), home, ("bobby", "FooBar"), None
    else:
        village = request.getfixturevalue("village")
        person = village.people[0]
        yield lambda *o: village.daemon("--spool", *o), person.home, person, village
