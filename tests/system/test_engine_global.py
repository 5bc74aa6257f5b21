"""Global mode: lists, commands, logs and databases are used with the rights of their user."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import submit
from globalchild import with_limits
from hops import RawHop
from oracle import dated
from running import (
    HOST,
    LIMIT_SECONDS,
    SIGNALS_OF_THE_C_LIBRARY,
    Daemon,
    to_smtp,
    usual_umask,
    wait_until,
)
from village import Village, Villager, descriptors, status, worker_of

pytestmark = pytest.mark.root

TO, OTHER = "x@example.net", "other@example.com"
OF_THE_SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}
CONNECTION = (
    "import os, sqlite3, time",
    'DB_CONNECTION = sqlite3.connect(os.path.expanduser("~/.tmda/sqlite"))',
)


@pytest.fixture
def daemon(village: Village) -> Iterator[Daemon]:
    with village.daemon() as running:
        yield running


def send(daemon: Daemon, person: Villager, *to: str, message: bytes | None = None) -> str:
    to = to or (TO,)
    return submit(daemon.port, *to, message=message, login=person.name, password=person.password)


def senders(hop: RawHop) -> list[str]:
    """The local parts of the envelope senders of what has arrived, which is forgotten."""
    found = [stored.sender.partition("@")[0] for stored in hop.messages()]
    hop.stored.clear()
    return found


def test_what_is_written_for_a_user_is_the_user_s_alone(village, village_hop, daemon):
    """TO-96, TO-109, TO-110: whoever is the owner of the daemon."""
    lines = ('BARE_APPEND = "~/.tmda/friends"', 'LOGFILE_OUTGOING = "~/logs.outgoing"')
    for person in village.people[:2]:
        person.write("list", f"{OTHER} dated=1h\n")
        person.write("filters/outgoing", "to-file -autocdb ~/.tmda/list bare\nto * bare=append\n")
        person.configure(to_smtp(village_hop.port), *lines)
        assert send(daemon, person, TO, OTHER).startswith("250")
        for path in (
            person.home.tmda / "list.cdb",
            person.home.tmda / "friends",
            person.home.path / "logs.outgoing",
        ):
            made = path.stat()
            assert (made.st_uid, made.st_gid) == (person.uid, person.gid), path
            assert stat.S_IMODE(made.st_mode) == 0o600, path
        assert (person.home.tmda / "friends").read_text() == f"{TO}\n"
        text = (person.home.path / "logs.outgoing").read_text()
        assert re.findall("^  To: (.*)$", text, re.M) == [TO, OTHER]
        assert not list(person.home.path.rglob("*.new"))
        (person.home.path / "logs.outgoing").unlink()
    for stored in village_hop.for_recipient(OTHER):
        dated(stored, 3600)
    assert len(village_hop.messages()) == 4


def test_a_database_that_cannot_be_made_is_done_without(village, village_hop, daemon):
    """TO-96: -autocdb in a directory where the user may not write."""
    bobby = village.people[0]
    bobby.write("lists/auto", f"{TO} ext=listed\n")
    directory = bobby.home.tmda / "lists"
    directory.chmod(0o500)
    bobby.write("filters/outgoing", "to-file -autocdb ~/.tmda/lists/auto bare\nto * ext=no\n")
    try:
        assert send(daemon, bobby, TO, OTHER).startswith("250")
        assert senders(village_hop) == ["bobby-listed", "bobby-no"]
        assert os.listdir(directory) == ["auto"]
    finally:
        directory.chmod(0o700)


@pytest.mark.parametrize("name", ["BARE_APPEND", "LOGFILE_OUTGOING"])
def test_files_that_only_root_or_others_may_write_stay_as_they_are(
    name, village, village_hop, daemon
):
    """TO-109, TO-110: also by a link."""
    bobby, chloe, _ = village.people
    secret = chloe.write("friends", "a@b.example\n", 0o644)
    chloe.home.path.chmod(0o755)
    roots = village.directory / "roots"
    with usual_umask():
        roots.write_text("root's\n")
    bobby.write("filters/outgoing", "to * bare=append\n")
    try:
        for path in (roots, secret, village.directory / "new", secret.with_name("new")):
            link = bobby.home.tmda / "link"
            link.unlink(missing_ok=True)
            link.symlink_to(path)
            for spelled in (str(path), "~/.tmda/link"):
                bobby.configure(to_smtp(village_hop.port), f'{name} = "{spelled}"')
                reply = send(daemon, bobby)
                assert reply[:3] == ("451" if name == "BARE_APPEND" else "250")
        daemon.says(f"{name}: ", "cannot be written: Permission denied")
    finally:
        chloe.home.path.chmod(0o700)
    assert roots.read_text() == "root's\n"
    assert secret.read_text() == "a@b.example\n"
    assert not (village.directory / "new").exists()
    assert not secret.with_name("new").exists()
    roots.unlink()


# Commands.

WHO = """\
#!/bin/sh
cd ~/.tmda || exit 70
{ id -u; id -g; id -G; umask; } > ids
env > env; ls -l /proc/self/fd > fds; cat /proc/self/status > status
echo made@example.org
"""


def test_a_command_runs_as_its_user_with_nothing_of_the_daemon(village, village_hop):
    """TO-87: no capability, no channel, no variable."""
    variables = {"SECRET": "x", "TMDA_RECIPIENT": "old", "TZ": "Europe/Vienna"}
    with village.daemon(variables=variables) as daemon:
        for person in village.people[:2]:
            person.write("who", WHO, 0o700)
            person.write("filters/outgoing", "to * shell=~/.tmda/who\n")
            # There are channels, and connections to the next hop, of several sessions.
            with ThreadPoolExecutor(3) as pool:
                replies = list(pool.map(lambda _, p=person: send(daemon, p), range(3)))
            assert {reply[:3] for reply in replies} == {"250"}
            uid, gid, groups, mask = (person.home.tmda / "ids").read_text().splitlines()
            assert (int(uid), int(gid), mask) == (person.uid, person.gid, "0077")
            assert set(map(int, groups.split())) == set(os.getgrouplist(person.name, person.gid))
            lines = (person.home.tmda / "status").read_text().splitlines()
            values = dict(line.split(":", 1) for line in lines)
            for name in ("Uid", "Gid"):
                assert len(set(values[name].split())) == 1
            for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "SigBlk", "SigIgn", "SigPnd"):
                assert not int(values[name], 16) & ~SIGNALS_OF_THE_C_LIBRARY, name
            text = (person.home.tmda / "env").read_text()
            environment = dict(line.split("=", 1) for line in text.splitlines())
            assert environment.pop("PATH").startswith("/usr/local/sbin:")
            assert {k: v for k, v in environment.items() if k not in OF_THE_SHELL} == {
                "HOME": str(person.home.path),
                "LOGIN": person.name,
                "LOGNAME": person.name,
                "USER": person.name,
                "TCPLOCALIP": HOST,
                "TMDA_RECIPIENT": TO,
                "TMDA_VRECIPIENT": TO.replace("@", "="),
            }
            links = (person.home.tmda / "fds").read_text().splitlines()[1:]
            targets = [line.split(" -> ")[1] for line in links]
            # The last one is that by which the list was read.
            assert len(targets) == 4
            assert targets[0] == "/dev/null"
            assert not any(target.startswith(("socket:", "/memfd")) for target in targets)
            worker = worker_of(daemon, person)
            assert any(x.startswith("socket:") for x in descriptors(worker).values())
    assert {stored.sender for stored in village_hop.messages()} == {"made@example.org"}


def test_a_command_is_ended_in_time_with_all_that_it_has_started(village, village_hop):
    bobby, chloe, _ = village.people
    bobby.write("filters/outgoing", 'to * tag from "shell=echo $$ > pid; sleep 77 & sleep 77"\n')
    with village.daemon("--script-timeout", "1") as daemon:
        begun = time.monotonic()
        assert send(daemon, bobby).startswith(
            "451 4.3.5 Error in your TMDA files: filters/outgoing line 1: "
        )
        assert 1 <= time.monotonic() - begun < 5
        daemon.says("ERROR", "did not end within 1 s", "s=")
        group = (bobby.home.path / "pid").read_text().strip()

        def left() -> list[str]:
            stats = Path("/proc").glob("[0-9]*/stat")
            return [str(path) for path in stats if group_of(path) == group]

        wait_until(lambda: not left(), "the end of a command and its children")
        assert send(daemon, chloe).startswith("250")


def group_of(path: Path) -> str:
    """The process group in /proc/PID/stat; "" for a process that has ended."""
    try:
        words = path.read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return ""
    return "" if words[0] == "Z" else words[2]


# What one user's rules wait for costs the others nothing.

HANGING = {
    "a command": (("",), 'to * tag from "shell=sleep 60"\n'),
    "many commands": (("",), 'to-file ~/.tmda/list tag x-a "shell=sleep 60" x-b "shell=yes"\n'),
    "a statement": (
        (*CONNECTION, 'DB_CONNECTION.create_function("hang", 0, lambda: time.sleep(60))'),
        'to-sql -wildcards "SELECT hang()" bare\n',
    ),
    "a statement without end": (
        CONNECTION,
        'to-sql -wildcards "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c)'
        ' SELECT max(x) FROM c" bare\n',
    ),
    "a connection": (
        ("import time", "class DB_CONNECTION:\n    cursor = lambda: time.sleep(60)"),
        'to-sql -wildcards "SELECT 1" bare\n',
    ),
}


@pytest.mark.parametrize("name", HANGING)
def test_a_user_s_rules_that_hang_stop_nobody_else(name, village, village_hop):
    bobby, chloe, _ = village.people
    lines, rules = HANGING[name]
    bobby.configure(to_smtp(village_hop.port), *lines)
    bobby.write("list", "*\n")
    bobby.write("filters/outgoing", rules)
    with village.daemon() as daemon, ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(send, daemon, bobby) for _ in range(3)]
        wait_until(lambda: worker_of(daemon, bobby), "the worker")
        for _ in range(5):
            begun = time.monotonic()
            assert send(daemon, chloe).startswith("250")
            assert time.monotonic() - begun < 2
        assert not any(reply.done() for reply in replies)
        os.kill(worker_of(daemon, bobby) or 0, 9)
        assert {reply.result(LIMIT_SECONDS)[:3] for reply in replies} == {"451"}
    assert len(village_hop.messages()) == 5


def test_a_pipe_in_the_place_of_any_file_holds_nobody_up(village, village_hop, daemon):
    """Its user learns of it; the others notice nothing."""
    bobby, chloe, _ = village.people
    rules = "include -optional .tmda/more\nto-file .tmda/list bare\n"
    lines = (to_smtp(village_hop.port), 'MAIL_FOLLOWUP_TO = "~/.tmda/lists"')
    bobby.configure(*lines)
    bobby.write("filters/outgoing", rules)
    for name in ("list", "more", "lists"):
        bobby.write(name, "")
    for name in ("more", "list", "lists", "filters/outgoing", "crypt_key", "config"):
        path = bobby.home.tmda / name
        path.rename(path.with_name("kept"))
        os.mkfifo(path, 0o600)
        bobby.own()
        begun = time.monotonic()
        assert send(daemon, bobby).startswith("451 4.3.5 Error in your TMDA files: "), name
        assert send(daemon, chloe).startswith("250")
        assert time.monotonic() - begun < 5
        path.with_name("kept").replace(path)
        assert send(daemon, bobby).startswith("250"), name


# What is one user's is not another's.


@pytest.mark.parametrize("closed", ["the file", "the home"])
@pytest.mark.parametrize(
    "rule",
    [
        "to-file {} bare",
        "to-file -optional {} bare",
        "to-file -autocdb {} bare",
        "to-cdb {} bare",
        "include {}",
        "include -optional {}",
        "to-ezmlm {}.d bare",
        "to-mailman -attr=members {}.d bare",
    ],
)
@pytest.mark.parametrize("way", ["by name", "by ~name", "by a link"])
def test_lists_and_filters_of_another_user_are_out_of_reach(
    way, rule, closed, village, village_hop, reading
):
    """TO-96, TO-99: nothing of them is quoted either."""
    bobby, chloe, _ = village.people
    theirs = chloe.write("list", f"{TO} ext=stolen\n")
    for name in ("subscribers/4", "config.pck"):
        chloe.write(f"list.d/{name}", f"T{TO}\0")
    for path in (chloe.home.tmda / "list.d").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    (bobby.home.tmda / "link").symlink_to(theirs)
    (bobby.home.tmda / "link.d").symlink_to(f"{theirs}.d")
    named = {
        "by name": str(theirs),
        "by ~name": f"~{chloe.name}/.tmda/list",
        "by a link": "~/.tmda/link",
    }[way]
    bobby.write("filters/outgoing", f"{rule.format(named)}\nto * ext=no\n")
    if closed == "the file":
        chloe.home.path.chmod(0o755)
    try:
        said = send(reading, bobby)
        assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 1: ")
        assert "stolen" not in said
        reading.says("ERROR", "Permission denied", "s=")
    finally:
        chloe.home.path.chmod(0o700)
    assert village_hop.messages() == []
    assert not list(chloe.home.tmda.glob("*.cdb"))


@pytest.fixture(scope="module")
def reading_once(village_once: Village, village_hop_once: RawHop) -> Iterator[Daemon]:
    village_once.reset(village_hop_once.port)
    with village_once.daemon() as running:
        yield running


@pytest.fixture
def reading(reading_once: Daemon, village: Village) -> Daemon:
    """One daemon for all these."""
    reading_once.forget()
    return reading_once


# A database of a user's configuration.


def database(person: Villager, *statements: str) -> None:
    connection = sqlite3.connect(person.home.tmda / "sqlite")
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    person.own()


SQL = (
    'to-sql -wildcards "SELECT pattern, action FROM rules" bare\n'
    'to-sql -addr_column=address "SELECT * FROM people WHERE %(criteria)s" ext=criteria\n'
    "to * bare=append\n"
)
INSERT = 'DB_BARE_APPEND = "INSERT INTO people VALUES (%(recipient)s)"'


def test_several_messages_at_once_use_a_database_also_after_the_worker_has_left(
    village, village_hop
):
    """TO-96, TO-109: sqlite3 lets no other thread use a connection than the one that made it."""
    bobby = village.people[0]
    database(
        bobby,
        "CREATE TABLE rules (pattern TEXT, action TEXT)",
        "CREATE TABLE people (address TEXT PRIMARY KEY)",
        "INSERT INTO rules VALUES ('*@wild.example', 'ext=wild')",
    )
    bobby.configure(to_smtp(village_hop.port), *CONNECTION, INSERT)
    bobby.write("filters/outgoing", SQL)

    def one(number: int) -> str:
        return send(daemon, bobby, f"{number % 5}@example.net", f"{number}@wild.example")

    short = with_limits(village, mode={"worker_idle": 1.0})
    with short.daemon() as daemon:
        for round_ in range(2):
            with ThreadPoolExecutor(10) as pool:
                assert {reply[:3] for reply in pool.map(one, range(20))} == {"250"}
            found = senders(village_hop)
            assert len(found) == 40
            assert found.count("bobby-wild") == 20
            if round_:
                assert found.count("bobby-criteria") == 20
            first = worker_of(daemon, bobby)
            wait_until(lambda: worker_of(daemon, bobby) is None, "the worker to leave")
            assert first
    connection = sqlite3.connect(bobby.home.tmda / "sqlite")
    rows = connection.execute("SELECT address FROM people ORDER BY address").fetchall()
    connection.close()
    assert rows == [(f"{number}@example.net",) for number in range(5)]
    made = (bobby.home.tmda / "sqlite").stat()
    assert made.st_uid == bobby.uid


def test_a_database_that_does_not_answer_defers_the_mail_and_is_opened_again(village, village_hop):
    bobby, chloe, _ = village.people
    bobby.configure(
        to_smtp(village_hop.port),
        *CONNECTION,
        "def hang():\n"
        '    while os.path.exists(os.path.expanduser("~/.tmda/stuck")): time.sleep(0.05)',
        'DB_CONNECTION.create_function("hang", 0, hang)',
    )
    bobby.write("filters/outgoing", "to * bare\n")
    short = with_limits(village, {"tmda.database._SECONDS": 0.5})
    with short.daemon() as daemon:
        assert send(daemon, bobby).startswith("250")
        bobby.write("stuck", "")
        bobby.write("filters/outgoing", 'to-sql -wildcards "SELECT hang()" bare\nto * ext=rest\n')
        worker = worker_of(daemon, bobby)
        before = int(status(worker)["Threads"])
        for _ in range(8):
            begun = time.monotonic()
            said = send(daemon, bobby)
            assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 1: ")
            assert time.monotonic() - begun < 4
        daemon.says("ERROR", "the database did not answer within 0.5 s", "s=")
        assert send(daemon, chloe).startswith("250")
        assert worker_of(daemon, bobby) == worker
        # One that never answers must not take thread after thread.
        assert int(status(worker)["Threads"]) - before < 8
        (bobby.home.tmda / "stuck").unlink()
        wait_until(lambda: send(daemon, bobby).startswith("250"), "the database")
    assert senders(village_hop)[-1] == "bobby-rest"


@pytest.mark.parametrize("octets", [b"\xff\xff\xff\xff", b"\xff\xff\xff\x3f"])
def test_a_length_in_a_database_that_cannot_be_costs_a_worker_no_memory(
    octets, village, village_hop, daemon
):
    """It is an error with its place, not a fault of the program."""
    bobby = village.people[0]
    bobby.write("list", f"{TO} bare\n")
    bobby.write("filters/outgoing", "to-file -autocdb ~/.tmda/list bare\n")
    assert send(daemon, bobby).startswith("250")
    made = bobby.home.tmda / "list.cdb"
    whole = bytearray(made.read_bytes())
    whole[2052:2056] = octets
    made.write_bytes(whole)
    bobby.write("filters/outgoing", "to-cdb ~/.tmda/list.cdb bare\n")
    said = send(daemon, bobby)
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 1: list.cdb")


@pytest.mark.parametrize("rule", ["to-file {} bare", "include {}", "to-cdb {} bare"])
def test_a_list_without_end_is_an_error_with_its_place(rule, village, village_hop, daemon):
    """A worker has only so much memory."""
    bobby, chloe, _ = village.people
    bobby.write("huge", "")
    os.truncate(bobby.home.tmda / "huge", 4 << 30)
    for path in ("~/.tmda/huge", "/dev/zero"):
        bobby.write("filters/outgoing", rule.format(path) + "\nto * bare\n")
        said = send(daemon, bobby)
        assert said.startswith(("250", "451 4.3.5 Error in your TMDA files: "))
        assert send(daemon, chloe).startswith("250")
    assert "Traceback" not in daemon.text()
