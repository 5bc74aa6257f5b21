"""The tools beside the daemon, run as programs: inject as a sendmail, explain, address."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import forge
import pytest
from clients import submit
from fakes import FakeNextHop, at
from hops import Sendmail, Stored, make_sendmail, raw_hop
from oracle import openssl_mac
from running import (
    DATE,
    LIMIT_SECONDS,
    PROGRAM,
    Home,
    environment,
    free_port,
    host_name,
    make_home,
    run,
    to_program,
    to_smtp,
)

Row = TypeVar("Row")
Result = TypeVar("Result")

HEAD = """\
From: Bob <bob@home.example>
To: To <to@x.example>
Cc: cc@x.example
Bcc: bcc@x.example
Subject: lunch
"""
BODY = b"Come!\n"
MESSAGE = HEAD.encode() + b"\n" + BODY
NAMED = ("to@x.example", "cc@x.example", "bcc@x.example")


@dataclass(frozen=True)
class Ended:
    """How a run of a tool ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def object(self) -> dict[str, Any]:
        return json.loads(self.out)


def tool(
    home: Home,
    *arguments: str | bytes,
    message: bytes = b"",
    variables: dict[str, str] | None = None,
    before: Sequence[str] = (),
) -> Ended:
    """Run the program with this on its standard input; ``before`` stands before its name."""
    given = environment(home) | (variables or {})
    if not before and forge.can_run(given):
        ended = forge.run(arguments, given, home.path, message, LIMIT_SECONDS)
        said = (text.decode(errors="surrogateescape") for text in (ended.out, ended.err))
        return Ended(ended.status, *said)
    done = subprocess.run(
        [*before, PROGRAM, *arguments],
        env=given,
        cwd=home.path,
        input=message,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    said = (text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))
    return Ended(done.returncode, *said)


def each(rows: Sequence[Row], function: Callable[[Row], Result]) -> list[tuple[Row, Result]]:
    """The rows with what came of them.  Runs take their time; they may take it together."""
    with ThreadPoolExecutor(3) as pool:
        return list(zip(rows, pool.map(function, rows), strict=True))


@dataclass(frozen=True)
class Person:
    """Somebody with a program in the place of sendmail, who injects messages."""

    home: Home
    sendmail: Sendmail

    def inject(self, *arguments: str | bytes, message: bytes = MESSAGE, **other: Any) -> Ended:
        return tool(self.home, "inject", *arguments, message=message, **other)

    @property
    def stored(self) -> list[Stored]:
        return self.sendmail.messages()

    @property
    def one(self) -> Stored:
        (stored,) = self.stored
        return stored


@pytest.fixture
def person(tmp_path: Path) -> Callable[..., Person]:
    """Makes people, each in a directory of his own; ``settings`` are lines of a configuration."""
    numbers = itertools.count()

    def person(*settings: str, rules: str = "to * ext=t\n") -> Person:
        path = tmp_path / f"person{next(numbers)}"
        sendmail = make_sendmail(path / "program")
        home = make_home(path, to_program(sendmail.path), *settings, rules=rules)
        return Person(home, sendmail)

    return person


# inject: the command line of sendmail

COMMAND_LINES = [
    # Arguments, recipients.
    (["a@x.example"], ("a@x.example",)),
    ([], NAMED),
    (["-t"], NAMED),
    (["-ti"], NAMED),
    (["-t", "a@x.example"], ("a@x.example", *NAMED)),
    (
        ["a@x.example", "-i", "b@x.example", "-oi", "c@x.example"],
        tuple(f"{x}@x.example" for x in "abc"),
    ),
    (["-bm", "a@x.example"], ("a@x.example",)),
    (["-B", "8BITMIME", "-N", "failure,delay", "-R", "hdrs", "a@x.example"], ("a@x.example",)),
    (["-f", "", "a@x.example"], ("a@x.example",)),
    (["-r", "other@y.example", "a@x.example"], ("a@x.example",)),
    (["-i", "--", "-dash@x.example", "a@x.example"], ("-dash@x.example", "a@x.example")),
    # Behind "--" nothing is an option, wherever that stands.
    (
        ["--", "-O/nonexistent/filter", "-c/nonexistent"],
        ("-O/nonexistent/filter", "-c/nonexistent"),
    ),
    (["a@x.example", "--", "-t", "--"], ("a@x.example", "-t", "--")),
    # mutt; cron; PHP; git send-email; mail from bsd-mailx; Emacs.
    (["-oem", "-oi", "-f", "me@y.example", "--", "a@x.example"], ("a@x.example",)),
    (["-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root"], ("root",)),
    (["-t", "-i", "-fme@y.example"], NAMED),
    (["-i", "-v", "a@x.example"], ("a@x.example",)),
    (["-oi", "-f", "me@y.example", "-oem", "-odb", "-t"], NAMED),
]


def test_it_obeys_the_command_lines_that_programs_use_for_sendmail(person):
    def inject(row: tuple[list[str], tuple[str, ...]]) -> tuple[Ended, Person]:
        who = person()
        return who.inject(*row[0]), who

    for (arguments, recipients), (ended, who) in each(COMMAND_LINES, inject):
        assert (ended.status, ended.out) == (0, ""), (arguments, ended.err)
        assert who.one.recipients == recipients, arguments
        assert who.one.sender == "bob-t@home.example", arguments
        assert who.one.value("From") == "Bob <bob-t@home.example>", arguments
        assert who.one.value("To") == "To <to@x.example>"
        assert not who.one.values("Bcc"), arguments
        assert who.one.body == BODY


