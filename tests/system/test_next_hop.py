"""The way out: how often the next hop is called on, with which login, and by which program."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import logged_in, submit
from hops import raw_hop
from postfix import MECHANISMS, NEXT_HOP_LOGIN, NEXT_HOP_PASSWORD
from running import HOST, free_port, run, to_program, to_smtp, wait_until

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


UNKNOWN_AUTHORITY = (
    r"451 4\.7\.5 certificate of localhost is signed by an unknown authority \(SMTPSSL_CAFILE\)"
)


def submission(port: int, *lines: str, host: str = HOST) -> list[str]:
    return [
        'MAIL_TRANSPORT = "smtp"',
        f'SMTPHOST = "{host}:{port}"',
        "SMTPSSL = True",
        f'SMTPAUTH_USERNAME = "{NEXT_HOP_LOGIN}"',
        f'SMTPAUTH_PASSWORD = "{NEXT_HOP_PASSWORD}"',
        *lines,
    ]


def fingerprint_of(certificate: Path) -> str:
    """As openssl shows it."""
    words = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(certificate)]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return shown.strip().partition("=")[2]


@pytest.mark.root
@pytest.mark.peer("postfix", "openssl")
@pytest.mark.parametrize(
    ("place", "lines"),
    [
        ("starttls", []),
        ("starttls", ['SMTPSSL_CAFILE = "{certificate}"']),
        ("starttls", ['SMTPTLS = "fingerprint:{fingerprint}"']),
        ("starttls", ['SMTPTLS = "encrypt"', "SMTPSSL = False"]),
        ("implicit", ['SMTPSSL = "implicit"']),
        ("implicit", ['SMTPSSL = "implicit"', 'SMTPSSL_CAFILE = "{certificate}"']),
        ("implicit", ['SMTPSSL = "implicit"', 'SMTPTLS = "fingerprint:{fingerprint}"']),
    ],
)
def test_postfix_takes_mail_by_tls_and_login(place, lines, daemon, home, postfix):
    """TO-112, BX-32: on this machine a certificate need not be verified, but may be."""
    certificate, digits = postfix.certificate, fingerprint_of(postfix.certificate)
    lines = [line.format(certificate=certificate, fingerprint=digits) for line in lines]
    port = postfix.others.get(place, postfix.submission)
    home.configure(*submission(port, *lines))
    recipient = f"submitted-{uuid.uuid4().hex}@example.net"
    assert submit(daemon.port, recipient).startswith("250 2.0.0 Ok: queued as ")
    stored = postfix.message(recipient)
    assert stored.sender.startswith("bobby-dated-")
    assert "ESMTPSA" in stored.values("Received")[0]
    # BX-28: one line leads from our log to the next hop's.
    line = daemon.says(f"sent to='{recipient}'")
    (queue_id,) = re.findall(r" reply='250 2\.0\.0 Ok: queued as (\w+)'", line)
    assert f" {queue_id}: to=<{recipient}>" in wait_until(
        lambda: postfix.log() if f" {queue_id}: removed" in postfix.log() else "", queue_id
    )
    assert NEXT_HOP_PASSWORD not in daemon.text()


@pytest.mark.root
@pytest.mark.peer("postfix", "openssl")
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_postfix_takes_every_mechanism(mechanism, tls, daemon, home, postfix):
    """TO-112."""
    home.configure(*submission(postfix.others[mechanism], f"SMTPSSL = {tls}"))
    recipient = f"login-{uuid.uuid4().hex}@example.net"
    assert submit(daemon.port, recipient).startswith("250 2.0.0 Ok: queued as ")
    protocol = "ESMTPSA" if tls else "ESMTPA"
    assert f"with {protocol} " in postfix.message(recipient).values("Received")[0] + " "
    home.configure(
        *submission(postfix.others[mechanism], f"SMTPSSL = {tls}", "SMTPAUTH_PASSWORD = 'wrong'")
    )
    assert re.fullmatch(
        r"451 4\.7\.0 next hop \S+ refuses the login \(SMTPAUTH_USERNAME\)",
        submit(daemon.port, "never@example.net"),
    )


@pytest.mark.root
@pytest.mark.peer("postfix", "openssl")
@pytest.mark.parametrize(
    ("place", "lines", "reply"),
    [
        (
            "submission",
            ['SMTPAUTH_PASSWORD = "wrong"'],
            r"451 4\.7\.0 next hop \S+ refuses the login \(SMTPAUTH_USERNAME\)",
        ),
        (
            "submission",
            ["SMTPSSL = False"],
            r"451 4\.7\.4 next hop \S+ offers no login without SMTPSSL",
        ),
        (
            "submission",
            ['SMTPSSL_CAFILE = "{ca}"'],
            UNKNOWN_AUTHORITY,
        ),
        (
            "submission",
            ['SMTPTLS = "verify"'],
            UNKNOWN_AUTHORITY,
        ),
        (
            "submission",
            ['SMTPSSL_CAFILE = "/none"'],
            r"451 4\.3\.5 SMTPSSL_CAFILE, .* No such file.*",
        ),
        (
            "submission",
            [f'SMTPTLS = "fingerprint:{"0" * 64}"'],
            rf"451 4\.7\.5 fingerprint of localhost is [0-9a-f]{{64}}, not {'0' * 64}",
        ),
        (
            "other",
            ['SMTPSSL_CAFILE = "{ca}"'],
            r"451 4\.7\.5 certificate of localhost is for other\.example\.org",
        ),
        (
            "expired",
            ['SMTPSSL_CAFILE = "{ca}"'],
            r"451 4\.7\.5 certificate of localhost has expired on [0-9]{4}-[0-9]{2}-[0-9]{2}",
        ),
        (
            "submission",
            ['SMTPSSL = "implicit"'],
            r"451 4\.7\.5 next hop \S+: TLS failed: wrong version number",
        ),
        ("implicit", ["SMTPSSL = True"], r"451 4\.4\.1 next hop \S+ does not answer"),
    ],
)
def test_a_next_hop_that_cannot_be_trusted_or_logged_in_to_defers(
    place, lines, reply, start, home, postfix
):
    """TO-112, BX-32: the log says the same."""
    daemon = start(home, "--nexthop-connect-timeout=2")
    port = postfix.others.get(place, postfix.submission)
    lines = [line.format(ca=postfix.authority) for line in lines]
    home.configure(*submission(port, *lines, host="localhost"))
    said = submit(daemon.port, "never@example.net")
    assert re.fullmatch(reply, said), said
    assert f"hand-off to localhost:{port} failed: {said}" in daemon.text()
    assert not postfix.for_recipient("never@example.net")
    assert NEXT_HOP_PASSWORD not in said + daemon.text()


def test_the_next_hop_is_another_one_when_the_first_cannot_be_had(daemon, home, hop):
    gone = free_port()
    home.configure(f"SMTPHOST = ['{HOST}:{gone}', '{HOST}:{hop.port}']", 'MAIL_TRANSPORT = "smtp"')
    for _ in range(3):
        assert submit(daemon.port, TO).startswith("250")
    assert len(hop.stored) == 3
    told = f"next hop {HOST}:{hop.port} is used instead: next hop {HOST}:{gone}: "
    assert daemon.text().count(told) == 1


def test_the_administrator_names_the_next_hop_of_who_names_none(start, home, hop):
    with raw_hop() as relay:
        daemon = start(home, "--relay", f"{HOST}:{relay.port}")
        home.configure("")
        assert submit(daemon.port, TO).startswith("250")
        home.configure(to_smtp(hop.port))
        assert submit(daemon.port, TO).startswith("250")
        assert len(relay.stored) == len(hop.stored) == 1


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


@pytest.mark.root
@pytest.mark.peer("postfix", "openssl")
def test_a_probe_says_what_postfix_is(home, postfix):
    """BX-32."""
    home.configure(*submission(postfix.submission, f'SMTPSSL_CAFILE = "{postfix.certificate}"'))
    done = run("probe", home=home)
    assert done.returncode == 0, done
    lines = dict(re.findall(r"^(.*?): +(.*)$", done.stdout, re.M))
    assert lines["greeting"] == "hop.example.net ESMTP Postfix"
    assert lines["size limit"] == "60000000 octets"
    assert lines["TLS"].startswith("TLSv1.3, ")
    assert lines["TLS"].endswith(", by STARTTLS")
    assert (lines["mechanisms"], lines["without TLS"]) == ("PLAIN", "none")
    assert lines["certificate"] == "for localhost, 127.0.0.1"
    assert lines["fingerprint"] == fingerprint_of(postfix.certificate).replace(":", "").lower()
    assert lines["accepted"] == "yes"
    assert lines["login"] == f"{NEXT_HOP_LOGIN} by PLAIN"
    assert NEXT_HOP_PASSWORD not in done.stdout + done.stderr


@pytest.mark.root
@pytest.mark.peer("postfix", "openssl")
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("other", r"certificate of localhost is for other\.example\.org"),
        ("expired", r"certificate of localhost has expired on \d{4}-\d\d-\d\d"),
    ],
)
def test_a_probe_says_why_postfix_is_not_to_be_trusted(place, why, home, postfix):
    """BX-32."""
    where = f"localhost:{postfix.others[place]}"
    done = run("probe", "--ca", str(postfix.authority), where, home=home)
    assert done.returncode == os.EX_UNAVAILABLE, done
    assert re.search(rf"^accepted: +no: {why}$", done.stdout, re.M)
