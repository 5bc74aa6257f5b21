"""Virtual users in personal mode: they have homes of their own, and their files execute nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import dialogue, plain, submit
from hops import Sendmail
from running import HOST, KEY, PASSWORD, Daemon, Home, make_home, run, to_program

TO = "x@example.net"
SCRIPT = """\
#!/bin/sh
cd "{records}" || exit 70
{{ echo "$#"; printf '%s\\n' "$@" "$HOME" "$TCPLOCALIP" "${{SECRET-none}}"; }} > asked.$$
case $1 in
    fails) echo no such user; exit 1 ;;
    hangs) exec sleep 60 ;;
    nonsense) echo nonsense ;;
    *) printf '%s\\n' "{homes}/$2/$1" ;;
esac
"""


@dataclass(frozen=True)
class Hosting:
    """Somebody who runs a daemon for virtual users below a directory of his."""

    person: Home
    directory: Path
    sendmail: Sendmail

    @property
    def script(self) -> Path:
        return self.directory / "vhome größer"

    @property
    def options(self) -> tuple[str, ...]:
        return ("-S", str(self.script))

    @property
    def variables(self) -> dict[str, str]:
        """Only the site's configuration may name a program."""
        site = self.directory / "tmdarc"
        if not site.exists():
            site.write_text(to_program(self.sendmail.path) + "\n")
        return {"GLOBAL_TMDARC": str(site)}

    def passwords(self, *logins: str) -> None:
        self.person.write("tofmipd", "".join(f"{login}:{PASSWORD}\n" for login in logins))

    def house(self, login: str, *lines: str) -> Home:
        """Make the home of a virtual user where the script says."""
        user, _, domain = login.partition("@")
        home = Home(self.directory / "homes" / domain / user)
        home.write("crypt_key", KEY + "\n")
        home.write("filters/outgoing", "")
        own = ['MAIL_TRANSPORT = "sendmail"', 'MAIL_TRANSFER_AGENT = "postfix"']
        home.write("config", "\n".join([*own, *lines, ""]))
        return home

    def asked(self) -> list[list[str]]:
        """What each run of the script was given: number of arguments, these, environment."""
        paths = sorted(self.directory.glob("records/asked.*"))
        return [path.read_text().splitlines() for path in paths]


@pytest.fixture
def hosting(tmp_path, sendmail):
    person = make_home(tmp_path / "person")
    made = Hosting(person, tmp_path / "virtual größer", sendmail)
    (made.directory / "records").mkdir(parents=True)
    made.script.write_text(
        SCRIPT.format(records=made.directory / "records", homes=made.directory / "homes")
    )
    made.script.chmod(0o755)
    return made


def send(daemon: Daemon, login: str, to: str = TO) -> str:
    return submit(daemon.port, to, login=login, password=PASSWORD)


def test_each_virtual_user_has_a_home_of_his_own(start, hosting):
    """TO-83.  No file of domains is read."""
    logins = ("ann@a.example", "bob@a.example", "änne b@c.example")
    hosting.passwords(*logins)
    homes = [hosting.house(login) for login in logins]
    homes[1].write("crypt_key", "ff" * 20 + "\n")
    homes[2].write("filters/outgoing", "to * ext=from-c\n")
    for home in homes[:2]:
        home.write("filters/outgoing", "to * sender\n")
    daemon = start(hosting.person, *hosting.options, variables={"SECRET": "x"} | hosting.variables)
    for login, home in zip(logins, homes, strict=True):
        assert send(daemon, login.upper()).startswith("250")
        (environment,) = [env for _, env, _ in hosting.sendmail.runs() if env["LOGIN"] == login]
        assert environment["HOME"] == str(home.path)
        assert environment["TCPLOCALIP"] == HOST
        assert "SECRET" not in environment
    tags = {
        env["LOGIN"]: arguments[arguments.index("-f") + 1]
        for arguments, env, _ in hosting.sendmail.runs()
    }
    first, second, third = (tags[login] for login in logins)
    assert re.fullmatch(r"bobby-sender-[0-9a-f]{6}@example\.org", first)
    assert re.fullmatch(r"bobby-sender-[0-9a-f]{6}@example\.org", second)
    assert first != second
    assert third == "bobby-from-c@example.org"


def test_the_script_gets_user_and_domain_without_a_shell(start, hosting):
    """TO-83."""
    users = ["ann", "a b", "$(touch x)", "ann;touch x", "*", "a'b\"c"]
    hosting.passwords(*(f"{user}@a.example" for user in users))
    daemon = start(hosting.person, *hosting.options, variables={"SECRET": "x"} | hosting.variables)
    for user in users:
        hosting.house(f"{user}@a.example")
        assert send(daemon, f"{user}@a.example").startswith("250")
    home = str(hosting.person.path)
    wanted = [["2", user, "a.example", home, HOST, "none"] for user in users]
    assert sorted(hosting.asked()) == sorted(wanted)
    assert not any((path / "x").exists() for path in (Path("/"), hosting.directory / "records"))


@pytest.mark.parametrize("login", ["bobby", "ann@", "@a.example"])
def test_a_login_that_is_no_virtual_user_s_is_refused(login, start, hosting):
    hosting.passwords(login)
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {plain(login, PASSWORD)}").startswith("535 5.7.8")
    daemon.says("WARNING", "auth rejected", f"user={login!r}", "reason:", "is not USER@DOMAIN")


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("fails", "ended with 1 for 'fails@a.example': 'no such user'"),
        ("hangs", "did not end within 1 s"),
        ("nonsense", "printed no home for 'nonsense@a.example', but 'nonsense'"),
    ],
)
def test_a_script_that_fails_defers_the_mail(user, reason, start, hosting):
    hosting.passwords(f"{user}@a.example")
    daemon = start(hosting.person, *hosting.options, "--script-timeout", "1")
    said = send(daemon, f"{user}@a.example")
    assert said == "451 4.3.5 Error: your home directory cannot be found"
    daemon.says("ERROR", " deferred: ", reason)


