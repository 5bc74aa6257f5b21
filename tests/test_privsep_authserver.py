"""Auth as the server and the monitor see it: challenges, judgements, and what can be offered."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest
from fakes import ALL_MECHANISMS, PATIENCE_SECONDS, ScramClient, wait_for

from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import CramMd5, Judgement, Origin, Password, Scram, Verdict
from tofmipd.auth.passwordfile import PasswordFile
from tofmipd.privsep import authserver, frames
from tofmipd.privsep.authserver import NO_CHALLENGE, AuthServer, Files
from tofmipd.privsep.channel import Channel, Gone
from tofmipd.privsep.frames import Control, Kind, Login, Opening
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.logins import Logins
from tofmipd.privsep.offer import Offer
from tofmipd.settings import Limits

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
HERE = Origin("192.0.2.7", "192.0.2.1")


class Auth:
    """An auth process in a thread; the test is the monitor and the server."""

    def __init__(self, path) -> None:
        self.path = path
        self.offer = Offer(frozenset())
        self.monitor, control = Channel.pair()
        self.monitor.limit_waiting(PATIENCE_SECONDS)
        chain = Chain([PasswordFile(str(path), os.getuid())])
        logins = Logins(chain, "mx.example", lambda login: Identity("acc", login), Limits())
        self.server = AuthServer(control, logins, Files(control, ()), self.offer)
        self._control = control
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        assert self.heard(frames.FROM_AUTH).kind == Kind.READY
        self._main, theirs = Channel.pair()
        with theirs:
            self.monitor.send(Control(Kind.CONNECT).encode(), [theirs.fileno()])
        self.channels = [self._main]

    def heard(self, table) -> Control:
        octets = self.monitor.receive_strictly(frames.CONTROL_LIMIT_OCTETS)
        return frames.decode_control(octets, table)

    def channel(self) -> Channel:
        ours, theirs = Channel.pair()
        with theirs:
            self._main.send(Control(Kind.CONNECT).encode(), [theirs.fileno()])
        ours.limit_waiting(PATIENCE_SECONDS)
        self.channels.append(ours)
        return ours

    def close(self) -> None:
        self.monitor.send(Control(Kind.STOP).encode())
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        for channel in (*self.channels, self.monitor, self._control):
            channel.close()


@pytest.fixture
def auth(tmp_path, monkeypatch) -> Iterator[Auth]:
    monkeypatch.setattr(authserver, "_LOOK_SECONDS", 0.02)
    path = tmp_path / "tofmipd"
    path.write_text("bobby:FooBar\n")
    path.chmod(0o600)
    made = Auth(path)
    yield made
    made.close()


def challenge(channel, session, mechanism, message) -> bytes:
    channel.send(frames.encode_opening(Opening(session, mechanism, message)))
    return channel.receive(frames.WORK_LIMIT_OCTETS)


def judgement(channel, session, mechanism, credentials) -> tuple[Judgement, str]:
    channel.send(frames.encode_login(Login(session, "1f", mechanism, credentials, HERE)))
    return frames.decode_judgement(channel.receive(frames.WORK_LIMIT_OCTETS))


def test_a_password_is_judged_and_the_monitor_hears_first_whom_it_proves(auth):
    channel = auth.channel()
    assert judgement(channel, 7, "PLAIN", Password("bobby", b"FooBar")) == (Judgement(YES), "acc")
    assert auth.heard(frames.FROM_AUTH) == Control(Kind.PROVED, 7, ("acc", "bobby"))
    found, account = judgement(channel, 7, "PLAIN", Password("bobby", b"Wrong"))
    assert (found.verdict, found.delay, account) == (NO, Limits().failure_delay, "")


def test_scram_is_done_over_any_channels(auth):
    client = ScramClient("SCRAM-SHA-256", b"bobby", b"FooBar")
    text = challenge(auth.channel(), 7, "SCRAM-SHA-256", client.first)
    found, account = judgement(
        auth.channel(), 7, "SCRAM-SHA-256", Scram("bobby", client.final(text))
    )
    assert (found, account) == (Judgement(YES, client.expected), "acc")


def test_a_challenge_is_its_session_s_alone_and_serves_once(auth):
    channel = auth.channel()
    client = ScramClient("SCRAM-SHA-256", b"bobby", b"FooBar")
    final = Scram("bobby", client.final(challenge(channel, 7, "SCRAM-SHA-256", client.first)))
    assert judgement(channel, 8, "SCRAM-SHA-256", final)[0].verdict is MAYBE
    assert judgement(channel, 7, "SCRAM-SHA-256", final)[0].verdict is YES
    assert judgement(channel, 7, "SCRAM-SHA-256", final)[0].verdict is MAYBE
    assert judgement(channel, 7, "CRAM-MD5", CramMd5("bobby", b"0" * 32))[0].verdict is MAYBE


def test_one_that_can_be_made_for_nobody_is_told_so(auth):
    channel = auth.channel()
    for message in (b"", b"n,,x", b"n,,n=\xff,r=x"):
        assert challenge(channel, 7, "SCRAM-SHA-256", message) == NO_CHALLENGE
    assert challenge(channel, 7, "CRAM-MD5", b"").startswith(b"<")


def test_challenges_that_nobody_answers_are_forgotten(auth, monkeypatch):
    monkeypatch.setattr(authserver, "_CHALLENGES_LIMIT", 10)
    channel = auth.channel()
    for number in range(100):
        challenge(channel, number, "CRAM-MD5", b"")
    assert sorted(auth.server._challenges) == list(range(90, 100))


def test_what_can_be_offered_follows_the_file(auth):
    wait_for(lambda: auth.offer.mechanisms == set(ALL_MECHANISMS))
    auth.path.write_text("bobby:FooBar\nchloe:$1$a$b\n")
    wait_for(lambda: auth.offer.mechanisms == {"PLAIN", "LOGIN"})
    auth.path.write_text("bobby:FooBar\n")
    wait_for(lambda: auth.offer.mechanisms == set(ALL_MECHANISMS))


@pytest.mark.parametrize(
    ("request_", "broken"),
    [
        (Opening(7, "SCRAM-SHA-256", b"n,,n=bobby,r=x"), "challenge"),
        (Login(7, "1f", "PLAIN", Password("bobby", b"FooBar"), HERE), "judge"),
    ],
)
def test_a_bug_costs_one_request_only(auth, monkeypatch, caplog, request_, broken):
    def bug(*arguments):
        raise RuntimeError("a bug")

    channel = auth.channel()
    with monkeypatch.context() as patch:
        patch.setattr(auth.server._logins, broken, bug)
        if broken == "challenge":
            assert challenge(channel, 7, request_.mechanism, request_.message) == NO_CHALLENGE
        else:
            assert judgement(channel, 7, "PLAIN", request_.credentials) == (Judgement(MAYBE), "")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert judgement(channel, 7, "PLAIN", Password("bobby", b"FooBar"))[0].verdict is YES


@pytest.mark.parametrize("octets", [b"x", b"\xff" * 100, b"\0" * 100])
def test_a_request_that_is_none_ends_its_channel_alone(auth, octets, caplog):
    bad, good = auth.channel(), auth.channel()
    bad.send(octets)
    with pytest.raises(Gone):
        bad.receive(100)
    assert "the server breaks the protocol towards auth" in caplog.text
    assert challenge(good, 7, "CRAM-MD5", b"").startswith(b"<")
