"""Virtual users in global mode: -S says where they live, -v with whose rights their mail leaves."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import Dialogue, dialogue, plain, submit
from hops import Sendmail, make_sendmail
from running import HOST, KEY, Daemon, Home, to_program, to_smtp, tofmipd, usual_umask, wait_until
from village import Village, Villager, children

pytestmark = pytest.mark.root

PASSWORD = "Virtual-FooBar"
TO = "x@example.net"
CONTRIB = Path(__file__).parents[2] / "contrib/vhome"
# What a shell adds to the environment that it was given.
OF_THE_SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}

# Writes down who runs it and with what, then tells a home by the names of user and domain.
SCRIPT = """\
#!/bin/sh
cd {records} || exit 70
{{ id -u; id -G; echo "$#"; printf '%s\\n' "$@"; }} > new.$$
env | grep -v -E '^(PWD|OLDPWD|SHLVL|_)=' >> new.$$
mv new.$$ asked.$$
{answer}
"""
USUAL_ANSWER = "printf '%s\\n' \"$HOME/users/$2/$1\""


@dataclass(frozen=True)
class Hosting:
    """A village with virtual users; ``sendmail`` is where the mail of all of them goes."""

    village: Village
    directory: Path
    sendmail: Sendmail

    @property
    def domains(self) -> Path:
        return self.directory / "virtualdomains"

    @property
    def script(self) -> Path:
        return self.directory / "vhome größer"

    @property
    def records(self) -> Path:
        return self.directory / "records"

    def assign(self, *lines: str) -> None:
        """Replace the file of -v.  Nobody but root may read it."""
        new = self.directory / "virtualdomains.new"
        new.write_text("".join(f"{line}\n" for line in lines))
        new.chmod(0o600)
        new.replace(self.domains)

    def answer(self, lines: str = USUAL_ANSWER) -> None:
        """Replace what the script does after it has written everything down."""
        self.script.write_text(SCRIPT.format(records=self.records, answer=lines))
        self.script.chmod(0o755)

    def passwords(self, *logins: str) -> None:
        self.village.write_passwords(dict.fromkeys(logins, PASSWORD))

    def house(self, owner: Villager, login: str, *lines: str) -> Home:
        """Make a virtual user's home where the script says, with ``lines`` as his settings."""
        user, _, domain = login.partition("@")
        home = Home(owner.home.path / "users" / domain / user)
        home.write("crypt_key", KEY + "\n")
        home.write("filters/outgoing", "")
        home.write("config", "\n".join([to_program(self.sendmail.path), *lines, ""]))
        owner.own()
        return home

    def options(self, *options: str) -> tuple[str, ...]:
        return ("-S", str(self.script), "-v", str(self.domains), *options)

    def daemon(
        self, *options: str, variables: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[Daemon]:
        return self.village.daemon(*self.options(*options), variables=variables)

    def asked(self) -> list[tuple[str, str, list[str], dict[str, str]]]:
        """Each run of the script: uid, groups, arguments, environment."""
        result = []
        for path in sorted(self.records.glob("asked.*"), key=lambda path: path.stat().st_mtime_ns):
            uid, groups, count, *lines = path.read_text().splitlines()
            arguments, variables = lines[: int(count)], lines[int(count) :]
            result.append((uid, groups, arguments, dict(x.split("=", 1) for x in variables)))
        return result

    def owners(self) -> list[int]:
        """The uids that the sendmail program has run as."""
        return [path.stat().st_uid for path in self.sendmail.directory.glob("*.message")]


@pytest.fixture
def hosting(village: Village) -> Iterator[Hosting]:
    directory = village.directory / "hosting"
    with usual_umask():
        made = Hosting(village, directory, make_sendmail(directory / "out"))
        made.sendmail.directory.chmod(0o777)
        made.records.mkdir()
        made.records.chmod(0o777)
        made.answer()
        made.assign()
        yield made
    shutil.rmtree(directory)
    for person in village.people:
        shutil.rmtree(person.home.path / "users", ignore_errors=True)


def send(daemon: Daemon, login: str, to: str = TO, message: bytes | None = None) -> str:
    return submit(daemon.port, to, message=message, login=login, password=PASSWORD)


def attempt(daemon: Daemon, login: str) -> str:
    """The reply to a login with the right password."""
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        return talk.say(f"AUTH PLAIN {plain(login, PASSWORD)}")


def test_a_virtual_user_s_mail_goes_out_as_the_owner_of_his_domain(hosting):
    """TO-83, TO-84: three forms of lines, the first that fits counts."""
    bobby, chloe, dora = hosting.village.people
    hosting.assign(
        "# of qmail",
        f"A.Example:{bobby.name}  # a comment",
        f"  .b.example : {chloe.name} ",
        "",
        f"ann@c.example:{dora.name}",
        f"c.example:{bobby.name}",
        f"ann@c.example:{chloe.name}",
    )
    owners = {
        "ann@a.example": bobby,
        "änne@a.example": bobby,
        "ann@x.b.example": chloe,
        "ann@x.y.b.example": chloe,
        "ann@c.example": dora,
        "bob@c.example": bobby,
    }
    hosting.passwords(*owners)
    homes = {login: hosting.house(owner, login) for login, owner in owners.items()}
    with hosting.daemon() as daemon:
        for login, owner in owners.items():
            to = f"to-{login}".replace("@", "=").replace("ä", "ae") + "@example.net"
            assert send(daemon, login.upper(), to).startswith("250")
            runs = hosting.sendmail.runs()
            ((_, environment, _),) = [run for run in runs if to in run[0]]
            assert environment["HOME"] == str(homes[login].path)
            assert environment["LOGIN"] == login
            (path,) = hosting.sendmail.directory.glob(f"*{_run_of(hosting, to)}.message")
            assert path.stat().st_uid == owner.uid
            assert path.stat().st_gid == owner.gid


def test_what_waits_of_a_virtual_user_goes_out_as_all_his_mail(hosting):
    """Each login has an outbox of its own, which belongs to the owner of its domain."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    logins = ("ann@a.example", "änne@a.example")
    hosting.passwords(*logins)
    homes = [hosting.house(bobby, login) for login in logins]
    hosting.sendmail.exit_with(75)
    with hosting.daemon("--spool", "--queue-retry", "1s") as daemon:
        for login in logins:
            assert send(daemon, login).startswith("250")
        for login in logins:
            daemon.says(f"outbox of {login!r}: ", "deferred to=")
        (hosting.sendmail.directory / "status").unlink()
        for login in logins:
            daemon.says(f"outbox of {login!r}: ", "sent to=")
    assert {path.name: path.stat().st_uid for path in hosting.village.outboxes.iterdir()} == {
        f"{bobby.name}:ann@a.example": bobby.uid,
        f"{bobby.name}:%C3%A4nne@a.example": bobby.uid,
    }
    last = [environment["HOME"] for _, environment, _ in hosting.sendmail.runs()]
    assert set(last) == {str(home.path) for home in homes}
    assert set(hosting.owners()) == {bobby.uid}


def _run_of(hosting: Hosting, to: str) -> str:
    """The number of the run of the sendmail program for a recipient."""
    for path in hosting.sendmail.directory.glob("*.arguments"):
        if to in path.read_text().splitlines():
            return path.name.split(".")[1]
    raise AssertionError(to)


def test_a_login_that_is_nobody_s_is_refused_and_the_log_says_why(hosting):
    """TO-84, TO-6."""
    bobby, chloe, _ = hosting.village.people
    hosting.assign(
        f"a.example:{bobby.name}",
        f".b.example:{chloe.name}",
        f"ann@c.example:{bobby.name}",
        "root.example:root",
        "system.example:daemon",
        "nobody.example:there-is-no-such-account",
        f"service.example:{hosting.village.service}",
    )
    reasons = {
        "ann@d.example": "is in no virtual domain",
        "ann@x.a.example": "is in no virtual domain",
        "ann@a.example.net": "is in no virtual domain",
        "ann@xa.example": "is in no virtual domain",
        "ann@b.example": "is in no virtual domain",
        "ann@x.b.example.net": "is in no virtual domain",
        "ann@xb.example": "is in no virtual domain",
        "bob@c.example": "is in no virtual domain",
        "ann@c.example@a.example": "is in no virtual domain",
        "ann": "is in no virtual domain",
        "ann@": "is in no virtual domain",
        bobby.name: "is in no virtual domain",
        "ann@root.example": "has the uid or gid of root",
        "ann@system.example": "below --min-uid 1000",
        "ann@nobody.example": "is no account of this system",
        "ann@service.example": "uid",
    }
    hosting.passwords(*reasons)
    with hosting.daemon() as daemon, ThreadPoolExecutor(len(reasons)) as pool:
        for said in pool.map(lambda login: attempt(daemon, login), reasons):
            assert said.startswith("535 5.7.8")
        for login, reason in reasons.items():
            daemon.says("WARNING", f"user={login!r} may not log in: ", reason)
            daemon.says("auth rejected", f"reason=account user={login!r}")
        assert children(daemon.pid, "worker") == []
    assert hosting.asked() == []


def test_a_login_without_a_user_is_refused(hosting):
    """As in personal mode: there is nobody whom the script could know."""
    hosting.assign(f"a.example:{hosting.village.people[0].name}")
    hosting.passwords("@a.example")
    with hosting.daemon() as daemon:
        assert attempt(daemon, "@a.example").startswith("535")
        daemon.says("auth rejected", "reason=account")


def test_programs_of_a_virtual_user_get_his_home_and_little_else(hosting):
    """TO-83, TO-87."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    hosting.passwords("ann@a.example")
    home = hosting.house(bobby, "ann@a.example")
    with hosting.daemon(variables={"SECRET": "x", "VUSERDIR": "/root", "TMDARC": "/x"}) as daemon:
        assert send(daemon, "ann@a.example").startswith("250")
    ((_, environment, _),) = hosting.sendmail.runs()
    assert {k: v for k, v in environment.items() if k not in {*OF_THE_SHELL, "PATH"}} == {
        "HOME": str(home.path),
        "LOGIN": "ann@a.example",
        "LOGNAME": "ann@a.example",
        "USER": "ann@a.example",
        "TCPLOCALIP": HOST,
    }


def test_the_script_runs_as_the_owner_and_gets_user_and_domain(hosting):
    """TO-83, TO-85."""
    bobby, chloe, _ = hosting.village.people
    hosting.assign(f"a.example:{bobby.name}", f"b.example:{chloe.name}")
    logins = {"ann@a.example": bobby, "bob@b.example": chloe}
    hosting.passwords(*logins)
    for login, owner in logins.items():
        hosting.house(owner, login)
    with hosting.daemon(variables={"SECRET": "x", "LC_ALL": "C"}) as daemon:
        for login in logins:
            assert send(daemon, login).startswith("250")
    for (uid, groups, arguments, environment), (login, owner) in zip(
        hosting.asked(), logins.items(), strict=True
    ):
        assert int(uid) == owner.uid
        assert sorted(map(int, groups.split())) == sorted(os.getgrouplist(owner.name, owner.gid))
        assert arguments == login.split("@")
        assert environment.pop("PATH")
        assert environment == {"HOME": str(owner.home.path), "TCPLOCALIP": HOST}


@pytest.mark.parametrize(
    "user",
    ["a b", "$(touch x)", "`touch x`", "ann;touch x", "*", "a'b\"c", "a\\nb", "a&b|c>x", "ä%s"],
)
def test_there_is_no_shell_between_a_login_and_the_script(user, hosting):
    """TO-83."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    login = f"{user}@a.example"
    hosting.passwords(login)
    home = hosting.house(bobby, login)
    with hosting.daemon() as daemon:
        assert send(daemon, login).startswith("250")
    ((_, _, arguments, _),) = hosting.asked()
    assert arguments == [user, "a.example"]
    ((_, environment, _),) = hosting.sendmail.runs()
    assert environment["HOME"] == str(home.path)
    assert not any((path / "x").exists() for path in (Path("/"), hosting.records, home.path))


def test_the_home_may_depend_on_the_address_that_the_client_has_chosen(hosting):
    """TO-85: TCPLOCALIP."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    hosting.passwords("ann@a.example")
    homes = [hosting.house(bobby, f"ann@{ip}", f'USERNAME = "{ip}"') for ip in (HOST, "127.0.0.2")]
    hosting.answer('echo "$HOME/users/$TCPLOCALIP/$1"')
    running = tofmipd(
        Home(hosting.village.directory),
        *hosting.village.options(*hosting.options()),
        listen=("-p", f"{HOST}:0", "-p", "127.0.0.2:0"),
        program=hosting.village.program,
        variables=hosting.village.variables,
    )
    with running as daemon:
        for host, port in daemon.places * 2:
            with dialogue(port, host) as talk:
                talk.log_in("ann@a.example", PASSWORD)
                talk.envelope(TO)
                assert talk.data(b"Subject: x\r\n\r\nx\r\n.\r\n").startswith("250")
    found = sorted((env["TCPLOCALIP"], env["HOME"]) for _, env, _ in hosting.sendmail.runs())
    wanted = [(HOST, str(homes[0].path)), ("127.0.0.2", str(homes[1].path))]
    assert found == sorted(wanted * 2)
    senders = {message.sender.split("-")[0] for message in hosting.sendmail.messages()}
    assert senders == {HOST, "127.0.0.2"}
    # An answer holds for the messages after it, for its own address.
    assert sorted(env["TCPLOCALIP"] for _, _, _, env in hosting.asked()) == [HOST, "127.0.0.2"]


def test_each_virtual_user_of_a_domain_has_a_configuration_key_and_process_of_his_own(hosting):
    """TO-83."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    logins = ("ann@a.example", "bob@a.example", "eve@a.example")
    hosting.passwords(*logins)
    homes = [hosting.house(bobby, login) for login in logins]
    homes[1].write("crypt_key", "ff" * 20 + "\n")
    homes[2].write("filters/outgoing", "to * ext=eve\n")
    for home in homes[:2]:
        home.write("filters/outgoing", "to * sender\n")
    bobby.own()
    with hosting.daemon() as daemon:
        for login in logins:
            assert send(daemon, login).startswith("250")
        assert len(children(daemon.pid, "worker")) == 3
    tags = {
        env["LOGIN"]: arguments[arguments.index("-f") + 1]
        for arguments, env, _ in hosting.sendmail.runs()
    }
    first, second, third = (tags[login] for login in logins)
    assert re.fullmatch(r"bobby-sender-[0-9a-f]{6}@example\.org", first)
    assert re.fullmatch(r"bobby-sender-[0-9a-f]{6}@example\.org", second)
    assert first != second
    assert third == "bobby-eve@example.org"


# How a script can fail, by the name of the user, and what the log says of it.
FAILURES = {
    "fails": ("exit 1", "ended with 1 for 'fails@a.example': ''"),
    "speaks": ("echo no such user; exit 3", "ended with 3 for 'speaks@a.example': 'no such user'"),
    "dies": ("kill -9 $$", "ended with -9"),
    "hangs": ('echo $$ > "pid.$1"; exec sleep 60', "did not end within 1 s"),
    "forks": ('echo $$ > "pid.$1"; sleep 60; echo /', "did not end within 1 s"),
    "silent": ("exit 0", "printed no home for 'silent@a.example', but ''"),
    "blank": ("printf ' \\n\\n'", "printed no home"),
    "nonsense": ("echo nonsense", "but 'nonsense'"),
    "relative": ("echo users/ann", "but 'users/ann'"),
    "two": ("echo /a; echo /b", r"but '/a\n/b'"),
    "control": ("printf '/a\\033[31m\\n'", r"but '/a\x1b[31m'"),
    "latin": ("printf '/a\\344\\n'", r"but '/a\udce4'"),
    "endless": ("exec yes", "did not end within 1 s"),
}


def test_a_script_that_fails_defers_the_mail_and_the_log_says_how(hosting):
    """TO-83."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    cases = "".join(f"{user}) {lines} ;;\n" for user, (lines, _) in FAILURES.items())
    hosting.answer(f'case $1 in\n{cases}*) echo "$HOME/users/$2/$1" ;;\nesac')
    hosting.passwords("ann@a.example", *(f"{user}@a.example" for user in FAILURES))
    hosting.house(bobby, "ann@a.example")
    with hosting.daemon("--script-timeout", "1") as daemon, ThreadPoolExecutor(20) as pool:
        logins = [f"{user}@a.example" for user in FAILURES]
        said = list(pool.map(lambda login: send(daemon, login), logins))
        assert said == ["451 4.3.5 Error: your home directory cannot be found"] * len(logins)
        for _, reason in FAILURES.values():
            daemon.says("ERROR", " deferred: ", f"{hosting.directory}/vhome", reason)
        assert send(daemon, "ann@a.example").startswith("250")
        # What was started is gone, too.
        for user in ("hangs", "forks"):
            pid = (hosting.records / f"pid.{user}").read_text().strip()
            wait_until(lambda pid=pid: not Path("/proc", pid).exists(), f"the end of {pid}")
    assert hosting.owners() == [bobby.uid]


