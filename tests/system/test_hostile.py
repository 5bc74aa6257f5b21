"""Clients that mean harm, or know no better: each gets an answer or its end, and leaves nothing."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import re
import resource
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import test_network
from clients import Dialogue, dialogue, logged_in, plain, submit
from globalchild import processor_seconds
from running import ADDRESS, HOST, LIMIT_SECONDS, Daemon, make_home, to_smtp, tofmipd, wait_until
from test_network import PORT, command
from village import children, status

# Its tests need namespaces; those of this module that do bear the same marks.
network = test_network.network
serving = test_network.serving

TO = "x@example.net"
MESSAGE = b"From: Bobby <bobby@example.org>\r\nSubject: x\r\n\r\nx\r\n.\r\n"
TIMEOUT = "421 4.4.2 Timeout, closing the connection"
TOO_MANY = "421 4.7.0 Too many errors, closing the connection"
NOT_SMTP = "421 4.7.0 Error: this is a mail server, not what you are looking for"
# The usual program with other constants, which are named "module.NAME" below tofmipd.
_START = """\
import importlib, sys
for place, value in {constants!r}.items():
    module, _, name = place.rpartition(".")
    module = importlib.import_module("tofmipd." + module)
    getattr(module, name)
    setattr(module, name, value)
from tofmipd import cli
sys.exit(cli.main())
"""


def with_constants(constants: dict[str, float]) -> tuple[str, ...]:
    """A program for running.tofmipd."""
    return (sys.executable, "-c", _START.format(constants=constants), "--personal")


# What a daemon takes up.


def processes_of(daemon: Daemon) -> list[int]:
    """The one of a personal daemon; monitor, server, auth and workers of a global one."""
    return [daemon.pid, *children(daemon.pid)]


@dataclass(frozen=True)
class Vitals:
    """Threads and open files of each process, and resident memory of all, in KiB."""

    tasks: dict[int, int]
    files: dict[int, int]
    memory: int

    @classmethod
    def of(cls, daemon: Daemon) -> Vitals:
        pids = processes_of(daemon)
        return cls(
            {pid: len(os.listdir(f"/proc/{pid}/task")) for pid in pids},
            {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids},
            sum(int(status(pid)["VmRSS"].split()[0]) for pid in pids),
        )

    @classmethod
    def settled(cls, daemon: Daemon) -> Vitals:
        """When nothing has changed for a moment: a session that is over may not be gone yet."""
        seen = [cls.of(daemon)]

        def same() -> bool:
            time.sleep(0.05)
            seen.append(cls.of(daemon))
            return (seen[-1].tasks, seen[-1].files) == (seen[-2].tasks, seen[-2].files)

        wait_until(same, "sessions to end")
        return seen[-1]

    def within(self, other: Vitals) -> bool:
        """Whether there are no more threads and open files anywhere."""
        return self.tasks.keys() == other.tasks.keys() and all(
            count <= there[pid]
            for here, there in ((self.tasks, other.tasks), (self.files, other.files))
            for pid, count in here.items()
        )


@contextlib.contextmanager
def leaves_nothing(daemon: Daemon, memory_kib: int = 4096) -> Iterator[None]:
    """After the block there are soon no more threads and open files than before, and hardly more
    memory is in use."""
    before = now = Vitals.settled(daemon)
    yield

    def same() -> bool:
        nonlocal now
        now = Vitals.of(daemon)
        return now.within(before)

    try:
        wait_until(same, "threads and files to be as before")
    except AssertionError:
        raise AssertionError(f"{before} has become {now}") from None
    assert now.memory - before.memory < memory_kib, f"{before} has become {now}"


def reset(sock: socket.socket) -> None:
    """Close without a goodbye."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def rest(talk: Dialogue) -> str:
    """All replies up to the end of the connection, which must come; a goodbye is not needed."""
    replies = []
    with contextlib.suppress(ConnectionError):
        while reply := talk.reply():
            replies.append(reply)
    return "\n".join(replies)


def says_nothing(talk: Dialogue, seconds: float) -> bool:
    """Whether nothing is heard, and the connection is not closed, for so long."""
    return not select.select([talk.socket], [], [], seconds)[0]


def push(talk: Dialogue, octets: bytes) -> None:
    """Send to somebody who may have had enough."""
    with contextlib.suppress(ConnectionError):
        talk.send(octets)


# Octets that are no commands.


