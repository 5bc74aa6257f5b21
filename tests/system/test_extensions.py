"""What MAIL and RCPT ask for reaches the next hop whole, or the message is refused."""

from __future__ import annotations

import contextlib
import re

import pytest
from clients import dialogue, logged_in
from hops import RawHop, Sendmail, make_sendmail, raw_hop
from postfix import Postfix
from running import ADDRESS, to_program, to_smtp, wait_until

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nTo: x@example.net\r\nSubject: x\r\n\r\nx\r\n.\r\n"
ALL = ("PIPELINING", "SIZE 100000000", "8BITMIME", "SMTPUTF8", "DSN", "CHUNKING")


@pytest.fixture
def hop_with(home):
    """Makes next hops that offer so much, and has mail go there; connections are never shared."""
    with contextlib.ExitStack() as stack:

        def make(*keywords: str) -> RawHop:
            hop = stack.enter_context(raw_hop())
            hop.keywords = keywords
            home.configure(to_smtp(hop.port))
            return hop

        yield make


def exchange(port: int, mail: str, *rcpts: str, message: bytes = MESSAGE) -> str:
    """One transaction with these arguments; the last reply."""
    with logged_in(port) as talk:
        assert talk.say(f"MAIL FROM:{mail}") == "250 2.1.0 Sender ok"
        for rcpt in rcpts:
            assert talk.say(f"RCPT TO:{rcpt}") == "250 2.1.5 Recipient ok"
        return talk.data(message)


def commands(hop, verb: str) -> list[str]:
    return [re.sub(r"SIZE=\d+ ?", "", line).strip() for line in hop.commands if verb in line[:4]]


def test_notifications_are_asked_of_the_next_hop_as_they_were_of_us(daemon, hop_with):
    """RFC 3461: RET and ENVID for each copy, NOTIFY and ORCPT for each recipient."""
    hop = hop_with(*ALL)
    reply = exchange(
        daemon.port,
        f"<{ADDRESS}> RET=hdrs ENVID=QQ3+2B14",
        "<one@example.net> NOTIFY=success,Failure ORCPT=rfc822;first+40example.net",
        "<two@example.net>",
        "<three@example.net> notify=NEVER",
    )
    assert reply.startswith("250")
    assert all(line.endswith("RET=HDRS ENVID=QQ3+2B14") for line in commands(hop, "MAIL"))
    assert set(commands(hop, "RCPT")) == {
        "RCPT TO:<one@example.net> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;first+40example.net",
        "RCPT TO:<two@example.net>",
        "RCPT TO:<three@example.net> NOTIFY=NEVER",
    }


def test_utf8_reaches_the_next_hop_in_addresses_and_header(daemon, home, hop_with):
    """RFC 6531; the sender's address is tagged as any other."""
    hop = hop_with(*ALL)
    text = "From: bobby@example.org\r\nTo: jörg@bücher.example\r\nSubject: Grüße\r\n\r\nä\r\n.\r\n"
    reply = exchange(
        daemon.port,
        f"<{ADDRESS}> SMTPUTF8 BODY=8BITMIME",
        "<jörg@bücher.example>",
        "<用户@例子.广告>",
        message=text.encode(),
    )
    assert reply.startswith("250")
    for line in commands(hop, "MAIL"):
        assert re.fullmatch(r"MAIL FROM:<bobby-dated-\S+> BODY=8BITMIME SMTPUTF8", line)
    stored = hop.message("jörg@bücher.example")
    assert "Subject: Grüße\r\n".encode() in stored.octets
    assert hop.message("用户@例子.广告").octets == stored.octets
    assert re.search(r"\) with UTF8SMTPA id [0-9a-f]{8};", stored.value("Received"))


def test_a_sender_beyond_ascii_is_tagged(daemon, home, hop_with):
    hop = hop_with(*ALL)
    text = "From: Jörg <jörg@bücher.example>\r\nSubject: x\r\n\r\nx\r\n.\r\n"
    reply = exchange(
        daemon.port, "<jörg@bücher.example> SMTPUTF8", f"<{TO}>", message=text.encode()
    )
    assert reply.startswith("250")
    assert re.fullmatch(r"jörg-dated-\d+\.[0-9a-f]{6}@bücher\.example", hop.message(TO).sender)
    hop_with("8BITMIME")
    reply = exchange(daemon.port, "<a@b.example> SMTPUTF8", f"<{TO}>", message=text.encode())
    assert reply.startswith("550 5.6.7 The next hop does not take addresses beyond ASCII")


