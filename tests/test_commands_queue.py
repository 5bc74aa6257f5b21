"""`tofmipd queue`: it tells what an outbox holds, and disturbs nobody who hands it over."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes import CLOSE, Act, FakeNextHop, at, content_of, wait_for

from tofmipd import cli
from tofmipd.commands import queuetext
from tofmipd.errors import CONFIG, DATA, NO_INPUT, TEMPORARY, UNAVAILABLE, USAGE
from tofmipd.handoff import inventory
from tofmipd.handoff import retries as retries_module
from tofmipd.handoff.attempt import Rules
from tofmipd.handoff.copy import Copy, HandOffFailed
from tofmipd.handoff.outbox import BAD, BUSY, Outbox
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.stored import DEFERRED, REFUSED, TAKEN, TOLD, Event, Origin, Place
from tofmipd.smtp.reply import Reply

ANN, BOB, CAT = b"ann@example.net", b"bob@example.net", b"cat@example.net"
ME, OTHER = b"me@example.org", b"me-tag@example.org"
HOUR = 3600.0
LATER = Act(b"451 4.3.0 later\r\n")
NEVER = Act(b"550 5.1.1 never\r\n")


class Home:
    """A home with an outbox, and messages in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outbox = Outbox(str(path / ".tmda/outbox"))
        (path / ".tmda").mkdir()

    def configure(self, *lines: str) -> None:
        key = self.path / ".tmda/crypt_key"
        key.write_text("00112233445566778899aabbccddeeff01234567\n")
        key.chmod(0o600)
        (self.path / ".tmda/config").write_text("\n".join([*lines, ""]))

    def send_to(self, hop: FakeNextHop) -> None:
        self.configure('MAIL_TRANSPORT = "smtp"', f'SMTPHOST = "127.0.0.1:{hop.port}"')

    def put(
        self,
        id_: str = "one",
        *events: Event,
        to: tuple[bytes, ...] = (ANN,),
        sender: bytes = ME,
        arrived: float | None = None,
        state: str = "",
        due: float = HOUR,
    ) -> str:
        """A message for each recipient's copy; ``due`` is in seconds from now."""
        now = time.time()
        body = content_of(b"hello\r\n..dot\r\n")
        copies = [
            Copy(sender if n == 0 else OTHER, (one,), b"Subject: to %s\r\n\r\n" % one, body)
            for n, one in enumerate(to)
        ]
        origin = Origin("me", "5e55", now - 2 * HOUR if arrived is None else arrived)
        with self.outbox.prepare(copies, origin, id_) as draft:
            draft.commit(events, now + due)
        if state:
            os.rename(self.file(id_), self.file(id_, state))
        return id_

    def file(self, id_: str, state: str = "") -> str:
        return self.outbox.path(id_, ".envelope" + state)

    def content(self, id_: str) -> str:
        return self.outbox.path(id_, ".content")

    def files(self) -> dict[str, tuple[int, float, int]]:
        """All that is there: inode, time and mode by name."""
        found = {}
        for name in os.listdir(self.outbox.directory):
            status = os.lstat(os.path.join(self.outbox.directory, name))
            found[name] = (status.st_ino, status.st_mtime, status.st_mode)
        return found


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return Home(tmp_path)


@pytest.fixture
def queue(capsys):
    """Run the tool for one's own outbox; status, output, errors."""

    def queue(*words: str) -> tuple[int, str, str]:
        try:
            status = cli.main(["queue", *words, "--personal"])
        except SystemExit as ended:
            status = ended.code
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        assert "internal error" not in told.err
        return status, told.out, told.err

    return queue


@pytest.fixture
def listed(queue):
    """All messages as JSON, by id."""

    def listed() -> dict[str, dict]:
        status, out, err = queue("list", "--json")
        assert (status, err) == (0, "")
        return {message["id"]: message for message in json.loads(out)}

    return listed


# list


def test_there_is_a_line_where_there_is_nothing(home, queue):
    assert queue() == (0, "nothing waits for the next hop\n", "")
    assert queue("list", "--json") == (0, "[]\n", "")
    assert not os.path.exists(home.outbox.directory)


