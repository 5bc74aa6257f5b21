"""`tofmipd check`: what it finds, what it leaves alone, and what is in force."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

import pytest
from certificates import GOOD, OVER, Authority

from tofmipd import cli
from tofmipd.commands import checkports
from tofmipd.errors import CONFIG, PERMISSION, USAGE
from tofmipd.options import make_parser

KEY = "00112233445566778899aabbccddeeff01234567\n"


class Home:
    """The home of somebody who could start a daemon, and a port for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write(".tmda/crypt_key", KEY)
        self.write(".tmda/config", 'HOSTNAME = "b.example"\nSENDMAIL_PROGRAM = "/bin/true"\n')
        self.write(".tmda/tofmipd", "bobby:FooBar\n")

    def write(self, name: str, text: str | bytes, mode: int = 0o600) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    def state(self) -> dict[str, tuple[int, int]]:
        """What changes when anything here does."""
        found = {}
        for path in [self.path, *self.path.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_mtime_ns, status.st_mode)
        return found


class Told(NamedTuple):
    status: int
    out: list[str]
    faults: list[str]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "TMDARC", "TMDA_FILTER_OUTGOING", "GLOBAL_TMDARC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path)


@pytest.fixture
def check(home, capfd):
    """Run it; nothing may have changed in the home."""

    def check(*arguments: str, listen: str = "127.0.0.1:0") -> Told:
        before = home.state()
        where = ["-p", listen] if listen else []
        try:
            status = cli.main(["check", "--personal", *where, *arguments])
        except SystemExit as end:
            status = end.code
        said = capfd.readouterr()
        assert home.state() == before
        return Told(status, said.out.splitlines(), said.err.splitlines())

    return check


def test_all_is_well_where_the_daemon_would_start(check, home):
    conf = home.write(".config/tofmipd.conf", "size 1000\n")
    status, out, faults = check()
    assert (status, faults) == (0, [])
    assert all(line.startswith("ok: ") for line in out)
    assert out[0] == f"ok: options: {conf}"
    assert any(f"{home.path}/.tmda/config, rules of the filter: 0" in line for line in out)


