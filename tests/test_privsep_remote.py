"""The server's side of global mode: the test is the monitor, auth and the workers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import logging
import os
import select
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from fakes import (
    ALL_MECHANISMS,
    LOOPBACK,
    PATIENCE_SECONDS,
    TAKEN,
    Client,
    content_of,
    tcp_pair,
    wait_for,
)
from forking import in_child

from tofmipd import events
from tofmipd import log as log_module
from tofmipd.auth.credentials import CramMd5, Judgement, Origin, Password, Scram, Verdict
from tofmipd.content import MEMORY_LIMIT_OCTETS
from tofmipd.privsep import authchannels, frames, remote
from tofmipd.privsep.authchannels import AuthChannels
from tofmipd.privsep.authserver import NO_CHALLENGE
from tofmipd.privsep.channel import Channel, Gone
from tofmipd.privsep.frames import Control, Kind, Opening, Refusal
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.offer import Offer
from tofmipd.privsep.quota import Quota
from tofmipd.privsep.remote import RemoteGate, RemotePass
from tofmipd.privsep.throttle import Throttle
from tofmipd.pump import Pump
from tofmipd.settings import Limits, Quotas, Rate
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import Policy, Session
from tofmipd.wire import Wire

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
PEER = Peer("192.0.2.7", 40000, False, "192.0.2.1")
RIGHT = Password("bobby", b"FooBar")
MESSAGE = b"Subject: test\r\n\r\nHello\r\n"
NUMBER = 0x1F

NOT_NOW = "451 4.3.0 Error: your mail cannot be dealt with now, try again later"
NO_WORKER = "451 4.3.2 Error: too many users at the moment, try again later"
DIED = "451 4.3.0 Error: the process for your mail has died, the log has more"
STUCK = "451 4.3.0 Error: the process for your mail does not answer, try again later"


def envelope(count: int = 1) -> Envelope:
    recipients = [f"r{number}@example.net" for number in range(count)]
    return Envelope("a@example.org", "bobby", "laptop", "ESMTPA", PEER, 0, False, recipients)


class AuthEnd:
    """Auth by hand: takes channels from the server, one after the other."""

    def __init__(self) -> None:
        self.main, self.servers = Channel.pair()
        self.main.limit_waiting(3)

    def channel(self) -> Channel:
        octets, (descriptor,) = self.main.receive_with(frames.CONTROL_LIMIT_OCTETS, 1)
        frames.decode_control(octets, frames.TO_AUTH_FROM_SERVER)
        channel = Channel.of(descriptor)
        channel.limit_waiting(PATIENCE_SECONDS)
        return channel


def request(channel: Channel) -> frames.Login | Opening:
    return frames.decode_auth_request(channel.receive_strictly(frames.WORK_LIMIT_OCTETS))


class WorkerEnd:
    """A worker by hand."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        channel.limit_waiting(PATIENCE_SECONDS)

    def take(self) -> tuple[Envelope, str, bytes]:
        octets, descriptors = self.channel.receive_with(frames.WORK_LIMIT_OCTETS, 2)
        submission = frames.decode_submission(octets)
        assert len(descriptors) == submission.files
        encoded, message = submission.envelope, submission.inline
        sizes = [submission.envelope_octets, submission.size_octets]
        parts = []
        for part, size in zip((encoded, message), sizes, strict=True):
            if part is None:
                descriptor = descriptors.pop(0)
                part = os.pread(descriptor, size + 1, 0)
                os.close(descriptor)
            assert len(part) == size
            parts.append(part)
        return *frames.decode_envelope(parts[0], "bobby"), parts[1]

    def answer(self, reply: Reply = TAKEN, *lines: frames.LogLine) -> None:
        self.channel.send(frames.encode_answer(reply, list(lines)))

    def close(self) -> None:
        self.channel.close()


