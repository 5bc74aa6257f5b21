"""Lists, commands, logs and what a message asks for itself, through the daemon in personal mode."""

from __future__ import annotations

import base64
import dbm.dumb
import marshal
import os
import pickle
import re
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import logged_in, run_client, submit, wire
from hops import RawHop, smtp_sink
from oracle import dated, openssl_mac
from running import (
    ADDRESS,
    DATE,
    HOST,
    KEY,
    LIMIT_SECONDS,
    LOGIN,
    PASSWORD,
    SIGNALS_OF_THE_C_LIBRARY,
    Daemon,
    Home,
    make_home,
    to_program,
    to_smtp,
    wait_until,
)

TO, OTHER = "x@example.net", "other@example.com"
# What a shell adds to the environment that it was given.
OF_THE_SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}

Attempt = Callable[..., str]


@pytest.fixture
def home(standing, hop) -> Home:
    """As that of all tests, but without what an earlier test has left there."""
    shutil.rmtree(standing.home.tmda, ignore_errors=True)
    return make_home(standing.home.path, to_smtp(hop.port))


@pytest.fixture
def attempt(daemon: Daemon, home: Home, hop: RawHop) -> Attempt:
    """Configure and send one message like ``send``; the reply, whatever it is.

    Files that would be the same are left alone, so nothing but what a test changes is read again.
    """
    before: list[object] = []

    def attempt(
        *settings: str,
        rules: str = "",
        to: tuple[str, ...] = (TO,),
        message: bytes | None = None,
        port: int = daemon.port,
    ) -> str:
        if before != [settings, rules]:
            before[:] = [settings, rules]
            home.configure(to_smtp(hop.port), *settings)
            home.write("filters/outgoing", rules)
        return submit(port, *to, message=message)

    return attempt


def senders(hop: RawHop) -> list[str]:
    """The envelope senders of what has arrived, which is forgotten."""
    found = [stored.sender for stored in hop.messages()]
    hop.stored.clear()
    return found


# Lists: each source is a way to put addresses down, with the action beside them if there is one.


def database(home: Home) -> sqlite3.Connection:
    connection = sqlite3.connect(home.tmda / "sqlite")
    # Who reads and who writes do not wait for each other then.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS people (address TEXT, action TEXT)")
    return connection


def put_text(home: Home, entries: dict[str, str]) -> None:
    lines = ["# a list", "", *(f"{key} {action}  # x" for key, action in entries.items())]
    home.write("list", "\n".join(lines))


def put_cdb(home: Home, entries: dict[str, str]) -> None:
    records = "".join(f"+{len(k)},{len(v)}:{k}->{v}\n" for k, v in entries.items()) + "\n"
    new = home.tmda / "list.new"
    subprocess.run(["cdb", "-c", str(new)], input=records, text=True, check=True, timeout=20)
    new.replace(home.tmda / "list")


def put_dbm(home: Home, entries: dict[str, str]) -> None:
    with dbm.dumb.open(str(home.tmda / "list"), "n") as made:
        for key, action in entries.items():
            made[key] = action


def put_ezmlm(home: Home, entries: dict[str, str]) -> None:
    subscribers = "".join(f"T{key}\0" for key in entries)
    home.write("list/subscribers/4", subscribers)


def put_pickle(home: Home, entries: dict[str, str]) -> None:
    (home.tmda / "list").mkdir(exist_ok=True)
    new = home.tmda / "list/new"
    new.write_bytes(pickle.dumps({"members": dict.fromkeys(entries, 0)}, 2))
    new.replace(home.tmda / "list/config.pck")


def put_marshal(home: Home, entries: dict[str, str]) -> None:
    (home.tmda / "list").mkdir(exist_ok=True)
    new = home.tmda / "list/new"
    new.write_bytes(marshal.dumps({"members": dict.fromkeys(entries, 0)}, 0))
    new.replace(home.tmda / "list/config.db")


def put_rows(home: Home, entries: dict[str, str]) -> None:
    connection = database(home)
    with connection:
        connection.execute("DELETE FROM people")
        connection.executemany("INSERT INTO people VALUES (?, ?)", entries.items())
    connection.close()


CRITERIA = '"SELECT address, action FROM people WHERE %(criteria)s"'
# How a rule asks, and how what it asks is made.
SOURCES = {
    "file": ("-file ~/.tmda/list", put_text),
    "file -autocdb": ("-file -autocdb ~/.tmda/list", put_text),
    "file -autodbm": ("-file -autodbm ~/.tmda/list", put_text),
    "cdb": ("-cdb ~/.tmda/list", put_cdb),
    "dbm": ("-dbm ~/.tmda/list", put_dbm),
    "ezmlm": ("-ezmlm ~/.tmda/list", put_ezmlm),
    "mailman pickle": ("-mailman -attr=members ~/.tmda/list", put_pickle),
    "mailman marshal": ("-mailman -attr=members ~/.tmda/list", put_marshal),
    "sql": (f"-sql -addr_column=address -action_column=action {CRITERIA}", put_rows),
    "sql -wildcards": ('-sql -wildcards "SELECT address, action FROM people"', put_rows),
}
KNOWING_ACTIONS = [name for name in SOURCES if not name.startswith(("ezmlm", "mailman"))]
CONNECTION = (
    "import os, sqlite3",
    'DB_CONNECTION = sqlite3.connect(os.path.expanduser("~/.tmda/sqlite"))',
)


@pytest.mark.peer("cdb")
@pytest.mark.parametrize("side", ["to", "from"])
@pytest.mark.parametrize("source", SOURCES)
def test_each_source_finds_who_is_in_it_and_changes_count_for_the_next_message(
    source, side, attempt, home, hop
):
    """TO-96."""
    question, put = SOURCES[source]
    rules = f"{side}{question} ext=found\nto * ext=not\n"
    key = TO.upper() if side == "to" else ADDRESS
    found = []
    for entries in ({TO: "", ADDRESS: ""}, {"a@b.example": ""}, {ADDRESS: "", "y@z": "", TO: ""}):
        put(home, entries)
        assert attempt(*CONNECTION, rules=rules, to=(key if side == "to" else TO,)) == (
            "250 2.0.0 Ok: queued as RAW"
        )
        found += senders(hop)
    assert found == [f"bobby-{word}@example.org" for word in ("found", "not", "found")]


@pytest.mark.peer("cdb")
@pytest.mark.parametrize("source", KNOWING_ACTIONS)
def test_an_action_beside_an_address_goes_before_the_rule_s(source, attempt, home, hop, daemon):
    """TO-98."""
    question, put = SOURCES[source]
    put(home, {"a@example.net": "dated=1h", "b@example.net": "", "c@example.net": "kw=shop"})
    to = ("a@example.net", "b@example.net", "c@example.net", "d@example.net")
    rules = f"to{question} tag from ext=rule x-rule yes\nto * bare\n"
    assert attempt(*CONNECTION, rules=rules, to=to).startswith("250")
    first, second, third, fourth = hop.messages()
    dated(first, 3600)
    assert second.sender == "bobby-rule@example.org"
    assert third.sender == f"bobby-keyword-shop.{openssl_mac('shop')}@example.org"
    assert fourth.sender == ADDRESS
    assert [len(stored.values("X-Rule")) for stored in hop.messages()] == [0, 1, 0, 0]
    daemon.says("to='c@example.net'", "tag from kw=shop")


@pytest.mark.peer("cdb")
@pytest.mark.parametrize("source", KNOWING_ACTIONS)
def test_a_domain_in_a_list_stands_for_all_its_addresses(source, attempt, home, hop):
    question, put = SOURCES[source]
    put(home, {"b@example.net": "ext=address", "example.net": "ext=domain"})
    to = ("a@Example.NET", "b@example.net", "c@sub.example.net")
    assert attempt(*CONNECTION, rules=f"to{question} bare\nto * ext=no\n", to=to)[:3] == "250"
    wanted = ["bobby-domain@example.org", "bobby-address@example.org", "bobby-no@example.org"]
    assert senders(hop) == wanted


