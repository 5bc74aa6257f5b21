"""Logging in, octet by octet, and what the log tells of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from clients import dialogue, logged_in, plain, submit
from running import LOGIN, PASSWORD, host_name, wait_until

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ACCEPTED, REJECTED = "235 2.7.0 AUTH successful", "535 5.7.8 .*"
EXCHANGES = [
    # TO-38
    [(f"AUTH PLAIN {plain()}", ACCEPTED)],
    [(f"auth plain {plain()}", ACCEPTED)],
    [("AUTH PLAIN", "334 "), (plain(), ACCEPTED)],
    [(f"AUTH PLAIN {plain(acting_for='bobby')}", ACCEPTED)],
    [(f"AUTH PLAIN {plain('BOBBY', acting_for='Bobby')}", ACCEPTED)],
    [(f"AUTH PLAIN {plain(acting_for='chloe')}", REJECTED)],
    [(f"AUTH PLAIN {b64('bobby FooBar')}", REJECTED)],
    [("AUTH PLAIN not*base64", "501 5.5.2 malformed AUTH input")],
    [("AUTH PLAIN Zm9", "501 5.5.2 malformed AUTH input")],
    [("AUTH PLAIN =", REJECTED)],
    [(f"AUTH PLAIN {plain()} more", "501 5.5.4 .*")],
    [(f"AUTH PLAIN {plain('bobby', '')}", REJECTED)],
    # TO-39
    [
        ("AUTH LOGIN", "334 VXNlcm5hbWU6"),
        (b64("bobby"), "334 UGFzc3dvcmQ6"),
        (b64("FooBar"), ACCEPTED),
    ],
    [(f"AUTH LOGIN {b64('Bobby')}", "334 UGFzc3dvcmQ6"), (b64("FooBar"), ACCEPTED)],
    [(f"AUTH LOGIN {b64('bobby')}", "334 UGFzc3dvcmQ6"), (b64("foobar"), REJECTED)],
    [("AUTH LOGIN", "334 .*"), ("???", "501 5.5.2 malformed AUTH input")],
    # TO-40
    [("AUTH CRAM-MD5", "334 .*"), (b64("bobby " + "0" * 32), REJECTED)],
    [(f"AUTH CRAM-MD5 {b64('bobby')}", "501 5.7.0 This AUTH type takes no initial response")],
    # TO-41
    [("AUTH", "504 5.5.4 AUTH type unimplemented")],
    [("AUTH foo", "504 5.5.4 AUTH type unimplemented")],
    [("AUTH SCRAM-SHA-512 abc", "504 5.5.4 AUTH type unimplemented")],
    # TO-42
    [
        ("AUTH LOGIN", "334 .*"),
        ("*", "501 5.7.0 AUTH exchange cancelled"),
        (f"AUTH PLAIN {plain()}", ACCEPTED),
    ],
    # TO-44
    [(f"AUTH PLAIN {plain('../bobby')}", REJECTED)],
    [(f"AUTH PLAIN {plain('-bobby')}", REJECTED)],
    [(f"AUTH PLAIN {plain('.bobby')}", REJECTED)],
    [(f"AUTH PLAIN {b64(chr(0) + 'bob' + chr(27) + 'by' + chr(0) + 'FooBar')}", REJECTED)],
    # TO-43: a second login in the session
    [(f"AUTH PLAIN {plain()}", ACCEPTED), ("AUTH LOGIN", "503 5.5.1 .*")],
]


@dataclass(frozen=True)
class Exchanges:
    """What was replied in each of EXCHANGES, and what the log has of them."""

    replies: list[list[str]]
    log: str


@pytest.fixture(scope="module")
def exchanges(standing) -> Exchanges:
    """All at the same time: each failure takes a second, and twice as long as the one before."""

    def replies(exchange: list[tuple[str, str]]) -> list[str]:
        with dialogue(standing.daemon.port) as talk:
            talk.say("EHLO client.example")
            return [talk.say(line) for line, _ in exchange]

    standing.daemon.forget()
    with ThreadPoolExecutor(len(EXCHANGES)) as pool:
        found = list(pool.map(replies, EXCHANGES))
    return Exchanges(found, standing.daemon.text())


@pytest.mark.parametrize("number", range(len(EXCHANGES)), ids=lambda n: EXCHANGES[n][0][0][:30])
def test_an_auth_exchange_goes_as_the_table_says(number, exchanges):
    """TO-38 to TO-44."""
    for (line, reply), said in zip(EXCHANGES[number], exchanges.replies[number], strict=True):
        assert said == reply or re.fullmatch(reply, said), f"{line}: {said}"


def cram_md5(challenge: str, password: str = PASSWORD) -> str:
    """The client's part of RFC 2195; ``challenge`` is the reply with it."""
    octets = base64.b64decode(challenge.removeprefix("334 "))
    return b64(f"{LOGIN} {hmac.new(password.encode(), octets, hashlib.md5).hexdigest()}")


