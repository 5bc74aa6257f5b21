"""The gate of personal mode and what stands behind it: from the login to the next hop."""

from __future__ import annotations

import hmac
import logging
import os
import re
import threading
import time

import pytest
from fakes import (
    ALL_MECHANISMS,
    LOOPBACK,
    RFC2195_SECRET,
    Act,
    FakeNextHop,
    ScramClient,
    at,
    content_of,
    wait_for,
)

from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import CramMd5, Password, Scram, Verdict
from tofmipd.auth.passwordfile import PasswordFile
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.smtp import Pool
from tofmipd.privsep.direct import DirectGate
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.logins import Logins
from tofmipd.privsep.outbound import (
    House,
    Outbound,
    Owner,
)
from tofmipd.privsep.personal import personal_gate
from tofmipd.privsep.submission import parsed_header, received_value
from tofmipd.settings import Limits, NextHopLimits, Person, Quotas, Rate, Scripts, Settings
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.userfiles import UserFiles
from tofmipd.tmda.values import split_smtphost

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
LIMITS = NextHopLimits(connect_timeout=5, reply_timeout=5, dot_timeout=5)
MESSAGE = (
    b"From: Bobby <bobby@example.org>\r\nTo: x@example.net\r\nSubject: a\r\n  test\r\n\r\nHello\r\n"
)
CONFIG = """\
MAIL_TRANSPORT = "smtp"
SMTPHOST = "127.0.0.1:{port}"
USERNAME, HOSTNAME, FULLNAME = "bobby", "example.org", "Bobby"
"""


def logins_of(source):
    return Logins(Chain([source]), "mx.example", lambda login: Identity(login, login), Limits())


def verdict_of(passing, credentials):
    mechanism = {Password: "PLAIN", CramMd5: "CRAM-MD5", Scram: "SCRAM-SHA-1"}[type(credentials)]
    return passing.verify(credentials, mechanism).verdict


class Home:
    """A home directory with all that tagging needs."""

    def __init__(self, path):
        self.path = path
        self.pool = Pool()
        (path / ".tmda/filters").mkdir(parents=True)
        self.write("crypt_key", "0123456789abcdef" * 2 + "\n", 0o600)
        self.write("filters/outgoing", "to * bare\n")

    def write(self, name, text, mode=0o644):
        """Write a file anew, so that the change is seen."""
        path = self.path / ".tmda" / name
        new = path.with_name("new")
        new.write_text(text)
        new.chmod(mode)
        new.rename(path)
        return path

    def config(self, server, more=""):
        self.write("config", CONFIG.format(port=server.port) + more)

    def outbound(self, received="full", observer=None, relay=()):
        surroundings = Surroundings(str(self.path), "bobby", "Bobby", "mx.example")
        files = UserFiles(f"{self.path}/.tmda/config", surroundings, required=True)
        house = House("mx.example", received, LIMITS, self.pool, observer, relay=relay)
        return Outbound(Owner("bobby", str(self.path)), files, house)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def next_hop():
    with FakeNextHop() as server:
        yield server
    assert server.violations == []


def envelope_for(*recipients, **fields):
    fields = {"login": "bobby", "helo": "client.example", "peer": LOOPBACK} | fields
    return Envelope(
        "ignored@example.org", recipients=list(recipients or ("x@example.net",)), **fields
    )


def submit(outbound, message=MESSAGE, envelope=None):
    content = content_of(message)
    try:
        return str(outbound.submit(envelope or envelope_for(), content, "test"))
    finally:
        content.close()


def body_of(wire):
    return wire.partition(b"\r\n\r\n")[2]


def has_bare_newline(octets):
    return re.search(rb"\r(?!\n)|(?<!\r)\n", octets) is not None


# The gate.


def password_file(tmp_path):
    path = tmp_path / "passwords"
    path.write_text(f"bobby:FooBar\ntim:{RFC2195_SECRET.decode()}\n")
    path.chmod(0o600)
    return PasswordFile(str(path), os.getuid())


@pytest.fixture
def asked():
    return []


