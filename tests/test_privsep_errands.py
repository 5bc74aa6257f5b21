"""Commands of a filter, lists that grow, and the user's log: what is done beside tagging."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from fakes import LOOPBACK, PATIENCE_SECONDS, Act, FakeNextHop, at, content_of, wait_for

from tofmipd.handoff.smtp import Pool
from tofmipd.privsep.errands import SHELL_OUTPUT_OCTETS, Errands, run_shell
from tofmipd.privsep.outbound import House, Outbound, Owner
from tofmipd.programs import PATH
from tofmipd.settings import NextHopLimits
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.tmda import files
from tofmipd.tmda.actions import no_shell
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.errors import TagError
from tofmipd.tmda.files import Files, append_once
from tofmipd.tmda.userfiles import UserFiles

LIMITS = NextHopLimits(connect_timeout=5, reply_timeout=5, dot_timeout=5)
MESSAGE = b"From: Bobby <bobby@example.org>\r\nSubject: Hi\r\n\r\nHello\r\n"
CONFIG = """\
MAIL_TRANSPORT = "smtp"
SMTPHOST = "127.0.0.1:{port}"
USERNAME, HOSTNAME, FULLNAME = "bobby", "example.org", "Bobby"
"""
# A recipient may be anything that RFC 5321 lets between its brackets.
HOSTILE = [
    b'"; touch pwned; "@x.example',
    b'"`touch pwned`"@x.example',
    b"$(touch pwned)@x.example",
    b"a'b\"c\\d@x.example",
    b"-n@x.example",
    b"*?[a]{b}~!#&|<>@x.example",
    b"a\nb@x.example",
    "jürgen@x.example".encode(),
    b"\xff\xfe@x.example",
    b"%s%n@x.example",
]


def shell(command, recipient=b"bob@x.example", *, directory="/", timeout=PATIENCE_SECONDS, **more):
    return run_shell({"PATH": PATH, **more}, str(directory), timeout, command, recipient)


def failure(command, **options):
    with pytest.raises(TagError) as caught:
        shell(command, **options)
    return str(caught.value)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# Commands


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("echo one", b"one"),
        ("printf one", b"one"),
        ("printf 'one\\n\\n'", b"one\n"),
        ("printf '\\n'", b""),
        ("printf 'one\\r\\n'", b"one\r"),
        ("true", b""),
        ("echo one; echo two >&2; echo three", b"one\ntwo\nthree"),
        ("printf '\\377\\000\\303\\274'", b"\xff\0\xc3\xbc"),
        ("echo 'a b' | tr a-z A-Z", b"A B"),
        ("cat", b""),
        ("exec 2>/dev/null; echo one; echo two >&2", b"one"),
        ("exit 0; echo never", b""),
        ("yes | head -n 1", b"y"),
        ("echo é", "é".encode()),
    ],
)
def test_what_a_command_prints_is_its_value_without_the_last_newline(command, output):
    assert shell(command) == output


def test_a_command_runs_in_the_home_directory(tmp_path):
    assert shell("pwd -P", directory=tmp_path) == os.path.realpath(tmp_path).encode()


def test_without_a_home_directory_it_runs_at_the_root(tmp_path):
    assert shell("pwd -P", directory=tmp_path / "nowhere") == b"/"
    (tmp_path / "file").write_text("")
    assert shell("pwd -P", directory=tmp_path / "file") == b"/"


ENVIRONMENT_OF_SH = "tr '\\0' '\\n' < /proc/$$/environ"


def test_a_command_has_the_environment_that_is_given_and_two_variables(monkeypatch):
    monkeypatch.setenv("SECRET", "of the daemon")
    printed = shell(ENVIRONMENT_OF_SH, b"Bob@sub@X.example", HOME="/h", LOGIN="bobby")
    assert sorted(printed.decode().split("\n")) == [
        "HOME=/h",
        "LOGIN=bobby",
        f"PATH={PATH}",
        "TMDA_RECIPIENT=Bob@sub@X.example",
        "TMDA_VRECIPIENT=Bob=sub=X.example",
    ]


@pytest.mark.parametrize("recipient", HOSTILE)
def test_a_recipient_is_only_data_for_a_command(tmp_path, recipient):
    command = 'printf %s "$TMDA_RECIPIENT"; printf "|%s" "$TMDA_VRECIPIENT"'
    wanted = recipient + b"|" + recipient.replace(b"@", b"=")
    assert shell(command, recipient, directory=tmp_path) == wanted
    assert os.listdir(tmp_path) == []


def test_no_descriptor_reaches_a_command(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100)
    try:
        # The fourth is that of ls itself.
        assert shell("ls /proc/self/fd") == b"0\n1\n2\n3"
        assert os.get_inheritable(descriptor)
        assert os.get_inheritable(high)
    finally:
        os.close(high)
        os.close(descriptor)


def test_a_command_cannot_reach_the_terminal_or_the_input_of_the_daemon():
    assert shell("readlink /proc/self/fd/0") == b"/dev/null"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("exit 1", "ended with 1"),
        ("exit 75", "ended with 75"),
        ("echo no such friend; exit 3", "ended with 3: no such friend"),
        ("echo out; echo err >&2; exit 3", r"ended with 3: out\nerr"),
        ("kill -KILL $$", "ended by signal 9"),
        ("kill -TERM $$", "ended by signal 15"),
        ("no-such-program-anywhere", "ended with 127: "),
        ("if", "ended with 2: "),
        ("/etc/passwd", "ended with 126: "),
    ],
)
def test_a_command_that_fails_is_named_with_its_end(command, says):
    said = failure(command)
    assert said.startswith(f"the command {command!r} {says}")
    assert said.isprintable()


def test_of_what_a_failing_command_says_only_so_much_is_told():
    said = failure("head -c 5000 /dev/zero | tr '\\0' x; printf '\\033[31m\\n'; exit 1")
    assert len(said) < 250
    assert said.isprintable()
    assert said.endswith("xxx...")


def test_a_command_has_only_so_much_time_and_takes_its_children_with_it(tmp_path):
    begun = time.monotonic()
    said = failure(
        f"sleep 60 & echo $$ $! > {tmp_path}/pids; trap '' TERM HUP; sleep 60", timeout=0.3
    )
    assert time.monotonic() - begun < PATIENCE_SECONDS
    assert said.endswith("did not end within 0.3 s")
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    wait_for(lambda: not any(running(pid) for pid in pids))


@pytest.mark.parametrize(
    "flood", ["yes", "cat /dev/zero", "yes >&2", "yes & yes", "yes; exit 1", "trap '' TERM; yes"]
)
def test_a_flood_of_output_ends_the_command(tmp_path, flood):
    begun = time.monotonic()
    said = failure(f"echo $$ > {tmp_path}/pid; {flood}")
    assert said.endswith(f"prints more than {SHELL_OUTPUT_OCTETS} octets")
    assert time.monotonic() - begun < PATIENCE_SECONDS / 2
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not running(pid))


@pytest.mark.parametrize("more", [-1, 0, 1, 2, 1_000_000])
@pytest.mark.parametrize("redirection", ["", " >&2"])
def test_output_is_bounded_error_output_included(more, redirection):
    octets = SHELL_OUTPUT_OCTETS + more
    command = f"(head -c {octets} /dev/zero | tr '\\0' x){redirection}"
    if more <= 0:
        assert shell(command) == b"x" * octets
    else:
        said = failure(command)
        assert said.endswith(f"prints more than {SHELL_OUTPUT_OCTETS} octets")
        assert len(said) < 200


def test_what_a_command_leaves_behind_is_not_waited_for():
    begun = time.monotonic()
    pid = int(shell("sleep 60 & echo $!"))
    assert time.monotonic() - begun < PATIENCE_SECONDS / 2
    os.kill(pid, 9)


@pytest.mark.parametrize(
    ("command", "recipient"),
    [("echo a\0b", b"bob@x"), ("echo", b"bob\0@x"), ("echo \ud800", b"bob@x")],
)
def test_what_no_program_can_be_given_is_an_error_of_the_rule(command, recipient):
    with pytest.raises(TagError, match="cannot be run"):
        run_shell({"PATH": PATH}, "/", PATIENCE_SECONDS, command, recipient)


def test_many_commands_at_once_do_not_mix():
    results = {}

    def ask(number):
        recipient = b"r%d@x" % number
        results[number] = shell('sleep 0.05; printf %s "$TMDA_RECIPIENT"', recipient)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert results == {number: b"r%d@x" % number for number in range(12)}


def test_nothing_is_left_open_or_unburied():
    before = len(os.listdir("/proc/self/fd"))
    for command in ("true", "exit 1", "kill -KILL $$", "sleep 9", "yes"):
        with contextlib.suppress(TagError):
            shell(command, timeout=0.2)
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_the_process_is_not_the_users_no_command_runs(tmp_path):
    confined = Errands(Files(str(tmp_path), confined=True), str(tmp_path), 5)
    assert confined.shell(lambda: {"PATH": PATH}) is no_shell
    with pytest.raises(TagError, match="'shell' is not allowed here"):
        confined.shell(lambda: {"PATH": PATH})("touch pwned", b"bob@x")
    assert os.listdir(tmp_path) == []


def test_where_it_is_the_users_commands_run(tmp_path):
    own = Errands(Files(str(tmp_path)), str(tmp_path), 5)
    assert own.shell(lambda: {"PATH": PATH})("pwd -P; echo $TMDA_RECIPIENT", b"bob@x") == (
        f"{os.path.realpath(tmp_path)}\nbob@x".encode()
    )


# Lists that grow, as files


@pytest.mark.parametrize(
    ("before", "address", "after"),
    [
        (None, b"bob@x", b"bob@x\n"),
        (b"", b"bob@x", b"bob@x\n"),
        (b"\n", b"bob@x", b"\nbob@x\n"),
        (b"a@x\n", b"bob@x", b"a@x\nbob@x\n"),
        (b"a@x", b"bob@x", b"a@x\nbob@x\n"),
        (b"a@x\r\n", b"bob@x", b"a@x\r\nbob@x\n"),
        (b"# only a comment", b"bob@x", b"# only a comment\nbob@x\n"),
        (b"bob@xy\nbbob@x\n", b"bob@x", b"bob@xy\nbbob@x\nbob@x\n"),
        (b"#bob@x\n", b"bob@x", b"#bob@x\nbob@x\n"),
        (b"a@x\n", b"Bob@X", b"a@x\nBob@X\n"),
        (b"*@x\n", b"bob@x", b"*@x\nbob@x\n"),
        (b"\xff\xfe\0\n", b"bob@x", b"\xff\xfe\0\nbob@x\n"),
        (b"a@x\n", "jürgen@x".encode(), "a@x\njürgen@x\n".encode()),
    ],
)
def test_an_address_that_is_not_on_a_list_is_put_at_its_end(tmp_path, before, address, after):
    path = tmp_path / "list"
    if before is not None:
        path.write_bytes(before)
    assert append_once(Files(str(tmp_path)), str(path), address)
    assert path.read_bytes() == after
    assert not append_once(Files(str(tmp_path)), str(path), address)
    assert path.read_bytes() == after


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (b"bob@x\n", b"bob@x"),
        (b"bob@x", b"bob@x"),
        (b"BOB@x\n", b"bob@X"),
        (b"  bob@x \t\n", b"bob@x"),
        (b"bob@x\r\na@x\r\n", b"bob@x"),
        (b"bob@x # a friend\n", b"bob@x"),
        (b"bob@x#a friend", b"bob@x"),
        (b"a@x\n\n# c\nbob@x\nz@x", b"bob@x"),
        (b"\xff\nbob@x\n", b"bob@x"),
        ("jürgen@x\n".encode(), "JüRGEN@x".encode()),
    ],
)
def test_an_address_that_is_on_a_list_leaves_it_as_it_is(tmp_path, text, address):
    path = tmp_path / "list"
    path.write_bytes(text)
    before = path.stat().st_mtime_ns
    assert not append_once(Files(str(tmp_path)), str(path), address)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (text, before)


def test_an_address_with_the_sign_of_comments_is_not_put_there_again_and_again(tmp_path):
    path = tmp_path / "list"
    for _ in range(3):
        append_once(Files(str(tmp_path)), str(path), b"a#b@x.example")
    assert path.read_bytes() in (b"", b"a#b@x.example\n")


def test_a_new_list_belongs_to_the_user_alone(tmp_path):
    append_once(Files(str(tmp_path)), str(tmp_path / "list"), b"bob@x")
    assert stat.S_IMODE((tmp_path / "list").stat().st_mode) == 0o600


def test_a_list_behind_a_link_stays_behind_it(tmp_path):
    (tmp_path / "real").write_bytes(b"a@x\n")
    (tmp_path / "list").symlink_to("real")
    append_once(Files(str(tmp_path)), str(tmp_path / "list"), b"bob@x")
    assert (tmp_path / "real").read_bytes() == b"a@x\nbob@x\n"
    assert (tmp_path / "list").is_symlink()


def test_threads_that_append_at_once_tear_no_line_and_repeat_none(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(b"first@x")
    start = threading.Barrier(20)

    def append(number):
        start.wait(PATIENCE_SECONDS)
        for other in (number, 0, number % 5):
            append_once(Files(str(tmp_path)), str(path), b"friend-number-%d@x" % other)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    lines = path.read_bytes().split(b"\n")
    assert (lines[0], lines[-1]) == (b"first@x", b"")
    assert sorted(lines[1:-1]) == sorted(b"friend-number-%d@x" % number for number in range(20))


APPENDER = """
import sys
from tofmipd.tmda.files import Files, append_once
for number in range(40):
    for name in (sys.argv[2], "shared"):
        append_once(Files("/"), sys.argv[1], f"{name}-{number}@x.example".encode())
