"""Global mode: a worker for each user; what one of them does hurts nobody else."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socketserver
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hops
import pytest
from clients import Dialogue, logged_in, submit
from hops import RawHop
from running import HOST, KEY, Daemon, Home, to_smtp, tofmipd, wait_until
from village import Village, Villager, children, status, worker_of

pytestmark = pytest.mark.root

MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"
# A daemon whose workers leave soon; there is no option for that.
SHORT_OF_PATIENCE = """
import sys
from tofmipd import cli, daemon
from tofmipd.privsep import worker
worker.HEARTBEAT_SECONDS = float(sys.argv[1])
settings = cli.settings_from(sys.argv[2:])
mode = settings.global_mode._replace(worker_idle=float(sys.argv[1]))
sys.exit(daemon.run(settings._replace(global_mode=mode)))
"""
SCRIPT_SECONDS = 1
# Beyond the tasks that a user has already he gets 100 more.
TASKS = 140
LIVELY = 20


def send(talk: Dialogue, recipient: str = "x@example.net") -> str:
    """One more message in an open session; the reply."""
    talk.envelope(recipient)
    return talk.data(MESSAGE)


def send_as(person: Villager, daemon: Daemon, recipient: str = "x@example.net") -> str:
    return submit(daemon.port, recipient, login=person.name, password=person.password)


def session_of(person: Villager, daemon: Daemon) -> contextlib.AbstractContextManager[Dialogue]:
    return logged_in(daemon.port, person.name, person.password)


@contextlib.contextmanager
def leaving_after(seconds: float, village: Village, *options: str) -> Iterator[Daemon]:
    """A daemon whose workers leave when they had nothing to do for that long."""
    with tofmipd(
        Home(village.directory),
        "-d",
        *village.options(*options),
        program=(village.program[0], "-c", SHORT_OF_PATIENCE, str(seconds)),
        variables=village.variables,
    ) as daemon:
        yield daemon


def processes_of(uid: int) -> list[int]:
    """All of an account that live; the dead that nobody has asked for do not count."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            of = status(int(name))
            if of["Uid"].split()[0] == str(uid) and not of["State"].startswith("Z"):
                found.append(int(name))
    return found


@pytest.fixture
def bobby(village: Village) -> Iterator[Villager]:
    """Somebody whose processes are all gone after the test, and after a minute in any case."""
    person = village.people[0]
    assert person.uid >= 1000
    done = threading.Event()
    watchdog = threading.Thread(target=lambda: done.wait(60) or end_all(person.uid), daemon=True)
    watchdog.start()
    yield person
    done.set()
    end_all(person.uid)