@pytest.mark.peer("cdb")
@pytest.mark.parametrize("source", [name for name in SOURCES if not name.startswith("sql")])
def test_a_missing_list_defers_the_mail_until_it_is_there_unless_it_is_optional(
    source, attempt, home, hop, daemon
):
    """TO-96: nothing is lost, for nothing has been sent."""
    question, put = SOURCES[source]
    rules = f"to a@example.net bare\nto{question} ext=found\nto * ext=not\n"
    said = attempt(rules=rules, to=("a@example.net", TO))
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 2: there is")
    assert str(home.path) not in said
    daemon.says("ERROR", f"{home.tmda}/filters/outgoing:2: ", f"{home.tmda}/list", "-optional")
    assert hop.commands == []
    # A rule that comes to nothing before it is no reason to look.
    assert attempt(rules=rules, to=("a@example.net",)).startswith("250")
    put(home, {TO: ""})
    assert attempt(rules=rules).startswith("250")
    first, _, rest = question.partition(" ")
    for path in home.tmda.glob("list*"):
        path.rename(home.tmda / f"away-{time.monotonic_ns()}")
    assert attempt(rules=rules.replace(question, f"{first} -optional {rest}")).startswith("250")
    assert senders(hop) == [ADDRESS, "bobby-found@example.org", "bobby-not@example.org"]


def test_a_list_is_asked_with_wildcards_and_sub_domains(attempt, home, hop):
    """TO-97."""
    home.write("list", "*@=lists.example.net ext=sub\nj?e@* ext=joe\n[!a-w]@example.net ext=set\n")
    to = ("a@b.lists.example.net", "joe@x.example", "x@example.net", "a@example.net")
    assert attempt(rules="to-file ~/.tmda/list bare\nto * ext=no\n", to=to).startswith("250")
    assert senders(hop) == [f"bobby-{word}@example.org" for word in ("sub", "joe", "set", "no")]


@pytest.mark.parametrize(
    "octets",
    [
        b"X@Example.NET\r\na@b\r\n",
        b"\xff\xfe\x00\xe4 \xff=\xff\nx@example.net",
        b"\n\n\n   x@example.net\tbare idle \xe4 words\n",
        b"\0\0\0\nx@example.net #\0\n",
        b"y@example.net\n" * 200_000 + b"x@example.net\n",
        b"# " + b"x" * 1_000_000 + b"\nx@example.net\n",
    ],
    ids=["CRLF", "not UTF-8", "blanks", "NUL", "long", "a long line"],
)
def test_a_list_may_hold_any_octets(octets, attempt, home, hop):
    home.write("list", "")
    (home.tmda / "list").write_bytes(octets)
    rules = "to-file ~/.tmda/list bare\nto * ext=no\n"
    assert attempt(rules=rules, to=(TO, OTHER)).startswith("250")
    assert senders(hop) == [ADDRESS, "bobby-no@example.org"]


@pytest.mark.parametrize("kind", ["a directory", "a pipe", "a loop of links"])
@pytest.mark.parametrize("source", ["file", "file -autocdb", "cdb", "ezmlm", "mailman pickle"])
def test_what_is_no_list_holds_nothing_up(kind, source, attempt, home, hop):
    path = home.tmda / "odd"
    match kind:
        case "a directory":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to(path)
    question = SOURCES[source][0].replace("~/.tmda/list", "~/.tmda/odd")
    begun = time.monotonic()
    said = attempt(rules=f"to{question} ext=no\n")
    assert time.monotonic() - begun < 5
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 1: ")
    assert hop.commands == []


def test_an_error_in_a_list_names_its_line_when_that_line_matches(attempt, home, hop, daemon):
    """TO-98."""
    home.write("list", "a@example.net bare\n\nb@example.net Confuse\nc@example.net tag from bare\n")
    rules = "# x\nto-file ~/.tmda/list ext=rule\n"
    assert attempt(rules=rules, to=("a@example.net", "d@example.net")).startswith("250")
    for to, place in (("b@example.net", "list:3: "), ("c@example.net", "list:4: ")):
        said = attempt(rules=rules, to=("a@example.net", to))
        assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 2: list:")
        daemon.says("ERROR", f"{home.tmda}/filters/outgoing:2: {home.tmda}/{place}")
    assert len(hop.messages()) == 2


# -autocdb: what is looked up is made of the list.

AUTO = "to-file -autocdb ~/.tmda/list ext=listed\nto * ext=no\n"


@pytest.mark.peer("cdb")
def test_autocdb_makes_a_database_that_other_programs_can_read(attempt, home, hop):
    """TO-96."""
    home.write("list", "X@Example.NET dated=1h # x\n*@example.net\nexample.org ext=a idle\n")
    assert attempt(rules=AUTO, to=(TO, "y@example.net", "a@example.org")).startswith("250")
    first, *others = hop.messages()
    dated(first, 3600)
    assert [stored.sender for stored in others] == ["bobby-no@example.org", "bobby-a@example.org"]
    made = home.tmda / "list.cdb"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    for key, value in ((TO, "dated=1h"), ("*@example.net", ""), ("example.org", "ext=a")):
        found = subprocess.run(["cdb", "-q", str(made), key], capture_output=True, check=True)
        assert found.stdout.decode() == value
    assert [path.name for path in home.tmda.glob("list*")] in (
        ["list", "list.cdb"],
        ["list.cdb", "list"],
    )


@pytest.mark.parametrize(
    "octets",
    [b"", b"x", b"\xff" * 2048, b"\xff" * 5000, bytes(range(1, 256)) * 20],
    ids=["empty", "short", "ones", "more ones", "noise"],
)
def test_a_database_that_is_damaged_is_as_good_as_none(octets, attempt, home, hop):
    """With -autocdb the list serves; a cdb of its own is an error."""
    home.write("list", f"{TO}\n")
    (home.tmda / "list.cdb").write_bytes(octets)
    os.utime(home.tmda / "list", (1, 1))
    assert attempt(rules=AUTO).startswith("250")
    assert senders(hop) == ["bobby-listed@example.org"]
    said = attempt(rules="to-cdb ~/.tmda/list.cdb ext=no\n")
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 1: list.cdb")
    assert hop.messages() == []


@pytest.mark.peer("cdb")
def test_a_length_in_a_database_that_cannot_be_is_an_error_with_its_place(attempt, home, hop):
    """It must not be taken for the size of what is to be read."""
    put_cdb(home, {TO: "bare"})
    octets = bytearray((home.tmda / "list").read_bytes())
    octets[2052:2056] = b"\xff\xff\xff\xff"
    (home.tmda / "list").write_bytes(octets)
    said = attempt(rules="to-cdb ~/.tmda/list ext=no\n")
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 1: list: ")


@pytest.mark.parametrize("source", ["ezmlm", "file"])
def test_a_list_that_is_changed_in_its_place_counts_for_the_next_message(
    source, attempt, home, hop
):
    """Neither the directory nor the number of the file changes."""
    question, put = SOURCES[source]
    put(home, {"a@example.net": ""})
    assert attempt(rules=f"to{question} bare\nto * ext=no\n").startswith("250")
    path = home.tmda / ("list/subscribers/4" if source == "ezmlm" else "list")
    with path.open("a") as file:
        file.write(f"T{TO}\0" if source == "ezmlm" else f"\n{TO}\n")
    assert attempt(rules=f"to{question} bare\nto * ext=no\n").startswith("250")
    assert senders(hop) == ["bobby-no@example.org", ADDRESS]


# All recipients of a message are judged by the lists that were there for the first.

HOLD = """\
#!/bin/sh
cd ~/.tmda || exit 1
: > held
until test -e go; do sleep 0.01; done
echo bobby-held@example.org
"""


def held(attempt: Attempt, home: Home, *settings: str, rules: str, to: tuple[str, ...]):
    """Begin to send a message, up to its first command ~/.tmda/hold; what ends it."""
    home.write("hold", HOLD, 0o700)
    pool = ThreadPoolExecutor(1)
    reply = pool.submit(attempt, *settings, rules=rules, to=to)
    wait_until((home.tmda / "held").exists, "the command")

    def release() -> str:
        (home.tmda / "go").touch()
        pool.shutdown()
        return reply.result(LIMIT_SECONDS)

    return release