@pytest.mark.parametrize(
    "line",
    [
        'import os; os.system("touch {mark}")',
        "import os",
        '__import__("os").system("touch {mark}")',
        'FULLNAME = __import__("os").popen("touch {mark}").read()',
        'FULLNAME = open("{mark}", "w").name',
        'FULLNAME = f"{{open(chr(47), chr(119))}}"',
        "DATED_TIMEOUT = [str(5) for x in range(1)][0]",
        'if True:\n    open("{mark}", "w")',
        "def f(): pass",
        "HMAC_BYTES += 1",
        "a, b = 1, 2",
        "x = y = 1",
        'open("{mark}", "w")',
        "from os import *",
        "class X: pass",
        "while True: pass",
        'FULLNAME = (lambda: open("{mark}", "w"))()',
        'FULLNAME: open("{mark}", "w") = "x"',
    ],
)
def test_a_configuration_that_would_execute_anything_is_refused(line, start, hosting, tmp_path):
    """TO-88."""
    hosting.passwords("ann@a.example")
    mark = tmp_path / "mark"
    home = hosting.house("ann@a.example", 'FULLNAME = "x"', line.format(mark=mark))
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    said = send(daemon, "ann@a.example")
    assert said == (
        "451 4.3.5 Error in your TMDA files: config line 4:"
        " only NAME = text, number or list is allowed here"
    )
    daemon.says("ERROR", f"{home.tmda}/config:4: only NAME = text")
    assert not mark.exists()
    assert hosting.sendmail.runs() == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('SENDMAIL_PROGRAM = "/bin/sh"', "SENDMAIL_PROGRAM is not allowed here"),
        ('FILTER_OUTGOING = "/etc/passwd"', "FILTER_OUTGOING must be below your home here"),
        ('CRYPT_KEY_FILE = "~/../bob/.tmda/crypt_key"', "CRYPT_KEY_FILE must be below your home"),
        ('DATADIR = "/etc"', "CRYPT_KEY_FILE must be below your home here"),
    ],
)
def test_neither_programs_nor_files_of_others_can_be_named(line, problem, start, hosting):
    hosting.passwords("ann@a.example")
    hosting.house("bob@a.example")
    hosting.house("ann@a.example", line)
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    assert problem in send(daemon, "ann@a.example")
    assert hosting.sendmail.runs() == []


def test_a_link_leads_to_no_file_of_others(start, hosting):
    hosting.passwords("ann@a.example")
    home = hosting.house("ann@a.example")
    (home.tmda / "filters/outgoing").unlink()
    (home.tmda / "filters/outgoing").symlink_to("/etc/passwd")
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    said = send(daemon, "ann@a.example")
    assert said.endswith("FILTER_OUTGOING must be below your home here")


def test_literals_are_understood(start, hosting):
    """TO-88."""
    lines = (
        "# a comment",
        "RECIPIENT_DELIMITER = '+'",
        'TAGS_SENDER = ["s", "sender"]',
        "HMAC_BYTES = 5",
        'ADDED_HEADERS_CLIENT = {"X-Of": "än" "ne"}',
        "ALLOW_MODE_640 = yes",
        'ACTION_OUTGOING = "sender"',
    )
    hosting.passwords("ann@a.example")
    hosting.house("ann@a.example", *lines)
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    assert send(daemon, "ann@a.example").startswith("250")
    (stored,) = hosting.sendmail.messages()
    assert re.fullmatch(r"bobby\+s\+[0-9a-f]{10}@example\.org", stored.sender)
    assert stored.value("X-Of") == "änne"


def test_the_site_s_configuration_is_the_administrator_s_and_executed(start, hosting):
    """TO-88.  What it says of the form of the users' files counts only where they can be executed;
    and one process for all users has no virtual user's environment."""
    site = hosting.directory / "tmdarc"
    site.write_text(
        f"{to_program(hosting.sendmail.path)}\nimport os\nCONFIG_EXEC = True\n"
        'ADDED_HEADERS_CLIENT = {"X-Site": str(1 + 1) + str(os.environ.get("VUSERDIR"))}\n'
    )
    hosting.passwords("ann@a.example", "eve@a.example")
    hosting.house("ann@a.example")
    hosting.house("eve@a.example", "x = 1 + 1")
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    assert send(daemon, "ann@a.example").startswith("250")
    (stored,) = hosting.sendmail.messages()
    assert stored.value("X-Site") == "2None"
    assert send(daemon, "eve@a.example").startswith("451 4.3.5")


def test_a_virtual_user_without_a_configuration_is_told_so_or_passed_through(start, hosting):
    """TO-80, TO-81."""
    hosting.passwords("ann@a.example")
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    assert send(daemon, "ann@a.example").startswith("554 5.3.5 You have no TMDA configuration")
    program = {"TMDA_SENDMAIL_PROGRAM": str(hosting.sendmail.path)}
    daemon = start(hosting.person, *hosting.options, "-P", variables=program)
    assert send(daemon, "ann@a.example").startswith("250")
    ((arguments, environment, _),) = hosting.sendmail.runs()
    assert arguments == ["-f", "bobby@example.org", "-i", "--", TO]
    assert environment["HOME"] == str(hosting.directory / "homes/a.example/ann")


def test_a_script_that_is_not_there_is_an_error_at_the_start(hosting):
    path = hosting.directory / "missing"
    done = run("--personal", "-f", "-p", f"{HOST}:0", "-S", str(path), home=hosting.person)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == f"tofmipd: {path} is not there; -S names a program\n"