SENDERS = [
    # Arguments, From.
    ([], "Bobby Brown <bobby-t@example.org>"),
    (["-f", "me@y.example"], "Bobby Brown <me-t@y.example>"),
    (["-F", "Full N. Name"], '"Full N. Name" <bobby-t@example.org>'),
    (["-FFull", "-fme@y.example"], "Full <me-t@y.example>"),
    (["-F", "Jürgen", "-r", "me@y.example"], "Jürgen <me-t@y.example>"),
    (["-f", "<>"], "Bobby Brown <bobby-t@example.org>"),
    (["-f", "a@b\nX-Evil: 1"], "Bobby Brown <bobby-t@example.org>"),
    (["-F", "A\nX-Evil: 1"], '"A X-Evil: 1" <bobby-t@example.org>'),
    (["-F", "A\r\n\r\nX-Evil: 1"], '"A X-Evil: 1" <bobby-t@example.org>'),
    (["-F", "A <evil@y.example>,"], '"A <evil@y.example>," <bobby-t@example.org>'),
]


def test_a_message_without_from_gets_the_sender_of_the_command_line(person):
    def inject(row: tuple[list[str], str]) -> tuple[Ended, Person]:
        who = person()
        return who.inject(*row[0], "a@x.example", message=b"Subject: s\n\nx\n"), who

    for (arguments, expected), (ended, who) in each(SENDERS, inject):
        assert (ended.status, ended.err) == (0, ""), arguments
        assert who.one.value("From") == expected, arguments
        assert not who.one.values("X-Evil"), arguments
        assert who.one.body == b"x\n", arguments


def test_the_null_sender_that_the_filter_asks_for_reaches_the_program(person):
    who = person(rules="to * tag envelope exp=<>\n")
    assert who.inject("a@x.example").status == 0
    ((arguments, _, _),) = who.sendmail.runs()
    assert arguments == ["-i", "-f", "", "--", "a@x.example"]


NO_RECIPIENTS = [
    ([], b"From: a@b.example\nSubject: s\n\nx\n"),
    (["-t"], b"From: a@b.example\nTo:\nCc: undisclosed recipients:;\n\nx\n"),
    (["-t"], b""),
    ([], b"Resent-From: a@b.example\nTo: a@x.example\n\nx\n"),
]


def test_without_recipients_nothing_is_sent_and_that_is_said(person):
    """The vector inj-s-024."""
    who = person()
    for row, ended in each(NO_RECIPIENTS, lambda row: who.inject(*row[0], message=row[1])):
        assert ended == Ended(0, "", "tofmipd inject: no recipients, nothing sent\n"), row
    assert who.stored == []


BAD_RECIPIENTS: list[list[str | bytes]] = [
    [""],
    ["a@x.example", "a b@x.example"],
    ["a@x.example\nRCPT TO:<evil@y.example>"],
    ["a@x.example>\r\nDATA"],
    [b"\xff\xfe@x.example"],
    ["\x1b[2J@x.example"],
]


def test_what_is_no_address_stops_the_message_before_anything_is_sent(person):
    who = person()
    for recipients, ended in each(BAD_RECIPIENTS, lambda row: who.inject(*row)):
        assert (ended.status, ended.out) == (os.EX_DATAERR, ""), recipients
        assert re.fullmatch(r"tofmipd: [^\x00-\x1f\x7f]+ is no address\n", ended.err), recipients
    assert who.stored == []


def test_recipients_of_the_environment_come_after_those_of_the_command_line(person):
    """QMAILRCPTS (reference, section 5.2): in lower case, one a line."""
    variables = {"QMAILRCPTS": "One@X.example\ntwo@x.example\n"}
    who = person()
    assert who.inject(variables=variables).status == 0
    assert who.one.recipients == ("one@x.example", "two@x.example")
    other = person()
    assert other.inject("a@x.example", variables=variables).status == 0
    assert other.one.recipients == ("a@x.example",)


# inject: octets

HEADER = b"From: a@b.example\n"
TEXTS = [
    # What came, the body by SMTP, the body for a program.
    (HEADER + b"\nx\n", b"x\r\n", b"x\n"),
    (HEADER + b"\nx", b"x\r\n", b"x"),
    (b"From: a@b.example\r\n\r\nx\r\n", b"x\r\n", b"x\n"),
    (b"From: a@b.example\r\n\r\n.\r\n..", b"..\r\n...\r\n", b".\n.."),
    (HEADER[:-1], b"", b""),
    (HEADER + b"\n.\n..\n.x\nend\n", b"..\r\n...\r\n..x\r\nend\r\n", b".\n..\n.x\nend\n"),
    (HEADER + b"no field\n.", b"no field\r\n..\r\n", b"no field\n."),
    (HEADER + b"\nz\xc3\xbc\xff\na\0b\n", b"z\xc3\xbc\xff\r\na\0b\r\n", b"z\xc3\xbc\xff\na\0b\n"),
    (b"\nFrom here\n\n\n", b"From here\r\n\r\n\r\n", b"From here\n\n\n"),
    # Not by SMTP: what is no line end there may be one behind it.
    (HEADER + b"\na\rb\n", None, b"a\rb\n"),
    (HEADER + b"\na\r\n", None, b"a\r\n"),
    (b"From: a@b.example\r\n\r\na\r.\r\n.\r\r\n\r", None, b"a\r.\n.\r\n\r"),
    (HEADER + b"X: a\rSMTP: b\n\nx\n", None, b"X: a\rSMTP: b\n\nx\n"),
]


def test_the_body_keeps_its_octets_for_a_program(person):
    def inject(row: tuple[bytes, bytes | None, bytes]) -> tuple[Ended, Person]:
        who = person()
        return who.inject("a@x.example", message=row[0]), who

    for (came, _, expected), (ended, who) in each(TEXTS, inject):
        assert (ended.status, ended.err) == (0, ""), came
        octets = who.one.octets
        assert octets[octets.index(b"\n\n") + 2 :] == expected, came