@pytest.fixture
def gate(tmp_path, asked):
    class Taking:
        """Stands for a way out."""

        def submit(self, envelope, content, session_id):
            asked.append(("submit", envelope.login, session_id))
            return replies.OK

    def outbound_for(login):
        asked.append(("outbound", login))
        return Taking()

    return DirectGate(logins_of(password_file(tmp_path)), outbound_for)


def digest_over(challenge, secret=RFC2195_SECRET):
    return hmac.digest(secret, challenge, "md5").hex().encode()


@pytest.mark.parametrize("login", ["", "bobby"])
def test_without_a_login_nothing_is_passed_on_whatever_the_envelope_says(gate, asked, login):
    passing = gate.admit("s1", LOOPBACK)
    envelope = envelope_for(login=login)
    assert passing.submit(envelope, content_of(MESSAGE)) is replies.AUTH_REQUIRED
    assert verdict_of(passing, Password("bobby", b"Wrong")) is NO
    assert verdict_of(passing, Password("bobby", b"")) is NO
    assert passing.submit(envelope, content_of(MESSAGE)) is replies.AUTH_REQUIRED
    assert asked == []


def test_one_session_s_login_is_not_another_s(gate, asked):
    first, second = gate.admit("s1", LOOPBACK), gate.admit("s2", LOOPBACK)
    assert verdict_of(first, Password("bobby", b"FooBar")) is YES
    assert second.submit(envelope_for(), content_of(MESSAGE)) is replies.AUTH_REQUIRED
    assert first.submit(envelope_for(), content_of(MESSAGE)) is replies.OK
    assert asked == [("outbound", "bobby"), ("submit", "bobby", "s1")]


def test_a_challenge_serves_once(gate):
    passing = gate.admit("s1", LOOPBACK)
    digest = digest_over(passing.challenge("CRAM-MD5", b""))
    assert verdict_of(passing, CramMd5("tim", digest)) is YES
    assert verdict_of(passing, CramMd5("tim", digest)) is MAYBE


def test_a_wrong_answer_uses_the_challenge_up_too(gate):
    passing = gate.admit("s1", LOOPBACK)
    digest = digest_over(passing.challenge("CRAM-MD5", b""))
    assert verdict_of(passing, CramMd5("tim", b"0" * 32)) is NO
    assert verdict_of(passing, CramMd5("tim", digest)) is MAYBE


def test_a_later_challenge_replaces_the_earlier_one(gate):
    passing = gate.admit("s1", LOOPBACK)
    early, _ = (passing.challenge("CRAM-MD5", b"") for _ in range(2))
    assert verdict_of(passing, CramMd5("tim", digest_over(early))) is NO
    late = passing.challenge("CRAM-MD5", b"")
    assert verdict_of(passing, CramMd5("tim", digest_over(late))) is YES


def test_a_challenge_that_was_not_made_here_is_worth_nothing(gate):
    passing, other = gate.admit("s1", LOOPBACK), gate.admit("s2", LOOPBACK)
    foreign = other.challenge("CRAM-MD5", b"")
    for challenge in (b"", b"<1@mx.example>", foreign):
        mine = CramMd5("tim", digest_over(challenge), challenge)
        assert verdict_of(passing, mine) is MAYBE
        passing.challenge("CRAM-MD5", b"")
        assert verdict_of(passing, mine) is NO


def scram(passing, user=b"bobby", password=b"FooBar"):
    """A client that has its challenge, and what it says then."""
    client = ScramClient("SCRAM-SHA-1", user, password)
    challenge = passing.challenge("SCRAM-SHA-1", client.first)
    return client, Scram(user.decode(), client.final(challenge))


def test_scram_proves_each_end_to_the_other_once(gate):
    passing = gate.admit("s1", LOOPBACK)
    client, credentials = scram(passing)
    judgement = passing.verify(credentials, "SCRAM-SHA-1")
    assert (judgement.verdict, judgement.answer) == (YES, client.expected)
    assert verdict_of(passing, credentials) is MAYBE
    scram(passing)
    assert verdict_of(passing, credentials) is NO


def test_a_session_cannot_use_the_challenge_of_another(gate):
    passing, other = gate.admit("s1", LOOPBACK), gate.admit("s2", LOOPBACK)
    _, credentials = scram(passing)
    scram(other)
    assert verdict_of(other, credentials) is NO
    assert verdict_of(passing, credentials) is YES