def test_the_outbox_is_where_the_daemons_file_says(home, queue, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    home.put()
    conf = home.path / ".config/tofmipd.conf"
    conf.parent.mkdir()
    conf.write_text("szie 1\noutbox ~/elsewhere\n")
    assert queue()[1] == "nothing waits for the next hop\n"
    (home.path / ".tmda/outbox").rename(home.path / "elsewhere")
    assert queue()[1].splitlines()[1].startswith("one ")
    assert queue("--outbox", str(home.path / "none"))[1] == "nothing waits for the next hop\n"


def test_a_message_has_a_row(home, queue):
    events = [
        Event(TAKEN, 1, Place(0, 0), "hop:25", "250 ok"),
        Event(DEFERRED, 2, Place(1, 0), "hop:25", "451 later"),
    ]
    home.put("one", *events, to=(ANN, BOB, CAT), due=HOUR + 30)
    status, out, err = queue()
    head, row = (line.split() for line in out.splitlines())
    assert (status, err) == (0, "")
    names = "ID AGE SIZE STATE NEXT WAIT HAVE REFUSED SENDER LAST REPLY"
    assert " ".join(head) == names
    size = os.path.getsize(home.content("one"))
    assert " ".join(row) == f"one 2h {size} waiting in 60m 2 1 0 {ME.decode()} +2 451 later"


def test_json_has_all_fields(home, listed):
    told = Event(REFUSED, 3, Place(1, 0), "hop:25", "550 no"), Event(TOLD, 4, Place(1, 0))
    home.put(
        "one",
        Event(DEFERRED, 1, Place(0, 0), "hop:25", "451 later"),
        *told,
        to=(ANN, BOB),
        arrived=1000000000,
    )
    os.utime(home.file("one"), (0, 1000003600))
    message = listed()["one"]
    assert message.pop("age_seconds") == pytest.approx(time.time() - 1000000000, abs=100)
    assert message.pop("user")
    waits, knows = message["copies"]
    assert waits == {
        "sender": ME.decode(),
        "header_octets": len(b"Subject: to \r\n\r\n" + ANN),
        "recipients": [
            {
                "address": ANN.decode(),
                "state": "waiting",
                "reply": "451 later",
                "next_hop": "hop:25",
                "at": "1970-01-01T00:00:01Z",
            }
        ],
    }
    assert knows["recipients"][0]["state"] == "reported"
    assert knows["recipients"][0]["reply"] == "550 no"
    del message["copies"]
    assert message == {
        "id": "one",
        "outbox": home.outbox.directory,
        "state": "waiting",
        "fault": None,
        "login": "me",
        "session": "5e55",
        "local_address": "",
        "arrived": "2001-09-09T01:46:40Z",
        "size_octets": os.path.getsize(home.content("one")),
        "attempts": 0,
        "next_attempt": "2001-09-09T02:46:40Z",
        "waiting": 1,
        "taken": 0,
        "refused": 0,
        "reported": 1,
        "last_reply": "550 no",
    }


def test_the_state_is_how_it_stands(home, listed, queue):
    home.put("waits")
    home.put("left", state=BUSY)
    home.put("bad", state=BAD)
    home.put("tried")
    with home.outbox.take("tried") as pair:
        pair.mark(BUSY)
        found = {id_: message["state"] for id_, message in listed().items()}
        assert "trying now" in queue()[1]
    assert found == {"waits": "waiting", "left": "waiting", "bad": "failed", "tried": "trying"}


def test_what_nobody_answers_for_yet_is_not_listed(home, listed):
    body = content_of(b"x")
    with home.outbox.prepare([Copy(ME, (ANN,), b"\r\n", body)], Origin("me", "1", 0)):
        assert listed() == {}


def test_to_look_changes_nothing_and_waits_for_nobody(home, queue):
    for id_, state in (("one", ""), ("two", BAD), ("three", BUSY)):
        home.put(id_, state=state)
    home.put("held")
    before = home.files()
    with home.outbox.take("held"):
        assert queue("list")[0] == 0
        assert queue("show", "held", "--body")[0] == 0
        assert queue("show", "three", "--json")[0] == 0
        assert home.files() == before


def test_a_message_that_goes_while_it_is_looked_at_is_not_broken(home):
    ending = threading.Event()

    def come_and_go() -> None:
        for _ in range(100):
            home.put("x")
            pair = home.outbox.take("x")
            assert pair is not None
            pair.mark(BUSY)
            pair.remove()
        ending.set()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    states = set()
    while not ending.is_set() and thread.is_alive():
        told = inventory.describe(home.outbox, "x")
        states.add(told["fault"] if told is not None else None)
    thread.join()
    assert states <= {None}
    assert ending.is_set()


# Files that are not what they must be


def rewritten(old: bytes, new: bytes):
    def rewrite(home: Home) -> None:
        home.put("x")
        path = Path(home.file("x"))
        octets = path.read_bytes()
        assert old in octets
        path.write_bytes(octets.replace(old, new))

    return rewrite


def instead_of_envelope(make):
    def replace(home: Home) -> None:
        home.put("x")
        os.unlink(home.file("x"))
        make(home.file("x"))

    return replace


def instead_of_content(make):
    def replace(home: Home) -> None:
        home.put("x")
        os.unlink(home.content("x"))
        make(home.content("x"))

    return replace


def link(path: str) -> None:
    os.symlink(f"{os.path.dirname(path)}/../secret", path)


BROKEN = {
    "envelope is a link": (instead_of_envelope(link), "its envelope is no file"),
    "envelope is a FIFO": (instead_of_envelope(os.mkfifo), "its envelope is no file"),
    "envelope is empty": (instead_of_envelope(lambda p: Path(p).touch()), "it has no end"),
    "envelope is noise": (
        instead_of_envelope(lambda p: Path(p).write_bytes(os.urandom(5000))),
        "it has no end",
    ),
    "envelope is sparse": (
        instead_of_envelope(lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_WRONLY), 1 << 40)),
        "its envelope is too large",
    ),
    "content is a link": (instead_of_content(link), "its content is no file"),
    "content is a FIFO": (instead_of_content(os.mkfifo), "its content is no file"),
    "content is gone": (instead_of_content(lambda p: None), "its content file is gone"),
    "content is short": (
        instead_of_content(lambda p: Path(p).touch()),
        "its content file is too short",
    ),
    "other format": (rewritten(b"tofmipd 1", b"tofmipd 9"), "its format is unknown"),
    "no time": (rewritten(b"Arrived: ", b"Arrived: nan\nX: "), "unknown value"),
    "endless time": (
        rewritten(b"Arrived: ", b"Arrived: 1e999\nX: "),
        "unknown value",
    ),
    "negative length": (rewritten(b"Copy: ", b"Copy: -"), "unknown value"),
    "unknown event": (rewritten(b"\nEnd\n", b"\nEnd\nEaten: 1.1 5\n"), "unknown line"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_listed_shown_and_removed(name, home, queue, listed):
    break_it, fault = BROKEN[name]
    secret = home.path / ".tmda/secret"
    secret.write_bytes(b"Format: tofmipd 1\nsecret\nEnd\n")
    home.put("good")
    break_it(home)
    found = listed()
    assert found["x"]["state"] == "broken"
    assert fault in found["x"]["fault"]
    assert found["good"]["state"] == "waiting"
    assert fault in queue()[1]
    for words in (["show", "x"], ["show", "--body", "x"]):
        status, out, _ = queue(*words)
        assert status == 0
        assert fault in out
        assert "secret" not in out
    assert queue("remove", "x", "--force")[0] == 0
    assert sorted(listed()) == ["good"]
    assert len(home.files()) == 2
    assert secret.exists()


def test_a_directory_in_the_place_of_an_envelope_is_no_trouble(home, queue, listed):
    home.put("good")
    os.mkdir(home.file("x"))
    assert listed()["x"]["state"] == "broken"
    status, out, _ = queue("remove", "x", "--force")
    assert (status, out[:22]) == (DATA, "x: cannot be used: Is ")
    assert queue("retry", "x")[0] == DATA
    assert sorted(listed()) == ["good", "x"]


@pytest.mark.parametrize("seconds", [-5, 0, 253402300800, 1 << 62])
def test_a_time_that_no_date_can_show_is_left_out(seconds, home, listed, queue):
    home.put("x")
    try:
        os.utime(home.file("x"), (seconds, seconds))
    except (OSError, OverflowError):
        pytest.skip("no such time on this file system")
    told = os.stat(home.file("x")).st_mtime
    shown = listed()["x"]["next_attempt"]
    assert (shown is None) == (not 0 <= told < 253402300800)
    assert queue("show", "x")[0] == 0


def test_nothing_foreign_speaks_to_the_terminal(home, queue):
    evil = "\x1b]0;x\x07\x9b2J\u202e\r"
    home.put(f"id{evil}", to=(b"a\x1b[2J@b.example",), sender=b"\xff\x9b@b.example")
    with open(home.file(f"id{evil}"), "ab") as envelope:
        envelope.write(b"Deferred: 1.1 5 h\x1b[1m 451 \x1b[2J\xc2\x9b\n")
    with open(home.content(f"id{evil}"), "r+b") as content:
        content.write(b"Subject: \x1b[2J")
    status, listing, _ = queue()
    assert (status, listing.count("\n")) == (0, 2)
    said = [listing, *queue("show", f"id{evil}", "--body")[1:], *queue("show", "id\x1b")[1:]]
    said += queue("remove", f"id{evil}", "--force")[1:]
    assert said[0].count("\\x1b") >= 2
    for text in said:
        assert all(c == "\n" or c.isprintable() for c in text), text


def test_ten_thousand_files_are_listed(home, listed):
    home.put("good")
    for number in range(9_999):
        Path(home.file(f"g{number}")).write_bytes(b"garbage")
    found = listed()
    assert len(found) == 10_000
    assert [id_ for id_, message in found.items() if message["state"] != "broken"] == ["good"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "119m"),
        (7200, "2h"),
        (172799, "47h"),
        (172800, "2d"),
        (1e9, "11574d"),
    ],
)
def test_a_duration_has_one_unit(seconds, shown):
    assert queuetext.duration(seconds) == shown


