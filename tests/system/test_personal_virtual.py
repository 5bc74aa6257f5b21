"""Virtual users in personal mode: they have homes of their own, and their files execute nothing."""

from __future__ import annotations

import os
import pickle
import re
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import dialogue, plain, submit
from hops import Sendmail, raw_hop
from running import HOST, KEY, PASSWORD, Daemon, Home, make_home, run, to_program, wait_until

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
    daemon.says("WARNING", f"user={login!r} may not log in: ", "is not USER@DOMAIN")
    daemon.says("auth rejected", f"reason=account user={login!r}")


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
        ('DATADIR = "/etc"', "DATADIR must be below your home here"),
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


# Lists, logs and commands of those whose rights the daemon does not have.


def test_what_waits_goes_out_by_the_means_of_its_own_user(start, hosting):
    """There is one outbox for all of them: it is the person's whom the daemon runs as."""
    logins = ("ann@a.example", "bob@a.example")
    hosting.passwords(*logins)
    homes = {str(hosting.house(login).path) for login in logins}
    hosting.sendmail.exit_with(75)
    options = (*hosting.options, "--spool", "--queue-retry", "1s")
    daemon = start(hosting.person, *options, variables=hosting.variables)
    for login in logins:
        assert send(daemon, login).startswith("250")
    outbox = hosting.person.tmda / "outbox"
    wait_until(lambda: len(hosting.sendmail.runs()) >= 2, "the first attempts")
    assert len(list(outbox.glob("*.content"))) == 2
    (hosting.sendmail.directory / "status").unlink()
    wait_until(lambda: not list(outbox.iterdir()), "the outbox to be empty")
    assert {environment["HOME"] for _, environment, _ in hosting.sendmail.runs()} == homes


@pytest.fixture
def ann(start, hosting) -> Callable[..., str]:
    """Send a message as ann@a.example, whose home has more than one needs; the reply."""
    hosting.passwords("ann@a.example", "bob@a.example")
    hosting.house("bob@a.example").write("list", f"{TO} ext=stolen\n")
    home = hosting.house("ann@a.example")
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)

    def ann(*lines: str, rules: str) -> str:
        hosting.house("ann@a.example", *lines)
        home.write("filters/outgoing", rules)
        return send(daemon, "ann@a.example")

    return ann


def test_no_command_is_run(ann, hosting, tmp_path):
    """TO-88: it would run with the rights of whoever runs the daemon."""
    home = hosting.house("ann@a.example")
    mark = tmp_path / "mark"
    home.write("list", f"{TO} shell=touch${{IFS}}{mark}\n")
    for rules, lines in (
        (f'to * tag from "shell=touch {mark}"\n', ()),
        ("to-file ~/.tmda/list bare\n", ()),
        ("", (f"ACTION_OUTGOING = 'shell=touch$IFS{mark}'",)),
        ("to * default\n", (f"ACTION_OUTGOING = 'shell=touch$IFS{mark}'",)),
    ):
        said = ann(*lines, rules=rules)
        assert said.startswith("451 4.3.5 Error in your TMDA files: ")
        assert "'shell' is not allowed here" in said
    assert not mark.exists()
    assert hosting.sendmail.runs() == []


@pytest.mark.parametrize("way", ["named", "by ..", "by a link", "by a link to the directory"])
@pytest.mark.parametrize(
    "rule",
    [
        "to-file {} bare",
        "to-file -optional {} bare",
        "to-file -autocdb {} bare",
        "to-file -autodbm {} bare",
        "to-cdb {} bare",
        "to-dbm {} bare",
        "to-ezmlm {} bare",
        "to-mailman -attr=members {} bare",
        "include {}",
        "include -optional {}",
    ],
)
def test_what_a_filter_names_must_be_below_the_user_s_own_home(rule, way, ann, hosting):
    """TO-96: nothing of the others is read, and none of it is quoted."""
    home = hosting.house("ann@a.example")
    theirs = hosting.directory / "homes/a.example/bob/.tmda/list"
    match way:
        case "named":
            path = str(theirs)
        case "by ..":
            path = "~/../bob/.tmda/list"
        case "by a link":
            (home.tmda / "link").symlink_to(theirs)
            path = "~/.tmda/link"
        case _:
            (home.tmda / "link").symlink_to(theirs.parent)
            path = "~/.tmda/link/list"
    if "ezmlm" in rule or "mailman" in rule:
        theirs.unlink()
        (theirs / "subscribers").mkdir(parents=True)
        (theirs / "subscribers/4").write_text(f"T{TO}\0")
        (theirs / "config.pck").write_bytes(pickle.dumps({"members": {TO: 0}}, 2))
    if '"' not in path and " " in path and "include" not in rule:
        path = f'"{path}"'
    before = sorted(theirs.parent.iterdir())
    said = ann(rules=rule.format(path) + "\nto * bare\n")
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing")
    assert "stolen" not in said
    assert sorted(theirs.parent.iterdir()) == before
    assert hosting.sendmail.runs() == []


