"""Every kind of source through a daemon, against the real thing (TO-49 to TO-58)."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from accounts import new_account
from clients import dialogue, plain
from dovecot import POP3, dovecot
from fakes import make_certificate
from pamservice import (
    CRASHING,
    HANGING,
    NULLOK,
    SLOW_TO_REFUSE,
    UNIX,
    account,
    expired,
    pam_service,
    set_password,
)
from running import (
    HOST,
    LOGIN,
    PASSWORD,
    Daemon,
    Home,
    cannot_run,
    free_port,
    make_home,
    run,
    tofmipd,
    usual_umask,
    wait_until,
)
from slapd import ANSWERS, BASE, BUSY, PEOPLE, SLOW, refer, slapd
from village import children, descriptors, status

needs_servers = pytest.mark.peer("dovecot", POP3, "slapd")

YES, NO, LATER = "235 2.7.0 AUTH successful", "535 5.7.8 ", "454 4.7.0 "
ODD, ODD_PASSWORD = 'a,dc=x" +<é>#', "pä ß:{x}"
SECOND = "127.0.0.2"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def ask(daemon: Daemon, user: str, password: str, at: int = 0) -> str:
    """The reply to a login in a session of its own, at one of the daemon's places."""
    host, port = daemon.places[at]
    with dialogue(port, host) as talk:
        assert talk.say("EHLO client.example").startswith("250")
        assert talk.say("AUTH LOGIN").startswith("334")
        assert talk.say(b64(user)).startswith("334")
        return talk.say(b64(password))


def ask_all(logins: Sequence[tuple[Daemon, str, str, int]]) -> list[str]:
    """All at the same time, for a refusal takes a second."""
    with ThreadPoolExecutor(len(logins)) as pool:
        return list(pool.map(lambda login: ask(*login), logins))


@contextlib.contextmanager
def daemons(
    directory: Path, options: dict[str, str], maps: dict[str, str]
) -> Iterator[dict[str, Daemon]]:
    """One with each of these options, started at the same time, with homes of their own."""

    def start(name: str) -> Daemon:
        home = make_home(directory / name.replace(" ", "-"))
        home.write("ipauthmap", maps.get(name, ""))
        places = ("-p", f"{HOST}:0", "-p", f"{SECOND}:0")
        return stack.enter_context(tofmipd(home, "-d", *options[name].split(), listen=places))

    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(len(options)) as pool:
            found = dict(zip(options, pool.map(start, options), strict=True))
        yield found


# Servers on the network.