def with_octet(octet: int) -> list[bytes]:
    """Commands that hold the octet, in all places."""
    x = bytes([octet])
    return [
        *(x, b"NO" + x + b"OP", b"NOOP " + x, b"EHLO a" + x + b"b", b"HELP" + x),
        *(b"VRFY " + x, b"MAIL FROM:<a" + x + b"@b.example>", b"MAIL FROM:<a@b" + x + b".example>"),
        *(b"MAIL FROM:<a@b.example> SIZE=" + x, b"MAIL" + x + b"FROM:<a@b.example>"),
        *(b"RCPT TO:<" + x + b"@b.example>", b"BDA" + x + b"T", b"STARTTLS" + x, b"RSET" + x),
    ]


def test_every_octet_is_answered_in_plain_ascii_or_ends_the_session(start, home, hop):
    daemon = start(home, "-d", "--max-errors", "1000000")
    answers, closed = 0, set()
    with contextlib.ExitStack() as stack:
        talk = stack.enter_context(logged_in(daemon.port))
        for octet in range(256):
            for line in with_octet(octet):
                said = talk.say(line)
                assert re.fullmatch(r"([245][0-9]{2}[ -][ -~]*\n?)+", said), (line, said)
                answers += 1
                if octet in b"\r\n":
                    assert said == "500 5.5.2 Error: a line must end with CR LF"
                    assert talk.reply() == ""
                    closed.add(octet)
                    talk = stack.enter_context(logged_in(daemon.port))
                elif said.startswith("250 2.1.0"):
                    assert talk.say("RSET").startswith("250")
        assert talk.say("NOOP") == "250 2.0.0 Ok"
    assert answers == 256 * 14
    assert closed == set(b"\r\n")
    assert hop.commands == []
    assert daemon.text().isascii()
    assert all(line.isprintable() for line in daemon.text().replace("\t", " ").splitlines())


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "user"])
@pytest.mark.parametrize(
    "octets",
    [
        b"x" * 2**20,
        b"MAIL FROM:<" + b"x" * 2**20 + b"@b.example>\r\n",
        b"AUTH PLAIN " + b"A" * 2**20 + b"\r\n",
        b"NOOP " + b"\xff" * 2**20 + b"\r\n",
        b"\0" * 2**20 + b"\r\n",
        b"\n" * 2**20,
        b"NOOP\r\n" + b"\r" * 2**20,
    ],
    ids=["no end", "MAIL", "AUTH", "0xff", "NUL", "LF", "CR"],
)
def test_a_megabyte_for_a_command_is_refused_and_costs_nothing(octets, known, daemon):
    with leaves_nothing(daemon), dialogue(daemon.port) as talk:
        if known:
            talk.log_in()
        push(talk, octets)
        *before, said = rest(talk).split("\n")
        assert said.startswith(("500 5.5.2 ", "500 5.5.6 "))
        assert before == ["250 2.0.0 Ok"] * octets.startswith(b"NOOP\r")


# Lengths.


def padded(begin: str, octets: int, end: str = "", fill: str = "x") -> str:
    """A line that has so many octets with its CRLF."""
    return begin + fill * (octets - 2 - len(begin) - len(end)) + end


@pytest.mark.parametrize(
    ("octets", "code"), [(100, "250"), (512, "250"), (513, "500"), (600, "500"), (4096, "500")]
)
def test_a_command_without_parameters_has_512_octets_at_most(octets, code, daemon):
    """TO-36; RFC 5321 section 4.5.3.1.4."""
    with logged_in(daemon.port) as talk:
        assert talk.say(padded("NOOP ", octets)).startswith(code)
        said = talk.say(padded("MAIL FROM:<", octets, "@b.example>"))
        assert said.startswith(code)
        assert talk.say("NOOP") == "250 2.0.0 Ok"


@pytest.mark.parametrize("octets", [513, 2000, 4096])
def test_parameters_come_on_top_of_that(octets, daemon):
    with logged_in(daemon.port) as talk:
        said = talk.say(padded("MAIL FROM:<a@b.example> BODY=8BITMIME AUTH=", octets))
        assert said == "250 2.1.0 Sender ok"
        said = talk.say(padded(f"RCPT TO:<{TO}> ORCPT=rfc822;", octets))
        assert re.match(r"250 2\.1\.5|501 5\.5\.4", said)
        assert talk.say("NOOP") == "250 2.0.0 Ok"


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "user"])
def test_beyond_all_limits_a_command_ends_the_session(known, daemon):
    limit = 4096 if known else 12288
    with dialogue(daemon.port) as talk:
        if known:
            talk.log_in()
        talk.send(padded("MAIL FROM:<a@b.example> AUTH=", limit + 2).encode() + b"\r\nNOOP\r\n")
        assert rest(talk).startswith(("500 5.5.2 ", "500 5.5.6 "))


