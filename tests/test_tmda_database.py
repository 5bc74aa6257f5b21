"""The connection of a configuration: parameters in every style, threads, trouble."""

from __future__ import annotations

import gc
import sqlite3
import sys
import threading
import time
import types
import weakref

import pytest

from tofmipd.tmda import database as database_module
from tofmipd.tmda import userfiles as userfiles_module
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.database import Database, Keeper, in_style
from tofmipd.tmda.errors import ConfigError, FilterError, TagError
from tofmipd.tmda.userfiles import UserFiles

WAIT_SECONDS = 20


def until(true):
    """Wait for something that another thread does."""
    deadline = time.monotonic() + WAIT_SECONDS
    pause = threading.Event()
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.01)


@pytest.fixture
def keeper():
    keeper = Keeper()
    yield keeper
    keeper.end()


# Parameters

A, B = {"a": "1", "b": "2"}, {"a": "x"}


@pytest.mark.parametrize(
    ("style", "text", "parameters"),
    [
        ("qmark", "x = ? and ? y = ?", ["1", "2", "1"]),
        ("numeric", "x = :1 and :2 y = :3", ["1", "2", "1"]),
        ("named", "x = :a and :b y = :a", {"a": "1", "b": "2"}),
        ("format", "x = %s and %s y = %s", ["1", "2", "1"]),
        ("pyformat", "x = %(a)s and %(b)s y = %(a)s", {"a": "1", "b": "2"}),
        ("unheard-of", "x = %(a)s and %(b)s y = %(a)s", {"a": "1", "b": "2"}),
    ],
)
def test_parameters_are_written_as_the_module_wants_them(style, text, parameters):
    assert in_style(style, "x = %(a)s and %(b)s y = %(a)s", A) == (text, parameters)


@pytest.mark.parametrize(
    ("statement", "qmark", "pyformat"),
    [
        ("like '%'", "like '%'", "like '%'"),
        ("like '%%'", "like '%'", "like '%'"),
        ("like '%x' or %(a)s", "like '%x' or ?", "like '%%x' or %(a)s"),
        ("%(a)s like '100%%'", "? like '100%'", "%(a)s like '100%%'"),
        ("'%s' %(a)s", "'%s' ?", "'%%s' %(a)s"),
        ("'%(a)' %(a)s", "'%(a)' ?", "'%%(a)' %(a)s"),
        ("%(a)s%(a)s", "??", "%(a)s%(a)s"),
    ],
)
def test_per_cent_signs_that_are_no_parameters_stay(statement, qmark, pyformat):
    assert in_style("qmark", statement, B)[0] == qmark
    assert in_style("pyformat", statement, B)[0] == pyformat
    text, parameters = in_style("pyformat", statement, B)
    assert (text % parameters if parameters else text).count("%") == qmark.count("%")


@pytest.mark.parametrize("name", ["c", "A", "criteria"])
def test_an_unknown_parameter_is_an_error_that_says_which_there_are(name):
    with pytest.raises(TagError, match=rf"%\({name}\)s; there are %\(a\)s, %\(b\)s"):
        in_style("qmark", f"x = %({name})s", A)


# Modules of others


class Cursor:
    def __init__(self, connection):
        self.connection = connection
        self.description = None

    def execute(self, *arguments):
        self.connection.done.append(arguments)
        self.description = [("Addr", None), ("Action", None)]

    def fetchmany(self, size):
        return [("bob@x.example", None)]

    def close(self):
        self.connection.done.append("close")


class Connection:
    """What any module gives (PEP 249), no more."""

    def __init__(self):
        self.done = []

    def cursor(self):
        return Cursor(self)

    def commit(self):
        self.done.append("commit")

    def rollback(self):
        self.done.append("rollback")

    def close(self):
        self.done.append("closed")


def module_of(monkeypatch, name, style, base=Connection):
    """A connection as the module of that name would give it."""
    module = types.ModuleType(name.partition(".")[0])
    module.paramstyle = style
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return type("Connection", (base,), {"__module__": name})()


