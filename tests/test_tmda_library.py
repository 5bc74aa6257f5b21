"""Lists and databases of a user: what each source finds, and when it is read again."""

from __future__ import annotations

import contextlib
import dbm.dumb
import functools
import importlib
import os
import resource
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forking import in_child
from test_tmda_mailman import MARSHALS, PICKLES

from tofmipd.tmda import cdb
from tofmipd.tmda.database import Database, Keeper
from tofmipd.tmda.errors import TagError
from tofmipd.tmda.files import Files
from tofmipd.tmda.library import Library
from tofmipd.tmda.sources import Question

BOB = b"bob@x.example"
WAIT_SECONDS = 20
ROOT = Path(__file__).parents[1]


class House:
    """The home of a user with lists, and a library of them."""

    def __init__(self, path, database=None, names=None):
        self.path = path
        self.library = Library(Files(str(path)), database, names)
        self.confined = Library(Files(str(path), confined=True), database)

    def write(self, name, octets):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(octets)
        return path

    def ask(self, kind, name, key=BOB, *, reading=None, **options):
        """The action that is found, "" for one without, None for no match."""
        match = name if kind == "sql" else f"{self.path}/{name}"
        given = {option: "" if value is True else value for option, value in options.items()}
        _, at, domain = key.rpartition(b"@")
        keys = (key.lower(), domain.lower()) if at else (key.lower(),)
        reading = reading or self.library.reading()
        found = reading.look_up(Question(kind, match, given), keys, key)
        return None if found is None else found.action

    def error(self, *arguments, **options):
        with pytest.raises(TagError) as caught:
            self.ask(*arguments, **options)
        return str(caught.value)


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


def with_rights_of_nobody(act):
    """``act`` in a process that may not do what root may."""

    def live():
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        return act()

    return in_child(live)


# Every source that is a file

PATHS = {
    "file": ("l", "l", {}),
    "auto cdb": ("l", "l", {"autocdb": True}),
    "auto dbm": ("l", "l", {"autodbm": True}),
    "cdb": ("l.cdb", "l.cdb", {}),
    "ezmlm": ("list/subscribers/A", "list", {}),
    "mailman pickle": ("list/config.pck", "list", {"attr": "members"}),
    "mailman marshal": ("list/config.db", "list", {"attr": "members"}),
    "dbm": ("l.dat", "l", {}),
}
KIND = {"auto cdb": "file", "auto dbm": "file", "mailman pickle": "mailman"} | {
    "mailman marshal": "mailman"
}


def octets_for(source, *addresses):
    """A file of that source that has these addresses."""
    if source == "cdb":
        return cdb.make([(address, b"") for address in addresses])
    if source == "ezmlm":
        return b"".join(b"T%s\0" % address for address in addresses)
    if source == "mailman pickle":
        return b"(dS'members'\n(d" + b"".join(b"S'%s'\nI0\ns" % one for one in addresses) + b"s."
    if source == "mailman marshal":
        words = [b"s" + struct.pack("<i", len(one)) + one + b"N" for one in addresses]
        return b"{s\x07\0\0\0members{" + b"".join(words) + b"00"
    return b"".join(address + b"\n" for address in addresses)


def lay(house, source, *addresses):
    """Write such a file; what to ask for it."""
    file, name, options = PATHS[source]
    if source == "dbm":
        with dbm.dumb.open(str(house.path / name), "n") as database:
            for address in addresses:
                database[address] = b""
    else:
        house.write(file, octets_for(source, *addresses))
    return functools.partial(house.ask, KIND.get(source, source), name, **options)


SOURCES = pytest.mark.parametrize("source", PATHS)
# Those that are one file whose octets we read ourselves.
FILES = pytest.mark.parametrize("source", [source for source in PATHS if source != "dbm"])


@SOURCES
def test_an_address_is_found_in_any_case_and_no_other(house, source):
    ask = lay(house, source, BOB, b"carol@x.example")
    assert ask(BOB) == ask(b"BOB@X.Example") == ask(b"carol@x.example") == ""
    for other in (b"eve@x.example", b"bob@x.exampl", b"bob@x.example.org", b"x", b"", b"@"):
        assert ask(other) is None


@SOURCES
def test_an_empty_file_has_nobody(house, source):
    assert lay(house, source)(BOB) is None


@SOURCES
def test_a_missing_file_is_an_error_unless_it_is_optional(house, source):
    _, name, options = PATHS[source]
    kind = KIND.get(source, source)
    said = house.error(kind, name, **options)
    assert f"{house.path}/{name}" in said
    assert "-optional" in said
    assert house.ask(kind, name, **options, optional=True) is None
    lay(house, source, BOB)
    assert house.ask(kind, name, **options, optional=True) == ""