def test_a_login_has_12288_octets_at_most(daemon):
    """RFC 4954 section 4.  In the command and in a line of its own."""
    malformed = "501 5.5.2 malformed AUTH input"
    with dialogue(daemon.port) as talk:
        talk.say("EHLO x")
        assert talk.say(padded("AUTH PLAIN ", 12288, fill="!")) == malformed
        assert talk.say("AUTH PLAIN").startswith("334")
        assert talk.say(padded("", 12288, fill="!")) == malformed
        # So long a password is judged like any other.
        response = base64.b64encode(b"\0bobby\0" + b"x" * 9200).decode()
        assert talk.say(f"AUTH PLAIN {response}").startswith("535 ")
        assert talk.say("AUTH PLAIN").startswith("334")
        talk.send(padded("", 12290, fill="A").encode() + b"\r\n")
        assert rest(talk).startswith(("500 5.5.2 ", "500 5.5.6 "))


def test_a_thousand_recipients_are_taken_and_one_more_is_not(daemon, hop):
    """TO-36: 100 must be taken."""
    recipients = [f"r{number}@example.net" for number in range(1001)]
    with logged_in(daemon.port) as talk:
        assert talk.say(f"MAIL FROM:<{ADDRESS}>").startswith("250")
        talk.send(b"".join(b"RCPT TO:<%s>\r\n" % address.encode() for address in recipients))
        replies = [talk.reply() for _ in recipients]
        assert set(replies[:1000]) == {"250 2.1.5 Recipient ok"}
        assert replies[1000] == "452 4.5.3 Error: too many recipients"
        assert talk.data(MESSAGE).startswith("250")
    assert sorted(to for stored in hop.stored for to in stored.recipients) == sorted(
        recipients[:1000]
    )


# Commands that are wrong.

WRONG_BEFORE_LOGIN = [
    *("TURN", "EXPN staff", "ETRN x", "SEND FROM:<a@b>", "SOML FROM:<a@b>", "XFORWARD NAME=x"),
    *(
        "XCLIENT ADDR=127.0.0.1",
        "DEBUG",
        "WIZ",
        "SHOWQ",
        "..",
        "",
        "EHLO",
        "RSET x",
        "STARTTLS",
        "AUTH X",
    ),
]
WRONG_AFTER_LOGIN = [
    *("RCPT TO:<x@y.example>", "DATA", "MAIL", "MAIL FROM:", "MAIL FROM:<a@b> X=1", "HELO"),
    *("AUTH PLAIN", "VRFY", "MAIL TO:<a@b>", "TURN", "RSET 1", "É", "BDAT1"),
]


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "user"])
def test_the_tenth_wrong_command_is_the_last(known, daemon, hop):
    lines = WRONG_AFTER_LOGIN if known else WRONG_BEFORE_LOGIN
    for first in range(len(lines)):
        with dialogue(daemon.port) as talk:
            if known:
                talk.log_in()
            wrong = [*lines[first:], *lines[:first]][:10]
            for line in wrong[:9]:
                assert re.match(r"5[05][0-5] 5\.5\.[0-9] ", talk.say(line)), line
                # What is right does not make up for it.
                assert talk.say("NOOP") == "250 2.0.0 Ok"
            assert talk.say(wrong[9]) == TOO_MANY, wrong[9]
            assert talk.reply() == ""
    assert hop.commands == []


def test_errors_in_one_packet_count_as_well(daemon):
    with dialogue(daemon.port) as talk:
        push(talk, b"FOO\r\n" * 100_000)
        replies = rest(talk).split("\n")
    assert [reply[:3] for reply in replies] == ["502"] * 9 + ["421"]


def test_nothing_is_told_about_users(daemon):
    with dialogue(daemon.port) as talk:
        for line in ("VRFY {}", "EXPN {}", "VRFY <{}@example.org>"):
            answers = {talk.say(line.format(name)) for name in ("bobby", "nobody", "root")}
            assert len(answers) == 1
            assert "bobby" not in answers.pop()
        assert talk.say("HELP bobby") == talk.say("HELP nobody")


# Clients that think that this is something else.

SMTP_IN_A_BODY = (
    f"EHLO x\r\nAUTH PLAIN {plain()}\r\nMAIL FROM:<{ADDRESS}>\r\nRCPT TO:<{TO}>\r\n".encode()
    + b"DATA\r\n"
    + MESSAGE
    + b"QUIT\r\n"
)
REQUESTS = {
    "GET": b"GET / HTTP/1.1\r\nHost: mail.example:25\r\nAccept: */*\r\n\r\n",
    "GET with a path": b"GET /%0D%0AEHLO%20x%0D%0A HTTP/1.1\r\nHost: x\r\n\r\n",
    "old GET": b"GET /\r\n",
    "HEAD": b"HEAD / HTTP/1.0\r\n\r\n",
    "POST": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n",
    "PUT": b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    "DELETE": b"DELETE /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "OPTIONS": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT mail.example:25 HTTP/1.1\r\nHost: mail.example:25\r\n\r\n",
}