@pytest.mark.parametrize(("user", "password"), [(b"nobody", b"FooBar"), (b"bobby", b"Wrong")])
def test_scram_with_a_wrong_name_or_password_runs_to_its_end(gate, user, password):
    passing = gate.admit("s1", LOOPBACK)
    _, credentials = scram(passing, user, password)
    judgement = passing.verify(credentials, "SCRAM-SHA-1")
    assert (judgement.verdict, judgement.answer) == (NO, b"")


def test_there_is_no_challenge_for_what_is_no_message(gate):
    assert gate.admit("s1", LOOPBACK).challenge("SCRAM-SHA-1", b"n,,x=y") == b""


def test_no_challenge_comes_twice_or_can_be_guessed(gate):
    passing = gate.admit("s1", LOOPBACK)
    challenges = {passing.challenge("CRAM-MD5", b"") for _ in range(200)}
    assert len(challenges) == 200
    for challenge in challenges:
        assert re.fullmatch(rb"<[0-9a-f]{32}\.[0-9]+@mx\.example>", challenge)


def test_each_login_has_one_way_out_for_all_its_sessions(gate, asked):
    found, start = [], threading.Barrier(8)

    def look():
        start.wait(5)
        found.extend(gate.user(login) for login in ("bobby", "tim") * 50)

    threads = [threading.Thread(target=look, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 800
    assert len(set(map(id, found))) == 2
    assert sorted(asked) == [("outbound", "bobby"), ("outbound", "tim")]


class Canned:
    name = "canned"
    mechanisms = frozenset({"PLAIN"})

    def __init__(self, verdict):
        self.verdict = verdict

    def check(self, credentials, origin):
        return self.verdict


@pytest.mark.parametrize(
    ("verdict", "level", "words"),
    [
        (YES, logging.INFO, "accepted {} reason=ok"),
        (NO, logging.INFO, "rejected {} reason=password"),
        (MAYBE, logging.WARNING, "unavailable {} reason=source"),
    ],
)
def test_every_verdict_is_one_line_of_the_log(caplog, verdict, level, words):
    caplog.set_level(logging.DEBUG)
    gate = DirectGate(logins_of(Canned(verdict)), lambda login: None)
    assert verdict_of(gate.admit("s1", LOOPBACK), Password("bobby", b"FooBar")) is verdict
    (record,) = caplog.records
    assert record.levelno == level
    where = "ip=127.0.0.1 mechanism=PLAIN source=canned"
    assert record.getMessage() == f"s=s1 auth {words.format(where)} user='bobby'"


@pytest.mark.parametrize(
    "user", ["a' ip=192.0.2.1 mechanism=PLAIN", "a\nauth accepted user='b'", "\x1b[31m", "x" * 5000]
)
def test_a_user_name_cannot_forge_a_line_of_the_log(gate, caplog, user):
    caplog.set_level(logging.DEBUG)
    gate.admit("s1", Peer("192.0.2.9")).verify(Password(user, b"FooBar"), "PLAIN")
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    words = "ip=192.0.2.9 mechanism=PLAIN source="
    assert record.getMessage().startswith(f"s=s1 auth rejected {words}")
    assert record.getMessage().endswith(f" user={user[:255]!r}")
    assert "FooBar" not in record.getMessage()


# The way of a message.


def test_a_message_goes_out_tagged_and_otherwise_as_it_came(home, next_hop):
    home.config(next_hop)
    assert submit(home.outbound()) == "250 2.0.0 Ok: queued as FAKE1"
    (message,) = next_hop.messages
    assert message.sender == "bobby@example.org"
    assert message.recipients == ["x@example.net"]
    lines = message.wire.split(b"\r\n")
    assert lines[0].startswith(b"Received: from client.example (127.0.0.1) by mx.example (tofmipd)")
    assert b" (tofmipd) with ESMTPA id test;" in message.wire.replace(b"\r\n ", b" ")
    assert b"To: x@example.net\r\nSubject: a\r\n  test\r\n" in message.wire
    assert body_of(message.wire) == b"Hello\r\n"


BODIES = {
    "none": b"",
    "dots": b"..\r\n...\r\n\r\n..a\r\n",
    "octets": bytes(set(range(256)) - set(b"\r\n")) + b"\r\n",
    "long line": b"x" * 100_000 + b"\r\n",
    "large": (b"..x" + b"y" * 1000 + b"\r\n") * 3000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(
    "head",
    [
        b"Subject: x\r\n\r\n",
        b"..Dot: stuffed\r\nSubject: x\r\n\r\n",
        b"Subject: x\r\n" + b"X-Long: " + b"z" * 70_000 + b"\r\n\r\n",
        b"\r\n",
    ],
    ids=["usual", "dot", "long", "none"],
)
def test_the_body_is_the_same_octets(home, next_hop, head, body):
    home.config(next_hop)
    assert submit(home.outbound(), head + body).startswith("250 ")
    assert body_of(next_hop.messages[0].wire) == body


@pytest.mark.parametrize(
    "head",
    [
        b".X: one\r\n",
        b".X: one\r\n.Y: two\r\n",
        b"A: b\r\n.X: one\r\n",
        b".A: 1\r\n.B: 2\r\n.C: 3\r\n.D: 4\r\n.E: 5\r\n",
    ],
)
def test_a_header_line_whose_dot_was_never_doubled_moves_nothing(home, next_hop, head):
    home.config(next_hop)
    assert submit(home.outbound(), head + b"Subject: x\r\n\r\nHello\r\n").startswith("250 ")
    (message,) = next_hop.messages
    assert body_of(message.wire) == b"Hello\r\n"
    assert not has_bare_newline(message.wire)


@pytest.mark.parametrize("count", range(1, 9))
def test_a_header_cannot_end_the_message_and_begin_another(home, next_hop, count):
    """Each dot that was not doubled would let the body begin an octet too early."""
    home.config(next_hop)
    smuggled = b"MAIL FROM:<ceo@example.org>\r\nRCPT TO:<all@example.net>\r\nDATA\r\nBuy!\r\n..\r\n"
    submit(home.outbound(), b".a: b\r\n" * count + b"X: y.\r\n\r\n" + smuggled)
    home.pool.close()
    wait_for(lambda: next_hop.closed_connections == next_hop.connections)
    assert [message.sender for message in next_hop.messages] == ["bobby@example.org"]
    assert not any("ceo@example.org" in command for command in next_hop.commands)


def test_equal_copies_travel_as_one(home, next_hop):
    home.config(next_hop)
    recipients = [f"x{number}@example.net" for number in range(30)]
    assert submit(home.outbound(), envelope=envelope_for(*recipients)).startswith("250 ")
    (message,) = next_hop.messages
    assert message.recipients == recipients


def test_the_eight_bit_parameter_is_passed_on(home, next_hop):
    home.config(next_hop)
    submit(home.outbound(), envelope=envelope_for(eight_bit=True))
    submit(home.outbound())
    mails = [line for line in next_hop.commands if line.startswith("MAIL")]
    assert ["BODY=8BITMIME" in line for line in mails] == [True, False]


def test_the_observer_hears_of_each_copy(home, next_hop):
    home.config(next_hop)
    heard = []
    outbound = home.outbound(observer=lambda *words: heard.append(words))
    submit(outbound, envelope=envelope_for("x@example.net", "y@example.net"))
    ((sender, reports, said),) = heard
    assert sender == "bobby@example.org"
    assert [report.recipient for report in reports] == [b"x@example.net", b"y@example.net"]
    assert said == "250 2.0.0 Ok: queued as FAKE1"


def test_messages_of_one_user_share_a_connection(home, next_hop):
    home.config(next_hop)
    outbound = home.outbound()
    for _ in range(3):
        assert submit(outbound).startswith("250 ")
    assert next_hop.connections == 1


# Trouble with the user's files.


def test_without_a_configuration_the_message_is_refused_for_good(home, caplog):
    assert submit(home.outbound()).startswith("554 5.3.5 You have no TMDA configuration here")
    assert str(home.path) in caplog.text


WRONG_FILES = {
    "syntax": ("config", 'USERNAME = "bobby"\n\nHOSTNAME = = 1\n', 0o644, "config line 3"),
    "value": ("config", 'USERNAME = "bobby"\nTAGS_DATED = 7\n', 0o644, "config line 2"),
    "error": ("config", "\nimport no_such_module\n", 0o644, "config line 2"),
    "exit": ("config", "raise SystemExit(1)\n", 0o644, "config line 1"),
    "open": ("config", "\n\nopen('/nonexistent/secret/place')\n", 0o644, "config line 3"),
    "path": ("config", "raise RuntimeError('see {home}/.tmda/x')\n", 0o644, "config line 1"),
    "filter": ("filters/outgoing", "to a bare\nto b nonsense\n", 0o644, "filters/outgoing line 2"),
    "key": ("crypt_key", "not hexadecimal\n", 0o600, "crypt_key"),
    "key mode": ("crypt_key", "0123456789abcdef" * 2, 0o644, "crypt_key"),
}


@pytest.mark.parametrize(("name", "text", "mode", "where"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_an_error_in_a_file_defers_the_message_and_names_the_place(
    home, next_hop, caplog, name, text, mode, where
):
    home.config(next_hop)
    good = (home.path / ".tmda" / name).read_text()
    outbound = home.outbound()
    home.write(name, text.replace("{home}", str(home.path)), mode)
    said = submit(outbound)
    assert said.startswith(f"451 4.3.5 Error in your TMDA files: {where}: ")
    assert len(said) < 256
    assert not re.search(r"(?:^|[^\w.~])/\w", said), "an absolute path"
    assert str(home.path) in caplog.text
    assert next_hop.messages == []
    # and once it is mended the message goes out
    home.write(name, good, 0o600)
    assert submit(outbound).startswith("250 ")


# Too big a header.


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"X: " + b"y" * (1 << 20) + b"\r\n\r\nHello\r\n", "552"),
        (b"X: y\r\n" * 200_000 + b"\r\nHello\r\n", "552"),
        (b"X: " + b"y" * (1 << 20) + b"\r\n", "552"),
        (b"X: " + b"y" * 900_000 + b"\r\n\r\n" + b"z" * 998 + b"\r\n", "250"),
        (b"X: y\r\n\r\n" + b"z" * 2_000_000 + b"\r\n", "250"),
        (b"X: y\r\n", "250"),
        (b"", "250"),
    ],
    ids=["field", "fields", "no body", "just small enough", "body", "only a field", "nothing"],
)
def test_only_a_header_of_more_than_a_mebioctet_is_refused(home, next_hop, message, code):
    home.config(next_hop)
    said = submit(home.outbound(), message)
    assert said.startswith(code)
    if code == "552":
        assert said == "552 5.3.4 Error: the message's header is too big"
        assert next_hop.messages == []


def test_a_large_body_without_an_empty_line_is_no_header(home, next_hop):
    home.config(next_hop)
    body = (b"z" * 998 + b"\r\n") * 2000
    assert submit(home.outbound(), b"\r\n" + body).startswith("250 ")
    assert body_of(next_hop.messages[0].wire) == body


@pytest.mark.parametrize(("count", "code"), [(100, "250 2.0.0"), (101, "554 5.4.6")])
def test_a_mail_that_goes_round_is_stopped(home, next_hop, count, code):
    home.config(next_hop)
    assert submit(home.outbound(), b"Received: x\r\n" * count + MESSAGE).startswith(code)
    assert len(next_hop.messages) == (code[0] == "2")


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"A: b\r\n\r\nc\r\n", b"c\r\n"),
        (b"..A: b\r\n\r\nc\r\n", b"c\r\n"),
        (b".A: b\r\n\r\nc\r\n", b"c\r\n"),
        (b".A: b\r\n.C: d\r\n\r\n..c\r\n", b"..c\r\n"),
        (b"\r\nc\r\n\r\nd\r\n", b"c\r\n\r\nd\r\n"),
        (b"A: b\r\nno field\r\n\r\nc\r\n", b"no field\r\n\r\nc\r\n"),
        (b"A: b\r\n", b""),
        (b"", b""),
    ],
)
def test_the_body_begins_behind_the_empty_line(wire, body):
    _, start = parsed_header(content_of(wire))
    assert wire[start:] == body