@pytest.mark.peer("cdb")
@pytest.mark.parametrize("source", [name for name in SOURCES if name not in ("sql", "dbm")])
def test_a_list_that_changes_within_a_message_counts_for_the_next_one(
    source, attempt, home, hop, daemon
):
    question, put = SOURCES[source]
    rules = f'to{question} tag from ext=listed x-held "shell=.tmda/hold"\nto * ext=no\n'
    put(home, {"a@example.net": "", TO: ""})
    release = held(attempt, home, *CONNECTION, rules=rules, to=("a@example.net", TO))
    put(home, {OTHER: ""})
    # Another message makes the new state known to the process.
    assert submit(daemon.port, "nobody@example.net").startswith("250")
    assert release().startswith("250")
    assert senders(hop) == ["bobby-no@example.org", "bobby-listed@example.org"]
    assert attempt(*CONNECTION, rules=rules, to=(TO, OTHER)).startswith("250")
    assert senders(hop) == ["bobby-no@example.org", "bobby-listed@example.org"]


# Macros, includes and variables.

FILTER = """\
# All that a filter can be written with.
macro NET      example.net
macro tagged(who, how)  to who@NET tag from how X-Rule "${RULE} of ${HOME}"
tagged(a, ext=a)   # a comment
include ~/.tmda/filters/more
include -optional filters/none
to 'c@example.net d' bare
to *@=${DOMAIN}    # continued
    # in between
    tag from ext=${WORD}
        x-c 'a "quoted" word'
"""
MORE = """\
macro OWN bobby@example.org
tagged(b, "dated=1h")
from OWN default
"""


def test_macros_includes_and_variables_work_together(attempt, home, hop):
    """TO-99: in three files; settings go before the environment."""
    home.write("filters/more", MORE)
    settings = (
        'ACTION_OUTGOING = "ext=fallback"',
        'RULE, DOMAIN, HOME = "rule", "example.com", ""',
        'WORD = "${DOMAIN}"',
    )
    rules = FILTER.replace("include ~/.tmda/filters/more", "include .tmda/filters/more")
    to = ("a@example.net", "b@example.net", "c@x.example.com")
    assert attempt(*settings, rules=rules, to=to).startswith("250")
    first, second, third = hop.messages()
    assert first.sender == "bobby-a@example.org"
    assert first.value("X-Rule") == f"rule of {home.path}"
    dated(second, 3600)
    assert third.sender == "bobby-fallback@example.org"
    hop.stored.clear()
    # An included file counts like the filter: it is gone, and there is another one.
    (home.tmda / "filters/more").write_text("# nothing\n")
    (home.path / "filters").mkdir(exist_ok=True)
    (home.path / "filters/none").write_text("to b@* ext=found\n")
    assert attempt(*settings, rules=rules, to=to).startswith("250")
    wanted = [f"bobby-{word}@example.org" for word in ("a", "found", "example.com")]
    assert [stored.sender for stored in hop.messages()] == wanted
    assert hop.messages()[2].value("X-C") == 'a "quoted" word'
    shutil.rmtree(home.path / "filters")


def test_a_variable_of_the_environment_is_that_of_who_started_the_daemon(start, home, hop):
    """TO-99."""
    daemon = start(home, variables={"WORD": "from-outside", "EMPTY": ""})
    home.write("filters/outgoing", "to * ext=${WORD}\n")
    assert submit(daemon.port, TO).startswith("250")
    assert hop.message(TO).sender == "bobby-from-outside@example.org"
    home.write("filters/outgoing", "to * ext=${EMPTY}\n")
    assert submit(daemon.port, TO).startswith(
        "451 4.3.5 Error in your TMDA files: filters/outgoing"
    )


@pytest.mark.parametrize(
    ("files", "logged"),
    [
        (
            ["to x confuse\nhop la\n\nto a@b\n  bare\n  \nsize <1 bare\nto * Bare\nTo y exp\n"],
            [
                "outgoing:1: there is no action 'confuse'",
                "outgoing:2: 'hop' is no source",
                "outgoing:7: the source 'size' looks at incoming mail only",
                "outgoing:8: the action 'Bare' must be written in lower case: 'bare'",
                "outgoing:9: the action 'exp' needs an option",
            ],
        ),
        (
            ["to a@b bare\ninclude filters/one\n", "to * bare\n\nto x\n"],
            ["filters/one:3: the action is missing"],
        ),
        (["include filters/one\n", "include filters/two\n", "include filters/one\n"], ["itself"]),
        (["include filters/outgoing\n"], ["outgoing:1: ", "includes itself"]),
        (["include nowhere\nto * bare"], ["outgoing:1: there is no file", "include -optional"]),
        (["to * ext=${NO_SUCH}\n"], ["outgoing:1: ${NO_SUCH} is neither a setting"]),
        (["\n\nmacro m(a) to a ext=a\nm(b, c)\n"], ["outgoing:4: the macro 'm' takes 1"]),
        (["macro a b b\nmacro b c c\nmacro c d d\n" + "a" * 0 + "a a a a"], ["outgoing:4: "]),
        (["   to * bare\n"], ["outgoing:1: the line is indented"]),
        (["to * ext=\xff\x00\n"], ["outgoing:1: "]),
    ],
)
def test_a_broken_filter_has_each_bad_line_on_the_log(files, logged, attempt, home, hop, daemon):
    """TO-95, TO-99."""
    for name, text in zip(("one", "two"), files[1:], strict=False):
        (home.path / "filters").mkdir(exist_ok=True)
        (home.path / "filters" / name).write_text(text)
    if "include filters/outgoing" in files[0]:
        files = [files[0].replace("filters/outgoing", "~/.tmda/filters/outgoing")]
    said = attempt(rules=files[0])
    assert said.startswith("451 4.3.5 Error in your TMDA files: ")
    assert str(home.path) not in said
    daemon.says("ERROR", " deferred: ", *logged)
    assert hop.commands == []


@pytest.mark.parametrize(
    "rules",
    [
        b"to-file ~/.tmda/\xff bare\n",
        b"to-cdb '\xe4\x80' bare\n",
        b"to-ezmlm \x1b[2J\xff bare\n",
        b"include \xff\n",
        b"\xff * bare\n",
        b"to * \xff\n",
        b"to * shell=\xff\n",
        b'to * tag x-a "shell=echo \xff >&2; exit 1"\n',
        b"to * dated=\xff\n",
        b"to * exp=\xff\x00@x\n",
        b"macro \xff x\nto * bare\n",
        b"to * ext=${\xff}\xff${HOME}\xff\x1b\n",
        b"to-file \0 bare\n",
        b"include a\0b\n",
        b"to * shell=a\0b\n",
        b"\xef\xbb\xbfto * bare\n",
        b"to" * 100_000,
        b"to-file " + b"x" * 5000 + b" bare\n",
    ],
    ids=lambda rules: repr(rules[:20]),
)
def test_any_octets_in_a_filter_are_an_error_that_can_be_shown(rules, attempt, home, hop, daemon):
    """Neither the reply nor the log trips over them."""
    attempt(rules="to * bare\n")
    hop.reset()
    (home.tmda / "filters/outgoing").write_bytes(rules)
    said = submit(daemon.port, TO)
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line ")
    assert said.isprintable()
    assert len(said) < 512
    daemon.says("ERROR", f"{home.tmda}/filters/outgoing:")
    assert "\x1b" not in daemon.text()
    assert hop.commands == []


def test_an_error_with_octets_that_are_no_text_is_in_a_log_file_too(start, home, tmp_path):
    daemon = start(home, "--log-file", str(tmp_path / "log"))
    (home.tmda / "filters/outgoing").write_bytes(b"to-file ~/.tmda/\xff\xe4 bare\n")
    assert submit(daemon.port, TO).startswith("451 4.3.5 ")
    daemon.stop()
    text = (tmp_path / "log").read_bytes()
    assert b" ERROR " in text
    assert b" deferred: " in text