THREE = (
    "-R imaps://{mail.host}:{mail.tls_port} -R pop3s://{mail.host}:{mail.pop3s_port}"
    " -R ldaps://{people.host}:{people.tls_port}/uid=%s,{PEOPLE} "
)
SOURCES = {
    "imap": "-R imap://{mail.host}:{mail.port}",
    "imaps": "-R imaps://{mail.host}:{mail.tls_port} --remoteauth-ca {mail.certificate}",
    "pop3": "-R pop3://{mail.host}:{mail.pop3_port}",
    "pop3s": "-R pop3s://{mail.host}:{mail.pop3s_port} --remoteauth-ca {mail.certificate}",
    "apop": "-R apop://{mail.host}:{mail.pop3_port}",
    "ldap": "-R ldap://{people.host}:{people.port}/uid=%s,{PEOPLE}",
    "ldaps": "-R ldaps://{people.host}:{people.tls_port}/uid=%s,{PEOPLE}"
    " --remoteauth-ca {people.certificate}",
    "of anybody": THREE + "--remoteauth-tls=unverified",
    "of a stranger": THREE + "--remoteauth-ca {stranger}",
    "of the system": THREE,
    "base": "-R ldap://{people.host}:{people.port}/uid=%s,{BASE}",
    "answers": "-R ldap://{people.host}:{people.port}/uid=%s,{ANSWERS} --source-timeout 2",
    "mapped pop3": "-R pop3://0.0.0.0:{mail.pop3_port}",
    "mapped ldap": "-R ldap://0.0.0.0:{people.port}/uid=%s,{PEOPLE}",
}
SCHEMES = ("imap", "imaps", "pop3", "pop3s", "apop", "ldap", "ldaps")
Row = tuple[str, str, str, str, int]
# Which source, user, password, reply, and at which of the daemon's addresses.
LOGINS: list[Row] = [
    *((scheme, LOGIN, PASSWORD, YES, 0) for scheme in SCHEMES),
    *((scheme, LOGIN, PASSWORD.lower(), NO, 0) for scheme in SCHEMES),
    *((scheme, "nobody", PASSWORD, NO, 0) for scheme in SCHEMES),
    *((scheme, "chloe", ODD_PASSWORD, YES, 0) for scheme in SCHEMES),
    # 535 says that each of the three has judged.
    ("of anybody", LOGIN, PASSWORD, YES, 0),
    ("of anybody", "tim", "only in the directory", YES, 0),
    ("of anybody", "nobody", PASSWORD, NO, 0),
    ("of a stranger", LOGIN, PASSWORD, LATER, 0),
    ("of the system", LOGIN, PASSWORD, LATER, 0),
    # TO-53: who can go beyond a part of a distinguished name could be somebody else.
    ("ldap", ODD, ODD_PASSWORD, YES, 0),
    ("ldap", "a,dc=x", ODD_PASSWORD, NO, 0),
    ("base", "bobby,ou=people", PASSWORD, NO, 0),
    ("ldap", "emma", "", NO, 0),
    ("ldap", "emma", "\0", NO, 0),
    ("answers", "away", "any", LATER, 0),
    ("answers", "busy", "any", LATER, 0),
    ("answers", "slow", "any", LATER, 0),
    # TO-58
    ("mapped pop3", LOGIN, PASSWORD, YES, 0),
    ("mapped pop3", LOGIN, "other", NO, 0),
    ("mapped pop3", LOGIN, "other", YES, 1),
    ("mapped pop3", LOGIN, PASSWORD, NO, 1),
    ("mapped ldap", LOGIN, PASSWORD, YES, 0),
    ("mapped ldap", LOGIN, "other", NO, 0),
    ("mapped ldap", LOGIN, "other", YES, 1),
    ("mapped ldap", LOGIN, PASSWORD, NO, 1),
]


@dataclass(frozen=True)
class Asked:
    """What was replied: while the servers were there, and when they had ended."""

    replies: dict[Row, str]
    without_servers: dict[str, str]
    binds: list[str]
    binds_elsewhere: list[str]
    logs: dict[str, str]
    descriptors: list[str]


def opened(found: dict[str, Daemon], begun: dict[str, set[int]]) -> list[str]:
    """What daemons have open that they had not in the beginning."""
    return [
        f"{name}: {target}"
        for name, daemon in found.items()
        for number, target in descriptors(daemon.pid).items()
        if number not in begun[name]
    ]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """All of LOGINS at the same time."""
    directory = tmp_path_factory.mktemp("sources")
    users = {LOGIN: PASSWORD, "chloe": ODD_PASSWORD}
    more = {ODD: ODD_PASSWORD, "tim": "only in the directory", "emma": "secret"}
    with (
        dovecot(HOST, users) as mail,
        dovecot(SECOND, {LOGIN: "other"}) as other_mail,
        slapd({LOGIN: "other", "away": "any"}, host=SECOND) as other_people,
        slapd(
            users | more,
            anonymous=True,
            answers={
                "away": refer(f"ldap://{SECOND}:{other_people.port}/uid=away,{PEOPLE}"),
                "busy": BUSY,
                "slow": SLOW,
            },
        ) as people,
    ):
        words = {
            **{"mail": mail, "people": people, "stranger": make_certificate(directory)[0]},
            **{"PEOPLE": PEOPLE, "BASE": BASE, "ANSWERS": ANSWERS},
        }
        options = {name: text.format(**words) for name, text in SOURCES.items()}
        # The first line leaves the port to the URL, the second has the old form.
        line = "{0} {0}\n{1}:{1}:{2}\n"
        maps = {
            "mapped pop3": line.format(HOST, SECOND, other_mail.pop3_port),
            "mapped ldap": line.format(HOST, SECOND, other_people.port),
        }
        with daemons(directory, options, maps) as found:
            begun = {name: set(descriptors(daemon.pid)) for name, daemon in found.items()}
            logins = [(found[row[0]], *row[1:3], row[4]) for row in LOGINS]
            replies = dict(zip(LOGINS, ask_all(logins), strict=True))
            for server in (mail, people):
                server.stop()
            again = ask_all([(found[scheme], LOGIN, PASSWORD, 0) for scheme in SCHEMES])
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not opened(found, begun), "the end of sessions", 3)
            left = opened(found, begun)
            return Asked(
                replies,
                dict(zip(SCHEMES, again, strict=True)),
                people.binds(),
                other_people.binds(),
                {name: daemon.text() for name, daemon in found.items()},
                left,
            )