@pytest.mark.parametrize("name", ["BARE_APPEND", "LOGFILE_OUTGOING"])
@pytest.mark.parametrize("way", ["named", "by a link", "by a link to the directory"])
def test_what_is_written_must_be_below_the_user_s_own_home(way, name, ann, hosting):
    """TO-109, TO-110."""
    home = hosting.house("ann@a.example")
    theirs = hosting.directory / "homes/a.example/bob/.tmda/list"
    before = theirs.read_bytes()
    path = "~/.tmda/link"
    match way:
        case "named":
            path = str(theirs)
        case "by a link":
            (home.tmda / "link").symlink_to(theirs)
        case _:
            (home.tmda / "link").symlink_to(theirs.parent)
            path = "~/.tmda/link/new"
    said = ann(f'{name} = "{path}"', rules="to * bare=append\n")
    assert said.startswith("451 4.3.5 Error in your TMDA files: config line ")
    assert said.endswith(f"{name} must be below your home here")
    assert theirs.read_bytes() == before
    assert not (theirs.parent / "new").exists()
    assert hosting.sendmail.runs() == []


def test_a_link_that_comes_after_the_configuration_was_read_leads_nowhere_either(ann, hosting):
    lines = ('BARE_APPEND = "~/.tmda/friends"', 'LOGFILE_OUTGOING = "~/.tmda/log"')
    assert ann(*lines, rules="to * bare=append\n").startswith("250")
    home = Home(hosting.directory / "homes/a.example/ann")
    theirs = hosting.directory / "homes/a.example/bob/.tmda/list"
    before = theirs.read_bytes()
    for name in ("friends", "log"):
        (home.tmda / name).unlink()
        (home.tmda / name).symlink_to(theirs)
    assert ann(*lines, rules="to * bare=append\n").startswith("451 4.3.5 ")
    assert theirs.read_bytes() == before


def test_lists_and_logs_below_the_own_home_work(ann, hosting):
    """TO-96, TO-109, TO-110: also by a link that stays there; the modes are private."""
    home = hosting.house("ann@a.example")
    home.write("real/auto", f"{TO} ext=auto\n")
    (home.tmda / "lists").symlink_to("real")
    home.write("more", "to-file -autocdb ~/.tmda/lists/auto bare\n")
    lines = ('BARE_APPEND = "~/.tmda/lists/friends"', 'LOGFILE_OUTGOING = "~/.tmda/lists/log"')
    rules = "to-file -optional ~/.tmda/lists/friends tag from ext=${WORD}\n"
    rules += "include -optional .tmda/later\nto * bare=append\n"
    assert ann(*lines, 'WORD = "friend"', rules=rules).startswith("250")
    assert (home.tmda / "real/friends").read_text() == f"{TO}\n"
    assert ann(*lines, 'WORD = "friend"', rules=rules).startswith("250")
    home.write("later", "include .tmda/more\n")
    (home.tmda / "real/friends").unlink()
    assert ann(*lines, 'WORD = "friend"', rules=rules).startswith("250")
    senders = [message.sender.split("@")[0] for message in hosting.sendmail.messages()]
    assert sorted(senders) == ["bobby", "bobby-auto", "bobby-friend"]
    assert (home.tmda / "real/log").read_text().count("Subj: hello") == 3
    for name in ("friends", "log", "auto.cdb"):
        if (home.tmda / "real" / name).exists():
            assert stat.S_IMODE((home.tmda / "real" / name).stat().st_mode) == 0o600
    assert (home.tmda / "real/auto.cdb").exists()


@pytest.mark.parametrize("rule", ["to-file {} bare", "include {}", "to-mailman -attr=m {}.d bare"])
def test_a_huge_file_costs_the_others_no_memory(rule, start, hosting):
    """All users share the process."""
    hosting.passwords("ann@a.example")
    home = hosting.house("ann@a.example")
    for name in ("huge", "huge.d/config.pck"):
        home.write(name, "")
        os.truncate(home.tmda / name, 200 << 20)
    home.write("filters/outgoing", rule.format("~/.tmda/huge") + "\nto * bare\n")
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    assert send(daemon, "ann@a.example").startswith("451 4.3.5 ")
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert peak is not None
    assert int(peak[1]) < 150_000


def test_a_damaged_mailing_list_costs_the_others_nothing(start, hosting):
    """A pickle can ask for room without end by a few octets."""
    hosting.passwords("ann@a.example")
    home = hosting.house("ann@a.example")
    home.write("mm/config.pck", "")
    # The value of the list shall be remembered as number 2^25.
    (home.tmda / "mm/config.pck").write_bytes(b"\x80\x02]r\x00\x00\x00\x02.")
    home.write("filters/outgoing", "to-mailman -attr=members ~/.tmda/mm bare\n")
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)
    assert send(daemon, "ann@a.example").startswith("451 4.3.5 ")
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert peak is not None
    assert int(peak[1]) < 200_000


