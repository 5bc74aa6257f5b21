"""Global mode: whoever takes over the server, or a worker of his own, gains nothing by it.

The attacks on the monitor come from the very place of the server: this file is also a program,
tofmipd with a first server process that does as an attacker likes.  The second one is honest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import logged_in, submit
from running import Daemon, Home, to_smtp, tofmipd, wait_until
from village import Village, Villager, children, status, worker_of

from tofmipd import cli, daemon, globalmode
from tofmipd.auth.credentials import Origin, Password, Verdict
from tofmipd.privsep import frames
from tofmipd.privsep.authchannels import AuthChannels
from tofmipd.privsep.channel import Channel, Gone
from tofmipd.privsep.frames import Control, Kind, Login, Submission
from tofmipd.smtp.envelope import Envelope

pytestmark = pytest.mark.root

TO = "x@example.net"
MESSAGE = b"From: x@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"
GRANT_1 = Control(Kind.GRANT, 1).encode()
# What the monitor may grow by, whatever is done to it, and what it has open afterwards.
GROWTH_KIB = 16 << 10
OPEN_FILES = 24
PATIENCE_SECONDS = 3
# Identities of accounts that nobody may become, by the number of a session.
IMPOSSIBLE = ("root", "daemon", "no-such-account", "", "0", "../root", "root\t", "a" * 1000)

log = logging.getLogger("tofmipd.attack")


# The program: what runs in the place of the server.


class Link:
    """The channel of the server to the monitor, in the hands of somebody else."""

    def __init__(self, control: Channel) -> None:
        self.control = control
        control.limit_waiting(PATIENCE_SECONDS)

    def say(self, kind: Kind, number: int = 0, *texts: str) -> None:
        self.control.send(Control(kind, number, texts).encode())

    def hear(self) -> tuple[Control, list[int]]:
        octets, descriptors = self.control.receive_with(frames.CONTROL_LIMIT_OCTETS, 1)
        return frames.decode_control(octets, frames.TO_SERVER), descriptors

    def ask(self, session: int) -> Channel | None:
        """Ask for a worker; None is a refusal."""
        self.say(Kind.GRANT, session)
        answer, descriptors = self.hear()
        assert answer.number == session
        return Channel.of(descriptors[0]) if answer.kind is Kind.GRANTED else None

    def log_in(self, session: int, person: str) -> None:
        """As somebody whose password is known."""
        auth = AuthChannels(PATIENCE_SECONDS)
        frame, descriptors = self.hear()
        assert frame.kind is Kind.CONNECT
        auth.connect(Channel.of(descriptors[0]))
        name, _, password = person.partition(":")
        credentials = Password(name, password.encode())
        login = Login(session, f"{session:08x}", "PLAIN", credentials, Origin("", ""))
        judgement, _ = frames.decode_judgement(auth.ask(frames.encode_login(login)))
        assert judgement.verdict is Verdict.ACCEPTED


def tell(**facts: object) -> None:
    """Let the test know."""
    log.info("attack %s", json.dumps(facts))


def hand_in(worker: Channel, recipient: str) -> int:
    """Give a message to a worker; the code of the reply."""
    worker.limit_waiting(PATIENCE_SECONDS)
    envelope = Envelope("x@example.org", helo="attack", recipients=[recipient])
    encoded = frames.encode_envelope(envelope, "00000001")
    octets = MESSAGE[:-3]
    worker.send(Submission(len(octets), len(encoded), encoded, octets).encode())
    while True:
        reply, _ = frames.decode_answer(worker.receive(frames.WORKER_LIMIT_OCTETS))
        if reply is not None:
            return reply.code


def people() -> list[str]:
    return os.environ["TEST_PEOPLE"].split()


def ask_without_proof(link: Link) -> None:
    link.log_in(1, people()[0])
    mine = link.ask(1)
    others = [link.ask(number) for number in (0, 2, 3, 2**32, 2**64 - 1)]
    tell(mine=mine is not None, others=[other is not None for other in others])
    for number in range(1000):
        link.ask(number + 10)


def ask_for_the_impossible(link: Link) -> None:
    link.hear()  # CONNECT
    got = []
    for session in range(len(IMPOSSIBLE)):
        worker = link.ask(session + 1)
        try:
            got.append(worker is not None and hand_in(worker, TO))
        except (Gone, TimeoutError) as error:
            got.append(type(error).__name__)
    tell(got=got)


def replay(link: Link) -> None:
    link.log_in(1, people()[0])
    workers = [link.ask(1) for _ in range(200)]
    codes = {hand_in(worker, f"x{i}@example.net") for i, worker in enumerate(workers[:5]) if worker}
    link.say(Kind.END, 1)
    tell(granted=sum(w is not None for w in workers), codes=list(codes), ended=link.ask(1) is None)


def ask_and_never_listen(link: Link) -> None:
    link.log_in(1, people()[0])
    for _ in range(50_000):
        link.control.send(GRANT_1)
    tell(survived=True)


def ask_then_deafen(link: Link) -> None:
    """Let answers pile up at the monitor, then take none of them any more."""
    link.log_in(1, people()[0])
    for _ in range(400):
        link.control.send(GRANT_1)
    time.sleep(0.2)
    link.control.stop_reading()
    with contextlib.suppress(Gone, TimeoutError):
        link.control.limit_waiting(0.1)
        while True:
            link.hear()
    before = cpu_seconds(os.getppid())
    time.sleep(1)
    tell(busy_seconds=round(cpu_seconds(os.getppid()) - before, 2))


def flood(link: Link) -> None:
    """All that the server may say, thousands of times, of sessions that are not there."""
    chance = random.Random(4)
    kinds = (Kind.END, Kind.STUCK, Kind.READY)
    for _ in range(30_000):
        link.say(chance.choice(kinds), chance.getrandbits(64))
    tell(flooded=True)


def fail_afterwards(link: Link) -> None:
    """Claim a failure, with an end of the terminal's patience, long after the start."""
    for _ in range(10):
        link.say(Kind.FAILED, 78, "\x1b[2Jforged\x85s=1 auth accepted")
    tell(claimed=True)