# The trace field.


@pytest.mark.parametrize(
    ("style", "own", "expected"),
    [
        ("full", "", rb"from client\.example \(127\.0\.0\.1\) by mx\.example "),
        ("private", "", rb"from \[127\.0\.0\.1\] by mx\.example "),
        ("none", "", None),
        ("full", "private", rb"from \[127\.0\.0\.1\] by mx\.example "),
        ("none", "full", rb"from client\.example \(127\.0\.0\.1\) by mx\.example "),
        ("full", "none", None),
    ],
)
def test_received_tells_as_much_as_it_may(home, next_hop, style, own, expected):
    home.config(next_hop, f"RECEIVED = {own!r}\n" if own else "")
    submit(home.outbound(received=style))
    wire = next_hop.messages[0].wire
    if expected is None:
        assert b"Received:" not in wire
    else:
        assert re.match(
            rb"Received: " + expected + rb"\(tofmipd\) with ESMTPA\s+id\s+test;\s+[A-Z][a-z]{2},\s",
            wire,
        )


def test_private_tells_nothing_of_the_client():
    envelope = envelope_for(peer=Peer("192.0.2.77"), helo="secret-laptop.example")
    value = received_value("private", envelope, "mx.example", "a date")
    assert value == b"from [127.0.0.1] by mx.example (tofmipd) with ESMTPA; a date"