# What a message asks for itself.


def by_swaks(daemon: Daemon, *options: str) -> tuple[int, str]:
    """Send a message with more header lines; exit status and dialogue."""
    sent = run_client(
        *("swaks", "--server", HOST, "--port", str(daemon.port), "--from", ADDRESS, "--to", TO),
        *("--auth", "PLAIN", "--auth-user", LOGIN, "--auth-password", PASSWORD),
        *("--timeout", str(int(LIMIT_SECONDS)), *options),
    )
    return sent.status, sent.words


@pytest.mark.peer("swaks", "smtp-sink")
@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("bare", ADDRESS),
        ("  ext=x \t", "bobby-x@example.org"),
        ("exp=me@other.example", "me@other.example"),
        ("default", "bobby-default@example.org"),
        ("kw=a.b", f"bobby-keyword-a?b.{openssl_mac('a?b')}@example.org"),
        ("bare please", "bobby-default@example.org"),
        ("shell=id now", "bobby-default@example.org"),
        ("", "bobby-default@example.org"),
    ],
)
def test_one_word_of_x_tmda_goes_before_the_filter_and_the_field_is_removed(
    value, address, daemon, home, tmp_path
):
    """TO-102."""
    home.write("filters/outgoing", "to * ext=filter\n")
    with smtp_sink(tmp_path / "sink") as sink:
        home.configure(to_smtp(sink.port), 'ACTION_OUTGOING = "ext=default"')
        status, words = by_swaks(daemon, "--add-header", f"X-TMDA: {value}")
        assert status == 0, words
        stored = sink.message(TO)
    assert stored.sender == address
    assert stored.value("From") == f"Bobby Brown <{address}>"
    assert b"x-tmda:" not in stored.octets.lower()


SHELL = "shell=touch$IFS$HOME/mark"


@pytest.mark.peer("swaks")
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("nonsense", "there is no action 'nonsense'"),
        ("Bare", "must be written in lower case"),
        ("confirm", "is for incoming mail only"),
        ("ext", "needs an option"),
        ("dated=soon", "invalid timeout 'soon'"),
        ("exp=a<b>c", "no address that mail can be sent from"),
        (SHELL, "'shell' can be used in a filter only"),
        (SHELL.upper(), "must be written in lower case"),
        ("python=1+1", "'python' can be used in a filter only"),
        ("\u00e4\u00f6", "is not an action"),
        ("x" * 900, "there is no action"),
    ],
    ids=lambda value: value[:12],
)
def test_what_a_message_cannot_have_is_refused(word, reason, daemon, home, hop):
    """TO-102, TO-103: nothing is run for a message, which may be a stranger's."""
    home.write("filters/outgoing", "to * ext=filter\n")
    home.configure(to_smtp(hop.port), "X_TMDA_IN_SUBJECT = yes")
    for options in (
        ("--add-header", f"X-TMDA: {word}"),
        ("--header", f"Subject: X-TMDA {word} hello"),
    ):
        status, words = by_swaks(daemon, *options)
        assert status != 0
        (reply,) = re.findall("554 .*", words)
        assert reply.startswith("554 5.6.0 Error in your message: ")
        assert reason in reply
        assert len(reply) < 512
    assert not (home.path / "mark").exists()
    assert hop.messages() == []
    # The session goes on.
    assert submit(daemon.port, TO).startswith("250")


@pytest.mark.peer("swaks", "smtp-sink")
@pytest.mark.parametrize(
    ("setting", "subject", "address", "left"),
    [
        ("yes", "X-TMDA bare hello  there", ADDRESS, ["hello  there"]),
        ("1", "x-tmda   ext=x", "bobby-x@example.org", [""]),
        ("yes", "X-Tmda ext=x   =?utf-8?q?=C3=A4?=", "bobby-x@example.org", ["=?utf-8?q?=C3=A4?="]),
        ("yes", "X-TMDA: bare hello", "bobby-filter@example.org", ["X-TMDA: bare hello"]),
        ("yes", "Re: X-TMDA bare hello", "bobby-filter@example.org", ["Re: X-TMDA bare hello"]),
        ("yes", "X-TMDAbare", "bobby-filter@example.org", ["X-TMDAbare"]),
        ("no", "X-TMDA bare hello", "bobby-filter@example.org", ["X-TMDA bare hello"]),
        ("no", f"X-TMDA {SHELL} hello", "bobby-filter@example.org", [f"X-TMDA {SHELL} hello"]),
    ],
)
def test_a_subject_asks_for_an_action_where_the_user_wants_that(
    setting, subject, address, left, daemon, home, tmp_path
):
    """TO-103."""
    home.write("filters/outgoing", "to * ext=filter\n")
    with smtp_sink(tmp_path / "sink") as sink:
        home.configure(to_smtp(sink.port), f"X_TMDA_IN_SUBJECT = {setting}")
        status, words = by_swaks(daemon, "--header", f"Subject: {subject}")
        assert status == 0, words
        stored = sink.message(TO)
    assert stored.sender == address
    assert stored.values("Subject") == left
    assert not (home.path / "mark").exists()


def test_a_subject_with_nothing_to_do_is_refused(attempt, hop):
    said = attempt("X_TMDA_IN_SUBJECT = True", message=b"Subject: x-tmda\r\n\r\nx\r\n")
    assert said.startswith("554 5.6.0 Error in your message: Subject: X-TMDA without an action")
    assert hop.commands == []


# Mail-Followup-To.

LISTS = ('MAIL_FOLLOWUP_TO = ["Talk@Lists.example", "news@lists.example"]',)
BY_FILE = ('MAIL_FOLLOWUP_TO = "~/.tmda/lists"',)


@pytest.mark.parametrize("settings", [LISTS, BY_FILE], ids=["list", "file"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["To: talk@lists.example"], ["talk@lists.example"]),
        (
            ["To: Talk <talk@LISTS.example>, a@example.net", "Cc: bobby@example.org (Bob)"],
            ["talk@LISTS.example, a@example.net, bobby-t@example.org"],
        ),
        (
            ["To: a@example.net", "Cc: b@c.example,\r\n news@lists.example"],
            ["a@example.net, b@c.example, news@lists.example"],
        ),
        (["To: a@example.net"], []),
        (["To: a@example.net", "Bcc: talk@lists.example"], []),
        (["To: talk@lists.example", "Mail-Followup-To: b@c.example"], ["b@c.example"]),
    ],
)
def test_who_answers_a_mailing_list_is_told_where_to(settings, fields, expected, send, home):
    """TO-106."""
    home.write("lists", "news@lists.example\n  TALK@lists.example \n\n")
    given = ("From: bobby@example.org", *fields)
    (stored,) = send(*settings, rules="to * ext=t\n", fields=given)
    assert stored.values("Mail-Followup-To") == expected


def test_the_own_address_in_mail_followup_to_gets_each_recipient_s_tag(send):
    """TO-106: also in a field that the client has made."""
    fields = (
        "From: Bob <bobby@example.org>",
        "Mail-Followup-To: Bob <bobby@example.org>, Bobby@example.org,",
        " talk@lists.example",
    )
    copies = send(
        rules="to a@* ext=a\nto * ext=b\n", to=("a@x.example", "b@x.example"), fields=fields
    )
    assert [copy.value("Mail-Followup-To") for copy in copies] == [
        f"bobby-{tag}@example.org, Bobby@example.org, talk@lists.example" for tag in ("a", "b")
    ]


def test_a_change_of_the_lists_to_follow_counts_for_the_next_message(attempt, home, hop):
    message = b"From: bobby@example.org\r\nTo: talk@lists.example\r\n\r\nx\r\n"
    for text, found in (("", []), ("talk@lists.example", ["talk@lists.example"]), ("x@y.z", [])):
        home.write("lists", text)
        assert attempt(*BY_FILE, message=message).startswith("250")
        assert hop.messages()[-1].values("Mail-Followup-To") == found


# Fingerprints.