@FILES
def test_a_change_between_messages_is_seen(house, source):
    ask = lay(house, source, BOB)
    assert ask(BOB) == ""
    for number in range(5):
        # In place, as a program that appends does it.
        ask = lay(house, source, b"new%d@x.example" % number, *[BOB] * (number % 2))
        assert ask(b"new%d@x.example" % number) == ""
        assert (ask(BOB) == "") == bool(number % 2)
    file = house.path / PATHS[source][0]
    # And as an editor does it: another file takes its name.
    house.write("new", octets_for(source, b"newest@x.example"))
    os.replace(house.path / "new", file)
    assert ask(b"newest@x.example") == ""
    assert ask(b"new4@x.example") is None


@FILES
def test_within_a_message_nothing_changes(house, source):
    ask = lay(house, source, BOB)
    reading = house.library.reading()
    assert ask(BOB, reading=reading) == ""
    file = house.path / PATHS[source][0]
    house.write("new", octets_for(source, b"eve@x.example"))
    os.replace(house.path / "new", file)
    assert ask(BOB, reading=reading) == ""
    assert ask(b"eve@x.example", reading=reading) is None
    file.unlink()
    assert ask(BOB, reading=reading) == ""
    lay(house, source, b"eve@x.example")
    assert (ask(BOB), ask(b"eve@x.example")) == (None, "")


@FILES
def test_within_a_message_a_missing_file_stays_missing(house, source):
    _, name, options = PATHS[source]
    ask = functools.partial(house.ask, KIND.get(source, source), name, optional=True, **options)
    reading = house.library.reading()
    assert ask(BOB, reading=reading) is None
    lay(house, source, BOB)
    assert ask(BOB, reading=reading) is None
    assert ask(BOB) == ""


@SOURCES
def test_threads_may_look_up_at_once(house, source):
    ask = lay(house, source, BOB)
    found = []

    def live():
        found.append([ask(BOB), ask(b"eve@x.example")])

    threads = [threading.Thread(target=live) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert found == [["", None]] * 10


@SOURCES
def test_a_directory_in_its_place_is_an_error(house, source):
    file, name, options = PATHS[source]
    (house.path / file).mkdir(parents=True)
    if source == "dbm":
        (house.path / "l.dir").mkdir()
        (house.path / "l").mkdir()
    said = house.error(KIND.get(source, source), name, optional=True, **options)
    assert str(house.path) in said


@SOURCES
def test_a_file_in_the_place_of_its_directory_is_an_error(house, source):
    _, name, options = PATHS[source]
    house.write("below", b"")
    kind = KIND.get(source, source)
    if source == "dbm":
        assert house.ask(kind, f"below/{name}", optional=True, **options) is None
    else:
        assert "Not a directory" in house.error(kind, f"below/{name}", **options)


@SOURCES
def test_a_pipe_in_its_place_neither_hangs_nor_counts_as_empty(house, source):
    file, name, options = PATHS[source]
    (house.path / file).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(house.path / (name if source == "dbm" else file))

    def act():
        return house.error(KIND.get(source, source), name, optional=True, **options)

    ended = in_child(act)
    assert ended.status == 0, ended.said
    assert str(house.path) in ended.said


@SOURCES
def test_a_file_that_may_not_be_read_is_an_error_even_if_it_is_optional(house, source):
    lay(house, source, BOB)
    file, name, options = PATHS[source]
    for one in (house.path / file).parent.iterdir():
        one.chmod(0)

    def act():
        # The directories above are not for everybody.
        here = Library(Files("."))
        question = Question(
            KIND.get(source, source),
            name,
            {"optional": ""} | {name: "" if v is True else v for name, v in options.items()},
        )
        with pytest.raises(TagError) as caught:
            here.reading().look_up(question, (BOB, b"x.example"), BOB)
        return caught.value

    house.path.chmod(0o755)
    before = os.getcwd()
    os.chdir(house.path)
    try:
        ended = with_rights_of_nobody(act)
    finally:
        os.chdir(before)
    assert ended.status == 0, ended.said
    assert "ermission denied" in ended.said


@SOURCES
@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "a\udcffb"])
def test_a_name_that_no_file_can_have_is_an_error(house, source, name):
    _, _, options = PATHS[source]
    kind = KIND.get(source, source)
    if "\0" in name or len(name) == 300:
        with contextlib.suppress(TagError):
            assert house.ask(kind, name, optional=True, **options) is None
    with pytest.raises(TagError):
        house.ask(kind, name, **options)


# Whoever's uid cannot be taken