# show


def test_show_tells_all_of_one(home, queue):
    home.put("one", Event(DEFERRED, 5, Place(1, 0), "hop:25", "451 later"), to=(ANN, BOB))
    home.put("two")
    status, out, err = queue("show", "one")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["id:", "one"]
    assert f"from:     {ME.decode()}" in lines
    assert f"to:       {ANN.decode()}: waits" in lines
    assert any(
        line.startswith(f"to:       {BOB.decode()}: waits, since 1970-") and "hop:25: 451" in line
        for line in lines
    )
    assert "Subject: to ann@example.net" in lines
    assert "Subject: to bob@example.net" in lines
    assert "hello" not in out
    assert queue("show", "one", "--body")[1] == f"{out}\nhello\n.dot\n"


def test_show_has_all_of_it_as_json(home, queue):
    home.put("one", to=(ANN, BOB))
    told = json.loads(queue("show", "one", "--json", "--body")[1])
    assert [copy["header"] for copy in told["copies"]] == [
        "Subject: to ann@example.net\n\n",
        "Subject: to bob@example.net\n\n",
    ]
    assert told["body"] == "hello\n.dot\n"
    assert "body" not in json.loads(queue("show", "one", "--json")[1])


def test_a_body_in_many_blocks_comes_as_it_is(home, queue):
    lines = [f"{n} ü".encode() * 5 for n in range(60_000)]
    body = content_of(b"\r\n".join(lines))
    with home.outbox.prepare(
        [Copy(ME, (ANN,), b"A: b\r\n\r\n", body)], Origin("", "", 0), "x"
    ) as d:
        d.commit([], 0)
    shown = queue("show", "x", "--body")[1].encode().split(b"\n")
    assert shown[-len(lines) - 1 :] == [*lines, b""]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["show", "tofmipd.1.3"], "did you mean tofmipd.1.2?"),
        (["show", "../config"], "'list' shows all"),
        (["retry", "tofmipd.1.2", "tofmipd.1"], "did you mean tofmipd.1.2?"),
        (["remove", "--force", "tofmipd.1.2", "\x1b"], "'list' shows all"),
        (["show", ""], "'list' shows all"),
    ],
)
def test_an_unknown_id_is_one_line_and_nothing_is_done(words, hint, home, queue):
    home.put("tofmipd.1.2")
    before = home.files()
    status, out, err = queue(*words)
    assert (status, out) == (NO_INPUT, "")
    assert err == f"tofmipd: there is no message {words[-1]!r}; {hint}\n"
    assert home.files() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "the first word is one of list, show, retry, remove"),
        (["list", "x"], "list takes no ID"),
        (["show"], "show takes one ID"),
        (["show", "x", "y"], "show takes one ID"),
        (["retry"], "retry takes IDs, or --all, or --due"),
        (["retry", "--due", "--all"], "retry takes IDs, or --all, or --due"),
        (["retry", "x", "--all"], "retry takes IDs, or --all, or --due"),
        (["retry", "x", "--json"], "retry takes no --json"),
        (["retry", "x", "-c", "/a", "-S", "/b"], "-c and -S exclude each other"),
        (["remove"], "remove takes IDs"),
        (["remove", "x", "--all"], "remove takes no --all"),
        (["list", "--body"], "list takes no --body"),
        (["show", "x", "-P"], "show takes no --pure-proxy"),
        (["list", "--force"], "list takes no --force"),
        (["--frobnicate"], "--frobnicate"),
        (["remove", "one"], "--force removes at once"),
    ],
)
def test_wrong_usage_is_one_line(words, said, home, queue, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    home.put("one")
    before = home.files()
    status, out, err = queue(*words)
    assert (status, out) == (USAGE, "")
    assert said in err
    assert err.count("\n") == 1
    assert home.files() == before


def test_an_outbox_can_be_named(home, queue, tmp_path):
    home.put("one")
    os.rename(home.outbox.directory, tmp_path / "elsewhere")
    assert queue()[1] == "nothing waits for the next hop\n"
    assert "one" in queue("--outbox", "~/elsewhere")[1]
    assert queue("list", "--outbox", str(tmp_path / ".tmda/none"))[1].startswith("nothing")
    (tmp_path / "file").touch()
    status, out, err = queue("list", "--outbox", str(tmp_path / "file"))
    assert (status, out) == (TEMPORARY, "")
    assert err == f"tofmipd queue: {tmp_path}/file: Not a directory\n"


# remove


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "gone"),
    [("y\n", True), (" YES \n", True), ("n\n", False), ("\n", False), ("", False)],
)
def test_remove_asks_on_a_terminal(typed, gone, home, queue, monkeypatch, listed):
    home.put("one", to=(ANN, BOB))
    home.put("two")
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    status, out, err = queue("remove", "one", "two")
    assert (status, err) == (0, "")
    assert out.startswith("Remove 2 messages?  3 recipients will never get it. [y/N] ")
    assert ("nothing is removed" in out) == (not gone)
    assert (listed() == {}) == gone


