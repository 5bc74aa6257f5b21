"""One session over a real connection, with a fake behind the gate."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import (
    ALL_MECHANISMS,
    LOOPBACK,
    PATIENCE_SECONDS,
    RFC2195_CHALLENGE,
    RFC2195_DIGEST,
    TAKEN,
    Client,
    CountingSocket,
    FakeGate,
    b64,
    in_pieces,
    tcp_pair,
    wait_for,
)

from tofmipd import pump as pump_module
from tofmipd.auth.credentials import Judgement, Verdict
from tofmipd.content import Content
from tofmipd.pump import Pump
from tofmipd.settings import Limits
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import Policy, Session
from tofmipd.wire import Wire

POLICY = Policy("mx.example", ALL_MECHANISMS, max_errors=1000, max_auth_failures=1000)
ENVELOPE = ("MAIL FROM:<a@example.org>", "RCPT TO:<x@example.net>")


def unread(sock):
    try:
        return len(sock.recv(1000, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except (BlockingIOError, OSError):
        return 0


class Serving:
    """A pump in its thread, and the client that talks to it; the greeting has been read."""

    def __init__(self, gate, policy=POLICY, fix=False, **limits):
        times = {"login_timeout": 20, "idle_timeout": 20, "data_timeout": 20, "failure_delay": 0}
        server, client = tcp_pair()
        self.socket = CountingSocket(fileno=server.detach())
        self.stopping = threading.Event()
        self.limits = Limits(**(times | limits))
        self.pump = Pump(
            Wire(self.socket, self.limits.write_timeout),
            Session(policy, LOOPBACK),
            gate.admit("test", LOOPBACK),
            self.limits,
            self.stopping,
            session_id="test",
            fix_bare_newline=fix,
        )
        self.errors = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        self.client = Client(client)
        assert self.client.reply() == "220 mx.example ESMTP tofmipd"

    def run(self):
        try:
            self.pump.run()
        except BaseException as error:
            self.errors.append(error)

    def stop(self):
        """What the service does: ask again and again, here until the session says something."""
        self.stopping.set()

        def said():
            self.pump.stop()
            return unread(self.client.socket)

        wait_for(said)

    def ended(self):
        self.thread.join(PATIENCE_SECONDS)
        return not self.thread.is_alive() and self.errors == []


@pytest.fixture
def gate():
    return FakeGate()


@pytest.fixture
def serve(gate):
    """Starts sessions; afterwards none of them may be left, nor may one have raised anything."""
    running = []

    def start(**options):
        running.append(Serving(options.pop("gate", gate), **options))
        return running[-1]

    yield start
    for serving in running:
        serving.client.close()
        assert serving.ended()


def logged_in(serving):
    assert serving.client.log_in().startswith("235 ")
    return serving.client


def begin_message(client):
    assert client.ask(*ENVELOPE, "DATA").startswith("354 ")


# Conversations.


def test_quit_ends_the_session(serve):
    serving = serve()
    assert serving.client.ask("QUIT") == "221 2.0.0 Bye"
    assert serving.client.rest() == b""
    serving.client.close()
    assert serving.ended()


def test_a_message_reaches_the_gate_with_its_envelope(serve, gate):
    client = logged_in(serve())
    client.ask("EHLO client.example")
    begin_message(client)
    client.raw(b"Subject: x\r\n\r\nHello\r\n.\r\n")
    assert client.reply() == "250 2.0.0 Ok: taken"
    ((envelope, octets),) = gate.submitted
    assert octets == b"Subject: x\r\n\r\nHello\r\n"
    assert (envelope.login, envelope.helo) == ("bobby", "client.example")
    assert (envelope.sender, envelope.recipients) == ("a@example.org", ["x@example.net"])
    assert envelope.peer == LOOPBACK


BODIES = {
    "empty": b"",
    "dots": b"..\r\n..a\r\n...\r\n",
    "NUL": b"a\0b\r\n\0\r\n",
    "eight bit": bytes(range(128, 256)) + b"\r\n",
    "control": bytes(set(range(32)) - set(b"\r\n")) + b"\x7f\r\n",
    "long line": b"x" * 100_000 + b"\r\n",
    "no header": b"\r\n\r\n\r\n",
    "commands": b"QUIT\r\nRSET\r\nMAIL FROM:<b@example.org>\r\n",
    "one megabyte": (b"x" * 1022 + b"\r\n") * 1024,
    "three megabytes": (b"..x" + b"y" * 1019 + b"\r\n") * 3072,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_octets_of_a_message_are_not_changed(serve, gate, body):
    client = logged_in(serve())
    begin_message(client)
    client.raw(body + b".\r\n")
    assert client.reply() == "250 2.0.0 Ok: taken"
    assert gate.submitted[0][1] == body
    assert client.ask("NOOP") == "250 2.0.0 Ok"


def test_a_message_may_come_in_any_pieces(serve, gate):
    client = logged_in(serve())
    body = b"Subject: x\r\n\r\n..\r\na\r\n"
    octets = body + b".\r\nNOOP\r\n"
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for cut in range(1, len(octets)):
        begin_message(client)
        for piece in in_pieces(octets, [cut]):
            client.raw(piece)
        assert client.reply() == "250 2.0.0 Ok: taken"
        assert client.reply() == "250 2.0.0 Ok"
    assert {octets for _, octets in gate.submitted} == {body}


def test_pipelined_commands_are_answered_in_one_write(serve):
    serving = serve()
    client = logged_in(serving)
    before = serving.socket.writes
    client.say(*ENVELOPE, "RCPT TO:<y@example.net>", "RCPT TO:<>", "NOOP", "DATA")
    assert [client.reply()[:3] for _ in range(6)] == ["250", "250", "250", "501", "250", "354"]
    assert serving.socket.writes == before + 1
    client.raw(b"Hello\r\n.\r\nNOOP\r\n" + "".join(f"{line}\r\n" for line in ENVELOPE).encode())
    assert [client.reply()[:3] for _ in range(4)] == ["250", "250", "250", "250"]
    assert serving.socket.writes == before + 2


def test_whole_transactions_may_come_in_one_piece(serve, gate):
    client = logged_in(serve())
    lines = "".join(f"{line}\r\n" for line in (*ENVELOPE, "DATA", "Hello", ".")).encode()
    client.raw(lines * 20 + b"QUIT\r\nNOOP\r\n")
    codes = [client.reply()[:3] for _ in range(81)]
    assert codes == ["250", "250", "354", "250"] * 20 + ["221"]
    assert client.rest() == b""
    assert len(gate.submitted) == 20


def test_two_sessions_do_not_mix(serve, gate):
    one, two = logged_in(serve()), logged_in(serve())
    one.ask("EHLO one.example")
    two.ask("EHLO two.example")
    begin_message(one)
    begin_message(two)
    one.raw(b"from one\r\n")
    two.raw(b"from two\r\n.\r\n")
    assert two.reply().startswith("250 ")
    one.raw(b".\r\n")
    assert one.reply().startswith("250 ")
    assert {(e.helo, octets) for e, octets in gate.submitted} == {
        ("one.example", b"from one\r\n"),
        ("two.example", b"from two\r\n"),
    }


def test_the_reply_of_the_gate_is_the_reply_to_the_client(serve, gate):
    gate.reply = Reply(451, "4.1", ("next hop says no",))
    client = logged_in(serve())
    begin_message(client)
    client.raw(b".\r\n")
    assert client.reply() == "451 4.4.1 next hop says no"
    assert client.ask("NOOP") == "250 2.0.0 Ok"


ID = "<1@laptop>"
TWO = (*ENVELOPE, "RCPT TO:<y@example.net>")


def told(caplog, word):
    """The lines about recipients who do not get a message, without what they took."""
    lines = [one.getMessage() for one in caplog.records if f" {word} to=" in one.getMessage()]
    return [re.sub(r" ms=[0-9]+$", "", line) for line in lines]


@pytest.mark.parametrize(("code", "word"), [(451, "deferred"), (554, "refused")])
@pytest.mark.parametrize("chunks", [False, True])
def test_each_recipient_who_does_not_get_a_message_has_a_line(
    serve, gate, caplog, code, word, chunks
):
    caplog.set_level(logging.INFO)
    gate.reply = Reply(code, "4.1", ("next hop says no",))
    client = logged_in(serve())
    message = f"Message-ID:\r\n {ID}\r\n\r\nhello\r\n".encode()
    if chunks:
        client.ask(*TWO)
        client.raw(b"BDAT %d LAST\r\n" % len(message) + message)
    else:
        client.ask(*TWO, "DATA")
        client.raw(message + b".\r\n")
    assert client.reply() == f"{code} {code // 100}.4.1 next hop says no"
    assert told(caplog, word) == [
        f"s=test {word} to='{to}@example.net' sender='a@example.org' id='{ID}'"
        f" reply='{code} {code // 100}.4.1 next hop says no'"
        for to in "xy"
    ]
    assert "hello" not in caplog.text


def test_who_is_sent_a_message_has_no_such_line(serve, gate, caplog):
    caplog.set_level(logging.INFO)
    client = logged_in(serve())
    begin_message(client)
    client.raw(b"Subject: x\r\n\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert client.ask("DATA").startswith("503 ")
    assert told(caplog, "refused") == told(caplog, "deferred") == []


def test_the_gate_hears_when_a_message_was_complete(serve, gate):
    client = logged_in(serve())
    before = time.monotonic()
    begin_message(client)
    client.raw(b"Subject: x\r\n\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert before < gate.submitted[0][0].complete_at < time.monotonic()


# What a message may not be.


def test_a_bare_newline_is_refused_and_the_session_goes_on(serve, gate, caplog):
    caplog.set_level(logging.INFO)
    client = logged_in(serve())
    begin_message(client)
    client.raw(b"one\n.\nMAIL FROM:<b@example.org>\r\n.\r\n")
    assert client.reply() == "550 5.6.0 Error: the message holds a bare CR or LF"
    assert gate.submitted == []
    assert told(caplog, "refused") == [
        "s=test refused to='x@example.net' sender='a@example.org' id=''"
        " reply='550 5.6.0 Error: the message holds a bare CR or LF'"
    ]
    assert client.ask("NOOP") == "250 2.0.0 Ok"


def test_a_bare_newline_is_mended_where_that_is_asked_for(serve, gate):
    client = logged_in(serve(fix=True))
    begin_message(client)
    client.raw(b"one\n.\ntwo\rthree\n\r\n.\r\n")
    assert client.reply().startswith("250 ")
    assert gate.submitted[0][1] == b"one\r\n..\r\ntwo\r\nthree\r\n\r\n"


@pytest.mark.parametrize("fix", [False, True])
def test_a_message_that_is_too_big_is_read_to_its_end_and_refused(serve, gate, fix):
    client = logged_in(serve(fix=fix, size=100_000))
    begin_message(client)
    client.raw((b"x" * 998 + b"\r\n") * 3000 + b".\r\n")
    assert client.reply().startswith("552 5.3.4 ")
    assert gate.submitted == []
    assert client.ask("NOOP") == "250 2.0.0 Ok"


def test_a_full_disk_is_a_reason_to_try_later(serve, gate, monkeypatch, caplog):
    def no_room(self, block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/secret-place")

    client = logged_in(serve())
    begin_message(client)
    with monkeypatch.context() as patch:
        patch.setattr(Content, "write", no_room)
        client.raw((b"NOOP\r\n" * 100_000) + b".\r\n")
        assert client.reply() == "452 4.3.1 Error: no room for the message now, try again later"
    assert gate.submitted == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    begin_message(client)
    client.raw(b"Hello\r\n.\r\n")
    assert client.reply() == "250 2.0.0 Ok: taken"


def test_after_an_internal_error_no_line_of_the_message_is_obeyed(serve, gate, monkeypatch):
    happened = threading.Event()

    def bug(self, block):
        happened.set()
        raise RuntimeError("a bug")

    client = logged_in(serve())
    begin_message(client)
    monkeypatch.setattr(Content, "write", bug)
    client.raw(b"Hello, world\r\n")
    assert happened.wait(PATIENCE_SECONDS)
    client.raw(b"VRFY x\r\nVRFY x\r\n.\r\nQUIT\r\n")
    said = client.rest()
    assert said.startswith((b"451 4.3.0 ", b"421 "))
    assert b"252" not in said
    assert gate.submitted == []


def test_no_descriptor_is_left_over(serve):
    client = logged_in(serve(size=3_000_000))
    before = len(os.listdir("/proc/self/fd"))
    for lines, code in ((2000, "250"), (4000, "552"), (2000, "250")):
        begin_message(client)
        client.raw((b"x" * 998 + b"\r\n") * lines + b".\r\n")
        assert client.reply().startswith(code)
        assert len(os.listdir("/proc/self/fd")) <= before


# Clients that leave, or do not.


@pytest.mark.parametrize(
    "octets", [b"", b"Hello\r\n", b"Hello\r\n.", b"Hello\r\n.\r", b"a\r\n\r\n"]
)
@pytest.mark.parametrize("reset", [False, True])
def test_when_the_client_vanishes_within_a_message_nothing_is_sent(serve, gate, octets, reset):
    serving = serve()
    client = logged_in(serving)
    begin_message(client)
    client.raw(octets)
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert serving.ended()
    assert gate.submitted == []


@pytest.mark.parametrize("octets", [b"", b"EHLO x", b"EHLO x\r\n", b"AUTH LOGIN\r\n", b"\xff\0\r"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_may_vanish_at_any_time(serve, octets, reset, caplog):
    serving = serve()
    serving.client.raw(octets)
    if reset:
        serving.client.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    serving.client.close()
    assert serving.ended()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def timed_out(client):
    assert client.reply() == "421 4.4.2 Timeout, closing the connection"
    assert client.rest() == b""


def test_a_client_that_does_not_log_in_is_sent_away(serve):
    begun = time.monotonic()
    timed_out(serve(login_timeout=0.3).client)
    assert 0.25 < time.monotonic() - begun < 2


@pytest.mark.parametrize("octets", [b"N", b"NOOP\r\n", b"AUTH LOGIN\r\n*\r\n"])
def test_busy_talk_does_not_move_the_time_to_log_in(serve, octets):
    client = serve(login_timeout=0.4).client
    over = threading.Event()

    def talk():
        try:
            while not over.wait(0.03):
                client.raw(octets)
        except OSError:
            pass

    begun = time.monotonic()
    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    while not (said := client.reply()).startswith("421 "):
        assert time.monotonic() - begun < 3
    over.set()
    thread.join(PATIENCE_SECONDS)
    assert said.startswith("421 4.4.2 ")
    assert time.monotonic() - begun < 3


def test_a_client_that_is_idle_after_the_login_is_sent_away(serve):
    client = logged_in(serve(login_timeout=0.1, idle_timeout=0.5))
    begun = time.monotonic()
    timed_out(client)
    assert 0.4 < time.monotonic() - begun < 2


def test_every_command_after_the_login_starts_the_time_anew(serve):
    client = logged_in(serve(idle_timeout=0.5))
    begun = time.monotonic()
    while time.monotonic() - begun < 0.9:
        assert client.ask("NOOP") == "250 2.0.0 Ok"
        assert client.silent_for(0.1)


def test_a_command_that_drips_does_not_start_the_time_anew(serve):
    client = logged_in(serve(idle_timeout=0.4))
    begun = time.monotonic()
    for octet in b"NOOP with a very long string that comes far too slowly":
        client.raw(bytes([octet]))
        if not client.silent_for(0.03):
            break
    assert time.monotonic() - begun < 1.5
    timed_out(client)


def test_a_message_without_progress_is_given_up(serve, gate):
    client = logged_in(serve(data_timeout=0.3))
    begin_message(client)
    client.raw(b"Hello\r\n")
    timed_out(client)
    assert gate.submitted == []


def test_a_message_that_drips_is_given_up(serve, gate, monkeypatch):
    monkeypatch.setattr(pump_module, "_GRACE_SECONDS", 0.3)
    client = logged_in(serve())
    begin_message(client)
    begun = time.monotonic()
    while client.silent_for(0.05):
        client.raw(b"x")
        assert time.monotonic() - begun < 3
    timed_out(client)
    assert gate.submitted == []


def test_a_client_that_does_not_read_its_replies_is_left(serve):
    serving = serve(write_timeout=0.2)
    serving.client.socket.settimeout(0.5)

    def talk():
        for _ in range(10_000):
            serving.client.raw(b"HELP\r\n" * 1000)

    with pytest.raises(OSError, match=r"timed out|reset|[Bb]roken"):
        talk()
    assert serving.ended()


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (b"NOOP\nNOOP\r\n", "500 5.5.2"),
        (b"NOOP\rNOOP\r\n", "500 5.5.2"),
        (b"x" * 200_000, "500 5.5.2"),
        (b"\n" * 100_000, "500 5.5.2"),
    ],
)
def test_after_what_is_no_line_nothing_more_is_obeyed(serve, octets, code):
    client = serve().client
    client.raw(octets)
    assert client.reply().startswith(code)
    assert client.rest() == b""


# The end of the service.


def test_an_idle_client_is_told_that_the_service_ends(serve):
    for prepare in (lambda serving: None, logged_in):
        serving = serve()
        prepare(serving)
        begun = time.monotonic()
        serving.stop()
        assert time.monotonic() - begun < 2
        assert serving.client.reply() == "421 4.3.2 The service is shutting down"
        assert serving.client.rest() == b""


def test_a_message_under_way_may_be_finished(serve, gate):
    serving = serve()
    client = logged_in(serving)
    begin_message(client)
    client.raw(b"first half\r\n")
    serving.stopping.set()
    serving.pump.stop()
    client.raw(b"second half\r\n.\r\n")
    assert client.reply() == "250 2.0.0 Ok: taken"
    assert client.reply() == "421 4.3.2 The service is shutting down"
    assert gate.submitted[0][1] == b"first half\r\nsecond half\r\n"


def test_a_message_that_is_being_passed_on_gets_its_answer(serve):
    asked, go_on = threading.Event(), threading.Event()

    def slow(envelope, octets):
        asked.set()
        assert go_on.wait(PATIENCE_SECONDS)
        return TAKEN

    serving = serve(gate=FakeGate(reply=slow))
    client = logged_in(serving)
    begin_message(client)
    client.raw(b".\r\n")
    assert asked.wait(PATIENCE_SECONDS)
    serving.stopping.set()
    serving.pump.stop()
    go_on.set()
    assert client.reply() == "250 2.0.0 Ok: taken"
    assert client.reply() == "421 4.3.2 The service is shutting down"


def test_a_login_that_is_delayed_does_not_hold_up_the_end(serve, gate):
    serving = serve(gate=gate, failure_delay=30)
    serving.client.say("AUTH PLAIN " + b64(b"\0bobby\0Wrong"))
    wait_for(lambda: gate.asked)
    begun = time.monotonic()
    serving.stop()
    assert time.monotonic() - begun < 2
    assert serving.client.reply().startswith("535 ")
    assert serving.client.reply().startswith("421 4.3.2 ")


# Logins.


def time_of(client, *lines):
    begun = time.monotonic()
    reply = client.ask(*lines)
    return reply, time.monotonic() - begun


def test_a_failed_login_is_answered_late_and_each_time_later(serve):
    client = serve(failure_delay=0.15).client
    for number in (1, 2, 3):
        reply, taken = time_of(client, "AUTH PLAIN " + b64(b"\0bobby\0Wrong"))
        assert reply.startswith("535 5.7.8 ")
        assert number * 0.15 - 0.02 < taken < number * 0.15 + 1
    reply, taken = time_of(client, "AUTH PLAIN " + b64(b"\0bobby\0FooBar"))
    assert reply.startswith("235 ")
    assert taken < 0.6


@pytest.mark.parametrize("verdict", Verdict)
def test_whoever_judges_may_want_it_answered_later_still(serve, verdict):
    """A success is not late, nor is it when nobody could tell."""

    class Late(FakeGate):
        def verify(self, credentials, mechanism):
            return Judgement(verdict, delay=0.4)

    client = serve(gate=Late(), failure_delay=0.05).client
    _, taken = time_of(client, "AUTH PLAIN " + b64(b"\0bobby\0FooBar"))
    if verdict is Verdict.REJECTED:
        assert 0.38 < taken < 1.4
    else:
        assert taken < 0.35


def test_who_has_to_wait_is_told_at_once_and_hung_up_on(serve):
    class Waiting(FakeGate):
        def verify(self, credentials, mechanism):
            return Judgement(Verdict.REJECTED, wait=59.5)

    client = serve(gate=Waiting(), failure_delay=0.01).client
    reply, taken = time_of(client, "AUTH PLAIN " + b64(b"\0bobby\0FooBar"))
    assert reply.startswith("421 4.7.0 Too many failed logins from your address, ")
    assert "60 seconds" in reply
    assert taken < 0.5
    assert client.rest() == b""


@pytest.mark.parametrize("slow", ["nobody", "bobby", "../root"])
def test_the_delay_does_not_tell_why_a_login_failed(serve, slow):
    class Slow(FakeGate):
        def verify(self, credentials, mechanism):
            if credentials.user == slow:
                time.sleep(0.25)
            return super().verify(credentials, mechanism)

    def log_in(user):
        client = serve(gate=Slow(), failure_delay=0.4).client
        return time_of(client, "AUTH PLAIN " + b64(f"\0{user}\0Wrong".encode()))

    with ThreadPoolExecutor() as threads:
        seen = list(threads.map(log_in, ("nobody", "bobby", "../root")))
    assert {reply for reply, _ in seen} == {"535 5.7.8 AUTH failed: user name or password is wrong"}
    times = [taken for _, taken in seen]
    assert min(times) > 0.38
    assert max(times) - min(times) < 0.15


def test_sources_that_cannot_tell_cost_no_delay(serve):
    gate = FakeGate()
    gate.unavailable = True
    reply, taken = time_of(
        serve(gate=gate, failure_delay=5).client, "AUTH PLAIN " + b64(b"\0bobby\0FooBar")
    )
    assert reply.startswith("454 4.7.0 ")
    assert taken < 1


SECRETS = ["FooBar", RFC2195_DIGEST.decode()]
EXCHANGES = {
    "PLAIN": ["AUTH PLAIN " + b64(b"\0bobby\0FooBar")],
    "PLAIN later": ["AUTH PLAIN", b64(b"\0bobby\0FooBar")],
    "PLAIN wrong": ["AUTH PLAIN " + b64(b"\0chloe\0FooBar")],
    "PLAIN in lower case": ["auth plain " + b64(b"\0bobby\0FooBar")],
    "PLAIN with blanks": ["AUTH   PLAIN    " + b64(b"\0bobby\0FooBar")],
    "PLAIN with tabs": ["AUTH\tPLAIN\t" + b64(b"\0bobby\0FooBar")],
    "PLAIN with more": ["AUTH PLAIN x " + b64(b"\0bobby\0FooBar")],
    "PLAIN malformed": ["AUTH PLAIN !" + b64(b"\0bobby\0FooBar")],
    "PLAIN in clear": ["AUTH PLAIN bobby FooBar"],
    "LOGIN": ["AUTH LOGIN", b64(b"bobby"), b64(b"FooBar")],
    "LOGIN with name": ["AUTH LOGIN " + b64(b"bobby"), b64(b"FooBar")],
    "LOGIN wrong": ["AUTH LOGIN", b64(b"chloe"), b64(b"FooBar")],
    "LOGIN malformed": ["AUTH LOGIN", b64(b"bobby"), "FooBar!"],
    "CRAM-MD5": ["AUTH CRAM-MD5", b64(b"tim " + RFC2195_DIGEST)],
    "CRAM-MD5 at once": ["AUTH CRAM-MD5 " + b64(b"tim " + RFC2195_DIGEST)],
    "unknown": ["AUTH GSSAPI " + b64(b"\0bobby\0FooBar")],
    "no mechanism": ["AUTH " + b64(b"\0bobby\0FooBar")],
    "no blank": ["AUTH PLAIN=" + b64(b"\0bobby\0FooBar")],
}


@pytest.mark.parametrize("lines", EXCHANGES.values(), ids=EXCHANGES)
def test_the_trace_never_shows_a_secret_in_any_form(serve, lines, caplog):
    caplog.set_level(logging.DEBUG)
    client = serve(gate=FakeGate({"bobby": b"FooBar", "tim": b"tanstaaftanstaaf"})).client
    client.ask("EHLO client.example")
    for line in lines:
        client.ask(line)
    client.ask("NOOP")
    shown = "\n".join(record.getMessage() for record in caplog.records)
    assert "C: EHLO client.example" in shown
    assert "C: NOOP" in shown
    assert "S: 250 2.0.0 Ok" in shown
    sent = re.findall(r"[A-Za-z0-9+/]{16,}", " ".join(lines))
    for secret in (*SECRETS, *(b64(secret.encode()) for secret in SECRETS), *sent):
        assert secret not in shown


def test_responses_after_a_refused_auth_are_shown_to_nobody(serve, caplog):
    caplog.set_level(logging.DEBUG)
    policy = Policy("mx.example", ("CRAM-MD5",), ("PLAIN", "LOGIN"))
    client = serve(policy=policy).client
    client.say("AUTH LOGIN", b64(b"bobby"), b64(b"FooBar"), "NOOP")
    replies = [client.reply() for _ in range(4)]
    assert [reply[:3] for reply in replies] == ["538", "502", "502", "250"]
    shown = "\n".join([*replies, *(record.getMessage() for record in caplog.records)])
    assert b64(b"bobby") not in shown
    assert b64(b"FooBar") not in shown


def test_without_the_trace_no_line_of_the_client_is_logged(serve, caplog):
    caplog.set_level(logging.INFO)
    client = logged_in(serve())
    client.ask("EHLO client.example")
    assert caplog.records == []


def test_what_is_logged_of_a_client_is_one_line(serve, caplog):
    caplog.set_level(logging.DEBUG)
    client = serve().client
    client.raw(b"EHLO \x1b[31m\0\xff\r\n")
    client.reply()
    for record in caplog.records:
        assert record.getMessage().isprintable()


# Bugs behind the gate.


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), OSError("a bug"), ConnectionResetError("a bug"), TimeoutError("a bug")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("method", ["submit", "verify", "challenge"])
def test_an_error_behind_the_gate_costs_one_command_only(serve, caplog, method, error):
    def bug(*arguments):
        raise error

    gate = FakeGate()
    client = logged_in(serve(gate=gate)) if method == "submit" else serve(gate=gate).client
    setattr(gate, method, bug)
    if method == "submit":
        begin_message(client)
        client.raw(b".\r\n")
    else:
        client.say("AUTH CRAM-MD5" if method == "challenge" else "AUTH PLAIN " + b64(b"\0b\0c"))
    assert client.reply() == "451 4.3.0 Error: internal error, the log has more"
    assert client.ask("NOOP") == "250 2.0.0 Ok"
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(records) == 1
    assert records[0].exc_info


def test_a_login_works_by_every_mechanism(serve):
    passwords = {"tim": b"tanstaaftanstaaf"}
    exchanges = [
        (["AUTH PLAIN " + b64(b"\0tim\0tanstaaftanstaaf")], ["235"]),
        (["AUTH LOGIN", b64(b"tim"), b64(b"tanstaaftanstaaf")], ["334", "334", "235"]),
        (["AUTH CRAM-MD5", b64(b"tim " + RFC2195_DIGEST)], ["334", "235"]),
    ]
    for lines, codes in exchanges:
        client = serve(gate=FakeGate(passwords)).client
        replies = [client.ask(line) for line in lines]
        assert [reply[:3] for reply in replies] == codes
        if len(lines) == 2:
            assert replies[0] == "334 " + b64(RFC2195_CHALLENGE)