def end_all(uid: int) -> None:
    """Stop them first, for they may be multiplying."""
    for number in (signal.SIGSTOP, signal.SIGSTOP, signal.SIGKILL, signal.SIGKILL):
        for pid in processes_of(uid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    wait_until(lambda: not processes_of(uid), "the end of all processes of a test account")


# How long a worker lives.


def test_a_worker_is_started_on_demand_and_serves_all_sessions_of_its_user(village, village_hop):
    bobby, chloe, _ = village.people
    with village.daemon() as daemon:
        assert not children(daemon.pid, "worker")
        with session_of(bobby, daemon) as one, session_of(bobby, daemon) as two:
            assert not children(daemon.pid, "worker")
            assert send(one).startswith("250")
            worker = worker_of(daemon, bobby)
            assert send(two).startswith("250")
            assert send(one).startswith("250")
        assert send_as(bobby, daemon).startswith("250")
        assert send_as(chloe, daemon).startswith("250")
        assert worker_of(daemon, bobby) == worker
        assert len(children(daemon.pid, "worker")) == 2
    assert len(village_hop.messages()) == 5


def test_a_worker_keeps_what_it_has_read_and_the_connection_to_the_next_hop(village, village_hop):
    bobby = village.people[0]
    count = 'open(__import__("os").path.expanduser("~/loads"), "a").write("x")'
    loads = bobby.home.path / "loads"
    beginning = (to_smtp(village_hop.port), count)
    bobby.configure(*beginning)

    def sent_from() -> str:
        village_hop.stored.clear()
        assert send_as(bobby, daemon).startswith("250")
        (message,) = village_hop.messages()
        return message.value("From")

    with village.daemon() as daemon:
        first = [sent_from() for _ in range(5)]
        assert loads.read_text() == "x"
        assert village_hop.connections == 1
        bobby.write("filters/outgoing", "to * bare\n")
        assert "bobby@example.org" in sent_from()
        bobby.write("filters/outgoing", "to * sender\n")
        before = sent_from()
        bobby.write("crypt_key", KEY[::-1] + "\n")
        assert before != sent_from()
        bobby.configure(*beginning, 'FULLNAME = "Robert"')
        assert "dated" in first[0]
        bobby.write("filters/outgoing", "")
        sent_from()
        assert loads.read_text() == "x" * 5
        assert worker_of(daemon, bobby)
        sent_from()
        assert loads.read_text() == "x" * 5
    loads.unlink()


def test_a_worker_leaves_when_it_is_idle_and_comes_back_for_an_open_session(village, village_hop):
    bobby = village.people[0]
    with leaving_after(0.2, village) as daemon, session_of(bobby, daemon) as talk:
        for number in range(3):
            assert send(talk, f"{number}@example.net").startswith("250")
            assert worker_of(daemon, bobby)
            wait_until(lambda: not children(daemon.pid, "worker"), "the worker to leave", 3)
        assert daemon.text().count("ended with status 0") == 3
        assert "WARNING" not in daemon.text()
    assert [x.recipients[0][0] for x in village_hop.messages()] == ["0", "1", "2"]


def test_a_message_that_comes_just_when_its_worker_leaves_is_sent_once(village, village_hop):
    """Many times about the moment at which the worker has been idle for long enough."""
    chance = random.Random(3)
    bobby = village.people[0]
    idle, messages = 0.02, 60
    with (
        leaving_after(idle, village) as daemon,
        session_of(bobby, daemon) as one,
        session_of(bobby, daemon) as two,
    ):
        for number in range(messages):
            talk = chance.choice((one, two))
            assert send(talk, f"{number}@example.net").startswith("250")
            # The very time of day is what this is about.
            time.sleep(idle * chance.uniform(0.95, 1.15))
        assert daemon.text().count("ended with status 0") > 10
    sent = Counter(x.recipients[0] for x in village_hop.messages())
    assert sent == {f"{number}@example.net": 1 for number in range(messages)}


# A limited number of workers.


@pytest.mark.parametrize("limit", [1, 2])
def test_more_users_than_workers_have_all_their_mail_sent_once(limit, village, village_hop):
    def mail(person: Villager, way: int) -> list[str]:
        with session_of(person, daemon) as talk:
            return [send(talk, f"{person.name}.{way}.{n}@example.net") for n in range(5)]

    with village.daemon("--max-workers", str(limit)) as daemon, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(mail, person, way) for person in village.people for way in range(2)]
        replies = [reply for job in jobs for reply in job.result(60)]
        assert all(reply.startswith("250") for reply in replies), replies
        assert len(children(daemon.pid, "worker")) <= limit
    sent = Counter(x.recipients[0] for x in village_hop.messages())
    assert len(sent) == 30
    assert set(sent.values()) == {1}


def test_the_least_recently_used_worker_goes_first(village, village_hop):
    bobby, chloe, dave = village.people
    with village.daemon("--max-workers", "2") as daemon:
        for person in (bobby, chloe):
            assert send_as(person, daemon).startswith("250")
        kept = worker_of(daemon, chloe)
        assert send_as(dave, daemon).startswith("250")
        assert worker_of(daemon, bobby) is None
        assert worker_of(daemon, chloe) == kept
        assert worker_of(daemon, dave)
        assert send_as(bobby, daemon).startswith("250")
        assert worker_of(daemon, chloe) is None
    assert len(village_hop.messages()) == 4


