"""Limits on what a login may send: what passes when, and what becomes of the file."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import resource
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forking import Child, in_child
from hypothesis import given
from hypothesis import strategies as st

from tofmipd.errors import Fatal
from tofmipd.privsep.quota import Exceeded, Quota
from tofmipd.settings import Quotas, Rate
from tofmipd.smtp.reply import Reply

HOUR, DAY = 3600, 86400
NOON = 1_795_348_800.0  # 12:00 UTC
TAKEN = Reply(250, "0.0", ("Ok",))
REFUSED = Reply(550, "1.1", ("No such user",))
UNKNOWN = "451 4.3.0 Error: the limits cannot be looked up now, try again later"
PATIENCE_SECONDS = 20.0


class Clock:
    """``now`` is in seconds since 1970; a test moves it."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Books:
    """A file of limits, what counts in it, and what it lets pass."""

    def __init__(self, path: Path, *messages: Rate, recipients: tuple[Rate, ...] = ()) -> None:
        self.path = path
        self.quotas = Quotas(messages, recipients, str(path))
        self.clock = Clock()
        self.quota = self.another()

    def another(self, patience_seconds: float = PATIENCE_SECONDS) -> Quota:
        """As another process would have one."""
        return Quota(self.quotas, self.clock, patience_seconds)

    def send(self, login: str = "joe", recipients: int = 1, reply: Reply = TAKEN) -> str:
        """The code of the reply to a message that gets ``reply`` if it is passed on."""
        return str(self.quota.limited(login, recipients, "1f", lambda: reply).code)

    def rows(self) -> int:
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            (count,) = database.execute("SELECT count(*) FROM sent").fetchone()
        return count


@pytest.fixture
def books(tmp_path):
    """Of as many users as one likes; all are closed."""
    with contextlib.ExitStack() as stack:

        def make(*messages: Rate, recipients: tuple[Rate, ...] = ()) -> Books:
            made = Books(tmp_path / "limits", *messages, recipients=recipients)
            stack.callback(lambda: made.quota.close())
            return made

        yield make


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# What passes when.


def test_so_many_messages_pass_and_not_one_more(books):
    some = books(Rate(100, HOUR))
    assert [some.send() for _ in range(101)] == ["250"] * 100 + ["452"]


def test_a_place_is_free_as_soon_as_its_time_is_over_and_not_before(books):
    some = books(Rate(2, HOUR))
    for wait in (0, 600):
        some.clock.now += wait
        assert some.send() == "250"
    for wait, code in ((HOUR - 601, "452"), (1, "250"), (0, "452"), (599, "452"), (1, "250")):
        some.clock.now += wait
        assert some.send() == code


def test_who_may_send_no_more_is_nobody_elses_business(books):
    some = books(Rate(1, HOUR))
    codes = [some.send(name) for name in ("joe", "ann", "joe", "jo", "ann")]
    assert codes == ["250", "250", "452", "250", "452"]


def test_all_limits_hold_and_the_one_that_lasts_longest_is_named(books):
    some = books(Rate(2, HOUR), Rate(3, DAY), recipients=(Rate(10, DAY),))
    for wait, recipients, code in (
        (0, 1, "250"),
        (0, 1, "250"),
        (0, 1, "452"),
        (HOUR, 8, "250"),
        (HOUR, 1, "452"),
    ):
        some.clock.now += wait
        assert some.send(recipients=recipients) == code
    exceeded = some.quota.take("joe", 9)
    assert isinstance(exceeded, Exceeded)
    # After a day the first two are gone, an hour later those eight.
    assert (exceeded.what, exceeded.ends) == ("recipients", NOON + HOUR + DAY)


def test_recipients_are_counted_each(books):
    some = books(recipients=(Rate(10, HOUR),))
    codes = [some.send(recipients=count) for count in (4, 5, 2, 1, 1)]
    assert codes == ["250", "250", "452", "250", "452"]


@pytest.mark.parametrize(
    ("messages", "recipients", "sent", "asked", "said"),
    [
        (
            Rate(2, HOUR),
            Rate(9, HOUR),
            (0, 100),
            1,
            "452 4.7.1 You may send 2 messages in 1 hour: try again in 3500 s, at 13:00:00 +0000",
        ),
        (
            Rate(1, 60),
            Rate(9, 60),
            (0.25,),
            1,
            "452 4.7.1 You may send 1 message in 1 minute: try again in 60 s, at 12:01:01 +0000",
        ),
        (
            Rate(9, HOUR),
            Rate(2, 2 * DAY),
            (0,),
            2,
            "452 4.7.1 You may send to 2 recipients in 2 days: try again in 172800 s,"
            " at Tue, 24 Nov 2026 12:00:00 +0000",
        ),
        (
            Rate(1, 90),
            Rate(2, HOUR),
            (0,),
            3,
            "554 5.7.1 You may send to 2 recipients in 1 hour: this message has 3",
        ),
    ],
)
def test_the_reply_names_the_limit_and_the_time_it_ends(
    books, messages, recipients, sent, asked, said
):
    some = books(messages, recipients=(recipients,))
    for after in sent:
        some.clock.now = NOON + after
        assert some.send() == "250"
    assert str(some.quota.limited("joe", asked, "1f", lambda: TAKEN)) == said