"""


def test_processes_that_append_at_once_tear_no_line_and_repeat_none(tmp_path):
    path = tmp_path / "list"
    names = ("one", "two", "three")
    processes = [
        subprocess.Popen([sys.executable, "-c", APPENDER, str(path), name]) for name in names
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    wanted = [f"{name}-{number}@x.example" for name in (*names, "shared") for number in range(40)]
    assert sorted(path.read_text().splitlines()) == sorted(wanted)


@contextlib.contextmanager
def locked_by_another(path):
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_list_that_another_keeps_locked_is_waited_for(tmp_path):
    path, done = tmp_path / "list", []
    thread = threading.Thread(
        target=lambda: done.append(append_once(Files(str(tmp_path)), str(path), b"bob@x"))
    )
    with locked_by_another(path):
        thread.start()
        thread.join(0.1)
        assert done == []
        assert path.read_bytes() == b""
    thread.join(PATIENCE_SECONDS)
    assert done == [True]
    assert path.read_bytes() == b"bob@x\n"


def test_a_list_that_stays_locked_is_an_error_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    path = tmp_path / "list"
    with (
        locked_by_another(path),
        pytest.raises(TimeoutError, match="somebody else keeps it locked"),
    ):
        append_once(Files(str(tmp_path)), str(path), b"bob@x")
    assert path.read_bytes() == b""
    assert append_once(Files(str(tmp_path)), str(path), b"bob@x")


FULL = """
import resource, signal, sys
from tofmipd.tmda.files import Files, append_once
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    append_once(Files("/"), sys.argv[1], b"somebody@x.example")
except OSError as error:
    sys.exit(str(error.errno))