@pytest.mark.parametrize("name", ["fakedb", "fakedb.connections", "fakedb.deep.extensions"])
@pytest.mark.parametrize(
    ("style", "done"),
    [
        ("qmark", ("select ?", ["1"])),
        ("format", ("select %s", ["1"])),
        ("named", ("select :a", {"a": "1"})),
    ],
)
def test_the_style_is_that_of_the_module_of_the_connection(monkeypatch, keeper, name, style, done):
    connection = module_of(monkeypatch, name, style)
    names, rows = Database(connection, keeper).select("select %(a)s", A)
    assert (names, rows) == (["Addr", "Action"], [("bob@x.example", None)])
    assert connection.done == [done, "close", "rollback"]


def test_a_module_that_is_given_no_values_sees_the_statement_alone(monkeypatch, keeper):
    connection = module_of(monkeypatch, "fakedb", "format")
    Database(connection, keeper).select("select 'a%%b%'", A)
    assert connection.done[0] == ("select 'a%b%'",)


def test_the_style_of_a_class_that_a_configuration_derives_is_that_of_its_base(keeper):
    """``class Mine(sqlite3.Connection)`` in a configuration belongs to no module."""
    names = {}
    exec("import sqlite3\nclass Mine(sqlite3.Connection):\n    pass\n", names)
    connection = keeper.run(lambda: sqlite3.connect(":memory:", factory=names["Mine"]))
    assert Database(connection, keeper).select("select %(a)s", A)[1] == [("1",)]


def test_an_insert_is_committed_and_one_that_fails_is_rolled_back(monkeypatch, keeper):
    connection = module_of(monkeypatch, "fakedb", "qmark")
    Database(connection, keeper).insert("insert %(a)s", A)
    assert connection.done == [("insert ?", ["1"]), "close", "commit"]

    class Failing(Connection):
        def commit(self):
            raise KeyError("no")

    connection = module_of(monkeypatch, "fakedb", "qmark", Failing)
    with pytest.raises(TagError, match="KeyError"):
        Database(connection, keeper).insert("insert %(a)s", A)
    assert connection.done[-1] == "rollback"


# The keeper