def test_remove_says_who_will_never_get_it(home, queue):
    taken = Event(TAKEN, 1, Place(0, 0), "hop:25", "250 ok")
    home.put("one", taken, to=(ANN, BOB, CAT))
    home.put("bad", Event(REFUSED, 1, Place(0, 0), "", "550 no"), sender=b"", state=BAD)
    home.put("other")
    assert queue("remove", "--force", "one", "bad") == (
        0,
        "bad: removed; 1 recipient will never get it\n"
        "one: removed; 2 recipients will never get it\n",
        "",
    )
    assert sorted(home.files()) == ["other.content", "other.envelope"]


# retry


@pytest.mark.parametrize(
    ("act", "status", "said", "left"),
    [
        (None, 0, r"sent to 1 recipient: 250 ", []),
        (LATER, TEMPORARY, "1 still waits, next attempt in ", ["one"]),
        (CLOSE, TEMPORARY, "1 still waits, next attempt in ", ["one"]),
    ],
)
def test_retry_says_what_came_of_it(act, status, said, left, home, queue, listed):
    home.put("one")
    with FakeNextHop(at("DOT", act) if act else lambda moment: None) as hop:
        home.send_to(hop)
        ended, out, err = queue("retry", "one")
    assert (ended, err) == (status, "")
    assert out.startswith(f"one: {said}")
    assert out.count("\n") == 1
    found = listed()
    assert list(found) == left
    for message in found.values():
        assert message["attempts"] == 1
        assert message["state"] == "waiting"
        assert message["copies"][0]["recipients"][0]["reply"].startswith("4")


