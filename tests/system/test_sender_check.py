"""Whose addresses a login may send with (BX-1, BX-2): by swaks, and octet by octet."""

from __future__ import annotations

import getpass
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import Mail, by_swaks, logged_in, submit, wire
from hops import make_sendmail
from running import host_name, usual_umask

TO = "x@example.net"
DOMAIN = "example.org"
ANOTHER, NOT_YOURS = "is the address of another account", "is not an address of yours"

# What follows are envelope sender and From; which of them is refused, "" for none.  "BOBBY" sends,
# "CHLOE" has an account as well.
BOTH = [
    # BX-1
    ("BOBBY@example.org", "BOBBY@example.org", ""),
    ("BOBBY-dated-1234567890.abcdef@example.org", "BOBBY@example.org", ""),
    ("BOBBY@example.org", "Bobby <BOBBY-dated-1234567890.abcdef@example.org>", ""),
    ("BOBBY+x@example.org", '"Smith, Chloe" <BOBBY@localhost>', ""),
    ("<>", "BOBBY@example.org", ""),
    ("CHLOE@example.org", "BOBBY@example.org", "CHLOE@example.org"),
    ("BOBBY@example.org", "Bobby <CHLOE@example.org>", "CHLOE@example.org"),
    ("BOBBY@example.org", "BOBBY@example.org, CHLOE+x@example.org", "CHLOE+x@example.org"),
    (
        "<>",
        "CHLOE-dated-1234567890.abcdef@example.org",
        "CHLOE-dated-1234567890.abcdef@example.org",
    ),
    ('"CHLOE"@example.org', "BOBBY@example.org", '"CHLOE"@example.org'),
    # Where mail for the accounts of this machine goes as well, whatever --sender-domain says.
    ("BOBBY@example.org", "CHLOE@localhost", "CHLOE@localhost"),
    ("CHLOE@HOST", "BOBBY@example.org", "CHLOE@HOST"),
]
OWN = [
    *BOTH,
    ("BOBBY@example.org", "sales@example.org", "sales@example.org"),
    ("BOBBY@other.example", "BOBBY@example.org", "BOBBY@other.example"),
    ("BOBBY@example.org", "friend@example.com, BOBBY@example.org", "friend@example.com"),
]
MODES = {
    "by default": (
        "",
        "others",
        [
            *BOTH,
            ("BOBBY@example.org", "sales@example.org", ""),
            ("CHLOE@other.example", "friend@example.com", ""),
        ],
    ),
    "own": ("--sender-check=own", "own", OWN),
    # BX-2: the matrix of six.
    "own and listed": (
        "--sender-check=own --senders={senders}",
        "own",
        [
            ("any.thing@bobby.example", "Sales@Example.org", ""),
            ("sales-dated-1.x@example.org", "me@bobby.example", ""),
            ("CHLOE@example.org", "BOBBY@example.org", ""),
            ("BOBBY@example.org", "x@a.bobby.example", "x@a.bobby.example"),
            ("BOBBY@example.org", "salesx@example.org", "salesx@example.org"),
            ("other@example.org", "BOBBY@example.org", "other@example.org"),
        ],
    ),
    "others and listed": (
        "--senders={senders}",
        "others",
        [("CHLOE+x@example.org", "CHLOE@example.org", ""), ("<>", "daemon@HOST", "daemon@HOST")],
    ),
    "off": ("--sender-check=off", "off", [("CHLOE@example.org", "CHLOE@localhost", "")]),
}
SENDERS = "BOBBY: *@bobby.example, sales@example.org\nBOBBY: CHLOE@example.org\n"


@pytest.fixture
def fill(village):
    """Put the names of accounts, and of this host, into a text."""
    bobby, chloe, _ = village.people

    def fill(text: str) -> str:
        return (
            text.replace("BOBBY", bobby.name)
            .replace("CHLOE", chloe.name)
            .replace("HOST", host_name())
        )

    return fill


@pytest.fixture
def senders(village, fill):
    path = village.directory / "senders"
    path.write_text(fill(SENDERS))
    path.chmod(0o644)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def send(village):
    """Send a message with this header as the first of the people; the reply to it."""
    bobby = village.people[0]

    def send(daemon, head, sender=f"x@{DOMAIN}", body=b"x\r\n"):
        octets = (head if isinstance(head, bytes) else head.encode()) + b"\r\n\r\n" + body
        return submit(
            *(daemon.port, TO),
            **{"message": octets, "sender": sender, "login": bobby.name},
            password=bobby.password,
        )

    return send