@pytest.mark.parametrize(
    "helo",
    ["", "a b", "x (y) by evil.example with ESMTP; now", "a\\r\\nBcc: x", "grüße", "<>", "x" * 255],
)
def test_a_client_cannot_write_more_than_a_name_into_received(helo):
    envelope = envelope_for(helo=helo, peer=Peer("192.0.2.7"))
    value = received_value("full", envelope, "mx.example", "a date")
    name = value.removeprefix(b"from ").removesuffix(
        b" (192.0.2.7) by mx.example (tofmipd) with ESMTPA; a date"
    )
    assert re.fullmatch(rb"[A-Za-z0-9._:\[\]?-]+", name)


def test_an_unknown_peer_is_called_so():
    envelope = envelope_for(helo="", peer=Peer())
    assert received_value("full", envelope, "mx.example", "d").startswith(b"from unknown (unknown)")


# What the log says of each recipient.

WITH_ID = MESSAGE.replace(b"Subject:", b"Message-ID:\r\n <1@laptop>\r\nSubject:")
SENDER = "sender='bobby@example.org' from='bobby@example.org'"


def lines_of(caplog, word):
    return [one.getMessage() for one in caplog.records if f" {word} to=" in one.getMessage()]


@pytest.mark.parametrize(
    ("more", "message", "ids"),
    [
        ("", WITH_ID, r"id='<1@laptop>' new-id=''"),
        ("", MESSAGE, r"id='' new-id='<[0-9]+\.\S+@mx\.example>'"),
        ('TMDAINJECT = "i"\n', WITH_ID, r"id='<1@laptop>' new-id='<[0-9]+\.\S+@mx\.example>'"),
    ],
)
def test_a_recipient_has_a_line_with_all_that_was_done(home, next_hop, caplog, more, message, ids):
    caplog.set_level(logging.INFO)
    home.config(next_hop, more)
    home.write("filters/outgoing", "to x@* bare\nto * sender\n")
    envelope = envelope_for("x@example.net", "y@example.net", complete_at=time.monotonic() - 5)
    assert submit(home.outbound(), message, envelope).startswith("250 ")
    first, second = lines_of(caplog, "sent")
    begin = re.escape(
        f"s=test sent to='x@example.net' rule='to x@* tag from bare' action='bare' {SENDER} "
    )
    assert re.fullmatch(rf"{begin}{ids} by=\S+:{next_hop.port} reply='250 .*' ms=[0-9]+", first)
    assert int(first.rpartition("=")[2]) >= 5000
    tagged = r"'bobby-sender-[0-9a-f]+@example\.org'"
    begin = r"s=test sent to='y@example\.net' rule='to \* tag from sender' action='sender'"
    assert re.match(rf"{begin} sender={tagged} from={tagged} {ids} by=", second)