def openssl_fingerprint(*values: bytes) -> str:
    """TO-108, as another program computes it."""
    digest = subprocess.run(
        ["openssl", "dgst", "-sha1", "-mac", "hmac", "-macopt", f"hexkey:{KEY}", "-binary"],
        input=b"".join(values),
        capture_output=True,
        check=True,
    ).stdout
    return base64.b64encode(digest).decode().rstrip("=")


BODIES = {
    "text": [b"hello", b"world"],
    "dots": [b".", b"..x", b"a.", b""],
    "8-bit": [b"\xc3\xbc\xff\0" + bytes(range(128, 256))],
    "5 MiB": [b"%07d " % number + b"x\xe4." * 20 for number in range(77_000)],
}


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("name", BODIES)
def test_a_fingerprint_is_what_openssl_makes_of_fields_and_body(name, attempt, hop):
    """TO-108: of the copy as it goes out."""
    head = (
        b"from: Bob <bobby@example.org>\r\nSubject:  two\r\n  lines \r\nX-TMDA-Fingerprint: old\r\n"
    )
    settings = 'FINGERPRINT = ["From", "subject", "X-Missing", "body", "Message-ID"]'
    to = ("a@example.net", "b@example.net")
    message = head + b"\r\n" + wire(BODIES[name])
    assert (
        attempt(settings, rules="to a@* ext=a\nto * ext=b\n", to=to, message=message)[:3] == "250"
    )
    body = b"".join(line + b"\n" for line in BODIES[name])
    for stored, tag in zip(hop.messages(), ("a", "b"), strict=True):
        assert stored.value("X-TMDA-Fingerprint") == openssl_fingerprint(
            f"Bob <bobby-{tag}@example.org>".encode(),
            b"two\n  lines ",
            body,
            stored.value("Message-ID").encode(),
        )


def test_a_fingerprint_of_nothing_is_none_and_none_that_was_submitted_passes(attempt, hop):
    message = b"X-TMDA-Fingerprint: forged\r\n\r\n"
    assert attempt('FINGERPRINT = ["x-none", "body"]', message=message).startswith("250")
    assert hop.message(TO).values("X-TMDA-Fingerprint") == []


# bare=append.

APPEND = 'BARE_APPEND = "~/.tmda/friends"'
FRIENDS = "to-file -optional ~/.tmda/friends ext=friend\nto * bare=append\n"


def test_a_recipient_is_put_on_the_list_once_and_the_list_counts_at_once(attempt, home, hop):
    """TO-109."""
    friends = home.tmda / "friends"
    assert attempt(APPEND, rules=FRIENDS, to=("A.B@Example.NET", OTHER)).startswith("250")
    assert friends.read_text() == f"A.B@Example.NET\n{OTHER}\n"
    assert stat.S_IMODE(friends.stat().st_mode) == 0o600
    assert attempt(APPEND, rules=FRIENDS, to=("a.b@example.net",)).startswith("250")
    assert senders(hop) == [ADDRESS, "bobby-friend@example.org"]
    assert attempt(APPEND, rules="to * bare=Append\n", to=("a.b@EXAMPLE.net", OTHER))[:3] == "250"
    assert friends.read_text() == f"A.B@Example.NET\n{OTHER}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"{TO}\n"),
        ("a@b.example", f"a@b.example\n{TO}\n"),
        ("# x\r\na@b\r\n", f"# x\r\na@b\r\n{TO}\n"),
        (f"  {TO.upper()}  # a friend", f"  {TO.upper()}  # a friend"),
        (f"#{TO}\nsome{TO}\n{TO}.au\n", f"#{TO}\nsome{TO}\n{TO}.au\n{TO}\n"),
        ("\udcff\udce4 \0\n", f"\udcff\udce4 \0\n{TO}\n"),
    ],
)
def test_what_stands_on_the_list_already_stays_as_it_is(before, after, attempt, home):
    """TO-109: a file without a final newline included."""
    friends = home.tmda / "friends"
    friends.write_bytes(before.encode("utf-8", "surrogateescape"))
    for _ in range(2):
        assert attempt(APPEND, rules="to * bare=append\n").startswith("250")
        assert friends.read_bytes() == after.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("to", ["a#b@example.net", "#@example.net", "a*b@example.net"])
def test_a_recipient_with_odd_characters_is_on_the_list_once_at_most(to, attempt, home):
    home.write("friends", "")
    for _ in range(3):
        assert attempt(APPEND, rules="to * bare=append\n", to=(to,)).startswith("250")
    assert (home.tmda / "friends").read_text() in (f"{to}\n", "")


def test_a_recipient_who_is_put_on_a_list_brings_nobody_else_and_no_action(attempt, home, hop):
    """Whoever can make somebody answer chooses the recipient: no line of the list may say more
    than that this one is a friend."""
    home.write("friends", "")
    for to in ('"a *@example.net"@example.net', "*@example.net", "x*@example.net", "*"):
        assert attempt(APPEND, rules="to * bare=append\n", to=(to,)).startswith("250")
    hop.stored.clear()
    rules = "to-file -optional ~/.tmda/friends ext=friend\nto * ext=no\n"
    assert attempt(APPEND, rules=rules, to=(TO,)).startswith("250")
    assert senders(hop) == ["bobby-no@example.org"]


@pytest.mark.parametrize("kind", ["a directory", "no directory", "a full disk"])
def test_a_list_that_cannot_be_written_defers_the_mail(kind, attempt, home, hop, daemon):
    path = {"a directory": "~/.tmda", "no directory": "~/no/list", "a full disk": "/dev/full"}[kind]
    said = attempt(f'BARE_APPEND = "{path}"', rules="to * bare=append\n")
    assert said.startswith("451 4.3.5 Error in your TMDA files: config line 6: BARE_APPEND: ")
    daemon.says("ERROR", f"{home.tmda}/config:6: BARE_APPEND: ", "cannot be written")
    assert hop.commands == []


def test_a_list_that_nobody_names_is_not_asked_for(attempt, home, hop):
    """bare=append without BARE_APPEND is bare."""
    assert attempt(rules="to * bare=append\n").startswith("250")
    assert senders(hop) == [ADDRESS]


@pytest.mark.parametrize("same", [True, False], ids=["one recipient", "twenty recipients"])
def test_twenty_sessions_at_once_tear_no_line_of_list_and_log(same, home, hop, daemon):
    """TO-109, TO-110."""
    home.configure(to_smtp(hop.port), APPEND, 'LOGFILE_OUTGOING = "~/.tmda/log"')
    home.write("filters/outgoing", "to * bare=append\n")
    (home.tmda / "friends").write_text("first@example.net")
    to = [f"{'x' * 40}{0 if same else number}@example.net" for number in range(20)]
    start = threading.Barrier(20)

    def one(recipient: str) -> str:
        with logged_in(daemon.port) as talk:
            talk.envelope(recipient)
            start.wait(LIMIT_SECONDS)
            return talk.data(b"From: bobby@example.org\r\nSubject: s\r\n\r\nx\r\n.\r\n")

    with ThreadPoolExecutor(20) as pool:
        assert {reply[:3] for reply in pool.map(one, to)} == {"250"}
    first, *lines = (home.tmda / "friends").read_text().splitlines()
    assert first == "first@example.net"
    assert sorted(lines) == sorted(set(to))
    entries = (home.tmda / "log").read_text().split("\n\n")
    assert entries.pop() == ""
    assert sorted(line for entry in entries for line in entry.split("\n") if " To: " in line) == (
        sorted(f"  To: {recipient}" for recipient in to)
    )
    assert {len(entry.split("\n")) for entry in entries} == {5}