def test_a_script_that_knows_better_after_a_while_is_asked_again(hosting):
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    hosting.passwords("ann@a.example")
    hosting.house(bobby, "ann@a.example")
    hosting.answer("exit 1")
    with hosting.daemon() as daemon, session(daemon, "ann@a.example") as talk:
        assert one_more(talk).startswith("451")
        hosting.answer()
        assert one_more(talk).startswith("250")


@contextlib.contextmanager
def session(daemon: Daemon, login: str) -> Iterator[Dialogue]:
    with dialogue(daemon.port) as talk:
        talk.log_in(login, PASSWORD)
        yield talk


def one_more(talk: Dialogue) -> str:
    """Send a message; the reply."""
    talk.envelope(TO)
    return talk.data(b"Subject: x\r\n\r\nx\r\n.\r\n")


def test_a_virtual_user_without_a_configuration_is_told_so_or_passed_through(hosting):
    """TO-80, TO-81."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    hosting.passwords("ann@a.example", "bob@a.example")
    hosting.house(bobby, "bob@a.example")
    with hosting.daemon() as daemon:
        assert send(daemon, "ann@a.example").startswith("554 5.3.5 You have no TMDA configuration")
    program = {"TMDA_SENDMAIL_PROGRAM": str(hosting.sendmail.path)}
    with hosting.daemon("-P", variables=program) as daemon:
        assert send(daemon, "ann@a.example").startswith("250")
        ((arguments, environment, _),) = hosting.sendmail.runs()
        assert arguments == ["-f", "bobby@example.org", "-i", "--", TO]
        assert environment["HOME"] == f"{bobby.home.path}/users/a.example/ann"
        assert send(daemon, "bob@a.example").startswith("250")
    assert hosting.owners() == [bobby.uid] * 2
    tagged = [m for m in hosting.sendmail.messages() if m.sender.startswith("bobby-dated-")]
    assert len(tagged) == 1


def test_changes_of_the_domains_count_from_the_next_login_on(hosting):
    """TO-84: the file is root's alone, and the daemon's auth is not root."""
    bobby, chloe, _ = hosting.village.people
    hosting.passwords("ann@a.example", "ann@b.example")
    hosting.assign(f"a.example:{bobby.name}")
    assert hosting.domains.stat().st_mode & 0o777 == 0o600
    hosting.house(bobby, "ann@a.example")
    hosting.house(chloe, "ann@b.example")
    with hosting.daemon() as daemon:
        assert send(daemon, "ann@a.example").startswith("250")
        assert attempt(daemon, "ann@b.example").startswith("535")
        hosting.assign(f"a.example:{bobby.name}", f"b.example:{chloe.name}", "nonsense", ":x")
        assert send(daemon, "ann@b.example").startswith("250")
        daemon.says("virtual domains read again")
        daemon.says("WARNING", f"{hosting.domains}:3: not domain:owner, the line is skipped")
        daemon.says("WARNING", f"{hosting.domains}:4: not domain:owner")
        hosting.assign(f"a.example:{bobby.name}")
        assert attempt(daemon, "ann@b.example").startswith("535")
        hosting.domains.unlink()
        assert send(daemon, "ann@a.example").startswith("250")
        daemon.says("ERROR", f"{hosting.domains}: unchanged in memory: No such file")
    assert sorted(hosting.owners()) == sorted([bobby.uid, chloe.uid, bobby.uid])


def test_a_domain_that_is_given_away_has_its_mail_sent_by_the_new_owner(hosting):
    bobby, chloe, _ = hosting.village.people
    hosting.passwords("ann@a.example")
    hosting.assign(f"a.example:{bobby.name}")
    for owner in (bobby, chloe):
        hosting.house(owner, "ann@a.example")
    with hosting.daemon() as daemon:
        assert send(daemon, "ann@a.example").startswith("250")
        assert hosting.owners() == [bobby.uid]
        hosting.assign(f"a.example:{chloe.name}")
        assert send(daemon, "ann@a.example").startswith("250")
    assert sorted(hosting.owners()) == sorted([bobby.uid, chloe.uid])


def test_changes_count_also_where_only_root_may_look_into_the_directory(hosting):
    bobby = hosting.village.people[0]
    closed = hosting.directory / "closed"
    closed.mkdir()
    closed.chmod(0o700)
    domains = closed / "virtualdomains"
    domains.write_text(f"a.example:{bobby.name}\n")
    hosting.passwords("ann@a.example", "ann@b.example")
    options = ("-S", str(hosting.script), "-v", str(domains))
    with hosting.village.daemon(*options) as daemon:
        assert attempt(daemon, "ann@a.example").startswith("235")
        domains.write_text(f"a.example:{bobby.name}\nb.example:{bobby.name}\n")
        assert attempt(daemon, "ann@b.example").startswith("235")


@pytest.mark.parametrize("name", ["missing", "directory", "closed/größer"])
def test_a_file_of_domains_that_cannot_be_read_is_an_error_at_the_start(name, hosting):
    """TO-84."""
    (hosting.directory / "directory").mkdir()
    path = hosting.directory / name
    options = ("-f", "-p", f"{HOST}:0", "-S", str(hosting.script), "-v", str(path))
    done = hosting.village.run(*hosting.village.options(*options))
    assert done.returncode == os.EX_CONFIG
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"tofmipd: cannot read {path}: ")
    assert last.endswith("; name the file with -v")


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [("missing", 0, "is not there"), ("script", 0o644, "cannot be executed (chmod 755)")],
)
def test_a_script_that_cannot_be_run_is_an_error_at_the_start(name, mode, words, hosting):
    """TO-83."""
    path = hosting.directory / name
    if mode:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    options = ("-f", "-p", f"{HOST}:0", "-S", str(path), "-v", str(hosting.domains))
    done = hosting.village.run(*hosting.village.options(*options))
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == f"tofmipd: {path} {words}; -S names a program\n"


# What a site's configuration, and a user's own, see of a virtual user.
SITE = """\
import os
ADDED_HEADERS_CLIENT = {"X-Site": os.environ["VUSERDIR"] + " " + os.environ["VDOMAIN"]}
"""
OWN = """\
import os
USERNAME, HOSTNAME = os.path.basename(os.environ["VUSERDIR"]), os.environ["VDOMAIN"]
ACTION_OUTGOING = "ext=" + USERNAME
"""


def test_configurations_see_where_a_virtual_user_lives(hosting, village_hop):
    """TO-85: VUSERDIR and VDOMAIN."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}", f"b.example:{bobby.name}")
    logins = ("ann@a.example", "bob@a.example", "ann@b.example")
    hosting.passwords(*logins)
    homes = [hosting.house(bobby, login, OWN, to_smtp(village_hop.port)) for login in logins]
    site = hosting.directory / "tmdarc"
    site.write_text(SITE)
    with hosting.daemon(variables={"GLOBAL_TMDARC": str(site)}) as daemon:
        for login, home in zip(logins, homes, strict=True):
            user, _, domain = login.partition("@")
            reply = send(daemon, login, f"{user}@{domain}.net", b"Subject: x\r\n\r\nx\r\n")
            assert reply.startswith("250")
            stored = village_hop.message(f"{user}@{domain}.net")
            assert stored.value("X-Site") == f"{home.path} {domain}"
            assert stored.sender == f"{user}-{user}@{domain}"