# By a name: what is written where, options, and the beginnings of all faults.
BROKEN = {
    "bad lines of the file": (
        {".config/tofmipd.conf": "szie 1\nspool maybe\n"},
        [],
        [
            "{home}/.config/tofmipd.conf:1: unknown option 'szie'; did you mean size?",
            "{home}/.config/tofmipd.conf:2: spool: yes or no, not 'maybe'",
        ],
    ),
    "a contradiction": (
        {".config/tofmipd.conf": "tls on\n"},
        ["--ssl", "--ssl-cert=c", "--ssl-key=k"],
        ["{home}/.config/tofmipd.conf:1: --ssl and --tls exclude each other"],
    ),
    "a contradiction of the command line": (
        {},
        ["-c/x", "-S/y"],
        ["command line: -c and -S exclude each other"],
    ),
    "a bad line of the file, and a missing password file that it names": (
        {".config/tofmipd.conf": "szie 1\nauthfile /nonexistent/passwords\n"},
        [],
        [
            "{home}/.config/tofmipd.conf:1: unknown option",
            "{home}/.config/tofmipd.conf:2: /nonexistent/passwords: no such password file",
        ],
    ),
    "all bad lines of the password file": (
        {".tmda/tofmipd": "bobby\nchloe:x\ndora:{SCRYPT}nonsense\n"},
        [],
        ["{home}/.tmda/tofmipd:1: no colon", "{home}/.tmda/tofmipd:3: "],
    ),
    "sources, each by its option": (
        {},
        ["-a", "missing", "-A", "relative", "-m", "no-such-service", "-R", "imap://you@h"],
        ["command line: -R: a user has no place in it"],
    ),
    "sources that can be understood, each by its option": (
        {},
        ["-a", "missing", "-A", "relative", "-m", "no-such-service"],
        [
            "--authfile: {home}/missing: no such password file",
            "--authprog: -A: relative must be a whole path",
            "--pamauth: there is no PAM service no-such-service",
        ],
    ),
    "authorities of a server": (
        {},
        ["-R", "imaps://h.example", "--remoteauth-ca", "missing"],
        ["--remoteauth: {home}/missing: cannot be used as authorities"],
    ),
    "the map of addresses": (
        {".tmda/ipauthmap": "10.0.0.1 10.0.0.2\nnonsense\n10.0.0.3 x\n"},
        ["-R", "imap://0.0.0.0", "--remoteauth-tls=none"],
        ["{home}/.tmda/ipauthmap:2: line skipped", "{home}/.tmda/ipauthmap:3: line skipped"],
    ),
    "senders": (
        {".tmda/senders": "bobby: x@y\nnonsense\n"},
        ["--sender-check=own"],
        ["{home}/.tmda/senders:2: line skipped"],
    ),
    "senders that are not there": (
        {},
        ["--sender-check=own", "--senders=/nonexistent/senders"],
        ["--senders: /nonexistent/senders: not there"],
    ),
    "scripts": (
        {"throttle": "#!/bin/sh\n", "conf": "throttle-script ~/throttle\nvhome-script ~/vhome\n"},
        ["--config=conf"],
        [
            "{home}/conf:1: {home}/throttle cannot be executed (chmod 755)",
            "{home}/conf:2: {home}/vhome is not there",
        ],
    ),
    "places of files": (
        {"file": ""},
        [
            "--log-file=nowhere/log",
            "--pid-file=file/pid",
            "--outbox=file/x",
            "--limit=1/1h",
            "--limit-file=no/limits",
        ],
        [
            "--log-file: cannot write the log file {home}/nowhere/log: there is no directory",
            "--pid-file: cannot write the pid file {home}/file/pid: there is no directory",
            "--outbox: no outbox in {home}/file/x: {home}/file is not a directory",
            "--limit-file: {home}/no/limits: limits cannot be kept here: there is no directory",
        ],
    ),
    "limits in another file": (
        {".tmda/limits": "not a database at all"},
        ["--limit=1/1h"],
        ["{home}/.tmda/limits: limits cannot be kept here: file is not a database"],
    ),
    "configurations in no directory": (
        {},
        ["-c", "missing"],
        ["--configdir: {home}/missing is not a directory"],
    ),
    "authorities of the next hop": (
        {"ca.pem": "nothing"},
        ["--relay=h.example", "--relay-ca=ca.pem"],
        ["--relay-ca: --relay-ca cannot be loaded"],
    ),
    "an address twice": (
        {},
        ["-p127.0.0.1:9", "-p127.0.0.1:9"],
        ["--proxyport: 127.0.0.1:9 is there twice"],
    ),
    "an address twice by two names": (
        {},
        ["-p127.0.0.1:9", "-plocalhost:9"],
        ["--proxyport: localhost:9 is there twice, also as 127.0.0.1:9"],
    ),
    "an address among all": (
        {},
        ["-p0.0.0.0:65533", "-p127.0.0.1:65533"],
        ["--proxyport: 127.0.0.1:65533 and 0.0.0.0:65533 cannot both be listened on: one of"],
    ),
    "no pid file": (
        {"precious": "mine"},
        ["--pid-file=precious"],
        ["--pid-file: cannot write the pid file {home}/precious: something else is in it"],
    ),
    "an address of nobody here": (
        {},
        ["-p192.0.2.1:0"],
        ["--proxyport: cannot listen on 192.0.2.1:0: "],
    ),
    "the configuration": (
        {".tmda/config": "USERNAME = 'x'\nraise ValueError('no')\n"},
        [],
        ["{home}/.tmda/config:2: "],
    ),
    "no configuration": (
        {".tmda/config": None},
        [],
        ["{home}/.tmda/config: missing; make one with 'tofmipd init'"],
    ),
    "key and filter, all errors": (
        {".tmda/crypt_key": "xyz", ".tmda/filters/outgoing": "two * bare\nto * bare\nto\n"},
        [],
        [
            "{home}/.tmda/crypt_key: not an even number of hexadecimal digits",
            "{home}/.tmda/filters/outgoing:1: 'two' is no source",
            "{home}/.tmda/filters/outgoing:3: ",
        ],
    ),
    "lists": (
        {
            ".tmda/filters/outgoing": "to-file ~/none bare\nto-cdb ~/bad bare\n"
            "to-file -optional ~/none bare\nto-file -autocdb ~/list bare\n",
            "bad": "x",
            "list": "a@b.example\n",
        },
        [],
        [
            "{home}/.tmda/filters/outgoing:1: there is no file {home}/none",
            "{home}/.tmda/filters/outgoing:2: ",
        ],
    ),
    "the sendmail program": (
        {".tmda/config": 'SENDMAIL_PROGRAM = "/nonexistent/sendmail"\n'},
        [],
        ["{home}/.tmda/config: the sendmail program /nonexistent/sendmail cannot be executed"],
    ),
    "authorities of one's own next hop": (
        {".tmda/config": 'MAIL_TRANSPORT = "smtp"\nSMTPSSL = True\nSMTPSSL_CAFILE = "~/none"\n'},
        [],
        ["{home}/.tmda/config: SMTPSSL_CAFILE, _CERTFILE or _KEYFILE cannot be loaded"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_every_fault_is_a_line_of_its_own_with_its_place(case, check, home):
    files, arguments, expected = BROKEN[case]
    for name, text in files.items():
        if text is None:
            (home.path / name).unlink()
        else:
            home.write(name, text)
    status, out, faults = check(*arguments)
    assert status == CONFIG
    assert not [line for line in out if line.startswith("ok")]
    assert len(faults) == len(expected), faults
    for line, beginning in zip(faults, expected, strict=True):
        assert line.startswith(beginning.format(home=home.path)), (line, beginning)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o700])
def test_a_password_file_that_others_can_read_is_a_fault(mode, check, home):
    home.write(".tmda/tofmipd", "bobby:x\n", mode)
    status, _, (fault,) = check()
    assert status == CONFIG
    assert f"{home.path}/.tmda/tofmipd: mode {mode:04o}, must be 0600 or 0400" in fault


# Certificates


@pytest.fixture
def pair(home):
    return Authority().issue(days=GOOD).save(home.path)


def test_good_certificates_are_good(check, home, pair):
    home.write("ca.crt", Authority().pem, 0o644)
    status, out, faults = check("--ssl", *pair.options, "--ssl-client-ca=ca.crt", "--ciphers=HIGH")
    assert (status, faults) == (0, [])
    assert f"ok: certificates: {pair.chain}" in out


def test_each_part_of_encryption_has_its_fault(check, home, pair):
    authority = Authority()
    over = authority.issue(days=OVER, number=1).save(home.path, "over")
    other = authority.issue(number=2).save(home.path, "other")
    home.write("sni/a.pem", b"nothing")
    home.write("sni/b.pem", authority.issue(number=3).chain)
    home.write("ca.crt", b"nothing")
    conf = home.write(
        "conf",
        f"tls on\nssl-cert {over.chain}\nssl-key {over.key}\nssl-cert {pair.chain}\n"
        f"ssl-key {other.key}\nssl-sni-dir ~/sni\nssl-client-ca ~/ca.crt\nciphers NONSENSE\n",
    )
    status, _, faults = check("--config=conf")
    assert status == CONFIG
    expected = [
        (2, "the certificate expired on "),
        (4, "is not the key of the first certificate"),
        (8, "there is no such cipher"),
        (7, f"{home.path}/ca.crt: "),
        (6, f"{home.path}/sni/a.pem: "),
        (6, f"{home.path}/sni/b.pem: no key in it"),
    ]
    assert len(faults) == len(expected)
    for fault, (line, words) in zip(faults, expected, strict=True):
        assert fault.startswith(f"{conf}:{line}: ")
        assert words in fault


def test_a_key_that_all_can_read_is_a_fault_and_an_end_that_is_near_a_note(check, home):
    soon = Authority().issue(days=(-1, 5)).save(home.path)
    status, out, faults = check("--ssl", *soon.options)
    assert (status, faults) == (0, [])
    assert any(re.match(f"note: {soon.chain}: the certificate expires on ", x) for x in out)
    soon.key.chmod(0o644)
    status, _, faults = check("--ssl", *soon.options)
    assert status == CONFIG
    assert faults == [
        f"--ssl-key: {soon.key}: everybody on this machine can read the key (chmod 600)"
    ]


# Addresses


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="needs /proc")
@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("postfix", CONFIG, "(by postfix, pid "),
        ("tofmipd", 0, "in use by tofmipd, pid "),
        ("systemd", 0, "in use by systemd, pid "),
        ("somebody else's", CONFIG, "(by the tofmipd of somebody else, pid "),
    ],
)
def test_a_port_of_another_program_is_a_fault_and_one_of_a_tofmipd_a_note(
    name, status, words, check, taken, monkeypatch
):
    """This very process has it, which does not count itself otherwise."""
    monkeypatch.setattr(checkports, "_all_pids", lambda: [os.getpid()])
    else_s = name == "somebody else's"
    monkeypatch.setattr(checkports, "_is_tofmipd", lambda pid: else_s or name == "tofmipd")
    monkeypatch.setattr(checkports, "_is_ours", lambda pid: not else_s)
    monkeypatch.setattr(checkports, "_comm", lambda pid: name)
    told = check(listen=taken)
    assert told.status == status
    (line,) = told.faults or [x for x in told.out if x.startswith("note: ")]
    assert taken in line
    assert words in line


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="needs /proc")
def test_where_nobody_sees_who_listens_a_running_tofmipd_is_taken_for_it(check, taken, monkeypatch):
    monkeypatch.setattr(checkports, "_pids_of", lambda inodes: [])
    monkeypatch.setattr(checkports, "_all_pids", lambda: [os.getpid()])
    monkeypatch.setattr(checkports, "_is_tofmipd", lambda pid: True)
    assert check(listen=taken).out[-1].endswith(f"in use by tofmipd, it seems, pid {os.getpid()}")
    monkeypatch.setattr(checkports, "_is_tofmipd", lambda pid: False)
    assert check(listen=taken).status == CONFIG


