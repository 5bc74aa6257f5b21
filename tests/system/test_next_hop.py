"""The way out: how often the next hop is called on, with which login, and by which program."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import logged_in, submit
from hops import raw_hop
from postfix import NEXT_HOP_LOGIN, NEXT_HOP_PASSWORD, make_certificate
from running import HOST, to_program, to_smtp

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"

# Notes what a Python program asks the resolver for and connects to.
WATCH = """\
import sys

def note(event, arguments, file=open({path!r}, "a")):
    if event == "socket.connect":
        print("connect", arguments[1], file=file, flush=True)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        print("resolve", arguments[0], file=file, flush=True)

sys.addaudithook(note)
"""


def test_nothing_but_the_next_hop_is_connected_to(start, home, hop, tmp_path):
    """TO-1: no MX is looked up, no name resolved."""
    notes = tmp_path / "notes"
    (tmp_path / "sitecustomize.py").write_text(WATCH.format(path=str(notes)))
    daemon = start(home, variables={"PYTHONPATH": str(tmp_path)})
    before = len(notes.read_text())
    assert submit(daemon.port, TO, "y@elsewhere.example").startswith("250")
    lines = notes.read_text()[before:].splitlines()
    assert lines == [f"resolve {HOST}", f"connect ('{HOST}', {hop.port})"]


@pytest.mark.peer("strace")
def test_strace_sees_no_other_connection_either(start, home, hop, tmp_path):
    """TO-1."""
    daemon, trace = start(home), tmp_path / "trace"
    with subprocess.Popen(
        ["strace", "-f", "-e", "trace=connect", "-o", str(trace), "-p", str(daemon.pid)],
        stderr=subprocess.PIPE,
        text=True,
    ) as strace:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        assert submit(daemon.port, TO, "y@elsewhere.example").startswith("250")
        strace.terminate()
    (place,) = re.findall(r"connect\([0-9]+, (.*?\}), ", trace.read_text())
    assert f"sin_port=htons({hop.port})" in place
    assert HOST in place


def test_one_connection_serves_many_messages(daemon, hop):
    with logged_in(daemon.port) as talk:
        for number in range(5):
            talk.envelope(f"r{number}@example.net")
            assert talk.data(MESSAGE).startswith("250")
    assert submit(daemon.port, TO).startswith("250")
    assert len(hop.stored) == 6
    assert hop.connections <= 1


def test_a_connection_is_used_only_as_often_as_the_user_allows(daemon, home, hop):
    """TO-112."""
    home.configure(to_smtp(hop.port), "SMTP_MAX_SESSIONS_PER_CONNECTION = 2")
    for _ in range(5):
        assert submit(daemon.port, TO).startswith("250")
    assert len(hop.stored) == 5
    assert hop.connections == 3


def test_no_copy_is_sent_when_a_recipient_of_another_copy_is_refused(daemon, home, hop):
    """All or nothing, also where each recipient gets a copy of its own."""
    home.write("filters/outgoing", "to * sender\n")
    hop.refuse["RCPT TO:<bad@"] = b"550 5.1.1 No such user"
    reply = submit(daemon.port, "good@example.net", "bad@example.net", "other@example.net")
    assert reply == "550 5.1.1 <bad@example.net>: No such user"
    assert not hop.stored
    hop.refuse.clear()
    assert submit(daemon.port, "good@example.net", "bad@example.net").startswith("250")
    assert [stored.recipients for stored in hop.stored] == [
        ("good@example.net",),
        ("bad@example.net",),
    ]


def test_many_clients_at_once_have_each_mail_delivered_once(daemon, hop):
    def work(client: int) -> None:
        with logged_in(daemon.port) as talk:
            for number in range(5):
                talk.envelope(f"r{client}-{number}@example.net")
                assert talk.data(MESSAGE).startswith("250")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    recipients = [stored.recipients[0] for stored in hop.stored]
    assert len(recipients) == len(set(recipients)) == 100


def test_eight_bit_mail_for_a_next_hop_that_cannot_take_it_is_refused(daemon, home):
    """BX-37: better than mail that arrives spoiled."""
    with raw_hop(keywords=("PIPELINING",)) as hop, logged_in(daemon.port) as talk:
        home.configure(to_smtp(hop.port))
        assert talk.say("MAIL FROM:<bobby@example.org> BODY=8BITMIME").startswith("250")
        assert talk.say(f"RCPT TO:<{TO}>").startswith("250")
        assert talk.data(MESSAGE).startswith("554 5.6.3 ")
        assert not hop.stored
        talk.envelope(TO)
        assert talk.data(MESSAGE).startswith("250")


def submission(postfix, *lines: str) -> list[str]:
    return [
        to_smtp(postfix.submission),
        "SMTPSSL = True",
        f'SMTPAUTH_USERNAME = "{NEXT_HOP_LOGIN}"',
        f'SMTPAUTH_PASSWORD = "{NEXT_HOP_PASSWORD}"',
        *lines,
    ]


@pytest.mark.root
@pytest.mark.peer("postfix", "openssl")
@pytest.mark.parametrize("verified", [False, True])
def test_postfix_takes_mail_by_tls_and_login(verified, daemon, home, postfix):
    """TO-112: on this machine a certificate need not be verified, but may be."""
    lines = [f'SMTPSSL_CAFILE = "{postfix.certificate}"'] if verified else []
    home.configure(*submission(postfix, *lines))
    recipient = f"submitted-{verified}@example.net".lower()
    assert submit(daemon.port, recipient).startswith("250 2.0.0 Ok: queued as ")
    stored = postfix.message(recipient)
    assert stored.sender.startswith("bobby-dated-")
    assert "ESMTPSA" in stored.values("Received")[0]
    assert NEXT_HOP_PASSWORD not in daemon.text()


@pytest.mark.root
@pytest.mark.peer("postfix", "openssl")
@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        (
            ['SMTPAUTH_PASSWORD = "wrong"'],
            r"451 4\.7\.0 next hop \S+ refuses the login \(SMTPAUTH_USERNAME\)",
        ),
        (["SMTPSSL = False"], r"451 4\..*"),
        (
            ['SMTPSSL_CAFILE = "{other}"'],
            r"451 4\.7\.5 next hop \S+: TLS failed: .*verify failed.*",
        ),
        (['SMTPSSL_CAFILE = "/none"'], r"451 4\.3\.5 SMTPSSL_CAFILE, .* No such file.*"),
    ],
)
def test_a_next_hop_that_cannot_be_trusted_or_logged_in_to_defers(
    lines, reply, daemon, home, postfix, tmp_path
):
    """TO-112."""
    other = make_certificate(tmp_path)
    home.configure(*submission(postfix, *(line.format(other=other) for line in lines)))
    said = submit(daemon.port, "never@example.net")
    assert re.fullmatch(reply, said), said
    assert not postfix.for_recipient("never@example.net")
    assert NEXT_HOP_PASSWORD not in said + daemon.text()


def test_a_next_hop_without_tls_gets_neither_mail_nor_password(daemon, home, hop):
    """TO-112, BX-32: no silent way down."""
    home.configure(
        to_smtp(hop.port),
        "SMTPSSL = True",
        'SMTPAUTH_USERNAME = "proxy"',
        'SMTPAUTH_PASSWORD = "secret"',
    )
    assert submit(daemon.port, TO).startswith("451 4.7.4 ")
    assert {command.split()[0].upper() for command in hop.commands} <= {"EHLO", "QUIT"}


def test_a_password_for_the_next_hop_may_hold_any_sign_or_is_named(daemon, home):
    """It is not the next hop's fault when it cannot be sent."""
    with raw_hop(keywords=("AUTH PLAIN",), refuse={"AUTH": b"235 2.7.0 Ok"}) as hop:
        lines = ('SMTPAUTH_USERNAME = "proxy"', 'SMTPAUTH_PASSWORD = "pässwört"')
        home.configure(to_smtp(hop.port), *lines)
        reply = submit(daemon.port, TO)
        assert reply.startswith("250") or "SMTPAUTH_PASSWORD" in reply