# In global mode.


@pytest.mark.root
@pytest.mark.peer("swaks")
@pytest.mark.parametrize("name", MODES)
def test_senders_are_refused_as_the_table_says(name, village, village_hop, fill, senders, tmp_path):
    """BX-1, BX-2: the reply names address and rule, and nothing of a refused message is sent."""
    options, mode, rows = MODES[name]
    bobby = village.people[0]

    def outcome(row: tuple[str, str, str]) -> str:
        sender, author, _ = (fill(text) for text in row)
        text = f"From: {author}\nTo: {TO}\nSubject: x\n\nx\n"
        mail = Mail((TO,), text, sender, login=bobby.name, password=bobby.password)
        sent = by_swaks(mail, daemon.port, tmp_path)
        refusals = [line[4:] for line in sent.words.splitlines() if line.startswith("<** ")]
        return "".join(refusals) if sent.status else "sent"

    def expected(row: tuple[str, str, str]) -> str:
        why = ANOTHER if "CHLOE" in row[2] or "daemon" in row[2] else NOT_YOURS
        return f"553 5.7.1 <{fill(row[2])}> {why} (sender-check={mode})" if row[2] else "sent"

    words = options.format(senders=senders).split()
    with village.daemon("--sender-domain", DOMAIN, *words) as daemon, ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(outcome, rows))
    wanted = [expected(row) for row in rows]
    assert outcomes == wanted
    assert len(village_hop.messages()) == wanted.count("sent")


@pytest.mark.root
def test_the_file_of_senders_counts_as_it_is_when_a_message_comes(
    village, village_hop, senders, send
):
    head = "From: other@example.org"
    with village.daemon("--sender-check=own", "--senders", str(senders)) as daemon:
        refused = send(daemon, head, sender="")
        senders.write_text(f"{village.people[0].name}: *@example.org\n")
        sent = send(daemon, head, sender="")
        senders.chmod(0o666)
        changed = send(daemon, head, sender="")
        daemon.says("ERROR", f"deferred: {senders}: others can write it (chown root")
        senders.chmod(0o600)
        hidden = send(daemon, head, sender="")
        daemon.says("ERROR", f"deferred: {senders}: cannot be read", f"chmod 644 {senders}")
        senders.unlink()
        missing = send(daemon, head, sender="")
    later = "451 4.3.5 Error: the list of senders cannot be read, the log has more"
    assert (changed, hidden) == (later, later)
    assert refused == missing == f"553 5.7.1 <other@example.org> {NOT_YOURS} (sender-check=own)"
    assert sent.startswith("250")
    assert len(village_hop.messages()) == 1


@pytest.mark.root
def test_the_host_s_own_names_need_no_option(village, village_hop, send):
    chloe = village.people[1].name
    with village.daemon() as daemon:
        for name in (host_name(), "localhost"):
            said = send(daemon, f"From: Chloe <{chloe}@{name}>")
            assert said == f"553 5.7.1 <{chloe}@{name}> {ANOTHER} (sender-check=others)"
        daemon.says("WARNING", f"refused: user={village.people[0].name!r} <{chloe}@localhost>")
    assert village_hop.messages() == []


@pytest.mark.root
@pytest.mark.parametrize("form", ["explicit={}", "as={}"])
def test_no_rule_gives_a_message_the_address_of_another_account(
    form, village, village_hop, send, fill
):
    """Whoever asks for it: the message itself, a filter, the configuration."""
    bobby, chloe, _ = village.people
    action = form.format(f"{chloe.name}@{DOMAIN}")
    refused = f"553 5.7.1 <{chloe.name}@{DOMAIN}> {ANOTHER} (sender-check=others)"
    own = f"From: {bobby.name}@{DOMAIN}"
    with village.daemon("--sender-domain", DOMAIN) as daemon:
        assert send(daemon, f"{own}\r\nX-TMDA: {action}") == refused
        bobby.write("filters/outgoing", f"to * {action}\n")
        assert send(daemon, own) == refused
        bobby.write("filters/outgoing", f"to * tag envelope {action}\n")
        assert send(daemon, own) == refused
        bobby.write("filters/outgoing", "to * bare\n")
        assert send(daemon, own).startswith("250")
        bobby.write(
            "config", bobby.home.tmda.joinpath("config").read_text() + f'USERNAME="{chloe.name}"\n'
        )
        assert send(daemon, "Subject: x") == refused
    assert len(village_hop.messages()) == 1


