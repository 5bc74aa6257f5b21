"""A login is judged: sources, then whom it stands for, and one line in the log."""

from __future__ import annotations

import logging
import re
import time

import pytest

from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import CramMd5, Judgement, Origin, Password, Scram, Verdict
from tofmipd.privsep.accounts import NoAccount
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.logins import Challenge, Logins
from tofmipd.settings import Limits

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
    logins = Logins(Chain([source]), "mx.example", identity_of, Limits())
    credentials = credentials or Password("joe@a", b"secret")
    challenge = Challenge(b"<1@x>") if isinstance(credentials, CramMd5) else None
    judgement, identity = logins.judge("1f", "PLAIN", credentials, origin, challenge)
    return judgement.verdict, identity


@pytest.mark.parametrize(
    ("said", "identity_of", "verdict", "identity", "level", "reason"),
    [
        (YES, anna, YES, Identity("anna", "joe@a"), logging.INFO, "ok"),
        (NO, never, NO, None, logging.INFO, "password"),
        (MAYBE, never, MAYBE, None, logging.WARNING, "source"),
        (YES, nobody, NO, None, logging.INFO, "account"),
    ],
)
def test_who_is_accepted_must_also_be_somebody(
    said, identity_of, verdict, identity, level, reason, caplog
):
    caplog.set_level(logging.DEBUG)
    source = Oracle(said)
    assert judge(source, identity_of) == (verdict, identity)
    assert source.asked == [(Password("joe@a", b"secret"), HERE)]
    *others, record = caplog.records
    assert record.levelno == level
    assert record.getMessage() == (
        f"s=1f auth {verdict.value} ip=192.0.2.7 mechanism=PLAIN source=oracle reason={reason}"
        " user='joe@a'"
    )
    assert [(other.levelno, other.getMessage()) for other in others] == [
        (
            logging.WARNING,
            "s=1f user='joe@a' may not log in: 'joe@a' is no account of this system",
        )
    ] * (reason == "account")


@pytest.mark.parametrize(
    ("credentials", "shown"),
    [
        (Password("joe\n2000 s=2 auth accepted", b"x"), r"name user='joe\n2000 s=2 auth accepted'"),
        (Password("joe' ip=192.0.2.1\t", b"x"), 'name user="joe\' ip=192.0.2.1\\t"'),
        (Password("joe", b""), "empty user='joe'"),
        (Password("../joe", b"x"), "name user='../joe'"),
        (Password("j" * 300, b"x"), f"name user='{'j' * 255}'"),
        (CramMd5("", b"00", b"<1@x>"), "name user=''"),
    ],
)
def test_a_bad_name_or_no_password_asks_nobody_and_is_one_line(credentials, shown, caplog):
    caplog.set_level(logging.DEBUG)
    source = Oracle(YES)
    assert judge(source, never, credentials, Origin()) == (NO, None)
    assert source.asked == []
    (record,) = caplog.records
    head = "s=1f auth rejected ip=unknown mechanism=PLAIN source=none reason="
    assert record.getMessage() == head + shown
    assert record.getMessage().isprintable()


def test_no_secret_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    for verdict in Verdict:
        judge(Oracle(verdict), anna, Password("joe", b"SECRET"))
        judge(Oracle(verdict), anna, CramMd5("joe", b"SECRET"))
        judge(Oracle(verdict), nobody, Password("joe", b"SECRET"))
        judge(Oracle(verdict), anna, Scram("joe", b"SECRET", b"SECRET"))
    # and one that says why the accepted one may not log in
    assert len(caplog.records) == 12 + 1
    assert "SECRET" not in caplog.text


def test_challenges_have_the_form_of_rfc_2195_and_differ():
    logins = Logins(Chain([Oracle(YES)]), "mx.example", anna, Limits())
    challenges = {logins.challenge("CRAM-MD5", b"").text for _ in range(100)}
    assert len(challenges) == 100
    for challenge in challenges:
        match = re.fullmatch(rb"<([0-9a-f]{32})\.([0-9]+)@mx\.example>", challenge)
        assert abs(int(match[2]) - time.time()) < 60


def test_the_mechanisms_are_those_of_all_sources():
    logins = Logins(Chain([Oracle(YES), Oracle(YES, ("PLAIN", "CRAM-MD5"))]), "mx", anna, Limits())
    assert logins.mechanisms == {"PLAIN"}


@pytest.mark.parametrize("credentials", [CramMd5("joe", b"00"), Scram("joe", b"last")])
def test_an_answer_to_no_challenge_is_nobody_s_failure(credentials, caplog):
    source = Oracle(YES)
    logins = Logins(Chain([source]), "mx", anna, Limits())
    judgement, identity = logins.judge("1f", "CRAM-MD5", credentials, HERE)
    assert (judgement, identity) == (Judgement(MAYBE), None)
    assert source.asked == []
    words = "auth unavailable ip=192.0.2.7 mechanism=CRAM-MD5 source=none reason=challenge"
    assert words in caplog.text


# Who fails too often.


def attempt(logins, password=b"wrong", origin=HERE, user="joe"):
    return logins.judge("1f", "PLAIN", Password(user, password), origin)[0]


def test_the_answer_to_a_failure_is_late_and_that_to_a_success_is_not():
    source = Oracle(NO)
    logins = Logins(Chain([source]), "mx", anna, Limits(failure_delay=0.5))
    assert [attempt(logins, bytes([n])).delay for n in range(3)] == [0.5, 1, 2]
    source._verdict = MAYBE
    assert attempt(logins) == Judgement(MAYBE)
    source._verdict = YES
    assert attempt(logins) == Judgement(YES)
    source._verdict = NO
    assert attempt(logins, b"x").delay < 2


def test_who_has_failed_too_often_waits_and_nobody_is_asked(caplog):
    caplog.set_level(logging.INFO)
    source = Oracle(NO)
    logins = Logins(Chain([source]), "mx", anna, Limits())
    for number in range(5):
        assert attempt(logins, b"%d" % number).wait == 0
    source._verdict = YES
    judgement = attempt(logins, b"right")
    assert judgement.verdict is NO
    assert 14 < judgement.wait <= 15
    assert len(source.asked) == 5
    assert caplog.messages[-1] == (
        "s=1f auth rejected ip=192.0.2.7 mechanism=PLAIN source=none reason=too-many-failures"
        " user='joe'"
    )
    # Elsewhere, and as somebody else, he need not.
    assert attempt(logins, origin=Origin("192.0.2.8")).verdict is YES
    assert attempt(logins, user="ann").verdict is YES


def test_an_account_that_may_not_log_in_counts_as_a_failure():
    logins = Logins(Chain([Oracle(YES)]), "mx", nobody, Limits())
    for number in range(5):
        assert attempt(logins, b"%d" % number).wait == 0
    assert attempt(logins).wait > 0


def test_a_source_that_breaks_is_no_failure_and_leaves_the_limiter_in_order():
    class Broken(Oracle):
        def check(self, credentials, origin) -> Verdict:
            raise RuntimeError("a bug")

    logins = Logins(Chain([Broken(NO)]), "mx", anna, Limits())
    for _ in range(20):
        with pytest.raises(RuntimeError):
            attempt(logins)
    assert logins._limiter.ask(HERE.address, "joe", time.monotonic()) == 0