"""


@pytest.mark.parametrize("room", [0, 1, 5])
def test_a_line_that_does_not_fit_is_taken_back_whole(tmp_path, room):
    path = tmp_path / "list"
    path.write_bytes(b"a@x\n")
    command = [sys.executable, "-c", FULL, str(path), str(4 + room)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr.strip()) == (1, "27")  # EFBIG
    assert path.read_bytes() == b"a@x\n"


# Of a message on its way


class Home:
    """A home directory, and a way out from it to a next hop."""

    def __init__(self, path):
        self.path = path
        self.pool = Pool()
        self.notes = []
        (path / ".tmda/filters").mkdir(parents=True)
        self.write("crypt_key", "0123456789abcdef" * 2)
        self.write("filters/outgoing", "to * bare\n")

    def write(self, name, text):
        path = self.path / ".tmda" / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def configure(self, server, more="", rules="to * bare=append\n"):
        self.write("config", CONFIG.format(port=server.port) + more)
        self.write("filters/outgoing", rules)

    def outbound(self, form="python", script_timeout=5):
        around = Surroundings(str(self.path), "bobby", "Bobby", "mx.example")
        user_files = UserFiles(f"{self.path}/.tmda/config", around, form=form)
        house = House(
            *("mx.example", "full", LIMITS, self.pool),
            note=lambda text, *values: self.notes.append(text % values),
            script_timeout=script_timeout,
        )
        return Outbound(Owner("bobby", str(self.path)), user_files, house)

    def submit(self, *recipients, message=MESSAGE, outbound=None, peer=LOOPBACK):
        envelope = Envelope("", "bobby", "client.example", peer=peer)
        envelope.recipients = list(recipients or ("bob@x.example",))
        content = content_of(message)
        try:
            return str((outbound or self.outbound()).submit(envelope, content, "test"))
        finally:
            content.close()


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    yield home
    home.pool.close()


@pytest.fixture
def next_hop():
    with FakeNextHop() as server:
        yield server
    assert server.violations == []


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_recipients_are_appended_once_in_their_order(home, next_hop):
    home.configure(next_hop, "BARE_APPEND = '~/friends'\n", "to *@y bare\nto * bare=append\n")
    outbound = home.outbound()
    for _ in range(2):
        said = home.submit("one@x", "Two@X", "three@y", "two@x", "one@x", outbound=outbound)
        assert said.startswith("250 ")
    assert (home.path / "friends").read_text() == "one@x\nTwo@X\n"


@pytest.mark.parametrize(
    ("rules", "more", "appends"),
    [
        ("to * bare=append\n", "", True),
        ("to * bare=APPEND\n", "", True),
        ("to * bare=Append\n", "", True),
        ("to * bare\n", "", False),
        ("to * bare=other\n", "", False),
        ("to * bare=appendix\n", "", False),
        ("to * sender=append\n", "", False),
        ("to * tag from bare=append x-a b\n", "", True),
        ('to * tag from "bare=append"\n', "", True),
        ('to * tag x-a "bare=append b"\n', "", False),
        ("to * default\n", "ACTION_OUTGOING = 'bare=append'\n", True),
        ("", "ACTION_OUTGOING = 'bare=append'\n", True),
        ("to nobody@x bare=append\nto * bare\n", "", False),
    ],
)
def test_only_bare_append_appends(home, next_hop, rules, more, appends):
    home.configure(next_hop, "BARE_APPEND = '~/friends'\n" + more, rules)
    assert home.submit().startswith("250 ")
    assert (home.path / "friends").exists() == appends


def test_without_a_list_nothing_is_appended(home, next_hop):
    home.configure(next_hop)
    before = sorted(os.listdir(home.path))
    assert home.submit().startswith("250 ")
    assert sorted(os.listdir(home.path)) == before


def test_a_list_that_grows_counts_for_the_next_message(home, next_hop):
    rules = "to-file -optional ~/friends ext=friend\nto * bare=append\n"
    home.configure(next_hop, "BARE_APPEND = '~/friends'\n", rules)
    outbound = home.outbound()
    for _ in range(3):
        assert home.submit(outbound=outbound).startswith("250 ")
    assert [message.sender for message in next_hop.messages] == [
        "bobby@example.org",
        "bobby-friend@example.org",
        "bobby-friend@example.org",
    ]
    assert (home.path / "friends").read_text() == "bob@x.example\n"


@pytest.mark.parametrize("recipient", ["*@x.example", "?ob@x.example", "#bob@x.example"])
def test_a_recipient_that_a_list_would_read_as_others_is_not_put_there(home, next_hop, recipient):
    """Whoever writes from *@example.net would have the whole domain on the list by the answer."""
    rules = "to-file -optional ~/friends ext=friend\nto * bare=append\n"
    home.configure(next_hop, "BARE_APPEND = '~/friends'\n", rules)
    outbound = home.outbound()
    assert home.submit(recipient, outbound=outbound).startswith("250 ")
    assert home.submit("bob@x.example", outbound=outbound).startswith("250 ")
    senders = [message.sender for message in next_hop.messages]
    assert senders == ["bobby@example.org", "bobby@example.org"]


@pytest.mark.parametrize("place", ["~/missing/friends", "~/.tmda", "/dev/full", "/proc/version"])
def test_a_list_that_cannot_be_written_defers_the_message(home, next_hop, place, caplog):
    home.configure(next_hop, f"# a comment\nBARE_APPEND = {place!r}\n")
    said = home.submit()
    assert said.startswith("451 4.3.5 Error in your TMDA files: config line 5: BARE_APPEND: ")
    assert "cannot be written" in said
    assert str(home.path) not in said
    assert next_hop.messages == []


def test_nothing_is_appended_for_a_message_that_cannot_be_tagged(home, next_hop):
    rules = "to two@x dated=5q\nto * bare=append\n"
    home.configure(next_hop, "BARE_APPEND = '~/friends'\n", rules)
    assert home.submit("one@x", "two@x").startswith("451 ")
    assert not (home.path / "friends").exists()


# Lists that grow, in a database


SQL = """\
import sqlite3
DB_CONNECTION = sqlite3.connect({path!r})
DB_BARE_APPEND = "INSERT INTO friends VALUES (%(recipient)s, %(fromheader)s, %(username)s, " \\
    "%(hostname)s, %(sender)s)"
