"""Certificates that are replaced while the daemon runs (feature row BX-6)."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import (
    OVER,
    Files,
    authority,
    client_context,
    intermediate,
    key_of,
    key_pem,
    replace,
    stranger,
)
from clients import dialogue, plain
from hops import RawHop, raw_hop
from running import ADDRESS, Daemon, Home, make_home, to_smtp, tofmipd, wait_until
from test_tls import certified, encrypted, external, of, openssl, serial_of

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"
LOOK_SECONDS = 0.1
AGAIN = "certificates read again"
UNCHANGED = "certificates unchanged in memory"

# As the program itself, but that it looks at its files all the time.
_START = """\
import sys
from tofmipd import cli, encrypted
encrypted.LOOK_SECONDS = {seconds!r}
sys.exit(cli.main())
"""


def looking_every(seconds: float) -> tuple[str, ...]:
    return (sys.executable, "-c", _START.format(seconds=seconds), "--personal")


# As good as never: only a signal makes the daemon look.
SELDOM, OFTEN = looking_every(3600), looking_every(LOOK_SECONDS)


@dataclass(frozen=True)
class Renewing:
    """A daemon, and the files that it has certificates from."""

    daemon: Daemon
    hop: RawHop
    files: Files
    names: Path
    ca: Path

    def renew(self, **more) -> str:
        """Put another certificate with another key there; its serial."""
        number = time.monotonic_ns() % 1000 + 1000
        issued = authority().issue(number=number, **more)
        issued.save(self.files.chain.parent)
        return issued.serial

    def hup(self) -> None:
        """Ask for it, and wait until it has been obeyed."""
        before = self.outcomes()
        self.daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.outcomes() > before, "the outcome of SIGHUP")

    def outcomes(self) -> int:
        text = self.daemon.text()
        return text.count(AGAIN) + text.count(UNCHANGED)

    def shown(self, name: str = "localhost") -> str:
        """The serial of the certificate that a new client is shown."""
        context = client_context()
        context.check_hostname = False
        with encrypted(self.daemon.port, context, name=name) as talk:
            return serial_of(talk.socket)


Start = Callable[..., Renewing]


@pytest.fixture
def renewing(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(program: tuple[str, ...] = SELDOM) -> Renewing:
            hop = stack.enter_context(raw_hop())
            home: Home = make_home(tmp_path / "home", to_smtp(hop.port))
            files = intermediate().issue().save(tmp_path)
            ca = authority().save(tmp_path)
            names = tmp_path / "names"
            names.mkdir()
            options = (
                *("-d", "--tls=on", *files.options, "--ssl-client-ca", str(ca)),
                *("--ssl-sni-dir", str(names)),
            )
            daemon = stack.enter_context(tofmipd(home, *options, program=program))
            return Renewing(daemon, hop, files, names, ca)

        yield start


# By a signal.


@pytest.mark.peer("openssl")
def test_a_signal_brings_the_new_certificate_and_running_sessions_live_on(renewing):
    made = renewing()
    with encrypted(made.daemon.port) as talk:
        talk.log_in()
        talk.envelope(TO)
        new = made.renew()
        made.hup()
        done = openssl(made.daemon.port, "-CAfile", str(made.ca), starttls=True)
        assert "Verify return code: 0 (ok)" in done.words
        shown = re.search(r"-----BEGIN CERT.*?-----END CERTIFICATE-----", done.words, re.DOTALL)
        assert shown is not None
        assert shown[0] + "\n" == made.files.chain.read_text()
        assert made.shown() == new
        assert serial_of(talk.socket) != new
        assert talk.data(MESSAGE).startswith("250")
        talk.envelope("after@example.net")
        assert talk.data(MESSAGE).startswith("250")
    assert len(made.hop.messages()) == 2
    assert f"{AGAIN}: {made.files.chain}" in made.daemon.text()


def test_a_broken_pair_keeps_the_old_one_until_a_good_one_comes(renewing):
    made = renewing()
    old = made.shown()
    broken: list[Callable[[], object]] = [
        lambda: replace(made.files.key, key_pem(key_of("ecdsa", 7))),
        lambda: replace(made.files.key, b""),
        lambda: replace(made.files.chain, b"\xff\x00 garbage"),
        lambda: made.files.chain.unlink(),
        lambda: made.renew(days=OVER),
        lambda: replace(made.files.key, key_pem(key_of("ecdsa"), b"secret")),
    ]
    for number, spoil in enumerate(broken):
        spoil()
        made.hup()
        assert made.shown() == old
        # One line of the log for each.
        complaints = [line for line in made.daemon.text().splitlines() if UNCHANGED in line]
        assert len(complaints) == number + 1
        assert " ERROR " in complaints[-1]
        assert str(made.files.chain.parent) in complaints[-1]
    new = made.renew()
    made.hup()
    assert made.shown() == new
    assert AGAIN in made.daemon.text()


NO_CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMANhYmM=\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("octets", [NO_CERTIFICATE, b""], ids=["broken", "empty"])
def test_broken_authorities_leave_everything_as_it_is(octets, renewing, tmp_path):
    """Nor do they end the daemon."""
    made = renewing()
    old = made.shown()
    replace(made.ca, octets)
    made.renew()
    made.hup()
    assert made.shown() == old
    with encrypted(made.daemon.port, certified(of("anna"), tmp_path)) as talk:
        talk.say("EHLO x")
        assert talk.say(external()).startswith("235 ")
    replace(made.ca, authority().pem)
    new = made.renew()
    made.hup()
    assert made.shown() == new


def test_a_certificate_that_no_library_understands_does_not_end_the_daemon(renewing):
    """An octet of its key's kind is wrong."""
    made = renewing()
    old = made.shown()
    der = authority().issue().der
    kind = bytes.fromhex("2a8648ce3d0201")
    assert kind in der
    text = base64.encodebytes(der.replace(kind, kind[:-1] + b"\x09"))
    head, foot = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"
    replace(made.files.chain, head + text + foot)
    made.hup()
    assert made.shown() == old