def test_a_recipient_goes_into_the_user_s_database_once(attempt, home, hop, daemon):
    """TO-109: DB_BARE_APPEND, with all that it may name, in small letters."""
    connection = database(home)
    connection.execute("CREATE TABLE friends (address TEXT PRIMARY KEY, t, u, h, s)")
    settings = (
        *CONNECTION,
        'DB_BARE_APPEND = "INSERT INTO friends VALUES (%(recipient)s, %(fromheader)s,'
        ' %(username)s, %(hostname)s, %(sender)s)"',
    )
    message = b"From: Bob <Bobby@Example.org>\r\n\r\nx\r\n"
    rules = "to * bare=append\n"
    to = ("A'b@Example.NET", OTHER)
    for _ in range(2):
        assert attempt(*settings, rules=rules, to=to, message=message).startswith("250")
    rest = ("bob <bobby@example.org>", "bobby", "example.org", "bobby@example.org")
    rows = connection.execute("SELECT * FROM friends ORDER BY address").fetchall()
    assert rows == [("a'b@example.net", *rest), (OTHER, *rest)]
    # What goes wrong there stops no mail.
    connection.execute("DROP TABLE friends")
    connection.close()
    assert attempt(*settings, rules=rules).startswith("250")
    daemon.says("WARNING", f"{home.tmda}/config: DB_BARE_APPEND: ", "no such table")
    assert attempt(*settings[2:], rules=rules).startswith("250")
    daemon.says("WARNING", "DB_BARE_APPEND: the configuration opens no database")


# LOGFILE_OUTGOING.

LOG = 'LOGFILE_OUTGOING = "~/.tmda/log"'


def test_the_log_of_the_user_says_what_was_done_for_each_recipient(attempt, home, hop):
    """TO-110."""
    message = (
        b"X-Primary-Address: me@example.org\r\nFrom:   Bob\r\n <bobby@example.org>\r\n"
        b"Reply-To: r@example.org\r\nSubject: =?utf-8?q?=C3=A4?= \xc3\xa4\r\n\r\n.\r\n..a\r\n"
    ).replace(b"\r\n\r\n.\r\n", b"\r\n\r\n..\r\n")
    rules = "to a@* tag from ext=a envelope ext=e\nto * bare\n"
    to = ("b@example.net", "a@example.net")
    assert attempt(LOG, rules=rules, to=to, message=message).startswith("250")
    path = home.tmda / "log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second, rest = path.read_text().split("\n\n")
    assert rest == ""
    local = (
        message.replace(b"\r\n", b"\n").replace(b"From:   Bob", b"From: Bob").replace(b"\n.", b"\n")
    )
    size = f"({len(local)})"
    for entry, sender, to, action in (
        (first, "", "b@example.net", "to * tag from bare"),
        (second, "a", "a@example.net", "to a@* tag from ext=a envelope ext=e"),
    ):
        own = f"bobby{'-a' if sender else ''}@example.org"
        date, *lines = entry.split("\n")
        assert re.fullmatch(f"Date: {DATE}", date)
        assert lines == [
            "XPri: me@example.org",
            *(["Sndr: bobby-e@example.org"] if sender else []),
            f"From: Bob <{own}>",
            "Rept: r@example.org",
            f"  To: {to}",
            "Subj: =?utf-8?q?=C3=A4?= \u00e4",
            f"Actn: {action.ljust(72 - len(size))}{size}",
        ]
    before = path.stat()
    assert attempt(LOG, rules=rules).startswith("250")
    assert path.stat().st_ino == before.st_ino
    assert path.read_text().count("\n\n") == 3


@pytest.mark.parametrize(
    "fields",
    [
        b"Subject: hello\r\n\tTo: forged@example.net\r\n Actn: to * bare\r\n",
        b"Subject:\r\n  To: forged@example.net\r\n",
        b"Subject: a\x0b\x0c\x1b[2J\x85  To: forged@example.net\r\n",
        b"Reply-To: a@b.example\r\n   To: forged@example.net\r\nSubject: x\r\n",
        b"X-Primary-Address: a\r\n   To: forged@example.net\r\nSubject: x\r\n",
        b'From: "a\r\n   To: forged@example.net" <bobby@example.org>\r\nSubject: x\r\n',
        b"Subject: x \xe2\x80\xa8  To: forged@example.net\r\n",
    ],
)
def test_no_message_can_forge_a_line_of_the_log(fields, attempt, home):
    """TO-110."""
    assert attempt(LOG, rules="to * bare\n", message=fields + b"\r\nx\r\n").startswith("250")
    text = (home.tmda / "log").read_bytes()
    assert text.endswith(b"\n\n")
    assert text.count(b"\n\n") == 1
    labels = [line[:6] for line in text.rstrip(b"\n").split(b"\n")]
    assert len(set(labels)) == len(labels)
    assert set(labels) <= {
        b"Date: ",
        b"XPri: ",
        b"From: ",
        b"Rept: ",
        b"  To: ",
        b"Subj: ",
        b"Actn: ",
    }
    assert b"  To: x@example.net\n" in text
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", text)


def test_the_log_is_written_when_the_mail_has_been_taken(attempt, home, hop):
    """TO-110."""
    path = home.tmda / "log"
    hop.may_answer.clear()
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(attempt, LOG, rules="to * bare\n")
        assert hop.data_complete.wait(LIMIT_SECONDS)
        assert not path.exists()
        hop.may_answer.set()
        assert reply.result(LIMIT_SECONDS).startswith("250")
    assert path.read_text().count("To: ") == 1


@pytest.mark.parametrize(
    "refuse",
    [{".": b"554 5.7.1 no"}, {"RCPT": b"550 5.1.1 no"}, {"MAIL": b"451 4.3.0 no"}, {".": b""}],
    ids=["the message", "the recipient", "the sender", "by hanging up"],
)
def test_what_is_refused_is_not_in_the_log(refuse, attempt, home, hop):
    """TO-110."""
    hop.refuse.update(refuse)
    assert attempt(LOG, rules="to a@* ext=a\nto * bare\n", to=("a@b.example", TO))[0] in "45"
    assert not (home.tmda / "log").exists()


def test_the_log_has_the_recipients_whom_somebody_answers_for(home, daemon, tmp_path):
    """TO-110: the next hop, or the outbox."""
    program = tmp_path / "sendmail"
    program.write_text('#!/bin/sh\ncat > /dev/null\ncase "$*" in *b@example.net*) exit 75; esac\n')
    program.chmod(0o755)
    home.configure(to_program(program), LOG)
    home.write("filters/outgoing", "to a@* ext=a\nto b@* ext=b\nto c@* ext=c\n")
    to = ("a@example.net", "b@example.net", "c@example.net")
    assert submit(daemon.port, *to).startswith("250 2.0.0 Ok: taken for 1 of 3 recipients")
    assert re.findall("^  To: (.*)$", (home.tmda / "log").read_text(), re.M) == [*to]
    (envelope,) = (home.tmda / "outbox").glob("*.envelope")
    assert re.findall(r"^(\w+): (\d\.\d)", envelope.read_text(), re.M) == [
        ("Taken", "1.1"),
        ("Deferred", "2.1"),
    ]


@pytest.mark.parametrize("path", ["~/.tmda", "~/no/log", "/dev/full"])
def test_a_log_that_cannot_be_written_stops_no_mail(path, attempt, hop, daemon):
    """The mail has gone; to defer it then would send it twice."""
    assert attempt(f'LOGFILE_OUTGOING = "{path}"', rules="to * bare\n").startswith("250")
    daemon.says("WARNING", "LOGFILE_OUTGOING: ", "cannot be written: ")
    assert len(hop.messages()) == 1


# Commands.

WHO = """\
#!/bin/sh
cd ~/.tmda || exit 70
env > env; ls -l /proc/self/fd > fds; cat /proc/self/status > status; umask > umask
pwd -P > pwd; cat > stdin; cat /proc/$PPID/comm > parent
echo bobby-made@example.org
"""


@pytest.fixture
def told(start, home, hop) -> Home:
    """A home where a command has written down what it was given, by a daemon that has much."""
    home.write("who", WHO, 0o700)
    home.write("filters/outgoing", "to * shell=$HOME/.tmda/who\n")
    variables = {"SECRET": "x", "TMDA_RECIPIENT": "old", "LD_PRELOAD": "", "ENV": "/dev/null"}
    daemon = start(home, "--log-file", str(home.path / "log"), variables=variables)
    with logged_in(daemon.port) as other:
        other.envelope(OTHER)
        assert submit(daemon.port, "a.b'$HOME@x.example").startswith("250")
    assert hop.message("a.b'$HOME@x.example").sender == "bobby-made@example.org"
    return home