def test_retry_goes_to_those_who_wait_only(home, queue):
    home.put("one", Event(TAKEN, 1, Place(0, 0), "hop:25", "250 ok"), to=(ANN, BOB, CAT))
    home.put("two")
    with FakeNextHop(at("RCPT", LATER, argument=f"TO:<{CAT.decode()}>")) as hop:
        home.send_to(hop)
        status, out, _ = queue("retry", "one")
    assert status == TEMPORARY
    assert out.startswith("one: sent to 1 recipient, 1 still waits, next attempt in ")
    assert [message.recipients for message in hop.messages] == [[BOB.decode()]]


def test_retry_all_is_one_status_for_all(home, queue, listed):
    home.put("one")
    home.put("two", to=(BOB,))
    with FakeNextHop(at("RCPT", LATER, argument=f"TO:<{BOB.decode()}>")) as hop:
        home.send_to(hop)
        status, out, _ = queue("retry", "--all")
    assert status == TEMPORARY
    assert [line.partition(": ")[0] for line in out.splitlines()] == ["one", "two"]
    assert list(listed()) == ["two"]
    assert queue("remove", "--force", "two")[0] == 0
    assert queue("retry", "--all") == (0, "nothing waits for the next hop\n", "")


def test_a_timer_tries_only_what_is_due(home, queue, listed):
    home.put("later")
    home.put("now", due=-5)
    home.put("bad", Event(REFUSED, 5, Place(0, 0), "h", "550 no"), sender=b"", state=BAD, due=-5)
    with FakeNextHop() as hop:
        home.send_to(hop)
        status, out, _ = queue("retry", "--due")
        assert (status, out.partition(":")[0], len(hop.messages)) == (0, "now", 1)
        assert queue("retry", "--due") == (0, "", "")
        assert len(hop.messages) == 1
    assert set(listed()) == {"later", "bad"}