class Court:
    """A gate with a monitor by hand; what may wait runs in threads of ``pool``."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        throttle: Throttle | None = None,
        quota: Quota | None = None,
    ) -> None:
        self.monitor, control = Channel.pair()
        self.monitor.limit_waiting(PATIENCE_SECONDS)
        offer = Offer(frozenset(ALL_MECHANISMS))
        self.gate = RemoteGate(control, offer, PATIENCE_SECONDS, throttle, quota=quota)
        self.stopped = threading.Event()
        self.pool = pool
        self._control = control
        self._auth: tuple[Channel, Channel] | None = None
        self._obeying = threading.Thread(target=self._obey)
        self._obeying.start()

    def _obey(self) -> None:
        with contextlib.suppress(SystemExit):
            self.gate.obey(self.stopped.set)

    def new_auth(self) -> AuthEnd:
        auth = AuthEnd()
        with auth.servers:
            self.monitor.send(Control(Kind.CONNECT).encode(), [auth.servers.fileno()])
        return auth

    def logged_in(
        self, session: str = "1f", login: str = "bobby", account: str = "bobby"
    ) -> RemotePass:
        """A session that auth has found to be ``login``, who stands for ``account``."""
        gate_pass = self.gate.admit(session, PEER)
        verdict = self.pool.submit(gate_pass.verify, Password(login, b"FooBar"), "PLAIN")
        if self._auth is None:
            auth = self.new_auth()
            self._auth = auth.main, auth.channel()
        channel = self._auth[1]
        request(channel)
        channel.send(frames.encode_judgement(Judgement(YES), account))
        assert done(verdict) == Judgement(YES)
        return gate_pass

    def submit(self, gate_pass: RemotePass, message: bytes = MESSAGE, count: int = 1) -> Future:
        return self.pool.submit(gate_pass.submit, envelope(count), content_of(message))

    def heard(self) -> Control:
        """What the server says next to the monitor."""
        octets = self.monitor.receive_strictly(frames.CONTROL_LIMIT_OCTETS)
        return frames.decode_control(octets, frames.FROM_SERVER)

    def heard_nothing(self) -> bool:
        self.monitor.limit_waiting(0.02)
        try:
            self.heard()
        except TimeoutError:
            self.monitor.limit_waiting(PATIENCE_SECONDS)
            return True
        return False

    def give(self, number: int) -> WorkerEnd:
        ours, theirs = Channel.pair()
        with theirs:
            self.monitor.send(Control(Kind.GRANTED, number).encode(), [theirs.fileno()])
        return WorkerEnd(ours)

    def grant(self, number: int = NUMBER) -> WorkerEnd:
        """Wait for the wish, and grant it."""
        assert self.heard() == Control(Kind.GRANT, number)
        return self.give(number)

    def refuse(self, refusal: Refusal) -> None:
        frame = self.heard()
        self.monitor.send(Control(Kind.REFUSED, frame.number, (str(int(refusal)),)).encode())

    def close(self) -> None:
        """The thread that obeys would end the process; it ends itself here."""
        self.monitor.close()
        self._obeying.join(PATIENCE_SECONDS)
        assert not self._obeying.is_alive()
        for channel in (self._control, *(self._auth or ())):
            channel.close()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(20) as threads:
        yield threads


@pytest.fixture
def courts(pool, monkeypatch):
    def ends(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", ends)
    made = []

    def make(**options) -> Court:
        made.append(Court(pool, **options))
        return made[-1]

    yield make
    for court in made:
        court.close()


@pytest.fixture
def court(courts):
    return courts()


def done(future: Future):
    return future.result(PATIENCE_SECONDS)


# Logins.


def test_challenge_and_verdict_go_through_one_channel_that_is_kept(court):
    auth = court.new_auth()
    gate_pass = court.gate.admit("1f", PEER)
    with contextlib.ExitStack() as stack:
        channel = None
        for mechanism, message, said, heard in (
            ("CRAM-MD5", b"", b"<1.2@mx>", b"<1.2@mx>"),
            ("SCRAM-SHA-1", b"n,,n=bobby,r=x", b"r=xy", b"r=xy"),
            ("SCRAM-SHA-1", b"n,,n=bobby,r=x", NO_CHALLENGE, b""),
        ):
            challenge = court.pool.submit(gate_pass.challenge, mechanism, message)
            if channel is None:
                stack.enter_context(auth.main)
                channel = stack.enter_context(auth.channel())
            assert request(channel) == Opening(NUMBER, mechanism, message)
            channel.send(said)
            assert done(challenge) == heard
        for credentials, said in (
            (CramMd5("bobby", b"00"), Judgement(NO, delay=2, wait=60)),
            (RIGHT, Judgement(MAYBE)),
            (Scram("bobby", b"last", b"channel"), Judgement(YES, b"v=abc")),
        ):
            verdict = court.pool.submit(gate_pass.verify, credentials, "SOME")
            origin = Origin("192.0.2.7", "192.0.2.1")
            assert request(channel) == frames.Login(NUMBER, "1f", "SOME", credentials, origin)
            channel.send(frames.encode_judgement(said))
            assert done(verdict) == said


def test_logins_at_the_same_time_do_not_wait_for_each_other(court):
    auth = court.new_auth()
    count = remote._IDLE_CHANNELS + 3
    passes = [court.gate.admit(f"{number:x}", PEER) for number in range(count)]
    verdicts = [court.pool.submit(one.verify, RIGHT, "PLAIN") for one in passes]
    with auth.main:
        channels = [auth.channel() for _ in range(count)]
        assert {request(channel).session for channel in channels} == set(range(count))
        for channel in channels:
            channel.send(frames.encode_judgement(Judgement(NO)))
        assert [done(verdict) for verdict in verdicts] == [Judgement(NO)] * count
        assert len(court.gate.auth._idle) == remote._IDLE_CHANNELS
        for channel in channels:
            channel.close()


def die(auth: AuthEnd, channel: Channel, *, first: str) -> None:
    """The order in which the kernel closes what a killed process had is nobody's choice."""
    if first == "main":
        auth.main.close()
        channel.close()
        return
    channel.close()
    poll = select.poll()
    poll.register(auth.main, select.POLLIN)
    poll.poll(200)  # a server that is quick asks for another channel, one that waits does not
    auth.main.close()


