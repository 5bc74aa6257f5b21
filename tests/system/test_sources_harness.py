"""The servers and services that judge logins in tests, seen through other people's clients."""

from __future__ import annotations

import contextlib
import imaplib
import os
import poplib
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import new_account
from dovecot import POP3, Dovecot, dovecot
from pamservice import CRASHING, DENYING, HANGING, UNIX, expired, pam_service, set_password
from running import HOST, LIMIT_SECONDS, LOGIN, PASSWORD, ending, wait_until
from slapd import ANSWERS, BUSY, SLOW, Slapd, dn, refer, slapd
from village import children

needs_slapd = pytest.mark.peer("slapd", "ldapwhoami")
needs_dovecot = pytest.mark.peer("dovecot", POP3)
ODD, ODD_PASSWORD = 'a,dc=x" +<é>#', "pä ß:{x}"

# LDAP.

SUCCESS, INVALID, UNWILLING, NO_ANSWER = 0, 49, 53, 255
ELSEWHERE = "ldap://192.0.2.1:389/"


@pytest.fixture(scope="module")
def directory() -> Iterator[Slapd]:
    users = {LOGIN: PASSWORD, ODD: ODD_PASSWORD, "x": "parent"}
    answers = {"busy": BUSY, "slow": SLOW, "away, far": refer(ELSEWHERE)}
    with slapd(users, answers=answers) as running:
        yield running


def whoami(
    server: Slapd, name: str, password: str, *options: str, tls: bool = False, ca: str = ""
) -> subprocess.Popen[str]:
    """A client that logs in by a distinguished name; ``ca`` is the file of those it trusts."""
    url = f"ldaps://{HOST}:{server.tls_port}" if tls else f"ldap://{HOST}:{server.port}"
    return subprocess.Popen(
        ["ldapwhoami", "-x", "-H", url, "-D", name, "-w", password, *options],
        env={**os.environ, "LDAPCONF": os.devnull, "LDAPTLS_CACERT": ca or os.devnull},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def bind(*arguments: object, **options: object) -> tuple[int, str]:
    """Its exit status, which is the result of the bind, and what it wrote."""
    with whoami(*arguments, **options) as process, ending(process):
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
        return process.returncode, output


@needs_slapd
@pytest.mark.parametrize(
    ("name", "password", "result"),
    [
        (dn(LOGIN), PASSWORD, SUCCESS),
        (dn(LOGIN), PASSWORD.lower(), INVALID),
        (dn(LOGIN), "", UNWILLING),
        (dn(ODD), ODD_PASSWORD, SUCCESS),
        (dn(ODD), "parent", INVALID),
        (dn("nobody"), PASSWORD, INVALID),
        (dn("busy", ANSWERS), "any", int(BUSY)),
    ],
)
def test_slapd_judges_and_keeps_a_record(directory, name, password, result):
    before = len(directory.binds())
    assert bind(directory, name, password)[0] == result
    (recorded,) = directory.binds()[before:]
    assert recorded.endswith("," + name.partition(",")[2])


@needs_slapd
def test_slapd_can_let_an_empty_password_succeed():
    with slapd({LOGIN: PASSWORD}, anonymous=True) as server:
        assert bind(server, dn(LOGIN), "") == (SUCCESS, "anonymous\n")
        assert bind(server, dn(LOGIN), "x")[0] == INVALID


@needs_slapd
@pytest.mark.parametrize(("options", "tls"), [(("-ZZ",), False), ((), True)])
def test_slapd_speaks_tls_with_the_certificate(directory, options, tls):
    name = dn(LOGIN)
    right = bind(directory, name, PASSWORD, *options, tls=tls, ca=directory.certificate)
    assert right == (SUCCESS, f"dn:{name}\n")
    before = len(directory.binds())
    assert bind(directory, name, PASSWORD, *options, tls=tls)[0] != SUCCESS
    assert len(directory.binds()) == before


@needs_slapd
def test_slapd_can_send_clients_elsewhere(directory):
    status, output = bind(directory, dn("away, far", ANSWERS), "any")
    assert status == 10
    assert f"\t{ELSEWHERE}" in output


@needs_slapd
def test_slapd_can_leave_clients_waiting_while_it_serves_others(directory):
    name = dn("slow", ANSWERS)
    with whoami(directory, name, "any") as stuck, ending(stuck):
        wait_until(lambda: name in directory.binds(), "the bind")
        assert bind(directory, dn(LOGIN), PASSWORD)[0] == SUCCESS
        assert stuck.poll() is None


@needs_slapd
def test_slapd_can_be_stopped():
    with slapd({LOGIN: PASSWORD}) as server:
        assert bind(server, dn(LOGIN), PASSWORD)[0] == SUCCESS
        server.stop()
        assert bind(server, dn(LOGIN), PASSWORD)[0] == NO_ANSWER


# POP3 and IMAP.


@pytest.fixture(scope="module")
def mailboxes() -> Iterator[Dovecot]:
    with dovecot(users={LOGIN: ODD_PASSWORD}) as running:
        yield running


def trust(server: Dovecot) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=server.certificate)


