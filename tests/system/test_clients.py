"""Real mail clients log in and send through tofmipd to real next hops."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator

import pytest
from clients import CLIENTS, Mail, run_client
from hops import Hop, make_sendmail, smtp_sink
from running import ADDRESS, make_home, to_program, to_smtp, tofmipd

MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
DATED = r"bobby-dated-[0-9]{10}\.[0-9a-f]{6}@example\.org"
TEXT = """\
From: "Brown, Bobby" <{sender}>
To: {recipient}
Bcc: {hidden}
Subject: mail {number}

.first line
Grüße
.
last line
"""
MARKS = {
    "curl": [pytest.mark.peer("curl")],
    "swaks": [pytest.mark.peer("swaks")],
    "msmtp": [pytest.mark.peer("msmtp")],
    "smtp-sink": [pytest.mark.peer("smtp-sink")],
    "postfix": [pytest.mark.root, pytest.mark.peer("postfix")],
    "postfix-sendmail": [pytest.mark.root, pytest.mark.peer("postfix")],
}
numbers = itertools.count(1)


def marked(*names: str) -> list:
    return [pytest.param(name, marks=MARKS.get(name, ())) for name in names]


@pytest.fixture(scope="module")
def route(request, tmp_path_factory) -> Iterator[tuple[Hop, int]]:
    """A next hop, and the port of a daemon in front of it."""
    directory = tmp_path_factory.mktemp("route")
    with contextlib.ExitStack() as stack:
        hop: Hop
        match request.param:
            case "smtp-sink":
                hop = stack.enter_context(smtp_sink(directory / "sink"))
                line = to_smtp(hop.port)
            case "postfix":
                hop = request.getfixturevalue("postfix")
                line = to_smtp(hop.port)
            case "sendmail-stand-in":
                hop = make_sendmail(directory / "program")
                line = to_program(hop.path)
            case "postfix-sendmail":
                hop = request.getfixturevalue("postfix")
                line = to_program(hop.sendmail)
        yield hop, stack.enter_context(tofmipd(make_home(directory / "home", line))).port


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("client", marked(*CLIENTS))
@pytest.mark.parametrize(
    "route",
    marked("smtp-sink", "postfix", "sendmail-stand-in", "postfix-sendmail"),
    indirect=True,
)
def test_each_client_delivers_a_tagged_mail_once_to_each_recipient(
    route, client, mechanism, tmp_path
):
    hop, port = route
    number = next(numbers)
    recipient, hidden = f"seen-{number}@example.net", f"hidden-{number}@example.net"
    text = TEXT.format(sender=ADDRESS, recipient=recipient, hidden=hidden, number=number)
    mail = Mail((recipient, hidden), text, mechanism=mechanism)
    sent = CLIENTS[client](mail, port, tmp_path)
    assert sent.status == 0, sent.words
    for address in (recipient, hidden):
        stored = hop.message(address)
        assert re.fullmatch(DATED, stored.sender)
        assert stored.value("From") == f'"Brown, Bobby" <{stored.sender}>'
        assert stored.value("Subject") == f"mail {number}"
        assert not stored.values("Bcc")
        # Postfix names the one recipient of each of its copies in its own Received.
        assert hidden not in "".join(stored.values("Received")[-1:] + stored.values("To"))
        body = stored.body.replace(b"\r\n", b"\n").decode()
        assert body.rstrip("\n") == text.partition("\n\n")[2].rstrip("\n")


@pytest.mark.parametrize("client", marked(*CLIENTS))
def test_each_client_reports_a_wrong_password(client, daemon, hop, tmp_path):
    mail = Mail(("x@example.net",), "Subject: x\n\nx\n", password="wrong")
    sent = CLIENTS[client](mail, daemon.port, tmp_path)
    assert sent.status != 0
    assert "535" in sent.words
    assert not hop.messages()


@pytest.mark.peer("swaks")
def test_without_a_login_swaks_is_refused_at_mail(daemon, hop):
    """TO-2."""
    server = f"127.0.0.1:{daemon.port}"
    sent = run_client("swaks", "--server", server, "--from", ADDRESS, "--to", "x@example.net")
    assert sent.status == 23
    assert "530 5.7.0 Error: Authentication required" in sent.words
    assert not hop.messages()


@pytest.mark.peer("swaks")
def test_swaks_pipelines(daemon, hop):
    """BX-37."""
    server = f"127.0.0.1:{daemon.port}"
    sent = run_client(
        *("swaks", "--pipeline", "--server", server, "--from", ADDRESS, "--to", "x@example.net"),
        *("--auth", "PLAIN", "--auth-user", "bobby", "--auth-password", "FooBar"),
    )
    assert sent.status == 0, sent.words
    assert hop.message("x@example.net")


@pytest.mark.peer("swaks")
def test_helo_is_answered(daemon):
    """TO-24."""
    server = f"127.0.0.1:{daemon.port}"
    sent = run_client("swaks", "--protocol", "SMTP", "--quit-after", "HELO", "--server", server)
    assert sent.status == 0, sent.words
    assert "<-  250 " in sent.words