@FILES
@pytest.mark.parametrize("way", ["file", "directory", "absolute"])
def test_confined_nothing_outside_the_home_is_looked_at(tmp_path, source, way):
    (tmp_path / "home").mkdir()
    outside = House(tmp_path / "outside")
    inside = House(tmp_path / "home")
    lay(outside, source, BOB)
    file, name, options = PATHS[source]
    target = inside.path / file
    target.parent.mkdir(parents=True, exist_ok=True)
    if way == "file":
        target.symlink_to(outside.path / file)
    elif way == "directory":
        (inside.path / "down").symlink_to(outside.path)
        name = f"down/{name}"
    else:
        name = f"../outside/{name}"
    kind = KIND.get(source, source)
    assert inside.ask(kind, name, **options) == ""
    if source.startswith("auto"):
        # What has just been made of the list is in the home, and could serve.
        for made in tmp_path.rglob("l.*"):
            made.unlink()
    before = sorted(os.walk(outside.path))
    said = inside.error(kind, name, reading=inside.confined.reading(), **options)
    assert "not below your home" in said
    assert sorted(os.walk(outside.path)) == before


@FILES
def test_confined_lists_within_the_home_are_found(house, source):
    ask = lay(house, source, BOB)
    assert ask(BOB, reading=house.confined.reading()) == ""
    assert ask(b"eve@x.example", reading=house.confined.reading()) is None


def test_confined_dbm_is_refused_for_its_module_opens_what_it_likes(house):
    ask = lay(house, "dbm", BOB)
    with pytest.raises(TagError, match="use a list or a cdb"):
        ask(BOB, reading=house.confined.reading())


# Text


@pytest.mark.parametrize(
    ("key", "action"),
    [
        (b"bob@x.example", ""),
        (b"who@y.example", "sender"),
        (b"who@a.b.y.example", "sender"),
        (b"who@z.example", "kw=zed"),
        (b"who@a.z.example", None),
        (b"c@x.example", "bare=append"),
        (b"e#f@x.example", None),
        (b"e", ""),
        (b"\xe9@x.example", "kw=\udce9"),
    ],
)
def test_a_list_has_patterns_domains_and_actions(house, key, action):
    house.write(
        "l",
        b"# friends\r\nBob@x.example\r\n*@=y.example\t sender\nz.example kw=zed\n\n"
        b"  c@x.example   bare=append trailing words\ne#f@x.example\n\xe9@x.example kw=\xe9\n",
    )
    assert house.ask("file", "l", key) == action


def test_an_action_is_found_with_its_line(house):
    house.write("l", b"\n\n*@y.example sender\n")
    question = Question("file", str(house.path / "l"), {})
    found = house.library.reading().look_up(question, (b"a@y.example", b"y.example"), b"")
    assert found == ("sender", f"{house.path}/l:3")


def test_an_unchanged_list_is_parsed_once(house):
    house.write("l", octets_for("file", *(b"a%d@x.example" % n for n in range(200_000))))
    begin = time.process_time()
    assert house.ask("file", "l", b"a7@x.example") == ""
    first = time.process_time() - begin
    begin = time.process_time()
    for _ in range(100):
        assert house.ask("file", "l", b"a7@x.example") == ""
    assert time.process_time() - begin < first


# Constant databases


@pytest.mark.peer("cdb")
def test_a_database_of_the_tool_has_addresses_domains_and_actions(house):
    text = b"bob@x.example\nz.example kw=zed\nUpper@x.example bare\nc@x.example dated=1d more\n"
    subprocess.run(
        ["cdb", "-c", "-m", "-t", "-", house.path / "l.cdb"], input=text, check=True, timeout=20
    )
    expected = {
        BOB: "",
        b"q@Z.example": "kw=zed",
        b"q@a.z.example": None,
        b"Upper@x.example": None,
        b"c@x.example": "dated=1d",
        b"q@x.example": None,
    }
    for key, action in expected.items():
        assert house.ask("cdb", "l.cdb", key) == action
        assert house.ask("cdb", "l.cdb", key, reading=house.confined.reading()) == action


@pytest.mark.parametrize(
    ("value", "action"),
    [
        (b"", ""),
        (b"\0", ""),
        (b" ", ""),
        (b"bare", "bare"),
        (b"bare\0", "bare"),
        (b"dated=1d and more", "dated=1d"),
        (b"kw=\xff", "kw=\udcff"),
    ],
)
@pytest.mark.parametrize("kind", ["cdb", "dbm"])
def test_what_stands_beside_an_address_is_an_action(house, kind, value, action):
    if kind == "cdb":
        house.write("l", cdb.make([(BOB, value)]))
    else:
        with dbm.dumb.open(str(house.path / "l"), "n") as database:
            database[BOB] = value
    assert house.ask(kind, "l") == action


