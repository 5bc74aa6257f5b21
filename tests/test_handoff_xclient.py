"""XCLIENT: what the next hop is told of a client, when, and over which connection."""

from __future__ import annotations

import dataclasses
import logging
import re
import urllib.parse

import pytest
from fakes import CLOSE, Act, FakeNextHop, at, copy_of, server_context, wait_for
from hypothesis import given
from hypothesis import strategies as st

from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.smtp import _BOUND_LIMIT, Pool, SmtpTransport
from tofmipd.handoff.xclient import Submitter, command, xtext
from tofmipd.privsep.outbound import submitter_of
from tofmipd.smtp.envelope import Envelope, Peer

POSTFIX = "NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
BOB = Submitter("203.0.113.9", 4711, "bobby", "laptop.example", "ESMTPSA")
AMY = Submitter("2001:db8::9", 4712, "amy", "[192.0.2.1]", "ESMTPA")


# What is said.


@pytest.mark.parametrize(
    ("submitter", "offered", "words"),
    [
        (
            BOB,
            POSTFIX,
            "ADDR=203.0.113.9 NAME=[UNAVAILABLE] PORT=4711 PROTO=ESMTP LOGIN=bobby"
            " HELO=laptop.example",
        ),
        (BOB, "addr name", "ADDR=203.0.113.9 NAME=[UNAVAILABLE]"),
        (AMY, "ADDR HELO", "ADDR=IPV6:2001:db8::9 HELO=[192.0.2.1]"),
        (Submitter("192.0.2.1", protocol="SMTP"), "PROTO ADDR", "ADDR=192.0.2.1 PROTO=SMTP"),
        (
            Submitter("192.0.2.1", protocol="UTF8SMTPSA"),
            "ADDR PROTO PORT LOGIN HELO",
            "ADDR=192.0.2.1 PORT=[UNAVAILABLE] PROTO=ESMTP LOGIN=[UNAVAILABLE] HELO=[UNAVAILABLE]",
        ),
        (
            dataclasses.replace(BOB, login="j+ö=\r\nx", helo="a b"),
            "ADDR LOGIN HELO",
            "ADDR=203.0.113.9 LOGIN=j+2B+C3+B6+3D+0D+0Ax HELO=a+20b",
        ),
    ],
)
def test_only_what_the_next_hop_lists_is_told(submitter, offered, words):
    assert command(submitter, offered.split(), with_login=True) == f"XCLIENT {words}"


def test_a_login_of_ours_stands_in_the_way_of_the_clients():
    assert command(BOB, ("ADDR", "LOGIN"), with_login=False) == "XCLIENT ADDR=203.0.113.9"


@pytest.mark.parametrize("offered", ["", "NAME", "ADDRESS", "LOGIN PORT"])
def test_without_an_address_nothing_is_told(offered):
    assert command(BOB, offered.split(), with_login=True) == ""


@given(st.text(), st.text())
def test_a_command_is_one_line_of_limited_length(login, helo):
    said = command(dataclasses.replace(BOB, login=login, helo=helo), POSTFIX.split(), with_login=1)
    assert len(said) <= 510
    assert re.fullmatch(r"XCLIENT( [A-Z]+=[!-~]+){6}", said)


def test_what_is_too_long_is_unknown_and_not_that_of_the_client_before():
    said = command(dataclasses.replace(BOB, login="ö" * 90), POSTFIX.split(), with_login=True)
    assert said.endswith(" LOGIN=[UNAVAILABLE] HELO=laptop.example")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_xtext_can_be_read_again(text):
    assert urllib.parse.unquote(xtext(text).replace("%", "%25").replace("+", "%")) == text


def test_a_session_tells_what_its_envelope_has():
    peer = Peer("203.0.113.9", 4711, False, "192.0.2.1")
    envelope = Envelope("a@b.example", "bobby", "laptop.example", "ESMTPSA", peer)
    assert submitter_of(envelope) == BOB
    assert submitter_of(Envelope("a@b.example", "bobby")) is None


# When, and over which connection.


@pytest.fixture
def pool():
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture
def hop_of(pool):
    def hop_of(server, **fields):
        fields = {"connect_timeout": 5, "reply_timeout": 5, "dot_timeout": 5} | fields
        return SmtpTransport([NextHop("127.0.0.1", server.port, **fields)], pool)

    return hop_of


def mail(submitter, recipient=b"x@example.net"):
    return dataclasses.replace(copy_of(recipients=(recipient,)), submitter=submitter)


def clients(server):
    """For whom the next hop has each message, by address, and over which connection."""
    return [
        (re.sub(r"ADDR=(\S+).*", r"\1", message.client), message.connection)
        for message in server.messages
    ]


def test_the_next_hop_is_told_before_a_message(hop_of):
    with FakeNextHop(xclient="ADDR LOGIN") as server:
        hop_of(server).send(mail(BOB))
        verbs = [line.split()[0].upper() for line in server.commands]
        assert verbs == ["EHLO", "XCLIENT", "EHLO", "MAIL", "RCPT", "DATA"]
        assert server.commands[1] == "XCLIENT ADDR=203.0.113.9 LOGIN=bobby"
        assert server.violations == []


def test_nobody_is_told_without_a_client_or_an_offer(hop_of):
    with FakeNextHop(xclient="ADDR") as server:
        hop_of(server).send(mail(None))
        assert "XCLIENT" not in str(server.commands)
    with FakeNextHop() as server:
        for client in (BOB, AMY):
            hop_of(server).send(mail(client))
        assert "XCLIENT" not in str(server.commands)
        assert clients(server) == [("", 1), ("", 1)]