def test_a_refusal_is_reported_to_the_sender_at_once(home, queue, listed):
    home.put("one")
    home.put("other", due=-5)
    with FakeNextHop(at("RCPT", NEVER, argument=f"TO:<{ANN.decode()}>")) as hop:
        home.send_to(hop)
        status, out, _ = queue("retry", "one")
    first, second = out.splitlines()
    assert status == 0
    assert first.startswith("one: refused for 1: 550 5.1.1 ")
    assert second.startswith("one.b1.1: sent to 1 recipient: 250")
    assert [message.recipients for message in hop.messages] == [[ME.decode()]]
    assert list(listed()) == ["other"]


def test_what_has_failed_can_be_tried_again(home, queue, listed):
    home.put("bad", Event(REFUSED, 5, Place(0, 0), "h", "550 no"), sender=b"", state=BAD)
    with FakeNextHop(at("RCPT", NEVER)) as hop:
        home.send_to(hop)
        status, out, _ = queue("retry", "bad")
        assert status == UNAVAILABLE
        assert out.startswith("bad: refused for 1, nobody can be told: failed: 550 5.1.1 ")
    assert listed()["bad"]["state"] == "failed"
    with FakeNextHop(at("DOT", LATER)) as hop:
        home.send_to(hop)
        assert queue("retry", "bad")[0] == TEMPORARY
    message = listed()["bad"]
    assert (message["state"], message["waiting"], message["attempts"]) == ("waiting", 1, 2)
    with FakeNextHop() as hop:
        home.send_to(hop)
        assert queue("retry", "--all")[0] == 0
        assert [message.recipients for message in hop.messages] == [[ANN.decode()]]
    assert home.files() == {}


