"""An administrator's first hour (BX-10): what `tofmipd init` says as root, done as it says it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from accounts import copy_of_program, python_for
from hops import Sendmail, make_sendmail
from machine import Machine, new_machine
from running import usual_umask
from terminal import at_terminal
from test_sources import add_packages

pytestmark = [pytest.mark.root, pytest.mark.peer("unshare", "nsenter", "ip", "setpriv")]

USER, PASSWORD, ADDRESS = "newbie", "Quite-Secret", "newbie@example.org"
FILES = ("/etc/tofmipd.conf", "/etc/tofmipd.d/key.pem", "/etc/tofmipd.d/cert.pem")


@dataclass(frozen=True)
class Place:
    """A machine with an ordinary user; ``tofmipd`` is how the program is called there."""

    machine: Machine
    directory: Path
    sendmail: Sendmail
    tofmipd: str

    @property
    def home(self) -> str:
        return f"{self.directory}/home"

    def as_root(self, words: str, given: str = "") -> str:
        return self.machine.output(f"{self.tofmipd} {words}", given=given)

    def as_user(self, command: str, given: str = "") -> str:
        return self.machine.output(command, USER, self.home, given)


@pytest.fixture
def place() -> Iterator[Place]:
    prefix = "tofmipd-machine-"
    with usual_umask(), tempfile.TemporaryDirectory(prefix=prefix) as name:
        directory = Path(name)
        directory.chmod(0o755)
        variables = add_packages(copy_of_program(directory / "lib"), "pam")
        sendmail = make_sendmail(directory / "program")
        sendmail.directory.chmod(0o777)
        with new_machine(directory, sendmail.path, variables) as machine:
            machine.output(
                f"useradd --create-home --home-dir {directory}/home --user-group {USER}"
                f" && echo {USER}:{PASSWORD} | chpasswd"
            )
            yield Place(machine, directory, sendmail, f"{python_for(65534)} -m tofmipd")


def command(text: str, label: str) -> str:
    (line,) = re.findall(rf"(?m)^{label}: +(.*)$", text)
    return str(line)


def modes(place: Place, *paths: str) -> list[str]:
    return place.machine.output(f"stat -c '%a %U' {' '.join(paths)}").splitlines()


def test_clients_everywhere_log_in_with_the_passwords_of_their_accounts(place):
    told = place.as_root("init --elsewhere --host box.example.org --login pam --sendmail")
    for path in ("account tofmipd", "/etc/pam.d/tofmipd", *FILES):
        assert f"made  {path}\n" in told
    assert modes(place, *FILES) == ["644 root", "600 root", "644 root"]
    assert "server box.example.org, port 465, SSL/TLS\n" in told
    assert "server box.example.org, port 587, STARTTLS\n" in told
    files, send = command(told, "each user"), command(told, "and then")
    place.as_root("check")
    with place.machine.daemon(command(told, "Next"), place.directory / "log"):
        own = place.as_user(f"{files} --address {ADDRESS}")
        assert own.count("made  ") == 3
        send = send.replace("ADDRESS", ADDRESS)
        ways = ["", "--server localhost:587 --ca /etc/tofmipd.d/cert.pem"]
        for number, way in enumerate(ways):
            said = place.as_user(f"{send} {way}", f"{PASSWORD}\n")
            assert f"login:    {USER}\n" in said
            assert "taken:    250 2.0.0 Ok" in said
            assert ("by STARTTLS" if way else "from the first octet") in said
            assert len(place.sendmail.messages()) == number + 1
        stored = place.sendmail.messages()[0]
        assert re.fullmatch(r"newbie-dated-[0-9]{10}\.[0-9a-f]{6}@example\.org", stored.sender)
        wrong = place.machine.run(send, USER, place.home, "wrong\n")
        assert wrong.returncode != 0
        assert "refused: 535" in wrong.stderr
    assert f"{USER}:" not in Path("/etc/passwd").read_text()


def test_a_password_file_and_this_machine_alone_do_as_well(place):
    told = place.as_root("init --login file --smtp 127.0.0.1:2525")
    assert "made  /etc/tofmipd\n" in told
    assert modes(place, "/etc/tofmipd", "/etc/tofmipd.conf") == ["600 root", "644 root"]
    assert "server localhost, port 8025, no encryption\n" in told
    conf = place.machine.output("cat /etc/tofmipd.conf").splitlines()
    assert {"relay 127.0.0.1:2525", "relay-tls off", "authfile /etc/tofmipd"} <= set(conf)
    place.machine.output(command(told, "a login").replace("NAME", USER), given=f"{PASSWORD}\n")
    place.as_root("check")
    with place.machine.daemon(command(told, "Next"), place.directory / "log"):
        init = place.machine.words(f"exec {place.tofmipd} init", USER)
        with at_terminal(init, place.machine.environment(place.home)) as terminal:
            terminal.answer("/etc/tofmipd.conf is there; is its daemon yours, too [yes]", "")
            terminal.answer("Your address", ADDRESS)
            terminal.answer("Your name", "")
            assert terminal.end() == 0
        assert terminal.shown.count("made  ") == 3
        send = command(told, "and then").replace("ADDRESS", ADDRESS)
        # Nobody listens at that next hop.
        sent = place.machine.run(send, USER, place.home, f"{PASSWORD}\n")
        assert "next hop: 127.0.0.1:2525 by SMTP\n" in sent.stdout
        assert "'tofmipd probe' says more about the next hop" in sent.stderr
        # Whose configuration names one has it.
        place.as_user("echo 'MAIL_TRANSPORT = \"sendmail\"' >>~/.tmda/config")
        assert "taken:    250" in place.as_user(send, f"{PASSWORD}\n")
    assert len(place.sendmail.messages()) == 1


def test_a_second_run_keeps_all_and_says_the_same(place):
    machine = place.machine
    machine.output("useradd --system --shell /bin/true tofmipd")
    account = machine.output("getent passwd tofmipd")
    first = place.as_root("init --elsewhere --login file --sendmail")
    assert "kept  account tofmipd\n" in first
    assert machine.output("getent passwd tofmipd") == account
    before = machine.output(f"cat {' '.join(FILES)} /etc/passwd")
    second = place.as_root("init --login pam")
    assert machine.output(f"cat {' '.join(FILES)} /etc/passwd") == before
    assert "made  " not in second
    assert "note  /etc/tofmipd.conf is kept, so --login changes nothing\n" in second
    assert second.partition("\n\n")[2] == first.partition("\n\n")[2]


OBSTACLES = [
    ("ln -s /tmp /etc/tofmipd.d", "rm /etc/tofmipd.d", 73, "a symbolic link to /tmp; nothing is"),
    (
        "mount --bind /bin/false /usr/sbin/useradd",
        "umount /usr/sbin/useradd",
        73,
        "useradd --system --home-dir /nonexistent --no-create-home --shell /nonexistent"
        " --user-group tofmipd: status 1",
    ),
    ("useradd --system --gid 0 tofmipd", "userdel tofmipd", 78, "has the rights of root"),
    ("mount -o remount,ro,bind /etc", "mount -o remount,rw,bind /etc", 73, "useradd"),
]


def test_what_stands_in_the_way_is_said_in_one_line(place):
    def left() -> str:
        return place.machine.output("ls -a /etc | grep -v [.]pwd[.]lock; getent passwd tofmipd; :")

    for prepare, remove, status, said in OBSTACLES:
        place.machine.output(prepare)
        before = left()
        done = place.machine.run(f"{place.tofmipd} init --elsewhere --login file --sendmail")
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert left() == before
        place.machine.output(remove)