def half_close(link: Link) -> None:
    link.control.stop_reading()
    for _ in range(10):
        link.say(Kind.GRANT, 1)
    link.control.close()
    time.sleep(PATIENCE_SECONDS)
    tell(survived=True)


def noise(link: Link) -> None:
    chance = random.Random(2)
    for _ in range(3000):
        link.control.send(chance.randbytes(chance.randint(1, 200)))


def descriptors(link: Link) -> None:
    """A thousand, with frames that would be good without them."""
    for _ in range(4):
        link.control.send(GRANT_1, [0] * 250)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def only(*packets: bytes) -> Callable[[Link], None]:
    def send(link: Link) -> None:
        for packet in packets:
            link.control.send(packet)

    return send


# What the monitor must take for a breach of the rules, and end.
BREACHES: dict[str, Callable[[Link], None]] = {
    "says what only auth may": only(Control(Kind.PROVED, 1, ("root", "root")).encode(), GRANT_1),
    "opens files": only(Control(Kind.OPEN, 0).encode()),
    "says what only a worker may": only(Control(Kind.IDLE).encode()),
    "says what only the monitor may": only(Control(Kind.SERVE).encode()),
    "uses an unknown kind": only(b"\xff" + bytes(9)),
    "adds a text": only(Control(Kind.GRANT, 1, ("root",)).encode()),
    "adds an octet": only(GRANT_1 + b"\0"),
    "truncates": only(*(GRANT_1[:size] for size in range(1, len(GRANT_1)))),
    "sends a bit too much": only(bytes(frames.CONTROL_LIMIT_OCTETS + 1)),
    "sends far too much": only(bytes(150_000)),
    "sends noise": noise,
    "sends a thousand descriptors": descriptors,
}
OTHER_ATTACKS: dict[str, Callable[[Link], None]] = {
    attack.__name__: attack
    for attack in (
        ask_without_proof,
        ask_for_the_impossible,
        replay,
        ask_and_never_listen,
        ask_then_deafen,
        flood,
        fail_afterwards,
        half_close,
    )
}