def test_nobody_is_given_up_by_hand(home, queue, listed):
    home.put("old", arrived=time.time() - 365 * 86400)
    with FakeNextHop(at("MAIL", LATER)) as hop:
        home.send_to(hop)
        assert queue("retry", "old")[0] == TEMPORARY
    assert [message["state"] for message in listed().values()] == ["waiting"]


def test_what_somebody_else_has_is_left_to_him(home, queue):
    home.put("one")
    with FakeNextHop() as hop:
        home.send_to(hop)
        with home.outbox.take("one"):
            before = home.files()
            said = "one: is being tried by somebody else\n"
            assert queue("retry", "one") == (TEMPORARY, said, "")
            assert queue("remove", "one", "--force") == (TEMPORARY, said, "")
            assert home.files() == before
    assert hop.connections == 0


@pytest.mark.parametrize("config", ["SMTPHOST = ", "NO_SUCH_SETTING = 1 +", None])
def test_files_that_are_wrong_are_no_attempt(config, home, queue):
    if config is not None:
        home.configure(config)
    home.put("one", due=HOUR)
    before = Path(home.file("one")).read_bytes(), home.files()
    status, out, err = queue("retry", "one")
    assert (status, err) == (CONFIG, "")
    assert out.startswith("one: not tried: ")
    assert str(home.path) in out
    assert (Path(home.file("one")).read_bytes(), home.files()) == before


def test_what_cannot_be_read_is_set_aside(home, queue, listed):
    home.put("one")
    os.unlink(home.content("one"))
    with FakeNextHop() as hop:
        home.send_to(hop)
        status, out, _ = queue("retry", "one")
        assert (status, out) == (DATA, "one: cannot be used: its content file is gone\n")
        assert queue("retry", "--all")[0] == DATA
    assert os.path.exists(home.file("one", BAD))
    assert listed()["one"]["state"] == "broken"


def test_each_login_can_have_a_configuration(home, queue, tmp_path):
    home.put("one")
    with FakeNextHop() as hop:
        home.send_to(hop)
        (tmp_path / "configs/me").mkdir(parents=True)
        os.rename(tmp_path / ".tmda/config", tmp_path / "configs/me/config")
        assert queue("retry", "one")[0] == CONFIG
        assert queue("retry", "one", "-c", str(tmp_path / "configs"))[0] == 0
        assert len(hop.messages) == 1


def gone():
    raise HandOffFailed(Reply(451, "3.0", ("not now",)))


def test_the_relay_of_the_daemon_is_taken(home, queue):
    home.put("one")
    home.configure('FULLNAME = "x"')
    with FakeNextHop() as hop:
        assert queue("retry", "one", "--relay", f"127.0.0.1:{hop.port}")[0] == 0
        assert len(hop.messages) == 1
    home.put("one")
    assert queue("retry", "one", "--relay", "a b:c")[0] == USAGE


def test_a_daemon_comes_back_to_what_the_tool_had(home, monkeypatch):
    """It may have met the tool just when the message was due."""
    monkeypatch.setattr(retries_module, "_LOOK_SECONDS", 0.05)
    home.put("one", due=-5)
    asked = []
    daemon = Retries(home.outbox, Rules("host"), lambda *line: None)
    daemon.transports = lambda login, address: asked.append(login) or gone()
    met = []
    attempt = daemon.attempt
    monkeypatch.setattr(daemon, "attempt", lambda id_, early: met.append(id_) or attempt(id_))
    try:
        with home.outbox.take("one"):
            daemon.start()
            wait_for(lambda: len(met) >= 2)
            assert asked == []
        wait_for(lambda: asked)
    finally:
        daemon.stop(20)
