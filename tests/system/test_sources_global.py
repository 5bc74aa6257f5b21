"""Sources of global mode: who asks them with which rights, and what becomes of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import dialogue, plain, submit
from dovecot import POP3, dovecot
from pamservice import HANGING, UNIX, pam_service, set_password
from running import Daemon, wait_until
from slapd import PEOPLE, slapd
from test_sources import (
    LATER,
    NO,
    YES,
    add_packages,
    ask,
    ask_all,
    helper_of,
    lives,
    make_checker,
    timed,
    with_children,
)
from test_tls import mechanisms
from village import Village, children, descriptors, processes, status

pytestmark = [pytest.mark.root, pytest.mark.peer("dovecot", POP3, "slapd")]

TO = "x@example.net"
# The source that knows a password; that of the file is in the village's own.
KINDS = ("checkpassword", "pam", "imap", "ldap")
CLEAR = ["PLAIN", "LOGIN"]
CHALLENGED = ["CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"]


@dataclass(frozen=True)
class Chain:
    """A daemon that asks five kinds of sources; each knows a password of its own."""

    daemon: Daemon
    directory: Path

    @property
    def auth(self) -> int:
        return processes(self.daemon)["auth"]

    @property
    def helper(self) -> int:
        return helper_of(self.auth)


@pytest.fixture(scope="module")
def packages(village_once: Village) -> None:
    """What the sources need, for whatever interpreter all accounts can run."""
    add_packages(village_once.variables, "pam", "ldap3", "pyasn1")


@pytest.fixture(scope="module")
def standing_chain(
    village_once: Village, packages: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    directory = tmp_path_factory.mktemp("chain")
    people = [person.name for person in village_once.people]
    village_once.reset(0)
    for name in (*people, village_once.service):
        set_password(name, "pam")
    with (
        dovecot(users=dict.fromkeys(people, "imap")) as mail,
        slapd(dict.fromkeys(people, "ldap")) as directories,
        pam_service(UNIX) as service,
    ):
        options = (
            *("-A", f"{make_checker(directory)} {directory}", "-m", service),
            *("-R", f"imap://{mail.host}:{mail.port}"),
            *("-R", f"ldap://{directories.host}:{directories.port}/uid=%s,{PEOPLE}"),
        )
        with village_once.daemon(*options, "--source-timeout", "3") as daemon:
            yield Chain(daemon, directory)


@pytest.fixture
def chain(standing_chain: Chain, village: Village) -> Chain:
    standing_chain.daemon.forget()
    return standing_chain


def descendants(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *descendants(child))]


def of_shells(pid: int) -> list[int]:
    """Those descendants of a process that are the shell of the service HANGING."""
    found = []
    for one in descendants(pid):
        with contextlib.suppress(OSError):
            if b"seq 600" in Path(f"/proc/{one}/cmdline").read_bytes():
                found.append(one)
    return found


def test_every_kind_of_source_lets_people_in(chain, village, village_hop):
    bobby = village.people[0]
    passwords = {"file": bobby.password, **dict(zip(KINDS, ("right", *KINDS[1:]), strict=True))}
    for kind, password in passwords.items():
        sent = submit(chain.daemon.port, TO, login=bobby.name, password=password)
        assert sent.startswith("250")
        assert chain.daemon.says("auth accepted", f"source={kind} reason=ok user='{bobby.name}'")
    assert len(village_hop.messages()) == len(passwords)


def test_only_what_all_of_them_can_judge_is_offered(chain):
    """TO-40."""
    with dialogue(chain.daemon.port) as talk:
        assert mechanisms(talk) == CLEAR


def test_who_is_no_user_may_not_log_in_though_a_source_says_yes(chain, village):
    """The reply is that to a wrong password."""
    nobody = f"{village.service}n"
    logins = [(village.service, "pam"), ("root", "right"), (nobody, "right")]
    logins.append((village.people[0].name, "wrong"))
    replies = ask_all([(chain.daemon, *login, 0) for login in logins])
    assert set(replies) == {replies[0]}
    assert replies[0].startswith(NO)
    for name in (village.service, "root", nobody):
        chain.daemon.says(f"user='{name}' may not log in")


def test_the_helper_alone_keeps_root(chain, village):
    """And has nothing open but its channel; a program it starts has its two ends and no more."""
    (chain.directory / "descriptors").unlink(missing_ok=True)
    assert ask(chain.daemon, "looking", "right").startswith(NO)
    uid, _, *links = (chain.directory / "descriptors").read_text().splitlines()
    assert uid == "0"
    targets = [x.split(maxsplit=8)[8].split(" -> ") for x in links]
    assert [n for n, target in targets if "/proc/" not in target] == ["0", "1", "2", "3"]
    assert status(chain.helper)["Uid"].split() == ["0"] * 4
    found = descriptors(chain.helper)
    assert [found.pop(number) for number in (0, 1, 2)] == [os.devnull] * 3
    assert len(found) == 1
    assert status(chain.auth)["Uid"].split() == [str(village.service_uid)] * 4
    assert int(status(chain.auth)["CapEff"], 16) == 0


def test_a_program_that_hangs_delays_nobody_else(chain, village):
    bobby = village.people[0]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(timed, chain.daemon, "hanging", "x")
        wait_until(lambda: children(chain.helper), "the attempt")
        for password in (bobby.password, "right", "pam", "ldap"):
            reply, seconds = timed(chain.daemon, bobby.name, password)
            assert reply == YES
            assert seconds < 2
        reply, seconds = waiting.result()
    assert reply.startswith(LATER)
    assert seconds < 8
    wait_until(lambda: not children(chain.helper), "the end of attempts")


@pytest.mark.parametrize("victim", ["helper", "auth"])
def test_the_helper_and_auth_are_replaced_together(victim, chain, village):
    """A login that finds either of them dead is judged by the next, or told to try again."""
    bobby = village.people[0]
    auth, helper = chain.auth, chain.helper
    with dialogue(chain.daemon.port) as talk:
        talk.say("EHLO client.example")
        os.kill(getattr(chain, victim), signal.SIGKILL)
        reply = talk.say(f"AUTH PLAIN {plain(bobby.name, 'pam')}")
        assert reply.startswith((YES, LATER))
    wait_until(lambda: ask(chain.daemon, bobby.name, "pam") == YES, "logins to work again")
    for pid in (auth, helper):
        wait_until(lambda pid=pid: not lives(pid), "its end")
    assert chain.auth != auth
    assert chain.helper != helper
    wait_until(lambda: all(map(lives, descendants(chain.daemon.pid))), "all to be buried", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_that_attempts_have_started_outlives_the_daemon(
    number, village, packages, tmp_path
):
    command = f"{make_checker(tmp_path)} {tmp_path}"
    with pam_service(HANGING) as service, contextlib.ExitStack() as stack:
        options = ("-A", command, "-m", service, "--source-timeout", "2")
        daemon = stack.enter_context(village.daemon(*options))
        helper = helper_of(processes(daemon)["auth"])
        talks = [stack.enter_context(dialogue(daemon.port)) for _ in range(2)]
        for talk, user in zip(talks, ("hanging", "status-1"), strict=True):
            talk.say("EHLO client.example")
            talk.send(f"AUTH PLAIN {plain(user, 'x')}\r\n".encode())
        wait_until(lambda: with_children(helper, 2), "a program and a module")
        # Before it runs it does not know whose end is its own.
        wait_until(lambda: any(map(children, of_shells(helper))), "what the module runs")
        everybody = descendants(daemon.pid)
        daemon.process.send_signal(number)
        assert daemon.process.wait(8) == (0 if number == signal.SIGTERM else -number)
        for pid in everybody:
            wait_until(lambda pid=pid: not lives(pid), "its end")
        if number == signal.SIGKILL:
            stack.pop_all()


def offered(daemon: Daemon) -> list[str]:
    with dialogue(daemon.port) as talk:
        return mechanisms(talk)


def test_the_mechanisms_offered_follow_the_password_file(village):
    """TO-40: soon after a change, and at once after a login."""
    bobby, chloe, _ = village.people
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input="x", capture_output=True, text=True, check=True
    ).stdout.strip()
    with village.daemon() as daemon:
        assert offered(daemon) == [*CLEAR, *CHALLENGED]
        village.write_passwords({bobby.name: bobby.password, chloe.name: hashed})
        wait_until(lambda: offered(daemon) == CLEAR, "the change", 5)
        assert ask(daemon, chloe.name, "x") == YES
        village.write_passwords({bobby.name: bobby.password})
        assert ask(daemon, bobby.name, bobby.password) == YES
        assert offered(daemon) == [*CLEAR, *CHALLENGED]