@pytest.mark.root
def test_who_resends_a_message_is_its_sender(village, village_hop, send, fill):
    """Its envelope sender is made from Resent-From, and its From stays."""
    with village.daemon("--sender-domain", DOMAIN) as daemon:
        for head in (
            "From: x@a.example\r\nResent-From: CHLOE@example.org",
            "From: CHLOE@example.org\r\nResent-From: BOBBY@example.org",
        ):
            assert ANOTHER in send(daemon, fill(head)), head
        head = "From: x@a.example\r\nResent-From: BOBBY@example.org"
        assert send(daemon, fill(head)).startswith("250")
    (message,) = village_hop.messages()
    assert message.sender.startswith(fill("BOBBY-dated-"))


@pytest.mark.root
def test_mail_that_is_passed_on_unchanged_has_no_other_author_for_any_reader(
    village, village_hop, send, fill
):
    """A program that is given it may drop a line that is no field, and read on."""
    bobby = village.people[0]
    (bobby.home.tmda / "config").unlink()
    directory = village.directory / "unchanged"
    with usual_umask():
        sendmail = make_sendmail(directory)
    sendmail.directory.chmod(0o777)
    program = {"TMDA_SENDMAIL_PROGRAM": str(sendmail.path)}
    padding = "X-Padding: " + "x" * 500 + "\r\n"
    with village.daemon("-P", "--sender-domain", DOMAIN, variables=program) as daemon:
        for head in (
            "From: CHLOE@example.org",
            "From: BOBBY@example.org\r\nfrom : CHLOE@example.org",
            ">From x\r\nFrom: CHLOE@example.org",
            "no field\r\nFrom: CHLOE@example.org",
            # A dot that the client need not have put there is taken away.
            ".From: CHLOE@example.org",
        ):
            assert ANOTHER in send(daemon, fill(head)), head
        assert ANOTHER in send(daemon, "Subject: x", sender=fill("CHLOE@example.org"))
        far = padding * 2200 + "From: CHLOE@example.org"
        assert send(daemon, fill(far)).startswith("552 5.3.4 ")
        good = "From: BOBBY@example.org\r\nno field"
        body = wire([b"From: " + fill("CHLOE@example.org").encode()])
        assert send(daemon, fill(good), body=body).startswith("250")
    assert len(sendmail.runs()) == 1


# In personal mode.


def test_a_personal_daemon_checks_only_when_it_is_told_to(start, home, hop):
    other = "daemon" if getpass.getuser() != "daemon" else "root"
    head = f"From: {other}@localhost\r\n\r\nx\r\n".encode()
    # The account that runs it, and the name of the login, are the person's.
    own = ", ".join(f"{name}@localhost" for name in (getpass.getuser(), "bobby"))
    usual, others = start(home), start(home, "--sender-check=others")
    assert submit(usual.port, TO, message=head).startswith("250")
    refused = f"553 5.7.1 <{other}@localhost> {ANOTHER} (sender-check=others)"
    assert submit(others.port, TO, message=head) == refused
    assert submit(others.port, TO, message=f"From: {own}\r\n\r\nx\r\n".encode()).startswith("250")
    home.write("senders", f"bobby: {other}-*@localhost, {other}@localhost\n")
    assert submit(others.port, TO, message=head).startswith("250")
    assert len(hop.messages()) == 3


def test_a_session_goes_on_after_a_refusal(start, home, hop):
    daemon = start(home, "--sender-check=own", "--sender-domain", DOMAIN)
    with logged_in(daemon.port) as talk:
        talk.envelope(TO, sender="x@other.example")
        assert talk.data(b"Subject: x\r\n\r\nx\r\n.\r\n").startswith("553 5.7.1 <x@other.example>")
        talk.envelope(TO, sender="bobby@example.org")
        assert talk.data(b"Subject: x\r\n\r\nx\r\n.\r\n").startswith("250")
    assert len(hop.messages()) == 1