@pytest.mark.parametrize("first", ["main", "channel"])
@pytest.mark.parametrize("read", [False, True])
def test_a_login_whose_auth_dies_is_judged_by_the_next(court, read, first):
    """Judging twice does no harm."""
    auth = court.new_auth()
    verdict = court.pool.submit(court.gate.admit("1f", PEER).verify, RIGHT, "PLAIN")
    channel = auth.channel()
    if read:
        request(channel)
    die(auth, channel, first=first)
    if first == "main":
        wait_for(lambda: court.gate.auth._main is None)
    successor = court.new_auth()
    with successor.main, successor.channel() as channel:
        assert request(channel).credentials == RIGHT
        channel.send(frames.encode_judgement(Judgement(YES)))
        assert done(verdict) == Judgement(YES)


class LateChannel(Channel):
    """One whose sender loses its turn before it sends."""

    def __init__(self, sock) -> None:
        super().__init__(sock)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def send(self, octets, descriptors=()) -> None:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_SECONDS)
        super().send(octets, descriptors)


def test_auth_may_be_replaced_while_a_login_asks_for_a_channel(pool):
    channels = AuthChannels(PATIENCE_SECONDS)
    main, auth = LateChannel.pair()
    channels.connect(main)
    answer = pool.submit(channels.ask, b"question")
    assert main.begun.wait(PATIENCE_SECONDS)
    auth.close()
    successor = AuthEnd()
    channels.connect(successor.servers)
    main.go_on.set()
    with successor.main, successor.servers, successor.channel() as channel:
        assert channel.receive(100) == b"question"
        channel.send(b"answer")
        assert done(answer) == b"answer"


def test_channels_to_an_auth_of_the_past_are_closed(court):
    gate_pass = court.gate.admit("1f", PEER)
    kept = []
    for _ in range(2):
        auth = court.new_auth()
        for channel in kept:
            with pytest.raises(Gone):
                channel.receive(frames.WORK_LIMIT_OCTETS)
        verdict = court.pool.submit(gate_pass.verify, RIGHT, "PLAIN")
        kept += [auth.channel(), auth.main]
        request(kept[-2])
        kept[-2].send(frames.encode_judgement(Judgement(NO)))
        assert done(verdict) == Judgement(NO)
    for channel in kept:
        channel.close()


def test_a_login_that_kills_auth_twice_is_unavailable(court, caplog):
    verdict = court.pool.submit(court.gate.admit("1f", PEER).verify, RIGHT, "PLAIN")
    for _ in range(2):
        auth = court.new_auth()
        channel = auth.channel()
        request(channel)
        die(auth, channel, first="main")
        wait_for(lambda: court.gate.auth._main is None or verdict.done())
    assert done(verdict) == Judgement(MAYBE)
    assert caplog.messages == ["s=1f auth does not answer: the other end is closed"]


def test_without_auth_a_login_is_unavailable_after_a_while(court, monkeypatch):
    monkeypatch.setattr(authchannels, "_AUTH_START_SECONDS", 0.05)
    gate_pass = court.gate.admit("1f", PEER)
    assert gate_pass.verify(RIGHT, "PLAIN") == Judgement(MAYBE)
    gone = court.new_auth()
    gone.main.close()
    assert gate_pass.verify(RIGHT, "PLAIN") == Judgement(MAYBE)
    assert str(gate_pass.submit(envelope(), content_of(MESSAGE))) == str(replies.AUTH_REQUIRED)


