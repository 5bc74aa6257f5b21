"""Encryption in global mode: keys that only root can read, certificates as accounts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import running
from certificates import (
    OVER,
    Files,
    Issued,
    authority,
    client_context,
    key_of,
    key_pem,
    replace,
    stranger,
)
from clients import Dialogue, dialogue, plain
from globalchild import kill, only_child, with_limits
from hops import RawHop
from running import HOST, Daemon, Home, wait_until
from test_global_start import started_with
from test_tls import MODES, certified, encrypted, encrypting, external, listening, of, serial_of
from village import Village, Villager, children, in_memory, status, worker_of

pytestmark = pytest.mark.root

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"
AGAIN, UNCHANGED = "certificates read again", "certificates unchanged in memory"
# Looks often, and replaces whoever dies at once.
LIVELY = {"privsep.keyfiles.LOOK_SECONDS": 0.1, "privsep.plan._QUICK_DEATH_SECONDS": 0.0}
CALM = LIVELY | {"privsep.keyfiles.LOOK_SECONDS": 3600.0}


@dataclass(frozen=True)
class Sealed:
    """A daemon whose certificates only root can read, and where they are."""

    daemon: Daemon
    secret: Path
    first: Issued

    @property
    def files(self) -> Files:
        return Files(self.secret / "server.pem", self.secret / "server.key")

    @property
    def names(self) -> Path:
        return self.secret / "names"

    @property
    def ca(self) -> Path:
        return self.secret / "ca.crt"

    def reset(self) -> None:
        """All as it was at the start."""
        shutil.rmtree(self.names, ignore_errors=True)
        self.names.mkdir(0o700)
        authority().save(self.secret)
        self.first.save(self.secret)

    def renew(self, number: int = 1) -> str:
        """Another certificate; its serial."""
        issued = authority().issue(number=number)
        issued.save(self.secret)
        return issued.serial

    def hup(self) -> None:
        """Ask for what is new, and wait until that has been obeyed."""
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


@contextlib.contextmanager
def sealing(village: Village, constants: dict[str, float]) -> Iterator[Sealed]:
    with tempfile.TemporaryDirectory(dir=village.directory) as name:
        secret = Path(name)
        sealed = Sealed(cast(Daemon, None), secret, authority().issue())
        sealed.reset()
        options = (
            *("--tls=on", *sealed.files.options, "--ssl-client-ca", str(sealed.ca)),
            *("--ssl-sni-dir", str(sealed.names)),
        )
        with with_limits(village, constants).daemon(*options) as daemon:
            yield dataclasses.replace(sealed, daemon=daemon)


@pytest.fixture(scope="module", autouse=True)
def _has_the_library(village_once: Village) -> None:
    """The interpreter that all accounts can run has one of its own."""
    command = (village_once.program[0], "-c", "import OpenSSL")
    done = subprocess.run(command, cwd="/", capture_output=True, check=False)
    if done.returncode:
        running.cannot_run(f"{command[0]} has no pyOpenSSL (apt install python3-openssl)")


@pytest.fixture(scope="module")
def lasting(village_once: Village, village_hop_once: RawHop) -> Iterator[Sealed]:
    """A daemon for many tests, which looks at its files only when it is told to."""
    village_once.reset(village_hop_once.port)
    with sealing(village_once, CALM) as sealed:
        yield sealed


@pytest.fixture
def sealed(lasting: Sealed, village: Village) -> Sealed:
    lasting.reset()
    lasting.hup()
    lasting.daemon.forget()
    return lasting


@pytest.fixture
def files(village: Village) -> Iterator[Files]:
    """For a daemon of one's own; only root can look into their directory."""
    with tempfile.TemporaryDirectory(dir=village.directory) as name:
        yield authority().issue().save(Path(name))


def send(talk: Dialogue, person: Villager, to: str = TO) -> None:
    assert talk.say("EHLO client.example").startswith("250")
    login = plain(person.name, person.password)
    assert talk.say(f"AUTH PLAIN {login}").startswith("235 ")
    again(talk, to)


def again(talk: Dialogue, to: str = TO) -> None:
    """Another message of the same session."""
    talk.envelope(to)
    assert talk.data(MESSAGE).startswith("250")


