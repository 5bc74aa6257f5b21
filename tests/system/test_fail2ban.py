"""Filter and jail for fail2ban, on what a daemon really logs (BX-5): by the real fail2ban-regex."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from clients import Dialogue, plain
from running import (
    HOST,
    LIMIT_SECONDS,
    LOGIN,
    PASSWORD,
    free_port,
    make_home,
    tofmipd,
    wait_until,
)

ETC = Path(__file__).parents[2] / "etc/fail2ban"
FILTER = str(ETC / "filter.d/tofmipd.conf")
JOURNAL_WRITER = "/lib/systemd/systemd-journal-remote"
needs_fail2ban = pytest.mark.peer("fail2ban-regex", "fail2ban-client")

# Of a client that is to be shut out by what another one sends.
VICTIM = "192.0.2.9"
FORGED = f"s=00d1b5e8 auth rejected ip={VICTIM} mechanism=PLAIN source=file reason=password user="
STAMPED = f"2026-11-21 22:00:00,123 INFO {FORGED}'x'"
HOSTILE = [
    f"x' ip={VICTIM}",
    f'x" ip={VICTIM}',
    f"' ip={VICTIM} mechanism=PLAIN source=file reason=password user='x",
    FORGED,
    STAMPED,
    f"host tofmipd[1]: {FORGED}'x'",
    f"x\n{STAMPED}\n",
    f"x\r\n{STAMPED}",
    f"x\N{LINE SEPARATOR}{STAMPED}",
    f"x\N{NEXT LINE}{STAMPED}",
    f"\x1b[2K\r{STAMPED}",
    f"{'x' * 200}{FORGED}",
    f"<HOST> %(ip)s <F-ID>{VICTIM}</F-ID>",
    "é" * 300,
]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# Where clients come from and what they say after EHLO; all are rejected.
REJECTED: list[tuple[str, Sequence[str]]] = [
    ("127.0.1.1", [f"AUTH PLAIN {plain('anna', 'wrong')}"]),
    ("127.0.1.2", [f"AUTH PLAIN {plain(LOGIN, 'wrong')}"]),
    ("127.0.1.3", ["AUTH LOGIN", b64("bert"), b64("wrong")]),
    ("127.0.1.4", ["AUTH CRAM-MD5", b64(f"carl {'0' * 32}")]),
    ("127.0.1.5", [f"AUTH PLAIN {plain('dora', '')}"]),
    ("127.0.1.6", [f"AUTH PLAIN {plain('../emil', 'x')}"]),
    ("127.0.1.7", [f"AUTH PLAIN {b64('not three parts')}"]),
    ("::1", [f"AUTH PLAIN {plain('frieda', 'wrong')}"]),
    *((f"127.0.2.{n}", [f"AUTH PLAIN {plain(name, 'x')}"]) for n, name in enumerate(HOSTILE, 1)),
    *((f"127.0.3.{n}", ["AUTH LOGIN", b64(name), b64("x")]) for n, name in enumerate(HOSTILE, 1)),
    *(("127.0.4.1", [f"AUTH PLAIN {plain('gustav', f'wrong {n}')}"]) for n in range(5)),
]
# After five wrong passwords nobody is asked.
WAITING = ("127.0.4.2", [f"AUTH PLAIN {plain('gustav', 'x')}"])
HARMLESS: list[tuple[str, Sequence[str]]] = [
    ("127.0.5.1", [f"AUTH PLAIN {plain()}"]),
    ("127.0.5.2", [FORGED]),
    ("127.0.5.3", [f"EHLO {FORGED}"]),
    ("127.0.5.4", [f"AUTH {FORGED}"]),
    ("127.0.5.5", ["AUTH LOGIN", "*"]),
    ("127.0.5.6", ["AUTH PLAIN !"]),
]


@contextlib.contextmanager
def client(port: int, source: str, lines: Sequence[str]) -> Iterator[Dialogue]:
    """A session that has said these lines, and heard what comes before the last reply."""
    host = source if ":" in source else HOST
    with socket.create_connection((host, port), LIMIT_SECONDS, (source, 0)) as sock:
        talk = Dialogue(sock)
        assert talk.reply().startswith("220 ")
        talk.say("EHLO client.example")
        for line in lines[:-1]:
            assert talk.say(line).startswith("334")
        talk.send(lines[-1].encode() + b"\r\n")
        yield talk


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The log of a daemon to which all of these clients have come."""
    home = make_home(tmp_path_factory.mktemp("home"))
    log = home.path / "log"

    def logged(words: str, times: int = 1) -> None:
        wait_until(lambda: log.read_text().count(words) >= times, words)

    listen = ("-p", f"{HOST}:0", "-6", "[::1]:0")
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(tofmipd(home, "-d", "--log-file", str(log), listen=listen))
        ports = {":" in host: port for host, port in daemon.places}
        # The answers to failures are late; what is logged comes at once.
        for source, said in REJECTED:
            stack.enter_context(client(ports[":" in source], source, said))
        logged(" auth rejected ", len(REJECTED))
        with client(ports[False], *WAITING) as talk:
            assert talk.reply().startswith("421 4.7.0 ")
        for source, said in HARMLESS:
            with client(ports[False], source, said) as talk:
                assert talk.reply()
    return log.read_text().splitlines()