@pytest.mark.parametrize(
    ("recipients", "logged"),
    [
        (1, "s=1f limited user='a b' messages=1/1h asked=1 wait=3600"),
        (6, "s=1f limited user='a b' recipients=5/2h asked=6 wait=never"),
    ],
)
def test_each_refusal_is_one_line_of_the_log(books, recipients, logged, caplog):
    some = books(Rate(1, HOUR), recipients=(Rate(5, 2 * HOUR),))
    some.send("a b")
    some.send("a b", recipients)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, logged)
    ]


def test_what_is_not_taken_gives_its_place_back(books):
    some = books(Rate(2, HOUR), recipients=(Rate(4, HOUR),))
    assert [some.send(recipients=4, reply=REFUSED) for _ in range(5)] == ["550"] * 5
    with pytest.raises(ZeroDivisionError):
        some.quota.limited("joe", 4, "1f", lambda: 1 // 0)
    assert some.send(recipients=4) == "250"
    assert some.rows() == 1
    assert some.quota._owed == []


def test_a_place_is_taken_while_a_message_is_on_its_way(books):
    some = books(Rate(1, HOUR))
    codes = []

    def pass_on() -> Reply:
        codes.append(some.send())
        return REFUSED

    some.quota.limited("joe", 1, "1f", pass_on)
    assert [*codes, some.send()] == ["452", "250"]


class Model:
    """What a limit means: all that was sent, looked through each time."""

    def __init__(self, messages: list[Rate], recipients: list[Rate]) -> None:
        self.rates = [(rate, False) for rate in messages] + [(rate, True) for rate in recipients]
        self.sent: dict[str, list[tuple[float, int]]] = {}

    def passes(self, login: str, now: float, count: int) -> bool:
        for rate, of_recipients in self.rates:
            inside = [n for at, n in self.sent.get(login, []) if at > now - rate.seconds]
            used = sum(inside) + count if of_recipients else len(inside) + 1
            if used > rate.most:
                return False
        return True

    def note(self, login: str, now: float, count: int) -> None:
        self.sent.setdefault(login, []).append((now, count))


_RATES = st.lists(st.builds(Rate, st.integers(1, 6), st.integers(1, 40)), max_size=3)
_TRIES = st.tuples(
    st.integers(0, 15), st.sampled_from(["joe", "ann"]), st.integers(1, 4), st.booleans()
)


@given(_RATES, _RATES, st.lists(_TRIES, max_size=40))
def test_no_window_ever_holds_more_and_the_end_is_exact(messages, recipients, tries):
    if not messages and not recipients:
        return
    model = Model(messages, recipients)
    with tempfile.TemporaryDirectory() as directory:
        some = Books(Path(directory, "limits"), *messages, recipients=tuple(recipients))
        with contextlib.closing(some.quota) as quota:
            for wait, login, count, taken in tries:
                some.clock.now += wait
                now = some.clock.now
                place = quota.take(login, count)
                assert isinstance(place, int) == model.passes(login, now, count)
                if isinstance(place, Exceeded):
                    possible = place.ends < float("inf")
                    assert model.passes(login, place.ends, count) == possible
                    assert not possible or not model.passes(login, place.ends - 1, count)
                    if possible and taken:
                        some.clock.now = place.ends
                        assert isinstance(quota.take(login, count), int)
                        model.note(login, place.ends, count)
                elif taken:
                    model.note(login, now, count)
                else:
                    quota.give_back(place)


def test_a_defect_costs_one_message(books):
    some = books(Rate(1, HOUR))
    some.clock.now = "noon"
    with pytest.raises(TypeError):
        some.send()
    some.clock.now = NOON
    assert [some.send(), some.send()] == ["250", "452"]


# Clocks.


@pytest.mark.parametrize("back", [1, 600, HOUR, 30 * DAY])
def test_a_clock_that_goes_back_frees_nobody_and_holds_nobody_longer(books, back):
    some = books(Rate(3, HOUR))
    assert [some.send() for _ in range(2)] == ["250"] * 2
    some.clock.now -= back
    assert [some.send(), some.send()] == ["250", "452"]
    some.clock.now += HOUR - 1
    assert some.send() == "452"
    some.clock.now += 1
    assert [some.send() for _ in range(4)] == ["250"] * 3 + ["452"]


def test_a_refusal_after_the_clock_went_back_does_not_begin_the_time_anew(books):
    some = books(Rate(1, HOUR))
    some.send()
    some.clock.now -= DAY
    for _ in range(4):
        assert some.send() == "452"
        some.clock.now += HOUR / 4
    assert some.send() == "250"


# The file.


def test_counts_survive_the_process_whatever_ended_it(books):
    some = books(Rate(3, HOUR))
    some.send()

    def send_and_die() -> None:
        other = some.another()
        assert isinstance(other.take("joe", 1), int)
        os.kill(os.getpid(), 9)

    some.quota.close()
    assert in_child(send_and_die).status == -9
    some.quota = some.another()
    assert [some.send(), some.send()] == ["250", "452"]


def test_the_file_is_its_owners_alone(books):
    some = books(Rate(3, HOUR))
    some.send()
    for path in some.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize(
    "login", ["'; DROP TABLE sent; --", 'a"b', "é", "a\0b", "", "x" * 255, "*", "%"]
)
def test_a_login_is_never_part_of_a_statement(books, login):
    some = books(Rate(1, HOUR))
    assert [some.send(name) for name in (login, login, "joe")] == ["250", "452", "250"]


def test_what_counts_no_more_is_removed(books):
    some = books(Rate(10, HOUR), Rate(20, DAY))
    for number in range(200):
        some.clock.now += HOUR
        some.send(f"user{number % 50}")
    assert some.rows() == DAY // HOUR
    size = some.path.stat().st_size
    for number in range(1000):
        some.clock.now += HOUR
        some.send(f"user{number % 50}")
    some.quota.close()
    assert some.path.stat().st_size <= 2 * size + 65536


_TRYING = 8, 5


def hammer(some: Books) -> int:
    """How many of many messages at once are taken, each second of which is refused elsewhere."""
    quota = Quota(some.quotas, patience_seconds=PATIENCE_SECONDS)
    threads, tries = _TRYING
    begin = threading.Barrier(threads)

    def send(number: int) -> int:
        begin.wait(PATIENCE_SECONDS)
        taken = 0
        for turn in range(tries):
            place = quota.take("joe", 1)
            if isinstance(place, int) and (number + turn) % 2:
                quota.give_back(place)
            elif isinstance(place, int):
                taken += 1
        return taken

    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(send, range(threads)))
    quota.close()
    return total