def test_each_cram_md5_challenge_is_fresh_and_serves_once(daemon):
    """TO-40."""
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        first = talk.say("AUTH CRAM-MD5")
        text = base64.b64decode(first.removeprefix("334 ")).decode()
        match = re.fullmatch(r"<([0-9a-f]{32})\.([0-9]{10})@(.*)>", text)
        assert match is not None
        assert match[3] == host_name()
        assert abs(int(match[2]) - time.time()) < 100
        talk.say("*")
        second = talk.say("AUTH CRAM-MD5")
        assert second != first
        assert talk.say(cram_md5(first)).startswith("535")
        assert talk.say(cram_md5(talk.say("AUTH CRAM-MD5"))) == ACCEPTED


def test_passwords_of_the_file_are_split_at_the_first_colon(daemon, home):
    """TO-45."""
    home.write(
        "tofmipd",
        "# some people\n\nbobby:FooBar\n chloe : baz_bap \njohndoe:8i9/hjuy+33\nEve:a:b:c\n",
    )
    logins = [
        ("bobby", "FooBar"),
        ("chloe", "baz_bap"),
        ("johndoe", "8i9/hjuy+33"),
        ("eve", "a:b:c"),
    ]
    for user, password in logins:
        with dialogue(daemon.port) as talk:
            talk.say("EHLO client.example")
            assert talk.say(f"AUTH PLAIN {plain(user, password)}") == ACCEPTED, user


def test_another_password_file_may_be_named(start, home, tmp_path):
    """TO-48."""
    other = tmp_path / "others"
    other.write_text("chloe:baz\n")
    other.chmod(0o400)
    with dialogue(start(home, "-a", str(other)).port) as talk:
        talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {plain('chloe', 'baz')}") == ACCEPTED


def test_a_tilde_in_the_name_of_the_password_file_is_the_home_directory(start, home):
    home.write("others", "chloe:baz\n")
    with dialogue(start(home, "--authfile=~/.tmda/others").port) as talk:
        talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {plain('chloe', 'baz')}") == ACCEPTED


def secrets_of_exchange() -> list[str]:
    return [PASSWORD, b64(PASSWORD), plain(), plain()[:-4], b64("FooBar")[:6]]


def test_no_log_ever_holds_a_password(start, home, hop):
    """TO-57, TO-71."""
    daemon = start(home, "-d")
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        talk.say(f"AUTH  PLAIN   {plain()}x")
        talk.say(f"AUTH\tPLAIN {plain()}")
        talk.say("AUTH LOGIN")
        talk.say(b64("bobby"))
        talk.say(b64(PASSWORD))
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        talk.say("AUTH LOGIN " + b64("bobby"))
        talk.say(b64("wrong" + PASSWORD))
        response = cram_md5(talk.say("AUTH CRAM-MD5"))
        assert talk.say(response) == ACCEPTED
        talk.envelope(TO)
        talk.data(MESSAGE)
        talk.say("QUIT")
    daemon.says("QUIT")
    text = daemon.text()
    for secret in [*secrets_of_exchange(), b64("wrong" + PASSWORD), response]:
        assert secret not in text, secret
    assert "AUTH LOGIN ***" in text
    assert re.search(
        r"auth accepted ip=127\.0\.0\.1 mechanism=CRAM-MD5 source=file .* user='bobby'", text
    )
    assert re.search(
        r"auth rejected ip=127\.0\.0\.1 mechanism=LOGIN source=file .* user='bobby'", text
    )


@pytest.mark.parametrize(
    ("option", "shown", "hidden"),
    [
        ("-d", ["MAIL FROM:<bobby@", "S: 250 2.1.5 "], ["very private body"]),
        ("-L", ["auth accepted", "sent to='x@example.net'"], ["MAIL FROM", "very private body"]),
    ],
)
def test_the_log_shows_the_dialogue_only_when_asked_and_never_a_message(
    option, shown, hidden, start, home, hop
):
    """TO-71, TO-72."""
    daemon = start(home, option)
    submit(daemon.port, TO, message=b"Subject: x\r\n\r\nvery private body\r\n")
    daemon.says("sent to=")
    text = daemon.text()
    assert [words for words in shown if words not in text] == []
    assert [words for words in hidden if words in text] == []


def test_a_client_cannot_forge_log_lines(daemon):
    with dialogue(daemon.port) as talk:
        talk.say("EHLO x")
        name = "x\r\n2026-01-01 ERROR forged"
        talk.say("AUTH PLAIN " + base64.b64encode(f"\0{name}\0pw".encode()).decode())
    daemon.says("auth rejected")
    assert not [line for line in daemon.text().splitlines() if line.startswith("2026-01-01 ERROR")]


def test_log_lines_go_to_the_file_that_is_named(start, home, tmp_path):
    log = tmp_path / "file.log"
    daemon = start(home, "--log-file", str(log))
    with logged_in(daemon.port):
        wait_until(lambda: "auth accepted" in log.read_text(), "the log file")
    assert "auth accepted" not in daemon.text()


def test_every_refused_login_leaves_a_line_in_the_log(exchanges):
    """TO-57: whatever the reason."""
    refused = [reply for said in exchanges.replies for reply in said if reply.startswith("535")]
    assert len(refused) > 5
    assert exchanges.log.count("auth rejected") == len(refused)