def test_a_busy_worker_finishes_before_it_makes_room(village, village_hop):
    bobby, chloe, _ = village.people
    village_hop.may_answer.clear()
    with village.daemon("--max-workers", "1") as daemon, ThreadPoolExecutor(2) as pool:
        first = pool.submit(send_as, bobby, daemon, "first@example.net")
        assert village_hop.data_complete.wait(10)
        second = pool.submit(send_as, chloe, daemon, "second@example.net")
        daemon.says("auth accepted", chloe.name)
        time.sleep(0.5)  # nothing is to happen
        assert not first.done()
        assert not second.done()
        assert worker_of(daemon, chloe) is None
        village_hop.may_answer.set()
        assert first.result(10).startswith("250")
        assert second.result(10).startswith("250")
    assert len(village_hop.messages()) == 2


def test_a_busy_worker_does_not_keep_others_from_the_place_of_an_idle_one(village, village_hop):
    """The one used last but one is busy for as long as its next hop likes."""
    bobby, chloe, dave = village.people
    with village.daemon("--max-workers", "2") as daemon, ThreadPoolExecutor(2) as pool:
        village_hop.may_answer.clear()
        first = pool.submit(send_as, bobby, daemon, "first@example.net")
        assert village_hop.data_complete.wait(10)
        dave.write("config", "1 / 0\n")
        chloe.write("config", "1 / 0\n")
        assert send_as(chloe, daemon).startswith("451 4.3.5")
        begun = time.monotonic()
        assert send_as(dave, daemon).startswith("451 4.3.5")
        assert time.monotonic() - begun < 5
        village_hop.may_answer.set()
        assert first.result(10).startswith("250")


# The death of a worker.


def test_a_killed_worker_is_replaced_for_the_next_message_of_an_open_session(village, village_hop):
    bobby = village.people[0]
    with village.daemon() as daemon, session_of(bobby, daemon) as talk:
        for number in range(20):
            assert send(talk, f"{number}@example.net").startswith("250")
            worker = worker_of(daemon, bobby)
            assert worker
            os.kill(worker, signal.SIGKILL)
            # A message that it reads with its last breath would be lost to everybody.
            wait_until(lambda: not processes_of(bobby.uid), "the death of the worker")
        assert send(talk, "last@example.net").startswith("250")
        assert daemon.text().count("killed by SIGKILL") == 20
    assert len(village_hop.messages()) == 21


def test_a_worker_killed_with_a_message_defers_it(village, village_hop):
    """Whoever has read a message may have sent it: nobody else tries."""
    bobby = village.people[0]
    village_hop.may_answer.clear()
    with village.daemon() as daemon, session_of(bobby, daemon) as talk:
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(send, talk, "first@example.net")
            assert village_hop.data_complete.wait(10)
            worker = worker_of(daemon, bobby)
            assert worker
            os.kill(worker, signal.SIGKILL)
            begun = time.monotonic()
            assert reply.result(10).startswith("451 4.3.0")
            assert time.monotonic() - begun < 1
        village_hop.may_answer.set()
        assert send(talk, "second@example.net").startswith("250")
        assert daemon.says("the worker has died with the message", "s=")
    assert len(village_hop.for_recipient("first@example.net")) <= 1
    assert len(village_hop.for_recipient("second@example.net")) == 1


# A configuration is a program.