def test_a_login_that_auth_does_not_answer_is_unavailable_in_time(caplog):
    channels = AuthChannels(0.05)
    auth = AuthEnd()
    channels.connect(auth.servers)
    with auth.main:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            channels.ask(b"question")
        assert time.monotonic() - begun < PATIENCE_SECONDS
        # It is not asked again: it may be at work still.
        with auth.channel() as channel:
            assert channel.receive(100) == b"question"
        auth.main.limit_waiting(0.02)
        with pytest.raises(TimeoutError):
            auth.channel()
    auth.servers.close()


def fill(channel: Channel) -> None:
    """Send until nothing more fits."""
    for _ in range(10_000):
        channel.send(b"x" * 1000)


def test_where_auth_takes_no_more_channels_nobody_waits_without_end(pool):
    """It is stopped, or busy for ever: the queue to it is full some time."""
    channels = AuthChannels(0.05)
    auth = AuthEnd()
    auth.servers.never_wait()
    with pytest.raises(BlockingIOError):
        fill(auth.servers)
    auth.servers._socket.setblocking(True)
    channels.connect(auth.servers)
    answer = pool.submit(channels.ask, b"question")
    ended, _ = concurrent.futures.wait([answer], timeout=1)
    successor = AuthEnd()
    channels.connect(successor.servers)
    auth.main.close()
    successor.main.close()
    assert ended


@pytest.mark.parametrize("garbage", [b"\3", b"\0\0", b"\xff" * 100, b"x" * 100_000])
def test_a_garbled_verdict_is_none(court, garbage, caplog):
    auth = court.new_auth()
    gate_pass = court.gate.admit("1f", PEER)
    verdict = court.pool.submit(gate_pass.verify, RIGHT, "PLAIN")
    with auth.main, auth.channel() as channel:
        request(channel)
        channel.send(garbage)
        assert done(verdict) == Judgement(MAYBE)
    assert str(gate_pass.submit(envelope(), content_of(MESSAGE))) == str(replies.AUTH_REQUIRED)
    assert caplog.messages[0].startswith("s=1f auth does not answer: ")


def test_without_auth_a_client_that_wants_a_challenge_is_told_to_try_later(
    court, monkeypatch, caplog
):
    """As for any other login; nothing here is a defect."""
    monkeypatch.setattr(authchannels, "_AUTH_START_SECONDS", 0.05)
    ours, theirs = tcp_pair()
    pump = Pump(
        Wire(ours),
        Session(Policy("mx.example", ALL_MECHANISMS), LOOPBACK),
        court.gate.admit("1f", LOOPBACK),
        Limits(failure_delay=0),
        threading.Event(),
        session_id="1f",
    )
    running = court.pool.submit(pump.run)
    client = Client(theirs)
    client.reply()
    replied = []
    for line in ("EHLO x", "AUTH CRAM-MD5", "QUIT"):
        client.socket.sendall(line.encode() + b"\r\n")
        replied.append(client.reply())
    done(running)
    client.socket.close()
    assert replied[1] == str(replies.AUTH_TEMPORARY)
    assert "Traceback" not in caplog.text


# Grants.


def test_a_worker_is_asked_for_once_for_all_messages_of_a_login(court):
    replied = []
    for session in ("1f", "1f", "20"):
        reply = court.submit(court.logged_in(session))
        if not replied:
            worker = court.grant()
        assert worker.take() == (envelope(), session, MESSAGE)
        worker.answer(Reply(250, "0.0", (f"Ok: {len(replied)}",)))
        replied.append(str(done(reply)))
    assert replied == [f"250 2.0.0 Ok: {number}" for number in range(3)]
    assert court.heard_nothing()
    worker.close()


def test_another_login_gets_no_channel_of_this_one(court):
    """Nor does this one, when its domain belongs to somebody else by now."""
    whose = [
        ("anna", "anna"),
        ("bert", "bert"),
        ("a@example.org", "anna"),
        ("a@example.org", "bert"),
    ]
    for session, (login, account) in enumerate(whose, 1):
        reply = court.submit(court.logged_in(f"{session:x}", login, account))
        worker = court.grant(session)
        worker.take()
        worker.answer()
        assert done(reply) == TAKEN
        worker.close()