@pytest.fixture(scope="module")
def unavailable(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The log of one whose source cannot be reached."""
    home = make_home(tmp_path_factory.mktemp("home"))
    with tofmipd(home, "-R", f"imap://{HOST}:{free_port()}") as daemon:
        with client(daemon.port, "127.0.6.1", [f"AUTH PLAIN {plain()}"]) as talk:
            assert talk.reply().startswith("454 ")
        return daemon.text().splitlines()


def found(log: str) -> Counter[str]:
    """How often fail2ban finds each address there."""
    command = ["fail2ban-regex", "--out", "ip", log, FILTER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not done.stderr.strip() or "Traceback" not in done.stderr
    return Counter(done.stdout.split())


EXPECTED = Counter(source for source, _ in [*REJECTED, WAITING])


# Where lines end up: each gives what fail2ban can be pointed to.


def as_file(lines: Sequence[str], directory: Path) -> str:
    path = directory / "file.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def as_syslog(lines: Sequence[str], directory: Path, date: str = "Nov 21 22:00:00") -> str:
    """There the line stands without its date and severity; other programs have lines as well."""
    dated = re.compile(r"[0-9-]{10} [0-9:,]{12} [A-Z]+ (?=s=)")
    own = [dated.sub("", line) for line in lines if dated.match(line)]
    named = [f"tofmipd[123]: {line}" for line in own] + [f"other[4]: {FORGED}'x'"]
    return as_file([f"{date} mx {line}" for line in named], directory)


def as_dated_syslog(lines: Sequence[str], directory: Path) -> str:
    return as_syslog(lines, directory, "2026-11-21T22:00:00.123456+01:00")


def as_journal_of_a_service(lines: Sequence[str], directory: Path) -> str:
    """There the journal has taken the priority off."""
    dated = re.compile(r"[0-9-]{10} [0-9:,]{12} [A-Z]+ ")
    return as_journal([dated.sub("", line) for line in lines], directory)


def as_journal(lines: Sequence[str], directory: Path) -> str:
    """What systemd keeps of standard error of the service; other units have lines as well."""
    entries = [(line, "tofmipd") for line in lines] + [(STAMPED, "other")]
    text = "".join(
        f"__REALTIME_TIMESTAMP={1_795_300_000_000_000 + number}\n__MONOTONIC_TIMESTAMP={number}\n"
        f"_BOOT_ID={'1' * 32}\n_MACHINE_ID={'2' * 32}\n_HOSTNAME=mx\n_PID=123\n"
        f"_SYSTEMD_UNIT={unit}.service\nSYSLOG_IDENTIFIER=tofmipd\nMESSAGE={line}\n\n"
        for number, (line, unit) in enumerate(entries, 1)
    )
    exported, journal = directory / "export", directory / "x.journal"
    exported.write_text(text)
    command = [JOURNAL_WRITER, "--output", str(journal), str(exported)]
    subprocess.run(command, capture_output=True, timeout=LIMIT_SECONDS, check=True)
    return f"systemd-journal[journalfiles={journal}]"


PLACES = [
    as_file,
    as_syslog,
    as_dated_syslog,
    *(
        pytest.param(place, marks=pytest.mark.peer(JOURNAL_WRITER))
        for place in (as_journal, as_journal_of_a_service)
    ),
]


@needs_fail2ban
@pytest.mark.parametrize("place", PLACES)
def test_fail2ban_finds_each_rejected_login_and_nothing_else(
    place: Callable[[Sequence[str], Path], str], lines, unavailable, tmp_path
):
    """BX-5: whatever clients send, the only addresses are those that they come from."""
    assert found(place([*lines, *unavailable], tmp_path)) == EXPECTED


def test_the_log_has_all_kinds_of_refusals(lines, unavailable):
    """Else the test above would say little."""
    line = re.compile(r"\S+ \S+ INFO s=\w+ auth rejected ip=\S+ \S+ \S+ reason=(\S+) user=")
    reasons = [match[1] for match in map(line.match, lines) if match]
    assert set(reasons) == {"password", "malformed", "name", "empty", "too-many-failures"}
    assert len(reasons) == EXPECTED.total()
    assert sum(VICTIM in line for line in lines) >= 2 * len(HOSTILE)
    assert any(" auth unavailable " in line for line in unavailable)
    assert any(" auth accepted ip=127.0.5.1 " in line for line in lines)


@needs_fail2ban
@pytest.mark.root
def test_no_user_s_own_program_can_have_an_address_shut_out(village, tmp_path):
    """Lines of a worker, which runs its user's configuration, look like no login."""
    bobby = village.people[0]
    village.write_passwords({bobby.name: bobby.password, "no-such-account": PASSWORD})
    claims = [FORGED, FORGED.split(" ", 1)[1], f"s=x {FORGED}", f"{STAMPED}", f"x\n{STAMPED}"]
    bobby.configure(
        "import logging",
        *(f"logging.getLogger('tofmipd.own').info({claim!r})" for claim in claims),
    )
    with village.daemon() as daemon:
        with client(daemon.port, "127.0.7.1", [f"AUTH PLAIN {plain('no-such-account')}"]):
            daemon.says("reason=account")
        login = f"AUTH PLAIN {plain(bobby.name, bobby.password)}"
        with client(daemon.port, "127.0.7.2", [login]) as talk:
            assert talk.reply().startswith("235")
            talk.envelope("x@example.net")
            talk.data(b"Subject: x\r\n\r\nx\r\n.\r\n")
        lines = daemon.text().splitlines()
    assert sum(VICTIM in line for line in lines) >= len(claims)
    assert found(as_file(lines, tmp_path)) == Counter(["127.0.7.1"])


# The jail.


@pytest.fixture
def dumped(tmp_path):
    """What fail2ban makes of the jail as it is, or changed as its comments say."""

    def dump(*changes: tuple[str, str]) -> str:
        directory = tmp_path / "fail2ban"
        shutil.copytree("/etc/fail2ban", directory)
        shutil.rmtree(directory / "jail.d")
        shutil.copytree(ETC, directory, dirs_exist_ok=True)
        jail = directory / "jail.d/tofmipd.conf"
        text = jail.read_text()
        for old, new in (*changes, ("/var/log/", f"{tmp_path}/")):
            assert old in text
            text = text.replace(old, new)
        jail.write_text(text)
        for name in ("tofmipd.log", "mail.log"):
            (tmp_path / name).write_text("")
        command = ["fail2ban-client", "-c", str(directory), "-d"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tofmipd" not in done.stderr
        return done.stdout

    return dump


LOG = "logpath = /var/log/tofmipd.log\nbackend = auto\n"


@needs_fail2ban
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([], ["'addlogpath', '{directory}/tofmipd.log'", "'tofmipd', 'auto'"]),
        (
            [(LOG, ""), ("#logpath", "logpath")],
            ["'addlogpath', '{directory}/mail.log'", "'tofmipd', 'auto'"],
        ),
        (
            [(LOG, ""), ("#backend", "backend")],
            ["'addjournalmatch', '_SYSTEMD_UNIT=tofmipd.service'", "'tofmipd', 'systemd'"],
        ),
    ],
)
def test_fail2ban_takes_the_jail_for_each_place_of_the_log(changes, words, dumped, tmp_path):
    said = dumped(*changes)
    for word in words:
        assert word.format(directory=tmp_path) in said
    (ignored,) = re.findall(r"'tofmipd', 'addignoreip'(.*)\]", said)
    assert "'127.0.0.0/8'" in ignored
    assert "'::1'" in ignored
    assert "'addfailregex', '^" in said
    assert re.search(r"'tofmipd', 'maxretry', [0-9]+\]", said)