ENDLESS = {
    "a loop": "while True: pass",
    "a loop that catches all": "while True:\n    try:\n        while True: pass\n    except: pass",
    "sleep": "import time\ntime.sleep(1e6)",
    "a program": 'import subprocess\nsubprocess.run(["sleep", "1000"])',
    "a program of a shell": 'import os\nos.system("sleep 1000; true")',
    "a child that loops": "import os\nif os.fork() == 0:\n    while True: pass\nos.wait()",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_configuration_that_never_ends_is_given_up_in_time(name, village, village_hop, bobby):
    """Issue 4, item 3."""
    chloe = village.people[1]
    bobby.configure(to_smtp(village_hop.port), ENDLESS[name])
    with (
        village.daemon("--script-timeout", str(SCRIPT_SECONDS)) as daemon,
        session_of(bobby, daemon) as talk,
        ThreadPoolExecutor(1) as pool,
    ):
        begun = time.monotonic()
        reply = pool.submit(send, talk)
        others = [seconds_for(chloe, daemon) for _ in range(4)]
        assert not reply.done()
        assert reply.result(10).startswith("451 4.3.5")
        assert SCRIPT_SECONDS <= time.monotonic() - begun < SCRIPT_SECONDS + 2
        assert max(others) < 1
        wait_until(lambda: not processes_of(bobby.uid), "the end of what it has started")
        bobby.configure(to_smtp(village_hop.port))
        assert send(talk, "second@example.net").startswith("250")
        assert daemon.says(f"took longer than {SCRIPT_SECONDS} s", "s=")
    assert len(village_hop.for_recipient("second@example.net")) == 1


def seconds_for(person: Villager, daemon: Daemon) -> float:
    """How long one message takes, login included."""
    begun = time.monotonic()
    assert send_as(person, daemon, "lively@example.net").startswith("250")
    return time.monotonic() - begun


def test_a_configuration_that_lets_no_thread_run_is_ended_by_the_kernel(village, village_hop):
    """A regular expression keeps Python's lock: nobody in the process can answer any more."""
    bobby, chloe, _ = village.people
    bobby.configure(to_smtp(village_hop.port), 'import re\nre.match("(a+)+$", "a" * 60 + "b")')
    with (
        village.daemon("--script-timeout", "1") as daemon,
        session_of(bobby, daemon) as talk,
        ThreadPoolExecutor(1) as pool,
    ):
        reply = pool.submit(send, talk)
        assert seconds_for(chloe, daemon) < 1
        assert reply.result(6).startswith("451 4.3.0")
        bobby.configure(to_smtp(village_hop.port))
        assert send(talk).startswith("250")


BOMBS = {
    "that fails": "import os\nwhile True: os.fork()",
    "that goes on": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    ),
    "of threads": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()"
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_fork_bomb_hurts_its_user_alone(name, village, village_hop, bobby):
    """Issue 4, item 3."""
    chloe = village.people[1]
    bobby.configure(to_smtp(village_hop.port), BOMBS[name])
    most = 0
    with (
        village.daemon("--script-timeout", str(SCRIPT_SECONDS)) as daemon,
        session_of(bobby, daemon) as talk,
        ThreadPoolExecutor(1) as pool,
    ):
        reply = pool.submit(send, talk)
        others = []
        for _ in range(5):
            others.append(seconds_for(chloe, daemon))
            most = max(most, len(processes_of(bobby.uid)))
        assert reply.result(10).startswith("451 4.3.")
        assert max(others) < 1
        assert most < TASKS
        worker = worker_of(daemon, bobby)
        if worker is not None:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not processes_of(bobby.uid), "the end of what it has started")
        bobby.configure(to_smtp(village_hop.port))
        assert send(talk, "second@example.net").startswith("250")
    assert len(village_hop.for_recipient("second@example.net")) == 1
    assert len(village_hop.for_recipient("x@example.net")) == 0


GREEDY = {
    "at once": "x = bytearray(10 << 30)",
    "bit by bit": "x = []\nwhile True: x.append(bytearray(1 << 24))",
}


@pytest.mark.parametrize("name", GREEDY)
def test_memory_is_refused_to_a_greedy_configuration(name, village, village_hop):
    """Issue 4, item 3."""
    bobby, chloe, _ = village.people
    bobby.write("config", GREEDY[name] + "\n")
    with village.daemon() as daemon, session_of(bobby, daemon) as talk:
        line = GREEDY[name].count("\n") + 1
        expected = f"451 4.3.5 Error in your TMDA files: config line {line}: MemoryError"
        assert send(talk).startswith(expected)
        assert seconds_for(chloe, daemon) < 1
        bobby.configure(to_smtp(village_hop.port))
        assert send(talk).startswith("250")