def test_messages_of_a_login_at_the_same_time_have_each_its_own_channel(court):
    count = frames.MESSAGES_AT_ONCE
    replied = {n: court.submit(court.logged_in(f"{n:x}")) for n in range(1, count + 1)}
    numbers = [court.heard().number for _ in replied]
    workers = {number: court.give(number) for number in reversed(numbers)}
    for number, worker in workers.items():
        _, session_id, _ = worker.take()
        assert session_id == f"{number:x}"
        worker.answer(Reply(250, "0.0", (f"Ok: {number}",)))
        assert str(done(replied[number])) == f"250 2.0.0 Ok: {number}"
    (idle,) = court.gate._idle.values()
    assert len(idle.channels) == count
    court.gate.forget_worker(Identity("bobby", "bobby"))
    for worker in workers.values():
        with pytest.raises(Gone):
            worker.take()
        worker.close()


def test_further_messages_of_a_login_wait_for_their_turn(court):
    """A user's hundred connections are no hundred threads of his worker."""
    limit = frames.MESSAGES_AT_ONCE
    replied = [court.submit(court.logged_in(f"{n:x}")) for n in range(1, limit + 1)]
    workers = [court.give(court.heard().number) for _ in replied]
    for worker in workers:
        worker.take()
    late = [court.submit(court.logged_in(f"{n:x}")) for n in range(101, 104)]
    assert court.heard_nothing()
    for worker in workers:
        worker.answer()
    assert [done(reply) for reply in replied] == [TAKEN] * limit
    # They come on channels that are free now, whichever these are.
    for _ in late:
        wait_for(lambda: any(worker.channel.has_something() for worker in workers))
        ready = next(worker for worker in workers if worker.channel.has_something())
        ready.take()
        ready.answer()
    assert [done(reply) for reply in late] == [TAKEN] * len(late)
    assert court.gate._idle[Identity("bobby", "bobby")].busy == 0


def test_who_waits_for_a_turn_in_vain_may_try_later(court, monkeypatch):
    monkeypatch.setattr(remote, "_TURN_SECONDS", 0.05)
    monkeypatch.setattr(frames, "MESSAGES_AT_ONCE", 1)
    first = court.submit(court.logged_in("1"))
    worker = court.grant(1)
    worker.take()
    assert str(court.logged_in("2").submit(envelope(), content_of(b"x"))).startswith("451 4.3.2")
    worker.answer()
    assert done(first) == TAKEN


def test_the_monitor_hears_now_and_then_that_a_worker_is_in_use(court, monkeypatch):
    monkeypatch.setattr(remote, "_USED_SECONDS", 0)
    gate_pass = court.logged_in()
    reply = court.submit(gate_pass)
    worker = court.grant()
    for last in (False, True):
        worker.take()
        worker.answer()
        assert done(reply) == TAKEN
        if not last:
            reply = court.submit(gate_pass)
            assert court.heard() == Control(Kind.USED, NUMBER)
    worker.close()


def test_channels_that_nobody_uses_are_given_back_some_time(court, monkeypatch):
    for number, login in ((1, "anna"), (2, "bert")):
        reply = court.submit(court.logged_in(f"{number}", login, login))
        worker = court.grant(number)
        worker.take()
        worker.answer()
        assert done(reply) == TAKEN
        if login == "anna":
            annas = worker
            monkeypatch.setattr(remote, "_SWEEP_SECONDS", 0)
    with pytest.raises(Gone):
        annas.take()
    assert list(court.gate._idle) == [Identity("bert", "bert")]
    annas.close()
    worker.close()


def test_the_monitor_hears_of_sessions_that_have_ended_in_batches(court):
    for number in range(1, remote._ENDED_AT_ONCE):
        court.logged_in(f"{number:x}").close()
    assert court.heard_nothing()
    court.logged_in("ff").close()
    ended = [court.heard() for _ in range(remote._ENDED_AT_ONCE)]
    assert {frame.kind for frame in ended} == {Kind.END}
    assert {frame.number for frame in ended} == {*range(1, remote._ENDED_AT_ONCE), 0xFF}


def test_who_has_not_logged_in_gets_nothing_and_nobody_hears_of_him(court):
    for _ in range(remote._ENDED_AT_ONCE):
        gate_pass = court.gate.admit("1f", PEER)
        assert gate_pass.submit(envelope(), content_of(MESSAGE)) == replies.AUTH_REQUIRED
        gate_pass.close()
    assert court.heard_nothing()


@pytest.mark.parametrize(
    ("refusal", "heard"), [(Refusal.NOT_PROVED, NOT_NOW), (Refusal.NO_ROOM, NO_WORKER)]
)
def test_a_refusal_of_the_monitor_is_a_reason_to_try_later(court, refusal, heard, caplog):
    gate_pass = court.logged_in()
    for _ in range(2):
        reply = court.submit(gate_pass)
        court.refuse(refusal)
        assert str(done(reply)) == heard
    assert caplog.messages == [f"s=1f no worker: {heard}"] * 2