# Whom it is about


def test_an_ordinary_user_cannot_ask_for_another(check):
    status, _, (line,) = check("--user", "somebody-else")
    assert (status, line) == (
        PERMISSION,
        "tofmipd: only root can ask for somebody-else; try: sudo tofmipd check ...",
    )


def test_with_a_directory_of_configurations_each_login_has_its_own(check, home):
    home.write("configs/chloe/config", "nonsense\n")
    home.write("configs/dora/config", 'SENDMAIL_PROGRAM = "/bin/true"\n')
    assert check("-c", "configs").status == 0
    assert check("-c", "configs", "--user=dora").status == 0
    status, _, (fault,) = check("-c", "configs", "--user=chloe")
    assert status == CONFIG
    assert fault.startswith(f"{home.path}/configs/chloe/config:1: ")


def test_a_virtual_user_has_the_home_that_the_script_prints(check, home):
    home.write("vhome", f"#!/bin/sh\necho {home.path}/virtual/$2/$1\n", 0o755)
    home.write("virtual/b.example/anna/.tmda/config", "import os\n")
    status, _, (fault,) = check("-S", "vhome", "--user=anna@b.example")
    assert status == CONFIG
    assert fault.startswith(f"{home.path}/virtual/b.example/anna/.tmda/config:1: ")