SUICIDES = {
    "ends the process": ("import os\nos._exit(0)", "451 4.3.0"),
    "raises SystemExit": ("raise SystemExit(0)", "451 4.3.5"),
    "raises KeyboardInterrupt": ("raise KeyboardInterrupt", "451 4.3."),
    "raises something of its own": ("class E(BaseException): pass\nraise E", "451 4.3."),
    "kills its process": ("import os\nos.kill(os.getpid(), 9)", "451 4.3.0"),
    "kills its group": ("import os\nos.killpg(0, 15)\nos.killpg(0, 9)", "451 4.3.0"),
    "closes all": ("import os\nos.closerange(0, 4096)", "451 4.3.0"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "451 4.3.0"),
    "kills its parent": ("import os\nos.kill(os.getppid(), 9)", "451 4.3.5"),
    "recurses": ("def f(): f()\nf()", "451 4.3.5"),
}


@pytest.mark.parametrize("name", SUICIDES)
def test_a_configuration_that_does_itself_harm_does_none_to_others(name, village, village_hop):
    bobby, chloe, _ = village.people
    program, expected = SUICIDES[name]
    # Once only: the next message follows at once, and finds a worker.
    once = "import os\nif os.path.exists(f := os.path.expanduser('~/once')):\n    os.unlink(f)\n"
    indented = "".join(f"    {line}\n" for line in program.split("\n"))
    bobby.configure(to_smtp(village_hop.port), once + indented)
    with (
        village.daemon() as daemon,
        session_of(bobby, daemon) as talk,
        session_of(chloe, daemon) as other,
    ):
        for number in range(3):
            bobby.home.path.joinpath("once").touch()
            bobby.own()
            os.utime(bobby.home.tmda / "config")
            assert send(talk).startswith(expected)
            assert send(talk, f"{number}@example.net").startswith("250")
            assert send(other).startswith("250")
        wait_until(lambda: len(children(daemon.pid, "worker")) == 2, "the end of dead workers")
    assert len(village_hop.messages()) == 6


# One that hangs and twenty that do not (issue 4, item 7).


@pytest.fixture
def crowd(village: Village) -> Iterator[list[Villager]]:
    """The lively ones: their next hop keeps nobody waiting, whoever comes at the same time."""
    with hops.raw_hop() as hop:
        for person in village.people:
            person.configure(to_smtp(hop.port))
        yield list(village.people[1:])
        assert len(hop.messages()) == 5 * LIVELY


def times_of_the_lively(people: list[Villager], daemon: Daemon) -> list[float]:
    """Each session logs in and sends five messages; how long each of these takes, in seconds."""

    def live(number: int) -> list[float]:
        person = people[number % len(people)]
        times = []
        begun = time.monotonic()
        with session_of(person, daemon) as talk:
            for _ in range(5):
                assert send(talk, "lively@example.net").startswith("250")
                times.append(time.monotonic() - begun)
                begun = time.monotonic()
        return times

    with ThreadPoolExecutor(LIVELY) as pool:
        jobs = [pool.submit(live, number) for number in range(LIVELY)]
        times = [seconds for job in jobs for seconds in job.result(30)]
    assert len(times) == 5 * LIVELY
    return times


def assert_lively(times: list[float]) -> None:
    assert max(times) < 1, f"at most {max(times):.3f}, median {statistics.median(times):.3f} s"


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(1e6)"])
def test_twenty_sessions_are_lively_while_a_configuration_hangs(program, village, crowd, bobby):
    bobby.write("config", program + "\n")
    with village.daemon("--script-timeout", "20") as daemon, ThreadPoolExecutor(3) as pool:
        hanging = [pool.submit(send_as, bobby, daemon) for _ in range(3)]
        wait_until(lambda: worker_of(daemon, bobby), "the worker that hangs")
        assert_lively(times_of_the_lively(crowd, daemon))
        assert not any(job.done() for job in hanging)

        def answered() -> bool:
            # What no worker has read yet goes to the next one, which hangs as well.
            end_all(bobby.uid)
            return all(job.done() for job in hanging)

        wait_until(answered, "an answer to all")
        assert all(job.result().startswith("451 4.3.0") for job in hanging)