"""


@pytest.fixture
def database(home):
    """A database with a table of friends; rows() gives what is in it."""
    path = home.path / "friends.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE friends (a TEXT UNIQUE, f TEXT, u TEXT, h TEXT, s TEXT)")
        connection.commit()

    def rows():
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT * FROM friends ORDER BY rowid").fetchall()

    rows.path = str(path)
    rows.config = SQL.format(path=str(path))
    return rows


def test_a_row_has_all_that_a_statement_may_name_in_lower_case(home, next_hop, database):
    more = database.config + "USERNAME, HOSTNAME = 'BobBy', 'Example.ORG'\n"
    home.configure(next_hop, more)
    message = b"From: Bobby B <Me@Example.ORG>\r\n\r\n"
    assert home.submit("Bob@X.Example", message=message).startswith("250 ")
    me = "bobby b <me@example.org>"
    wanted = ("bob@x.example", me, "bobby", "example.org", "bobby@example.org")
    assert database() == [wanted]


def test_an_address_is_one_row_however_often_it_is_written_to(home, next_hop, database, caplog):
    home.configure(next_hop, database.config)
    outbound = home.outbound()
    for recipients in (("bob@x",), ("bob@x", "eve@x"), ("BOB@x", "bob@x")):
        assert home.submit(*recipients, outbound=outbound).startswith("250 ")
    assert [row[0] for row in database()] == ["bob@x", "eve@x"]
    assert warnings_of(caplog) == []


def test_a_list_and_a_database_may_both_grow(home, next_hop, database):
    home.configure(next_hop, database.config + "BARE_APPEND = '~/friends'\n")
    assert home.submit().startswith("250 ")
    assert [row[0] for row in database()] == ["bob@x.example"]
    assert (home.path / "friends").read_text() == "bob@x.example\n"


@pytest.mark.parametrize(
    "recipient",
    ["'); DROP TABLE friends; --@x", "%(recipient)s@x", "?@x", ":a@x", '"a b"@x', "%@x", "100%s@x"],
)
def test_a_recipient_is_only_data_for_a_statement(home, next_hop, database, recipient):
    home.configure(next_hop, database.config)
    home.submit(recipient)
    assert [row[0] for row in database()] == [recipient.lower()]


def test_a_long_author_is_one_line_in_the_database(home, next_hop, database):
    """Our own folds are for the wire."""
    home.configure(next_hop, database.config)
    name = " ".join(["bobby"] * 30)
    message = f"From: {name} <bobby@example.org>\r\n\r\n".encode()
    assert home.submit(message=message).startswith("250 ")
    assert database()[0][1] == f"{name} <bobby@example.org>"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("DB_BARE_APPEND = 'INSERT INTO nowhere VALUES (%(recipient)s)'\n", "no such table"),
        ("DB_BARE_APPEND = 'INSERT INTO friends VALUES (%(who)s)'\n", "names %(who)s"),
        ("DB_BARE_APPEND = 'nonsense'\n", "syntax error"),
        ("DB_BARE_APPEND = '%(recipient)s'\n", "syntax error"),
        ("DB_CONNECTION = None\n", "opens no database"),
        ("DB_CONNECTION.close()\n", "closed database"),
    ],
)
def test_what_goes_wrong_with_a_database_is_a_warning_and_the_mail_goes(
    home, next_hop, database, caplog, more, says
):
    home.configure(next_hop, database.config + more)
    outbound = home.outbound()
    for count in (1, 2):
        assert home.submit(outbound=outbound).startswith("250 ")
        assert len(next_hop.messages) == count
        warnings = warnings_of(caplog)
        assert len(warnings) == count
        assert all("config: DB_BARE_APPEND: " in warning for warning in warnings)
        assert all(says in warning for warning in warnings)
    assert database() == []


def test_a_connection_that_was_lost_is_opened_again_for_the_next_message(
    home, next_hop, database, caplog
):
    """A statement that fails once tells that the connection may be dead."""
    lose = f"import os\nif not os.path.exists({str(home.path / 'once')!r}):\n"
    lose += f"    open({str(home.path / 'once')!r}, 'w').close()\n    DB_CONNECTION.close()\n"
    home.configure(next_hop, database.config + lose)
    outbound = home.outbound()
    assert home.submit("one@x", outbound=outbound).startswith("250 ")
    assert home.submit("two@x", outbound=outbound).startswith("250 ")
    assert [row[0] for row in database()] == ["two@x"]
    assert len(warnings_of(caplog)) == 1


def test_a_rule_whose_connection_was_lost_is_asked_again_at_once(home, next_hop, database):
    with contextlib.closing(sqlite3.connect(database.path)) as connection:
        connection.execute("INSERT INTO friends VALUES ('bob@x.example', '', '', '', '')")
        connection.commit()
    once = str(home.path / "once")
    lose = f"import os\nif not os.path.exists({once!r}):\n"
    lose += f"    open({once!r}, 'w').close()\n    DB_CONNECTION.close()\n"
    rules = "to-sql -wildcards 'SELECT a FROM friends' ext=friend\nto * bare\n"
    home.configure(next_hop, database.config + lose, rules)
    assert home.submit().startswith("250 ")
    assert [message.sender for message in next_hop.messages] == ["bobby-friend@example.org"]


def test_many_threads_share_one_connection(home, next_hop, database, caplog):
    home.configure(next_hop, database.config)
    outbound, said = home.outbound(), []
    start = threading.Barrier(8)

    def send(number):
        start.wait(PATIENCE_SECONDS)
        for _ in range(3):
            said.append(home.submit(f"r{number}@x", "all@x", outbound=outbound))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_SECONDS)
    assert len(said) == 24
    assert all(one.startswith("250 ") for one in said)
    assert sorted(row[0] for row in database()) == ["all@x", *(f"r{n}@x" for n in range(8))]
    assert warnings_of(caplog) == []


# The user's log

LOG = "LOGFILE_OUTGOING = '~/outgoing.log'\n"


def log_of(home):
    """The entries, each a list of its lines."""
    text = (home.path / "outgoing.log").read_text()
    assert text.endswith("\n\n")
    return [entry.split("\n") for entry in text[:-2].split("\n\n")]


def test_each_recipient_has_an_entry_in_the_order_of_the_envelope(home, next_hop):
    rules = "to *@y kw=y\nto * bare\n"
    home.configure(next_hop, LOG, rules)
    recipients = ["one@x", "two@y", "three@x", "one@x"]
    assert home.submit(*recipients).startswith("250 ")
    entries = log_of(home)
    assert [entry[2] for entry in entries] == [f"  To: {name}" for name in recipients]
    date = rb"Date: ([^\r]*)"
    (wire, *_) = [message.wire for message in next_hop.messages]
    size = len(MESSAGE.replace(b"\r\n", b"\n"))
    assert entries[0] == [
        "Date: " + re.search(date, wire)[1].decode(),
        "From: Bobby <bobby@example.org>",
        "  To: one@x",
        "Subj: Hi",
        "Actn: " + "to * tag from bare".ljust(72 - len(f"({size})")) + f"({size})",
    ]
    assert entries[1][1].startswith("From: Bobby <bobby-keyword-y.")
    assert entries[1][4].startswith("Actn: to *@y tag from kw=y ")


def test_the_size_is_that_of_the_message_as_it_was_submitted(home, next_hop):
    home.configure(next_hop, LOG)
    local = b"From: bobby@example.org\nX:  y\nX-Tmda: bare\nBcc: z@x\n\n.a\n\n..\nb\n"
    wire = local.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")
    assert home.submit(message=wire).startswith("250 ")
    assert log_of(home)[0][-1] == "Actn: " + "X-TMDA: bare".ljust(68) + f"({len(local) - 1})"


@pytest.mark.parametrize(
    "message",
    [
        b"From: bobby@example.org\r\nSubject: x\r\n  To: all@x\r\n \r\n Date: now\r\n\r\n",
        b"From: bobby@example.org\r\nReply-To: x\r\n Subj: forged\r\n\tActn: bare\r\n\r\n",
        b"From: bobby@example.org\r\nSubject: \x1b[2J\x00\x07\x08\x0b\x0c\r\n\r\n",
        b"From: b\x00\x1b\x0by <bobby@example.org>\r\nSubject: \xff\xfe\r\n\r\n",
    ],
)
def test_no_message_can_forge_an_entry_or_disturb_a_terminal(home, next_hop, message):
    home.configure(next_hop, LOG)
    assert home.submit(message=message).startswith("250 ")
    octets = (home.path / "outgoing.log").read_bytes()
    assert octets.count(b"\n\n") == 1
    assert octets.count(b"\nDate: ") == octets.count(b"\nActn: bare") == 0
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", octets)


def test_only_copies_that_were_taken_are_in_the_log(home):
    rules = "to one@x tag from bare x-copy first\nto * bare\n"
    with FakeNextHop(at("DOT", Act(b"452 4.3.1 disk full\r\n"), message=2)) as server:
        home.configure(server, LOG, rules)
        assert home.submit("two@x", "one@x").startswith("451 ")
    assert [entry[2] for entry in log_of(home)] == ["  To: two@x"]


def test_a_message_that_nobody_takes_is_not_in_the_log(home):
    with FakeNextHop(at("RCPT", b"550 5.1.1 unknown\r\n")) as server:
        home.configure(server, LOG)
        assert home.submit().startswith("550 ")
    assert not (home.path / "outgoing.log").exists()


def test_the_null_sender_is_written_as_brackets(home, next_hop):
    home.configure(next_hop, LOG, "to * tag from bare envelope exp=<>\n")
    assert home.submit().startswith("250 ")
    assert log_of(home)[0][1] == "Sndr: <>"


def test_a_log_is_the_users_alone_and_an_old_one_is_kept(home, next_hop):
    home.configure(next_hop, LOG)
    assert home.submit("one@x").startswith("250 ")
    path = home.path / "outgoing.log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    assert home.submit("two@x").startswith("250 ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry[2] for entry in log_of(home)] == ["  To: one@x", "  To: two@x"]


@pytest.mark.parametrize(
    "place", ["~/missing/log", "~/.tmda", "/dev/full", "/proc/version", "~/.tmda/config/log"]
)
def test_a_log_that_cannot_be_written_is_a_warning_for_the_mail_has_gone(
    home, next_hop, caplog, place
):
    home.configure(next_hop, f"LOGFILE_OUTGOING = {place!r}\n")
    assert home.submit().startswith("250 ")
    assert len(next_hop.messages) == 1
    (warning,) = warnings_of(caplog)
    assert f"{home.path}/.tmda/config: LOGFILE_OUTGOING: " in warning
    assert "cannot be written" in warning


def test_a_log_that_another_keeps_locked_is_a_warning_too(home, next_hop, caplog, monkeypatch):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    home.configure(next_hop, LOG)
    with locked_by_another(home.path / "outgoing.log"):
        assert home.submit().startswith("250 ")
    assert "somebody else keeps it locked" in warnings_of(caplog)[0]


def test_a_pipe_in_the_place_of_the_log_holds_nothing_up(home, next_hop):
    os.mkfifo(home.path / "outgoing.log")
    home.configure(next_hop, LOG)
    begun = time.monotonic()
    assert home.submit().startswith("250 ")
    assert time.monotonic() - begun < PATIENCE_SECONDS


def test_threads_that_log_at_once_tear_no_entry(home, next_hop):
    home.configure(next_hop, LOG)
    outbound, start = home.outbound(), threading.Barrier(10)

    def send(number):
        start.wait(PATIENCE_SECONDS)
        message = b"From: bobby@example.org\r\nSubject: " + b"%d" % number * 3000 + b"\r\n\r\n"
        home.submit(
            *(f"r{number}-{one}@x" for one in range(10)), message=message, outbound=outbound
        )

    threads = [threading.Thread(target=send, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_SECONDS)
    entries = log_of(home)
    assert len(entries) == 100
    for entry in entries:
        match = re.fullmatch(r"  To: r(\d)-\d@x", entry[2])
        assert match is not None
        assert entry[3] == "Subj: " + match[1] * 3000


def test_the_daemons_log_has_the_rule_that_the_users_log_has(home, next_hop):
    home.configure(next_hop, LOG, "to * tag from bare x-a 'b c'\n")
    assert home.submit().startswith("250 ")
    (note,) = home.notes
    assert "rule='to * tag from bare x-a \"b c\"'" in note
    assert log_of(home)[0][-1].startswith('Actn: to * tag from bare x-a "b c" ')


# Commands of a filter, from the message to the next hop


def test_a_command_has_thirty_seconds_unless_told_otherwise(home):
    assert House("h", "full", LIMITS, home.pool).script_timeout == 30


def test_a_command_of_a_filter_makes_the_address_of_each_recipient(home, next_hop):
    command = 'tag from shell="echo ${TMDA_VRECIPIENT}=me@example.org"'
    home.configure(next_hop, "TMDA_VRECIPIENT = '$TMDA_VRECIPIENT'\n", f"to * {command}\n")
    said = home.submit("one@x", "two@y")
    assert said.startswith("250 "), said
    assert [message.sender for message in next_hop.messages] == [
        "one=x=me@example.org",
        "two=y=me@example.org",
    ]


def test_a_command_of_a_filter_has_the_users_environment(home, next_hop, monkeypatch):
    monkeypatch.setenv("SECRET", "of the daemon")
    out = home.path / "environment"
    home.configure(next_hop, "", f'to * tag x-a shell="{ENVIRONMENT_OF_SH} > {out}; pwd -P"\n')
    peer = Peer("127.0.0.1", 40000, True, "127.0.0.5")
    assert home.submit(peer=peer).startswith("250 ")
    assert sorted(out.read_text().splitlines()) == [
        f"HOME={home.path}",
        "LOGIN=bobby",
        "LOGNAME=bobby",
        f"PATH={PATH}",
        "TCPLOCALIP=127.0.0.5",
        "TMDA_RECIPIENT=bob@x.example",
        "TMDA_VRECIPIENT=bob=x.example",
        "USER=bobby",
    ]
    where = os.path.realpath(home.path).encode()
    assert b"X-A: " + where in next_hop.messages[0].wire.replace(b"\r\n ", b" ")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("shell=false", "the command 'false' ended with 1"),
        ("shell=true", "'' is no address that mail can be sent from"),
        ("tag from shell='echo a; echo b'", "control characters"),
        ("tag from shell='sleep 9'", "did not end within 0.2 s"),
        ("tag from shell='yes'", "prints more than 65536 octets"),
        ("tag from shell='kill -KILL $$'", "ended by signal 9"),
        ("tag from bare x-a shell='exit 3'", "ended with 3"),
    ],
)
def test_a_command_that_fails_defers_the_message_and_names_the_rule(home, next_hop, command, says):
    home.configure(next_hop, rules=f"# rules\nto one@x bare\nto * {command}\n")
    said = home.submit("one@x", "two@x", outbound=home.outbound(script_timeout=0.2))
    assert said.startswith("451 4.3.5 Error in your TMDA files: filters/outgoing line 3: ")
    assert says in said
    assert next_hop.messages == []


def test_python_is_refused_with_what_to_use(home, next_hop):
    home.configure(next_hop, rules="to * python=1\n")
    assert "use shell=COMMAND" in home.submit()
    assert next_hop.messages == []


def test_a_virtual_users_filter_runs_no_command(home, next_hop):
    home.configure(next_hop, rules=f"to * shell=touch>{home.path}/pwned\n")
    home.write(
        "config",
        f'MAIL_TRANSPORT = "smtp"\nSMTPHOST = "127.0.0.1:{next_hop.port}"\n'
        'USERNAME = "bobby"\nHOSTNAME = "example.org"\n',
    )
    said = home.submit(outbound=home.outbound("literal"))
    assert "filters/outgoing line 1: 'shell' is not allowed here" in said
    assert not (home.path / "pwned").exists()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"X-TMDA: shell=touch\r\n", "X-TMDA: 'shell' can be used in a filter only"),
        (b"X-TMDA: python=1\r\n", "X-TMDA: 'python' can be used in a filter only"),
        (b"X-TMDA: Nonsense\x1b[31m\xff\r\n", "X-TMDA: "),
        (b"X-TMDA: " + b"x" * 5000 + b"\r\n", "X-TMDA: "),
        (b"X-TMDA: dated=5q\r\n", "X-TMDA: invalid timeout '5q'"),
        (b"Subject: X-TMDA\r\n", "Subject: X-TMDA without an action"),
        (b"Subject: X-TMDA shell=id x\r\n", "Subject: 'shell' can be used in a filter only"),
    ],
)
def test_what_a_message_may_not_ask_for_is_refused_for_good(home, next_hop, message, says):
    home.configure(next_hop, "X_TMDA_IN_SUBJECT = True\n")
    said = home.submit(message=message + b"\r\n")
    assert said.startswith(f"554 5.6.0 Error in your message: {says}")
    assert said.isprintable()
    assert len(said) < 256
    assert next_hop.messages == []


def test_commands_run_no_second_time_while_the_database_stays_broken(home, next_hop, database):
    """Only a new connection is worth another try."""
    rules = """\
to one@x tag from shell="echo x >>count; echo me@example.org"
to-sql -addr_column=a "SELECT a FROM missing WHERE %(criteria)s" bare
"""
    home.configure(next_hop, database.config, rules)
    outbound = home.outbound()
    for _ in range(3):
        assert home.submit("one@x", "two@x", outbound=outbound).startswith("451 ")
    # The first message found the connection old, and tried a new one.
    assert (home.path / "count").read_text().split() == ["x"] * 4