# When the next hop fails.

TWO_COPIES = "to one@example.net tag x-copy first from bare\nto * bare\n"
BOTH = ("one@example.net", "two@example.net", "three@example.net")


def test_the_client_hears_why_the_next_hop_refuses(home):
    with FakeNextHop(at("RCPT", b"550 5.1.1 unknown\r\n")) as server:
        home.config(server)
        assert submit(home.outbound()) == "550 5.1.1 <x@example.net>: unknown"


def test_a_next_hop_that_is_down_is_a_reason_to_try_later(home, caplog):
    server = FakeNextHop()
    server.close()
    home.config(server)
    assert submit(home.outbound()).startswith("451 4.4.1 next hop ")
    assert "s=test hand-off to" in caplog.text


def test_a_recipient_of_the_second_copy_that_is_refused_stops_the_first(home):
    home.write("filters/outgoing", TWO_COPIES)
    script = at("RCPT", b"550 5.1.1 unknown\r\n", argument="TO:<three@example.net>")
    with FakeNextHop(script) as server:
        home.config(server)
        said = submit(home.outbound(), envelope=envelope_for(*BOTH))
        assert said == "550 5.1.1 <three@example.net>: unknown"
        assert server.messages == []


@pytest.mark.parametrize(
    "act", [Act(b"452 4.3.1 disk full\r\n"), Act(b"554 5.7.1 spam\r\n"), Act(close=True)]
)
def test_a_failure_after_the_first_copy_says_so(home, caplog, act):
    home.write("filters/outgoing", TWO_COPIES)
    with FakeNextHop(at("DOT", act, message=2)) as server:
        home.config(server)
        said = submit(home.outbound(), envelope=envelope_for(*BOTH))
        assert re.match(r"451 4\.3\.0 .*\b1\b.*\brecipients\b.*: ", said)
        assert [message.recipients for message in server.messages] == [["one@example.net"]]
    assert any(record.levelno == logging.ERROR for record in caplog.records)


