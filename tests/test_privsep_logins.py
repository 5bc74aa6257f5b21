"""A login is judged: sources, then whom it stands for, and one line in the log."""

from __future__ import annotations

import logging
import re
import time

import pytest

from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import CramMd5, Origin, Password, Verdict
from tofmipd.privsep.accounts import NoAccount
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.logins import Logins

HERE = Origin("192.0.2.7", "192.0.2.1")
YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE


class Oracle:
    """A source that knows what to say."""

    name = "oracle"

    def __init__(self, verdict: Verdict, mechanisms=("PLAIN", "LOGIN")) -> None:
        self.mechanisms = frozenset(mechanisms)
        self.asked = []
        self._verdict = verdict

    def check(self, credentials, origin) -> Verdict:
        self.asked.append((credentials, origin))
        return self._verdict


def nobody(login: str) -> Identity:
    raise NoAccount(f"{login!r} is no account of this system")


def anna(login: str) -> Identity:
    return Identity("anna", login)


def never(login: str) -> Identity:
    raise AssertionError("only who is accepted is looked up")


def judge(source, identity_of, credentials=None, origin=HERE):
    logins = Logins(Chain([source]), "mx.example", identity_of)
    return logins.judge("1f", "PLAIN", credentials or Password("joe@a", b"secret"), origin)


@pytest.mark.parametrize(
    ("said", "identity_of", "verdict", "identity", "level", "reason"),
    [
        (YES, anna, YES, Identity("anna", "joe@a"), logging.INFO, ""),
        (NO, never, NO, None, logging.INFO, ""),
        (MAYBE, never, MAYBE, None, logging.WARNING, ""),
        (YES, nobody, NO, None, logging.WARNING, " reason: 'joe@a' is no account of this system"),
    ],
)
def test_who_is_accepted_must_also_be_somebody(
    said, identity_of, verdict, identity, level, reason, caplog
):
    caplog.set_level(logging.DEBUG)
    source = Oracle(said)
    assert judge(source, identity_of) == (verdict, identity)
    assert source.asked == [(Password("joe@a", b"secret"), HERE)]
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage() == (
        f"s=1f auth {verdict.value} user='joe@a' ip=192.0.2.7 mechanism=PLAIN source=oracle{reason}"
    )


@pytest.mark.parametrize(
    ("credentials", "shown"),
    [
        (Password("joe\n2000 s=2 auth accepted", b"x"), r"user='joe\n2000 s=2 auth accepted' "),
        (Password("joe", b""), "user='joe' "),
        (Password("../joe", b"x"), "user='../joe' "),
        (CramMd5("", b"00", b"<1@x>"), "user='' "),
    ],
)
def test_a_bad_name_or_no_password_asks_nobody_and_is_one_line(credentials, shown, caplog):
    caplog.set_level(logging.DEBUG)
    source = Oracle(YES)
    assert judge(source, never, credentials, Origin()) == (NO, None)
    assert source.asked == []
    (record,) = caplog.records
    assert f"{shown}ip=unknown mechanism=PLAIN source=none" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_no_secret_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    for verdict in Verdict:
        judge(Oracle(verdict), anna, Password("joe", b"SECRET"))
        judge(Oracle(verdict), anna, CramMd5("joe", b"SECRET", b"<1@x>"))
    assert len(caplog.records) == 6
    assert "SECRET" not in caplog.text


def test_challenges_have_the_form_of_rfc_2195_and_differ():
    logins = Logins(Chain([Oracle(YES)]), "mx.example", anna)
    challenges = {logins.challenge() for _ in range(100)}
    assert len(challenges) == 100
    for challenge in challenges:
        match = re.fullmatch(rb"<([0-9a-f]{32})\.([0-9]+)@mx\.example>", challenge)
        assert abs(int(match[2]) - time.time()) < 60


def test_the_mechanisms_are_those_of_all_sources():
    logins = Logins(Chain([Oracle(YES), Oracle(YES, ("PLAIN", "CRAM-MD5"))]), "mx", anna)
    assert logins.mechanisms == {"PLAIN"}