REFUSED = [
    (f"<{ADDRESS}> RET=FULL", f"<{TO}>", "DSN", "554 5.3.3 The next hop does not send"),
    (f"<{ADDRESS}> ENVID=x", f"<{TO}>", "DSN", "554 5.3.3 The next hop does not send"),
    (f"<{ADDRESS}>", f"<{TO}> NOTIFY=NEVER", "DSN", "554 5.3.3 The next hop does not send"),
    (f"<{ADDRESS}>", f"<{TO}> ORCPT=rfc822;x", "DSN", "554 5.3.3 The next hop does not send"),
    (f"<{ADDRESS}> SMTPUTF8", "<jörg@x.example>", "SMTPUTF8", "553 5.6.7 The next hop does"),
    (f"<{ADDRESS}> BODY=8BITMIME", f"<{TO}>", "8BITMIME", "554 5.6.3 The next hop does not"),
]


@pytest.mark.parametrize(("mail", "rcpt", "keyword", "reply"), REFUSED)
def test_what_the_next_hop_does_not_offer_is_refused(daemon, hop_with, mail, rcpt, keyword, reply):
    hop = hop_with(*(word for word in ALL if word != keyword))
    assert exchange(daemon.port, mail, rcpt).startswith(reply)
    assert not commands(hop, "MAIL")
    hop = hop_with(*ALL)
    assert exchange(daemon.port, mail, rcpt).startswith("250")


def test_nobody_gets_a_copy_when_one_of_them_cannot_be_sent(daemon, home, hop_with):
    """The copies differ: to one recipient from the plain address, to the others a tagged one."""
    hop = hop_with(*(word for word in ALL if word != "SMTPUTF8"))
    home.write("filters/outgoing", "to one@example.net bare\n")
    reply = exchange(
        daemon.port, f"<{ADDRESS}> SMTPUTF8", "<one@example.net>", "<jörg@example.net>"
    )
    assert reply.startswith("553 5.6.7")
    assert hop.messages() == []


def test_utf8_that_was_allowed_but_not_used_needs_nothing_of_the_next_hop(daemon, hop_with):
    hop = hop_with("PIPELINING", "8BITMIME")
    assert exchange(daemon.port, f"<{ADDRESS}> SMTPUTF8", f"<{TO}>").startswith("250")
    assert "SMTPUTF8" not in commands(hop, "MAIL")[0]
    text = "From: bobby@example.org\r\nSubject: Grüße\r\n\r\nx\r\n.\r\n".encode()
    reply = exchange(daemon.port, f"<{ADDRESS}> SMTPUTF8", f"<{TO}>", message=text)
    assert reply.startswith("554 5.6.9 The next hop does not take header fields beyond ASCII")


def test_eight_bits_may_be_passed_on_to_a_hop_that_does_not_offer_it(start, home, hop_with):
    hop = hop_with("SIZE 100000000")
    daemon = start(home, "--eight-bit=pass")
    text = b"From: bobby@example.org\r\n\r\n\xe4\r\n.\r\n"
    reply = exchange(daemon.port, f"<{ADDRESS}> BODY=8BITMIME", f"<{TO}>", message=text)
    assert reply.startswith("250")
    assert hop.message(TO).octets.endswith(b"\r\n\r\n\xe4\r\n")
    assert "BODY" not in commands(hop, "MAIL")[0]


# A sendmail program.


def sent_by(daemon, home, sendmail: Sendmail, agent: str, mail: str, *rcpts: str) -> str:
    home.configure(to_program(sendmail.path), f"MAIL_TRANSFER_AGENT = {agent!r}")
    return exchange(daemon.port, mail, *rcpts)


def test_postfix_s_program_is_asked_for_notifications(daemon, home, tmp_path):
    sendmail = make_sendmail(tmp_path / "program")
    reply = sent_by(
        *(daemon, home, sendmail, "postfix", f"<{ADDRESS}> RET=HDRS ENVID=a+2Bb"),
        f"<{TO}> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x@example.net",
        "<y@example.net> NOTIFY=NEVER",
    )
    assert reply.startswith("554 5.3.3 a sendmail program takes the same NOTIFY")
    reply = sent_by(
        *(daemon, home, sendmail, "postfix", f"<{ADDRESS}> RET=HDRS ENVID=a+2Bb"),
        f"<{TO}> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x@example.net",
        "<y@example.net> NOTIFY=SUCCESS,DELAY",
    )
    assert reply.startswith("250")
    ((words, _, _),) = sendmail.runs()
    start = words.index("-N")
    assert words[start : start + 6] == ["-N", "success,delay", "-R", "hdrs", "-V", "a+b"]
    assert words[start + 6] == "--"