def test_both_copies_go_out_one_after_the_other(home, next_hop):
    home.write("filters/outgoing", TWO_COPIES)
    home.config(next_hop)
    assert submit(home.outbound(), envelope=envelope_for(*BOTH)).startswith("250 ")
    assert [message.recipients for message in next_hop.messages] == [list(BOTH[:1]), list(BOTH[1:])]
    assert b"X-Copy: first" in next_hop.messages[0].wire
    assert b"X-Copy" not in next_hop.messages[1].wire
    assert next_hop.connections == 1


# Other next hops.


def test_a_change_of_the_next_hop_counts_for_the_next_message(home, next_hop):
    with FakeNextHop() as other:
        home.config(next_hop)
        outbound = home.outbound()
        submit(outbound)
        home.config(other, "# moved\n")
        submit(outbound)
        assert (len(next_hop.messages), len(other.messages)) == (1, 1)


@pytest.mark.parametrize(
    ("agent", "sender"),
    [("postfix", "[]"), ("qmail", "[]"), ("exim", "[<>]"), ("sendmail", "[<>]")],
)
def test_a_sendmail_program_may_be_the_next_hop(home, tmp_path, agent, sender):
    out, program = tmp_path / "out", tmp_path / "sendmail"
    program.write_text(
        f"#!/bin/sh\nfor word; do printf '[%s]\\n' \"$word\"; done > {out}\n"
        f"cat /proc/$$/environ | tr '\\0' '\\n' >> {out}\ncat > {out}.message\n"
    )
    program.chmod(0o755)
    home.write("config", f"SENDMAIL_PROGRAM = {str(program)!r}\nMAIL_TRANSFER_AGENT = {agent!r}\n")
    home.write("filters/outgoing", "to * tag envelope as=<>\n")
    assert submit(home.outbound()) == "250 2.0.0 Ok: sendmail exited with 0"
    lines = out.read_text().splitlines()
    assert lines[:5] == ["[-i]", "[-f]", sender, "[--]", "[x@example.net]"]
    assert f"HOME={home.path}" in lines
    assert {"LOGIN=bobby", "LOGNAME=bobby", "USER=bobby"} <= set(lines)
    text = out.with_suffix(".message").read_bytes()
    assert b"\r" not in text
    assert text.endswith(b"\n\nHello\n")