def test_a_sendmail_program_gets_arguments_and_a_clean_environment(start, home, sendmail):
    """TO-111."""
    home.configure(to_program(sendmail.path))
    home.write("filters/outgoing", "to * ext=t\n")
    daemon = start(home, variables={"LD_PRELOAD": "", "SECRET": "of the daemon"})
    assert submit(daemon.port, "-oQ@example.net", "b@example.net").startswith("250")
    ((arguments, environment, message),) = sendmail.runs()
    assert arguments == [
        *("-i", "-f", "bobby-t@example.org", "--", "-oQ@example.net", "b@example.net")
    ]
    own = {"HOME", "LOGIN", "LOGNAME", "PATH", "TCPLOCALIP", "USER"}
    assert set(environment) - {"PWD", "_", "OLDPWD"} == own
    assert environment["TCPLOCALIP"] == "127.0.0.1"
    assert environment["HOME"] == str(home.path)
    assert environment["LOGIN"] == "bobby"
    assert b"\r" not in message


@pytest.mark.parametrize(
    ("lines", "sender"),
    [
        ([], ""),
        (['MAIL_TRANSFER_AGENT = "postfix"'], ""),
        (['MAIL_TRANSFER_AGENT = "sendmail"'], "<>"),
    ],
)
def test_the_null_sender_is_spelt_as_the_program_wants_it(lines, sender, daemon, home, sendmail):
    """TO-31."""
    home.configure(to_program(sendmail.path), *lines)
    home.write("filters/outgoing", "to * tag from ext=t envelope exp=<>\n")
    assert submit(daemon.port, TO).startswith("250")
    ((arguments, _, _),) = sendmail.runs()
    assert arguments == ["-i", "-f", sender, "--", TO]


@pytest.mark.root
@pytest.mark.peer("postfix")
@pytest.mark.parametrize("program", [False, True])
def test_postfix_takes_the_null_sender(program, daemon, home, postfix):
    """TO-31."""
    home.configure(to_program(postfix.sendmail) if program else to_smtp(postfix.port))
    home.write("filters/outgoing", "to * tag from ext=t envelope exp=<>\n")
    recipient = f"null-{program}@example.net".lower()
    assert submit(daemon.port, recipient).startswith("250")
    assert postfix.message(recipient).sender == ""
