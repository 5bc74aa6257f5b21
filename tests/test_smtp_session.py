"""The session fed with noise, and what the dialogues cannot show."""

from __future__ import annotations

import time

import pytest
from fakes import ALL_MECHANISMS, LOOPBACK, Desk, b64, in_pieces, octet_by_octet
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth.credentials import Judgement, Scram, Verdict
from tofmipd.smtp import replies
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import (
    COMMAND_LIMIT_OCTETS,
    MakeChallenge,
    Policy,
    Receive,
    Session,
    Submit,
    Verify,
)

noise = settings(max_examples=200, deadline=None)

POLICY = Policy("mx.example", ALL_MECHANISMS, max_recipients=5, size_limit_octets=200)
GOOD_LOGIN = "AUTH PLAIN " + b64(b"\0bobby\0FooBar")
BAD_LOGIN = "AUTH PLAIN " + b64(b"\0bobby\0Wrong")
LINES = [
    *["EHLO client.example", "HELO x", "NOOP", "RSET", "QUIT", "DATA", "VRFY a", "HELP", ""],
    *["MAIL FROM:<a@example.org>", "MAIL FROM:<> SIZE=10 BODY=8BITMIME", "MAIL FROM:<a> FOO"],
    *["RCPT TO:<x@example.net>", "RCPT TO:y", "RCPT TO:<>", "RCPT", "MAIL"],
    *[GOOD_LOGIN, BAD_LOGIN, "AUTH LOGIN", "AUTH CRAM-MD5", "AUTH PLAIN", "AUTH PLAIN =", "AUTH"],
    *["AUTH SCRAM-SHA-1 " + b64(b"n,,n=a,r=b"), b64(b"n,,n=a,r=b"), "AUTH SCRAM-SHA-256"],
    *["*", "=", b64(b"bobby"), b64(b"\0bobby\0FooBar"), ".", "..", "Subject: x"],
]
GOOD_LINES = st.sampled_from([line.encode() for line in LINES])
NOISE = st.binary(max_size=40).filter(lambda octets: not set(b"\r\n") & set(octets))
TALK = st.lists(st.one_of(GOOD_LINES, GOOD_LINES, NOISE), max_size=40)
JUDGEMENTS = st.builds(
    Judgement,
    st.sampled_from([*Verdict, Verdict.ACCEPTED]),
    st.sampled_from([b"", b"v=abc"]),
    wait=st.sampled_from([0, 0, 0, 0.1, 3600]),
)
FAILURES = JUDGEMENTS.filter(lambda judgement: judgement.verdict is not Verdict.ACCEPTED)
PROBLEMS = st.sampled_from([None, None, replies.MESSAGE_TOO_BIG, replies.BARE_NEWLINE])
OUTCOMES = st.sampled_from([replies.OK, replies.NO_ROOM, replies.INTERNAL_ERROR])


def logged_in(policy=POLICY):
    session = Session(policy, LOOPBACK)
    assert isinstance(session.line(GOOD_LOGIN.encode()), Verify)
    assert session.judged(Judgement(Verdict.ACCEPTED)) is replies.AUTH_ACCEPTED
    return session


def obey(session, line, data):
    """One line to its reply; all requests get some answer."""
    step = session.line(line)
    for _ in range(4):
        match step:
            case Reply():
                return step
            case MakeChallenge():
                step = session.challenged(b"<1@mx.example>")
            case Verify():
                step = session.judged(data.draw(JUDGEMENTS))
            case Receive():
                assert step.reply.code == 354
                step = session.received(data.draw(PROBLEMS))
            case Submit():
                step = session.submitted(data.draw(OUTCOMES))
    raise AssertionError("a command came to no end")


@noise
@given(TALK, st.booleans(), st.data())
def test_whatever_lines_come_each_gets_one_reply_and_nothing_is_raised(lines, begin, data):
    session = logged_in() if begin else Session(POLICY, LOOPBACK)
    for line in lines:
        reply = obey(session, line, data)
        assert 200 <= reply.code < 600
        assert reply.code != 354
        assert all(len(text) <= 512 for text in reply.encode().split(b"\r\n"))
        assert session.line_limit_octets <= 12288


@noise
@given(TALK, st.data())
def test_no_message_is_asked_for_before_a_login(lines, data):
    session = Session(POLICY, LOOPBACK)
    for line in lines:
        step = session.line(line)
        assert not isinstance(step, Receive | Submit)
        if isinstance(step, Verify):
            session.judged(data.draw(FAILURES))
        elif isinstance(step, MakeChallenge):
            session.challenged(b"<1@mx.example>")
        assert session.login == ""


def state_octets(session):
    """A generous account of what a session keeps of what the client said."""
    envelope = session._envelope
    texts = [session._helo, session._user, session._mechanism, session.login]
    if envelope is not None:
        texts += [envelope.sender, *envelope.recipients]
    return sum(map(len, texts))