def test_mail_of_who_names_no_next_hop_goes_to_that_of_the_house(home, next_hop):
    relay = (NextHop("127.0.0.1", next_hop.port),)
    outbound = home.outbound(relay=relay)
    home.write("config", "")
    assert submit(outbound).startswith("250 2.0.0 Ok: queued as FAKE")
    with FakeNextHop() as own:
        home.config(own)
        assert submit(outbound).startswith("250 ")
        assert len(own.messages) == len(next_hop.messages) == 1
    home.write("config", 'MAIL_TRANSPORT = "sendmail"\nSENDMAIL_PROGRAM = "/bin/false"\n')
    assert not submit(outbound).startswith("250 ")
    assert len(next_hop.messages) == 1


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", 25),
        ("mail.example:2525", "mail.example", 2525),
        ("127.0.0.1:25", "127.0.0.1", 25),
        ("[::1]:2525", "::1", 2525),
        ("[::1]", "::1", 25),
        ("::1", "::1", 25),
        ("2001:db8::1", "2001:db8::1", 25),
        ("[2001:db8::1]:587", "2001:db8::1", 587),
    ],
)
def test_smtphost_is_a_host_and_perhaps_a_port(text, host, port):
    assert split_smtphost(text) == (host, port)


@pytest.mark.parametrize("port", ["", "99999", "²", "٣", "smtp", "-1", "25x"])
def test_a_smtphost_with_a_wrong_port_is_an_error_of_the_configuration(home, port):
    home.write("config", f'MAIL_TRANSPORT = "smtp"\nSMTPHOST = "127.0.0.1:{port}"\n')
    assert submit(home.outbound()).startswith("451 4.3.5 Error in your TMDA files: config line 2: ")


# Personal mode put together.


@pytest.fixture
def settings(home, tmp_path):
    path = tmp_path / "tofmipd"
    path.write_text("bobby:FooBar\nchloe:baz_bap\n")
    path.chmod(0o600)

    def make(**fields):
        person = Person(os.getuid(), "bobby", "Bobby", str(home.path))
        return Settings(person, authfile=str(path), site_config="", next_hop=LIMITS, **fields)

    return make


def send_as(gate, login, password):
    passing = gate.admit("s1", LOOPBACK)
    assert verdict_of(passing, Password(login, password)) is YES
    return str(passing.submit(envelope_for(login=login), content_of(MESSAGE)))


def test_every_login_stands_for_the_person_who_runs_it(home, next_hop, settings):
    home.config(next_hop)
    gate = personal_gate(settings(), Pool())
    assert gate.mechanisms == set(ALL_MECHANISMS)
    for login, password in (("bobby", b"FooBar"), ("chloe", b"baz_bap")):
        assert send_as(gate, login, password).startswith("250 ")
    assert len(next_hop.messages) == 2


def test_with_a_configuration_directory_each_login_has_its_own(home, next_hop, settings, tmp_path):
    directory = tmp_path / "configs"
    (directory / "bobby").mkdir(parents=True)
    (directory / "bobby/config").write_text(CONFIG.format(port=next_hop.port))
    gate = personal_gate(settings(configdir=str(directory)), Pool())
    assert send_as(gate, "bobby", b"FooBar").startswith("250 ")
    assert send_as(gate, "chloe", b"baz_bap").startswith("554 5.3.5 ")


def test_a_limit_counts_what_has_been_taken_for_each_login(home, next_hop, settings, tmp_path):
    """What the throttle script refuses is not counted."""
    script = tmp_path / "throttle"
    script.write_text(f"#!/bin/sh\ntest -e {tmp_path}/open\n")
    script.chmod(0o755)
    home.config(next_hop)
    quotas = Quotas((Rate(1, 3600),), (), str(tmp_path / "limits"))
    gate = personal_gate(settings(quotas=quotas, scripts=Scripts(str(script))), Pool())
    assert send_as(gate, "bobby", b"FooBar").startswith("450 4.7.1 ")
    (tmp_path / "open").touch()
    for login, password, code in (
        ("bobby", b"FooBar", "250 "),
        ("bobby", b"FooBar", "452 4.7.1 You may send 1 message in 1 hour"),
        ("chloe", b"baz_bap", "250 "),
    ):
        assert send_as(gate, login, password).startswith(code)
    assert len(next_hop.messages) == 2
    gate.quota.close()
