"""What STARTTLS and a client's certificate change in a dialogue."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from fakes import ALL_MECHANISMS, LOOPBACK, TAKEN, TLS, Desk, FakeGate, ScramClient, b64

from tofmipd.auth.credentials import Certificate, Judgement, Password, Verdict
from tofmipd.server import Service
from tofmipd.settings import Limits
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Encryption, Peer
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import MakeChallenge, Policy, Session, StartTls, Step, Submit, Verify

FAR = Peer("192.0.2.7", 40000, False, "192.0.2.1")
ALL = ALL_MECHANISMS
SAFE = ALL[2:]
PLUS = ("SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS")
PLAIN = "AUTH PLAIN " + b64(b"\0bobby\0FooBar")
SHOWN = dataclasses.replace(TLS, certificate=b"DER", names=("anna", "a@b.c"))


def session(**policy) -> Session:
    return Session(Policy("host.example", **({"mechanisms": ALL, "starttls": True} | policy)), FAR)


def says(one: Session, line: str | bytes) -> str:
    """The reply to a line, that of a handshake or a login which succeed included."""
    step: Step = one.line(line.encode() if isinstance(line, str) else line)
    if isinstance(step, StartTls):
        one.secured(TLS)
        return str(step.reply)
    if isinstance(step, Verify):
        step = one.judged(Judgement(Verdict.ACCEPTED))
    elif isinstance(step, MakeChallenge):
        step = one.challenged(b"<x@y>")
    assert isinstance(step, Reply), step
    return str(step)


def keywords(one: Session) -> list[str]:
    reply = one.line(b"EHLO client.example")
    assert isinstance(reply, Reply)
    return list(reply.lines[1:])


def offered(one: Session) -> list[str]:
    """The mechanisms that EHLO lists."""
    return [word for line in keywords(one) if line.startswith("AUTH ") for word in line.split()[1:]]


# STARTTLS.


@pytest.mark.parametrize("line", ["STARTTLS now", "STARTTLS  x", "starttls \x7f"])
def test_it_takes_no_argument(line):
    """TO-63."""
    assert says(session(), line) == "501 5.5.4 Syntax: STARTTLS"


@pytest.mark.parametrize("line", ["STARTTLS", "starttls", "StartTLS ", "STARTTLS\t"])
def test_it_may_be_written_in_any_way(line):
    assert isinstance(session().line(line.encode()), StartTls)


def test_where_it_is_not_offered_it_is_out_of_order():
    one = session(starttls=False)
    assert says(one, "STARTTLS") == "503 5.5.1 Error: STARTTLS is not offered here"
    assert "STARTTLS" not in keywords(one)


def test_it_is_offered_once():
    one = session()
    assert "STARTTLS" in keywords(one)
    assert says(one, "STARTTLS").startswith("220 ")
    assert "STARTTLS" not in keywords(one)
    assert says(one, "STARTTLS") == "503 5.5.1 Error: the connection is encrypted already"


def test_it_must_come_before_the_login():
    one = session()
    assert says(one, PLAIN).startswith("235 ")
    assert says(one, "STARTTLS") == "503 5.5.1 Error: STARTTLS must come before AUTH"


def test_after_a_failed_login_it_may_come_all_the_same():
    one = session()
    assert isinstance(one.line(PLAIN.encode()), Verify)
    one.judged(Judgement(Verdict.REJECTED))
    assert isinstance(one.line(b"STARTTLS"), StartTls)


def test_it_is_no_response_to_a_challenge():
    one = session()
    assert says(one, "AUTH LOGIN").startswith("334 ")
    assert not isinstance(one.line(b"STARTTLS"), StartTls)


# What may come before it.


@pytest.mark.parametrize(
    "line",
    [
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<a@b.example>",
        "DATA",
        "RSET",
        "VRFY x",
        "HELP",
        PLAIN,
        "AUTH CRAM-MD5",
        "AUTH nonsense",
    ],
)
def test_where_it_is_required_little_comes_before_it(line):
    """TO-61."""
    one = session(tls_required=True, mechanisms=(), withheld=ALL)
    assert says(one, line) == "530 5.7.0 Must issue a STARTTLS command first"
    assert says(one, "STARTTLS").startswith("220 ")
    assert not says(one, line).startswith("530 5.7.0 Must")


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("NOOP", "250 "),
        ("EHLO x", "250 "),
        ("HELO x", "250 "),
        ("STARTTLS", "220 "),
        ("QUIT", "221 "),
        ("HOP", "502 "),
        ("STARTTLS x", "501 "),
    ],
)
def test_only_what_does_no_harm_does(line, reply):
    assert says(session(tls_required=True, mechanisms=(), withheld=ALL), line).startswith(reply)


def test_octets_of_a_chunk_are_read_and_thrown_away_before_it():
    """They are no commands, whoever sends them."""
    desk = Desk(Policy("h", withheld=ALL, starttls=True, tls_required=True))
    desk.said()
    desk.feed(b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
    assert desk.said() == [
        "S: 530 5.7.0 Must issue a STARTTLS command first",
        "S: 250 2.0.0 Ok",
    ]
    assert desk.received == []


# What is forgotten.


def test_what_was_said_before_it_is_forgotten():
    """RFC 3207 section 4.2: also by a session that would not need a login."""
    one = session(needs_login=False)
    assert says(one, "EHLO spoofed.example").startswith("250")
    assert says(one, "MAIL FROM:<a@b.example>").startswith("250")
    assert says(one, "RCPT TO:<c@d.example>").startswith("250")
    assert says(one, "STARTTLS").startswith("220 ")
    assert says(one, "DATA") == "503 5.5.1 Error: need MAIL command"
    assert says(one, "MAIL FROM:<new@b.example>").startswith("250")
    assert says(one, "RCPT TO:<e@f.example>").startswith("250")
    one.line(b"DATA")
    step = one.received(None)
    assert isinstance(step, Submit)
    envelope = step.envelope
    assert (envelope.helo, envelope.sender, envelope.recipients) == (
        "",
        "new@b.example",
        ["e@f.example"],
    )
    # Nor does the client speak the extended protocol any more.
    assert envelope.protocol == "SMTP"


def test_chunks_that_came_before_it_are_forgotten():
    desk = Desk(Policy("h", starttls=True, needs_login=False))
    desk.said()
    before = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 5\r\nearlySTARTTLS\r\n"
    desk.feed(before)
    desk.feed(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 4 LAST\r\nlate")
    (message,) = desk.received
    assert message.rstrip() == b"late"
    assert desk.said()[-1] == f"S: {TAKEN}"


def test_octets_behind_it_are_thrown_away():
    """RFC 3207, CVE-2011-0411: whoever sent them, they have not come through TLS."""
    desk = Desk(Policy("h", ALL, starttls=True), {"bobby": b"FooBar"})
    desk.said()
    desk.feed(b"STARTTLS\r\n" + PLAIN.encode() + b"\r\nNOOP\r\nMAIL FROM:<a@b")
    assert desk.said() == ["S: 220 2.0.0 Ready to start TLS", "G: starttls"]
    desk.feed(b".example>\r\n")
    assert desk.said() == ['S: 502 5.5.1 Error: command ".example>" not implemented']
    desk.feed(b"MAIL FROM:<a@b.example>\r\n")
    assert desk.said() == ["S: 530 5.7.0 Error: Authentication required"]


def test_how_much_was_wrong_is_not_forgotten():
    one = session(max_errors=3)
    assert says(one, "HOP").startswith("502 ")
    assert says(one, "HOP").startswith("502 ")
    assert says(one, "STARTTLS").startswith("220 ")
    assert says(one, "HOP").startswith("421 ")


def test_nor_are_failed_logins():
    one = session(max_auth_failures=2)
    one.line(PLAIN.encode())
    assert one.judged(Judgement(Verdict.REJECTED)) == replies.AUTH_REJECTED
    assert says(one, "STARTTLS").startswith("220 ")
    one.line(PLAIN.encode())
    assert one.judged(Judgement(Verdict.REJECTED)) == replies.TOO_MANY_FAILURES


# Mechanisms.


def test_what_was_withheld_is_offered_behind_it():
    """TO-67."""
    one = session(mechanisms=("CRAM-MD5",), withheld=("PLAIN", "LOGIN"))
    assert offered(one) == ["CRAM-MD5"]
    assert says(one, PLAIN) == "538 5.7.11 Encryption required for this AUTH type"
    assert says(one, "STARTTLS").startswith("220 ")
    assert offered(one) == ["PLAIN", "LOGIN", "CRAM-MD5"]
    assert says(one, PLAIN).startswith("235 ")


def secured(encryption: Encryption, **policy) -> Session:
    one = session(**({"withheld": ("EXTERNAL",)} | policy))
    one.secured(encryption)
    return one


BINDABLE = {"mechanisms": SAFE, "withheld": (*ALL[:2], *PLUS)}


def test_what_is_bound_to_the_channel_is_offered_behind_it():
    """RFC 9266; TO-67."""
    one = session(**BINDABLE)
    assert offered(one) == list(SAFE)
    assert says(one, "AUTH SCRAM-SHA-1-PLUS").startswith("538 ")
    assert says(one, "STARTTLS").startswith("220 ")
    assert offered(one) == [*ALL, *PLUS]
    assert says(one, "AUTH SCRAM-SHA-1-PLUS").startswith("334")


def test_it_is_not_offered_where_nothing_can_be_bound():
    one = session(**BINDABLE)
    one.secured(dataclasses.replace(TLS, binding=b""))
    assert offered(one) == list(ALL)
    assert says(one, "AUTH SCRAM-SHA-256-PLUS") == "504 5.5.4 AUTH type unimplemented"


@pytest.mark.parametrize(
    ("header", "mechanism", "codes"),
    [
        (b"p=tls-exporter,,", "SCRAM-SHA-256-PLUS", ["334", "334", "235"]),
        (b"n,,", "SCRAM-SHA-256", ["334", "334", "235"]),
        # the client could bind, and thinks that the server cannot: somebody stands between
        (b"y,,", "SCRAM-SHA-256", ["535"]),
        (b"n,,", "SCRAM-SHA-256-PLUS", ["535"]),
    ],
)
@pytest.mark.parametrize("binding", [TLS.binding, b"another"])
def test_a_login_that_is_bound_is_good_on_its_own_channel_only(header, mechanism, codes, binding):
    desk = Desk(Policy("h", ALL, withheld=PLUS, starttls=True), {"bobby": b"FooBar"})
    desk.feed(b"STARTTLS\r\n")
    desk.said()
    bound = header.startswith(b"p=")
    client = ScramClient(
        mechanism, b"bobby", b"FooBar", header=header, binding=binding if bound else b""
    )
    if bound and binding != TLS.binding:
        codes = ["334", "535"]
    desk.feed(f"AUTH {mechanism} {b64(client.first)}\r\n".encode())
    said = [line[3:] for line in desk.said() if line.startswith("S: ")]
    if codes != ["535"]:
        final = client.final(base64.b64decode(said[-1][4:]))
        desk.feed(b64(final).encode() + b"\r\n\r\n")
        said += [line[3:] for line in desk.said() if line.startswith("S: ")]
    assert [line[:3] for line in said[: len(codes)]] == codes
    assert (desk.session.login == "bobby") == ("235" in codes)
    if "235" in codes:
        assert base64.b64decode(said[1][4:]) == client.expected


def test_external_is_offered_to_whom_has_shown_a_certificate():
    assert "EXTERNAL" in offered(secured(SHOWN))


@pytest.mark.parametrize(
    "encryption", [TLS, dataclasses.replace(TLS, certificate=b"DER")], ids=["none", "nameless"]
)
def test_it_is_offered_to_nobody_else(encryption):
    one = secured(encryption)
    assert "EXTERNAL" not in offered(one)
    assert says(one, "AUTH EXTERNAL =") == "504 5.5.4 AUTH type unimplemented"


def test_it_is_not_offered_where_no_authority_is_asked():
    assert "EXTERNAL" not in offered(secured(SHOWN, withheld=()))


def test_before_tls_it_is_withheld():
    one = session(withheld=("EXTERNAL",))
    assert "EXTERNAL" not in offered(one)
    assert says(one, "AUTH EXTERNAL =").startswith("538 ")


@pytest.mark.parametrize(
    ("response", "user"),
    [
        ("=", "anna"),
        (b64(b"anna"), "anna"),
        (b64(b"Anna"), "anna"),
        (b64(b"a@b.c"), "a@b.c"),
    ],
)
@pytest.mark.parametrize("prompted", [True, False])
def test_external_logs_in_whom_the_certificate_names(response, user, prompted):
    """RFC 4422 appendix A: empty, or one of its own names."""
    one = secured(SHOWN)
    if prompted:
        assert one.line(b"AUTH EXTERNAL") == replies.prompt("")
        step = one.line(b"" if response == "=" else response.encode())
    else:
        step = one.line(b"AUTH EXTERNAL " + response.encode())
    assert step == Verify(Certificate(user, b"DER"), "EXTERNAL")
    assert one.judged(Judgement(Verdict.ACCEPTED)) == replies.AUTH_ACCEPTED
    assert one.login == user


@pytest.mark.parametrize("name", [b"berta", b"anna\0berta", b"\xff", b" anna", b"an"])
def test_nobody_acts_for_somebody_else(name):
    """It counts as a failed login like any other."""
    one = secured(SHOWN)
    step = one.line(b"AUTH EXTERNAL " + b64(name).encode())
    assert step == Verify(Password("", b""), "EXTERNAL")
    assert one.judged(Judgement(Verdict.REJECTED)) == replies.AUTH_REJECTED


def test_a_certificate_is_no_reason_against_a_password():
    one = secured(SHOWN)
    step = one.line(PLAIN.encode())
    assert step == Verify(Password("bobby", b"FooBar"), "PLAIN")


@pytest.mark.parametrize("line", ["AUTH EXTERNAL = =", "AUTH EXTERNAL anna", "AUTH EXTERNAL YW5u"])
def test_a_malformed_response_leads_nowhere(line):
    step = secured(SHOWN).line(line.encode())
    if isinstance(step, Verify):
        assert step.credentials == Password("", b"")
    else:
        assert isinstance(step, Reply)
        assert step.code == 501


# The policies of listeners.


class Gate(FakeGate):
    mechanisms = frozenset((*ALL, "EXTERNAL"))


def greeted(mode: str, peer: Peer, *, insecure_auth: bool = False) -> Session:
    service = Service(Gate(), "h", Limits(), insecure_auth=insecure_auth)
    return Session(service.policy(mode, near=peer.loopback), peer)


NEAR_ROWS = [
    ("plain", list(ALL), False, False),
    ("optional", list(ALL), True, False),
    ("localoptional", list(ALL), True, False),
    ("on", [], True, True),
    ("ssl", [], False, True),
]
FAR_ROWS = [
    ("plain", list(SAFE), False, False),
    ("optional", list(ALL), True, False),
    ("localoptional", [], True, True),
    ("on", [], True, True),
    ("ssl", [], False, True),
]


@pytest.mark.parametrize(
    ("peer", "row"),
    [(LOOPBACK, row) for row in NEAR_ROWS] + [(FAR, row) for row in FAR_ROWS],
    ids=lambda value: value[0] if isinstance(value, tuple) and isinstance(value[0], str) else None,
)
def test_a_listener_s_mode_and_the_client_s_place_say_what_is_offered(peer, row):
    """TO-60 to TO-62."""
    mode, mechanisms, starttls, required = row
    one = greeted(mode, peer)
    assert offered(one) == mechanisms
    assert ("STARTTLS" in keywords(one)) is starttls
    assert (says(one, "MAIL FROM:<a@b.c>") == str(replies.TLS_REQUIRED)) is required


@pytest.mark.parametrize("mode", ["on", "optional", "localoptional", "ssl"])
@pytest.mark.parametrize("peer", [LOOPBACK, FAR], ids=["near", "far"])
def test_behind_tls_all_is_offered_everywhere(mode, peer):
    one = greeted(mode, peer)
    one.secured(SHOWN)
    assert offered(one) == [*ALL, *PLUS, "EXTERNAL"]


def test_what_the_sources_can_serve_may_change_between_sessions():
    gate = Gate()
    service = Service(gate, "h", Limits())
    before = Session(service.policy("plain", near=True), LOOPBACK)
    gate.mechanisms = frozenset({"PLAIN", "LOGIN"})
    after = Session(service.policy("plain", near=True), LOOPBACK)
    assert (offered(before), offered(after)) == (list(ALL), ["PLAIN", "LOGIN"])


def test_insecure_auth_is_no_reason_to_forgo_tls_where_it_is_required():
    assert offered(greeted("on", FAR, insecure_auth=True)) == []
    assert offered(greeted("plain", FAR, insecure_auth=True)) == list(ALL)
