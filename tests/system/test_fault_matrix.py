"""The next hop fails in every way at every point: nothing is lost, nothing comes twice.

The sum over what clients hear, what the next hop has and what is left in the outbox must be right,
whatever happens.  A message that was answered 250 reaches every recipient, or its sender hears who
was refused; of any other nothing arrives, but where the next hop vanished before it could say that
it had it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from clients import Dialogue, logged_in
from fakes import Taken, server_context
from faultyhop import CREDENTIALS, FAULTS, VANISHING, FaultyHop, Record, Trap, act_of, answered
from running import PASSWORD, make_home, to_smtp, tofmipd, wait_until
from village import Village

LANES = 24
# Much longer than anything takes that does not stall.
TIME_LIMITS = tuple(
    word
    for name in ("connect-timeout", "timeout", "dot-timeout")
    for word in (f"--nexthop-{name}", "3")
)
RULES = """\
to one* dated=1d
to own* sender
to half1* dated=1d
to half2* dated=2d
"""
BIG = 80_000


@dataclass(frozen=True)
class Shape:
    """How many recipients, in how many copies; ``words`` begin their addresses in turn."""

    recipients: int
    copies: int
    words: tuple[str, ...]

    def addresses(self, mark: str) -> tuple[str, ...]:
        count = len(self.words)
        return tuple(
            f"{self.words[n % count]}{n}.{mark}@example.net" for n in range(self.recipients)
        )

    @property
    def first_copy(self) -> int:
        """How many recipients it has."""
        return self.recipients // self.copies


SHAPES = {
    "one": Shape(1, 1, ("one",)),
    "two, one copy": Shape(2, 1, ("one",)),
    "fifty, one copy": Shape(50, 1, ("one",)),
    "two, two copies": Shape(2, 2, ("own",)),
    "four, two copies": Shape(4, 2, ("half1.", "half2.")),
    "fifty, fifty copies": Shape(50, 50, ("own",)),
}


@dataclass(frozen=True)
class Point:
    """A moment of a message: the ``count``-th time of a stage, which may depend on its shape.

    ``copy`` is the one that is concerned, counted from 1, 0 for all.  ``kept``: on a connection
    that has been used before.  ``taken``: the next hop has the message then.
    """

    stage: str
    count: Callable[[Shape], int] = lambda shape: 1
    copy: int = 1
    kept: bool = False
    taken: bool = False
    least_recipients: int = 1
    least_copies: int = 1
    opening: bool = False
    spooled: bool = False

    def faults(self) -> Sequence[str]:
        match self.stage:
            case "CONNECT":
                return ("refuses", "stalls")
            case "REPLIED":
                return [x for x in FAULTS if not x.startswith("refuses") and x != "stalls"]
        return VANISHING if self.taken else FAULTS

    def fits(self, shape: Shape) -> bool:
        return shape.recipients >= self.least_recipients and shape.copies >= self.least_copies


def opening(stage: str, count: int = 1) -> Point:
    return Point(stage, lambda shape: count, copy=0, opening=True)


POINTS = {
    "connect": opening("CONNECT"),
    "greeting": opening("GREETING"),
    "EHLO": opening("EHLO"),
    "STARTTLS": opening("STARTTLS"),
    "second EHLO": opening("EHLO", 2),
    "AUTH": opening("AUTH"),
    "MAIL": Point("MAIL"),
    "first RCPT": Point("RCPT"),
    "last RCPT": Point("RCPT", lambda shape: shape.recipients, least_recipients=2),
    "RSET": Point("RSET", least_copies=2),
    "DATA": Point("DATA"),
    "begin of the body": Point("BODY"),
    "mid-body": Point("BODY", lambda shape: 2),
    "dot": Point("DOT"),
    "after the dot": Point("DOT", taken=True),
    "idle": Point("REPLIED", copy=0, kept=True),
    "MAIL on a kept connection": Point("MAIL", kept=True),
    "RCPT on a kept connection": Point("RCPT", lambda shape: shape.recipients, kept=True),
    "DATA on a kept connection": Point("DATA", kept=True),
    "dot on a kept connection": Point("DOT", kept=True),
    "between two copies": Point("REPLIED", copy=2, least_copies=2),
    "MAIL of the second copy": Point("MAIL", lambda s: s.copies + 1, copy=2, least_copies=2),
    "RCPT of the second copy": Point("RCPT", lambda s: s.recipients + 1, copy=2, least_copies=2),
    "last RCPT of all": Point(
        "RCPT", lambda s: 2 * s.recipients - s.first_copy, copy=2, least_copies=2
    ),
    "DATA of the second copy": Point("DATA", lambda s: 2, copy=2, least_copies=2),
    "mid-body of the second copy": Point("BODY", lambda s: 2, copy=2, least_copies=2),
    "dot of the second copy": Point("DOT", lambda s: 2, copy=2, least_copies=2),
    "after the dot of the second copy": Point(
        "DOT", lambda s: 2, copy=2, taken=True, least_copies=2
    ),
    "dot of the last copy": Point("DOT", lambda s: s.copies, copy=2, least_copies=3),
    "after the dot of the last copy": Point(
        "DOT", lambda s: s.copies, copy=2, taken=True, least_copies=3
    ),
}
# Where the client is not asked to wait, each copy has its transaction when its turn comes.
SPOOLED = {
    f"spooled: {name}": dataclasses.replace(point, spooled=True)
    for name, point in {
        **{name: point for name, point in POINTS.items() if point.opening},
        "MAIL": Point("MAIL"),
        "first RCPT": Point("RCPT"),
        "last RCPT": Point("RCPT", lambda s: s.recipients),
        "DATA": Point("DATA"),
        "mid-body": Point("BODY", lambda s: 2),
        "dot": Point("DOT"),
        "after the dot": Point("DOT", taken=True),
        "between two copies": Point("REPLIED", least_copies=2),
        "MAIL of the second copy": Point("MAIL", lambda s: 2, least_copies=2),
        "RCPT of the second copy": Point("RCPT", lambda s: s.first_copy + 1, least_copies=2),
        "DATA of the second copy": Point("DATA", lambda s: 2, least_copies=2),
        "dot of the second copy": Point("DOT", lambda s: 2, least_copies=2),
        "after the dot of the second copy": Point("DOT", lambda s: 2, taken=True, least_copies=2),
        "MAIL on a kept connection": Point("MAIL", kept=True),
        "idle": Point("REPLIED", kept=True),
    }.items()
}
ALL_POINTS = POINTS | SPOOLED


@dataclass(frozen=True)
class Case:
    """One message and what happens to it."""

    point: str
    fault: str
    shape: str

    @property
    def codes(self) -> str:
        """The first digits that its client may hear."""
        point = ALL_POINTS[self.point]
        harmless = point.stage == "REPLIED" or (point.stage, self.fault) == ("DOT", "too many")
        if (self.point, self.fault) == ("idle", "too many"):
            return "24"  # it may come so late that it answers the next command
        if point.copy > 1 or harmless or point.spooled:
            return "2"
        if point.opening:
            return "24" if self.fault == "too many" else "4"
        if point.stage == "RSET" and self.fault.startswith("refuses"):
            return "2"
        if point.stage == "BODY":
            return {"refuses": "45", "too many": "24"}.get(self.fault, "4")
        if self.fault == "refuses":
            return "5"
        fresh_one_tried = point.kept and point.stage != "DOT"
        if fresh_one_tried and self.fault not in ("refuses for now", "stalls", "too many"):
            return "2"
        return "4"

    def trap(self) -> Trap | None:
        point = ALL_POINTS[self.point]
        if point.stage == "CONNECT":
            return None
        act = act_of(self.fault, point.stage, takes=point.taken)
        count = point.count(SHAPES[self.shape])
        trap = Trap(point.stage, count, act)
        # How often that comes depends on the pieces in which a message comes.
        return Trap("DATA", point.copy, then=trap) if point.stage == "BODY" else trap


def cases(
    points: Mapping[str, Point], shapes: Sequence[str], faults: Sequence[str] = FAULTS
) -> list[Case]:
    """All that there are of these."""
    return [
        Case(name, fault, shape)
        for name, point in points.items()
        for fault in point.faults()
        for shape in shapes
        if fault in faults and point.fits(SHAPES[shape])
    ]


@dataclass
class Run:
    """A case that has been run: what was sent, and what was heard."""

    case: Case
    mark: str
    recipients: tuple[str, ...]
    body: bytes
    answer: str = ""
    sprung: bool = True
    record: Record = field(default_factory=Record)


@dataclass
class Lane:
    """One client, one next hop; what is sent there does not disturb others."""

    hop: FaultyHop
    talk: Dialogue
    outbox: Path

    def go(self, run: Run) -> None:
        """Send the message, have the fault happen, and wait until nothing is left of it."""
        case, point = run.case, ALL_POINTS[run.case.point]
        self.hop.begin(run.record)
        if point.kept:
            self.hop.set_trap(case.trap() if point.stage == "REPLIED" else None)
            self.warm_up()
        if point.stage == "REPLIED" and point.kept:
            wait_until(self.hop.sprung.is_set, "the fault")
        else:
            self.hop.set_trap(case.trap())
        with contextlib.ExitStack() as stack:
            if point.stage == "CONNECT":
                stack.enter_context(
                    self.hop.closed() if case.fault == "refuses" else self.hop.deaf()
                )
            run.answer = self.submit(run.mark, run.recipients, run.body)
        self.drained(run.answer)
        run.sprung = point.stage == "CONNECT" or self.hop.sprung.is_set()

    def warm_up(self) -> None:
        answer = self.submit("warm-up", ("warm-up@example.net",), b"x\r\n")
        assert answer.startswith("250 "), answer
        self.drained(answer)

    def submit(self, mark: str, recipients: Sequence[str], body: bytes) -> str:
        return submit_at_once(self.talk, mark, recipients, body)

    def drained(self, answer: str) -> None:
        """Wait until what was put into the outbox is no more there."""
        found = re.search(r"queued as (tofmipd\.\S+)", answer)
        if found is not None:
            own = found[1] + "."
            wait_until(
                lambda: not any(name.startswith(own) for name in os.listdir(self.outbox)),
                f"{answer} to leave the outbox",
            )


def submit_at_once(talk: Dialogue, mark: str, recipients: Sequence[str], body: bytes) -> str:
    """Send a message, its commands in one piece; the last reply."""
    to = ",\r\n ".join(recipients)
    head = f"From: Bobby <bobby@example.org>\r\nTo: {to}\r\nSubject: <{mark}>\r\n\r\n"
    commands = ["MAIL FROM:<bobby@example.org>", *(f"RCPT TO:<{x}>" for x in recipients), "DATA"]
    talk.send("".join(f"{line}\r\n" for line in commands).encode())
    for _ in commands[1:]:
        assert talk.reply().startswith("250 ")
    assert talk.reply().startswith("354 ")
    talk.send(head.encode() + body + b".\r\n")
    return talk.reply()


def body_of(mark: str, size_octets: int) -> bytes:
    """In wire form: lines, some of which begin with a dot, of at least so many octets."""
    line = b"..%s\r\n.. \r\nline of %s\r\n" % (mark.encode(), mark.encode())
    return line * (size_octets // len(line) + 1)


def runs_of(cases: Sequence[Case]) -> list[Run]:
    return [
        Run(
            case,
            f"run-{number}",
            SHAPES[case.shape].addresses(f"run-{number}"),
            body_of(f"run-{number}", BIG if "mid-body" in case.point else 300),
        )
        for number, case in enumerate(cases)
    ]


def run_all(*plans: tuple[Sequence[Lane], Sequence[Run]]) -> None:
    """All runs of each plan on its lanes; those that take long come first."""
    errors: list[BaseException] = []

    def work(lane: Lane, waiting: queue.SimpleQueue[Run]) -> None:
        try:
            while not errors:
                lane.go(waiting.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:
            errors.append(error)

    threads = []
    for lanes, runs in plans:
        waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
        for run in sorted(runs, key=lambda run: run.case.fault != "stalls"):
            waiting.put(run)
        threads += [threading.Thread(target=work, args=(lane, waiting)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def named_in(report: Taken) -> set[str]:
    """Whom a report is about (RFC 3464 section 2.3.2)."""
    found = re.findall(rb"(?mi)^Final-Recipient: *rfc822; *(\S+)\r$", report.text)
    return {address.decode() for address in found}


@dataclass
class Sum:
    """What a next hop has of one message."""

    run: Run
    surely: Counter[str] = field(default_factory=Counter)
    perhaps: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, message: Taken) -> None:
        if not message.sender:
            self._report(message)
            return
        header, _, body = message.wire.partition(b"\r\n\r\n")
        if body != self.run.body or b"Subject: <%s>" % self.run.mark.encode() not in header:
            self.faults.append(f"{len(message.wire)} octets are not those that were sent")
        counts = self.surely if answered(message) else self.perhaps
        counts.update(message.recipients)

    def _report(self, message: Taken) -> None:
        """Who it is about: those of its copy that it names."""
        if not answered(message):
            return
        named = named_in(message)
        for recipient in self.run.recipients:
            if self.run.record.sender(recipient) in message.recipients and recipient in named:
                self.reported[recipient] += 1

    def problems(self) -> list[str]:
        run, found = self.run, list(self.faults)
        if not run.sprung:
            found.append("the fault did not happen")
        if run.answer[:1] not in run.case.codes:
            found.append(f"the client heard {run.answer!r}, not {run.case.codes}xx")
        good = run.answer.startswith("250 ")
        vanished = run.case.fault in VANISHING
        for recipient in run.recipients:
            count = self.surely[recipient]
            reports = self.reported[recipient]
            refused = run.record.has_refused(recipient)
            if (count, reports) not in ([(1, 0), (0, 1)][: 1 + refused] if good else [(0, 0)]):
                found.append(f"{recipient} has it {count} times and is in {reports} reports")
            if self.perhaps[recipient] > (1 if vanished else 0):
                found.append(f"{recipient} has it {self.perhaps[recipient]} times without a reply")
        stray = (set(self.surely) | set(self.perhaps)) - set(run.recipients)
        return [f"{run.case}: {x}; {run.answer}" for x in [*found, *(f"stray: {s}" for s in stray)]]


Problems = Mapping[str, list[str]]


def sums_of(lanes: Sequence[Lane], runs: Sequence[Run]) -> Problems:
    """What is wrong, by the point of the fault."""
    sums = {run.mark: Sum(run) for run in runs}
    for lane in lanes:
        assert lane.hop.violations == []
        for message in lane.hop.messages:
            mark = re.search(rb"Subject: <(.*?)>", message.wire)
            assert mark is not None, message
            if mark[1] != b"warm-up":
                sums[mark[1].decode()].add(message)
    found = defaultdict(list)
    for one in sums.values():
        found[one.run.case.point] += one.problems()
    return found


@contextlib.contextmanager
def personal_lanes(directory: Path, count: int, *options: str) -> Iterator[list[Lane]]:
    """Logins of one person's daemon; each has a configuration and a next hop of its own."""
    directory.mkdir()
    context, authority = server_context(directory)
    logins = [f"lane{number}" for number in range(count)]
    home = make_home(directory / "home", rules=RULES)
    home.write("tofmipd", "".join(f"{login}:{PASSWORD}\n" for login in logins))
    outbox = directory / "outbox"
    outbox.mkdir(0o700, parents=True)
    with contextlib.ExitStack() as stack:
        hops = [stack.enter_context(FaultyHop(context)) for _ in logins]
        for login, hop in zip(logins, hops, strict=True):
            (directory / "configs" / login).mkdir(parents=True)
            lines = [
                *('USERNAME = "bobby"', 'HOSTNAME = "example.org"', to_smtp(hop.port)),
                *("SMTPSSL = True", f'SMTPSSL_CAFILE = "{authority}"'),
                'SMTPAUTH_USERNAME, SMTPAUTH_PASSWORD = "{}", "{}"'.format(*CREDENTIALS),
            ]
            (directory / "configs" / login / "config").write_text("\n".join([*lines, ""]))
        own = ("-d", "-c", str(directory / "configs"), "--outbox", str(outbox))
        daemon = stack.enter_context(
            tofmipd(home, *own, "--queue-retry", "1s", *TIME_LIMITS, *options)
        )
        yield [
            Lane(hop, stack.enter_context(logged_in(daemon.port, login, PASSWORD)), outbox)
            for login, hop in zip(logins, hops, strict=True)
        ]
        assert os.listdir(outbox) == []