def test_a_session_keeps_little_of_what_it_is_told():
    session = logged_in(Policy("mx.example", ALL_MECHANISMS, max_recipients=5, max_errors=9999))
    long_name = "x" * 4000
    for verb in ("EHLO", "NOOP", "VRFY", "HELO", "MAIL FROM:", "FOO"):
        for _ in range(200):
            session.line(f"{verb} {long_name}".encode())
    session.line(f"MAIL FROM:<{long_name}>".encode())
    for _ in range(200):
        session.line(f"RCPT TO:<{long_name}>".encode())
    assert state_octets(session) <= 255 + 7 * COMMAND_LIMIT_OCTETS


@noise
@given(TALK, st.lists(st.integers(1, 400), max_size=10))
def test_the_pieces_in_which_a_dialogue_arrives_make_no_difference(lines, cuts):
    octets = b"".join(line + b"\r\n" for line in lines)
    said = []
    for pieces in ([octets], octet_by_octet(octets), in_pieces(octets, cuts)):
        desk = Desk(POLICY, {"bobby": b"FooBar"})
        for piece in pieces:
            desk.feed(piece)
        said.append(desk.said())
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize(
    ("before", "line", "shown"),
    [
        ([], "EHLO client.example", "EHLO client.example"),
        ([], "FOO\x1b[31m\xe4", r"FOO\x1b[31m\xc3\xa4"),
        ([], "AUTH PLAIN c2VjcmV0", "AUTH PLAIN ***"),
        ([], "auth plain c2VjcmV0", "AUTH PLAIN ***"),
        ([], "AUTH\tPLAIN\tc2VjcmV0", "AUTH PLAIN ***"),
        ([], "AUTH PLAIN", "AUTH PLAIN ***"),
        ([], "AUTH CRAM-MD5", "AUTH CRAM-MD5 ***"),
        (["AUTH PLAIN"], "c2VjcmV0", "***"),
        (["AUTH PLAIN"], "NOOP", "***"),
        (["AUTH LOGIN", "Ym9iYnk="], "c2VjcmV0", "***"),
        (["AUTH LOGIN", "*"], "NOOP", "NOOP"),
        # a client that has not seen the end of the exchange
        (["AUTH LOGIN", "!"], "c2VjcmV0", "***"),
        (["AUTH GSSAPI"], "c2VjcmV0", "***"),
        (["AUTH GSSAPI", "c2VjcmV0"], "c2VjcmV0", "***"),
        (["AUTH GSSAPI", "NOOP"], "c2VjcmV0", "c2VjcmV0"),
    ],
)
def test_a_log_may_show_a_line_but_no_secret(before, line, shown):
    session = Session(POLICY, LOOPBACK)
    for earlier in before:
        session.line(earlier.encode())
    assert session.shown(line.encode()) == shown


@pytest.mark.parametrize("line", ["AUTH c2VjcmV0", "AUTH PLAIN=c2VjcmV0", "AUTH  c2VjcmV0  x"])
def test_what_is_no_mechanism_may_be_a_secret(line):
    shown = Session(POLICY, LOOPBACK).shown(line.encode())
    assert "c2VjcmV0" not in shown
    assert shown.startswith("AUTH ")


@pytest.mark.parametrize("end", [b"*", b"!", b64(b"\0a\0b").encode(), b64(b"a").encode()])
def test_after_the_last_response_lines_are_commands_again(end):
    session = Session(POLICY, LOOPBACK)
    session.line(b"AUTH PLAIN")
    step = session.line(end)
    if isinstance(step, Verify):
        session.judged(Judgement(Verdict.REJECTED))
    assert session.shown(b"NOOP") == "NOOP"
    assert session.line(b"NOOP") is replies.OK


PROVED = Judgement(Verdict.ACCEPTED, b"v=abc")
BY_SCRAM = [b"AUTH SCRAM-SHA-1 " + b64(b"n,,n=Bobby,r=x").encode(), b64(b"last").encode()]


def in_the_middle(judgement):
    """A session that has had both messages of SCRAM, and what it says to the judgement."""
    session = Session(POLICY, LOOPBACK)
    first, last = BY_SCRAM
    assert session.line(first) == MakeChallenge("SCRAM-SHA-1", b"n,,n=Bobby,r=x")
    assert session.challenged(b"r=xy").lines == (b64(b"r=xy"),)
    assert session.line(last) == Verify(Scram("bobby", b"last"), "SCRAM-SHA-1")
    return session, session.judged(judgement)


@pytest.mark.parametrize("seen", [b"", b"="])
def test_whom_the_server_has_proved_something_is_logged_in_when_he_says_so(seen):
    session, prompt = in_the_middle(PROVED)
    assert (prompt.code, prompt.lines) == (334, (b64(b"v=abc"),))
    assert session.login == ""
    assert session.line(seen) is replies.AUTH_ACCEPTED
    assert session.login == "bobby"