def test_a_kept_connection_is_told_of_the_next_client(hop_of):
    with FakeNextHop(xclient="ADDR") as server:
        hop = hop_of(server)
        for client in (BOB, BOB, AMY, BOB):
            hop.send(mail(client))
        bob, amy = ("203.0.113.9", 1), ("IPV6:2001:db8::9", 1)
        assert clients(server) == [bob, bob, amy, bob]
        assert sum(line.startswith("XCLIENT") for line in server.commands) == 3
        assert server.violations == []


def test_where_a_connection_takes_one_client_each_has_his_own(hop_of):
    with FakeNextHop(xclient="ADDR", one_client=True) as server:
        hop = hop_of(server)
        for client in (BOB, BOB, AMY, BOB, AMY):
            hop.send(mail(client))
        bob, amy = ("203.0.113.9", 1), ("IPV6:2001:db8::9", 2)
        assert clients(server) == [bob, bob, amy, bob, amy]


@pytest.mark.parametrize("one_client", [False, True])
def test_what_is_nobodys_goes_over_a_connection_of_its_own(hop_of, one_client):
    """As a later attempt: the next hop must not take it for that of another."""
    with FakeNextHop(xclient="ADDR", one_client=one_client) as server:
        hop = hop_of(server)
        hop.send(mail(BOB))
        assert hop.send_to_some(mail(None)).said.startswith("250")
        hop.send(mail(BOB))
        names = [name for name, _ in clients(server)]
        assert names == ["203.0.113.9", "", "203.0.113.9"]
        assert server.connections == 2


def test_connections_of_one_client_do_not_pile_up(hop_of):
    with FakeNextHop(xclient="ADDR", one_client=True) as server:
        hop = hop_of(server)
        for number in range(_BOUND_LIMIT + 5):
            hop.send(mail(dataclasses.replace(BOB, port=number + 1, address=f"192.0.2.{number}")))
        assert server.connections == _BOUND_LIMIT + 5
        wait_for(lambda: server.commands.count("QUIT") == 5)


@pytest.mark.parametrize("tls", [False, True])
def test_the_login_at_the_next_hop_comes_after_it_and_again(hop_of, tls, tmp_path):
    context, ca = server_context(tmp_path) if tls else (None, "")
    way = {"tls": "starttls", "cafile": ca} if tls else {}
    login = {"username": "joe", "password": "x"}
    with FakeNextHop(xclient="ADDR LOGIN", login=("joe", "x"), tls=context) as server:
        hop = hop_of(server, **login, **way)
        for client in (BOB, AMY):
            hop.send(mail(client))
        assert clients(server) == [("203.0.113.9", 1), ("IPV6:2001:db8::9", 1)]
        verbs = [line.split()[0] for line in server.commands if line[:4] in ("XCLI", "AUTH")]
        assert verbs == ["XCLIENT", "AUTH", "XCLIENT", "AUTH"]
        assert "LOGIN" not in str(server.commands)
        assert "XCLIENT" not in str(server.commands[:1])


def test_a_refusal_is_logged_once_and_the_message_goes_without(hop_of, caplog):
    refusal = b"550 5.7.0 insufficient authorization\r\n"
    with FakeNextHop(at("XCLIENT", refusal), xclient="ADDR") as server:
        hop = hop_of(server)
        for client in (BOB, BOB, AMY):
            hop.send(mail(client))
        assert clients(server) == [("", 1)] * 3
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "refuses XCLIENT: 550 5.7.0 insufficient authorization" in line


def test_a_refusal_of_the_second_client_makes_a_new_connection(hop_of):
    refusal = at("XCLIENT", b"550 5.7.0 no\r\n", argument="ADDR=IPV6:2001:db8::9")
    with FakeNextHop(refusal, xclient="ADDR") as server:
        hop = hop_of(server)
        for client in (BOB, AMY):
            hop.send(mail(client))
        # Without a word on who it is, but not as the other's.
        assert clients(server) == [("203.0.113.9", 1), ("", 2)]


@pytest.mark.parametrize(
    "end", [CLOSE, Act(b"421 4.3.2 bye\r\n", close=True), Act(b"nonsense\r\n", close=True)]
)
def test_a_kept_connection_that_ends_at_the_command_is_replaced(hop_of, end):
    script = at("XCLIENT", end, argument="ADDR=IPV6:2001:db8::9", connection=1)
    with FakeNextHop(script, xclient="ADDR") as server:
        hop = hop_of(server)
        for client in (BOB, AMY):
            hop.send(mail(client))
        assert clients(server) == [("203.0.113.9", 1), ("IPV6:2001:db8::9", 2)]


def test_a_next_hop_that_ends_a_new_connection_at_the_command_is_a_failure(hop_of):
    with (
        FakeNextHop(at("XCLIENT", b"421 4.7.0 not now\r\n"), xclient="ADDR") as server,
        pytest.raises(HandOffFailed) as caught,
    ):
        hop_of(server).send(mail(BOB))
    assert str(caught.value.reply).startswith("451 4.4.1 ")
    assert server.messages == []


def test_all_copies_of_a_message_are_the_clients(hop_of):
    with FakeNextHop(xclient="ADDR") as server:
        said = []
        copies = [mail(BOB, recipient) for recipient in (b"x@example.net", b"y@example.net")]
        hop_of(server).send_all(copies, said.append)
        assert clients(server) == [("203.0.113.9", 1)] * 2
