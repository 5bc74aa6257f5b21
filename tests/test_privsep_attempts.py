"""The helper that makes attempts: those that hang, crash, flood or lie, and whose end is whose."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import PATIENCE_SECONDS, wait_for

from tofmipd.auth.credentials import Origin, Password, Verdict
from tofmipd.privsep import attempts
from tofmipd.privsep.attempts import Helper, NoAttempts
from tofmipd.privsep.channel import Channel
from tofmipd.privsep.frames import packed
from tofmipd.settings import SourceSpec

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
BOBBY = Password("bobby", b"FooBar")
HERE = Origin("192.0.2.7", "2001:db8::1")
LONG, SHORT = PATIENCE_SECONDS, 0.4


def children_of(pid: int) -> set[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return set(map(int, file.read().split()))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Place:
    """A helper, asked by this process."""

    def __init__(self, helper: Helper, pid: int) -> None:
        self.helper = helper
        self.pid = pid
        self.told = 0

    def ask(self, source: int = 0, credentials=BOBBY, origin=HERE, seconds: float = LONG):
        return self.helper(source, credentials, origin, seconds)

    def end(self) -> None:
        """Nobody will ask any more; wait for it to end by itself."""
        self.helper._control.close()
        wait_for(lambda: os.waitpid(self.pid, os.WNOHANG)[0] == self.pid)


@contextlib.contextmanager
def helping(*makers: Callable | str) -> Iterator[Place]:
    """A helper whose sources are these functions, called in the process of an attempt; a text is a
    checkpassword program."""
    table = {f"/{number}": one for number, one in enumerate(makers) if callable(one)}
    specs = [
        SourceSpec("program", f"/{number}" if callable(one) else one)
        for number, one in enumerate(makers)
    ]
    real, before = attempts.attempt_of, children_of(os.getpid())
    attempts.attempt_of = lambda spec: table.get(spec.argument) or real(spec)
    try:
        helper = attempts.start(specs, lambda: setattr(place, "told", place.told + 1))
    finally:
        attempts.attempt_of = real
    (pid,) = children_of(os.getpid()) - before
    place = Place(helper, pid)
    try:
        yield place
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        with contextlib.suppress(ChildProcessError):
            place.end()


@pytest.fixture
def program(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "check"
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return str(path)

    return write


def says(verdict: Verdict, words: str = ""):
    return lambda credentials, origin, seconds: (verdict, words)


# The usual.


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("words", ["", "ended with status 2", "grüße"])
def test_verdict_and_words_come_back(verdict, words):
    with helping(says(verdict, words)) as place:
        assert [place.ask() for _ in range(3)] == [(verdict, words)] * 3


def test_name_password_origin_and_time_arrive():
    def tell(*given):
        return NO, repr(given)

    with helping(tell) as place:
        credentials = Password("jörg" * 60, b"\xff\0\r\n" * 10)
        for origin in (HERE, Origin()):
            _, words = place.ask(credentials=Password("jörg", b"\xff\0\r\n"), origin=origin)
            expected = (Password("jörg", b"\xff\0\r\n"), origin)
            assert words.startswith(repr(expected)[:-1])
            seconds = float(words.rpartition(", ")[2].rstrip(")"))
            assert LONG - 1 < seconds < LONG
        assert place.ask(credentials=credentials)[0] is NO
        longest = Password("ü" * 255, b"\xff" * 1000)
        assert place.ask(credentials=longest)[0] is NO


def test_each_source_is_asked_by_its_number(program):
    with helping(says(YES), program("exit 1"), says(MAYBE, "x")) as place:
        assert [place.ask(number) for number in range(3)] == [(YES, ""), (NO, ""), (MAYBE, "x")]


def test_a_program_judges_by_what_it_reads(program):
    command = program("test \"$(tr '\\0' : <&3 | cut -d: -f1,2)\" = bobby:FooBar")
    with helping(command) as place:
        assert place.ask() == (YES, "")
        assert place.ask(credentials=Password("bobby", b"foobar")) == (NO, "")


def test_words_are_cut_to_a_bounded_length():
    with helping(says(NO, "ü" * 10_000)) as place:
        _, words = place.ask()
        assert words.startswith("üüü")
        assert len(words) <= 400


@pytest.mark.parametrize("spec", [("program", "/nowhere/check"), ("pam", "no/such"), ("pam", "")])
def test_a_source_that_cannot_be_used_is_told_before_anything_is_started(spec):
    before = children_of(os.getpid())
    with pytest.raises(NoAttempts):
        attempts.start([SourceSpec("program", "/bin/true"), SourceSpec(*spec)])
    assert children_of(os.getpid()) == before


# What an attempt has of its own.


def surroundings(credentials, origin, seconds):
    link = os.readlink
    found = {
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
        "standard": {link(f"/proc/self/fd/{number}") for number in range(3)},
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "umask": oct(os.umask(0)),
        "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "name": Path("/proc/self/comm").read_text().strip(),
        "terminal": Path("/proc/self/stat").read_text().rpartition(")")[2].split()[4],
    }
    return NO, repr(found)


def test_an_attempt_has_nothing_of_ours(monkeypatch):
    monkeypatch.setenv("LEAK", "secret")
    leaking = os.dup2(1, 60)
    try:
        with helping(surroundings) as place:
            found = eval(place.ask()[1])
    finally:
        os.close(leaking)
    # the last one is the listing's own
    assert found["descriptors"] == [0, 1, 2, attempts._ANSWER_DESCRIPTOR] or found[
        "descriptors"
    ] == [0, 1, 2, 3]
    assert found["standard"] == {"/dev/null"}
    assert found["environment"] == {"PATH": attempts.PATH}
    assert (found["directory"], found["umask"], found["core"]) == ("/", "0o77", (0, 0))
    assert (found["leads"], found["name"], found["terminal"]) == (True, "tofmipd-attempt", "0")


def kept_by(place: Place) -> list[str]:
    folder = f"/proc/{place.pid}/fd"
    found = []
    for name in os.listdir(folder):
        # What is closed at this moment is not kept.
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"{folder}/{name}").partition(":")[0])
    return sorted(found)


NOTHING = ["/dev/null"] * 3 + ["socket"]


@pytest.mark.root
def test_the_helper_has_one_descriptor_more_than_nothing_and_no_environment(monkeypatch):
    monkeypatch.setenv("LEAK", "secret")
    with helping(says(YES)) as place:
        place.ask()
        wait_for(lambda: kept_by(place) == NOTHING)
        with open(f"/proc/{place.pid}/environ", "rb") as file:
            assert b"secret" not in file.read()


@pytest.mark.root
@pytest.mark.parametrize(
    "attempt",
    [says(YES), lambda *_: os._exit(3), lambda *_: time.sleep(60)],
    ids=["answers", "ends", "hangs"],
)
def test_nothing_of_an_attempt_stays_open_or_unburied(attempt):
    ours = len(os.listdir("/proc/self/fd"))
    with helping(attempt) as place, ThreadPoolExecutor(8) as pool:
        for answer in [pool.submit(place.ask, seconds=SHORT) for _ in range(16)]:
            answer.result()
        wait_for(lambda: kept_by(place) == NOTHING)
        assert not children_of(place.pid)
    assert len(os.listdir("/proc/self/fd")) <= ours


# Attempts that go wrong.


def raise_it(error: BaseException):
    def attempt(*_):
        raise error

    return attempt


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (raise_it(ValueError("FooBar")), "failed: ValueError"),
        (raise_it(MemoryError()), "failed: MemoryError"),
        (raise_it(KeyboardInterrupt()), "failed: KeyboardInterrupt"),
        (raise_it(SystemExit(0)), "failed: SystemExit"),
        (lambda *_: None, "failed: TypeError"),
        (lambda *_: ("accepted", ""), "failed: ValueError"),
        (lambda *_: os.kill(os.getpid(), signal.SIGSEGV), "killed by SIGSEGV"),
        (lambda *_: os.abort(), "killed by SIGABRT"),
        (lambda *_: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL"),
        (lambda *_: os._exit(7), "ended with status 7"),
    ],
    ids=range(10),
)
def test_an_attempt_that_breaks_is_unavailable_and_harms_nobody(attempt, words):
    with helping(attempt, says(YES)) as place:
        assert place.ask() == (MAYBE, words)
        assert place.ask(1) == (YES, "")


def close_and_go(*_):
    os.close(attempts._ANSWER_DESCRIPTOR)
    os._exit(0)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda *_: os._exit(0),
        close_and_go,
        *[
            lambda *_, octets=octets: (
                os.write(attempts._ANSWER_DESCRIPTOR, octets),
                os._exit(0),
            )
            for octets in (b"\0", b"\3\0\0", b"\0\0\0x", b"\xff" * 100, b"\0" * 5000, b"\0\xff\xff")
        ],
    ],
    ids=range(8),
)
def test_an_attempt_that_ends_without_an_answer_or_garbles_it_lets_nobody_in(attempt):
    with helping(attempt, says(YES)) as place:
        with pytest.raises(ConnectionError, match="has died"):
            place.ask()
        assert place.ask(1) == (YES, "")
        assert place.told == 0


def stop_oneself(*_):
    os.kill(os.getpid(), signal.SIGSTOP)


def ignore_all(*_):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(60)


@pytest.mark.parametrize(
    "attempt",
    [lambda *_: time.sleep(60), stop_oneself, ignore_all],
    ids=["sleeps", "stops", "ignores"],
)
def test_an_attempt_that_hangs_is_ended_in_time(attempt):
    with helping(attempt, says(YES)) as place:
        begun = time.monotonic()
        assert place.ask(seconds=SHORT) == (MAYBE, "does not answer in time")
        assert SHORT - 0.05 < time.monotonic() - begun < SHORT + 1
        wait_for(lambda: not children_of(place.pid))
        assert place.ask(1) == (YES, "")


def test_a_program_that_hangs_is_ended_with_what_it_has_started(program, tmp_path):
    command = program(f"sleep 60 & echo $! $$ >{tmp_path}/pids; sleep 60")
    with helping(command) as place:
        assert place.ask(seconds=SHORT)[0] is MAYBE
        pids = list(map(int, (tmp_path / "pids").read_text().split()))
        assert len(pids) == 2
        wait_for(lambda: not any(map(is_running, pids)))


def test_what_a_program_leaves_behind_ends_with_the_attempt(program, tmp_path):
    command = program(f"sleep 60 & echo $! >{tmp_path}/pid; exit 0")
    with helping(command) as place:
        assert place.ask() == (YES, "")
        pid = int((tmp_path / "pid").read_text())
        wait_for(lambda: not is_running(pid))


def test_one_that_hangs_delays_nobody(program):
    hang, quick = lambda *_: time.sleep(60), says(YES)
    with helping(hang, quick, program("exit 1")) as place, ThreadPoolExecutor(8) as pool:
        hanging = [pool.submit(place.ask, 0, seconds=3) for _ in range(8)]
        wait_for(lambda: len(children_of(place.pid)) == 8)
        begun = time.monotonic()
        for _ in range(10):
            assert place.ask(1) == (YES, "")
            assert place.ask(2) == (NO, "")
        assert time.monotonic() - begun < 2.5
        assert not any(answer.done() for answer in hanging)
        assert {answer.result()[0] for answer in hanging} == {MAYBE}


def test_each_of_many_at_once_gets_its_own_answer():
    def judge(credentials, origin, seconds):
        time.sleep(int(credentials.password[-1:]) / 100)
        return (YES if credentials.password.startswith(b"right") else NO), credentials.user

    with helping(judge) as place, ThreadPoolExecutor(16) as pool:
        logins = [(f"user{n}", b"%s%d" % (b"right" if n % 3 else b"wrong", n)) for n in range(64)]
        answers = pool.map(lambda login: place.ask(credentials=Password(*login)), logins)
        for (user, password), (verdict, words) in zip(logins, answers, strict=True):
            assert (verdict, words) == (YES if b"right" in password else NO, user)


def test_an_attempt_that_floods_is_an_attempt_that_hangs():
    def flood(*_):
        os.set_blocking(attempts._ANSWER_DESCRIPTOR, False)
        while True:
            with contextlib.suppress(BlockingIOError):
                os.write(attempts._ANSWER_DESCRIPTOR, b"\x07" * 3000)

    with helping(flood, says(YES)) as place:
        with pytest.raises(ConnectionError, match="has died"):
            place.ask(seconds=SHORT)
        wait_for(lambda: not children_of(place.pid))
        assert place.ask(1) == (YES, "")


# The helper is gone, or does not answer.


def test_a_helper_that_is_gone_is_told_to_whom_it_concerns():
    with helping(says(YES)) as place:
        assert place.ask() == (YES, "")
        os.kill(place.pid, signal.SIGKILL)
        os.waitpid(place.pid, 0)
        for number in (1, 2):
            with pytest.raises(ConnectionError, match="the helper process is gone"):
                place.ask()
            assert place.told == number


def test_an_attempt_under_way_when_the_helper_dies_comes_back_at_once_and_ends_soon():
    with helping(lambda *_: time.sleep(60)) as place, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(place.ask, seconds=0.5)
        wait_for(lambda: children_of(place.pid))
        (attempt,) = children_of(place.pid)
        begun = time.monotonic()
        os.kill(place.pid, signal.SIGKILL)
        os.waitpid(place.pid, 0)
        with pytest.raises(ConnectionError, match="has died"):
            answer.result()
        wait_for(lambda: not is_running(attempt))
        assert time.monotonic() - begun < 0.5 + attempts._ALARM_SECONDS + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_for_the_daemon_are_not_for_the_helper(number):
    with helping(says(YES)) as place:
        for _ in range(2):  # the first time shows that it has begun
            assert place.ask() == (YES, "")
            os.kill(place.pid, number)
        assert place.ask() == (YES, "")


def test_attempts_end_with_whoever_asked_for_them(program, tmp_path):
    command = program(f"echo $$ >{tmp_path}/pid; sleep 60")
    with helping(lambda *_: time.sleep(60), command) as place, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(place.ask, number, seconds=30) for number in range(2)]
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        wait_for(lambda: len(children_of(place.pid)) == 2)
        pids = [*children_of(place.pid), int((tmp_path / "pid").read_text())]
        begun = time.monotonic()
        place.end()
        wait_for(lambda: not any(map(is_running, pids)))
        for answer in answers:
            with pytest.raises(ConnectionError):
                answer.result()
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize("full", [False, True])
def test_a_helper_that_does_not_answer_keeps_nobody_waiting(full, monkeypatch):
    """Also when there is no room for further requests."""
    monkeypatch.setattr(attempts, "_GRACE_SECONDS", 0.1)
    with helping(says(YES)) as place:
        assert place.ask() == (YES, "")
        os.kill(place.pid, signal.SIGSTOP)
        if full:
            with contextlib.suppress(BlockingIOError):
                while True:
                    place.helper._control._socket.send(b"x" * 1000, socket.MSG_DONTWAIT)
        # Were it never to come back, this would make it.
        end = threading.Timer(PATIENCE_SECONDS, os.kill, (place.pid, signal.SIGKILL))
        end.start()
        try:
            with pytest.raises(TimeoutError):
                place.ask(seconds=0.1)
        finally:
            end.cancel()
            end.join()


# Requests that are none.


def request(
    source=0, milliseconds=1000, user="bobby", password=b"x", address="", local=""
) -> bytes:
    return struct.pack("!BI", source, milliseconds) + packed(user, password, address, local)


def with_channel(place: Place, octets: bytes) -> None:
    ours, theirs = Channel.pair()
    with ours, theirs:
        place.helper._control.send(octets, (theirs.fileno(),))


def with_file(place: Place, octets: bytes) -> None:
    with open("/dev/null") as file:
        place.helper._control.send(octets, (file.fileno(),))


def with_two(place: Place, octets: bytes) -> None:
    ours, theirs = Channel.pair()
    with ours, theirs:
        place.helper._control.send(octets, (theirs.fileno(), ours.fileno()))


def alone(place: Place, octets: bytes) -> None:
    place.helper._control.send(octets)


@pytest.mark.parametrize(
    ("send", "octets"),
    [
        *[
            (with_channel, octets)
            for octets in (
                b"x",
                request()[:-1],
                request() + b"\0",
                request(source=1),
                request(source=255),
                request(user=""),
                request(user="../root"),
                request(user="-f"),
                request(user="a/b"),
                request(user="a\0"),
                request(user="a\nb"),
                request(user="b" * 256),
                request(password=b""),
                request(password=b"x" * 1001),
                request(address="1" * 81),
                request(local="\n"),
                request(password=b"x" * 5000),
            )
        ],
        (with_file, request()),
        (with_two, request()),
        (alone, request()),
    ],
    ids=range(20),
)
def test_a_request_that_is_none_ends_the_helper_and_runs_nothing(send, octets, tmp_path):
    def attempt(*_):
        (tmp_path / "ran").write_text("")
        return YES, ""

    with helping(attempt) as place:
        send(place, octets)
        wait_for(lambda: os.waitpid(place.pid, os.WNOHANG)[0] == place.pid)
        with pytest.raises(ConnectionError):
            place.ask()
    assert not (tmp_path / "ran").exists()


def test_the_request_that_those_are_made_from_is_one():
    with helping(says(YES)) as place:
        with_channel(place, request())
        assert place.ask() == (YES, "")


def test_what_serves_a_session_cannot_reach_the_helper_s_files():
    """The helper keeps root: nothing of it is in the file system."""
    with helping(says(YES)) as place:
        mode = os.fstat(place.helper._control.fileno()).st_mode
        assert stat.S_ISSOCK(mode)
        assert place.helper._control._socket.getsockname() in ("", b"")


def test_threads_of_the_asker_are_not_in_the_helper(program):
    """It is forked by a process of one thread; here only that asking needs none of its own."""
    with helping(program("exit 0")) as place:
        before = threading.active_count()
        assert place.ask() == (YES, "")
        assert threading.active_count() == before
        with open(f"/proc/{place.pid}/status") as file:
            assert "Threads:\t1\n" in file.read()