def test_a_command_gets_just_the_environment_that_it_needs(told):
    """TO-87."""
    environment = dict(line.split("=", 1) for line in (told.tmda / "env").read_text().splitlines())
    assert environment.pop("PATH").startswith("/usr/local/sbin:")
    assert {k: v for k, v in environment.items() if k not in OF_THE_SHELL} == {
        "HOME": str(told.path),
        "LOGIN": LOGIN,
        "LOGNAME": LOGIN,
        "USER": LOGIN,
        "TCPLOCALIP": HOST,
        "TMDA_RECIPIENT": "a.b'$HOME@x.example",
        "TMDA_VRECIPIENT": "a.b'$HOME=x.example",
    }


def test_a_command_inherits_nothing_of_the_daemon(told):
    """Neither descriptors nor signals that are blocked or ignored."""
    targets = [line.split(" -> ") for line in (told.tmda / "fds").read_text().splitlines()[1:]]
    numbers = [left.split()[-1] for left, _ in targets]
    # The last one is that by which the list was read.
    assert numbers == ["0", "1", "2", "3"]
    assert targets[0][1] == "/dev/null"
    assert targets[1][1].endswith(".tmda/fds")
    assert targets[2][1].startswith("pipe:")
    lines = dict(line.split(":", 1) for line in (told.tmda / "status").read_text().splitlines())
    for name in ("SigBlk", "SigIgn", "SigPnd"):
        assert not int(lines[name], 16) & ~SIGNALS_OF_THE_C_LIBRARY, name
    assert (told.tmda / "umask").read_text().strip() == "0077"
    assert (told.tmda / "stdin").read_bytes() == b""


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("echo bobby-a@example.org", "bobby-a@example.org"),
        ("printf bobby-a@example.org", "bobby-a@example.org"),
        ("echo bobby-a@example.org >&2", "bobby-a@example.org"),
        ("echo bobby-$TMDA_VRECIPIENT@example.org", "bobby-x=example.net@example.org"),
        ("sleep 60 & echo bobby-a@example.org", "bobby-a@example.org"),
        ("cat; echo bobby-a@example.org", "bobby-a@example.org"),
        ("printf '<>'", ""),
    ],
)
def test_what_a_command_prints_is_the_address(command, address, attempt, hop):
    """TO-100."""
    begun = time.monotonic()
    assert attempt(rules=f'to * tag from "shell={command}"\n').startswith("250")
    assert hop.message(TO).sender == address
    assert time.monotonic() - begun < 5


def test_commands_may_make_fields_and_stand_in_lists_and_settings(attempt, home, hop):
    """TO-100: the lines that a command prints are one value."""
    home.write("list", "a@example.net shell=~/.tmda/say\nb@example.net default\n")
    home.write("say", "#!/bin/sh\necho $TMDA_RECIPIENT.example\n", 0o700)
    rules = (
        "to-file ~/.tmda/list bare\n"
        'to c@* tag from ext=c envelope "shell=echo e@shell.example"'
        ' x-lines "shell=printf \'a\\nTo: b\\r\\nc\\td\\001\\377\'" x-none "shell=true"\n'
    )
    to = ("a@example.net", "b@example.net", "c@example.net")
    assert attempt('ACTION_OUTGOING = "shell=~/.tmda/say"', rules=rules, to=to).startswith("250")
    first, second, third = hop.messages()
    assert first.sender == "a@example.net.example"
    assert second.sender == "b@example.net.example"
    assert third.sender == "e@shell.example"
    assert third.value("From").endswith("<bobby-c@example.org>")
    assert third.value("X-Lines").encode("utf-8", "surrogateescape") == b"a To: b  c d \xff"
    assert third.values("X-None") == [""]
    assert len(third.values("To")) == 0


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("exit 3", "ended with 3"),
        ("echo no such list; echo why >&2; exit 111", "ended with 111: no such list"),
        ("kill -9 $$", "ended by signal 9"),
        ("no-such-program", "ended with 127: "),
        ("head -c 70000 /dev/zero", "prints more than 65536 octets"),
        ("true", "is no address that mail can be sent from"),
        ("echo two words", "is no address that mail can be sent from"),
        ("echo 'a@b.example> SIZE=1'", "is no address that mail can be sent from"),
        ("printf 'a@b.example\\nRCPT TO:<c@d.example>'", "control characters"),
        ("printf 'a\\000b@c.example'", "control characters"),
        ("yes", "prints more than 65536 octets"),
        ("yes >&2 & sleep 60", "prints more than 65536 octets"),
        ("sleep 60", "did not end within 1 s"),
        ("trap '' TERM INT HUP; sleep 60; sleep 60", "did not end within 1 s"),
    ],
)
def test_a_command_that_fails_defers_the_mail_with_its_place(command, reason, quick, home, hop):
    """TO-100."""
    home.write(
        "filters/outgoing", f'to a@* bare\nto * tag x-y "shell={command}"'.replace("x-y", "from")
    )
    begun = time.monotonic()
    said = submit(quick.port, "a@example.net", TO)
    assert time.monotonic() - begun < 4
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 2: ")
    quick.says("ERROR", f"{home.tmda}/filters/outgoing:2: ", reason)
    assert len(said) < 512
    assert hop.commands == []


@pytest.fixture
def quick(start, home) -> Daemon:
    """A daemon that waits for a command no longer than a second."""
    return start(home, "--script-timeout", "1")


@pytest.mark.parametrize("command", ["exec sleep 77", "sleep 77; true", "sleep 77 | cat"])
def test_nothing_is_left_of_a_command_whose_time_is_up(command, quick, home):
    home.write("filters/outgoing", f'to * tag from "shell=echo $$ > pid; {command}"\n')
    assert submit(quick.port, TO).startswith("451 4.3.5 ")
    group = int((home.path / "pid").read_text())
    wait_until(lambda: not of_group(group), "the end of all processes of a command")