def test_a_grant_that_comes_too_late_is_given_back(court, monkeypatch):
    monkeypatch.setattr(remote, "_GRANT_LIMIT_SECONDS", 0.05)
    gate_pass = court.logged_in()
    assert str(done(court.submit(gate_pass))) == NOT_NOW
    for _ in range(2):  # too late, and then for nobody at all
        late = court.give(NUMBER)
        with pytest.raises(Gone):
            late.take()
        late.close()


def test_a_throttle_is_asked_before_any_worker(courts, tmp_path):
    script = tmp_path / "throttle"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    court = courts(throttle=Throttle(str(script), "/bin", PATIENCE_SECONDS))
    reply = court.logged_in().submit(envelope(), content_of(MESSAGE))
    assert str(reply) == "450 4.7.1 Outgoing mail quota exceeded"
    assert court.heard_nothing()


def test_a_limit_is_asked_before_any_worker_and_counts_what_a_worker_has_taken(courts, tmp_path):
    rates = (Rate(3, 3600),)
    quota = Quota(Quotas(recipients=rates, file=str(tmp_path / "limits")))
    court = courts(quota=quota)
    gate_pass = court.logged_in()
    worker = None
    for count, reply in ((3, Reply(550, "1.1", ("no",))), (2, TAKEN), (1, TAKEN)):
        said = court.submit(gate_pass, count=count)
        worker = worker or court.grant()
        worker.take()
        worker.answer(reply)
        assert done(said) == reply
    told = str(done(court.submit(gate_pass)))
    assert told.startswith("452 4.7.1 You may send to 3 recipients in 1 hour: try again in ")
    assert court.heard_nothing()
    worker.close()
    quota.close()


# Workers that die.


def test_a_worker_that_has_not_read_the_message_is_replaced(court):
    gate_pass = court.logged_in()
    reply = court.submit(gate_pass)
    court.grant().close()
    worker = court.grant()
    worker.take()
    worker.channel.stop_reading()  # one that leaves: what was sent before is still done
    worker.answer()
    assert done(reply) == TAKEN
    reply = court.submit(gate_pass)
    successor = court.grant()
    assert successor.take() == (envelope(), "1f", MESSAGE)
    successor.answer()
    assert done(reply) == TAKEN
    worker.close()
    successor.close()


def test_a_session_does_not_ask_for_ever(court, caplog):
    reply = court.submit(court.logged_in())
    for _ in range(remote._ATTEMPTS):
        court.grant().close()
    assert str(done(reply)) == NOT_NOW
    assert court.heard_nothing()
    assert caplog.messages == ["s=1f no worker takes the message"]


@pytest.mark.parametrize("lines", [0, 1])
def test_a_message_that_a_worker_has_read_is_given_to_no_other(court, lines, caplog):
    """It may have been sent already."""
    gate_pass = court.logged_in()
    reply = court.submit(gate_pass)
    worker = court.grant()
    worker.take()
    for _ in range(lines):
        worker.channel.send(frames.encode_lines([]))
    worker.close()
    assert str(done(reply)) == DIED
    assert court.heard_nothing()
    assert caplog.messages == ["s=1f the worker has died with the message"]
    reply = court.submit(gate_pass)
    worker = court.grant()
    worker.take()
    worker.answer()
    assert done(reply) == TAKEN
    worker.close()


def test_a_worker_that_is_silent_is_reported_as_stuck(court, monkeypatch, caplog):
    monkeypatch.setattr(remote, "SILENCE_LIMIT_SECONDS", 0.05)
    gate_pass = court.logged_in()
    reply = court.submit(gate_pass)
    worker = court.grant()
    worker.take()
    assert court.heard() == Control(Kind.STUCK, NUMBER)
    assert str(done(reply)) == STUCK
    assert caplog.messages == ["s=1f the worker does not answer"]
    with pytest.raises(Gone):
        worker.answer()
    worker.close()
    reply = court.submit(gate_pass)
    worker = court.grant()
    worker.take()
    worker.answer()
    assert done(reply) == TAKEN
    worker.close()