@contextlib.contextmanager
def global_lanes(village: Village) -> Iterator[list[Lane]]:
    """People of a village, each with a next hop."""
    with contextlib.ExitStack() as stack:
        hops = [stack.enter_context(FaultyHop()) for _ in village.people]
        village.reset(hops[0].port)
        for person, hop in zip(village.people, hops, strict=True):
            person.configure(f'USERNAME = "{person.name}"', to_smtp(hop.port))
            person.write("filters/outgoing", RULES)
        daemon = stack.enter_context(village.daemon("--queue-retry", "1s", *TIME_LIMITS))
        lanes = []
        for person, hop in zip(village.people, hops, strict=True):
            talk = stack.enter_context(logged_in(daemon.port, person.name, person.password))
            lanes.append(Lane(hop, talk, village.outboxes / person.name))
        yield lanes
        for lane in lanes:
            assert os.listdir(lane.outbox) == []


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Problems:
    """What is wrong after everything has happened.  Both daemons wait much, so they run at once."""
    directory = tmp_path_factory.mktemp("matrix")
    runs = runs_of(cases(POINTS, tuple(SHAPES)))
    spooled = runs_of(
        [
            *cases(SPOOLED, ("four, two copies",), [x for x in FAULTS if x != "stalls"]),
            *cases(SPOOLED, ("fifty, one copy",), ("refuses", "421")),
            *cases(SPOOLED, ("two, one copy",), ("stalls",)),
        ]
    )
    with (
        personal_lanes(directory / "direct", LANES) as lanes,
        personal_lanes(directory / "spooled", LANES, "--spool") as spool_lanes,
    ):
        run_all((spool_lanes, spooled), (lanes, runs))
    return sums_of(lanes, runs) | sums_of(spool_lanes, spooled)


@pytest.mark.parametrize("point", ALL_POINTS)
def test_nothing_is_lost_and_nothing_comes_twice(point, matrix):
    assert matrix[point] == []


@pytest.fixture(scope="module")
def global_matrix(village_once: Village) -> Problems:
    """A sample with workers, one for each of three users."""
    points = ("connect", "DATA", "after the dot", "idle", "between two copies")
    later = ("MAIL", "RCPT", "dot", "after the dot")
    names = [*points, *(f"{name} of the second copy" for name in later)]
    sample = {name: POINTS[name] for name in names}
    runs = runs_of(cases(sample, ("four, two copies",), ("refuses", "resets", "garbage", "421")))
    with global_lanes(village_once) as lanes:
        run_all((lanes, runs))
    return sums_of(lanes, runs)


@pytest.mark.root
def test_the_same_holds_where_users_have_workers(global_matrix):
    assert [problem for found in global_matrix.values() for problem in found] == []