def of_group(group: int) -> list[str]:
    """What runs in a process group, but for the dead that wait for their parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, words = path.read_text().rsplit(") ", 1)
        except OSError:
            continue
        state, _, its_group, *_ = words.split()
        if int(its_group) == group and state != "Z":
            found.append(name)
    return found


def test_a_command_that_leaves_its_group_holds_nobody_up(quick, home):
    home.write(
        "leave",
        "#!/usr/bin/env python3\nimport os, time\nos.setpgid(0, os.getpgid(os.getppid()))\n"
        "time.sleep(20)\n",
        0o700,
    )
    home.write("filters/outgoing", 'to * tag from "shell=exec ~/.tmda/leave"\n')
    begun = time.monotonic()
    assert submit(quick.port, TO).startswith("451 4.3.5 ")
    assert time.monotonic() - begun < 5


def test_a_command_that_hangs_delays_nobody_else(attempt, home, hop, daemon):
    rules = "to a@* shell=.tmda/hold\nto * ext=other\n"
    release = held(attempt, home, rules=rules, to=("a@example.net",))
    begun = time.monotonic()
    for number in range(5):
        assert submit(daemon.port, f"{number}@example.net").startswith("250")
    assert time.monotonic() - begun < 5
    # Files can be read again meanwhile, and commands run.
    home.write("filters/outgoing", 'to * tag from "shell=echo c@d.example"\n')
    assert submit(daemon.port, TO).startswith("250")
    assert senders(hop) == ["bobby-other@example.org"] * 5 + ["c@d.example"]
    assert release().startswith("250")
    assert senders(hop) == ["bobby-held@example.org"]


def test_python_is_refused_with_a_hint(attempt, hop, daemon):
    """TO-100."""
    said = attempt(rules="# x\nto * python=1+1\n")
    assert said.startswith(
        "451 4.3.5 Error in your TMDA files: filters/outgoing line 2: 'python' is"
    )
    assert "use shell=COMMAND" in said
    assert hop.commands == []


# Much at once, and much in one.


def memory_mib(pid: int, name: str) -> float:
    """VmRSS or VmHWM of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def test_50_mib_with_fingerprint_and_log_cost_no_memory(start, home, hop):
    """TO-108, TO-110."""
    daemon = start(home, "--size", "100000000")
    home.configure(to_smtp(hop.port), 'FINGERPRINT = ["from", "body"]', LOG)
    home.write("filters/outgoing", "to a@* ext=a\nto * ext=b\n")
    head = b"From: bobby@example.org\r\n\r\n"
    line = b".." + bytes(range(32, 127)) * 4 + b"\xe4\r\n"
    body = line * (50 * 2**20 // len(line) + 1)
    to = ("a@example.net", "b@example.net")
    assert submit(daemon.port, *to, message=head + b"warm up\r\n").startswith("250")
    hop.stored.clear()
    before = memory_mib(daemon.pid, "VmRSS")
    assert submit(daemon.port, *to, message=head + body).startswith("250")
    assert memory_mib(daemon.pid, "VmRSS") - before < 20
    assert memory_mib(daemon.pid, "VmHWM") - before < 20
    local = body.replace(b"\r\n..", b"\r\n.")[1:].replace(b"\r\n", b"\n")
    for stored, tag in zip(hop.messages(), "ab", strict=True):
        value = f"Bobby Brown <bobby-{tag}@example.org>".encode()
        assert stored.value("X-TMDA-Fingerprint") == openssl_fingerprint(value, local)
    size = len(local) + len("From: bobby@example.org\n\n")
    assert (home.tmda / "log").read_text().count(f"({size})\n") == 2


ROUNDS = 40
TWENTY = tuple(f"{number}@example.net" for number in range(20))


@pytest.mark.parametrize("what", ["filter", "include", "file", "file -autocdb", "sql -wildcards"])
def test_each_message_is_judged_by_one_state_of_files_that_change_all_the_time(
    what, home, hop, daemon
):
    """Two sessions send to twenty recipients each, who must all get the same tag."""
    home.configure(to_smtp(hop.port), *CONNECTION)
    number, done = 0, threading.Event()

    def change() -> None:
        nonlocal number
        number += 1
        if what in SOURCES:
            SOURCES[what][1](home, dict.fromkeys(TWENTY, f"ext={number}"))
        else:
            rules = "".join(f"to {to} ext={number}\n" for to in TWENTY)
            home.write("filters/outgoing" if what == "filter" else "rules", rules)

    if what in SOURCES:
        home.write("filters/outgoing", f"to{SOURCES[what][0]} bare\nto * ext=no\n")
    elif what == "include":
        home.write("filters/outgoing", "include ~/.tmda/rules\n")
    change()

    def keep_changing() -> None:
        while not done.is_set():
            change()

    def session() -> list[str]:
        replies = []
        with logged_in(daemon.port) as talk:
            for _ in range(ROUNDS):
                talk.envelope(*TWENTY)
                replies.append(talk.data(b"Subject: x\r\n\r\nx\r\n.\r\n"))
        return replies

    with ThreadPoolExecutor(3) as pool:
        changing = pool.submit(keep_changing)
        try:
            sessions = [pool.submit(session) for _ in range(2)]
            replies = [reply for job in sessions for reply in job.result(LIMIT_SECONDS)]
        finally:
            done.set()
        changing.result(LIMIT_SECONDS)
    assert {reply[:3] for reply in replies} == {"250"}
    found = hop.messages()
    assert [stored.recipients for stored in found] == [TWENTY] * (2 * ROUNDS)
    states = {stored.sender for stored in found}
    assert all(re.fullmatch(r"bobby-[0-9]+@example\.org", sender) for sender in states)
    assert len(states) > 2


# Databases of a configuration.

HANG = (
    *CONNECTION,
    "import time",
    "def hang():",
    '    open(os.path.expanduser("~/.tmda/held"), "w").close()',
    '    while not os.path.exists(os.path.expanduser("~/.tmda/go")): time.sleep(0.01)',
    'DB_CONNECTION.create_function("hang", 0, hang)',
)


def test_a_statement_that_takes_long_delays_no_message_that_needs_none(attempt, home, hop, daemon):
    database(home).close()
    rules = 'to other@* ext=other\nto-sql -wildcards "SELECT hang()" bare\nto * ext=rest\n'
    release = held(attempt, home, *HANG, rules=rules, to=(TO,))
    begun = time.monotonic()
    for _ in range(5):
        assert submit(daemon.port, OTHER).startswith("250")
    assert time.monotonic() - begun < 5
    assert release().startswith("250")
    assert senders(hop) == ["bobby-other@example.org"] * 5 + ["bobby-rest@example.org"]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("SELECT address FROM nowhere", "no such table: nowhere"),
        ("SELECT 'x@example.net', 'confuse'", "row 1 of the database: there is no action"),
        ("SELECT %(nobody)s", "the statement names %(nobody)s; there are %(username)s"),
        ("SELECT 1; SELECT 2", "the database says "),
        ("", "the database says "),
    ],
)
def test_a_statement_that_fails_defers_the_mail_and_the_next_one_works(
    statement, reason, attempt, home, hop, daemon
):
    put_rows(home, {TO: "ext=found"})
    said = attempt(*CONNECTION, rules=f'# x\nto-sql -wildcards "{statement}" bare\n')
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 2: ")
    daemon.says("ERROR", f"{home.tmda}/filters/outgoing:2: ", reason)
    question, _ = SOURCES["sql -wildcards"]
    assert attempt(*CONNECTION, rules=f"to{question} bare\n").startswith("250")
    assert senders(hop) == ["bobby-found@example.org"]


def test_no_address_can_change_a_statement(attempt, home, hop):
    """Recipients come from whoever is answered."""
    put_rows(home, {TO: "ext=found"})
    question, _ = SOURCES["sql"]
    rules = f"to{question} bare\nto * ext=no\n"
    odd = ("a'or'1'='1@example.com", "%(key_0)s@example.com".replace("(", "").replace(")", ""))
    odd += ('"\') OR (1=1"@example.com', "x%s@example.com", "?1@example.com", "a%%s@example.com")
    assert attempt(*CONNECTION, rules=rules, to=(*odd, TO)).startswith("250")
    assert senders(hop) == ["bobby-no@example.org", "bobby-found@example.org"]
    assert database(home).execute("SELECT COUNT(*) FROM people").fetchone() == (1,)


CONNECTION_THAT_DIES = """\
import os
class Cursor:
    description, rowcount = [("address",)], 1
    def __init__(self, of): self.of = of
    def execute(self, *arguments):
        if self.of.opened < os.stat(os.path.expanduser("~/.tmda/restarted")).st_mtime_ns:
            raise OSError("the server has gone away")
    def fetchmany(self, number): return [("*@example.net", "ext=%d" % self.of.number)]
    def close(self): pass
class Connection:
    number = 0
    def __init__(self):
        import time
        path = os.path.expanduser("~/.tmda/opened")
        with open(path, "a") as file: file.write("x")
        self.number, self.opened = os.stat(path).st_size, time.time_ns()
    def cursor(self): return Cursor(self)
    def rollback(self): pass
    commit = close = rollback
DB_CONNECTION = Connection()
"""


def test_a_connection_that_has_died_is_opened_again_without_an_error(start, attempt, home, hop):
    port = start(home).port
    restarted = home.write("restarted", "")
    os.utime(restarted, (1, 1))
    rules = 'to-sql -wildcards "SELECT" bare\n'
    for _ in range(2):
        assert attempt(CONNECTION_THAT_DIES, rules=rules, port=port).startswith("250")
    os.utime(restarted, ns=(time.time_ns(), time.time_ns()))
    for _ in range(2):
        assert attempt(CONNECTION_THAT_DIES, rules=rules, port=port).startswith("250")
    assert senders(hop) == [f"bobby-{number}@example.org" for number in (1, 1, 2, 2)]
    # A server that is down is asked for twice by each message, not for ever.
    os.utime(restarted, (2**33, 2**33))
    before = len((home.tmda / "opened").read_text())
    assert attempt(CONNECTION_THAT_DIES, rules=rules, port=port).startswith("451 4.3.5 ")
    assert len((home.tmda / "opened").read_text()) - before <= 2