@pytest.mark.root
@needs_servers
@pytest.mark.parametrize("row", LOGINS, ids=lambda row: f"{row[0]} {row[1]} {row[3][:3]}")
def test_servers_on_the_network_judge(asked, row):
    """TO-50 to TO-53, TO-58."""
    assert asked.replies[row].startswith(row[3])


@pytest.mark.root
@needs_servers
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_has_ended_is_454_and_never_535(asked, scheme):
    """TO-51."""
    assert asked.without_servers[scheme].startswith(LATER)


@pytest.mark.root
@needs_servers
def test_the_directory_is_asked_for_one_part_of_a_name_and_never_without_a_password(asked):
    """TO-53; it would let everybody in who shows none."""
    assert not [name for name in asked.binds if "emma" in name]
    # As it writes a comma and an equals sign that belong to the name.
    assert f"uid=bobby\\2Cou\\3Dpeople,{BASE}" in asked.binds


@pytest.mark.root
@needs_servers
def test_a_referral_is_not_followed(asked):
    assert not [name for name in asked.binds_elsewhere if "away" in name]
    assert "it refers to another server" in asked.logs["answers"]


@pytest.mark.root
@needs_servers
def test_a_slow_directory_is_given_up_in_time(asked):
    assert f"ldap {HOST}" in asked.logs["answers"]
    assert " unavailable: timed out\n" in asked.logs["answers"]
    lasted = re.findall(r" end after ([0-9.]+) s", asked.logs["answers"])
    assert 2 <= max(map(float, lasted)) < 5


@pytest.mark.root
@needs_servers
@pytest.mark.parametrize("source", ["of a stranger", "of the system"])
def test_who_has_no_certificate_that_is_good_gets_no_password(asked, source):
    reasons = [x for x in asked.logs[source].splitlines() if "certificate verify failed" in x]
    assert [x.split(" unavailable")[0].split()[-2] for x in reasons] == ["imaps", "pop3s", "ldaps"]


@pytest.mark.root
@needs_servers
def test_no_login_leaves_a_descriptor_open(asked):
    assert asked.descriptors == []


@pytest.mark.root
@needs_servers
def test_passwords_are_in_no_log(asked):
    """TO-57; whatever servers and libraries say of them."""
    for text in asked.logs.values():
        for password in (PASSWORD, ODD_PASSWORD, "only in the directory"):
            assert f"{password}'" not in text.replace("'bobby'", "")
            assert b64(password) not in text


# Servers on another machine.

# Not one address: their certificates have that as their name.
MAIL_ELSEWHERE, PEOPLE_ELSEWHERE = "192.0.2.1", "192.0.2.2"
_NEW_NETWORK = 0x40000000
ABROAD = (
    "-R imap://{mail.host}:{mail.port} -R pop3://{mail.host}:{mail.pop3_port}"
    " -R ldap://{people.host}:{people.port}/uid=%s,{PEOPLE} "
)
# By name: whether the servers know TLS, what the daemon is told, and what nobody who is nobody
# is told: 535 after all of the three have judged.
FAR = {
    "verified": (True, "--remoteauth-ca {ca}", NO),
    "unverified": (True, "--remoteauth-tls=unverified", NO),
    "stranger": (True, "--remoteauth-ca {stranger}", LATER),
    "cannot": (False, "--remoteauth-ca {ca}", LATER),
    "none": (True, "--remoteauth-tls=none", NO),
}