def test_who_may_have_no_configuration_is_no_fault_for_a_pure_proxy(check, home):
    (home.path / ".tmda/config").unlink()
    status, out, faults = check("-P")
    assert (status, faults) == (0, [])
    assert any(line.startswith("note: ") and ".tmda/config: missing" in line for line in out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--usr=x"], "unknown option '--usr'"),
        (["extra"], "unknown argument 'extra'"),
        (["-C", "x"], "'x' is not a whole number"),
        # No client waits for a word here.
        (["-1", "-C", "x"], "'x' is not a whole number"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_status_64(arguments, words, check):
    status, out, (line,) = check(*arguments)
    assert (status, out) == (USAGE, [])
    assert words in line


# What is in force

SAID = """\
foreground
spool
size 1000
idle-timeout 1.5
queue-lifetime 12h
limit 100/1h,500/7d
relay mail.example:587,[::1]:465
relay-tls encrypt
pamauth mail
authfile "~/pass words # 1"
remoteauth ldaps://h/uid=%s,dc=x
proxyport 127.0.0.1:0,tls=on
ipv6proxyport [::1]:0
ssl-cert ~/c
ssl-key ~/k
ciphers "HIGH"
sender-domain a.example
sender-domain b.example
proxyport 127.0.0.2:0,plain,proxy=192.0.2.1+2001:db8::/32
proxyport 127.0.0.3:0,proxy=none
proxy-protocol 192.0.2.0/24,198.51.100.1
proxy-protocol 2001:db8::1
"""


def printed(told: Told) -> dict[str, list[tuple[str, str]]]:
    """By option, values and origins."""
    assert (told.status, told.faults) == (0, [])
    found: dict[str, list[tuple[str, str]]] = {}
    for line in told.out:
        if not line.startswith("#"):
            content, _, origin = line.rpartition("  # ")
            name, _, value = content.partition(" ")
            found.setdefault(name, []).append((value, origin))
    return found


def test_what_is_in_force_is_printed_with_its_origin(check, home):
    conf = home.write("conf", SAID)
    told = check("--config=conf", "--print", "--size", "7", listen="")
    values = printed(told)
    assert values["size"] == [("7", "command line")]
    assert values["idle-timeout"] == [("1.5", f"{conf}:4")]
    assert values["queue-lifetime"] == [("12h", f"{conf}:5")]
    assert values["queue-retry"] == [("1m", "default")]
    assert values["limit"] == [("100/1h,500/7d", f"{conf}:6")]
    assert values["relay"] == [("mail.example:587,[::1]:465", f"{conf}:7")]
    assert values["authfile"] == [(f'"{home.path}/pass words # 1"', f"{conf}:10")]
    assert values["proxyport"] == [
        ("127.0.0.1:0,tls=on", f"{conf}:12"),
        ("127.0.0.2:0,plain,proxy=192.0.2.1/32+2001:db8::/32", f"{conf}:19"),
        ("127.0.0.3:0,proxy=none", f"{conf}:20"),
    ]
    assert values["proxy-protocol"] == [
        ("192.0.2.0/24,198.51.100.1/32", f"{conf}:21"),
        ("2001:db8::1/128", f"{conf}:22"),
    ]
    assert values["sender-domain"] == [("a.example", f"{conf}:17"), ("b.example", f"{conf}:18")]
    assert values["outbox"] == [(f"{home.path}/.tmda/outbox", "default")]
    assert (values["foreground"], values["debug"]) == (
        [("yes", f"{conf}:1")],
        [("no", "default")],
    )
    assert "# log-file: not set" in told.out
    sources = ["pamauth", "authfile", "remoteauth"]
    assert [name for name in values if name in sources] == sources


@pytest.mark.parametrize("text", ["", SAID])
def test_what_is_printed_is_a_file_that_says_the_same(text, check, home):
    home.write("conf", text)
    first = check("--config=conf", "--print", "-a", "relative", "--size=7", listen="")
    home.write("again", "\n".join(first.out))
    second = check("--config=again", "--print", listen="")
    values = [
        {n: [v for v, _ in pairs] for n, pairs in printed(x).items()} for x in (first, second)
    ]
    assert values[0] == values[1]
    assert values[0]["authfile"] == [f"{home.path}/relative"]


def test_every_option_of_a_file_is_printed_or_said_to_be_unset(check):
    out = check("--print", listen="").out
    names = {line.removeprefix("# ").split(":")[0].split()[0] for line in out}
    known = {max(a.option_strings, key=len).removeprefix("--") for a in make_parser().table}
    only_elsewhere = {"help", "-V", "version", "config", "personal", "one-session"}
    # Sources of other kinds, and the other name of foreground.
    assert known - only_elsewhere - names == {"background", "authprog", "remoteauth", "pamauth"}


def test_with_faults_nothing_is_printed_but_them(check, home):
    home.write("conf", "szie 1\n")
    status, out, faults = check("--config=conf", "--print")
    assert (status, out, len(faults)) == (CONFIG, [], 1)