# Mail.


def test_several_listeners_take_mail_each_in_its_own_way(village, village_hop, files):
    """TO-59 to TO-62: with keys that the server could not read itself."""
    options = village.options(*files.options)
    more = {"program": village.program, "variables": village.variables}
    with encrypting(Home(village.directory), *options, **more) as daemon:
        uids = status(only_child(daemon, "server"))["Uid"].split()
        assert uids == [str(village.service_uid)] * 4
        for person, mode in zip(village.people, ("ssl", "tls=on", "plain"), strict=True):
            port = daemon.places[MODES.index(mode)][1]
            at_once = mode == "ssl"
            session = dialogue(port) if mode == "plain" else encrypted(port, at_once=at_once)
            with session as talk:
                send(talk, person, f"{mode[:3]}@example.net")
        with dialogue(daemon.places[MODES.index("tls=optional")][1]) as talk:
            said = talk.say("EHLO client.example")
            assert "STARTTLS" in said
            assert "AUTH" in said
    for to, how in (("ssl", "using SMTP over TLS, TLSv1.3"), ("tls", "using STARTTLS, TLSv1.3")):
        assert how in village_hop.message(f"{to}@example.net").value("Received")
    assert "TLS" not in village_hop.message("pla@example.net").value("Received")


def test_before_starttls_there_is_nothing_to_be_had(sealed, village):
    """TO-61."""
    bobby = village.people[0]
    login = plain(bobby.name, bobby.password)
    with dialogue(sealed.daemon.port) as talk:
        assert "AUTH" not in talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {login}").startswith("530 5.7.0 Must issue a STARTTLS")
    assert " accepted " not in sealed.daemon.text()


# Certificates as accounts.


def by_certificate(sealed: Sealed, issued: Issued, directory: Path, identity: str = "") -> str:
    """The reply to AUTH EXTERNAL."""
    with encrypted(sealed.daemon.port, certified(issued, directory)) as talk:
        assert "EXTERNAL" in talk.say("EHLO client.example")
        return talk.say(external(identity))


def test_a_certificate_makes_its_account_the_sender(sealed, village, village_hop, tmp_path):
    bobby, chloe, _ = village.people
    chloe.write("filters/outgoing", "to * sender\n")
    for person in (bobby, chloe):
        with encrypted(sealed.daemon.port, certified(of(person.name), tmp_path)) as talk:
            assert "EXTERNAL" in talk.say("EHLO client.example")
            assert talk.say(external()).startswith("235 ")
            again(talk, f"{person.name}@example.net")
        worker = worker_of(sealed.daemon, person)
        assert worker
        assert status(worker)["Uid"].split() == [str(person.uid)] * 4
    first, second = (village_hop.message(f"{x.name}@example.net") for x in (bobby, chloe))
    assert "-dated-" in first.value("From")
    assert "-sender-" in second.value("From")
    assert re.search(rf"mechanism=EXTERNAL .*user='{bobby.name}'", sealed.daemon.text())


def test_without_one_a_password_will_do(sealed, village, village_hop):
    with encrypted(sealed.daemon.port) as talk:
        assert "EXTERNAL" not in talk.say("EHLO client.example")
        send(talk, village.people[0])
    assert len(village_hop.messages()) == 1


def test_a_good_certificate_is_nobody_else_s_and_makes_no_account(sealed, village, tmp_path):
    """Nor does anybody become root by it, or the service's account."""
    bobby, chloe, _ = village.people
    cases = [(of(bobby.name), chloe.name), (of(bobby.name), "root")]
    cases += [(of(name), "") for name in ("root", "daemon", village.service, "no-such-account")]
    with ThreadPoolExecutor() as pool:
        replies = list(pool.map(lambda x: by_certificate(sealed, x[0], tmp_path, x[1]), cases))
    assert [reply[:4] for reply in replies] == ["535 "] * len(cases)


@pytest.mark.parametrize("made", ["stranger", "expired"])
def test_a_bad_one_ends_the_handshake(made, sealed, village, tmp_path):
    name = village.people[0].name
    issued = stranger().issue(name, dns=()) if made == "stranger" else of(name, days=OVER)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        by_certificate(sealed, issued, tmp_path)
    assert "certificate" in sealed.daemon.says("no TLS: TLS handshake: ")