def test_the_address_is_looked_up_before_its_domain(house):
    house.write("l.cdb", cdb.make([(b"x.example", b"sender"), (BOB, b"bare")]))
    assert house.ask("cdb", "l.cdb") == "bare"
    assert house.ask("cdb", "l.cdb", b"q@x.example") == "sender"


@pytest.mark.parametrize("octets", [b"", b"bob@x.example\n" * 400, b"\xff" * 4096])
def test_what_is_no_database_is_an_error_that_names_it(house, octets):
    house.write("l.cdb", octets)
    said = house.error("cdb", "l.cdb", optional=True)
    assert f"{house.path}/l.cdb" in said
    assert "constant database" in said


def test_a_value_that_claims_to_be_huge_is_no_reason_to_run_out_of_memory(house):
    octets = bytearray(cdb.make([(BOB, b"v")]))
    octets[2048 + 4 : 2048 + 8] = struct.pack("<L", 0xFFFFFFFF)
    house.write("l.cdb", bytes(octets))

    def act():
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        return "damaged" in house.error("cdb", "l.cdb")

    assert in_child(act) == (0, "True\n")


def test_no_file_stays_open(house):
    lay(house, "cdb", BOB)
    lay(house, "file", BOB)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        reading = house.library.reading()
        for _ in range(3):
            assert house.ask("cdb", "l.cdb", reading=reading) == ""
            assert house.ask("file", "l", autocdb=True, reading=reading) == ""
        del reading
    assert len(os.listdir("/proc/self/fd")) <= before


# Databases that are made of lists


def made_at(path):
    return os.stat(path).st_ino if os.path.exists(path) else None


def age(path, seconds):
    """Make a file older."""
    now = time.time_ns()
    os.utime(path, ns=(now - seconds * 10**9, now - seconds * 10**9))


def anew(house):
    """As after the start of another process."""
    house.library = Library(house.library.files)


@pytest.mark.peer("cdb")
def test_a_list_with_autocdb_is_looked_up_in_a_database_that_is_made_of_it(house):
    path = house.write(
        "l", b"Bob@x.example # b\n*@y.example bare\nz.example sender\nbob@x.example kw=b\n"
    )
    age(path, 10)
    ask = functools.partial(house.ask, "file", "l", autocdb=True)
    assert (ask(BOB), ask(b"a@z.example")) == ("", "sender")
    # As the reference has it: only whole addresses and domains are found.
    assert ask(b"who@y.example") is None
    dumped = subprocess.run(["cdb", "-d", f"{path}.cdb"], capture_output=True, check=True).stdout
    assert b"+13,0:bob@x.example->\n" in dumped
    assert b"+9,6:z.example->sender\n" in dumped
    found = subprocess.run(["cdb", "-q", f"{path}.cdb", "z.example"], capture_output=True)
    assert found.stdout == b"sender"
    assert sorted(os.listdir(house.path)) == ["l", "l.cdb"]


@pytest.mark.parametrize(
    ("age_of_list", "age_of_cdb", "rebuilt"), [(20, 10, False), (10, 20, True), (10, 10, True)]
)
def test_a_database_is_made_anew_when_it_is_not_newer_than_its_list(
    house, age_of_list, age_of_cdb, rebuilt
):
    path = house.write("l", b"bob@x.example\n")
    made = house.write("l.cdb", cdb.make([(b"old@x.example", b"")]))
    now = time.time_ns()
    for file, seconds in ((path, age_of_list), (made, age_of_cdb)):
        os.utime(file, ns=(now - seconds * 10**9,) * 2)
    before = made_at(made)
    assert (house.ask("file", "l", autocdb=True) == "") == rebuilt
    assert (house.ask("file", "l", b"old@x.example", autocdb=True) == "") != rebuilt
    assert (made_at(made) != before) == rebuilt
    again = made_at(made)
    for _ in range(3):
        house.ask("file", "l", autocdb=True)
    anew(house)
    house.ask("file", "l", autocdb=True)
    assert made_at(made) == again


def test_a_database_that_has_been_removed_is_made_anew(house):
    path = house.write("l", b"bob@x.example\n*@y.example bare\n")
    age(path, 10)
    ask = functools.partial(house.ask, "file", "l", autocdb=True)
    assert (ask(BOB), ask(b"a@y.example")) == ("", None)
    os.unlink(f"{path}.cdb")
    assert (ask(BOB), ask(b"a@y.example")) == ("", None)
    assert os.path.exists(f"{path}.cdb")


