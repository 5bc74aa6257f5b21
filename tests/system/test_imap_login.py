"""Logins judged by real IMAP servers: two Dovecots, chosen by the local address (TO-51, TO-58)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import dialogue, plain, submit
from dovecot import POP3, Dovecot, dovecot
from running import HOST, LOGIN, PASSWORD, free_port

from tofmipd.auth.credentials import Origin, Password, Verdict
from tofmipd.auth.imap import ImapSource
from tofmipd.auth.ipmap import IpMap
from tofmipd.auth.remote import RemoteTls, remote_server

pytestmark = [pytest.mark.root, pytest.mark.peer("dovecot", POP3)]

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
LIMIT_SECONDS = 10
FIRST, SECOND = "127.0.0.1", "127.0.0.2"
ODD_PASSWORD = 'say "pä\\s:" {3}'


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Dovecot, Dovecot]]:
    """On addresses and ports of their own, with different passwords for the same person."""
    with (
        dovecot(FIRST, {LOGIN: PASSWORD, "chloe": ODD_PASSWORD}) as first,
        dovecot(SECOND, {LOGIN: "other"}) as second,
    ):
        yield first, second


def source_for(url: str, **settings: object) -> ImapSource:
    return ImapSource(remote_server(url), LIMIT_SECONDS, **settings)


@pytest.mark.parametrize(
    ("user", "password", "verdict"),
    [
        (LOGIN, PASSWORD, YES),
        (LOGIN, PASSWORD.lower(), NO),
        (LOGIN, "", NO),
        ("nobody", PASSWORD, NO),
        ("chloe", ODD_PASSWORD, YES),
        ("chloe", ODD_PASSWORD + " ", NO),
        ("chloé", ODD_PASSWORD, NO),
        ('chloe" "x', ODD_PASSWORD, NO),
        (LOGIN, "x" * 1000, NO),
        (LOGIN, "é" * 500, NO),
    ],
)
def test_the_server_judges(servers, user, password, verdict):
    source = source_for(f"imap://{FIRST}:{servers[0].port}")
    assert source.check(Password(user, password.encode())) is verdict


def test_over_tls_the_certificate_must_be_vouched_for(servers):
    url, right = f"imaps://{FIRST}:{servers[0].tls_port}", Password(LOGIN, PASSWORD.encode())
    trusting = source_for(url, tls=RemoteTls(servers[0].certificate))
    assert trusting.check(right) is YES
    assert trusting.check(Password(LOGIN, b"wrong")) is NO
    assert source_for(url).check(right) is MAYBE
    assert source_for(url, tls=RemoteTls(servers[1].certificate)).check(right) is MAYBE


@pytest.mark.parametrize(
    ("local_address", "right", "wrong"),
    [
        ("192.0.2.1", PASSWORD, "other"),
        ("192.0.2.2", "other", PASSWORD),
        ("::ffff:192.0.2.2", "other", PASSWORD),
        ("2001:db8::2", "other", PASSWORD),
        # Not listed: 127.0.0.1 and the port of the URL.
        ("192.0.2.3", PASSWORD, "other"),
        ("", PASSWORD, "other"),
    ],
)
def test_the_local_address_chooses_the_server(servers, tmp_path, local_address, right, wrong):
    first, second = servers
    path = tmp_path / "ipauthmap"
    path.write_text(
        f"192.0.2.1:{FIRST}:{first.port}  # the old form\n"
        f"192.0.2.2 {SECOND} {second.port}\n"
        f"2001:DB8:0::2 {SECOND} {second.port}\n"
    )
    source = source_for(f"imap://0.0.0.0:{first.port}", ipmap=IpMap(str(path)))
    origin = Origin("198.51.100.1", local_address)
    assert source.check(Password(LOGIN, right.encode()), origin) is YES
    assert source.check(Password(LOGIN, wrong.encode()), origin) is NO


def test_without_a_port_in_the_map_that_of_the_url_counts(servers, tmp_path):
    path = tmp_path / "ipauthmap"
    path.write_text(f"192.0.2.2 {SECOND}\n")
    source = source_for(f"imap://0.0.0.0:{servers[1].port}", ipmap=IpMap(str(path)))
    assert source.check(Password(LOGIN, b"other"), Origin("", "192.0.2.2")) is YES


def test_a_server_that_has_ended_is_unavailable_and_the_other_is_not(tmp_path: Path):
    users = {LOGIN: PASSWORD}
    with dovecot(FIRST, users) as first, dovecot(SECOND, users) as second:
        path = tmp_path / "ipauthmap"
        path.write_text(f"192.0.2.1 {FIRST} {first.port}\n192.0.2.2 {SECOND} {second.port}\n")
        source = source_for("imap://0.0.0.0", ipmap=IpMap(str(path)))
        right = Password(LOGIN, PASSWORD.encode())
        assert source.check(right, Origin("", "192.0.2.1")) is YES
        first.stop()
        assert source.check(right, Origin("", "192.0.2.1")) is MAYBE
        assert source.check(right, Origin("", "192.0.2.2")) is YES


def test_the_program_asks_the_server_that_belongs_to_the_address(servers, start, home, hop):
    """TO-50, TO-51, TO-56, TO-58: through the whole program, beside a password file."""
    first, second = servers
    home.write("ipauthmap", f"{FIRST} {FIRST} {first.port}\n{SECOND}:{SECOND}:{second.port}\n")
    home.write("tofmipd", "tim:only-here\n")
    options = ("-R", "imap://0.0.0.0", "-a", str(home.tmda / "tofmipd"))
    places = ("-p", f"{FIRST}:0", "-p", f"{SECOND}:0")
    daemon = start(home, "-d", *options, listen=places)
    (_, one), (_, two) = daemon.places
    with dialogue(one) as talk:
        assert "250-AUTH PLAIN LOGIN\n" in talk.say("EHLO x").replace("250 AUTH", "250-AUTH") + "\n"
    assert submit(one, "x@example.net", password=PASSWORD).startswith("250")
    with dialogue(two, SECOND) as talk:
        assert talk.say("EHLO x").startswith("250")
        assert talk.say(f"AUTH PLAIN {plain(LOGIN, PASSWORD)}").startswith("535")
        assert talk.say(f"AUTH PLAIN {plain(LOGIN, 'other')}").startswith("235")
    assert submit(one, "x@example.net", login="tim", password="only-here").startswith("250")
    assert len(hop.messages()) == 2
    assert "'" + PASSWORD not in daemon.text()


def test_a_server_that_is_down_is_454_and_not_535(start, home, hop):
    """TO-51, TO-56: a failure of one source does not hide another's success."""
    home.write("tofmipd", "tim:only-here\n")
    options = ("-R", f"imap://{HOST}:{free_port()}", "-a", str(home.tmda / "tofmipd"))
    daemon = start(home, *options)
    with dialogue(daemon.port) as talk:
        assert talk.say("EHLO x").startswith("250")
        assert talk.say(f"AUTH PLAIN {plain(LOGIN, PASSWORD)}").startswith("454 4.7.0")
    assert submit(daemon.port, "x@example.net", login="tim", password="only-here")[:3] == "250"


def test_in_global_mode_a_hanging_server_holds_up_nobody_else(village, village_hop):
    """One login waits for its server, twenty others do not."""
    bobby, chloe, _ = village.people
    with socket.create_server((HOST, 0)) as silent:
        place = f"imap://{HOST}:{silent.getsockname()[1]}"
        passwords = ("-R", place, "--source-timeout", "3")
        with village.daemon(*passwords) as daemon, dialogue(daemon.port) as stuck:
            assert stuck.say("EHLO x").startswith("250")
            begun = time.monotonic()
            # Nobody of that name is in the password file, which is asked first.
            stuck.send(f"AUTH PLAIN {plain('nobody', 'x')}\r\n".encode())
            silent.accept()
            for person in (bobby, chloe) * 10:
                sent = submit(
                    daemon.port, "x@example.net", login=person.name, password=person.password
                )
                assert sent.startswith("250")
            assert time.monotonic() - begun < 3
            assert stuck.reply().startswith("454")
    assert len(village_hop.messages()) == 20