@pytest.mark.parametrize("most", [20, 1000])
def test_threads_and_processes_at_once_take_no_more_than_there_is(books, most):
    """The file is made by whoever comes first."""
    some = books(Rate(most, DAY))
    ended = [child.end() for child in [Child(lambda: hammer(some)) for _ in range(3)]]
    assert [end.status for end in ended] == [0] * 3, ended
    total = sum(int(end.said) for end in ended)
    assert total == min(most, 3 * _TRYING[0] * _TRYING[1] // 2)
    assert some.rows() == total


def test_all_who_open_a_new_file_at_once_can_use_it(tmp_path):
    threads, rounds = 6, 40
    begin = threading.Barrier(threads)

    def open_all(_: int) -> int:
        taken = 0
        for number in range(rounds):
            quota = Quota(Quotas((Rate(9, DAY),), (), str(tmp_path / f"limits{number}")))
            begin.wait(PATIENCE_SECONDS)
            taken += isinstance(quota.take("joe", 1), int)
            quota.close()
        return taken

    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(open_all, range(threads))) == [rounds] * threads


# Trouble with the file: nothing passes, and it is over when it is over.


@pytest.fixture
def troubled(books, caplog):
    """Books that let one of three messages pass, and then what they say."""
    some = books(Rate(3, HOUR))
    assert some.send() == "250"
    some.quota.close()
    some.quota = some.another(patience_seconds=0.05)

    def defers(*words: str) -> None:
        caplog.clear()
        assert str(some.quota.limited("joe", 1, "1f", lambda: pytest.fail("passed on"))) == UNKNOWN
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.exc_info is None
        start = f"s=1f the limits in {some.path} cannot be used: "
        assert record.getMessage().startswith(start)
        assert all(word in record.getMessage() for word in words)

    some.defers = defers
    return some