def test_another_authority_counts_for_the_next_login(renewing, tmp_path):
    made = renewing()
    both = client_context(certificate=stranger().issue("anna", dns=()).save(tmp_path, "anna"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        logged_in_by_certificate(made.daemon.port, both)
    replace(made.ca, authority().pem + stranger().pem)
    made.hup()
    assert logged_in_by_certificate(made.daemon.port, both).startswith("235 ")
    replace(made.ca, authority().pem)
    made.hup()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        logged_in_by_certificate(made.daemon.port, both)


def logged_in_by_certificate(port: int, context: ssl.SSLContext) -> str:
    with encrypted(port, context) as talk:
        talk.say("EHLO client.example")
        return talk.say(external())


def test_tickets_are_good_no_more(renewing):
    made = renewing()
    context = client_context()
    with encrypted(made.daemon.port, context) as talk:
        assert talk.say("NOOP").startswith("250")
        session = talk.socket.session
    with encrypted(made.daemon.port, context, session=session) as talk:
        assert talk.socket.session_reused
        assert talk.say("NOOP").startswith("250")
        session = talk.socket.session
    made.hup()
    with encrypted(made.daemon.port, context, session=session) as talk:
        assert not talk.socket.session_reused


def test_the_directory_gains_and_loses_names(renewing):
    made = renewing()
    old = made.shown("new.example.org")
    one = authority().issue(dns=("new.example.org",), number=3)
    path = replace(made.names / "new.pem", one.chain + one.key_pem)
    two = authority().issue(dns=("other.example.org",), number=4)
    replace(made.names / "other" / "fullchain.pem", two.chain)
    replace(made.names / "other" / "privkey.pem", two.key_pem)
    made.hup()
    assert made.shown("new.example.org") == one.serial
    assert made.shown("other.example.org") == two.serial
    assert made.shown() == old
    path.unlink()
    made.hup()
    assert made.shown("new.example.org") == old


def test_a_directory_that_goes_away_changes_nothing(renewing):
    made = renewing()
    old = made.shown()
    made.renew()
    made.names.rmdir()
    made.hup()
    assert made.shown() == old
    assert f"{UNCHANGED}: {made.names}: No such file or directory" in made.daemon.text()


def test_a_daemon_without_certificates_lives_through_a_signal(tmp_path):
    with raw_hop() as hop:
        home = make_home(tmp_path / "home", to_smtp(hop.port))
        with tofmipd(home) as daemon, dialogue(daemon.port) as talk:
            talk.log_in()
            daemon.process.send_signal(signal.SIGHUP)
            talk.envelope(TO)
            assert talk.data(MESSAGE).startswith("250")
        assert len(hop.messages()) == 1


def test_many_signals_under_load_break_no_handshake(renewing):
    made = renewing()
    serials = {made.shown()}
    done = threading.Event()
    shown: set[str] = set()

    def keep_coming() -> None:
        while not done.is_set():
            shown.add(made.shown())

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(keep_coming) for _ in range(2)]
        try:
            for _ in range(10):
                serials.add(made.renew())
                made.hup()
        finally:
            done.set()
        for client in clients:
            client.result()
    assert shown <= serials
    assert len(shown) > 1
    assert "no TLS" not in made.daemon.text()


# By themselves.


def test_changed_files_are_found_without_a_signal(renewing):
    made = renewing(OFTEN)
    with encrypted(made.daemon.port) as talk:
        talk.log_in()
        new = made.renew()
        made.daemon.says(AGAIN)
        assert made.shown() == new
        talk.envelope(TO)
        assert talk.data(MESSAGE).startswith("250")
    assert made.daemon.text().count(AGAIN) == 1


def test_a_new_name_is_found_without_a_signal(renewing):
    made = renewing(OFTEN)
    one = authority().issue(dns=("new.example.org",), number=3)
    replace(made.names / "new.pem", one.chain + one.key_pem)
    made.daemon.says(AGAIN)
    assert made.shown("new.example.org") == one.serial


def test_a_pair_of_which_one_half_comes_late_is_never_broken(renewing):
    """The chain first, the key a moment later: at no time is there no service."""
    made = renewing(OFTEN)
    serials = {made.shown()}
    shown: set[str] = set()
    done = threading.Event()

    def keep_coming() -> None:
        while not done.is_set():
            shown.add(made.shown())

    with ThreadPoolExecutor() as pool:
        client = pool.submit(keep_coming)
        try:
            for number in range(3):
                issued = authority().issue(number=2000 + number)
                replace(made.files.chain, issued.chain)
                # Longer than it takes to notice that this does not fit, or not so long.
                time.sleep(number * 2 * LOOK_SECONDS)
                replace(made.files.key, issued.key_pem, 0o600)
                serials.add(issued.serial)
                wait_until(lambda now=issued: made.shown() == now.serial, "the new pair")
        finally:
            done.set()
        client.result()
    assert shown <= serials
    assert "no TLS" not in made.daemon.text()


def test_a_broken_pair_is_told_once_however_often_it_is_looked(renewing):
    made = renewing(OFTEN)
    old = made.shown()
    replace(made.files.key, key_pem(key_of("ecdsa", 7)))
    made.daemon.says(UNCHANGED, "is not the key")
    # So many looks later.
    assert made.shown() == old
    new = made.renew()
    made.daemon.says(AGAIN)
    assert made.shown() == new
    assert made.daemon.text().count(UNCHANGED) == 1


def test_a_file_that_an_editor_writes_is_taken_when_it_is_whole(renewing):
    """It grows: what is read before it is whole does no harm."""
    made = renewing(OFTEN)
    issued = authority().issue(number=5)
    octets = issued.chain
    replace(made.files.key, issued.key_pem, 0o600)
    with made.files.chain.open("wb", buffering=0) as file:
        for start in range(0, len(octets), 100):
            file.write(octets[start : start + 100])
            time.sleep(LOOK_SECONDS / 4)
    made.daemon.says(AGAIN)
    assert made.shown() == issued.serial


# What else could go wrong.


def test_no_log_of_a_renewal_shows_a_key(renewing):
    made = renewing()
    made.renew()
    keys = [made.files.key.read_text()]
    made.hup()
    for spoil in (key_pem(key_of("ecdsa", 7)), b"-----BEGIN PRIVATE KEY-----\nsecret\n"):
        replace(made.files.key, spoil)
        keys.append(spoil.decode())
        made.hup()
    text = made.daemon.text()
    for key in keys:
        for line in key.splitlines()[1:2]:
            assert line not in text


def test_a_session_that_began_before_still_needs_a_login(renewing):
    """Nothing of it is forgotten, nothing is given to it."""
    made = renewing()
    with encrypted(made.daemon.port) as talk:
        made.renew()
        made.hup()
        assert talk.say("EHLO client.example").startswith("250")
        assert talk.say(f"MAIL FROM:<{ADDRESS}>").startswith("530 ")
        assert talk.say(f"AUTH PLAIN {plain()}").startswith("235 ")


def test_what_a_renewal_takes_is_given_back(renewing):
    """Neither descriptors nor threads are left."""
    made = renewing()
    made.hup()

    def counted() -> tuple[int, int]:
        base = f"/proc/{made.daemon.pid}"
        return len(os.listdir(f"{base}/fd")), len(os.listdir(f"{base}/task"))

    before = counted()
    for _ in range(30):
        made.hup()
    wait_until(lambda: counted() <= before, "as few descriptors and threads as before")