class _ImapServer(socketserver.ThreadingTCPServer):
    """Takes every login but those of ``slow``, which it leaves without an answer until ``over``."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 100

    def __init__(self, slow: str) -> None:
        super().__init__((HOST, 0), _ImapSession)
        self.slow = slow.encode()
        self.asked, self.over = threading.Event(), threading.Event()


class _ImapSession(socketserver.StreamRequestHandler):
    server: _ImapServer

    def handle(self) -> None:
        self.wfile.write(b"* OK ready\r\n")
        tag, *words = self.rfile.readline().split()
        if self.server.slow in words[1]:
            self.server.asked.set()
            self.server.over.wait(30)
        else:
            self.wfile.write(tag + b" OK\r\n")


@contextlib.contextmanager
def imap_that_hangs_for(name: str) -> Iterator[_ImapServer]:
    with _ImapServer(name) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def test_twenty_sessions_are_lively_while_a_source_hangs(village, crowd):
    bobby = village.people[0]

    def log_in() -> str:
        with session_of(bobby, daemon):
            return "accepted"

    with (
        imap_that_hangs_for(bobby.name) as imap,
        tofmipd(
            Home(village.directory),
            *("-d", "-u", village.service, "--source-timeout", "8"),
            *("-R", f"imap://{HOST}:{imap.server_address[1]}"),
            program=village.program,
            variables=village.variables,
        ) as daemon,
        ThreadPoolExecutor(5) as pool,
    ):
        hanging = [pool.submit(log_in) for _ in range(5)]
        assert imap.asked.wait(10)
        assert_lively(times_of_the_lively(crowd, daemon))
        assert not any(job.done() for job in hanging)
        imap.over.set()
        for job in hanging:
            with pytest.raises(AssertionError):
                job.result(10)
        assert "auth unavailable" in daemon.text()


def test_twenty_sessions_are_lively_while_a_throttle_script_hangs(village, crowd):
    """And the one that it hangs for hears of it when its time is up."""
    bobby = village.people[0]
    script = village.directory / "throttle"
    asked = village.directory / "asked"
    asked.write_text("")
    asked.chmod(0o666)
    script.write_text(
        f'#!/bin/sh\ntest "$1" = {bobby.name} || exit 0\necho "$1" >> {asked}\nexec sleep 1000\n'
    )
    script.chmod(0o755)
    with (
        village.daemon("-t", str(script), "--script-timeout", "3") as daemon,
        ThreadPoolExecutor(3) as pool,
    ):
        hanging = [pool.submit(send_as, bobby, daemon) for _ in range(3)]
        wait_until(asked.read_text, "the script to be asked")
        assert_lively(times_of_the_lively(crowd, daemon))
        assert not any(job.done() for job in hanging)
        assert all(job.result(10).startswith("451 4.3.0") for job in hanging)
        assert worker_of(daemon, bobby) is None
        assert not sleeping_for(village.service_uid)


def sleeping_for(uid: int) -> list[int]:
    return [
        pid for pid in processes_of(uid) if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"
    ]


def test_a_hundred_sessions_of_one_user_are_all_served(village: Village, village_hop: RawHop):
    """More than his worker could have threads for: they wait for their turn."""
    bobby = village.people[0]
    with village.daemon() as daemon, ThreadPoolExecutor(100) as pool:
        replies = list(pool.map(lambda _: send_as(bobby, daemon), range(100)))
    assert {reply[:3] for reply in replies} == {"250"}
    assert len(village_hop.messages()) == 100