def by_pass(server: Dovecot, password: str) -> None:
    log_in(poplib.POP3(server.host, server.pop3_port), password)


def by_stls(server: Dovecot, password: str) -> None:
    client = poplib.POP3(server.host, server.pop3_port)
    client.stls(trust(server))
    log_in(client, password)


def by_pop3s(server: Dovecot, password: str) -> None:
    log_in(poplib.POP3_SSL(server.host, server.pop3s_port, context=trust(server)), password)


def log_in(client: poplib.POP3, password: str) -> None:
    client.encoding = "utf-8"
    client.user(LOGIN)
    client.pass_(password)
    client.quit()


def by_apop(server: Dovecot, password: str) -> None:
    client = poplib.POP3(server.host, server.pop3_port)
    client.encoding = "utf-8"
    client.apop(LOGIN, password)
    client.quit()


def by_starttls(server: Dovecot, password: str) -> None:
    with imaplib.IMAP4(server.host, server.port) as client:
        client.starttls(trust(server))
        client.authenticate("PLAIN", lambda _: f"\0{LOGIN}\0{password}".encode())


@pytest.mark.root
@needs_dovecot
@pytest.mark.parametrize(
    ("way", "recorded"),
    [
        (by_pass, ("pop3-login: ", "method=PLAIN")),
        (by_stls, ("pop3-login: ", "method=PLAIN", " TLS,")),
        (by_pop3s, ("pop3-login: ", "method=PLAIN", " TLS,")),
        (by_apop, ("pop3-login: ", "method=APOP")),
        (by_starttls, ("imap-login: ", "method=PLAIN", " TLS,")),
    ],
)
def test_dovecot_takes_logins_and_keeps_a_record(mailboxes, way, recorded):
    begun = len(mailboxes.log())
    way(mailboxes, ODD_PASSWORD)

    def logged() -> bool:
        lines = mailboxes.log()[begun:].splitlines()
        return any(all(x in line for x in (*recorded, f"<{LOGIN}>")) for line in lines)

    wait_until(logged, f"{recorded} in the log")


@pytest.mark.root
@needs_dovecot
@pytest.mark.parametrize("way", [by_pass, by_apop])
def test_dovecot_rejects_a_wrong_password(mailboxes, way):
    with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\]"):
        way(mailboxes, ODD_PASSWORD + "x")


# PAM.

ACCOUNT = f"tp{os.getpid() % 100_000}"
GOOD, FAILURE, UNKNOWN, EXPIRED = 0, 7, 10, 13
CLIENT = """\
import pam, sys
client = pam.PamAuthenticator()
client.authenticate(*sys.argv[1:], resetcreds=False)
sys.exit(client.code)
"""


@pytest.fixture(scope="module")
def account() -> Iterator[str]:
    with new_account(ACCOUNT):
        set_password(ACCOUNT, ODD_PASSWORD)
        yield ACCOUNT


def client(service: str, user: str, password: str) -> subprocess.Popen[bytes]:
    """A process that asks PAM; its exit status is what PAM says."""
    command = [sys.executable, "-c", CLIENT, user, password, service]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def ask(rules: str, user: str, password: str = ODD_PASSWORD) -> int:
    with pam_service(rules) as service, client(service, user, password) as process, ending(process):
        return process.wait(LIMIT_SECONDS)


@pytest.mark.root
def test_pam_judges_an_account(account):
    assert ask(UNIX, account) == GOOD
    assert ask(UNIX, account, "other") == FAILURE
    assert ask(UNIX, f"{account}x") == UNKNOWN
    with expired(account):
        assert ask(UNIX, account) == EXPIRED
        assert ask(UNIX, account, "other") == FAILURE
    assert ask(UNIX, account) == GOOD


@pytest.mark.root
@pytest.mark.parametrize(("rules", "status"), [(DENYING, FAILURE), (CRASHING, -signal.SIGSEGV)])
def test_pam_can_deny_and_crash(account, rules, status):
    assert ask(rules, account) == status


@pytest.mark.root
def test_pam_can_hang_and_nothing_is_left_behind(account):
    with pam_service(HANGING) as service:
        with client(service, account, ODD_PASSWORD) as process, ending(process):
            (script,) = wait_until(lambda: children(process.pid, "sh"), "the script")
            assert process.poll() is None
        wait_until(lambda: not lives(script), "the end of the script")
    assert not Path("/etc/pam.d", service).exists()


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for has no command line left."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    return False