@contextlib.contextmanager
def another_network() -> Iterator[None]:
    """This thread, and what it starts, are where other addresses are this machine's."""
    library = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own:
        if library.unshare(_NEW_NETWORK) != 0:
            cannot_run(f"no network namespaces here: {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            for address in (MAIL_ELSEWHERE, PEOPLE_ELSEWHERE):
                command = ["ip", "address", "add", f"{address}/32", "dev", "lo"]
                subprocess.run(command, check=True)
            yield
        finally:
            assert library.setns(own.fileno(), _NEW_NETWORK) == 0


@dataclass(frozen=True)
class Far:
    """What was replied to somebody who is ``nobody-NAME``, and to LOGIN; what servers noted."""

    replies: dict[str, tuple[str, str]]
    mail_log: str
    directory_log: str


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Far:
    directory = tmp_path_factory.mktemp("far")
    users = {LOGIN: PASSWORD}
    with (
        another_network(),
        dovecot(MAIL_ELSEWHERE, users) as mail,
        dovecot(MAIL_ELSEWHERE, users, encrypted=False) as simple_mail,
        slapd(users, host=PEOPLE_ELSEWHERE) as people,
        slapd(users, host=PEOPLE_ELSEWHERE, encrypted=False) as simple_people,
    ):
        servers = {True: (mail, people), False: (simple_mail, simple_people)}
        both = [Path(server.certificate).read_text() for server in (mail, people)]
        (directory / "ca").write_text("".join(both))
        words = {"ca": directory / "ca", "stranger": make_certificate(directory)[0]}
        options = {
            name: (ABROAD + text).format(
                mail=servers[encrypted][0], people=servers[encrypted][1], PEOPLE=PEOPLE, **words
            )
            for name, (encrypted, text, _) in FAR.items()
        }
        with daemons(directory, options, {}) as found:
            logins = [
                (daemon, user, PASSWORD, 0)
                for name, daemon in found.items()
                for user in (f"nobody-{name}", LOGIN)
            ]
            replies = ask_all(logins)
        logs = [server.log() for server in (mail, simple_mail, people, simple_people)]
        return Far(
            dict(zip(found, zip(replies[::2], replies[1::2], strict=True), strict=True)),
            logs[0] + logs[1],
            logs[2] + logs[3],
        )


@pytest.mark.root
@needs_servers
@pytest.mark.peer("ip")
@pytest.mark.parametrize("name", FAR)
def test_no_password_goes_to_another_machine_in_the_clear(far, name):
    """Unless that is asked for."""
    reply = FAR[name][2]
    wrong, right = far.replies[name]
    assert wrong.startswith(reply)
    assert right.startswith(LATER if reply == LATER else YES)
    # What the servers have seen: two failures by mail, one at the directory.
    seen = [x for x in far.mail_log.splitlines() if f"<nobody-{name}>" in x and "-login: " in x]
    assert [", TLS" in x for x in seen] == ([] if reply == LATER else 2 * [name != "none"])
    binds = re.findall(rf' (conn=[0-9]+) op=.* BIND dn="uid=nobody-{name},', far.directory_log)
    encrypted = [re.search(rf" {bind} fd=.* TLS established", far.directory_log) for bind in binds]
    assert list(map(bool, encrypted)) == ([] if reply == LATER else [name != "none"])


# Programs.

CHECKER = """\
#!/bin/sh
{ read -r user; read -r password; read -r stamp; } <<END
$(tr '\\0' '\\n' <&3)
END
case $user in
status-*) exit ${user#status-} ;;
killed) kill -TERM $$ ;;
hanging) echo $$ >"$1/hanging.new"; mv "$1/hanging.new" "$1/hanging"; exec sleep 60 ;;
flooding) head -c 100000000 /dev/zero ;;
leaving) sleep 60 & echo $! >"$1/left" ;;
looking)
  printf '%s\\n' "$stamp" "$@" >"$1/words"; env >"$1/environment"
  { id -u; ls -l /proc/self/fd; } >"$1/descriptors" ;;
esac
test "$password" = right
"""
# What a shell would make something of.
WORDS = ["two words", "$HOME", "*", ";", "touch", "witness", "--", 'q"uote', ""]
LONG = "x" * (512 - len("status-0..Y1234567890."))
# User and password, the reply, and what the log says of it.
PROGRAM_LOGINS = [
    ("anybody", "right", YES, ""),
    ("anybody", "wrong", NO, ""),
    ("status-0", LONG, YES, ""),
    ("status-0", LONG + "x", NO, "that the interface cannot carry"),
    ("status-1", "x", NO, ""),
    ("status-2", "x", NO, "ended with status 2"),
    ("status-100", "x", NO, "ended with status 100"),
    ("status-111", "x", LATER, "ended with status 111"),
    ("killed", "right", LATER, "was killed by signal 15"),
    ("hanging", "right", LATER, "does not end"),
    ("flooding", "right", YES, ""),
    ("flooding", "wrong", NO, ""),
    ("leaving", "right", YES, ""),
    ("looking", "right", YES, ""),
]


def make_checker(directory: Path) -> Path:
    """A checkpassword program; its first argument is a directory for what it notes."""
    path = directory / "checker"
    path.write_text(CHECKER)
    path.chmod(0o755)
    return path


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for has no command line left."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    return False


def helper_of(pid: int) -> int:
    """The process that makes attempts for another, once it has its name."""
    (found,) = wait_until(lambda: children(pid, "tofmipd-attempt"), "the helper")
    return found


@dataclass(frozen=True)
class Checked:
    replies: list[str]
    seconds: list[float]
    log: str
    directory: Path
    descriptors: set[int]
    witnesses: list[Path]


def timed(daemon: Daemon, user: str, password: str) -> tuple[str, float]:
    begun = time.monotonic()
    return ask(daemon, user, password), time.monotonic() - begun


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """All of PROGRAM_LOGINS at the same time."""
    directory = tmp_path_factory.mktemp("program")
    command = shlex.join([str(make_checker(directory)), str(directory), *WORDS])
    home = make_home(directory / "home")
    with tofmipd(home, "-d", "-A", command, "--source-timeout", "3") as daemon:
        helper = helper_of(daemon.pid)
        begun = set(descriptors(helper))
        with ThreadPoolExecutor(len(PROGRAM_LOGINS)) as pool:
            found = list(pool.map(lambda row: timed(daemon, *row[:2]), PROGRAM_LOGINS))
        wait_until(lambda: not children(helper), "the end of all attempts")
        wait_until(lambda: set(descriptors(helper)) <= begun, "their descriptors to be closed")
        text = daemon.text()
    replies, seconds = (list(x) for x in zip(*found, strict=True))
    return Checked(replies, seconds, text, directory, begun, list(Path("/").glob("witness")))


@pytest.mark.parametrize("number", range(len(PROGRAM_LOGINS)))
def test_a_program_judges_by_its_exit_status(checked, number):
    """TO-49."""
    user, _, reply, words = PROGRAM_LOGINS[number]
    assert checked.replies[number].startswith(reply)
    lines = [x for x in checked.log.splitlines() if f"user={user!r}" in x and "checker" in x]
    assert any(words in line for line in lines) if words else not lines or user == "status-0"


def test_a_program_that_hangs_delays_nobody_else_and_leaves_nothing(checked):
    """Nor does one that leaves something running, which holds its output open."""
    for (user, _, reply, _), seconds in zip(PROGRAM_LOGINS, checked.seconds, strict=True):
        if user == "hanging":
            assert 2 < seconds < 5
        elif user != "flooding" and reply != NO:
            assert seconds < 2
    for name in ("hanging", "left"):
        assert not lives(int((checked.directory / name).read_text()))


def test_a_program_gets_its_words_without_a_shell_and_nothing_else(checked):
    stamp, directory, *words = (checked.directory / "words").read_text().split("\n")[:-1]
    assert re.fullmatch("Y[0-9]{10}", stamp)
    assert directory == str(checked.directory)
    assert words == WORDS
    assert checked.witnesses == []
    variables = dict(x.split("=", 1) for x in (checked.directory / "environment").open())
    assert variables.pop("TCPREMOTEIP") == variables.pop("TCPLOCALIP") == f"{HOST}\n"
    assert variables.pop("PROTO") == "TCP\n"
    # The shell adds the other.
    assert set(variables) <= {"PATH", "PWD", "OLDPWD", "SHLVL", "_"}
    uid, _, *links = (checked.directory / "descriptors").read_text().splitlines()
    assert int(uid) == os.getuid()
    targets = dict(x.split(" -> ") for x in (link.split(maxsplit=8)[8] for link in links))
    assert [n for n, target in targets.items() if "/proc/" not in target] == ["0", "1", "2", "3"]
    assert targets["0"] == os.devnull


@pytest.mark.parametrize(("program", "reply"), [("/bin/true", YES), ("/bin/false", NO)])
def test_a_program_need_not_read_what_it_is_given(program, reply, tmp_path):
    with tofmipd(make_home(tmp_path), "-A", program) as daemon:
        assert ask(daemon, "anybody", "x" * 400).startswith(reply)


def test_the_helper_of_a_daemon_has_nothing_of_its_open(checked):
    """No listener, no log, no session; what a program can reach is in the test before."""
    assert len(checked.descriptors) == 4


# PAM.

MARK = f"ts{os.getpid() % 100_000}"
GOOD, OVER, BARE = f"{MARK}g", f"{MARK}o", f"{MARK}b"
PAM_PASSWORD = "pä ß:{x}"
# User and password, the reply, and what the log says of it.
PAM_LOGINS = [
    (GOOD, PAM_PASSWORD, YES, ""),
    (GOOD, PAM_PASSWORD + "x", NO, "Authentication failure (7)"),
    (f"{MARK}n", PAM_PASSWORD, NO, "User not known to the underlying authentication module (10)"),
    (OVER, PAM_PASSWORD, NO, "User account has expired (13)"),
    # The service would let this one in.
    (BARE, "x", NO, "Authentication failure (7)"),
    (BARE, "", NO, ""),
]


@pytest.fixture(scope="module")
def people() -> Iterator[None]:
    """Accounts: a good one, one that has expired, and one without a password."""
    with (
        usual_umask(),
        account(GOOD, PAM_PASSWORD),
        account(OVER, PAM_PASSWORD),
        account(BARE, None),
        expired(OVER),
    ):
        yield


@pytest.mark.root
def test_pam_judges_accounts_and_their_passwords(people, tmp_path):
    """TO-54; a client never hears why it is refused."""
    note = tmp_path / "note"
    rules = f"auth optional pam_exec.so quiet /bin/sh -c [echo $PAM_RHOST >>{note}]\n{NULLOK}"
    home = make_home(tmp_path / "home")
    with pam_service(rules) as service, tofmipd(home, "-d", "-m", service) as daemon:
        replies = ask_all([(daemon, *row[:2], 0) for row in PAM_LOGINS])
        text = daemon.text()
    said = re.findall(rf"pam {service} says no: user='(.*)' (.*)", text)
    assert [reply[:4] for reply in replies] == [row[2][:4] for row in PAM_LOGINS]
    assert sorted(said) == sorted((row[0], row[3]) for row in PAM_LOGINS if row[3])
    assert len(set(replies)) == 2
    assert set(note.read_text().splitlines()) == {HOST}


@pytest.mark.root
def test_a_failing_login_at_pam_holds_up_no_other(people, tmp_path):
    """TO-55: it takes PAM two seconds to say no."""
    home = make_home(tmp_path)
    with (
        pam_service(SLOW_TO_REFUSE) as service,
        tofmipd(home, "-m", service) as daemon,
        ThreadPoolExecutor(1) as pool,
    ):
        refused = pool.submit(timed, daemon, GOOD, "wrong")
        wait_until(lambda: children(helper_of(daemon.pid)), "the attempt")
        assert ask(daemon, GOOD, PAM_PASSWORD) == YES
        assert not refused.done()
        for _ in range(9):
            reply, seconds = timed(daemon, GOOD, PAM_PASSWORD)
            assert reply == YES
            assert seconds < 1
        reply, seconds = refused.result()
        assert reply.startswith(NO)
        assert seconds > 1


@pytest.mark.root
@pytest.mark.parametrize(
    ("rules", "words"),
    [(HANGING, "does not answer in time"), (CRASHING, "killed by SIGSEGV")],
    ids=["hanging", "crashing"],
)
def test_pam_that_hangs_or_crashes_is_454_and_only_for_who_needs_it(rules, words, tmp_path):
    home = make_home(tmp_path)
    options = ("-a", str(home.tmda / "tofmipd"), "--source-timeout", "1.5")
    with (
        pam_service(rules) as service,
        tofmipd(home, *options, "-m", service) as daemon,
        ThreadPoolExecutor(1) as pool,
    ):
        helper = helper_of(daemon.pid)
        waiting = pool.submit(timed, daemon, "anybody", "x")
        for _ in range(5):
            reply, seconds = timed(daemon, LOGIN, PASSWORD)
            assert reply == YES
            assert seconds < 1
        reply, seconds = waiting.result()
        assert reply.startswith(LATER)
        assert seconds < 3.5
        assert words in daemon.says(f"pam {service} unavailable")
        wait_until(lambda: not children(helper), "the end of the attempt")
        assert helper_of(daemon.pid) == helper


def add_packages(variables: dict[str, str], *names: str) -> dict[str, str]:
    """Copy packages to where a copy of the program is, for an interpreter that has them not."""
    library = Path(variables["PYTHONPATH"])
    for name in names:
        (place,) = importlib.util.find_spec(name).submodule_search_locations
        package = Path(shutil.copytree(place, library / name, dirs_exist_ok=True))
        for path in [package, *package.rglob("*")]:
            path.chmod(0o755)
    return variables


@pytest.mark.root
def test_pam_serves_a_person_who_is_not_root(people):
    """Only for the account that runs the daemon: nobody else's password can be checked."""
    with new_account(f"{MARK}p") as own, pam_service(UNIX) as service:
        set_password(own.name, PAM_PASSWORD)
        make_home(own.home.path)
        for path in [own.home.path, *own.home.path.rglob("*")]:
            os.chown(path, own.uid, own.uid)
        with tofmipd(
            own.home,
            *("-m", service),
            program=own.program,
            variables=add_packages(own.variables, "pam"),
            user=own.uid,
        ) as daemon:
            logins = [(own.name, PAM_PASSWORD), (own.name, "wrong"), (GOOD, PAM_PASSWORD)]
            right, wrong, other = ask_all([(daemon, *login, 0) for login in logins])
    assert right == YES
    assert wrong.startswith(NO)
    assert other.startswith(LATER)


@pytest.mark.root
def test_a_service_that_is_not_there_is_told_at_the_start(tmp_path):
    result = run("--personal", "-f", "-p", f"{HOST}:0", "-m", f"{MARK}none", home=Home(tmp_path))
    assert result.returncode == os.EX_CONFIG
    assert f"/etc/pam.d/{MARK}none" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.root
@pytest.mark.parametrize("victim", ["daemon", "helper"])
def test_what_attempts_have_started_ends_with_the_daemon_or_helper(victim, tmp_path):
    """However that ends."""
    home = make_home(tmp_path / "home")
    with pam_service(HANGING) as service, contextlib.ExitStack() as stack:
        command = f"{make_checker(tmp_path)} {tmp_path}"
        options = ("-A", command, "-m", service, "--source-timeout", "2")
        daemon = stack.enter_context(tofmipd(home, *options))
        helper = helper_of(daemon.pid)
        talks = [stack.enter_context(dialogue(daemon.port)) for _ in range(2)]
        for talk, user in zip(talks, ("hanging", "status-1"), strict=True):
            talk.say("EHLO client.example")
            talk.send(f"AUTH PLAIN {plain(user, 'x')}\r\n".encode())
        attempts = wait_until(lambda: with_children(helper, 2), "a program and a module")
        started = [pid for attempt in attempts for pid in children(attempt)]
        if victim == "helper":
            os.kill(helper, signal.SIGKILL)
            assert all(talk.reply().startswith(LATER) for talk in talks)
        else:
            daemon.process.kill()
            daemon.process.wait()
        for pid in (helper, *attempts, *started):
            wait_until(lambda pid=pid: not lives(pid), "its end")
        if victim == "daemon":
            stack.pop_all()


def with_children(pid: int, count: int) -> list[int]:
    """The children of a process, if they are so many and have some of their own."""
    found = children(pid)
    return found if len(found) == count and all(map(children, found)) else []


# Several sources.


def used(pid: int) -> tuple[int, int, int]:
    """How many descriptors, threads and children a process has."""
    return len(descriptors(pid)), int(status(pid)["Threads"]), len(children(pid))


def test_a_source_that_hangs_delays_only_who_needs_it_and_leaves_nothing(tmp_path):
    """TO-56: 40 logins wait for a server while 20 are judged by a file, none later than 1 s."""
    home = make_home(tmp_path / "home")
    with socket.create_server((HOST, 0)) as silent, ThreadPoolExecutor(40) as pool:
        place = f"imap://{HOST}:{silent.getsockname()[1]}"
        options = ("-a", str(home.tmda / "tofmipd"), "-R", place, "--source-timeout", "3")
        with tofmipd(home, "-d", *options) as daemon:
            daemon.says(" end after ")
            begun = used(daemon.pid)
            waiting = [pool.submit(timed, daemon, f"nobody{n}", "x") for n in range(40)]
            wait_until(lambda: daemon.text().count("C: AUTH") == 40, "all sessions")
            assert ask(daemon, LOGIN, PASSWORD) == YES
            assert not any(login.done() for login in waiting)
            for _ in range(19):
                reply, seconds = timed(daemon, LOGIN, PASSWORD)
                assert reply == YES
                assert seconds < 1
            replies, seconds = zip(*(login.result() for login in waiting), strict=True)
            assert all(reply.startswith(LATER) for reply in replies)
            assert max(seconds) < 5
            wait_until(lambda: all(map(int.__le__, used(daemon.pid), begun)), "it to be as before")


@pytest.mark.root
def test_one_source_s_failure_hides_no_other_s_verdict_and_their_order_counts(people, tmp_path):
    """TO-56: all kinds of them; unavailable only where nobody has accepted."""
    program, home = make_checker(tmp_path), make_home(tmp_path / "home")
    with pam_service(UNIX) as service:
        nobody = ("-R", f"imap://{HOST}:{free_port()}", "-R", f"ldap://{HOST}:{free_port()}/uid=%s")
        options = (*nobody, "-A", f"{program} {tmp_path}", "-a", str(home.tmda / "tofmipd"))
        with tofmipd(home, *options, "-m", service) as daemon:
            logins = [(LOGIN, "right"), (LOGIN, PASSWORD), (GOOD, PAM_PASSWORD), (GOOD, "wrong")]
            replies = ask_all([(daemon, *login, 0) for login in logins])
            text = daemon.text()
    assert [reply[:3] for reply in replies] == ["235", "235", "235", "454"]
    found = re.findall(r"auth accepted .* source=(\w+) ", text)
    assert sorted(found) == ["checkpassword", "file", "pam"]
    assert text.count(f"imap {HOST}") == text.count(f"ldap {HOST}") == 4
