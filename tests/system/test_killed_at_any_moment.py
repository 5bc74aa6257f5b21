"""The daemon is killed again and again while clients submit; the sum is right afterwards.

What was answered 250 reaches every recipient, or its sender hears who was refused.  What was not
answered may have arrived, or may not.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from clients import logged_in
from fakes import Act, FakeNextHop, Moment, Taken
from faultyhop import address_in
from running import (
    HOST,
    LIMIT_SECONDS,
    Home,
    ending,
    environment,
    free_port,
    make_home,
    to_smtp,
    tofmipd,
    wait_until,
)
from test_fault_matrix import RULES, body_of, named_in, submit_at_once

KILLS, HOUSES, CLIENTS = 200, 4, 5
# Of messages that one house has under way from its outbox.
AT_ONCE = 4
OPTIONS = ("--queue-retry", "1s")
# To start Python takes longer than all else: daemons are forked by a process that has all modules.
_FORGE = """
import importlib, os, pkgutil, signal, sys
import tofmipd
for module in pkgutil.walk_packages(tofmipd.__path__, "tofmipd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
while sys.stdin.readline():
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        sys.exit(tofmipd.cli.main(sys.argv[1:]))
    sys.stdin.readline()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""
# Beginnings of addresses; "later" and "never" is what the next hop says to them, once.
WORDS = [
    ("one.",),
    ("one.", "one."),
    ("own.", "own."),
    ("own.", "own.later.", "own."),
    ("own.", "own.", "own.never.", "own."),
    ("half1.", "half2.", "half1.", "half2.later."),
    ("half1.", "half2.", "half1.", "half2.never."),
]


class FickleHop(FakeNextHop):
    """Refuses some addresses the ``sight``-th time that it sees them, for now or for good.

    ``life`` is the number of the daemon that uses it.
    """

    def __init__(self, sight: int) -> None:
        self.life = 0
        self.lives: dict[int, int] = {}
        self.refused: set[str] = set()
        self._sight = sight
        self._seen: Counter[str] = Counter()
        super().__init__(self._decide)

    def _decide(self, moment: Moment) -> Act | None:
        if moment.stage == "GREETING":
            self.lives[moment.connection] = self.life
        if moment.stage != "RCPT":
            return None
        address = address_in(moment.argument)
        self._seen[address] += 1
        if self._seen[address] != self._sight:
            return None
        if ".later." in address:
            return Act(b"450 4.2.0 not now\r\n")
        if ".never." in address:
            self.refused.add(address)
            return Act(b"550 5.1.1 never\r\n")
        return None


@dataclass
class Message:
    """``answer`` is empty where the client heard nothing."""

    mark: str
    recipients: tuple[str, ...]
    body: bytes
    answer: str = ""


@dataclass
class House:
    """A home, its next hop, and clients that submit as long as there is a daemon."""

    home: Home
    hop: FickleHop
    options: tuple[str, ...]
    port: int = field(default_factory=free_port)
    messages: list[Message] = field(default_factory=list)
    up: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def outbox(self) -> Path:
        return self.home.path / ".tmda/outbox"

    @property
    def log(self) -> Path:
        return self.home.path / "log"

    @contextlib.contextmanager
    def forge(self) -> Iterator[subprocess.Popen[bytes]]:
        """A process that forks daemons."""
        listen = ("-p", f"{HOST}:{self.port}")
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _FORGE),
                    *("--personal", "-f", *listen, *OPTIONS, *self.options),
                ],
                env=environment(self.home),
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                bufsize=0,
            )
        with ending(process), process.stdin, process.stdout:
            try:
                yield process
            finally:
                # Then it ends, and its child before it.
                process.stdin.close()
                process.wait(LIMIT_SECONDS)

    @contextlib.contextmanager
    def daemon(self, forge: subprocess.Popen[bytes]) -> Iterator[None]:
        """A daemon that greets clients; it is killed in the end."""
        self.hop.life += 1
        forge.stdin.write(b"start\n")
        wait_until(self.greets, "the daemon")
        self.up.set()
        yield
        self.up.clear()
        forge.stdin.write(b"end\n")
        assert forge.stdout.readline() == b"dead\n"

    def greets(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((HOST, self.port), timeout=20) as probe,
        ):
            return probe.recv(4) == b"220 "
        return False

    def submit_on_and_on(self, client: int) -> None:
        for number in itertools.count():
            while not self.up.wait(0.1):
                if self.over.is_set():
                    return
            if self.over.is_set():
                return
            words = WORDS[(number + client) % len(WORDS)]
            mark = f"m{client}.{number}"
            recipients = tuple(f"{word}{n}.{mark}@example.net" for n, word in enumerate(words))
            message = Message(mark, recipients, body_of(mark, 300))
            self.messages.append(message)
            # The daemon may go at any moment.
            with contextlib.suppress(OSError, AssertionError), logged_in(self.port) as talk:
                message.answer = submit_at_once(talk, mark, recipients, message.body)

    @contextlib.contextmanager
    def clients(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self.submit_on_and_on, args=(number,))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()

    def survive(self, kills: int, chance: random.Random) -> None:
        """Have daemons killed, and then one that is not."""
        with self.forge() as forge, self.clients():
            with self.daemon(forge):
                span = self.seconds_of_messages()
            for _ in range(kills):
                with self.daemon(forge):
                    time.sleep(chance.uniform(0, span))
        self.hop.life += 1
        with tofmipd(self.home, *OPTIONS, *self.options):
            wait_until(lambda: not self.waiting(), "the outbox to be empty", 30)

    def seconds_of_messages(self) -> float:
        """How long the clients take for one message each."""
        start = time.monotonic()
        wait_until(lambda: sum(bool(m.answer) for m in self.messages) >= CLIENTS, "answers")
        return time.monotonic() - start

    def waiting(self) -> list[str]:
        """What is in the outbox; what a death has left besides is nobody's."""
        return [path.name for path in self.outbox.glob("*.envelope*") if path.suffix != ".new"]

    def problems(self) -> list[str]:
        """What is wrong with the sum."""
        found = [*self.hop.violations]
        text = self.log.read_text(errors="replace")
        found += ["Traceback"] * ("Traceback" in text or "internal error" in text)
        messages = {message.mark: message for message in self.messages}
        deliveries: defaultdict[str, list[Taken]] = defaultdict(list)
        reported: set[str] = set()
        for taken in self.hop.messages:
            if not taken.sender:
                reported |= named_in(taken)
                continue
            mark = re.search(rb"Subject: <(.*?)>", taken.wire)
            assert mark is not None
            if taken.wire.partition(b"\r\n\r\n")[2] != messages[mark[1].decode()].body:
                found.append(f"{mark[1]!r} is not whole")
            for recipient in taken.recipients:
                deliveries[recipient].append(taken)
        for message in self.messages:
            for recipient in message.recipients:
                count = len(deliveries[recipient])
                excused = recipient in self.hop.refused & reported
                if message.answer.startswith("250 ") and not count and not excused:
                    found.append(f"{recipient} is lost: {message.answer}")
                if message.answer[:1] in ("4", "5") and count:
                    found.append(f"{recipient} has it: {message.answer}")
        return found + self.doubled(deliveries)

    def doubled(self, deliveries: dict[str, list[Taken]]) -> list[str]:
        """Each death may hide what the next hop said to those that were under way."""
        found, hidden = [], defaultdict(set)
        for recipient, all_taken in deliveries.items():
            lives = [self.hop.lives[taken.connection] for taken in all_taken]
            if len(set(lives)) < len(lives):
                found.append(f"{recipient} has it twice from one daemon")
            for taken, life in zip(all_taken[:-1], lives, strict=False):
                hidden[life].add(taken.sender + taken.digest)
        found += [f"{n} copies twice" for n in map(len, hidden.values()) if n > AT_ONCE]
        return found


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[House]]:
    """The last one keeps every message first."""
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(HOUSES):
            spools = number == HOUSES - 1
            hop = stack.enter_context(FickleHop(1 if spools else 2))
            path = tmp_path_factory.mktemp("house")
            home = make_home(path, to_smtp(hop.port), rules=RULES)
            made.append(House(home, hop, ("--spool",) if spools else ()))
        yield made


def test_what_was_answered_for_survives_every_death(houses):
    errors = []

    def survive(number: int, house: House) -> None:
        try:
            house.survive(KILLS // HOUSES, random.Random(number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=survive, args=item) for item in enumerate(houses)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [house.problems() for house in houses] == [[]] * HOUSES
    answers = [message.answer for house in houses for message in house.messages]
    # It was not all for nothing.
    assert "" in answers
    assert any("for the others" in answer for answer in answers)
    assert any(answer.startswith("250 2.0.0 Ok: queued as tofmipd.") for answer in answers)
    assert all(house.hop.refused for house in houses)