@pytest.mark.parametrize("running", [False, True])
def test_a_broken_file_lets_nothing_pass_until_it_is_gone(troubled, running):
    if running:
        assert troubled.send() == "250"
    troubled.path.write_bytes(b"this is no database\n" * 1000)
    for suffix in ("-wal", "-shm"):
        troubled.path.with_name(troubled.path.name + suffix).unlink(missing_ok=True)
    if running:
        # What is in memory is believed until the file is opened again.
        troubled.quota.close()
    troubled.defers("not a database")
    troubled.path.unlink()
    assert troubled.send() == "250"


def test_a_file_that_others_hold_lets_nothing_pass_until_they_let_go(troubled):
    with contextlib.closing(sqlite3.connect(troubled.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        troubled.defers("locked")
        other.execute("ROLLBACK")
    assert [troubled.send() for _ in range(3)] == ["250", "250", "452"]


def test_threads_do_not_wait_for_each_other_for_ever(troubled):
    with troubled.quota._lock:
        troubled.defers("others of this process take too long")
    assert troubled.send() == "250"


def spoil(path: Path, how: str) -> None:
    path.unlink()
    match how:
        case "link":
            path.symlink_to(path.with_name("elsewhere"))
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "writable":
            path.touch()
            path.chmod(0o620)
        case "foreign":
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("CREATE TABLE sent (what TEXT)")


SPOILT = [
    ("link", "not a regular file"),
    ("directory", "not a regular file"),
    ("pipe", "not a regular file"),
    ("writable", "others can write it"),
    ("foreign", "no such column"),
]


@pytest.mark.parametrize(("how", "words"), SPOILT)
def test_a_file_that_must_not_be_used_is_not(troubled, how, words):
    spoil(troubled.path, how)
    troubled.path.with_name("elsewhere").touch()
    troubled.defers(words)
    assert troubled.path.with_name("elsewhere").stat().st_size == 0
    with pytest.raises(Fatal, match=words) as error:
        troubled.another().check()
    assert error.value.status == os.EX_CONFIG
    assert "\n" not in str(error.value)
    assert str(troubled.path) in str(error.value)


@pytest.mark.parametrize("directory", ["missing", "limits/below"])
def test_a_place_that_is_none_is_an_error_at_the_start(tmp_path, directory):
    (tmp_path / "limits").touch()
    quota = Quota(Quotas((Rate(1, 1),), (), str(tmp_path / directory / "file")))
    with pytest.raises(Fatal, match="--limit-file names another file"):
        quota.check()


def test_trouble_that_may_pass_is_none_at_the_start(troubled, caplog):
    caplog.clear()
    with contextlib.closing(sqlite3.connect(troubled.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        troubled.another(patience_seconds=0.05).check()
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.ERROR,
        f"the limits in {troubled.path} cannot be used now: database is locked",
    )


def test_a_file_that_is_removed_is_made_anew(books):
    some = books(Rate(1, HOUR))
    assert [some.send(), some.send()] == ["250", "452"]
    some.path.unlink()
    assert [some.send(), some.send()] == ["250", "452"]
    some.quota.close()
    some.quota = some.another()
    assert some.send() == "452"


def test_a_full_file_lets_nothing_pass_until_there_is_room(books):
    """Places of messages that were refused meanwhile are given back then."""
    some = books(Rate(4, HOUR))
    some.send()
    some.quota.close()

    def run() -> str:
        some.quota = some.another()
        told = [some.send()]

        def full() -> Reply:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            told.append(str(some.quota.limited("joe", 1, "2f", lambda: TAKEN)))
            return REFUSED

        told.append(str(some.quota.limited("joe", 1, "1f", full)))
        told.append(str(some.quota.limited("joe", 1, "3f", lambda: TAKEN)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        told += [some.send() for _ in range(3)]
        return "\n".join(told)

    ended = in_child(run)
    assert ended.status == 0, ended.said
    lines = [line for line in ended.said.splitlines() if "/limits" not in line]
    assert lines == ["250", UNKNOWN, str(REFUSED), UNKNOWN, "250", "250", "452"]


@pytest.mark.root
def test_a_full_disk_lets_nothing_pass_until_there_is_room(small_disk):
    some = Books(small_disk / "limits", Rate(3, HOUR))
    with contextlib.closing(some.quota):
        assert some.send() == "250"
        some.quota.close()
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        assert some.send() == "451"
        some.quota.check()
        ballast.unlink()
        assert [some.send() for _ in range(3)] == ["250", "250", "452"]


def test_sqlite_is_imported_for_limits_only():
    code = "import sys, tofmipd.daemon, tofmipd.globalmode; print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"False\n", done.stdout)
