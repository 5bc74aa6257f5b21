"""The octets of a body arrive as they were sent, whatever they are."""

from __future__ import annotations

import hashlib
import re

import pytest
from clients import Mail, by_curl, logged_in, submit, wire
from hops import Stored
from running import to_program, to_smtp, wait_until

HEADER = b"From: Bobby <bobby@example.org>\r\nSubject: a body\r\n\r\n"
TO = "x@example.net"
ALL_BUT_LINE_ENDS = bytes(sorted(set(range(256)) - {10, 13}))

# Lines of a body; what leaves the client is made of them by doubling leading dots.
BODIES = {
    "text": [b"hello", b"world"],
    "8-bit": [b"Gr\xc3\xbc\xc3\x9fe", bytes(range(128, 256)), b"\xff\xfe"],
    "every octet": [ALL_BUT_LINE_ENDS, b"\0", b"\0\0\0", ALL_BUT_LINE_ENDS[::-1]],
    "leading dots": [b".", b"..", b"...", b".hidden", b". ", b"", b".", b"a.", b"."],
    "empty lines": [b"", b"", b"", b"text", b"", b""],
    "998 octets": [b"x" * 998, b"y" * 998],
    "a long line": [b"z" * 100_000, b"." + b"z" * 100_000, b"end"],
    "like a header": [b"Bcc: nobody@example.net", b"From: other@example.net", b""],
    "like an mbox": [b"From somebody Sat Jan  1 00:00:00 2000", b">From x"],
    "white space": [b" ", b"\t", b"trailing \t ", b""],
    "nothing": [],
}


def body_of(stored: Stored) -> bytes:
    return stored.octets.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("name", BODIES)
def test_body_octets_arrive_unchanged_by_smtp(name, daemon, hop):
    body = wire(BODIES[name])
    reply = submit(daemon.port, TO, message=HEADER + body)
    assert reply == "250 2.0.0 Ok: queued as RAW"
    assert body_of(hop.message(TO)) == body


@pytest.mark.parametrize("name", BODIES)
def test_a_sendmail_program_gets_the_same_octets_with_local_line_ends(name, daemon, home, sendmail):
    home.configure(to_program(sendmail.path))
    assert submit(daemon.port, TO, message=HEADER + wire(BODIES[name])).startswith("250")
    assert sendmail.message(TO).body == b"".join(line + b"\n" for line in BODIES[name])


@pytest.mark.peer("smtp-sink")
@pytest.mark.parametrize("name", ["text", "8-bit", "leading dots", "998 octets", "a long line"])
def test_body_octets_arrive_unchanged_at_smtp_sink(name, daemon, home, sink):
    home.configure(to_smtp(sink.port))
    assert submit(daemon.port, TO, message=HEADER + wire(BODIES[name])).startswith("250")
    assert sink.message(TO).body == b"".join(line + b"\n" for line in BODIES[name])


@pytest.mark.root
@pytest.mark.peer("postfix")
@pytest.mark.parametrize("name", ["text", "8-bit", "leading dots", "998 octets"])
def test_body_octets_arrive_unchanged_behind_postfix(name, daemon, home, postfix):
    home.configure(to_smtp(postfix.port))
    recipient = f"body-{name.replace(' ', '-')}@example.net"
    assert submit(daemon.port, recipient, message=HEADER + wire(BODIES[name])).startswith("250")
    body = b"".join(line + b"\n" for line in BODIES[name])
    assert postfix.message(recipient).body == body


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"\r\nonly a body\r\n", b"only a body\r\n"),
        (b"Subject: only a header\r\n", b""),
        (b"Subject: a header and its end\r\n\r\n", b""),
        (b"no header at all\r\n", b"no header at all\r\n"),
        (b"Subject: x\r\nno field\r\nrest\r\n", b"no field\r\nrest\r\n"),
        (b"..begins with a dot\r\n", b"..begins with a dot\r\n"),
    ],
)
def test_messages_without_header_or_body_arrive_too(message, body, daemon, hop):
    assert submit(daemon.port, TO, message=message).startswith("250")
    stored = hop.message(TO)
    assert body_of(stored) == body
    assert re.search(r"<bobby-dated-\S+@example\.org>$", stored.value("From"))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_message_may_come_in_any_pieces(size, daemon, hop):
    body = wire([b"", b".", b"..", b"a", b".b", b""])
    octets = HEADER + body + b".\r\n"
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        for piece in (octets[n : n + size] for n in range(0, len(octets), size)):
            talk.send(piece)
        assert talk.reply().startswith("250")
    assert body_of(hop.message(TO)) == body