def test_all_jobs_run_in_one_thread_which_is_not_ours(keeper):
    threads = {keeper.run(threading.get_ident) for _ in range(20)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_job_raises_comes_out_and_the_next_one_runs(keeper, error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        keeper.run(fail)
    assert keeper.run(lambda: 1) == 1


def test_the_thread_ends_with_the_keeper():
    ended, forgotten = Keeper(), Keeper()
    threads = [keeper.run(threading.current_thread) for keeper in (ended, forgotten)]
    assert all(thread.is_alive() for thread in threads)
    ended.end()
    ended.end()
    del forgotten
    gc.collect()
    for thread in threads:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()


def test_a_forgotten_database_closes_its_connection_and_ends_its_thread(monkeypatch):
    connection = module_of(monkeypatch, "fakedb", "qmark")
    keeper = Keeper()
    gone = weakref.ref(keeper)
    database = Database(connection, keeper)
    database.select("select 1", {})
    del keeper, database
    gc.collect()
    until(lambda: connection.done[-1] == "closed")
    assert gone() is None


# sqlite3


@pytest.fixture
def path(tmp_path):
    """A file with a table of addresses."""
    path = str(tmp_path / "db")
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (addr text unique, action text)")
        connection.executemany(
            "insert into t values (?, ?)", [("bob@x.example", "bare"), ("x.example", None)]
        )
    connection.close()
    return path


@pytest.fixture
def database(path, keeper):
    """Its connection may be used in the thread of the keeper only."""
    return Database(keeper.run(lambda: sqlite3.connect(path, timeout=0.1)), keeper)


def test_a_connection_of_one_thread_is_used_in_that_thread(database):
    found = []

    def ask():
        found.append(database.select("select * from t where addr = %(a)s", {"a": "bob@x.example"}))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in [*threads]:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert found == [(["addr", "action"], [("bob@x.example", "bare")])] * 8
    assert not database.broken


def test_values_are_never_part_of_the_statement(database):
    hostile = "x' or '1'='1'; drop table t; --%s%(a)s?"
    assert database.select("select addr from t where addr = %(a)s", {"a": hostile})[1] == []
    database.insert("insert into t values (%(a)s, null)", {"a": hostile})
    assert (hostile,) in database.select("select addr from t", {})[1]


def test_per_cent_signs_reach_the_database(database):
    assert database.select("select addr from t where addr like 'bob%%'", {})[1] != []
    assert (
        database.select("select addr from t where addr like '%%' || %(a)s", {"a": "b@x"})[1] == []
    )
    assert database.select("select 7 % 4, %(a)s", {"a": "q"})[1] == [(3, "q")]


def test_what_others_commit_is_seen_at_once(database, path):
    """A transaction that stayed open would keep showing the table as it was."""
    assert len(database.select("select * from t", {})[1]) == 2
    other = sqlite3.connect(path)
    with other:
        other.execute("insert into t values ('new@x.example', 'kw=n')")
    other.close()
    assert len(database.select("select * from t", {})[1]) == 3


def test_what_is_inserted_is_seen_by_others_and_a_second_time_is_no_error(database, path):
    for _ in range(2):
        database.insert("insert into t values (%(a)s, %(b)s)", A)
    assert not database.broken
    other = sqlite3.connect(path)
    assert other.execute("select * from t where addr = '1'").fetchall() == [("1", "2")]
    other.close()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("select nonsense from t", "no such column"),
        ("select * from none_such", "no such table"),
        ("selec", "syntax error"),
        ("select * from t where addr = ?", "Incorrect number of bindings"),
        ("select 1; select 2", "one statement at a time"),
    ],
)
def test_a_wrong_statement_is_an_error_with_the_words_of_the_database(database, statement, says):
    with pytest.raises(TagError, match=says):
        database.select(statement, A)
    assert database.select("select 1", {})[1] == [(1,)]


def test_a_select_that_changes_something_changes_nothing(database, path):
    database.select("delete from t", {})
    assert len(database.select("select * from t", {})[1]) == 2


def test_a_locked_database_is_an_error_and_works_later(database, path):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(TagError, match="locked"):
        database.insert("insert into t values (%(a)s, null)", A)
    with pytest.raises(TagError, match="locked"):
        database.select("select * from t", {})
    other.execute("rollback")
    other.close()
    database.insert("insert into t values (%(a)s, null)", A)
    assert len(database.select("select * from t", {})[1]) == 3