@pytest.mark.parametrize(
    ("agent", "rcpt", "reply"),
    [
        ("exim", f"<{TO}> NOTIFY=NEVER", "554 5.3.3 no delivery notifications (DSN) by this"),
        ("qmail", f"<{TO}> NOTIFY=NEVER", "554 5.3.3 no delivery notifications (DSN) by this"),
        ("postfix", f"<{TO}> ORCPT=rfc822;other@example.net", "554 5.3.3 a sendmail program"),
        ("postfix", f"<{TO}> ORCPT=x400;x@example.net", "554 5.3.3 a sendmail program"),
    ],
)
def test_what_a_program_cannot_be_asked_for_is_refused(daemon, home, tmp_path, agent, rcpt, reply):
    """To Exim -N would mean that nothing is delivered."""
    sendmail = make_sendmail(tmp_path / "program")
    assert sent_by(daemon, home, sendmail, agent, f"<{ADDRESS}>", rcpt).startswith(reply)
    assert sendmail.runs() == []


# A real mail server.


@pytest.mark.root
@pytest.mark.peer("postfix")
@pytest.mark.parametrize("by_program", [False, True], ids=["smtp", "sendmail"])
def test_postfix_notifies_the_tagged_sender(
    daemon, home, postfix: Postfix, by_program: bool
) -> None:
    """The report says by ENVID and ORCPT that both have come through."""
    to = f"notified-{by_program}@example.net"
    way = to_program(postfix.sendmail) if by_program else to_smtp(postfix.port)
    home.configure(way, "MAIL_TRANSFER_AGENT = 'postfix'")
    reply = exchange(
        daemon.port,
        f"<bobby@example.net> RET=HDRS ENVID=QQ{int(by_program)}14+3D",
        f"<{to}> NOTIFY=SUCCESS ORCPT=rfc822;{to}",
        message=MESSAGE.replace(b"bobby@example.org", b"bobby@example.net"),
    )
    assert reply.startswith("250")

    def report() -> bytes | None:
        wanted = f"Original-Recipient: rfc822;{to}".encode()
        return next((m.octets for m in postfix.messages() if wanted in m.octets), None)

    octets = wait_until(report, "a success notification")
    assert f"Original-Envelope-Id: QQ{int(by_program)}14=".encode() in octets
    assert b"Action: delivered" in octets
    assert re.search(rb"To: bobby-dated-\d+\.[0-9a-f]{6}@example\.net", octets)


@pytest.mark.root
@pytest.mark.peer("postfix")
@pytest.mark.parametrize("by_program", [False, True], ids=["smtp", "sendmail"])
def test_postfix_delivers_to_an_address_beyond_ascii(
    daemon, home, postfix: Postfix, by_program: bool
) -> None:
    to = f"jörg-{by_program}@example.net"
    way = to_program(postfix.sendmail) if by_program else to_smtp(postfix.port)
    home.configure(way, "MAIL_TRANSFER_AGENT = 'postfix'")
    text = f"From: bobby@example.org\r\nTo: {to}\r\nSubject: Grüße\r\n\r\nä\r\n.\r\n"
    reply = exchange(
        daemon.port, f"<{ADDRESS}> SMTPUTF8 BODY=8BITMIME", f"<{to}>", message=text.encode()
    )
    assert reply.startswith("250")
    assert postfix.message(to).value("Subject") == "Grüße"


@pytest.mark.root
@pytest.mark.peer("postfix")
def test_a_message_in_chunks_reaches_postfix_octet_for_octet(daemon, home, postfix: Postfix):
    """RFC 3030: no dots are stuffed in chunks, but some must be on the way on."""
    home.configure(to_smtp(postfix.port))
    to = "chunks@example.net"
    text = b"From: bobby@example.org\r\nSubject: x\r\n\r\n.\r\n..\r\n.x\r\n\r\nend\r\n.\r\n"
    with dialogue(daemon.port) as talk:
        talk.log_in()
        talk.envelope(to)
        half = len(text) // 2
        for part, last in ((text[:half], ""), (text[half:], " LAST")):
            talk.send(b"BDAT %d%s\r\n" % (len(part), last.encode()) + part)
            assert talk.reply().startswith("250")
    assert postfix.message(to).body == b".\n..\n.x\n\nend\n.\n"