def test_untouched_header_fields_keep_their_octets(daemon, hop):
    fields = [
        b"DKIM-Signature: v=1; a=rsa-sha256;\r\n  h=from : to;  b=abc\r\n\tdef\r\n",
        b"X-Long: " + b"word " * 40 + b"\r\n",
        b"x-odd-CASE:no blank\r\n",
        b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n",
        b"X-Raw: \xc3\xbc\xff\r\n",
        b"To: x@example.net,\r\n y@example.net\r\n",
    ]
    head = b"From: bobby@example.org\r\n" + b"".join(fields)
    assert submit(daemon.port, TO, message=head + b"\r\nbody\r\n").startswith("250")
    octets = hop.message(TO).octets
    assert [field for field in fields if field not in octets] == []


def memory_mib(pid: int) -> float:
    """The most that a process has used so far."""
    with open(f"/proc/{pid}/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def test_30_mib_pass_unchanged_in_little_memory(start, home, hop):
    daemon = start(home)
    line = bytes(range(32, 127)) + b"\xe4\xf6\xfc" + b"0123456789" * 40 + b"\r\n"
    body = line * (30 * 2**20 // len(line) + 1)
    assert submit(daemon.port, TO, message=HEADER + b"warm up\r\n").startswith("250")
    before = memory_mib(daemon.pid)
    reply = submit(daemon.port, "big@example.net", message=HEADER + body)
    assert reply.startswith("250")
    grown = memory_mib(daemon.pid) - before
    stored = body_of(hop.message("big@example.net"))
    assert len(stored) == len(body)
    assert hashlib.sha256(stored).digest() == hashlib.sha256(body).digest()
    assert grown < 8, f"{grown:.1f} MiB more than before"


@pytest.mark.parametrize(
    "octets",
    [
        b"one\n.\ntwo\r\n.\r\n",
        b"one\r.\rtwo\r\n.\r\n",
        b"one\n.\r\ntwo\r\n.\r\n",
        b"one\r\n.\ntwo\r\n.\r\n",
        b"one\r\n.\rtwo\r\n.\r\n",
        b"one\r.\r\ntwo\r\n.\r\n",
        b"one\r\r\n.\r\n",
        b"one\ntwo\r\n.\r\n",
    ],
)
def test_a_bare_line_end_neither_ends_a_message_nor_passes(octets, daemon, hop):
    """TO-33."""
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert talk.data(HEADER + octets).startswith("550 5.6.0 ")
        assert talk.say("NOOP").startswith("250")
    assert not hop.stored


def test_bare_line_ends_are_mended_on_request(start, home, hop):
    port = start(home, "--bare-newline=fix").port
    assert submit(port, TO, message=HEADER + b"one\n.\ntwo\rthree\r\n").startswith("250")
    (stored,) = hop.messages()
    assert body_of(stored) == b"one\r\n..\r\ntwo\r\nthree\r\n"


def test_a_message_beyond_the_limit_is_refused_and_the_session_goes_on(start, home, hop):
    port = start(home, "--size", "100000").port
    with logged_in(port) as talk:
        assert talk.say("MAIL FROM:<bobby@example.org> SIZE=100001").startswith("552 5.3.4 ")
        talk.envelope(TO)
        assert talk.data(HEADER + b"x" * 100_000 + b"\r\n.\r\n").startswith("552 5.3.4 ")
        talk.envelope(TO)
        assert talk.data(HEADER + b"small\r\n.\r\n").startswith("250")
    assert wait_until(hop.messages, "the small message")
    assert [body_of(stored) for stored in hop.messages()] == [b"small\r\n"]


@pytest.mark.peer("curl")
def test_a_text_without_a_final_newline_gets_just_the_one_that_smtp_needs(daemon, hop, tmp_path):
    mail = Mail((TO,), "Subject: x\n\nno newline here")
    assert by_curl(mail, daemon.port, tmp_path).status == 0
    assert body_of(hop.message(TO)) == b"no newline here\r\n"