@pytest.mark.parametrize("early", [True, False], ids=["before the greeting", "after it"])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_browser_is_sent_away_and_nothing_of_what_it_says_is_obeyed(name, early, daemon, hop):
    with dialogue(daemon.port, greeted=not early) as talk:
        push(talk, REQUESTS[name] + SMTP_IN_A_BODY)
        if early:
            assert talk.reply().startswith("220 ")
        assert rest(talk) == NOT_SMTP
    assert hop.commands == []


@pytest.mark.parametrize("request_size", [600, 5_000, 200_000])
def test_a_browser_with_a_long_address_is_sent_away(request_size, daemon, hop):
    request = b"GET /" + b"x" * request_size + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    with dialogue(daemon.port) as talk:
        push(talk, request + SMTP_IN_A_BODY)
        assert rest(talk)[:3] in ("421", "500")
    assert hop.commands == []


def client_hello() -> bytes:
    """What a TLS client says first."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="mail.example")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    "octets",
    [
        client_hello(),
        client_hello().translate(None, b"\r\n"),
        client_hello().translate(None, b"\r\n")[:100] + b"\r\n" + b"\x01" * 100,
        client_hello()[:11].translate(None, b"\r\n"),
    ],
    ids=["as it is", "without a line end", "with CRLF", "its beginning"],
)
def test_a_client_that_begins_tls_by_itself_is_told_at_once(octets, daemon):
    with dialogue(daemon.port, greeted=False) as talk:
        begun = time.monotonic()
        talk.send(octets)
        assert talk.reply().startswith("220 ")
        assert rest(talk) == "500 5.5.1 Error: TLS begins with STARTTLS here"
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("octets", "codes"),
    [
        (b"EHLO x\r\nNOOP\r\nQUIT\r\n", ["250", "250", "221"]),
        (b"", []),
        (b"\x04\x01\x00\x19\x7f\x00\x00\x01\x00", []),
        (b"SSH-2.0-OpenSSH_9.9\r\n", ["502"]),
        (b"\x80\x2e\x01\x03\x01\x00\x15\n", ["500"]),
        (b"* OK IMAP4\r\nA1 LOGIN a b\r\n", ["502", "502"]),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\nNOOP\r\n", ["502", "250"]),
        (b"\r\n\r\n\0\0\0\r\n", ["500", "500", "502"]),
    ],
    ids=["SMTP", "nothing", "SOCKS", "SSH", "SSL 2", "IMAP", "PROXY", "noise"],
)
def test_who_speaks_before_the_greeting_is_greeted_first(octets, codes, daemon, hop):
    """And a connection of which one half is closed gets its answers by the other."""
    with leaves_nothing(daemon), dialogue(daemon.port, greeted=False) as talk:
        talk.send(octets)
        talk.socket.shutdown(socket.SHUT_WR)
        replies = []
        while reply := talk.reply():
            replies.append(reply)
    assert [reply[:3] for reply in replies] == ["220", *codes]


# Clients that go, at every stage.

STAGES: dict[str, list[bytes]] = {
    "connected": [],
    "a command begun": [b"EHL"],
    "EHLO": [b"EHLO x\r\n"],
    "prompted": [b"AUTH LOGIN\r\n"],
    "a login begun": [b"AUTH PLAIN AGJv"],
    "logged in": [f"AUTH PLAIN {plain()}\r\n".encode()],
    "MAIL": [f"MAIL FROM:<{ADDRESS}>\r\n".encode()],
    "RCPT": [f"RCPT TO:<{TO}>\r\n".encode()],
    "DATA": [b"DATA\r\n"],
    "a message begun": [b"DATA\r\n", MESSAGE[:30]],
    "a large message begun": [b"DATA\r\n", b"x" * 998 + b"\r\n", (b"x" * 998 + b"\r\n") * 1200],
    "almost the end": [b"DATA\r\n", MESSAGE[:-1]],
    "a chunk begun": [b"BDAT 100\r\n", b"x" * 99],
    "a large chunk": [b"BDAT 1200000\r\n" + b"x" * 1_200_000],
}
_ORDER = ["EHLO", "logged in", "MAIL", "RCPT"]


def reach(talk: Dialogue, stage: str, login: bytes = b"") -> None:
    """All that comes before a stage, and its own octets; replies are waited for before it."""
    known = _ORDER.index(stage) if stage in _ORDER else len(_ORDER)
    early = ("connected", "a command begun", "prompted", "a login begun")
    steps = [] if stage in early else [STAGES[name][0] for name in _ORDER[:known]]
    for octets in steps:
        talk.send(octets.replace(plain().encode(), login) if login else octets)
        assert talk.reply()[:3] in ("250", "235")
    for octets in STAGES[stage]:
        push(talk, octets.replace(plain().encode(), login) if login else octets)


ENDS: dict[str, Callable[[socket.socket], None]] = {"closed": socket.socket.close, "reset": reset}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_client_may_go_at_any_stage_and_leaves_nothing(stage, end, daemon, hop):
    """The large message is a file by then."""
    assert submit(daemon.port, TO).startswith("250")
    hop.reset()
    with leaves_nothing(daemon):
        for _ in range(3):
            with dialogue(daemon.port) as talk:
                reach(talk, stage)
                ENDS[end](talk.socket)
    assert hop.commands == []
    assert not re.search(" (WARNING|ERROR) ", daemon.text())


def test_a_client_that_goes_while_its_message_is_handed_over_changes_nothing(daemon, hop):
    assert submit(daemon.port, TO).startswith("250")
    hop.reset()
    with leaves_nothing(daemon):
        hop.may_answer.clear()
        with logged_in(daemon.port) as talk:
            talk.envelope(TO)
            assert talk.say("DATA").startswith("354")
            talk.send(MESSAGE)
            assert hop.data_complete.wait(LIMIT_SECONDS)
            reset(talk.socket)
        hop.may_answer.set()
        assert hop.message(TO)
    assert len(hop.stored) == 1


@pytest.mark.parametrize("stage", ["MAIL", "DATA", "a message begun", "almost the end"])
def test_half_a_message_from_a_half_closed_connection_is_not_sent(stage, daemon, hop):
    with leaves_nothing(daemon), dialogue(daemon.port) as talk:
        reach(talk, stage)
        talk.socket.shutdown(socket.SHUT_WR)
        assert not re.search("(?m)^(250 2.0.0 Ok: queued|421|5)", rest(talk))
    assert hop.commands == []


# Clients that are slow.  All of them at once, or the tests would be as slow.

QUICK = 2.0


@dataclass(frozen=True)
class Slow:
    """A client that takes its time.

    ``begin`` is said first, each line answered; then ``octets`` goes out, so many at a time as
    ``step``, again and again, every tenth of a second (none: it is silent).  ``reads`` is how many
    octets of replies it reads at a time, 0 for none.
    """

    begin: Sequence[str] = ()
    octets: bytes = b""
    step: int = 1
    reads: int = 65536


KNOWN = ("EHLO {name}.example", f"AUTH PLAIN {plain()}")
ENVELOPE = (*KNOWN, f"MAIL FROM:<{ADDRESS}>", f"RCPT TO:<{TO}>")
HELP = b"HELP\r\n" * 20_000
RATE = 500
# Ten of them a tenth of a second are much faster than that, and 20 octets much slower.
LINE = b"x" * 96 + b"\r\n"
SLOW = {
    "silent": Slow(),
    "says-ehlo-only": Slow(("EHLO {name}.example",)),
    "drips": Slow((), b"x" * 4000),
    "drips-ehlo": Slow((), b"EHLO " + b"x" * 400),
    "drips-after-ehlo": Slow(("EHLO {name}.example",), b"AUTH PLAIN " + b"A" * 400),
    "drips-a-response": Slow(("EHLO {name}.example", "AUTH PLAIN"), b"A" * 400),
    "polite-noop": Slow(("EHLO {name}.example",), b"NOOP\r\n", 6),
    "silent-after-login": Slow(KNOWN),
    "drips-after-login": Slow(KNOWN, b"NOOP " + b"x" * 400),
    "drips-mail": Slow(KNOWN, b"MAIL FROM:<" + b"x" * 400),
    "drips-bdat": Slow(ENVELOPE, b"BDAT " + b"0" * 400),
    "silent-after-rcpt": Slow(ENVELOPE),
    "data-silent": Slow((*ENVELOPE, "DATA")),
    "data-drips": Slow((*ENVELOPE, "DATA"), b"x"),
    "data-drips-ends": Slow((*ENVELOPE, "DATA"), b"\r\n.\r"),
    "data-too-slow": Slow((*ENVELOPE, "DATA"), LINE, 20),
    "bdat-silent": Slow((*ENVELOPE, "BDAT 0", "!BDAT 1000000 LAST")),
    "bdat-drips": Slow((*ENVELOPE, "BDAT 0", "!BDAT 1000000 LAST"), b"x"),
    "bdat-too-slow": Slow((*ENVELOPE, "BDAT 0", "!BDAT 1000000 LAST"), LINE, 20),
    "bdat-of-nobody": Slow(("EHLO {name}.example", "!BDAT 60000 LAST"), LINE, len(LINE)),
    "reads-nothing": Slow(("EHLO {name}.example",), HELP, len(HELP), 0),
    "reads-nothing-after-login": Slow(KNOWN, HELP, len(HELP), 0),
    "reads-an-octet-a-time": Slow(KNOWN, HELP, len(HELP), 1),
}
# Those who may stay.
PATIENT = {
    "data-fast-enough": Slow((*ENVELOPE, "DATA"), LINE * 10, len(LINE) * 10),
    "bdat-fast-enough": Slow(
        (*ENVELOPE, "BDAT 0", "!BDAT 1000000 LAST"), LINE * 10, len(LINE) * 10
    ),
    "busy-after-login": Slow(KNOWN, b"NOOP\r\n", 6),
}
# Whose reply cannot be seen, for it does not read.
UNSEEN = {name for name, slow in SLOW.items() if slow.reads < 2}


class Client:
    """One of them, under way.

    ``seconds`` is when it ended, counted from the last line of ``begin``, None while it has not;
    ``said`` are the last words that it read.
    """

    def __init__(self, name: str, slow: Slow, port: int) -> None:
        self.slow, self.place = slow, 0
        self.seconds: float | None = None
        self.said = b""
        self.socket = socket.socket()
        if slow.reads < 2:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self.socket.settimeout(LIMIT_SECONDS)
        self.socket.connect((HOST, port))
        talk = Dialogue(self.socket)
        assert talk.reply().startswith("220 ")
        for line in slow.begin:
            line = line.format(name=name)
            if line.startswith("!"):
                talk.send(line[1:].encode() + b"\r\n")
            else:
                assert talk.say(line)[0] in "23", line
        self.begun = time.monotonic()
        self.socket.setblocking(False)

    def go_on(self) -> None:
        """Send a little, and read a little; notice the end."""
        slow = self.slow
        with contextlib.suppress(BlockingIOError, ConnectionError):
            if slow.octets:
                piece = (slow.octets * 2)[self.place :][: slow.step]
                self.place = (self.place + self.socket.send(piece)) % len(slow.octets)
        if not slow.reads:
            return
        try:
            octets = self.socket.recv(slow.reads)
            self.said = (self.said + octets)[-100:]
        except BlockingIOError:
            return
        except ConnectionError:
            octets = b""
        if not octets:
            self.seconds = time.monotonic() - self.begun


@dataclass(frozen=True)
class Outcome:
    """What has become of them all."""

    daemon: Daemon
    clients: dict[str, Client]

    def seconds_by_the_log(self, name: str) -> float | None:
        """How long the session lasted that called itself so in EHLO, if it is over."""
        text = self.daemon.text()
        session = re.search(rf"s=([0-9a-f]+) C: EHLO {name}\.example", text)
        ended = session and re.search(rf"s={session[1]} end after ([0-9.]+) s", text)
        return float(ended[1]) if ended else None

    @property
    def complete(self) -> bool:
        return all(
            self.seconds_by_the_log(name) if name in UNSEEN else self.clients[name].seconds
            for name in SLOW
        )


@pytest.fixture(scope="module")
def outcome(standing) -> Iterator[Outcome]:
    """All slow clients have come to their end, or have had the time to."""
    program = with_constants({"pump._GRACE_SECONDS": 1})
    limits = [f"--{name}-timeout={QUICK:g}" for name in ("login", "idle", "data", "write")]
    make_home(standing.home.path, to_smtp(standing.hop.port))
    with (
        tofmipd(standing.home, "-d", f"--minimum-rate={RATE}", *limits, program=program) as daemon,
        contextlib.ExitStack() as stack,
    ):
        found = Outcome(daemon, {})
        for name, slow in (SLOW | PATIENT).items():
            client = found.clients[name] = Client(name, slow, daemon.port)
            stack.callback(client.socket.close)
        over = time.monotonic() + 3.5 * QUICK
        while time.monotonic() < over and not found.complete:
            for client in found.clients.values():
                if client.seconds is None:
                    client.go_on()
            time.sleep(0.1)
        yield found


@pytest.mark.parametrize("name", sorted(SLOW.keys() - UNSEEN))
def test_who_is_too_slow_is_told_so_and_left_in_time(name, outcome):
    """Deadlines are absolute: not per octet."""
    client = outcome.clients[name]
    assert client.seconds is not None, f"{name} is still there"
    assert client.said.decode().endswith(TIMEOUT + "\r\n")
    assert client.seconds < QUICK + 3
    assert client.seconds > (0.9 if "drips" in name or "too-slow" in name else QUICK - 0.5)


@pytest.mark.parametrize("name", sorted(UNSEEN))
def test_who_does_not_read_the_replies_is_left_in_time(name, outcome):
    seconds = outcome.seconds_by_the_log(name)
    assert seconds is not None, f"{name} is still there"
    assert QUICK - 0.5 < seconds < 3.5 * QUICK


@pytest.mark.parametrize("name", PATIENT)
def test_who_is_just_fast_enough_may_stay(name, outcome):
    assert outcome.clients[name].seconds is None


def test_a_message_that_never_ends_is_cut_off(start, home, hop):
    """The more so as what is beyond the limit is not kept."""
    daemon = start(home, "--size", "100000")
    block = (b"x" * 998 + b"\r\n") * 1000
    with leaves_nothing(daemon), logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        talk.send(block)
        sent = len(block)
        with contextlib.suppress(ConnectionError):
            while sent < 10**9 and says_nothing(talk, 0):
                talk.send(block)
                sent += len(block)
        assert rest(talk) == "552 5.3.4 Error: the message is far beyond the size limit"
    assert sent < 50_000_000
    assert hop.commands == []


# How many.


def sessions(daemon: Daemon) -> int:
    """How many clients are being served."""
    text = daemon.text()
    return text.count(" session from ") - text.count(" end after ")


def test_clients_beyond_the_limit_wait_and_take_the_places_of_those_who_leave(start, home):
    """Whoever has given up by then takes none."""
    daemon = start(home, "-C", "4", "-L")
    with contextlib.ExitStack() as stack:
        served = [stack.enter_context(logged_in(daemon.port)) for _ in range(4)]
        waiting = [stack.enter_context(dialogue(daemon.port, greeted=False)) for _ in range(6)]
        for talk in waiting:
            talk.send(b"EHLO x\r\n")
        assert all(says_nothing(talk, 0.05) for talk in waiting)
        for talk in waiting[1:3]:
            reset(talk.socket)
        for leaves, comes in zip(served, (waiting[0], *waiting[3:]), strict=True):
            leaves.send(b"QUIT\r\n")
            assert rest(leaves).startswith("221 ")
            leaves.socket.close()
            assert comes.reply().startswith("220 ")
            assert comes.reply().startswith("250-")
        assert sessions(daemon) == 4


def test_where_room_gets_scarce_those_who_have_not_logged_in_must_hurry(start, home):
    daemon = start(home, "-C", "8", program=with_constants({"server.CROWDED_LOGIN_SECONDS": 1}))
    with contextlib.ExitStack() as stack:
        known = [stack.enter_context(logged_in(daemon.port)) for _ in range(3)]
        strangers = [stack.enter_context(dialogue(daemon.port)) for _ in range(3)]
        assert strangers[1].say("EHLO x").startswith("250")
        assert strangers[2].say("AUTH LOGIN").startswith("334")
        # Six of eight is not too many, however long it lasts.
        assert says_nothing(strangers[0], 1.3)
        assert strangers[1].say("NOOP").startswith("250")
        late = stack.enter_context(dialogue(daemon.port))
        begun = time.monotonic()
        for talk in strangers:
            assert rest(talk) == TIMEOUT
        assert time.monotonic() - begun < 2
        # There is room again: who has come last need not hurry.
        assert says_nothing(late, 1.3)
        assert late.say("NOOP").startswith("250")
        assert [talk.say("NOOP")[:3] for talk in known] == ["250"] * 3


def test_a_daemon_without_free_descriptors_waits_for_some(start, home):
    """It neither ends nor turns round and round, and the log says what is the matter."""
    daemon = start(home, "-L")
    usual = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    free = Vitals.settled(daemon).files[daemon.pid] + 2
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (free, usual[1]))
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(dialogue(daemon.port)) for _ in range(2)]
        waiting = [stack.enter_context(dialogue(daemon.port, greeted=False)) for _ in range(5)]
        daemon.says("Too many open files")
        used = processor_seconds(daemon.pid)
        assert says_nothing(waiting[0], 1)
        assert all(says_nothing(talk, 0) for talk in waiting)
        assert processor_seconds(daemon.pid) - used < 0.3
        assert first[0].say("QUIT").startswith("221 ")
        first[0].socket.close()
        assert waiting[0].reply().startswith("220 ")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, usual)
        for talk in waiting[1:]:
            assert talk.reply().startswith("220 ")


# From elsewhere.

_NEW_NETWORK = 0x40000000


def connect_from(namespace: str, address: str, source: str = "") -> Dialogue:
    """A connection of a client in another namespace; nobody but a thread of its own goes there."""
    made: list[socket.socket | OSError] = []

    def connect() -> None:
        with open(f"/run/netns/{namespace}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
                made.append(OSError(ctypes.get_errno(), "setns"))
                return
        try:
            own = (source, 0) if source else None
            made.append(socket.create_connection((address, PORT), LIMIT_SECONDS, own))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    (found,) = made
    if isinstance(found, OSError):
        raise found
    return Dialogue(found)


@pytest.fixture
def connect(network):
    """Connects from a namespace; all connections end with the test."""
    with contextlib.ExitStack() as stack:

        def make(namespace: str, address: str, source: str = "") -> Dialogue:
            talk = connect_from(namespace, address, source)
            stack.callback(talk.socket.close)
            return talk

        yield make


FULL = "421 4.3.2 Too many connections from your address"


@pytest.mark.root
@pytest.mark.peer("ip")
def test_one_address_elsewhere_gets_so_many_connections_only(network, serving, connect):
    serving.start("--connections-per-address", "3", "-L")
    (one, (_, server)), (two, (_, second)) = network.clients.items()
    talks = [connect(one, server) for _ in range(3)]
    assert [talk.reply()[:4] for talk in talks] == ["220 "] * 3
    for _ in range(5):
        over = connect(one, server)
        # Also to who speaks before he listens.
        push(over, b"EHLO x\r\n")
        assert rest(over) == FULL
    # Others are as free as before, and so is this machine.
    assert connect(two, second).reply().startswith("220 ")
    for _ in range(8):
        assert connect(network.server, "127.0.0.1").reply().startswith("220 ")
    assert talks[0].say("NOOP").startswith("250")
    # One that is gone makes room for one.
    reset(talks[0].socket)

    def room() -> Dialogue | None:
        talk = connect(one, server)
        return talk if talk.reply().startswith("220 ") else None

    assert wait_until(room, "room for one more")
    assert rest(connect(one, server)) == FULL


@pytest.mark.root
@pytest.mark.peer("ip")
def test_a_network_of_ipv6_counts_as_one_address(network, serving, connect):
    (one, _), (two, _) = network.clients.items()
    for number, name in enumerate((one, two)):
        # Addresses for documentation (RFC 3849).
        places = [
            (network.server, f"{name}a", "1"),
            (name, f"{name}b", "2"),
            (name, f"{name}b", "3"),
        ]
        for place, link, host in places:
            command(
                *("ip", "-n", place, "address", "add", f"2001:db8:{number}::{host}/64"),
                *("dev", link, "nodad"),
            )
    serving.start("--connections-per-address", "2", "-6", f"[::]:{PORT}")
    assert connect(one, "2001:db8:0::1", "2001:db8::2").reply().startswith("220 ")
    assert connect(one, "2001:db8:0::1", "2001:db8::3").reply().startswith("220 ")
    for host in "23":
        assert rest(connect(one, "2001:db8:0::1", f"2001:db8::{host}")) == FULL
    assert connect(two, "2001:db8:1::1").reply().startswith("220 ")
    assert connect(network.server, "::1").reply().startswith("220 ")


# Global mode: the same, and no other process than the server is troubled by strangers.


@pytest.mark.root
def test_in_global_mode_hostile_clients_leave_nothing_in_any_process(village, village_hop):
    person = village.people[0]
    login = plain(person.name, person.password).encode()
    with village.daemon("--max-errors", "10") as daemon:
        said = submit(daemon.port, TO, login=person.name, password=person.password)
        assert said.startswith("250")
        village_hop.reset()
        (server,) = children(daemon.pid, "server")
        with leaves_nothing(daemon):
            for stage in STAGES:
                for end in ENDS.values():
                    with dialogue(daemon.port) as talk:
                        reach(talk, stage, login)
                        end(talk.socket)
                    # Two logins at once would make a second channel, which is kept.
                    wait_until(lambda: sessions(daemon) == 0, "the session to end")
            for request in REQUESTS.values():
                with dialogue(daemon.port) as talk:
                    push(talk, request + SMTP_IN_A_BODY)
                    assert rest(talk) == NOT_SMTP
            for octets in (b"x" * 2**20, b"FOO\r\n" * 1000, client_hello(), b"BDAT x\r\n"):
                with dialogue(daemon.port) as talk:
                    push(talk, octets)
                    assert re.search("(?m)^(421|50[01]) [^\n]*$", rest(talk))
        assert children(daemon.pid, "server") == [server]
        assert village_hop.commands == []
        assert not re.search(" (WARNING|ERROR) ", daemon.text())


@pytest.mark.root
def test_in_global_mode_a_flood_of_strangers_wakes_nobody_but_the_server(village):
    with village.daemon() as daemon:
        (auth,) = children(daemon.pid, "auth")
        with leaves_nothing(daemon):
            before = {pid: processor_seconds(pid) for pid in (daemon.pid, auth)}
            for _ in range(200):
                with dialogue(daemon.port) as talk:
                    talk.send(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nQUIT\r\n")
                    assert [talk.reply()[:3] for _ in range(3)] == ["250", "530", "221"]
            for pid, seconds in before.items():
                assert processor_seconds(pid) - seconds < 0.1