def test_the_body_keeps_its_octets_by_smtp(tmp_path):
    with raw_hop() as hop:
        home = make_home(tmp_path / "smtp", to_smtp(hop.port), rules="to * ext=t\n")
        rows = [(f"{number}@x.example", *row[:2]) for number, row in enumerate(TEXTS)]
        for (recipient, came, expected), ended in each(
            rows, lambda row: tool(home, "inject", row[0], message=row[1])
        ):
            arrived = hop.for_recipient(recipient)
            if expected is None:
                assert ended.status == os.EX_DATAERR, came
                assert "a carriage return that ends no line" in ended.err
                assert arrived == []
                continue
            assert (ended.status, ended.err) == (0, ""), came
            (stored,) = arrived
            assert stored.body == expected, came
            assert not re.search(rb"(?<!\r)\n|\r(?!\n)", stored.octets)
        eight_bit = [command for command in hop.commands if "8BITMIME" in command]
        assert len(eight_bit) == sum(not came.isascii() for came, _, _ in TEXTS)


def test_eight_bits_are_refused_for_a_next_hop_that_cannot_take_them(tmp_path):
    with raw_hop(keywords=("PIPELINING",)) as hop:
        home = make_home(tmp_path, to_smtp(hop.port), rules="to * bare\n")
        ended = tool(home, "inject", "a@x.example", message=MESSAGE + b"\xfc\n")
        assert ended.status == os.EX_UNAVAILABLE
        assert "8-bit" in ended.err
        assert tool(home, "inject", "a@x.example", message=MESSAGE).status == 0
        (stored,) = hop.messages()
        assert stored.body == b"Come!\r\n"


_MEASURE = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
MEGABYTE = 1 << 20