def main(name: str, arguments: list[str]) -> int:
    """Run tofmipd; its first server process makes an attack."""
    attack = (BREACHES | OTHER_ATTACKS)[name]
    lives = mmap.mmap(-1, 1)

    class Taken(globalmode.GlobalDaemon):
        def serve(self, control: Channel) -> int:
            if lives[0]:
                return super().serve(control)
            lives[0] = 1
            with open(os.readlink("/proc/self/fd/2")) as said:
                self._step_down()
                link = Link(control)
                link.say(Kind.READY)
                # What fails before the others are ready ends the start.
                wait_until(lambda: "started, pid" in said.read(), "the end of the start")
            tell(monitor_kib=size_kib(os.getppid(), "VmRSS"))
            with contextlib.suppress(Gone, TimeoutError):
                attack(link)
                if name in BREACHES:
                    time.sleep(PATIENCE_SECONDS)
                    tell(survived=True)
            return 0

        def judge(self, control: Channel) -> int:
            if attack is ask_for_the_impossible:
                for number, account in enumerate(IMPOSSIBLE, 1):
                    control.send(Control(Kind.PROVED, number, (account, "x")).encode())
            return super().judge(control)

    globalmode.GlobalDaemon = Taken  # type: ignore[misc]
    return daemon.run(cli.settings_from(arguments)._replace(debug=False))


def size_kib(pid: int, what: str) -> int:
    return int(status(pid)[what].split()[0])


# The tests.


