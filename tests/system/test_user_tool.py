"""`tofmipd user` beside a running daemon, many at once, killed, and without room (BX-24)."""

from __future__ import annotations

import math
import os
import pty
import re
import select
import stat
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forge
import pytest
from clients import CLIENTS, Mail, dialogue, plain
from running import HOST, LIMIT_SECONDS, PROGRAM, Home, cannot_run, environment, run, wait_until

# What a file serves that has entries of one scheme only.
SERVED = {
    "plain": {"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"},
    "scram-sha-256": {"PLAIN", "LOGIN", "SCRAM-SHA-256"},
    "scram-sha-1": {"PLAIN", "LOGIN", "SCRAM-SHA-1"},
    "scrypt": {"PLAIN", "LOGIN"},
}
CLIENTS_KNOW = {
    "curl": {"PLAIN", "LOGIN", "CRAM-MD5"},
    "swaks": {"PLAIN", "LOGIN", "CRAM-MD5"},
    "msmtp": {"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"},
}


def user(
    home: Home, *words: str, text: str = "", before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the tool with this on its standard input, and without a terminal."""
    command = ["user", *words, "--personal"]
    if not before:
        ended = forge.run(command, environment(home), "/", text.encode(), 3 * LIMIT_SECONDS)
        return ended.as_completed()
    return subprocess.run(
        [*before, PROGRAM, *command],
        env=environment(home),
        cwd="/",
        input=text,
        capture_output=True,
        text=True,
        timeout=3 * LIMIT_SECONDS,
        start_new_session=True,
        check=False,
    )


def login(port: int, name: str, password: str) -> str:
    """The reply to a login, in a session of its own."""
    with dialogue(port) as talk:
        talk.say("EHLO client.example")
        return talk.say(f"AUTH PLAIN {plain(name, password)}")[:3]


def test_a_daemon_sees_at_once_what_the_tool_does(daemon, home):
    def done(*words: str, text: str = "") -> None:
        ended = user(home, *words, text=text)
        assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr

    done("add", "Ann", text="one\n")
    assert login(daemon.port, "ann", "one") == "235"
    assert login(daemon.port, "bobby", "FooBar") == "235"
    done("passwd", "ann", text="two\n")
    assert login(daemon.port, "ann", "two") == "235"
    assert login(daemon.port, "ann", "one") == "535"
    assert user(home, "test", "ann", text="two").returncode == 0
    assert user(home, "test", "ann", text="one").returncode == os.EX_NOPERM
    done("del", "ann")
    assert login(daemon.port, "ann", "two") == "535"
    assert (home.tmda / "tofmipd").read_text() == "bobby:FooBar\n"


@pytest.mark.parametrize(
    "client",
    [
        pytest.param("curl", marks=pytest.mark.peer("curl")),
        pytest.param("swaks", marks=pytest.mark.peer("swaks")),
        pytest.param("msmtp", marks=pytest.mark.peer("msmtp")),
    ],
)
@pytest.mark.parametrize("scheme", SERVED)
def test_clients_log_in_with_each_scheme(scheme, client, daemon, home, hop, tmp_path):
    home.write("tofmipd", "")
    made = user(home, "add", "bobby", "--scheme", scheme, "--generate")
    assert (made.returncode, made.stderr) == (0, "")
    mechanisms = SERVED[scheme] & CLIENTS_KNOW[client]
    for mechanism in mechanisms:
        text = "Subject: x\n\nx\n"
        password = made.stdout.strip()
        mail = Mail(("x@example.net",), text, mechanism=mechanism, password=password)
        sent = CLIENTS[client](mail, daemon.port, tmp_path)
        assert sent.status == 0, sent.words
    assert len(hop.messages()) == len(mechanisms)
    with dialogue(daemon.port) as talk:
        offered = re.search(r"AUTH ([^\n]*)", talk.say("EHLO client.example"))
    assert offered is not None
    assert {*offered[1].split()} == SERVED[scheme]


def test_test_sends_as_a_user_whose_password_is_hashed(daemon, home, hop, tmp_path):
    home.write("tofmipd", "")
    assert user(home, "add", "ann", text="FooBar").returncode == 0
    word = tmp_path / "word"
    word.write_text("FooBar\n")
    place = ("--server", f"{HOST}:{daemon.port}")
    for options in ([], ["--user", "Ann"]):
        sent = run("test", *place, *options, f"--password-file={word}", "x@example.net", home=home)
        assert (sent.returncode, sent.stderr) == (0, "")
        assert "\ntaken:    250 " in sent.stdout
    assert len(hop.messages()) == 2


@pytest.mark.root
def test_in_global_mode_too(village, tmp_path):
    anna, ben = village.people[:2]
    word = tmp_path / "word"
    word.write_text("one two\n")
    words = ("--password-file", str(word), "-a", str(village.passwords))
    with village.daemon() as daemon:
        assert village.run("user", "del", ben.name, *words[2:]).returncode == 0
        done = village.run("user", "passwd", anna.name, "--scheme=scrypt", *words)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("tofmipd user: no longer offered: CRAM-MD5, ")
        assert login(daemon.port, anna.name, "one two") == "235"
        assert login(daemon.port, ben.name, ben.password) == "535"
        assert village.run("user", "add", ben.name, *words).returncode == 0
        assert login(daemon.port, ben.name, "one two") == "235"
    assert stat.S_IMODE(village.passwords.stat().st_mode) == 0o600


@pytest.mark.parametrize("exists", [True, False])
def test_of_twenty_at_once_none_is_lost(tmp_path, exists):
    path = tmp_path / "file"
    if exists:
        path.write_text("# people\nbob:x\n")
        path.chmod(0o400)
    names = [f"user{number}" for number in range(20)]

    def add(name: str) -> tuple[int, str]:
        ended = user(Home(tmp_path), "add", name, "-a", str(path), "--scheme=plain", text=name)
        return ended.returncode, ended.stderr

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(add, names)) == {(0, "")}
    first, rest = ["# people", "bob:x"] if exists else [], [f"{name}:{name}" for name in names]
    lines = path.read_text().splitlines()
    assert lines[: len(first)] == first
    assert sorted(lines[len(first) :]) == sorted(rest)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == (0o400 if exists else 0o600)


def test_one_that_is_killed_leaves_the_old_file_or_the_new(tmp_path):
    path, beside = tmp_path / "file", tmp_path / ".file.new"
    # So many that it takes its time.
    old = "".join(f"user{number}:{'x' * 100}\n" for number in range(30_000)).encode()
    new = old + b"ann:FooBar\n"
    command = [PROGRAM, "user", "add", "ann", "--personal", "-a", str(path), "--scheme=plain"]
    found = []
    for turn in range(8):
        path.write_bytes(old)
        path.chmod(0o600)
        with subprocess.Popen(
            [*command, "--password-file=-"],
            env=environment(Home(tmp_path)),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            process.stdin.write(b"FooBar\n")
            process.stdin.close()
            process.stdin = None
            wait_until(lambda: beside.exists() or process.poll() is not None, "the new file")
            # Each turn some octets later; in the last ones perhaps too late.
            size = len(new) * turn // 6
            wait_until(
                lambda size=size: process.poll() is not None or _size(beside) >= size,
                "octets of the new file",
            )
            process.kill()
            process.wait(LIMIT_SECONDS)
        found.append((path.read_bytes(), beside.exists()))
        # The next one is not hindered, and clears up.
        name = "bob" if path.read_bytes() == old else "ann"
        verb = "add" if name == "bob" else "del"
        after = user(Home(tmp_path), verb, name, "-a", str(path), "--scheme=plain", text="x")
        if verb == "del":
            after = user(Home(tmp_path), verb, name, "-a", str(path))
        assert (after.returncode, after.stderr) == (0, "")
        assert path.read_bytes() == (old + b"bob:x\n" if verb == "add" else old)
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert {content for content, _ in found} <= {old, new}
    # Those that were killed in the middle.
    assert (old, True) in found


def _size(path: Path) -> float:
    """More than all if it has got its name already."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return math.inf


# No room, no rights


def test_a_file_that_gets_too_large_stays_as_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_text(f"# {'x' * 2000}\nbob:x\n")
    path.chmod(0o600)
    before = path.read_bytes()
    limited = ("sh", "-c", 'ulimit -f 1; exec "$@"', "sh")
    ended = user(Home(tmp_path), "add", "ann", "-a", str(path), text="x", before=limited)
    assert (ended.returncode, ended.stdout) == (os.EX_CANTCREAT, "")
    text = f"tofmipd: {path}: cannot be written (File too large); it is left as it was\n"
    assert ended.stderr == text
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


_MOUNT = """\
mount -t tmpfs -o size=16k,mode=0700 tofmipd "$1" || exit 200
printf 'bob:x\\n' >"$1/file"
chmod 600 "$1/file"
{spoil}
shift
"$@" <"$0" >&2
status=$?
cat "$WHERE/file"
ls -A "$WHERE"
exit $status
"""


@pytest.mark.root
@pytest.mark.peer("unshare")
@pytest.mark.parametrize(
    ("spoil", "reason", "others"),
    [
        ('head -c 60000 /dev/zero >"$1/zero" 2>/dev/null', "No space left on device", ["zero"]),
        ('mount -o remount,ro "$1"', "Read-only file system", []),
    ],
)
def test_a_full_disk_or_one_that_is_read_only_leaves_all_as_it_is(spoil, reason, others, tmp_path):
    place, word = tmp_path / "place", tmp_path / "word"
    place.mkdir()
    word.write_text("FooBar\n")
    ended = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", _MOUNT.format(spoil=spoil), str(word), str(place)),
            *(PROGRAM, "user", "add", "ann", "-a", f"{place}/file", "--password-file=-"),
        ],
        env=environment(None) | {"WHERE": str(place)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if ended.returncode in (1, 200):
        cannot_run(f"no mount here: {ended.stderr}")
    assert ended.returncode == os.EX_CANTCREAT
    text = f"tofmipd: {place}/file: cannot be written ({reason}); it is left as it was\n"
    assert ended.stderr == text
    assert ended.stdout.split() == ["bob:x", "file", *others]


# The terminal

_AT_TERMINAL = """\
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def at_terminal(home: Home, answers: list[bytes], *words: str) -> tuple[int, str, bytes]:
    """Run the tool at a terminal.

    Its status, standard error, and what the terminal has shown, with "|" for each answer.
    """
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", _AT_TERMINAL, str(slave), PROGRAM, "user", *words],
            env=environment(home),
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[slave],
        ) as process:
            shown = b""
            for answer in answers:
                while not shown.endswith(b": "):
                    assert select.select([master], [], [], LIMIT_SECONDS)[0], shown
                    shown += os.read(master, 1000)
                assert not termios.tcgetattr(slave)[3] & termios.ECHO
                os.write(master, answer)
                shown += b"|"
            _, err = process.communicate(timeout=LIMIT_SECONDS)
            while select.select([master], [], [], 0)[0]:
                shown += os.read(master, 1000)
            return process.returncode, err.decode(), shown
    finally:
        os.close(master)
        os.close(slave)


def test_at_a_terminal_a_new_password_is_asked_for_twice_and_not_shown(home):
    home.write("tofmipd", "")
    status, err, shown = at_terminal(home, ["Grüße\n".encode()] * 2, "add", "ann", "--personal")
    assert (status, err) == (0, "")
    assert shown == b"Password of ann: |\r\nThe same again: |\r\n"
    assert user(home, "test", "ann", text="Grüße").returncode == 0
    status, err, _ = at_terminal(home, ["Grüße\n".encode()], "test", "ann", "--personal")
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("answers", "status", "words"),
    [
        ([b"one\n", b"two\n"], os.EX_DATAERR, "the two are not the same"),
        ([b"\x04"], os.EX_DATAERR, "no password was typed"),
        ([b"\x03"], 130, ""),
    ],
)
def test_what_is_typed_wrong_changes_nothing(answers, status, words, home):
    before = (home.tmda / "tofmipd").stat().st_ino
    ended, err, _ = at_terminal(home, answers, "passwd", "bobby", "--scheme=scrypt", "--personal")
    assert ended == status
    assert words in err
    assert err.count("\n") == bool(words)
    assert (home.tmda / "tofmipd").stat().st_ino == before
    assert (home.tmda / "tofmipd").read_text() == "bobby:FooBar\n"