def test_home_leads_a_virtual_user_s_configuration_to_his_own_home(hosting, village_hop):
    """TO-83: HOME is set to it."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    hosting.passwords("ann@a.example")
    lines = ("import os", 'ADDED_HEADERS_CLIENT = {"X-Home": os.path.expanduser("~")}')
    home = hosting.house(bobby, "ann@a.example", *lines, to_smtp(village_hop.port))
    with hosting.daemon() as daemon:
        assert send(daemon, "ann@a.example").startswith("250")
    assert village_hop.message(TO).value("X-Home") == str(home.path)


def test_lists_commands_and_logs_of_a_virtual_user_are_in_his_home_and_his_owner_s(
    hosting, village_hop
):
    """TO-87, TO-96, TO-109, TO-110."""
    bobby, chloe, _ = hosting.village.people
    hosting.assign(f"a.example:{bobby.name}", f"b.example:{chloe.name}")
    owners = {"ann@a.example": bobby, "bob@a.example": bobby, "ann@b.example": chloe}
    hosting.passwords(*owners)
    lines = ('BARE_APPEND = "friends"', 'LOGFILE_OUTGOING = "~/log"', to_smtp(village_hop.port))
    rules = (
        "to-file -autocdb ${HOME}/list bare\n"
        'to b@* tag from bare x-out "shell=id -u; env > env; pwd"\n'
        "to * bare=append\n"
    )
    homes = {login: hosting.house(owner, login, *lines) for login, owner in owners.items()}
    for login, home in homes.items():
        (home.path / "list").write_text(f"c-{login} ext=list\n")
        home.write("filters/outgoing", rules)
        owners[login].own()
    with hosting.daemon() as daemon:
        for login, home in homes.items():
            uid = owners[login].uid
            for to in (f"c-{login}", "b@example.net", "d@example.net"):
                assert send(daemon, login, to).startswith("250")
            assert village_hop.message(f"c-{login}").sender == "bobby-list@example.org"
            out = village_hop.messages()[-2].value("X-Out")
            assert out == f"{uid} {home.path}"
            assert (home.path / "friends").read_text() == "d@example.net\n"
            assert (home.path / "log").read_text().count("  To: ") == 3
            for name in ("list.cdb", "friends", "log", "env"):
                made = (home.path / name).stat()
                assert (made.st_uid, made.st_mode & 0o777) == (uid, 0o600), name
            text = (home.path / "env").read_text()
            environment = dict(line.split("=", 1) for line in text.splitlines())
            assert {k: v for k, v in environment.items() if k not in {*OF_THE_SHELL, "PATH"}} == {
                "HOME": str(home.path),
                "LOGIN": login,
                "LOGNAME": login,
                "USER": login,
                "TCPLOCALIP": HOST,
                "TMDA_RECIPIENT": "b@example.net",
                "TMDA_VRECIPIENT": "b=example.net",
            }


def test_lists_of_another_owner_s_virtual_users_are_out_of_reach(hosting, village_hop):
    """TO-96: below homes that others may enter, too."""
    bobby, chloe, _ = hosting.village.people
    hosting.assign(f"a.example:{bobby.name}", f"b.example:{chloe.name}")
    hosting.passwords("ann@a.example")
    theirs = hosting.house(chloe, "ann@b.example").write("list", f"{TO} ext=stolen\n")
    chloe.own()
    home = hosting.house(bobby, "ann@a.example", to_smtp(village_hop.port))
    (home.tmda / "link").symlink_to(theirs)
    chloe.home.path.chmod(0o755)
    try:
        with hosting.daemon() as daemon:
            for rule in (f"to-file {theirs} bare", "to-file .tmda/link bare", f"include {theirs}"):
                home.write("filters/outgoing", f"{rule}\nto * ext=no\n")
                bobby.own()
                said = send(daemon, "ann@a.example")
                assert said.startswith(
                    "451 4.3.5 Error in your TMDA files: filters/outgoing line 1"
                )
                assert "stolen" not in said
    finally:
        chloe.home.path.chmod(0o700)
    assert village_hop.messages() == []


def test_an_ordinary_user_s_configuration_sees_no_virtual_home(village, village_hop):
    bobby = village.people[0]
    lines = ("import os", 'ADDED_HEADERS_CLIENT = {"X-Home": str(os.environ.get("VUSERDIR"))}')
    bobby.configure(to_smtp(village_hop.port), *lines)
    with village.daemon(variables={"VUSERDIR": "/root"}) as daemon:
        sent = submit(daemon.port, TO, login=bobby.name, password=bobby.password)
        assert sent.startswith("250")
    assert village_hop.message(TO).value("X-Home") == "None"


def test_the_examples_work_together(hosting):
    """TO-85: contrib/vhome with a program in the place of VMailMgr's."""
    bobby = hosting.village.people[0]
    hosting.assign(f"a.example:{bobby.name}")
    hosting.passwords("ann@a.example", "bob@a.example")
    hosting.house(bobby, "ann@a.example")
    tools = hosting.directory / "bin"
    tools.mkdir()
    program = tools / "listvdomain"
    program.write_text(
        "#!/bin/sh\necho User Mailbox Aliases\n"
        'test "$1" = ann && echo "ann ./users/a.example/ann ann@example.net"\n'
    )
    program.chmod(0o755)
    shutil.copy(CONTRIB / "vhome-vmailmgr", hosting.script)
    site = shutil.copy(CONTRIB / "vtmdarc", hosting.directory)
    variables = {"GLOBAL_TMDARC": str(site), "PATH": f"{tools}:{os.environ['PATH']}"}
    with hosting.daemon(variables=variables) as daemon:
        assert send(daemon, "ann@a.example", message=b"Subject: x\r\n\r\nx\r\n").startswith("250")
        assert send(daemon, "bob@a.example").startswith("451 4.3.5")
    (stored,) = hosting.sendmail.messages()
    assert re.fullmatch(r"ann-dated-[0-9]+\.[0-9a-f]{6}@a\.example", stored.sender)