def test_auth_does_not_take_the_server_s_word_for_it(sealed, village, tmp_path):
    """A server that was taken over says that it has verified what nobody has signed.

    Here it has: it believes an authority that auth does not any more.
    """
    bobby = village.people[0]
    replace(sealed.ca, authority().pem + stranger().pem)
    sealed.hup()
    forged = stranger().issue(bobby.name, dns=())
    assert by_certificate(sealed, forged, tmp_path).startswith("235 ")
    # Auth reads it again at the next login, the server when it is told.
    replace(sealed.ca, authority().pem)
    assert by_certificate(sealed, forged, tmp_path).startswith("535 ")
    assert f"the certificate of {bobby.name!r} is not valid" in sealed.daemon.text()
    assert by_certificate(sealed, of(bobby.name), tmp_path).startswith("235 ")


# Starting.


def another_key(files: Files) -> Path:
    return replace(files.key, key_pem(key_of("ecdsa", 7)))


def expired(files: Files) -> Path:
    return authority().issue(days=OVER).save(files.chain.parent).chain


def no_key(files: Files) -> Path:
    files.key.unlink()
    return files.key


@pytest.mark.parametrize(
    ("spoil", "where"), [(another_key, "-f"), (expired, "-f"), (no_key, "-f"), (another_key, "-b")]
)
def test_a_pair_that_cannot_be_used_is_told_at_the_start(spoil, where, village, files):
    """TO-64: in one line that names the file."""
    path = spoil(files)
    options = village.options(where, "-p", f"{HOST}:0", "--ssl")
    result = village.run(*options, *files.options)
    assert result.returncode == os.EX_CONFIG, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if str(path) in line]
    assert line.startswith("tofmipd: ")
    wait_until(lambda: not started_with(str(files.chain)), "all processes to be gone")