@pytest.mark.parametrize("doubt", [b"*", b64(b"no").encode(), b"!", b"MAIL FROM:<a@example.org>"])
def test_who_does_not_believe_the_server_is_not_logged_in(doubt):
    session, _ = in_the_middle(PROVED)
    assert session.line(doubt).code == 501
    assert session.login == ""
    assert session.line(b"MAIL FROM:<a@example.org>") is replies.AUTH_REQUIRED
    # and may try again: what was proved is no part of the next exchange
    session.line(b"AUTH LOGIN")
    assert isinstance(session.line(b"//8="), Verify)
    assert session.judged(Judgement(Verdict.REJECTED)) is replies.AUTH_REJECTED


def test_a_proof_is_not_told_to_whom_it_is_not_for():
    for verdict in (Verdict.REJECTED, Verdict.UNAVAILABLE):
        session, reply = in_the_middle(Judgement(verdict, b"v=abc"))
        assert reply in (replies.AUTH_REJECTED, replies.AUTH_TEMPORARY)
        assert session.line(b"") is not replies.AUTH_ACCEPTED
        assert session.login == ""


def test_without_a_challenge_the_next_line_is_a_command():
    session = Session(POLICY, LOOPBACK)
    for line in (BY_SCRAM[0], b"AUTH CRAM-MD5"):
        assert isinstance(session.line(line), MakeChallenge)
        assert session.challenged(b"") is replies.AUTH_TEMPORARY
        assert session.line(b"NOOP") is replies.OK


@pytest.mark.parametrize(("seconds", "shown"), [(0.01, 1), (59.2, 60), (3600, 3600)])
def test_who_must_wait_is_told_how_long_and_hung_up_on(seconds, shown):
    session = Session(POLICY, LOOPBACK)
    session.line(GOOD_LOGIN.encode())
    reply = session.judged(Judgement(Verdict.REJECTED, wait=seconds))
    assert (reply.code, reply.detail, reply.closes) == (421, "7.0", True)
    assert f"try again in {shown} seconds" in str(reply)


def test_a_line_may_be_longer_only_until_the_login():
    session = Session(POLICY, LOOPBACK)
    assert session.line_limit_octets == 12288
    session.line(GOOD_LOGIN.encode())
    session.judged(Judgement(Verdict.ACCEPTED))
    assert session.line_limit_octets == 4096


def test_a_line_that_was_none_counts_as_an_error():
    session = Session(Policy("mx.example", max_errors=3), LOOPBACK)
    assert session.bad_line(replies.BARE_LINE_END) is replies.BARE_LINE_END
    assert session.line(b"FOO").code == 502
    assert session.bad_line(replies.LINE_TOO_LONG) is replies.TOO_MANY_ERRORS
    assert session.line(b"FOO") is replies.TOO_MANY_ERRORS


def test_a_failed_login_is_no_error_of_the_other_kind():
    session = Session(Policy("mx.example", ALL_MECHANISMS, max_errors=1), LOOPBACK)
    session.line(BAD_LOGIN.encode())
    assert session.judged(Judgement(Verdict.REJECTED)) is replies.AUTH_REJECTED


@pytest.mark.parametrize("problem", [replies.MESSAGE_TOO_BIG, replies.NO_ROOM])
def test_a_message_that_cannot_be_used_ends_the_transaction(problem):
    session = logged_in()
    for line in (b"MAIL FROM:<a@example.org>", b"RCPT TO:<x@example.net>"):
        assert session.line(line).positive
    assert isinstance(session.line(b"DATA"), Receive)
    assert session.received(problem) is problem
    assert session.line(b"DATA") is replies.NEED_MAIL


def test_the_envelope_tells_how_the_message_came_in():
    session = logged_in()
    session.line("EHLO grüße\x07 x".encode())
    session.line(b"MAIL FROM:<a@example.org> SIZE=7 BODY=8BITMIME")
    session.line(b"RCPT TO:<x@example.net>")
    session.line(b"DATA")
    envelope = session.received(None).envelope
    assert envelope.login == "bobby"
    assert envelope.helo == r"gr\xfc\xdfe\x07 x"
    assert (envelope.sender, envelope.recipients) == ("a@example.org", ["x@example.net"])
    assert (envelope.size_octets, envelope.eight_bit) == (7, True)
    assert (envelope.protocol, envelope.peer) == ("ESMTPA", LOOPBACK)


def test_a_long_ehlo_name_is_shortened():
    session = logged_in()
    session.line(b"EHLO " + b"x" * 4000)
    session.line(b"MAIL FROM:<a@example.org>")
    session.line(b"RCPT TO:<x@example.net>")
    session.line(b"DATA")
    assert len(session.received(None).envelope.helo) <= 258


@pytest.mark.parametrize("octets", [b"\xff" * 4096, b"MAIL FROM:<" + b'"' * 4000, b"AUTH " * 800])
def test_no_line_takes_long(octets):
    session = logged_in()
    begun = time.process_time()
    session.line(octets)
    assert time.process_time() - begun < 0.5