# What only the site's configuration knows.

SITE_SECRETS = """\
import sqlite3
MAIL_TRANSPORT = "smtp"
SMTPHOST = "127.0.0.1:{port}"
SMTPAUTH_USERNAME, SMTPAUTH_PASSWORD = "site", "TheSitesOwnSecret"
db_password = "TheSitesOtherSecret"
DB_CONNECTION = sqlite3.connect("{database}")
"""


@pytest.fixture
def secretive(start, hosting, hop, tmp_path) -> Callable[..., str]:
    """As ``ann``; the site's configuration has secrets, and a database with one more."""
    database = tmp_path / "site.sqlite"
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("CREATE TABLE users (address TEXT, secret TEXT)")
        connection.execute("INSERT INTO users VALUES ('*', 'TheSecretOfTheDatabase')")
    connection.close()
    site = hosting.directory / "tmdarc"
    site.write_text(SITE_SECRETS.format(port=hop.port, database=database))
    hop.keywords = (*hop.keywords, "AUTH PLAIN")
    hop.refuse["AUTH"] = b"235 2.7.0 Ok"
    hosting.passwords("ann@a.example")
    home = hosting.house("ann@a.example")
    daemon = start(hosting.person, *hosting.options, variables=hosting.variables)

    def secretive(*lines: str, rules: str = "") -> str:
        home.write("config", "\n".join(["", *lines, ""]))
        home.write("filters/outgoing", rules)
        return send(daemon, "ann@a.example")

    yield secretive
    hop.keywords = tuple(word for word in hop.keywords if word != "AUTH PLAIN")


@pytest.mark.parametrize("name", ["SMTPAUTH_PASSWORD", "db_password", "DB_PASSWORD"])
def test_a_filter_has_no_variable_of_the_site_s_secrets(name, secretive, hop):
    said = secretive(rules=f'to * tag x-leak "${{{name}}}"\n')
    assert said.startswith(("250", "451 4.3.5 "))
    assert "Secret" not in said
    assert not any(b"Secret" in stored.octets for stored in hop.messages())


@pytest.mark.parametrize("rule", ["include {}", "to-file {} bare", "include -optional {}"])
@pytest.mark.parametrize("name", ["CRYPT_KEY_FILE", "LOGFILE_OUTGOING", "the site's file"])
def test_a_filter_does_not_open_what_the_site_has_named(name, rule, secretive, hosting, hop):
    """The errors of a rule quote what was read."""
    site = hosting.directory / "tmdarc"
    path = hosting.directory / "of-the-site"
    path.write_text("5ec7e7\n" if name == "CRYPT_KEY_FILE" else "* 5ec7e7\n")
    path.chmod(0o600)
    if name == "the site's file":
        site.write_text("x5ec7e7=1\n" + site.read_text())
        path = site
    else:
        site.write_text(f'{site.read_text()}{name} = "{path}"\n')
    named = f'"{path}"' if rule.startswith("to-file") else path
    said = secretive(rules=rule.format(named) + "\n")
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing")
    assert "5ec7e7" not in said


@pytest.mark.parametrize(
    "rule",
    [
        'to-sql -wildcards "SELECT address, secret FROM users" bare',
        "to-sql -addr_column=1 -action_column=secret"
        ' "SELECT secret FROM users WHERE %(criteria)s OR 1" bare',
    ],
)
def test_a_filter_does_not_ask_the_site_s_database(rule, secretive, hop):
    """What it says would be quoted in an error."""
    assert "Secret" not in secretive(rules=f"{rule}\n")


def test_nobody_writes_into_the_site_s_database(secretive, hosting, tmp_path):
    secretive('DB_BARE_APPEND = "DELETE FROM users"', rules="to * bare=append\n")
    connection = sqlite3.connect(tmp_path / "site.sqlite")
    assert connection.execute("SELECT COUNT(*) FROM users").fetchone() == (1,)
    connection.close()


def test_the_site_s_password_goes_to_no_host_that_a_user_names(secretive, hop):
    assert secretive().startswith("250")
    assert any(command.startswith("AUTH") for command in hop.commands)
    with raw_hop(keywords=("AUTH PLAIN", "8BITMIME")) as other:
        secretive(f'SMTPHOST = "{HOST}:{other.port}"')
        assert not any(command.startswith("AUTH") for command in other.commands)


def test_the_site_s_password_does_not_go_the_way_that_a_user_chooses(secretive, hop):
    """He could have it sent without TLS."""
    secretive('SMTPTLS = "off"')
    assert not any(command.startswith("AUTH") for command in hop.commands)