def test_a_damaged_database_is_no_reason_to_stop(house):
    path = house.write("l", b"bob@x.example\n")
    age(path, 10)
    house.write("l.cdb", b"no database")
    assert house.ask("file", "l", autocdb=True) == ""


@pytest.mark.parametrize("option", ["autocdb", "autodbm"])
def test_where_no_database_can_be_made_the_list_serves(house, option):
    house.write("l", b"bob@x.example\n*@y.example bare\n")
    suffix = "cdb" if option == "autocdb" else "db"
    # A directory of that name is in the way, also of root.
    (house.path / f"l.{suffix}").mkdir()
    ask = functools.partial(house.ask, "file", "l", **{option: True})
    assert (ask(BOB), ask(b"a@y.example"), ask(b"a@z.example")) == ("", "bare", None)
    house.write("l", b"eve@x.example\n")
    assert (ask(BOB), ask(b"eve@x.example")) == (None, "")
    assert not [name for name in os.listdir(house.path) if "new" in name or name.startswith(".")]


@pytest.mark.parametrize("option", ["autocdb", "autodbm"])
def test_in_a_directory_that_may_not_be_written_the_list_serves(house, option):
    house.write("l", b"bob@x.example\n*@y.example bare\n")
    house.path.chmod(0o755)
    before = os.getcwd()
    os.chdir(house.path)

    def act():
        here = Library(Files("."))
        question = Question("file", "l", {option: ""})
        found = here.reading().look_up(question, (b"a@y.example", b"y.example"), b"")
        return found.action

    house.path.chmod(0o555)
    try:
        assert with_rights_of_nobody(act) == (0, "bare\n")
    finally:
        os.chdir(before)
        house.path.chmod(0o755)
    assert os.listdir(house.path) == ["l"]


def test_processes_may_make_the_same_database_at_once(house):
    addresses = [b"a%d@x.example" % number for number in range(5000)]
    path = house.write("l", octets_for("file", *addresses))
    age(path, 10)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tofmipd.tmda.files import Files\n"
        "from tofmipd.tmda.library import Library\n"
        "from tofmipd.tmda.sources import Question\n"
        "sys.stdin.read()\n"
        "keys = (b'a4999@x.example', b'x.example')\n"
        "reading = Library(Files('/')).reading()\n"
        "print(reading.look_up(Question('file', sys.argv[2], {'autocdb': ''}), keys, b''))\n"
    )
    gate, hold = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, ROOT, path], stdin=gate, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    os.close(gate)
    os.close(hold)
    for process in processes:
        said, _ = process.communicate(timeout=WAIT_SECONDS)
        assert said.startswith("Found(action=''"), said
    assert sorted(os.listdir(house.path)) == ["l", "l.cdb"]
    assert (house.path / "l.cdb").read_bytes() == cdb.make((one, b"") for one in addresses)


def test_a_list_that_changes_while_its_database_is_made_is_not_forgotten(house):
    """The database would be newer than a change that it does not have."""
    path = house.path / "l"
    stop = threading.Event()

    def build():
        while not stop.is_set():
            with contextlib.suppress(TagError):
                Library(Files(str(house.path))).reading().look_up(
                    Question("file", str(path), {"autocdb": ""}), (BOB,), BOB
                )

    for number in range(15):
        house.write("l", b"bob@x.example\n" * 2000)
        stop.clear()
        thread = threading.Thread(target=build)
        thread.start()
        pause = threading.Event()
        for edit in range(5):
            pause.wait(0.002)
            house.write("new", b"bob@x.example\n" * 2000 + b"n%d.%d@x.example\n" % (number, edit))
            os.replace(house.path / "new", path)
        stop.set()
        thread.join(WAIT_SECONDS)
        anew(house)
        assert house.ask("file", "l", b"n%d.4@x.example" % number, autocdb=True) == ""


# DBM


def python_with(module):
    """A Python that has that module for DBM files: this one, or that of the system."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            ended = subprocess.run(
                [python, "-c", f"import {module}"], capture_output=True, timeout=20
            )
            if ended.returncode == 0:
                return python
    pytest.skip(f"no Python here has {module}")


ASK = """
import sys
sys.path.insert(0, sys.argv[1])
from tofmipd.tmda.errors import TagError
from tofmipd.tmda.files import Files
from tofmipd.tmda.library import Library
from tofmipd.tmda.sources import Question
library = Library(Files(sys.argv[2]))
kind, option = sys.argv[3].split()
for word in sys.argv[4:]:
    name, key = word.split(":")
    keys = (key.encode(), key.rpartition("@")[2].encode())
    question = Question(kind, f"{sys.argv[2]}/{name}", {option: ""})
    try:
        found = library.reading().look_up(question, keys, b"")
        print(found and [found.action])
    except TagError as error:
        print("error", error)