@pytest.mark.parametrize("way", ["smtp", "program"])
def test_sixty_megabytes_cost_no_more_memory_than_fifty_kilobytes(way, person, tmp_path):
    """A small process starts it: what is measured would count the memory of this one, too."""
    line = b"0123456789abcdef" * 56 + b"\n"
    peaks = []
    settings = ['FINGERPRINT = ["body"]', 'LOGFILE_OUTGOING = "~/log"']
    for size in (50_000, 60 * MEGABYTE):
        message = tmp_path / "message"
        with message.open("wb") as file:
            file.write(b"From: a@b.example\n\n")
            for _ in range(0, size, len(line) << 10):
                file.write(line * min(1 << 10, size // len(line)))
        with FakeNextHop(keep=False) as hop:
            who = person(*settings, *([to_smtp(hop.port)] if way == "smtp" else []))
            with message.open("rb") as file:
                done = subprocess.run(
                    [sys.executable, "-c", _MEASURE, PROGRAM, "inject", "a@x.example"],
                    env=environment(who.home),
                    stdin=file,
                    capture_output=True,
                    timeout=LIMIT_SECONDS * 2,
                    check=False,
                )
            assert done.returncode == 0, done.stderr
            peaks.append(int(done.stdout) << 10)
            if way == "smtp":
                (taken,) = hop.messages
                assert taken.size_octets > message.stat().st_size
        if way == "program":
            (path,) = who.sendmail.directory.glob("*.message")
            assert digest_of_body(path) == digest_of_body(message)
    assert peaks[1] - peaks[0] < 20 * MEGABYTE, peaks


def digest_of_body(path: Path) -> str:
    with path.open("rb") as file:
        for line in file:
            if line == b"\n":
                return hashlib.file_digest(file, "sha256").hexdigest()
    raise AssertionError("no body")


ENDLESS = [
    # One field, many fields, one line that may become a field.
    b"X: " + b"y" * (3 * MEGABYTE) + b"\n\nx\n",
    b"X: y\n" * 300_000 + b"\nx\n",
    b"z" * (3 * MEGABYTE),
]


def test_a_header_without_end_is_refused(person):
    who = person()
    for message, ended in each(ENDLESS, lambda row: who.inject("a@x.example", message=row)):
        assert ended.status == os.EX_UNAVAILABLE, message[:10]
        assert "header is too big" in ended.err
    assert who.stored == []


def test_a_full_disk_is_a_reason_to_try_again(person):
    """Files may have 512 KiB here, the message has more."""
    who = person()
    limited = ["/bin/sh", "-c", 'ulimit -f 1024; exec "$@"', "sh"]
    message = MESSAGE + b"x\n" * MEGABYTE
    ended = who.inject("a@x.example", message=message, before=limited)
    assert ended.status == os.EX_TEMPFAIL, ended.err
    assert "no room" in ended.err
    assert who.stored == []


CLOSED = ["<&-", "<&- >&-", ">&-", "2>&-", ">&- 2>&-"]


def test_closed_descriptors_are_no_bug(person):
    def inject(closed: str) -> tuple[Ended, Person]:
        who = person()
        shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh"]
        return who.inject("a@x.example", before=shell), who

    for closed, (ended, who) in each(CLOSED, inject):
        assert "internal error" not in ended.err, closed
        if "<" in closed:
            assert ended.status not in (0, os.EX_SOFTWARE), closed
            assert who.stored == []
        else:
            assert ended.status == 0, (closed, ended.err)
            assert who.one.recipients == ("a@x.example",)


# inject: what can go wrong


REFUSALS = [
    ("GREETING", b"554 5.3.2 closed", os.EX_TEMPFAIL),
    ("MAIL", b"550 5.7.1 not you", os.EX_UNAVAILABLE),
    ("RCPT", b"450 4.2.1 greylisted", os.EX_TEMPFAIL),
    ("DATA", b"554 5.7.1 no", os.EX_UNAVAILABLE),
    ("DOT", b"554 5.7.1 spam", os.EX_UNAVAILABLE),
    ("DOT", b"452 4.3.1 disk full", os.EX_TEMPFAIL),
    ("DOT", b"nonsense", os.EX_TEMPFAIL),
]


def test_a_refusal_is_final_or_temporary_as_the_next_hop_says(person):
    def inject(row: tuple[str, bytes, int]) -> Ended:
        stage, reply, _ = row
        with FakeNextHop(at(stage, reply + b"\r\n")) as hop:
            who = person(to_smtp(hop.port), 'LOGFILE_OUTGOING = "~/log"')
            ended = who.inject("-q", "a@x.example")
            assert hop.messages == []
        assert not (who.home.path / "log").exists()
        return ended

    for (stage, reply, status), ended in each(REFUSALS, inject):
        assert (ended.status, ended.out) == (status, ""), (stage, reply)
        assert re.fullmatch(r"tofmipd: not sent: [45][^\n]+\n", ended.err), ended.err
        if reply[:1].isdigit():
            assert reply.decode().split(" ", 2)[2] in ended.err


def test_a_next_hop_that_is_down_is_a_reason_to_try_again(person):
    who = person(to_smtp(free_port()), 'LOGFILE_OUTGOING = "~/log"')
    ended = who.inject("a@x.example")
    assert ended.status == os.EX_TEMPFAIL
    assert "Connection refused" in ended.err
    assert not (who.home.path / "log").exists()


STATUSES = {
    os.EX_TEMPFAIL: os.EX_TEMPFAIL,
    os.EX_OSERR: os.EX_TEMPFAIL,
    127: os.EX_TEMPFAIL,
    os.EX_NOUSER: os.EX_UNAVAILABLE,
    os.EX_DATAERR: os.EX_UNAVAILABLE,
    1: os.EX_UNAVAILABLE,
}


def test_the_status_of_the_program_tells_whether_to_try_again(person):
    def inject(ends: int) -> Ended:
        who = person()
        who.sendmail.exit_with(ends)
        return who.inject("a@x.example")

    for ends, ended in each(list(STATUSES), inject):
        assert ended.status == STATUSES[ends], ends
        assert f"status {ends}" in ended.err


def test_a_program_that_is_not_there_is_a_reason_to_try_again(person):
    who = person('SENDMAIL_PROGRAM = "/nonexistent/sendmail"')
    ended = who.inject("a@x.example")
    assert ended.status == os.EX_TEMPFAIL
    assert "/nonexistent/sendmail cannot be run" in ended.err


def test_mail_that_goes_round_is_stopped(person):
    who = person()
    ended = who.inject("a@x.example", message=b"Received: again\n" * 101 + MESSAGE)
    assert ended.status == os.EX_UNAVAILABLE
    assert "goes round" in ended.err
    assert who.stored == []


def test_what_has_been_taken_before_a_failure_is_told_and_logged(tmp_path):
    script = at("DOT", b"451 4.3.0 no more today\r\n", message=2)
    with FakeNextHop(script) as hop:
        home = make_home(
            tmp_path,
            to_smtp(hop.port),
            'LOGFILE_OUTGOING = "~/log"',
            rules="to a@* ext=a\nto * ext=b\n",
        )
        ended = tool(home, "inject", "a@x.example", "b@x.example", "a@y.example", message=MESSAGE)
        assert ended.status == os.EX_TEMPFAIL
        assert "taken for 2 of 3 recipients" in ended.err
        assert "no more today" in ended.err
        (taken,) = hop.messages
        assert taken.recipients == ["a@x.example", "a@y.example"]
    logged = re.findall(r"^ *To: (.*)$", (tmp_path / "log").read_text(), re.MULTILINE)
    assert logged == taken.recipients


BROKEN = [
    # File, text, what is said of it.
    ("config", "x = 1\nHMAC_BYTES = 'x'\n", ["config:2: HMAC_BYTES"]),
    ("config", "\nprint 'x'\n", ["config:2: ", "Python 2"]),
    ("config", "raise KeyError('x')\n", ["config:1: KeyError"]),
    ("config", "import os; os._exit\nimport sys; sys.exit(0)\n", ["config:2: "]),
    ("crypt_key", "", ["crypt_key: empty"]),
    ("crypt_key", "0x00", ["crypt_key: not"]),
    ("filters/outgoing", "to oops\nto * bare\nfrmo *\n", [":1: ", ":3: 'frmo'"]),
    ("filters/outgoing", "to-file ~/none bare\n", ["outgoing:1: ", "none"]),
    ("filters/outgoing", "to * shell=false\n", ["outgoing:1: ", "'false'"]),
    ("filters/outgoing", "include ~/none\n", ["outgoing:1: ", "none"]),
    ("filters/outgoing", "to * bare=append\n", ["config:", "BARE_APPEND"]),
]


def test_errors_of_the_files_end_with_78_and_name_file_and_line(person):
    """Nothing is sent, and nothing is logged."""

    def inject(row: tuple[str, str, list[str]]) -> Ended:
        who = person('LOGFILE_OUTGOING = "~/log"', 'BARE_APPEND = "~/no/list"')
        who.home.write(*row[:2])
        ended = who.inject("a@x.example")
        assert who.stored == []
        assert not (who.home.path / "log").exists()
        return ended

    for (name, text, words), ended in each(BROKEN, inject):
        assert (ended.status, ended.out) == (os.EX_CONFIG, ""), (name, text, ended.err)
        assert all(word in ended.err for word in words), (name, text, ended.err)
        assert ended.err.count("\n") == 1


ASKING = [
    ("X-TMDA: nonsense", "X-TMDA: there is no action 'nonsense'"),
    ("X-TMDA: shell=touch${IFS}~/hacked", "X-TMDA: 'shell' can be used in a filter only"),
    ("X-TMDA: python=open('hacked','w')", "X-TMDA: 'python' can be used in a filter only"),
    ("Subject: X-TMDA shell=touch${IFS}~/hacked me", "Subject: 'shell'"),
]


def test_a_message_that_asks_for_what_it_cannot_have_ends_with_65(person):
    who = person("X_TMDA_IN_SUBJECT = True")

    def inject(row: tuple[str, str]) -> Ended:
        return who.inject("a@x.example", message=row[0].encode() + b"\n" + MESSAGE)

    for (field, words), ended in each(ASKING, inject):
        assert (ended.status, ended.out) == (os.EX_DATAERR, ""), field
        assert ended.err.startswith(f"tofmipd: {words}")
    assert who.stored == []
    assert not list(who.home.path.rglob("hacked"))


@pytest.mark.parametrize("where", ["/nonexistent/log", "~/.tmda"])
def test_a_log_that_cannot_be_written_is_a_warning_for_the_mail_has_gone(where, person):
    who = person(f'LOGFILE_OUTGOING = "{where}"')
    ended = who.inject("a@x.example")
    assert ended.status == 0
    assert who.one.recipients == ("a@x.example",)
    assert re.fullmatch(r"tofmipd inject: .*LOGFILE_OUTGOING[^\n]+\n", ended.err)


# inject: what else it says and does


SAID = "to a@x.example from bob-t@home.example: sendmail exited with 0\n"


def test_it_says_nothing_unless_asked_to(person):
    rows = [([], 0, ""), (["-q"], 99, ""), (["-v"], 0, SAID), (["-vq"], 99, SAID)]
    who = person()
    for (options, status, err), ended in each(rows, lambda row: who.inject(*row[0], "a@x.example")):
        assert ended == Ended(status, "", err), options
    assert len(who.stored) == len(rows)


def test_with_v_it_says_what_the_next_hop_said(tmp_path):
    with FakeNextHop() as hop:
        home = make_home(
            tmp_path, to_smtp(hop.port), rules="to a@* bare\nto * tag envelope exp=<>\n"
        )
        ended = tool(home, "inject", "-v", "a@x.example", "b@x.example", message=MESSAGE)
        assert ended == Ended(
            0,
            "",
            "to a@x.example from bob@home.example: 250 2.0.0 Ok: queued as FAKE1\n"
            "to b@x.example from <>: 250 2.0.0 Ok: queued as FAKE2\n",
        )
        assert hop.connections == 1, "one connection does for all copies"
        assert hop.commands[-1] == "QUIT"


OWN = rf"by \S+ \(tofmipd inject, from uid {os.getuid()}\); {DATE}"
EVIL = "from given\nX-Evil: 1\r\nX-Evil: 2\rX-Evil: 3"
LONG = "from " + "very " * 500 + "long"
TRACES = [
    # RECEIVED, TMDA_OFMIPD_RECEIVED, the field.
    ("full", None, OWN),
    ("private", None, rf"by \S+ \(tofmipd inject\); {DATE}"),
    ("none", None, None),
    ("full", "from given by me", "from given by me"),
    ("full", EVIL, " ".join(EVIL.split())),
    ("full", "from given\n\nbody", "from given body"),
    ("full", LONG, LONG),
]


def test_the_trace_field_is_one_field_whatever_the_environment_says(person):
    def inject(row: tuple[str, str | None, str | None]) -> tuple[Ended, Person]:
        setting, variable, _ = row
        who = person(f'RECEIVED = "{setting}"')
        variables = {} if variable is None else {"TMDA_OFMIPD_RECEIVED": variable}
        return who.inject("a@x.example", variables=variables), who

    for (setting, variable, expected), (ended, who) in each(TRACES, inject):
        assert (ended.status, ended.err) == (0, ""), variable
        assert len(who.one.values("Received")) == (expected is not None), (setting, variable)
        if expected is not None:
            assert re.fullmatch(expected, who.one.value("Received"))
            assert who.one.head.startswith(b"Received: ")
        assert not who.one.values("X-Evil")
        assert who.one.body == BODY


IDS = [
    # The environment, the end of the Message-ID.
    ({}, f"TMDA@{host_name()}"),
    ({"TMDAIDTAG": "mine", "TMDAIDHOST": "id.example"}, "mine@id.example"),
    ({"QMAILIDHOST": "q.example", "TMDAHOST": "no.example"}, "TMDA@q.example"),
    ({"TMDAHOST": "t.example", "MAILHOST": "no.example"}, "TMDA@t.example"),
    ({"MAILHOST": "m.example", "TMDAIDTAG": ""}, "TMDA@m.example"),
]


def test_the_environment_names_parts_of_the_message_id(person):
    def inject(row: tuple[dict[str, str], str]) -> str:
        who = person()
        assert who.inject("a@x.example", variables=row[0]).status == 0
        return who.one.value("Message-ID")

    for (variables, end), made in each(IDS, inject):
        assert re.fullmatch(rf"<[0-9]{{10}}\.[0-9]+\.{re.escape(end)}>", made), variables


@pytest.mark.parametrize("name", ["TMDAIDTAG", "TMDAIDHOST"])
def test_the_environment_cannot_bring_in_a_field_of_its_own(name, person):
    who = person()
    assert who.inject("a@x.example", variables={name: "x>\nX-Evil: 1\r\n\r\nbody"}).status == 0
    assert not who.one.values("X-Evil")
    assert who.one.body == BODY


def test_people_and_hosts_of_the_environment_replace_defaults_only(person):
    """Reference, section 3.3."""
    variables = {"TMDAUSER": "u", "TMDAHOST": "h.example", "TMDANAME": "A. Name"}
    who = person()
    who.home.write("config", to_program(who.sendmail.path) + "\n")
    message = b"Subject: s\n\nx\n"
    assert who.inject("a@x.example", message=message, variables=variables).status == 0
    assert who.one.value("From") == '"A. Name" <u-t@h.example>'
    other = person()
    assert other.inject("a@x.example", message=message, variables=variables).status == 0
    assert other.one.value("From") == "Bobby Brown <bobby-t@example.org>"


def test_the_program_gets_an_environment_of_its_own(person):
    """TO-87."""
    who = person(rules='to * tag from bare x-seen shell="echo $SECRET:$TMDA_RECIPIENT:$HOME"\n')
    ended = who.inject("a@x.example", variables={"SECRET": "s", "LD_PRELOAD": ""})
    assert ended.status == 0
    assert who.one.value("X-Seen") == f":a@x.example:{who.home.path}"
    ((_, found, _),) = who.sendmail.runs()
    assert found["HOME"] == str(who.home.path)
    assert {"SECRET", "LD_PRELOAD"}.isdisjoint(found)


# inject: many at once


def test_many_at_once_leave_lists_and_log_whole(person):
    """TO-109, TO-110: each in the log, each recipient once on the list."""
    who = person('BARE_APPEND = "~/list"', 'LOGFILE_OUTGOING = "~/log"', rules="to * bare=append\n")
    (who.home.path / "list").write_text("first@x.example")
    recipients = ["same@x.example", "Same@X.example", *(f"r{n}@x.example" for n in range(6))]
    done = [ended for _, ended in each(recipients, who.inject)]
    assert [(ended.status, ended.err) for ended in done] == [(0, "")] * len(recipients)
    listed = (who.home.path / "list").read_text()
    assert listed.endswith("\n")
    assert sorted(listed.lower().split()) == sorted(
        {"first@x.example", *(recipient.lower() for recipient in recipients)}
    )
    entries = (who.home.path / "log").read_text().split("\n\n")
    assert entries.pop() == ""
    labels = ["Date", "From", "  To", "Subj", "Actn"]
    assert [re.findall("^(....): ", entry, re.MULTILINE) for entry in entries] == [labels] * len(
        recipients
    )
    logged = [re.search("^  To: (.*)$", entry, re.MULTILINE)[1] for entry in entries]
    assert sorted(logged) == sorted(recipients)
    assert stat.S_IMODE((who.home.path / "list").stat().st_mode) & 0o022 == 0
    assert len(who.stored) == len(recipients)


def test_two_at_once_do_not_wait_for_each_other(tmp_path):
    """The first next hop says nothing until the second message has been taken."""
    with raw_hop() as slow, raw_hop() as quick:
        homes = [
            make_home(tmp_path / name, to_smtp(hop.port), rules="to * bare\n")
            for name, hop in (("slow", slow), ("quick", quick))
        ]
        slow.may_answer.clear()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(tool, homes[0], "inject", "a@x.example", message=MESSAGE)
            assert slow.data_complete.wait(LIMIT_SECONDS)
            assert tool(homes[1], "inject", "a@x.example", message=MESSAGE).status == 0
            assert not waiting.done()
            slow.may_answer.set()
            assert waiting.result(LIMIT_SECONDS).status == 0
        assert [len(hop.messages()) for hop in (slow, quick)] == [1, 1]


@pytest.mark.root
@pytest.mark.peer("postfix")
def test_it_stands_before_the_sendmail_of_postfix(postfix, tmp_path):
    home = make_home(tmp_path, to_program(postfix.sendmail), rules="to * ext=t\n")
    message = HEAD.replace("x.example", "example.net").encode() + b"\n.\nz\xc3\xbc\nno end"
    ended = tool(home, "inject", "-oi", "-t", message=message)
    assert (ended.status, ended.err) == (0, "")
    for name in ("to", "cc", "bcc"):
        stored = postfix.message(f"{name}@example.net")
        assert stored.sender == "bob-t@home.example"
        assert stored.value("From") == "Bob <bob-t@home.example>"
        assert not stored.values("Bcc")
        assert stored.body == b".\nz\xc3\xbc\nno end\n"


# explain


EXPLAINED = [
    # Settings, rules, recipient, message.
    ([], "to * sender\n", "A@X.example", MESSAGE),
    ([], "to * kw=shop\n", "a@x.example", b"Subject: no From\n\nx\n"),
    (
        ['ADDED_HEADERS_CLIENT = {"X-Org": "Ours"}\nPURGED_HEADERS_CLIENT = ["x-mailer"]'],
        'from bob@* tag from bare envelope ext=e reply-to kw=r x-note "some text"\n',
        "a@x.example",
        b"X-Mailer: spy\nX-Org: theirs\nX-Delivery-Agent: other\n" + MESSAGE,
    ),
    (
        ['MAIL_FOLLOWUP_TO = ["to@x.example"]\nFINGERPRINT = ["subject", "body"]'],
        "to * domain=y.example\n",
        "a@x.example",
        MESSAGE,
    ),
    ([], "to * ext=t\n", "a@x.example", b"X-TMDA: ext=asked\n" + MESSAGE),
    ([], "to * ext=t\n", "a@x.example", b"Resent-From: me@work.example\n" + MESSAGE),
    ([], "to * tag envelope exp=<>\n", "a@x.example", b"Date: long ago\n" + MESSAGE),
]
BY_THE_CLOCK = {"Received", "Date", "Message-ID"}


def test_what_explain_tells_is_what_inject_sends(person):
    """BX-26."""

    def both(row: tuple[list[str], str, str, bytes]) -> tuple[Ended, Ended, Person]:
        settings, rules, recipient, message = row
        who = person(*settings, rules=rules)
        told = tool(who.home, "explain", "--json", "--to", recipient, "-", message=message)
        assert who.stored == []
        return told, who.inject(recipient, message=message), who

    for (_, _, recipient, message), (told, sent, who) in each(EXPLAINED, both):
        assert (told.status, told.err, sent.status) == (0, "", 0)
        assert told.object["next_hop"] == str(who.sendmail.path)
        (copy,) = told.object["copies"]
        assert copy["recipients"] == [recipient] == list(who.one.recipients)
        assert copy["envelope_sender"] == (who.one.sender or "<>")
        assert copy["from"] == who.one.value("From")
        changed = dict(copy["changed_headers"])
        for name, value in changed.items():
            if value is None:
                assert not who.one.values(name)
            elif name not in BY_THE_CLOCK:
                assert who.one.values(name) == [value]
        before = Stored("", (), message)
        after = {line.partition(b":")[0].decode() for line in who.one.head.split(b"\n")}
        for name in after - {""}:
            same = who.one.values(name) == before.values(name)
            assert same == (name not in changed), (name, changed)


def test_explain_reads_a_file_or_standard_input_and_sends_nothing(person, tmp_path):
    who = person('BARE_APPEND = "~/list"', 'LOGFILE_OUTGOING = "~/log"', rules="to * bare=append\n")
    (who.home.path / "list").write_text("old@x.example\n")
    path = tmp_path / "message"
    path.write_bytes(MESSAGE)

    def state() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in who.home.path.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    runs: list[tuple[list[str], bytes]] = [
        ([str(path)], b""),
        (["-", "--json"], MESSAGE),
        (["message"], b""),
        (["--from", "Bob <bob@home.example>"], b""),
    ]
    (who.home.path / "message").write_bytes(MESSAGE)
    before = state()
    for (arguments, _), ended in each(
        runs,
        lambda row: tool(who.home, "explain", "--to", "a@x.example", *row[0], message=row[1]),
    ):
        assert (ended.status, ended.err) == (0, ""), arguments
        assert "Bob <bob@home.example>" in ended.out
        assert "--json" not in arguments or ended.object["copies"]
    assert state() == before
    assert who.stored == []


def test_explain_tells_all_errors_of_a_filter_and_ends_with_78(person):
    who = person(rules="to oops\n\nto * bare\nfrmo a@b bare\nto * hold\n")
    path = who.home.tmda / "filters/outgoing"
    text = tool(who.home, "explain", "--to", "a@x.example")
    told = tool(who.home, "explain", "--to", "a@x.example", "--json")
    assert [ended.status for ended in (text, told)] == [os.EX_CONFIG] * 2
    assert [ended.err for ended in (text, told)] == ["", ""]
    errors = told.object["errors"]
    assert [(error["file"], error["line"]) for error in errors] == [
        (str(path), line) for line in (1, 4, 5)
    ]
    for error in errors:
        assert f"{path}:{error['line']}: {error['message']}" in text.out
    ended = who.inject("a@x.example")
    assert ended.status == os.EX_CONFIG
    assert all(error["message"] in ended.err for error in errors)


@pytest.mark.parametrize(
    ("locale", "word", "shown"),
    [
        ("C.UTF-8", "ü@x.example".encode(), "ü@x.example"),
        ("C", b"\xff\x1b[2J@x.example", r"\xff\x1b[2J@x.example"),
    ],
)
def test_a_sign_that_a_terminal_cannot_show_is_escaped(locale, word, shown, person):
    who = person()
    variables = {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ended = tool(who.home, "explain", b"--to=" + word, variables=variables)
    assert (ended.status, ended.err) == (0, "")
    first = ended.out.splitlines()[0]
    assert first.startswith("to: ")
    assert "\x1b" not in ended.out
    assert first.endswith(shown) or locale == "C"


# explain and address for somebody else


@pytest.mark.root
def test_explain_for_a_user_has_his_files_and_his_rights_alone(village):
    anna, ben = village.people[:2]
    anna.write("secret", "to * ext=secret\n")
    ben.write(
        "filters/outgoing",
        'to ids@* tag from bare x-ids shell="id -u; id -G; echo $HOME $USER $LOGNAME; umask"\n'
        f'to * tag from ext=b x-seen shell="cat {anna.home.tmda}/secret || true"\n',
    )
    ben.configure(
        "import os",
        "open(os.path.expanduser('~/made'), 'w').close()",
        "ADDED_HEADERS_CLIENT = {'X-Root': os.environ.get('SECRET', 'none')}",
    )

    def explain(*arguments: str, **variables: str) -> Ended:
        done = run(
            "explain",
            *("--json", "--user", ben.name, *arguments),
            home=anna.home,
            program=village.program,
            variables=village.variables | variables,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    told = explain("--to=ids@x.example", SECRET="root's", TMDARC=str(anna.home.tmda / "config"))
    assert (told.status, told.err) == (0, "")
    assert told.object["rule"]["file"] == str(ben.home.tmda / "filters/outgoing")
    (copy,) = told.object["copies"]
    assert copy["envelope_sender"] == f"{ben.name}@example.org"
    changed = dict(copy["changed_headers"])
    uid, *others = changed["X-Ids"].split()
    groups, rest = others[:-4], others[-4:]
    assert uid == str(ben.uid)
    assert set(groups) == set(map(str, os.getgrouplist(ben.name, ben.gid)))
    assert rest == [str(ben.home.path), ben.name, ben.name, "0077"]
    assert changed["X-Root"] == "none"
    made = (ben.home.path / "made").stat()
    assert (made.st_uid, made.st_gid) == (ben.uid, ben.gid)
    changed = dict(explain("--to=x@x.example").object["copies"][0]["changed_headers"])
    assert "Permission denied" in changed["X-Seen"]
    for option in ("-c", "-O"):
        told = explain("--to=x@x.example", option, str(anna.home.tmda / "secret"))
        assert told.status == os.EX_CONFIG
        (error,) = told.object["errors"]
        assert error["message"].endswith("Permission denied")


@pytest.mark.root
def test_a_message_for_a_users_question_may_be_roots(village, tmp_path):
    person = village.people[0]
    person.write("filters/outgoing", "to * ext=t\n")
    path = tmp_path / "message"
    path.write_bytes(MESSAGE)
    path.chmod(0o600)
    done = village.run("explain", "--user", person.name, "--to", "a@x.example", str(path))
    assert done.returncode == 0, done.stderr
    assert "sender:   bob-t@home.example\n" in done.stdout


@pytest.mark.root
def test_there_must_be_such_a_user_and_only_root_asks(village):
    person = village.people[0]
    words = [["explain", "--to", "a@x.example"], ["address", "-k", "shop"]]
    rows = [(words[0], name) for name in ("no-such-user", "root", "../root")]
    for row, done in each(
        [*rows, (words[1], "root")], lambda row: village.run(*row[0], "--user", row[1])
    ):
        assert (done.returncode, done.stdout) == (os.EX_CONFIG, ""), row
        assert re.fullmatch(r"tofmipd: [^\n]+\n", done.stderr)
    for word in words:
        done = run(
            *word,
            *("--user", village.people[1].name),
            home=person.home,
            program=village.program,
            variables=village.variables,
            user=person.uid,
        )
        assert (done.returncode, done.stdout) == (os.EX_NOPERM, "")
        assert "only root" in done.stderr


@pytest.mark.root
def test_root_makes_and_checks_addresses_of_a_user_with_his_key(village):
    anna, ben = village.people[:2]
    ben.write("crypt_key", "ff" * 20 + "\n")
    made = {
        person: village.run("address", "--user", person.name, "-k", "shop", "-n").stdout
        for person in (anna, ben)
    }
    assert made[anna].startswith(f"{anna.name}-keyword-shop.")
    for person in (anna, ben):
        for address in made.values():
            done = village.run("address", "--user", person.name, "--check", address)
            good = address == made[person]
            assert done.returncode == (0 if good else os.EX_DATAERR)
            assert done.stdout == ("VALID" if good else "BAD") + " keyword address\n"


# address, for a delivery script

_DELIVERY = """\
#!/bin/sh
# Says what becomes of mail for $1 from $2, as a mail server would have it by the exit status.
"{program}" address --check -- "$1" "$2" >/dev/null
case $? in
    0) echo taken ;;
    65) echo bounced; exit 100 ;;
    *) echo deferred; exit 111 ;;
esac
"""
CORRESPONDENT = "carol@remote.example"


def test_a_delivery_script_can_rely_on_the_status(person):
    who = person()
    script = who.home.path / "delivery"
    script.write_text(_DELIVERY.format(program=PROGRAM))
    script.chmod(0o755)
    made = {
        options: tool(who.home, "address", "-n", *options.split()).out
        for options in ("-d 1d", "-k shop", f"-s {CORRESPONDENT}", f"--domain {CORRESPONDENT}")
    }
    dated, keyword, sender, domain = made.values()

    def deliver(address: str, correspondent: str) -> str:
        done = subprocess.run(
            [script, address, correspondent],
            env=environment(who.home),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        return done.stdout.strip()

    rows = [
        (dated, CORRESPONDENT, "taken"),
        (sender, CORRESPONDENT, "taken"),
        (sender, "dave@remote.example", "bounced"),
        (domain, "dave@deep.below.remote.example", "taken"),
        ("bobby-dated-1234999890.be01c1@example.org", CORRESPONDENT, "bounced"),
        (dated.replace("-dated-1", "-dated-2"), CORRESPONDENT, "bounced"),
        # Who writes chooses both words.
        (keyword, "-c/nonexistent/evil@x.example", "taken"),
        (keyword, "--", "taken"),
        ("-bobby-keyword-shop@example.org", CORRESPONDENT, "bounced"),
        (keyword, "a b\n'\"`id`$(id)@x.example", "taken"),
    ]
    for row, what in each(rows, lambda row: deliver(*row[:2])):
        assert what == row[2], row
    who.home.write("crypt_key", "ff" * 20)
    assert deliver(keyword, CORRESPONDENT) == "bounced"
    (who.home.tmda / "crypt_key").unlink()
    assert deliver(keyword, CORRESPONDENT) == "deferred"


@pytest.mark.peer("openssl")
@pytest.mark.parametrize(
    ("rule", "options", "correspondent"),
    [
        ("kw=Shop.Now", ["-k", "Shop.Now"], []),
        ("sender", ["-s", "A@X.example"], ["a@x.example"]),
        ("sender=other@y.example", ["-s", "other@y.example"], ["other@y.example"]),
        ("domain", ["--domain", "a@X.example"], ["b@sub.x.example"]),
    ],
)
def test_the_address_that_is_made_is_the_one_that_is_sent(rule, options, correspondent, person):
    """TO-113."""
    who = person(rules=f"to * {rule}\n")
    assert who.inject("A@X.example").status == 0
    made = tool(who.home, "address", "-a", "bob@home.example", *options)
    assert made == Ended(0, who.one.sender + "\n", "")
    assert who.one.value("From") == f"Bob <{who.one.sender}>"
    assert tool(who.home, "address", "--check", who.one.sender, *correspondent).status == 0


@pytest.mark.peer("openssl")
def test_dated_addresses_of_all_ways_differ_by_the_clock_alone(daemon, home, hop, person):
    """TO-113: by the daemon, by inject, by the tool."""
    home.write("filters/outgoing", "to * dated=2d\n")
    assert submit(daemon.port, "x@example.net").startswith("250")
    by_daemon = hop.message("x@example.net").sender
    message = b"From: bobby@example.org\n\nx\n"
    assert tool(home, "inject", "y@example.net", message=message).status == 0
    by_inject = hop.message("y@example.net").sender
    variables = {"TMDA_TIMEOUT": "2d"}
    by_tool = tool(home, "address", "-d", "-n", variables=variables).out
    expiries = []
    for address in (by_daemon, by_inject, by_tool):
        match = re.fullmatch(r"bobby-dated-([0-9]+)\.([0-9a-f]{6})@example\.org", address)
        assert match is not None
        assert match[2] == openssl_mac(match[1])
        assert tool(home, "address", "--check", address).status == 0
        expiries.append(int(match[1]))
    assert expiries == sorted(expiries)
    assert expiries[-1] - expiries[0] < 60