@pytest.fixture
def gate():
    """What a slow statement waits for."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_slow_statement_is_given_up(monkeypatch, keeper, gate):
    monkeypatch.setattr(database_module, "_SECONDS", 0.1)

    def connect():
        connection = sqlite3.connect(":memory:")
        connection.create_function("slow", 0, lambda: gate.wait(WAIT_SECONDS))
        return connection

    database = Database(keeper.run(connect), keeper)
    for statement in ("select slow()", "select 1"):
        with pytest.raises(TagError, match="did not answer within"):
            database.select(statement, {})
    assert database.broken
    gate.set()
    until(lambda: not keeper.run(lambda: False))
    assert database.select("select 2", {})[1] == [(2,)]


# In a configuration


class House:
    """A user whose configuration opens a database."""

    def __init__(self, home, path):
        self.tmda = home / ".tmda"
        (self.tmda / "filters").mkdir(parents=True)
        (self.tmda / "crypt_key").write_text("00" * 20)
        (self.tmda / "crypt_key").chmod(0o600)
        self.opened = home / "opened"
        self.configure(f"import sqlite3\nDB_CONNECTION = sqlite3.connect({path!r})\n")
        around = Surroundings(str(home), "alice", "Alice", "mail.example.com")
        self.files = UserFiles(str(self.tmda / "config"), around)

    def configure(self, text):
        text = f"open({str(self.opened)!r}, 'a').write('x')\n{text}"
        (self.tmda / "config").write_text(text)

    def rules(self, text):
        (self.tmda / "filters/outgoing").write_text(text)

    def ask(self, recipient=b"bob@x.example"):
        profile = self.files.profile()
        match = profile.filter.find(recipient, b"alice@mail.example.com", profile.library.reading())
        return match and str(match.actions[0][1])

    def times_opened(self):
        return len(self.opened.read_text())


@pytest.fixture
def house(tmp_path, path):
    house = House(tmp_path, path)
    house.rules('to-sql -wildcards "select addr, action from t" sender\n')
    return house


def test_the_connection_of_a_configuration_serves_all_threads(house):
    """sqlite3 refuses a thread that has not opened it; messages come in many."""
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(house.ask())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert answers == ["bare"] * 8
    assert house.times_opened() == 1


@pytest.mark.parametrize(("seconds", "again"), [(-1, True), (1000, False)])
def test_a_connection_that_has_been_closed_is_opened_again_but_not_all_the_time(
    house, path, monkeypatch, seconds, again
):
    monkeypatch.setattr(userfiles_module, "_RECONNECT_SECONDS", seconds)
    house.configure(
        f"import sqlite3\nDB_CONNECTION = sqlite3.connect({path!r}, check_same_thread=False)\n"
    )

    def fail():
        house.files.profile().config.db_connection.close()
        with pytest.raises(FilterError, match="closed") as caught:
            house.ask()
        assert caught.value.line == 1

    assert house.ask() == "bare"
    fail()
    assert house.ask() == "bare"
    assert house.times_opened() == 2
    fail()
    if again:
        assert house.ask() == "bare"
    else:
        with pytest.raises(FilterError, match="closed"):
            house.ask()
    assert house.times_opened() == 2 + again


def test_a_configuration_that_cannot_connect_is_tried_again(house, path, tmp_path):
    house.configure(f"import sqlite3\nDB_CONNECTION = sqlite3.connect('{tmp_path}/none/db')\n")
    before = set(threading.enumerate())
    for _ in range(3):
        with pytest.raises(ConfigError, match="unable to open") as caught:
            house.files.profile()
        assert caught.value.line == 3
    until(lambda: set(threading.enumerate()) <= before)
    (tmp_path / "none").mkdir()
    sqlite3.connect(tmp_path / "none/db").close()
    with pytest.raises(FilterError, match="no such table"):
        house.ask()


def test_a_changed_configuration_closes_the_old_connection(house, path, tmp_path):
    house.configure(
        "import sqlite3\n"
        "class Noting(sqlite3.Connection):\n"
        "    def close(self):\n"
        f"        open('{tmp_path}/closed', 'a').write('x')\n"
        "        sqlite3.Connection.close(self)\n"
        f"DB_CONNECTION = sqlite3.connect({path!r}, factory=Noting)\n"
    )
    house.rules("to * bare\n")
    assert house.ask() == "bare"
    house.configure("")
    assert house.ask() == "bare"
    gc.collect()
    until((tmp_path / "closed").exists)


def test_without_a_database_a_rule_that_asks_one_is_an_error_that_says_so(house):
    house.configure("")
    with pytest.raises(FilterError, match="DB_CONNECTION") as caught:
        house.ask()
    assert caught.value.line == 1


@pytest.mark.parametrize("value", ["'a text'", "5", "object()", "open"])
def test_what_is_no_connection_is_an_error_of_its_line(house, value):
    house.configure(f"\nDB_CONNECTION = {value}\n")
    with pytest.raises(ConfigError, match="DB_CONNECTION must be a connection") as caught:
        house.files.profile()
    assert caught.value.line == 3


def test_what_a_failed_job_had_is_freed_with_its_error(keeper):
    """Else a configuration that ran out of memory keeps it until the collector comes."""

    class Large:
        pass

    seen = []

    def job():
        large = Large()
        seen.append(weakref.ref(large))
        raise MemoryError

    gc.disable()
    try:
        with pytest.raises(MemoryError):
            keeper.run(job)
        keeper.run(lambda: None)
        assert seen[0]() is None
    finally:
        gc.enable()