"""


def asked_by(python, home, kind, *words):
    """What a library finds that runs on another Python, a line for each of NAME:KEY."""
    ended = subprocess.run(
        [python, "-c", ASK, ROOT, home, kind, *words], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


MODULES = ["dbm.gnu", "dbm.ndbm", "dbm.dumb"]


@pytest.mark.parametrize("module", MODULES)
def test_a_dbm_database_of_any_kind_has_addresses_domains_and_actions(tmp_path, module):
    python = python_with(module)
    code = (
        f"import {module} as m, sys\n"
        "with m.open(sys.argv[1], 'n') as d:\n"
        "    d[b'bob@x.example'] = b''; d[b'z.example'] = b'kw=zed\\0'; d[b'Up@x.example'] = b'x'\n"
    )
    subprocess.run([python, "-c", code, tmp_path / "l"], check=True, timeout=20)
    keys = ("bob@x.example", "q@z.example", "up@x.example", "q@a.z.example")
    answers = asked_by(python, tmp_path, "dbm optional", *(f"l:{key}" for key in keys))
    assert answers == ["['']", "['kw=zed']", "None", "None"]


@pytest.mark.parametrize("module", MODULES)
def test_a_dbm_database_may_be_named_with_the_suffix_of_its_file(tmp_path, module):
    """That is how the file is called that some kinds make of the name without it."""
    python = python_with(module)
    code = f"import {module} as m, sys\nwith m.open(sys.argv[1], 'n') as d: d[b'a@x'] = b'bare'\n"
    subprocess.run([python, "-c", code, tmp_path / "l"], check=True, timeout=20)
    assert asked_by(python, tmp_path, "dbm optional", "l.db:a@x") == ["['bare']"]


def test_a_dbm_database_that_this_python_cannot_read_is_an_error_that_says_so(house):
    with contextlib.suppress(ImportError):
        importlib.import_module("dbm.gnu")
        pytest.skip("this Python has dbm.gnu")
    # The first octets of such a file tell what it is.
    house.write("l", struct.pack("=l", 0x13579ACE) + b"\0" * 100)
    assert "dbm.gnu" in house.error("dbm", "l", optional=True)


@pytest.mark.parametrize("octets", [b"", b"bob@x.example\n", b"\0" * 100])
def test_what_is_no_dbm_database_is_an_error(house, octets):
    house.write("l", octets)
    assert "no DBM database" in house.error("dbm", "l", optional=True)


@pytest.mark.parametrize(
    "text",
    ["'abc", "'a', 5", "'a', (0, x)", "'a', (0,)", "'a', 1, 2", "'" * 5000, "'a', (-1, 5)"],
)
def test_a_damaged_dbm_database_is_an_error(house, text):
    house.write("l.dat", b"")
    house.write("l.dir", text.encode())
    assert str(house.path) in house.error("dbm", "l", b"a", optional=True)


@pytest.mark.parametrize("module", ["dbm.gnu", "dbm.ndbm"])
def test_a_list_with_autodbm_is_looked_up_in_a_database_that_is_made_of_it(tmp_path, module):
    python = python_with(module)
    (tmp_path / "l").write_bytes(b"Bob@x.example\n*@y.example bare\nz.example sender\n")
    age(tmp_path / "l", 10)
    keys = ("bob@x.example", "q@z.example", "q@y.example")
    answers = asked_by(python, tmp_path, "file autodbm", *(f"l:{key}" for key in keys))
    assert sorted(os.listdir(tmp_path)) == ["l", "l.db", "l.last_built"]
    assert answers == ["['']", "['sender']", "None"]
    before = made_at(tmp_path / "l.db")
    assert asked_by(python, tmp_path, "file autodbm", "l:q@y.example") == ["None"]
    assert made_at(tmp_path / "l.db") == before
    (tmp_path / "l").write_bytes(b"eve@x.example kw=e\n")
    words = ("l:eve@x.example", "l:bob@x.example")
    assert asked_by(python, tmp_path, "file autodbm", *words) == ["['kw=e']", "None"]


def test_a_list_with_autodbm_serves_itself_where_python_has_no_module(house):
    for module in ("dbm.gnu", "dbm.ndbm"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
            pytest.skip(f"this Python has {module}")
    house.write("l", b"bob@x.example\n*@y.example bare\n")
    assert house.ask("file", "l", autodbm=True) == ""
    assert house.ask("file", "l", b"a@y.example", autodbm=True) == "bare"
    assert os.listdir(house.path) == ["l"]


# Mailing lists


def test_an_ezmlm_list_is_all_files_of_its_subscribers(house):
    house.write("list/subscribers/A", b"TBob@x.example\0Tal@x.example\0")
    house.write("list/subscribers/5", b"Tz@x.example\0garbage\0\0TT@x.example\0\xffT\xe9@x\0")
    house.write("list/subscribers/empty", b"")
    house.write("list/lock", b"Tlock@x.example\0")
    for key in (b"bob@x.example", b"AL@x.example", b"z@x.example", b"t@x.example", b"\xe9@x"):
        assert house.ask("ezmlm", "list", key) == ""
    for key in (b"garbage", b"", b"lock@x.example", b"x.example", b"q@x.example", b"bob"):
        assert house.ask("ezmlm", "list", key) is None


def test_the_domain_of_an_address_is_no_subscriber(house):
    house.write("list/subscribers/A", b"Tx.example\0")
    assert house.ask("ezmlm", "list") is None
    house.write("list/config.pck", b"(dS'members'\n(lS'x.example'\nas.")
    assert house.ask("mailman", "list", attr="members") is None


def test_a_subscriber_who_is_added_or_removed_is_seen(house):
    house.write("list/subscribers/A", b"Tal@x.example\0")
    house.write("list/subscribers/B", b"")
    assert house.ask("ezmlm", "list") is None
    with open(house.path / "list/subscribers/B", "ab") as file:
        file.write(b"Tbob@x.example\0")
    assert house.ask("ezmlm", "list") == ""
    (house.path / "list/subscribers/B").unlink()
    assert house.ask("ezmlm", "list") is None
    house.write("list/subscribers/C", b"Tbob@x.example\0")
    assert house.ask("ezmlm", "list") == ""


@pytest.mark.parametrize(
    ("file", "octets"),
    [("config.pck", PICKLES[0]), ("config.pck", PICKLES[2]), ("config.db", MARSHALS[2])],
)
def test_a_mailman_list_has_members_by_the_name_of_their_attribute(house, file, octets):
    house.write(f"list/{file}", octets)
    ask = functools.partial(house.ask, "mailman", "list")
    assert ask(b"Bob@X.example", attr="members") == ""
    assert ask(b"dave@x.example", attr="members") is None
    assert ask(b"dave@x.example", attr="digest_members") == ""
    assert ask(b"bob@x.example", attr="digest_members") is None
    assert ask(b"alice@x.example", attr="owner") == ""
    said = house.error("mailman", "list", attr="nonsense")
    assert f"{house.path}/list/{file}" in said
    assert "'nonsense'" in said


def test_the_newer_form_of_a_mailman_list_counts(house):
    house.write("list/config.db", MARSHALS[2])
    assert house.ask("mailman", "list", attr="members") == ""
    house.write("list/config.pck", b"(dS'members'\n(dS'eve@x.example'\nI0\nss.")
    assert house.ask("mailman", "list", attr="members") is None
    assert house.ask("mailman", "list", b"eve@x.example", attr="members") == ""
    (house.path / "list/config.pck").unlink()
    assert house.ask("mailman", "list", attr="members") == ""


@pytest.mark.parametrize("file", ["config.pck", "config.db"])
@pytest.mark.parametrize("octets", [b"", b"nonsense", b"cos\nsystem\n(S'true'\ntR."])
def test_a_damaged_mailman_list_is_an_error_that_names_it(house, file, octets):
    house.write(f"list/{file}", octets)
    said = house.error("mailman", "list", attr="members", optional=True)
    assert f"{house.path}/list/{file}" in said


# SQL


@pytest.fixture
def sql(tmp_path):
    """A house with a database; ``sql.run`` changes it."""
    keeper = Keeper()

    def connect():
        connection = sqlite3.connect(":memory:")
        connection.executescript(
            "create table people (Addr text, Act text, owner text);"
            "insert into people values ('bob@x.example', 'bare', 'alice');"
            "insert into people values ('carol@x.example', null, 'alice');"
            "insert into people values ('y.example', 'dated=1d', 'alice');"
            "insert into people values ('q@y.example', '', 'alice');"
            "insert into people values ('zoe@z.example', 'kw=z', 'zed');"
            "create table patterns (p text, a);"
            "insert into patterns values ('*@=x.example', 'sender');"
            "insert into patterns values (null, 'bare');"
            "insert into patterns values ('', 'bare');"
            "insert into patterns values ('  Bob@w.example  and words', null);"
            "insert into patterns values ('w.example', '  dated=2d  more ');"
            "insert into patterns values (x'6FE94078', x'6B773D6F');"
            "insert into patterns values ('n', 7);"
        )
        return connection

    connection = keeper.run(connect)
    house = House(tmp_path, Database(connection, keeper), {"username": "alice", "hostname": "h"})
    house.run = lambda statement: keeper.run(lambda: connection.execute(statement))
    yield house
    keeper.end()


CRITERIA = "select Addr, Act from people where %(criteria)s"


@pytest.mark.parametrize(
    ("key", "action"),
    [
        (b"bob@x.example", "bare"),
        (b"BOB@X.EXAMPLE", "bare"),
        (b"carol@x.example", ""),
        (b"any@y.example", "dated=1d"),
        (b"eve@x.example", None),
        (b"x' or '1'='1", None),
        (b"\xff@x.example", None),
        (b"", None),
    ],
)
def test_a_select_finds_addresses_and_domains_with_their_actions(sql, key, action):
    options = {"addr_column": "addr", "action_column": "act"}
    assert sql.ask("sql", CRITERIA, key, **options) == action
    plain = sql.ask("sql", CRITERIA, key, addr_column="Addr")
    assert plain == (None if action is None else "")


@pytest.mark.parametrize(
    ("statement", "key", "found"),
    [
        (CRITERIA + " and owner = %(username)s", b"bob@x.example", True),
        (CRITERIA + " and owner = %(username)s", b"zoe@z.example", False),
        ("select 1 where %(recipient)s like '%%@x.example'", b"Bob@X.example", True),
        ("select 1 where %(recipient)s like '%%@x.example'", b"bob@y.example", False),
        ("select 1 where %(recipient)s = 'bob@x.example'", b"BOB@X.Example", True),
        ("select 1 where %(hostname)s = 'h' and (%(criteria)s or 1)", b"any@where", None),
        ("select addr from people where owner='zed' and %(criteria)s", b"zoe@z.example", True),
    ],
)
def test_a_statement_may_name_recipient_user_and_host(sql, statement, key, found):
    if found is None:
        assert "no such column" in sql.error("sql", statement, key, addr_column="addr")
    else:
        assert (sql.ask("sql", statement, key, addr_column="addr") == "") == found


@pytest.mark.parametrize(
    ("key", "action"),
    [
        (b"who@x.example", "sender"),
        (b"who@a.x.example", "sender"),
        (b"bob@w.example", ""),
        (b"eve@w.example", "dated=2d"),
        (b"o\xe9@x", "kw=o"),
        (b"n", "7"),
        (b"", None),
        (b"eve@v.example", None),
    ],
)
def test_with_wildcards_the_rows_are_lines_of_a_list(sql, key, action):
    assert sql.ask("sql", "select p, a from patterns", key, wildcards=True) == action


def test_one_column_is_enough_for_wildcards(sql):
    assert sql.ask("sql", "select p from patterns", b"who@x.example", wildcards=True) == ""
    assert sql.ask("sql", "select p, a, 1 from patterns", b"n", wildcards=True) == "7"


def test_within_a_message_the_rows_stay_the_same(sql):
    reading = sql.library.reading()
    ask = functools.partial(sql.ask, "sql", "select p, a from patterns", wildcards=True)
    assert ask(b"new@v.example", reading=reading) is None
    sql.run("insert into patterns values ('*@v.example', 'bare')")
    sql.run("commit")
    assert ask(b"new@v.example", reading=reading) is None
    assert ask(b"new@v.example") == "bare"


def test_rows_that_depend_on_the_recipient_are_asked_for_each(sql):
    reading = sql.library.reading()
    statement = "select 'x.example', 'kw=1' where %(recipient)s like 'b%%'"
    ask = functools.partial(sql.ask, "sql", statement, wildcards=True, reading=reading)
    assert [ask(key) for key in (b"bob@x.example", b"al@x.example", b"bo@x.example")] == [
        "kw=1",
        None,
        "kw=1",
    ]


@pytest.mark.parametrize(
    ("statement", "options", "words"),
    [
        (CRITERIA, {"addr_column": "nonsense"}, ["nonsense"]),
        (CRITERIA, {"addr_column": "addr", "action_column": "none"}, ["'none'", "Addr, Act"]),
        ("select addr from people where x = %(nonsense)s", {"addr_column": "a"}, ["nonsense"]),
        ("select p from nonsense", {"wildcards": True}, ["nonsense"]),
        (CRITERIA, {"wildcards": True}, ["criteria"]),
    ],
)
def test_a_wrong_statement_is_an_error_that_says_what(sql, statement, options, words):
    said = sql.error("sql", statement, **options)
    for word in words:
        assert word in said


def test_without_a_connection_the_setting_is_named(house):
    assert "DB_CONNECTION" in house.error("sql", CRITERIA, addr_column="addr")