@dataclass
class Taken:
    """A daemon whose server has been replaced after an attack; ``facts`` are what it told."""

    daemon: Daemon

    @property
    def facts(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for text in re.findall(r"attack (\{.*\})", self.daemon.text()):
            found |= json.loads(text)
        return found

    def served_by_an_honest_server(self, *people: Villager) -> None:
        """And the monitor has neither grown nor kept anything."""
        for person in people:
            assert send_as(person, self.daemon).startswith("250"), self.daemon.text()
        pid = self.daemon.pid
        assert "survived" not in self.facts, self.facts
        grown = size_kib(pid, "VmHWM") - int(str(self.facts["monitor_kib"]))
        assert grown < GROWTH_KIB
        assert len(os.listdir(f"/proc/{pid}/fd")) < OPEN_FILES
        assert len(children(pid, "server")) == len(children(pid, "auth")) == 1


def send_as(person: Villager, daemon: Daemon, recipient: str = TO) -> str:
    return submit(daemon.port, recipient, login=person.name, password=person.password)


@contextlib.contextmanager
def attacked(village: Village, name: str, *options: str) -> Iterator[Taken]:
    """By the time that clients are served the attack is over."""
    known = " ".join(f"{person.name}:{person.password}" for person in village.people)
    with tofmipd(
        Home(village.directory),
        *village.options(*options),
        program=(sys.executable, __file__, name),
        variables=village.variables | {"TEST_PEOPLE": known},
    ) as daemon:
        daemon.says("server (pid ", "ended with status 0" if name == "replay" else ")")
        yield Taken(daemon)


@pytest.mark.parametrize("name", BREACHES)
def test_a_server_that_breaks_the_rules_is_replaced(name, village, village_hop):
    """Issue 4, item 2."""
    with attacked(village, name) as taken:
        assert "breaks the protocol" in taken.daemon.text()
        assert "killed by SIGKILL" in taken.daemon.text()
        assert "worker for '" not in taken.daemon.text()
        taken.served_by_an_honest_server(village.people[0])


def test_no_session_gets_a_worker_without_having_proved_anything(village, village_hop):
    """Issue 4, item 2: asking often is itself a breach of the rules."""
    with attacked(village, "ask_without_proof") as taken:
        assert taken.facts["mine"] is True
        assert taken.facts["others"] == [False] * 5
        text = taken.daemon.text()
        assert "breaks the protocol: too many sessions that have proved nothing" in text
        assert text.count("asks for a worker for session") < 50
        assert re.findall("worker for '(.*)' started", text) == [village.people[0].name]
        taken.served_by_an_honest_server(*village.people)


def test_nobody_becomes_an_account_that_may_not_be_one(village, village_hop):
    """Even if auth is taken over as well: the worker itself refuses."""
    with attacked(village, "ask_for_the_impossible") as taken:
        assert taken.facts["got"] == ["Gone"] * len(IMPOSSIBLE)
        text = taken.daemon.text()
        started = re.findall(r"worker for 'x' started, pid ([0-9]+)", text)
        ended = re.findall(r"worker for 'x' \(pid ([0-9]+)\) ended with status 67", text)
        assert started == ended != []
        assert not village_hop.messages()
        taken.served_by_an_honest_server(village.people[0])


def test_a_grant_that_is_replayed_leads_to_the_same_worker(village, village_hop):
    person = village.people[0]
    with attacked(village, "replay") as taken:
        assert taken.facts["granted"] == 200
        assert taken.facts["codes"] == [250]
        assert taken.facts["ended"] is True
        assert re.findall("worker for '(.*)' started", taken.daemon.text()) == [person.name]
        assert len(village_hop.messages()) == 5
        taken.served_by_an_honest_server(*village.people)


def test_a_server_that_asks_and_does_not_listen_is_replaced(village, village_hop):
    """Each answer that it does not take costs the monitor a descriptor."""
    with attacked(village, "ask_and_never_listen") as taken:
        taken.served_by_an_honest_server(*village.people)


def test_a_server_that_goes_deaf_does_not_keep_the_monitor_busy(village, village_hop):
    with attacked(village, "ask_then_deafen") as taken:
        assert taken.facts.get("busy_seconds", 0) < 0.2  # nothing was told if it was killed first
        taken.served_by_an_honest_server(*village.people)


def test_a_flood_of_frames_is_taken_and_forgotten(village, village_hop):
    with attacked(village, "flood") as taken:
        assert taken.facts["flooded"] is True
        taken.served_by_an_honest_server(*village.people)


def test_a_server_cannot_write_what_it_likes_into_the_log(village, village_hop):
    with attacked(village, "fail_afterwards") as taken:
        lines = [line for line in taken.daemon.text().split("\n") if "forged" in line]
        assert lines
        assert all(line.isprintable() for line in lines)
        taken.served_by_an_honest_server(village.people[0])


def test_a_server_that_closes_its_channel_is_replaced(village, village_hop):
    with attacked(village, "half_close") as taken:
        taken.served_by_an_honest_server(village.people[0])


# A user's configuration is a program: it may do anything in its worker.

OWN = """
import gc, os, random, socket, time
from tofmipd.privsep.frames import encode_lines, encode_answer, Control, Kind
from tofmipd.privsep.worker import Worker
from tofmipd.smtp.reply import Reply
worker = next(one for one in gc.get_objects() if isinstance(one, Worker))
control = worker._control._socket
(session,) = worker._busy
chance = random.Random(6)
null = os.open("/dev/null", os.O_RDONLY)
def give(octets, *numbers):
    socket.send_fds(control, [octets], numbers)
"""
IDLE = "Control(Kind.IDLE).encode()"
TOWARDS_MONITOR = {
    "is idle all the time": f"for _ in range(5000): give({IDLE})",
    "asks for a worker": "give(Control(Kind.GRANT, 1).encode())",
    "proves to be root": 'give(Control(Kind.PROVED, 1, ("root", "root")).encode())',
    "opens files": "give(Control(Kind.OPEN, 0).encode())",
    "sends noise": "for _ in range(500): give(chance.randbytes(chance.randint(1, 90)))",
    "sends too much": "give(bytes(100000))",
    "sends descriptors": f"for _ in range(5): give({IDLE}, *[null] * 250)",
    "closes": "control.shutdown(socket.SHUT_RDWR)",
    "goes deaf": "control.shutdown(socket.SHUT_RD)",
    "steals what it is told": f"give({IDLE}); time.sleep(0.1)",
}


@pytest.mark.parametrize("name", TOWARDS_MONITOR)
def test_a_worker_that_breaks_the_rules_hurts_its_user_alone(name, village, village_hop):
    bobby, chloe, _ = village.people
    attack = f"{OWN}\ntry:\n    {TOWARDS_MONITOR[name]}\nexcept OSError:\n    pass"
    with village.daemon() as daemon, logged_in(daemon.port, chloe.name, chloe.password) as other:
        other.envelope("one@example.net")
        assert other.data(MESSAGE).startswith("250")
        bystander = worker_of(daemon, chloe)
        before = size_kib(daemon.pid, "VmRSS")
        bobby.configure(to_smtp(village_hop.port), attack)
        for _ in range(3):
            assert send_as(bobby, daemon)[:3] in ("250", "451")
        bobby.configure(to_smtp(village_hop.port))
        other.envelope("two@example.net")
        assert other.data(MESSAGE).startswith("250")
        assert worker_of(daemon, chloe) == bystander
        assert send_as(bobby, daemon, "three@example.net").startswith("250")
        assert size_kib(daemon.pid, "VmHWM") - before < GROWTH_KIB
        assert len(os.listdir(f"/proc/{daemon.pid}/fd")) < OPEN_FILES
    for recipient in ("one@example.net", "two@example.net", "three@example.net"):
        village_hop.message(recipient)


def test_a_user_s_workers_that_do_not_leave_take_nobody_else_s_place(village, village_hop):
    """They say that they are idle and stay, so that each new session starts another."""
    bobby, chloe, _ = village.people
    stay = f"""{OWN}
def stay():
    for channel in list(worker._sessions):
        channel.stop_reading()
    time.sleep(1000)
worker._leave = stay
give({IDLE})
time.sleep(0.1)
"""
    bobby.configure(to_smtp(village_hop.port), stay)
    with village.daemon("--max-workers", "4") as daemon:
        for _ in range(4):
            send_as(bobby, daemon)
        assert send_as(chloe, daemon).startswith("250")
        for pid in children(daemon.pid, "worker"):
            os.kill(pid, 9)


# What a worker may tell the server: a reply to its own user, and lines under his session's id.
TOWARDS_SERVER = {
    "noise": ("chance.randbytes(300)", "451 4.3.0"),
    "too much": ("bytes(100000)", "451 4.3.0"),
    "nothing": ("b''", "451 4.3.0"),
    "another code": ('encode_answer(Reply(354, "", ("go on",)), [])', "451 4.3.0"),
    "221": ('encode_answer(Reply(221, "0.0", ("Bye",)), [])', "451 4.3.0"),
    "a NUL": ('encode_answer(Reply(250, "0.0", ("a#",)), []).replace(b"#", b"\\0")', "451 4.3.0"),
    "an escape": ('encode_answer(Reply(250, "0.0", ("a#",)), []).replace(b"#", b"\\x1b")', "451"),
    "its own success": ('encode_answer(Reply(250, "0.0", ("nobody sent it",)), [])', "250 2.0.0"),
}


@pytest.mark.parametrize("name", TOWARDS_SERVER)
def test_what_a_worker_answers_is_checked(name, village, village_hop):
    bobby, chloe, _ = village.people
    octets, expected = TOWARDS_SERVER[name]
    bobby.configure(to_smtp(village_hop.port), f"{OWN}\nsession._socket.send({octets})\n1 / 0")
    with village.daemon() as daemon, logged_in(daemon.port, bobby.name, bobby.password) as talk:
        talk.envelope(TO)
        assert talk.data(MESSAGE).startswith(expected)
        assert send_as(chloe, daemon).startswith("250")
        bobby.configure(to_smtp(village_hop.port))
        assert send_as(bobby, daemon).startswith("250")


def test_lines_that_a_worker_forges_stand_under_its_own_session(village, village_hop):
    bobby, chloe, _ = village.people
    lines = r"""
forged = ["s=00000001 auth accepted user='root' FORGED", "\r\n2026-01-01 INFO s=1 FORGED",
          "\x1b[2J\x00\x85\u2028 FORGED", "FORGED" + "x" * 7000, "\ud800 FORGED"]
for _ in range(500):
    for level in (0, 20, 50, 255):
        session._socket.send(encode_lines([(level, text) for text in forged]))
"""
    bobby.configure(to_smtp(village_hop.port), OWN + lines)
    with village.daemon() as daemon:
        reply = send_as(bobby, daemon)
        assert send_as(chloe, daemon).startswith("250")
        (session,) = re.findall(rf"s=(\w+) auth accepted .* user='{bobby.name}'", daemon.text())
        shown = [line for line in daemon.text().split("\n") if "FORGED" in line]
    assert reply[:3] in ("250", "451")
    assert 0 < len(shown) < 1000
    for line in shown:
        assert re.match(rf"[-0-9]+ [0-9:,]+ [A-Z]+ s={session} ", line)
        assert line.isprintable()


def test_a_worker_that_never_stops_talking_is_cut_off(village, village_hop):
    """Its frames would keep the server busy for as long as it likes."""
    bobby, chloe, _ = village.people
    talk = """
end = time.monotonic() + 6
while time.monotonic() < end:
    session._socket.send(encode_lines([]))
"""
    bobby.configure(to_smtp(village_hop.port), OWN + talk)
    with village.daemon() as daemon:
        begun = time.monotonic()
        assert send_as(bobby, daemon).startswith("451")
        assert time.monotonic() - begun < 3
        assert send_as(chloe, daemon).startswith("250")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