def test_a_daemon_in_the_background_serves(village, village_hop, files):
    port = running.free_port()
    log = files.chain.parent / "background.log"
    options = ("-b", "-p", f"{HOST}:{port},ssl", "--log-file", str(log))
    result = village.run(*village.options(*options), *files.options)
    assert result.returncode == 0, result.stderr
    number = wait_until(lambda: re.search(r"started, pid ([0-9]+)", log.read_text()), "its log")
    try:
        wait_until(lambda: listening(port), "the port")
        with encrypted(port, at_once=True) as talk:
            send(talk, village.people[0])
    finally:
        os.kill(int(number[1]), signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{number[1]}").exists(), "its end")
    assert len(village_hop.messages()) == 1


# Renewal.


def test_a_signal_brings_what_only_root_can_read_and_sessions_live_on(sealed, village, village_hop):
    """BX-6: the monitor opens it for the server."""
    server = only_child(sealed.daemon, "server")
    with encrypted(sealed.daemon.port) as talk:
        send(talk, village.people[0])
        new = sealed.renew()
        sealed.hup()
        assert sealed.shown() == new
        again(talk, "after@example.net")
    assert only_child(sealed.daemon, "server") == server
    assert len(village_hop.messages()) == 2


def test_changed_files_are_found_without_a_signal(village):
    with sealing(village, LIVELY) as sealed:
        new = sealed.renew()
        sealed.daemon.says(AGAIN)
        assert sealed.shown() == new
        another_key(sealed.files)
        sealed.daemon.says(UNCHANGED)
        assert sealed.shown() == new
        newer = sealed.renew(2)
        wait_until(lambda: sealed.shown() == newer, "the newer one")
        assert (sealed.daemon.text().count(AGAIN), sealed.outcomes()) == (2, 3)


@pytest.mark.parametrize("spoil", [another_key, expired, no_key])
def test_a_broken_pair_keeps_the_old_one_until_a_good_one_comes(spoil, sealed):
    old = sealed.shown()
    spoil(sealed.files)
    sealed.hup()
    assert sealed.shown() == old
    (line,) = [line for line in sealed.daemon.text().splitlines() if UNCHANGED in line]
    assert " ERROR " in line
    assert str(sealed.secret) in line
    new = sealed.renew()
    sealed.hup()
    assert sealed.shown() == new


def test_after_the_server_s_death_its_successor_has_the_newest_and_is_told_as_well(sealed):
    # Nobody has been told of it.
    newest = sealed.renew()
    old = only_child(sealed.daemon, "server")
    kill(old)
    wait_until(lambda: children(sealed.daemon.pid, "server") not in ([], [old]), "a new server")
    assert sealed.shown() == newest
    newer = sealed.renew(2)
    sealed.hup()
    assert sealed.shown() == newer


def test_a_server_that_dies_while_the_pair_is_broken_is_replaced_when_it_is_mended(sealed):
    """Its successor has nothing in memory; clients wait for it."""
    another_key(sealed.files)
    kill(only_child(sealed.daemon, "server"))
    sealed.daemon.says(" ERROR ", "cannot start", "is not the key of")
    new = sealed.renew()
    assert sealed.shown() == new


def test_a_server_that_dies_after_its_certificate_has_expired_is_replaced_all_the_same(sealed):
    """No clients of others, and none of those who look away, are to suffer for it."""
    issued = authority().issue(days=OVER)
    issued.save(sealed.secret)
    kill(only_child(sealed.daemon, "server"))
    sealed.daemon.says(" WARNING ", "the certificate expired on", "renew it")
    context = client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with encrypted(sealed.daemon.port, context) as talk:
        assert serial_of(talk.socket) == issued.serial


def test_the_directory_gains_a_name_that_only_root_can_read(sealed):
    old = sealed.shown("new.example.org")
    issued = authority().issue(dns=("new.example.org",), number=3)
    replace(sealed.names / "new" / "fullchain.pem", issued.chain, 0o600)
    replace(sealed.names / "new" / "privkey.pem", issued.key_pem, 0o600)
    sealed.hup()
    assert sealed.shown("new.example.org") == issued.serial
    assert sealed.shown() == old


def test_more_names_than_one_packet_has_room_for_are_renewed(sealed):
    """Descriptors travel a few at a time."""
    issued = [authority().issue(dns=(f"h{n}.example.org",), number=n % 3) for n in range(70)]
    for number, one in enumerate(issued):
        replace(sealed.names / f"h{number}.pem", one.chain + one.key_pem, 0o600)
    sealed.hup()
    for number in (0, 33, 69):
        assert sealed.shown(f"h{number}.example.org") == issued[number].serial


def test_a_directory_that_goes_away_changes_nothing(sealed):
    old = sealed.shown()
    sealed.names.rmdir()
    sealed.daemon.process.send_signal(signal.SIGHUP)
    sealed.daemon.says("certificates cannot be read again", str(sealed.names))
    assert sealed.shown() == old


def test_renewals_leave_no_descriptor_behind(sealed):
    """Neither with the monitor nor with the server, nor do those that fail."""
    server = only_child(sealed.daemon, "server")

    def counted() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (sealed.daemon.pid, server)]

    before = counted()
    for _ in range(10):
        sealed.hup()
    sealed.files.key.unlink()
    sealed.files.key.mkdir()
    for _ in range(10):
        sealed.hup()
    sealed.files.key.rmdir()
    now = wait_until(lambda: max(counted(), before) == before and before, "as few descriptors")
    assert now == before


# Who knows the key.


def test_only_the_server_knows_the_key(sealed, village):
    """Neither the monitor, from which every worker is copied, nor auth, nor a worker; nor does
    any log show it."""
    bobby = village.people[0]
    with encrypted(sealed.daemon.port) as talk:
        sealed.renew(9)
        sealed.hup()
        send(talk, bobby)
        worker = worker_of(sealed.daemon, bobby)
    assert worker
    line = sealed.files.key.read_text().splitlines()[1]
    scalar = key_of("ecdsa", 9).private_numbers().private_value.to_bytes(32, "big")
    needles = (line.encode(), scalar, scalar[::-1])
    for pid in (sealed.daemon.pid, only_child(sealed.daemon, "auth"), worker):
        assert in_memory(pid, *needles) == set()
    assert in_memory(only_child(sealed.daemon, "server"), *needles)
    assert line not in sealed.daemon.text()
