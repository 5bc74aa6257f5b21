"""Limits on messages and recipients (BX-3): who has sent enough waits, and nobody else does."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import Dialogue, logged_in, submit
from running import (
    HOST,
    LOGIN,
    PASSWORD,
    Daemon,
    Home,
    make_home,
    run,
    to_smtp,
    tofmipd,
    wait_until,
)
from village import Village, children, descriptors, processes

TO = "x@example.net"
MESSAGE = b"Subject: x\r\n\r\nx\r\n.\r\n"
HUNDRED = re.compile(
    r"452 4\.7\.1 You may send 100 messages in 1 day: try again in 86[0-9]{3} s,"
    r" at [0-9]{2}:[0-9]{2}:[0-9]{2} [+-][0-9]{4}"
)
UNKNOWN = "451 4.3.0 Error: the limits cannot be looked up now, try again later"


def messages(talk: Dialogue, count: int) -> list[str]:
    """The replies to so many messages, one after the other."""
    said = []
    for _ in range(count):
        talk.envelope(TO)
        said.append(talk.data(MESSAGE))
    return said


def codes(said: list[str]) -> str:
    return " ".join(reply[:3] for reply in said)


# In personal mode.


@pytest.fixture
def home(tmp_path, hop) -> Home:
    """One of its own for each test: counts stay."""
    return make_home(tmp_path / "home", to_smtp(hop.port))


def test_the_hundred_and_first_message_has_to_wait_also_after_a_restart(start, home, hop):
    home.write("tofmipd", f"{LOGIN}:{PASSWORD}\nchloe:{PASSWORD}\n")
    options = ("--limit", "1000/1h,100/1d")
    daemon = start(home, *options)
    with logged_in(daemon.port) as talk:
        *sent, last = messages(talk, 101)
        assert {reply[:3] for reply in sent} == {"250"}
        assert HUNDRED.fullmatch(last), last
        # The session goes on, and so does everybody else's.
        assert talk.say("NOOP").startswith("250")
        assert submit(daemon.port, TO, login="chloe").startswith("250")
    daemon.says("WARNING", "limited user='bobby' messages=100/1d asked=1 wait=86")
    assert len(hop.messages()) == 101
    assert daemon.stop() == 0
    again = start(home, *options)
    assert HUNDRED.fullmatch(submit(again.port, TO))
    assert HUNDRED.fullmatch(submit(again.port, TO, login="BOBBY"))
    assert submit(again.port, TO, login="chloe").startswith("250")
    assert len(hop.messages()) == 102


def test_counts_are_there_when_the_daemon_has_been_killed(start, home, hop):
    options = ("--limit", "3/1d")
    said = []
    # The end of such a daemon is not what it should be.
    with contextlib.suppress(AssertionError), tofmipd(home, *options) as daemon:
        with logged_in(daemon.port) as talk:
            said += messages(talk, 2)
        daemon.process.kill()
    assert daemon.process.returncode == -signal.SIGKILL
    assert codes(said) == "250 250"
    again = start(home, *options)
    with logged_in(again.port) as talk:
        assert codes(messages(talk, 2)) == "250 452"


def test_recipients_are_counted_and_too_many_at_once_can_never_pass(start, home, hop):
    daemon = start(home, "--limit-recipients", "5/1h", "--limit", "100/1h")
    people = [f"x{number}@example.net" for number in range(6)]
    assert submit(daemon.port, *people) == (
        "554 5.7.1 You may send to 5 recipients in 1 hour: this message has 6"
    )
    daemon.says("WARNING", "limited user='bobby' recipients=5/1h asked=6 wait=never")
    assert submit(daemon.port, *people[:3]).startswith("250")
    assert submit(daemon.port, *people[:3]).startswith(
        "452 4.7.1 You may send to 5 recipients in 1 hour: try again in "
    )
    assert submit(daemon.port, *people[:2]).startswith("250")
    assert [len(message.recipients) for message in hop.messages()] == [3, 2]


@pytest.mark.parametrize("beginning", ["RCPT", "DATA", ".", "CONNECT"])
def test_a_message_that_is_not_taken_costs_nothing(start, home, hop, beginning):
    daemon = start(home, "--limit", "1/1d")
    hop.refuse[beginning] = b"554 5.7.1 not from you"
    for _ in range(3):
        assert submit(daemon.port, TO)[:3] in ("554", "451")
    hop.refuse.clear()
    assert submit(daemon.port, TO).startswith("250")
    assert submit(daemon.port, TO).startswith("452")


def test_an_error_in_the_users_files_costs_nothing(start, home, hop):
    daemon = start(home, "--limit", "1/1d")
    home.write("filters/outgoing", "to * nonsense\n")
    assert submit(daemon.port, TO).startswith("451 4.3.5")
    home.write("filters/outgoing", "to * bare\n")
    assert submit(daemon.port, TO).startswith("250")


def test_sessions_and_daemons_at_once_send_no_more_than_there_is(start, home, hop):
    """Two daemons of one person share the file."""
    ports = [start(home, "--limit", "20/1d").port for _ in range(2)]

    def send(number: int) -> list[str]:
        with logged_in(ports[number % 2]) as talk:
            return messages(talk, 5)

    with ThreadPoolExecutor(8) as pool:
        said = [reply[:3] for replies in pool.map(send, range(8)) for reply in replies]
    assert (said.count("250"), said.count("452")) == (20, 20)
    assert len(hop.messages()) == 20


def test_a_file_that_breaks_defers_the_mail_until_it_is_gone(start, home, hop):
    file = home.tmda / "limits"
    daemon = start(home, "--limit", "2/1d")
    assert submit(daemon.port, TO).startswith("250")
    file.unlink()
    file.write_bytes(b"no database at all, only words\n" * 100)
    file.chmod(0o600)
    for _ in range(2):
        assert submit(daemon.port, TO) == UNKNOWN
    daemon.says("ERROR", f"the limits in {file} cannot be used: file is not a database")
    file.unlink()
    with logged_in(daemon.port) as talk:
        assert codes(messages(talk, 3)) == "250 250 452"


def test_without_limits_there_is_no_file(start, home, hop):
    daemon = start(home, "--limit-file", str(home.path / "limits"))
    assert submit(daemon.port, TO).startswith("250")
    assert not (home.path / "limits").exists()
    assert not (home.tmda / "limits").exists()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("directory", "not a regular file"),
        ("link", "not a regular file"),
        ("words", "file is not a database"),
        ("nowhere", "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_at_the_start(tmp_path, how, words):
    home = make_home(tmp_path / "home")
    file = tmp_path / "limits"
    match how:
        case "directory":
            file.mkdir()
        case "link":
            file.symlink_to(tmp_path / "elsewhere")
        case "words":
            file.write_text("to be or not to be\n" * 100)
            file.chmod(0o600)
        case "nowhere":
            file = tmp_path / "no/limits"
    options = ("--limit", "1/1d", "--limit-file", str(file))
    done = run("--personal", "-f", "-p", f"{HOST}:0", *options, home=home)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith(f"tofmipd: {file}: limits cannot be kept here: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


# In global mode.


@pytest.fixture
def place(village: Village) -> Path:
    """A directory that root is to make for the service."""
    directory = village.directory / "state"
    yield directory
    if directory.is_symlink():
        directory.unlink()
    shutil.rmtree(directory, ignore_errors=True)


def replace_server(daemon: Daemon) -> None:
    """Kill the server, and wait for the next one."""
    (old,) = children(daemon.pid, "server")
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: set(children(daemon.pid, "server")) - {old}, "another server")


def limited(place: Path, *options: str) -> tuple[str, ...]:
    return ("--limit-file", str(place / "limits"), *options)


@pytest.mark.root
def test_in_global_mode_the_hundred_and_first_message_has_to_wait(village, village_hop, place):
    bobby, chloe, _ = village.people
    options = limited(place, "--limit", "100/1d")
    with village.daemon(*options) as daemon:
        with logged_in(daemon.port, bobby.name, bobby.password) as talk:
            *sent, last = messages(talk, 101)
        assert {reply[:3] for reply in sent} == {"250"}
        assert HUNDRED.fullmatch(last), last
        assert submit(daemon.port, TO, login=chloe.name, password=chloe.password)[:3] == "250"
        daemon.says("WARNING", f"limited user='{bobby.name}' messages=100/1d asked=1 wait=86")
        assert len(village_hop.messages()) == 101
        # A server that is replaced goes on counting where the old one was.
        replace_server(daemon)
        assert HUNDRED.fullmatch(submit(daemon.port, TO, login=bobby.name, password=bobby.password))
    with village.daemon(*options) as daemon:
        assert HUNDRED.fullmatch(submit(daemon.port, TO, login=bobby.name, password=bobby.password))
        assert submit(daemon.port, TO, login=chloe.name, password=chloe.password)[:3] == "250"
    assert len(village_hop.messages()) == 102


@pytest.mark.root
def test_in_global_mode_recipients_count_and_what_is_refused_does_not(village, village_hop, place):
    bobby = village.people[0]
    people = [f"x{number}@example.net" for number in range(4)]
    whose = {"login": bobby.name, "password": bobby.password}
    with village.daemon(*limited(place, "--limit-recipients", "3/1d")) as daemon:
        assert submit(daemon.port, *people, **whose).startswith("554 5.7.1 You may send to 3 ")
        village_hop.refuse["RCPT"] = b"550 5.1.1 unknown"
        for _ in range(2):
            assert submit(daemon.port, *people[:3], **whose).startswith("550")
        village_hop.refuse.clear()
        assert submit(daemon.port, *people[:2], **whose).startswith("250")
        assert submit(daemon.port, *people[:2], **whose).startswith("452 4.7.1 You may send to 3 ")
        assert submit(daemon.port, people[0], **whose).startswith("250")


@pytest.mark.root
def test_in_global_mode_the_counts_are_the_services_and_no_users(village, village_hop, place):
    bobby = village.people[0]
    bobby.configure(
        to_smtp(village_hop.port),
        "import os",
        f"for act in (lambda: os.listdir({str(place)!r}), lambda: os.unlink('{place}/limits'),",
        f"            lambda: os.rename({str(place)!r}, '{place}.old')):",
        "    try: act()",
        "    except OSError: continue",
        "    raise SystemExit('this went through')",
    )
    with village.daemon(*limited(place, "--limit", "2/1d")) as daemon:
        whose = {"login": bobby.name, "password": bobby.password}
        said = [submit(daemon.port, TO, **whose) for _ in range(3)]
        assert codes(said) == "250 250 452", said
        entries = [place, *place.iterdir()]
        assert place / "limits" in entries
        for path in entries:
            status = path.stat()
            assert (status.st_uid, status.st_gid) == (village.service_uid, village.service_gid)
            assert stat.S_IMODE(status.st_mode) == (0o700 if path == place else 0o600)
        for name, pid in processes(daemon).items():
            held = [target for target in descriptors(pid).values() if str(place) in target]
            assert bool(held) == (name == "server"), (name, held)


@pytest.mark.root
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("link", "a symbolic link"),
        ("writable", "others can write it"),
        ("users", "owns it"),
        ("file", "not a regular file"),
        ("file link", "not a regular file"),
    ],
)
def test_in_global_mode_a_place_that_others_could_change_is_an_error_at_the_start(
    village, place, how, words
):
    bobby = village.people[0]
    target = village.directory / "target"
    file = place / "limits"
    if how == "link":
        place.symlink_to(bobby.home.path)
    else:
        place.mkdir(mode=0o700)
        owner = bobby.uid if how == "users" else village.service_uid
        os.chown(place, owner, village.service_gid)
        place.chmod(0o777 if how == "writable" else 0o700)
    if how == "file":
        file.mkdir()
    elif how == "file link":
        file.symlink_to(target)
    options = village.options(*limited(place, "--limit", "1/1d"))
    done = village.run("-f", "-p", f"{HOST}:0", *options)
    assert done.returncode == os.EX_CONFIG
    assert re.fullmatch(rf"tofmipd: {re.escape(str(place))}.*{words}.*\n", done.stderr)
    assert not target.exists()
    assert pwd.getpwuid(bobby.home.path.stat().st_uid).pw_name == bobby.name


@pytest.mark.root
def test_in_global_mode_a_file_that_breaks_defers_the_mail_until_it_is_gone(
    village, village_hop, place
):
    bobby = village.people[0]
    whose = {"login": bobby.name, "password": bobby.password}
    with village.daemon(*limited(place, "--limit", "2/1d")) as daemon:
        assert submit(daemon.port, TO, **whose).startswith("250")
        file = place / "limits"
        file.unlink()
        file.write_bytes(b"no database at all, only words\n" * 100)
        os.chown(file, village.service_uid, village.service_gid)
        file.chmod(0o600)
        assert submit(daemon.port, TO, **whose) == UNKNOWN
        replace_server(daemon)
        assert submit(daemon.port, TO, **whose) == UNKNOWN
        file.unlink()
        said = [submit(daemon.port, TO, **whose) for _ in range(3)]
        assert codes(said) == "250 250 452"
    assert daemon.text().count("cannot be used: file is not a database") == 2