def test_signs_of_life_are_an_answer_to_nothing_but_the_silence(court, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_LIMIT_SECONDS", 0.2)
    reply = court.submit(court.logged_in())
    worker = court.grant()
    worker.take()
    begun = time.monotonic()
    while time.monotonic() - begun < 0.5:
        worker.channel.send(frames.encode_lines([]))
        time.sleep(0.02)  # the worker's own pace
    worker.answer()
    assert done(reply) == TAKEN
    worker.close()


# Workers that are not to be believed.

GARBAGE = {
    "noise": b"\xff" * 50,
    "too long": frames.encode_lines([(20, "x" * 8000)] * 9),
    "cut": frames.encode_answer(TAKEN, [])[:-1],
    "longer": frames.encode_answer(TAKEN, []) + b"x",
    "220": frames.encode_answer(Reply(220, "", ("x",)), []),
    "354": frames.encode_answer(Reply(354, "", ("x",)), []),
    "235": frames.encode_answer(Reply(235, "7.0", ("AUTH successful",)), []),
    "two lines": frames.encode_answer(TAKEN, []).replace(b"Ok: taken", b"Ok\r\n250 x"),
    "grant": Control(Kind.GRANTED, 1).encode(),
    "submission": frames.Submission(0, 0, b"", b"").encode(),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_an_answer_that_is_none_ends_the_channel_and_asks_nobody_else(court, case, caplog):
    gate_pass = court.logged_in()
    reply = court.submit(gate_pass)
    worker = court.grant()
    worker.take()
    worker.channel.send(GARBAGE[case])
    assert str(done(reply)) == DIED
    assert caplog.messages[0].startswith("s=1f the worker breaks the protocol: ")
    assert court.heard_nothing()
    with pytest.raises(Gone):
        worker.answer()
    worker.close()


def test_descriptors_of_a_worker_are_thrown_away(court):
    reply = court.submit(court.logged_in())
    worker = court.grant()
    worker.take()
    before = len(os.listdir("/proc/self/fd"))
    worker.channel.send(frames.encode_lines([]), [0] * 200)
    worker.channel.send(frames.encode_answer(TAKEN, []), [0] * 200)
    assert done(reply) == TAKEN
    assert len(os.listdir("/proc/self/fd")) == before
    worker.close()


LINES = [
    ((20, "s=1f sent to <x>"), logging.INFO, "s=1f sent to <x>"),
    ((20, "s=2a auth accepted user='root'"), logging.INFO, "s=1f s=2a auth accepted user='root'"),
    ((20, "s=1f s=1f twice"), logging.INFO, "s=1f s=1f twice"),
    ((10, "detail"), logging.DEBUG, "s=1f detail"),
    ((40, "bad"), logging.ERROR, "s=1f bad"),
    ((50, "no such level"), logging.INFO, "s=1f no such level"),
    ((0, "nor this"), logging.INFO, "s=1f nor this"),
    ((30, "a\nb\r\0\x1b[2J\x7f"), logging.WARNING, r"s=1f a\nb\r\x00\x1b[2J\x7f"),
    ((20, "é %s %d"), logging.INFO, r"s=1f \xe9 %s %d"),
    ((20, ""), logging.INFO, "s=1f "),
]


def test_lines_of_a_worker_are_logged_under_the_id_of_the_session(court, caplog):
    caplog.set_level(logging.DEBUG)
    reply = court.submit(court.logged_in())
    worker = court.grant()
    worker.take()
    worker.channel.send(frames.encode_lines([line for line, _, _ in LINES]))
    worker.answer(TAKEN, (20, "last"))
    assert done(reply) == TAKEN
    expected = [(level, text) for _, level, text in LINES]
    got = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert got == [*expected, (logging.INFO, "s=1f last")]
    worker.close()


REFUSAL = ("s=%s refused: user=%r %s", ("2a", "root", "no"))
CLAIMS = [
    (events.packed(*REFUSAL, "", 1000), "refusal", "s=1f s=2a refused: user='root' no"),
    (
        events.packed("s=%s hand-off to %s failed: %s", ("1f", "h", "é\n"), "", 1000),
        "hand-off-failed",
        r"s=1f hand-off to h failed: \xe9\n",
    ),
    ('["s=%s auth %s", ["1f", "accepted"], ""]', "worker", 's=1f ["s=%s auth %s", ["1f", '),
    ("auth accepted user='root'", "worker", "s=1f worker: auth accepted user='root'"),
]


def test_events_of_a_worker_belong_to_the_session_whatever_it_claims(court, caplog):
    """As JSON; what no worker could have logged is text."""
    caplog.set_level(logging.DEBUG)
    court.gate.unpack = events.unpacked
    reply = court.submit(court.logged_in())
    worker = court.grant()
    worker.take()
    worker.answer(TAKEN, *((20, line) for line, _, _ in CLAIMS))
    assert done(reply) == TAKEN
    worker.close()
    told = [json.loads(events.Json().format(record)) for record in caplog.records]
    assert [(one["session"], one["event"]) for one in told] == [
        ("1f", name) for _, name, _ in CLAIMS
    ]
    for one, (_, _, text) in zip(told, CLAIMS, strict=True):
        assert one["message"].startswith(text)


def test_the_lines_of_a_message_are_bounded_in_number_and_length(court, caplog):
    caplog.set_level(logging.DEBUG)
    gate_pass = court.logged_in()
    limit = 2 * 3 + 200
    worker = None
    for _ in range(2):
        caplog.clear()
        reply = court.submit(gate_pass, count=3)
        worker = worker or court.grant()
        worker.take()
        for _ in range(100):
            worker.channel.send(frames.encode_lines([(20, "\x1b" * 8000)] * 7))
        worker.answer(TAKEN, *[(20, "more")] * 50)
        assert done(reply) == TAKEN
        assert len(caplog.records) == limit
        assert {len(message) for message in caplog.messages} == {8000 + len("s=1f ")}
    worker.close()


# Sizes.


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize(
    "octets", [0, 100, frames.INLINE_LIMIT_OCTETS, MEMORY_LIMIT_OCTETS, MEMORY_LIMIT_OCTETS + 1]
)
def test_an_envelope_and_a_message_of_any_size_arrive(court, count, octets):
    message = (bytes(range(256)) * (octets // 256 + 1))[:octets]
    content = content_of([message[:1000], message[1000:]])
    gate_pass = court.logged_in()
    before = len(os.listdir("/proc/self/fd"))
    reply = court.pool.submit(gate_pass.submit, envelope(count), content)
    worker = court.grant()
    assert worker.take() == (envelope(count), "1f", message)
    worker.answer()
    assert done(reply) == TAKEN
    # It is still the caller's, and can be passed on once more.
    assert b"".join(content.blocks()) == message
    content.close()
    worker.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_large_message_reaches_the_second_worker_whole(court):
    message = MESSAGE * 10_000
    reply = court.submit(court.logged_in(), message, 1000)
    court.grant().close()
    worker = court.grant()
    assert worker.take() == (envelope(1000), "1f", message)
    worker.answer()
    assert done(reply) == TAKEN
    worker.close()


@pytest.mark.parametrize(("count", "octets"), [(2000, 10), (1, 100_000)])
def test_without_room_for_a_file_the_client_may_try_later(
    court, count, octets, monkeypatch, caplog
):
    def full(name, flags=0):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "memfd_create", full)
    reply = court.logged_in().submit(envelope(count), content_of(b"x" * octets))
    assert reply == replies.NO_ROOM
    assert caplog.messages == ["s=1f no room for the message: [Errno 28] No space left on device"]
    assert court.heard_nothing()


# The monitor's other words.


def test_the_monitor_says_when_to_stop(court):
    court.monitor.send(Control(Kind.STOP).encode())
    assert court.stopped.wait(PATIENCE_SECONDS)


def test_a_new_log_file_is_written_to(court, tmp_path):
    handler = log_module.SharedFile(str(tmp_path / "old"))
    logger = logging.getLogger("tofmipd")
    logger.handlers[:] = [handler]
    new = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
    court.monitor.send(Control(Kind.LOG).encode(), [new])
    os.close(new)

    def moved():
        logger.error("hello")
        return (tmp_path / "new").stat().st_size

    wait_for(moved)
    logger.handlers.clear()
    handler.close()


@pytest.mark.parametrize(
    "said",
    [
        None,
        b"\xff" * 20,
        Control(Kind.GRANT, 1).encode(),
        Control(Kind.GRANTED, 1).encode(),
        Control(Kind.REFUSED, 1, ("x",)).encode(),
        Control(Kind.REFUSED, 1, ("99",)).encode(),
        Control(Kind.CONNECT).encode(),
        b"x" * 5000,
    ],
)
def test_without_a_monitor_that_makes_sense_the_server_ends(said):
    def serve():
        logging.getLogger("tofmipd").handlers[:] = [logging.NullHandler()]
        logging.getLogger("tofmipd").propagate = False
        monitor, control = Channel.pair()
        gate = RemoteGate(control, frozenset(), 1)
        if said is None:
            monitor.close()
        else:
            monitor.send(said)
        gate.obey(lambda: None)

    assert in_child(serve) == (1, "")
